//! What a provider answers, and whether it may be passed on.

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

/// Bytes of an answer. A larger one is none.
pub const MAX_ANSWER: usize = 64 << 10;

/// Characters of what a provider says that are passed on.
const MAX_SAID: usize = 200;

/// How far its clock may differ from ours, where it tells a time and not a span: seconds.
const SKEW: i64 = 60;

/// A token of a provider, of which nothing else is passed on: no refresh token, no ID token.
#[derive(Clone)]
pub struct Given {
    pub token: Zeroizing<String>,
    pub form: GivenForm,
    pub expires: Timestamp,
    /// The scopes that the provider names; `None`: those that were asked for (RFC 6749 section 5.1).
    pub scopes: Option<Vec<String>>,
}

/// What a token of a provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenForm {
    Bearer,
    /// JSON as `credential_process` of AWS answers it.
    AwsCredentials,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The provider cannot be reached, or is in trouble: it may pass.
    Away(String),
    /// The provider refused, in its words.
    Refused { error: String, said: Option<String> },
    /// What came cannot be passed on.
    Unfit(String),
}

/// What a token must be.
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
    /// The token in an answer.
    pub fn read(&self, answer: &Response<Bytes>) -> Result<Given, Failure> {
        let body = success(answer)?;
        match self.reads {
            Reads::OAuth { exchanged } => self.oauth(&body, exchanged),
            Reads::Aws => self.aws(&body),
        }
    }

    fn oauth(&self, body: &Map<String, Value>, exchanged: bool) -> Result<Given, Failure> {
        let token = token(body.get("access_token"))?;
        let kind = body.get("token_type").and_then(Value::as_str).unwrap_or_default();
        if !kind.eq_ignore_ascii_case("bearer") {
            return Err(unfit(format!("its `token_type` is `{}`, where `Bearer` is expected", clean(kind))));
        }
        match body.get("issued_token_type") {
            None if !exchanged => {}
            Some(Value::String(kind)) if [ACCESS_TOKEN, JWT].contains(&kind.as_str()) => {}
            other => {
                let came = other.map_or_else(|| "missing".to_owned(), |other| format!("`{}`", clean(&plain(other))));
                return Err(unfit(format!("its `issued_token_type` is {came}, where `{ACCESS_TOKEN}` is expected")));
            }
        }
        let scopes = match body.get("scope") {
            None => None,
            Some(Value::String(scopes)) => Some(split(scopes)),
            Some(_) => return Err(unfit("its `scope` is no text")),
        };
        self.check_scopes(scopes.as_deref().unwrap_or_default())?;
        let no_number = || unfit("its `expires_in` is no number of seconds");
        let lasts = match body.get("expires_in") {
            None => None,
            Some(Value::Number(seconds)) => Some(seconds.as_i64().ok_or_else(no_number)?),
            // Some providers write it as text.
            Some(Value::String(seconds)) => Some(seconds.parse().map_err(|_| no_number())?),
            Some(_) => return Err(no_number()),
        };
        let own = jwt_end(&token);
        if let Some(end) = own {
            self.check_lifetime(end.saturating_sub(self.now.as_secs()), SKEW)?;
        }
        let within = self.jwt_scopes(&token)?;
        self.check_scopes(&within)?;
        let expires = match (lasts, own) {
            (Some(lasts), _) => {
                self.check_lifetime(lasts, 0)?;
                Timestamp::from_secs(self.now.as_secs().saturating_add(lasts))
            }
            (None, Some(end)) => Timestamp::from_secs(end),
            (None, None) => return Err(unfit("it does not say how long the token lasts (`expires_in`)")),
        };
        Ok(Given { token, form: GivenForm::Bearer, expires, scopes })
    }

    /// The answer of `generateAccessToken` of Google.
    pub fn service_account(&self, answer: &Response<Bytes>) -> Result<Given, Failure> {
        let body = success(answer)?;
        let token = token(body.get("accessToken"))?;
        let end = body.get("expireTime").and_then(Value::as_str).and_then(Timestamp::from_rfc3339);
        let expires = end.ok_or_else(|| unfit("it does not say when the token ends (`expireTime`)"))?;
        self.check_lifetime(expires.as_secs().saturating_sub(self.now.as_secs()), SKEW)?;
        Ok(Given { token, form: GivenForm::Bearer, expires, scopes: None })
    }

    fn aws(&self, body: &Map<String, Value>) -> Result<Given, Failure> {
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
        Ok(Given { token: Zeroizing::new(process.to_string()), form: GivenForm::AwsCredentials, expires, scopes: None })
    }

    /// The scopes that a JWT says of itself: `scope` (RFC 9068 section 2.2.3), or `scp`, which is text at some providers and a list at
    /// others. Entra ID leaves there the resource out, which is in the audience, so that its names are told as they were asked for.
    fn jwt_scopes(&self, token: &str) -> Result<Vec<String>, Failure> {
        let claims = jwt(token).unwrap_or_default();
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

    /// `https://vault.azure.net/.default` asks for all that there is at a resource, and `api://app/Deploy` for one scope of it.
    fn as_asked(&self, scope: String) -> String {
        let ends = |asked: &&String| {
            let last = asked.rsplit_once('/').map(|(_, last)| last);
            last.is_some_and(|last| last == scope || last == ".default")
        };
        self.asked.iter().find(ends).cloned().unwrap_or(scope)
    }

    /// Refuses what was not asked for.
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

/// The object in an answer that gives something.
fn success(answer: &Response<Bytes>) -> Result<Map<String, Value>, Failure> {
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
    let passes = ["temporarily_unavailable", "server_error", "slow_down", "IDPCommunicationError", "Throttling"];
    if status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || error.as_deref().is_some_and(|error| passes.contains(&error))
    {
        let said = error.into_iter().chain(said).collect::<Vec<_>>().join(": ");
        let said = if said.is_empty() { said } else { format!(" ({said})") };
        return Err(Failure::Away(format!("it answers {}{said}", status.as_u16())));
    }
    Err(Failure::Refused { error: error.unwrap_or_else(|| status.as_u16().to_string()), said })
}

/// What an answer says went wrong: RFC 6749 section 5.2, or as AWS and Google do.
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

/// A token that can stand in a header and in a file.
fn token(value: Option<&Value>) -> Result<Zeroizing<String>, Failure> {
    let token = value.and_then(Value::as_str).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unfit("there is no token in its answer"));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// What a token says of itself, if it is a JWT. Nobody has checked its signature, and it is not believed where that would
/// widen anything.
fn jwt(token: &str) -> Option<Map<String, Value>> {
    let [_, claims, _] = token.split('.').collect::<Vec<_>>()[..] else { return None };
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// When a JWT ends, in seconds since the epoch.
fn jwt_end(token: &str) -> Option<i64> {
    jwt(token)?.get("exp")?.as_f64().map(|end| end as i64)
}

fn split(scopes: &str) -> Vec<String> {
    scopes.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a provider says, fit to be passed on: short, without control characters, and without a token that it may have repeated.
pub fn clean(text: &str) -> String {
    let printed: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Each JWT, and each part of one that says anything, begins like this.
    let words = printed.split_whitespace().map(|word| if word.contains("eyJ") { "(a token)" } else { word });
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_SAID).collect()
}

fn unfit(why: impl Into<String>) -> Failure {
    Failure::Unfit(why.into())
}

impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("form", &self.form).field("expires", &self.expires).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn answer(status: u16, body: &str) -> Response<Bytes> {
        Response::builder().status(status).body(Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    fn expected(reads: Reads) -> Expected<'static> {
        static ASKED: std::sync::LazyLock<[Vec<String>; 2]> =
            std::sync::LazyLock::new(|| [vec!["read".to_owned(), "write".to_owned()], vec!["profile".to_owned()]]);
        let [asked, default_scopes] = &*ASKED;
        Expected { reads, asked, default_scopes, max_lifetime: 3600, now: Timestamp::from_secs(NOW) }
    }

    fn jwt_of(claims: &Value) -> String {
        format!("eyJh.{}.x", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn with(change: &Value) -> Value {
        let mut body = json!({
            "access_token": "t0ken", "token_type": "bearer", "issued_token_type": ACCESS_TOKEN, "expires_in": 3600,
            "refresh_token": "never", "id_token": "never",
        });
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => _ = body.as_object_mut().unwrap().remove(name),
                value => body[name] = value.clone(),
            }
        }
        body
    }

    #[test]
    fn a_token_of_the_standard_is_taken_as_it_is() {
        for (what, change, lasts, scopes) in [
            ("no scope: what was asked for", json!({}), 3600, None),
            ("fewer scopes", json!({"scope": "read"}), 3600, Some(vec!["read"])),
            (
                "one that may be added",
                json!({"scope": "profile read  write"}),
                3600,
                Some(vec!["profile", "read", "write"]),
            ),
            ("seconds as text", json!({"expires_in": "60"}), 60, None),
            (
                "a JWT that says when it ends",
                json!({"expires_in": null, "access_token": jwt_of(&json!({"exp": NOW + 77}))}),
                77,
                None,
            ),
            ("a clock that is ahead", json!({"access_token": jwt_of(&json!({"exp": NOW + 3630}))}), 3600, None),
            ("a JWT as the type", json!({"issued_token_type": JWT}), 3600, None),
        ] {
            let given = expected(Reads::OAuth { exchanged: true }).read(&answer(200, &with(&change).to_string()));
            let given = given.unwrap_or_else(|why| panic!("{what}: {why:?}"));
            assert_eq!((given.expires.as_secs() - NOW, given.form), (lasts, GivenForm::Bearer), "{what}");
            let named = given.scopes.map(|scopes| scopes.iter().map(|scope| scope.clone().leak() as &str).collect());
            assert_eq!(named, scopes, "{what}");
        }
        let plain = with(&json!({"issued_token_type": null})).to_string();
        assert!(expected(Reads::OAuth { exchanged: false }).read(&answer(200, &plain)).is_ok());
    }

    #[test]
    fn what_was_not_asked_for_is_not_passed_on() {
        for (what, change, said) in [
            (
                "a wider scope",
                json!({"scope": "read admin"}),
                "scope `admin`, which was not asked for (`read write` was)",
            ),
            (
                "a wider scope within",
                json!({"access_token": jwt_of(&json!({"exp": NOW + 9, "scope": "read admin"}))}),
                "`admin`",
            ),
            ("scopes as a list", json!({"scope": ["read"]}), "is no text"),
            (
                "more in its `scp`",
                json!({"access_token": jwt_of(&json!({"exp": NOW + 9, "scp": "read admin"}))}),
                "`admin`, which was not asked for",
            ),
            (
                "more in a list",
                json!({"access_token": jwt_of(&json!({"scp": ["read", "admin"]}))}),
                "`admin`, which was not asked for",
            ),
            (
                "scopes that are none",
                json!({"access_token": jwt_of(&json!({"scp": 7}))}),
                "`scp` of the token is neither",
            ),
            ("too long", json!({"expires_in": 3601}), "lasts 3601 s, where `max_lifetime` lets it last 3600 s"),
            ("longer than it says", json!({"access_token": jwt_of(&json!({"exp": NOW + 7200}))}), "lasts 7200 s"),
            ("ended", json!({"expires_in": 0}), "has ended already"),
            ("before it began", json!({"expires_in": -9_223_372_036_854_775_808_i64}), "has ended already"),
            ("no end", json!({"expires_in": null}), "does not say how long"),
            ("no number", json!({"expires_in": "soon"}), "no number of seconds"),
            ("a fraction", json!({"expires_in": 1.5}), "no number of seconds"),
            ("bound to a key", json!({"token_type": "DPoP"}), "is `DPoP`, where `Bearer` is expected"),
            ("no type", json!({"token_type": null}), "where `Bearer` is expected"),
            (
                "a refresh token",
                json!({"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}),
                "refresh_token`",
            ),
            ("no issued type", json!({"issued_token_type": null}), "is missing"),
            ("no token", json!({"access_token": null}), "no token in its answer"),
            ("a line end in it", json!({"access_token": "a\r\nX: b"}), "no token in its answer"),
        ] {
            let failure = expected(Reads::OAuth { exchanged: true }).read(&answer(200, &with(&change).to_string()));
            match failure {
                Err(Failure::Unfit(why)) => assert!(why.contains(said), "{what}: {why}"),
                other => panic!("{what}: {other:?}"),
            }
        }
        for body in ["", "<html>", "[]", r#"{"access_token":"a","access_token":"b"}"#] {
            let failure = expected(Reads::OAuth { exchanged: false }).read(&answer(200, body));
            assert!(matches!(failure, Err(Failure::Unfit(_))), "{body}: {failure:?}");
        }
    }

    /// Entra ID.
    #[test]
    fn scopes_of_a_resource_are_those_that_were_asked_for_there() {
        for (asked, scp, good) in [
            ("api://app/Deploy", "Deploy", true),
            ("api://app/Deploy", "Deploy Admin", false),
            ("https://vault.azure.net/.default", "user_impersonation", true),
            ("Deploy", "Deploy", true),
            ("xDeploy", "Deploy", false),
        ] {
            let expected = Expected { asked: &[asked.to_owned()], ..expected(Reads::OAuth { exchanged: true }) };
            let body = with(&json!({"access_token": jwt_of(&json!({"scp": scp}))})).to_string();
            assert_eq!(expected.read(&answer(200, &body)).is_ok(), good, "{asked}: {scp}");
        }
    }

    #[test]
    fn what_a_provider_says_is_told_short_and_without_tokens() {
        let read = |status, body: &str| expected(Reads::Aws).read(&answer(status, body)).unwrap_err();
        let refused = |error: &str, said: Option<&str>| Failure::Refused {
            error: error.to_owned(),
            said: said.map(str::to_owned),
        };
        for (status, body, failure) in [
            (
                400,
                r#"{"error":"invalid_grant","error_description":"no\nmatch\u0007"}"#,
                refused("invalid_grant", Some("no match")),
            ),
            (401, r#"{"error":"invalid_client"}"#, refused("invalid_client", None)),
            (
                400,
                r#"{"error":"invalid_grant","error_description":"got eyJhbGci.eyJzdWIi.c2ln"}"#,
                refused("invalid_grant", Some("got (a token)")),
            ),
            (
                403,
                r#"{"Error":{"Code":"AccessDenied","Message":"Not authorized"},"RequestId":"1"}"#,
                refused("AccessDenied", Some("Not authorized")),
            ),
            (
                403,
                r#"{"error":{"code":403,"message":"denied","status":"PERMISSION_DENIED"}}"#,
                refused("PERMISSION_DENIED", Some("denied")),
            ),
            (404, "<html>", refused("404", None)),
            (500, "oops", Failure::Away("it answers 500".to_owned())),
            (429, r#"{"error":"slow_down"}"#, Failure::Away("it answers 429 (slow_down)".to_owned())),
            (
                400,
                r#"{"error":"temporarily_unavailable"}"#,
                Failure::Away("it answers 400 (temporarily_unavailable)".to_owned()),
            ),
        ] {
            assert_eq!(read(status, body), failure, "{body}");
        }
        assert!(matches!(read(302, ""), Failure::Unfit(why) if why.contains("redirect (302)")));
        assert_eq!(clean(&"é ".repeat(300)).chars().count(), 200);
    }

    #[test]
    fn credentials_of_aws_become_what_credential_process_reads() {
        let body = |expiration: &Value| {
            json!({"AssumeRoleWithWebIdentityResponse": {"AssumeRoleWithWebIdentityResult": {"Credentials": {
                "AccessKeyId": "ASIA", "SecretAccessKey": "s/+=", "SessionToken": "t==", "Expiration": expiration,
            }, "Audience": "sts.amazonaws.com"}, "ResponseMetadata": {"RequestId": "1"}}})
            .to_string()
        };
        for expiration in [json!(NOW + 900), json!(1_700_000_900.0), json!("2023-11-14T22:28:20Z")] {
            let given = expected(Reads::Aws).read(&answer(200, &body(&expiration))).unwrap();
            assert_eq!((given.expires.as_secs(), given.form), (NOW + 900, GivenForm::AwsCredentials));
            let said: Value = serde_json::from_str(&given.token).unwrap();
            let expected = json!({
                "Version": 1, "AccessKeyId": "ASIA", "SecretAccessKey": "s/+=", "SessionToken": "t==",
                "Expiration": "2023-11-14T22:28:20.000Z",
            });
            assert_eq!(said, expected);
        }
        for (expiration, said) in
            [(json!(NOW + 3700), "lasts 3700 s"), (json!(null), "does not say when"), (json!(NOW), "ended")]
        {
            let failure = expected(Reads::Aws).read(&answer(200, &body(&expiration)));
            assert!(matches!(&failure, Err(Failure::Unfit(why)) if why.contains(said)), "{failure:?}");
        }
        let empty = expected(Reads::Aws).read(&answer(200, "{}"));
        assert!(matches!(empty, Err(Failure::Unfit(why)) if why.contains("no `Credentials`")));
    }

    #[test]
    fn a_service_account_of_google_has_an_end() {
        let read = |body: &str| expected(Reads::OAuth { exchanged: true }).service_account(&answer(200, body));
        let given = read(r#"{"accessToken":"ya29.x","expireTime":"2023-11-14T23:13:20Z"}"#).unwrap();
        assert_eq!((given.token.as_str(), given.expires.as_secs()), ("ya29.x", NOW + 3600));
        for body in [
            r#"{"accessToken":"ya29.x"}"#,
            r#"{"accessToken":"ya29.x","expireTime":"2023-11-15T10:13:20Z"}"#,
            r#"{"expireTime":"2023-11-14T23:13:20Z"}"#,
        ] {
            assert!(matches!(read(body), Err(Failure::Unfit(_))), "{body}");
        }
    }
}
