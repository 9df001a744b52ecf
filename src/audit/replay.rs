//! Reads a request's line back into the inputs of its decision, so that the decision can be made again.

use std::{io, net::IpAddr, sync::Arc};

use http::Method;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{note::code, pseudonym::is_pseudonym, record::Decision};
use crate::{
    authn::{Actor, CredentialId, Kind, LoginFacts, Principal, Scheme},
    authz::{AskedToken, RequestView, TOKEN_ENDPOINT},
    clock::Timestamp,
    config::raw::{Effect, EventListener, RouteKind, RunIntent},
    kubernetes::Attributes,
    tekton::Run,
    webhooks::Facts,
};

/// The inputs of a decision. Of the claims it holds only those in [`super::CLAIMS`] and those that the policy named,
/// which are all that a policy can use. The query of a request is not an input of any rule.
#[derive(Clone, Debug)]
pub struct ReplayInputs {
    pub id: Uuid,
    pub time: Timestamp,
    /// None for Doorward's own endpoints, and for requests that matched no route.
    pub route: Option<String>,
    pub kind: Option<RouteKind>,
    pub host: String,
    pub path: String,
    pub method: Method,
    pub upgrade: bool,
    pub address: Option<IpAddr>,
    pub event_listener: Option<EventListener>,
    pub kubernetes: Option<Attributes>,
    pub run: Option<Run>,
    pub delivery: Option<Arc<Facts>>,
    /// The token that was requested at the token endpoint.
    pub asked: Option<AskedToken>,
    /// The request whose delivery an EventListener asked about.
    pub about: Option<Uuid>,
    /// None if nobody was authenticated.
    pub principal: Option<Principal>,
    /// The original decision.
    pub decision: Option<Decision>,
    /// The digest of the policy that decided.
    pub policy: Option<String>,
    /// The reason code of a refusal, whichever step refused.
    pub reason: Option<String>,
    /// The reason in words.
    pub detail: Option<String>,
    /// Fields that were cut to fit the line. If there are any, the repeated decision may differ.
    pub truncated: Vec<String>,
}

impl ReplayInputs {
    /// Reads a line of the trail. Its seal is not checked here.
    pub fn parse(line: &[u8]) -> Result<Self, ReplayError> {
        serde_json::from_slice::<Line>(line).map_err(ReplayError::Json)?.try_into()
    }

    /// Returns the request as rules see it; none if it was neither routed to an upstream nor a request for a token. It
    /// does not contain the token itself.
    pub fn view(&self) -> Option<RequestView<'_>> {
        let (route, kind) = match &self.asked {
            // No rule is evaluated before the requester and the subject are known.
            Some(_) => (self.decision.as_ref().map(|_| TOKEN_ENDPOINT), Some(RouteKind::Http)),
            None => (self.route.as_deref(), self.kind),
        };
        Some(RequestView {
            route: route?,
            kind: kind?,
            host: &self.host,
            path: &self.path,
            method: &self.method,
            upgrade: self.upgrade,
            address: self.address?,
            event_listener: self.event_listener.as_ref(),
            kubernetes: self.kubernetes.as_ref(),
            run: self.run.as_ref(),
            delivery: self.delivery.as_deref(),
            trigger: None,
            token: None,
            now: self.time,
        })
    }
}

/// Why a line cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("the trail cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the line does not belong to an audit trail: {0}")]
    Json(serde_json::Error),
    #[error("the line is a record of `{0}`, which contains no inputs of a decision")]
    Kind(String),
    #[error("the line names the unknown method `{0}`")]
    Method(String),
}

#[derive(Deserialize)]
struct Line {
    time: i64,
    metadata: Metadata,
    status_code: Option<String>,
    status_detail: Option<String>,
    actor: Option<ActorLine>,
    src_endpoint: Option<Endpoint>,
    http_request: Option<HttpRequest>,
    #[serde(default)]
    authorizations: Vec<Authorization>,
    unmapped: Details,
    #[serde(default)]
    truncated: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    event_code: String,
}

#[derive(Deserialize)]
struct ActorLine {
    user: User,
    idp: Named,
    #[serde(default)]
    session: Session,
    app_uid: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct User {
    uid: Arc<str>,
    name: Arc<str>,
}

#[derive(Deserialize)]
struct Named {
    name: Arc<str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Session {
    uid: Arc<str>,
    expiration_time: Option<i64>,
}

#[derive(Deserialize)]
struct Endpoint {
    ip: IpAddr,
}

#[derive(Deserialize)]
struct HttpRequest {
    uid: String,
    http_method: String,
    url: Url,
}

#[derive(Deserialize)]
struct Url {
    hostname: String,
    path: String,
}

#[derive(Default, Deserialize)]
struct Authorization {
    decision: Option<String>,
    #[serde(default)]
    policy: Policy,
}

#[derive(Default, Deserialize)]
struct Policy {
    uid: Option<Arc<str>>,
    version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    route: Option<String>,
    kind: Option<RouteKind>,
    upgrade: bool,
    principal: Option<PrincipalLine>,
    shadow: Vec<Arc<str>>,
    grants: Vec<Arc<str>>,
    kubernetes: Option<Attributes>,
    run: Option<RunLine>,
    event_listener: Option<EventListener>,
    webhook: Option<Facts>,
    asked: Option<AskedToken>,
    about: Option<Uuid>,
}

#[derive(Deserialize)]
struct PrincipalLine {
    kind: Kind,
    /// The kind of the person or workload for whom an actor acts, if it differs.
    subject_kind: Option<Kind>,
    scheme: Scheme,
    credential: String,
    /// None if the issuer said nothing about them.
    groups: Option<Vec<Arc<str>>>,
    scopes: Option<Vec<Arc<str>>>,
    actor: Option<Actor>,
    auth_time: Option<i64>,
    acr: Option<Arc<str>>,
    #[serde(default)]
    amr: Vec<Arc<str>>,
    #[serde(default)]
    claims: Map<String, Value>,
}

#[derive(Deserialize)]
struct RunLine {
    does: RunIntent,
    #[serde(default)]
    besides: Vec<RunIntent>,
    #[serde(default)]
    code: Vec<Arc<str>>,
    #[serde(default)]
    service_accounts: Vec<Arc<str>>,
    #[serde(default)]
    inline: bool,
    #[serde(default)]
    pod_template: bool,
    #[serde(default)]
    binds_secrets: bool,
    #[serde(default)]
    params: Vec<(Arc<str>, Arc<str>)>,
    #[serde(default)]
    labels: Vec<(Arc<str>, Arc<str>)>,
}

impl RunLine {
    fn into_run(self) -> Run {
        Run {
            intent: self.does,
            statuses: self.besides,
            references: self.code,
            inline: self.inline,
            service_accounts: self.service_accounts,
            pod_template: self.pod_template,
            binds_secrets: self.binds_secrets,
            params: self.params.into_iter().collect(),
            labels: self.labels.into_iter().collect(),
        }
    }
}

impl TryFrom<Line> for ReplayInputs {
    type Error = ReplayError;

    fn try_from(line: Line) -> Result<Self, ReplayError> {
        let holds_inputs = [code::REQUEST, code::DECIDED, code::STARTED].contains(&line.metadata.event_code.as_str());
        let (true, Some(HttpRequest { uid, http_method, url })) = (holds_inputs, line.http_request) else {
            return Err(ReplayError::Kind(line.metadata.event_code));
        };
        let details = line.unmapped;
        let delivery = details.webhook.map(Arc::new);
        let principal = line.actor.zip(details.principal).map(|(actor, known)| known.with(actor, delivery.clone()));
        let Authorization { decision, policy } = line.authorizations.into_iter().next().unwrap_or_default();
        let outcome = Effect::ALL.into_iter().find(|outcome| decision.as_deref() == Some(outcome.as_str()));
        // `follow` is not in the trail: it only affects how long the response lasts, which no decision uses.
        let kubernetes = details.kubernetes.map(|attributes| Attributes {
            path: if attributes.is_resource { String::new() } else { url.path.clone() },
            ..attributes
        });
        Ok(Self {
            id: uid.parse().unwrap_or_default(),
            time: Timestamp::from_millis(line.time),
            route: details.route,
            kind: details.kind,
            host: url.hostname,
            path: url.path,
            method: http_method.parse().map_err(|_| ReplayError::Method(http_method))?,
            upgrade: details.upgrade,
            address: line.src_endpoint.map(|endpoint| endpoint.ip),
            event_listener: details.event_listener,
            kubernetes,
            run: details.run.map(RunLine::into_run),
            delivery,
            asked: details.asked,
            about: details.about,
            principal,
            decision: outcome.map(|outcome| Decision {
                outcome,
                rule: policy.uid,
                shadow: details.shadow,
                grants: details.grants,
            }),
            policy: policy.version,
            reason: line.status_code,
            detail: line.status_detail,
            truncated: line.truncated,
        })
    }
}

impl ReplayInputs {
    /// Whether the name of the caller, or of the person who caused the delivery, is a pseudonym, which rules that name
    /// people or their repositories cannot match.
    pub fn is_pseudonymous(&self) -> bool {
        let caller = self.principal.as_ref().map(|principal| &*principal.subject);
        let behind = self.delivery.as_ref().and_then(|facts| facts.actor.as_deref());
        caller.into_iter().chain(behind).any(is_pseudonym)
    }
}

impl PrincipalLine {
    fn with(self, actor: ActorLine, delivery: Option<Arc<Facts>>) -> Principal {
        let id = actor.session.uid;
        let email = Principal::verified_email(&self.claims);
        Principal {
            kind: self.kind,
            subject_kind: self.subject_kind,
            says_groups: self.groups.is_some(),
            groups: self.groups.unwrap_or_default(),
            says_scopes: self.scopes.is_some(),
            scopes: self.scopes.unwrap_or_default(),
            client: actor.app_uid,
            actor: self.actor,
            login: LoginFacts { auth_time: self.auth_time.map(Timestamp::from_millis), acr: self.acr, amr: self.amr },
            claims: Arc::new(self.claims),
            credential: match self.credential.as_str() {
                "token" => CredentialId::Token(id),
                "session" => CredentialId::Session(id),
                "delivery" => CredentialId::Delivery(id),
                "certificate" => CredentialId::Certificate(id),
                _ => CredentialId::None,
            },
            expires: actor.session.expiration_time.map_or(Timestamp::MAX, Timestamp::from_millis),
            delivery,
            email,
            ..Principal::new(self.scheme, actor.idp.name, actor.user.uid, actor.user.name)
        }
    }
}
