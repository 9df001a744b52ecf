//! The signals that the process handles, from the first step of its start to its end.
//!
//! The first process of a container does not receive a signal that it does not handle, and any other process is killed
//! by one: the former would continue a start that is no longer wanted, and a SIGHUP would kill the latter.

use std::{
    io::{self, Write},
    process,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::AbortHandle,
};

/// The signals that ask Doorward to stop.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Ignored during the start, which loads the configuration anyway; changes after that are noticed by their content
    /// once files are watched.
    _hangup: Signal,
    _file_size: Signal,
}

/// Handles SIGXFSZ, so that a write beyond the limit on the size of files (`ulimit -f`) fails like one to a full
/// disk. Unhandled, the signal would end the process without a message, and again after each start.
fn of_file_size() -> io::Result<Signal> {
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
            _file_size: of_file_size()?,
        })
    }

    /// Handles signals from now on. Until the returned task is aborted, the first signal to stop exits at once: a start
    /// may wait for minutes, and has nothing in flight that could be drained.
    pub(super) async fn of_start() -> io::Result<(Self, AbortHandle)> {
        let (mut of_start, signals) = (Self::new()?, Self::new()?);
        let starting = tokio::spawn(async move {
            of_start.asked().await;
            // The log may not be initialised yet, and its queued lines would be lost.
            let _ = writeln!(io::stderr(), "doorward: stopped by a signal before it had started");
            process::exit(0);
        });
        Ok((signals, starting.abort_handle()))
    }

    /// Waits for a signal to stop, and returns whether it came from a terminal (Ctrl-C). Cancel safe: no signal is
    /// lost.
    pub(super) async fn asked(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => false,
            _ = self.interrupt.recv() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    #[tokio::test]
    async fn a_write_beyond_the_limit_on_files_does_not_end_the_process() {
        let mut handled = super::of_file_size().unwrap();
        kill_process(getpid(), Signal::XFSZ).unwrap();
        handled.recv().await;
    }
}
