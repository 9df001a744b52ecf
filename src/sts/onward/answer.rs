//! The responses of providers, and whether they may be passed on.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::protocol::Reads;
use crate::{
    clock::Timestamp,
    issuers::parse_strict_object,
    sts::form::{ACCESS_TOKEN, JWT},
};

/// Maximum bytes of a response. A larger one is a failure.
pub const MAX_ANSWER: usize = 64 << 10;

/// Characters of a provider's message that are passed on.
const MAX_SAID: usize = 200;

/// How many seconds its clock may differ from ours, if it states a time rather than a duration.
const SKEW: i64 = 60;

/// A token of a provider. Nothing else is passed on: no refresh token, no ID token.
#[derive(Clone)]
pub struct ProviderToken {
    pub token: Zeroizing<String>,
    pub form: TokenForm,
    pub expires: Timestamp,
    /// The scopes that the provider names; `None` for those that were asked for (RFC 6749 section 5.1).
    pub scopes: Option<Vec<String>>,
}

/// The form of a provider's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenForm {
    Bearer,
    /// JSON in the form that `credential_process` of AWS returns.
    AwsCredentials,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The provider cannot be reached, or is in trouble, which may pass.
    #[error("{0}")]
    Away(String),
    /// It failed a moment ago, and its circuit breaker is open for this long.
    #[error("its last calls failed, and it is not asked again for {0:?}")]
    LeftAlone(Duration),
    /// The provider refused, with its own message. `passes`: providers also refuse in this way temporarily when
    /// everything is in order.
    #[error("it refused with `{error}` ({})", .said.as_deref().unwrap_or("without a reason"))]
    Refused { error: String, said: Option<String>, passes: bool },
    /// The response cannot be passed on.
    #[error("{0}")]
    Unfit(String),
}

/// The requirements on a token.
#[derive(Debug)]
pub struct Expected<'a> {
    pub reads: Reads,
    /// The scopes that were asked for, as the provider calls them, and those that it may add.
    pub asked: &'a [String],
    pub default_scopes: &'a [String],
    pub max_lifetime: i64,
    /// When it was asked.
    pub now: Timestamp,
}

impl Expected<'_> {
    /// The token in a response.
    pub fn read(&self, answer: &Response<Bytes>) -> Result<ProviderToken, Failure> {
        let body = success(self.reads, answer)?;
        match self.reads {
            Reads::OAuth { exchanged } => self.oauth(&body, exchanged),
            Reads::Aws => self.aws(&body),
        }
    }

    fn oauth(&self, body: &Map<String, Value>, exchanged: bool) -> Result<ProviderToken, Failure> {
        let token = token(body.get("access_token"))?;
        let told = |came: Option<&Value>| {
            came.map_or_else(|| "missing".to_owned(), |came| format!("`{}`", clean(&plain(came))))
        };
        match body.get("token_type") {
            Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => {}
            other => return Err(unfit(format!("its `token_type` is {}, where `Bearer` is expected", told(other)))),
        }
        let claims = jwt(&token);
        // A token that is bound to a certificate has the type `Bearer` all the same (RFC 8705 section 3).
        if claims.as_ref().is_some_and(|claims| claims.contains_key("cnf")) {
            return Err(unfit(
                "the token is bound to a key or a certificate (`cnf`), without which it is worth nothing to a task; switch that off for \
                 Doorward's client at the provider",
            ));
        }
        match body.get("issued_token_type") {
            None if !exchanged => {}
            Some(Value::String(kind)) if [ACCESS_TOKEN, JWT].contains(&kind.as_str()) => {}
            other => {
                let came = told(other);
                return Err(unfit(format!("its `issued_token_type` is {came}, where `{ACCESS_TOKEN}` is expected")));
            }
        }
        let scopes = match body.get("scope") {
            None => None,
            Some(Value::String(scopes)) => Some(split(scopes)),
            Some(_) => return Err(unfit("its `scope` is no text")),
        };
        self.check_scopes(scopes.as_deref().unwrap_or_default())?;
        self.check_told(scopes.is_some() || claims.is_some())?;
        let no_number = || unfit("its `expires_in` is no number of seconds");
        let lasts = match body.get("expires_in") {
            None | Some(Value::Null) => None,
            // Some providers write it with a fraction, and some as text.
            Some(Value::Number(seconds)) => {
                let whole = seconds.as_i64().or_else(|| seconds.as_f64().map(|seconds| seconds as i64));
                Some(whole.ok_or_else(no_number)?)
            }
            Some(Value::String(seconds)) => Some(seconds.parse().map_err(|_| no_number())?),
            Some(_) => return Err(no_number()),
        };
        let claims = claims.unwrap_or_default();
        let own = jwt_end(&claims);
        if let Some(end) = own {
            self.check_lifetime(end.saturating_sub(self.now.as_secs()), SKEW)?;
        }
        let within = self.jwt_scopes(&claims)?;
        self.check_scopes(&within)?;
        let expires = match (lasts, own) {
            (Some(lasts), own) => {
                self.check_lifetime(lasts, 0)?;
                let end = self.now.as_secs().saturating_add(lasts);
                // Whoever receives the token goes by its own `exp`.
                Timestamp::from_secs(own.map_or(end, |own| own.min(end)))
            }
            (None, Some(end)) => Timestamp::from_secs(end),
            (None, None) => return Err(unfit("it does not say how long the token lasts (`expires_in`)")),
        };
        Ok(ProviderToken { token, form: TokenForm::Bearer, expires, scopes })
    }

    /// The response of Google's `generateAccessToken`.
    pub fn service_account(&self, answer: &Response<Bytes>) -> Result<ProviderToken, Failure> {
        let body = success(self.reads, answer)?;
        let token = token(body.get("accessToken"))?;
        let end = body.get("expireTime").and_then(Value::as_str).and_then(Timestamp::from_rfc3339);
        let expires = end.ok_or_else(|| unfit("it does not say when the token ends (`expireTime`)"))?;
        self.check_lifetime(expires.as_secs().saturating_sub(self.now.as_secs()), SKEW)?;
        Ok(ProviderToken { token, form: TokenForm::Bearer, expires, scopes: None })
    }

    fn aws(&self, body: &Map<String, Value>) -> Result<ProviderToken, Failure> {
        let path = ["AssumeRoleWithWebIdentityResponse", "AssumeRoleWithWebIdentityResult", "Credentials"];
        let credentials = path.iter().try_fold(None::<&Map<String, Value>>, |found, name| {
            found.unwrap_or(body).get(*name).and_then(Value::as_object).map(Some)
        });
        let credentials = credentials.flatten().ok_or_else(|| unfit("it has no `Credentials`"))?;
        let part = |name: &str| token(credentials.get(name));
        let expires = match credentials.get("Expiration") {
            // Seconds, with or without a fraction.
            Some(Value::Number(seconds)) => seconds.as_f64().map(|seconds| Timestamp::from_secs(seconds as i64)),
            Some(Value::String(text)) => Timestamp::from_rfc3339(text),
            _ => None,
        };
        let expires = expires.ok_or_else(|| unfit("it does not say when the credentials end (`Expiration`)"))?;
        self.check_lifetime(expires.as_secs().saturating_sub(self.now.as_secs()), SKEW)?;
        let process = json!({
            "Version": 1,
            "AccessKeyId": &*part("AccessKeyId")?,
            "SecretAccessKey": &*part("SecretAccessKey")?,
            "SessionToken": &*part("SessionToken")?,
            "Expiration": expires.to_string(),
        });
        Ok(ProviderToken {
            token: Zeroizing::new(process.to_string()),
            form: TokenForm::AwsCredentials,
            expires,
            scopes: None,
        })
    }

    /// The scopes that a JWT claims: `scope` (RFC 9068 section 2.2.3), or `scp`, which is text at some providers and a
    /// list at others. Entra ID omits the resource there, since it is in the audience, so its names are returned as
    /// they were asked for.
    fn jwt_scopes(&self, claims: &Map<String, Value>) -> Result<Vec<String>, Failure> {
        let mut scopes = Vec::new();
        for name in ["scope", "scp"] {
            let of_claim = match claims.get(name) {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => split(text),
                Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
                }
                Some(_) => return Err(unfit(format!("`{name}` of the token is neither text nor a list of texts"))),
            };
            scopes.extend(of_claim.into_iter().map(|scope| self.as_asked(scope)));
        }
        Ok(scopes)
    }

    /// `https://vault.azure.net/.default` asks for everything at a resource, and `api://app/Deploy` for one scope of
    /// it.
    fn as_asked(&self, scope: String) -> String {
        let ends = |asked: &&String| {
            let last = asked.rsplit_once('/').map(|(_, last)| last);
            last.is_some_and(|last| last == scope || last == ".default")
        };
        self.asked.iter().find(ends).cloned().unwrap_or(scope)
    }

    /// Refuses scopes that were not asked for.
    fn check_scopes(&self, named: &[String]) -> Result<(), Failure> {
        let wider: Vec<&str> = named
            .iter()
            .filter(|scope| !self.asked.contains(scope) && !self.default_scopes.contains(scope))
            .map(String::as_str)
            .collect();
        if wider.is_empty() {
            return Ok(());
        }
        let asked = if self.asked.is_empty() { "none".to_owned() } else { format!("`{}`", self.asked.join(" ")) };
        Err(unfit(format!(
            "it gives scope `{}`, which was not asked for ({asked} was); keep the provider from adding it, or list it in \
             `default_scopes`",
            clean(&wider.join(" "))
        )))
    }

    /// Refuses a token whose scopes are not stated. `told`: the response states them, or the token is a JWT.
    fn check_told(&self, told: bool) -> Result<(), Failure> {
        // If no scope is asked for, a server gives what it chooses (RFC 6749 section 3.3), and only a JWT shows what
        // that is.
        if told || !self.asked.is_empty() || !self.default_scopes.is_empty() {
            return Ok(());
        }
        Err(unfit(
            "no scope was asked for, and neither `scope` of the answer nor the token says which it has, so it may have any; name \
             `scopes` in the rule, or list in `default_scopes` what the provider gives by default",
        ))
    }

    fn check_lifetime(&self, lasts: i64, skew: i64) -> Result<(), Failure> {
        if lasts <= 0 {
            return Err(unfit("the token has ended already"));
        }
        if lasts > self.max_lifetime.saturating_add(skew) {
            return Err(unfit(format!(
                "the token lasts {lasts} s, where `max_lifetime` lets it last {} s; shorten it at the provider, or raise \
                 `max_lifetime`",
                self.max_lifetime
            )));
        }
        Ok(())
    }
}

/// The token in a successful response, whether it can be passed on or not.
pub fn token_in(answer: &Response<Bytes>) -> Option<Zeroizing<String>> {
    if !answer.status().is_success() {
        return None;
    }
    token(parse_strict_object(answer.body()).ok()?.get("access_token")).ok()
}

/// The object in a successful response.
fn success(reads: Reads, answer: &Response<Bytes>) -> Result<Map<String, Value>, Failure> {
    let status = answer.status();
    if status.is_success() {
        return parse_strict_object(answer.body()).map_err(|why| unfit(format!("the answer {why}")));
    }
    if status.is_redirection() {
        return Err(unfit(format!(
            "it answers with a redirect ({}), which is not followed; correct its address",
            status.as_u16()
        )));
    }
    let (error, said) = refusal(answer.body());
    let away = ["temporarily_unavailable", "server_error", "slow_down", "IDPCommunicationError", "Throttling"];
    if status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || error.as_deref().is_some_and(|error| away.contains(&error))
    {
        let said = error.into_iter().chain(said).collect::<Vec<_>>().join(": ");
        let said = if said.is_empty() { said } else { format!(" ({said})") };
        return Err(Failure::Away(format!("it answers {}{said}", status.as_u16())));
    }
    let error = error.unwrap_or_else(|| status.as_u16().to_string());
    let passes = passes(reads, &error, said.as_deref().unwrap_or_default());
    Err(Failure::Refused { error, said, passes })
}

/// Whether a refusal is one that the provider also gives temporarily when everything is in order, and after which it
/// asks for a retry. It may be permanent as well: the two cannot be distinguished.
fn passes(reads: Reads, error: &str, said: &str) -> bool {
    match reads {
        // It may have failed to fetch our keys.
        Reads::Aws => error == "InvalidIdentityToken",
        // Entra ID: not all of its servers know a new federated credential at once, and some could not fetch our keys.
        Reads::OAuth { .. } => {
            let codes = ["70021", "700211", "700212", "700213", "50166", "501661"];
            let code = said.strip_prefix("AADSTS").and_then(|said| said.split_once(':'));
            code.is_some_and(|(code, _)| codes.contains(&code))
        }
    }
}

/// The error in a response: RFC 6749 section 5.2, or in the form of AWS or Google.
fn refusal(body: &[u8]) -> (Option<String>, Option<String>) {
    let Ok(body) = parse_strict_object(body) else { return (None, None) };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(clean).filter(|text| !text.is_empty());
    let (error, said) = match (body.get("error"), body.get("Error")) {
        (Some(Value::Object(error)), _) => (error.get("status"), error.get("message")),
        (_, Some(Value::Object(error))) => (error.get("Code"), error.get("Message")),
        (error, _) => (error, body.get("error_description")),
    };
    (text(error), text(said))
}

/// A token that can be in a header and in a file.
fn token(value: Option<&Value>) -> Result<Zeroizing<String>, Failure> {
    let token = value.and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unfit("there is no token in its answer"));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// The claims of a token, if it is a JWT. Its signature is not verified, and it is not trusted where that would widen
/// anything.
fn jwt(token: &str) -> Option<Map<String, Value>> {
    let [_, claims, _] = token.split('.').collect::<Vec<_>>()[..] else { return None };
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// When a JWT ends, in seconds since the epoch.
fn jwt_end(claims: &Map<String, Value>) -> Option<i64> {
    claims.get("exp")?.as_f64().map(|end| end as i64)
}

fn split(scopes: &str) -> Vec<String> {
    scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A provider's message, fit to be passed on: short, without control characters, and without a token that it may
/// repeat.
pub fn clean(text: &str) -> String {
    let printed: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Each JWT, and each of its parts that has content, begins like this.
    let words = printed.split_whitespace().map(|word| if word.contains("eyJ") { "(a token)" } else { word });
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_SAID).collect()
}

fn unfit(why: impl Into<String>) -> Failure {
    Failure::Unfit(why.into())
}

impl ProviderToken {
    /// Its approximate size in bytes.
    pub fn size(&self) -> usize {
        self.token.len() + self.scopes.iter().flatten().map(String::len).sum::<usize>()
    }
}

impl std::fmt::Debug for ProviderToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProviderToken")
            .field("form", &self.form)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
