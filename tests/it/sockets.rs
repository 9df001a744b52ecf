//! WebSockets of a real browser that are open when their session ends: at its own end, by a logout in another tab, and by a
//! logout at the provider that only the back channel tells of. Each is closed with a code and a word that a page can read.

use serde_json::{Value, json};

use crate::harness::{Doorward, OidcProvider, Reply, Upstream, browse, browse_until, free_port};

struct World {
    doorward: Doorward,
    provider: OidcProvider,
    origin: String,
    _upstream: Upstream,
}

async fn world() -> World {
    let port = free_port();
    let origin = format!("http://localhost:{port}");
    let backchannel = json!({"backchannelLogoutUri": format!("http://localhost:{port}/oauth2/backchannel_logout")});
    let provider = OidcProvider::start_with(&origin, &backchannel).await;
    let upstream = Upstream::scripted(|request| match request.has("upgrade") {
        true => Reply::WebSocket,
        false => Reply::json(200, "{}"),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("client"), "doorward-secret-of-the-tests").unwrap();
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:{port}'}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    algorithms: [RS256]
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
upstreams:
  - {{name: web, url: '{upstream}'}}
routes:
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
sessions: {{idle: 2h, absolute: 2h}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        issuer = provider.issuer,
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    doorward.until_people_can_sign_in(&format!("localhost:{port}")).await;
    World { doorward, provider, origin, _upstream: upstream }
}

fn closed(saw: &Value, why: &str) {
    assert_eq!(saw["heard"], "hello", "{saw}");
    assert_eq!(saw["ended"], json!({"code": 1008, "reason": why, "wasClean": true}), "{saw}");
    assert_eq!(saw["after"], "refused", "{saw}");
}

#[tokio::test]
async fn a_socket_of_a_browser_ends_with_its_session() {
    let world = world().await;
    let browser = browse_until(&json!({"scenario": "socket", "url": world.origin}), "open").await;
    world.doorward.set_clock_ahead(7300);
    closed(&browser.go_on().await, "expired");
}

#[tokio::test]
async fn a_socket_of_a_browser_ends_with_a_logout_in_another_tab() {
    let world = world().await;
    closed(&browse(&json!({"scenario": "socket", "url": world.origin, "by": "logout"})).await, "signed_out");
}

#[tokio::test]
async fn a_socket_of_a_browser_ends_with_a_logout_at_the_provider() {
    let world = world().await;
    let options =
        json!({"scenario": "socket", "url": world.origin, "by": "provider", "provider": world.provider.issuer});
    closed(&browse(&options).await, "signed_out");
}
