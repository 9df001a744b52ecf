//! Token introspection (RFC 7662).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;

use super::{
    client_auth::{ClientAuth, Proof},
    discovery::Metadata,
    key_cache::KeyCache,
    lookup::{Answer, Lookup, Told},
    signed_answer::{MEDIA_TYPE, SignedAnswers},
    single_flight::Key,
    strict_json,
    token_error::{Quoted, TokenError},
};
use crate::{
    clock::Clock,
    config::raw::{self, IntrospectionMode},
    egress::{Bounds, Egress},
    request::headers::media_type,
};

/// The maximum bytes of an answer.
const MAX_ANSWER: usize = 64 << 10;

/// The settings that determine the cached answers. A reload keeps the cache if they are unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct IntrospectionSettings {
    pub issuer: Arc<str>,
    pub raw: raw::Introspection,
    pub client: ClientAuth,
    pub ca: Option<Vec<u8>>,
    pub endpoint: Option<Url>,
    pub timeout: Duration,
    /// The maximum attempts of one query.
    pub tries: u8,
    /// If answers must be signed: the accepted audiences, and the allowed difference between clocks.
    pub signed_for: Option<(Box<[Box<str>]>, Duration)>,
}

/// Introspection at one issuer.
#[derive(Debug)]
pub struct Introspection {
    lookup: Lookup,
    client: Arc<Client>,
}

#[derive(Debug)]
struct Client {
    settings: IntrospectionSettings,
    egress: Egress,
    clock: Clock,
    /// The verification of answers, if they must be signed.
    signed: Option<SignedAnswers>,
}

impl Introspection {
    /// With `signed`, answers must be signed and pass its verification.
    pub(super) fn new(
        settings: IntrospectionSettings,
        egress: Egress,
        clock: Clock,
        lookup: Lookup,
        signed: Option<SignedAnswers>,
    ) -> Self {
        Self { lookup, client: Arc::new(Client { settings, egress, clock, signed }) }
    }

    /// The keys for answers, if they must be signed.
    pub(super) fn keys(&self) -> Option<&Arc<KeyCache>> {
        self.client.signed.as_ref().map(|signed| &signed.keys)
    }

    pub fn settings(&self) -> &IntrospectionSettings {
        &self.client.settings
    }

    pub fn mode(&self) -> IntrospectionMode {
        self.settings().raw.mode
    }

    /// Why introspection is not possible with this discovery document.
    pub fn trouble(&self, discovered: &Metadata) -> Option<&'static str> {
        let is_known = self.settings().endpoint.is_some() || discovered.introspection_endpoint.is_some();
        (!is_known).then_some(match discovered.ignored.contains(&"introspection_endpoint") {
            false => "its discovery document names no introspection endpoint; set `introspection.endpoint`",
            true => {
                "the introspection endpoint of its discovery document is not an https address; set `introspection.endpoint`"
            }
        })
    }

    fn endpoint(&self, discovered: Option<&Metadata>) -> Option<Url> {
        let named = || discovered?.introspection_endpoint.as_ref();
        self.settings().endpoint.as_ref().or_else(named).cloned()
    }

    /// Introspects a made-up token, once and without the cache. The inner value says whether it is reported active; it
    /// is `None` for a signed answer, which is not opened. Returns `None` if no endpoint is known.
    pub async fn probe(&self, discovered: Option<&Metadata>) -> Option<Result<Option<bool>, String>> {
        Some(self.client.probe(self.endpoint(discovered)?).await)
    }

    /// Introspects a token; `None`: it is not active. `discovered` has the endpoint if none is configured. `vouched`
    /// says that the token's signature was verified.
    pub async fn ask(
        &self,
        token: &str,
        key: Key,
        vouched: bool,
        discovered: Option<&Metadata>,
    ) -> Result<Option<Arc<Answer>>, TokenError> {
        let Some(endpoint) = self.endpoint(discovered) else {
            let not_yet = "its discovery document, which names its introspection endpoint, could not be read yet";
            return Err(TokenError::Unavailable {
                issuer: Arc::clone(&self.settings().issuer),
                why: discovered.and_then(|discovered| self.trouble(discovered)).unwrap_or(not_yet).to_owned(),
            });
        };
        let client = &self.client;
        self.lookup.find(key, vouched, || Arc::clone(client).ask(endpoint, token.to_owned())).await
    }
}

impl Client {
    async fn ask(self: Arc<Self>, endpoint: Url, token: String) -> Result<Told, String> {
        let bounds = Bounds { timeout: self.settings.timeout, max_body: MAX_ANSWER };
        let mut trouble = String::new();
        for _ in 0..self.settings.tries {
            match self.egress.send(self.request(&endpoint, &token)?, bounds).await {
                Ok(answer) if answer.status().is_server_error() => {
                    trouble = format!("the answer is {}{}", answer.status(), self.cause(&answer, &token))
                }
                Ok(answer) => return self.read(&self.body(&answer, &token)?).await,
                Err(error) => trouble = error.to_string(),
            }
        }
        Err(trouble)
    }

    async fn probe(&self, endpoint: Url) -> Result<Option<bool>, String> {
        let token = format!("doorward-doctor-{}", Uuid::new_v4().simple());
        let bounds = Bounds { timeout: self.settings.timeout, max_body: MAX_ANSWER };
        let answer = self.egress.send(self.request(&endpoint, &token)?, bounds).await;
        let body = self.body(&answer.map_err(|error| error.to_string())?, &token)?;
        match self.signed {
            Some(_) => Ok(None),
            None => Ok(Some(self.read(&body).await?.is_some())),
        }
    }

    fn request(&self, endpoint: &Url, token: &str) -> Result<Request<Bytes>, String> {
        let asked = [("token", token), ("token_type_hint", "access_token")];
        self.settings.client.post(self.clock.now(), endpoint, self.media_type(), &asked)
    }

    fn media_type(&self) -> &'static str {
        if self.signed.is_some() { MEDIA_TYPE } else { "application/json" }
    }

    /// The error in a refusal (RFC 6749 section 5.2), for the log, without the secrets that were sent, which it may
    /// repeat.
    fn cause(&self, answer: &Response<Bytes>, token: &str) -> String {
        let said = strict_json::object(answer.body()).unwrap_or_default();
        let secret = match self.settings.client.proof(self.clock.now()) {
            Ok(Proof::Basic(secret) | Proof::Post(secret)) => secret.expose_str().unwrap_or_default().to_owned(),
            Ok(Proof::Assertion(assertion)) => assertion.into_owned(),
            Ok(Proof::Public) | Err(_) => String::new(),
        };
        let told = |name: &str| {
            let mut text = said.get(name)?.as_str()?.to_owned();
            for sent in [token, &secret].into_iter().filter(|sent| !sent.is_empty()) {
                text = text.replace(sent, "…");
            }
            Some(Quoted::text(&text).to_string())
        };
        let told: Vec<_> = ["error", "error_description"].into_iter().filter_map(told).collect();
        if told.is_empty() { String::new() } else { format!("; it says {}", told.join(", ")) }
    }

    /// The body of an answer with status 200 and the expected type.
    fn body(&self, answer: &Response<Bytes>, token: &str) -> Result<Bytes, String> {
        match answer.status() {
            StatusCode::OK => body(answer, self.media_type()).cloned(),
            status => Err(format!("{}{}", refusal(status), self.cause(answer, token))),
        }
    }

    async fn read(&self, body: &Bytes) -> Result<Told, String> {
        let claims = match &self.signed {
            None => strict_json::object(body).map_err(|why| format!("the answer {why}"))?,
            Some(signed) => {
                let text = std::str::from_utf8(body).map_err(|_| "the answer is not text".to_owned())?;
                let opened = signed.open(text.trim_ascii()).await;
                opened.map_err(|why| format!("the signed answer is not valid: {why}"))?
            }
        };
        active(claims, body.len())
    }
}

/// The error for another status. A 401 or 403 is about our own credential, not about the caller's token.
fn refusal(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("it refuses our own client ({status}); check `introspection.client`")
        }
        status => format!("the answer is {status}, not 200"),
    }
}

/// The body of an answer of the requested type.
fn body<'a>(answer: &'a Response<Bytes>, asked: &str) -> Result<&'a Bytes, String> {
    if !media_type(answer.headers()).eq_ignore_ascii_case(asked) {
        return Err(format!("the answer is not {asked}"));
    }
    Ok(answer.body())
}

/// Reads an answer, in which `active` must be a boolean (RFC 7662 section 2.2).
fn active(claims: Map<String, Value>, size: usize) -> Result<Told, String> {
    match claims.get("active") {
        Some(Value::Bool(true)) => Ok(Some((claims, size))),
        Some(Value::Bool(false)) => Ok(None),
        _ => Err("the answer has no `active` that is true or false".to_owned()),
    }
}
