//! What the configuration of the issuers says about the principals that come from them.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map, Value};

use crate::{authn::Principal, config::raw, issuers::presets::promised_groups, pointer::unescape};

/// What is known of an issuer.
#[derive(Debug)]
pub(super) struct IssuerFacts {
    pub name: Arc<str>,
    groups: Box<[ClaimPath]>,
    scopes: Box<[ClaimPath]>,
    /// Whether its tokens are configured to name the client.
    client: bool,
    /// Claims without which its tokens are refused.
    required: Box<[ClaimPath]>,
    /// The kind of its repositories, and the claim that has their number.
    pub repositories: Option<(&'static str, &'static str)>,
    /// Whether its subjects are Kubernetes service accounts.
    pub service_accounts: bool,
    /// Whether it is Doorward itself, whose rules decide who gets which scope.
    pub gives_scopes_by_rules: bool,
}

impl IssuerFacts {
    pub(super) fn new(issuer: &raw::Issuer) -> Self {
        let claims = &issuer.claims;
        // Unless configured otherwise, facts are expected where they are looked up.
        let expected = |path: &Option<String>, defaults: &[&str]| match path {
            Some(path) => [ClaimPath::new(path)].into(),
            None => defaults.iter().map(|path| ClaimPath::new(path)).collect(),
        };
        // A preset does not promise that tokens contain scopes and the client: those of a login contain neither.
        let scopes: &[&str] = if issuer.preset.is_none() { &["scope", "scp"] } else { &[] };
        Self {
            name: issuer.name.as_str().into(),
            groups: expected(&claims.groups, promised_groups(issuer.preset)),
            scopes: expected(&claims.scopes, scopes),
            client: claims.client.is_some() || issuer.preset.is_none(),
            required: issuer.required_claims.keys().map(|path| ClaimPath::new(path)).collect(),
            repositories: match issuer.preset {
                Some(raw::Preset::GithubActions) => Some(("github", "repository_id")),
                Some(raw::Preset::GitlabCi) => Some(("gitlab", "project_id")),
                _ => None,
            },
            service_accounts: issuer.preset == Some(raw::Preset::Kubernetes),
            gives_scopes_by_rules: issuer.preset == Some(raw::Preset::Doorward),
        }
    }

    /// Whether it is configured to give groups and gave not even an empty list.
    pub(super) fn withholds_groups(&self, principal: &Principal) -> bool {
        principal.groups.is_empty() && !principal.says_groups && absent(&self.groups, principal)
    }

    /// Whether it is configured to give scopes and did not.
    pub(super) fn withholds_scopes(&self, principal: &Principal) -> bool {
        principal.scopes.is_empty() && !principal.says_scopes && absent(&self.scopes, principal)
    }

    /// Whether it is configured to name the client and this one is not known.
    pub(super) fn withholds_client(&self, client: Option<&Arc<str>>) -> bool {
        self.client && client.is_none()
    }

    /// Whether it is configured to give a claim and did not.
    pub(super) fn withholds(&self, path: &ClaimPath, principal: &Principal) -> bool {
        let promised = self.required.contains(path)
            || (self.groups.contains(path) && absent(&self.groups, principal))
            || (self.scopes.contains(path) && absent(&self.scopes, principal));
        promised && path.find(&principal.claims).is_none()
    }
}

/// Whether a fact is expected, and missing from all places where it may be.
fn absent(paths: &[ClaimPath], principal: &Principal) -> bool {
    !paths.is_empty() && paths.iter().all(|path| path.find(&principal.claims).is_none())
}

/// The place of a claim: its name, or a JSON pointer (RFC 6901).
#[derive(Clone, Debug, Eq)]
pub(super) struct ClaimPath(Box<str>);

/// `tier` and `/tier` are the same place.
impl PartialEq for ClaimPath {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl ClaimPath {
    pub(super) fn new(path: &str) -> Self {
        Self(path.into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (claim, rest) = self.parts();
        claims.get(&*claim)?.pointer(rest).filter(|value| !value.is_null())
    }

    /// The name of the top-level claim that it leads into.
    pub(super) fn claim(&self) -> Cow<'_, str> {
        self.parts().0
    }

    /// That name, and a pointer relative to the claim.
    fn parts(&self) -> (Cow<'_, str>, &str) {
        // Names of claims are often URLs (`https://example.com/groups`), so only a leading slash makes a pointer.
        let Some(pointer) = self.0.strip_prefix('/') else { return (Cow::Borrowed(&*self.0), "") };
        let (first, rest) = pointer.split_at(pointer.find('/').unwrap_or(pointer.len()));
        (unescape(first), rest)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::issuers::fill_defaults;

    const PRESETS: [&str; 14] = [
        "okta",
        "dex",
        "entra",
        "auth0",
        "ping",
        "cognito",
        "keycloak",
        "zitadel",
        "google",
        "github_oauth",
        "github_actions",
        "gitlab_ci",
        "kubernetes",
        "doorward",
    ];

    fn facts(more: &Value) -> IssuerFacts {
        let mut entry = json!({"name": "corp", "issuer": "https://corp.example"});
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        IssuerFacts::new(&serde_json::from_value(entry).unwrap())
    }

    fn with(claims: &Value) -> Principal {
        Principal { claims: claims.as_object().unwrap().clone().into(), ..Principal::anonymous() }
    }

    #[test]
    fn claims_that_are_read_elsewhere_or_declared_absent_are_not_withheld() {
        let (corp, preset) = (facts(&json!({})), facts(&json!({"preset": "github_actions"})));
        let (silent, empty) = (with(&json!({})), with(&json!({"groups": [], "scope": ""})));
        assert!(corp.withholds_groups(&silent) && corp.withholds_scopes(&silent) && corp.withholds_client(None));
        assert!(!corp.withholds_groups(&empty) && !corp.withholds_scopes(&empty));
        // From the response of a token endpoint, or from introspection.
        let elsewhere = Principal {
            groups: ["dev".into()].into(),
            scopes: ["read".into()].into(),
            client: Some("ci".into()),
            ..with(&json!({}))
        };
        assert!(!corp.withholds_groups(&elsewhere) && !corp.withholds_scopes(&elsewhere));
        assert!(!corp.withholds_client(elsewhere.client.as_ref()));
        assert!(!preset.withholds_groups(&silent) && !preset.withholds_scopes(&silent));
        assert!(!preset.withholds_client(None));
    }

    #[test]
    fn a_login_provider_withholds_groups_alike_by_preset_and_by_settings() {
        let silent = with(&json!({}));
        for preset in PRESETS {
            // These are not expected to provide groups.
            let withholds = !matches!(
                preset,
                "google" | "github_oauth" | "github_actions" | "gitlab_ci" | "kubernetes" | "doorward"
            );
            let elsewhere = if preset == "cognito" { "groups" } else { "roles" };
            let corp = facts(&json!({"preset": preset}));
            assert_eq!(corp.withholds_groups(&silent), withholds, "{preset}");
            assert_eq!(corp.withholds_groups(&with(&json!({elsewhere: ["x"]}))), withholds, "{preset}: another claim");
            assert!(facts(&json!({"preset": preset, "claims": {"groups": "roles"}})).withholds_groups(&silent));
            assert!(!corp.withholds_scopes(&silent) && !corp.withholds_client(None), "{preset}");
        }
        for (preset, claims) in [
            ("cognito", json!({"cognito:groups": []})),
            ("keycloak", json!({"groups": []})),
            ("zitadel", json!({"urn:zitadel:iam:org:project:roles": {}})),
        ] {
            assert!(!facts(&json!({"preset": preset})).withholds_groups(&with(&claims)), "{preset} {claims}");
        }
    }

    /// The output of `print-config` must decide in the same way as the configuration that it was printed from.
    #[test]
    fn defaults_that_print_config_fills_in_change_no_decision() {
        for preset in PRESETS {
            let entry = json!({"name": "corp", "issuer": "https://corp.example", "preset": preset});
            let written: raw::Issuer = serde_json::from_value(entry).unwrap();
            let mut filled = written.clone();
            fill_defaults(&mut filled);
            let (written, filled) = (IssuerFacts::new(&written), IssuerFacts::new(&filled));
            assert_eq!(written.groups, filled.groups, "{preset}");
            assert_eq!((&written.scopes, written.client), (&filled.scopes, filled.client), "{preset}");
        }
    }

    #[test]
    fn a_claim_is_withheld_if_it_was_promised_and_is_not_there() {
        let corp = facts(&json!({"required_claims": {"tier": ["gold"]}}));
        let path = |name: &str| ClaimPath::new(name);
        assert!(corp.withholds(&path("tier"), &with(&json!({}))));
        assert!(corp.withholds(&path("groups"), &with(&json!({}))));
        assert!(!corp.withholds(&path("tier"), &with(&json!({"tier": "gold"}))));
        assert!(!corp.withholds(&path("mood"), &with(&json!({}))));
    }

    /// A deny that wrote such a claim as a pointer did not match if its issuer left it out.
    #[test]
    fn a_claim_is_promised_by_its_name_and_by_its_pointer_alike() {
        let corp = facts(&json!({"required_claims": {"tier": ["gold"], "/a~1b": ["c"]}}));
        let silent = with(&json!({}));
        for path in ["tier", "/tier", "a/b", "/a~1b", "groups", "/groups"] {
            assert!(corp.withholds(&ClaimPath::new(path), &silent), "{path}");
        }
        for path in ["/tier/level", "a~1b", "/a/b", "/mood"] {
            assert!(!corp.withholds(&ClaimPath::new(path), &silent), "{path}");
        }
    }
}
