//! Swaps the token of the pod for one of Doorward's (RFC 8693), and ends that (RFC 7009).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    egress::{Bounds, Egress, Proxy},
    login::Address,
};

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(15), max_body: 64 << 10 };

/// The largest token of a pod that is sent.
const MAX_SUBJECT: u64 = 32 << 10;

/// Where tokens are swapped, and for what.
#[derive(Debug)]
pub struct Swap {
    server: Address,
    egress: Egress,
    subject: PathBuf,
    audience: String,
    scope: Option<String>,
}

/// A token that was issued.
#[derive(Debug)]
pub struct Issued {
    pub token: Zeroizing<String>,
    /// By this machine's clock.
    pub ends: Timestamp,
    pub lasts: Duration,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoToken {
    /// It may work later; perhaps after so long.
    #[error("{0}")]
    Passing(String, Option<Duration>),
    /// Asking again changes nothing.
    #[error("{0}")]
    Refused(String),
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: u64,
}

impl Swap {
    /// Trusts the authorities in `ca`, or else those of the system.
    pub fn new(
        server: Address,
        ca: Option<&Path>,
        subject: PathBuf,
        audience: String,
        scope: Option<String>,
    ) -> Result<Self, String> {
        let proxy = if server.as_str().starts_with("https") { Proxy::from_environment()? } else { Proxy::default() };
        let egress = match ca {
            None => Egress::new(proxy)?,
            Some(ca) => Egress::new(proxy)?.trusting(ca).map_err(|error| format!("{}: {error}", ca.display()))?,
        };
        Ok(Self { server, egress, subject, audience, scope })
    }

    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Asks for a token. The pod's is read each time, since the kubelet replaces it.
    pub async fn token(&self) -> Result<Issued, NoToken> {
        let subject = self.read_subject()?;
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
        form.append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:jwt");
        form.append_pair("subject_token", subject.trim());
        form.append_pair("audience", &self.audience);
        if let Some(scope) = &self.scope {
            form.append_pair("scope", scope);
        }
        let now = now();
        let answer = self.post("/oauth2/token", form.finish()).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refused(&answer));
        }
        let unfit =
            || NoToken::Refused(format!("{} answered with something that is no token: is it a Doorward?", self.server));
        let answer: Answer = serde_json::from_slice(answer.body()).map_err(|_| unfit())?;
        let is_token =
            !answer.access_token.is_empty() && answer.access_token.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_token || answer.expires_in == 0 {
            return Err(unfit());
        }
        let lasts = Duration::from_secs(answer.expires_in.min(86_400));
        Ok(Issued { token: Zeroizing::new(answer.access_token), ends: now + lasts, lasts })
    }

    /// Ends a token that nobody needs any more.
    pub async fn revoke(&self, token: &str) -> Result<(), NoToken> {
        let answer =
            self.post("/oauth2/revoke", Serializer::new(String::new()).append_pair("token", token).finish()).await?;
        if answer.status() == StatusCode::OK { Ok(()) } else { Err(self.refused(&answer)) }
    }

    fn read_subject(&self) -> Result<Zeroizing<String>, NoToken> {
        let told = |error: &dyn std::fmt::Display| {
            NoToken::Passing(
                format!(
                    "the pod's token cannot be read: {}: {error}; project a `serviceAccountToken` into the pod, with the audience {}, \
                     and name its file with `--subject-token-file`",
                    self.subject.display(),
                    self.server
                ),
                None,
            )
        };
        let size = std::fs::metadata(&self.subject).map_err(|error| told(&error))?.len();
        if size == 0 || size > MAX_SUBJECT {
            return Err(told(&format!("it has {size} bytes, which is no token")));
        }
        std::fs::read_to_string(&self.subject).map(Zeroizing::new).map_err(|error| told(&error))
    }

    async fn post(&self, path: &str, form: String) -> Result<Response<Bytes>, NoToken> {
        let request = Request::post(format!("{}{path}", self.server))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(Bytes::from(form))
            .map_err(|error| NoToken::Refused(error.to_string()))?;
        let answer = self.egress.send(request, BOUNDS).await;
        answer.map_err(|error| NoToken::Passing(format!("{}: {error}", self.server), None))
    }

    fn refused(&self, answer: &Response<Bytes>) -> NoToken {
        let status = answer.status();
        let told: Option<Value> = serde_json::from_slice(answer.body()).ok();
        let text = |name: &str| {
            let text = told.as_ref()?.get(name)?.as_str()?.chars();
            Some(text.filter(|character| !character.is_control()).take(600).collect::<String>())
        };
        let said = match (text("error"), text("error_description").or_else(|| text("detail"))) {
            (Some(error), Some(description)) => format!("{error}: {description}"),
            (None, Some(detail)) => detail,
            _ => format!("{} answered with {status}: is it a Doorward?", self.server),
        };
        match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            true => NoToken::Passing(said, retry_after(answer.headers())),
            false => NoToken::Refused(said),
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(std::cmp::min(seconds, 60)))
}

pub(super) fn now() -> Timestamp {
    Timestamp::from(std::time::SystemTime::now())
}
