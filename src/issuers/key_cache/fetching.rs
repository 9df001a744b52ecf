//! The task of a key cache: schedules fetches, handles responses, and stores keys on disk for a start during an outage.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use url::Url;

use super::{
    super::{
        discovery::{self, MAX_METADATA, Metadata},
        kept_keys::KeptKeys,
        keys::{KEY_SET_TYPES, Keys, MAX_KEY_SET},
        metrics::FetchLabels,
        validators::Validators,
    },
    COOL_DOWN, Shared,
};
use crate::{
    clock::{Moment, Timestamp, jitter},
    egress::Bounds,
    lock::lock,
};

/// The bounds of the lifetime of a set, which its response sets.
const LIFE: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(3_600);
const DEFAULT_LIFE: Duration = Duration::from_secs(600);
/// The age of a set at which there is an alarm. Every set is due before.
const ALARM: Duration = *LIFE.end();
/// The maximum back-off.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Why a set is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The periodic fetch is due.
    Due,
    /// A token names a key that is not in the set.
    UnknownKey,
    /// Both.
    UnknownKeyWhenDue,
}

impl Cause {
    const fn of(is_demanded: bool, is_due: bool) -> Option<Self> {
        match (is_demanded, is_due) {
            (true, true) => Some(Self::UnknownKeyWhenDue),
            (true, false) => Some(Self::UnknownKey),
            (false, true) => Some(Self::Due),
            (false, false) => None,
        }
    }

    const fn is_due(self) -> bool {
        matches!(self, Self::Due | Self::UnknownKeyWhenDue)
    }

    const fn is_demanded(self) -> bool {
        matches!(self, Self::UnknownKey | Self::UnknownKeyWhenDue)
    }

    /// The label for metrics.
    const fn label(self) -> &'static str {
        if self.is_demanded() { "unknown_key" } else { "periodic" }
    }
}

/// The result of a fetch.
enum Fetched {
    /// The document, with the headers for its lifetime.
    Whole(Response<Bytes>),
    /// The document has not changed; its new lifetime.
    Unchanged(Duration),
}

impl Shared {
    pub(super) async fn run(self: Arc<Self>) {
        if self.load_kept().await {
            self.tried.send_replace(true);
        }
        loop {
            let demanded = lock(&self.demand).pending;
            let is_due = !self.clock.moment().is_before(self.due.load());
            if let Some(cause) = Cause::of(demanded, is_due) {
                self.fetch(cause).await;
                self.tried.send_replace(true);
            }
            if demanded {
                lock(&self.demand).pending = false;
                self.answered.send_modify(|count| *count += 1);
            }
            self.watch_age();
            // At most half a minute, so that a clock that was set ahead or a suspended machine is noticed.
            let until_due = self.clock.moment().until(self.due.load());
            let pause = until_due.clamp(Duration::from_millis(10), Duration::from_secs(30));
            let _ = tokio::time::timeout(pause, self.wake.notified()).await;
        }
    }

    /// Makes one fetch and updates the state that requests see. Made-up keys can cause an earlier fetch, but never
    /// delay the periodic one.
    async fn fetch(&self, cause: Cause) {
        let started = self.clock.moment();
        let (outcome, pause) = match self.try_fetch(started, cause).await {
            Ok(life) => {
                let mut progress = lock(&self.progress);
                progress.error = None;
                // While the discovery document fails, retry sooner. Only a due fetch has requested it.
                progress.failures = match progress.discovery_error {
                    Some(_) => progress.failures.saturating_add(cause.is_due().into()),
                    None => 0,
                };
                // A removed key needs a second answer.
                let second = self.keys.load().as_ref().is_some_and(|current| current.before.is_some());
                let pause = if second { COOL_DOWN } else { renewal(life, jitter()) };
                ("ok", if progress.failures == 0 { pause } else { pause_after(progress.failures).min(pause) })
            }
            Err(error) => {
                tracing::warn!(issuer = %self.settings.name, %error, "the key set could not be fetched");
                let mut progress = lock(&self.progress);
                progress.failures = progress.failures.saturating_add(1);
                progress.error = Some(error);
                ("failed", pause_after(progress.failures))
            }
        };
        let labels = FetchLabels { issuer: Arc::clone(&self.settings.name), cause: cause.label(), outcome };
        self.metrics.key_fetches.get_or_create(&labels).inc();
        let next = self.clock.moment() + pause;
        self.due.store(if cause.is_due() { next } else { next.min(self.due.load()) });
    }

    /// Logs once when the set becomes too old, and once when it is fresh again.
    fn watch_age(&self) {
        let now = self.clock.moment();
        let mut progress = lock(&self.progress);
        let Some(fetched) = progress.fetched else { return };
        let alarmed = now.since(fetched) > ALARM;
        if alarmed && !progress.alarmed {
            let error = progress.error.as_deref().unwrap_or("unknown");
            let (fetched, until) = (fetched.wall(), self.usable_until.load().wall());
            tracing::error!(issuer = %self.settings.name, %fetched, %until, error, "the key set is stale; from `until` on its tokens are refused with 503");
        } else if !alarmed && progress.alarmed {
            tracing::info!(issuer = %self.settings.name, "the key set is fresh again");
        }
        progress.alarmed = alarmed;
        self.metrics.keys_stale.get_or_create(&self.label()).set(i64::from(alarmed));
    }

    /// Records the result of fetching the discovery document, and logs once when it begins to fail, and once when it
    /// works again. The previous document stays in use, so nothing else would show the failure.
    fn note_discovery(&self, error: Option<&String>) {
        let error = error.filter(|_| self.metadata.load().is_some());
        let mut progress = lock(&self.progress);
        match (error, &progress.discovery_error) {
            (Some(error), None) => {
                tracing::warn!(issuer = %self.settings.name, %error, "could not refetch the discovery document; the old one is used");
            }
            (None, Some(_)) => {
                tracing::info!(issuer = %self.settings.name, "the discovery document can be fetched again");
            }
            _ => {}
        }
        progress.discovery_error = error.cloned();
    }

    /// Fetches the set. Returns how long it is fresh.
    async fn try_fetch(&self, started: Moment, cause: Cause) -> Result<Duration, String> {
        let mut trouble = None;
        let mut discovery = None;
        if self.settings.discover && (cause.is_due() || self.metadata.load().is_none()) {
            let told = self.fetch_metadata().await;
            self.note_discovery(told.as_ref().err());
            match told {
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
        // For an unknown key the request is unconditional: a stale cache on the way must not answer 304.
        let validators = self.known().keys.clone().filter(|_| !cause.is_demanded());
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
        self.keep(started.wall(), jwks, discovery).await;
        match trouble {
            // The keys are fresh, but the endpoints of logins or introspection are not known.
            Some(error) if self.metadata.load().is_none() => Err(error),
            _ => Ok(life),
        }
    }

    /// Fetches the discovery document; `None` if it has not changed.
    async fn fetch_metadata(&self) -> Result<Option<Bytes>, String> {
        let location = discovery::location(&self.settings.issuer);
        let told = |why: String| format!("{location}: {why}");
        let url = Url::parse(&location).map_err(|error| told(error.to_string()))?;
        let validators = self.known().discovery.clone();
        match self.get(&url, true, MAX_METADATA, validators).await.map_err(told)? {
            Fetched::Unchanged(_) => Ok(None),
            Fetched::Whole(answer) => {
                let metadata = Metadata::parse(answer.body(), &self.settings.document_issuer()).map_err(told)?;
                self.known().discovery = Validators::of(&url, answer.headers(), DEFAULT_LIFE);
                self.install_metadata(metadata);
                Ok(Some(answer.into_body()))
            }
        }
    }

    /// Makes a discovery document the current one. Says once which of its endpoints are ignored.
    fn install_metadata(&self, metadata: Metadata) {
        if self.metadata.load().as_ref().is_none_or(|known| known.ignored != metadata.ignored) {
            for endpoint in &metadata.ignored {
                tracing::warn!(issuer = %self.settings.name, %endpoint, "an endpoint of the discovery document is not an https address, and is not used");
            }
        }
        self.metadata.store(Some(Arc::new(metadata)));
    }

    /// Fetches `url`, conditionally by `validators`. `trusted` says that the address is configured or on the issuer's
    /// own origin, so that our token may be sent there.
    async fn get(
        &self,
        url: &Url,
        trusted: bool,
        max_body: usize,
        validators: Option<Validators>,
    ) -> Result<Fetched, String> {
        let validators = validators.filter(|validators| validators.are_of(url));
        let mut request = Request::get(url.as_str())
            .header(header::ACCEPT, KEY_SET_TYPES)
            .body(Bytes::new())
            .map_err(|error| error.to_string())?;
        let fetches = self.fetches.load_full();
        if let Some(bearer) = fetches.bearer.as_ref().filter(|_| trusted) {
            request.headers_mut().insert(header::AUTHORIZATION, bearer.clone());
        }
        if let Some(validators) = &validators {
            validators.condition(request.headers_mut());
        }
        let bounds = Bounds { timeout: fetches.timeout, max_body };
        let answer = self.egress.send(request, bounds).await.map_err(|error| error.to_string())?;
        match (answer.status(), validators) {
            (StatusCode::OK, _) => Ok(Fetched::Whole(answer)),
            (StatusCode::NOT_MODIFIED, Some(validators)) => {
                Ok(Fetched::Unchanged(life(answer.headers()).unwrap_or(validators.life)))
            }
            (status, _) => Err(format!("the answer is {status}, not 200")),
        }
    }

    /// Stores the new documents on disk, with the known version of one that has not changed, and the time.
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
            tracing::warn!(issuer = %self.settings.name, %error, "the key set could not be stored on disk");
        }
    }

    /// Installs the set that was stored on disk. Returns whether there was a usable one.
    async fn load_kept(&self) -> bool {
        let Some(folder) = self.settings.keep_in.clone() else { return false };
        let (issuer, max_stale) = (Arc::clone(&self.settings.issuer), self.settings.max_stale);
        let now = self.clock.moment();
        let load = move || KeptKeys::load(&folder, &issuer, now.wall(), max_stale);
        let loaded = tokio::task::spawn_blocking(load).await;
        let kept = match loaded {
            Ok(Ok(Some(kept))) => kept,
            Ok(Err(error)) => {
                tracing::warn!(issuer = %self.settings.name, %error, "the key set on disk is not used");
                return false;
            }
            _ => return false,
        };
        let age = now.wall().since(kept.fetched());
        let keys = Keys::parse(kept.jwks(), &self.settings.algorithms);
        let is_usable = keys.is_ok();
        if let Ok(keys) = keys {
            self.install(keys);
            self.succeeded(now - age, Duration::ZERO);
        }
        if self.settings.discover
            && let Some(Ok(metadata)) =
                kept.discovery().map(|text| Metadata::parse(text, &self.settings.document_issuer()))
        {
            self.install_metadata(metadata);
        }
        self.known().kept = Some(kept);
        is_usable
    }
}

/// The time until a set with this lifetime is fetched again: early enough for a try or two to fail. `jitter` is from 0
/// to 1.
fn renewal(life: Duration, jitter: f64) -> Duration {
    life.mul_f64(0.8 + jitter * 0.1)
}

/// The back-off after this many failures in a row: one second, doubled each time.
fn pause_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(MAX_PAUSE)
}

/// The lifetime of a response by its `Cache-Control: max-age`, within bounds; `None` if it has none.
fn life(headers: &http::HeaderMap) -> Option<Duration> {
    headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|directive| directive.trim().split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case("max-age"))
        .and_then(|(_, seconds)| seconds.trim_matches('"').parse().ok())
        .map(|seconds| Duration::from_secs(seconds).clamp(*LIFE.start(), *LIFE.end()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

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

    /// A provider that is down is not queried each second by every replica; one that is up is queried before its keys
    /// are old.
    #[test]
    fn keys_are_fetched_again_before_they_are_old_and_after_failures_ever_later() {
        let pauses = [1, 2, 3, 4, 5, 6, 7, 8, u32::MAX].map(|failures| pause_after(failures).as_secs());
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let within = [0.0, 0.5, 1.0].map(|jitter| renewal(Duration::from_secs(600), jitter).as_millis());
        assert_eq!(within, [480_000, 510_000, 540_000]);
    }
}
