//! Checks that tests cover every row of the attack tables.
//!
//! `rows.txt` has one row per line: its table and id and, after two blanks, its subject, unless the id is
//! self-explanatory. The rows of `cluster` are those of `kubernetes` against a real API server. A row that does not
//! apply has the reason after a `#`. A test names a row in its data (`"kubernetes:A1"`) or in its own name
//! (`kubernetes_a1_...`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const ROWS: &str = include_str!("rows.txt");

/// How many rows of each table tests must name. Listed here, so that a lost row is noticed.
const TABLES: [(&str, usize); 7] = [
    ("attacks", 54),
    ("cluster", 54),
    ("kubernetes", 76),
    ("oauth", 28),
    ("peers", 31),
    ("rfc9700", 1),
    ("webhooks", 33),
];

/// The rows that do not apply. Listed here too, as a reason after a `#` is easily added.
const NOT_APPLICABLE: [&str; 15] = [
    "cluster:C2",
    "cluster:C3",
    "cluster:L1",
    "cluster:N10",
    "cluster:N3",
    "cluster:N4",
    "cluster:T3",
    "cluster:U2",
    "cluster:X2",
    "kubernetes:C2",
    "kubernetes:C3",
    "kubernetes:N10",
    "kubernetes:N3",
    "kubernetes:N4",
    "peers:D16",
];

/// The rows that are named only by unit tests, and by no test of the whole program. Listed here, so that their number
/// does not grow unnoticed.
const IN_UNIT_TESTS_ALONE: [&str; 24] = [
    "attacks:Z10",
    "attacks:Z14",
    "attacks:Z21",
    "attacks:Z3",
    "attacks:Z34",
    "attacks:Z4",
    "attacks:Z41",
    "attacks:Z5",
    "attacks:Z6",
    "attacks:Z7",
    "oauth:22",
    "oauth:28",
    "peers:D10",
    "peers:D11",
    "peers:D12",
    "peers:D15",
    "peers:T1",
    "peers:T14",
    "peers:T2",
    "peers:T3",
    "peers:T4",
    "peers:T5",
    "peers:T6",
    "peers:T7",
];

/// The test code of all files in a folder except this one, without comments: an id only in a comment is not tested.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "node_modules") {
                sources(&path, into);
            }
            continue;
        }
        if path.ends_with("tests/it/rows.rs") {
            continue;
        }
        let Some(kind) = path.extension().and_then(|kind| kind.to_str()) else { continue };
        let text = match kind {
            // Test vectors: data used by tests only.
            "json" => fs::read_to_string(&path).unwrap(),
            "rs" => without_comments(test_code(&path, &fs::read_to_string(&path).unwrap())),
            _ => continue,
        };
        into.push_str(&text.to_ascii_lowercase());
    }
}

/// The part of a file that is compiled for tests only.
fn test_code<'t>(path: &Path, text: &'t str) -> &'t str {
    let is_tests = |name: &std::ffi::OsStr| name == "tests" || name == "tests.rs";
    if path.iter().any(is_tests) {
        return text;
    }
    // Source files here end with their tests.
    let inline = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"];
    inline.iter().find_map(|start| text.find(start)).map_or("", |at| text.split_at(at).1)
}

fn without_comments(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.split(" // ").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Whether `text` contains `id`, not followed by more of an id: `z1` is not in `z12`, nor `2` in `2.10`.
fn has(text: &str, id: &str) -> bool {
    text.match_indices(id).any(|(at, _)| {
        let after = &text[at + id.len()..];
        let goes_on = after.strip_prefix('.').unwrap_or(after).starts_with(|c: char| c.is_ascii_digit());
        let before = text[..at].chars().next_back().unwrap_or(' ');
        !goes_on && !before.is_ascii_alphanumeric()
    })
}

fn id_of(line: &str) -> &str {
    line.split("  ").next().unwrap().trim()
}

#[test]
fn no_row_is_lost_and_none_is_left_out_unnoticed() {
    let (mut tables, mut left_out) = (BTreeMap::<&str, BTreeSet<&str>>::new(), BTreeSet::new());
    for line in ROWS.lines().filter(|line| !line.is_empty()) {
        let (id, is_left_out) = (id_of(line), line.contains('#'));
        let ids = if is_left_out { &mut left_out } else { tables.entry(id.split_once(':').unwrap().0).or_default() };
        assert!(ids.insert(id), "{id} stands twice");
    }
    let counts: Vec<_> = tables.iter().map(|(table, ids)| (*table, ids.len())).collect();
    assert_eq!(counts, TABLES);
    assert_eq!(left_out.into_iter().collect::<Vec<_>>(), NOT_APPLICABLE);
}

#[test]
fn every_row_is_named_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [unit, whole] = ["src", "tests/it"].map(|folder| {
        let mut text = String::new();
        sources(&root.join(folder), &mut text);
        text
    });
    assert!(!has(&without_comments("// invented:a1\nlet x = 1; // invented:a1"), "invented:a1"));
    assert!(!has("invented:a12 invented:a1.2 uninvented:a1", "invented:a1") && has("invented:a1.", "invented:a1"));
    let (mut missing, mut in_unit_tests_alone) = (Vec::new(), BTreeSet::new());
    for line in ROWS.lines().filter(|line| !line.contains('#') && !line.is_empty()) {
        let id = id_of(line).to_ascii_lowercase();
        let (table, row) = id.split_once(':').unwrap();
        assert!(line.len() > id.len() || row.contains(' '), "{id}: write what it is about behind it");
        // Tests may name a row of the table `attacks` without the table's name: `z39_...`.
        let alone = (table == "attacks").then(|| format!("{row}_"));
        let names = [Some(id.clone()), Some(format!("{table}_{row}")), alone];
        let is_named = |text: &str| names.iter().flatten().any(|name| has(text, name));
        match (is_named(&whole), is_named(&unit)) {
            (true, _) => {}
            (false, true) => {
                in_unit_tests_alone.insert(id_of(line));
            }
            (false, false) => missing.push(id),
        }
    }
    assert!(missing.is_empty(), "no test names {missing:?}");
    assert_eq!(in_unit_tests_alone.into_iter().collect::<Vec<_>>(), IN_UNIT_TESTS_ALONE);
}
