//! The body of a request that changes a run: which types are accepted, and how they are read and written.

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

/// The API server accepts no larger body.
pub const MAX_BODY: usize = 3 << 20;

/// The body of a request that changes a run. It is parsed once, and the parsed value is decided, annotated and sent.
#[derive(Debug)]
pub struct Document {
    pub run: Arc<Run>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// The run as requested. `came` is the object before Doorward wrote a service account into it.
    Object { object: Map<String, Value>, came: Option<Map<String, Value>> },
    /// A change, in the bytes to send, without the claims that are checked once the run is known.
    Patch { bytes: Bytes, claims: Option<Claims> },
}

/// Why a body is refused.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("{}", of_media_type(.0))]
    MediaType(String),
    #[error("the body is {0}")]
    Encoded(String),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the body {0}")]
    Json(JsonError),
    #[error("the body is not valid JSON: {0}")]
    Syntax(serde_json::Error),
    #[error("the body is not valid, unambiguous YAML: {0}")]
    Yaml(String),
    #[error("the field `{came}` is the same as `{known}` for some parsers and another field for others")]
    Case { came: String, known: &'static str },
    #[error("the parameter `{0}` is given twice")]
    Twice(String),
    #[error("`{field}` is not a field of a {kind} in `{version}`, and the API server would drop it; use `{instead}`")]
    Misplaced { kind: &'static str, version: String, field: &'static str, instead: &'static str },
    #[error("the body is a {came}, but the path is that of a {expected}")]
    Kind { came: String, expected: &'static str },
    #[error("a reference to a pipeline, a task or a step has neither a `name` nor a `resolver`")]
    Unnamed,
    #[error(
        "a reference to a pipeline, a task or a step has both a name (`name`, or `apiVersion` and `kind` for a custom controller) and a \
         `resolver`"
    )]
    NamedTwice,
    #[error("a reference has the `{field}` `{came}`, but Tekton treats it as a reference to a {kind}")]
    Ignored { field: &'static str, came: String, kind: &'static str },
    #[error(
        "a reference has a `bundle`, which Tekton ignores or turns into a resolver, depending on its version: it would run either what has \
         the `name` in the namespace, or what is in the bundle"
    )]
    Bundle,
    #[error("the annotations that say who asked for a run cannot be changed")]
    Attribution,
    #[error(
        "Doorward cannot see what a `copy` or a `move` writes, which may be annotations and labels with the origin of a run"
    )]
    Copied,
    #[error("the label `{0}`, which says where a run came from, cannot be changed")]
    Label(String),
    #[error("the labels of a run cannot be removed or replaced as a whole, as some of them contain its origin")]
    Labels,
    #[error(
        "a run cannot say that a run of Tekton owns it (`metadata.ownerReferences`), as only runs that Tekton's controller creates do"
    )]
    Owner,
    #[error(
        "a trigger template cannot name owners for what it creates (`metadata.ownerReferences`), as Tekton would treat a run as part of theirs"
    )]
    TemplateOwner,
    #[error("a name within a resource template contains a parameter (`$(`), so it could become any name")]
    Parameter,
    #[error(
        "a change cannot give a run owners (`metadata.ownerReferences`), as Tekton treats a run with the label `tekton.dev/pipelineRun` \
         as part of whichever run owns it"
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
                "send JSON or YAML, and a patch as application/json-patch+json, application/merge-patch+json or \
                 application/apply-patch+yaml",
            ),
            Unreadable::Encoded(_) => (
                Reason::UnsupportedMediaType,
                "send it in UTF-8, without `Content-Encoding` and without a byte order mark",
            ),
            Unreadable::Syntax(_) => (
                Reason::BadRequest,
                "send JSON, or set the content type for YAML: `application/yaml`, or `application/apply-patch+yaml` for an apply",
            ),
            Unreadable::Json(JsonError::NotAnObject) => (
                Reason::BadRequest,
                "send one object; the content type for a list of operations, a JSON Patch, is `application/json-patch+json`",
            ),
            Unreadable::Kind { .. } => (Reason::BadRequest, "send each object alone, to the path of its own kind"),
            Unreadable::Malformed(_) => (Reason::BadRequest, "correct that, and send it again"),
            Unreadable::Json(_) | Unreadable::Yaml(_) => {
                (Reason::BadRequest, "send JSON or YAML that is unambiguous: each name only once")
            }
            Unreadable::Attribution => (
                Reason::PolicyDenied,
                "leave out the annotations that begin with `doorward.dev/`, and send in a patch only the fields to change",
            ),
            Unreadable::Copied => (
                Reason::PolicyDenied,
                "send a `remove` and an `add` with the value, or a merge patch with the complete value",
            ),
            Unreadable::Label(_) => (Reason::PolicyDenied, "leave that label out of the patch"),
            Unreadable::Labels => (
                Reason::PolicyDenied,
                "name each label to change, in `metadata.labels` of a merge patch (`kubectl label`) or as `/metadata/labels/NAME` in a \
                 JSON Patch",
            ),
            Unreadable::Owner => (
                Reason::PolicyDenied,
                "leave out `metadata.ownerReferences` to objects of `tekton.dev`, and all of them if there is a label `tekton.dev/pipelineRun`",
            ),
            Unreadable::TemplateOwner => {
                (Reason::PolicyDenied, "leave `metadata.ownerReferences` out of each of `resourcetemplates`")
            }
            Unreadable::Parameter => (
                Reason::PolicyDenied,
                "write the names of fields, labels and annotations without parameters; values may contain them",
            ),
            Unreadable::Owned => (
                Reason::PolicyDenied,
                "leave `metadata.ownerReferences` out, or set the owners when you create the run",
            ),
            Unreadable::Replaced => (Reason::PolicyDenied, "send a patch (`kubectl apply`, `edit` or `patch`)"),
            Unreadable::NamedTwice => (
                Reason::BadRequest,
                "leave `resolver` out, or put what the resolver needs, such as `url`, into `params` only",
            ),
            Unreadable::Ignored { .. } => (
                Reason::BadRequest,
                "leave it out; to use a custom controller, write a task of a pipeline or a CustomRun whose reference has both `apiVersion` \
                 and `kind`",
            ),
            Unreadable::Bundle => (
                Reason::BadRequest,
                "leave `bundle` and `name` out, and write `resolver: bundles` with the `params` `bundle`, `name` and `kind`",
            ),
            Unreadable::Unnamed => {
                (Reason::BadRequest, "set its `name`, or the `resolver` that Tekton would use by default")
            }
            _ => (Reason::BadRequest, "write each field once, spelled as in the Tekton documentation"),
        };
        Self::new(reason, error.to_string()).fix(fix)
    }
}

fn of_media_type(media: &str) -> String {
    match media {
        "" => "the body has no content type".to_owned(),
        media => format!("a body of type `{media}` cannot be read here"),
    }
}

/// The byte order mark in UTF-8, with which some programs begin a file. JSON has none (RFC 8259 section 8.1).
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) const CREATES: [&str; 3] = ["", "application/json", "application/yaml"];
pub(super) const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The kind of run that a request is about, if its body must be read.
pub fn concerns(attributes: &Attributes) -> Option<RunKind> {
    RunKind::of(attributes).filter(|_| attributes.brings_object() && attributes.subresource.is_empty())
}

/// Whether a request writes a subresource of a run, whose body is not read. Its `status` may contain other code than
/// the run refers to: Tekton uses what it finds there as what it has fetched (`GetPipelineFunc`,
/// `GetTaskFuncFromTaskRun`).
pub fn writes_part(attributes: &Attributes) -> bool {
    RunKind::of(attributes).is_some() && attributes.brings_object() && !attributes.subresource.is_empty()
}

impl Document {
    /// Refuses requests that are invalid whatever their body is, so that it need not be read.
    pub fn check_head(verb: &str, headers: &HeaderMap) -> Result<(), Unreadable> {
        check_encoding(headers)?;
        match (verb, essence(headers)?) {
            ("update", _) => Err(Unreadable::Replaced),
            ("create", media) if CREATES.contains(&&*media) => Ok(()),
            ("patch", media) if PATCHES.contains(&&*media) => Ok(()),
            (_, media) => Err(Unreadable::MediaType(media)),
        }
    }

    /// Reads the body of a request for which [`concerns`] returns the kind of `of`. `default_account` is the service
    /// account that Tekton gives a run that names none.
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
            ("`metadata` is not an object", object.get("metadata")),
            ("`metadata.annotations` is not an object", in_metadata("annotations").filter(|value| !value.is_null())),
            ("`metadata.labels` is not an object", in_metadata("labels").filter(|value| !value.is_null())),
            ("`spec` is not an object", object.get("spec")),
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

    /// Whether the patch is refused if the existing run differs from its claims.
    pub(crate) fn is_held_against_run(&self) -> bool {
        matches!(&self.body, Body::Patch { claims: Some(claims), .. } if claims.any())
    }

    /// Writes the service account that the decision is based on into a run that leaves it to Tekton, whose setting may
    /// change.
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

    /// The bytes to send. A new run gets the annotations with who requested it. The body of an apply creates a run;
    /// with a [`Fit`], it does nothing to an existing one.
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

/// Refuses text that is not UTF-8. The API server does not read JSON in UTF-16 (RFC 8259 section 8.1 requires UTF-8).
pub(super) fn check_text(body: &[u8]) -> Result<(), Unreadable> {
    let is_wide = body.iter().take(2).any(|byte| *byte == 0);
    if is_wide || std::str::from_utf8(body).is_err() {
        return Err(Unreadable::Encoded("not in UTF-8".to_owned()));
    }
    Ok(())
}

/// The media type without parameters, in lower case. Empty if there is none, which the API server treats as JSON.
pub(super) fn essence(headers: &HeaderMap) -> Result<String, Unreadable> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(String::new()),
        (Some(value), None) => value.to_str().map_err(|_| Unreadable::MediaType("no text".to_owned()))?,
        _ => return Err(Unreadable::Malformed("the request has two content types")),
    };
    Ok(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Parses JSON, or YAML if the type says so and it is not JSON. What was read is sent, so that no other reader gets
/// another meaning from it.
pub(super) fn parse(media: &str, body: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    match parse_strict_object(body) {
        Err(JsonError::Syntax) if media.ends_with("yaml") => {
            let text = std::str::from_utf8(body).map_err(|_| Unreadable::Json(JsonError::Syntax))?;
            crate::config::parse_yaml(text).map_err(Unreadable::Yaml)
        }
        read => read.map_err(|error| in_json(error, body)),
    }
}

/// The error for a body that is not JSON, with its place. Syntax errors repeat nothing of the text.
fn in_json(error: JsonError, body: &[u8]) -> Unreadable {
    match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Err(_) if body.starts_with(BYTE_ORDER_MARK) => Unreadable::Encoded("preceded by a byte order mark".to_owned()),
        Err(syntax) if error == JsonError::Syntax => Unreadable::Syntax(syntax),
        _ => Unreadable::Json(error),
    }
}

/// Checks the spelling of the names in an operation of a JSON Patch.
fn check_operation(operation: &Value) -> Result<(), Unreadable> {
    patch::pointers(operation).try_for_each(check_pointer)?;
    operation.get("value").map_or(Ok(()), check_value)
}

/// Parses a JSON Patch. Its operations may contain duplicate names too, so they are read strictly, within an object.
pub(super) fn parse_operations(body: &[u8]) -> Result<Vec<Value>, Unreadable> {
    let wrapped = [br#"{"operations":"#, body, b"}"].concat();
    let mut read = parse_strict_object(&wrapped).map_err(|error| in_json(error, body))?;
    match read.remove("operations") {
        Some(Value::Array(operations)) if read.is_empty() => Ok(operations),
        _ => Err(Unreadable::Malformed("the patch is not a list of operations")),
    }
}

#[cfg(test)]
mod tests;
