//! Leases after the process that had them was killed, or could not reach the store.

use std::path::Path;

use super::*;

/// The queue of a process of this replica, which lives until it is dropped.
fn process(store: &Arc<MemoryStore>, replica: &str, folder: &Path) -> Queue {
    let identity = Identity::of(replica, &folder.join("doorward").with_extension(REPLICA_EXTENSION));
    Queue::new(store.clone(), &KeyRing::of(&[[1; 32]]), WebhookMetrics::default()).identified(identity)
}

fn lane() -> Lane {
    Lane { webhook: "hub".into(), repository: "7".into() }
}

/// Repositories stood still for a minute after each kill, although the replica was back at once.
#[tokio::test]
async fn a_replica_that_starts_again_takes_over_the_leases_of_its_killed_process() {
    let store = MemoryStore::shared();
    store.set_shared();
    let (folder, another) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (own, other) = (folder.path(), another.path());
    let can_take = async |queue: Queue| queue.lease(&lane(), NOW).await.unwrap().is_some();
    let killed = process(&store, "a", own);
    let mut lease = killed.lease(&lane(), NOW).await.unwrap().unwrap();
    assert!(!can_take(process(&store, "a", own)).await, "the process that has it lives");
    drop(killed);
    assert!(!can_take(process(&store, "b", own)).await, "another replica, to which the folder was copied");
    assert!(!can_take(process(&store, "a", other)).await, "another replica that has the same name");
    let again = process(&store, "a", own);
    assert!(can_take(again.clone()).await);
    let later = NOW + Duration::from_secs(30);
    assert!(!again.renew(&mut lease, later).await.unwrap(), "a late write of the killed process");
    assert!(!can_take(process(&store, "b", other)).await);
}

/// A lost answer of the store made a live replica wait a minute for itself.
#[tokio::test]
async fn a_process_takes_over_the_lease_that_an_earlier_turn_of_its_own_left_behind() {
    let store = MemoryStore::shared();
    store.set_shared();
    let (folder, another) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let without_folder = Queue::new(store.clone(), &KeyRing::of(&[[1; 32]]), WebhookMetrics::default());
    let there = process(&store, "b", another.path());
    for queue in [process(&store, "a", folder.path()), without_folder] {
        let mut left = queue.lease(&lane(), NOW).await.unwrap().unwrap();
        let again = queue.lease(&lane(), NOW).await.unwrap().expect("its own");
        let later = NOW + Duration::from_secs(30);
        assert!(!queue.renew(&mut left, later).await.unwrap(), "a late write of the earlier turn");
        queue.give_back(left, NOW).await;
        assert!(there.lease(&lane(), NOW).await.unwrap().is_none(), "given back by a late write of the earlier turn");
        queue.give_back(again, NOW).await;
        let free = there.lease(&lane(), NOW).await.unwrap().expect("given back");
        assert!(queue.lease(&lane(), NOW).await.unwrap().is_none(), "another replica has it");
        there.give_back(free, NOW).await;
    }
}

/// While the store was away, the EventListener accepted the first delivery, which could not be removed: the repository
/// stood still for a minute, and then another replica sent the delivery again.
#[tokio::test]
async fn a_lane_goes_on_as_soon_as_the_store_is_back_and_sends_nothing_again() {
    for is_long in [false, true] {
        let store = MemoryStore::shared();
        store.set_shared();
        let switched = Arc::clone(&store);
        let here = Fixture::new(&store, move |held| {
            switched.set_down(&*held.delivery == "1");
            Attempt::Accepted(None)
        });
        let there = Fixture::new(&store, |_| panic!("it has no turn"));
        here.queue.set_doubt(None);
        for delivery in ["1", "2"] {
            here.keep("hub", "7", delivery).await.unwrap();
        }
        let lane = here.queue.list(None, NOW).await.unwrap()[0].1.lane();
        here.start();
        here.until("away", async || store.is_down() && !here.queue.is_delivering()).await;
        here.clock.advance(if is_long { Duration::from_secs(61) } else { Duration::ZERO });
        store.set_down(false);
        let back = here.clock.now();
        let taken = there.queue.lease(&lane, back).await.unwrap();
        assert_eq!(taken.is_some(), is_long, "its lease has ended");
        if let Some(lease) = taken {
            // It does not know that the first was accepted.
            here.until("removed", async || here.held().await == [("2".to_owned(), false)]).await;
            there.queue.give_back(lease, here.clock.now()).await;
        }
        here.until("done", async || here.held().await.is_empty()).await;
        assert!(here.clock.now() < back + Duration::from_secs(30), "it waited for a lease");
        assert_eq!(here.seen(), ["1", "2"]);
    }
}

/// An operator was told that a delivery is tried that its EventListener had accepted.
#[tokio::test]
async fn a_delivery_that_was_accepted_and_not_removed_is_not_retried() {
    let store = MemoryStore::shared();
    let switched = Arc::clone(&store);
    let fixture = Fixture::new(&store, move |_| {
        switched.set_down(true);
        Attempt::Accepted(None)
    });
    let id = fixture.keep("hub", "7", "1").await.unwrap();
    fixture.start();
    fixture.until("away", async || store.is_down() && !fixture.queue.is_delivering()).await;
    store.set_down(false);
    assert!(!fixture.queue.retry(&id, fixture.clock.now()).await.unwrap());
    assert!(fixture.held().await.is_empty());
    assert_eq!(fixture.seen(), ["1"]);
}

/// Nothing said why they stood still.
#[tokio::test]
async fn the_leases_of_all_replicas_are_listed_until_they_are_given_back() {
    let store = MemoryStore::shared();
    let folder = tempfile::tempdir().unwrap();
    let queue = process(&store, "a", folder.path());
    let lease = queue.lease(&lane(), NOW).await.unwrap().unwrap();
    assert_eq!(queue.leases(NOW).await.unwrap().of(&lane()), None, "nobody else uses the store");
    queue.give_back(lease, NOW).await;

    store.set_shared();
    let lease = queue.lease(&lane(), NOW).await.unwrap().unwrap();
    let there = Queue::new(store.clone(), &KeyRing::of(&[[1; 32]]), WebhookMetrics::default());
    let until = NOW + Duration::from_secs(60);
    assert_eq!(there.leases(NOW).await.unwrap().of(&lane()), Some(("a", until)));
    let other = Lane { repository: "8".into(), ..lane() };
    assert_eq!(there.leases(NOW).await.unwrap().of(&other), None);
    queue.give_back(lease, NOW).await;
    assert_eq!(there.leases(NOW).await.unwrap().of(&lane()), None);
}
