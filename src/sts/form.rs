//! Requests to the token endpoint (RFC 8693 section 2.1).

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, header};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::refusal::Refusal;
use crate::request::headers::is_form;

/// Maximum bytes of a form: a token, a few names.
pub const MAX_BODY: usize = 64 << 10;

/// More parameters than any client sends.
const MAX_PARAMETERS: usize = 32;

/// More scopes than anybody needs at once.
const MAX_SCOPES: usize = 32;

/// Maximum bytes of an audience.
const MAX_AUDIENCE: usize = 512;

/// Maximum bytes of a scope. The caller chooses the length of a scope that a rule gives by a pattern, and it is stored
/// with the token.
pub const MAX_SCOPE: usize = 512;

pub const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";

/// The types of token that are exchanged. The entry of the issuer in the configuration says what a token really is.
const TAKEN: [&str; 3] = [JWT, ACCESS_TOKEN, ID_TOKEN];

/// A request to exchange a token.
pub struct ExchangeRequest {
    pub subject_token: Zeroizing<String>,
    /// The token of the actor for the subject.
    pub actor_token: Option<Zeroizing<String>>,
    pub audience: String,
    /// `None`: everything that rules give.
    pub scopes: Option<Vec<String>>,
}

/// The parameters of a form, each with a value and at most once.
pub struct Form(Vec<(String, Zeroizing<String>)>);

impl Form {
    /// Parameters without a value count as omitted (RFC 6749 section 3.2).
    pub fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        if !is_form(headers) {
            return Err(Refusal::malformed("send the parameters as a form (application/x-www-form-urlencoded)"));
        }
        if std::str::from_utf8(body).is_err() {
            return Err(Refusal::malformed("the form is not UTF-8"));
        }
        let mut found: Vec<(String, Zeroizing<String>)> = Vec::new();
        for (name, value) in form_urlencoded::parse(body).filter(|(_, value)| !value.is_empty()) {
            if found.iter().any(|(known, _)| *known == name) {
                let many = ["audience", "resource"].contains(&&*name);
                return Err(match many {
                    true => {
                        Refusal::bad_target(format!("`{name}` is there more than once; a token is for one audience"))
                    }
                    false => Refusal::malformed(format!("a parameter is there more than once: {}", short(&name))),
                });
            }
            if found.len() == MAX_PARAMETERS {
                return Err(Refusal::malformed(format!("there are more than {MAX_PARAMETERS} parameters")));
            }
            found.push((name.into_owned(), Zeroizing::new(value.into_owned())));
        }
        Ok(Self(found))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).ok_or_else(|| missing(name))
    }

    /// Moves the value out of the form.
    fn take(&mut self, name: &str) -> Option<Zeroizing<String>> {
        let position = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(position).1)
    }
}

impl ExchangeRequest {
    pub fn read(mut form: Form) -> Result<Self, Refusal> {
        let grant = form.need("grant_type")?;
        if grant != GRANT {
            return Err(Refusal::grant_type(format!("only tokens are exchanged here; send grant_type={GRANT}")));
        }
        let subject_token = form.take("subject_token").ok_or_else(|| missing("subject_token"))?;
        let kind = form.need("subject_token_type")?;
        if !TAKEN.contains(&kind) {
            return Err(Refusal::malformed(format!(
                "tokens of this `subject_token_type` are not exchanged here; send {JWT}"
            )));
        }
        let actor_token = match (form.take("actor_token"), form.get("actor_token_type")) {
            (None, None) => None,
            (Some(token), Some(kind)) if TAKEN.contains(&kind) => Some(token),
            (Some(_), Some(_)) => {
                return Err(Refusal::malformed(format!(
                    "tokens of this `actor_token_type` are not accepted here; send {JWT}"
                )));
            }
            _ => return Err(Refusal::malformed("`actor_token` and `actor_token_type` go together; one is missing")),
        };
        if form.get("requested_token_type").is_some_and(|wanted| ![ACCESS_TOKEN, JWT].contains(&wanted)) {
            return Err(Refusal::malformed(format!(
                "only access tokens are issued; send requested_token_type={ACCESS_TOKEN}"
            )));
        }
        let audience = match (form.get("audience"), form.get("resource")) {
            (_, Some(resource)) if !is_resource(resource) => {
                return Err(Refusal::bad_target("`resource` is no absolute URI without a fragment"));
            }
            (Some(audience), Some(resource)) if audience != resource => {
                return Err(Refusal::bad_target(
                    "send `audience` or `resource`, not both unless they are equal; a token is for one audience",
                ));
            }
            (Some(audience), _) | (None, Some(audience)) => audience,
            (None, None) => return Err(Refusal::malformed("`audience` is missing: name the audience of the token")),
        };
        check_audience(audience)?;
        let scopes = form.get("scope").map(scopes).transpose()?;
        Ok(Self { subject_token, actor_token, audience: audience.to_owned(), scopes })
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::malformed(format!("`{name}` is missing"))
}

/// Whether a text can be the audience of a token here.
pub fn is_audience(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_AUDIENCE && !text.chars().any(char::is_control)
}

/// Refuses a text that no request can name as an audience.
pub fn check_audience(audience: &str) -> Result<(), Refusal> {
    if is_audience(audience) {
        return Ok(());
    }
    Err(Refusal::bad_target(format!("the audience is longer than {MAX_AUDIENCE} bytes, or has control characters")))
}

/// Whether a text is a `scope-token` (RFC 6749 section 3.3) that can be requested here.
pub fn is_scope(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_SCOPE
        && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

/// Refuses a text that no request can name as a scope.
pub fn check_scope(scope: &str) -> Result<(), Refusal> {
    if !is_scope(scope) {
        return Err(Refusal::bad_scope(format!(
            "a scope is longer than {MAX_SCOPE} bytes, or has characters that no scope has"
        )));
    }
    // Only a pattern gives it. A deny of a scope that the pattern stands for does not match it, and the audience may
    // take it for all of them.
    if scope.contains('*') {
        return Err(Refusal::bad_scope(format!(
            "`{}` has a `*`, which only patterns in rules have; name each scope that you want",
            short(scope)
        )));
    }
    Ok(())
}

/// The content of an HTTP Basic credential (RFC 7617): a name, a colon and a password.
pub fn basic(headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
    let plain = BASE64_STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    String::from_utf8(plain).ok().map(Zeroizing::new)
}

/// RFC 8707 section 2.
fn is_resource(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| url.fragment().is_none())
}

/// Scopes, without duplicates. Their order has no meaning (RFC 6749 section 3.3), so they are sorted: tokens of
/// providers are cached per set.
fn scopes(text: &str) -> Result<Vec<String>, Refusal> {
    let mut scopes: BTreeSet<&str> = BTreeSet::new();
    for scope in text.split(' ').filter(|scope| !scope.is_empty()) {
        check_scope(scope)?;
        scopes.insert(scope);
    }
    if scopes.is_empty() {
        return Err(Refusal::bad_scope("`scope` is blank; leave it out for all that rules give by name"));
    }
    if scopes.len() > MAX_SCOPES {
        return Err(Refusal::bad_scope(format!("more than {MAX_SCOPES} scopes are asked for at once")));
    }
    Ok(scopes.into_iter().map(str::to_owned).collect())
}

/// The beginning of a text that somebody sent, to name it in a refusal.
pub fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::error::Reason;

    fn read(body: &str) -> Result<ExchangeRequest, String> {
        read_bytes(body.as_bytes())
    }

    fn read_bytes(body: &[u8]) -> Result<ExchangeRequest, String> {
        let media = HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, media)]);
        let answer = |refusal: Refusal| {
            assert_eq!(refusal.reason(), Reason::BadRequest, "no rule was asked: {}", refusal.description());
            String::from_utf8(refusal.answer().into_body().to_vec()).unwrap()
        };
        Form::parse(&headers, body).and_then(ExchangeRequest::read).map_err(answer)
    }

    const GOOD: &str = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=t\
        &subject_token_type=urn:ietf:params:oauth:token-type:jwt&audience=https://api.example";

    #[test]
    fn the_parameters_of_a_request_are_read() {
        let asked = read(&format!("{GOOD}&scope=b+a+b&requested_token_type=")).unwrap();
        assert_eq!((asked.subject_token.as_str(), asked.audience.as_str()), ("t", "https://api.example"));
        assert_eq!(asked.scopes.unwrap(), ["a", "b"], "each once, in one order");
        assert!(read(GOOD).unwrap().scopes.is_none());
        let delegated = read(&format!("{GOOD}&scope=a&actor_token=b&actor_token_type={JWT}")).unwrap();
        assert_eq!((delegated.subject_token.as_str(), delegated.audience.as_str()), ("t", "https://api.example"));
        assert_eq!((delegated.actor_token.unwrap().as_str(), delegated.scopes.unwrap()), ("b", vec!["a".to_owned()]));
        assert_eq!(read(&GOOD.replace("audience", "resource")).unwrap().audience, "https://api.example");
        // RFC 8693 section 2.1.1 allows both.
        assert_eq!(read(&format!("{GOOD}&resource=https://api.example")).unwrap().audience, "https://api.example");
    }

    /// Each with a twin that is just within the limit.
    #[test]
    fn a_form_has_its_limits() {
        let with = |more: String| format!("{GOOD}&{more}").into_bytes();
        let for_audience = |audience: &str| GOOD.replace("https://api.example", audience).into_bytes();
        let parameters = |count: usize| (0..count).map(|number| format!("p{number}=1")).collect::<Vec<_>>().join("&");
        let scopes = |count: usize| (0..count).map(|number| format!("s{number}")).collect::<Vec<_>>().join("+");
        let actor =
            |kind: &str| with(format!("actor_token=x&actor_token_type=urn:ietf:params:oauth:token-type:{kind}"));
        let text = |end: &[u8]| [GOOD.as_bytes(), b"&x=", end].concat();
        let own = GOOD.split('&').count();
        for (within, beyond, error, said) in [
            (text("\u{e9}".as_bytes()), text(b"\xe9"), "invalid_request", "not UTF-8"),
            (with(parameters(32 - own)), with(parameters(33 - own)), "invalid_request", "more than 32 parameters"),
            (
                actor("jwt"),
                actor("saml2"),
                "invalid_request",
                "tokens of this `actor_token_type` are not accepted here",
            ),
            (for_audience(&"a".repeat(512)), for_audience(&"a".repeat(513)), "invalid_target", "longer than 512 bytes"),
            (for_audience("a%20b"), for_audience("a%0Ab"), "invalid_target", "control characters"),
            (
                with(format!("scope={}", "a".repeat(512))),
                with(format!("scope={}", "a".repeat(513))),
                "invalid_scope",
                "a scope is longer than 512 bytes",
            ),
            (
                with(format!("scope={}", scopes(32))),
                with(format!("scope={}", scopes(33))),
                "invalid_scope",
                "more than 32 scopes",
            ),
        ] {
            assert!(read_bytes(&within).is_ok(), "{said}: {:?}", read_bytes(&within).err());
            let answer = read_bytes(&beyond).err().unwrap_or_else(|| panic!("{said}"));
            assert!(answer.contains(&format!(r#""error":"{error}""#)) && answer.contains(said), "{said}: {answer}");
        }
    }

    #[test]
    fn errors_have_the_codes_of_the_standard() {
        for (what, body, error, said) in [
            ("another grant", GOOD.replace("token-exchange", "saml2"), "unsupported_grant_type", "token-exchange"),
            ("no grant", GOOD.replace("grant_type", "grant"), "invalid_request", "`grant_type`"),
            (
                "no token",
                GOOD.replace("subject_token=t", "subject_token="),
                "invalid_request",
                "`subject_token` is missing",
            ),
            ("SAML", GOOD.replace("type:jwt", "type:saml2"), "invalid_request", "subject_token_type"),
            ("no audience", GOOD.replace("audience", "aud"), "invalid_request", "`audience` is missing"),
            ("two audiences", format!("{GOOD}&audience=b"), "invalid_target", "one audience"),
            ("audience and resource", format!("{GOOD}&resource=https://b.example"), "invalid_target", "not both"),
            (
                "resource with fragment",
                GOOD.replace("audience=https://api.example", "resource=https://a.example/%23b"),
                "invalid_target",
                "fragment",
            ),
            ("twice", format!("{GOOD}&scope=a&scope=b"), "invalid_request", "scope"),
            ("half an actor", format!("{GOOD}&actor_token=x"), "invalid_request", "go together"),
            (
                "a refresh token",
                format!("{GOOD}&requested_token_type=urn:ietf:params:oauth:token-type:refresh_token"),
                "invalid_request",
                "access_token",
            ),
            ("a scope with a quote", format!("{GOOD}&scope=a%22"), "invalid_scope", "characters"),
            ("a scope of blanks", format!("{GOOD}&scope=%20+"), "invalid_scope", "`scope` is blank"),
            // A rule's pattern gave it, past a deny of what it stands for.
            ("a pattern", format!("{GOOD}&scope=read:a+read:*"), "invalid_scope", "`read:*` has a `*`"),
            ("a pattern of all", format!("{GOOD}&scope=*"), "invalid_scope", "`*` has a `*`"),
            ("a pattern in the middle", format!("{GOOD}&scope=a:*:read"), "invalid_scope", "name each scope"),
        ] {
            let answer = read(&body).err().unwrap_or_else(|| panic!("{what}"));
            assert!(answer.contains(&format!(r#""error":"{error}""#)) && answer.contains(said), "{what}: {answer}");
        }
        let json = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        assert!(Form::parse(&json, b"{}").is_err());
        assert!(Form::parse(&HeaderMap::new(), GOOD.as_bytes()).is_err());
    }
}
