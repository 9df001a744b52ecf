//! Warnings about rules and grants that reach other callers than their authors have in mind.

use crate::{
    authn::break_glass,
    config::{
        raw::{self, Preset, RouteKind, Scheme},
        report::{At, Report},
    },
};

/// What makes an address trustworthy, as help.
pub(super) const VERIFIED_EMAIL: &str = "look at `principal.email` in `when`, which is absent unless the issuer says \
                                         that it is verified, or add `email_verified: [true]` to `required_claims` of \
                                         the issuer";

/// Warns of an address in `claims` that the callers may have chosen for themselves, in an allow or a grant.
pub(super) fn warn_of_email(who: &raw::Who, at: &At, root: &raw::Root, report: &mut Report) {
    let named = who.claims.keys().find(|path| is_claim(path, "email"));
    if let Some(path) = named.filter(|_| may_have_unverified_email(who, root)) {
        report
            .warning(
                &at.key("claims").key(path),
                "this claim is compared whether or not the address is verified: where people choose it themselves, \
                 anybody can have it",
            )
            .help(VERIFIED_EMAIL);
    }
}

/// Whether callers may have a claim `email` that nobody has verified.
pub(super) fn may_have_unverified_email(who: &raw::Who, root: &raw::Root) -> bool {
    let is_verified = |path: &String| is_claim(path, "email_verified");
    let may_be_unverified = |issuer: &raw::Issuer| {
        // The other presets have no such claim, and GitHub tells of verified addresses alone.
        let tells_of_none = matches!(
            issuer.preset,
            Some(
                Preset::GithubOauth | Preset::GithubActions | Preset::GitlabCi | Preset::Kubernetes | Preset::Doorward
            )
        );
        !tells_of_none && !issuer.required_claims.keys().any(is_verified)
    };
    let mut meant = root.issuers.iter().filter(|issuer| who.issuers.is_empty() || who.issuers.contains(&issuer.name));
    !who.claims.keys().any(is_verified) && meant.any(may_be_unverified)
}

/// Whether a caller whom `who` may mean can come by a route.
pub(super) fn may_come_by(who: &raw::Who, route: &raw::Route) -> bool {
    let has = |schemes: &[Scheme]| schemes.iter().any(|scheme| route.schemes.contains(scheme));
    if who.anonymous {
        return has(&[Scheme::Anonymous]);
    }
    if !who.webhooks.is_empty() {
        return route.webhook.as_ref().is_some_and(|webhook| who.webhooks.contains(webhook));
    }
    if who.issuers.is_empty() {
        // Most keys ask for what deliveries do not have.
        return route.kind != RouteKind::Webhook || *who == raw::Who::default();
    }
    who.issuers.iter().any(|name| match name == break_glass::ISSUER {
        true => has(&[Scheme::BreakGlass]),
        false => has(&[Scheme::Bearer, Scheme::Session]) && route.takes_issuer(name),
    })
}

/// Whether the place of a claim, a name or a JSON pointer, is that of this one.
fn is_claim(path: &str, name: &str) -> bool {
    path.strip_prefix('/').unwrap_or(path) == name
}
