//! References to code, described by what Tekton runs for them. A reference may contain more: Tekton ignores most
//! members beside a name, and the API server drops those that its version of the API does not have.

use std::sync::Arc;

use serde_json::Value;
use url::form_urlencoded;

use super::{document::Unreadable, is_of_tekton_dev, run::named};

/// The place of a reference, which determines what kind of object it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `taskRef` of a TaskRun.
    Task,
    /// `taskRef` of a task of a pipeline, or `customRef` of a CustomRun. Both may refer to something that a custom
    /// controller runs, by an `apiVersion` and a `kind` (`IsCustomTask` in `taskref_types.go`).
    TaskOrCustom,
    /// `pipelineRef`, of a run and of a task of a pipeline.
    Pipeline,
    /// `ref` of a step.
    Step,
}

impl Place {
    /// The kind that a reference in this place refers to, whatever its `kind`.
    const fn kind(self) -> &'static str {
        match self {
            Self::Task | Self::TaskOrCustom => "Task",
            Self::Pipeline => "Pipeline",
            Self::Step => "StepAction",
        }
    }
}

/// A kind from before Pipelines 1.0 (tektoncd/pipeline#8601), which runs the task of that name in the namespace.
const CLUSTER_TASK: &str = "ClusterTask";

/// Everything that Tekton may run for a reference.
pub(super) fn read(reference: &Value, place: Place) -> Result<impl Iterator<Item = Arc<str>>, Unreadable> {
    check(reference, place)?;
    let described = match place {
        Place::Step => describe_action(reference),
        Place::TaskOrCustom => describe_custom(reference).unwrap_or_else(|| describe(reference)),
        Place::Task | Place::Pipeline => describe(reference),
    };
    let is_cluster_task = filled(reference, "kind") == Some(CLUSTER_TASK);
    let task: Option<Arc<str>> = filled(reference, "name").filter(|_| is_cluster_task).map(Arc::from);
    Ok([described].into_iter().chain(task))
}

/// The parameters that name a Secret for a resolver that is part of Tekton (`pkg/resolution/resolver` in
/// tektoncd/pipeline). The resolver uses the Secret in the run's namespace, whoever asks, and sends it to whatever
/// address the other parameters name.
const SECRETS: [(&str, &[&str]); 3] =
    [("bundles", &["secret"]), ("git", &["gitToken", "token"]), ("http", &["http-password-secret"])];

/// Whether a reference names a Secret for its resolver.
pub(super) fn names_secret(reference: &Value) -> bool {
    let Some(resolver) = filled(reference, "resolver") else { return false };
    let params = named(reference.get("params"));
    let mut names = SECRETS.into_iter().filter(|(known, _)| *known == resolver).flat_map(|(_, names)| names);
    names.any(|name| params.get(*name).is_some_and(|value| !value.is_empty()))
}

/// The service account whose Secrets are used to pull a bundle, if the reference names one.
pub(super) fn account(reference: &Value) -> Option<Arc<str>> {
    filled(reference, "resolver").filter(|resolver| *resolver == "bundles")?;
    named(reference.get("params")).remove("serviceAccount").filter(|name| !name.is_empty())
}

/// A member of a reference that is not empty.
fn filled<'v>(reference: &'v Value, name: &str) -> Option<&'v str> {
    reference.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Refuses a reference that Tekton may interpret differently than a reader.
///
/// Without a name and a resolver, Tekton uses the resolver in its setting `default-resolver-type`
/// (`pipelinerun_defaults.go`), which no rule would know. With both, the resolver gets the name as an address
/// (`enable-concise-resolver-syntax`), or a custom controller ignores the resolver. A reference to some other kind is a
/// reference to the task, pipeline or StepAction of that name (`taskref.go`, `pipelineref.go`). So is one to a bundle,
/// except in versions that turn it into a reference to the resolver `bundles` (`convertBundleToResolver`).
fn check(reference: &Value, place: Place) -> Result<(), Unreadable> {
    let text = |name: &str| filled(reference, name);
    let (name, kind, version) = (text("name"), text("kind"), text("apiVersion"));
    let of_tekton = version.is_none_or(is_of_tekton_dev);
    let is_custom = place == Place::TaskOrCustom && version.is_some() && kind.is_some();
    // Controllers other than Tekton's may need no name.
    let says_what = name.is_some() || (is_custom && !of_tekton);
    match (says_what, text("resolver").is_some()) {
        (true, true) => return Err(Unreadable::NamedTwice),
        (false, false) => return Err(Unreadable::Unnamed),
        _ => {}
    }
    let own = place.kind();
    let is_taken = |kind: &str| kind == own || (says_what && (is_custom || (kind == CLUSTER_TASK && own == "Task")));
    let other_kind = kind.filter(|&kind| !is_taken(kind)).map(|kind| ("kind", kind));
    let other_group = version.filter(|_| !of_tekton && !is_custom).map(|version| ("apiVersion", version));
    match other_kind.or(other_group) {
        // It would be for a custom controller, which ignores the resolver.
        Some(_) if is_custom => Err(Unreadable::NamedTwice),
        Some((field, came)) => Err(Unreadable::Ignored { field, came: came.to_owned(), kind: own }),
        None if text("bundle").is_some() => Err(Unreadable::Bundle),
        None => Ok(()),
    }
}

/// Describes the reference of a step, which is to a StepAction unless it names a resolver.
fn describe_action(reference: &Value) -> Arc<str> {
    let described = describe(reference);
    match filled(reference, "resolver") {
        Some(_) => described,
        None => format!("tekton.dev/StepAction/{described}").into(),
    }
}

/// Describes a reference to something that a custom controller runs; `None` if it is to a task or pipeline.
fn describe_custom(reference: &Value) -> Option<Arc<str>> {
    let text = |name: &str| filled(reference, name);
    let (version, kind, name) = (text("apiVersion")?, text("kind")?, text("name").unwrap_or_default());
    match (is_of_tekton_dev(version), kind) {
        // Some controllers run pipelines within pipelines.
        (true, "Task" | "Pipeline") => None,
        (true, _) => Some(format!("tekton.dev/{kind}/{name}").into()),
        (false, _) => Some(format!("{version}/{kind}/{name}").into()),
    }
}

/// Describes the reference of a TaskRun or a PipelineRun as a text that is unique to it. A run that bypassed Doorward
/// may have a reference that Doorward would refuse: for a name, Tekton runs what has that name, whatever else is in the
/// reference. A name beside a resolver comes first in the text, so that a prefix that a rule has for parameters cannot
/// match it.
pub(crate) fn describe(reference: &Value) -> Arc<str> {
    let name = filled(reference, "name").unwrap_or_default();
    if let Some(resolver) = filled(reference, "resolver") {
        // `#` is encoded in parameters, so none begins with it.
        let name = (!name.is_empty()).then(|| form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>());
        let asked = name.map_or_else(|| resolver.to_owned(), |name| format!("{resolver}?#{name}"));
        let params = named(reference.get("params"));
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&params).finish();
        return format!("{asked}?{query}").into();
    }
    match filled(reference, "kind") {
        Some(CLUSTER_TASK) => format!("tekton.dev/{CLUSTER_TASK}/{name}").into(),
        _ => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::run::{Intent, Run, RunKind},
        *,
    };

    fn texts(reference: &Value, place: Place) -> Vec<String> {
        let read = read(reference, place).unwrap_or_else(|error| panic!("{reference} {place:?}: {error}"));
        read.map(|text| text.to_string()).collect()
    }

    /// Regression: each of them evaded a deny of `deploy`, and matched an allow of what the reference says.
    #[test]
    fn fields_that_tekton_ignores_beside_a_name_are_refused() {
        const TASKS: [Place; 2] = [Place::Task, Place::TaskOrCustom];
        const ALL: [Place; 4] = [Place::Task, Place::TaskOrCustom, Place::Pipeline, Place::Step];
        for (reference, places) in [
            (json!({"name": "deploy", "kind": "X"}), &ALL[..]),
            (json!({"name": "deploy", "kind": "task"}), &ALL),
            (json!({"name": "deploy", "kind": "StepAction"}), &TASKS),
            (json!({"name": "deploy", "kind": "Pipeline"}), &TASKS),
            (json!({"name": "deploy", "kind": "Task"}), &[Place::Pipeline, Place::Step]),
            (json!({"name": "deploy", "kind": "ClusterTask"}), &[Place::Pipeline, Place::Step]),
            (json!({"name": "deploy", "apiVersion": "tekton.dev/v1", "kind": "X"}), &[Place::Task, Place::Pipeline]),
            (json!({"name": "deploy", "apiVersion": "example.com/v1"}), &ALL),
            (
                json!({"name": "deploy", "apiVersion": "example.com/v1", "kind": "Wait"}),
                &[Place::Task, Place::Pipeline, Place::Step],
            ),
            (json!({"name": "deploy", "apiVersion": "tekton.dev.example.com/v1", "kind": "Task"}), &[Place::Task]),
            (json!({"resolver": "git", "kind": "X"}), &ALL),
            (json!({"resolver": "git", "kind": "ClusterTask"}), &ALL),
            (json!({"resolver": "git", "apiVersion": "example.com/v1"}), &ALL),
        ] {
            for place in places {
                let refused = read(&reference, *place).map(|_| ());
                assert!(matches!(refused, Err(Unreadable::Ignored { .. })), "{reference} {place:?}: {refused:?}");
            }
        }
        for place in ALL {
            for reference in [
                json!({"name": "deploy", "bundle": "registry.example/ok"}),
                json!({"resolver": "git", "bundle": "registry.example/ok"}),
            ] {
                let refused = read(&reference, place).map(|_| ());
                assert!(matches!(refused, Err(Unreadable::Bundle)), "{reference} {place:?}: {refused:?}");
            }
        }
        let said = Unreadable::Bundle.to_string();
        assert!(said.contains("depending on its version"), "some versions make a resolver of it: {said}");
    }

    /// As `tkn`, the Dashboard and the API server itself write them; the last adds `kind: Task` if there is no kind.
    #[test]
    fn a_reference_is_described_by_what_runs_for_it() {
        let custom = json!({"apiVersion": "example.com/v1", "kind": "Wait", "name": "x"});
        for (reference, place, expected) in [
            (json!({"name": "deploy"}), Place::Task, "deploy"),
            (json!({"name": "deploy", "kind": "Task"}), Place::Task, "deploy"),
            (json!({"name": "deploy", "kind": "Task", "apiVersion": "tekton.dev/v1"}), Place::Task, "deploy"),
            (json!({"name": "deploy", "kind": "", "apiVersion": "", "bundle": ""}), Place::Task, "deploy"),
            (json!({"name": "deploy", "kind": null, "bundle": null, "resolver": null}), Place::Task, "deploy"),
            (json!({"resolver": "git", "kind": "Task"}), Place::Task, "git?"),
            (json!({"name": "deploy", "kind": "Task"}), Place::TaskOrCustom, "deploy"),
            (json!({"name": "deploy", "apiVersion": "tekton.dev/v1beta1"}), Place::TaskOrCustom, "deploy"),
            (json!({"resolver": "git", "kind": "Task", "apiVersion": "tekton.dev/v1"}), Place::TaskOrCustom, "git?"),
            (
                json!({"name": "deploy", "kind": "Pipeline", "apiVersion": "tekton.dev/v1beta1"}),
                Place::TaskOrCustom,
                "deploy",
            ),
            (
                json!({"name": "x", "kind": "Loop", "apiVersion": "tekton.dev/v1"}),
                Place::TaskOrCustom,
                "tekton.dev/Loop/x",
            ),
            (custom, Place::TaskOrCustom, "example.com/v1/Wait/x"),
            (json!({"apiVersion": "example.com/v1", "kind": "Wait"}), Place::TaskOrCustom, "example.com/v1/Wait/"),
            (json!({"name": "release"}), Place::Pipeline, "release"),
            (json!({"name": "release", "kind": "Pipeline", "apiVersion": "tekton.dev/v1"}), Place::Pipeline, "release"),
            (json!({"name": "sign"}), Place::Step, "tekton.dev/StepAction/sign"),
            (json!({"name": "sign", "kind": "StepAction"}), Place::Step, "tekton.dev/StepAction/sign"),
            (json!({"resolver": "git"}), Place::Step, "git?"),
        ] {
            assert_eq!(texts(&reference, place), [expected], "{reference} {place:?}");
        }
    }

    #[test]
    fn what_says_that_it_is_a_cluster_task_is_the_task_of_that_name_too() {
        let reference = json!({"name": "deploy", "kind": "ClusterTask"});
        for place in [Place::Task, Place::TaskOrCustom] {
            assert_eq!(texts(&reference, place), ["tekton.dev/ClusterTask/deploy", "deploy"], "{place:?}");
        }
        let object = json!({"spec": {"taskRef": reference}});
        let run = Run::read(RunKind::TaskRun, Intent::Create, object.as_object().unwrap(), "default").unwrap();
        assert_eq!(run.references, ["deploy", "tekton.dev/ClusterTask/deploy"].map(Arc::from));
    }

    #[test]
    fn references_within_pipelines_and_steps_are_held_to_the_same() {
        let is_read = |kind: RunKind, spec: Value| {
            let object = json!({"spec": spec});
            Run::read(kind, Intent::Create, object.as_object().unwrap(), "default").is_ok()
        };
        let other = json!({"name": "deploy", "kind": "X"});
        let custom = json!({"name": "x", "apiVersion": "example.com/v1", "kind": "Wait"});
        let inline = |task: Value| json!({"pipelineSpec": {"tasks": [{"pipelineSpec": {"finally": [task]}}]}});
        let step = |reference: &Value| json!({"taskSpec": {"steps": [{"ref": reference}]}});
        for (reference, is_good) in [(&other, false), (&custom, true)] {
            let matrix = json!({"taskRef": reference, "matrix": {"params": [{"name": "a", "value": ["b"]}]}});
            assert_eq!(is_read(RunKind::PipelineRun, inline(matrix)), is_good, "{reference}");
            assert_eq!(is_read(RunKind::CustomRun, json!({"customRef": reference})), is_good, "{reference}");
            assert_eq!(is_read(RunKind::CustomRun, json!({"ref": reference})), is_good, "{reference}");
            assert!(!is_read(RunKind::PipelineRun, inline(json!({"pipelineRef": reference}))), "{reference}");
            assert!(!is_read(RunKind::PipelineRun, inline(step(reference))), "{reference}");
            assert!(!is_read(RunKind::PipelineRun, json!({"pipelineRef": reference})), "{reference}");
            assert!(!is_read(RunKind::TaskRun, json!({"taskRef": reference})), "{reference}");
            assert!(!is_read(RunKind::TaskRun, step(reference)), "{reference}");
        }
    }

    #[test]
    fn a_reference_is_described_by_the_name_that_tekton_runs() {
        for (reference, expected) in [
            (json!({"name": "deploy", "kind": "X"}), "deploy"),
            (json!({"name": "deploy", "kind": "Wait", "apiVersion": "example.com/v1"}), "deploy"),
            (json!({"name": "deploy", "bundle": "registry.example/ok"}), "deploy"),
            (json!({"name": "deploy", "kind": "ClusterTask"}), "tekton.dev/ClusterTask/deploy"),
            (json!({"resolver": "git", "kind": "X"}), "git?"),
        ] {
            assert_eq!(&*describe(&reference), expected, "{reference}");
        }
    }

    /// Regression: the error said that Tekton treats it as a reference to a task, but it makes a CustomRun.
    #[test]
    fn a_reference_to_a_custom_controller_has_no_resolver() {
        for version in ["tekton.dev/v1", "example.com/v1"] {
            let reference = json!({"resolver": "git", "apiVersion": version, "kind": "Loop"});
            let refused = read(&reference, Place::TaskOrCustom).map(|_| ());
            assert!(matches!(refused, Err(Unreadable::NamedTwice)), "{reference}: {refused:?}");
            let refused = read(&reference, Place::Task).map(|_| ());
            assert!(matches!(refused, Err(Unreadable::Ignored { .. })), "{reference}: {refused:?}");
        }
    }

    #[test]
    fn a_name_beside_a_resolver_is_described_and_is_not_one_of_its_parameters() {
        let reference = |name: &str| json!({"resolver": "mine", "name": name, "params": [{"name": "a", "value": "b"}]});
        assert_eq!(&*describe(&reference("https://x")), "mine?#https%3A%2F%2Fx?a=b");
        assert_eq!(&*describe(&reference("")), "mine?a=b");
        let object = json!({"spec": {"pipelineRef": reference("https://x")}});
        let read = Run::read(RunKind::PipelineRun, Intent::Create, object.as_object().unwrap(), "default");
        assert!(matches!(read, Err(Unreadable::NamedTwice)), "{read:?}");
    }
}
