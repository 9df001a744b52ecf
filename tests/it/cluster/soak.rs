//! What only load and time show: fast watches, many watches, large copies, and long-lived streams, busy and idle. Each
//! test checks for losses and for memory that is not freed. `scripts/soak` runs them for longer.

use std::{process::Stdio, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Child,
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use super::{
    pods::output,
    tekton::{Tekton, pod},
    watches::Watch,
    world::{Front, Kubectl, Setup, World},
};
use crate::{
    fixture::Change,
    harness::{Doorward, Raw, request, within},
};

/// The minimum duration of each load. `None` in CI, where a number of rounds is enough.
fn soak() -> Option<Duration> {
    Some(Duration::from_secs(std::env::var("TEST_SOAK_SECONDS").ok()?.parse().unwrap()))
}

/// A load in rounds, and the memory of the Doorward under load.
struct Load<'d> {
    doorward: &'d Doorward,
    least: u32,
    /// The load is a fixed number of rounds per second; nothing else is waited for.
    pace: Interval,
    began: Instant,
    rounds: u32,
    /// After warm-up.
    memory: Option<u64>,
}

impl<'d> Load<'d> {
    /// At least `least` rounds, and at most one every `pace`.
    fn new(doorward: &'d Doorward, least: u32, pace: Duration) -> Self {
        let mut pace = interval(pace);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { doorward, least, pace, began: Instant::now(), rounds: 0, memory: None }
    }

    /// Waits until the next round is due. `false` once it has lasted long enough.
    async fn goes_on(&mut self) -> bool {
        self.goes_on_until(true).await
    }

    /// The same, but not before `enough` is true.
    async fn goes_on_until(&mut self, enough: bool) -> bool {
        // The first tenth is warm-up.
        let is_warm = soak().map_or(self.rounds * 10 >= self.least, |span| self.began.elapsed() * 10 >= span);
        if self.memory.is_none() && self.rounds > 0 && is_warm {
            self.memory = Some(self.doorward.memory());
        }
        if enough && self.rounds >= self.least && soak().is_none_or(|span| self.began.elapsed() >= span) {
            return false;
        }
        self.pace.tick().await;
        self.rounds += 1;
        true
    }

    /// Asserts that it has left no memory behind, and prints a summary.
    fn leaves_nothing(self, what: &str) {
        let mib = |kib: u64| kib as f64 / 1024.0;
        let (rounds, seconds) = (self.rounds, self.began.elapsed().as_secs());
        let (warm, end) = (self.memory.expect("it has had a round"), self.doorward.memory());
        let told = format!(
            "{what}: {rounds} rounds in {seconds} s; PSS {:.1} MiB after warm-up, {:.1} MiB at the end",
            mib(warm),
            mib(end)
        );
        println!("{told}");
        assert!(end <= warm + (8 << 10), "{told}");
    }
}

/// A world whose tokens outlive the load, as a stream ends with its token.
async fn world(front: Front) -> World {
    let change = |yaml: String| {
        yaml.change("kind: human}", "kind: human, max_lifetime: 30d}")
            .change("limits: {", "limits: {connections_per_address: 1000, ")
    };
    let world = World::set_up(Setup { front, ..Setup::default() }, change).await;
    world.issuer.set_lifetime(soak().unwrap_or_default().as_secs() + 3600);
    world
}

/// Connections to the API server's store, which the API server watches. The API server itself accepts a third as many
/// changes in the same time, and the load is meant for its watches.
struct Store {
    namespace: String,
    connections: Vec<Raw>,
}

impl Store {
    async fn of(world: &World) -> Self {
        let connections = join_all((0..8).map(|_| Raw::connect(world.api.store))).await;
        Self { namespace: world.namespace.clone(), connections }
    }

    /// Makes this many changes, and returns their resource versions.
    async fn change(&mut self, count: usize) -> Vec<String> {
        let each = count.div_ceil(self.connections.len());
        let numbers: Vec<usize> = (0..count).collect();
        let writers =
            self.connections.iter_mut().zip(numbers.chunks(each)).enumerate().map(async |(writer, (raw, all))| {
                let puts = all.iter().map(|number| put(&self.namespace, &format!("w{writer}"), *number));
                // Pipelined: none waits for the response to another.
                raw.send(puts.collect::<Vec<_>>().concat()).await;
                let mut made = Vec::new();
                for _ in all {
                    let answer = raw.answer().await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    // A resource version is a revision of the store.
                    made.push(answer.json()["header"]["revision"].as_str().unwrap().parse::<u64>().unwrap());
                }
                made
            });
        let mut made = join_all(writers).await.concat();
        made.sort_unstable();
        made.iter().map(u64::to_string).collect()
    }
}

/// A request that stores a ConfigMap.
fn put(namespace: &str, name: &str, number: usize) -> Vec<u8> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "uid": name},
        "data": {"number": number.to_string()},
    });
    let key = BASE64_STANDARD.encode(format!("/registry/configmaps/{namespace}/{name}"));
    let put = json!({"key": key, "value": BASE64_STANDARD.encode(object.to_string())});
    request(&["POST /v3/kv/put HTTP/1.1", "Host: etcd"], put.to_string().as_bytes())
}

/// How many watches the API server has ended because it would have had to wait for them.
async fn ended_by_api_server(world: &World) -> f64 {
    let metrics = world.api.ask("GET", "/metrics", None).await.text();
    let counts = metrics.lines().filter(|line| line.starts_with("apiserver_terminated_watchers_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[tokio::test]
async fn a_watch_of_a_thousand_events_a_second_loses_nothing() {
    const EVENTS: usize = 1000;
    const ROUNDS: u32 = 5;
    let world = world(Front::Own(0)).await;
    let before = ended_by_api_server(&world).await;
    let (mut store, mut watch) = (Store::of(&world).await, Watch::open(&world, "").await);
    // From the first event on, the watch knows where to resume.
    assert_eq!(store.change(1).await, watch.versions(1).await);
    let mut load = Load::new(&world.doorward, ROUNDS, Duration::from_secs(1));
    // A busy machine may not manage as many in each second.
    let (mut in_time, mut slowest) = (0, Duration::ZERO);
    while load.goes_on_until(in_time >= ROUNDS).await {
        let began = Instant::now();
        let (made, seen) = within(async { tokio::join!(store.change(EVENTS), watch.versions(EVENTS)) }).await;
        let took = began.elapsed();
        assert_eq!(seen, made, "round {}", load.rounds);
        in_time += u32::from(took <= Duration::from_secs(1));
        slowest = slowest.max(took);
        let has_time = load.began.elapsed() < Duration::from_secs(90);
        assert!(in_time >= ROUNDS || has_time, "{in_time} of {} rounds lasted a second at most", load.rounds);
    }
    assert!(watch.ends() == 0 || ended_by_api_server(&world).await > before, "nobody but the API server ends it");
    let rounds = load.rounds;
    load.leaves_nothing(&format!(
        "a watch of {EVENTS} events a round ({in_time} of {rounds} within a second, the slowest in {slowest:.1?}, opened anew {} times)",
        watch.ends()
    ));
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn five_hundred_watches_at_once_all_see_what_happens() {
    five_hundred_watches(Front::Own(0)).await;
}

pub(super) async fn five_hundred_watches(front: Front) {
    let world = world(front).await;
    let (mut store, mut watches) = (Store::of(&world).await, Vec::new());
    for _ in 0..500 {
        watches.push(Watch::open(&world, "").await);
    }
    let mut load = Load::new(&world.doorward, 10, Duration::from_millis(soak().map_or(100, |_| 1000)));
    while load.goes_on().await {
        let made = within(store.change(1)).await;
        for watch in &mut watches {
            assert_eq!(within(watch.versions(1)).await, made, "round {}", load.rounds);
        }
    }
    load.leaves_nothing("500 watches, one event a round to each");
    world.doorward.stays_below(150, "five hundred watches");
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn a_hundred_megabytes_pass_and_leave_nothing_behind() {
    Tekton::get().await;
    let world = world(Front::Own(0)).await;
    let pod = pod(world.api, &world.namespace).await;
    let kubectl = world.kubectl("alice");
    let there = kubectl.write("there", "");
    let copy = there.with_file_name("copy");
    let mut bytes = vec![0_u8; 100 << 20];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    std::fs::write(&there, &bytes).unwrap();
    let mut load = Load::new(&world.doorward, 5, Duration::from_secs(soak().map_or(1, |_| 5)));
    while load.goes_on().await {
        let websocket = load.rounds.is_multiple_of(2);
        output(&kubectl, websocket, &["cp", &format!("{pod}:{}", there.display()), "copy"]).await;
        assert!(std::fs::read(&copy).unwrap() == bytes, "round {}", load.rounds);
        std::fs::remove_file(&copy).unwrap();
    }
    load.leaves_nothing("a copy of 100 MiB a round, by WebSocket and SPDY in turn");
    world.doorward.stays_below(100, "a copy of 100 MiB");
    world.assert_sent_as(&["alice"]).await;
}

/// kubectl with a forwarded port, and a connection through it. The far end echoes.
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
        // Read on: it continues to write, and would end on a closed pipe.
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
async fn port_forwards_live_for_a_minute_busy_and_idle() {
    Tekton::get().await;
    let world = world(Front::Own(0)).await;
    let pod = pod(world.api, &world.namespace).await;
    let kubectl = world.kubectl("alice");
    let (mut busy, mut spdy) = (Forward::open(&kubectl, &pod, true).await, Forward::open(&kubectl, &pod, false).await);
    let (mut idle, mut idle_spdy) =
        (Forward::open(&kubectl, &pod, true).await, Forward::open(&kubectl, &pod, false).await);
    for forward in [&mut idle, &mut idle_spdy] {
        forward.echoes(0).await;
    }
    let mut watch = Watch::open(&world, "").await;
    let mut quiet = Watch::open(&world, "&fieldSelector=metadata.name%3Dquiet").await;
    let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace);
    // In CI the load is small, to leave the machine to other tests.
    let mut load = Load::new(&world.doorward, 61, Duration::from_millis(soak().map_or(1000, |_| 100)));
    while load.goes_on().await {
        for forward in [&mut busy, &mut spdy] {
            forward.echoes((load.rounds % 251) as u8).await;
        }
        let name = format!("round-{}", load.rounds);
        world.api.create(&path, &json!({"metadata": {"name": name}})).await;
        assert_eq!(within(watch.next()).await["object"]["metadata"]["name"], name.as_str(), "nothing is lost");
        world.api.ask("DELETE", &format!("{path}/{name}"), None).await;
        assert_eq!(within(watch.next()).await["type"], "DELETED");
    }
    // cluster:T4: streams that were idle all the time are still open.
    for forward in [&mut idle, &mut idle_spdy] {
        forward.echoes(7).await;
    }
    world.api.create(&path, &json!({"metadata": {"name": "quiet"}})).await;
    assert_eq!(within(quiet.next()).await["object"]["metadata"]["name"], "quiet", "cluster:T4");
    assert_eq!((watch.ends(), quiet.ends()), (0, 0), "cluster:T4");
    load.leaves_nothing("port-forwards of 64 KiB each way a round, by WebSocket and SPDY, and two idle ones");
    world.assert_sent_as(&["alice"]).await;
}
