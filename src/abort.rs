//! Ends the work on an exchange from outside. An HTTP/1.1 connection or an HTTP/2 stream that has more for its peer, a
//! client or an upstream, than the peer takes waits for that peer alone, and checks nothing else.

use std::{
    cell::RefCell,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use hyper::rt::Executor;
use pin_project_lite::pin_project;

thread_local! {
    /// The handle of the work that is being polled. Made only when it is asked for.
    static CURRENT: RefCell<Option<Abort>> = const { RefCell::new(None) };
}

/// Ends the work that an [`Abortable`] does.
#[derive(Clone, Debug, Default)]
pub struct Abort(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    is_set: AtomicBool,
    waker: AtomicWaker,
}

impl Abort {
    /// Returns the handle that ends the work within which this is called. Outside any [`Abortable`] it ends nothing.
    pub fn of_this_work() -> Self {
        CURRENT.with_borrow_mut(|current| current.get_or_insert_default().clone())
    }

    /// Ends the work, wherever it waits.
    pub fn abort(&self) {
        self.0.is_set.store(true, Ordering::Release);
        self.0.waker.wake();
    }
}

pin_project! {
    /// Work that can be ended from outside: it is dropped, with all that it holds.
    #[derive(Debug)]
    pub struct Abortable<F> {
        #[pin]
        work: Option<F>,
        abort: Option<Abort>,
    }
}

impl<F> Abortable<F> {
    pub fn new(work: F) -> Self {
        Self { work: Some(work), abort: None }
    }
}

impl<F: Future<Output = ()>> Future for Abortable<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let Some(work) = this.work.as_mut().as_pin_mut() else { return Poll::Ready(()) };
        CURRENT.set(this.abort.take());
        let polled = work.poll(context);
        *this.abort = CURRENT.take();
        if let Some(Abort(signal)) = this.abort {
            // Registered before the flag is checked, so that an abort in between wakes this task.
            signal.waker.register(context.waker());
            if signal.is_set.load(Ordering::Acquire) {
                this.work.set(None);
                return Poll::Ready(());
            }
        }
        polled
    }
}

/// Runs the tasks that hyper spawns for an HTTP/2 connection, such as one for each stream, so that each can be ended
/// without the connection.
#[derive(Clone, Debug)]
pub struct AbortableTasks;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for AbortableTasks {
    fn execute(&self, work: F) {
        tokio::spawn(Abortable::new(work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_waits_forever_is_dropped_when_asked_to_end_and_other_work_is_not() {
        let (told, mut abort) = tokio::sync::mpsc::unbounded_channel();
        let work = || {
            let told = told.clone();
            let held = Arc::new(());
            let weak = Arc::downgrade(&held);
            let task = tokio::spawn(Abortable::new(async move {
                told.send(Abort::of_this_work()).unwrap();
                tokio::task::yield_now().await;
                // The same handle, whenever it is asked for.
                told.send(Abort::of_this_work()).unwrap();
                std::future::pending::<()>().await;
                drop(held);
            }));
            (task, weak)
        };
        let (first, held) = work();
        let aborts = [abort.recv().await.unwrap(), abort.recv().await.unwrap()];
        assert!(Arc::ptr_eq(&aborts[0].0, &aborts[1].0));
        let (second, held_by_second) = work();
        assert!(!Arc::ptr_eq(&aborts[0].0, &abort.recv().await.unwrap().0));
        aborts[0].abort();
        first.await.unwrap();
        assert!(held.upgrade().is_none());
        assert!(held_by_second.upgrade().is_some() && !second.is_finished(), "the twin");
        second.abort();
    }

    #[tokio::test]
    async fn an_abort_outside_of_any_work_has_no_effect() {
        let (told, mut goes_on) = tokio::sync::mpsc::unbounded_channel();
        let work = tokio::spawn(Abortable::new(async move {
            Abort::of_this_work();
            loop {
                told.send(()).unwrap();
                tokio::task::yield_now().await;
            }
        }));
        goes_on.recv().await.unwrap();
        Abort::of_this_work().abort();
        // Polled once, before it would end.
        for _ in 0..3 {
            goes_on.recv().await.expect("the work that runs beside is not its");
        }
        work.abort();
    }
}
