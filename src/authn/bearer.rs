//! Finds the bearer token of a request (RFC 6750 section 2), also in the form that browsers use for WebSockets to
//! Kubernetes. [`Issuers::authenticate`](crate::issuers::Issuers::authenticate) verifies it.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use url::form_urlencoded;

use super::Presented;
use crate::error::{Reason, Rejection};

/// The prefix of the subprotocol that carries a token (`k8s.io/apiserver/pkg/authentication/request/websocket`).
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// A token as it was presented.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken<'h> {
    pub token: Cow<'h, str>,
    /// For a token among the WebSocket subprotocols: the others, which replace `Sec-WebSocket-Protocol`, so that the
    /// upstream never sees the token.
    pub remaining_protocols: Option<HeaderValue>,
}

impl std::fmt::Debug for BearerToken<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BearerToken").field("remaining_protocols", &self.remaining_protocols).finish_non_exhaustive()
    }
}

/// Looks for a bearer token in `Authorization` and, on a WebSocket `upgrade`, among the subprotocols. It must be in one
/// place, once. A token in the query is refused, as every log on the way would record it.
pub fn presented<'h>(headers: &'h HeaderMap, query: Option<&str>, upgrade: bool) -> Presented<BearerToken<'h>> {
    if query.is_some_and(|query| form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "access_token")) {
        return Presented::Invalid(
            Rejection::new(Reason::BadRequest, "a token in the query of a URL is not accepted")
                .fix("send it in the header `Authorization: Bearer …`, and treat the token as disclosed")
                .misuses_bearer(),
        );
    }
    let in_header = in_authorization(headers);
    if !upgrade {
        return in_header;
    }
    match (in_header, among_protocols(headers)) {
        (Presented::Absent, protocols) => protocols,
        (header, Presented::Absent) => header,
        _ => Presented::Invalid(
            Rejection::new(
                Reason::CredentialAmbiguous,
                "the request carries a token in `Authorization` and another among its WebSocket subprotocols",
            )
            .misuses_bearer(),
        ),
    }
}

fn in_authorization(headers: &HeaderMap) -> Presented<BearerToken<'_>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Presented::Absent,
        (Some(value), None) => value.as_bytes(),
        (Some(_), Some(_)) => {
            return Presented::Invalid(
                Rejection::new(Reason::CredentialAmbiguous, "the request has more than one `Authorization` header")
                    .misuses_bearer(),
            );
        }
    };
    let (scheme, token) = match value.iter().position(|byte| *byte == b' ') {
        Some(blank) => value.split_at(blank),
        None => (value, &[][..]),
    };
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Presented::Invalid(
            Rejection::new(
                Reason::CredentialMalformed,
                "the `Authorization` header uses a scheme that is not accepted here",
            )
            .fix("send `Authorization: Bearer TOKEN`"),
        );
    }
    match token.strip_prefix(b" ").and_then(b64token) {
        Some(token) => Presented::Valid(BearerToken { token: Cow::Borrowed(token), remaining_protocols: None }),
        None => Presented::Invalid(
            Rejection::new(Reason::CredentialMalformed, "the `Authorization` header has no well-formed bearer token")
                .fix("send `Authorization: Bearer TOKEN`, with one space and exactly one token"),
        ),
    }
}

/// The token among the WebSocket subprotocols, by the rules of the API server: unpadded base64url of UTF-8, once, and
/// together with at least one other protocol.
fn among_protocols(headers: &HeaderMap) -> Presented<BearerToken<'_>> {
    let refuse = |detail: &'static str| Presented::Invalid(Rejection::new(Reason::CredentialMalformed, detail));
    let name = HeaderName::from_static("sec-websocket-protocol");
    let mut token = None;
    let mut others = Vec::new();
    for value in headers.get_all(name) {
        for protocol in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            match protocol.strip_prefix(TOKEN_PROTOCOL.as_bytes()) {
                None => others.push(protocol),
                Some(encoded) if token.is_none() => token = Some(encoded),
                Some(_) => {
                    return Presented::Invalid(
                        Rejection::new(
                            Reason::CredentialAmbiguous,
                            "the WebSocket subprotocols carry more than one token",
                        )
                        .misuses_bearer(),
                    );
                }
            }
        }
    }
    let Some(encoded) = token else { return Presented::Absent };
    others.retain(|protocol| !protocol.is_empty());
    if others.is_empty() {
        return refuse(
            "the WebSocket subprotocols carry a token but no other protocol (missing additional subprotocol)",
        );
    }
    let decoded = URL_SAFE_NO_PAD.decode(encoded).ok();
    let token = decoded.as_deref().and_then(b64token);
    match (token, HeaderValue::from_bytes(&others.join(&b", "[..]))) {
        (Some(token), Ok(others)) => {
            Presented::Valid(BearerToken { token: Cow::Owned(token.to_owned()), remaining_protocols: Some(others) })
        }
        _ => refuse("the token among the WebSocket subprotocols is not a base64url-encoded bearer token"),
    }
}

/// The characters of a token (RFC 6750 section 2.1): at least one, padding only at the end.
fn b64token(bytes: &[u8]) -> Option<&str> {
    let padding = bytes.iter().rev().take_while(|byte| **byte == b'=').count();
    let (body, _) = bytes.split_at(bytes.len() - padding);
    // Branchless and with few comparisons, so that the compiler can vectorize it: tokens are long.
    let fits = |byte: u8| {
        matches!(byte, b'-'..=b'9') | (byte | 0x20).is_ascii_lowercase() | matches!(byte, b'+' | b'_' | b'~')
    };
    if body.is_empty() || !body.iter().fold(true, |all, byte| all & fits(*byte)) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())).collect()
    }

    fn outcome(headers: &HeaderMap, query: Option<&str>, upgrade: bool) -> Result<Option<String>, u16> {
        match presented(headers, query, upgrade) {
            Presented::Absent => Ok(None),
            Presented::Valid(found) => Ok(Some(found.token.into_owned())),
            Presented::Invalid(rejection) => {
                let status = rejection.status().as_u16();
                assert_eq!(rejection.is_for_misuse_of_bearer(), status == 400, "{rejection}");
                Err(status)
            }
        }
    }

    #[test]
    fn the_authorization_header() {
        let token = || Ok(Some("a.b-c_d~e+f/g==".to_owned()));
        for (row, values, expected) in [
            ("twin", &[&b"Bearer a.b-c_d~e+f/g=="[..]][..], token()),
            ("peers:D12 lower case", &[b"bearer a.b-c_d~e+f/g=="], token()),
            ("upper case", &[b"BEARER a.b-c_d~e+f/g=="], token()),
            ("none", &[], Ok(None)),
            ("kubernetes:E2 trailing blank", &[b"Bearer "], Err(401)),
            ("kubernetes:E2 scheme alone", &[b"Bearer"], Err(401)),
            ("kubernetes:E2 two blanks", &[b"Bearer  x"], Err(401)),
            ("tab", &[b"Bearer\tx"], Err(401)),
            ("empty", &[b""], Err(401)),
            ("two tokens", &[b"Bearer x y"], Err(401)),
            ("list", &[b"Bearer x, Bearer y"], Err(401)),
            ("padding alone", &[b"Bearer =="], Err(401)),
            ("padding within", &[b"Bearer a=b"], Err(401)),
            ("not ASCII", &[b"Bearer \xc3\xa9"], Err(401)),
            ("oauth:13 JSON serialisation", &[br#"Bearer {"payload":"e30"}"#], Err(401)),
            ("oauth-section:3 Basic", &[b"Basic YTpi"], Err(401)),
            ("oauth-section:9 DPoP", &[b"DPoP x"], Err(401)),
            ("two headers", &[b"Bearer x", b"Bearer x"], Err(400)),
        ] {
            let pairs: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            assert_eq!(outcome(&headers(&pairs), None, false), expected, "{row}");
        }
    }

    #[test]
    fn the_characters_of_a_token_are_those_of_the_standard() {
        for byte in 0..=u8::MAX {
            let fits = byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
            assert_eq!(b64token(&[b'a', byte]).is_some(), fits, "{byte:#x}");
        }
        for refused in ["", "=", "a=a", "==a"] {
            assert_eq!(b64token(refused.as_bytes()), None, "{refused}");
        }
    }

    #[test]
    fn a_token_in_the_query_is_refused() {
        let good = headers(&[("authorization", b"Bearer x")]);
        for (query, expected) in [
            ("watch=1&token=2", Ok(Some("x".to_owned()))),
            ("Access_Token=1", Ok(Some("x".to_owned()))),
            ("access_token=x", Err(400)),
            ("a=1&access%5Ftoken=x", Err(400)),
            ("access_token", Err(400)),
        ] {
            assert_eq!(outcome(&good, Some(query), false), expected, "{query}");
        }
    }

    #[test]
    fn a_token_among_websocket_protocols() {
        // kubernetes:W5: this token can only be written in the URL-safe alphabet.
        let token = "x~~~y~~~z".to_owned();
        let encoded = URL_SAFE_NO_PAD.encode(&token);
        assert!(encoded.contains('-'));
        let protocol = |encoded: &str| format!("{TOKEN_PROTOCOL}{encoded}");
        let good = protocol(&encoded);
        let two = format!("{good}, {good}, v5.channel.k8s.io");
        let cases = [
            ("kubernetes:W1 W5", format!("{good}, v5.channel.k8s.io"), Ok(Some(token.clone()))),
            ("kubernetes:W1 last", format!("v5.channel.k8s.io,{good}"), Ok(Some(token))),
            ("no token", "v5.channel.k8s.io".to_owned(), Ok(None)),
            ("kubernetes:W2", good.clone(), Err(401)),
            ("kubernetes:W2 blank", format!("{good}, "), Err(401)),
            ("kubernetes:W3 two", two, Err(400)),
            ("kubernetes:W3 base64", format!("{}, v5", protocol("a*b")), Err(401)),
            ("kubernetes:W3 padded", format!("{}, v5", protocol("YQ==")), Err(401)),
            ("kubernetes:W3 not UTF-8", format!("{}, v5", protocol(&URL_SAFE_NO_PAD.encode(b"\xff\xfe"))), Err(401)),
            ("kubernetes:W3 empty", format!("{}, v5", protocol("")), Err(401)),
        ];
        for (row, value, expected) in cases {
            let headers = headers(&[("sec-websocket-protocol", value.as_bytes())]);
            assert_eq!(outcome(&headers, None, true), expected, "{row}");
            assert_eq!(outcome(&headers, None, false), Ok(None), "kubernetes:W4 {row}");
        }
    }

    #[test]
    fn the_token_subprotocol_is_never_forwarded() {
        let first = format!("v5.channel.k8s.io, {TOKEN_PROTOCOL}{}", URL_SAFE_NO_PAD.encode("abc"));
        let headers =
            headers(&[("sec-websocket-protocol", first.as_bytes()), ("sec-websocket-protocol", b"v4.channel.k8s.io")]);
        let Presented::Valid(found) = presented(&headers, None, true) else { panic!("refused") };
        assert_eq!(found.remaining_protocols.unwrap(), "v5.channel.k8s.io, v4.channel.k8s.io");
    }

    #[test]
    fn a_token_in_two_places_is_ambiguous() {
        let protocols = format!("{TOKEN_PROTOCOL}YWJj, v5.channel.k8s.io");
        let headers = headers(&[("authorization", b"Bearer x"), ("sec-websocket-protocol", protocols.as_bytes())]);
        assert_eq!(outcome(&headers, None, true), Err(400));
        assert_eq!(outcome(&headers, None, false), Ok(Some("x".to_owned())));
    }
}
