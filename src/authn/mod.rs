//! Authentication: which credential a request carries, and whom it proves.
//!
//! A route lists its schemes. They are asked in order, and the first whose credential is there decides: one that is
//! bad is never rescued by the next. A bearer token goes before a cookie wherever both could count, since a browser
//! adds the cookie by itself and a program the token on purpose.

mod authenticated;
pub(crate) mod bearer;
pub(crate) mod break_glass;
mod needed_login;
pub(crate) mod principal;
mod schemes;
mod whose;

pub use self::authenticated::Authenticated;
pub(crate) use self::{
    needed_login::NeededLogin,
    principal::{Actor, CredentialId, KeyId, Kind, KnownAs, LoginFacts, Principal, Scheme},
    schemes::{Authentication, Authenticator, stored_delivery, wanted},
    whose::Whose,
};
use crate::error::Rejection;

/// What a scheme says about a request.
#[derive(Debug)]
pub enum Presented<T> {
    /// The request carries no credential of this scheme; the next one is asked.
    Not,
    /// The credential is good.
    Good(T),
    /// The credential is there and bad.
    Bad(Rejection),
}

impl<T> Presented<T> {
    pub fn map<U>(self, good: impl FnOnce(T) -> U) -> Presented<U> {
        match self {
            Self::Not => Presented::Not,
            Self::Good(found) => Presented::Good(good(found)),
            Self::Bad(rejection) => Presented::Bad(rejection),
        }
    }
}
