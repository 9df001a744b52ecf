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

/// The name was that of a person whose groups the rule has, but who counts there with Doorward's token alone.
#[test]
fn a_task_without_a_rule_learns_the_issuer_of_whom_it_acts_for() {
    let task = TaskView {
        cluster: "east".to_owned(),
        namespace: "ci".to_owned(),
        service_account: "builder".to_owned(),
        pipeline: Some("release".to_owned()),
        pipeline_task: Some("push".to_owned()),
        task: Some("crane".to_owned()),
    };
    let alone = TaskView { pipeline: None, pipeline_task: None, ..task.clone() };
    let by = |issuer: &str| Principal::new(Scheme::Bearer, issuer, "1", "alice");
    for (task, has_several, issuer, told) in [
        (&task, false, "corp", "ci/builder in pipeline release, task push, on behalf of alice of issuer corp"),
        (
            &alone,
            true,
            "corp",
            "ci/builder of cluster east in pipeline none, task crane, on behalf of alice of issuer corp",
        ),
        (
            &task,
            false,
            "own",
            "ci/builder in pipeline release, task push, on behalf of alice of issuer own, whose tokens have no groups",
        ),
    ] {
        assert_eq!(a_task(task, has_several, &by(issuer), "own"), format!("service account {told}"));
    }
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
        assert!(told.contains(unsaid) && told.ends_with("have the issuer of that token write this into it"), "{told}");
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
    let several = "{id: several, on: {token: {audiences: ['y*'], scopes: [There]}}, who: {issuers: [corp]}, do: allow}";
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
