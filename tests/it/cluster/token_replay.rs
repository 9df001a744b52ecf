//! The token of a pod used by others: wherever it comes from, it counts as the pod's, and each exchange is recorded
//! with its origin.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::tasks::{DOOR, OVER, TARGET, Tasks, claims};
use crate::harness::{Answer, EXCHANGE, Raw, exchange_form, request};

async fn exchange_from(tasks: &Tasks, address: IpAddr, subject_token: &str) -> Answer {
    let form = exchange_form(&[("subject_token", subject_token), ("audience", TARGET), ("scope", "push")]);
    let mut raw = Raw::connect_from(address, tasks.world.doorward.address("public")).await;
    raw.send(request(&EXCHANGE, form.as_bytes())).await;
    raw.answer().await
}

#[tokio::test]
async fn a_pods_token_may_be_used_again_while_its_task_runs_and_the_trail_says_from_where() {
    let tasks = Tasks::start().await;
    let task = tasks.bobs(&Tasks::release("replayed")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    let addresses: [IpAddr; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|address| address.parse().unwrap());
    let mut given = Vec::new();
    // Steps and sidecars of a pod ask independently, and behind a NAT a pod shares its address: the same token is
    // accepted again.
    for address in addresses.iter().take(2) {
        given.push(exchange_from(&tasks, *address, &pod_token).await.token());
    }
    let [one, other] = given.as_slice() else { unreachable!() };
    assert_ne!(claims(one)["jti"], claims(other)["jti"]);
    // It is the pod's, whoever asks: it gives nobody more, and ends with the pod's run.
    for name in ["sub", "act", "doorward.dev/run", "scope", "aud"] {
        assert_eq!(claims(one)[name], claims(other)[name], "{name}");
    }
    tasks.cancel(&task).await;
    tasks.is_dead(one).await;
    tasks.is_dead(other).await;
    let late = exchange_from(&tasks, addresses[2], &pod_token).await;
    assert_eq!((late.status, &late.json()["error"]), (400, &json!("invalid_request")), "{}", late.text());

    let from = |record: &Value| record["src_endpoint"]["ip"].as_str().map(str::to_owned);
    let late = tasks.world.doorward.record(|record| from(record).as_deref() == Some("127.0.0.4")).await;
    let records = tasks.world.doorward.audit();
    for (address, own) in addresses.iter().zip(&given) {
        let issued = records.iter().find(|record| record["unmapped"]["issued"]["token"] == claims(own)["jti"]).unwrap();
        assert_eq!(from(issued), Some(address.to_string()), "{issued:#}");
    }
    assert!(late["unmapped"]["issued"].is_null(), "{late:#}");
    let text = late.to_string();
    assert!(OVER.iter().any(|why| text.contains(why)), "{late:#}");
}
