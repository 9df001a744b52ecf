//! The vectors of each sender, which are also read by [`doorward`]'s own tests, over a socket: head and body pass
//! through the parser, the limits and the store. The clock of the process is stopped at the time of each vector.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::harness::{Answer, Doorward, Raw, Reply, Upstream, request};

#[derive(Deserialize)]
struct Vectors {
    now: u64,
    webhook: Map<String, Value>,
    secrets: Vec<Map<String, Value>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    row: String,
    name: String,
    method: Option<String>,
    query: Option<String>,
    headers: Vec<(String, String)>,
    body: Option<String>,
    body_hex: Option<String>,
    content_length: Option<u64>,
    now: Option<u64>,
    #[serde(default)]
    require_signature: bool,
    expect: String,
}

impl Case {
    fn body(&self) -> Vec<u8> {
        let digits = |text: &String| data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).unwrap();
        self.body_hex.as_ref().map_or_else(|| self.body.clone().unwrap_or_default().into_bytes(), digits)
    }

    /// HTTP removes blanks around a value, and other tests cover a length that is not the body's.
    fn can_be_sent(&self) -> bool {
        let is_whole = self.content_length.is_none() || self.expect == "body_too_large";
        is_whole && self.headers.iter().all(|(_, value)| value.trim() == value)
    }

    /// Gives an accepted one a unique id if the id is not signed, as it would otherwise count as a duplicate of another
    /// vector.
    fn with_own_id(mut self, number: usize) -> Self {
        let unsigned = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.ends_with("-delivery") || name == "x-request-uuid" || name == "x-request-id"
        };
        if self.expect == "accepted" {
            let ids = self.headers.iter_mut().filter(|(name, _)| unsigned(name));
            ids.for_each(|(_, value)| value.push_str(&format!("-{number}")));
        }
        self
    }

    /// What no other delivery may share with it: the body, and ids in the head or the body.
    fn marks(&self) -> BTreeSet<Vec<u8>> {
        let body: Value = serde_json::from_slice(&self.body()).unwrap_or_default();
        let in_body = ["id", "event_id"].into_iter().filter_map(|name| Some(body.get(name)?.to_string()));
        let in_head = self.headers.iter().filter(|(name, _)| {
            let name = name.to_ascii_lowercase();
            ["-id", "-uuid", "-delivery"].iter().any(|end| name.ends_with(end))
        });
        let ids = in_body.chain(in_head.map(|(_, value)| value.clone())).map(String::into_bytes);
        ids.chain([self.body()]).collect()
    }

    async fn send(&self, doorward: &Doorward, source: Ipv4Addr) -> Answer {
        let method = self.method.as_deref().unwrap_or("POST");
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let mut lines = vec![format!("{method} /hook{query} HTTP/1.1"), "Host: hooks.test".to_owned()];
        lines.push("Connection: close".to_owned());
        lines.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        lines.extend(self.content_length.map(|length| format!("Content-Length: {length}")));
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut raw = Raw::connect_from(source.into(), doorward.address("public")).await;
        raw.send(request(&lines, &self.body())).await;
        raw.answer().await
    }

    fn is_form(&self) -> bool {
        self.headers.iter().any(|(_, value)| value.starts_with("application/x-www-form-urlencoded"))
    }

    /// The expected status.
    fn status(&self) -> u16 {
        match self.expect.as_str() {
            "accepted" if self.is_form() => 200,
            "accepted" => 202,
            "ping" => 200,
            "bad_request" | "credential_ambiguous" => 400,
            // Decided before routing.
            "method_not_allowed" if self.method.as_deref() == Some("post") => 400,
            "method_not_allowed" => 405,
            "body_too_large" => 413,
            "unsupported_media_type" => 415,
            _ => 401,
        }
    }
}

/// A Doorward with a single sender, whose deliveries are forwarded at once.
async fn start(vectors: &Vectors, strict: bool, upstream: &Upstream) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    let mut webhook = vectors.webhook.clone();
    webhook.insert("hold".to_owned(), false.into());
    if strict {
        webhook.insert("require_signature".to_owned(), true.into());
    }
    let secrets = vectors.secrets.iter().enumerate().map(|(index, secret)| {
        let file = format!("secret-{index}");
        std::fs::write(dir.path().join(&file), secret["value"].as_str().unwrap()).unwrap();
        let mut entry = secret.clone();
        entry.remove("value");
        entry.insert("secret".to_owned(), json!({"file": file}));
        Value::from(entry)
    });
    webhook.insert("secrets".to_owned(), secrets.collect());
    let name = webhook["name"].clone();
    let configuration = json!({
        "listeners": [{"name": "public", "address": "127.0.0.1:0"}],
        "upstreams": [{"name": "el", "url": format!("http://{}", upstream.address)}],
        "webhooks": [webhook],
        "routes": [{"name": "hooks", "kind": "webhook", "hosts": ["hooks.test"], "paths": ["/hook"],
            "schemes": ["webhook"], "webhook": name, "upstream": "el"}],
        "rules": [{"id": "all", "on": {"routes": ["hooks"]}, "who": {"webhooks": [name]}, "do": "allow"}],
        "store": {"path": "doorward.redb"},
        "audit": {"sink": {"file": {"path": "audit.jsonl"}}},
        "admin": {"address": "127.0.0.1:0"},
        "limits": {"drain_accept": 0},
    });
    crate::harness::faults::set_clock_ahead(dir.path(), vectors.now);
    Doorward::start_with_faults(dir, &configuration.to_string()).await
}

#[tokio::test]
async fn the_vectors_of_each_sender_over_a_socket() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/webhooks/vectors");
    let mut rows = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        let vectors: Vectors = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let (now, upstream) = (vectors.now, Upstream::scripted(|_| Reply::json(202, "{}")).await);
        let plain = start(&vectors, false, &upstream).await;
        let strict = match vectors.cases.iter().any(|case| case.require_signature) {
            true => Some(start(&vectors, true, &upstream).await),
            false => None,
        };
        let senders = ["gitlab", "bitbucket_data_center", "azure_devops"];
        let counts = senders.iter().any(|sender| vectors.webhook["sender"] == *sender);
        let mut taken = BTreeSet::new();
        let cases = vectors.cases.into_iter().enumerate().filter(|(_, case)| case.can_be_sent());
        for (number, case) in cases.map(|(number, case)| (number, case.with_own_id(number))) {
            let title = format!("{} {}: {}", file.file_stem().unwrap().display(), case.row, case.name);
            let doorward = if case.require_signature { strict.as_ref().unwrap() } else { &plain };
            doorward.set_clock_ahead(case.now.unwrap_or(now));
            // An address can be refused only a limited number of times.
            let answer = case.send(doorward, Ipv4Addr::new(127, 0, 1, 1 + u8::try_from(number).unwrap())).await;
            // Authenticated, but with the body or the id of another vector.
            let may_be_twin = case.expect == "accepted" && case.marks().iter().any(|mark| taken.contains(mark));
            let is_twin = may_be_twin && answer.status == 200 && answer.reason() == "replayed_delivery";
            // An accepted Slack form is answered with a plain 200.
            let is_taken = answer.status == 202 || answer.status == 200 && answer.text().is_empty();
            if is_taken {
                taken.extend(case.marks());
            }
            // A sender that would disable its hook gets this for genuine deliveries that cannot be read.
            let is_unreadable = case.expect == "bad_request" && answer.text().contains("is genuine but cannot be read");
            let status = if counts && is_unreadable { 200 } else { case.status() };
            assert!(is_twin || answer.status == status, "{title}: {}{}", answer.head, answer.text());
            let arrived: Vec<_> = upstream.take().into_iter().map(|seen| seen.body).collect();
            let expected = if is_taken { vec![case.body()] } else { Vec::new() };
            assert_eq!(arrived, expected, "{title}");
            if answer.status == 401 {
                assert!(answer.text().contains("the delivery is not signed as this address requires"), "{title}");
            }
            rows.insert(case.row.clone());
        }
    }
    assert!(rows.len() > 15, "{rows:?}");
}
