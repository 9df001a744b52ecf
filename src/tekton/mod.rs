//! Tekton: reads what a request does to a run, and records who caused it.
//!
//! | file | holds |
//! |---|---|
//! | `document` | a strict parser for the body of such a request |
//! | `fields` | the spelling and the places of the relevant fields |
//! | `run` | the effect of the request: what it does to the run, which code it runs, and as whom |
//! | `reference` | references to code that Tekton runs |
//! | `patch` | the effect of a patch |
//! | `ownership` | prevents a run from claiming that another run created it |
//! | `labels` | prevents a run from claiming another event, or to be part of another run |
//! | `existing` | adapts a body to the run that may exist already |
//! | `apply` | server-side apply, which creates a run or changes an existing one |
//! | `claims` | values in a merge patch that no patch may change |
//! | `attribution` | the annotations with who requested a run |
//! | `template` | objects whose annotations Tekton copies to runs |
//! | `trigger` | the service account that creates the runs of a Trigger |
//! | `dashboard` | the endpoints of the Dashboard's own back end, and who may use them |
//! | `standing` | finds static credentials in a cluster |

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

/// Whether an API version, such as that of an owner, is of the group `tekton.dev`, to which runs, tasks and pipelines
/// belong.
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
