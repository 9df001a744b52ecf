//! Reloads under load: no reset, no unexpected status, and each request is decided by a single configuration.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;

use crate::{
    fixture::{Change, Fixture},
    harness::{Doorward, Issuer, Raw, Reply, Upstream, folder_with, replace_file, streams::http2_on, until, within},
};

fn configuration(upstream: &Upstream, issuer: &Issuer, groups: &str, rules: &str) -> String {
    format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - {{name: corp, issuer: '{}', audiences: ['https://doorward.test'], kind: human, username: '{{sub}}'}}
upstreams:
  - {{name: cluster, url: '{}', credential: {{bearer: {{file: token}}}}}}
routes:
  - {{name: cluster, kind: kubernetes, hosts: [tekton.test], schemes: [bearer], upstream: cluster}}
grants:
  - {{id: given, who: {{groups: [dev]}}, kubernetes_groups: [{groups}]}}
rules:
{rules}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
log: {{filter: info}}
limits: {{drain_accept: 0, connections_per_address: 5000}}
",
        issuer.url(),
        upstream.url()
    )
}

const ALLOW: &str = "  - {id: dev, who: {groups: [dev]}, do: allow}";

fn folder() -> tempfile::TempDir {
    folder_with(&[("token", "upstream-token")])
}

/// Doorward between an upstream and an issuer whose developers may do everything. `change` edits the configuration,
/// which is returned too.
async fn started(change: impl FnOnce(&str) -> String) -> (Doorward, Upstream, Issuer, String) {
    let (upstream, issuer) = (Upstream::start().await, Issuer::start().await);
    let yaml = configuration(&upstream, &issuer, "'tekton:dev'", ALLOW);
    let doorward = Doorward::start_in(folder(), &change(&yaml)).await;
    doorward.wait_for_keys(&issuer).await;
    (doorward, upstream, issuer, yaml)
}

/// Sends a request for another client, as a proxy does. Returns the client address that the upstream got.
async fn forwarded_for(raw: &mut Raw, upstream: &Upstream, token: &str) -> Vec<String> {
    upstream.take();
    let forwarded = "\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    raw.send(get("/api/v1/pods", token).replace("\r\n\r\n", forwarded)).await;
    assert_eq!(raw.answer().await.status, 200);
    upstream.take()[0].all("x-forwarded-for").iter().map(|value| (*value).to_owned()).collect()
}

/// Swaps the main file.
fn swap(doorward: &Doorward, yaml: &str) {
    replace_file(&doorward.dir().join("doorward.yaml"), yaml);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_lose_nothing() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::start().await;
    // The group and the marker name the same version: a request that saw parts of two would mix them.
    let generation = |number: usize| {
        let rules = format!("  - {{id: 'rule-{number}', who: {{groups: [dev]}}, do: allow}}");
        configuration(&upstream, &issuer, &format!("'group-{number}'"), &rules)
    };
    let mut doorward = Doorward::start_in(folder(), &generation(0)).await;
    doorward.wait_for_keys(&issuer).await;
    let token = issuer.token("alice", &["dev"]);
    let address = doorward.address("public");
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut load = Vec::new();

    // Keep-alive.
    for _ in 0..2 {
        let (stop, served, token) = (stop.clone(), served.clone(), token.clone());
        load.push(tokio::spawn(async move {
            let mut raw = Raw::connect(address).await;
            let mut pace = pace();
            while !stop.load(Ordering::SeqCst) {
                pace.tick().await;
                raw.send(get("/api/v1/pods", &token)).await;
                let answer = raw.answer().await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                served.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    // A new connection for each request.
    let (stop_new, served_new, token_new) = (stop.clone(), served.clone(), token.clone());
    load.push(tokio::spawn(async move {
        let mut pace = pace();
        while !stop_new.load(Ordering::SeqCst) {
            pace.tick().await;
            let mut raw = Raw::connect(address).await;
            raw.send(get("/api/v1/pods", &token_new)).await;
            assert_eq!(raw.answer().await.status, 200);
            served_new.fetch_add(1, Ordering::SeqCst);
        }
    }));
    // HTTP/2, several streams at once.
    let (stop_h2, served_h2, token_h2) = (stop.clone(), served.clone(), token.clone());
    load.push(tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let sender = http2_on(stream).await;
        let mut pace = pace();
        while !stop_h2.load(Ordering::SeqCst) {
            pace.tick().await;
            let requests = (0..8).map(|_| {
                let mut sender = sender.clone();
                let request = http::Request::get("http://tekton.test/api/v1/pods")
                    .header("authorization", format!("Bearer {token_h2}"))
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .unwrap();
                tokio::spawn(async move {
                    let response = sender.send_request(request).await?;
                    let status = response.status();
                    // To the end: a client that drops bodies resets their streams, which has limits of its own.
                    response.into_body().collect().await.map(|_| status)
                })
            });
            for request in requests.collect::<Vec<_>>() {
                assert_eq!(request.await.unwrap().unwrap(), 200);
                served_h2.fetch_add(1, Ordering::SeqCst);
            }
        }
    }));

    for number in 1..=100 {
        swap(&doorward, &generation(number));
        doorward.signal("HUP");
        doorward.wait_for_generation(number as u64 + 1).await;
        if number % 5 == 0 {
            // More than are in flight at once, so that one of them has begun since.
            let enough = served.load(Ordering::SeqCst) + 12;
            until(async || served.load(Ordering::SeqCst) >= enough).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    for task in load {
        within(task).await.unwrap();
    }
    assert!(served.load(Ordering::SeqCst) >= 100);
    doorward.signal("TERM");
    assert!(doorward.ended().await.success());

    // Every request was decided by a single version: its rule and its group have the same number.
    let mut seen = std::collections::BTreeSet::new();
    for record in doorward.audit().iter().filter(|record| record["metadata"]["event_code"] == "request") {
        // The probes by which the harness waits for keys match no rule.
        let Some(rule) = record["authorizations"][0]["policy"]["uid"].as_str() else { continue };
        let group = record.to_string();
        let number = rule.strip_prefix("rule-").unwrap();
        assert!(group.contains(&format!("\"group-{number}\"")), "{record:#}");
        seen.insert(number.to_owned());
    }
    assert!(seen.len() > 10, "the load saw only {} generations", seen.len());
}

/// Leaves the processor to the reloads: their number matters, not that of the requests.
fn pace() -> tokio::time::Interval {
    tokio::time::interval(Duration::from_millis(10))
}

fn get(path: &str, token: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: tekton.test\r\nAuthorization: Bearer {token}\r\n\r\n")
}

#[tokio::test]
async fn a_broken_configuration_is_refused_and_the_old_one_kept() {
    let (mut doorward, _upstream, issuer, good) = started(str::to_owned).await;
    let token = format!("Authorization: Bearer {}", issuer.token("alice", &["dev"]));

    swap(&doorward, &good.change("do: allow", "do: alow"));
    let refusal = doorward.wait_for_log_containing("the configuration was refused, and the old one is kept").await;
    let said = refusal["message"].as_str().unwrap();
    assert!(said.contains("doorward.yaml:") && said.contains("alow") && !said.contains('\n'), "{refusal}");
    assert_eq!(doorward.get("/api/v1/pods", &[&token]).await.status, 200);
    assert!(doorward.metrics().await.contains("reloads_total{outcome=\"refused\"} 1"), "{}", doorward.metrics().await);

    // The counterpart: the same change, written correctly.
    swap(&doorward, &good.change("do: allow", "do: deny"));
    doorward.wait_for_generation(2).await;
    assert_eq!(doorward.get("/api/v1/pods", &[&token]).await.status, 403);
    // Behind whatever was refused, as the trail is written in order: the start is the first.
    doorward.records(2, |record| record["metadata"]["event_code"] == "policy.loaded").await;
    let refused = doorward.audit().iter().filter(|record| record["metadata"]["event_code"] == "policy.refused").count();
    assert_eq!(refused, 1);
}

/// If the authority, address or limit of an issuer's keys changes, they are fetched again.
#[tokio::test]
async fn a_generation_waits_for_keys_that_it_fetches_again() {
    let mut fixture = Fixture::with_faults(|yaml| yaml, |_| Reply::json(200, "{}")).await;
    let alice = fixture.alice();
    let fetches = fixture.a.key_fetches();
    fixture.doorward.change("    username: '{sub}'", "    keys: {max_stale: 2h}\n    username: '{sub}'");
    fixture.doorward.wait_for_generation(2).await;
    assert!(fixture.a.key_fetches() > fetches, "it was taken before its keys were asked for");
    assert_eq!(fixture.api("/api/v1/pods", &[&alice]).await.0.status, 200);
}

#[tokio::test]
async fn a_lost_file_of_denies_widens_nothing() {
    let upstream = Upstream::start().await;
    let issuer = Issuer::start().await;
    let good = configuration(&upstream, &issuer, "'tekton:dev'", ALLOW);
    let dir = folder();
    let (denies, backup) = (dir.path().join("denies.yaml"), dir.path().join("denies.yml.bak"));
    std::fs::write(&denies, "rules: [{id: closed, on: {paths: ['/api/v1/configmaps']}, do: deny}]").unwrap();
    let mut doorward = Doorward::start_in(dir, &format!("policies: [denies.yaml]{good}")).await;
    doorward.wait_for_keys(&issuer).await;
    let token = format!("Authorization: Bearer {}", issuer.token("alice", &["dev"]));
    assert_eq!(doorward.get("/api/v1/configmaps", &[&token]).await.status, 403);

    std::fs::rename(&denies, backup).unwrap();
    let refusal = doorward.wait_for_log_containing("the configuration was refused").await;
    assert!(refusal.to_string().contains("denies.yaml"), "attacks:Z40: {refusal}");
    assert_eq!(doorward.get("/api/v1/configmaps", &[&token]).await.status, 403, "attacks:Z40");
    assert!(upstream.take().iter().all(|seen| !seen.head.contains("configmaps")), "attacks:Z40");

    // The counterpart: the list in the main file shows that it is intended.
    swap(&doorward, &good);
    doorward.wait_for_generation(2).await;
    assert_eq!(doorward.get("/api/v1/configmaps", &[&token]).await.status, 200, "attacks:Z40: the twin");
}

/// A file and its new content; `None` removes it.
type FileChange<'a> = (&'a str, Option<&'a str>);

/// Regression: a refused configuration was compared with the files of the active one, and therefore loaded and refused
/// again and again.
#[tokio::test]
async fn a_refused_configuration_is_loaded_once_whatever_has_changed_of_the_one_in_force() {
    const DENIES: &str = "rules: [{id: closed, on: {paths: ['/api/v1/configmaps']}, do: deny}]";
    const OTHERS: &str = "rules: [{id: closed, on: {paths: ['/api/v1/secrets']}, do: deny}]";
    let (upstream, issuer) = (Upstream::start().await, Issuer::start().await);
    let good = format!("policies: [denies.yaml]{}", configuration(&upstream, &issuer, "'tekton:dev'", ALLOW));
    let renamed = good.change("denies.yaml", "others.yaml").change("groups: [dev]", "group: [dev]");
    let no_yaml = "listeners: [";
    // Each change on its own is refused.
    let rows: [(&str, [FileChange<'_>; 2]); 4] = [
        ("a policy beside a broken main file", [("doorward.yaml", Some(no_yaml)), ("denies.yaml", Some(OTHERS))]),
        ("both broken", [("denies.yaml", Some("rules: [{")), ("doorward.yaml", Some(no_yaml))]),
        ("a policy renamed beside a mistake", [("doorward.yaml", Some(renamed.as_str())), ("denies.yaml", None)]),
        ("all gone", [("doorward.yaml", None), ("denies.yaml", None)]),
    ];
    let is_refusal = |record: &serde_json::Value| record["metadata"]["event_code"] == "policy.refused";
    let good = &good;
    let rows = rows.map(|(what, changes)| async move {
        let dir = folder();
        for (name, policy) in [("denies.yaml", DENIES), ("others.yaml", OTHERS)] {
            std::fs::write(dir.path().join(name), policy).unwrap();
        }
        let doorward = Doorward::start_in(dir, good).await;
        for (refusals, (name, content)) in (1..).zip(changes) {
            match content {
                Some(yaml) => replace_file(&doorward.dir().join(name), yaml),
                None => std::fs::remove_file(doorward.dir().join(name)).unwrap(),
            }
            doorward.records(refusals, is_refusal).await;
        }
        // Processed only when no file differs from those last read.
        doorward.signal("HUP");
        let refused = doorward.records(3, is_refusal).await;
        let causes: Vec<_> = refused.iter().map(|record| record["unmapped"]["cause"].as_str().unwrap()).collect();
        assert_eq!(causes, ["files", "files", "signal"], "{what}");
    });
    join_all(rows).await;
}

/// Which proxies are trusted for the client's address depends on the configuration that decides the request, not on the
/// one with which its connection was opened.
#[tokio::test]
async fn trust_in_a_proxy_ends_with_its_generation_on_connections_that_are_open() {
    let trust = |yaml: &str| {
        yaml.change(
            "address: 127.0.0.1:0}]\nissuers",
            "address: 127.0.0.1:0, trusted_proxies: [127.0.0.0/8]}]\nissuers",
        )
    };
    let (mut doorward, upstream, issuer, strangers) = started(trust).await;
    let trusting = trust(&strangers);
    let token = issuer.token("alice", &["dev"]);
    let mut raw = doorward.raw().await;
    for (generation, yaml, expected) in
        [(1, &trusting, "203.0.113.9"), (2, &strangers, "127.0.0.1"), (3, &trusting, "203.0.113.9")]
    {
        if generation > 1 {
            swap(&doorward, yaml);
            doorward.wait_for_generation(generation).await;
        }
        assert_eq!(forwarded_for(&mut raw, &upstream, &token).await, [expected], "generation {generation}");
    }
}

/// Its socket stays open until a restart, and the proxy in front of it continues to use it.
#[tokio::test]
async fn a_listener_that_is_renamed_trusts_its_proxies_until_the_restart_that_it_takes() {
    let (named, trusting) = ("{name: public, address: 127.0.0.1:0", ", trusted_proxies: [127.0.0.0/8]");
    let trust = |yaml: &str| yaml.change(named, &format!("{named}{trusting}"));
    let (mut doorward, upstream, issuer, strangers) = started(trust).await;
    let token = issuer.token("alice", &["dev"]);
    let mut raw = doorward.raw().await;
    let renamed = strangers.change("name: public", "name: other");
    let renamed_again = strangers.change("name: public", "name: another");
    for (generation, yaml, expected) in [
        (2, &renamed, "203.0.113.9"),
        (3, &renamed_again, "203.0.113.9"),
        // Under its name again, it trusts the proxies that it lists.
        (4, &strangers, "127.0.0.1"),
        (5, &renamed, "127.0.0.1"),
    ] {
        swap(&doorward, yaml);
        doorward.wait_for_generation(generation).await;
        assert_eq!(forwarded_for(&mut raw, &upstream, &token).await, [expected], "generation {generation}");
    }
}

#[tokio::test]
async fn a_secret_that_changes_is_used_without_restart() {
    let (mut doorward, upstream, issuer, _) = started(str::to_owned).await;
    let token = format!("Authorization: Bearer {}", issuer.token("alice", &["dev"]));
    doorward.get("/api/v1/pods", &[&token]).await;
    assert_eq!(upstream.take()[0].one("authorization"), "Bearer upstream-token");

    std::fs::write(doorward.dir().join("token"), "rotated-token\n").unwrap();
    doorward.wait_for_generation(2).await;
    doorward.get("/api/v1/pods", &[&token]).await;
    assert_eq!(upstream.take()[0].one("authorization"), "Bearer rotated-token");
}

/// The kubelet renews a token within the hour, whether or not the configuration is fixed by then.
#[tokio::test]
async fn a_changed_secret_is_used_even_if_the_configuration_is_refused() {
    let (mut doorward, upstream, issuer, good) = started(str::to_owned).await;
    let token = format!("Authorization: Bearer {}", issuer.token("alice", &["dev"]));
    // Not even YAML, so that it does not name the secret's file; and valid except for one thing.
    for (broken, secret) in
        [("listeners: [", "second-token"), (&*good.change("groups: [dev]", "group: [dev]"), "third-token")]
    {
        swap(&doorward, broken);
        doorward.wait_for_log_containing("the configuration was refused").await;
        std::fs::write(doorward.dir().join("token"), secret).unwrap();
        let expected = format!("Bearer {secret}");
        until(async || {
            doorward.get("/api/v1/pods", &[&token]).await;
            upstream.take()[0].one("authorization") == expected
        })
        .await;
    }
    // An unusable secret does not replace the old one.
    std::fs::write(doorward.dir().join("token"), "").unwrap();
    doorward.wait_for_log_containing("cannot be used any more").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&token]).await.status, 200);
    std::fs::write(doorward.dir().join("token"), "fourth-token").unwrap();
    swap(&doorward, &good);
    doorward.wait_for_generation(2).await;
    upstream.take();
    doorward.get("/api/v1/pods", &[&token]).await;
    assert_eq!(upstream.take()[0].one("authorization"), "Bearer fourth-token");
}

#[tokio::test]
async fn a_stream_that_loses_its_permission_is_closed_and_others_continue() {
    let upstream = Upstream::scripted(|_| Reply::Watch(vec![b"{\"type\":\"ADDED\"}\n".to_vec()])).await;
    let issuer = Issuer::start().await;
    let both = "  - {id: dev, who: {groups: [dev]}, do: allow}\n  - {id: ops, who: {groups: [ops]}, do: allow}";
    let doorward = Doorward::start_in(folder(), &configuration(&upstream, &issuer, "'g'", both)).await;
    doorward.wait_for_keys(&issuer).await;
    let mut watches = Vec::new();
    for group in ["dev", "ops"] {
        let mut raw = doorward.raw().await;
        // Closed after its response, so that the end of the stream is visible.
        let watch = get("/api/v1/pods?watch=true", &issuer.token(group, &[group]));
        raw.send(watch.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        assert!(String::from_utf8_lossy(&raw.some().await).contains("200 OK"));
        watches.push(raw);
    }
    swap(&doorward, &configuration(&upstream, &issuer, "'g'", "  - {id: ops, who: {groups: [ops]}, do: allow}"));
    let mut ops = watches.pop().unwrap();
    let mut dev = watches.pop().unwrap();
    // A watch ends cleanly, so that its client opens another, which is refused.
    let rest = dev.rest().await;
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    assert!(tokio::time::timeout(Duration::from_millis(300), ops.rest()).await.is_err());
    let again = doorward
        .get("/api/v1/pods?watch=true", &[&format!("Authorization: Bearer {}", issuer.token("dev", &["dev"]))])
        .await;
    assert_eq!(again.status, 403);
}

/// A user removed from the list must not be able to use it until the next restart.
#[tokio::test]
async fn the_operator_socket_follows_changes_to_its_list_of_users() {
    use std::os::unix::fs::PermissionsExt;

    let (upstream, issuer) = (Upstream::start().await, Issuer::start().await);
    let listed = |users: &str| {
        let socket = format!("admin: {{socket: doorward.sock, socket_users: [{users}], ");
        configuration(&upstream, &issuer, "'tekton:dev'", ALLOW).change("admin: {", &socket)
    };
    let mut doorward = Doorward::start_in(folder(), &listed("65534")).await;
    let path = doorward.dir().join("doorward.sock");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o666);
    swap(&doorward, &listed(""));
    doorward.wait_for_generation(2).await;
    assert_eq!(mode(), 0o600);
}

/// A refusal must not be taken for success, and must stay visible.
#[tokio::test]
async fn a_refused_configuration_is_reported_at_the_reload_and_as_long_as_it_remains() {
    let (upstream, issuer) = (Upstream::start().await, Issuer::start().await);
    let yaml =
        configuration(&upstream, &issuer, "'tekton:dev'", ALLOW).change("admin: {", "admin: {socket: operator.sock, ");
    let doorward = Doorward::start_in(folder(), &yaml).await;
    for (rule, refused) in [("allow", false), ("perhaps", true), ("allow", false)] {
        swap(&doorward, &yaml.change("do: allow", &format!("do: {rule}")));
        let (code, said) = doorward.operator(&["reload", "--why", "test"]).await;
        assert_eq!(code, Some(i32::from(refused)), "{said}");
        assert_eq!(said.contains("was refused") && said.contains("perhaps"), refused, "{said}");
        // The place where it is written, and not the number of a rule among those of all files.
        assert_eq!(said.contains("doorward.yaml:"), refused, "{said}");
        assert_eq!(said.contains("`doorward check` shows all problems"), refused, "{said}");
        let metrics = doorward.metrics().await;
        assert!(metrics.contains(&format!("doorward_config_refused {}\n", u8::from(refused))), "{metrics}");
        assert!(metrics.contains("doorward_component_failed{component=\"configuration\"} 0"), "{metrics}");
        let ready = doorward.admin("/readyz").await;
        let told =
            ready.text().lines().any(|line| line.starts_with("configuration degraded") && line.contains("perhaps"));
        assert_eq!((ready.status, told), (200, refused), "{}", ready.text());
        let (_, status) = doorward.operator(&["status", "--why", "test"]).await;
        assert_eq!(status.contains("an older one is in use"), refused, "{status}");
    }
}

/// A warning before the error looks like the reason, and would be fixed without effect.
#[tokio::test]
async fn warnings_of_a_refused_configuration_are_not_reported_as_reasons() {
    let (upstream, issuer) = (Upstream::start().await, Issuer::start().await);
    let star = "grants:\n  - {id: star, who: {groups: ['star*']}, kubernetes_groups: ['tekton:dev']}\n";
    let yaml = configuration(&upstream, &issuer, "'tekton:dev'", ALLOW)
        .change("admin: {", "admin: {socket: operator.sock, ")
        .change("grants:\n", star);
    let doorward = Doorward::start_in(folder(), &yaml).await;
    swap(&doorward, &yaml.change("do: allow", "on: {routes: [nowhere]}, do: allow"));
    let (code, said) = doorward.operator(&["reload", "--why", "test"]).await;
    assert_eq!((code, said.contains("nowhere"), said.contains("star*")), (Some(1), true, false), "{said}");
    let ready = doorward.admin("/readyz").await.text();
    let told = ready.lines().find(|line| line.starts_with("configuration degraded")).unwrap_or_default();
    assert!(told.contains("nowhere") && !told.contains("more)"), "{ready}");
    let of_kind = |code: &str| {
        let trail = doorward.audit().into_iter();
        let lines: Vec<String> =
            trail.filter(|record| record["metadata"]["event_code"] == code).map(|record| record.to_string()).collect();
        lines.join("\n")
    };
    let refused = of_kind("policy.refused");
    assert!(refused.contains("nowhere") && !refused.contains("star*"), "{refused}");
    assert!(of_kind("policy.loaded").contains("star*"), "where it was taken, a warning is told");
    swap(&doorward, &yaml);
    let (code, said) = doorward.operator(&["reload", "--why", "test"]).await;
    assert_eq!((code, said.contains("star*")), (Some(0), true), "also to whoever asks for the reload: {said}");
}

/// An operator with a full disk sets `continue` to keep working, or `refuse` when an auditor demands it. The trail's
/// other settings stay, and whoever changed them is told.
#[tokio::test]
async fn a_reload_changes_when_full_and_reports_that_the_rest_needs_a_restart() {
    let (upstream, issuer) = (Upstream::start().await, Issuer::start().await);
    let yaml =
        configuration(&upstream, &issuer, "'tekton:dev'", ALLOW).change("admin: {", "admin: {socket: operator.sock, ");
    let yaml = |audit: &str| yaml.change("audit: {", &format!("audit: {{{audit}, "));
    let dir = folder();
    let key = |byte: u8| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [byte; 32]);
    std::fs::write(dir.path().join("chain.key"), key(1)).unwrap();
    let keyed = "chain_key: {file: chain.key}, when_full:";
    let mut doorward = Doorward::start_with_faults(dir, &yaml(&format!("{keyed} refuse"))).await;
    doorward.wait_for_keys(&issuer).await;
    let token = format!("Authorization: Bearer {}", issuer.token("alice", &["dev"]));
    doorward.break_trail(true);
    for (generation, when_full, status) in [(1, "refuse", 503), (2, "continue", 200), (3, "refuse", 503)] {
        if generation > 1 {
            swap(&doorward, &yaml(&format!("{keyed} {when_full}")));
            doorward.wait_for_generation(generation).await;
        }
        until(async || doorward.get("/api/v1/pods", &[&token]).await.status == status).await;
        let (code, said) = doorward.operator(&["status", "--why", "the disk"]).await;
        assert_eq!(code, Some(i32::from(when_full == "refuse")), "{said}");
        let told = said.contains("nothing was done: the audit trail") && said.contains("`audit.when_full`");
        assert_eq!(told, when_full == "refuse", "{said}");
    }
    doorward.break_trail(false);
    assert!(doorward.log().iter().all(|line| !line.to_string().contains("until a restart")), "{:#?}", doorward.log());

    swap(&doorward, &yaml(&format!("queue: 99, {keyed} refuse")));
    doorward.wait_for_log_containing("/audit/queue stays 8192 until a restart makes it 99").await;
    std::fs::write(doorward.dir().join("chain.key"), key(2)).unwrap();
    doorward.wait_for_log_containing("/audit/chain_key stays the former content of chain.key until a restart").await;
}

/// The shutdown would wait for what the reload waits for, and the kubelet kills after a while.
#[tokio::test]
async fn a_signal_is_heard_while_a_reload_waits_for_an_api_server() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = server.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while stream.read_buf(&mut seen).await.is_ok_and(|read| read > 0) {
                    if String::from_utf8_lossy(&seen).contains("tekton:more") {
                        let _ = asked.send(());
                    }
                }
            });
        }
    });
    let (issuer, upstream) = (Issuer::start().await, Upstream::scripted(|_| Reply::json(200, "{}")).await);
    let yaml = |groups| configuration(&upstream, &issuer, groups, ALLOW).replace(&upstream.url(), &url);
    let mut doorward = Doorward::start_in(folder(), &yaml("tekton:dev")).await;
    swap(&doorward, &yaml("tekton:more"));
    within(was_asked.recv()).await.unwrap();
    let signalled = std::time::Instant::now();
    doorward.signal("TERM");
    within(doorward.ended()).await;
    assert!(signalled.elapsed() < Duration::from_secs(4), "{:?}", signalled.elapsed());
}
