//! The body of a request that changes a run: which are taken, and how they are read and written.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::{
    apply::Apply,
    attribution::{Attribution, member},
    claims::Claims,
    existing::Fit,
    fields::{V1BETA1, check_places, check_pointer, check_spelling, check_value},
    ownership, patch,
    run::{Intent, Run, RunKind, RunType},
};
use crate::{
    error::{Reason, Rejection},
    issuers::{JsonError, parse_strict_object},
    kubernetes::Attributes,
};

/// The API server takes no larger body.
pub const MAX_BODY: usize = 3 << 20;

/// The body of a request that changes a run: parsed once, and what was parsed is what is decided on, annotated and sent.
#[derive(Debug)]
pub struct Document {
    pub run: Arc<Run>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// The run as the request wants it, and how it came where its service account was written into it.
    Object { object: Map<String, Value>, came: Option<Map<String, Value>> },
    /// A change, in the bytes that it will be sent in, but for what was taken out of it until the run is known.
    Patch { bytes: Bytes, claims: Option<Claims> },
}

/// Why the body cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("a body of type `{0}` cannot be read here")]
    MediaType(String),
    #[error("the body is {0}")]
    Encoded(String),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the body {0}")]
    Json(JsonError),
    #[error("the body is not valid JSON: {0}")]
    Syntax(serde_json::Error),
    #[error("the body is no YAML that is read in one way only: {0}")]
    Yaml(String),
    #[error("the field `{came}` is another than `{known}` to some readers and the same to others")]
    Case { came: String, known: &'static str },
    #[error("the parameter `{0}` is given twice")]
    Twice(String),
    #[error("`{field}` is no field of a {kind} in `{version}`, where the API server drops it; it has `{instead}`")]
    Misplaced { kind: &'static str, version: String, field: &'static str, instead: &'static str },
    #[error("the body is a {came}, and the address asks for a {expected}")]
    Kind { came: String, expected: &'static str },
    #[error(
        "a reference to a pipeline, a task or a step says neither what it is to (`name`) nor how that is found (`resolver`)"
    )]
    Unnamed,
    #[error(
        "a reference to a pipeline, a task or a step says what it is to (`name`, or `apiVersion` and `kind` of a custom controller) and has \
         a `resolver` as well"
    )]
    NamedTwice,
    #[error("a reference has the `{field}` `{came}`, and Tekton takes it for one to a {kind} all the same")]
    Ignored { field: &'static str, came: String, kind: &'static str },
    #[error(
        "a reference has a `bundle`, of which Tekton takes no notice, or which it turns into a resolver, by its version: what is called \
         `name` in the namespace would run, or what the bundle holds"
    )]
    Bundle,
    #[error("the annotations that say who asked for a run cannot be changed")]
    Attribution,
    #[error(
        "what a `copy` or a `move` brings is not seen here, and may hold annotations and labels that say where a run came from"
    )]
    Copied,
    #[error("the label `{0}`, which says where a run came from, cannot be changed")]
    Label(String),
    #[error("the labels of a run cannot be taken away or replaced all at once, as some say where it came from")]
    Labels,
    #[error(
        "a run cannot say that a run of Tekton owns it (`metadata.ownerReferences`), as only those do that Tekton's controller makes"
    )]
    Owner,
    #[error(
        "a trigger template can name no owners of what it makes (`metadata.ownerReferences`), as Tekton would take a run for a part of theirs"
    )]
    TemplateOwner,
    #[error("a name within a resource template has a parameter (`$(`), by which it may become any")]
    Parameter,
    #[error(
        "a change cannot give a run owners (`metadata.ownerReferences`), as Tekton takes one that has the label `tekton.dev/pipelineRun` \
         for a part of whichever run its owner is"
    )]
    Owned,
    #[error("a run cannot be replaced as a whole")]
    Replaced,
}

impl From<Unreadable> for Rejection {
    fn from(error: Unreadable) -> Self {
        let (reason, fix) = match &error {
            Unreadable::MediaType(_) => (
                Reason::UnsupportedMediaType,
                "Send JSON or YAML, and a patch as application/json-patch+json, application/merge-patch+json or \
                 application/apply-patch+yaml.",
            ),
            Unreadable::Encoded(_) => (Reason::UnsupportedMediaType, "Send it in UTF-8, without `Content-Encoding`."),
            Unreadable::Syntax(_) => (
                Reason::BadRequest,
                "Send JSON, or say by the content type that it is YAML: `application/yaml`, or `application/apply-patch+yaml` of an apply.",
            ),
            Unreadable::Json(_) | Unreadable::Yaml(_) => {
                (Reason::BadRequest, "Send JSON, or YAML, that all readers read alike: each name once.")
            }
            Unreadable::Attribution => (
                Reason::PolicyDenied,
                "Leave the annotations that begin with `doorward.dev/` out of the patch, and send only what is to change.",
            ),
            Unreadable::Copied => {
                (Reason::PolicyDenied, "Send a `remove`, and an `add` with the value; or a merge patch with the whole.")
            }
            Unreadable::Label(_) => (Reason::PolicyDenied, "Leave that label out of the patch."),
            Unreadable::Labels => (
                Reason::PolicyDenied,
                "Name each label that is to change, within `metadata.labels` of a merge patch (`kubectl label`), or as \
                 `/metadata/labels/NAME` in a JSON Patch.",
            ),
            Unreadable::Owner => (
                Reason::PolicyDenied,
                "Leave out `metadata.ownerReferences` to objects of `tekton.dev`, and any beside the label `tekton.dev/pipelineRun`.",
            ),
            Unreadable::TemplateOwner => {
                (Reason::PolicyDenied, "Leave `metadata.ownerReferences` out of each of `resourcetemplates`.")
            }
            Unreadable::Parameter => (
                Reason::PolicyDenied,
                "Write the names of fields, labels and annotations out; values may have parameters.",
            ),
            Unreadable::Owned => {
                (Reason::PolicyDenied, "Leave `metadata.ownerReferences` out, or say who owns a run when you make it.")
            }
            Unreadable::Replaced => (Reason::PolicyDenied, "Send a patch (`kubectl apply`, `edit` or `patch`)."),
            Unreadable::NamedTwice => (
                Reason::BadRequest,
                "Leave `resolver` out; or write in `params` alone what the resolver is asked for, such as `url`.",
            ),
            Unreadable::Ignored { .. } => (
                Reason::BadRequest,
                "Leave it out. What a custom controller runs is a task of a pipeline or a CustomRun, whose reference has both `apiVersion` and \
                 `kind`.",
            ),
            Unreadable::Bundle => (
                Reason::BadRequest,
                "Leave `bundle` and `name` out, and write `resolver: bundles` with the `params` `bundle`, `name` and `kind`.",
            ),
            Unreadable::Unnamed => {
                (Reason::BadRequest, "Write its `name`, or the `resolver` that Tekton would take where none is named.")
            }
            _ => (Reason::BadRequest, "Write each field once, as the documentation of Tekton spells it."),
        };
        Self::new(reason, error.to_string()).fix(fix)
    }
}

pub(super) const CREATES: [&str; 3] = ["", "application/json", "application/yaml"];
pub(super) const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Which run a request is about, if it is one whose body must be read.
pub fn concerns(attributes: &Attributes) -> Option<RunKind> {
    RunKind::of(attributes).filter(|_| attributes.brings_object() && attributes.subresource.is_empty())
}

/// Whether a request writes a sub-resource of a run, whose body nobody reads. In `status` it may bring other code than the run refers to:
/// what Tekton finds there, it takes for what it has fetched (`GetPipelineFunc`, `GetTaskFuncFromTaskRun`).
pub fn writes_part(attributes: &Attributes) -> bool {
    RunKind::of(attributes).is_some() && attributes.brings_object() && !attributes.subresource.is_empty()
}

impl Document {
    /// Refuses by the head alone what no body could make good, so that none is waited for.
    pub fn check_head(verb: &str, headers: &HeaderMap) -> Result<(), Unreadable> {
        check_encoding(headers)?;
        match (verb, essence(headers)?) {
            ("update", _) => Err(Unreadable::Replaced),
            ("create", media) if CREATES.contains(&&*media) => Ok(()),
            ("patch", media) if PATCHES.contains(&&*media) => Ok(()),
            (_, media) => Err(Unreadable::MediaType(media)),
        }
    }

    /// Reads the body of a request for which [`concerns`] names the kind of `of`. `default_account` is the service account that Tekton
    /// gives a run which names none.
    pub fn read(
        of: RunType<'_>,
        verb: &str,
        headers: &HeaderMap,
        body: &[u8],
        default_account: &str,
    ) -> Result<Self, Unreadable> {
        Self::check_head(verb, headers)?;
        check_text(body)?;
        let media = essence(headers)?;
        match (verb, media.as_str()) {
            ("create", _) => Self::object(of, Intent::Create, (&media, body), default_account),
            ("patch", "application/apply-patch+yaml") => {
                Self::object(of, Intent::Apply, (&media, body), default_account)
            }
            ("patch", "application/json-patch+json") => {
                let operations = parse_operations(body)?;
                let (intent, statuses) = patch::json_patch(&operations)?;
                operations.iter().try_for_each(check_operation)?;
                let sent = serde_json::to_vec(&operations).unwrap_or_default();
                let body = Body::Patch { bytes: sent.into(), claims: None };
                Ok(Self { run: Run { statuses, ..Run::only(intent) }.into(), body })
            }
            _ => {
                let mut read = parse(&media, body)?;
                check_spelling(&read)?;
                let takes_labels = patch::keep_what_apply_takes_away(&mut read);
                let claims = Claims::of(&mut read, takes_labels);
                let (intent, statuses) = patch::merge_patch(&read)?;
                let sent = serde_json::to_vec(&read).unwrap_or_default();
                let body = Body::Patch { bytes: sent.into(), claims };
                Ok(Self { run: Run { statuses, ..Run::only(intent) }.into(), body })
            }
        }
    }

    fn object(
        of: RunType<'_>,
        intent: Intent,
        (media, body): (&str, &[u8]),
        default_account: &str,
    ) -> Result<Self, Unreadable> {
        let object = parse(media, body)?;
        let (kind, expected) = (of.kind, of.kind.name());
        match object.get("kind") {
            None => {}
            Some(Value::String(came)) if came == expected || (kind == RunKind::CustomRun && came == "Run") => {}
            Some(came) => {
                let came = came.as_str().unwrap_or("no text").to_owned();
                return Err(Unreadable::Kind { came, expected });
            }
        }
        let in_metadata = |name| object.get("metadata").and_then(|metadata| metadata.get(name));
        for (problem, value) in [
            ("`metadata` is no object", object.get("metadata")),
            ("`metadata.annotations` is no object", in_metadata("annotations").filter(|value| !value.is_null())),
            ("`metadata.labels` is no object", in_metadata("labels").filter(|value| !value.is_null())),
            ("`spec` is no object", object.get("spec")),
        ] {
            if value.is_some_and(|value| !value.is_object()) {
                return Err(Unreadable::Malformed(problem));
            }
        }
        check_spelling(&object)?;
        check_places(of, &object)?;
        ownership::check_object(&object)?;
        Ok(Self {
            run: Run::read(kind, intent, &object, default_account)?.into(),
            body: Body::Object { object, came: None },
        })
    }

    /// Whether the patch is refused where the run that is there says otherwise.
    pub(crate) fn is_held_against_run(&self) -> bool {
        matches!(&self.body, Body::Patch { claims: Some(claims), .. } if claims.any())
    }

    /// Writes the service account that a run is decided on into one that leaves it to Tekton, whose setting may be another by then.
    pub(crate) fn name_account(&mut self, of: RunType<'_>, account: &str) {
        let Body::Object { object, came } = &mut self.body else { return };
        if !Run::leaves_account(of.kind, object) {
            return;
        }
        let before = object.clone();
        let part = match of.kind {
            RunKind::PipelineRun if of.version != V1BETA1 => &["spec", "taskRunTemplate"][..],
            _ => &["spec"],
        };
        if let Some(place) = part.iter().try_fold(object, |object, name| member(object, name)) {
            place.insert("serviceAccountName".to_owned(), account.into());
            *came = Some(before);
        }
    }

    /// The bytes to send: of a new run with the annotations that say who asked. Those of an apply make a run. Where they come with a
    /// [`Fit`], they do nothing to a run that is there.
    pub fn into_body(self, attribution: &Attribution<'_>) -> (Bytes, Option<Fit>) {
        match self.body {
            Body::Patch { bytes, claims } => (bytes, claims.map(Fit::Patch)),
            Body::Object { mut object, came } => {
                attribution.write(&mut object);
                let fit = (self.run.intent == Intent::Apply).then(|| Fit::Apply(Apply::of(&mut object, came)));
                (serde_json::to_vec(&object).unwrap_or_default().into(), fit)
            }
        }
    }
}

pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Unreadable> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding.as_bytes() != b"identity" => {
            Err(Unreadable::Encoded(format!("encoded as `{}`", encoding.to_str().unwrap_or("unknown"))))
        }
        _ => Ok(()),
    }
}

/// JSON may come in UTF-16, which the API server does not read (RFC 8259 section 8.1 asks for UTF-8).
pub(super) fn check_text(body: &[u8]) -> Result<(), Unreadable> {
    let is_wide = body.iter().take(2).any(|byte| *byte == 0);
    if is_wide || std::str::from_utf8(body).is_err() {
        return Err(Unreadable::Encoded("not in UTF-8".to_owned()));
    }
    Ok(())
}

/// The media type without parameters, in lower case; empty where none is named, which the API server takes for JSON.
pub(super) fn essence(headers: &HeaderMap) -> Result<String, Unreadable> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(String::new()),
        (Some(value), None) => value.to_str().map_err(|_| Unreadable::MediaType("no text".to_owned()))?,
        _ => return Err(Unreadable::Malformed("the request has two content types")),
    };
    Ok(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// JSON, or where the type says so YAML that is not JSON. What is sent is what was read, so that no other reader gets another meaning
/// out of it.
pub(super) fn parse(media: &str, body: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    match parse_strict_object(body) {
        Err(JsonError::Syntax) if media.ends_with("yaml") => {
            let text = std::str::from_utf8(body).map_err(|_| Unreadable::Json(JsonError::Syntax))?;
            crate::config::parse_yaml(text).map_err(Unreadable::Yaml)
        }
        read => read.map_err(|error| in_json(error, body)),
    }
}

/// Why a body is no JSON, and where. Errors of syntax repeat nothing of the text.
fn in_json(error: JsonError, body: &[u8]) -> Unreadable {
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Err(syntax) if error == JsonError::Syntax => Unreadable::Syntax(syntax),
        _ => Unreadable::Json(error),
    }
}

/// The spelling of what an operation of a JSON Patch names and brings.
fn check_operation(operation: &Value) -> Result<(), Unreadable> {
    patch::pointers(operation).try_for_each(check_pointer)?;
    operation.get("value").map_or(Ok(()), check_value)
}

/// A JSON Patch. Its operations may say a name twice as well, so each is read strictly, within an object.
pub(super) fn parse_operations(body: &[u8]) -> Result<Vec<Value>, Unreadable> {
    let wrapped = [br#"{"operations":"#, body, b"}"].concat();
    let mut read = parse_strict_object(&wrapped).map_err(|error| in_json(error, body))?;
    match read.remove("operations") {
        Some(Value::Array(operations)) if read.is_empty() => Ok(operations),
        _ => Err(Unreadable::Malformed("the patch is no list of operations")),
    }
}

#[cfg(test)]
mod tests;
