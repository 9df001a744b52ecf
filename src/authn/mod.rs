//! Authentication: which credential a request carries, and whose it is.
//!
//! A route lists its schemes. They are tried in order, and the first whose credential is present decides: an invalid
//! credential never falls through to the next scheme. A bearer token takes precedence over a cookie wherever both could
//! count, because a browser adds the cookie by itself, while a program sends the token on purpose.
//!
//! | file | holds |
//! |---|---|
//! | `schemes` | the schemes of a route, tried in order |
//! | `bearer`, `break_glass` | bearer tokens, and named client certificates for emergencies |
//! | `principal`, `authenticated` | the caller, and the proof that a request has one |
//! | `needed_login` | what a rule needs of a login |
//! | `endpoint_audit` | the caller and the audit reservation of a request for Doorward itself |

mod authenticated;
pub(crate) mod bearer;
pub(crate) mod break_glass;
mod endpoint_audit;
mod needed_login;
pub(crate) mod principal;
mod schemes;

pub use self::authenticated::Authenticated;
pub(crate) use self::{
    endpoint_audit::EndpointAudit,
    needed_login::NeededLogin,
    principal::{Actor, CredentialId, KeyId, Kind, KnownAs, KnownToken, LoginFacts, Principal, Scheme},
    schemes::{Authentication, Authenticator, USE_HTTPS, stored_delivery, wanted},
};
use crate::error::Rejection;

/// The result of a scheme for a request.
#[derive(Debug)]
pub enum Presented<T> {
    /// The request carries no credential of this scheme; the next scheme is tried.
    Absent,
    /// The credential is valid.
    Valid(T),
    /// The credential is present and invalid.
    Invalid(Rejection),
}

impl<T> Presented<T> {
    pub fn map<U>(self, good: impl FnOnce(T) -> U) -> Presented<U> {
        match self {
            Self::Absent => Presented::Absent,
            Self::Valid(found) => Presented::Valid(good(found)),
            Self::Invalid(rejection) => Presented::Invalid(rejection),
        }
    }
}
