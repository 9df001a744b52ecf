//! Tokens for tasks in all namespaces, with a single watch for all of them.

use serde_json::json;

use super::tasks::{DOOR, TARGET, Tasks};
use crate::{fixture::Change, harness::until};

/// `kubernetes:6.4 forged owner reference`: the uid of a TaskRun does not contain its namespace, and anybody who may
/// create pods somewhere can write any uid into them.
#[tokio::test]
async fn an_owner_reference_into_another_namespace_is_ignored() {
    let exchange = "kubernetes: cluster, namespaces: ['{ns}']}]}";
    let tasks = Tasks::with(|yaml| yaml.change(exchange, "kubernetes: cluster}]}"), &[]).await;
    let api = tasks.world.api;
    let account = json!({"kind": "ServiceAccount", "namespace": tasks.world.namespace, "name": "doorward"});
    let verbs = ["get", "list", "watch"];
    let rights = json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": verbs},
        {"apiGroups": ["tekton.dev"], "resources": ["taskruns", "pipelineruns"], "verbs": verbs},
        {"apiGroups": ["tekton.dev"], "resources": ["customruns"], "verbs": ["get"]},
    ]);
    api.allow_everywhere(&format!("{}-everywhere", tasks.world.namespace), &account, &rights).await;
    let task = tasks.bobs(&Tasks::release("real")).await;
    let asked = [("audience", TARGET), ("scope", "push")];
    tasks.exchange(&tasks.pod_token(&task.pod, DOOR).await, &asked).await.token();

    let other = api.namespace().await;
    api.account(&other, "builder").await;
    let name = task.pod["metadata"]["name"].as_str().unwrap();
    let pods = format!("/api/v1/namespaces/{other}/pods");
    let twin = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": task.pod["metadata"]["labels"],
            "annotations": task.pod["metadata"]["annotations"],
            "ownerReferences": task.pod["metadata"]["ownerReferences"],
        },
        "spec": {"serviceAccountName": "builder", "containers": [{"name": "step-run", "image": "images.test/step"}]},
    });
    let twin = api.create(&pods, &twin).await;
    until(async || api.read(&format!("{pods}/{name}")).await["status"]["phase"] == "Running").await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": twin["metadata"]["uid"]});
    let spec = json!({"audiences": [DOOR], "expirationSeconds": 3600, "boundObjectRef": bound});
    let path = format!("/api/v1/namespaces/{other}/serviceaccounts/builder/token");
    let made = api.create(&path, &json!({"spec": spec})).await;
    let refused = tasks.exchange(made["status"]["token"].as_str().unwrap(), &asked).await;
    assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("invalid_request")), "{}", refused.text());
    let owner = task.pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap();
    assert!(refused.text().contains(&format!("TaskRun {owner}: it does not exist")), "{}", refused.text());
}
