//! The copy of the revocations in memory.

use std::{collections::HashMap, sync::Arc};

use rpds::HashTrieMapSync;

use super::{
    Revocation, Target,
    record::{Record, What},
};
use crate::clock::Timestamp;

/// By name. A copy shares with the one before it what has not changed, so that a change costs about as much among a hundred thousand as
/// among a hundred.
type ByName = HashTrieMapSync<Arc<str>, Revocation>;

/// All that is revoked. Whoever asks has one that stays as it is; it is changed by putting another in its place, which shares with it
/// what has not changed.
#[derive(Clone, Default)]
pub(super) struct Mirror {
    pub(super) sessions: ByName,
    pub(super) tokens: ByIssuer,
    pub(super) principals: ByIssuer,
    pub(super) workloads: ByName,
}

/// Issuers are few.
pub(super) type ByIssuer = HashMap<Arc<str>, ByName>;

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
            What::Session { id } => self.sessions.insert_mut(id, revocation),
            What::Token { issuer, id } => self.tokens.entry(issuer).or_default().insert_mut(id, revocation),
            What::Principal { issuer, subject } => {
                self.principals.entry(issuer).or_default().insert_mut(subject, revocation);
            }
            What::Workload { uid } => self.workloads.insert_mut(uid, revocation),
        }
    }

    /// Takes out what is not kept any more.
    pub(super) fn forget(&mut self, now: Timestamp) {
        forget(&mut self.sessions, now);
        forget(&mut self.workloads, now);
        for map in [&mut self.tokens, &mut self.principals] {
            map.retain(|_, of_issuer| {
                forget(of_issuer, now);
                !of_issuer.is_empty()
            });
        }
    }
}

fn forget(map: &mut ByName, now: Timestamp) {
    let over = map.iter().filter(|(_, revocation)| revocation.kept <= now);
    let over: Vec<Arc<str>> = over.map(|(name, _)| Arc::clone(name)).collect();
    for name in over {
        map.remove_mut(&name);
    }
}
