//! Queries about a token at its issuer (introspection and token review), and the cache of answers.
//!
//! Positive and negative answers are cached for seconds, errors are not cached. Concurrent requests with one token
//! share a call. Unknown tokens have a token bucket, slots and a circuit breaker of their own, so that a flood of them,
//! whatever the issuer answers, does not block tokens that were valid before.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use prometheus_client::metrics::{counter::Counter, family::Family};
use serde_json::{Map, Value};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{
    breaker::{Breaker, Bucket},
    metrics::OutcomeLabels,
    single_flight::{Key, SingleFlight},
    token_error::TokenError,
};
use crate::{
    clock::{Clock, Moment},
    config::raw::CircuitBreaker,
    egress::KEPT,
};

/// The maximum concurrent calls to one issuer.
const SLOTS: usize = 64;
// Idle connections for a whole burst are retained for the next one.
const _: () = assert!(KEPT >= SLOTS);
/// The maximum of these calls for unknown tokens.
const STRANGER_SLOTS: usize = 32;
/// The maximum number of calls for tokens with a valid signature that wait for a slot, and how long one waits: many
/// pods may start at once.
const WAITING: usize = 1024;
const PATIENCE: Duration = Duration::from_secs(5);
/// The rate per second and burst of calls for unknown tokens.
const STRANGERS: (u32, u32) = (50, 100);
/// The capacity for positive answers, in approximate bytes of JSON.
const POSITIVE_WEIGHT: u64 = 16 << 20;
/// The capacity for negative answers, and for tokens that were valid before, in entries.
const ENTRIES: u64 = 16_384;
/// How long a token that was valid counts as known.
const SEEN: Duration = Duration::from_secs(3_600);

/// A positive answer.
#[derive(Debug)]
pub struct Answer {
    pub claims: Map<String, Value>,
    /// The end of its use.
    pub good_until: Moment,
    /// The bytes of its JSON.
    pub size: usize,
}

/// The result of a call: the claims and the size of the answer; `None`: the token is not valid.
pub type Told = Option<(Map<String, Value>, usize)>;

type Outcome = Result<Option<Arc<Answer>>, TokenError>;

/// How long answers are cached, and the circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LookupSettings {
    pub positive_for: Duration,
    pub negative_for: Duration,
    pub circuit_breaker: CircuitBreaker,
}

/// The cache and limits of one kind of query at one issuer.
#[derive(Debug)]
pub struct Lookup {
    state: Arc<State>,
    calls: SingleFlight<Outcome>,
    control: Handle,
}

#[derive(Debug)]
struct State {
    issuer: Arc<str>,
    clock: Clock,
    positive_for: Duration,
    negative_for: Duration,
    positive: Cache<Key, Arc<Answer>>,
    negative: Cache<Key, Moment>,
    /// Tokens that were valid before and have no verified signature.
    seen: Cache<Key, Moment>,
    breaker: Breaker,
    /// The breaker for unknown tokens, as an issuer may answer a text that is not a token with an error.
    stranger_breaker: Breaker,
    bucket: Bucket,
    slots: Arc<Semaphore>,
    stranger_slots: Arc<Semaphore>,
    waiting: Semaphore,
    outcomes: Family<OutcomeLabels, Counter>,
}

impl Lookup {
    pub fn new(
        issuer: Arc<str>,
        settings: LookupSettings,
        clock: Clock,
        control: Handle,
        outcomes: Family<OutcomeLabels, Counter>,
    ) -> Self {
        let LookupSettings { positive_for, negative_for, circuit_breaker } = settings;
        // Expiry is decided by `Clock` on each use; these caches only evict.
        let entries = || Cache::builder().max_capacity(ENTRIES).time_to_live(SEEN).build();
        let state = State {
            issuer,
            bucket: Bucket::new(STRANGERS.0, STRANGERS.1, clock.moment()),
            clock,
            positive_for,
            negative_for,
            positive: Cache::builder()
                .weigher(|_, answer: &Arc<Answer>| u32::try_from(answer.size).unwrap_or(u32::MAX).saturating_add(256))
                .max_capacity(POSITIVE_WEIGHT)
                .time_to_live(positive_for.max(Duration::from_secs(1)) * 2)
                .build(),
            negative: entries(),
            seen: entries(),
            breaker: Breaker::new(circuit_breaker),
            stranger_breaker: Breaker::new(circuit_breaker),
            slots: Arc::new(Semaphore::new(SLOTS)),
            stranger_slots: Arc::new(Semaphore::new(STRANGER_SLOTS)),
            waiting: Semaphore::new(WAITING),
            outcomes,
        };
        Self { state: Arc::new(state), calls: SingleFlight::default(), control }
    }

    /// Returns the cached answer for the token with hash `key`, or makes the call `ask`. `vouched` says that its
    /// signature was verified, so that it does not count as unknown. `Ok(None)`: the issuer says that the token is not
    /// valid.
    pub async fn find<F>(&self, key: Key, vouched: bool, ask: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Result<Told, String>> + Send + 'static,
    {
        let now = self.state.clock.moment();
        if let Some(known) = self.state.known(&key, now) {
            return Ok(known);
        }
        let begin = || {
            let strange = self.state.admit_stranger(&key, vouched, now)?;
            let (state, call) = (Arc::clone(&self.state), ask());
            Ok::<_, TokenError>(async move {
                // Another call may have ended since the cache was checked.
                if let Some(known) = state.known(&key, now) {
                    return Ok(known);
                }
                let slot = if vouched { state.wait_for_slot().await? } else { state.slot()? };
                // Last, as the one probe of a half-open circuit must be made after it is admitted.
                let breaker = if strange.is_some() { &state.stranger_breaker } else { &state.breaker };
                if breaker.admit(state.clock.moment()).is_err() {
                    state.count("refused");
                    return Err(state.unavailable("its last calls failed, so it is not called for a while"));
                }
                let told = call.await;
                drop((slot, strange));
                state.remember(key, vouched, told, breaker)
            })
        };
        let outcome = self.calls.join(key, &self.control, begin).await?;
        outcome.unwrap_or_else(|| Err(self.state.unavailable("the call was given up")))
    }
}

impl State {
    /// The cached answer, if it has not expired. The inner `None`: the token is not valid.
    fn known(&self, key: &Key, now: Moment) -> Option<Option<Arc<Answer>>> {
        if let Some(answer) = self.positive.get(key).filter(|answer| now.is_before(answer.good_until)) {
            return Some(Some(answer));
        }
        self.negative.get(key).is_some_and(|until| now.is_before(until)).then_some(None)
    }

    /// Takes the additional slot that a call for an unknown token needs; `None` for other tokens.
    fn admit_stranger(
        &self,
        key: &Key,
        vouched: bool,
        now: Moment,
    ) -> Result<Option<OwnedSemaphorePermit>, TokenError> {
        if vouched || self.seen.get(key).is_some_and(|until| now.is_before(until)) {
            return Ok(None);
        }
        let slot = Arc::clone(&self.stranger_slots).try_acquire_owned().map_err(|_| self.overloaded())?;
        if !self.bucket.take(now) {
            return Err(self.overloaded());
        }
        Ok(Some(slot))
    }

    fn slot(&self) -> Result<OwnedSemaphorePermit, TokenError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| self.overloaded())
    }

    async fn wait_for_slot(&self) -> Result<OwnedSemaphorePermit, TokenError> {
        let _waits = self.waiting.try_acquire().map_err(|_| self.overloaded())?;
        match tokio::time::timeout(PATIENCE, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(self.overloaded()),
        }
    }

    fn overloaded(&self) -> TokenError {
        self.count("refused");
        TokenError::Overloaded { issuer: Arc::clone(&self.issuer) }
    }

    fn remember(&self, key: Key, vouched: bool, told: Result<Told, String>, breaker: &Breaker) -> Outcome {
        let now = self.clock.moment();
        match told {
            Ok(Some((claims, size))) => {
                breaker.succeeded();
                self.count("active");
                let answer = Arc::new(Answer { claims, good_until: now + self.positive_for, size });
                self.positive.insert(key, Arc::clone(&answer));
                if !vouched {
                    self.seen.insert(key, now + SEEN);
                }
                Ok(Some(answer))
            }
            Ok(None) => {
                breaker.succeeded();
                self.count("inactive");
                self.positive.invalidate(&key);
                self.seen.invalidate(&key);
                self.negative.insert(key, now + self.negative_for);
                Ok(None)
            }
            Err(why) => {
                breaker.failed(now);
                self.count("failed");
                tracing::warn!(issuer = %self.issuer, error = %why, "a token could not be checked with its issuer");
                Err(self.unavailable(&why))
            }
        }
    }

    fn count(&self, outcome: &'static str) {
        self.outcomes.get_or_create(&OutcomeLabels { issuer: Arc::clone(&self.issuer), outcome }).inc();
    }

    fn unavailable(&self, why: &str) -> TokenError {
        TokenError::Unavailable { issuer: Arc::clone(&self.issuer), why: why.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::{clock::Timestamp, sha256::sha256};

    fn lookup(positive_for: Duration, clock: Clock) -> Lookup {
        let negative_for = Duration::from_secs(10);
        let settings = LookupSettings { positive_for, negative_for, circuit_breaker: CircuitBreaker::default() };
        Lookup::new("corp".into(), settings, clock, Handle::current(), Family::default())
    }

    /// The other call ended between the check of the cache and the check of calls in progress.
    #[tokio::test]
    async fn an_answer_that_another_call_just_got_is_not_requested_again() {
        for (told, is_good) in [(Some((Map::new(), 2)), true), (None, false)] {
            let lookup = lookup(Duration::from_secs(10), Clock::default());
            let key = sha256(&[b"token"]);
            let asked = Arc::new(AtomicUsize::new(0));
            let ask = || {
                lookup.state.remember(key, true, Ok(told.clone()), &lookup.state.breaker).unwrap();
                let asked = Arc::clone(&asked);
                async move {
                    asked.fetch_add(1, Ordering::SeqCst);
                    Ok(None)
                }
            };
            assert_eq!(lookup.find(key, true, ask).await.unwrap().is_some(), is_good);
            assert_eq!(asked.load(Ordering::SeqCst), 0, "good: {is_good}");
        }
    }

    #[tokio::test]
    async fn the_first_caller_may_leave_and_the_others_still_get_the_answer() {
        let lookup = lookup(Duration::from_secs(10), Clock::default());
        for (token, vouched) in [("pod", true), ("opaque", false)] {
            let key = sha256(&[token.as_bytes()]);
            let ((begun, begins), (tell, told)) = (oneshot::channel(), oneshot::channel());
            let first = lookup.find(key, vouched, || async move {
                begun.send(()).unwrap();
                told.await.map_err(|_| "nobody tells".to_owned())
            });
            tokio::select! {
                outcome = first => panic!("nobody has told anything: {outcome:?}"),
                begins = begins => begins.unwrap(),
            }
            let second = lookup.find(key, vouched, || async { Err("it is asked again".to_owned()) });
            let (second, ()) = tokio::join!(second, async { tell.send(Some((Map::new(), 2))).unwrap() });
            assert!(second.unwrap().is_some(), "{token}");
        }
    }

    #[tokio::test]
    async fn only_tokens_for_which_no_signature_vouches_take_room_among_those_seen() {
        let lookup = lookup(Duration::from_secs(10), Clock::default());
        for (token, vouched) in [("pod", true), ("opaque", false)] {
            let key = sha256(&[token.as_bytes()]);
            assert!(lookup.find(key, vouched, || async { Ok(Some((Map::new(), 2))) }).await.unwrap().is_some());
            assert_eq!(lookup.state.seen.contains_key(&key), !vouched, "{token}");
        }
    }

    /// A provider, or a proxy in front of it, may answer nonsense tokens with 400 or 403.
    #[tokio::test]
    async fn tokens_that_the_issuer_answers_with_errors_do_not_block_other_callers() {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let lookup = lookup(Duration::from_secs(30), clock.clone());
        let find = |token: &'static str, number: u8, told: Result<Told, String>| {
            lookup.find(sha256(&[token.as_bytes(), &[number]]), false, move || async { told })
        };
        let good = || Ok(Some((Map::new(), 2)));
        assert!(find("regular", 0, good()).await.unwrap().is_some());
        clock.advance(Duration::from_secs(31));
        for number in 0..10 {
            let strangers = find("stranger", number, Err("the answer is 403".to_owned())).await;
            assert!(matches!(strangers, Err(TokenError::Unavailable { .. })));
        }
        assert!(find("new", 0, good()).await.is_err(), "the issuer is given a pause by strangers");
        assert!(find("regular", 0, good()).await.unwrap().is_some());
        // Failures for known tokens still open their breaker.
        clock.advance(Duration::from_secs(31));
        for _ in 0..5 {
            assert!(find("regular", 0, Err("the answer is 500".to_owned())).await.is_err());
        }
        assert!(find("regular", 0, good()).await.is_err());
    }

    /// A thousand pods start at once: none is refused, and no more calls than allowed are made at a time.
    #[tokio::test]
    async fn tokens_with_a_valid_signature_wait_for_their_turn() {
        let lookup = lookup(Duration::from_secs(10), Clock::default());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let find = |number: usize, vouched: bool| {
            let (now, most, lookup) = (Arc::clone(&now), Arc::clone(&most), &lookup);
            let ask = move || async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(Some((Map::new(), 2)))
            };
            async move { lookup.find(sha256(&[&number.to_be_bytes()]), vouched, ask).await }
        };
        let found = futures_util::future::join_all((0..1000).map(|number| find(number, true))).await;
        assert!(found.iter().all(|found| matches!(found, Ok(Some(_)))), "somebody was refused");
        assert_eq!(most.load(Ordering::SeqCst), SLOTS);
        let strangers = futures_util::future::join_all((1000..2000).map(|number| find(number, false))).await;
        assert!(strangers.iter().any(|found| matches!(found, Err(TokenError::Overloaded { .. }))), "the twin");
    }
}
