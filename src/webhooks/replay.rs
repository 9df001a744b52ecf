//! Each delivery is forwarded once, whoever repeats it, over whichever route and replica.
//!
//! A delivery is reserved after its signature was verified (so that a forger cannot use up ids), committed when the
//! upstream took it, and released when it did not. Its twin gets 503 while that is under way, since an early 200
//! would lose the delivery if the first one fails, and 200 afterwards.
//!
//! Keys depend on the secret, not on the route: the same delivery on a second route with the same secret is a
//! duplicate. Where the id is not signed but the body is, the signed bytes are a second key, as anybody who saw the
//! delivery could send it under another id. Somebody may ask a sender to send a delivery again, which looks like any
//! repetition; [`ReplayKeys::redeliveries`] says how many such are forwarded. Limits: a sender without signed ids that
//! repeats an event with exactly the same body within the window is taken for a repetition; a plain token signs nothing,
//! so its holder can make any delivery new.
//!
//! A delivery that is [held](super::hold) is not reserved: it is committed in the same write that stores it.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    sha256::sha256,
    store::{Expect, Put, Store, StoreError, Stored, Table, WrittenAll},
};

/// What makes a delivery the same as another: opaque keys of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayKeys {
    keys: Vec<[u8; 32]>,
    /// How long the delivery is remembered.
    window: Duration,
    /// How often a delivery that was taken is taken once more.
    redeliveries: u8,
}

impl ReplayKeys {
    /// `scope` stands for the secret, `id` is the sender's, `signed` the hash of the signed bytes if they count.
    pub(super) fn new(scope: &[u8; 32], id: &str, signed: Option<&[u8; 32]>, window: Duration) -> Self {
        let key = |kind: &[u8], data: &[u8]| sha256(&[scope, kind, data]);
        let keys = std::iter::once(key(b"id\0", id.as_bytes())).chain(signed.map(|bytes| key(b"body\0", bytes)));
        Self { keys: keys.collect(), window, redeliveries: 0 }
    }

    /// Lets a delivery that was taken be taken again so often, under the same id, a minute apart at least: sooner it is
    /// the sender's own retry after an answer that was lost.
    #[must_use]
    pub fn redeliveries(self, redeliveries: u8) -> Self {
        Self { redeliveries, ..self }
    }
}

/// Remembers deliveries in the store.
#[derive(Clone)]
pub struct Replay {
    store: Store,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replay")
    }
}

/// A delivery that is being forwarded. One that is dropped undecided lapses with its lease: nobody knows whether the
/// upstream took it.
#[derive(Debug)]
#[must_use = "a reservation is committed or released"]
pub struct Reservation {
    replay: Replay,
    held: Vec<Held>,
    window: Duration,
}

#[derive(Debug)]
struct Held {
    key: [u8; 32],
    /// Its record as it stands; none before the first write.
    version: Option<u64>,
    /// What it was before, where it was taken before.
    before: Option<Committed>,
}

impl Held {
    /// How often it was taken once more, with this time.
    fn again(&self) -> u8 {
        self.before.map_or(0, |before| before.again.saturating_add(1))
    }

    fn put(&self, (value, expires): (Vec<u8>, Timestamp)) -> Put {
        let expect = self.version.map_or(Expect::Absent, Expect::Version);
        Put { table: Table::Deliveries, key: self.key.to_vec(), value, expires, expect }
    }
}

/// That a delivery was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Committed {
    at: Timestamp,
    /// How often it was taken once more.
    again: u8,
}

impl Committed {
    fn encode(self) -> Vec<u8> {
        format!("committed {} {}", self.at.as_secs(), self.again).into_bytes()
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.strip_prefix("committed ")?.split(' ');
        let at = Timestamp::from_secs(words.next()?.parse().ok()?);
        Some(Self { at, again: words.next()?.parse().ok()? })
    }
}

const RESERVED: &[u8] = b"reserved";

/// How long after the first a delivery is one that somebody asked for.
const REDELIVERY_GAP: Duration = Duration::from_secs(60);

/// When a twin of a delivery under way may ask again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Replay {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Takes the delivery for this request. `lease` must be longer than forwarding can take. Refuses with
    /// [`Reason::ReplayedDelivery`] (200), [`Reason::DeliveryInFlight`] (503) or [`Reason::StoreUnavailable`] (503).
    pub async fn reserve(&self, keys: &ReplayKeys, lease: Duration, now: Timestamp) -> Result<Reservation, Rejection> {
        let (held, _) = self.claim(keys, now, |_| (RESERVED.to_vec(), now + lease), |_| Vec::new()).await?;
        Ok(Reservation { replay: self.clone(), held, window: keys.window })
    }

    /// Commits the delivery together with the writes that `more` makes of what is the same for every try of it. Gives
    /// that, and the versions of these writes. Refuses as [`Replay::reserve`] does.
    pub(super) async fn take(
        &self,
        keys: &ReplayKeys,
        now: Timestamp,
        more: impl Fn(&[u8; 32]) -> Vec<Put>,
    ) -> Result<([u8; 32], Vec<u64>), Rejection> {
        let committed = |held: &Held| (Committed { at: now, again: held.again() }.encode(), now + keys.window);
        let (held, versions) = self.claim(keys, now, committed, more).await?;
        Ok((once(&held), versions))
    }

    /// Writes all keys, or none where one of them is taken. `value` says what and until when.
    async fn claim(
        &self,
        keys: &ReplayKeys,
        now: Timestamp,
        value: impl Fn(&Held) -> (Vec<u8>, Timestamp),
        more: impl Fn(&[u8; 32]) -> Vec<Put>,
    ) -> Result<(Vec<Held>, Vec<u64>), Rejection> {
        let mut held: Vec<Held> = keys.keys.iter().map(|key| Held { key: *key, version: None, before: None }).collect();
        loop {
            let mut puts: Vec<Put> = held.iter().map(|held| held.put(value(held))).collect();
            puts.extend(more(&once(&held)));
            match self.store.put_all(puts, now).await.map_err(unavailable)? {
                WrittenAll::Done(mut versions) => {
                    let further = versions.split_off(held.len().min(versions.len()));
                    held.iter_mut().zip(versions).for_each(|(held, version)| held.version = Some(version));
                    return Ok((held, further));
                }
                WrittenAll::Conflict { index, found } => {
                    let reopened = may_reopen(held.get(..=index), found.as_ref(), keys.redeliveries, now);
                    match (held.get_mut(index), reopened) {
                        (Some(held), Some((version, before))) => {
                            held.version = Some(version);
                            held.before = Some(before);
                        }
                        (Some(_), None) => return Err(refuse_twin(found.as_ref())),
                        // What goes with it is there already.
                        (None, _) => return Err(duplicate()),
                    }
                }
            }
        }
    }
}

/// Whether a delivery that was taken may be taken once more: its version, and what it is now. `held` ends with it. The id
/// is looked at first: the same body under an id of its own is nobody's redelivery.
fn may_reopen(
    held: Option<&[Held]>,
    twin: Option<&Stored>,
    redeliveries: u8,
    now: Timestamp,
) -> Option<(u64, Committed)> {
    let (this, earlier) = held?.split_last()?;
    let under_its_id = earlier.iter().all(|held| held.before.is_some());
    let twin = twin.filter(|_| this.version.is_none() && under_its_id)?;
    let taken = Committed::decode(&twin.value)?;
    (taken.again < redeliveries && taken.at + REDELIVERY_GAP <= now).then_some((twin.version, taken))
}

/// What is the same for every try to deliver a delivery, and of no other: a wanted redelivery is another.
fn once(held: &[Held]) -> [u8; 32] {
    match held.first() {
        Some(held) => sha256(&[&held.key, &[held.again()]]),
        None => sha256(&[]),
    }
}

fn unavailable(error: StoreError) -> Rejection {
    Rejection::new(Reason::StoreUnavailable, "deliveries cannot be told apart at the moment")
        .fix("send it again later")
        .retry_after(RETRY_AFTER)
        .because(error)
}

impl Reservation {
    /// What is the same for every try to deliver this delivery, and of no other: a wanted redelivery is another.
    pub fn once(&self) -> [u8; 32] {
        once(&self.held)
    }

    /// The upstream took the delivery (2xx). After an error it can be repeated once the lease has ended.
    pub async fn commit(self, now: Timestamp) -> Result<(), StoreError> {
        let window = self.window;
        self.write(now, |held| (Committed { at: now, again: held.again() }.encode(), now + window)).await
    }

    /// The upstream did not take it: the sender may send it again.
    pub async fn release(self, now: Timestamp) -> Result<(), StoreError> {
        let window = self.window;
        self.write(now, |held| match held.before {
            None => (RESERVED.to_vec(), Timestamp::default()),
            Some(before) => (before.encode(), now + window),
        })
        .await
    }

    /// Writes only what is still ours, so that one whose lease ended does not undo its successor.
    async fn write(self, now: Timestamp, value: impl Fn(&Held) -> (Vec<u8>, Timestamp)) -> Result<(), StoreError> {
        let mut ours = self.held;
        while !ours.is_empty() {
            let puts = ours.iter().map(|held| held.put(value(held))).collect();
            match self.replay.store.put_all(puts, now).await? {
                WrittenAll::Done(_) => break,
                WrittenAll::Conflict { index, .. } => drop(ours.remove(index)),
            }
        }
        Ok(())
    }
}

fn refuse_twin(twin: Option<&Stored>) -> Rejection {
    if twin.is_some_and(|twin| Committed::decode(&twin.value).is_some()) {
        return duplicate();
    }
    Rejection::new(Reason::DeliveryInFlight, "the same delivery is being forwarded").retry_after(RETRY_AFTER)
}

fn duplicate() -> Rejection {
    Rejection::new(Reason::ReplayedDelivery, "duplicate: this delivery has been accepted before")
}

/// The short text for a delivery that has no id of its own.
pub(super) fn body_id(body_sha256: &[u8; 32]) -> Arc<str> {
    body_sha256.iter().fold("sha256-".to_owned(), |text, byte| text + &format!("{byte:02x}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhooks::testing::MemoryStore;

    const LEASE: Duration = Duration::from_secs(60);
    const WINDOW: Duration = Duration::from_secs(3 * 86_400);
    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn keys(scope: u8, id: &str, body: Option<u8>) -> ReplayKeys {
        ReplayKeys::new(&[scope; 32], id, body.map(|body| [body; 32]).as_ref(), WINDOW)
    }

    fn reason(result: Result<Reservation, Rejection>) -> Option<Reason> {
        result.err().map(|rejection| rejection.reason())
    }

    #[tokio::test]
    async fn what_a_second_delivery_gets() {
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
            // The scope is the secret's, so the route does not matter.
            case("attacks:Z16 other route, same secret", keys(1, "a", Some(1)), twin),
            case("attacks:Z16 twin: another secret", keys(2, "a", Some(1)), (None, None)),
        ] {
            let replay = Replay::new(MemoryStore::shared());
            let first = replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await.unwrap();
            let second = replay.reserve(&case.second, LEASE, NOW).await;
            let outcome = second.as_ref().err().map(Rejection::reason);
            assert_eq!(outcome, case.while_under_way, "{}", case.row);
            if let Ok(second) = second {
                second.release(NOW).await.unwrap();
            }
            first.commit(NOW).await.unwrap();
            assert_eq!(reason(replay.reserve(&case.second, LEASE, NOW).await), case.after_commit, "{}", case.row);
        }
    }

    #[tokio::test]
    async fn webhooks_17_of_fifty_in_parallel_one_is_forwarded() {
        let replay = Replay::new(MemoryStore::shared());
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50_u8 {
            // Half of them under an id of their own.
            let id = if number % 2 == 0 { "a".to_owned() } else { number.to_string() };
            let (replay, keys) = (replay.clone(), keys(1, &id, Some(1)));
            tasks.spawn(async move { replay.reserve(&keys, LEASE, NOW).await });
        }
        let results = tasks.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        for rejection in results.into_iter().filter_map(Result::err) {
            assert_eq!(rejection.reason(), Reason::DeliveryInFlight);
            assert!(rejection.retry_after_span().is_some());
        }
    }

    #[tokio::test]
    async fn a_released_delivery_can_be_sent_again() {
        let replay = Replay::new(MemoryStore::shared());
        replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await.unwrap().release(NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await), None);
    }

    #[tokio::test]
    async fn a_refused_twin_does_not_keep_its_own_id() {
        let replay = Replay::new(MemoryStore::shared());
        let first = replay.reserve(&keys(1, "a", Some(1)), LEASE, NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "b", Some(1)), LEASE, NOW).await), Some(Reason::DeliveryInFlight));
        first.release(NOW).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "b", Some(1)), LEASE, NOW).await), None);
    }

    #[tokio::test]
    async fn webhooks_19_the_window_and_the_lease_end() {
        let replay = Replay::new(MemoryStore::shared());
        let first = replay.reserve(&keys(1, "a", None), LEASE, NOW).await.unwrap();
        // The process that held the lease died; its late commit must not undo the successor.
        let later = NOW + LEASE;
        let second = replay.reserve(&keys(1, "a", None), LEASE, later).await.unwrap();
        first.release(later).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, later).await), Some(Reason::DeliveryInFlight));
        second.commit(later).await.unwrap();
        let inside = later + WINDOW - Duration::from_millis(1);
        assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, inside).await), Some(Reason::ReplayedDelivery));
        assert_eq!(reason(replay.reserve(&keys(1, "a", None), LEASE, later + WINDOW).await), None);
    }

    #[tokio::test]
    async fn a_delivery_that_somebody_asked_for_again_is_taken_as_often_as_configured() {
        let replay = Replay::new(MemoryStore::shared());
        let keys = |id| keys(1, id, Some(1)).redeliveries(2);
        let take = async |keys: &ReplayKeys, now| match replay.reserve(keys, LEASE, now).await {
            Ok(reservation) => {
                // The first try fails, which uses nothing up.
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
        assert_eq!(take(&keys("a").redeliveries(0), later(1)).await, Some(Reason::ReplayedDelivery), "webhooks:17");
        assert_eq!(take(&keys("a"), later(1)).await, None);
        assert_eq!(take(&keys("a"), later(2)).await, None);
        assert_eq!(take(&keys("a"), later(3)).await, Some(Reason::ReplayedDelivery), "the third");
    }

    #[tokio::test]
    async fn of_two_redeliveries_at_once_one_is_forwarded() {
        let replay = Replay::new(MemoryStore::shared());
        let keys = keys(1, "a", None).redeliveries(5);
        replay.reserve(&keys, LEASE, NOW).await.unwrap().commit(NOW).await.unwrap();
        let later = NOW + REDELIVERY_GAP;
        let first = replay.reserve(&keys, LEASE, later).await.unwrap();
        assert_eq!(reason(replay.reserve(&keys, LEASE, later).await), Some(Reason::DeliveryInFlight));
        first.commit(later).await.unwrap();
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
}
