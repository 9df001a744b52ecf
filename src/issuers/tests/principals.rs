//! The principals of verified claims.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::super::{Accepts, Context, Issuers, RUN_CLAIM, testing::*};
use crate::{
    authn::{CredentialId, Kind, Principal, Scheme},
    authz::{Policy, Scenario},
    config::{raw, resolver::Resolver},
    error::{Reason, Rejection},
};

struct Bench {
    provider: Provider,
    context: Context,
    issuers: Issuers,
    accepts: Accepts,
}

impl Bench {
    async fn new(settings: Value) -> Self {
        let context = context();
        let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
        let issuer = json!({"name": "main", "issuer": provider.url, "audiences": ["doorward"], "token_types": ["JWT"]});
        let (issuers, accepts) = ready(&json!({"issuers": [changed(issuer, &settings)]}), &context).await;
        Self { provider, context, issuers, accepts }
    }

    fn token(&self, changes: Value) -> String {
        self.headed(r#"{"alg":"RS256","kid":"rsa","typ":"JWT"}"#, changes)
    }

    fn headed(&self, header: &str, changes: Value) -> String {
        RSA.token(header, &claims(&self.provider.url, changes))
    }

    async fn principal(&self, changes: Value) -> Result<Arc<Principal>, Rejection> {
        self.issuers.authenticate(&self.token(changes), &self.accepts, &nothing).await
    }
}

fn texts(list: &[Arc<str>]) -> Vec<&str> {
    list.iter().map(|text| &**text).collect()
}

#[tokio::test]
async fn a_refused_subject_is_refused_for_what_is_wrong_with_it() {
    let bench = Bench::new(json!({})).await;
    for (subject, expected) in [
        ("a\r\nb".to_owned(), "it must be a text without control characters"),
        (String::new(), "it must be a text of 1 to 255 bytes"),
        ("a".repeat(256), "it must be a text of 1 to 255 bytes"),
    ] {
        let refused = bench.principal(json!({"sub": subject})).await.unwrap_err();
        assert!(refused.causes().unwrap().contains(expected), "{subject:?}: {:?}", refused.causes());
    }
}

/// People were told to request an access token, which it was, and nobody what its issuer had to change.
#[tokio::test]
async fn a_malformed_claim_is_named_without_its_value_to_the_bearer_of_a_verified_token() {
    let bench = Bench::new(json!({"claims": {"groups": "/realm/roles"}})).await;
    for (changes, claim, expected) in [
        (json!({"realm": {"roles": "mallory"}}), "/realm/roles", "a list of at most 1000 texts"),
        (json!({"realm": {"roles": ["mallory", 5]}}), "/realm/roles", "a list of at most 1000 texts"),
        (json!({"scope": {"mallory": 5}}), "scope", "a text, or a list of at most 1000 texts"),
        (json!({"act": {"name": "mallory"}}), "act", "an object with a `sub`"),
        (json!({"nbf": "mallory"}), "nbf", "a time in seconds"),
    ] {
        let refused = bench.principal(changes.clone()).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::TokenInvalid, "{changes}");
        assert_eq!(refused.detail(), format!("the claim `{claim}` of the token must be {expected}"), "{changes}");
        assert!(!refused.in_words().contains("mallory"), "{}", refused.in_words());
    }
    // Whoever made these may not know the issuer's settings.
    let token = bench.token(json!({"nbf": "mallory"}));
    let (signed, _) = token.rsplit_once('.').unwrap();
    let unknown = bench.headed(r#"{"alg":"RS256","kid":"unknown","typ":"JWT"}"#, json!({"nbf": "mallory"}));
    for forged in [format!("{signed}.AAAA"), unknown] {
        let refused = bench.issuers.authenticate(&forged, &bench.accepts, &nothing).await.unwrap_err();
        assert!(!refused.in_words().contains("claim"), "{}", refused.in_words());
    }
}

#[tokio::test]
async fn claims_become_facts() {
    let bench = Bench::new(json!({})).await;
    let principal = bench
        .principal(json!({
            "email": "a@b", "email_verified": true, "auth_time": START - 5, "acr": "gold", "amr": ["pwd", "otp"],
            "act": {"sub": "bot", "client_id": "bot-app", "act": {"sub": "earlier"}},
        }))
        .await
        .unwrap();
    assert_eq!(*principal.username, format!("{}#alice", bench.provider.url));
    assert_eq!((&*principal.issuer, &*principal.subject), ("main", "alice"));
    assert_eq!(texts(&principal.groups), ["dev"]);
    assert_eq!(texts(&principal.scopes), ["tekton:read", "tekton:run"]);
    assert_eq!(principal.client.as_deref(), Some("cli"));
    assert_eq!(principal.email.as_deref(), Some("a@b"));
    assert_eq!(principal.credential.to_string(), "token:t1");
    assert_eq!(principal.expires.as_secs(), START + 600);
    assert_eq!(principal.login.auth_time.unwrap().as_secs(), START - 5);
    assert_eq!(texts(&principal.login.amr), ["pwd", "otp"]);
    let actor = principal.actor.as_ref().unwrap();
    assert_eq!((&*actor.subject, actor.client.as_deref()), ("bot", Some("bot-app")));
    assert_eq!(principal.workload, None);
}

/// oauth:25: scopes are exact, and never split further than the issuer did.
#[tokio::test]
async fn scopes_are_taken_as_granted() {
    let bench = Bench::new(json!({})).await;
    for (changes, expected) in [
        (json!({"scope": "a b"}), vec!["a", "b"]),
        (json!({"scope": "a  b "}), vec!["a", "b"]),
        (json!({"scope": "a\tb"}), vec!["a\tb"]),
        (json!({"scope": "Admin"}), vec!["Admin"]),
        (json!({"scope": null, "scp": ["a", "admin read"]}), vec!["a", "admin read"]),
        (json!({"scope": ["a", "b"]}), vec!["a", "b"]),
        (json!({"scope": null}), vec![]),
    ] {
        let principal = bench.principal(changes.clone()).await.unwrap();
        assert_eq!(texts(&principal.scopes), expected, "{changes}");
    }
    for (count, refused) in [(1_000, None), (1_001, Some(Reason::TokenInvalid))] {
        let outcome = bench.principal(json!({"scope": null, "scp": vec!["s"; count]})).await;
        assert_eq!(outcome.err().map(|rejection| rejection.reason()), refused, "{count}");
    }
}

/// kubernetes:E1, S1 to S3.
#[tokio::test]
async fn groups() {
    let bench = Bench::new(json!({})).await;
    for (row, groups, expected) in [
        ("twin", json!(["dev", "ops"]), Ok(vec!["dev", "ops"])),
        ("kubernetes:E1 none", json!([]), Ok(vec![])),
        ("kubernetes:E1 empty", json!(["", "dev"]), Ok(vec!["dev"])),
        ("kubernetes:S1", json!(["system:masters"]), Err(Reason::IdentityRefused)),
        ("kubernetes:S2", json!(["system:authenticated", "dev"]), Ok(vec!["dev"])),
        ("kubernetes:S3 case", json!(["System:masters"]), Err(Reason::IdentityRefused)),
        ("kubernetes:S3 systemx", json!(["systemx:y"]), Ok(vec!["systemx:y"])),
        ("kubernetes:S3 Cyrillic", json!(["ѕystem:masters"]), Ok(vec!["ѕystem:masters"])),
        ("kubernetes:S3 tab", json!(["system:masters\t"]), Err(Reason::IdentityRefused)),
        ("kubernetes:S3 blank", json!(["dev "]), Err(Reason::IdentityRefused)),
        ("oauth:26 number", json!(["dev", 5]), Err(Reason::TokenInvalid)),
        ("oauth:26 many", json!(vec!["g"; 1_001]), Err(Reason::TokenInvalid)),
    ] {
        let principal = bench.principal(json!({"groups": groups})).await;
        let outcome = principal.as_ref().map(|principal| texts(&principal.groups)).map_err(Rejection::reason);
        assert_eq!(outcome, expected, "{row}");
    }
}

/// kubernetes:S1, E1: reserved names, and missing names.
#[tokio::test]
async fn user_names() {
    let bench = Bench::new(json!({"username": "{claim:/name}"})).await;
    for (row, name, expected) in [
        ("twin", json!("alice"), None),
        ("kubernetes:S1", json!("system:serviceaccount:kube-system:x"), Some(Reason::IdentityRefused)),
        ("kubernetes:S1", json!("system:authenticated"), Some(Reason::IdentityRefused)),
        ("kubernetes:S3 systemx", json!("systemx:y"), None),
        ("kubernetes:E1 missing", json!(null), Some(Reason::IdentityRefused)),
        ("kubernetes:E1 empty", json!(""), Some(Reason::IdentityRefused)),
        ("kubernetes:E1 blank", json!(" "), Some(Reason::IdentityRefused)),
        ("number", json!(5), Some(Reason::IdentityRefused)),
        ("oauth:18 newline", json!("a\nb"), Some(Reason::IdentityRefused)),
    ] {
        let outcome = bench.principal(json!({"name": name})).await;
        assert_eq!(outcome.err().map(|rejection| rejection.reason()), expected, "{row} {name}");
    }
}

/// kubernetes:S1, E1: the trail must show who tried it.
#[tokio::test]
async fn a_refusal_of_a_verified_token_says_whom_it_names() {
    let bench = Bench::new(json!({"username": "{claim:/name}"})).await;
    for (changes, user, group) in [
        (json!({"name": "system:admin"}), Some("system:admin"), None),
        (json!({"name": "alice", "groups": ["dev", "system:masters"]}), None, Some("system:masters")),
        (json!({"name": 5}), None, None),
        (json!({"name": "alice", "groups": "dev"}), None, None),
    ] {
        let refused = bench.principal(changes.clone()).await.unwrap_err();
        let presented = refused.presented().unwrap();
        assert_eq!((&*presented.issuer, &*presented.subject), ("main", "alice"), "{changes}");
        assert_eq!((presented.user.as_deref(), presented.group.as_deref()), (user, group), "{changes}");
        assert_eq!(presented.credential, CredentialId::Token("t1".into()), "{changes}");
    }
    let elsewhere = bench.principal(json!({"name": "system:admin", "aud": "another"})).await.unwrap_err();
    assert_eq!(elsewhere.presented(), None, "it was not for us");
}

/// attacks:Z5: a principal of unknown kind is an agent.
#[tokio::test]
async fn kinds() {
    for (row, settings, changes, expected) in [
        ("attacks:Z5", json!({}), json!({}), Kind::Agent),
        ("issuer", json!({"kind": "human"}), json!({}), Kind::Human),
        ("client", json!({"clients": [{"id": "cli", "kind": "human"}]}), json!({}), Kind::Human),
        (
            "client over issuer",
            json!({"kind": "human", "clients": [{"id": "cli", "kind": "workload"}]}),
            json!({}),
            Kind::Workload,
        ),
        (
            "another client",
            json!({"clients": [{"id": "cli", "kind": "human"}]}),
            json!({"client_id": "x"}),
            Kind::Agent,
        ),
        ("client credentials", json!({"kind": "human"}), json!({"sub": "cli"}), Kind::Agent),
        (
            "client credentials by another subject",
            json!({"kind": "human", "clients": [{"id": "nightly", "subject": "5f0c"}]}),
            json!({"client_id": "nightly", "sub": "5f0c"}),
            Kind::Agent,
        ),
        (
            "twin: a person by that client",
            json!({"kind": "human", "clients": [{"id": "nightly", "subject": "5f0c"}]}),
            json!({"client_id": "nightly"}),
            Kind::Human,
        ),
        (
            "client credentials of a client of people",
            json!({"clients": [{"id": "cli", "kind": "human"}]}),
            json!({"sub": "cli"}),
            Kind::Agent,
        ),
        (
            "client credentials of a workload",
            json!({"clients": [{"id": "cli", "kind": "workload"}]}),
            json!({"sub": "cli"}),
            Kind::Workload,
        ),
        ("delegated", json!({"kind": "human"}), json!({"act": {"sub": "bot"}}), Kind::Agent),
    ] {
        let bench = Bench::new(settings).await;
        assert_eq!(bench.principal(changes).await.unwrap().kind, expected, "{row}");
    }
}

/// Rules treated the person as an agent: a scope alone was enough, a deny for people did not match, and a rule for
/// agents of people matched nobody. They did so again where the token was issued to an actor that is a listed client.
#[tokio::test]
async fn a_person_behind_an_actor_is_still_a_person_to_the_policy() {
    const POLICY: &str = "
issuers: [{name: main, issuer: 'https://main.example'}]
routes: [{name: web, kind: http, hosts: [web.example], schemes: [bearer, anonymous], upstream: web}]
rules:
  - {id: by-scope, on: {paths: [/scope]}, who: {kind: agent, scopes: ['tekton:run']}, do: allow}
  - {id: agents, on: {paths: [/agent]}, who: {kind: agent}, do: allow}
  - {id: people, on: {paths: [/human]}, who: {kind: human}, do: allow}
  - {id: for-people, on: {paths: [/behalf]}, who: {kind: human, on_behalf_of: {}}, do: allow}
  - {id: all, on: {paths: [/no-people]}, do: allow}
  - {id: no-people, on: {paths: [/no-people]}, who: {kind: human}, do: deny}
";
    let root: raw::Root = serde_saphyr::from_str(POLICY).unwrap();
    let policy = Policy::compile(&root, &mut Resolver::default()).unwrap();
    let act = json!({"act": {"sub": "bot"}});
    let by_client = |client: &str| json!({"client_id": client, "act": {"sub": client, "client_id": client}});
    for (kind, changes, allowed) in [
        ("human", json!({}), ["/human"].as_slice()),
        ("human", act.clone(), &["/agent", "/behalf"]),
        ("human", by_client("planner"), &["/agent", "/behalf"]),
        ("human", by_client("nightly"), &["/agent", "/behalf"]),
        // The client itself, for which another acts.
        (
            "human",
            changed(act.clone(), &json!({"client_id": "planner", "sub": "planner"})),
            &["/scope", "/agent", "/no-people"],
        ),
        ("agent", json!({}), &["/scope", "/agent", "/no-people"]),
        ("agent", act, &["/scope", "/agent", "/no-people"]),
    ] {
        let clients = json!([{"id": "planner", "kind": "agent"}, {"id": "nightly", "kind": "workload"}]);
        let bench = Bench::new(json!({"kind": kind, "clients": clients})).await;
        let principal = bench.principal(changes.clone()).await.unwrap();
        assert_eq!(principal.kind == Kind::Human, allowed == ["/human"]);
        for path in ["/scope", "/agent", "/human", "/behalf", "/no-people"] {
            let request = raw::RequestFacts {
                route: "web".to_owned(),
                path: Some(path.to_owned()),
                ..raw::RequestFacts::default()
            };
            let scenario = Scenario::new(None, &request, &root).unwrap();
            let decision = policy.decide(&principal, &scenario.request());
            assert_eq!(decision.is_allow(), allowed.contains(&path), "{kind} {changes} at {path}: {decision:?}");
        }
    }
}

#[tokio::test]
async fn an_actor_must_be_named() {
    let bench = Bench::new(json!({})).await;
    for act in [json!({}), json!("bot"), json!({"sub": ""}), json!({"sub": 5})] {
        let rejection = bench.principal(json!({"act": act})).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::TokenInvalid);
    }
}

#[tokio::test]
async fn an_email_counts_only_if_it_is_verified() {
    let bench = Bench::new(json!({})).await;
    for (verified, expected) in
        [(json!(true), Some("a@b")), (json!("true"), None), (json!(null), None), (json!(1), None)]
    {
        let principal = bench.principal(json!({"email": "a@b", "email_verified": verified})).await.unwrap();
        assert_eq!(principal.email.as_deref(), expected);
    }
}

/// attacks:Z2: a shared audience is accepted for listed clients only.
#[tokio::test]
async fn a_shared_audience_needs_a_listed_client() {
    let bench = Bench::new(json!({"audiences": ["api://default"], "clients": [{"id": "cli"}]})).await;
    bench.principal(json!({"aud": "api://default"})).await.unwrap();
    let other = bench.principal(json!({"aud": "api://default", "client_id": "other"})).await.unwrap_err();
    assert_eq!(other.reason(), Reason::TokenInvalid);
}

/// oauth:14: an ID token is not an access token, even if its `typ` does not show it.
#[tokio::test]
async fn id_tokens_are_refused() {
    let bench = Bench::new(json!({})).await;
    bench.principal(json!({})).await.unwrap();
    for changes in [json!({"nonce": "n"}), json!({"token_use": "id"}), json!({"typ": "ID"}), json!({"typ": "Refresh"})]
    {
        assert_eq!(bench.principal(changes).await.unwrap_err().reason(), Reason::TokenInvalid);
    }
}

/// An ID token from a refresh at Spring Authorization Server has neither `typ` nor `nonce`, and the audience of access
/// tokens.
#[tokio::test]
async fn an_id_token_without_a_nonce_is_recognized_by_its_other_claims() {
    let none = Value::Null;
    for (preset, types) in [(none.clone(), json!([""])), ("okta".into(), none.clone()), ("dex".into(), none)] {
        // Access tokens of Dex look like this.
        let told = preset != "dex";
        let bench = Bench::new(json!({"preset": preset, "token_types": types})).await;
        for (what, changes, refused) in [
            ("an access token", json!({}), false),
            ("of a login, with scopes", json!({"client_id": null, "sid": "s-1", "auth_time": START}), false),
            ("of a login, with a client", json!({"scope": null, "sid": "s-1", "auth_time": START}), false),
            ("c_hash", json!({"c_hash": "AAAA"}), true),
            ("at_hash", json!({"at_hash": "AAAA"}), told),
            ("sid", json!({"client_id": null, "scope": null, "azp": "cli", "sid": "s-1"}), told),
            ("auth_time", json!({"client_id": null, "scope": null, "auth_time": START}), told),
        ] {
            let token = bench.headed(r#"{"alg":"RS256","kid":"rsa"}"#, changes);
            let outcome = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await;
            assert_eq!(outcome.is_err(), refused, "{preset} {what}: {outcome:?}");
        }
    }
}

/// The configured claims may be in ID tokens too, or missing for people without a role.
#[tokio::test]
async fn where_client_and_scopes_are_read_does_not_decide_what_is_an_id_token() {
    let no_usual = json!({"client_id": null, "scope": null, "azp": "cli", "sid": "s-1"});
    for settings in [
        json!({}),
        json!({"client": "aud", "scopes": "groups"}),
        json!({"client": "azp", "scopes": "/resource_access/doorward/roles"}),
    ] {
        let bench = Bench::new(json!({"token_types": [""], "claims": settings})).await;
        for (what, changes, refused) in [
            ("an ID token", json!({}), true),
            ("with scopes", json!({"scope": "tekton:read"}), false),
            ("with a client", json!({"appid": "cli"}), false),
            ("an access token by Keycloak's word", json!({"typ": "Bearer"}), false),
            ("an access token by Cognito's word", json!({"token_use": "access"}), false),
            ("another word", json!({"typ": "JWT", "token_use": "login"}), true),
        ] {
            let basis = no_usual.as_object().unwrap().clone().into_iter().chain(changes.as_object().unwrap().clone());
            let token = bench.headed(r#"{"alg":"RS256","kid":"rsa"}"#, Value::Object(basis.collect()));
            let outcome = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await;
            assert_eq!(outcome.is_err(), refused, "{settings} {what}: {outcome:?}");
        }
    }
}

/// RFC 9864 deprecates the name `EdDSA`, which does not name the curve.
#[tokio::test]
async fn ed25519_is_accepted_under_both_of_its_names() {
    for [of_key, of_token, setting] in [
        ["EdDSA", "EdDSA", "EdDSA"],
        ["Ed25519", "Ed25519", "EdDSA"],
        ["Ed25519", "EdDSA", "Ed25519"],
        ["EdDSA", "Ed25519", "Ed25519"],
    ] {
        let provider = Provider::with_keys(&[ED25519.jwk("ed", json!({"alg": of_key}))]).await;
        let issuer =
            json!({"name": "main", "issuer": provider.url, "audiences": ["doorward"], "algorithms": [setting]});
        let (issuers, accepts) = ready(&json!({"issuers": [issuer]}), &context()).await;
        let header = json!({"alg": of_token, "kid": "ed", "typ": "at+jwt"}).to_string();
        let token = ED25519.token(&header, &claims(&provider.url, json!({})));
        issuers.authenticate(&token, &accepts, &nothing).await.unwrap();
    }
}

/// peers:D9: the same subject at two issuers is two users.
#[tokio::test]
async fn one_subject_of_two_issuers_is_two_users() {
    let (first, second) = (Bench::new(json!({})).await, Bench::new(json!({})).await);
    let (first, second) = (first.principal(json!({})).await.unwrap(), second.principal(json!({})).await.unwrap());
    assert_eq!(first.subject, second.subject);
    assert_ne!(first.username, second.username);
}

/// A token that one route accepted is checked again for the next.
#[tokio::test]
async fn a_cached_token_is_checked_against_each_route() {
    let bench = Bench::new(json!({"audiences": ["a", "b"]})).await;
    let token = bench.token(json!({"aud": "a"}));
    let route = |audience: &str| bench.accepts.clone().with_audiences(&[audience.to_owned()]);
    let (a, b) = (route("a"), route("b"));
    bench.issuers.authenticate(&token, &a, &nothing).await.unwrap();
    let rejection = bench.issuers.authenticate(&token, &b, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::AudienceMismatch, "attacks:Z33");
    bench.issuers.authenticate(&token, &a, &nothing).await.unwrap();

    let nobody = Accepts { issuers: Box::default(), logins: None, audiences: Box::default() };
    let rejection = bench.issuers.authenticate(&token, &nobody, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::IssuerUnknown);
}

#[tokio::test]
async fn a_cached_token_expires_and_is_one_principal() {
    let bench = Bench::new(json!({})).await;
    let token = bench.token(json!({}));
    let first = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await.unwrap();
    bench.context.clock.advance(Duration::from_secs(629));
    let again = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(bench.context.metrics.cache_hits.get(), 1);
    bench.context.clock.advance(Duration::from_secs(1));
    let rejection = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::TokenExpired);
    assert!(precise(&rejection).contains("expired 30 s ago"), "{}", precise(&rejection));
}

/// After a restart without the cluster, or the namespace, no watch would have ended these tokens with their run.
#[tokio::test]
async fn an_own_token_for_a_run_is_refused_where_the_end_of_the_run_is_not_watched() {
    let own = json!({"name": "own", "issuer": "https://door.example", "preset": "doorward", "audiences": ["doorward"]});
    let exchange = json!([
        {"issuer": "east", "kubernetes": "api", "namespaces": ["ci"]},
        {"issuer": "west", "kubernetes": "api"},
        {"issuer": "corp"},
    ]);
    let (issuers, _) = resolve(&json!({"issuers": [own], "tokens": {"exchange": exchange}}), None, &context());
    for (issuer, cluster, namespace, is_lost) in [
        ("own", Some("east"), "ci", false),
        ("own", Some("east"), "staging", true),
        ("own", Some("west"), "staging", false),
        ("own", Some("renamed"), "ci", true),
        ("own", Some("corp"), "ci", true),
        ("own", None, "ci", true),
        ("elsewhere", Some("renamed"), "ci", false),
    ] {
        let claims = json!({RUN_CLAIM: {"cluster": cluster, "namespace": namespace}});
        let principal = Principal {
            claims: Arc::new(claims.as_object().unwrap().clone()),
            ..Principal::new(Scheme::Bearer, issuer, "7", "alice")
        };
        assert_eq!(issuers.have_lost_run_of(&principal), is_lost, "{issuer} {cluster:?} {namespace}");
    }
    assert!(!issuers.have_lost_run_of(&Principal::new(Scheme::Bearer, "own", "7", "alice")), "for no run");
}
