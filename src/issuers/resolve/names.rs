//! Checks of an entry's issuer identifier, tenants and audiences.

use super::{Builder, login_only};
use crate::{
    config::{
        raw::{self, Preset},
        report::At,
        resolver::Resolver,
    },
    issuers::{defaults, discovery::secure_url, presets, tenants::Tenants},
};

/// Issuers that anybody in the world can use, and the claims that distinguish their customers.
const SHARED_ISSUERS: [(&str, &[&str]); 3] = [
    ("https://token.actions.githubusercontent.com", &["repository_id", "repository_owner_id", "enterprise_id"]),
    ("https://gitlab.com", &["project_id", "namespace_id"]),
    ("https://accounts.google.com", &["hd", "sub"]),
];

/// Whether a token could belong to either entry by its `iss`.
fn share_a_name(one: &raw::Issuer, other: &raw::Issuer) -> bool {
    let names = |raw: &raw::Issuer, iss: &str| match Tenants::new(&raw.issuer, &raw.tenants) {
        Some(tenants) => tenants.named(iss).is_some(),
        None => raw.issuer == iss,
    };
    let tenants = Tenants::new(&one.issuer, &one.tenants);
    one.issuer == other.issuer
        || names(one, &other.issuer)
        || names(other, &one.issuer)
        || tenants.is_some_and(|tenants| tenants.ids().any(|id| names(other, &tenants.issuer_of(id))))
}

/// Reports an issuer that is also one of `others`.
pub(super) fn check_distinct<'r>(
    raw: &raw::Issuer,
    mut others: impl Iterator<Item = &'r raw::Issuer>,
    at: &At,
    resolver: &mut Resolver,
) {
    let Some(other) = others.find(|other| share_a_name(other, raw)) else { return };
    // Each cluster has keys and an API server of its own.
    let is_of_cluster = |raw: &raw::Issuer| raw.preset == Some(Preset::Kubernetes);
    let help = match is_of_cluster(raw) && is_of_cluster(other) {
        true => "give the API server of one of the clusters another `--service-account-issuer`, and write that here",
        false => "put the audiences of both into one entry",
    };
    let message = format!("`{}` is the same issuer; a token could belong to either", other.name);
    resolver.error(&at.key("issuer"), message).help(help);
}

impl Builder<'_> {
    /// Reports an invalid identifier, audiences that prove nothing, and customers that are not distinguished.
    pub(super) fn check_names(&mut self) {
        self.check_identifier();
        login_only::check(self.raw, &self.at, &mut self.resolver.report);
        self.check_audiences();
        self.check_customers();
    }

    fn check_identifier(&mut self) {
        let raw = self.raw;
        if raw.issuer.is_empty() {
            let help = match raw.preset {
                Some(Preset::Entra | Preset::Auth0 | Preset::Okta | Preset::Zitadel) => "write `tenant`, or `issuer`",
                Some(Preset::Cognito) => "write `tenant` with the id of the pool (`REGION_ID`), or `issuer`",
                _ => "write the `iss` of its tokens",
            };
            self.error("issuer", "the issuer is not named").help(help);
            return;
        }
        match secure_url(&raw.issuer) {
            // The text is not repeated, as it may hold a password.
            Err(why) => _ = self.error("issuer", format!("this {why}")),
            // The URL parser accepts these, but for another address than the text has.
            Ok(_) if raw.issuer.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                self.error("issuer", "this has white space or a control character")
                    .help("remove it: `iss` of tokens has none");
            }
            Ok(url) if url.query().is_some() => {
                self.error("issuer", "this has a query (`?`), which no issuer has")
                    .help("write the `iss` of its tokens (OpenID Connect Discovery 1.0 section 3)");
            }
            Ok(url) => {
                let misfit = raw.preset.and_then(|preset| {
                    presets::misfit(preset, &url, !raw.audiences.is_empty(), !raw.tenants.is_empty())
                });
                if let Some((why, help)) = misfit {
                    self.error("issuer", format!("`{}`: {why}", raw.issuer)).help(help);
                }
            }
        }
        let of_tenant = raw.preset.and_then(|preset| presets::identifier(preset, raw.tenant.as_deref()));
        let names_issuer = raw.preset != Some(Preset::GithubOauth);
        if names_issuer && raw.tenant.is_some() && of_tenant.as_ref() != Some(&raw.issuer) {
            let message = match of_tenant {
                Some(_) => "`tenant` and `issuer` are both set, and name different issuers",
                None => "no issuer is known from this `tenant` and `preset`",
            };
            self.error("tenant", message).help("write `issuer` alone");
        }
    }

    fn check_audiences(&mut self) {
        let raw = self.raw;
        // An issuer that is only for logins issues tokens for our client id, which the login checks itself.
        if raw.audiences.is_empty() && raw.login.is_none() {
            self.error("audiences", "there is no audience, so that no token could be accepted")
                .help("write the value of `aud` in tokens that are meant for Doorward");
        }
        for (index, _) in raw.audiences.iter().enumerate().filter(|(_, audience)| audience.is_empty()) {
            self.resolver.error(&self.at.key("audiences").index(index), "an audience is empty");
        }
        let kubernetes_own =
            |audience: &&String| audience.starts_with("https://kubernetes.default.svc") || **audience == raw.issuer;
        if raw.preset == Some(Preset::Kubernetes)
            && let Some(own) = raw.audiences.iter().find(kubernetes_own)
        {
            self.error(
                "audiences",
                format!("`{own}` is the audience of the API server itself, which every pod has a token for"),
            )
            .help("choose an audience of your own and project service-account tokens for it");
        }
        if let Some((audience, with)) = defaults::shared_audience(self.raw)
            && raw.clients.is_empty()
        {
            self.warning(
                "audiences",
                format!("`{audience}` is shared with {with}, so no token is accepted without `clients`"),
            )
            .help("list the clients whose tokens are meant for Doorward, or use an audience of your own");
        }
    }

    /// For an issuer that anybody can use, `required_claims` must distinguish our tenants from others.
    fn check_customers(&mut self) {
        let raw = self.raw;
        let Some((_, claims)) = SHARED_ISSUERS.into_iter().find(|(issuer, _)| *issuer == raw.issuer) else { return };
        let told_apart = claims.iter().any(|claim| {
            raw.required_claims.contains_key(*claim) || raw.required_claims.contains_key(&format!("/{claim}"))
        });
        if !told_apart {
            let message = format!("everybody can get a token of `{}` for any audience", raw.issuer);
            self.error("required_claims", message).help(format!("require one of: {}", claims.join(", ")));
        }
    }

    /// Resolves `tenants`, if the entry has them. Reports problems.
    pub(super) fn tenants(&mut self) -> Option<Tenants> {
        let raw = self.raw;
        if raw.tenants.is_empty() {
            return None;
        }
        if raw.preset != Some(Preset::Entra) || raw.tenant.is_some() {
            let help = "write one entry for each issuer; with `preset: entra` either `tenant` or `tenants`";
            self.error("tenants", "`tenants` is for `entra` alone, and in place of `tenant`").help(help);
        }
        for (index, id) in raw.tenants.iter().enumerate() {
            let at = self.at.key("tenants").index(index);
            if !Tenants::is_id(id) {
                let help = "write the id of the directory in lower case, as in its tokens; domains can change hands";
                self.resolver.error(&at, format!("`{id}` is not the id of a tenant")).help(help);
            } else if raw.tenants.iter().take(index).any(|other| other == id) {
                self.resolver.error(&at, format!("`{id}` is listed twice"));
            }
        }
        let tenants = Tenants::new(&raw.issuer, &raw.tenants);
        if tenants.is_none() {
            self.error("issuer", format!("`{}` is not an address for several tenants", raw.issuer))
                .help("leave `issuer` out; in another cloud write `https://HOST/organizations/v2.0`");
        }
        tenants
    }
}
