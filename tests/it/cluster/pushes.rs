//! Only the right task pushes an image: pods of the real controller, and distribution's own registry.

use serde_json::{Value, json};

use super::tokens::{DOOR, Tasks, token};
use crate::{
    harness::within,
    registry::{Registry, SERVICE, ask_at},
};

const RULE: &str = "rules:
  - id: release-pushes
    on: {token: {audiences: [registry.test], scopes: ['push:acme/app', 'pull:acme/*'], service_accounts: ['{ns}/builder'],
      pipelines: [release], pipeline_tasks: [push]}}
    who: {issuers: [a], on_behalf_of: {groups: [dev]}}
    do: allow
";

/// What a registry's client gets of Doorward for a password, or the status without it.
async fn swapped(tasks: &Tasks, password: &str) -> Result<String, u16> {
    let query = format!("service={SERVICE}&scope=repository:acme/app:pull,push");
    let answer = ask_at(&tasks.world.doorward, &query, Some(password)).await;
    match answer.status {
        200 => Ok(answer.json()["token"].as_str().unwrap().to_owned()),
        status => Err(status),
    }
}

#[tokio::test]
async fn only_the_right_task_of_the_right_pipeline_pushes_an_image_and_only_while_it_runs() {
    let change = |yaml: String| {
        yaml.replace("rules:\n", RULE).replace("tokens: {", "tokens: {registries: [{service: registry.test}], ")
    };
    let tasks = Tasks::with(change, &[]).await;
    let registry = Registry::start(&tasks.world.doorward).await;
    let asked = [("audience", SERVICE), ("scope", "push:acme/app pull:acme/app")];

    let task = tasks.bobs(&Tasks::release("image")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    // As `doorward token --as docker` asks, and a client of the registry that finds the token as a password.
    let own = token(&tasks.exchange(&pod_token, &asked).await);
    let push = swapped(&tasks, &own).await.unwrap();
    assert_eq!(registry.push("acme/app", &push, b"a layer").await, 201);
    assert_eq!(registry.push("acme/base", &push, b"a layer").await, 401, "another repository");
    assert_eq!(tasks.exchange(&pod_token, &[("audience", SERVICE), ("scope", "push:acme/base")]).await.status, 400);

    // The same task in a pipeline of another name, and one of the pipeline with another account.
    let mut pipeline = tasks.world.api.read(&format!("{}/release", tasks.path("pipelines"))).await;
    pipeline["metadata"] = json!({"name": "other"});
    tasks.world.api.create(&tasks.path("pipelines"), &pipeline).await;
    tasks.world.api.account(&tasks.world.namespace, "another").await;
    let run = |name: &str, pointer: &str, value: &str| {
        let mut run = Tasks::release(name);
        *run.pointer_mut(pointer).unwrap() = Value::from(value);
        run
    };
    for (what, run) in [
        ("another pipeline", run("other", "/spec/pipelineRef/name", "other")),
        ("another account", run("account", "/spec/taskRunTemplate/serviceAccountName", "another")),
    ] {
        let other = tasks.bobs(&run).await;
        let refused = tasks.exchange(&tasks.pod_token(&other.pod, DOOR).await, &asked).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]),
            (400, &json!("invalid_target")),
            "{what}: {}",
            refused.text()
        );
    }

    tasks.cancel(&task).await;
    within(async {
        while swapped(&tasks, &own).await != Err(401) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(tasks.exchange(&pod_token, &asked).await.status, 400);
}
