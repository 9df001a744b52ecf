//! Doorward as a token issuer, as far as no cluster is needed: what it publishes, which tokens other than those of pods
//! it exchanges, and how it refuses. Tokens for tasks are tested in `cluster/tokens.rs`.

mod agents;
mod clocks;
mod introspection;
mod keys;
mod lifetimes;
pub mod room;
mod settings;
mod trail;
mod trouble;

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::{
    fixture::Change,
    harness::{Answer, Authority, Doorward, EXCHANGE, Issuer, Upstream, exchange_form, part, told, until, verify},
    token_command::Step,
};

const DOOR: &str = "https://doorward.test";
const TARGET: &str = "https://target.test";

/// Doorward with an issuer of people, one of CI jobs, and an upstream that accepts Doorward's own tokens.
pub struct World {
    pub doorward: Doorward,
    pub people: Issuer,
    ci: Issuer,
    upstream: Upstream,
    /// Its external host.
    host: &'static str,
}

const RULES: &str = "
  - id: deploy-from-main
    on: {token: {audiences: ['https://target.test'], scopes: [deploy]}}
    who: {issuers: [ci], repositories: ['github:7'], claims: {environment: [prod], ref: [refs/heads/main]}}
    do: allow
  - id: agents
    on: {token: {audiences: ['https://target.test'], scopes: [plan, 'read:*']}}
    who: {issuers: [people], clients: [planner], on_behalf_of: {groups: [dev]}}
    do: allow
  - id: no-mallory
    why: Mallory has left.
    on: {token: {}}
    who: {issuers: [people], subjects: [mallory]}
    do: deny
  - {id: use, on: {routes: [web]}, who: {issuers: [own], kind: agent, scopes: [plan]}, do: allow}
  - {id: everybody, on: {routes: [web]}, who: {issuers: [people], groups: [dev]}, do: allow}
";

impl World {
    async fn start() -> Self {
        Self::with(|yaml| yaml).await
    }

    pub async fn with(change: impl FnOnce(String) -> String) -> Self {
        Self::with_files(change, &[]).await
    }

    /// `change` edits the configuration; `files` are placed beside it.
    pub async fn with_files(change: impl FnOnce(String) -> String, files: &[(&str, &str)]) -> Self {
        let (people, ci, upstream) = (Issuer::start().await, Issuer::start().await, Upstream::start().await);
        let yaml = format!(
            "
listeners: [{{name: public, address: 127.0.0.1:0}}]
external_host: doorward.test
issuers:
  - {{name: people, issuer: '{people}', audiences: ['https://doorward.test'], kind: human,
     clients: [{{id: planner, kind: agent, subject: planner-account}}, {{id: other, kind: agent}}]}}
  - {{name: ci, issuer: '{ci}', preset: github_actions, audiences: ['https://doorward.test'], algorithms: [ES256],
     token_types: [at+jwt], required_claims: {{repository_owner_id: ['1']}}}}
  - {{name: own, preset: doorward, audiences: ['https://target.test']}}
upstreams: [{{name: web, url: '{upstream}'}}]
routes: [{{name: web, kind: http, hosts: [localhost], schemes: [bearer], issuers: [people, own], upstream: web}}]
rules:{RULES}
tokens:
  exchange: [{{issuer: people}}, {{issuer: ci}}]
  resource_servers:
    - {{id: target, secret: {{file: target}}, audiences: ['https://target.test']}}
    - {{id: other, secret: {{file: other}}, audiences: ['https://other.test']}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
",
            people = people.url(),
            ci = ci.url(),
            upstream = upstream.url(),
        );
        let dir = tempfile::tempdir().unwrap();
        for server in ["target", "other"] {
            std::fs::write(dir.path().join(server), secret(server)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let yaml = change(yaml);
        let host = if yaml.contains("external_host: localhost") { "localhost" } else { "doorward.test" };
        let doorward = Doorward::start_with_faults(dir, &yaml).await;
        let world = Self { doorward, people, ci, upstream, host };
        world.wait_for_keys().await;
        world
    }

    /// Waits until the keys of both issuers are fetched.
    async fn wait_for_keys(&self) {
        let audience = json!({"aud": format!("https://{}", self.host)});
        for token in [self.person("alice", &audience), self.job(&audience)] {
            until(async || self.exchange(&token, "none").await.status != 503).await;
        }
    }

    /// The user name of a person here.
    pub fn username(&self, subject: &str) -> String {
        format!("{}#{subject}", self.people.url())
    }

    /// A person's token, with further claims.
    pub fn person(&self, subject: &str, more: &Value) -> String {
        let mut claims = self.people.claims(subject, &["dev"]);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.people.sign(&claims)
    }

    /// The token of a CI job, with further claims.
    pub fn job(&self, more: &Value) -> String {
        let mut claims = self.ci.claims("repo:acme/app:environment:prod", &[]);
        let own =
            json!({"repository_id": "7", "repository_owner_id": "1", "environment": "prod", "ref": "refs/heads/main"});
        for more in [&own, more] {
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        self.ci.sign(&claims)
    }

    pub async fn ask(&self, more: &[(&str, &str)]) -> Answer {
        let host = format!("Host: {}", self.host);
        self.doorward.send(&[EXCHANGE[0], &host, EXCHANGE[2]], exchange_form(more).as_bytes()).await
    }

    pub async fn exchange(&self, subject_token: &str, scope: &str) -> Answer {
        self.ask(&[("subject_token", subject_token), ("audience", TARGET), ("scope", scope)]).await
    }

    async fn kids(&self) -> Vec<String> {
        kids(&self.doorward.get("/oauth2/jwks", &["Host: doorward.test"]).await)
    }
}

/// The ids of the published keys.
fn kids(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let keys = answer.json()["keys"].as_array().unwrap().clone();
    keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

/// The secret of a resource server.
fn secret(of: &str) -> String {
    format!("the secret of {of}")
}

/// The introspection response that a resource server gets for a token.
async fn introspected(world: &World, server: &str, token: &str) -> Value {
    let secret: String = form_urlencoded::byte_serialize(secret(server).as_bytes()).collect();
    let basic = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{server}:{secret}")));
    let lines = ["POST /oauth2/introspect HTTP/1.1", &format!("Host: {}", world.host), EXCHANGE[2], &basic];
    world.doorward.send(&lines, format!("token={token}").as_bytes()).await.json()
}

/// `HH:MM` of a minute since the epoch, as the end or the beginning of a window.
pub fn clock(minute: u64, midnight: &str) -> String {
    match minute % (24 * 60) {
        0 => midnight.to_owned(),
        of_day => format!("{:02}:{:02}", of_day / 60, of_day % 60),
    }
}

#[tokio::test]
async fn published_metadata_follows_the_standards_and_the_keys_survive_a_restart() {
    let mut world = World::start().await;
    for path in ["/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"] {
        let answer = world.doorward.get(path, &["Host: doorward.test"]).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
        let document = answer.json();
        // The whole document: what is not there, such as a way to log in, is not offered.
        assert_eq!(
            document,
            json!({
                "issuer": DOOR,
                "token_endpoint": "https://doorward.test/oauth2/token",
                "revocation_endpoint": "https://doorward.test/oauth2/revoke",
                "introspection_endpoint": "https://doorward.test/oauth2/introspect",
                "jwks_uri": "https://doorward.test/oauth2/jwks",
                "grant_types_supported": ["urn:ietf:params:oauth:grant-type:token-exchange"],
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
                "token_endpoint_auth_methods_supported": ["none"],
                "revocation_endpoint_auth_methods_supported": ["none"],
                "introspection_endpoint_auth_methods_supported": ["client_secret_basic"],
            }),
            "{path}"
        );
        // Not on the hosts of the applications.
        assert_ne!(world.doorward.get(path, &["Host: localhost"]).await.status, 200, "{path}");
    }
    let kids = world.kids().await;
    assert_eq!(kids.len(), 2, "one signs and one will");
    for (method, path, status) in [
        ("GET", "/oauth2/token", 405),
        ("PUT", "/oauth2/token", 405),
        ("POST", "/oauth2/jwks", 405),
        ("GET", "/oauth2/revoke", 405),
    ] {
        let answer = world.doorward.send(&[&format!("{method} {path} HTTP/1.1"), "Host: doorward.test"], b"").await;
        assert_eq!(answer.status, status, "{method} {path}");
    }
    world.doorward = world.doorward.kill_and_restart().await;
    world.wait_for_keys().await;
    assert_eq!(world.kids().await, kids);
}

#[tokio::test]
async fn a_job_of_ci_gets_a_token_on_the_conditions_of_its_rule() {
    let world = World::start().await;
    let answer = world.exchange(&world.job(&json!({})), "deploy").await;
    let own = answer.token();
    let claims = part(&own, 1);
    assert_eq!((&claims["iss"], &claims["aud"], &claims["kind"]), (&json!(DOOR), &json!(TARGET), &json!("workload")));
    assert_eq!(claims["origin"], json!({"issuer": "ci", "sub": "repo:acme/app:environment:prod"}));
    assert!(claims.get("act").is_none() && claims.get("doorward.dev/run").is_none(), "{claims:#}");
    assert_eq!(part(&own, 0)["typ"], "at+jwt");
    for (what, more) in [
        ("another environment", json!({"environment": "staging"})),
        ("another branch", json!({"ref": "refs/heads/feature"})),
        ("another repository", json!({"repository_id": "8"})),
        ("no environment", json!({"environment": null})),
    ] {
        let answer = world.exchange(&world.job(&more), "deploy").await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_target")), "{what}");
    }
    // Never longer than the token it was given for.
    let soon = world.ci.claims("", &[])["iat"].as_u64().unwrap() + 100;
    let answer = world.exchange(&world.job(&json!({"exp": soon})), "deploy").await;
    assert!(answer.json()["expires_in"].as_i64().unwrap() <= 100, "{}", answer.text());
}

#[tokio::test]
async fn a_token_for_one_of_our_routes_opens_no_other() {
    let world = World::with(|yaml| {
        yaml.change("doorward, audiences: ['https://target.test']", "doorward, audiences: ['https://target.test', 'https://k8s.test']")
            .change("issuers: [people, own], upstream: web}", "issuers: [people, own], audiences: ['https://doorward.test', 'https://target.test'], upstream: web}, \
                {name: k8s, kind: http, hosts: [k8s.test], schemes: [bearer], issuers: [own], audiences: ['https://k8s.test'], upstream: web}")
            .change("on: {routes: [web]}, who: {issuers: [own], kind: agent, scopes: [plan]}", "on: {routes: [web, k8s]}, who: {issuers: [own]}")
    })
    .await;
    let bearer = format!("Authorization: Bearer {}", world.exchange(&world.job(&json!({})), "deploy").await.token());
    for (host, status, forwarded) in [("k8s.test", 401, 0), ("localhost", 200, 1)] {
        let answer = world.doorward.get("/", &[&format!("Host: {host}"), &bearer]).await;
        assert_eq!((answer.status, world.upstream.requests().len()), (status, forwarded), "{host}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_job_of_gitlab_gets_a_token_on_the_conditions_of_its_rule() {
    let change = |yaml: String| {
        yaml.change("preset: github_actions", "preset: gitlab_ci")
            .change("required_claims: {repository_owner_id: ['1']}", "required_claims: {namespace_id: ['1']}")
            .change(
                "repositories: ['github:7'], claims: {environment: [prod], ref: [refs/heads/main]}",
                "repositories: ['gitlab:7'], claims: {environment: [prod], ref: [main], ref_type: [branch], ref_protected: ['true']}",
            )
    };
    let world = World::with(change).await;
    let job = |more: Value| {
        let mut claims = world.ci.claims("project_path:acme/app:ref_type:branch:ref:main", &[]);
        let own = json!({"project_id": "7", "project_path": "acme/app", "namespace_id": "1", "pipeline_source": "push", "environment": "prod",
            "ref": "main", "ref_type": "branch", "ref_protected": "true"});
        for more in [&own, &more] {
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        }
        world.ci.sign(&claims)
    };
    let claims = part(&world.exchange(&job(json!({})), "deploy").await.token(), 1);
    assert_eq!(claims["kind"], "workload", "{claims:#}");
    for (what, more, error) in [
        ("another project", json!({"project_id": "8"}), "invalid_target"),
        ("a branch that nobody protects", json!({"ref_protected": "false"}), "invalid_target"),
        ("a tag of that name", json!({"ref_type": "tag"}), "invalid_target"),
        ("another environment", json!({"environment": "staging"}), "invalid_target"),
        ("another group", json!({"namespace_id": "2"}), "invalid_request"),
    ] {
        let answer = world.exchange(&job(more), "deploy").await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!(error)), "{what}: {}", answer.text());
    }
}

#[tokio::test]
async fn token_errors_name_the_expected_and_the_actual_value() {
    let world = World::start().await;
    let good = world.job(&json!({}));
    for (what, subject_token, error, said) in [
        (
            "audience",
            world.job(&json!({"aud": "https://other.test"})),
            "invalid_request",
            "is `https://other.test`; `https://doorward.test` is expected",
        ),
        ("expired", world.job(&json!({"exp": 1_700_000_000, "iat": 1_699_999_900})), "invalid_request", "expired"),
        ("issuer", world.job(&json!({"iss": "https://evil.test"})), "invalid_request", "`https://evil.test`"),
        (
            "signature",
            format!("{}AAAA", good.rsplit_once('.').unwrap().0.to_owned() + "."),
            "invalid_request",
            "subject_token",
        ),
        (
            "one of ours",
            world.exchange(&good, "deploy").await.token(),
            "invalid_request",
            "a token of Doorward's own is not exchanged",
        ),
        ("opaque", "opaque".to_owned(), "invalid_request", "subject_token"),
    ] {
        let answer = world.exchange(&subject_token, "deploy").await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some(error)), "{what}: {}", answer.text());
        let description = answer.json()["error_description"].as_str().unwrap().to_owned();
        assert!(description.contains(said), "{what}: {description}");
        assert!(!description.contains(&subject_token), "{what}");
    }
    let (scope, target) = (
        world.exchange(&good, "admin").await,
        world.ask(&[("subject_token", &good), ("audience", "https://x.test")]).await,
    );
    assert_eq!((&scope.json()["error"], &target.json()["error"]), (&json!("invalid_scope"), &json!("invalid_target")));
    let of_other = |record: &Value| record.to_string().contains("https://other.test");
    let audited = world.doorward.records(1, of_other).await;
    assert!(audited.iter().all(|record| !record.to_string().contains(&good)));
}

#[tokio::test]
async fn an_independent_verifier_accepts_the_tokens_and_the_metadata() {
    let world = World::start().await;
    let own = world.exchange(&world.job(&json!({})), "deploy").await.token();
    let said = verify(world.doorward.address("public").port(), DOOR, TARGET, &own).await;
    assert_eq!(said["scope"], "deploy", "{said}");
    assert_eq!(said["typ"], "at+jwt");
}

#[tokio::test]
async fn the_command_for_steps_gets_its_token_here() {
    let world = World::with(|yaml| yaml.change("doorward.test", "localhost")).await;
    let server = format!("http://localhost:{}", world.doorward.address("public").port());
    let job = world.job(&json!({"aud": "https://localhost"}));
    let step = Step::new(&server, &job);
    let output =
        step.run(&["--audience", TARGET, "--scope", "deploy", "--", "sh", "-c", "cat $DOORWARD_TOKEN_FILE"]).await;
    let own = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(part(&own, 1)["scope"], "deploy");
    // It ended with the command.
    let bearer = format!("Authorization: Bearer {own}");
    let answer = world.doorward.get("/", &["Host: localhost", &bearer]).await;
    assert_eq!((answer.status, answer.reason()), (401, "token_revoked".to_owned()), "{}", answer.text());
    let refused = step.run(&["--audience", "https://other.test"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("invalid_target: a token for `https://other.test`"));
}

#[tokio::test]
async fn the_examples_decide_as_their_tests_say() {
    for name in ["workload-tokens", "onward"] {
        let dir = tempfile::tempdir().unwrap();
        let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("config/examples/{name}.yaml"));
        std::fs::copy(example, dir.path().join("doorward.yaml")).unwrap();
        for secret in ["token", "sts-secret"] {
            std::fs::write(dir.path().join(secret), "a-token").unwrap();
        }
        std::fs::write(dir.path().join("ca.crt"), Authority::new().pem()).unwrap();
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1().unwrap();
        let rsa: Pkcs8V1Der<'_> = RsaKeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
        for (key, der) in [("signing-p256.pem", p256.as_ref()), ("signing-rsa.pem", rsa.as_ref())] {
            let der = BASE64_STANDARD.encode(der);
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n");
            std::fs::write(dir.path().join(key), pem).unwrap();
        }
        for command in ["check", "test"] {
            let (code, said) = told(dir.path(), &[command, "doorward.yaml"]).await;
            assert_eq!(code, Some(0), "{name}: {command}: {said}");
        }
    }
}

#[tokio::test]
async fn each_route_publishes_its_issuers_and_its_challenge_links_to_them() {
    // Signs nothing, so that no token could come from it.
    const GITHUB: &str =
        "  - {name: github, preset: github_oauth, tenant: acme, login: {client: {id: door, secret: {file: target}}}}\n";
    let more = "
  - {name: api, kind: http, hosts: [localhost], paths: ['/api/*'], schemes: [bearer], issuers: [own], upstream: web}
  - {name: pages, kind: http, hosts: [pages.localhost], schemes: [anonymous], upstream: web}
rules:";
    let world = World::with(|yaml| {
        let routes = yaml
            .change("routes: [{name: web,", "routes:\n  - {name: web,")
            .change("upstream: web}]\n", "upstream: web}\n")
            .change("127.0.0.1:0}]", "127.0.0.1:0, trusted_proxies: [127.0.0.1/32]}]");
        routes.change("rules:", more.trim_start_matches('\n')).change("upstreams: [", &format!("{GITHUB}upstreams: ["))
    })
    .await;
    let metadata = async |host: &str, path: &str| {
        let path = format!("/.well-known/oauth-protected-resource{path}");
        world.doorward.get(&path, &[&format!("Host: {host}"), "X-Forwarded-Proto: https"]).await
    };
    for (path, resource, servers, scopes) in [
        ("", "", json!([world.people.url()]), Value::Null),
        ("/api", "/api", json!([DOOR]), Value::Null),
        ("/api/v1", "/api/v1", json!([DOOR]), Value::Null),
    ] {
        for authority in ["localhost", "localhost:8443"] {
            let answer = metadata(authority, path).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
            let (said, resource) = (answer.json(), format!("https://{authority}{resource}"));
            assert_eq!((&said["resource"], &said["authorization_servers"]), (&json!(resource), &servers), "{said:#}");
            assert_eq!(said["scopes_supported"], scopes, "{said:#}");
        }
    }
    let whole = metadata("doorward.test", "").await.json();
    assert_eq!(whole["authorization_servers"], json!([world.people.url()]), "{whole:#}");
    // Where no token is accepted, the path belongs to the upstream.
    assert_eq!(metadata("pages.localhost", "").await.status, 403);
    // Clients refuse metadata that names another address than the one they use (RFC 9728 section 3.3).
    for (path, leads) in [("/", ""), ("/api/v1", "/api")] {
        for (scheme, authority) in
            [("https", "localhost"), ("https", "localhost:8443"), ("http", "localhost:8080"), ("http", "localhost")]
        {
            let forwarded = format!("X-Forwarded-Proto: {scheme}");
            let answer = world.doorward.get(path, &[&format!("Host: {authority}"), &forwarded]).await;
            let challenge = answer.header("www-authenticate").unwrap();
            let address = format!("{scheme}://{authority}/.well-known/oauth-protected-resource{leads}");
            let address = format!("resource_metadata=\"{address}\"");
            assert!(answer.status == 401 && challenge.contains(&address), "{path}: {challenge}");
        }
    }
}
