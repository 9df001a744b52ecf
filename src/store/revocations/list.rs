//! Lists revocations for operators.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Serialize;

use super::{ByIssuer, Revocation, Revocations, StoreError, Target};

/// How many revocations of an issuer one log message names.
const MOST_TOLD: usize = 20;

/// An entry of the list: a token or a principal that is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revoked {
    pub issuer: Arc<str>,
    #[serde(flatten)]
    pub what: RevokedWhat,
    pub why: Arc<str>,
    /// RFC 3339.
    pub until: String,
    /// Whether no issuer of the configuration in force has this name, because it was renamed or removed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub meets_nobody: bool,
}

/// The revoked subject or token of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedWhat {
    Subject(Arc<str>),
    TokenId(Arc<str>),
}

impl Revocations {
    /// Returns the tokens and principals that are revoked now, in order, each once and under the current name of its
    /// issuer. Ended sessions are not included. They are read from the store: a copy that is old or was never read would
    /// pass for a complete list.
    pub async fn read_list(&self) -> Result<Vec<Revoked>, StoreError> {
        self.refresh().await?;
        Ok(self.list())
    }

    /// As [`Revocations::read_list`], by the copy.
    pub(super) fn list(&self) -> Vec<Revoked> {
        let now = self.0.clock.now();
        let mirror = self.0.mirror.load();
        let names = self.0.names.load();
        let of = |map: &ByIssuer, what: fn(Arc<str>) -> RevokedWhat| {
            let all = map.iter().flat_map(|(issuer, of_issuer)| of_issuer.iter().map(move |entry| (issuer, entry)));
            let mut list: BTreeMap<(&Arc<str>, &Arc<str>), &Revocation> = BTreeMap::new();
            for (issuer, (id, revocation)) in all.filter(|(_, (_, revocation))| revocation.until > now) {
                let shown = list.entry((names.of(issuer).first().unwrap_or(issuer), id)).or_insert(revocation);
                if shown.until < revocation.until {
                    *shown = revocation;
                }
            }
            let is_in_use = |issuer: &str| names.get(issuer).is_some_and(|known| known.is_in_use);
            // A revocation under a former name of an issuer stays in the store, and its copies apply under the other
            // names. A revocation by another issuer with the same id is not a copy.
            let mut held: HashMap<&Arc<str>, Vec<&Revocation>> = HashMap::new();
            for ((_, id), revocation) in list.iter().filter(|((issuer, _), _)| is_in_use(issuer)) {
                held.entry(id).or_default().push(revocation);
            }
            let holds = |id: &Arc<str>, copy: &Revocation| held.get(id).is_some_and(|held| held.contains(&copy));
            list.iter()
                .map(|((issuer, id), revocation)| (*issuer, *id, *revocation, !is_in_use(issuer)))
                .filter(|(_, id, revocation, meets_nobody)| !meets_nobody || !holds(id, revocation))
                .map(|(issuer, id, revocation, meets_nobody)| Revoked {
                    issuer: Arc::clone(issuer),
                    what: what(Arc::clone(id)),
                    why: Arc::clone(&revocation.reason),
                    until: revocation.until.to_string(),
                    meets_nobody,
                })
                .collect::<Vec<_>>()
        };
        let mut list = of(&mirror.principals, RevokedWhat::Subject);
        list.extend(of(&mirror.tokens, RevokedWhat::TokenId));
        list.sort_by(|a, b| (&a.issuer, &a.what).cmp(&(&b.issuer, &b.what)));
        list
    }

    /// Whether the target is in the list as a revocation without effect.
    pub fn meets_nobody(&self, target: Target<'_>) -> bool {
        let (of, what) = match target {
            Target::Principal { issuer, subject } => (issuer, RevokedWhat::Subject(subject.into())),
            Target::Token { issuer, id } => (issuer, RevokedWhat::TokenId(id.into())),
            Target::Session(_) | Target::Workload(_) => return false,
        };
        self.list().iter().any(|revoked| revoked.meets_nobody && *revoked.issuer == *of && revoked.what == what)
    }

    /// Logs revocations without effect, which an operator may believe to be in force.
    pub(super) fn tell_what_meets_nobody(&self) {
        let mut by_issuer: BTreeMap<Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
        for Revoked { issuer, what, .. } in self.list().into_iter().filter(|revoked| revoked.meets_nobody) {
            let (RevokedWhat::Subject(id) | RevokedWhat::TokenId(id)) = what;
            by_issuer.entry(issuer).or_default().push(id);
        }
        for (issuer, ids) in by_issuer {
            tracing::error!(
                issuer = &*issuer,
                count = ids.len(),
                revoked = ?ids.iter().take(MOST_TOLD).collect::<Vec<_>>(),
                "revocations have no effect, because `issuers` and `webhooks` no longer have an entry with this name; if it was renamed, \
                 revoke again under its current name"
            );
        }
    }
}
