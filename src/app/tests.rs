//! The metrics of a process, and their mentions in the documentation and `deploy/`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::Value;

use super::{
    Metrics,
    process::{EXPORTS_END, TASKS_END},
};
use crate::{
    admin::{health::Health, health_metric::HealthMetric, metrics::RequestMetrics},
    audit,
    clock::Clock,
    config::raw::Limits,
    logging::LogMetrics,
    sts::KeyMetric,
};

/// Returns the names of all metrics, with the `_total` of counters. A family without a series is missing in the
/// exposition, but the `Debug` output of a registry has it; metrics that are collected on demand are only in the
/// exposition.
fn registered() -> BTreeSet<String> {
    let mut registry = Registry::with_prefix("doorward");
    Metrics::default().register(&mut registry);
    RequestMetrics::default().register(&mut registry);
    audit::Metrics::default().register(&mut registry);
    LogMetrics::default().register(&mut registry);
    registry.register_collector(Box::new(KeyMetric(|| None)));
    registry.register_collector(Box::new(HealthMetric(Health::new(Clock::default()))));
    let mut exposition = String::new();
    encode(&mut exposition, &registry).unwrap();
    let mut names: BTreeSet<String> = named(&exposition).into_iter().map(str::to_owned).collect();
    for part in format!("{registry:?}").split("Registry { prefix: Some(Prefix(\"").skip(1) {
        let (prefix, part) = part.split_once('"').unwrap();
        for descriptor in part.split("Descriptor { name: \"").skip(1) {
            let (name, rest) = descriptor.split_once('"').unwrap();
            let (_, unit) = rest.split_once(", unit: ").unwrap();
            let unit = unit.strip_prefix("Some(").and_then(|unit| unit.split_once(')'));
            let unit = unit.map(|(unit, _)| format!("_{}", unit.to_lowercase())).unwrap_or_default();
            names.extend(["", "_total"].map(|end| format!("{prefix}_{name}{unit}{end}")));
        }
    }
    names
}

/// Returns the names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !of_name(c)).filter(|word| word.starts_with("doorward_")).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn texts(folder: &Path, into: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts(&path, into);
        } else if let Ok(text) = fs::read_to_string(&path) {
            into.push((path, text));
        }
    }
}

#[test]
fn every_metric_that_is_written_about_is_there() {
    let registered = registered();
    assert!(registered.contains("doorward_requests_total") && registered.contains("doorward_memory_used_bytes"));
    let mut written = Vec::new();
    for folder in ["docs", "deploy"] {
        texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut written);
    }
    let all = || written.iter().flat_map(|(path, text)| named(text).into_iter().map(move |name| (path, name)));
    assert!(all().count() > 40);
    let unknown: Vec<_> = all().filter(|(_, name)| !registered.contains(*name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn each_row_of_what_to_watch_has_a_rule_for_prometheus() {
    let to_watch = |page: &str| -> Vec<String> {
        let text = read(page);
        let (_, part) = text.split_once("\n## What to watch\n").unwrap();
        let part = part.split("\n#").next().unwrap();
        part.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split(" | ").next()?.to_owned())).collect()
    };
    let rows = to_watch("docs/operations.md");
    let example = read("deploy/examples/prometheus.yaml");
    let (_, rule) = example.split_once("\n---\n").unwrap();
    let rule: Value = serde_saphyr::from_str(rule).unwrap();
    let rules = rule["spec"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rows.len() > 10 && rows.len() == rules.len(), "{} rows, {} rules", rows.len(), rules.len());
    for (row, rule) in rows.iter().zip(rules) {
        let expression = rule["expr"].as_str().unwrap();
        assert_eq!(named(row), named(expression), "{}", rule["alert"]);
    }
    for metric in ["doorward_webhook_held_oldest_seconds", "doorward_webhook_queue_full_total"] {
        assert!(rows.iter().any(|row| named(row).contains(metric)), "nobody hears of deliveries that wait: {metric}");
    }
    let of_accepting = "doorward_downstream_accept_errors_total";
    assert!(
        rows.iter().any(|row| named(row) == BTreeSet::from([of_accepting])),
        "it closes nobody out, and more connections are no cure: {of_accepting}"
    );
    for row in to_watch("docs/audit-export.md") {
        assert!(rows.iter().any(|watched| named(watched) == named(&row)), "{row}");
    }
}

/// A pod that is killed earlier has not exported the end of its trail.
#[test]
fn the_grace_period_of_the_pod_has_room_for_all_of_the_end_and_the_pages_say_how_much() {
    let after_drain = Duration::from_secs(25);
    assert!(TASKS_END + audit::END_TIMEOUT + EXPORTS_END <= after_drain);
    let drain = Limits::default().drain.get();
    let set = read("deploy/base/stateful-set.yaml");
    let grace = format!("terminationGracePeriodSeconds: {}\n", (drain + after_drain).as_secs());
    assert!(set.contains(&grace), "{grace}");
    let told = format!("{} s more than `limits.drain`", after_drain.as_secs());
    for page in ["docs/operations.md", "docs/install.md", "docs/audit-export.md"] {
        let words = read(page).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(&told), "{page}: {told}");
    }
    let guide = read("docs/install.md");
    let (_, example) = guide.split_once("limits: {drain: ").unwrap();
    let (seconds, rest) = example.split_once("s, ").unwrap();
    let grace = seconds.parse::<u64>().unwrap() + after_drain.as_secs();
    assert!(rest.contains(&format!("terminationGracePeriodSeconds\n        value: {grace}\n")), "{grace}");
}
