//! How `doorward explain` reads addresses, tokens and records, and what it says of them.

use clap::Parser;
use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::{
    cli::{CONFIGURATION, Cli, Command},
    config::{
        raw::{Effect, Limits},
        values::Size,
    },
    error::Reason,
};

/// Addresses that the proxy answers with 400 were explained as other requests, or as allowed.
#[test]
fn an_address_is_taken_as_it_is_written() {
    for (url, method, reason) in [
        ("https://k8s.test/api//v1/pods", "GET", Some("path_not_canonical")),
        ("https://k8s.test/api/v1/namespaces/a/pods/%41", "GET", Some("path_not_canonical")),
        ("https://k8s.test/api/v1/namespaces/a;x/pods", "GET", Some("path_not_canonical")),
        ("https://k8s.test/api/v1/x/../pods", "GET", Some("path_not_canonical")),
        ("https://k8s.test/a b", "GET", Some("path_not_canonical")),
        ("https://k8s.test\\api", "GET", Some("path_not_canonical")),
        ("https://k8s.test/api/v1/pods?watch=//", "GET", None),
        ("https://k8s.test/api/v1/pods", "delete", Some("bad_request")),
        ("https://k8s.test?x=/../", "GET", None),
        ("https://k8s.test", "GET", None),
    ] {
        let refused = Target::of(url).unwrap().check(&method.parse().unwrap(), &Limits::default()).err();
        assert_eq!(refused.as_ref().map(|refused| refused.reason().as_str()), reason, "{url}");
        let Some(refused) = refused else { continue };
        let answer = Answer::from(refused);
        let (text, json) = (answer.to_string(), serde_json::to_value(&answer).unwrap());
        assert!(text.starts_with("REFUSED before any rule: ") && text.contains("\n  to pass: "), "{text}");
        assert_eq!((json["outcome"].as_str(), json["reason"].as_str()), (Some("refused"), reason));
        assert!(!answer.is_allow());
    }
    let Target { host, path, query } = Target::of("https://a@K8s.test:1/x/%C3%A9?y=1?2#/../z").unwrap();
    assert_eq!((host.as_str(), path, query), ("k8s.test", "/x/%C3%A9", Some("y=1?2")));
}

/// It was explained as allowed.
#[test]
fn an_address_whose_target_is_longer_than_the_proxy_takes_is_refused() {
    let limits = Limits { uri_bytes: Size(300), ..Limits::default() };
    for (path, query, refused) in
        [(300, None, false), (301, None, true), (150, Some(149), false), (150, Some(150), true)]
    {
        let query: String = query.map(|length| format!("?{}", "q".repeat(length))).unwrap_or_default();
        let url = format!("https://k8s.test/{}{query}#{}", "p".repeat(path - 1), "f".repeat(300));
        let told = Target::of(&url).unwrap().check(&Method::GET, &limits);
        assert_eq!(told.err().map(|rejection| rejection.reason()), refused.then_some(Reason::UriTooLong), "{url}");
    }
}

/// The exit status was that of a question that cannot be answered.
#[test]
fn an_address_without_a_valid_host_is_a_command_line_that_is_not_understood() {
    for (url, why) in [
        ("https:/k8s.test/api/v1/secrets", "(it names no host); write it whole"),
        ("https:///k8s.test/x", "(it names no host); write it whole"),
        ("k8s.test/x", "(it names no host); write it whole"),
        ("", "(it names no host); write it whole"),
        ("https://k8s.test:99999/", "(invalid port number); write it whole"),
        ("https://a..b/", "`a..b` is not a valid host"),
    ] {
        let (told, _) = explained(&record("GET", "/"), &[url]);
        let told = told.unwrap_err();
        assert!(told.is::<Misused>() && told.to_string().contains(why), "{url}: {told}");
    }
}

/// A route for deliveries alone advised a token, which never passes there, and neither way that there is.
#[test]
fn without_a_credential_only_the_ways_that_the_route_has_are_named() {
    let (token, principal, record) = ("`--token-file`", "`--principal`", "`--audit-id`");
    for (schemes, named) in [
        (&[Scheme::Bearer][..], &[token, principal][..]),
        (&[Scheme::Session], &[principal]),
        (&[Scheme::BreakGlass], &[principal]),
        (&[Scheme::Webhook], &[record]),
        (&[Scheme::Bearer, Scheme::Webhook], &[token, principal, record]),
    ] {
        let told = without_credential(schemes);
        for way in [token, principal, record] {
            assert_eq!(told.contains(way), named.contains(&way), "{schemes:?}: {told}");
        }
        assert_eq!(told.contains("`tests`"), schemes.contains(&Scheme::Webhook), "{schemes:?}: {told}");
    }
}

/// A request was explained as allowed, without a word, that is refused.
#[test]
fn break_glass_is_explained_as_closed_outside_its_time() {
    let written = |until: &str| -> Root {
        serde_saphyr::from_str(&format!("break_glass: {{until: '{until}', certificates: []}}")).unwrap()
    };
    let noon = Timestamp::from_rfc3339("2024-01-01T12:00:00Z").unwrap();
    let alice = |scheme| Principal::new(scheme, "break-glass", "alice", "break-glass:alice");
    for (until, closed) in [("2024-01-01T12:00:00Z", true), ("2024-01-01T12:00:01Z", false)] {
        assert_eq!(is_closed(&alice(Scheme::BreakGlass), &written(until), noon), closed, "{until}");
        assert!(!is_closed(&alice(Scheme::Bearer), &written(until), noon), "{until}");
    }
    assert!(is_closed(&alice(Scheme::BreakGlass), &Root::default(), noon));
}

#[test]
fn a_file_that_holds_more_or_less_than_a_token_is_refused_by_what_it_holds() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let read = |text: &str| {
        std::fs::write(file.path(), text).unwrap();
        read_token(file.path()).map_err(|error| error.to_string())
    };
    assert_eq!(read("Bearer e30.e30.e30\n").unwrap(), "e30.e30.e30");
    for (text, why) in
        [("\n", "it is empty"), ("\"e30.e30.e30\"\n", "a quotation mark"), ("\u{feff}e30.e30.e30", "a byte order mark")]
    {
        let refused = read(text).unwrap_err();
        assert!(refused.contains(why) && !refused.contains("e30.e30"), "{refused}");
    }
}

#[test]
fn a_record_that_cannot_be_read_is_reported_and_not_treated_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let id = Uuid::from_u128(5);
    let damaged =
        format!("{{\"metadata\":{{\"correlation_uid\":\"{id}\",\"event_code\":\"request\"}},\"unmapped\":[\n");
    std::fs::write(&path, damaged).unwrap();
    let said = |id| record_of(&Files::new(vec![path.clone()]), id).unwrap_err().to_string();
    let place = format!("a line that names it cannot be read, {}:1;", path.display());
    assert!(said(id).contains(&place), "{}", said(id));
    let other = Uuid::from_u128(6);
    assert_eq!(said(other), format!("the trail has no request {other}"));
}

/// Runs `explain` with these options beside a trail of one record, whose id is [`ID`].
fn explained(record: &Value, options: &[&str]) -> (Result<bool, Failure>, String) {
    explained_by(CONFIGURATION, record, options)
}

fn explained_by(configuration: &str, record: &Value, options: &[&str]) -> (Result<bool, Failure>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doorward.yaml");
    std::fs::write(&path, format!("{configuration}audit: {{sink: {{file: {{path: audit.jsonl}}}}}}\n")).unwrap();
    std::fs::write(folder.path().join("audit.jsonl"), format!("{record}\n")).unwrap();
    let line = [&["doorward", "explain", path.to_str().unwrap()], options].concat();
    let Command::Explain { config, args } = Cli::try_parse_from(line).unwrap().command else { panic!() };
    let mut out = Vec::new();
    let allowed = run(&config.sources(), &args, &mut out);
    (allowed, String::from_utf8(out).unwrap())
}

const ID: &str = "01a2190c-3a51-77e1-9a33-000000000001";

fn record(method: &str, path: &str) -> Value {
    json!({
        "metadata": {"event_code": "request", "correlation_uid": ID},
        "time": 1_704_110_400_000_i64,
        "src_endpoint": {"ip": "192.0.2.1"},
        "http_request": {"uid": ID, "http_method": method, "url": {"hostname": "api.test", "path": path}},
        "unmapped": {},
    })
}

/// Its record was explained as a request that would not pass.
#[test]
fn a_page_of_doorwards_own_is_none_that_rules_decide_by_its_record_as_by_its_address() {
    let page = "/.doorward/whoami";
    for options in [["--audit-id", ID], ["https://api.test/.doorward/whoami", "--address=192.0.2.1"]] {
        let (told, out) = explained(&record("GET", page), &options);
        assert_eq!((told.unwrap_err().to_string().as_str(), out.as_str()), (OWN_PAGE, ""), "{options:?}");
    }
}

/// The rules were evaluated without the facts that had not been read, and denied the request.
#[test]
fn a_request_that_was_refused_before_the_rules_is_not_decided_by_them_again() {
    let mut refused = record("POST", "/api/v1/namespaces/ci/pods/p");
    for (name, value) in [
        ("status_code", json!("method_not_allowed")),
        ("status_detail", json!("a POST to the path of an object creates another")),
        ("actor", json!({"user": {"uid": "1", "name": "a#1"}, "idp": {"name": "a"}, "session": {"uid": "1"}})),
        (
            "unmapped",
            json!({
                "route": "api",
                "kind": "kubernetes",
                "principal": {"kind": "human", "scheme": "bearer", "credential": "token", "groups": ["dev"]},
            }),
        ),
    ] {
        refused[name] = value;
    }
    let (told, out) = explained(&refused, &["--audit-id", ID]);
    assert!(!told.unwrap(), "{out}");
    assert!(out.starts_with("recorded: refused before any rule was evaluated"), "{out}");
    assert!(out.contains("method_not_allowed: ") && !out.contains("DENY"), "{out}");
}

/// Such a request was explained as allowed, as if its caller had not had the claim.
#[test]
fn a_record_without_a_claim_that_a_new_rule_reads_shows_no_decision() {
    let decided = |claims: Value, deny: &str| {
        let mut decided = record("GET", "/api/v1/namespaces/ci/pods");
        decided["actor"] = json!({"user": {"uid": "1", "name": "a#1"}, "idp": {"name": "a"}, "session": {"uid": "1"}});
        decided["authorizations"] = json!([{"decision": "allow", "policy": {"uid": "look", "version": "old"}}]);
        decided["unmapped"] = json!({
            "route": "api",
            "kind": "kubernetes",
            "principal": {"kind": "agent", "scheme": "bearer", "credential": "token", "groups": ["dev"], "claims": claims},
        });
        let rules = format!("rules: [{{id: new, {deny}, do: deny}}, {{id: look, who");
        let configuration = CONFIGURATION.replace("rules: [{id: look, on: {kubernetes: {verbs: [read]}}, who", &rules);
        explained_by(&configuration, &decided, &["--audit-id", ID])
    };
    let by_claim = "who: {issuers: [a], claims: {dept: [x]}}";
    for deny in [by_claim, "when: \"has(principal.claims.dept) && principal.claims.dept == 'x'\""] {
        let (told, out) = decided(json!({}), deny);
        assert!(told.unwrap_err().to_string().contains("does not show whether the request would pass"), "{out}");
        assert!(out.contains("the record does not have the claims dept,"), "{out}");
        assert!(out.contains("under the current policy:\nDENY"), "{out}");
        // The claim was read at the time, too.
        let (told, out) = decided(json!({"dept": "y"}), deny);
        assert!(told.unwrap() && !out.contains("does not have"), "{out}");
    }
    let (told, out) = decided(json!({}), "who: {issuers: [a], groups: [ops], claims: {dept: [x]}}");
    assert!(told.unwrap(), "the rule is about others: {out}");
}

#[test]
fn a_stopped_delivery_is_reported_with_its_rule() {
    let told = |outcome, rule, about| {
        let (asked, reason, detail, policy) = (None, None, None, None);
        let told = FromTrail {
            recorded: Recorded { asked, outcome: Some(outcome), rule, reason, detail, policy },
            policy_is_kept: true,
            under_recorded: None,
            under_current: None,
            unrecorded: Vec::new(),
            truncated: &[],
            about,
            pseudonymous: false,
        };
        told.to_string().lines().next().unwrap().to_owned()
    };
    let delivery = Some(Uuid::from_u128(5));
    for (outcome, rule, about, by) in [
        (Effect::Deny, Some("never"), delivery, "deny by never on the delivery"),
        (Effect::Deny, None, delivery, "deny by no rule on the delivery"),
        (Effect::Allow, Some("hooks"), None, "allow by hooks"),
    ] {
        assert_eq!(told(outcome, rule, about), format!("recorded: {by}, policy unknown"));
    }
}

/// Regression: `explain` resolved scopes by the providers' current names, or by none if the provider had been removed
/// since.
#[test]
fn a_kept_policy_decides_by_the_names_that_providers_had_for_scopes_then() {
    let written = |scopes: Option<&str>| -> Root {
        let provider = "provider: {jwt_bearer: {token_url: 'https://a'}}, assertion: {audience: a}";
        let onward = scopes.map(|scopes| format!("{{audience: x, {provider}{scopes}}}")).unwrap_or_default();
        let issuers = "issuers: [{name: corp, issuer: 'https://corp.test', kind: human}]";
        let rules =
            "rules: [{id: any, on: {token: {audiences: [x], scopes: ['*']}}, who: {issuers: [corp]}, do: allow}]";
        let tokens = format!("tokens: {{exchange: [{{issuer: corp}}], onward: [{onward}]}}");
        serde_saphyr::from_str(&format!("external_host: door.test\n{issuers}\n{tokens}\n{rules}\n")).unwrap()
    };
    let names = [None, Some(""), Some(", scopes: {read: There}"), Some(", scopes: {read: elsewhere}")];
    for (then, today) in names.into_iter().flat_map(|then| names.map(|today| (then, today))) {
        let kept = Policy::compile(&written(then), &mut Resolver::default()).unwrap();
        let (again, _) = policy_of(kept.source(), &written(today)).unwrap();
        assert_eq!(again.digest(), kept.digest(), "{then:?} {today:?}");
    }
}
