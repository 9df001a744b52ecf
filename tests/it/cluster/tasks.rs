//! Runs of a real Tekton whose tasks ask for tokens, and their requests.

use serde_json::{Value, json};

use super::{
    tekton::{Tekton, pipeline_run},
    world::{Setup, World},
};
use crate::{
    fixture::{Change, bearer},
    harness::{Answer, Doorward, EXCHANGE, Raw, exchange_form, found, part, settled, streams::begin, until},
};

/// Doorward's issuer, and the audience of the pods' tokens.
pub const DOOR: &str = "https://doorward.test";

/// The audience of the tokens that the tests ask for.
pub const TARGET: &str = "https://target.test";

/// The texts of a refused exchange after the end of a run, depending on what is noticed first. (A cancelled run loses
/// its pod.)
pub const OVER: [&str; 8] = [
    "has ended",
    "is cancelled",
    "is being deleted",
    "does not exist any more",
    "under the same name",
    "the run, or the token, has timed out",
    // The API server's answer once the pod is gone.
    "the token is not active",
    "revoked",
];

const TOKENS: &str = "
tokens: {exchange: [{issuer: cluster, kubernetes: cluster, namespaces: ['{ns}']}]}
runs: {kubernetes: cluster, namespaces: ['{ns}']}
";

const ISSUERS: &str = "issuers:
  - name: cluster
    issuer: https://kubernetes.default.svc
    preset: kubernetes
    audiences: ['https://doorward.test']
    keys: {url: '{api}/openid/v1/jwks', bearer: {file: token}}
    ca: cluster-ca.pem
    token_review: {upstream: cluster, bearer: {file: token}}
  - {name: own, preset: doorward, audiences: ['https://target.test']}
";

const RULES: &str = "rules:
  - id: push
    on: {token: {audiences: ['https://target.test'], scopes: [push, 'read:*'], service_accounts: ['{ns}/builder'],
      pipelines: [release], pipeline_tasks: [push]}}
    who: {issuers: [a], on_behalf_of: {groups: [dev]}}
    do: allow
  - id: alone
    on: {token: {audiences: ['https://target.test'], scopes: [alone], service_accounts: ['{ns}/builder']}}
    who: {issuers: [a], on_behalf_of: {groups: [dev]}}
    do: allow
  - {id: use, on: {routes: [api]}, who: {issuers: [own], kind: agent, on_behalf_of: {}, scopes: [push]}, do: allow}
";

/// A world with a pipeline `release` whose task `push` runs until its run is cancelled, and tokens for it.
pub struct Tasks {
    pub world: World,
}

/// A run, and the pod of its task.
pub struct Task {
    pub run: Value,
    pub pod: Value,
}

/// The role of Doorward's own account.
const READER: &str = "doorward-reader";

/// The verbs on each object that are needed to see it end.
pub const EACH: [&str; 3] = ["get", "list", "watch"];

/// Rights on pods and on PipelineRuns.
pub fn rights(pods: &[&str], pipeline_runs: &[&str]) -> Value {
    json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": pods},
        {"apiGroups": ["tekton.dev"], "resources": ["taskruns"], "verbs": EACH},
        {"apiGroups": ["tekton.dev"], "resources": ["pipelineruns"], "verbs": pipeline_runs},
        {"apiGroups": ["tekton.dev"], "resources": ["customruns"], "verbs": ["get"]},
    ])
}

/// The base configuration with token issuing.
fn with_tokens(yaml: &str) -> String {
    let api = yaml.split("url: '").nth(1).and_then(|rest| rest.split('\'').next()).unwrap().to_owned();
    yaml.change("issuers:\n", &ISSUERS.replace("{api}", &api))
        .change("rules:\n", RULES)
        .change("who: {groups: [dev]}", "who: {issuers: [a], groups: [dev]}")
        .change("schemes: [bearer], upstream", "schemes: [bearer], issuers: [a, own], upstream")
        .change("grants:\n", "grants:\n  - {id: use, who: {issuers: [own], kind: agent, scopes: [push]}, kubernetes_groups: ['tekton:dev']}\n")
        + TOKENS
}

impl Tasks {
    pub async fn start() -> Self {
        Self::with(|yaml| yaml, &[]).await
    }

    /// `change` edits the configuration; `files` are placed beside it.
    pub async fn with(change: impl FnOnce(String) -> String, files: &[(&str, &str)]) -> Self {
        Tekton::get().await;
        Self::furnish(World::with_files(|yaml| change(with_tokens(&yaml)), files).await).await
    }

    /// With a clock that can be set. `change` edits the configuration.
    pub async fn with_faults(change: impl FnOnce(String) -> String) -> Self {
        Tekton::get().await;
        Self::furnish(
            World::set_up(Setup { faults: true, ..Setup::default() }, |yaml| change(with_tokens(&yaml))).await,
        )
        .await
    }

    /// With only these rights of Doorward's own account on pods, TaskRuns and PipelineRuns.
    pub async fn with_rights(rights: &Value) -> Self {
        Tekton::get().await;
        Self::furnish_with(World::with(|yaml| with_tokens(&yaml)).await, rights).await
    }

    async fn furnish(world: World) -> Self {
        Self::furnish_with(world, &rights(&EACH, &EACH)).await
    }

    async fn furnish_with(world: World, rights: &Value) -> Self {
        let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
        world.api.allow(&world.namespace, READER, &account, rights).await;
        let reviews =
            json!([{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]);
        world.api.allow_everywhere(&format!("{}-reviews", world.namespace), &account, &reviews).await;
        world.api.account(&world.namespace, "builder").await;
        let step = json!([{"name": "run", "image": "images.test/step", "command": ["true"]}]);
        let pipeline = json!({
            "apiVersion": "tekton.dev/v1",
            "kind": "Pipeline",
            "metadata": {"name": "release"},
            "spec": {"tasks": [{"name": "push", "taskSpec": {"steps": step}}]},
        });
        let tasks = Self { world };
        tasks.world.api.create(&tasks.path("pipelines"), &pipeline).await;
        tasks
    }

    /// Replaces the rights of Doorward's own account.
    pub async fn have_rights(&self, rights: &Value) {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles/{READER}", self.world.namespace);
        let answer = self.world.api.ask("PATCH", &path, Some(&json!({"rules": rights}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    pub fn path(&self, resource: &str) -> String {
        match resource {
            "pods" => format!("/api/v1/namespaces/{}/pods", self.world.namespace),
            _ => format!("/apis/tekton.dev/v1/namespaces/{}/{resource}", self.world.namespace),
        }
    }

    /// A run of `release` whose pod runs until it is ended.
    pub fn release(name: &str) -> Value {
        let mut run = pipeline_run(name, &json!({"hold": "yes"}));
        run["spec"] = json!({
            "pipelineRef": {"name": "release"},
            "taskRunTemplate": {"serviceAccountName": "builder"},
        });
        run
    }

    /// A run of a single task without a pipeline, whose pod also runs until it is ended.
    pub fn alone() -> Value {
        json!({
            "apiVersion": "tekton.dev/v1",
            "kind": "TaskRun",
            "metadata": {"name": "alone", "annotations": {"hold": "yes"}},
            "spec": {
                "serviceAccountName": "builder",
                "taskSpec": {"steps": [{"name": "run", "image": "images.test/step", "command": ["true"]}]},
            },
        })
    }

    /// Creates it as Bob through Doorward, and waits for its pod to run.
    pub async fn bobs(&self, run: &Value) -> Task {
        let answer = self.made_by("bob", run, &[]).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        self.task_of(answer.json()).await
    }

    /// The response to a developer who creates a run through Doorward.
    pub async fn made_by(&self, subject: &str, run: &Value, more: &[&str]) -> Answer {
        let resource = if run["kind"] == "TaskRun" { "taskruns" } else { "pipelineruns" };
        let line = format!("POST {} HTTP/1.1", self.path(resource));
        let (token, json) = (self.world.developer(subject), "Content-Type: application/json");
        let lines = [&[line.as_str(), "Host: localhost", &token, json], more].concat();
        self.world.doorward.send(&lines, run.to_string().as_bytes()).await
    }

    /// Waits for the pod of a run's task.
    pub async fn task_of(&self, run: Value) -> Task {
        let label = if run["kind"] == "TaskRun" { "tekton.dev/taskRun" } else { "tekton.dev/pipelineRun" };
        let name = run["metadata"]["name"].as_str().unwrap();
        let listed = format!("{}?labelSelector={label}%3D{name}", self.path("pods"));
        let pod = found(async || {
            let pods = self.world.api.read(&listed).await;
            pods["items"].as_array().unwrap().iter().find(|pod| pod["status"]["phase"] == "Running").cloned()
        })
        .await;
        Task { run, pod }
    }

    /// The projected token of a pod, as its kubelet would get it.
    pub async fn pod_token(&self, pod: &Value, audience: &str) -> String {
        let account = pod["spec"]["serviceAccountName"].as_str().unwrap();
        let bound =
            json!({"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
        self.token(account, &json!({"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound})).await
    }

    pub async fn token(&self, account: &str, spec: &Value) -> String {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", self.world.namespace);
        let made = self.world.api.create(&path, &json!({"spec": spec})).await;
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Asks for a token, repeatedly while Doorward itself cannot answer.
    pub async fn exchange(&self, subject_token: &str, more: &[(&str, &str)]) -> Answer {
        settled(async || exchange(&self.world, subject_token, more).await).await
    }

    /// The response to an exchange once a watch has reported the end. A token issued just before is invalid by then.
    pub async fn once_over(&self, subject_token: &str, more: &[(&str, &str)]) -> Answer {
        found(async || {
            let answer = self.exchange(subject_token, more).await;
            if answer.status == 200 {
                self.is_dead(&answer.token()).await;
                return None;
            }
            Some(answer)
        })
        .await
    }

    /// The path of the TaskRun to which a task's pod belongs.
    pub fn task_run(&self, task: &Task) -> String {
        let owner = &task.pod["metadata"]["ownerReferences"][0];
        format!("{}/{}", self.path("taskruns"), owner["name"].as_str().unwrap())
    }

    /// Waits until Tekton has recorded the end of the task.
    pub async fn until_ended(&self, task: &Task) {
        let path = self.task_run(task);
        until(async || !self.world.api.read(&path).await["status"]["completionTime"].is_null()).await;
    }

    pub async fn cancel(&self, task: &Task) {
        let name = task.run["metadata"]["name"].as_str().unwrap();
        let (resource, status) = match task.run["kind"].as_str() {
            Some("TaskRun") => ("taskruns", "TaskRunCancelled"),
            _ => ("pipelineruns", "Cancelled"),
        };
        let path = format!("{}/{name}", self.path(resource));
        let answer = self.world.api.ask("PATCH", &path, Some(&json!({"spec": {"status": status}}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// The response of the API route to a token from Doorward.
    pub async fn used(&self, token: &str) -> Answer {
        self.used_at(&self.world.doorward, token).await
    }

    /// The same at another replica.
    pub async fn used_at(&self, replica: &Doorward, token: &str) -> Answer {
        replica.get(&self.path("taskruns"), &["Host: localhost", &bearer(token)]).await
    }

    /// A watch that is opened with a token from Doorward.
    pub async fn watch(&self, replica: &Doorward, token: &str) -> Raw {
        let path = format!("{}?watch=true", self.path("taskruns"));
        begin(replica, &path, &["Host: localhost", "Connection: close", &bearer(token)], 200).await
    }

    /// Waits until a token is refused as revoked.
    pub async fn is_dead(&self, token: &str) {
        until(async || {
            let answer = self.used(token).await;
            assert!(matches!(answer.status, 200 | 401), "{}", answer.text());
            assert!(answer.status == 200 || answer.text().contains("revoked"), "{}", answer.text());
            answer.status == 401
        })
        .await;
    }
}

pub async fn exchange(world: &World, subject_token: &str, more: &[(&str, &str)]) -> Answer {
    exchange_at(&world.doorward, subject_token, more).await
}

pub async fn exchange_at(doorward: &Doorward, subject_token: &str, more: &[(&str, &str)]) -> Answer {
    let form = exchange_form(&[&[("subject_token", subject_token)], more].concat());
    doorward.send(&EXCHANGE, form.as_bytes()).await
}

/// The claims of a JWT, unverified.
pub fn claims(token: &str) -> Value {
    part(token, 1)
}

/// The error code of a refusal, and its description.
pub fn refusal(answer: &Answer) -> (String, String) {
    assert_eq!(answer.status, 400, "{}", answer.text());
    let text = |name: &str| answer.json()[name].as_str().unwrap().to_owned();
    (text("error"), text("error_description"))
}
