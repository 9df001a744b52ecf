//! Records that are not of a request: what happened to the policy, what operators did, and what the trail tells of itself.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::{chain::Link, heads::Head};
use crate::clock::Timestamp;

/// Something that happened outside of any request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A policy is in force from now on.
    PolicyLoaded {
        digest: Arc<str>,
        /// Why the configuration was read, in a short fixed word.
        cause: &'static str,
        /// Warnings, each with its place.
        problems: Vec<String>,
    },
    /// A policy was refused and the old one kept.
    PolicyRefused {
        /// None if it could not be read at all.
        digest: Option<Arc<str>>,
        cause: &'static str,
        problems: Vec<String>,
    },
    /// Somebody used the operator socket.
    Operator(Operator),
    /// A run of Tekton has appeared that a request caused.
    Run(Linked),
    /// The tokens of a TaskRun or a pod have ended with it.
    TokensEnded(TokensEnded),
    /// A session has ended before its time.
    SessionEnded {
        /// Its name, as in the records of requests.
        session: String,
        /// A short fixed word.
        why: &'static str,
    },
    /// Doorward made a key by itself, or took one away that nobody needs any more.
    Key {
        /// For what it is, in a short fixed word.
        of: &'static str,
        /// Its name, which says nothing of what it holds.
        id: String,
        change: KeyChange,
    },
    /// Something that somebody should look at, such as break-glass access being enabled.
    Alarm {
        /// A short fixed word, for rules over the trail.
        what: &'static str,
        detail: String,
    },
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// It was made, and signs from then on.
    Made {
        signs_from: Timestamp,
    },
    Removed,
}

/// A command of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The command with its arguments, without secrets.
    pub command: String,
    /// The user id of the peer of the socket.
    pub uid: Option<u32>,
    /// Its name.
    pub user: Option<String>,
    /// What the operator gave as reason.
    pub why: Option<String>,
    /// Done, or why not.
    pub outcome: Result<(), String>,
    /// The held deliveries that it tried or dropped; none of another command.
    pub deliveries: Option<Vec<HeldDelivery>>,
}

/// A held delivery, as other records know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum HeldDelivery {
    /// By the id of the request that brought it, and the one that its sender gave it.
    Known { request: String, delivery: String },
    /// By its own id, as nothing else can be read of it.
    Unread { held: String },
}

/// A run and what it says of its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The name of the issuer of the cluster that it is in, where tasks of that get tokens.
    pub cluster: Option<Arc<str>>,
    /// `PipelineRun` or `TaskRun`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// As Kubernetes gave it; no other object ever has it.
    pub uid: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The request that made it.
    pub request: Option<Uuid>,
    /// The event of an EventListener that it came of.
    pub event: Option<String>,
}

/// A run or a pod that had tokens and has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokensEnded {
    /// The name of its issuer.
    pub cluster: Arc<str>,
    /// `TaskRun`, `Pod` or `PipelineRun`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub why: &'static str,
}

/// What the trail tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A process begins to write. It links to the line before it, if there is one.
    Start {
        instance: Arc<str>,
        key: Arc<str>,
        interval_ms: u64,
        /// Bytes of a half-written last line that were cut.
        repaired: u64,
        /// The sequence number of a checkpoint in the second place that the trail no longer reaches.
        missing: Option<u64>,
    },
    /// The process stops in good order.
    Stop { instance: Arc<str> },
    /// The first line of a file that goes on where another ended.
    File { previous: Option<Arc<str>> },
    /// Full files are about to be removed, because they are more, or older, than are to be kept. The line is signed.
    Cut {
        files: usize,
        /// The number of the first line in them.
        from: u64,
        /// The last line in them: what the first line that stays links to.
        last: Link,
    },
    /// For a while nothing could be written.
    Gap { lost: u64, since: Timestamp, until: Timestamp },
    /// The chain up to and with this line is signed.
    Checkpoint {
        instance: Arc<str>,
        key: Arc<str>,
        file: Arc<str>,
        records: u64,
        interval_ms: u64,
        /// The last checkpoints of other replicas, as far as they are new.
        heads: Vec<Head>,
    },
}

impl Event {
    /// Whether the line proves what it says to whoever has the public key alone.
    pub(super) const fn is_signed(&self) -> bool {
        matches!(self, Self::Cut { .. } | Self::Checkpoint { .. })
    }
}

/// The names of kinds of line, in `metadata.event_code`.
pub(super) mod code {
    pub(crate) const REQUEST: &str = "request";
    pub(crate) const DECIDED: &str = "request.decided";
    pub(crate) const STARTED: &str = "request.started";
    pub(crate) const COMPLETED: &str = "request.completed";
    pub(crate) const POLICY_LOADED: &str = "policy.loaded";
    pub(crate) const POLICY_REFUSED: &str = "policy.refused";
    pub(crate) const OPERATOR: &str = "operator";
    pub(crate) const RUN: &str = "run.linked";
    pub(crate) const TOKENS_ENDED: &str = "tokens.ended";
    pub(crate) const SESSION_ENDED: &str = "session.ended";
    pub(crate) const KEY_MADE: &str = "key.made";
    pub(crate) const KEY_REMOVED: &str = "key.removed";
    pub(crate) const ALARM: &str = "alarm";
    pub(crate) const START: &str = "trail.start";
    pub(crate) const STOP: &str = "trail.stop";
    pub(crate) const FILE: &str = "trail.file";
    pub(crate) const CUT: &str = "trail.cut";
    pub(crate) const GAP: &str = "trail.gap";
    pub(crate) const CHECKPOINT: &str = "trail.checkpoint";

    #[cfg(test)]
    pub(crate) const ALL: [&str; 19] = [
        REQUEST,
        DECIDED,
        STARTED,
        COMPLETED,
        POLICY_LOADED,
        POLICY_REFUSED,
        OPERATOR,
        RUN,
        TOKENS_ENDED,
        SESSION_ENDED,
        KEY_MADE,
        KEY_REMOVED,
        ALARM,
        START,
        STOP,
        FILE,
        CUT,
        GAP,
        CHECKPOINT,
    ];
}
