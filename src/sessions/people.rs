//! The sessions of one person: listed and ended by an operator's word or their provider's.

use serde::Serialize;

use super::{
    Ended, Sessions,
    index::{Entry, Index},
    record::Hash,
};
use crate::store::StoreError;

/// A session, for a list of them. Times are RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The hash of its id, as in the audit trail.
    pub session: String,
    /// Where it began, and only there it is worth anything.
    pub origin: String,
    pub created: String,
    /// To the minute.
    pub last_seen: String,
    /// When the provider last vouched for it.
    pub checked: String,
    /// The end if it is not used any more.
    pub ends_if_unused: String,
    pub ends: String,
}

impl Sessions {
    /// The sessions of a person, by issuer identifier and subject, in the order in which they began.
    pub async fn list(&self, issuer: &str, subject: &str) -> Result<Vec<Listed>, StoreError> {
        let mut list = Vec::new();
        for entry in self.index_of(issuer, subject).entries(self.now()).await? {
            let Some(hash) = entry.hash() else { continue };
            let Some((record, _)) = self.read(hash).await? else { continue };
            list.push(Listed {
                session: hash.to_string(),
                created: record.created.to_string(),
                last_seen: record.last_seen.to_string(),
                checked: record.checked.to_string(),
                ends_if_unused: record.expires(&self.0.settings).to_string(),
                ends: record.ends.to_string(),
                origin: record.origin,
            });
        }
        Ok(list)
    }

    /// Ends the sessions of a person, or the one that is named, with their streams. Gives how many.
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

    /// Ends what a provider says has ended: its session `sid`, or all of the person `subject`. Gives how many.
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
        // A session that nobody here has is no error: it may have ended already.
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
        let now = self.now();
        let index = self.index_of(issuer, subject);
        let mut entries = index.entries(now).await?;
        entries.retain(wanted);
        self.end_entries(&entries, reason).await?;
        let ended: Vec<Hash> = entries.iter().filter_map(Entry::hash).collect();
        index.remove(&ended, now).await?;
        Ok(ended.len())
    }

    fn index_of(&self, issuer: &str, subject: &str) -> Index<'_> {
        Index::of(&*self.0.shared.store, &self.0.keys, issuer, subject)
    }
}
