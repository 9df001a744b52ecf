//! Callers that are revoked while they wait for a token of another provider.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use super::{Provider, ask, good, start, start_with};
use crate::{
    harness::{Reply, part, until},
    issuing::{World, room::Holder},
};

async fn revoke(world: &World, subject: &str) {
    let arguments = ["revoke", "--issuer", "people", "--subject", subject, "--why", "left"];
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
    let (answer, ()) = tokio::join!(ask(&world, &alice, "vault", "read"), meanwhile);
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")), "{}", answer.text());
    assert!(answer.text().contains("the caller was revoked, while the provider was asked"), "{}", answer.text());
    assert!(!answer.text().contains("too-late"), "{}", answer.text());
}
