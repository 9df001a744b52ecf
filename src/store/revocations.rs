//! Revocations of single credentials, and of all credentials of a principal.
//!
//! The store is authoritative. Each process has a copy in memory that follows it within a second, so that checks are
//! cheap. Checks that work without the store are limited by the age of the copy.

mod list;
mod mirror;
mod names;
mod record;
mod restore;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use moka::{policy::EvictionPolicy, sync::Cache};
use tokio_util::sync::CancellationToken;

pub use self::names::Named;
use self::{
    mirror::{ByIssuer, Mirror},
    names::Names,
    record::{Record, What},
};
use super::{Expect, Store, StoreError, Table, Written, WrittenAll};
use crate::{
    authn::{CredentialId, KnownAs, KnownToken, Principal},
    clock::{AtomicMoment, Clock, Moment, Timestamp, every},
    error::{Reason, Rejection},
    issuers::{RevocationCheck, Revoked},
    lock::lock,
};

/// How often the copy is renewed. Two renewals fit into the documented second.
const EVERY: Duration = Duration::from_millis(400);

/// Changes that are read at once.
const PAGE: usize = 1000;

/// How long an operator's revocation of a token or a principal is stored at least, however soon it ends: a replica that
/// polls late, or whose clock is ahead, must still read a revocation that lifts an earlier one, or it would enforce the
/// earlier one.
const KEPT: Duration = Duration::from_secs(3600);

/// The target of a revocation. An issuer is named as in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// One browser session, by the hash of its id.
    Session(&'a str),
    /// One token, by the id in [`CredentialId::Token`]. Ids are unique only within an issuer.
    Token { issuer: &'a str, id: &'a str },
    /// All credentials of one principal.
    Principal { issuer: &'a str, subject: &'a str },
    /// All tokens of a run or of a pod, by its cluster and uid.
    Workload(&'a str),
}

impl Target<'_> {
    /// Returns the same target under each name of its issuer.
    fn by_all_names<'a>(self, names: &'a Names) -> Vec<Target<'a>>
    where
        Self: 'a,
    {
        let by_all = |issuer: &'a str, named: &dyn Fn(&'a str) -> Target<'a>| match names.of(issuer) {
            [] => vec![named(issuer)],
            all => all.iter().map(|name| named(name)).collect(),
        };
        match self {
            Self::Token { issuer, id } => by_all(issuer, &|issuer| Target::Token { issuer, id }),
            Self::Principal { issuer, subject } => by_all(issuer, &|issuer| Target::Principal { issuer, subject }),
            Self::Session(_) | Self::Workload(_) => vec![self],
        }
    }
}

/// A revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The reason, for operators. The people affected never see it.
    pub reason: Arc<str>,
    /// Until when it is in force.
    pub until: Timestamp,
    /// Until when it is stored, so that it replaces a longer one.
    kept: Timestamp,
}

/// The revocations: the store's, and the copy in memory.
#[derive(Clone)]
pub struct Revocations(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    mirror: ArcSwap<Mirror>,
    names: ArcSwap<Names>,
    /// Some revocation may not be stored under all names of its issuer.
    may_lack_names: AtomicBool,
    /// The names have changed since revocations without effect were last logged.
    are_names_new: AtomicBool,
    /// Whether `mirror` is empty, which saves most processes the look-up.
    empty: AtomicBool,
    /// Workloads whose end this process has seen, perhaps before the store could be written. Every run and pod of the
    /// cluster is added, and the oldest are evicted, which must not happen to entries of `mirror`.
    ended: Cache<Arc<str>, Revocation>,
    any_ended: AtomicBool,
    /// When the copy was last known to be complete; before that, [`Moment::MIN`]. A clock that is set back or a machine
    /// that slept must not make it look younger.
    complete: AtomicMoment,
    /// Up to where the copy has followed the store; locked while it is renewed.
    followed: tokio::sync::Mutex<Followed>,
    /// The last version that this process wrote. A failover may lose it before it is followed.
    written: AtomicU64,
    /// The version from which to read the store again: a later revocation by another process may have been read before
    /// this process's own write was added to the copy.
    read_again: AtomicU64,
    /// Guards changes of `mirror`, which two renewals and a write may make at once.
    change: Mutex<()>,
}

#[derive(Default)]
struct Followed {
    /// The version up to which it has followed.
    version: u64,
    /// The highest version that was read, although the store may have to be read again from an earlier one.
    seen: u64,
    /// The latest time by which it skipped expired records.
    ended_by: Timestamp,
}

/// The maximum number of ended workloads that are remembered.
const MAX_ENDED: u64 = 100_000;

impl Revocations {
    pub fn new(store: Store, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            mirror: ArcSwap::default(),
            names: ArcSwap::default(),
            may_lack_names: AtomicBool::new(false),
            are_names_new: AtomicBool::new(false),
            empty: AtomicBool::new(true),
            // The clock decides how long an entry counts. The oldest are evicted: the store has had them for long.
            ended: Cache::builder()
                .max_capacity(MAX_ENDED)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(Duration::from_secs(3600))
                .build(),
            any_ended: AtomicBool::new(false),
            complete: AtomicMoment::new(Moment::MIN),
            followed: tokio::sync::Mutex::default(),
            written: AtomicU64::new(0),
            read_again: AtomicU64::new(u64::MAX),
            change: Mutex::new(()),
        }))
    }

    /// Sets the names of issuers, so that revocations hold whatever a configuration calls the issuer: they are stored
    /// under its identifier and under its names, as a later configuration may change either.
    pub fn know(&self, issuers: &[Named]) {
        {
            let _guard = lock(&self.0.change);
            self.0.names.store(Arc::new(self.0.names.load().followed_by(issuers)));
        }
        self.0.may_lack_names.store(true, Ordering::Release);
        self.0.are_names_new.store(true, Ordering::Release);
    }

    /// Stores revocations under each name of their issuer. A revocation that was made while its issuer was not
    /// configured, or had another identifier, lacks the present one, and would not be found once the issuer is renamed.
    /// Existing records are not overwritten.
    async fn keep_by_all_names(&self) -> Result<(), StoreError> {
        if !self.0.may_lack_names.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let missing = {
            let (mirror, names) = (self.0.mirror.load(), self.0.names.load());
            let of = |map: &ByIssuer| {
                let mut missing = ByIssuer::new();
                for (issuer, of_issuer) in map {
                    for name in names.of(issuer) {
                        let known = map.get(name);
                        let lacks = |id: &str| known.and_then(|known| known.get(id)).is_none();
                        let missing = missing.entry(Arc::clone(name)).or_default();
                        for (id, revocation) in of_issuer.iter().filter(|(id, _)| lacks(id)) {
                            missing.insert_mut(Arc::clone(id), revocation.clone());
                        }
                    }
                }
                missing
            };
            Mirror { tokens: of(&mirror.tokens), principals: of(&mirror.principals), ..Mirror::default() }
        };
        let kept = restore::put_back(&self.0.store, &missing, self.0.clock.now()).await;
        kept.map(|_| ()).inspect_err(|_| self.0.may_lack_names.store(true, Ordering::Release))
    }

    /// Revokes a target until `until`, replacing an earlier revocation of it. This process enforces it at once, others
    /// within a second.
    pub async fn revoke(&self, target: Target<'_>, reason: &str, until: Timestamp) -> Result<(), StoreError> {
        self.revoke_all(&[(target, reason, until)]).await
    }

    /// Revokes several targets, each with its reason and end, in one write to the store.
    pub async fn revoke_all(&self, targets: &[(Target<'_>, &str, Timestamp)]) -> Result<(), StoreError> {
        self.write(targets, KEPT).await
    }

    /// Revokes a token at the request of its holder. The token expires before `until`. The revocation is stored no
    /// longer than that, as it does not lift an earlier one, and holders decide how many there are.
    pub async fn revoke_for_holder(&self, token: Target<'_>, reason: &str, until: Timestamp) -> Result<(), StoreError> {
        self.write(&[(token, reason, until)], Duration::ZERO).await
    }

    /// Writes revocations. Those of tokens and principals are stored for at least `at_least`, even if they end sooner.
    async fn write(&self, targets: &[(Target<'_>, &str, Timestamp)], at_least: Duration) -> Result<(), StoreError> {
        let (mirror, names, now) = (self.0.mirror.load_full(), self.0.names.load_full(), self.0.clock.now());
        let named = targets.iter().flat_map(|(target, reason, until)| {
            let former = mirror.by_former_names(*target, &names);
            let named: Vec<Target<'_>> = target.by_all_names(&names).into_iter().chain(former).collect();
            let least = match target {
                Target::Token { .. } | Target::Principal { .. } => now + at_least,
                // Their end is never lifted.
                Target::Session(_) | Target::Workload(_) => *until,
            };
            let replaced = named.iter().filter_map(|target| mirror.get(*target)).map(|known| known.kept);
            let kept = replaced.fold(least.max(*until), Timestamp::max);
            let revocation = Revocation { reason: (*reason).into(), until: *until, kept };
            named.into_iter().map(move |target| Record::of(What::from(target), revocation.clone()))
        });
        let records: Vec<(Record, Timestamp)> = named.collect();
        let puts = records.iter().map(|(record, kept)| record.put(*kept, Expect::Any));
        let puts = puts.collect::<Result<_, StoreError>>()?;
        match self.0.store.put_all(puts, now).await? {
            WrittenAll::Done(versions) => self.learn_own(records, &versions),
            // Nothing was expected.
            WrittenAll::Conflict { .. } => self.learn(records),
        }
        Ok(())
    }

    /// Adds this process's own writes to the copy.
    fn learn_own(&self, records: Vec<(Record, Timestamp)>, versions: &[u64]) {
        self.0.written.fetch_max(versions.iter().copied().max().unwrap_or_default(), Ordering::AcqRel);
        self.learn(records);
        self.0.read_again.fetch_min(versions.iter().copied().min().unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// Whether [`Self::revoke`] would change nothing: the target is revoked under all its names, and for at least as
    /// long.
    pub fn is_revoked_until(&self, target: Target<'_>, until: Timestamp) -> bool {
        let mirror = self.0.mirror.load();
        let names = self.0.names.load();
        let mut named = target.by_all_names(&names).into_iter();
        named.all(|target| mirror.get(target).is_some_and(|known| known.until >= until))
    }

    /// Returns a revocation that applies to a principal: of its credential or of a token that this was exchanged for, of
    /// its workload, or of all credentials of the principal, of the person on whose behalf it acts, or of an actor.
    pub fn is_revoked(&self, principal: &Principal) -> Option<Revocation> {
        let of_workload = || principal.lives_with.iter().find_map(|uid| self.workload(uid));
        let known = |other: &KnownAs| self.find(&CredentialId::None, &other.issuer, &other.subject);
        let of_others = || principal.on_behalf_of.as_deref().into_iter().chain(&principal.acting).find_map(known);
        let own = self.find(&principal.credential, &principal.issuer, &principal.subject);
        // Nobody has an empty subject.
        let token = |other: &KnownToken| self.find(&CredentialId::Token(Arc::clone(&other.id)), &other.issuer, "");
        let of_exchanged = || principal.exchanged.iter().find_map(token);
        own.or_else(of_workload).or_else(of_others).or_else(of_exchanged)
    }

    /// Returns the revocation of all tokens of a run or of a pod.
    pub fn workload(&self, uid: &str) -> Option<Revocation> {
        let now = self.0.clock.now();
        let is_in_force = |revocation: &Revocation| revocation.until > now;
        if !self.0.empty.load(Ordering::Acquire)
            && let Some(revocation) = self.0.mirror.load().workloads.get(uid).filter(|found| is_in_force(found))
        {
            return Some(revocation.clone());
        }
        let any_ended = self.0.any_ended.load(Ordering::Acquire);
        any_ended.then(|| self.0.ended.get(uid))?.filter(is_in_force)
    }

    /// Whether the end of a run or pod is in the store, not only known by [`Self::end_here`].
    pub fn has_stored(&self, uid: &str) -> bool {
        let now = self.0.clock.now();
        self.0.mirror.load().workloads.get(uid).is_some_and(|revocation| revocation.until > now)
    }

    /// Makes this process refuse all tokens of runs and pods that have ended, each with its reason, before
    /// [`Self::revoke`] writes them to the store and so to the other processes. Returns whether one of them was new.
    pub fn end_here(&self, ended: impl IntoIterator<Item = (String, &'static str)>, until: Timestamp) -> bool {
        let mut any = false;
        for (uid, why) in ended {
            if self.workload(&uid).is_none() {
                self.0.ended.insert(uid.into(), Revocation { reason: why.into(), until, kept: until });
                any = true;
            }
        }
        self.0.any_ended.fetch_or(any, Ordering::Release);
        any
    }

    /// Returns the revocation of a credential or a person, for a caller that is not a [`Principal`] yet.
    pub fn find(&self, credential: &CredentialId, issuer: &str, subject: &str) -> Option<Revocation> {
        if self.0.empty.load(Ordering::Acquire) {
            return None;
        }
        let now = self.0.clock.now();
        let mirror = self.0.mirror.load();
        let known = self.0.names.load();
        let others = known.of(issuer);
        let in_force = |revocation: &&Revocation| revocation.until > now;
        let find = |map: &ByIssuer, name: &str| {
            let mut names = std::iter::once(issuer).chain(others.iter().map(|other| &**other));
            names.find_map(|issuer| map.get(issuer)?.get(name).filter(in_force).cloned())
        };
        let of_credential = match credential {
            CredentialId::Session(id) => mirror.sessions.get(id).filter(in_force).cloned(),
            CredentialId::Token(id) => find(&mirror.tokens, id),
            CredentialId::Delivery(_) | CredentialId::Certificate(_) | CredentialId::None => None,
        };
        of_credential.or_else(|| find(&mirror.principals, subject))
    }

    /// Returns the revocation that ended a principal's session, if any, with the word for its reason.
    pub fn end_of_session(&self, principal: &Principal) -> Option<Revocation> {
        let CredentialId::Session(id) = &principal.credential else { return None };
        self.end_of(id)
    }

    /// Returns the revocation that ended this session, if any, with the word for its reason.
    pub fn end_of(&self, session: &str) -> Option<Revocation> {
        self.0.mirror.load().sessions.get(session).filter(|ended| ended.until > self.0.clock.now()).cloned()
    }

    /// Returns the age of the copy; [`Duration::MAX`] before the first renewal.
    pub fn mirror_age(&self) -> Duration {
        match self.0.complete.load() {
            Moment::MIN => Duration::MAX,
            complete => self.0.clock.moment().since(complete),
        }
    }

    /// Refuses until the copy was read for the first time: an empty copy does not mean that nobody is revoked.
    pub fn check_read(&self) -> Result<(), Rejection> {
        if self.mirror_age() < Duration::MAX {
            return Ok(());
        }
        let why = "the revocations have not been read from the store since the start";
        Err(Rejection::new(Reason::StoreUnavailable, why).fix("try again in a moment"))
    }

    /// Refuses a token while the copy is older than `max_age`, as it may have been revoked since.
    pub fn check_fresh(&self, max_age: Duration) -> Result<(), Rejection> {
        if self.mirror_age() <= max_age {
            return Ok(());
        }
        let why = "Doorward cannot check at the moment whether the token was revoked";
        Err(Rejection::new(Reason::StoreUnavailable, why).fix("try again in a moment; the token may be valid"))
    }

    /// Renews the copy once.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut followed = self.0.followed.lock().await;
        // Writes during the call may be missing from the response, so the age of the copy counts from here.
        let begun = self.0.clock.moment();
        let now = begun.wall();
        let written = self.0.written.load(Ordering::Acquire);
        let again = self.0.read_again.swap(u64::MAX, Ordering::AcqRel);
        followed.version = followed.version.min(again.saturating_sub(1));
        // Revocations that looked expired while the clock was ahead may be in force by the corrected clock: reads
        // everything again.
        let mut reached = if now < followed.ended_by { 0 } else { followed.version };
        followed.ended_by = followed.ended_by.max(now);
        let mut unreadable = None;
        loop {
            let changes = self.0.store.changes(Table::Revocations, reached, PAGE, now).await?;
            let Some(last) = changes.last() else { break };
            self.0.may_lack_names.store(true, Ordering::Release);
            let full = changes.len() == PAGE;
            reached = last.version;
            let (whole, torn): (Vec<_>, Vec<_>) = changes.into_iter().map(Record::read).partition(Result::is_ok);
            unreadable = unreadable.or_else(|| torn.into_iter().find_map(Result::err));
            self.learn(whole.into_iter().flatten());
            if !full {
                break;
            }
        }
        self.forget(now);
        // All others are known now, but the target of this one is unknown, so the copy does not count as complete.
        if let Some(error) = unreadable {
            return Err(error);
        }
        // Checked after the store's current records were read, which are not overwritten. The lost record may be one
        // that this process has just written.
        let before = followed.seen.max(written);
        let mut seen = followed.seen.max(reached);
        if before > 0 && self.0.store.was_set_back(Table::Revocations, before).await? {
            let put_back = restore::put_back(&self.0.store, &self.0.mirror.load_full(), now).await?;
            tracing::error!(
                put_back,
                "the store was emptied or reset: revocations that it lost and this replica knows are restored; sessions, held deliveries \
                 and everything else that it lost are gone"
            );
            // Reads everything again.
            (reached, seen) = (0, 0);
            let _ = self.0.written.compare_exchange(written, 0, Ordering::AcqRel, Ordering::Relaxed);
        } else if seen.max(written) == 0 && self.0.store.is_shared() {
            seen = self.first_version(now).await;
        }
        *followed = Followed { version: reached, seen, ended_by: now };
        self.0.complete.store(begun);
        Ok(())
    }

    /// Gives a table in which nothing was ever written a version, and returns it: without one, nobody could tell that the
    /// store was emptied. If that fails, returns 0, and the next renewal tries again.
    async fn first_version(&self, now: Timestamp) -> u64 {
        // An expiry that has passed leaves no record.
        let put = self.0.store.put(Table::Revocations, b"none", Vec::new(), Timestamp::default(), Expect::Any, now);
        match put.await {
            Ok(Written::Done(version)) => version,
            // Nothing was expected.
            Ok(Written::Conflict(_)) => 0,
            Err(error) => {
                tracing::debug!(%error, "it would not be noticed yet if the store was emptied");
                0
            }
        }
    }

    /// Keeps the copy fresh until cancelled.
    pub async fn follow(self, cancelled: CancellationToken) {
        let (mut failing, mut is_unkept) = (false, false);
        let mut tick = every(EVERY);
        loop {
            tokio::select! {
                () = cancelled.cancelled() => return,
                _ = tick.tick() => {}
            }
            match self.refresh().await {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("revocations are followed again");
                }
                Ok(()) => {}
                Err(error) if failing => {
                    tracing::debug!(%error, "revocations still cannot be followed");
                    continue;
                }
                Err(error) => {
                    failing = true;
                    tracing::error!(%error, "revocations cannot be followed");
                    continue;
                }
            }
            match self.keep_by_all_names().await {
                Ok(()) => is_unkept = false,
                Err(error) if !is_unkept => {
                    is_unkept = true;
                    tracing::warn!(
                        %error,
                        "revocations cannot be stored under all names of their issuers yet, and would be lost with a name"
                    );
                }
                Err(error) => tracing::debug!(%error, "revocations still lack names of their issuers"),
            }
            if self.0.are_names_new.swap(false, Ordering::AcqRel) {
                self.tell_what_meets_nobody();
            }
        }
    }

    fn learn(&self, records: impl IntoIterator<Item = (Record, Timestamp)>) {
        self.change(|mirror| records.into_iter().for_each(|(record, kept)| mirror.learn(record, kept)));
    }

    /// Removes entries that are over. The search uses a snapshot, so that a revocation on a worker does not wait for
    /// it.
    fn forget(&self, now: Timestamp) {
        let mirror = self.0.mirror.load_full();
        let over = mirror.all().filter(|(_, revocation)| revocation.kept <= now);
        let over: Vec<Target<'_>> = over.map(|(target, _)| target).collect();
        if !over.is_empty() {
            self.change(|mirror| over.iter().for_each(|target| mirror.forget(*target, now)));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Mirror)) {
        let _guard = lock(&self.0.change);
        let mut mirror = Mirror::clone(&self.0.mirror.load());
        change(&mut mirror);
        let empty = mirror.is_empty();
        self.0.mirror.store(Arc::new(mirror));
        self.0.empty.store(empty, Ordering::Release);
    }
}

impl RevocationCheck for Revocations {
    fn revoked(&self, principal: &Principal) -> Option<Revoked> {
        self.is_revoked(principal)?;
        let is_revoked = |party: KnownAs| self.find(&CredentialId::None, &party.issuer, &party.subject).is_some();
        Some(if principal.parties().any(is_revoked) { Revoked::Holder } else { Revoked::Credential })
    }
}

impl std::fmt::Debug for Revocations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Revocations").field("empty", &self.0.empty).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
