//! The index of a person's sessions, by which all of them are ended, on all hosts of Doorward.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    keyring::{KeyId, KeyRing, Purpose},
    record::{Record, SessionHash},
};
use crate::{
    clock::{Timestamp, millis},
    sha256::sha256,
    store::{Backend, Expect, StoreError, Table, Written},
};

/// Attempts to write an index that others write too.
const TRIES: usize = 64;

/// How long a session may take from its entry in the index to its record.
const BEGINNING: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
    /// The digest of the login that began it in a tab of a browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    login: Option<String>,
    #[serde(with = "millis")]
    began: Timestamp,
    #[serde(with = "millis")]
    pub ends: Timestamp,
}

impl Entry {
    fn of(hash: &SessionHash, record: &Record) -> Self {
        Self {
            hash: hash.to_string(),
            sid: record.provider_session().map(str::to_owned),
            login: None,
            began: record.created,
            ends: record.latest_end(),
        }
    }

    pub fn hash(&self) -> Option<SessionHash> {
        SessionHash::parse(&self.hash)
    }

    /// The session of this entry, and when it ends.
    pub fn session(&self) -> Option<(SessionHash, Timestamp)> {
        Some((self.hash()?, self.ends))
    }

    /// Whether it may belong to the provider's own session `sid`; if the provider named none, it may.
    pub fn is_of(&self, sid: &str) -> bool {
        self.sid.as_deref().is_none_or(|own| own == sid)
    }
}

/// The result of adding a session.
#[derive(Debug)]
pub(super) enum Added {
    /// The session is in the index. These must end to leave at most the maximum, the oldest first; they stay listed
    /// until they have ended.
    New(Vec<Entry>),
    /// The session was not added: a login in another tab, with the same facts, has already begun this one.
    Existing(SessionHash),
}

/// Sessions to end, each with the end of its record.
#[derive(Default)]
pub(super) struct Split {
    pub going_on: Vec<(SessionHash, Timestamp)>,
    /// Those that have ended by themselves, by the clock of this process: by another clock they may still be valid.
    pub gone: Vec<(SessionHash, Timestamp)>,
}

/// The index of one person: a list for each key, of the sessions that it sealed. A list is sealed with its key, so that
/// without the key it is neither read nor overwritten, and sessions are listed again when their key is put back.
pub(super) struct Index<'a> {
    store: &'a dyn Backend,
    keys: &'a KeyRing,
    /// In the order of the keys: new sessions are in the first.
    lists: Vec<List>,
}

struct List {
    sealed_by: KeyId,
    /// The key of its record in the store.
    key: [u8; 32],
}

impl<'a> Index<'a> {
    pub fn of(store: &'a dyn Backend, keys: &'a KeyRing, issuer: &str, subject: &str) -> Self {
        let list = |sealed_by: KeyId| {
            let key = sha256(&[issuer.as_bytes(), b"\0", subject.as_bytes(), &sealed_by]);
            List { sealed_by, key }
        };
        Self { store, keys, lists: keys.ids().map(list).collect() }
    }

    /// The sessions that any of the keys sealed.
    pub async fn entries(&self, now: Timestamp) -> Result<Vec<Entry>, StoreError> {
        self.read_all(&self.lists, now).await
    }

    /// The subject of the provider's own session `sid`.
    pub async fn subject_of(
        store: &dyn Backend,
        keys: &KeyRing,
        issuer: &str,
        sid: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        let ids: Vec<KeyId> = keys.ids().collect();
        for id in ids {
            let key = sid_key(issuer, sid, id);
            let stored = store.get(Table::SessionIndex, &key, now).await?;
            let plain = stored.and_then(|stored| keys.open(Purpose::Index, &key, &stored.value).ok());
            if let Some(subject) = plain.and_then(|plain| String::from_utf8(plain).ok()) {
                return Ok(Some(subject));
            }
        }
        Ok(None)
    }

    /// Records the subject of the provider's own session, if the provider names one.
    async fn note_sid(&self, record: &Record, now: Timestamp) -> Result<(), StoreError> {
        let Some(sid) = record.provider_session() else { return Ok(()) };
        let key = sid_key(&record.issuer_url, sid, self.first()?.sealed_by);
        let sealed = self.keys.seal(Purpose::Index, &key, record.subject.as_bytes()).ok_or_else(unsealable)?;
        self.store.put(Table::SessionIndex, &key, sealed, record.ends, Expect::Any, now).await.map(drop)
    }

    /// Adds a session, unless the same login has already begun one in another tab. `login` is the digest of the login,
    /// and when it began. `has_ended` says whether a session has ended although its record is still in the store.
    pub async fn add(
        &self,
        (hash, record): (&SessionHash, &Record),
        login: Option<(&str, Timestamp)>,
        max: usize,
        has_ended: impl Fn(&SessionHash) -> bool,
        now: Timestamp,
    ) -> Result<Added, StoreError> {
        let entry = Entry { login: login.map(|(digest, _)| digest.to_owned()), ..Entry::of(hash, record) };
        self.note_sid(record, now).await?;
        self.forget_gone(max, &has_ended, now).await?;
        let others = self.read_all(self.lists.get(1..).unwrap_or_default(), now).await?;
        self.change(self.first()?, now, |entries| {
            let is_beside = |known: &&Entry| {
                login.is_some_and(|(digest, began)| known.login.as_deref() == Some(digest) && known.began > began)
            };
            let mut all = joined(others.clone(), entries.clone());
            let first = all.iter().filter(is_beside).filter_map(Entry::hash).find(|hash| !has_ended(hash));
            if let Some(first) = first {
                return Added::Existing(first);
            }
            entries.push(entry.clone());
            all.push(entry.clone());
            all.truncate(all.len().saturating_sub(max));
            Added::New(all)
        })
        .await
    }

    /// If there is no room for another within `max`, removes entries of sessions that ended because they were unused,
    /// or when the store failed: nothing else removes them, and they would push out one that is in use.
    async fn forget_gone(
        &self,
        max: usize,
        has_ended: impl Fn(&SessionHash) -> bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let entries = self.entries(now).await?;
        if entries.len() < max {
            return Ok(());
        }
        let mut gone = Vec::new();
        for entry in &entries {
            let Some(hash) = entry.hash() else { continue };
            if has_ended(&hash) || self.is_gone(&hash, entry.began, now).await? {
                gone.push(hash);
            }
        }
        if gone.is_empty() { Ok(()) } else { self.remove(&gone, now).await }
    }

    /// Whether a session has ended by itself because it was unused, or was never stored because the store failed.
    async fn is_gone(&self, hash: &SessionHash, began: Timestamp, now: Timestamp) -> Result<bool, StoreError> {
        let has_begun = began + BEGINNING <= now;
        Ok(has_begun && self.store.get(Table::Sessions, hash.as_bytes(), now).await?.is_none())
    }

    /// Splits sessions into those that go on and those that have ended by themselves. If the store does not respond, a
    /// session counts as one that goes on.
    pub async fn split(&self, entries: Vec<Entry>, now: Timestamp) -> Split {
        let mut split = Split::default();
        for entry in entries {
            let Some(session) = entry.session() else { continue };
            match self.is_gone(&session.0, entry.began, now).await {
                Ok(true) => split.gone.push(session),
                Ok(false) | Err(_) => split.going_on.push(session),
            }
        }
        split
    }

    /// Lists this session by the first key, with its current end.
    pub async fn keep(&self, hash: &SessionHash, record: &Record, now: Timestamp) -> Result<(), StoreError> {
        let entry = Entry::of(hash, record);
        let first = self.first()?;
        // The requests of a page come here at once, and each write of one would make others begin anew.
        let is_kept = |known: &Entry| known.hash == entry.hash && known.ends == entry.ends;
        if self.read(first, now).await?.0.iter().any(is_kept) {
            return Ok(());
        }
        self.note_sid(record, now).await?;
        self.change(first, now, |entries| match entries.iter_mut().find(|known| known.hash == entry.hash) {
            Some(known) => known.ends = entry.ends,
            None => entries.push(entry.clone()),
        })
        .await
    }

    pub async fn remove(&self, hashes: &[SessionHash], now: Timestamp) -> Result<(), StoreError> {
        let gone = |entry: &Entry| entry.hash().is_none_or(|hash| hashes.contains(&hash));
        for (nth, list) in self.lists.iter().enumerate() {
            if nth == 0 || self.read(list, now).await?.0.iter().any(gone) {
                self.change(list, now, |entries| entries.retain(|entry| !gone(entry))).await?;
            }
        }
        Ok(())
    }

    fn first(&self) -> Result<&List, StoreError> {
        self.lists.first().ok_or_else(unsealable)
    }

    /// The entries of several lists, in the order in which the sessions began.
    async fn read_all(&self, lists: &[List], now: Timestamp) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        for list in lists.iter().rev() {
            all = joined(all, self.read(list, now).await?.0);
        }
        Ok(all)
    }

    async fn read(&self, list: &List, now: Timestamp) -> Result<(Vec<Entry>, Expect), StoreError> {
        let Some(stored) = self.store.get(Table::SessionIndex, &list.key, now).await? else {
            return Ok((Vec::new(), Expect::Absent));
        };
        // Its key is there, so one that cannot be opened is damaged, or was emptied.
        let plain = self.keys.open(Purpose::Index, &list.key, &stored.value).unwrap_or_default();
        let mut entries: Vec<Entry> = serde_json::from_slice(&plain).unwrap_or_default();
        entries.retain(|entry| entry.ends > now);
        Ok((entries, Expect::Version(stored.version)))
    }

    async fn change<T>(
        &self,
        list: &List,
        now: Timestamp,
        change: impl Fn(&mut Vec<Entry>) -> T,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            let (mut entries, expect) = self.read(list, now).await?;
            let outcome = change(&mut entries);
            let Some(expires) = entries.iter().map(|entry| entry.ends).max() else {
                // An empty index may stay until it expires if somebody has added to it meanwhile.
                if let Expect::Version(_) = expect {
                    match self.store.put(Table::SessionIndex, &list.key, Vec::new(), now, expect, now).await? {
                        Written::Done(_) => return Ok(outcome),
                        Written::Conflict(_) => continue,
                    }
                }
                return Ok(outcome);
            };
            let value = serde_json::to_vec(&entries)
                .ok()
                .and_then(|plain| self.keys.seal_with(list.sealed_by, Purpose::Index, &list.key, &plain))
                .ok_or_else(unsealable)?;
            match self.store.put(Table::SessionIndex, &list.key, value, expires, expect, now).await? {
                Written::Done(_) => return Ok(outcome),
                Written::Conflict(_) => {}
            }
        }
        Err(StoreError::Unavailable("too many logins of one person at once".to_owned()))
    }
}

/// Cannot collide with the key of a person, as an issuer identifier is a URL.
fn sid_key(issuer: &str, sid: &str, sealed_by: KeyId) -> [u8; 32] {
    sha256(&[b"sid\0", issuer.as_bytes(), b"\0", sid.as_bytes(), &sealed_by])
}

/// The entries of two lists in the order in which the sessions began: replicas that have the keys in another order add to
/// another list at the same time. Of a session in both, either list may be the one that was written last.
fn joined(mut all: Vec<Entry>, others: Vec<Entry>) -> Vec<Entry> {
    for entry in others {
        match all.iter_mut().find(|known| known.hash == entry.hash) {
            Some(known) => {
                known.ends = known.ends.max(entry.ends);
                known.login = known.login.take().or(entry.login);
            }
            None => all.push(entry),
        }
    }
    all.sort_by_key(|entry| entry.began);
    all
}

fn unsealable() -> StoreError {
    StoreError::Corrupt("the index of sessions cannot be sealed".to_owned())
}
