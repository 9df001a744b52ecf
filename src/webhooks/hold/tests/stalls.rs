//! A store that does not answer for a while, for example because its disk is slow or during a failover.

use tokio::time::{Instant, sleep};

use super::*;

/// How long the sender waits.
const PATIENCE: Duration = Duration::from_secs(7);

/// Regression: the sender got 503 after the first call, and never sent the delivery again.
#[tokio::test(start_paused = true)]
async fn a_delivery_that_arrives_while_the_store_stalls_is_stored_once_it_answers() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    store.set_down(true);
    let mends = async {
        sleep(Duration::from_secs(3)).await;
        store.set_down(false);
    };
    let (kept, ()) = tokio::join!(patiently(Instant::now() + PATIENCE, |_| fixture.keep("hub", "1", "a")), mends);
    kept.unwrap();
    assert_eq!(fixture.held().await, [("a".to_owned(), false)]);

    store.set_down(true);
    let begun = Instant::now();
    let lost = patiently(begun + PATIENCE, |_| fixture.keep("hub", "1", "b")).await.unwrap_err();
    assert_eq!(lost.reason(), Reason::StoreUnavailable);
    assert!((5..7).contains(&begun.elapsed().as_secs()), "its sender still waits: {:?}", begun.elapsed());
    fixture.queue.set_doubt(Some("it does not sync"));
    let begun = Instant::now();
    assert!(patiently(begun + PATIENCE, |_| fixture.keep("hub", "1", "b")).await.is_err());
    assert_eq!(begun.elapsed(), Duration::ZERO, "what does not pass is not waited for");
}

/// Regression: it was treated as a duplicate of itself, or refused because the queue had no further place.
#[tokio::test(start_paused = true)]
async fn a_delivery_stored_by_an_attempt_whose_answer_was_lost_is_kept() {
    let full = Settings { max: 1, ..SETTINGS };
    for (settings, doubt) in [(SETTINGS, None), (full, None), (SETTINGS, Some("it does not sync"))] {
        let store = MemoryStore::shared();
        let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
        store.set_alone(true);
        let mends = async {
            sleep(Duration::from_millis(50)).await;
            fixture.queue.set_doubt(doubt);
            sleep(Duration::from_secs(3)).await;
            store.set_alone(false);
        };
        let request = Uuid::new_v4();
        let keep = |is_again| fixture.keep_as((request, is_again), "hub", "1", "a", settings);
        let (kept, ()) = tokio::join!(patiently(Instant::now() + PATIENCE, keep), mends);
        let (held, _) = fixture.queue.show(&kept.unwrap(), NOW).await.unwrap().unwrap();
        assert_eq!((held.request, fixture.held().await), (request, vec![("a".to_owned(), false)]));
        fixture.queue.set_doubt(None);
        assert_eq!(
            fixture.keep("hub", "1", "a").await.unwrap_err().reason(),
            Reason::ReplayedDelivery,
            "of another request"
        );
        assert!(!fixture.metrics().contains("queue_full_total{"), "{}", fixture.metrics());
    }
}

/// Regression: if its sender's queue was full, it got 200 before another server had it, and was lost with the only one.
#[tokio::test]
async fn a_repeated_delivery_is_called_accepted_only_once_no_failover_can_lose_it() {
    for settings in [SETTINGS, Settings { max: 1, ..SETTINGS }] {
        let store = MemoryStore::shared();
        let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
        let reason = async |delivery| fixture.keep_within("hub", "1", delivery, settings).await.unwrap_err().reason();
        store.set_alone(true);
        assert_eq!(reason("a").await, Reason::StoreUnavailable);
        assert_eq!(fixture.held().await, [("a".to_owned(), false)]);
        assert_eq!(reason("a").await, Reason::StoreUnavailable, "{} at most", settings.max);
        store.set_alone(false);
        assert_eq!(reason("a").await, Reason::ReplayedDelivery, "{} at most", settings.max);
        if settings.max == 1 {
            assert_eq!(reason("b").await, Reason::Overloaded, "the twin");
        }
    }
}

/// A write that the store does not confirm in time may be done just before the next attempt writes.
#[tokio::test]
async fn a_delivery_stored_between_read_and_write_of_another_attempt_is_kept() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    let request = Uuid::new_v4();
    let kept = fixture.keep_as((request, false), "hub", "1", "a", SETTINGS).await.unwrap();
    assert_eq!(fixture.keep_as((request, false), "hub", "1", "a", SETTINGS).await.unwrap(), kept);
}
