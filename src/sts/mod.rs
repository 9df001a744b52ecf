//! Doorward as a token issuer. A task of a run, a bot or a person exchanges their own token for one that is valid for
//! one audience, with the scopes that rules give, for minutes (RFC 8693). A task's token names who caused the run, and
//! is refused once the task is done.
//!
//! ```text
//! form -> subject token: its issuer's keys, TokenReview -> pod, TaskRun, PipelineRun -> who caused it -> rules -> signature
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `settings` | the settings of all this |
//! | `keys`, `configured`, `ring` | the signing keys, configured or generated, and their scheduled rotation |
//! | `key_metric` | which of them signs, as a metric |
//! | `metadata` | the published metadata and keys |
//! | `form`, `refusal` | the requests, and how they are refused |
//! | `exchange` | one exchange, from the form to the token |
//! | `cluster` | the clusters whose tasks get tokens, and the upstreams through which runs are made there |
//! | `party` | for whom a token is, and on whose behalf |
//! | `pod_token`, `task` | from a pod's token to the task in the pod |
//! | `siblings` | whether the other runs of the same PipelineRun were made by it |
//! | `look_up`, `objects` | where pods and runs are looked up, and what is read of them |
//! | `grant` | what rules give |
//! | `bearer` | the record of who has tokens, and revocation by the holder |
//! | `claims` | the claims of a token |
//! | `introspect` | introspection by resource servers |
//! | `registry` | tokens for container registries, in their own protocol |
//! | `onward` | tokens of other providers, for audiences that trust those |
//! | `ends` | the watches that end tokens with their run, and cache the runs that exist |

mod bearer;
mod claims;
mod cluster;
mod configured;
pub mod ends;
mod exchange;
mod form;
mod grant;
mod introspect;
mod key_metric;
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
mod settings;
mod siblings;
mod task;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header};

pub(crate) use self::refusal::printable;
pub use self::{
    bearer::{HolderRevocations, OVER},
    key_metric::KeyMetric,
    keys::SigningKeys,
    look_up::Lookups,
    objects::ENDS,
    ring::{KeyStorage, RingError, SigningKeyRing},
    settings::Settings,
};
use self::{
    exchange::Exchanger,
    form::MAX_BODY,
    metadata::{Endpoint, FormEndpoint},
    refusal::Refusal,
};
use crate::{
    app::App,
    audit,
    body::ClientBody,
    clock::Timestamp,
    config::raw,
    error::{Reason, Rejection},
    issuers::{Issuers, KeySource},
    request::{exchange::Exchange, respond::allow_preflight, sanitize::CleanRequest},
    snapshot::Snapshot,
    upstream::{
        Pools,
        buffered::{self, BufferLimits},
    },
};

/// The longest lifetime of a token.
const MAX_LIFETIME: Duration = Duration::from_secs(600);

/// The shortest time for which a key signs.
const MIN_ROTATE: Duration = Duration::from_secs(3600);

/// Doorward as an issuer, as configured by one generation.
#[derive(Debug)]
pub struct OwnIssuer {
    settings: Settings,
    kept: SigningKeyRing,
}

impl OwnIssuer {
    pub fn new(settings: Settings, kept: SigningKeyRing) -> Self {
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

    /// Makes keys before this takes effect in place of `former`, if Doorward makes them itself and did not before.
    pub async fn take_over(
        &self,
        former: Option<&Self>,
        vault: KeyStorage<'_>,
        now: Timestamp,
    ) -> Result<(), RingError> {
        let Some(period) = self.rotation() else { return Ok(()) };
        if former.is_some_and(|former| former.rotation().is_some()) {
            return Ok(());
        }
        match self.kept.renew(vault, period, now).await {
            Ok(_) => {}
            // No token was issued that would become unknown, and the key task keeps retrying, as at a start.
            Err(error) if former.is_none() => {
                tracing::error!(%error, "no token can be issued yet");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Keeps keys of the configuration published for a while that this one, which takes effect in place of `former`,
    /// lacks: a token that they signed is valid until its end. If both have keys, only the one that signs is kept. A key
    /// that no longer signed was removed on purpose.
    pub fn keep_published(&self, former: &Self, now: Timestamp) {
        let Some(keys) = former.settings.keys.clone().map(|keys| keys.at(now)) else { return };
        let Some(own) = &self.settings.keys else { return self.kept.follow(&keys, now) };
        if let Some(signer) = keys.signer_missing_from(own) {
            tracing::warn!(
                key = ?signer,
                "the key that signed tokens until now was removed from `tokens.keys`; it stays published for half an hour, until its \
                 tokens have ended; if it has leaked, restart Doorward, which refuses them at once; docs/workload-identity.md describes \
                 how keys are replaced"
            );
            self.kept.follow(&signer, now);
        }
    }

    /// The keys in force. `None` until the stored keys have been read.
    pub fn keys(&self, now: Timestamp) -> Option<SigningKeys> {
        let keys = match (&self.settings.keys, self.kept.get()) {
            // Keys that were made before the configuration had any.
            (Some(own), Some(made)) => own.followed_by(&made),
            (Some(own), None) => own.clone(),
            (None, made) => (*made?).clone(),
        };
        Some(self.kept.with_former(keys).at(now))
    }

    /// Gives the keys to the entry of `issuers` that accepts Doorward's own tokens, if there is one.
    pub fn supply(&self, issuers: &Issuers) {
        // All are published, whichever signs.
        if let Some(keys) = self.keys(Timestamp::default()) {
            supply(&keys, issuers);
        }
    }

    /// The name by which Doorward's own tokens are known here: that of the entry of `issuers` which accepts them.
    /// Revocations outlive it ([`crate::store::Revocations::know`]).
    pub fn name<'a>(&'a self, issuers: &'a Issuers) -> &'a str {
        let own = issuers.iter().find(|issuer| issuer.keys().settings().source == KeySource::Own);
        own.map_or(&self.settings.issuer, |issuer| issuer.name())
    }

    /// The clusters, by the names of their issuers, of a run that was made through these upstreams.
    pub fn clusters_of_run<'a>(&'a self, upstreams: &'a [&str]) -> impl Iterator<Item = &'a Arc<str>> {
        self.settings.clusters.of_run(upstreams)
    }

    /// The clusters of the runs of an event, which one of these upstreams reported.
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
}

/// Refuses a request for a token that is refused before any rule is evaluated, whoever asks: nobody can name such an
/// audience, or such a scope for it.
pub fn check_asked(audience: &str, scopes: &[String], root: &raw::Root) -> Result<(), Rejection> {
    let mut registries = root.tokens.iter().flat_map(|tokens| &tokens.registries);
    let is_registry = registries.any(|registry| registry.service == audience);
    let named = form::check_audience(audience)
        .and_then(|()| scopes.iter().try_for_each(|scope| form::check_scope(scope)))
        .and_then(|()| if is_registry { registry::check_scopes(scopes) } else { Ok(()) });
    named.map_err(|refusal| Rejection::new(refusal.reason(), refusal.description().to_owned()))
}

fn supply(keys: &SigningKeys, issuers: &Issuers) {
    for issuer in issuers.iter().filter(|issuer| issuer.keys().settings().source == KeySource::Own) {
        issuer.keys().supply(keys.set());
    }
}

/// Everything that is needed to issue tokens.
#[derive(Clone, Copy, Debug)]
pub struct Issuing<'a> {
    pub app: &'a App,
    pub pools: &'a Pools,
    pub snapshot: &'a Snapshot,
    pub own_issuer: &'a OwnIssuer,
}

impl Issuing<'_> {
    /// Answers a request to one of the endpoints.
    pub async fn answer(
        self,
        endpoint: Endpoint,
        request: CleanRequest<ClientBody>,
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Rejection> {
        exchange.record().endpoint = Some(endpoint.name());
        let methods = endpoint.methods();
        if !methods.contains(request.method()) {
            let allow = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let detail = format!("this address takes {allow} only");
            let rejection = Rejection::method_not_allowed(allow, detail);
            return match endpoint {
                Endpoint::Form(_) => Ok(refuse(&rejection.into(), exchange)),
                Endpoint::Registry | Endpoint::Keys | Endpoint::Metadata => Err(rejection),
            };
        }
        match endpoint {
            Endpoint::Keys | Endpoint::Metadata if request.method() == Method::OPTIONS => Ok(allow_preflight()),
            Endpoint::Registry => Ok(self.answer_registry(request.take_body().0, exchange).await),
            Endpoint::Keys => Ok(public(self.keys()?.set().clone(), "application/jwk-set+json")),
            Endpoint::Metadata => {
                let document = metadata::document(self.own_issuer.issuer(), &self.keys()?).to_string();
                Ok(public(document.into(), "application/json"))
            }
            Endpoint::Form(form) => {
                let done = self.answer_form(form, request, exchange).await;
                Ok(done.unwrap_or_else(|refusal| refuse(&refusal, exchange)))
            }
        }
    }

    /// Answers a request to one of the form endpoints.
    async fn answer_form(
        self,
        form: FormEndpoint,
        request: CleanRequest<ClientBody>,
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        if request.query().is_some() {
            return Err(Refusal::malformed("parameters belong in the form, not in the address"));
        }
        let share = request.meta().unproven();
        let (request, body) = request.take_body();
        let limits = BufferLimits::new(&self.snapshot.limits, MAX_BODY);
        let body = buffered::read(body, limits, &self.app.budget, share).await?;
        // No digest: a short secret in the form could be guessed from it.
        exchange.record().bytes_in = body.len() as u64;
        let keys = self.keys()?;
        let exchanger = Exchanger::new(self, &keys);
        match form {
            FormEndpoint::Token => exchanger.exchange(&request, &body, exchange).await,
            FormEndpoint::Revoke => exchanger.revoke(&request, &body, exchange).await,
            FormEndpoint::Introspect => exchanger.introspect(&request, &body, exchange).await,
        }
    }

    /// The keys in force now.
    fn keys(self) -> Result<SigningKeys, Rejection> {
        self.own_issuer.keys(self.app.clock.now()).ok_or_else(|| {
            Rejection::new(Reason::StoreUnavailable, "the keys of tokens have not been read from the store yet")
                .fix("try again in a moment")
        })
    }
}

/// Refuses in the form that OAuth clients expect.
fn refuse(refusal: &Refusal, exchange: &mut Exchange) -> Response<Bytes> {
    refused(refusal, exchange);
    refusal.answer()
}

/// Records a refusal and its reason.
fn refused(refusal: &Refusal, exchange: &mut Exchange) {
    let (id, why) = (exchange.record().id, refusal.logged());
    if refusal.status().is_server_error() {
        tracing::warn!(request_id = %id, why, "the issuer of tokens refused");
    } else {
        tracing::info!(request_id = %id, why, "the issuer of tokens refused");
    }
    let record = exchange.record();
    record.refusal = Some(audit::Refusal { reason: refusal.reason(), detail: refusal.description().into() });
    record.presented = refusal.presented().cloned().map(Box::new);
}

/// A response that everybody may read, including pages of other origins.
fn public(body: Bytes, media: &'static str) -> Response<Bytes> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}
