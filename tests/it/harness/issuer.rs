//! An issuer that signs whatever a test wants and misbehaves on request.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Form, Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Json, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};
use tokio::sync::watch;

/// How the issuer misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Accepts requests and does not answer as long as this is set.
    Hang,
    /// 200 with something that is not JSON.
    Garbage,
    /// 50 MB of JSON.
    Huge,
    /// 500.
    Error,
    /// A redirect to itself.
    Redirect,
    /// An empty key set.
    Empty,
    /// A discovery document of another issuer.
    OtherIssuer,
}

struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &str) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
        Self { id: id.to_owned(), pair }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": BASE64URL.encode(&point[1..33]), "y": BASE64URL.encode(&point[33..])})
    }
}

struct Inner {
    address: SocketAddr,
    issuer: String,
    fault: watch::Sender<Fault>,
    /// The last one signs.
    keys: Mutex<Vec<Key>>,
    opaque: Mutex<std::collections::HashMap<String, Value>>,
    key_fetches: AtomicUsize,
    introspections: AtomicUsize,
    clock_ahead: AtomicI64,
    lifetime: AtomicU64,
    shut_out: AtomicBool,
    redeemed: Mutex<Vec<String>>,
    /// Login values that must not leak.
    secrets: Mutex<Vec<String>>,
    refreshes: AtomicBool,
}

/// The issuer.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

pub const AUDIENCE: &str = "https://doorward.test";

impl Issuer {
    pub async fn start() -> Self {
        Self::start_as(None).await
    }

    /// An issuer whose identifier and endpoints have another address than its own, reached through something else.
    pub async fn start_as(identifier: Option<&str>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let issuer = Self(Arc::new(Inner {
            address,
            issuer: identifier.map_or_else(|| format!("http://{address}"), str::to_owned),
            fault: watch::Sender::default(),
            keys: Mutex::new(vec![Key::new("key-1")]),
            opaque: Mutex::default(),
            key_fetches: AtomicUsize::new(0),
            introspections: AtomicUsize::new(0),
            clock_ahead: AtomicI64::new(0),
            lifetime: AtomicU64::new(600),
            shut_out: AtomicBool::new(false),
            redeemed: Mutex::default(),
            secrets: Mutex::default(),
            refreshes: AtomicBool::new(false),
        }));
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(keys))
            .route("/introspect", post(introspect))
            .route("/authorize", get(authorize))
            .route("/token", post(redeem))
            .route("/userinfo", get(user_info))
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        issuer
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    pub fn url(&self) -> &str {
        &self.0.issuer
    }

    pub fn set_fault(&self, fault: Fault) {
        self.0.fault.send_replace(fault);
    }

    /// Replaces the key set by a new key, which signs from now on.
    pub fn rotate(&self, id: &str) {
        *self.0.keys.lock().unwrap() = vec![Key::new(id)];
    }

    /// Adds a key, which signs from now on; the others stay in the set.
    pub fn add_key(&self, id: &str) {
        self.0.keys.lock().unwrap().push(Key::new(id));
    }

    /// The signing key, as it is published.
    pub fn public_key(&self) -> Value {
        self.signer(Key::jwk)
    }

    /// Removes a key from the set.
    pub fn withdraw(&self, id: &str) {
        self.0.keys.lock().unwrap().retain(|key| key.id != id);
    }

    fn signer<T>(&self, look: impl FnOnce(&Key) -> T) -> T {
        look(self.0.keys.lock().unwrap().last().unwrap())
    }

    /// Sets its clock this many seconds ahead, or back.
    pub fn set_clock_ahead(&self, seconds: i64) {
        self.0.clock_ahead.store(seconds, Ordering::SeqCst);
    }

    /// Sets the lifetime of its access tokens from now on, in seconds.
    pub fn set_lifetime(&self, seconds: u64) {
        self.0.lifetime.store(seconds, Ordering::SeqCst);
    }

    /// From now on it confirms nobody who has signed in.
    pub fn shut_out(&self) {
        self.0.shut_out.store(true, Ordering::SeqCst);
    }

    pub fn key_fetches(&self) -> usize {
        self.0.key_fetches.load(Ordering::SeqCst)
    }

    pub fn introspections(&self) -> usize {
        self.0.introspections.load(Ordering::SeqCst)
    }

    /// The codes that were presented to its token endpoint.
    pub fn redeemed(&self) -> Vec<String> {
        self.0.redeemed.lock().unwrap().clone()
    }

    /// From now on it gives refresh tokens, and accepts them.
    pub fn give_refresh_tokens(&self) {
        self.0.refreshes.store(true, Ordering::SeqCst);
    }

    /// The codes, verifiers and refresh tokens that were presented to its token endpoint, and the tokens that it gave
    /// there.
    pub fn secrets(&self) -> Vec<String> {
        self.0.secrets.lock().unwrap().clone()
    }

    /// Sets the introspection response for an opaque token.
    pub fn opaque(&self, token: &str, answer: Value) {
        self.0.opaque.lock().unwrap().insert(token.to_owned(), answer);
    }

    /// The claims of a valid access token for `subject`, to change before signing.
    pub fn claims(&self, subject: &str, groups: &[&str]) -> Value {
        let now = now().saturating_add_signed(self.0.clock_ahead.load(Ordering::SeqCst));
        let lifetime = self.0.lifetime.load(Ordering::SeqCst);
        json!({"iss": self.url(), "sub": subject, "aud": AUDIENCE, "client_id": "tests", "iat": now, "exp": now + lifetime,
            "jti": unique(), "groups": groups})
    }

    /// A valid access token.
    pub fn token(&self, subject: &str, groups: &[&str]) -> String {
        self.sign(&self.claims(subject, groups))
    }

    /// A token as a cluster projects it into a pod of this service account, for Doorward.
    pub fn pod_token(&self, namespace: &str, account: &str) -> String {
        self.sign_pod_token(self.url(), AUDIENCE, namespace, account)
    }

    /// The same as a token of this issuer for this audience.
    pub fn sign_pod_token(&self, issuer: &str, audience: &str, namespace: &str, account: &str) -> String {
        let claims = json!({
            "iss": issuer, "sub": format!("system:serviceaccount:{namespace}:{account}"), "aud": [audience],
            "iat": now(), "nbf": now(), "exp": now() + 3_600, "jti": unique(),
            "kubernetes.io": {
                "namespace": namespace, "pod": {"name": "p", "uid": unique()},
                "serviceaccount": {"name": account, "uid": unique()},
            },
        });
        let id = self.signer(|key| key.id.clone());
        self.sign_with(&json!({"alg": "ES256", "kid": id}), &claims)
    }

    pub fn sign(&self, claims: &Value) -> String {
        let id = self.signer(|key| key.id.clone());
        self.sign_with(&json!({"alg": "ES256", "typ": "at+jwt", "kid": id}), claims)
    }

    /// A logout token for Alice's sessions at the client `doorward` (OpenID Connect Back-Channel Logout). `other`
    /// overrides claims.
    pub fn logout_token(&self, other: &Value) -> String {
        let mut claims = json!({"iss": self.url(), "aud": "doorward", "sub": "alice", "jti": unique(), "iat": now(),
            "exp": now() + 120, "events": {"http://schemas.openid.net/event/backchannel-logout": {}}});
        claims.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        let id = self.signer(|key| key.id.clone());
        self.sign_with(&json!({"alg": "ES256", "typ": "logout+jwt", "kid": id}), &claims)
    }

    /// Signs any header and any claims.
    pub fn sign_with(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs any text as header and any text as claims.
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = self.signer(|key| key.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap());
        format!("{signed}.{}", BASE64URL.encode(signature.as_ref()))
    }

    /// The response of a misbehaving issuer, if it misbehaves.
    async fn misbehave(&self) -> Option<Response> {
        let fault = *self.0.fault.subscribe().wait_for(|fault| *fault != Fault::Hang).await.unwrap();
        Some(match fault {
            Fault::None | Fault::Hang | Fault::Empty | Fault::OtherIssuer => return None,
            Fault::Garbage => "<html>not JSON".into_response(),
            Fault::Huge => {
                let chunk = Bytes::from(vec![b' '; 1 << 20]);
                let chunks = (0..50).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
                Body::new(Chunks(chunks)).into_response()
            }
            Fault::Error => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Fault::Redirect => (StatusCode::FOUND, [(header::LOCATION, "/jwks")]).into_response(),
        })
    }
}

/// Frames from an iterator.
struct Chunks<I>(I);

impl<I: Iterator<Item = Result<Bytes, std::io::Error>> + Unpin> http_body::Body for Chunks<I> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(self.0.next().map(|chunk| chunk.map(http_body::Frame::data)))
    }
}

async fn discovery(State(issuer): State<Issuer>) -> Response {
    if let Some(response) = issuer.misbehave().await {
        return response;
    }
    let url = issuer.url();
    let other = *issuer.0.fault.borrow() == Fault::OtherIssuer;
    Json(json!({
        "issuer": if other { "https://other.example" } else { url },
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "introspection_endpoint": format!("{url}/introspect"),
        "userinfo_endpoint": format!("{url}/userinfo"),
        "jwks_uri": format!("{url}/jwks"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
    .into_response()
}

async fn keys(State(issuer): State<Issuer>) -> Response {
    issuer.0.key_fetches.fetch_add(1, Ordering::SeqCst);
    if let Some(response) = issuer.misbehave().await {
        return response;
    }
    let empty = *issuer.0.fault.borrow() == Fault::Empty;
    let keys: Vec<Value> = issuer.0.keys.lock().unwrap().iter().filter(|_| !empty).map(Key::jwk).collect();
    Json(json!({"keys": keys})).into_response()
}

#[derive(serde::Deserialize)]
struct Authorize {
    redirect_uri: String,
    state: String,
    nonce: String,
}

/// Redirects everybody back at once, with the nonce as the code.
async fn authorize(State(issuer): State<Issuer>, Query(asked): Query<Authorize>) -> Response {
    let Authorize { redirect_uri, state, nonce } = asked;
    let iss = url::form_urlencoded::byte_serialize(issuer.url().as_bytes()).collect::<String>();
    (StatusCode::SEE_OTHER, [(header::LOCATION, format!("{redirect_uri}?code={nonce}&state={state}&iss={iss}"))])
        .into_response()
}

#[derive(serde::Deserialize)]
struct Redeem {
    code: Option<String>,
    code_verifier: Option<String>,
    refresh_token: Option<String>,
}

/// Returns Alice's tokens for any code, which is the nonce of the login, and for any refresh token.
async fn redeem(State(issuer): State<Issuer>, Form(request): Form<Redeem>) -> Response {
    let mut claims = issuer.claims("alice", &["dev"]);
    claims["aud"] = json!("doorward");
    if let Some(code) = &request.code {
        issuer.0.redeemed.lock().unwrap().push(code.clone());
        claims["nonce"] = json!(code);
    }
    let kid = issuer.signer(|key| key.id.clone());
    let id_token = issuer.sign_with(&json!({"alg": "ES256", "typ": "JWT", "kid": kid}), &claims);
    let mut given = json!({"access_token": unique(), "id_token": id_token});
    if issuer.0.refreshes.load(Ordering::SeqCst) {
        given["refresh_token"] = json!(unique());
    }
    let brought = [request.code, request.code_verifier, request.refresh_token].into_iter().flatten();
    let tokens = given.as_object().unwrap().values().map(|token| token.as_str().unwrap().to_owned());
    issuer.0.secrets.lock().unwrap().extend(brought.chain(tokens));
    given["token_type"] = json!("Bearer");
    given["expires_in"] = json!(600);
    Json(given).into_response()
}

/// Always Alice's, whatever the token.
async fn user_info(State(issuer): State<Issuer>) -> Response {
    if issuer.0.shut_out.load(Ordering::SeqCst) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    Json(json!({"sub": "alice"})).into_response()
}

#[derive(serde::Deserialize)]
struct Introspect {
    token: String,
}

async fn introspect(State(issuer): State<Issuer>, Form(request): Form<Introspect>) -> Response {
    issuer.0.introspections.fetch_add(1, Ordering::SeqCst);
    if let Some(response) = issuer.misbehave().await {
        return response;
    }
    let answer = issuer.0.opaque.lock().unwrap().get(&request.token).cloned();
    Json(answer.unwrap_or_else(|| json!({"active": false}))).into_response()
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Such a time as text.
pub fn rfc3339(seconds: u64) -> String {
    doorward::clock::Timestamp::from_secs(seconds.cast_signed()).to_string()
}

/// A value that no other call returns.
pub fn unique() -> String {
    uuid::Uuid::new_v4().to_string()
}
