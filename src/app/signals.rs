//! The signals that the process hears, from the first step of its start to its end.
//!
//! The first process of a container gets no signal that it does not handle, and any other dies of one: the former would go on with a start
//! that nobody wants any more, and a SIGHUP would end the latter.

use std::{
    io::{self, Write},
    process,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::AbortHandle,
};

/// What asks Doorward to end.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Asks for what the start does anyway: whatever changes after it was read is told by its content once files are watched.
    _hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Hears them from now on. Until the given task is aborted, the first that asks for the end has it at once: a start may wait for minutes,
    /// and has nothing under way that could be drained.
    pub(super) async fn of_start() -> io::Result<(Self, AbortHandle)> {
        let (mut of_start, signals) = (Self::new()?, Self::new()?);
        let starting = tokio::spawn(async move {
            of_start.asked().await;
            // The log may not be there yet, and what it has queued would be lost.
            let _ = writeln!(io::stderr(), "doorward: it was asked to end by a signal before it had started, and has");
            process::exit(0);
        });
        Ok((signals, starting.abort_handle()))
    }

    /// Waits for one that asks for the end, and tells whether somebody at a terminal did (Ctrl-C). Can be cancelled without losing one.
    pub(super) async fn asked(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => true,
        }
    }
}
