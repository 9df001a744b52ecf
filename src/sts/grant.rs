//! Evaluates what rules give for a request for a token.

use std::{collections::BTreeSet, sync::Arc};

use super::{MAX_LIFETIME, exchange::Exchanger, party::Party, refusal::Refusal};
use crate::{
    authn::Principal,
    authz::{Decision, Outcome, RequestView, Shadow, TOKEN_ENDPOINT, TokenRules, TokenView, Would, as_clause},
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
                let none = || "none".to_owned();
                let cluster = match self.own_issuer.has_several_clusters() {
                    true => format!(" of cluster {}", task.view.cluster),
                    false => String::new(),
                };
                format!(
                    "service account {}{cluster} in pipeline {}, task {}, on behalf of {}",
                    task.view.account(),
                    task.view.pipeline.clone().unwrap_or_else(none),
                    task.view.pipeline_task.clone().or_else(|| task.view.task.clone()).unwrap_or_else(none),
                    party.principal.username,
                )
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
mod tests {
    use http::{Method, Request};
    use uuid::Uuid;

    use super::*;
    use crate::{
        audit::{self, Files, Record},
        authn::{
            LoginFacts, NeededLogin, Principal, Scheme,
            principal::{Actor, WorkloadIdentity},
        },
        authz::{AskedToken, Policy},
        config::{
            raw::{self, Effect},
            resolver::Resolver,
        },
        request::sanitize::{Arrival, sanitize},
        sessions::tests::trail,
        webhooks::Facts,
    };

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    const POLICY: &str = "
external_host: door.test
issuers: [{name: corp, issuer: 'https://corp.test'}]
webhooks: [{name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}]
tokens: {exchange: [{issuer: corp}]}
rules:
  - {id: pushed, on: {token: {audiences: [x]}}, who: {webhooks: [gh]}, when: \"has(delivery.event) && delivery.event == 'push'\", do: allow}
";

    fn asked() -> CleanRequest<()> {
        let request = Request::post("/oauth2/token").header("host", "door.test").body(()).unwrap();
        sanitize(request, Arrival::of_tests(), Uuid::nil(), |host| Some(host.into())).unwrap()
    }

    #[test]
    fn a_job_without_a_rule_learns_what_a_rule_would_have_to_name() {
        let claims = serde_json::json!({"environment": "staging", "ref": "refs/heads/main"});
        let job = |claims: &serde_json::Value| Principal {
            workload: Some(WorkloadIdentity::Repository { provider: "github", id: "7".into() }),
            claims: Arc::new(claims.as_object().unwrap().clone()),
            ..Principal::new(Scheme::Bearer, "gh", "repo:acme/app:ref:refs/heads/main", "gh#acme")
        };
        let told = "gh#acme of issuer gh, repository github:7, environment `staging`, ref `refs/heads/main`";
        assert_eq!(caller(&job(&claims)), told);
        assert!(caller(&job(&serde_json::json!({}))).ends_with("environment none, ref none"));
        let alice = Principal::new(Scheme::Bearer, "corp", "1", "alice");
        assert_eq!(caller(&alice), "alice of issuer corp", "as rules name issuers and clients of everybody");
        let by_cli = Principal { client: Some("cli".into()), ..alice };
        assert_eq!(caller(&by_cli), "alice with client cli of issuer corp");
    }

    #[test]
    fn an_insufficient_login_is_refused_with_what_the_rule_needs() {
        let needed = NeededLogin { mfa: Some(std::time::Duration::from_secs(900)), ..NeededLogin::default() };
        let missing = Box::new(needed);
        let outcome = Outcome::StepUp { need: missing.clone(), missing };
        let decision = Decision { outcome, rule: Some("deploys".into()), as_create: false, shadow: Vec::new() };
        let told = |login: LoginFacts| {
            why(&decision, &Principal { login, ..Principal::new(Scheme::Bearer, "corp", "1", "alice") })
        };
        let by = |amr: &[&str]| amr.iter().map(|method| Arc::from(*method)).collect::<Vec<Arc<str>>>();
        let weak = told(LoginFacts { auth_time: Some(NOW), amr: by(&["pwd"]), acr: None });
        assert!(weak.contains("is too old, or too weak: rule `deploys` would give it"), "{weak}");
        assert!(weak.ends_with("needs a login with more than one factor in the last 15m"), "{weak}");
        // Whoever was told to log in again was told the same after that.
        for (login, unsaid) in [
            (LoginFacts::default(), "(no `auth_time`, no `amr`)"),
            (LoginFacts { amr: by(&["mfa"]), ..LoginFacts::default() }, "(no `auth_time`)"),
            (LoginFacts { auth_time: Some(NOW), ..LoginFacts::default() }, "(no `amr`)"),
        ] {
            let told = told(login);
            assert!(
                told.contains(unsaid) && told.ends_with("have the issuer of that token write this into it"),
                "{told}"
            );
            assert!(told.contains("needs a login with more than one factor in the last 15m"), "{told}");
        }
    }

    #[test]
    fn a_refusal_of_an_agent_names_the_actor_and_the_person() {
        let agent = |issuer: Option<&str>, client: Option<&str>| Principal {
            actor: Some(Actor {
                issuer: issuer.map(Into::into),
                subject: "planner".into(),
                client: client.map(Into::into),
            }),
            ..Principal::new(Scheme::Bearer, "corp", "1", "alice")
        };
        for (issuer, client, named) in [
            (Some("bots"), None, "planner without a client of issuer bots"),
            (Some("bots"), Some("planner"), "planner of issuer bots"),
            (Some("bots"), Some("p-7"), "planner with client p-7 of issuer bots"),
            (None, Some("p-7"), "planner with client p-7 of an issuer that is not known here"),
        ] {
            let told = format!("agent {named}, on behalf of alice of issuer corp");
            assert_eq!(caller(&agent(issuer, client)), told);
        }
    }

    /// The refusal said that no rule gives anything for the audience, so that one seemed to be missing.
    #[test]
    fn a_request_without_a_scope_learns_which_scopes_rules_give_by_a_pattern() {
        let repos = "{id: repos, on: {token: {audiences: [y], scopes: ['repo:*']}}, who: {issuers: [corp]}, do: allow}";
        let root: raw::Root = serde_saphyr::from_str(&format!("{POLICY}  - {repos}\n")).unwrap();
        let policy = Policy::compile(&root, &mut Resolver::default()).unwrap();
        let principal = Arc::new(Principal::new(Scheme::Bearer, "corp", "1", "alice"));
        let party = Party::of_tests(principal);
        let request = asked();
        for (audience, scope, said) in [
            (
                "y",
                None,
                "a token without a scope for `y`: no rule gives it (alice). Rules give the scopes there that match `repo:*`: name those \
                 that you want (`scope`)",
            ),
            ("y", Some("sign"), "scope `sign` for `y`: no rule gives it (alice)"),
            ("z", None, "a token for `z`: no rule gives it (alice)"),
            ("z", Some("sign"), "a token for `z`: no rule gives it (alice)"),
        ] {
            let view = party.view(&request, audience, NOW);
            let rules = policy.token_rules(&party.principal, &view);
            let refusal = refusal(&rules, audience, scope, "no rule gives it", "alice");
            assert_eq!(refusal.description(), said, "{audience} {scope:?}");
        }
    }

    /// The refusal said that no rule gives any scope, though one that applies names one; then, to ask for what no rule
    /// gives.
    #[test]
    fn a_request_without_a_scope_learns_that_the_rule_has_one_under_its_providers_name() {
        let onward = "{audience: y, provider: {jwt_bearer: {token_url: 'https://a'}}, assertion: {audience: a}, scopes: {read: There}}";
        let several =
            "{id: several, on: {token: {audiences: ['y*'], scopes: [There]}}, who: {issuers: [corp]}, do: allow}";
        let exchange = "exchange: [{issuer: corp}]";
        let ground = POLICY.replace(exchange, &format!("{exchange}, onward: [{onward}]"));
        let root: raw::Root = serde_saphyr::from_str(&format!("{ground}  - {several}\n")).unwrap();
        let policy = Policy::compile(&root, &mut Resolver::default()).unwrap();
        let request = asked();
        for (issuer, said) in [
            (
                "corp",
                "`There` is the provider's name of `read`, and rules go by the latter alone; change rule `several` to \
                 name `read`",
            ),
            ("gh", "no rule gives it"),
        ] {
            let principal = Arc::new(Principal::new(Scheme::Bearer, issuer, "1", "alice"));
            let party = Party::of_tests(principal);
            let rules = policy.token_rules(&party.principal, &party.view(&request, "y", NOW));
            let Err((scope, decision)) = any_of(&rules, policy.token_scopes("y")) else { panic!("{issuer}") };
            let refusal = refusal(&rules, "y", scope, &why(&decision, &party.principal), "alice");
            assert_eq!(refusal.description(), format!("a token for `y`: {said} (alice)"), "{issuer}");
        }
    }

    /// Otherwise an allow that looks at it gives nothing, and explaining it finds another decision.
    #[test]
    fn rules_see_the_delivery_that_caused_a_run_at_first_and_at_each_recheck() {
        let root: raw::Root = serde_saphyr::from_str(POLICY).unwrap();
        let policy = Policy::compile(&root, &mut Resolver::default()).unwrap();
        for (event, given) in [("push", true), ("tag_push", false)] {
            let facts = Arc::new(Facts { webhook: "gh".into(), event: Some(event.into()), ..Facts::default() });
            let principal = Arc::new(Principal {
                delivery: Some(Arc::clone(&facts)),
                ..Principal::new(Scheme::Webhook, "webhook:gh", "repo:1", "webhook:gh:repo:1")
            });
            let party = Party::of_tests(Arc::clone(&principal));
            let request = asked();
            let decision = policy.decide(&party.principal, &party.view(&request, "x", NOW));
            assert_eq!(decision.is_allow(), given, "{event}");

            let folder = tempfile::tempdir().unwrap();
            let (id, trail) = (Uuid::from_u128(1), trail(folder.path()));
            let asked = AskedToken { audience: "x".to_owned(), scopes: None, partly: false, task: None };
            trail.write(Record {
                address: Some(request.meta().client),
                asked: Some(Box::new(asked)),
                principal: Some(principal),
                decision: Some(audit::Decision {
                    outcome: Effect::Allow,
                    rule: None,
                    shadow: Vec::new(),
                    grants: Vec::new(),
                }),
                ..Record::begin(id, NOW, Method::POST)
            });
            trail.shutdown();
            let inputs = Files::new(vec![folder.path().join("audit.jsonl")]).request(id).unwrap().unwrap();
            let token = Some(TokenView { audience: "x", scope: None, task: None });
            let again = RequestView { token, ..inputs.view().unwrap() };
            assert_eq!(policy.decide(inputs.principal.as_ref().unwrap(), &again).is_allow(), given, "{event} again");
        }
    }
}
