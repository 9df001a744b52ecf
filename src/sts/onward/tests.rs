use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Json, Router, extract::Form, http::StatusCode, routing::post};
use serde_json::{Map, Value, json};
use tokio::{runtime::Handle, sync::mpsc};

use super::{answer::Failure, cache::TokenRequest, *};
use crate::{
    clock::{Clock, Timestamp},
    store::{Embedded, Revocations, Store, Target},
    sts::keys::{SigningKey, SigningKeys},
};

const OURS: &str = "https://door.test";

/// The problems by place, and what resolves.
pub(super) fn resolve(onward: &str, rest: &str) -> (Onwards, Vec<(String, String)>) {
    let yaml = format!("tokens: {{exchange: [], onward: [{onward}]{rest}");
    let root: raw::Root = serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    let mut resolver = Resolver::default();
    let onwards =
        Onward::resolve_all(&root, (OURS, None), &Egress::direct(None, None).unwrap(), &At::root(), &mut resolver);
    let problems = resolver.report.problems().iter();
    (onwards, problems.map(|problem| (problem.at.as_str().to_owned(), problem.message.clone())).collect())
}

#[test]
fn impossible_settings_are_reported_at_their_path() {
    let vault = "provider: {jwt_bearer: {token_url: 'https://idp.test/t'}}, assertion: {audience: 'https://idp.test'}";
    let aws = "provider: {aws: {role: 'arn:aws:iam::1:role/a'}}";
    let one = |more: &str| format!("{{audience: v, {vault}{more}}}");
    let rule = |scopes: &str| format!("}}\nrules: [{{id: r, on: {{token: {{audiences: [v]{scopes}}}}}, do: allow}}]");
    for (onward, rest, places) in [
        (one(""), "}".to_owned(), vec![]),
        (format!("{}, {}", one(""), one("")), "}".to_owned(), vec!["/1/audience"]),
        (format!("{{audience: '', {vault}}}"), "}".to_owned(), vec!["/0/audience"]),
        (format!("{{audience: '{OURS}', {vault}}}"), "}".to_owned(), vec!["/0/audience"]),
        (
            one(""),
            ", resource_servers: [{id: a, secret: {env: A}, audiences: [v]}]}".to_owned(),
            vec!["/0/audience"],
        ),
        (one(""), ", registries: [{service: v}]}".to_owned(), vec!["/0/audience"]),
        (
            one(""),
            "}\nissuers: [{name: own, preset: doorward, audiences: [v]}]".to_owned(),
            vec!["/0/audience"],
        ),
        (one(", max_lifetime: 59s"), "}".to_owned(), vec!["/0/max_lifetime"]),
        (one(", max_lifetime: 13h"), "}".to_owned(), vec!["/0/max_lifetime"]),
        (one(", timeout: 31s"), "}".to_owned(), vec!["/0/timeout"]),
        (one(", timeout: 0"), "}".to_owned(), vec!["/0/timeout"]),
        (one(", circuit_breaker: {failures: 0}"), "}".to_owned(), vec!["/0/circuit_breaker/failures"]),
        // No stream waits for a provider, as one does for an issuer.
        (one(", circuit_breaker: {pause: 5m}"), "}".to_owned(), vec![]),
        (one(", circuit_breaker: {pause: 301s}"), "}".to_owned(), vec!["/0/circuit_breaker/pause"]),
        (one(", scopes: {a: b c}"), "}".to_owned(), vec!["/0/scopes/a"]),
        (one(", scopes: {'a*': b}"), "}".to_owned(), vec!["/0/scopes/a*"]),
        (one(", scopes: {a: 'b*'}"), "}".to_owned(), vec![]),
        (one(", default_scopes: ['']"), "}".to_owned(), vec!["/0/default_scopes/0"]),
        (one("").replace("'https://idp.test'}", "'https://idp.test', algorithm: ES256}"), "}".to_owned(), vec![]),
        (
            one("").replace("'https://idp.test'}", "'https://idp.test', algorithm: RS256}"),
            "}".to_owned(),
            vec!["/0/assertion/algorithm"],
        ),
        (one(", revocation_url: 'http://idp.test'"), "}".to_owned(), vec!["/0/revocation_url"]),
        (one(", ca: absent.pem"), "}".to_owned(), vec!["/0/ca"]),
        ("{audience: v, provider: {jwt_bearer: {token_url: 'https://a'}}}".to_owned(), "}".to_owned(), vec!["/0/assertion"]),
        (
            format!("{{audience: v, provider: {{jwt_bearer: {{token_url: 'https://a'}}}}, assertion: {{audience: '{OURS}'}}}}"),
            "}".to_owned(),
            vec!["/0/assertion/audience"],
        ),
        (
            "{audience: v, provider: {jwt_bearer: {token_url: 'https://a'}}, assertion: {audience: a, subject: {text: ''}}}".to_owned(),
            "}".to_owned(),
            vec!["/0/assertion/subject"],
        ),
        (format!("{{audience: v, {aws}}}"), rule(""), vec![]),
        (format!("{{audience: v, {aws}}}"), rule(", scopes: [a]"), vec!["/0/audience"]),
        (format!("{{audience: v, {aws}, max_lifetime: 10m}}"), "}".to_owned(), vec!["/0/max_lifetime"]),
        (format!("{{audience: v, {aws}, scopes: {{a: b}}}}"), "}".to_owned(), vec!["/0/scopes"]),
        (
            format!("{{audience: v, {aws}, revocation_url: 'https://a'}}"),
            "}".to_owned(),
            vec!["/0/revocation_url"],
        ),
    ] {
        let (onwards, problems) = resolve(&onward, &rest);
        let found: Vec<&str> = problems.iter().map(|(at, _)| at.as_str()).collect();
        assert_eq!(found, places, "{onward} {rest}: {problems:?}");
        assert!(!places.is_empty() || onwards.contains_key("v"));
    }
}

/// Regression: a scope that is too long was reported as not being a scope.
#[test]
fn a_scope_that_is_too_long_to_request_is_reported_as_too_long() {
    let vault = "provider: {jwt_bearer: {token_url: 'https://a'}}, assertion: {audience: x}";
    for (bytes, told) in [(512, 0), (513, 2)] {
        let long = "a".repeat(bytes);
        let (_, problems) =
            resolve(&format!("{{audience: v, {vault}, scopes: {{s: {long}}}, default_scopes: [{long}]}}"), "}");
        let found = problems.iter().filter(|(_, said)| said.contains("more than 512 bytes")).count();
        assert_eq!((found, problems.len()), (told, told), "{problems:?}");
    }
}

/// The guide had this, and Entra ID accepts none that is signed by the keys that Doorward makes.
#[test]
fn an_assertion_for_entra_id_that_is_not_signed_as_that_documents_is_warned_of() {
    let p256 = || Arc::new(SigningKey::generate().unwrap().0);
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_pem();
    let rsa = || Arc::new(SigningKey::from_pem(rsa.as_bytes()).unwrap());
    let both = SigningKeys::new(vec![p256(), rsa()]).unwrap();
    let alone = SigningKeys::new(vec![rsa()]).unwrap();
    // The first decides, with another behind it.
    let first = SigningKeys::new(vec![rsa(), p256()]).unwrap();
    let file = "keys: [{file: absent.pem}], ";
    for (audience, algorithm, files, keys, is_told) in [
        ("api://AzureADTokenExchange", "", "", None, true),
        ("api://AzureADTokenExchangeUSGov", "", file, Some(&both), true),
        ("api://AzureADTokenExchange", ", algorithm: ES256", file, Some(&both), true),
        ("api://AzureADTokenExchange", ", algorithm: RS256", file, Some(&both), false),
        ("api://AzureADTokenExchange", "", file, Some(&alone), false),
        ("api://AzureADTokenExchange", "", file, Some(&first), false),
        // It was reported as unreadable.
        ("api://AzureADTokenExchange", "", file, None, false),
        ("https://sso.test", "", "", None, false),
    ] {
        let yaml = format!(
            "tokens: {{exchange: [], {files}onward: [{{audience: v, provider: {{client_credentials: {{token_url: 'https://a'}}}}, \
             assertion: {{audience: '{audience}'{algorithm}}}}}]}}"
        );
        let (root, mut resolver) = (serde_saphyr::from_str(&yaml).unwrap(), Resolver::default());
        Onward::resolve_all(&root, (OURS, keys), &Egress::direct(None, None).unwrap(), &At::root(), &mut resolver);
        let places: Vec<&str> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
        let told: &[&str] = if is_told { &["/0/assertion"] } else { &[] };
        assert_eq!((places.as_slice(), resolver.report.has_errors()), (told, false), "{audience}{algorithm}");
    }
}

#[test]
fn subject_and_audience_of_an_assertion_follow_from_the_kind() {
    for (provider, subject, audience) in [
        ("{token_exchange: {token_url: 'https://a'}}", OnwardSubject::Caller, "x"),
        ("{client_credentials: {token_url: 'https://a'}}", OnwardSubject::Client, "x"),
        ("{aws: {role: 'arn:aws:iam::1:role/a'}}", OnwardSubject::Caller, "sts.amazonaws.com"),
        (
            "{google: {pool_provider: '//iam.googleapis.com/p/providers/q'}}",
            OnwardSubject::Caller,
            "https://iam.googleapis.com/p/providers/q",
        ),
    ] {
        let assertion = if audience == "x" { ", assertion: {audience: x}" } else { "" };
        let (onwards, problems) = resolve(&format!("{{audience: v, provider: {provider}{assertion}}}"), "}");
        let onward = onwards.get("v").unwrap_or_else(|| panic!("{provider}: {problems:?}"));
        assert_eq!((&onward.subject, onward.assertion_audience.as_str()), (&subject, audience), "{provider}");
    }
}

/// A cache, and a provider that reports its calls.
struct World {
    held: ProviderTokens,
    onward: Arc<Onward>,
    keys: SigningKeys,
    clock: Clock,
    revocations: Revocations,
    /// Address and form of each call.
    calls: mpsc::UnboundedReceiver<(&'static str, BTreeMap<String, String>)>,
    folder: tempfile::TempDir,
}

impl World {
    async fn start(more: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, calls) = mpsc::unbounded_channel();
        let (of_revoke, of_aws, count) = (told.clone(), told.clone(), AtomicUsize::new(0));
        let count = Arc::new(count);
        let give = move |Form(form): Form<BTreeMap<String, String>>| {
            let token = format!("given-{}", count.fetch_add(1, Ordering::SeqCst));
            told.send(("/token", form)).unwrap();
            async move { Json(json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600})) }
        };
        let revoke = move |Form(form): Form<BTreeMap<String, String>>| {
            of_revoke.send(("/revoke", form)).unwrap();
            async {}
        };
        let aws = move |Form(form): Form<BTreeMap<String, String>>| {
            of_aws.send(("/aws", form)).unwrap();
            let credentials =
                json!({"AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c", "Expiration": 1_700_000_900});
            let result = json!({"AssumeRoleWithWebIdentityResult": {"Credentials": credentials}});
            async move { Json(json!({"AssumeRoleWithWebIdentityResponse": result})) }
        };
        let router = Router::new().route("/token", post(give)).route("/revoke", post(revoke)).route("/aws", post(aws));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let (onwards, problems) = resolve(
            &format!(
                "{{audience: v, provider: {{client_credentials: {{token_url: 'http://{address}/token'}}}}, assertion: {{audience: x}}, \
                 revocation_url: 'http://{address}/revoke'{more}}}"
            ),
            "}",
        );
        let onward = Arc::clone(onwards.get("v").unwrap_or_else(|| panic!("{problems:?}")));
        let folder = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded::open(&folder.path().join("store")).unwrap());
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let revocations = Revocations::new(store, clock.clone());
        let held = ProviderTokens::new(clock.clone(), Handle::current(), revocations.clone(), Metrics::default());
        let keys = SigningKeys::new(vec![Arc::new(SigningKey::generate().unwrap().0)]).unwrap();
        Self { held, onward, keys, clock, revocations, calls, folder }
    }

    fn wanted(&self, subject: &str, runs: &[&str]) -> TokenRequest {
        TokenRequest {
            onward: Arc::clone(&self.onward),
            claims: Map::from_iter([("sub".to_owned(), Value::from(subject))]),
            client: "client".into(),
            scopes: vec!["read".to_owned()],
            session: "session".to_owned(),
            lives_with: runs.iter().map(|uid| Arc::from(*uid)).collect(),
        }
    }

    async fn obtain(&self, wanted: TokenRequest) -> String {
        let ends = self.clock.now() + Duration::from_secs(600);
        self.held.obtain(wanted, &self.keys, "jti", ends).await.unwrap().given.token.to_string()
    }

    fn asked(&mut self) -> Vec<&'static str> {
        std::iter::from_fn(|| self.calls.try_recv().ok()).map(|(path, _)| path).collect()
    }
}

#[tokio::test]
async fn a_cached_token_is_reused_only_for_the_same_caller_and_request() {
    let world = World::start("").await;
    let first = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    assert_eq!(world.obtain(world.wanted("alice", &["run", "pod"])).await, first);
    let other_scope = TokenRequest { scopes: vec!["write".to_owned()], ..world.wanted("alice", &["run", "pod"]) };
    let mut all = vec![first];
    for wanted in [
        world.wanted("bob", &["run", "pod"]),
        world.wanted("alice", &["run", "another"]),
        world.wanted("alice", &[]),
        other_scope,
        TokenRequest { client: "other".into(), ..world.wanted("alice", &["run", "pod"]) },
    ] {
        let token = world.obtain(wanted).await;
        assert!(!all.contains(&token), "{token} {all:?}");
        all.push(token);
    }
}

#[tokio::test]
async fn a_session_under_a_policy_is_not_given_once_its_file_says_something_else() {
    let mut world = World::start("").await;
    let policy = world.folder.path().join("policy.json");
    let url = world.onward.protocol.url.join("/aws").unwrap();
    let entry = format!(
        "{{audience: v, provider: {{aws: {{role: 'arn:aws:iam::1:role/a', token_url: '{url}', session_policy: '{}'}}}}, max_lifetime: 15m}}",
        policy.display()
    );
    for (text, calls) in [(r#"{"Statement": "*"}"#, 1), (r#"{"Statement": "*"}"#, 0), (r#"{"Statement": []}"#, 1)] {
        std::fs::write(&policy, text).unwrap();
        let (onwards, problems) = resolve(&entry, "}");
        let onward = Arc::clone(onwards.get("v").unwrap_or_else(|| panic!("{problems:?}")));
        world.obtain(TokenRequest { onward, scopes: Vec::new(), ..world.wanted("alice", &["run", "pod"]) }).await;
        assert_eq!(world.asked().len(), calls, "{text}");
    }
}

#[tokio::test]
async fn the_end_of_a_run_ends_its_tokens_there_and_here() {
    let mut world = World::start("").await;
    let first = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    let others = world.obtain(world.wanted("alice", &["other", "other-pod"])).await;
    assert_eq!(world.asked(), ["/token", "/token"]);
    world.held.end("nothing", None, Some(&world.keys));
    world.held.end("pod", None, Some(&world.keys));
    let (path, form) = world.calls.recv().await.unwrap();
    assert_eq!((path, form["token"].as_str()), ("/revoke", first.as_str()));
    let said = form.keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(said, ["client_assertion", "client_assertion_type", "token", "token_type_hint"]);
    world.held.end("run", None, Some(&world.keys));
    assert_eq!(
        world.obtain(world.wanted("alice", &["other", "other-pod"])).await,
        others,
        "that of another run is held"
    );
    assert_ne!(world.obtain(world.wanted("alice", &["run", "pod"])).await, first);
    assert_eq!(world.asked(), ["/token"]);
}

/// Regression: a cached token was given until the clock had caught up, when the provider no longer accepted it.
#[tokio::test]
async fn a_token_is_cached_no_longer_even_if_the_clock_is_set_back() {
    let world = World::start("").await;
    let first = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    world.clock.set(world.clock.now() - Duration::from_secs(3600));
    world.clock.advance(Duration::from_secs(2879));
    assert_eq!(world.obtain(world.wanted("alice", &["run", "pod"])).await, first);
    world.clock.advance(Duration::from_secs(1));
    assert_ne!(world.obtain(world.wanted("alice", &["run", "pod"])).await, first);
}

/// Rules and the trail had its end by the former clock, and it was refused for as long as that had been ahead.
#[tokio::test]
async fn the_expiry_of_a_token_follows_a_clock_that_was_set_since() {
    let world = World::start("").await;
    let ends = world.clock.now() + Duration::from_secs(600);
    let gained = world.held.obtain(world.wanted("alice", &[]), &world.keys, "jti", ends).await.unwrap();
    assert_eq!(gained.expires(world.clock.moment()), gained.given.expires);
    world.clock.set(world.clock.now() - Duration::from_secs(3600));
    world.clock.advance(Duration::from_secs(600));
    assert_eq!(gained.expires(world.clock.moment()), world.clock.now() + Duration::from_secs(3000));
}

/// Its task may use the previous one until that expires.
#[tokio::test]
async fn the_end_of_a_run_ends_a_token_that_has_a_successor_as_well() {
    let mut world = World::start("").await;
    let first = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    world.clock.advance(Duration::from_secs(2881));
    let second = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    assert_ne!(first, second);
    assert_eq!(world.asked(), ["/token", "/token"]);
    world.held.end("run", None, Some(&world.keys));
    let mut ended = Vec::new();
    for _ in 0..2 {
        let (path, form) = world.calls.recv().await.unwrap();
        assert_eq!(path, "/revoke");
        ended.push(form["token"].clone());
    }
    ended.sort_unstable();
    let mut both = [first, second];
    both.sort_unstable();
    assert_eq!(ended, both);
}

/// The cache had been emptied, and the tokens were valid at the provider until they expired.
#[tokio::test]
async fn the_end_of_a_run_ends_its_token_even_if_the_clock_was_ahead_at_another() {
    let mut world = World::start("").await;
    let first = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    let right = world.clock.now();
    world.clock.set(right + Duration::from_secs(7200));
    world.obtain(world.wanted("bob", &["other", "other-pod"])).await;
    world.clock.set(right);
    assert_eq!(world.asked(), ["/token", "/token"]);
    world.held.end("run", None, Some(&world.keys));
    let asked = tokio::time::timeout(Duration::from_secs(10), world.calls.recv()).await;
    let (path, form) = asked.expect("nobody ends it").unwrap();
    assert_eq!((path, form["token"].as_str()), ("/revoke", first.as_str()));
}

#[tokio::test]
async fn a_token_is_ended_with_the_secret_that_the_client_has_by_then() {
    let mut world = World::start("").await;
    let secret = world.folder.path().join("secret");
    let (url, revocation_url) = (world.onward.protocol.url.clone(), world.onward.protocol.url.join("/revoke").unwrap());
    let entry = format!(
        "{{audience: v, provider: {{jwt_bearer: {{token_url: '{url}', client: {{id: door, method: post, \
         secret: {{file: '{}'}}}}}}}}, assertion: {{audience: x}}, revocation_url: '{revocation_url}'}}",
        secret.display()
    );
    let of = |entry: &str, text: &str| {
        std::fs::write(&secret, text).unwrap();
        let (onwards, problems) = resolve(entry, "}");
        assert!(onwards.contains_key("v"), "{problems:?}");
        onwards
    };
    let (before, after) = (of(&entry, "of then"), of(&entry, "of now"));
    let elsewhere = of(&entry.replace("/revoke'", "/aws'"), "of another");
    let another = of(&entry.replace("id: door", "id: gate"), "of another");
    for (onwards, ended_with) in
        [(Some(&after), "of now"), (Some(&elsewhere), "of then"), (Some(&another), "of then"), (None, "of then")]
    {
        let wanted = TokenRequest { onward: Arc::clone(&before["v"]), ..world.wanted("alice", &["run", "pod"]) };
        let token = world.obtain(wanted.clone()).await;
        assert_eq!(world.obtain(TokenRequest { onward: Arc::clone(&after["v"]), ..wanted }).await, token, "it is held");
        assert_eq!(world.asked(), ["/token"]);
        world.held.end("run", onwards, Some(&world.keys));
        let (path, form) = world.calls.recv().await.unwrap();
        assert_eq!((path, form["token"].as_str()), ("/revoke", token.as_str()));
        assert_eq!(form["client_secret"], ended_with);
    }
}

#[tokio::test]
async fn a_token_that_arrives_after_the_end_of_its_run_is_revoked_too() {
    let mut world = World::start("").await;
    let until = world.clock.now() + Duration::from_secs(600);
    world.revocations.revoke(Target::Workload("pod"), "it has ended", until).await.unwrap();
    let given = world.obtain(world.wanted("alice", &["run", "pod"])).await;
    assert_eq!(world.calls.recv().await.unwrap().0, "/token");
    let (path, form) = world.calls.recv().await.unwrap();
    assert_eq!((path, form["token"].as_str()), ("/revoke", given.as_str()));
}

/// It is issued a moment in the past, as the provider refuses one that is ahead of its clock.
#[tokio::test]
async fn an_assertion_lives_five_minutes_and_a_token_is_held_for_four_fifths_of_its_life() {
    let mut world = World::start("").await;
    let first = world.obtain(world.wanted("alice", &[])).await;
    let assertion = world.calls.recv().await.unwrap().1["client_assertion"].clone();
    assert!(world.keys.verify(&assertion).is_none(), "it is no access token of ours");
    let claims: Value = {
        use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(assertion.split('.').nth(1).unwrap()).unwrap()).unwrap()
    };
    assert_eq!(claims, json!({"sub": "alice", "jti": "jti", "iat": 1_699_999_995, "exp": 1_700_000_295}));
    world.clock.advance(Duration::from_secs(2879));
    assert_eq!(world.obtain(world.wanted("alice", &[])).await, first);
    world.clock.advance(Duration::from_secs(1));
    assert_ne!(world.obtain(world.wanted("alice", &[])).await, first);
    assert_eq!(world.asked(), ["/token"]);
}

#[tokio::test]
async fn a_refusal_is_not_remembered() {
    let mut world = World::start(", max_lifetime: 30m").await;
    let ends = world.clock.now() + Duration::from_secs(600);
    for _ in 0..2 {
        let outcome = world.held.obtain(world.wanted("alice", &[]), &world.keys, "jti", ends).await;
        assert!(matches!(outcome, Err(Failure::Unfit(why)) if why.contains("lasts 3600 s")));
        assert_eq!(world.calls.recv().await.unwrap().0, "/token");
        // So that its revocation does not mix with the next call.
        revoked(&mut world).await;
    }
}

/// The token of the next call, which revokes it.
async fn revoked(world: &mut World) -> String {
    let called = tokio::time::timeout(Duration::from_secs(10), world.calls.recv()).await;
    let (path, mut form) = called.expect("nobody revokes it").unwrap();
    assert_eq!(path, "/revoke");
    form.remove("token").unwrap()
}

/// The provider has issued it, wider than rules gave it, and it stayed valid there.
#[tokio::test]
async fn a_token_that_is_not_passed_on_is_revoked_at_once() {
    let mut world = World::start(", max_lifetime: 30m").await;
    let ends = world.clock.now() + Duration::from_secs(600);
    let outcome = world.held.obtain(world.wanted("alice", &[]), &world.keys, "jti", ends).await;
    assert!(matches!(outcome, Err(Failure::Unfit(_))), "{outcome:?}");
    assert_eq!(world.calls.recv().await.unwrap().0, "/token");
    assert_eq!(revoked(&mut world).await, "given-0");
}

#[tokio::test]
async fn a_failing_provider_is_given_a_pause_and_others_are_not() {
    let world = World::start("").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    // As with reloads that change the numbers, and back: counts of an entry end with it.
    for (more, failures, pause) in [("", 5, 5), (", circuit_breaker: {failures: 2, pause: 1m}", 2, 60), ("", 5, 5)] {
        let (onwards, _) = resolve(
            &format!(
                "{{audience: w, provider: {{jwt_bearer: {{token_url: 'http://{address}/token'}}}}, assertion: {{audience: x}}{more}}}"
            ),
            "}",
        );
        let broken = onwards.get("w").unwrap();
        let ends = world.clock.now() + Duration::from_secs(600);
        let ask = async |scope: &str| {
            let scopes = vec![scope.to_owned()];
            let wanted = TokenRequest { onward: Arc::clone(broken), scopes, ..world.wanted("alice", &[]) };
            match world.held.obtain(wanted, &world.keys, "jti", ends).await {
                Err(Failure::Away(_)) => false,
                Err(Failure::LeftAlone(left)) => left <= Duration::from_secs(pause),
                other => panic!("{other:?}"),
            }
        };
        let before = asked.load(Ordering::SeqCst);
        for _ in 0..failures {
            assert!(!ask("read").await, "{more}");
        }
        let after = asked.load(Ordering::SeqCst);
        assert!(after >= before + failures);
        assert!(ask("read").await && ask("write").await, "whatever is asked of it{more}");
        world.obtain(world.wanted("alice", &[])).await;
        world.clock.advance(Duration::from_secs(pause - 1));
        assert!(ask("read").await, "{more}");
        assert_eq!(asked.load(Ordering::SeqCst), after);
        world.clock.advance(Duration::from_secs(1));
        assert!(!ask("read").await, "it may be well again{more}");
        assert!(ask("read").await, "one is enough to see that it is not{more}");
    }
}

/// An overloaded one says so only at times, and counted as healthy in between, so it was asked all the more.
#[tokio::test]
async fn a_refusal_that_may_pass_does_not_show_that_a_provider_is_well() {
    let world = World::start("").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let say = move || {
        let refused = r#"{"error":"invalid_client","error_description":"AADSTS700213: No matching record"}"#;
        let answer = match count.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => (StatusCode::TOO_MANY_REQUESTS, ""),
            _ => (StatusCode::UNAUTHORIZED, refused),
        };
        async move { answer }
    };
    let router = Router::new().route("/token", post(say));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (onwards, _) = resolve(
        &format!(
            "{{audience: w, provider: {{jwt_bearer: {{token_url: 'http://{address}/token'}}}}, assertion: {{audience: x}}, \
             circuit_breaker: {{failures: 2}}}}"
        ),
        "}",
    );
    let ends = world.clock.now() + Duration::from_secs(600);
    for (passes, said) in [
        (0, "answers 429"),
        (0, "refused"),
        (0, "answers 429"),
        (0, "left alone"),
        // As a probe, it must not keep all others out for another pause.
        (5, "refused"),
        (0, "answers 429"),
        (0, "left alone"),
    ] {
        world.clock.advance(Duration::from_secs(passes));
        let wanted = TokenRequest { onward: Arc::clone(&onwards["w"]), ..world.wanted("alice", &[]) };
        match world.held.obtain(wanted, &world.keys, "jti", ends).await {
            Err(Failure::Away(why)) => assert!(why.contains(said), "{said}: {why}"),
            Err(Failure::LeftAlone(_)) => assert_eq!(said, "left alone"),
            Err(Failure::Refused { passes, .. }) => assert!(passes && said == "refused", "{said}"),
            other => panic!("{said}: {other:?}"),
        }
    }
}
