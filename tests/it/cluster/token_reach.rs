//! How far the end of a token reaches: every kind of route, every stream, every replica, and introspection.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{pods::over, tasks::Tasks, token_ends::with_token, world::Kubectl};
use crate::{
    fixture::Change,
    harness::{Answer, Upstream, until, within},
};

pub(super) const SECRET: &str = "a-secret-of-a-resource-server";

/// Routes of every kind that accept Doorward's tokens, and a server that introspects them.
async fn everywhere(upstream: &Upstream) -> Tasks {
    let web = format!("upstreams:\n  - {{name: web, url: '{}'}}\n", upstream.url());
    let routes = "routes:
  - {name: web, kind: http, hosts: [web.test], schemes: [bearer], issuers: [own], upstream: web}
  - {name: dash, kind: dashboard, hosts: [dash.test], schemes: [bearer], issuers: [own], upstream: web, kubernetes: cluster}
";
    let rules = "rules:
  - {id: use-elsewhere, on: {routes: [web, dash]}, who: {issuers: [own], kind: agent, on_behalf_of: {}, scopes: [push]}, do: allow}
  - id: shells
    on: {routes: [api], kubernetes: {resources: [pods/exec, pods/portforward]}}
    who: {issuers: [own], kind: agent, on_behalf_of: {}, scopes: [push]}
    do: allow
";
    let change = |yaml: String| {
        yaml.change("upstreams:\n", &web)
            .change("routes:\n", routes)
            .change("rules:\n", rules)
            .change("{name: public, address: 127.0.0.1:0}", "{name: public, address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32]}")
            .change("tokens: {", "forward_auth: traefik\ntokens: {resource_servers: [{id: target, secret: {file: target}, audiences: ['https://target.test']}], ")
    };
    Tasks::with(change, &[("target", SECRET)]).await
}

pub(super) async fn is_active(tasks: &Tasks, token: &str) -> Value {
    let who = format!("Authorization: Basic {}", BASE64_STANDARD.encode(format!("target:{SECRET}")));
    let answer = tasks.world.doorward.submit("/oauth2/introspect", &[&who], &format!("token={token}")).await;
    answer.json()["active"].clone()
}

#[tokio::test]
async fn no_kind_of_route_accepts_a_token_whose_run_has_ended() {
    let upstream = Upstream::start().await;
    let tasks = everywhere(&upstream).await;
    let (task, own) = with_token(&tasks, "everywhere").await;
    let bearer = format!("Authorization: Bearer {own}");
    let pods = tasks.path("pods");
    let pods = format!("GET {pods} HTTP/1.1");
    let asks =
        ["X-Forwarded-Proto: http", "X-Forwarded-Method: GET", "X-Forwarded-Host: web.test", "X-Forwarded-Uri: /page"];
    let ways: [(&str, Vec<&str>); 5] = [
        ("kubernetes", vec![&pods, "Host: localhost"]),
        ("http", vec!["GET /page HTTP/1.1", "Host: web.test"]),
        ("dashboard, its API", vec![&pods, "Host: dash.test"]),
        ("dashboard, its pages", vec!["GET /v1/properties HTTP/1.1", "Host: dash.test"]),
        ("another proxy asks", [&["GET /oauth2/auth HTTP/1.1", "Host: doorward.svc"], &asks[..]].concat()),
    ];
    let send = async |lines: &[&str]| -> Answer { tasks.world.doorward.send(&[lines, &[&bearer]].concat(), b"").await };
    for (what, lines) in &ways {
        let answer = send(lines).await;
        assert!((200..300).contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    }
    assert_eq!(is_active(&tasks, &own).await, json!(true));
    tasks.cancel(&task).await;
    tasks.is_dead(&own).await;
    for (what, lines) in &ways {
        let answer = send(lines).await;
        assert_eq!((answer.status, answer.reason().as_str()), (401, "token_revoked"), "{what}: {}", answer.text());
    }
    assert_eq!(is_active(&tasks, &own).await, json!(false), "and whoever asks hears it");
}

#[tokio::test]
async fn shells_and_forwarded_ports_of_a_task_end_with_it() {
    let upstream = Upstream::start().await;
    let tasks = everywhere(&upstream).await;
    let (task, own) = with_token(&tasks, "shells").await;
    let (other, others) = with_token(&tasks, "goes-on").await;
    let world = &tasks.world;
    let server = format!("https://localhost:{}", world.doorward.address("secure").port());
    let kubectl = |token: &str| Kubectl::new(&server, &world.authority.pem(), token, &world.namespace);
    // Into the pod of the other task, which continues.
    let pod = other.pod["metadata"]["name"].as_str().unwrap();
    let (its, twins) = (kubectl(&own), kubectl(&others));
    let exec = ["exec", "-i", pod, "--", "cat"];
    let forward = ["port-forward", pod, ":80", "--address", "127.0.0.1"];
    let mut running = Vec::new();
    for websocket in [true, false] {
        for arguments in [&exec[..], &forward] {
            running.push(over(&its, websocket, arguments).stdin(Stdio::piped()).spawn().unwrap());
        }
    }
    let mut twin = over(&twins, true, &exec).stdin(Stdio::piped()).spawn().unwrap();
    for (subresource, count) in [("exec", 3), ("portforward", 2)] {
        let begun =
            |event: &&Value| event["stage"] == "ResponseStarted" && event["objectRef"]["subresource"] == subresource;
        until(async || world.audit().iter().filter(begun).count() >= count).await;
    }
    tasks.cancel(&task).await;
    tasks.until_ended(&task).await;
    let ended = Instant::now();
    for mut child in running {
        within(child.wait()).await.unwrap();
    }
    assert!(ended.elapsed() < Duration::from_secs(2), "after {:?}", ended.elapsed());
    tasks.is_dead(&own).await;
    assert!(twin.try_wait().unwrap().is_none(), "that of another run goes on");
    assert_eq!(tasks.used(&others).await.status, 200);
}
