//! A person at the Dashboard, in a real Chromium. The pages send their requests to the real API server with the real
//! Tekton behind it, directly and through nginx (`ingress.rs`). The Dashboard's own back end is not available as a
//! program, so a server of files stands in for it.

use serde_json::{Value, json};

use super::{
    tekton::{LOGGED, Tekton, pod},
    world::{Front, GROUP, Setup, World},
};
use crate::{
    fixture::Change,
    harness::{OidcProvider, Reply, Upstream, browse, free_port, log_in},
};

/// The back end has no rights in the cluster, and is only asked for its files and for what its pages offer.
async fn back_end() -> Upstream {
    Upstream::scripted(|request| match request.line().split(' ').nth(1) {
        Some("/v1/properties") => Reply::json(200, r#"{"dashboardVersion":"v0.60.0","isReadOnly":false}"#),
        _ => Reply::json(200, "{}"),
    })
    .await
}

#[tokio::test]
async fn a_user_lists_namespaces_starts_follows_and_cancels_a_run_and_signs_out() {
    walk(Front::Own(free_port())).await;
}

/// With a browser that uses Doorward at `front`.
pub(super) async fn walk(front: Front) {
    Tekton::get().await;
    let back_end = back_end().await;
    let origin = front.origin();
    let provider = OidcProvider::start(&origin).await;
    let change = |yaml: String| {
        yaml.change("who: {groups: [dev]}", "who: {issuers: [a], groups: [dev]}")
            .change(
                "upstreams:\n",
                &format!(
                    "  - name: people
    issuer: {}
    username: 'oidc:{{sub}}'
    kind: human
    algorithms: [RS256]
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
upstreams:
  - {{name: dashboard, url: '{}'}}
",
                    provider.issuer,
                    back_end.url()
                ),
            )
            .change(
                "routes:\n  - {name: api, kind: kubernetes, hosts: [localhost],",
                "routes:
  - {name: board, kind: dashboard, hosts: [localhost], schemes: [session], upstream: dashboard, kubernetes: cluster,
     namespaces: ['{ns}', elsewhere]}
  - {name: api, kind: kubernetes, hosts: [api.test],",
            )
            .change(
                "grants:\n",
                &format!(
                    "grants:\n  - {{id: people, who: {{issuers: [people], groups: [developers]}}, kubernetes_groups: ['{GROUP}']}}\n"
                ),
            )
            .change(
                "rules:\n",
                "rules:
  - {id: board, on: {routes: [board]}, who: {issuers: [people], groups: [developers]}, do: allow}
  - {id: nobody-deletes, why: Runs are kept, on: {routes: [board], kubernetes: {verbs: [delete]}}, do: deny}
",
            )
    };
    let files = &[("client", "doorward-secret-of-the-tests")];
    let setup = Setup { front, host: "api.test", files, ..Setup::default() };
    let world = World::set_up(setup, change).await;
    world.until_people_can_sign_in().await;
    let pod = pod(world.api, &world.namespace).await;
    let saw = browse(&json!({
        "scenario": "board", "url": origin, "namespace": world.namespace, "pod": pod, "logged": LOGGED,
    }))
    .await;
    assert_eq!(saw["properties"]["tenantNamespaces"], json!([world.namespace]), "{saw}");
    assert_eq!(saw["properties"]["isReadOnly"], false, "{saw}");
    assert_eq!(saw["namespaces"], 403, "all of them are not theirs to see: {saw}");
    assert_eq!(saw["elsewhere"], 403, "{saw}");
    assert_eq!((&saw["started"], &saw["cancelled"]), (&json!(201), &json!(200)), "{saw}");
    assert_eq!(saw["reason"], "Cancelled", "the watch told it: {saw}");
    assert_eq!(saw["deleted"]["status"], 403, "{saw}");
    assert!(saw["deleted"]["message"].as_str().unwrap().contains("Runs are kept"), "{saw}");
    assert!(saw["log"].as_str().unwrap().contains(LOGGED.trim()), "{saw}");
    assert_eq!(saw["socket"], json!({"code": 1008, "reason": "signed_out"}), "a watch that was open: {saw}");
    assert_eq!(saw["follow"][0], "open", "a log that is followed until the logout: {saw}");
    assert!(["ended", "cut: TypeError"].map(Value::from).contains(&saw["follow"][1]), "{saw}");
    assert_eq!(saw["after"], 401, "{saw}");
    // Not only on the browser's side: the API server ends both.
    let complete = |event: &Value| event["stage"] == "ResponseComplete";
    world.event(|event| complete(event) && event["verb"] == "watch").await;
    world.event(|event| complete(event) && event["objectRef"]["subresource"] == "log").await;
    world.assert_sent_as(&["oidc:alice"]).await;
    let created =
        world.event(|event| event["verb"] == "create" && event["objectRef"]["resource"] == "pipelineruns").await;
    assert_eq!(created["impersonatedUser"]["username"], "oidc:alice");
    let asked: Vec<Value> = back_end.requests().iter().map(|request| request.line().to_owned().into()).collect();
    assert!(asked.iter().all(|line| !line.as_str().unwrap().contains("/api")), "{asked:?}");
}

/// Without a browser, which would not let a page claim another origin.
#[tokio::test]
async fn another_site_opens_no_watch_and_outside_logs_need_the_right_to_read_logs() {
    Tekton::get().await;
    let back_end = back_end().await;
    let change = |yaml: String| {
        yaml.change("kind: human}", "kind: human, login: {client: {id: doorward, secret: {file: client}}}}")
            .change("upstreams:\n", &format!("upstreams:\n  - {{name: dashboard, url: '{}'}}\n", back_end.url()))
            .change(
                "routes:\n  - {name: api, kind: kubernetes, hosts: [localhost],",
                "routes:
  - {name: board, kind: dashboard, hosts: [localhost], schemes: [session], upstream: dashboard, kubernetes: cluster}
  - {name: api, kind: kubernetes, hosts: [api.test],",
            )
            .change("rules:\n", "rules:\n  - {id: me, on: {routes: [board]}, who: {users: [alice]}, do: allow}\n")
            .change(
                "grants:\n",
                &format!("grants:\n  - {{id: me, who: {{users: [alice]}}, kubernetes_groups: ['{GROUP}']}}\n"),
            )
    };
    let setup = Setup { host: "api.test", files: &[("client", "client-secret")], ..Setup::default() };
    let world = World::set_up(setup, change).await;
    let host = format!("localhost:{}", world.doorward.address("public").port());
    world.doorward.until_people_can_sign_in(&host).await;
    let cookie = log_in(&world.doorward, &host, "/").await;
    let (ours, host) = (format!("Origin: http://{host}"), format!("Host: {host}"));

    let watch = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/?watch=true", world.namespace);
    for (origin, status) in [("Origin: https://evil.test", 403), ("Origin: null", 403), (&ours, 101)] {
        let mut raw = world.doorward.raw().await;
        // As Firefox writes `Connection`.
        raw.send(format!(
            "GET {watch} HTTP/1.1\r\n{host}\r\n{cookie}\r\n{origin}\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, status, "cluster:W6 {origin}: {}", answer.text());
    }
    let watches = |event: &Value| event["verb"] == "watch" && event["stage"] == "ResponseStarted";
    world.event(watches).await;
    assert_eq!(world.audit().iter().filter(|event| watches(event)).count(), 1, "cluster:W6 ours alone");

    // The rights of the real API server: in their own namespace, and in no other.
    for (namespace, status) in [(world.namespace.as_str(), 200), ("kube-system", 403)] {
        let path = format!("/v1/logs-proxy/{namespace}/gone-pod/step-build");
        let answer = world.doorward.get(&path, &[&host, &cookie]).await;
        assert_eq!(answer.status, status, "{namespace}: {}", answer.text());
        let fetched = back_end.requests().iter().any(|request| request.line().contains(&path));
        assert_eq!(fetched, status == 200, "{namespace}");
        if status == 403 {
            assert_eq!(answer.reason(), "kubernetes_denied", "{}", answer.text());
        }
    }
    world.event(|event| event["objectRef"]["resource"] == "selfsubjectaccessreviews").await;
    world.assert_sent_as(&["alice"]).await;
}
