//! Deliveries that the sender sends again on request.

use super::*;

/// The EventListener would accept both, and create two runs for one delivery.
#[tokio::test]
async fn a_delivery_that_is_sent_again_while_it_waits_is_no_further_one() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    let later = NOW + Duration::from_secs(61);
    let waiting_at = async |again, now| {
        let keys = ReplayKeys::new(&[[7; 32]], "a", None, Duration::from_secs(86_400)).redeliveries(again, false);
        fixture.queue.waiting(&fixture.replay, &keys, now).await.unwrap()
    };
    let waiting = async |again| waiting_at(again, later).await;
    assert_eq!(waiting(2).await, None);
    let request = Uuid::new_v4();
    let id = fixture.keep_as((request, false), "hub", "1", "a", SETTINGS).await.unwrap();
    assert_eq!(waiting(2).await, Some((id, request)));
    assert_eq!(waiting_at(2, NOW).await, None, "it is a retry of the sender, and a repetition");
    assert_eq!(waiting(0).await, None, "it is taken once, and is a repetition");

    let (mut held, version) = fixture.queue.read(&id, later).await.unwrap().unwrap();
    held.parked = Some(later);
    assert!(fixture.queue.rewrite(&id, held, version, None, later).await.unwrap());
    assert_eq!(waiting(2).await, None, "nobody tries it any more");

    fixture.queue.forget(&id, later).await.unwrap();
    assert_eq!(waiting(2).await, None, "it is gone");
}

/// Regression: nothing noticed it until a process that started weeks later sent it, when the interceptor had forgotten
/// its runs.
#[tokio::test(start_paused = true)]
async fn a_sent_delivery_restored_by_a_failover_is_sent_again_within_minutes() {
    let store = MemoryStore::shared();
    store.set_shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    fixture.keep("hub", "1", "a").await.unwrap();
    let standby = store.copy();
    fixture.start();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((fixture.seen(), fixture.held().await), (vec!["a".to_owned()], vec![]));
    store.fail_over_to(standby);
    assert_eq!(fixture.held().await, [], "nothing tells of it");
    tokio::time::sleep(Duration::from_secs(305)).await;
    assert_eq!((fixture.seen(), fixture.held().await), (vec!["a".to_owned(), "a".to_owned()], vec![]));
}

/// Regression: it was parked in memory only, and not tried until a restart.
#[tokio::test(start_paused = true)]
async fn a_delivery_whose_parking_a_failover_lost_is_tried_again() {
    let store = MemoryStore::shared();
    store.set_shared();
    let is_allowed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let allowed = Arc::clone(&is_allowed);
    let fixture = Fixture::new(&store, move |_| match allowed.load(std::sync::atomic::Ordering::SeqCst) {
        true => Attempt::Accepted(None),
        false => failed(FailureKind::Denied),
    });
    fixture.queue.set_doubt(None);
    fixture.keep("hub", "1", "a").await.unwrap();
    let standby = store.copy();
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    is_allowed.store(true, std::sync::atomic::Ordering::SeqCst);
    store.fail_over_to(standby);
    tokio::time::advance(Duration::from_secs(1)).await;
    fixture.until("delivered", async || fixture.held().await.is_empty()).await;
}
