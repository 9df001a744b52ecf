//! Sends the trail to receivers besides its file: syslog servers and OpenTelemetry collectors.
//!
//! The files of the trail are the buffer. An export reads the lines that are on stable storage ([`reader`]), sends them as
//! they stand, and keeps beside the store how far the receiver has them for certain ([`position`]). So lines arrive in order
//! and at least once, over restarts, crashes, rotation and outages, and `doorward audit verify` works at the receiver.
//! Whoever wants each line once looks at `seq`.
//!
//! The writer of the trail and the exports share a [`Backlog`]: how far each receiver is behind, whether requests are
//! refused for it, and which files it still needs.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | what the configuration says about exports |
//! | `task` | the task of one: reads, sends, remembers |
//! | `reader`, `position` | what is on stable storage, and how far the receiver has it |
//! | `syslog`, `otlp`, `facts` | the two protocols, and what both tell of a line besides |
//! | `backlog` | what the writer of the trail and its exports tell each other |
//! | `metrics` | what exports count |

mod backlog;
mod facts;
mod metrics;
mod otlp;
mod position;
mod reader;
mod settings;
mod syslog;
mod task;

pub(super) use self::{
    backlog::Backlog,
    reader::{End, Place},
};
pub use self::{
    backlog::Export,
    metrics::Metrics,
    settings::{Settings, Unfit},
    task::run,
};

#[cfg(test)]
mod tests;
