//! The Doorward at which a program signs in, as seen from the machine of the person.

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
    authn::NeededLogin,
    clock::Timestamp,
    egress::{Bounds, Egress, Proxy},
    endpoints::WHO_AM_I,
    oidc::program::{self, UserCode},
};

/// What a call may cost. Doorward may wait for a provider itself.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(40), max_body: 256 << 10 };

/// What it may cost to learn that a session goes on, while somebody waits for another program.
const GLANCE: Bounds = Bounds { timeout: Duration::from_secs(3), max_body: 256 << 10 };

/// Between two questions whether a person has decided, whatever Doorward asks for.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What a program sends there is a form, even an empty one.
const FORM: &str = "application/x-www-form-urlencoded";

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
    /// An error of RFC 6749 section 5.2 or RFC 8628 section 3.5, by its name and in words.
    #[error("{1}")]
    Told(String, String),
    /// No answer, or one that is not Doorward's.
    #[error("{0}")]
    Other(String),
}

/// What a machine without a browser waits with (RFC 8628 section 3.2).
pub struct Waiting {
    pub code: String,
    pub user_code: UserCode,
    pub expires: Duration,
    pub interval: Duration,
}

impl Refused {
    /// With what to do.
    pub fn advise(self, address: &Address) -> String {
        match self {
            Self::Ended(why) => format!("{why}; run `doorward login {address}`"),
            Self::Told(_, why) | Self::Other(why) => why,
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
    pub fn page(&self, port: u16, state: &str, challenge: &str, machine: &str, needed: &NeededLogin) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("port", &port.to_string()).append_pair("state", state);
        query.append_pair("code_challenge", challenge).append_pair("machine", machine);
        query.extend_pairs(needed.parameters());
        format!("{}{}?{}", self.origin, program::PAGE, query.finish())
    }

    /// The session for a code.
    pub async fn redeem(&self, code: &str, verifier: &str, ca: Option<PathBuf>) -> Result<Entry, Refused> {
        let form = [("grant_type", "authorization_code"), ("code", code), ("code_verifier", verifier)];
        entry(&self.submit(program::TOKEN, &form).await?, ca)
    }

    /// A code for a person to type at [`Self::device_page`].
    pub async fn begin_device(&self, challenge: &str, machine: &str, needed: &NeededLogin) -> Result<Waiting, Refused> {
        let needed = needed.parameters();
        let mut form = vec![("code_challenge", challenge), ("machine", machine)];
        form.extend(needed.iter().map(|(name, value)| (*name, value.as_str())));
        let told = self.submit(program::DEVICE_REQUEST, &form).await?;
        let seconds = |name: &str| told.get(name).and_then(Value::as_u64).map(Duration::from_secs);
        let waiting = || {
            Some(Waiting {
                code: told.get("device_code")?.as_str()?.to_owned(),
                user_code: UserCode::parse(told.get("user_code")?.as_str()?)?,
                expires: seconds("expires_in")?,
                interval: seconds("interval")?.clamp(SHORTEST, LONGEST),
            })
        };
        waiting().ok_or_else(not_understood)
    }

    pub fn device_page(&self) -> String {
        format!("{}{}", self.origin, program::DEVICE)
    }

    /// The session of a program whose code was typed.
    pub async fn redeem_device(&self, code: &str, verifier: &str, ca: Option<PathBuf>) -> Result<Entry, Refused> {
        let form = [("grant_type", program::DEVICE_GRANT), ("device_code", code), ("code_verifier", verifier)];
        entry(&self.submit(program::TOKEN, &form).await?, ca)
    }

    async fn submit(&self, path: &str, form: &[(&str, &str)]) -> Result<Value, Refused> {
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, FORM)
            .uri(format!("{}{path}", self.origin))
            .body(Bytes::from(Serializer::new(String::new()).extend_pairs(form).finish()));
        self.send(request, BOUNDS).await
    }

    pub async fn who_am_i(&self, handle: &str) -> Result<Value, Refused> {
        self.call(Method::GET, WHO_AM_I, handle, BOUNDS).await
    }

    /// Whether the session of this handle is over for certain: not where nobody can be asked.
    pub async fn has_ended(&self, handle: &str) -> bool {
        matches!(self.call(Method::GET, WHO_AM_I, handle, GLANCE).await, Err(Refused::Ended(_)))
    }

    pub async fn end(&self, handle: &str) -> Result<(), Refused> {
        match self.call(Method::POST, program::END, handle, BOUNDS).await {
            // One that has ended already is what was wanted.
            Ok(_) | Err(Refused::Ended(_)) => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    async fn call(&self, method: Method, path: &str, handle: &str, bounds: Bounds) -> Result<Value, Refused> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {handle}"))
            .map_err(|_| Refused::Other("the handle that was kept is damaged".to_owned()))?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.origin))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, FORM)
            .header(header::AUTHORIZATION, bearer)
            .body(Bytes::new());
        self.send(request, bounds).await
    }

    async fn send(&self, request: http::Result<Request<Bytes>>, bounds: Bounds) -> Result<Value, Refused> {
        let request = request.map_err(|error| Refused::Other(error.to_string()))?;
        let answer = self.egress.send(request, bounds).await;
        let answer = answer.map_err(|error| Refused::Other(format!("{}: {error}", self.origin)))?;
        let (status, told) = (answer.status(), serde_json::from_slice::<Value>(answer.body()));
        if status == StatusCode::OK
            && let Ok(told) = told
        {
            return Ok(told);
        }
        let text = |name: &str| {
            let said = told.as_ref().ok()?.get(name)?.as_str()?.chars();
            Some(said.filter(|character| !character.is_control()).take(400).collect::<String>())
        };
        let said = text("error_description").or_else(|| text("detail"));
        Err(match (status, said, text("error")) {
            (StatusCode::UNAUTHORIZED, Some(said), _) => Refused::Ended(said),
            (_, Some(said), Some(error)) => Refused::Told(error, said),
            (_, Some(said), None) => Refused::Other(said),
            _ => Refused::Other(format!("{} answered with {status}: is it a Doorward?", self.origin)),
        })
    }
}

/// What is kept of an answer with a session.
fn entry(told: &Value, ca: Option<PathBuf>) -> Result<Entry, Refused> {
    let text = |name: &str| told.get(name).and_then(Value::as_str).map(str::to_owned);
    let entry = || {
        let (handle, expires, username) = (text("access_token")?, text("expires")?, text("username")?);
        Timestamp::from_rfc3339(&expires)?;
        Some(Entry { handle, expires, username, ca })
    };
    entry().ok_or_else(not_understood)
}

fn not_understood() -> Refused {
    Refused::Other("the answer of Doorward cannot be understood".to_owned())
}
