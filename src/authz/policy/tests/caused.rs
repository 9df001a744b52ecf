//! The cause of a run, as rules see it when a task of the run asks for a token.

use std::net::{IpAddr, Ipv4Addr};

use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::{
    authz::{TokenView, claims_named},
    config::raw::RouteKind,
    runs::Cause,
};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

/// Returns the rule that decides a token for a given cause, and whether it gives the token.
fn decided(rules: &str, caused: &Principal) -> (bool, Option<Arc<str>>) {
    decided_of(rules, &kept(rules, caused))
}

fn with_rules(rules: &str) -> raw::Root {
    root(&format!("{GROUND}tokens: {{exchange: [{{issuer: cluster, kubernetes: api}}]}}\nrules:\n{rules}"), "")
}

/// Returns what the store has of a cause that came while these rules were in force.
fn kept(rules: &str, caused: &Principal) -> Value {
    let claims = claims_named(&with_rules(rules)).unwrap_or_default();
    serde_json::to_value(Cause::new(caused, None, Uuid::nil(), NOW, &claims)).unwrap()
}

fn decided_of(rules: &str, kept: &Value) -> (bool, Option<Arc<str>>) {
    let policy = compile(&with_rules(rules)).unwrap_or_else(|report| panic!("{:#?}", report.problems()));
    let cause: Cause = serde_json::from_value(kept.clone()).unwrap();
    let principal = cause.principal();
    let decision = policy.decide(
        &principal,
        &RequestView {
            route: TOKEN_ENDPOINT,
            kind: RouteKind::Http,
            host: "door.example",
            path: TOKEN_ENDPOINT,
            method: &Method::POST,
            upgrade: false,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            event_listener: None,
            kubernetes: None,
            run: None,
            delivery: None,
            trigger: None,
            token: Some(TokenView { audience: "x", scope: None, task: None }),
            now: NOW,
        },
    );
    (decision.is_allow(), decision.rule)
}

fn with(issuer: &str, claims: &Value) -> Principal {
    Principal {
        claims: Arc::new(claims.as_object().unwrap().clone()),
        ..Principal::new(Scheme::Bearer, issuer, "7", "alice")
    }
}

/// No rule names the claim that has the number of a repository.
#[test]
fn the_repository_of_a_job_that_caused_a_run_is_known_to_rules() {
    let job = |id: &str| with("actions", &json!({"repository_id": id, "repository": "acme/app"}));
    let allow = "  - {id: job, on: {token: {audiences: [x]}}, who: {repositories: ['github:1234']}, do: allow}\n";
    let all = "  - {id: all, on: {token: {audiences: [x]}}, who: {issuers: [actions]}, do: allow}\n";
    let deny = "  - {id: no, who: {repositories: ['github:1234']}, do: deny}\n";
    assert_eq!(decided(allow, &job("1234")), (true, Some("job".into())));
    assert!(!decided(allow, &job("12345")).0);
    assert_eq!(decided(&format!("{all}{deny}"), &job("1234")), (false, Some("no".into())));
    assert_eq!(decided(&format!("{all}{deny}"), &job("12345")), (true, Some("all".into())));
}

#[test]
fn rules_can_use_the_verified_address_of_the_person_who_caused_a_run() {
    let rule = "  - {id: mail, on: {token: {audiences: [x]}}, who: {issuers: [corp]}, when: \"has(principal.email) && principal.email.endsWith('@corp.example')\", do: allow}\n";
    let alice = |verified: bool| with("corp", &json!({"email": "alice@corp.example", "email_verified": verified}));
    assert!(decided(rule, &alice(true)).0);
    assert!(!decided(rule, &alice(false)).0);
}

/// What was stored does not show who had the claim and who had not.
#[test]
fn a_deny_by_a_claim_not_read_when_a_run_was_caused_applies_to_its_tokens() {
    let all = "  - {id: all, on: {token: {audiences: [x]}}, who: {issuers: [corp]}, do: allow}\n";
    let (visitor, alice) = (with("corp", &json!({"team": "visitors"})), with("corp", &json!({})));
    for deny in [
        "  - {id: no, who: {issuers: [corp], claims: {team: [visitors]}}, do: deny}\n",
        "  - {id: no, who: {issuers: [corp], claims: {/team/name: [visitors]}}, do: deny}\n",
        "  - {id: no, who: {issuers: [corp]}, when: \"has(principal.claims.team) && principal.claims.team == 'visitors'\", do: deny}\n",
    ] {
        let rules = format!("{all}{deny}");
        for caused in [&visitor, &alice] {
            let decided = decided_of(&rules, &kept(all, caused));
            assert_eq!(decided, (false, Some("no".into())), "the rule came later: {deny}");
        }
        assert_eq!(decided_of(&rules, &kept(&rules, &alice)), (true, Some("all".into())), "it was there: {deny}");
    }
}

/// To the expression, the claim looked absent.
#[test]
fn an_allow_for_an_absent_claim_does_not_match_if_claims_were_not_read() {
    let visitor = with("corp", &json!({"team": "visitors"}));
    let staff = "  - {id: staff, on: {token: {audiences: [x]}}, who: {issuers: [corp]}, when: \"!has(principal.claims.team)\", do: allow}\n";
    let all = "  - {id: all, on: {token: {audiences: [x]}}, who: {issuers: [corp]}, do: allow}\n";
    assert_eq!(decided_of(staff, &kept(all, &visitor)), (false, None), "the rule came later");
    assert!(decided(staff, &with("corp", &json!({}))).0, "it was there");
    let named = "  - {id: named, on: {token: {audiences: [x]}}, who: {issuers: [corp]}, when: \"principal.claims.team == 'a'\", do: allow}\n";
    assert_eq!(
        decided_of(&format!("{named}{all}"), &kept(all, &visitor)),
        (true, Some("all".into())),
        "another gives it"
    );
}

/// A deny by groups matches callers whose groups are unknown, but not callers who are known to have none.
#[test]
fn an_empty_list_of_groups_is_kept_for_the_person_who_caused_a_run() {
    let rules = "  - {id: all, on: {token: {audiences: [x]}}, who: {issuers: [corp]}, do: allow}\n  - {id: guests, who: {issuers: [corp], groups: [guests]}, do: deny}\n  - {id: scoped, who: {issuers: [corp], scopes: [little]}, do: deny}\n";
    for says in [true, false] {
        let alice = Principal { says_groups: says, says_scopes: says, ..with("corp", &json!({})) };
        assert_eq!(decided(rules, &alice).0, says, "{says}");
    }
    let guest =
        Principal { groups: vec!["guests".into()], says_groups: true, says_scopes: true, ..with("corp", &json!({})) };
    assert_eq!(decided(rules, &guest), (false, Some("guests".into())));
}

/// As the token endpoint evaluates rules, so that cases can test them.
#[test]
fn cases_can_name_the_delivery_that_caused_the_run_of_a_task() {
    let exchange = "tokens: {exchange: [{issuer: cluster, kubernetes: api}]}\n";
    let task = "task: {namespace: ci, service_account: build}";
    let case = |expect: &str, issuer: &str, request: &str| {
        format!("  - {{name: a, principal: {{{issuer}}}, request: {{{request}}}, expect: {{outcome: {expect}}}}}\n")
    };
    let decided = |cases: &str| {
        let root = root(
            GROUND,
            &format!(
                "{exchange}rules:\n  - {{id: pushed, on: {{token: {{audiences: [x], service_accounts: [ci/build]}}}}, who: {{webhooks: [gh]}}, \
                 when: \"has(delivery.event) && delivery.event == 'push'\", do: allow}}\ntests:\n{cases}"
            ),
        );
        let policy = compile(&root).unwrap_or_else(|report| panic!("{:#?}", report.problems()));
        test::run(&policy, &root, &[], None)
    };
    let (gh, of_task) = ("issuer: 'webhook:gh'", format!("token: {{audience: x, {task}}}"));
    for (expect, delivery) in
        [("allow", ", delivery: {event: push}"), ("deny", ", delivery: {event: create}"), ("deny", "")]
    {
        let results = decided(&case(expect, gh, &format!("{of_task}{delivery}")));
        assert!(results.passed(), "{delivery}\n{results}");
    }
    for (issuer, token, why) in [
        ("issuer: corp", of_task.as_str(), "only a webhook causes a run by a delivery"),
        ("", &of_task, "only a webhook causes a run by a delivery"),
        ("issuer: 'webhook:lost'", &of_task, "there is no webhook `lost`"),
        (gh, "token: {audience: x}", "only a task that asks for a token has the delivery"),
        (gh, "route: web", "route `web` is not a webhook route"),
    ] {
        let results = decided(&case("deny", issuer, &format!("{token}, delivery: {{event: push}}")));
        assert!(results.cases[0].differences[0].contains(why), "{results}");
    }
}
