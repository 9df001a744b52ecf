//! The limits: each has its default, and each can be set.

use std::{
    collections::BTreeSet,
    process::Command,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Fault, Reply, found, h2, held_up, unique, until},
};

const CONFIGURATION: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
upstreams: [{name: web, url: 'http://127.0.0.1:1'}]
routes: [{name: web, kind: http, hosts: [open.test], schemes: [anonymous], upstream: web}]
rules: [{id: open, who: {anonymous: true}, do: allow}]
";

/// Every limit with its default and another value. The defaults are common for programs at the edge of a network.
const LIMITS: &[(&str, &str, &str)] = &[
    ("/limits/header_bytes", "32KiB", "16KiB"),
    ("/limits/uri_bytes", "8KiB", "4KiB"),
    ("/limits/header_count", "100", "50"),
    ("/limits/header_timeout", "10s", "11s"),
    ("/limits/handshake_timeout", "10s", "11s"),
    ("/limits/body_timeout", "30s", "31s"),
    ("/limits/body_min_rate", "1KiB", "2KiB"),
    ("/limits/idle_timeout", "75s", "76s"),
    ("/limits/stream_idle_timeout", "5m", "6m"),
    ("/limits/upgrade_idle_timeout", "1h", "2h"),
    ("/limits/http2_streams", "100", "101"),
    ("/limits/http2_stream_window", "64KiB", "128KiB"),
    ("/limits/http2_connection_window", "1MiB", "2MiB"),
    ("/limits/http2_ping_interval", "30s", "20s"),
    ("/limits/tcp_keepalive", "30s", "20s"),
    ("/limits/http2_reset_window", "200", "100"),
    ("/limits/http2_reset_share", "50", "60"),
    ("/limits/http2_reset_within", "1s", "2s"),
    ("/limits/http2_pending_resets", "20", "21"),
    ("/limits/http2_local_resets", "1024", "1025"),
    ("/limits/floods_per_address", "3", "4"),
    ("/limits/flood_pause", "1m", "2m"),
    ("/limits/body_buffer", "64KiB", "32KiB"),
    ("/limits/connections", "10000", "10001"),
    ("/limits/connections_file_share", "50", "60"),
    ("/limits/connections_per_address", "200", "201"),
    ("/limits/refusals_per_address", "600", "500"),
    ("/limits/buffered_bytes", "256MiB", "128MiB"),
    ("/limits/memory_close_idle", "85", "50"),
    ("/limits/memory_refuse_streams", "90", "60"),
    ("/limits/memory_refuse_connections", "95", "70"),
    ("/limits/memory_refuse_requests", "98", "80"),
    ("/limits/drain", "25s", "26s"),
    ("/limits/drain_accept", "5s", "6s"),
    ("/upstreams/0/connect_timeout", "3s", "4s"),
    ("/upstreams/0/response_timeout", "30s", "31s"),
    ("/upstreams/0/idle_timeout", "55s", "56s"),
    ("/upstreams/0/max_age", "10m", "11m"),
    ("/upstreams/0/max_connections", "1024", "1025"),
    ("/routes/0/max_stream", "8h", "9h"),
    ("/store/max_mirror_age", "1m", "2m"),
    ("/sessions/idle", "8h", "7h"),
    ("/sessions/absolute", "1d", "2d"),
];

/// The output of `print-config` for a configuration.
fn printed(yaml: &str, arguments: &[String]) -> (String, Value) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    std::fs::write(&file, yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    let output = command.arg("print-config").arg(&file).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_saphyr::from_str(&text).unwrap();
    (text, value)
}

fn shown(value: &Value, place: &str) -> String {
    match value.pointer(place) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "nothing".to_owned(),
    }
}

#[test]
fn each_limit_has_its_default_and_can_be_set() {
    let (_, defaults) = printed(CONFIGURATION, &[]);
    for (place, default, _) in LIMITS {
        assert_eq!(shown(&defaults, place), *default, "{place}");
    }
    let known: BTreeSet<String> = defaults["limits"].as_object().unwrap().keys().cloned().collect();
    let listed = LIMITS.iter().filter_map(|(place, ..)| place.strip_prefix("/limits/").map(str::to_owned)).collect();
    assert_eq!(known, listed, "a limit that this table does not have");

    let (lists, flags): (Vec<&(&str, &str, &str)>, Vec<_>) =
        LIMITS.iter().partition(|(place, ..)| place.contains("/0/"));
    let of = |list: &str| -> String {
        let of_list = lists.iter().filter(|(place, ..)| place.contains(list));
        of_list.map(|(place, _, other)| format!(", {}: {other}", place.rsplit('/').next().unwrap())).collect()
    };
    let yaml = CONFIGURATION
        .change("'http://127.0.0.1:1'", &format!("'http://127.0.0.1:1'{}", of("upstreams")))
        .change("upstream: web}", &format!("upstream: web{}}}", of("routes")));
    let arguments: Vec<String> = flags
        .iter()
        .flat_map(|(place, _, other)| ["--set".to_owned(), format!("{}={other}", place[1..].replace('/', "."))])
        .collect();
    let (text, set) = printed(&yaml, &arguments);
    for (place, _, other) in LIMITS {
        assert_eq!(shown(&set, place), *other, "{place}");
    }
    assert!(text.contains("header_bytes: 16KiB  # flag --set limits.header_bytes"), "{text}");
}

/// The output of `doorward check` for the configuration with `more` appended, and its exit status.
async fn checked(more: &str) -> (Option<i32>, String) {
    crate::harness::checked(&format!("{CONFIGURATION}{more}\n")).await
}

#[tokio::test]
async fn limits_out_of_their_bounds_are_refused() {
    for (limits, told) in [
        ("http2_reset_share: 0", "`http2_reset_share` must be between 1 and 100 percent"),
        ("http2_reset_within: 99ms", "`http2_reset_within` is not between 100ms and 10s"),
        ("http2_reset_within: 11s", "`http2_reset_within` is not between 100ms and 10s"),
        ("connections_file_share: 76", "`connections_file_share` must be between 1 and 75 percent"),
        ("http2_pending_resets: 0", "`http2_pending_resets` must be between 1 and 10000"),
        ("http2_local_resets: 0", "`http2_local_resets` must be between 1 and 100000"),
        ("memory_close_idle: 9", "`memory_close_idle` must be between 10 and 100 percent"),
        ("memory_refuse_requests: 101", "`memory_refuse_requests` must be between 10 and 100 percent"),
        ("memory_refuse_streams: 80", "`memory_refuse_streams` is less than `memory_close_idle`"),
        ("memory_refuse_connections: 89", "`memory_refuse_connections` is less than `memory_refuse_streams`"),
        ("memory_refuse_requests: 94", "`memory_refuse_requests` is less than `memory_refuse_connections`"),
    ] {
        let (status, said) = checked(&format!("limits: {{{limits}}}")).await;
        assert_eq!(status, Some(64), "{limits}: {said}");
        assert!(said.contains(told), "{limits}: {said}");
    }
    let (status, said) =
        checked("limits: {memory_close_idle: 10, memory_refuse_streams: 10, http2_local_resets: 1}").await;
    assert_eq!(status, Some(0), "the twin: {said}");
}

fn with_limits(limits: &'static str) -> impl FnOnce(String) -> String {
    move |yaml| yaml.change("limits: {", &format!("limits: {{{limits}, "))
}

fn ok(_: &crate::harness::Recorded) -> Reply {
    Reply::json(200, "{}")
}

/// Streams that the client resets before they were accepted.
#[tokio::test]
async fn how_many_resets_may_wait_can_be_set() {
    for (limits, expected) in
        [("http2_pending_resets: 20", h2::Outcome::Closed), ("http2_pending_resets: 200", h2::Outcome::Ok)]
    {
        let fixture = Fixture::with(with_limits(limits), ok).await;
        let outcome = h2::reset_at_once(fixture.doorward.address("public"), 60, "/x", "open.test").await;
        assert_eq!(outcome, expected, "{limits}");
        fixture.doorward.stays_below(90, limits);
    }
}

#[tokio::test]
async fn the_maximum_of_streams_and_the_initial_window_can_be_set() {
    let told = async |limits: &'static str| {
        let fixture = Fixture::with(with_limits(limits), ok).await;
        h2::hello(fixture.doorward.address("public")).await
    };
    let default = h2::Hello { streams: 100, stream_window: 64 << 10, connection_window: 1 << 20 };
    assert_eq!(told("http2_pending_resets: 20").await, default);
    let other = h2::Hello { streams: 7, stream_window: 128 << 10, connection_window: 2 << 20 };
    let limits = "http2_streams: 7, http2_stream_window: 128KiB, http2_connection_window: 2MiB";
    assert_eq!(told(limits).await, other);
}

/// The rest is held by the kernel, on either side.
#[tokio::test]
async fn how_much_is_held_for_a_client_that_does_not_read_can_be_set() {
    let held = async |limits: &'static str| {
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let fixture = Fixture::with(with_limits(limits), move |_| Reply::Flood(Arc::clone(&counted))).await;
        let _client = h2::ask_and_not_read(fixture.doorward.address("public"), "/x", "open.test").await;
        held_up(&sent).await
    };
    let (little, much) = (held("body_buffer: 8KiB").await, held("body_buffer: 16MiB").await);
    assert!(much > little + (8 << 20), "{little} and {much} bytes");
}

/// Malformed requests, each of which is answered with a reset.
#[tokio::test]
async fn how_many_errors_of_a_client_are_answered_with_a_reset_can_be_set() {
    let fields = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "open.test"), (":path", "/x")];
        usual.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let mut requests = vec![fields(&[("connection", "close")]); 12];
    requests.push(fields(&[]));
    for (limits, expected) in
        [("http2_local_resets: 5", h2::Outcome::Closed), ("http2_local_resets: 50", h2::Outcome::Ok)]
    {
        let fixture = Fixture::with(with_limits(limits), ok).await;
        let outcomes = h2::ask_at_once(fixture.doorward.address("public"), &requests).await;
        assert_eq!(outcomes.last(), Some(&expected), "{limits}: {outcomes:?}");
        fixture.doorward.stays_below(90, limits);
    }
}

#[tokio::test]
async fn the_shares_of_memory_at_which_something_is_shed_can_be_set() {
    // A tenth of the idle time is left once memory is short, and still enough for a busy machine.
    let limits = "memory: 1600KiB, memory_close_idle: 20, memory_refuse_streams: 30, memory_refuse_connections: 40, \
                  memory_refuse_requests: 50, idle_timeout: 20m";
    let fixture = Fixture::with_faults(with_limits(limits), ok).await;
    let request = "GET /x HTTP/1.1\r\nHost: open.test\r\n\r\n";
    let used = |kib, words| fixture.doorward.use_memory(kib, words);
    used(190, "memory ok").await;
    let mut open = fixture.doorward.raw().await;
    let mut again = async || {
        open.send(request).await;
        open.answer().await.status
    };
    assert_eq!(again().await, 200);
    used(210, "unused connections are closed sooner").await;
    used(310, "new streams are refused").await;
    used(410, "new connections are refused").await;
    assert_eq!(again().await, 200);
    used(510, "all requests are refused").await;
    assert_eq!(again().await, 503);
}

/// With a limit of 1024, the connections of one address to a slow upstream took all files, and neither the liveness
/// probe nor an operator got an answer.
#[tokio::test]
async fn files_are_kept_back_for_health_checks_and_operators() {
    // Each worker has files of its own, so that with many of them the limit below would leave too few.
    let patient = |yaml: String| {
        format!("workers: 1{}", yaml.change("{name: web, url: ", "{name: web, response_timeout: 5m, url: "))
    };
    let fixture = Fixture::with(patient, |_| Reply::Hang).await;
    let doorward = &fixture.doorward;
    let open = || std::fs::read_dir(format!("/proc/{}/fd", doorward.pid())).unwrap().count();
    let idle = open();
    let most = u64::try_from(idle + 120).unwrap();
    // Only now, as a start raises the limit.
    let process = Pid::from_raw(i32::try_from(doorward.pid()).unwrap());
    prlimit(process, Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = TcpStream::connect(doorward.address("public")).await.unwrap();
        // It is closed at once when there are too many.
        let _ = client.write_all(b"GET /x HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
        clients.push(client);
    }
    found(async || (open() >= idle + 50).then_some(())).await;
    let says_why = |line: &Value| line.to_string().contains("as many files are open as leave some");
    found(async || doorward.log().iter().any(says_why).then_some(())).await;
    assert_eq!(doorward.admin("/healthz").await.status, 200);
    let (status, said) = doorward.operator(&["status", "--why", "many files are open"]).await;
    assert_eq!(status, Some(0), "{said}");
    drop(clients);
    found(async || (open() < idle + 20).then_some(())).await;
    assert_eq!(doorward.admin("/readyz").await.status, 200);
}

/// A single question to an issuer that never answers. The tries are long enough for a busy machine to send each.
#[tokio::test]
async fn how_often_and_how_long_an_issuer_is_asked_about_a_token_can_be_set() {
    for (settings, tries) in
        [("", 2), ("timeout: 1500ms, ", 2), ("timeout: 1500ms, tries: 1, ", 1), ("timeout: 1500ms, tries: 4, ", 4)]
    {
        let change = |yaml: String| yaml.change("mode: opaque, ", &format!("mode: opaque, {settings}"));
        let fixture = Fixture::with(change, ok).await;
        fixture.a.set_fault(Fault::Hang);
        let asked = fixture.a.introspections();
        let (answer, seen) = fixture.api("/api/v1/pods", &[&bearer(&unique())]).await;
        assert_eq!((answer.status, seen.len()), (503, 0), "{}", answer.text());
        until(async || fixture.a.introspections() - asked >= tries).await;
        assert_eq!(fixture.a.introspections() - asked, tries, "{settings}");
    }
}

#[tokio::test]
async fn how_large_a_delivery_may_be_can_be_set() {
    let change = |yaml: String| yaml.change("sender: github, ", "sender: github, max_body: 1KiB, ");
    let fixture = Fixture::with(change, ok).await;
    let unsigned = format!("X-Hub-Signature-256: sha256={}", "0".repeat(64));
    let id = format!("X-GitHub-Delivery: {}", unique());
    let lines = [
        "POST /github HTTP/1.1",
        "Host: hooks.test",
        "Content-Type: application/json",
        "X-GitHub-Event: push",
        &id,
        &unsigned,
    ];
    for (size, status) in [(1024, 401), (1025, 413)] {
        assert_eq!(fixture.doorward.send(&lines, &vec![b' '; size]).await.status, status, "{size} bytes");
    }
    assert!(fixture.upstream.take().is_empty());
}

/// All buffered bodies share one memory, and the slowest may take its time.
#[tokio::test]
async fn the_body_of_a_caller_who_is_refused_anyway_is_not_awaited() {
    let rules = "rules:\n  - {id: no-code, on: {run: {inline: true}}, do: deny}\n  \
        - {id: bots, on: {event_listener: build}, who: {issuers: [a], groups: [bots]}, do: allow}\n";
    let change = |yaml: String| {
        yaml.change("rules:\n", rules).change(
            "schemes: [webhook], webhook: github",
            "schemes: [bearer, webhook], webhook: github, event_listener: {namespace: ci, name: build}",
        )
    };
    let fixture = Fixture::with(change, ok).await;
    let nobody = bearer(&fixture.a.token("mallory", &[]));
    let (alice, bot) = (fixture.alice(), bearer(&fixture.a.token("bot", &["bots"])));
    let (runs, template) =
        ("/apis/tekton.dev/v1/namespaces/ci/pipelineruns", "/apis/tekton.dev/v1/namespaces/ci/tasks");
    for (host, path, refused, allowed) in [
        ("api.test", runs, &nobody, &alice),
        ("api.test", template, &nobody, &alice),
        ("hooks.test", "/github", &alice, &bot),
    ] {
        let status = async |who: &str| {
            let mut raw = fixture.doorward.raw().await;
            let json = "Content-Type: application/json\r\nContent-Length: 3000000";
            raw.send(format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{who}\r\n{json}\r\n\r\n")).await;
            let answer = raw.answer().await;
            (answer.status, answer.reason())
        };
        // Not `no-code`, as that rule may depend on the body.
        assert_eq!(status(refused).await, (403, "no_rule_matched".to_owned()), "{host}{path}");
        assert_eq!(status(allowed).await, (408, "body_timeout".to_owned()), "{host}{path}, its twin");
    }
    assert!(fixture.upstream.take().is_empty());
}

/// A streamed body must have the same minimum rate as a buffered one. gRPC messages may arrive at any time.
#[tokio::test]
async fn a_body_that_drips_is_given_up_and_one_that_flows_is_not() {
    let fixture = Fixture::start().await;
    let begin = async || {
        let mut raw = fixture.doorward.raw().await;
        let head = "POST /upload HTTP/1.1\r\nHost: open.test\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
        raw.send(head).await;
        raw
    };
    let (mut drips, mut flows) = (begin().await, begin().await);
    let refused = found(async || {
        // A byte, or a quarter of a kilobyte, whenever nothing was received for a moment.
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), drips.some()).await {
            return Some(answer);
        }
        drips.send("1\r\na\r\n").await;
        flows.send(format!("100\r\n{}\r\n", "a".repeat(256))).await;
        None
    })
    .await;
    assert!(refused.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&refused));
    flows.send("0\r\n\r\n").await;
    assert_eq!(flows.answer().await.status, 200, "one that flows");
}

/// The client was told that the body was incomplete, and to send all of it.
#[tokio::test]
async fn a_body_with_malformed_chunks_is_refused_with_that_reason() {
    let fixture = Fixture::start().await;
    let mut raw = fixture.doorward.raw().await;
    let head =
        "POST /upload HTTP/1.1\r\nHost: open.test\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
    raw.send(format!("{head}0x2\r\nab\r\n0\r\n\r\n")).await;
    let answer = raw.answer().await;
    assert!(answer.status == 400 && answer.text().contains("malformed"), "{}", answer.text());
}
