//! Hold and deliver: a verified delivery is stored before its sender gets 202. It is sent to the EventListener
//! afterwards, in order for each repository, and retried until it is accepted.
//!
//! A delivery has one record in each of two tables of the store. The key is the name that `Replay::take` gives: it is
//! the same for every attempt, and no other delivery ever has it. [`Held`], in `held`, is rewritten with every attempt.
//! [`HeldRequest`], in `held_requests`, is large and is not. Both are written in one transaction together with the
//! replay ids, so that a delivery is either stored and known or neither, whenever the process dies. They do not expire
//! while the delivery waits.
//!
//! ```text
//! sender -> verify -> decide -> audit trail -> [ replay ids + held + request ] -> 202
//!                                                           |
//!                                   queue: one lane per repository, the oldest first
//!                                                           |
//!   decide again -> audit trail -> send -> audit trail -> 2xx: both records are removed
//!                                                         400, 413, 415, 422: tried five times, then parked
//!                                                         else: retried until `held.try_for` is over, then parked
//! ```
//!
//! - **Time.** A delivery's time runs even while no process is there to try it. A process that finds it over after a
//!   start, or after the clock has jumped, tries for some minutes more. A delivery that waited behind another until its
//!   time was over still gets five attempts, or a single one if that was more than a minute ago.
//! - **Order.** A lane is a sender and a repository. Only the oldest waiting delivery of a lane is tried. Whoever tries
//!   it holds the lane: in memory with the embedded store; on a shared store by a lease in `held_leases`, which expires
//!   when a replica dies, or which its next process takes over. The order is that of the store's versions, whichever
//!   replica accepted a delivery: none is sent before the store was read up to its version.
//! - **Audit trail.** The record of a step is on stable storage before the next step makes it irrevocable: that of the
//!   arrival before the delivery is stored; that of an attempt before the delivery is sent; that of its event before
//!   the delivery is removed. If the trail fails or hangs, the first two steps fail too, unless `when_full` is
//!   `continue`; the removal does not wait, as the EventListener has the delivery and would get it again.
//! - **At least once.** A process that dies between the EventListener's answer and the removal sends again, under the
//!   same `once`, and so does a replica whose lease expired while it was suspended. The interceptor lets one of them
//!   pass.
//! - **Fairness.** Each sender has at most [`LANES`] lanes in flight, its own limit on what may wait, and its own share
//!   of the memory for deliveries in flight, so that none takes another's place.
//! - **Memory.** A request is read once there is room for it. Without room, its lane pauses, which does not count as an
//!   attempt.
//! - **Parked** deliveries are dead letters: nothing is tried until an operator runs `doorward hooks retry`, and later
//!   ones of the lane continue. They expire after [`PARKED_FOR`].
//! - **Unreadable** records, such as those whose key is gone, stay in the store and belong to no lane, as the lane is
//!   part of the record. They are checked again periodically, in case the key comes back. A delivery of which only the
//!   request cannot be read is parked.
//!
//! | file | holds |
//! |---|---|
//! | `queue`, `index` | the stored deliveries, and what is known of them in memory |
//! | `dispatch`, `lease` | which lanes have their turn, and which replica has a lane |
//! | `identity` | which leases are those of earlier processes of this replica |
//! | `presence` | whether this process was there to try a delivery |
//! | `patience` | retries while the sender waits |
//! | `queue_slot` | the limits of a sender's queue |
//! | `seal` | encryption in a shared store |

mod dispatch;
mod identity;
mod index;
mod lease;
mod patience;
mod presence;
mod queue;
mod queue_slot;
mod seal;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::{
    dispatch::run,
    identity::{Identity, REPLICA_EXTENSION},
    index::Usage,
    lease::Leases,
    patience::patiently,
    queue::Queue,
};
use super::{EventId, Facts};
use crate::{
    clock::{Timestamp, millis, optional_millis, span_millis},
    sha256::sha256,
    store::StoreError,
    upstream::buffered::Room,
};

/// The number of lanes of one sender that are in flight at the same time.
pub const LANES: usize = 8;

/// How long a parked delivery is kept.
pub const PARKED_FOR: Duration = Duration::from_secs(30 * 86_400);

/// How long an attempt may take, so that it ends before the lease of its lane does. An EventListener answers at once.
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// How often an EventListener may refuse a delivery before it is parked.
const MAX_REFUSALS: u32 = 5;

/// How often a delivery is tried before it is parked because its time is over. Its time can be over when its turn
/// comes, if it waited behind another of its repository, and its EventListener may not be ready yet at the first
/// attempt.
const MIN_ATTEMPTS: u32 = 5;

/// How long after the end of its time a delivery gets these attempts. Later it gets one and does not wait for memory:
/// each further attempt would delay a lane even more that is already behind.
const LATE: Duration = Duration::from_secs(60);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a time has come. A time further ahead than any pause was set before the wall clock was set back; the clocks
/// of replicas may differ a little.
fn is_due(at: Timestamp, now: Timestamp) -> bool {
    at <= now || at > now + LONGEST_PAUSE * 2
}

/// How a sender's deliveries are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a delivery is tried.
    pub span: Duration,
    /// How many may be held, parked ones included.
    pub max: usize,
    /// How many bytes may be held, parked ones included.
    pub max_bytes: u64,
}

/// The key of a held delivery, the same for every attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldId([u8; 32]);

impl HeldId {
    pub const fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses an id that is written in full.
    pub fn parse(text: &str) -> Option<Self> {
        Self::of(&HEXLOWER.decode(text.as_bytes()).ok()?)
    }

    fn of(key: &[u8]) -> Option<Self> {
        Some(Self(key.try_into().ok()?))
    }
}

impl std::fmt::Display for HeldId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl std::fmt::Debug for HeldId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeldId({self})")
    }
}

/// A sender and a repository, whose deliveries are sent in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    pub webhook: Arc<str>,
    /// The number of the repository; empty for deliveries that name none.
    pub repository: Arc<str>,
}

impl Lane {
    /// The key of its lease.
    fn key(&self) -> [u8; 32] {
        sha256(&[self.webhook.as_bytes(), b"\0", self.repository.as_bytes()])
    }
}

/// A held delivery, without its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The `webhooks` entry.
    pub webhook: Arc<str>,
    /// The name of the route that it arrived over. It is forwarded over the route that its sender has at that time.
    pub route: Arc<str>,
    /// The id that the sender gave it.
    pub delivery: Arc<str>,
    /// The id of the request that delivered it: the `http_request.uid` of its audit record.
    pub request: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<Arc<str>>,
    /// The size of its request in bytes.
    pub size: u64,
    #[serde(with = "millis")]
    pub received: Timestamp,
    /// How long it is tried.
    #[serde(with = "span_millis")]
    pub span: Duration,
    /// Until when it is tried.
    #[serde(with = "millis")]
    pub until: Timestamp,
    /// Its position in the order: the version of its first record. Absent in that record itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<u64>,
    /// How often it was tried.
    pub tries: u32,
    /// How often its EventListener refused it (400, 413, 415 or 422).
    pub refusals: u32,
    /// When it is tried next.
    #[serde(with = "millis")]
    pub next: Timestamp,
    /// Since when it is parked.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_millis")]
    pub parked: Option<Timestamp>,
    /// The policy that allowed it to be held, by digest.
    pub policy: Arc<str>,
    /// The error of the last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl Held {
    pub fn lane(&self) -> Lane {
        Lane {
            webhook: Arc::clone(&self.webhook),
            repository: self.repository_id.as_ref().map_or_else(|| "".into(), Arc::clone),
        }
    }

    fn encode(&self) -> Result<Vec<u8>, StoreError> {
        serde_json::to_vec(self).map_err(|error| corrupt("written", &error))
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        serde_json::from_slice(bytes).map_err(|error| corrupt("read", &error))
    }

    fn is_late(&self, now: Timestamp) -> bool {
        now.since(self.until) >= LATE
    }

    /// Records a failed attempt. Returns whether it was the last one: none is left but the one at the end of its time,
    /// which `is_over`, and those for a delivery whose turn came late.
    fn record_failure(&mut self, failure: &Failure, now: Timestamp, is_over: bool) -> bool {
        self.tries = self.tries.saturating_add(1);
        self.last_error = Some(failure.why.clone());
        let pause = Duration::from_secs(1 << self.tries.saturating_sub(1).min(5)).min(LONGEST_PAUSE);
        self.next = now + pause;
        if now < self.until {
            self.next = self.next.min(self.until);
        }
        let had_its_time = is_over && (self.tries >= MIN_ATTEMPTS || self.is_late(now));
        match failure.kind {
            FailureKind::Passing => had_its_time,
            FailureKind::Refused => {
                self.refusals = self.refusals.saturating_add(1);
                self.refusals >= MAX_REFUSALS || had_its_time
            }
            FailureKind::Denied => true,
        }
    }
}

/// The request of a held delivery: all that [`crate::request`] needs to decide it again and to send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRequest {
    pub head: HeldHead,
    pub body: Bytes,
}

/// A held request except its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldHead {
    pub host: Arc<str>,
    /// `Host` as it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_line: Option<String>,
    /// Path and query.
    pub target: String,
    /// Whether the sender came over TLS.
    pub secure: bool,
    pub client: IpAddr,
    /// The headers for the EventListener, none of which is a credential.
    pub headers: Vec<(String, String)>,
    pub facts: Facts,
}

impl HeldHead {
    /// Converts headers for storage. A value that is not text is left out; no sender has one.
    pub fn keep_headers(headers: &HeaderMap) -> Vec<(String, String)> {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        headers.iter().filter_map(text).collect()
    }

    pub fn header_map(&self) -> HeaderMap {
        let parsed = |(name, value): &(String, String)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        };
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in self.headers.iter().filter_map(parsed) {
            headers.append(name, value);
        }
        headers
    }
}

impl HeldRequest {
    /// Encodes the head as JSON and a newline; the body follows unchanged.
    fn encode_head(&self) -> Result<Vec<u8>, StoreError> {
        let mut head = serde_json::to_vec(&self.head).map_err(|error| corrupt("written", &error))?;
        head.push(b'\n');
        Ok(head)
    }

    fn decode(bytes: &Bytes) -> Result<Self, StoreError> {
        // JSON written by serde contains no newline.
        let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
        let head = serde_json::from_slice(bytes.get(..end).unwrap_or_default());
        let head = head.map_err(|error| corrupt("read", &error))?;
        Ok(Self { head, body: bytes.slice((end + 1).min(bytes.len())..) })
    }
}

fn corrupt(what: &str, error: &serde_json::Error) -> StoreError {
    StoreError::Corrupt(format!("a held delivery cannot be {what}: {error}"))
}

/// The outcome of an attempt to send a held delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The EventListener accepted it.
    Accepted(Option<EventId>),
    Failed(Failure),
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub kind: FailureKind,
    /// For operators.
    pub why: String,
}

/// What a failure means for further attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Temporary: the EventListener, the store or Doorward itself is in trouble.
    Passing,
    /// The EventListener does not want it (400, 413, 415 or 422).
    Refused,
    /// The policy no longer allows it.
    Denied,
}

/// Sends a held delivery to its EventListener, once.
pub trait Deliverer: Send + Sync + 'static {
    /// Called once all deliveries that were held before this process began are known.
    fn knows_all(&self) {}

    /// Reserves memory for a request before it is read; `None` while memory is short.
    fn room(&self, held: &Held) -> Option<Room>;

    /// Returns once the audit trail has the outcome on stable storage, unless it fails or hangs.
    fn deliver(&self, id: HeldId, held: &Held, request: HeldRequest) -> impl Future<Output = Attempt> + Send;
}
