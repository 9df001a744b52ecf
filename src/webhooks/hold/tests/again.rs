//! Deliveries that somebody has the sender send again.

use super::*;

/// The EventListener would take both, and make two runs of what was one delivery all the time.
#[tokio::test]
async fn a_delivery_that_is_sent_again_while_it_waits_is_no_further_one() {
    let fixture = Fixture::new(&MemoryStore::shared(), |_| Brought::Taken(None));
    fixture.queue.set_doubt(None);
    let later = NOW + Duration::from_secs(61);
    let waiting_at = async |again, now| {
        let keys = ReplayKeys::new(&[[7; 32]], "a", None, Duration::from_secs(86_400)).redeliveries(again, false);
        fixture.queue.waiting(&fixture.replay, &keys, now).await.unwrap()
    };
    let waiting = async |again| waiting_at(again, later).await;
    assert_eq!(waiting(2).await, None);
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    assert_eq!(waiting(2).await, Some(id));
    assert_eq!(waiting_at(2, NOW).await, None, "it is a retry of the sender, and a repetition");
    assert_eq!(waiting(0).await, None, "it is taken once, and is a repetition");

    let (mut held, version) = fixture.queue.look(&id, later).await.unwrap().unwrap();
    held.parked = Some(later);
    assert!(fixture.queue.rewrite(&id, held, version, None, later).await.unwrap());
    assert_eq!(waiting(2).await, None, "nobody tries it any more");

    fixture.queue.forget(&id, later).await.unwrap();
    assert_eq!(waiting(2).await, None, "it is gone");
}
