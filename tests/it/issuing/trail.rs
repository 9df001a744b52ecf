//! The audit records of exchanges, which never contain the tokens.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{DOOR, TARGET, World, introspected, part};
use crate::{
    fixture::Change,
    harness::{Answer, found},
};

impl World {
    /// The record of a response.
    pub async fn record(&self, answer: &Answer) -> Value {
        let id = answer.header("x-request-id").unwrap();
        self.doorward.record(|record| record.to_string().contains(id)).await
    }
}

#[tokio::test]
async fn a_token_that_is_asked_for_in_the_address_is_refused_in_the_trail_too() {
    let world = World::start().await;
    let kind = "Content-Type: application/x-www-form-urlencoded";
    for path in ["/oauth2/token", "/oauth2/revoke", "/oauth2/introspect"] {
        let line = format!("POST {path}?subject_token=x HTTP/1.1");
        let answer = world.doorward.send(&[&line, "Host: doorward.test", kind], b"").await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")), "{path}");
        let record = world.record(&answer).await;
        assert_eq!(record["status_code"], "bad_request", "{path}: {record:#}");
        assert_eq!(record["status_detail"], "parameters belong in the form, not in the address", "{path}");
    }
}

/// Regression: it was recorded as 0.
#[tokio::test]
async fn the_size_of_a_form_is_recorded_and_no_digest_of_its_secret() {
    let world = World::start().await;
    let kind = "Content-Type: application/x-www-form-urlencoded";
    for path in ["/oauth2/token", "/oauth2/revoke", "/oauth2/introspect"] {
        let line = format!("POST {path} HTTP/1.1");
        let answer = world.doorward.send(&[&line, "Host: doorward.test", kind], b"token=x").await;
        let record = world.record(&answer).await;
        assert_eq!(record["traffic"]["bytes_in"], 7, "{path}: {record:#}");
        assert!(record["unmapped"]["body_sha256"].is_null(), "{path}: {record:#}");
    }
}

#[tokio::test]
async fn shadow_decisions_about_each_scope_of_a_token_are_recorded() {
    let rules = "
  - {id: more, on: {token: {audiences: ['https://target.test'], scopes: [plan, deploy]}}, who: {issuers: [ci]}, do: allow}
  - {id: no-deploy, on: {token: {scopes: [deploy]}}, who: {issuers: [ci]}, do: deny, mode: shadow}
  - {id: no-plan, on: {token: {scopes: [plan]}}, who: {issuers: [ci]}, do: deny, mode: shadow}
  - {id: erase, on: {token: {audiences: ['https://target.test'], scopes: [erase]}}, who: {issuers: [ci]}, do: allow, mode: shadow}
  - {id: no-erase, on: {token: {scopes: [erase]}}, who: {issuers: [ci]}, do: deny, mode: shadow}
";
    let world = World::with(|yaml| yaml.change("rules:\n", &format!("rules:{rules}"))).await;
    let job = world.job(&json!({}));
    for (scope, given, shadow) in [
        ("plan", true, json!(["no-plan"])),
        ("plan deploy", true, json!(["no-plan", "no-deploy"])),
        // Scopes are checked in order, up to the first that no rule grants.
        ("plan unknown", false, json!(["no-plan"])),
    ] {
        let answer = world.exchange(&job, scope).await;
        assert_eq!(answer.status == 200, given, "{scope}: {}", answer.text());
        assert_shadow(&world.record(&answer).await, scope, &shadow);
    }
    // Everything that rules grant, and what they would grant otherwise.
    let answer = world.ask(&[("subject_token", &job), ("audience", TARGET)]).await;
    answer.token();
    assert_shadow(&world.record(&answer).await, "all", &json!(["no-plan", "no-deploy", "erase"]));
}

fn assert_shadow(record: &Value, scope: &str, expected: &Value) {
    let sorted = |list: &Value| {
        let mut list: Vec<String> =
            list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        list.sort();
        list
    };
    assert_eq!(sorted(&record["unmapped"]["shadow"]), sorted(expected), "{scope}: {record:#}");
}

#[tokio::test]
async fn a_token_that_an_operator_revokes_is_traced_to_its_end() {
    let key = BASE64_STANDARD.encode([5; 32]);
    let hides = |yaml: String| yaml.change("audit: {", "audit: {pseudonym_key: {file: pseudonyms}, ");
    for world in [World::start().await, World::with_files(hides, &[("pseudonyms", &key)]).await] {
        let identifier = world.ci.url().to_owned();
        for (what, issuer, by) in [
            ("a token", "own", "jti"),
            ("a token, by the identifier of its issuer", DOOR, "jti"),
            ("whose it is", "ci", "origin"),
            ("whose it is, by the identifier of their issuer", &*identifier, "origin"),
            ("whom it names", "own", "sub"),
        ] {
            // Revoked callers get no other token.
            let subject = format!("repo:acme/app:{}", what.len());
            let own = world.exchange(&world.job(&json!({"sub": subject})), "deploy").await.token();
            let claims = part(&own, 1);
            let claim = |name: &str| claims[name].as_str().unwrap_or(&subject);
            let (option, jti) = (if by == "jti" { "--token-id" } else { "--subject" }, claim("jti"));
            let arguments = ["revoke", "--issuer", issuer, option, claim(by), "--why", "leaked"];
            let (code, said) = world.doorward.operator(&arguments).await;
            assert_eq!(code, Some(0), "{what}: {said}");
            assert_eq!(introspected(&world, "target", &own).await["active"], false, "{what}");
            let traced = traced(&world, jti).await;
            assert!(traced.contains("an operator revoked it: leaked"), "{what}: {traced}");
        }
    }
}

/// The output of `doorward audit trace` for a token, once it reports an end.
pub async fn traced(world: &World, jti: &str) -> String {
    found(async || Some(world.doorward.trace("token", jti).await.1).filter(|said| said.contains("    ended    "))).await
}
