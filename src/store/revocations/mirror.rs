//! The copy of the revocations in memory.

use std::{collections::HashMap, sync::Arc};

use rpds::HashTrieMapSync;

use super::{
    Revocation, Target,
    record::{Record, What},
};
use crate::clock::Timestamp;

/// Revocations by name. A persistent map: a changed version shares the unchanged parts with the previous one, so that a
/// change costs about as much with a hundred thousand entries as with a hundred.
type ByName = HashTrieMapSync<Arc<str>, Revocation>;

/// All revocations. Readers hold an immutable version; a change replaces it by another version, which shares the
/// unchanged parts.
#[derive(Clone, Default)]
pub(super) struct Mirror {
    pub(super) sessions: ByName,
    pub(super) tokens: ByIssuer,
    pub(super) principals: ByIssuer,
    pub(super) workloads: ByName,
}

/// Revocations by issuer and name. There are few issuers.
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

    /// Returns all revocations.
    pub(super) fn all(&self) -> impl Iterator<Item = (Target<'_>, &Revocation)> {
        let principals =
            by_issuer(&self.principals).map(|(issuer, subject, found)| (Target::Principal { issuer, subject }, found));
        let tokens = by_issuer(&self.tokens).map(|(issuer, id, found)| (Target::Token { issuer, id }, found));
        let sessions = self.sessions.iter().map(|(id, found)| (Target::Session(id), found));
        let workloads = self.workloads.iter().map(|(uid, found)| (Target::Workload(uid), found));
        principals.chain(tokens).chain(sessions).chain(workloads)
    }

    /// Removes a revocation, unless it was replaced by one that is stored for longer.
    pub(super) fn forget(&mut self, target: Target<'_>, now: Timestamp) {
        if self.get(target).is_none_or(|known| known.kept > now) {
            return;
        }
        match target {
            Target::Session(id) => {
                self.sessions.remove_mut(id);
            }
            Target::Token { issuer, id } => remove(&mut self.tokens, issuer, id),
            Target::Principal { issuer, subject } => remove(&mut self.principals, issuer, subject),
            Target::Workload(uid) => {
                self.workloads.remove_mut(uid);
            }
        }
    }
}

fn by_issuer(map: &ByIssuer) -> impl Iterator<Item = (&str, &str, &Revocation)> {
    map.iter().flat_map(|(issuer, of_issuer)| of_issuer.iter().map(move |(name, found)| (&**issuer, &**name, found)))
}

fn remove(map: &mut ByIssuer, issuer: &str, name: &str) {
    let Some(of_issuer) = map.get_mut(issuer) else { return };
    of_issuer.remove_mut(name);
    if of_issuer.is_empty() {
        map.remove(issuer);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_removed_revocation_is_forgotten_unless_there_is_a_later_one() {
        let now = Timestamp::from_secs(1_700_000_000);
        let learn = |mirror: &mut Mirror, target: Target<'_>, kept: Timestamp| {
            let revocation = Revocation { reason: "left".into(), until: kept, kept };
            let (record, kept) = Record::of(What::from(target), revocation);
            mirror.learn(record, kept);
        };
        let (issuer, later) = ("corp", now + Duration::from_secs(1));
        let (bob, token) = (Target::Principal { issuer, subject: "bob" }, Target::Token { issuer, id: "t" });
        let mut mirror = Mirror::default();
        for target in [bob, token, Target::Session("s"), Target::Workload("w")] {
            learn(&mut mirror, target, now);
        }
        let before = mirror.clone();
        let over: Vec<Target<'_>> = before.all().map(|(target, _)| target).collect();
        assert_eq!(over.len(), 4);
        // Revoked again after the search.
        learn(&mut mirror, bob, later);
        over.iter().for_each(|target| mirror.forget(*target, now));
        assert_eq!(mirror.all().map(|(target, _)| target).collect::<Vec<_>>(), [bob]);
        mirror.forget(bob, later);
        assert!(mirror.is_empty());
    }
}
