use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::{Address, kept::Entry};
use crate::{
    clock::Timestamp,
    egress::{Bounds, Egress, Proxy},
    oidc::program,
};

/// What a call may cost. Doorward may wait for a provider itself.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(40), max_body: 256 << 10 };

/// The Doorward at an address.
pub struct Server {
    origin: String,
    egress: Egress,
}

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// 401: the session is over.
    #[error("{0}")]
    Ended(String),
    #[error("{0}")]
    Other(String),
}

impl Refused {
    /// With what to do.
    pub fn advise(self, address: &Address) -> String {
        match self {
            Self::Ended(why) => format!("{why}; run `doorward login {address}`"),
            Self::Other(why) => why,
        }
    }
}

impl Server {
    /// Trusts the authorities in `ca`, or else those of the system.
    pub fn new(address: &Address, ca: Option<&Path>) -> Result<Self, String> {
        let proxy = if address.as_str().starts_with("https") { Proxy::from_environment()? } else { Proxy::default() };
        let egress = match ca {
            None => Egress::new(proxy)?,
            Some(ca) => Egress::new(proxy)?.trusting(ca).map_err(|error| format!("{}: {error}", ca.display()))?,
        };
        Ok(Self { origin: address.to_string(), egress })
    }

    /// The page that asks the person.
    pub fn page(&self, port: u16, state: &str, challenge: &str, machine: &str) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("port", &port.to_string()).append_pair("state", state);
        query.append_pair("code_challenge", challenge).append_pair("machine", machine);
        format!("{}{}?{}", self.origin, program::PAGE, query.finish())
    }

    /// The session for a code.
    pub async fn redeem(&self, code: &str, verifier: &str, ca: Option<PathBuf>) -> Result<Entry, Refused> {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code").append_pair("code", code);
        form.append_pair("code_verifier", verifier);
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .uri(format!("{}{}", self.origin, program::TOKEN))
            .body(Bytes::from(form.finish()));
        let told = self.send(request).await?;
        let text = |name: &str| told.get(name).and_then(Value::as_str).map(str::to_owned);
        let entry = || {
            let (handle, expires, username) = (text("access_token")?, text("expires")?, text("username")?);
            Timestamp::from_rfc3339(&expires)?;
            Some(Entry { handle, expires, username, ca })
        };
        entry().ok_or_else(|| Refused::Other("the answer of Doorward cannot be understood".to_owned()))
    }

    pub async fn who_am_i(&self, handle: &str) -> Result<Value, Refused> {
        self.call(Method::GET, "/.doorward/whoami", handle).await
    }

    pub async fn end(&self, handle: &str) -> Result<(), Refused> {
        self.call(Method::POST, program::END, handle).await.map(drop)
    }

    async fn call(&self, method: Method, path: &str, handle: &str) -> Result<Value, Refused> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {handle}"))
            .map_err(|_| Refused::Other("the handle that was kept is damaged".to_owned()))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.origin))
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, bearer)
            .body(Bytes::new());
        self.send(request).await
    }

    async fn send(&self, request: http::Result<Request<Bytes>>) -> Result<Value, Refused> {
        let request = request.map_err(|error| Refused::Other(error.to_string()))?;
        let answer = self.egress.send(request, BOUNDS).await;
        let answer = answer.map_err(|error| Refused::Other(format!("{}: {error}", self.origin)))?;
        let (status, told) = (answer.status(), serde_json::from_slice::<Value>(answer.body()));
        if status == StatusCode::OK
            && let Ok(told) = told
        {
            return Ok(told);
        }
        let said = told.ok().and_then(|told| {
            let said = told.get("error_description").or_else(|| told.get("detail"))?.as_str()?.chars();
            Some(said.filter(|character| !character.is_control()).take(400).collect::<String>())
        });
        let said = said.unwrap_or_else(|| format!("{} answered with {status}: is it a Doorward?", self.origin));
        Err(if status == StatusCode::UNAUTHORIZED { Refused::Ended(said) } else { Refused::Other(said) })
    }
}
