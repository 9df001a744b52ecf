//! With a certified OpenID provider and a real browser.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    harness::{
        Answered, Authority, Nginx, OidcProvider, Raw, Upstream, browse, browse_until, free_port, session, until,
    },
    login_fixture::{Changes, LoginFixture, RULE, until_people_can_sign_in_over_tls},
};

/// Bots use it too, with tokens that the provider may be asked about.
const CHANGES: Changes<'_> = &[
    (
        "    kind: human
    login: {client: {id: doorward, secret: {file: client}}, label: Example Corp}",
        "    clients: [{id: doorward, kind: human}, {id: bot, kind: agent, subject: bot}]
    introspection: {mode: opaque, cache: 1s, timeout: 10s, client: {id: doorward, secret: {file: client}}}
    login: {client: {id: doorward, secret: {file: client}}, scopes: [offline_access]}",
    ),
    (
        "routes:\n",
        "  - {name: cluster, url: '{upstream}', credential: {bearer: {file: token}}}
routes:
  - {name: cluster, kind: kubernetes, hosts: [localhost], paths: [/apis/*], schemes: [session, bearer], upstream: cluster}
",
    ),
    (
        "rules:\n",
        "grants:
  - {id: viewers, who: {groups: [developers]}, kubernetes_groups: ['tekton:viewers']}
rules:
  - {id: bots, on: {routes: [cluster]}, who: {clients: [bot], scopes: ['tekton:run']}, do: allow}
",
    ),
    (RULE, "{id: people, on: {routes: [web]}, who: {kind: human, groups: [developers]}, do: allow}"),
    // By name.
    ("'{upstream}'", "'http://localhost:{upstream_port}'"),
];

async fn world() -> (LoginFixture, OidcProvider) {
    LoginFixture::certified(&json!({}), CHANGES).await
}

/// A provider may deliver the claims of a scope at userinfo only (OpenID Connect Core 1.0 section 5.4).
#[tokio::test]
async fn groups_from_userinfo_alone_admit_a_person_if_it_is_configured() {
    for (asks, status) in [(true, 200), (false, 403)] {
        let further = json!({"userinfoAlone": true});
        let (from, to) =
            ("scopes: [offline_access]}", format!("scopes: [offline_access, profile], userinfo: {asks}}}"));
        let changes = [CHANGES, &[(from, &to)]].concat();
        let (world, provider) = LoginFixture::certified(&further, &changes).await;
        let Answered { cookies, callback } =
            Answered::begin(&world.doorward, &world.host, &[], &provider, "alice").await;
        let back = world.get(&callback, &[&cookies]).await;
        let cookie = session(&back).unwrap_or_else(|| panic!("{}{}", back.head, back.text()));
        assert_eq!(world.status(&cookie).await, status, "asked: {asks}");
    }
}

/// A Doorward whose provider, at this port, may not be running yet.
async fn alone(provider: u16) -> LoginFixture {
    let (upstream, dir) = (Upstream::start().await, tempfile::tempdir().unwrap());
    LoginFixture::start(&format!("http://127.0.0.1:{provider}"), free_port(), upstream, dir, CHANGES).await
}

#[tokio::test]
async fn a_person_signs_in_is_recognized_and_signs_out() {
    let (world, _provider) = world().await;
    let saw =
        browse(&json!({"scenario": "login", "url": world.origin(), "path": "/deep/page?tab=1#/namespaces/ci?x=%2F", "person": "alice"}))
            .await;
    let landed = format!("{}/deep/page?tab=1#/namespaces/ci?x=%2F", world.origin());
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
    assert_eq!(saw["signedOut"], format!("{}/oauth2/signed_out", world.origin()));
    assert_eq!((&saw["after"], &saw["replayed"]), (&json!(401), &json!(401)), "the old cookie is worth nothing");

    let seen = world.upstream.requests();
    assert!(seen.iter().all(|request| !request.has("cookie") && !request.has("authorization")), "{seen:#?}");
    assert_eq!(seen[0].one("x-forwarded-user"), "alice");
    let is_page = |record: &Value| {
        record["http_request"]["url"]["path"] == "/deep/page" && record["http_response"]["code"] == 200
    };
    let page = world.doorward.record(is_page).await.to_string();
    assert!(page.contains("\"alice\"") && page.contains("\"people\""), "{page}");
    for line in std::fs::read_to_string(world.doorward.audit_path()).unwrap().lines() {
        assert!(!line.contains(cookie["value"].as_str().unwrap()), "a cookie is in the trail");
    }
}

#[tokio::test]
async fn kubectl_without_a_credential_is_referred_to_doorward_login() {
    let world = alone(free_port()).await;
    let told = world.get("/apis/tekton.dev/v1/namespaces/ci/taskruns", &[]).await;
    assert_eq!(told.status, 401);
    assert!(told.text().contains(&format!("Run `doorward login {}`", world.origin())), "{}", told.text());
    let told = world.get("/", &[]).await;
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
    let listener = "', trusted_proxies: [127.0.0.1/32], tls: {certificates: [{chain: server.pem, key: server.key}]}}]";
    let changes = [CHANGES, &[("'}]", listener)]].concat();
    let world = LoginFixture::start(&provider.issuer, port, Upstream::start().await, dir, &changes).await;
    // As nginx connects.
    until_people_can_sign_in_over_tls(&world.doorward, &authority, &format!("localhost:{}", nginx.address.port()))
        .await;
    let path = "/deep/page?tab=1&x=%2F";
    let saw = browse(&json!({"scenario": "login", "url": origin, "path": path, "person": "alice"})).await;
    assert_eq!(saw["landed"], format!("{origin}{path}"));
    assert!(saw["whoami"].as_str().unwrap().contains("alice"), "{saw}");
    assert_eq!((&saw["after"], &saw["replayed"]), (&json!(401), &json!(401)), "{saw}");
}

#[tokio::test]
async fn without_a_script_path_and_query_survive() {
    let (world, _provider) = world().await;
    let saw =
        browse(&json!({"scenario": "withoutScript", "url": world.origin(), "path": "/deep/page?tab=1&x=%2F"})).await;
    assert_eq!(saw["landed"], format!("{}/deep/page?tab=1&x=%2F", world.origin()));
}

#[tokio::test]
async fn tabs_that_sign_in_at_once_all_return_to_their_pages() {
    let (world, _provider) = world().await;
    let saw = browse(&json!({"scenario": "tabs", "url": world.origin()})).await;
    assert_eq!(saw["landed"], saw["expected"]);
    assert_eq!(saw["reloaded"], saw["expected"]);
}

#[tokio::test]
async fn a_form_sent_with_an_ended_session_is_reported_and_a_script_is_refused() {
    let (world, _provider) = world().await;
    let saw = browse(&json!({"scenario": "form", "url": world.origin()})).await;
    let fetched = &saw["fetched"];
    assert_eq!((&fetched["status"], &fetched["type"]), (&json!(401), &json!("application/problem+json")), "{saw}");
    assert_eq!(fetched["body"]["reason"], "credential_missing");
    assert_eq!(saw["socket"], "refused");
    let told = saw["told"].as_str().unwrap();
    assert!(told.contains("Your form was not sent") && told.contains("POST /deploy"), "{told}");
    assert_eq!(saw["back"], format!("{}/form?env=prod", world.origin()));
    assert!(world.upstream.requests().iter().all(|request| !request.line().contains("/deploy")), "it was sent on");
}

#[tokio::test]
async fn an_answer_in_another_browser_or_twice_gets_a_page_with_a_way_on() {
    let (world, _provider) = world().await;
    let saw = browse(&json!({"scenario": "elsewhere", "url": world.origin()})).await;
    assert!(saw["inAnother"].as_str().unwrap().contains("already completed"), "{saw}");
    assert!(saw["again"].as_str().unwrap().contains("You are signed in in this browser"), "{saw}");
    assert_eq!(saw["wentOn"], format!("{}/runs", world.origin()));
}

#[tokio::test]
async fn with_its_provider_down_a_login_gets_a_page_whose_button_works_later() {
    let port = free_port();
    let mut world = alone(port).await;
    let waiting = browse_until(&json!({"scenario": "provider", "url": world.origin()}), "away").await;
    let _provider = OidcProvider::start_at(&world.origin(), port).await;
    let saw = waiting.go_on().await;
    assert!(saw["told"].as_str().unwrap().contains("The provider cannot be reached"), "{saw}");
    assert_eq!(saw["landed"], format!("{}/runs", world.origin()));
    // The cause.
    world.doorward.wait_for_log_containing("the key set could not be fetched").await;
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

async fn call(world: &LoginFixture, token: &str) -> (u16, String) {
    let answer = world
        .doorward
        .get("/apis/tekton.dev/v1/taskruns", &["Host: localhost", &format!("Authorization: Bearer {token}")])
        .await;
    (answer.status, answer.text())
}

#[tokio::test]
async fn a_bot_authenticates_with_tokens_of_the_certified_provider() {
    let (world, provider) = world().await;
    let grant = "grant_type=client_credentials&scope=tekton:run";
    let resource = "&resource=https://doorward.test";

    let jwt = token(&provider, &format!("{grant}{resource}")).await;
    assert_eq!(jwt.split('.').count(), 3);
    assert_eq!(call(&world, &jwt).await.0, 200);
    assert_eq!(world.upstream.take()[0].one("impersonate-user"), "bot");
    // The counterpart: the same token without the scope that the rule needs.
    let narrow = token(&provider, &format!("grant_type=client_credentials{resource}")).await;
    let refused = call(&world, &narrow).await;
    assert_eq!(refused.0, 403, "{}", refused.1);
    assert!(world.upstream.take().is_empty());
}

/// The provider signs its introspection responses (RFC 9701), and each is verified.
#[tokio::test]
async fn an_opaque_token_is_accepted_by_a_signed_introspection_answer() {
    let changes = [CHANGES, &[("mode: opaque,", "mode: opaque, signed: true,")]].concat();
    let (world, provider) = LoginFixture::certified(&json!({}), &changes).await;
    let opaque = token(&provider, "grant_type=client_credentials&scope=tekton:run").await;
    let (status, text) = call(&world, &opaque).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(world.upstream.take()[0].one("impersonate-user"), "bot");
    assert_eq!(call(&world, "nobody-made-this-token").await.0, 401);
}

#[tokio::test]
async fn an_opaque_token_is_good_until_it_is_revoked() {
    let (world, provider) = world().await;
    let opaque = token(&provider, "grant_type=client_credentials&scope=tekton:run").await;
    assert!(!opaque.contains('.'));
    let (status, text) = call(&world, &opaque).await;
    assert_eq!(status, 200, "{text}");
    let form = format!("token={opaque}");
    post(&provider.issuer, "/token/revocation", "bot", "bot-secret-of-the-tests", &form).await;
    // Positive answers are cached for a second, as configured.
    until(async || call(&world, &opaque).await.0 == 401).await;
    assert_eq!(call(&world, "nobody-made-this-token").await.0, 401);
}
