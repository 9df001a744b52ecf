//! A cache of providers' tokens, and calls in flight. The cache holds facts only: whether somebody may have a token
//! depends on rules, revocations and the end of the run, which are checked each time.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use data_encoding::HEXLOWER;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Onward, Onwards,
    answer::{Expected, Failure, ProviderToken, token_in},
    protocol::Sent,
};
use crate::{
    clock::{Clock, Moment, Timestamp},
    issuers::{Breaker, ISSUED_BEFORE, Key, SingleFlight},
    lock::lock,
    sha256::sha256,
    store::Revocations,
    sts::keys::SigningKeys,
};

/// The maximum number of cached tokens, and their bytes.
const MAX_CACHED: usize = 4096;
const MAX_BYTES: usize = 16 << 20;

/// A token is used until this long before its end, or until a fifth of its life is left if that is more.
const SPARE: Duration = Duration::from_secs(60);

/// The maximum lifetime of an assertion.
const ASSERTION_LIFE: Duration = Duration::from_secs(300);

/// The cache. Cheap to clone; clones share it, across all generations.
#[derive(Clone, Debug)]
pub struct ProviderTokens(Arc<Inner>);

/// A breaker, and the fingerprint of the entry that it counts for.
#[derive(Debug)]
struct OfEntry {
    fingerprint: [u8; 32],
    breaker: Arc<Breaker>,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    control: Handle,
    revocations: Revocations,
    metrics: Metrics,
    flights: SingleFlight<Result<Arc<Gained>, Failure>>,
    /// By audience. A changed entry of `tokens.onward` gets a new breaker.
    breakers: Mutex<HashMap<Arc<str>, OfEntry>>,
    tokens: Mutex<Cached>,
}

/// One map would do, except that the end of a run must find its tokens at once. Both change together.
#[derive(Debug, Default)]
struct Cached {
    by_key: HashMap<Key, Arc<Gained>>,
    /// By the uid of a TaskRun or a pod.
    by_run: HashMap<Arc<str>, HashSet<Key>>,
    /// Tokens whose successor has been given, and that a provider can revoke with their run.
    superseded: Vec<Arc<Gained>>,
    bytes: usize,
}

/// A token that a provider gave.
#[derive(Debug)]
pub struct Gained {
    pub given: ProviderToken,
    /// The `jti` of the assertion that it was given for, by which the provider's log knows it.
    pub assertion: String,
    /// The SHA-256 of the token, in hexadecimal.
    pub digest: String,
    /// The end of the lifetime that the provider stated.
    pub(super) ends: Moment,
    use_until: Moment,
    asked: TokenRequest,
    /// Approximate, in bytes.
    size: usize,
}

/// Why a call gave no token that can be passed on, and the token that it gave all the same.
struct NoToken {
    failure: Failure,
    unfit: Option<Zeroizing<String>>,
}

impl From<Failure> for NoToken {
    fn from(failure: Failure) -> Self {
        Self { failure, unfit: None }
    }
}

/// A request to a provider, and for whom.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    pub onward: Arc<Onward>,
    /// The claims of the assertion, without `iat`, `exp` and `jti`.
    pub claims: Map<String, Value>,
    /// The subject of a client assertion, if one is needed.
    pub client: Arc<str>,
    /// As the provider calls them.
    pub scopes: Vec<String>,
    /// The name of an AWS session.
    pub session: String,
    /// The uids of the TaskRun and the pod with whose end it ends.
    pub lives_with: Box<[Arc<str>]>,
}

impl ProviderTokens {
    pub fn new(clock: Clock, control: Handle, revocations: Revocations, metrics: Metrics) -> Self {
        let (flights, breakers, tokens) = Default::default();
        Self(Arc::new(Inner { clock, control, revocations, metrics, flights, breakers, tokens }))
    }

    /// Returns the token that is cached for exactly this request, or a new one: however many ask at once, the provider
    /// is asked once. The assertion is signed by `keys`, has the id `jti` and ends at `ends` or sooner.
    pub async fn obtain(
        &self,
        wanted: TokenRequest,
        keys: &SigningKeys,
        jti: &str,
        ends: Timestamp,
    ) -> Result<Arc<Gained>, Failure> {
        let (inner, key) = (&self.0, wanted.key());
        let audience = Arc::clone(&wanted.onward.audience);
        let begin = || match inner.held(&key) {
            Some(gained) => Err(gained),
            None => {
                let (tokens, keys, jti) = (self.clone(), keys.clone(), jti.to_owned());
                Ok(async move { tokens.gain(key, wanted, &keys, jti, ends).await })
            }
        };
        match inner.flights.join(key, &inner.control, begin).await {
            Err(gained) => {
                inner.metrics.count(&audience, "held");
                Ok(gained)
            }
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(Failure::Away("the call was given up".to_owned())),
        }
    }

    /// Asks the provider. Runs on the control runtime, even if nobody waits for it any more.
    async fn gain(
        &self,
        key: Key,
        wanted: TokenRequest,
        keys: &SigningKeys,
        jti: String,
        ends: Timestamp,
    ) -> Result<Arc<Gained>, Failure> {
        let inner = &self.0;
        let audience = Arc::clone(&wanted.onward.audience);
        let now = inner.clock.moment();
        let breaker = inner.breaker(&wanted.onward);
        if let Err(left) = breaker.admit(now) {
            inner.metrics.count(&audience, "away");
            return Err(Failure::LeftAlone(left));
        }
        let outcome = wanted.call(keys, &jti, ends, &inner.clock).await.map_err(|NoToken { failure, unfit }| {
            if let Some(token) = unfit {
                self.revoke(wanted.clone(), token, None, Some(keys.clone()));
            }
            failure
        });
        match &outcome {
            Err(Failure::Away(_)) => breaker.failed(inner.clock.moment()),
            // It may be another form of the same trouble.
            Err(Failure::Refused { passes: true, .. }) => breaker.answered(),
            _ => breaker.succeeded(),
        }
        inner.metrics.count(
            &audience,
            match &outcome {
                Ok(_) => "given",
                Err(Failure::Refused { .. }) => "refused",
                Err(Failure::Away(_) | Failure::LeftAlone(_)) => "away",
                Err(Failure::Unfit(_)) => "unfit",
            },
        );
        let given = outcome.inspect_err(|failure| {
            tracing::warn!(audience = &*audience, %failure, "a provider gave no token that can be passed on");
        })?;
        let gained = Arc::new(Gained::new(jti, given, wanted, now));
        let forgotten = lock(&inner.tokens).insert(key, &gained, now);
        for old in forgotten {
            let audience = &old.asked.onward.audience;
            inner.metrics.count(audience, "not_revoked");
            tracing::warn!(
                audience = &**audience,
                token = old.digest,
                until = %old.expires(now),
                "there is no room for more tokens of providers, so the end of its run will not revoke this one; it expires by itself"
            );
        }
        // The run may have ended meanwhile, before anything was cached for it.
        for uid in &gained.asked.lives_with {
            if inner.revocations.workload(uid).is_some() {
                self.end(uid, None, Some(keys));
            }
        }
        Ok(gained)
    }

    /// Drops the tokens of a TaskRun or a pod that has ended, and revokes them at the providers. `onwards` are the
    /// current client settings there: a secret may have been replaced since. `keys` sign the assertion that
    /// authenticates the request.
    pub fn end(&self, uid: &str, onwards: Option<&Onwards>, keys: Option<&SigningKeys>) {
        let ended = lock(&self.0.tokens).take(uid);
        for gained in ended {
            let mut asked = gained.asked.clone();
            let by_now = onwards.and_then(|onwards| onwards.get(&asked.onward.audience));
            if let Some(onward) = by_now.filter(|onward| onward.ends_tokens_of(&asked.onward)) {
                asked.onward = Arc::clone(onward);
            }
            self.revoke(asked, gained.given.token.clone(), Some(gained.ends), keys.cloned());
        }
    }

    /// Revokes a token at the provider, if that can be done there, without waiting for it. `ends` is when it expires by
    /// itself.
    fn revoke(&self, asked: TokenRequest, token: Zeroizing<String>, ends: Option<Moment>, keys: Option<SigningKeys>) {
        if asked.onward.revocation_url.is_none() {
            return;
        }
        let inner = Arc::clone(&self.0);
        self.0.control.spawn(async move {
            let audience = &asked.onward.audience;
            let outcome = asked.revoke(&token, keys.as_ref(), &inner.clock).await;
            inner.metrics.count(audience, if outcome.is_ok() { "revoked" } else { "not_revoked" });
            let token = digest(&token);
            match outcome {
                Ok(()) => tracing::info!(audience = &**audience, token, "a provider has ended a token"),
                Err(why) => tracing::warn!(
                    audience = &**audience,
                    token,
                    why,
                    until = ends.map(|ends| display(wall(ends, inner.clock.moment()))),
                    "a provider did not end a token when asked; it expires by itself"
                ),
            }
        });
    }
}

impl Inner {
    fn breaker(&self, onward: &Onward) -> Arc<Breaker> {
        let mut breakers = lock(&self.breakers);
        let new =
            || OfEntry { fingerprint: onward.fingerprint, breaker: Arc::new(Breaker::new(onward.circuit_breaker)) };
        let known = breakers.entry(Arc::clone(&onward.audience)).or_insert_with(new);
        if known.fingerprint != onward.fingerprint {
            *known = new();
        }
        Arc::clone(&known.breaker)
    }

    fn held(&self, key: &Key) -> Option<Arc<Gained>> {
        let now = self.clock.moment();
        lock(&self.tokens).by_key.get(key).filter(|gained| now.is_before(gained.use_until)).cloned()
    }
}

impl Cached {
    /// Adds a token if there is room. Returns those that the end of their run would have revoked, and that had to make
    /// room.
    fn insert(&mut self, key: Key, gained: &Arc<Gained>, now: Moment) -> Vec<Arc<Gained>> {
        // A token that is forgotten is not revoked with its run.
        let past: Vec<Key> =
            self.by_key.iter().filter(|(_, gained)| now.is_surely_past(gained.ends)).map(|(key, _)| *key).collect();
        past.iter().for_each(|key| drop(self.remove(key)));
        self.drop_superseded(|old| now.is_surely_past(old.ends));
        // Its task may use it until its own end.
        if let Some(old) = self.remove(&key).filter(|old| old.is_revoked_with_run()) {
            self.bytes += old.size;
            self.superseded.push(old);
        }
        let mut forgotten = Vec::new();
        while self.by_key.len() + self.superseded.len() >= MAX_CACHED || self.bytes + gained.size > MAX_BYTES {
            // Tokens that no end of a run revokes go first: they can be requested again.
            if let Some(soonest) = self.soonest(now, |held| !held.is_revoked_with_run()) {
                self.remove(&soonest);
                continue;
            }
            // Otherwise anybody could displace tokens of runs, which nothing would revoke then.
            if !gained.is_revoked_with_run() {
                return forgotten;
            }
            let soonest = self.superseded.iter().map(|old| now.until(old.ends)).min();
            if let Some(soonest) = soonest {
                forgotten.extend(self.drop_superseded(|old| now.until(old.ends) == soonest));
                continue;
            }
            let Some(soonest) = self.soonest(now, |_| true) else { return forgotten };
            forgotten.extend(self.remove(&soonest));
        }
        self.bytes += gained.size;
        for uid in &gained.asked.lives_with {
            self.by_run.entry(Arc::clone(uid)).or_default().insert(key);
        }
        self.by_key.insert(key, Arc::clone(gained));
        forgotten
    }

    /// The key of the token that ends first, of those for which `of` holds.
    fn soonest(&self, now: Moment, of: impl Fn(&Gained) -> bool) -> Option<Key> {
        let held = self.by_key.iter().filter(|(_, held)| of(held));
        held.min_by_key(|(_, held)| now.until(held.ends)).map(|(key, _)| *key)
    }

    fn drop_superseded(&mut self, goes: impl Fn(&Gained) -> bool) -> Vec<Arc<Gained>> {
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.superseded).into_iter().partition(|old| goes(old));
        self.superseded = kept;
        self.bytes -= gone.iter().map(|old| old.size).sum::<usize>();
        gone
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<Gained>> {
        let gained = self.by_key.remove(key)?;
        self.bytes -= gained.size;
        for uid in &gained.asked.lives_with {
            if let Some(keys) = self.by_run.get_mut(uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_run.remove(uid);
                }
            }
        }
        Some(gained)
    }

    /// All tokens of a TaskRun or a pod.
    fn take(&mut self, uid: &str) -> Vec<Arc<Gained>> {
        let keys = self.by_run.get(uid).cloned().unwrap_or_default();
        let superseded = self.drop_superseded(|old| old.asked.lives_with.iter().any(|own| **own == *uid));
        keys.iter().filter_map(|key| self.remove(key)).chain(superseded).collect()
    }
}

impl Gained {
    fn new(assertion: String, given: ProviderToken, asked: TokenRequest, now: Moment) -> Self {
        let lasts = given.expires.since(now.wall());
        let ends = now + lasts;
        Self {
            assertion,
            digest: digest(&given.token),
            ends,
            use_until: ends - (lasts / 5).max(SPARE),
            size: given.size() + asked.size(),
            given,
            asked,
        }
    }

    fn is_revoked_with_run(&self) -> bool {
        !self.asked.lives_with.is_empty() && self.asked.onward.revocation_url.is_some()
    }

    /// When it expires by the current wall clock, which may have been set since the token was received.
    pub(super) fn expires(&self, now: Moment) -> Timestamp {
        wall(self.ends, now)
    }
}

/// The SHA-256 of a token, in hexadecimal.
fn digest(token: &str) -> String {
    HEXLOWER.encode(&sha256(&[token.as_bytes()]))
}

/// This moment by the current wall clock.
fn wall(moment: Moment, now: Moment) -> Timestamp {
    now.wall() + now.until(moment)
}

impl TokenRequest {
    /// Its approximate size in bytes. The caller determines the length of the claims and the scopes.
    fn size(&self) -> usize {
        let claims = serde_json::to_vec(&self.claims).map_or(0, |claims| claims.len());
        2048 + claims + self.scopes.iter().map(String::len).sum::<usize>()
    }

    /// Differs for every difference in the request.
    fn key(&self) -> Key {
        let claims = Value::Object(self.claims.clone()).to_string();
        let runs = self.lives_with.join("\n");
        let scopes = self.scopes.join(" ");
        // Each part is hashed on its own, which fixes its length, so that no two lists join to the same.
        let parts =
            [claims.as_bytes(), runs.as_bytes(), scopes.as_bytes(), self.client.as_bytes(), self.session.as_bytes()];
        let digests = parts.map(|part| sha256(&[part]));
        sha256(&[&self.onward.fingerprint, digests.as_flattened()])
    }

    /// Signs a new assertion, with this subject or that of the claims.
    fn sign(
        &self,
        keys: &SigningKeys,
        jti: &str,
        subject: Option<&str>,
        now: Timestamp,
        ends: Timestamp,
    ) -> Result<Zeroizing<String>, String> {
        let mut claims = self.claims.clone();
        claims.extend(subject.map(|subject| ("sub".to_owned(), subject.into())));
        claims.insert("jti".to_owned(), jti.into());
        let issued = now.as_secs() - ISSUED_BEFORE;
        claims.insert("iat".to_owned(), issued.into());
        // Some providers refuse an assertion whose stated lifetime is longer than five minutes.
        let ends = ends.min(Timestamp::from_secs(issued) + ASSERTION_LIFE);
        claims.insert("exp".to_owned(), ends.as_secs().into());
        let signed = keys.sign_assertion(self.onward.algorithm, &claims);
        signed.map(Zeroizing::new).ok_or_else(|| "the assertion cannot be signed".to_owned())
    }

    /// Revokes the token at the provider (RFC 7009).
    async fn revoke(&self, token: &str, keys: Option<&SigningKeys>, clock: &Clock) -> Result<(), String> {
        let (now, onward) = (clock.now(), &self.onward);
        let Some(url) = &onward.revocation_url else { return Ok(()) };
        let jti = Uuid::now_v7().to_string();
        let sign = |subject: Option<&str>| {
            let keys = keys.ok_or("there are no keys to sign an assertion with")?;
            self.sign(keys, &jti, subject, now, now + ASSERTION_LIFE)
        };
        let assertion = match (onward.protocol.is_client(), onward.protocol.wants_client_assertion()) {
            (true, _) => Some(sign(None)?),
            (_, true) => Some(sign(Some(&self.client))?),
            (false, false) => None,
        };
        let assertion = assertion.as_ref().map(|assertion| assertion.as_str());
        let request = onward.protocol.revocation(url, token, assertion, now)?;
        let answer = onward.egress.send(request, onward.bounds).await.map_err(|error| error.to_string())?;
        match answer.status().is_success() {
            true => Ok(()),
            false => Err(format!("it answers {}", answer.status().as_u16())),
        }
    }

    /// Asks the provider.
    async fn call(
        &self,
        keys: &SigningKeys,
        jti: &str,
        ends: Timestamp,
        clock: &Clock,
    ) -> Result<ProviderToken, NoToken> {
        let (now, onward) = (clock.now(), &self.onward);
        let assertion = self.sign(keys, jti, None, now, ends).map_err(Failure::Away)?;
        let client_assertion = match onward.protocol.wants_client_assertion() {
            true => {
                let jti = Uuid::now_v7().to_string();
                Some(self.sign(keys, &jti, Some(&self.client), now, ends).map_err(Failure::Away)?)
            }
            false => None,
        };
        let sent = Sent {
            assertion: &assertion,
            client_assertion: client_assertion.as_ref().map(|assertion| assertion.as_str()),
            scopes: &self.scopes,
            session: &self.session,
        };
        let request = onward.protocol.request(&sent, now).map_err(Failure::Away)?;
        let send = async |request| {
            let answer = onward.egress.send(request, onward.bounds).await;
            answer.map_err(|error| Failure::Away(error.to_string()))
        };
        let pool = [super::protocol::IAM_SCOPE.to_owned()];
        let asked = if onward.protocol.next.is_some() { &pool[..] } else { &self.scopes };
        let expected = Expected {
            reads: onward.protocol.kind.reads(),
            asked,
            default_scopes: &onward.default_scopes,
            max_lifetime: i64::try_from(onward.max_lifetime).unwrap_or(i64::MAX),
            now,
        };
        let answer = send(request).await?;
        match &onward.protocol.next {
            None => expected.read(&answer).map_err(|failure| NoToken { failure, unfit: token_in(&answer) }),
            // The lifetime of the pool's token does not matter: it is sent nowhere else.
            Some(next) => {
                let pool = Expected { max_lifetime: i64::MAX, ..expected }.read(&answer)?;
                let request = next.request(&pool.token, &self.scopes, onward.max_lifetime).map_err(Failure::Away)?;
                Ok(expected.service_account(&send(request).await?)?)
            }
        }
    }
}

/// Counts the results of asking providers. Labels come from the configuration.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    outcomes: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    audience: Arc<str>,
    outcome: &'static str,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("onward_tokens", "Tokens of other providers, by what came of asking", self.outcomes.clone());
    }

    fn count(&self, audience: &Arc<str>, outcome: &'static str) {
        self.outcomes.get_or_create(&Labels { audience: Arc::clone(audience), outcome }).inc();
    }
}

#[cfg(test)]
mod tests;
