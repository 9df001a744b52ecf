//! The limits: each has its default, and each can be set.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

const CONFIGURATION: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
upstreams: [{name: web, url: 'http://127.0.0.1:1'}]
routes: [{name: web, kind: http, hosts: [open.test], schemes: [anonymous], upstream: web}]
rules: [{id: open, who: {anonymous: true}, do: allow}]
";

/// Every limit with its default and another value. The defaults are those of the field, each chosen for the edge of a
/// network.
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
    ("/limits/http2_reset_window", "200", "100"),
    ("/limits/floods_per_address", "3", "4"),
    ("/limits/flood_pause", "1m", "2m"),
    ("/limits/body_buffer", "64KiB", "32KiB"),
    ("/limits/connections", "10000", "10001"),
    ("/limits/connections_per_address", "200", "201"),
    ("/limits/refusals_per_address", "600", "500"),
    ("/limits/buffered_bytes", "256MiB", "128MiB"),
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

/// What `print-config` says of a configuration.
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
        .replace("'http://127.0.0.1:1'", &format!("'http://127.0.0.1:1'{}", of("upstreams")))
        .replace("upstream: web}", &format!("upstream: web{}}}", of("routes")));
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
