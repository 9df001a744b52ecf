//! What holds for every policy.

use proptest::{prelude::*, sample::subsequence};
use serde_json::json;

use super::*;

/// An issuer that is configured to give all that the rules here ask for.
const PROMISING: &str = "
issuers:
  - name: corp
    issuer: https://corp.example
    claims: {groups: groups, scopes: scope}
    required_claims: {team: [a, b]}
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
        users in names(&["corp#test", "corp#other"]),
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

fn action() -> impl Strategy<Value = raw::Action> {
    let by = raw::Who { users: vec!["corp#lead".to_owned()], ..raw::Who::default() };
    let approve = raw::Approve { by, count: None, pending: None, grant: None };
    prop_oneof![3 => Just(raw::Action::Allow), 2 => Just(raw::Action::Deny), 1 => Just(raw::Action::Approve(Box::new(approve)))]
}

fn rules() -> impl Strategy<Value = Vec<raw::Rule>> {
    let rule = (who(), action(), prop::bool::weighted(0.1), prop::bool::weighted(0.3)).prop_map(
        |(who, action, shadow, need)| raw::Rule {
            id: String::new(),
            why: None,
            fix: None,
            on: raw::On::default(),
            who,
            need: raw::Need {
                acr: if need && action == raw::Action::Allow { vec!["gold".into()] } else { vec![] },
                ..Default::default()
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

prop_compose! {
    fn principal()(
        groups in prop::option::of(names(&["dev", "ops"])),
        scopes in prop::option::of(names(&["read", "run"])),
        client in prop::option::of(Just("cli".to_owned())),
        team in prop::option::of(prop_oneof![Just("a"), Just("b")]),
        kind in prop_oneof![Just(raw::Kind::Human), Just(raw::Kind::Agent)],
        acr in prop::option::of(Just("gold".to_owned())),
        actor in prop::option::weighted(0.3, Just(raw::ActorFacts { subject: "bot".into(), client: None })),
    ) -> raw::PrincipalFacts {
        raw::PrincipalFacts {
            groups, scopes, client, kind: Some(kind), acr, actor,
            claims: team.map(|team| ("team".to_owned(), json!(team))).into_iter().collect(),
            ..Default::default()
        }
    }
}

/// Everything that takes one fact away.
fn without_one(facts: &raw::PrincipalFacts) -> Vec<raw::PrincipalFacts> {
    vec![
        raw::PrincipalFacts { groups: None, ..facts.clone() },
        raw::PrincipalFacts { scopes: None, ..facts.clone() },
        raw::PrincipalFacts { client: None, ..facts.clone() },
        raw::PrincipalFacts { claims: Default::default(), ..facts.clone() },
        raw::PrincipalFacts { acr: None, ..facts.clone() },
    ]
}

fn decide(policy: &Policy, root: &raw::Root, facts: &raw::PrincipalFacts) -> Decision {
    let request: raw::RequestFacts = serde_json::from_value(json!({"route": "web"})).unwrap();
    let scenario = Scenario::new(Some(facts), &request, root).unwrap();
    policy.decide(&scenario.principal, &scenario.request())
}

/// Compiles generated rules, without those that a person would be told to change.
fn compile_good(rules: Vec<raw::Rule>) -> (raw::Root, Policy) {
    let ground = root(PROMISING, "");
    let good = |rule: &raw::Rule| compile(&raw::Root { rules: vec![rule.clone()], ..ground.clone() }).is_ok();
    let root = raw::Root { rules: rules.into_iter().filter(good).collect(), ..ground };
    let policy = compile(&root).unwrap();
    (root, policy)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn taking_a_claim_away_never_turns_a_denial_into_an_allow(rules in rules(), facts in principal()) {
        let (root, policy) = compile_good(rules);
        if !decide(&policy, &root, &facts).is_allow() {
            for less in without_one(&facts) {
                let decision = decide(&policy, &root, &less);
                prop_assert!(!decision.is_allow(), "{less:?} {decision:?}");
            }
        }
    }

    #[test]
    fn without_denies_less_is_never_more(rules in rules(), facts in principal(), group in 0_usize..2) {
        // Single groups and scopes too: where only allows speak, each fact only ever helps.
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
    fn the_order_of_rules_means_nothing(
        (rules, shuffled) in rules().prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        facts in principal(),
    ) {
        let (root, policy) = compile_good(rules);
        let (_, other) = compile_good(shuffled);
        let (one, two) = (decide(&policy, &root, &facts), decide(&other, &root, &facts));
        prop_assert_eq!(one.outcome.as_str(), two.outcome.as_str());
        prop_assert_eq!(one.rule, two.rule);
        prop_assert_eq!(one.shadow, two.shadow);
        prop_assert_eq!(policy.digest(), other.digest());
    }
}
