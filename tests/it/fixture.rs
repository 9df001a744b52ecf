//! One configuration with every kind of route, for tests that need no other.

use crate::harness::{Answer, Doorward, Issuer, Recorded, Reply, Upstream, folder_with};

/// Doorward between two issuers and an upstream that records its requests.
pub struct Fixture {
    pub doorward: Doorward,
    pub a: Issuer,
    pub b: Issuer,
    pub upstream: Upstream,
}

pub const WEBHOOK_SECRET: &str = "a webhook secret of the tests";

impl Fixture {
    pub async fn start() -> Self {
        Self::answering(|_| Reply::json(200, r#"{"ok":true}"#)).await
    }

    /// `script` gives the upstream's responses.
    pub async fn answering(script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(|yaml| yaml, script).await
    }

    /// `change` edits the configuration; `script` gives the upstream's responses.
    pub async fn with(
        change: impl FnOnce(String) -> String,
        script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(change, script, false).await
    }

    /// The same with a Doorward whose disk can be made to fail and whose clock can be set.
    pub async fn with_faults(
        change: impl FnOnce(String) -> String,
        script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::begin(change, script, true).await
    }

    async fn begin(
        change: impl FnOnce(String) -> String,
        script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static,
        faults: bool,
    ) -> Self {
        let (a, b) = (Issuer::start().await, Issuer::start().await);
        let upstream = Upstream::scripted(script).await;
        let dir = folder_with(&[
            ("token", "upstream-token"),
            ("secret", WEBHOOK_SECRET),
            ("client", "introspection-secret"),
            ("admin", "the-admin-token-of-the-tests"),
        ]);
        let yaml = CONFIGURATION.replace("{a}", a.url()).replace("{b}", b.url()).replace("{upstream}", &upstream.url());
        let yaml = change(yaml);
        let doorward = match faults {
            true => Doorward::start_with_faults(dir, &yaml).await,
            false => Doorward::start_in(dir, &yaml).await,
        };
        doorward.wait_for_keys_at("api.test", &a).await;
        doorward.wait_for_keys_at("api.test", &b).await;
        Self { doorward, a, b, upstream }
    }

    /// An `Authorization` line of a developer at issuer A.
    pub fn alice(&self) -> String {
        bearer(&self.a.token("alice", &["dev"]))
    }

    /// Sends a request to the API server's host. Returns the response and what reached the upstream.
    pub async fn api(&self, path: &str, headers: &[&str]) -> (Answer, Vec<Recorded>) {
        let _ = self.upstream.take();
        let mut lines = vec!["Host: api.test"];
        lines.extend(headers);
        let answer = self.doorward.get(path, &lines).await;
        (answer, self.upstream.take())
    }
}

/// Edits of a configuration that panic if they change nothing: the test would prove nothing.
pub trait Change {
    /// Replaces `there` by `here` everywhere.
    fn change(&self, there: &str, here: &str) -> String;
    /// The same in the first place only.
    fn change_first(&self, there: &str, here: &str) -> String;
}

impl Change for str {
    fn change(&self, there: &str, here: &str) -> String {
        assert!(self.contains(there), "`{there}` is not in {self}");
        self.replace(there, here)
    }

    fn change_first(&self, there: &str, here: &str) -> String {
        assert!(self.contains(there), "`{there}` is not in {self}");
        self.replacen(there, here, 1)
    }
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

const CONFIGURATION: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
external_host: api.test
issuers:
  - name: a
    issuer: '{a}'
    audiences: ['https://doorward.test']
    username: '{sub}'
    kind: human
    introspection: {mode: opaque, cache: 1s, client: {id: doorward, secret: {file: client}}}
  - {name: b, issuer: '{b}', audiences: ['https://doorward.test'], username: 'b:{sub}', kind: human}
upstreams:
  - {name: cluster, url: '{upstream}', credential: {bearer: {file: token}}, response_timeout: 5s}
  - {name: web, url: '{upstream}'}
webhooks:
  - {name: github, sender: github, hold: false, secrets: [{secret: {file: secret}}]}
routes:
  - {name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}
  - {name: only-a, kind: kubernetes, hosts: [a.test], schemes: [bearer], issuers: [a], upstream: cluster}
  - {name: board, kind: dashboard, hosts: [board.test], schemes: [bearer], upstream: web, kubernetes: cluster}
  - {name: web, kind: http, hosts: [web.test], schemes: [bearer], upstream: web}
  - {name: open, kind: http, hosts: [open.test], schemes: [anonymous], upstream: web, max_body: 64KiB}
  - {name: hooks, kind: webhook, hosts: [hooks.test], paths: [/github], schemes: [webhook], webhook: github, upstream: web}
grants:
  - {id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: ['tekton:dev']}
rules:
  - {id: dev, on: {routes: [api, only-a, board, web]}, who: {issuers: [a], groups: [dev]}, do: allow}
  - {id: open, on: {routes: [open]}, who: {anonymous: true}, do: allow}
  - {id: hooks, on: {routes: [hooks], event: [push], branch: [main]}, who: {webhooks: [github]}, do: allow}
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
admin: {address: 127.0.0.1:0, socket: operator.sock}
limits: {drain_accept: 0, connections_per_address: 5000, header_timeout: 1s, body_timeout: 1s}
";
