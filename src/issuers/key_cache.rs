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
//! a key that left it is dead at once, which is at the latest 90 % of that life (at most 54 minutes) after the issuer took
//! it out; an answer without a usable key replaces nothing. The generation changes only when the usable keys do.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use moka::sync::Cache;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
};
use url::Url;

use super::{
    discovery::{self, MAX_METADATA, Metadata},
    kept_keys::KeptKeys,
    keys::{Keys, MAX_KEY_SET},
    metrics::{FetchLabels, IssuerLabel, Metrics},
    validators::Validators,
};
use crate::{
    clock::{Clock, Timestamp},
    config::{raw::Algorithm, resolver::Secret},
    egress::{Bounds, Egress},
};

/// The time for one fetch, from the connection to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two fetches that unknown keys cause.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How long a key that a fetch did not bring causes no other one.
const UNKNOWN_KID: Duration = Duration::from_secs(60);
/// The life of a set: what its answer says, within these.
const LIFE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
const DEFAULT_LIFE: Duration = Duration::from_secs(600);
/// A set of which this time has passed since the last success is an alarm. Every set is due before.
const ALARM: Duration = LIFE.1;
/// The longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(60);

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
}

/// A key set with its number.
#[derive(Debug)]
pub struct Generation {
    pub number: u64,
    pub keys: Keys,
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
    bearer: ArcSwapOption<Secret>,
    keys: ArcSwapOption<Generation>,
    /// The number of `keys`, 0 without any; read on each request.
    number: AtomicU64,
    /// When `keys` stop being usable, in milliseconds.
    usable_until: AtomicI64,
    /// When the next fetch is due, in milliseconds.
    due: AtomicI64,
    metadata: ArcSwapOption<Metadata>,
    wake: Notify,
    demand: Mutex<Demand>,
    answered: watch::Sender<u64>,
    /// Keys that a fetch did not bring, until when.
    unknown: Cache<Box<str>, Timestamp>,
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

/// What came of a fetch.
enum Fetched {
    /// The document, and the moment of its request.
    Whole(Response<Bytes>),
    /// It is the one that we have; how long that one is fresh again.
    Unchanged(Duration),
}

/// The budget for fetches that unknown keys cause. The periodic ones have their own clock.
#[derive(Debug, Default)]
struct Demand {
    last: Option<Timestamp>,
    pending: bool,
}

#[derive(Debug, Default)]
struct Progress {
    fetched: Option<Timestamp>,
    failures: u32,
    /// Whether the age of the set was told as an alarm.
    alarmed: bool,
    error: Option<String>,
}

impl KeyCache {
    /// A cache that does nothing yet.
    pub fn new(settings: KeySettings, egress: Egress, clock: Clock, metrics: Metrics) -> Self {
        let shared = Arc::new(Shared {
            settings,
            egress,
            clock,
            metrics,
            bearer: ArcSwapOption::empty(),
            keys: ArcSwapOption::empty(),
            number: AtomicU64::new(0),
            usable_until: AtomicI64::new(i64::MIN),
            due: AtomicI64::new(i64::MIN),
            metadata: ArcSwapOption::empty(),
            wake: Notify::new(),
            demand: Mutex::default(),
            answered: watch::Sender::new(0),
            unknown: Cache::new(1_024),
            progress: Mutex::default(),
            known: Mutex::default(),
        });
        Self { shared, task: OnceLock::new() }
    }

    /// Starts fetching on `control`, if that has not been done, and presents `bearer` from the next fetch on.
    pub fn start(&self, bearer: Option<Secret>, control: &Handle) {
        self.shared.bearer.store(bearer.map(Arc::new));
        self.task.get_or_init(|| control.spawn(Arc::clone(&self.shared).run()).abort_handle());
    }

    pub fn settings(&self) -> &KeySettings {
        &self.shared.settings
    }

    /// The client that fetches.
    pub fn egress(&self) -> &Egress {
        &self.shared.egress
    }

    /// The number of the usable key set; `None` while there is none. Never waits.
    pub fn generation_number(&self, now: Timestamp) -> Option<u64> {
        let shared = &*self.shared;
        if now.as_millis() >= shared.due.load(Ordering::Acquire) {
            shared.wake.notify_one();
        }
        let usable = now.as_millis() < shared.usable_until.load(Ordering::Acquire);
        usable.then(|| shared.number.load(Ordering::Acquire)).filter(|number| *number != 0)
    }

    /// The usable key set; an error says why there is none. Never waits.
    pub fn current(&self, now: Timestamp) -> Result<Arc<Generation>, String> {
        match self.generation_number(now) {
            Some(_) => self.shared.keys.load_full().ok_or_else(|| self.trouble()),
            None => Err(self.trouble()),
        }
    }

    /// What discovery told, if it did.
    pub fn metadata(&self) -> Option<Arc<Metadata>> {
        self.shared.metadata.load_full()
    }

    /// Fetches the set for a token whose key is not in it, together with all others that wait for the same, and at most
    /// once in 30 s however the fetch ends. Returns when the set may have changed or will not.
    ///
    /// The caller has checked what can be checked without the key.
    pub async fn refetch(&self, kid: Option<&str>) {
        let shared = &*self.shared;
        shared.metrics.unknown_kids.get_or_create(&shared.label()).inc();
        let now = shared.clock.now();
        if kid.is_some_and(|kid| shared.unknown.get(kid).is_some_and(|until| now < until)) {
            return;
        }
        let mut answered = shared.answered.subscribe();
        {
            let mut demand = shared.demand.lock().unwrap_or_else(PoisonError::into_inner);
            if !demand.pending {
                if demand.last.is_some_and(|last| now < last + COOL_DOWN) {
                    return;
                }
                *demand = Demand { last: Some(now), pending: true };
                shared.wake.notify_one();
            }
        }
        // The task answers within the time of its fetches; the bound is for a control runtime that hangs.
        let _ = tokio::time::timeout(FETCH_TIMEOUT * 3, answered.changed()).await;
    }

    /// Remembers that a fetched set does not hold `kid`.
    pub fn note_unknown(&self, kid: &str) {
        let failed = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner).error.is_some();
        if !failed {
            self.shared.unknown.insert(kid.into(), self.shared.clock.now() + UNKNOWN_KID);
        }
    }

    pub fn status(&self) -> KeyStatus {
        let now = self.shared.clock.now();
        let progress = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        KeyStatus {
            usable: self.generation_number(now).is_some(),
            keys: self.shared.keys.load().as_ref().map_or(0, |generation| generation.keys.count()),
            age: progress.fetched.map(|fetched| now.since(fetched)),
            last_error: progress.error.clone(),
        }
    }

    fn trouble(&self) -> String {
        let progress = self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match (&progress.error, progress.fetched) {
            (Some(error), None) => format!("its keys could not be fetched yet: {error}"),
            (Some(error), Some(fetched)) => format!("its keys were last fetched at {fetched}, too long ago: {error}"),
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
    async fn run(self: Arc<Self>) {
        self.load_kept().await;
        loop {
            let demanded = self.demand.lock().unwrap_or_else(PoisonError::into_inner).pending;
            let now = self.clock.now();
            let due = Timestamp::from_millis(self.due.load(Ordering::Acquire));
            if demanded || now >= due {
                self.fetch(if demanded { "unknown_key" } else { "periodic" }).await;
            }
            if demanded {
                self.demand.lock().unwrap_or_else(PoisonError::into_inner).pending = false;
                self.answered.send_modify(|count| *count += 1);
            }
            self.watch_age();
            let due = Timestamp::from_millis(self.due.load(Ordering::Acquire));
            // Not longer than half a minute, so that a clock that was set or a machine that slept is noticed.
            let pause = due.since(self.clock.now()).clamp(Duration::from_millis(10), Duration::from_secs(30));
            let _ = tokio::time::timeout(pause, self.wake.notified()).await;
        }
    }

    /// One try, with its effect on everything that requests see.
    async fn fetch(&self, cause: &'static str) {
        let started = self.clock.now();
        let (outcome, pause) = match self.try_fetch(started, cause == "periodic").await {
            Ok(life) => {
                let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.failures = 0;
                progress.error = None;
                ("ok", life.mul_f64(0.8 + jitter() * 0.1))
            }
            Err(error) => {
                tracing::warn!(issuer = %self.settings.name, %error, "the key set could not be fetched");
                let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
                progress.failures = progress.failures.saturating_add(1);
                progress.error = Some(error);
                let pause = Duration::from_secs(1 << (progress.failures - 1).min(6)).min(MAX_PAUSE);
                ("failed", pause)
            }
        };
        let labels = FetchLabels { issuer: Arc::clone(&self.settings.name), cause, outcome };
        self.metrics.key_fetches.get_or_create(&labels).inc();
        self.due.store((self.clock.now() + pause).as_millis(), Ordering::Release);
    }

    /// Tells once when the set is older than it should ever be, and once when it no longer is.
    fn watch_age(&self) {
        let now = self.clock.now();
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fetched) = progress.fetched else { return };
        let alarmed = now.since(fetched) > ALARM;
        if alarmed && !progress.alarmed {
            let error = progress.error.as_deref().unwrap_or("unknown");
            let until = Timestamp::from_millis(self.usable_until.load(Ordering::Acquire));
            tracing::error!(issuer = %self.settings.name, %fetched, %until, error, "the key set is stale; from `until` on its tokens are refused with 503");
        } else if !alarmed && progress.alarmed {
            tracing::info!(issuer = %self.settings.name, "the key set is fresh again");
        }
        progress.alarmed = alarmed;
        self.metrics.keys_stale.get_or_create(&self.label()).set(i64::from(alarmed));
    }

    /// How long the fetched set is fresh.
    async fn try_fetch(&self, started: Timestamp, periodic: bool) -> Result<Duration, String> {
        let mut trouble = None;
        let mut discovery = None;
        if self.settings.discover && (periodic || self.metadata.load().is_none()) {
            match self.fetch_metadata().await {
                Ok(document) => discovery = document,
                Err(error) => trouble = Some(error),
            }
        }
        let (url, trusted) = match (&self.settings.url, self.metadata.load().as_ref()) {
            (Some(url), _) => (url.clone(), true),
            (None, Some(metadata)) => {
                let url =
                    metadata.jwks_uri.clone().ok_or("the discovery document has no `jwks_uri`; set `keys.url`")?;
                let own = Url::parse(&self.settings.issuer).is_ok_and(|issuer| issuer.origin() == url.origin());
                (url, own)
            }
            (None, None) => return Err(trouble.unwrap_or_else(|| "there is no address of a key set".to_owned())),
        };
        // For an unknown key the whole set is asked for: a stale copy on the way must not answer that nothing changed.
        let validators = self.known().keys.clone().filter(|_| periodic && self.keys.load().is_some());
        let fetched = self.get(&url, trusted, MAX_KEY_SET, validators).await.map_err(|why| format!("{url}: {why}"))?;
        let (life, jwks) = match fetched {
            Fetched::Unchanged(life) => {
                self.succeeded(started, life);
                (life, None)
            }
            Fetched::Whole(answer) => {
                let keys =
                    Keys::parse(answer.body(), &self.settings.algorithms).map_err(|why| format!("{url}: {why}"))?;
                for why in keys.skipped() {
                    tracing::debug!(issuer = %self.settings.name, %why, "a key is not used");
                }
                let life = life(answer.headers()).unwrap_or(DEFAULT_LIFE);
                self.known().keys = Validators::of(&url, answer.headers(), life);
                self.install(keys);
                self.succeeded(started, life);
                (life, Some(answer.into_body()))
            }
        };
        self.keep(started, jwks, discovery).await;
        match trouble {
            // The keys are fresh, but endpoints that others wait for are not known.
            Some(error) if self.metadata.load().is_none() => Err(error),
            _ => Ok(life),
        }
    }

    /// The document, if it is not the one that we have.
    async fn fetch_metadata(&self) -> Result<Option<Bytes>, String> {
        let location = discovery::location(&self.settings.issuer);
        let told = |why: String| format!("{location}: {why}");
        let url = Url::parse(&location).map_err(|error| told(error.to_string()))?;
        let validators = self.known().discovery.clone().filter(|_| self.metadata.load().is_some());
        match self.get(&url, true, MAX_METADATA, validators).await.map_err(told)? {
            Fetched::Unchanged(_) => Ok(None),
            Fetched::Whole(answer) => {
                let metadata = Metadata::parse(answer.body(), &self.settings.issuer).map_err(told)?;
                self.known().discovery = Validators::of(&url, answer.headers(), DEFAULT_LIFE);
                self.metadata.store(Some(Arc::new(metadata)));
                Ok(Some(answer.into_body()))
            }
        }
    }

    /// Fetches what stands at `url`, unless it is what `validators` are of. `trusted`: the address is ours or the
    /// issuer's own, so that our token may go there.
    async fn get(
        &self,
        url: &Url,
        trusted: bool,
        max_body: usize,
        validators: Option<Validators>,
    ) -> Result<Fetched, String> {
        let validators = validators.filter(|validators| validators.are_of(url));
        let mut request = Request::get(url.as_str())
            .header(header::ACCEPT, "application/json, application/jwk-set+json")
            .body(Bytes::new())
            .map_err(|error| error.to_string())?;
        if let Some(token) = self.bearer.load().as_ref().filter(|_| trusted) {
            let mut value = HeaderValue::from_bytes(&[b"Bearer ", token.expose()].concat())
                .map_err(|_| "the token in `keys.bearer` has characters that no header may have")?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        if let Some(validators) = &validators {
            validators.condition(request.headers_mut());
        }
        let bounds = Bounds { timeout: FETCH_TIMEOUT, max_body };
        let answer = self.egress.send(request, bounds).await.map_err(|error| error.to_string())?;
        match (answer.status(), validators) {
            (StatusCode::OK, _) => Ok(Fetched::Whole(answer)),
            (StatusCode::NOT_MODIFIED, Some(validators)) => {
                Ok(Fetched::Unchanged(life(answer.headers()).unwrap_or(validators.life)))
            }
            (status, _) => Err(format!("the answer is {status}, not 200")),
        }
    }

    fn install(&self, keys: Keys) {
        let current = self.keys.load();
        let same = current.as_ref().is_some_and(|current| current.keys.fingerprint() == keys.fingerprint());
        if !same {
            let number = current.as_ref().map_or(1, |current| current.number + 1);
            let count = keys.count();
            tracing::info!(issuer = %self.settings.name, keys = count, generation = number, "new key set");
            self.metrics.keys.get_or_create(&self.label()).set(i64::try_from(count).unwrap_or(i64::MAX));
            self.keys.store(Some(Arc::new(Generation { number, keys })));
            self.number.store(number, Ordering::Release);
            self.unknown.invalidate_all();
        }
    }

    /// The set is that of the issuer as of `fetched`.
    fn succeeded(&self, fetched: Timestamp, life: Duration) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).fetched = Some(fetched);
        self.metrics.keys_fetched_at.get_or_create(&self.label()).set(fetched.as_secs());
        let usable_until = fetched + life.max(self.settings.max_stale);
        self.usable_until.store(usable_until.as_millis(), Ordering::Release);
    }

    /// Keeps what is new of both documents beside what is known of the other, and the time.
    async fn keep(&self, fetched: Timestamp, jwks: Option<Bytes>, discovery: Option<Bytes>) {
        let Some(folder) = self.settings.keep_in.clone() else { return };
        let kept = {
            let mut known = self.known();
            let before = known.kept.take();
            let jwks = jwks.as_deref().or_else(|| before.as_ref().map(KeptKeys::jwks));
            let discovery = discovery.as_deref().or_else(|| before.as_ref().and_then(KeptKeys::discovery));
            known.kept = jwks.and_then(|jwks| KeptKeys::new(&self.settings.issuer, fetched, jwks, discovery));
            known.kept.clone()
        };
        let Some(kept) = kept else { return };
        let saved = tokio::task::spawn_blocking(move || kept.save(&folder));
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(issuer = %self.settings.name, %error, "the key set could not be kept on disk");
        }
    }

    async fn load_kept(&self) {
        let Some(folder) = self.settings.keep_in.clone() else { return };
        let issuer = Arc::clone(&self.settings.issuer);
        let loaded = tokio::task::spawn_blocking(move || KeptKeys::load(&folder, &issuer)).await;
        let kept = match loaded {
            Ok(Ok(Some(kept))) => kept,
            Ok(Err(error)) => {
                tracing::warn!(issuer = %self.settings.name, %error, "the kept key set is not used");
                return;
            }
            _ => return,
        };
        // A set from the future cannot be told fresh from stale.
        let age = self.clock.now().since(kept.fetched());
        if kept.fetched() > self.clock.now() || age >= self.settings.max_stale {
            return;
        }
        if let Ok(keys) = Keys::parse(kept.jwks(), &self.settings.algorithms) {
            self.install(keys);
            self.succeeded(kept.fetched(), Duration::ZERO);
        }
        if self.settings.discover
            && let Some(Ok(metadata)) = kept.discovery().map(|text| Metadata::parse(text, &self.settings.issuer))
        {
            self.metadata.store(Some(Arc::new(metadata)));
        }
        self.known().kept = Some(kept);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn label(&self) -> IssuerLabel {
        IssuerLabel { issuer: Arc::clone(&self.settings.name) }
    }
}

/// The life of an answer by its `Cache-Control: max-age`, within bounds; `None` if it says nothing.
fn life(headers: &http::HeaderMap) -> Option<Duration> {
    headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|directive| directive.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("max-age"))
        .and_then(|(_, seconds)| seconds.trim_matches('"').parse().ok())
        .map(|seconds| Duration::from_secs(seconds).clamp(LIFE.0, LIFE.1))
}

/// From 0 to 1, so that replicas do not fetch in step.
fn jitter() -> f64 {
    let mut byte = [0];
    // Without randomness the pause is only less spread.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_life_of_a_set_is_what_its_answer_says_within_bounds() {
        for (value, seconds) in [
            (None, None),
            (Some("max-age=300"), Some(300)),
            (Some("public, Max-Age=\"120\", must-revalidate"), Some(120)),
            (Some("max-age=0"), Some(60)),
            (Some("max-age=99999999"), Some(3_600)),
            (Some("max-age=99999999999999999999999"), None),
            (Some("no-store"), None),
        ] {
            let mut headers = http::HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(value));
            }
            assert_eq!(life(&headers), seconds.map(Duration::from_secs), "{value:?}");
        }
    }
}
