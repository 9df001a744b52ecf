//! `doorward token` in the step of a real run, with the token that the pod's kubelet would get, and with kubectl and
//! curl using its output.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use super::{
    tasks::{OVER, TARGET, Task, Tasks, claims},
    world::Kubectl,
};
use crate::{
    fixture::Change,
    harness::{Authority, found, until, within},
    token_command::Step,
};

/// The host name by which steps reach Doorward over TLS.
pub const HOST: &str = "localhost";

/// Makes it issue tokens as `https://HOST`.
pub fn named(host: &str) -> impl FnOnce(String) -> String {
    let host = host.to_owned();
    move |yaml: String| {
        yaml.change("external_host: doorward.test", &format!("external_host: {host}")).change(
            "preset: kubernetes\n    audiences: ['https://doorward.test']",
            &format!("preset: kubernetes\n    audiences: ['https://{host}']"),
        )
    }
}

/// A step of one of Bob's tasks.
struct InTask {
    task: Task,
    step: Step,
    ca: PathBuf,
}

impl InTask {
    async fn start(tasks: &Tasks, run: &Value) -> Self {
        let task = tasks.bobs(run).await;
        let port = tasks.world.doorward.address("secure").port();
        let pod_token = tasks.pod_token(&task.pod, &format!("https://{HOST}")).await;
        let step = Step::new(&format!("https://{HOST}:{port}"), &pod_token);
        Self { task, step, ca: tasks.world.doorward.dir().join("ca.pem") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let asked = ["--audience", TARGET, "--scope", "push"];
        let mut command = self.step.command(&[&asked, arguments].concat());
        command.env("DOORWARD_CA_FILE", &self.ca);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        within(self.command(arguments).output()).await.unwrap()
    }
}

pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// kubectl with a kubeconfig that was written by another program.
fn kubectl(kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(super::programs::path("kubectl"));
    let home = kubeconfig.parent().unwrap();
    command.args(arguments).env("HOME", home).env("KUBECONFIG", kubeconfig).env_remove("KUBERNETES_SERVICE_HOST");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// kubectl's answer about the user: Bob, through the account of the task.
fn assert_bob(whoami: &Output, tasks: &Tasks) {
    assert!(whoami.status.success(), "{}", said(whoami));
    let whoami: Value = serde_json::from_slice(&whoami.stdout).unwrap();
    let user = &whoami["status"]["userInfo"];
    assert_eq!(user["username"], "bob", "{user:#}");
    let actor = format!("serviceaccount:{}:builder", tasks.world.namespace);
    assert_eq!(user["extra"]["doorward.dev/actor"], json!([actor]), "{user:#}");
}

#[tokio::test]
async fn kubectl_takes_what_the_command_writes_until_the_run_has_ended() {
    let tasks = Tasks::with(named(HOST), &[]).await;
    let namespace = tasks.world.namespace.clone();
    let step = InTask::start(&tasks, &Tasks::release("kubectl")).await;
    let home = tempfile::tempdir().unwrap();

    // A file that is kept fresh, for several commands of the step.
    let kubeconfig = home.path().join("kubeconfig");
    let file = kubeconfig.display().to_string();
    let mut kept = step.command(&["--as", "kubeconfig", "--out", &file, "--keep"]).spawn().unwrap();
    until(async || kubeconfig.exists()).await;
    assert_bob(&within(kubectl(&kubeconfig, &["auth", "whoami", "-o", "json"]).output()).await.unwrap(), &tasks);
    let list = ["get", "taskruns", "-n", &namespace, "-o", "name"];
    let listed = within(kubectl(&kubeconfig, &list).output()).await.unwrap();
    assert!(listed.status.success() && said(&listed).contains("taskrun.tekton.dev/"), "{}", said(&listed));

    // A single command, with a kubeconfig while it runs.
    let program = super::programs::path("kubectl").display().to_string();
    let wrapped = [&["--as", "kubeconfig", "--", &program][..], &list].concat();
    let listed = step.run(&wrapped).await;
    assert!(listed.status.success() && said(&listed).contains("taskrun.tekton.dev/"), "{}", said(&listed));

    // A kubeconfig of the step's own, which runs the command each time.
    let exec = step.command(&["--as", "exec-credential"]);
    let variables = exec.as_std().get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let mut plugin = json!({
        "command": env!("CARGO_BIN_EXE_doorward"),
        "args": exec.as_std().get_args().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>(),
        "env": variables.map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>(),
        "interactiveMode": "Never",
    });
    let port = tasks.world.doorward.address("secure").port();
    let own = Kubectl::new(&format!("https://{HOST}:{port}"), &tasks.world.authority.pem(), "", &namespace);
    let mut config: Value =
        serde_json::from_slice(&fs::read(own.write("seen", "").with_file_name("config")).unwrap()).unwrap();
    for api in ["client.authentication.k8s.io/v1beta1", "client.authentication.k8s.io/v1"] {
        plugin["apiVersion"] = json!(api);
        config["users"][0]["user"] = json!({"exec": plugin});
        own.write("config", &config.to_string());
        assert_bob(&own.output(&["auth", "whoami", "-o", "json"]).await, &tasks);
    }
    assert!(own.run(&["get", "taskruns", "-o", "name"]).await.contains("taskrun.tekton.dev/"));

    // The API server's RBAC applies to Bob: the step may do no more than he may.
    let refused = within(kubectl(&kubeconfig, &["get", "services", "-n", &namespace]).output()).await.unwrap();
    assert!(!refused.status.success() && said(&refused).contains("Forbidden"), "{}", said(&refused));

    tasks.cancel(&step.task).await;
    let refused = found(async || {
        Some(kubectl(&kubeconfig, &list).output().await.unwrap()).filter(|output| !output.status.success())
    })
    .await;
    assert!(said(&refused).contains("revoked"), "kubectl says why: {}", said(&refused));
    let refused = own.fails(&["get", "taskruns"]).await;
    assert!(OVER.iter().any(|why| refused.contains(why)), "{refused}");
    let refused = step.run(&wrapped).await;
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    kept.kill().await.unwrap();
}

#[tokio::test]
async fn a_token_file_is_kept_fresh_during_the_run_and_removed_with_it() {
    let tasks = Tasks::with(named(HOST), &[]).await;
    // So that its token soon expires and is renewed.
    let mut run = Tasks::release("fresh");
    run["spec"]["timeouts"] = json!({"pipeline": "25s", "tasks": "25s"});
    let step = InTask::start(&tasks, &run).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let mut kept = step.command(&["--out", file.to_str().unwrap(), "--keep"]).spawn().unwrap();
    let next = async |before: &str| {
        found(async || fs::read_to_string(&file).ok().filter(|found| !found.is_empty() && found != before)).await
    };
    let first = next("").await;
    assert_eq!((&claims(&first)["sub"], tasks.used(&first).await.status), (&json!("bob"), 200));
    let second = next(&first).await;
    assert_eq!(tasks.used(&second).await.status, 200);
    assert_eq!(claims(&second)["doorward.dev/run"], claims(&first)["doorward.dev/run"]);
    assert_ne!(claims(&second)["jti"], claims(&first)["jti"]);

    tasks.cancel(&step.task).await;
    let mut lines = BufReader::new(kept.stderr.take().unwrap()).lines();
    let mut told = String::new();
    while let Some(line) = within(lines.next_line()).await.unwrap() {
        told += &line;
    }
    assert_eq!(within(kept.wait()).await.unwrap().code(), Some(1), "{told}");
    assert!(told.contains("the token is not renewed: "), "{told}");
    assert!(OVER.iter().any(|why| told.contains(why)), "{told}");
    assert!(!told.contains(&second) && !told.contains(&first));
    assert!(!file.exists());
    let answer = tasks.used(&second).await;
    assert_eq!(answer.status, 401, "{}", answer.text());
}

/// The only shell block in the documentation that calls curl.
fn curl_of_the_documentation() -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/workload-identity.md");
    let docs = fs::read_to_string(docs).unwrap();
    let blocks = docs.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```").map(|(block, _)| block));
    let found: Vec<&str> = blocks.filter(|block| block.starts_with("curl ")).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].to_owned()
}

#[tokio::test]
async fn the_documented_request_without_the_program_works_verbatim() {
    let host = "tekton.example.com";
    let pair = Authority::new();
    let (authority, pair) = (pair.pem(), pair.issue(&[host]));
    let change = |yaml: String| {
        named(host)(yaml).change(
            "audiences: ['https://target.test'], scopes: [alone]",
            "audiences: ['https://api.example.com'], scopes: [deploy]",
        )
    };
    let files = [("server.pem", pair.chain.as_str()), ("server.key", &pair.key), ("authority.pem", &authority)];
    let tasks = Tasks::with(change, &files).await;
    let task = tasks.bobs(&Tasks::release("curl")).await;
    let home = tempfile::tempdir().unwrap();
    let pod_token = home.path().join("token");
    fs::write(&pod_token, tasks.pod_token(&task.pod, &format!("https://{host}")).await).unwrap();
    // Only the address of the name, the authority, and the path of the kubelet's token differ in the test.
    let curlrc = format!(
        "connect-to = \"{host}:443:127.0.0.1:{}\"\ncacert = \"{}\"\n",
        tasks.world.doorward.address("secure").port(),
        tasks.world.doorward.dir().join("authority.pem").display()
    );
    fs::write(home.path().join(".curlrc"), curlrc).unwrap();
    let mounted = "/var/run/secrets/doorward/token";
    let command = curl_of_the_documentation();
    assert_eq!(command.matches(mounted).count(), 1, "{command}");
    let command = command.replace(mounted, pod_token.to_str().unwrap());
    let curl = async || {
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]).env("HOME", home.path()).env("CURL_HOME", home.path()).kill_on_drop(true);
        within(shell.output()).await.unwrap()
    };
    // 22: an error status, which is 503 for the first moments.
    let given = found(async || Some(curl().await).filter(|output| output.status.code() != Some(22))).await;
    assert!(given.status.success(), "{:?}: {}", given.status, said(&given));
    let given: Value = serde_json::from_slice(&given.stdout).unwrap();
    let claims = claims(given["access_token"].as_str().unwrap());
    for (name, expected) in
        [("iss", "https://tekton.example.com"), ("aud", "https://api.example.com"), ("scope", "deploy"), ("sub", "bob")]
    {
        assert_eq!(claims[name], expected, "{claims:#}");
    }
    tasks.cancel(&task).await;
    until(async || !curl().await.status.success()).await;
}
