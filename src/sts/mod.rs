//! Doorward as an issuer of tokens: a task of a run, a bot or a person swaps their own token for one that opens one audience, with
//! the scopes that rules give, for minutes (RFC 8693). That of a task says who caused the run, and is dead when the task is done.
//!
//! ```text
//! form -> subject token: its issuer's keys, TokenReview -> pod, TaskRun, PipelineRun -> who caused it -> rules -> signature
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `keys`, `configured`, `ring` | the keys that sign, from the configuration or made, and their replacement by the calendar |
//! | `metadata` | what is published |
//! | `form`, `refusal` | what is asked, and how it is refused |
//! | `exchange` | one exchange, from the form to the token |
//! | `cluster` | where tasks run that get tokens, and by which upstreams runs are made there |
//! | `party` | for whom it is, and on whose behalf |
//! | `pod_token`, `task` | from the token of a pod to the task in it |
//! | `look_up`, `objects` | where pods and runs are looked up, and what is read of them |
//! | `grant` | what rules give |
//! | `bearer` | who has tokens, and the end of one at the word of who has it |
//! | `claims` | what a token says |
//! | `introspect` | what resource servers hear of one |
//! | `registry` | tokens for registries of containers, in their own protocol |
//! | `onward` | tokens of other providers, for audiences that trust those |
//! | `ends` | the watch that ends tokens with their run, and tells what runs there are |

mod bearer;
mod claims;
mod cluster;
mod configured;
pub mod ends;
mod exchange;
mod form;
mod grant;
mod introspect;
mod keys;
mod look_up;
pub mod metadata;
mod objects;
pub mod onward;
mod party;
mod pod_token;
mod refusal;
mod registry;
mod ring;
mod task;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;

use self::{
    cluster::Clusters,
    exchange::Exchanger,
    form::MAX_BODY,
    introspect::ResourceServer,
    onward::{Onward, Onwards},
    refusal::Refusal,
    registry::Registries,
};
pub use self::{
    keys::SigningKeys,
    look_up::Asking,
    objects::ENDS,
    ring::{Kept, RingError},
};
use crate::{
    app::App,
    audit::{self, Trail},
    clock::Timestamp,
    config::{
        raw::{self, Preset},
        report::At,
        resolver::Resolver,
    },
    egress::Egress,
    error::{Reason, Rejection},
    issuers::{Accepts, Issuers, KeySource},
    request::{exchange::Exchange, sanitize::CleanRequest},
    sessions::keyring::KeyRing,
    snapshot::Snapshot,
    store::Store,
    upstream::{
        Pools, Upstream,
        buffered::{self, BufferLimits},
    },
};

/// A token lasts from so long to so long.
const LIFETIME: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));

/// The shortest time for which a key signs.
const MIN_ROTATE: Duration = Duration::from_secs(3600);

/// What of the configuration is about tokens, before the process runs.
#[derive(Debug)]
pub struct Settings {
    issuer: Arc<str>,
    lifetime: Duration,
    rotate: Duration,
    keys: Option<SigningKeys>,
    /// Whose tokens are exchanged.
    accepts: Accepts,
    resource_servers: Vec<ResourceServer>,
    registries: Registries,
    /// Where tasks run that get tokens.
    clusters: Clusters,
    /// Audiences that trust another provider.
    onward: Onwards,
}

/// The issuer of a generation.
#[derive(Debug)]
pub struct Tokens {
    settings: Settings,
    kept: Kept,
}

impl Settings {
    /// From the configuration; `None` if it has no `tokens`, or what is wrong with them was reported.
    pub fn resolve(
        root: &raw::Root,
        issuers: &Issuers,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        egress: &Egress,
        now: Timestamp,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        let raw = root.tokens.as_ref();
        check_own_issuers(root, resolver);
        let raw = raw?;
        let at = At::root().key("tokens");
        let Some(host) = root.external_host.as_deref() else {
            resolver
                .report
                .error(&at, "without `external_host` the issuer of the tokens has no name")
                .help("set `external_host` to the name under which Doorward is reached");
            return None;
        };
        let issuer: Arc<str> = format!("https://{host}").into();
        let keys = configured::signing_keys(raw, root.store.redis.is_some(), now, resolver, &at);
        let lifetime = raw.lifetime.get();
        if !(LIFETIME.0..=LIFETIME.1).contains(&lifetime) {
            resolver.report.error(&at.key("lifetime"), "`lifetime` is not between 1m and 10m");
        }
        if raw.rotate.get() < MIN_ROTATE {
            resolver.report.error(&at.key("rotate"), "`rotate` is less than 1h");
        }
        if raw.exchange.is_empty() {
            resolver.report.error(&at.key("exchange"), "no issuer is listed whose tokens could be exchanged");
        }
        let resource_servers =
            ResourceServer::resolve_all(&raw.resource_servers, &at.key("resource_servers"), resolver);
        let registries = Registries::resolve(&raw.registries, lifetime, &at.key("registries"), &mut resolver.report);
        let onward = Onward::resolve_all(root, (&issuer, keys.as_ref()), egress, &at.key("onward"), resolver);
        let names: Vec<String> = raw.exchange.iter().map(|exchanged| exchanged.issuer.clone()).collect();
        let mut clusters = Clusters::default();
        for (index, exchanged) in raw.exchange.iter().enumerate() {
            let at = at.key("exchange").index(index);
            let Some(of) = root.issuers.iter().find(|issuer| issuer.name == exchanged.issuer) else {
                let known = root.issuers.iter().map(|issuer| issuer.name.as_str());
                resolver.report.unknown(&at.key("issuer"), "issuer", &exchanged.issuer, known);
                continue;
            };
            check_exchanged(exchanged, of, &issuer, &at, resolver);
            if raw.exchange.iter().take(index).any(|earlier| earlier.issuer == exchanged.issuer) {
                resolver
                    .report
                    .error(&at.key("issuer"), format!("issuer `{}` stands here a second time", exchanged.issuer))
                    .help("list all `namespaces` in one entry");
            }
            clusters.add(exchanged, root, upstreams, &at, resolver);
        }
        clusters.check_routes(root, resolver);
        // What is unknown was told above.
        let known: Vec<String> = names.into_iter().filter(|name| issuers.get(name).is_some()).collect();
        if known.is_empty() {
            return None;
        }
        let accepts = issuers.accepts(&known, &at.key("exchange"), resolver).with_audiences(&[issuer.to_string()]);
        Some(Self {
            issuer,
            lifetime,
            rotate: raw.rotate.get(),
            keys,
            accepts,
            resource_servers,
            registries,
            clusters,
            onward,
        })
    }

    /// How long a key that Doorward makes signs; `None` where the configuration has keys.
    pub fn rotation(&self) -> Option<Duration> {
        self.keys.is_none().then_some(self.rotate)
    }
}

/// An entry of `issuers` for tokens of our own.
fn check_own_issuers(root: &raw::Root, resolver: &mut Resolver) {
    let own = root.issuers.iter().enumerate().filter(|(_, issuer)| issuer.preset == Some(Preset::Doorward));
    for (index, issuer) in own {
        let at = At::root().key("issuers").index(index);
        if root.tokens.is_none() {
            resolver
                .report
                .error(&at.key("preset"), "without the section `tokens` Doorward issues none")
                .help("set `tokens: {exchange: [{issuer: ...}]}`");
        }
        let expected = root.external_host.as_deref().map(|host| format!("https://{host}"));
        if expected.is_some_and(|expected| expected != issuer.issuer) {
            resolver
                .report
                .error(&at.key("issuer"), "Doorward's own tokens are issued by `https://` and `external_host`")
                .help("leave `issuer` out");
        }
        if issuer.login.is_some() || issuer.introspection.is_some() || issuer.keys.url.is_some() {
            resolver.report.error(&at, "Doorward's own tokens need no `login`, `introspection` or `keys`");
        }
    }
}

fn check_exchanged(exchanged: &raw::Exchanged, of: &raw::Issuer, ours: &str, at: &At, resolver: &mut Resolver) {
    let report = &mut resolver.report;
    if !of.audiences.iter().any(|audience| audience == ours) {
        report
            .error(&at.key("issuer"), format!("`{ours}` is not among the audiences of `{}`", of.name))
            .help("only tokens that are made out to Doorward as an issuer are exchanged; add it to `audiences`");
    }
    match (of.preset, &exchanged.kubernetes) {
        (Some(Preset::Doorward), _) => {
            report.error(&at.key("issuer"), "a token of ours is not exchanged for another");
        }
        (Some(Preset::Kubernetes), None) => {
            report
                .error(&at.key("issuer"), "the pods of this cluster cannot be looked up")
                .help("name the API server's upstream in `kubernetes`");
        }
        (Some(Preset::Kubernetes), Some(_)) if of.token_review.is_none() => {
            report
                .error(&at.key("issuer"), format!("issuer `{}` has no `token_review`", of.name))
                .help("without it a token of a pod that was deleted would still be exchanged");
        }
        (Some(Preset::Kubernetes), Some(_)) | (_, None) => {}
        (_, Some(_)) => {
            report.error(&at.key("kubernetes"), "only an issuer with `preset: kubernetes` has pods");
        }
    }
}

impl Tokens {
    pub fn new(settings: Settings, kept: Kept) -> Self {
        Self { settings, kept }
    }

    /// The issuer identifier.
    pub fn issuer(&self) -> &Arc<str> {
        &self.settings.issuer
    }

    /// As [`Settings::rotation`].
    pub fn rotation(&self) -> Option<Duration> {
        self.settings.rotation()
    }

    /// Has keys before this is in force in place of `former`, where Doorward makes them itself and did not before. Those that it had
    /// from files stay published for a while: a token that they signed is good until its end.
    pub async fn take_over(
        &self,
        former: Option<&Self>,
        (store, seal): (&Store, &KeyRing),
        now: Timestamp,
        trail: &Trail,
    ) -> Result<(), RingError> {
        let Some(period) = self.rotation() else { return Ok(()) };
        if former.is_some_and(|former| former.rotation().is_some()) {
            return Ok(());
        }
        self.kept.renew(store, seal, period, now, trail).await?;
        if let Some(own) = former.and_then(|former| former.settings.keys.clone()) {
            self.kept.follow(own, now);
        }
        Ok(())
    }

    /// The keys in force. `None` until those that are kept have been read.
    pub fn keys(&self, now: Timestamp) -> Option<SigningKeys> {
        let keys = match (&self.settings.keys, self.kept.get()) {
            // Those that were made before the configuration had any.
            (Some(own), Some(made)) => Some(own.followed_by(&made)),
            (Some(own), None) => Some(own.clone()),
            (None, _) => self.kept.with_former(),
        };
        keys.map(|keys| keys.at(now))
    }

    /// Gives the keys to the entry of `issuers` that takes our tokens, if there is one.
    pub fn supply(&self, issuers: &Issuers) {
        // All are published, whichever signs.
        let Some(keys) = self.keys(Timestamp::default()) else { return };
        for issuer in issuers.iter().filter(|issuer| issuer.keys().settings().source == KeySource::Own) {
            issuer.keys().supply(keys.set());
        }
    }

    /// By what name revocations know tokens of ours: that of the entry of `issuers` which takes them.
    pub fn name<'a>(&'a self, issuers: &'a Issuers) -> &'a str {
        let own = issuers.iter().find(|issuer| issuer.keys().settings().source == KeySource::Own);
        own.map_or(&self.settings.issuer, |issuer| issuer.name())
    }

    /// The clusters in which a run is that was made by way of these upstreams, by the names of their issuers.
    pub fn clusters_of_run<'a>(&'a self, upstreams: &'a [&str]) -> impl Iterator<Item = &'a Arc<str>> {
        self.settings.clusters.of_run(upstreams)
    }

    /// Those in which the runs of an event are, of which one of these upstreams told.
    pub fn clusters_of_event<'a>(&'a self, upstreams: &'a [&str]) -> impl Iterator<Item = &'a Arc<str>> {
        self.settings.clusters.of_event(upstreams)
    }

    /// Whether tasks get tokens at all.
    pub fn has_clusters(&self) -> bool {
        self.settings.clusters.len() > 0
    }

    /// Whether tasks of several clusters get tokens.
    fn has_several_clusters(&self) -> bool {
        self.settings.clusters.len() > 1
    }

    fn keys_or_refuse(&self, now: Timestamp) -> Result<SigningKeys, Rejection> {
        self.keys(now).ok_or_else(|| {
            Rejection::new(Reason::StoreUnavailable, "the keys of tokens have not been read from the store yet")
                .fix("try again in a moment")
        })
    }
}

/// Answers a request to one of the endpoints.
pub async fn answer(
    app: &App,
    pools: &Pools,
    snapshot: &Snapshot,
    tokens: &Tokens,
    request: CleanRequest<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<Bytes>, Rejection> {
    let path = request.path().to_owned();
    exchange.record().endpoint = Some(match path.as_str() {
        metadata::TOKEN => "token",
        metadata::REVOKE => "revoke",
        metadata::INTROSPECT => "introspect",
        metadata::REGISTRY => "registry",
        _ => "metadata",
    });
    let reads = !matches!(path.as_str(), metadata::TOKEN | metadata::REVOKE | metadata::INTROSPECT);
    let (fits, allow) = match reads {
        true => ([Method::GET, Method::HEAD].contains(request.method()), "GET, HEAD"),
        false => (request.method() == Method::POST, "POST"),
    };
    if !fits {
        return Err(Rejection::method_not_allowed(allow, format!("this address takes {allow} only")));
    }
    match path.as_str() {
        metadata::REGISTRY => {
            return Ok(registry::answer(app, pools, snapshot, tokens, request.take_body().0, exchange).await);
        }
        metadata::KEYS => {
            return Ok(public(tokens.keys_or_refuse(app.clock.now())?.set().clone(), "application/jwk-set+json"));
        }
        metadata::OPENID | metadata::OAUTH => {
            let document = metadata::document(tokens.issuer(), &tokens.keys_or_refuse(app.clock.now())?).to_string();
            return Ok(public(document.into(), "application/json"));
        }
        _ => {}
    }
    if request.query().is_some() {
        return Ok(Refusal::malformed("parameters belong into the form, not into the address").answer());
    }
    let (request, body) = request.take_body();
    let body = buffered::read(body, BufferLimits::new(&snapshot.limits, MAX_BODY), &app.budget).await?;
    let done = match tokens.keys_or_refuse(app.clock.now()) {
        // In words that clients of OAuth read, as all that these endpoints refuse.
        Err(rejection) => Err(Refusal::from(rejection)),
        Ok(keys) => {
            let exchanger = Exchanger { app, pools, snapshot, tokens, keys: &keys };
            match path.as_str() {
                metadata::TOKEN => exchanger.exchange(&request, &body, exchange).await,
                metadata::INTROSPECT => exchanger.introspect(&request, &body, exchange).await,
                _ => exchanger.revoke(&request, &body, exchange).await,
            }
        }
    };
    Ok(done.unwrap_or_else(|refusal| {
        refused(&refusal, exchange);
        refusal.answer()
    }))
}

/// Notes that no token was given, and why.
fn refused(refusal: &Refusal, exchange: &mut Exchange) {
    let id = exchange.record().id;
    tracing::info!(request_id = %id, why = refusal.description(), "no token was given");
    exchange.record().refusal = Some(audit::Refusal { reason: refusal.reason(), detail: refusal.description().into() });
}

fn public(body: Bytes, media: &'static str) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
