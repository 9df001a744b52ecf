//! The bytes of impersonation (`k8s.io/apiserver/pkg/endpoints/filters/impersonation`): who a request runs as at the API
//! server.
//!
//! A request without any impersonation header would run as Doorward itself, so [`Identity`] always has a user and
//! [`assert_impersonated`] looks once more at what is about to be sent.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    audit,
    authn::{
        Principal,
        principal::{InvalidName, check_name},
    },
    error::{Reason, Rejection},
};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
// Keys are lower case and domain-prefixed: other forms do not survive the API server's decoding or are refused by
// constrained impersonation (KEP-5284). `/` is `%2F` on the wire.
const CLIENT: HeaderName = HeaderName::from_static("impersonate-extra-doorward.dev%2fclient");
const ACTOR: HeaderName = HeaderName::from_static("impersonate-extra-doorward.dev%2factor");

/// A Kubernetes identity, checked and ready to be written.
#[derive(Clone, Debug)]
pub struct Identity {
    user: HeaderValue,
    groups: Vec<HeaderValue>,
    client: Option<HeaderValue>,
    actor: Option<HeaderValue>,
}

impl Identity {
    /// The identity of a principal with the groups that grants gave it. Never its raw groups: one that Doorward may
    /// not impersonate would fail the whole request.
    pub fn of(principal: &Principal, groups: &[Arc<str>]) -> Result<Self, Rejection> {
        let optional = |what, text: Option<&Arc<str>>| text.map(|text| value(what, text)).transpose();
        Ok(Self {
            user: value("user name", &principal.username)?,
            groups: groups.iter().map(|group| value("group", group)).collect::<Result<_, _>>()?,
            client: optional("client", principal.client.as_ref())?,
            actor: optional("actor", principal.actor.as_ref().map(|actor| &actor.subject))?,
        })
    }

    /// The same for the audit trail.
    pub fn recorded(&self, principal: &Principal, groups: Vec<Arc<str>>) -> audit::Identity {
        let extra = |key: &str, value: Option<&Arc<str>>| value.map(|value| (Arc::from(key), Arc::clone(value)));
        let extras = [
            extra("doorward.dev/client", principal.client.as_ref()),
            extra("doorward.dev/actor", principal.actor.as_ref().map(|actor| &actor.subject)),
        ];
        let extras = extras.into_iter().flatten().collect();
        audit::Identity { user: Arc::clone(&principal.username), uid: None, groups, extras }
    }

    /// Writes the identity over whatever stands in `headers`.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(USER, self.user.clone());
        headers.remove(GROUP);
        for group in &self.groups {
            headers.append(GROUP, group.clone());
        }
        for (name, value) in [(CLIENT, &self.client), (ACTOR, &self.actor)] {
            match value {
                Some(value) => drop(headers.insert(name, value.clone())),
                None => drop(headers.remove(name)),
            }
        }
    }
}

fn value(what: &str, text: &str) -> Result<HeaderValue, Rejection> {
    let refuse = |why: String| {
        Rejection::new(Reason::IdentityRefused, format!("the {what} that your credential gives {why}"))
            .fix("ask whoever runs the identity provider or Doorward's configuration for another name")
    };
    check_name(text).map_err(|why: InvalidName| refuse(why.to_string()))?;
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| refuse("cannot be written as a header".to_owned()))
}

/// Whether a request that is about to go to an API server carries exactly one user, and it is not empty. Anything else
/// is a mistake of ours: 500, and somebody must look.
pub fn assert_impersonated(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut users = headers.get_all(USER).iter();
    match (users.next(), users.next()) {
        (Some(user), None) if !user.as_bytes().trim_ascii().is_empty() => Ok(()),
        _ => {
            tracing::error!("a request to Kubernetes had no single Impersonate-User and was stopped");
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
        authn::{CredentialId, Kind, LoginFacts, Scheme},
        clock::Timestamp,
    };

    pub(crate) fn principal(username: &str) -> Principal {
        Principal {
            issuer: "corp".into(),
            subject: "alice".into(),
            username: username.into(),
            kind: Kind::Human,
            scheme: Scheme::Bearer,
            groups: Vec::new(),
            scopes: Vec::new(),
            client: None,
            actor: None,
            login: LoginFacts::default(),
            claims: Arc::default(),
            credential: CredentialId::None,
            expires: Timestamp::MAX,
            delivery: None,
            workload: None,
            email: None,
        }
    }

    #[test]
    fn one_line_a_group_and_one_user() {
        let mut headers = HeaderMap::new();
        headers.append(USER, "mallory".parse().unwrap());
        headers.append(GROUP, "system:masters".parse().unwrap());
        headers.append(ACTOR, "mallory".parse().unwrap());
        let groups = ["dev".into(), "a,b".into()];
        Identity::of(&principal("https://idp#alice"), &groups).unwrap().write(&mut headers);
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
            let refused = Identity::of(&principal(user), &[group.into()]).unwrap_err();
            assert_eq!(refused.reason(), Reason::IdentityRefused, "{row}");
        }
        assert!(Identity::of(&principal("alice"), &["systemx:y".into()]).is_ok());
    }
}
