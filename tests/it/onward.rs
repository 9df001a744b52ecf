//! Tokens of other providers, for audiences that trust those: what the provider is asked, what of its answer is passed
//! on and to whom, and that it is asked once. `cluster/token_ends.rs` tests that they end with their run.

mod revoked;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Notify;
use url::form_urlencoded;

use crate::{
    fixture::Change,
    harness::{
        Answer, EXCHANGE, OidcProvider, Raw, Recorded, Reply, Upstream, aws_credentials, exchange_form, now, part,
        request, rfc3339, settled,
    },
    issuing::{World, clock},
};

const RULES: &str = "rules:
  - id: onward
    on: {token: {audiences: [vault, bearer, entra, google, node], scopes: [read, write, 'tekton:*']}}
    who: {issuers: [people], groups: [dev]}
    do: allow
  - {id: onward-aws, on: {token: {audiences: [aws, sts.amazonaws.com]}}, who: {issuers: [people], groups: [dev]}, do: allow}
";

const ONWARD: &str = "  onward:
    - audience: vault
      provider: {token_exchange: {token_url: '{url}/token', audience: the-vault, client: {id: door, secret: {file: target}}}}
      assertion: {audience: 'https://idp.test'}
      timeout: 2s
    - audience: bearer
      provider: {jwt_bearer: {token_url: '{url}/bearer'}}
      assertion: {audience: 'https://idp.test'}
      timeout: 30s
    - audience: entra
      provider: {client_credentials: {token_url: '{url}/entra', client_id: app}}
      assertion: {audience: 'api://AzureADTokenExchange', subject: {text: the-app}}
      scopes: {read: 'api://x/.default', write: 'api://x/.default'}
    - audience: google
      provider: {google: {pool_provider: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q',
        service_account: deploy@acme.iam.gserviceaccount.com, token_url: '{url}/google', iam_credentials_url: '{url}'}}
      scopes: {read: 'https://www.googleapis.com/auth/devstorage.read_only'}
    - {audience: aws, provider: {aws: {role: 'arn:aws:iam::1:role/deploy', token_url: '{url}/aws'}}}
    - audience: node
      provider: {token_exchange: {token_url: '{url}/token', client: {id: bot, secret: {file: bot}}}}
      assertion: {audience: '{url}'}
  resource_servers:
";

/// A provider that gives a new token for each call, or what a test scripts.
struct Provider {
    upstream: Upstream,
    says: Arc<Mutex<Option<Reply>>>,
}

impl Provider {
    async fn start() -> Self {
        let says: Arc<Mutex<Option<Reply>>> = Arc::default();
        let (said, calls) = (Arc::clone(&says), AtomicUsize::new(0));
        let upstream = Upstream::scripted(move |_| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            said.lock()
                .unwrap()
                .clone()
                .unwrap_or_else(|| Reply::json(200, &good(&format!("given-{call}")).to_string()))
        })
        .await;
        Self { upstream, says }
    }

    fn says(&self, reply: Reply) {
        *self.says.lock().unwrap() = Some(reply);
    }

    /// The parameters of a call.
    fn form(call: &Recorded) -> Vec<(String, String)> {
        form_urlencoded::parse(&call.body).into_owned().collect()
    }

    fn get(call: &Recorded, name: &str) -> String {
        Self::form(call).into_iter().find(|(known, _)| known == name).map(|(_, value)| value).unwrap_or_default()
    }
}

/// AWS's response, with credentials that expire at `until`.
fn of_role(until: u64) -> Reply {
    let credentials =
        json!({"AccessKeyId": "ASIA", "SecretAccessKey": "s3cret", "SessionToken": "session", "Expiration": until});
    let body =
        json!({"AssumeRoleWithWebIdentityResponse": {"AssumeRoleWithWebIdentityResult": {"Credentials": credentials}}});
    Reply::json(200, &body.to_string())
}

fn good(token: &str) -> Value {
    json!({
        "access_token": token, "token_type": "Bearer", "expires_in": 3600, "refresh_token": "never",
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    })
}

async fn start_at(url: &str) -> World {
    start_with(url, |yaml| yaml).await
}

/// `change` edits the configuration.
async fn start_with(url: &str, change: impl FnOnce(String) -> String) -> World {
    let onward = ONWARD.replace("{url}", url);
    World::with_files(
        |yaml| change(yaml).change("  resource_servers:\n", &onward).change("rules:\n", RULES),
        &[("bot", "bot-secret-of-the-tests")],
    )
    .await
}

async fn start() -> (World, Provider) {
    let provider = Provider::start().await;
    (start_at(&provider.upstream.url()).await, provider)
}

async fn ask(world: &World, who: &str, audience: &str, scope: &str) -> Answer {
    world.ask(&[("subject_token", who), ("audience", audience), ("scope", scope)]).await
}

#[tokio::test]
async fn a_token_of_the_provider_is_passed_on_and_nothing_else() {
    let (world, provider) = start().await;
    let alice = world.person("alice", &json!({}));
    let answer = ask(&world, &alice, "vault", "read write").await;
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let said = answer.json();
    let lasts = said["expires_in"].as_i64().unwrap();
    assert!((3590..=3600).contains(&lasts), "{said:#}");
    let expected = json!({
        "access_token": "given-0", "token_type": "Bearer", "expires_in": lasts, "scope": "read write",
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    });
    assert_eq!(said, expected);

    let call = provider.upstream.only();
    assert_eq!(call.line(), "POST /token HTTP/1.1");
    assert!(call.one("authorization").starts_with("Basic "), "{}", call.head);
    let form = Provider::form(&call);
    let plain: Vec<(&str, &str)> =
        form.iter().filter(|(name, _)| name != "subject_token").map(|(name, value)| (&**name, &**value)).collect();
    let expected = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("audience", "the-vault"),
        ("scope", "read write"),
    ];
    assert_eq!(plain, expected);
    let assertion = Provider::get(&call, "subject_token");
    let claims = part(&assertion, 1);
    assert_eq!(part(&assertion, 0)["typ"], "JWT");
    for (name, value) in [
        ("iss", json!("https://doorward.test")),
        ("aud", json!("https://idp.test")),
        ("sub", json!(world.username("alice"))),
        ("origin", json!({"issuer": "people", "sub": "alice"})),
        ("scope", json!("read write")),
    ] {
        assert_eq!(claims[name], value, "{claims:#}");
    }
    assert!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap() <= 300, "{claims:#}");

    // It gives no access here.
    let bearer = format!("Authorization: Bearer {assertion}");
    assert_eq!(world.doorward.get("/", &["Host: localhost", &bearer]).await.status, 401);

    // The trail names its subject without containing it, and traces follow the tokens in both directions.
    let jti = claims["jti"].as_str().unwrap();
    let record = world.doorward.record(|record| record["unmapped"]["issued"]["token"] == jti).await;
    let issued = &record["unmapped"]["issued"];
    assert_eq!((&issued["audience"], &issued["onward"]["assertion"]), (&json!("vault"), &json!(jti)), "{issued:#}");
    assert_eq!(issued["onward"]["provider"], "token_exchange at 127.0.0.1");
    let trail = std::fs::read_to_string(world.doorward.audit_path()).unwrap();
    assert!(!trail.contains("given-0") && !trail.contains(&assertion));
    let (_, traced) = world.doorward.trace("token", jti).await;
    assert!(traced.starts_with(&format!("asked for by {} in request ", world.username("alice"))), "{traced}");
    assert!(
        traced.contains(
            "for vault (read write)
"
        ),
        "{traced}"
    );
    assert!(traced.contains(&format!("of       token_exchange at 127.0.0.1, for assertion {jti}")), "{traced}");
}

#[tokio::test]
async fn the_aws_sdk_accepts_issued_credentials_and_exchanges_an_own_token_itself() {
    let (world, provider) = start().await;
    let alice = world.person("alice", &json!({}));
    let role = now() + 900;
    provider.says(of_role(role));
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    // As documented for `doorward token --audience aws --out`.
    std::fs::write(at("aws.json"), world.ask(&[("subject_token", &alice), ("audience", "aws")]).await.token()).unwrap();
    std::fs::write(at("config"), format!("[default]\ncredential_process = cat {}\n", at("aws.json"))).unwrap();
    let found = aws_credentials(&[("AWS_CONFIG_FILE", &at("config"))]).await;
    let expected = json!({
        "accessKeyId": "ASIA", "secretAccessKey": "s3cret", "sessionToken": "session",
        "expiration": rfc3339(role),
    });
    assert_eq!(found, expected);
    provider.upstream.take();

    // As documented for `--as aws`.
    let own = world.ask(&[("subject_token", &alice), ("audience", "sts.amazonaws.com")]).await.token();
    std::fs::write(at("token"), &own).unwrap();
    let xml = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>ASIA</AccessKeyId>\
         <SecretAccessKey>s3cret</SecretAccessKey><SessionToken>session</SessionToken><Expiration>{}</Expiration>\
         </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        rfc3339(role)
    );
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n", xml.len());
    provider.says(Reply::Bytes((head + &xml).into_bytes()));
    let environment = [
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/deploy"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &at("token")),
        ("AWS_ENDPOINT_URL_STS", &provider.upstream.url()),
    ];
    assert_eq!(aws_credentials(&environment).await, expected);
    let call = provider.upstream.only();
    let asked = ["Action", "RoleArn", "WebIdentityToken"].map(|name| Provider::get(&call, name));
    assert_eq!(asked, ["AssumeRoleWithWebIdentity".to_owned(), "arn:aws:iam::1:role/deploy".to_owned(), own]);
}

#[tokio::test]
async fn each_kind_of_provider_is_spoken_to_as_it_expects() {
    let (world, provider) = start().await;
    let alice = world.person("alice", &json!({}));

    let given = ask(&world, &alice, "bearer", "read").await.token();
    assert!(given.starts_with("given-"));
    let call = provider.upstream.take().remove(0);
    assert_eq!(Provider::get(&call, "grant_type"), "urn:ietf:params:oauth:grant-type:jwt-bearer");
    assert_eq!(part(&Provider::get(&call, "assertion"), 1)["sub"], world.username("alice"));

    // Both scopes map to the same one there.
    let answer = ask(&world, &alice, "entra", "read write").await;
    assert_eq!((answer.status, &answer.json()["scope"]), (200, &json!("read write")), "{}", answer.text());
    let call = provider.upstream.take().remove(0);
    assert_eq!(
        (Provider::get(&call, "scope"), Provider::get(&call, "client_id")),
        ("api://x/.default".into(), "app".into())
    );
    let claims = part(&Provider::get(&call, "client_assertion"), 1);
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!("the-app"), &json!("api://AzureADTokenExchange")));
    assert_eq!(claims["origin"]["sub"], "alice", "who it is is told as well: {claims:#}");

    let role = now() + 900;
    provider.says(of_role(role));
    let answer = world.ask(&[("subject_token", &alice), ("audience", "aws")]).await;
    let said = answer.json();
    assert_eq!((&said["token_type"], answer.status), (&json!("N_A"), 200), "{said:#}");
    assert_eq!(said["issued_token_type"], "https://doorward.dev/token-type/aws-credentials");
    let process: Value = serde_json::from_str(said["access_token"].as_str().unwrap()).unwrap();
    assert_eq!((&process["Version"], &process["SecretAccessKey"]), (&json!(1), &json!("s3cret")));
    let call = provider.upstream.take().remove(0);
    assert_eq!(call.one("accept"), "application/json");
    assert_eq!(
        (Provider::get(&call, "RoleSessionName"), Provider::get(&call, "DurationSeconds")),
        ("people.alice".into(), "3600".into())
    );
    assert_eq!(part(&Provider::get(&call, "WebIdentityToken"), 1)["aud"], "sts.amazonaws.com");

    // This response serves both of Google's calls.
    let mut both = good("of-the-pool");
    both["accessToken"] = json!("of-the-account");
    both["expireTime"] = json!(rfc3339(now() + 1800));
    provider.says(Reply::json(200, &both.to_string()));
    assert_eq!(ask(&world, &alice, "google", "read").await.token(), "of-the-account");
    let calls = provider.upstream.take();
    let [pool, account] = &calls[..] else { panic!("{calls:#?}") };
    assert_eq!(Provider::get(pool, "scope"), "https://www.googleapis.com/auth/iam");
    assert_eq!(
        account.line(),
        "POST /v1/projects/-/serviceAccounts/deploy@acme.iam.gserviceaccount.com:generateAccessToken HTTP/1.1"
    );
    assert_eq!(account.one("authorization"), "Bearer of-the-pool");
    let body: Value = serde_json::from_slice(&account.body).unwrap();
    assert_eq!(body, json!({"scope": ["https://www.googleapis.com/auth/devstorage.read_only"], "lifetime": "3600s"}));
}

/// A token that a rule denied was given under the other name of its scope, which no rule knew.
#[tokio::test]
async fn a_scope_is_given_by_the_name_that_rules_go_by_and_not_by_that_of_the_provider() {
    let provider = Provider::start().await;
    let more = "rules:
  - {id: not-read, on: {token: {audiences: [entra], scopes: [read]}}, do: deny}
  - {id: any, on: {token: {audiences: [entra], scopes: ['*']}}, who: {issuers: [people], groups: [dev]}, do: allow}
  - {id: several, on: {token: {audiences: ['ent*'], scopes: ['api://x/.default']}}, who: {issuers: [people], groups: [dev]}, do: allow}
";
    let world = start_with(&provider.upstream.url(), |yaml| yaml.change("rules:\n", more)).await;
    let alice = world.person("alice", &json!({}));
    for (scope, said) in [("read", "rule `not-read` denies it"), ("api://x/.default", "ask for `read` or `write`, if")]
    {
        let refused = ask(&world, &alice, "entra", scope).await;
        assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("invalid_scope")), "{}", refused.text());
        assert!(refused.text().contains(said), "{}", refused.text());
    }
    assert!(provider.upstream.requests().is_empty());
    assert_eq!(ask(&world, &alice, "entra", "other").await.token(), "given-0");
    // Without a scope the others are given, although a rule for more audiences has such a name.
    let all = world.ask(&[("subject_token", &alice), ("audience", "entra")]).await;
    assert_eq!((all.status, &all.json()["scope"]), (200, &json!("write")), "{}", all.text());
}

#[tokio::test]
async fn a_provider_is_asked_once_for_one_request_and_again_for_another() {
    let (world, mut provider) = start().await;
    let (alice, bob) = (world.person("alice", &json!({})), world.person("bob", &json!({})));
    let (told, go_on) = (Arc::new(Notify::new()), json!(good("first")).to_string());
    let later = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{go_on}", go_on.len()).into_bytes();
    provider.says(Reply::Later(Arc::clone(&told), later));

    // The first caller leaves; the call continues for the others.
    let form = exchange_form(&[("audience", "vault"), ("scope", "read"), ("subject_token", &alice)]);
    let mut gone = Raw::connect(world.doorward.address("public")).await;
    gone.send(request(&EXCHANGE, form.as_bytes())).await;
    provider.upstream.wait_for(1).await;
    drop(gone);
    let many = join_all((0..50).map(|_| ask(&world, &alice, "vault", "read")));
    let release = async {
        // No second call is made before the first is answered.
        tokio::task::yield_now().await;
        told.notify_one();
    };
    let (answers, ()) = tokio::join!(many, release);
    assert!(answers.iter().all(|answer| answer.token() == "first"));
    assert_eq!(provider.upstream.requests().len(), 1);

    *provider.says.lock().unwrap() = None;
    let of_write = ask(&world, &alice, "vault", "write").await.token();
    let of_bob = ask(&world, &bob, "vault", "read").await.token();
    let of_other = ask(&world, &alice, "bearer", "read").await.token();
    assert_eq!(provider.upstream.requests().len(), 4);
    let all = ["first", &of_write, &of_bob, &of_other];
    assert!(all.iter().enumerate().all(|(index, one)| !all[index + 1..].contains(one)), "{all:?}");
    assert_eq!(ask(&world, &bob, "vault", "read").await.token(), of_bob);
    assert_eq!(provider.upstream.requests().len(), 4, "it is held");

    // A cached token is no decision: it is refused to revoked callers and to those whose rights have ended.
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", "people", "--subject", "alice", "--why", "left"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ask(&world, &alice, "vault", "read").await.status, 400);
    let outsider = world.person("bob", &json!({"groups": []}));
    assert_eq!(ask(&world, &outsider, "vault", "read").await.json()["error"], "invalid_target");

    let metrics = world.doorward.metrics().await;
    let held = metrics.lines().find(|line| line.contains("onward_tokens") && line.contains("outcome=\"held\""));
    assert!(held.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
}

#[tokio::test]
async fn a_token_is_requested_again_before_it_expires() {
    let (world, provider) = start().await;
    let alice = world.person("alice", &json!({}));
    let first = ask(&world, &alice, "vault", "read").await.token();
    // A fifth of its hour is left.
    world.doorward.set_clock_ahead(2881);
    world.people.set_clock_ahead(2881);
    let alice = world.person("alice", &json!({}));
    let second = settled(async || ask(&world, &alice, "vault", "read").await).await.token();
    assert_ne!(first, second);
    assert_eq!(provider.upstream.requests().len(), 2);
}

#[tokio::test]
async fn errors_of_a_provider_are_reported_and_not_passed_on() {
    let (world, provider) = start().await;
    let alice = world.person("alice", &json!({}));
    let with = |name: &str, value: Value| {
        let mut body = good("never-passed-on");
        body[name] = value;
        Reply::json(200, &body.to_string())
    };
    let redirect = b"HTTP/1.1 307 X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_vec();
    let huge = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(100_000));
    for (what, reply, status, error, said) in [
        ("slow", Reply::Hang, 503, "temporarily_unavailable", "no answer within 2s"),
        (
            "in trouble",
            Reply::json(500, "{}"),
            503,
            "temporarily_unavailable",
            "it answers 500; try again, and if it stays so",
        ),
        ("a redirect", Reply::Bytes(redirect), 502, "server_error", "redirect (307)"),
        ("huge", Reply::json(200, &huge), 503, "temporarily_unavailable", "larger than 65536 bytes"),
        ("no JSON", Reply::json(200, "<html>"), 502, "server_error", "JSON"),
        ("too long", with("expires_in", json!(7200)), 502, "server_error", "lasts 7200 s, where 'max_lifetime'"),
        ("wider", with("scope", json!("read admin")), 502, "server_error", "scope `admin`, which was not asked for"),
        ("bound", with("token_type", json!("DPoP")), 502, "server_error", "`token_type` is `DPoP`"),
        (
            "of another kind",
            with("issued_token_type", json!("urn:ietf:params:oauth:token-type:saml2")),
            502,
            "server_error",
            "`issued_token_type` is",
        ),
        (
            "no trust",
            Reply::json(401, r#"{"error":"invalid_client","error_description":"no \"credential\"\nmatches"}"#),
            400,
            "invalid_target",
            "refused with `invalid_client` (no 'credential' matches). It was shown issuer `https://doorward.test`, subject \
             `ALICE`, audience `https://idp.test`",
        ),
        (
            "a scope",
            Reply::json(400, r#"{"error":"invalid_scope"}"#),
            400,
            "invalid_scope",
            "refused with `invalid_scope`",
        ),
    ] {
        provider.says(reply);
        let answer = ask(&world, &alice, "vault", "read").await;
        let body = answer.json();
        assert_eq!((answer.status, body["error"].as_str()), (status, Some(error)), "{what}: {}", answer.text());
        let description = body["error_description"].as_str().unwrap();
        let said = said.replace("'max_lifetime'", "`max_lifetime`").replace("ALICE", &world.username("alice"));
        assert!(
            description.contains(&said) && description.contains("the provider of `vault`"),
            "{what}: {description}"
        );
        assert!(!description.contains("eyJ") && !answer.text().contains("never-passed-on"), "{what}: {description}");
    }
    let calls = provider.upstream.requests();
    assert!(calls.iter().all(|call| call.line() == "POST /token HTTP/1.1"), "a redirect was followed");
    // A narrower response is reported as such.
    provider.says(with("scope", json!("write")));
    let answer = ask(&world, &alice, "vault", "read write").await;
    assert_eq!((answer.status, &answer.json()["scope"]), (200, &json!("write")), "{}", answer.text());
    // AWS also says this if it could not fetch Doorward's keys.
    let unsure = r#"{"Error":{"Code":"InvalidIdentityToken","Message":"Couldn't retrieve verification key"}}"#;
    provider.says(Reply::json(400, unsure));
    let answer = world.ask(&[("subject_token", &alice), ("audience", "aws")]).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("10")), "{}", answer.text());
    assert!(answer.text().contains("refused with `InvalidIdentityToken`"), "{}", answer.text());
    // A step shows only the beginning.
    let told = answer.json()["error_description"].as_str().unwrap().find("which can be temporary");
    assert!(told.is_some_and(|at| at < 200), "{}", answer.text());
    let aws = ask(&world, &alice, "aws", "read").await;
    assert_eq!((aws.status, &aws.json()["error"]), (400, &json!("invalid_scope")), "{}", aws.text());
}

#[tokio::test]
async fn the_certified_provider_takes_the_assertion_by_our_published_keys() {
    let provider = OidcProvider::start("http://localhost").await;
    let world = start_at(&provider.issuer).await;
    let alice = world.person("alice", &json!({}));
    let refused = ask(&world, &alice, "node", "tekton:run").await;
    assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("invalid_target")), "{}", refused.text());
    assert!(refused.text().contains("invalid_grant"), "{}", refused.text());

    let address = provider.issuer.strip_prefix("http://").unwrap().to_owned();
    let call = async |line: &str, more: &str, body: &str| {
        let mut raw = Raw::connect(address.parse().unwrap()).await;
        let length = body.len();
        raw.send(format!(
            "{line} HTTP/1.1\r\nHost: {address}\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await;
        raw.answer().await
    };
    let port = world.doorward.address("public").port();
    assert_eq!(call(&format!("GET /tests/trust/{port}"), "", "").await.status, 200);
    let answer = ask(&world, &alice, "node", "tekton:run").await;
    let given = answer.token();
    assert_eq!(answer.json()["scope"], "tekton:run");
    let basic = BASE64_STANDARD.encode("bot:bot-secret-of-the-tests");
    let more = format!("Authorization: Basic {basic}\r\nContent-Type: application/x-www-form-urlencoded\r\n");
    let told = call("POST /token/introspection", &more, &format!("token={given}")).await.json();
    assert_eq!((&told["active"], &told["sub"]), (&json!(true), &json!("alice")), "{told:#}");
    assert_eq!((&told["scope"], &told["client_id"]), (&json!("tekton:run"), &json!("bot")), "{told:#}");
}

/// Its hours, the login age that it needs, and the time in its expression.
#[tokio::test]
async fn a_token_that_would_outlast_what_its_rule_says_of_time_is_not_passed_on() {
    let minute = now() / 60;
    // Since an hour ago, and for at least three more minutes.
    let (from, to) = (clock(minute + 24 * 60 - 60, "00:00"), clock(minute + 4, "24:00"));
    for more in [
        format!("'tekton:*']}}, time: {{from: '{from}', to: '{to}'}}}}"),
        "'tekton:*']}}\n    need: {mfa: {max_age: 61m}}".to_owned(),
        format!("'tekton:*']}}}}\n    when: request.time < {}", now() + 200),
    ] {
        is_not_outlasted(&RULES.replacen("'tekton:*']}}", &more, 1)).await;
    }
}

/// These rules give a token for three more minutes.
async fn is_not_outlasted(rules: &str) {
    let provider = Provider::start().await;
    let onward = ONWARD.replace("{url}", &provider.upstream.url());
    let world = World::with_files(
        |yaml| yaml.change("  resource_servers:\n", &onward).change("rules:\n", rules),
        &[("bot", "bot-secret-of-the-tests")],
    )
    .await;
    let alice = world.person("alice", &json!({"auth_time": now() - 3400, "amr": ["mfa"]}));
    let refused = ask(&world, &alice, "vault", "read").await;
    assert_eq!((refused.status, &refused.json()["error"]), (400, &json!("invalid_target")), "{}", refused.text());
    assert!(refused.text().contains("by their hours"), "{}", refused.text());
    assert!(!refused.text().contains("given-"), "{}", refused.text());
    let mut short = good("short");
    short["expires_in"] = json!(100);
    provider.says(Reply::json(200, &short.to_string()));
    assert_eq!(ask(&world, &alice, "vault", "write").await.token(), "short");
}
