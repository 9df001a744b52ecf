//! The record of one request. The pipeline opens a [`Record`] before anything else and fills it in along the way.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use uuid::Uuid;

use super::caller::credential;
use crate::{
    authn::{KnownAs, KnownToken, Principal},
    authz::AskedToken,
    clock::Timestamp,
    config::raw::{Effect, EventListener, RouteKind},
    error::{PresentedIdentity, Reason, Rejection},
    kubernetes::{Attributes, ObjectRef},
    oidc,
    sha256::sha256,
    tekton::Run,
    webhooks::Facts,
};

/// Everything that the trail says about one request. Fields are shared or small, so that filling one in is cheap;
/// unknown fields stay empty and are left out of the line.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// UUID version 7; also the `Audit-ID` that Kubernetes writes into its own log.
    pub id: Uuid,
    pub phase: Phase,
    /// When the request arrived.
    pub time: Timestamp,
    /// From arrival to the end of the response.
    pub latency: Duration,
    /// The trace id of W3C Trace Context.
    pub trace: Option<[u8; 16]>,
    /// The name of the route; none for Doorward's own endpoints and for requests that matched no route.
    pub route: Option<Arc<str>>,
    pub kind: Option<RouteKind>,
    /// The name of Doorward's own endpoint that answered.
    pub endpoint: Option<&'static str>,
    /// Lower case, without port; as it was sent if it is not a valid host.
    pub host: Arc<str>,
    pub method: Method,
    /// The canonical path, or the beginning of the path as sent if the request was refused before it was canonicalized.
    /// Never the query, which may carry codes and tokens.
    pub path: Box<str>,
    /// Whether the request asked for another protocol.
    pub upgrade: bool,
    /// The client's address, as far as trusted proxies reported it.
    pub address: Option<IpAddr>,
    pub tls: Option<Arc<Tls>>,
    /// Written by the client; not to be trusted.
    pub user_agent: Option<Box<str>>,
    /// Who called, and on whose behalf.
    pub principal: Option<Arc<Principal>>,
    /// Names of top-level claims that the policy uses (for a JSON pointer, its first part). These and [`super::CLAIMS`]
    /// are recorded, and no others.
    pub claims: Option<Arc<[Arc<str>]>>,
    pub decision: Option<Decision>,
    pub refusal: Option<Refusal>,
    /// The identity in a credential that was verified and refused nevertheless: it is not a principal, or is revoked.
    pub presented: Option<Box<PresentedIdentity>>,
    /// Why a login failed.
    pub failed_login: Option<FailedLogin>,
    /// The request's attributes as Kubernetes sees them.
    pub kubernetes: Option<Arc<Attributes>>,
    /// What the request does to a Tekton run.
    pub run: Option<Arc<Run>>,
    /// The groups with which it was sent to Kubernetes, as the user of its principal; none if it was not sent there.
    pub impersonated_groups: Option<Arc<[Arc<str>]>>,
    /// The EventListener behind a webhook route.
    pub event_listener: Option<Arc<EventListener>>,
    /// The facts of a verified delivery.
    pub delivery: Option<Arc<Facts>>,
    /// For a delivery that was stored, the id of the request that delivered it: this request itself, which knows it only
    /// at its end, or an earlier one whose delivery is forwarded now.
    pub held: Option<Uuid>,
    /// The id of another request that this one refers to: for an interceptor call, the request whose (verified)
    /// assertion it carries; for a delivery that is repeated while it is held, the request that delivered it first.
    pub about: Option<Uuid>,
    pub upstream: Option<Upstream>,
    /// The status that the caller got.
    pub status: Option<StatusCode>,
    /// SHA-256 of the request's body, if it was buffered whole, or was forwarded as a stream and may change something.
    pub body_digest: Option<[u8; 32]>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// The event id in an EventListener's response: it labels the runs that result.
    pub event_id: Option<Box<str>>,
    /// The token that was requested.
    pub asked: Option<Box<AskedToken>>,
    /// The token that was issued.
    pub issued: Option<Box<Issued>>,
    /// The id of a token of ours that its holder revoked.
    pub revoked: Option<String>,
    /// A token of ours that a resource server queried.
    pub introspected: Option<Box<Introspected>>,
    /// The digest of the policy that decided.
    pub policy: Option<Arc<str>>,
    /// Why a stream ended early: `revoked`, `expired`, `client_gone`, `flood`.
    pub ended: Option<Cow<'static, str>>,
}

impl Record {
    /// Creates the record of a request that has just arrived, of which nothing else is known.
    pub fn begin(id: Uuid, time: Timestamp, method: Method) -> Self {
        Self { id, time, method, ..Self::default() }
    }

    /// Records the size and the digest of a body that was read whole.
    pub fn note_body(&mut self, body: &[u8]) {
        self.bytes_in = body.len() as u64;
        self.body_digest = Some(sha256(&[body]));
    }

    /// Returns roughly the memory that it takes, in bytes: itself and its unshared texts that may be long.
    pub(super) fn weight(&self) -> usize {
        let texts = [Some(&*self.host), Some(&*self.path), self.user_agent.as_deref()];
        let detail = self.refusal.as_ref().map_or(0, |refusal| refusal.detail.len());
        let presented = self.presented.as_deref().map_or(0, |presented| {
            let names = [&presented.user, &presented.group].into_iter().flatten();
            let (_, credential) = credential(&presented.credential);
            presented.subject.len() + credential.len() + names.map(|name| name.len()).sum::<usize>()
        });
        size_of::<Self>() + detail + presented + texts.into_iter().flatten().map(str::len).sum::<usize>()
    }

    /// Records a refusal: its reason, its detail as sent to the caller, its status, and the identity in the credential.
    pub fn refuse(&mut self, rejection: &Rejection) {
        self.refusal = Some(Refusal { reason: rejection.reason(), detail: rejection.detail().into() });
        self.presented = rejection.presented().cloned().map(Box::new);
        self.status = Some(rejection.status());
    }
}

/// A login that failed. It has no text of the provider, which comes through the browser: anybody may have written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedLogin {
    pub outcome: oidc::Outcome,
    /// The name of the issuer, if the request belongs to a login that began here.
    pub issuer: Option<Arc<str>>,
}

/// The answer that a resource server got about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introspected {
    /// Its `jti`.
    pub token: String,
    /// The resource server, by its name in `tokens.resource_servers`.
    pub server: String,
    /// Whether the token was valid and for this server.
    pub active: bool,
}

/// A token that Doorward has issued, without the token itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Its `jti`.
    pub token: String,
    /// The name of its issuer, as routes and revocations use it.
    pub issuer: Arc<str>,
    pub audience: String,
    pub scopes: Vec<Arc<str>>,
    pub expires: Timestamp,
    /// The rules that granted the scopes.
    pub rules: Vec<Arc<str>>,
    /// The request that caused the run.
    pub cause: Option<Uuid>,
    /// The task that got it.
    pub task: Option<IssuedTask>,
    /// Everybody whose revocation ends it: its subject, and all present and former actors.
    pub parties: Vec<KnownAs>,
    /// The tokens whose revocation ends it: those that it was exchanged for.
    pub exchanged: Vec<KnownToken>,
    /// Set if the token is another provider's.
    pub onward: Option<IssuedOnward>,
}

/// A token of another provider, which was returned in place of one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedOnward {
    /// The kind of provider, and its host.
    pub provider: String,
    /// The `jti` of the assertion that it was exchanged for. For a token that is cached and returned again, that of the
    /// first exchange.
    pub assertion: String,
    /// The SHA-256 of the token, in hexadecimal.
    pub sha256: String,
}

/// A task that got a token. The token ends with the task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedTask {
    /// The name of its issuer.
    pub cluster: String,
    pub namespace: String,
    pub task_run: ObjectRef,
    pub pod: ObjectRef,
    pub pipeline_run: Option<ObjectRef>,
    /// Its name in the pipeline.
    pub pipeline_task: Option<String>,
    /// The uid of the outermost run.
    pub root: String,
}

/// Which one of a request's records this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The only record of its request.
    #[default]
    Whole,
    /// Written before the request is forwarded or, as a delivery that is held, stored, so that a crash still leaves a
    /// trace.
    Decided,
    /// A long stream has started: the upstream responded.
    Started,
    /// The end of a request that has an earlier record.
    Completed,
}

/// The decision of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Effect,
    /// The rule that decided; none if no rule matched.
    pub rule: Option<Arc<str>>,
    /// Rules in shadow mode that match.
    pub shadow: Vec<Arc<str>>,
    /// Grants that gave Kubernetes groups.
    pub grants: Vec<Arc<str>>,
}

/// Why a request was refused, at whichever step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// The detail that the caller was sent.
    pub detail: Box<str>,
}

/// The upstream that a request was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: Arc<str>,
    /// The status of its response; none if there was no response.
    pub status: Option<StatusCode>,
}

/// The facts of the TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// The server name that the client asked for.
    pub server_name: Option<Box<str>>,
    /// SHA-256 of the client's certificate.
    pub certificate: Option<[u8; 32]>,
    /// The subject of the client's certificate.
    pub subject: Option<Arc<str>>,
}
