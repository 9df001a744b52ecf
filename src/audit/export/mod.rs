//! Exports: sends the trail in a file to receivers, which are syslog servers and OpenTelemetry collectors.
//!
//! The files of the trail are the buffer. An export reads the lines that are on stable storage ([`reader`]), sends them
//! unchanged, and stores beside the store up to where the receiver is known to have them ([`position`]). Lines
//! therefore arrive in order and at least once, across restarts, crashes, rotation and outages, and `doorward audit
//! verify` works at the receiver. `seq` identifies duplicates.
//!
//! The writer of the trail and the exports share a [`Backlog`]: how far each receiver is behind, whether requests are
//! refused for it, and which files it still needs.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | the exports' part of the configuration |
//! | `task` | the task of one export: reads, sends, stores the position |
//! | `reader`, `position` | the lines on stable storage, and up to where the receiver has them |
//! | `syslog`, `otlp`, `facts` | the two protocols, and the metadata of a line that both send |
//! | `backlog` | the state that the writer of the trail and its exports share |
//! | `metrics` | the metrics of exports |

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
