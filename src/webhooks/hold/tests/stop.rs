//! The end of the process while a delivery is in flight.

use tokio::sync::Notify;

use super::*;

/// A deliverer whose EventListener answers on command.
struct Slow {
    budget: ByteBudget,
    sent: Notify,
    answers: Notify,
}

impl Deliverer for Slow {
    fn room(&self, held: &Held) -> Option<Room> {
        self.budget.room(Share::Held(Arc::clone(&held.webhook)), usize::try_from(held.size).unwrap())
    }

    async fn deliver(&self, _: HeldId, _: &Held, _: HeldRequest) -> Attempt {
        self.sent.notify_one();
        self.answers.notified().await;
        Attempt::Accepted(None)
    }
}

/// Regression: it was cut some seconds after the listeners closed, and created its run once more after the next start.
#[tokio::test]
async fn the_exit_waits_until_attempts_in_flight_are_accepted_and_removed() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| panic!("another brings"));
    fixture.queue.set_doubt(None);
    let budget = ByteBudget::new(1 << 20);
    let (deliverer, drain) = (Arc::new(Slow { budget, sent: Notify::new(), answers: Notify::new() }), Drain::default());
    for delivery in ["a", "b"] {
        fixture.keep("hub", "1", delivery).await.unwrap();
    }
    let (queue, clock, stop) = (fixture.queue.clone(), fixture.clock.clone(), fixture.stop.clone());
    tokio::spawn(run(queue, Arc::clone(&deliverer), clock, drain.clone(), Duration::ZERO, stop));
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, deliverer.sent.notified()).await.unwrap();
    fixture.stop.cancel();
    assert_eq!(drain.unfinished(), 1);
    deliverer.answers.notify_one();
    drain.wait(patience).await;
    assert_eq!(drain.unfinished(), 0, "nothing else is begun");
    assert_eq!(fixture.held().await, [("b".to_owned(), false)]);
}
