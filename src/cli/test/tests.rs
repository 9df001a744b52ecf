use std::{fs, path::Path};

use super::*;
use crate::config::resolver::Resolver;

const CONFIG: &str = "
issuers: [{name: corp, issuer: 'https://corp.example', audiences: [door]}]
routes: [{name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}]
rules: [{id: dev, who: {groups: [dev]}, do: allow}, {id: tried, who: {groups: [ops]}, do: allow, mode: shadow}]
";

fn read_tests(yaml: &str) -> Result<Vec<PolicyTest>, impl fmt::Debug> {
    serde_saphyr::from_str::<TestFile>(yaml).map(|file| file.tests)
}

fn run_cases(tests: &str) -> Results {
    let root: Root = serde_saphyr::from_str(CONFIG).unwrap();
    let policy = Policy::compile(&root, &mut Resolver::new(Path::new("/"))).unwrap();
    run(&policy, &root, &read_tests(tests).unwrap(), None)
}

#[test]
fn cases_excluded_by_only_are_not_reported_as_missing() {
    let root: Root = serde_saphyr::from_str(CONFIG).unwrap();
    let policy = Policy::compile(&root, &mut Resolver::new(Path::new("/"))).unwrap();
    let tests = "tests: [{name: good, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow}}]";
    let results = run(&policy, &root, &read_tests(tests).unwrap(), Some("goood"));
    assert_eq!(results.exit_code(), 1);
    assert_eq!(results.to_string(), "no case has a name that contains the text of `--only`; there are 1\n");
    assert_eq!(run_cases("tests: []").to_string(), "no cases; write some under `tests`\n");
}

#[test]
fn a_case_that_differs_fails_and_shows_the_difference() {
    let results = run_cases(
        "
tests:
  - {name: good, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow, rule: dev}}
  - {name: bad, principal: {groups: [ops]}, request: {route: web}, expect: {outcome: allow, kubernetes_groups: [x]}}
  - {name: lost, principal: {}, request: {route: wbe}, expect: {outcome: deny}}
  - {name: slip, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow, rule: dve}}
  - {name: whose, principal: {issuer: crop}, request: {route: web}, expect: {outcome: deny}}
  - {name: tries, principal: {groups: [ops]}, request: {route: web}, expect: {outcome: allow, rule: tried}}
",
    );
    assert_eq!(results.exit_code(), 1);
    let text = results.to_string();
    for part in [
        "ok    good   allow by dev",
        "FAIL  bad    deny by no rule",
        "expected allow",
        "expected groups x, got none",
        "to pass: `dev` comes nearest to allowing it, and misses who.groups: needs dev, has ops",
        "there is no route `wbe`; did you mean `web`?",
        "there is no rule `dve`; did you mean `dev`?",
        "there is no issuer `crop`; did you mean `corp`?",
        "expected rule tried, which is in `mode: shadow` and decides nothing",
        "1 of 6 cases",
    ] {
        assert!(text.contains(part), "{part}\n---\n{text}");
    }
}

/// The proxy asks such a caller for a credential, while the case said `allow`.
#[test]
fn nobody_is_allowed_where_the_route_asks_for_a_credential() {
    let config = "
issuers: [{name: corp, issuer: 'https://corp.example', audiences: [door]}]
webhooks: [{name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}]
routes:
  - {name: app, kind: http, hosts: [app.example], schemes: [bearer, anonymous], upstream: web}
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer], upstream: web}
  - name: hook
    kind: webhook
    hosts: [hook.example]
    schemes: [webhook]
    webhook: gh
    event_listener: {namespace: ci, name: el}
    upstream: web
rules:
  - {id: open, who: {anonymous: true}, do: allow}
  - {id: shut, on: {paths: [/shut]}, do: deny}
tests:
  - {name: app, request: {route: app}, expect: {outcome: allow, rule: open}}
  - {name: web, request: {route: web}, expect: {outcome: deny}}
  - {name: hook, request: {route: hook}, expect: {outcome: deny}}
  - {name: shut, request: {route: web, path: /shut}, expect: {outcome: deny, rule: shut}}
  - {name: wrong, request: {route: web}, expect: {outcome: allow, rule: open}}
";
    let root: Root = serde_saphyr::from_str(config).unwrap();
    let policy = Policy::compile(&root, &mut Resolver::new(Path::new("/"))).unwrap();
    let results = run(&policy, &root, &[], None);
    let told: Vec<(&str, usize)> =
        results.cases.iter().map(|case| (case.decided.as_str(), case.differences.len())).collect();
    let decided = ["allow by open", "deny by no rule", "deny by no rule", "deny by shut", "deny by no rule"];
    assert_eq!(told, decided.into_iter().zip([0, 0, 0, 0, 3]).collect::<Vec<_>>(), "{results}");
    let last = results.cases.last().and_then(|case| case.differences.last()).unwrap();
    assert!(last.contains("the route does not accept callers without a credential"), "{last}");
}

#[test]
fn all_as_expected_passes_and_nothing_at_all_does_not() {
    let good = "tests: [{name: a, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow}}]";
    assert_eq!(run_cases(good).exit_code(), 0);
    assert_eq!(run_cases("tests: []").exit_code(), 1);
    assert!(read_tests("tests: [{nmae: a}]").is_err());
}

#[test]
fn the_result_of_each_case_is_printed_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let config = format!(
        "{CONFIG}listeners: [{{name: a, address: '127.0.0.1:1'}}]\nupstreams: [{{name: web, url: 'http://127.0.0.1:2'}}]\n"
    );
    let sources = Sources { path: file("doorward.yaml", &config), ..Sources::default() };
    let cases = "tests: [{name: a, principal: {groups: [ops]}, request: {route: web}, expect: {outcome: allow}}]";
    let args = TestArgs { files: vec![file("cases.yaml", cases)], only: None, format: Format::Json };
    let mut out = Vec::new();
    assert_eq!(decide(&sources, &args, &mut out).unwrap(), 1);
    let told: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&told["cases"][0]["name"], &told["cases"][0]["decided"]), (&"a".into(), &"deny by no rule".into()));
    assert_eq!(told["cases"][0]["differences"][0], "expected allow");
}

#[test]
fn the_text_of_a_case_stays_on_its_line() {
    let results = run_cases(
        r#"
tests:
  - {name: "esc \e[31m\nok\u202e", principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow}}
  - {name: b, principal: {groups: [dev]}, request: {route: web}, expect: {outcome: allow, rule: "x\ny"}}
"#,
    );
    let name = r"esc \u001b[31m\nok\u202e";
    let expected = format!(
        "ok    {name}  allow by dev\nFAIL  b{}  allow by dev\n      there is no rule `x\\ny`\n",
        " ".repeat(name.len() - 1)
    );
    let text = results.to_string();
    assert!(text.starts_with(&expected), "{text:?}");
    assert!(text.ends_with("\n1 of 2 cases are decided as expected\n"), "{text:?}");
}
