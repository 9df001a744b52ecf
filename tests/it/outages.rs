//! A provider and a store that stop and come back while people work in a real Chromium: open work continues, and what
//! cannot continue says so.

use serde_json::{Value, json};

use crate::{
    harness::{OidcProvider, RedisServer, browse_until, free_port, until},
    login_fixture::{LoginFixture, STORE, on_redis},
    pages::screenshots,
};

#[tokio::test]
async fn a_provider_outage_ends_no_session_and_logins_report_it_until_it_is_back() {
    // Not a port that the system could give to somebody else while the provider is away.
    let (world, provider) = LoginFixture::certified(&json!({"port": free_port()}), &[]).await;
    let origin = world.origin();
    let LoginFixture { mut doorward, upstream: _upstream, .. } = world;
    let options = json!({"scenario": "provider_outage", "url": origin, "screenshots": screenshots()});
    let mut browser = browse_until(&options, "answered").await;
    let port = provider.port();
    provider.stop().await;
    // The session data is too old now, and the provider cannot be asked.
    doorward.set_clock_ahead(301);
    browser.go_on_until("goes on").await;
    doorward.set_clock_ahead(0);
    browser.go_on_until("told").await;
    let _provider = OidcProvider::start_at(&origin, port).await;
    let saw = browser.go_on().await;
    assert_eq!(saw["during"], json!([200, 200, 200]), "{saw}");
    let told = saw["told"].as_str().unwrap();
    assert!(told.contains("The provider cannot be reached") && told.contains("Sign in again"), "{told}");
    assert_eq!(saw["landed"], format!("{origin}/builds?of=1#/place"), "{saw}");
    let before = &saw["before"];
    assert_eq!(before["at"], origin, "the browser is not sent to nobody: {saw}");
    let told = before["told"].as_str().unwrap();
    assert!(told.contains("Example Corp") && told.contains("does not answer"), "{told}");
    assert_eq!(before["landed"], format!("{origin}/builds?of=2#/place"), "{saw}");
    assert_eq!((&saw["after"], &saw["faults"]), (&json!(200), &json!([])), "{saw}");
    // The cause.
    doorward.wait_for_log_containing("a code gave no tokens").await;
}

#[tokio::test]
async fn a_store_that_stops_removes_no_cookie_and_everything_works_once_it_is_back() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = on_redis(&format!("server: '{}'", redis.address()));
    let (world, _provider) = LoginFixture::certified(&json!({}), &[(STORE, &store)]).await;
    let origin = world.origin();
    let options = json!({"scenario": "store_outage", "url": origin, "screenshots": screenshots()});
    let mut browser = browse_until(&options, "signed in").await;
    redis.kill();
    browser.go_on_until("away").await;
    redis.restart();
    let saw = browser.go_on().await;
    let (page, here) = (&saw["away"], format!("{origin}/runs?of=1#/place"));
    assert_eq!((&page["status"], &page["kept"], &page["at"]), (&json!(503), &json!(true), &json!(here)), "{saw}");
    assert!(page["retryAfter"].as_str().unwrap().parse::<u32>().is_ok(), "{saw}");
    let told = page["told"].as_str().unwrap();
    assert!(told.contains("Not possible right now") && told.contains("you stay signed in"), "{told}");
    let program = &saw["program"];
    assert_eq!((&program["status"], &program["reason"]), (&json!(503), &json!("store_unavailable")), "{saw}");
    assert!(program["retryAfter"].is_string(), "{saw}");
    let login = saw["login"].as_str().unwrap();
    assert!(login.contains("Signing in is not possible right now") && login.contains("Sign in again"), "{login}");
    assert_eq!((&saw["back"], &saw["kept"], &saw["at"]), (&json!(200), &json!(true), &json!(here)), "{saw}");
    assert_eq!(saw["landed"], format!("{origin}/builds"), "{saw}");
    assert_eq!(saw["faults"], json!([]));
}

#[tokio::test]
async fn a_failover_of_the_store_signs_nobody_out() {
    let mut master = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let standby = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {}", master.port())]);
    let sentinel = RedisServer::sentinel(master.port());
    let server = format!("sentinel: {{servers: ['{}'], master: doorward}}", sentinel.address());
    let (world, _provider) = LoginFixture::certified(&json!({}), &[(STORE, &on_redis(&server))]).await;
    let origin = world.origin();
    let browser = browse_until(&json!({"scenario": "failover", "url": origin}), "signed in").await;
    until(async || standby.ask::<i64>(&["HLEN", "doorward:{sessions}:records"]).await == 1).await;
    // A sentinel does not replace the master before it knows the standby.
    let standbys = ["SENTINEL", "REPLICAS", "doorward"];
    until(async || !sentinel.ask::<Vec<redis::Value>>(&standbys).await.is_empty()).await;
    master.kill();
    let (named, next) = (["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "doorward"], standby.port().to_string());
    until(async || sentinel.ask::<Vec<String>>(&named).await.last() == Some(&next)).await;
    let saw = browser.go_on().await;
    let seen: Vec<u64> = saw["seen"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    assert!(seen.iter().all(|status| [200, 503].contains(status)), "{saw}");
    assert_eq!(saw["back"], json!({"status": 200, "at": format!("{origin}/runs?of=1#/place"), "kept": true}), "{saw}");
    assert_eq!(saw["out"], 401, "{saw}");
}
