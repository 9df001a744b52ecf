//! Whom the imported rule lets in.

use std::path::Path;

use super::*;
use crate::{
    authz::Policy,
    cli::test,
    config::{raw::Root, resolver::Resolver},
};

/// What most of these configurations share, besides provider and addresses.
const BASE: &str = "oidc_issuer_url = \"https://id.example.com\"\nclient_id = \"a\"\nclient_secret_file = \"/s\"\n\
    upstreams = [\"http://a:1\"]\n";

fn of(provider: &str, more: &str) -> Imported {
    imported(&[&format!("{BASE}provider = \"{provider}\"\n{more}\n")], Some("a.example.com")).unwrap()
}

/// Decides for each of these principals whether the rules let them in.
fn decide(imported: &Imported, cases: &[(&str, bool)]) {
    let mut root: Root = serde_saphyr::from_str(&imported.yaml).unwrap();
    for (index, (principal, allowed)) in cases.iter().enumerate() {
        let outcome = if *allowed { "allow" } else { "deny" };
        let case = format!(
            "{{name: '{index}', principal: {principal}, request: {{route: upstream-1}}, expect: {{outcome: {outcome}}}}}"
        );
        root.tests.push(serde_saphyr::from_str(&case).unwrap());
    }
    let policy = Policy::compile(&root, &mut Resolver::new(Path::new("/"))).unwrap();
    let results = test::run(&policy, &root, &[], None);
    assert!(results.passed(), "{}\n{results}", imported.yaml);
}

/// oauth2-proxy refuses a login whose `email_verified` is false, whatever the domains.
#[test]
fn an_unverified_address_admits_nobody_even_if_every_domain_is_allowed() {
    let any = "email_domains = [\"*\"]";
    let verified = ("{claims: {email: a@b.example, email_verified: true}}", true);
    let unsaid = ("{claims: {email: a@b.example}}", true);
    let unverified = "{claims: {email: a@b.example, email_verified: false}}";
    for provider in ["oidc", "keycloak-oidc", "entra-id", "adfs"] {
        let imported = of(provider, any);
        assert_eq!(parsed(&imported)["rules"][0]["when"], ANYBODY, "{provider}");
        decide(&imported, &[verified, unsaid, (unverified, false)]);
        let insecure = of(provider, &format!("{any}\ninsecure_oidc_allow_unverified_email = true"));
        decide(&insecure, &[verified, unsaid, (unverified, true)]);
        assert_eq!(noted(&insecure), [""; 0], "{provider}: it is in the rule");
        let off = of(provider, &format!("{any}\ninsecure_oidc_allow_unverified_email = false"));
        decide(&off, &[(unverified, false)]);
    }
    // These must report an address as verified.
    for provider in ["gitlab", "login.gov"] {
        decide(&of(provider, any), &[("{email: a@b.example}", true), (unsaid.0, false), (unverified, false)]);
    }
    let login_gov = of("login.gov", &format!("{any}\ninsecure_oidc_allow_unverified_email = true"));
    decide(&login_gov, &[(unverified, false)]);
    assert_eq!(parsed(&login_gov)["issuers"][0]["login"]["userinfo"], true, "where it tells of an address");
    let domain = of("oidc", "email_domains = [\"b.example\"]\ninsecure_oidc_allow_unverified_email = true");
    assert_eq!(
        noted(&domain),
        ["insecure_oidc_allow_unverified_email"],
        "twin: an address that is not verified is none"
    );
    let github = of("github", &format!("{any}\ngithub_org = \"acme\"\ninsecure_oidc_allow_unverified_email = true"));
    decide(&github, &[("{email: a@b.example}", true), ("{}", false)]);
}

#[test]
fn domains_are_compared_in_any_case_and_by_their_whole_name() {
    let domain = of("oidc", "email_domains = [\"Example.com\"]");
    assert_eq!(parsed(&domain)["rules"][0]["when"], OF_EXAMPLE);
    assert_eq!(noted(&domain), [""; 0]);
    let several = of("oidc", "email_domains = [\"Example.com\", \"*.Sub.example\", \"*lost.example\"]");
    for imported in [&domain, &several] {
        let mut cases = vec![
            ("{email: a@EXAMPLE.com}", true),
            ("{email: a@example.com}", true),
            ("{email: a@evil-example.com}", false),
            ("{email: a@example.com.evil}", false),
            ("{claims: {email: a@example.com}}", false),
            ("{}", false),
            ("{email: a@lost.example}", false),
        ];
        if std::ptr::eq(imported, &several) {
            cases.extend([("{email: a@B.sub.example}", true), ("{email: a@sub.example}", false)]);
        }
        decide(imported, &cases);
    }
}

/// `email_verified` is never among the claims there, and without it an address is ignored.
#[test]
fn a_domain_at_a_provider_that_verifies_no_address_is_noted() {
    let domain = "email_domains = [\"example.com\"]";
    let own = "https://id.example.com";
    for (provider, issuer) in [
        ("entra-id", own),
        ("azure", own),
        ("adfs", own),
        ("oidc", "https://login.microsoftonline.com/8f1c/v2.0"),
        ("oidc", "https://login.microsoftonline.us/8f1c/v2.0"),
        ("oidc", "https://login.partner.microsoftonline.cn/8f1c/v2.0"),
        ("oidc", "https://sts.windows.net/8f1c/"),
    ] {
        let text = format!("{}provider = \"{provider}\"\n{domain}\n", BASE.replace(own, issuer));
        let imported = imported(&[&text], Some("a.example.com")).unwrap();
        assert_eq!(noted(&imported), ["email_domain"], "{provider} {issuer}: {:?}", imported.notes);
    }
    assert_eq!(noted(&of("entra-id", "email_domains = [\"*\"]")), [""; 0], "twin: everybody");
    assert_eq!(noted(&of("keycloak-oidc", domain)), [""; 0], "twin: it tells");
}

/// Without a preset a login requests only `openid`, and an ID token then has neither an address nor groups.
#[test]
fn a_login_asks_for_what_the_rule_looks_at() {
    for (provider, more, scopes) in [
        ("oidc", "", json!(["openid", "email", "profile"])),
        ("oidc", "allowed_groups = [\"dev\"]", json!(["openid", "email", "profile", "groups"])),
        ("oidc", "allowed_groups = [\"dev\"]\nscope = \"openid email\"", json!(["openid", "email"])),
        ("adfs", "", json!(["openid", "email", "profile"])),
        ("gitlab", "allowed_groups = [\"dev\"]", json!(["openid", "email"])),
        ("keycloak-oidc", "allowed_groups = [\"dev\"]", json!(null)),
        ("keycloak-oidc", "scope = \"openid email groups\"", json!(["openid", "email", "groups"])),
    ] {
        let imported = of(provider, &format!("email_domains = [\"*\"]\n{more}"));
        assert_eq!(parsed(&imported)["issuers"][0]["login"]["scopes"], scopes, "{provider} {more}");
    }
}

/// Among the groups of oauth2-proxy are the roles of Keycloak and cidaas, which no claim of groups has.
#[test]
fn a_role_among_the_groups_admits_nobody_until_its_claim_is_configured() {
    for (provider, groups, noticed, left) in [
        ("keycloak-oidc", "\"role:admin\"", &["signed-in", "allowed_role"][..], json!(null)),
        ("keycloak-oidc", "\"/dev\", \"role:admin\"", &["signed-in", "allowed_role"], json!(["/dev"])),
        ("cidaas", "\"dev:admin\"", &["signed-in", "allowed_group"], json!(null)),
        ("keycloak-oidc", "\"/dev\"", &[], json!(["/dev"])),
        ("oidc", "\"role:admin\"", &[], json!(["role:admin"])),
    ] {
        let imported = of(provider, &format!("email_domains = [\"*\"]\nallowed_groups = [{groups}]"));
        let rule = &parsed(&imported)["rules"][0];
        assert_eq!(noted(&imported), noticed, "{provider} {groups}");
        assert_eq!(rule["who"]["groups"], left, "{provider} {groups}");
        assert_eq!(rule["mode"] == "shadow", !noticed.is_empty(), "{provider} {groups}");
    }
}

#[test]
fn dots_in_the_groups_claim_select_members_of_objects() {
    for (written, claim) in [
        ("realm_access.roles", json!("/realm_access/roles")),
        ("https://example.com/groups", json!("https://example.com/groups")),
        ("cognito:groups", json!("cognito:groups")),
        ("roles", json!("roles")),
        ("groups", json!(null)),
    ] {
        let imported = of("oidc", &format!("email_domains = [\"*\"]\noidc_groups_claim = \"{written}\""));
        assert_eq!(parsed(&imported)["issuers"][0]["claims"]["groups"], claim, "{written}");
    }
}

#[test]
fn the_workspace_of_google_is_that_of_one_whole_domain() {
    for (domains, tenant, noticed) in [
        ("\"Example.com\"", json!("example.com"), &[""; 0][..]),
        ("\".example.com\"", json!(null), &["email_domain"]),
        ("\"*.example.com\"", json!(null), &["email_domain"]),
        ("\"*\"", json!(null), &["email_domain"]),
        ("\"a.example\", \"b.example\"", json!(null), &["email_domain"]),
    ] {
        let imported = of("google", &format!("email_domains = [{domains}]"));
        assert_eq!(parsed(&imported)["issuers"][0]["tenant"], tenant, "{domains}");
        assert_eq!(noted(&imported), noticed, "{domains}");
    }
}

/// `doorward check` took it, and nobody got in.
#[test]
fn an_organisation_that_cannot_exist_is_noted() {
    for (org, is_noted) in [("acme", false), ("acme,other", true)] {
        let imported = of("github", &format!("email_domains = [\"*\"]\ngithub_org = \"{org}\""));
        assert_eq!(noted(&imported).contains(&"github_org"), is_noted, "{:?}", imported.notes);
    }
}
