//! What ends a session at one of two replicas ends it at the other one within 2 s, with everything that is open there. That
//! is a promise in seconds, so seconds are counted: from the answer of the one, until the other has kept it.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::harness::{
    Answered, Doorward, Issuer, OidcProvider, RedisServer, Upstream, free_port, log_in, now, session,
    streams::{Streams, streaming},
    unique, within,
};

const PROMISED: Duration = Duration::from_secs(2);
const PAGE: &str = "/api/v1/pods";

/// Two replicas on one Redis. The clock of one can be set.
struct Replicas {
    here: Doorward,
    there: Doorward,
    /// As a browser sees it, for which both are one.
    host: String,
    _upstream: Upstream,
    _redis: RedisServer,
}

impl Replicas {
    /// `issuer` are the settings that tell where people sign in.
    async fn start(port: u16, issuer: &str) -> Self {
        let (upstream, redis) = (Upstream::scripted(streaming).await, RedisServer::start(&[]));
        let here = replica("here", port, issuer, &upstream, &redis).await;
        let there = replica("there", 0, issuer, &upstream, &redis).await;
        let host = format!("localhost:{}", here.address("public").port());
        Self { here, there, host, _upstream: upstream, _redis: redis }
    }

    /// Opens a stream of each kind at the other replica, has `end` end the session here, and asserts that there it is over
    /// within the promised time.
    async fn end_in_time(&self, way: &str, cookie: &str, end: impl Future<Output = ()>) {
        let (host, origin) = (format!("Host: {}", self.host), format!("Origin: http://{}", self.host));
        let lines = [host.as_str(), &origin, cookie];
        let mut streams = Streams::open(&self.there, &lines).await;
        streams.are_open().await;
        // The worst moment: what the store said has just been read.
        assert_eq!(self.there.get(PAGE, &lines).await.status, 200, "{way}");
        end.await;
        let ended = Instant::now();
        let refused = async {
            while self.there.get(PAGE, &lines).await.status != 401 {}
            ended.elapsed()
        };
        let closed = async {
            streams.have_ended(1008, "signed_out").await;
            ended.elapsed()
        };
        let (refused, closed) = within(async { tokio::join!(refused, closed) }).await;
        assert!(refused < PROMISED, "{way}: requests were taken for {refused:?}");
        assert!(closed < PROMISED, "{way}: streams went on for {closed:?}");
        assert_eq!(self.here.get(PAGE, &lines).await.status, 401, "{way}");
    }

    /// The status of a page here.
    async fn status(&self, cookie: &str) -> u16 {
        self.here.get(PAGE, &[&format!("Host: {}", self.host), cookie]).await.status
    }
}

async fn replica(instance: &str, port: u16, issuer: &str, upstream: &Upstream, redis: &RedisServer) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("client", "doorward-secret-of-the-tests".to_owned()),
        ("key", BASE64_STANDARD.encode([7; 32])),
        ("token", "upstream-token".to_owned()),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:{port}'}}]
issuers:
  - {{name: a, audiences: ['https://doorward.test'], username: '{{sub}}', kind: human, {issuer}}}
upstreams:
  - {{name: cluster, url: '{upstream}', credential: {{bearer: {{file: token}}}}}}
routes:
  - {{name: cluster, kind: kubernetes, hosts: [localhost], paths: ['/api/*', '/apis/*'], schemes: [session], upstream: cluster}}
rules:
  - {{id: people, on: {{routes: [cluster]}}, who: {{users: [alice]}}, do: allow}}
  - {{id: shells, on: {{routes: [cluster], kubernetes: {{resources: [pods/exec]}}}}, who: {{users: [alice]}}, do: allow}}
sessions: {{keys: [{{file: key}}]}}
store: {{path: doorward.redb, redis: {{server: '{redis}'}}}}
audit: {{instance: {instance}, sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
",
        upstream = upstream.url(),
        redis = redis.address(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    doorward.until_people_can_sign_in("localhost").await;
    doorward
}

#[tokio::test]
async fn a_session_that_is_ended_at_one_replica_is_over_at_the_other_one_within_two_seconds() {
    let issuer = Issuer::start().await;
    let settings = format!("issuer: '{}', login: {{client: {{id: doorward, secret: {{file: client}}}}}}", issuer.url());
    let replicas = Replicas::start(0, &settings).await;
    let (host, origin) = (format!("Host: {}", replicas.host), format!("Origin: http://{}", replicas.host));
    let log_in = || log_in(&replicas.here, &replicas.host, PAGE);

    let (cookie, other) = (log_in().await, log_in().await);
    let sign_out = async {
        let out = ["POST /oauth2/sign_out HTTP/1.1", &host, &origin, &cookie, "Content-Length: 0"];
        assert_eq!(replicas.here.send(&out, b"").await.status, 303);
    };
    // Where the provider names no session of its own, a logout is of the person.
    replicas.end_in_time("signed out", &cookie, sign_out).await;
    assert_eq!(replicas.status(&other).await, 401);

    let cookie = log_in().await;
    let logout = async {
        let claims = json!({"iss": issuer.url(), "aud": "doorward", "sub": "alice", "jti": unique(), "iat": now(),
            "exp": now() + 120, "events": {"http://schemas.openid.net/event/backchannel-logout": {}}});
        let token = issuer.sign_with(&json!({"alg": "ES256", "typ": "logout+jwt", "kid": "key-1"}), &claims);
        let kind = "Content-Type: application/x-www-form-urlencoded";
        let lines = ["POST /oauth2/backchannel_logout HTTP/1.1", &host, kind];
        let answer = replicas.here.send(&lines, format!("logout_token={token}").as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    replicas.end_in_time("logged out at the provider", &cookie, logout).await;

    let cookie = log_in().await;
    let command = async {
        let person = ["sessions", "end", "--issuer", "a", "--subject", "alice", "--why", "laptop lost"];
        let (code, said) = replicas.here.operator(&person).await;
        assert_eq!(code, Some(0), "{said}");
    };
    replicas.end_in_time("ended by an operator", &cookie, command).await;

    let cookie = log_in().await;
    let shut_out = async {
        issuer.shut_out();
        replicas.here.set_clock_ahead(301);
        assert_eq!(replicas.status(&cookie).await, 401, "the provider was asked");
    };
    replicas.end_in_time("shut out at the provider", &cookie, shut_out).await;
}

/// The certified provider, which knows nothing of the refresh token any more.
#[tokio::test]
async fn a_session_whose_refresh_is_refused_at_one_replica_is_over_at_the_other_one_within_two_seconds() {
    let port = free_port();
    let origin = format!("http://localhost:{port}");
    let provider = OidcProvider::start(&origin).await;
    let login = "client: {id: doorward, secret: {file: client}}, scopes: [offline_access], prompt: consent";
    let settings = format!("issuer: '{}', algorithms: [RS256], login: {{{login}}}", provider.issuer);
    let replicas = Replicas::start(port, &settings).await;
    let host = format!("Host: {}", replicas.host);
    let answered = Answered::begin(&replicas.here, &replicas.host, &provider, "alice").await;
    let back = replicas.here.get(&answered.callback, &[&host, &answered.cookies]).await;
    let cookie = session(&back).unwrap_or_else(|| panic!("{}{}", back.head, back.text()));
    replicas.here.set_clock_ahead(301);
    assert_eq!(replicas.status(&cookie).await, 200, "the twin");
    assert_eq!(provider.refreshes().await, (1, 0));

    let idp_port = provider.port();
    let forgotten = async {
        provider.stop().await;
        let provider = OidcProvider::start_at(&origin, idp_port).await;
        replicas.here.set_clock_ahead(602);
        assert_eq!(replicas.status(&cookie).await, 401, "the provider was asked");
        assert_eq!(provider.refreshes().await, (0, 1));
    };
    replicas.end_in_time("the grant is gone", &cookie, forgotten).await;
}
