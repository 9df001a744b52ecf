//! `doorward explain` for tokens: of a past exchange, and of a hypothetical one.

use std::time::{Duration, Instant};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    fixture::Change,
    harness::{Answer, found},
    issuing::World,
};

const TARGET: &str = "https://target.test";

async fn world() -> World {
    let rules = "
rules:
  - {id: people-plan, on: {token: {audiences: ['https://target.test'], scopes: [plan]}}, who: {issuers: [people], groups: [dev]}, do: allow}
  - id: release-deploys
    on: {token: {audiences: ['https://target.test'], scopes: [deploy], service_accounts: [ci/builder], pipelines: [release], pipeline_tasks: [push]}}
    who: {issuers: [people], on_behalf_of: {groups: [dev]}}
    do: allow
";
    World::with_files(
        |yaml| yaml.change_first("\nrules:\n", rules),
        &[("dev.yaml", "{issuer: people, kind: human, groups: [dev]}")],
    )
    .await
}

/// The output of `doorward explain`, and its exit status.
async fn explain(world: &World, options: &[&str]) -> (String, Option<i32>) {
    let (code, said) = world.doorward.told(&[&["explain", "doorward.yaml"], options].concat()).await;
    (said, code)
}

/// For an exchange, once the trail has it.
async fn explain_exchange(world: &World, answer: &Answer) -> (String, Option<i32>) {
    let id = answer.header("x-request-id").unwrap().to_owned();
    found(async || Some(explain(world, &["--audit-id", &id]).await).filter(|told| told.0.contains("recorded: "))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_is_explained_from_its_id() {
    let world = world().await;
    let alice = world.person("alice", &json!({"aud": "https://doorward.test"}));
    let ask = async |token: &str, scope: &str| {
        world.ask(&[("subject_token", token), ("audience", TARGET), ("scope", scope)]).await
    };

    let given = ask(&alice, "plan").await;
    assert_eq!(given.status, 200, "{}", given.text());
    let (said, status) = explain_exchange(&world, &given).await;
    assert_eq!(status, Some(0), "{said}");
    for part in [
        "asked for: a token for https://target.test, scope plan",
        "recorded: allow by people-plan",
        "ALLOW: a token for https://target.test with scope plan",
        "+ people-plan (allow): matches",
        "  release-deploys (allow): no match: on.token.scopes: needs deploy, has plan",
        "  deploy-from-main (allow): no match: ",
        "  no-mallory (deny): no match: ",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }

    let refused = ask(&alice, "deploy").await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    let (said, status) = explain_exchange(&world, &refused).await;
    assert_eq!(status, Some(1), "{said}");
    for part in [
        "scope deploy\nrecorded: deny by no rule",
        "policy_denied: ",
        "DENY: a token for https://target.test\n",
        "comes nearest",
    ] {
        assert!(said.contains(part), "{part} in {said}");
    }

    // A rule grants only one of the two scopes, so none is given.
    let (said, status) = explain_exchange(&world, &ask(&alice, "plan deploy").await).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("+ people-plan (allow): matches") && said.contains("scope deploy:"), "{said}");

    // No rule is evaluated before the caller is known.
    let stranger = world.person("alice", &json!({"aud": "https://elsewhere.test"}));
    let (said, status) = explain_exchange(&world, &ask(&stranger, "plan").await).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("scope plan\nrecorded: refused before any rule was evaluated"), "{said}");
    assert!(said.contains("no rule is evaluated before the caller and the request are known"), "{said}");
}

#[tokio::test]
async fn explain_token_lists_the_scopes_of_a_task_without_an_exchange() {
    let world = world().await;
    let task =
        ["--audience", TARGET, "--principal", "dev.yaml", "--service-account", "ci/builder", "--pipeline", "release"];
    let ask = async |more: &[&str]| explain(&world, &[&task[..], more].concat()).await;

    let (said, status) = ask(&["--pipeline-task", "push"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("ALLOW: a token for https://target.test with scope deploy\n"), "{said}");
    assert!(said.contains("scope plan is not given: "), "who asks for himself is no task: {said}");

    let (said, status) = ask(&["--pipeline-task", "test"]).await;
    assert_eq!(status, Some(1), "{said}");
    let nearest =
        "`release-deploys` comes nearest to allowing it, and misses on.token.pipeline_tasks: needs push, has test";
    assert!(said.contains("DENY: a token for https://target.test\n") && said.contains(nearest), "{said}");

    let (said, _) = ask(&["--pipeline-task", "push", "--scope", "deploy plan", "--format", "json"]).await;
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&json["outcome"], &json["scopes"]), (&json!("deny"), &json!([])), "all of them or none: {json:#}");
    let outcomes: Vec<&Value> = json["decisions"].as_array().unwrap().iter().map(|one| &one["outcome"]).collect();
    assert_eq!(outcomes, [&json!("allow"), &json!("deny")], "{json:#}");
    assert_eq!(json["asked"]["task"]["pipeline_task"], "push");

    // Without a task, the caller is the person.
    let (said, status) = explain(&world, &["--audience", TARGET, "--principal", "dev.yaml"]).await;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("with scope plan\n"), "{said}");

    // What the endpoint refuses before any rule.
    let (said, status) =
        explain(&world, &["--audience", TARGET, "--principal", "dev.yaml", "--scope", "plan pl*"]).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("REFUSED before any rule: ") && said.contains("`pl*` has a `*`"), "{said}");

    for (wrong, told) in [
        (&["--audience", TARGET][..], "--principal"),
        (&["--audience", TARGET, "--principal", "dev.yaml", "--service-account", "builder"], "NAMESPACE/NAME"),
        (&["--audience", TARGET, "--principal", "dev.yaml", "--pipeline-task", "push"], "--pipeline"),
        (&["https://localhost/", "--audience", TARGET, "--principal", "dev.yaml"], "cannot be used with"),
        (&[], "give the configuration and an address"),
    ] {
        let (said, status) = explain(&world, wrong).await;
        assert_eq!(status, Some(64), "{wrong:?}: {said}");
        assert!(said.contains(told), "{wrong:?}: {said}");
    }
}

/// Regression: `explain` waited ten seconds for keys that nothing fetches, and then called the token invalid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_our_own_is_judged_by_the_keys_of_the_configuration_or_not_at_all() {
    let der = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1().unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64_STANDARD.encode(&der));
    let rules = "
rules:
  - {id: plan, on: {token: {audiences: ['https://target.test'], scopes: [plan]}}, who: {issuers: [people], groups: [dev]}, do: allow}
  - {id: own, on: {routes: [web]}, who: {issuers: [own], kind: human}, do: allow}
";
    for (keys, status, told) in
        [("\n  keys: [{file: key.pem}]\n", 0, "ALLOW: "), ("\n", 2, "the store of the running Doorward")]
    {
        let change = |yaml: String| {
            yaml.change_first("\nrules:\n", rules).change_first("\ntokens:\n", &format!("\ntokens:{keys}"))
        };
        let world = World::with_files(change, &[("key.pem", pem.as_str())]).await;
        let alice = world.person("alice", &json!({"aud": "https://doorward.test"}));
        let own = world.exchange(&alice, "plan").await.token();
        std::fs::write(world.doorward.dir().join("own.jwt"), own).unwrap();
        let is_quick = async || {
            let began = Instant::now();
            let (said, code) = explain(&world, &["https://localhost/", "--token-file", "own.jwt"]).await;
            assert_eq!(code, Some(status), "{keys}: {said}");
            assert!(said.contains(told), "{keys}: {said}");
            began.elapsed() < Duration::from_secs(9)
        };
        // On a busy machine a single slow one proves nothing.
        assert!(is_quick().await || is_quick().await || is_quick().await, "{keys}: nothing is waited for");
    }
}
