//! Held deliveries: stored before the sender gets its response, and delivered until they are accepted.

use std::{
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use serde_json::Value;

use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{
        Answer, Doorward, Push, Recorded, RedisServer, Reply, Upstream, folder_with, free_port, settled, told, unique,
        until, within,
    },
};

/// The sealing key of a Doorward that uses Redis.
pub(super) const SESSION_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

const RULE: &str = "- {id: hooks, on: {routes: [hooks]}, who: {webhooks: [github]}, do: allow}";

/// A Doorward that holds GitHub's deliveries to an EventListener at `address`.
async fn holding(address: SocketAddr, more: &str) -> Doorward {
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    Doorward::start_with_faults(dir, &configuration(address, more)).await
}

pub(super) fn configuration(address: SocketAddr, more: &str) -> String {
    format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams:
  - {{name: el, url: 'http://{address}'}}
webhooks:
  - {{name: github, sender: github, secrets: [{{secret: {{file: secret}}}}]}}
routes:
  - {{name: hooks, kind: webhook, hosts: [hooks.test], paths: [/github], schemes: [webhook], webhook: github, upstream: el}}
rules:
  {RULE}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
{more}
"
    )
}

/// A unique body for a repository.
fn body(repository: u32) -> String {
    Push::body().replace("1234", &repository.to_string())
}

pub(super) async fn deliver_to(doorward: &Doorward, id: &str, body: &str) -> Answer {
    Push::of(body, id, WEBHOOK_SECRET).send(doorward, &[]).await
}

pub(super) async fn hooks(doorward: &Doorward, arguments: &[&str]) -> Result<Value, String> {
    let all: Vec<&str> = ["hooks"].iter().chain(arguments).copied().chain(["--why", "test"]).collect();
    match doorward.operator(&all).await {
        (Some(0), said) => Ok(serde_json::from_str(&said).unwrap()),
        (_, said) => Err(said),
    }
}

pub(super) async fn held(doorward: &Doorward) -> Vec<Value> {
    hooks(doorward, &["list"]).await.unwrap()["held"].as_array().unwrap().clone()
}

/// Whether this many deliveries are waiting and parked.
async fn holds(doorward: &Doorward, waiting: usize, parked: usize) -> bool {
    let metrics = doorward.metrics().await;
    let says = |state: &str, count: usize| {
        metrics.contains(&format!("doorward_webhook_held{{webhook=\"github\",state=\"{state}\"}} {count}\n"))
    };
    says("waiting", waiting) && says("parked", parked)
}

async fn until_it_holds(doorward: &Doorward, waiting: usize, parked: usize) {
    until(async || holds(doorward, waiting, parked).await).await;
}

/// An EventListener that numbers its events.
fn takes(request: &Recorded) -> Reply {
    Reply::json(202, &format!(r#"{{"eventID":"event-{}"}}"#, request.one("x-github-delivery")))
}

#[tokio::test]
async fn deliveries_to_a_stopped_event_listener_are_accepted_and_arrive_in_order_after_a_kill() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let doorward = holding(address, "store: {path: doorward.redb}").await;
    let mut sent = Vec::new();
    for repository in [1, 2, 1, 1] {
        let (id, body) = (unique(), body(repository));
        let traced = format!("traceparent: {TRACE}");
        let answer = Push::of(&body, &id, WEBHOOK_SECRET).send(&doorward, &[&traced]).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        let said: Value = serde_json::from_str(&answer.text()).unwrap();
        assert_eq!(said["delivery"], id.as_str());
        sent.push((repository, id, body));
    }
    assert_eq!(deliver_to(&doorward, &sent[0].1, &sent[0].2).await.status, 200, "webhooks:17 a twin");
    let listed = held(&doorward).await;
    assert_eq!(listed.iter().map(|held| held["delivery"].as_str().unwrap()).collect::<Vec<_>>(), {
        sent.iter().map(|(_, id, _)| id.as_str()).collect::<Vec<_>>()
    });

    let doorward = doorward.kill_and_restart().await;
    let upstream = Upstream::scripted_at(address, takes).await;
    // An empty queue proves little right after the start: the table may not have been read yet.
    doorward.until_metrics_say("doorward_webhook_delivered_total{webhook=\"github\"} 4\n").await;
    until_it_holds(&doorward, 0, 0).await;
    let arrived = upstream.requests();
    assert_eq!(arrived.len(), 4);
    for repository in [1, 2] {
        let expected: Vec<_> = sent.iter().filter(|(of, ..)| *of == repository).map(|(_, id, _)| id.as_str()).collect();
        let user = format!("webhook:github:repo:{repository}");
        let of_repository: Vec<_> = arrived
            .iter()
            .filter(|request| request.one("x-forwarded-user") == user)
            .map(|request| request.one("x-github-delivery"))
            .collect();
        assert_eq!(of_repository, expected);
    }
    for (_, id, body) in &sent {
        let request = arrived.iter().find(|request| request.one("x-github-delivery") == id).unwrap();
        assert_eq!(request.body, body.as_bytes());
        assert!(request.has("doorward-assertion") && !request.has("authorization"));
        assert_eq!(request.one("traceparent"), TRACE);
        // One id connects the sender's request, what was delivered, and the event. Lines are written shortly after the
        // response.
        let event = format!("event-{id}");
        until(async || {
            let mut records = doorward.audit();
            records.retain(|record| record["unmapped"]["webhook"]["delivery"] == id.as_str());
            let first = records.iter().find(|record| record["http_response"]["code"] == 202);
            let request_id = first.map(|first| &first["http_request"]["uid"]);
            records.iter().filter(|record| Some(&record["unmapped"]["held"]) == request_id).count() >= 3
                && records.iter().any(|record| record["unmapped"]["event_id"] == event.as_str())
        })
        .await;
    }
    assert_eq!(deliver_to(&doorward, &sent[0].1, &sent[0].2).await.status, 200, "webhooks:17 after it was taken");
}

#[tokio::test]
async fn operators_list_retry_and_drop_parked_deliveries_on_the_record() {
    let status = Arc::new(AtomicU16::new(400));
    let script = status.clone();
    let upstream = Upstream::scripted(move |request| match script.load(Ordering::SeqCst) {
        202 => takes(request),
        status => Reply::json(status, "{}"),
    })
    .await;
    let doorward = holding(upstream.address, "store: {path: doorward.redb}").await;
    let (first, second) = (unique(), unique());
    assert_eq!(deliver_to(&doorward, &first, &body(1)).await.status, 202);
    assert_eq!(
        deliver_to(&doorward, &second, &body(2).replace("\"acme/app\"", "\"acme/\\u001b[2J\"")).await.status,
        202
    );
    let parked = async || {
        let all = hooks(&doorward, &["list", "--parked"]).await.unwrap();
        all["held"].as_array().unwrap().clone()
    };
    until_it_holds(&doorward, 0, 2).await;
    for held in parked().await {
        assert_eq!((&held["tries"], &held["state"]), (&5.into(), &"parked".into()), "attacks:Z18");
        assert!(held["last_error"].as_str().unwrap().contains("400"), "{held}");
    }
    let id_of = async |delivery: &str| {
        let all = held(&doorward).await;
        all.iter().find(|held| held["delivery"] == delivery).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let (first_id, second_id) = (id_of(&first).await, id_of(&second).await);
    let (status_code, shown) = doorward.operator(&["hooks", "show", &second_id[..12], "--why", "test"]).await;
    assert_eq!(status_code, Some(0));
    assert!(!shown.contains('\u{1b}'), "attacks:Z19 {shown}");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["facts"]["repository"], "acme/\u{1b}[2J");
    assert!(shown["headers"].as_array().unwrap().contains(&"x-github-event".into()), "{shown}");

    status.store(202, Ordering::SeqCst);
    assert_eq!(hooks(&doorward, &["retry", &first_id]).await.unwrap()["retried"], 1);
    until_it_holds(&doorward, 0, 1).await;
    assert!(hooks(&doorward, &["show", &first_id]).await.unwrap_err().contains("no such delivery"));
    let dropped = hooks(&doorward, &["drop", &second_id]).await.unwrap();
    assert_eq!(dropped["dropped"], 1, "a number, as of a sender: {dropped}");
    assert_eq!(dropped["deliveries"][0]["id"], second_id.as_str());
    assert!(held(&doorward).await.is_empty());
    assert!(hooks(&doorward, &["drop", &second_id]).await.is_err());
    // Those of a sender whose secret had leaked, all at once.
    status.store(400, Ordering::SeqCst);
    let (third, fourth) = (unique(), unique());
    for (number, delivery) in [(3, &third), (4, &fourth)] {
        assert_eq!(deliver_to(&doorward, delivery, &body(number)).await.status, 202);
    }
    until_it_holds(&doorward, 0, 2).await;
    let name = held(&doorward).await[0]["webhook"].as_str().unwrap().to_owned();
    let unknown = hooks(&doorward, &["drop", "--webhook", "another"]).await.unwrap_err();
    assert!(unknown.contains("there is no sender `another`"), "{unknown}");
    let unset = hooks(&doorward, &["drop", ""]).await.unwrap_err();
    assert!(unset.contains("is too short to name a delivery"), "{unset}");
    assert_eq!(hooks(&doorward, &["drop", "--webhook", &name]).await.unwrap()["dropped"], 2);
    assert!(held(&doorward).await.is_empty());
    // The end of the last of these commands.
    let is_dropped = |record: &Value| {
        let command = record["unmapped"]["command"].as_str().unwrap_or_default();
        command.starts_with("drop-hook") && record["unmapped"]["delivery_count"] == 2
    };
    doorward.record(is_dropped).await;
    let trail = doorward.audit();
    // By an id or by their sender: the command ends with the list of them.
    let named = |command: &str| -> Vec<Vec<String>> {
        let ended = trail.iter().map(|record| &record["unmapped"]).filter(|unmapped| {
            let text = unmapped["command"].as_str().unwrap_or_default();
            text.starts_with(command) && !text.ends_with("(begun)") && unmapped["delivery_count"] != Value::Null
        });
        ended
            .map(|unmapped| {
                let deliveries = unmapped["deliveries"].as_array().unwrap();
                assert_eq!(unmapped["delivery_count"], deliveries.len());
                assert!(
                    deliveries.iter().all(|one| one["request"].as_str().is_some_and(|id| id.len() == 36)),
                    "{unmapped}"
                );
                deliveries.iter().map(|one| one["delivery"].as_str().unwrap().to_owned()).collect()
            })
            .collect()
    };
    assert_eq!(named("retry-hook"), [vec![first.clone()]]);
    assert_eq!(named("drop-hook"), [vec![second.clone()], vec![third, fourth]]);
    let commands: Vec<String> = trail.iter().map(ToString::to_string).collect();
    for command in ["retry-hook", "drop-hook", "show-hook"] {
        assert!(commands.iter().any(|line| line.contains(command) && line.contains("olga")), "{command}");
    }
    let seen = upstream.requests();
    assert_eq!(seen.iter().filter(|request| request.one("x-github-delivery") == second).count(), 5);
}

/// The EventListener itself never sends it: an ingress does, during a rollout.
#[tokio::test]
async fn a_404_in_front_of_the_event_listener_parks_nothing() {
    let knows_it = Arc::new(AtomicBool::new(false));
    let script = knows_it.clone();
    let upstream = Upstream::scripted(move |request| match script.load(Ordering::SeqCst) {
        true => takes(request),
        false => Reply::json(404, "{}"),
    })
    .await;
    let doorward = holding(upstream.address, "store: {path: doorward.redb}").await;
    assert_eq!(deliver_to(&doorward, &unique(), &body(1)).await.status, 202);
    // More often than a delivery may be refused.
    for tries in 1..=6 {
        doorward.set_clock_ahead(tries * 60);
        until(async || upstream.requests().len() >= usize::try_from(tries).unwrap()).await;
    }
    until_it_holds(&doorward, 1, 0).await;
    knows_it.store(true, Ordering::SeqCst);
    doorward.set_clock_ahead(7 * 60);
    until_it_holds(&doorward, 0, 0).await;
    assert!(upstream.requests().len() >= 7, "{}", upstream.requests().len());
}

/// For a day nobody noticed: the sender had a 202, and the log only had deliveries that were given up.
#[tokio::test]
async fn the_log_has_the_first_try_that_failed_and_the_one_that_did_not() {
    let failures = Arc::new(AtomicU16::new(2));
    let script = failures.clone();
    let count_down = |left: u16| left.checked_sub(1);
    let upstream =
        Upstream::scripted(move |request| match script.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down) {
            Ok(_) => Reply::json(404, "{}"),
            Err(_) => takes(request),
        })
        .await;
    let mut doorward = holding(upstream.address, "store: {path: doorward.redb}").await;
    let id = unique();
    assert_eq!(deliver_to(&doorward, &id, &body(1)).await.status, 202);
    let taken = doorward.wait_for_log("a held delivery was delivered after retries").await;
    assert_eq!(taken["event"], format!("event-{id}"), "as its runs have it, so that it can be searched for");
    assert_eq!((&taken["level"], &taken["delivery"], &taken["tries"]), (&"INFO".into(), &id.into(), &3.into()));
    let mut failed = doorward.log();
    failed
        .retain(|line| line["message"].as_str().is_some_and(|said| said.contains("a held delivery was not accepted")));
    let [failed] = &failed[..] else { panic!("{failed:#?}") };
    assert_eq!(
        (&failed["level"], &failed["delivery"], &failed["webhook"]),
        (&"WARN".into(), &taken["delivery"], &"github".into())
    );
    assert!(failed["why"].as_str().unwrap().contains("404"), "{failed}");
}

#[tokio::test]
async fn a_held_delivery_is_decided_again_when_it_is_sent() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut doorward = holding(address, "store: {path: doorward.redb}").await;
    let id = unique();
    assert_eq!(deliver_to(&doorward, &id, &body(1)).await.status, 202);
    let denied = configuration(address, "store: {path: doorward.redb}").change("do: allow", "do: deny");
    std::fs::write(doorward.dir().join("doorward.yaml"), denied).unwrap();
    doorward.wait_for_generation(2).await;
    let loaded = doorward.wait_for_log("configuration loaded").await;
    assert_eq!(loaded["cause"], "files", "as the trail has it");
    let upstream = Upstream::scripted_at(address, takes).await;
    until_it_holds(&doorward, 0, 1).await;
    assert!(held(&doorward).await[0]["last_error"].as_str().unwrap().contains("hooks"), "the rule is named");
    assert_eq!(upstream.requests().len(), 0);
    assert_eq!(deliver_to(&doorward, &unique(), &body(1)).await.status, 403, "and no other is taken");
}

#[tokio::test]
async fn held_deliveries_of_a_revoked_repository_are_parked_at_once() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let doorward = holding(address, "store: {path: doorward.redb}").await;
    let (revoked, other) = (unique(), unique());
    for (id, repository) in [(&revoked, 1), (&other, 2)] {
        assert_eq!(deliver_to(&doorward, id, &body(repository)).await.status, 202);
    }
    let revoke =
        ["revoke", "--issuer", "webhook:github", "--subject", "webhook:github:repo:1", "--why", "it was taken over"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    // Its EventListener is still down, and it would be retried for a day.
    until_it_holds(&doorward, 1, 1).await;
    let parked = held(&doorward).await.into_iter().find(|held| held["state"] == "parked").unwrap();
    assert_eq!(parked["delivery"], revoked.as_str());
    assert!(parked["last_error"].as_str().unwrap().contains("revoked"), "{parked}");
    // 401 would mean that it was not authenticated.
    let refused = deliver_to(&doorward, &unique(), &body(1)).await;
    assert_eq!((refused.status, refused.reason().as_str()), (403, "token_revoked"));
    assert!(refused.text().contains("the deliveries of this sender or repository were revoked"), "{}", refused.text());
    let upstream = Upstream::scripted_at(address, takes).await;
    until_it_holds(&doorward, 0, 1).await;
    assert_eq!(upstream.only().one("x-github-delivery"), other);
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_503_and_nothing_is_promised() {
    let upstream = Upstream::scripted(takes).await;
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    let yaml = configuration(upstream.address, "store: {path: doorward.redb}");
    let yaml = yaml.change("sender: github,", "sender: github, answer_within: 3s,");
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    // Data that was written but not synced is lost in a power failure.
    for (repository, break_it) in [(1, Doorward::break_disk as fn(&Doorward, bool)), (2, Doorward::break_syncs)] {
        let (id, body) = (unique(), body(repository));
        break_it(&doorward, true);
        let refused = deliver_to(&doorward, &id, &body).await;
        assert_eq!((refused.status, refused.reason().as_str()), (503, "store_unavailable"), "{repository}");
        assert!(refused.header("retry-after").is_some());
        break_it(&doorward, false);
        assert!(matches!(settled(async || deliver_to(&doorward, &id, &body).await).await.status, 200 | 202));
        until(async || upstream.requests().iter().any(|request| request.one("x-github-delivery") == id)).await;
        until_it_holds(&doorward, 0, 0).await;
        assert_eq!(upstream.only().one("x-github-delivery"), id);
        upstream.take();
    }
}

/// The response was a 503 at once, although the sender waits for ten seconds and never retries.
#[tokio::test]
async fn a_delivery_that_arrives_while_the_disk_stalls_is_held_once_it_works() {
    let upstream = Upstream::scripted(takes).await;
    let doorward = holding(upstream.address, "store: {path: doorward.redb}").await;
    let (id, body) = (unique(), body(1));
    doorward.break_syncs(true);
    let mends = async {
        doorward.until_metrics_say("doorward_store_errors_total{operation=\"put").await;
        doorward.break_syncs(false);
    };
    let (answer, ()) = tokio::join!(deliver_to(&doorward, &id, &body), mends);
    assert_eq!(answer.status, 202, "{}", answer.text());
    until(async || !upstream.requests().is_empty()).await;
    until_it_holds(&doorward, 0, 0).await;
    assert_eq!(upstream.only().one("x-github-delivery"), id);
}

/// The same on every replica.
pub(super) static ASSERTION_KEY: LazyLock<String> =
    LazyLock::new(|| rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().serialize_pem());

/// The files of a Doorward that holds in Redis, and its configuration.
pub(super) fn on_redis(redis: &RedisServer, el: SocketAddr) -> (tempfile::TempDir, String) {
    let dir = folder_with(&[("secret", WEBHOOK_SECRET), ("key", SESSION_KEY), ("assertions", ASSERTION_KEY.as_str())]);
    let more = format!(
        "store: {{path: doorward.redb, redis: {{server: '{}'}}}}\nsessions: {{keys: [{{file: key}}]}}\n\
         assertions: {{keys: [{{file: assertions}}]}}",
        redis.address()
    );
    (dir, configuration(el, &more))
}

/// The longer the store hangs, the more requests wait for it.
#[tokio::test]
async fn memory_is_checked_as_often_as_before_while_the_store_hangs() {
    let upstream = Upstream::scripted(takes).await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (dir, yaml) = on_redis(&redis, upstream.address);
    let yaml = yaml.change("limits: {", "limits: {memory: 1600KiB, ");
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    doorward.use_memory(100, "memory ok").await;
    redis.ask::<()>(&["CLIENT", "PAUSE", "120000", "ALL"]).await;
    doorward.until_readyz_says("store failed").await;
    let begun = std::time::Instant::now();
    for _ in 0..4 {
        doorward.use_memory(910, "new streams are refused").await;
        doorward.use_memory(100, "memory ok").await;
    }
    // Eight checks, two per second; behind store requests they took twenty.
    assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nothing_is_held_in_a_redis_that_could_lose_it_and_check_says_so() {
    let upstream = Upstream::scripted(takes).await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let (dir, yaml) = on_redis(&redis, upstream.address);
    let check = async |yaml: &str| {
        std::fs::write(dir.path().join("doorward.yaml"), yaml).unwrap();
        told(dir.path(), &["check", "doorward.yaml"]).await
    };
    let (status, said) = check(&yaml).await;
    assert!(status == Some(64) && said.contains("appendfsync always"), "{said}");
    let (status, said) = check(&yaml.change("sender: github,", "sender: github, hold: false,")).await;
    assert_eq!(status, Some(0), "{said}");
    let (status, said) = check(&yaml.change("assertions: {keys: [{file: assertions}]}", "")).await;
    assert!(status == Some(64) && said.contains("`assertions.keys`"), "{said}");

    let doorward = Doorward::start_in(dir, &yaml).await;
    let refused = deliver_to(&doorward, &unique(), &body(1)).await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "store_unavailable"), "nothing is promised");
    assert!(upstream.requests().is_empty());
    let _: String = redis.ask(&["CONFIG", "SET", "appendfsync", "always"]).await;
    let (status, said) = doorward.told(&["check", "doorward.yaml"]).await;
    assert_eq!(status, Some(0), "{said}");
    let doorward = doorward.kill_and_restart().await;
    let (id, body) = (unique(), body(1));
    doorward.until_ready().await;
    assert_eq!(deliver_to(&doorward, &id, &body).await.status, 202, "who is ready has looked already");
    until(async || !upstream.requests().is_empty()).await;
    until_it_holds(&doorward, 0, 0).await;
    assert_eq!(upstream.only().one("x-github-delivery"), id);
}

#[tokio::test]
async fn replicas_on_redis_send_each_delivery_once_and_in_order_even_if_one_dies() {
    let (down, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let script = (down.clone(), taken.clone());
    let upstream = Upstream::scripted(move |request| match script.0.load(Ordering::SeqCst) {
        true => Reply::json(503, "{}"),
        false => {
            script.1.lock().unwrap().push(request.one("x-github-delivery").to_owned());
            takes(request)
        }
    })
    .await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let start = async || {
        let (dir, yaml) = on_redis(&redis, upstream.address);
        let doorward = Doorward::start_in(dir, &yaml).await;
        doorward.until_ready().await;
        doorward
    };
    let (here, there) = (start().await, start().await);
    let send = async || {
        let mut sent = [(); 3].map(|()| Vec::new());
        for number in 0..12 {
            let (id, at) = (unique(), if number % 2 == 0 { &here } else { &there });
            assert_eq!(deliver_to(at, &id, &body(number % 3)).await.status, 202);
            sent[number as usize % 3].push(id);
        }
        sent
    };
    let arrive = async |sent: [Vec<String>; 3]| {
        let count = || taken.lock().unwrap().len();
        let all = async { while !holds(&there, 0, 0).await || count() < 12 {} };
        tokio::time::timeout(std::time::Duration::from_secs(150), all).await.unwrap();
        let arrived = std::mem::take(&mut *taken.lock().unwrap());
        assert_eq!(arrived.len(), 12, "one came twice");
        for of_repository in sent {
            let came: Vec<_> = arrived.iter().filter(|id| of_repository.contains(id)).collect();
            assert!(came.into_iter().eq(&of_repository), "{of_repository:?} came as {arrived:?}");
        }
    };
    arrive(send().await).await;
    down.store(true, Ordering::SeqCst);
    let sent = send().await;
    // The lease that it may have is released with it.
    drop(here);
    down.store(false, Ordering::SeqCst);
    arrive(sent).await;
}

/// Regression: the repository waited until the lease of the killed process ended, and nothing said why.
#[tokio::test]
async fn a_replica_killed_while_it_delivers_shows_its_lease_before_and_goes_on_once_it_is_back() {
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hangs.local_addr().unwrap();
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (dir, yaml) = on_redis(&redis, address);
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.until_ready().await;
    let begun = std::time::Instant::now();
    assert_eq!(deliver_to(&doorward, &unique(), &body(1)).await.status, 202);
    let in_flight = within(hangs.accept()).await.unwrap();
    let listed = held(&doorward).await;
    assert!(listed[0]["lease"]["replica"].is_string() && listed[0]["lease"]["until"].is_string(), "{listed:?}");
    let retried = hooks(&doorward, &["retry", listed[0]["id"].as_str().unwrap()]).await.unwrap();
    let lease = &retried["deliveries"][0]["lease"];
    assert_eq!(lease["replica"], listed[0]["lease"]["replica"], "{retried}");
    drop(hangs);
    let upstream = Upstream::scripted_at(address, takes).await;
    let doorward = doorward.kill_and_restart().await;
    until(async || upstream.requests().len() == 1).await;
    // The lease was taken after `begun`, and would have lasted for a minute.
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
    until_it_holds(&doorward, 0, 0).await;
    drop(in_flight);
}

/// A replica that a rollout has not reached yet decides by the older policy.
#[tokio::test]
async fn a_replica_with_an_older_policy_drops_no_delivery_that_another_accepted() {
    let down = Arc::new(AtomicBool::new(true));
    let script = down.clone();
    let upstream = Upstream::scripted(move |request| match script.load(Ordering::SeqCst) {
        true => Reply::json(503, "{}"),
        false => takes(request),
    })
    .await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let start = async |name: &str, change: &dyn Fn(String) -> String| {
        let (dir, yaml) = on_redis(&redis, upstream.address);
        let yaml = change(yaml).change("audit: {", &format!("audit: {{instance: {name}, "));
        let doorward = Doorward::start_in(dir, &yaml).await;
        doorward.until_ready().await;
        doorward
    };
    let new = start("new", &|yaml| yaml).await;
    let mut old = start("old", &|yaml| yaml.change("do: allow", "do: deny")).await;
    for repository in 0..12 {
        assert_eq!(deliver_to(&new, &unique(), &body(repository)).await.status, 202);
    }
    old.record(|record| record.to_string().contains("policy_denied")).await;
    assert!(held(&new).await.iter().all(|held| held["state"] == "waiting"));
    // The rollout reaches it. Until then, either of the two may try one.
    let file = old.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, yaml.change("do: deny", "do: allow")).unwrap();
    old.wait_for_generation(2).await;
    down.store(false, Ordering::SeqCst);
    let done = async { while !holds(&new, 0, 0).await {} };
    tokio::time::timeout(std::time::Duration::from_secs(150), done).await.unwrap();
}

/// A 202 means that the standby has it as well.
#[tokio::test]
async fn a_delivery_held_before_a_failover_by_sentinel_is_sent_once_after_it() {
    let synced = ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"];
    let mut master = RedisServer::start(&synced);
    let follows = format!("127.0.0.1 {}", master.port());
    let standby = RedisServer::start(&[&synced[..], &["--replicaof", &follows]].concat());
    let sentinel = RedisServer::sentinel(master.port());
    until(async || master.ask::<String>(&["INFO", "replication"]).await.contains("state=online")).await;
    // A sentinel does not replace the master before it knows the standby.
    until(async || !sentinel.ask::<Vec<redis::Value>>(&["SENTINEL", "REPLICAS", "doorward"]).await.is_empty()).await;
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (dir, yaml) = on_redis(&master, address);
    let server = format!("server: '{}'", master.address());
    let by_sentinel = format!("sentinel: {{servers: ['{}'], master: doorward}}", sentinel.address());
    let doorward = Doorward::start_with_faults(dir, &yaml.change(&server, &by_sentinel)).await;
    doorward.until_ready().await;
    let mut sent = Vec::new();
    for repository in [1, 2, 1] {
        let id = unique();
        assert_eq!(deliver_to(&doorward, &id, &body(repository)).await.status, 202);
        sent.push(id);
    }
    master.kill();
    assert_eq!(standby.ask::<usize>(&["HLEN", "doorward:{deliveries}:held:records"]).await, sent.len());
    let named = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "doorward"];
    let port = standby.port().to_string();
    until(async || sentinel.ask::<Vec<String>>(&named).await.last() == Some(&port)).await;
    let upstream = Upstream::scripted_at(address, takes).await;
    // Everything that failed is due for a retry.
    doorward.set_clock_ahead(60);
    until_it_holds(&doorward, 0, 0).await;
    let mut arrived: Vec<String> =
        upstream.requests().iter().map(|request| request.one("x-github-delivery").to_owned()).collect();
    arrived.sort_unstable();
    sent.sort_unstable();
    assert_eq!(arrived, sent);
    assert_eq!(standby.ask::<usize>(&["HLEN", "doorward:{deliveries}:held:records"]).await, 0);
}
