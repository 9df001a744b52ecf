//! Tekton's controller, with a scheduler and a kubelet, so that runs complete: KWOK says that pods run, with a real
//! shell behind `exec`.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{
    api_server::ApiServer,
    programs::{self, Program},
};
use crate::harness::{free_port, unique, until};

/// The namespace of Tekton's own configuration.
pub const SYSTEM_NAMESPACE: &str = "tekton-pipelines";

/// KWOK stages in addition to its own: Tekton steps succeed, unless the run has the annotation `hold`. `{folder}` holds
/// the logs of containers; a forwarded port echoes.
const KUBELET: &str = r#"
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: step-complete}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
      - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
      - {key: .status.phase, operator: In, values: [Running]}
      - {key: '.metadata.labels["app.kubernetes.io/managed-by"]', operator: In, values: [tekton-pipelines]}
      - {key: .metadata.annotations.hold, operator: DoesNotExist}
  next:
    statusTemplate: |
      {{ $now := Now }}
      containerStatuses:
      {{ range .spec.containers }}
      - image: {{ .image | Quote }}
        name: {{ .name | Quote }}
        ready: false
        restartCount: 0
        started: false
        state:
          terminated: {exitCode: 0, reason: Completed, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}
      {{ end }}
      phase: Succeeded
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterExec
metadata: {name: all}
spec: {execs: [{local: {}}]}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterLogs
metadata: {name: all}
spec: {logs: [{logsFile: '{folder}/container.log', follow: true}]}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterAttach
metadata: {name: all}
spec: {attaches: [{logsFile: '{folder}/container.log'}]}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: ClusterPortForward
metadata: {name: all}
spec: {forwards: [{command: [cat]}]}
"#;

/// A deleted pod with the annotation `linger` stays until the annotation is removed.
const LINGERS: &str = "{key: .metadata.annotations.linger, operator: DoesNotExist}";

/// The first log line of each container, after the time.
pub const LOGGED: &str = "the first line of a log";

pub struct Tekton {
    kubelet: Program,
    _controller: Program,
    _scheduler: Program,
}

impl Tekton {
    /// The Tekton of this test binary.
    pub async fn get() -> &'static Self {
        static TEKTON: OnceCell<Tekton> = OnceCell::const_new();
        TEKTON.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let api = ApiServer::get().await;
        define(api).await;
        let folder = programs::folder();
        fs::write(folder.join("kubeconfig"), api.kubeconfig()).unwrap();
        let scheduler = Program::start(
            folder,
            "kube-scheduler",
            &["--kubeconfig=kubeconfig", "--leader-elect=false", "--secure-port=0"].map(str::to_owned),
            &[],
        );
        let kubelet = node(api).await;
        // A new node is tainted as not ready, until a controller, which is missing here, removes the taint.
        let untaint = json!({"spec": {"taints": null}});
        assert_eq!(api.ask("PATCH", "/api/v1/nodes/node", Some(&untaint)).await.status, 200);
        let controller = controller(api);
        Self { kubelet, _controller: controller, _scheduler: scheduler }
    }

    /// Adds a line to the log of all containers.
    pub fn log(&self, line: &str) {
        use std::io::Write as _;
        let mut log = fs::OpenOptions::new().append(true).open(self.kubelet.folder().join("container.log")).unwrap();
        writeln!(log, "2026-01-01T00:00:00.000000000Z stdout F {line}").unwrap();
    }
}

/// Creates Tekton's definitions and settings.
pub async fn define(api: &ApiServer) {
    let namespace = json!({"metadata": {"name": SYSTEM_NAMESPACE}});
    api.create("/api/v1/namespaces", &namespace).await;
    for module in ["pipeline", "triggers"] {
        apply(api, &programs::manifests(module)).await;
    }
    for resource in
        ["tekton.dev/v1/pipelineruns", "tekton.dev/v1beta1/customruns", "triggers.tekton.dev/v1beta1/eventlisteners"]
    {
        until(async || api.ask("GET", &format!("/apis/{resource}?limit=1"), None).await.status == 200).await;
    }
}

/// Creates the only node of a cluster, with its kubelet.
pub async fn node(api: &ApiServer) -> Program {
    let kubelet = kubelet(api);
    api.create("/api/v1/nodes", &json!({"metadata": {"name": "node"}})).await;
    kubelet
}

fn kubelet(api: &ApiServer) -> Program {
    let folder = programs::folder();
    api.authority.issue(&["127.0.0.1", "localhost"]).write(&folder, "kubelet");
    fs::write(folder.join("kubeconfig"), api.kubeconfig()).unwrap();
    fs::write(folder.join("container.log"), format!("2026-01-01T00:00:00.000000000Z stdout F {LOGGED}\n")).unwrap();
    let mut config = String::new();
    for stage in ["node-initialize", "pod-ready", "pod-delete"] {
        let file = programs::manifests("kubelet").join(stage).with_extension("yaml");
        config += &format!("---\n{}\n", fs::read_to_string(file).unwrap());
        if stage == "pod-delete" {
            let deleted = "operator: 'Exists'\n";
            assert_eq!(config.matches(deleted).count(), 1);
            config = config.replace(deleted, &format!("{deleted}    - {LINGERS}\n"));
        }
    }
    config += &KUBELET.replace("{folder}", &folder.display().to_string());
    fs::write(folder.join("kwok.yaml"), config).unwrap();
    let port = free_port();
    let arguments = [
        "--kubeconfig=kubeconfig".to_owned(),
        "--config=kwok.yaml".to_owned(),
        "--manage-all-nodes=true".to_owned(),
        "--node-lease-duration-seconds=0".to_owned(),
        "--node-ip=127.0.0.1".to_owned(),
        format!("--node-port={port}"),
        format!("--server-address=127.0.0.1:{port}"),
        "--tls-cert-file=kubelet.pem".to_owned(),
        "--tls-private-key-file=kubelet.key".to_owned(),
    ];
    Program::start(folder, "kwok", &arguments, &[])
}

fn controller(api: &ApiServer) -> Program {
    let folder = programs::folder();
    fs::write(folder.join("kubeconfig"), api.kubeconfig()).unwrap();
    let images = ["entrypoint", "nop", "sidecarlogresults", "workingdirinit", "shell"];
    let mut arguments: Vec<String> = images.iter().map(|name| format!("-{name}-image=images.test/{name}")).collect();
    arguments.extend(
        [
            "-shell-image-win=images.test/shell",
            "-kubeconfig=kubeconfig",
            "-disable-ha",
            "-kube-api-qps=500",
            "-kube-api-burst=500",
        ]
        .map(str::to_owned),
    );
    let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
    let environment = [
        ("SYSTEM_NAMESPACE", SYSTEM_NAMESPACE),
        ("CONFIG_DEFAULTS_NAME", "config-defaults"),
        ("CONFIG_LOGGING_NAME", "config-logging"),
        ("CONFIG_OBSERVABILITY_NAME", "config-observability"),
        ("CONFIG_FEATURE_FLAGS_NAME", "feature-flags"),
        ("CONFIG_LEADERELECTION_NAME", "config-leader-election-controller"),
        ("CONFIG_SPIRE", "config-spire"),
        ("METRICS_DOMAIN", "tekton.dev/pipeline"),
        ("PROBES_PORT", &ports[0]),
        ("PROFILING_PORT", &ports[1]),
        ("METRICS_PROMETHEUS_PORT", &ports[2]),
    ];
    Program::start(folder, "tekton-controller", &arguments, &environment)
}

/// Applies the definitions (`300-*.yaml`) and settings (`config-*.yaml`) in a folder of manifests.
async fn apply(api: &ApiServer, folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("300-") && !name.starts_with("config-") {
            continue;
        }
        let mut object: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        match object["kind"].as_str().unwrap() {
            "CustomResourceDefinition" => {
                // There is no conversion webhook, and only one version of each is used.
                object["spec"].as_object_mut().unwrap().remove("conversion");
                api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &object).await;
            }
            "ConfigMap" => {
                // Two modules have some of the same names; their settings are the defaults in both.
                let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/configmaps");
                let answer = api.ask("POST", &path, Some(&object)).await;
                assert!(matches!(answer.status, 201 | 409), "{name}: {}", answer.text());
            }
            other => panic!("{name} is a {other}"),
        }
    }
}

/// A PipelineRun with one step that runs `true`, and with further annotations.
pub fn pipeline_run(name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "PipelineRun",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"pipelineSpec": {"tasks": [{"name": "only", "taskSpec": {
            "steps": [{"name": "run", "image": "images.test/step", "command": ["true"]}],
        }}]}},
    })
}

/// Creates a pod with one container and waits until it runs. Returns its name.
pub async fn pod(api: &ApiServer, namespace: &str) -> String {
    let name = format!("pod-{}", unique());
    let container = json!({"name": "main", "image": "images.test/main", "stdin": true});
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    api.create(&path, &json!({"metadata": {"name": name}, "spec": {"nodeName": "node", "containers": [container]}}))
        .await;
    until(async || api.read(&format!("{path}/{name}")).await["status"]["phase"] == "Running").await;
    name
}
