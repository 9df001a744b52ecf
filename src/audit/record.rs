//! What one request's record says. The pipeline opens a [`Record`] before anything else and fills it along the way.

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use uuid::Uuid;

use crate::{
    authn::{KnownAs, Principal},
    authz::AskedToken,
    clock::Timestamp,
    config::raw::{Effect, EventListener, RouteKind},
    error::{PresentedIdentity, Reason, Rejection},
    kubernetes::{Attributes, ObjectRef},
    tekton::Run,
    webhooks::Facts,
};

/// Everything that the trail tells about one request. Fields are shared or small, so that filling one costs little; what
/// is unknown stays empty and is left out of the line.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// UUID version 7; also the `Audit-ID` that Kubernetes writes into its own log.
    pub id: Uuid,
    pub phase: Phase,
    /// When the request arrived.
    pub time: Timestamp,
    /// From arrival to the end of the answer.
    pub latency: Duration,
    /// The trace id of W3C Trace Context.
    pub trace: Option<[u8; 16]>,
    /// The name of the route; none for Doorward's own endpoints and for what matched no route.
    pub route: Option<Arc<str>>,
    pub kind: Option<RouteKind>,
    /// The name of Doorward's own endpoint that answered.
    pub endpoint: Option<&'static str>,
    /// Lower case, without port; as it was sent where it is no host.
    pub host: Arc<str>,
    pub method: Method,
    /// The canonical path; the beginning of the one that was sent, where the request was refused before. Never the query, which may carry codes and tokens.
    pub path: Box<str>,
    /// Whether the request asked for another protocol.
    pub upgrade: bool,
    /// The client's address, as far as trusted proxies tell.
    pub address: Option<IpAddr>,
    pub tls: Option<Arc<Tls>>,
    /// Written by the client; not to be trusted.
    pub user_agent: Option<Box<str>>,
    /// Who called, and on whose behalf.
    pub principal: Option<Arc<Principal>>,
    /// Names of top-level claims that the policy looks at (of a JSON pointer, its first part). They are recorded besides
    /// [`super::CLAIMS`], and no others.
    pub claims: Option<Arc<[Arc<str>]>>,
    pub decision: Option<Decision>,
    pub refusal: Option<Refusal>,
    /// Whom a verified credential names that was refused all the same, and who is no principal therefore.
    pub presented: Option<Box<PresentedIdentity>>,
    /// What the request asks of Kubernetes.
    pub kubernetes: Option<Arc<Attributes>>,
    /// What it does to a run of Tekton.
    pub run: Option<Arc<Run>>,
    /// With which groups it was sent to Kubernetes, as the user of its principal; none if it was not.
    pub impersonated_groups: Option<Arc<[Arc<str>]>>,
    /// The EventListener behind a webhook route.
    pub event_listener: Option<Arc<EventListener>>,
    /// What a verified delivery tells.
    pub delivery: Option<Arc<Facts>>,
    /// The id of the request that brought a delivery which was stored: this one itself, or the one whose delivery is
    /// sent now.
    pub held: Option<Uuid>,
    /// The id of another request that it is about. Of a question of an EventListener: the one whose assertion it shows, once that is
    /// proved. Of a delivery that comes again while it waits: the one that brought it.
    pub about: Option<Uuid>,
    pub upstream: Option<Upstream>,
    /// The status that the caller got.
    pub status: Option<StatusCode>,
    /// SHA-256 of the request's body, where it was read whole, or passed on as it came and may change something.
    pub body_digest: Option<[u8; 32]>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// The event id that an EventListener answered with: it labels the runs that came of it.
    pub event_id: Option<Box<str>>,
    /// The token that was asked for.
    pub asked: Option<Box<AskedToken>>,
    /// The token that was given.
    pub issued: Option<Box<Issued>>,
    /// The id of a token of ours that its holder ended.
    pub revoked: Option<String>,
    /// A token of ours that a resource server asked about.
    pub introspected: Option<Box<Introspected>>,
    /// The digest of the policy that decided.
    pub policy: Option<Arc<str>>,
    /// Why a stream ended, where it was not its natural end: `revoked`, `expired`, `client_gone`, `flood`.
    pub ended: Option<Cow<'static, str>>,
}

impl Record {
    /// A record of which nothing is known but that a request arrived.
    pub fn begin(id: Uuid, time: Timestamp, method: Method) -> Self {
        Self { id, time, method, ..Self::default() }
    }

    /// Bytes of memory that it takes, about: itself and the texts that are its alone and may be long.
    pub(super) fn weight(&self) -> usize {
        let texts = [Some(&*self.host), Some(&*self.path), self.user_agent.as_deref()];
        let detail = self.refusal.as_ref().map_or(0, |refusal| refusal.detail.len());
        let presented = self.presented.as_deref().map_or(0, |presented| {
            let names = [&presented.user, &presented.group].into_iter().flatten();
            presented.subject.len() + names.map(|name| name.len()).sum::<usize>()
        });
        size_of::<Self>() + detail + presented + texts.into_iter().flatten().map(str::len).sum::<usize>()
    }

    /// Notes a refusal: its reason, what the caller was told, its status, and whom the credential named.
    pub fn refuse(&mut self, rejection: &Rejection) {
        self.refusal = Some(Refusal { reason: rejection.reason(), detail: rejection.detail().into() });
        self.presented = rejection.presented().cloned().map(Box::new);
        self.status = Some(rejection.status());
    }
}

/// What a resource server heard of a token that it was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introspected {
    /// Its `jti`.
    pub token: String,
    /// Who asked, by the name in `tokens.resource_servers`.
    pub server: String,
    /// Whether the token was for it and good.
    pub active: bool,
}

/// A token that Doorward has issued, by what names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Its `jti`.
    pub token: String,
    /// By what name routes, and operators who revoke, know who issued it.
    pub issuer: Arc<str>,
    pub audience: String,
    pub scopes: Vec<Arc<str>>,
    pub expires: Timestamp,
    /// The rules that gave the scopes.
    pub rules: Vec<Arc<str>>,
    /// The request that caused the run.
    pub cause: Option<Uuid>,
    /// The task that got it.
    pub task: Option<IssuedTask>,
    /// Everybody whose revocation ends it: whom it stands for, and who acts for them or did.
    pub parties: Vec<KnownAs>,
    /// Where it is another provider's.
    pub onward: Option<IssuedOnward>,
}

/// A token of another provider, which was given in place of one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedOnward {
    /// The kind of provider, and its host.
    pub provider: String,
    /// The `jti` of the assertion that it was given for. Of a token that is held and given again, that of the first time.
    pub assertion: String,
    /// The SHA-256 of the token, in hexadecimal.
    pub sha256: String,
}

/// A task that got a token, which lives as long as it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedTask {
    /// The name of its issuer.
    pub cluster: String,
    pub namespace: String,
    pub task_run: ObjectRef,
    pub pod: ObjectRef,
    pub pipeline_run: Option<ObjectRef>,
    /// What the pipeline calls it.
    pub pipeline_task: Option<String>,
    /// The uid of the outermost run.
    pub root: String,
}

/// Which of a request's records this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The only one.
    #[default]
    Whole,
    /// Written before the request is forwarded, so that a crash still leaves a trace.
    Decided,
    /// A long stream has begun: the upstream answered.
    Started,
    /// The end of a request whose `Decided` came before.
    Completed,
}

/// What the policy said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Effect,
    /// The rule that decided; none if no rule matched.
    pub rule: Option<Arc<str>>,
    /// Rules in shadow mode that hit.
    pub shadow: Vec<Arc<str>>,
    /// Grants that gave Kubernetes groups.
    pub grants: Vec<Arc<str>>,
}

/// Why a request was refused, at whichever step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    /// What the caller was told.
    pub detail: Box<str>,
}

/// Where a request went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: Arc<str>,
    /// Its answer; none if there was none.
    pub status: Option<StatusCode>,
}

/// What is known of the TLS connection.
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
