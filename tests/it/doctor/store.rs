//! The store, in a file and in Redis.

use serde_json::Value;

use super::{configuration, doctor, folder};
use crate::harness::{Doorward, RedisServer, free_port};

#[tokio::test]
async fn an_unusable_store_is_reported() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "good", &["does not exist yet"]);
    let file = dir.path().join("doorward.redb");
    std::fs::write(&file, "").unwrap();
    doctor(dir.path(), &["--only", "store"]).await.is("store", "good", &["does not exist yet"]);
    std::fs::write(&file, "no store").unwrap();
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "fault", &["move it away"]);
    // After a start, and after an end with and without a proper shutdown.
    std::fs::remove_file(&file).unwrap();
    let (yaml, port) = (std::fs::read_to_string(dir.path().join("doorward.yaml")).unwrap(), free_port());
    std::fs::write(dir.path().join("doorward.yaml"), yaml.replace(":7'", &format!(":{port}'"))).unwrap();
    for (signal, state, words) in [("KILL", "warning", "not closed properly"), ("TERM", "good", "it can be opened")] {
        let mut doorward = Doorward::start_at(dir.path()).await;
        doorward.signal(signal);
        doorward.ended().await;
        let before = std::fs::read(&file).unwrap();
        doctor(dir.path(), &["--only", "store"]).await.is("store", state, &[words]);
        assert!(std::fs::read(&file).unwrap() == before, "it writes nothing into it after {signal}");
    }
}

#[tokio::test]
async fn an_unreachable_redis_and_one_that_could_lose_data_are_reported() {
    let mut redis = RedisServer::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1");
    let store = format!("store: {{path: doorward.redb, redis: {{server: '{}'}}}}", redis.address());
    let dir = folder(&yaml.replace("store: {path: doorward.redb}", &store));
    std::fs::write(dir.path().join("key"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    let yaml = std::fs::read_to_string(dir.path().join("doorward.yaml")).unwrap();
    std::fs::write(dir.path().join("doorward.yaml"), yaml + "sessions: {keys: [{file: key}]}\n").unwrap();
    let said = doctor(dir.path(), &["--only", "store"]).await;
    let words: Vec<String> = said.findings.iter().map(Value::to_string).collect();
    assert!(words[0].contains("it answers"), "{words:?}");
    assert!(
        words[1..].iter().any(|words| words.contains("warning") && words.contains("maxmemory-policy")),
        "{words:?}"
    );
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    doctor(dir.path(), &["--only", "store"]).await.is("store", "fault", &["accepts no writes", "maxmemory"]);
    redis.kill();
    let said = doctor(dir.path(), &["--only", "store"]).await;
    said.is("store", "fault", &["store.redis"]);
    assert_eq!(said.code, Some(1));
}
