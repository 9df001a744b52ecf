//! Checks of an entry for GitHub, which signs no tokens for its users and supports few parameters of an OpenID Connect
//! login.

use url::Url;

use crate::config::{
    raw::{self, Preset, Prompt},
    report::{At, Report},
};

/// Reports missing settings, and settings without effect, of an entry with the preset `github_oauth`.
pub(super) fn check(raw: &raw::Issuer, at: &At, report: &mut Report) {
    if raw.preset != Some(Preset::GithubOauth) {
        return;
    }
    if raw.tenant.as_deref().is_none_or(|tenant| tenant.trim().is_empty()) {
        report
            .error(&at.key("tenant"), "everybody who has an account at GitHub could sign in")
            .help("name the organisation whose members may, or write its number, which is never reused");
    }
    if Url::parse(&raw.issuer).is_ok_and(|url| url.path() != "/" || url.query().is_some()) || raw.issuer.ends_with('/')
    {
        report
            .error(&at.key("issuer"), format!("`{}` is not the address of a GitHub server alone", raw.issuer))
            .help("write `https://HOST` without a path or a trailing slash; for github.com leave it out");
    }
    for (key, written) in [
        ("audiences", !raw.audiences.is_empty()),
        ("algorithms", raw.algorithms.is_some()),
        ("token_types", raw.token_types.is_some()),
        ("clock_skew", raw.clock_skew.is_some()),
        ("max_lifetime", raw.max_lifetime.is_some()),
        ("introspection", raw.introspection.is_some()),
        ("keys", raw.keys != raw::KeySet::default()),
        ("token_review", raw.token_review.is_some()),
        ("listed_clients_only", raw.listed_clients_only),
    ] {
        if written {
            report
                .error(&at.key(key), format!("`{key}` is about tokens, and GitHub signs none for people"))
                .help("leave it out; for jobs of GitHub Actions add an entry with `preset: github_actions`");
        }
    }
    let Some(login) = &raw.login else {
        report
            .error(&at.key("login"), "an entry for GitHub needs a `login`")
            .help("write `login` with the client id and secret of an OAuth app or a GitHub App");
        return;
    };
    let at = at.key("login");
    for (key, written) in [
        ("prompt", login.prompt.is_some_and(|prompt| prompt != Prompt::SelectAccount)),
        ("domain_hint", login.domain_hint.is_some()),
        ("acr_values", !login.acr_values.is_empty()),
        ("mfa_acr_values", !login.mfa_acr_values.is_empty()),
        ("max_age", login.max_age.is_some()),
    ] {
        if written {
            report
                .error(&at.key(key), format!("GitHub does not support `{key}`, so it would have no effect"))
                .help("leave it out; an organisation can require two factors and single sign-on of its members itself");
        }
    }
    if login.client.secret.is_none() {
        report
            .error(&at.key("client"), "GitHub authenticates applications by a secret only")
            .help("write `secret: {file: …}` with the client secret of the application");
    }
}
