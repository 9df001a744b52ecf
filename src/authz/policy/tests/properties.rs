//! Properties that hold for every policy.

use proptest::{prelude::*, sample::subsequence};
use serde_json::json;

use super::*;
use crate::config::values::Span;

/// An issuer that is configured to provide everything that the rules here ask for.
const PROMISING: &str = "
issuers:
  - name: corp
    issuer: https://corp.example
    claims: {groups: groups, scopes: scope}
    required_claims: {team: [a, b]}
webhooks: [{name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}]
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
  - {name: hooks, kind: webhook, hosts: [hooks.example], schemes: [webhook], webhook: gh, upstream: web}
";

/// Issuers whose tokens have the number of a repository in a claim.
const JOBS: &str = "
issuers:
  - {name: actions, issuer: 'https://actions.example', preset: github_actions}
  - {name: gitlab, issuer: 'https://gitlab.example', preset: gitlab_ci}
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
";

fn names(all: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    subsequence(all, 0..=all.len()).prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

prop_compose! {
    fn who()(
        groups in names(&["dev", "ops"]),
        scopes in names(&["read", "run"]),
        clients in names(&["cli"]),
        users in names(&["https://corp.example#test", "https://corp.example#other"]),
        team in names(&["a", "b"]),
        kind in prop_oneof![Just(None), Just(Some(raw::Kind::Human)), Just(Some(raw::Kind::Agent))],
        behalf in prop::bool::weighted(0.2),
    ) -> raw::Who {
        let on_behalf_of = behalf.then(|| raw::OnBehalfOf { groups: groups.clone(), subjects: Vec::new() });
        raw::Who {
            users: if behalf { Vec::new() } else { users },
            groups: if behalf { Vec::new() } else { groups },
            scopes,
            clients,
            kind,
            on_behalf_of,
            claims: (!team.is_empty()).then(|| ("team".to_owned(), team.into_iter().map(|t| json!(t)).collect())).into_iter().collect(),
            ..raw::Who::default()
        }
    }
}

prop_compose! {
    fn who_delivers()(
        senders in names(&["github:7", "github:8"]),
        repositories in names(&["github:1", "github:2"]),
    ) -> raw::Who {
        raw::Who { senders, repositories, ..raw::Who::default() }
    }
}

prop_compose! {
    fn delivery()(
        actor in prop::option::of(prop_oneof![Just("7"), Just("8")]),
        repository in prop::option::of(prop_oneof![Just("1"), Just("2")]),
    ) -> raw::DeliveryFacts {
        raw::DeliveryFacts {
            event: Some("push".to_owned()),
            actor_id: actor.map(str::to_owned),
            repository_id: repository.map(str::to_owned),
            ..raw::DeliveryFacts::default()
        }
    }
}

prop_compose! {
    fn who_runs_jobs()(
        issuers in names(&["actions", "gitlab"]),
        repositories in names(&["github:1", "github:2", "gitlab:1"]),
        subjects in names(&["test"]),
    ) -> raw::Who {
        raw::Who { issuers, repositories, subjects, ..raw::Who::default() }
    }
}

prop_compose! {
    fn job()(
        (issuer, claim) in prop_oneof![Just(("actions", "repository_id")), Just(("gitlab", "project_id"))],
        number in prop_oneof![Just(json!("1")), Just(json!(2)), Just(json!("3"))],
    ) -> raw::PrincipalFacts {
        raw::PrincipalFacts {
            issuer: Some(issuer.to_owned()),
            claims: [(claim.to_owned(), number)].into_iter().collect(),
            ..Default::default()
        }
    }
}

const HOUR: raw::MaxAge = raw::MaxAge { max_age: Span::from_secs(3600) };

fn action() -> impl Strategy<Value = raw::Action> {
    let by = raw::Who { users: vec!["corp#lead".to_owned()], ..raw::Who::default() };
    let approve = raw::Approve { by, count: None, pending: None, grant: None };
    prop_oneof![3 => Just(raw::Action::Allow), 2 => Just(raw::Action::Deny), 1 => Just(raw::Action::Approve(Box::new(approve)))]
}

fn rules(who: impl Strategy<Value = raw::Who>) -> impl Strategy<Value = Vec<raw::Rule>> {
    let needed = || prop::bool::weighted(0.3);
    let rule = (who, action(), prop::bool::weighted(0.1), (needed(), needed(), needed())).prop_map(
        |(who, action, shadow, (acr, mfa, fresh))| raw::Rule {
            id: String::new(),
            why: None,
            fix: None,
            on: raw::On::default(),
            who,
            need: match action {
                raw::Action::Allow => raw::Need {
                    acr: if acr { vec!["gold".into()] } else { vec![] },
                    mfa: mfa.then_some(HOUR),
                    fresh_login: fresh.then_some(HOUR),
                },
                _ => raw::Need::default(),
            },
            when: None,
            action,
            mode: if shadow { raw::Mode::Shadow } else { raw::Mode::Enforce },
        },
    );
    prop::collection::vec(rule, 1..6).prop_map(|mut rules| {
        for (i, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("r{i}");
        }
        rules
    })
}

/// A client that rules name, or another.
fn client() -> impl Strategy<Value = Option<String>> {
    prop::option::of(prop_oneof![Just("cli".to_owned()), Just("web".to_owned())])
}

fn bot(client: Option<String>) -> raw::ActorFacts {
    raw::ActorFacts { issuer: None, subject: "bot".into(), client }
}

prop_compose! {
    fn principal()(
        groups in prop::option::of(names(&["dev", "ops"])),
        scopes in prop::option::of(names(&["read", "run"])),
        client in client(),
        team in prop::option::of(prop_oneof![Just("a"), Just("b")]),
        kind in prop_oneof![Just(raw::Kind::Human), Just(raw::Kind::Agent)],
        acr in prop::option::of(Just("gold".to_owned())),
        amr in names(&["pwd", "otp", "mfa"]),
        login_age in prop::option::of(prop_oneof![Just(Span::from_secs(60)), Just(Span::from_secs(7200))]),
        actor in prop::option::weighted(0.3, client().prop_map(bot)),
    ) -> raw::PrincipalFacts {
        raw::PrincipalFacts {
            groups, scopes, client, kind: Some(kind), acr, amr, login_age, actor,
            claims: team.map(|team| ("team".to_owned(), json!(team))).into_iter().collect(),
            ..Default::default()
        }
    }
}

/// Returns the principal of the same token without `act`.
fn without_actor(facts: &raw::PrincipalFacts) -> raw::PrincipalFacts {
    raw::PrincipalFacts { actor: None, ..facts.clone() }
}

/// Whether a rule is about callers who act for others.
fn speaks_of_agents(rule: &raw::Rule) -> bool {
    rule.who.on_behalf_of.is_some() || rule.who.kind == Some(raw::Kind::Agent)
}

/// Removes one fact at a time. `act` as a whole is not among them: it says that somebody else has the token, and takes
/// rights away. Its own property is below.
fn without_one(facts: &raw::PrincipalFacts) -> Vec<raw::PrincipalFacts> {
    vec![
        raw::PrincipalFacts { groups: None, ..facts.clone() },
        raw::PrincipalFacts { scopes: None, ..facts.clone() },
        raw::PrincipalFacts { client: None, ..facts.clone() },
        raw::PrincipalFacts { actor: facts.actor.as_ref().map(|_| bot(None)), ..facts.clone() },
        raw::PrincipalFacts { claims: Default::default(), ..facts.clone() },
        raw::PrincipalFacts { acr: None, ..facts.clone() },
        raw::PrincipalFacts { amr: Vec::new(), ..facts.clone() },
        // The claim is `auth_time`.
        raw::PrincipalFacts { login_age: None, ..facts.clone() },
    ]
}

fn decide(policy: &Policy, root: &raw::Root, facts: &raw::PrincipalFacts) -> Decision {
    // Whatever the kind is, the issuer gives it to all its principals.
    let of_kind = |issuer: &raw::Issuer| raw::Issuer { kind: facts.kind.or(issuer.kind), ..issuer.clone() };
    let root = raw::Root { issuers: root.issuers.iter().map(of_kind).collect(), ..root.clone() };
    decide_on(
        policy,
        &root,
        Some(facts),
        &raw::RequestFacts { route: "web".to_owned(), ..raw::RequestFacts::default() },
    )
}

fn decide_delivery(policy: &Policy, root: &raw::Root, delivery: raw::DeliveryFacts) -> Decision {
    let (route, delivery) = ("hooks".to_owned(), Some(delivery));
    decide_on(policy, root, None, &raw::RequestFacts { route, delivery, ..raw::RequestFacts::default() })
}

fn decide_on(
    policy: &Policy,
    root: &raw::Root,
    principal: Option<&raw::PrincipalFacts>,
    request: &raw::RequestFacts,
) -> Decision {
    let scenario = Scenario::new(principal, request, root).unwrap();
    policy.decide(&scenario.principal, &scenario.request())
}

/// Compiles generated rules, without those that a person would be told to change.
fn compile_good(rules: Vec<raw::Rule>) -> (raw::Root, Policy) {
    compile_good_on(PROMISING, rules)
}

fn compile_good_on(ground: &str, rules: Vec<raw::Rule>) -> (raw::Root, Policy) {
    let ground = root(ground, "");
    let good = |rule: &raw::Rule| compile(&raw::Root { rules: vec![rule.clone()], ..ground.clone() }).is_ok();
    let root = raw::Root { rules: rules.into_iter().filter(good).collect(), ..ground };
    let policy = compile(&root).unwrap();
    (root, policy)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn taking_a_claim_away_never_turns_a_denial_into_an_allow(rules in rules(who()), facts in principal()) {
        let (root, policy) = compile_good(rules);
        if !decide(&policy, &root, &facts).is_allow() {
            for less in without_one(&facts) {
                let decision = decide(&policy, &root, &less);
                prop_assert!(!decision.is_allow(), "{less:?} {decision:?}");
            }
        }
    }

    /// For a delivery, this is the number that its event does not carry.
    #[test]
    fn a_number_missing_from_a_delivery_never_turns_a_denial_into_an_allow(
        rules in rules(who_delivers()),
        told in delivery(),
    ) {
        let (root, policy) = compile_good(rules);
        if !decide_delivery(&policy, &root, told.clone()).is_allow() {
            for less in [
                raw::DeliveryFacts { actor_id: None, ..told.clone() },
                raw::DeliveryFacts { repository_id: None, ..told },
            ] {
                let decision = decide_delivery(&policy, &root, less.clone());
                prop_assert!(!decision.is_allow(), "{less:?} {decision:?}");
            }
        }
    }

    #[test]
    fn a_number_missing_from_a_token_never_turns_a_denial_into_an_allow(
        rules in rules(who_runs_jobs()),
        facts in job(),
    ) {
        let (root, policy) = compile_good_on(JOBS, rules);
        if !decide(&policy, &root, &facts).is_allow() {
            let less = raw::PrincipalFacts { claims: Default::default(), ..facts };
            let decision = decide(&policy, &root, &less);
            prop_assert!(!decision.is_allow(), "{less:?} {decision:?}");
        }
    }

    /// Rights that no rule gives to agents are for nobody who acts for another: `act` alone never turns a denial into
    /// an allow.
    #[test]
    fn an_actor_gains_nothing_that_no_rule_gives_to_agents(rules in rules(who()), facts in principal()) {
        let of_others = rules.into_iter().filter(|rule| rule.action == raw::Action::Deny || !speaks_of_agents(rule));
        let (root, policy) = compile_good(of_others.collect());
        if !decide(&policy, &root, &without_actor(&facts)).is_allow() {
            let acting = raw::PrincipalFacts { actor: Some(bot(None)), ..facts };
            prop_assert!(!decide(&policy, &root, &acting).is_allow());
        }
    }

    /// Nobody who acts for another can evade a deny by leaving `act` out, unless the rule is about exactly that, or about
    /// the client, which is then another.
    #[test]
    fn removing_the_actor_removes_no_denial(rules in rules(who()), facts in principal()) {
        let (root, policy) = compile_good(rules);
        let decision = decide(&policy, &root, &facts);
        let by = root.rules.iter().find(|rule| decision.rule.as_deref() == Some(&rule.id));
        let is_of_actor = |rule: &raw::Rule| speaks_of_agents(rule) || !rule.who.clients.is_empty();
        let denied = by.is_some_and(|rule| rule.action == raw::Action::Deny && !is_of_actor(rule));
        if facts.actor.is_some() && denied {
            let decision = decide(&policy, &root, &without_actor(&facts));
            prop_assert!(!decision.is_allow(), "{decision:?}");
        }
    }

    #[test]
    fn without_denies_less_is_never_more(rules in rules(who()), facts in principal(), group in 0_usize..2) {
        // Single groups and scopes too: if there are only allows, a fact can only help.
        let allows = rules.into_iter().filter(|rule| rule.action == raw::Action::Allow).collect();
        let (root, policy) = compile_good(allows);
        if !decide(&policy, &root, &facts).is_allow() {
            let mut less = facts;
            for list in [&mut less.groups, &mut less.scopes].into_iter().flatten() {
                if group < list.len() {
                    list.remove(group);
                }
            }
            prop_assert!(!decide(&policy, &root, &less).is_allow());
        }
    }

    #[test]
    fn the_order_of_rules_does_not_matter(
        (rules, shuffled) in rules(who()).prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        facts in principal(),
    ) {
        let (root, policy) = compile_good(rules);
        let (_, other) = compile_good(shuffled);
        let (one, two) = (decide(&policy, &root, &facts), decide(&other, &root, &facts));
        prop_assert_eq!(one.outcome.effect(), two.outcome.effect());
        prop_assert_eq!(one.rule, two.rule);
        prop_assert_eq!(one.shadow, two.shadow);
        prop_assert_eq!(policy.digest(), other.digest());
    }
}
