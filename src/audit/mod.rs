//! The audit trail: who did what, as whom, by which rule, and proof that nobody edited the answer.
//!
//! A request's [`Record`] is opened before anything else and filled in along the way. [`Trail::reserve`] reserves space
//! in the queue before the request is forwarded, so that nothing happens that cannot be recorded. If the queue is full
//! the request waits briefly, as a disk can stall. Records go through a bounded queue to a dedicated thread, which
//! writes one JSON line each (`line`), links it to the previous line with a keyed code (`chain`), and signs a
//! checkpoint at intervals. [`verify_files`] finds lines that were deleted, edited, inserted, moved or cut off;
//! [`ReplayInputs`] reads back the inputs of a decision, [`trace`] finds the cause of a run, and [`Report`] collects
//! the evidence that reviewers ask for.
//!
//! [`export`] also sends the lines to receivers.
//!
//! No credential is ever written: a record has only the id of a credential, only those claims of a token that are in
//! [`CLAIMS`] or named by the policy, and no query of a URL.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | the trail's part of the configuration |
//! | `record`, `note` | records of requests, and of everything else |
//! | `trail`, `item`, `writer` | the handle that queues records, the queued items, and the thread that writes them |
//! | `reservation`, `room`, `unavailable` | the space that a request holds, the limit on waiting records, and why a record is impossible |
//! | `watchdog` | detects a disk that hangs or is repeatedly slow |
//! | `line`, `json`, `budget`, `caller` | a record as JSON, member by member, within its maximum length, and its members about the caller |
//! | `pseudonym` | pseudonyms for people |
//! | `chain`, `keys` | the hash chain over all lines, and its keys |
//! | `checkpoints`, `heads` | signed lines, their copies elsewhere, and those of other replicas |
//! | `sink`, `file_ends` | the destination of lines, and the first and last lines of its files |
//! | `export` | sends the same lines to receivers |
//! | `lines` | reads a trail line by line |
//! | `verify` | checks whether a trail is intact |
//! | `replay` | reads back the inputs of a decision |
//! | `trace`, `token_trace`, `traced_line`, `traced_files` | finds the cause of a run or a token in the trail alone |
//! | `report` | the evidence that reviewers ask for |
//! | `metrics` | the trail's own metrics |

mod budget;
mod caller;
mod chain;
mod checkpoints;
pub mod export;
mod file_ends;
mod heads;
mod item;
mod json;
mod keys;
mod line;
mod lines;
mod metrics;
mod note;
mod pseudonym;
mod record;
mod replay;
mod report;
mod reservation;
mod room;
mod settings;
mod sink;
mod token_trace;
mod trace;
mod traced_files;
mod traced_line;
mod trail;
mod unavailable;
mod verify;
mod watchdog;
mod writer;

pub use self::{
    caller::CLAIMS,
    heads::Head,
    keys::{CHAIN_KEY_FILE, CHECKPOINT_KEY_FILE, ChainKey, CheckpointKey, CheckpointPublicKey, InvalidKey},
    lines::of_file,
    note::{HeldDelivery, KeyChange, Linked, Note, Operator, TokensEnded},
    pseudonym::PseudonymKey,
    record::{
        Decision, FailedLogin, Introspected, Issued, IssuedOnward, IssuedTask, Phase, Record, Refusal, Tls, Upstream,
    },
    replay::ReplayInputs,
    report::{Configured, Report, ends_of_certificates},
    reservation::Reservation,
    settings::{DEFAULT_FILE, Settings},
    sink::trail_files,
    token_trace::{Tokens, TracedToken, introspected_in, trace_tokens},
    trace::{
        Answers, Arrival, Cause, MISSING, NoCause, TracedRun, answers, arrivals, request_json, sent_for, sent_on,
        trace, trace_cause, trace_request, trace_uid,
    },
    traced_files::Files,
    traced_line::TaskLine,
    trail::{OpenError, Trail},
    unavailable::AuditUnavailable,
    verify::{AllFindings, CannotVerify, Chain, Checkpoint, Findings, Proof, verify_all, verify_files},
};
#[cfg(test)]
pub use self::{
    chain::MAX_LINE,
    keys::CHECKPOINT_PUBLIC_KEY_FILE,
    metrics::Metrics,
    replay::ReplayError,
    settings::{Destination, Retention},
    verify::{Summary, Verifier},
    writer::END_TIMEOUT,
};

#[cfg(test)]
mod tests;
