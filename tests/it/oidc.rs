//! With a certified OpenID provider and a real browser.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use tempfile::TempDir;

use crate::harness::{
    Authority, Doorward, Nginx, OidcProvider, Raw, Upstream, browse, browse_until, connect_tls, free_port, within,
};

struct World {
    doorward: Doorward,
    provider: Option<OidcProvider>,
    upstream: Upstream,
    origin: String,
}

async fn world() -> World {
    world_asking("").await
}

/// `introspection` are further settings of it.
async fn world_asking(introspection: &str) -> World {
    let origin = format!("http://localhost:{}", free_port());
    let provider = OidcProvider::start(&origin).await;
    let world = world_with(origin, provider.issuer.clone(), introspection).await;
    world.provider_is_known().await;
    World { provider: Some(provider), ..world }
}

/// One whose provider may not be there yet.
async fn world_with(origin: String, issuer: String, introspection: &str) -> World {
    let (_, port) = origin.rsplit_once(':').unwrap();
    let listener = format!("address: '127.0.0.1:{port}'");
    world_listening(&listener, tempfile::tempdir().unwrap(), origin, issuer, introspection).await
}

/// `listener` says where and how it listens; `dir` has the files for that.
async fn world_listening(listener: &str, dir: TempDir, origin: String, issuer: String, introspection: &str) -> World {
    let upstream = Upstream::start().await;
    std::fs::write(dir.path().join("client"), "doorward-secret-of-the-tests").unwrap();
    std::fs::write(dir.path().join("token"), "upstream-token").unwrap();
    let yaml = format!(
        "
listeners: [{{name: public, {listener}}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    algorithms: [RS256]
    clients: [{{id: doorward, kind: human}}, {{id: bot, kind: agent}}]
    introspection: {{mode: opaque, {introspection}cache: 1s, client: {{id: doorward, secret: {{file: client}}}}}}
    login:
      client: {{id: doorward, secret: {{file: client}}}}
      scopes: [offline_access]
upstreams:
  - {{name: web, url: '{upstream}'}}
  - {{name: cluster, url: '{upstream}', credential: {{bearer: {{file: token}}}}}}
routes:
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
  - {{name: cluster, kind: kubernetes, hosts: [localhost], paths: [/apis/*], schemes: [session, bearer], upstream: cluster}}
grants:
  - {{id: viewers, who: {{groups: [developers]}}, kubernetes_groups: ['tekton:viewers']}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{kind: human, groups: [developers]}}, do: allow}}
  - {{id: bots, on: {{routes: [cluster]}}, who: {{clients: [bot], scopes: ['tekton:run']}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        upstream = upstream.url().replace("127.0.0.1", "localhost"),
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    World { doorward, provider: None, upstream, origin }
}

impl World {
    /// Until discovery has been read, the login says that the provider was not reached yet.
    async fn provider_is_known(&self) {
        self.doorward.until_people_can_sign_in(self.origin.strip_prefix("http://").unwrap()).await;
    }
}

#[tokio::test]
async fn a_person_logs_in_is_who_they_are_and_is_out_after_signing_out() {
    let world = world().await;
    let saw =
        browse(&json!({"scenario": "login", "url": world.origin, "path": "/deep/page?tab=1#/namespaces/ci?x=%2F", "person": "alice"}))
            .await;
    let landed = format!("{}/deep/page?tab=1#/namespaces/ci?x=%2F", world.origin);
    assert_eq!(saw["landed"], landed, "the return address keeps its query and its fragment");
    let whoami = saw["whoami"].as_str().unwrap();
    for part in ["alice", "tekton:viewers", "developers", "human"] {
        assert!(whoami.contains(part), "{part} in {whoami}");
    }
    let cookie = &saw["cookies"][0];
    assert_eq!(cookie["name"], "__Host-doorward");
    assert_eq!(
        (&cookie["secure"], &cookie["httpOnly"], &cookie["sameSite"]),
        (&json!(true), &json!(true), &json!("Lax"))
    );
    assert_eq!(saw["fetched"], 200, "a POST of our own page passes");
    assert_eq!(saw["signedOut"], format!("{}/oauth2/signed_out", world.origin));
    assert_eq!((&saw["after"], &saw["replayed"]), (&json!(401), &json!(401)), "the old cookie is worth nothing");

    let seen = world.upstream.requests();
    assert!(seen.iter().all(|request| !request.has("cookie") && !request.has("authorization")), "{seen:#?}");
    assert_eq!(seen[0].one("x-forwarded-user"), "alice");
    let audit = world.doorward.audit();
    let page = audit
        .iter()
        .find(|record| record["http_request"]["url"]["path"] == "/deep/page" && record["http_response"]["code"] == 200);
    let page = page.expect("the page is in the trail").to_string();
    assert!(page.contains("\"alice\"") && page.contains("\"people\""), "{page}");
    for line in std::fs::read_to_string(world.doorward.audit_path()).unwrap().lines() {
        assert!(!line.contains(cookie["value"].as_str().unwrap()), "a cookie is in the trail");
    }
}

#[tokio::test]
async fn kubectl_without_a_credential_is_told_of_the_login_that_it_has() {
    let origin = format!("http://localhost:{}", free_port());
    let world = world_with(origin, format!("http://127.0.0.1:{}", free_port()), "").await;
    let host = format!("Host: {}", world.origin.strip_prefix("http://").unwrap());
    let told = world.doorward.get("/apis/tekton.dev/v1/namespaces/ci/taskruns", &[&host]).await;
    assert_eq!(told.status, 401);
    assert!(told.text().contains(&format!("Run `doorward login {}`", world.origin)), "{}", told.text());
    let told = world.doorward.get("/", &[&host]).await;
    assert!(told.text().to_lowercase().contains("sign in with a browser"), "{}", told.text());
}

#[tokio::test]
async fn a_person_logs_in_by_way_of_nginx() {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let authority = Authority::new();
    authority.issue(&["localhost"]).write(dir.path(), "server");
    std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
    let nginx = Nginx::in_front_of(([127, 0, 0, 1], port).into(), dir.path(), free_port()).await;
    let origin = format!("https://localhost:{}", nginx.address.port());
    let provider = OidcProvider::start(&origin).await;
    let listener = format!(
        "address: '127.0.0.1:{port}', trusted_proxies: [127.0.0.1/32], \
         tls: {{certificates: [{{chain: server.pem, key: server.key}}]}}"
    );
    let world = world_listening(&listener, dir, origin, provider.issuer.clone(), "").await;
    // Over TLS, as nginx comes.
    let client = authority.client(&[], None);
    within(async {
        loop {
            let stream = connect_tls(world.doorward.address("public"), &client, "localhost").await.unwrap();
            let mut raw = Raw::over(stream);
            let host = world.origin.strip_prefix("https://").unwrap();
            raw.send(format!("GET /oauth2/start HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            if raw.answer().await.status == 303 {
                return;
            }
        }
    })
    .await;
    let path = "/deep/page?tab=1&x=%2F";
    let saw = browse(&json!({"scenario": "login", "url": world.origin, "path": path, "person": "alice"})).await;
    assert_eq!(saw["landed"], format!("{}{path}", world.origin));
    assert!(saw["whoami"].as_str().unwrap().contains("alice"), "{saw}");
    assert_eq!((&saw["after"], &saw["replayed"]), (&json!(401), &json!(401)), "{saw}");
}

#[tokio::test]
async fn without_a_script_path_and_query_survive() {
    let world = world().await;
    let saw =
        browse(&json!({"scenario": "withoutScript", "url": world.origin, "path": "/deep/page?tab=1&x=%2F"})).await;
    assert_eq!(saw["landed"], format!("{}/deep/page?tab=1&x=%2F", world.origin));
}

#[tokio::test]
async fn tabs_that_log_in_at_once_all_come_back_to_their_places() {
    let world = world().await;
    let saw = browse(&json!({"scenario": "tabs", "url": world.origin})).await;
    assert_eq!(saw["landed"], saw["expected"]);
    assert_eq!(saw["reloaded"], saw["expected"]);
}

#[tokio::test]
async fn a_form_that_meets_an_ended_session_is_told_of_and_a_script_is_refused() {
    let world = world().await;
    let saw = browse(&json!({"scenario": "form", "url": world.origin})).await;
    let fetched = &saw["fetched"];
    assert_eq!((&fetched["status"], &fetched["type"]), (&json!(401), &json!("application/problem+json")), "{saw}");
    assert_eq!(fetched["body"]["reason"], "credential_missing");
    assert_eq!(saw["socket"], "refused");
    let told = saw["told"].as_str().unwrap();
    assert!(told.contains("Your form was not sent") && told.contains("POST /deploy"), "{told}");
    assert_eq!(saw["back"], format!("{}/form?env=prod", world.origin));
    assert!(world.upstream.requests().iter().all(|request| !request.line().contains("/deploy")), "it was sent on");
}

#[tokio::test]
async fn an_answer_in_another_browser_or_twice_gets_a_page_with_a_way_on() {
    let world = world().await;
    let saw = browse(&json!({"scenario": "elsewhere", "url": world.origin})).await;
    assert!(saw["inAnother"].as_str().unwrap().contains("already completed"), "{saw}");
    assert!(saw["again"].as_str().unwrap().contains("You are signed in in this browser"), "{saw}");
    assert_eq!(saw["wentOn"], format!("{}/runs", world.origin));
}

#[tokio::test]
async fn a_provider_that_is_away_gets_a_page_whose_button_works_once_it_is_back() {
    let (origin, port) = (format!("http://localhost:{}", free_port()), free_port());
    let world = world_with(origin, format!("http://127.0.0.1:{port}"), "").await;
    let waiting = browse_until(&json!({"scenario": "provider", "url": world.origin}), "away").await;
    let _provider = OidcProvider::start_at(&world.origin, port).await;
    let saw = waiting.go_on().await;
    assert!(saw["told"].as_str().unwrap().contains("The provider cannot be reached"), "{saw}");
    assert_eq!(saw["landed"], format!("{}/runs", world.origin));
    let said = world.doorward.log().iter().map(Value::to_string).collect::<String>();
    assert!(said.contains("the key set could not be fetched"), "the cause is in the log: {said}");
}

/// A token of the bot by client credentials; with a resource it is a JWT, without one it is opaque.
async fn token(provider: &OidcProvider, form: &str) -> String {
    let answer = post(&provider.issuer, "/token", "bot", "bot-secret-of-the-tests", form).await;
    answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

async fn post(issuer: &str, path: &str, client: &str, secret: &str, form: &str) -> Value {
    let address = issuer.strip_prefix("http://").unwrap();
    let mut raw = Raw::connect(address.parse().unwrap()).await;
    let credentials = STANDARD.encode(format!("{client}:{secret}"));
    raw.send(format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {credentials}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{form}",
        form.len()
    ))
    .await;
    let answer = raw.answer().await;
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

async fn call(world: &World, token: &str) -> (u16, String) {
    let answer = world
        .doorward
        .get("/apis/tekton.dev/v1/taskruns", &["Host: localhost", &format!("Authorization: Bearer {token}")])
        .await;
    (answer.status, answer.text())
}

#[tokio::test]
async fn a_bot_brings_tokens_of_the_certified_provider() {
    let world = world().await;
    let grant = "grant_type=client_credentials&scope=tekton:run";
    let resource = "&resource=https://doorward.test";

    let jwt = token(world.provider.as_ref().unwrap(), &format!("{grant}{resource}")).await;
    assert_eq!(jwt.split('.').count(), 3);
    assert_eq!(call(&world, &jwt).await.0, 200);
    assert_eq!(world.upstream.take()[0].one("impersonate-user"), "bot");
    // The twin: the same token without the scope that the rule needs.
    let narrow = token(world.provider.as_ref().unwrap(), &format!("grant_type=client_credentials{resource}")).await;
    let refused = call(&world, &narrow).await;
    assert_eq!(refused.0, 403, "{}", refused.1);
    assert!(world.upstream.take().is_empty());
}

/// The provider signs its answers (RFC 9701), and each is verified.
#[tokio::test]
async fn an_opaque_token_is_good_by_the_word_that_the_provider_signed() {
    let world = world_asking("signed: true, ").await;
    let opaque = token(world.provider.as_ref().unwrap(), "grant_type=client_credentials&scope=tekton:run").await;
    let (status, text) = call(&world, &opaque).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(world.upstream.take()[0].one("impersonate-user"), "bot");
    assert_eq!(call(&world, "nobody-made-this-token").await.0, 401);
}

#[tokio::test]
async fn an_opaque_token_is_good_until_it_is_revoked() {
    let world = world().await;
    let opaque = token(world.provider.as_ref().unwrap(), "grant_type=client_credentials&scope=tekton:run").await;
    assert!(!opaque.contains('.'));
    let (status, text) = call(&world, &opaque).await;
    assert_eq!(status, 200, "{text}");
    let form = format!("token={opaque}");
    post(&world.provider.as_ref().unwrap().issuer, "/token/revocation", "bot", "bot-secret-of-the-tests", &form).await;
    within(async {
        // Good answers are used for a second, which the configuration says.
        while call(&world, &opaque).await.0 == 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(call(&world, &opaque).await.0, 401);
    assert_eq!(call(&world, "nobody-made-this-token").await.0, 401);
}
