//! The minimal rights of Doorward's own account, as `doorward rbac` prints them, in both forms that Kubernetes
//! supports: classic impersonation, and constrained impersonation (KEP-5284), which also limits the requests made while
//! impersonating.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use super::world::{GROUP, Setup, World};
use crate::{
    fixture::bearer,
    harness::{HANDSHAKE, folder_with},
};

const CONFIGURATION: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
issuers: [{name: a, issuer: 'https://issuer.test', audiences: ['https://doorward.test'], username: '{sub}', kind: human}]
upstreams: [{name: cluster, url: 'https://cluster.test', credential: {bearer: {file: token}}}]
routes: [{name: api, kind: kubernetes, hosts: [localhost], schemes: [bearer], upstream: cluster}]
grants: [{id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: ['{group}']}]
rules:
  - id: look
    on: {kubernetes: {verbs: [list], api_groups: [''], resources: [configmaps]}}
    who: {issuers: [a], groups: [dev]}
    do: allow
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
";

/// The rules of all roles that are printed for this configuration.
fn printed(form: &str) -> Vec<Value> {
    let dir = folder_with(&[("doorward.yaml", &CONFIGURATION.replace("{group}", GROUP))]);
    printed_of(dir.path(), form)
}

/// The same for the configuration in a folder.
pub(super) fn printed_of(dir: &Path, form: &str) -> Vec<Value> {
    let path = dir.join("doorward.yaml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    let output = command.arg("rbac").arg(&path).args(["--form", form]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let yaml = String::from_utf8(output.stdout).unwrap();
    let objects = yaml.split("---\n").filter(|text| !text.is_empty()).map(|text| {
        let object: Value = serde_saphyr::from_str(text).unwrap();
        object
    });
    objects.flat_map(|object| object["rules"].as_array().cloned().unwrap_or_default()).collect()
}

/// The statuses of Alice's requests, the last of which only the classic form allows, and the API server's events.
async fn asked(rules: &[Value]) -> (Vec<u16>, Vec<Value>) {
    let world = World::set_up(Setup { rights: json!(rules), ..Setup::default() }, |yaml| yaml).await;
    let mut statuses = Vec::new();
    let list = |resource: &str| format!("GET /api/v1/namespaces/{}/{resource}", world.namespace);
    statuses.push(world.alice(&list("configmaps"), &[], b"").await.status);
    let mut claims = world.issuer.claims("alice", &["dev"]);
    claims["act"] = json!({"sub": "bot"});
    let through_a_bot = bearer(&world.issuer.sign(&claims));
    let line = format!("{} HTTP/1.1", list("configmaps"));
    statuses.push(world.doorward.send(&[&line, "Host: localhost", &through_a_bot], b"").await.status);
    statuses.push(world.alice("GET /version", &[], b"").await.status);
    for (path, spec) in [
        (
            "authorization.k8s.io/v1/selfsubjectaccessreviews",
            json!({"nonResourceAttributes": {"verb": "get", "path": "/"}}),
        ),
        ("authentication.k8s.io/v1/selfsubjectreviews", json!({})),
    ] {
        let (version, kind) = match path.contains("access") {
            true => ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            false => ("authentication.k8s.io/v1", "SelfSubjectReview"),
        };
        let body = json!({"apiVersion": version, "kind": kind, "spec": spec}).to_string();
        let more = ["Content-Type: application/json"];
        statuses.push(world.alice(&format!("POST /apis/{path}"), &more, body.as_bytes()).await.status);
    }
    statuses.push(world.alice(&list("pods"), &[], b"").await.status);
    world.event(|event| event["objectRef"]["resource"] == "pods").await;
    (statuses, world.audit())
}

/// Without any one of the rules, a request is refused that was not before.
async fn each_is_needed(rules: &[Value], all: &[u16]) {
    for left_out in 0..rules.len() {
        let fewer = [&rules[..left_out], &rules[left_out + 1..]].concat();
        let (statuses, _) = asked(&fewer).await;
        assert_ne!(statuses, all, "without {}", rules[left_out]);
        let is_ours = statuses.iter().zip(all).all(|(now, before)| now == before || *now == 502);
        assert!(is_ours, "without {}: {statuses:?}, of which Alice can do nothing about any", rules[left_out]);
    }
}

#[tokio::test]
async fn classic_impersonation_needs_these_rights_and_each_of_them() {
    let rules = printed("classic");
    let (statuses, events) = asked(&rules).await;
    assert_eq!(statuses, [200, 200, 200, 201, 201, 200]);
    assert!(events.iter().all(|event| event["authenticationMetadata"].is_null()), "{events:#?}");
    each_is_needed(&rules, &statuses).await;
}

#[tokio::test]
async fn constrained_impersonation_needs_these_rights_and_each_of_them() {
    let rules = printed("constrained");
    let (statuses, events) = asked(&rules).await;
    assert_eq!(statuses, [200, 200, 200, 201, 201, 502], "what it may be asked for is all that can be asked for");
    assert_eq!(events[0]["impersonatedUser"]["username"], "alice");
    assert_eq!(events[0]["authenticationMetadata"]["impersonationConstraint"], "impersonate:user-info");
    each_is_needed(&rules, &statuses).await;
}

/// The formats that clients accept for lists, and so for a refusal.
const FORMS: [&str; 4] = [
    "application/json",
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    "application/vnd.kubernetes.protobuf",
    "application/vnd.kubernetes.protobuf, application/json",
];

/// It names Doorward's account, and the caller would ask for the right to impersonate.
#[tokio::test]
async fn a_refusal_of_our_own_account_goes_to_the_log_and_not_to_the_caller() {
    let only = |verb: &str| -> Vec<Value> {
        let has = |rule: &Value| rule["verbs"].to_string().contains(verb) && rule["resources"].is_array();
        printed("constrained").into_iter().filter(has).collect()
    };
    for (rules, said) in [
        (printed("classic")[..1].to_vec(), "cannot impersonate"),
        (only("impersonate-on:"), "cannot impersonate:user-info"),
        (only("impersonate:"), "cannot impersonate-on:user-info:"),
    ] {
        let mut world = World::set_up(Setup { rights: json!(rules), ..Setup::default() }, |yaml| yaml).await;
        let list = format!("GET /api/v1/namespaces/{}/configmaps", world.namespace);
        for form in FORMS {
            let answer = world.alice(&list, &[&format!("Accept: {form}")], b"").await;
            assert_eq!(answer.status, 502, "{rules:?} {form}: {}", answer.text());
            assert!(!answer.text().contains("system:serviceaccount"), "{}", answer.text());
            assert!(answer.text().contains("doorward rbac --check"), "{}", answer.text());
        }
        let exec = format!("GET /api/v1/namespaces/{}/pods/none/exec?command=sh", world.namespace);
        assert_eq!(world.alice(&exec, &HANDSHAKE, b"").await.status, 502);
        let line = world.doorward.wait_for_log_containing(said).await.to_string();
        assert!(line.contains("upstream_credential") && line.contains("system:serviceaccount"), "{line}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_caller_by_the_api_server_is_forwarded_unchanged() {
    let world = World::set_up(Setup { rights: json!(printed("classic")), ..Setup::default() }, |yaml| yaml).await;
    for form in FORMS {
        let answer =
            world.alice("GET /api/v1/namespaces/kube-system/configmaps", &[&format!("Accept: {form}")], b"").await;
        let (kind, length) = (answer.header("content-type"), answer.header("content-length"));
        assert_eq!(answer.status, 403, "{form}: {}", answer.text());
        assert!(form.starts_with(kind.unwrap()), "{form} {kind:?}");
        assert_eq!(length, Some(&*answer.body.len().to_string()), "{form}");
        assert!(answer.text().replace('\\', "").contains("User \"alice\" cannot list"), "{form}: {}", answer.text());
    }
}
