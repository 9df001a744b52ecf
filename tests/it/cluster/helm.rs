//! The requests that Helm makes: it stores each release in a Secret, and otherwise creates and changes objects like any
//! client.

use serde_json::{Value, json};

use super::world::{GROUP, World};
use crate::{fixture::Change, harness::Answer};

/// Holly may also use Secrets, which a rule must name. The API server would allow them to the whole group.
const RULE: &str = "rules:
  - id: releases
    on: {routes: [api], kubernetes: {resources: [secrets], namespaces: ['{ns}']}}
    who: {subjects: [holly]}
    do: allow
";

struct Release {
    world: World,
}

impl Release {
    async fn ask(&self, who: &str, line: &str, media: &str, body: &Value) -> Answer {
        let line =
            format!("{} HTTP/1.1", line.replace("{core}", &format!("/api/v1/namespaces/{}", self.world.namespace)));
        let lines = [line.as_str(), "Host: localhost", &self.world.developer(who), &format!("Content-Type: {media}")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.world.doorward.send(&lines, body.as_bytes()).await
    }

    /// The revisions of the release, as `helm history` finds them.
    async fn revisions(&self, who: &str) -> Answer {
        self.ask(who, "GET {core}/secrets?labelSelector=name%3Dweb%2Cowner%3Dhelm", "application/json", &json!(null))
            .await
    }
}

fn release(revision: u32, status: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": format!("sh.helm.release.v1.web.v{revision}"),
            "labels": {"name": "web", "owner": "helm", "status": status, "version": revision.to_string()},
        },
        "type": "helm.sh/release.v1",
        "data": {"release": "SDRzSUFBQUFBQUFDLw=="},
    })
}

fn chart(value: &str) -> Value {
    let labels = json!({"app.kubernetes.io/managed-by": "Helm"});
    let annotations = json!({"meta.helm.sh/release-name": "web"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"value": value},
        "metadata": {"name": "web", "labels": labels, "annotations": annotations}})
}

#[tokio::test]
async fn helm_installs_and_upgrades_where_a_rule_names_its_secrets() {
    const JSON: &str = "application/json";
    let world = World::with(|yaml| yaml.change("rules:\n", RULE)).await;
    let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP});
    let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}]);
    world.api.allow(&world.namespace, "helm", &group, &secrets).await;
    let helm = Release { world };

    // A user with all other rights has no access.
    let first = release(1, "pending-install");
    for (line, body) in [("GET {core}/secrets?labelSelector=owner%3Dhelm", json!(null)), ("POST {core}/secrets", first)]
    {
        let answer = helm.ask("alice", line, JSON, &body).await;
        let said = answer.json();
        assert_eq!((answer.status, &said["kind"]), (403, &json!("Status")), "{line}: {said}");
        assert!(said["message"].as_str().unwrap().contains("no rule allows"), "{line}: {said}");
    }

    // `helm install`: its objects are created between two updates of the release.
    let steps = async |steps: &[(&str, &str, Value, u16)]| {
        for (line, media, body, status) in steps {
            let answer = helm.ask("holly", line, media, body).await;
            assert_eq!(answer.status, *status, "{line}: {}", answer.text());
        }
    };
    let none = json!(null);
    steps(&[
        ("GET /version", JSON, none.clone(), 200),
        ("GET {core}/secrets?labelSelector=name%3Dweb%2Cowner%3Dhelm", JSON, none.clone(), 200),
        ("GET {core}/configmaps/web", JSON, none.clone(), 404),
        ("POST {core}/secrets", JSON, release(1, "pending-install"), 201),
        ("POST {core}/configmaps?fieldManager=helm", JSON, chart("1"), 201),
        ("PUT {core}/secrets/sh.helm.release.v1.web.v1", JSON, release(1, "deployed"), 200),
    ])
    .await;
    // `helm upgrade`.
    let changed = json!({"data": {"value": "2"}});
    steps(&[
        ("GET {core}/secrets?labelSelector=name%3Dweb%2Cowner%3Dhelm%2Cstatus%3Ddeployed", JSON, none.clone(), 200),
        ("POST {core}/secrets", JSON, release(2, "pending-upgrade"), 201),
        ("GET {core}/configmaps/web", JSON, none, 200),
        ("PATCH {core}/configmaps/web?fieldManager=helm", "application/merge-patch+json", changed, 200),
        ("PUT {core}/secrets/sh.helm.release.v1.web.v1", JSON, release(1, "superseded"), 200),
        ("PUT {core}/secrets/sh.helm.release.v1.web.v2", JSON, release(2, "deployed"), 200),
    ])
    .await;
    let revisions = helm.revisions("holly").await.json();
    let statuses: Vec<&Value> =
        revisions["items"].as_array().unwrap().iter().map(|secret| &secret["metadata"]["labels"]["status"]).collect();
    assert_eq!(statuses, ["superseded", "deployed"]);
    let path = format!("/api/v1/namespaces/{}/configmaps/web", helm.world.namespace);
    let made = helm.world.api.read(&path).await;
    assert_eq!((&made["data"]["value"], &made["metadata"]["labels"]), (&json!("2"), &chart("")["metadata"]["labels"]));
    // All requests were made as Holly.
    helm.world.assert_sent_as(&["holly"]).await;
}
