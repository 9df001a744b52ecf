//! A sender that floods, and one that does not.

use super::*;
use crate::webhooks::hold::queue_slot::QueueSlot;

#[tokio::test]
async fn a_sender_with_many_repositories_that_hang_delays_no_other() {
    let fixture = Fixture::new(&MemoryStore::shared(), |held| match &*held.webhook {
        "hub" => failed(FailureKind::Passing),
        _ => Attempt::Accepted(None),
    });
    for number in 0..200 {
        fixture.keep("hub", &number.to_string(), &format!("hub-{number}")).await.unwrap();
    }
    fixture.keep("lab", "1", "lab").await.unwrap();
    fixture.start();
    fixture.until("taken", async || fixture.seen().iter().any(|delivery| delivery == "lab")).await;
    assert!(fixture.seen().len() <= LANES + 1 + 200 / 4, "{:?}", fixture.seen());
}

/// Otherwise eight busy repositories would keep all others of their sender waiting.
#[tokio::test]
async fn a_repository_has_its_turn_beside_eight_of_its_sender_that_are_never_empty() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    for number in 0..LANES * 100 {
        fixture.keep("hub", &(number % LANES).to_string(), &number.to_string()).await.unwrap();
    }
    fixture.keep("hub", "ninth", "ninth").await.unwrap();
    fixture.start();
    fixture.until("delivered", async || fixture.seen().contains(&"ninth".to_owned())).await;
    let before = fixture.seen().iter().position(|delivery| delivery == "ninth").unwrap();
    assert!(before <= (LANES + 1) * 32, "{before} came before it");
}

/// Otherwise many concurrent deliveries could exceed the limit.
#[tokio::test]
async fn deliveries_that_are_being_written_count_against_the_bound_of_their_sender() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| panic!("nothing is brought"));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    let (held, _) = fixture.queue.show(&id, NOW).await.unwrap().unwrap();
    for settings in [Settings { max: 2, ..SETTINGS }, Settings { max_bytes: held.size * 5 / 2, ..SETTINGS }] {
        let take = || QueueSlot::take(&fixture.queue, &held, &settings);
        let being_written = take();
        assert!(being_written.is_some() && take().is_none(), "{settings:?}");
        drop(being_written);
        assert!(take().is_some(), "{settings:?}");
    }
}

/// The number of deliveries after a minute of 10,000 without progress. A few of them precede each delivery of the other
/// sender, however many of them wait.
#[tokio::test]
async fn a_sender_with_ten_thousand_held_deliveries_hardly_delays_another() {
    const FLOOD: usize = 10_000;
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    let settings = Settings { max: FLOOD, max_bytes: u64::MAX, ..SETTINGS };
    for number in 0..FLOOD {
        let repository = (number % 50).to_string();
        fixture.keep_within("hub", &repository, &format!("hub-{number}"), settings).await.unwrap();
    }
    fixture.start();
    for number in 0..20 {
        let before = fixture.seen().len();
        fixture.until("under way", async || fixture.seen().len() > before).await;
        let (before, delivery) = (fixture.seen().len(), format!("lab-{number}"));
        fixture.keep("lab", "1", &delivery).await.unwrap();
        fixture.until("delivered", async || fixture.seen().contains(&delivery)).await;
        let came = fixture.seen().iter().position(|seen| *seen == delivery).unwrap();
        // The deliveries in flight of each of the other's lanes end, and each may be followed by one more.
        assert!(came - before <= 2 * LANES, "{delivery} came after {} of the others", came - before);
    }
    assert!(fixture.held().await.len() > FLOOD / 2, "the others still wait");
}

/// A Git host that sends once has lost it, although it may be far from a twentieth of all requests, the threshold of
/// the alert for failures.
#[tokio::test]
async fn a_delivery_that_finds_the_queue_of_its_sender_full_is_counted() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    let one = Settings { max: 1, ..SETTINGS };
    fixture.keep_within("hub", "1", "a", one).await.unwrap();
    for delivery in ["b", "c"] {
        fixture.keep_within("hub", "1", delivery, one).await.unwrap_err();
    }
    fixture.keep_within("lab", "1", "d", one).await.unwrap();
    let metrics = fixture.metrics();
    let counted: Vec<_> = metrics.lines().filter(|line| line.starts_with("webhook_queue_full_total{")).collect();
    assert_eq!(counted, ["webhook_queue_full_total{webhook=\"hub\"} 2"]);
}
