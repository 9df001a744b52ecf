mod callback;
mod mix_up;
mod program;
mod providers;
mod robustness;
mod sign_out;
mod tabs;

use std::{collections::HashMap, sync::Arc, time::Duration};

use base64::{Engine, prelude::*};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};
use url::Url;

use super::{
    scripted::{Exchange, Script, ScriptedProvider},
    *,
};
use crate::{
    authn::{EndpointAudit, Presented},
    config::raw::ClientAuthMethod,
    issuers::ClientAuth,
    pages::Brand,
    sessions::{CookieRequest, Origin, Session, tests::Fixture},
};

/// A browser at a Doorward with one scripted provider, which is a real server.
struct Browser {
    fixture: Fixture,
    login: Login,
    metrics: LoginMetrics,
    origin: Origin,
    jar: Vec<(String, String)>,
    /// What the requests report for the trail.
    audit: EndpointAudit,
}

/// The authorization request.
struct Sent {
    parameters: HashMap<String, String>,
    issuer: String,
}

impl Browser {
    async fn new() -> Self {
        Self::with(ClientAuth::of_test("doorward", ClientAuthMethod::Basic, Some("s:cret/+"))).await
    }

    async fn with(authentication: ClientAuth) -> Self {
        Self::at(ScriptedProvider::start("corp", authentication).await)
    }

    fn at(provider: ScriptedProvider) -> Self {
        let fixture = Fixture::new(provider);
        let metrics = LoginMetrics::default();
        let providers = vec![Arc::clone(&fixture.provider) as Arc<dyn Provider>];
        let login = Login::new(providers, fixture.sessions.clone(), metrics.clone(), Brand::default());
        Self {
            fixture,
            login,
            metrics,
            origin: Origin::https("dash.example.com").unwrap(),
            jar: Vec::new(),
            audit: EndpointAudit::default(),
        }
    }

    fn headers(&self) -> HeaderMap {
        let line: Vec<String> = self.jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut headers = HeaderMap::new();
        if !line.is_empty() {
            headers.insert(header::COOKIE, HeaderValue::from_str(&line.join("; ")).unwrap());
        }
        headers
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        query: Option<&str>,
        extra: &[(&'static str, &str)],
    ) -> Response<Bytes> {
        self.send(method, path, query, extra, "").await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        query: Option<&str>,
        extra: &[(&'static str, &str)],
        body: &str,
    ) -> Response<Bytes> {
        let mut headers = self.headers();
        for (name, value) in extra {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let request = LoginRequest {
            origin: &self.origin,
            method: &method,
            path,
            query,
            headers: &headers,
            body: body.as_bytes(),
            request_id: "r-1",
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            is_shared_address: false,
            audit: &self.audit,
            left_out: &[],
        };
        let response = self.login.answer(request).await.expect("a path of the login");
        for line in response.headers().get_all(header::SET_COOKIE) {
            let line = line.to_str().unwrap();
            let (name, rest) = line.split_once('=').unwrap();
            self.jar.retain(|(known, _)| known != name);
            if !line.contains("Max-Age=0") {
                self.jar.push((name.to_owned(), rest.split(';').next().unwrap().to_owned()));
            }
        }
        response
    }

    async fn get(&mut self, address: &str) -> Response<Bytes> {
        let (path, query) = address.split_once('?').map_or((address, None), |(path, query)| (path, Some(query)));
        self.ask(Method::GET, path, query, &[]).await
    }

    /// Goes to the provider, and scripts it to answer correctly.
    async fn depart(&mut self, return_to: &str) -> Sent {
        self.depart_from(&format!("/oauth2/start?rd={return_to}")).await
    }

    async fn depart_from(&mut self, start: &str) -> Sent {
        let response = self.get(start).await;
        self.sent_by(&response)
    }

    /// The same for a browser that this response redirects there.
    fn sent_by(&self, response: &Response<Bytes>) -> Sent {
        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{}", body(response));
        let url = Url::parse(location(response)).unwrap();
        let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
        let issuer = self.fixture.provider.issuer.clone();
        let now = self.fixture.shared.clock.now().as_secs();
        *self.fixture.provider.script.lock().unwrap() = Script {
            status: StatusCode::OK,
            answer: json!({"access_token": "a-1", "token_type": "bEaReR", "expires_in": "3600", "strange": [1]}),
            claims: Some(json!({
                "iss": issuer, "aud": "doorward", "sub": "alice", "nonce": parameters["nonce"], "sid": "s-1",
                "iat": now, "exp": now + 300, "groups": ["dev"], "scope": "admin everything",
            })),
            forged: false,
            ..Script::default()
        };
        Sent { parameters, issuer }
    }

    fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.fixture.provider.script.lock().unwrap());
    }

    fn exchanges(&self) -> Vec<Exchange> {
        self.fixture.provider.exchanges.lock().unwrap().clone()
    }

    async fn sign_in(&mut self) -> Response<Bytes> {
        let sent = self.depart("/").await;
        self.get(&sent.good()).await
    }

    async fn session(&self) -> Option<Arc<Session>> {
        let headers = self.headers();
        let request = CookieRequest {
            origin: &self.origin,
            method: &Method::GET,
            headers: &headers,
            upgrade: false,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
        };
        match self.fixture.sessions.authenticate(request).await {
            Presented::Valid(session) => Some(session),
            _ => None,
        }
    }
}

impl Sent {
    fn state(&self) -> &str {
        &self.parameters["state"]
    }

    fn good(&self) -> String {
        format!("/oauth2/callback?code=c-1&state={}&iss={}", self.state(), encode(&self.issuer))
    }
}

fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn location(response: &Response<Bytes>) -> &str {
    response.headers()[header::LOCATION].to_str().unwrap()
}

fn body(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

#[tokio::test]
async fn a_person_signs_in_and_returns_to_their_page() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("%2Fruns%3Fnamespace%3Dprod").await;
    let parameters = &sent.parameters;
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "doorward"),
        ("redirect_uri", "https://dash.example.com/oauth2/callback"),
        ("scope", "openid groups"),
        ("code_challenge_method", "S256"),
        ("tenant", "t"),
    ] {
        assert_eq!(parameters[name], value, "{name}");
    }
    assert!(parameters["nonce"].len() >= 22 && parameters["state"].len() >= 22);

    let response = browser.get(&sent.good()).await;
    assert_eq!((response.status(), location(&response)), (StatusCode::SEE_OTHER, "/runs?namespace=prod"));
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    assert_eq!(response.headers()[header::REFERRER_POLICY], "no-referrer");
    let names: Vec<_> = browser.jar.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["__Host-doorward", "__Host-doorward-attempts"], "the login's own cookie is gone");

    let [exchange] = browser.exchanges().try_into().unwrap();
    let verifier = &exchange.form["code_verifier"];
    let challenge = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
    assert_eq!(BASE64_URL_SAFE_NO_PAD.encode(challenge), parameters["code_challenge"]);
    assert_eq!(exchange.form["grant_type"], "authorization_code");
    assert_eq!(exchange.form["code"], "c-1");
    assert_eq!(exchange.form["redirect_uri"], parameters["redirect_uri"]);
    let basic = BASE64_STANDARD.encode("doorward:s%3Acret%2F%2B");
    assert_eq!(exchange.authorization, Some(format!("Basic {basic}")));

    let session = browser.session().await.unwrap();
    assert_eq!((&*session.principal.subject, &*session.principal.username), ("alice", "corp#alice"));
    // The requested scopes are granted, as the response names none; scopes in the ID token are ignored.
    assert_eq!(session.principal.scopes, ["openid", "groups"].map(Arc::<str>::from));
    assert_eq!(session.tokens().access, "a-1");
    assert_eq!(browser.metrics.count("corp", Outcome::success), 1);
}

#[tokio::test]
async fn granted_scopes_are_those_of_the_answer() {
    for (answer, granted) in [(json!("openid"), vec!["openid"]), (json!(""), vec![]), (json!("a b"), vec!["a", "b"])] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        browser.script(|script| script.answer["scope"] = answer);
        browser.get(&sent.good()).await;
        let scopes = browser.session().await.unwrap().principal.scopes.clone();
        assert_eq!(scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(), granted);
    }
}

/// Some providers omit the claim for people without groups. No session was rechecked before.
#[tokio::test]
async fn userinfo_removes_a_group_of_the_id_token_at_the_first_refresh() {
    let authentication = ClientAuth::of_test("doorward", ClientAuthMethod::None, None);
    let mut provider = ScriptedProvider::start("corp", authentication).await;
    provider.client.asks_userinfo = true;
    let mut browser = Browser::at(provider);
    let sent = browser.depart("/").await;
    browser.script(|script| script.user_info = (StatusCode::OK, json!({"sub": "alice", "groups": ["dev"]})));
    browser.get(&sent.good()).await;
    assert_eq!(browser.session().await.unwrap().principal.groups, [Arc::<str>::from("dev")]);
    browser.script(|script| script.user_info = (StatusCode::OK, json!({"sub": "alice"})));
    browser.fixture.shared.clock.advance(Duration::from_secs(301));
    assert!(browser.session().await.unwrap().principal.groups.is_empty());
}

/// Some providers return groups only at userinfo.
#[tokio::test]
async fn claims_missing_from_the_id_token_come_from_userinfo_if_configured() {
    let groups = |session: Option<Arc<Session>>| session.map(|session| session.principal.groups.clone());
    for (row, asks, user_info, expected) in [
        ("told", true, (200, json!({"sub": "alice", "groups": ["release"]})), Some(vec!["release"])),
        ("not asked", false, (200, json!({"sub": "alice", "groups": ["release"]})), Some(vec![])),
        ("none of them", true, (200, json!({"sub": "alice"})), Some(vec![])),
        ("of another", true, (200, json!({"sub": "bob", "groups": ["release"]})), None),
        ("of nobody", true, (200, json!({"groups": ["release"]})), None),
        ("no JSON object", true, (200, json!("eyJhbGciOiJub25lIn0.e30.")), None),
        ("it does not take the token", true, (401, Value::Null), None),
        ("trouble", true, (503, Value::Null), None),
    ] {
        let authentication = ClientAuth::of_test("doorward", ClientAuthMethod::None, None);
        let mut provider = ScriptedProvider::start("corp", authentication).await;
        provider.client.asks_userinfo = asks;
        let mut browser = Browser::at(provider);
        let sent = browser.depart("/").await;
        browser.script(|script| {
            script.claims.as_mut().unwrap().as_object_mut().unwrap().remove("groups");
            script.user_info = (StatusCode::from_u16(user_info.0).unwrap(), user_info.1);
        });
        let response = browser.get(&sent.good()).await;
        let expected = expected.map(|groups| groups.into_iter().map(Arc::<str>::from).collect::<Vec<_>>());
        assert_eq!(
            groups(browser.session().await).map(|groups| groups.to_vec()),
            expected,
            "{row}: {}",
            body(&response)
        );
        if expected.is_none() {
            let told = match row {
                "of another" => "of another person",
                "trouble" => "answers 503",
                "it does not take the token" => "no longer accepts the access token",
                _ => "a JSON object with a `sub`",
            };
            assert!(body(&response).contains(told), "{row}: {}", body(&response));
            let is_refused = body(&response).contains("does not tell Doorward who you are");
            assert_eq!(is_refused, row != "of another", "{row}: {}", body(&response));
        }
    }
}

#[tokio::test]
async fn doorward_authenticates_to_a_provider_by_each_method() {
    let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    for (authentication, members) in [
        (ClientAuth::of_test("doorward", ClientAuthMethod::Post, Some("s3cret")), vec!["client_id", "client_secret"]),
        (ClientAuth::of_test("doorward", ClientAuthMethod::None, None), vec!["client_id"]),
        (
            ClientAuth::of_test_key("doorward", &pem, "k", "https://corp.example"),
            vec!["client_id", "client_assertion", "client_assertion_type"],
        ),
    ] {
        let mut browser = Browser::with(authentication).await;
        assert_eq!(browser.sign_in().await.status(), StatusCode::SEE_OTHER);
        let [exchange] = browser.exchanges().try_into().unwrap();
        assert_eq!(exchange.authorization, None);
        for member in ["client_id", "client_secret", "client_assertion", "client_assertion_type"] {
            assert_eq!(exchange.form.contains_key(member), members.contains(&member), "{member}");
        }
        if let Some(assertion) = exchange.form.get("client_assertion") {
            let claims = BASE64_URL_SAFE_NO_PAD.decode(assertion.split('.').nth(1).unwrap()).unwrap();
            let claims: Value = serde_json::from_slice(&claims).unwrap();
            assert_eq!(claims["iss"], "doorward");
            assert_eq!(claims["sub"], "doorward");
            assert_eq!(claims["aud"], browser.fixture.provider.issuer);
            assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
        }
    }
}

#[tokio::test]
async fn hostile_return_addresses_redirect_to_the_front_page() {
    for (row, address) in [
        ("peers:T1", "//evil.com"),
        ("peers:T1", "http://evil.com"),
        ("peers:T3", "/\\evil.com"),
        ("peers:T3", "%2F%5Cevil.com"),
        ("peers:T4", "/%09/evil.com"),
        ("peers:T5", "/./\\evil.com"),
        ("twice encoded", "/%2509/evil.com"),
    ] {
        let mut browser = Browser::new().await;
        let sent = browser.depart(address).await;
        let response = browser.get(&sent.good()).await;
        assert_eq!(location(&response), "/", "{row} {address}");
    }
}

#[tokio::test]
async fn an_unavailable_provider_is_reported_and_nothing_is_lost() {
    let mut browser = Browser::new().await;
    let metadata = browser.fixture.provider.metadata.lock().unwrap().take();
    let response = browser.get("/oauth2/start?rd=/runs").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(header::RETRY_AFTER));
    assert!(body(&response).contains("/oauth2/start?rd=%2Fruns"));
    *browser.fixture.provider.metadata.lock().unwrap() = metadata;
    let sent = browser.depart("/runs").await;
    browser
        .fixture
        .provider
        .change_metadata(|metadata| metadata.token_endpoint = Url::parse("http://127.0.0.1:1/").unwrap());
    let response = browser.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(body(&response).contains("/oauth2/start?rd=%2Fruns"));
}

#[tokio::test]
async fn without_the_store_sign_in_and_sign_out_fail() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    browser.fixture.store.switch(true);
    let response = browser.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(browser.exchanges().is_empty());
    browser.fixture.store.switch(false);
    browser.sign_in().await;
    browser.fixture.store.switch(true);
    let ours = [("origin", "https://dash.example.com")];
    let response = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!response.headers().contains_key(header::SET_COOKIE), "peers:D10");
    assert!(body(&response).contains("Signing out is not possible right now"), "{}", body(&response));
    browser.fixture.store.switch(false);
    assert!(browser.session().await.is_some());
}

#[tokio::test]
async fn the_id_changes_with_each_login_and_the_old_session_ends() {
    let mut browser = Browser::new().await;
    browser.sign_in().await;
    let (old, old_session) = (browser.jar.clone(), browser.session().await.unwrap());
    browser.sign_in().await;
    assert_ne!(browser.jar, old);
    assert!(browser.session().await.is_some());
    browser.jar = old;
    assert!(browser.session().await.is_none());
    assert!(browser.fixture.shared.revocations.is_revoked(&old_session.principal).is_some());
    // A planted session cookie is not adopted.
    browser.jar = vec![("__Host-doorward".to_owned(), "A".repeat(43))];
    browser.sign_in().await;
    assert_ne!(browser.jar[0].1, "A".repeat(43));
}

#[tokio::test]
async fn tabs_sign_in_side_by_side() {
    let mut browser = Browser::new().await;
    let mut tabs = Vec::new();
    for tab in 0..5 {
        tabs.push(browser.depart(&format!("/tab{tab}")).await);
    }
    for (tab, sent) in tabs.iter().enumerate() {
        browser.script(|script| script.claims.as_mut().unwrap()["nonce"] = sent.parameters["nonce"].clone().into());
        let response = browser.get(&sent.good()).await;
        assert_eq!(location(&response), format!("/tab{tab}"));
    }
    for _ in 0..20 {
        browser.depart("/").await;
    }
    let under_way = browser.jar.iter().filter(|(name, _)| name.starts_with("__Host-doorward-login-")).count();
    assert!((10..20).contains(&under_way), "{under_way}");
}

#[tokio::test]
async fn several_providers_are_offered() {
    let browser = Browser::new().await;
    let mut providers: Vec<Arc<dyn Provider>> = vec![Arc::clone(&browser.fixture.provider) as _];
    providers.push(Arc::new(ScriptedProvider::offline("partners")));
    let login = Login::new(providers, browser.fixture.sessions.clone(), LoginMetrics::default(), Brand::default());
    let mut browser = Browser { login, ..browser };
    assert_eq!(location(&browser.get("/oauth2/start?rd=/a").await), "/oauth2/sign_in?rd=%2Fa");
    let page = browser.get("/oauth2/sign_in").await;
    assert!(body(&page).contains("issuer=corp&amp;") && body(&page).contains("issuer=partners&amp;"));
    assert_eq!(browser.get("/oauth2/start?issuer=corp").await.status(), StatusCode::SEE_OTHER);
    assert_eq!(browser.get("/oauth2/start?issuer=partners").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(browser.get("/oauth2/start?issuer=nobody").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(browser.get("/oauth2/start?rd=/a&rd=/b").await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn other_paths_are_not_ours() {
    let browser = Browser::new().await;
    let headers = HeaderMap::new();
    for path in ["/", "/oauth2", "/oauth2/", "/oauth2/callback/", "/oauth2/userinfo", "/OAuth2/start"] {
        let request = LoginRequest {
            origin: &browser.origin,
            method: &Method::GET,
            path,
            query: None,
            headers: &headers,
            body: &[],
            request_id: "r",
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            is_shared_address: false,
            audit: &EndpointAudit::default(),
            left_out: &[],
        };
        assert!(browser.login.answer(request).await.is_none(), "{path}");
    }
}
