//! A session that is due for its recheck, used by many tabs of a real Chromium at once: the certified provider is asked
//! once, even if its refresh tokens can be used only once, and across replicas.

use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use crate::{
    harness::{Doorward, OidcProvider, RedisServer, Upstream, browse_until},
    login_fixture::{LoginFixture, STORE, on_redis},
};

/// A little more than the default of `sessions.recheck`.
const TOO_OLD: u64 = 301;

/// The balancer that the browser connects to: each connection goes to the next replica.
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

async fn replica(issuer: &str, store: &str) -> Doorward {
    let changes = [(STORE, store), ("label: Example Corp", "scopes: [offline_access], prompt: consent")];
    let (upstream, dir) = (Upstream::start().await, tempfile::tempdir().unwrap());
    LoginFixture::at(issuer, 0, upstream, dir, &changes).await.doorward
}

/// Loads five tabs at once, `rounds` times, each time after the session is due. Each round must cost one refresh.
async fn tabs_cost_one_refresh(rotate: bool, replicas: usize, store: &str) {
    let balancer = Balancer::bind().await;
    let origin = balancer.origin.clone();
    let provider = OidcProvider::start_with(&origin, &json!({"rotate": rotate})).await;
    let mut running = Vec::new();
    for _ in 0..replicas {
        running.push(replica(&provider.issuer, store).await);
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
async fn five_tabs_of_an_old_session_cause_one_refresh() {
    tabs_cost_one_refresh(false, 1, STORE).await;
}

#[tokio::test]
async fn five_tabs_on_two_replicas_use_a_refresh_token_that_rotates_once() {
    let redis = RedisServer::start(&[]);
    let store = on_redis(&format!("server: '{}'", redis.address()));
    tabs_cost_one_refresh(true, 2, &store).await;
}
