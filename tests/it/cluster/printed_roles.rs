//! The output of `doorward rbac`, applied as it is to a cluster without other roles: Doorward and its users may do what
//! the configuration is for, and without any one of its rules some of that is refused.

use std::process::Command;

use serde_json::{Value, json};

use super::{
    api_server::ApiServer,
    shipped::{administrator, objects},
    tekton::{define, node, pipeline_run, pod},
    trace::{linked, trace},
    world::World,
};
use crate::{fixture::bearer, harness::until};

/// The printed roles, each with a group of people. Each may do what the previous one may, and more.
const PEOPLE: [&str; 4] = ["view", "cancel", "run", "admin"];

/// `view` applies to all namespaces; the others work in one.
const POLICY: &str = "grants:
  - {id: view, who: {groups: [view]}, kubernetes_groups: ['tekton:view'], tekton_roles: [{role: view}]}
  - {id: cancel, who: {groups: [cancel]}, kubernetes_groups: ['tekton:cancel'], tekton_roles: [{role: cancel, namespaces: ['{ns}']}]}
  - {id: run, who: {groups: [run]}, kubernetes_groups: ['tekton:run'], tekton_roles: [{role: run, namespaces: ['{ns}']}]}
  - {id: admin, who: {groups: [admin]}, kubernetes_groups: ['tekton:admin'], tekton_roles: [{role: admin, namespaces: ['{ns}']}]}
rules:
  - id: look
    on: {routes: [api], kubernetes: {verbs: [read], api_groups: [tekton.dev, triggers.tekton.dev, '']}}
    who: {groups: [view, cancel, run, admin]}
    do: allow
  # The roles draw the line between these people, and not the policy.
  - id: work
    on: {routes: [api], kubernetes: {verbs: [write], api_groups: [tekton.dev, triggers.tekton.dev], namespaces: ['{ns}']}}
    who: {groups: [view, cancel, run, admin]}
    do: allow
runs: {kubernetes: cluster, namespaces: ['{ns}']}
";

fn configuration(yaml: &str) -> String {
    let (before, rest) = yaml.split_once("grants:\n").unwrap();
    let (_, after) = rest.split_once("store:").unwrap();
    format!("{before}{POLICY}store:{after}")
}

/// Requests by path, in the test namespace or (`/apis...`) anywhere, and the lowest role that may make each.
fn actions(pod: &str) -> Vec<(&'static str, String, Value)> {
    let run = pipeline_run("made", &json!({}));
    let pipeline = json!({"apiVersion": "tekton.dev/v1", "kind": "Pipeline", "metadata": {"name": "p"},
        "spec": {"tasks": [{"name": "t", "taskRef": {"name": "t"}}]}});
    let trigger = json!({"apiVersion": "triggers.tekton.dev/v1beta1", "kind": "Trigger", "metadata": {"name": "t"},
        "spec": {"template": {"ref": "t"}}});
    let cancel = json!({"spec": {"status": "Cancelled"}});
    [
        ("view", "GET tekton.dev/v1 pipelineruns", json!(null)),
        ("view", "GET tekton.dev/v1 pipelineruns/waits", json!(null)),
        ("view", "GET tekton.dev/v1 pipelines", json!(null)),
        ("view", "GET triggers.tekton.dev/v1beta1 eventlisteners", json!(null)),
        ("view", "GET v1 pods", json!(null)),
        ("view", "GET v1 events", json!(null)),
        ("view", "GET v1 pods/{pod}/log", json!(null)),
        ("cancel", "PATCH tekton.dev/v1 pipelineruns/waits", cancel),
        ("run", "POST tekton.dev/v1 pipelineruns?dryRun=All", run),
        ("run", "GET v1 serviceaccounts", json!(null)),
        ("admin", "DELETE tekton.dev/v1 pipelineruns/waits?dryRun=All", json!(null)),
        ("admin", "POST tekton.dev/v1 pipelines?dryRun=All", pipeline),
        ("admin", "POST triggers.tekton.dev/v1beta1 triggers?dryRun=All", trigger),
    ]
    .map(|(least, line, body)| (least, line.replace("{pod}", pod), body))
    .to_vec()
}

/// The rank of somebody among [`PEOPLE`].
fn rank(who: &str) -> usize {
    PEOPLE.iter().position(|role| *role == who).unwrap()
}

struct Cluster {
    world: World,
    pod: String,
}

impl Cluster {
    /// Which of these requests somebody may make, and the responses to those refused.
    async fn asked(&self, who: &str) -> (Vec<bool>, Vec<String>) {
        let (mut allowed, mut said) = (Vec::new(), Vec::new());
        for (_, line, body) in actions(&self.pod) {
            let [method, version, rest] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let prefix = if version == "v1" { "/api" } else { "/apis" };
            let path = format!("{prefix}/{version}/namespaces/{}/{rest}", self.world.namespace);
            let media = match method {
                "PATCH" => "Content-Type: application/merge-patch+json",
                _ => "Content-Type: application/json",
            };
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let line = format!("{method} {path} HTTP/1.1");
            let lines = [line.as_str(), "Host: localhost", &self.token(who), media];
            let answer = self.world.doorward.send(&lines, body.as_bytes()).await;
            allowed.push(matches!(answer.status, 200 | 201));
            said.push(format!("{} {}", answer.status, answer.text()));
        }
        (allowed, said)
    }

    fn token(&self, who: &str) -> String {
        bearer(&self.world.issuer.token(who, &[who]))
    }

    /// The expected result when everything is applied as printed.
    fn expected(&self, who: &str) -> Vec<bool> {
        actions(&self.pod).iter().map(|(least, ..)| rank(least) <= rank(who)).collect()
    }

    /// Waits until somebody may do what is expected, or no longer: an API server learns of roles with a delay.
    async fn until(&self, who: &str, expected: bool, what: &str) {
        let waiting = async {
            while (self.asked(who).await.0 == self.expected(who)) != expected {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "{who}, {what}: {:#?}", self.asked(who).await);
    }

    /// Each may do what the role says, and the API server refuses the rest, not Doorward.
    async fn everybody_may_what_the_roles_say(&self) {
        for who in PEOPLE {
            self.until(who, true, "all applied").await;
            let (allowed, said) = self.asked(who).await;
            for (allowed, said) in allowed.into_iter().zip(said) {
                assert!(allowed || said.contains(&format!("User \\\"{who}\\\" cannot ")), "{who}: {said}");
            }
        }
        // One role is for all namespaces, and the others are for one.
        for (who, status) in [("view", 200), ("admin", 403)] {
            let everywhere = "GET /apis/tekton.dev/v1/pipelineruns HTTP/1.1";
            let answer = self.world.doorward.send(&[everywhere, "Host: localhost", &self.token(who)], b"").await;
            assert_eq!(answer.status, status, "{who}: {}", answer.text());
        }
    }

    /// Creates a run as somebody who may, which Doorward sees if it may.
    async fn run(&self, name: &str) -> Value {
        let line = format!("POST /apis/tekton.dev/v1/namespaces/{}/pipelineruns HTTP/1.1", self.world.namespace);
        let lines = [line.as_str(), "Host: localhost", &self.token("run"), "Content-Type: application/json"];
        let answer = self.world.doorward.send(&lines, pipeline_run(name, &json!({})).to_string().as_bytes()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()
    }

    async fn is_traced(&self, run: &Value) {
        linked(&self.world.doorward, &run["metadata"]["uid"]).await;
        let (code, said) = trace(&self.world, run["metadata"]["name"].as_str().unwrap()).await;
        assert!(code == Some(0) && said.contains("caused by  run (a person of a)"), "{said}");
    }

    fn doorward(&self, more: &[&str]) -> String {
        let account = format!("{}/doorward", self.world.namespace);
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.arg("rbac").arg(self.world.doorward.dir().join("doorward.yaml"));
        let output = command.args(["--service-account", &account]).args(more).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{said}");
        said
    }

    async fn set(&self, path: &str, rules: &Value) {
        let answer = self.world.api.ask("PATCH", path, Some(&json!({"rules": rules}))).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

/// The path of a printed role.
fn path(role: &Value) -> Option<String> {
    let (kind, metadata) = (role["kind"].as_str().unwrap(), &role["metadata"]);
    let name = metadata["name"].as_str().unwrap();
    let api = "/apis/rbac.authorization.k8s.io/v1";
    match kind {
        "ClusterRole" => Some(format!("{api}/clusterroles/{name}")),
        "Role" => Some(format!("{api}/namespaces/{}/roles/{name}", metadata["namespace"].as_str().unwrap())),
        _ => None,
    }
}

const UNLINKED: &str = "runs are not linked to their causes";

#[tokio::test]
async fn the_printed_roles_suffice_for_everybody_and_each_rule_is_needed() {
    // Its objects are cluster-wide, with fixed names. It ends with the test binary.
    let api: &'static ApiServer = Box::leak(Box::new(ApiServer::start().await));
    define(api).await;
    let _kubelet = node(api).await;
    let world = World::without_rights(api, |yaml| configuration(&yaml)).await;
    let pod = pod(api, &world.namespace).await;
    let waits = json!({"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "metadata": {"name": "waits"},
        "spec": {"pipelineRef": {"name": "p"}, "status": "PipelineRunPending"}});
    api.create(&format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", world.namespace), &waits).await;
    let mut cluster = Cluster { world, pod };
    cluster.world.doorward.wait_for_log_containing(UNLINKED).await;
    for who in PEOPLE {
        assert!(cluster.asked(who).await.0.iter().all(|allowed| !allowed), "nobody may anything yet");
    }

    let kubectl = administrator(api, "default");
    let printed = cluster.doorward(&[]);
    kubectl.write("printed.yaml", &printed);
    kubectl.run(&["apply", "-f", "printed.yaml"]).await;
    let kinds = "clusterroles,clusterrolebindings,roles,rolebindings";
    let list = kubectl.write("list.json", &kubectl.run(&["get", kinds, "-A", "-o", "json"]).await);
    let said = cluster.doorward(&["--check", list.to_str().unwrap()]);
    assert_eq!(said, "the cluster has what the configuration needs, and no more\n");
    cluster.everybody_may_what_the_roles_say().await;
    let run = cluster.run("first").await;
    cluster.is_traced(&run).await;

    let roles = objects(&printed);
    let mut left_out = Vec::new();
    for (role, path) in roles.iter().filter_map(|role| Some((role, path(role)?))) {
        let (name, rules) = (role["metadata"]["name"].as_str().unwrap(), role["rules"].as_array().unwrap());
        for index in 0..rules.len() {
            let what = format!("without {} of {name}", rules[index]);
            cluster.set(&path, &json!([&rules[..index], &rules[index + 1..]].concat())).await;
            if name == "doorward-reader" {
                // Existing watches would continue.
                cluster.world.doorward = cluster.world.doorward.kill_and_restart().await;
                cluster.world.doorward.wait_for_keys_at("localhost", &cluster.world.issuer).await;
                cluster.world.doorward.wait_for_log_containing(UNLINKED).await;
                cluster.set(&path, &role["rules"]).await;
                let run = cluster.run(&format!("again-{index}")).await;
                cluster.is_traced(&run).await;
            } else {
                let who = name.strip_prefix("doorward-tekton-").unwrap_or("view");
                cluster.until(who, false, &what).await;
                cluster.set(&path, &role["rules"]).await;
                cluster.until(who, true, &format!("not {what}")).await;
            }
            left_out.push(name);
        }
    }
    assert_eq!(left_out.iter().filter(|name| **name == "doorward-impersonator").count(), 3, "{left_out:?}");
    assert!(left_out.len() > 3 + 1 + PEOPLE.len() * 5, "{left_out:?}");

    // Now the other form instead of this one.
    kubectl.run(&["delete", "-f", "printed.yaml"]).await;
    until(async || !cluster.asked("view").await.0.contains(&true)).await;
    kubectl.write("constrained.yaml", &cluster.doorward(&["--form", "constrained"]));
    kubectl.run(&["apply", "-f", "constrained.yaml"]).await;
    cluster.everybody_may_what_the_roles_say().await;
    let run = cluster.run("constrained").await;
    cluster.is_traced(&run).await;
    let made = cluster.world.event(|event| event["objectRef"]["name"] == "constrained").await;
    assert_eq!(made["authenticationMetadata"]["impersonationConstraint"], "impersonate:user-info", "{made:#}");
}
