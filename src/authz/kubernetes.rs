//! The condition on the attributes of a Kubernetes request.

use std::fmt::Write as _;

use crate::{
    config::{
        raw,
        report::{At, Report, nearest},
    },
    kubernetes::Attributes,
    request::path::check_canonical,
};

use super::{
    condition::{Reading, joined},
    names::{Names, Prefix},
    resources,
};

const VERBS: [&str; 15] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "proxy",
    "read",
    "write",
    "*",
    // For non-resource paths: the method in lower case.
    "post",
    "put",
    "head",
];

/// The verbs of requests that may be about all namespaces.
const OF_ALL_NAMESPACES: [&str; 3] = ["list", "watch", "deletecollection"];

/// The verbs of requests that may name no object.
const OF_NO_NAME: [&str; 4] = ["list", "watch", "deletecollection", "create"];

/// Cluster-scoped resources of Tekton, of the API groups that come with the API server, and of its metrics. A list of
/// these is about no namespace; a list of any other resource without a namespace is about all of them.
const CLUSTER_SCOPED: [(&str, &str); 37] = [
    ("", "namespaces"),
    ("", "nodes"),
    ("", "persistentvolumes"),
    ("", "componentstatuses"),
    // Older Dashboards list them at startup.
    ("tekton.dev", "clustertasks"),
    ("triggers.tekton.dev", "clusterinterceptors"),
    ("triggers.tekton.dev", "clustertriggerbindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "csidrivers"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("networking.k8s.io", "ingressclasses"),
    ("networking.k8s.io", "ipaddresses"),
    ("networking.k8s.io", "servicecidrs"),
    ("node.k8s.io", "runtimeclasses"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    ("certificates.k8s.io", "clustertrustbundles"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas"),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "devicetaintrules"),
    ("resource.k8s.io", "resourceslices"),
    ("internal.apiserver.k8s.io", "storageversions"),
    ("storagemigration.k8s.io", "storageversionmigrations"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("apiregistration.k8s.io", "apiservices"),
    // `kubectl top nodes`.
    ("metrics.k8s.io", "nodes"),
];

/// The condition of a rule on attributes.
#[derive(Debug, Default)]
pub(super) struct Kubernetes {
    /// Verbs by name. Here and in the following lists, empty means all.
    verbs: Names,
    /// Whether `read` and `write` are among the verbs.
    read: bool,
    write: bool,
    /// Whether any condition is on something that only resources have.
    about_resources: bool,
    api_groups: Names,
    resources: Box<[Resource]>,
    namespaces: Names,
    names: Names,
    urls: Box<[Prefix]>,
}

/// A pattern of a resource and its sub-resource.
#[derive(Debug)]
pub(super) enum Resource {
    All,
    /// `*/sub`
    Sub(Box<str>),
    /// `pods/*`: with any sub-resource.
    WithAnySub(Box<str>),
    /// `pods`, `pods/log`
    Exact(Box<str>, Box<str>),
}

impl Resource {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const PATTERNS: &str = "may be a resource, `resource/subresource`, `*`, `*/subresource` or `resource/*`";
        let (resource, sub) = text.split_once('/').unwrap_or((text, ""));
        let plain = |part: &str| !part.is_empty() && !part.contains(['*', '/']);
        match (resource, sub) {
            ("*", "") if text == "*" => Ok(Self::All),
            ("*", sub) if plain(sub) => Ok(Self::Sub(sub.into())),
            (resource, "*") if plain(resource) => Ok(Self::WithAnySub(resource.into())),
            (resource, sub) if plain(resource) && (plain(sub) || text == resource) => {
                Ok(Self::Exact(resource.into(), sub.into()))
            }
            _ => Err(PATTERNS),
        }
    }

    fn matches(&self, resource: &str, sub: &str) -> bool {
        match self {
            Self::All => true,
            Self::Sub(own) => **own == *sub,
            Self::WithAnySub(own) => **own == *resource && !sub.is_empty(),
            Self::Exact(own, own_sub) => **own == *resource && **own_sub == *sub,
        }
    }

    /// Whether the pattern matches by name, not by a wildcard in that place. Without a sub-resource, only the resource
    /// must be named.
    pub(super) fn names(&self, resource: &str, sub: &str) -> bool {
        match self {
            Self::All | Self::WithAnySub(_) => false,
            Self::Sub(own) => **own == *sub,
            Self::Exact(own, own_sub) => **own == *resource && (sub.is_empty() || **own_sub == *sub),
        }
    }
}

impl Kubernetes {
    pub(super) fn compile(raw: &raw::OnKubernetes, at: &At, report: &mut Report) -> Self {
        for (i, verb) in raw.verbs.iter().enumerate().filter(|(_, verb)| !VERBS.contains(&verb.as_str())) {
            let at = at.key("verbs").index(i);
            match nearest(&verb.to_ascii_lowercase(), VERBS) {
                Some(near) => {
                    report.error(&at, format!("there is no verb `{verb}`")).help(format!("did you mean `{near}`?"))
                }
                None => report.error(&at, format!("there is no verb `{verb}`")).help(
                    "known: get, list, watch, create, update, patch, delete, deletecollection, proxy, read, write",
                ),
            };
        }
        for (key, list) in [("namespaces", &raw.namespaces), ("names", &raw.names), ("api_groups", &raw.api_groups)] {
            for (i, text) in list.iter().enumerate() {
                let at = at.key(key).index(i);
                if text.contains('*') && text != "*" {
                    report
                        .error(&at, format!("`{text}` is not a name"))
                        .help("names are compared exactly; only `*` alone is a wildcard");
                } else if text.is_empty() && key != "api_groups" {
                    report.error(&at, "an empty name matches nothing");
                } else if key == "namespaces" && text != "*" {
                    resources::check_namespace(text, &at, report);
                } else if key == "api_groups" {
                    resources::check_group(text, &at, report);
                }
            }
        }
        let mut parsed = Vec::new();
        for (i, text) in raw.resources.iter().enumerate() {
            let at = at.key("resources").index(i);
            match Resource::parse(text) {
                Ok(resource) => {
                    resources::check_resource(text, &raw.api_groups, &at, report);
                    parsed.push(resource);
                }
                Err(why) => {
                    report.error(&at, format!("`{text}` {why}"));
                }
            }
        }
        let mut urls = Vec::new();
        for (i, text) in raw.non_resource_urls.iter().enumerate() {
            let at = at.key("non_resource_urls").index(i);
            match Prefix::parse(text) {
                Ok(prefix) if text == "*" => urls.push(prefix),
                Ok(prefix) => match check_canonical(&text.replace('*', "a")) {
                    Ok(()) => urls.push(prefix),
                    Err(why) => {
                        report.error(&at, format!("`{text}` is not a path that a request can have")).help(why.fix());
                    }
                },
                Err(why) => {
                    report.error(&at, format!("`{text}` {why}"));
                }
            }
        }
        let has = |verb: &str| raw.verbs.iter().any(|own| own == verb);
        let named: Vec<String> = raw.verbs.iter().filter(|verb| *verb != "read" && *verb != "write").cloned().collect();
        Self {
            verbs: if has("*") { Names::default() } else { Names::new(&named) },
            read: has("read") && !has("*"),
            write: has("write") && !has("*"),
            about_resources: !(raw.api_groups.is_empty()
                && raw.resources.is_empty()
                && raw.namespaces.is_empty()
                && raw.names.is_empty()),
            api_groups: unless_all(&raw.api_groups),
            resources: parsed.into(),
            namespaces: unless_all(&raw.namespaces),
            names: unless_all(&raw.names),
            urls: urls.into(),
        }
    }

    pub(super) fn matches(&self, a: &Attributes, reading: Reading) -> bool {
        if !self.verb(a, reading) {
            return false;
        }
        if !a.is_resource {
            return match self.urls.is_empty() {
                true => !self.about_resources,
                false => self.urls.iter().any(|url| url.matches(&a.path)),
            };
        }
        (self.about_resources || self.urls.is_empty())
            && all_or(&self.api_groups, &a.api_group)
            && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(&a.resource, &a.subresource)))
            && namespaces(&self.namespaces, a, reading)
            && self.name(a, reading)
    }

    /// Whether a request about all namespaces can meet it.
    pub(super) fn can_be_about_all_namespaces(&self, reading: Reading) -> bool {
        let is_scoped = |resource: &str| {
            CLUSTER_SCOPED.iter().any(|&(group, known)| known == resource && all_or(&self.api_groups, group))
        };
        let may_be_any = self.namespaces.is_empty() || reading == Reading::Wide;
        may_be_any && self.can_be_whole(&OF_ALL_NAMESPACES, reading, |resource| !is_scoped(resource))
    }

    /// Whether a request that names no object can meet it. If it names some itself, it says what is meant.
    pub(super) fn can_name_no_object(&self, reading: Reading) -> bool {
        self.names.is_empty() && self.can_be_whole(&OF_NO_NAME, reading, |_| true)
    }

    /// Whether a request with one of these verbs for a resource itself, without a sub-resource, can meet it.
    fn can_be_whole(&self, verbs: &[&str], reading: Reading, is_meant: impl Fn(&str) -> bool) -> bool {
        let asked = |verb: &str| Attributes { is_resource: true, verb: verb.to_owned(), ..Attributes::default() };
        let is_whole = |resource: &Resource| match resource {
            Resource::All => true,
            Resource::Sub(_) | Resource::WithAnySub(_) => false,
            Resource::Exact(resource, sub) => sub.is_empty() && is_meant(resource),
        };
        (self.about_resources || self.urls.is_empty())
            && (self.resources.is_empty() || self.resources.iter().any(is_whole))
            && verbs.iter().any(|verb| self.verb(&asked(verb), reading))
    }

    /// For a deny, a request that names no object may be about any, and a proxied request is about the object that it
    /// is proxied to.
    fn name(&self, a: &Attributes, reading: Reading) -> bool {
        let is_passed_on = || a.is_proxy() && self.names.contains(proxied(&a.name));
        all_or(&self.names, &a.name) || (reading == Reading::Wide && (a.name.is_empty() || is_passed_on()))
    }

    fn verb(&self, a: &Attributes, reading: Reading) -> bool {
        let verbs = &self.verbs;
        if verbs.is_empty() && !self.read && !self.write {
            return true;
        }
        if (self.read || self.write) && (if a.is_write() { self.write } else { self.read }) {
            return true;
        }
        // Deleting a collection deletes each object in it.
        let deletes = a.verb == "deletecollection" && verbs.contains("delete");
        // For a non-resource path the verb is the method, and HEAD reveals what GET would return.
        let looks = a.verb == "head" && verbs.contains("get");
        if reading == Reading::Wide && (deletes || looks || verbs.contains(&a.verb)) {
            return true;
        }
        // A tunnel that a GET opens is authorised as `create` by the API server too, from 1.35 on.
        let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
        verbs.contains(if a.is_tunnel() && reads { "create" } else { &a.verb })
    }

    /// The attributes that it asks for, on one line.
    pub(super) fn needs(&self) -> String {
        let mut text = String::new();
        let mut part = |name: &str, list: String| {
            if !list.is_empty() {
                let _ = write!(text, "{}{name} {list}", if text.is_empty() { "" } else { "; " });
            }
        };
        let groups = [("read", self.read), ("write", self.write)];
        let verbs = groups.iter().filter_map(|(name, is_set)| is_set.then_some(*name));
        part("verb", verbs.chain(self.verbs.iter().map(|verb| &**verb)).collect::<Vec<_>>().join(", "));
        part(
            "group",
            self.api_groups.iter().map(|g| if g.is_empty() { "\"\"" } else { g }).collect::<Vec<_>>().join(", "),
        );
        part("resource", joined(&self.resources));
        part("namespace", self.namespaces.to_string());
        part("name", self.names.to_string());
        part("path", joined(&self.urls));
        if text.is_empty() { "a Kubernetes request".to_owned() } else { text }
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Sub(sub) => write!(f, "*/{sub}"),
            Self::WithAnySub(resource) => write!(f, "{resource}/*"),
            Self::Exact(resource, sub) if sub.is_empty() => f.write_str(resource),
            Self::Exact(resource, sub) => write!(f, "{resource}/{sub}"),
        }
    }
}

/// The names, or an empty list if `*` is among them.
fn unless_all(names: &[String]) -> Names {
    if names.iter().any(|name| name == "*") { Names::default() } else { Names::new(names) }
}

fn all_or(names: &Names, name: &str) -> bool {
    names.is_empty() || names.contains(name)
}

/// Whether a request is about all namespaces, and thus about each of them.
pub(super) fn is_about_all_namespaces(a: &Attributes) -> bool {
    a.is_resource
        && a.namespace.is_empty()
        && OF_ALL_NAMESPACES.contains(&a.verb.as_str())
        && !CLUSTER_SCOPED.contains(&(&a.api_group, &a.resource))
}

/// A request about all namespaces reaches into each, so a deny of one namespace matches it, as it does a list that names
/// the Namespace by a field selector.
pub(super) fn namespaces(names: &Names, a: &Attributes, reading: Reading) -> bool {
    let is_selected = || a.api_group.is_empty() && a.resource == "namespaces" && names.contains(&a.name);
    all_or(names, &a.namespace) || (reading == Reading::Wide && (is_about_all_namespaces(a) || is_selected()))
}

/// The object that a request is proxied to: `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT` (`SplitSchemeNamePort` of
/// `k8s.io/apimachinery`).
fn proxied(name: &str) -> &str {
    let Some((first, rest)) = name.split_once(':') else { return name };
    rest.split_once(':').map_or(first, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(yaml: &str, method: &str, target: &str, reading: Reading) -> bool {
        let raw: raw::OnKubernetes = serde_saphyr::from_str(yaml).unwrap();
        let mut report = Report::default();
        let condition = Kubernetes::compile(&raw, &At::root(), &mut report);
        assert!(!report.has_errors(), "{:?}", report.problems());
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        condition.matches(&Attributes::parse(&method.parse().unwrap(), path, query).unwrap(), reading)
    }

    #[test]
    fn attributes_match_as_an_author_of_roles_expects() {
        const POD: &str = "/api/v1/namespaces/a/pods/p";
        for (row, yaml, method, target, strict, wide) in [
            ("", "{verbs: [get], resources: [pods]}", "GET", POD, true, true),
            ("", "{verbs: [get], resources: [pods]}", "DELETE", POD, false, false),
            ("", "{resources: [pods]}", "GET", "/api/v1/namespaces/a/pods/p/log", false, false),
            ("", "{resources: [pods/log]}", "GET", "/api/v1/namespaces/a/pods/p/log", true, true),
            ("", "{resources: ['*/log']}", "GET", "/api/v1/namespaces/a/pods/p/log", true, true),
            ("", "{resources: ['pods/*']}", "GET", "/api/v1/namespaces/a/pods/p/log", true, true),
            ("", "{resources: ['pods/*']}", "GET", POD, false, false),
            ("", "{api_groups: [tekton.dev]}", "GET", POD, false, false),
            ("", "{api_groups: ['']}", "GET", POD, true, true),
            ("", "{verbs: [read]}", "GET", POD, true, true),
            ("", "{verbs: [read]}", "PUT", POD, false, false),
            ("", "{verbs: [write]}", "PUT", POD, true, true),
            ("", "{verbs: [delete], resources: [pods]}", "DELETE", "/api/v1/namespaces/a/pods", false, true),
            ("", "{verbs: [deletecollection], resources: [pods]}", "DELETE", POD, false, false),
            // A tunnel is a write, whatever the method.
            ("kubernetes:1.5", "{verbs: [get, list, watch]}", "GET", "/api/v1/namespaces/a/pods/p/exec", false, true),
            ("kubernetes:1.5", "{verbs: [read]}", "GET", "/api/v1/namespaces/a/pods/p/attach", false, false),
            ("kubernetes:1.5", "{verbs: [write]}", "GET", "/api/v1/namespaces/a/pods/p/exec", true, true),
            ("kubernetes:1.5", "{verbs: [create]}", "GET", "/api/v1/namespaces/a/pods/p/portforward", true, true),
            // A list over all namespaces reaches into each; a list of nodes does not.
            ("", "{namespaces: [prod]}", "GET", "/api/v1/secrets", false, true),
            ("", "{namespaces: [prod]}", "GET", "/api/v1/nodes", false, false),
            ("", "{namespaces: [prod]}", "GET", "/apis/triggers.tekton.dev/v1alpha1/clusterinterceptors", false, false),
            (
                "",
                "{namespaces: [prod]}",
                "GET",
                "/apis/triggers.tekton.dev/v1beta1/clustertriggerbindings",
                false,
                false,
            ),
            ("", "{namespaces: [prod]}", "GET", "/apis/triggers.tekton.dev/v1beta1/triggerbindings", false, true),
            ("", "{namespaces: [prod]}", "GET", "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas", false, false),
            ("", "{namespaces: [prod]}", "GET", "/apis/tekton.dev/v1beta1/clustertasks", false, false),
            ("", "{namespaces: [prod]}", "GET", "/apis/metrics.k8s.io/v1beta1/nodes", false, false),
            ("", "{namespaces: [prod]}", "GET", "/apis/metrics.k8s.io/v1beta1/pods", false, true),
            ("", "{namespaces: [prod]}", "GET", "/apis/other.example/v1/clusterinterceptors", false, true),
            ("", "{namespaces: [prod]}", "GET", "/api/v1/namespaces/dev/secrets", false, false),
            ("", "{namespaces: [prod]}", "GET", "/api/v1/namespaces/prod", true, true),
            // The same object, which a deny of `prod` did not hide in a list of it alone.
            ("", "{namespaces: [prod]}", "GET", "/api/v1/namespaces?fieldSelector=metadata.name%3Dprod", false, true),
            (
                "",
                "{namespaces: [prod]}",
                "GET",
                "/api/v1/namespaces?fieldSelector=metadata.name=prod&watch=1",
                false,
                true,
            ),
            ("", "{namespaces: [prod]}", "GET", "/api/v1/namespaces?fieldSelector=metadata.name=dev", false, false),
            ("", "{namespaces: [prod]}", "GET", "/api/v1/nodes?fieldSelector=metadata.name=prod", false, false),
            ("", "{namespaces: [prod]}", "GET", "/api/v1/namespaces", false, false),
            ("", "{names: [p]}", "GET", "/api/v1/namespaces/a/pods", false, true),
            ("kubernetes:P4", "{names: [p]}", "GET", "/api/v1/pods?fieldSelector=metadata.name=p", true, true),
            ("kubernetes:P4", "{names: [p]}", "GET", "/api/v1/pods?fieldSelector=metadata.name=q", false, false),
            ("", "{names: [p]}", "GET", "/version", false, false),
            ("", "{non_resource_urls: [/version, '/openapi/*']}", "GET", "/openapi/v3", true, true),
            ("", "{non_resource_urls: [/version]}", "GET", POD, false, false),
            ("", "{non_resource_urls: [/version], resources: [pods]}", "GET", POD, true, true),
            ("", "{verbs: [read]}", "GET", "/version", true, true),
            // HEAD evaded a deny of `get`.
            ("", "{verbs: [get], non_resource_urls: [/version]}", "HEAD", "/version", false, true),
            ("", "{verbs: [update], non_resource_urls: [/version]}", "HEAD", "/version", false, false),
            ("", "{verbs: [get], resources: [pods]}", "HEAD", POD, true, true),
        ] {
            assert_eq!(matches(yaml, method, target, Reading::Strict), strict, "{row} strict {yaml} {method} {target}");
            assert_eq!(matches(yaml, method, target, Reading::Wide), wide, "{row} wide {yaml} {method} {target}");
        }
    }

    /// The API server removes scheme and port from the name, so writing them would evade a deny of the name.
    #[test]
    fn a_deny_of_a_name_holds_for_proxying_by_scheme_and_port() {
        const DENY: &str = "{names: [vault]}";
        for (target, strict, wide) in [
            ("/api/v1/namespaces/a/services/vault/proxy/", true, true),
            ("/api/v1/namespaces/a/services/vault:8200/proxy/", false, true),
            ("/api/v1/namespaces/a/services/vault:http/proxy/", false, true),
            ("/api/v1/namespaces/a/services/https:vault:8200/proxy/", false, true),
            ("/api/v1/namespaces/a/services/http:vault:/proxy/", false, true),
            ("/api/v1/namespaces/a/services/:vault:8200/proxy/", false, true),
            ("/api/v1/namespaces/a/services/https%3Avault%3A8200/proxy/", false, true),
            ("/api/v1/namespaces/a/pods/https:vault:8200/proxy/", false, true),
            ("/api/v1/nodes/vault:10250/proxy/exec", false, true),
            ("/api/v1/proxy/namespaces/a/services/vault:8200", false, true),
            ("/api/v1/namespaces/a/services/https:other:vault/proxy/", false, false),
            ("/api/v1/namespaces/a/services/other:vault/proxy/", false, false),
            ("/api/v1/namespaces/a/services/vault:8200", false, false),
        ] {
            assert_eq!(matches(DENY, "GET", target, Reading::Strict), strict, "strict {target}");
            assert_eq!(matches(DENY, "GET", target, Reading::Wide), wide, "wide {target}");
        }
        let with_port = "/api/v1/namespaces/a/services/vault:8200/proxy/";
        assert!(
            matches("{names: ['vault:8200']}", "GET", with_port, Reading::Strict),
            "as a role of Kubernetes has it"
        );
    }

    #[test]
    fn conditions_that_could_never_match_are_refused() {
        for yaml in [
            "{verbs: [raed]}",
            "{resources: ['pods*']}",
            "{resources: ['pods/log/x']}",
            "{resources: ['*/*']}",
            "{namespaces: ['team-*']}",
            "{names: ['']}",
            "{non_resource_urls: [version]}",
            "{non_resource_urls: ['/openapi/v2/../*']}",
            "{non_resource_urls: [/größe]}",
        ] {
            let mut report = Report::default();
            Kubernetes::compile(&serde_saphyr::from_str(yaml).unwrap(), &At::root(), &mut report);
            assert!(report.has_errors(), "{yaml}");
        }
        assert!(serde_saphyr::from_str::<raw::OnKubernetes>("{verbs: []}").is_err());
    }
}
