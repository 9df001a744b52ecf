//! Emergency access while the identity provider is down: listed certificates, on a route of their own, for a limited
//! time, and with alarms.

use doorward::clock::Timestamp;
use serde_json::Value;

use crate::{
    fixture::Change,
    harness::{
        Answer, Authority, Doorward, Issuer, Pair, Raw, Upstream, connect_tls, folder_with, now, streams::streaming,
        until,
    },
};

const PATH: &str = "/api/v1/namespaces/ci/pods";

fn configuration(issuer: &Issuer, upstream: &Upstream, certificate: &Pair, until: u64) -> String {
    let until = Timestamp::from_secs(i64::try_from(until).unwrap());
    format!(
        "
listeners:
  - {{name: public, address: 127.0.0.1:0}}
  - {{name: tls, address: 127.0.0.1:0, tls: {{certificates: [{{chain: server.pem, key: server.key}}], client_ca: ca.pem}}}}
issuers:
  - {{name: a, issuer: '{issuer}', audiences: ['https://doorward.test'], username: '{{sub}}', kind: human}}
upstreams:
  - {{name: cluster, url: '{upstream}', credential: {{bearer: {{file: token}}}}}}
break_glass:
  until: '{until}'
  certificates: [{{name: alice, sha256: '{certificate}', groups: [sre]}}]
routes:
  - {{name: glass, kind: kubernetes, hosts: [glass.test], schemes: [break_glass], upstream: cluster}}
  - {{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}}
grants:
  - {{id: sre, who: {{issuers: [break-glass], groups: [sre]}}, kubernetes_groups: [admins]}}
rules:
  - {{id: sre, who: {{issuers: [a, break-glass], groups: [sre]}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0, socket: operator.sock}}
limits: {{drain_accept: 0}}
",
        issuer = issuer.url(),
        upstream = upstream.url(),
        certificate = certificate.sha256(),
    )
}

struct World {
    doorward: Doorward,
    upstream: Upstream,
    authority: Authority,
    alice: Pair,
    /// From the same authority and with the same name, but not listed in the configuration.
    other: Pair,
    yaml: String,
    issuer: Issuer,
}

fn folder(authority: &Authority) -> tempfile::TempDir {
    let dir = folder_with(&[("ca.pem", &authority.pem()), ("token", "upstream-token")]);
    authority.issue(&["glass.test", "api.test"]).write(dir.path(), "server");
    dir
}

async fn world() -> World {
    let (issuer, upstream, authority) = (Issuer::start().await, Upstream::scripted(streaming).await, Authority::new());
    let [alice, other] = [(); 2].map(|()| authority.issue(&["alice"]));
    let yaml = configuration(&issuer, &upstream, &alice, now() + 1800);
    let doorward = Doorward::start_with_faults(folder(&authority), &yaml).await;
    World { doorward, upstream, authority, alice, other, yaml, issuer }
}

impl World {
    async fn get(&self, host: &str, certificate: Option<&Pair>) -> Answer {
        let mut raw = Raw::tls(self.doorward.address("tls"), &self.authority, certificate, host).await;
        raw.send(format!("GET {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        raw.answer().await
    }

    async fn watch(&self) -> Raw {
        let (address, alice) = (self.doorward.address("tls"), Some(&self.alice));
        let mut watch = Raw::tls(address, &self.authority, alice, "glass.test").await;
        watch.send(format!("GET {PATH}?watch=true HTTP/1.1\r\nHost: glass.test\r\nConnection: close\r\n\r\n")).await;
        assert!(String::from_utf8_lossy(&watch.some().await).starts_with("HTTP/1.1 200"));
        watch
    }

    /// The alarms, once there are `count`.
    async fn alarms(&self, count: usize) -> Vec<Value> {
        self.doorward.records(count, |record| record["metadata"]["event_code"] == "alarm").await
    }
}

#[tokio::test]
async fn named_certificates_get_in_on_their_route_and_an_alarm_says_so() {
    let mut world = world().await;
    let answer = world.get("glass.test", Some(&world.alice)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = world.upstream.only();
    assert_eq!((seen.one("impersonate-user"), seen.all("impersonate-group")), ("break-glass:alice", vec!["admins"]));

    // With a token the same person has another name, and no token gives the break-glass name.
    world.doorward.wait_for_keys_at("api.test", &world.issuer).await;
    let _ = world.upstream.take();
    for (subject, status) in [("alice", 200), ("break-glass:alice", 403)] {
        let token = format!("Authorization: Bearer {}", world.issuer.token(subject, &["sre"]));
        let answer = world.doorward.get(PATH, &["Host: api.test", &token]).await;
        assert_eq!(answer.status, status, "{subject}: {}", answer.text());
        let seen = world.upstream.take();
        let names: Vec<&str> = seen.iter().map(|request| request.one("impersonate-user")).collect();
        assert_eq!(names, if status == 200 { vec!["alice"] } else { vec![] }, "{subject}");
    }

    for (what, host, certificate) in [
        ("a certificate that is not named", "glass.test", Some(&world.other)),
        ("none", "glass.test", None),
        ("another route", "api.test", Some(&world.alice)),
    ] {
        let _ = world.upstream.take();
        let answer = world.get(host, certificate).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        assert!(world.upstream.take().is_empty(), "{what}");
    }
    // Without TLS there is no certificate.
    assert_eq!(world.doorward.get(PATH, &["Host: glass.test"]).await.status, 401);
    // From another authority: the connection itself fails.
    let stranger = Authority::new().issue(&["alice"]);
    let config = world.authority.client(&[], Some(&stranger));
    if let Ok(stream) = connect_tls(world.doorward.address("tls"), &config, "glass.test").await {
        let mut raw = Raw::over(stream);
        raw.send(format!("GET {PATH} HTTP/1.1\r\nHost: glass.test\r\n\r\n")).await;
        assert_eq!(raw.rest().await, b"");
    }

    // The trail has each request with its certificate, and that break-glass is open.
    let alarm = world.alarms(1).await[0].to_string();
    assert!(alarm.contains("break_glass") && alarm.contains("alice"), "{alarm}");
    let print = world.alice.sha256();
    let served = |record: &Value| record.to_string().contains(&print) && record["http_response"]["code"] == 200;
    let requests = world.doorward.records(1, served).await;
    assert_eq!(requests.len(), 1);
    // The name that the test authority puts into every certificate.
    assert_eq!(requests[0]["tls"]["certificate"]["subject"], "CN=rcgen self signed cert");
    world.doorward.wait_for_log("component raises an alarm").await;
    assert!(world.doorward.metrics().await.contains("doorward_break_glass_open 1"));

    // Its holder can be locked out like anybody else.
    let revoke = ["revoke", "--issuer", "break-glass", "--subject", "alice", "--why", "the card was lost"];
    let (code, said) = world.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(world.get("glass.test", Some(&world.alice)).await.status, 401);
    let names_her = |line: &Value| line["status_code"] == "token_revoked" && line["actor"]["user"]["uid"] == "alice";
    world.doorward.record(names_her).await;
}

/// Other requests may go unrecorded if configured so; every break-glass request is recorded or refused.
#[tokio::test]
async fn nothing_passes_unrecorded_even_if_the_trail_may_lose_records() {
    let mut world = world().await;
    world.doorward.change("audit: {", "audit: {when_full: continue, ");
    world.doorward.wait_for_generation(2).await;
    world.doorward.wait_for_keys_at("api.test", &world.issuer).await;
    assert_eq!(world.get("glass.test", Some(&world.alice)).await.status, 200);
    let decided = |record: &Value| record["metadata"]["event_code"] == "request.decided";
    assert!(world.doorward.audit().iter().any(decided), "also what only reads is there before it is sent");
    let _ = world.upstream.take();

    world.doorward.break_trail(true);
    // The first request finds out that writing fails; the others are refused because of it.
    for _ in 0..2 {
        let refused = world.get("glass.test", Some(&world.alice)).await;
        assert_eq!((refused.status, refused.reason()), (503, "audit_unavailable".to_owned()), "{}", refused.text());
        assert!(world.upstream.take().is_empty());
    }
    let token = format!("Authorization: Bearer {}", world.issuer.token("alice", &["sre"]));
    assert_eq!(world.doorward.get(PATH, &["Host: api.test", &token]).await.status, 200, "the twin");
    let _ = world.upstream.take();
    world.doorward.break_trail(false);
    until(async || world.get("glass.test", Some(&world.alice)).await.status == 200).await;
}

/// The stream kept the rights of the old groups until break-glass closed.
#[tokio::test]
async fn a_stream_ends_when_a_reload_takes_the_groups_of_its_certificate() {
    let world = world().await;
    let mut watch = world.watch().await;
    let regrouped = world.yaml.change("groups: [sre]}]", "groups: [readers]}]");
    std::fs::write(world.doorward.dir().join("doorward.yaml"), regrouped).unwrap();
    let rest = watch.rest().await;
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(world.get("glass.test", Some(&world.alice)).await.status, 403);
    // This happens before the new configuration admits anybody, not some time later.
    world.alarms(2).await;
    let is_told =
        |record: &Value| ["alarm", "policy.loaded"].contains(&record["metadata"]["event_code"].as_str().unwrap_or(""));
    let told: Vec<Value> = world.doorward.audit().into_iter().filter(is_told).collect();
    assert!(told[2].to_string().contains("alice (readers, "), "{told:#?}");
}

#[tokio::test]
async fn when_break_glass_expires_its_route_and_open_streams_close() {
    let world = world().await;
    let mut watch = world.watch().await;
    assert_eq!(world.get("glass.test", Some(&world.alice)).await.status, 200);
    world.doorward.set_clock_ahead(1801);
    let rest = watch.rest().await;
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));
    let answer = world.get("glass.test", Some(&world.alice)).await;
    assert_eq!((answer.status, answer.reason().as_str()), (401, "token_expired"), "{}", answer.text());
    world.doorward.until_metrics_say("doorward_break_glass_open 0").await;
    let alarms = world.alarms(2).await;
    assert!(alarms[1].to_string().contains("closed"), "{alarms:#?}");
}

#[tokio::test]
async fn removing_the_section_closes_break_glass_at_once_and_it_is_open_an_hour_at_most() {
    let mut world = world().await;
    // Only the section is removed; route, grant and rule stay.
    let closed = {
        let (head, _) = world.yaml.split_once("break_glass:\n").unwrap();
        let (_, tail) = world.yaml.split_once("routes:\n").unwrap();
        format!("{head}routes:\n{tail}")
    };
    let check = async |yaml: &str| {
        std::fs::write(world.doorward.dir().join("candidate.yaml"), yaml).unwrap();
        world.doorward.told(&["check", "candidate.yaml"]).await
    };
    let (code, said) = check(&closed).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("so this route admits nobody") && said.contains("nobody comes from `break-glass`"), "{said}");
    let (code, said) = check(&closed.change("issuers: [a, break-glass]", "issuers: [a, break-glas]")).await;
    assert_eq!(code, Some(64), "{said}");
    // Prepared in advance: nothing to report.
    let (code, said) = check(&configuration(&world.issuer, &world.upstream, &world.alice, now() - 60)).await;
    assert_eq!((code, said.contains("warning")), (Some(0), false), "{said}");
    let far = configuration(&world.issuer, &world.upstream, &world.alice, now() + 3700);
    let (code, said) = check(&far).await;
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("more than an hour"), "{said}");
    let (code, said) = check(&world.yaml.change("schemes: [break_glass]", "schemes: [break_glass, bearer]")).await;
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("a route of its own"), "{said}");
    let (code, said) = check(&world.yaml).await;
    assert_eq!(code, Some(0), "the twin: {said}");

    assert_eq!(world.get("glass.test", Some(&world.alice)).await.status, 200);
    let mut watch = world.watch().await;
    std::fs::write(world.doorward.dir().join("doorward.yaml"), closed).unwrap();
    world.doorward.wait_for_generation(2).await;
    let answer = world.get("glass.test", Some(&world.alice)).await;
    assert_eq!((answer.status, answer.reason().as_str()), (401, "credential_malformed"), "{}", answer.text());
    let rest = watch.rest().await;
    assert!(rest.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&rest));

    // Prepared again: only the log says that it is closed.
    let prepared = configuration(&world.issuer, &world.upstream, &world.alice, now() - 60);
    std::fs::write(world.doorward.dir().join("doorward.yaml"), prepared).unwrap();
    world.doorward.wait_for_log("break-glass is closed: its `until` has passed").await;
}
