//! Impersonation headers (`k8s.io/apiserver/pkg/endpoints/filters/impersonation`): the identity that a request has at
//! the API server.
//!
//! A request without impersonation headers would run as Doorward itself. So [`assume`] always writes a user, and
//! [`assert_impersonated`] checks once more what is about to be sent.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    authn::{
        Principal,
        principal::{InvalidName, check_name},
    },
    error::{Reason, Rejection},
};

/// The header with the id of a request in the API server's own audit log, which Doorward sets to its own request id.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
// Keys are lower case and domain-prefixed: other forms do not survive the API server's decoding or are refused by
// constrained impersonation (KEP-5284). `/` is `%2F` on the wire.
const CLIENT: HeaderName = HeaderName::from_static("impersonate-extra-doorward.dev%2fclient");
const ACTOR: HeaderName = HeaderName::from_static("impersonate-extra-doorward.dev%2factor");
const REQUEST_ID: HeaderName = HeaderName::from_static("impersonate-extra-doorward.dev%2frequest-id");

/// The keys of all extras that can be sent.
pub const EXTRAS: [&str; 3] = ["doorward.dev/client", "doorward.dev/actor", "doorward.dev/request-id"];

/// The extras of a principal, which appear in the API server's audit log besides the user and groups.
pub fn extras(principal: &Principal) -> impl Iterator<Item = (&'static str, &str)> {
    let client = principal.client.as_deref().map(|client| (EXTRAS[0], client));
    let actor = principal.actor.as_ref().map(|actor| (EXTRAS[1], &*actor.subject));
    client.into_iter().chain(actor)
}

/// Writes the identity of a principal, with the groups from grants, over any in `headers`. Never the raw groups of the
/// principal: a group that Doorward may not impersonate would make the whole request fail.
pub fn assume(principal: &Principal, groups: &[Arc<str>], headers: &mut HeaderMap) -> Result<(), Rejection> {
    headers.insert(USER, value("user name", &principal.username)?);
    headers.remove(GROUP);
    for group in groups {
        headers.append(GROUP, value("group", group)?);
    }
    let actor = principal.actor.as_ref().map(|actor| &actor.subject);
    for (name, what, text) in [(CLIENT, "client", principal.client.as_ref()), (ACTOR, "actor", actor)] {
        match text {
            Some(text) => drop(headers.insert(name, value(what, text)?)),
            None => drop(headers.remove(name)),
        }
    }
    Ok(())
}

/// Writes the id of the request that creates a run. Only a client that may impersonate this extra can send it, and an
/// admission policy compares the annotations of the run with it.
pub fn set_request_id(id: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(REQUEST_ID, id.clone());
}

fn value(what: &str, text: &str) -> Result<HeaderValue, Rejection> {
    let refuse = |why: String| {
        Rejection::new(Reason::IdentityRefused, format!("the {what} that your credential gives {why}"))
            .fix("ask the administrator of the identity provider or of Doorward for another name")
    };
    check_name(text).map_err(|why: InvalidName| refuse(why.to_string()))?;
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| refuse("cannot be written as a header".to_owned()))
}

/// Checks that a request to an API server has exactly one user, which is not empty. Anything else is a bug in Doorward:
/// 500 and an error in the log.
pub fn assert_impersonated(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut users = headers.get_all(USER).iter();
    match (users.next(), users.next()) {
        (Some(user), None) if !user.as_bytes().trim_ascii().is_empty() => Ok(()),
        _ => {
            tracing::error!("a request to Kubernetes without exactly one Impersonate-User was stopped");
            Err(Rejection::new(
                Reason::Internal,
                "the request was stopped because its Kubernetes identity was not certain",
            ))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        authn::{Kind, Scheme},
        clock::Timestamp,
    };

    pub(crate) fn principal(username: &str) -> Principal {
        Principal {
            kind: Kind::Human,
            expires: Timestamp::MAX,
            ..Principal::new(Scheme::Bearer, "corp", "alice", username)
        }
    }

    #[test]
    fn one_line_a_group_and_one_user() {
        let mut headers = HeaderMap::new();
        headers.append(USER, "mallory".parse().unwrap());
        headers.append(GROUP, "system:masters".parse().unwrap());
        headers.append(ACTOR, "mallory".parse().unwrap());
        let groups = ["dev".into(), "a,b".into()];
        assume(&principal("https://idp#alice"), &groups, &mut headers).unwrap();
        assert_eq!(headers.get_all(USER).iter().collect::<Vec<_>>(), ["https://idp#alice"], "kubernetes:A6");
        assert_eq!(headers.get_all(GROUP).iter().collect::<Vec<_>>(), ["dev", "a,b"], "peers:D3");
        assert!(!headers.contains_key(ACTOR));
        assert!(assert_impersonated(&headers).is_ok());
    }

    #[test]
    fn a_request_without_an_identity_is_stopped() {
        let mut headers = HeaderMap::new();
        assert!(assert_impersonated(&headers).is_err());
        headers.append(USER, " ".parse().unwrap());
        assert!(assert_impersonated(&headers).is_err());
        headers.insert(USER, "alice".parse().unwrap());
        assert!(assert_impersonated(&headers).is_ok());
        headers.append(USER, "bob".parse().unwrap());
        assert!(assert_impersonated(&headers).is_err());
    }

    #[test]
    fn names_of_the_cluster_itself_are_refused() {
        for (row, user, group) in [
            ("kubernetes:S1", "system:serviceaccount:kube-system:x", "dev"),
            ("kubernetes:S1", "alice", "system:masters"),
            ("kubernetes:E1", " ", "dev"),
            ("kubernetes:E1", "alice", ""),
            ("kubernetes:S3", "alice", "system:masters\t"),
        ] {
            let refused = assume(&principal(user), &[group.into()], &mut HeaderMap::new()).unwrap_err();
            assert_eq!(refused.reason(), Reason::IdentityRefused, "{row}");
        }
        assert!(assume(&principal("alice"), &["systemx:y".into()], &mut HeaderMap::new()).is_ok());
    }
}
