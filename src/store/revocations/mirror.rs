//! The copy of the revocations in memory.

use std::{collections::HashMap, sync::Arc};

use super::{
    Revocation, Target,
    persistent::PersistentMap,
    record::{Record, What},
};
use crate::clock::Timestamp;

/// All that is revoked. Whoever asks has one that stays as it is; it is changed by putting another in its place, which shares with it
/// what has not changed.
#[derive(Clone, Default)]
pub(super) struct Mirror {
    pub(super) sessions: PersistentMap,
    pub(super) tokens: ByIssuer,
    pub(super) principals: ByIssuer,
    pub(super) workloads: PersistentMap,
}

/// Issuers are few.
pub(super) type ByIssuer = HashMap<Arc<str>, PersistentMap>;

impl Mirror {
    pub(super) fn get(&self, target: Target<'_>) -> Option<&Revocation> {
        match target {
            Target::Session(id) => self.sessions.get(id),
            Target::Token { issuer, id } => self.tokens.get(issuer)?.get(id),
            Target::Principal { issuer, subject } => self.principals.get(issuer)?.get(subject),
            Target::Workload(uid) => self.workloads.get(uid),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.tokens.is_empty() && self.principals.is_empty() && self.workloads.is_empty()
    }

    pub(super) fn learn(&mut self, record: Record, kept: Timestamp) {
        let until = record.until.unwrap_or(kept);
        let revocation = Revocation { reason: record.reason, until, kept };
        match record.what {
            What::Session { id } => self.sessions.insert(id, revocation),
            What::Token { issuer, id } => self.tokens.entry(issuer).or_default().insert(id, revocation),
            What::Principal { issuer, subject } => {
                self.principals.entry(issuer).or_default().insert(subject, revocation);
            }
            What::Workload { uid } => self.workloads.insert(uid, revocation),
        }
    }

    /// Takes out what is not kept any more.
    pub(super) fn forget(&mut self, now: Timestamp) {
        let is_kept = |revocation: &Revocation| revocation.kept > now;
        self.sessions.retain(is_kept);
        self.workloads.retain(is_kept);
        for map in [&mut self.tokens, &mut self.principals] {
            map.retain(|_, of_issuer| {
                of_issuer.retain(is_kept);
                !of_issuer.is_empty()
            });
        }
    }
}
