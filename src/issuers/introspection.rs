//! Token introspection (RFC 7662): one question to the issuer about one token.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::{
    client_auth::ClientAuth,
    lookup::{Answer, Lookup, Told},
    single_flight::Key,
    strict_json,
    token_error::TokenError,
};
use crate::{
    clock::Clock,
    config::raw::{self, IntrospectionMode},
    egress::{Bounds, Egress},
};

/// A larger answer is none.
const MAX_ANSWER: usize = 64 << 10;
/// How often one question is asked.
const TRIES: usize = 2;

/// What decides which answers are remembered: while it stays the same, a reload keeps them.
#[derive(Clone, Debug, PartialEq)]
pub struct IntrospectionSettings {
    pub issuer: Arc<str>,
    pub raw: raw::Introspection,
    pub client: ClientAuth,
    pub ca: Option<Vec<u8>>,
    pub endpoint: Option<Url>,
    pub timeout: Duration,
}

/// Introspection at one issuer.
#[derive(Debug)]
pub struct Introspection {
    settings: IntrospectionSettings,
    lookup: Lookup,
    asker: Arc<Asker>,
}

#[derive(Debug)]
struct Asker {
    client: ClientAuth,
    egress: Egress,
    clock: Clock,
    timeout: Duration,
}

impl Introspection {
    pub fn new(settings: IntrospectionSettings, egress: Egress, clock: Clock, lookup: Lookup) -> Self {
        let asker = Arc::new(Asker { client: settings.client.clone(), egress, clock, timeout: settings.timeout });
        Self { settings, lookup, asker }
    }

    pub fn settings(&self) -> &IntrospectionSettings {
        &self.settings
    }

    pub fn mode(&self) -> IntrospectionMode {
        self.settings.raw.mode
    }

    /// What the issuer says of a token; `None`: it is not active. `discovered` is the endpoint that discovery names,
    /// used where the configuration names none. `vouched`: the token's signature was checked.
    pub async fn ask(
        &self,
        token: &str,
        key: Key,
        vouched: bool,
        discovered: Option<&Url>,
    ) -> Result<Option<Arc<Answer>>, TokenError> {
        let Some(endpoint) = self.settings.endpoint.as_ref().or(discovered).cloned() else {
            return Err(TokenError::Unavailable {
                issuer: Arc::clone(&self.settings.issuer),
                why: "its introspection endpoint is not known yet".to_owned(),
            });
        };
        let asker = &self.asker;
        self.lookup.find(key, vouched, || Arc::clone(asker).ask(endpoint, token.to_owned())).await
    }
}

impl Asker {
    async fn ask(self: Arc<Self>, endpoint: Url, token: String) -> Result<Told, String> {
        let bounds = Bounds { timeout: self.timeout, max_body: MAX_ANSWER };
        let mut trouble = String::new();
        for _ in 0..TRIES {
            match self.egress.send(self.request(&endpoint, &token)?, bounds).await {
                Ok(answer) if answer.status().is_server_error() => {
                    trouble = format!("the answer is {}", answer.status())
                }
                Ok(answer) => return read(&answer),
                Err(error) => trouble = error.to_string(),
            }
        }
        Err(trouble)
    }

    fn request(&self, endpoint: &Url, token: &str) -> Result<Request<Bytes>, String> {
        let mut request = Request::post(endpoint.as_str())
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Bytes::new())
            .map_err(|error| error.to_string())?;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("token", token).append_pair("token_type_hint", "access_token");
        self.client.apply(self.clock.now(), &mut form, request.headers_mut())?;
        *request.body_mut() = form.finish().into();
        Ok(request)
    }
}

/// An answer counts only if it is exactly what RFC 7662 section 2.2 describes: `active` is a boolean. A 401 is about
/// our own credential, so it is our trouble and not the caller's.
fn read(answer: &Response<Bytes>) -> Result<Told, String> {
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(format!("it refuses our own client ({}); check `introspection.client`", answer.status()));
        }
        status => return Err(format!("the answer is {status}, not 200")),
    }
    let json = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| {
            value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
        })
    };
    if !answer.headers().get(header::CONTENT_TYPE).is_some_and(json) {
        return Err("the answer is not application/json".to_owned());
    }
    let claims = strict_json::object(answer.body()).map_err(|why| format!("the answer {why}"))?;
    match claims.get("active") {
        Some(Value::Bool(true)) => Ok(Some((claims, answer.body().len()))),
        Some(Value::Bool(false)) => Ok(None),
        _ => Err("the answer has no `active` that is true or false".to_owned()),
    }
}
