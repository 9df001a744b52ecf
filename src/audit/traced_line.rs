//! The members of lines that traces of runs and tokens read. A line may lack some: each kind of record has its own
//! members.

use std::fmt;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use uuid::Uuid;

use crate::{kubernetes::ObjectRef, terminal};

#[derive(Deserialize)]
pub(super) struct Line {
    #[serde(default)]
    pub time: i64,
    /// 1 is success.
    #[serde(default)]
    pub status_id: u8,
    pub status_code: Option<String>,
    pub metadata: Metadata,
    #[serde(default)]
    pub actor: Actor,
    #[serde(default)]
    pub authorizations: Vec<Authorization>,
    #[serde(default)]
    pub http_request: Request,
    #[serde(default)]
    pub http_response: Response,
    #[serde(default)]
    pub unmapped: Unmapped,
    /// How long a request lasted, in milliseconds.
    pub duration: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub correlation_uid: Option<Uuid>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Actor {
    pub user: Named,
    pub idp: Named,
    pub session: Named,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    pub name: String,
    pub uid: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Authorization {
    pub policy: Named,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Request {
    pub http_method: String,
    pub url: Url,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Url {
    pub hostname: String,
    pub path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    /// The status of an upstream has this other name.
    #[serde(alias = "status")]
    pub code: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Unmapped {
    pub linked: Option<Link>,
    pub event_id: Option<String>,
    pub held: Option<Uuid>,
    pub about: Option<Uuid>,
    pub upstream: Response,
    pub webhook: Option<Webhook>,
    pub body_sha256: Option<String>,
    /// Present if a token was requested.
    pub asked: Option<IgnoredAny>,
    pub issued: Option<IssuedLine>,
    pub revoked: Option<String>,
    pub introspected: Option<AtServer>,
    /// Why a stream ended early.
    pub ended: Option<String>,
    pub tokens_ended: Option<Ended>,
    pub principal: PrincipalLine,
    /// The command of an operator, and its reason.
    pub command: String,
    pub why: String,
    /// The held deliveries that the command was for.
    pub deliveries: Vec<DeliveryLine>,
}

/// A line about a run.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Link {
    pub cluster: Option<String>,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub created: Option<i64>,
    pub request: Option<Uuid>,
    pub event_id: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct Webhook {
    /// The `webhooks` entry.
    pub webhook: Option<String>,
    pub delivery: Option<String>,
}

/// A held delivery that an operator retried or dropped.
#[derive(Deserialize)]
pub(super) struct DeliveryLine {
    /// The id of the request that delivered it; none if the delivery could not be read.
    pub request: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct PrincipalLine {
    pub actor: Option<ActorLine>,
}

/// The actor of a principal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActorLine {
    #[serde(default)]
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

impl fmt::Display for ActorLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both come from an issuer, and only names that are sent to Kubernetes are validated.
        write!(f, "agent {}", terminal::line(&self.subject))?;
        match &self.client {
            Some(client) => write!(f, " (client {})", terminal::line(client)),
            None => Ok(()),
        }
    }
}

/// The answer that a resource server got about a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtServer {
    #[serde(skip_serializing)]
    pub(super) token: String,
    pub server: String,
    #[serde(default)]
    pub active: bool,
}

/// The token in the record of an exchange.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IssuedLine {
    pub token: String,
    /// The name of its issuer.
    #[serde(skip_serializing)]
    pub issuer: String,
    pub audience: String,
    #[serde(default)]
    pub scopes: Vec<String>,
    pub expires: i64,
    #[serde(default)]
    pub rules: Vec<String>,
    /// The request that caused the run.
    #[serde(default, skip_serializing)]
    pub cause: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskLine>,
    /// Everybody whose revocation ends it, by issuer name and subject.
    #[serde(default, skip_serializing)]
    pub(super) parties: Vec<(String, String)>,
    /// The tokens whose revocation ends it, by issuer name and id.
    #[serde(default, skip_serializing)]
    pub(super) exchanged: Vec<(String, String)>,
    /// Set if the token is another provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onward: Option<OnwardLine>,
}

impl IssuedLine {
    /// Whether this issuer issued it: others may issue tokens with the same id.
    pub fn is_by(&self, issuer: &str) -> bool {
        self.issuer == issuer
    }

    /// Whether it was exchanged for this token.
    pub(super) fn is_made_of(&self, issuer: &str, id: &str) -> bool {
        self.exchanged.iter().any(|(by, token)| by == issuer && token == id)
    }
}

/// The provider of a token that is not ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnwardLine {
    pub provider: String,
    /// The id (`jti`) of the assertion that it was exchanged for.
    pub assertion: String,
    pub sha256: String,
}

/// The task that got a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskLine {
    pub cluster: String,
    pub namespace: String,
    pub task_run: ObjectRef,
    pub pod: ObjectRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_run: Option<ObjectRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_task: Option<String>,
    /// The uid of the outermost run.
    pub root: String,
}

impl TaskLine {
    /// Returns the kind, name and uid of the outermost run. The name is `?` if it is not recorded.
    pub fn root(&self) -> (&str, &str, &str) {
        let runs = [("PipelineRun", self.pipeline_run.as_ref()), ("TaskRun", Some(&self.task_run))];
        let mut runs = runs.into_iter().filter_map(|(kind, run)| Some((kind, run?)));
        // A PipelineRun that another one created has that one as its root.
        let named = runs.find(|(_, run)| run.uid == self.root);
        named
            .map_or(("PipelineRun", "?", self.root.as_str()), |(kind, run)| (kind, run.name.as_str(), run.uid.as_str()))
    }

    /// Returns the uids of the objects with which the token ends.
    pub(super) fn lives_with(&self) -> impl Iterator<Item = &str> {
        let objects = [Some(&self.task_run), Some(&self.pod), self.pipeline_run.as_ref()];
        objects.into_iter().flatten().map(|object| object.uid.as_str()).chain([self.root.as_str()])
    }
}

/// A run or a pod whose tokens have ended with it.
#[derive(Deserialize)]
pub(super) struct Ended {
    pub cluster: String,
    pub uid: String,
    pub why: String,
}
