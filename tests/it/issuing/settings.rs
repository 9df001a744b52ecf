//! Settings that would make Doorward refuse valid tokens, or accept foreign ones, are rejected before they take effect.

use crate::{
    fixture::Change,
    harness::{folder_with, now, rfc3339, told},
};

/// Each row changes something in it.
const GOOD: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
external_host: doorward.test
issuers:
  - {name: people, issuer: 'https://people.test', audiences: ['https://doorward.test'], kind: human}
  - name: cluster
    issuer: https://kubernetes.default.svc
    preset: kubernetes
    audiences: ['https://doorward.test']
    keys: {url: 'https://10.0.0.1/openid/v1/jwks', bearer: {file: token}}
    token_review: {upstream: api, bearer: {file: token}}
  - {name: own, preset: doorward, audiences: ['https://target.test']}
upstreams:
  - {name: web, url: 'http://127.0.0.1:1'}
  - {name: api, url: 'https://10.0.0.1', credential: {bearer: {file: token}}}
routes: [{name: web, kind: http, hosts: [localhost], schemes: [bearer], issuers: [people, own], upstream: web}]
rules: [{id: use, on: {routes: [web]}, who: {issuers: [own], kind: agent}, do: allow}]
sessions: {keys: [{file: seal}]}
tokens:
  keys: [{file: key.pem}]
  exchange: [{issuer: people}, {issuer: cluster, kubernetes: api, namespaces: [ci]}]
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
admin: {address: 127.0.0.1:0}
";

const REVIEW: &str = "    token_review: {upstream: api, bearer: {file: token}}\n";
const CLUSTER: &str = "{issuer: cluster, kubernetes: api, namespaces: [ci]}";
const OWN: &str = "{name: own, preset: doorward, ";

/// The replaced text, its replacement, and the resulting error.
const ROWS: [(&str, &str, &str); 39] = [
    // Two clusters with the same issuer.
    (
        "name: people, issuer: 'https://people.test'",
        "name: people, issuer: 'https://kubernetes.default.svc'",
        "`people` is the same issuer",
    ),
    ("{path: doorward.redb}\n", "{path: doorward.redb, redis: {server: '127.0.0.1:1'}}\n", ""),
    ("  keys: [{file: key.pem}]\n  exchange", "  exchange", ""),
    ("external_host: doorward.test\n", "", "the issuer of the tokens has no name"),
    ("  keys: [{file: key.pem}]\n", "  lifetime: 11m\n", "`lifetime` is not between 1m and 10m"),
    ("  keys: [{file: key.pem}]\n", "  lifetime: 59s\n", "`lifetime` is not between 1m and 10m"),
    ("  keys: [{file: key.pem}]\n", "  rotate: 59m\n", "`rotate` is less than 1h"),
    ("{file: key.pem}", "{file: key.pem}, {file: key.pem}", "is a key that is listed already"),
    ("{file: key.pem}", "{file: token}", "in PEM"),
    ("{file: key.pem}", "{file: key.pem, from: soon}", "neither a day nor a time of RFC 3339"),
    ("{file: key.pem}", "{file: key.pem, env: KEY}", "a key comes from exactly one place"),
    ("{file: key.pem}", "{from: '2026-01-31'}", "a key comes from exactly one place"),
    ("{issuer: people}", "{issuer: own}", "a token of ours is not exchanged for another"),
    ("{issuer: people}", "{issuer: poeple}", "people"),
    ("{issuer: people}", "{issuer: people}, {issuer: people}", "issuer `people` is listed twice"),
    ("{issuer: people}", "{issuer: people, kubernetes: api}", "only an issuer with `preset: kubernetes` has pods"),
    ("{issuer: people}", "{issuer: people, upstreams: [web]}", "only a cluster has upstreams"),
    (CLUSTER, "{issuer: cluster}", "the pods of this cluster cannot be looked up"),
    (REVIEW, "", "has no `token_review`"),
    ("test', audiences: ['https://doorward.test']", "test', audiences: [x]", "is not among the audiences of `people`"),
    (
        "doorward, audiences: ['https://target.test']",
        "doorward, audiences: ['https://target.test', 'https://k8s.test']",
        "a token of `own` for any of its audiences would be accepted on this route",
    ),
    ("issuers: [people, own], upstream", "issuers: [people, own], audiences: [elsewhere], upstream", "elsewhere"),
    (
        "issuers: [people, own], upstream",
        "issuers: [people, own], audiences: ['https://target.test'], upstream",
        "no token of `people` would be accepted",
    ),
    (
        OWN,
        "{name: own, preset: doorward, issuer: 'https://other.test', ",
        "are issued by `https://` and `external_host`",
    ),
    (
        OWN,
        "{name: own, preset: doorward, keys: {url: 'https://x.test'}, ",
        "need no `login`, `introspection` or `keys`",
    ),
    ("tokens:\n", "tokens:\n  registries: [{service: r, lifetime: 1m}, {service: s, lifetime: 10m}]\n", ""),
    ("tokens:\n", "tokens:\n  registries: [{service: r, lifetime: 59s}]\n", "`lifetime` is not between 1m and 10m"),
    ("tokens:\n", "tokens:\n  registries: [{service: r, lifetime: 11m}]\n", "`lifetime` is not between 1m and 10m"),
    (
        "tokens:\n",
        "tokens:\n  registries: [{service: ''}]\n",
        "`service` is empty, too long, or has control characters",
    ),
    (
        "tokens:\n",
        "tokens:\n  registries: [{service: \"a\\nb\"}]\n",
        "`service` is empty, too long, or has control characters",
    ),
    ("tokens:\n", "tokens:\n  registries: [{service: r}, {service: r}]\n", "`r` is listed twice"),
    (
        "tokens:\n",
        "tokens:\n  resource_servers: [{id: a, secret: {file: seal}, audiences: [x]}, {id: b, secret: {file: seal}, audiences: [x]}]\n",
        "",
    ),
    (
        "tokens:\n",
        "tokens:\n  resource_servers: [{id: a, secret: {file: token}, audiences: [x]}]\n",
        "the secret is shorter than 16 bytes",
    ),
    (
        "tokens:\n",
        "tokens:\n  resource_servers: [{id: '', secret: {file: seal}, audiences: [x]}]\n",
        "is empty, has a colon, or is listed twice",
    ),
    (
        "tokens:\n",
        "tokens:\n  resource_servers: [{id: 'a:b', secret: {file: seal}, audiences: [x]}]\n",
        "is empty, has a colon, or is listed twice",
    ),
    (
        "tokens:\n",
        "tokens:\n  resource_servers: [{id: a, secret: {file: seal}, audiences: [x]}, {id: a, secret: {file: seal}, audiences: [x]}]\n",
        "is empty, has a colon, or is listed twice",
    ),
    (
        "tokens:\n",
        "tokens:\n  resource_servers: [{id: a, secret: {file: seal}, audiences: []}]\n",
        "it may ask about no token",
    ),
    (
        "[{issuer: people}, {issuer: cluster, kubernetes: api, namespaces: [ci]}]",
        "[]",
        "no issuer is listed whose tokens could be exchanged",
    ),
    (
        "{name: people, issuer: 'https://people.test', audiences: ['https://doorward.test'], kind: human}",
        "{name: people, preset: github_oauth, tenant: acme, login: {client: {id: door, secret: {file: seal}}}}",
        "`people` signs no tokens that could be exchanged",
    ),
];

/// Whether it is accepted, and the output.
async fn check(yaml: &str) -> (bool, String) {
    let key = || rcgen::KeyPair::generate().unwrap().serialize_pem();
    let dir = folder_with(&[
        ("doorward.yaml", yaml),
        ("token", "a-token"),
        ("key.pem", &key()),
        ("other.pem", &key()),
        ("seal", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ]);
    // It takes a moment to generate.
    if yaml.contains("rsa.pem") {
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        std::fs::write(dir.path().join("rsa.pem"), rsa.serialize_pem()).unwrap();
    }
    let (code, said) = told(dir.path(), &["check", "doorward.yaml"]).await;
    (code == Some(0), said)
}

#[tokio::test]
async fn a_key_that_would_sign_before_it_is_widely_known_is_warned_about() {
    let (early, none) = ("it signs in less than an hour", "no key is in force yet");
    let idle = "it has no effect here, as it chooses among keys of one algorithm";
    let from = |ahead: i64| format!("{{file: key.pem, from: '{}'}}", rfc3339(now().checked_add_signed(ahead).unwrap()));
    for (what, keys, warnings) in [
        ("past", from(-60), [false, false, false]),
        ("a day of the past", "{file: key.pem, from: '2026-01-31'}".to_owned(), [false, false, false]),
        ("in half an hour, alone", from(1800), [true, true, false]),
        ("tomorrow, alone", from(86_400), [false, true, false]),
        ("tomorrow, after another", format!("{{file: other.pem}}, {}", from(86_400)), [false, false, false]),
        (
            "tomorrow, after one of another algorithm",
            format!("{{file: rsa.pem}}, {}", from(86_400)),
            [false, false, true],
        ),
        ("in half an hour, after another", format!("{{file: other.pem}}, {}", from(1800)), [true, false, false]),
        (
            "tomorrow, before one of another algorithm",
            format!("{}, {{file: rsa.pem}}", from(86_400)),
            [false, false, false],
        ),
        (
            "tomorrow, before one of another algorithm that has begun",
            format!("{}, {{file: rsa.pem, from: '2026-01-31'}}", from(86_400)),
            [false, false, false],
        ),
        (
            "tomorrow, after two of which one is of another algorithm and begins first",
            format!("{{file: rsa.pem}}, {{file: other.pem, from: '2026-01-31'}}, {}", from(86_400)),
            [false, false, true],
        ),
    ] {
        let (good, told) = check(&GOOD.change("{file: key.pem}", &keys)).await;
        assert!(good, "{what}: {told}");
        assert_eq!([early, none, idle].map(|warning| told.contains(warning)), warnings, "{what}: {told}");
    }
}

#[tokio::test]
async fn settings_of_the_issuer_that_cannot_work_are_refused_with_what_to_change() {
    let (good, told) = check(GOOD).await;
    assert!(good, "{told}");
    for (before, after, said) in ROWS {
        assert_eq!(GOOD.matches(before).count(), 1, "{before}");
        let (good, told) = check(&GOOD.change(before, after)).await;
        assert_eq!(good, said.is_empty(), "{after}: {told}");
        assert!(told.contains(said), "{after}: {told}");
    }
    // Each replica would create keys that the others do not know.
    let alone = GOOD
        .change("{path: doorward.redb}\n", "{path: doorward.redb, redis: {server: '127.0.0.1:1'}}\n")
        .change("  keys: [{file: key.pem}]\n  exchange", "  exchange");
    let (good, told) = check(&alone).await;
    assert!(!good && told.contains("tokens need `keys`, the same on every replica"), "{told}");
    let (before, rest) = GOOD.split_once("tokens:\n").unwrap();
    let without = format!("{before}{}", &rest[rest.find("store:").unwrap()..]);
    let (good, told) = check(&without).await;
    assert!(!good && told.contains("without the section `tokens` Doorward issues none"), "{told}");
}

#[tokio::test]
async fn a_rule_that_is_over_before_the_token_of_a_provider_is_refused() {
    let with = |audiences: &str, rule: &str| {
        let provider =
            "provider: {jwt_bearer: {token_url: 'https://idp.test/token'}}, assertion: {audience: 'https://idp.test'}";
        let onward = format!(
            "\n  onward: [{{audience: vault, {provider}, max_lifetime: 30m}}, {{audience: short, {provider}, max_lifetime: 5m}}]\nstore:"
        );
        let more = format!(
            "do: allow}}, {{id: vault, on: {{token: {{audiences: {audiences}{rule}, who: {{issuers: [people]}}, do: allow}}]"
        );
        GOOD.change("do: allow}]", &more).change("\nstore:", &onward)
    };
    for (audiences, rule, name) in [
        ("[vault]", "}}", None),
        ("[vault]", "}}, need: {mfa: {max_age: 31m}, fresh_login: {max_age: 1h}}", None),
        ("[vault]", "}}, need: {mfa: {max_age: 30m}}", Some("`mfa`")),
        ("[vault]", "}}, need: {mfa: {max_age: 1801s}}", None),
        ("[short]", ", lifetime: 5m}}", None),
        ("[short, vault]", ", lifetime: 5m}}", Some("`lifetime`")),
        ("[vault]", ", lifetime: 5m}}", Some("`lifetime`")),
        ("['va*']", ", lifetime: 5m}}", Some("`lifetime`")),
        ("[other, vault]", ", lifetime: 5m}}", Some("`lifetime`")),
        ("[vault]", "}}, need: {mfa: {max_age: 29m}}", Some("`mfa`")),
        ("[vault]", "}}, need: {fresh_login: {max_age: 29m}}", Some("`fresh_login`")),
    ] {
        let (good, told) = check(&with(audiences, rule)).await;
        assert_eq!(good, name.is_none(), "{audiences} {rule}: {told}");
        assert!(!told.contains("a token for `short` may last longer"), "{audiences} {rule}: {told}");
        let Some(name) = name else { continue };
        assert!(
            told.contains("a token for `vault` may last longer, as its provider sets the lifetime"),
            "{rule}: {told}"
        );
        assert!(told.contains(&format!("or a rule of its own without {name}")), "{rule}: {told}");
    }
}

/// A run created there is recorded as caused by nobody in a cluster whose tasks get tokens.
#[tokio::test]
async fn a_route_to_an_api_server_of_no_cluster_is_warned_of() {
    const HOOKS: &str = "{name: hooks, kind: webhook, hosts: [hooks.test], schemes: [webhook], webhook: hooks, upstream: web, \
                         event_listener: {namespace: ci, name: hooks}}, ";
    let with = |url: &str, listed: &str| {
        GOOD.change("  - {name: api,", &format!("  - {{name: other, url: '{url}', credential: {{bearer: {{file: token}}}}}}\n  - {{name: api,"))
            .change(
                "\nroutes: [",
                &format!("\nroutes: [{HOOKS}{{name: other, kind: kubernetes, hosts: [other.test], schemes: [bearer], issuers: [people], upstream: other}}, "),
            )
            .change(CLUSTER, &CLUSTER.replace("namespaces", &format!("{listed}namespaces")))
            + "webhooks: [{name: hooks, sender: github, hold: false, secrets: [{secret: {file: seal}}]}]\n"
    };
    let warns = |told: &str| {
        ["other", "web"].map(|name| told.contains(&format!("`{name}` belongs to no cluster of `tokens.exchange`")))
    };
    for (what, url, listed, warnings) in [
        ("the same with another credential", "https://10.0.0.1", "", [false, false]),
        ("another, or the same by another address", "https://10.0.0.2", "", [true, true]),
        ("the same by another address", "https://10.0.0.2", "upstreams: [other], ", [false, false]),
        ("another, of which hooks are none", "https://10.0.0.2", "upstreams: [web], ", [true, false]),
    ] {
        let (good, told) = check(&with(url, listed)).await;
        assert!(good, "{what}: {told}");
        assert_eq!(warns(&told), warnings, "{what}: {told}");
    }
}
