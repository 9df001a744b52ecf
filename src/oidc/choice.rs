//! Which provider, where there are several: what the browser chose last, and the page that asks.

use std::{sync::Arc, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use http::HeaderValue;
use url::form_urlencoded;

use super::{Login, LoginRequest, Outcome, Provider, START, failure::Failure};
use crate::{authn::NeededLogin, pages::Choice, sessions::cookie};

/// Holds the name of an issuer, which is no secret and is worth nothing: whoever changes it chooses another of the
/// providers that everybody may choose.
const COOKIE: &str = "__Host-doorward-provider";

const LASTS: Duration = Duration::from_secs(365 * 24 * 3600);

/// The line that remembers a choice that worked.
pub fn remember(issuer: &str) -> HeaderValue {
    cookie::set(COOKIE, &BASE64URL_NOPAD.encode(issuer.as_bytes()), Some(LASTS))
}

impl Login {
    /// Those whose logins are of use at the host of a request.
    fn offered(&self, request: LoginRequest<'_>) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.0.providers.iter().filter(move |provider| !request.left_out.contains(provider.name()))
    }

    /// The one that is offered, where it is one alone.
    pub(super) fn only_offered(&self, request: LoginRequest<'_>) -> Option<&Arc<dyn Provider>> {
        let mut offered = self.offered(request);
        offered.next().filter(|_| offered.next().is_none())
    }

    pub(super) fn offered_as(&self, name: &str, request: LoginRequest<'_>) -> Option<&Arc<dyn Provider>> {
        self.offered(request).find(|provider| **provider.name() == *name)
    }

    /// The one with this name, or what is said where it is not offered.
    pub(super) fn chosen(&self, name: &str, request: LoginRequest<'_>) -> Result<&Arc<dyn Provider>, Failure> {
        self.offered_as(name, request).ok_or_else(|| {
            Failure::new(Outcome::malformed, "There is no such provider here. Choose one of those that are offered.")
        })
    }

    /// The provider that this browser used last, if it is offered still.
    pub(super) fn chosen_before(&self, request: LoginRequest<'_>) -> Option<&Arc<dyn Provider>> {
        let value = cookie::find(request.headers, COOKIE).ok()??;
        let name = BASE64URL_NOPAD.decode(value).ok()?;
        self.offered_as(std::str::from_utf8(&name).ok()?, request)
    }

    /// What is offered, in the order of the configuration, the one that was used last before all. `href` gives the
    /// address that goes with the name of an issuer.
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

/// What people read of a provider.
pub(super) fn label(provider: &dyn Provider) -> String {
    provider.client().label.as_ref().unwrap_or_else(|| provider.name()).to_string()
}

/// Where a login at an issuer begins, which must bring `needed`.
pub(super) fn start(issuer: &str, needed: Option<&NeededLogin>, return_to: &str) -> String {
    way(START, issuer, needed, return_to)
}

/// Where a login begins that has the person authenticate though the provider may know them.
pub(super) fn start_anew(issuer: &str, needed: Option<&NeededLogin>, return_to: &str) -> String {
    way(&format!("{START}?prompt=login"), issuer, needed, return_to)
}

/// An address of the login. The return address stands last, so that the script can add the fragment to it.
pub(super) fn way(path: &str, issuer: &str, needed: Option<&NeededLogin>, return_to: &str) -> String {
    let path = format!("{path}{}", if path.contains('?') { '&' } else { '?' });
    let begins = path.len();
    let mut query = form_urlencoded::Serializer::for_suffix(path, begins);
    query.append_pair("issuer", issuer);
    query.extend_pairs(needed.map(NeededLogin::parameters).unwrap_or_default());
    query.append_pair("rd", return_to).finish()
}
