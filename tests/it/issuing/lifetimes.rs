//! How long a token lasts, by the rules that grant it.

use serde_json::json;

use super::{DOOR, World, agents::ask, clock, introspected, keys::reload, part, trail::traced};
use crate::{
    fixture::Change,
    harness::{found, now, settled},
};

/// The lifetime of a job's token in seconds under these rules.
async fn lasts(rules: &str) -> i64 {
    let replaced = |yaml: String| {
        let (before, rest) = yaml.split_once("rules:").unwrap();
        let (_, after) = rest.split_once("tokens:").unwrap();
        format!("{before}rules:\n{rules}\ntokens:{after}")
    };
    let world = World::with(replaced).await;
    let answer = world.exchange(&world.job(&json!({"exp": now() + 3600})), "deploy").await;
    answer.token();
    answer.json()["expires_in"].as_i64().unwrap()
}

#[tokio::test]
async fn a_token_that_routes_take_a_little_longer_can_be_ended_until_then() {
    let world = World::with(|yaml| yaml.change("doorward, audiences", "doorward, clock_skew: 60s, audiences")).await;
    let alice = world.person("alice", &json!({"may_act": {"sub": "planner-account"}, "exp": now() + 300}));
    let planner = world.person("planner-account", &json!({"client_id": "planner", "exp": now() + 300}));
    let own = ask(&world, &alice, &planner).await.token();
    world.doorward.set_clock_ahead(330);
    let bearer = format!("Authorization: Bearer {own}");
    let used = async || settled(async || world.doorward.get("/", &["Host: localhost", &bearer]).await).await;
    assert_eq!(used().await.status, 200);
    assert_eq!(world.doorward.submit("/oauth2/revoke", &[], &format!("token={own}")).await.status, 200);
    let answer = used().await;
    assert_eq!((answer.status, answer.reason().as_str()), (401, "token_revoked"), "{}", answer.text());
}

#[tokio::test]
async fn a_token_can_be_revoked_twice_and_those_of_another_holder_stay_valid() {
    let world = World::start().await;
    let own = world.exchange(&world.job(&json!({})), "deploy").await.token();
    let alice = world.person("alice", &json!({"may_act": {"sub": "planner-account"}}));
    let planner = world.person("planner-account", &json!({"client_id": "planner"}));
    let of_another = ask(&world, &alice, &planner).await.token();
    let end = async |token: &str| world.doorward.submit("/oauth2/revoke", &[], &format!("token={token}")).await.status;
    let is_active = async |token: &str| introspected(&world, "target", token).await["active"].clone();
    for _ in 0..2 {
        assert_eq!(end(&own).await, 200);
        assert_eq!((is_active(&own).await, is_active(&of_another).await), (json!(false), json!(true)));
    }
    assert_eq!(end(&of_another).await, 200);
    assert_eq!(is_active(&of_another).await, false);
}

#[tokio::test]
async fn an_operator_revokes_an_own_token_even_if_no_route_accepts_it() {
    let world = World::with(|yaml| {
        yaml.change("  - {name: own, preset: doorward, audiences: ['https://target.test']}\n", "")
            .change("issuers: [people, own], upstream", "issuers: [people], upstream")
            .change(
                "  - {id: use, on: {routes: [web]}, who: {issuers: [own], kind: agent, scopes: [plan]}, do: allow}\n",
                "",
            )
    })
    .await;
    let own = world.exchange(&world.job(&json!({})), "deploy").await.token();
    assert_eq!(introspected(&world, "target", &own).await["active"], true);
    let jti = part(&own, 1)["jti"].as_str().unwrap().to_owned();
    let (code, said) = world
        .doorward
        .operator(&["revoke", "--issuer", "https://other.test", "--token-id", &jti, "--why", "leaked"])
        .await;
    assert!(code != Some(0) && said.contains("https://doorward.test"), "it tells which there are: {said}");
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", DOOR, "--token-id", &jti, "--why", "leaked"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(introspected(&world, "target", &own).await["active"], false);
}

/// Regression: a token that somebody had got in exchange for one from a build log stayed valid until it expired.
#[tokio::test]
async fn the_tokens_that_a_token_was_exchanged_for_end_when_it_is_revoked() {
    let world = World::start().await;
    let planner = world.person("planner-account", &json!({"client_id": "planner", "jti": "planners"}));
    let alice = |jti: &str| world.person("alice", &json!({"may_act": {"sub": "planner-account"}, "jti": jti}));
    let (of_leaked, of_other) =
        (ask(&world, &alice("leaked"), &planner).await.token(), ask(&world, &alice("other"), &planner).await.token());
    let status = async |token: &str| {
        world.doorward.get("/", &["Host: localhost", &format!("Authorization: Bearer {token}")]).await.status
    };
    let is_active = async |token: &str| introspected(&world, "target", token).await["active"].clone();
    assert_eq!((status(&of_leaked).await, status(&of_other).await), (200, 200));
    // That of the person, then that of the agent who acts for them.
    for (jti, of_others) in [("leaked", 200), ("planners", 401)] {
        let (code, said) =
            world.doorward.operator(&["revoke", "--issuer", "people", "--token-id", jti, "--why", "in a log"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!((status(&of_leaked).await, is_active(&of_leaked).await), (401, json!(false)), "{jti}");
        assert_eq!(
            (status(&of_other).await, is_active(&of_other).await),
            (of_others, json!(of_others == 200)),
            "{jti}"
        );
    }
    let traced = traced(&world, part(&of_leaked, 1)["jti"].as_str().unwrap()).await;
    assert!(traced.contains("an operator revoked it: in a log"), "{traced}");
}

/// Regression: under the new name of their issuer, such tokens were valid again.
#[tokio::test]
async fn revoked_own_tokens_stay_revoked_when_a_reload_renames_their_issuer() {
    let mut world = World::start().await;
    let (ended, leaked) = {
        let job = world.job(&json!({}));
        (world.exchange(&job, "deploy").await.token(), world.exchange(&job, "deploy").await.token())
    };
    assert_eq!(world.doorward.submit("/oauth2/revoke", &[], &format!("token={ended}")).await.status, 200);
    let jti = part(&leaked, 1)["jti"].as_str().unwrap().to_owned();
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", "own", "--token-id", &jti, "--why", "leaked"]).await;
    assert_eq!(code, Some(0), "{said}");
    let rename = |yaml: String| {
        yaml.change("name: own,", "name: ours,").change("people, own]", "people, ours]").change("[own]", "[ours]")
    };
    reload(&world.doorward, rename).await;
    for what in ["after the reload", "after a restart"] {
        for token in [&ended, &leaked] {
            assert_eq!(introspected(&world, "target", token).await["active"], false, "{what}");
            let used = world.doorward.get("/", &["Host: localhost", &format!("Authorization: Bearer {token}")]).await;
            assert_eq!((used.status, used.reason().as_str()), (401, "token_revoked"), "{what}: {}", used.text());
        }
        world.doorward = world.doorward.kill_and_restart().await;
    }
}

#[tokio::test]
async fn introspection_calls_a_token_inactive_once_it_has_expired() {
    let world = World::start().await;
    let own = world.exchange(&world.job(&json!({"exp": now() + 3600})), "deploy").await.token();
    for (ahead, active) in [(0, true), (570, true), (601, false)] {
        world.doorward.set_clock_ahead(ahead);
        // For a moment it considers its revocations stale.
        let told =
            found(async || Some(introspected(&world, "target", &own).await).filter(|told| told["active"].is_boolean()))
                .await;
        assert_eq!(told["active"], active, "{ahead}: {told:#}");
        assert_eq!(told.as_object().unwrap().len() == 1, !active, "nothing else of one that has ended: {told:#}");
    }
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
    // Between three and four minutes from now, whatever the second. Each row takes a while.
    let ends = window(minute + 24 * 60 - 60, minute + 4);
    let begins = window(minute + 4, minute + 120);
    for (what, rules, from, until) in [
        ("nothing said", rule("a", "", "", "allow"), 590, 600),
        ("a lifetime", rule("a", ", lifetime: 2m", "", "allow"), 110, 120),
        ("hours that end", rule("a", "", &ends, "allow"), 100, 240),
        (
            "hours that end while another rule goes on",
            rule("a", "", &ends, "allow") + &rule("b", "", "", "allow"),
            590,
            600,
        ),
        ("hours of a deny", rule("a", "", "", "allow") + &rule("b", "", &begins, "deny"), 100, 240),
        (
            "an expression",
            rule("a", "", "", "allow").replace("do:", &format!("when: request.time < {}, do:", now() + 200)),
            100,
            200,
        ),
    ] {
        let lasts = lasts(&rules).await;
        assert!((from..=until).contains(&lasts), "{what}: {lasts} s\n{rules}");
    }
}
