use super::{under_way::SWEEP_FROM, *};
use crate::webhooks::testing::MemoryStore;

const LEASE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(3 * 86_400);
const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn keys(scope: u8, id: &str, body: Option<u8>) -> ReplayKeys {
    ReplayKeys::new(&[[scope; 32]], id, body.map(|body| [body; 32]).as_ref(), WINDOW)
}

/// One for each place of reservations: a shared store, an embedded store that is not known to work, and memory.
fn everywhere() -> [Replay; 3] {
    let others = MemoryStore::shared();
    others.set_shared();
    let here = Replay::new(MemoryStore::shared());
    here.under_way.set_store_works(true);
    [Replay::new(others), Replay::new(MemoryStore::shared()), here]
}

fn reason(result: Result<Reservation, Rejection>) -> Option<Reason> {
    result.err().map(|rejection| rejection.reason())
}

/// Regression: somebody who had seen a delivery got the answer that its body was accepted under another id.
#[tokio::test]
async fn the_body_of_a_delivery_that_waits_is_not_it_under_another_id() {
    for replay in everywhere() {
        let (taken, later) = (keys(1, "a", Some(1)), NOW + REDELIVERY_GAP);
        replay.take(&taken, NOW, |_| Ok(Vec::new())).await.unwrap();
        let names =
            async |id, anew| replay.names(&keys(1, id, Some(1)).redeliveries(2, anew), later).await.unwrap().len();
        assert_eq!((names("a", false).await, names("b", false).await, names("b", true).await), (1, 0, 1));
    }
}

#[tokio::test]
async fn a_duplicate_is_answered_by_the_state_of_the_first() {
    struct Case {
        row: &'static str,
        second: ReplayKeys,
        while_under_way: Option<Reason>,
        after_commit: Option<Reason>,
    }
    let twin = (Some(Reason::DeliveryInFlight), Some(Reason::ReplayedDelivery));
    let case = |row, second, (while_under_way, after_commit)| Case { row, second, while_under_way, after_commit };
    for case in [
        case("webhooks:17 same id and body", keys(1, "a", Some(1)), twin),
        case("webhooks:17 twin: another delivery", keys(1, "b", Some(2)), (None, None)),
        case("webhooks:18 same body, another id", keys(1, "b", Some(1)), twin),
        case("webhooks:18 twin: body not signed", keys(1, "b", None), (None, None)),
        case("webhooks:17 same id, another body", keys(1, "a", Some(2)), twin),
        // The scope is that of the secret, so the route does not matter.
        case("attacks:Z16 other route, same secret", keys(1, "a", Some(1)), twin),
        case("attacks:Z16 twin: another secret", keys(2, "a", Some(1)), (None, None)),
    ] {
        for replay in everywhere() {
            let mut first = replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await.unwrap();
            let second = replay.reserve(&case.second, LEASE, NOW).await;
            let outcome = second.as_ref().err().map(Rejection::reason);
            assert_eq!(outcome, case.while_under_way, "{}", case.row);
            if let Ok(mut second) = second {
                second.release(NOW).await.unwrap();
            }
            first.commit(NOW).await.unwrap();
            assert_eq!(reason(replay.reserve(&case.second, LEASE, NOW).await), case.after_commit, "{}", case.row);
        }
    }
}

#[tokio::test]
async fn webhooks_17_of_fifty_in_parallel_one_is_forwarded() {
    for replay in everywhere() {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50_u8 {
            // Half of them with another id.
            let id = if number % 2 == 0 { "a".to_owned() } else { number.to_string() };
            let (replay, keys) = (replay.clone(), keys(1, &id, Some(1)));
            tasks.spawn(async move { replay.reserve(&keys, LEASE, NOW).await });
        }
        let results = tasks.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        for rejection in results.into_iter().filter_map(Result::err) {
            assert_eq!(rejection.reason(), Reason::DeliveryInFlight);
            assert!(rejection.retry_after().is_some());
        }
    }
}

/// A reload may turn `hold` on while a delivery is forwarded; otherwise the EventListener would get it twice.
#[tokio::test]
async fn a_delivery_that_is_being_forwarded_is_not_stored_as_well() {
    for replay in everywhere() {
        let delivery = keys(1, "a", Some(1));
        let mut forwarded = replay.reserve(&delivery, LEASE, NOW).await.unwrap();
        let stored = replay.take(&delivery, NOW, |_| Ok(Vec::new())).await;
        assert_eq!(stored.unwrap_err().reason(), Reason::DeliveryInFlight);
        forwarded.release(NOW).await.unwrap();
        replay.take(&delivery, NOW, |_| Ok(Vec::new())).await.unwrap();
    }
}

#[tokio::test]
async fn a_released_delivery_can_be_sent_again() {
    for replay in everywhere() {
        replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await.unwrap().release(NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await), None);
    }
}

#[tokio::test]
async fn a_refused_twin_does_not_keep_its_own_id() {
    for replay in everywhere() {
        let mut first = replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "b", Some(1)), LEASE, NOW).await), Some(Reason::DeliveryInFlight));
        first.release(NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "b", Some(1)), LEASE, NOW).await), None);
    }
}

#[tokio::test]
async fn webhooks_19_the_window_and_the_lease_end() {
    for replay in everywhere() {
        let mut first = replay.reserve(&keys(1, "a", None), LEASE, NOW).await.unwrap();
        // The process that held the lease died; its late commit must not undo the successor's.
        let later = NOW + LEASE;
        let mut second = replay.reserve(&keys(1, "a", None), LEASE, later).await.unwrap();
        first.release(later).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, later).await), Some(Reason::DeliveryInFlight));
        second.commit(later).await.unwrap();
        let inside = later + WINDOW - Duration::from_millis(1);
        assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, inside).await), Some(Reason::ReplayedDelivery));
        assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, later + WINDOW).await), None);
    }
}

#[tokio::test]
async fn a_redelivery_on_request_is_accepted_as_often_as_configured() {
    for replay in everywhere() {
        let keys = |id| keys(1, id, Some(1)).redeliveries(2, false);
        let take = async |keys: &ReplayKeys, now| match replay.reserve(keys, LEASE, now).await {
            Ok(mut reservation) => {
                // The first attempt fails, which uses nothing up.
                reservation.release(now).await.unwrap();
                replay.reserve(keys, LEASE, now).await.unwrap().commit(now).await.unwrap();
                None
            }
            Err(rejection) => Some(rejection.reason()),
        };
        let later = |gaps: u32| NOW + REDELIVERY_GAP * gaps;
        assert_eq!(take(&keys("a"), NOW).await, None);
        let soon = later(1) - Duration::from_secs(1);
        assert_eq!(take(&keys("a"), soon).await, Some(Reason::ReplayedDelivery), "the sender's own retry");
        assert_eq!(take(&keys("b"), later(1)).await, Some(Reason::ReplayedDelivery), "webhooks:18 under another id");
        assert_eq!(
            take(&keys("a").redeliveries(0, false), later(1)).await,
            Some(Reason::ReplayedDelivery),
            "webhooks:17"
        );
        assert_eq!(take(&keys("a"), later(1)).await, None);
        assert_eq!(take(&keys("a"), later(2)).await, None);
        assert_eq!(take(&keys("a"), later(3)).await, Some(Reason::ReplayedDelivery), "the third");
    }
}

#[tokio::test]
async fn a_redelivery_under_an_id_of_its_own_is_taken_of_senders_that_make_them_so() {
    for replay in everywhere() {
        for (anew, expected) in [(false, Some(Reason::ReplayedDelivery)), (true, None)] {
            let keys = |id| keys(1 + u8::from(anew), id, Some(1)).redeliveries(1, anew);
            let mut first = replay.reserve(&keys("a"), LEASE, NOW).await.unwrap();
            let name = first.key();
            first.commit(NOW).await.unwrap();
            assert_eq!(
                reason(replay.reserve(&keys("b"), LEASE, NOW).await),
                Some(Reason::ReplayedDelivery),
                "too soon"
            );
            let again = replay.reserve(&keys("b"), LEASE, NOW + REDELIVERY_GAP).await;
            if let Ok(again) = &again {
                assert_ne!(again.key(), name, "it is another delivery to the interceptor");
            }
            assert_eq!(reason(again), expected);
        }
    }
}

/// A held delivery may wait longer than it is remembered.
#[tokio::test]
async fn a_held_delivery_never_has_the_name_of_another() {
    for replay in everywhere() {
        let (keys, none) = (keys(1, "a", None), |_: &[u8; 32]| Ok(Vec::new()));
        let (first, _) = replay.take(&keys, NOW, none).await.unwrap();
        assert_eq!(replay.take(&keys, NOW, none).await.unwrap_err().reason(), Reason::ReplayedDelivery);
        let (second, _) = replay.take(&keys, NOW + WINDOW, none).await.unwrap();
        assert_ne!(first, second);
    }
}

/// During a rotation, a sender signs with two secrets, or again with the next.
#[tokio::test]
async fn a_delivery_is_the_same_whichever_of_the_secrets_signed_it() {
    for replay in everywhere() {
        let of = |scopes: &[u8], id| {
            let scopes: Vec<[u8; 32]> = scopes.iter().map(|scope| [*scope; 32]).collect();
            ReplayKeys::new(&scopes, id, Some(&[1; 32]), WINDOW).redeliveries(1, false)
        };
        // With the old secret alone, with both, and with the new one alone.
        replay.reserve(&of(&[1], "before"), LEASE, NOW).await.unwrap().commit(NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&of(&[1, 2], "before"), LEASE, NOW).await), Some(Reason::ReplayedDelivery));
        let mut wanted = replay.reserve(&of(&[1, 2], "before"), LEASE, NOW + REDELIVERY_GAP).await.unwrap();
        wanted.release(NOW + REDELIVERY_GAP).await.unwrap();
        let during = ReplayKeys::new(&[[1; 32], [2; 32]], "during", Some(&[2; 32]), WINDOW);
        replay.reserve(&during, LEASE, NOW).await.unwrap().commit(NOW).await.unwrap();
        let after = ReplayKeys::new(&[[2; 32]], "during", Some(&[2; 32]), WINDOW);
        assert_eq!(reason(replay.reserve(&after, LEASE, NOW).await), Some(Reason::ReplayedDelivery));
        let resent = ReplayKeys::new(&[[2; 32]], "another", Some(&[2; 32]), WINDOW);
        assert_eq!(reason(replay.reserve(&resent, LEASE, NOW).await), Some(Reason::ReplayedDelivery));
    }
}

#[tokio::test]
async fn only_one_of_two_simultaneous_redeliveries_is_forwarded() {
    for replay in everywhere() {
        let keys = keys(1, "a", None).redeliveries(5, false);
        replay.reserve(&keys, LEASE, NOW).await.unwrap().commit(NOW).await.unwrap();
        let later = NOW + REDELIVERY_GAP;
        let mut first = replay.reserve(&keys, LEASE, later).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys, LEASE, later).await), Some(Reason::DeliveryInFlight));
        first.commit(later).await.unwrap();
    }
}

#[tokio::test]
async fn without_the_store_nothing_is_forwarded() {
    let store = MemoryStore::shared();
    let replay = Replay::new(store.clone());
    store.set_down(true);
    assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, NOW).await), Some(Reason::StoreUnavailable));
    store.set_down(false);
    assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, NOW).await), None);
}

#[tokio::test]
async fn deliveries_the_store_refused_are_remembered_and_nothing_more_is_forwarded() {
    let store = MemoryStore::shared();
    let replay = Replay::new(store.clone());
    replay.reserve(&keys(1, "before", None), LEASE, NOW).await.unwrap().commit(NOW).await.unwrap();
    let mut first = replay.reserve(&keys(1, "a", None), LEASE, NOW).await.unwrap();
    store.set_down(true);
    assert!(first.commit(NOW).await.is_err());
    store.set_down(false);
    let late = NOW + WINDOW - Duration::from_secs(1);
    assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, late).await), Some(Reason::DeliveryInFlight));
    assert!(!replay.under_way.store_works(), "the next is written before it goes on");
    let mut next = replay.reserve(&keys(1, "b", None), LEASE, NOW).await.unwrap();
    assert!(next.in_store && replay.under_way.store_works());
    next.release(NOW).await.unwrap();
    assert!(!replay.reserve(&keys(1, "b", None), LEASE, NOW).await.unwrap().in_store);
}

/// Otherwise somebody who had kept the delivery could have had it forwarded once more after the lease.
#[tokio::test(start_paused = true)]
async fn writes_that_a_shared_store_refused_are_repeated() {
    let store = MemoryStore::shared();
    store.set_shared();
    let (replay, clock) = (Replay::new(store.clone()), Clock::manual(NOW));
    for (id, is_taken, back_at, then) in [
        ("a", true, NOW, Some(Reason::ReplayedDelivery)),
        ("b", true, NOW + LEASE, Some(Reason::ReplayedDelivery)),
        ("c", false, NOW, None),
    ] {
        let mut first = replay.reserve(&keys(1, id, None), LEASE, NOW).await.unwrap();
        store.set_down(true);
        assert!(first.settle(is_taken, NOW).await.is_err());
        let (settling, clock) = (first.settle_later(is_taken, &clock), &clock);
        let back = async {
            sleep(SETTLING / 2).await;
            clock.set(back_at);
            store.set_down(false);
        };
        let (settled, ()) = tokio::join!(settling, back);
        settled.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, id, None), LEASE, back_at).await), then, "{id}");
    }
    let mut lost = replay.reserve(&keys(1, "d", None), LEASE, NOW).await.unwrap();
    store.set_down(true);
    assert!(lost.settle(true, NOW).await.is_err());
    assert!(lost.settle_later(true, &clock).await.is_err(), "it ends");
}

#[tokio::test]
async fn deliveries_remembered_in_memory_are_stored_once_the_store_works_again() {
    let store = MemoryStore::shared();
    let replay = Replay::new(store.clone());
    let mut first = replay.reserve(&keys(1, "a", None), LEASE, NOW).await.unwrap();
    store.set_down(true);
    assert!(first.settle(true, NOW).await.is_err());
    store.set_down(false);
    first.settle(true, NOW).await.unwrap();
    drop(first);
    for known in [replay, Replay::new(store)] {
        assert_eq!(reason(known.reserve(&keys(1, "a", None), LEASE, NOW).await), Some(Reason::ReplayedDelivery));
    }
}

#[tokio::test]
async fn leases_that_lapsed_take_no_memory() {
    let [.., replay] = everywhere();
    let mut now = NOW;
    for number in 0..4 * SWEEP_FROM {
        now = now + Duration::from_secs(1);
        drop(replay.reserve(&keys(1, &number.to_string(), None), LEASE, now).await.unwrap());
    }
    assert!(replay.under_way.leases().until.len() <= SWEEP_FROM);
}

#[test]
fn a_delivery_refused_by_a_full_store_gets_that_reason() {
    for (error, says) in [(StoreError::Full("x".to_owned()), true), (StoreError::Timeout, false)] {
        let refused = unavailable(error);
        assert_eq!(refused.reason(), Reason::StoreUnavailable);
        assert_eq!(refused.detail().contains("the store is full"), says, "{}", refused.detail());
    }
}

#[test]
fn what_was_taken_is_read_with_and_without_its_name() {
    let taken = Committed { at: NOW, again: 1, name: Some([7; 32]) };
    assert_eq!(Committed::decode(&taken.encode()), Some(taken));
    let forwarded = Committed { name: None, ..taken };
    assert_eq!(Committed::decode(&forwarded.encode()), Some(forwarded));
}
