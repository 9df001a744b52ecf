//! Watches, as a client reads them from the wire.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::world::World;
use crate::harness::{Raw, within};

/// A watch of the ConfigMaps in a world's namespace, through Doorward. Chunks may end anywhere.
pub struct Watch<'w> {
    world: &'w World,
    query: String,
    raw: Raw,
    chunked: Vec<u8>,
    text: Vec<u8>,
    /// The last resource version that it reported.
    version: Option<String>,
    /// How often it was ended.
    ends: usize,
}

impl<'w> Watch<'w> {
    pub async fn open(world: &'w World, query: &str) -> Self {
        let (raw, chunked) = begin(world, query).await;
        Self { world, query: query.to_owned(), raw, chunked, text: Vec::new(), version: None, ends: 0 }
    }

    /// The next event. The API server ends a watch that would make it wait; like other clients, this one reopens it at
    /// the last resource version.
    pub async fn next(&mut self) -> Value {
        loop {
            let Some(event) = self.line().await else {
                let from = self.version.as_ref().map(|version| format!("&resourceVersion={version}"));
                let query = self.query.clone() + &from.unwrap_or_default();
                (self.raw, self.chunked) = begin(self.world, &query).await;
                self.ends += 1;
                continue;
            };
            assert_ne!(event["type"], "ERROR", "{event}");
            self.version = Some(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
            return event;
        }
    }

    /// The resource versions of the next events.
    pub async fn versions(&mut self, count: usize) -> Vec<String> {
        let mut versions = Vec::new();
        for _ in 0..count {
            self.next().await;
            versions.extend(self.version.clone());
        }
        versions
    }

    pub fn ends(&self) -> usize {
        self.ends
    }

    /// `None` at the end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=at).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            while let Some(at) = self.chunked.windows(2).position(|window| window == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&self.chunked[..at]).unwrap(), 16).unwrap();
                if size == 0 && self.text.is_empty() {
                    return None;
                }
                // Data before the end is returned first.
                if size == 0 {
                    break;
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
}

/// A connection with an open watch, and what it has received already.
async fn begin(world: &World, query: &str) -> (Raw, Vec<u8>) {
    let (mut raw, token) = (world.connect().await, world.developer("alice"));
    let path = format!("/api/v1/namespaces/{}/configmaps?watch=true{query}", world.namespace);
    raw.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n\r\n")).await;
    let mut chunked = Vec::new();
    let end = loop {
        let more = raw.some().await;
        assert!(!more.is_empty(), "the connection ended within a head");
        chunked.extend(more);
        if let Some(at) = chunked.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8_lossy(&chunked[..end]).into_owned();
    assert!(head.starts_with("HTTP/1.1 200") && head.to_ascii_lowercase().contains("chunked"), "{head}");
    (raw, chunked.split_off(end))
}

/// WatchList (KEP-3157), by which client-go has filled its informers since 0.35: existing objects first, then a
/// bookmark that marks their end, then changes.
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
    assert_eq!(watch.ends(), 0, "nobody ends it");
    world.assert_sent_as(&["alice"]).await;
}
