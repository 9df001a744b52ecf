//! How long a token lasts, by the rules that give it.

use serde_json::json;

use super::{World, token};
use crate::harness::now;

/// `HH:MM` of a minute since the epoch, as the end or the beginning of a window.
fn clock(minute: u64, midnight: &str) -> String {
    match minute % (24 * 60) {
        0 => midnight.to_owned(),
        of_day => format!("{:02}:{:02}", of_day / 60, of_day % 60),
    }
}

/// How many seconds the token of a job lasts under these rules.
async fn lasts(rules: &str) -> i64 {
    let replaced = |yaml: String| {
        let (before, rest) = yaml.split_once("rules:").unwrap();
        let (_, after) = rest.split_once("tokens:").unwrap();
        format!("{before}rules:\n{rules}\ntokens:{after}")
    };
    let world = World::with(replaced).await;
    let answer = world.exchange(&world.job(&json!({"exp": now() + 3600})), "deploy").await;
    token(&answer);
    answer.json()["expires_in"].as_i64().unwrap()
}

#[tokio::test]
async fn a_token_lasts_no_longer_than_the_rules_that_give_it_let_it() {
    let rule = |id: &str, on: &str, more: &str, action: &str| {
        format!(
            "  - {{id: {id}, on: {{token: {{audiences: ['https://target.test'], scopes: [deploy]{on}}}{more}}}, who: {{issuers: [ci]}}, do: {action}}}\n"
        )
    };
    let minute = now() / 60;
    let window =
        |from: u64, to: u64| format!(", time: {{from: '{}', to: '{}'}}", clock(from, "00:00"), clock(to, "24:00"));
    // Between three and four minutes from now, whatever the second.
    let ends = window(minute + 24 * 60 - 60, minute + 4);
    let begins = window(minute + 4, minute + 120);
    for (what, rules, from, until) in [
        ("nothing said", rule("a", "", "", "allow"), 590, 600),
        ("a lifetime", rule("a", ", lifetime: 2m", "", "allow"), 110, 120),
        ("hours that end", rule("a", "", &ends, "allow"), 170, 240),
        (
            "hours that end while another rule goes on",
            rule("a", "", &ends, "allow") + &rule("b", "", "", "allow"),
            590,
            600,
        ),
        ("hours of a deny", rule("a", "", "", "allow") + &rule("b", "", &begins, "deny"), 170, 240),
    ] {
        let lasts = lasts(&rules).await;
        assert!((from..=until).contains(&lasts), "{what}: {lasts} s\n{rules}");
    }
}
