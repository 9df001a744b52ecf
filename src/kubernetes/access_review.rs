//! SelfSubjectAccessReview and SelfSubjectRulesReview (`authorization.k8s.io/v1`): what a principal may do at an API
//! server, asked under their identity. Every authenticated user may ask this about themselves, so Doorward needs no
//! right but to impersonate.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use serde::Deserialize;
use serde_json::json;

use super::{
    Attributes, PolicyRule,
    impersonation::{AUDIT_ID, assert_impersonated, assume},
};
use crate::{
    authn::Principal,
    body::{RequestBody, collect},
    error::{Reason, Rejection},
    upstream::{Lane, Pools, Upstream},
};

pub const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const RULES: &str = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";

/// The largest answer. One has about 500 bytes, plus the authorizer's reason.
const MAX_ANSWER: usize = 64 << 10;

/// The largest list of rules, with about 200 bytes each.
const MAX_RULES: usize = 4 << 20;

/// The maximum number of concurrent reviews.
const AT_ONCE: usize = 8;

/// The access that a review asks about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    pub verb: Cow<'static, str>,
    /// `""` is the core group.
    pub group: Cow<'static, str>,
    pub resource: Cow<'static, str>,
    pub subresource: Cow<'static, str>,
    /// `""`: all namespaces, or a cluster-scoped resource.
    pub namespace: Arc<str>,
    /// `""`: any.
    pub name: Arc<str>,
    /// The URL of something that is not a resource, such as `/version`. `""` for a resource.
    pub url: Cow<'static, str>,
}

impl Access {
    /// Access to anything in a namespace; the caller sets the rest.
    pub fn new(verb: impl Into<Cow<'static, str>>, namespace: Arc<str>) -> Self {
        let (group, resource, subresource) = ("".into(), "".into(), "".into());
        Self { verb: verb.into(), group, resource, subresource, namespace, name: "".into(), url: "".into() }
    }

    /// Access to a URL that is not a resource.
    pub fn to_url(verb: impl Into<Cow<'static, str>>, url: impl Into<Cow<'static, str>>) -> Self {
        Self { url: url.into(), ..Self::new(verb, "".into()) }
    }

    /// The access as rules see it.
    pub fn attributes(&self) -> Attributes {
        Attributes {
            is_resource: true,
            verb: self.verb.clone().into_owned(),
            api_group: self.group.clone().into_owned(),
            api_version: "v1".to_owned(),
            namespace: self.namespace.as_ref().to_owned(),
            resource: self.resource.clone().into_owned(),
            subresource: self.subresource.clone().into_owned(),
            name: self.name.as_ref().to_owned(),
            ..Attributes::default()
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.url.is_empty() {
            return write!(f, "{} {}", self.verb, self.url);
        }
        write!(f, "{} {}", self.verb, self.resource)?;
        for (sign, part) in [("/", &*self.subresource), (" ", &*self.name), (".", &*self.group)] {
            if !part.is_empty() && (sign != "." || self.name.is_empty()) {
                write!(f, "{sign}{part}")?;
            }
        }
        if self.namespace.is_empty() { Ok(()) } else { write!(f, " in {}", self.namespace) }
    }
}

/// Asks an API server under the identity of one principal, or of Doorward itself.
#[derive(Debug)]
pub struct AccessReviewer {
    pools: Pools,
    server: Arc<Upstream>,
    /// The identity headers, and the id of the request that causes the review.
    headers: HeaderMap,
}

impl AccessReviewer {
    /// Creates a reviewer for a principal. `groups` are those from grants; `request_id` is also the audit id of the
    /// reviews.
    pub fn new(
        pools: &Pools,
        server: &Arc<Upstream>,
        principal: &Principal,
        groups: &[Arc<str>],
        request_id: &HeaderValue,
    ) -> Result<Self, Rejection> {
        let mut headers = HeaderMap::new();
        assume(principal, groups, &mut headers)?;
        assert_impersonated(&headers)?;
        headers.insert(AUDIT_ID, request_id.clone());
        let mut reviewer = Self::own(pools, server);
        reviewer.headers.extend(headers);
        Ok(reviewer)
    }

    /// Creates a reviewer for Doorward itself.
    pub fn own(pools: &Pools, server: &Arc<Upstream>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { pools: pools.clone(), server: Arc::clone(server), headers }
    }

    /// Whether the API server would allow an access.
    pub async fn may(&self, access: &Access) -> Result<bool, Rejection> {
        let answer = self.ask(PATH, review(access), MAX_ANSWER).await?;
        is_allowed(&answer).map_err(|error| failed(format!("its answer cannot be read: {error}")))
    }

    /// The rules that the API server lists as allowed in a namespace and everywhere (`SelfSubjectRulesReview`). Not all
    /// authorizers can list what they allow.
    pub async fn rules(&self, namespace: &str) -> Result<Vec<PolicyRule>, Rejection> {
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace}});
        let answer = self.ask(RULES, body.to_string().into(), MAX_RULES).await?;
        let RulesReview { status } =
            serde_json::from_slice(&answer).map_err(|error| failed(format!("its answer cannot be read: {error}")))?;
        Ok([status.resource_rules, status.non_resource_rules].concat())
    }

    async fn ask(&self, path: &'static str, review: Bytes, max: usize) -> Result<Bytes, Rejection> {
        let mut request = Request::new(RequestBody::Buffered(review));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(path);
        request.headers_mut().clone_from(&self.headers);
        let response = self.pools.send(&self.server, &mut request, Lane::Short).await?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.server.credential_refused());
        }
        if status != StatusCode::CREATED {
            return Err(failed(format!("it answered the review with {status}")));
        }
        let body = collect(response.into_body(), max).await;
        body.ok_or_else(|| failed("its answer has no end, or is too long".to_owned()))
    }

    /// Asks about several accesses concurrently. The answers are in the order of the accesses. Of several errors, the
    /// first in that order is returned, once all before it are answered.
    pub async fn may_each(&self, accesses: Vec<Access>) -> Result<Vec<bool>, Rejection> {
        let answers = stream::iter(accesses).map(|access| async move { self.may(&access).await });
        answers.buffered(AT_ONCE).try_collect().await
    }
}

#[derive(Deserialize)]
struct RulesReview {
    status: Rules,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rules {
    resource_rules: Vec<PolicyRule>,
    non_resource_rules: Vec<PolicyRule>,
}

fn failed(why: String) -> Rejection {
    Rejection::new(Reason::UpstreamFailed, "the API server could not be asked what you may do").because(why)
}

/// The `SelfSubjectAccessReview` for an access.
pub fn review(access: &Access) -> Bytes {
    let spec = if access.url.is_empty() {
        json!({"resourceAttributes": {
            "verb": access.verb,
            "group": access.group,
            "resource": access.resource,
            "subresource": access.subresource,
            "namespace": &*access.namespace,
            "name": &*access.name,
        }})
    } else {
        json!({"nonResourceAttributes": {"verb": access.verb, "path": access.url}})
    };
    let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    body.to_string().into()
}

/// Whether an answer allows the access. If both members of `SubjectAccessReviewStatus` are false, no authorizer allows
/// it.
pub fn is_allowed(body: &[u8]) -> serde_json::Result<bool> {
    #[derive(Deserialize)]
    struct Review {
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        allowed: bool,
        #[serde(default)]
        denied: bool,
    }
    let Review { status } = serde_json::from_slice(body)?;
    Ok(status.allowed && !status.denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_explicit_yes_permits_access() {
        for (body, allowed) in [
            (r#"{"status":{"allowed":true}}"#, Some(true)),
            (r#"{"status":{"allowed":true,"denied":true}}"#, Some(false)),
            (r#"{"status":{"allowed":false,"reason":"no"}}"#, Some(false)),
            (r#"{"status":{"allowed":"true"}}"#, None),
            (r#"{"status":{}}"#, None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(is_allowed(body.as_bytes()).ok(), allowed, "{body}");
        }
    }
}
