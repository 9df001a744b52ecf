//! Somebody who is signed in, and whose login is not enough for what a rule needs: the way to one that is.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::respond::Manner;
use crate::{
    authn::{Principal, Scheme},
    error::Rejection,
    oidc::{Login, redirect_to},
};

/// Sends who looks at a page to their provider, from where they come back to it; shows the way there to who sent a form, which would be
/// lost on it; tells who calls from a page where to go, and who signed in from a shell what to run. Whoever comes with a token of their
/// provider reads it in the challenge.
pub(super) fn offer(
    rejection: Rejection,
    login: &Login,
    principal: Option<&Principal>,
    host: &str,
    manner: &mut Manner,
) -> Result<Response<Bytes>, Rejection> {
    // Not to nginx, which asks in somebody's name and understands neither.
    let needed = rejection.needed_login().filter(|_| rejection.status() == StatusCode::UNAUTHORIZED);
    let principal = principal.filter(|principal| principal.scheme == Scheme::Session);
    let (Some(needed), Some(principal)) = (needed, principal) else { return Err(rejection) };
    if manner.is_program {
        let options = needed.options();
        let address = manner.address(host);
        return Err(rejection.fix(format!("Run `doorward login{options} {address}`, which asks for what is needed.")));
    }
    let back = manner.back.as_deref().or(manner.form.as_deref()).unwrap_or("/");
    let location = login.step_up(&principal.issuer, needed, back);
    match manner.back {
        Some(_) => Ok(redirect_to(&location)),
        None if manner.is_page => {
            manner.step_up = Some(location);
            Err(rejection.fix(
                "Sign in again, with what is needed. Then fill in the form and send it again, as it was not sent.",
            ))
        }
        None => Err(rejection.fix(format!("Sign in again, with what is needed, at {location} of this host."))),
    }
}
