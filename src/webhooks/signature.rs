//! Proof that a delivery comes from somebody who knows a secret: over the raw bytes, by an algorithm that the
//! configuration fixes, compared in constant time.
//!
//! What a delivery presents is read from its head, before the body; [`Presented::verify`] sees the body. All refusals
//! with 401 tell the caller the same sentence, the cause goes to the log.

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, hmac};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    config::raw::{HmacAlgorithm, SignatureEncoding},
    error::{Reason, Rejection},
};

/// `v1` entries of one `webhook-signature` that are looked at. A sender that rotates signs with two.
const MAX_ENTRIES: usize = 8;

/// How a sender proves that it knows a secret.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// `PREFIX` and the encoded HMAC of the body; of `TIME.BODY` where a header with the time is named.
    Body {
        header: HeaderName,
        prefix: Box<str>,
        algorithm: HmacAlgorithm,
        encoding: SignatureEncoding,
        timestamp: Option<HeaderName>,
    },
    /// [Standard Webhooks](https://www.standardwebhooks.com): `webhook-signature` is a list of `v1,BASE64`, each an
    /// HMAC-SHA256 of `ID.TIME.BODY`.
    StandardWebhooks,
    /// The secret itself stands in a header. It says nothing of the body and can be replayed with another.
    Token { header: HeaderName },
}

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What the head of a delivery presents; not yet verified.
#[derive(Debug)]
pub(super) struct Presented {
    candidates: Candidates,
    /// The signed bytes that stand before the body.
    before: String,
    /// When it was signed, if that is signed.
    pub(super) signed_at: Option<Timestamp>,
    /// The id of the delivery, if that is signed.
    pub(super) signed_id: Option<String>,
}

#[derive(Debug)]
enum Candidates {
    Digests(Vec<Vec<u8>>),
    /// SHA-256 of the token.
    Token(digest::Digest),
}

/// A secret, ready to verify with.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Mac(Box<hmac::Key>),
    /// SHA-256 of the token, so that a comparison tells nothing of its length.
    Token(digest::Digest),
}

impl Form {
    /// The header whose presence says that a delivery uses this form.
    pub(super) fn header(&self) -> &HeaderName {
        match self {
            Self::Body { header, .. } | Self::Token { header } => header,
            Self::StandardWebhooks => &WEBHOOK_SIGNATURE,
        }
    }

    /// Whether the body is signed.
    pub(super) fn signs_body(&self) -> bool {
        !matches!(self, Self::Token { .. })
    }

    /// Reads what the head presents in this form; `None` if its header is absent.
    pub(super) fn read(&self, headers: &HeaderMap) -> Result<Option<Presented>, Rejection> {
        let Some(value) = single(headers, self.header())? else { return Ok(None) };
        let presented = match self {
            Self::Body { prefix, algorithm, encoding, timestamp, .. } => {
                let value = text(value)?;
                let encoded = value.strip_prefix(&**prefix).ok_or_else(|| malformed("the prefix is another"))?;
                if encoded.contains(',') {
                    return Err(ambiguous(self.header()));
                }
                let digest = decode(encoded, *encoding)
                    .filter(|digest| digest.len() == mac_algorithm(*algorithm).digest_algorithm().output_len())
                    .ok_or_else(|| malformed("the digest is not written as configured, or has another length"))?;
                let (before, signed_at) = match timestamp {
                    None => (String::new(), None),
                    Some(header) => {
                        let (text, time) = read_timestamp(headers, header)?;
                        (format!("{text}."), Some(time))
                    }
                };
                Presented { candidates: Candidates::Digests(vec![digest]), before, signed_at, signed_id: None }
            }
            Self::StandardWebhooks => {
                let id = single(headers, &WEBHOOK_ID)?.ok_or_else(|| missing("webhook-id is missing"))?;
                let id = id.to_str().ok().filter(|id| is_standard_id(id)).ok_or_else(|| {
                    Rejection::new(Reason::BadRequest, "webhook-id is not 1 to 255 letters, digits, `_` and `-`")
                })?;
                let (time, signed_at) = read_timestamp(headers, &WEBHOOK_TIMESTAMP)?;
                let digests: Vec<_> = text(value)?
                    .split(' ')
                    .filter_map(|entry| entry.strip_prefix("v1,"))
                    .take(MAX_ENTRIES)
                    .filter_map(|encoded| decode(encoded, SignatureEncoding::Base64))
                    .filter(|digest| digest.len() == digest::SHA256_OUTPUT_LEN)
                    .collect();
                if digests.is_empty() {
                    return Err(malformed("webhook-signature has no v1 entry of 32 bytes"));
                }
                Presented {
                    candidates: Candidates::Digests(digests),
                    before: format!("{id}.{time}."),
                    signed_at: Some(signed_at),
                    signed_id: Some(id.to_owned()),
                }
            }
            Self::Token { .. } => Presented {
                candidates: Candidates::Token(digest::digest(&digest::SHA256, value.as_bytes())),
                before: String::new(),
                signed_at: None,
                signed_id: None,
            },
        };
        Ok(Some(presented))
    }
}

impl Presented {
    /// Whether `key` made what is presented.
    pub(super) fn verify(&self, key: &Key, body: &[u8]) -> bool {
        match (&self.candidates, key) {
            (Candidates::Digests(digests), Key::Mac(key)) => {
                let mut context = hmac::Context::with_key(key);
                context.update(self.before.as_bytes());
                context.update(body);
                let tag = context.sign();
                digests.iter().any(|digest| verify_slices_are_equal(tag.as_ref(), digest).is_ok())
            }
            (Candidates::Token(presented), Key::Token(token)) => {
                verify_slices_are_equal(presented.as_ref(), token.as_ref()).is_ok()
            }
            _ => false,
        }
    }

    /// The signed bytes that stand before the body.
    pub(super) fn before(&self) -> &str {
        &self.before
    }
}

impl Key {
    pub(super) fn mac(algorithm: HmacAlgorithm, secret: &[u8]) -> Self {
        Self::Mac(Box::new(hmac::Key::new(mac_algorithm(algorithm), secret)))
    }

    pub(super) fn token(token: &[u8]) -> Self {
        Self::Token(digest::digest(&digest::SHA256, token))
    }

    /// The key of a Standard Webhooks secret, less its `whsec_`: base64 of 24 to 64 bytes.
    pub(super) fn standard(encoded: &[u8]) -> Result<Self, &'static str> {
        let secret = STANDARD.decode(encoded).map(Zeroizing::new).map_err(|_| "is not base64 after `whsec_`")?;
        if !(24..=64).contains(&secret.len()) {
            return Err("does not have 24 to 64 bytes after `whsec_`");
        }
        Ok(Self::mac(HmacAlgorithm::Sha256, &secret))
    }

    pub(super) fn signs(&self, form: &Form) -> bool {
        matches!(self, Self::Mac(_)) == form.signs_body()
    }
}

/// The header of GitHub, `sha256=` and the HMAC-SHA256 of the body in hex, as a sender writes it.
pub fn github_signature(secret: &[u8], body: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body);
    tag.as_ref().iter().fold("sha256=".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn mac_algorithm(algorithm: HmacAlgorithm) -> hmac::Algorithm {
    match algorithm {
        HmacAlgorithm::Sha256 => hmac::HMAC_SHA256,
        HmacAlgorithm::Sha384 => hmac::HMAC_SHA384,
        HmacAlgorithm::Sha512 => hmac::HMAC_SHA512,
    }
}

/// Strict: hex in either case, or standard base64 with its padding; nothing around it.
fn decode(text: &str, encoding: SignatureEncoding) -> Option<Vec<u8>> {
    match encoding {
        SignatureEncoding::Base64 => STANDARD.decode(text).ok(),
        SignatureEncoding::Hex => decode_hex(text),
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// The one value of a header. Two would let a sender show one to us and the other to whoever reads next.
pub(super) fn single<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Rejection> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ambiguous(name));
    }
    Ok(first)
}

/// Unix seconds as digits alone. Eleven digits last until the year 5138; milliseconds have thirteen.
fn read_timestamp<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<(&'h str, Timestamp), Rejection> {
    let value = single(headers, name)?.ok_or_else(|| missing("the header with the time of signing is missing"))?;
    value
        .to_str()
        .ok()
        .filter(|text| (1..=11).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| Some((text, Timestamp::from_secs(text.parse().ok()?))))
        .ok_or_else(|| Rejection::new(Reason::BadRequest, format!("{name} is not a time in whole Unix seconds")))
}

/// The id stands between dots in the signed bytes, so it must not contain one.
fn is_standard_id(id: &str) -> bool {
    (1..=255).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn text(value: &HeaderValue) -> Result<&str, Rejection> {
    value.to_str().map_err(|_| malformed("the header is not visible ASCII"))
}

fn ambiguous(name: &HeaderName) -> Rejection {
    Rejection::new(Reason::CredentialAmbiguous, format!("{name} has more than one value"))
}

/// The one sentence of every 401.
pub(super) fn unproven(reason: Reason, cause: &'static str) -> Rejection {
    Rejection::new(reason, "the delivery is not signed as this address requires").because(cause)
}

fn missing(cause: &'static str) -> Rejection {
    unproven(Reason::CredentialMissing, cause)
}

fn malformed(cause: &'static str) -> Rejection {
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
        assert_eq!(decode_hex("00fFAb"), Some(vec![0, 255, 171]));
        for text in ["0", "0g", " 00", "00 ", "0x00", "é"] {
            assert_eq!(decode_hex(text), None, "{text:?}");
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
