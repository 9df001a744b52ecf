//! One entry for several tenants of Entra ID: the `issuer` of the common discovery document is a template, and some
//! keys are of one tenant only.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Accepts, Issuers, testing::*};
use crate::{
    authn::Principal,
    clock::Timestamp,
    config::{raw, resolver::Resolver},
    error::{Reason, Rejection},
};

const A: &str = "8f1c0a52-5d0e-4c0b-9d4e-0f5a3c1b2d77";
const B: &str = "0b9d4e0f-5a3c-4b2d-977f-1c0a525d0e4c";
const STRANGER: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";

struct Fixture {
    provider: Provider,
    issuers: Issuers,
    accepts: Accepts,
}

impl Fixture {
    async fn new() -> Self {
        let provider = Provider::start().await;
        let (url, context) = (&provider.url, context());
        let issuer = |id: &str| format!("{url}/{id}/v2.0");
        let document = json!({"issuer": issuer("{tenantid}"), "jwks_uri": format!("{url}/organizations/keys")});
        provider.on("/organizations/v2.0/.well-known/openid-configuration", Reply::json(&document));
        let keys = [
            RSA.jwk("shared", json!({"issuer": issuer("{tenantid}")})),
            OTHER_RSA.jwk("theirs", json!({"issuer": issuer(STRANGER)})),
        ];
        provider.on("/organizations/keys", Reply::keys(&keys));
        let entry = json!({"name": "main", "preset": "entra", "issuer": issuer("organizations"), "tenants": [A, B],
            "audiences": ["doorward"]});
        let (issuers, accepts) = ready(&json!({"issuers": [entry]}), &context).await;
        Self { provider, issuers, accepts }
    }

    /// A token of the tenant `tenant`, with these changes.
    fn claims(&self, tenant: &str, changes: &Value) -> Value {
        let claims = json!({"iss": format!("{}/{tenant}/v2.0", self.provider.url), "tid": tenant, "oid": "0b-1",
            "sub": "pairwise", "aud": "doorward", "iat": START, "exp": START + 300});
        changed(claims, changes)
    }

    async fn bearer(&self, tenant: &str, changes: Value) -> Result<Arc<Principal>, Rejection> {
        let header = json!({"alg": "RS256", "kid": "shared", "typ": "JWT"});
        let claims = changed(self.claims(tenant, &changes), &json!({"azp": "cli"}));
        let token = RSA.token(&header.to_string(), &claims.to_string());
        self.issuers.authenticate(&token, &self.accepts, &nothing).await
    }
}

#[tokio::test]
async fn people_of_listed_tenants_have_the_same_names_as_with_one_entry_per_tenant() {
    let at = Fixture::new().await;
    for tenant in [A, B] {
        let person = at.bearer(tenant, json!({})).await.unwrap();
        // The name is the same as with `tenant`, so rights are kept; the same `oid` in another tenant is another
        // person.
        assert_eq!(*person.username, format!("{}/{tenant}/v2.0#0b-1", at.provider.url));
    }
    for (twin, tenant, changes, expected) in [
        ("a tenant that is not listed", STRANGER, json!({}), Reason::IssuerUnknown),
        ("all tenants", "organizations", json!({}), Reason::IssuerUnknown),
        ("the template", "{tenantid}", json!({}), Reason::IssuerUnknown),
        ("one that says to be of another", A, json!({"tid": B}), Reason::IssuerUnknown),
        ("one that does not say of which", A, json!({"tid": null}), Reason::IssuerUnknown),
    ] {
        assert_eq!(at.bearer(tenant, changes).await.expect_err(twin).reason(), expected, "{twin}");
    }
}

#[tokio::test]
async fn a_key_of_one_tenant_signs_for_no_other() {
    let at = Fixture::new().await;
    let header = json!({"alg": "RS256", "kid": "theirs", "typ": "JWT"});
    let token = OTHER_RSA.token(&header.to_string(), &at.claims(A, &json!({"azp": "cli"})).to_string());
    let refused = at.issuers.authenticate(&token, &at.accepts, &nothing).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::SignatureInvalid);
}

#[tokio::test]
async fn id_tokens_are_of_a_listed_tenant_too() {
    let at = Fixture::new().await;
    let issuer = at.issuers.get("main").unwrap();
    for (tenant, good) in [(A, true), (B, true), (STRANGER, false)] {
        let claims = at.claims(tenant, &json!({"aud": "door"}));
        let token = RSA.token(&json!({"alg": "RS256", "kid": "shared", "typ": "JWT"}).to_string(), &claims.to_string());
        let verified = issuer.verify_id_token(&token, "door", Timestamp::from_secs(START)).await;
        assert_eq!(verified.is_ok(), good, "{tenant}: {verified:?}");
    }
}

#[tokio::test]
async fn an_entry_says_which_tenants_and_shares_none_with_another() {
    let problems = |entries: Value| {
        let mut raw: Vec<raw::Issuer> = serde_json::from_value(entries).unwrap();
        raw.iter_mut().for_each(|issuer| super::super::name_issuer(issuer, None));
        let root = raw::Root { issuers: raw, ..serde_json::from_value(json!({})).unwrap() };
        let mut resolver = Resolver::new(std::path::Path::new("/"));
        Issuers::resolve(&root, &mut resolver, None, &context());
        resolver.report.problems().iter().map(|problem| problem.at.as_str().to_owned()).collect::<Vec<_>>()
    };
    let entra = |more: Value| changed(json!({"name": "a", "preset": "entra", "audiences": ["doorward"]}), &more);
    let none: [&str; 0] = [];
    assert_eq!(problems(json!([entra(json!({"tenants": [A, B]}))])), none);
    let ours = json!({"tenants": [A], "issuer": "https://login.microsoftonline.us/common/v2.0"});
    assert_eq!(problems(json!([entra(ours)])), none);
    for (row, entry, at) in [
        ("all of them", json!({"issuer": "https://login.microsoftonline.com/organizations/v2.0"}), "/issuers/0/issuer"),
        ("a domain", json!({"tenants": ["acme.onmicrosoft.com"]}), "/issuers/0/tenants/0"),
        ("twice", json!({"tenants": [A, A]}), "/issuers/0/tenants/1"),
        ("both", json!({"tenants": [A], "tenant": B}), "/issuers/0/tenants"),
        ("elsewhere", json!({"tenants": [A], "preset": "okta"}), "/issuers/0/tenants"),
        ("one name for two", json!({"tenants": [A, B], "username": "{claim:/oid}"}), "/issuers/0/username"),
        (
            "no address of several",
            json!({"tenants": [A], "issuer": format!("https://login.microsoftonline.com/{A}/v2.0")}),
            "/issuers/0/issuer",
        ),
    ] {
        let found = problems(json!([entra(entry)]));
        assert!(found.iter().any(|place| place == at), "{row}: {found:?}");
    }
    let both = problems(json!([entra(json!({"tenants": [A, B]})), entra(json!({"name": "b", "tenant": B}))]));
    assert!(both.iter().any(|place| place == "/issuers/1/issuer"), "{both:?}");
}
