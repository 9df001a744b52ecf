//! Who is trusted to say who somebody is: issuers, their keys, and the strict check of their tokens.
//!
//! A bearer token enters [`Issuers::authenticate`] with what its route accepts; a
//! [`Principal`] leaves, or a refusal. A token names its issuer itself, and only that issuer's
//! keys can then prove it: an unverified `iss` chooses, it convinces nobody.
//!
//! | file | holds |
//! |---|---|
//! | `jwt`, `strict_json` | the one reading of a compact JWS |
//! | `keys`, `weak_rsa`, `weak_ed25519` | a key set, parsed key by key |
//! | `key_cache`, `validators`, `kept_keys`, `discovery` | keeping it fresh, on disk, and where it is |
//! | `checks`, `claim_path` | what claims must satisfy |
//! | `signature` | the signature of a token, against them |
//! | `introspection`, `signed_answer`, `token_review`, `lookup` | asking the issuer, and remembering what it said |
//! | `breaker`, `single_flight` | not asking it too often |
//! | `client_auth`, `federated` | proving to it who asks |
//! | `logout_token` | what it says when it ends a session |
//! | `issuer` | one issuer: its checks, its keys, and how its tokens become principals |
//! | `token_error` | why a token was refused |
//! | `metrics` | what is counted of all this |
//! | `principal`, `username` | claims to a principal |
//! | `verified` | tokens that were verified before |
//! | `resolve`, `defaults` | all of it from the configuration, and what holds where that says nothing |
//! | `presets`, `tenants`, `resolve/login_only` | what is known of providers: of several tenants behind one address, and of one that has no tokens to verify |

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
    logout_token::LogoutToken,
    metrics::Metrics,
    principal::{Facts, RUN_CLAIM, acting, lives_with, login_facts, on_behalf_of},
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
    error::{Reason, Rejection},
    sessions,
    sha256::sha256,
};

/// What issuers run on.
#[derive(Clone, Debug)]
pub struct Context {
    pub clock: Clock,
    /// The control runtime: fetches and shared calls run there.
    pub control: Handle,
    /// The client for issuers without a `ca` of their own.
    pub egress: Egress,
    pub metrics: Metrics,
    /// Fetches that tokens with unknown keys may cause, of all issuers together.
    pub refetches: Arc<Bucket>,
}

/// Such fetches a second, and at once: many more than keys are rotated, and few for whoever sends tokens that name keys of
/// their own at each issuer.
const REFETCHES: (u32, u32) = (1, 10);

impl Context {
    /// The budget for such fetches of a whole process.
    pub fn refetches(clock: &Clock) -> Arc<Bucket> {
        Arc::new(Bucket::new(REFETCHES.0, REFETCHES.1, clock.moment()))
    }
}

/// What is said of a token that was revoked, or whose holder was.
pub const REVOKED: &str = "The token was revoked.";

/// What is said of a token for a run whose end nobody sees.
const UNSEEN: &str = "The token is worth nothing here, as `tokens.exchange` does not name the cluster of its run, or the namespace there.";

/// The refusal of a token that was revoked.
pub fn revoked() -> Rejection {
    Rejection::new(Reason::TokenRevoked, REVOKED).fix("Get a new token.")
}

/// Tells whether a credential was revoked. Asked on each request, cached token or not.
pub trait RevocationCheck: Send + Sync {
    fn is_revoked(&self, principal: &Principal) -> bool;
}

impl<F: Fn(&Principal) -> bool + Send + Sync> RevocationCheck for F {
    fn is_revoked(&self, principal: &Principal) -> bool {
        self(principal)
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

/// What one route accepts.
#[derive(Clone, Debug)]
pub struct Accepts {
    /// The issuers whose tokens it takes.
    issuers: Box<[Arc<Issuer>]>,
    /// The issuers whose sessions it takes, by name. `None`: all.
    logins: Option<Box<[Arc<str>]>>,
    audiences: Box<[Box<str>]>,
}

impl Issuers {
    /// Begins to fetch keys. To be called once the whole configuration is accepted, and before that nothing is asked of
    /// any issuer.
    pub fn start(&self) {
        for issuer in &self.list {
            issuer.keys.start(Arc::clone(&issuer.fetches), &self.context.control);
        }
    }

    /// [Starts](Self::start), and waits until there are keys of each issuer or the first try to have them is over, and not
    /// beyond `patience`.
    pub async fn start_and_wait(&self, patience: Duration) {
        self.start();
        let tried = async {
            for issuer in &self.list {
                issuer.keys.tried().await;
            }
        };
        // What is not there by then is told to each request that needs it.
        let _ = tokio::time::timeout(patience, tried).await;
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Issuer>> {
        self.list.iter()
    }

    /// The issuer with this name in the configuration.
    pub fn get(&self, name: &str) -> Option<&Arc<Issuer>> {
        self.by_name.get(name)
    }

    /// The one that somebody calls so: by its name here, or by its identifier.
    pub fn called(&self, asked: &str) -> Option<&Arc<Issuer>> {
        self.iter().find(|issuer| **issuer.name() == *asked || **issuer.identifier() == *asked)
    }

    /// Whether the key that signed the token of a caller has left the set of its issuer.
    pub fn have_lost_key_of(&self, known: &Principal) -> bool {
        self.get(&known.issuer).is_some_and(|issuer| issuer.has_lost_key_of(known))
    }

    /// Whether somebody here sees the end of the run that a token of Doorward's own is for: `tokens.exchange` names its cluster, with its
    /// namespace there. True of what is for no run.
    pub fn see_run_in(&self, claims: &Map<String, Value>) -> bool {
        let text = |name: &str| claims.get(RUN_CLAIM)?.get(name)?.as_str();
        // Older versions name no cluster.
        let Some(cluster) = text("cluster") else { return true };
        self.give_in(cluster, text("namespace").unwrap_or_default())
    }

    /// Whether tasks of a cluster get tokens of Doorward's own in a namespace. Nowhere else are their ends watched.
    pub fn give_in(&self, cluster: &str, namespace: &str) -> bool {
        self.clusters.iter().any(|of| of.issuer == cluster && of.gives_in(namespace))
    }

    /// Whether a caller has a token of Doorward's own for a run whose end nobody here sees.
    pub fn have_lost_run_of(&self, known: &Principal) -> bool {
        let is_own = |issuer: &Arc<Issuer>| issuer.keys.settings().source == KeySource::Own;
        // In this order, as the claims of a token that was seen are seldom in the processor's cache.
        self.get(&known.issuer).is_some_and(is_own) && !self.see_run_in(&known.claims)
    }

    /// What a route accepts that names these issuers; none named means all. Problems are reported at `at`.
    pub fn accepts(&self, names: &[String], at: &At, resolver: &mut Resolver) -> Accepts {
        // From others, people come with sessions alone.
        let signs = |issuer: &&Arc<Issuer>| issuer.signs();
        let issuers: Vec<Arc<Issuer>> = match names {
            [] => self.list.iter().filter(signs).cloned().collect(),
            // That each is there is checked with the configuration as a whole.
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

    /// The principal of a bearer token. A token that was seen is answered without waiting.
    ///
    /// 401 for what is wrong with the token, 403 for an identity that may not be used, 503 where the issuer cannot be
    /// asked. The precise [`TokenError`] is the source of the refusal.
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
                // Boxed, so that the look-up of a known token stays small.
                let verified = Arc::new(Box::pin(self.verify(token, key, accepts)).await?);
                self.verified.insert(key, Arc::clone(&verified));
                verified
            }
        };
        if revocations.is_revoked(&verified.principal) {
            return Err(revoked());
        }
        if self.have_lost_run_of(&verified.principal) {
            return Err(Rejection::new(Reason::TokenRevoked, UNSEEN).fix("Have it named, and get a new token."));
        }
        Ok(Arc::clone(&verified.principal))
    }

    async fn verify(&self, token: &str, key: Key, accepts: &Accepts) -> Result<Verified, Rejection> {
        if token.len() > jwt::MAX_TOKEN {
            return Err(TokenError::TooLong { came: token.len(), limit: jwt::MAX_TOKEN }.into());
        }
        // It opens what its person may do, and an issuer would be asked about it as about a token of its own.
        if sessions::is_handle(token) {
            return Err(Rejection::new(Reason::CredentialMalformed, "a session handle is not taken here").fix(
                "send a token of one of the issuers; the handle of `doorward login` is for routes that take sessions",
            ));
        }
        let now = self.context.clock.now();
        let verified = if jwt::is_jwt_shaped(token) {
            let parsed = Unverified::parse(token)?;
            let issuer = accepts.by_identifier(&parsed)?;
            issuer.authenticate_jwt(token, parsed, key, now).await?
        } else {
            let issuer = accepts.introspecting().ok_or(TokenError::OpaqueNotAccepted)?;
            issuer.authenticate_opaque(token, key, now).await?
        };
        accepts.check_audience(&verified)?;
        Ok(verified)
    }
}

impl Accepts {
    /// Narrows the audiences: a token must name one of these, beside one of its issuer's.
    #[must_use]
    pub fn with_audiences(self, audiences: &[String]) -> Self {
        Self { audiences: audiences.iter().map(|audience| audience.as_str().into()).collect(), ..self }
    }

    /// The issuers, in the order of the configuration.
    pub fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// Whether the session of somebody who logged in at this issuer is taken.
    pub fn takes_logins_at(&self, issuer: &str) -> bool {
        self.logins.as_ref().is_none_or(|logins| logins.iter().any(|name| **name == *issuer))
    }

    /// Whether the issuer of a caller is asked about the token that they came with.
    pub fn ask_about(&self, token: &str, principal: &Principal) -> bool {
        let of_caller = |issuer: &&Arc<Issuer>| *issuer.name() == principal.issuer;
        self.issuers.iter().filter(of_caller).any(|issuer| issuer.asks_about(token))
    }

    /// A caller whose bearer token was verified under an earlier generation, as it would be known now; `None` where the
    /// token would no longer be taken.
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

    /// The one issuer that sees opaque tokens.
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

/// The whole SHA-256 of a token: what it is remembered by, so that no cache holds the token itself.
fn token_key(token: &str) -> Key {
    sha256(&[token.as_bytes()])
}
