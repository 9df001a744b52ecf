//! kubectl again, as in `kubectl.rs` and `pods.rs`, where Doorward itself has exactly the rights that `doorward rbac`
//! prints: streams of all kinds, watches and changes need no other right, in either form of impersonation.

use serde_json::{Value, json};

use super::{
    kubectl, pods,
    world::{Setup, World, printed_rights},
};
use crate::{fixture::Change, harness::HANDSHAKE};

/// Rules that name what people do: for a rule that allows everything, all rights would be printed.
const RULES: &str = "rules:
  - id: discovery
    on: {kubernetes: {verbs: [read], non_resource_urls: [/api, '/api/*', /apis, '/apis/*', /openapi/v2, '/openapi/v3*', /version]}}
    who: {groups: [dev]}
    do: allow
  - id: who-am-i
    on:
      kubernetes:
        verbs: [create]
        api_groups: [authentication.k8s.io, authorization.k8s.io]
        resources: [selfsubjectreviews, selfsubjectaccessreviews, selfsubjectrulesreviews]
    who: {groups: [dev]}
    do: allow
  - id: config
    on: {kubernetes: {api_groups: [''], resources: [configmaps]}}
    who: {groups: [dev]}
    do: allow
  - id: look
    on: {kubernetes: {verbs: [read], api_groups: [''], resources: [pods, pods/log]}}
    who: {groups: [dev]}
    do: allow
  - id: streams
    on: {kubernetes: {api_groups: [''], resources: [pods/exec, pods/attach, pods/portforward]}}
    who: {groups: [dev]}
    do: allow
";

fn configuration(yaml: &str) -> String {
    let (before, rest) = yaml.split_once("rules:\n").unwrap();
    let (_, after) = rest.split_once("store:").unwrap();
    format!("{before}{RULES}store:{after}")
}

fn printed(form: &str) -> Vec<Value> {
    printed_rights(form, |yaml| configuration(&yaml))
}

async fn world(form: &str) -> World {
    World::set_up(Setup { rights: json!(printed(form)), ..Setup::default() }, |yaml| configuration(&yaml)).await
}

#[tokio::test]
async fn kubectl_reads_watches_and_writes_by_the_printed_rights_in_the_classic_form() {
    kubectl::reads_and_writes(&world("classic").await).await;
}

#[tokio::test]
async fn kubectl_reads_watches_and_writes_by_the_printed_rights_in_the_constrained_form() {
    let world = world("constrained").await;
    kubectl::reads_and_writes(&world).await;
    assert_constrained(&world).await;
}

#[tokio::test]
async fn exec_cp_and_port_forward_pass_by_the_printed_rights_in_the_classic_form() {
    pods::exec_cp_and_port_forward(&world("classic").await).await;
}

#[tokio::test]
async fn exec_cp_and_port_forward_pass_by_the_printed_rights_in_the_constrained_form() {
    let world = world("constrained").await;
    pods::exec_cp_and_port_forward(&world).await;
    assert_constrained(&world).await;
}

#[tokio::test]
async fn logs_and_attach_work_with_the_printed_rights_in_the_classic_form() {
    pods::logs_and_attach(&world("classic").await).await;
}

#[tokio::test]
async fn logs_and_attach_work_with_the_printed_rights_in_the_constrained_form() {
    let world = world("constrained").await;
    pods::logs_and_attach(&world).await;
    assert_constrained(&world).await;
}

/// All requests used constrained impersonation, and none the classic one.
async fn assert_constrained(world: &World) {
    let events = world.audit();
    assert!(!events.is_empty());
    for event in events {
        assert_eq!(event["authenticationMetadata"]["impersonationConstraint"], "impersonate:user-info", "{event:#}");
    }
}

const SPDY: [&str; 3] = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"];

/// The pod does not exist, which callers with the right are told.
async fn assert_streams(world: &World, what: &str, expected: [u16; 2]) {
    for resource in ["exec?command=sh", "attach?stdout=true", "portforward?ports=80"] {
        let path = format!("/api/v1/namespaces/{}/pods/none/{resource}", world.namespace);
        let by_websocket = world.alice(&format!("GET {path}"), &HANDSHAKE, b"").await;
        let by_spdy = world.alice(&format!("POST {path}"), &SPDY, b"").await;
        let said = format!("{what} {resource}: {} {}", by_websocket.text(), by_spdy.text());
        assert_eq!([by_websocket.status, by_spdy.status], expected, "{said}");
    }
}

#[tokio::test]
async fn a_websocket_needs_the_one_verb_that_is_printed_for_streams_and_spdy_the_other() {
    for (left_out, expected) in [("none", [404, 404]), ("get", [502, 404]), ("create", [404, 502])] {
        let mut rights = printed("constrained");
        for right in &mut rights {
            if right["resources"].to_string().contains("pods/exec") {
                let verbs = right["verbs"].as_array_mut().unwrap();
                verbs.retain(|verb| *verb != format!("impersonate-on:user-info:{left_out}"));
            }
        }
        let world =
            World::set_up(Setup { rights: json!(rights), ..Setup::default() }, |yaml| configuration(&yaml)).await;
        assert_streams(&world, &format!("without {left_out}"), expected).await;
    }
}

#[tokio::test]
async fn a_rule_that_lets_write_everything_opens_streams_by_the_printed_rights() {
    let streams = "{api_groups: [''], resources: [pods/exec, pods/attach, pods/portforward]}";
    let of_all = |yaml: String| configuration(&yaml).change(streams, "{verbs: [write], namespaces: ['{ns}']}");
    let rights = printed_rights("constrained", |yaml| of_all(yaml).change("'{ns}'", "'*'"));
    let world = World::set_up(Setup { rights: json!(rights), ..Setup::default() }, of_all).await;
    assert_streams(&world, "verbs: [write]", [404, 404]).await;
}
