//! Sessions of people. A browser holds an opaque id in a `__Host-` cookie, or a program holds it as a bearer token; the
//! record behind it is sealed in the store.
//!
//! A record is cached in memory for at most a second after it was read, so that a page of forty requests costs one
//! read. Its expiry and revocation are still checked on every request.
//!
//! | file | holds |
//! |---|---|
//! | `settings` | `sessions` of the configuration |
//! | `session`, `record` | a session as a request sees it, and its stored record |
//! | `keyring` | the keys that seal stored data |
//! | `cookie`, `csrf`, `origin` | the session cookie, its CSRF checks, and the origin that it is bound to |
//! | `program` | sessions that a program holds |
//! | `tab` | logins side by side in the tabs of a browser, which begin one session |
//! | `refresh`, `userinfo` | rechecking at the provider that a person may still sign in, and claims from userinfo |
//! | `lease` | which replica rechecks a session |
//! | `index`, `people` | the sessions of a person, listed and ended |
//! | `seen` | where a session is used |
//! | `metrics` | session metrics |

pub mod cookie;
pub mod csrf;
mod index;
pub mod keyring;
mod lease;
mod metrics;
mod origin;
mod people;
mod program;
mod record;
mod refresh;
mod seen;
mod session;
mod settings;
mod tab;
#[cfg(test)]
pub(crate) mod tests;
pub mod userinfo;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method};
use moka::sync::Cache;
use serde_json::{Map, Value};
use tokio::{runtime::Handle, task::JoinHandle};

use self::{
    index::{Added, Entry, Index},
    record::{Holder, Record, SessionId, Uncollected, is_in_future},
};
pub use self::{
    keyring::KeyRing,
    metrics::{Ended, SessionMetrics},
    origin::Origin,
    people::{Listed, Which},
    program::{Collected, is_handle},
    record::{SessionHash, Tokens},
    refresh::Refreshes,
    seen::Seen,
    session::Session,
    settings::Settings,
    tab::Tab,
};
use crate::{
    audit::Trail,
    authn::{CredentialId, Presented, Principal},
    clock::{Clock, Moment, Timestamp},
    downstream::Drain,
    error::{PresentedIdentity, Reason, Rejection},
    issuers::{RevocationCheck as _, Revoked},
    oidc::{Identity, Provider, program::Devices},
    store::{Expect, Revocations, Store, StoreError, Table, Written},
};

/// How long a cached record is used without asking the store.
const FRESH: Duration = Duration::from_secs(1);

/// The number of cached records.
const CACHED: u64 = 10_000;

/// The sessions, as configured by one generation. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    settings: Settings,
    keys: KeyRing,
    providers: HashMap<Arc<str>, Arc<dyn Provider>>,
    shared: Shared,
    cache: Cache<SessionHash, Arc<Session>>,
}

/// State that outlives a generation.
#[derive(Clone)]
pub struct Shared {
    pub store: Store,
    pub revocations: Revocations,
    pub clock: Clock,
    /// The runtime for work that nobody waits for.
    pub control: Handle,
    /// Delays the end of the process.
    pub drain: Drain,
    pub metrics: SessionMetrics,
    pub refreshes: Refreshes,
    /// Programs that wait for a person to sign in.
    pub devices: Devices,
    /// Records the end of sessions.
    pub trail: Trail,
}

impl Shared {
    /// As [`Drain::finish_on`]: for work that a client asked for and that must not stay half done if the client
    /// disconnects or the process shuts down.
    pub(crate) fn finish<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.drain.finish_on(&self.control, work)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("revocations", &self.revocations).finish_non_exhaustive()
    }
}

/// The parts of a request that sessions need.
#[derive(Clone, Copy, Debug)]
pub struct CookieRequest<'a> {
    /// The origin at which it arrived.
    pub origin: &'a Origin,
    pub method: &'a Method,
    /// As received, including `Cookie`, `Origin` and `Sec-Fetch-*`.
    pub headers: &'a HeaderMap,
    /// Whether it asks for another protocol.
    pub upgrade: bool,
    /// The address of the client.
    pub address: IpAddr,
}

/// The result of a login.
#[derive(Debug)]
pub struct NewSession<'a> {
    pub origin: &'a Origin,
    pub provider: &'a dyn Provider,
    pub claims: Arc<Map<String, Value>>,
    /// Names of the claims that came from the userinfo endpoint.
    pub from_userinfo: BTreeSet<String>,
    /// Names of the claims that both userinfo and the ID token have.
    pub in_both: BTreeSet<String>,
    /// The scopes that were granted.
    pub scopes: Vec<Arc<str>>,
    pub tokens: Tokens,
    pub seen: Seen,
}

impl Sessions {
    pub fn new(settings: Settings, keys: KeyRing, providers: &[Arc<dyn Provider>], shared: Shared) -> Self {
        // The cache's TTL only evicts: `FRESH` is checked by the clock.
        let cache = Cache::builder().max_capacity(CACHED).time_to_live(FRESH * 2).build();
        let providers = providers.iter().map(|provider| (Arc::clone(provider.name()), Arc::clone(provider))).collect();
        Self(Arc::new(Inner { settings, keys, providers, shared, cache }))
    }

    /// The keys that seal sessions and logins.
    pub(crate) fn keys(&self) -> &KeyRing {
        &self.0.keys
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// The latest time at which the provider is asked about a session again.
    pub fn rechecked_by(&self, session: &Session) -> Timestamp {
        session.record.checked + self.0.settings.recheck
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.shared.clock.now()
    }

    pub(crate) fn moment(&self) -> Moment {
        self.0.shared.clock.moment()
    }

    /// Authenticates a request by its session cookie.
    ///
    /// A request that changes something or upgrades must come from Doorward's own pages ([`csrf::check`]), else it is
    /// refused with 403. Without the store it is refused with 503, and the cookie stays as it is.
    pub async fn authenticate(&self, request: CookieRequest<'_>) -> Presented<Arc<Session>> {
        let value = match cookie::find(request.headers, cookie::SESSION) {
            Ok(Some(value)) => value,
            Ok(None) => return Presented::Absent,
            Err(duplicate) => {
                return Presented::Invalid(
                    Rejection::new(Reason::CredentialAmbiguous, duplicate.to_string())
                        .fix("delete the cookies of this host and of its parent domains, then sign in again"),
                );
            }
        };
        if let Err(refusal) = csrf::check(request.method, request.headers, request.upgrade, request.origin) {
            return Presented::Invalid(refusal);
        }
        let Some(id) = SessionId::parse(value) else {
            return Presented::Invalid(
                Rejection::new(Reason::CredentialMalformed, "the session cookie is not one of ours").fix(SIGN_IN),
            );
        };
        match self.find_rechecked(id.hash(), Holder::Browser, request.origin, request.address).await {
            Ok(session) => Presented::Valid(session),
            Err(refusal) => Presented::Invalid(refusal),
        }
    }

    /// The session, rechecked at its provider first if its facts are stale.
    async fn find_rechecked(
        &self,
        hash: SessionHash,
        holder: Holder,
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Arc<Session>, Rejection> {
        let session = self.find(hash, holder, origin, Some(address)).await?;
        match self.recheck_if_due(session, self.now()).await? {
            Some(session) => Ok(session),
            None => self.find(hash, holder, origin, Some(address)).await,
        }
    }

    /// The session that this browser holds, if it is valid. Used by logins and logouts, where nothing is refused for
    /// the lack of one.
    pub async fn held_by(&self, headers: &HeaderMap, origin: &Origin) -> Result<Option<Arc<Session>>, Rejection> {
        let Some(id) = SessionId::of_browser(headers) else { return Ok(None) };
        if_good(self.find(id.hash(), Holder::Browser, origin, None).await)
    }

    /// As [`Sessions::held_by`], for pages that show the session or act for it: rechecked at its provider first if its
    /// facts are stale, as for any other request.
    pub async fn held_rechecked_by(
        &self,
        headers: &HeaderMap,
        origin: &Origin,
        address: IpAddr,
    ) -> Result<Option<Arc<Session>>, Rejection> {
        let Some(id) = SessionId::of_browser(headers) else { return Ok(None) };
        if_good(self.find_rechecked(id.hash(), Holder::Browser, origin, address).await)
    }

    /// Begins a session and returns it with the `Set-Cookie` line of its id. If a login in another tab, with the same
    /// facts, has just begun a session, returns that one without a line, which is in the response to the other login.
    pub async fn create(
        &self,
        new: NewSession<'_>,
        tab: Option<Tab<'_>>,
    ) -> Result<(Option<HeaderValue>, Arc<Session>), Rejection> {
        let (id, session) = self.create_for(new, None, tab).await?;
        let is_new = session.hash == id.hash();
        Ok((is_new.then(|| cookie::set(cookie::SESSION, &id.to_cookie(), None)), session))
    }

    /// Begins a session, or returns that of a login in another tab, which has another id than the returned one.
    async fn create_for(
        &self,
        new: NewSession<'_>,
        program: Option<(String, Uncollected)>,
        tab: Option<Tab<'_>>,
    ) -> Result<(SessionId, Arc<Session>), Rejection> {
        let (inner, shared) = (&*self.0, &self.0.shared);
        let id = SessionId::new();
        let hash = id.hash();
        let now = shared.clock.now();
        let subject = new.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let (machine, uncollected) = program.unzip();
        let record = Record {
            origin: new.origin.as_str().to_owned(),
            issuer: Arc::clone(new.provider.name()),
            issuer_url: new.provider.issuer().to_owned(),
            subject: subject.into(),
            claims: new.claims,
            from_userinfo: new.from_userinfo,
            in_both: new.in_both,
            scopes: new.scopes,
            tokens: new.tokens,
            machine,
            agent: new.seen.agent,
            address: new.seen.address,
            created: now,
            last_seen: now,
            checked: now,
            refused: None,
            uncollected,
            lease: None,
            ends: now + inner.settings.absolute,
        };
        let sealed = record.seal(&inner.keys, &hash).ok_or_else(unsealable)?;
        let mut session = self.session(new.provider, hash, record, 0, now)?;
        self.check_revoked(&session.principal)?;
        let index = self.index(&session.record);
        // Into the index first: a session that is in the store but not in the index could not be ended with others.
        let max = inner.settings.max_per_person;
        let has_ended = |hash: &SessionHash| self.has_ended(hash);
        let login = tab.and_then(|tab| Some((tab.digest(&session.record)?, tab.began)));
        let login = login.as_ref().map(|(digest, began)| (digest.as_str(), *began));
        let added = index.add((&hash, &session.record), login, max, has_ended, now).await.map_err(unavailable)?;
        let surplus = match added {
            Added::New(surplus) => surplus,
            Added::Existing(first) => {
                let session = self.session(new.provider, first, session.record, 0, now)?;
                return Ok((id, Arc::new(session)));
            }
        };
        let expires = session.record.expires(&inner.settings);
        let store = &shared.store;
        match store.put(Table::Sessions, hash.as_bytes(), sealed, expires, Expect::Absent, now).await {
            Ok(Written::Done(version)) => session.version = version,
            Ok(Written::Conflict(_)) => {
                return Err(Rejection::new(Reason::Internal, "a session id was drawn twice"));
            }
            Err(error) => {
                // A session that nobody holds must not count. If this fails too, it counts until it would end.
                drop(index.remove(&[hash], now).await);
                return Err(unavailable(error));
            }
        }
        let surplus = surplus.iter().filter_map(Entry::session).collect();
        let Record { issuer_url, subject, .. } = &session.record;
        if let Err(error) = self.end_all(issuer_url, subject, surplus, Ended::surplus).await {
            // Its id was never handed out.
            drop(store.delete(Table::Sessions, hash.as_bytes()).await);
            drop(index.remove(&[hash], now).await);
            return Err(unavailable(error));
        }
        shared.metrics.created();
        shared.metrics.seen(hash);
        Ok((id, Arc::new(session)))
    }

    fn index(&self, record: &Record) -> Index<'_> {
        Index::of(&*self.0.shared.store, &self.0.keys, &record.issuer_url, &record.subject)
    }

    async fn find(
        &self,
        hash: SessionHash,
        holder: Holder,
        origin: &Origin,
        address: Option<IpAddr>,
    ) -> Result<Arc<Session>, Rejection> {
        let session = self.look_up(hash, holder, origin, address).await?;
        self.check_revoked(&session.principal)?;
        Ok(session)
    }

    /// As [`Self::find`], revoked or not.
    async fn look_up(
        &self,
        hash: SessionHash,
        holder: Holder,
        origin: &Origin,
        address: Option<IpAddr>,
    ) -> Result<Arc<Session>, Rejection> {
        let now = self.now();
        let cached = self.0.cache.get(&hash).filter(|session| now.since(session.read) < FRESH && session.read <= now);
        match cached {
            Some(session) => {
                self.check_record(&session.record, (holder, origin), now)?;
                Ok(session)
            }
            None => self.load(hash, (holder, origin), address, now).await,
        }
    }

    /// Whether a session has ended, even if its record is still in the store.
    fn has_ended(&self, hash: &SessionHash) -> bool {
        self.0.shared.revocations.end_of(&hash.to_string()).is_some()
    }

    /// Refuses if the session, or all access of its person, was revoked.
    fn check_revoked(&self, principal: &Principal) -> Result<(), Rejection> {
        let revocations = &self.0.shared.revocations;
        revocations.check_read()?;
        let refusal = match revocations.revoked(principal) {
            None => return Ok(()),
            Some(Revoked::Credential) => Rejection::new(Reason::TokenRevoked, "the session was revoked").fix(SIGN_IN),
            Some(Revoked::Holder) => access_revoked(),
        };
        // The trail must name who tries it.
        Err(refusal.with_presented(PresentedIdentity::of(principal)))
    }

    /// Checks what the record alone shows, before the person is checked, so that the response does not reveal what a
    /// session is worth elsewhere.
    fn check_record(
        &self,
        record: &Record,
        (holder, origin): (Holder, &Origin),
        now: Timestamp,
    ) -> Result<(), Rejection> {
        if record.holder() != holder || record.uncollected.is_some() {
            return Err(expired("there is no such session, or it has ended"));
        }
        if record.origin != origin.as_str() {
            return Err(expired("this session belongs to another host"));
        }
        if record.expires(&self.0.settings) <= now {
            return Err(expired("the session has ended"));
        }
        Ok(())
    }

    async fn load(
        &self,
        hash: SessionHash,
        shown: (Holder, &Origin),
        address: Option<IpAddr>,
        now: Timestamp,
    ) -> Result<Arc<Session>, Rejection> {
        let inner = &*self.0;
        let stored = inner.shared.store.get(Table::Sessions, hash.as_bytes(), now).await.map_err(unavailable)?;
        let stored = stored.ok_or_else(|| expired("there is no such session, or it has ended"))?;
        let record = Record::open(&inner.keys, &hash, &stored.value).map_err(|error| {
            tracing::warn!(session = %hash, %error, "a session cannot be opened");
            expired("the session cannot be read any more")
        })?;
        self.check_record(&record, shown, now)?;
        let provider = self.provider_of(&record).ok_or_else(provider_gone)?;
        let mut session = self.session(&**provider, hash, record, stored.version, now)?;
        session.current_key = inner.keys.is_current(&stored.value);
        let session = Arc::new(session);
        inner.shared.metrics.seen(hash);
        inner.cache.insert(hash, Arc::clone(&session));
        self.touch(&session, address, now);
        Ok(session)
    }

    /// The provider of a session, if it is still configured. An entry that kept its name but changed its URL is another
    /// provider, which must never see what the former one gave.
    fn provider_of(&self, record: &Record) -> Option<&Arc<dyn Provider>> {
        self.0.providers.get(&record.issuer).filter(|provider| provider.issuer() == record.issuer_url)
    }

    fn session(
        &self,
        provider: &dyn Provider,
        hash: SessionHash,
        record: Record,
        version: u64,
        read: Timestamp,
    ) -> Result<Session, Rejection> {
        let end = record.ends.min(record.created + self.0.settings.absolute);
        let principal = provider.principal(Identity {
            claims: &record.claims,
            scopes: &record.scopes,
            credential: CredentialId::Session(hash.to_string().into()),
            expires: end,
        })?;
        if principal.subject != record.subject || principal.issuer != record.issuer {
            return Err(Rejection::new(Reason::Internal, "the session and its claims name different people"));
        }
        let idle_end = record.expires(&self.0.settings);
        let created = record.created;
        Ok(Session {
            principal: Arc::new(principal),
            created,
            idle_end,
            end,
            hash,
            record,
            version,
            read,
            current_key: true,
        })
    }

    /// Records in the background that a session is in use, and from where: at most once a minute, unless replicas whose
    /// clocks are further apart take turns.
    fn touch(&self, session: &Session, address: Option<IpAddr>, now: Timestamp) {
        let last_seen = session.record.last_seen;
        let recent = now.since(last_seen) < record::touch_every(&self.0.settings) && !is_in_future(last_seen, now);
        if recent && session.current_key {
            return;
        }
        let known = &session.record;
        let record = Record { last_seen: now, address: address.or(known.address), ..known.clone() };
        let (hash, version) = (session.hash, session.version);
        let sessions = self.clone();
        self.0.shared.control.spawn(async move {
            // If it is not written, another writer came first, or the session has ended.
            match sessions.write(hash, &record, version).await {
                Ok(_) => sessions.0.cache.invalidate(&hash),
                Err(error) => tracing::debug!(%error, "the use of a session was not noted"),
            }
        });
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}

const SIGN_IN: &str = "sign in again";

/// Treats a session that is not valid as none, unless the store could not tell.
fn if_good(found: Result<Arc<Session>, Rejection>) -> Result<Option<Arc<Session>>, Rejection> {
    match found {
        Ok(session) => Ok(Some(session)),
        Err(refusal) if refusal.reason() == Reason::StoreUnavailable => Err(refusal),
        Err(_) => Ok(None),
    }
}

fn expired(detail: &'static str) -> Rejection {
    Rejection::new(Reason::SessionExpired, detail).fix(SIGN_IN)
}

fn provider_gone() -> Rejection {
    expired("the provider of this session is not in use any more")
}

/// The detail of [`access_revoked`]. `doorward token` recognises it by this text.
pub const ACCESS_REVOKED: &str = "your access was revoked";

/// The rejection if all access of a caller is revoked, which another login or token does not change. The reason is for
/// operators and the audit trail, not for the caller.
pub fn access_revoked() -> Rejection {
    Rejection::new(Reason::TokenRevoked, ACCESS_REVOKED).fix("ask whoever runs Doorward")
}

fn unavailable(error: StoreError) -> Rejection {
    Rejection::new(Reason::StoreUnavailable, "sessions cannot be looked up at the moment")
        .fix("try again in a moment; you stay signed in")
        .because(error)
}

fn unsealable() -> Rejection {
    Rejection::new(Reason::Internal, "the session cannot be sealed")
}
