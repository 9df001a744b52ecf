//! A GitHub server for logins: its sign-in, its tokens, and the API for users. It behaves like the real one: errors of
//! the token endpoint have status 200, scopes are separated by commas, requests without `User-Agent` are refused, lists
//! are paginated, and there is no ID token. Responses of the sign-in name it as `/login/oauth`.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Form, Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::form_urlencoded;

use super::unique;

pub const CLIENT: &str = "Iv1.8a61f9b3a7aba766";
pub const SECRET: &str = "the-secret-of-the-application";

#[derive(Clone)]
pub struct GithubServer {
    address: SocketAddr,
    people: Arc<Mutex<People>>,
}

/// The server's data about the one person who signs in.
pub struct People {
    pub user: Value,
    pub memberships: Vec<Value>,
    pub teams: Vec<Value>,
    /// `None` if the application may not read addresses.
    pub emails: Option<Value>,
    /// The response of the API instead of all this.
    pub refusal: Option<(u16, &'static str, Value)>,
    /// Whether tokens expire, like those of GitHub Apps, and have a refresh token.
    pub expiring: bool,
    /// Whether the API refuses renewed tokens.
    pub refuse_new_tokens: bool,
    renewed: Vec<String>,
    /// Valid tokens, and the codes and refresh tokens that give others.
    pub tokens: Vec<String>,
    codes: HashMap<String, HashMap<String, String>>,
    renewals: Vec<String>,
}

impl GithubServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let people = People {
            user: json!({"id": 583_231, "login": "octocat", "type": "User", "name": "Mona Cat", "email": "shown@evil.example"}),
            memberships: vec![membership(9919, "Acme", "member"), membership(7, "elsewhere", "admin")],
            teams: vec![team(9919, "Acme", "platform"), team(7, "elsewhere", "owners")],
            emails: Some(json!([
                {"email": "old@acme.example", "primary": false, "verified": true},
                {"email": "mona@acme.example", "primary": true, "verified": true},
            ])),
            refusal: None,
            expiring: false,
            refuse_new_tokens: false,
            renewed: Vec::new(),
            tokens: Vec::new(),
            codes: HashMap::new(),
            renewals: Vec::new(),
        };
        let server = Self { address: listener.local_addr().unwrap(), people: Arc::new(Mutex::new(people)) };
        let api = |answer: fn(&People, usize) -> Option<Value>| {
            get(
                async move |State(server): State<Self>,
                            Query(query): Query<HashMap<String, String>>,
                            headers: HeaderMap| {
                    server.tell(&headers, query.get("page").map_or(1, |page| page.parse().unwrap()), answer)
                },
            )
        };
        let router = Router::new()
            .route("/login/oauth/authorize", get(authorize))
            .route("/login/oauth/access_token", post(access_token))
            .route("/api/v3/meta", get(async || Json(json!({"verifiable_password_authentication": false}))))
            .route("/api/v3/user", api(|people, _| Some(people.user.clone())))
            .route("/api/v3/user/memberships/orgs", api(|people, number| Some(page(&people.memberships, number))))
            .route("/api/v3/user/teams", api(|people, number| Some(page(&people.teams, number))))
            .route("/api/v3/user/emails", api(|people, _| people.emails.clone()))
            .with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn people(&self) -> MutexGuard<'_, People> {
        self.people.lock().unwrap()
    }

    fn tell(&self, headers: &HeaderMap, number: usize, answer: fn(&People, usize) -> Option<Value>) -> Response {
        let people = self.people();
        let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap());
        let token = text(header::AUTHORIZATION).strip_prefix("Bearer ").unwrap_or_default();
        let refused = |status: u16, message: &str| {
            (StatusCode::from_u16(status).unwrap(), Json(json!({"message": message}))).into_response()
        };
        if text(header::USER_AGENT).is_empty() {
            return refused(403, "Request forbidden by administrative rules.");
        }
        if let Some((status, remaining, body)) = &people.refusal {
            let headers = [("x-ratelimit-remaining", *remaining)];
            return (StatusCode::from_u16(*status).unwrap(), headers, Json(body.clone())).into_response();
        }
        if people.refuse_new_tokens && people.renewed.iter().any(|renewed| renewed == token) {
            return refused(502, "Bad Gateway");
        }
        if !people.tokens.iter().any(|good| good == token) {
            return refused(401, "Bad credentials");
        }
        match answer(&people, number) {
            Some(answer) => Json(answer).into_response(),
            None => refused(404, "Not Found"),
        }
    }
}

impl People {
    /// Makes all tokens invalid, and none can be renewed.
    pub fn take_everything_back(&mut self) {
        self.tokens.clear();
        self.renewals.clear();
    }
}

pub fn membership(id: u64, login: &str, role: &str) -> Value {
    json!({"state": "active", "role": role, "organization": {"id": id, "login": login}})
}

pub fn team(id: u64, login: &str, slug: &str) -> Value {
    json!({"slug": slug, "name": slug, "organization": {"id": id, "login": login}})
}

fn page(all: &[Value], number: usize) -> Value {
    all.iter().skip((number - 1) * 100).take(100).cloned().collect()
}

/// Signs the person in at once.
async fn authorize(State(server): State<GithubServer>, Query(query): Query<HashMap<String, String>>) -> Response {
    if query["client_id"] != CLIENT || !query["scope"].split(' ').any(|scope| scope == "read:org") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let code = unique();
    let named = format!("{}/login/oauth", server.url());
    let issuer: String = form_urlencoded::byte_serialize(named.as_bytes()).collect();
    let to = format!("{}?code={code}&state={}&iss={issuer}", query["redirect_uri"], query["state"]);
    server.people().codes.insert(code, query);
    Redirect::to(&to).into_response()
}

async fn access_token(State(server): State<GithubServer>, Form(form): Form<HashMap<String, String>>) -> Response {
    let error = |error: &str| Json(json!({"error": error, "error_description": "It is not good."})).into_response();
    let mut people = server.people();
    let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    if text("client_id") != CLIENT || text("client_secret") != SECRET {
        return error("incorrect_client_credentials");
    }
    if text("grant_type") == "refresh_token" {
        let known = people.renewals.len();
        people.renewals.retain(|token| token != text("refresh_token"));
        if people.renewals.len() == known {
            return error("bad_refresh_token");
        }
    } else {
        let Some(asked) = people.codes.remove(text("code")) else { return error("bad_verification_code") };
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, text("code_verifier").as_bytes()));
        if asked["code_challenge"] != challenge || asked["redirect_uri"] != text("redirect_uri") {
            return error("bad_verification_code");
        }
    }
    let token = format!("gho_{}", unique());
    people.tokens.push(token.clone());
    if text("grant_type") == "refresh_token" {
        people.renewed.push(token.clone());
    }
    let mut answer = json!({"access_token": token, "scope": "read:org,user:email", "token_type": "bearer"});
    if people.expiring {
        let renewal = format!("ghr_{}", unique());
        people.renewals.push(renewal.clone());
        answer["refresh_token"] = renewal.into();
        answer["expires_in"] = 28800.into();
    }
    Json(answer).into_response()
}
