//! What only time shows: streams that live long, busy and idle, and the memory that they leave. `scripts/soak` runs it.

use std::{process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Child,
    time::{Instant, sleep},
};

use super::{
    load::Watch,
    tekton::{Tekton, pod},
    world::{Kubectl, World},
};
use crate::harness::within;

/// kubectl that forwards a port, and a connection through it. The far end echoes.
struct Forward {
    _kubectl: Child,
    stream: TcpStream,
}

impl Forward {
    async fn open(kubectl: &Kubectl, pod: &str, websocket: bool) -> Self {
        let mut child = kubectl
            .command(&["port-forward", pod, ":80", "--address", "127.0.0.1"])
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websocket.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within(lines.next_line()).await.unwrap().expect("it forwards");
        let port: u16 = line.split("127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        // It goes on writing there, and would end on a closed pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _kubectl: child, stream: TcpStream::connect(("127.0.0.1", port)).await.unwrap() }
    }

    async fn echoes(&mut self, byte: u8) {
        let sent = [byte; 64 << 10];
        let (mut read, mut write) = self.stream.split();
        let mut echoed = vec![0; sent.len()];
        within(async {
            let (written, _) = tokio::join!(write.write_all(&sent), read.read_exact(&mut echoed));
            written.unwrap();
        })
        .await;
        assert_eq!(echoed, sent);
    }
}

#[tokio::test]
#[ignore = "it takes as long as it is told to; `scripts/soak` runs it"]
async fn streams_live_long_and_leave_nothing_behind() {
    let span = Duration::from_secs(std::env::var("TEST_SOAK_SECONDS").map_or(90, |text| text.parse().unwrap()));
    Tekton::get().await;
    let world = World::with(|yaml| yaml.replace("kind: human}", "kind: human, max_lifetime: 30d}")).await;
    // A stream ends with the token that opened it.
    world.issuer.set_lifetime(span.as_secs() + 600);
    let pod = pod(world.api, &world.namespace).await;
    let kubectl = world.kubectl("alice");
    let (mut busy, mut spdy) = (Forward::open(&kubectl, &pod, true).await, Forward::open(&kubectl, &pod, false).await);
    let (mut idle, mut idle_spdy) =
        (Forward::open(&kubectl, &pod, true).await, Forward::open(&kubectl, &pod, false).await);
    for forward in [&mut idle, &mut idle_spdy] {
        forward.echoes(0).await;
    }
    let mut watch = Watch::open(&world, false, "").await;
    let mut quiet = Watch::open(&world, false, "&fieldSelector=metadata.name%3Dquiet").await;
    let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace);
    let (began, mut round, mut warm) = (Instant::now(), 0_u64, None);
    while began.elapsed() < span {
        round += 1;
        for forward in [&mut busy, &mut spdy] {
            forward.echoes((round % 251) as u8).await;
        }
        let name = format!("round-{round}");
        world.api.create(&path, &json!({"metadata": {"name": name}})).await;
        let made = within(watch.next()).await.expect("the watch goes on");
        assert_eq!(made["object"]["metadata"]["name"], name.as_str(), "nothing is lost");
        world.api.ask("DELETE", &format!("{path}/{name}"), None).await;
        assert_eq!(within(watch.next()).await.expect("the watch goes on")["type"], "DELETED");
        if warm.is_none() && began.elapsed() > span / 10 {
            warm = Some(world.doorward.memory());
        }
        sleep(Duration::from_millis(50)).await;
    }
    // cluster:T4: what said nothing all the time is still there.
    for forward in [&mut idle, &mut idle_spdy] {
        forward.echoes(7).await;
    }
    world.api.create(&path, &json!({"metadata": {"name": "quiet"}})).await;
    let made = within(quiet.next()).await.expect("cluster:T4");
    assert_eq!(made["object"]["metadata"]["name"], "quiet");
    let (warm, end) = (warm.unwrap(), world.doorward.memory());
    println!("{round} rounds in {span:?}: {warm} MiB warm, {end} MiB at the end");
    assert!(end <= warm + 8, "{warm} MiB warm, {end} MiB at the end");
    world.assert_sent_as(&["alice"]).await;
}
