//! Step-up: somebody is signed in, but with a login that does not meet what a rule needs.

use bytes::Bytes;
use http::Response;

use super::respond::Manner;
use crate::{
    authn::{Principal, Scheme},
    config::raw::ForwardAuth,
    error::Rejection,
    oidc::{Login, redirect_to},
};

/// Offers the caller a login that suffices. A page navigation is redirected to the provider and returns to the same
/// page. A form submission, which a redirect would lose, is shown the way. A call from a page is told the address, and
/// a program is told which `doorward login` to run. A caller with a token of their provider gets the challenge instead.
pub(super) fn offer(
    rejection: Rejection,
    login: &Login,
    principal: Option<&Principal>,
    host: &str,
    manner: &mut Manner,
) -> Result<Response<Bytes>, Rejection> {
    // nginx understands nothing but a status, and a login alone gives nobody a missing scope.
    let helps = manner.proxy != Some(ForwardAuth::Nginx) && rejection.needed_scopes().is_empty();
    let needed = rejection.needed_login().filter(|_| helps);
    let principal = principal.filter(|principal| principal.scheme == Scheme::Session);
    let (Some(needed), Some(principal)) = (needed, principal) else { return Err(rejection) };
    if manner.is_program {
        let options = needed.options();
        let address = manner.address(host);
        return Err(rejection.fix(format!("run `doorward login{options} {address}`, which asks for what is needed")));
    }
    let back = manner.back.as_deref().or(manner.form.as_deref()).unwrap_or("/");
    let location = login.step_up(&principal.issuer, needed, back);
    match manner.back {
        Some(_) => Ok(redirect_to(&location)),
        None if manner.is_page => {
            manner.step_up = Some(location);
            Err(rejection
                .fix("sign in again, with what is needed; then fill in the form and send it again, as it was not sent"))
        }
        None => Err(rejection.fix(format!("sign in again, with what is needed, at {location} of this host"))),
    }
}
