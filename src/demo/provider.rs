//! A small OpenID provider for development: three people and one agent, and anybody may choose to be any of them. It is
//! reachable only from `doorward demo`, listens on loopback, and its keys live as long as the process.

#![expect(clippy::result_large_err, reason = "a refusal is a response here, and nothing is hot")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use aws_lc_rs::{
    digest, rand,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use axum::{
    Form, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Json, Redirect, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{clock::Clock, sessions::keyring::random_text};

/// A person that the provider knows.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    pub subject: &'static str,
    pub name: &'static str,
    pub what: &'static str,
    pub groups: &'static [&'static str],
    /// Whether the person logs in with two factors.
    pub mfa: bool,
}

/// The people of the demo.
pub const PEOPLE: [Person; 3] = [
    Person {
        subject: "alice",
        name: "Alice",
        what: "Developer: runs pipelines in ci",
        groups: &["developers"],
        mfa: false,
    },
    Person {
        subject: "bob",
        name: "Bob",
        what: "Release manager: runs pipelines in ci and prod",
        groups: &["developers", "release-managers"],
        mfa: true,
    },
    Person {
        subject: "carol",
        name: "Carol",
        what: "Auditor: looks, and changes nothing",
        groups: &["auditors"],
        mfa: true,
    },
];

/// Doorward as a client of the provider.
pub const DOORWARD_CLIENT: (&str, &str) = ("doorward", "doorward-demo-secret");
/// The agent, which uses client credentials.
pub const AGENT_CLIENT: (&str, &str) = ("deploy-bot", "deploy-bot-demo-secret");
/// The audience of access tokens.
pub const AUDIENCE: &str = "https://doorward.demo";

const KEY_ID: &str = "demo-1";
const TOKEN_SECONDS: i64 = 600;
/// The maximum number of codes, and of refresh tokens. When it is reached, all are dropped.
const MAX_GRANTS: usize = 1000;

/// The provider.
#[derive(Clone)]
pub struct Provider(Arc<Inner>);

struct Inner {
    issuer: String,
    redirect_uris: Vec<String>,
    post_logout_uris: Vec<String>,
    clock: Clock,
    key: EncodingKey,
    jwk: Value,
    grants: Mutex<Grants>,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("issuer", &self.0.issuer).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Grants {
    codes: HashMap<String, Grant>,
    refresh: HashMap<String, Grant>,
}

#[derive(Clone)]
struct Grant {
    person: Person,
    redirect_uri: String,
    challenge: String,
    nonce: Option<String>,
    scope: String,
    issued: i64,
}

/// The parameters of an authorization request (RFC 6749 section 4.1.1, RFC 7636, OpenID Connect Core 3.1.2.1).
#[derive(Clone, Debug, Default, Deserialize)]
struct Authorize {
    #[serde(default)]
    response_type: String,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    redirect_uri: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    state: String,
    nonce: Option<String>,
    #[serde(default)]
    code_challenge: String,
    #[serde(default)]
    code_challenge_method: String,
    /// `none`: without interaction.
    prompt: Option<String>,
    /// The person who signs in; the answer to the page.
    person: Option<String>,
}

#[derive(Debug, Deserialize)]
struct TokenRequest {
    grant_type: String,
    code: Option<String>,
    redirect_uri: Option<String>,
    code_verifier: Option<String>,
    refresh_token: Option<String>,
    scope: Option<String>,
    client_id: Option<String>,
    client_secret: Option<String>,
}

impl Provider {
    /// `issuer` is the address at which it is reached; `doorward` are the origins that may receive codes.
    pub fn new(issuer: String, doorward: &[String], clock: Clock) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rand::SystemRandom::new())?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref())
            .map_err(|_| aws_lc_rs::error::Unspecified)?;
        // An uncompressed point: 0x04, then x and y.
        let point = pair.public_key().as_ref();
        let (x, y) =
            point.get(1..).and_then(|point| point.split_at_checked(32)).ok_or(aws_lc_rs::error::Unspecified)?;
        let jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KEY_ID,
            "x": BASE64URL.encode(x), "y": BASE64URL.encode(y)});
        Ok(Self(Arc::new(Inner {
            issuer,
            redirect_uris: doorward.iter().map(|origin| format!("{origin}/oauth2/callback")).collect(),
            post_logout_uris: doorward.iter().map(|origin| format!("{origin}/oauth2/signed_out")).collect(),
            clock,
            key: EncodingKey::from_ec_der(document.as_ref()),
            jwk,
            grants: Mutex::default(),
        })))
    }

    pub fn router(&self) -> Router {
        Router::new()
            .route("/.well-known/openid-configuration", get(discovery))
            .route("/jwks", get(|State(provider): State<Self>| async move { Json(json!({"keys": [provider.0.jwk]})) }))
            .route("/authorize", get(show_people).post(sign_in))
            .route("/token", post(token))
            .route("/logout", get(log_out))
            .with_state(self.clone())
    }

    fn now(&self) -> i64 {
        self.0.clock.now().as_secs()
    }

    fn sign(&self, token_type: &str, claims: &Value) -> Result<String, Response> {
        let header =
            Header { typ: Some(token_type.to_owned()), kid: Some(KEY_ID.to_owned()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.0.key)
            .map_err(|_| (StatusCode::INTERNAL_SERVER_ERROR, "the token could not be signed").into_response())
    }

    /// An access token (RFC 9068).
    fn access_token(&self, subject: &str, client: &str, groups: &[&str], scope: &str) -> Result<String, Response> {
        let now = self.now();
        let claims = json!({"iss": self.0.issuer, "sub": subject, "aud": AUDIENCE, "client_id": client,
            "iat": now, "exp": now + TOKEN_SECONDS, "jti": random_text(), "scope": scope, "groups": groups});
        self.sign("at+jwt", &claims)
    }

    fn tokens(&self, grant: &Grant) -> Result<Response, Response> {
        let Person { subject, name, groups, mfa, .. } = grant.person;
        let now = self.now();
        let access_token = self.access_token(subject, DOORWARD_CLIENT.0, groups, &grant.scope)?;
        let mut claims = json!({"iss": self.0.issuer, "sub": subject, "aud": DOORWARD_CLIENT.0, "iat": now,
            "exp": now + TOKEN_SECONDS, "auth_time": grant.issued, "name": name, "groups": groups,
            "email": format!("{subject}@doorward.demo"), "email_verified": true,
            "amr": if mfa { ["pwd", "mfa"].as_slice() } else { &["pwd"] }});
        if let (Some(nonce), Some(claims)) = (&grant.nonce, claims.as_object_mut()) {
            claims.insert("nonce".to_owned(), nonce.clone().into());
        }
        let id_token = self.sign("JWT", &claims)?;
        let refresh_token = random_text();
        if let Ok(mut grants) = self.0.grants.lock() {
            make_room(&mut grants.refresh);
            grants.refresh.insert(refresh_token.clone(), Grant { nonce: None, ..grant.clone() });
        }
        Ok(no_store(Json(json!({"access_token": access_token, "id_token": id_token, "refresh_token": refresh_token,
            "token_type": "Bearer", "expires_in": TOKEN_SECONDS, "scope": grant.scope}))))
    }
}

async fn discovery(State(provider): State<Provider>) -> Json<Value> {
    let issuer = &provider.0.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "end_session_endpoint": format!("{issuer}/logout"),
        "jwks_uri": format!("{issuer}/jwks"),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": true,
        "scopes_supported": ["openid", "profile", "email", "groups", "offline_access"],
    }))
}

/// The redirect address is checked before anything is sent to it (RFC 6749 section 4.1.2.1).
fn check(provider: &Provider, request: &Authorize) -> Result<(), Response> {
    let refuse = |why: &'static str| Err((StatusCode::BAD_REQUEST, why).into_response());
    if request.client_id != DOORWARD_CLIENT.0 {
        return refuse("unknown client_id");
    }
    if !provider.0.redirect_uris.contains(&request.redirect_uri) {
        return refuse("redirect_uri is not registered");
    }
    if request.response_type != "code" {
        return refuse("response_type must be `code`");
    }
    if request.code_challenge_method != "S256" || request.code_challenge.len() != 43 {
        return refuse("PKCE with S256 is required");
    }
    Ok(())
}

async fn show_people(State(provider): State<Provider>, Query(request): Query<Authorize>) -> Response {
    match check(&provider, &request) {
        // Nobody is signed in here without interaction (OpenID Connect Core 1.0 section 3.1.2.6).
        Ok(()) if request.prompt.as_deref() == Some("none") => {
            send_back(&provider, &request.redirect_uri, &request.state, ("error", "login_required"))
        }
        Ok(()) => Html(super::page::people(&hidden_fields(&request)).into_string()).into_response(),
        Err(refusal) => refusal,
    }
}

fn hidden_fields(request: &Authorize) -> Vec<(&'static str, &str)> {
    let mut fields = vec![
        ("response_type", request.response_type.as_str()),
        ("client_id", &request.client_id),
        ("redirect_uri", &request.redirect_uri),
        ("scope", &request.scope),
        ("state", &request.state),
        ("code_challenge", &request.code_challenge),
        ("code_challenge_method", &request.code_challenge_method),
    ];
    fields.extend(request.nonce.as_deref().map(|nonce| ("nonce", nonce)));
    fields
}

async fn sign_in(State(provider): State<Provider>, Form(request): Form<Authorize>) -> Response {
    if let Err(refusal) = check(&provider, &request) {
        return refusal;
    }
    let Some(person) = PEOPLE.into_iter().find(|person| request.person.as_deref() == Some(person.subject)) else {
        return (StatusCode::BAD_REQUEST, "choose one of the people").into_response();
    };
    let code = random_text();
    let grant = Grant {
        person,
        redirect_uri: request.redirect_uri.clone(),
        challenge: request.code_challenge,
        nonce: request.nonce,
        scope: request.scope,
        issued: provider.now(),
    };
    if let Ok(mut grants) = provider.0.grants.lock() {
        make_room(&mut grants.codes);
        grants.codes.insert(code.clone(), grant);
    }
    send_back(&provider, &request.redirect_uri, &request.state, ("code", &code))
}

/// Redirects to the address that was checked, with a code or an error (RFC 6749 section 4.1.2).
fn send_back(provider: &Provider, redirect_uri: &str, state: &str, (name, value): (&str, &str)) -> Response {
    let Ok(mut to) = url::Url::parse(redirect_uri) else {
        return (StatusCode::BAD_REQUEST, "redirect_uri is not an address").into_response();
    };
    to.query_pairs_mut().append_pair(name, value).append_pair("state", state).append_pair("iss", &provider.0.issuer);
    Redirect::to(to.as_str()).into_response()
}

async fn token(State(provider): State<Provider>, headers: HeaderMap, Form(request): Form<TokenRequest>) -> Response {
    issue(&provider, &headers, request).unwrap_or_else(|refusal| refusal)
}

fn issue(provider: &Provider, headers: &HeaderMap, request: TokenRequest) -> Result<Response, Response> {
    let client = client_of(headers, &request)
        .filter(|client| [DOORWARD_CLIENT, AGENT_CLIENT].iter().any(|known| client.0 == known.0 && client.1 == known.1))
        .ok_or_else(|| refuse(StatusCode::UNAUTHORIZED, "invalid_client", "unknown client or wrong secret"))?;
    let invalid = |why: &'static str| refuse(StatusCode::BAD_REQUEST, "invalid_grant", why);
    match request.grant_type.as_str() {
        "client_credentials" if client.0 == AGENT_CLIENT.0 => {
            let scope = request.scope.unwrap_or_else(|| "tekton:run".to_owned());
            let token = provider.access_token(AGENT_CLIENT.0, AGENT_CLIENT.0, &["agents"], &scope)?;
            Ok(no_store(Json(
                json!({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS, "scope": scope}),
            )))
        }
        "authorization_code" if client.0 == DOORWARD_CLIENT.0 => {
            let grant = request
                .code
                .and_then(|code| provider.0.grants.lock().ok()?.codes.remove(&code))
                .filter(|grant| provider.now() - grant.issued <= 60)
                .ok_or_else(|| invalid("the code is unknown, used or expired"))?;
            let verifier = request.code_verifier.unwrap_or_default();
            let challenge = BASE64URL.encode(digest::digest(&digest::SHA256, verifier.as_bytes()));
            if challenge != grant.challenge {
                return Err(invalid("code_verifier does not fit code_challenge"));
            }
            if request.redirect_uri.as_deref() != Some(grant.redirect_uri.as_str()) {
                return Err(invalid("redirect_uri is not that of the authorization request"));
            }
            provider.tokens(&grant)
        }
        "refresh_token" if client.0 == DOORWARD_CLIENT.0 => {
            let grant = request
                .refresh_token
                .and_then(|token| provider.0.grants.lock().ok()?.refresh.remove(&token))
                .ok_or_else(|| invalid("the refresh token is unknown or used"))?;
            provider.tokens(&grant)
        }
        _ => Err(refuse(StatusCode::BAD_REQUEST, "unauthorized_client", "this client may not use this grant type")),
    }
}

/// Returns the client id and secret from Basic (form-urlencoded first, RFC 6749 section 2.3.1) or from the form.
fn client_of(headers: &HeaderMap, request: &TokenRequest) -> Option<(String, String)> {
    let Some(line) = headers.get(header::AUTHORIZATION) else {
        return Some((request.client_id.clone()?, request.client_secret.clone()?));
    };
    let decoded = STANDARD.decode(line.to_str().ok()?.strip_prefix("Basic ")?).ok()?;
    let (id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    let decode = |text: &str| {
        url::form_urlencoded::parse(format!("x={text}").as_bytes()).next().map(|(_, value)| value.into_owned())
    };
    Some((decode(id)?, decode(secret)?))
}

#[derive(Debug, Deserialize)]
struct Logout {
    post_logout_redirect_uri: Option<String>,
    state: Option<String>,
}

async fn log_out(State(provider): State<Provider>, Query(request): Query<Logout>) -> Response {
    match request.post_logout_redirect_uri {
        Some(uri) if provider.0.post_logout_uris.contains(&uri) => match request.state {
            Some(state) => Redirect::to(&format!(
                "{uri}?state={}",
                percent_encoding::utf8_percent_encode(&state, percent_encoding::NON_ALPHANUMERIC)
            ))
            .into_response(),
            None => Redirect::to(&uri).into_response(),
        },
        _ => Html(super::page::logged_out().into_string()).into_response(),
    }
}

fn refuse(status: StatusCode, error: &'static str, description: &'static str) -> Response {
    (status, no_store(Json(json!({"error": error, "error_description": description})))).into_response()
}

fn no_store(body: impl IntoResponse) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// The demo lives for hours at most. A flood of logins drops all that are in progress instead of growing without limit.
fn make_room(grants: &mut HashMap<String, Grant>) {
    if grants.len() >= MAX_GRANTS {
        grants.clear();
    }
}
