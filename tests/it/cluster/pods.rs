//! kubectl with running pods: bidirectional streams over WebSocket and SPDY. `ingress.rs` does the same through nginx.

use std::{process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Command,
};

use super::{
    tekton::{LOGGED, Tekton, pod},
    world::{Kubectl, World},
};
use crate::harness::{unique, until, within};

/// kubectl's own switches between the protocols.
const SWITCHES: [&str; 2] = ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"];

pub(super) fn over(kubectl: &Kubectl, websocket: bool, arguments: &[&str]) -> Command {
    let mut command = kubectl.command(arguments);
    for switch in SWITCHES {
        command.env(switch, websocket.to_string());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(super) async fn output(kubectl: &Kubectl, websocket: bool, arguments: &[&str]) -> String {
    let output = within(over(kubectl, websocket, arguments).output()).await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command in a terminal of the pod, which waits until its size matches the user's terminal, then for input.
async fn in_terminal(kubectl: &Kubectl, websocket: bool, pod: &str) {
    let of_kubectl = over(kubectl, websocket, &[]);
    let line = format!(
        "stty rows 45 cols 123; exec {} exec -it {pod} -- \
         sh -c 'until test \"$(stty size)\" = \"45 123\"; do sleep 0.05; done; echo it has its size; read word; test $word = end'",
        of_kubectl.as_std().get_program().display()
    );
    let environment = of_kubectl.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).envs(environment).kill_on_drop(true);
    let mut terminal = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(terminal.stdout.take().unwrap()).lines();
    let said = within(lines.next_line()).await.unwrap();
    assert!(said.as_ref().is_some_and(|said| said.contains("it has its size")), "{said:?}");
    terminal.stdin.as_mut().unwrap().write_all(b"end\n").await.unwrap();
    assert!(within(terminal.wait()).await.unwrap().success());
}

#[tokio::test]
async fn exec_cp_and_port_forward_over_websocket_and_spdy() {
    exec_cp_and_port_forward(&World::start().await).await;
}

#[tokio::test]
async fn logs_are_followed_and_containers_attached_to() {
    logs_and_attach(&World::start().await).await;
}

#[tokio::test]
async fn a_revoked_person_loses_all_streams_at_once() {
    shut_out(&World::start().await).await;
}

pub(super) async fn exec_cp_and_port_forward(world: &World) {
    Tekton::get().await;
    let pod = pod(world.api, &world.namespace).await;
    let kubectl = world.kubectl("alice");
    for websocket in [true, false] {
        let said = output(&kubectl, websocket, &["exec", &pod, "--", "sh", "-c", "echo out; echo err >&2"]).await;
        assert_eq!(said, "out\n");
        // Both ways at once. KWOK never reports the end of the input to a command, so this one is told the length.
        let bytes: String = (0..60_000).map(|_| unique()).collect();
        let length = bytes.len().to_string();
        let mut exec = over(&kubectl, websocket, &["exec", "-i", &pod, "--", "head", "-c", &length])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = exec.stdin.take().unwrap();
        let (_, ended) = within(async {
            tokio::join!(async { input.write_all(bytes.as_bytes()).await.unwrap() }, exec.wait_with_output())
        })
        .await;
        let back = ended.unwrap().stdout;
        assert!(back == bytes.as_bytes(), "{} of {length} bytes came back", back.len());

        // For the same reason a copy goes only one way: `tar` waits for the end of its input. The container is the
        // machine itself.
        let there = kubectl.write("there", &bytes);
        output(&kubectl, websocket, &["cp", &format!("{pod}:{}", there.display()), "copy"]).await;
        let copy = std::fs::read(there.with_file_name("copy")).unwrap();
        assert!(copy == bytes.as_bytes(), "{} of {length} bytes were copied", copy.len());

        in_terminal(&kubectl, websocket, &pod).await;

        let mut forward =
            over(&kubectl, websocket, &["port-forward", &pod, ":80", "--address", "127.0.0.1"]).spawn().unwrap();
        let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
        let line = within(lines.next_line()).await.unwrap().expect("it forwards");
        let port: u16 = line.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        for round in 0..20 {
            let sent = vec![round; 10_000];
            stream.write_all(&sent).await.unwrap();
            let mut echoed = vec![0; sent.len()];
            within(stream.read_exact(&mut echoed)).await.unwrap();
            assert_eq!(echoed, sent);
        }
        forward.kill().await.unwrap();
        // A WebSocket is opened by a GET, SPDY by a POST.
        let verb = if websocket { "get" } else { "create" };
        for subresource in ["exec", "portforward"] {
            world.event(|event| event["verb"] == verb && event["objectRef"]["subresource"] == subresource).await;
        }
    }
    // A token among the WebSocket protocols, as browsers send it.
    let token = BASE64URL.encode(world.issuer.token("alice", &["dev"]));
    let protocols = format!("base64url.bearer.authorization.k8s.io.{token}, v5.channel.k8s.io");
    let mut raw = world.connect().await;
    raw.send(format!(
        "GET /api/v1/namespaces/{}/pods/{pod}/exec?command=true&stdout=true HTTP/1.1\r\nHost: localhost\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocols}\r\n\r\n",
        world.namespace
    ))
    .await;
    let answer = raw.answer().await;
    assert_eq!(
        (answer.status, answer.header("sec-websocket-protocol")),
        (101, Some("v5.channel.k8s.io")),
        "cluster:W1"
    );
    world.assert_sent_as(&["alice"]).await;
}

pub(super) async fn logs_and_attach(world: &World) {
    let tekton = Tekton::get().await;
    let pod = pod(world.api, &world.namespace).await;
    let (kubectl, http1) = (world.kubectl("alice"), world.kubectl("alice").over_http1());
    for (kubectl, arguments, websocket) in [
        (&kubectl, ["logs", "-f", &pod], true),
        (&http1, ["logs", "-f", &pod], true),
        (&kubectl, ["attach", "-q", &pod], true),
        (&kubectl, ["attach", "-q", &pod], false),
    ] {
        let mut child = over(kubectl, websocket, &arguments).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        if arguments[0] == "logs" {
            assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some(LOGGED));
        }
        // Attaching shows only new log lines, and its start is not reported: lines are logged until one appears.
        let line = unique();
        until(async || {
            tekton.log(&line);
            let next = tokio::time::timeout(Duration::from_millis(300), lines.next_line()).await;
            next.is_ok_and(|next| next.unwrap().expect("it goes on") == line)
        })
        .await;
        child.kill().await.unwrap();
    }
    world.event(|event| event["objectRef"]["subresource"] == "log" && event["stage"] == "ResponseComplete").await;
    world.assert_sent_as(&["alice"]).await;
}

pub(super) async fn shut_out(world: &World) {
    Tekton::get().await;
    let pod = pod(world.api, &world.namespace).await;
    let (alice, bob) = (world.kubectl("alice"), world.kubectl("bob"));
    let commands: [&[&str]; 4] = [
        &["exec", "-i", &pod, "--", "cat"],
        &["attach", "-q", &pod],
        &["logs", "-f", &pod],
        &["port-forward", &pod, ":80", "--address", "127.0.0.1"],
    ];
    let begun = async |who: &str, subresource: &str| {
        let has_begun = |event: &Value| {
            event["stage"] == "ResponseStarted"
                && event["objectRef"]["subresource"] == subresource
                && event["impersonatedUser"]["username"] == who
        };
        world.event(has_begun).await;
    };
    let mut running = Vec::new();
    for websocket in [true, false] {
        for arguments in commands {
            running.push(over(&alice, websocket, arguments).stdin(Stdio::piped()).spawn().unwrap());
        }
    }
    let mut twin = over(&bob, true, commands[0]).stdin(Stdio::piped()).spawn().unwrap();
    for subresource in ["exec", "attach", "log", "portforward"] {
        begun("alice", subresource).await;
    }
    begun("bob", "exec").await;
    let (code, said) =
        world.doorward.operator(&["revoke", "--subject", "alice", "--issuer", "a", "--why", "a test"]).await;
    assert_eq!(code, Some(0), "cluster:T2 {said}");
    for mut child in running {
        within(child.wait()).await.unwrap();
    }
    let mut lines = BufReader::new(twin.stdout.take().unwrap()).lines();
    twin.stdin.as_mut().unwrap().write_all(b"still here\n").await.unwrap();
    assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some("still here"), "cluster:T2 the twin");
    assert!(alice.fails(&["get", "pods"]).await.contains("revoked"), "cluster:T2");
}
