//! Takes each guard of Doorward away, one after the other, and says which of them no test misses. See `README.md`.

mod rewrite;
mod run;

use std::{collections::HashSet, env, fs, io::Write as _, path::Path, process::ExitCode};

use rewrite::Guard;
use run::Tests;

/// Guards that may be missing without a test that fails: file, source and why, between tabs.
const REDUNDANT: &str = include_str!("../redundant.tsv");

/// Beside the build: the guards that a test missed in the last runs, by file and source.
const MISSED: &str = "missed.tsv";

const USAGE: &str = "usage: doorward-guards SOURCES COPY TARGET [--go-on] [PREFIX...]
SOURCES are those of the repository, and are rewritten; COPY is where they are built, and TARGET what they are built into.
Only guards in files whose path begins with a PREFIX are taken away, in the order of the prefixes; with --go-on, only
those that no run before has found to be missed.";

fn is_known_redundant(guard: &Guard) -> bool {
    REDUNDANT.lines().any(|line| {
        let mut columns = line.split('\t');
        (columns.next(), columns.next()) == (Some(&guard.file), Some(&guard.source))
    })
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [sources, copy, target, options @ ..] = &arguments[..] else { return Err(USAGE.into()) };
    let (goes_on, prefixes) = match options {
        [first, prefixes @ ..] if first == "--go-on" => (true, prefixes),
        prefixes => (false, prefixes),
    };
    let guards = rewrite::all(Path::new(sources))?;
    for line in REDUNDANT.lines() {
        let is_there = guards.iter().any(|guard| line.starts_with(&format!("{}\t{}\t", guard.file, guard.source)));
        if !is_there {
            return Err(format!("redundant.tsv names what is no guard: {line}").into());
        }
    }
    rewrite::replace(Path::new(sources), Path::new(copy))?;
    fs::create_dir_all(target)?;
    // Commands run in the copy.
    let target = Path::new(target).canonicalize()?;
    let before = fs::read_to_string(target.join(MISSED)).unwrap_or_default();
    let before: HashSet<&str> = if goes_on { before.lines().collect() } else { HashSet::new() };
    let mut missed = fs::File::options().create(true).append(goes_on).write(true).open(target.join(MISSED))?;
    if !goes_on {
        missed.set_len(0)?;
    }
    let mut tests = Tests::build(Path::new(copy), &target)?;
    let place = |guard: &Guard| match prefixes {
        [] => Some(0),
        some => some.iter().position(|prefix| guard.file.starts_with(prefix)),
    };
    let mut chosen: Vec<(usize, usize, &Guard)> =
        guards.iter().enumerate().filter_map(|(number, guard)| Some((place(guard)?, number, guard))).collect();
    chosen.sort_by_key(|(place, number, _)| (*place, *number));
    let known = |guard: &Guard| format!("{}\t{}\t{}", guard.file, guard.source, guard.nth);
    let count = chosen.len();
    chosen.retain(|(_, _, guard)| !before.contains(&*known(guard)));
    let earlier = count - chosen.len();
    let (mut by_unit, mut by_black_box, mut redundant, mut by_none) = (0, 0, 0, 0);
    // All that unit tests tell comes first: it takes the least time.
    let mut left = Vec::new();
    for (_, number, guard) in chosen {
        if tests.units_miss(number, guard)? {
            by_unit += 1;
            tell(number, "missed by unit tests", guard);
            writeln!(missed, "{}", known(guard))?;
        } else {
            left.push((number, guard));
        }
    }
    tests.meet_black_box()?;
    for (number, guard) in left {
        let verdict = if tests.black_box_misses(number)? {
            by_black_box += 1;
            writeln!(missed, "{}", known(guard))?;
            "missed by black-box tests"
        } else if is_known_redundant(guard) {
            redundant += 1;
            "redundant"
        } else {
            by_none += 1;
            if tests.meet(number) { "NOT MISSED" } else { "NEVER MET" }
        };
        tell(number, verdict, guard);
    }
    println!(
        "{by_unit} guards are missed by unit tests, {by_black_box} by black-box tests, {earlier} were in runs before; \
         {redundant} are redundant, {by_none} are missed by none"
    );
    Ok(ExitCode::from(u8::from(by_none > 0)))
}

fn tell(number: usize, verdict: &str, guard: &Guard) {
    println!("{number}\t{verdict}\t{}:{}\t{}", guard.file, guard.line, guard.source);
}
