//! The endpoints of the Tekton Dashboard's own back end besides its files, and who may use them. Everything else that
//! its pages request goes to the API server, under the person's identity.
//!
//! The contract is `pkg/router` and `pkg/endpoints` of the Dashboard.

mod properties;

use std::sync::Arc;

use http::Method;

use crate::{
    error::{Reason, Rejection},
    kubernetes::Attributes,
};

pub use self::properties::{MAX_PROPERTIES, Sight, rewrite};

/// An endpoint of the back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Files, the same for everybody.
    File,
    /// The features that pages may offer: `/v1/properties`.
    Properties,
    /// A log from outside the cluster, which the back end fetches for anybody:
    /// `/v1/logs-proxy/NAMESPACE/POD/CONTAINER`.
    ExternalLog { namespace: Arc<str>, pod: Arc<str> },
}

impl Page {
    /// Parses a canonical path, in which no letter or slash is escaped. Refuses paths that are neither files nor known,
    /// as a later Dashboard may do anything with them.
    pub fn of(path: &str) -> Result<Self, Rejection> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match segments.as_slice() {
            ["v1", "properties"] => Ok(Self::Properties),
            ["v1", "logs-proxy", namespace, pod, container] => {
                if is_label(namespace) && is_subdomain(pod) && is_label(container) {
                    Ok(Self::ExternalLog { namespace: (*namespace).into(), pod: (*pod).into() })
                } else {
                    Err(Rejection::new(Reason::BadRequest, "this is not the path of a log")
                        .fix("request /v1/logs-proxy/NAMESPACE/POD/CONTAINER, with valid Kubernetes names"))
                }
            }
            ["api" | "apis" | "v1", ..] => {
                Err(Rejection::new(Reason::RouteNotFound, "the Dashboard has no such endpoint"))
            }
            _ => Ok(Self::File),
        }
    }

    /// Determines the endpoint of a request. With its own rights the back end may only be read, as it would do anything
    /// else for anybody. `knows_api`: whether the route names the API server, which is asked what a person may see.
    pub fn asked(method: &Method, path: &str, knows_api: bool) -> Result<Self, Rejection> {
        let page = Self::of(path);
        if !knows_api {
            return match page {
                _ if path.starts_with("/v1/logs-proxy") => Err(Rejection::new(
                    Reason::PolicyDenied,
                    "Doorward cannot check who may read this log, as the route names no API server",
                )
                .fix("name the API server's upstream in `kubernetes` of the route")),
                _ => Ok(Self::File),
            };
        }
        if !method.is_safe() {
            return Err(Rejection::method_not_allowed(
                "GET, HEAD",
                "the Dashboard's back end is read with GET and HEAD only",
            ));
        }
        page
    }

    /// The equivalent request to Kubernetes, which policy and RBAC decide.
    pub fn attributes(&self, path: &str) -> Option<Attributes> {
        match self {
            Self::ExternalLog { namespace, pod } => Some(Attributes {
                is_resource: true,
                verb: "get".to_owned(),
                api_version: "v1".to_owned(),
                namespace: namespace.as_ref().to_owned(),
                resource: "pods".to_owned(),
                subresource: "log".to_owned(),
                name: pod.as_ref().to_owned(),
                path: path.to_owned(),
                ..Attributes::default()
            }),
            Self::File | Self::Properties => None,
        }
    }
}

/// Whether a name is a DNS label (RFC 1123), as names of namespaces and containers are.
fn is_label(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(is_inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether a name consists of labels with dots between them, as names of pods do.
pub(crate) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_names_are_a_log() {
        let log = Page::of("/v1/logs-proxy/team-a/build-1.x/step-build").unwrap();
        assert_eq!(log, Page::ExternalLog { namespace: "team-a".into(), pod: "build-1.x".into() });
        let attributes = log.attributes("/v1/logs-proxy/team-a/build-1.x/step-build").unwrap();
        assert_eq!((&*attributes.verb, &*attributes.resource, &*attributes.subresource), ("get", "pods", "log"));
        assert!(!attributes.is_write() && !attributes.is_long_running());
        for path in [
            "/v1/logs-proxy/",
            "/v1/logs-proxy",
            "/v1/logs-proxy/a/b",
            "/v1/logs-proxy/a/b/c/",
            "/v1/logs-proxy/a/b/c/d",
            "/v1/logs-proxy/a//c",
            "/v1/logs-proxy/%2E%2E/%2E%2E/version",
            "/v1/logs-proxy/a/..%2Fb/c",
            "/v1/logs-proxy/a/%C3%A4/c",
            "/v1/logs-proxy/A/b/c",
            "/v1/logs-proxy/-a/b/c",
            "/v1/logs-proxy/a/b..c/c",
            "/v1/logs-proxy/a/b/c_d",
            "/v1/logs-proxy/a/b/c:9",
            "/v1/",
            "/v1",
            "/v1/properties/",
            "/v1/install",
            "/api",
            "/apis/",
        ] {
            assert!(Page::of(path).is_err(), "{path}");
        }
        for path in ["/", "/index.html", "/assets/main.1.js", "/v1x", "/health", "/a%20b"] {
            assert_eq!(Page::of(path).unwrap(), Page::File, "{path}");
        }
        assert_eq!(Page::of("/v1/properties").unwrap(), Page::Properties);
        // The maximum length of names in Kubernetes, and longer.
        let (label, pod) = ("a".repeat(63), format!("{}.{}", ["b".repeat(50).as_str(); 4].join("."), "c".repeat(49)));
        assert_eq!(pod.len(), 253);
        for (namespace, pod, container, is_log) in [
            (label.clone(), pod.clone(), label.clone(), true),
            (format!("{label}a"), pod.clone(), label.clone(), false),
            (label.clone(), pod.clone(), format!("{label}a"), false),
            (label.clone(), format!("{pod}c"), label, false),
        ] {
            let path = format!("/v1/logs-proxy/{namespace}/{pod}/{container}");
            assert_eq!(Page::of(&path).is_ok(), is_log, "{path}");
        }
    }
}
