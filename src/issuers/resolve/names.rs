//! Which issuer an entry is of, of which of its customers, and for whom its tokens must be made out.

use super::{Builder, login_only};
use crate::{
    config::raw::{self, Preset},
    issuers::{defaults, discovery::secure_url, presets, tenants::Tenants},
};

/// Issuers of which everybody in the world can be a customer, and the claims that tell customers apart.
const SHARED_ISSUERS: [(&str, &[&str]); 3] = [
    ("https://token.actions.githubusercontent.com", &["repository_id", "repository_owner_id", "enterprise_id"]),
    ("https://gitlab.com", &["project_id", "namespace_id"]),
    ("https://accounts.google.com", &["hd", "sub"]),
];

/// Whether a token could name either as its issuer.
pub(super) fn share_a_name(one: &raw::Issuer, other: &raw::Issuer) -> bool {
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

impl Builder<'_> {
    /// Reports an identifier that cannot be, audiences that prove nothing, and customers that nobody tells apart.
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
                _ => "write what stands in the `iss` of its tokens",
            };
            self.error("issuer", "the issuer is not named").help(help);
            return;
        }
        match secure_url(&raw.issuer) {
            // Not repeated: it may hold a password.
            Err(why) => _ = self.error("issuer", format!("this {why}")),
            // Of these an address is made all the same, which is not the one that the text names.
            Ok(_) if raw.issuer.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                self.error("issuer", "this has a blank or a line break").help("take it away: `iss` of tokens has none");
            }
            Ok(url) if url.query().is_some() => {
                self.error("issuer", "this has a query (`?`), which no issuer has")
                    .help("write what stands in the `iss` of its tokens (OpenID Connect Discovery 1.0 section 3)");
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
                Some(_) => "`tenant` and `issuer` are both there, and say different things",
                None => "no issuer is known from this `tenant` and `preset`",
            };
            self.error("tenant", message).help("write `issuer` alone");
        }
    }

    fn check_audiences(&mut self) {
        let raw = self.raw;
        // An issuer that only logs people in is given tokens for our client id, which the login checks itself.
        if raw.audiences.is_empty() && raw.login.is_none() {
            self.error("audiences", "there is no audience, so that no token could be accepted")
                .help("name the value of `aud` in tokens that are meant for Doorward");
        }
        if raw.audiences.iter().any(String::is_empty) {
            self.error("audiences", "an audience is empty");
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

    /// With an issuer for the whole world, a claim must tell our tenants from everybody's.
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

    /// Those of `tenants`, if the entry has them. Reports what is wrong with them.
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
                let help = "the id of the directory, in small letters, which its tokens name; domains can change hands";
                self.resolver.error(&at, format!("`{id}` is not the id of a tenant")).help(help);
            } else if raw.tenants.iter().take(index).any(|other| other == id) {
                self.resolver.error(&at, format!("`{id}` is there twice"));
            }
        }
        let tenants = Tenants::new(&raw.issuer, &raw.tenants);
        if tenants.is_none() {
            self.error("issuer", format!("`{}` does not stand for several tenants", raw.issuer))
                .help("leave `issuer` out; in another cloud write `https://HOST/organizations/v2.0`");
        }
        tenants
    }
}
