//! Deliveries that are no longer tried, until an operator retries them or they expire.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[tokio::test]
async fn attacks_z18_a_delivery_that_is_always_refused_is_parked_and_later_ones_continue() {
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match &*held.delivery {
        "bad" => failed(FailureKind::Refused),
        "denied" if held.received == NOW && held.until <= NOW + SETTINGS.span => failed(FailureKind::Denied),
        _ => Attempt::Accepted(None),
    });
    for delivery in ["bad", "denied", "good"] {
        fixture.keep("hub", "1", delivery).await.unwrap();
    }
    fixture.start();
    let parked = [("bad".to_owned(), true), ("denied".to_owned(), true)];
    fixture.until("parked", async || fixture.held().await == parked).await;
    assert_eq!(fixture.seen(), ["bad", "bad", "bad", "bad", "bad", "denied", "good"]);
    let metrics = fixture.metrics();
    for line in ["webhook_try_failed_total{webhook=\"hub\"} 6\n", "webhook_parked_total{webhook=\"hub\"} 2\n"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }

    // An operator retries it, with its whole time.
    let id = fixture.queue.list(None, fixture.clock.now()).await.unwrap()[1].0;
    assert!(fixture.queue.retry(&id, fixture.clock.now()).await.unwrap());
    fixture.until("taken", async || fixture.held().await.len() == 1).await;
    let id = fixture.queue.list(None, fixture.clock.now()).await.unwrap()[0].0;
    assert!(fixture.queue.drop_one(&id, fixture.clock.now()).await.unwrap());
    assert!(!fixture.queue.drop_one(&id, fixture.clock.now()).await.unwrap());
    assert!(!fixture.queue.retry(&id, fixture.clock.now()).await.unwrap());
    assert_eq!(fixture.held().await, []);
}

/// An operator may retry it that late, which must not create a second run.
#[tokio::test]
async fn the_outcome_of_a_parked_delivery_is_known_as_long_as_it_is_stored() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| failed(FailureKind::Denied));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let once = HEXLOWER.encode(id.as_bytes());
    let tried = TriedEvent { event: EventId::parse("e1").unwrap(), attempt: "1".into() };
    let delivery = Named { once: once.as_str().into(), until: None };
    fixture.replay.bind_event(&delivery, "namespaces/ci/triggers/push", &tried, NOW).await.unwrap();
    let late = NOW + PARKED_FOR;
    assert!(fixture.replay.leave_open(&delivery, "2", late).await.unwrap().bound.is_empty(), "no longer than others");
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    fixture
        .until("kept", async || {
            fixture.replay.leave_open(&delivery, "2", late).await.unwrap().bound == [tried.event.clone()]
        })
        .await;
}

#[tokio::test]
async fn one_that_is_not_taken_in_its_time_is_parked_until_its_end() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| failed(FailureKind::Passing));
    fixture.keep_within("hub", "1", "a", Settings { span: Duration::from_secs(60), ..SETTINGS }).await.unwrap();
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    assert!(fixture.clock.now() >= NOW + Duration::from_secs(60) && fixture.seen().len() > 4, "{:?}", fixture.seen());
    let id = fixture.queue.find("", fixture.clock.now()).await.unwrap()[0].0;
    let parked = fixture.clock.now();
    assert!(fixture.queue.show(&id, parked + PARKED_FOR - Duration::from_secs(60)).await.unwrap().is_some());
    assert!(fixture.queue.show(&id, parked + PARKED_FOR).await.unwrap().is_none());
}

/// Regression: it was parked after one attempt, at which its EventListener may just have been starting.
#[tokio::test]
async fn what_stood_behind_another_until_its_time_was_over_is_tried_five_times() {
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match (&*held.delivery, held.tries) {
        ("b", 4) => Attempt::Accepted(None),
        _ => failed(FailureKind::Passing),
    });
    for delivery in ["a", "b", "c"] {
        fixture
            .keep_within("hub", "1", delivery, Settings { span: Duration::from_secs(60), ..SETTINGS })
            .await
            .unwrap();
    }
    fixture.start();
    let parked = [("a".to_owned(), true), ("c".to_owned(), true)];
    fixture.until("parked", async || fixture.held().await == parked).await;
    let tries = |delivery: &str| fixture.seen().iter().filter(|seen| *seen == delivery).count();
    assert_eq!((tries("b"), tries("c")), (5, 5));
    assert!(tries("a") > 5, "{:?}", fixture.seen());
}

/// Otherwise they would count towards the sender's limit for good.
#[tokio::test(start_paused = true)]
async fn parked_deliveries_that_another_replica_dropped_or_sent_take_no_room() {
    let store = MemoryStore::shared();
    store.set_shared();
    let denying = || Fixture::new(&store, |_| failed(FailureKind::Denied));
    let (here, there) = (denying(), denying());
    here.start();
    let small = Settings { max: 3, ..SETTINGS };
    let mut ids = Vec::new();
    for delivery in ["dropped", "brought", "parked"] {
        ids.push(here.keep_within("hub", "1", delivery, small).await.unwrap());
    }
    here.until("parked", async || here.held().await.iter().filter(|(_, parked)| *parked).count() == 3).await;
    assert!(here.keep_within("hub", "1", "more", small).await.is_err(), "twin: they are there");

    let now = here.clock.now();
    assert!(there.queue.drop_one(&ids[0], now).await.unwrap());
    assert!(there.queue.retry(&ids[1], now).await.unwrap());
    there.queue.forget(&ids[1], now).await.unwrap();
    assert_eq!(here.held().await.len(), 3, "twin: nothing tells");
    tokio::time::advance(Duration::from_secs(1)).await;
    here.until("known", async || here.held().await == [("parked".to_owned(), true)]).await;
    here.keep_within("hub", "1", "more", small).await.expect("there is room");
}

/// Redis is asked for each in turn, while the queue does nothing else.
#[tokio::test]
async fn sixteen_parked_deliveries_are_checked_per_tick() {
    let store = MemoryStore::shared();
    store.set_shared();
    let (here, there) =
        (Fixture::new(&store, |_| failed(FailureKind::Denied)), Fixture::new(&store, |_| failed(FailureKind::Denied)));
    let mut ids = Vec::new();
    here.queue.set_doubt(None);
    for number in 0..40 {
        ids.push(here.keep("hub", &number.to_string(), &number.to_string()).await.unwrap());
    }
    here.start();
    here.until("parked", async || here.held().await.iter().filter(|(_, parked)| *parked).count() == 40).await;
    assert_eq!(there.held().await.len(), 40);
    let now = here.clock.now();
    for id in &ids {
        assert!(here.queue.drop_one(id, now).await.unwrap());
    }
    // The third check covers the rest.
    for left in [24, 8, 0] {
        there.queue.recheck_parked(now).await.unwrap();
        assert_eq!(there.held().await.len(), left);
    }
}

#[tokio::test]
async fn a_parked_delivery_that_changed_while_it_was_checked_remains() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| failed(FailureKind::Denied));
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.start();
    let parked = [("a".to_owned(), true)];
    fixture.until("parked", async || fixture.held().await == parked).await;
    for _ in 0..2 {
        let (id, version) = fixture.queue.index().parked_turn(1)[0];
        assert!(fixture.queue.index().parked_turn(1).is_empty(), "after the last the first is next");
        fixture.queue.index().remove_version(&id, version + 1);
    }
    assert_eq!(fixture.held().await, parked);
}

/// With an embedded store nobody else can have removed one.
#[tokio::test(start_paused = true)]
async fn a_parked_delivery_takes_no_room_once_its_record_has_ended() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| failed(FailureKind::Denied));
    let small = Settings { max: 1, ..SETTINGS };
    fixture.keep_within("hub", "1", "a", small).await.unwrap();
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    assert!(fixture.keep_within("hub", "1", "b", small).await.is_err());
    fixture.clock.advance(PARKED_FOR);
    tokio::time::advance(Duration::from_secs(1)).await;
    fixture
        .until("room", async || match fixture.keep_within("hub", "1", "b", small).await {
            Ok(_) => true,
            Err(rejection) => {
                assert_eq!(rejection.reason(), Reason::Overloaded);
                false
            }
        })
        .await;
}

/// Regression: each attempt raised the metric and wrote the log line, while nothing was parked.
#[tokio::test]
async fn a_delivery_counts_as_parked_once_the_store_has_it_so() {
    let store = MemoryStore::shared();
    let is_broken = Arc::new(AtomicBool::new(true));
    let (script, broken) = (store.clone(), Arc::clone(&is_broken));
    let fixture = Fixture::new(&store, move |_| {
        script.set_down(broken.load(Ordering::SeqCst));
        failed(FailureKind::Denied)
    });
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.start();
    for tries in 1..=2 {
        store.set_down(false);
        fixture.until("tried", async || fixture.seen().len() == tries && !fixture.queue.is_delivering()).await;
    }
    assert!(!fixture.metrics().contains("webhook_parked_total{"), "{}", fixture.metrics());
    is_broken.store(false, Ordering::SeqCst);
    store.set_down(false);
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    assert!(fixture.metrics().contains("webhook_parked_total{webhook=\"hub\"} 1\n"), "{}", fixture.metrics());
}

/// Nothing else reports it. Regression: if another replica parked it, both reported it.
#[tokio::test]
async fn an_unconfirmed_parking_counts_once_seen_and_that_of_another_replica_does_not() {
    for (written, is_ours) in [(NOW, true), (NOW + Duration::from_secs(1), false)] {
        let store = MemoryStore::shared();
        let nothing = || Fixture::new(&store, |_| panic!("nothing is brought"));
        let (here, elsewhere) = (nothing(), nothing());
        let id = here.keep("hub", "1", "a").await.unwrap();
        here.queue.index().set_parking(id, NOW);
        let (mut held, version) = elsewhere.queue.read(&id, NOW).await.unwrap().unwrap();
        held.parked = Some(written);
        assert!(elsewhere.queue.rewrite(&id, held, version, None, NOW).await.unwrap());
        for _ in 0..2 {
            here.queue.refresh(NOW).await.unwrap();
        }
        assert_eq!(here.held().await, [("a".to_owned(), true)]);
        let metrics = here.metrics();
        assert_eq!(metrics.contains("webhook_parked_total{webhook=\"hub\"} 1\n"), is_ours, "{metrics}");
        assert_eq!(metrics.contains("webhook_parked_total{"), is_ours, "{metrics}");
        assert!(!elsewhere.metrics().contains("webhook_parked_total{"), "{}", elsewhere.metrics());
    }
}

/// An operator drops it during its last attempt.
struct Dropping(Fixture);

impl Deliverer for Dropping {
    fn room(&self, held: &Held) -> Option<Room> {
        self.0.deliverer.room(held)
    }

    async fn deliver(&self, id: HeldId, _: &Held, _: HeldRequest) -> Attempt {
        assert!(self.0.queue.drop_one(&id, NOW).await.unwrap());
        failed(FailureKind::Denied)
    }
}

#[tokio::test]
async fn one_that_was_dropped_during_its_last_try_is_not_parked() {
    let store = MemoryStore::shared();
    let nothing = || Fixture::new(&store, |_| panic!("another brings"));
    let (here, mut same) = (nothing(), nothing());
    same.queue = here.queue.clone();
    here.keep("hub", "1", "a").await.unwrap();
    let deliverer = Arc::new(Dropping(same));
    tokio::spawn(run(
        here.queue.clone(),
        deliverer,
        here.clock.clone(),
        Drain::default(),
        Duration::ZERO,
        here.stop.clone(),
    ));
    let is_tried = || here.metrics().contains("webhook_try_failed_total{webhook=\"hub\"} 1\n");
    here.until("tried", async || is_tried() && !here.queue.is_delivering()).await;
    assert_eq!(here.held().await, []);
    assert!(!here.metrics().contains("webhook_parked_total{"), "{}", here.metrics());
}
