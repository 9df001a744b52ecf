//! Rules decide by the content of a request for a run.

use serde_json::{Value, json};

use super::{RUNS, fixture, run, send, sha256};
use crate::fixture::Fixture;

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const OPERATIONS: &str = "application/json-patch+json";

/// A name, who sends the request, its line, media type and body, and the status that it must get.
type Row<'r> = (&'r str, &'r str, &'r str, &'r str, String, u16);

/// Asserts the status of each request, and that only those that succeed reach the upstream.
async fn assert_decided(fixture: &Fixture, rows: &[Row<'_>]) {
    for (what, who, line, media, body, expected) in rows {
        let (answer, seen) = send(fixture, who, line, media, body).await;
        let count = usize::from(*expected == 200);
        assert_eq!((answer.status, seen.len()), (*expected, count), "{what}: {}", answer.text());
    }
}

/// Waits for `count` records that describe a run, and asserts that each has the digest of the body.
async fn records(fixture: &Fixture, count: usize) -> Vec<Value> {
    let records = fixture.doorward.records(count, |record| record["unmapped"]["run"].is_object()).await;
    assert!(records.iter().all(|record| record["unmapped"]["body_sha256"].is_string()), "{records:#?}");
    records
}

/// The run that is permitted, with another value at one place of its `spec`.
fn with(place: &str, value: Value) -> String {
    let mut run = run("deployer");
    run["spec"][place] = value;
    run.to_string()
}

#[tokio::test]
async fn the_accounts_and_the_pod_template_of_a_run_are_decided() {
    let fixture = fixture().await;
    let post = format!("POST {RUNS}");
    let (custom, old) = (
        "POST /apis/tekton.dev/v1beta1/namespaces/ci/customruns",
        "POST /apis/tekton.dev/v1beta1/namespaces/ci/pipelineruns",
    );
    let custom_run = json!({"kind": "CustomRun", "metadata": {"name": "c"}, "spec": {
        "customRef": {"apiVersion": "v1", "kind": "Loop", "name": "deploy"}, "serviceAccountName": "admin"}})
    .to_string();
    let mut templated = run("deployer");
    templated["spec"]["taskRunTemplate"]["podTemplate"] = json!({});
    let deployer = run("deployer").to_string();
    let digest = sha256(&deployer);
    assert_decided(
        &fixture,
        &[
            ("the twin", "runner", &post, JSON, deployer, 200),
            ("another account", "runner", &post, JSON, run("admin").to_string(), 403),
            (
                "attacks:Z47 an account of one task",
                "runner",
                &post,
                JSON,
                with("taskRunSpecs", json!([{"serviceAccountName": "x"}])),
                403,
            ),
            (
                "attacks:Z47 of v1beta1",
                "runner",
                old,
                JSON,
                json!({"kind": "PipelineRun", "spec": {"pipelineRef": {"name": "deploy"}, "serviceAccountName": "deployer",
                    "taskRunSpecs": [{"taskServiceAccountName": "x"}]}})
                .to_string(),
                403,
            ),
            (
                "attacks:Z48 an account where this version has none, so that the default one would run",
                "runner",
                &post,
                JSON,
                json!({"kind": "PipelineRun", "spec": {"pipelineRef": {"name": "deploy"}, "serviceAccountName": "deployer"}})
                    .to_string(),
                400,
            ),
            (
                "attacks:Z48 no account, which is `default`",
                "runner",
                &post,
                JSON,
                with("taskRunTemplate", json!({})),
                403,
            ),
            ("attacks:Z47 a pod template", "runner", &post, JSON, templated.to_string(), 403),
            ("where this version has none", "runner", &post, JSON, with("podTemplate", json!({})), 400),
            ("attacks:Z47 a CustomRun", "runner", custom, JSON, custom_run.clone(), 403),
            ("its twin", "admin", custom, JSON, custom_run, 200),
            ("a deny", "admin", &post, JSON, run("root").to_string(), 403),
            ("its twin", "admin", &post, JSON, run("other").to_string(), 200),
        ],
    )
    .await;
    let records = records(&fixture, 9).await;
    let made = records.iter().find(|record| record["unmapped"]["run"]["does"] == "create").unwrap();
    assert_eq!(made["unmapped"]["run"]["service_accounts"], json!(["deployer"]));
    assert_eq!(made["unmapped"]["body_sha256"], digest, "of what came, whatever was written into it: {made}");
}

#[tokio::test]
async fn the_code_of_a_run_is_decided() {
    let fixture = fixture().await;
    let post = format!("POST {RUNS}");
    let pipeline = "PATCH /apis/tekton.dev/v1/namespaces/ci/pipelines/deploy";
    let of = |pipeline: Value| with("pipelineRef", pipeline);
    assert_decided(
        &fixture,
        &[
            ("code of its own", "runner", &post, JSON, with("pipelineSpec", json!({"tasks": []})), 403),
            ("another pipeline", "runner", &post, JSON, of(json!({"name": "other"})), 403),
            ("a resolver", "runner", &post, JSON, of(json!({"resolver": "git"})), 403),
            ("and a name", "admin", &post, JSON, of(json!({"resolver": "git", "name": "deploy"})), 400),
            (
                "a group of which Tekton takes no notice",
                "admin",
                &post,
                JSON,
                of(json!({"name": "deploy", "apiVersion": "example.com/v1"})),
                400,
            ),
            (
                "a bundle, which the API server drops",
                "admin",
                &post,
                JSON,
                of(json!({"name": "deploy", "bundle": "registry.example/ok"})),
                400,
            ),
            (
                "attacks:Z49 another spelling of the pipeline",
                "runner",
                &post,
                JSON,
                of(json!({"name": "deploy", "Name": "evil"})),
                400,
            ),
            ("attacks:Z50 the pipeline itself", "runner", pipeline, MERGE, r#"{"spec":{"tasks":[]}}"#.into(), 403),
            ("its twin", "admin", pipeline, MERGE, r#"{"spec":{"tasks":[]}}"#.into(), 200),
        ],
    )
    .await;
    records(&fixture, 3).await;
}

#[tokio::test]
async fn a_run_that_others_could_read_differently_is_refused() {
    let fixture = fixture().await;
    let post = format!("POST {RUNS}");
    let deployer = run("deployer").to_string();
    assert_decided(
        &fixture,
        &[
            (
                "attacks:Z53 compressed",
                "runner",
                &post,
                "application/json\r\nContent-Encoding: gzip",
                deployer.clone(),
                415,
            ),
            ("attacks:Z53 UTF-16", "runner", &post, JSON, deployer.chars().flat_map(|c| [c, '\0']).collect(), 415),
            (
                "attacks:Z53 UTF-16, the other way",
                "runner",
                &post,
                JSON,
                deployer.chars().flat_map(|c| ['\0', c]).collect(),
                415,
            ),
            ("another spelling", "admin", &post, JSON, with("ServiceAccountName", json!("root")), 400),
            (
                "attacks:Z49 another spelling of who runs it",
                "admin",
                &post,
                JSON,
                with("ManagedBy", json!("evil")),
                400,
            ),
            ("a name twice", "admin", &post, JSON, deployer.replacen('{', r#"{"kind":"PipelineRun","#, 1), 400),
            ("half of it", "admin", &post, JSON, r#"{"kind":"PipelineRun""#.into(), 400),
            ("no JSON", "admin", &post, "application/vnd.kubernetes.protobuf", "k8s".into(), 415),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_existing_run_may_be_cancelled_but_not_changed() {
    let fixture = fixture().await;
    let (patch, put) = (format!("PATCH {RUNS}/a"), format!("PUT {RUNS}/a"));
    let cancel = r#"[{"op":"replace","path":"/spec/status","value":"Cancelled"}]"#;
    let note = r#"{"metadata":{"annotations":{"team.dev/owner":"bob"}}}"#;
    assert_decided(
        &fixture,
        &[
            ("a cancel", "runner", &patch, OPERATIONS, cancel.into(), 200),
            ("a change", "runner", &patch, OPERATIONS, cancel.replace("status", "timeouts"), 403),
            ("a change, which may bring what is denied", "admin", &patch, MERGE, note.into(), 403),
            ("as a whole", "admin", &put, JSON, run("deployer").to_string(), 403),
        ],
    )
    .await;
    records(&fixture, 1).await;
}
