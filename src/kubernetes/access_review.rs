//! SelfSubjectAccessReview (`authorization.k8s.io/v1`): what somebody may do at an API server, asked as that person. Every
//! authenticated user may ask it of oneself, so that Doorward needs no right but to impersonate.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    Attributes,
    impersonation::{AUDIT_ID, assert_impersonated, assume},
};
use crate::{
    authn::Principal,
    body::{RequestBody, collect},
    error::{Reason, Rejection},
    upstream::{Lane, Pools, Upstream},
};

const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// An answer has some 500 bytes, and the reason that an authorizer gives.
const MAX_ANSWER: usize = 64 << 10;

/// Questions at once.
const AT_ONCE: usize = 8;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    pub verb: Cow<'static, str>,
    /// `""` is the core group.
    pub group: Cow<'static, str>,
    pub resource: Cow<'static, str>,
    pub subresource: Cow<'static, str>,
    /// `""`: all namespaces, or none for what is in no namespace.
    pub namespace: Arc<str>,
    /// `""`: any.
    pub name: Arc<str>,
}

impl Access {
    /// To anything in a namespace; the rest is for the caller to name.
    pub fn new(verb: impl Into<Cow<'static, str>>, namespace: Arc<str>) -> Self {
        let (group, resource, subresource) = ("".into(), "".into(), "".into());
        Self { verb: verb.into(), group, resource, subresource, namespace, name: "".into() }
    }

    /// The same as rules see it.
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
        write!(f, "{} {}", self.verb, self.resource)?;
        for (sign, part) in [("/", &*self.subresource), (" ", &*self.name), (".", &*self.group)] {
            if !part.is_empty() && (sign != "." || self.name.is_empty()) {
                write!(f, "{sign}{part}")?;
            }
        }
        if self.namespace.is_empty() { Ok(()) } else { write!(f, " in {}", self.namespace) }
    }
}

/// Asks an API server as one principal, or as Doorward itself.
#[derive(Clone, Debug)]
pub struct AccessReviewer {
    pools: Pools,
    server: Arc<Upstream>,
    /// The identity, and our id of the request that made us ask.
    headers: HeaderMap,
}

impl AccessReviewer {
    /// `groups` are those that grants gave; `request_id` is the audit id of the questions too.
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

    /// Asks as Doorward itself.
    pub fn own(pools: &Pools, server: &Arc<Upstream>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { pools: pools.clone(), server: Arc::clone(server), headers }
    }

    /// Whether the API server would allow it.
    pub async fn may(&self, access: &Access) -> Result<bool, Rejection> {
        let mut request = Request::new(RequestBody::Buffered(review(access)));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(PATH);
        request.headers_mut().clone_from(&self.headers);
        let response = self.pools.send(&self.server, &mut request, Lane::Short).await?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            return Err(self.server.credential_refused());
        }
        let failed = |why: String| {
            Rejection::new(Reason::UpstreamFailed, "what you may do cannot be asked of the API server").because(why)
        };
        if status != StatusCode::CREATED {
            return Err(failed(format!("it answers the SelfSubjectAccessReview with {status}")));
        }
        let body = collect(response.into_body(), MAX_ANSWER).await;
        let body = body.ok_or_else(|| failed("its answer has no end, or is too long".to_owned()))?;
        is_allowed(&body).map_err(|error| failed(format!("its answer cannot be read: {error}")))
    }

    /// The same for several, at once. The answers are in the order of the questions.
    pub async fn may_each(&self, accesses: Vec<Access>) -> Result<Vec<bool>, Rejection> {
        let mut answers = vec![false; accesses.len()];
        let mut waiting = accesses.into_iter().enumerate();
        let mut asking = JoinSet::new();
        let ask = |(index, access): (usize, Access)| {
            let reviewer = self.clone();
            async move { (index, reviewer.may(&access).await) }
        };
        for question in waiting.by_ref().take(AT_ONCE) {
            asking.spawn(ask(question));
        }
        while let Some(answered) = asking.join_next().await {
            let (index, may) =
                answered.map_err(|error| Rejection::new(Reason::Internal, "a review was not made").because(error))?;
            if let Some(answer) = answers.get_mut(index) {
                *answer = may?;
            }
            if let Some(question) = waiting.next() {
                asking.spawn(ask(question));
            }
        }
        Ok(answers)
    }
}

fn review(access: &Access) -> Bytes {
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "verb": access.verb,
            "group": access.group,
            "resource": access.resource,
            "subresource": access.subresource,
            "namespace": &*access.namespace,
            "name": &*access.name,
        }},
    });
    body.to_string().into()
}

/// Both answers of `SubjectAccessReviewStatus` may be false, which means that nobody allows it.
fn is_allowed(body: &[u8]) -> serde_json::Result<bool> {
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
    fn only_a_plain_yes_is_one() {
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
