//! Token introspection (RFC 7662): one question to the issuer about one token.

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

/// A larger answer is none.
const MAX_ANSWER: usize = 64 << 10;

/// What decides which answers are remembered: while it stays the same, a reload keeps them.
#[derive(Clone, Debug, PartialEq)]
pub struct IntrospectionSettings {
    pub issuer: Arc<str>,
    pub raw: raw::Introspection,
    pub client: ClientAuth,
    pub ca: Option<Vec<u8>>,
    pub endpoint: Option<Url>,
    pub timeout: Duration,
    /// How often one question is asked.
    pub tries: u8,
    /// Where answers must be signed: for whom, and how far clocks may differ.
    pub signed_for: Option<(Box<[Box<str>]>, Duration)>,
}

/// Introspection at one issuer.
#[derive(Debug)]
pub struct Introspection {
    lookup: Lookup,
    asker: Arc<Asker>,
}

#[derive(Debug)]
struct Asker {
    settings: IntrospectionSettings,
    egress: Egress,
    clock: Clock,
    /// Where answers must be signed.
    signed: Option<SignedAnswers>,
}

impl Introspection {
    /// `signed`: answers must be, and pass this.
    pub(super) fn new(
        settings: IntrospectionSettings,
        egress: Egress,
        clock: Clock,
        lookup: Lookup,
        signed: Option<SignedAnswers>,
    ) -> Self {
        Self { lookup, asker: Arc::new(Asker { settings, egress, clock, signed }) }
    }

    /// The keys that answers are checked with, where they must be signed.
    pub(super) fn keys(&self) -> Option<&Arc<KeyCache>> {
        self.asker.signed.as_ref().map(|signed| &signed.keys)
    }

    pub fn settings(&self) -> &IntrospectionSettings {
        &self.asker.settings
    }

    pub fn mode(&self) -> IntrospectionMode {
        self.settings().raw.mode
    }

    /// Why nothing can be asked of an issuer that tells this of itself, whatever the token.
    pub fn trouble(&self, discovered: &Metadata) -> Option<&'static str> {
        let is_known = self.settings().endpoint.is_some() || discovered.introspection_endpoint.is_some();
        (!is_known).then_some(
            "its discovery document names no introspection endpoint; write where it is into `introspection.endpoint`",
        )
    }

    fn endpoint(&self, discovered: Option<&Metadata>) -> Option<Url> {
        let named = || discovered?.introspection_endpoint.as_ref();
        self.settings().endpoint.as_ref().or_else(named).cloned()
    }

    /// Asks about a token that nobody has issued, once and past what is remembered. Gives whether it is called active; `None` where
    /// that stands in a signed answer, which is not opened. No question is asked where there is no address for it.
    pub async fn probe(&self, discovered: Option<&Metadata>) -> Option<Result<Option<bool>, String>> {
        Some(self.asker.probe(self.endpoint(discovered)?).await)
    }

    /// What the issuer says of a token; `None`: it is not active. `discovered` has the endpoint that is used where the
    /// configuration names none. `vouched`: the token's signature was checked.
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
        let asker = &self.asker;
        self.lookup.find(key, vouched, || Arc::clone(asker).ask(endpoint, token.to_owned())).await
    }
}

impl Asker {
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

    /// What a refusal says of its cause (RFC 6749 section 5.2), for the log. It may repeat what was sent.
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

    /// The body of an answer that is one.
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
                opened.map_err(|why| format!("the signed answer cannot be believed: {why}"))?
            }
        };
        active(claims, body.len())
    }
}

/// A 401 is about our own credential, so it is our trouble and not the caller's.
fn refusal(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("it refuses our own client ({status}); check `introspection.client`")
        }
        status => format!("the answer is {status}, not 200"),
    }
}

/// The body of an answer of the type that was asked for.
fn body<'a>(answer: &'a Response<Bytes>, asked: &str) -> Result<&'a Bytes, String> {
    if !media_type(answer.headers()).eq_ignore_ascii_case(asked) {
        return Err(format!("the answer is not {asked}"));
    }
    Ok(answer.body())
}

/// An answer counts only if it is exactly what RFC 7662 section 2.2 describes: `active` is a boolean.
fn active(claims: Map<String, Value>, size: usize) -> Result<Told, String> {
    match claims.get("active") {
        Some(Value::Bool(true)) => Ok(Some((claims, size))),
        Some(Value::Bool(false)) => Ok(None),
        _ => Err("the answer has no `active` that is true or false".to_owned()),
    }
}
