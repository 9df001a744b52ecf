//! Records that cannot be read, and processes that die half way.

use super::*;
use crate::store::{Backend as _, Expect, Table};

async fn spoil(store: &MemoryStore, table: Table, id: &HeldId) {
    store.put(table, id.as_bytes(), b"junk".to_vec(), Timestamp::MAX, Expect::Any, NOW).await.unwrap();
}

/// Deliveries wait in the store while Doorward is updated, and while the update is taken back.
#[test]
fn a_record_is_read_and_written_as_ever() {
    let waiting = r#"{"webhook":"hub","route":"hooks","delivery":"d-1","request":"00000000-0000-0000-0000-000000000000","size":7,"received":1700000000123,"span":3600000,"until":1700003600123,"tries":0,"refusals":0,"next":1700000001123,"policy":"p"}"#;
    let parked = waiting.replace(r#""next":1700000001123"#, r#""next":1700000001123,"parked":1700000002123"#);
    for written in [waiting, &parked] {
        let held = Held::decode(written.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(held.encode().unwrap()).unwrap(), written);
    }
    let held = Held::decode(parked.as_bytes()).unwrap();
    assert_eq!((held.received, held.span), (Timestamp::from_millis(1_700_000_000_123), Duration::from_secs(3600)));
    assert_eq!(held.parked, Some(Timestamp::from_millis(1_700_000_002_123)));
    assert_eq!(Held::decode(waiting.as_bytes()).unwrap().parked, None);
}

#[tokio::test]
async fn a_request_that_cannot_be_read_ends_with_its_parked_delivery() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    spoil(&store, Table::HeldRequests, &id).await;
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    let now = fixture.clock.now();
    let left = async |table, at| store.get(table, id.as_bytes(), at).await.unwrap().is_some();
    for table in [Table::Held, Table::HeldRequests] {
        assert!(left(table, now).await, "{table:?}");
        assert!(!left(table, now + PARKED_FOR).await, "{table:?}");
    }
    assert!(matches!(fixture.queue.retry(&id, now).await, Err(StoreError::Corrupt(_))));
    assert!(fixture.queue.drop_one(&id, now).await.unwrap());
    assert!(!left(Table::HeldRequests, now).await);
}

/// Regression: the delivery was never parked, and later ones of its repository waited until somebody dropped it.
#[tokio::test]
async fn a_request_that_the_store_itself_cannot_read_parks_its_delivery_and_stops_no_other() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    fixture.keep("hub", "1", "b").await.unwrap();
    store.tear(Table::HeldRequests, id.as_bytes());
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    assert_eq!(fixture.seen(), ["b"]);
    let ended = fixture.clock.now() + PARKED_FOR;
    assert!(store.get(Table::HeldRequests, id.as_bytes(), ended).await.unwrap().is_none());
}

#[tokio::test]
async fn a_delivery_that_cannot_be_read_can_be_dropped() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    spoil(&store, Table::Held, &id).await;
    assert!(fixture.queue.drop_one(&id, NOW).await.unwrap());
    assert!(!fixture.queue.drop_one(&id, NOW).await.unwrap());
    assert_eq!(fixture.held().await, []);
}

/// Regression: it blocked its lane while it was known, and after a restart nobody could drop it.
#[tokio::test]
async fn a_delivery_that_cannot_be_read_stops_no_other_and_can_be_dropped_after_a_restart() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    fixture.keep("hub", "1", "b").await.unwrap();
    spoil(&store, Table::Held, &id).await;
    fixture.start();
    fixture.until("the next one is brought", async || fixture.seen() == ["b"]).await;
    let queue = Queue::new(store.clone(), &KeyRing::of(&[[1; 32]]), WebhookMetrics::default());
    assert_eq!(queue.list(None, NOW).await.unwrap(), []);
    let written = id.to_string();
    assert_eq!(HeldId::parse(&written[..63]), None);
    assert!(queue.drop_one(&HeldId::parse(&written).unwrap(), NOW).await.unwrap());
    assert!(store.get(Table::Held, id.as_bytes(), NOW).await.unwrap().is_none());
}

/// Regression: its lane had turn after turn without sending anything.
#[tokio::test]
async fn a_record_that_the_store_itself_cannot_read_stops_no_other() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    fixture.keep("hub", "1", "b").await.unwrap();
    store.tear(Table::Held, id.as_bytes());
    fixture.start();
    fixture.until("the next one is brought", async || fixture.seen() == ["b"]).await;
    assert!(matches!(&*fixture.queue.unreadable(), [(left, _)] if *left == id));
    assert!(fixture.queue.drop_one(&id, fixture.clock.now()).await.unwrap());
    assert_eq!(fixture.queue.unreadable(), []);
}

/// Regression: nothing was sent after a restart, every sender got 503, and nobody could list or drop the record.
#[tokio::test]
async fn a_record_that_the_store_itself_cannot_read_stops_nothing_after_a_restart() {
    let store = MemoryStore::shared();
    let dead = Fixture::new(&store, |_| panic!("it died before"));
    let id = dead.keep("hub", "1", "a").await.unwrap();
    dead.keep("hub", "1", "b").await.unwrap();
    store.tear(Table::Held, id.as_bytes());
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.keep("hub", "1", "c").await.expect("another delivery is taken");
    assert_eq!(fixture.held().await, [("b".to_owned(), false), ("c".to_owned(), false)]);
    fixture.start();
    fixture.until("the others are brought", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["b", "c"]);
    for _ in 0..2 {
        assert!(matches!(&*fixture.queue.unreadable(), [(left, _)] if *left == id));
        fixture.queue.recheck_unreadable(fixture.clock.now()).await.unwrap();
    }
    assert!(fixture.queue.drop_one(&id, fixture.clock.now()).await.unwrap());
    assert_eq!(fixture.queue.unreadable(), []);
}

/// Regression: neither the records checked together with it nor unreadable ones were checked any more.
#[tokio::test]
async fn a_parked_record_that_the_store_itself_cannot_read_hides_no_other() {
    let store = MemoryStore::shared();
    store.set_shared();
    let denying = || Fixture::new(&store, |_| failed(FailureKind::Denied));
    let (here, there) = (denying(), denying());
    here.queue.set_doubt(None);
    let mut ids = Vec::new();
    for delivery in ["a", "b", "c"] {
        ids.push(here.keep("hub", delivery, delivery).await.unwrap());
    }
    here.start();
    here.until("parked", async || here.held().await.iter().filter(|(_, parked)| *parked).count() == 3).await;
    here.stop.cancel();
    assert_eq!(there.held().await.len(), 3);
    let now = here.clock.now();
    for id in [&ids[0], &ids[2]] {
        assert!(here.queue.drop_one(id, now).await.unwrap());
    }
    store.tear(Table::Held, ids[1].as_bytes());
    there.queue.recheck_parked(now).await.unwrap();
    assert_eq!(there.held().await, []);
    assert!(matches!(&*there.queue.unreadable(), [(left, _)] if *left == ids[1]));
}

/// Another replica's operator may have dropped it.
#[tokio::test]
async fn an_unreadable_delivery_is_reported_until_it_is_removed() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| panic!("nothing is brought"));
    for number in 0..40 {
        spoil(&store, Table::Held, &HeldId::new([number; 32])).await;
    }
    fixture.queue.refresh(NOW).await.unwrap();
    assert!(fixture.metrics().contains("webhook_held_unreadable 40\n"));
    for number in 0..40 {
        assert!(store.delete(Table::Held, &[number; 32]).await.unwrap());
    }
    // The third check covers the rest.
    for left in [24, 8, 0] {
        fixture.queue.recheck_unreadable(NOW).await.unwrap();
        assert_eq!(fixture.queue.unreadable().len(), left);
    }
}

/// Otherwise a task that read the earlier record would take the later one out of its lane.
#[tokio::test]
async fn a_later_record_than_one_that_cannot_be_read_stays_in_its_lane() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| panic!("nothing is brought"));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let mut index = fixture.queue.index();
    let version = index.version(&id).unwrap();
    let mut mark_unreadable = |known| index.mark_unreadable(id, version - 1, "junk".to_owned(), known);
    assert!(!mark_unreadable(None), "a later one is known");
    // The store was set back to before the later record.
    assert!(mark_unreadable(Some(version)));
    assert!(!mark_unreadable(None), "it is told once");
    assert!(index.version(&id).is_none());
}

/// Nothing would extend their life later, as parked deliveries are not tried.
#[tokio::test]
async fn the_outcome_of_a_delivery_is_stored_before_it_is_parked() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| failed(FailureKind::Denied));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let once = HEXLOWER.encode(id.as_bytes());
    let tried = TriedEvent { event: EventId::parse("e1").unwrap(), attempt: "1".into() };
    let delivery = Named { once: once.as_str().into(), until: None };
    fixture.replay.bind_event(&delivery, "namespaces/ci/triggers/push", &tried, NOW).await.unwrap();
    store.set_dies_once_parked();
    fixture.start();
    fixture.until("parked", async || store.is_down()).await;
    fixture.stop.cancel();
    store.set_down(false);
    let late = NOW + PARKED_FOR;
    assert_eq!(fixture.replay.leave_open(&delivery, "2", late).await.unwrap().bound, [tried.event]);
}

/// Without this it would be sent a second time, which creates a second run where no interceptor is asked.
#[tokio::test]
async fn a_delivery_accepted_while_the_store_failed_is_removed_and_not_sent_again() {
    let store = MemoryStore::shared();
    let (script, breaks) = (store.clone(), Mutex::new(true));
    let fixture = Fixture::new(&store, move |_| {
        script.set_down(std::mem::take(&mut *breaks.lock().unwrap()));
        Attempt::Accepted(None)
    });
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.start();
    fixture.until("rests", async || fixture.seen().len() == 1 && !fixture.queue.is_delivering()).await;
    store.set_down(false);
    fixture.until("forgotten", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["a"]);
}

/// Only this process knows that the EventListener has it; otherwise it would be sent a second time.
#[tokio::test]
async fn accepted_deliveries_stay_known_even_if_the_store_is_set_back() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| panic!("nothing is brought"));
    let (taken, waiting) = (fixture.keep("hub", "1", "a").await.unwrap(), fixture.keep("hub", "2", "b").await.unwrap());
    let mut index = fixture.queue.index();
    index.set_taken(&taken);
    index.begin_anew();
    assert!(index.version(&taken).is_some(), "taken");
    assert!(index.version(&waiting).is_none(), "to be read again");
}
