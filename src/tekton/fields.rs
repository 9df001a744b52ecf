//! The fields of a run that select code or identity: that each is spelt in one way, and stands where its version of the API has it. And
//! those of a template that hold what it makes, and who owns that.

use serde_json::{Map, Value};

use super::{
    document::Unreadable,
    run::{RunKind, RunType},
};

pub(super) const V1BETA1: &str = "v1beta1";

/// Refuses service accounts and pod templates where this version of the API has none: the API server drops them there, and the run
/// would have others than those that were decided on.
pub(super) fn check_places(of: RunType<'_>, object: &Map<String, Value>) -> Result<(), Unreadable> {
    const OF_PARTS: [(&str, &str); 2] =
        [("serviceAccountName", "taskServiceAccountName"), ("podTemplate", "taskPodTemplate")];
    let RunType { kind, version } = of;
    let Some(spec) = object.get("spec").and_then(Value::as_object) else { return Ok(()) };
    let is_in_spec = |field: &&str| spec.contains_key(*field);
    let parts = || spec.get("taskRunSpecs").and_then(Value::as_array).into_iter().flatten();
    let is_in_parts = |field: &str| kind == RunKind::PipelineRun && parts().any(|part| part.get(field).is_some());
    let is_old = kind != RunKind::PipelineRun || version == V1BETA1;
    let found = match is_old {
        true => Some("taskRunTemplate").filter(is_in_spec).map(|field| (field, "serviceAccountName")),
        false => {
            ["serviceAccountName", "podTemplate"].into_iter().find(is_in_spec).map(|field| (field, "taskRunTemplate"))
        }
    };
    let misplaced = found.or_else(|| {
        let mut pairs = OF_PARTS.into_iter().map(|(new, old)| if is_old { (new, old) } else { (old, new) });
        pairs.find(|(field, _)| is_in_parts(field))
    });
    misplaced.map_or(Ok(()), |(field, instead)| {
        Err(Unreadable::Misplaced { kind: kind.name(), version: version.to_owned(), field, instead })
    })
}

/// The fields that select code or identity, or hold such fields.
const FIELDS: [&str; 48] = [
    "annotations",
    "apiVersion",
    "bundle",
    "csi",
    "customRef",
    "customSpec",
    "env",
    "envFrom",
    "finally",
    "flexVolume",
    "imagePullSecrets",
    "kind",
    "labels",
    "managedBy",
    "metadata",
    "name",
    "ownerReferences",
    "params",
    "pipelineRef",
    "pipelineSpec",
    "podCertificate",
    "podTemplate",
    "projected",
    "ref",
    "resolver",
    "secret",
    "secretKeyRef",
    "secretName",
    "secretRef",
    "serviceAccountName",
    "serviceAccountToken",
    "sidecars",
    "sources",
    "spec",
    "status",
    "stepTemplate",
    "steps",
    "taskPodTemplate",
    "taskRef",
    "taskRunSpecs",
    "taskRunTemplate",
    "taskServiceAccountName",
    "taskSpec",
    "tasks",
    "value",
    "valueFrom",
    "volumes",
    "workspaces",
];

/// Readers of Go's standard JSON take `ServiceAccountName` for `serviceAccountName`, others do not. A field that is
/// spelt so is refused, and so are parameters of one name, of which readers take one or the other.
pub(super) fn check_spelling(object: &Map<String, Value>) -> Result<(), Unreadable> {
    for (name, value) in object {
        if is_named_by_people(name) {
            continue;
        }
        check_name(name, &FIELDS)?;
        if name == "params" {
            check_names(value)?;
        }
        check_value(value)?;
    }
    Ok(())
}

/// A pointer of more tokens leads deeper than any run or template goes.
const MAX_TOKENS: usize = 128;

/// The same for the way to a place.
pub(super) fn check_pointer(pointer: &str) -> Result<(), Unreadable> {
    check_tokens(pointer, &FIELDS)
}

fn check_tokens(pointer: &str, fields: &[&'static str]) -> Result<(), Unreadable> {
    if pointer.split('/').skip(1).nth(MAX_TOKENS).is_some() {
        return Err(Unreadable::Malformed("a pointer of the patch leads deeper than any run or template goes"));
    }
    let mut named = pointer.split('/').skip(1).take_while(|token| !is_named_by_people(token));
    named.try_for_each(|token| check_name(token, fields))
}

/// The fields of a template, of whatever kind, by which is seen what it makes.
const OF_TEMPLATES: [&str; 7] =
    ["annotations", "labels", "metadata", "ownerReferences", "resourcetemplates", "spec", "template"];

/// Refuses other spellings of them: the API server keeps what it does not know of some kinds, and the webhook of Tekton Triggers, which
/// takes `resourceTemplates` for `resourcetemplates`, then writes it so.
pub(super) fn check_template(value: &Value) -> Result<(), Unreadable> {
    match value {
        Value::Object(object) => {
            let mut members = object.iter().filter(|(name, _)| !is_named_by_people(name));
            members.try_for_each(|(name, value)| {
                check_name(name, &OF_TEMPLATES)?;
                check_template(value)
            })
        }
        Value::Array(values) => values.iter().try_for_each(check_template),
        _ => Ok(()),
    }
}

/// The same for the way to a place in a template.
pub(super) fn check_template_pointer(pointer: &str) -> Result<(), Unreadable> {
    check_tokens(pointer, &OF_TEMPLATES)
}

/// What a person names, and not Tekton, stands in it.
fn is_named_by_people(name: &str) -> bool {
    const NAMED: [&str; 8] =
        ["annotations", "labels", "value", "default", "matchLabels", "nodeSelector", "properties", "volumeAttributes"];
    NAMED.contains(&name)
}

fn check_name(name: &str, fields: &[&'static str]) -> Result<(), Unreadable> {
    if !fields.contains(&name) {
        let folded = fold(name);
        if let Some(known) = fields.iter().copied().find(|known| known.eq_ignore_ascii_case(&folded)) {
            return Err(Unreadable::Case { came: name.to_owned(), known });
        }
    }
    Ok(())
}

pub(super) fn check_value(value: &Value) -> Result<(), Unreadable> {
    match value {
        Value::Object(object) => check_spelling(object),
        Value::Array(values) => values.iter().try_for_each(check_value),
        _ => Ok(()),
    }
}

fn check_names(params: &Value) -> Result<(), Unreadable> {
    let names = params.as_array().into_iter().flatten().filter_map(|param| param.get("name")?.as_str());
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let twice = names.iter().zip(names.iter().skip(1)).find(|(name, next)| name == next);
    twice.map_or(Ok(()), |(name, _)| Err(Unreadable::Twice((*name).to_owned())))
}

/// As `encoding/json` folds: ASCII, and the two letters beyond it that fold into it.
fn fold(name: &str) -> String {
    let letter = |letter| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    name.chars().map(letter).collect()
}
