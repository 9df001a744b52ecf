//! Tests that no secret is printed.

use std::fs;

use super::{Case, GOOD, load, with};

#[test]
fn no_secret_is_ever_printed() {
    let case = with(
        "{id: doorward, secret: {file: client-secret}}",
        "{id: doorward, secret: hunter2, password: {is: [hunter2]}, key: {file: x, value: hunter2}}",
    )
    .env("DOORWARD_ADMIN__TOKEN", "hunter2")
    .env("DOORWARD_WHATEVER", "hunter2")
    .set("sessions.keys", "hunter2");
    let main = case.folder.path().join("doorward.yaml");
    let text = fs::read_to_string(&main).unwrap();
    fs::write(main, text.replace("http://el-build", "http://x:hunter2@el-build")).unwrap();
    let refused = case.load().unwrap_err();
    assert!(refused.diagnosis.errors() >= 6);
    assert!(!refused.to_string().contains("hunter2"), "{refused}");
    assert!(!refused.diagnosis.to_json().to_string().contains("hunter2"));
}

/// The message of a reload about such an address is recorded in the audit trail, too.
#[test]
fn no_password_in_an_address_is_ever_printed() {
    let main = "
external_host: door.example.com
listeners: [{name: main, address: '127.0.0.1:0'}]
issuers:
  - {name: own, issuer: 'https://x:hunter2@id.example.com', audiences: [a], kind: human}
  - {name: keys, issuer: 'https://k.example.com', audiences: [a], kind: human, keys: {url: 'https://x:hunter2@k.example.com'}}
store: {redis: {SERVER}}
audit:
  export:
    - {name: lines, syslog: {address: 'x:hunter2@syslog.example.com:6514'}}
    - {name: logs, otlp: {endpoint: 'https://x:hunter2@logs.example.com'}}
tokens:
  exchange: [{issuer: keys}]
  onward:
    - audience: sts
      provider: {token_exchange: {token_url: 'https://x:hunter2@sts.example.com'}}
      assertion: {audience: sts}
";
    let runtime = crate::runtime::control().unwrap();
    for (server, at) in [
        ("server: 'doorward:hunter2@r:6379'", "/store/redis/server"),
        ("server: 'redis://doorward:hunter2@r:6379'", "/store/redis/server"),
        ("cluster: ['x:hunter2@r:6379']", "/store/redis/cluster/0"),
    ] {
        let case = Case::new(&main.replace("SERVER", server));
        let refused = load(&case.sources, crate::app::check(&runtime).unwrap()).unwrap_err();
        let findings = refused.diagnosis.findings();
        for at in [
            at,
            "/issuers/0/issuer",
            "/issuers/1/keys/url",
            "/audit/export/0/syslog/address",
            "/audit/export/1/otlp/endpoint",
            "/tokens/onward/0/provider/token_exchange/token_url",
        ] {
            assert!(findings.iter().any(|finding| finding.at.to_string() == at), "{at}: {refused}");
        }
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
        assert!(!refused.diagnosis.to_json().to_string().contains("hunter2"));
    }
}

/// Secrets were only searched for in text that could be parsed.
#[test]
fn no_secret_is_printed_of_what_cannot_be_read() {
    for written in [
        "secrets: [{secret: @hunter2}]",
        "secrets: [{secret: *hunter2}]",
        "secrets: [{secret: !hunter2 x}]",
        "secrets: [{secret: 'hunter2}]",
        "secrets: [{secret: !!int hunter2}]",
        "secrets: [{secret: hunter2",
        "secrets: [{secret: {file: x}}]\n    why: a: hunter2",
        "secrets: [\n      @hunter2]",
        "secrets:\n      - @hunter2",
        "secrets:\n      - secret: hunter2\n       other: x",
        "secrets:\n      - secret: hunter2\n          other: x",
    ] {
        let printed = with("secrets: [{secret: {file: github-secret}}]", written).printed();
        assert!(!printed.contains("hunter2") && printed.contains("error"), "{printed}");
    }
    for policy in [
        "admin: {token: hunter2}",
        "tokn: hunter2",
        "rules: hunter2",
        "{rules: hunter2, rules: []}",
        "rules:\n  - @hunter2",
    ] {
        let printed = Case::new(&format!("policies: [rules.yaml]\n{GOOD}")).file("rules.yaml", policy).printed();
        assert!(!printed.contains("hunter2") && printed.contains("error"), "{printed}");
    }
}

/// The reader quotes it. A secret in hex with one digit `e` and otherwise decimal digits is such a text.
#[test]
fn no_secret_that_reads_as_a_number_without_end_is_printed() {
    let printed = with("{secret: {file: github-secret}}", "{secret: 4e99999999}").printed();
    assert!(!printed.contains("4e9") && printed.contains("in quotes"), "{printed}");
}

#[test]
fn no_secret_of_a_policy_file_is_printed_if_the_main_file_has_no_list() {
    let main = format!("policies: [rules.yaml]\n{}rules: x\n", GOOD.split_once("rules:").unwrap().0);
    let policy = "rules: [{id: a, id: b, why: 'http://u:hunter2@h', do: deny}]";
    let printed = Case::new(&main).file("rules.yaml", policy).printed();
    assert!(printed.contains("a second time") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn no_password_that_a_variable_overlays_is_printed_beside_another_problem() {
    let printed = Case::new(&format!("{GOOD}store: {{redis: {{server: 'd:hunter2@r:6379', databse: 1}}}}\n"))
        .env("DOORWARD_STORE__REDIS__SERVER", "r:6379")
        .printed();
    assert!(printed.contains("there is no setting `databse` here") && !printed.contains("hunter2"), "{printed}");
}

/// Nothing checks it.
#[test]
fn nothing_that_another_layer_replaces_is_printed_beside_another_problem() {
    for (written, variable, value) in [
        ("admin: {token: hunter2, lisener: x}", "DOORWARD_ADMIN__TOKEN", "{env: A}"),
        ("admin: {token: [hunter2], lisener: x}", "DOORWARD_ADMIN__TOKEN", "{env: A}"),
        ("admin: {token: {value: hunter2}, lisener: x}", "DOORWARD_ADMIN__TOKEN", "A"),
        ("store: {redis: {username: hunter2, databse: 1}}", "DOORWARD_STORE__REDIS__USERNAME", "doorward"),
        ("store: {redis: {cluster: [hunter2], databse: 1}}", "DOORWARD_STORE__REDIS__SERVER", "r:1"),
    ] {
        let printed = Case::new(&format!("{GOOD}{written}\n")).env(variable, value).printed();
        assert!(printed.contains("there is no setting") && !printed.contains("hunter2"), "{printed}");
    }
}

/// Regression: the value of an unknown key was printed unless the key contained one of four words.
#[test]
fn no_value_of_an_unknown_key_is_printed() {
    for written in [
        "redis_auth: hunter2",
        "store: {redis: {server: 'r:1', auth: hunter2}}",
        "store: {redis: {server: 'r:1', dsn: [{of: hunter2}]}}",
        "store: {redis: {server: 'r:1', usernam: hunter2}}",
        "audit: {sink: {kafka: hunter2}}",
        "audit: {sink: {file: {path: a}, kafka: {broker: hunter2}}}",
        "audit: {when_full: {then: hunter2}}",
        // It was printed in the message about the similar setting.
        "log: {formt: hunter2}",
        "limits: {drian: hunter2}",
        "external_hots: hunter2/x",
        // All keys of a map that is not allowed there are unknown.
        "store: {redis: {server: {address: 'r:1', auth: hunter2}}}",
        "workers: {password: hunter2}",
        "limits: {drain: [hunter2]}",
        "audit: {when_full: [hunter2]}",
        "audit: {sink: {file: {path: a, auth: hunter2}, kafka: x}}",
    ] {
        let printed = Case::new(&format!("{GOOD}{written}\n")).printed();
        assert!(printed.contains("error") && !printed.contains("hunter2"), "{printed}");
    }
}

#[test]
fn no_secret_is_printed_at_any_path() {
    for written in [
        "secrets: hunter2",
        "secrets: [hunter2]",
        "secrets: [[hunter2]]",
        "secrets: [{secret: hunter2}]",
        "secrets: [{secrt: hunter2}]",
        "secrets: [{secret: hunter2, secret: {file: x}}]",
    ] {
        let printed = with("secrets: [{secret: {file: github-secret}}]", written).printed();
        assert!(!printed.contains("hunter2") && printed.contains("error"), "{printed}");
    }
    for written in [
        "kubeconfig: {apiVersion: v1, users: [{name: u, user: {token: hunter2}}]}",
        "kubeconfig: {file: {token: hunter2}}",
        "kubeconfig: [{token: hunter2}]",
        "kubeconfig: hunter2",
        "kubeconfg: {users: [{user: {token: hunter2}}]}",
        "kubeconfig: |\n      users: [{user: {token: hunter2}}]",
    ] {
        let printed = with("credential: {bearer: {file: token}}", written).printed();
        assert!(!printed.contains("hunter2") && printed.contains("error"), "{printed}");
    }
    for written in ["hunter2", "[hunter2]", "{bearer: hunter2}", "{baerer: hunter2}", "{bearer: {flie: hunter2}}"] {
        let printed = with("{bearer: {file: token}}", written).printed();
        assert!(!printed.contains("hunter2") && printed.contains("error"), "{printed}");
    }
}

/// Everything beside the key that another layer replaced was dropped silently, and a value that was refused before was
/// accepted.
#[test]
fn an_inline_secret_is_not_replaced_by_another_layer() {
    for (written, variable, value) in [
        ("admin: {token: {value: hunter2}}", "DOORWARD_ADMIN__TOKEN__ENV", "A"),
        ("admin: {token: {value: hunter2}}", "DOORWARD_ADMIN__TOKEN", "{env: A}"),
        ("admin: {token: {file: t, value: hunter2}}", "DOORWARD_ADMIN__TOKEN__ENV", "A"),
        ("admin: {token: {file: {value: hunter2}}}", "DOORWARD_ADMIN__TOKEN__ENV", "A"),
        (
            "store: {redis: {sentinel: {servers: ['a:1'], master: m, password: hunter2}}}",
            "DOORWARD_STORE__REDIS__SERVER",
            "r:1",
        ),
    ] {
        let refused = Case::new(&format!("{GOOD}{written}\n")).env(variable, value).load().unwrap_err();
        assert!(refused.diagnosis.errors() > 0 && !refused.to_string().contains("hunter2"), "{refused}");
        let refused = Case::new(&format!("{GOOD}{written}\n")).load().unwrap_err();
        assert!(!refused.to_string().contains("hunter2"), "without another layer: {refused}");
    }
}
