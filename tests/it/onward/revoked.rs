//! Callers that are revoked, most while they wait for a token of another provider.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use super::{Provider, ask, good, start, start_with};
use crate::{
    fixture::Change,
    harness::{Reply, part, until},
    issuing::{World, room::Holder},
    registry::{SERVICE, ask_at},
};

async fn revoke(world: &World, subject: &str) {
    revoke_of(world, "people", subject).await;
}

async fn revoke_of(world: &World, issuer: &str, subject: &str) {
    let arguments = ["revoke", "--issuer", issuer, "--subject", subject, "--why", "left"];
    let (code, said) = world.doorward.operator(&arguments).await;
    assert_eq!(code, Some(0), "{said}");
}

/// The provider would issue a token that nothing ends there.
#[tokio::test]
async fn no_provider_is_asked_for_a_caller_revoked_while_waiting_for_the_trail() {
    let (mut holder, provider) = (Holder::start().await, Provider::start().await);
    let world = start_with(&provider.upstream.url(), |yaml| holder.change(&yaml)).await;
    let (alice, bob) = (world.person("alice", &json!({})), world.person("bob", &json!({})));
    let _held = holder.take(&world).await;
    let before = world.doorward.audit_waits().await;
    let meanwhile = async {
        until(async || world.doorward.audit_waits().await == before + 2).await;
        revoke(&world, "alice").await;
        holder.give_back();
    };
    let asked = async { tokio::join!(ask(&world, &alice, "vault", "read"), ask(&world, &bob, "vault", "read")) };
    let ((revoked, twin), ()) = tokio::join!(asked, meanwhile);
    assert_eq!(revoked.status, 400, "{}", revoked.text());
    assert!(revoked.text().contains("your access was revoked"), "{}", revoked.text());
    twin.token();
    let assertion = Provider::get(&provider.upstream.only(), "subject_token");
    assert_eq!(part(&assertion, 1)["sub"], world.username("bob"));
}

/// The caller is revoked only after the rules were evaluated.
#[tokio::test]
async fn a_caller_revoked_while_a_provider_is_asked_gets_no_token() {
    let (world, mut provider) = start().await;
    let alice = world.person("alice", &json!({}));
    let (told, given) = (Arc::new(Notify::new()), good("too-late").to_string());
    let later = format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{given}", given.len()).into_bytes();
    provider.says(Reply::Later(Arc::clone(&told), later));
    let meanwhile = async {
        provider.upstream.wait_for(1).await;
        revoke(&world, "alice").await;
        told.notify_one();
    };
    // Not `vault`, whose provider has two seconds.
    let (answer, ()) = tokio::join!(ask(&world, &alice, "bearer", "read"), meanwhile);
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")), "{}", answer.text());
    assert!(answer.text().contains("the caller was revoked, while the provider was asked"), "{}", answer.text());
    assert!(!answer.text().contains("too-late"), "{}", answer.text());
}

/// They went on to get tokens of providers and for registries, which ask nobody whether these are revoked.
#[tokio::test]
async fn a_holder_revoked_by_the_name_in_own_tokens_gets_no_others_whoever_accepts_them() {
    let provider = Provider::start().await;
    let images = "\n  - {id: images, on: {token: {audiences: [registry.test], scopes: ['pull:*']}}, who: {issuers: [people]}, do: allow}";
    let world = start_with(&provider.upstream.url(), |yaml| {
        let registry = format!("tokens:\n  registries: [{{service: {SERVICE}}}]\n");
        yaml.change("tokens:\n", &registry).change("\nrules:", &format!("\nrules:{images}"))
    })
    .await;
    let (alice, bob) = (world.person("alice", &json!({})), world.person("bob", &json!({})));
    revoke_of(&world, "own", &world.username("alice")).await;
    for (audience, scope) in [("vault", "read"), (SERVICE, "pull:acme/app")] {
        let refused = ask(&world, &alice, audience, scope).await;
        assert_eq!(refused.status, 400, "{audience}: {}", refused.text());
        assert!(refused.text().contains("subject_token: your access was revoked"), "{audience}: {}", refused.text());
        ask(&world, &bob, audience, scope).await.token();
    }
    let query = format!("service={SERVICE}&scope=repository:acme/app:pull");
    let refused = ask_at(&world.doorward, &query, Some(&alice)).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert!(refused.text().contains("password: your access was revoked"), "{}", refused.text());
    assert_eq!(ask_at(&world.doorward, &query, Some(&bob)).await.status, 200);
}
