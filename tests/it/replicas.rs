//! Two replicas on one Redis: they share sessions, follow a failover, and sign nobody out.

use std::{
    cell::Cell,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::RwLock;

use crate::{
    harness::{Answer, Doorward, Issuer, Raw, RedisServer, Upstream, found, log_in, request, settled, until, within},
    login_fixture::{LoginFixture, STORE, on_redis},
};

async fn replica(instance: &str, issuer: &Issuer, redis: &str) -> Doorward {
    replica_with(instance, issuer, redis, "drain_accept: 0").await
}

/// `redis` says how to reach the shared store.
async fn replica_with(instance: &str, issuer: &Issuer, redis: &str, limits: &str) -> Doorward {
    let changes: [(&str, &str); 3] = [
        (STORE, &on_redis(redis)),
        ("audit: {", &format!("audit: {{instance: {instance}, checkpoint_interval: 200ms, ")),
        ("drain_accept: 0", limits),
    ];
    let (upstream, dir) = (Upstream::start().await, tempfile::tempdir().unwrap());
    LoginFixture::at(issuer.url(), 0, upstream, dir, &changes).await.doorward
}

async fn answers(doorward: &Doorward, lines: &[&str], status: u16) -> Answer {
    found(async || Some(doorward.get("/page", lines).await).filter(|answer| answer.status == status)).await
}

#[tokio::test]
async fn replicas_share_sessions_and_lose_none_when_redis_or_they_themselves_go_away() {
    let issuer = Issuer::start().await;
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings = format!("server: '{}'", redis.address());
    let here = replica("here", &issuer, &settings).await;
    let there = replica("there", &issuer, &settings).await;
    let host = format!("localhost:{}", here.address("public").port());
    let cookie = log_in(&here, &host, "/page").await;
    let host = format!("Host: {host}");
    let lines = [host.as_str(), cookie.as_str()];
    assert_eq!(there.get("/page", &lines).await.status, 200, "signed in at one is signed in at all");

    redis.kill();
    for replica in [&here, &there] {
        let refused = answers(replica, &lines, 503).await;
        assert_eq!(refused.reason(), "store_unavailable");
        assert!(refused.all("set-cookie").is_empty(), "the cookie stays: {}", refused.head);
        assert!(refused.header("retry-after").is_some(), "{}", refused.head);
        replica.until_readyz_says("store failed").await;
        let ready = replica.admin("/readyz").await;
        assert_eq!(ready.status, 200, "what needs no store goes on: {}", ready.text());
    }
    redis.restart();
    answers(&here, &lines, 200).await;
    answers(&there, &lines, 200).await;

    let here = here.kill_and_restart().await;
    answers(&here, &lines, 200).await;

    let origin = host.replace("Host: ", "Origin: http://");
    let out = here.send(&["POST /oauth2/sign_out HTTP/1.1", &host, &cookie, &origin, "Content-Length: 0"], b"").await;
    assert_eq!(out.status, 303, "{}", out.text());
    answers(&there, &lines, 401).await;
}

/// Regression: the replica stayed `starting` forever, without a reason.
#[tokio::test]
async fn a_replica_reports_its_wait_for_redis_and_is_ready_without_the_right_to_info() {
    let issuer = Issuer::start().await;
    let mut redis = RedisServer::start(&["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info", "-config"]);
    redis.kill();
    let store = on_redis(&format!("server: '{}'", redis.address()));
    let (upstream, dir) = (Upstream::start().await, tempfile::tempdir().unwrap());
    let world = LoginFixture::start(issuer.url(), 0, upstream, dir, &[(STORE, &store)]).await;
    world.doorward.until_readyz_says("the store does not say whether its writes are durable").await;
    redis.restart();
    world.doorward.until_ready().await;
}

/// Each replica has its own chain, and no chain can be removed entirely: the others record where they saw it.
#[tokio::test]
async fn an_auditor_misses_the_trail_of_a_replica_that_another_has_seen() {
    let issuer = Issuer::start().await;
    let redis = RedisServer::start(&[]);
    let settings = format!("server: '{}'", redis.address());
    let mut replicas = Vec::new();
    for instance in ["doorward-0", "doorward-1"] {
        replicas.push(replica_with(instance, &issuer, &settings, "drain_accept: 10m, drain: 20m").await);
    }
    let sees_the_other =
        |doorward: &Doorward| doorward.audit().iter().any(|record| !record["unmapped"]["heads"].is_null());
    until(async || replicas.iter().all(sees_the_other)).await;
    let verify = |given: &[&Doorward]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.args(["audit", "verify", "--all"]);
        for doorward in &replicas {
            command.arg("--key").arg(doorward.dir().join("audit-chain.key"));
            command.arg("--checkpoint-key").arg(doorward.dir().join("audit-checkpoint.pub.pem"));
        }
        let output = command.args(given.iter().map(|doorward| doorward.dir())).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let [zero, one] = replicas.as_slice() else { unreachable!() };
    // Their trails are read one after the other: the second must not tell of what the first gets in between.
    for replica in [zero, one] {
        replica.signal("STOP");
    }
    let (code, said, problems) = verify(&[zero, one]);
    assert_eq!((code, problems.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("audit.jsonl of doorward-0\nintact\n") && said.contains("all intact: 2 chains"), "{said}");
    let (code, said, problems) = verify(&[zero]);
    assert_eq!(code, Some(1), "{said}");
    assert!(problems.starts_with("the chain of doorward-1 is missing: doorward-0 saw it at line "), "{problems}");
}

#[tokio::test]
async fn a_failover_by_sentinel_signs_nobody_out() {
    let issuer = Issuer::start().await;
    let mut master = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let standby = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {}", master.port())]);
    let sentinel = RedisServer::sentinel(master.port());
    let settings = format!("sentinel: {{servers: ['{}'], master: doorward}}", sentinel.address());
    let doorward = replica("doorward-0", &issuer, &settings).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let cookie = log_in(&doorward, &host, "/page").await;
    let host = format!("Host: {host}");
    let lines = [host.as_str(), cookie.as_str()];
    answers(&doorward, &lines, 200).await;
    until(async || standby.ask::<i64>(&["HLEN", "doorward:{sessions}:records"]).await == 1).await;
    // A sentinel does not replace the master before it knows the standby.
    let standbys = ["SENTINEL", "REPLICAS", "doorward"];
    until(async || !sentinel.ask::<Vec<redis::Value>>(&standbys).await.is_empty()).await;
    master.kill();
    // Meanwhile the store may or may not be missed, as recent lookups are cached for a moment. Polled without a pause,
    // since a single wrong answer is one too many.
    within(async {
        loop {
            let answer = doorward.get("/page", &lines).await;
            assert!([200, 503].contains(&answer.status), "{}", answer.head);
            assert!(answer.all("set-cookie").is_empty(), "the cookie stays: {}", answer.head);
            let master = sentinel.ask::<Vec<String>>(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "doorward"]).await;
            if answer.status == 200 && master.last() == Some(&standby.port().to_string()) {
                return;
            }
        }
    })
    .await;
    // The new master can be written to as well.
    let origin = format!("Origin: http://{}", host.trim_start_matches("Host: "));
    let out = ["POST /oauth2/sign_out HTTP/1.1", host.as_str(), origin.as_str(), cookie.as_str()];
    assert_eq!(settled(async || doorward.send(&out, b"").await).await.status, 303);
    answers(&doorward, &lines, 401).await;
}

async fn rollout(arguments: &[&str]) -> std::process::Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
    within(command.arg("rollout").args(arguments).kill_on_drop(true).output()).await.unwrap()
}

/// The output of `rollout digest` for the configuration beside a replica.
async fn digest(doorward: &Doorward, more: &[&str]) -> String {
    let path = doorward.dir().join("doorward.yaml").display().to_string();
    let output = rollout(&[&["digest", path.as_str()][..], more].concat()).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_rollout_succeeds_once_all_replicas_use_the_policy_and_fails_at_the_first_refusal() {
    let issuer = Issuer::start().await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings = format!("server: '{}'", redis.address());
    let here = replica("here", &issuer, &settings).await;
    let there = replica("there", &issuer, &settings).await;
    let old = digest(&here, &[]).await;
    let status = async |digest: &str, timeout: &str| {
        let socket = here.dir().join("operator.sock").display().to_string();
        let output = rollout(&["status", digest, "--timeout", timeout, "--why", "release", "--socket", &socket]).await;
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    // The other replica reports within seconds of its start.
    let everywhere = found(async || {
        let (code, told) = status(&old, "30s").await;
        told.contains("there: ").then_some((code, told))
    })
    .await;
    assert_eq!(everywhere.0, Some(0), "{}", everywhere.1);
    assert!(everywhere.1.ends_with("in force on every replica\n"), "{}", everywhere.1);
    let line =
        everywhere.1.lines().find(|line| line.starts_with(&format!("here: generation 1, policy {old}, "))).unwrap();
    assert!(line.ends_with(", as asked for"), "{line}");

    // One has the new policy, the other does not yet.
    here.change("users: [alice]", "users: [alice, bob]");
    let new = digest(&here, &[]).await;
    assert_ne!(old, new);
    let (code, told) = found(async || {
        let (code, told) = status(&new, "1s").await;
        told.contains("as asked for").then_some((code, told))
    })
    .await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.ends_with("not in force on every replica yet\n"), "{told}");

    // The other gets a configuration that it refuses, while `rollout status` waits.
    let over = Cell::new(false);
    let waiting = async {
        let told = status(&new, "5m").await;
        over.set(true);
        told
    };
    let refused = async {
        let mut other = there;
        // Not before the wait has begun.
        here.record(|record| record.to_string().contains("5m")).await;
        other.change("do: allow", "do: alow");
        other.wait_for_log_containing("the configuration was refused").await;
        // A command that looks at the replicas for the first time only now waits for the next refusal.
        let mut since = Instant::now();
        until(async || {
            if since.elapsed() > Duration::from_secs(10) {
                other.signal("HUP");
                since = Instant::now();
            }
            over.get()
        })
        .await;
        other
    };
    let ((code, told), there) = tokio::join!(waiting, refused);
    assert_eq!(code, Some(1), "{told}");
    assert!(["refused at ", "doorward.yaml:", "alow"].iter().all(|words| told.contains(words)), "{told}");

    // Then it gets the right one.
    there.change("do: alow", "do: allow");
    there.change("users: [alice]", "users: [alice, bob]");
    let (code, told) = status(&new, "30s").await;
    assert_eq!(code, Some(0), "{told}");
}

/// For any change other than to rules and grants it reported success at once, even if the change was refused.
#[tokio::test]
async fn a_change_outside_the_policy_is_in_force_once_accepted_and_never_if_refused() {
    let (world, _issuer) = LoginFixture::scripted(&[]).await;
    let mut doorward = world.doorward;
    let socket = doorward.dir().join("operator.sock").display().to_string();
    let status = async |digest: &str, timeout: &str| {
        let output = rollout(&["status", digest, "--timeout", timeout, "--why", "release", "--socket", &socket]).await;
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (policy, before) = (digest(&doorward, &[]).await, digest(&doorward, &["--configuration"]).await);
    assert_eq!(status(&before, "30s").await.0, Some(0));

    doorward.change("drain_accept: 0", "drain_accept: 1ms");
    let taken = digest(&doorward, &["--configuration"]).await;
    assert!(digest(&doorward, &[]).await == policy && taken != before);
    let (code, told) = status(&taken, "1m").await;
    assert!(code == Some(0) && told.contains(&format!("configuration {taken}, as asked for")), "{told}");
    assert_eq!(status(&before, "1s").await.0, Some(1), "that is no longer in force");

    doorward.change("limits: {", "workers: 9\nlimits: {");
    let (code, told) = status(&digest(&doorward, &["--configuration"]).await, "1m").await;
    assert!(code == Some(1) && told.contains("  /workers stays unset until a restart makes it 9\n"), "{told}");
    assert!(told.contains("except what needs a restart"), "{told}");

    // What is wrong with it is visible only where its files are.
    doorward.change("file: client", "file: lost");
    let refused = digest(&doorward, &["--configuration"]).await;
    doorward.wait_for_log_containing("the configuration was refused").await;
    for (asked, expected) in [(&refused, 1), (&policy, 0)] {
        let (code, told) = status(asked, "1s").await;
        assert!(code == Some(expected) && told.contains("refused at ") && told.contains("lost"), "{told}");
    }
}

/// A Service in front of replicas: it sends nothing more to an unready one, once it has noticed.
struct Service {
    members: RwLock<Vec<SocketAddr>>,
    sent: AtomicUsize,
}

impl Service {
    /// Sends a request through some member.
    async fn send(&self, lines: &[&str], body: &[u8]) -> u16 {
        let members = self.members.read().await;
        let turn = self.sent.fetch_add(1, Ordering::SeqCst);
        let mut raw = Raw::connect(members[turn % members.len()]).await;
        raw.send(request(lines, body)).await;
        raw.answer().await.status
    }

    /// Waits until `more` requests were sent.
    async fn goes_on(&self, more: usize) {
        let sent = || self.sent.load(Ordering::SeqCst);
        let enough = sent() + more;
        until(async || sent() >= enough).await;
    }
}

#[tokio::test]
async fn a_rolling_restart_under_load_fails_no_request_and_loses_no_session() {
    let issuer = Issuer::start().await;
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings = format!("server: '{}'", redis.address());
    let mut replicas = Vec::new();
    for instance in ["zero", "one"] {
        replicas.push(replica_with(instance, &issuer, &settings, "drain_accept: 10m, drain: 20m").await);
    }
    let host = format!("localhost:{}", replicas[0].address("public").port());
    let mut cookies = Vec::new();
    for _ in 0..4 {
        cookies.push(log_in(&replicas[0], &host, "/page").await);
    }
    let members = replicas.iter().map(|replica| replica.address("public")).collect();
    let service = Arc::new(Service { members: RwLock::new(members), sent: 0.into() });
    let over = Arc::new(AtomicBool::new(false));
    let people: Vec<_> = cookies
        .iter()
        .map(|cookie| {
            let (service, over, cookie, host) = (service.clone(), over.clone(), cookie.clone(), host.clone());
            tokio::spawn(async move {
                let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
                let mut failed = Vec::new();
                while !over.load(Ordering::SeqCst) {
                    let looked = service.send(&["GET /page HTTP/1.1", &host_line, &cookie], b"").await;
                    let form = ["POST /page HTTP/1.1", &*host_line, &origin, &cookie];
                    let sent = service.send(&form, b"a form").await;
                    failed.extend([looked, sent].into_iter().filter(|status| *status != 200));
                }
                failed
            })
        })
        .collect();

    for index in 0..replicas.len() {
        service.goes_on(40).await;
        let mut old = replicas.remove(index);
        old.signal("TERM");
        old.wait_for_log("draining").await;
        assert_eq!(old.admin("/readyz").await.status, 503);
        // Nobody has noticed yet, so it keeps serving.
        service.goes_on(40).await;
        service.members.write().await.retain(|member| *member != old.address("public"));
        // Its grace period has passed.
        old.signal("TERM");
        assert!(old.ended().await.success());
        service.goes_on(40).await;
        let new = old.start_again().await;
        new.until_ready().await;
        service.members.write().await.push(new.address("public"));
        replicas.insert(index, new);
    }
    service.goes_on(40).await;
    over.store(true, Ordering::SeqCst);
    for person in people {
        assert_eq!(within(person).await.unwrap(), Vec::<u16>::new());
    }
    let host_line = format!("Host: {host}");
    for (cookie, replica) in cookies.iter().flat_map(|cookie| replicas.iter().map(move |replica| (cookie, replica))) {
        assert_eq!(replica.get("/page", &[&host_line, cookie]).await.status, 200, "nobody has to sign in again");
    }
}
