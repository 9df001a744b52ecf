//! Keys that Doorward makes itself: stored sealed, and replaced on a schedule.
//!
//! There are two at any time: one that signs, and its successor, which is published for a whole period before it signs.
//! A key that has signed stays published until its last token has ended. So no token is refused for an unknown key,
//! however long a verifier caches the set (RFC 7517 does not say; an hour is common).

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::keys::{SigningKey, SigningKeys};
use crate::{
    audit::{KeyChange, Note, Trail},
    clock::Timestamp,
    sessions::keyring::{KeyRing, Purpose},
    store::{Expect, Store, StoreError, Stored, Table, Written},
};

/// How long a key that no longer signs stays published: longer than any token that it signed, with room for clock
/// differences.
const AFTERGLOW: Duration = Duration::from_secs(1800);

/// How often making keys is tried while other replicas do the same.
const TRIES: u32 = 5;

/// The one record.
const RECORD: &[u8] = b"ring";

/// How long the record is kept after it was last written, which is at each change of keys.
const KEPT: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The keys in force, across all generations of the configuration. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SigningKeyRing(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    made: ArcSwapOption<SigningKeys>,
    former: ArcSwap<Vec<Former>>,
}

/// The keys of a former configuration.
#[derive(Clone, Debug)]
struct Former {
    keys: SigningKeys,
    /// They are published until then.
    until: Timestamp,
}

/// The sealed storage of the keys, and the trail that records each change of them.
#[derive(Clone, Copy, Debug)]
pub struct KeyStorage<'a> {
    pub store: &'a Store,
    pub seal: &'a KeyRing,
    pub trail: &'a Trail,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("the keys of tokens cannot be stored: {0}")]
    Store(#[from] StoreError),
    #[error(
        "the keys of tokens in the store cannot be opened: they were sealed with a key that `sessions.keys` no longer has; put it \
         back behind the others, or, if it is lost, drop these keys for good with `doorward token-keys drop`"
    )]
    Sealed,
    #[error("the keys of tokens in the store cannot be read; `doorward token-keys drop` gives them up")]
    Unreadable,
    #[error("the system has no random bytes")]
    Random,
    #[error("another process changes the keys of tokens at the same time")]
    Contended,
}

/// The stored record.
#[derive(Serialize, Deserialize)]
struct Ring(Vec<Entry>);

#[derive(Serialize, Deserialize)]
struct Entry {
    /// PKCS #8, base64.
    key: String,
    /// The time from which it signs, in seconds.
    signs_from: i64,
}

impl SigningKeyRing {
    /// The keys, once they have been read.
    pub fn get(&self) -> Option<Arc<SigningKeys>> {
        self.0.made.load_full()
    }

    /// These keys, followed by those that the configuration had until recently.
    pub fn with_former(&self, keys: SigningKeys) -> SigningKeys {
        self.0.former.load().iter().fold(keys, |keys, former| keys.followed_by(&former.keys))
    }

    /// Keeps former keys of the configuration published until the last token that they signed has ended.
    pub fn follow(&self, former: &SigningKeys, now: Timestamp) {
        let added = Former { keys: former.clone(), until: now + AFTERGLOW };
        self.0.former.rcu(|all| all.iter().chain([&added]).cloned().collect::<Vec<_>>());
    }

    /// Removes former keys whose time is over.
    pub fn forget(&self, now: Timestamp) {
        let is_over = |former: &Former| former.until <= now;
        if self.0.former.load().iter().any(is_over) {
            self.0.former.rcu(|all| all.iter().filter(|former| !is_over(former)).cloned().collect::<Vec<_>>());
        }
    }

    /// Reads the keys, and makes those that are missing at `now`. Returns when the next change is due. The trail
    /// records what was made and removed, since nothing else says how old a key is.
    pub async fn renew_once(
        &self,
        KeyStorage { store, seal, trail }: KeyStorage<'_>,
        period: Duration,
        now: Timestamp,
    ) -> Result<Timestamp, RingError> {
        let stored = store.get(Table::TokenKeys, RECORD, now).await?;
        let (mut ring, expect) = match &stored {
            None => (Ring(Vec::new()), Expect::Absent),
            Some(stored) => (Ring::open(seal, &stored.value)?, Expect::Version(stored.version)),
        };
        let changes = ring.advance(period, now)?;
        // The record expires soon while the configuration has keys; without them, it must be kept.
        let is_retired = |stored: &Stored| stored.expires < now + KEPT / 2;
        let is_to_write = |stored: &Stored| !seal.is_current(&stored.value) || is_retired(stored);
        if !changes.is_empty() || stored.as_ref().is_some_and(is_to_write) {
            let value = ring.seal(seal)?;
            let written = store.put(Table::TokenKeys, RECORD, value, now + KEPT, expect, now).await?;
            if matches!(written, Written::Conflict(_)) {
                return Err(RingError::Contended);
            }
        }
        for (id, change) in changes {
            trail.note(Note::Key { of: "tokens", id, change });
        }
        self.0.made.store(Some(Arc::new(ring.keys(now)?)));
        Ok(ring.next_change(now))
    }

    /// [`Self::renew_once`], retried if another replica takes the same configuration at the same time: then its keys
    /// are read.
    pub async fn renew(
        &self,
        key_storage: KeyStorage<'_>,
        period: Duration,
        now: Timestamp,
    ) -> Result<Timestamp, RingError> {
        for _ in 0..TRIES {
            match self.renew_once(key_storage, period, now).await {
                Err(RingError::Contended) => {}
                done => return done,
            }
        }
        self.renew_once(key_storage, period, now).await
    }

    /// Keeps generated keys published after the configuration got its own, until the last token that they signed has
    /// ended. After that the record expires from the store, even if it cannot be opened.
    pub async fn retire(
        &self,
        KeyStorage { store, seal, .. }: KeyStorage<'_>,
        now: Timestamp,
    ) -> Result<(), RingError> {
        let Some(stored) = store.get(Table::TokenKeys, RECORD, now).await? else {
            self.0.made.store(None);
            return Ok(());
        };
        let keys = Ring::open(seal, &stored.value).and_then(|ring| ring.keys(now));
        if stored.expires > now + AFTERGLOW {
            let expect = Expect::Version(stored.version);
            let written = store.put(Table::TokenKeys, RECORD, stored.value, now + AFTERGLOW, expect, now).await?;
            if matches!(written, Written::Conflict(_)) {
                return Err(RingError::Contended);
            }
        }
        self.0.made.store(Some(Arc::new(keys?)));
        Ok(())
    }
}

impl KeyStorage<'_> {
    /// Removes keys that cannot be opened or read, so that [`SigningKeyRing::renew_once`] makes others. Returns whether
    /// there were any; usable keys stay.
    pub async fn drop_unusable(self, now: Timestamp) -> Result<bool, RingError> {
        let Some(stored) = self.store.get(Table::TokenKeys, RECORD, now).await? else { return Ok(false) };
        if Ring::open(self.seal, &stored.value).and_then(|ring| ring.keys(now)).is_ok() {
            return Ok(false);
        }
        // Expires at once, which removes it.
        let expect = Expect::Version(stored.version);
        match self.store.put(Table::TokenKeys, RECORD, Vec::new(), now, expect, now).await? {
            Written::Done(_) => Ok(true),
            Written::Conflict(_) => Err(RingError::Contended),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Entry {
    fn read(&self) -> Option<SigningKey> {
        let der = Zeroizing::new(BASE64_STANDARD.decode(&self.key).ok()?);
        SigningKey::from_der(&der)
    }
}

impl Ring {
    fn open(seal: &KeyRing, sealed: &[u8]) -> Result<Self, RingError> {
        let plain = Zeroizing::new(seal.open(Purpose::TokenKeys, RECORD, sealed).map_err(|_| RingError::Sealed)?);
        serde_json::from_slice(&plain).map_err(|_| RingError::Unreadable)
    }

    fn seal(&self, seal: &KeyRing) -> Result<Vec<u8>, RingError> {
        let plain = Zeroizing::new(serde_json::to_vec(self).map_err(|_| RingError::Unreadable)?);
        seal.seal(Purpose::TokenKeys, RECORD, &plain).ok_or(RingError::Random)
    }

    /// Removes keys that are no longer needed, and adds successors, so that one key signs and one will. Returns the
    /// changes, by the names of the keys.
    fn advance(&mut self, period: Duration, now: Timestamp) -> Result<Vec<(String, KeyChange)>, RingError> {
        let mut changes = Vec::new();
        // A key is no longer needed once its successor has signed for a while.
        while self.successor_signs_from().is_some_and(|from| from + AFTERGLOW <= now) {
            let removed = self.0.remove(0).read().ok_or(RingError::Unreadable)?;
            changes.push((removed.id().to_owned(), KeyChange::Removed));
        }
        while self.0.last().is_none_or(|last| Timestamp::from_secs(last.signs_from) <= now) {
            // After a long stop the schedule starts again: the keys that would have signed meanwhile have signed
            // nothing.
            let from = if self.0.is_empty() { now } else { now + period };
            let (key, der) = SigningKey::generate().ok_or(RingError::Random)?;
            let der = Zeroizing::new(der);
            self.0.push(Entry { key: BASE64_STANDARD.encode(&*der), signs_from: from.as_secs() });
            changes.push((key.id().to_owned(), KeyChange::Made { signs_from: from }));
        }
        Ok(changes)
    }

    fn successor_signs_from(&self) -> Option<Timestamp> {
        self.0.get(1).map(|entry| Timestamp::from_secs(entry.signs_from))
    }

    /// The newest whose time has come signs; the others are published with it.
    fn keys(&self, now: Timestamp) -> Result<SigningKeys, RingError> {
        let mut keys = self
            .0
            .iter()
            .map(|entry| entry.read().map(Arc::new))
            .collect::<Option<Vec<_>>>()
            .ok_or(RingError::Unreadable)?;
        let signs = self.0.iter().rposition(|entry| Timestamp::from_secs(entry.signs_from) <= now).unwrap_or_default();
        keys.swap(0, signs);
        SigningKeys::new(keys).ok_or(RingError::Unreadable)
    }

    fn next_change(&self, now: Timestamp) -> Timestamp {
        let begins = self.0.iter().map(|entry| Timestamp::from_secs(entry.signs_from)).filter(|from| *from > now);
        let ends = self.successor_signs_from().map(|from| from + AFTERGLOW).filter(|end| *end > now);
        begins.chain(ends).min().unwrap_or(now + AFTERGLOW)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use serde_json::Value;

    use super::*;
    use crate::{
        sessions::tests::trail,
        store::{Embedded, disturbed::Disturbed},
    };

    const START: Timestamp = Timestamp::from_secs(1_700_000_000);
    const PERIOD: Duration = Duration::from_secs(86_400);

    struct Place {
        folder: tempfile::TempDir,
        trail: Trail,
        store: Store,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let (trail, store) = (trail(folder.path()), Embedded::open(&folder.path().join("store.redb")).unwrap());
        Place { trail, store: Arc::new(store), folder }
    }

    impl Place {
        fn key_storage<'a>(&'a self, seal: &'a KeyRing) -> KeyStorage<'a> {
            KeyStorage { store: &self.store, seal, trail: &self.trail }
        }
    }

    /// All replicas take a new configuration at about the same time, and each needs keys then.
    #[tokio::test]
    async fn a_conflict_with_keys_of_another_replica_is_retried_a_bounded_number_of_times() {
        let (place, seal) = (place(), KeyRing::of(&[[7; 32]]));
        for (late, is_made) in [(1, true), (TRIES, true), (TRIES + 1, false)] {
            let (kept, disturbed) = (SigningKeyRing::default(), Disturbed::new(Arc::clone(&place.store)));
            disturbed.late.store(late, SeqCst);
            let store: Store = Arc::new(disturbed);
            store.delete(Table::TokenKeys, RECORD).await.unwrap();
            let made = kept.renew(KeyStorage { store: &store, ..place.key_storage(&seal) }, PERIOD, START).await;
            assert_eq!((made.is_ok(), kept.get().is_some()), (is_made, is_made), "{late}");
        }
    }

    fn ids(keys: &SigningKeys) -> Vec<String> {
        let set: Value = serde_json::from_slice(keys.set()).unwrap();
        set["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_key_is_published_a_period_before_it_signs_and_until_its_last_token_has_ended() {
        let place = place();
        let seal = KeyRing::of(&[[7; 32]]);
        let kept = SigningKeyRing::default();
        let mut now = START;
        let (mut published, mut signer): (Vec<String>, Option<String>) = (Vec::new(), None);
        let mut signers = 0;
        while now < START + PERIOD * 4 {
            let next = kept.renew_once(place.key_storage(&seal), PERIOD, now).await.unwrap();
            let ids = ids(&kept.get().unwrap());
            assert!(ids.len() >= 2, "{now}: {ids:?}");
            let first = ids.first().cloned();
            if first != signer {
                signers += 1;
                // Verifiers that read the set before know the new signer, and still need the previous one.
                assert!(signer.is_none() || published.contains(first.as_ref().unwrap()), "{now}");
                assert!(signer.is_none_or(|signer| ids.contains(&signer)), "{now}");
            }
            (published, signer) = (ids, first);
            assert!(next > now && next <= now + PERIOD, "{now} {next}");
            now = next;
        }
        assert_eq!(signers, 4);
        // Another process finds the same.
        let other = SigningKeyRing::default();
        other.renew_once(place.key_storage(&seal), PERIOD, now - Duration::from_secs(1)).await.unwrap();
        assert_eq!(ids(&other.get().unwrap()), published);
        // The keys published now were made and not removed, and no others.
        place.trail.shutdown();
        let lines = std::fs::read_to_string(place.folder.path().join("audit.jsonl")).unwrap();
        let mut known: Vec<String> = Vec::new();
        for line in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let id = || line["unmapped"]["key"]["id"].as_str().unwrap().to_owned();
            match line["metadata"]["event_code"].as_str().unwrap() {
                "key.made" => known.push(id()),
                "key.removed" => known.retain(|known| *known != id()),
                _ => {}
            }
        }
        known.sort();
        published.sort();
        assert_eq!(known, published);
    }

    #[tokio::test]
    async fn generated_keys_stay_published_until_their_last_token_ends_after_keys_are_configured() {
        let place = place();
        let seal = KeyRing::of(&[[7; 32]]);
        let kept = SigningKeyRing::default();
        kept.renew_once(place.key_storage(&seal), PERIOD, START).await.unwrap();
        let made = ids(&kept.get().unwrap());
        for after in [0, 60, 1799] {
            // Also by a process that starts meanwhile.
            let kept = SigningKeyRing::default();
            kept.retire(place.key_storage(&seal), START + Duration::from_secs(after)).await.unwrap();
            assert_eq!(ids(&kept.get().unwrap()), made, "{after}");
        }
        // Back to generated keys, for good.
        kept.renew_once(place.key_storage(&seal), PERIOD, START + Duration::from_secs(1799)).await.unwrap();
        kept.renew_once(place.key_storage(&seal), PERIOD, START + Duration::from_secs(3600)).await.unwrap();
        assert_eq!(ids(&kept.get().unwrap()), made);
        let later = START + Duration::from_secs(3600);
        kept.retire(place.key_storage(&seal), later).await.unwrap();
        kept.retire(place.key_storage(&seal), later + AFTERGLOW).await.unwrap();
        assert!(kept.get().is_none());
    }

    #[tokio::test]
    async fn the_keys_that_a_configuration_had_are_published_until_their_last_token_has_ended() {
        let place = place();
        let kept = SigningKeyRing::default();
        let of_file = SigningKeys::new(vec![Arc::new(SigningKey::generate().unwrap().0)]).unwrap();
        let next_of_file = SigningKeys::new(vec![Arc::new(SigningKey::generate().unwrap().0)]).unwrap();
        kept.renew_once(place.key_storage(&KeyRing::of(&[[7; 32]])), PERIOD, START).await.unwrap();
        let made = kept.get().unwrap();
        kept.follow(&of_file, START);
        kept.follow(&next_of_file, START + Duration::from_secs(60));
        let (first, second) = (ids(&of_file), ids(&next_of_file));
        for (after, former) in [
            (60, [first.clone(), second.clone()].concat()),
            (1799, [first, second.clone()].concat()),
            (1800, second),
            (1860, vec![]),
        ] {
            kept.forget(START + Duration::from_secs(after));
            let published = [ids(&made), former].concat();
            assert_eq!(ids(&kept.with_former((*made).clone())), published, "{after}");
        }
    }

    #[tokio::test]
    async fn after_a_long_stop_a_widely_known_key_signs() {
        let place = place();
        let seal = KeyRing::of(&[[7; 32]]);
        let kept = SigningKeyRing::default();
        kept.renew_once(place.key_storage(&seal), PERIOD, START).await.unwrap();
        let before = ids(&kept.get().unwrap());
        kept.renew_once(place.key_storage(&seal), PERIOD, START + PERIOD * 30).await.unwrap();
        let after = ids(&kept.get().unwrap());
        assert_eq!((after.len(), after.first()), (2, before.get(1)));
    }

    #[tokio::test]
    async fn keys_cannot_be_read_without_the_key_that_sealed_them() {
        let place = place();
        let kept = SigningKeyRing::default();
        kept.renew_once(place.key_storage(&KeyRing::of(&[[7; 32]])), PERIOD, START).await.unwrap();
        let before = ids(&kept.get().unwrap());
        let error = kept.renew_once(place.key_storage(&KeyRing::of(&[[8; 32]])), PERIOD, START).await.unwrap_err();
        assert!(matches!(error, RingError::Sealed));
        // The sealing key is replaced: the record is sealed again, and the old key can be removed.
        kept.renew_once(place.key_storage(&KeyRing::of(&[[8; 32], [7; 32]])), PERIOD, START).await.unwrap();
        kept.renew_once(place.key_storage(&KeyRing::of(&[[8; 32]])), PERIOD, START).await.unwrap();
        assert_eq!(ids(&kept.get().unwrap()), before);
    }

    /// Regression: keys that nobody can decrypt stayed for ten years, in which no token could be issued.
    #[tokio::test]
    async fn an_operator_drops_undecryptable_keys_and_new_ones_are_made() {
        let place = place();
        let (lost, seal) = (KeyRing::of(&[[7; 32]]), KeyRing::of(&[[8; 32]]));
        let kept = SigningKeyRing::default();
        assert!(!place.key_storage(&seal).drop_unusable(START).await.unwrap(), "there are none");
        kept.renew_once(place.key_storage(&lost), PERIOD, START).await.unwrap();
        let before = ids(&kept.get().unwrap());
        assert!(!place.key_storage(&lost).drop_unusable(START).await.unwrap(), "they can be used");
        assert!(place.key_storage(&seal).drop_unusable(START).await.unwrap());
        kept.renew_once(place.key_storage(&seal), PERIOD, START).await.unwrap();
        let after = ids(&kept.get().unwrap());
        assert!(after.len() == 2 && !after.iter().any(|id| before.contains(id)), "{before:?} {after:?}");
        // A malformed record is as useless.
        let garbage = seal.seal(Purpose::TokenKeys, RECORD, b"nothing").unwrap();
        place.store.put(Table::TokenKeys, RECORD, garbage, START + KEPT, Expect::Any, START).await.unwrap();
        assert!(place.key_storage(&seal).drop_unusable(START).await.unwrap());
    }

    /// Regression: keys that nobody can decrypt stayed for ten years beside those of the configuration, and blocked new
    /// ones once the configuration had none any more.
    #[tokio::test]
    async fn undecryptable_keys_are_dropped_automatically_if_the_configuration_has_keys() {
        let place = place();
        let (lost, seal) = (KeyRing::of(&[[7; 32]]), KeyRing::of(&[[8; 32]]));
        let kept = SigningKeyRing::default();
        kept.renew_once(place.key_storage(&lost), PERIOD, START).await.unwrap();
        assert!(matches!(kept.retire(place.key_storage(&seal), START).await, Err(RingError::Sealed)));
        kept.renew_once(place.key_storage(&seal), PERIOD, START + AFTERGLOW).await.unwrap();
    }
}
