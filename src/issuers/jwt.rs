//! The strict parser of compact JWS (RFC 7515, RFC 8725), shared by access tokens, ID tokens and logout tokens.
//!
//! It returns an [`Unverified`] token, whose header has nothing that could change the meaning of the signature. None of
//! its content may be trusted before [`Unverified::check_signature`].

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{
    keys::PublicKey,
    strict_json,
    token_error::{Quoted, TokenError},
};
use crate::config::raw::Algorithm;

/// The maximum bytes of a token. Longer ones are refused unread; header limits exclude much longer ones anyway.
pub const MAX_TOKEN: usize = 16 << 10;

/// The maximum bytes of a `kid`, which is only compared.
const MAX_KID: usize = 256;

/// Header members that are refused. `crit` and extensions that it announces (`b64`, RFC 7797), compression and nesting
/// change what was signed; `jwk` and `x5c` contain a key of the sender (CVE-2018-0114). `jku` and `x5u` only refer to
/// keys and are ignored: keys are only taken from the issuer's set.
const REFUSED_MEMBERS: [&str; 7] = ["crit", "b64", "zip", "cty", "jwk", "x5c", "enc"];

/// The members of the header that are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    pub typ: Option<String>,
}

/// A parsed token whose signature has not been checked.
#[derive(Debug)]
pub struct Unverified<'t> {
    pub header: Header,
    pub claims: Map<String, Value>,
    signed: &'t [u8],
    signature: Vec<u8>,
}

impl<'t> Unverified<'t> {
    /// Parses a token of at most [`MAX_TOKEN`] bytes strictly: three parts, base64url without padding in canonical
    /// form, JSON objects without repeated members.
    pub fn parse(token: &'t str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong { came: token.len(), limit: MAX_TOKEN });
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed("it has not exactly three parts"));
        };
        let signed = token.get(..header.len() + 1 + payload.len()).unwrap_or_default().as_bytes();
        let header = decode(header, "its header is not base64url")?;
        let payload = decode(payload, "its payload is not base64url")?;
        let signature = decode(signature, "its signature is not base64url")?;

        let header = Header::read(&parse_object("header", &header)?)?;
        let claims = parse_object("payload", &payload)?;
        Ok(Self { header, claims, signed, signature })
    }

    /// The unverified `iss`, to select the issuer; `None` unless it is a string.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// The signed text. One text can have several valid signatures: with ECDSA, anybody who has one can compute
    /// another.
    pub fn signed(&self) -> &'t [u8] {
        self.signed
    }

    /// Whether `key` signed this token.
    pub fn check_signature(&self, key: &PublicKey) -> bool {
        key.verify(self.signed, &self.signature)
    }
}

impl Header {
    fn read(members: &Map<String, Value>) -> Result<Self, TokenError> {
        let algorithm =
            members.get("alg").and_then(Value::as_str).and_then(algorithm).ok_or_else(|| TokenError::Algorithm {
                came: Quoted::json(members.get("alg")),
                expected: vec!["RS256".into(), "ES256".into()],
            })?;
        if let Some(member) = REFUSED_MEMBERS.into_iter().find(|member| members.contains_key(*member)) {
            return Err(TokenError::HeaderMember(member));
        }
        let kid = match members.get("kid") {
            None => None,
            Some(Value::String(kid)) if !kid.is_empty() && kid.len() <= MAX_KID => Some(kid.clone()),
            Some(_) => return Err(TokenError::Malformed("its `kid` is not a short text")),
        };
        let typ = match members.get("typ") {
            None => None,
            Some(Value::String(typ)) if typ.len() <= 64 => Some(typ.clone()),
            Some(_) => return Err(TokenError::Malformed("its `typ` is not a short text")),
        };
        Ok(Self { algorithm, kid, typ })
    }
}

/// Whether a token looks like a JWT, and so must not be treated as opaque: the part before the first dot decodes to the
/// start of a JSON object, and it is no [encrypted](is_encrypted) token.
pub fn is_jwt_shaped(token: &str) -> bool {
    let Some((head, _)) = token.split_once('.') else { return false };
    // Groups of four characters decode independently. There may be any amount of white space before the brace.
    let (groups, _) = head.as_bytes().as_chunks::<4>();
    for group in groups {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(group) else { return false };
        if let Some(first) = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            return *first == b'{' && !is_encrypted(token);
        }
    }
    false
}

/// Whether a token is a JWE in compact form (RFC 7516 section 3.1): five parts, and a header with `enc`. Some providers
/// encrypt their opaque tokens for themselves. All parts must be canonical, as a token without `jti` is revoked by its
/// text, of which there must be only one.
pub fn is_encrypted(token: &str) -> bool {
    let mut parts = token.split('.');
    if parts.clone().count() != 5 {
        return false;
    }
    let header = parts.next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let members = header.and_then(|header| strict_json::object(&header).ok());
    members.is_some_and(|members| members.get("enc").is_some_and(Value::is_string))
        && parts.all(|part| URL_SAFE_NO_PAD.decode(part).is_ok())
}

/// The algorithm with this name in RFC 7518, or RFC 9864, in which `EdDSA` with this curve is `Ed25519`. HMAC is not
/// supported, as a shared secret cannot distinguish issuers.
pub fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" | "Ed25519" => Algorithm::EdDSA,
        _ => return None,
    })
}

fn decode(part: &str, problem: &'static str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed(problem))
}

fn parse_object(part: &'static str, text: &[u8]) -> Result<Map<String, Value>, TokenError> {
    strict_json::object(text).map_err(|why| TokenError::Json { part, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encrypted_tokens() {
        let with = |header: &str, rest: &str| format!("{}{rest}", URL_SAFE_NO_PAD.encode(header));
        let header = r#"{"alg":"A256GCMKW","enc":"A256GCM"}"#;
        for rest in ["..YWJj.YWJj.YWJj", ".YQ.YWI.YWJj.YWJj"] {
            let token = with(header, rest);
            assert!(is_encrypted(&token) && !is_jwt_shaped(&token), "{token}");
        }
        for (row, token) in [
            ("four parts", with(header, "..YWJj.YWJj")),
            ("six parts", with(header, "..YWJj.YWJj.YWJj.YWJj")),
            ("a JWT", with(header, ".e30.YWJj")),
            ("no `enc`", with(r#"{"alg":"A256GCMKW"}"#, "..YWJj.YWJj.YWJj")),
            ("repeated member", with(r#"{"enc":"A256GCM","enc":"A256GCM"}"#, "..YWJj.YWJj.YWJj")),
            ("another text of the same bytes", with(header, "..YWJj.YWJj.YWJ")),
        ] {
            assert!(!is_encrypted(&token) && is_jwt_shaped(&token), "{row}");
        }
        assert!(!is_encrypted("a.b.c.d.e"));
    }

    #[test]
    fn shapes() {
        for jwt in
            ["eyJhbGciOiJub25lIn0.e30.", "eyJhbGciOiJub25lIn0.a.b.c.d", "eyAiYWxnIjoieCJ9.x.y", "CnsiYSI6MX0.x.y"]
        {
            assert!(is_jwt_shaped(jwt), "{jwt}");
        }
        for opaque in ["", "abc", "a.b.c", "eyJhbGciOiJub25lIn0", "...", "2YotnFZFEjr1zCsicMWpAA", "é.x"] {
            assert!(!is_jwt_shaped(opaque), "{opaque}");
        }
        // Found by fuzzing: JSON may begin with more white space than was checked.
        let blanks = URL_SAFE_NO_PAD.encode(format!("{}{{\"alg\":\"ES256\"}}", " ".repeat(200)));
        assert!(is_jwt_shaped(&format!("{blanks}.e30.")));
    }
}
