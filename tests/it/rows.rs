//! The rows of the attack tables, and whether a test names each of them.
//!
//! `rows.txt` has one id a line, with its table's name before it. A row that does not apply has its reason behind a `#`.
//! A test names a row in its data (`"kubernetes:A1"`) or in its own name (`kubernetes_a1_...`).

use std::{fs, path::Path};

const ROWS: &str = include_str!("rows.txt");

fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "node_modules") {
                sources(&path, into);
            }
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "json") {
            into.push_str(&fs::read_to_string(&path).unwrap().to_ascii_lowercase());
        }
    }
}

/// Whether `text` has `id` and it does not go on with a digit, as `z1` is not `z12`.
fn has(text: &str, id: &str) -> bool {
    text.match_indices(id).any(|(at, _)| {
        let after = text[at + id.len()..].chars().next().unwrap_or(' ');
        let before = text[..at].chars().next_back().unwrap_or(' ');
        !after.is_ascii_digit() && !before.is_ascii_alphanumeric()
    })
}

#[test]
fn every_row_is_named_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut text);
    }
    let mut missing = Vec::new();
    let mut count = 0;
    for line in ROWS.lines().filter(|line| !line.contains('#') && !line.is_empty()) {
        count += 1;
        let id = line.trim().to_ascii_lowercase();
        let (table, row) = id.split_once(':').unwrap();
        // Ids of `attacks.md` stand alone in names of tests.
        let alone = (table == "attacks").then(|| format!("{row}_"));
        let named = has(&text, &id)
            || has(&text, &format!("{table}_{row}"))
            || alone.is_some_and(|alone| text.contains(&alone));
        if !named {
            missing.push(id);
        }
    }
    assert!(count > 150, "rows.txt lost its rows");
    assert!(missing.is_empty(), "no test names {missing:?}");
}
