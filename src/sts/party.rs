//! For whom a token is, and on whose behalf: for a task, whoever caused its run; for an agent, the person it acts for.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use uuid::Uuid;

use super::{
    bearer::over,
    claims::{self, Origin},
    ends,
    exchange::Exchanger,
    pod_token::PodToken,
    refusal::Refusal,
    task::{Root, SETTLING, Task, controlled, made_by_somebody},
};
use crate::{
    authn::{Actor, Kind, KnownAs, KnownToken, Principal, break_glass, principal::workload_key},
    clock::Timestamp,
    error::Reason,
    issuers::Issuers,
    kubernetes::ObjectRef,
    runs::{AskedRun, CAUSE_KEPT, Cause, CauseError, Causes, EVENT_WINDOW, SKEW},
    tekton::MADE_BY,
    webhooks,
};

/// How many may have acted for each other.
const MAX_ACTORS: usize = 4;

/// For whom a token is, and on whose behalf.
pub(super) struct Party {
    /// The person or bot, including who acts for them now.
    pub(super) principal: Arc<Principal>,
    /// When the token that is exchanged ends.
    pub(super) ends: Timestamp,
    /// The parameter that had that token; of two, the one that ends first.
    pub(super) parameter: &'static str,
    /// The actor, with earlier actors nested in it.
    pub(super) act: Option<Value>,
    pub(super) task: Option<TaskOrigin>,
    /// The principals of the tokens that were presented, each with its parameter.
    pub(super) presented: Vec<(&'static str, Arc<Principal>)>,
}

/// The task that asks.
pub(super) struct TaskOrigin {
    pub(super) task: Box<Task>,
    /// The name of its cluster's issuer.
    pub(super) cluster: Arc<str>,
    /// The request that caused its run.
    pub(super) cause: Uuid,
}

impl Exchanger<'_> {
    /// The party of a token; for a pod's token, whoever caused the run in it.
    pub(super) async fn party(
        &self,
        parameter: &'static str,
        subject: Arc<Principal>,
        now: Timestamp,
    ) -> Result<Party, Refusal> {
        if self.own_issuer.settings.clusters.get(&subject.issuer).is_none() {
            let act = subject.act(self.identifier(&subject.issuer));
            if let Some(act) = &act {
                check_depth("subject_token", act)?;
            }
            let presented = vec![(parameter, Arc::clone(&subject))];
            return Ok(Party { ends: subject.expires, parameter, principal: subject, act, task: None, presented });
        }
        let pod = PodToken::read(&subject.claims)?;
        check_namespace(&self.snapshot.issuers, &subject.issuer, &pod.namespace)?;
        let seen = |kinds: &[ends::Kind]| self.seen(&subject.issuer, &pod.namespace, kinds);
        seen(&[ends::Kind::TaskRun, ends::Kind::Pod])?;
        let task = Box::new(Task::of(&pod, self.lookup(&subject.issuer)?, now).await?);
        if task.pipeline_run().is_some() {
            seen(&[ends::Kind::PipelineRun])?;
        }
        let several = self.own_issuer.has_several_clusters();
        let cause = self.cause_of(&task, &subject.issuer, now).await?;
        let behind = self.behind(&cause)?;
        let account: Arc<str> = claims::account(&task).into();
        let act = acts(self.identifier(&subject.issuer), &account, None, cause.act().cloned());
        check_depth("the run", &act)?;
        let acting = KnownAs { issuer: Arc::clone(&subject.issuer), subject: account };
        let principal = Principal {
            actor: Some(Actor::service_account(
                several.then_some(&*subject.issuer),
                &task.view.namespace,
                &task.view.service_account,
            )),
            acting: std::iter::once(acting).chain(behind.acting.iter().cloned()).collect(),
            credential: subject.credential.clone(),
            expires: subject.expires,
            lives_with: task
                .lives_with()
                .map(|(_, object)| workload_key(&subject.issuer, &object.uid).into())
                .collect(),
            ..behind
        };
        let origin = TaskOrigin { task, cluster: Arc::clone(&subject.issuer), cause: cause.request };
        let (ends, presented) = (subject.expires, vec![(parameter, subject)]);
        Ok(Party { principal: Arc::new(principal), ends, parameter, act: Some(act), task: Some(origin), presented })
    }

    /// Refuses if the end of objects of these kinds would not be seen.
    fn seen(&self, cluster: &str, namespace: &str, kinds: &[ends::Kind]) -> Result<(), Refusal> {
        if self.app.run_ends.are_observed(cluster, namespace, kinds, self.app.clock.moment()) {
            return Ok(());
        }
        let detail = format!(
            "the ends of runs in namespace {namespace} cannot be seen at the moment, so no task there gets a token; try again"
        );
        Err(Refusal::unavailable(Reason::UpstreamFailed, detail))
    }

    /// Finds who caused the run of a task.
    async fn cause_of(&self, task: &Task, cluster: &str, now: Timestamp) -> Result<Cause, Refusal> {
        let root = &task.root;
        let made: Vec<&ObjectRef> = task.made().collect();
        let within: Vec<&str> = made.iter().map(|run| &*run.uid).collect();
        let asked = AskedRun { cluster, uid: &root.uid, event: root.event.as_deref(), within: &within };
        let unknown = |error: CauseError| {
            tracing::warn!(%error, run = root.uid, "the cause of a run is not known");
            unknown(&error)
        };
        let causes = Causes { store: self.app.store(), keys: self.snapshot.sessions.keys() };
        let known = causes.of(asked, root.created, now).await.map_err(unknown)?;
        // A run that somebody made through Doorward was not made by the run that lists it.
        if let Some(run) = known.made.and_then(|place| made.get(place)) {
            let parent = task.pipeline_run().map_or("", |run| &run.name);
            return Err(made_by_somebody("run", &run.name, parent));
        }
        let run = &task.pipeline_run().unwrap_or(&task.task_run).name;
        known.cause.ok_or_else(|| nobody(run, root, now))
    }

    /// The identifier of an issuer.
    fn identifier(&self, issuer: &str) -> Option<&str> {
        self.snapshot.issuers.get(issuer).map(|issuer| &**issuer.identifier())
    }

    /// The person for whom an agent asks, as they are by themselves: that the agent holds their token does not make
    /// them an agent.
    pub(super) fn as_themselves(&self, subject: Arc<Principal>) -> Arc<Principal> {
        let issuer = self.snapshot.issuers.get(&subject.issuer);
        // Never the reverse: the client's settings change nothing about a person.
        match issuer.is_some_and(|issuer| issuer.kind_behind_actor(&subject) == Kind::Human) {
            true => Arc::new(Principal { kind: Kind::Human, subject_kind: None, ..(*subject).clone() }),
            false => subject,
        }
    }

    /// The party of an agent that acts for somebody who permits it: by `may_act` in their token (RFC 8693 section 4.4),
    /// or by having had it issued to that agent. The agent proves itself with a token of its own: one that it got for a
    /// person proves that person.
    pub(super) fn delegated(&self, subject: &Arc<Principal>, actor: &Arc<Principal>) -> Result<Party, Refusal> {
        let is_pod = |principal: &Principal| self.own_issuer.settings.clusters.get(&principal.issuer).is_some();
        if is_pod(subject) || is_pod(actor) {
            return Err(Refusal::malformed("a task acts for whoever caused its run; leave `actor_token` out"));
        }
        if actor.kind == Kind::Human {
            return Err(Refusal::subject("actor_token: it is a person's, and only an agent can act for somebody else"));
        }
        // The nested actor would act here, and what the subject permits its actor does not cover that one.
        if actor.actor.is_some() {
            return Err(Refusal::subject(
                "actor_token: somebody else acts with it (`act`), and an agent must prove itself with a token of its own; send one without `act`",
            ));
        }
        if Actor::is_reserved(&actor.subject) {
            return Err(Refusal::subject(format!(
                "actor_token: `{}` is the name of a service account, which only a task's pod can have here",
                actor.subject
            )));
        }
        if (&subject.issuer, &subject.subject) == (&actor.issuer, &actor.subject) {
            return Err(Refusal::subject(
                "actor_token: it is of the same subject as subject_token, and nobody acts for themselves",
            ));
        }
        let may_act = subject.claims.get("may_act");
        let is_permitted = match may_act {
            Some(may_act) => self.names_agent(may_act, subject, actor),
            // Issuers choose client names without regard to each other.
            None => subject.issuer == actor.issuer && subject.client.is_some() && subject.client == actor.client,
        };
        let is_named = may_act.is_some_and(|may_act| may_act.get("sub").is_some());
        if is_permitted && !is_named && !self.is_own_token_of_client(actor) {
            // Its subject is not shown: the trail has the refusal, and knows no pseudonym for somebody who is not the
            // principal.
            return Err(Refusal::subject(format!(
                "actor_token: its subject is not its client `{}`, so that it may be a person's; send a token that the client has for \
                 itself (`client_credentials`). If this is one, write its subject into the configuration: `clients: [{{id: …, subject: \
                 …}}]` of issuer `{}`",
                actor.client.as_deref().unwrap_or_default(),
                actor.issuer
            )));
        }
        if !is_permitted {
            let who = match actor.kind == Kind::Workload || self.is_own_token_of_client(actor) {
                true => format!("`{}`", actor.subject),
                false => "the subject of actor_token".to_owned(),
            };
            return Err(Refusal::subject(format!(
                "subject_token: it does not let {who} of issuer `{}` act: `may_act` names somebody else (without `iss`: somebody of its \
                 own issuer), or is missing and the token was issued to another client",
                actor.issuer
            )));
        }
        let before = subject.act(self.identifier(&subject.issuer));
        let act = acts(self.identifier(&actor.issuer), &actor.subject, actor.client.as_deref(), before);
        check_depth("subject_token", &act)?;
        let acting = KnownAs { issuer: Arc::clone(&actor.issuer), subject: Arc::clone(&actor.subject) };
        let principal = Principal {
            actor: Some(Actor {
                issuer: Some(Arc::clone(&actor.issuer)),
                subject: Arc::clone(&actor.subject),
                client: actor.client.clone(),
            }),
            acting: std::iter::once(acting).chain(subject.acting.iter().cloned()).collect(),
            ..(**subject).clone()
        };
        let (ends, parameter) = match actor.expires < subject.expires {
            true => (actor.expires, "actor_token"),
            false => (subject.expires, "subject_token"),
        };
        let presented = vec![("subject_token", Arc::clone(subject)), ("actor_token", Arc::clone(actor))];
        Ok(Party { principal: Arc::new(principal), ends, parameter, act: Some(act), task: None, presented })
    }

    /// Whether a token is its client's own, and represents nobody else.
    fn is_own_token_of_client(&self, of: &Principal) -> bool {
        let issuer = self.snapshot.issuers.get(&of.issuer);
        issuer.zip(of.client.as_deref()).is_some_and(|(issuer, client)| issuer.is_client(client, &of.subject))
    }

    /// Whether `may_act` means this agent: everything in it must be true of the agent. If it names no issuer, its own
    /// is meant.
    fn names_agent(&self, may_act: &Value, subject: &Principal, actor: &Principal) -> bool {
        let identifier = self.identifier(&actor.issuer);
        let Some(said) = may_act.as_object() else { return false };
        let names_somebody = said.contains_key("sub") || said.contains_key("client_id");
        names_somebody
            && (said.contains_key("iss") || subject.issuer == actor.issuer)
            && said.iter().all(|(name, value)| match name.as_str() {
                "sub" => value.as_str() == Some(&*actor.subject),
                "client_id" => value.as_str() == actor.client.as_deref(),
                "iss" => value.as_str() == identifier,
                // An unknown member might be a restriction.
                _ => false,
            })
    }

    /// The person or bot that caused a run, if they are not revoked.
    fn behind(&self, cause: &Cause) -> Result<Principal, Refusal> {
        let principal = caused_by(cause, |issuer| {
            let webhooks = &self.snapshot.raw.webhooks;
            self.snapshot.issuers.get(issuer).is_some()
                || webhooks::of_issuer(issuer).is_some_and(|name| webhooks.iter().any(|webhook| webhook.name == name))
        })?;
        if self.app.revocations.is_revoked(&principal).is_some() {
            return Err(over("who caused it, or acted for them, has been revoked"));
        }
        Ok(principal)
    }
}

impl Party {
    #[cfg(test)]
    pub(super) fn of_tests(principal: Arc<Principal>) -> Self {
        let (ends, parameter) = (Timestamp::MAX, "subject_token");
        Self { principal, ends, parameter, act: None, task: None, presented: Vec::new() }
    }

    pub(super) fn task_details(&self) -> Option<&Task> {
        self.task.as_ref().map(|origin| &*origin.task)
    }

    /// Refuses a task where none gets tokens by the configuration of these issuers: nobody sees its end there, and the
    /// sweep over what a reload has left may have run before this one was recorded.
    pub(super) fn check_namespace(&self, issuers: &Issuers) -> Result<(), Refusal> {
        self.task
            .as_ref()
            .map_or(Ok(()), |origin| check_namespace(issuers, &origin.cluster, &origin.task.view.namespace))
    }

    /// The tokens that are exchanged. None is Doorward's own, so none was itself got in exchange for others.
    pub(super) fn exchanged(&self) -> Vec<KnownToken> {
        self.presented.iter().filter_map(|(_, principal)| principal.token()).collect()
    }

    /// On whose behalf it is, with their own issuer. A run that a task caused belongs to whoever caused the task.
    pub(super) fn origin(&self) -> Origin<'_> {
        let Principal { issuer, subject, on_behalf_of, .. } = &*self.principal;
        match on_behalf_of.as_deref() {
            Some(KnownAs { issuer, subject }) => Origin { issuer, sub: subject },
            None => Origin { issuer, sub: subject },
        }
    }
}

fn check_namespace(issuers: &Issuers, cluster: &str, namespace: &str) -> Result<(), Refusal> {
    match issuers.give_in(cluster, namespace) {
        true => Ok(()),
        false => Err(Refusal::subject(format!("no task in namespace {namespace} gets tokens"))),
    }
}

/// An actor in the form of `act` (RFC 8693 section 4.1), with the earlier actors nested in it.
fn acts(issuer: Option<&str>, subject: &str, client: Option<&str>, before: Option<Value>) -> Value {
    let texts = [("iss", issuer), ("sub", Some(subject)), ("client_id", client)];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into())));
    Value::Object(texts.chain(before.map(|before| ("act".to_owned(), before))).collect())
}

/// The principal that caused a run, if it had a credential that an audience can know and the configuration still
/// knows its issuer.
fn caused_by(cause: &Cause, is_configured: impl Fn(&str) -> bool) -> Result<Principal, Refusal> {
    let principal = cause.principal();
    if principal.is_anonymous() {
        return Err(Refusal::subject("the run was caused by somebody who had no credential"));
    }
    // What break-glass opened ends with it, and its certificate is not a credential that an audience could know.
    if *principal.issuer == *break_glass::ISSUER {
        return Err(Refusal::subject(
            "the run was caused by break-glass, and the tasks of such a run get no tokens; once the provider is back, start it again by \
             a login there",
        ));
    }
    check_known(&principal, is_configured)?;
    Ok(principal)
}

/// Refuses a principal whose issuer, or sender of deliveries, is no longer configured; the same for whoever they act
/// for.
fn check_known(principal: &Principal, is_configured: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let origin = principal.on_behalf_of.as_deref().map(|origin| &origin.issuer);
    match [&principal.issuer].into_iter().chain(origin).find(|issuer| !is_configured(issuer)) {
        None => Ok(()),
        Some(issuer) => Err(Refusal::subject(format!(
            "the run was caused by somebody of `{issuer}`, which is no longer configured"
        ))),
    }
}

/// The refusal of a task whose run, made at `created`, has no known cause.
fn nobody(run: &str, Root { created, is_part, owner, .. }: &Root, now: Timestamp) -> Refusal {
    let is_over = |time: Duration| created.is_some_and(|created| created + time <= now);
    // Doorward may still be about to record it.
    if created.is_some() && !is_over(SETTLING) {
        let text = format!("the cause of run {run} is not known yet; try again in a moment");
        return Refusal::unavailable(Reason::Overloaded, text);
    }
    // A PipelineRun that a request made is known by its uid, and what is left once it was deleted is not. The cause of
    // a delivery's run is stored from the delivery on, which may have come this much earlier than the run.
    let is_old = is_over(CAUSE_KEPT - EVENT_WINDOW - SKEW);
    if *is_part && !is_old {
        return match owner {
            // Its controller also copies the annotation of a request.
            Some(owner) => controlled(&format!("run {run}"), owner),
            None => over(&format!(
                "the cause of run {run} is not known: it is a part of a PipelineRun by its label `{MADE_BY}`, and none controls it; \
                 start the whole PipelineRun again"
            )),
        };
    }
    let why = match is_old {
        true => {
            "it was made about a week ago or earlier, and no run gets tokens for longer, however long it waited or runs; start it again"
        }
        false => {
            "it was made past Doorward, or by an upstream that `tokens.exchange` does not know as one of its cluster; start it through \
             Doorward, or by a delivery to it"
        }
    };
    Refusal::subject(format!("the cause of run {run} is not known: {why}"))
}

/// The refusal of a task if its run's cause cannot be read. What cannot be opened now never can be.
fn unknown(error: &CauseError) -> Refusal {
    match error {
        CauseError::Store(_) => Refusal::unavailable(
            Reason::StoreUnavailable,
            "the cause of the run cannot be looked up at the moment; try again",
        ),
        CauseError::Sealed(_) | CauseError::Unreadable => Refusal::subject(
            "the cause of the run can no longer be read: it was sealed with a key that `sessions.keys` no longer has, or was damaged; \
             start the run again",
        ),
    }
}

/// Refuses a chain of actors that is too long to follow.
fn check_depth(what: &str, act: &Value) -> Result<(), Refusal> {
    let actors = std::iter::successors(Some(act), |act| act.get("act")).count();
    match actors > MAX_ACTORS {
        true => Err(Refusal::subject(format!("{what}: more than {MAX_ACTORS} would have acted for each other"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        authn::{CredentialId, Scheme},
        sessions::keyring::OpenError,
        store::StoreError,
        sts::{OVER, objects::Owner},
    };

    fn root(created: Option<Timestamp>, is_part: bool) -> Root {
        Root { uid: "u".to_owned(), event: None, created, is_part, owner: None }
    }

    #[test]
    fn a_token_names_each_token_that_it_was_exchanged_for() {
        let of = |issuer: &str, id: &str| {
            let credential = CredentialId::Token(id.into());
            Arc::new(Principal { credential, ..Principal::new(Scheme::Bearer, issuer, "7", "alice") })
        };
        let (subject, actor) = (of("corp", "s"), of("bots", "a"));
        let presented = vec![("subject_token", Arc::clone(&subject)), ("actor_token", actor)];
        let party = Party { presented, ..Party::of_tests(subject) };
        let known = |issuer: &str, id: &str| KnownToken { issuer: issuer.into(), id: id.into() };
        assert_eq!(party.exchanged(), [known("corp", "s"), known("bots", "a")]);
    }

    /// A run that another's task made belongs to whoever caused that one: when their issuer is removed, both are
    /// refused.
    #[test]
    fn a_run_made_by_a_task_is_refused_once_the_issuer_of_its_cause_is_removed() {
        let first = Principal::new(Scheme::Bearer, "company", "7", "alice");
        let second = Principal {
            on_behalf_of: Some(Box::new(KnownAs { issuer: "company".into(), subject: "7".into() })),
            ..Principal::new(Scheme::Bearer, "doorward", "alice", "alice")
        };
        for (run, principal) in [("R1", first), ("R2", second)] {
            assert!(check_known(&principal, |issuer| ["company", "doorward"].contains(&issuer)).is_ok(), "{run}");
            let refusal = check_known(&principal, |issuer| issuer == "doorward").unwrap_err();
            let why = "the run was caused by somebody of `company`, which is no longer configured";
            assert_eq!((refusal.reason(), refusal.description()), (Reason::TokenInvalid, why), "{run}");
        }
    }

    /// Neither is an entry of `issuers`, so both would get the refusal about an issuer that is no longer configured.
    #[test]
    fn a_run_caused_without_a_token_gets_none_and_learns_why() {
        for (issuer, why) in [("anonymous", "who had no credential"), ("break-glass", "caused by break-glass")] {
            let principal = Principal::new(Scheme::Bearer, issuer, "alice", "alice");
            let cause = Cause::new(&principal, None, Uuid::nil(), Timestamp::default(), &[]);
            let refusal = caused_by(&cause, |_| true).unwrap_err();
            assert_eq!(refusal.reason(), Reason::TokenInvalid, "{issuer}");
            assert!(refusal.description().contains(why), "{issuer}: {}", refusal.description());
        }
    }

    /// The refusal said that it had perhaps been made past Doorward, though it ran for longer than its cause is stored.
    #[test]
    fn a_run_that_is_too_old_for_tokens_is_advised_to_start_again() {
        let (made, second) = (Timestamp::from_secs(1_700_000_000), Duration::from_secs(1));
        let old = "about a week ago or earlier";
        // The cause of a delivery's run is stored from the delivery on.
        let since_delivery = CAUSE_KEPT - EVENT_WINDOW - SKEW;
        for (created, now, status, why) in [
            (Some(made), made + SETTLING - second, 503, "yet; try again"),
            (Some(made), made + SETTLING, 400, "made past Doorward"),
            (Some(made), made + since_delivery - second, 400, "made past Doorward"),
            (Some(made), made + since_delivery, 400, old),
            (Some(made), made + CAUSE_KEPT, 400, old),
            (None, made, 400, "made past Doorward"),
        ] {
            let refusal = nobody("build", &root(created, false), now);
            assert_eq!(refusal.status().as_u16(), status, "{now}");
            assert!(refusal.description().contains(why), "{now}: {}", refusal.description());
        }
    }

    /// The refusal said that it was made past Doorward, which `doorward token` does not recognise as the end of its
    /// tokens.
    #[test]
    fn leftovers_of_a_requested_pipeline_run_learn_that_their_tokens_have_ended() {
        let made = Timestamp::from_secs(1_700_000_000);
        let part = root(Some(made), true);
        let refusal = nobody("build", &part, made + SETTLING);
        assert!(refusal.description().starts_with(OVER), "{}", refusal.description());
        assert_eq!(nobody("build", &part, made).status().as_u16(), 503, "it may be noted yet");
    }

    /// The PipelineRun goes on, and `doorward token` in the task took the refusal for its end.
    #[test]
    fn the_refusal_of_a_run_made_by_a_custom_run_does_not_say_that_its_tokens_ended() {
        let made = Timestamp::from_secs(1_700_000_000);
        let object = ObjectRef { name: "loop".to_owned(), uid: "l".to_owned() };
        let part = Root { owner: Some(Owner { kind: "CustomRun".to_owned(), object }), ..root(Some(made), true) };
        let refusal = nobody("build", &part, made + SETTLING);
        let why = refusal.description();
        assert!(why.contains("and CustomRun loop controls it") && !why.contains(OVER), "{why}");
    }

    #[test]
    fn a_task_is_advised_to_retry_only_if_the_cause_of_its_run_may_become_known() {
        let (later, never) = (http::StatusCode::SERVICE_UNAVAILABLE, http::StatusCode::BAD_REQUEST);
        assert_eq!(unknown(&CauseError::Store(StoreError::Timeout)).status(), later);
        for error in
            [CauseError::Sealed(OpenError::UnknownKey), CauseError::Sealed(OpenError::Broken), CauseError::Unreadable]
        {
            let refusal = unknown(&error);
            assert_eq!(refusal.status(), never, "{error}");
            for said in ["`sessions.keys`", "start the run again"] {
                assert!(refusal.description().contains(said), "{}", refusal.description());
            }
        }
    }
}
