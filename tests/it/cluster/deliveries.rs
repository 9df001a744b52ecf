//! Deliveries that become runs at the real EventListener, which asks Doorward's interceptor first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::json;

use super::{
    event_listener::{ASSERTIONS, Asks, EventListener, HOOKS},
    programs::Program,
};
use crate::{
    doctor::outside,
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Answer, Doorward, Push, Raw, free_port, now, unique},
    webhooks::{
        crash_recovery::{Kept, Plan, Random, Senders, try_to_deliver, until_all_arrive},
        senders::sender,
    },
};

/// A push of a commit to a repository.
pub fn push(repository: u32, commit: &str) -> String {
    json!({
        "ref": "refs/heads/main",
        "before": "0",
        "after": commit,
        "commits": [],
        "repository": {"id": repository, "full_name": "acme/app", "owner": {"login": "acme"}},
        "sender": {"id": 7, "login": "octocat"},
    })
    .to_string()
}

/// Sends a push of a commit to repository 1234.
pub async fn deliver(doorward: &Doorward, id: &str, commit: &str) -> Answer {
    Push::of(&push(1234, commit), id, WEBHOOK_SECRET).send(doorward, &[]).await
}

#[tokio::test]
async fn attacks_z30_a_signed_delivery_becomes_a_run_and_one_past_doorward_does_not() {
    let mut listener = EventListener::prepare(Asks::Doorward).await;
    let _sink = listener.start().await;
    let doorward = &listener.world.doorward;
    let taken = deliver(doorward, &unique(), "first").await;
    assert_eq!(taken.status, 202, "{}", taken.text());
    let event = taken.json()["eventID"].as_str().unwrap().to_owned();
    let run = listener.run("first").await;
    assert_eq!(run["metadata"]["labels"]["triggers.tekton.dev/triggers-eventid"], event);
    // Confirmed by the interceptor, and passed through the TriggerBinding.
    assert_eq!(run["metadata"]["annotations"]["test/user"], "webhook:github:repo:1234");
    assert_eq!(run["metadata"]["annotations"]["test/repository"], "1234");
    doorward.record(|record| record["unmapped"]["event_id"] == event).await;

    let mut forged = Push::of(&push(1234, "first"), &unique(), WEBHOOK_SECRET);
    forged.body = push(1234, "forged");
    assert_eq!(forged.send(doorward, &[]).await.status, 401);
    // The EventListener accepts deliveries that bypass Doorward with 202, but its trigger asks the interceptor, and
    // stops.
    let mut past = Push::of(&push(1234, "past"), &unique(), WEBHOOK_SECRET);
    past.lines[0] = "POST / HTTP/1.1".to_owned();
    let mut raw = Raw::connect(listener.address).await;
    raw.send(past.request(&[])).await;
    assert_eq!(raw.answer().await.status, 202);
    let stopped = listener.world.doorward.wait_for_log("a trigger was stopped").await;
    // It is reachable without Doorward, which the doctor must report.
    let said = outside(&[&format!("http://{}", listener.address)]).await;
    said.is("isolation", "fault", &["past Doorward", "NetworkPolicy"]);
    assert_eq!(said.code, Some(1));
    assert!(stopped["why"].as_str().unwrap().contains("bypassed Doorward"), "{stopped}");
    assert_eq!(stopped["trigger"], format!("namespaces/{}/triggers/push", listener.world.namespace));

    assert_eq!(deliver(&listener.world.doorward, &unique(), "last").await.status, 202);
    listener.run("last").await;
    assert_eq!(listener.commits().await, ["first", "last"]);
}

/// The EventListener handles a whole CloudEvent by separate code, with an event of its own.
#[tokio::test]
async fn attacks_z30_a_signed_cloud_event_becomes_a_run_and_one_past_doorward_does_not() {
    let cdevents = sender("standard-cdevents");
    let (name, kind, settings) = (cdevents.name, cdevents.kind_name(), cdevents.settings);
    let change = |yaml: String| {
        let route = format!(
            "  - {{name: cdevents, kind: webhook, hosts: [hooks.test], paths: [/{name}], schemes: [webhook], webhook: {name}, \
             upstream: sink, event_listener: {{namespace: '{{ns}}', name: build}}}}\n"
        );
        let rule =
            format!("  - {{id: cdevents, on: {{routes: [cdevents]}}, who: {{webhooks: [{name}]}}, do: allow}}\n");
        let entry = format!("{{name: {name}, sender: {kind}{settings}, secrets: [{{secret: {{file: {name}}}}}]}}");
        yaml.change("routes:\n", &format!("routes:\n{route}"))
            .change("rules:\n", &format!("rules:\n{rule}"))
            .change("webhooks: [{name: github,", &format!("webhooks: [{entry}, {{name: github,"))
    };
    let mut listener = EventListener::prepare_changed(Asks::Doorward, change, &[(name, cdevents.secret)]).await;
    let _sink = listener.start().await;
    let signed = |commit: &str| {
        // A non-standard attribute of the event, which the TriggerBinding reads.
        let body = cdevents.new_body().replacen('{', &format!("{{\"after\":\"{commit}\","), 1);
        cdevents.delivery_of(body.as_bytes(), &unique(), now()).bytes(cdevents, cdevents.content_type, &[])
    };
    let to = async |mut raw: Raw, delivery: Vec<u8>| {
        raw.send(delivery).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer
    };
    let taken = to(listener.world.doorward.raw().await, signed("first")).await;
    let event = taken.json()["eventID"].as_str().unwrap().to_owned();
    let run = listener.run("first").await;
    assert_eq!(run["metadata"]["labels"]["triggers.tekton.dev/triggers-eventid"], event);
    assert_eq!(run["metadata"]["annotations"]["test/user"], cdevents.user);
    assert_eq!(run["metadata"]["annotations"]["test/repository"], "app-1");
    listener.world.doorward.record(|record| record["unmapped"]["event_id"] == event).await;

    to(Raw::connect(listener.address).await, signed("past")).await;
    let stopped = listener.world.doorward.wait_for_log("a trigger was stopped").await;
    assert!(stopped["why"].as_str().unwrap().contains("bypassed Doorward"), "{stopped}");
    to(listener.world.doorward.raw().await, signed("last")).await;
    listener.run("last").await;
    assert_eq!(listener.commits().await, ["first", "last"]);
}

/// A Doorward that holds deliveries and is killed, beside the one that the EventListener asks, which is not.
fn holding(listener: &EventListener, port: u16, kept: &Kept) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut yaml = format!(
        "listeners: [{{name: public, address: 127.0.0.1:{port}}}]
external_host: doorward.test
upstreams:
routes:
rules:
webhooks: [{{name: github, sender: github, secrets: [{{secret: {{file: secret}}}}]}}]
{}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
{ASSERTIONS}",
        kept.configuration(dir.path())
    );
    for (place, more) in HOOKS {
        yaml = yaml.change(place, more);
    }
    let yaml = yaml.change("{port}", &listener.address.port().to_string()).change("{ns}", &listener.world.namespace);
    for (name, text) in
        [("doorward.yaml", yaml.as_str()), ("secret", WEBHOOK_SECRET), ("assertions", &listener.assertion_key)]
    {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Kills Doorward at chosen moments while deliveries arrive and the EventListener is paused now and then. Counts the
/// runs of each delivery once all have one. The EventListener is paused rather than ended, so that it does not lose
/// what it accepted.
async fn runs_over_kills(listener: &EventListener, kept: &Kept) -> BTreeMap<String, usize> {
    /// How many of ten kills happen while the EventListener is paused.
    const AWAY: u64 = 2;
    let plan = Plan::new(20, 8);
    let port = free_port();
    let dir = holding(listener, port, kept);
    let senders = Senders::start(port, plan.deliveries, push);
    let mut random = Random::new(plan.seed);
    let mut sink: Option<Program> = None;
    for number in 0..plan.kills {
        match (number % 10, &sink) {
            (0, Some(sink)) => sink.stop(true),
            (AWAY, Some(sink)) => sink.stop(false),
            (AWAY, None) => sink = Some(listener.start().await),
            _ => {}
        }
        // While the EventListener is paused, nothing is sent to it.
        let class = match number % 10 {
            ..AWAY => ["write", "sync"][(number % 2) as usize],
            _ => ["send", "answer", "write", "sync"][(number % 4) as usize],
        };
        let moment = plan.moment(&mut random, kept.class(class));
        let doorward = kept.doorward(dir.path(), Some(&moment), listener.address.port());
        kept.ends_by_kill(doorward, &moment).await;
    }
    let last = Doorward::start_at(&dir.path().join("doorward.yaml")).await;
    let mut all: BTreeSet<String> = senders.finish().await.into_values().flatten().collect();
    match &sink {
        Some(sink) => sink.stop(false),
        None => sink = Some(listener.start().await),
    }
    let commits = async || listener.commits().await.into_iter().collect();
    until_all_arrive(&all, &plan, commits).await;
    // Nothing is in flight any more: the queue is empty, and the EventListener processes what it accepted in order.
    last.until_metrics_say("doorward_webhook_held{webhook=\"github\",state=\"waiting\"} 0\n").await;
    assert!(matches!(try_to_deliver(port, "last", &push(9, "last")).await, Some(202)));
    listener.run("last").await;
    all.insert("last".to_owned());
    let mut counts = BTreeMap::<String, usize>::new();
    for commit in listener.commits().await {
        *counts.entry(commit).or_default() += 1;
    }
    let doubled = counts.values().filter(|count| **count > 1).count();
    println!("seed {}: {} deliveries, {} kills, 0 lost, {doubled} doubled", plan.seed, all.len(), plan.kills);
    assert!(counts.keys().eq(&all), "runs of nothing that was taken");
    drop(sink);
    counts
}

#[tokio::test]
async fn each_held_delivery_becomes_one_run_over_kills_at_any_moment() {
    let counts = runs_over_kills(&EventListener::prepare(Asks::Doorward).await, &Kept::InAFile).await;
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test]
async fn each_delivery_held_in_redis_becomes_one_run_over_kills_at_any_moment() {
    let counts = runs_over_kills(&EventListener::prepare(Asks::Doorward).await, &Kept::in_redis()).await;
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test]
async fn each_held_delivery_becomes_a_run_over_kills_where_no_interceptor_is_asked() {
    runs_over_kills(&EventListener::prepare(Asks::Nobody).await, &Kept::InAFile).await;
}
