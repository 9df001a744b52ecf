//! A server that has used all of its memory.

use super::*;

#[tokio::test]
async fn a_full_server_is_reported_by_the_health_check() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    store.ping().await.unwrap();
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = store.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(store.warnings().await.unwrap().iter().any(|warning| warning.contains("maxmemory")));
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    store.ping().await.unwrap();
    assert_eq!(server.ask::<Vec<String>>(&["KEYS", "*"]).await, Vec::<String>::new(), "it leaves nothing there");
}

#[tokio::test]
async fn a_full_server_is_reported_as_full() {
    let server = RedisServer::start(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]);
    let store = store(&json!({"server": server.address()}));
    let end = NOW + Duration::from_secs(60);
    let error = store.put(Table::Sessions, b"big", vec![0; 2 << 20], end, Expect::Any, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
}

async fn set_memory(server: &RedisServer, most: &str) {
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", most]).await;
}

/// Delivering takes memory for events and causes before it frees any. Without memory nothing was delivered any more,
/// and so nothing was removed.
#[tokio::test]
async fn nothing_more_is_held_once_nine_tenths_of_the_memory_are_used() {
    let server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = store(&json!({"server": server.address()}));
    for (most, is_in_doubt) in [("0", false), ("1gb", false), ("1", true), ("0", false)] {
        set_memory(&server, most).await;
        let doubt = store.doubt().await.unwrap();
        assert_eq!(doubt.map(|why| why.contains("`maxmemory`")), is_in_doubt.then_some(true), "{most}");
    }
    let _: String = server.ask(&["CONFIG", "SET", "appendfsync", "everysec"]).await;
    let doubt = store.doubt().await.unwrap();
    assert!(doubt.is_some_and(|why| why.contains("`appendfsync always`")), "{doubt:?}");
}

/// Removals were refused like new records, so that deliveries were delivered again after a restart, and nobody could
/// drop any.
#[tokio::test]
async fn existing_records_can_be_removed_from_a_full_server() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let put = |table, end| Put { table, key: b"key".into(), value: b"value".into(), expires: end, expect: Expect::Any };
    let tables = [Table::Held, Table::HeldRequests, Table::HeldLeases];
    let all = |end| tables.map(|table| put(table, end)).to_vec();
    let end = NOW + Duration::from_secs(60);
    store.put_all(all(end), NOW).await.unwrap();
    set_memory(&server, "1").await;
    let gone = Timestamp::default();
    for new in [all(end), vec![put(Table::Held, gone), put(Table::HeldRequests, end)]] {
        let error = store.put_all(new, NOW).await.unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
    }
    assert!(store.get(Table::Held, b"key", NOW).await.unwrap().is_some(), "nothing of it was done");
    assert!(matches!(store.put_all(all(gone), NOW).await.unwrap(), WrittenAll::Done(_)));
    for table in ["held", "held_requests", "held_leases"] {
        for (command, what) in [("HLEN", "records"), ("ZCARD", "versions"), ("ZCARD", "ends")] {
            let left: i64 = server.ask(&[command, &format!("doorward:{{deliveries}}:{table}:{what}")]).await;
            assert_eq!(left, 0, "{table} {what}");
        }
    }
}

/// Nothing else would free memory in a server whose records expire without being removed.
#[tokio::test]
async fn writes_refused_by_a_full_server_sweep_its_expired_records() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let write = async |key: &str, now: Timestamp| {
        store.put(Table::Sessions, key.as_bytes(), Vec::new(), now + Duration::from_secs(1), Expect::Any, now).await
    };
    for number in 0..20 {
        write(&format!("ended {number}"), NOW).await.unwrap();
    }
    set_memory(&server, "1").await;
    let later = NOW + Duration::from_secs(2);
    for left in [4, 0, 0] {
        let error = write("new", later).await.unwrap_err();
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        for (command, what) in [("HLEN", "records"), ("ZCARD", "versions"), ("ZCARD", "ends")] {
            let found: i64 = server.ask(&[command, &format!("doorward:{{sessions}}:{what}")]).await;
            assert_eq!(found, left, "{what}");
        }
    }
    set_memory(&server, "0").await;
    write("new", later).await.unwrap();
}
