//! The audit trail: who did what, as whom, by which rule, and proof that nobody edited the answer.
//!
//! A request's [`Record`] is opened before anything else and filled along the way. [`Trail::reserve`] takes room for it
//! before the request is forwarded, so that what cannot be recorded does not happen. Where there is none the request waits for a
//! moment, as a disk may stand still. Records go through a bounded queue
//! to a thread of their own, which writes one JSON line each (`line`), links it to the line before with a keyed code
//! (`chain`), and signs a checkpoint now and then. [`verify_files`] finds what was deleted, edited, inserted, moved or
//! cut; [`ReplayInputs`] reads back what a decision was made on, [`trace`] what caused a run, and
//! [`Report`] what reviewers ask for.
//!
//! [`export`] sends the lines to receivers besides.
//!
//! No credential is ever written: of a credential only its id, of a token only the claims in [`CLAIMS`] and those that
//! the policy names, of a URL no query.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | what the configuration says about the trail |
//! | `record`, `note` | what happened: of a request, and else |
//! | `trail`, `item`, `writer` | the handle by which records are queued, what is queued, and the thread that writes it |
//! | `reservation`, `room`, `unavailable` | what a request holds of it, how many records may wait, who waits for that, and why a record cannot be had |
//! | `watchdog` | whether the disk has been at one thing for too long, or is slow again and again |
//! | `line`, `json`, `budget`, `caller` | a record as JSON, member by member, within its length, and what it says of the caller |
//! | `pseudonym` | people under other names |
//! | `chain`, `keys` | what makes each line vouch for those before it, and the keys for that |
//! | `checkpoints`, `heads` | signed lines, their copies elsewhere, and those of other replicas |
//! | `sink`, `file_ends` | where lines go, and what the files tell to which they went |
//! | `export` | the same lines, sent to receivers |
//! | `lines` | a trail, read line by line |
//! | `verify` | whether a trail is whole |
//! | `replay` | what a decision was made on, read back |
//! | `trace`, `token_trace`, `traced_line`, `traced_files` | what caused a run, or a token, by the trail alone |
//! | `report` | what reviewers ask for |
//! | `metrics` | what the trail counts of itself |

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
    record::{Decision, Introspected, Issued, IssuedOnward, IssuedTask, Phase, Record, Refusal, Tls, Upstream},
    replay::ReplayInputs,
    report::{Configured, Report, ends_of_certificates},
    reservation::Reservation,
    settings::{DEFAULT_FILE, Settings},
    sink::trail_files,
    token_trace::{Tokens, TracedToken, introspected_in, trace_tokens},
    trace::{
        Answers, Arrival, Cause, NoCause, TracedRun, answers, arrivals, request_json, sent_for, trace, trace_cause,
        trace_request, trace_uid,
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
