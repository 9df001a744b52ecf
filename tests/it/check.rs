//! `doorward check`: what it refuses, and what it can check with `--without-files` on a machine without secrets and
//! certificates.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::fixture::Change;

fn check(configuration: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    let output = command.arg("check").arg(configuration).args(more).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_example_is_valid_without_its_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let examples: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    assert!(examples.len() > 10);
    for example in examples {
        let (code, said) = check(&example, &["--without-files"]);
        assert!(code == Some(0) && !said.contains("error:"), "{}: {said}", example.display());
    }
}

/// Each names a file or a variable that does not exist.
const CONFIGURATION: &str = "
external_host: doorward.test
listeners:
  - {name: public, address: 127.0.0.1:0, tls: {certificates: [{chain: lost.pem, key: lost.key}], client_ca: lost.pem}}
issuers:
  - name: a
    issuer: https://a.test
    ca: lost.pem
    audiences: [doorward]
    kind: human
    keys: {bearer: {env: DOORWARD_TEST_LOST}}
    introspection: {mode: opaque, client: {id: doorward, secret: {file: lost}}}
    login: {client: {id: doorward, secret: {file: lost}}}
upstreams:
  - {name: cluster, url: 'https://cluster.test', tls: {ca: lost.pem}, credential: {bearer: {file: lost}}}
  - {name: hooks, url: 'http://hooks.test'}
webhooks: [{name: github, sender: github, secrets: [{secret: {file: lost}}]}]
routes:
  - {name: api, kind: kubernetes, hosts: [api.test], schemes: [session, bearer], issuers: [a], upstream: cluster}
  - {name: hooks, kind: webhook, hosts: [hooks.test], schemes: [webhook], webhook: github, upstream: hooks}
grants: [{id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: [dev]}]
rules: [{id: dev, on: {routes: [api]}, who: {issuers: [a], groups: [dev]}, do: allow}]
assertions: {keys: [{file: lost}]}
sessions: {keys: [{env: DOORWARD_TEST_LOST}]}
store: {redis: {server: 'redis.test:6379', password: {file: lost}, tls: {ca: lost.pem}}}
audit: {chain_key: {file: lost}, sink: {file: {path: lost/audit.jsonl}}}
admin: {token: {file: lost}, address: 127.0.0.1:0, socket: lost/operator.sock}
";

#[test]
fn problems_that_involve_no_file_are_found_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    let with = |there: &str, here: &str, more: &[&str]| {
        std::fs::write(&file, CONFIGURATION.change(there, here)).unwrap();
        check(&file, more)
    };
    let (code, said) = with("dev", "dev", &[]);
    assert!(code == Some(64) && said.contains("lost") && said.contains("DOORWARD_TEST_LOST"), "{said}");
    let (code, said) = with("dev", "dev", &["--without-files"]);
    assert!(code == Some(0) && !said.contains("lost"), "{said}");
    for (there, here, told) in [
        ("upstream: cluster", "upstream: other", "other"),
        ("issuers: [a], upstream", "issuers: [b], upstream", "issuer"),
        ("issuer: https://a.test", "issuer: http://a.test", "http://a.test"),
        ("audiences: [doorward]", "audiences: [doorward]\n    algorithms: [none]", "none"),
        ("url: 'https://cluster.test'", "url: 'http://cluster.test'", "clear text"),
        ("webhook: github,", "webhook: gitlab,", "gitlab"),
        ("'redis.test:6379'", "redis.test", "redis.test"),
        ("do: allow}]", "do: alow}]", "alow"),
        ("opaque, client", "opaque, endpoint: 'http://a.test/x', client", "introspection"),
        ("listeners:", "policies: [lost.yaml]\nlisteners:", "lost.yaml"),
    ] {
        let (code, said) = with(there, here, &["--without-files"]);
        assert!(code == Some(64) && said.contains(told), "{here}: {said}");
    }
}

/// Regression: such a variable was reported as not set.
#[test]
fn a_secret_in_a_variable_may_be_bytes_as_one_in_a_file_may() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    let yaml = CONFIGURATION.change("admin: {token: {file: lost}", "admin: {token: {env: DOORWARD_TEST_BYTES}");
    std::fs::write(&file, yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.arg("check").arg(&file).env("DOORWARD_TEST_BYTES", OsStr::from_bytes(&[0xff; 32]));
    let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(said.contains("`DOORWARD_TEST_LOST` is not set"), "{said}");
    assert!(!said.contains("`DOORWARD_TEST_BYTES` is not set"), "{said}");
}

#[test]
fn an_audience_is_called_empty_at_its_own_place_and_only_if_it_is_written_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    for (audience, told, not) in
        [("''", "an audience is empty", "found nothing"), ("~", "found nothing", "an audience is empty")]
    {
        let yaml = CONFIGURATION.change("audiences: [doorward]", &format!("audiences: [doorward, {audience}]"));
        std::fs::write(&file, yaml).unwrap();
        let (code, said) = check(&file, &["--without-files"]);
        assert!(code == Some(64) && said.contains(told) && !said.contains(not), "{said}");
        // The place of the audience, not of the list.
        assert!(said.contains("doorward.yaml:9:27"), "{said}");
    }
}

/// As in CI, with a bare image.
#[test]
fn policy_commands_need_neither_authorities_nor_a_proxy() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples/dashboard.yaml");
    let nothing = tempfile::tempdir().unwrap();
    let empty = nothing.path().join("none.pem");
    std::fs::write(&empty, "").unwrap();
    let run = |arguments: &[&str], proxy: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.args(arguments).arg(&example).env("SSL_CERT_FILE", &empty).env("SSL_CERT_DIR", nothing.path());
        let output = command.env("HTTPS_PROXY", proxy).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    for arguments in [&["check", "--without-files"][..], &["test"], &["rbac"], &["rollout", "digest"]] {
        let (code, said) = run(arguments, "socks5://127.0.0.1:1");
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
    }
    let (code, said) = run(&["check"], "");
    assert!(code != Some(0) && said.contains("certificate authorities cannot be"), "{said}");
}

/// With `hold` it would also be written to the store.
#[test]
fn the_secret_of_a_sender_and_what_no_signature_covers_can_not_be_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    std::fs::write(dir.path().join("secret"), "a secret of the tests, long enough").unwrap();
    for (header, refused) in [
        ("X-Gitlab-Token", Some("it is the secret of the sender")),
        ("X-Github-Enterprise-Host", Some("it is not signed")),
        ("Ce-Type", Some("it is not signed")),
        ("Impersonate-User", Some("which only Doorward may")),
        ("X-Team", None),
    ] {
        let yaml = format!(
            "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams: [{{name: hooks, url: 'http://hooks.test'}}]
webhooks: [{{name: lab, sender: gitlab, secrets: [{{secret: {{file: secret}}}}]}}]
routes:
  - {{name: hooks, kind: webhook, hosts: [hooks.test], schemes: [webhook], webhook: lab, upstream: hooks, pass_headers: [{header}]}}
rules: [{{id: all, on: {{routes: [hooks]}}, who: {{webhooks: [lab]}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
"
        );
        std::fs::write(&file, yaml).unwrap();
        let (code, said) = check(&file, &[]);
        assert_eq!(code, Some(if refused.is_some() { 64 } else { 0 }), "{header}: {said}");
        assert!(refused.is_none_or(|why| said.contains(why)), "{header}: {said}");
    }
}

#[test]
fn settings_that_nothing_would_enforce_or_provide_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    for name in ["secret", "token"] {
        std::fs::write(dir.path().join(name), "a-secret-of-the-tests-long-enough").unwrap();
    }
    let topic = |name: &str| {
        let topics = "['arn:aws:sns:us-east-1:123456789012:commits']";
        format!("  - {{name: {name}, identity: {name}, sender: aws_sns, sns: {{topics: {topics}}}}}\n")
    };
    for (row, trigger, more, refused) in [
        ("attacks:Z20 no interceptor", "{names: [push]}", "", Some("nothing enforces this on an EventListener")),
        (
            "attacks:Z20 an account that nobody reads",
            "{service_accounts: [builder]}",
            "interceptor: {host: door.svc}\n",
            Some("cannot read which service account a Trigger has"),
        ),
        ("attacks:Z20 nothing", "{}", "interceptor: {host: door.svc}\n", Some("the condition is empty")),
        (
            "attacks:Z20 twin",
            "{names: [push], service_accounts: [builder]}",
            "interceptor: {host: door.svc, kubernetes: api}\n",
            None,
        ),
        (
            "attacks:Z16 a topic of two entries",
            "{names: [push]}",
            &format!("interceptor: {{host: door.svc}}\n#webhooks\n{}{}", topic("one"), topic("two")),
            Some("`one` takes the messages of"),
        ),
        (
            "attacks:Z16 twin",
            "{names: [push]}",
            &format!("interceptor: {{host: door.svc}}\n#webhooks\n{}", topic("one")),
            None,
        ),
    ] {
        let (more, webhooks) = more.split_once("#webhooks\n").unwrap_or((more, ""));
        let yaml = format!(
            "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams:
  - {{name: hooks, url: 'http://hooks.test'}}
  - {{name: api, url: 'http://127.0.0.1:1', credential: {{bearer: {{file: token}}}}}}
webhooks:
  - {{name: lab, sender: gitlab, secrets: [{{secret: {{file: secret}}}}]}}
{webhooks}routes:
  - {{name: hooks, kind: webhook, hosts: [hooks.test], schemes: [webhook], webhook: lab, upstream: hooks, event_listener: {{namespace: ci, name: build}}}}
rules: [{{id: all, on: {{routes: [hooks], trigger: {trigger}}}, who: {{webhooks: [lab]}}, do: allow}}]
{more}store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
"
        );
        std::fs::write(&file, yaml).unwrap();
        let (code, said) = check(&file, &[]);
        assert_eq!(code, Some(if refused.is_some() { 64 } else { 0 }), "{row}: {said}");
        assert!(refused.is_none_or(|why| said.contains(why)), "{row}: {said}");
    }
}

/// Regression: `check` found no problem, and the start failed at once.
#[test]
fn what_is_in_the_way_of_the_store_the_trail_and_the_socket_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    std::fs::write(dir.path().join("letter"), "dear all,\nthis is no store, no trail and no socket\n").unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    for (store, trail, socket, refused) in [
        ("doorward.redb", "audit.jsonl", "operator.sock", None),
        ("empty", "audit.jsonl", "operator.sock", None),
        ("doorward.redb", "empty", "operator.sock", None),
        (".", "audit.jsonl", "operator.sock", Some("it is a folder")),
        ("letter", "audit.jsonl", "operator.sock", Some("not a store of Doorward")),
        ("doorward.redb", ".", "operator.sock", Some("it is a folder")),
        ("doorward.redb", "letter", "operator.sock", Some("not one of an audit trail")),
        ("doorward.redb", "doorward.yaml", "operator.sock", Some("not one of an audit trail")),
        ("doorward.redb", "doorward.redb", "operator.sock", Some("is also the place of `store.path`")),
        ("doorward.redb", "audit.jsonl", "letter", Some("it is not a socket")),
    ] {
        let yaml = format!(
            "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers: [{{name: corp, issuer: 'https://a.test', audiences: [a], username: '{{sub}}', algorithms: [RS256]}}]
upstreams: [{{name: web, url: 'http://web.test'}}]
routes: [{{name: web, kind: http, hosts: [web.test], schemes: [bearer], upstream: web}}]
rules: [{{id: all, on: {{routes: [web]}}, do: allow}}]
store: {{path: {store}}}
audit: {{sink: {{file: {{path: {trail}}}}}}}
admin: {{socket: {socket}}}
"
        );
        std::fs::write(&file, yaml).unwrap();
        let (code, said) = check(&file, &[]);
        assert_eq!(code, Some(if refused.is_some() { 64 } else { 0 }), "{store} {trail} {socket}: {said}");
        assert!(refused.is_none_or(|why| said.contains(why)), "{store} {trail} {socket}: {said}");
        assert!(!dir.path().join("doorward.redb").exists() && !dir.path().join("audit.jsonl").exists(), "no effect");
        assert_eq!(std::fs::metadata(dir.path().join("empty")).unwrap().len(), 0, "no effect");
    }
}
