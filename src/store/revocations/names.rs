//! The names of an issuer. A revocation holds under all of them, whatever the current configuration calls the issuer.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Mirror, Revocation, Target};

/// An issuer of a configuration. Issuers without an identifier, such as a sender of webhooks, use their name as one.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: Arc<str>,
    pub identifier: Arc<str>,
}

/// The known issuers, by each of their names.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Arc<str>, Arc<Known>>);

#[derive(Debug)]
pub(super) struct Known {
    identifier: Arc<str>,
    /// The current name, the identifier, then former names.
    pub(super) names: Vec<Arc<str>>,
    /// Whether it is in the configuration in force.
    pub(super) is_in_use: bool,
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<&Known> {
        self.0.get(name).map(|known| &**known)
    }

    /// Returns all names of the issuer with this name.
    pub(super) fn of(&self, name: &str) -> &[Arc<str>] {
        self.get(name).map_or(&[], |known| &known.names)
    }

    /// Returns the names for the next configuration. Former names stay valid, for open streams, unless another issuer
    /// has one of them now, whose subjects it would affect.
    pub(super) fn followed_by(&self, issuers: &[Named]) -> Self {
        let taken: HashSet<&str> = issuers.iter().flat_map(|issuer| [&*issuer.name, &*issuer.identifier]).collect();
        let is_free = |name: &&Arc<str>| !taken.contains(&***name);
        let mut next = Self::default();
        for Named { name, identifier } in issuers {
            let mut names = vec![Arc::clone(name)];
            names.extend((name != identifier).then(|| Arc::clone(identifier)));
            names.extend(self.of(identifier).iter().filter(is_free).cloned());
            next.add(Known { identifier: Arc::clone(identifier), names, is_in_use: true });
        }
        let gone = self.0.iter().filter(|(name, known)| **name == known.identifier && !taken.contains(&***name));
        for (_, known) in gone {
            let names = known.names.iter().filter(is_free).cloned().collect();
            next.add(Known { identifier: Arc::clone(&known.identifier), names, is_in_use: false });
        }
        next
    }

    fn add(&mut self, known: Known) {
        let known = Arc::new(known);
        for name in &known.names {
            self.0.entry(Arc::clone(name)).or_insert_with(|| Arc::clone(&known));
        }
    }
}

impl Mirror {
    /// Returns the target under each name that no issuer has any more and that has the same revocation as a current
    /// name: that is a copy, and would apply again if the name came back.
    pub(super) fn by_former_names<'a>(&'a self, target: Target<'a>, names: &Names) -> Vec<Target<'a>> {
        let (map, own, id) = match target {
            Target::Token { issuer, id } => (&self.tokens, issuer, id),
            Target::Principal { issuer, subject } => (&self.principals, issuer, subject),
            Target::Session(_) | Target::Workload(_) => return Vec::new(),
        };
        let known = names.of(own);
        let of_now: Vec<&Revocation> = std::iter::once(own)
            .chain(known.iter().map(|name| &**name))
            .filter_map(|name| map.get(name).and_then(|of_issuer| of_issuer.get(id)))
            .collect();
        let is_former = |issuer: &Arc<str>| {
            **issuer != *own && !known.contains(issuer) && names.get(issuer).is_none_or(|known| !known.is_in_use)
        };
        map.iter()
            .filter(|(issuer, of_issuer)| {
                is_former(issuer) && of_issuer.get(id).is_some_and(|revocation| of_now.contains(&revocation))
            })
            .map(|(issuer, _)| match target {
                Target::Token { .. } => Target::Token { issuer, id },
                _ => Target::Principal { issuer, subject: id },
            })
            .collect()
    }
}
