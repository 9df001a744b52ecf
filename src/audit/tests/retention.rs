//! Files that retention removes, by number or age, and how an auditor sees that.

use std::{fs, path::PathBuf};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

struct Kept {
    directory: tempfile::TempDir,
    settings: Settings,
    clock: Clock,
    /// How long before its record was written each request arrived.
    latency: Duration,
}

impl Kept {
    fn new(retention: Retention) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let destination = Destination::File { path, max_size: 64 << 10, retention };
        let settings = Settings { destination, queue: 4096, ..settings() };
        Self { directory, settings, clock: clock(), latency: Duration::ZERO }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("audit.jsonl")
    }

    /// Runs a process that writes this many records.
    fn run(&self, records: u128) {
        let trail = Trail::open(&self.settings, self.directory.path(), self.clock.clone()).unwrap();
        for number in 0..records {
            trail.write(Record { time: NOW - self.latency, ..record(number) });
        }
        trail.shutdown();
    }

    fn files(&self) -> Vec<PathBuf> {
        trail_files(&self.path()).unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        self.files().iter().flat_map(|file| lines(&fs::read(file).unwrap())).collect()
    }

    fn check(&self) -> Findings {
        verify_files(self.files(), &proof(&self.settings)).unwrap()
    }

    fn intact(&self) -> Summary {
        let findings = self.check();
        assert_eq!(problems(&findings), Vec::<String>::new());
        findings.summary
    }
}

fn at_most(keep: u32) -> Kept {
    Kept::new(Retention { keep: Some(keep), retain: None })
}

#[test]
fn the_number_of_full_files_is_bounded_and_the_trail_names_the_removed_ones() {
    let kept = at_most(2);
    kept.run(400);
    assert_eq!(kept.files().len(), 3);
    let summary = kept.intact();
    assert!(summary.first > 1);
    assert!(summary.cut.unwrap() >= summary.first - 1);
    let cut = kept.lines().into_iter().rfind(|line| kind(line) == "trail.cut").unwrap();
    assert_eq!(cut["unmapped"]["cut"]["through"], summary.cut.unwrap());
    assert!(cut["sig"].is_string(), "an auditor can keep it as a witness: {cut}");
}

#[test]
fn a_file_removed_by_hand_is_noticed_even_if_others_expired() {
    let kept = at_most(3);
    kept.run(400);
    kept.intact();
    fs::remove_file(&kept.files()[0]).unwrap();
    let findings = kept.check();
    assert!(problems(&findings)[0].contains("no line says that retention removed them"), "{:?}", problems(&findings));

    // Waiting until later files are removed as well does not help: the lines about removals leave a hole.
    kept.run(200);
    let found = problems(&kept.check()).concat();
    assert!(found.contains("were gone before retention removed them"), "{found}");
}

/// The lines that a later removal follows on were called destroyed, although the line that says who removed them was in
/// the missing file.
#[test]
fn a_missing_file_that_may_tell_of_removals_does_not_make_these_look_like_a_destruction() {
    let kept = at_most(4);
    kept.run(1200);
    kept.intact();
    let tells = |file: &PathBuf| lines(&fs::read(file).unwrap()).iter().any(|line| kind(line) == "trail.cut");
    let telling: Vec<PathBuf> = kept.files().into_iter().filter(tells).collect();
    assert!(telling.len() >= 3, "{telling:?}");
    fs::remove_file(&telling[1]).unwrap();
    let found = problems(&kept.check());
    assert!(found.iter().any(|problem| problem.contains("missing before this one")), "{found:?}");
    let gone = found.iter().filter(|problem| problem.contains("were gone before retention removed them"));
    let gone: Vec<&str> = gone.map(|problem| problem.rsplit(", ").next().unwrap()).collect();
    assert_eq!(gone, ["unless a line that is missing or was edited says so"], "{found:?}");
}

#[test]
fn lines_expire_even_if_no_file_is_full() {
    let kept = Kept::new(Retention { keep: None, retain: Some(8 * HOUR) });
    for _ in 0..8 {
        kept.run(1);
        kept.clock.advance(HOUR);
    }
    assert!(kept.files().len() > 3, "a new file begins after a quarter of the time: {:?}", kept.files());
    assert_eq!(kept.intact().first, 1, "nothing is old enough");
    kept.clock.advance(3 * HOUR);
    kept.run(1);
    let summary = kept.intact();
    assert!(summary.first > 1);
    let oldest = kept.lines()[0]["time"].as_i64().unwrap();
    // A file is removed by the age of its last line, so the oldest line can be a quarter older.
    assert!(kept.clock.now().since(Timestamp::from_millis(oldest)) <= 10 * HOUR);
    assert!(kept.lines().iter().any(|line| kind(line) == "request"), "what is younger stays");
}

/// The end of a long stream is written with the time of its arrival, so that a file counted as old as soon as it was
/// full.
#[test]
fn retention_counts_from_the_writing_of_a_line_and_not_the_arrival_of_its_request() {
    let kept = Kept { latency: 9 * HOUR, ..Kept::new(Retention { keep: None, retain: Some(8 * HOUR) }) };
    kept.run(400);
    assert!(kept.files().len() > 3, "{:?}", kept.files());
    assert_eq!(kept.intact().first, 1);
    kept.clock.advance(8 * HOUR);
    kept.run(1);
    assert!(kept.intact().first > 1, "the twin: their time is over");
}

/// A file that replaced a moved one began with such an end, so that the previous file counted as old.
#[test]
fn lines_are_retained_even_if_the_next_file_begins_with_a_request_from_long_before() {
    let kept = Kept { latency: 9 * HOUR, ..Kept::new(Retention { keep: None, retain: Some(8 * HOUR) }) };
    let trail = Trail::open(&kept.settings, kept.directory.path(), kept.clock.clone()).unwrap();
    let write = |number| {
        let written = Record { time: NOW - kept.latency, ..record(number) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(trail.take_room(1, false).unwrap().write_durable(written)).unwrap();
    };
    let mut number = 0;
    while kept.files().len() == 1 {
        write(number);
        number += 1;
    }
    fs::rename(kept.path(), kept.directory.path().join("moved")).unwrap();
    // This is noticed after the first of these.
    write(number);
    write(number + 1);
    trail.shutdown();
    let begins = lines(&fs::read(kept.path()).unwrap())[0].clone();
    assert_eq!((kind(&begins), &begins["time"]), ("request", &json!((NOW - kept.latency).as_millis())));
    let oldest = kept.files()[0].clone();
    kept.clock.advance(HOUR);
    kept.run(1);
    assert!(oldest.exists());
    kept.clock.advance(8 * HOUR);
    kept.run(1);
    assert!(!oldest.exists(), "the twin: its time is over");
}

/// Regression: a damaged file has no known age, and the expired file before it was therefore kept too.
#[test]
fn an_expired_file_is_removed_even_if_the_next_one_is_damaged() {
    let kept = Kept::new(Retention { keep: None, retain: Some(8 * HOUR) });
    kept.run(400);
    let [oldest, damaged] = [0, 1].map(|at: usize| kept.files()[at].clone());
    let whole = fs::read(&damaged).unwrap();
    fs::write(&damaged, [&b"?"[..], &whole[1..]].concat()).unwrap();
    kept.clock.advance(9 * HOUR);
    kept.run(1);
    assert!(!oldest.exists());
    assert!(damaged.exists(), "what it holds cannot be told");
}

/// The trail cannot say which unreadable lines were removed, so they stay for somebody to check.
#[test]
fn a_damaged_file_stays() {
    let kept = at_most(1);
    kept.run(100);
    let oldest = kept.files()[0].clone();
    let whole = fs::read(&oldest).unwrap();
    fs::write(&oldest, &whole[..whole.len() - 10]).unwrap();
    let torn = fs::read(&oldest).unwrap();
    fs::write(&oldest, [&torn[..], b"\nnothing of ours\n"].concat()).unwrap();
    kept.run(200);
    assert!(oldest.exists());
    assert!(kept.files().len() > 2);
}

/// A crash can happen between the line about a removal and the removal. Remaining files are no problem, and are removed
/// next time.
#[test]
fn files_that_a_crash_left_are_no_alarm() {
    let all = Kept::new(Retention::default());
    all.run(200);
    let before: Vec<_> = all.files().iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect();
    let destination = Destination::File {
        path: all.path(),
        max_size: 64 << 10,
        retention: Retention { keep: Some(1), retain: None },
    };
    let kept = Kept { settings: Settings { destination, ..all.settings.clone() }, ..all };
    kept.run(100);
    let (oldest, bytes) = &before[0];
    assert!(!oldest.exists());
    assert!(kept.intact().first > 1);
    let restored: Vec<_> = before.iter().filter(|(file, _)| !file.exists()).collect();
    for (file, bytes) in restored {
        fs::write(file, bytes).unwrap();
    }
    assert_eq!(kept.intact().first, 1);
    kept.run(100);
    assert!(!oldest.exists(), "{} bytes were removed again", bytes.len());
    assert!(kept.intact().first > 1);
}

/// Otherwise the chain key would be enough to explain that files are gone.
#[test]
fn a_line_about_removed_files_counts_only_with_a_valid_signature() {
    let kept = at_most(2);
    kept.run(400);
    assert!(kept.intact().cut.is_some());
    let other = CheckpointKey::generate().unwrap().public().clone();
    let proof = Proof { checkpoint_keys: vec![other], ..proof(&kept.settings) };
    let findings = verify_files(kept.files(), &proof).unwrap();
    assert_eq!(findings.summary.cut, None);
    let missing = findings.problems.iter().filter(|problem| problem.line.is_none()).count();
    assert_eq!(missing, 1, "the lines before the first file are missed: {:?}", problems(&findings));
}
