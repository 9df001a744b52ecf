//! Proofs that are weaker than the sender's strongest, and bodies that contradict their headers.

use aws_lc_rs::hmac;

use super::senders::{Delivery, Door, JSON, Sender, sender};
use crate::{
    fixture::{Change, Fixture, WEBHOOK_SECRET},
    harness::{Push, Reply, hex, now, unique},
};

fn sha1(sender: &Sender, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, sender.secret.as_bytes());
    hex(hmac::sign(&key, body))
}

/// The status of a genuine delivery of this sender after `spoil`.
async fn status(door: &Door, name: &str, spoil: impl Fn(&Sender, &mut Delivery)) -> u16 {
    let sender = sender(name);
    let mut delivery = sender.delivery();
    spoil(sender, &mut delivery);
    let status = delivery.send(door, sender).await.status;
    assert_eq!(door.upstream.take().len(), usize::from(status == 202), "{name}");
    status
}

#[tokio::test]
async fn webhooks_3_and_4_sha_1_proves_nothing() {
    let door = Door::open().await;
    let alone = status(&door, "github", |sender, delivery| {
        delivery.proof = ("X-Hub-Signature".to_owned(), format!("sha1={}", sha1(sender, &delivery.body)));
    });
    assert_eq!(alone.await, 401, "webhooks:3");
    let renamed = status(&door, "github", |sender, delivery| {
        delivery.proof.1 = format!("sha1={}", sha1(sender, &delivery.body));
    });
    assert_eq!(renamed.await, 401, "webhooks:4");
    let beside = status(&door, "github", |sender, delivery| {
        delivery.lines.push(format!("X-Hub-Signature: sha1={}", sha1(sender, &delivery.body)));
    });
    assert_eq!(beside.await, 202, "webhooks:3 twin: beside the stronger one");
}

#[tokio::test]
async fn webhooks_22_and_23_a_signature_must_be_valid_and_without_one_the_token_counts() {
    let door = Door::open().await;
    let time = format!("webhook-timestamp: {}", now());
    let zeros = "webhook-signature: v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let bad = status(&door, "gitlab-token", |_, delivery| {
        delivery.lines.extend([format!("webhook-id: {}", unique()), time.clone(), zeros.to_owned()]);
    });
    assert_eq!(bad.await, 401, "webhooks:22");
    let without = status(&door, "gitlab-token", |_, delivery| {
        delivery.lines.extend([format!("webhook-id: {}", unique()), time.clone()]);
    });
    assert_eq!(without.await, 202, "webhooks:23");
    let required = status(&door, "gitlab-signed", |sender, delivery| {
        delivery.proof = ("X-Gitlab-Token".to_owned(), sender.secret.to_owned());
    });
    assert_eq!(required.await, 401, "webhooks:23 where a signature is required");
    assert_eq!(status(&door, "gitlab-token", |_, _| {}).await, 202, "webhooks:22 twin");
}

#[tokio::test]
async fn webhooks_26_a_header_that_the_body_belies_is_400() {
    let door = Door::open().await;
    let github = sender("github");
    let body = format!(
        r#"{{"action":"opened","number":1,"pull_request":{{"number":1,"title":"{}"}},"repository":{{"id":1234}}}}"#,
        unique()
    );
    for (event, expected) in [("push", 400), ("pull_request", 202)] {
        let mut delivery = github.delivery_of(body.as_bytes(), &unique(), now());
        delivery.lines.retain(|line| !line.starts_with("X-GitHub-Event"));
        let event = format!("X-GitHub-Event: {event}");
        assert_eq!(delivery.send_as(&door, github, JSON, &[&event]).await.status, expected, "webhooks:26 {event}");
    }
    assert_eq!(door.upstream.take().len(), 1);
}

/// Login names can be transferred; numbers cannot.
#[tokio::test]
async fn webhooks_28_the_person_who_caused_a_delivery_is_known_by_number_from_the_body_alone() {
    let fixture = Fixture::with(
        |yaml| {
            yaml.change(
                "who: {webhooks: [github]}, do: allow}",
                "who: {webhooks: [github], senders: ['github:7']}, do: allow}",
            )
        },
        |_| Reply::json(202, "{}"),
    )
    .await;
    let send = async |change: fn(&str) -> String| {
        let push = Push::of(&change(&Push::body()), &unique(), WEBHOOK_SECRET);
        push.send(&fixture.doorward, &["X-GitHub-Sender: 7"]).await.status
    };
    assert_eq!(send(str::to_owned).await, 202, "webhooks:28 twin");
    assert_eq!(send(|body| body.replace("\"id\":7", "\"id\":8")).await, 403, "webhooks:28 another with this login");
    assert_eq!(send(|body| body.replace("\"id\":7,", "")).await, 403, "webhooks:28 nobody");
    assert_eq!(send(|body| body.replace("\"octocat\"", "\"renamed\"")).await, 202, "webhooks:28 another login");
    assert_eq!(fixture.upstream.requests().len(), 2);
}

/// Azure DevOps does not say who pushed to the branch of a pull request.
#[tokio::test]
async fn webhooks_28_a_denied_person_gains_nothing_by_an_event_that_names_no_person() {
    const CREATED: &str = r#""pullRequestId":12,"targetRefName":"refs/heads/main","createdBy":{"id":"a-5"}"#;
    let door = Door::with(false, |yaml| {
        yaml.change("rules: [", "rules: [{id: blocked, who: {senders: ['azure-devops:a-6']}, do: deny}, ")
    });
    let door = door.await;
    let azure = sender("azure-devops");
    for (event, resource, taken) in [
        ("git.push", r#""refUpdates":[{"name":"refs/heads/main"}],"pushedBy":{"id":"a-5"}"#, true),
        ("git.push", r#""refUpdates":[{"name":"refs/heads/main"}],"pushedBy":{"id":"a-6"}"#, false),
        ("git.pullrequest.created", CREATED, true),
        ("git.pullrequest.updated", CREATED, false),
        ("git.pullrequest.merged", CREATED, false),
    ] {
        let body = format!(
            r#"{{"id":"{}","eventType":"{event}","resource":{{{resource},"repository":{{"id":"278d5cd2","name":"app"}}}}}}"#,
            unique()
        );
        let answer = azure.delivery_of(body.as_bytes(), &unique(), now()).send(&door, azure).await;
        // It disables hooks that are refused.
        let expected = if taken { 202 } else { 200 };
        assert_eq!(answer.status, expected, "webhooks:28 {event} {resource}: {}", answer.text());
        assert_eq!(door.upstream.take().len(), usize::from(taken), "webhooks:28 {event} {resource}");
    }
}

#[tokio::test]
async fn webhooks_30_the_metric_shows_which_secret_of_a_rotation_is_in_use() {
    const OLD: &str = "introspection-secret";
    let fixture = Fixture::with(
        |yaml| {
            let both = "{secret: {file: secret}}, {secret: {file: client}}, {secret: {file: admin}, not_after: '2020-01-01T00:00:00Z'}";
            yaml.change("{secret: {file: secret}}", both)
        },
        |_| Reply::json(202, "{}"),
    );
    let fixture = fixture.await;
    let send = async |secret: &str| super::rotation::signed_by(&fixture, secret).await;
    assert_eq!(send(WEBHOOK_SECRET).await, 202);
    for _ in 0..2 {
        assert_eq!(send(OLD).await, 202, "webhooks:30 both are configured");
    }
    assert_eq!(send("the-admin-token-of-the-tests").await, 401, "webhooks:30 the old one has ended");
    let metrics = fixture.doorward.metrics().await;
    for (secret, count) in [(0, 1), (1, 2)] {
        let line = format!("doorward_webhook_genuine_total{{webhook=\"github\",secret=\"{secret}\"}} {count}\n");
        assert!(metrics.contains(&line), "webhooks:30 {line}: {metrics}");
    }
    assert!(!metrics.contains("secret=\"2\"") && !metrics.contains(OLD));
}

#[tokio::test]
async fn a_signed_ping_is_answered_and_goes_no_further() {
    let door = Door::open().await;
    let github = sender("github");
    let mut ping = github.delivery_of(br#"{"zen":"Keep it logically awesome.","hook_id":1}"#, &unique(), now());
    ping.lines.retain(|line| !line.starts_with("X-GitHub-Event"));
    let answer = ping.send_as(&door, github, JSON, &["X-GitHub-Event: ping"]).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "pong\n"));
    let slack = sender("slack");
    let body = format!(r#"{{"type":"url_verification","challenge":"{}"}}"#, "c".repeat(40));
    let answer = slack.delivery_of(body.as_bytes(), &unique(), now()).send(&door, slack).await;
    assert_eq!((answer.status, answer.text()), (200, "c".repeat(40)));
    let mut forged = slack.delivery_of(body.as_bytes(), &unique(), now());
    forged.proof.1 = "v0=00".to_owned();
    assert_eq!(forged.send(&door, slack).await.status, 401, "the challenge is for whoever knows the secret");
    assert!(door.upstream.take().is_empty());
}
