//! A clock of Doorward that differs from the cluster's.

use std::time::Duration;

use serde_json::json;

use super::tasks::{DOOR, TARGET, Tasks, claims, exchange};
use crate::harness::{found, now};

#[tokio::test]
async fn a_clock_that_is_ahead_of_the_clusters_shortens_what_tasks_get_and_gives_nothing_more() {
    const AHEAD: u64 = 20;
    let tasks = Tasks::with_faults(|yaml| yaml).await;
    let task = tasks.bobs(&Tasks::release("ahead")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let ends = claims(&pod_token)["exp"].as_u64().unwrap();
    let asked = [("audience", TARGET), ("scope", "push")];

    tasks.world.doorward.set_clock_ahead(AHEAD);
    let own = tasks.exchange(&pod_token, &asked).await.token();
    let said = claims(&own);
    let [from, until] = ["iat", "exp"].map(|name| said[name].as_u64().unwrap());
    assert!(from >= now() + AHEAD - 5 && until <= from + 600, "by our clock alone: {said:#}");
    assert_eq!(tasks.used(&own).await.status, 200);

    // By Doorward's clock the token has expired, though the cluster accepts it.
    tasks.world.doorward.set_clock_ahead(ends - now() + 60);
    let late = tasks.exchange(&pod_token, &asked).await;
    assert_eq!((late.status, &late.json()["error"]), (400, &json!("invalid_request")), "{}", late.text());
    assert!(late.text().contains("the token expired"), "{}", late.text());
    let used = tasks.used(&own).await;
    assert_eq!((used.status, used.reason().as_str()), (401, "token_expired"), "{}", used.text());

    tasks.world.doorward.set_clock_ahead(0);
    let again = tasks.exchange(&pod_token, &asked).await;
    again.token();
    assert!(Duration::from_secs(again.json()["expires_in"].as_u64().unwrap()) <= Duration::from_secs(600));
}

#[tokio::test]
async fn an_unknown_cause_is_temporary_only_right_after_the_run_was_created() {
    let tasks = Tasks::with_faults(|yaml| yaml).await;
    let run = tasks.world.api.create(&tasks.path("pipelineruns"), &Tasks::release("past")).await;
    let task = tasks.task_of(run).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let refused = async |said: &str| {
        found(async || {
            let answer = exchange(&tasks.world, &pod_token, &[("audience", TARGET), ("scope", "push")]).await;
            let is_it = answer.text().contains(said);
            assert!(is_it || answer.status == 503, "{}", answer.text());
            is_it.then_some(answer)
        })
        .await
    };
    let early = refused("the cause of run past is not known yet").await;
    assert_eq!((early.status, &early.json()["error"]), (503, &json!("temporarily_unavailable")), "{}", early.text());
    assert!(early.header("retry-after").is_some(), "{}", early.head);
    tasks.world.doorward.set_clock_ahead(31);
    let late = refused("the cause of run past is not known: it was made past Doorward").await;
    assert_eq!((late.status, &late.json()["error"]), (400, &json!("invalid_request")), "{}", late.text());
}
