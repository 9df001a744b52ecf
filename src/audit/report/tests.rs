use std::fmt::Write as _;

use serde_json::json;

use super::*;

pub(super) fn report(lines: &[Value], from: i64, to: i64) -> Report {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
    std::fs::write(file.path(), text + "no record\n").unwrap();
    let files = vec![file.path().to_owned()];
    Report::read(files, Timestamp::from_millis(from), Timestamp::from_millis(to)).unwrap()
}

pub(super) fn rows<'a>(report: &'a Report, id: &str) -> &'a [Row] {
    &report.sections.iter().find(|section| section.id == id).unwrap().rows
}

pub(super) fn denied(time: i64, name: &str) -> Value {
    json!({
        "time": time,
        "status_code": "policy_denied",
        "metadata": {"event_code": "request"},
        "actor": {"user": {"name": name}, "idp": {"name": "https://a.test"}},
        "authorizations": [{"decision": "deny", "policy": {"uid": "no-secrets"}}],
        "unmapped": {"route": "api"},
    })
}

/// An entry of the policy that was not used, as far as is known.
pub(super) fn access(kind: &'static str, id: &str) -> Access {
    Access { kind, id: id.to_owned(), who: json!({}), gives: json!({}), why: None, used: Some(false) }
}

#[test]
fn records_count_from_the_first_moment_to_before_the_last() {
    let lines = [denied(9, "a"), denied(10, "a"), denied(19, "a"), denied(15, "b"), denied(20, "a")];
    let report = report(&lines, 10, 20);
    assert_eq!((report.records, report.unreadable), (3, 1));
    let row = |what: &str, records, first, last| Row { what: what.to_owned(), records, first, last };
    assert_eq!(
        rows(&report, "denials"),
        [row("policy_denied: a at api", 2, 10, 19), row("policy_denied: b at api", 1, 15, 15)]
    );
    assert_eq!(rows(&report, "rules"), [row("no-secrets", 3, 10, 19)]);
    assert!(rows(&report, "login_failures").is_empty());
}

/// Regression: the report counted a stream in the period in which it began, not in the one in which a revocation ended
/// it.
#[test]
fn a_stream_that_was_ended_counts_where_it_ended() {
    let line = json!({
        "time": 5, "duration": 10, "metadata": {"event_code": "request.completed"}, "actor": {"user": {"name": "alice"}},
        "unmapped": {"ended": "revoked"},
    });
    let report_of = |from, to| report(std::slice::from_ref(&line), from, to);
    let after = report_of(10, 20);
    let expected = Row { what: "revoked: alice".to_owned(), records: 1, first: 15, last: 15 };
    assert_eq!((rows(&after, "ended_streams"), after.records), (&[expected][..], 0));
    assert!(rows(&report_of(0, 10), "ended_streams").is_empty());
}

#[test]
fn names_of_strangers_neither_move_the_cursor_nor_are_markup() {
    let report = report(&[denied(1, "\u{1b}[2J<script>")], 0, 2);
    assert!(!report.to_string().contains('\u{1b}'));
    assert!(!report.to_html().contains("<script>"));
    assert!(report.to_html().contains("&lt;script&gt;"), "the twin: it is there");
}

#[test]
fn each_policy_that_was_loaded_is_reported_with_its_time_and_reason() {
    let note = |code: &str, unmapped: Value| json!({"time": 1, "metadata": {"event_code": code}, "unmapped": unmapped});
    let later = |time: i64| json!({"time": time, "metadata": {"event_code": "policy.loaded"}, "unmapped": {"policy": "1a", "cause": "files"}});
    let report = report(
        &[
            note("policy.loaded", json!({"policy": "1a", "cause": "files"})),
            note("policy.refused", json!({"cause": "operator"})),
            // A damaged one.
            note("policy.loaded", json!({"policy": "1a"})),
            // The same again, after another.
            later(60_000),
            later(3_600_999),
        ],
        0,
        3_601_000,
    );
    let told: Vec<&str> = rows(&report, "policies").iter().map(|row| row.what.as_str()).collect();
    let expected = [
        "policy.loaded 1a at 1970-01-01T00:00:00Z, cause files",
        "policy.loaded 1a at 1970-01-01T00:00:00Z, cause not recorded",
        "policy.loaded 1a at 1970-01-01T00:01:00Z, cause files",
        "policy.loaded 1a at 1970-01-01T01:00:00Z, cause files",
        "policy.refused unreadable at 1970-01-01T00:00:00Z, cause operator",
    ];
    assert_eq!(told, expected);
}

#[test]
fn commands_are_shown_as_the_trail_records_them() {
    let command = r#"end-sessions {"issuer":"company","subject":"8f14e45f"}"#;
    let line = json!({
        "time": 1, "metadata": {"event_code": "operator"}, "actor": {"user": {"name": "olga"}}, "unmapped": {"command": command},
    });
    let text = report(&[line], 0, 2).to_string();
    assert!(text.contains(&format!("olga: {command}")), "{text}");
}

/// A revocation that the store had refused looked to a reviewer like one that was done.
#[test]
fn failed_commands_are_distinguished_from_completed_ones() {
    let line = |status: u32, user: Value, command: &str| {
        json!({
            "time": 1, "status_id": status, "metadata": {"event_code": "operator"}, "actor": {"user": user},
            "unmapped": {"command": command},
        })
    };
    let olga = json!({"uid": "1000", "name": "olga"});
    let lines = [
        line(2, olga.clone(), "revoke {}"),
        line(1, olga, "revoke {}"),
        line(2, json!({"uid": "1001"}), "connect"),
        line(2, json!({}), "connect"),
    ];
    let report = report(&lines, 0, 2);
    let told: Vec<&str> = rows(&report, "operators").iter().map(|row| row.what.as_str()).collect();
    assert_eq!(
        told,
        ["olga: revoke {}", "olga: revoke {}, failed", "uid 1001: connect, failed", "unknown: connect, failed"]
    );
}

#[test]
fn texts_beyond_the_bound_are_counted_and_not_kept() {
    let mut group = Group::default();
    group.add("x".repeat(MAX_BYTES), 1);
    group.add("y".to_owned(), 2);
    assert_eq!((group.rows.len(), group.left_out), (1, 1));
}

#[test]
fn queries_can_stand_in_single_quotes() {
    for section in &SECTIONS {
        assert!(!query(section, 0, 1).contains('\''), "{}", section.id);
    }
}

#[test]
fn a_rule_that_no_record_names_is_unused_and_no_secret_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chain"), "the-secret-text").unwrap();
    let certificate = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    std::fs::write(dir.path().join("cert.pem"), certificate.cert.pem()).unwrap();
    let mut secrets = Vec::new();
    let configuration =
        json!({"audit": {"chain_key": {"file": "chain"}}, "tls": [{"chain": "cert.pem"}], "x": {"env": "X"}});
    configuration::find(&configuration, "", dir.path(), &configuration::FILES, &mut secrets);
    let places: Vec<&str> = secrets.iter().map(|secret| secret.place.as_str()).collect();
    assert_eq!(places, ["audit.chain_key.file", "tls[0].chain", "x.env"]);
    assert!(secrets[0].written.is_some() && secrets[0].not_after.is_none());
    assert!(secrets[1].not_before < secrets[1].not_after && secrets[1].not_before.is_some());
    assert!(secrets[2].written.is_none());
    let held =
        Configured::new("doorward.yaml".into(), vec![access("rule", "no-secrets"), access("rule", "idle")], secrets);
    let report = report(&[denied(1, "a")], 0, 2).with(held);
    let used: Vec<Option<bool>> =
        report.configuration.as_ref().unwrap().access.iter().map(|access| access.used).collect();
    assert_eq!(used, [Some(true), Some(false)]);
    let text = report.to_string();
    assert!(text.contains("rule idle, UNUSED in the period") && !text.contains("the-secret-text"), "{text}");
}

/// Regression: rules that stop deliveries or let them start Triggers were reported as unused, because no record has to
/// name them.
#[test]
fn rules_that_need_no_record_are_not_reported_as_unused() {
    let yaml = "
routes:
  - {name: hooks, kind: webhook, hosts: [a], schemes: [webhook], webhook: gh, upstream: el}
  - {name: api, kind: kubernetes, hosts: [api], schemes: [bearer], upstream: cluster}
rules:
  - {id: build, on: {trigger: {names: [build]}}, who: {webhooks: [gh]}, do: allow}
  - {id: push, on: {event: [push]}, who: {webhooks: [gh]}, do: allow}
  - {id: any, on: {routes: [hooks]}, do: allow}
  - {id: prod, on: {trigger: {names: [prod]}}, do: deny}
  - {id: closed, on: {action: [closed]}, do: deny}
  - {id: people, who: {groups: [dev]}, do: allow}
  - {id: tried, do: deny, mode: shadow}
";
    let folder = tempfile::tempdir().unwrap();
    let report_of = |yaml: &str| {
        let root: crate::config::raw::Root = serde_saphyr::from_str(yaml).unwrap();
        let held = Configured::of(&root, "doorward.yaml".into(), folder.path()).unwrap();
        let mut line = denied(1, "a");
        line["authorizations"][0]["policy"]["uid"] = "build".into();
        report(&[line], 0, 2).with(held)
    };
    let used = |report: &Report| -> Vec<(String, Option<bool>)> {
        let access = &report.configuration.as_ref().unwrap().access;
        access.iter().map(|access| (access.id.clone(), access.used)).collect()
    };
    let told_beside = |people: &str, rule: &str| {
        let yaml = yaml.replace("who: {groups: [dev]}", people).replace("on: {routes: [hooks]}", rule);
        used(&report_of(&yaml)).into_iter().find(|(id, _)| id == "any").unwrap().1
    };
    let told = |rule: &str| told_beside("who: {groups: [dev]}", rule);
    for rule in
        ["on: {hosts: [a]}", "on: {paths: ['/x']}", "on: {namespace: ci}", "who: {users: ['webhook:x']}", "fix: a"]
    {
        assert_eq!(told(rule), None, "{rule}");
    }
    for rule in ["on: {routes: [web]}", "on: {hosts: [b]}", "on: {kubernetes: {verbs: [get]}}", "who: {kind: human}"] {
        assert_eq!(told(rule), Some(false), "{rule}");
    }
    // An apply is a patch that may be a create, and its record names the allow of the patch.
    let create = "on: {kubernetes: {verbs: [create]}}";
    assert_eq!(told(create), None);
    for (people, expected) in [
        ("on: {kubernetes: {verbs: [patch]}}", None),
        ("on: {kubernetes: {verbs: [get]}}", Some(false)),
        ("on: {routes: [hooks]}, who: {webhooks: [gh]}", Some(false)),
        ("on: {pages: true}", Some(false)),
    ] {
        assert_eq!(told_beside(people, create), expected, "beside {people}");
    }
    let expected = [
        ("build", Some(true)),
        ("push", None),
        ("any", None),
        ("prod", None),
        ("closed", Some(false)),
        ("people", Some(false)),
        ("tried", None),
    ];
    let told = report_of(yaml);
    assert_eq!(used(&told), expected.map(|(id, used)| (id.to_owned(), used)));
    assert!(told.to_string().contains("rule prod, not known whether it was used"), "{told}");
    assert!(told.to_html().contains("not known"));
    let query = &told.configuration.as_ref().unwrap().unused_query;
    assert!(query.contains("\"closed\"") && !query.contains("\"prod\"") && !query.contains("\"push\""), "{query}");
    // If no allow is about Triggers, the record of a delivery names the allow that let it in.
    let (without, _) = yaml.split_once("  - {id: prod").unwrap();
    let without = without.replace("on: {trigger: {names: [build]}}", "on: {event: [push]}");
    assert_eq!(used(&report_of(&without))[1], ("push".to_owned(), Some(false)));
}

/// Settings of a store in a folder of the test: in that of the default another Doorward may have put its keys.
fn store_in(folder: &Path) -> Value {
    json!({"path": folder.join("doorward.redb")})
}

/// The authority of client certificates decides who gets in by `break_glass`, and expires like all others.
#[test]
fn the_authorities_of_client_certificates_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let authority = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    std::fs::write(dir.path().join("clients.pem"), authority.cert.pem()).unwrap();
    let listener =
        json!({"name": "a", "address": "127.0.0.1:1", "tls": {"certificates": [], "client_ca": "clients.pem"}});
    let root = serde_json::from_value(json!({"listeners": [listener], "store": store_in(dir.path())})).unwrap();
    let held = Configured::of(&root, "doorward.yaml".into(), dir.path()).unwrap();
    let told: Vec<(&str, bool)> =
        held.secrets.iter().map(|secret| (secret.place.as_str(), secret.not_after.is_some())).collect();
    assert_eq!(told, [("listeners[0].tls.client_ca", true)]);
}

/// Claims and bodies of test cases have members of any name, and their texts were listed as secrets.
#[test]
fn members_named_like_a_setting_are_not_listed_as_secrets() {
    let yaml = "
issuers: [{name: corp, issuer: 'https://corp.example', required_claims: {x: [{file: a}]}}]
tokens:
  keys: [{file: key.pem}]
  exchange: [{issuer: corp}]
  onward:
    - {audience: x, provider: {jwt_bearer: {token_url: 'https://a.test'}}, scopes: {file: a, env: b}}
rules: [{id: a, on: {run: {params: {env: [prod]}}}, who: {claims: {env: [prod]}}, do: allow}]
tests:
  - name: a
    principal: {claims: {env: prod, key: k}}
    request: {route: api, body: {spec: {workspaces: [{name: w, secret: {items: [{key: token, path: t}]}}]}}}
    expect: {outcome: allow}
";
    let mut root: crate::config::raw::Root = serde_saphyr::from_str(yaml).unwrap();
    let folder = tempfile::tempdir().unwrap();
    root.store = serde_json::from_value(store_in(folder.path())).unwrap();
    let held = Configured::of(&root, "doorward.yaml".into(), folder.path()).unwrap();
    let places: Vec<&str> = held.secrets.iter().map(|secret| secret.place.as_str()).collect();
    assert_eq!(places, ["tokens.keys[0].file"]);
}

#[test]
fn each_file_setting_is_reported_unless_it_holds_no_secret_and_no_certificate() {
    const OTHERS: [&str; 7] = ["checkpoint_copy", "keep_in", "logo", "path", "policies", "session_policy", "socket"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/raw");
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let members = text.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "));
        found.extend(members.filter(|(_, kind)| kind.contains("PathBuf")).map(|(name, _)| name.to_owned()));
    }
    let of_paths: Vec<&str> =
        found.iter().map(String::as_str).filter(|name| !configuration::FILES.contains(name)).collect();
    assert_eq!(of_paths, OTHERS);
}

#[test]
fn the_contents_of_a_kubeconfig_are_reported_without_their_values() {
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let encoded = |text: String| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text);
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": "https://a.test", "certificate-authority": "ca.pem"}}],
        "users": [{"name": "u", "user": {
            "tokenFile": "token",
            "client-certificate-data": encoded(own.cert.pem()),
            "client-key-data": encoded(own.signing_key.serialize_pem()),
        }}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    for (name, text) in
        [("kubeconfig", kubeconfig.to_string()), ("ca.pem", own.cert.pem()), ("token", "the-secret-text".to_owned())]
    {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let upstream = json!({"name": "a", "kubeconfig": {"file": "kubeconfig"}});
    let root = json!({"upstreams": [upstream], "store": store_in(dir.path())});
    let held = Configured::of(&serde_json::from_value(root).unwrap(), "doorward.yaml".into(), dir.path()).unwrap();
    let told: Vec<(&str, bool, bool)> = held
        .secrets
        .iter()
        .map(|secret| (secret.source.rsplit('/').next().unwrap(), secret.written.is_some(), secret.not_after.is_some()))
        .collect();
    assert_eq!(
        told,
        [
            ("kubeconfig", true, false),
            ("kubeconfig", false, true),
            ("kubeconfig", false, false),
            ("ca.pem", true, true),
            ("token", true, false)
        ]
    );
    assert!(held.secrets[1].source.starts_with("`client-certificate-data` of the user `u` in "));
    let text = report(&[denied(1, "a")], 0, 2).with(held).to_string();
    assert!(!text.contains("the-secret-text") && !text.contains("PRIVATE"), "{text}");
    let commands: Vec<&str> = text.lines().filter(|line| line.contains("openssl x509")).collect();
    assert!(commands.len() == 1 && commands[0].contains("ca.pem"), "{commands:?}");
}

/// A grant that gave nothing in Kubernetes looked as if it were of use there.
#[test]
fn a_grant_that_gave_groups_to_other_servers_than_kubernetes_is_reported_as_such_and_is_used() {
    let line = |unmapped: Value| json!({"time": 1, "unmapped": unmapped});
    let lines = [
        line(json!({"grants": ["viewers", "admins"], "identity": {"groups": ["view", "admin"]}})),
        line(json!({"grants": ["viewers", "web"]})),
    ];
    let access = ["viewers", "web", "idle"].map(|id| access("grant", id)).into();
    let report = report(&lines, 0, 2).with(Configured::new("doorward.yaml".into(), access, Vec::new()));
    let told: Vec<&str> = rows(&report, "grants").iter().map(|row| &*row.what).collect();
    assert_eq!(told, ["admins", "viewers", "viewers, not in Kubernetes", "web, not in Kubernetes"]);
    let access = &report.configuration.as_ref().unwrap().access;
    assert_eq!(access.iter().map(|access| access.used).collect::<Vec<_>>(), [Some(true), Some(true), Some(false)]);
}

#[test]
fn each_reason_of_a_refusal_is_counted_in_one_section_only() {
    let lines: Vec<Value> = crate::error::Reason::ALL
        .iter()
        .map(|reason| json!({"time": 1, "status_code": reason.as_str(), "unmapped": {"route": "api"}}))
        .collect();
    let report = report(&lines, 0, 2);
    let (denials, failures) = (rows(&report, "denials"), rows(&report, "login_failures"));
    assert!(denials.iter().any(|row| row.what == "policy_denied: nobody at api"), "{denials:?}");
    assert!(failures.iter().any(|row| row.what == "token_expired: nobody at api"), "{failures:?}");
    assert!(!denials.iter().any(|row| failures.contains(row)) && denials.len() + failures.len() < lines.len());
    for (id, rows) in [("denials", denials), ("login_failures", failures)] {
        let query = &report.sections.iter().find(|section| section.id == id).unwrap().query;
        for line in &lines {
            let reason = line["status_code"].as_str().unwrap();
            let counted = rows.iter().any(|row| row.what.starts_with(&format!("{reason}: ")));
            assert_eq!(query.contains(&format!("\"{reason}\"")), counted, "{id}: {reason}");
        }
    }
}

/// A group such as `system:masters` in a good token makes no principal.
#[test]
fn a_caller_refused_before_authentication_is_named_in_the_denials() {
    let line = json!({"time": 1, "status_code": "identity_refused", "unmapped": {"route": "api", "presented": {"issuer": "b", "subject": "bea"}}});
    let report = report(&[line], 0, 2);
    assert_eq!(rows(&report, "denials")[0].what, "identity_refused: bea at api");
}

/// A forged ID token was among the failures of pages, as most failed logins have no refusal of a credential.
#[test]
fn a_failed_login_is_reported_with_its_outcome_among_the_login_failures() {
    let failed = |unmapped: Value| json!({"time": 1, "http_response": {"code": 403}, "unmapped": unmapped});
    let mut refused = failed(json!({"endpoint": "login", "login": {"outcome": "id_token_refused", "issuer": "corp"}}));
    refused["status_code"] = json!("signature_invalid");
    // This outcome has the name of a denial, and counted as one besides.
    let mut not_a_person =
        failed(json!({"endpoint": "login", "login": {"outcome": "identity_refused", "issuer": "corp"}}));
    not_a_person["status_code"] = json!("identity_refused");
    let lines = [
        refused,
        failed(json!({"endpoint": "login", "login": {"outcome": "provider_error"}})),
        failed(json!({"endpoint": "own"})),
        not_a_person,
    ];
    let report = report(&lines, 0, 2);
    let told = |id: &str| rows(&report, id).iter().map(|row| row.what.clone()).collect::<Vec<_>>();
    assert_eq!(
        told("login_failures"),
        [
            "id_token_refused: nobody at a login of corp",
            "identity_refused: nobody at a login of corp",
            "provider_error: nobody at a login of no issuer",
        ]
    );
    assert!(told("denials").is_empty());
    assert_eq!(told("endpoint_failures"), ["403 at own"]);
}

#[test]
fn a_key_made_before_the_period_is_reported_with_its_age() {
    let made = |time: i64, id: &str| json!({"time": time, "metadata": {"event_code": "key.made"}, "unmapped": {"key": {"of": "tokens", "id": id}}});
    const DAY: i64 = 86_400_000;
    let report = report(&[made(0, "k1"), made(9 * DAY, "k2"), made(10 * DAY, "k3")], 5 * DAY, 10 * DAY);
    assert_eq!((rows(&report, "keys").len(), report.records), (2, 1));
    for text in [report.to_string(), report.to_html()] {
        assert!(text.contains("10 days old") && text.contains("1 day old"), "{text}");
    }
}

#[test]
fn a_condition_that_is_false_is_reported() {
    let yaml = "rules: [{id: a, on: {fork: false}, who: {users: [x], anonymous: false}, do: allow}]";
    let root: crate::config::raw::Root = serde_saphyr::from_str(yaml).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let held = Configured::of(&root, "doorward.yaml".into(), folder.path()).unwrap();
    assert_eq!(held.access[0].gives["on"], serde_json::json!({"fork": false}));
    assert_eq!(held.access[0].who, serde_json::json!({"users": ["x"]}));
}

#[test]
fn an_empty_condition_is_reported_as_a_condition() {
    let yaml = "rules: [{id: a, on: {token: {}, kubernetes: {}, run: {}, trigger: {}}, who: {issuers: [x], on_behalf_of: {}}, do: allow}]";
    let root: crate::config::raw::Root = serde_saphyr::from_str(yaml).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let held = Configured::of(&root, "doorward.yaml".into(), folder.path()).unwrap();
    assert_eq!(held.access[0].who, json!({"issuers": ["x"], "on_behalf_of": {}}));
    // `labels: {}` of a run asks for nothing.
    let on = json!({"token": {}, "kubernetes": {}, "run": {}, "trigger": {}});
    assert_eq!(held.access[0].gives["on"], on);
}

#[test]
fn a_token_revoked_by_its_holder_counts_once_and_an_unused_one_is_marked() {
    let at = |code: &str, unmapped: &Value| json!({"time": 1, "metadata": {"event_code": code}, "unmapped": unmapped});
    let (revoked, issued) =
        (json!({"revoked": "j"}), json!({"issued": {"audience": "r.test", "scopes": [], "rules": []}}));
    let ended = json!({"tokens_ended": {"why": "it has ended"}});
    let report = report(
        &[
            at("request.decided", &revoked),
            at("request.completed", &revoked),
            at("request.completed", &issued),
            at("tokens.ended", &ended),
        ],
        0,
        2,
    );
    let told = |id: &str| rows(&report, id).iter().map(|row| (&*row.what, row.records)).collect::<Vec<_>>();
    assert_eq!(told("tokens_ended"), [("it has ended", 1), (sections::DONE, 1)]);
    assert_eq!(told("issued"), [("r.test (no scope) by no rule for a caller without task: nobody", 1)]);
}

/// A person who has left does not count as seen because a run of theirs continues.
#[test]
fn the_activity_of_a_task_does_not_count_as_activity_of_its_person() {
    let by_task = |time| {
        let mut line = denied(time, "bob");
        line["unmapped"]["principal"] = json!({"kind": "agent", "actor": {"subject": "serviceaccount:ci:builder"}});
        line
    };
    let report = report(&[denied(1, "bob"), by_task(2), by_task(3)], 0, 4);
    let told: Vec<(&str, i64)> = rows(&report, "principals").iter().map(|row| (&*row.what, row.last)).collect();
    assert_eq!(told, [("bob of https://a.test", 1), ("bob of https://a.test, through serviceaccount:ci:builder", 3)]);
}

/// The figures of a trail that is compressed, or whose line ends were converted, were those of a time without requests.
#[test]
fn a_file_without_any_record_is_refused() {
    let read = |content: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let files = vec![file.path().to_owned()];
        Report::read(files, Timestamp::from_millis(0), Timestamp::from_millis(2)).map_err(|error| error.to_string())
    };
    for content in ["{\"time\":1}\r\n", "no record\n", "\u{1f}compressed"] {
        let told = read(content).unwrap_err();
        assert!(told.contains("this is not an audit trail"), "{content:?}: {told}");
    }
    // As of a volume that is not mounted.
    for content in ["", "{\"cla"] {
        let told = read(content).unwrap_err();
        assert!(told.contains("there is no record in the files of the trail"), "{content:?}: {told}");
    }
    assert_eq!(read("no record\n{\"time\":9}\n").unwrap().unreadable, 1);
}

/// Reviewers paste these commands into a shell.
#[test]
fn a_file_with_a_quote_in_its_name_is_one_word_of_a_shell() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["plain", "it's; echo oops; '"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "{\"time\":1}\n").unwrap();
        let report = Report::read(vec![path], Timestamp::from_millis(0), Timestamp::from_millis(2)).unwrap();
        let command = format!("{}; trail", report.trail);
        let ran = std::process::Command::new("sh").args(["-c", command.as_str()]).output().unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), "{\"time\":1}\n", "{command}");
    }
}
