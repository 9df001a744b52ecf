//! kubectl and browsers behind a real nginx in front of Doorward, set up as in `deploy/examples/nginx.conf`.

use serde_json::json;

use super::{
    browser, kubectl, login, pods, soak,
    world::{Front, World},
};
use crate::harness::request;

#[tokio::test]
async fn kubectl_reads_and_writes_by_way_of_nginx() {
    let world = World::behind_nginx().await;
    kubectl::reads_and_writes(&world).await;
    let passed = world.passed_nginx();
    let mut spoken: Vec<&str> = passed.iter().filter_map(|line| line.rsplit(' ').next()).collect();
    spoken.dedup();
    assert_eq!(spoken, ["HTTP/1.1", "HTTP/2.0"], "{passed:#?}");
}

#[tokio::test]
async fn whoami_and_can_i_answer_the_same_through_nginx() {
    kubectl::whoami_and_can_i(&World::behind_nginx().await).await;
}

#[tokio::test]
async fn the_two_audit_trails_agree_by_way_of_nginx() {
    kubectl::two_audit_trails(&World::behind_nginx().await).await;
}

#[tokio::test]
async fn exec_cp_and_port_forward_pass_nginx_over_websocket_and_spdy() {
    pods::exec_cp_and_port_forward(&World::behind_nginx().await).await;
}

#[tokio::test]
async fn logs_are_followed_and_containers_attached_to_by_way_of_nginx() {
    pods::logs_and_attach(&World::behind_nginx().await).await;
}

#[tokio::test]
async fn a_revoked_person_loses_all_streams_through_nginx_at_once() {
    pods::shut_out(&World::behind_nginx().await).await;
}

#[tokio::test]
async fn kubectl_signs_in_with_doorward_login_by_way_of_nginx() {
    login::login(Front::nginx()).await;
}

#[tokio::test]
async fn a_person_reaches_the_dashboard_through_nginx() {
    browser::walk(Front::nginx()).await;
}

#[tokio::test]
async fn five_hundred_watches_pass_nginx() {
    soak::five_hundred_watches(Front::nginx()).await;
}

#[tokio::test]
async fn nginx_changes_no_path_and_forwards_the_client_address() {
    let world = World::behind_nginx().await;
    let ask = async |line: &str| {
        let mut raw = world.connect().await;
        let forged = ["X-Forwarded-For: 192.0.2.9", "Forwarded: for=192.0.2.9", "X-Forwarded-Host: other.test"];
        let token = world.developer("alice");
        raw.send(request(&[&[line, "Host: localhost", "Connection: close", &token], &forged[..]].concat(), b"")).await;
        raw.answer().await
    };
    let core = format!("/api/v1/namespaces/{}", world.namespace);
    for path in ["//configmaps", "/configmaps/%2e%2e/secrets", "%2Fconfigmaps", "/configmaps;x"] {
        let answer = ask(&format!("GET {core}{path} HTTP/1.1")).await;
        // With Doorward's own response.
        let answered = answer.json();
        assert_eq!((answer.status, &answered["reason"]), (400, &json!("BadRequest")), "{path}: {answered}");
        assert!(answered["message"].as_str().unwrap().starts_with("doorward: "), "{path}: {answered}");
    }
    assert_eq!(ask(&format!("GET {core}/configmaps?limit=1 HTTP/1.1")).await.status, 200);
    let event = world.event(|event| event["verb"] == "list").await;
    assert_eq!(event["sourceIPs"][0], "127.0.0.1", "{event:#}");
    assert!(!event["sourceIPs"].to_string().contains("192.0.2.9"), "{event:#}");
    assert_eq!(world.audit().len(), 1);
}

#[tokio::test]
async fn nginx_forwards_a_body_while_it_arrives() {
    let world = World::behind_nginx().await;
    let line = format!("POST /api/v1/namespaces/{}/configmaps HTTP/1.1", world.namespace);
    let lines = [&line, "Host: localhost", &world.developer("alice"), "Impersonate-User: bob", "Content-Length: 100"];
    let mut raw = world.connect().await;
    raw.send(request(&lines, b"{")).await;
    // The refusal does not wait for the rest.
    assert_eq!(raw.answer().await.reason(), "impersonation_refused");
}
