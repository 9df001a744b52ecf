//! Clock skew between the issuer of a token to be exchanged and Doorward.

use serde_json::{Value, json};

use super::{World, agents::ask, part};
use crate::{
    fixture::Change,
    harness::{Answer, now, settled},
};

/// A token and the expected result; all times are in seconds by a correct clock.
struct Row {
    what: &'static str,
    issued: i64,
    not_before: Option<i64>,
    expires: i64,
    /// The text of the refusal; `None` if it is exchanged.
    refused: Option<&'static str>,
}

const fn row(
    what: &'static str,
    (issued, not_before, expires): (i64, Option<i64>, i64),
    refused: Option<&'static str>,
) -> Row {
    Row { what, issued, not_before, expires, refused }
}

/// Half a minute is tolerated.
const ROWS: [Row; 10] = [
    row("the same clock", (0, None, 300), None),
    row("a bit ahead", (20, Some(20), 320), None),
    row("far ahead", (120, None, 420), Some("(`iat`); check both clocks")),
    row("good in a moment", (0, Some(20), 300), None),
    row("good later", (0, Some(120), 300), Some("(`nbf`); check both clocks")),
    row("about to end", (-290, None, 10), None),
    // A route would still accept it.
    row("ended a moment ago", (-320, None, -10), Some("subject_token: the token expired 1")),
    row("ended long ago", (-420, None, -120), Some("the token expired 2 min")),
    row("good for ever", (0, None, 100 * 86_400), Some("at most 1 d 0 h is accepted")),
    row("as long as may be", (0, None, 86_000), None),
];

/// The same while Doorward's clock is twenty seconds ahead of the others.
const AHEAD: u64 = 20;
const OURS_AHEAD: [Row; 5] = [
    row("the same clock as everybody", (0, None, 300), None),
    row("about to end", (-260, None, 30), None),
    row("good for others only", (-290, None, 10), Some("subject_token: the token expired 1")),
    row("ahead of us as well", (40, None, 340), None),
    row("ended long ago", (-420, None, -120), Some("the token expired 2 min")),
];

async fn exchanged(world: &World, claims: &Value) -> Answer {
    settled(async || world.exchange(&world.job(claims), "deploy").await).await
}

async fn judge(world: &World, rows: &[Row], ahead: u64) {
    for Row { what, issued, not_before, expires, refused } in rows {
        let now = now();
        let at = |offset: i64| now.saturating_add_signed(offset);
        let mut claims = json!({"iat": at(*issued), "exp": at(*expires)});
        if let Some(not_before) = not_before {
            claims["nbf"] = json!(at(*not_before));
        }
        let answer = exchanged(world, &claims).await;
        let Some(why) = refused else {
            let own = part(&answer.token(), 1);
            let [from, until] = ["iat", "exp"].map(|name| own[name].as_u64().unwrap());
            assert!(until <= at(*expires), "{what}: it outlives what it was given for: {own:#}");
            assert!(from < until && until - from <= 600, "{what}: {own:#}");
            assert!((now + ahead..=now + ahead + 60).contains(&from), "{what}: by our clock alone: {own:#}");
            let lasts = answer.json()["expires_in"].as_u64().unwrap();
            assert!(lasts <= until - from, "{what}: {}", answer.text());
            continue;
        };
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")), "{what}");
        assert!(answer.text().contains(why), "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn no_token_outlives_the_one_that_it_was_given_for_whatever_the_clocks_say() {
    let world = World::start().await;
    judge(&world, &ROWS, 0).await;
    world.doorward.set_clock_ahead(AHEAD);
    judge(&world, &OURS_AHEAD, AHEAD).await;
}

#[tokio::test]
async fn an_expired_own_token_gets_hardly_any_leeway_unless_configured() {
    for (settings, taken) in [("", false), ("clock_skew: 60s, ", true)] {
        let change = |yaml: String| yaml.change("{name: own, ", &format!("{{name: own, {settings}"));
        let world = World::with(change).await;
        let [person, agent] =
            ["alice", "planner-account"].map(|subject| world.person(subject, &json!({"client_id": "planner"})));
        let own = ask(&world, &person, &agent).await.token();
        let bearer = format!("Authorization: Bearer {own}");
        let used = async || world.doorward.get("/", &["Host: localhost", &bearer]).await;
        assert_eq!(used().await.status, 200, "{settings}");
        let expires = part(&own, 1)["exp"].as_u64().unwrap();
        world.doorward.set_clock_ahead(expires + 6 - now());
        let answer = settled(used).await;
        assert_eq!(answer.status, if taken { 200 } else { 401 }, "{settings}: {}", answer.text());
        assert!(taken || answer.text().contains("token_expired"), "{settings}: {}", answer.text());
    }
}
