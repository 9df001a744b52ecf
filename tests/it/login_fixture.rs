//! Doorward with user logins, for tests of logins and sessions.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    fixture::Change,
    harness::{Answer, Authority, Doorward, Issuer, OidcProvider, Raw, Upstream, call_back, free_port, log_in, until},
};

/// Doorward between a provider and an upstream that records its requests.
pub struct LoginFixture {
    pub doorward: Doorward,
    pub upstream: Upstream,
    /// `localhost:PORT`.
    pub host: String,
}

/// Replacements in the configuration: old and new text. Panics if the old text is missing.
pub type Changes<'a> = &'a [(&'a str, &'a str)];

/// A PKCE verifier (RFC 7636 appendix B) and its challenge.
pub const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
pub const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

impl LoginFixture {
    /// With the scripted issuer, where everybody is Alice.
    pub async fn scripted(changes: Changes<'_>) -> (Self, Issuer) {
        Self::scripted_with(Upstream::start().await, changes).await
    }

    /// The same with this upstream.
    pub async fn scripted_with(upstream: Upstream, changes: Changes<'_>) -> (Self, Issuer) {
        let issuer = Issuer::start().await;
        (Self::at(issuer.url(), 0, upstream, folder(), changes).await, issuer)
    }

    /// With the certified provider and these further options for it, in which `{origin}` is Doorward's origin.
    pub async fn certified(further: &Value, changes: Changes<'_>) -> (Self, OidcProvider) {
        Self::certified_with(further, Upstream::start().await, folder(), changes).await
    }

    /// The same with this upstream, and with a folder that already has files.
    pub async fn certified_with(
        further: &Value,
        upstream: Upstream,
        dir: TempDir,
        changes: Changes<'_>,
    ) -> (Self, OidcProvider) {
        let port = free_port();
        let origin = format!("http://localhost:{port}");
        let further = serde_json::from_str(&further.to_string().replace("{origin}", &origin)).unwrap();
        let provider = OidcProvider::start_with(&origin, &further).await;
        (Self::at(&provider.issuer, port, upstream, dir, changes).await, provider)
    }

    /// With any issuer, once people can sign in. Listens at this port; 0 for any.
    pub async fn at(issuer: &str, port: u16, upstream: Upstream, dir: TempDir, changes: Changes<'_>) -> Self {
        let world = Self::start(issuer, port, upstream, dir, changes).await;
        world.doorward.until_people_can_sign_in(&world.host).await;
        world
    }

    /// The same without waiting.
    pub async fn start(issuer: &str, port: u16, upstream: Upstream, dir: TempDir, changes: Changes<'_>) -> Self {
        for (name, text) in [
            ("client", "doorward-secret-of-the-tests"),
            ("token", "upstream-token"),
            ("key", &BASE64_STANDARD.encode([7; 32])),
        ] {
            let file = dir.path().join(name);
            if !file.exists() {
                std::fs::write(file, text).unwrap();
            }
        }
        let yaml = changes.iter().fold(CONFIGURATION.to_owned(), |yaml, (there, here)| yaml.change(there, here));
        let yaml = yaml
            .replace("{issuer}", issuer)
            .replace("{upstream}", &upstream.url())
            .replace("{upstream_port}", &upstream.address.port().to_string())
            .replace("{port}", &port.to_string());
        let doorward = Doorward::start_with_faults(dir, &yaml).await;
        let host = format!("localhost:{}", doorward.address("public").port());
        Self { doorward, upstream, host }
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.host)
    }

    pub async fn get(&self, path: &str, more: &[&str]) -> Answer {
        self.doorward.get(path, &[&[&*format!("Host: {}", self.host)], more].concat()).await
    }

    pub async fn post(&self, path: &str, more: &[&str], body: &str) -> Answer {
        let (line, host) = (format!("POST {path} HTTP/1.1"), format!("Host: {}", self.host));
        self.doorward.send(&[&[&*line, &host], more].concat(), body.as_bytes()).await
    }

    /// Sends a form.
    pub async fn submit(&self, path: &str, more: &[&str], form: &str) -> Answer {
        let kind = "Content-Type: application/x-www-form-urlencoded";
        self.post(path, &[&[kind], more].concat(), form).await
    }

    /// The `Cookie` line of a new session of Alice, at the scripted issuer.
    pub async fn log_in(&self) -> String {
        log_in(&self.doorward, &self.host, "/page").await
    }

    /// The callback's response to a browser that `away` sent to the scripted issuer.
    pub async fn call_back(&self, away: &Answer) -> Answer {
        let location = away.header("location").unwrap_or_else(|| panic!("{}{}", away.head, away.text()));
        let lines = [&*format!("Host: {}", self.host), "Accept: text/html"];
        call_back(&self.doorward, &lines, away, location).await
    }

    /// The same, if it is not refused.
    pub async fn come_back(&self, away: &Answer) -> Answer {
        let back = self.call_back(away).await;
        assert!((300..400).contains(&back.status), "{}{}", back.head, back.text());
        back
    }

    /// The output of `doorward sessions` for Alice: `verb` is `list` or `end`.
    pub async fn sessions(&self, verb: &str) -> (Option<i32>, String) {
        let person = ["--issuer", "a", "--subject", "alice", "--why", "laptop lost"];
        self.doorward.operator(&[&["sessions", verb], &person[..]].concat()).await
    }

    /// The status of a page with this session.
    pub async fn status(&self, cookie: &str) -> u16 {
        self.get("/page", &[cookie]).await.status
    }
}

/// Another provider, to be inserted before `upstreams` in the configuration.
pub fn provider(name: &str, issuer: &str, login: &str) -> String {
    format!(
        "  - {{name: {name}, issuer: '{issuer}', username: '{name}#{{sub}}', kind: human, login: {{client: {{id: doorward, \
         secret: {{file: client}}}}, {login}}}}}\nupstreams:\n"
    )
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Waits until browsers at this host, which has a certificate from the authority, are redirected to the provider.
pub async fn until_people_can_sign_in_over_tls(doorward: &Doorward, authority: &Authority, host: &str) {
    let name = host.split(':').next().unwrap();
    until(async || {
        let mut raw = Raw::tls(doorward.address("public"), authority, None, name).await;
        raw.send(format!("GET /oauth2/start HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        raw.answer().await.status == 303
    })
    .await;
}

/// Where sessions are stored.
pub const STORE: &str = "store: {path: doorward.redb}";

/// The same for replicas on one Redis: `redis` says how to reach it.
pub fn on_redis(redis: &str) -> String {
    format!("sessions: {{keys: [{{file: key}}]}}\nstore: {{path: doorward.redb, redis: {{{redis}}}}}")
}

/// The route and the rule of the configuration, to be changed by tests.
pub const ROUTE: &str = "{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}";
pub const RULE: &str = "{id: people, on: {routes: [web]}, who: {users: [alice]}, do: allow}";

const CONFIGURATION: &str = "
listeners: [{name: public, address: '127.0.0.1:{port}'}]
issuers:
  - name: a
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    username: '{sub}'
    kind: human
    login: {client: {id: doorward, secret: {file: client}}, label: Example Corp}
upstreams:
  - {name: web, url: '{upstream}'}
routes:
  - {name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}
rules:
  - {id: people, on: {routes: [web]}, who: {users: [alice]}, do: allow}
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
admin: {address: 127.0.0.1:0, socket: operator.sock}
limits: {drain_accept: 0}
";
