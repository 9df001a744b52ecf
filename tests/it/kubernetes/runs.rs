//! Requests that create, end or change runs: the caller is written into them, and rules check their content.

mod content;

use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Answer, Recorded, Reply, hex},
};

const RUNS: &str = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns";

/// Alice may run one pipeline with one account, and cancel; Bob may patch and create anything.
async fn fixture() -> Fixture {
    let change = |yaml: String| {
        yaml.change(
            "rules:\n",
            "rules:
  - {id: run, on: {routes: [api], run: {does: [create], code: [deploy], service_accounts: [deployer], pod_template: false}}, who: {issuers: [a], subjects: [runner]}, do: allow}
  - {id: cancel, on: {routes: [api], run: {does: [cancel]}}, who: {issuers: [a], subjects: [runner]}, do: allow}
  - {id: all, on: {routes: [api]}, who: {issuers: [a], subjects: [admin]}, do: allow}
  - {id: no-root, on: {routes: [api], run: {service_accounts: [root]}}, do: deny}
",
        )
    };
    Fixture::with(change, with_bobs).await
}

/// A patch that changes nothing returns the existing object.
fn with_bobs(request: &Recorded) -> Reply {
    match request.line().starts_with(&format!("PATCH {THERE}")) {
        true if request.line().contains("dryRun=All") => Reply::json(200, BOBS),
        false if request.line().contains("dryRun=All") => Reply::json(404, "{}"),
        _ => Reply::json(200, r#"{"ok":true}"#),
    }
}

/// A run of Bob's.
const THERE: &str = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns/there";
const BOBS: &str = r#"{"metadata":{"uid":"u","annotations":{"doorward.dev/requested-by":"bob","team":"b"},
    "labels":{"triggers.tekton.dev/triggers-eventid":"e","app":"x"}}}"#;

async fn send(fixture: &Fixture, subject: &str, line: &str, media: &str, body: &str) -> (Answer, Vec<Recorded>) {
    let _ = fixture.upstream.take();
    let token = bearer(&fixture.a.token(subject, &[]));
    let (line, media) = (format!("{line} HTTP/1.1"), format!("Content-Type: {media}"));
    let answer = fixture.doorward.send(&[&line, "Host: api.test", &token, &media], body.as_bytes()).await;
    (answer, fixture.upstream.take())
}

/// In hex, as in the trail.
fn sha256(text: &str) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()))
}

fn run(account: &str) -> Value {
    json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "PipelineRun",
        "metadata": {
            "generateName": "deploy-",
            "annotations": {"doorward.dev/requested-by": "root", "team": "a"},
            "labels": {"doorward.dev/rule": "forged"},
        },
        "spec": {"pipelineRef": {"name": "deploy"}, "taskRunTemplate": {"serviceAccountName": account}},
    })
}

#[tokio::test]
async fn a_run_names_its_requester_and_clients_cannot_set_the_name() {
    let fixture = fixture().await;
    let post = format!("POST {RUNS}");
    let (answer, seen) = send(&fixture, "runner", &post, "application/json", &run("deployer").to_string()).await;
    assert_eq!((answer.status, seen.len()), (200, 1), "{}", answer.text());
    let sent: Value = serde_json::from_slice(&seen[0].body).unwrap();
    let annotations = &sent["metadata"]["annotations"];
    assert_eq!(annotations["doorward.dev/requested-by"], seen[0].one("impersonate-user"));
    assert_eq!(annotations["doorward.dev/subject"], "runner");
    assert_eq!(annotations["doorward.dev/rule"], "run");
    assert_eq!(annotations["doorward.dev/request-id"], seen[0].one("audit-id"));
    assert_eq!(seen[0].one("impersonate-extra-doorward.dev%2frequest-id"), seen[0].one("audit-id"));
    assert_eq!(annotations["team"], "a");
    assert_eq!(sent["metadata"]["labels"], json!({}));
    assert_eq!(sent["spec"], run("deployer")["spec"]);

    // As YAML, by server-side apply, which is also decided as a create.
    let yaml = "kind: PipelineRun\nmetadata: {name: a}\nspec: {pipelineRef: {name: x}}\n";
    let patch = format!("PATCH {RUNS}/a?fieldManager=me");
    let (answer, seen) = send(&fixture, "admin", &patch, "application/apply-patch+yaml", yaml).await;
    assert_eq!((answer.status, seen.len()), (200, 2), "{}", answer.text());
    let sent: Value = serde_json::from_slice(&seen[1].body).unwrap();
    assert_eq!(sent["metadata"]["annotations"]["doorward.dev/subject"], "admin");
    assert_eq!(sent["metadata"]["resourceVersion"], "1", "nothing comes of it if somebody else was faster");
    let (answer, seen) = send(&fixture, "runner", &patch, "application/apply-patch+yaml", yaml).await;
    assert_eq!((answer.status, seen.len()), (403, 0));
}

#[tokio::test]
async fn an_apply_of_what_is_no_run_is_decided_as_a_create_too_and_recorded_so() {
    let deny = "rules:\n  - {id: no-pods, on: {kubernetes: {verbs: [create], resources: [pods]}}, do: deny}\n";
    let fixture = Fixture::with(|yaml| yaml.change("rules:\n", deny), |_| Reply::json(200, "{}")).await;
    let token = fixture.alice();
    for (media, status) in [("apply-patch+yaml", 403), ("apply-patch+cbor", 403), ("merge-patch+json", 200)] {
        let _ = fixture.upstream.take();
        let line = "PATCH /api/v1/namespaces/ci/pods/mine?fieldManager=me HTTP/1.1";
        let media = format!("Content-Type: application/{media}");
        let answer = fixture.doorward.send(&[line, "Host: api.test", &token, &media], b"{}").await;
        let sent = fixture.upstream.take().len();
        assert_eq!((answer.status, sent), (status, usize::from(status == 200)), "{media}: {}", answer.text());
    }
    let record = fixture.doorward.record(|line| line["unmapped"]["kubernetes"]["apply"] == true).await;
    assert_eq!(record["authorizations"][0]["policy"]["uid"], "no-pods", "{record}");
}

#[tokio::test]
async fn applying_the_run_of_another_person_does_not_take_it_over() {
    let fixture = fixture().await;
    let yaml = "kind: PipelineRun\nmetadata: {name: there, annotations: {team: a, doorward.dev/rule: x}}\nspec: {pipelineRef: {name: x}}\n";
    let patch = format!("PATCH {THERE}?fieldManager=me&force=true");
    let (answer, seen) = send(&fixture, "admin", &patch, "application/apply-patch+yaml", yaml).await;
    assert_eq!((answer.status, seen.len()), (200, 2), "{}", answer.text());
    assert_eq!((seen[0].line(), &*seen[0].body), (&*format!("PATCH {THERE}?dryRun=All HTTP/1.1"), &b"{}"[..]));
    assert_eq!(seen[0].one("content-type"), "application/merge-patch+json");
    assert_eq!(seen[0].one("impersonate-user"), seen[1].one("impersonate-user"), "it is looked for as who applies it");
    assert_eq!(seen[1].line(), format!("{patch} HTTP/1.1"));
    assert_eq!(seen[1].one("content-type"), "application/apply-patch+yaml");
    assert_eq!(
        serde_json::from_slice::<Value>(&seen[1].body).unwrap(),
        json!({
            "kind": "PipelineRun",
            "metadata": {"name": "there", "uid": "u", "annotations": {"doorward.dev/requested-by": "bob", "team": "a"},
                "labels": {"triggers.tekton.dev/triggers-eventid": "e"}},
            "spec": {"pipelineRef": {"name": "x"}},
        })
    );
}

/// Regression: a run that was read and sent back was refused for its unchanged content, and forever once the applied
/// file had no labels any more.
#[tokio::test]
async fn a_run_that_is_read_and_sent_back_keeps_its_origin() {
    const LAST: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let fixture = Fixture::answering(with_bobs).await;
    let token = bearer(&fixture.a.token("alice", &["dev"]));
    let send = async |path: &str, body: Value| {
        let _ = fixture.upstream.take();
        let lines = [
            &*format!("PATCH {path} HTTP/1.1"),
            "Host: api.test",
            &token,
            "Content-Type: application/merge-patch+json",
        ];
        let answer = fixture.doorward.send(&lines, body.to_string().as_bytes()).await;
        (answer, fixture.upstream.take())
    };
    let event = |event: &str| json!({"triggers.tekton.dev/triggers-eventid": event, "app": "y"});
    for (metadata, expected) in [
        (
            json!({"resourceVersion": "7", "annotations": {"doorward.dev/requested-by": "bob"}, "labels": event("e")}),
            json!({"resourceVersion": "7", "uid": "u", "annotations": {}, "labels": {"app": "y"}}),
        ),
        (
            json!({"annotations": {LAST: "{}"}, "labels": null}),
            json!({"uid": "u", "annotations": {LAST: "{}"}, "labels": {"app": null}}),
        ),
    ] {
        let (answer, seen) = send(THERE, json!({"metadata": metadata, "spec": {"status": "Cancelled"}})).await;
        assert_eq!((answer.status, seen.len()), (200, 2), "{}", answer.text());
        assert_eq!(seen[0].line(), format!("PATCH {THERE}?dryRun=All HTTP/1.1"));
        assert_eq!(seen[0].one("impersonate-user"), seen[1].one("impersonate-user"), "it is looked for as who patches");
        let sent: Value = serde_json::from_slice(&seen[1].body).unwrap();
        assert_eq!(sent, json!({"metadata": expected, "spec": {"status": "Cancelled"}}));
    }
    // A name other than the run's, a removed one, and where no run is found, one that would change nothing.
    let asked = |name: Value| json!({"metadata": {"annotations": {"doorward.dev/requested-by": name}}});
    for (name, looks) in [("mallory".into(), 1), (Value::Null, 0)] {
        let (answer, seen) = send(THERE, asked(name)).await;
        let told = (answer.status, answer.reason(), seen.len());
        assert_eq!(told, (403, "policy_denied".to_owned(), looks), "{}", answer.text());
    }
    let (answer, seen) = send(&format!("{RUNS}/away"), asked("mallory".into())).await;
    assert_eq!((answer.status, seen.len()), (200, 2), "{}", answer.text());
    let sent: Value = serde_json::from_slice(&seen[1].body).unwrap();
    assert_eq!(sent, json!({"metadata": {"annotations": {}, "resourceVersion": "1"}}));
}

#[tokio::test]
async fn an_apply_is_not_forwarded_if_the_existing_object_cannot_be_read() {
    for (look, expected, count) in [
        (Reply::json(200, "{}"), 502, 1),
        (Reply::json(401, "{}"), 502, 1),
        // The API server reports the problem itself: the request does not affect an existing run.
        (Reply::json(403, "{}"), 200, 2),
        (Reply::json(429, "{}"), 502, 1),
        (Reply::json(500, "{}"), 502, 1),
    ] {
        let what = format!("{look:?}");
        let script = move |request: &Recorded| match request.line().contains("dryRun=All") {
            true => look.clone(),
            false => Reply::json(200, "{}"),
        };
        let fixture = Fixture::answering(script).await;
        let token = bearer(&fixture.a.token("alice", &["dev"]));
        let lines = [
            &*format!("PATCH {THERE} HTTP/1.1"),
            "Host: api.test",
            &token,
            "Content-Type: application/apply-patch+yaml",
        ];
        let answer = fixture.doorward.send(&lines, b"kind: PipelineRun\nspec: {}\n").await;
        let seen = fixture.upstream.take();
        assert_eq!((answer.status, seen.len()), (expected, count), "{what}: {}", answer.text());
        if let Some(sent) = seen.get(1) {
            let sent: Value = serde_json::from_slice(&sent.body).unwrap();
            assert_eq!(sent["metadata"]["resourceVersion"], "1", "{what}");
        }
    }
}

#[tokio::test]
async fn a_run_that_names_no_account_is_decided_by_the_one_that_tekton_gives() {
    const RULES: &str = "rules:
  - {id: given, on: {routes: [api], run: {does: [create], service_accounts: [builder]}}, who: {issuers: [a], subjects: [given]}, do: allow}
  - {id: named, on: {routes: [api], run: {does: [create], service_accounts: [default]}}, who: {issuers: [a], subjects: [named]}, do: allow}
";
    for (more, allowed, denied) in [(", default_service_account: builder", "given", "named"), ("", "named", "given")] {
        let change = |yaml: String| {
            let known = "credential: {bearer: {file: token}}";
            yaml.change("rules:\n", RULES).change(known, &format!("{known}{more}"))
        };
        let fixture = Fixture::with(change, |_| Reply::json(201, "{}")).await;
        let mut run = run("");
        run["spec"] = json!({"pipelineRef": {"name": "deploy"}});
        for (who, expected) in [(allowed, 201), (denied, 403)] {
            let (answer, seen) =
                send(&fixture, who, &format!("POST {RUNS}"), "application/json", &run.to_string()).await;
            assert_eq!(
                (answer.status, seen.len()),
                (expected, usize::from(expected == 201)),
                "{who} {more}: {}",
                answer.text()
            );
        }
    }
}

#[tokio::test]
async fn attacks_z51_templates_of_runs_do_not_speak_in_our_name() {
    let fixture = fixture().await;
    const PIPELINES: &str = "/apis/tekton.dev/v1/namespaces/ci/pipelines";
    let pipeline = |annotation: &str| json!({"kind": "Pipeline", "metadata": {"name": "p", "annotations": {annotation: "root"}}, "spec": {"tasks": []}});
    for line in [format!("POST {PIPELINES}"), format!("PUT {PIPELINES}/p")] {
        let forged = pipeline("doorward.dev/requested-by").to_string();
        let (answer, seen) = send(&fixture, "admin", &line, "application/json", &forged).await;
        assert_eq!((answer.status, answer.reason(), seen.len()), (403, "policy_denied".to_owned(), 0), "attacks:Z51");
        // The counterpart: another name. What was checked is what is sent.
        let good = pipeline("team");
        let (answer, seen) = send(&fixture, "admin", &line, "application/json", &good.to_string()).await;
        assert_eq!((answer.status, seen.len()), (200, 1), "attacks:Z51: {}", answer.text());
        assert_eq!(serde_json::from_slice::<Value>(&seen[0].body).unwrap(), good);
        let (path, digest) = (line.split_once(' ').unwrap().1, sha256(&good.to_string()));
        let is_noted = |record: &Value| {
            record["http_request"]["url"]["path"] == path && record["unmapped"]["body_sha256"] == digest
        };
        fixture.doorward.record(is_noted).await;
    }
    let template = "/apis/triggers.tekton.dev/v1beta1/namespaces/ci/triggertemplates/t";
    let patch = r#"[{"op":"add","path":"/spec/resourcetemplates/0/metadata/labels/doorward.dev~1rule","value":"x"}]"#;
    let (answer, seen) =
        send(&fixture, "admin", &format!("PATCH {template}"), "application/json-patch+json", patch).await;
    assert_eq!((answer.status, seen.len()), (403, 0), "attacks:Z51");
    // A reader of the other of two fields would see a different object.
    let twice = r#"{"metadata":{"name":"p"},"metadata":{"annotations":{"doorward.dev/rule":"x"}}}"#;
    let (answer, seen) = send(&fixture, "admin", &format!("POST {PIPELINES}"), "application/json", twice).await;
    assert_eq!((answer.status, seen.len()), (400, 0), "attacks:Z51");
}

/// `kubectl --dry-run=server` gets a response as if a run had been created, with a uid that no object ever has.
#[tokio::test]
async fn a_dry_run_records_no_cause() {
    let change = |yaml: String| {
        yaml.change_first("['https://doorward.test']", "['https://doorward.test', 'https://api.test']")
            + "tokens: {exchange: [{issuer: a}]}\n"
    };
    // That the response names no object is logged where the cause would be recorded.
    let mut fixture = Fixture::with(change, |_| Reply::json(201, "{}")).await;
    let (alice, body) = (fixture.alice(), run("deployer").to_string());
    let mut ids = Vec::new();
    for query in ["?dryRun=All", "?fieldManager=a&dryRun=All", ""] {
        let line = format!("POST {RUNS}{query} HTTP/1.1");
        let lines = [&*line, "Host: api.test", &alice, "Content-Type: application/json"];
        let answer = fixture.doorward.send(&lines, body.as_bytes()).await;
        assert_eq!(answer.status, 201, "{query}: {}", answer.text());
        ids.push(answer.header("x-request-id").unwrap().to_owned());
    }
    let told = "the answer to a request that made a run names no object: its tasks get no tokens";
    fixture.doorward.wait_for_log(told).await;
    let log = fixture.doorward.log();
    let kept: Vec<&Value> = log.iter().filter(|line| line["message"] == told).map(|line| &line["request_id"]).collect();
    assert_eq!(kept, [&json!(ids[2])]);
}
