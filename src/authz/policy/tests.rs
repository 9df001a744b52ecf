use std::path::Path;

use super::*;
use crate::{
    authn::Scheme,
    authz::{Scenario, Would},
    cli::test,
};

mod actors;
mod attributes;
mod caused;
mod concerns;
mod deliveries;
mod digest;
mod expressions;
mod load;
mod nearest;
mod properties;
mod reach;
mod refusals;
mod requests;
mod tokens;
mod warnings;

/// Two issuers, a cluster, a webhook, and a route of each kind.
pub(super) const GROUND: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human}
  - {name: partner, issuer: 'https://partner.example', kind: human}
  - {name: cluster, issuer: 'https://cluster.example', preset: kubernetes}
  - {name: actions, issuer: 'https://actions.example', preset: github_actions}
webhooks:
  - {name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}
routes:
  - {name: api, kind: kubernetes, hosts: [api.example], schemes: [bearer], upstream: api}
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer, anonymous], upstream: web}
  - name: hooks
    kind: webhook
    hosts: [hooks.example]
    schemes: [webhook]
    webhook: gh
    event_listener: {namespace: prod, name: deploy}
    upstream: listener
";

/// The same with one issuer.
pub(super) const ONE_ISSUER: &str = "
issuers: [{name: corp, issuer: 'https://corp.example', kind: human}]
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer, anonymous], upstream: web}
";

pub(super) fn root(ground: &str, policy: &str) -> raw::Root {
    serde_saphyr::from_str(&format!("{ground}{policy}")).unwrap_or_else(|error| panic!("{error}\n{policy}"))
}

pub(super) fn compile(root: &raw::Root) -> Result<Policy, Report> {
    let mut resolver = Resolver::new(Path::new("/"));
    Policy::compile(root, &mut resolver).ok_or(resolver.report)
}

/// The warnings about a policy without errors.
fn warnings_of(root: &raw::Root) -> Vec<crate::config::report::Problem> {
    let mut resolver = Resolver::new(Path::new("/"));
    assert!(Policy::compile(root, &mut resolver).is_some(), "{:#?}", resolver.report.problems());
    resolver.report.problems().to_vec()
}

/// Compiles a policy and decides its test cases.
fn decide_all(ground: &str, policy: &str) {
    let root = root(ground, policy);
    let policy = compile(&root).unwrap_or_else(|report| panic!("{:#?}", report.problems()));
    let results = test::run(&policy, &root, &[], None);
    assert!(results.passed(), "\n{results}");
}

#[test]
fn callers_matched_by_the_same_grants_share_one_list_of_groups() {
    let grants = "
grants:
  - {id: all, who: {issuers: [corp]}, kubernetes_groups: [a, b, a]}
  - {id: dev, who: {issuers: [corp], groups: [dev]}, kubernetes_groups: [c, b]}
";
    let policy = compile(&root(GROUND, grants)).unwrap();
    let given = |issuer: &str, groups: &[&str]| {
        let groups = groups.iter().map(|group| Arc::from(*group)).collect();
        policy.kubernetes_groups(&Principal { groups, ..Principal::new(Scheme::Bearer, issuer, "7", "alice") })
    };
    let names = |list: &[Arc<str>]| list.join(" ");
    let (alice, bob) = (given("corp", &[]), given("corp", &["ops"]));
    assert!(Arc::ptr_eq(&alice.groups, &bob.groups));
    for (given, groups, grants) in
        [(alice, "a b", "all"), (given("corp", &["dev"]), "a b c", "all dev"), (given("partner", &["dev"]), "", "")]
    {
        assert_eq!((names(&given.groups), names(&given.grants)), (groups.to_owned(), grants.to_owned()));
    }
}

#[test]
fn denies_win_then_approvals_then_allows_then_step_up() {
    decide_all(
        GROUND,
        "
rules:
  - {id: all, who: {issuers: [corp], groups: [dev]}, do: allow}
  - {id: fresh, who: {issuers: [corp], groups: [ops]}, need: {mfa: {max_age: 15m}}, do: allow}
  - {id: eyes, on: {paths: [/four/*]}, do: {approve: {by: {issuers: [corp], groups: [leads]}}}}
  - {id: closed, on: {paths: [/four/closed]}, fix: Wait., do: deny}
  - {id: later, on: {paths: [/shadowed]}, do: deny, mode: shadow}
  - {id: soon, who: {issuers: [corp], groups: [trial]}, do: allow, mode: shadow}
tests:
  - {name: allow, principal: &dev {issuer: corp, kind: human, groups: [dev]}, request: {route: web}, expect: {outcome: allow, rule: all}}
  - {name: approve wins over allow, principal: *dev, request: {route: web, path: /four/a}, expect: {outcome: approve, rule: eyes}}
  - {name: deny wins over approve, principal: *dev, request: {route: web, path: /four/closed}, expect: {outcome: deny, rule: closed}}
  - {name: a shadow deny decides nothing, principal: *dev, request: {route: web, path: /shadowed}, expect: {outcome: allow, rule: all}}
  - {name: a shadow allow decides nothing, principal: {issuer: corp, groups: [trial]}, request: {route: web}, expect: {outcome: deny}}
  - {name: no match is a denial, principal: {issuer: corp, groups: [other]}, request: {route: web}, expect: {outcome: deny}}
  - {name: a missing claim matches no allow, principal: {issuer: corp}, request: {route: web}, expect: {outcome: deny}}
  - {name: an unmet need, principal: {issuer: corp, groups: [ops], amr: [pwd], login_age: 1m}, request: {route: web}, expect: {outcome: step_up, rule: fresh}}
  - {name: a stale need, principal: {issuer: corp, groups: [ops], amr: [mfa], login_age: 16m}, request: {route: web}, expect: {outcome: step_up, rule: fresh}}
  - {name: a met need, principal: {issuer: corp, groups: [ops], amr: [mfa], login_age: 15m}, request: {route: web}, expect: {outcome: allow, rule: fresh}}
  - {name: allow wins over step up, principal: {issuer: corp, groups: [dev, ops]}, request: {route: web}, expect: {outcome: allow, rule: all}}
",
    );
}

/// All streams were decided again every few seconds if one rule, on any route, looked at the time.
#[test]
fn only_routes_with_rules_about_time_are_decided_again_as_time_passes() {
    let policy = |rules: &str| compile(&root(GROUND, &format!("rules:\n{rules}"))).unwrap();
    let fresh = |on: &str, mode: &str| {
        policy(&format!(
            "  - {{id: fresh, on: {on}, who: {{issuers: [corp]}}, need: {{mfa: {{max_age: 15m}}}}, do: allow{mode}}}\n  \
             - {{id: all, on: {{routes: [api]}}, who: {{issuers: [corp]}}, do: allow}}\n"
        ))
    };
    let on_web = fresh("{routes: [web]}", "");
    assert!(on_web.follows_the_clock() && on_web.follows_the_clock_on("web"));
    assert!(!on_web.follows_the_clock_on("api") && !on_web.follows_the_clock_on("unknown"));
    let everywhere = fresh("{}", "");
    assert!(everywhere.follows_the_clock_on("web") && everywhere.follows_the_clock_on("api"));
    assert!(!fresh("{routes: [web]}", ", mode: shadow").follows_the_clock(), "it decides nothing");
}

#[test]
fn an_expression_without_a_value_denies() {
    decide_all(
        GROUND,
        "
rules:
  - {id: all, who: {issuers: [corp]}, do: allow}
  - {id: level, on: {paths: [/a]}, who: {issuers: [corp]}, when: 'principal.claims.level > 3', do: allow}
  - {id: contractor, on: {paths: [/d]}, when: 'principal.claims.contractor', do: deny}
  - {id: trial, on: {paths: [/s]}, when: 'principal.claims.contractor', do: deny, mode: shadow}
tests:
  - {name: an allow that fails, principal: {issuer: corp}, request: {route: web, path: /a}, expect: {outcome: deny, rule: level}}
  - {name: an allow that misses, principal: {issuer: corp, claims: {level: 3}}, request: {route: web, path: /a}, expect: {outcome: allow, rule: all}}
  - {name: an allow of the wrong type, principal: {issuer: corp, claims: {level: high}}, request: {route: web, path: /a}, expect: {outcome: deny, rule: level}}
  - {name: a deny that fails, principal: {issuer: corp}, request: {route: web, path: /d}, expect: {outcome: deny, rule: contractor}}
  - {name: a deny that misses, principal: {issuer: corp, claims: {contractor: false}}, request: {route: web, path: /d}, expect: {outcome: allow, rule: all}}
  - {name: a deny that is no bool, principal: {issuer: corp, claims: {contractor: 'false'}}, request: {route: web, path: /d}, expect: {outcome: deny, rule: contractor}}
  - {name: not asked for others, principal: {issuer: partner}, request: {route: web, path: /a}, expect: {outcome: deny}}
  - {name: a shadow that fails, principal: {issuer: corp}, request: {route: web, path: /s}, expect: {outcome: allow, rule: all}}
",
    );
}

#[test]
fn facts_count_for_the_issuers_that_a_rule_names() {
    // attacks:Z1, peers:T7
    decide_all(
        GROUND,
        "
rules:
  - {id: release, on: {routes: [web]}, who: {issuers: [corp], groups: [release-admins]}, do: allow}
  - {id: sub, on: {routes: [web], paths: [/sub]}, who: {issuers: [corp], subjects: [alice]}, do: allow}
grants:
  - {id: admins, who: {issuers: [corp], groups: [release-admins]}, kubernetes_groups: [tekton:admins, tekton:viewers]}
  - {id: viewers, who: {issuers: [corp]}, kubernetes_groups: [tekton:viewers]}
tests:
  - name: attacks:Z1 the issuer that is meant
    principal: {issuer: corp, groups: [release-admins]}
    request: {route: web}
    expect: {outcome: allow, kubernetes_groups: [tekton:admins, tekton:viewers]}
  - name: attacks:Z1 another issuer
    principal: {issuer: partner, groups: [release-admins]}
    request: {route: web}
    expect: {outcome: deny, kubernetes_groups: []}
  - name: peers:T7 other groups
    principal: {issuer: corp, groups: [foo, bar]}
    request: {route: web}
    expect: {outcome: deny, kubernetes_groups: [tekton:viewers]}
  - {name: names compare exactly, principal: {issuer: corp, groups: [Release-Admins]}, request: {route: web}, expect: {outcome: deny}}
  - {name: the subject, principal: {issuer: corp, subject: alice}, request: {route: web, path: /sub}, expect: {outcome: allow, rule: sub}}
  - {name: the subject elsewhere, principal: {issuer: partner, subject: alice}, request: {route: web, path: /sub}, expect: {outcome: deny}}
",
    );
    // With one issuer its name need not be written, and still only that issuer is meant.
    decide_all(
        &ONE_ISSUER.replace("anonymous", "break_glass"),
        "
break_glass: {until: '2024-01-01T00:00:00Z', certificates: []}
rules: [{id: dev, who: {groups: [dev]}, do: allow}]
tests:
  - {name: the one issuer, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow}}
  - {name: none of the issuers, principal: {issuer: break-glass, groups: [dev]}, request: {route: web}, expect: {outcome: deny}}
",
    );
}

#[test]
fn a_deny_by_user_name_ignores_case_and_form_and_an_allow_does_not() {
    // attacks:Z4
    decide_all(
        ONE_ISSUER,
        "
rules: [{id: main, who: {users: ['gh#repo:acme/app:ref:refs/heads/main']}, do: allow}]
tests:
  - {name: itself, principal: {username: 'gh#repo:acme/app:ref:refs/heads/main'}, request: {route: web}, expect: {outcome: allow}}
  - {name: another branch, principal: {username: 'gh#repo:acme/app:ref:refs/heads/Main'}, request: {route: web}, expect: {outcome: deny}}
",
    );
    decide_all(
        ONE_ISSUER,
        "
rules:
  - {id: all, do: allow}
  - {id: alice, who: {users: [alice@corp, jürgen@corp]}, do: deny}
tests:
  - {name: attacks:Z4 case, principal: {username: Alice@Corp}, request: {route: web}, expect: {outcome: deny, rule: alice}}
  - {name: attacks:Z4 width, principal: {username: ａlice@corp}, request: {route: web}, expect: {outcome: deny, rule: alice}}
  - {name: attacks:Z4 form, principal: {username: \"JU\\u0308rgen@corp\"}, request: {route: web}, expect: {outcome: deny, rule: alice}}
  - {name: attacks:Z4 another, principal: {username: bob@corp}, request: {route: web}, expect: {outcome: allow}}
",
    );
}

#[test]
fn a_scope_narrows_people() {
    // attacks:Z41
    decide_all(
        ONE_ISSUER,
        "
rules:
  - {id: people, on: {paths: [/people]}, who: {groups: [dev], scopes: [tekton:run]}, do: allow}
  - {id: app, on: {paths: [/app]}, who: {clients: [portal], scopes: [tekton:run]}, do: allow}
  - {id: bots, on: {paths: [/bots]}, who: {kind: agent, scopes: [tekton:run]}, do: allow}
tests:
  - {name: group and scope, principal: {kind: human, groups: [dev], scopes: [tekton:run]}, request: {route: web, path: /people}, expect: {outcome: allow}}
  - {name: group without scope, principal: {kind: human, groups: [dev]}, request: {route: web, path: /people}, expect: {outcome: deny}}
  - {name: attacks:Z41 scope without group, principal: {kind: human, scopes: [tekton:run]}, request: {route: web, path: /people}, expect: {outcome: deny}}
  - {name: attacks:Z41 named client, principal: {kind: human, client: portal, scopes: [tekton:run]}, request: {route: web, path: /app}, expect: {outcome: allow}}
  - {name: attacks:Z41 other client, principal: {kind: human, client: other, scopes: [tekton:run]}, request: {route: web, path: /app}, expect: {outcome: deny}}
  - {name: attacks:Z41 no client, principal: {kind: human, scopes: [tekton:run]}, request: {route: web, path: /app}, expect: {outcome: deny}}
  - {name: a bot, principal: {kind: agent, client: test, scopes: [tekton:run]}, request: {route: web, path: /bots}, expect: {outcome: allow}}
  - {name: no bot, principal: {kind: human, scopes: [tekton:run]}, request: {route: web, path: /bots}, expect: {outcome: deny}}
",
    );
}

#[test]
fn a_scope_alone_gives_nothing_to_a_person_who_acts_through_an_agent() {
    decide_all(
        ONE_ISSUER,
        "
rules: [{id: bots, who: {kind: agent, scopes: [tekton:run]}, do: allow}]
tests:
  - {name: an agent of its own, principal: {kind: agent, client: test, scopes: [tekton:run]}, request: {route: web}, expect: {outcome: allow}}
  - {name: a person's token, principal: {kind: human, actor: {subject: bot}, scopes: [tekton:run]}, request: {route: web}, expect: {outcome: deny}}
",
    );
}

#[test]
fn a_decision_considers_the_principal_and_its_actor() {
    // attacks:Z5: a token whose subject is its client is the client's own.
    decide_all(
        ONE_ISSUER,
        "
rules:
  - {id: people, on: {paths: [/people]}, who: {kind: human}, do: allow}
  - {id: behalf, on: {paths: [/behalf]}, who: {kind: agent, clients: [copilot], on_behalf_of: {groups: [release]}}, do: allow}
  - {id: person, on: {paths: [/person]}, who: {kind: human, on_behalf_of: {subjects: [alice]}}, do: allow}
  - {id: all, on: {paths: [/all/*]}, do: allow}
  - {id: no-bot, on: {paths: [/all/no-bot]}, who: {subjects: [bot]}, do: deny}
  - {id: no-people, on: {paths: [/all/no-people]}, who: {kind: human}, do: deny}
tests:
  - {name: a person, principal: {kind: human}, request: {route: web, path: /people}, expect: {outcome: allow}}
  - {name: attacks:Z5 a client itself, principal: {subject: x, client: x}, request: {route: web, path: /people}, expect: {outcome: deny}}
  - {name: through an actor, principal: {kind: human, actor: {subject: bot}}, request: {route: web, path: /people}, expect: {outcome: deny}}
  - {name: on behalf of a member, principal: {kind: human, groups: [release], actor: {subject: bot, client: copilot}}, request: {route: web, path: /behalf}, expect: {outcome: allow}}
  - {name: on behalf of another, principal: {kind: human, groups: [dev], actor: {subject: bot, client: copilot}}, request: {route: web, path: /behalf}, expect: {outcome: deny}}
  - {name: by another agent, principal: {kind: human, groups: [release], actor: {subject: bot, client: other}}, request: {route: web, path: /behalf}, expect: {outcome: deny}}
  - {name: a member itself, principal: {kind: human, groups: [release], client: copilot}, request: {route: web, path: /behalf}, expect: {outcome: deny}}
  - {name: a human through an actor where it is said, principal: {kind: human, subject: alice, actor: {subject: bot}}, request: {route: web, path: /person}, expect: {outcome: allow}}
  - {name: for another, principal: {kind: human, subject: bob, actor: {subject: bot}}, request: {route: web, path: /person}, expect: {outcome: deny}}
  - {name: a deny of the actor, principal: {kind: human, subject: alice, actor: {subject: bot}}, request: {route: web, path: /all/no-bot}, expect: {outcome: deny, rule: no-bot}}
  - {name: the person without it, principal: {kind: human, subject: alice}, request: {route: web, path: /all/no-bot}, expect: {outcome: allow}}
  - {name: a deny of the person behind, principal: {kind: human, actor: {subject: bot}}, request: {route: web, path: /all/no-people}, expect: {outcome: deny, rule: no-people}}
  - {name: an agent of its own, principal: {kind: agent, client: test}, request: {route: web, path: /all/no-people}, expect: {outcome: allow}}
",
    );
}

/// The token of the person for whom an agent acts may have been issued to another client, which asks for nothing here.
#[test]
fn with_an_actor_the_client_is_the_actors_and_a_deny_applies_to_both() {
    let policy = "
rules:
  - {id: planner, on: {paths: [/allow]}, who: {clients: [planner]}, do: allow}
  - {id: behalf, on: {paths: [/behalf]}, who: {clients: [planner], on_behalf_of: {groups: [dev]}}, do: allow}
  - {id: task, on: {paths: [/task]}, who: {clients: ['serviceaccount:ci:builder']}, do: allow}
  - {id: all, on: {paths: [/deny, /deny-task]}, do: allow}
  - {id: no-planner, on: {paths: [/deny]}, who: {clients: [planner]}, do: deny}
  - {id: no-task, on: {paths: [/deny-task]}, who: {clients: ['serviceaccount:ci:builder']}, do: deny}
tests:
";
    let mut cases = String::new();
    for (client, actor, met) in [
        ("planner", "", ["/allow", "/deny"].as_slice()),
        ("web", "", &[]),
        ("planner", "{subject: bot, client: other}", &["/deny"]),
        // It may be any client.
        ("planner", "{subject: bot}", &["/deny", "/deny-task"]),
        // The actor is that client itself.
        ("planner", "{subject: planner}", &["/allow", "/behalf", "/deny"]),
        // The actor's own rights do not extend to everybody it acts for.
        ("web", "{subject: bot, client: planner}", &["/behalf", "/deny"]),
        ("planner", "{subject: bot, client: planner}", &["/allow", "/behalf", "/deny"]),
        ("web", "{subject: planner}", &["/deny", "/deny-task"]),
        ("planner", "{subject: 'serviceaccount:ci:builder'}", &["/deny", "/deny-task"]),
        ("serviceaccount:ci:builder", "{subject: 'serviceaccount:ci:builder'}", &["/task", "/deny-task"]),
        ("web", "{subject: 'serviceaccount:ci:other'}", &[]),
        // Only a task has no other client.
        ("web", "{subject: 'serviceaccount:ci:builder', client: other}", &[]),
    ] {
        for path in ["/allow", "/behalf", "/task", "/deny", "/deny-task"] {
            let outcome = if met.contains(&path) != path.starts_with("/deny") { "allow" } else { "deny" };
            let actor = if actor.is_empty() { String::new() } else { format!(", actor: {actor}") };
            cases.push_str(&format!(
                "  - {{name: \"{client} {actor} at {path}\", principal: {{groups: [dev], client: {client}{actor}}}, \
                 request: {{route: web, path: {path}}}, expect: {{outcome: {outcome}}}}}\n"
            ));
        }
    }
    decide_all(ONE_ISSUER, &format!("{policy}{cases}"));
}

#[test]
fn a_refusal_names_the_client_of_the_actor_if_there_is_one() {
    let root = root(ONE_ISSUER, "rules: [{id: planner, who: {clients: [planner]}, do: allow}]");
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    for (facts, told) in [
        ("{client: web}", "has web"),
        ("{client: planner, actor: {subject: bot, client: other}}", "has other (of the actor)"),
        ("{client: planner, actor: {subject: bot}}", "has none (of the actor)"),
    ] {
        let facts: raw::PrincipalFacts = serde_saphyr::from_str(facts).unwrap();
        let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
        let text = policy.explain(&scenario.principal, &scenario.request()).to_string();
        assert!(text.contains(&format!("who.clients: needs planner, {told}\n")), "{text}");
    }
}

#[test]
fn anonymous_callers_match_only_rules_for_anonymous_callers() {
    decide_all(
        ONE_ISSUER,
        "
rules:
  - {id: members, do: allow}
  - {id: badge, on: {paths: [/badge]}, who: {anonymous: true}, do: allow}
  - {id: closed, on: {paths: [/closed]}, who: {anonymous: true}, do: allow}
  - {id: shut, on: {paths: [/closed]}, do: deny}
tests:
  - {name: a stranger, request: {route: web}, expect: {outcome: deny}}
  - {name: a stranger where strangers may, request: {route: web, path: /badge}, expect: {outcome: allow, rule: badge}}
  - {name: a deny without who is about strangers too, request: {route: web, path: /closed}, expect: {outcome: deny, rule: shut}}
  - {name: somebody, principal: {subject: a}, request: {route: web}, expect: {outcome: allow, rule: members}}
",
    );
}

/// Some issuers write integers as fractions, and those of CI jobs write them as text: a deny of `5` let these pass.
#[test]
fn a_deny_takes_a_number_for_the_same_however_the_token_writes_it() {
    decide_all(
        ONE_ISSUER,
        "
rules:
  - {id: all, on: {paths: [/deny]}, do: allow}
  - {id: allowed, on: {paths: [/allow]}, who: {claims: {d: [5]}}, do: allow}
  - {id: denied, on: {paths: [/deny]}, who: {claims: {d: [5, 9007199254740992, false, '7']}}, do: deny}
tests:
  - {name: written so, principal: {claims: {d: 5}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: as a fraction, principal: {claims: {d: 5.0}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: in a list, principal: {claims: {d: [4, 5.0]}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: another, principal: {claims: {d: 5.5}}, request: {route: web, path: /deny}, expect: {outcome: allow, rule: all}}
  - {name: a long id, principal: {claims: {d: 9007199254740992}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: the next id, principal: {claims: {d: 9007199254740993}}, request: {route: web, path: /deny}, expect: {outcome: allow, rule: all}}
  - {name: a text, principal: {claims: {d: '5'}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: a flag as text, principal: {claims: {d: 'false'}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: a number for a text, principal: {claims: {d: 7}}, request: {route: web, path: /deny}, expect: {outcome: deny, rule: denied}}
  - {name: another text, principal: {claims: {d: '6'}}, request: {route: web, path: /deny}, expect: {outcome: allow, rule: all}}
  - {name: the next id as text, principal: {claims: {d: '9007199254740993'}}, request: {route: web, path: /deny}, expect: {outcome: allow, rule: all}}
  - {name: another flag, principal: {claims: {d: 'true'}}, request: {route: web, path: /deny}, expect: {outcome: allow, rule: all}}
  - {name: an allow, principal: {claims: {d: 5.0}}, request: {route: web, path: /allow}, expect: {outcome: deny}}
  - {name: an allow of a text, principal: {claims: {d: '5'}}, request: {route: web, path: /allow}, expect: {outcome: deny}}
",
    );
}

#[test]
fn a_deny_applies_if_the_issuer_withholds_the_claim_that_it_tests() {
    decide_all(
        "
issuers:
  - {name: corp, issuer: 'https://corp.example', claims: {groups: /realm/roles}, required_claims: {tier: [gold, lead]}}
  - {name: actions, issuer: 'https://actions.example', preset: github_actions}
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
",
        "
rules:
  - {id: all, do: allow}
  - {id: contractors, who: {issuers: [corp], groups: [contractors]}, do: deny}
  - {id: gold, on: {paths: [/gold]}, who: {issuers: [corp], claims: {tier: [lead]}}, do: deny}
  - {id: free, on: {paths: [/free]}, who: {issuers: [corp], claims: {mood: [bad]}}, do: deny}
  - {id: preset, on: {paths: [/preset]}, who: {issuers: [actions], groups: [x]}, do: deny}
tests:
  - {name: not in it, principal: {issuer: corp, groups: [dev]}, request: {route: web}, expect: {outcome: allow}}
  - {name: in it, principal: {issuer: corp, groups: [contractors]}, request: {route: web}, expect: {outcome: deny, rule: contractors}}
  - {name: in none, principal: {issuer: corp, groups: []}, request: {route: web}, expect: {outcome: allow}}
  - {name: not said, principal: {issuer: corp}, request: {route: web}, expect: {outcome: deny, rule: contractors}}
  - {name: said by another, principal: {issuer: actions}, request: {route: web}, expect: {outcome: allow}}
  - {name: a required claim that is not there, principal: {issuer: corp, groups: []}, request: {route: web, path: /gold}, expect: {outcome: deny, rule: gold}}
  - {name: a required claim of another value, principal: {issuer: corp, groups: [], claims: {tier: gold}}, request: {route: web, path: /gold}, expect: {outcome: allow}}
  - {name: a claim that nobody promised, principal: {issuer: corp, groups: []}, request: {route: web, path: /free}, expect: {outcome: allow}}
  - {name: what a preset does not give, principal: {issuer: actions}, request: {route: web, path: /preset}, expect: {outcome: allow}}
",
    );
}

/// A principal whose token says nothing about groups, although the preset of the provider expects them.
#[test]
fn a_deny_over_groups_applies_if_a_login_provider_withholds_them() {
    decide_all(
        "
issuers: [{name: corp, preset: okta, issuer: 'https://corp.okta.com', kind: human}]
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
",
        "
rules:
  - {id: all, who: {issuers: [corp]}, do: allow}
  - {id: contractors, on: {paths: [/]}, who: {groups: [contractors]}, do: deny}
  - {id: listed, on: {paths: [/listed]}, when: \"'contractors' in principal.groups\", do: deny}
tests:
  - {name: in it, principal: {groups: [contractors]}, request: {route: web}, expect: {outcome: deny, rule: contractors}}
  - {name: in another, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow}}
  - {name: in none, principal: {groups: []}, request: {route: web}, expect: {outcome: allow}}
  - {name: not said, principal: {}, request: {route: web}, expect: {outcome: deny, rule: contractors}}
  - {name: not said where that counts as none, principal: {}, request: {route: web, path: /listed}, expect: {outcome: allow}}
  - {name: listed, principal: {groups: [contractors]}, request: {route: web, path: /listed}, expect: {outcome: deny, rule: listed}}
",
    );
}

#[test]
fn an_uncertain_approve_overrides_an_allow_and_permits_nothing() {
    decide_all(
        ONE_ISSUER,
        "
rules:
  - {id: all, on: {paths: [/open]}, do: allow}
  - {id: badge, on: {paths: [/badge]}, who: {anonymous: true}, do: allow}
  - {id: eyes, who: {groups: [juniors]}, do: {approve: {by: {groups: [leads]}}}}
  - {id: all-eyes, on: {paths: [/badge]}, do: {approve: {by: {groups: [leads]}}}}
tests:
  - {name: not in it, principal: {groups: [seniors]}, request: {route: web, path: /open}, expect: {outcome: allow}}
  - {name: in it, principal: {groups: [juniors]}, request: {route: web, path: /open}, expect: {outcome: approve, rule: eyes}}
  - {name: not said, principal: {}, request: {route: web, path: /open}, expect: {outcome: approve, rule: eyes}}
  - {name: not said where nothing allows, principal: {}, request: {route: web, path: /shut}, expect: {outcome: deny}}
  - {name: a stranger, request: {route: web, path: /badge}, expect: {outcome: approve, rule: all-eyes}}
",
    );
}

#[test]
fn shadow_rules_are_recorded() {
    let root = root(
        ONE_ISSUER,
        "
rules:
  - {id: all, do: allow}
  - {id: b, do: deny, mode: shadow}
  - {id: a, need: {mfa: {max_age: 1m}}, do: allow, mode: shadow}
  - {id: c, when: 'principal.claims.x', do: deny, mode: shadow}
  - {id: d, who: {groups: [x]}, do: allow, mode: shadow}
",
    );
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let scenario = Scenario::new(Some(&raw::PrincipalFacts::default()), &request, &root).unwrap();
    let decision = policy.decide(&scenario.principal, &scenario.request());
    assert!(decision.is_allow());
    let shadow: Vec<(&str, Would)> = decision.shadow.iter().map(|shadow| (&*shadow.rule, shadow.would)).collect();
    assert_eq!(shadow, [("b", Would::Deny), ("c", Would::Error), ("a", Would::StepUp)]);
}

#[test]
fn a_policy_unknown_of_a_route_denies() {
    let root = root(ONE_ISSUER, "rules: [{id: all, do: allow}]");
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let scenario = Scenario::new(Some(&raw::PrincipalFacts::default()), &request, &root).unwrap();
    assert!(policy.decide(&scenario.principal, &scenario.request()).is_allow());
    let elsewhere = RequestView { route: "elsewhere", ..scenario.request() };
    assert!(!policy.decide(&scenario.principal, &elsewhere).is_allow());
}
