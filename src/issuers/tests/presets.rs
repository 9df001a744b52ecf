//! The tokens of each provider (`oauth` section 14), each with a twin that must not pass.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Facts, Issuers, name_issuer, testing::*};
use crate::{
    authn::{CredentialId, Kind, Principal, Scheme},
    clock::Timestamp,
    config::{raw, resolver::Resolver},
    error::{Reason, Rejection},
};

const CLIENT: &str = "door";

/// A provider of one kind, with its own keys.
struct Fixture {
    issuer: String,
    issuers: Issuers,
    accepts: super::super::Accepts,
}

impl Fixture {
    async fn new(settings: Value) -> Self {
        let context = context();
        let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
        // The issuer of Auth0 ends with a slash, which the scripted document does not have.
        let slash = if settings["preset"] == "auth0" { "/" } else { "" };
        let issuer = format!("{}{slash}", provider.url);
        let entry = json!({"name": "main", "issuer": issuer, "audiences": ["doorward"],
            "keys": {"url": format!("{}/jwks", provider.url)}});
        let (issuers, accepts) = ready(&json!({"issuers": [changed(entry, &settings)]}), &context).await;
        Self { issuer, issuers, accepts }
    }

    fn sign(&self, typ: Option<&str>, basis: Value, changes: &Value) -> String {
        let header = changed(json!({"alg": "RS256", "kid": "rsa"}), &json!({"typ": typ}));
        RSA.token(&header.to_string(), &changed(changed(basis, &json!({"iss": self.issuer})), changes).to_string())
    }

    /// The principal of a login with this ID token.
    async fn login(&self, changes: Value) -> Result<Principal, Rejection> {
        let basis = json!({"aud": CLIENT, "sub": "alice", "nonce": "n", "iat": START, "exp": START + 300});
        let token = self.sign(None, basis, &changes);
        let issuer = self.issuers.get("main").unwrap();
        let (claims, _) = issuer.verify_id_token(&token, CLIENT, Timestamp::from_secs(START)).await?;
        issuer.principal(Facts {
            subject: claims["sub"].as_str().unwrap().into(),
            claims,
            expires: Timestamp::from_secs(START + 300),
            scheme: Scheme::Session,
            scopes: Some(Vec::new()),
            credential: CredentialId::Session("s".into()),
        })
    }

    /// The principal of this access token.
    async fn bearer(&self, typ: Option<&str>, changes: Value) -> Result<Arc<Principal>, Rejection> {
        let basis = json!({"aud": "doorward", "sub": "alice", "iat": START, "exp": START + 300});
        self.issuers.authenticate(&self.sign(typ, basis, &changes), &self.accepts, &nothing).await
    }
}

/// The settings of a login.
fn login() -> Value {
    json!({"client": {"id": CLIENT, "method": "none"}})
}

fn groups(principal: &Principal) -> Vec<&str> {
    principal.groups.iter().map(|group| &**group).collect()
}

fn reason<T: std::fmt::Debug>(result: Result<T, Rejection>) -> Reason {
    result.expect_err("it passed").reason()
}

#[tokio::test]
async fn okta_writes_no_type_and_scopes_as_a_list() {
    let at = Fixture::new(json!({"preset": "okta", "login": login()})).await;
    let alice = at.login(json!({"groups": ["dev"]})).await.unwrap();
    assert_eq!((groups(&alice), alice.kind), (vec!["dev"], Kind::Human));
    let bearer = at.bearer(None, json!({"scp": ["run", "read all"], "cid": "cli"})).await.unwrap();
    assert_eq!(bearer.scopes, ["run", "read all"].map(Arc::<str>::from));
    assert_eq!((bearer.client.as_deref(), bearer.kind), (Some("cli"), Kind::Agent), "nobody says that it is a person");
    // The twins: an ID token of another application, and one that is presented as a bearer token.
    assert_eq!(reason(at.login(json!({"aud": "other"})).await), Reason::AudienceMismatch);
    assert_eq!(reason(at.bearer(None, json!({"nonce": "n"})).await), Reason::TokenInvalid);
}

#[tokio::test]
async fn entra_names_people_by_oid_and_may_leave_their_groups_out() {
    let at = Fixture::new(json!({"preset": "entra"})).await;
    let claims = json!({"oid": "0b-1", "tid": "t-1", "groups": ["7f3c"], "preferred_username": "alice@acme.example"});
    let alice = at.login(claims.clone()).await.unwrap();
    assert_eq!((&*alice.username, groups(&alice)), (&*format!("{}#0b-1", at.issuer), vec!["7f3c"]));
    // In another application the same person has another `sub`, but the same user name in Kubernetes.
    let bearer = at.bearer(Some("JWT"), json!({"oid": "0b-1", "sub": "pairwise", "scp": "run", "azp": "cli"})).await;
    assert_eq!(bearer.unwrap().username, alice.username);
    // An ID token from a refresh has neither a nonce, nor a hash, nor a client.
    assert_eq!(reason(at.bearer(Some("JWT"), json!({"oid": "0b-1", "scp": null})).await), Reason::TokenInvalid);
    assert!(at.bearer(Some("JWT"), json!({"oid": "0b-1", "appid": "cli"})).await.is_ok(), "version 1.0");
    let overage = json!({"groups": null, "_claim_names": {"groups": "src1"},
        "_claim_sources": {"src1": {"endpoint": "https://graph.windows.net/x/getMemberObjects"}}});
    let refused = at.login(changed(claims.clone(), &overage)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::IdentityRefused, "as if somebody had no groups");
    assert!(refused.fix_text().unwrap().contains("Entra ID"), "{refused}");
    assert_eq!(reason(at.login(changed(claims, &json!({"oid": null}))).await), Reason::IdentityRefused);
}

#[tokio::test]
async fn cognito_has_no_audience_but_a_client_and_says_what_a_token_is_for() {
    let at = Fixture::new(json!({"preset": "cognito", "audiences": [CLIENT]})).await;
    let alice = at.login(json!({"token_use": "id", "cognito:groups": ["dev"]})).await.unwrap();
    assert_eq!(groups(&alice), ["dev"]);
    let access = json!({"aud": null, "token_use": "access", "client_id": CLIENT, "cognito:groups": ["dev"]});
    assert_eq!(groups(&at.bearer(None, access.clone()).await.unwrap()), ["dev"]);
    for (twin, change, expected) in [
        ("an ID token", json!({"token_use": "id"}), Reason::TokenInvalid),
        ("for nobody", json!({"token_use": null}), Reason::AudienceMismatch),
        ("another client's", json!({"client_id": "other"}), Reason::AudienceMismatch),
        ("another audience", json!({"aud": "other"}), Reason::AudienceMismatch),
    ] {
        assert_eq!(reason(at.bearer(None, changed(access.clone(), &change)).await), expected, "{twin}");
    }
}

#[tokio::test]
async fn google_tokens_have_two_issuer_names_and_are_restricted_by_hd() {
    let at = Fixture::new(json!({"preset": "google", "required_claims": {"hd": ["acme.example"]}})).await;
    let claims =
        json!({"iss": "accounts.google.com", "hd": "acme.example", "email": "a@acme.example", "email_verified": true});
    let alice = at.login(claims.clone()).await.unwrap();
    assert_eq!((groups(&alice), alice.email.as_deref()), (vec![], Some("a@acme.example")));
    assert!(at.login(changed(claims.clone(), &json!({"iss": at.issuer}))).await.is_ok());
    for (twin, change, expected) in [
        ("any account", json!({"hd": null}), Reason::TokenInvalid),
        ("another organisation", json!({"hd": "evil.example"}), Reason::TokenInvalid),
        ("almost the name", json!({"iss": "accounts.google.com.evil.example"}), Reason::IssuerUnknown),
    ] {
        assert_eq!(reason(at.login(changed(claims.clone(), &change)).await), expected, "{twin}");
    }
    // No other preset has the second name.
    let other = Fixture::new(json!({"preset": "dex"})).await;
    assert_eq!(reason(other.login(json!({"iss": "accounts.google.com"})).await), Reason::IssuerUnknown);
}

#[tokio::test]
async fn keycloak_says_in_the_payload_what_a_token_is() {
    let at = Fixture::new(json!({"preset": "keycloak"})).await;
    let alice = at.login(json!({"typ": "ID", "azp": CLIENT, "groups": ["dev"]})).await.unwrap();
    assert_eq!(groups(&alice), ["dev"]);
    let bearer = at.bearer(Some("JWT"), json!({"typ": "Bearer", "azp": "cli", "groups": ["dev"]})).await.unwrap();
    assert_eq!((groups(&bearer), bearer.client.as_deref()), (vec!["dev"], Some("cli")));
    for kind in ["ID", "Refresh", "Offline", "Logout"] {
        assert_eq!(reason(at.bearer(Some("JWT"), json!({"typ": kind})).await), Reason::TokenInvalid, "{kind}");
    }
    assert_eq!(reason(at.login(json!({"azp": "other"})).await), Reason::TokenInvalid);
}

/// Keycloak omits `groups` for people without groups, and writes realm roles only into access tokens.
#[tokio::test]
async fn a_person_who_lost_their_last_group_gets_no_other_names_in_its_place() {
    for (preset, claims) in [
        ("keycloak", json!({"realm_access": {"roles": ["dev", "uma_authorization"]}})),
        ("zitadel", json!({"groups": ["dev"]})),
    ] {
        let at = Fixture::new(json!({"preset": preset})).await;
        let (login, bearer) = (at.login(claims.clone()).await, at.bearer(Some("JWT"), claims).await);
        let (login, bearer) = (login.unwrap(), bearer.unwrap());
        assert_eq!((groups(&login), groups(&bearer)), (vec![], vec![]), "{preset}");
        assert!(!login.says_groups && !bearer.says_groups, "{preset}");
    }
    let at = Fixture::new(json!({"preset": "keycloak", "claims": {"groups": "/realm_access/roles"}})).await;
    let roles = json!({"groups": ["sales"], "realm_access": {"roles": ["dev"]}});
    assert_eq!(groups(&at.bearer(Some("JWT"), roles).await.unwrap()), ["dev"], "who wants roles says so");
}

#[tokio::test]
async fn auth0_ends_its_issuer_with_a_slash_and_names_claims_by_addresses() {
    let at = Fixture::new(json!({"preset": "auth0", "claims": {"groups": "https://acme.example/roles"}})).await;
    assert!(at.issuer.ends_with('/'));
    let alice = at.login(json!({"https://acme.example/roles": ["dev"]})).await.unwrap();
    assert_eq!(groups(&alice), ["dev"]);
    let both = json!(["doorward", format!("{}userinfo", at.issuer)]);
    assert!(at.bearer(Some("JWT"), json!({"aud": both, "azp": "cli"})).await.is_ok());
    assert_eq!(reason(at.login(json!({"iss": at.issuer.trim_end_matches('/')})).await), Reason::IssuerUnknown);
    assert_eq!(reason(at.bearer(Some("JWT"), json!({"aud": "userinfo"})).await), Reason::AudienceMismatch);
}

#[tokio::test]
async fn dex_writes_access_tokens_like_id_tokens() {
    let at = Fixture::new(json!({"preset": "dex"})).await;
    let subject = "CiQwOGE4Njg0Yi1kYjg4LTRiNzMtOTBhOS0zY2QxNjYxZjU0NjYSBWxvY2Fs";
    let alice = at.login(json!({"sub": subject, "groups": ["dev"]})).await.unwrap();
    assert_eq!((&*alice.subject, groups(&alice)), (subject, vec!["dev"]));
    assert!(at.bearer(None, json!({"groups": ["dev"], "azp": "cli"})).await.is_ok());
    assert_eq!(reason(at.bearer(None, json!({"nonce": "n"})).await), Reason::TokenInvalid);
    assert_eq!(reason(at.bearer(None, json!({"aud": CLIENT})).await), Reason::AudienceMismatch);
}

/// Rules and settings for clients did not match tokens of Dex that a client has for itself.
#[tokio::test]
async fn the_client_of_a_token_of_dex_is_its_one_audience() {
    let bot = json!({"clients": [{"id": "bot", "kind": "workload"}], "audiences": ["bot", "doorward"],
        "listed_clients_only": true});
    let at = Fixture::new(changed(json!({"preset": "dex"}), &bot)).await;
    let came = at.bearer(None, json!({"aud": "bot"})).await.unwrap();
    assert_eq!((came.client.as_deref(), came.kind), (Some("bot"), Kind::Workload));
    for (twin, claims) in [
        ("issued to another client", json!({"aud": ["bot", "cli"], "azp": "cli"})),
        ("several audiences", json!({"aud": ["bot", "doorward"]})),
        ("another client", json!({"aud": "bot", "client_id": "cli"})),
        ("not listed", json!({"aud": "doorward"})),
    ] {
        assert_eq!(reason(at.bearer(None, claims).await), Reason::TokenInvalid, "{twin}");
    }
    // People who sign in use the same client as the bot, but are not bots.
    let shared = json!({"clients": [{"id": CLIENT, "kind": "workload"}], "audiences": [CLIENT], "login": login()});
    let at = Fixture::new(changed(json!({"preset": "dex"}), &shared)).await;
    let alice = at.login(json!({})).await.unwrap();
    assert_eq!((alice.client, alice.kind), (None, Kind::Human));
    assert_eq!(at.bearer(None, json!({"aud": CLIENT})).await.unwrap().kind, Kind::Workload);
    // A configured claim for the client is the only one, and with other presets an audience is not a client.
    for settings in [json!({"preset": "dex", "claims": {"client": "cli"}}), json!({"preset": "okta"})] {
        let at = Fixture::new(changed(settings.clone(), &json!({"audiences": ["bot"]}))).await;
        assert_eq!(at.bearer(None, json!({"aud": "bot"})).await.unwrap().client, None, "{settings}");
    }
}

#[tokio::test]
async fn zitadel_writes_roles_as_the_names_of_members() {
    let at = Fixture::new(json!({"preset": "zitadel"})).await;
    let claim = "urn:zitadel:iam:org:project:roles";
    let roles = json!({"dev": {"2713": "acme.example"}, "release": {"2713": "acme.example", "9": "b.example"}});
    assert_eq!(groups(&at.login(json!({ (claim): roles })).await.unwrap()), ["dev", "release"]);
    assert_eq!(reason(at.login(json!({ (claim): "dev" })).await), Reason::TokenInvalid);
    assert_eq!(reason(at.login(json!({ (claim): {"system:masters": {}} })).await), Reason::IdentityRefused);
    // With other presets an object is not a list of groups.
    let other = Fixture::new(json!({"preset": "keycloak"})).await;
    assert_eq!(reason(other.login(json!({"groups": roles})).await), Reason::TokenInvalid);
}

/// Its audiences are the project and all its clients, which no setting of Zitadel changes.
#[tokio::test]
async fn an_id_token_of_zitadel_for_the_whole_project_is_ours_if_it_was_issued_to_us() {
    let at = Fixture::new(json!({"preset": "zitadel"})).await;
    let project = json!(["other", CLIENT, "271828"]);
    assert!(at.login(json!({"aud": project, "azp": CLIENT})).await.is_ok());
    for (twin, claims, expected) in [
        ("issued to another client", json!({"aud": project, "azp": "other"}), Reason::TokenInvalid),
        ("issued to nobody", json!({"aud": project}), Reason::TokenInvalid),
        ("of another project", json!({"aud": ["other", "271828"], "azp": CLIENT}), Reason::AudienceMismatch),
        ("no texts", json!({"aud": [CLIENT, 5], "azp": CLIENT}), Reason::TokenInvalid),
    ] {
        assert_eq!(reason(at.login(claims).await), expected, "{twin}");
    }
    // It is still not a bearer token, and with other presets an additional audience is refused.
    assert_eq!(reason(at.bearer(Some("JWT"), json!({"aud": project, "azp": CLIENT})).await), Reason::AudienceMismatch);
    for preset in ["keycloak", "okta"] {
        let other = Fixture::new(json!({"preset": preset})).await;
        let refused = other.login(json!({"aud": project, "azp": CLIENT})).await;
        assert_eq!(reason(refused), Reason::AudienceMismatch, "{preset}");
    }
}

#[tokio::test]
async fn ping_changes_the_type_of_its_tokens() {
    let at = Fixture::new(json!({"preset": "ping", "login": login()})).await;
    assert_eq!(at.login(json!({"groups": ["dev"]})).await.unwrap().kind, Kind::Human);
    for typ in [None, Some("JWT"), Some("at+jwt")] {
        assert!(at.bearer(typ, json!({"client_id": "cli"})).await.is_ok(), "{typ:?}");
    }
    assert_eq!(reason(at.bearer(Some("logout+jwt"), json!({})).await), Reason::TokenInvalid);
    assert_eq!(reason(at.bearer(None, json!({"nonce": "n"})).await), Reason::TokenInvalid);
}

/// RFC 9068 requires `client_id` and `jti`. Some providers have the client in another claim, which can be configured.
#[tokio::test]
async fn a_claim_that_a_provider_leaves_out_is_not_asked_of_its_tokens_alone() {
    let (azp, cid) = (json!({"azp": "cli", "jti": "1"}), json!({"cid": "cli", "jti": "1"}));
    let either = json!(["at+jwt"]);
    for (row, settings, claims, is_good) in [
        ("Keycloak", json!({"preset": "keycloak"}), azp.clone(), true),
        ("Keycloak without an id", json!({"preset": "keycloak"}), json!({"azp": "cli"}), false),
        ("Okta", json!({"preset": "okta", "token_types": either}), cid, true),
        ("Ping", json!({"preset": "ping"}), json!({}), true),
        ("Auth0", json!({"preset": "auth0"}), azp.clone(), false),
        ("Auth0, its other profile", json!({"preset": "auth0"}), json!({"client_id": "cli", "jti": "1"}), true),
        ("no preset", json!({}), azp.clone(), false),
        ("no preset, and told where the client is", json!({"claims": {"client": "azp"}}), azp, true),
        ("told so, and without an id", json!({"claims": {"client": "azp"}}), json!({"azp": "cli"}), false),
    ] {
        let at = Fixture::new(settings).await;
        let came = at.bearer(Some("at+jwt"), claims).await;
        assert_eq!(came.is_ok(), is_good, "{row}: {came:?}");
    }
    // A token of another `typ` need not have them.
    let at = Fixture::new(json!({"preset": "auth0"})).await;
    assert!(at.bearer(Some("JWT"), json!({})).await.is_ok());
}

/// An entry needs only the address, the client id and the credential.
#[tokio::test]
async fn a_preset_needs_an_issuer_or_tenant_and_a_client() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s").unwrap();
    let problems = |entry: Value| {
        let mut raw: raw::Issuer = serde_json::from_value(changed(
            json!({"name": "main", "login": {"client": {"id": "door", "secret": {"file": secret.path()}}}}),
            &entry,
        ))
        .unwrap();
        name_issuer(&mut raw, None);
        let root = raw::Root { issuers: vec![raw], ..serde_json::from_value(json!({})).unwrap() };
        let mut resolver = Resolver::new(std::path::Path::new("/"));
        Issuers::resolve(&root, &mut resolver, None, &context());
        resolver
            .report
            .problems()
            .iter()
            .map(|problem| format!("{} {}", problem.at, problem.message))
            .collect::<Vec<_>>()
    };
    for entry in [
        json!({"preset": "okta", "tenant": "acme.okta.com"}),
        json!({"preset": "entra", "tenant": "8f1c"}),
        json!({"preset": "cognito", "tenant": "eu-central-1_Ab12"}),
        json!({"preset": "google", "tenant": "acme.example"}),
        json!({"preset": "keycloak", "issuer": "https://id.acme.example/realms/acme"}),
        json!({"preset": "auth0", "tenant": "acme.eu.auth0.com"}),
        json!({"preset": "dex", "issuer": "https://dex.acme.example"}),
        json!({"preset": "zitadel", "tenant": "acme.zitadel.cloud"}),
        json!({"preset": "ping", "issuer": "https://auth.pingone.eu/8f1c/as"}),
        json!({"preset": "github_oauth", "tenant": "acme"}),
        json!({"preset": "github_oauth", "tenant": "9919", "issuer": "https://github.acme.example"}),
    ] {
        assert_eq!(problems(entry.clone()), Vec::<String>::new(), "{entry}");
    }
    let github = |login: Value| {
        let client = json!({"client": {"id": "door", "secret": {"file": secret.path()}}});
        json!({"preset": "github_oauth", "tenant": "acme", "login": changed(client, &login)})
    };
    for (entry, place) in [
        (json!({"preset": "entra"}), "issuer"),
        (json!({"preset": "cognito", "tenant": "Ab12"}), "issuer"),
        (json!({"preset": "google"}), "required_claims"),
        (json!({"preset": "github_oauth"}), "tenant"),
        (json!({"preset": "github_oauth", "tenant": " "}), "tenant"),
        (json!({"preset": "github_oauth", "tenant": "acme", "issuer": "https://github.com/"}), "issuer"),
        (json!({"preset": "github_oauth", "tenant": "acme", "issuer": "https://github.com/acme"}), "issuer"),
        (json!({"preset": "github_oauth", "tenant": "acme", "audiences": ["door"]}), "audiences"),
        (json!({"preset": "github_oauth", "tenant": "acme", "algorithms": ["RS256"]}), "algorithms"),
        (json!({"preset": "github_oauth", "tenant": "acme", "keys": {"url": "https://github.com/keys"}}), "keys"),
        (json!({"preset": "github_oauth", "tenant": "acme", "login": null}), "login"),
        (github(json!({"max_age": "1h"})), "login/max_age"),
        (github(json!({"acr_values": ["gold"]})), "login/acr_values"),
        (github(json!({"prompt": "login"})), "login/prompt"),
        (github(json!({"domain_hint": "acme"})), "login/domain_hint"),
        (github(json!({"client": {"id": "door", "method": "none"}})), "login/client"),
        (json!({"preset": "dex", "tenant": "acme", "issuer": "https://dex.acme.example"}), "tenant"),
        (json!({"preset": "entra", "tenant": "8f1c", "issuer": "https://sts.windows.net/8f1c/"}), "tenant"),
    ] {
        let found = problems(entry.clone());
        assert!(found.iter().any(|problem| problem.starts_with(&format!("/issuers/0/{place}"))), "{entry}: {found:?}");
    }
}

/// `required_claims` apply to ID tokens too, or everybody with an account could log in.
#[tokio::test]
async fn required_claims_are_required_of_logins() {
    let at = Fixture::new(json!({"required_claims": {"/org/id": [7]}})).await;
    assert!(at.login(json!({"org": {"id": 7}})).await.is_ok());
    assert_eq!(reason(at.login(json!({"org": {"id": 8}})).await), Reason::TokenInvalid);
    assert_eq!(reason(at.login(json!({})).await), Reason::TokenInvalid);
}

/// Okta, Clerk and others write the requested scopes into ID tokens.
#[tokio::test]
async fn scopes_of_a_login_are_never_read_from_the_id_token() {
    for settings in [json!({"preset": "okta"}), json!({"claims": {"scopes": "/granted"}})] {
        let at = Fixture::new(settings.clone()).await;
        let alice = at.login(json!({"scope": "admin", "scp": ["admin"], "granted": ["admin"]})).await.unwrap();
        assert!(alice.scopes.is_empty(), "{settings}: {:?}", alice.scopes);
    }
}

/// All logins were refused, unless `clients` listed the login's own client, whose bearer tokens were not wanted.
#[tokio::test]
async fn a_login_is_of_our_own_client_where_only_listed_ones_are_accepted() {
    for settings in [json!({"listed_clients_only": true}), json!({"audiences": ["api://default"]})] {
        let ours = json!({"preset": "okta", "login": login(), "clients": [{"id": "cli"}]});
        let at = Fixture::new(changed(ours, &settings)).await;
        let alice = at.login(json!({"client_id": CLIENT})).await.unwrap();
        assert_eq!(alice.client.as_deref(), Some(CLIENT), "{settings}");
        let audience = settings["audiences"][0].as_str().unwrap_or("doorward");
        let bearer = async |client| at.bearer(None, json!({"aud": audience, "cid": client})).await;
        assert!(bearer("cli").await.is_ok(), "{settings}");
        assert_eq!(reason(bearer(CLIENT).await), Reason::TokenInvalid, "{settings}");
    }
}

/// The preset of a login provider makes people who log in human, and says nothing about bearer tokens.
#[tokio::test]
async fn attacks_z5_a_login_has_the_configured_kind_and_otherwise_that_of_an_agent() {
    let human = changed(login(), &json!({"kind": "human"}));
    let listed = |kind| json!([{"id": CLIENT, "kind": kind}]);
    let ours = json!({"client_id": CLIENT});
    for (settings, claims, kind) in [
        (json!({}), json!({}), Kind::Agent),
        (json!({"login": human}), json!({}), Kind::Human),
        (json!({"kind": "human"}), json!({}), Kind::Human),
        (json!({"kind": "agent", "login": human}), json!({}), Kind::Human),
        (json!({"clients": listed("human")}), ours.clone(), Kind::Human),
        (json!({"clients": listed("human")}), json!({"client_id": "other"}), Kind::Agent),
        (json!({"kind": "human", "login": human, "clients": listed("agent")}), ours, Kind::Agent),
        (json!({"preset": "dex", "login": login()}), json!({}), Kind::Human),
        (json!({"preset": "dex", "login": login(), "kind": "agent"}), json!({}), Kind::Agent),
        (json!({"kind": "workload"}), json!({}), Kind::Workload),
        (json!({"login": human}), json!({"act": {"sub": "bot"}}), Kind::Agent),
        (json!({"login": human}), json!({"client_id": "alice"}), Kind::Agent),
    ] {
        let at = Fixture::new(settings.clone()).await;
        assert_eq!(at.login(claims.clone()).await.unwrap().kind, kind, "{settings} {claims}");
    }
    for settings in [json!({"login": human}), json!({"preset": "auth0", "login": login()})] {
        let at = Fixture::new(settings.clone()).await;
        assert_eq!(
            at.bearer(Some("at+jwt"), json!({"client_id": "cli", "jti": "1"})).await.unwrap().kind,
            Kind::Agent,
            "{settings}"
        );
    }
}
