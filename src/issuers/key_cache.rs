//! The cache of the key set and the discovery document of one issuer.
//!
//! One task on the control runtime does all fetching. Requests read its results and never wait for it, except for a key
//! that is not in the set. The states of a set:
//!
//! - fresh: until 80 to 90 % of the lifetime by `Cache-Control`;
//! - stale: still used while it is refreshed in the background, with growing back-off after failures; an alarm after an
//!   hour;
//! - expired: `max_stale` after the last success. Tokens are then refused with 503, not 401.
//!
//! The periodic fetch is conditional, and 304 counts as a success. A fetched set replaces the old one as a whole, so a
//! removed key is refused at once, which is at the latest 90 % of that lifetime (at most 54 minutes) after the issuer
//! removed it. An answer without a usable key replaces nothing. Streams of tokens with a removed key end only when a
//! second answer, half a minute later, lacks the key too, as no later answer could restore them. The generation changes
//! only when the usable keys do.

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

/// The minimum time between two fetches that unknown keys cause.
pub(super) const COOL_DOWN: Duration = Duration::from_secs(30);

/// The time allowed for storing two sets on disk, however short the time for fetches is.
const SAVING: Duration = Duration::from_secs(5);

/// The settings that determine the keys of a cache. A reload keeps the cache if they are unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySettings {
    pub name: Arc<str>,
    pub issuer: Arc<str>,
    pub url: Option<Url>,
    /// Whether the discovery document is fetched.
    pub discover: bool,
    pub algorithms: Box<[Algorithm]>,
    pub max_stale: Duration,
    pub keep_in: Option<PathBuf>,
    /// The certificates of `ca`, so that a changed file leads to a new client.
    pub ca: Option<Vec<u8>>,
    pub source: KeySource,
    /// The tenants, if several share the set.
    pub tenants: Option<Tenants>,
}

impl KeySettings {
    /// The `issuer` that the discovery document must have.
    pub fn document_issuer(&self) -> Cow<'_, str> {
        self.tenants.as_ref().map_or(Cow::Borrowed(&*self.issuer), |tenants| tenants.template().into())
    }
}

/// How keys are fetched. A reload that changes this keeps the cache.
#[derive(Debug)]
pub struct FetchSettings {
    /// The value of `Authorization` for fetches.
    pub bearer: Option<HeaderValue>,
    /// The time for one fetch, from the connection to the last byte.
    pub timeout: Duration,
    /// How long a key that a fetch did not find causes no further fetch.
    pub negative_for: Duration,
}

/// The source of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The keys are fetched from the issuer.
    Issuer,
    /// The keys are Doorward's own, and are supplied to the cache.
    Own,
    /// There are none: the issuer signs no tokens, and people log in there in another way.
    Nowhere,
}

/// A key set and its generation number.
#[derive(Debug)]
pub struct Generation {
    pub number: u64,
    pub keys: Arc<Keys>,
    /// The earlier set, if this one lacks a key of it, until a second answer confirms the removal.
    before: Option<Arc<Keys>>,
}

/// The status of a cache, for readiness and for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyStatus {
    /// Whether tokens of this issuer can be verified now.
    pub usable: bool,
    pub keys: usize,
    /// Time since the last successful fetch.
    pub age: Option<Duration>,
    /// The error of the last fetch, if it failed.
    pub last_error: Option<String>,
    /// Why the previous discovery document is still in use, if it could not be fetched again.
    pub discovery_error: Option<String>,
}

impl KeyStatus {
    /// A problem that exists although tokens may be verified.
    pub fn doubt(&self) -> Option<String> {
        let keys = self.last_error.as_ref().map(|error| format!("works with older keys: {error}"));
        keys.or_else(|| {
            let error = self.discovery_error.as_ref()?;
            Some(format!("works with an older discovery document, whose endpoints may be gone: {error}"))
        })
    }
}

/// The key cache of one issuer. Dropping it ends its task.
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
    /// The budget, shared by all issuers, for fetches that unknown keys cause.
    refetches: Arc<Bucket>,
    fetches: ArcSwap<FetchSettings>,
    keys: ArcSwapOption<Generation>,
    /// The generation number of `keys`, 0 if there are none; read on each request.
    number: AtomicU64,
    /// The last time that a new set lacked a key of the previous one.
    thinned: AtomicMoment,
    /// When `keys` stop being usable.
    usable_until: AtomicMoment,
    /// When the next fetch is due.
    due: AtomicMoment,
    metadata: ArcSwapOption<Metadata>,
    wake: Notify,
    demand: Mutex<Demand>,
    answered: watch::Sender<u64>,
    /// Whether there is a set, or the first fetch is over.
    tried: watch::Sender<bool>,
    /// Keys that a fetch did not find, and when.
    unknown: Cache<Box<str>, Moment>,
    progress: Mutex<Progress>,
    known: Mutex<Known>,
}

/// The results of the last successful fetches, for conditional requests and for the file.
#[derive(Debug, Default)]
struct Known {
    keys: Option<Validators>,
    discovery: Option<Validators>,
    /// The content of the file; `None` if nothing is stored on disk.
    kept: Option<KeptKeys>,
}

/// The state of fetches that unknown keys cause. Periodic fetches have their own schedule.
#[derive(Debug, Default)]
struct Demand {
    last: Option<Moment>,
    pending: bool,
}

#[derive(Debug, Default)]
struct Progress {
    fetched: Option<Moment>,
    /// The number of failed fetches in a row.
    failures: u32,
    /// Whether the age of the set was logged as an alarm.
    alarmed: bool,
    error: Option<String>,
    /// The error of the discovery document, while a previous one is in use.
    discovery_error: Option<String>,
}

impl KeyCache {
    /// Creates a cache, which does nothing until it is started or supplied.
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

    /// Starts fetching on `control`, if it has not started yet, and uses `fetches` from the next fetch on.
    pub fn start(&self, fetches: Arc<FetchSettings>, control: &Handle) {
        if self.shared.settings.source != KeySource::Issuer {
            return;
        }
        self.shared.fetches.store(fetches);
        self.task.get_or_init(|| control.spawn(Arc::clone(&self.shared).run()).abort_handle());
    }

    /// Waits until there is a usable set or the first fetch is over. Does not wait if keys are not fetched.
    pub async fn tried(&self) {
        if self.shared.settings.source == KeySource::Issuer {
            // `self` owns the sender, so the wait cannot fail.
            let _ = self.shared.tried.subscribe().wait_for(|tried| *tried).await;
        }
    }

    /// Installs Doorward's own keys, from a JWK set. They are valid until others are supplied.
    pub fn supply(&self, set: &[u8]) {
        match Keys::parse(set, &self.shared.settings.algorithms) {
            Ok(keys) => {
                self.shared.install(keys);
                // Own keys need no second answer.
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

    /// The HTTP client for fetches.
    pub fn egress(&self) -> &Egress {
        &self.shared.egress
    }

    /// The generation number of the usable key set; `None` while there is none. Never waits.
    pub fn generation_number(&self, now: Moment) -> Option<u64> {
        let shared = &*self.shared;
        if !now.is_before(shared.due.load()) {
            shared.wake.notify_one();
        }
        let usable = now.is_before(shared.usable_until.load());
        usable.then(|| shared.number.load(Ordering::Acquire)).filter(|number| *number != 0)
    }

    /// The usable key set, or why there is none. Never waits.
    pub fn current(&self) -> Result<Arc<Generation>, String> {
        match self.generation_number(self.shared.clock.moment()) {
            Some(_) => self.shared.keys.load_full().ok_or_else(|| self.trouble()),
            None => Err(self.trouble()),
        }
    }

    /// Whether neither the last fetched set nor an earlier one that it has not yet replaced for good has this key.
    /// Never waits.
    pub fn lacks(&self, key: KeyId) -> bool {
        self.shared.keys.load().as_ref().is_some_and(|current| {
            !current.keys.has(key) && current.before.as_ref().is_none_or(|before| !before.has(key))
        })
    }

    /// The discovery document, if it was fetched.
    pub fn metadata(&self) -> Option<Arc<Metadata>> {
        self.shared.metadata.load_full()
    }

    /// Fetches the set for a token whose key is not in it. Concurrent callers share one fetch, which is made at most
    /// once in 30 s, whether it succeeds or not, and only within the budget of all issuers. Returns when the set may
    /// have changed, or will not change.
    ///
    /// The caller has made all checks that need no key. Returns whether a fetch was made that began after this call:
    /// one that it only joined may have begun before the key was published.
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
                    tracing::debug!(issuer = %shared.settings.name, "no fetch for an unknown key: no budget left");
                    return false;
                }
                *demand = Demand { last: Some(now), pending: true };
                shared.wake.notify_one();
            }
            joined
        };
        // The task answers when the fetch in progress and the one for this key are over, each of the discovery document
        // and the set, and their results are stored. The bound is for a control runtime or a disk that hangs.
        let patience = shared.fetches.load().timeout * 4 + SAVING;
        let answered = tokio::time::timeout(patience, answered.changed()).await;
        !joined && matches!(answered, Ok(Ok(())))
    }

    /// Remembers that a fetch that was made for `kid` did not find it. It must not be called otherwise: a key that is
    /// not published yet would then stay unknown for as long as tokens with it arrive.
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
                format!("its keys were last fetched at {}, too long ago: {error}", fetched.wall())
            }
            (None, _) => "its keys are being fetched".to_owned(),
        }
    }
}

impl Drop for KeyCache {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
            // A removed issuer must not cause an alarm. If another cache took over, it sets the metric again.
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
            // A set that waits for its second answer stays the one to compare with.
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

    /// Records that the set is the issuer's as of `fetched`.
    fn succeeded(&self, fetched: Moment, life: Duration) {
        lock(&self.progress).fetched = Some(fetched);
        self.metrics.keys_fetched_at.get_or_create(&self.label()).set(fetched.wall().as_secs());
        self.usable_until.store(fetched + life.max(self.settings.max_stale));
        if !self.awaits_second_answer() {
            self.confirm();
        }
    }

    /// Confirms that removed keys are gone. The generation number stays, as the keys, and so the cached tokens, are the
    /// same.
    fn confirm(&self) {
        if let Some(current) = self.keys.load().as_ref().filter(|current| current.before.is_some()) {
            let (number, keys) = (current.number, Arc::clone(&current.keys));
            self.keys.store(Some(Arc::new(Generation { number, keys, before: None })));
        }
    }

    /// Whether a key was removed so recently that another answer does not count as a second one.
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
