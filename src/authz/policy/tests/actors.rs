//! Whoever acts for a person: which issuer they are of, and what is known of them.

use super::*;

/// Each chooses the names of its clients and subjects.
const ISSUERS: &str = "
issuers:
  - {name: company, issuer: 'https://company.example', kind: human}
  - {name: other, issuer: 'https://other.example', kind: agent}
  - {name: own, preset: doorward, issuer: 'https://door.example', audiences: [a]}
routes:
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
";

/// Decides requests of a developer of the company for whom each of the actors acts. The rows name the issuer of the
/// token, the actor, and the paths on which the rule of that name matches.
fn match_all(rules: &str, rows: &[(&str, &str, &[&str])], paths: &[&str]) {
    let mut cases = String::new();
    for (issuer, actor, met) in rows {
        assert!(met.iter().all(|path| paths.contains(path)), "{issuer} {actor}: {met:?}");
        for path in paths {
            let outcome = if met.contains(path) != path.starts_with("/deny") { "allow" } else { "deny" };
            cases.push_str(&format!(
                "  - {{name: \"{issuer} {actor} at {path}\", request: {{route: web, path: {path}}}, expect: {{outcome: {outcome}}}, \
                 principal: {{issuer: {issuer}, kind: human, client: cli, groups: [dev], actor: {actor}}}}}\n"
            ));
        }
    }
    decide_all(ISSUERS, &format!("rules:\n{rules}tests:\n{cases}"));
}

/// Whoever chose names at another issuer had the rights of the company's agent of that name.
#[test]
fn an_actor_has_the_rights_of_its_name_only_where_its_own_issuer_is_named() {
    match_all(
        "
  - {id: client, on: {paths: [/client]}, who: {issuers: [company], clients: [assistant], on_behalf_of: {groups: [dev]}}, do: allow}
  - {id: subject, on: {paths: [/subject]}, who: {issuers: [company], subjects: [helper], on_behalf_of: {groups: [dev]}}, do: allow}
  - {id: own, on: {paths: [/own]}, who: {issuers: [own], clients: [assistant], on_behalf_of: {}}, do: allow}
  - {id: both, on: {paths: [/both]}, who: {issuers: [company, other], clients: [assistant], on_behalf_of: {groups: [dev]}}, do: allow}
  - {id: theirs, on: {paths: [/theirs]}, who: {issuers: [own, other], subjects: [helper], on_behalf_of: {}}, do: allow}
",
        &[
            ("company", "{subject: helper, client: assistant}", &["/client", "/subject", "/both"]),
            // A provider vouches for no actor of another issuer, by whatever name: it was decided as if it did.
            ("company", "{issuer: other, subject: helper, client: assistant}", &[]),
            ("own", "{issuer: company, subject: helper, client: assistant}", &[]),
            ("own", "{issuer: other, subject: helper, client: assistant}", &["/theirs"]),
            // The token does not name the issuer of the actor.
            ("own", "{subject: helper, client: assistant}", &[]),
        ],
        &["/client", "/subject", "/own", "/both", "/theirs"],
    );
}

#[test]
fn a_deny_of_an_actor_applies_by_the_issuer_of_either_party() {
    match_all(
        "
  - {id: all, do: allow}
  - {id: company, on: {paths: [/deny-company]}, who: {issuers: [company], clients: [assistant]}, do: deny}
  - {id: other, on: {paths: [/deny-other]}, who: {issuers: [other], clients: [assistant]}, do: deny}
  - {id: subject, on: {paths: [/deny-subject]}, who: {issuers: [other], subjects: [helper, test]}, do: deny}
  - {id: agent, on: {paths: [/deny-agent]}, who: {issuers: [other], kind: agent}, do: deny}
  - {id: human, on: {paths: [/deny-human]}, who: {issuers: [other], kind: human}, do: deny}
",
        &[
            ("company", "{subject: helper, client: assistant}", &["/deny-company"]),
            (
                "company",
                "{issuer: other, subject: helper, client: assistant}",
                &["/deny-company", "/deny-other", "/deny-subject", "/deny-agent"],
            ),
            // The person has a subject that is named, at another issuer.
            ("company", "{issuer: other, subject: bot, client: cli}", &["/deny-agent"]),
            ("own", "{issuer: company, subject: helper, client: assistant}", &["/deny-company"]),
            (
                "own",
                "{subject: helper, client: assistant}",
                &["/deny-company", "/deny-other", "/deny-subject", "/deny-agent"],
            ),
        ],
        &["/deny-company", "/deny-other", "/deny-subject", "/deny-agent", "/deny-human"],
    );
}

/// It hit the agent that has the name of the person, of whatever issuer and whoever it acted for.
#[test]
fn a_deny_of_those_who_act_for_a_person_is_not_about_an_actor_of_that_name() {
    match_all(
        "
  - {id: all, do: allow}
  - {id: actor, on: {paths: [/deny-actor]}, who: {issuers: [company], on_behalf_of: {subjects: [robo]}}, do: deny}
  - {id: person, on: {paths: [/deny-person]}, who: {issuers: [company], on_behalf_of: {subjects: [test]}}, do: deny}
  - {id: both, on: {paths: [/deny-both]}, who: {issuers: [company], subjects: [robo], on_behalf_of: {subjects: [test]}}, do: deny}
",
        &[
            ("company", "{subject: robo}", &["/deny-person", "/deny-both"]),
            ("company", "{issuer: other, subject: robo}", &["/deny-person", "/deny-both"]),
            ("company", "{subject: bot}", &["/deny-person"]),
        ],
        &["/deny-actor", "/deny-person", "/deny-both"],
    );
}

/// It was described as a condition on people.
#[test]
fn whoever_acts_for_a_program_acts_for_somebody() {
    let rules = "
rules:
  - {id: anybody, on: {paths: [/anybody]}, who: {issuers: [company, other], on_behalf_of: {groups: [dev]}}, do: allow}
  - {id: people, on: {paths: [/people]}, who: {issuers: [company, other], kind: human, on_behalf_of: {groups: [dev]}}, do: allow}
tests:
  - {name: a person, principal: &person {issuer: company, kind: human, groups: [dev], actor: {subject: bot}}, request: {route: web, path: /people}, expect: {outcome: allow}}
  - {name: anybody, principal: *person, request: {route: web, path: /anybody}, expect: {outcome: allow}}
  - {name: a program, principal: &job {issuer: other, kind: agent, groups: [dev], actor: {subject: bot}}, request: {route: web, path: /people}, expect: {outcome: deny}}
  - {name: any program, principal: *job, request: {route: web, path: /anybody}, expect: {outcome: allow}}
";
    decide_all(ISSUERS, rules);
    let root = root(ISSUERS, rules);
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web, path: /anybody}").unwrap();
    let facts: raw::PrincipalFacts = serde_saphyr::from_str("{issuer: company, groups: [dev]}").unwrap();
    let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
    let text = compile(&root).unwrap().explain(&scenario.principal, &scenario.request()).to_string();
    assert!(text.contains("needs somebody who acts for another, has nobody acts for the principal"), "{text}");
}

/// RFC 8693 requires no more of an `act` than a `sub`.
#[test]
fn a_deny_by_clients_matches_an_actor_whose_client_is_not_known() {
    match_all(
        "
  - {id: all, do: allow}
  - {id: deny, on: {paths: [/deny]}, who: {issuers: [company], clients: [assistant]}, do: deny}
  - {id: other, on: {paths: [/deny-other]}, who: {issuers: [other], clients: [assistant]}, do: deny}
",
        &[
            ("company", "{subject: assistant}", &["/deny"]),
            ("company", "{subject: bot, client: web}", &[]),
            ("company", "{issuer: other, subject: bot}", &["/deny", "/deny-other"]),
            ("company", "{issuer: other, subject: bot, client: web}", &[]),
            // The name of a task is that of a client.
            ("company", "{subject: 'serviceaccount:ci:builder'}", &[]),
        ],
        &["/deny", "/deny-other"],
    );
    match_all(
        "  - {id: allow, on: {paths: [/allow]}, who: {issuers: [company], clients: [assistant], on_behalf_of: {}}, do: allow}\n",
        &[("company", "{subject: assistant}", &[]), ("company", "{subject: bot, client: assistant}", &["/allow"])],
        &["/allow"],
    );
}

#[test]
fn an_explanation_names_the_issuer_of_an_actor_that_a_rule_does_not_name() {
    let rules = "
rules:
  - {id: client, who: {issuers: [own], clients: [assistant], on_behalf_of: {}}, do: allow}
  - {id: subject, who: {issuers: [own], subjects: [helper], on_behalf_of: {}}, do: allow}
";
    let root = root(ISSUERS, rules);
    let policy = compile(&root).unwrap();
    let request: raw::RequestFacts = serde_saphyr::from_str("{route: web}").unwrap();
    let facts = "{issuer: own, kind: human, client: cli, actor: {issuer: other, subject: helper, client: assistant}}";
    let facts: raw::PrincipalFacts = serde_saphyr::from_str(facts).unwrap();
    let scenario = Scenario::new(Some(&facts), &request, &root).unwrap();
    let text = policy.explain(&scenario.principal, &scenario.request()).to_string();
    for said in [
        "has assistant (of the actor, of issuer other, which `issuers` does not name)",
        "has helper of issuer other, which `issuers` does not name",
        "through helper of other (client assistant)",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn an_expression_reads_the_issuer_of_an_actor() {
    match_all(
        "
  - {id: all, on: {paths: [/when]}, when: \"has(principal.actor.issuer) && principal.actor.issuer == 'other'\", do: allow}
",
        &[
            ("own", "{issuer: other, subject: helper}", &["/when"]),
            ("company", "{issuer: other, subject: helper}", &[]),
            ("company", "{subject: helper}", &[]),
            ("own", "{subject: helper}", &[]),
        ],
        &["/when"],
    );
}

#[test]
fn an_actor_that_no_token_of_doorwards_can_have_is_warned_about() {
    for (who, action, is_told) in [
        ("{issuers: [own], clients: [assistant], on_behalf_of: {}}", "allow", true),
        ("{issuers: [own], subjects: [helper], on_behalf_of: {}}", "allow", true),
        ("{issuers: [own], clients: [assistant], on_behalf_of: {}}", "deny", false),
        ("{issuers: [own, other], clients: [assistant], on_behalf_of: {}}", "allow", false),
        ("{issuers: [own], clients: ['serviceaccount:ci:builder'], on_behalf_of: {}}", "allow", false),
        ("{issuers: [own], clients: [assistant]}", "allow", false),
    ] {
        let root = root(ISSUERS, &format!("rules: [{{id: a, who: {who}, do: {action}}}]"));
        let told = warnings_of(&root).iter().any(|found| found.message.contains("matches no actor"));
        assert_eq!(told, is_told, "{who} {action}");
    }
}
