//! The order of a lane for which several replicas store deliveries.

use super::*;
use crate::store::{Backend as _, Table};

/// While it sends the first delivery, the next arrives at another replica and the one after that at this one.
struct Meanwhile {
    here: Fixture,
    there: Fixture,
    seen: Mutex<Vec<String>>,
}

impl Deliverer for Meanwhile {
    fn room(&self, held: &Held) -> Option<Room> {
        self.here.deliverer.room(held)
    }

    async fn deliver(&self, _: HeldId, held: &Held, _: HeldRequest) -> Attempt {
        self.seen.lock().unwrap().push(held.delivery.to_string());
        if &*held.delivery == "1" {
            self.there.keep("hub", "7", "2").await.unwrap();
            self.here.keep("hub", "7", "3").await.unwrap();
        }
        Attempt::Accepted(None)
    }
}

/// Regression: a replica knew its own deliveries at once, and the other's half a second later.
#[tokio::test]
async fn deliveries_stored_earlier_by_another_replica_are_not_overtaken() {
    let store = MemoryStore::shared();
    let nothing = || Fixture::new(&store, |_| panic!("another brings"));
    let (here, mut same) = (nothing(), nothing());
    same.queue = here.queue.clone();
    let deliverer = Arc::new(Meanwhile { here: same, there: nothing(), seen: Mutex::default() });
    for queue in [&here.queue, &deliverer.there.queue] {
        queue.set_doubt(None);
    }
    here.keep("hub", "7", "1").await.unwrap();
    let (queue, clock, stop) = (here.queue.clone(), here.clock.clone(), here.stop.clone());
    tokio::spawn(run(queue, Arc::clone(&deliverer), clock, Drain::default(), Duration::ZERO, stop));
    here.until("delivered", async || deliverer.seen.lock().unwrap().len() == 3).await;
    assert_eq!(*deliverer.seen.lock().unwrap(), ["1", "2", "3"]);
}

/// While it sends the first, its lease expires and another replica takes the lane, which may release it at once.
struct Losing {
    here: Fixture,
    there: Fixture,
    gives_back: bool,
    seen: Mutex<Vec<String>>,
}

impl Deliverer for Losing {
    fn room(&self, held: &Held) -> Option<Room> {
        self.here.deliverer.room(held)
    }

    async fn deliver(&self, _: HeldId, held: &Held, _: HeldRequest) -> Attempt {
        self.seen.lock().unwrap().push(held.delivery.to_string());
        if &*held.delivery == "1" {
            self.here.clock.advance(Duration::from_secs(61));
            let now = self.here.clock.now();
            let lease = self.there.queue.lease(&held.lane(), now).await.unwrap().expect("the other lease has ended");
            if self.gives_back {
                self.there.queue.give_back(lease, now).await;
            }
        }
        Attempt::Accepted(None)
    }
}

/// Otherwise a replica that was suspended for a minute would send deliveries while another has the lane, twice or out
/// of order.
#[tokio::test]
async fn a_replica_that_lost_a_lane_sends_no_more_of_it() {
    for gives_back in [false, true] {
        let store = MemoryStore::shared();
        store.set_shared();
        let nothing = || Fixture::new(&store, |_| panic!("another brings"));
        let (here, mut same) = (nothing(), nothing());
        (same.queue, same.clock) = (here.queue.clone(), here.clock.clone());
        here.queue.set_doubt(None);
        for delivery in ["1", "2"] {
            here.keep("hub", "7", delivery).await.unwrap();
        }
        let deliverer = Arc::new(Losing { here: same, there: nothing(), gives_back, seen: Mutex::default() });
        let (queue, clock, stop) = (here.queue.clone(), here.clock.clone(), here.stop.clone());
        tokio::spawn(run(queue, Arc::clone(&deliverer), clock, Drain::default(), Duration::ZERO, stop));
        let seen = || deliverer.seen.lock().unwrap().clone();
        here.until("delivered", async || !seen().is_empty()).await;
        let later = here.clock.now() + Duration::from_secs(10);
        here.until("over", async || here.clock.now() > later).await;
        assert_eq!(seen().len(), if gives_back { 2 } else { 1 }, "given back: {gives_back}");
    }
}

/// Otherwise its lane would read the store again and again without a pause.
#[tokio::test]
async fn a_delivery_missing_from_the_store_delays_its_lane_for_one_read() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.keep("hub", "1", "1").await.unwrap();
    // The last of its table, so that the versions that were read stay below its place.
    let gone = fixture.keep("hub", "1", "2").await.unwrap();
    assert!(store.delete(Table::Held, gone.as_bytes()).await.unwrap());
    fixture.start();
    fixture.until("done", async || !fixture.queue.is_delivering() && fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["1"]);
}

/// Regression: the same page was read again and again, and nothing was sent any more.
#[tokio::test]
async fn a_store_that_was_set_back_is_read_completely_whatever_its_size() {
    let store = MemoryStore::shared();
    store.set_shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    for number in 0..600 {
        fixture.keep("hub", "1", &format!("{number:03}")).await.unwrap();
    }
    fixture.queue.refresh(NOW).await.unwrap();
    store.set_back(Table::Held);
    let read = tokio::time::timeout(Duration::from_secs(20), fixture.queue.refresh(NOW)).await;
    read.expect("it ends").unwrap();
    assert_eq!(fixture.queue.index().seen, 600);
    assert_eq!(fixture.queue.index().all().len(), 600);
    fixture.start();
    fixture.until("empty", async || fixture.seen().len() == 600 && fixture.held().await.is_empty()).await;
    assert!(fixture.seen().is_sorted());
}

/// Regression: the lane looped, as the record in the store was older than the known one.
#[tokio::test]
async fn a_record_that_was_set_back_is_used_when_it_is_read() {
    let store = MemoryStore::shared();
    store.set_shared();
    let fixture = Fixture::new(&store, |_| failed(FailureKind::Denied));
    fixture.queue.set_doubt(None);
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let (mut held, version) = fixture.queue.read(&id, NOW).await.unwrap().unwrap();
    held.parked = Some(NOW);
    assert!(fixture.queue.rewrite(&id, held, version, None, NOW).await.unwrap());
    assert!(fixture.queue.retry(&id, NOW).await.unwrap());
    let waits = |fixture: &Fixture| fixture.queue.index().usage().map(|(_, usage)| usage.waiting).sum::<usize>();
    assert_eq!(waits(&fixture), 1);
    // Back to when it was parked.
    let elsewhere = Fixture::new(&store, |_| panic!("nothing is brought"));
    let (mut held, version) = elsewhere.queue.read(&id, NOW).await.unwrap().unwrap();
    held.parked = Some(NOW);
    assert!(elsewhere.queue.rewrite(&id, held, version, None, NOW).await.unwrap());
    store.set_back(Table::Held);
    fixture.queue.read(&id, NOW).await.unwrap();
    assert_eq!(waits(&fixture), 0);
}
