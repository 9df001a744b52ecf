//! Time that passes while no process is there to try held deliveries.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Deliveries whose EventListener is down until the flag is set.
fn with_listener(store: &Arc<MemoryStore>) -> (Fixture, Arc<AtomicBool>) {
    let is_up = Arc::new(AtomicBool::new(false));
    let up = Arc::clone(&is_up);
    let fixture = Fixture::new(store, move |_| match up.load(Ordering::SeqCst) {
        true => Attempt::Accepted(None),
        false => failed(FailureKind::Passing),
    });
    (fixture, is_up)
}

/// Deliveries of a process that ended so long ago that their time is over.
async fn after_an_outage() -> (Fixture, Arc<AtomicBool>) {
    let store = MemoryStore::shared();
    let dead = Fixture::new(&store, |_| panic!("it died before"));
    for delivery in ["a", "b", "c"] {
        dead.keep("hub", "1", delivery).await.unwrap();
    }
    let (fixture, is_up) = with_listener(&store);
    fixture.clock.set(NOW + SETTINGS.span * 2);
    fixture.start();
    (fixture, is_up)
}

async fn assert_all_are_taken_in_order(fixture: &Fixture, is_up: &AtomicBool) {
    is_up.store(true, Ordering::SeqCst);
    fixture.until("taken", async || fixture.held().await.is_empty()).await;
    let mut seen = fixture.seen();
    seen.dedup();
    assert_eq!(seen, ["a", "b", "c"]);
}

/// Regression: all were tried once and parked within seconds, before the pod of the EventListener was ready.
#[tokio::test]
async fn an_overdue_delivery_after_an_outage_waits_for_its_event_listener() {
    let (fixture, is_up) = after_an_outage().await;
    fixture.until("tried", async || fixture.seen().len() >= 5).await;
    assert_all_are_taken_in_order(&fixture, &is_up).await;
}

#[tokio::test]
async fn an_overdue_delivery_after_an_outage_is_parked_after_ten_minutes() {
    let (fixture, _) = after_an_outage().await;
    let began = fixture.clock.now();
    fixture.until("parked", async || fixture.held().await.iter().all(|(_, parked)| *parked)).await;
    let took = fixture.clock.now().since(began).as_secs();
    assert!((600..700).contains(&took), "{took} s");
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_parks_nothing_that_its_event_listener_takes_soon() {
    let (fixture, is_up) = with_listener(&MemoryStore::shared());
    for delivery in ["a", "b", "c"] {
        fixture.keep("hub", "1", delivery).await.unwrap();
    }
    fixture.start();
    // This process has known it for longer than deliveries found after a start are tried.
    let later = NOW + Duration::from_secs(1200);
    fixture.until("tried", async || fixture.clock.now() > later).await;
    fixture.clock.set(later + SETTINGS.span * 25);
    let tries = fixture.seen().len();
    fixture.until("tried", async || fixture.seen().len() >= tries + 3).await;
    assert_all_are_taken_in_order(&fixture, &is_up).await;
}
