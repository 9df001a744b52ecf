//! Deliveries held in Redis are sealed, and wait for their key if it is missing.

use std::{fs, net::SocketAddr};

use super::hold::{deliver_to, hooks, on_redis};
use crate::{
    fixture::Change,
    harness::{Doorward, Push, RedisServer, Reply, Upstream, free_port, unique, until},
};

#[tokio::test]
async fn a_delivery_in_redis_is_sealed_and_waits_until_its_key_is_back() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (dir, yaml) = on_redis(&redis, address);
    fs::copy(dir.path().join("key"), dir.path().join("old")).unwrap();
    let mut before = Doorward::start_in(dir, &yaml).await;
    before.until_ready().await;
    assert_eq!(deliver_to(&before, &unique(), &Push::body()).await.status, 202);
    for table in ["held", "held_requests"] {
        let records = format!("doorward:{{deliveries}}:{table}:records");
        let there: Vec<Vec<u8>> = redis.ask(&["HVALS", &records]).await;
        assert_eq!(there.len(), 1);
        assert!(!String::from_utf8_lossy(&there[0]).contains("acme/app"), "{table}");
    }

    fs::write(before.dir().join("key"), "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg=").unwrap();
    before.signal("TERM");
    before.ended().await;
    let mut doorward = before.start_again().await;
    doorward.until_metrics_say("doorward_webhook_held_unreadable 1\n").await;
    let listed = hooks(&doorward, &["list"]).await.unwrap();
    assert_eq!((&listed["total"], listed["unreadable"].as_array().unwrap().len()), (&0.into(), 1), "{listed}");
    let id = listed["unreadable"][0]["id"].as_str().unwrap();
    assert!(listed["unreadable"][0]["why"].as_str().unwrap().contains("`sessions.keys`"), "{listed}");
    let shown = hooks(&doorward, &["show", id]).await.unwrap_err();
    assert!(shown.contains("`sessions.keys`") && shown.contains("hooks drop"), "{shown}");

    let upstream = Upstream::scripted_at(address, |_| Reply::json(202, "{}")).await;
    let file = doorward.dir().join("doorward.yaml");
    let yaml = fs::read_to_string(&file).unwrap();
    fs::write(&file, yaml.change("sessions: {keys: [{file: key}]}", "sessions: {keys: [{file: key}, {file: old}]}"))
        .unwrap();
    doorward.wait_for_generation(2).await;
    until(async || upstream.requests().len() == 1).await;
    doorward.until_metrics_say("doorward_webhook_held_unreadable 0\n").await;
    doorward.until_metrics_say("doorward_webhook_delivered_total{webhook=\"github\"} 1\n").await;
}
