//! Held deliveries while the delivering process starts and stops. An EventListener asks the interceptor only once, so
//! nothing is delivered to it while nobody can answer.

use std::net::SocketAddr;

use serde_json::json;

use super::hold::{configuration, deliver_to, held};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Doorward, Reply, Upstream, folder_with, free_port, unique, until},
};

fn settled(address: SocketAddr, settle: &str) -> String {
    let more = format!("store: {{path: doorward.redb}}\ninterceptor: {{host: door.test, settle: {settle}}}");
    configuration(address, &more).change("limits: {drain_accept: 0}", "limits: {drain_accept: 6s}")
}

async fn holding(address: SocketAddr, settle: &str) -> Doorward {
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    Doorward::start_in(dir, &settled(address, settle)).await
}

/// Whether a new connection gets a response.
async fn answers(doorward: &Doorward) -> bool {
    let head = ["POST / HTTP/1.1", "Host: door.test", "Content-Type: application/json"];
    let question = json!({"body": "", "context": {"event_id": "e", "trigger_id": "namespaces/ci/triggers/push"}});
    let answer = doorward.send(&head, question.to_string().as_bytes()).await;
    answer.status == 200 && answer.text().contains("\"continue\":false")
}

async fn until_waiting(doorward: &Doorward, count: usize) {
    let line = format!("doorward_webhook_held{{webhook=\"github\",state=\"waiting\"}} {count}\n");
    doorward.until_metrics_say(&line).await;
}

#[tokio::test]
async fn nothing_is_sent_before_event_listeners_can_reach_the_interceptor() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let upstream = Upstream::scripted_at(address, |_| Reply::json(202, "{}")).await;
    let doorward = holding(address, "10m").await;
    assert_eq!(deliver_to(&doorward, &unique(), super::BODY).await.status, 202);
    until_waiting(&doorward, 1).await;
    assert!(answers(&doorward).await);
    assert!(
        upstream.requests().is_empty(),
        "it is brought when EventListeners have had the time to reach this process"
    );
    std::fs::write(doorward.dir().join("doorward.yaml"), settled(address, "0s")).unwrap();
    let doorward = doorward.kill_and_restart().await;
    // An empty queue proves little right after the start: the table may not have been read yet.
    until(async || !upstream.requests().is_empty()).await;
    until_waiting(&doorward, 0).await;
    assert_eq!(upstream.requests().len(), 1, "the twin");
}

/// Also in the seconds after a start, when nothing is delivered yet.
#[tokio::test]
async fn held_deliveries_count_towards_the_bound_before_anything_is_sent() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let doorward = holding(address, "10m").await;
    let bounded = settled(address, "10m").change("sender: github,", "sender: github, held: {max: 1},");
    std::fs::write(doorward.dir().join("doorward.yaml"), bounded).unwrap();
    assert_eq!(deliver_to(&doorward, &unique(), super::BODY).await.status, 202);
    let doorward = doorward.kill_and_restart().await;
    let refused = deliver_to(&doorward, &unique(), &super::BODY.replace("\"0\"", "\"1\"")).await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "overloaded"));
    assert!(refused.header("retry-after").is_some());
    until_waiting(&doorward, 1).await;
}

#[tokio::test]
async fn a_stopping_process_delivers_nothing_more_and_answers_the_interceptor_until_it_closes() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut doorward = holding(address, "0s").await;
    assert_eq!(deliver_to(&doorward, &unique(), super::BODY).await.status, 202);
    // Between two tries: one in progress would continue.
    until(async || held(&doorward).await[0]["tries"].as_u64() == Some(2)).await;
    doorward.signal("TERM");
    doorward.wait_for_log("draining").await;
    let upstream = Upstream::scripted_at(address, |_| Reply::json(202, "{}")).await;
    assert!(answers(&doorward).await, "over a new connection");
    // It would have been retried in the seconds while connections are still accepted.
    doorward.wait_for_log("stopped").await;
    assert!(upstream.requests().is_empty());
    let doorward = doorward.kill_and_restart().await;
    until(async || !upstream.requests().is_empty()).await;
    until_waiting(&doorward, 0).await;
    assert_eq!(upstream.requests().len(), 1);
}

/// An EventListener that responds later has nobody to ask, and makes no run; and the try was cut off without a record.
#[tokio::test]
async fn an_attempt_unanswered_when_the_listeners_close_is_retried_if_event_listeners_ask() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let upstream = Upstream::scripted_at(address, |_| Reply::Hang).await;
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    let at_once = settled(address, "0s").change("limits: {drain_accept: 6s}", "limits: {drain_accept: 0}");
    let mut doorward = Doorward::start_in(dir, &at_once).await;
    assert_eq!(deliver_to(&doorward, &unique(), super::BODY).await.status, 202);
    until(async || upstream.requests().len() == 1).await;
    doorward.signal("TERM");
    doorward.wait_for_log("stopped").await;
    // The next start delivers nothing.
    std::fs::write(doorward.dir().join("doorward.yaml"), settled(address, "10m")).unwrap();
    let doorward = doorward.kill_and_restart().await;
    until_waiting(&doorward, 1).await;
    let listed = held(&doorward).await;
    assert_eq!(listed[0]["tries"], 1, "{listed:?}");
    assert!(listed[0]["last_error"].as_str().unwrap().contains("stopped before there was an answer"), "{listed:?}");
}
