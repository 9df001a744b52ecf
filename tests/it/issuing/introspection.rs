//! Introspection of tokens by resource servers (RFC 7662).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;
use url::form_urlencoded;

use super::{TARGET, World, agents, introspected, part, secret};
use crate::{fixture::Change, harness::until};

#[tokio::test]
async fn introspection_tells_a_resource_server_whether_its_token_is_active() {
    let world = World::start().await;
    let agent = world.person("planner-account", &json!({"client_id": "planner"}));
    let person = world.person("alice", &json!({"client_id": "planner"}));
    let own = agents::ask(&world, &person, &agent).await.token();
    let another = agents::ask(&world, &person, &agent).await.token();
    let ask = async |authorization: &str, token: &str| {
        world.doorward.submit("/oauth2/introspect", &[authorization], &format!("token={token}")).await
    };
    let basic = |id: &str, secret: &str| {
        let secret: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")))
    };
    let (target, other) = (basic("target", &secret("target")), basic("other", &secret("other")));
    let good = ask(&target, &own).await;
    assert_eq!(good.header("cache-control"), Some("no-store"));
    let (said, claims) = (good.json(), part(&own, 1));
    assert_eq!((&said["active"], &said["token_type"]), (&json!(true), &json!("Bearer")), "{said:#}");
    for name in ["sub", "aud", "iss", "exp", "iat", "jti", "scope", "client_id", "act", "origin"] {
        assert_eq!(said[name], claims[name], "{name}: {said:#}");
    }
    let (jti, question) = (claims["jti"].as_str().unwrap(), good.header("x-request-id").unwrap().to_owned());
    let inactive = json!({"active": false});
    let forged = format!("{}AA", own.get(..own.len() - 2).unwrap());
    for (what, who, token) in [
        ("of another server", &other, own.clone()),
        ("forged", &target, forged),
        ("somebody else's", &target, person.clone()),
        ("none", &target, "x".to_owned()),
    ] {
        assert_eq!(ask(who, &token).await.json(), inactive, "{what}");
    }
    for (what, who) in [
        ("nobody", "X-Nobody: 1".to_owned()),
        ("a wrong secret", basic("target", "wrong")),
        ("another's secret", basic("target", &secret("other"))),
        ("unknown", basic("unknown", &secret("target"))),
        ("the token itself", format!("Authorization: Bearer {own}")),
    ] {
        let answer = ask(&who, &own).await;
        assert_eq!((answer.status, &answer.json()["error"]), (401, &json!("invalid_client")), "{what}");
        assert!(answer.header("www-authenticate").is_some_and(|challenge| challenge.starts_with("Basic")), "{what}");
    }
    world.doorward.record(|line| line.to_string().contains("only servers in `tokens.resource_servers`")).await;
    // Each use of it at a server that introspected it is recorded, with a reference to the token.
    until(async || {
        let told = world.doorward.trace("token", jti).await.1;
        told.contains("at resource server target, which was told it is active")
            && told.contains("at resource server other, which was told it is not active")
    })
    .await;
    let back = world.doorward.trace("request", &question).await.1;
    assert!(back.contains(&format!("token      {jti} for {TARGET}")), "{back}");
    // A token that its holder has ended, and all tokens of a person who is locked out, also on Doorward's own routes.
    assert_eq!(world.doorward.submit("/oauth2/revoke", &[], &format!("token={own}")).await.status, 200);
    assert_eq!(ask(&target, &own).await.json(), inactive);
    assert_eq!(ask(&target, &another).await.json()["active"], true);
    let bearer = format!("Authorization: Bearer {another}");
    assert_eq!(world.doorward.get("/", &["Host: localhost", &bearer]).await.status, 200);
    let (code, said) =
        world.doorward.operator(&["revoke", "--issuer", "people", "--subject", "alice", "--why", "left"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(ask(&target, &another).await.json(), inactive);
    let answer = world.doorward.get("/", &["Host: localhost", &bearer]).await;
    assert_eq!((answer.status, answer.reason()), (401, "token_revoked".to_owned()), "{}", answer.text());
}

/// Neither knows which of its own tokens the other has revoked.
#[tokio::test]
async fn a_token_of_another_doorward_with_the_same_keys_is_not_active() {
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let files = [("key.pem", key.as_str())];
    let with_key = |yaml: String| yaml.change("\ntokens:\n", "\ntokens:\n  keys: [{file: key.pem}]\n");
    let one = World::with_files(with_key, &files).await;
    let other = World::with_files(|yaml| with_key(yaml).change("doorward.test", "localhost"), &files).await;
    let of_one = one.exchange(&one.job(&json!({})), "deploy").await.token();
    let of_other = other.exchange(&other.job(&json!({"aud": "https://localhost"})), "deploy").await.token();
    assert_eq!(part(&of_one, 0)["kid"], part(&of_other, 0)["kid"]);
    for (world, own, foreign) in [(&one, &of_one, &of_other), (&other, &of_other, &of_one)] {
        assert_eq!(introspected(world, "target", own).await["active"], true);
        assert_eq!(introspected(world, "target", foreign).await, json!({"active": false}));
    }
}
