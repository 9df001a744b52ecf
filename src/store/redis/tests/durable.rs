//! What a server reports about the durability of writes.

use super::*;

#[test]
fn a_server_that_would_lose_records_is_warned_of() {
    for (info, count) in [
        ("maxmemory_policy:noeviction\r\naof_enabled:1\r\n", 0),
        // Only keys with an expiry are evicted, and ours have none.
        ("maxmemory_policy:volatile-lru\r\naof_enabled:1\r\n", 0),
        ("maxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n", 1),
        ("maxmemory_policy:allkeys-lru\r\naof_enabled:0\r\n", 2),
        ("used_memory:89\r\nused_memory_human:89B\r\nmaxmemory:1000\r\n", 0),
        ("used_memory:890\r\nmaxmemory:1000\r\n", 0),
        ("used_memory:910\r\nmaxmemory:1000\r\n", 1),
        ("used_memory:910\r\nmaxmemory:0\r\n", 0),
        // In a cluster each node reports.
        ("used_memory:910\r\nmaxmemory:0\r\nused_memory:1\r\nmaxmemory:1000\r\n", 0),
        ("", 0),
    ] {
        assert_eq!(warnings(info).len(), count, "{info}");
    }
}

#[test]
fn a_server_that_does_not_sync_each_write_is_lossy() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for (text, good) in [
        ("appendonly yes appendfsync always no-appendfsync-on-rewrite no", true),
        ("appendfilename a appendonly yes appendfsync always no-appendfsync-on-rewrite no", true),
        ("appendonly yes appendfsync everysec no-appendfsync-on-rewrite no", false),
        ("appendonly no appendfsync always no-appendfsync-on-rewrite no", false),
        ("appendonly yes appendfsync always no-appendfsync-on-rewrite yes", false),
        ("appendonly yes appendfsync always", false),
        ("", false),
    ] {
        assert_eq!(durability(&words(text)) == Durability::Synced, good, "{text}");
    }
}

/// Each delivery that was to be held got 503 there.
#[tokio::test]
async fn a_service_without_the_command_to_wait_holds_deliveries_as_long_as_it_has_no_replica() {
    let server = RedisServer::start(&["--rename-command", "WAIT", ""]);
    let store = store(&json!({"server": server.address(), "durable": true}));
    assert_eq!(store.durability().await.unwrap(), Durability::Synced);
    store.replicated(vec![b"key".to_vec()]).await.expect("there is none to wait for");
}

#[tokio::test]
async fn the_durability_of_a_server_and_its_replicas_is_detected() {
    let server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let asked = store(&json!({"server": server.address()}));
    assert!(matches!(asked.durability().await.unwrap(), Durability::Lossy(why) if why.contains("appendfsync always")));
    let _: String = server.ask(&["CONFIG", "SET", "appendfsync", "always"]).await;
    assert_eq!(asked.durability().await.unwrap(), Durability::Synced);
    asked.replicated(vec![b"key".to_vec()]).await.expect("there is none to wait for");

    let _: String = server.ask(&["ACL", "SETUSER", "default", "-config"]).await;
    assert!(matches!(asked.durability().await.unwrap(), Durability::Lossy(why) if why.contains("store.redis.durable")));
    let told = store(&json!({"server": server.address(), "durable": true}));
    assert_eq!(told.durability().await.unwrap(), Durability::Synced);
    // This was an error, and no replica became ready.
    let _: String = server.ask(&["ACL", "SETUSER", "default", "-info"]).await;
    for user in [&asked, &told] {
        assert!(matches!(user.durability().await.unwrap(), Durability::Lossy(why) if why.contains("`+info`")));
    }
    let _: String = server.ask(&["ACL", "SETUSER", "default", "+info", "-wait"]).await;
    // Deliveries got 503 from the day on which somebody gave the server a replica.
    for user in [&asked, &told] {
        assert!(matches!(user.durability().await.unwrap(), Durability::Lossy(why) if why.contains("`+wait`")));
    }
    let _: String = server.ask(&["ACL", "SETUSER", "default", "+wait"]).await;

    let port = server.port().to_string();
    let mut replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {port}")]);
    eventually("the replica", async || {
        // The server considers it a replica a moment after the replica itself does.
        let info: String = server.ask(&["INFO", "replication"]).await;
        info.contains("state=online").then_some(())
    })
    .await;
    told.durability().await.unwrap();
    deliver(&told, "key").await;
    told.replicated(vec![b"key".to_vec()]).await.unwrap();
    replica.kill();
    // Either may be noticed first: that it does not answer, or that it is gone.
    eventually("the loss", async || {
        deliver(&told, "key").await;
        let reached = told.replicated(vec![b"key".to_vec()]).await;
        reached.err().map(|error| assert!(matches!(error, StoreError::Timeout), "{error}"))
    })
    .await;
}
