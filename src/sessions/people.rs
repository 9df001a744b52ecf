//! The sessions of one person: listed, and ended by the person, an operator or the provider.

use std::{net::IpAddr, sync::Arc};

use http::HeaderMap;
use serde::Serialize;

use super::{
    Ended, Origin, Session, Sessions, if_good,
    index::{Entry, Index, Split},
    record::{Holder, Record, SessionHash, SessionId},
    seen,
};
use crate::{
    audit::Note,
    clock::{Timestamp, rfc3339},
    downstream::finished,
    error::Rejection,
    store::{StoreError, Table, Target},
};

/// A session in a list. Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The hash of its id, as in the audit trail.
    pub session: String,
    /// The origin where it began, the only one where it is valid.
    pub origin: String,
    /// The browser or program that holds it, by its own description.
    pub browser: String,
    /// The address from which it was last used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(serialize_with = "rfc3339")]
    pub created: Timestamp,
    /// Accurate to a minute.
    #[serde(serialize_with = "rfc3339")]
    pub last_seen: Timestamp,
    /// When the provider last confirmed it.
    #[serde(serialize_with = "rfc3339")]
    pub checked: Timestamp,
    /// The end if it is not used again.
    #[serde(serialize_with = "rfc3339")]
    pub ends_if_unused: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    pub ends: Timestamp,
}

/// Which of their own sessions a person ends.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// The listed session with this name.
    One(&'a str),
    /// All but the current one.
    Others,
}

impl Sessions {
    /// The sessions of a person, by issuer identifier and subject, in the order in which they began.
    pub async fn list(&self, issuer: &str, subject: &str) -> Result<Vec<Listed>, StoreError> {
        let records = self.records(issuer, subject).await?;
        Ok(records.into_iter().map(|(hash, record)| self.listed(hash, record)).collect())
    }

    /// The sessions of a person that have not ended, in the order in which they began.
    async fn records(&self, issuer: &str, subject: &str) -> Result<Vec<(SessionHash, Record)>, StoreError> {
        let mut records = Vec::new();
        for entry in self.index_of(issuer, subject).entries(self.now()).await? {
            let Some(hash) = entry.hash() else { continue };
            if self.has_ended(&hash) {
                continue;
            }
            if let Some((record, _)) = self.read(hash).await? {
                records.push((hash, record));
            }
        }
        Ok(records)
    }

    fn listed(&self, hash: SessionHash, record: Record) -> Listed {
        Listed {
            session: hash.to_string(),
            browser: match &record.machine {
                Some(machine) if record.uncollected.is_some() => {
                    format!("doorward login on {machine}, which has not collected it yet")
                }
                Some(machine) => format!("doorward login on {machine}"),
                None => seen::browser(record.agent.as_deref().unwrap_or_default()),
            },
            address: record.address,
            created: record.created,
            last_seen: record.last_seen,
            checked: record.checked,
            ends_if_unused: record.expires(&self.0.settings),
            ends: record.latest_end(),
            origin: record.origin,
        }
    }

    /// The sessions of the person whose session this is.
    pub async fn list_own(&self, session: &Session) -> Result<Vec<Listed>, StoreError> {
        self.list(&session.record.issuer_url, &session.record.subject).await
    }

    /// The other sessions that a sign-out of this one ends, and whether the person has any that go on.
    pub async fn signed_out_with(&self, session: &Session) -> Result<(Vec<Listed>, bool), StoreError> {
        let records = self.records(&session.record.issuer_url, &session.record.subject).await?;
        let others = records.into_iter().filter(|(hash, _)| *hash != session.hash);
        let (ending, going_on): (Vec<_>, Vec<_>) = others.partition(|(_, record)| session.record.signs_out(record));
        let ending = ending.into_iter().map(|(hash, record)| self.listed(hash, record)).collect();
        Ok((ending, !going_on.is_empty()))
    }

    /// Ends sessions of the person whose session this is, with their streams. Returns how many were ended.
    pub async fn end_own(&self, session: &Session, which: Which<'_>) -> Result<usize, StoreError> {
        let wanted = |entry: &Entry| {
            entry.hash().is_some_and(|hash| match which {
                Which::One(name) => hash.to_string() == name,
                Which::Others => hash != session.hash,
            })
        };
        self.end_where(&session.record.issuer_url, &session.record.subject, Ended::signed_out, wanted).await
    }

    /// Ends the sessions of a person, or the named one, with their streams. Returns how many were ended.
    pub async fn end_of(
        &self,
        issuer: &str,
        subject: &str,
        session: Option<&str>,
        reason: Ended,
    ) -> Result<usize, StoreError> {
        self.end_where(issuer, subject, reason, |entry| {
            session.is_none_or(|wanted| entry.hash().is_some_and(|hash| hash.to_string() == wanted))
        })
        .await
    }

    /// Ends the session with this name, whoever it belongs to. Returns whether it had not ended before.
    pub(crate) async fn end_named(&self, name: &str, reason: Ended) -> Result<bool, StoreError> {
        let Some(hash) = SessionHash::parse(name) else { return Ok(false) };
        let Some((record, _)) = self.read(hash).await? else { return Ok(false) };
        Ok(self.end_all(&record.issuer_url, &record.subject, vec![(hash, record.ends)], reason).await? > 0)
    }

    /// As [`Sessions::held_by`], but also returns a session that was signed out and whose record is still there: the
    /// response of the store was lost, and the browser comes again to end it at the provider too.
    pub async fn held_to_sign_out(
        &self,
        headers: &HeaderMap,
        origin: &Origin,
    ) -> Result<Option<Arc<Session>>, Rejection> {
        let Some(id) = SessionId::of_browser(headers) else { return Ok(None) };
        let found = self.look_up(id.hash(), Holder::Browser, origin, None).await;
        if_good(found.and_then(|session| {
            let ended = self.0.shared.revocations.end_of_session(&session.principal);
            if ended.is_none_or(|ended| *ended.reason != *Ended::signed_out.as_str()) {
                self.check_revoked(&session.principal)?;
            }
            Ok(session)
        }))
    }

    /// Ends one session, here at once and everywhere within a second; its streams end with it.
    pub async fn end(&self, session: &Session, reason: Ended) -> Result<(), StoreError> {
        let Session { hash, record, .. } = session;
        self.end_all(&record.issuer_url, &record.subject, vec![(*hash, record.ends)], reason).await.map(drop)
    }

    /// Ends a session that its person signs out in the browser, and those that a sign-out ends with it
    /// ([`Record::signs_out`]), on every host. Returns how many were ended.
    pub async fn end_login(&self, session: &Session, reason: Ended) -> Result<usize, StoreError> {
        let Session { hash, record, .. } = session;
        let index = self.index(record);
        let mut others = Vec::new();
        for entry in index.entries(self.now()).await? {
            if self.is_signed_out_with(session, &entry).await {
                others.push(entry);
            }
        }
        let mut split = index.split(others, self.now()).await;
        split.going_on.push((*hash, record.ends));
        self.end_split(&record.issuer_url, &record.subject, split, reason).await
    }

    /// Whether a sign-out of the session ends that of the entry too. If the record of that cannot be read, the same
    /// browser may hold it, so it ends unless the provider names two different sessions.
    async fn is_signed_out_with(&self, session: &Session, entry: &Entry) -> bool {
        let Some(hash) = entry.hash().filter(|hash| *hash != session.hash) else { return false };
        match self.read(hash).await {
            Ok(Some((record, _))) => session.record.signs_out(&record),
            Ok(None) | Err(_) => session.record.provider_session().is_none_or(|sid| entry.is_of(sid)),
        }
    }

    /// Ends these sessions of one person, each with the end of its record, and returns how many. All are revoked in one
    /// write, by which they have ended: if a later step fails, a retry would find nothing left to end, neither here nor
    /// at the provider. The work completes even if the client disconnects.
    ///
    /// A session that has ended, but whose record is still in the store, is not ended again with another reason: it
    /// would be in the trail twice. With the same reason it is, since the response of the store to the first attempt
    /// may have been lost, and then the trail does not have it.
    pub(super) async fn end_all(
        &self,
        issuer: &str,
        subject: &str,
        all: Vec<(SessionHash, Timestamp)>,
        reason: Ended,
    ) -> Result<usize, StoreError> {
        self.end_split(issuer, subject, Split { going_on: all, gone: Vec::new() }, reason).await
    }

    /// As [`Sessions::end_all`]. Those that have ended by themselves are revoked too, as the clock of this process may
    /// be ahead, but they are neither counted nor recorded in the trail.
    async fn end_split(&self, issuer: &str, subject: &str, split: Split, reason: Ended) -> Result<usize, StoreError> {
        if split.going_on.is_empty() && split.gone.is_empty() {
            return Ok(0);
        }
        let (sessions, issuer, subject) = (self.clone(), issuer.to_owned(), subject.to_owned());
        let ending = async move { sessions.end_each(&sessions.index_of(&issuer, &subject), &split, reason).await };
        finished(self.0.shared.finish(ending)).await
    }

    async fn end_each(
        &self,
        index: &Index<'_>,
        Split { going_on, gone }: &Split,
        reason: Ended,
    ) -> Result<usize, StoreError> {
        let shared = &self.0.shared;
        let named = going_on.iter().map(|(hash, ends)| (hash, hash.to_string(), *ends));
        let ending: Vec<_> = named
            .filter(|(_, name, ends)| {
                let ended = shared.revocations.end_of(name);
                ended.is_none_or(|ended| ended.until < *ends || *ended.reason == *reason.as_str())
            })
            .collect();
        let count = ending.len();
        let gone_by_name = gone.iter().map(|(hash, ends)| (hash.to_string(), *ends));
        let gone_by_name: Vec<(String, Timestamp)> = gone_by_name
            .filter(|(name, ends)| !shared.revocations.is_revoked_until(Target::Session(name), *ends))
            .collect();
        if !ending.is_empty() || !gone_by_name.is_empty() {
            let revoked = ending.iter().map(|(_, name, ends)| (name, *ends));
            let revoked = revoked.chain(gone_by_name.iter().map(|(name, ends)| (name, *ends)));
            let targets: Vec<_> = revoked.map(|(name, ends)| (Target::Session(name), reason.as_str(), ends)).collect();
            // The revocations first: streams and other processes check those.
            shared.revocations.revoke_all(&targets).await?;
        }
        for (hash, name, _) in ending {
            self.0.cache.invalidate(hash);
            shared.metrics.ended(hash, reason);
            shared.trail.note(Note::SessionEnded { session: name, why: reason.as_str() });
        }
        let all: Vec<SessionHash> = going_on.iter().chain(gone).map(|(hash, _)| *hash).collect();
        for hash in &all {
            if let Err(error) = shared.store.delete(Table::Sessions, hash.as_bytes()).await {
                tracing::warn!(%error, "sessions that have ended stay in the store until their time, revoked until then");
                break;
            }
        }
        // Entries that remain in the index are removed when room is needed.
        if let Err(error) = index.remove(&all, self.now()).await {
            tracing::warn!(%error, "sessions that have ended stay listed until others need their room");
        }
        Ok(count)
    }

    /// Ends the sessions that a provider says have ended: its session `sid`, or all of the person `subject`. Returns
    /// how many were ended.
    pub async fn end_by_provider(
        &self,
        issuer: &str,
        subject: Option<&str>,
        sid: Option<&str>,
    ) -> Result<usize, StoreError> {
        let found = match (subject, sid) {
            (Some(subject), _) => Some(subject.to_owned()),
            (None, Some(sid)) => {
                Index::subject_of(&*self.0.shared.store, &self.0.keys, issuer, sid, self.now()).await?
            }
            (None, None) => None,
        };
        // A session that nobody has here is not an error: it may have ended already.
        let Some(subject) = found else { return Ok(0) };
        let of_sid = |entry: &Entry| sid.is_none_or(|sid| entry.is_of(sid));
        self.end_where(issuer, &subject, Ended::provider, of_sid).await
    }

    async fn end_where(
        &self,
        issuer: &str,
        subject: &str,
        reason: Ended,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<usize, StoreError> {
        let index = self.index_of(issuer, subject);
        let mut entries = index.entries(self.now()).await?;
        entries.retain(wanted);
        let split = index.split(entries, self.now()).await;
        self.end_split(issuer, subject, split, reason).await
    }

    pub(super) fn index_of(&self, issuer: &str, subject: &str) -> Index<'_> {
        Index::of(&*self.0.shared.store, &self.0.keys, issuer, subject)
    }
}
