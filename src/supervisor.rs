//! Owns every background task: its name, its restarts, its effect on readiness, and the order of shutdown.
//!
//! A task gets a token that is cancelled when it should end, and returns [`Ok`] when it is done. One that fails or
//! panics is started again after a pause that doubles up to a bound.

use std::{
    any::Any,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::health::{ComponentHandle, Gate, Health},
    lock::lock,
};

/// What a task returns; an error is a reason to start it again.
pub type TaskResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The description of a task before it runs.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// In logs, metrics, and health as `task/NAME`.
    pub name: Arc<str>,
    /// Doorward is not ready while this task waits for its restart.
    pub critical: bool,
}

impl TaskSpec {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), critical: false }
    }

    #[must_use]
    pub fn critical(mut self) -> Self {
        self.critical = true;
        self
    }
}

/// The pause before a restart.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub most: Duration,
    /// A task that ran this long starts again with the first pause.
    pub reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), most: Duration::from_secs(30), reset_after: Duration::from_secs(60) }
    }
}

/// Counts what happens to tasks.
#[derive(Clone, Debug, Default)]
pub struct TaskMetrics {
    restarts: Family<RestartLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RestartLabels {
    task: Arc<str>,
    /// `panic` or `error`.
    cause: &'static str,
}

impl TaskMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("task_restarts", "Restarts of background tasks, by cause", self.restarts.clone());
    }
}

/// The supervisor. Clones share the tasks.
#[derive(Clone, Debug)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    runtime: Handle,
    health: Health,
    metrics: TaskMetrics,
    backoff: Backoff,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    /// In the order of their start.
    running: Vec<Running>,
    /// Shutdown has begun: a task that is spawned now ends at once.
    closed: bool,
}

#[derive(Debug)]
struct Running {
    name: Arc<str>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Ends one task before the others. Dropping it has no effect.
#[derive(Clone, Debug)]
pub struct TaskHandle(CancellationToken);

impl TaskHandle {
    pub fn stop(&self) {
        self.0.cancel();
    }
}

impl Supervisor {
    /// Tasks run on `runtime`, the control runtime.
    pub fn new(runtime: Handle, health: Health, metrics: TaskMetrics, backoff: Backoff) -> Self {
        Self(Arc::new(Inner { runtime, health, metrics, backoff, tasks: Mutex::default() }))
    }

    /// Starts a task. `start` is called for each start with the token that tells it to end.
    pub fn spawn<F, T>(&self, spec: TaskSpec, start: F) -> TaskHandle
    where
        F: Fn(CancellationToken) -> T + Send + 'static,
        T: Future<Output = TaskResult> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let mut tasks = self.tasks();
        if tasks.closed {
            stop.cancel();
            return TaskHandle(stop);
        }
        let gate = if spec.critical { Gate::Readiness } else { Gate::Report };
        let component = self.0.health.component(format!("task/{}", spec.name), gate);
        let name = Arc::clone(&spec.name);
        let supervised = supervise(Arc::clone(&self.0), spec, start, stop.clone(), component);
        let task = self.0.runtime.spawn(supervised);
        tasks.running.retain(|running| !running.task.is_finished());
        tasks.running.push(Running { name, stop: stop.clone(), task });
        TaskHandle(stop)
    }

    /// Ends all tasks, the last started first, so that each ends before those that it may depend on. Tasks that have
    /// not ended at the deadline are aborted, and their names returned.
    pub async fn shutdown(&self, deadline: Duration) -> Vec<Arc<str>> {
        let running = {
            let mut tasks = self.tasks();
            tasks.closed = true;
            std::mem::take(&mut tasks.running)
        };
        let deadline = Instant::now() + deadline;
        let mut aborted = Vec::new();
        for Running { name, stop, mut task } in running.into_iter().rev() {
            stop.cancel();
            if timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                // It is gone only when its future has been dropped.
                let _ = task.await;
                tracing::warn!(task = &*name, "task did not end in time");
                aborted.push(name);
            }
        }
        aborted
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        lock(&self.0.tasks)
    }
}

/// Runs a task until it is done or told to end.
async fn supervise<F, T>(
    supervisor: Arc<Inner>,
    spec: TaskSpec,
    start: F,
    stop: CancellationToken,
    component: ComponentHandle,
) where
    F: Fn(CancellationToken) -> T + Send + 'static,
    T: Future<Output = TaskResult> + Send + 'static,
{
    let Inner { runtime, metrics, backoff, .. } = &*supervisor;
    let mut pause = backoff.first;
    loop {
        component.ok();
        let began = Instant::now();
        // A task of its own, so that a panic ends there; `start` may panic as well.
        let run = match std::panic::catch_unwind(AssertUnwindSafe(|| start(stop.clone()))) {
            Ok(future) => AbortOnDrop(runtime.spawn(future)).join().await,
            Err(panic) => Err(panic),
        };
        let (cause, why) = match run {
            Ok(Ok(())) => return,
            Ok(Err(error)) => ("error", error.to_string()),
            Err(panic) => ("panic", panic_message(&*panic)),
        };
        if stop.is_cancelled() {
            tracing::warn!(task = &*spec.name, cause, why, "task failed while it was ending");
            return;
        }
        tracing::error!(task = &*spec.name, cause, why, "task failed and is started again");
        metrics.restarts.get_or_create(&RestartLabels { task: Arc::clone(&spec.name), cause }).inc();
        if began.elapsed() >= backoff.reset_after {
            pause = backoff.first;
        }
        component.failed(format!("{cause}: {why}"));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = pause.saturating_mul(2).min(backoff.most);
    }
}

/// A task that ends with the one that waits for it.
struct AbortOnDrop(JoinHandle<TaskResult>);

impl AbortOnDrop {
    async fn join(mut self) -> Result<TaskResult, Box<dyn Any + Send>> {
        match (&mut self.0).await {
            Ok(result) => Ok(result),
            // Aborted: the runtime is going away.
            Err(error) => error.try_into_panic().map_or_else(|_| Ok(Ok(())), Err),
        }
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;
    use crate::{admin::health::Status, clock::Clock};

    const SOON: Backoff = Backoff {
        first: Duration::from_millis(1),
        most: Duration::from_millis(2),
        reset_after: Duration::from_secs(60),
    };
    const NEVER: Backoff = Backoff {
        first: Duration::from_secs(3600),
        most: Duration::from_secs(3600),
        reset_after: Duration::from_secs(3600),
    };

    fn supervisor(backoff: Backoff) -> (Supervisor, Health, TaskMetrics) {
        let (health, metrics) = (Health::new(Clock::default()), TaskMetrics::default());
        (Supervisor::new(Handle::current(), health.clone(), metrics.clone(), backoff), health, metrics)
    }

    fn restarts(metrics: &TaskMetrics, cause: &'static str) -> u64 {
        metrics.restarts.get_or_create(&RestartLabels { task: "work".into(), cause }).get()
    }

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_started_again() {
        let (supervisor, health, metrics) = supervisor(SOON);
        let starts = Arc::new(AtomicU32::new(0));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        supervisor.spawn(TaskSpec::new("work").critical(), move |stop| {
            let number = starts.fetch_add(1, Ordering::SeqCst);
            assert_ne!(number, 0, "the first start panics");
            let sender = sender.clone();
            async move {
                match number {
                    1 => Err("the second fails".into()),
                    2 => panic!("the third panics"),
                    _ => {
                        sender.send(number).unwrap();
                        stop.cancelled().await;
                        Ok(())
                    }
                }
            }
        });
        assert_eq!(receiver.recv().await, Some(3));
        assert_eq!((restarts(&metrics, "panic"), restarts(&metrics, "error")), (2, 1));
        assert!(health.is_ready());
        assert_eq!(health.report().components[0].status, Status::Ok);
        assert!(supervisor.shutdown(Duration::from_secs(5)).await.is_empty());
    }

    #[tokio::test]
    async fn only_a_critical_task_affects_readiness() {
        for (spec, ready) in [(TaskSpec::new("work"), true), (TaskSpec::new("work").critical(), false)] {
            let (supervisor, health, _) = supervisor(NEVER);
            supervisor.spawn(spec, |_| async { Err("no".into()) });
            while health.report().components[0].status != Status::Failed {
                tokio::task::yield_now().await;
            }
            assert_eq!(health.is_ready(), ready);
            // It ends although it is waiting for its restart.
            assert!(supervisor.shutdown(Duration::from_secs(5)).await.is_empty());
        }
    }

    #[tokio::test]
    async fn a_finished_task_leaves_the_health_report() {
        let (supervisor, health, _) = supervisor(SOON);
        let is_empty = async || {
            let empty = async {
                while !health.report().components.is_empty() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), empty).await.expect("it is still in the report");
        };
        supervisor.spawn(TaskSpec::new("work"), |_| async { Ok(()) });
        is_empty().await;
        let handle = supervisor.spawn(TaskSpec::new("next"), |stop| async move {
            stop.cancelled().await;
            Ok(())
        });
        handle.stop();
        is_empty().await;
    }

    #[tokio::test]
    async fn shutdown_is_in_reverse_order_and_aborts_at_the_deadline() {
        let (supervisor, ..) = supervisor(SOON);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for name in ["store", "audit", "sessions"] {
            let sender = sender.clone();
            supervisor.spawn(TaskSpec::new(name), move |stop| {
                let sender = sender.clone();
                async move {
                    stop.cancelled().await;
                    sender.send(name).unwrap();
                    Ok(())
                }
            });
        }
        assert!(supervisor.shutdown(Duration::from_secs(5)).await.is_empty());
        let order = [receiver.recv().await, receiver.recv().await, receiver.recv().await];
        assert_eq!(order, [Some("sessions"), Some("audit"), Some("store")]);

        let (supervisor, ..) = self::supervisor(SOON);
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        supervisor.spawn(TaskSpec::new("stuck"), move |_| {
            let held = Arc::clone(&held);
            async move {
                let _held = held;
                std::future::pending().await
            }
        });
        assert_eq!(supervisor.shutdown(Duration::ZERO).await, [Arc::<str>::from("stuck")]);
        assert!(supervisor.spawn(TaskSpec::new("late"), |_| async { Ok(()) }).0.is_cancelled());
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
