//! kubectl, as people use it, over HTTP/1.1 and HTTP/2. `ingress.rs` does the same through nginx.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::world::{GROUP, World};
use crate::harness::{until, within};

const CONFIG_MAP: &str = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "1"}}"#;

#[tokio::test]
async fn kubectl_reads_and_writes_over_http1_and_http2() {
    reads_and_writes(&World::start().await).await;
}

#[tokio::test]
async fn whoami_and_can_i_answer_for_the_caller() {
    whoami_and_can_i(&World::start().await).await;
}

#[tokio::test]
async fn the_two_audit_trails_name_the_same_person_under_the_same_id() {
    two_audit_trails(&World::start().await).await;
}

/// First over HTTP/1.1, then over HTTP/2.
pub(super) async fn reads_and_writes(world: &World) {
    for http1 in [true, false] {
        let kubectl = world.kubectl("alice");
        let kubectl = if http1 { kubectl.over_http1() } else { kubectl };
        kubectl.write("a.json", CONFIG_MAP);

        assert!(kubectl.run(&["apply", "-f", "a.json"]).await.contains("created"), "client side");
        assert_eq!(kubectl.run(&["get", "configmap", "a", "-o", "jsonpath={.data.k}"]).await, "1");
        assert!(kubectl.run(&["get", "configmaps"]).await.contains("DATA"), "as a table");

        let mut watch =
            kubectl.start(&["get", "configmaps", "--watch-only", "-o", "jsonpath={.metadata.name}={.data.k}{'\\n'}"]);
        let mut seen = BufReader::new(watch.stdout.take().unwrap()).lines();
        // The watch is open once the API server has begun to answer it.
        let begun = |event: &&Value| event["verb"] == "watch" && event["stage"] == "ResponseStarted";
        until(async || world.audit().iter().filter(begun).count() >= if http1 { 1 } else { 2 }).await;
        kubectl.write("a.json", &CONFIG_MAP.replace("\"1\"", "\"2\""));
        assert!(
            kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", "a.json"]).await.contains("serverside")
        );
        // The watch continues, so that an event that is held back is noticed.
        assert_eq!(within(seen.next_line()).await.unwrap().as_deref(), Some("a=2"));
        watch.kill().await.unwrap();

        // An editor that a person might script.
        let mut edit = kubectl.command(&["edit", "configmap", "a"]);
        edit.env("KUBE_EDITOR", "sed -i s/\\\"2\\\"/\\\"3\\\"/");
        let edited = within(edit.output()).await.unwrap();
        assert!(String::from_utf8_lossy(&edited.stdout).contains("edited"), "{edited:?}");
        assert_eq!(kubectl.run(&["get", "configmap", "a", "-o", "jsonpath={.data.k}"]).await, "3");
        kubectl.run(&["patch", "configmap", "a", "-p", r#"{"data": {"k": "4"}}"#]).await;
        kubectl.run(&["label", "configmap", "a", "team=x"]).await;
        kubectl.run(&["replace", "-f", "a.json"]).await;
        kubectl.run(&["delete", "configmap", "a"]).await;
        assert!(kubectl.fails(&["get", "configmap", "a"]).await.contains("NotFound"));
        // The maximum of a ConfigMap, and a little more than nginx's default limit.
        std::fs::write(kubectl.write("big", ""), vec![0xff_u8; 1 << 20]).unwrap();
        kubectl.run(&["create", "configmap", "big", "--from-file=big"]).await;
        kubectl.run(&["delete", "configmap", "big"]).await;

        let resources = kubectl.run(&["api-resources"]).await;
        assert!(resources.contains("configmaps"), "discovery: {resources}");
        let explained = kubectl.run(&["explain", "configmap.data"]).await;
        assert!(explained.contains("Data contains"), "OpenAPI: {explained}");
        assert!(kubectl.run(&["version"]).await.contains("Server Version: v1."));
    }
    world.assert_sent_as(&["alice"]).await;
}

pub(super) async fn whoami_and_can_i(world: &World) {
    let kubectl = world.kubectl("alice");
    let who: Value = serde_json::from_str(&kubectl.run(&["auth", "whoami", "-o", "json"]).await).unwrap();
    assert_eq!(who["status"]["userInfo"]["username"], "alice");
    assert_eq!(who["status"]["userInfo"]["groups"], json!([GROUP, "system:authenticated"]));
    assert_eq!(kubectl.run(&["auth", "can-i", "create", "configmaps"]).await.trim(), "yes");
    assert_eq!(kubectl.output(&["auth", "can-i", "get", "secrets"]).await.stdout, b"no\n");
    assert!(kubectl.run(&["auth", "can-i", "--list"]).await.contains("configmaps"));

    // The API server's RBAC applies to the impersonated user, and not to Doorward.
    for arguments in [&["get", "services"][..], &["get", "pods", "-n", "kube-system"], &["get", "nodes"]] {
        let refused = kubectl.fails(arguments).await;
        assert!(refused.contains("Forbidden") && refused.contains("\"alice\""), "{arguments:?}: {refused}");
    }

    // What a rule must name does not even reach the API server.
    let refused = kubectl.fails(&["get", "secrets"]).await;
    assert!(refused.contains("Forbidden") && refused.contains("no rule allows"), "{refused}");

    // Doorward refuses these itself, with the reason in a Status; none of them reaches the API server.
    let before = world.audit().len();
    for arguments in [
        &["get", "configmaps", "--as", "bob"][..],
        &["get", "configmaps", "--as", "alice", "--as-group", "system:masters"],
        &["get", "configmaps", "--as", "bob", "--as-uid", "7"],
        &["get", "configmaps", "--as", "system:serviceaccount:kube-system:default"],
    ] {
        let refused = kubectl.fails(arguments).await;
        assert!(refused.contains("mpersonat"), "{arguments:?}: {refused}");
    }
    let answer = world.alice(&path(world, "configmaps"), &["Impersonate-User: bob"], b"").await;
    let status = answer.json();
    assert_eq!((answer.status, &status["kind"]), (403, &json!("Status")), "{status}");
    assert_eq!(answer.reason(), "impersonation_refused");
    world.alice(&path(world, "pods"), &[], b"").await;
    world
        .event(|event| event["objectRef"]["resource"] == "pods" && event["objectRef"]["namespace"] == world.namespace)
        .await;
    assert_eq!(world.audit().len(), before + 1, "only the last one");
    world.assert_sent_as(&["alice"]).await;
}

pub(super) async fn two_audit_trails(world: &World) {
    for (subject, marker) in [("alice", "a-7f3"), ("bob", "b-7f3")] {
        let kubectl = world.kubectl(subject);
        kubectl.run(&["create", "configmap", marker]).await;
        let event = world
            .event(|event| {
                event["verb"] == "create"
                    && event["objectRef"]["resource"] == "configmaps"
                    && event["impersonatedUser"]["username"] == subject
            })
            .await;
        let doorward = format!("system:serviceaccount:{}:doorward", world.namespace);
        assert_eq!(event["user"]["username"], doorward.as_str());
        let id = event["auditID"].as_str().unwrap();
        let record = world.doorward.record(|record| record["http_request"]["uid"] == id).await;
        assert!(record.to_string().contains(&format!("\"{subject}\"")), "{record}");
        assert_eq!(record["http_request"]["http_method"], "POST", "{record}");
    }
}

/// A read of all objects of a kind in the namespace of the test.
fn path(world: &World, resource: &str) -> String {
    format!("GET /api/v1/namespaces/{}/{resource}", world.namespace)
}
