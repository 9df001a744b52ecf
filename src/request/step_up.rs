//! Somebody who is signed in, and whose login is not enough for what a rule needs: the way to one that is.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::respond::Manner;
use crate::{
    authn::{Principal, Scheme},
    error::Rejection,
    oidc::{Login, redirect_to},
};

/// Sends who looks at a page to their provider, from where they come back to it; tells who calls from a page where to go, and
/// who signed in from a shell what to run. Whoever comes with a token of their provider reads it in the challenge.
pub(super) fn offer(
    rejection: Rejection,
    login: &Login,
    principal: Option<&Principal>,
    manner: &Manner,
) -> Result<Response<Bytes>, Rejection> {
    // Not to nginx, which asks in somebody's name and understands neither.
    let needed = rejection.needed_login().filter(|_| rejection.status() == StatusCode::UNAUTHORIZED);
    let principal = principal.filter(|principal| principal.scheme == Scheme::Session);
    let (Some(needed), Some(principal)) = (needed, principal) else { return Err(rejection) };
    if manner.is_program {
        let options = needed.options();
        return Err(rejection.fix(format!("Run `doorward login{options}` again, for this address.")));
    }
    let location = login.step_up(&principal.issuer, needed, manner.back.as_deref().unwrap_or("/"));
    match manner.back {
        Some(_) => Ok(redirect_to(&location)),
        None => Err(rejection.fix(format!("Sign in again, with what is needed, at {location} of this host."))),
    }
}
