//! WebSockets of a real browser that are open when their session ends: at its expiry, by a logout in another tab, and
//! by a back-channel logout of the provider. Each is closed with a code and a reason that the page can read.

use serde_json::{Value, json};

use crate::{
    harness::{OidcProvider, Reply, Upstream, browse, browse_until},
    login_fixture::{LoginFixture, STORE},
};

async fn world() -> (LoginFixture, OidcProvider) {
    let upstream = Upstream::scripted(|request| match request.has("upgrade") {
        true => Reply::WebSocket,
        false => Reply::json(200, "{}"),
    })
    .await;
    let further = json!({"backchannelLogoutUri": "{origin}/oauth2/backchannel_logout"});
    let sessions = format!("sessions: {{idle: 2h, absolute: 2h}}\n{STORE}");
    LoginFixture::certified_with(&further, upstream, tempfile::tempdir().unwrap(), &[(STORE, &sessions)]).await
}

fn closed(saw: &Value, why: &str) {
    assert_eq!(saw["heard"], "hello", "{saw}");
    assert_eq!(saw["ended"], json!({"code": 1008, "reason": why, "wasClean": true}), "{saw}");
    assert_eq!(saw["after"], "refused", "{saw}");
}

#[tokio::test]
async fn a_socket_of_a_browser_ends_with_its_session() {
    let (world, _provider) = world().await;
    let browser = browse_until(&json!({"scenario": "socket", "url": world.origin()}), "open").await;
    world.doorward.set_clock_ahead(7300);
    closed(&browser.go_on().await, "expired");
}

#[tokio::test]
async fn a_socket_of_a_browser_ends_with_a_logout_in_another_tab() {
    let (world, _provider) = world().await;
    closed(&browse(&json!({"scenario": "socket", "url": world.origin(), "by": "logout"})).await, "signed_out");
}

#[tokio::test]
async fn a_socket_of_a_browser_ends_with_a_logout_at_the_provider() {
    let (world, provider) = world().await;
    let options = json!({"scenario": "socket", "url": world.origin(), "by": "provider", "provider": provider.issuer});
    closed(&browse(&options).await, "signed_out");
}
