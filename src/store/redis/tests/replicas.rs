//! Writes that wait for a second server.

use super::*;

/// Waits until a delivery has reached a replica.
async fn reaches_a_replica(store: &Redis, key: &str) -> Result<(), StoreError> {
    store.replicated(vec![b"another".to_vec(), key.into()]).await
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

/// The replica of Doorward that gets a duplicate has not written the delivery itself.
#[tokio::test]
async fn writes_of_another_connection_are_awaited_too() {
    let server = RedisServer::start(&[]);
    let replica = replica_of(&server).await;
    let settings = json!({"server": server.address(), "durable": true});
    let [here, there] = [(); 2].map(|()| store(&settings));
    deliver(&here, "before").await;
    for store in [&here, &there] {
        store.durability().await.unwrap();
        eventually("the first", async || reaches_a_replica(store, "before").await.ok()).await;
    }
    let fresh = store(&settings);
    fresh.durability().await.unwrap();

    let asleep = Arc::clone(&replica);
    // It receives nothing, and still counts as online.
    let sleeps = tokio::spawn(async move { asleep.ask::<String>(&["DEBUG", "SLEEP", "9"]).await });
    // It reports what it has every second.
    eventually("its sleep", async || {
        let info: String = server.ask(&["INFO", "replication"]).await;
        let lag = info.split_once("lag=")?.1.split(|other: char| !other.is_ascii_digit()).next()?;
        (lag.parse::<u64>().ok()? >= 2).then_some(())
    })
    .await;
    deliver(&here, "held").await;
    for (who, store) in [("the other replica of ours", &there), ("a new connection", &fresh), ("who wrote it", &here)] {
        let error = reaches_a_replica(store, "held").await.unwrap_err();
        assert!(matches!(error, StoreError::Timeout), "{who}: {error}");
    }
    eventually("the replica", async || reaches_a_replica(&there, "held").await.ok()).await;
    sleeps.abort();
}

/// Sessions and everything else waited behind it, and lost the connection if several waited.
#[tokio::test]
async fn a_wait_for_a_replica_does_not_delay_other_commands() {
    let server = RedisServer::start(&[]);
    let replica = replica_of(&server).await;
    let store = store(&json!({"server": server.address(), "durable": true}));
    store.durability().await.unwrap();
    deliver(&store, "held").await;
    eventually("the replica", async || reaches_a_replica(&store, "held").await.ok()).await;
    let sleeps = tokio::spawn(async move { replica.ask::<String>(&["DEBUG", "SLEEP", "30"]).await });
    let is_waiting = async || server.ask::<String>(&["INFO", "clients"]).await.contains("blocked_clients:1");
    // Once more, in case the machine was too busy to answer before the wait was over.
    eventually("an answer meanwhile", async || {
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { reaches_a_replica(&store, "held").await }
        });
        eventually("the wait", async || (is_waiting().await || waiting.is_finished()).then_some(())).await;
        let found = store.get(Table::Deliveries, b"held", NOW).await.unwrap();
        (found.is_some() && is_waiting().await).then_some(())
    })
    .await;
    sleeps.abort();
}

/// Each waited for all earlier ones, so that the last of several simultaneous ones were refused with a slow replica.
#[tokio::test]
async fn simultaneous_waits_for_a_replica_are_shared_and_report_their_own_records() {
    let server = RedisServer::start(&[]);
    let _replica = replica_of(&server).await;
    let store = store(&json!({"server": server.address(), "durable": true}));
    store.durability().await.unwrap();
    deliver(&store, "held").await;
    eventually("the replica", async || reaches_a_replica(&store, "held").await.ok()).await;
    let waits = async || -> u32 {
        let stats: String = server.ask(&["INFO", "commandstats"]).await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls=")?.split(',').next());
        calls.unwrap().parse().unwrap()
    };
    let before = waits().await;
    // Each sends its request before this thread waits.
    let all = ["held", "lost", "held", "held"].map(|key| reaches_a_replica(&store, key));
    let told = futures_util::future::join_all(all).await;
    assert_eq!(waits().await, before + 1);
    let [first, lost, third, fourth] = <[_; 4]>::try_from(told).unwrap();
    assert!([first, third, fourth].iter().all(Result::is_ok));
    assert!(lost.unwrap_err().to_string().contains("not there any more"));
}

/// This concerns the server with the held deliveries: the others have nothing to wait for, and may sync as they like.
#[tokio::test]
async fn a_held_delivery_in_a_cluster_is_synced_by_its_server_and_has_reached_a_replica() {
    let options = [
        "--cluster-enabled",
        "yes",
        "--cluster-config-file",
        "nodes.conf",
        "--cluster-port",
        "{bus}",
        "--appendonly",
        "yes",
    ];
    let [holder, other, mut replica] = [(); 3].map(|()| RedisServer::start(&options));
    let slot: u16 = holder.ask(&["CLUSTER", "KEYSLOT", "{deliveries}"]).await;
    for (server, first, last) in [(&holder, 0, slot), (&other, slot + 1, slot + 1), (&holder, slot + 2, 16_383)] {
        let _: String = server.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
    }
    let id: String = holder.ask(&["CLUSTER", "MYID"]).await;
    for node in [&other, &replica] {
        let bus: String = node.ask(&["CLUSTER", "NODES"]).await;
        let bus = bus.split(['@', ' ', ',']).nth(2).unwrap().to_owned();
        let _: String = holder.ask(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string(), &bus]).await;
    }
    eventually("the cluster", async || {
        let nodes: String = replica.ask(&["CLUSTER", "NODES"]).await;
        (nodes.contains(&id) && nodes.lines().count() == 3).then_some(())
    })
    .await;
    let _: String = replica.ask(&["CLUSTER", "REPLICATE", &id]).await;
    eventually("the replica", async || {
        let (info, state): (String, String) =
            (holder.ask(&["INFO", "replication"]).await, other.ask(&["CLUSTER", "INFO"]).await);
        (info.contains("state=online") && state.contains("cluster_state:ok")).then_some(())
    })
    .await;
    let asked = store(&json!({"cluster": [other.address()]}));
    for (at_holder, at_other) in [("everysec", "always"), ("always", "everysec")] {
        for (server, sync) in [(&holder, at_holder), (&other, at_other)] {
            let _: String = server.ask(&["CONFIG", "SET", "appendfsync", sync]).await;
        }
        // Repeated, because querying any node gives the right answer sometimes.
        for _ in 0..20 {
            let durability = asked.durability().await.unwrap();
            assert_eq!(durability == Durability::Synced, at_holder == "always", "{durability:?}");
        }
    }
    let store = store(&json!({"cluster": [other.address()], "durable": true}));
    let hold = async || {
        deliver(&store, "key").await;
        store.replicated(vec![b"key".to_vec()]).await
    };
    store.durability().await.unwrap();
    hold().await.unwrap();
    replica.kill();
    eventually("the loss", async || {
        hold().await.err().map(|error| assert!(matches!(error, StoreError::Timeout), "{error}"))
    })
    .await;
}

/// A server that took over before it had a record confirms everything that it has itself.
#[tokio::test]
async fn a_record_that_a_failover_lost_is_not_reported_as_safe() {
    let server = RedisServer::start(&[]);
    let _replica = replica_of(&server).await;
    let store = store(&json!({"server": server.address(), "durable": true}));
    store.durability().await.unwrap();
    deliver(&store, "held").await;
    eventually("the replica", async || reaches_a_replica(&store, "held").await.ok()).await;
    let _: u32 = server.ask(&["DEL", "doorward:{deliveries}:records"]).await;
    let error = reaches_a_replica(&store, "held").await.unwrap_err().to_string();
    assert!(error.contains("not there any more"), "{error}");
}

/// Nothing reaches a replica in its first sync, and deliveries would be refused for as long as that takes.
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
