//! The choice among several providers: the last choice of the browser, and the page that asks.

use std::{sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use http::HeaderValue;
use url::form_urlencoded;

use super::{Login, LoginRequest, Outcome, Provider, SIGN_IN, START, failure::Failure, parameters::encode};
use crate::{authn::NeededLogin, pages::Choice, sessions::cookie};

/// Holds the name of an issuer. It needs no protection: changing it only selects another of the providers that
/// everybody may choose.
const COOKIE: &str = "__Host-doorward-provider";

const LASTS: Duration = Duration::from_secs(365 * 24 * 3600);

/// The `Set-Cookie` line that remembers a choice that led to a session.
pub fn remember(issuer: &str) -> HeaderValue {
    cookie::set(COOKIE, &BASE64URL_NOPAD.encode(issuer.as_bytes()), Some(LASTS))
}

impl Login {
    /// The providers whose sessions the host of the request accepts.
    fn offered(&self, request: LoginRequest<'_>) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.0.providers.iter().filter(move |provider| !request.left_out.contains(provider.name()))
    }

    /// The only provider that is offered; `None` if there are several or none.
    pub(super) fn only_offered(&self, request: LoginRequest<'_>) -> Option<&Arc<dyn Provider>> {
        let mut offered = self.offered(request);
        offered.next().filter(|_| offered.next().is_none())
    }

    pub(super) fn offered_as(&self, name: &str, request: LoginRequest<'_>) -> Option<&Arc<dyn Provider>> {
        self.offered(request).find(|provider| **provider.name() == *name)
    }

    /// The offered provider with this name.
    pub(super) fn chosen(&self, name: &str, request: LoginRequest<'_>) -> Result<&Arc<dyn Provider>, Failure> {
        self.offered_as(name, request).ok_or_else(|| {
            Failure::new(Outcome::malformed, "There is no such provider here. Choose one of those that are offered.")
        })
    }

    /// The provider that this browser used last, if it is still offered.
    pub(super) fn chosen_before(&self, request: LoginRequest<'_>) -> Option<&Arc<dyn Provider>> {
        let value = cookie::find(request.headers, COOKIE).ok()??;
        let name = BASE64URL_NOPAD.decode(value).ok()?;
        self.offered_as(std::str::from_utf8(&name).ok()?, request)
    }

    /// The offered providers in the order of the configuration, but the one used last first. `href` returns the address
    /// for the name of an issuer.
    pub(super) fn choices(&self, request: LoginRequest<'_>, href: impl Fn(&str) -> String) -> Vec<Choice> {
        let last = self.chosen_before(request);
        let mut choices: Vec<Choice> = self
            .offered(request)
            .map(|provider| Choice {
                name: label(&**provider),
                href: href(provider.name()),
                used_last: last.is_some_and(|last| last.name() == provider.name()),
            })
            .collect();
        choices.sort_by_key(|choice| !choice.used_last);
        choices
    }
}

/// The name of a provider for people.
pub(super) fn label(provider: &dyn Provider) -> String {
    provider.client().label.as_ref().unwrap_or_else(|| provider.name()).to_string()
}

/// The address of the page with the providers, for a login that returns to `return_to` if that is an address of ours.
pub fn sign_in_page(return_to: &str) -> String {
    format!("{SIGN_IN}?rd={}", encode(return_to))
}

/// The address of a login at an issuer that must satisfy `needed`.
pub(super) fn start(issuer: &str, needed: Option<&NeededLogin>, return_to: &str) -> String {
    way(START, issuer, needed, return_to)
}

/// The address of a login in which the person must authenticate again.
pub(super) fn start_anew(issuer: &str, needed: Option<&NeededLogin>, return_to: &str) -> String {
    way(&format!("{START}?prompt=login"), issuer, needed, return_to)
}

/// An address of the login. The return address is last, so that the script can append the fragment to it.
pub(super) fn way(path: &str, issuer: &str, needed: Option<&NeededLogin>, return_to: &str) -> String {
    let path = format!("{path}{}", if path.contains('?') { '&' } else { '?' });
    let begins = path.len();
    let mut query = form_urlencoded::Serializer::for_suffix(path, begins);
    query.append_pair("issuer", issuer);
    query.extend_pairs(needed.map(NeededLogin::parameters).unwrap_or_default());
    query.append_pair("rd", return_to).finish()
}
