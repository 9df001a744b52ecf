//! Deliveries that become runs at the real EventListener, which asks Doorward's interceptor first.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use super::event_listener::{ASSERTIONS, EventListener, HOOKS};
use crate::{
    fixture::WEBHOOK_SECRET,
    harness::{Answer, Doorward, Raw, free_port, request, unique, within},
    webhooks::{
        kill::{self, Random, try_to_deliver},
        lines, signature,
    },
};

/// A push of a commit to a repository.
fn push(repository: u32, commit: &str) -> String {
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

async fn deliver(doorward: &Doorward, body: &str, signature: &str) -> Answer {
    let lines = lines(&unique(), signature);
    doorward.send(&lines.iter().map(String::as_str).collect::<Vec<_>>(), body.as_bytes()).await
}

#[tokio::test]
async fn a_signed_delivery_becomes_a_run_and_no_other_does() {
    let mut listener = EventListener::prepare().await;
    let _sink = listener.start().await;
    let doorward = &listener.world.doorward;
    let first = push(1234, "first");
    let taken = deliver(doorward, &first, &signature(first.as_bytes())).await;
    assert_eq!(taken.status, 202, "{}", taken.text());
    let event = taken.json()["eventID"].as_str().unwrap().to_owned();
    let run = listener.run("first").await;
    assert_eq!(run["metadata"]["labels"]["triggers.tekton.dev/triggers-eventid"], event);
    // What the interceptor vouched for, through the TriggerBinding.
    assert_eq!(run["metadata"]["annotations"]["test/user"], "webhook:github:repo:1234");
    assert_eq!(run["metadata"]["annotations"]["test/repository"], "1234");
    within(async {
        while !doorward.audit().iter().any(|record| record["unmapped"]["event_id"] == event) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    let forged = push(1234, "forged");
    assert_eq!(deliver(doorward, &forged, &signature(first.as_bytes())).await.status, 401);
    // The EventListener takes what comes past Doorward, and says 202; its trigger asks, and stops.
    let past = push(1234, "past");
    let mut past_lines = lines(&unique(), &signature(past.as_bytes()));
    past_lines[0] = "POST / HTTP/1.1".to_owned();
    let mut raw = Raw::connect(listener.address).await;
    raw.send(request(&past_lines.iter().map(String::as_str).collect::<Vec<_>>(), past.as_bytes())).await;
    assert_eq!(raw.answer().await.status, 202);
    let stopped = listener.world.doorward.wait_for_log("a trigger was stopped").await;
    assert!(stopped["why"].as_str().unwrap().contains("past Doorward"), "{stopped}");
    assert_eq!(stopped["trigger"], format!("namespaces/{}/triggers/push", listener.world.namespace));

    let last = push(1234, "last");
    assert_eq!(deliver(&listener.world.doorward, &last, &signature(last.as_bytes())).await.status, 202);
    listener.run("last").await;
    assert_eq!(listener.commits().await, ["first", "last"]);
}

/// A Doorward that holds deliveries, which is killed, beside the one that the EventListener asks, which is not.
fn holding(listener: &EventListener, port: u16) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut yaml = format!(
        "listeners: [{{name: public, address: 127.0.0.1:{port}}}]
external_host: doorward.test
upstreams:
routes:
rules:
webhooks: [{{name: github, sender: github, secrets: [{{secret: {{file: secret}}}}]}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
{ASSERTIONS}"
    );
    for (place, more) in HOOKS {
        yaml = yaml.replace(place, more);
    }
    let yaml = yaml.replace("{port}", &listener.address.port().to_string()).replace("{ns}", &listener.world.namespace);
    for (name, text) in
        [("doorward.yaml", yaml.as_str()), ("secret", WEBHOOK_SECRET), ("assertions", &listener.assertion_key)]
    {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[tokio::test]
async fn each_held_delivery_becomes_one_run_over_kills_at_any_moment() {
    const REPOSITORIES: u32 = 4;
    const KILLS: u64 = 8;
    let listener = EventListener::prepare().await;
    let port = free_port();
    let dir = holding(&listener, port);
    let enough = Arc::new(AtomicBool::new(false));
    let mut senders = JoinSet::new();
    for repository in 1..=REPOSITORIES {
        let enough = enough.clone();
        senders.spawn(async move {
            let mut taken = Vec::new();
            while taken.len() < 5 || !enough.load(Ordering::SeqCst) {
                let commit = format!("{repository}-{}", taken.len());
                let body = push(repository, &commit);
                // As a sender that tries again: 200 says that an earlier try was stored.
                while !matches!(try_to_deliver(port, &commit, &body).await, Some(200 | 202)) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                taken.push(commit);
            }
            taken
        });
    }

    let mut random = Random::new(1);
    let mut sink = None;
    for number in 0..KILLS {
        // The first two come while the EventListener is away.
        let classes = if number < 2 { ["write", "sync"] } else { ["send", "answer"] };
        let class = classes[(number % 2) as usize];
        let when = ["before", "after"][random.below(2) as usize];
        let kill = format!("{class}:{}:{when}", 1 + random.below(4));
        let mut doorward = kill::doorward(dir.path(), Some(&kill), listener.address.port());
        let status = timeout(Duration::from_secs(90), doorward.wait()).await.expect(&kill).unwrap();
        assert!(status.code().is_none(), "{kill} killed it");
        if number == 1 {
            sink = Some(listener.start().await);
        }
    }
    enough.store(true, Ordering::SeqCst);
    assert!(sink.is_some());
    let last = Doorward::start_at(&dir.path().join("doorward.yaml")).await;
    let mut all: Vec<String> = senders.join_all().await.into_iter().flatten().collect();
    within(async {
        while !last.metrics().await.contains("doorward_webhook_held{webhook=\"github\",state=\"waiting\"} 0\n") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    // What the EventListener took before this one has been asked about before it.
    assert!(matches!(try_to_deliver(port, "last", &push(9, "last")).await, Some(202)));
    listener.run("last").await;
    all.push("last".to_owned());
    all.sort_unstable();
    let lost = async |commits: &[String]| all.iter().filter(|commit| !commits.contains(commit)).count();
    within(async {
        while lost(&listener.commits().await).await > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let mut counts = BTreeMap::<String, usize>::new();
    for commit in listener.commits().await {
        *counts.entry(commit).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), all);
}
