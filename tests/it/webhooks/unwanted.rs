//! Genuine deliveries that the policy does not allow.

use serde_json::Value;

use super::senders::{Door, sender};
use crate::{
    fixture::Change,
    harness::{now, unique},
};

/// Waits until the trail has `count` denials of this user with this status.
async fn until_denied(door: &Door, user: &str, status: u16, count: usize) {
    let denied = |record: &Value| {
        record["actor"]["user"]["name"] == user
            && record["disposition_id"] == 2
            && record["status_code"] == "no_rule_matched"
            && record["http_response"]["code"] == status
    };
    assert_eq!(door.doorward.records(count, denied).await.len(), count, "{user}");
}

/// After four such responses GitLab pauses a hook, and wanted deliveries are lost too.
#[tokio::test]
async fn a_sender_that_counts_failures_gets_no_4xx_for_unwanted_events() {
    for hold in [false, true] {
        let door =
            Door::with(hold, |yaml| yaml.change("rules: [{id: all, on: {", "rules: [{id: all, on: {branch: [main], "))
                .await;
        for (name, status) in [
            ("gitlab-signed", 200),
            ("gitlab-token", 200),
            ("bitbucket-dc", 200),
            ("azure-devops", 200),
            ("github", 403),
        ] {
            let sender = sender(name);
            let title = format!("{name}, held: {hold}");
            let unwanted = sender.new_body().replace("refs/heads/main", "refs/heads/other");
            let unwanted = sender.delivery_of(unwanted.as_bytes(), &unique(), now());
            // Exactly the same: it is not remembered as an accepted one.
            for _ in 0..4 {
                let answer = unwanted.send(&door, sender).await;
                assert_eq!(answer.status, status, "{title}: {}", answer.text());
                let said: Value = serde_json::from_str(&answer.text()).unwrap();
                let told = said[if status == 200 { "ignored" } else { "detail" }].as_str().unwrap();
                assert!(told.starts_with("no rule allows this request"), "{title}: {said}");
            }
            until_denied(&door, sender.user, status, 4).await;
            let wanted = sender.delivery().send(&door, sender).await;
            assert_eq!(wanted.status, 202, "{title}: {}", wanted.text());
            let arrived = door.arrived(1).await;
            assert_eq!(arrived.len(), 1, "{title}");
            assert_eq!(arrived[0].one("x-forwarded-user"), sender.user, "{title}: nothing else came");
            let spoiled = sender.with_secret("user:another secret than that").delivery().send(&door, sender).await;
            assert_eq!(spoiled.status, 401, "{title}: what is not proven");
        }
        let metrics = door.doorward.metrics().await;
        let denied = r#"doorward_requests_total{route="azure-devops",scheme="webhook",outcome="denied",reason="no_rule_matched"} 4"#;
        assert!(metrics.contains(denied), "held: {hold}: {metrics}");
    }
}
