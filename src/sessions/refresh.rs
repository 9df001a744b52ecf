//! Rechecks of sessions. Before a session's facts are older than `sessions.recheck`, its provider is asked, with the
//! refresh token or, without one, the access token, whether the person may still sign in and which groups they have
//! now. If there is no token to ask with, the session ends then. If the provider does not respond, the session goes on.
//! If the provider responds with an error, but does not say that the person is gone, the session goes on for as long as
//! a directory behind the provider may be away.
//!
//! A rotating refresh token may be used once, and a second use revokes the grant (RFC 9700 section 4.14.2). So a
//! session has one refresh at a time in this process, whoever needs it, and among all replicas ([`super::lease`]).

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{sync::watch, time::Instant};

use super::{
    Ended, Session, Sessions,
    lease::{LEASE, Lease, Leased},
    record::{Record, SessionHash, is_in_future},
    userinfo,
};
use crate::{
    authn::Principal,
    clock::{Moment, Timestamp},
    error::{Reason, Rejection},
    lock::lock,
    oidc::{self, RefreshError, Refreshed},
    store::{Expect, StoreError, Table, Written},
};

/// How long a session is not rechecked after its provider did not respond.
const PAUSE: Duration = Duration::from_secs(30);

/// How long a request waits for another replica to end its refresh. Longer than a provider may take to respond: one that
/// takes longer was most likely killed, and nobody else can refresh before the end of its [`LEASE`].
const PATIENCE: Duration = Duration::from_secs(15);

/// When a request that was refused for that may come again.
const COME_AGAIN: Duration = Duration::from_secs(5);

/// How far our clock may be from that of the store, in seconds, for a session to end by it.
const MAX_AHEAD: f64 = 60.0;

/// The number of `sessions.recheck` periods for which a provider may respond without confirming a session: an hour by
/// default. Dex uses the same message for a person who is gone and for a directory that is away.
const REFUSALS: u32 = 12;

/// The minimum number of flights before finished ones are removed.
const SWEEP_FROM: usize = 1024;

/// The refreshes of this process.
#[derive(Clone, Debug, Default)]
pub struct Refreshes(Arc<Mutex<Flights>>);

#[derive(Debug, Default)]
struct Flights {
    of: HashMap<SessionHash, Flight>,
    /// The number of entries at which finished ones are removed next.
    sweep_at: usize,
    /// When a userinfo endpoint last named a claim that the session in question had. Another person who lost that claim
    /// may be asked about for the first time, and would otherwise keep it.
    in_both: HashMap<Grant, HashMap<String, Timestamp>>,
}

/// An issuer, and the scopes that it granted: userinfo returns other claims for an access token with other scopes.
type Grant = (Arc<str>, BTreeSet<Arc<str>>);

impl Flights {
    /// Records the claims that userinfo of the record's issuer returned for an access token with `scopes`. Returns the
    /// claims that it has named for such tokens since the session began, of any person. Earlier ones do not count: a
    /// provider may be changed to name a claim in the ID token only.
    fn in_both_since(
        &mut self,
        record: &Record,
        scopes: &[Arc<str>],
        userinfo: &Map<String, Value>,
        now: Timestamp,
    ) -> BTreeSet<String> {
        let grant = (Arc::clone(&record.issuer), scopes.iter().cloned().collect());
        let in_both = self.in_both.entry(grant).or_default();
        in_both.extend(userinfo::known(&record.claims, userinfo).map(|name| (name.clone(), now)));
        in_both.iter().filter(|(_, at)| **at >= record.created).map(|(name, _)| name.clone()).collect()
    }

    fn begin(&mut self, session: SessionHash, over: watch::Receiver<Wait>, now: Moment) {
        if self.of.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.of.retain(|_, flight| match flight {
                Flight::Running(over) => over.has_changed().is_ok(),
                Flight::Paused(until) | Flight::Unsure(until) => now.is_before(*until),
            });
            self.sweep_at = self.of.len() * 2;
        }
        self.of.insert(session, Flight::Running(over));
    }
}

/// Since when a refresh waits for that of another replica; `None` if it does not.
pub(super) type Wait = Option<Instant>;

#[derive(Debug)]
enum Flight {
    /// Closed when it is over.
    Running(watch::Receiver<Wait>),
    Paused(Moment),
    /// As [`Flight::Paused`], after [`Done::Unsure`].
    Unsure(Moment),
}

/// The result of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The record is up to date with the provider, or the session is gone.
    Settled,
    /// The provider or the store did not respond.
    Later,
    /// The provider did not confirm the person, or could not be asked, but our clock is too far from that of the others
    /// to end the session.
    Unsure,
}

impl Sessions {
    /// The session as it may be used at `now`. If its facts are nearly stale, a refresh runs beside the request; if
    /// they are stale, the request waits for it. A provider that does not respond ends no session. `None` if the session
    /// must be looked up again.
    pub(super) async fn recheck_if_due(
        &self,
        session: Arc<Session>,
        now: Timestamp,
    ) -> Result<Option<Arc<Session>>, Rejection> {
        if !self.is_due(&session, now) {
            return Ok(Some(session));
        }
        let over = self.refresh(&session);
        if self.age(&session.record, now) < self.0.settings.recheck {
            return Ok(Some(session));
        }
        let was_asked = over.is_some();
        if let Some(over) = over
            && !is_over(over).await
        {
            return Err(held_elsewhere());
        }
        if self.is_unsure(&session) {
            return Err(clocks_differ());
        }
        Ok((!was_asked).then_some(session))
    }

    /// The current principal of the session with this name, for the streams that it opened. It is refreshed when that
    /// is due, and does not count as used. `None` if it has ended.
    pub async fn current(&self, name: &str) -> Result<Option<Arc<Principal>>, StoreError> {
        let Some(hash) = SessionHash::parse(name) else { return Ok(None) };
        let Some((record, version)) = self.read(hash).await? else { return Ok(None) };
        let Some(provider) = self.provider_of(&record) else { return Ok(None) };
        let now = self.now();
        let Ok(session) = self.session(&**provider, hash, record, version, now) else { return Ok(None) };
        if session.idle_end <= now {
            return Ok(None);
        }
        if self.is_due(&session, now) {
            self.refresh(&session);
            // As requests are refused. At other replicas it may go on.
            if self.age(&session.record, now) >= self.0.settings.recheck && self.is_unsure(&session) {
                return Ok(None);
            }
        }
        Ok(Some(session.principal))
    }

    /// Whether a recheck is due: early enough that nobody waits for it, unless nothing can be asked; then the session
    /// lasts its full time.
    pub(super) fn is_due(&self, session: &Session, now: Timestamp) -> bool {
        let (record, recheck) = (&session.record, self.0.settings.recheck);
        let age = self.age(record, now);
        age >= recheck || (age >= recheck / 4 * 3 && self.can_ask(record))
    }

    /// The age of a session's facts at `now`. Facts dated in the future count as stale. But where nothing can be asked,
    /// that would end the session, which a clock that is slightly behind must not do: then only facts dated more than
    /// `recheck` ahead are stale, and the session lasts for twice `recheck` at most.
    fn age(&self, record: &Record, now: Timestamp) -> Duration {
        let is_of_any_age = is_in_future(record.checked, now)
            && (record.checked > now + self.0.settings.recheck || self.can_ask(record));
        if is_of_any_age { Duration::MAX } else { now.since(record.checked) }
    }

    fn can_ask(&self, record: &Record) -> bool {
        self.provider_of(record).is_some_and(|provider| oidc::can_ask(&**provider, &record.tokens))
    }

    /// Begins a refresh, or joins the one in progress; `None` during the pause after a failure.
    fn refresh(&self, session: &Session) -> Option<watch::Receiver<Wait>> {
        let shared = &self.0.shared;
        let now = self.moment();
        let mut flights = lock(&shared.refreshes.0);
        match flights.of.get(&session.hash) {
            Some(Flight::Running(over)) if over.has_changed().is_ok() => return Some(over.clone()),
            Some(Flight::Paused(until) | Flight::Unsure(until)) if now.is_before(*until) => return None,
            _ => {}
        }
        let (running, over) = watch::channel(None);
        flights.begin(session.hash, over.clone(), now);
        drop(flights);
        let (sessions, hash, seen) = (self.clone(), session.hash, session.record.checked);
        shared.control.spawn(async move {
            let done = sessions.recheck(hash, seen, &running).await.unwrap_or_else(|error| {
                tracing::warn!(session = %hash, %error, "a session could not be refreshed");
                Done::Later
            });
            sessions.0.cache.invalidate(&hash);
            let shared = &sessions.0.shared;
            let mut flights = lock(&shared.refreshes.0);
            match done {
                Done::Settled => drop(flights.of.remove(&hash)),
                Done::Later => drop(flights.of.insert(hash, Flight::Paused(shared.clock.moment() + PAUSE))),
                Done::Unsure => drop(flights.of.insert(hash, Flight::Unsure(shared.clock.moment() + PAUSE))),
            }
            drop(flights);
            // Last, so that waiters find the result.
            drop(running);
        });
        Some(over)
    }

    /// Whether the last refresh here left it to other replicas whether the session goes on.
    fn is_unsure(&self, session: &Session) -> bool {
        let now = self.moment();
        let flights = lock(&self.0.shared.refreshes.0);
        matches!(flights.of.get(&session.hash), Some(Flight::Unsure(until)) if now.is_before(*until))
    }

    /// Whether our clock is far from that of the store, or that is unknown.
    async fn is_clock_off(&self) -> bool {
        let shared = &self.0.shared;
        shared.store.seconds_ahead(&shared.clock).await.map_or(true, |ahead| ahead.abs() > MAX_AHEAD)
    }

    /// Refreshes unless somebody has done so since `seen`.
    async fn recheck(
        &self,
        hash: SessionHash,
        seen: Timestamp,
        waits: &watch::Sender<Wait>,
    ) -> Result<Done, StoreError> {
        let Leased { record, lease, unfinished: _unfinished } = match self.acquire(hash, seen, waits).await? {
            ControlFlow::Continue(leased) => leased,
            ControlFlow::Break(done) => return Ok(done),
        };
        let inner = &*self.0;
        let give_up = self.moment() + LEASE;
        let Some(provider) = self.provider_of(&record).map(Arc::clone) else { return Ok(Done::Later) };
        let now = self.now();
        let refreshed = oidc::refresh(&*provider, &record.tokens, &record.claims, now)
            .await
            .unwrap_or_else(|error| Refreshed { unvouched: Some(error), ..Refreshed::default() });
        // If nothing can be asked, our clock alone says that the time of the session is over. What the provider refuses
        // or says may not fit because of our clock, which also says for how long it has done so.
        let is_by_clock = match &refreshed.unvouched {
            Some(RefreshError::Gone(_)) => !oidc::can_ask(&*provider, &record.tokens),
            _ => refreshed.refusal().is_some(),
        };
        let is_unsure = is_by_clock && self.is_clock_off().await;
        match &refreshed.unvouched {
            Some(unvouched) if is_unsure => {
                tracing::warn!(
                    session = %hash, issuer = %record.issuer, why = %unvouched,
                    "a session was not confirmed, but the clock here differs from that of the store by more than a minute: its requests get 503 here, and other replicas decide whether it ends; synchronize the clocks"
                );
            }
            Some(RefreshError::Gone(why)) => return self.end_refused(hash, &record, &lease, why).await,
            Some(RefreshError::Later(why)) => {
                tracing::warn!(session = %hash, issuer = %record.issuer, %why, "could not recheck a session at its provider; will retry");
            }
            Some(RefreshError::Refused(_)) | None => {}
        }
        if let Some(why) = refreshed.refusal().filter(|_| !is_unsure) {
            let end = since_refused(&record, now) + inner.settings.recheck * REFUSALS;
            if end <= now {
                return self.end_refused(hash, &record, &lease, why).await;
            }
            tracing::warn!(
                session = %hash, issuer = %record.issuer, %why, %end,
                "the provider refused the recheck of a session, or its answer lacks the person's claims; the session will end at `end` unless a recheck succeeds before"
            );
        }
        let scopes = refreshed.scopes.as_deref().unwrap_or(&record.scopes);
        let in_both = refreshed
            .userinfo
            .as_ref()
            .map(|userinfo| lock(&inner.shared.refreshes.0).in_both_since(&record, scopes, userinfo, now))
            .unwrap_or_default();
        let asks_userinfo = provider.client().asks_userinfo;
        let apply = |record: &mut Record| {
            let before = (record.checked, record.refused);
            refreshed.clone().apply(record, &in_both, now, asks_userinfo);
            if is_unsure {
                (record.checked, record.refused) = before;
            }
        };
        let is_there = self.settle(hash, &lease, give_up, apply).await?;
        if !is_there && refreshed.refresh.is_some() {
            tracing::warn!(
                session = %hash, issuer = %record.issuer,
                "a session ended while it was refreshed: its new refresh token stays valid at the provider"
            );
        }
        Ok(match &refreshed.unvouched {
            _ if is_unsure => Done::Unsure,
            None => Done::Settled,
            Some(_) => Done::Later,
        })
    }

    /// Ends a session that its provider no longer confirms.
    async fn end_refused(
        &self,
        hash: SessionHash,
        record: &Record,
        lease: &Lease,
        why: &str,
    ) -> Result<Done, StoreError> {
        // The current holder of the lease may have used the refresh token, and knows more.
        let Some((current, _)) = self.read(hash).await? else { return Ok(Done::Settled) };
        if current.lease.as_ref() != Some(lease) {
            tracing::warn!(session = %hash, %why, "a refresh took longer than its lease and failed");
            return Ok(Done::Settled);
        }
        tracing::info!(session = %hash, issuer = %record.issuer, %why, "the provider ended a session");
        self.end_all(&record.issuer_url, &record.subject, vec![(hash, record.ends)], Ended::provider).await?;
        Ok(Done::Settled)
    }

    /// The stored record; `None` if it is gone or cannot be read.
    pub(super) async fn read(&self, hash: SessionHash) -> Result<Option<(Record, u64)>, StoreError> {
        let shared = &self.0.shared;
        let stored = shared.store.get(Table::Sessions, hash.as_bytes(), shared.clock.now()).await?;
        Ok(stored.and_then(|stored| Some((Record::open(&self.0.keys, &hash, &stored.value).ok()?, stored.version))))
    }

    /// Writes the record. Returns `false` if somebody else has written since `version`.
    pub(super) async fn write(&self, hash: SessionHash, record: &Record, version: u64) -> Result<bool, StoreError> {
        let inner = &*self.0;
        let now = inner.shared.clock.now();
        // It moves to the first key, and so must its entry, which would be lost with the other keys. First, as nobody would
        // notice later that the entry is missing.
        if inner.keys.ids().nth(1).is_some() {
            self.index(record).keep(&hash, record, now).await?;
        }
        let sealed = record
            .seal(&inner.keys, &hash)
            .ok_or_else(|| StoreError::Corrupt("the session cannot be sealed".to_owned()))?;
        let (expires, expect) = (record.expires(&inner.settings), Expect::Version(version));
        let written = inner.shared.store.put(Table::Sessions, hash.as_bytes(), sealed, expires, expect, now);
        Ok(matches!(written.await?, Written::Done(_)))
    }
}

/// Waits for the end of a refresh. Returns `false` if it waits for that of another replica for too long.
async fn is_over(mut over: watch::Receiver<Wait>) -> bool {
    loop {
        let waits = *over.borrow_and_update();
        let changed = match waits {
            Some(since) => match tokio::time::timeout_at(since + PATIENCE, over.changed()).await {
                Ok(changed) => changed,
                Err(_) => return false,
            },
            None => over.changed().await,
        };
        // An error is the end that is waited for.
        if changed.is_err() {
            return true;
        }
    }
}

fn held_elsewhere() -> Rejection {
    Rejection::new(Reason::StoreUnavailable, "another replica is rechecking the session, and has not ended")
        .fix("try again in a moment; you stay signed in")
        .with_retry_after(COME_AGAIN)
}

fn clocks_differ() -> Rejection {
    Rejection::new(
        Reason::StoreUnavailable,
        "the session cannot be rechecked here, as the clock of this replica is wrong",
    )
    .fix("try again in a moment; you stay signed in")
    .with_retry_after(COME_AGAIN)
}

/// Since when the provider has not confirmed a session that it does not confirm at `now`.
fn since_refused(record: &Record, now: Timestamp) -> Timestamp {
    // If that is in the future, the clock was set back, and the session's remaining time starts again.
    record.refused.map_or(now, |since| since.min(now))
}

/// Claims of the login that a refresh need not repeat (OpenID Connect Core 1.0 section 12.2).
const KEPT: [&str; 2] = ["sid", "nonce"];

/// When and how the person authenticated for this session. A refresh does not change them: Keycloak returns those of
/// the person's last login at any of its applications, which would make a session, possibly a stolen one, look younger
/// and stronger than it is.
pub(super) const OF_LOGIN: [&str; 3] = ["auth_time", "acr", "amr"];

impl Refreshed {
    /// Why the session ends if this continues: the provider responds without confirming the person, or without any of
    /// their claims.
    fn refusal(&self) -> Option<&str> {
        match (&self.unvouched, &self.lacks) {
            (Some(RefreshError::Refused(why)), _) | (None, Some(why)) => Some(why),
            (Some(RefreshError::Gone(_) | RefreshError::Later(_)), _) | (None, None) => None,
        }
    }

    /// Applies the refresh to a record. `in_both` are claims that userinfo of this provider has named for others with
    /// the same scopes.
    fn apply(self, record: &mut Record, in_both: &BTreeSet<String>, now: Timestamp, asks_userinfo: bool) {
        let is_refused = self.refusal().is_some();
        if let Some(access) = self.access {
            record.tokens.access = access;
        }
        if let Some(refresh) = self.refresh {
            record.tokens.refresh = Some(refresh);
        }
        if let Some(token) = self.id {
            record.tokens.id = Some(token);
        }
        let is_anew = self.claims.is_some();
        if let Some(mut claims) = self.claims {
            for name in KEPT {
                if let (false, Some(value)) = (claims.contains_key(name), record.claims.get(name)) {
                    claims.insert(name.to_owned(), value.clone());
                }
            }
            for name in OF_LOGIN {
                match record.claims.get(name) {
                    Some(value) => drop(claims.insert(name.to_owned(), value.clone())),
                    None => drop(claims.remove(name)),
                }
            }
            let before = std::mem::replace(&mut record.claims, Arc::new(claims));
            let names = std::mem::take(&mut record.from_userinfo);
            if asks_userinfo && self.userinfo.is_none() {
                let userinfo = before.iter().filter(|(name, _)| names.contains(*name));
                let userinfo = userinfo.map(|(name, value)| (name.clone(), value.clone())).collect();
                userinfo::complete(Arc::make_mut(&mut record.claims), &mut record.from_userinfo, &userinfo);
            }
        }
        if let Some(userinfo) = self.userinfo {
            let claims = Arc::make_mut(&mut record.claims);
            if is_anew {
                record.in_both.extend(userinfo::known(claims, &userinfo).cloned());
            } else {
                let in_both: BTreeSet<String> = record.in_both.union(in_both).cloned().collect();
                userinfo::follow(claims, &mut record.from_userinfo, &in_both, &userinfo);
            }
            if asks_userinfo {
                userinfo::complete(claims, &mut record.from_userinfo, &userinfo);
            }
        }
        if let Some(scopes) = self.scopes {
            record.scopes = scopes;
        }
        if is_refused {
            record.refused = Some(since_refused(record, now));
        } else if self.unvouched.is_none() {
            record.refused = None;
        }
        if self.unvouched.is_none() {
            record.checked = now;
        }
        record.lease = None;
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};

    use super::*;
    use crate::clock::Clock;

    /// Regression: after a replica was killed during a refresh, requests waited for up to 45 s.
    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_another_replica_for_longer_than_a_provider_takes() {
        let (running, over) = watch::channel(None);
        let ours = tokio::spawn(is_over(over.clone()));
        tokio::time::sleep(PATIENCE * 2).await;
        assert!(!ours.is_finished(), "this replica asks the provider");
        let since = Instant::now();
        running.send_replace(Some(since));
        let ends = PATIENCE..PATIENCE + Duration::from_secs(1);
        for request in ["the first", "the next, which waits no longer"] {
            assert!(!is_over(over.clone()).await, "{request}");
            assert!(ends.contains(&since.elapsed()), "{request}: {:?}", since.elapsed());
        }
        assert!(!ours.await.unwrap());
        // The lease has ended, and this replica asks.
        running.send_replace(None);
        let ours = tokio::spawn(is_over(over));
        tokio::time::sleep(PATIENCE * 2).await;
        assert!(!ours.is_finished());
        drop(running);
        assert!(ours.await.unwrap());
    }

    #[test]
    fn finished_flights_are_removed_when_their_number_has_doubled() {
        let session = |number: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            SessionHash::parse(&BASE64_URL_SAFE_NO_PAD.encode(hash)).unwrap()
        };
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let mut flights = Flights::default();
        let begin = |flights: &mut Flights, number: usize| {
            let (running, over) = watch::channel(None);
            flights.begin(session(number), over, now);
            running
        };
        let running: Vec<_> = (0..10).map(|number| begin(&mut flights, number)).collect();
        for number in 10..SWEEP_FROM {
            drop(begin(&mut flights, number));
            assert_eq!(flights.of.len(), number + 1, "nobody walked through the others");
        }
        let (over, paused) = (session(usize::MAX), session(usize::MAX - 1));
        flights.of.insert(over, Flight::Paused(now));
        flights.of.insert(paused, Flight::Paused(now + Duration::from_secs(1)));
        drop(begin(&mut flights, SWEEP_FROM));
        assert_eq!(flights.of.len(), running.len() + 2);
        assert!(flights.of.contains_key(&paused) && !flights.of.contains_key(&over));
        assert_eq!(flights.sweep_at, (running.len() + 1) * 2);
    }
}
