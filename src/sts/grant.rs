//! Evaluates what rules give for a request for a token.

use std::{collections::BTreeSet, sync::Arc};

use super::{MAX_LIFETIME, exchange::Exchanger, party::Party, refusal::Refusal};
use crate::{
    authn::Principal,
    authz::{
        Decision, Outcome, RequestView, Shadow, TOKEN_ENDPOINT, TaskView, TokenRules, TokenView, Would, as_clause,
    },
    clock::Timestamp,
    config::raw::RouteKind,
    issuers::Quoted,
    request::sanitize::CleanRequest,
};

/// The scopes that rules give, and these rules.
#[derive(Clone, Default)]
pub(super) struct Granted {
    pub(super) scopes: Vec<Arc<str>>,
    pub(super) rules: Vec<Arc<str>>,
}

/// The decision of rules on a request, and what it grants.
pub(super) struct TokenDecision {
    pub(super) decision: Decision,
    pub(super) granted: Result<Granted, Refusal>,
}

impl TokenDecision {
    /// Allowed, but without any scope.
    fn without_scopes(decision: Decision) -> Self {
        Self { decision, granted: Ok(Granted::default()) }
    }
}

/// The requested audience.
pub(super) fn audience<'a>(view: &RequestView<'a>) -> &'a str {
    view.token.map(|token| token.audience).unwrap_or_default()
}

impl Party {
    /// The request for a token as rules see it.
    pub(super) fn view<'v>(
        &'v self,
        request: &'v CleanRequest<()>,
        audience: &'v str,
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
            // The delivery that caused the run.
            delivery: self.principal.delivery.as_deref(),
            trigger: None,
            token: Some(TokenView { audience, scope: None, task: self.task_details().map(|task| &task.view) }),
            now,
        }
    }
}

impl Exchanger<'_> {
    /// Grants all of the requested scopes, or nothing. A caller that names no scope gets all that rules name.
    pub(super) fn decide_all_or_nothing(
        &self,
        party: &Party,
        view: &RequestView<'_>,
        asked: Option<&[String]>,
    ) -> TokenDecision {
        let rules = self.snapshot.policy.token_rules(&party.principal, view);
        let found = match asked {
            Some(asked) => all_of(&rules, asked),
            None => any_of(&rules, self.scopes(view)),
        };
        self.with_refusal(party, view, &rules, found)
    }

    /// Grants as many of these scopes as rules give, but not none.
    pub(super) fn decide_some(&self, party: &Party, view: &RequestView<'_>, asked: &[String]) -> TokenDecision {
        let rules = self.snapshot.policy.token_rules(&party.principal, view);
        self.with_refusal(party, view, &rules, some_of(&rules, asked))
    }

    /// Checks whether rules give any scope at all at this audience, and grants none of them.
    pub(super) fn decide_whether_any(&self, party: &Party, view: &RequestView<'_>) -> TokenDecision {
        let rules = self.snapshot.policy.token_rules(&party.principal, view);
        let refused = match any_of(&rules, self.scopes(view)) {
            Ok((_, decision)) => return TokenDecision::without_scopes(decision),
            Err(refused) => refused,
        };
        let mut decisions = rules.scope_patterns().into_iter().map(|pattern| rules.decide(Some(&pattern)));
        match decisions.find(Decision::is_allow) {
            Some(decision) => TokenDecision::without_scopes(decision),
            None => self.with_refusal(party, view, &rules, Err(refused)),
        }
    }

    /// The scopes at the audience that a caller who names none may get.
    fn scopes(&self, view: &RequestView<'_>) -> BTreeSet<&str> {
        self.snapshot.policy.token_scopes(audience(view))
    }

    /// The result, with a refusal in words.
    fn with_refusal(
        &self,
        party: &Party,
        view: &RequestView<'_>,
        rules: &TokenRules<'_>,
        found: Found<'_>,
    ) -> TokenDecision {
        match found {
            Ok((granted, decision)) => TokenDecision { decision, granted: Ok(granted) },
            Err((scope, decision)) => {
                TokenDecision { granted: Err(self.refuse(party, view, rules, scope, &decision)), decision }
            }
        }
    }

    /// Until when rules give all of this, limited by the shortest `lifetime` among them.
    pub(super) fn given_until(&self, party: &Party, view: &RequestView<'_>, granted: &Granted) -> Timestamp {
        let policy = &self.snapshot.policy;
        let lifetime = policy.token_lifetime(&granted.rules).unwrap_or(MAX_LIFETIME);
        self.gives_until(party, view, granted, view.now + lifetime)
    }

    /// Until when rules give all of this, up to `until`: to the end of their hours, while the login is as fresh as they
    /// need, and as long as time-dependent expressions hold.
    pub(super) fn gives_until(
        &self,
        party: &Party,
        view: &RequestView<'_>,
        granted: &Granted,
        until: Timestamp,
    ) -> Timestamp {
        let policy = &self.snapshot.policy;
        let gives_all = |now| {
            let rules = || policy.token_rules(&party.principal, &RequestView { now, ..*view });
            match granted.scopes.as_slice() {
                [] => granted.rules.is_empty() || rules().decide(None).is_allow(),
                scopes => {
                    let rules = rules();
                    scopes.iter().all(|scope| rules.decide(Some(scope)).is_allow())
                }
            }
        };
        policy.token_given_until(&party.principal.login, view.now, until, gives_all)
    }

    /// The refusal of a scope, or of the audience if none of its scopes may be had either.
    fn refuse(
        &self,
        party: &Party,
        view: &RequestView<'_>,
        rules: &TokenRules<'_>,
        scope: Option<&str>,
        decision: &Decision,
    ) -> Refusal {
        let whom = match party.task_details() {
            Some(task) => {
                let own = self.own_issuer.name(&self.snapshot.issuers);
                a_task(&task.view, self.own_issuer.has_several_clusters(), &party.principal, own)
            }
            None => caller(&party.principal),
        };
        refusal(rules, audience(view), scope, &why(decision, &party.principal), &whom)
    }
}

/// Refuses the audience only if nothing is given for it.
fn refusal(rules: &TokenRules<'_>, audience: &str, scope: Option<&str>, why: &str, whom: &str) -> Refusal {
    let is_given = |scope: Option<&str>| rules.decide(scope).is_allow();
    let open = rules.scope_patterns().into_iter().find(|pattern| is_given(Some(pattern)));
    match (scope, open) {
        (Some(scope), open) if open.is_some() || is_given(None) => {
            Refusal::scope(format!("scope `{scope}` for `{audience}`: {why} ({whom})"))
        }
        (None, Some(open)) => Refusal::scope(format!(
            "a token without a scope for `{audience}`: {why} ({whom}). Rules give the scopes there that match `{open}`: name \
             those that you want (`scope`)"
        )),
        _ => Refusal::target(format!("a token for `{audience}`: {why} ({whom})")),
    }
}

/// Why rules do not give it.
fn why(decision: &Decision, principal: &Principal) -> String {
    let rule = decision.rule.as_deref().unwrap_or_default();
    match &decision.outcome {
        Outcome::Deny(denial) => {
            let parts = [denial.why.as_deref(), denial.fix.as_deref()].into_iter().flatten().map(as_clause);
            if decision.rule.is_none() {
                return parts.collect::<Vec<_>>().join("; ");
            }
            let noted = "if it looks at a claim that it did not when the run was caused, start the run again";
            let noted = principal.kept_claims.is_some().then_some(noted);
            match parts.chain(noted).collect::<Vec<_>>().join("; ") {
                said if said.is_empty() => format!("rule `{rule}` denies it"),
                said => format!("rule `{rule}` denies it: {said}"),
            }
        }
        Outcome::StepUp { missing, .. } => match missing.unsaid(&principal.login).as_slice() {
            [] => format!(
                "the login of the person behind it is too old, or too weak: rule `{rule}` would give it, but it needs {missing}"
            ),
            // Another login would not help.
            unsaid => format!(
                "the token of the person behind it does not say how they logged in (no `{}`): rule `{rule}` would give it, but it needs \
                 {missing}; have the issuer of that token write this into it",
                unsaid.join("`, no `")
            ),
        },
        Outcome::Approve(_) => "it waits for an approval, which no token does".to_owned(),
        _ => "no rule gives it".to_owned(),
    }
}

/// What rules give, or the scope that they refuse, with the decision. A scope of `None` means a token without scopes.
type Found<'s> = Result<(Granted, Decision), (Option<&'s str>, Decision)>;

fn all_of<'s>(rules: &TokenRules<'_>, asked: &'s [String]) -> Found<'s> {
    let (mut granted, mut first) = (Granted::default(), None);
    for scope in asked {
        let mut decision = rules.decide(Some(scope));
        if !decision.is_allow() {
            decision.add_shadow(first.into_iter().flat_map(|first: Decision| first.shadow));
            return Err((Some(scope), decision));
        }
        granted.give(Some(scope), &decision);
        join(&mut first, decision);
    }
    first.map_or_else(|| without_scope(rules, Vec::new()), |first| Ok((granted, first)))
}

/// As many of these as rules give, or else a token without a scope.
fn any_of<'s>(rules: &TokenRules<'_>, scopes: BTreeSet<&'s str>) -> Found<'s> {
    as_many(rules, scopes, |_, would| without_scope(rules, would))
}

/// As many of these as rules give, or else the refusal of the first.
fn some_of<'s>(rules: &TokenRules<'_>, asked: &'s [String]) -> Found<'s> {
    as_many(rules, asked.iter().map(String::as_str), |refused, would| match refused {
        Some((scope, mut decision)) => {
            decision.add_shadow(would);
            Err((Some(scope), decision))
        }
        None => without_scope(rules, would),
    })
}

/// As many of these as rules give. If they give none, the result is that of `if_none`, which gets the first refused
/// scope, and what rules in `mode: shadow` would have given.
fn as_many<'s>(
    rules: &TokenRules<'_>,
    scopes: impl IntoIterator<Item = &'s str>,
    if_none: impl FnOnce(Option<(&'s str, Decision)>, Vec<Shadow>) -> Found<'s>,
) -> Found<'s> {
    let (mut granted, mut first, mut refused, mut would) = (Granted::default(), None, None, Vec::new());
    for scope in scopes {
        let decision = rules.decide(Some(scope));
        if decision.is_allow() {
            granted.give(Some(scope), &decision);
            join(&mut first, decision);
        } else {
            would.extend(would_give(&decision).cloned());
            refused.get_or_insert((scope, decision));
        }
    }
    let Some(mut first) = first else { return if_none(refused, would) };
    first.add_shadow(would);
    Ok((granted, first))
}

fn without_scope(rules: &TokenRules<'_>, more: Vec<Shadow>) -> Found<'static> {
    let mut decision = rules.decide(None);
    decision.add_shadow(more);
    if !decision.is_allow() {
        // "No rule gives it" would not help if a rule names such a scope.
        if matches!(decision.outcome, Outcome::NoMatch { .. })
            && let Some(misnamed) = rules.misnamed()
        {
            decision.outcome = misnamed.outcome;
        }
        return Err((None, decision));
    }
    let mut granted = Granted::default();
    granted.give(None, &decision);
    Ok((granted, decision))
}

/// Merges decisions on several scopes into one: the first, with what rules in `mode: shadow` would have said about any
/// of them.
fn join(first: &mut Option<Decision>, decision: Decision) {
    match first {
        Some(first) => first.add_shadow(decision.shadow),
        None => *first = Some(decision),
    }
}

/// For a scope that is left out: which rules in `mode: shadow` would give it. What others would have refused was not
/// given anyway.
fn would_give(decision: &Decision) -> impl Iterator<Item = &Shadow> {
    decision.shadow.iter().filter(|shadow| shadow.would == Would::Allow)
}

/// A task that asks on behalf of a principal, with what a rule would have to name. `own` is the name of Doorward's own
/// issuer. A principal whose run was made by a task is of that issuer.
fn a_task(task: &TaskView, has_several_clusters: bool, principal: &Principal, own: &str) -> String {
    let or_none = |name: Option<&String>| name.map_or("none", String::as_str).to_owned();
    let cluster = if has_several_clusters { format!(" of cluster {}", task.cluster) } else { String::new() };
    let Principal { username, issuer, .. } = principal;
    let without_groups = if **issuer == *own { ", whose tokens have no groups" } else { "" };
    format!(
        "service account {}{cluster} in pipeline {}, task {}, on behalf of {username} of issuer {issuer}{without_groups}",
        task.account(),
        or_none(task.pipeline.as_ref()),
        or_none(task.pipeline_task.as_ref().or(task.task.as_ref())),
    )
}

/// A caller that asks for itself, with what a rule would have to name.
fn caller(principal: &Principal) -> String {
    let Principal { username, issuer, claims, .. } = principal;
    if let Some(actor) = &principal.actor {
        // The names that `who: {subjects: […]}` and `who: {clients: […]}` take, and the issuer that such a rule has to
        // name beside that of the person.
        let of = match &actor.issuer {
            Some(of) => format!("of issuer {of}"),
            None => "of an issuer that is not known here".to_owned(),
        };
        // No token of Doorward's own is exchanged.
        let client = match principal.requesting_client(false) {
            Some(client) if *client == actor.subject => String::new(),
            Some(client) => format!(" with client {client}"),
            None => " without a client".to_owned(),
        };
        return format!("agent {}{client} {of}, on behalf of {username} of issuer {issuer}", actor.subject);
    }
    let Some((provider, id)) = principal.repository() else {
        let client = principal.client.as_ref().map(|client| format!(" with client {client}")).unwrap_or_default();
        return format!("{username}{client} of issuer {issuer}");
    };
    let claimed =
        |name: &str| claims.get(name).map_or_else(|| "none".to_owned(), |value| Quoted::json(Some(value)).to_string());
    let (environment, at) = (claimed("environment"), claimed("ref"));
    format!("{username} of issuer {issuer}, repository {provider}:{id}, environment {environment}, ref {at}")
}

impl Granted {
    fn give(&mut self, scope: Option<&str>, decision: &Decision) {
        self.scopes.extend(scope.map(Arc::from));
        if let Some(rule) = decision.rule.as_ref().filter(|rule| !self.rules.contains(rule)) {
            self.rules.push(Arc::clone(rule));
        }
    }
}

#[cfg(test)]
mod tests;
