//! kubectl by way of a real nginx in front of Doorward, set up as `deploy/examples/nginx.conf` says.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    pods::{output, over},
    tekton::{LOGGED, Tekton, pod},
    world::World,
};
use crate::harness::{Nginx, Raw, connect_tls, request, unique, within};

async fn behind_nginx() -> (World, Nginx) {
    let trusting = |yaml: String| {
        yaml.replace(
            "{name: secure, address: 127.0.0.1:0,",
            "{name: secure, address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32],",
        )
    };
    let world = World::with(trusting).await;
    let nginx = Nginx::in_front_of(world.doorward.address("secure"), world.doorward.dir()).await;
    (world, nginx)
}

#[tokio::test]
async fn kubectl_watches_uploads_and_follows_through_nginx() {
    let tekton = Tekton::get().await;
    let (world, nginx) = behind_nginx().await;
    let pod = pod(world.api, &world.namespace).await;
    for http1 in [true, false] {
        let kubectl = world.kubectl_at(nginx.address.port(), "alice");
        let kubectl = if http1 { kubectl.over_http1() } else { kubectl };

        let name = if http1 { "one" } else { "two" };
        let mut watch = kubectl.start(&["get", "configmaps", "--watch-only", "-o", "jsonpath={.metadata.name}{'\\n'}"]);
        let mut seen = BufReader::new(watch.stdout.take().unwrap()).lines();
        let begun = |event: &&Value| event["verb"] == "watch" && event["stage"] == "ResponseStarted";
        within(async {
            while world.audit().iter().filter(begun).count() < if http1 { 1 } else { 2 } {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        // 1.2 MB as JSON; nginx takes 1 MB by itself.
        let big = kubectl.write("big", "");
        std::fs::write(&big, vec![0xff_u8; 900_000]).unwrap();
        kubectl.run(&["create", "configmap", name, "--from-file=big"]).await;
        // The watch goes on, so that an event that is kept back is missed.
        assert_eq!(within(seen.next_line()).await.unwrap().as_deref(), Some(name));
        watch.kill().await.unwrap();

        let mut logs = over(&kubectl, true, &["logs", "-f", &pod]).spawn().unwrap();
        let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
        assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some(LOGGED));
        let line = unique();
        tekton.log(&line);
        within(async { while lines.next_line().await.unwrap().expect("it goes on") != line {} }).await;
        logs.kill().await.unwrap();
    }
    let kubectl = world.kubectl_at(nginx.address.port(), "alice");
    for websocket in [true, false] {
        let said = output(&kubectl, websocket, &["exec", &pod, "--", "sh", "-c", "echo out; echo err >&2"]).await;
        assert_eq!(said, "out\n");
        let verb = if websocket { "get" } else { "create" };
        world.event(|event| event["verb"] == verb && event["objectRef"]["subresource"] == "exec").await;
    }
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn nginx_changes_no_path_and_says_who_the_client_is() {
    let (world, nginx) = behind_nginx().await;
    let ask = async |line: &str| {
        let stream = connect_tls(nginx.address, &world.authority.client(&[], None), "localhost").await.unwrap();
        let mut raw = Raw::over(stream);
        let forged = ["X-Forwarded-For: 192.0.2.9", "Forwarded: for=192.0.2.9", "X-Forwarded-Host: other.test"];
        let token = world.developer("alice");
        raw.send(request(&[&[line, "Host: localhost", "Connection: close", &token], &forged[..]].concat(), b"")).await;
        raw.answer().await
    };
    let core = format!("/api/v1/namespaces/{}", world.namespace);
    for path in ["//configmaps", "/configmaps/%2e%2e/secrets", "%2Fconfigmaps", "/configmaps;x"] {
        let answer = ask(&format!("GET {core}{path} HTTP/1.1")).await;
        // In Doorward's own words.
        assert_eq!((answer.status, &answer.json()["title"]), (400, &json!("Bad Request")), "{path}: {}", answer.text());
    }
    assert_eq!(ask(&format!("GET {core}/configmaps?limit=1 HTTP/1.1")).await.status, 200);
    let event = world.event(|event| event["verb"] == "list").await;
    assert_eq!(event["sourceIPs"][0], "127.0.0.1", "{event:#}");
    assert!(!event["sourceIPs"].to_string().contains("192.0.2.9"), "{event:#}");
    assert_eq!(world.audit().len(), 1);
}
