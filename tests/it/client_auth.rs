//! How Doorward authenticates to the certified provider: with a secret, with a key of its own, and with assertions that
//! another party signs and renews. Each changes in its file while Doorward runs.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Answer, Doorward, Issuer, OidcProvider, Upstream, folder_with, now, replace_file, told},
    login_fixture::LoginFixture,
};

struct World {
    doorward: Doorward,
    provider: OidcProvider,
    host: String,
}

/// `client` configures the credential, with files of `dir`; `further` are options of the provider.
async fn world(dir: TempDir, client: &str, further: &Value) -> World {
    let login = format!("login: {{client: {{id: doorward, {client}}}}}");
    let introspection =
        format!("introspection: {{mode: opaque, cache: 1s, timeout: 10s, client: {{id: doorward, {client}}}}}");
    let changes: [(&str, &str); 3] = [
        (
            "login: {client: {id: doorward, secret: {file: client}}, label: Example Corp}",
            &format!("{introspection}\n    {login}"),
        ),
        ("[session]", "[session, bearer]"),
        ("limits:", "log: {filter: debug}\nlimits:"),
    ];
    let (world, provider) = LoginFixture::certified_with(further, Upstream::start().await, dir, &changes).await;
    World { doorward: world.doorward, provider, host: world.host }
}

impl World {
    /// The response to Alice's login callback.
    async fn sign_in(&self) -> Answer {
        let away = self.doorward.get("/oauth2/start?rd=/page", &[&format!("Host: {}", self.host)]).await;
        let back = self.provider.sign_in(away.header("location").unwrap(), "alice").await;
        let path = back.strip_prefix(&format!("http://{}", self.host)).unwrap_or_else(|| panic!("{back}"));
        let cookie = away.header("set-cookie").unwrap().split(';').next().unwrap();
        self.doorward.get(path, &[&format!("Host: {}", self.host), &format!("Cookie: {cookie}")]).await
    }

    /// The status of a request with an unknown token: 401 if the provider answered, 503 if it could not be asked.
    async fn ask_about(&self, token: &str) -> u16 {
        let lines = [format!("Host: {}", self.host), format!("Authorization: Bearer {token}")];
        self.doorward.get("/page", &[&lines[0], &lines[1]]).await.status
    }

    /// Replaces a file, as a kubelet does.
    fn replace(&self, name: &str, content: &str) {
        replace_file(&self.doorward.dir().join(name), content);
    }

    fn has_not_told(&self, secrets: &[&str]) {
        let told = self.doorward.log().iter().map(Value::to_string).collect::<String>();
        for secret in secrets {
            assert!(!told.contains(secret), "it is in the log");
        }
    }
}

fn folder(name: &str, content: &str) -> TempDir {
    folder_with(&[(name, content)])
}

#[track_caller]
fn assert_signed_in(answer: &Answer) {
    assert_eq!((answer.status, answer.header("location")), (303, Some("/page")), "{}", answer.text());
}

/// The provider refuses the old credential, both at the token endpoint and at the introspection endpoint.
async fn assert_refused(world: &World, token: &str) {
    let refused = world.sign_in().await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(refused.text().contains("invalid_client"), "{}", refused.text());
    assert!(refused.all("set-cookie").iter().all(|line| !line.starts_with("__Host-doorward=")), "{}", refused.head);
    assert_eq!(world.ask_about(token).await, 503);
}

#[tokio::test]
async fn another_secret_in_the_file_is_used_without_a_restart() {
    let mut world = world(
        folder("secret", "the-first-secret-of-the-tests"),
        "secret: {file: secret}",
        &json!({
            "client": {"client_secret": "the-first-secret-of-the-tests"},
        }),
    )
    .await;
    assert_signed_in(&world.sign_in().await);
    assert_eq!(world.ask_about("a-token-of-nobody").await, 401);
    world.provider.change_client(&json!({"client_secret": "the-second-secret-of-the-tests"})).await;
    assert_refused(&world, "another-token-of-nobody").await;
    world.replace("secret", "the-second-secret-of-the-tests\n");
    world.doorward.wait_for_generation(2).await;
    assert_signed_in(&world.sign_in().await);
    assert_eq!(world.ask_about("a-third-token-of-nobody").await, 401);
    world.has_not_told(&["the-first-secret", "the-second-secret"]);
}

/// A private key, and its public half for the provider.
fn key() -> (String, Value) {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let point = pair.der_bytes();
    let (x, y) = (BASE64URL.encode(&point[1..33]), BASE64URL.encode(&point[33..]));
    (pair.serialize_pem(), json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "x": x, "y": y}))
}

#[tokio::test]
async fn another_key_in_the_file_signs_without_a_restart() {
    let ((first, first_public), (second, second_public)) = (key(), key());
    let client = |keys: Value| json!({"token_endpoint_auth_method": "private_key_jwt", "client_secret": null, "jwks": {"keys": keys}});
    let options = json!({"client": client(json!([first_public]))});
    let mut world = world(folder("key", &first), "key: {file: key}", &options).await;
    assert_signed_in(&world.sign_in().await);
    assert_eq!(world.ask_about("a-token-of-nobody").await, 401);
    // The usual rotation: both keys are registered, the file changes, and the old key is removed.
    world.provider.change_client(&client(json!([first_public, second_public]))).await;
    assert_signed_in(&world.sign_in().await);
    world.provider.change_client(&client(json!([second_public]))).await;
    assert_refused(&world, "another-token-of-nobody").await;
    world.replace("key", &second);
    world.doorward.wait_for_generation(2).await;
    assert_signed_in(&world.sign_in().await);
    assert_eq!(world.ask_about("a-third-token-of-nobody").await, 401);
    world.has_not_told(&[first.lines().nth(1).unwrap(), second.lines().nth(1).unwrap()]);
}

const SUBJECT: &str = "system:serviceaccount:doorward:doorward";
const AUDIENCE: &str = "api://AzureADTokenExchange";

/// A token as a kubelet projects it for Doorward.
fn projected(cluster: &Issuer, kid: &str, subject: &str, lasts: u64) -> String {
    let claims = json!({
        "iss": cluster.url(), "sub": subject, "aud": [AUDIENCE], "iat": now(), "exp": now() + lasts,
        "kubernetes.io": {"namespace": "doorward"},
    });
    cluster.sign_with(&json!({"alg": "ES256", "kid": kid}), &claims)
}

#[tokio::test]
async fn a_cluster_assertion_authenticates_doorward_and_is_read_again() {
    let cluster = Issuer::start().await;
    let options = json!({"federated": {"issuer": cluster.url(), "subject": SUBJECT, "audience": AUDIENCE}});
    let first = projected(&cluster, "key-1", SUBJECT, 3600);
    let mut world = world(folder("token", &first), "assertion: {file: token}", &options).await;
    assert_signed_in(&world.sign_in().await);
    assert_eq!(world.ask_about("a-token-of-nobody").await, 401);

    // The cluster now has another key, so that the former assertion is no longer valid.
    cluster.rotate("key-2");
    assert_refused(&world, "another-token-of-nobody").await;
    let other = projected(&cluster, "key-2", "system:serviceaccount:default:default", 3600);
    world.replace("token", &other);
    world.doorward.wait_for_generation(2).await;
    assert_refused(&world, "a-third-token-of-nobody").await;
    let second = projected(&cluster, "key-2", SUBJECT, 900);
    world.replace("token", &second);
    world.doorward.wait_for_generation(3).await;
    assert_signed_in(&world.sign_in().await);
    assert_eq!(world.ask_about("a-fourth-token-of-nobody").await, 401);
    world.has_not_told(&[&first, &other, &second]);
}

#[tokio::test]
async fn without_a_good_assertion_nothing_is_sent() {
    let cluster = Issuer::start().await;
    let options = json!({"federated": {"issuer": cluster.url(), "subject": SUBJECT, "audience": AUDIENCE}});
    let token = projected(&cluster, "key-1", SUBJECT, 600);
    let mut world = world(folder("token", &token), "assertion: {file: token}", &options).await;
    assert_signed_in(&world.sign_in().await);
    // As long as there is no other, the last one is used, until it expires.
    std::fs::remove_file(world.doorward.dir().join("token")).unwrap();
    world.doorward.wait_for_log_containing("the configuration was refused").await;
    assert_signed_in(&world.sign_in().await);
    world.doorward.set_clock_ahead(620);
    let refused = world.sign_in().await;
    assert_eq!(refused.status, 502, "{}", refused.text());
    assert!(refused.text().contains("expired") && !refused.text().contains("invalid_client"), "{}", refused.text());
    assert_eq!(world.ask_about("a-token-of-nobody").await, 503);
    world.has_not_told(&[&token]);
}

/// The output of `doorward check` for a client, with the files in `dir`.
async fn check(dir: &Path, client: &str) -> (Option<i32>, String) {
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:0'}}]
issuers: [{{name: corp, issuer: 'https://idp.test', login: {{kind: human, client: {{id: doorward, {client}}}}}}}]
upstreams: [{{name: web, url: 'http://127.0.0.1:1'}}]
routes: [{{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}]
rules: [{{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
"
    );
    std::fs::write(dir.join("doorward.yaml"), yaml).unwrap();
    told(dir, &["check", "doorward.yaml"]).await
}

#[tokio::test]
async fn an_unusable_client_credential_is_reported_before_the_start() {
    let cluster = Issuer::start().await;
    let dir = folder("secret", "s3cret");
    std::fs::write(dir.path().join("token"), projected(&cluster, "key-1", SUBJECT, 600)).unwrap();
    let own = json!({"iss": cluster.url(), "aud": ["https://kubernetes.default.svc"], "exp": now() + 600});
    std::fs::write(dir.path().join("own"), cluster.sign(&own)).unwrap();
    for (client, code, said) in [
        ("assertion: {file: token}", 0, ""),
        ("assertion: {file: token}, method: assertion", 0, ""),
        ("assertion: {file: token}, secret: {file: secret}", 64, "one of `secret`, `key` and `assertion`"),
        ("assertion: {file: token}, method: basic", 64, "without `key` and `assertion`"),
        ("assertion: {file: own}", 64, "for the Kubernetes API server"),
        ("assertion: {file: secret}", 64, "is not a signed JWT"),
        ("assertion: {env: HOME}", 64, "could not be replaced as it expires"),
        ("assertion: {file: absent}", 64, "absent"),
    ] {
        let (status, told) = check(dir.path(), client).await;
        assert!(status == Some(code) && told.contains(said), "{client}: {told}");
        assert!(!told.contains("s3cret") && !told.contains("eyJ"), "{client}: {told}");
    }
}
