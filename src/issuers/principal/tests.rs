use serde_json::json;

use super::*;
use crate::authn::Kind;

fn mapping(preset: Option<Preset>) -> Mapping {
    Mapping {
        name: "own".into(),
        preset,
        username: UsernameTemplate::given(),
        of_tenants: Box::default(),
        kinds: Kinds { is_claim: preset == Some(Preset::Doorward), ..Kinds::default() },
        listed_clients_only: false,
        groups: Box::default(),
        scopes: Box::default(),
        client: [ClaimPath::parse("client_id").unwrap()].into(),
        audience_is_client: false,
    }
}

#[test]
fn a_client_name_that_is_too_long_is_refused_with_the_limit() {
    for (preset, longest) in [(None, MAX_SUBJECT), (Some(Preset::Doorward), MAX_NAME)] {
        let client = |bytes: usize| {
            let claims = json!({"client_id": "c".repeat(bytes)});
            mapping(preset).client(claims.as_object().unwrap(), Scheme::Bearer)
        };
        assert!(client(longest).is_ok());
        let told = client(longest + 1).unwrap_err().to_string();
        assert!(told.contains(&format!("1 to {longest} bytes")), "{told}");
    }
}

/// Otherwise a deny of a group would match neither its members nor callers without any groups claim.
#[test]
fn a_place_with_null_is_passed_over_for_the_next() {
    let paths = |paths: [&str; 2]| paths.map(|path| ClaimPath::parse(path).unwrap()).into();
    let mapping = Mapping {
        groups: paths(["groups", "/realm_access/roles"]),
        scopes: paths(["scope", "scp"]),
        client: paths(["client_id", "azp"]),
        ..mapping(None)
    };
    let claims = json!({
        "groups": null, "realm_access": {"roles": ["contractor"]}, "scope": null, "scp": ["read"], "client_id": null, "azp": "cli",
    });
    let claims = claims.as_object().unwrap();
    let mut presented = PresentedIdentity {
        issuer: "issuer".into(),
        subject: "subject".into(),
        user: None,
        group: None,
        credential: CredentialId::None,
    };
    let mut groups = |claims| mapping.groups(claims, &mut presented).unwrap();
    assert_eq!(groups(claims), [Arc::<str>::from("contractor")]);
    assert_eq!(mapping.scopes(claims).unwrap(), [Arc::<str>::from("read")]);
    assert_eq!(mapping.client(claims, Scheme::Bearer).unwrap().as_deref(), Some("cli"));
    let nothing = json!({"groups": null, "scp": null, "azp": null});
    let nothing = nothing.as_object().unwrap();
    assert!(groups(nothing).is_empty() && mapping.scopes(nothing).unwrap().is_empty());
    assert_eq!(mapping.client(nothing, Scheme::Bearer).unwrap(), None);
}

/// Only so can rules tell actors of the same name apart.
#[test]
fn an_actor_is_of_the_issuer_that_its_token_says() {
    let named = |issuer: &str| json!({"issuer": issuer, "sub": "bot"});
    let bot = json!({"sub": "bot"});
    for (preset, act, acting, expected) in [
        (None, bot.clone(), json!([]), Some("own")),
        (None, json!({"iss": "https://own", "sub": "bot"}), json!([]), Some("own")),
        (None, json!({"iss": "https://other", "sub": "bot"}), json!([]), None),
        // The claim of this name is Doorward's.
        (None, json!({"iss": "https://other", "sub": "bot"}), json!([named("other")]), None),
        (Some(Preset::Doorward), bot.clone(), json!([named("other")]), Some("other")),
        (Some(Preset::Doorward), bot.clone(), json!([]), None),
        (Some(Preset::Doorward), json!({"sub": "x"}), json!([named("other")]), None),
        // Only the earlier one is of a known issuer.
        (Some(Preset::Doorward), json!({"sub": "bot", "act": bot}), json!([named("other")]), None),
        (
            Some(Preset::Doorward),
            json!({"sub": "bot", "act": bot}),
            json!([named("other"), named("third")]),
            Some("other"),
        ),
    ] {
        let claims = json!({"iss": "https://own", "act": act, "acting": acting});
        let actor = mapping(preset).actor(claims.as_object().unwrap()).unwrap().unwrap();
        assert_eq!(actor.issuer.as_deref(), expected, "{claims}");
    }
}

#[test]
fn own_tokens_name_the_kind_of_their_subject_and_not_of_the_actor() {
    for (of_subject, act, expected) in [
        ("human", None, Kind::Human),
        ("human", Some("planner"), Kind::Agent),
        ("workload", Some("planner"), Kind::Workload),
    ] {
        let mut claims = json!({"kind": of_subject});
        if let Some(actor) = act {
            claims["act"] = json!({"sub": actor});
        }
        let facts = Facts {
            claims: claims.as_object().unwrap().clone(),
            subject: "bob".into(),
            expires: Timestamp::from_secs(1),
            scheme: Scheme::Bearer,
            scopes: None,
            credential: CredentialId::None,
        };
        let principal = mapping(Some(Preset::Doorward)).principal(facts).unwrap();
        assert_eq!((principal.kind, principal.kind_of_subject().as_str()), (expected, of_subject));
    }
}

#[test]
fn the_longest_name_that_a_task_can_have_is_taken_in_our_own_tokens_alone() {
    let (namespace, account) = ("n".repeat(63), "a".repeat(253));
    let task = Actor::service_account(Some(&"c".repeat(63)), &namespace, &account).subject;
    let principal = |preset, client: &str, actor: &str| {
        let claims = json!({"client_id": client, "act": {"sub": actor}, RUN_CLAIM: {}});
        mapping(preset).principal(Facts {
            claims: claims.as_object().unwrap().clone(),
            subject: "bob".into(),
            expires: Timestamp::from_secs(1),
            scheme: Scheme::Bearer,
            scopes: None,
            credential: CredentialId::None,
        })
    };
    let account = format!("system:serviceaccount:{namespace}:{account}");
    let found = principal(Some(Preset::Doorward), &task, &account).unwrap();
    assert_eq!((found.client.as_ref(), found.actor.map(|actor| actor.subject)), (Some(&task), Some(task.clone())));
    for (client, actor) in [("a".repeat(513), "x".to_owned()), ("x".to_owned(), "a".repeat(513))] {
        assert!(principal(Some(Preset::Doorward), &client, &actor).is_err());
    }
    for (client, actor) in [("a".repeat(256), "x".to_owned()), ("x".to_owned(), "a".repeat(256))] {
        assert!(principal(None, &client, &actor).is_err());
        let (client, actor) = (client.get(..255).unwrap_or(&client), actor.get(..255).unwrap_or(&actor));
        assert!(principal(None, client, actor).is_ok());
    }
}
