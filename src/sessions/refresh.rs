//! Keeping sessions true: before a session's facts are older than `sessions.recheck`, its provider is asked, with the
//! refresh token or, where there is none, the access token, whether the person may still sign in there, and which groups
//! they have now. A session about which nothing can be asked ends then. One whose provider gives no answer goes on; one whose provider
//! answers that something is wrong, and not that the person is gone, goes on for as long as a directory behind it may be away.
//!
//! A refresh token that rotates may be used once, and a second use revokes the grant (RFC 9700 section 4.14.2). So one
//! refresh of a session runs in this process, whoever needs it, and one among all replicas: who refreshes first writes
//! a lease into the record, longer than the provider may take, and writes what came of it only if the lease still stands.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::{
    Ended, Session, Sessions,
    keyring::random,
    record::{Record, SessionHash},
    userinfo,
};
use crate::{
    authn::Principal,
    clock::{Moment, Timestamp, millis},
    lock::lock,
    oidc::{self, RefreshError, Refreshed},
    store::{Expect, StoreError, Table, Written},
};

/// How long one refresh keeps the others off. Longer than a call to the provider may take, with the writes around it.
const LEASE: Duration = Duration::from_secs(45);

/// How long a session is left alone after its provider gave no answer.
const PAUSE: Duration = Duration::from_secs(30);

/// For how many times `sessions.recheck` a provider may answer without vouching for a session: an hour by the defaults. Dex tells of
/// somebody who is gone with the same words as of a directory that is away.
const REFUSALS: u32 = 12;

/// By how much the clock of another replica may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(30);

/// How long a lease keeps others off that seems to begin in the future. Longer than most calls to a provider.
const AT_WORK: Duration = Duration::from_secs(5);

/// How often is looked whether another replica is done.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// Who is refreshing a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Lease {
    pub(super) id: [u8; 16],
    #[serde(with = "millis")]
    pub(super) until: Timestamp,
}

impl Lease {
    /// Whether it keeps others off at `now`, who know it since `since`. Of one that seems to begin in the future nobody can tell whether it
    /// was left behind before the clock was set back, or its replica is ahead of this one and at work.
    fn stands(&self, now: Moment, since: Moment) -> bool {
        let is_ahead = is_to_come(self.until - LEASE, now.shown());
        self.until > now.shown() && (!is_ahead || now.is_before(since + AT_WORK))
    }
}

/// From how many flights on those that are over are cleared away.
const SWEEP_FROM: usize = 1024;

/// The refreshes of this process.
#[derive(Clone, Debug, Default)]
pub struct Refreshes(Arc<Mutex<Flights>>);

#[derive(Debug, Default)]
struct Flights {
    of: HashMap<SessionHash, Flight>,
    /// Those that are over are cleared away once there are so many.
    sweep_at: usize,
    /// When a userinfo endpoint last named a claim that the session in question had. The next who lost that claim was asked about for
    /// the first time, perhaps, and would keep it.
    named: HashMap<Grant, HashMap<String, Timestamp>>,
}

/// An issuer, and the scopes that it granted: of an access token with others its userinfo endpoint tells other claims.
type Grant = (Arc<str>, BTreeSet<Arc<str>>);

impl Flights {
    /// Notes what userinfo of the record's issuer told of an access token with `scopes`, and gives which claims it has named for such
    /// ones since the session began, of whomever. What it named earlier counts for nothing: a provider may be set to name a claim in the
    /// ID token alone.
    fn named_since(
        &mut self,
        record: &Record,
        scopes: &[Arc<str>],
        told: &Map<String, Value>,
        now: Timestamp,
    ) -> BTreeSet<String> {
        let grant = (Arc::clone(&record.issuer), scopes.iter().cloned().collect());
        let named = self.named.entry(grant).or_default();
        named.extend(userinfo::known(&record.claims, told).map(|name| (name.clone(), now)));
        named.iter().filter(|(_, at)| **at >= record.created).map(|(name, _)| name.clone()).collect()
    }

    fn begin(&mut self, session: SessionHash, over: watch::Receiver<()>, now: Moment) {
        if self.of.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.of.retain(|_, flight| match flight {
                Flight::Running(over) => over.has_changed().is_ok(),
                Flight::Paused(until) => now.is_before(*until),
            });
            self.sweep_at = self.of.len() * 2;
        }
        self.of.insert(session, Flight::Running(over));
    }
}

#[derive(Debug)]
enum Flight {
    /// Closed when it is over.
    Running(watch::Receiver<()>),
    Paused(Moment),
}

/// What a refresh came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// The record says what the provider says, or the session is gone.
    Settled,
    /// The provider or the store gave no answer.
    Later,
}

impl Sessions {
    /// The session as it may be used at `now`: one whose facts are nearly too old is refreshed beside the request, one
    /// whose facts are too old before it. A provider that gives no answer costs nobody the session.
    pub(super) async fn recheck_if_due(&self, session: Arc<Session>, now: Timestamp) -> Option<Arc<Session>> {
        if !self.is_due(&session, now) {
            return Some(session);
        }
        let over = self.refresh(&session);
        if self.age(&session.record, now) < self.0.settings.recheck {
            return Some(session);
        }
        if let Some(mut over) = over {
            // An error is the end that is waited for.
            while over.changed().await.is_ok() {}
            return None;
        }
        Some(session)
    }

    /// Who the session with this name is of now, for the streams that it opened: it is refreshed when that is due, and
    /// does not count as used. `None` if it has ended.
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
        }
        Ok(Some(session.principal))
    }

    /// Early enough that nobody waits for an answer; where nothing can be asked, the session has all its time.
    pub(super) fn is_due(&self, session: &Session, now: Timestamp) -> bool {
        let (record, recheck) = (&session.record, self.0.settings.recheck);
        let age = self.age(record, now);
        age >= recheck || (age >= recheck / 4 * 3 && self.can_ask(record))
    }

    /// How old at `now` is what is known of a session. What was found out at a time that is still to come is of any age; but where nothing
    /// can be asked, the session ends by that, which a clock that is a little behind must not do. It lasts for twice `recheck` at most.
    fn age(&self, record: &Record, now: Timestamp) -> Duration {
        let is_of_any_age =
            is_to_come(record.checked, now) && (record.checked > now + self.0.settings.recheck || self.can_ask(record));
        if is_of_any_age { Duration::MAX } else { now.since(record.checked) }
    }

    fn can_ask(&self, record: &Record) -> bool {
        self.provider_of(record).is_some_and(|provider| oidc::can_ask(&**provider, &record.tokens))
    }

    /// Begins a refresh, or joins the one that runs; `None` while the session is left alone.
    fn refresh(&self, session: &Session) -> Option<watch::Receiver<()>> {
        let shared = &self.0.shared;
        let now = self.moment();
        let mut flights = lock(&shared.refreshes.0);
        match flights.of.get(&session.hash) {
            Some(Flight::Running(over)) if over.has_changed().is_ok() => return Some(over.clone()),
            Some(Flight::Paused(until)) if now.is_before(*until) => return None,
            _ => {}
        }
        let (running, over) = watch::channel(());
        flights.begin(session.hash, over.clone(), now);
        drop(flights);
        let (sessions, hash, seen) = (self.clone(), session.hash, session.record.checked);
        shared.control.spawn(async move {
            let done = sessions.recheck(hash, seen).await.unwrap_or_else(|error| {
                tracing::warn!(session = %hash, %error, "a session could not be refreshed");
                Done::Later
            });
            sessions.0.cache.invalidate(&hash);
            let shared = &sessions.0.shared;
            let mut flights = lock(&shared.refreshes.0);
            match done {
                Done::Settled => drop(flights.of.remove(&hash)),
                Done::Later => drop(flights.of.insert(hash, Flight::Paused(shared.clock.moment() + PAUSE))),
            }
            drop(flights);
            // Last, so that whoever waited finds what came of it.
            drop(running);
        });
        Some(over)
    }

    /// Refreshes unless somebody has done so since `seen`.
    async fn recheck(&self, hash: SessionHash, seen: Timestamp) -> Result<Done, StoreError> {
        let inner = &*self.0;
        let give_up = self.moment() + LEASE;
        // The lease of another, and since when it is known.
        let mut known: Option<([u8; 16], Moment)> = None;
        let (record, lease, _unfinished) = loop {
            let Some((record, version)) = self.read(hash).await? else { return Ok(Done::Settled) };
            if record.checked != seen {
                return Ok(Done::Settled);
            }
            let now = self.moment();
            if let Some(other) = &record.lease {
                let since = known.filter(|(id, _)| *id == other.id).map_or(now, |(_, since)| since);
                known = Some((other.id, since));
                if other.stands(now, since) {
                    if !now.is_before(give_up) {
                        return Ok(Done::Later);
                    }
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            }
            // From now on: the wait for another's was long, perhaps, and the call is not.
            let lease = Lease { id: random(), until: now.shown() + LEASE };
            let leased = Record { lease: Some(lease.clone()), ..record };
            // The end of the process waits from here on, as a token that was used and whose successor was not kept is lost. What begins when
            // nobody waits any more is left to others.
            let Some(unfinished) = inner.shared.drain.begin_task_unless_closing() else { return Ok(Done::Later) };
            if self.write(hash, &leased, version).await? {
                break (leased, lease, unfinished);
            }
        };
        let give_up = self.moment() + LEASE;
        let Some(provider) = self.provider_of(&record).map(Arc::clone) else { return Ok(Done::Later) };
        let now = self.now();
        let refreshed = oidc::refresh(&*provider, &record.tokens, &record.claims, now)
            .await
            .unwrap_or_else(|error| Refreshed { unvouched: Some(error), ..Refreshed::default() });
        match &refreshed.unvouched {
            Some(RefreshError::Gone(why)) => return self.end_refused(hash, &record, &lease, why).await,
            Some(RefreshError::Later(why)) => {
                tracing::warn!(session = %hash, issuer = %record.issuer, %why, "nobody vouched for a session yet");
            }
            Some(RefreshError::Refused(_)) | None => {}
        }
        if let Some(why) = refreshed.refusal() {
            let end = since_refused(&record, now) + inner.settings.recheck * REFUSALS;
            if end <= now {
                return self.end_refused(hash, &record, &lease, why).await;
            }
            tracing::warn!(
                session = %hash, issuer = %record.issuer, %why, %end,
                "the provider does not vouch for a session, or tells nothing of its person, and it ends unless that is over before `end`"
            );
        }
        let scopes = refreshed.scopes.as_deref().unwrap_or(&record.scopes);
        let named = refreshed
            .told
            .as_ref()
            .map(|told| lock(&inner.shared.refreshes.0).named_since(&record, scopes, told, now))
            .unwrap_or_default();
        let asks_userinfo = provider.client().asks_userinfo;
        let apply = |record: &mut Record| refreshed.clone().apply(record, &named, now, asks_userinfo);
        let is_there = self.settle(hash, &lease, give_up, apply).await?;
        if !is_there && refreshed.refresh.is_some() {
            tracing::warn!(
                session = %hash, issuer = %record.issuer,
                "a session ended while it was refreshed: its new refresh token stays good at the provider"
            );
        }
        Ok(if refreshed.unvouched.is_none() { Done::Settled } else { Done::Later })
    }

    /// Ends a session for which its provider does not vouch any more.
    async fn end_refused(
        &self,
        hash: SessionHash,
        record: &Record,
        lease: &Lease,
        why: &str,
    ) -> Result<Done, StoreError> {
        // Who has the lease by now has used the refresh token, perhaps, and knows more.
        let Some((standing, _)) = self.read(hash).await? else { return Ok(Done::Settled) };
        if standing.lease.as_ref() != Some(lease) {
            tracing::warn!(session = %hash, %why, "a refresh took longer than its lease, and came to nothing");
            return Ok(Done::Settled);
        }
        tracing::info!(session = %hash, issuer = %record.issuer, %why, "the provider ended a session");
        self.end_all(&record.issuer_url, &record.subject, vec![(hash, record.ends)], Ended::provider).await?;
        Ok(Done::Settled)
    }

    /// Writes what a refresh changed, if its lease still stands. A store that is away is tried until `give_up`, as
    /// a token that rotated and was not kept is lost. Gives whether the session has not ended.
    pub(super) async fn settle(
        &self,
        hash: SessionHash,
        lease: &Lease,
        give_up: Moment,
        change: impl Fn(&mut Record),
    ) -> Result<bool, StoreError> {
        loop {
            let attempt = async {
                let Some((mut record, version)) = self.read(hash).await? else { return Ok(Some(false)) };
                if record.lease.as_ref() != Some(lease) {
                    tracing::warn!(session = %hash, "a refresh took longer than its lease");
                    return Ok(Some(true));
                }
                change(&mut record);
                self.write(hash, &record, version).await.map(|written| written.then_some(true))
            };
            match attempt.await {
                Ok(Some(is_there)) => return Ok(is_there),
                Ok(None) => {}
                Err(error) if !self.moment().is_before(give_up) => return Err(error),
                Err(error) => {
                    tracing::warn!(session = %hash, %error, "the store does not take a refreshed session yet");
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }

    /// The record as the store has it; `None` if it is gone or cannot be read.
    pub(super) async fn read(&self, hash: SessionHash) -> Result<Option<(Record, u64)>, StoreError> {
        let shared = &self.0.shared;
        let stored = shared.store.get(Table::Sessions, hash.as_bytes(), shared.clock.now()).await?;
        Ok(stored.and_then(|stored| Some((Record::open(&self.0.keys, &hash, &stored.value).ok()?, stored.version))))
    }

    /// Whether it was written: not if somebody else wrote since `version`.
    pub(super) async fn write(&self, hash: SessionHash, record: &Record, version: u64) -> Result<bool, StoreError> {
        let inner = &*self.0;
        let sealed = record
            .seal(&inner.keys, &hash)
            .ok_or_else(|| StoreError::Corrupt("the session cannot be sealed".to_owned()))?;
        let (expires, expect) = (record.expires(&inner.settings), Expect::Version(version));
        let store = &inner.shared.store;
        let written = store.put(Table::Sessions, hash.as_bytes(), sealed, expires, expect, inner.shared.clock.now());
        Ok(matches!(written.await?, Written::Done(_)))
    }
}

/// Whether what a record says to have happened at `time` is still to come at `now`, whichever replica wrote it: the clock was set back
/// since, and nobody can tell how long ago that was.
pub(super) fn is_to_come(time: Timestamp, now: Timestamp) -> bool {
    time > now + AHEAD
}

/// Since when the provider has not vouched for a session for which it does not at `now`.
fn since_refused(record: &Record, now: Timestamp) -> Timestamp {
    // Where that is still to come, the clock was set back, and the time that such a session has begins anew.
    record.refused.map_or(now, |since| since.min(now))
}

/// What a login found out and a refresh need not tell again (OpenID Connect Core 1.0 section 12.2).
const KEPT: [&str; 2] = ["sid", "nonce"];

/// When and how the person authenticated for this session. A refresh changes nothing of it: Keycloak tells there of the last login of
/// the person at any of its applications, so that a session, be it a stolen one, would look younger and stronger than it is.
const OF_LOGIN: [&str; 3] = ["auth_time", "acr", "amr"];

impl Refreshed {
    /// Why the session ends if that goes on: the provider answers, and does not vouch for the person, or tells nothing of them.
    fn refusal(&self) -> Option<&str> {
        match (&self.unvouched, &self.lacks) {
            (Some(RefreshError::Refused(why)), _) | (None, Some(why)) => Some(why),
            (Some(RefreshError::Gone(_) | RefreshError::Later(_)), _) | (None, None) => None,
        }
    }

    /// `named` are claims that userinfo of this provider has named of others with the same scopes.
    fn apply(self, record: &mut Record, named: &BTreeSet<String>, now: Timestamp, asks_userinfo: bool) {
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
            let names = std::mem::take(&mut record.told);
            if asks_userinfo && self.told.is_none() {
                let told = before.iter().filter(|(name, _)| names.contains(*name));
                let told = told.map(|(name, value)| (name.clone(), value.clone())).collect();
                userinfo::complete(Arc::make_mut(&mut record.claims), &mut record.told, &told);
            }
        }
        if let Some(told) = self.told {
            let claims = Arc::make_mut(&mut record.claims);
            if is_anew {
                record.named.extend(userinfo::known(claims, &told).cloned());
            } else {
                let named: BTreeSet<String> = record.named.union(named).cloned().collect();
                userinfo::follow(claims, &mut record.told, &named, &told);
            }
            if asks_userinfo {
                userinfo::complete(claims, &mut record.told, &told);
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

    #[test]
    fn flights_that_are_over_are_cleared_away_once_there_are_twice_as_many_and_not_at_each_that_begins() {
        let session = |number: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            SessionHash::parse(&BASE64_URL_SAFE_NO_PAD.encode(hash)).unwrap()
        };
        let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
        let mut flights = Flights::default();
        let begin = |flights: &mut Flights, number: usize| {
            let (running, over) = watch::channel(());
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
