//! The real EventListener behind a webhook route, which asks Doorward's interceptor what it may do.

use std::fs;

use serde_json::{Value, json};

use super::{
    programs::{self, Program},
    tekton::{SYSTEM_NAMESPACE, Tekton},
    world::World,
};
use crate::harness::{Answer, Raw, free_port, request, unique, within};

const SECRET: &str = "a webhook secret of the tests";

/// A namespace with an EventListener whose trigger makes a PipelineRun of each delivery.
struct Listener {
    world: World,
    address: std::net::SocketAddr,
    _sink: Program,
}

impl Listener {
    async fn start() -> Self {
        Tekton::get().await;
        let port = free_port();
        let world = World::with(|yaml| {
            // The interceptor has the name that the certificate is for.
            yaml.replace("hosts: [localhost]", "hosts: [api.test]")
                .replace("upstreams:\n", &format!("webhooks:\n  - {{name: github, sender: github, hold: false, secrets: [{{secret: {{file: secret}}}}]}}\nupstreams:\n  - {{name: sink, url: 'http://127.0.0.1:{port}'}}\n"))
                .replace("routes:\n", "routes:\n  - {name: hooks, kind: webhook, hosts: [hooks.test], paths: [/github], schemes: [webhook], webhook: github, upstream: sink, event_listener: {namespace: '{ns}', name: build}}\n")
                .replace("rules:\n", "rules:\n  - {id: hooks, on: {event_listener: build, event: [push]}, who: {webhooks: [github]}, do: allow}\n")
                + "interceptor: {host: localhost}\n"
        })
        .await;
        let (api, namespace) = (world.api, world.namespace.as_str());
        api.create("/apis/triggers.tekton.dev/v1alpha1/clusterinterceptors", &interceptor(&world)).await;
        let triggers = format!("/apis/triggers.tekton.dev/v1beta1/namespaces/{namespace}");
        let of = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "triggers.tekton.dev/v1beta1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        let params = json!([
            {"name": "user", "value": "$(extensions.doorward.user)"},
            {"name": "repository", "value": "$(extensions.doorward.delivery.repository_id)"},
            {"name": "commit", "value": "$(body.after)"},
        ]);
        api.create(&format!("{triggers}/triggerbindings"), &of("TriggerBinding", "who", json!({"params": params})))
            .await;
        let annotations = json!({
            "test/user": "$(tt.params.user)",
            "test/repository": "$(tt.params.repository)",
            "test/commit": "$(tt.params.commit)",
        });
        let mut run = super::tekton::pipeline_run("", &annotations);
        run["metadata"] = json!({"generateName": "build-", "annotations": annotations});
        let template = json!({
            "params": [{"name": "user"}, {"name": "repository"}, {"name": "commit"}],
            "resourcetemplates": [run],
        });
        api.create(&format!("{triggers}/triggertemplates"), &of("TriggerTemplate", "build", template)).await;
        let trigger = json!({
            "name": "push",
            "interceptors": [{"ref": {"name": namespace, "kind": "ClusterInterceptor"}}],
            "bindings": [{"ref": "who", "kind": "TriggerBinding"}],
            "template": {"ref": "build"},
        });
        let listener = of("EventListener", "build", json!({"triggers": [trigger]}));
        api.create(&format!("{triggers}/eventlisteners"), &listener).await;

        let folder = programs::folder();
        fs::write(folder.join("kubeconfig"), api.kubeconfig()).unwrap();
        let arguments = [
            "-kubeconfig=kubeconfig".to_owned(),
            "-el-name=build".to_owned(),
            format!("-el-namespace={namespace}"),
            format!("-port={port}"),
            "-readtimeout=5".to_owned(),
            "-writetimeout=40".to_owned(),
            "-idletimeout=120".to_owned(),
            "-timeouthandler=30".to_owned(),
            "-payload-validation=true".to_owned(),
        ];
        let metrics = free_port().to_string();
        let environment = [
            ("SYSTEM_NAMESPACE", SYSTEM_NAMESPACE),
            ("NAMESPACE", namespace),
            ("NAME", "build"),
            ("CONFIG_LOGGING_NAME", "config-logging"),
            ("CONFIG_OBSERVABILITY_NAME", "config-observability"),
            ("METRICS_PROMETHEUS_PORT", &metrics),
            ("K_OBSERVABILITY_CONFIG", r#"{"metrics": {"protocol": "prometheus"}}"#),
        ];
        let sink = Program::start(folder, "eventlistenersink", &arguments, &environment);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        within(async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                assert!(!sink.has_ended(), "the EventListener ended: {}", sink.log());
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await;
        Self { world, address, _sink: sink }
    }

    /// Sends a push of a commit through Doorward, signed with this secret.
    async fn deliver(&self, commit: &str, secret: &str) -> Answer {
        let body = body(commit);
        let signature = signature(secret, &body);
        let (delivery, signature) =
            (format!("X-GitHub-Delivery: {}", unique()), format!("X-Hub-Signature-256: sha256={signature}"));
        let lines = [
            "POST /github HTTP/1.1",
            "Host: hooks.test",
            "Content-Type: application/json",
            "X-GitHub-Event: push",
            &delivery,
            &signature,
        ];
        self.world.doorward.send(&lines, body.as_bytes()).await
    }

    /// Waits until there is a run of a commit, and gives it.
    async fn run(&self, commit: &str) -> Value {
        within(async {
            loop {
                if let Some(run) =
                    self.runs().await.into_iter().find(|run| run["metadata"]["annotations"]["test/commit"] == commit)
                {
                    return run;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await
    }

    async fn runs(&self) -> Vec<Value> {
        let path = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", self.world.namespace);
        self.world.api.read(&path).await["items"].as_array().unwrap().clone()
    }
}

/// What `doorward interceptor` prints, under a name of the test. There are no Services here, so it leads to the address.
fn interceptor(world: &World) -> Value {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["interceptor", "--ca"])
        .arg(world.doorward.dir().join("ca.pem"))
        .output()
        .unwrap();
    let mut object: Value = serde_json::from_slice(&output.stdout).unwrap();
    object["metadata"]["name"] = json!(world.namespace);
    let client = object["spec"]["clientConfig"].as_object_mut().unwrap();
    let service = client.remove("service").unwrap();
    let port = world.doorward.address("secure").port();
    client.insert("url".to_owned(), json!(format!("https://localhost:{port}/{}", service["path"].as_str().unwrap())));
    object
}

fn body(commit: &str) -> String {
    json!({
        "ref": "refs/heads/main",
        "before": "0",
        "after": commit,
        "commits": [],
        "repository": {"id": 1234, "full_name": "acme/app", "owner": {"login": "acme"}},
        "sender": {"id": 7, "login": "octocat"},
    })
    .to_string()
}

fn signature(secret: &str, body: &str) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    aws_lc_rs::hmac::sign(&key, body.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_signed_delivery_becomes_a_run_and_no_other_does() {
    let mut listener = Listener::start().await;
    let taken = listener.deliver("first", SECRET).await;
    assert_eq!(taken.status, 202, "{}", taken.text());
    let event = taken.json()["eventID"].as_str().unwrap().to_owned();
    let run = listener.run("first").await;
    assert_eq!(run["metadata"]["labels"]["triggers.tekton.dev/triggers-eventid"], event);
    // What the interceptor vouched for, through the TriggerBinding.
    assert_eq!(run["metadata"]["annotations"]["test/user"], "webhook:github:repo:1234");
    assert_eq!(run["metadata"]["annotations"]["test/repository"], "1234");
    within(async {
        while !listener.world.doorward.audit().iter().any(|record| record["unmapped"]["event_id"] == event) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;

    assert_eq!(listener.deliver("forged", "another secret").await.status, 401);
    // The EventListener takes what comes past Doorward, and says 202; its trigger asks, and stops.
    let past = body("past");
    let signature = format!("X-Hub-Signature-256: sha256={}", signature(SECRET, &past));
    let lines = ["POST / HTTP/1.1", "Host: el", "Content-Type: application/json", "X-GitHub-Event: push", &signature];
    let mut raw = Raw::connect(listener.address).await;
    raw.send(request(&lines, past.as_bytes())).await;
    assert_eq!(raw.answer().await.status, 202);
    let stopped = listener.world.doorward.wait_for_log("a trigger was stopped").await;
    assert!(stopped["why"].as_str().unwrap().contains("past Doorward"), "{stopped}");
    assert_eq!(stopped["trigger"], format!("namespaces/{}/triggers/push", listener.world.namespace));

    assert_eq!(listener.deliver("last", SECRET).await.status, 202);
    listener.run("last").await;
    let runs = listener.runs().await;
    let mut commits: Vec<&str> =
        runs.iter().filter_map(|run| run["metadata"]["annotations"]["test/commit"].as_str()).collect();
    commits.sort_unstable();
    assert_eq!(commits, ["first", "last"]);
}
