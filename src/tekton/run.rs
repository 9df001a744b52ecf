//! What a request does to a run.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use super::{
    document::Unreadable,
    patch,
    reference::{self, Place},
};
use crate::kubernetes::Attributes;

pub use crate::config::raw::RunIntent as Intent;

impl Intent {
    /// Whether the request may create a run, so that the body is the run that will be executed.
    pub const fn makes_a_run(self) -> bool {
        matches!(self, Self::Create | Self::Apply)
    }

    /// Whether the request changes nothing but the status of the run.
    pub const fn is_status(self) -> bool {
        matches!(self, Self::Cancel | Self::Pause | Self::Start)
    }

    /// The intent of a value of `spec.status` (`pipelinerun_types.go`, `taskrun_types.go`, `customrun_types.go`).
    pub(super) fn of_status(status: Option<&str>) -> Self {
        match status {
            None | Some("") => Self::Start,
            Some("Cancelled" | "CancelledRunFinally" | "StoppedRunFinally" | "TaskRunCancelled" | "RunCancelled") => {
                Self::Cancel
            }
            // For TaskRuns since Pipelines 1.11 (tektoncd/pipeline#9464).
            Some("PipelineRunPending" | "TaskRunPending") => Self::Pause,
            Some(_) => Self::Change,
        }
    }
}

/// The `spec.managedBy` of a run that Tekton executes itself (`pipelinerun_types.go`).
const TEKTON: &str = "tekton.dev/pipeline";

/// The kind of run that a request is about.
#[expect(clippy::enum_variant_names, reason = "what Tekton calls them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    PipelineRun,
    TaskRun,
    CustomRun,
}

impl RunKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::PipelineRun => "PipelineRun",
            Self::TaskRun => "TaskRun",
            Self::CustomRun => "CustomRun",
        }
    }

    /// The kind for the resource of a request, with or without a subresource; `None` for other resources.
    pub fn of(attributes: &Attributes) -> Option<Self> {
        if attributes.api_group != "tekton.dev" {
            return None;
        }
        match attributes.resource.as_str() {
            "pipelineruns" => Some(Self::PipelineRun),
            "taskruns" => Some(Self::TaskRun),
            // `runs` is their name in v1alpha1.
            "customruns" | "runs" => Some(Self::CustomRun),
            _ => None,
        }
    }
}

/// A kind of run, in the version of the API that a request names.
#[derive(Clone, Copy, Debug)]
pub struct RunType<'a> {
    pub kind: RunKind,
    pub version: &'a str,
}

/// What a request says about a run: everything that selects the code to run and the identity to run it as. If the
/// request creates no run, only `intent` and `statuses` are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub intent: Intent,
    /// Further changes of its status, if the request does more than change the status.
    pub statuses: Vec<Intent>,
    /// Everything that is run by reference. The forms are: the name of a pipeline or task in the namespace;
    /// `RESOLVER?name=value&…`, with the parameters of a resolver sorted by name and encoded as in a query;
    /// `GROUP/VERSION/KIND/NAME` for custom controllers; `tekton.dev/StepAction/NAME` for steps in the request;
    /// `tekton.dev/ClusterTask/NAME`, in addition to the name itself, for a reference of that kind; and
    /// `managedBy/NAME` if a controller other than Tekton's is to execute the run.
    pub references: Vec<Arc<str>>,
    /// Whether the request contains the code itself (`pipelineSpec`, `taskSpec`, `customSpec`).
    pub inline: bool,
    /// All service accounts that the run, a part of it or a resolver for it uses, including the one that Tekton uses by
    /// default.
    pub service_accounts: Vec<Arc<str>>,
    /// Whether it configures pods (`podTemplate`): volumes, node, security context.
    pub pod_template: bool,
    /// Whether a workspace, a pod template or code in the request binds a Secret, a credential of the service account
    /// or a volume of a driver, or a reference names a Secret for its resolver.
    pub binds_secrets: bool,
    /// The parameters of the run; lists and objects as JSON.
    pub params: BTreeMap<Arc<str>, Arc<str>>,
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
}

impl Run {
    /// A request with an intent and nothing else.
    pub(crate) fn only(intent: Intent) -> Self {
        Self {
            intent,
            statuses: Vec::new(),
            references: Vec::new(),
            inline: false,
            service_accounts: Vec::new(),
            pod_template: false,
            binds_secrets: false,
            params: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    /// Keeps only the wanted parameters and labels.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.params.retain(|name, _| wanted(name));
        self.labels.retain(|name, _| wanted(name));
    }

    /// Reads the object of a request that may create a run. The run uses `default_account` if it names none.
    pub(crate) fn read(
        kind: RunKind,
        intent: Intent,
        object: &Map<String, Value>,
        default_account: &str,
    ) -> Result<Self, Unreadable> {
        let mut run = Self::only(intent);
        let empty = Map::new();
        let spec = object.get("spec").and_then(Value::as_object).unwrap_or(&empty);
        if intent == Intent::Apply {
            run.statuses = patch::statuses(spec);
        }
        match kind {
            RunKind::PipelineRun => {
                run.code(spec, ("pipelineRef", Place::Pipeline), "pipelineSpec")?;
                for part in spec.get("taskRunSpecs").and_then(Value::as_array).into_iter().flatten() {
                    let Some(part) = part.as_object() else { continue };
                    run.identity(part);
                }
            }
            RunKind::TaskRun => run.code(spec, ("taskRef", Place::Task), "taskSpec")?,
            RunKind::CustomRun => {
                run.code(spec, ("customRef", Place::TaskOrCustom), "customSpec")?;
                run.code(spec, ("ref", Place::TaskOrCustom), "spec")?;
            }
        }
        for part in wholes(kind, spec) {
            run.identity(part);
        }
        let manager = spec.get("managedBy").and_then(Value::as_str).filter(|name| !name.is_empty() && *name != TEKTON);
        run.references.extend(manager.map(|name| Arc::from(format!("managedBy/{name}"))));
        if Self::leaves_account(kind, object) {
            run.service_accounts.push(default_account.into());
        }
        for list in [&mut run.service_accounts, &mut run.references] {
            list.sort_unstable();
            list.dedup();
        }
        run.params = named(spec.get("params"));
        run.labels = texts(object.get("metadata").and_then(|metadata| metadata.get("labels")));
        let workspaces = spec.get("workspaces").and_then(Value::as_array);
        run.binds_secrets |= workspaces.into_iter().flatten().any(binds_secret);
        Ok(run)
    }

    /// Whether the object of a run leaves its service account to Tekton.
    pub(super) fn leaves_account(kind: RunKind, object: &Map<String, Value>) -> bool {
        let spec = object.get("spec").and_then(Value::as_object);
        spec.is_none_or(|spec| wholes(kind, spec).all(|part| accounts(part).next().is_none()))
    }

    /// Reads the code to run, by reference or inline. Inline code contains further references.
    fn code(
        &mut self,
        spec: &Map<String, Value>,
        (field, place): (&str, Place),
        inline: &str,
    ) -> Result<(), Unreadable> {
        if let Some(reference) = spec.get(field).filter(|reference| !reference.is_null()) {
            self.refer(reference, place)?;
        }
        let Some(code) = spec.get(inline).filter(|code| !code.is_null()) else { return Ok(()) };
        self.inline = true;
        let lists = ["tasks", "finally"].into_iter().filter_map(|list| code.get(list)?.as_array()).flatten();
        for task in lists.filter_map(Value::as_object) {
            self.code(task, ("taskRef", Place::TaskOrCustom), "taskSpec")?;
            self.code(task, ("pipelineRef", Place::Pipeline), "pipelineSpec")?;
        }
        let list = |name: &str| code.get(name).and_then(Value::as_array).into_iter().flatten();
        for action in list("steps").filter_map(|step| step.get("ref")).filter(|action| !action.is_null()) {
            self.refer(action, Place::Step)?;
        }
        let mut containers = list("steps").chain(list("sidecars")).chain(code.get("stepTemplate"));
        self.binds_secrets |= list("volumes").any(binds_secret) || containers.any(reads_secret);
        Ok(())
    }

    /// Reads a reference, and what is used to fetch it.
    fn refer(&mut self, reference: &Value, place: Place) -> Result<(), Unreadable> {
        self.references.extend(reference::read(reference, place)?);
        self.binds_secrets |= reference::names_secret(reference);
        self.service_accounts.extend(reference::account(reference));
        Ok(())
    }

    /// Reads the service accounts and pod templates.
    fn identity(&mut self, part: &Map<String, Value>) {
        self.service_accounts.extend(accounts(part).map(Arc::from));
        let templates = ["podTemplate", "taskPodTemplate"].into_iter().filter_map(|name| part.get(name));
        for template in templates.filter(|template| !template.is_null()) {
            self.pod_template = true;
            let volumes = template.get("volumes").and_then(Value::as_array);
            // Tekton adds the `env` of a template to each container.
            self.binds_secrets |= reads_secret(template) || volumes.into_iter().flatten().any(binds_secret);
            let pulls_with = template.get("imagePullSecrets").and_then(Value::as_array);
            self.binds_secrets |= pulls_with.is_some_and(|names| !names.is_empty());
        }
    }
}

/// The parts with the identity of the whole run, in v1 and in v1beta1.
fn wholes(kind: RunKind, spec: &Map<String, Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let template = if kind == RunKind::PipelineRun { spec.get("taskRunTemplate") } else { None };
    template.and_then(Value::as_object).into_iter().chain([spec])
}

fn accounts(part: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let named =
        ["serviceAccountName", "taskServiceAccountName"].into_iter().filter_map(|name| part.get(name)?.as_str());
    named.filter(|name| !name.is_empty())
}

/// Whether a workspace or a volume binds a Secret, a credential of the service account or a volume of a driver.
fn binds_secret(volume: &Value) -> bool {
    let has = |value: &Value, names: &[&str]| names.iter().any(|name| is_set(value.get(name)));
    let sources = volume.get("projected").and_then(|projected| projected.get("sources")?.as_array());
    let projects = |source: &Value| has(source, &["secret", "serviceAccountToken", "podCertificate"]);
    // Many kinds of volumes refer to a Secret: `secret`, and others such as `azureFile`, `iscsi` and `cephfs`.
    let mut kinds = volume.as_object().into_iter().flat_map(Map::values);
    has(volume, &["csi", "flexVolume"])
        || sources.into_iter().flatten().any(projects)
        || kinds.any(|kind| has(kind, &["secretRef", "secretName"]))
}

fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(|value| !value.is_null())
}

/// Whether a container has a variable from a Secret.
fn reads_secret(container: &Value) -> bool {
    let list = |name: &str| container.get(name).and_then(Value::as_array).into_iter().flatten();
    list("env").any(|variable| is_set(variable.get("valueFrom").and_then(|source| source.get("secretKeyRef"))))
        || list("envFrom").any(|source| is_set(source.get("secretRef")))
}

/// Reads a list of `{name, value}` into a map. Names are unique, as a body with a repeated name is refused.
pub(super) fn named(list: Option<&Value>) -> BTreeMap<Arc<str>, Arc<str>> {
    let entries = list.and_then(Value::as_array).into_iter().flatten();
    let pairs = entries.filter_map(|entry| Some((entry.get("name")?.as_str()?, text(entry.get("value")?))));
    pairs.map(|(name, value)| (name.into(), value)).collect()
}

fn texts(object: Option<&Value>) -> BTreeMap<Arc<str>, Arc<str>> {
    let members = object.and_then(Value::as_object).into_iter().flatten();
    members.map(|(name, value)| (name.as_str().into(), text(value))).collect()
}

fn text(value: &Value) -> Arc<str> {
    value.as_str().map_or_else(|| value.to_string().into(), Arc::from)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;

    fn brought(task: &Value) -> Run {
        let object = json!({"spec": {"pipelineSpec": {"finally": [{"taskSpec": task}]}}});
        Run::read(RunKind::PipelineRun, Intent::Create, object.as_object().unwrap(), "default").unwrap()
    }

    /// Otherwise Tekton's default resolver would fetch code that no rule has seen.
    #[test]
    fn a_reference_without_a_name_or_a_resolver_is_refused() {
        let is_read = |kind: RunKind, spec: &Value| {
            let object = json!({"spec": spec});
            Run::read(kind, Intent::Create, object.as_object().unwrap(), "default").is_ok()
        };
        let url = json!({"params": [{"name": "url", "value": "https://evil"}]});
        let custom = json!({"apiVersion": "example.com/v1", "kind": "Wait"});
        for (reference, good) in [
            (url.clone(), false),
            (json!({}), false),
            (json!("x"), false),
            (json!({"name": "", "resolver": ""}), false),
            (json!({"kind": "ClusterTask"}), false),
            (json!({"apiVersion": "example.com/v1"}), false),
            (json!({"apiVersion": "tekton.dev/v1", "kind": "Task"}), false),
            (json!({"bundle": "b"}), false),
            (json!({"bundle": "b", "name": "n"}), false),
            (json!({"name": "n"}), true),
            (json!({"resolver": "git"}), true),
            (json!({"resolver": "mine", "name": "https://anything"}), false),
            (json!({"resolver": "mine", "name": ""}), true),
            (json!(null), true),
        ] {
            let inline = |task: Value| json!({"pipelineSpec": {"tasks": [task]}});
            for (kind, spec) in [
                (RunKind::PipelineRun, json!({"pipelineRef": reference})),
                (RunKind::TaskRun, json!({"taskRef": reference})),
                (RunKind::PipelineRun, inline(json!({"taskRef": reference}))),
                (RunKind::PipelineRun, inline(json!({"pipelineRef": reference}))),
            ] {
                assert_eq!(is_read(kind, &spec), good, "{spec}");
            }
        }
        let inline = json!({"pipelineSpec": {"tasks": [{"taskRef": custom}]}});
        assert!(is_read(RunKind::PipelineRun, &inline), "a custom controller may need no name");
        assert!(!is_read(RunKind::TaskRun, &json!({"taskRef": custom})), "and runs no TaskRun");
        let step = |reference: &Value| json!({"taskSpec": {"steps": [{"ref": reference}]}});
        assert!(!is_read(RunKind::TaskRun, &step(&url)));
        assert!(!is_read(RunKind::TaskRun, &step(&custom)), "steps have no custom controllers");
        assert!(is_read(RunKind::TaskRun, &step(&json!({"name": "n"}))));
        assert!(is_read(RunKind::CustomRun, &json!({"customRef": custom})));
        let resolved = json!({"apiVersion": "example.com/v1", "kind": "Wait", "resolver": "git"});
        assert!(!is_read(RunKind::CustomRun, &json!({"customRef": resolved})), "the controller runs what it will");
    }

    #[test]
    fn steps_of_inline_code_refer_to_code_as_well() {
        let git = json!({"resolver": "git", "params": [{"name": "url", "value": "u"}]});
        let run = brought(&json!({"steps": [{"ref": {"name": "sign"}}, {"ref": git}, {"image": "i"}, {"ref": null}]}));
        assert_eq!(run.references, ["git?url=u", "tekton.dev/StepAction/sign"].map(Arc::from));
    }

    /// Otherwise a cluster that still serves v1alpha1 would create a run that no rule has seen.
    #[test]
    fn each_kind_of_run_is_known_by_its_resource() {
        let of = |path: &str| RunKind::of(&Attributes::parse(&Method::POST, path, None).unwrap());
        for (path, expected) in [
            ("/apis/tekton.dev/v1/namespaces/ci/pipelineruns", Some(RunKind::PipelineRun)),
            ("/apis/tekton.dev/v1/namespaces/ci/taskruns", Some(RunKind::TaskRun)),
            ("/apis/tekton.dev/v1beta1/namespaces/ci/customruns", Some(RunKind::CustomRun)),
            ("/apis/tekton.dev/v1alpha1/namespaces/ci/runs", Some(RunKind::CustomRun)),
            ("/apis/tekton.dev/v1/namespaces/ci/pipelines", None),
            ("/apis/example.com/v1/namespaces/ci/runs", None),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
    }

    /// Otherwise an allow for the code would let callers choose any controller to run it.
    #[test]
    fn a_controller_that_is_to_run_it_is_a_reference_unless_it_is_that_of_tekton() {
        for (manager, expected) in [
            (json!("evil"), &["deploy", "managedBy/evil"][..]),
            (json!("tekton.dev/pipeline"), &["deploy"]),
            (json!(""), &["deploy"]),
        ] {
            let object = json!({"spec": {"pipelineRef": {"name": "deploy"}, "managedBy": manager}});
            let run = Run::read(RunKind::PipelineRun, Intent::Create, object.as_object().unwrap(), "default").unwrap();
            assert_eq!(run.references.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{manager}");
        }
    }

    #[test]
    fn secrets_of_inline_code_and_of_pod_templates_are_bound() {
        let of_key = json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        let whole = json!({"envFrom": [{"secretRef": {"name": "s"}}]});
        let token = json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}});
        let certificate = json!({"name": "v", "projected": {"sources": [{"podCertificate": {"signerName": "s"}}]}});
        let several = json!({"name": "v", "projected": {"sources": [{"configMap": {}}, {"secret": {"name": "s"}}]}});
        let no_secret = json!({"name": "v", "projected": {"sources": [{"configMap": {"name": "c"}}]}});
        let plain = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "s", "key": "k"}}}],
            "envFrom": [{"configMapRef": {"name": "s"}}]});
        for (task, expected) in [
            (json!({"steps": [of_key]}), true),
            (json!({"sidecars": [whole]}), true),
            (json!({"stepTemplate": of_key}), true),
            (json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}), true),
            (json!({"volumes": [{"name": "v", "csi": {"driver": "d"}}]}), true),
            (json!({"volumes": [token]}), true),
            (json!({"volumes": [certificate]}), true),
            (json!({"volumes": [several]}), true),
            (json!({"volumes": [no_secret]}), false),
            (json!({"volumes": [{"name": "v", "flexVolume": {"driver": "d"}}]}), true),
            (json!({"volumes": [{"name": "v", "azureFile": {"shareName": "a", "secretName": "s"}}]}), true),
            (json!({"volumes": [{"name": "v", "iscsi": {"iqn": "i", "secretRef": {"name": "s"}}}]}), true),
            (json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "w", "iscsi": {}}]}), false),
            (json!({"steps": [plain], "volumes": [{"name": "v", "emptyDir": {}}]}), false),
            (json!({"steps": "x", "volumes": null}), false),
        ] {
            assert_eq!(brought(&task).binds_secrets, expected, "{task}");
        }
        let mounted = json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]});
        let unbound = json!({"env": plain["env"], "volumes": [{"name": "v", "emptyDir": {}}]});
        let pulled = |names: Value| json!({"imagePullSecrets": names});
        for (template, expected) in [
            (of_key, true),
            (mounted, true),
            (json!({"volumes": [certificate]}), true),
            (json!({"volumes": [several]}), true),
            (json!({"volumes": [no_secret]}), false),
            (pulled(json!([{"name": "s"}])), true),
            (pulled(json!([])), false),
            (unbound, false),
            (json!(null), false),
        ] {
            for spec in [
                json!({"podTemplate": template}),
                json!({"taskRunTemplate": {"podTemplate": template}}),
                json!({"taskRunSpecs": [{"podTemplate": template}]}),
                json!({"taskRunSpecs": [{"taskPodTemplate": template}]}),
            ] {
                let object = json!({"spec": spec});
                let run = Run::read(RunKind::PipelineRun, Intent::Create, object.as_object().unwrap(), "default");
                assert_eq!(run.unwrap().binds_secrets, expected, "a pod template: {spec}");
            }
        }
        for (workspace, expected) in [(certificate, true), (several, true), (no_secret, false)] {
            let object = json!({"spec": {"workspaces": [workspace]}});
            let run = Run::read(RunKind::TaskRun, Intent::Create, object.as_object().unwrap(), "default").unwrap();
            assert_eq!(run.binds_secrets, expected, "a workspace: {object}");
        }
    }

    /// The resolver sends the Secret to the address in the same reference, before anything is fetched.
    #[test]
    fn a_reference_that_names_a_secret_to_its_resolver_binds_it() {
        let by = |resolver: &str, name: &str, value: &str| json!({"resolver": resolver, "params": [{"name": "url", "value": "u"}, {"name": name, "value": value}]});
        for (reference, expected) in [
            (by("git", "token", "s"), true),
            (by("git", "gitToken", "s"), true),
            (by("http", "http-password-secret", "s"), true),
            (by("bundles", "secret", "s"), true),
            (by("git", "token", "$(params.s)"), true),
            (by("git", "token", ""), false),
            (by("git", "revision", "main"), false),
            (by("mine", "token", "s"), false),
            (json!({"name": "token", "params": [{"name": "token", "value": "s"}]}), false),
        ] {
            let object = json!({"spec": {"pipelineRef": reference}});
            let run = Run::read(RunKind::PipelineRun, Intent::Create, object.as_object().unwrap(), "default").unwrap();
            assert_eq!(run.binds_secrets, expected, "{reference}");
            let step = json!({"steps": [{"ref": reference}]});
            assert_eq!(brought(&step).binds_secrets, expected, "a step: {reference}");
        }
    }

    #[test]
    fn a_bundle_is_pulled_with_the_secrets_of_the_account_that_its_reference_names() {
        let by = |resolver: &str, account: &str| {
            let params = json!([{"name": "serviceAccount", "value": account}]);
            let object =
                json!({"spec": {"serviceAccountName": "own", "taskRef": {"resolver": resolver, "params": params}}});
            let run = Run::read(RunKind::TaskRun, Intent::Create, object.as_object().unwrap(), "default").unwrap();
            run.service_accounts.join(" ")
        };
        assert_eq!([by("bundles", "puller"), by("bundles", ""), by("mine", "puller")], ["own puller", "own", "own"]);
    }
}
