//! A client assertion that another issuer signed, such as a token that the kubelet projects into a pod. It
//! authenticates a client without a stored secret (RFC 7521 section 4.2, RFC 7523 sections 2.2 and 3). The file is
//! replaced from outside before the assertion expires.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::jwt::MAX_TOKEN;
use crate::{clock::Timestamp, config::resolver::Secret};

/// An assertion from a file. Two are equal if their texts are.
#[derive(Clone, PartialEq)]
pub(super) struct FederatedAssertion {
    text: Secret,
    expires: Timestamp,
}

/// Why a text cannot be used as an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    NotAToken,
    Endless,
    OfTheApiServer,
}

impl Unfit {
    pub fn why(self) -> &'static str {
        match self {
            Self::NotAToken => "is not a signed JWT",
            Self::Endless => "holds a JWT that never expires (`exp`)",
            Self::OfTheApiServer => "holds a token for the Kubernetes API server, which a recipient could use there",
        }
    }

    pub fn help(self) -> &'static str {
        match self {
            Self::NotAToken => "an assertion is a compact JWT that another issuer signed for this client (RFC 7523)",
            Self::Endless | Self::OfTheApiServer => {
                "project a `serviceAccountToken` with the audience that the provider asks for (at Entra ID \
                 `api://AzureADTokenExchange`)"
            }
        }
    }
}

impl FederatedAssertion {
    /// Checks the expiry and audience of an assertion. The provider verifies it.
    pub fn new(text: Secret) -> Result<Self, Unfit> {
        let claims = text.expose_str().and_then(claims).ok_or(Unfit::NotAToken)?;
        let expires = claims.get("exp").and_then(Value::as_f64).ok_or(Unfit::Endless)?;
        if audiences(&claims).any(|audience| is_api_server(audience, &claims)) {
            return Err(Unfit::OfTheApiServer);
        }
        Ok(Self { text, expires: Timestamp::from_secs(expires as i64) })
    }

    /// The assertion to send at `now`, or why none can be sent.
    pub fn present(&self, now: Timestamp) -> Result<&str, String> {
        if self.expires <= now {
            let ago = now.since(self.expires).as_secs();
            return Err(format!(
                "the assertion in the file of `client.assertion` expired {ago} s ago and was not replaced; \
                 check what writes that file, and the clock of this machine"
            ));
        }
        Ok(self.text.expose_str().unwrap_or_default())
    }
}

fn claims(text: &str) -> Option<Map<String, Value>> {
    let mut parts = text.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    if text.len() > MAX_TOKEN || signature.is_empty() {
        return None;
    }
    let object = |part: &str| serde_json::from_slice::<Map<_, _>>(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    URL_SAFE_NO_PAD.decode(signature).ok()?;
    object(header)?;
    object(payload)
}

fn audiences(claims: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let (one, several) = match claims.get("aud") {
        Some(Value::String(one)) => (Some(one.as_str()), None),
        Some(Value::Array(several)) => (None, Some(several)),
        _ => (None, None),
    };
    one.into_iter().chain(several.into_iter().flatten().filter_map(Value::as_str))
}

/// Whether the audience is the API server, under its usual name or as its own issuer, as in a pod's own token.
fn is_api_server(audience: &str, claims: &Map<String, Value>) -> bool {
    let of_kubernetes = claims.contains_key("kubernetes.io");
    audience.starts_with("https://kubernetes.default")
        || (of_kubernetes && claims.get("iss").and_then(Value::as_str) == Some(audience))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn token(claims: &Value) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", encode(&json!({"alg": "RS256"})), encode(claims))
    }

    fn read(text: &str) -> Result<FederatedAssertion, Unfit> {
        FederatedAssertion::new(Secret::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn it_is_presented_until_it_ends() {
        let text = token(&json!({"aud": ["api://AzureADTokenExchange"], "exp": NOW.as_secs() + 1}));
        let assertion = read(&text).unwrap();
        assert_eq!(assertion.present(NOW), Ok(&*text));
        let refused = assertion.present(Timestamp::from_secs(NOW.as_secs() + 13)).unwrap_err();
        assert!(refused.contains("expired 12 s ago") && !refused.contains(&text), "{refused}");
    }

    #[test]
    fn unsafe_and_unworkable_settings_are_reported() {
        let end = NOW.as_secs() + 600;
        let of_pod = |audience: &Value| json!({"iss": "https://cluster.example", "aud": audience, "exp": end, "kubernetes.io": {"namespace": "doorward"}});
        let payload = URL_SAFE_NO_PAD.encode(json!({"exp": end}).to_string());
        for (row, text, expected) in [
            ("projected", token(&of_pod(&json!(["api://AzureADTokenExchange"]))), None),
            ("of somebody who is its own audience", token(&json!({"iss": "a", "aud": "a", "exp": end})), None),
            ("no audience", token(&json!({"exp": end})), None),
            ("without an end", token(&json!({"aud": "a"})), Some(Unfit::Endless)),
            ("an end as text", token(&json!({"aud": "a", "exp": "never"})), Some(Unfit::Endless)),
            ("the pod's own", token(&of_pod(&json!(["https://kubernetes.default.svc"]))), Some(Unfit::OfTheApiServer)),
            (
                "the pod's own beside another",
                token(&of_pod(&json!(["a", "https://kubernetes.default.svc.cluster.local"]))),
                Some(Unfit::OfTheApiServer),
            ),
            (
                "the pod's own, as text",
                token(&of_pod(&json!("https://kubernetes.default.svc"))),
                Some(Unfit::OfTheApiServer),
            ),
            (
                "the pod's own by its issuer",
                token(&of_pod(&json!(["https://cluster.example"]))),
                Some(Unfit::OfTheApiServer),
            ),
            ("a secret", "s3cret".to_owned(), Some(Unfit::NotAToken)),
            ("unsigned", "e30.e30.".to_owned(), Some(Unfit::NotAToken)),
            ("encrypted", "e30.e30.e30.e30.e30".to_owned(), Some(Unfit::NotAToken)),
            ("no object", "e30.W10.c2ln".to_owned(), Some(Unfit::NotAToken)),
            ("signed by no base64url", format!("e30.{payload}.%"), Some(Unfit::NotAToken)),
            ("with a header", format!("e30.{payload}.c2ln"), None),
            ("with a header that is no object", format!("W10.{payload}.c2ln"), Some(Unfit::NotAToken)),
            ("with a header that is no base64url", format!("%.{payload}.c2ln"), Some(Unfit::NotAToken)),
            ("long", token(&json!({"exp": end, "pad": "x".repeat(MAX_TOKEN / 2)})), None),
            ("too long", token(&json!({"exp": end, "pad": "x".repeat(MAX_TOKEN)})), Some(Unfit::NotAToken)),
        ] {
            assert_eq!(read(&text).err(), expected, "{row}");
        }
    }
}
