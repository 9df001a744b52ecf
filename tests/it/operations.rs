//! What operators rely on: mounted ConfigMaps, providers that are down, metrics, traces.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Doorward, Fault, Issuer, Recorded, Reply, Upstream, Wire, folder_with, replace_file,
        streams::{Streams, begin, streaming},
        told, until, within,
    },
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

fn configuration(issuer: &Issuer, upstream: &Upstream, state: &Path) -> String {
    format!(
        "
listeners: [{{name: public, address: 127.0.0.1:0}}]
issuers:
  - {{name: a, issuer: '{issuer}', audiences: ['https://doorward.test'], username: '{{sub}}', kind: human}}
upstreams:
  - {{name: web, url: '{upstream}', credential: {{bearer: {{file: token}}}}}}
routes:
  - {{name: web, kind: http, hosts: [tekton.test], schemes: [bearer], upstream: web}}
policies: [rules.yaml]
store: {{path: '{state}/doorward.redb'}}
audit: {{sink: {{file: {{path: '{state}/audit.jsonl'}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        issuer = issuer.url(),
        upstream = upstream.url(),
        state = state.display(),
    )
}

/// Writes files as the kubelet writes those of a ConfigMap: into a folder that `..data` points to. The link is replaced
/// atomically, and the visible names point into it.
fn mount(volume: &Path, name: &str, files: &[(&str, &str)]) {
    let folder = volume.join(name);
    std::fs::create_dir(&folder).unwrap();
    for (file, text) in files {
        std::fs::write(folder.join(file), text).unwrap();
        if std::fs::symlink_metadata(volume.join(file)).is_err() {
            symlink(Path::new("..data").join(file), volume.join(file)).unwrap();
        }
    }
    symlink(name, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_loaded_whole() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    for is_named_without_folder in [false, true] {
        swap_a_config_map(&issuer, &upstream, is_named_without_folder).await;
    }
}

async fn swap_a_config_map(issuer: &Issuer, upstream: &Upstream, is_named_without_folder: bool) {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let volume = folder.path().to_owned();
    let main = configuration(issuer, upstream, state.path());
    let rules = |to_do: &str| format!("rules: [{{id: all, who: {{issuers: [a]}}, do: {to_do}}}]\n");
    let files = |to_do: &str, token: &str| {
        [("doorward.yaml", main.clone()), ("rules.yaml", rules(to_do)), ("token", token.to_owned())]
    };
    let put = |name: &str, files: &[(&str, String)]| {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        mount(&volume, name, &files);
    };
    put("..2026_01", &files("deny", "first"));
    let mut doorward = match is_named_without_folder {
        true => Doorward::start_by_name_in(folder).await,
        false => Doorward::start_at(&volume).await,
    };
    doorward.wait_for_keys(issuer).await;
    let alice = bearer(&issuer.token("alice", &[]));
    assert_eq!(doorward.get("/x", &[&alice]).await.status, 403);
    put("..2026_02", &files("allow", "second"));
    doorward.wait_for_generation(2).await;
    assert_eq!(doorward.get("/x", &[&alice]).await.status, 200);
    assert_eq!(upstream.only().one("authorization"), "Bearer second", "policy and secret belong together");
    // A broken one is refused as a whole, including its secret.
    put("..2026_03", &files("perhaps", "third"));
    doorward.wait_for_log_containing("the configuration was refused").await;
    let _ = upstream.take();
    assert_eq!(doorward.get("/x", &[&alice]).await.status, 200);
    assert_eq!(upstream.only().one("authorization"), "Bearer second", "{is_named_without_folder}");
    let _ = upstream.take();
}

#[tokio::test]
async fn a_configuration_named_without_its_folder_is_served_and_watched() {
    let upstream = Upstream::start().await;
    let yaml = |outcome: &str| {
        format!(
            "
listeners: [{{name: public, address: 127.0.0.1:0}}]
upstreams: [{{name: web, url: '{}'}}]
routes: [{{name: web, kind: http, hosts: [tekton.test], schemes: [anonymous], upstream: web}}]
rules: [{{id: all, who: {{anonymous: true}}, do: {outcome}}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}, checkpoint_copy: checkpoints.jsonl}}
admin: {{socket: doorward.sock}}
limits: {{drain_accept: 0}}
",
            upstream.url()
        )
    };
    let dir = folder_with(&[("doorward.yaml", &yaml("deny"))]);
    let mut doorward = Doorward::start_by_name_in(dir).await;
    assert_eq!(doorward.get("/x", &[]).await.status, 403);
    std::fs::write(doorward.dir().join("doorward.yaml"), yaml("allow")).unwrap();
    doorward.wait_for_generation(2).await;
    assert_eq!(doorward.get("/x", &[]).await.status, 200);
    assert!(doorward.dir().join("doorward.sock").exists());
    // The last checkpoint is made at the end.
    doorward.signal("TERM");
    assert!(doorward.ended().await.success());
    for made in ["doorward.redb", "audit.jsonl", "checkpoints.jsonl", "audit-chain.key"] {
        assert!(doorward.dir().join(made).exists(), "{made}");
    }
}

#[tokio::test]
async fn a_provider_that_is_down_at_the_start_is_reported_and_delays_nobody_else() {
    let (away, here, upstream) = (Issuer::start().await, Issuer::start().await, Upstream::start().await);
    away.set_fault(Fault::Garbage);
    let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("token"), "t").unwrap();
    std::fs::write(dir.path().join("rules.yaml"), "rules: [{id: all, who: {issuers: [a, b]}, do: allow}]\n").unwrap();
    let second = format!(
        "  - {{name: b, issuer: '{}', audiences: ['https://doorward.test'], username: 'b:{{sub}}', kind: human}}\nupstreams:",
        here.url()
    );
    let yaml = configuration(&away, &upstream, state.path()).change_first("upstreams:", &second);
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.wait_for_keys(&here).await;
    assert_eq!(doorward.get("/x", &[&bearer(&here.token("bea", &[]))]).await.status, 200);
    let answer = doorward.get("/x", &[&bearer(&away.token("alice", &[]))]).await;
    assert_eq!((answer.status, answer.reason().as_str()), (503, "issuer_unavailable"), "{}", answer.text());
    doorward.until_readyz_says("issuer/a failed").await;
    doorward.until_ready().await;
    let ready = doorward.admin("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    assert!(ready.text().contains(away.url()), "the reason: {}", ready.text());
    away.set_fault(Fault::None);
    until(async || doorward.get("/x", &[&bearer(&away.token("alice", &[]))]).await.status == 200).await;
}

/// Regression: the watches were reported as failed until the next event, which may take days.
#[tokio::test]
async fn cut_watches_of_runs_are_healthy_once_reopened_even_without_events() {
    const NONE: &str = r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"7"},"items":[]}"#;
    let idle = Upstream::scripted(|request| match request.line() {
        line if line.contains("watch=true") => Reply::Watch(Vec::new()),
        _ => Reply::json(200, NONE),
    })
    .await;
    let wire = Wire::to(idle.address).await;
    let change = |yaml: String| {
        let upstream = format!("  - {{name: idle, url: 'http://{}'}}\nwebhooks:", wire.address());
        yaml.change_first("webhooks:", &upstream) + "runs: {kubernetes: idle, namespaces: [ci]}\n"
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    fixture.doorward.until_readyz_says("runs ok").await;
    wire.cut();
    fixture.doorward.until_readyz_says("runs failed").await;
    wire.mend();
    fixture.doorward.until_readyz_says("runs ok").await;
}

#[tokio::test]
async fn a_process_short_of_memory_sheds_the_least_costly_work_first_and_reports_it() {
    // A tenth of the idle time is left once memory is short, and still enough for a busy machine.
    let limited = |yaml: String| yaml.change("limits: {", "limits: {memory: 1600KiB, idle_timeout: 20m, ");
    let fixture = Fixture::with_faults(limited, streaming).await;
    let alice = fixture.alice();
    let request = format!("GET {PATH} HTTP/1.1\r\nHost: api.test\r\n{alice}\r\n\r\n");
    let used = |kib, words| fixture.doorward.use_memory(kib, words);
    let watch = async || fixture.doorward.get(&format!("{PATH}?watch=true"), &["Host: api.test", &alice]).await;
    used(800, "memory ok").await;
    let mut before = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    let mut open = fixture.doorward.raw().await;
    let mut again = async || {
        open.send(&request).await;
        open.answer().await
    };
    assert_eq!(again().await.status, 200);

    used(860, "unused connections are closed sooner").await;
    assert_eq!(again().await.status, 200);
    used(920, "new streams are refused").await;
    let refused = watch().await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "overloaded"), "{}", refused.text());
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    assert_eq!(fixture.api(PATH, &[&alice]).await.0.status, 200, "the twin: a short request");
    before.are_open().await;
    assert_eq!(fixture.doorward.admin("/readyz").await.status, 200);

    used(960, "new connections are refused").await;
    let mut new = fixture.doorward.raw().await;
    new.send(&request).await;
    assert_eq!(new.rest().await, b"");
    assert_eq!(again().await.status, 200, "the twin: a connection that is there");
    assert_eq!(fixture.doorward.admin("/readyz").await.status, 503);

    used(990, "all requests are refused").await;
    let _ = fixture.upstream.take();
    let refused = again().await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "overloaded"), "{}", refused.text());
    assert!(fixture.upstream.take().is_empty());
    let metrics = fixture.doorward.metrics().await;
    assert!(metrics.contains("doorward_downstream_connections_refused_total{reason=\"memory\"}"), "{metrics}");
    assert!(metrics.contains("doorward_memory_limit_bytes 1024000"), "{metrics}");

    used(700, "memory ok").await;
    assert_eq!(fixture.api(PATH, &[&alice]).await.0.status, 200);
    before.are_open().await;
}

#[tokio::test]
async fn the_metrics_count_requests_and_refusals() {
    let fixture = Fixture::start().await;
    let alice = fixture.alice();
    for token in [&alice, &alice, &bearer(&fixture.a.token("carol", &["guests"]))] {
        fixture.api(PATH, &[token]).await;
    }
    fixture.a.opaque("opaque-token", json!({"active": false}));
    fixture.api(PATH, &[&bearer("opaque-token")]).await;
    let delivery =
        ["POST /github HTTP/1.1", "Host: hooks.test", "X-GitHub-Event: push", "X-Hub-Signature-256: sha256=00"];
    fixture.doorward.send(&[&delivery[..], &["Content-Type: application/json"]].concat(), b"{}").await;
    let text = fixture.doorward.metrics().await;
    let value = |start: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for (start, least) in [
        (r#"doorward_requests_total{route="api",scheme="bearer",outcome="forwarded",reason=""}"#, 2.0),
        (r#"doorward_requests_total{route="api",scheme="bearer",outcome="denied",reason="no_rule_matched"}"#, 1.0),
        (r#"doorward_request_duration_seconds_count{route="api"}"#, 3.0),
        ("doorward_requests_in_flight", 0.0),
        (r#"doorward_issuer_keys_fetched_timestamp_seconds{issuer="a"}"#, 1e9),
        (r#"doorward_issuer_key_fetches_total{issuer="a""#, 1.0),
        (r#"doorward_issuer_keys{issuer="a"}"#, 1.0),
        (r#"doorward_issuer_introspections_total{issuer="a""#, 1.0),
        (r#"doorward_webhook_refused_total{"#, 1.0),
        ("doorward_token_cache_hits_total", 1.0),
        ("doorward_token_cache_misses_total", 2.0),
        ("doorward_sessions_active", 0.0),
        ("doorward_upstream_connections_open", 0.0),
        (r#"doorward_upstream_connections_opened_total{"#, 1.0),
        (r#"doorward_downstream_connections_accepted_total{listener="public"}"#, 5.0),
        ("doorward_config_generation", 1.0),
        ("doorward_audit_records_written_total", 1.0),
    ] {
        assert!(value(start) >= least, "{start} is {}", value(start));
    }
    let named = text.lines().filter(|line| !line.starts_with('#')).all(|line| line.starts_with("doorward_"));
    assert!(named, "{text}");
    assert!(!text.contains("opaque-token") && !text.contains("alice"), "metrics name nobody");
}

#[tokio::test]
async fn a_trace_continues_at_the_upstream_and_in_the_trail() {
    let fixture = Fixture::start().await;
    let trace = format!("{:032x}", fixture.doorward.pid());
    let parent = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01");
    let alice = fixture.alice();
    let (_, seen) = fixture.api(PATH, &[&alice, &parent, "tracestate: vendor=1"]).await;
    assert_eq!(format!("traceparent: {}", seen[0].one("traceparent")), parent, "the caller's span is the parent");
    assert_eq!(seen[0].one("tracestate"), "vendor=1");
    fixture.doorward.record(|record| record["unmapped"]["trace_id"] == trace.as_str()).await;
    // Without a valid traceparent, the upstreams decide themselves whether to record.
    for came in [&[][..], &["traceparent: 00-zz-zz-01", "tracestate: vendor=1"]] {
        let (answer, seen) = fixture.api(PATH, &[&[&*alice][..], came].concat()).await;
        assert_eq!(answer.status, 200);
        assert!(!seen[0].has("traceparent") && !seen[0].has("tracestate"), "{}", seen[0].head);
        let id = seen[0].one("audit-id");
        let record = fixture.doorward.record(|record| record["http_request"]["uid"] == id).await;
        assert_eq!(record["unmapped"].get("trace_id"), None, "{record}");
    }
}

#[tokio::test]
async fn the_cases_beside_an_example_are_decided_as_they_say() {
    for (example, passed) in
        [("agents", "8 of 8"), ("dashboard", "6 of 6"), ("mcp", "3 of 3"), ("outside-the-cluster", "4 of 4")]
    {
        let file = format!("config/examples/{example}.yaml");
        let (code, said) = told(Path::new(env!("CARGO_MANIFEST_DIR")), &["test", &file]).await;
        assert_eq!(code, Some(0), "{example}: {said}");
        assert!(said.contains(passed), "{example}: {said}");
    }
}

/// The time that a client then reads or an upstream sends is measured separately.
#[tokio::test]
async fn requests_are_timed_to_the_response_head_and_abandoned_ones_counted_as_such() {
    let script = |request: &Recorded| match request.line() {
        line if line.contains("/silent") => Reply::Hang,
        _ => Reply::Watch(vec![b"the beginning".to_vec()]),
    };
    let mut fixture = Fixture::answering(script).await;
    let series = async |name: &str| {
        let metrics = fixture.doorward.metrics().await;
        let lines = metrics.lines().filter(|line| line.starts_with(name) && line.contains("route=\"open\""));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    let watch = begin(&fixture.doorward, "/", &["Host: open.test"], 200).await;
    let to_head = begun.elapsed();
    tokio::time::sleep(to_head + Duration::from_millis(100)).await;
    drop(watch);
    until(async || series("doorward_request_duration_seconds_count").await[0].ends_with(" 1")).await;
    let sum = series("doorward_request_duration_seconds_sum").await;
    let measured: f64 = sum[0].rsplit(' ').next().unwrap().parse().unwrap();
    assert!(measured <= to_head.as_secs_f64(), "{measured} s, and the client had its head after {to_head:?}");

    let mut left = fixture.doorward.raw().await;
    left.send("GET /silent HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
    fixture.upstream.wait_for_path("/silent").await;
    drop(left);
    until(async || series("doorward_requests_total").await.len() >= 2).await;
    let mut outcomes = Vec::new();
    for line in series("doorward_requests_total").await {
        let (_, rest) = line.split_once("outcome=\"").unwrap();
        outcomes.push((rest.split('"').next().unwrap().to_owned(), line.rsplit(' ').next().unwrap().to_owned()));
    }
    outcomes.sort();
    let once = |outcome: &str| (outcome.to_owned(), "1".to_owned());
    assert_eq!(outcomes, [once("abandoned"), once("forwarded")]);
}

/// The certificate that the guide creates for Valkey expired silently, and with it everybody's access to Doorward.
#[tokio::test]
async fn the_expiry_of_certificates_beyond_listeners_is_measured_and_follows_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_owned();
    let ends = |year: i32| {
        let mut params = rcgen::CertificateParams::new(["web.test".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        replace_file(&folder.join("ca.pem"), &pem);
        let ends = params.not_after.unix_timestamp();
        format!("doorward_certificate_file_not_after_timestamp_seconds{{place=\"upstreams[0].tls.ca\"}} {ends}\n")
    };
    let first = ends(2040);
    let yaml = "
listeners: [{name: public, address: 127.0.0.1:0}]
upstreams: [{name: web, url: 'https://localhost:1', tls: {ca: ca.pem}}]
routes: [{name: web, kind: http, hosts: [tekton.test], schemes: [anonymous], upstream: web}]
rules: [{id: all, who: {anonymous: true}, do: allow}]
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
admin: {address: 127.0.0.1:0}
limits: {drain_accept: 0}
";
    let doorward = Doorward::start_in(dir, yaml).await;
    assert!(doorward.metrics().await.contains(&first), "{first}: {}", doorward.metrics().await);
    doorward.until_metrics_say(&ends(2050)).await;
}

/// Any user can connect if somebody is listed, also one of another group, for whom the list had no effect.
#[tokio::test]
async fn attacks_z13_a_user_who_is_not_listed_is_refused_and_recorded_in_the_trail() {
    let own = std::fs::metadata("/proc/self").unwrap();
    // Only root can become another user. Without that the test fails, as a skipped one would look like a pass.
    let becomes: &[&str] = if own.uid() == 0 { &["setpriv"] } else { &["sudo", "-n", "setpriv"] };
    let listed = |yaml: String| yaml.change("socket: operator.sock", "socket: operator.sock, socket_users: [1]");
    let fixture = Fixture::with(listed, |_| Reply::json(200, "{}")).await;
    let folder = fixture.doorward.dir();
    std::fs::set_permissions(folder, Permissions::from_mode(0o711)).unwrap();
    // The build folder may be closed to other users.
    let (built, program) = (env!("CARGO_BIN_EXE_doorward"), folder.join("doorward"));
    if std::fs::hard_link(built, &program).is_err() {
        // By a process of its own: one that another test starts meanwhile would inherit the open file, which cannot be
        // run as long as somebody may write it.
        assert!(Command::new("cp").args(["-p", built]).arg(&program).status().unwrap().success());
    }
    let command = async |uid: &str| {
        let mut command = tokio::process::Command::new(becomes[0]);
        command.args(&becomes[1..]).args(["--reuid", uid, "--regid", uid, "--clear-groups"]);
        command.arg(&program).args(["status", "--socket"]).arg(folder.join("operator.sock"));
        command.args(["--who", "olga", "--why", "a drill"]).current_dir("/").kill_on_drop(true);
        let output = within(command.output()).await;
        let output = output.expect("attacks:Z13 needs root, or sudo without a password, and setpriv of util-linux");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let records = async |count: usize, uid: &str| {
        let is_of =
            |record: &Value| record["metadata"]["event_code"] == "operator" && record["actor"]["user"]["uid"] == *uid;
        fixture.doorward.records(count, is_of).await
    };
    let (code, said) = command("65534").await;
    assert_ne!(code, Some(0), "attacks:Z13 {said}");
    assert!(said.contains("user id 65534 may not send commands"), "attacks:Z13 {said}");
    let refused = records(1, "65534").await;
    assert_eq!((refused.len(), &refused[0]["status_id"]), (1, &json!(2)), "attacks:Z13 {refused:#?}");
    let (code, said) = command("1").await;
    assert_eq!(code, Some(0), "attacks:Z13 the twin: {said}");
    let done = records(2, "1").await;
    let told = |record: &Value| record.to_string().contains("olga") && record.to_string().contains("a drill");
    assert!(done.len() == 2 && done.iter().all(told), "attacks:Z13 begun and ended: {done:#?}");
}

#[tokio::test]
async fn the_log_for_people_has_the_level_and_what_belongs_to_a_line() {
    let (issuer, upstream) = (Issuer::start().await, Upstream::start().await);
    let state = folder_with(&[("token", "upstream-token"), ("rules.yaml", "rules: []\n")]);
    let file = state.path().join("doorward.yaml");
    std::fs::write(&file, configuration(&issuer, &upstream, state.path()) + "log: {format: text}\n").unwrap();
    let mut doorward = tokio::process::Command::new(env!("CARGO_BIN_EXE_doorward"))
        .arg("serve")
        .arg(&file)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(doorward.stderr.take().unwrap()).lines();
    let line = within(async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if line.contains("listening") && line.contains("public") {
                return line;
            }
        }
    })
    .await;
    assert!(serde_json::from_str::<Value>(&line).is_err(), "{line}");
    for part in [" INFO ", "listener=public", "address=127.0.0.1:"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

/// `kubectl apply` stores what it applied in an annotation, including the values of Secrets, which thereby reached the
/// pod.
#[test]
fn the_list_that_the_guide_has_the_pod_read_has_nothing_that_secrets_hold() {
    let page = include_str!("../../docs/operations.md");
    let (program, _) = page.split_once("jq -c '").unwrap().1.split_once('\'').unwrap();
    let applied = "kubectl.kubernetes.io/last-applied-configuration";
    let list = json!({"items": [
        {"kind": "Secret", "data": {"password": "hunter2"}, "metadata": {"name": "plain"}},
        {"kind": "Secret", "stringData": {"password": "hunter2"}, "metadata": {"name": "applied", "annotations": {
            applied: r#"{"stringData":{"password":"hunter2"}}"#, "tekton.dev/git-0": "https://git.test",
        }, "managedFields": [{"fieldsV1": {"f:hunter2": {}}}]}},
    ]});
    // `scripts/test` installs jq.
    let mut jq = Command::new("jq");
    let mut jq = jq.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    jq.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
    let given: Value = serde_json::from_slice(&jq.wait_with_output().unwrap().stdout).unwrap();
    let kept = json!({"items": [
        {"kind": "Secret", "metadata": {"name": "plain"}},
        {"kind": "Secret", "metadata": {"name": "applied", "annotations": {"tekton.dev/git-0": "https://git.test"}}},
    ]});
    assert_eq!(given, kept);
}
