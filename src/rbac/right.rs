//! Rights of RBAC, one by one, so that they can be compared.

use std::fmt;

use crate::kubernetes::{PolicyRule, access_review::Access};

/// One verb on one thing. `*` is all of a kind, and an empty name all names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    Resource { verb: String, group: String, resource: String, name: String },
    Url { verb: String, url: String },
}

/// What addresses begin with that tell of the API server itself.
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

    /// Whether it is no more than Kubernetes and Tekton give everybody who has a credential of the cluster: discovery, what tells
    /// somebody of themselves, and ConfigMaps by their names.
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

    /// Whether what this allows includes the other.
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

/// Leaves out rules of which others give everything.
pub(super) fn without_repeats(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut kept = rules;
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
}
