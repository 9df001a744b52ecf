//! A session whose facts have grown too old, met by many tabs of a real Chromium at once: the certified provider is asked
//! once, also where its refresh tokens may be used once only, and over replicas.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use crate::harness::{Doorward, OidcProvider, RedisServer, Upstream, browse_until};

/// The default of `sessions.recheck`, and a little more.
const TOO_OLD: u64 = 301;

/// What the browser reaches: each connection goes to the next replica.
struct Balancer {
    listener: TcpListener,
    origin: String,
}

impl Balancer {
    async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://localhost:{}", listener.local_addr().unwrap().port());
        Self { listener, origin }
    }

    fn serve(self, replicas: &[Doorward]) {
        let addresses: Vec<_> = replicas.iter().map(|replica| replica.address("public")).collect();
        tokio::spawn(async move {
            for address in addresses.iter().cycle() {
                let (mut client, _) = self.listener.accept().await.unwrap();
                let mut replica = TcpStream::connect(address).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut client, &mut replica).await });
            }
        });
    }
}

async fn replica(origin: &str, issuer: &str, upstream: &Upstream, store: &str) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("client"), "doorward-secret-of-the-tests").unwrap();
    std::fs::write(dir.path().join("key"), BASE64_STANDARD.encode([7; 32])).unwrap();
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    algorithms: [RS256]
    login: {{client: {{id: doorward, secret: {{file: client}}}}, scopes: [offline_access], prompt: consent}}
upstreams:
  - {{name: web, url: '{upstream}'}}
routes:
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
sessions: {{keys: [{{file: key}}]}}
store: {store}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    doorward.until_people_can_sign_in(origin.trim_start_matches("http://")).await;
    doorward
}

/// Loads five tabs at once, `rounds` times, each time after the session grew too old. Each round must cost one refresh.
async fn tabs_cost_one_refresh(rotate: bool, replicas: usize, store: &str) {
    let (balancer, upstream) = (Balancer::bind().await, Upstream::start().await);
    let origin = balancer.origin.clone();
    let provider = OidcProvider::start_with(&origin, &json!({"rotate": rotate})).await;
    let mut running = Vec::new();
    for _ in 0..replicas {
        running.push(replica(&origin, &provider.issuer, &upstream, store).await);
    }
    balancer.serve(&running);

    let rounds = 2;
    let options = json!({"scenario": "stale", "url": origin, "provider": provider.issuer, "rounds": rounds});
    let mut tabs = browse_until(&options, "grown old").await;
    assert_eq!(provider.refreshes().await, (0, 0));
    for round in 1..=rounds {
        running.iter().for_each(|replica| replica.set_clock_ahead(round * TOO_OLD));
        if round < rounds {
            tabs.go_on_until("grown old").await;
            assert_eq!(provider.refreshes().await, (round, 0), "round {round}");
        }
    }
    let saw = tabs.go_on().await;
    let pages: Vec<String> = (0..5).map(|tab| format!("200 /tab{tab}")).collect();
    assert_eq!(saw["rounds"], json!([pages, pages]));
    assert_eq!(provider.refreshes().await, (rounds, 0));
}

#[tokio::test]
async fn five_tabs_of_an_old_session_cost_one_refresh() {
    tabs_cost_one_refresh(false, 1, "{path: doorward.redb}").await;
}

#[tokio::test]
async fn five_tabs_on_two_replicas_use_a_refresh_token_that_rotates_once() {
    let redis = RedisServer::start(&[]);
    let store = format!("{{path: doorward.redb, redis: {{server: '{}'}}}}", redis.address());
    tabs_cost_one_refresh(true, 2, &store).await;
}
