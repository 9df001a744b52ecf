//! Watches: many, fast, and as client-go's informers ask for them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::world::World;
use crate::{
    fixture::bearer,
    harness::{Raw, request, within},
};

/// What a watch says, line by line. Chunks end where they like.
pub struct Watch<'w> {
    world: &'w World,
    /// Past Doorward.
    direct: bool,
    raw: Raw,
    chunked: Vec<u8>,
    text: Vec<u8>,
    /// How often the API server ended it.
    ends: usize,
}

impl<'w> Watch<'w> {
    /// Opens one, through Doorward in clear text or at the API server itself.
    pub async fn open(world: &'w World, direct: bool, query: &str) -> Self {
        let (mut raw, token) = match direct {
            false => (world.doorward.raw().await, world.developer("alice")),
            true => (world.api.connect().await.unwrap(), bearer(&world.api.admin_token)),
        };
        let path = format!("/api/v1/namespaces/{}/configmaps?watch=true{query}", world.namespace);
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n\r\n")).await;
        let (raw, chunked) = Self::begun(raw).await;
        Self { world, direct, raw, chunked, text: Vec::new(), ends: 0 }
    }

    async fn begun(mut raw: Raw) -> (Raw, Vec<u8>) {
        let mut chunked = Vec::new();
        let end = loop {
            chunked.extend(raw.some().await);
            if let Some(at) = chunked.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&chunked[..end]).into_owned();
        assert!(head.starts_with("HTTP/1.1 200") && head.to_ascii_lowercase().contains("chunked"), "{head}");
        (raw, chunked.split_off(end))
    }

    /// The next event; none at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            while let Some(at) = self.chunked.windows(2).position(|window| window == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&self.chunked[..at]).unwrap(), 16).unwrap();
                if size == 0 {
                    return None;
                }
                if self.chunked.len() < at + 2 + size + 2 {
                    break;
                }
                self.text.extend(&self.chunked[at + 2..at + 2 + size]);
                self.chunked.drain(..at + 2 + size + 2);
            }
            if !self.text.contains(&b'\n') {
                let more = self.raw.some().await;
                assert!(!more.is_empty(), "the connection ended within a chunk");
                self.chunked.extend(more);
            }
        }
    }

    /// The resource versions of what is said up to the object of this name. The API server ends a watch that it has to
    /// wait for; as clients do, it is opened anew where it ended.
    async fn versions_until(&mut self, name: &str) -> Vec<String> {
        let mut versions: Vec<String> = Vec::new();
        loop {
            let Some(event) = self.next().await else {
                let last = versions.last().map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
                let ends = self.ends + 1;
                *self = Self { ends, ..Self::open(self.world, self.direct, &last).await };
                continue;
            };
            assert_ne!(event["type"], "ERROR", "{event}");
            versions.push(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
            if event["object"]["metadata"]["name"] == name {
                return versions;
            }
        }
    }
}

/// How many watches the API server has ended because it would have had to wait for them.
async fn ended_by_api_server(world: &World) -> f64 {
    let metrics = world.api.ask("GET", "/metrics", None).await.text();
    let counts = metrics.lines().filter(|line| line.starts_with("apiserver_terminated_watchers_total{"));
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Makes this many changes as fast as the API server takes them, over a few connections, and then an object `last`.
async fn change(world: &World, count: usize) {
    const CONNECTIONS: usize = 4;
    let (api, path) = (world.api, format!("/api/v1/namespaces/{}/configmaps", world.namespace));
    let mut writers = JoinSet::new();
    for writer in 0..CONNECTIONS {
        let (path, token) = (path.clone(), bearer(&api.admin_token));
        writers.spawn(async move {
            let mut raw = api.connect().await.unwrap();
            for number in 0..count / CONNECTIONS {
                let (line, body, kind) = match number {
                    0 => (format!("POST {path}"), json!({"metadata": {"name": format!("w{writer}")}}), "json"),
                    _ => (
                        format!("PATCH {path}/w{writer}"),
                        json!({"data": {"n": number.to_string()}}),
                        "merge-patch+json",
                    ),
                };
                let (line, kind) = (format!("{line} HTTP/1.1"), format!("Content-Type: application/{kind}"));
                raw.send(request(&[&line, "Host: localhost", &token, &kind], body.to_string().as_bytes())).await;
                let answer = raw.answer().await;
                assert!(matches!(answer.status, 200 | 201), "{}", answer.text());
            }
        });
    }
    writers.join_all().await;
    api.create(&path, &json!({"metadata": {"name": "last"}})).await;
}

#[tokio::test]
async fn a_fast_watch_loses_nothing() {
    let world = World::start().await;
    let before = ended_by_api_server(&world).await;
    let (mut through, mut directly) = (Watch::open(&world, false, "").await, Watch::open(&world, true, "").await);
    let ((), seen, expected) = within(async {
        tokio::join!(change(&world, 2000), through.versions_until("last"), directly.versions_until("last"))
    })
    .await;
    assert_eq!(expected.len(), 2001);
    assert_eq!(seen, expected);
    assert!(through.ends == 0 || ended_by_api_server(&world).await > before, "nobody but the API server ends it");
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn five_hundred_watches_at_once_all_see_what_happens() {
    let world = World::with(|yaml| yaml.replace("limits: {", "limits: {connections_per_address: 1000, ")).await;
    let mut watches = Vec::new();
    for _ in 0..500 {
        watches.push(Watch::open(&world, false, "").await);
    }
    let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace);
    let made = world.api.create(&path, &json!({"metadata": {"name": "last"}})).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut seen = BTreeSet::new();
    for watch in &mut watches {
        seen.extend(within(watch.versions_until("last")).await);
    }
    assert_eq!(seen, [version.to_owned()].into());
    world.doorward.stays_below(150, "five hundred watches");
}

/// WatchList (KEP-3157), by which client-go fills its informers since 0.35: what is there comes first, then a bookmark
/// that says so, then what happens.
#[tokio::test]
async fn an_informer_is_filled_by_a_watch() {
    let world = World::start().await;
    let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace);
    for name in ["a", "b"] {
        world.api.create(&path, &json!({"metadata": {"name": name}})).await;
    }
    let query = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=";
    let mut watch = Watch::open(&world, false, query).await;
    let (mut names, mut bookmark) = (BTreeSet::new(), Value::Null);
    while bookmark.is_null() {
        let event = within(watch.next()).await.expect("it goes on");
        match event["type"].as_str() {
            Some("ADDED") => drop(names.insert(event["object"]["metadata"]["name"].as_str().unwrap().to_owned())),
            Some("BOOKMARK") => bookmark = event["object"]["metadata"]["annotations"].clone(),
            _ => panic!("{event}"),
        }
    }
    assert_eq!(names, ["a".to_owned(), "b".to_owned()].into());
    assert_eq!(bookmark["k8s.io/initial-events-end"], "true");
    world.api.create(&path, &json!({"metadata": {"name": "c"}})).await;
    assert_eq!(within(watch.next()).await.unwrap()["object"]["metadata"]["name"], "c");
    world.assert_sent_as(&["alice"]).await;
}
