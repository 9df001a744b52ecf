use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::*;
use crate::{
    config::{Sources, diagnosis::line_and_column, load},
    snapshot::fill_defaults,
};

/// A configuration with one of everything.
const WHOLE: &str = "
external_host: tekton.test
listeners:
  - {name: main, address: 127.0.0.1:8443, tls: {certificates: [{chain: crt.pem, key: key.pem}], client_ca: ca.pem}}
issuers:
  - name: company
    issuer: https://id.test
    audiences: [account]
    clients: [{id: ci, subject: ci-account}]
    required_claims: {tenant: [a]}
    introspection: {mode: opaque, client: {id: doorward, secret: {file: secret}}}
    login: {client: {id: doorward, key: {file: key.pem}}, kind: human}
  - name: cluster
    issuer: https://cluster.test
    preset: kubernetes
    audiences: [doorward, 'https://tekton.test']
    token_review: {upstream: api, bearer: {file: secret}}
  - {name: own, preset: doorward, audiences: ['https://own.test']}
webhooks:
  - {name: git, sender: slack, secrets: [{secret: {file: secret}}]}
  - name: other
    sender: generic
    secrets: [{secret: {file: other}}]
    signature: {header: x-signature, timestamp_header: x-time}
    facts: {event: /event}
    hold: true
    client_certificate: {names: [git.test]}
  - {name: commits, sender: aws_sns, sns: {topics: ['arn:aws:sns:us-east-1:123456789012:commits']}}
upstreams:
  - {name: api, url: 'https://api.test', tls: {}, credential: {bearer: {file: secret}}}
  - {name: listener, url: 'http://build.test'}
  - {name: other, kubeconfig: {file: kubeconfig}}
routes:
  - {name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: api}
  - {name: hook, kind: webhook, hosts: [hook.test], schemes: [webhook], webhook: git, upstream: listener,
     event_listener: {namespace: ci, name: build}}
grants:
  - {id: dev, who: {issuers: [company], groups: [dev]}, kubernetes_groups: [dev], tekton_roles: [{role: run}]}
rules:
  - id: push
    on: {token: {audiences: [registry.test], scopes: [push], lifetime: 5m}}
    who: {kind: human}
    do: allow
  - id: deploy
    on: {kubernetes: {verbs: [create], resources: [pods]}, run: {does: [create]}, time: {days: mon-fri, from: '08:00', to: '18:00'}}
    who: {claims: {tenant: [a]}, kind: agent, on_behalf_of: {groups: [admins]}}
    need: {mfa: {max_age: 15m}}
    do: {approve: {by: {groups: [managers]}}}
interceptor: {host: interceptor.test, listener: main}
runs: {kubernetes: api, namespaces: [ci]}
tokens:
  keys: [{file: secret}, {file: secret, from: '2026-01-31'}]
  exchange: [{issuer: cluster, kubernetes: api, upstreams: [api]}]
  registries: [{service: registry.test, lifetime: 2m}]
  onward:
    - {audience: a, provider: {token_exchange: {token_url: 'https://a.test', client: {id: a, secret: {file: secret}}}}}
    - {audience: b, provider: {client_credentials: {token_url: 'https://b.test'}}}
    - {audience: c, provider: {google: {pool_provider: '//iam.googleapis.com/p'}}, scopes: {read: a/.default}}
    - {audience: d, provider: {aws: {role: 'arn:aws:iam::1:role/a'}}, assertion: {subject: {text: a}, algorithm: ES256}}
store: {redis: {sentinel: {servers: ['s.test:26379'], master: main}, tls: {}}}
sessions: {keys: [{file: secret}]}
audit:
  sink: {file: {path: audit.jsonl}}
  export:
    - {name: siem, syslog: {address: 'siem.test:6514', tls: {}}, max_behind: 1GiB}
    - {name: collector, otlp: {endpoint: 'https://otel.test', headers: {authorization: {file: secret}}}}
break_glass: {until: '2026-01-01T00:00:00Z', certificates: [{name: a, sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}]}
";

fn print(yaml: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doorward.yaml");
    std::fs::write(&path, yaml).unwrap();
    let loaded = load(&Sources { path, ..Sources::default() }, |_, _| ());
    loaded.unwrap_or_else(|refused| panic!("{refused}")).0.to_yaml(fill_defaults).unwrap()
}

/// Returns the values of the output; a comment on what applies to a setting counts as its value.
fn read(printed: &str) -> Value {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let told = |line: &str| {
        let key = line.trim_start().strip_prefix("# ")?.split_once(" is not set. ")?.0;
        Some(format!("{}{key}: told", &line[..indent(line)]))
    };
    let mut lines: Vec<String> = Vec::new();
    for line in printed.lines() {
        let Some(told) = told(line) else {
            lines.push(line.to_owned());
            continue;
        };
        // A section in which nothing is set.
        if let Some(section) = lines.last_mut()
            && indent(section) < indent(&told)
            && let Some((key, _)) = section.split_once(": {}")
        {
            *section = format!("{key}:");
        }
        lines.push(told);
    }
    Node::parse(&lines.join("\n"), 0).unwrap().to_json()
}

struct Walk {
    root: Value,
    /// Parts of the schema whose output was checked.
    seen: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl Walk {
    fn has_default(property: &Value) -> bool {
        property.get("default").is_some_and(|default| !default.is_null()) || schema::default_told(property).is_some()
    }

    fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
        schema.get("properties").and_then(Value::as_object).into_iter().flatten()
    }

    fn value(&mut self, name: &str, schema: &Value, value: &Value) {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let target = schema::definition(&self.root, reference).unwrap().clone();
            return self.value(reference.rsplit('/').next().unwrap(), &target, value);
        }
        for alternative in ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(key)?.as_array()).flatten() {
            self.value(name, alternative, value);
        }
        match value {
            Value::Object(entries) => self.object(name, schema, entries),
            Value::Array(items) => {
                let Some(schema) = schema.get("items") else { return };
                items.iter().for_each(|item| self.value(name, schema, item));
            }
            _ => {}
        }
    }

    fn object(&mut self, name: &str, schema: &Value, entries: &Map<String, Value>) {
        // Another alternative of a choice.
        if entries.keys().any(|key| schema.get("properties").is_some_and(|known| known.get(key).is_none())) {
            return;
        }
        for (key, property) in Self::properties(schema) {
            self.seen.insert(name.to_owned());
            let value = entries.get(key).filter(|value| !value.is_null());
            if value.is_none() && Self::has_default(property) && schema.get("oneOf").is_none() {
                self.missing.insert(format!("{name}.{key}"));
            }
            self.value(key, property, value.unwrap_or(&Value::Null));
        }
    }
}

/// Returns the parts of the schema that have a setting with a default, except the facts in test cases.
fn parts_with_defaults(root: &Value) -> BTreeSet<String> {
    let of_tests = [
        "PolicyTest",
        "PrincipalFacts",
        "ActorFacts",
        "RequestFacts",
        "DeliveryFacts",
        "KubernetesFacts",
        "TriggerFacts",
        "TaskFacts",
        "TokenFacts",
        "Expectation",
    ];
    let definitions = root["$defs"].as_object().unwrap().iter();
    definitions
        .filter(|(name, schema)| {
            !of_tests.contains(&name.as_str())
                && Walk::properties(schema).any(|(_, property)| Walk::has_default(property))
        })
        .map(|(name, _)| name.clone())
        .collect()
}

#[test]
fn every_setting_with_a_default_is_shown() {
    let printed = print(WHOLE);
    let mut walk = Walk { root: schema(), seen: BTreeSet::new(), missing: BTreeSet::new() };
    walk.value("Root", &walk.root.clone(), &read(&printed));
    assert_eq!(walk.missing, BTreeSet::new(), "left out of\n{printed}");
    let unseen: Vec<_> = parts_with_defaults(&walk.root).difference(&walk.seen).cloned().collect();
    assert_eq!(unseen, Vec::<String>::new(), "add one of each to the configuration of this test");
}

#[test]
fn defaults_that_depend_on_neighbouring_settings_are_shown_as_they_apply() {
    let printed = read(&print(WHOLE));
    for (pointer, value) in [
        ("/issuers/0/clock_skew", "30s"),
        ("/issuers/0/max_lifetime", "1d"),
        ("/issuers/0/username", "{issuer}#{sub}"),
        ("/issuers/0/introspection/timeout", "1s"),
        ("/issuers/0/introspection/negative_cache", "10s"),
        ("/issuers/0/introspection/circuit_breaker/pause", "5s"),
        ("/issuers/0/introspection/client/method", "basic"),
        ("/issuers/0/login/client/method", "private_key_jwt"),
        ("/issuers/0/keys/max_stale", "12h"),
        ("/issuers/0/keys/timeout", "5s"),
        ("/issuers/0/keys/negative_cache", "1m"),
        ("/issuers/1/max_lifetime", "1h"),
        ("/issuers/1/username", "{issuer}#{service_account}"),
        ("/issuers/1/kind", "workload"),
        ("/issuers/1/token_review/cache", "10s"),
        ("/issuers/1/token_review/negative_cache", "10s"),
        ("/issuers/1/token_review/timeout", "2s"),
        ("/issuers/2/clock_skew", "5s"),
        ("/issuers/2/max_lifetime", "10m"),
        ("/webhooks/0/answer_within", "2500ms"),
        ("/webhooks/0/max_body", "512KiB"),
        ("/webhooks/0/replay_window", "3d"),
        ("/webhooks/1/signature/tolerance", "5m"),
        ("/webhooks/1/identity", "other"),
        ("/webhooks/2/sns/hosts/0", "sns.us-east-1.amazonaws.com"),
        ("/webhooks/1/held/try_for", "1d"),
        ("/webhooks/1/held/max_size", "1GiB"),
        ("/routes/0/paths/0", "/*"),
        ("/routes/1/max_body", "512KiB"),
        ("/routes/1/methods/0", "POST"),
        ("/assertions/issuer", "https://tekton.test"),
        ("/audit/sink/file/max_size", "100MiB"),
    ] {
        assert_eq!(printed.pointer(pointer), Some(&Value::from(value)), "{pointer}");
    }
    assert_eq!(printed["issuers"][0]["introspection"]["tries"], 2);
    assert_eq!(printed["webhooks"][1]["unique_bodies"], true);
    // With a shared audience only listed clients are accepted.
    assert_eq!(printed["issuers"][0]["listed_clients_only"], true);
}

#[test]
fn conditions_that_are_not_set_are_not_shown() {
    let printed = print(
        "
listeners: [{name: main, address: '127.0.0.1:8080'}]
rules:
  - {id: all, do: deny}
  - {id: none, on: {kubernetes: {}, run: {}, token: {}, trigger: {}}, who: {on_behalf_of: {}}, do: deny}
  - {id: some, on: {fork: true, time: {from: '08:00', to: '18:00'}}, who: {kind: agent}, need: {fresh_login: {max_age: 5m}}, do: allow}
",
    );
    let rules = Node::parse(&printed, 0).unwrap().to_json()["rules"].to_string();
    assert!(!rules.contains("null"), "{printed}");
    let values = |text: &str| Node::parse(text, 0).unwrap().to_json();
    assert_eq!(values(&print(&printed)), values(&printed));
}

/// A null is refused, like a key without a value.
#[test]
fn the_printed_configuration_has_the_same_meaning() {
    let first = print(WHOLE);
    assert!(!first.contains(": null"), "{first}");
    let values = |text: &str| Node::parse(text, 0).unwrap().to_json();
    assert_eq!(values(&print(&first)), values(&first));
}

/// It had no comment, as if it were a default.
#[test]
fn a_text_of_several_lines_is_shown_with_its_source() {
    let written = "listeners: [{name: main, address: '127.0.0.1:8080'}]\nrules:\n  - id: all\n    why: |+\n      a\n\n    \
                   fix: \"x\\r\\ny\"\n    when: |-\n      true &&\n      true\n    do: deny\n";
    let printed = print(written);
    let values = |text: &str| Node::parse(text, 0).unwrap().to_json()["rules"][0].clone();
    for (key, number) in [("why", 4), ("fix", 7), ("when", 8)] {
        let begins = |line: &&str| line.trim_start().starts_with(&format!("{key}:"));
        let line = printed.lines().find(begins).unwrap();
        assert!(line.ends_with(&format!("doorward.yaml:{number}")), "{line}\n{printed}");
        assert_eq!(values(&printed)[key], values(written)[key], "{printed}");
    }
}

/// Each look-up read the text from its beginning, which took minutes for a policy of 2,000 rules.
#[test]
fn lines_are_found_as_by_reading_from_the_beginning() {
    for text in ["", "a", "\n", "a\n\nbé\n  c: d", "x\r\ny\n"] {
        let lines = Lines::new(text);
        for byte in (0..=text.len()).filter(|byte| text.is_char_boundary(*byte)) {
            let (line, column) = line_and_column(text, byte);
            assert_eq!(lines.number(byte), line, "{text:?} {byte}");
            assert_eq!(lines.before(byte).chars().count() + 1, column, "{text:?} {byte}");
        }
    }
}

#[test]
fn rules_of_policy_files_are_printed_once_and_can_be_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doorward.yaml");
    let main =
        "listeners: [{name: main, address: '127.0.0.1:8080'}]\npolicies: [more.yaml]\nrules: [{id: a, do: deny}]\n";
    std::fs::write(&path, main).unwrap();
    std::fs::write(folder.path().join("more.yaml"), "rules: [{id: b, do: deny}]\n").unwrap();
    let load = |path| load(&Sources { path, ..Sources::default() }, |_, _| ()).unwrap().0;
    let first = load(path.clone());
    let printed = first.to_yaml(|_| ()).unwrap();
    assert!(printed.contains("#   \"more.yaml\"\n") && !printed.contains("\npolicies:"), "{printed}");
    std::fs::write(&path, printed).unwrap();
    assert_eq!(load(path).raw.rules, first.raw.rules);
}

/// Regression: `print-config` left a `null` out, so that its output tested another case.
#[test]
fn a_null_in_the_body_or_the_claims_of_a_case_is_a_value() {
    let case = "{name: a, principal: {claims: {none: null}}, request: {route: api, body: {spec: {status: null}}}, expect: {outcome: deny}}";
    let printed = print(&format!("listeners: [{{name: main, address: '127.0.0.1:8080'}}]\ntests: [{case}]\n"));
    let case = &Node::parse(&printed, 0).unwrap().to_json()["tests"][0];
    assert_eq!(case["principal"]["claims"], serde_json::json!({"none": null}), "{printed}");
    assert_eq!(case["request"]["body"], serde_json::json!({"spec": {"status": null}}), "{printed}");
}

/// The rest of the name was a setting of the output, which is a configuration itself.
#[test]
fn the_name_of_a_file_stays_within_its_comment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("doorward.yaml");
    let main = "policies: [\"p\\nworkers: 7 #.yaml\"]\nlisteners: [{name: a, address: '127.0.0.1:1'}]\n";
    std::fs::write(&path, main).unwrap();
    let policy = "rules: [{id: all, who: {groups: [dev]}, do: deny}]\n";
    std::fs::write(folder.path().join("p\nworkers: 7 #.yaml"), policy).unwrap();
    let (loaded, ()) = load(&Sources { path, ..Sources::default() }, |_, _| ()).unwrap();
    let printed = loaded.to_yaml(fill_defaults).unwrap();
    assert!(printed.contains(r"/p\nworkers: 7 #.yaml:1"), "{printed}");
    assert!(!printed.lines().any(|line| line.starts_with("workers: 7")), "{printed}");
}
