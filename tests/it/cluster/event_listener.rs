//! The EventListener program, its triggers, and Doorward as their interceptor.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    sync::Mutex,
};

use rcgen::{KeyPair, PKCS_ED25519};
use serde_json::{Value, json};

use super::{
    programs::{self, Program},
    tekton::{SYSTEM_NAMESPACE, Tekton, pipeline_run},
    world::World,
};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{found, free_port, until},
};

/// A route from GitHub to the EventListener. `{port}` is its port, `{ns}` its namespace.
pub const HOOKS: [(&str, &str); 3] = [
    ("upstreams:\n", "upstreams:\n  - {name: sink, url: 'http://127.0.0.1:{port}'}\n"),
    (
        "routes:\n",
        "routes:
  - name: hooks
    kind: webhook
    hosts: [hooks.test]
    paths: [/github]
    schemes: [webhook]
    webhook: github
    upstream: sink
    event_listener: {namespace: '{ns}', name: build}
",
    ),
    (
        "rules:\n",
        "rules:\n  - {id: hooks, on: {event_listener: build, event: [push]}, who: {webhooks: [github]}, do: allow}\n",
    ),
];

/// Required by every Doorward that issues or verifies assertions.
pub const ASSERTIONS: &str = "assertions: {keys: [{file: assertions}]}\n";

/// A namespace with an EventListener, whose trigger creates a PipelineRun for each delivery that the interceptor
/// confirms.
pub struct EventListener {
    /// Its Doorward is the interceptor, and has a webhook route to the EventListener.
    pub world: World,
    /// The address of the EventListener once it is started.
    pub address: SocketAddr,
    /// The key with which the interceptor verifies assertions. PEM.
    pub assertion_key: String,
    /// Reserves the address until the EventListener takes it. It is not an ephemeral port, which a connection could get
    /// in between.
    held: Mutex<Option<TcpListener>>,
}

/// Which interceptor a trigger asks before it continues.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    Doorward,
    Nobody,
}

impl EventListener {
    /// Prepares everything but the EventListener process.
    pub async fn prepare(asks: Asks) -> Self {
        Self::prepare_with(asks, "").await
    }

    /// With further configuration of Doorward.
    pub async fn prepare_with(asks: Asks, more: &str) -> Self {
        Self::prepare_changed(asks, |yaml| yaml + more, &[]).await
    }

    /// With changes to Doorward's configuration, and with these files for it.
    pub async fn prepare_changed(asks: Asks, change: impl FnOnce(String) -> String, files: &[(&str, &str)]) -> Self {
        Tekton::get().await;
        let held = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
        let port = held.local_addr().unwrap().port();
        let assertion_key = KeyPair::generate_for(&PKCS_ED25519).unwrap().serialize_pem();
        let configure = |yaml: String| {
            // The interceptor has the name in its certificate.
            let mut yaml = yaml.change("hosts: [localhost]", "hosts: [api.test]");
            for (place, more) in HOOKS {
                yaml = yaml.change(place, &more.replace("{port}", &port.to_string()));
            }
            change(
                yaml + "webhooks: [{name: github, sender: github, hold: false, secrets: [{secret: {file: secret}}]}]\n"
                    + "interceptor: {host: localhost}\n"
                    + ASSERTIONS,
            )
        };
        let files = [&[("secret", WEBHOOK_SECRET), ("assertions", assertion_key.as_str())], files].concat();
        let world = World::with_files(configure, &files).await;
        let mut run = pipeline_run("", &json!({}));
        // The runs are counted, not executed.
        run["spec"]["status"] = json!("PipelineRunPending");
        Self { assertion_key, ..Self::furnish(world, held, asks, run).await }
    }

    /// Gives a world an EventListener, to be started at the address reserved for it, whose trigger creates this run for
    /// each delivery.
    pub async fn furnish(world: World, held: TcpListener, asks: Asks, mut run: Value) -> Self {
        let (api, namespace) = (world.api, world.namespace.as_str());
        // An EventListener exits at once if there is no interceptor at all, whether it asks one or not.
        api.create("/apis/triggers.tekton.dev/v1alpha1/clusterinterceptors", &interceptor(&world)).await;
        let (user, repository, interceptors) = match asks {
            Asks::Doorward => (
                "$(extensions.doorward.user)",
                "$(extensions.doorward.delivery.repository_id)",
                json!([{"ref": {"name": namespace, "kind": "ClusterInterceptor"}}]),
            ),
            Asks::Nobody => ("unknown", "$(body.repository.id)", json!([])),
        };
        let params = json!([
            {"name": "user", "value": user},
            {"name": "repository", "value": repository},
            {"name": "commit", "value": "$(body.after)"},
        ]);
        let mut annotations = run["metadata"]["annotations"].take();
        for name in ["user", "repository", "commit"] {
            annotations[format!("test/{name}")] = json!(format!("$(tt.params.{name})"));
        }
        run["metadata"] = json!({"generateName": "build-", "annotations": annotations});
        let template = json!({
            "params": [{"name": "user"}, {"name": "repository"}, {"name": "commit"}],
            "resourcetemplates": [run],
        });
        let trigger = json!({
            "name": "push",
            "interceptors": interceptors,
            "bindings": [{"ref": "who", "kind": "TriggerBinding"}],
            "template": {"ref": "build"},
        });
        for (kind, name, spec) in [
            ("TriggerBinding", "who", json!({"params": params})),
            ("TriggerTemplate", "build", template),
            ("EventListener", "build", json!({"triggers": [trigger]})),
        ] {
            let path =
                format!("/apis/triggers.tekton.dev/v1beta1/namespaces/{namespace}/{}s", kind.to_ascii_lowercase());
            let version = "triggers.tekton.dev/v1beta1";
            let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec});
            api.create(&path, &object).await;
        }
        let address = held.local_addr().unwrap();
        Self { world, address, assertion_key: String::new(), held: Mutex::new(Some(held)) }
    }

    /// Starts the EventListener and waits until it accepts deliveries.
    pub async fn start(&self) -> Program {
        let (api, namespace) = (self.world.api, self.world.namespace.as_str());
        let folder = programs::folder();
        fs::write(folder.join("kubeconfig"), api.kubeconfig()).unwrap();
        let arguments = [
            "-kubeconfig=kubeconfig".to_owned(),
            "-el-name=build".to_owned(),
            format!("-el-namespace={namespace}"),
            format!("-port={}", self.address.port()),
            "-readtimeout=5".to_owned(),
            "-writetimeout=40".to_owned(),
            "-idletimeout=120".to_owned(),
            "-timeouthandler=30".to_owned(),
            "-payload-validation=true".to_owned(),
            // By default it makes five runs a second.
            "-kube-api-qps=1000".to_owned(),
            "-kube-api-burst=1000".to_owned(),
        ];
        drop(self.held.lock().unwrap().take());
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
        until(async || {
            assert!(!sink.has_ended(), "the EventListener ended: {}", sink.log());
            tokio::net::TcpStream::connect(self.address).await.is_ok()
        })
        .await;
        sink
    }

    /// The existing runs.
    pub async fn runs(&self) -> Vec<Value> {
        let path = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", self.world.namespace);
        self.world.api.read(&path).await["items"].as_array().unwrap().clone()
    }

    /// The commits of the existing runs, sorted.
    pub async fn commits(&self) -> Vec<String> {
        let runs = self.runs().await;
        let mut commits: Vec<String> = runs.iter().map(|run| commit(run).to_owned()).collect();
        commits.sort_unstable();
        commits
    }

    /// Waits until there is a run for a commit, and returns it.
    pub async fn run(&self, of: &str) -> Value {
        found(async || self.runs().await.into_iter().find(|run| commit(run) == of)).await
    }
}

fn commit(run: &Value) -> &str {
    run["metadata"]["annotations"]["test/commit"].as_str().unwrap()
}

/// The output of `doorward interceptor`, under a name for this test. There are no Services here, so it uses the
/// address.
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
