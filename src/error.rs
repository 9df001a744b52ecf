//! The one way in which a request is refused. Every refusal says what happened, why, and what to do next. Details that
//! only an operator may know are attached to it and go to the log.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

use http::StatusCode;

use crate::authn::{CredentialId, NeededLogin, Principal};

/// The enum with its labels and the list of its variants, so that none can be missing in the list.
macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident => $label:literal,)*) => {
        /// Why a request was refused: a small closed set, the label of metrics and the `reason` of the audit trail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $reason,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// The label, snake case.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => $label,)*
                }
            }
        }
    };
}

reasons! {
    // The request itself.
    BadRequest => "bad_request",
    PathNotCanonical => "path_not_canonical",
    UriTooLong => "uri_too_long",
    HeadersTooLarge => "headers_too_large",
    BodyTooLarge => "body_too_large",
    BodyTimeout => "body_timeout",
    UnsupportedMediaType => "unsupported_media_type",
    MethodNotAllowed => "method_not_allowed",
    RouteNotFound => "route_not_found",
    MisdirectedHost => "misdirected_host",
    UpgradeRefused => "upgrade_refused",
    // The caller's credential.
    CredentialMissing => "credential_missing",
    CredentialMalformed => "credential_malformed",
    CredentialAmbiguous => "credential_ambiguous",
    TokenInvalid => "token_invalid",
    TokenExpired => "token_expired",
    TokenNotYetValid => "token_not_yet_valid",
    TokenRevoked => "token_revoked",
    TokenInactive => "token_inactive",
    AudienceMismatch => "audience_mismatch",
    IssuerUnknown => "issuer_unknown",
    KeyUnknown => "key_unknown",
    SignatureInvalid => "signature_invalid",
    SessionExpired => "session_expired",
    /// Too many refusals without a session.
    TooManyRefusals => "too_many_refusals",
    // The decision.
    PolicyDenied => "policy_denied",
    /// By Kubernetes RBAC, where Doorward asks the API server.
    KubernetesDenied => "kubernetes_denied",
    NoRuleMatched => "no_rule_matched",
    NeedUnmet => "need_unmet",
    ApprovalRequired => "approval_required",
    IdentityRefused => "identity_refused",
    ImpersonationRefused => "impersonation_refused",
    OriginRefused => "origin_refused",
    ReplayedDelivery => "replayed_delivery",
    DeliveryInFlight => "delivery_in_flight",
    // Our own trouble, or an upstream's.
    IssuerUnavailable => "issuer_unavailable",
    StoreUnavailable => "store_unavailable",
    AuditUnavailable => "audit_unavailable",
    Overloaded => "overloaded",
    Draining => "draining",
    UpstreamUnreachable => "upstream_unreachable",
    UpstreamTimeout => "upstream_timeout",
    UpstreamProtocol => "upstream_protocol",
    UpstreamFailed => "upstream_failed",
    UpstreamCredential => "upstream_credential",
    Internal => "internal",
}

impl Reason {
    /// The status for this reason, unless the refusal sets another.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::PathNotCanonical | Self::CredentialAmbiguous | Self::UpgradeRefused => {
                StatusCode::BAD_REQUEST
            }
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RouteNotFound => StatusCode::NOT_FOUND,
            Self::MisdirectedHost => StatusCode::MISDIRECTED_REQUEST,
            Self::CredentialMissing
            | Self::CredentialMalformed
            | Self::TokenInvalid
            | Self::TokenExpired
            | Self::TokenNotYetValid
            | Self::TokenRevoked
            | Self::TokenInactive
            | Self::AudienceMismatch
            | Self::IssuerUnknown
            | Self::KeyUnknown
            | Self::SignatureInvalid
            | Self::SessionExpired
            // RFC 9470 section 3: the credential is valid but not sufficient.
            | Self::NeedUnmet => StatusCode::UNAUTHORIZED,
            Self::TooManyRefusals => StatusCode::TOO_MANY_REQUESTS,
            Self::PolicyDenied
            | Self::KubernetesDenied
            | Self::NoRuleMatched
            | Self::ApprovalRequired
            | Self::IdentityRefused
            | Self::ImpersonationRefused
            | Self::OriginRefused => StatusCode::FORBIDDEN,
            Self::ReplayedDelivery => StatusCode::OK,
            Self::DeliveryInFlight
            | Self::IssuerUnavailable
            | Self::StoreUnavailable
            | Self::AuditUnavailable
            | Self::Overloaded
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamUnreachable | Self::UpstreamProtocol | Self::UpstreamFailed | Self::UpstreamCredential => {
                StatusCode::BAD_GATEWAY
            }
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Whether an upstream is to blame.
    pub const fn is_of_upstream(self) -> bool {
        matches!(
            self,
            Self::UpstreamUnreachable
                | Self::UpstreamTimeout
                | Self::UpstreamProtocol
                | Self::UpstreamFailed
                | Self::UpstreamCredential
        )
    }

    /// Whether it is a decision about a known caller, which a retry does not change.
    pub fn is_decision(self) -> bool {
        self.status() == StatusCode::FORBIDDEN || matches!(self, Self::NeedUnmet | Self::TokenRevoked)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The identity of a credential that was verified and refused nevertheless: it cannot be used, or is revoked. For the
/// audit trail only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentedIdentity {
    /// The name of the issuer in the configuration.
    pub issuer: Arc<str>,
    /// The issuer's identifier for the caller.
    pub subject: Arc<str>,
    /// What the user name would be made from, if that was refused and is not the subject.
    pub user: Option<Box<str>>,
    /// The group that was refused.
    pub group: Option<Box<str>>,
    /// Which credential it was, for an operator who wants to revoke it alone.
    pub credential: CredentialId,
}

impl PresentedIdentity {
    /// The identity of a caller whose credential is refused although its identity can be used.
    pub fn of(principal: &Principal) -> Self {
        Self {
            issuer: Arc::clone(&principal.issuer),
            subject: Arc::clone(&principal.subject),
            user: None,
            group: None,
            credential: principal.credential.clone(),
        }
    }
}

/// A refusal. `request::respond` alone turns it into a response.
#[derive(Debug)]
pub struct Rejection(Box<Inner>);

#[derive(Debug)]
struct Inner {
    reason: Reason,
    detail: Cow<'static, str>,
    fix: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
    allow: Option<Cow<'static, str>>,
    status: Option<StatusCode>,
    upstream_status: Option<StatusCode>,
    rule: Option<Arc<str>>,
    presented: Option<PresentedIdentity>,
    needed_scopes: Vec<String>,
    needed_login: Option<NeededLogin>,
    misuses_bearer: bool,
    is_for_websocket_version: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Rejection {
    /// `detail` is for the caller: what happened and why, without secrets. It is a clause without a full stop at the
    /// end, in lower case unless it begins with a name, an acronym or code in backticks: `no rule allows this request`.
    /// [`Self::in_words`] and pages make sentences of it; all other responses have it as it is.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        debug_assert!(!detail.ends_with('.'), "the detail of a refusal is a clause: {detail}");
        let retry_after = (reason.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
        Self(Box::new(Inner {
            reason,
            detail,
            fix: None,
            retry_after,
            allow: None,
            status: None,
            upstream_status: None,
            rule: None,
            presented: None,
            needed_scopes: Vec::new(),
            needed_login: None,
            misuses_bearer: false,
            is_for_websocket_version: false,
            source: None,
        }))
    }

    /// `allow` has the methods that are accepted there, in the form of `Allow`, which every 405 must have (RFC 9110
    /// section 15.5.6). It is empty if there are none.
    pub fn method_not_allowed(allow: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        let mut rejection = Self::new(Reason::MethodNotAllowed, detail);
        rejection.0.allow = Some(allow.into());
        rejection
    }

    /// `max` is the number of bytes that are accepted.
    pub fn body_too_large(max: u64) -> Self {
        Self::new(Reason::BodyTooLarge, format!("the body is larger than {max} bytes")).fix("send a smaller body")
    }

    /// The request needs more memory than is available at the moment.
    pub fn short_of_memory() -> Self {
        Self::new(Reason::Overloaded, "Doorward is short of memory").fix("try again in a moment")
    }

    /// What the caller can do next: a clause, as the detail is.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        let fix = fix.into();
        debug_assert!(!fix.ends_with('.'), "the fix of a refusal is a clause: {fix}");
        self.0.fix = Some(fix);
        self
    }

    /// Replaces detail and fix for a caller who may know more than others.
    #[must_use]
    pub fn reworded(mut self, detail: impl Into<Cow<'static, str>>, fix: impl Into<Cow<'static, str>>) -> Self {
        self.0.detail = detail.into();
        self.fix(fix)
    }

    #[must_use]
    pub fn with_retry_after(mut self, span: Duration) -> Self {
        self.0.retry_after = Some(span);
        self
    }

    /// Sets another status than that of the reason, for callers whose protocol gives that one another meaning.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = Some(status);
        self
    }

    /// The upstream's status, if the caller gets another one.
    #[must_use]
    pub fn with_upstream_status(mut self, status: StatusCode) -> Self {
        self.0.upstream_status = Some(status);
        self
    }

    /// The rule that decided.
    #[must_use]
    pub fn with_rule(mut self, id: Arc<str>) -> Self {
        self.0.rule = Some(id);
        self
    }

    /// The identity that the verified credential names.
    #[must_use]
    pub fn with_presented(mut self, presented: PresentedIdentity) -> Self {
        self.0.presented = Some(presented);
        self
    }

    /// The scopes that a token would need, for the `insufficient_scope` challenge (RFC 6750 section 3).
    #[must_use]
    pub fn needs_scopes(mut self, scopes: Vec<String>) -> Self {
        self.0.needed_scopes = scopes;
        self
    }

    /// The login that would suffice, for the `insufficient_user_authentication` challenge (RFC 9470 section 3), or beside
    /// [scopes](Self::needs_scopes) that are missing too.
    #[must_use]
    pub fn needs_login(mut self, needed: NeededLogin) -> Self {
        self.0.needed_login = Some(needed);
        self
    }

    /// Marks a request that carries a bearer token in a way, or as often, as is not allowed, for the `invalid_request`
    /// challenge (RFC 6750 section 3.1).
    #[must_use]
    pub fn misuses_bearer(mut self) -> Self {
        self.0.misuses_bearer = true;
        self
    }

    /// Marks a WebSocket handshake of a version that is not known, for which the response names the one that is (RFC
    /// 6455 section 4.2.2).
    #[must_use]
    pub fn names_websocket_version(mut self) -> Self {
        self.0.is_for_websocket_version = true;
        self
    }

    /// The cause, for the log and for operators only.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    pub fn status(&self) -> StatusCode {
        self.0.status.unwrap_or_else(|| self.0.reason.status())
    }

    pub fn upstream_status(&self) -> Option<StatusCode> {
        self.0.upstream_status
    }

    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    pub fn fix_text(&self) -> Option<&str> {
        self.0.fix.as_deref()
    }

    /// What happened and what to do about it, as two sentences for the middle of a text: the first begins in lower
    /// case, and the last has no full stop.
    pub fn in_words(&self) -> String {
        let detail = self.detail();
        let Some(fix) = self.fix_text() else { return detail.to_owned() };
        let mut fix = fix.chars();
        let first = fix.next().into_iter().flat_map(char::to_uppercase);
        format!("{detail}. {}", first.chain(fix).collect::<String>())
    }

    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The methods that are accepted there, if that of the request is not.
    pub fn allow(&self) -> Option<&str> {
        self.0.allow.as_deref()
    }

    pub fn rule(&self) -> Option<&Arc<str>> {
        self.0.rule.as_ref()
    }

    /// The identity in the credential, if that was verified and refused nevertheless.
    pub fn presented(&self) -> Option<&PresentedIdentity> {
        self.0.presented.as_ref()
    }

    /// The error given to [`Self::because`] and its causes, in one line; `None` if there is none.
    pub fn causes(&self) -> Option<String> {
        let mut cause = self.source()?;
        let mut text = cause.to_string();
        while let Some(next) = cause.source() {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next;
        }
        Some(text)
    }

    /// The detail with its causes, in one line, for operators only.
    pub fn in_full(&self) -> String {
        let detail = self.detail();
        match self.causes() {
            // The detail is the text of its cause, such as that of an `UpstreamError`.
            Some(causes) if causes.starts_with(detail) => causes,
            Some(causes) => format!("{detail}: {causes}"),
            None => detail.to_owned(),
        }
    }

    pub fn needed_scopes(&self) -> &[String] {
        &self.0.needed_scopes
    }

    /// Whether it is about the way in which the request carries a bearer token.
    pub fn is_for_misuse_of_bearer(&self) -> bool {
        self.0.misuses_bearer
    }

    /// Whether the response names the version of WebSockets.
    pub fn is_for_websocket_version(&self) -> bool {
        self.0.is_for_websocket_version
    }

    pub fn needed_login(&self) -> Option<&NeededLogin> {
        self.0.needed_login.as_ref()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.reason, self.0.detail)
    }
}

impl StdError for Rejection {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{UpstreamError, UpstreamErrorKind};

    #[test]
    fn the_reason_and_the_remedy_are_two_sentences() {
        let rejection = Rejection::new(Reason::SessionExpired, "it has ended");
        assert_eq!(rejection.in_words(), "it has ended");
        assert_eq!(rejection.fix("sign in again").in_words(), "it has ended. Sign in again");
    }

    /// Some were sentences, and clients read both kinds in the same JSON object.
    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "is a clause")]
    fn a_detail_that_is_a_sentence_is_a_mistake() {
        let _ = Rejection::new(Reason::Internal, "It failed.");
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "is a clause")]
    fn a_fix_that_is_a_sentence_is_a_mistake() {
        let _ = Rejection::new(Reason::Internal, "it failed").fix("Try again.");
    }

    #[test]
    fn all_causes_of_an_error_are_printed_on_one_line() {
        let rejection = Rejection::new(Reason::Internal, "it failed");
        assert_eq!(rejection.causes(), None);
        let cause = Rejection::new(Reason::UpstreamFailed, "no answer").because("the connection was reset");
        assert_eq!(rejection.because(cause).causes().unwrap(), "upstream_failed: no answer: the connection was reset");
    }

    #[test]
    fn operators_read_the_detail_once_and_then_its_causes() {
        let rejection = Rejection::new(Reason::Internal, "it failed");
        assert_eq!(rejection.in_full(), "it failed");
        assert_eq!(rejection.because("no room").in_full(), "it failed: no room");
        let error = UpstreamError::new(UpstreamErrorKind::Unreachable, &"board".into()).because("refused");
        assert_eq!(Rejection::from(error).in_full(), "the upstream `board` cannot be reached: refused");
    }
}
