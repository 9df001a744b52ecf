//! Trusted issuers, their keys, and the verification of their tokens.
//!
//! [`Issuers::authenticate`] turns a bearer token into a [`Principal`] or a refusal, by what its route accepts. The
//! unverified `iss` of a token only selects the issuer; the keys of that issuer must then verify the token.
//!
//! | file | holds |
//! |---|---|
//! | `jwt`, `strict_json` | strict parsing of a compact JWS |
//! | `keys`, `weak_rsa`, `weak_ed25519` | key sets, parsed key by key, and the refusal of weak keys |
//! | `key_cache`, `validators`, `kept_keys`, `discovery` | the cache of key sets: refresh, copies on disk, discovery |
//! | `checks`, `claim_path` | the checks of claims |
//! | `signature` | the check of a token's signature |
//! | `introspection`, `signed_answer`, `token_review`, `lookup` | queries about a token at its issuer, and their cache |
//! | `breaker`, `single_flight` | limits on these queries |
//! | `client_auth`, `federated` | Doorward's own credentials at an issuer |
//! | `logout_token` | logout tokens, by which a provider ends sessions |
//! | `issuer` | one issuer: its checks, its keys, and the principals of its tokens |
//! | `token_error` | why a token was refused |
//! | `metrics` | metrics |
//! | `principal`, `kinds`, `username` | the principal of verified claims |
//! | `verified` | the cache of verified tokens |
//! | `resolve`, `defaults` | issuers from the configuration, and default values |
//! | `presets`, `tenants`, `resolve/login_only` | quirks of providers; several tenants behind one address; GitHub |
//! | `testing`, `fuzz` | for tests: keys, tokens and a scripted provider; fuzz bodies |

mod breaker;
mod checks;
mod claim_path;
mod client_auth;
mod defaults;
mod discovery;
mod federated;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod introspection;
mod issuer;
pub mod jwt;
mod kept_keys;
mod key_cache;
mod keys;
mod kinds;
mod logout_token;
mod lookup;
mod metrics;
pub mod presets;
mod principal;
mod resolve;
mod signature;
mod signed_answer;
mod single_flight;
mod strict_json;
mod tenants;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod token_error;
mod token_review;
mod username;
mod validators;
mod verified;
mod weak_ed25519;
mod weak_rsa;

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::runtime::Handle;

use self::verified::{Verified, VerifiedTokens};
pub use self::{
    breaker::{Breaker, Bucket, LONGEST_ISSUER_PAUSE},
    client_auth::{ASSERTION_TYPE, ClientAuth, ISSUED_BEFORE, Proof, form_request},
    defaults::{fill as fill_defaults, name_issuer, username_template},
    discovery::{MAX_METADATA, Metadata, location as discovery_location, secure_url},
    issuer::Issuer,
    jwt::Unverified,
    key_cache::KeySource,
    keys::{KEY_SET_TYPES, Keys, MAX_KEY_SET},
    kinds::Kinds,
    logout_token::LogoutToken,
    metrics::Metrics,
    principal::{EXCHANGED_CLAIM, Facts, RUN_CLAIM, acting, exchanged, lives_with, login_facts, on_behalf_of},
    single_flight::{Key, SingleFlight},
    strict_json::{JsonError, object as parse_strict_object},
    token_error::{Quoted, TokenError},
    token_review::{REVIEW_CLAIM, TokenReview},
    username::username,
};
use crate::{
    authn::Principal,
    clock::Clock,
    config::{raw, report::At, resolver::Resolver},
    egress::Egress,
    error::{PresentedIdentity, Reason, Rejection},
    sessions::{self, access_revoked},
    sha256::sha256,
};

/// The shared resources of issuers.
#[derive(Clone, Debug)]
pub struct Context {
    pub clock: Clock,
    /// The control runtime, on which fetches and shared calls run.
    pub control: Handle,
    /// The HTTP client for issuers without a `ca` of their own.
    pub egress: Egress,
    pub metrics: Metrics,
    /// The budget, shared by all issuers, for fetches that tokens with unknown keys cause.
    pub refetches: Arc<Bucket>,
}

/// Rate per second and burst of such fetches: far above the rate at which keys rotate, and low for an attacker who
/// sends tokens with made-up key names of each issuer.
const REFETCHES: (u32, u32) = (1, 10);

impl Context {
    /// The budget of a process for such fetches.
    pub fn refetches(clock: &Clock) -> Arc<Bucket> {
        Arc::new(Bucket::new(REFETCHES.0, REFETCHES.1, clock.moment()))
    }
}

/// The detail of the refusal of a token that was revoked. `doorward token` recognises it by this text.
pub const REVOKED: &str = "the token was revoked";

/// The detail of the refusal of a token for a run whose end is not watched.
const UNSEEN: &str = "the token is not accepted here, as `tokens.exchange` does not name the cluster of its run, or the \
                      namespace there";

/// The extent of the revocation by which a credential is no longer accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// This credential: another one of the same caller may be accepted.
    Credential,
    /// All access of the caller, or of somebody who acts for it or for whom it acts: a new credential would be refused
    /// too.
    Holder,
}

impl Revoked {
    /// The refusal of a token.
    pub fn refusal(self) -> Rejection {
        match self {
            Self::Credential => Rejection::new(Reason::TokenRevoked, REVOKED).fix("get a new token"),
            Self::Holder => access_revoked(),
        }
    }
}

/// The check whether a credential was revoked. It is made on each request, whether the token is cached or not.
pub trait RevocationCheck: Send + Sync {
    fn revoked(&self, principal: &Principal) -> Option<Revoked>;
}

impl<F: Fn(&Principal) -> bool + Send + Sync> RevocationCheck for F {
    fn revoked(&self, principal: &Principal) -> Option<Revoked> {
        self(principal).then_some(Revoked::Credential)
    }
}

/// The issuers of one generation of the configuration.
#[derive(Debug)]
pub struct Issuers {
    list: Vec<Arc<Issuer>>,
    by_name: HashMap<Arc<str>, Arc<Issuer>>,
    verified: VerifiedTokens,
    context: Context,
    /// The clusters whose tasks get tokens of Doorward's own.
    clusters: Vec<raw::Exchanged>,
}

/// The issuers and audiences that a route accepts.
#[derive(Clone, Debug)]
pub struct Accepts {
    /// The issuers whose tokens it accepts.
    issuers: Box<[Arc<Issuer>]>,
    /// The names of the issuers whose sessions it accepts. `None`: all.
    logins: Option<Box<[Arc<str>]>>,
    audiences: Box<[Box<str>]>,
}

impl Issuers {
    /// Starts to fetch keys. It is called when the whole configuration is accepted; no issuer is contacted before that.
    pub fn start(&self) {
        for issuer in &self.list {
            issuer.keys.start(Arc::clone(&issuer.fetches), &self.context.control);
        }
    }

    /// [Starts](Self::start), and waits until each issuer has keys or its first fetch is over, for at most `patience`.
    pub async fn start_and_wait(&self, patience: Duration) {
        self.start();
        let tried = async {
            for issuer in &self.list {
                issuer.keys.tried().await;
            }
        };
        // A request that needs keys that are still missing is refused with the reason.
        let _ = tokio::time::timeout(patience, tried).await;
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.list.iter()
    }

    /// The issuer with this name in the configuration.
    pub fn get(&self, name: &str) -> Option<&Arc<Issuer>> {
        self.by_name.get(name)
    }

    /// The issuer with this name in the configuration, or this identifier.
    pub fn called(&self, asked: &str) -> Option<&Arc<Issuer>> {
        self.iter().find(|issuer| **issuer.name() == *asked || **issuer.identifier() == *asked)
    }

    /// Whether the key that signed the token of a caller has left the set of its issuer.
    pub fn have_lost_key_of(&self, known: &Principal) -> bool {
        self.get(&known.issuer).is_some_and(|issuer| issuer.has_lost_key_of(known))
    }

    /// Whether the end of the run that one of Doorward's own tokens is for is watched: `tokens.exchange` names its
    /// cluster and namespace. True for a token that is for no run.
    pub fn see_run_in(&self, claims: &Map<String, Value>) -> bool {
        let Some(run) = claims.get(RUN_CLAIM) else { return true };
        let text = |name: &str| run.get(name).and_then(Value::as_str).unwrap_or_default();
        self.give_in(text("cluster"), text("namespace"))
    }

    /// Whether tasks in this cluster and namespace get Doorward's own tokens. The ends of runs are watched only there.
    pub fn give_in(&self, cluster: &str, namespace: &str) -> bool {
        self.clusters.iter().any(|of| of.issuer == cluster && of.gives_in(namespace))
    }

    /// Whether a caller has one of Doorward's own tokens for a run whose end is not watched.
    pub fn have_lost_run_of(&self, known: &Principal) -> bool {
        let is_own = |issuer: &Arc<Issuer>| issuer.keys.settings().source == KeySource::Own;
        // In this order, as the claims of a cached token are rarely in the processor's cache.
        self.get(&known.issuer).is_some_and(is_own) && !self.see_run_in(&known.claims)
    }

    /// What a route accepts that names these issuers; no names mean all. Problems are reported at `at`.
    pub fn accepts(&self, names: &[String], at: &At, resolver: &mut Resolver) -> Accepts {
        // The others sign no tokens; their people have only sessions.
        let signs = |issuer: &&Arc<Issuer>| issuer.signs();
        let issuers: Vec<Arc<Issuer>> = match names {
            [] => self.list.iter().filter(signs).cloned().collect(),
            // Names without an issuer are reported with the configuration as a whole.
            names => names.iter().filter_map(|name| self.get(name)).filter(signs).cloned().collect(),
        };
        let introspecting: Vec<&str> =
            issuers.iter().filter(|issuer| issuer.introspects()).map(|issuer| &**issuer.name()).collect();
        if introspecting.len() > 1 {
            let message = format!("opaque tokens would go to more than one issuer: {}", introspecting.join(", "));
            resolver.error(at, message).help("name the issuers of the route so that only one of them introspects");
        }
        let logins = (!names.is_empty()).then(|| names.iter().map(|name| name.as_str().into()).collect());
        Accepts { issuers: issuers.into(), logins, audiences: Box::default() }
    }

    /// Returns the principal of a bearer token. A cached token needs no waiting.
    ///
    /// Refuses with 401 for an invalid token, 403 for an identity that may not be used, and 503 if the issuer cannot be
    /// reached. The precise [`TokenError`] is the source of the refusal.
    pub async fn authenticate(
        &self,
        token: &str,
        accepts: &Accepts,
        revocations: &dyn RevocationCheck,
    ) -> Result<Arc<Principal>, Rejection> {
        let key = token_key(token);
        let verified = match self.verified.get(&key, accepts, self.context.clock.moment()) {
            Some(verified) => {
                self.context.metrics.cache_hits.inc();
                verified
            }
            None => {
                self.context.metrics.cache_misses.inc();
                // Boxed, so that the future of a cache hit stays small.
                let verified = Arc::new(Box::pin(self.verify(token, key, accepts)).await?);
                self.verified.insert(key, Arc::clone(&verified));
                verified
            }
        };
        // The audit trail must name the caller who still presents the token.
        let refused = |rejection: Rejection| rejection.with_presented(PresentedIdentity::of(&verified.principal));
        if let Some(revoked) = revocations.revoked(&verified.principal) {
            return Err(refused(revoked.refusal()));
        }
        if self.have_lost_run_of(&verified.principal) {
            let unseen = Rejection::new(Reason::TokenRevoked, UNSEEN)
                .fix("ask whoever runs Doorward to add it, and get a new token");
            return Err(refused(unseen));
        }
        Ok(Arc::clone(&verified.principal))
    }

    async fn verify(&self, token: &str, key: Key, accepts: &Accepts) -> Result<Verified, Rejection> {
        if token.len() > jwt::MAX_TOKEN {
            return Err(TokenError::TooLong { came: token.len(), limit: jwt::MAX_TOKEN }.into());
        }
        // Otherwise this credential would be sent to an issuer for introspection.
        if sessions::is_handle(token) {
            return Err(Rejection::new(Reason::CredentialMalformed, "a session handle is not accepted here").fix(
                "send a token of one of the issuers; the handle of `doorward login` is for routes that accept sessions",
            ));
        }
        let now = self.context.clock.now();
        let verified = if jwt::is_jwt_shaped(token) {
            let parsed = Unverified::parse(token)?;
            let issuer = accepts.by_identifier(&parsed)?;
            issuer.authenticate_jwt(token, parsed, key, now).await?
        } else {
            let issuer = accepts.introspecting().ok_or_else(|| match jwt::is_encrypted(token) {
                true => TokenError::EncryptedNotAccepted,
                false => TokenError::OpaqueNotAccepted,
            })?;
            issuer.authenticate_opaque(token, key, now).await?
        };
        accepts.check_audience(&verified)?;
        Ok(verified)
    }
}

impl Accepts {
    /// Narrows the audiences: a token must name one of these, in addition to one of its issuer's.
    #[must_use]
    pub fn with_audiences(self, audiences: &[String]) -> Self {
        Self { audiences: audiences.iter().map(|audience| audience.as_str().into()).collect(), ..self }
    }

    /// The issuers, in the order of the configuration.
    pub fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// Whether sessions of people who logged in at this issuer are accepted.
    pub fn takes_logins_at(&self, issuer: &str) -> bool {
        self.logins.as_ref().is_none_or(|logins| logins.iter().any(|name| **name == *issuer))
    }

    /// Whether the issuer of a caller must be queried about their token.
    pub fn ask_about(&self, token: &str, principal: &Principal) -> bool {
        let of_caller = |issuer: &&Arc<Issuer>| *issuer.name() == principal.issuer;
        self.issuers.iter().filter(of_caller).any(|issuer| issuer.asks_about(token))
    }

    /// The present principal of a caller whose bearer token was verified under an earlier generation; `None` if the
    /// token would no longer be accepted.
    pub fn judge_again(&self, known: &Principal) -> Option<Principal> {
        let issuer = self.issuers.iter().find(|issuer| *issuer.name() == known.issuer)?;
        let (principal, audiences) = issuer.judge_again(known).ok()?;
        self.accepts(issuer, &audiences).then_some(principal)
    }

    fn by_identifier(&self, token: &Unverified<'_>) -> Result<&Arc<Issuer>, TokenError> {
        let named = |issuer: &&Arc<Issuer>| token.issuer().is_some_and(|iss| issuer.is_named(iss));
        self.issuers.iter().find(named).ok_or_else(|| TokenError::IssuerUnknown {
            came: Quoted::json(token.claims.get("iss")),
            expected: self.issuers.iter().map(|issuer| issuer.identifier().to_string()).collect(),
        })
    }

    /// The only issuer that introspects opaque tokens.
    fn introspecting(&self) -> Option<&Arc<Issuer>> {
        let mut introspecting = self.issuers.iter().filter(|issuer| issuer.introspects());
        introspecting.next().filter(|_| introspecting.next().is_none())
    }

    fn check_audience(&self, verified: &Verified) -> Result<(), TokenError> {
        if self.audiences.is_empty() {
            return Ok(());
        }
        checks::check_audience(&verified.audiences, &self.audiences, verified.principal.claims.get("aud"))
    }

    fn accepts(&self, issuer: &Arc<Issuer>, audiences: &[Box<str>]) -> bool {
        self.issuers.iter().any(|accepted| Arc::ptr_eq(accepted, issuer))
            && (self.audiences.is_empty() || audiences.iter().any(|audience| self.audiences.contains(audience)))
    }
}

/// The full SHA-256 of a token: the key of caches, which so never hold the token itself.
fn token_key(token: &str) -> Key {
    sha256(&[token.as_bytes()])
}
