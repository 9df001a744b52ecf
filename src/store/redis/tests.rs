use std::{sync::Arc, time::Duration};

use serde_json::{Value as Json, json};

mod connection;
mod durable;
mod forms;
mod full;
mod replicas;

use super::{server::RedisServer, *};
use crate::{
    authn::CredentialId,
    clock::Clock,
    config::{raw, report::At, resolver::Resolver},
    logging::logged,
    store::{Revocations, Target, Written, suite},
};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn resolve(settings: &Json, folder: &std::path::Path) -> (Option<Settings>, Vec<(String, String)>) {
    let raw: raw::Redis = serde_json::from_value(settings.clone()).unwrap();
    let mut resolver = Resolver::new(folder);
    let settings = Settings::resolve(&raw, &mut resolver, &At::root());
    let problems =
        resolver.report.problems().iter().map(|p| (p.at.as_str().to_owned(), p.message.clone())).collect::<Vec<_>>();
    assert_eq!(settings.is_none(), resolver.report.has_errors());
    (settings, problems)
}

fn store(settings: &Json) -> Redis {
    store_in(settings, std::path::Path::new(""))
}

fn store_in(settings: &Json, folder: &std::path::Path) -> Redis {
    let (settings, problems) = resolve(settings, folder);
    Redis::new(settings.unwrap_or_else(|| panic!("{problems:?}")), Handle::current())
}

/// Waits until `found` returns something. The timeout is long, as others use the machine too.
async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = found().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{what} never came"))
}

async fn put(store: &Redis, key: &str, expires: Timestamp) -> Result<Written, StoreError> {
    store.put(Table::Revocations, key.as_bytes(), key.into(), expires, Expect::Any, NOW).await
}

/// Copies all keys of the table of revocations, from those whose names have one suffix to those with another.
async fn copy_revocations(server: &RedisServer, from: &str, to: &str) {
    for what in ["records", "versions", "ends", "last", "began"] {
        let key = |suffix: &str| format!("doorward:{{revocations}}:{what}{suffix}");
        let _: u64 = server.ask(&["COPY", &key(from), &key(to), "REPLACE"]).await;
    }
}

/// Stores a delivery for a minute.
async fn deliver(store: &Redis, key: &str) {
    let end = NOW + Duration::from_secs(60);
    store.put(Table::Deliveries, key.as_bytes(), key.into(), end, Expect::Any, NOW).await.unwrap();
}

#[tokio::test]
async fn one_server_does_what_every_backend_does_for_a_user_with_few_rights() {
    let server = RedisServer::start(&[]);
    let rights = [
        "ACL",
        "SETUSER",
        "doorward",
        "on",
        ">s3cret",
        "~tekton:*",
        "resetchannels",
        "-@all",
        "+hget",
        "+hset",
        "+hdel",
        "+zadd",
        "+zrem",
        "+zrangebyscore",
        "+get",
        "+set",
        "+time",
        "+eval",
        "+evalsha",
        "+script|load",
        "+select",
        "+info",
        "+config|get",
        "+wait",
    ];
    let _: String = server.ask(&rights).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "s3cret\n").unwrap();
    let mut settings = json!({
        "server": server.address(), "username": "doorward", "password": {"file": "password"}, "prefix": "tekton", "database": 3,
    });
    suite::run(Arc::new(store_in(&settings, folder.path()))).await;
    let warnings = store_in(&settings, folder.path()).warnings().await.unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("appendonly"));
    let durability = store_in(&settings, folder.path()).durability().await.unwrap();
    assert!(matches!(durability, Durability::Lossy(why) if why.contains("appendonly")), "{durability:?}");

    settings["prefix"] = json!("other");
    let error = store_in(&settings, folder.path()).ping().await.unwrap_err().to_string();
    assert!(error.contains("docs/store.md"), "{error}");
    std::fs::write(folder.path().join("password"), "wr0ng").unwrap();
    let error = store_in(&settings, folder.path()).ping().await.unwrap_err().to_string();
    assert!(error.contains("`store.redis.username`") && !error.contains("wr0ng"), "{error}");
}

/// Requests got 503, while the health check and doctor said that all was well.
#[tokio::test]
async fn a_right_that_the_user_lacks_is_found_by_the_health_check() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    store.ping().await.unwrap();
    for right in ["hget", "hset", "hdel", "zadd", "zrem", "zrangebyscore", "get", "set", "time", "evalsha"] {
        let _: String = server.ask(&["ACL", "SETUSER", "default", &format!("-{right}")]).await;
        let error = store.ping().await.unwrap_err().to_string();
        assert!(error.contains("docs/store.md"), "{right}: {error}");
        let _: String = server.ask(&["ACL", "SETUSER", "default", &format!("+{right}")]).await;
        store.ping().await.unwrap();
    }
    assert_eq!(server.ask::<Vec<String>>(&["KEYS", "*"]).await, Vec::<String>::new(), "it leaves nothing there");
}

/// Each check was counted among the errors of the server, which hid others there.
#[tokio::test]
async fn the_health_check_makes_no_call_that_fails() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    store.ping().await.unwrap();
    let info: String = server.ask(&["INFO", "commandstats"]).await;
    assert!(info.contains("cmdstat_hget:") && !info.contains("cmdstat_hset:"), "{info}");
}

#[tokio::test]
async fn a_new_password_is_used_without_a_restart() {
    let server = RedisServer::start(&["--requirepass", "old"]);
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({"server": server.address(), "password": {"file": "password"}});
    let write = |password: &str| std::fs::write(folder.path().join("password"), password).unwrap();
    write("old");
    let store = store_in(&settings, folder.path());
    store.ping().await.unwrap();
    write("new");
    store.set(resolve(&settings, folder.path()).0.unwrap());
    assert!(store.ping().await.is_err());
    write("old");
    store.set(resolve(&settings, folder.path()).0.unwrap());
    eventually("a connection", async || store.ping().await.ok()).await;
}

#[tokio::test]
async fn a_cluster_does_what_every_backend_does() {
    let options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", "{bus}"];
    let nodes = [RedisServer::start(&options), RedisServer::start(&options)];
    for (node, slots) in nodes.iter().zip([["0", "8191"], ["8192", "16383"]]) {
        let _: String = node.ask(&["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]).await;
    }
    let bus: String = nodes[1].ask(&["CLUSTER", "NODES"]).await;
    let bus = bus.split(['@', ' ', ',']).nth(2).unwrap().to_owned();
    let _: String = nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &nodes[1].port().to_string(), &bus]).await;
    for node in &nodes {
        eventually("the cluster", async || {
            let info: String = node.ask(&["CLUSTER", "INFO"]).await;
            (info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")).then_some(())
        })
        .await;
    }
    suite::run(Arc::new(store(&json!({"cluster": [nodes[0].address()]})))).await;
    for node in &nodes {
        let keys: Vec<String> = node.ask(&["KEYS", "doorward:*"]).await;
        assert!(!keys.is_empty(), "all tables lie on one node");
    }
    let warnings = store(&json!({"cluster": [nodes[1].address()]})).warnings().await.unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("appendonly")), "{warnings:?}");
}

#[tokio::test]
async fn tls_does_what_every_backend_does_and_refuses_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: String, text: String| std::fs::write(path(&name), text).unwrap();
    for name in ["ours", "strangers"] {
        let mut parameters = rcgen::CertificateParams::new([]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("{name} authority"));
        let ca = rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        write(format!("{name}-ca.crt"), ca.pem());
        write(format!("{name}.crt"), certificate.pem());
        write(format!("{name}.key"), key.serialize_pem());
    }
    let (certificate, key, ca) = (path("ours.crt"), path("ours.key"), path("ours-ca.crt"));
    let server = RedisServer::start(&[
        "--port",
        "0",
        "--tls-port",
        "{port}",
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ]);
    let tls = |ca: &str, own: Option<&str>| {
        let own = own.map(|own| json!({"chain": path(&format!("{own}.crt")), "key": path(&format!("{own}.key"))}));
        json!({"server": server.address(), "tls": {"ca": path(ca), "certificate": own}})
    };
    suite::run(Arc::new(store(&tls("ours-ca.crt", Some("ours"))))).await;
    let used = store(&tls("ours-ca.crt", Some("ours")));
    used.ping().await.unwrap();
    used.set(resolve(&tls("strangers-ca.crt", Some("ours")), std::path::Path::new("")).0.unwrap());
    assert!(used.ping().await.is_err(), "another authority is believed without a restart");
    for (row, settings) in [
        ("another authority", tls("strangers-ca.crt", Some("ours"))),
        ("no client certificate", tls("ours-ca.crt", None)),
        ("a client certificate of another authority", tls("ours-ca.crt", Some("strangers"))),
        ("clear text", json!({"server": server.address()})),
    ] {
        assert!(store(&settings).ping().await.is_err(), "{row}");
    }
}

#[tokio::test]
async fn a_server_that_went_away_is_used_again_when_it_is_back() {
    let mut server = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let store = store(&json!({"server": server.address()}));
    let end = NOW + Duration::from_secs(60);
    put(&store, "kept", end).await.unwrap();
    server.kill();
    for _ in 0..3 {
        let error = store.get(Table::Revocations, b"kept", NOW).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
    server.restart();
    let kept = eventually("the record", async || store.get(Table::Revocations, b"kept", NOW).await.ok()).await;
    assert_eq!(kept.unwrap().value, b"kept");
    let Written::Done(version) = put(&store, "later", end).await.unwrap() else { panic!("a conflict") };
    assert!(version > store.get(Table::Revocations, b"kept", NOW).await.unwrap().unwrap().version);
}

#[tokio::test]
async fn a_failover_is_followed_by_way_of_the_sentinel_for_a_user_with_few_rights_there() {
    let mut master = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port().to_string();
    let replica = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {port}")]);
    eventually("the replica", async || {
        let info: String = replica.ask(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    let sentinel = RedisServer::sentinel(master.port());
    // All the rights that it needs there.
    let rights = ["ACL", "SETUSER", "doorward", "on", ">s3cret", "-@all", "+sentinel", "+role"];
    let _: String = sentinel.ask(&rights).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("password"), "s3cret").unwrap();
    let settings = json!({"sentinel": {
        "servers": ["127.0.0.1:1", sentinel.address()],
        "master": "doorward",
        "username": "doorward",
        "password": {"file": "password"},
    }});
    let store = store_in(&settings, folder.path());
    suite::run(Arc::new(store.clone())).await;
    // The records of the suite are no revocations.
    let _: String = master.ask(&["FLUSHALL"]).await;
    let clock = Clock::manual(NOW);
    let (here, there) = (
        Revocations::new(Arc::new(store.clone()), clock.clone()),
        Revocations::new(Arc::new(store_in(&settings, folder.path())), clock),
    );
    there.refresh().await.unwrap();
    let end = NOW + Duration::from_secs(60);
    let bob = Target::Principal { issuer: "corp", subject: "bob" };
    here.revoke(bob, "left", end).await.unwrap();
    // The sentinel cannot replace the master before it knows the replica.
    eventually("the replica at the sentinel", async || {
        let replicas: Vec<Value> = sentinel.ask(&["SENTINEL", "REPLICAS", "doorward"]).await;
        (!replicas.is_empty()).then_some(())
    })
    .await;
    master.kill();
    let carol = Target::Principal { issuer: "corp", subject: "carol" };
    eventually("the new master", async || here.revoke(carol, "left", end).await.ok()).await;
    there.refresh().await.unwrap();
    assert!(there.find(&CredentialId::None, "corp", "carol").is_some());
    assert_eq!(replica.ask::<Vec<Value>>(&["ROLE"]).await[0], Value::BulkString(b"master".to_vec()));

    let unknown = json!({"sentinel": {"servers": [sentinel.address()], "master": "other"}});
    let error = tests::store(&unknown).ping().await.unwrap_err().to_string();
    assert!(
        error.contains("replace a failed master within seconds; if this lasts, see `store.redis.sentinel.master`"),
        "{error}"
    );
}

#[tokio::test]
async fn all_changes_are_read_again_after_the_server_was_reset() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let end = NOW + Duration::from_secs(60);
    let Written::Done(version) = put(&store, "a", end).await.unwrap() else { panic!("a conflict") };
    assert!(store.changes(Table::Revocations, version, 10, NOW).await.unwrap().is_empty());
    let ahead = version + 1_000_000_000;
    let again = store.changes(Table::Revocations, ahead, 10, NOW).await.unwrap();
    assert_eq!(again.iter().map(|change| change.key.as_slice()).collect::<Vec<_>>(), [b"a"]);
    let _: String = server.ask(&["FLUSHALL"]).await;
    assert!(store.changes(Table::Revocations, version, 10, NOW).await.unwrap().is_empty());
    put(&store, "b", end).await.unwrap();
    let after = store.changes(Table::Revocations, version, 10, NOW).await.unwrap();
    assert_eq!(after.iter().map(|change| change.key.as_slice()).collect::<Vec<_>>(), [b"b"]);
}

/// A reader that had followed the lost version would never read the record that has it now.
#[tokio::test]
async fn no_version_is_given_twice_by_a_server_that_lost_its_last_writes() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let version = async |key: &str| match put(&store, key, NOW + Duration::from_secs(60)).await.unwrap() {
        Written::Done(version) => version,
        conflict => panic!("{conflict:?}"),
    };
    version("a").await;
    copy_revocations(&server, "", "-safe").await;
    let lost = version("b").await;
    copy_revocations(&server, "-safe", "").await;
    let next = version("c").await;
    assert!(next > lost);
    let later = store.changes(Table::Revocations, lost, 10, NOW).await.unwrap();
    assert_eq!(later.iter().map(|change| change.key.as_slice()).collect::<Vec<_>>(), [b"c"]);
    assert!(store.get(Table::Revocations, b"a", NOW).await.unwrap().is_some(), "twin: what it kept is there");
}

#[tokio::test]
async fn expired_records_are_swept_and_fill_no_page() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let (soon, end) = (NOW + Duration::from_secs(1), NOW + Duration::from_secs(60));
    for number in 0..20 {
        put(&store, &format!("ended {number}"), soon).await.unwrap();
    }
    put(&store, "lasting", end).await.unwrap();
    let later = NOW + Duration::from_secs(2);
    let changes = store.changes(Table::Revocations, 0, 5, later).await.unwrap();
    assert_eq!(changes.iter().map(|change| change.key.as_slice()).collect::<Vec<_>>(), [b"lasting"]);
    for _ in 0..2 {
        store.put(Table::Revocations, b"lasting", b"x".to_vec(), end, Expect::Any, later).await.unwrap();
    }
    for (command_word, what) in [("HLEN", "records"), ("ZCARD", "versions"), ("ZCARD", "ends")] {
        let left: i64 = server.ask(&[command_word, &format!("doorward:{{revocations}}:{what}")]).await;
        assert_eq!(left, 1, "{what}");
    }
    // A write with an expiry in the past leaves no record, and still returns that it was done.
    put(&store, "lasting", NOW).await.unwrap();
    assert_eq!(store.get(Table::Revocations, b"lasting", NOW).await.unwrap(), None);
}

/// Records that signal something to other replicas by their expiry must not depend on whose clock is right.
#[tokio::test]
async fn a_replica_whose_clock_is_wrong_takes_no_lease_and_no_record_of_others() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let minute = Duration::from_secs(60);
    let right = Clock::default().now();
    let (ahead, behind) = (right + minute + Duration::from_secs(30), right - Duration::from_secs(90));
    let lease = async |now: Timestamp, key: &str| {
        let put = store.put(Table::HeldLeases, key.as_bytes(), Vec::new(), now + minute, Expect::Absent, now).await;
        matches!(put.unwrap(), Written::Done(_))
    };
    assert!(lease(right, "a").await && !lease(ahead, "a").await, "it has 60 s left by any clock");
    assert!(lease(behind, "b").await && !lease(right, "b").await);
    let given_back = Timestamp::default();
    store.put(Table::HeldLeases, b"a", Vec::new(), given_back, Expect::Any, ahead).await.unwrap();
    assert!(lease(behind, "a").await);

    // The same holds for signs of life.
    store.put(Table::Replicas, b"r3", b"x".to_vec(), behind + minute, Expect::Any, behind).await.unwrap();
    for now in [right, ahead, behind] {
        let live = store.changes(Table::Replicas, 0, 10, now).await.unwrap();
        assert_eq!(live.len(), 1);
        let left = live[0].stored.as_ref().unwrap().expires.since(now);
        assert!(left > minute / 2, "{left:?}");
    }
    store.put(Table::Replicas, b"r3", b"x".to_vec(), ahead, Expect::Any, ahead).await.unwrap();
    assert!(store.changes(Table::Replicas, 0, 10, right).await.unwrap().is_empty());

    // Records with a wall-clock expiry are not swept by a replica by whose clock alone they have expired.
    put(&store, "revoked", right + minute).await.unwrap();
    store.put(Table::Revocations, b"x", b"x".to_vec(), ahead + minute, Expect::Any, ahead).await.unwrap();
    assert!(store.get(Table::Revocations, b"revoked", right).await.unwrap().is_some());
}

#[tokio::test]
async fn a_clock_that_differs_from_the_servers_is_measured() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    let right = Clock::default().now();
    for (clock, seconds, trouble) in [
        (Clock::default(), 0.0, None),
        // These clocks do not advance meanwhile.
        (Clock::manual(right + Duration::from_secs(900)), 900.0, Some("s ahead of")),
        (Clock::manual(right - Duration::from_secs(900)), -900.0, Some("s behind")),
    ] {
        let ahead = store.clock_ahead(&clock).await.unwrap();
        assert!((ahead - seconds).abs() < 60.0, "{ahead}");
        if let Some(trouble) = trouble {
            assert!(clock_trouble(ahead).unwrap().contains(trouble), "{ahead}");
        }
    }
    assert_eq!((clock_trouble(4.0), clock_trouble(-4.0)), (None, None));
}

#[tokio::test]
async fn revocations_that_an_emptied_store_lost_are_restored_by_replicas_that_know_them() {
    let server = RedisServer::start(&[]);
    let settings = json!({"server": server.address()});
    let clock = Clock::manual(NOW);
    let replica = || Revocations::new(Arc::new(store(&settings)), clock.clone());
    let (here, there) = (replica(), replica());
    let end = NOW + Duration::from_secs(3600);
    let person = |subject| Target::Principal { issuer: "corp", subject };
    let is_revoked = |of: &Revocations, subject: &str| of.find(&CredentialId::None, "corp", subject).is_some();
    for number in 0..250 {
        here.revoke(Target::Workload(&format!("uid-{number}")), "it has ended", end).await.unwrap();
    }
    here.revoke(person("eve"), "left", end).await.unwrap();
    here.revoke(Target::Token { issuer: "corp", id: "t" }, "leaked", end).await.unwrap();
    here.revoke(Target::Session("s"), "signed out", end).await.unwrap();
    here.revoke(person("dan"), "left", NOW + Duration::from_secs(1)).await.unwrap();
    clock.advance(Duration::from_secs(2));
    for replica in [&here, &there] {
        replica.refresh().await.unwrap();
    }
    // Emptied, and emptied with a later write by somebody, which hides that versions went back.
    for word in [false, true] {
        let _: String = server.ask(&["FLUSHALL"]).await;
        if word {
            replica().revoke(person("bob"), "left", end).await.unwrap();
            replica().revoke(person("eve"), "a word since", end).await.unwrap();
        }
        let both = tokio::join!(here.refresh(), there.refresh());
        both.0.and(both.1).unwrap();
        // All that is in force is there again, and what has ended is not.
        let stored: u64 = server.ask(&["HLEN", "doorward:{revocations}:records"]).await;
        assert_eq!(stored, 253 + u64::from(word));
        let new = replica();
        new.refresh().await.unwrap();
        assert!(is_revoked(&new, "eve") && is_revoked(&new, "bob") == word);
        assert!(new.find(&CredentialId::Token("t".into()), "corp", "x").is_some());
        assert!(new.find(&CredentialId::Session("s".into()), "corp", "x").is_some());
        assert!((0..250).all(|number| new.has_stored(&format!("uid-{number}"))));
        let why = new.find(&CredentialId::None, "corp", "eve").unwrap().reason;
        assert_eq!(&*why, if word { "a word since" } else { "left" }, "what was said since stays");
        for replica in [&here, &there] {
            replica.refresh().await.unwrap();
        }
    }
    // The lost record is one that a replica just wrote, and neither has read again.
    copy_revocations(&server, "", "-safe").await;
    here.revoke(person("zoe"), "left", end).await.unwrap();
    copy_revocations(&server, "-safe", "").await;
    here.refresh().await.unwrap();
    let new = replica();
    new.refresh().await.unwrap();
    assert!(is_revoked(&new, "zoe") && is_revoked(&new, "eve"));
    for replica in [&here, &there] {
        replica.refresh().await.unwrap();
    }
    // The counterpart: nothing is written if nothing was lost.
    let last = async || server.ask::<String>(&["GET", "doorward:{revocations}:last"]).await;
    let before = last().await;
    here.refresh().await.unwrap();
    there.refresh().await.unwrap();
    assert_eq!(last().await, before);
}

/// Nothing reported it, as a table without any revocation had no version that it could have lost.
#[test]
fn an_emptied_store_is_logged_by_each_replica_even_if_nobody_was_ever_revoked() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let emptied_twice = async {
        let server = RedisServer::start(&[]);
        let replica = || Revocations::new(Arc::new(store(&json!({"server": server.address()}))), Clock::manual(NOW));
        let replicas = [replica(), replica()];
        let refresh = async || {
            for replica in &replicas {
                replica.refresh().await.unwrap();
            }
        };
        for _ in 0..2 {
            refresh().await;
            refresh().await;
            let changes = store(&json!({"server": server.address()})).changes(Table::Revocations, 0, 10, NOW).await;
            assert!(changes.unwrap().is_empty(), "no record is left behind");
            let _: String = server.ask(&["FLUSHALL"]).await;
            refresh().await;
        }
    };
    let ((), log) = logged(|| runtime.block_on(emptied_twice));
    assert_eq!(log.matches("the store was emptied or reset").count(), 4, "{log}");
}

#[test]
fn impossible_settings_are_reported_at_their_path() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("junk"), "junk").unwrap();
    std::fs::write(folder.path().join("bytes"), b"\xff").unwrap();
    let sentinel = |servers: Json, master: &str| json!({"sentinel": {"servers": servers, "master": master}});
    for (settings, places) in [
        (json!({"server": "redis.example.com:6379"}), vec![]),
        (json!({"server": "[::1]:6379", "tls": {}}), vec![]),
        (sentinel(json!(["a:26379", "b:26379"]), "doorward"), vec![]),
        (json!({"cluster": ["a:1", "b:2"]}), vec![]),
        (json!({}), vec![""]),
        (json!({"server": "a:1", "cluster": ["a:1"]}), vec![""]),
        (json!({"server": "redis.example.com"}), vec!["/server"]),
        (json!({"server": "redis://a:1"}), vec!["/server"]),
        (json!({"server": "user@a:1"}), vec!["/server"]),
        (json!({"server": ":hunter2@a:1"}), vec!["/server"]),
        (json!({"server": "a:1/2"}), vec!["/server"]),
        (json!({"server": "a:1?db=2"}), vec!["/server"]),
        (json!({"server": "a:1#2"}), vec!["/server"]),
        (json!({"server": "a:0"}), vec!["/server"]),
        (json!({"cluster": ["a:1", "b"]}), vec!["/cluster/1"]),
        (json!({"cluster": ["a:1"], "database": 1}), vec!["/database"]),
        (sentinel(json!([]), "doorward"), vec!["/sentinel/servers"]),
        (sentinel(json!(["a:1"]), ""), vec!["/sentinel/master"]),
        (json!({"server": "a:1", "username": "doorward"}), vec!["/username"]),
        (json!({"server": "a:1", "password": {"file": "none"}}), vec!["/password"]),
        // It would be left out, and the server asked without one.
        (json!({"server": "a:1", "password": {"file": "bytes"}}), vec!["/password"]),
        (json!({"server": "a:1", "prefix": ""}), vec!["/prefix"]),
        (json!({"server": "a:1", "prefix": "a{b}"}), vec!["/prefix"]),
        (json!({"server": "a:1", "prefix": "a\n"}), vec!["/prefix"]),
        (json!({"server": "a:1", "tls": {"ca": "junk"}}), vec!["/tls/ca"]),
        (json!({"server": "a:1", "tls": {"certificate": {"chain": "junk", "key": "junk"}}}), vec!["/tls/certificate"]),
    ] {
        let (_, problems) = resolve(&settings, folder.path());
        let found: Vec<&str> = problems.iter().map(|(at, _)| at.as_str()).collect();
        assert_eq!(found, places, "{settings}: {problems:?}");
        assert!(problems.iter().all(|(_, message)| !message.contains("junk\"")));
    }
}
