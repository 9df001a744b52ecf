//! Leases after the process that had them was killed.

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
    assert!(!can_take(killed.clone()).await, "the process has it already");
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
