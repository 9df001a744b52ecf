//! When a delivery is tried next, also if the clock is set back.

use super::*;

#[test]
fn clocks_of_replicas_may_differ_by_less_than_a_pause() {
    for (ahead, due) in [(0, true), (1, false), (30, false), (45, false), (61, true), (3600, true)] {
        assert_eq!(is_due(NOW + Duration::from_secs(ahead), NOW), due, "{ahead} s");
    }
}

/// Regression: each lane of a sender said so every second, for a day if a delivery is larger than all the memory.
#[tokio::test(start_paused = true)]
async fn a_sender_whose_deliveries_wait_is_warned_about_once_a_minute() {
    let (memory, store) = (index::Lacking::Memory, index::Lacking::Store);
    let (mut index, hub, lab): (_, Arc<str>, Arc<str>) = (index::Index::default(), "hub".into(), "lab".into());
    for (waited, webhook, lacking, expected) in [
        (0, &hub, memory, true),
        (0, &hub, memory, false),
        (0, &hub, store, true),
        (0, &lab, memory, true),
        (59, &hub, memory, false),
        (1, &hub, memory, true),
        (0, &hub, memory, false),
    ] {
        tokio::time::advance(Duration::from_secs(waited)).await;
        assert_eq!(index.is_warning_due(webhook, lacking), expected, "{waited} {webhook} {lacking:?}");
    }
}

#[tokio::test]
async fn pauses_between_tries_double_up_to_a_bound() {
    let mut held = {
        let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
        let id = fixture.keep("hub", "1", "a").await.unwrap();
        fixture.queue.show(&id, NOW).await.unwrap().unwrap().0
    };
    let failure = Failure { kind: FailureKind::Passing, why: "down".to_owned() };
    let mut pauses = Vec::new();
    for _ in 0..7 {
        assert!(!held.record_failure(&failure, NOW, false));
        pauses.push(held.next.since(NOW).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    assert!(held.record_failure(&failure, NOW + SETTINGS.span, true), "its time is over");
}

#[tokio::test]
async fn the_last_try_is_at_the_end_of_the_time_and_not_before() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    let minute = Settings { span: Duration::from_secs(60), ..SETTINGS };
    let id = fixture.keep_within("hub", "1", "a", minute).await.unwrap();
    let mut held = fixture.queue.show(&id, NOW).await.unwrap().unwrap().0;
    let (mut now, mut tries) = (NOW, Vec::new());
    while !held.record_failure(&Failure { kind: FailureKind::Passing, why: "down".to_owned() }, now, now >= held.until)
    {
        tries.push(now.since(NOW).as_secs());
        now = held.next;
    }
    assert_eq!((tries.as_slice(), now), (&[0, 1, 3, 7, 15, 31][..], NOW + minute.span));
}

/// Regression: each was tried five times, so a lane whose EventListener hangs fell further behind and sent deliveries
/// that were days old.
#[tokio::test]
async fn a_delivery_that_is_late_by_a_minute_is_tried_once() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let held = fixture.queue.show(&id, NOW).await.unwrap().unwrap().0;
    let failure = Failure { kind: FailureKind::Passing, why: "down".to_owned() };
    for (late, is_last) in [(Duration::ZERO, false), (LATE - Duration::from_secs(1), false), (LATE, true)] {
        assert_eq!(held.clone().record_failure(&failure, held.until + late, true), is_last, "{late:?}");
    }
}

/// Otherwise a delivery that was tried before would wait for as long as the clock went back, and its whole repository
/// with it.
#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_stops_nothing() {
    let hour = Duration::from_secs(3600);
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match held.received > NOW - Duration::from_secs(1) {
        true if held.tries < 3 => failed(FailureKind::Passing),
        _ => Attempt::Accepted(None),
    });
    fixture.keep("hub", "1", "before").await.unwrap();
    fixture.start();
    fixture.until("tried", async || fixture.seen().len() == 2).await;
    tokio::time::advance(Duration::from_secs(100)).await;
    fixture.clock.set(fixture.clock.now() - hour);
    let set_back = fixture.clock.now();
    let age = |webhook: &str| {
        let index = fixture.queue.index();
        index.oldest(set_back).find(|(of, _)| &***of == webhook).map(|(_, age)| age.as_secs())
    };
    assert_eq!(age("hub"), Some(100), "by a clock that nobody sets");
    fixture.keep("hub", "1", "after").await.unwrap();
    fixture.until("taken", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen(), ["before", "before", "before", "before", "after"]);
    assert!(fixture.clock.now() < set_back + Duration::from_secs(60), "{} {set_back}", fixture.clock.now());
    assert_eq!(age("hub"), Some(0));
}

#[tokio::test]
async fn a_pausing_lane_continues_after_the_clock_was_set_back() {
    let store = MemoryStore::shared();
    let (script, breaks) = (store.clone(), Mutex::new(true));
    let fixture = Fixture::new(&store, move |_| {
        script.set_down(std::mem::take(&mut *breaks.lock().unwrap()));
        failed(FailureKind::Passing)
    });
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.start();
    fixture.until("rests", async || fixture.seen().len() == 1 && !fixture.queue.is_delivering()).await;
    fixture.clock.set(fixture.clock.now() - Duration::from_secs(3600));
    let set_back = fixture.clock.now();
    store.set_down(false);
    fixture.until("tried", async || fixture.seen().len() == 2).await;
    assert!(fixture.clock.now() < set_back + Duration::from_secs(60), "{} {set_back}", fixture.clock.now());
}

/// Regression: a single 404 of a starting gateway parked the delivery that had waited for it.
#[tokio::test]
async fn a_refusal_after_an_outage_is_the_first() {
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match held.tries {
        0..6 => failed(FailureKind::Passing),
        6..10 => failed(FailureKind::Refused),
        _ => Attempt::Accepted(None),
    });
    fixture.keep("hub", "1", "a").await.unwrap();
    fixture.start();
    fixture.until("taken", async || fixture.held().await.is_empty()).await;
    assert_eq!(fixture.seen().len(), 11);
}
