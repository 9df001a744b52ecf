//! The threads: workers, each with its own runtime and sockets, and the control runtime for everything else.

use std::{
    future::Future,
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};

/// The pause before a worker that failed is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// The threads that serve requests.
#[derive(Debug)]
pub struct Workers(Vec<JoinHandle<()>>);

impl Workers {
    /// Starts a thread for each of `parts`, with a `current_thread` runtime that runs `work` until it ends. A worker
    /// whose `work` itself panics is restarted with the same part. The tasks that it spawned are lost; the part, such
    /// as its listening sockets, is not. A panic in a spawned task ends that task only.
    ///
    /// Errors: a thread or a runtime could not be created. Workers already started are left to end with the process.
    pub fn start<P, F, W>(parts: Vec<P>, work: F) -> io::Result<Self>
    where
        P: Send + 'static,
        F: Fn(usize, &P) -> W + Send + Sync + 'static,
        W: Future<Output = ()>,
    {
        let work = Arc::new(work);
        parts
            .into_iter()
            .enumerate()
            .map(|(index, part)| {
                let work = Arc::clone(&work);
                let runtime = Builder::new_current_thread().enable_all().build()?;
                thread::Builder::new()
                    .name(format!("worker-{index}"))
                    .spawn(move || run(index, runtime, || work(index, &part)))
            })
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Waits for all of them.
    pub fn join(self) {
        for worker in self.0 {
            if worker.join().is_err() {
                tracing::error!("a worker could not be started again after a panic");
            }
        }
    }
}

fn run<W: Future<Output = ()>>(index: usize, mut runtime: Runtime, work: impl Fn() -> W) {
    while catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { work().await }))).is_err() {
        tracing::error!(worker = index, "the worker panicked and is started again");
        thread::sleep(RESTART_PAUSE);
        match Builder::new_current_thread().enable_all().build() {
            Ok(fresh) => runtime = fresh,
            Err(error) => return tracing::error!(worker = index, %error, "the worker cannot be started again"),
        }
    }
}

/// How many workers to start: as configured, else one for each processor that the process may use.
pub fn worker_count(configured: Option<u16>) -> NonZeroUsize {
    configured
        .and_then(|count| NonZeroUsize::new(count.into()))
        .unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// The runtime for work that several requests wait for, and for work that belongs to no request: key sets,
/// introspection, logins, files, shutdown.
pub fn control() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_worker_that_panics_is_started_again_with_its_part() {
        let starts = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&starts);
        let workers = Workers::start(vec!["part"], move |index, part| {
            let start = seen.fetch_add(1, Ordering::SeqCst);
            let part = *part;
            async move {
                assert_eq!((index, part), (0, "part"));
                let spawned = tokio::spawn(async { panic!("in a task") }).await;
                assert!(spawned.is_err());
                assert!(start > 0, "the first start fails");
            }
        });
        workers.unwrap().join();
        assert_eq!(starts.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn workers_are_counted() {
        assert_eq!(worker_count(Some(3)).get(), 3);
        assert!(worker_count(None).get() >= 1);
        assert!(worker_count(Some(0)).get() >= 1);
    }
}
