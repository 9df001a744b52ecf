//! The fields of a run that select code or identity: checks their spelling, and that they are where their version of
//! the API has them. The same for the fields of a template that contain what it creates, and who owns that.

use serde_json::{Map, Value};

use super::{
    document::Unreadable,
    run::{RunKind, RunType},
};

pub(super) const V1BETA1: &str = "v1beta1";

/// Refuses service accounts and pod templates in places where this version of the API has none: the API server would
/// drop them, and the run would not have those that were decided on.
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

/// The fields that select code or identity, or contain such fields.
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

/// Checks the spelling of fields. Go's standard JSON parser accepts `ServiceAccountName` for `serviceAccountName`,
/// others do not, so such a spelling is refused. So are two parameters of one name, of which parsers use either.
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

/// The maximum number of tokens of a pointer, deeper than any run or template.
const MAX_TOKENS: usize = 128;

/// Checks the spelling of fields in a JSON pointer.
pub(super) fn check_pointer(pointer: &str) -> Result<(), Unreadable> {
    check_tokens(pointer, &FIELDS)
}

fn check_tokens(pointer: &str, fields: &[&'static str]) -> Result<(), Unreadable> {
    if pointer.split('/').skip(1).nth(MAX_TOKENS).is_some() {
        return Err(Unreadable::Malformed("a pointer of the patch is deeper than any run or template"));
    }
    let mut named = pointer.split('/').skip(1).take_while(|token| !is_named_by_people(token));
    named.try_for_each(|token| check_name(token, fields))
}

/// The fields of a template, of any kind, that determine what it creates.
const OF_TEMPLATES: [&str; 7] =
    ["annotations", "labels", "metadata", "ownerReferences", "resourcetemplates", "spec", "template"];

/// Refuses other spellings of the template fields: for some kinds the API server keeps unknown fields, and the webhook
/// of Tekton Triggers, which accepts `resourceTemplates` for `resourcetemplates`, then writes the latter.
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

/// Checks the spelling of template fields in a JSON pointer.
pub(super) fn check_template_pointer(pointer: &str) -> Result<(), Unreadable> {
    check_tokens(pointer, &OF_TEMPLATES)
}

/// Whether the members of this field are named by people and not by Tekton.
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

/// Folds a name as `encoding/json` does: ASCII, and the two other letters that fold into ASCII.
fn fold(name: &str) -> String {
    let letter = |letter| match letter {
        'ſ' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    };
    name.chars().map(letter).collect()
}
