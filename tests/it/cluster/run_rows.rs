//! The rows about runs and about ways around Doorward, on the real API server, which would allow everything in the
//! namespace: only Doorward refuses, and refused requests are never forwarded.

use serde_json::{Value, json};

use super::{
    tekton::Tekton,
    world::{GROUP, World},
};
use crate::{
    fixture::{Change, bearer},
    harness::Answer,
};

const JSON: &str = "application/json";
const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const OPERATIONS: &str = "application/json-patch+json";

/// Alice runs one pipeline with one account, Carol cancels, Root does everything that no rule has to name, Dave the
/// same except to end runs; Rita may do one thing that has to be named.
fn rules(yaml: &str) -> String {
    yaml.change(
        "  - {id: dev, on: {routes: [api]}, who: {groups: [dev]}, do: allow}\n",
        "  - {id: look, on: {routes: [api], methods: [GET]}, who: {groups: [dev]}, do: allow}
  - {id: run, on: {routes: [api], run: {does: [create, apply], code: [deploy], service_accounts: [builder], pod_template: false}}, who: {subjects: [alice]}, do: allow}
  - {id: end, on: {routes: [api], run: {does: [cancel]}}, who: {subjects: [carol]}, do: allow}
  - {id: all, on: {routes: [api]}, who: {subjects: [root, dave]}, do: allow}
  - {id: ends-nothing, on: {routes: [api], run: {does: [cancel, start]}}, who: {subjects: [dave]}, do: deny}
  - {id: mint, on: {routes: [api], kubernetes: {resources: ['serviceaccounts/token']}}, who: {subjects: [rita]}, do: allow}
",
    )
}

async fn world() -> World {
    Tekton::get().await;
    let world = World::with(|yaml| rules(&yaml)).await;
    let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP});
    let rights = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    // Only in this namespace, as other tests use the group too.
    world.api.allow(&world.namespace, "everything", &group, &rights).await;
    world
}

async fn ask(world: &World, who: &str, line: &str, media: &str, body: &[u8]) -> Answer {
    let (line, token) = (format!("{line} HTTP/1.1"), bearer(&world.issuer.token(who, &["dev"])));
    world.doorward.send(&[&line, "Host: localhost", &token, &format!("Content-Type: {media}")], body).await
}

/// What users have sent to the API server so far, except reads.
async fn sent(world: &World) -> Vec<String> {
    let last = format!("GET /api/v1/namespaces/{}/configmaps/last", world.namespace);
    assert_eq!(ask(world, "root", &last, JSON, b"").await.status, 404);
    world.event(|event| event["objectRef"]["name"] == "last").await;
    let events = world.audit();
    let changes = events.iter().filter(|event| event["stage"] == "ResponseComplete" && event["verb"] != "get");
    changes.map(|event| format!("{} {}", event["verb"], event["requestURI"])).collect()
}

fn run(name: &str, account: &str, more: &Value) -> Value {
    let mut spec = json!({"pipelineRef": {"name": "deploy"}, "taskRunTemplate": {"serviceAccountName": account}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "metadata": {"name": name}, "spec": spec})
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn yaml(name: &str, pipeline: &str, account: &str) -> String {
    format!(
        "apiVersion: tekton.dev/v1\nkind: PipelineRun\nmetadata: {{name: {name}}}\nspec: {{pipelineRef: {pipeline}, \
         taskRunTemplate: {{serviceAccountName: {account}}}}}\n"
    )
}

/// A name, the line, media type and body of a request, and the status that it must get.
type Row<'r> = (&'r str, &'r str, &'r str, Vec<u8>, u16);

/// Asserts that Alice is refused with these statuses.
async fn assert_refused(world: &World, rows: &[Row<'_>]) {
    for (row, line, media, body, status) in rows {
        let answer = ask(world, "alice", line, media, body).await;
        assert_eq!(answer.status, *status, "{row}: {}", answer.text());
    }
}

/// One test, since every part of it can use the same world.
#[tokio::test]
async fn a_run_is_decided_by_its_content_in_every_form() {
    let world = world().await;
    let runs = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", world.namespace);
    other_accounts_and_code_are_refused(&world, &runs).await;
    bodies_that_others_could_read_differently_are_refused(&world, &runs).await;
    assert_eq!(sent(&world).await, [""; 0]);
    what_is_permitted_is_made_in_each_form(&world, &runs).await;
}

async fn other_accounts_and_code_are_refused(world: &World, runs: &str) {
    let (post, apply) = (format!("POST {runs}"), format!("PATCH {runs}/new?fieldManager=tests"));
    let git = json!({"pipelineRef": {"resolver": "git", "params": [{"name": "url", "value": "https://evil.example/deploy"},
        {"name": "pathInRepo", "value": "deploy"}, {"name": "revision", "value": "main"}]}});
    let of_one_task = json!({"taskRunSpecs": [{"pipelineTaskName": "a", "serviceAccountName": "admin"}]});
    let templated = json!({"taskRunTemplate": {"serviceAccountName": "builder", "podTemplate": {"hostNetwork": true}}});
    assert_refused(
        world,
        &[
            ("attacks:Z22 by apply, as another account", &apply, APPLY, bytes(&run("new", "admin", &json!({}))), 403),
            (
                "attacks:Z22 by apply, as no account",
                &apply,
                APPLY,
                bytes(&json!({"apiVersion": "tekton.dev/v1",
                "kind": "PipelineRun", "metadata": {"name": "new"}, "spec": {"pipelineRef": {"name": "deploy"}}})),
                403,
            ),
            (
                "attacks:Z23 an alias for the account",
                &post,
                "application/yaml",
                yaml("&n admin", "{name: deploy}", "*n").into(),
                403,
            ),
            ("attacks:Z26 another address", &post, JSON, bytes(&run("git", "builder", &git)), 403),
            ("attacks:Z47 the account of one task", &post, JSON, bytes(&run("z47", "builder", &of_one_task)), 403),
            (
                "attacks:Z47 of v1beta1",
                &post.replace("/v1/", "/v1beta1/"),
                JSON,
                bytes(&json!({"apiVersion": "tekton.dev/v1beta1", "kind": "PipelineRun", "metadata": {"name": "z47"},
                    "spec": {"pipelineRef": {"name": "deploy"}, "serviceAccountName": "builder",
                        "taskRunSpecs": [{"pipelineTaskName": "a", "taskServiceAccountName": "admin"}]}})),
                403,
            ),
            ("attacks:Z47 a pod template", &post, JSON, bytes(&run("z47", "builder", &templated)), 403),
            (
                "attacks:Z47 a CustomRun",
                &format!("POST /apis/tekton.dev/v1beta1/namespaces/{}/customruns", world.namespace),
                JSON,
                bytes(
                    &json!({"apiVersion": "tekton.dev/v1beta1", "kind": "CustomRun", "metadata": {"name": "z47"}, "spec": {
                    "customRef": {"apiVersion": "v1", "kind": "Loop", "name": "deploy"}, "serviceAccountName": "admin"}}),
                ),
                403,
            ),
            (
                "attacks:Z48 no account, which is the default one",
                &post,
                JSON,
                bytes(&run("z48", "builder", &json!({"taskRunTemplate": {}}))),
                403,
            ),
            (
                "attacks:Z50 the pipeline itself",
                &format!("PATCH {}", runs.replace("pipelineruns", "pipelines/deploy")),
                MERGE,
                br#"{"spec":{"tasks":[]}}"#.to_vec(),
                403,
            ),
        ],
    )
    .await;
}

async fn bodies_that_others_could_read_differently_are_refused(world: &World, runs: &str) {
    let post = format!("POST {runs}");
    let merged = yaml("y, annotations: &p {name: deploy}", "{<<: *p}", "builder");
    let two = format!("{}---\n{}", yaml("y", "{name: deploy}", "builder"), yaml("y", "{name: deploy}", "admin"));
    let bomb: String = ["ab", "bc", "cd", "de", "ef", "fg"]
        .iter()
        .map(|pair| {
            let (before, at) = pair.split_at(1);
            format!("{at}: &{at} [{}]\n", vec![format!("*{before}"); 10].join(", "))
        })
        .collect();
    let bomb = format!("a: &a [x]\n{bomb}{}", yaml("y", "{name: deploy}", "builder"));
    let twice = "apiVersion: tekton.dev/v1\nkind: PipelineRun\nmetadata: {name: y}\nspec: {pipelineRef: {name: deploy}}\n\
                 spec: {pipelineRef: {name: other}}\n";
    // CBOR's self-described tag (RFC 8949 section 3.4.6), and an empty map.
    let cbor: &[u8] = &[0xd9, 0xd9, 0xf7, 0xa0];
    let spelt_twice = json!({"pipelineRef": {"name": "deploy", "Name": "evil"}});
    let plain = run("z53", "builder", &json!({}));
    assert_refused(
        world,
        &[
            ("attacks:Z23 a merge key", &post, "application/yaml", merged.into(), 400),
            ("attacks:Z23 two documents", &post, "application/yaml", two.into(), 400),
            ("attacks:Z23 aliases of aliases", &post, "application/yaml", bomb.into(), 400),
            ("attacks:Z23 a key twice", &post, "application/yaml", twice.into(), 400),
            ("attacks:Z23 CBOR", &post, "application/cbor", cbor.to_vec(), 415),
            (
                "attacks:Z49 another spelling of the pipeline",
                &post,
                JSON,
                bytes(&run("z49", "builder", &spelt_twice)),
                400,
            ),
            ("attacks:Z53 compressed", &post, "application/json\r\nContent-Encoding: gzip", bytes(&plain), 415),
            ("attacks:Z53 UTF-16", &post, JSON, bytes(&plain).into_iter().flat_map(|byte| [byte, 0]).collect(), 415),
        ],
    )
    .await;
}

async fn what_is_permitted_is_made_in_each_form(world: &World, runs: &str) {
    let post = format!("POST {runs}");
    let made = ask(world, "alice", &post, JSON, &bytes(&run("one", "builder", &json!({})))).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let apply = format!("PATCH {runs}/two?fieldManager=tests");
    let applied = ask(world, "alice", &apply, APPLY, &bytes(&run("two", "builder", &json!({})))).await;
    assert_eq!(applied.status, 201, "{}", applied.text());
    for (name, written, account) in [("plain", "plain", "builder"), ("builder", "&n builder", "*n")] {
        let body = yaml(written, "{name: deploy}", account);
        let made = ask(world, "alice", &post, "application/yaml", body.as_bytes()).await;
        assert_eq!(made.status, 201, "attacks:Z23 {written}: {}", made.text());
        let stored = world.api.read(&format!("{runs}/{name}")).await;
        assert_eq!(
            stored["spec"]["taskRunTemplate"]["serviceAccountName"], "builder",
            "attacks:Z23 {written}: {stored}"
        );
    }
}

#[tokio::test]
async fn the_permission_to_cancel_permits_neither_a_start_nor_another_change() {
    let world = world().await;
    let runs = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", world.namespace);
    let pending = run("waits", "builder", &json!({"status": "PipelineRunPending"})).to_string();
    let made = ask(&world, "root", &format!("POST {runs}"), JSON, pending.as_bytes()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let before = sent(&world).await;
    let patch = format!("PATCH {runs}/waits");
    let cancel = json!({"spec": {"status": "Cancelled"}});
    let both = json!({"spec": {"status": "Cancelled"}, "metadata": {"annotations": {"team": "evil"}}});
    for (row, media, body) in [
        ("attacks:Z24 a start", OPERATIONS, json!([{"op": "remove", "path": "/spec/status"}])),
        ("attacks:Z24 a start, otherwise", MERGE, json!({"spec": {"status": null}})),
        ("attacks:Z24 a cancel with an annotation", MERGE, both),
        (
            "attacks:Z24 the same in two operations",
            OPERATIONS,
            json!([{"op": "replace", "path": "/spec/status", "value": "Cancelled"},
                {"op": "add", "path": "/metadata/annotations", "value": {"team": "evil"}}]),
        ),
    ] {
        let answer = ask(&world, "carol", &patch, media, body.to_string().as_bytes()).await;
        assert_eq!(answer.status, 403, "{row}: {}", answer.text());
    }
    assert_eq!(sent(&world).await, before);
    let cancelled = ask(&world, "carol", &patch, MERGE, cancel.to_string().as_bytes()).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text());
}

/// A user who may change runs but not end them cannot end one along with another change either.
#[tokio::test]
async fn a_deny_of_a_cancel_applies_whatever_else_the_request_changes() {
    let world = world().await;
    let runs = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", world.namespace);
    let pending = run("waits", "builder", &json!({"status": "PipelineRunPending"}));
    let made = ask(&world, "root", &format!("POST {runs}"), JSON, pending.to_string().as_bytes()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let before = sent(&world).await;
    let patch = format!("PATCH {runs}/waits");
    let labels = json!({"labels": {"team": "a"}});
    let label = json!({"op": "add", "path": "/metadata/labels", "value": {"team": "a"}});
    let cancelled = run("waits", "builder", &json!({"status": "Cancelled"}));
    for (what, line, media, body, status) in [
        ("alone", &patch, MERGE, json!({"spec": {"status": "Cancelled"}}), 403),
        ("with a label", &patch, MERGE, json!({"metadata": labels, "spec": {"status": "Cancelled"}}), 403),
        (
            "with a label, in two operations",
            &patch,
            OPERATIONS,
            json!([label, {"op": "replace", "path": "/spec/status", "value": "Cancelled"}]),
            403,
        ),
        (
            "at a pointer that is none",
            &patch,
            OPERATIONS,
            json!([{"op": "replace", "path": "x/spec/status", "value": "Cancelled"}]),
            400,
        ),
        ("by apply", &format!("{patch}?fieldManager=tests&force=true"), APPLY, cancelled, 403),
        (
            "a start by an apply",
            &format!("{patch}?fieldManager=tests"),
            APPLY,
            run("waits", "builder", &json!({})),
            403,
        ),
    ] {
        let answer = ask(&world, "dave", line, media, body.to_string().as_bytes()).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
    }
    assert_eq!(sent(&world).await, before);
    let twin = ask(&world, "dave", &patch, MERGE, json!({"metadata": labels}).to_string().as_bytes()).await;
    assert_eq!(twin.status, 200, "{}", twin.text());
}

/// A token that is created there is used outside Doorward and its audit trail.
#[tokio::test]
async fn even_unrestricted_callers_cannot_get_credentials_for_use_past_doorward() {
    let world = world().await;
    let ns = format!("/api/v1/namespaces/{}", world.namespace);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let token_request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "out", "annotations": {
        "kubernetes.io/service-account.name": "default"}}, "type": "kubernetes.io/service-account-token"});
    let signing = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "out"},
        "spec": {"request": "", "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
    let role =
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "out"}, "rules": []});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "out"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "x"}]}});
    let token = format!("POST {ns}/serviceaccounts/default/token");
    for (row, line, media, body) in [
        ("attacks:Z27 a token", token.clone(), JSON, &token_request),
        ("attacks:Z27 a container in a pod", format!("PATCH {ns}/pods/p/ephemeralcontainers"), MERGE, &debug),
        ("attacks:Z27 a Secret with a token", format!("POST {ns}/secrets"), JSON, &secret),
        (
            "attacks:Z27 a certificate",
            "POST /apis/certificates.k8s.io/v1/certificatesigningrequests".to_owned(),
            JSON,
            &signing,
        ),
        ("attacks:Z27 a role", format!("POST {rbac}/namespaces/{}/roles", world.namespace), JSON, &role),
        ("attacks:Z27 a binding", format!("POST {rbac}/clusterrolebindings"), JSON, &binding),
    ] {
        let answer = ask(&world, "root", &line, media, body.to_string().as_bytes()).await;
        assert_eq!(answer.status, 403, "{row}: {}", answer.text());
    }
    assert_eq!(sent(&world).await, [""; 0]);
    // The counterpart: a user named for it by a rule.
    let made = ask(&world, "rita", &token, JSON, token_request.to_string().as_bytes()).await;
    assert_eq!(made.status, 201, "{}", made.text());
}
