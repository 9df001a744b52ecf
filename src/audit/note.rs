//! Records of everything but requests: changes of the policy, commands of operators, and events of the trail itself.

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
        /// Why the configuration was read, as a short fixed word.
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
    /// A Tekton run has appeared that a request caused.
    Run(Linked),
    /// The tokens of a TaskRun or a pod have ended with it.
    TokensEnded(TokensEnded),
    /// A session has ended before it expired.
    SessionEnded {
        /// Its name, as in the records of requests.
        session: String,
        /// A short fixed word.
        why: &'static str,
    },
    /// Doorward created a key, or removed one that is no longer needed.
    Key {
        /// Its purpose, as a short fixed word.
        of: &'static str,
        /// Its name, which reveals nothing of the key.
        id: String,
        change: KeyChange,
    },
    /// An event that somebody should look into, such as break-glass access being enabled.
    Alarm {
        /// A short fixed word, for rules over the trail.
        what: &'static str,
        detail: String,
    },
}

/// A change of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// It was created, and signs from the given time on.
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
    /// The reason that the operator gave.
    pub why: Option<String>,
    /// Success, or why it failed.
    pub outcome: Result<(), String>,
    /// The held deliveries that it retried or dropped; none for other commands.
    pub deliveries: Option<Vec<HeldDelivery>>,
}

/// A held delivery, by the ids in other records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum HeldDelivery {
    /// The id of the request that delivered it, and the one that its sender gave it.
    Known { request: String, delivery: String },
    /// Its own id, as the rest of it cannot be read.
    Unread { held: String },
}

/// A run and the cause that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The issuer name of its cluster, if tasks there get tokens.
    pub cluster: Option<Arc<str>>,
    /// `PipelineRun` or `TaskRun`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// Its Kubernetes uid, which no other object ever has.
    pub uid: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// The request that created it.
    pub request: Option<Uuid>,
    /// The event of an EventListener that led to it.
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

/// An event of the trail itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A process begins to write. The line links to the previous one, if there is one.
    Start {
        instance: Arc<str>,
        key: Arc<str>,
        interval_ms: u64,
        /// Bytes of an incomplete last line that were cut off.
        repaired: u64,
        /// The sequence number of a checkpoint in the second place that the trail no longer reaches.
        missing: Option<u64>,
    },
    /// The process stops in an orderly way.
    Stop { instance: Arc<str> },
    /// The first line of a file that continues another.
    File { previous: Option<Arc<str>> },
    /// Full files are about to be removed, because they are more, or older, than retention allows. The line is signed.
    Cut {
        files: usize,
        /// The number of the first line in them.
        from: u64,
        /// The last line in them, which the first remaining line links to.
        last: Link,
    },
    /// Nothing could be written for a while.
    Gap {
        lost: u64,
        since: Timestamp,
        until: Timestamp,
        /// How much time passed by the monotonic clock, if the process was paused or its clock was set ahead. None if
        /// the sink was busy or failed.
        monotonic_ms: Option<u64>,
    },
    /// The chain up to and including this line is signed.
    Checkpoint {
        instance: Arc<str>,
        key: Arc<str>,
        file: Arc<str>,
        records: u64,
        interval_ms: u64,
        /// The last checkpoints of other replicas that no earlier checkpoint names.
        heads: Vec<Head>,
    },
}

impl Event {
    /// Whether the public key alone suffices to verify the line.
    pub(super) const fn is_signed(&self) -> bool {
        matches!(self, Self::Cut { .. } | Self::Checkpoint { .. })
    }
}

/// The kinds of lines, as in `metadata.event_code`.
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
