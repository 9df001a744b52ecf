//! The admission policies shipped in `deploy/`, enforced by the real API server.

mod annotations;
mod owners;
mod pods;

use std::fs;

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{
    api_server::ApiServer,
    shipped::{administrator, deploy, find, objects},
    world::Kubectl,
};
use crate::harness::until;

/// From docs/install.md, for a Tekton in another namespace.
const KUSTOMIZATION: &str = "
resources: [admission.yaml]
patches:
  - target: {kind: ValidatingAdmissionPolicy, name: doorward-pods}
    patch: |
      - {op: replace, path: /spec/variables/0/expression, value: \"['admin']\"}
";

/// Enforces the shipped policies in the namespace of a test, where `admin` stands for Tekton's controller and `listed`
/// is the account of an EventListener.
pub(super) async fn enforce(api: &ApiServer, namespace: &str, listed: &str) {
    /// The policies themselves are created once, for all namespaces.
    static MADE: OnceCell<()> = OnceCell::const_new();
    let kubectl = administrator(api, namespace);
    kubectl.write("admission.yaml", &fs::read_to_string(deploy().join("base/admission.yaml")).unwrap());
    kubectl.write("kustomization.yaml", KUSTOMIZATION);
    let shipped = objects(&kubectl.run(&["kustomize", "."]).await);
    let path = "/apis/admissionregistration.k8s.io/v1";
    let all = |kind: &'static str| shipped.iter().filter(move |object| object["kind"] == kind);
    MADE.get_or_init(async || {
        for policy in all("ValidatingAdmissionPolicy") {
            kubectl.write("policy.json", &policy.to_string());
            kubectl.run(&["apply", "-f", "policy.json"]).await;
        }
    })
    .await;
    let mut makers = find(&shipped, "ConfigMap", "doorward-run-makers").clone();
    makers["metadata"]["namespace"] = json!(namespace);
    makers["data"] = json!({"controllers": "admin\n", "event_listeners": format!("{listed}\n")});
    api.create(&format!("/api/v1/namespaces/{namespace}/configmaps"), &makers).await;
    for shipped in all("ValidatingAdmissionPolicyBinding") {
        let mut binding = shipped.clone();
        binding["metadata"]["name"] = json!(format!("{}-{namespace}", shipped["metadata"]["name"].as_str().unwrap()));
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
        binding["spec"]["matchResources"] = json!({"namespaceSelector": selector});
        if let Some(params) = binding["spec"].get_mut("paramRef") {
            params["namespace"] = json!(namespace);
        }
        api.create(&format!("{path}/validatingadmissionpolicybindings"), &binding).await;
    }
}

/// kubectl that bypasses Doorward. RBAC allows it everything, so any refusal is by an admission policy.
pub(super) struct Past(pub Kubectl);

impl Past {
    fn arguments<'a>(who: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--as", who, "--as-group", "system:masters"], arguments].concat()
    }

    /// Writes an object to a file for its commands.
    fn write(&self, file: &str, object: &Value) {
        self.0.write(file, &object.to_string());
    }

    async fn run(&self, who: &str, arguments: &[&str]) -> String {
        self.0.run(&Self::arguments(who, arguments)).await
    }

    pub(super) async fn fails(&self, who: &str, arguments: &[&str]) -> String {
        self.0.fails(&Self::arguments(who, arguments)).await
    }

    /// Waits until an object of `file` is refused with these words: the API server applies policies with a delay, and may
    /// refuse for another reason while it has no parameters for them.
    pub(super) async fn is_refused(&self, who: &str, file: &str, words: &str) {
        let arguments = Self::arguments(who, &["create", "--dry-run=server", "-f", file]);
        until(async || String::from_utf8_lossy(&self.0.output(&arguments).await.stderr).contains(words)).await;
    }
}
