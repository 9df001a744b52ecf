//! Keeps the key set and the discovery document of one issuer fresh.
//!
//! One task on the control runtime does all fetching. Requests read what it left and never wait for it, but for the
//! one case of a key that is not in the set. The states of a set:
//!
//! - fresh: until 80 to 90 % of the life that the answer's `Cache-Control` gives it;
//! - stale: refreshed in the background, with growing pauses after failures, and used meanwhile; an alarm after an hour;
//! - gone: `max_stale` after the last success. Tokens then fail with 503, not 401.
//!
//! The periodic fetch is conditional, and 304 counts as a success. A set that was fetched replaces the old one whole, so
//! a key that left it is dead at once, which is at the latest 90 % of that life (at most 54 minutes) after the issuer took it
//! out; an answer without a usable key replaces nothing. Streams that a token of that key opened end when a second answer, half
//! a minute later, lacks it too: what one odd answer takes, no later one gives back. The generation changes only when the usable
//! keys do.

mod fetching;

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use moka::sync::Cache;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
};
use url::Url;

use super::{
    breaker::Bucket, discovery::Metadata, kept_keys::KeptKeys, keys::Keys, metrics::Metrics, tenants::Tenants,
    validators::Validators,
};
use crate::{
    admin::metrics::Labels,
    authn::KeyId,
    clock::{AtomicMoment, Clock, Moment},
    config::raw::Algorithm,
    egress::Egress,
    lock::lock,
};

/// Between two fetches that unknown keys cause.
pub(super) const COOL_DOWN: Duration = Duration::from_secs(30);

/// What keeping two sets on disk may take, however short the time for fetches is.
const SAVING: Duration = Duration::from_secs(5);

/// What decides which keys a cache holds: while it stays the same, a reload keeps the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySettings {
    pub name: Arc<str>,
    pub issuer: Arc<str>,
    pub url: Option<Url>,
    /// Whether the discovery document is wanted.
    pub discover: bool,
    pub algorithms: Box<[Algorithm]>,
    pub max_stale: Duration,
    pub keep_in: Option<PathBuf>,
    /// The certificates of `ca`, so that a changed file makes a new client.
    pub ca: Option<Vec<u8>>,
    pub source: KeySource,
    /// Where several tenants share the set.
    pub tenants: Option<Tenants>,
}

impl KeySettings {
    /// What the discovery document calls its issuer.
    pub fn document_issuer(&self) -> Cow<'_, str> {
        self.tenants.as_ref().map_or(Cow::Borrowed(&*self.issuer), |tenants| tenants.template().into())
    }
}

/// How keys are fetched: a reload that changes it keeps the cache.
#[derive(Debug)]
pub struct FetchSettings {
    /// What a fetch presents, as the value of `Authorization`.
    pub bearer: Option<HeaderValue>,
    /// The time for one fetch, from the connection to the last byte.
    pub timeout: Duration,
    /// How long a key that a fetch did not bring causes no other one.
    pub negative_for: Duration,
}

/// Where keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// They are fetched from the issuer.
    Issuer,
    /// They are Doorward's own, which are supplied.
    Own,
    /// There are none: the issuer signs nothing, and people log in there by other means.
    Nowhere,
}

/// A key set with its number.
#[derive(Debug)]
pub struct Generation {
    pub number: u64,
    pub keys: Arc<Keys>,
    /// The set before, of which this one lacks a key, until another answer has shown that this was no slip.
    before: Option<Arc<Keys>>,
}

/// How a cache is doing, for readiness and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyStatus {
    /// Whether tokens of this issuer can be verified now.
    pub usable: bool,
    pub keys: usize,
    /// Time since the last successful fetch.
    pub age: Option<Duration>,
    /// What went wrong at the last try, if it failed.
    pub last_error: Option<String>,
    /// Why the discovery document of before is still the one in use, if it could not be fetched again.
    pub discovery_error: Option<String>,
}

impl KeyStatus {
    /// What is not as it should be, although tokens may be verified.
    pub fn doubt(&self) -> Option<String> {
        let keys = self.last_error.as_ref().map(|error| format!("works with older keys: {error}"));
        keys.or_else(|| {
            let error = self.discovery_error.as_ref()?;
            Some(format!("works with an older discovery document, whose endpoints may be gone: {error}"))
        })
    }
}

/// The cache. Dropping it ends its task.
#[derive(Debug)]
pub struct KeyCache {
    shared: Arc<Shared>,
    task: OnceLock<AbortHandle>,
}

#[derive(Debug)]
struct Shared {
    settings: KeySettings,
    egress: Egress,
    clock: Clock,
    metrics: Metrics,
    /// The budget of all issuers for fetches that unknown keys cause.
    refetches: Arc<Bucket>,
    fetches: ArcSwap<FetchSettings>,
    keys: ArcSwapOption<Generation>,
    /// The number of `keys`, 0 without any; read on each request.
    number: AtomicU64,
    /// When a set came last that lacked a key of the one before.
    thinned: AtomicMoment,
    /// When `keys` stop being usable.
    usable_until: AtomicMoment,
    /// When the next fetch is due.
    due: AtomicMoment,
    metadata: ArcSwapOption<Metadata>,
    wake: Notify,
    demand: Mutex<Demand>,
    answered: watch::Sender<u64>,
    /// Whether there is a set, or the first try to fetch one is over.
    tried: watch::Sender<bool>,
    /// Keys that a fetch did not bring, and when.
    unknown: Cache<Box<str>, Moment>,
    progress: Mutex<Progress>,
    known: Mutex<Known>,
}

/// What the last good fetches brought, for the next condition and for the file.
#[derive(Debug, Default)]
struct Known {
    keys: Option<Validators>,
    discovery: Option<Validators>,
    /// What the file holds; none where nothing is kept.
    kept: Option<KeptKeys>,
}

/// The budget for fetches that unknown keys cause. The periodic ones have their own clock.
#[derive(Debug, Default)]
struct Demand {
    last: Option<Moment>,
    pending: bool,
}

#[derive(Debug, Default)]
struct Progress {
    fetched: Option<Moment>,
    /// How often in a row something could not be fetched.
    failures: u32,
    /// Whether the age of the set was told as an alarm.
    alarmed: bool,
    error: Option<String>,
    /// Of the discovery document, while there is one of before.
    discovery_error: Option<String>,
}

impl KeyCache {
    /// A cache that does nothing yet.
    pub fn new(
        settings: KeySettings,
        fetches: Arc<FetchSettings>,
        egress: Egress,
        clock: Clock,
        metrics: Metrics,
        refetches: Arc<Bucket>,
    ) -> Self {
        let shared = Arc::new(Shared {
            settings,
            egress,
            clock,
            metrics,
            refetches,
            fetches: ArcSwap::new(fetches),
            keys: ArcSwapOption::empty(),
            number: AtomicU64::new(0),
            thinned: AtomicMoment::new(Moment::MIN),
            usable_until: AtomicMoment::new(Moment::MIN),
            due: AtomicMoment::new(Moment::MIN),
            metadata: ArcSwapOption::empty(),
            wake: Notify::new(),
            demand: Mutex::default(),
            answered: watch::Sender::new(0),
            tried: watch::Sender::new(false),
            unknown: Cache::new(1_024),
            progress: Mutex::default(),
            known: Mutex::default(),
        });
        Self { shared, task: OnceLock::new() }
    }

    /// Starts fetching on `control`, if that has not been done, and goes by `fetches` from the next fetch on.
    pub fn start(&self, fetches: Arc<FetchSettings>, control: &Handle) {
        if self.shared.settings.source != KeySource::Issuer {
            return;
        }
        self.shared.fetches.store(fetches);
        self.task.get_or_init(|| control.spawn(Arc::clone(&self.shared).run()).abort_handle());
    }

    /// Waits until there is a usable set or the first try to fetch one is over; where none is fetched, not at all.
    pub async fn tried(&self) {
        if self.shared.settings.source == KeySource::Issuer {
            // The sender is ours, so that there is no other end than the one that is waited for.
            let _ = self.shared.tried.subscribe().wait_for(|tried| *tried).await;
        }
    }

    /// Takes Doorward's own keys, as a JWK set. They are good until others are supplied.
    pub fn supply(&self, set: &[u8]) {
        match Keys::parse(set, &self.shared.settings.algorithms) {
            Ok(keys) => {
                self.shared.install(keys);
                // Nobody can have given an odd answer.
                self.shared.confirm();
                self.shared.usable_until.store(Moment::MAX);
                self.shared.due.store(Moment::MAX);
            }
            Err(error) => {
                tracing::error!(issuer = %self.shared.settings.name, %error, "Doorward's own keys cannot be used")
            }
        }
    }

    pub fn settings(&self) -> &KeySettings {
        &self.shared.settings
    }

    /// The client that fetches.
    pub fn egress(&self) -> &Egress {
        &self.shared.egress
    }

    /// The number of the usable key set; `None` while there is none. Never waits.
    pub fn generation_number(&self, now: Moment) -> Option<u64> {
        let shared = &*self.shared;
        if !now.is_before(shared.due.load()) {
            shared.wake.notify_one();
        }
        let usable = now.is_before(shared.usable_until.load());
        usable.then(|| shared.number.load(Ordering::Acquire)).filter(|number| *number != 0)
    }

    /// The usable key set; an error says why there is none. Never waits.
    pub fn current(&self) -> Result<Arc<Generation>, String> {
        match self.generation_number(self.shared.clock.moment()) {
            Some(_) => self.shared.keys.load_full().ok_or_else(|| self.trouble()),
            None => Err(self.trouble()),
        }
    }

    /// Whether the set that was fetched last does not have this key, and neither had the one before it. Never waits.
    pub fn lacks(&self, key: KeyId) -> bool {
        self.shared.keys.load().as_ref().is_some_and(|current| {
            !current.keys.has(key) && current.before.as_ref().is_none_or(|before| !before.has(key))
        })
    }

    /// What discovery told, if it did.
    pub fn metadata(&self) -> Option<Arc<Metadata>> {
        self.shared.metadata.load_full()
    }

    /// Fetches the set for a token whose key is not in it, together with all others that wait for the same, and at most
    /// once in 30 s however the fetch ends; at all issuers together, as often as their budget allows. Returns when the set may have changed or will not.
    ///
    /// The caller has checked what can be checked without the key. Gives whether a fetch was made that began after it
    /// asked: one that it only joined may have begun before the key was published.
    pub async fn refetch(&self, kid: Option<&str>) -> bool {
        let shared = &*self.shared;
        if shared.settings.source != KeySource::Issuer {
            return false;
        }
        shared.metrics.unknown_kids.get_or_create(&shared.label()).inc();
        let now = shared.clock.moment();
        let noted = kid.and_then(|kid| shared.unknown.get(kid));
        if noted.is_some_and(|noted| now.since(noted) < shared.fetches.load().negative_for) {
            return false;
        }
        let mut answered = shared.answered.subscribe();
        let joined = {
            let mut demand = lock(&shared.demand);
            let joined = demand.pending;
            if !joined {
                if demand.last.is_some_and(|last| now.since(last) < COOL_DOWN) {
                    return false;
                }
                if !shared.refetches.take(now) {
                    tracing::debug!(issuer = %shared.settings.name, "an unknown key causes no fetch: too many did at all issuers");
                    return false;
                }
                *demand = Demand { last: Some(now), pending: true };
                shared.wake.notify_one();
            }
            joined
        };
        // The task answers once the fetch under way and that for this key are over, each of the discovery document and the set, and what
        // they brought is kept; the bound is for a control runtime or a disk that hangs.
        let patience = shared.fetches.load().timeout * 4 + SAVING;
        let answered = tokio::time::timeout(patience, answered.changed()).await;
        !joined && matches!(answered, Ok(Ok(())))
    }

    /// Remembers that the set of a fetch that was made for `kid` does not hold it. Nothing else may: a key that is not
    /// there yet would stay unknown for as long as tokens with it keep coming.
    pub fn note_unknown(&self, kid: &str) {
        let failed = lock(&self.shared.progress).error.is_some();
        if !failed {
            let shared = &*self.shared;
            shared.unknown.insert(kid.into(), shared.clock.moment());
        }
    }

    pub fn status(&self) -> KeyStatus {
        let now = self.shared.clock.moment();
        let progress = lock(&self.shared.progress);
        KeyStatus {
            usable: self.generation_number(now).is_some(),
            keys: self.shared.keys.load().as_ref().map_or(0, |generation| generation.keys.count()),
            age: progress.fetched.map(|fetched| now.since(fetched)),
            last_error: progress.error.clone(),
            discovery_error: progress.discovery_error.clone(),
        }
    }

    fn trouble(&self) -> String {
        let progress = lock(&self.shared.progress);
        match (&progress.error, progress.fetched) {
            (Some(error), None) => format!("its keys could not be fetched yet: {error}"),
            (Some(error), Some(fetched)) => {
                format!("its keys were last fetched at {}, too long ago: {error}", fetched.shown())
            }
            (None, _) => "its keys are being fetched".to_owned(),
        }
    }
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
            // An issuer that is gone alarms nobody. Where another cache took over, it tells its own age again.
            self.shared.metrics.keys_stale.get_or_create(&self.shared.label()).set(0);
        }
    }
}

impl Shared {
    fn install(&self, keys: Keys) {
        let current = self.keys.load();
        if current.as_ref().is_some_and(|current| current.keys.fingerprint() == keys.fingerprint()) {
            return;
        }
        let number = current.as_ref().map_or(1, |current| current.number + 1);
        let count = keys.count();
        let mut before = current.as_ref().and_then(|current| current.before.clone());
        if let Some(current) = current.as_ref().filter(|current| !keys.has_all_of(&current.keys)) {
            // While one waits for its second answer, it stays the one to compare with.
            if !self.awaits_second_answer() {
                before = Some(Arc::clone(&current.keys));
            }
            self.thinned.store(self.clock.moment());
        }
        tracing::info!(issuer = %self.settings.name, keys = count, generation = number, "new key set");
        self.metrics.keys.get_or_create(&self.label()).set(i64::try_from(count).unwrap_or(i64::MAX));
        self.keys.store(Some(Arc::new(Generation { number, keys: Arc::new(keys), before })));
        self.number.store(number, Ordering::Release);
        self.unknown.invalidate_all();
    }

    /// The set is that of the issuer as of `fetched`.
    fn succeeded(&self, fetched: Moment, life: Duration) {
        lock(&self.progress).fetched = Some(fetched);
        self.metrics.keys_fetched_at.get_or_create(&self.label()).set(fetched.shown().as_secs());
        self.usable_until.store(fetched + life.max(self.settings.max_stale));
        if !self.awaits_second_answer() {
            self.confirm();
        }
    }

    /// What the set lacks of the one before is gone. Its number stays, by which verified tokens go: its keys are the same.
    fn confirm(&self) {
        if let Some(current) = self.keys.load().as_ref().filter(|current| current.before.is_some()) {
            let (number, keys) = (current.number, Arc::clone(&current.keys));
            self.keys.store(Some(Arc::new(Generation { number, keys, before: None })));
        }
    }

    /// Whether a set lacked a key so lately that another answer says no more than the same one.
    fn awaits_second_answer(&self) -> bool {
        self.clock.moment().since(self.thinned.load()) < COOL_DOWN
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    fn label(&self) -> Labels<Arc<str>> {
        [("issuer", Arc::clone(&self.settings.name))]
    }
}
