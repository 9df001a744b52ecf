//! Individual RBAC rights, so that they can be compared.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
};

use crate::kubernetes::{PolicyRule, access_review::Access};

/// One verb on one thing. `*` stands for all of a kind, and an empty name for all names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Right {
    Resource { verb: String, group: String, resource: String, name: String },
    Url { verb: String, url: String },
}

/// The beginnings of paths that describe the API server itself.
const DISCOVERY: [&str; 8] = [
    "/api",
    "/healthz",
    "/livez",
    "/readyz",
    "/version",
    "/openapi",
    "/openid/v1/jwks",
    "/.well-known/openid-configuration",
];

impl Right {
    /// The rights that a rule gives.
    pub(super) fn of(rule: &PolicyRule) -> Vec<Self> {
        let all = [String::new()];
        let names = if rule.resource_names.is_empty() { &all[..] } else { &rule.resource_names };
        let mut rights = Vec::new();
        for verb in &rule.verbs {
            for group in &rule.groups {
                for resource in &rule.resources {
                    rights.extend(names.iter().map(|name| Self::Resource {
                        verb: verb.clone(),
                        group: group.clone(),
                        resource: resource.clone(),
                        name: name.clone(),
                    }));
                }
            }
            rights.extend(rule.urls.iter().map(|url| Self::Url { verb: verb.clone(), url: url.clone() }));
        }
        rights
    }

    /// Whether it is among what Kubernetes and Tekton give everybody with a credential of the cluster: discovery,
    /// reviews of one's own rights, and ConfigMaps by name.
    pub(super) fn is_everybodys(&self) -> bool {
        match self {
            Self::Url { verb, url } => verb == "get" && DISCOVERY.iter().any(|start| url.starts_with(start)),
            Self::Resource { verb, group, resource, name } => match group.as_str() {
                "" => verb == "get" && resource == "configmaps" && !name.is_empty(),
                "authentication.k8s.io" | "authorization.k8s.io" => {
                    verb == "create" && resource.starts_with("selfsubject")
                }
                _ => false,
            },
        }
    }

    /// Whether it says what may be done while impersonating, which only the constrained form needs.
    pub(super) fn is_acting(&self) -> bool {
        let (Self::Resource { verb, .. } | Self::Url { verb, .. }) = self;
        verb.starts_with("impersonate-on:")
    }

    /// Whether it includes the other right.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let or_all = |ours: &str, theirs: &str| ours == "*" || ours == theirs;
        match (self, other) {
            (
                Self::Resource { verb, group, resource, name },
                Self::Resource { verb: verb_2, group: group_2, resource: resource_2, name: name_2 },
            ) => {
                or_all(verb, verb_2)
                    && or_all(group, group_2)
                    && or_all(resource, resource_2)
                    && (name.is_empty() || name == name_2)
            }
            (Self::Url { verb, url }, Self::Url { verb: verb_2, url: url_2 }) => {
                let below = url.strip_suffix('*').is_some_and(|start| url_2.starts_with(start));
                or_all(verb, verb_2) && (below || url == url_2)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource { verb, group, resource, name } => {
                write!(f, "{verb} {resource}")?;
                if !group.is_empty() {
                    write!(f, " of {group}")?;
                }
                if name.is_empty() { Ok(()) } else { write!(f, " named {name}") }
            }
            Self::Url { verb, url } => write!(f, "{verb} {url}"),
        }
    }
}

impl From<&Access> for Right {
    fn from(access: &Access) -> Self {
        let Access { verb, group, resource, subresource, name, url, .. } = access;
        if !url.is_empty() {
            return Self::Url { verb: verb.to_string(), url: url.to_string() };
        }
        let sign = if subresource.is_empty() { "" } else { "/" };
        Self::Resource {
            verb: verb.to_string(),
            group: group.to_string(),
            resource: format!("{resource}{sign}{subresource}"),
            name: name.to_string(),
        }
    }
}

/// Rights in which those that include another can be looked up: a policy of thousands of rules gives tens of thousands.
#[derive(Debug, Default)]
pub(super) struct Rights<'a> {
    /// By verb, group, resource and name, how often each was added.
    resources: HashMap<[&'a str; 4], usize>,
    /// There are few of these.
    urls: HashMap<&'a Right, usize>,
}

impl<'a> Rights<'a> {
    pub(super) fn of(rights: impl IntoIterator<Item = &'a Right>) -> Self {
        let mut all = Self::default();
        rights.into_iter().for_each(|right| all.add(right));
        all
    }

    fn add(&mut self, right: &'a Right) {
        match right {
            Right::Resource { verb, group, resource, name } => {
                *self.resources.entry([verb, group, resource, name]).or_default() += 1;
            }
            Right::Url { .. } => *self.urls.entry(right).or_default() += 1,
        }
    }

    /// Removes one that was added.
    fn take(&mut self, right: &'a Right) {
        match right {
            Right::Resource { verb, group, resource, name } => {
                take_one(&mut self.resources, [verb, group, resource, name]);
            }
            Right::Url { .. } => take_one(&mut self.urls, right),
        }
    }

    /// Whether one of them includes a right.
    pub(super) fn include(&self, right: &Right) -> bool {
        match right {
            Right::Resource { verb, group, resource, name } => {
                as_wide([verb, group, resource, name]).any(|right| self.resources.contains_key(&right))
            }
            Right::Url { .. } => self.urls.keys().any(|other| other.covers(right)),
        }
    }

    /// Whether one of them includes a right, and more.
    pub(super) fn include_more_than(&self, right: &Right) -> bool {
        match right {
            Right::Resource { verb, group, resource, name } => {
                let own = [&**verb, group, resource, name];
                as_wide(own).any(|right| right != own && self.resources.contains_key(&right))
            }
            Right::Url { .. } => self.urls.keys().any(|other| other.covers(right) && !right.covers(other)),
        }
    }
}

fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

/// Returns the rights on resources that [`Right::covers`] one: itself, and those with a wildcard in place of any of its
/// parts.
fn as_wide(right: [&str; 4]) -> impl Iterator<Item = [&str; 4]> {
    const ALL: [&str; 4] = ["*", "*", "*", ""];
    (0..1 << right.len()).map(move |parts: u8| {
        let mut wide = right;
        for (part, (all, wide)) in ALL.into_iter().zip(&mut wide).enumerate() {
            if parts & (1 << part) != 0 {
                *wide = all;
            }
        }
        wide
    })
}

/// Removes rules whose rights others give completely.
pub(super) fn without_repeats(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let rights: Vec<Vec<Right>> = rules.iter().map(Right::of).collect();
    let mut given = Rights::of(rights.iter().flatten());
    let mut kept = Vec::new();
    for (rule, own) in rules.into_iter().zip(&rights) {
        own.iter().for_each(|right| given.take(right));
        if !own.iter().all(|right| given.include(right)) {
            own.iter().for_each(|right| given.add(right));
            kept.push(rule);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], group: &str, resources: &[&str], names: &[&str]) -> PolicyRule {
        let resource_names = names.iter().map(|name| (*name).to_owned()).collect();
        let verbs: Vec<String> = verbs.iter().map(|verb| (*verb).to_owned()).collect();
        let resources = resources.iter().map(|resource| (*resource).to_owned()).collect();
        PolicyRule { verbs, groups: vec![group.to_owned()], resources, resource_names, ..PolicyRule::default() }
    }

    fn urls(verbs: &[&str], urls: &[&str]) -> PolicyRule {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        PolicyRule { verbs: owned(verbs), urls: owned(urls), ..PolicyRule::default() }
    }

    /// Rights that include one another in many ways.
    fn rules() -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        for verbs in [&["get"][..], &["*"], &["get", "list"]] {
            for group in ["", "tekton.dev", "*"] {
                for resources in [&["pods"][..], &["*"], &["pods", "pods/log"]] {
                    for names in [&[][..], &["a"], &["a", "b"]] {
                        rules.push(rule(verbs, group, resources, names));
                    }
                }
            }
            for listed in [&["/version"][..], &["/api/*"], &["/api/v1", "/api/**"], &["*"], &["/*", "/version"]] {
                rules.push(urls(verbs, listed));
            }
        }
        rules
    }

    #[test]
    fn rights_that_are_looked_up_include_what_each_of_them_covers() {
        let all: Vec<Right> = rules().iter().flat_map(Right::of).collect();
        for few in all.chunks(3) {
            let rights = Rights::of(few);
            for right in &all {
                let include = few.iter().any(|other| other.covers(right));
                assert_eq!(rights.include(right), include, "{right:?} in {few:?}");
                let more = few.iter().any(|other| other.covers(right) && !right.covers(other));
                assert_eq!(rights.include_more_than(right), more, "{right:?} in {few:?}");
            }
        }
    }

    /// Compared pairwise, a policy of 2,000 rules took minutes at each start.
    #[test]
    fn rules_that_repeat_others_are_left_out_as_by_holding_each_against_all_others() {
        let slowly = |mut kept: Vec<PolicyRule>| {
            let mut index = 0;
            while let Some(rule) = kept.get(index) {
                let others = kept.iter().enumerate().filter(|(other, _)| *other != index);
                let given: Vec<Right> = others.flat_map(|(_, other)| Right::of(other)).collect();
                if Right::of(rule).iter().all(|right| given.iter().any(|given| given.covers(right))) {
                    kept.remove(index);
                } else {
                    index += 1;
                }
            }
            kept
        };
        let all = rules();
        for step in 1..20 {
            for from in 0..5 {
                let some: Vec<PolicyRule> = all.iter().skip(from).step_by(step).chain(all.get(from)).cloned().collect();
                assert_eq!(without_repeats(some.clone()), slowly(some), "{step} {from}");
            }
        }
    }
}
