//! Why a token was refused: with details for operators and `explain`, without for the caller.

use std::{
    borrow::Cow,
    error::Error as _,
    fmt::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use crate::error::{Reason, Rejection};

/// A piece of a token for people: escaped, and cut if it is long. All text of a token is untrusted until its signature
/// is checked. It is escaped without a backslash, which is not allowed in an `error_description` (RFC 6749 section
/// 5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    const MAX_CHARS: usize = 120;

    pub fn text(text: &str) -> Self {
        let mut quoted = String::from("`");
        for character in text.chars().take(Self::MAX_CHARS) {
            if matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1 {
                quoted.push(character);
            } else {
                let _ = write!(quoted, "<U+{:04X}>", u32::from(character));
            }
        }
        if text.chars().nth(Self::MAX_CHARS).is_some() {
            quoted.push('…');
        }
        quoted.push('`');
        Self(quoted)
    }

    pub fn json(value: Option<&Value>) -> Self {
        match value {
            None => Self("nothing".to_owned()),
            Some(Value::String(text)) => Self::text(text),
            Some(Value::Array(values)) if values.is_empty() => Self("an empty list".to_owned()),
            Some(Value::Array(values)) if values.len() > 8 => Self(format!("a list of {}", values.len())),
            Some(Value::Array(values)) => {
                let each: Vec<_> = values
                    .iter()
                    .map(|value| Self::text(&value.as_str().map_or_else(|| value.to_string(), str::to_owned)).0)
                    .collect();
                Self(each.join(", "))
            }
            Some(other) => Self::text(&other.to_string()),
        }
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a token was refused. `Display` has the expected and the actual value; it is for the log and `explain`, not for
/// unauthenticated callers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not a JWT in compact form: {0}")]
    Malformed(&'static str),
    #[error("the {part} of the token {why}")]
    Json { part: &'static str, why: super::strict_json::JsonError },
    #[error("the token is signed with {came}; {} accepted", list(.expected))]
    Algorithm { came: Quoted, expected: Vec<String> },
    #[error("the token's header has `{0}`, which is not supported and could change its meaning")]
    HeaderMember(&'static str),
    #[error("the token's `typ` is {came}; {} accepted", list(.expected))]
    Type { came: Quoted, expected: Vec<String> },
    #[error("the token is {0}, not an access token")]
    OtherKind(&'static str),
    #[error("no issuer {came} is accepted here; {} accepted", list(.expected))]
    IssuerUnknown { came: Quoted, expected: Vec<String> },
    #[error("issuer `{issuer}` publishes no key {kid} for this algorithm")]
    KeyUnknown { issuer: Arc<str>, kid: Quoted },
    #[error("the token names no key (`kid`) and issuer `{issuer}` has {fitting} that match; exactly one must")]
    KeyAmbiguous { issuer: Arc<str>, fitting: usize },
    #[error("the signature is not by the key of issuer `{issuer}`")]
    Signature { issuer: Arc<str> },
    #[error("the token's audience (`aud`) is {came}; {} expected", list(.expected))]
    Audience { came: Quoted, expected: Vec<String> },
    #[error("the token's audience (`aud`) also has {came}, which is not in `audiences` of its issuer")]
    OtherAudience { came: Quoted },
    #[error("the token expired {} ago, at {at}", span(*.by))]
    Expired { by: Duration, at: crate::clock::Timestamp },
    #[error("the token is not valid for another {} (`{claim}`); check both clocks", span(*.by))]
    NotYetValid { claim: &'static str, by: Duration },
    #[error("the token lives {}; at most {} is accepted", span(*.came), span(*.limit))]
    Lifetime { came: Duration, limit: Duration },
    #[error("the claim `{name}` is {came}; it must be {expected}")]
    Claim { name: Cow<'static, str>, came: Quoted, expected: &'static str },
    #[error("the claim `{name}` is {came}; {} required", list(.expected))]
    RequiredClaim { name: Arc<str>, came: Quoted, expected: Vec<String> },
    #[error("the token is bound to a key or certificate of its client (`cnf`), which cannot be checked here")]
    SenderConstrained,
    #[error("the token was issued to client {client}, which is not listed for issuer `{issuer}`")]
    ClientNotListed { issuer: Arc<str>, client: Quoted },
    #[error("issuer `{issuer}` says that the token is not active")]
    Inactive { issuer: Arc<str> },
    #[error("a token of {came} bytes; at most {limit} are accepted")]
    TooLong { came: usize, limit: usize },
    #[error("the token is not a JWT, and no issuer that is accepted here is asked about such tokens (introspection)")]
    OpaqueNotAccepted,
    #[error(
        "the token is encrypted (JWE), and no issuer that is accepted here is asked about such tokens (introspection)"
    )]
    EncryptedNotAccepted,
    #[error("issuer `{issuer}` is not available: {why}")]
    Unavailable { issuer: Arc<str>, why: String },
    #[error("too many unknown tokens are waiting for issuer `{issuer}`")]
    Overloaded { issuer: Arc<str> },
}

impl TokenError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_)
            | Self::Json { .. }
            | Self::TooLong { .. }
            | Self::OpaqueNotAccepted
            | Self::EncryptedNotAccepted => Reason::CredentialMalformed,
            Self::IssuerUnknown { .. } => Reason::IssuerUnknown,
            Self::KeyUnknown { .. } | Self::KeyAmbiguous { .. } => Reason::KeyUnknown,
            Self::Signature { .. } => Reason::SignatureInvalid,
            Self::Audience { .. } | Self::OtherAudience { .. } => Reason::AudienceMismatch,
            Self::Expired { .. } => Reason::TokenExpired,
            Self::NotYetValid { .. } => Reason::TokenNotYetValid,
            Self::Inactive { .. } => Reason::TokenInactive,
            Self::Unavailable { .. } => Reason::IssuerUnavailable,
            Self::Overloaded { .. } => Reason::Overloaded,
            Self::Algorithm { .. }
            | Self::HeaderMember(_)
            | Self::Type { .. }
            | Self::OtherKind(_)
            | Self::Lifetime { .. }
            | Self::Claim { .. }
            | Self::RequiredClaim { .. }
            | Self::SenderConstrained
            | Self::ClientNotListed { .. } => Reason::TokenInvalid,
        }
    }

    /// The cause for the person whose own ID token it is, who may know its content; `None` if it would disclose what
    /// the configuration requires of people, or if the failure is not about the token.
    pub fn of_own_token(&self) -> Option<String> {
        match self {
            Self::RequiredClaim { .. } | Self::IssuerUnknown { .. } | Self::ClientNotListed { .. } => None,
            Self::Unavailable { .. } | Self::Overloaded { .. } => None,
            error => Some(error.to_string()),
        }
    }

    /// The displayed text without the people that the token names or the configuration allows: for the holder of the
    /// token, and for the audit trail, in which this text is not pseudonymised.
    pub fn without_people(&self) -> String {
        match self {
            Self::Claim { name, expected, .. } => format!("the claim `{name}` must be {expected}"),
            Self::RequiredClaim { name, .. } => format!("the claim `{name}` has no accepted value"),
            error => error.to_string(),
        }
    }

    /// Refuses a verified token.
    pub(super) fn of_verified(self) -> Rejection {
        name_claim(self.into())
    }

    /// The detail and fix for the caller: fixed texts, which disclose nothing of the token or the configuration to
    /// unauthenticated callers.
    fn public(&self) -> (&'static str, &'static str) {
        match self.reason() {
            Reason::CredentialMalformed if matches!(self, Self::EncryptedNotAccepted) => (
                "the bearer token is encrypted (JWE), which is not accepted here",
                "have its issuer sign access tokens for this service, and not encrypt them",
            ),
            Reason::CredentialMalformed => {
                ("the bearer token cannot be read here", "send the access token exactly as it was issued")
            }
            Reason::IssuerUnknown => (
                "the issuer of the token is not accepted here",
                "get a token from an issuer that this service is configured for",
            ),
            Reason::KeyUnknown => (
                "the token is signed with a key that its issuer does not publish",
                "get a new token; if it persists, the issuer may have rotated its keys",
            ),
            Reason::SignatureInvalid => {
                ("the signature of the token is not valid", "send the access token exactly as it was issued")
            }
            Reason::AudienceMismatch => {
                ("the token is meant for another audience", "request a token whose audience (`aud`) is this service")
            }
            Reason::TokenExpired => ("the token has expired", "get a new token"),
            Reason::TokenNotYetValid => {
                ("the token is not valid yet", "check the clock of the machine that issued the token")
            }
            Reason::TokenInactive => ("the issuer says that the token is not active", "get a new token"),
            Reason::IssuerUnavailable => {
                ("the issuer of the token cannot be asked right now", "try again in a moment; the token may be valid")
            }
            Reason::Overloaded => ("too many tokens are being checked right now", "try again in a moment"),
            _ => match self {
                Self::SenderConstrained => (
                    "the token is bound to a key of its client (`cnf`), which cannot be checked here",
                    "request a bearer token without sender constraint",
                ),
                Self::ClientNotListed { .. } => (
                    "the token was issued to a client that is not accepted here",
                    "use a client that this service is configured for",
                ),
                Self::Lifetime { .. } => (
                    "the token lives longer than is accepted here",
                    "get one that expires sooner; for a token of a pod, set `expirationSeconds` of the projected `serviceAccountToken`",
                ),
                _ => (
                    "the token is not an access token that is accepted here",
                    "request an access token for this service",
                ),
            },
        }
    }
}

impl From<TokenError> for Rejection {
    fn from(error: TokenError) -> Self {
        let (detail, fix) = error.public();
        Self::new(error.reason(), detail).fix(fix).because(error)
    }
}

/// Says in the refusal of a verified token which of its claims is malformed, and not what it contains: its bearer may
/// know the content, and whoever runs the issuer can mend it.
pub(super) fn name_claim(refused: Rejection) -> Rejection {
    let error = refused.source().and_then(|cause| cause.downcast_ref::<TokenError>());
    let Some(TokenError::Claim { name, expected, .. }) = error else { return refused };
    let detail = format!("the claim `{name}` of the token must be {expected}");
    refused.reworded(
        detail,
        "have the issuer write it so; `doorward explain` with `--token-file` shows what it is in this token",
    )
}

fn list(names: &[String]) -> String {
    match names {
        [] => "nothing is".to_owned(),
        [one] => format!("`{one}` is"),
        many => format!("`{}` are", many.join("`, `")),
    }
}

fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The caller was told to request an access token, which it had.
    #[test]
    fn a_token_with_too_long_a_lifetime_is_refused_with_the_setting_that_shortens_it() {
        let (came, limit) = (Duration::from_secs(7200), Duration::from_secs(3600));
        let told = Rejection::from(TokenError::Lifetime { came, limit }).in_words();
        assert!(told.contains("lives longer") && told.contains("`expirationSeconds`"), "{told}");
    }

    #[test]
    fn quoted_text_is_escaped_and_cut() {
        assert_eq!(Quoted::text("a\u{1b}[31m\n\u{202e}`").to_string(), "`a<U+001B>[31m<U+000A><U+202E>``");
        assert_eq!(Quoted::text("CORP\\o'neil \"é\"").to_string(), "`CORP\\o'neil \"é\"`");
        assert!(Quoted::text(&"x".repeat(100_000)).to_string().len() < 200);
    }

    #[test]
    fn a_list_is_quoted_text_by_text() {
        for (list, quoted) in [
            (json!(["https://kubernetes.default.svc"]), "`https://kubernetes.default.svc`"),
            (json!(["a", "b\n", 1]), "`a`, `b<U+000A>`, `1`"),
            (json!([]), "an empty list"),
            (json!(vec!["a"; 9]), "a list of 9"),
            (json!({"a": 1}), "`{\"a\":1}`"),
        ] {
            assert_eq!(Quoted::json(Some(&list)).to_string(), quoted);
        }
    }

    #[test]
    fn the_caller_never_reads_its_own_text_back() {
        let error = TokenError::Audience { came: Quoted::text("<script>"), expected: vec!["doorward".to_owned()] };
        assert_eq!(error.to_string(), "the token's audience (`aud`) is `<script>`; `doorward` is expected");
        let rejection = Rejection::from(error);
        assert_eq!(rejection.reason(), Reason::AudienceMismatch);
        assert!(!rejection.to_string().contains("script") && !rejection.to_string().contains("doorward"));
    }
}
