//! Problems of configured issuers are reported at their places.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::super::{Issuers, testing::*};
use crate::config::{
    raw,
    report::{At, Report, Severity},
    resolver::Resolver,
};

/// Problems as `severity place`.
fn problems(issuers: Value) -> Vec<(Severity, String)> {
    problems_of(json!({"issuers": issuers}))
}

fn problems_of(root: Value) -> Vec<(Severity, String)> {
    let root: raw::Root = serde_json::from_value(root).unwrap();
    let mut resolver = Resolver::new(Path::new("/"));
    let resolved = Issuers::resolve(&root, &mut resolver, None, &context());
    resolved.accepts(&[], &At::root().key("routes"), &mut resolver);
    resolver.report.problems().iter().map(|problem| (problem.severity, problem.at.to_string())).collect()
}

fn good(changes: Value) -> Value {
    changed(json!({"name": "main", "issuer": "https://idp.example", "audiences": ["doorward"]}), &changes)
}

/// A name, changes to a good issuer, and the severity and place of the first problem that they make, if any.
type Row = (&'static str, Value, Option<(Severity, &'static str)>);

fn assert_reported(rows: impl IntoIterator<Item = Row>) {
    for (what, changes, expected) in rows {
        let found = problems(json!([good(changes)]));
        match expected {
            None => assert_eq!(found, [], "{what}"),
            Some((severity, place)) => {
                assert_eq!(found.first(), Some(&(severity, format!("/issuers/0/{place}"))), "{what}");
            }
        }
    }
}

fn secret() -> NamedTempFile {
    let secret = NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s").unwrap();
    secret
}

fn client(secret: &NamedTempFile) -> Value {
    json!({"id": "d", "secret": {"file": secret.path()}})
}

#[tokio::test]
async fn an_issuer_is_the_https_url_that_its_provider_names() {
    use Severity::Error;
    assert_reported([
        ("twin", json!({}), None),
        ("http", json!({"issuer": "http://idp.example"}), Some((Error, "issuer"))),
        ("http on loopback", json!({"issuer": "http://127.0.0.1:9"}), None),
        ("a query", json!({"issuer": "https://idp.example/op?x=1"}), Some((Error, "issuer"))),
        ("an empty query", json!({"issuer": "https://idp.example/op?"}), Some((Error, "issuer"))),
        ("a blank behind", json!({"issuer": "https://idp.example/op "}), Some((Error, "issuer"))),
        ("a blank before", json!({"issuer": " https://idp.example"}), Some((Error, "issuer"))),
        ("a line break within", json!({"issuer": "https://idp.example/a\nb"}), Some((Error, "issuer"))),
        ("a slash behind", json!({"issuer": "https://idp.example/op/"}), None),
    ]);
}

#[tokio::test]
async fn names_that_could_be_those_of_others_are_reported() {
    use Severity::{Error, Warning};
    assert_reported([
        ("the name of certificates", json!({"name": "break-glass"}), Some((Error, "name"))),
        ("the name of nobody", json!({"name": "anonymous"}), Some((Error, "name"))),
        ("almost", json!({"name": "break-glass-2"}), None),
        ("claim pointer", json!({"claims": {"groups": "/a~2"}}), Some((Error, "claims/groups"))),
        ("attacks:Z3", json!({"username": "{claim:/a}:{claim:/b}"}), Some((Error, "username"))),
        ("no variable", json!({"username": "bot"}), Some((Error, "username"))),
        ("system:", json!({"username": "system:{sub}"}), Some((Error, "username"))),
        ("mutable name", json!({"username": "{claim:/email}"}), Some((Warning, "username"))),
    ]);
}

#[tokio::test]
async fn conditions_that_would_admit_tokens_for_others_are_reported() {
    use Severity::{Error, Warning};
    assert_reported([
        ("no audience", json!({"audiences": []}), Some((Error, "audiences"))),
        ("empty audience", json!({"audiences": ["doorward", ""]}), Some((Error, "audiences/1"))),
        ("attacks:Z2", json!({"audiences": ["api://default"]}), Some((Warning, "audiences"))),
        ("attacks:Z2 listed", json!({"audiences": ["api://default"], "clients": [{"id": "a"}]}), None),
        (
            "audience of the API server",
            json!({"preset": "kubernetes", "audiences": ["https://kubernetes.default.svc.cluster.local"]}),
            Some((Error, "audiences")),
        ),
        ("no algorithm", json!({"algorithms": []}), Some((Error, "algorithms"))),
        ("no typ", json!({"token_types": []}), Some((Error, "token_types"))),
        ("no value", json!({"required_claims": {"tid": []}}), Some((Error, "required_claims"))),
        (
            "oauth:28",
            json!({"issuer": "https://token.actions.githubusercontent.com", "preset": "github_actions"}),
            Some((Error, "required_claims")),
        ),
        (
            "oauth:28 twin",
            json!({
                "issuer": "https://token.actions.githubusercontent.com", "preset": "github_actions",
                "required_claims": {"repository_owner_id": ["1"]},
            }),
            None,
        ),
        ("skew", json!({"clock_skew": "61s"}), Some((Error, "clock_skew"))),
        ("skew at most", json!({"clock_skew": "60s"}), None),
    ]);
}

#[tokio::test]
async fn clients_that_could_not_be_told_apart_are_reported() {
    use Severity::{Error, Warning};
    assert_reported([
        ("a client", json!({"clients": [{"id": "a", "subject": "x"}]}), None),
        ("a client that is nobody", json!({"clients": [{"id": "a", "subject": ""}]}), Some((Error, "clients"))),
        ("a client without a name", json!({"clients": [{"id": ""}]}), Some((Error, "clients"))),
        ("client twice", json!({"clients": [{"id": "a"}, {"id": "a"}]}), Some((Error, "clients"))),
        ("none listed", json!({"listed_clients_only": true}), Some((Warning, "clients"))),
    ]);
}

#[tokio::test]
async fn a_login_of_people_whose_tokens_count_as_those_of_others_is_reported() {
    use Severity::{Error, Warning};
    let secret = secret();
    let client = client(&secret);
    assert_reported([
        ("attacks:Z5 a login of nobody knows whom", json!({"login": {"client": client}}), Some((Error, "login"))),
        (
            "ID tokens pass for access tokens",
            json!({"login": {"client": client, "kind": "human"}, "audiences": ["d"], "token_types": ["", "at+jwt"]}),
            Some((Warning, "token_types")),
        ),
        (
            "ID tokens of a preset pass for access tokens",
            json!({"login": {"client": client}, "audiences": ["d"], "preset": "okta"}),
            Some((Warning, "token_types")),
        ),
        (
            "ID tokens of a preset have the type of its access tokens",
            json!({"login": {"client": client}, "audiences": ["d"], "preset": "auth0"}),
            Some((Warning, "token_types")),
        ),
        (
            "a preset whose tokens say what they are",
            json!({"login": {"client": client}, "audiences": ["d"], "preset": "keycloak"}),
            None,
        ),
        ("another one", json!({"login": {"client": client}, "audiences": ["d"], "preset": "entra"}), None),
        (
            "access tokens have a type",
            json!({"login": {"client": client, "kind": "human"}, "audiences": ["d"], "token_types": ["at+jwt"]}),
            None,
        ),
        (
            "access tokens have an audience",
            json!({"login": {"client": client, "kind": "human"}, "token_types": [""]}),
            None,
        ),
        ("people log in", json!({"login": {"client": client, "kind": "human"}}), None),
        ("people have its tokens", json!({"login": {"client": client}, "kind": "human"}), None),
        (
            "people use that client",
            json!({"login": {"client": client}, "clients": [{"id": "d", "kind": "human"}]}),
            None,
        ),
        (
            "nothing is told of that client",
            json!({"login": {"client": client}, "clients": [{"id": "d"}, {"id": "x", "kind": "human"}]}),
            Some((Error, "login")),
        ),
    ]);
}

#[tokio::test]
async fn settings_of_introspection_outside_their_limits_are_reported() {
    use Severity::Error;
    let secret = secret();
    let client = client(&secret);
    assert_reported([
        ("introspection", json!({"introspection": {"mode": "opaque", "client": client}}), None),
        (
            "no secret",
            json!({"introspection": {"mode": "opaque", "client": {"id": "d"}}}),
            Some((Error, "introspection/client")),
        ),
        (
            "secret missing",
            json!({"introspection": {"mode": "opaque", "client": {"id": "d", "secret": {"file": "/none"}}}}),
            Some((Error, "introspection/client/secret")),
        ),
        (
            "no proof",
            json!({"introspection": {"mode": "opaque", "client": {"id": "d", "method": "none"}}}),
            Some((Error, "introspection/client")),
        ),
        (
            "cache",
            json!({"introspection": {"mode": "opaque", "client": client, "cache": "61s"}}),
            Some((Error, "introspection/cache")),
        ),
        (
            "timeout",
            json!({"introspection": {"mode": "opaque", "client": client, "timeout": "11s"}}),
            Some((Error, "introspection/timeout")),
        ),
        (
            "no try",
            json!({"introspection": {"mode": "opaque", "client": client, "tries": 0}}),
            Some((Error, "introspection/tries")),
        ),
        (
            "tries",
            json!({"introspection": {"mode": "opaque", "client": client, "tries": 6}}),
            Some((Error, "introspection/tries")),
        ),
        (
            "no negative answer is used",
            json!({"introspection": {"mode": "opaque", "client": client, "negative_cache": "0"}}),
            Some((Error, "introspection/negative_cache")),
        ),
        (
            "negative answers are used for too long",
            json!({"introspection": {"mode": "opaque", "client": client, "negative_cache": "61s"}}),
            Some((Error, "introspection/negative_cache")),
        ),
        (
            "a breaker that opens without a failure",
            json!({"introspection": {"mode": "opaque", "client": client, "circuit_breaker": {"failures": 0}}}),
            Some((Error, "introspection/circuit_breaker/failures")),
        ),
        (
            "all of them otherwise",
            json!({"introspection": {
                "mode": "opaque", "client": client, "negative_cache": "1s", "circuit_breaker": {"failures": 1, "pause": "1m"},
            }}),
            None,
        ),
        ("tries at most", json!({"introspection": {"mode": "opaque", "client": client, "tries": 5}}), None),
        ("no introspection", json!({"introspection": {"mode": "never", "client": {"id": "d"}}}), None),
        (
            "review without cluster",
            json!({"token_review": {"upstream": "x", "bearer": {"file": secret.path()}}}),
            Some((Error, "token_review")),
        ),
    ]);
}

#[tokio::test]
async fn settings_of_keys_outside_their_limits_are_reported() {
    use Severity::Error;
    let secret = secret();
    assert_reported([
        ("fetches without time", json!({"keys": {"timeout": "49ms"}}), Some((Error, "keys/timeout"))),
        ("endless fetches", json!({"keys": {"timeout": "11s"}}), Some((Error, "keys/timeout"))),
        (
            "unknown within the cool-down",
            json!({"keys": {"negative_cache": "29s"}}),
            Some((Error, "keys/negative_cache")),
        ),
        ("unknown for ever", json!({"keys": {"negative_cache": "2h"}}), Some((Error, "keys/negative_cache"))),
        ("fetches otherwise", json!({"keys": {"timeout": "10s", "negative_cache": "30s"}}), None),
        ("a file for a folder", json!({"keys": {"keep_in": secret.path()}}), Some((Error, "keys/keep_in"))),
        ("key set in clear text", json!({"keys": {"url": "http://idp.example/jwks"}}), Some((Error, "keys/url"))),
    ]);
}

#[tokio::test]
async fn issuers_that_could_be_mixed_up_are_refused() {
    let two = |changes| problems(json!([good(json!({})), good(changes)]));
    assert_eq!(two(json!({"name": "b", "issuer": "https://b.example"})), []);
    let identifier = two(json!({"name": "b"}));
    assert_eq!(identifier.first().unwrap().1, "/issuers/1/issuer");
    // peers:D9.
    let plain = json!([
        good(json!({"username": "{sub}"})),
        good(json!({"name": "b", "issuer": "https://b.example", "username": "{sub}"})),
    ]);
    assert_eq!(problems(plain), [(Severity::Error, "/issuers/1/username".to_owned())]);
}

/// attacks:Z35.
#[tokio::test]
async fn a_route_has_at_most_one_issuer_for_opaque_tokens() {
    let secret = secret();
    let introspection = json!({"mode": "opaque", "client": {"id": "d", "secret": {"file": secret.path()}}});
    let two = json!([
        good(json!({"introspection": introspection})),
        good(json!({"name": "b", "issuer": "https://b.example", "introspection": introspection})),
    ]);
    assert_eq!(problems(two), [(Severity::Error, "/routes".to_owned())]);
}

#[tokio::test]
async fn a_route_may_name_an_issuer_where_people_only_log_in() {
    let github = json!({
        "name": "hub", "issuer": "https://github.com", "preset": "github_oauth", "tenant": "acme",
        "login": {"client": {"id": "d", "secret": {"file": "/dev/null"}}},
    });
    let root: raw::Root = serde_json::from_value(json!({"issuers": [good(json!({})), github]})).unwrap();
    let mut resolver = Resolver::new(Path::new("/"));
    let issuers = Issuers::resolve(&root, &mut resolver, None, &context());
    resolver.report = Report::default();
    for (named, tokens, logins) in [
        (&["hub"][..], 0, (true, false)),
        (&["main"], 1, (false, true)),
        (&["main", "hub"], 1, (true, true)),
        (&[], 1, (true, true)),
    ] {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let accepts = issuers.accepts(&named, &At::root(), &mut resolver);
        assert_eq!(accepts.issuers().len(), tokens, "{named:?}");
        assert_eq!((accepts.takes_logins_at("hub"), accepts.takes_logins_at("main")), logins, "{named:?}");
    }
    assert!(resolver.report.problems().is_empty(), "{:?}", resolver.report.problems());
}

#[tokio::test]
async fn an_issuer_whose_people_could_be_named_in_a_trail_with_pseudonyms_is_warned_about() {
    let secret = secret();
    let login = json!({"client": client(&secret), "kind": "human"});
    let key = json!({"pseudonym_key": {"env": "KEY"}});
    for (what, changes, audit, warned) in [
        ("unlisted clients", json!({}), &key, true),
        ("one is listed", json!({"clients": [{"id": "cli", "kind": "human"}]}), &key, true),
        ("workloads", json!({"kind": "workload"}), &key, true),
        ("all are people", json!({"kind": "human"}), &key, false),
        (
            "listed ones only",
            json!({"clients": [{"id": "cli", "kind": "human"}], "listed_clients_only": true}),
            &key,
            false,
        ),
        ("no bearer tokens", json!({"audiences": []}), &key, false),
        ("nobody signs in", json!({"login": null}), &key, false),
        ("names in clear", json!({}), &json!({}), false),
    ] {
        let issuer = changed(good(json!({"login": login})), &changes);
        let found = problems_of(json!({"issuers": [issuer], "audit": audit}));
        let is_warned = found.contains(&(Severity::Warning, "/issuers/0/clients".to_owned()));
        assert_eq!(is_warned, warned, "{what}: {found:?}");
    }
}

/// One entry for both, as was advised, would refuse the tokens of one of them: each has keys of its own.
#[tokio::test]
async fn two_clusters_with_one_issuer_are_told_to_give_one_of_them_another() {
    for (preset, help) in [
        (json!("kubernetes"), "another `--service-account-issuer`"),
        (json!(null), "put the audiences of both into one entry"),
    ] {
        let issuer = |name: &str, preset: &Value| json!({"name": name, "preset": preset, "issuer": "https://k8s.example", "audiences": ["doorward"]});
        let issuers = [issuer("east", &json!("kubernetes")), issuer("west", &preset)];
        let root: raw::Root = serde_json::from_value(json!({"issuers": issuers})).unwrap();
        let mut resolver = Resolver::new(Path::new("/"));
        Issuers::resolve(&root, &mut resolver, None, &context());
        let mut problems = resolver.report.problems().iter();
        let same = problems.find(|problem| problem.message.contains("`east` is the same issuer")).unwrap();
        assert!(same.help.as_deref().is_some_and(|said| said.contains(help)), "{same:?}");
    }
}
