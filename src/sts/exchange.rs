//! One exchange, from the form to the token, and the end of a token at the word of who has it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Cluster, Tokens,
    claims::{self, AccessToken, Origin},
    ends::Kind,
    form::{ACCESS_TOKEN, Asked, Form},
    keys::SigningKeys,
    refusal::{Refusal, answer},
    task::{Named, PodToken, Reader, Task},
};
use crate::{
    app::App,
    audit,
    authn::{Actor, CredentialId, Kind as Caller, Principal},
    authz::{Decision, Outcome, RequestView, TOKEN_ENDPOINT, TokenView},
    clock::Timestamp,
    config::raw::RouteKind,
    error::Reason,
    request::{exchange::Exchange, pipeline::recorded, sanitize::CleanRequest},
    runs::{Cause, Causes},
    snapshot::Snapshot,
    store::{Expect, Put, Table, Target, WrittenAll},
    upstream::Pools,
};

/// How long after the last token of a run its record is kept.
const AFTER: std::time::Duration = std::time::Duration::from_secs(120);

/// How many may have acted for each other.
const MAX_ACTORS: usize = 4;

/// What one exchange works with.
#[derive(Clone, Copy)]
pub struct Exchanger<'a> {
    pub app: &'a App,
    pub pools: &'a Pools,
    pub snapshot: &'a Snapshot,
    pub tokens: &'a Tokens,
    pub keys: &'a SigningKeys,
}

/// For whom a token is, and on whose behalf.
struct Party {
    /// The person or bot, with who acts for them now.
    principal: Arc<Principal>,
    /// When the token that is exchanged ends.
    ends: Timestamp,
    /// Who acted for the principal before, as `act` says it.
    acted_before: Option<Value>,
    of: Option<OfTask>,
}

/// The task that asks.
struct OfTask {
    task: Box<Task>,
    /// The name of its cluster's issuer, and the identifier.
    cluster: Arc<str>,
    cluster_identifier: Arc<str>,
    /// The request that caused its run.
    cause: Uuid,
}

/// What rules give.
struct Granted {
    scopes: Vec<Arc<str>>,
    rules: Vec<Arc<str>>,
}

/// What the store has of a TaskRun or a pod that has tokens, by its uid: enough to find it again in the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Bearer {
    /// The name of the cluster's issuer.
    pub cluster: Arc<str>,
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Exchanger<'_> {
    pub async fn exchange(
        &self,
        request: &CleanRequest<()>,
        body: &[u8],
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let asked = Asked::read(&Form::parse(request.headers(), body)?)?;
        exchange.reserve(2)?;
        let now = self.app.clock.now();
        let subject = self.authenticate("subject_token", &asked.subject_token).await?;
        exchange.record().principal = Some(Arc::clone(&subject));
        let party = match &asked.actor_token {
            None => self.party(subject, now).await?,
            Some(actor) => self.delegated(&subject, &*self.authenticate("actor_token", actor).await?)?,
        };
        let record = exchange.record();
        record.principal = Some(Arc::clone(&party.principal));
        record.policy = Some(Arc::clone(self.snapshot.policy.digest()));
        record.claims.clone_from(&self.snapshot.claims);
        let view = self.view(request, &asked.audience, &party, now);
        let (granted, decision) = self.decide(&party, &view, asked.scopes.as_deref());
        exchange.record().decision = Some(recorded(&decision));
        let granted = granted?;
        let task = party.task();
        let expires = claims::expires(now, self.tokens.settings.lifetime, party.ends, task);
        if expires <= now {
            return Err(Refusal::subject("the time of the run, or of the token, is out"));
        }
        if let Some(of) = &party.of {
            self.note_bearer(&party, &of.task, &of.cluster, expires, now).await?;
        }
        let jti = Uuid::now_v7().to_string();
        let scope = granted.scopes.join(" ");
        let client = claims::client(&party.principal, task);
        let claims = AccessToken {
            iss: self.tokens.issuer(),
            sub: &party.principal.username,
            aud: &asked.audience,
            client_id: &client,
            iat: now.as_secs(),
            exp: expires.as_secs(),
            jti: &jti,
            kind: party.principal.kind,
            origin: Origin { issuer: &party.principal.issuer, sub: &party.principal.subject },
            scope: &scope,
            act: party.act(),
            run: task.map(claims::run).unwrap_or_default(),
        };
        let issued = audit::Issued {
            token: jti.clone(),
            audience: asked.audience.clone(),
            scopes: granted.scopes,
            expires,
            rules: granted.rules,
            cause: party.of.as_ref().map(|of| of.cause),
            task: task.map(issued_to),
            onward: None,
        };
        if let Some(onward) = self.tokens.settings.onward.get(asked.audience.as_str()) {
            return self.pass_on(onward, &claims, (&party.principal, task), issued, exchange).await;
        }
        let token = self.keys.sign(&claims);
        let token =
            Zeroizing::new(token.ok_or_else(|| Refusal::unavailable(Reason::Internal, "the token cannot be signed"))?);
        exchange.record().issued = Some(Box::new(issued));
        // It is written down before it is out of the house.
        exchange.decided().await?;
        let body = json!({
            "access_token": &*token,
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": (expires.as_millis() - self.app.clock.now().as_millis()) / 1000,
            "scope": scope,
        });
        Ok(answer(StatusCode::OK, &body))
    }

    /// Refuses while what is known of revocations is too old.
    pub(super) fn check_revocations(&self) -> Result<(), Refusal> {
        if self.app.revocations.mirror_age() <= self.snapshot.max_mirror_age {
            return Ok(());
        }
        let detail = "whether the token was revoked cannot be told at the moment; try again";
        Err(Refusal::unavailable(Reason::StoreUnavailable, detail))
    }

    /// Who has the token that is to be exchanged. What it is good for elsewhere says nothing here.
    async fn authenticate(&self, parameter: &'static str, token: &str) -> Result<Arc<Principal>, Refusal> {
        self.check_revocations()?;
        let revoked = |principal: &Principal| self.app.revocations.is_revoked(principal).is_some();
        let authenticated = self.snapshot.issuers.authenticate(token, &self.tokens.settings.accepts, &revoked).await;
        authenticated.map_err(|rejection| Refusal::of_token(parameter, &rejection))
    }

    /// Of the token of a pod, who caused the run in it.
    async fn party(&self, subject: Arc<Principal>, now: Timestamp) -> Result<Party, Refusal> {
        let Some(Cluster { server, namespaces }) = self.tokens.settings.clusters.get(&subject.issuer) else {
            let acted_before = subject.claims.get("act").and_then(|act| act.get("act")).cloned();
            return Ok(Party { ends: subject.expires, principal: subject, acted_before, of: None });
        };
        let pod = PodToken::read(&subject.claims)?;
        if !namespaces.is_empty() && !namespaces.iter().any(|namespace| namespace == pod.namespace()) {
            return Err(Refusal::subject(format!("no task in namespace {} gets tokens", pod.namespace())));
        }
        if !self.app.ends.are_seen(&subject.issuer, now) {
            let detail = "the ends of runs cannot be seen at the moment, so no task gets a token; try again";
            return Err(Refusal::unavailable(Reason::UpstreamFailed, detail));
        }
        let task = Box::new(Task::of(&pod, Reader { pools: self.pools, server }, now).await?);
        let root = &task.root;
        let causes = Causes { store: self.app.store(), keys: self.snapshot.sessions.keys() };
        let cause = causes.of(&root.uid, root.event.as_deref(), root.created, now).await.map_err(|error| {
            tracing::warn!(%error, run = root.uid, "who caused a run is not known");
            Refusal::unavailable(
                Reason::StoreUnavailable,
                "who caused the run cannot be looked up at the moment; try again",
            )
        })?;
        let cause = cause.ok_or_else(|| {
            Refusal::subject(format!(
                "nobody is known who caused run {}: it was made past Doorward, or more than a week ago; start it through \
                 Doorward, or by a delivery to it",
                task.pipeline_run.as_ref().unwrap_or(&task.task_run).name
            ))
        })?;
        let behind = self.behind(&cause)?;
        let acted_before = behind.actor.as_ref().map(said);
        let cluster = Arc::clone(&subject.issuer);
        let identifier = self.snapshot.issuers.get(&cluster).map(|issuer| Arc::clone(issuer.identifier()));
        let principal = Principal {
            actor: Some(Actor::service_account(&task.view.namespace, &task.view.service_account)),
            credential: subject.credential.clone(),
            expires: subject.expires,
            lives_with: [&task.task_run, &task.pod].map(|object| object.uid.as_str().into()).into(),
            ..behind
        };
        let of = OfTask {
            task,
            cluster_identifier: identifier.unwrap_or_else(|| Arc::clone(&cluster)),
            cluster,
            cause: cause.request,
        };
        Ok(Party { principal: Arc::new(principal), ends: subject.expires, acted_before, of: Some(of) })
    }

    /// An agent that acts for somebody, who has said so: by `may_act` in their token (RFC 8693 section 4.4), or by having had it
    /// issued to that agent.
    fn delegated(&self, subject: &Principal, actor: &Principal) -> Result<Party, Refusal> {
        let is_pod = |principal: &Principal| self.tokens.settings.clusters.contains_key(&principal.issuer);
        if is_pod(subject) || is_pod(actor) {
            return Err(Refusal::malformed("a task acts for who caused its run; leave `actor_token` out"));
        }
        if actor.kind == Caller::Human {
            return Err(Refusal::subject("actor_token: it is a person's, and nobody acts for another but an agent"));
        }
        let is_let = match subject.claims.get("may_act") {
            Some(may_act) => self.is_meant(may_act, actor),
            None => subject.client.is_some() && subject.client == actor.client,
        };
        if !is_let {
            return Err(Refusal::subject(format!(
                "subject_token: it does not let `{}` act: `may_act` names somebody else, or is missing and the token was issued to \
                 another client",
                actor.subject
            )));
        }
        let earlier = subject.claims.get("act");
        if earlier.is_some_and(|act| depth(act) >= MAX_ACTORS) {
            return Err(Refusal::subject(format!(
                "subject_token: more than {MAX_ACTORS} have acted for each other already"
            )));
        }
        let principal = Principal {
            actor: Some(Actor { subject: Arc::clone(&actor.subject), client: actor.client.clone() }),
            ..subject.clone()
        };
        Ok(Party {
            principal: Arc::new(principal),
            ends: subject.expires.min(actor.expires),
            acted_before: earlier.cloned(),
            of: None,
        })
    }

    /// Whether `may_act` means this agent: all that it says must be true of it.
    fn is_meant(&self, may_act: &Value, actor: &Principal) -> bool {
        let identifier = self.snapshot.issuers.get(&actor.issuer).map(|issuer| issuer.identifier());
        let Some(said) = may_act.as_object() else { return false };
        let names_somebody = said.contains_key("sub") || said.contains_key("client_id");
        names_somebody
            && said.iter().all(|(name, value)| match name.as_str() {
                "sub" => value.as_str() == Some(&*actor.subject),
                "client_id" => value.as_str() == actor.client.as_deref(),
                "iss" => value.as_str() == identifier.map(|identifier| &**identifier),
                // What is not understood might restrict it.
                _ => false,
            })
    }

    /// The person or bot that caused a run, if they may still cause anything.
    fn behind(&self, cause: &Cause) -> Result<Principal, Refusal> {
        let principal = cause.principal();
        if principal.is_anonymous() {
            return Err(Refusal::subject("the run was caused by somebody who had no credential"));
        }
        let is_known = self.snapshot.issuers.get(&principal.issuer).is_some()
            || principal
                .delivery
                .as_deref()
                .is_some_and(|facts| self.snapshot.raw.webhooks.iter().any(|webhook| *webhook.name == *facts.webhook));
        if !is_known {
            let issuer = &principal.issuer;
            return Err(Refusal::subject(format!(
                "who caused the run is of `{issuer}`, which is not configured any more"
            )));
        }
        let revoked = self.app.revocations.find(&CredentialId::None, &principal.issuer, &principal.subject);
        if revoked.is_some() {
            return Err(Refusal::subject("who caused the run has been revoked"));
        }
        Ok(principal)
    }

    fn view<'v>(
        &'v self,
        request: &'v CleanRequest<()>,
        audience: &'v str,
        party: &'v Party,
        now: Timestamp,
    ) -> RequestView<'v> {
        RequestView {
            route: TOKEN_ENDPOINT,
            kind: RouteKind::Http,
            host: request.host(),
            path: request.path(),
            method: request.method(),
            upgrade: false,
            address: request.meta().client,
            event_listener: None,
            kubernetes: None,
            run: None,
            delivery: None,
            trigger: None,
            token: Some(TokenView { audience, scope: None, task: party.task().map(|task| &task.view) }),
            now,
        }
    }

    /// What rules give of what is asked for: all of it, or nothing. Who asks for no scope by name gets all that rules name.
    fn decide(
        &self,
        party: &Party,
        view: &RequestView<'_>,
        asked: Option<&[String]>,
    ) -> (Result<Granted, Refusal>, Decision) {
        let policy = &self.snapshot.policy;
        let decide = |scope: Option<&str>| {
            let token = view.token.map(|token| TokenView { scope, ..token });
            policy.decide(&party.principal, &RequestView { token, ..*view })
        };
        let mut granted = Granted { scopes: Vec::new(), rules: Vec::new() };
        let mut first = None;
        let audience = view.token.map(|token| token.audience).unwrap_or_default();
        match asked {
            Some(asked) => {
                for scope in asked {
                    let decision = decide(Some(scope));
                    if !decision.is_allow() {
                        let refusal = self.refuse(party, audience, Some(scope), &decision, decide);
                        return (Err(refusal), decision);
                    }
                    granted.give(Some(scope), &decision);
                    first.get_or_insert(decision);
                }
            }
            None => {
                for scope in policy.token_scopes() {
                    let decision = decide(Some(scope));
                    if decision.is_allow() {
                        granted.give(Some(scope), &decision);
                        first.get_or_insert(decision);
                    }
                }
            }
        }
        if let Some(first) = first {
            return (Ok(granted), first);
        }
        let decision = decide(None);
        if !decision.is_allow() {
            return (Err(self.refuse(party, audience, None, &decision, decide)), decision);
        }
        granted.give(None, &decision);
        (Ok(granted), decision)
    }

    /// The refusal of a scope, or of the audience if none of its scopes may be had either.
    fn refuse(
        &self,
        party: &Party,
        audience: &str,
        scope: Option<&str>,
        decision: &Decision,
        decide: impl Fn(Option<&str>) -> Decision,
    ) -> Refusal {
        let why = match &decision.outcome {
            Outcome::Deny(denial) => {
                let parts = [denial.why.as_deref(), denial.fix.as_deref()];
                let said = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
                format!("rule `{}` denies it. {said}", decision.rule.as_deref().unwrap_or_default())
            }
            Outcome::StepUp(_) => "the login of who caused it is too old, or too weak, for it".to_owned(),
            Outcome::Approve(_) => "it waits for an approval, which no token does".to_owned(),
            _ => "no rule gives it".to_owned(),
        };
        let whom = match party.task() {
            Some(task) => {
                let none = || "none".to_owned();
                format!(
                    "service account {}/{} in pipeline {}, task {}, on behalf of {}",
                    task.view.namespace,
                    task.view.service_account,
                    task.view.pipeline.clone().unwrap_or_else(none),
                    task.view.pipeline_task.clone().or_else(|| task.view.task.clone()).unwrap_or_else(none),
                    party.principal.username,
                )
            }
            None => party.principal.username.to_string(),
        };
        let is_open = |scope: &str| decide(Some(scope)).is_allow();
        match scope {
            Some(scope) if decide(None).is_allow() || self.snapshot.policy.token_scopes().into_iter().any(is_open) => {
                Refusal::scope(format!("scope `{scope}` for `{audience}`: {why} ({whom})"))
            }
            _ => Refusal::target(format!("a token for `{audience}`: {why} ({whom})")),
        }
    }

    /// Notes that a run has a token, so that its end ends it; refuses if it has ended meanwhile.
    async fn note_bearer(
        &self,
        party: &Party,
        task: &Task,
        cluster: &Arc<str>,
        expires: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let until = expires + AFTER;
        let put = |kind: Kind, object: &Named, expect| {
            let (cluster, name) = (Arc::clone(cluster), object.name.clone());
            let bearer = Bearer { cluster, kind, namespace: task.view.namespace.clone(), name };
            let value = serde_json::to_vec(&bearer).unwrap_or_default();
            Put { table: Table::Tokens, key: object.uid.clone().into_bytes(), value, expires: until, expect }
        };
        let both = |expect| vec![put(Kind::Pod, &task.pod, expect), put(Kind::TaskRun, &task.task_run, Expect::Any)];
        let store = self.app.store();
        match store.put_all(both(Expect::Absent), now).await? {
            WrittenAll::Done(_) => {
                // Whoever looks for ends did not look for this one's until now.
                let server = self.tokens.settings.clusters.get(cluster).map(|cluster| &cluster.server);
                let server =
                    server.ok_or_else(|| Refusal::unavailable(Reason::Internal, "the cluster is not known"))?;
                task.still_runs(Reader { pools: self.pools, server }).await?;
            }
            WrittenAll::Conflict { .. } => {
                store.put_all(both(Expect::Any), now).await?;
            }
        }
        match self.app.revocations.is_revoked(&party.principal) {
            Some(_) => Err(Refusal::subject("the run has ended")),
            None => Ok(()),
        }
    }

    /// Ends a token that its holder has done with (RFC 7009). One that is none of ours, or has ended, is no error.
    pub async fn revoke(
        &self,
        request: &CleanRequest<()>,
        body: &[u8],
        exchange: &mut Exchange,
    ) -> Result<Response<Bytes>, Refusal> {
        let form = Form::parse(request.headers(), body)?;
        let token = form.get("token").ok_or_else(|| Refusal::malformed("`token` is missing"))?;
        let now = self.app.clock.now();
        if let Some(claims) = self.keys.verify(token)
            && let (Some(jti), Some(expires)) =
                (claims.get("jti").and_then(Value::as_str), claims.get("exp").and_then(Value::as_i64))
            && Timestamp::from_secs(expires) > now
        {
            exchange.reserve(2)?;
            let until = Timestamp::from_secs(expires) + AFTER;
            let target = Target::Token { issuer: self.tokens.name(&self.snapshot.issuers), id: jti };
            self.app.revocations.revoke(target, "its holder has done with it", until).await?;
            exchange.record().revoked = Some(jti.to_owned());
            exchange.decided().await?;
            self.app.close_revoked_streams();
        }
        Ok(answer(StatusCode::OK, &json!({})))
    }
}

impl Granted {
    fn give(&mut self, scope: Option<&str>, decision: &Decision) {
        self.scopes.extend(scope.map(Arc::from));
        if let Some(rule) = decision.rule.as_ref().filter(|rule| !self.rules.contains(rule)) {
            self.rules.push(Arc::clone(rule));
        }
    }
}

impl Party {
    fn task(&self) -> Option<&Task> {
        self.of.as_ref().map(|of| &*of.task)
    }

    /// Who acts, and within it whoever acted before.
    fn act(&self) -> Option<Value> {
        let (mut act, before) = match &self.of {
            Some(of) => (json!({"iss": &*of.cluster_identifier, "sub": claims::account(&of.task)}), &self.acted_before),
            None => (said(self.principal.actor.as_ref()?), &self.acted_before),
        };
        if let (Some(before), Some(act)) = (before, act.as_object_mut()) {
            act.insert("act".to_owned(), before.clone());
        }
        Some(act)
    }
}

/// A task as the audit trail knows it.
fn issued_to(task: &Task) -> audit::IssuedTask {
    let named = |object: &Named| (object.name.clone(), object.uid.clone());
    audit::IssuedTask {
        namespace: task.view.namespace.clone(),
        task_run: named(&task.task_run),
        pod: named(&task.pod),
        pipeline_run: task.pipeline_run.as_ref().map(named),
        pipeline_task: task.view.pipeline_task.clone(),
        root: task.root.uid.clone(),
    }
}

/// An actor in the form of `act` (RFC 8693 section 4.1).
fn said(actor: &Actor) -> Value {
    match &actor.client {
        None => json!({"sub": &*actor.subject}),
        Some(client) => json!({"sub": &*actor.subject, "client_id": &**client}),
    }
}

/// How many have acted for each other.
fn depth(act: &Value) -> usize {
    1 + act.get("act").map_or(0, depth)
}
