//! Two replicas on one Redis: they share who is signed in, follow a failover, and lose nobody.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::sync::RwLock;

use crate::harness::{Answer, Doorward, Issuer, Raw, RedisServer, Upstream, log_in, request, within};

async fn replica(instance: &str, issuer: &Issuer, upstream: &Upstream, redis: &str) -> Doorward {
    replica_with(instance, issuer, upstream, redis, "drain_accept: 0").await
}

async fn replica_with(instance: &str, issuer: &Issuer, upstream: &Upstream, redis: &str, limits: &str) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("client", "client-secret".to_owned()), ("key", BASE64_STANDARD.encode([7; 32]))] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let yaml = format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - name: a
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
upstreams:
  - {{name: web, url: '{upstream}'}}
routes:
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
sessions: {{keys: [{{file: key}}]}}
store: {{path: doorward.redb, redis: {redis}}}
audit: {{instance: {instance}, checkpoint_interval: 200ms, sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{{limits}}}
",
        issuer = issuer.url(),
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.until_people_can_sign_in("localhost").await;
    doorward
}

async fn until(doorward: &Doorward, lines: &[&str], status: u16) -> Answer {
    within(async {
        loop {
            let answer = doorward.get("/page", lines).await;
            if answer.status == status {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn replicas_share_sessions_and_lose_none_when_redis_or_they_themselves_go_away() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings = format!("{{server: '{}'}}", redis.address());
    let here = replica("here", &issuer, &upstream, &settings).await;
    let there = replica("there", &issuer, &upstream, &settings).await;
    let host = format!("localhost:{}", here.address("public").port());
    let cookie = log_in(&here, &host, "/page").await;
    let host = format!("Host: {host}");
    let lines = [host.as_str(), cookie.as_str()];
    assert_eq!(there.get("/page", &lines).await.status, 200, "signed in at one is signed in at all");

    redis.kill();
    for replica in [&here, &there] {
        let refused = until(replica, &lines, 503).await;
        assert_eq!(refused.reason(), "store_unavailable");
        assert!(refused.all("set-cookie").is_empty(), "the cookie stays: {}", refused.head);
        assert!(refused.header("retry-after").is_some(), "{}", refused.head);
        within(async {
            while !replica.admin("/readyz").await.text().contains("store failed") {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let ready = replica.admin("/readyz").await;
        assert_eq!(ready.status, 200, "what needs no store goes on: {}", ready.text());
    }
    redis.restart();
    until(&here, &lines, 200).await;
    until(&there, &lines, 200).await;

    let here = here.kill_and_restart().await;
    until(&here, &lines, 200).await;

    let origin = host.replace("Host: ", "Origin: http://");
    let out = here.send(&["POST /oauth2/sign_out HTTP/1.1", &host, &cookie, &origin, "Content-Length: 0"], b"").await;
    assert_eq!(out.status, 303, "{}", out.text());
    until(&there, &lines, 401).await;
}

/// Each replica has a chain of its own, and no chain can be taken away whole: the others say where they saw it.
#[tokio::test]
async fn an_auditor_misses_the_trail_of_a_replica_that_another_has_seen() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let redis = RedisServer::start(&[]);
    let settings = format!("{{server: '{}'}}", redis.address());
    let mut replicas = Vec::new();
    for instance in ["doorward-0", "doorward-1"] {
        replicas.push(replica_with(instance, &issuer, &upstream, &settings, "drain_accept: 10m, drain: 20m").await);
    }
    let sees_the_other =
        |doorward: &Doorward| doorward.audit().iter().any(|record| !record["unmapped"]["heads"].is_null());
    within(async {
        while !replicas.iter().all(sees_the_other) {
            tokio::task::yield_now().await;
        }
    })
    .await;
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
    let (code, said, problems) = verify(&[zero, one]);
    assert_eq!((code, problems.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("audit.jsonl of doorward-0\nintact\n") && said.contains("all intact: 2 chains"), "{said}");
    let (code, said, problems) = verify(&[zero]);
    assert_eq!(code, Some(1), "{said}");
    assert!(problems.starts_with("the chain of doorward-1 is missing: doorward-0 saw it at line "), "{problems}");
}

#[tokio::test]
async fn a_failover_by_sentinel_logs_nobody_out() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let mut master = RedisServer::start(&["--repl-diskless-sync-delay", "0"]);
    let standby = RedisServer::start(&["--replicaof", &format!("127.0.0.1 {}", master.port())]);
    let sentinel = RedisServer::sentinel(master.port());
    let settings = format!("{{sentinel: {{servers: ['{}'], master: doorward}}}}", sentinel.address());
    let doorward = replica("doorward-0", &issuer, &upstream, &settings).await;
    let host = format!("localhost:{}", doorward.address("public").port());
    let cookie = log_in(&doorward, &host, "/page").await;
    let host = format!("Host: {host}");
    let lines = [host.as_str(), cookie.as_str()];
    until(&doorward, &lines, 200).await;
    let sessions = ["HLEN", "doorward:{sessions}:records"];
    within(async {
        while standby.ask::<i64>(&sessions).await != 1 {
            tokio::task::yield_now().await;
        }
        // A sentinel puts nothing in the master's place before it has heard of the standby.
        while sentinel.ask::<Vec<redis::Value>>(&["SENTINEL", "REPLICAS", "doorward"]).await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    master.kill();
    // Meanwhile the store may be missed, or not, as what was just looked up is known for a moment.
    within(async {
        loop {
            let answer = doorward.get("/page", &lines).await;
            assert!([200, 503].contains(&answer.status), "{}", answer.head);
            assert!(answer.all("set-cookie").is_empty(), "the cookie stays: {}", answer.head);
            let master = sentinel.ask::<Vec<String>>(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "doorward"]).await;
            if answer.status == 200 && master.last() == Some(&standby.port().to_string()) {
                break;
            }
        }
    })
    .await;
    // The new master is written to as well.
    let origin = format!("Origin: http://{}", host.trim_start_matches("Host: "));
    let out = ["POST /oauth2/sign_out HTTP/1.1", host.as_str(), origin.as_str(), cookie.as_str()];
    within(async { while doorward.send(&out, b"").await.status == 503 {} }).await;
    until(&doorward, &lines, 401).await;
}

async fn rollout(arguments: &[&str]) -> std::process::Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
    within(command.arg("rollout").args(arguments).kill_on_drop(true).output()).await.unwrap()
}

/// What `rollout digest` prints for the configuration beside a replica.
async fn digest(doorward: &Doorward) -> String {
    let output = rollout(&["digest", &doorward.dir().join("doorward.yaml").display().to_string()]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_rollout_is_done_once_each_replica_decides_by_the_policy_and_ends_with_the_first_refusal() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings = format!("{{server: '{}'}}", redis.address());
    let here = replica("here", &issuer, &upstream, &settings).await;
    let there = replica("there", &issuer, &upstream, &settings).await;
    let old = digest(&here).await;
    let status = async |digest: &str, timeout: &str| {
        let socket = here.dir().join("operator.sock").display().to_string();
        let output = rollout(&["status", digest, "--timeout", timeout, "--why", "release", "--socket", &socket]).await;
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    // The other one tells of itself within seconds of its start.
    let everywhere = within(async {
        loop {
            let (code, told) = status(&old, "30s").await;
            if told.contains("there: ") {
                return (code, told);
            }
        }
    })
    .await;
    assert_eq!(everywhere.0, Some(0), "{}", everywhere.1);
    assert!(everywhere.1.ends_with("in force on every replica\n"), "{}", everywhere.1);
    assert!(everywhere.1.contains(&format!("here: generation 1, policy {old}, as asked for")), "{}", everywhere.1);

    // One has the new policy, the other not yet.
    let change = |doorward: &Doorward, from: &str, to: &str| {
        let path = doorward.dir().join("doorward.yaml");
        let yaml = std::fs::read_to_string(&path).unwrap();
        assert!(yaml.contains(from), "{yaml}");
        std::fs::write(&path, yaml.replace(from, to)).unwrap();
    };
    change(&here, "users: [alice]", "users: [alice, bob]");
    let new = digest(&here).await;
    assert_ne!(old, new);
    let (code, told) = within(async {
        loop {
            let (code, told) = status(&new, "1s").await;
            if told.contains("as asked for") {
                return (code, told);
            }
        }
    })
    .await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.ends_with("not in force on every replica yet\n"), "{told}");

    // The other one gets something that it cannot take, while somebody waits.
    let waiting = status(&new, "5m");
    let refused = async {
        let mut other = there;
        // Not before the wait has begun.
        within(async {
            while !here.audit().iter().any(|record| record.to_string().contains("5m")) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        change(&other, "do: allow", "do: alow");
        other.wait_for_log_containing("the configuration was refused").await;
        other
    };
    let ((code, told), there) = tokio::join!(waiting, refused);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("refused at ") && told.contains("/rules/0/do"), "{told}");

    // And then what it is meant to have.
    change(&there, "do: alow", "do: allow");
    change(&there, "users: [alice]", "users: [alice, bob]");
    let (code, told) = status(&new, "30s").await;
    assert_eq!(code, Some(0), "{told}");
}

/// What stands before replicas in a cluster: it sends nothing more to one that is not ready, once it has noticed.
struct Service {
    members: RwLock<Vec<SocketAddr>>,
    sent: AtomicUsize,
}

impl Service {
    /// A request by way of some member.
    async fn send(&self, lines: &[&str], body: &[u8]) -> u16 {
        let members = self.members.read().await;
        let turn = self.sent.fetch_add(1, Ordering::SeqCst);
        let mut raw = Raw::connect(members[turn % members.len()]).await;
        raw.send(request(lines, body)).await;
        raw.answer().await.status
    }

    /// Waits until so many more requests were sent.
    async fn goes_on(&self, more: usize) {
        let sent = || self.sent.load(Ordering::SeqCst);
        let enough = sent() + more;
        within(async {
            while sent() < enough {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_rolling_restart_under_load_fails_no_request_and_loses_no_session() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let settings = format!("{{server: '{}'}}", redis.address());
    let mut replicas = Vec::new();
    for instance in ["zero", "one"] {
        replicas.push(replica_with(instance, &issuer, &upstream, &settings, "drain_accept: 10m, drain: 20m").await);
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
        // Nobody has noticed yet: it goes on serving.
        service.goes_on(40).await;
        service.members.write().await.retain(|member| *member != old.address("public"));
        // Its grace is over.
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
