//! `doorward login`: a program on a person's machine gets a session of its own, by way of the person's browser. The browser
//! is on the same machine ([`loopback`]), or on any other, where the person types a code ([`device`]).
//!
//! ```text
//! /.doorward/login         the browser, which the program opened: a page that names the machine and asks (GET); what the
//!                          person presses there leads to the provider (POST)
//! /oauth2/callback      <- the provider; the browser goes on to http://127.0.0.1:PORT/ with a code
//! /.doorward/login/token <- the program: the code and the verifier that it is bound to, for the handle of a session
//! /.doorward/login/end  <- the program: its session ends
//!
//! /.doorward/login/device <- the program: it has no browser, and gets a code for the person to type
//! /.doorward/device        any browser: asks for that code, then whether its program may sign in
//! /oauth2/callback      <- the provider; the browser is told to go back to the terminal
//! /.doorward/login/token <- the program, every few seconds, until the person has decided
//! ```
//!
//! The program's session rests on a login of its own at the provider and never shares the grant of a browser's session:
//! a refresh token that rotates has one holder, and the end of the one is not the end of the other's tokens. The program
//! never sees a token of the provider.

mod device;
mod loopback;

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use self::loopback::Loopback;
pub use self::{
    device::{DONE, Devices, PATH as DEVICE, REQUEST as DEVICE_REQUEST, UserCode},
    loopback::confirmation,
};
use super::{Login, LoginRequest, Outcome, Provider, failure::Failure, parameters::Parameters};
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    sessions::{Ended, NewSession, Origin, Seen, Session, Tokens, csrf, keyring::Purpose},
    sha256::sha256,
    store::{Expect, StoreError, Table, Written},
};

/// The page that asks the person.
pub const PAGE: &str = "/.doorward/login";

/// Where the program brings its code.
pub const TOKEN: &str = "/.doorward/login/token";

/// Where the program ends its session.
pub const END: &str = "/.doorward/login/end";

/// Bytes of the forms that a program, or the page of a device, sends.
pub const MAX_BODY: usize = 4096;

/// The grant of a program that asks again and again (RFC 8628 section 3.4).
pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Letters that people can type and tell apart, of which no word comes (RFC 8628 section 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// A program that a login is for, while it is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// It listens on the machine of the browser.
    Loopback(Loopback),
    /// It asks by itself; the person typed its code.
    Device(UserCode),
}

/// What a session will be bound to and called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asker {
    /// The challenge of PKCE, made with S256.
    challenge: String,
    /// How its machine calls itself.
    machine: String,
}

impl Asker {
    fn parse(parameters: &Parameters<'_>) -> Result<Self, &'static str> {
        let text = |name: &str| parameters.get(name).unwrap_or_default().to_owned();
        let asker = Self { challenge: text("code_challenge"), machine: text("machine") };
        if asker.challenge.len() != 43 || !is_base64url(&asker.challenge) {
            return Err("`code_challenge` is not the SHA-256 of a verifier, in base64url");
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
        if !(1..=64).contains(&asker.machine.len()) || !asker.machine.bytes().all(plain) {
            return Err("`machine` is not the name of a machine");
        }
        Ok(asker)
    }

    fn is_proven_by(&self, verifier: &str) -> bool {
        verify_slices_are_equal(challenge(verifier).as_bytes(), self.challenge.as_bytes()).is_ok()
    }
}

fn is_base64url(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// Eight letters for at least as many bytes, in two groups.
fn letters(bytes: &[u8]) -> String {
    let letter = |byte: &u8| LETTERS.get(usize::from(byte % 20)).copied().map(char::from);
    let mut letters = bytes.iter().filter_map(letter);
    let one: String = letters.by_ref().take(4).collect();
    format!("{one}-{}", letters.take(4).collect::<String>())
}

/// The challenge for a verifier (RFC 7636 section 4.2, S256).
pub fn challenge(verifier: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(sha256(&[verifier.as_bytes()]))
}

/// What a login found out, until its program comes for it.
#[derive(Serialize, Deserialize)]
struct Grant {
    asker: Asker,
    origin: String,
    issuer: String,
    issuer_url: String,
    claims: Map<String, Value>,
    scopes: Vec<Arc<str>>,
    tokens: Tokens,
}

/// Whence a program brings what it has.
#[derive(Clone, Copy, Debug)]
struct Bearer<'a> {
    origin: &'a Origin,
    address: IpAddr,
}

/// A session that a code gave.
#[derive(Serialize, Deserialize)]
struct Given {
    issuer_url: String,
    subject: String,
    session: String,
}

/// Why a program gets no session, in the words of RFC 6749 section 5.2.
struct Refusal {
    status: StatusCode,
    error: &'static str,
    description: String,
}

impl Refusal {
    fn request(description: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: "invalid_request", description: description.into() }
    }

    fn grant(description: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: "invalid_grant", description: description.into() }
    }

    /// RFC 8628 section 3.5.
    fn wait(error: &'static str, description: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, description: description.to_owned() }
    }

    /// Whether the program only came too early.
    fn is_wait(&self) -> bool {
        matches!(self.error, "authorization_pending" | "slow_down")
    }

    fn answer(self) -> Response<Bytes> {
        json_answer(self.status, &json!({"error": self.error, "error_description": self.description}))
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let status = rejection.status();
        let error = match status.as_u16() {
            503 => "temporarily_unavailable",
            500..600 => "server_error",
            _ => "access_denied",
        };
        let fix = rejection.fix_text().map(|fix| format!("; {fix}")).unwrap_or_default();
        Self { status, error, description: format!("{}{fix}", rejection.detail()) }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store failed while a program signed in");
        Rejection::new(Reason::StoreUnavailable, "Doorward cannot reach its store; try again in a moment").into()
    }
}

impl Login {
    /// Keeps what a login found out for its program.
    pub(super) async fn hand_over(&self, program: Program, new: NewSession<'_>) -> Result<Response<Bytes>, Failure> {
        let NewSession { origin, provider, claims, scopes, tokens, .. } = new;
        let grant = |asker: &Asker| Grant {
            asker: asker.clone(),
            origin: origin.as_str().to_owned(),
            issuer: provider.name().to_string(),
            issuer_url: provider.issuer().to_owned(),
            claims: Arc::unwrap_or_clone(claims),
            scopes,
            tokens,
        };
        match program {
            Program::Loopback(program) => self.send_back(&program, grant).await,
            Program::Device(code) => self.let_in(&code, grant).await,
        }
    }

    /// The provider that the person pressed the button of.
    fn chosen(&self, parameters: &Parameters<'_>) -> Result<&Arc<dyn Provider>, Failure> {
        self.provider(parameters.get("issuer").unwrap_or_default()).ok_or_else(|| {
            Failure::new(Outcome::malformed, "There is no such provider here. Choose one of those that are offered.")
        })
    }

    async fn keep(
        &self,
        key: &[u8; 32],
        kept: &impl Serialize,
        until: Timestamp,
        expect: Expect,
    ) -> Result<Written, StoreError> {
        let sealed =
            serde_json::to_vec(kept).ok().and_then(|plain| self.0.sessions.keys().seal(Purpose::Code, key, &plain));
        let sealed = sealed.ok_or_else(|| StoreError::Corrupt("a code cannot be sealed".to_owned()))?;
        let store = &self.0.sessions.shared().store;
        store.put(Table::Logins, key, sealed, until, expect, self.0.sessions.now()).await
    }

    /// What is kept under a key, and its version; `None` if there is nothing that we could have written.
    async fn kept<T: DeserializeOwned>(&self, key: &[u8; 32]) -> Result<Option<(T, u64)>, StoreError> {
        let sessions = &self.0.sessions;
        let stored = sessions.shared().store.get(Table::Logins, key, sessions.now()).await?;
        Ok(stored.and_then(|stored| {
            let plain = sessions.keys().open(Purpose::Code, key, &stored.value).ok()?;
            Some((serde_json::from_slice(&plain).ok()?, stored.version))
        }))
    }

    /// Answers a program that brings its code (RFC 6749 section 4.1.3), or asks whether the person has decided (RFC 8628
    /// section 3.4).
    pub(super) async fn exchange_code(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let form = match Form::parse(request.body) {
            Ok(form) => form,
            Err(refusal) => return refusal.answer(),
        };
        let (login, origin, address) = (self.clone(), request.origin.clone(), request.address);
        // A program that goes away must not leave a code used and a session that nobody has.
        let task = self.0.sessions.shared().control.spawn(async move {
            let bearer = Bearer { origin: &origin, address };
            match form.brought {
                Brought::Code(code) => login.redeem_code(&code, &form.verifier, bearer).await,
                Brought::DeviceCode(code) => login.redeem_device(&code, &form.verifier, bearer).await,
            }
        });
        match task.await {
            Ok(Ok((handle, session))) => {
                let now = self.0.sessions.now();
                let body = json!({
                    "access_token": handle,
                    "token_type": "Bearer",
                    "expires_in": session.end.since(now).as_secs(),
                    "expires": session.end.to_string(),
                    "username": &*session.principal.username,
                });
                json_answer(StatusCode::OK, &body)
            }
            Ok(Err(refusal)) => {
                if !refusal.is_wait() {
                    let why = &refusal.description;
                    tracing::info!(request_id = request.request_id, %why, "a program got no session");
                }
                refusal.answer()
            }
            Err(error) => {
                tracing::error!(%error, "the login of a program ended early");
                Refusal::from(Rejection::new(Reason::Internal, "something went wrong here")).answer()
            }
        }
    }

    /// The session that a login gives to its program.
    async fn give(&self, grant: Grant, bearer: Bearer<'_>) -> Result<(String, Arc<Session>, Given), Refusal> {
        let Grant { asker, issuer, issuer_url, claims, scopes, tokens, .. } = grant;
        let provider = self.provider(&issuer).filter(|provider| provider.issuer() == issuer_url);
        let provider = provider.ok_or_else(|| Refusal::grant("the provider is not in use any more"))?;
        let new = NewSession {
            origin: bearer.origin,
            provider: &**provider,
            claims: Arc::new(claims),
            scopes,
            tokens,
            seen: Seen { agent: None, address: Some(bearer.address) },
        };
        let (handle, session) = self.0.sessions.create_for_program(new, asker.machine).await?;
        let subject = session.principal.subject.to_string();
        tracing::info!(issuer = %provider.name(), %subject, session = session.name(), "a program signed in");
        let given = Given { issuer_url, subject, session: session.name() };
        Ok((handle, session, given))
    }

    /// A code that comes a second time was stolen from its program, or by it.
    async fn brought_twice(&self, given: Option<Given>) -> Result<(), StoreError> {
        if let Some(Given { issuer_url, subject, session }) = given {
            tracing::warn!(%session, %subject, "a code came twice, so the session that it gave was ended");
            self.0.sessions.end_of(&issuer_url, &subject, Some(&session), Ended::revoked).await?;
        }
        Ok(())
    }

    /// Ends the session whose handle comes with the request.
    pub(super) async fn end_for_program(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let ended = async {
            let session = self.0.sessions.of_program(request.headers, request.origin, request.address).await?;
            let session = session.ok_or_else(|| {
                Rejection::new(Reason::CredentialMissing, "the handle of the session that is to end is missing")
            })?;
            self.0.sessions.end(&session, Ended::signed_out).await?;
            Ok::<_, Refusal>(())
        };
        match ended.await {
            Ok(()) => json_answer(StatusCode::OK, &json!({"ended": true})),
            Err(refusal) => refusal.answer(),
        }
    }
}

/// Only our own page may send this.
fn from_our_page(request: LoginRequest<'_>) -> Result<(), Failure> {
    csrf::check(request.method, request.headers, false, request.origin).map_err(|refusal| {
        Failure::new(Outcome::malformed, "Another page tried to sign in a program. Nothing was done.")
            .detail(refusal.detail().to_owned())
            .titled(refusal.status(), "This did not come from Doorward's own page")
    })
}

/// What a program brings.
struct Form {
    brought: Brought,
    verifier: String,
}

enum Brought {
    Code(String),
    DeviceCode(String),
}

impl Form {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let parameters = form_of(body)?;
        let needed = |name: &str| {
            let value = parameters.get(name).map(str::to_owned);
            value.ok_or_else(|| Refusal::request(format!("`{name}` is missing")))
        };
        let brought = match parameters.get("grant_type") {
            Some("authorization_code") => Brought::Code(needed("code")?),
            Some(DEVICE_GRANT) => Brought::DeviceCode(needed("device_code")?),
            _ => {
                return Err(Refusal {
                    error: "unsupported_grant_type",
                    ..Refusal::request(format!("`grant_type` is neither `authorization_code` nor `{DEVICE_GRANT}`"))
                });
            }
        };
        let verifier = needed("code_verifier")?;
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if !(43..=128).contains(&verifier.len()) || !verifier.bytes().all(unreserved) {
            return Err(Refusal::request("`code_verifier` is not one of RFC 7636"));
        }
        Ok(Self { brought, verifier })
    }
}

fn form_of(body: &[u8]) -> Result<Parameters<'_>, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::request("the form is not UTF-8"))?;
    Parameters::parse(Some(text)).map_err(|error| Refusal::request(error.to_string()))
}

fn json_answer(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}
