//! The one way in which a request is refused. Every refusal says what happened, why, and what to do next; what only
//! an operator may know travels beside it and goes to the log.

use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use http::StatusCode;

/// Why a request was refused: a small closed set, the label of metrics and the `reason` of the audit trail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    // The request itself.
    BadRequest,
    PathNotCanonical,
    UriTooLong,
    HeadersTooLarge,
    BodyTooLarge,
    BodyTimeout,
    UnsupportedMediaType,
    MethodNotAllowed,
    RouteNotFound,
    MisdirectedHost,
    UpgradeRefused,
    // The caller's credential.
    CredentialMissing,
    CredentialMalformed,
    CredentialAmbiguous,
    TokenInvalid,
    TokenExpired,
    TokenNotYetValid,
    TokenRevoked,
    TokenInactive,
    AudienceMismatch,
    IssuerUnknown,
    KeyUnknown,
    SignatureInvalid,
    SessionExpired,
    // The decision.
    PolicyDenied,
    /// By RBAC, where Doorward asks for it.
    KubernetesDenied,
    NoRuleMatched,
    NeedUnmet,
    ApprovalRequired,
    IdentityRefused,
    ImpersonationRefused,
    OriginRefused,
    ReplayedDelivery,
    DeliveryInFlight,
    // Our own trouble, or an upstream's.
    IssuerUnavailable,
    StoreUnavailable,
    AuditUnavailable,
    Overloaded,
    Draining,
    UpstreamUnreachable,
    UpstreamTimeout,
    UpstreamProtocol,
    UpstreamFailed,
    UpstreamCredential,
    Internal,
}

impl Reason {
    /// The label, snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::PathNotCanonical => "path_not_canonical",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RouteNotFound => "route_not_found",
            Self::MisdirectedHost => "misdirected_host",
            Self::UpgradeRefused => "upgrade_refused",
            Self::CredentialMissing => "credential_missing",
            Self::CredentialMalformed => "credential_malformed",
            Self::CredentialAmbiguous => "credential_ambiguous",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenRevoked => "token_revoked",
            Self::TokenInactive => "token_inactive",
            Self::AudienceMismatch => "audience_mismatch",
            Self::IssuerUnknown => "issuer_unknown",
            Self::KeyUnknown => "key_unknown",
            Self::SignatureInvalid => "signature_invalid",
            Self::SessionExpired => "session_expired",
            Self::PolicyDenied => "policy_denied",
            Self::KubernetesDenied => "kubernetes_denied",
            Self::NoRuleMatched => "no_rule_matched",
            Self::NeedUnmet => "need_unmet",
            Self::ApprovalRequired => "approval_required",
            Self::IdentityRefused => "identity_refused",
            Self::ImpersonationRefused => "impersonation_refused",
            Self::OriginRefused => "origin_refused",
            Self::ReplayedDelivery => "replayed_delivery",
            Self::DeliveryInFlight => "delivery_in_flight",
            Self::IssuerUnavailable => "issuer_unavailable",
            Self::StoreUnavailable => "store_unavailable",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::UpstreamFailed => "upstream_failed",
            Self::UpstreamCredential => "upstream_credential",
            Self::Internal => "internal",
        }
    }

    /// The status that goes with it unless the refusal says otherwise.
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
            | Self::SessionExpired => StatusCode::UNAUTHORIZED,
            Self::PolicyDenied
            | Self::KubernetesDenied
            | Self::NoRuleMatched
            | Self::NeedUnmet
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
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
    status: Option<StatusCode>,
    rule: Option<std::sync::Arc<str>>,
    needed_scopes: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Rejection {
    /// `detail` is for the caller: what happened and why, in a sentence, without secrets.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (reason.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
        Self(Box::new(Inner {
            reason,
            detail: detail.into(),
            fix: None,
            retry_after,
            status: None,
            rule: None,
            needed_scopes: Vec::new(),
            source: None,
        }))
    }

    /// What the caller can do next.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<Cow<'static, str>>) -> Self {
        self.0.fix = Some(fix.into());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, span: Duration) -> Self {
        self.0.retry_after = Some(span);
        self
    }

    /// Another status than that of the reason, where the caller's protocol gives that one another meaning.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.0.status = Some(status);
        self
    }

    /// The rule that decided.
    #[must_use]
    pub fn rule(mut self, id: std::sync::Arc<str>) -> Self {
        self.0.rule = Some(id);
        self
    }

    /// The scopes that a token would need, for the `insufficient_scope` challenge (RFC 6750 section 3).
    #[must_use]
    pub fn needs_scopes(mut self, scopes: Vec<String>) -> Self {
        self.0.needed_scopes = scopes;
        self
    }

    /// The cause, for the log only.
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

    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    pub fn fix_text(&self) -> Option<&str> {
        self.0.fix.as_deref()
    }

    pub fn retry_after_span(&self) -> Option<Duration> {
        self.0.retry_after
    }

    pub fn rule_id(&self) -> Option<&std::sync::Arc<str>> {
        self.0.rule.as_ref()
    }

    pub fn needed_scopes(&self) -> &[String] {
        &self.0.needed_scopes
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
