//! Secrets that change while Doorward runs.

use super::{BODY, deliver, hold::configuration};
use crate::{
    fixture::{Change, Fixture, WEBHOOK_SECRET},
    harness::{Doorward, Push, Reply, Upstream, folder_with, now, unique, until},
};

const NEXT: &str = "the secret that comes next";

/// The status of a delivery with a unique body, signed with this secret.
pub async fn signed_by(fixture: &Fixture, secret: &str) -> u16 {
    Push::of(&Push::body(), &unique(), secret).send(&fixture.doorward, &[]).await.status
}

#[tokio::test]
async fn a_rewritten_secret_replaces_the_old_one_without_a_restart() {
    let mut fixture = Fixture::answering(|_| Reply::json(202, "{}")).await;
    assert_eq!(deliver(&fixture, &unique(), BODY, &[]).await.status, 202);
    assert_eq!(signed_by(&fixture, NEXT).await, 401);
    std::fs::write(fixture.doorward.dir().join("secret"), NEXT).unwrap();
    fixture.doorward.wait_for_generation(2).await;
    assert_eq!(signed_by(&fixture, NEXT).await, 202);
    assert_eq!(signed_by(&fixture, WEBHOOK_SECRET).await, 401);
    assert_eq!(deliver(&fixture, &unique(), BODY, &[]).await.status, 401, "nor by the answers of before");
    assert_eq!(fixture.upstream.requests().len(), 2);
}

#[tokio::test]
async fn webhooks_7_a_secret_emptied_or_lost_while_doorward_runs_admits_nobody() {
    for is_lost in [false, true] {
        let mut fixture = Fixture::answering(|_| Reply::json(202, "{}")).await;
        let file = fixture.doorward.dir().join("secret");
        if is_lost { std::fs::remove_file(&file) } else { std::fs::write(&file, "") }.unwrap();
        fixture.doorward.wait_for_log_containing("the configuration was refused").await;
        assert_eq!(signed_by(&fixture, "").await, 401, "webhooks:7 lost: {is_lost}");
        assert_eq!(signed_by(&fixture, WEBHOOK_SECRET).await, 202, "webhooks:7 lost: {is_lost}: the one in force");
        std::fs::write(&file, NEXT).unwrap();
        fixture.doorward.wait_for_generation(2).await;
        for (secret, status) in [("", 401), (WEBHOOK_SECRET, 401), (NEXT, 202)] {
            assert_eq!(signed_by(&fixture, secret).await, status, "webhooks:7 lost: {is_lost}, {secret:?}");
        }
        assert_eq!(fixture.upstream.requests().len(), 2, "webhooks:7 lost: {is_lost}");
    }
}

#[tokio::test]
async fn webhooks_7_a_sender_whose_secrets_have_all_expired_is_refused() {
    for hold in [false, true] {
        let upstream = Upstream::scripted(|_| Reply::json(202, "{}")).await;
        let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
        let yaml = configuration(upstream.address, "store: {path: doorward.redb}").change(
            "sender: github, secrets: [{secret: {file: secret}}]",
            &format!(
                "sender: github, hold: {hold}, secrets: [{{secret: {{file: secret}}, not_after: '2020-01-01T00:00:00Z'}}]"
            ),
        );
        let mut doorward = Doorward::start_in(dir, &yaml).await;
        let mut unsigned = Push::new();
        unsigned.lines.retain(|line| !line.starts_with("X-Hub-Signature"));
        let push = Push::new();
        for (what, attack) in [
            ("the former one", push.clone()),
            ("none", unsigned),
            ("the empty one", Push::of(&Push::body(), &unique(), "")),
        ] {
            let answer = attack.send(&doorward, &[]).await;
            assert_eq!(answer.status, 401, "webhooks:7 held: {hold}, {what}: {}", answer.text());
        }
        // The counterpart: exactly the same, once its secret is valid again. With held deliveries, earlier ones would
        // come first.
        doorward.change("2020-01-01", "2099-01-01");
        doorward.wait_for_generation(2).await;
        assert_eq!(push.send(&doorward, &[]).await.status, 202, "webhooks:7 held: {hold}");
        until(async || !upstream.requests().is_empty()).await;
        assert_eq!(upstream.only().body, push.body.as_bytes(), "webhooks:7 held: {hold}");
    }
}

#[tokio::test]
async fn a_secret_that_expires_while_a_body_arrives_no_longer_verifies_it() {
    let upstream = Upstream::scripted(|_| Reply::json(202, "{}")).await;
    let dir = folder_with(&[("secret", WEBHOOK_SECRET)]);
    let until = doorward::clock::Timestamp::from_secs(i64::try_from(now() + 3600).unwrap());
    let yaml = configuration(upstream.address, "store: {path: doorward.redb}").change(
        "sender: github, secrets: [{secret: {file: secret}}]",
        &format!("sender: github, hold: false, secrets: [{{secret: {{file: secret}}, not_after: '{until}'}}]"),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    for (ahead, status) in [(0, 202), (7200, 401)] {
        let request = Push::new().request(&[]);
        // Its last bytes are sent later.
        let (first, rest) = request.split_at(request.len() - 100);
        let mut raw = doorward.raw().await;
        raw.send(first).await;
        doorward.set_clock_ahead(ahead);
        raw.send(rest).await;
        assert_eq!(raw.answer().await.status, status, "{ahead} s later");
    }
    assert_eq!(upstream.requests().len(), 1);
}
