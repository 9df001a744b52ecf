//! For whom a token is, and on whose behalf: of a task, who caused its run; of an agent, whom it acts for.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Cluster, claims, exchange::Exchanger, pod_token::PodToken, refusal::Refusal, task::Task};
use crate::{
    authn::{Actor, CredentialId, Kind, Principal},
    clock::Timestamp,
    error::Reason,
    runs::{Cause, Causes},
};

/// How many may have acted for each other.
const MAX_ACTORS: usize = 4;

/// For whom a token is, and on whose behalf.
pub(super) struct Party {
    /// The person or bot, with who acts for them now.
    pub(super) principal: Arc<Principal>,
    /// When the token that is exchanged ends.
    pub(super) ends: Timestamp,
    /// Who acted for the principal before, as `act` says it.
    pub(super) acted_before: Option<Value>,
    pub(super) of: Option<OfTask>,
}

/// The task that asks.
pub(super) struct OfTask {
    pub(super) task: Box<Task>,
    /// The name of its cluster's issuer, and the identifier.
    pub(super) cluster: Arc<str>,
    pub(super) cluster_identifier: Arc<str>,
    /// The request that caused its run.
    pub(super) cause: Uuid,
}

impl Exchanger<'_> {
    /// Of the token of a pod, who caused the run in it.
    pub(super) async fn party(&self, subject: Arc<Principal>, now: Timestamp) -> Result<Party, Refusal> {
        let Some(Cluster { namespaces, .. }) = self.tokens.settings.clusters.get(&subject.issuer) else {
            let acted_before = subject.claims.get("act").and_then(|act| act.get("act")).cloned();
            return Ok(Party { ends: subject.expires, principal: subject, acted_before, of: None });
        };
        let pod = PodToken::read(&subject.claims)?;
        if !namespaces.is_empty() && !namespaces.contains(&pod.namespace) {
            return Err(Refusal::subject(format!("no task in namespace {} gets tokens", pod.namespace)));
        }
        if !self.app.ends.are_seen(&subject.issuer, &pod.namespace, now) {
            let detail = format!(
                "the ends of runs in namespace {} cannot be seen at the moment, so no task there gets a token; try again. Where the \
                 configuration names the namespace only since a reload, Doorward must be started anew",
                pod.namespace
            );
            return Err(Refusal::unavailable(Reason::UpstreamFailed, detail));
        }
        let task = Box::new(Task::of(&pod, self.lookup(&subject.issuer)?, now).await?);
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
    pub(super) fn delegated(&self, subject: &Principal, actor: &Principal) -> Result<Party, Refusal> {
        let is_pod = |principal: &Principal| self.tokens.settings.clusters.contains_key(&principal.issuer);
        if is_pod(subject) || is_pod(actor) {
            return Err(Refusal::malformed("a task acts for who caused its run; leave `actor_token` out"));
        }
        if actor.kind == Kind::Human {
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
}

impl Party {
    pub(super) fn task(&self) -> Option<&Task> {
        self.of.as_ref().map(|of| &*of.task)
    }

    /// Who acts, and within it whoever acted before.
    pub(super) fn act(&self) -> Option<Value> {
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
