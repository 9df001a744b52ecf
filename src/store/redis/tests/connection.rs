//! Connections: when another is made, and what is sent again over it.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A proxy to a server, which can switch to another server for new connections, or lose a response.
struct Forwarder {
    address: String,
    target: Arc<Mutex<String>>,
    loses: Arc<AtomicBool>,
}

impl Forwarder {
    async fn to(server: &RedisServer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let forwarder = Self {
            address: listener.local_addr().unwrap().to_string(),
            target: Arc::new(Mutex::new(server.address())),
            loses: Arc::default(),
        };
        let (target, loses) = (Arc::clone(&forwarder.target), Arc::clone(&forwarder.loses));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, loses) = (target.lock().unwrap().clone(), Arc::clone(&loses));
                tokio::spawn(async move {
                    let server = TcpStream::connect(target).await.unwrap();
                    forward(client, server, &loses).await;
                });
            }
        });
        forwarder
    }

    fn lead_to(&self, server: &RedisServer) {
        *self.target.lock().unwrap() = server.address();
    }

    /// Loses the next response, and its connection with it.
    fn lose_an_answer(&self) {
        self.loses.store(true, SeqCst);
    }
}

async fn forward(client: TcpStream, server: TcpStream, loses: &AtomicBool) {
    let ((mut asks, mut client), (mut answers, mut server)) = (client.into_split(), server.into_split());
    let back = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = answers.read(&mut buffer).await {
            if loses.swap(false, SeqCst) || client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = back => {}
        _ = tokio::io::copy(&mut asks, &mut server) => {}
    }
}

/// Returns how many connections a server has accepted, including the one of this query.
async fn connections(server: &RedisServer) -> u64 {
    let stats: String = server.ask(&["INFO", "stats"]).await;
    let taken = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    taken.unwrap().trim().parse().unwrap()
}

/// A retry would find the record of the first try: a delivery that nobody has would count as repeated.
#[tokio::test]
async fn a_write_with_a_condition_whose_answer_is_lost_is_not_sent_again() {
    let server = RedisServer::start(&[]);
    let forwarder = Forwarder::to(&server).await;
    let store = store(&json!({"server": forwarder.address}));
    // From now on the server knows the script.
    deliver(&store, "before").await;
    let end = NOW + Duration::from_secs(60);
    for (expect, is_repeated) in [(Expect::Absent, false), (Expect::Any, true)] {
        let key = format!("{expect:?}");
        forwarder.lose_an_answer();
        let written = store.put(Table::Deliveries, key.as_bytes(), b"v".to_vec(), end, expect, NOW).await;
        match is_repeated {
            true => assert!(matches!(written, Ok(Written::Done(_))), "{written:?}"),
            false => assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}"),
        }
        assert!(store.get(Table::Deliveries, key.as_bytes(), NOW).await.unwrap().is_some(), "the server has done it");
    }
}

/// After a failover in which the old master continues as a replica, all writes would fail until a restart.
#[tokio::test]
async fn a_master_that_became_a_replica_is_left_for_the_one_behind_the_same_name() {
    let (old, new) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let forwarder = Forwarder::to(&old).await;
    let store = store(&json!({"server": forwarder.address}));
    deliver(&store, "before").await;
    let _: String = old.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    forwarder.lead_to(&new);
    deliver(&store, "after").await;
    let records: u64 = new.ask(&["HLEN", "doorward:{deliveries}:records"]).await;
    assert_eq!(records, 1);
}

/// One replica would continue to use the old server, so that sessions and revocations were in two places.
#[tokio::test]
async fn another_server_or_database_is_used_without_a_restart() {
    let (first, second) = (RedisServer::start(&[]), RedisServer::start(&[]));
    let settings = json!({"server": first.address()});
    let store = store(&settings);
    let configure = |settings: &Json| store.set(resolve(settings, std::path::Path::new("")).0.unwrap());
    deliver(&store, "a").await;
    let before = connections(&first).await;
    configure(&settings);
    deliver(&store, "b").await;
    let after = connections(&first).await;
    assert_eq!(after, before + 1, "twin: the same settings keep the connection, and this test made one to ask");

    configure(&json!({"server": second.address()}));
    deliver(&store, "c").await;
    let records: u64 = second.ask(&["HLEN", "doorward:{deliveries}:records"]).await;
    assert_eq!(records, 1);
    configure(&json!({"server": second.address(), "database": 3}));
    deliver(&store, "d").await;
    let keyspace: String = second.ask(&["INFO", "keyspace"]).await;
    assert!(keyspace.contains("db3:"), "{keyspace}");
}

/// Each caller would connect separately to a server that is down or has just come back.
#[tokio::test]
async fn simultaneous_callers_share_one_attempt_to_connect() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let closing = store(&json!({"server": listener.local_addr().unwrap().to_string()}));
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, SeqCst);
        }
    });
    let all = join_all((0..50).map(|_| closing.ping())).await;
    assert!(all.iter().all(Result::is_err));
    // A few more if the machine is so busy that the pause ends before all of them have called.
    assert!(accepted.load(SeqCst) < 10, "{}", accepted.load(SeqCst));

    let server = RedisServer::start(&[]);
    let fresh = store(&json!({"server": server.address()}));
    let before = connections(&server).await;
    assert!(join_all((0..50).map(|_| fresh.ping())).await.iter().all(Result::is_ok));
    // One of the store and one of this test to ask; a few more if an attempt takes too long on a busy machine.
    assert!(connections(&server).await <= before + 5, "each caller has connected by itself");
}
