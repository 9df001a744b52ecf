//! A store that gives no answer for a while, as while its disk is slow or another server takes over.

use tokio::time::{Instant, sleep};

use super::*;

/// What the sender waits for.
const PATIENCE: Duration = Duration::from_secs(7);

/// It was 503 after the first call, and its sender never sent it again.
#[tokio::test(start_paused = true)]
async fn what_comes_while_the_store_stalls_is_kept_once_it_answers() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Brought::Taken(None));
    store.set_down(true);
    let mends = async {
        sleep(Duration::from_secs(3)).await;
        store.set_down(false);
    };
    let (kept, ()) = tokio::join!(patiently(Instant::now() + PATIENCE, || fixture.keep("hub", "1", "a")), mends);
    kept.unwrap();
    assert_eq!(fixture.held().await, [("a".to_owned(), false)]);

    store.set_down(true);
    let begun = Instant::now();
    let lost = patiently(begun + PATIENCE, || fixture.keep("hub", "1", "b")).await.unwrap_err();
    assert_eq!(lost.reason(), Reason::StoreUnavailable);
    assert!((5..7).contains(&begun.elapsed().as_secs()), "its sender still waits: {:?}", begun.elapsed());
    fixture.queue.set_doubt(Some("it does not sync"));
    let begun = Instant::now();
    assert!(patiently(begun + PATIENCE, || fixture.keep("hub", "1", "b")).await.is_err());
    assert_eq!(begun.elapsed(), Duration::ZERO, "what does not pass is not waited for");
}

/// It looked like a repetition of itself.
#[tokio::test(start_paused = true)]
async fn what_was_stored_by_a_try_whose_answer_was_lost_is_kept() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Brought::Taken(None));
    store.set_alone(true);
    let mends = async {
        sleep(Duration::from_secs(3)).await;
        store.set_alone(false);
    };
    let request = Uuid::new_v4();
    let keep = || fixture.keep_as(request, "hub", "1", "a", SETTINGS);
    let (kept, ()) = tokio::join!(patiently(Instant::now() + PATIENCE, keep), mends);
    let (held, _) = fixture.queue.show(&kept.unwrap(), NOW).await.unwrap().unwrap();
    assert_eq!((held.request, fixture.held().await), (request, vec![("a".to_owned(), false)]));
    assert_eq!(
        fixture.keep("hub", "1", "a").await.unwrap_err().reason(),
        Reason::ReplayedDelivery,
        "of another request"
    );
}
