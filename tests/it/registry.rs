//! Doorward as the token server of a container registry: in front of distribution's own registry.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    cluster::programs::{self, Program},
    fixture::Change,
    harness::{Answer, Doorward, Raw, found, now, part, settled, until},
    issuing::{World, room::Holder},
};

pub const SERVICE: &str = "registry.test";

const RULES: &str = "
  - id: images-of-acme
    on: {token: {audiences: [registry.test], scopes: ['push:acme/app', 'pull:acme/*']}}
    who: {issuers: [people], groups: [dev]}
    do: allow
  - id: not-mallory
    why: Mallory has left.
    on: {token: {audiences: [registry.test], scopes: ['*']}}
    who: {issuers: [people], subjects: [mallory]}
    do: deny
";

async fn world() -> World {
    world_with(|yaml| yaml).await
}

async fn world_with(change: impl FnOnce(String) -> String) -> World {
    World::with_files(
        |yaml| {
            change(yaml).change("\nrules:", &format!("\nrules:{RULES}")).change(
                "tokens:\n",
                "tokens:\n  registries: [{service: registry.test}, {service: other.test, lifetime: 1m}]\n",
            )
        },
        &[],
    )
    .await
}

/// Asks as a registry client does.
async fn ask(world: &World, query: &str, password: Option<&str>) -> Answer {
    ask_at(&world.doorward, query, password).await
}

pub async fn ask_at(doorward: &Doorward, query: &str, password: Option<&str>) -> Answer {
    let line = format!("/oauth2/registry?{query}");
    let basic = password
        .map(|password| format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("whoever:{password}"))));
    let mut headers = vec!["Host: doorward.test"];
    headers.extend(basic.as_deref());
    doorward.get(&line, &headers).await
}

fn given(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["token"], body["access_token"]);
    assert!(
        body["issued_at"].is_string() && body["expires_in"].as_i64().is_some_and(|seconds| seconds >= 60),
        "{body}"
    );
    body["token"].as_str().unwrap().to_owned()
}

fn access(token: &str) -> Value {
    part(token, 1)["access"].clone()
}

#[tokio::test]
async fn a_client_gets_of_what_it_asks_for_what_rules_give() {
    let world = world().await;
    let alice = world.person("alice", &json!({"aud": "https://doorward.test"}));
    let repository = |name: &str, actions: &[&str]| json!({"type": "repository", "name": name, "actions": actions});
    for (query, expected) in [
        ("scope=repository:acme/app:pull,push", json!([repository("acme/app", &["pull", "push"])])),
        ("scope=repository:acme/base:pull,push", json!([repository("acme/base", &["pull"])])),
        // As skopeo asks for a deletion.
        ("scope=repository:acme/app:*", json!([repository("acme/app", &["pull", "push"])])),
        (
            "scope=repository:acme/app:push&scope=repository:acme/base:pull&scope=repository:evil/x:pull",
            json!([repository("acme/base", &["pull"]), repository("acme/app", &["push"])]),
        ),
        ("account=alice", json!([])),
    ] {
        let token = given(&ask(&world, &format!("service={SERVICE}&{query}"), Some(&alice)).await);
        assert_eq!(access(&token), expected, "{query}");
        let claims = part(&token, 1);
        assert_eq!((&claims["iss"], &claims["aud"]), (&json!("https://doorward.test"), &json!(SERVICE)));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 300);
    }
}

#[tokio::test]
async fn a_refusal_says_what_clients_of_registries_show() {
    let world = world().await;
    let person = |subject: &str, audience: &str| world.person(subject, &json!({"aud": audience}));
    let (alice, mallory) = (person("alice", "https://doorward.test"), person("mallory", "https://doorward.test"));
    let elsewhere = person("alice", "https://elsewhere.test");
    let bob = world.person("bob", &json!({"aud": "https://doorward.test", "groups": ["guests"]}));
    let login = format!("service={SERVICE}&account=x");
    let push = format!("service={SERVICE}&scope=repository:acme/base:push");
    let pull = format!("service={SERVICE}&scope=repository:acme/app:pull");
    let all = format!("service={SERVICE}&scope=repository:evil/x:*");
    let catalog = format!("service={SERVICE}&scope=registry:catalog:*");
    for (what, query, password, status, code, said) in [
        ("nothing", &*pull, None, 401, "UNAUTHORIZED", "log in first: `docker login"),
        ("a password that is none", &pull, Some("hunter2"), 401, "UNAUTHORIZED", "password: "),
        ("for somebody else", &pull, Some(&*elsewhere), 401, "UNAUTHORIZED", "`https://doorward.test` is expected"),
        (
            "no rule",
            &push,
            Some(&*alice),
            403,
            "DENIED",
            "scope `push:acme/base` for `registry.test`: no rule gives it",
        ),
        ("no rule for any action", &all, Some(&*alice), 403, "DENIED", "scope `delete:evil/x` for `registry.test`"),
        ("a deny", &pull, Some(&*mallory), 403, "DENIED", "Mallory has left"),
        ("a deny, and no scope", &login, Some(&*mallory), 403, "DENIED", ""),
        ("no rule, and no scope", &login, Some(&*bob), 403, "DENIED", "no rule gives it"),
        ("another registry", "service=docker.io", Some(&*alice), 400, "UNSUPPORTED", "`tokens.registries`"),
        ("no registry", "scope=repository:a:pull", Some(&*alice), 400, "UNSUPPORTED", "`service` is missing"),
        ("what is not given", &catalog, Some(&*alice), 400, "UNSUPPORTED", "`registry:catalog:*` is not given here"),
        // The credential is checked first, whatever is requested.
        ("the same of nobody", &catalog, None, 401, "UNAUTHORIZED", "log in first: `docker login"),
        ("the same with a password that is none", &catalog, Some("hunter2"), 401, "UNAUTHORIZED", "password: "),
        ("another registry, of nobody", "service=docker.io", None, 401, "UNAUTHORIZED", "log in first: `docker login"),
    ] {
        let answer = ask(&world, query, password).await;
        let body = answer.json();
        assert_eq!((answer.status, &body["errors"][0]["code"]), (status, &json!(code)), "{what}: {body}");
        let message = body["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains(said), "{what}: {message}");
        let challenge = answer.header("www-authenticate");
        let expected = (status == 401).then_some("Basic realm=\"https://doorward.test/oauth2/registry\"");
        assert_eq!(challenge, expected, "{what}");
    }
    // The requested scope is reported even for an unknown registry.
    for password in [None, Some(&*alice)] {
        let record = world.record(&ask(&world, "service=docker.io&scope=repository:a:pull", password).await).await;
        assert_eq!(record["unmapped"]["asked"]["audience"], "docker.io", "{record}");
    }
    // Clients that send a POST first (containerd) retry with GET.
    let post =
        world.doorward.send(&["POST /oauth2/registry HTTP/1.1", "Host: doorward.test", "Content-Length: 0"], b"");
    assert_eq!(post.await.status, 405);
}

#[tokio::test]
async fn an_own_token_for_the_registry_is_accepted_there_until_it_is_revoked() {
    let world = world().await;
    let alice = world.person("alice", &json!({"aud": "https://doorward.test"}));
    let for_audience = async |audience: &str, scope: &str| {
        world.ask(&[("subject_token", &alice), ("audience", audience), ("scope", scope)]).await.token()
    };
    // What the registry endpoint refuses cannot be obtained through the other endpoint.
    for scope in ["pull:acme/../x", "pull:acme/", "pull:acme/app:latest", "*:acme/app", "deploy"] {
        let refused = world.ask(&[("subject_token", &alice), ("audience", SERVICE), ("scope", scope)]).await;
        assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("invalid_scope")), "{}", refused.text());
        let why = if scope.contains('*') { "has a `*`" } else { "is no action on a repository" };
        assert!(refused.text().contains(why), "{}", refused.text());
    }
    // Without a credential, nobody learns which audience is a registry.
    let stranger = async |audience| {
        let answer = world.ask(&[("subject_token", "hunter2"), ("audience", audience), ("scope", "deploy")]).await;
        (answer.status, answer.text())
    };
    assert_eq!(stranger(SERVICE).await, stranger("https://none.test").await);
    let own = for_audience(SERVICE, "push:acme/app").await;
    let push = json!([{"type": "repository", "name": "acme/app", "actions": ["push"]}]);
    assert_eq!(access(&own), push);
    let query = format!("service={SERVICE}&scope=repository:acme/app:pull,push");
    let back = given(&ask(&world, &query, Some(&own)).await);
    assert_eq!(access(&back), push, "never more than it was issued for");
    let other = ask(&world, "service=other.test&scope=repository:acme/app:push", Some(&own)).await;
    assert_eq!(other.status, 401, "{}", other.text());
    assert!(other.text().contains("another audience than `other.test`"), "{}", other.text());

    let form = format!("token={own}");
    let lines =
        ["POST /oauth2/revoke HTTP/1.1", "Host: doorward.test", "Content-Type: application/x-www-form-urlencoded"];
    assert_eq!(world.doorward.send(&lines, form.as_bytes()).await.status, 200);
    let ended = ask(&world, &query, Some(&own)).await;
    assert_eq!(ended.status, 401);
    assert!(ended.text().contains("the token has ended"), "{}", ended.text());
}

#[tokio::test]
async fn no_token_is_returned_to_a_registry_while_revocations_are_unknown() {
    let world =
        world_with(|yaml| yaml.change("{path: doorward.redb}", "{path: doorward.redb, max_mirror_age: 3s}")).await;
    let alice = world.person("alice", &json!({"aud": "https://doorward.test"}));
    let query = format!("service={SERVICE}&scope=repository:acme/app:pull");
    let (own, other) =
        (given(&ask(&world, &query, Some(&alice)).await), given(&ask(&world, &query, Some(&alice)).await));
    given(&ask(&world, &query, Some(&own)).await);
    world.doorward.break_disk(true);
    let lines =
        ["POST /oauth2/revoke HTTP/1.1", "Host: doorward.test", "Content-Type: application/x-www-form-urlencoded"];
    let refused = found(async || {
        // A write detects the broken disk.
        world.doorward.send(&lines, format!("token={other}").as_bytes()).await;
        Some(ask(&world, &query, Some(&own)).await).filter(|answer| answer.status != 200)
    })
    .await;
    assert_eq!((refused.status, &refused.json()["errors"][0]["code"]), (503, &json!("UNAVAILABLE")));
    assert!(refused.text().contains("whether the token was revoked"), "{}", refused.text());
}

#[tokio::test]
async fn an_expired_token_is_not_returned_to_a_registry() {
    let world = world().await;
    let alice = world.person("alice", &json!({"exp": now() + 3600}));
    let asked = [("subject_token", &*alice), ("audience", SERVICE), ("scope", "push:acme/app")];
    let answer = world.ask(&asked).await;
    let own = answer.token();
    let lasts = answer.json()["expires_in"].as_u64().unwrap();
    let query = format!("service={SERVICE}&scope=repository:acme/app:push");
    for (ahead, status) in [(0, 200), (lasts - 30, 200), (lasts + 1, 401)] {
        world.doorward.set_clock_ahead(ahead);
        let answer = settled(async || ask(&world, &query, Some(&own)).await).await;
        assert_eq!(answer.status, status, "{ahead}: {}", answer.text());
        assert!(status == 200 || answer.text().contains("the token has ended"), "{}", answer.text());
    }
}

/// A registry that trusts Doorward's keys.
pub struct Registry {
    program: Program,
}

impl Registry {
    pub async fn start(doorward: &Doorward) -> Self {
        Self::at("127.0.0.1:0", SERVICE, "https://doorward.test", "https://doorward.test", doorward).await
    }

    /// With an address known in advance as its `service`, and Doorward's address as its clients see it.
    pub async fn at(listen: &str, service: &str, issuer: &str, door: &str, doorward: &Doorward) -> Self {
        let folder = programs::folder();
        let keys = doorward.get("/oauth2/jwks", &[&issuer.replace("https://", "Host: ")]).await.text();
        std::fs::write(folder.join("jwks.json"), keys).unwrap();
        let configuration = format!(
            "
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/images}}}}
http: {{addr: '{listen}'}}
auth:
  token:
    realm: {door}/oauth2/registry
    service: {service}
    issuer: {issuer}
    jwks: {folder}/jwks.json
    signingalgorithms: [ES256]
",
            folder = folder.display()
        );
        std::fs::write(folder.join("registry.yaml"), configuration).unwrap();
        let program = Program::start(folder, "registry", &["serve".to_owned(), "registry.yaml".to_owned()], &[]);
        let registry = Self { program };
        until(async || {
            assert!(!registry.program.has_ended(), "{}", registry.program.log());
            registry.address().is_some()
        })
        .await;
        registry
    }

    fn address(&self) -> Option<std::net::SocketAddr> {
        let log = self.program.log();
        let (_, rest) = log.split_once("listening on ")?;
        rest.split(|character: char| !matches!(character, '0'..='9' | '.' | ':')).next()?.parse().ok()
    }

    pub fn log(&self) -> String {
        self.program.log()
    }

    /// The status with which a layer is accepted or refused.
    pub async fn push(&self, repository: &str, token: &str, layer: &[u8]) -> u16 {
        let begun = self.send(&format!("POST /v2/{repository}/blobs/uploads/"), Some(token), b"").await;
        if begun.status != 202 {
            return begun.status;
        }
        let location = url::Url::parse(begun.header("location").unwrap()).unwrap();
        let line = format!("PUT {}?{}&digest=sha256:{}", location.path(), location.query().unwrap(), digest(layer));
        self.send(&line, Some(token), layer).await.status
    }

    async fn send(&self, line: &str, token: Option<&str>, body: &[u8]) -> Answer {
        let address = self.address().unwrap();
        let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!("{line} HTTP/1.1\r\nHost: {address}\r\n{bearer}Content-Length: {}\r\n\r\n", body.len());
        let mut raw = Raw::connect(address).await;
        raw.send([head.as_bytes(), body].concat()).await;
        raw.answer().await
    }
}

fn digest(layer: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, layer).as_ref())
}

/// An image layer is uploaded with a token for that repository, and with no other.
#[tokio::test]
async fn distributions_own_registry_takes_a_push_with_a_token_for_that_repository_alone() {
    let world = world().await;
    let registry = Registry::start(&world.doorward).await;
    let refused = registry.send("POST /v2/acme/app/blobs/uploads/", None, b"").await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    let challenge = refused.header("www-authenticate").unwrap();
    let asked =
        "Bearer realm=\"https://doorward.test/oauth2/registry\",service=\"registry.test\",scope=\"repository:acme/app:";
    assert!(challenge.starts_with(asked), "{challenge}");

    let alice = world.person("alice", &json!({"aud": "https://doorward.test"}));
    let get = async |scope: &str| given(&ask(&world, &format!("service={SERVICE}&scope={scope}"), Some(&alice)).await);
    let push = get("repository:acme/app:pull,push").await;
    let pull = get("repository:acme/app:pull").await;
    let base = get("repository:acme/base:pull,push").await;
    for (what, token) in [("to pull only", &pull), ("for another repository", &base)] {
        let refused = registry.send("POST /v2/acme/app/blobs/uploads/", Some(token), b"").await;
        assert_eq!(refused.status, 401, "{what}: {}", refused.text());
    }
    let layer = b"a layer";
    assert_eq!(registry.push("acme/app", &push, layer).await, 201, "{}", registry.program.log());
    let digest = digest(layer);
    let blob = format!("GET /v2/acme/app/blobs/sha256:{digest}");
    let back = registry.send(&blob, Some(&pull), b"").await;
    assert_eq!((back.status, back.text().as_str()), (200, "a layer"));
    assert_eq!(registry.send(&blob, Some(&base), b"").await.status, 401);
}

/// Each got a token, and nothing ended it, although it was given for a revoked token.
#[tokio::test]
async fn a_caller_revoked_while_waiting_for_the_trail_gets_no_token() {
    let mut holder = Holder::start().await;
    let world = world_with(|yaml| holder.change(&yaml)).await;
    let person = |subject: &str| world.person(subject, &json!({"aud": "https://doorward.test"}));
    let (alice, bob) = (person("alice"), person("bob"));
    let query = format!("service={SERVICE}&scope=repository:acme/app:pull");
    let ended = given(&ask(&world, &query, Some(&alice)).await);
    let jti = part(&ended, 1)["jti"].as_str().unwrap().to_owned();
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", "own", "--token-id", &jti, "--why", "leaked"]).await;
    assert_eq!(code, Some(0), "{said}");
    let _held = [holder.take(&world).await, holder.take(&world).await];
    let before = world.doorward.audit_waits().await;
    // An invalid request does not wait for a place.
    let refused = ask(&world, &query, Some(&ended)).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert_eq!(world.doorward.audit_waits().await, before);
    let scope = "pull:acme/app";
    let exchange =
        async |token: &str| world.ask(&[("subject_token", token), ("audience", SERVICE), ("scope", scope)]).await;
    let asked = async {
        tokio::join!(
            exchange(&alice),
            ask(&world, &query, Some(&alice)),
            exchange(&bob),
            ask(&world, &query, Some(&bob))
        )
    };
    let id = part(&bob, 1)["jti"].as_str().unwrap().to_owned();
    let revoked = async {
        until(async || world.doorward.audit_waits().await == before + 4).await;
        for (option, of) in [("--subject", "alice"), ("--token-id", &*id)] {
            let arguments = ["revoke", "--issuer", "people", option, of, "--why", "left"];
            let (code, said) = world.doorward.operator(&arguments).await;
            assert_eq!(code, Some(0), "{said}");
        }
        holder.give_back();
        holder.give_back();
    };
    let ((by_subject, at_registry, by_token, with_token), ()) = tokio::join!(asked, revoked);
    for (what, answer, status, told) in [
        ("a person, by an exchange", by_subject, 400, "your access was revoked"),
        ("a person, for a registry", at_registry, 401, "your access was revoked"),
        ("a token, by an exchange", by_token, 400, "the token was revoked"),
        ("a token, for a registry", with_token, 401, "the token was revoked"),
    ] {
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        assert!(answer.text().contains(told), "{what}: {}", answer.text());
        world.record(&answer).await;
        let (lines, id) = (world.doorward.audit(), answer.header("x-request-id").unwrap());
        let mut told = lines.iter().filter(|line| line.to_string().contains(id));
        let nothing = |line: &Value| line["unmapped"]["issued"].is_null() && line["authorizations"].is_null();
        assert!(told.all(nothing), "{what}: the trail tells of a decision or a token");
    }
    let again = person("bob");
    given(&ask(&world, &query, Some(&again)).await);
}
