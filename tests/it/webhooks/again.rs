//! The same delivery again: a replay, a duplicate, or a redelivery that somebody requested from the sender.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use serde_json::Value;

use super::{
    BODY,
    hold::{configuration, deliver_to, on_redis},
    senders::{Door, sender},
};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Doorward, Push, Recorded, RedisServer, Reply, Upstream, folder_with, free_port, now, unique, until},
};

async fn upstream() -> Upstream {
    Upstream::scripted(|_| Reply::json(202, "{}")).await
}

async fn start(address: SocketAddr, hold: bool, entry: &str) -> Doorward {
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    let yaml = configuration(address, "store: {path: doorward.redb}")
        .change("sender: github,", &format!("sender: github, hold: {hold}, {entry}"));
    Doorward::start_with_faults(dir, &yaml).await
}

async fn until_arrived(upstream: &Upstream, count: usize) {
    until(async || upstream.requests().len() >= count).await;
}

#[tokio::test]
async fn a_redelivery_is_forwarded_as_often_as_the_configuration_says() {
    for hold in [false, true] {
        let upstream = upstream().await;
        let doorward = start(upstream.address, hold, "redeliveries: 1, ").await;
        let id = unique();
        // The seconds by which the clock is ahead, the status, and how many have arrived.
        for (ahead, status, arrived) in [(0, 202, 1), (30, 200, 1), (120, 202, 2), (240, 200, 2)] {
            doorward.set_clock_ahead(ahead);
            let answer = deliver_to(&doorward, &id, BODY).await;
            assert_eq!(answer.status, status, "held: {hold}, {ahead} s later: {}", answer.text());
            until_arrived(&upstream, arrived).await;
        }
        assert_eq!(upstream.requests().len(), 2, "held: {hold}");
    }
}

/// Duplicates and refused deliveries were recorded as held, but no event ever followed.
#[tokio::test]
async fn the_trail_says_held_of_what_is_stored_alone_and_a_redelivery_names_the_one_that_waits() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let doorward = start(nobody, true, "redeliveries: 1, held: {max: 1}, ").await;
    let (id, other, other_body) = (unique(), unique(), Push::body());
    for (ahead, id, body, status) in
        [(0, &id, BODY, 202), (0, &id, BODY, 200), (0, &other, other_body.as_str(), 503), (120, &id, BODY, 202)]
    {
        doorward.set_clock_ahead(ahead);
        let answer = deliver_to(&doorward, id, body).await;
        assert_eq!(answer.status, status, "{ahead} s later: {}", answer.text());
    }
    let records = async |count, id: &str, status: u16| {
        let is_it = |record: &Value| {
            record["unmapped"]["webhook"]["delivery"] == id && record["http_response"]["code"] == status
        };
        doorward.records(count, is_it).await
    };
    let taken = records(2, &id, 202).await;
    let first = &taken[0]["http_request"]["uid"];
    let joins = |record: &Value| (record["unmapped"]["held"].clone(), record["unmapped"]["about"].clone());
    assert_eq!(joins(&taken[0]), (first.clone(), Value::Null));
    assert_eq!(joins(&taken[1]), (Value::Null, first.clone()));
    for (id, status) in [(&id, 200), (&other, 503)] {
        let record = records(1, id, status).await.remove(0);
        assert_eq!(joins(&record), (Value::Null, Value::Null), "{status}: {record}");
    }
}

/// The EventListener makes a run anyway: its cause would be unknown, and the retry would make another.
#[tokio::test]
async fn a_delivery_whose_sender_disconnects_is_accepted_once_and_its_event_recorded() {
    let answers = Arc::new(tokio::sync::Notify::new());
    let script = answers.clone();
    let mut upstream = Upstream::scripted(move |_| match Reply::json(202, r#"{"eventID":"event-1"}"#) {
        Reply::Bytes(bytes) => Reply::Later(script.clone(), bytes),
        other => other,
    })
    .await;
    let doorward = start(upstream.address, false, "").await;
    let id = unique();
    let mut client = doorward.raw().await;
    client.send(Push::of(BODY, &id, WEBHOOK_SECRET).request(&[])).await;
    upstream.wait_for(1).await;
    drop(client);
    doorward.until_metrics_say("doorward_downstream_connections 0").await;
    answers.notify_one();
    let ended =
        |record: &Value| record["unmapped"]["event_id"] == "event-1" && record["unmapped"]["ended"] == "client_gone";
    doorward.record(ended).await;
    let retry = deliver_to(&doorward, &id, BODY).await;
    assert_eq!((retry.status, retry.reason().as_str()), (200, "replayed_delivery"), "{}", retry.text());
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn only_one_of_fifty_simultaneous_duplicates_is_held() {
    let upstream = upstream().await;
    let doorward = Arc::new(start(upstream.address, true, "").await);
    let id = unique();
    let twins = (0..50).map(|_| {
        let (doorward, id) = (doorward.clone(), id.clone());
        tokio::spawn(async move { deliver_to(&doorward, &id, BODY).await.status })
    });
    let mut statuses = Vec::new();
    for twin in twins.collect::<Vec<_>>() {
        statuses.push(twin.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "webhooks:17 {statuses:?}");
    assert!(statuses.iter().all(|status| [200, 202, 503].contains(status)), "webhooks:17 {statuses:?}");
    // A later delivery of the same repository shows that none of the duplicates arrived in between.
    let last = Push::body();
    assert_eq!(deliver_to(&doorward, &unique(), &last).await.status, 202);
    until_arrived(&upstream, 2).await;
    let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(bodies, [BODY.as_bytes(), last.as_bytes()], "webhooks:17");
}

/// With one sender for each kind of proof. If a duplicate were confirmed before the EventListener accepted the first,
/// the delivery could be lost.
#[tokio::test]
async fn webhooks_17_a_duplicate_in_flight_is_retried_and_accepted_if_the_first_was_not() {
    let (told, status) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicU16::new(0)));
    let (when, what) = (told.clone(), status.clone());
    let script = move |_: &Recorded| match Reply::json(what.load(Ordering::SeqCst), "{}") {
        Reply::Bytes(bytes) => Reply::Later(when.clone(), bytes),
        other => other,
    };
    let door = Door::before(Upstream::scripted(script).await, false, |yaml| yaml).await;
    for name in ["github", "gitlab-token", "docker-hub", "sns"] {
        let sender = sender(name);
        let delivery = sender.delivery();
        // If the body is signed but the id is not, anybody who saw it can send it with another id.
        let renamed = sender.delivery_of(&delivery.body, &unique(), delivery.time);
        let twins = if name == "github" { vec![&delivery, &renamed] } else { vec![&delivery] };
        for (round, answer, hears) in [(1, 500, 503), (2, 202, sender.taken)] {
            status.store(answer, Ordering::SeqCst);
            let meanwhile = async {
                until(async || door.upstream.requests().len() == round).await;
                for twin in twins.iter().cycle().take(4) {
                    let heard = twin.send(&door, sender).await;
                    let what = format!("webhooks:17 {name}, round {round}: {}", heard.text());
                    assert_eq!((heard.status, heard.reason().as_str()), (503, "delivery_in_flight"), "{what}");
                    let after: u32 = heard.header("retry-after").expect(&what).parse().unwrap();
                    assert!((1..=60).contains(&after), "{what}");
                }
                told.notify_one();
            };
            let (first, ()) = tokio::join!(delivery.send(&door, sender), meanwhile);
            assert_eq!(first.status, hears, "webhooks:17 {name}, round {round}: {}", first.text());
        }
        for twin in &twins {
            let heard = twin.send(&door, sender).await;
            assert_eq!((heard.status, heard.reason().as_str()), (200, "replayed_delivery"), "webhooks:17 {name}");
        }
        assert_eq!(door.upstream.take().len(), 2, "webhooks:17 {name}");
    }
}

#[tokio::test]
async fn webhooks_19_a_replay_after_a_restart_is_one() {
    let upstream = upstream().await;
    let doorward = start(upstream.address, false, "").await;
    let id = unique();
    assert_eq!(deliver_to(&doorward, &id, BODY).await.status, 202);
    let doorward = doorward.kill_and_restart().await;
    let again = deliver_to(&doorward, &id, BODY).await;
    assert_eq!((again.status, again.reason().as_str()), (200, "replayed_delivery"), "webhooks:19");
    assert_eq!(deliver_to(&doorward, &unique(), BODY).await.status, 200, "webhooks:19 under another id");
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn webhooks_19_a_replay_at_another_replica_is_one() {
    let upstream = upstream().await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    for hold in [false, true] {
        let start = async || {
            let (dir, yaml) = on_redis(&redis, upstream.address);
            let yaml = yaml.change("sender: github,", &format!("sender: github, hold: {hold},"));
            let doorward = Doorward::start_in(dir, &yaml).await;
            doorward.until_ready().await;
            doorward
        };
        let (here, there) = (start().await, start().await);
        let (id, body) = (unique(), Push::body());
        assert_eq!(deliver_to(&here, &id, &body).await.status, 202, "held: {hold}");
        assert_eq!(deliver_to(&there, &id, &body).await.status, 200, "webhooks:19 held: {hold}");
        assert_eq!(deliver_to(&there, &unique(), &body).await.status, 200, "webhooks:19 another id, held: {hold}");
        until_arrived(&upstream, 1).await;
        assert_eq!(upstream.take().len(), 1, "webhooks:19 held: {hold}");
    }
}

/// A tag that is deleted and pushed again: nothing in such a body depends on the time.
#[tokio::test]
async fn a_bitbucket_cloud_push_that_looks_like_another_arrives_if_only_ids_count() {
    let bitbucket = sender("bitbucket-cloud");
    let body = bitbucket.new_body();
    for (entry, arrive) in [("sender: bitbucket_cloud", 1), ("sender: bitbucket_cloud, unique_bodies: false", 2)] {
        let door = Door::with(false, |yaml| yaml.change("sender: bitbucket_cloud", entry)).await;
        let first = bitbucket.delivery_of(body.as_bytes(), &unique(), now());
        let second = bitbucket.delivery_of(body.as_bytes(), &unique(), now());
        let mut statuses = Vec::new();
        for delivery in [&first, &second, &first, &second] {
            statuses.push(delivery.send(&door, bitbucket).await.status);
        }
        assert_eq!(statuses, [202, if arrive == 2 { 202 } else { 200 }, 200, 200], "{entry}");
        assert_eq!(door.upstream.requests().len(), arrive, "{entry}");
    }
}
