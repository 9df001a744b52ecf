//! The caller, as facts that an issuer or a signature vouches for. Nothing here decides about access.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use crate::config::raw::{Kind, Scheme};
use crate::{
    clock::Timestamp,
    webhooks::{self, Facts},
};

/// An authenticated caller. Cheap to share: created once when a credential is verified, and cached with it.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The name of the issuer in the configuration, or `webhook:NAME` for a delivery, `break-glass` or `anonymous`.
    /// Together with `subject` it identifies the principal.
    pub issuer: Arc<str>,
    /// The issuer's identifier for the caller (`sub`).
    pub subject: Arc<str>,
    /// The Kubernetes user name, by the issuer's template. Never begins with `system:`, never begins or ends with a
    /// blank.
    pub username: Arc<str>,
    pub kind: Kind,
    /// The kind of the subject, if somebody acts for them and `kind` therefore differs ([`Self::kinds`]).
    pub subject_kind: Option<Kind>,
    /// How it was authenticated.
    pub scheme: Scheme,
    /// Groups as the issuer gave them, not yet mapped.
    pub groups: Vec<Arc<str>>,
    /// Whether the claims contain a groups claim, possibly an empty one.
    pub says_groups: bool,
    /// Scopes that were granted: from the token response, a verified access token or introspection, never from an
    /// ID token.
    pub scopes: Vec<Arc<str>>,
    /// Whether the claims contain a scopes claim, possibly an empty one.
    pub says_scopes: bool,
    /// The client (application) that the token was issued to.
    pub client: Option<Arc<str>>,
    /// The outermost actor (`act`, RFC 8693 section 4.1), who acts for `subject`.
    pub actor: Option<Actor>,
    /// When and how the person logged in.
    pub login: LoginFacts,
    /// All verified claims.
    pub claims: Arc<Map<String, Value>>,
    /// For a principal restored from a record: the names of the claims that are recorded at all. `None`: `claims` is
    /// complete.
    pub kept_claims: Option<Box<[Arc<str>]>>,
    /// The identifier by which a revocation names the credential.
    pub credential: CredentialId,
    /// The key that signed the token, if one did. If the issuer removes it from its key set, streams end.
    pub signed_by: Option<KeyId>,
    /// When the credential expires, by its own statement.
    pub expires: Timestamp,
    /// For how long it is accepted after `expires`, as the issuer's clock may differ. Only for bearer tokens.
    pub skew: Duration,
    /// The facts of the delivery that authenticated it, for webhooks.
    pub delivery: Option<Arc<Facts>>,
    /// The email address, only where the issuer says that it is verified. For display, never for decisions.
    pub email: Option<Arc<str>>,
    /// For Doorward's own tokens: the principal on whose behalf the token was issued. Revoking them revokes the token
    /// too.
    pub on_behalf_of: Option<Box<KnownAs>>,
    /// Everybody who acts for `subject` or did so earlier in the chain. Revoking any of them revokes the credential.
    pub acting: Box<[KnownAs]>,
    /// For Doorward's own tokens: the tokens that it was exchanged for. Revoking any of them revokes it.
    pub exchanged: Box<[KnownToken]>,
    /// The pod and the runs whose end ends the credential, as [`workload_key`] names them.
    pub lives_with: Box<[Arc<str>]>,
    /// The workload behind the token, as read by the preset of its issuer; only issuers with a preset vouch for one.
    pub workload: Option<WorkloadIdentity>,
}

/// The name of a pod or run of a cluster. It contains the uid, which only that cluster vouches for.
pub fn workload_key(cluster: &str, uid: &str) -> String {
    format!("{cluster}/{uid}")
}

/// The identity of a workload, by identifiers that are not reused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadIdentity {
    /// A Kubernetes service account.
    ServiceAccount { namespace: Arc<str>, name: Arc<str> },
    /// A repository, by the numeric id that its host gave it; the provider is `github` or `gitlab`.
    Repository { provider: &'static str, id: Arc<str> },
}

/// The claim of Doorward's own tokens with the kind of their subject.
pub const KIND_CLAIM: &str = "kind";

impl Principal {
    /// The moment from which the credential is no longer accepted. Streams end at this moment and not before, as a
    /// request that was let through is also answered.
    pub fn ends(&self) -> Timestamp {
        self.expires + self.skew
    }

    /// Everybody whose revocation ends the credential.
    pub fn parties(&self) -> impl Iterator<Item = KnownAs> {
        let own = KnownAs { issuer: Arc::clone(&self.issuer), subject: Arc::clone(&self.subject) };
        let others = self.on_behalf_of.as_deref().into_iter().chain(&self.acting);
        std::iter::once(own).chain(others.cloned())
    }

    /// The token that is the credential.
    pub fn token(&self) -> Option<KnownToken> {
        match &self.credential {
            CredentialId::Token(id) => Some(KnownToken { issuer: Arc::clone(&self.issuer), id: Arc::clone(id) }),
            _ => None,
        }
    }

    /// Namespace and name of the service account, for tokens of a cluster.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        match self.workload.as_ref()? {
            WorkloadIdentity::ServiceAccount { namespace, name } => Some((namespace, name)),
            WorkloadIdentity::Repository { .. } => None,
        }
    }

    /// The email address, if `claims` say that it is verified: with the boolean `true`, not with a text.
    pub fn verified_email(claims: &Map<String, Value>) -> Option<Arc<str>> {
        let is_verified = claims.get("email_verified") == Some(&Value::Bool(true));
        let email = claims.get("email").filter(|_| is_verified)?.as_str()?;
        (1..=255).contains(&email.len()).then(|| email.into())
    }

    /// Whether the principal may have had a claim of this name that was not recorded.
    pub fn may_have_had(&self, claim: &str) -> bool {
        let is_kept = |kept: &[Arc<str>]| kept.iter().any(|name| **name == *claim);
        self.kept_claims.as_deref().is_some_and(|kept| !is_kept(kept)) && !self.claims.contains_key(claim)
    }

    /// Provider and numeric id of the repository, for tokens of its CI.
    pub fn repository(&self) -> Option<(&'static str, &str)> {
        match self.workload.as_ref()? {
            WorkloadIdentity::Repository { provider, id } => Some((provider, id)),
            WorkloadIdentity::ServiceAccount { .. } => None,
        }
    }
}

/// The issuer name of anonymous callers.
pub const ANONYMOUS: &str = "anonymous";

impl Principal {
    /// A principal with an identity and nothing else. `expires` is in the past until the verifier sets it, so that a
    /// forgotten expiry fails closed.
    pub fn new(
        scheme: Scheme,
        issuer: impl Into<Arc<str>>,
        subject: impl Into<Arc<str>>,
        username: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            issuer: issuer.into(),
            subject: subject.into(),
            username: username.into(),
            kind: Kind::Agent,
            subject_kind: None,
            scheme,
            groups: Vec::new(),
            says_groups: false,
            scopes: Vec::new(),
            says_scopes: false,
            client: None,
            actor: None,
            login: LoginFacts::default(),
            claims: Arc::default(),
            kept_claims: None,
            credential: CredentialId::None,
            signed_by: None,
            expires: Timestamp::default(),
            skew: Duration::ZERO,
            delivery: None,
            on_behalf_of: None,
            acting: Box::default(),
            exchanged: Box::default(),
            lives_with: Box::default(),
            workload: None,
            email: None,
        }
    }

    /// The actor chain as a token's `act` claim (RFC 8693 section 4.1). An actor without an issuer belongs to the
    /// token's own issuer, and gets `identifier` as its `iss`.
    pub fn act(&self, identifier: Option<&str>) -> Option<Value> {
        fn complete(act: &mut Value, identifier: &str) {
            let Some(act) = act.as_object_mut() else { return };
            act.entry("iss").or_insert_with(|| identifier.into());
            if let Some(before) = act.get_mut("act") {
                complete(before, identifier);
            }
        }
        let mut act = self.claims.get("act")?.clone();
        if let Some(identifier) = identifier {
            complete(&mut act, identifier);
        }
        Some(act)
    }

    /// The client that makes the request: if somebody acts for the subject, the actor's client, and not the one that
    /// the subject's own token was issued to. A task is a client by the name of its service account, and so is an actor
    /// of the token's issuer that has the name of the token's client. `is_own`: whether the token is Doorward's own,
    /// which is issued to the actor, whichever issuer the actor belongs to.
    pub fn requesting_client(&self, is_own: bool) -> Option<&Arc<str>> {
        let Some(actor) = &self.actor else { return self.client.as_ref() };
        let is_client =
            self.client.as_ref() == Some(&actor.subject) && (is_own || actor.issuer.as_ref() == Some(&self.issuer));
        let by_name = (actor.is_service_account() || is_client).then_some(&actor.subject);
        actor.client.as_ref().or(by_name)
    }

    /// The kind that a token with such a subject has, and the kind of the subject if it differs: whoever acts for a
    /// person is not a person.
    pub fn kinds(subject: Kind, is_acted_for: bool) -> (Kind, Option<Kind>) {
        match is_acted_for && subject == Kind::Human {
            true => (Kind::Agent, Some(subject)),
            false => (subject, None),
        }
    }

    /// The kind of the subject, whoever acts for them.
    pub fn kind_of_subject(&self) -> Kind {
        self.subject_kind.unwrap_or(self.kind)
    }

    /// A caller without a credential, on a route that allows that.
    pub fn anonymous() -> Self {
        Self { expires: Timestamp::MAX, ..Self::new(Scheme::Anonymous, ANONYMOUS, ANONYMOUS, ANONYMOUS) }
    }

    pub fn is_anonymous(&self) -> bool {
        self.scheme == Scheme::Anonymous
    }
}

/// The prefix of the name of a service account that acts for somebody.
const SERVICE_ACCOUNT: &str = "serviceaccount:";

/// The party that acts for the subject. Issuers choose names independently of each other, so its subject and its client
/// identify it only together with its issuer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Actor {
    /// The name of its issuer in the configuration. `None` for a task, whose name only Doorward gives, and for an actor
    /// whose issuer the token does not prove.
    pub issuer: Option<Arc<str>>,
    pub subject: Arc<str>,
    pub client: Option<Arc<str>>,
}

/// A principal as its own issuer knows it, which is how it is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAs {
    /// The issuer's name in the configuration.
    pub issuer: Arc<str>,
    #[serde(rename = "sub")]
    pub subject: Arc<str>,
}

/// A token as its own issuer knows it, which is how it is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownToken {
    /// The issuer's name in the configuration.
    pub issuer: Arc<str>,
    /// The id in [`CredentialId::Token`].
    pub id: Arc<str>,
}

impl Actor {
    /// A task that acts for whoever caused its run: its service account, without the `system:` that no name sent to
    /// Kubernetes may begin with. `cluster` is given if tasks of several clusters get tokens, as each cluster can have
    /// accounts of any name.
    pub fn service_account(cluster: Option<&str>, namespace: &str, name: &str) -> Self {
        let account = match cluster {
            None => format!("{SERVICE_ACCOUNT}{namespace}:{name}"),
            Some(cluster) => format!("{SERVICE_ACCOUNT}{cluster}:{namespace}:{name}"),
        };
        Self { issuer: None, subject: account.into(), client: None }
    }

    /// Whether a name is one that only a cluster, or Doorward, gives to a service account. No other issuer's actor or
    /// client may have it.
    pub fn is_reserved(name: &str) -> bool {
        let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        begins("system:serviceaccount:") || begins(SERVICE_ACCOUNT)
    }

    pub fn is_service_account(&self) -> bool {
        self.client.is_none() && self.subject.starts_with(SERVICE_ACCOUNT)
    }
}

/// When and how a person logged in (OpenID Connect Core 1.0 section 2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginFacts {
    pub auth_time: Option<Timestamp>,
    pub acr: Option<Arc<str>>,
    pub amr: Vec<Arc<str>>,
}

/// The identifier of a credential in revocations and in the audit trail; never the credential itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CredentialId {
    /// The `jti` of a token, or the hash of one that has none.
    Token(Arc<str>),
    /// The hash of a session id.
    Session(Arc<str>),
    /// The id of a delivery.
    Delivery(Arc<str>),
    /// The SHA-256 of a certificate.
    Certificate(Arc<str>),
    None,
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => write!(f, "token:{id}"),
            Self::Session(id) => write!(f, "session:{id}"),
            Self::Delivery(id) => write!(f, "delivery:{id}"),
            Self::Certificate(id) => write!(f, "certificate:{id}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// A public key of an issuer: the SHA-256 of its name, what it is for, and the key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId(pub [u8; 32]);

/// Why a user name cannot be used as a Kubernetes identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("is empty")]
    Empty,
    #[error("begins with the reserved prefix `system:`")]
    Reserved,
    #[error("begins or ends with a blank, which HTTP would trim into another name")]
    BlankEdge,
    #[error("contains a control character")]
    Control,
    #[error("is longer than {} bytes", MAX_NAME)]
    TooLong,
    #[error("begins with `break-glass:`, `webhook:` or `serviceaccount:`, as only Doorward's own names may")]
    Own,
}

/// The maximum length in bytes of a user or group name. A service account's name has up to 253, its namespace 63, and
/// the address of its cluster precedes them.
pub const MAX_NAME: usize = 512;

/// Whether a name begins with a prefix that only Doorward assigns.
pub fn is_own_name(name: &str) -> bool {
    let begins = |own: &str| name.get(..own.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(own));
    ["break-glass:", webhooks::PREFIX, SERVICE_ACCOUNT].into_iter().any(begins)
}

/// Checks the user name of an issuer: no issuer may produce a name that Doorward assigns itself.
pub fn check_users_name(name: &str) -> Result<(), InvalidName> {
    check_name(name)?;
    if is_own_name(name) { Err(InvalidName::Own) } else { Ok(()) }
}

/// Checks a user or group name that is to be sent to Kubernetes. `system:` names carry rights of the cluster's own
/// components, so a claim may never produce one (KEP-3331 names the same danger). The comparison ignores case, and an
/// invalid name is refused, not repaired.
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    if is_plain(name) {
        return Ok(());
    }
    if name.trim().is_empty() {
        return Err(InvalidName::Empty);
    }
    if name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("system:")) {
        return Err(InvalidName::Reserved);
    }
    if name.chars().any(char::is_control) {
        return Err(InvalidName::Control);
    }
    if name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
        return Err(InvalidName::BlankEdge);
    }
    if name.len() > MAX_NAME {
        return Err(InvalidName::TooLong);
    }
    Ok(())
}

/// Whether a name is an ordinary one: visible ASCII. Branchless so that the compiler can vectorize it; names are
/// checked on each request.
fn is_plain(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().fold(true, |plain, byte| plain & byte.is_ascii_graphic())
        && !name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("system:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_of_another_issuer_is_no_client_of_the_subjects_by_its_name() {
        for (issuer, is_own, expected) in [
            (Some("corp"), false, Some("planner")),
            (Some("partner"), false, None),
            (None, false, None),
            (Some("partner"), true, Some("planner")),
        ] {
            let principal = Principal {
                client: Some("planner".into()),
                actor: Some(Actor { issuer: issuer.map(Into::into), subject: "planner".into(), client: None }),
                ..Principal::new(Scheme::Bearer, "corp", "7", "alice")
            };
            let client = principal.requesting_client(is_own).map(|client| &**client);
            assert_eq!(client, expected, "{issuer:?} {is_own}");
        }
    }

    #[test]
    fn names_that_kubernetes_would_misread_are_refused() {
        for (name, why) in [
            ("", InvalidName::Empty),
            (" ", InvalidName::Empty),
            ("system:masters", InvalidName::Reserved),
            ("System:masters", InvalidName::Reserved),
            (" alice", InvalidName::BlankEdge),
            ("alice\u{a0}", InvalidName::BlankEdge),
            ("alice\n", InvalidName::Control),
            ("a\tb", InvalidName::Control),
            (&"a".repeat(MAX_NAME + 1), InvalidName::TooLong),
        ] {
            assert_eq!(check_name(name), Err(why), "{name:?}");
        }
        assert_eq!(InvalidName::TooLong.to_string(), "is longer than 512 bytes");
        for own in [
            "break-glass:alice",
            "Break-Glass:alice",
            "webhook:github:repo:1",
            "serviceaccount:ci:builder",
            "ServiceAccount:x",
        ] {
            assert_eq!((check_name(own), check_users_name(own)), (Ok(()), Err(InvalidName::Own)), "{own:?}");
        }
        for name in ["break-glass", "break-glass#alice", "webhooks:x", "serviceaccount", "serviceaccounts:x"] {
            assert_eq!(check_users_name(name), Ok(()), "{name:?}");
        }
        let longest = "a".repeat(MAX_NAME);
        for name in ["alice", "https://idp.example#alice", "systemx:y", "ѕystem:masters", "Jürgen", &longest] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
    }
}
