//! Warnings about rules that reach nobody.

use super::*;

const ISSUERS: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', clients: [{id: cli, kind: human}, {id: assistant, kind: agent}]}
  - {name: people, issuer: 'https://people.example', preset: okta, login: {client: {id: door, secret: {env: SECRET}}}}
  - {name: actions, issuer: 'https://actions.example', preset: github_actions}
webhooks:
  - {name: idle, sender: github, secrets: [{secret: {env: SECRET}}]}
routes:
  - {name: mcp, kind: http, hosts: [mcp.example], schemes: [bearer], issuers: [corp], upstream: web}
  - {name: ci, kind: http, hosts: [ci.example], schemes: [bearer], issuers: [actions], upstream: web}
  - {name: board, kind: dashboard, hosts: [board.example], schemes: [session], upstream: web}
";

/// Asserts that these are the places of all warnings about a rule.
fn assert_warned(rule: &str, places: &[&str]) {
    let root = root(ISSUERS, &format!("rules: [{{id: a, {rule}}}]"));
    let problems = warnings_of(&root);
    assert!(problems.iter().all(|problem| problem.help.is_some()), "{rule}: {problems:?}");
    let told: Vec<&str> = problems.iter().filter_map(|problem| problem.at.as_str().strip_prefix("/rules/0/")).collect();
    assert_eq!(told, places, "{rule}: {problems:?}");
}

/// Such a deny denied nothing, and `check` was silent.
#[test]
fn callers_that_no_route_of_the_rule_accepts_are_warned_about() {
    assert_warned("on: {routes: [mcp]}, who: {issuers: [actions]}, do: allow", &["who/issuers"]);
    assert_warned("on: {routes: [mcp, board]}, who: {issuers: [actions]}, do: deny", &["who/issuers"]);
    assert_warned("on: {routes: [board]}, who: {anonymous: true}, do: allow", &["who/anonymous"]);
    assert_warned("who: {issuers: [actions]}, do: deny", &[]);
    assert_warned("on: {routes: [mcp]}, who: {issuers: [actions, corp]}, do: deny", &[]);
    assert_warned("on: {routes: [board]}, who: {issuers: [people]}, do: allow", &[]);
    // Its route may be yet to come.
    assert_warned("who: {webhooks: [idle]}, do: allow", &[]);
}

/// Only a rule that named the dashboard was warned of, and a wider one was not.
#[test]
fn an_allow_without_saying_whom_or_what_is_warned_about() {
    let ground =
        ISSUERS.replace("schemes: [session], upstream: web", "schemes: [session], upstream: web, kubernetes: api");
    for (rule, expected) in [
        ("do: allow", 2),
        ("on: {paths: [/x]}, do: allow", 1),
        ("on: {methods: [GET]}, who: {issuers: [people]}, do: allow", 1),
        ("who: {issuers: [people]}, do: allow", 1),
        ("who: {issuers: [actions]}, do: allow", 0),
        ("who: {issuers: [people]}, on: {kubernetes: {verbs: [read]}}, do: allow", 0),
        ("who: {issuers: [people]}, on: {methods: [GET, POST]}, do: allow", 0),
        ("on: {routes: [mcp]}, do: allow", 0),
        ("on: {pages: true}, do: allow", 0),
        ("when: \"principal.username == 'x'\", do: allow", 0),
        ("do: deny", 0),
    ] {
        let told = warnings_of(&root(&ground, &format!("rules: [{{id: a, {rule}}}]")));
        let broad = |message: &str| message.contains("any of these issuers") || message.contains("this also allows");
        assert_eq!(told.iter().filter(|problem| broad(&problem.message)).count(), expected, "{rule}: {told:?}");
    }
}

#[test]
fn requests_that_no_route_has_are_warned_about() {
    assert_warned("on: {event: [push]}, do: deny", &["on"]);
    assert_warned("on: {kubernetes: {resources: [pods]}}, do: deny", &["on"]);
    assert_warned("on: {routes: [mcp], namespace: prod}, do: deny", &["on"]);
    assert_warned("on: {pages: true}, do: allow", &[]);
    assert_warned("on: {paths: [/x]}, do: deny", &[]);
}

#[test]
fn a_kind_that_no_caller_of_the_issuers_has_is_warned_about() {
    assert_warned("who: {issuers: [actions], kind: human}, do: allow", &["who/kind"]);
    assert_warned("who: {issuers: [actions], kind: human}, do: deny", &["who/kind"]);
    assert_warned("who: {issuers: [people], kind: workload}, do: allow", &["who/kind"]);
    assert_warned("who: {issuers: [corp], clients: [assistant], kind: human}, do: allow", &["who/kind"]);
    for possible in [
        "who: {issuers: [actions], kind: workload}, do: allow",
        "who: {issuers: [actions], kind: agent}, do: allow",
        "who: {issuers: [actions, people], kind: human}, do: allow",
        "who: {issuers: [people], kind: human}, do: allow",
        "who: {issuers: [corp], kind: human}, do: allow",
        "who: {issuers: [corp], clients: [cli, assistant], kind: human}, do: allow",
        "who: {kind: human}, do: deny",
        // The assistant may act for a person who uses `cli`.
        "who: {issuers: [corp], clients: [assistant], kind: human, on_behalf_of: {}}, do: allow",
        "who: {issuers: [corp], clients: [assistant], kind: human}, do: deny",
    ] {
        assert_warned(possible, &[]);
    }
}

/// Whoever took the first match for what decides believed in a second factor that nobody was asked for.
#[test]
fn a_need_beside_an_allow_of_the_same_without_one_is_warned_about() {
    let fresh = "on: {routes: [web], paths: ['/danger/*']}, who: {issuers: [corp], groups: [dev]}, \
                 need: {fresh_login: {max_age: 5m}}, do: allow";
    for (other, is_idle) in [
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, do: allow", true),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev, ops]}, do: allow", true),
        ("who: {issuers: [corp], groups: [dev]}, do: allow", true),
        ("on: {routes: [web], paths: ['/danger/*', /x]}, who: {issuers: [corp], groups: [dev]}, do: allow", true),
        ("on: {routes: [web], paths: [/x]}, who: {issuers: [corp], groups: [dev]}, do: allow", false),
        ("on: {routes: [web], methods: [GET]}, who: {issuers: [corp], groups: [dev]}, do: allow", false),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [ops]}, do: allow", false),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev], kind: human}, do: allow", false),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, when: 'request.path != \"/\"', do: allow", false),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, need: {acr: [a]}, do: allow", false),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, mode: shadow, do: allow", false),
        ("on: {routes: [web]}, who: {issuers: [corp], groups: [dev]}, do: deny", false),
    ] {
        let root = root(GROUND, &format!("rules: [{{id: all, {other}}}, {{id: fresh, {fresh}}}]"));
        let problems = warnings_of(&root);
        let told = problems.iter().any(|problem| problem.at.as_str() == "/rules/1/need");
        assert_eq!(told, is_idle, "{other}: {problems:?}");
    }
}

/// A job was told for ever to sign in again.
#[test]
fn a_need_of_callers_who_never_log_in_is_warned_about() {
    assert_warned("who: {issuers: [actions]}, need: {mfa: {max_age: 15m}}, do: allow", &["need"]);
    assert_warned("who: {issuers: [people]}, need: {mfa: {max_age: 15m}}, do: allow", &[]);
    assert_warned("who: {issuers: [people, actions]}, need: {mfa: {max_age: 15m}}, do: allow", &[]);
}

/// A deny of a misspelt client let the right one through.
#[test]
fn a_misspelt_client_is_warned_about_where_only_listed_ones_are_accepted() {
    const LISTED: &str = "clients: [{id: assistant}], listed_clients_only: true";
    for (issuer, client, expected) in [
        (LISTED, "asistant", Some("did you mean `assistant`?")),
        (LISTED, "assistant", None),
        // The actor of a token may be any client.
        (LISTED, "planner", None),
        ("clients: [{id: assistant}]", "asistant", None),
        (
            "clients: [{id: assistant}], listed_clients_only: true, audiences: [x], login: {client: {id: asistant}}",
            "asistant",
            None,
        ),
    ] {
        let ground = ONE_ISSUER.replacen("kind: human", issuer, 1);
        let who = format!("who: {{issuers: [corp], clients: [{client}]}}");
        for (list, policy) in [
            ("rules", format!("rules: [{{id: a, {who}, do: deny}}]")),
            ("grants", format!("grants: [{{id: a, {who}, kubernetes_groups: [g]}}]")),
        ] {
            let root = root(&ground, &policy);
            let warnings = warnings_of(&root);
            let told = warnings.iter().map(|problem| (problem.at.as_str(), problem.help.as_deref()));
            let at = format!("/{list}/0/who/clients/0");
            let expected = expected.map(|help| (at.as_str(), Some(help)));
            assert_eq!(told.collect::<Vec<_>>(), Vec::from_iter(expected), "{issuer} {client}");
        }
    }
}
