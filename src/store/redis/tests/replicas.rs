//! Writes that wait for a second server.

use super::*;

/// Who waits, and for which record.
async fn reaches_a_replica(store: &Redis, key: &str) -> Result<(), StoreError> {
    store.replicated(Table::Revocations, vec![b"another".to_vec(), key.into()]).await
}

async fn replica_of(server: &RedisServer) -> Arc<RedisServer> {
    let port = server.port().to_string();
    let replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {port}"), "--enable-debug-command", "yes"]);
    eventually("the replica", async || {
        let info: String = server.ask(&["INFO", "replication"]).await;
        info.contains("state=online").then_some(())
    })
    .await;
    Arc::new(replica)
}

/// The replica that hears of a twin has not written the delivery itself.
#[tokio::test]
async fn what_another_connection_wrote_is_waited_for_as_well() {
    let server = RedisServer::start(&[]);
    let replica = replica_of(&server).await;
    let settings = json!({"server": server.address(), "durable": true});
    let [here, there] = [(); 2].map(|()| store(&settings));
    let end = NOW + Duration::from_secs(60);
    put(&here, "before", end).await.unwrap();
    for store in [&here, &there] {
        store.durability().await.unwrap();
        eventually("the first", async || reaches_a_replica(store, "before").await.ok()).await;
    }
    let fresh = store(&settings);
    fresh.durability().await.unwrap();

    let asleep = Arc::clone(&replica);
    // It hears nothing, and is still known as one that follows.
    let sleeps = tokio::spawn(async move { asleep.ask::<String>(&["DEBUG", "SLEEP", "6"]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    put(&here, "held", end).await.unwrap();
    for (who, store) in [("the other replica of ours", &there), ("a new connection", &fresh), ("who wrote it", &here)] {
        let error = reaches_a_replica(store, "held").await.unwrap_err();
        assert!(matches!(error, StoreError::Timeout), "{who}: {error}");
    }
    eventually("the replica", async || reaches_a_replica(&there, "held").await.ok()).await;
    sleeps.abort();
}

/// Sessions and all else waited behind it, and lost the connection where several waited.
#[tokio::test]
async fn who_waits_for_a_replica_holds_up_nobody_else() {
    let server = RedisServer::start(&[]);
    let replica = replica_of(&server).await;
    let store = store(&json!({"server": server.address(), "durable": true}));
    store.durability().await.unwrap();
    put(&store, "held", NOW + Duration::from_secs(60)).await.unwrap();
    eventually("the replica", async || reaches_a_replica(&store, "held").await.ok()).await;
    let sleeps = tokio::spawn(async move { replica.ask::<String>(&["DEBUG", "SLEEP", "30"]).await });
    let is_waiting = async || server.ask::<String>(&["INFO", "clients"]).await.contains("blocked_clients:1");
    // Once more where the machine was too busy to answer before the wait was over.
    eventually("an answer meanwhile", async || {
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { reaches_a_replica(&store, "held").await }
        });
        eventually("the wait", async || (is_waiting().await || waiting.is_finished()).then_some(())).await;
        let found = store.get(Table::Revocations, b"held", NOW).await.unwrap();
        (found.is_some() && is_waiting().await).then_some(())
    })
    .await;
    sleeps.abort();
}

/// A server that took over before it had a record answers for all that it has itself.
#[tokio::test]
async fn what_a_failover_has_lost_is_not_safe() {
    let server = RedisServer::start(&[]);
    let _replica = replica_of(&server).await;
    let store = store(&json!({"server": server.address(), "durable": true}));
    store.durability().await.unwrap();
    put(&store, "held", NOW + Duration::from_secs(60)).await.unwrap();
    eventually("the replica", async || reaches_a_replica(&store, "held").await.ok()).await;
    let _: u32 = server.ask(&["DEL", "doorward:{revocations}:records"]).await;
    let error = reaches_a_replica(&store, "held").await.unwrap_err().to_string();
    assert!(error.contains("not there any more"), "{error}");
}

/// Nothing reaches one that is in its first sync, and deliveries would be refused for as long as that takes.
#[test]
fn only_a_replica_that_follows_is_waited_for() {
    let line = |state: &str| format!("ip=10.0.0.7,port=6379,state={state},offset=14,lag=0");
    for (info, expected) in [
        ("role:master\r\nconnected_slaves:0\r\n".to_owned(), false),
        (format!("connected_slaves:1\r\nslave0:{}\r\n", line("online")), true),
        (format!("connected_slaves:1\r\nslave0:{}\r\n", line("wait_bgsave")), false),
        (format!("connected_slaves:1\r\nslave0:{}\r\n", line("send_bulk")), false),
        (format!("connected_slaves:2\r\nslave0:{}\r\nslave1:{}\r\n", line("send_bulk"), line("online")), true),
        ("role:slave\r\nslave_read_only:1\r\nslave_x:state=online\r\n".to_owned(), false),
        (String::new(), false),
    ] {
        assert_eq!(has_replica(&info), expected, "{info}");
    }
}
