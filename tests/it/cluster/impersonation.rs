//! The least rights that Doorward's own account needs, in both forms that Kubernetes knows: classic impersonation, and
//! constrained impersonation (KEP-5284), which also says for what.

use serde_json::{Value, json};

use super::world::{GROUP, World};

/// Who one may be, for one verb on each.
fn identities(api_group: [&str; 2], verb: &str) -> Vec<Value> {
    let [names, extras] = api_group;
    vec![
        json!({"apiGroups": [names], "resources": ["users"], "verbs": [verb]}),
        json!({"apiGroups": [names], "resources": ["groups"], "resourceNames": [GROUP], "verbs": [verb]}),
        json!({"apiGroups": [extras], "resources": ["userextras/doorward.dev/client"], "verbs": [verb]}),
    ]
}

fn classic() -> Vec<Value> {
    identities(["", "authentication.k8s.io"], "impersonate")
}

fn constrained() -> Vec<Value> {
    let mut rules = identities(["authentication.k8s.io"; 2], "impersonate:user-info");
    rules.push(json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["impersonate-on:user-info:list"]}));
    rules
}

/// The statuses that Alice gets for what she may list and for what she may list as well, and the API server's events.
async fn listed(rules: &[Value]) -> ([u16; 2], Vec<Value>) {
    let world = World::with_rights(&json!(rules)).await;
    let list = |resource: &str| format!("GET /api/v1/namespaces/{}/{resource}", world.namespace);
    let statuses =
        [world.alice(&list("configmaps"), &[], b"").await.status, world.alice(&list("pods"), &[], b"").await.status];
    world.event(|event| event["objectRef"]["resource"] == "pods").await;
    (statuses, world.audit())
}

#[tokio::test]
async fn classic_impersonation_needs_these_rights_and_each_of_them() {
    let rules = classic();
    let (statuses, events) = listed(&rules).await;
    assert_eq!(statuses, [200, 200]);
    assert!(events.iter().all(|event| event["authenticationMetadata"].is_null()), "{events:#?}");
    for left_out in 0..rules.len() {
        let fewer: Vec<Value> = [&rules[..left_out], &rules[left_out + 1..]].concat();
        let (statuses, events) = listed(&fewer).await;
        assert_eq!(statuses, [403, 403], "without {}", rules[left_out]);
        assert!(events.iter().all(|event| event["impersonatedUser"].is_null()), "{events:#?}");
    }
}

#[tokio::test]
async fn constrained_impersonation_needs_these_rights_and_each_of_them() {
    let rules = constrained();
    let (statuses, events) = listed(&rules).await;
    assert_eq!(statuses, [200, 403], "what it may be asked for is all that can be asked for");
    assert_eq!(events[0]["impersonatedUser"]["username"], "alice");
    assert_eq!(events[0]["authenticationMetadata"]["impersonationConstraint"], "impersonate:user-info");
    for left_out in 0..rules.len() {
        let fewer: Vec<Value> = [&rules[..left_out], &rules[left_out + 1..]].concat();
        let (statuses, events) = listed(&fewer).await;
        assert_eq!(statuses, [403, 403], "without {}", rules[left_out]);
        assert!(events.iter().all(|event| event["impersonatedUser"].is_null()), "{events:#?}");
    }
}
