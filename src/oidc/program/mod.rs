//! `doorward login`: a program on a person's machine gets a session of its own, by way of the person's browser
//! (RFC 6749 section 4.1, RFC 7636, RFC 8252).
//!
//! ```text
//! /.doorward/login        the browser, which the program opened: a page that names the machine and asks (GET); what the
//!                         person presses there leads to the provider (POST)
//! /oauth2/callback     <- the provider; the browser goes on to http://127.0.0.1:PORT/ with a code
//! /.doorward/login/token <- the program: the code and the verifier that it is bound to, for the handle of a session
//! /.doorward/login/end <- the program: its session ends
//! ```
//!
//! The program's session rests on a login of its own at the provider and never shares the grant of a browser's session:
//! a refresh token that rotates has one holder, and the end of the one is not the end of the other's tokens. The program
//! never sees a token of the provider.
//!
//! A code goes to 127.0.0.1 and nowhere else, since the program names a port and no address. Whoever steals it there
//! lacks the verifier. A link that somebody else made ends at the page that asks: it must be pressed in this browser,
//! and shows a code that the person's own terminal does not.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Login, LoginRequest, Outcome,
    failure::Failure,
    login::{encode, host, parse, redirect, store_failed},
    logout::display_name,
    parameters::Parameters,
};
use crate::{
    clock::Timestamp,
    error::{Reason, Rejection},
    pages::{self, ProgramView},
    sessions::{
        Ended, NewSession, Origin, Seen, Session, Tokens, csrf,
        keyring::{Purpose, random},
    },
    sha256::sha256,
    store::{Expect, StoreError, Table, Written},
};

/// The page that asks the person.
pub const PAGE: &str = "/.doorward/login";

/// Where the program brings its code.
pub const TOKEN: &str = "/.doorward/login/token";

/// Where the program ends its session.
pub const END: &str = "/.doorward/login/end";

/// Bytes of the form that the program sends.
pub const MAX_BODY: usize = 4096;

/// How long a code is good (RFC 6749 section 4.1.2 recommends ten minutes at most; it is brought at once).
const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// How long is remembered that a code was used.
const USED_LIFETIME: Duration = Duration::from_secs(600);

/// A program that waits for its code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Where it listens, on 127.0.0.1.
    port: u16,
    /// By what it knows its login again.
    state: String,
    /// The challenge of PKCE, made with S256.
    challenge: String,
    /// How its machine calls itself.
    machine: String,
}

impl Program {
    fn parse(parameters: &Parameters<'_>) -> Result<Self, Failure> {
        let malformed = |detail: &'static str| {
            Failure::new(
                Outcome::malformed,
                "This address is none that `doorward login` opens. Run `doorward login` again, and follow no link that \
                 somebody sent you.",
            )
            .detail(detail)
            .titled(StatusCode::BAD_REQUEST, "No program is waiting for this")
        };
        if parameters.get("redirect_uri").is_some() {
            return Err(malformed("a code is sent to 127.0.0.1 and nowhere else; name its `port`"));
        }
        let text = |name: &str| parameters.get(name).unwrap_or_default();
        let base64url = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let digits = text("port").bytes().all(|byte| byte.is_ascii_digit());
        let port = text("port").parse().ok().filter(|port| digits && *port >= 1024);
        let port = port.ok_or_else(|| malformed("`port` is no port from 1024 to 65535"))?;
        let (state, challenge, machine) = (text("state"), text("code_challenge"), text("machine"));
        if !(16..=128).contains(&state.len()) || !base64url(state) {
            return Err(malformed("`state` is not 16 to 128 characters of base64url"));
        }
        if challenge.len() != 43 || !base64url(challenge) {
            return Err(malformed("`code_challenge` is not the SHA-256 of a verifier, in base64url"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
        if !(1..=64).contains(&machine.len()) || !machine.bytes().all(plain) {
            return Err(malformed("`machine` is not the name of a machine"));
        }
        let owned = str::to_owned;
        Ok(Self { port, state: owned(state), challenge: owned(challenge), machine: owned(machine) })
    }

    /// The page that asks about it.
    fn address(&self) -> String {
        let Self { port, state, challenge, machine } = self;
        format!("{PAGE}?port={port}&state={state}&code_challenge={challenge}&machine={}", encode(machine))
    }

    /// Where the browser brings `answer`.
    fn back(&self, answer: &str) -> String {
        format!("http://127.0.0.1:{}/?{answer}&state={}", self.port, self.state)
    }
}

/// The code that the page and the terminal both show, so that a person can tell their own program from that of somebody
/// who sent them a link: eight letters without vowels (RFC 8628 section 6.1) for a challenge of PKCE.
pub fn confirmation(challenge: &str) -> String {
    const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
    let hash = sha256(&[b"doorward login\0", challenge.as_bytes()]);
    let letters = hash.iter().filter_map(|byte| LETTERS.get(usize::from(byte % 20)).copied().map(char::from));
    let letters: Vec<char> = letters.take(8).collect();
    let (one, other) = letters.split_at(letters.len() / 2);
    format!("{}-{}", one.iter().collect::<String>(), other.iter().collect::<String>())
}

/// The challenge for a verifier (RFC 7636 section 4.2, S256).
pub fn challenge(verifier: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(sha256(&[verifier.as_bytes()]))
}

/// What the store has for a code.
#[derive(Serialize, Deserialize)]
enum Kept {
    Good(Box<Grant>),
    /// It was brought before; what it gave then.
    Used(Option<Given>),
}

/// What a login found out, until its program comes for it.
#[derive(Serialize, Deserialize)]
struct Grant {
    program: Program,
    origin: String,
    issuer: String,
    issuer_url: String,
    claims: Map<String, Value>,
    scopes: Vec<Arc<str>>,
    tokens: Tokens,
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
    /// The page that asks whether a program may sign in. Nothing has happened yet, and nothing does unless the person
    /// presses a button there.
    pub(super) async fn ask_for_program(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let program = Program::parse(&parse(request)?)?;
        let held = self.0.sessions.held_by(request.headers, request.origin).await?;
        let who = held.as_ref().map(|session| display_name(session));
        let address = program.address();
        let choices = self.choices(request.headers, |issuer| format!("{address}&issuer={}", encode(issuer)));
        let page = pages::program(&ProgramView {
            host: host(request.origin),
            machine: &program.machine,
            confirmation: &confirmation(&program.challenge),
            who: who.as_deref(),
            choices: &choices,
            cancel: &program.back("error=access_denied"),
        });
        Ok(pages::html(StatusCode::OK, &page))
    }

    /// The person wants it: on to the provider. Only the page above may send this.
    pub(super) fn begin_for_program(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        csrf::check(request.method, request.headers, false, request.origin).map_err(|refusal| {
            Failure::new(Outcome::malformed, "Another page tried to sign in a program. Nothing was done.")
                .detail(refusal.detail().to_owned())
                .titled(refusal.status(), "This did not come from Doorward's own page")
        })?;
        let parameters = parse(request)?;
        let program = Program::parse(&parameters)?;
        let provider = self.provider(parameters.get("issuer").unwrap_or_default()).ok_or_else(|| {
            Failure::new(Outcome::malformed, "There is no such provider here. Choose one of those that are offered.")
        })?;
        let return_to = program.address();
        self.begin(provider, request, &return_to, Some(program)).map_err(|mut failure| {
            failure.return_to = return_to;
            failure
        })
    }

    /// Keeps what a login found out for its program, and sends the browser there with the code for it.
    pub(super) async fn hand_over(&self, program: Program, new: NewSession<'_>) -> Result<Response<Bytes>, Failure> {
        let NewSession { origin, provider, claims, scopes, tokens, .. } = new;
        let code = BASE64_URL_SAFE_NO_PAD.encode(random::<32>());
        let location = program.back(&format!("code={code}"));
        let grant = Grant {
            program,
            origin: origin.as_str().to_owned(),
            issuer: provider.name().to_string(),
            issuer_url: provider.issuer().to_owned(),
            claims: Arc::unwrap_or_clone(claims),
            scopes,
            tokens,
        };
        let now = self.0.sessions.now();
        let kept = self.keep(&key_of(&code), &Kept::Good(Box::new(grant)), now + CODE_LIFETIME, Expect::Absent).await;
        match kept.map_err(|error| store_failed(&error))? {
            Written::Done(_) => Ok(redirect(&location)),
            Written::Conflict(_) => Err(Failure::new(Outcome::internal, "A code was drawn twice. Sign in again.")),
        }
    }

    async fn keep(&self, key: &[u8; 32], kept: &Kept, until: Timestamp, expect: Expect) -> Result<Written, StoreError> {
        let sealed =
            serde_json::to_vec(kept).ok().and_then(|plain| self.0.sessions.keys().seal(Purpose::Code, key, &plain));
        let sealed = sealed.ok_or_else(|| StoreError::Corrupt("a code cannot be sealed".to_owned()))?;
        let store = &self.0.sessions.shared().store;
        store.put(Table::Logins, key, sealed, until, expect, self.0.sessions.now()).await
    }

    /// Answers a program that brings its code (RFC 6749 section 4.1.3).
    pub(super) async fn exchange_code(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let form = match Form::parse(request.body) {
            Ok(form) => form,
            Err(refusal) => return refusal.answer(),
        };
        let (login, origin, address) = (self.clone(), request.origin.clone(), request.address);
        // A program that goes away must not leave a code used and a session that nobody has.
        let task = self.0.sessions.shared().control.spawn(async move { login.redeem(&form, &origin, address).await });
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
                tracing::info!(request_id = request.request_id, why = %refusal.description, "a program got no session");
                refusal.answer()
            }
            Err(error) => {
                tracing::error!(%error, "the login of a program ended early");
                Refusal::from(Rejection::new(Reason::Internal, "something went wrong here")).answer()
            }
        }
    }

    /// A session for a code. Whoever brings a code uses it up, right or wrong: it is brought once in honest use. One that
    /// is brought again ends the session that it gave (RFC 6749 section 4.1.2), as one of the two who had it stole it.
    async fn redeem(&self, form: &Form, origin: &Origin, address: IpAddr) -> Result<(String, Arc<Session>), Refusal> {
        let sessions = &self.0.sessions;
        let (now, key) = (sessions.now(), key_of(&form.code));
        let unknown =
            || Refusal::grant("the code is not known, or it is older than a minute; run `doorward login` again");
        let stored = sessions.shared().store.get(Table::Logins, &key, now).await?.ok_or_else(unknown)?;
        let plain = sessions.keys().open(Purpose::Code, &key, &stored.value).map_err(|_| unknown())?;
        let used = || Refusal::grant("the code was used before; what it gave has ended; run `doorward login` again");
        let grant = match serde_json::from_slice(&plain).map_err(|_| unknown())? {
            Kept::Good(grant) => grant,
            Kept::Used(given) => {
                if let Some(Given { issuer_url, subject, session }) = given {
                    tracing::warn!(%session, %subject, "a code came twice, so the session that it gave was ended");
                    sessions.end_of(&issuer_url, &subject, Some(&session), Ended::revoked).await?;
                }
                return Err(used());
            }
        };
        let until = now + USED_LIFETIME;
        let version = match self.keep(&key, &Kept::Used(None), until, Expect::Version(stored.version)).await? {
            Written::Done(version) => version,
            Written::Conflict(_) => return Err(used()),
        };
        let proven = challenge(&form.verifier);
        if verify_slices_are_equal(proven.as_bytes(), grant.program.challenge.as_bytes()).is_err() {
            return Err(Refusal::grant("the code is bound to another program; run `doorward login` again"));
        }
        if grant.origin != origin.as_str() {
            return Err(Refusal::grant("the code is for another host; run `doorward login` again"));
        }
        let provider = self.provider(&grant.issuer).filter(|provider| provider.issuer() == grant.issuer_url);
        let provider = provider.ok_or_else(|| Refusal::grant("the provider is not in use any more"))?;
        let Grant { program, claims, scopes, tokens, issuer_url, .. } = *grant;
        let (handle, session) = sessions
            .create_for_program(
                NewSession {
                    origin,
                    provider: &**provider,
                    claims: Arc::new(claims),
                    scopes,
                    tokens,
                    seen: Seen { agent: None, address: Some(address) },
                },
                program.machine,
            )
            .await?;
        let subject = session.principal.subject.to_string();
        tracing::info!(issuer = %provider.name(), %subject, session = session.name(), "a program signed in");
        let given = Kept::Used(Some(Given { issuer_url, subject, session: session.name() }));
        self.keep(&key, &given, until, Expect::Version(version)).await?;
        Ok((handle, session))
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

/// What a program brings.
struct Form {
    code: String,
    verifier: String,
}

impl Form {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(body).map_err(|_| Refusal::request("the form is not UTF-8"))?;
        let parameters = Parameters::parse(Some(text)).map_err(|error| Refusal::request(error.to_string()))?;
        if parameters.get("grant_type") != Some("authorization_code") {
            return Err(Refusal {
                error: "unsupported_grant_type",
                ..Refusal::request("`grant_type` is not `authorization_code`")
            });
        }
        let code = parameters.get("code").ok_or_else(|| Refusal::request("`code` is missing"))?;
        let verifier = parameters.get("code_verifier").ok_or_else(|| Refusal::request("`code_verifier` is missing"))?;
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if !(43..=128).contains(&verifier.len()) || !verifier.bytes().all(unreserved) {
            return Err(Refusal::request("`code_verifier` is not one of RFC 7636"));
        }
        Ok(Self { code: code.to_owned(), verifier: verifier.to_owned() })
    }
}

/// The key of a code in the store, which knows its hash only.
fn key_of(code: &str) -> [u8; 32] {
    sha256(&[b"code\0", code.as_bytes()])
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
