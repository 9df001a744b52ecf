//! Deliveries that are forwarded while their sender waits, by replicas that share a store.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::{
    hold::{deliver_to, on_redis},
    interceptor::{ASKED, question},
};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Doorward, Push, RedisServer, Reply, Upstream, unique, until},
};

/// Bitbucket Cloud retries only twice.
#[tokio::test]
async fn a_delivery_forwarded_by_a_killed_replica_is_new_again_before_its_sender_gives_up() {
    let tries = Arc::new(AtomicUsize::new(0));
    let script = tries.clone();
    let upstream = Upstream::scripted(move |_| match script.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Hang,
        _ => Reply::json(202, "{}"),
    })
    .await;
    let redis = RedisServer::start(&[]);
    let start = async || {
        let (dir, yaml) = on_redis(&redis, upstream.address);
        let yaml = yaml.change("sender: github,", "sender: github, hold: false, answer_within: 30s,");
        let doorward = Doorward::start_with_faults(dir, &yaml).await;
        doorward.until_ready().await;
        doorward
    };
    let (killed, there) = (start().await, start().await);
    let (id, body) = (unique(), Push::body());
    let push = Push::of(&body, &id, WEBHOOK_SECRET);
    let mut raw = killed.raw().await;
    raw.send(push.request(&[])).await;
    until(async || tries.load(Ordering::SeqCst) == 1).await;
    drop(killed);
    // Also if its clock is ahead by as much as is tolerated.
    for ahead in [0, 41] {
        there.set_clock_ahead(ahead);
        let twin = deliver_to(&there, &id, &body).await;
        assert_eq!((twin.status, twin.reason().as_str()), (503, "delivery_in_flight"), "nobody knows better yet");
    }
    there.set_clock_ahead(51);
    assert_eq!(deliver_to(&there, &id, &body).await.status, 202);
}

/// Regression: anybody who had stored the delivery could have it forwarded again once it no longer counted as in
/// flight.
#[tokio::test]
async fn an_accepted_delivery_is_recorded_once_the_store_is_back() {
    let when = Arc::new(Notify::new());
    let told = when.clone();
    let Reply::Bytes(taken) = Reply::json(202, "{}") else { panic!() };
    let mut upstream = Upstream::scripted(move |_| Reply::Later(when.clone(), taken.clone())).await;
    let redis = RedisServer::start(&[]);
    let (dir, yaml) = on_redis(&redis, upstream.address);
    let yaml = yaml.change("sender: github,", "sender: github, hold: false,");
    let mut doorward = Doorward::start_with_faults(dir, &yaml).await;
    doorward.until_ready().await;
    let (id, body) = (unique(), Push::body());
    let away = async {
        upstream.wait_for(1).await;
        let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
        told.notify_one();
    };
    let (delivered, ()) = tokio::join!(deliver_to(&doorward, &id, &body), away);
    assert_eq!(delivered.status, 202);
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    doorward.wait_for_log("the outcome of a delivery is stored now").await;
    // Longer than it counts as in flight.
    doorward.set_clock_ahead(600);
    let replayed = deliver_to(&doorward, &id, &body).await;
    assert_eq!((replayed.status, replayed.reason().as_str()), (200, "replayed_delivery"));
}

/// Everything it asked about was stopped, after its 202.
#[tokio::test]
async fn an_event_listener_may_ask_a_replica_whose_clock_is_ahead_of_the_sending_one() {
    let upstream = Upstream::scripted(|_| Reply::json(202, r#"{"eventID":"event-1"}"#)).await;
    let redis = RedisServer::start(&[]);
    let start = async || {
        let (dir, yaml) = on_redis(&redis, upstream.address);
        let yaml = yaml
            .change("sender: github,", "sender: github, hold: false,")
            .change("upstream: el}", "upstream: el, event_listener: {namespace: ci, name: build}}");
        let doorward = Doorward::start_with_faults(dir, &format!("{yaml}interceptor: {{host: door.door.svc}}\n")).await;
        doorward.until_ready().await;
        doorward
    };
    let (here, there) = (start().await, start().await);
    there.set_clock_ahead(90);
    let body = Push::body();
    assert_eq!(deliver_to(&here, &unique(), &body).await.status, 202);
    let assertion = upstream.only().one("doorward-assertion").to_owned();
    // What the sending replica has bound is known at the other.
    for (event, goes_on) in [("event-1", true), ("event-2", false)] {
        let question = question(&assertion, &body, event).to_string();
        let answer = there.send(&ASKED, question.as_bytes()).await;
        assert_eq!(answer.json()["continue"], goes_on, "{event}: {}", answer.text());
    }
}
