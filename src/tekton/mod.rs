//! What Doorward knows of Tekton: what a request does to a run, and who caused it.
//!
//! | file | holds |
//! |---|---|
//! | `document` | the body of such a request, read strictly, once |
//! | `fields` | how the fields that count are spelt, and where they stand |
//! | `run` | what it says: what becomes of the run, which code it runs, and as whom |
//! | `reference` | what Tekton runs by a reference |
//! | `patch` | what a patch does |
//! | `ownership` | that no run says another has made it |
//! | `labels` | that no run says it came of another event, or is a part of another run |
//! | `existing` | what is sent to a run that may be there |
//! | `apply` | an apply, which makes a run or changes one that is there |
//! | `claims` | what a merge patch says of what no patch changes |
//! | `attribution` | the annotations that say who asked |
//! | `template` | objects whose annotations Tekton copies to runs |
//! | `trigger` | the service account that makes the runs of a Trigger |
//! | `dashboard` | what the Dashboard's own back end serves, and what of it is for whom |
//! | `standing` | what in a cluster still carries static credentials |

mod apply;
mod attribution;
mod claims;
pub mod dashboard;
mod document;
mod existing;
mod fields;
mod labels;
mod ownership;
mod patch;
pub(crate) mod reference;
pub(crate) mod run;
pub mod standing;
pub mod template;
mod trigger;

/// Whether an API version, as that of an owner, is of the group `tekton.dev`, which is that of runs, tasks and pipelines.
pub(crate) fn is_of_tekton_dev(version: &str) -> bool {
    version.starts_with("tekton.dev/")
}

pub(crate) use self::labels::MADE_BY;
pub use self::{
    attribution::{Attribution, REQUEST_ID},
    document::{Document, MAX_BODY, concerns, writes_part},
    existing::{Fit, Unknown},
    run::{Run, RunKind, RunType},
    trigger::{TriggerReader, listener_accounts},
};
