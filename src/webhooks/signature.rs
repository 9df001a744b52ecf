//! Proof that the sender of a delivery knows a secret: over the raw bytes, by an algorithm that the configuration
//! fixes, compared in constant time.
//!
//! What a delivery presents is read from its head, before the body; [`Presented::verify`] gets the body. All refusals
//! with 401 give the caller the same sentence; the cause goes to the log.

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest, hmac,
    signature::{self, UnparsedPublicKey},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    config::raw::{HmacAlgorithm, SignatureEncoding},
    error::{Reason, Rejection},
    sha256::sha256,
};

/// The maximum number of entries of one `webhook-signature` that are checked. A sender that rotates its key signs with
/// two.
const MAX_ENTRIES: usize = 8;

/// The sizes of a signature and of a public key in bytes (RFC 8032 section 5.1).
const ED25519_SIGNATURE: usize = 64;
const ED25519_KEY: usize = 32;

/// How a sender proves that it knows a secret.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A header with `PREFIX` and the encoded HMAC of the body, preceded by the time of signing if a header has it.
    Body {
        header: HeaderName,
        prefix: Box<str>,
        algorithm: HmacAlgorithm,
        encoding: SignatureEncoding,
        timestamp: Option<Timed>,
    },
    /// [Standard Webhooks](https://www.standardwebhooks.com): a list of `v1,BASE64`, each an HMAC-SHA256 of
    /// `ID.TIME.BODY`, or `v1a,BASE64`, each an Ed25519 signature of the same.
    StandardWebhooks(&'static StandardHeaders),
    /// The secret itself in a header, after `PREFIX`. Like the next two forms, it does not cover the body and can be
    /// replayed with another one.
    Token { header: HeaderName, prefix: Box<str> },
    /// The secret as a user name and a password (RFC 7617).
    Basic,
    /// The secret as a parameter of the query.
    Query(&'static str),
    /// The body is a message that contains its own signature ([`super::sns`]).
    Message,
}

/// The time of signing in a header, and the signed bytes around it.
#[derive(Clone, Debug)]
pub(super) struct Timed {
    pub(super) header: HeaderName,
    pub(super) before: &'static str,
    pub(super) after: &'static str,
}

/// The header names of Standard Webhooks.
#[derive(Debug)]
pub(super) struct StandardHeaders {
    id: HeaderName,
    timestamp: HeaderName,
    signature: HeaderName,
}

pub(super) static WEBHOOK: StandardHeaders = StandardHeaders {
    id: HeaderName::from_static("webhook-id"),
    timestamp: HeaderName::from_static("webhook-timestamp"),
    signature: HeaderName::from_static("webhook-signature"),
};

pub(super) static SVIX: StandardHeaders = StandardHeaders {
    id: HeaderName::from_static("svix-id"),
    timestamp: HeaderName::from_static("svix-timestamp"),
    signature: HeaderName::from_static("svix-signature"),
};

/// What the head of a delivery presents; not yet verified.
#[derive(Debug)]
pub(super) struct Presented {
    candidates: Candidates,
    /// The signed bytes that precede the body.
    before: String,
    /// The time of signing, if it is signed.
    pub(super) signed_at: Option<Timestamp>,
    /// The id of the delivery, if it is signed.
    pub(super) signed_id: Option<String>,
}

#[derive(Debug)]
enum Candidates {
    Signatures {
        macs: Vec<Vec<u8>>,
        ed25519: Vec<Vec<u8>>,
    },
    /// SHA-256 of the token.
    Token([u8; 32]),
}

/// A secret, ready for verification.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Mac(Box<hmac::Key>),
    /// The public key.
    Ed25519(Box<[u8]>),
    /// SHA-256 of the token, so that a comparison does not reveal its length.
    Token([u8; 32]),
}

impl Form {
    /// A header with the HMAC-SHA256 of the body in hex.
    pub(super) fn hex_sha256(header: &'static str, prefix: &str) -> Self {
        Self::Body {
            header: HeaderName::from_static(header),
            prefix: prefix.into(),
            algorithm: HmacAlgorithm::Sha256,
            encoding: SignatureEncoding::Hex,
            timestamp: None,
        }
    }

    /// A header with nothing but the secret.
    pub(super) fn token(header: &'static str) -> Self {
        Self::Token { header: HeaderName::from_static(header), prefix: "".into() }
    }

    /// The header whose presence shows that a delivery uses this form.
    pub(super) fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Body { header, .. } | Self::Token { header, .. } => Some(header),
            Self::StandardWebhooks(headers) => Some(&headers.signature),
            Self::Basic => Some(&header::AUTHORIZATION),
            Self::Query(_) | Self::Message => None,
        }
    }

    /// Whether the body is signed.
    pub(super) fn signs_body(&self) -> bool {
        matches!(self, Self::Body { .. } | Self::StandardWebhooks(_) | Self::Message)
    }

    /// Reads what the head presents in this form; `None` if its header or query parameter is absent.
    pub(super) fn read(&self, headers: &HeaderMap, query: Option<&str>) -> Result<Option<Presented>, Rejection> {
        let value = match (self, self.header()) {
            (_, Some(header)) => single(headers, header)?,
            (Self::Message, _) => return Ok(Some(Presented::message())),
            (Self::Query(name), _) => return read_query(query.unwrap_or_default(), name),
            (_, None) => None,
        };
        let Some(value) = value else { return Ok(None) };
        let presented = match self {
            Self::Body { header, prefix, algorithm, encoding, timestamp } => {
                let value = text(value)?;
                let encoded = value.strip_prefix(&**prefix).ok_or_else(|| malformed("the prefix differs"))?;
                if encoded.contains(',') {
                    return Err(ambiguous(header));
                }
                let digest = decode(encoded, *encoding)
                    .filter(|digest| digest.len() == mac_algorithm(*algorithm).digest_algorithm().output_len())
                    .ok_or_else(|| malformed("the digest is not written as configured, or has another length"))?;
                let (before, signed_at) = match timestamp {
                    None => (String::new(), None),
                    Some(Timed { header, before, after }) => {
                        let (text, time) = read_timestamp(headers, header)?;
                        (format!("{before}{text}{after}"), Some(time))
                    }
                };
                let candidates = Candidates::Signatures { macs: vec![digest], ed25519: Vec::new() };
                Presented { candidates, before, signed_at, signed_id: None }
            }
            Self::StandardWebhooks(names) => read_standard(headers, names, value)?,
            Self::Token { prefix, .. } => {
                let token = value.as_bytes().strip_prefix(prefix.as_bytes());
                Presented::token(token.ok_or_else(|| malformed("the prefix differs"))?)
            }
            Self::Basic => {
                let (scheme, encoded) = text(value)?.split_once(' ').unwrap_or_default();
                let token = STANDARD.decode(encoded).map(Zeroizing::new);
                let token = token.ok().filter(|_| scheme.eq_ignore_ascii_case("basic"));
                Presented::token(&token.ok_or_else(|| malformed("not Basic authentication"))?)
            }
            Self::Query(_) | Self::Message => return Ok(None),
        };
        Ok(Some(presented))
    }
}

fn read_standard(
    headers: &HeaderMap,
    names: &StandardHeaders,
    signature: &HeaderValue,
) -> Result<Presented, Rejection> {
    let id = single(headers, &names.id)?.ok_or_else(|| missing("the id of the delivery is missing"))?;
    let id = id.to_str().ok().filter(|id| is_standard_id(id)).ok_or_else(|| {
        Rejection::new(Reason::BadRequest, format!("{} is not 1 to 255 letters, digits, `_` and `-`", names.id))
    })?;
    let (time, signed_at) = read_timestamp(headers, &names.timestamp)?;
    check_families(headers)?;
    let (mut macs, mut ed25519) = (Vec::new(), Vec::new());
    for entry in text(signature)?.split(' ').take(MAX_ENTRIES) {
        let Some((version, encoded)) = entry.split_once(',') else { continue };
        let Some(bytes) = decode(encoded, SignatureEncoding::Base64) else { continue };
        match (version, bytes.len()) {
            ("v1", digest::SHA256_OUTPUT_LEN) => macs.push(bytes),
            ("v1a", ED25519_SIGNATURE) => ed25519.push(bytes),
            // Of a version that is unknown here.
            _ => {}
        }
    }
    if macs.is_empty() && ed25519.is_empty() {
        return Err(malformed("no entry of the signature has a known version and the length for it"));
    }
    Ok(Presented {
        candidates: Candidates::Signatures { macs, ed25519 },
        before: format!("{id}.{time}."),
        signed_at: Some(signed_at),
        signed_id: Some(id.to_owned()),
    })
}

/// Refuses headers of the two families that differ: only one family is verified, and the upstream may read the other.
fn check_families(headers: &HeaderMap) -> Result<(), Rejection> {
    for (name, other) in
        [(&WEBHOOK.id, &SVIX.id), (&WEBHOOK.timestamp, &SVIX.timestamp), (&WEBHOOK.signature, &SVIX.signature)]
    {
        let (value, others) = (single(headers, name)?, single(headers, other)?);
        if value.is_some() && others.is_some() && value != others {
            return Err(Rejection::new(Reason::BadRequest, format!("{other} differs from {name}")));
        }
    }
    Ok(())
}

/// Reads a query parameter, which must not be repeated.
fn read_query(query: &str, name: &str) -> Result<Option<Presented>, Rejection> {
    let mut values = url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    let first = values.next();
    if values.next().is_some() {
        return Err(Rejection::new(Reason::CredentialAmbiguous, format!("the query has more than one `{name}`")));
    }
    Ok(first.map(|(_, value)| Presented::token(value.as_bytes())))
}

impl Presented {
    /// The head presents nothing: the proof is in the body.
    fn message() -> Self {
        let candidates = Candidates::Signatures { macs: Vec::new(), ed25519: Vec::new() };
        Self { candidates, before: String::new(), signed_at: None, signed_id: None }
    }

    fn token(token: &[u8]) -> Self {
        let candidates = Candidates::Token(sha256(&[token]));
        Self { candidates, before: String::new(), signed_at: None, signed_id: None }
    }

    /// Whether the presented proof was made with `key`.
    pub(super) fn verify(&self, key: &Key, body: &[u8]) -> bool {
        match (&self.candidates, key) {
            (Candidates::Signatures { macs, .. }, Key::Mac(key)) if !macs.is_empty() => {
                let mut context = hmac::Context::with_key(key);
                context.update(self.before.as_bytes());
                context.update(body);
                let tag = context.sign();
                macs.iter().any(|mac| verify_slices_are_equal(tag.as_ref(), mac).is_ok())
            }
            (Candidates::Signatures { ed25519, .. }, Key::Ed25519(key)) if !ed25519.is_empty() => {
                let signed = [self.before.as_bytes(), body].concat();
                let key = UnparsedPublicKey::new(&signature::ED25519, key);
                ed25519.iter().any(|signature| key.verify(&signed, signature).is_ok())
            }
            (Candidates::Token(presented), Key::Token(token)) => verify_slices_are_equal(presented, token).is_ok(),
            _ => false,
        }
    }

    /// The signed bytes that precede the body.
    pub(super) fn before(&self) -> &str {
        &self.before
    }
}

impl Key {
    pub(super) fn mac(algorithm: HmacAlgorithm, secret: &[u8]) -> Self {
        Self::Mac(Box::new(hmac::Key::new(mac_algorithm(algorithm), secret)))
    }

    pub(super) fn token(token: &[u8]) -> Self {
        Self::Token(sha256(&[token]))
    }

    /// The key of a Standard Webhooks secret, without its `whsec_`: base64 of 24 to 64 bytes.
    pub(super) fn standard(encoded: &[u8]) -> Result<Self, &'static str> {
        let secret = STANDARD.decode(encoded).map(Zeroizing::new).map_err(|_| "is not base64 after `whsec_`")?;
        if !(24..=64).contains(&secret.len()) {
            return Err("does not have 24 to 64 bytes after `whsec_`");
        }
        Ok(Self::mac(HmacAlgorithm::Sha256, &secret))
    }

    /// The public key of a Standard Webhooks sender that signs with Ed25519, without its `whpk_`: base64 of 32 bytes.
    pub(super) fn ed25519(encoded: &[u8]) -> Result<Self, &'static str> {
        let key = STANDARD.decode(encoded).map_err(|_| "is not base64 after `whpk_`")?;
        if key.len() != ED25519_KEY {
            return Err("does not have 32 bytes after `whpk_`");
        }
        Ok(Self::Ed25519(key.into()))
    }

    pub(super) fn signs(&self, form: &Form) -> bool {
        match self {
            Self::Mac(_) => form.signs_body(),
            Self::Ed25519(_) => matches!(form, Form::StandardWebhooks(_)),
            Self::Token(_) => !form.signs_body(),
        }
    }
}

/// GitHub's signature header: `sha256=` and the HMAC-SHA256 of the body in hex.
pub fn github_signature(secret: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body);
    format!("sha256={}", HEXLOWER.encode(tag.as_ref()))
}

fn mac_algorithm(algorithm: HmacAlgorithm) -> hmac::Algorithm {
    match algorithm {
        HmacAlgorithm::Sha256 => hmac::HMAC_SHA256,
        HmacAlgorithm::Sha384 => hmac::HMAC_SHA384,
        HmacAlgorithm::Sha512 => hmac::HMAC_SHA512,
    }
}

/// Decodes strictly: hex in either case, or standard base64 with padding; nothing around it.
fn decode(text: &str, encoding: SignatureEncoding) -> Option<Vec<u8>> {
    match encoding {
        SignatureEncoding::Base64 => STANDARD.decode(text).ok(),
        SignatureEncoding::Hex => HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok(),
    }
}

/// The only value of a header. With two, a sender could show one to Doorward and the other to the next reader.
pub(super) fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Rejection> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ambiguous(name));
    }
    Ok(first)
}

/// Parses Unix seconds, digits only. Eleven digits last until the year 5138; milliseconds have thirteen.
fn read_timestamp<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<(&'h str, Timestamp), Rejection> {
    let value = single(headers, name)?.ok_or_else(|| missing("the header with the time of signing is missing"))?;
    value
        .to_str()
        .ok()
        .filter(|text| (1..=11).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| Some((text, Timestamp::from_secs(text.parse().ok()?))))
        .ok_or_else(|| Rejection::new(Reason::BadRequest, format!("{name} is not a time in whole Unix seconds")))
}

/// Whether a text can be an id of Standard Webhooks. The id is between dots in the signed bytes, so it must not contain
/// one.
fn is_standard_id(id: &str) -> bool {
    (1..=255).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn text(value: &HeaderValue) -> Result<&str, Rejection> {
    value.to_str().map_err(|_| malformed("the header is not visible ASCII"))
}

fn ambiguous(name: &HeaderName) -> Rejection {
    Rejection::new(Reason::CredentialAmbiguous, format!("{name} has more than one value"))
}

/// The single sentence of every 401.
pub(super) fn unproven(reason: Reason, cause: &'static str) -> Rejection {
    Rejection::new(reason, "the delivery is not signed as this address requires").because(cause)
}

fn missing(cause: &'static str) -> Rejection {
    unproven(Reason::CredentialMissing, cause)
}

pub(super) fn malformed(cause: &'static str) -> Rejection {
    unproven(Reason::CredentialMalformed, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vector_that_github_publishes() {
        assert_eq!(
            github_signature(b"It's a Secret to Everybody", b"Hello, World!"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }

    #[test]
    fn hex_is_read_strictly() {
        assert_eq!(decode("00fFAb", SignatureEncoding::Hex), Some(vec![0, 255, 171]));
        for text in ["0", "0g", " 00", "00 ", "0x00", "é"] {
            assert_eq!(decode(text, SignatureEncoding::Hex), None, "{text:?}");
        }
    }

    #[test]
    fn an_empty_or_short_standard_secret_makes_no_key() {
        for encoded in ["", "AAAA", "not base64!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS"] {
            assert!(Key::standard(encoded.as_bytes()).is_err(), "{encoded:?}");
        }
        assert!(Key::standard(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").is_ok());
    }
}
