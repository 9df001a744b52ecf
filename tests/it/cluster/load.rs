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
struct Watch {
    raw: Raw,
    chunked: Vec<u8>,
    text: Vec<u8>,
}

impl Watch {
    /// Opens one through Doorward, in clear text.
    async fn open(world: &World, query: &str) -> Self {
        let mut raw = world.doorward.raw().await;
        let token = world.developer("alice");
        let path = format!("/api/v1/namespaces/{}/configmaps?watch=true{query}", world.namespace);
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n\r\n")).await;
        Self::begun(raw).await
    }

    /// Opens one at the API server itself.
    async fn open_directly(world: &World, query: &str) -> Self {
        let path = format!("/api/v1/namespaces/{}/configmaps?watch=true{query}", world.namespace);
        let mut raw = world.api.connect().await.unwrap();
        let token = bearer(&world.api.admin_token);
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n\r\n")).await;
        Self::begun(raw).await
    }

    async fn begun(mut raw: Raw) -> Self {
        let mut chunked = Vec::new();
        let end = loop {
            chunked.extend(raw.some().await);
            if let Some(at) = chunked.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&chunked[..end]).into_owned();
        assert!(head.starts_with("HTTP/1.1 200") && head.to_ascii_lowercase().contains("chunked"), "{head}");
        Self { raw, chunked: chunked.split_off(end), text: Vec::new() }
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(at) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=at).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            while let Some(at) = self.chunked.windows(2).position(|window| window == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&self.chunked[..at]).unwrap(), 16).unwrap();
                assert!(size > 0, "the watch ended");
                if self.chunked.len() < at + 2 + size + 2 {
                    break;
                }
                self.text.extend(&self.chunked[at + 2..at + 2 + size]);
                self.chunked.drain(..at + 2 + size + 2);
            }
            if !self.text.contains(&b'\n') {
                let more = self.raw.some().await;
                assert!(!more.is_empty(), "the connection ended");
                self.chunked.extend(more);
            }
        }
    }

    /// The resource versions of what is said up to the object of this name.
    async fn versions_until(&mut self, name: &str) -> Vec<String> {
        let mut versions = Vec::new();
        loop {
            let event = self.next().await;
            assert_ne!(event["type"], "ERROR", "{event}");
            versions.push(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
            if event["object"]["metadata"]["name"] == name {
                return versions;
            }
        }
    }
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
    let (mut through, mut directly) = (Watch::open(&world, "").await, Watch::open_directly(&world, "").await);
    let ((), seen, expected) = within(async {
        tokio::join!(change(&world, 2000), through.versions_until("last"), directly.versions_until("last"))
    })
    .await;
    assert_eq!(expected.len(), 2001);
    assert_eq!(seen, expected);
    world.assert_sent_as(&["alice"]).await;
}

#[tokio::test]
async fn five_hundred_watches_at_once_all_see_what_happens() {
    let world = World::with(|yaml| yaml.replace("limits: {", "limits: {connections_per_address: 1000, ")).await;
    let mut watches = Vec::new();
    for _ in 0..500 {
        watches.push(Watch::open(&world, "").await);
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
    let mut watch = Watch::open(&world, query).await;
    let (mut names, mut bookmark) = (BTreeSet::new(), Value::Null);
    while bookmark.is_null() {
        let event = within(watch.next()).await;
        match event["type"].as_str() {
            Some("ADDED") => drop(names.insert(event["object"]["metadata"]["name"].as_str().unwrap().to_owned())),
            Some("BOOKMARK") => bookmark = event["object"]["metadata"]["annotations"].clone(),
            _ => panic!("{event}"),
        }
    }
    assert_eq!(names, ["a".to_owned(), "b".to_owned()].into());
    assert_eq!(bookmark["k8s.io/initial-events-end"], "true");
    world.api.create(&path, &json!({"metadata": {"name": "c"}})).await;
    assert_eq!(within(watch.next()).await["object"]["metadata"]["name"], "c");
    world.assert_sent_as(&["alice"]).await;
}
