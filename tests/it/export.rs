//! Audit exports: the receivers get every line, in order, despite any fault on the way.

use std::{
    io::ErrorKind,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Authority, Collector, CollectorAnswer, Doorward, Pair, Reply, SyslogServer, checked, folder_with, found,
        free_port, until,
    },
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

/// The lines of the trail's file.
fn written(doorward: &Doorward) -> Vec<String> {
    // The file is missing for a moment while a full one is rotated.
    let end = Instant::now() + Duration::from_secs(30);
    let text = loop {
        match std::fs::read_to_string(doorward.audit_path()) {
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < end => std::thread::yield_now(),
            text => break text.unwrap(),
        }
    };
    // The last line may still be in the process of being written.
    let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
    whole.lines().map(str::to_owned).collect()
}

/// Whether a receiver has the whole trail from its first line on, as verified by the program itself.
async fn assert_whole(doorward: &Doorward, lines: &[String]) {
    std::fs::write(doorward.dir().join("received.jsonl"), lines.join("\n") + "\n").unwrap();
    let (code, said) = doorward.verify("received.jsonl").await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("intact\n"), "from the first line on: {said}");
}

async fn start(export: &str) -> Fixture {
    start_with(export, "").await
}

/// With an export, and further settings of the file sink.
async fn start_with(export: &str, file: &str) -> Fixture {
    let (export, file) = (export.to_owned(), file.to_owned());
    let change = move |yaml: String| {
        yaml.change("{path: audit.jsonl}", &format!("{{path: audit.jsonl{file}}}"))
            .change("audit: {", &format!("audit: {{export: [{export}], "))
    };
    Fixture::with(change, |_| Reply::json(200, "{}")).await
}

fn syslog(server: &SyslogServer) -> String {
    format!("{{name: siem, syslog: {{address: '{}'}}}}", server.address)
}

async fn wait_for_metric(doorward: &Doorward, name: &str, reached: impl Fn(u64) -> bool) {
    until(async || reached(doorward.counter(name).await)).await;
}

/// Waits until the trail has `lines` lines: on a busy machine it lags far behind the requests.
async fn has_written(doorward: &Doorward, lines: u64) {
    wait_for_metric(doorward, "doorward_audit_records_written_total", |written| written >= lines).await;
}

pub fn server_of(pair: &Pair, clients: &Authority) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    for certificate in rustls_pki_types::CertificateDer::pem_slice_iter(clients.pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(vec![pair.der()], key).unwrap()
}

pub fn write_clients(folder: &Path, authority: &Authority) {
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    authority.issue(&["doorward"]).write(folder, "client");
}

#[tokio::test]
async fn a_syslog_server_has_the_whole_trail_over_tcp_and_tls() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    write_clients(folder.path(), &authority);
    for is_tls in [false, true] {
        let tls = is_tls.then(|| server_of(&authority.issue(&["127.0.0.1"]), &authority));
        let server = SyslogServer::start(tls).await;
        let dir = folder.path().display();
        let tls = match is_tls {
            true => {
                format!(", tls: {{ca: {dir}/ca.pem, certificate: {{chain: {dir}/client.pem, key: {dir}/client.key}}}}")
            }
            false => String::new(),
        };
        let export = format!("{{name: siem, syslog: {{address: '{}'{tls}}}}}", server.address);
        let mut fixture = start(&export).await;
        for _ in 0..5 {
            assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
        }
        assert_eq!(fixture.api(PATH, &[&bearer(&fixture.a.token("carol", &["guests"]))]).await.0.status, 403);
        wait_for_metric(&fixture.doorward, "doorward_audit_export_lines_total{export=\"siem\"}", |lines| lines > 5)
            .await;
        let success = "doorward_audit_export_last_success_timestamp_seconds{export=\"siem\"}";
        wait_for_metric(&fixture.doorward, success, |at| at > 1_600_000_000).await;
        fixture.doorward.signal("TERM");
        assert!(fixture.doorward.ended().await.success());
        // The end of the trail has arrived too, and nothing arrived twice.
        let lines = written(&fixture.doorward);
        server.arrived.wait_for(&lines).await;
        assert_eq!(server.arrived.all(), lines);
        assert_whole(&fixture.doorward, &lines).await;
        let last = lines.len();
        let heads = server.heads();
        let denied = lines.iter().position(|line| line.contains("carol")).unwrap();
        assert!(heads[denied].starts_with("<109>1 2"), "{}", heads[denied]);
        let checkpoint = &heads[last - 1];
        let end = format!(" doorward - trail.checkpoint [meta sequenceId=\"{last}\"] ");
        assert!(checkpoint.starts_with("<110>1 2") && checkpoint.ends_with(&end), "{checkpoint}");
        // After a clean shutdown, nothing is sent again.
        let mut doorward = fixture.doorward.kill_and_restart().await;
        doorward.signal("TERM");
        assert!(doorward.ended().await.success());
        let lines = written(&doorward);
        server.arrived.wait_for(&lines).await;
        assert_eq!(server.arrived.all(), lines);
    }
}

#[tokio::test]
async fn an_impostor_of_the_collector_does_not_get_the_trail() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    write_clients(folder.path(), &trusted);
    let dir = folder.path().display();
    for pair in [other.issue(&["127.0.0.1"]), trusted.issue(&["siem.test"])] {
        let server = SyslogServer::start(Some(server_of(&pair, &trusted))).await;
        let tls = format!("ca: {dir}/ca.pem, certificate: {{chain: {dir}/client.pem, key: {dir}/client.key}}");
        let export = format!("{{name: siem, syslog: {{address: '{}', tls: {{{tls}}}}}}}", server.address);
        let mut fixture = start(&export).await;
        let failures = "doorward_audit_export_failures_total{export=\"siem\",cause=\"unreachable\"}";
        wait_for_metric(&fixture.doorward, failures, |failures| failures > 1).await;
        fixture.doorward.wait_for_log_containing("cannot be sent: invalid peer certificate").await;
        assert_eq!(server.arrived.all(), Vec::<String>::new());
    }
}

/// In TLS 1.3 the server checks the client certificate last: by then the client's handshake is complete and lines may
/// have been sent.
#[tokio::test]
async fn a_server_that_refuses_us_after_the_handshake_never_counts_as_reached() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    write_clients(folder.path(), &authority);
    let server = SyslogServer::start(Some(server_of(&authority.issue(&["127.0.0.1"]), &authority))).await;
    let tls = format!("tls: {{ca: {}/ca.pem}}", folder.path().display());
    let fixture = start(&format!("{{name: siem, syslog: {{address: '{}', {tls}}}}}", server.address)).await;
    let failures = "doorward_audit_export_failures_total{export=\"siem\",cause=\"connection\"}";
    wait_for_metric(&fixture.doorward, failures, |failures| failures > 2).await;
    let never = "doorward_audit_export_last_success_timestamp_seconds{export=\"siem\"} 0\n";
    assert!(fixture.doorward.metrics().await.contains(never));
    let is_well = |line: &Value| line["message"] == "component is healthy" && line["component"] == "audit-export/siem";
    assert_eq!(fixture.doorward.log().into_iter().find(is_well), None);
    assert_eq!(server.arrived.all(), Vec::<String>::new());
}

#[tokio::test]
async fn an_outage_of_the_receiver_and_a_crash_leave_no_gap() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let export = format!("{{name: siem, syslog: {{address: '{address}'}}}}");
    let fixture = start_with(&export, ", max_size: 64KiB, keep: 1").await;
    let alice = fixture.alice();
    // There are more full files than the limit, and all of them are still needed.
    let files = || {
        let entries = std::fs::read_dir(fixture.doorward.dir()).unwrap().filter_map(Result::ok);
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("audit.jsonl.")).count()
    };
    while files() < 3 {
        assert_eq!(fixture.api(PATH, &[&alice]).await.0.status, 200);
    }
    wait_for_metric(
        &fixture.doorward,
        "doorward_audit_export_failures_total{export=\"siem\",cause=\"unreachable\"}",
        |failures| failures > 0,
    )
    .await;
    let report = fixture.doorward.admin("/readyz").await;
    assert_eq!(report.status, 200, "one that is away stops nobody: {}", report.text());
    let Fixture { doorward, a, upstream, .. } = fixture;
    let doorward = doorward.kill_and_restart().await;
    let server = SyslogServer::start_at(address, None).await;
    doorward.wait_for_keys_at("api.test", &a).await;
    server.arrived.wait_for(&written(&doorward)).await;
    // Killed both while it sends and after it has sent.
    let mut doorward = doorward;
    for _ in 0..3 {
        for _ in 0..20 {
            let answer = doorward.get(PATH, &["Host: api.test", &bearer(&a.token("alice", &["dev"]))]).await;
            assert_eq!(answer.status, 200);
        }
        doorward = doorward.kill_and_restart().await;
        doorward.wait_for_keys_at("api.test", &a).await;
    }
    doorward.signal("TERM");
    assert!(doorward.ended().await.success());
    server.arrived.wait_for(&written(&doorward)).await;
    assert_whole(&doorward, &server.arrived.once()).await;
    drop(upstream);
}

/// A user agent that makes a record long.
fn long() -> String {
    format!("User-Agent: {}", "x".repeat(250))
}

#[tokio::test]
async fn a_receiver_that_stops_reading_stops_requests_if_nothing_may_be_lost() {
    let server = SyslogServer::start(None).await;
    let export = syslog(&server).change("}}", "}, max_behind: 1MiB}");
    let mut fixture = start(&export).await;
    let alice = fixture.alice();
    server.arrived.wait_for(&written(&fixture.doorward)).await;
    server.read(false);
    let mut last = 200;
    for requests in 0..6000 {
        if requests % 50 == 0 {
            has_written(&fixture.doorward, requests).await;
        }
        let (answer, seen) = fixture.api(PATH, &[&alice, &long()]).await;
        last = answer.status;
        if last != 200 {
            assert_eq!(answer.reason(), "audit_unavailable", "{}", answer.text());
            assert!(seen.is_empty(), "what could be lost to the receiver does not happen");
            break;
        }
    }
    assert_eq!(last, 503);
    until(async || fixture.doorward.admin("/readyz").await.status != 200).await;
    assert!(fixture.doorward.counter("doorward_audit_export_behind_bytes{export=\"siem\"}").await > 1 << 20);
    // It reads again: the export recovers by itself, and nothing was lost.
    server.read(true);
    until(async || fixture.api(PATH, &[&alice]).await.0.status == 200).await;
    fixture.doorward.signal("TERM");
    assert!(fixture.doorward.ended().await.success());
    server.arrived.wait_for(&written(&fixture.doorward)).await;
    assert_whole(&fixture.doorward, &server.arrived.once()).await;
}

#[tokio::test]
async fn a_receiver_that_stops_reading_loses_lines_if_requests_matter_more() {
    for is_cut in [false, true] {
        let server = SyslogServer::start(None).await;
        let export = syslog(&server).change("}}", "}, when_behind: continue}");
        let fixture = start_with(&export, ", max_size: 64KiB, keep: 1").await;
        let alice = fixture.alice();
        let lost = "doorward_audit_export_lost_total{export=\"siem\"}";
        server.read(false);
        let mut requests = 0;
        // If a file is removed while it is read, up to a batch of lines may be counted as lost although they arrive.
        while fixture.doorward.counter(lost).await <= 512 {
            for _ in 0..50 {
                assert_eq!(fixture.api(PATH, &[&alice, &long()]).await.0.status, 200);
            }
            requests += 50;
            assert!(requests < 6000, "no line was lost");
            // Otherwise lines that are still to be written would rotate files away once the receiver reads.
            has_written(&fixture.doorward, requests).await;
        }
        if is_cut {
            // The lines in flight are lost too, and so are their files.
            server.cut();
            let failures = "doorward_audit_export_failures_total{export=\"siem\",cause=\"connection\"}";
            wait_for_metric(&fixture.doorward, failures, |failures| failures > 0).await;
        }
        server.read(true);
        assert_eq!(fixture.api(&format!("{PATH}/the-last"), &[&alice]).await.0.status, 200);
        let the_last = found(async || {
            let files = std::fs::read_dir(fixture.doorward.dir()).unwrap().map(|entry| entry.unwrap().path());
            let files = files.filter(|path| path.to_string_lossy().contains("/audit.jsonl"));
            // One may just be being rotated.
            let text: String = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
            text.split_inclusive('\n')
                .find(|line| line.contains("/the-last") && line.ends_with('\n'))
                .map(str::to_owned)
        })
        .await;
        server.arrived.wait_for(&[the_last.trim_end().to_owned()]).await;
        let mut numbers: Vec<u64> = server
            .arrived
            .once()
            .iter()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap())
            .collect();
        numbers.sort_unstable();
        let last = numbers[numbers.len() - 1];
        let missing = last - numbers.len() as u64;
        // Lines that may not have arrived are counted as lost, so the count may be too high but never too low.
        let counted = fixture.doorward.counter(lost).await;
        assert!(
            missing > 0 && (missing..last).contains(&counted),
            "cut: {is_cut}: {missing} are missing, {counted} counted"
        );
    }
}

#[tokio::test]
async fn a_collector_has_the_whole_trail_whatever_it_answers() {
    let collector = Collector::start().await;
    let busy = |retry_after| CollectorAnswer { status: 503, retry_after, body: "busy", takes: false };
    let large = CollectorAnswer { status: 413, retry_after: None, body: "", takes: false };
    let partial = CollectorAnswer {
        body: r#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}"#,
        ..CollectorAnswer::OK
    };
    collector.answers([busy(Some("1")), busy(None), large, partial]);
    let dir = folder_with(&[("authorization", "Bearer hunter2")]);
    let export = format!(
        "{{name: otel, otlp: {{endpoint: 'http://{}', headers: {{authorization: {{file: {}/authorization}}}}}}}}",
        collector.address,
        dir.path().display()
    );
    let mut fixture = start(&export).await;
    for _ in 0..5 {
        assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
    }
    collector.arrived.wait_for(&written(&fixture.doorward)).await;
    for (cause, failures) in [("busy", 2), ("too_large", 1)] {
        let name = format!("doorward_audit_export_failures_total{{export=\"otel\",cause=\"{cause}\"}}");
        assert_eq!(fixture.doorward.counter(&name).await, failures, "{cause}");
    }
    assert_eq!(fixture.doorward.counter("doorward_audit_export_rejected_total{export=\"otel\"}").await, 2);
    let line = fixture.doorward.wait_for_log_containing("the receiver rejected lines of the audit trail").await;
    assert_eq!((line["lines"].as_u64(), line["why"].as_str()), (Some(2), Some("too old")), "{line}");
    let (headers, body) = collector.calls()[0].clone();
    assert_eq!(headers["authorization"], "Bearer hunter2");
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["accept-encoding"], "identity", "a compressed response would count as none of OTLP");
    assert_eq!(body["resourceLogs"][0]["resource"]["attributes"][0]["value"]["stringValue"], "doorward");
    assert!(!format!("{:?}", fixture.doorward.log()).contains("hunter2"));
    fixture.doorward.signal("TERM");
    assert!(fixture.doorward.ended().await.success());
    assert_eq!(collector.arrived.all(), written(&fixture.doorward), "each line once, the end too");
    assert_whole(&fixture.doorward, &collector.arrived.all()).await;
}

#[tokio::test]
async fn a_collector_that_refuses_is_reported_and_gets_everything_once_it_accepts() {
    let collector = Collector::start().await;
    collector.always(CollectorAnswer { status: 400, retry_after: None, body: "no such tenant", takes: false });
    let export = format!("{{name: otel, otlp: {{endpoint: 'http://{}/v1/logs'}}}}", collector.address);
    let mut fixture = start(&export).await;
    let line = fixture.doorward.wait_for_log_containing("no such tenant").await;
    assert!(line.to_string().contains("audit-export/otel"), "{line}");
    for _ in 0..5 {
        assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
    }
    let refused = "doorward_audit_export_failures_total{export=\"otel\",cause=\"refused\"}";
    assert_eq!(fixture.doorward.counter(refused).await, 1);
    assert!(fixture.doorward.metrics().await.contains("doorward_audit_export_lines_total{export=\"otel\"} 0\n"));
    assert_eq!(collector.calls().len(), 1, "it is not asked all the time");
    collector.always(CollectorAnswer::OK);
    let mut doorward = fixture.doorward.kill_and_restart().await;
    doorward.signal("TERM");
    assert!(doorward.ended().await.success());
    assert_whole(&doorward, &collector.arrived.all()).await;
    assert_eq!(collector.arrived.all(), written(&doorward));
}

#[tokio::test]
async fn a_new_address_and_a_new_secret_are_used_without_a_restart() {
    let (first, second) = (Collector::start().await, Collector::start().await);
    let export = format!("{{name: otel, otlp: {{endpoint: 'http://{}'}}}}", first.address);
    let mut fixture = start(&export).await;
    first.arrived.wait_for(&written(&fixture.doorward)).await;
    let config = fixture.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, yaml.change(&first.address.to_string(), &second.address.to_string())).unwrap();
    fixture.doorward.wait_for_generation(2).await;
    assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
    fixture.doorward.signal("TERM");
    assert!(fixture.doorward.ended().await.success());
    let all = [first.arrived.all(), second.arrived.all()].concat();
    assert!(!second.arrived.all().is_empty());
    assert_whole(&fixture.doorward, &all).await;
}

#[tokio::test]
async fn a_connection_survives_a_reload_and_is_closed_cleanly_if_the_server_changed() {
    let (first, second) = (SyslogServer::start(None).await, SyslogServer::start(None).await);
    let mut fixture = start(&syslog(&first)).await;
    first.arrived.wait_for(&written(&fixture.doorward)).await;
    let config = fixture.doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, yaml.clone() + "\nsessions: {idle: 1h}\n").unwrap();
    fixture.doorward.wait_for_generation(2).await;
    assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
    first.arrived.wait_for(&written(&fixture.doorward)).await;
    assert_eq!(first.connections(), 1, "nothing about the receiver has changed");
    std::fs::write(&config, yaml.change(&first.address.to_string(), &second.address.to_string())).unwrap();
    fixture.doorward.wait_for_generation(3).await;
    assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
    fixture.doorward.signal("TERM");
    assert!(fixture.doorward.ended().await.success());
    let lines = written(&fixture.doorward);
    second.arrived.wait_for(&lines[lines.len() - 1..]).await;
    assert_eq!([first.arrived.all(), second.arrived.all()].concat(), lines, "each line once");
}

#[tokio::test]
async fn standard_output_is_for_the_platform_to_collect() {
    let (code, said) = checked("audit: {export: [{name: siem, syslog: {address: '127.0.0.1:514'}}]}\n").await;
    assert!(code != Some(0) && said.contains("only a trail in a file can be exported"), "{said}");
}
