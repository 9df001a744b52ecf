//! Only the right task can push an image: pods of the real controller, and distribution's own registry.

use std::{fs, path::Path, process::Output};

use serde_json::{Value, json};

use super::{
    programs,
    tasks::{DOOR, Tasks},
    token_command::{HOST, named, said},
};
use crate::{
    fixture::Change,
    harness::{free_port, until, within},
    registry::{Registry, SERVICE, ask_at},
    token_command::Step,
};

const RULE: &str = "rules:
  - id: release-pushes
    on: {token: {audiences: [registry.test], scopes: ['push:acme/app', 'pull:acme/*'], service_accounts: ['{ns}/builder'],
      pipelines: [release], pipeline_tasks: [push]}}
    who: {issuers: [a], on_behalf_of: {groups: [dev]}}
    do: allow
";

/// What a registry client gets from Doorward for a password, or the status of the refusal.
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
        yaml.change("rules:\n", RULE).change("tokens: {", "tokens: {registries: [{service: registry.test}], ")
    };
    let tasks = Tasks::with(change, &[]).await;
    let registry = Registry::start(&tasks.world.doorward).await;
    let asked = [("audience", SERVICE), ("scope", "push:acme/app pull:acme/app")];

    let task = tasks.bobs(&Tasks::release("image")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    // As `doorward token --as docker` asks, and as a registry client with that token as a password.
    let own = tasks.exchange(&pod_token, &asked).await.token();
    let push = swapped(&tasks, &own).await.unwrap();
    assert_eq!(registry.push("acme/app", &push, b"a layer").await, 201);
    assert_eq!(registry.push("acme/base", &push, b"a layer").await, 401, "another repository");
    assert_eq!(tasks.exchange(&pod_token, &[("audience", SERVICE), ("scope", "push:acme/base")]).await.status, 400);

    // The same task in a pipeline with another name, and one of the pipeline with another account.
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
    until(async || swapped(&tasks, &own).await == Err(401)).await;
    assert_eq!(tasks.exchange(&pod_token, &asked).await.status, 400);
}

/// Runs crane with `home` as its home directory.
async fn crane(home: &Path, ca: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(programs::crane());
    command.args(arguments).current_dir(home).env("HOME", home).env("DOCKER_CONFIG", home).env("SSL_CERT_FILE", ca);
    within(command.kill_on_drop(true).output()).await.unwrap()
}

#[tokio::test]
async fn crane_pushes_with_what_the_command_gives_it_and_with_the_token_as_a_password() {
    let service = format!("localhost:{}", free_port());
    let change = |yaml: String| {
        let registries = format!("tokens: {{registries: [{{service: '{service}'}}], ");
        let rule = RULE.replace("registry.test", &format!("'{service}'")).replace("push:acme/app", "push:acme/ap*");
        named(HOST)(yaml).change("rules:\n", &rule).change("tokens: {", &registries)
    };
    let tasks = Tasks::with(change, &[]).await;
    let doorward = &tasks.world.doorward;
    let door = format!("https://{HOST}:{}", doorward.address("secure").port());
    let registry = Registry::at(&service, &service, &format!("https://{HOST}"), &door, doorward).await;
    let task = tasks.bobs(&Tasks::release("crane")).await;
    let pod_token = tasks.pod_token(&task.pod, &format!("https://{HOST}")).await;

    let home = tempfile::tempdir().unwrap();
    let (home, ca) = (home.path(), doorward.dir().join("ca.pem"));
    let image = format!("{service}/acme/app:1");
    fs::write(home.join("layer.tar"), [0; 1024]).unwrap();
    let made = crane(home, &ca, &["append", "-f", "layer.tar", "-t", &image, "-o", "image.tar"]).await;
    assert!(made.status.success(), "{}", said(&made));

    let step = Step::new(&door, &pod_token);
    let program = programs::crane();
    let (program, tar) = (program.to_str().unwrap(), home.join("image.tar"));
    let run = async |form: &[&str], image: &str| {
        let pushing = ["--audience", &service, "--", program, "push", tar.to_str().unwrap(), image];
        let mut command = step.command(&[form, &pushing].concat());
        command.env("DOORWARD_CA_FILE", &ca).env("SSL_CERT_FILE", &ca).env("HOME", home);
        within(command.output()).await.unwrap()
    };
    let push = async |image: &str| run(&["--as", "docker", "--scope", "push:acme/app pull:acme/app"], image).await;
    let pushed = push(&image).await;
    assert!(pushed.status.success(), "{}\n{}", said(&pushed), registry.log());
    let refused = push(&format!("{service}/acme/base:1")).await;
    assert!(!refused.status.success() && said(&refused).contains("401 Unauthorized"), "{}", said(&refused));

    // The pod's own token as a password: crane itself asks Doorward for the scopes that it needs.
    let by_itself = run(&["--as", "docker-login"], &image).await;
    assert!(by_itself.status.success(), "{}\n{}", said(&by_itself), registry.log());
    let login = crane(home, &ca, &["auth", "login", "-u", "doorward", "-p", &pod_token, &service]).await;
    assert!(login.status.success(), "{}", said(&login));
    let digest = crane(home, &ca, &["digest", &image]).await;
    assert!(digest.status.success() && said(&digest).starts_with("sha256:"), "{}", said(&digest));
    assert!(pushed.stdout.ends_with(&digest.stdout), "{} is not {}", said(&pushed), said(&digest));
    let denied = crane(home, &ca, &["push", "image.tar", &format!("{service}/acme/base:1")]).await;
    assert!(!denied.status.success(), "{}", said(&denied));

    tasks.cancel(&task).await;
    until(async || !crane(home, &ca, &["digest", &image]).await.status.success()).await;
    let over = push(&image).await;
    assert!(!over.status.success() && said(&over).contains("invalid_request"), "{}", said(&over));
}
