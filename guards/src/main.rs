//! Takes each guard of Doorward away, one after the other, and says which of them no test misses. See `README.md`.

mod rewrite;
mod run;

use std::{env, fs, path::Path, process::ExitCode};

use rewrite::Guard;
use run::{Tests, Verdict};

/// Guards that may be missing without a test that fails: file, source and why, between tabs.
const REDUNDANT: &str = include_str!("../redundant.tsv");

const USAGE: &str = "usage: doorward-guards COPY TARGET [PREFIX...]
COPY is a copy of the repository, which is changed; TARGET is the folder for its build; only guards in files whose path
begins with a PREFIX are taken away.";

fn is_known_redundant(guard: &Guard) -> bool {
    REDUNDANT.lines().any(|line| {
        let mut columns = line.split('\t');
        (columns.next(), columns.next()) == (Some(&guard.file), Some(&guard.source))
    })
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [copy, target, prefixes @ ..] = &arguments[..] else { return Err(USAGE.into()) };
    let guards = rewrite::all(Path::new(copy))?;
    for line in REDUNDANT.lines() {
        let is_there = guards.iter().any(|guard| line.starts_with(&format!("{}\t{}\t", guard.file, guard.source)));
        if !is_there {
            return Err(format!("redundant.tsv names what is no guard: {line}").into());
        }
    }
    fs::create_dir_all(target)?;
    // Commands run in the copy.
    let target = Path::new(target).canonicalize()?;
    let tests = Tests::build(Path::new(copy), &target)?;
    let (mut caught, mut redundant, mut missed) = (0, 0, 0);
    for (number, guard) in guards.iter().enumerate() {
        if !prefixes.is_empty() && !prefixes.iter().any(|prefix| guard.file.starts_with(prefix)) {
            continue;
        }
        let verdict = tests.without(number, guard)?;
        println!("{number}\t{verdict}\t{}:{}\t{}", guard.file, guard.line, guard.source);
        match verdict {
            Verdict::Missed(_) => caught += 1,
            Verdict::NotMissed | Verdict::NeverMet if is_known_redundant(guard) => redundant += 1,
            Verdict::NotMissed | Verdict::NeverMet => missed += 1,
        }
    }
    println!("{caught} guards are missed by a test, {redundant} are redundant, {missed} are missed by none");
    Ok(ExitCode::from(u8::from(missed > 0)))
}
