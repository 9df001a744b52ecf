//! Held deliveries despite kill -9 at chosen moments: before and after writes and syncs of the store or requests to it,
//! requests to the EventListener, and responses to the sender.
//!
//! A short run is a test; `scripts/kills` is a long one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{
    BODY,
    hold::{ASSERTION_KEY, SESSION_KEY, configuration},
};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Push, Recorded, RedisServer, Reply, Upstream, faults, folder_with, free_port, part},
};

/// The number of repositories, each of which sends one delivery after the other.
const REPOSITORIES: u32 = 4;

/// How many deliveries are sent and how often Doorward is killed meanwhile.
pub struct Plan {
    pub deliveries: u64,
    pub kills: u64,
    pub seed: u64,
}

impl Plan {
    /// The numbers from the environment, or else these.
    pub fn new(deliveries: u64, kills: u64) -> Self {
        let number = |variable: &str, default| {
            std::env::var(variable).map_or(default, |text: String| text.parse().expect(variable))
        };
        Self {
            deliveries: number("TEST_KILL_DELIVERIES", deliveries),
            kills: number("TEST_KILL_COUNT", kills),
            seed: number("TEST_KILL_SEED", 1),
        }
    }

    /// A moment to kill a process, for this class of operations: `CLASS:COUNT:before` or `after`.
    pub fn moment(&self, random: &mut Random, class: &str) -> String {
        let when = ["before", "after"][random.below(2) as usize];
        // Spreads the deliveries over the processes. A delivery takes several writes.
        let a_life = (self.deliveries / self.kills).max(4) * if matches!(class, "write" | "ask") { 6 } else { 1 };
        format!("{class}:{}:{when}", 1 + random.below(a_life))
    }
}

/// SplitMix64: the same run for the same seed.
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The store of a Doorward that is killed.
pub enum Kept {
    InAFile,
    InRedis(RedisServer),
}

impl Kept {
    /// A server that has each write on its disk before it responds, as `check` demands.
    pub fn in_redis() -> Self {
        Self::InRedis(RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]))
    }

    /// Its configuration, with its files in the folder.
    pub fn configuration(&self, folder: &Path) -> String {
        match self {
            Self::InAFile => "store: {path: doorward.redb}".to_owned(),
            Self::InRedis(server) => {
                std::fs::write(folder.join("key"), SESSION_KEY).unwrap();
                let server = server.address();
                format!(
                    "store: {{path: doorward.redb, redis: {{server: '{server}'}}}}\nsessions: {{keys: [{{file: key}}]}}"
                )
            }
        }
    }

    /// The class of moments that corresponds to one of the embedded store.
    pub fn class(&self, class: &'static str) -> &'static str {
        match (self, class) {
            (Self::InRedis(_), "write" | "sync") => "ask",
            _ => class,
        }
    }

    /// A Doorward that is killed at this moment: `CLASS:COUNT:before` or `after`. `upstream` is the port that it sends
    /// to.
    pub fn doorward(&self, folder: &Path, kill: Option<&str>, upstream: u16) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.arg("serve").arg(folder.join("doorward.yaml")).envs(faults::environment(folder));
        if let Some(kill) = kill {
            command.env("TEST_KILL", kill).env("TEST_KILL_PORT", upstream.to_string());
            if let Self::InRedis(server) = self {
                command.env("TEST_KILL_STORE_PORT", server.port().to_string());
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    }

    /// Waits until it is killed at its moment. The leases of its lanes are ended too, as if their minute had passed.
    pub async fn ends_by_kill(&self, mut doorward: Child, moment: &str) {
        let status = timeout(Duration::from_secs(300), doorward.wait()).await;
        assert!(status.expect(moment).unwrap().code().is_none(), "{moment} killed it");
        if let Self::InRedis(server) = self {
            let of = |what| format!("doorward:{{deliveries}}:held_leases:{what}");
            server.ask::<()>(&["DEL", &of("records"), &of("versions"), &of("ends")]).await;
        }
    }
}

/// The result of one attempt to deliver: the status, or `None` if Doorward was killed.
pub async fn try_to_deliver(port: u16, id: &str, body: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(&Push::of(body, id, WEBHOOK_SECRET).request(&["Connection: close"])).await.ok()?;
    let mut answer = Vec::new();
    timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await.ok()?.ok()?;
    std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

/// Senders to the port, one per repository, each of which sends one delivery after the other until `enough` is set.
pub struct Senders {
    enough: Arc<AtomicBool>,
    repositories: Vec<JoinHandle<Vec<String>>>,
}

impl Senders {
    /// `body` makes the body of the delivery of a repository with this id. At least `least` deliveries are sent in
    /// total.
    pub fn start(port: u16, least: u64, body: fn(u32, &str) -> String) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let least = least / u64::from(REPOSITORIES);
        let repositories = (1..=REPOSITORIES).map(|repository| {
            let enough = enough.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while (taken.len() as u64) < least || !enough.load(Ordering::SeqCst) {
                    let id = format!("{repository}-{}", taken.len());
                    let body = body(repository, &id);
                    // Retries like a sender: 200 means that an earlier attempt was stored.
                    while !matches!(try_to_deliver(port, &id, &body).await, Some(200 | 202)) {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    taken.push(id);
                }
                taken
            })
        });
        Self { repositories: repositories.collect(), enough }
    }

    /// The ids of the accepted deliveries, by repository.
    pub async fn finish(self) -> BTreeMap<u32, Vec<String>> {
        self.enough.store(true, Ordering::SeqCst);
        let mut taken = BTreeMap::new();
        for (repository, sender) in (1..=REPOSITORIES).zip(self.repositories) {
            taken.insert(repository, sender.await.unwrap());
        }
        taken
    }
}

/// Waits until all of these have arrived. While some are still arriving, the rest has not been lost.
pub async fn until_all_arrive(all: &BTreeSet<String>, plan: &Plan, arrived: impl AsyncFn() -> BTreeSet<String>) {
    let mut left = all.len() + 1;
    while left > 0 {
        let fewer = timeout(Duration::from_secs(120), async {
            loop {
                let began = Instant::now();
                let now = all.difference(&arrived().await).count();
                if now > 0 {
                    // Counting thousands is as expensive as delivering them.
                    tokio::time::sleep(Duration::from_millis(50).max(began.elapsed() * 10)).await;
                }
                if now < left {
                    return now;
                }
            }
        });
        let Ok(now) = fewer.await else {
            let arrived = arrived().await;
            let lost: Vec<_> = all.difference(&arrived).take(10).collect();
            panic!("seed {}: {left} are lost, {lost:?} among them", plan.seed)
        };
        left = now;
    }
}

/// What is the same for every attempt to deliver, according to the assertion.
fn once(request: &Recorded) -> String {
    part(request.one("doorward-assertion"), 1)["once"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn no_delivery_that_was_taken_is_lost_over_kills_at_any_moment() {
    none_is_lost(&Kept::InAFile).await;
}

#[tokio::test]
async fn no_delivery_that_was_taken_into_redis_is_lost_over_kills_at_any_moment() {
    none_is_lost(&Kept::in_redis()).await;
}

async fn none_is_lost(kept: &Kept) {
    let plan = Plan::new(80, 8);
    let (kills, seed) = (plan.kills, plan.seed);
    let mut random = Random::new(seed);
    let arrived = Arc::new(AtomicUsize::new(0));
    let counter = arrived.clone();
    // Outages, and lost responses. There are none after the last kill: the last repository would wait through outages
    // alone, each time for longer.
    let is_calm = Arc::new(AtomicBool::new(false));
    let calm = is_calm.clone();
    let script = move |request: &Recorded| match counter.fetch_add(1, Ordering::SeqCst) % 120 {
        20..28 if !calm.load(Ordering::SeqCst) => Reply::json(503, "{}"),
        15 | 75 if !calm.load(Ordering::SeqCst) => Reply::Bytes(b"lost\r\n\r\n".to_vec()),
        _ => Reply::json(202, &format!(r#"{{"eventID":"event-{}"}}"#, request.one("x-github-delivery"))),
    };
    let answers: Arc<Mutex<Vec<(Recorded, bool)>>> = Arc::default();
    let noted = answers.clone();
    let upstream = Upstream::scripted(move |request| {
        let reply = script(request);
        let taken = matches!(&reply, Reply::Bytes(bytes) if bytes.starts_with(b"HTTP/1.1 202"));
        noted.lock().unwrap().push((request.clone(), taken));
        reply
    })
    .await;

    let dir = folder_with(&[("secret", WEBHOOK_SECRET), ("assertions", ASSERTION_KEY.as_str())]);
    let port = free_port();
    let store = kept.configuration(dir.path());
    let yaml = configuration(upstream.address, &format!("{store}\nassertions: {{keys: [{{file: assertions}}]}}"))
        .change("address: 127.0.0.1:0}]", &format!("address: 127.0.0.1:{port}}}]"));
    std::fs::write(dir.path().join("doorward.yaml"), yaml).unwrap();

    let senders = Senders::start(port, plan.deliveries, |repository, id| {
        BODY.replace("1234", &repository.to_string()).replace("\"0\"", &format!("\"{id}\""))
    });
    let mut ends = BTreeMap::<String, u64>::new();
    for kill in 0..kills {
        let class = kept.class(["write", "sync", "send", "answer"][(kill % 4) as usize]);
        let moment = plan.moment(&mut random, class);
        kept.ends_by_kill(kept.doorward(dir.path(), Some(&moment), upstream.address.port()), &moment).await;
        *ends.entry(format!("{} {class}", moment.rsplit(':').next().unwrap())).or_default() += 1;
    }
    is_calm.store(true, Ordering::SeqCst);
    let _last = kept.doorward(dir.path(), None, upstream.address.port());
    let taken = senders.finish().await;
    let all: BTreeSet<String> = taken.values().flatten().cloned().collect();
    let arrivals = || -> Vec<Recorded> {
        answers.lock().unwrap().iter().filter(|(_, taken)| *taken).map(|(request, _)| request.clone()).collect()
    };
    let ids = async || arrivals().iter().map(|request| request.one("x-github-delivery").to_owned()).collect();
    until_all_arrive(&all, &plan, ids).await;

    let mut counts = BTreeMap::<String, (usize, BTreeSet<String>)>::new();
    let mut order = BTreeMap::<String, Vec<String>>::new();
    for request in arrivals() {
        let id = request.one("x-github-delivery").to_owned();
        let (count, onces) = counts.entry(id.clone()).or_default();
        *count += 1;
        onces.insert(once(&request));
        if *count == 1 {
            order.entry(request.one("x-forwarded-user").to_owned()).or_default().push(id);
        }
    }
    for (id, (_, onces)) in &counts {
        assert_eq!(onces.len(), 1, "seed {seed}: {id}: the interceptor could not tell its copies");
    }
    for (repository, sent) in &taken {
        assert_eq!(&order[&format!("webhook:github:repo:{repository}")], sent, "seed {seed}: the order");
    }
    let doubled = counts.values().filter(|(count, _)| *count > 1).count();
    println!("seed {seed}: {} deliveries, {kills} kills {ends:?}, 0 lost, {doubled} doubled", all.len());
}
