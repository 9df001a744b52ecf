//! Redirect addresses. A response that does not name its issuer (RFC 9207) may be from another provider than the one
//! where the login began, which would then be given the other one's code (mix-up, RFC 9700 section 4.4). So with
//! several providers, each that does not name itself has an address of its own, and a response is accepted only at the
//! address that its login was begun with.

use std::borrow::Cow;

use super::Client;
use crate::config::{
    raw::{self, Redirect},
    report::At,
    resolve::is_name,
    resolver::Resolver,
};

/// The path that providers share.
const SHARED: &str = "/oauth2/callback";

/// Whether this is the path of a redirect address.
pub(super) fn leads_back(path: &str) -> bool {
    path.strip_prefix(SHARED).is_some_and(|rest| rest.is_empty() || rest.strip_prefix('/').is_some_and(is_name))
}

/// Whether the provider of `client` has an address of its own: as configured, else if it needs one.
pub fn is_own(client: &Client, names_itself: bool, several: bool) -> bool {
    client.redirect.map_or(several && !names_itself, |redirect| redirect == Redirect::Own)
}

/// Whether a response of another provider would not be noticed. Only an explicit setting makes this possible.
pub fn is_at_risk(client: &Client, names_itself: bool, several: bool) -> bool {
    several && !names_itself && !is_own(client, names_itself, several)
}

/// The path of the redirect address of the provider `name`.
pub fn path(name: &str, own: bool) -> Cow<'static, str> {
    if own { format!("{SHARED}/{name}").into() } else { SHARED.into() }
}

/// Warns about addresses that allow a mix-up. That a name is valid in a path is checked with all names.
pub(super) fn check(issuers: &[raw::Issuer], at: &At, resolver: &mut Resolver) {
    let several = issuers.iter().filter(|issuer| issuer.login.is_some()).count() > 1;
    for (index, issuer) in issuers.iter().enumerate() {
        let Some(login) = &issuer.login else { continue };
        if several && login.redirect == Some(Redirect::Shared) {
            let what = "several providers share a redirect address: unless this one names itself in its answers \
                        (RFC 9207), another one could have its codes taken for those of this one";
            resolver.warning(&at.index(index).key("login").key("redirect"), what).help(format!(
                "remove `redirect`, and register `https://HOST{}` with this provider; `doorward doctor` says which \
                 address it wants",
                path(&issuer.name, true)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(name: &str, login: &str) -> String {
        format!(r#"{{"name": "{name}", "login": {{"client": {{"id": "doorward"}}{login}}}}}"#)
    }

    #[test]
    fn redirect_addresses_that_are_shared_at_a_risk_are_reported() {
        let (shared, own) = (r#", "redirect": "shared""#, r#", "redirect": "own""#);
        for (row, issuers, expected) in [
            ("one", vec![issuer("a", "")], vec![]),
            ("one, shared", vec![issuer("a", shared)], vec![]),
            ("one, own", vec![issuer("a", own)], vec![]),
            ("two", vec![issuer("a", ""), issuer("b.c_d-1", "")], vec![]),
            ("two, shared", vec![issuer("a", ""), issuer("b", shared)], vec!["/1/login/redirect"]),
            ("two, one without login", vec![r#"{"name": "a"}"#.to_owned(), issuer("b", shared)], vec![]),
        ] {
            let issuers: Vec<raw::Issuer> = issuers.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
            let mut resolver = Resolver::default();
            check(&issuers, &At::root(), &mut resolver);
            let places: Vec<_> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
            assert_eq!(places, expected, "{row}");
        }
    }

    #[test]
    fn only_own_addresses_are_return_addresses() {
        for (path, expected) in [
            ("/oauth2/callback", true),
            ("/oauth2/callback/a", true),
            ("/oauth2/callback/", false),
            ("/oauth2/callback/a/b", false),
            ("/oauth2/callback/..", false),
            ("/oauth2/callbacks", false),
            ("/oauth2", false),
        ] {
            assert_eq!(leads_back(path), expected, "{path}");
        }
    }
}
