//! Shutting down without losing a request: announce, close the listeners, wait, cut.

use std::{
    future::pending,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::{JoinError, JoinHandle},
};

/// How far the shutdown has come; it only ever moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    #[default]
    Open,
    /// Still accepting, since load balancers take a while to notice. Each response asks the client to reconnect
    /// elsewhere (`Connection: close`, GOAWAY).
    Announced,
    /// No longer accepting. Idle connections are closed, requests in progress continue.
    Closing,
    /// Everything that is left is cut.
    Cut,
}

/// The handle of a shutdown, shared by all workers.
#[derive(Clone, Debug)]
pub struct Drain(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    phase: watch::Sender<Phase>,
    /// Read by each request, as it is cheaper than the channel.
    announced: AtomicBool,
    connections: AtomicUsize,
    unfinished: AtomicUsize,
    /// The last connection, or the last unfinished task, has ended.
    none_left: Notify,
}

/// A task that is to be finished although no connection may wait for it any more. It counts as unfinished until it is
/// dropped.
#[derive(Debug)]
pub struct Unfinished(Drain);

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.ended(&self.0.0.unfinished);
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(Shared {
            phase: watch::Sender::new(Phase::Open),
            announced: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            none_left: Notify::new(),
        }))
    }
}

impl Drain {
    /// Begins: from now on every response announces the shutdown. Connections are still accepted.
    pub fn begin(&self) {
        self.0.announced.store(true, Ordering::Relaxed);
        self.advance(Phase::Announced);
    }

    /// Stops accepting connections and closes the idle ones.
    pub fn close(&self) {
        self.begin();
        self.advance(Phase::Closing);
    }

    /// Waits until no connection and no unfinished task is left, for at most `deadline`, then cuts the rest. Returns
    /// how many connections were cut.
    pub async fn wait(&self, deadline: Duration) -> usize {
        self.until_empty(deadline).await;
        let left = self.connections();
        self.cut();
        left
    }

    /// Waits in the same way without the cut, so that what is left can be told to end first.
    pub async fn until_empty(&self, deadline: Duration) {
        let _ = tokio::time::timeout(deadline, self.empty()).await;
    }

    /// Cuts all connections and ends the workers.
    pub fn cut(&self) {
        self.close();
        self.advance(Phase::Cut);
    }

    /// The number of open connections, upgraded ones included.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Begins a task that the shutdown waits for as for a connection.
    #[must_use]
    pub fn begin_task(&self) -> Unfinished {
        self.0.unfinished.fetch_add(1, Ordering::Relaxed);
        Unfinished(self.clone())
    }

    /// The same for a task that another process can do: `None` once the listeners are closed, as what begins then may
    /// be cut.
    #[must_use]
    pub fn begin_task_unless_closing(&self) -> Option<Unfinished> {
        // Counted before the phase is checked, so that a shutdown that closes the listeners in between waits for it.
        let unfinished = self.begin_task();
        let is_closing = *self.0.phase.borrow() >= Phase::Closing;
        (!is_closing).then_some(unfinished)
    }

    /// Waits until the listeners are closed.
    pub async fn until_closing(&self) {
        let mut phases = self.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        drop(phases.wait_for(|phase| *phase >= Phase::Closing).await);
    }

    /// Runs `work` to its end on `runtime`, whether or not the caller still waits for it ([`finished`]). The shutdown
    /// waits for it as for a connection.
    pub fn finish_on<F>(&self, runtime: &Handle, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let unfinished = self.begin_task();
        runtime.spawn(async move {
            let _unfinished = unfinished;
            work.await
        })
    }

    /// How many such tasks have not ended.
    pub fn unfinished(&self) -> usize {
        self.0.unfinished.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Reports each phase as it begins, for readiness and for streams that are closed in their own way.
    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    pub(super) fn is_announced(&self) -> bool {
        self.0.announced.load(Ordering::Relaxed)
    }

    pub(super) fn opened(&self) {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.ended(&self.0.connections);
    }

    fn ended(&self, count: &AtomicUsize) {
        if count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.none_left.notify_waiters();
        }
    }

    async fn empty(&self) {
        loop {
            let mut notified = std::pin::pin!(self.0.none_left.notified());
            notified.as_mut().enable();
            if self.connections() == 0 && self.unfinished() == 0 {
                return;
            }
            notified.await;
        }
    }

    fn advance(&self, to: Phase) {
        self.0.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            if forward {
                *phase = to;
            }
            forward
        });
    }
}

/// The result of work that runs by itself ([`Drain::finish_on`]). A panic in it becomes one in the caller.
pub async fn finished<T>(work: JoinHandle<T>) -> T {
    match work.await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => resume_unwind(panic),
        // Its runtime ends, and with it the caller.
        Err(Err(_)) => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// The cause of a run was lost if the process ended meanwhile: nobody was connected, and so nothing was waited for.
    #[tokio::test(start_paused = true)]
    async fn work_without_a_connection_is_awaited_until_the_deadline_at_most() {
        for (lasts, waited, left) in [(5, 5, 0), (60, 20, 1)] {
            let drain = Drain::default();
            let task = drain.begin_task();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(lasts)).await;
                drop(task);
            });
            let begun = Instant::now();
            assert_eq!(drain.wait(Duration::from_secs(20)).await, 0, "connections");
            assert_eq!((begun.elapsed().as_secs(), drain.unfinished()), (waited, left));
            assert_eq!(drain.phase(), Phase::Cut);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_whose_client_left_is_completed_before_the_process_ends() {
        let drain = Drain::default();
        let (told, done) = watch::channel(false);
        let begin = || {
            let told = told.clone();
            drain.finish_on(&Handle::current(), async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                told.send_replace(true);
                "done"
            })
        };
        // The caller is gone before it is done.
        let left = tokio::time::timeout(Duration::from_secs(1), finished(begin())).await;
        assert!(left.is_err() && drain.unfinished() == 1);
        drain.wait(Duration::from_secs(20)).await;
        assert!(*done.borrow() && drain.unfinished() == 0);
        assert_eq!(finished(begin()).await, "done", "the twin: who stays has what came of it");
    }

    #[tokio::test]
    async fn work_for_another_process_does_not_begin_once_the_listeners_are_closed() {
        let drain = Drain::default();
        drain.begin();
        let begun = drain.begin_task_unless_closing();
        assert!(begun.is_some() && drain.unfinished() == 1);
        drop(begun);
        drain.close();
        assert!(drain.begin_task_unless_closing().is_none());
        assert_eq!(drain.unfinished(), 0);
    }
}
