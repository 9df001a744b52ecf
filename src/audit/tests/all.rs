//! Several replicas whose checkpoints name each other's, and an auditor who has the trails of some.

use std::{fs, path::PathBuf};

use super::*;
use crate::audit::{AllFindings, CannotVerify, Head, verify::Reading, verify_all};

/// The folders of two replicas that saw each other.
struct Replicas {
    folder: tempfile::TempDir,
    settings: Settings,
}

const NAMES: [&str; 2] = ["doorward-0", "doorward-1"];

impl Replicas {
    fn new() -> Self {
        let replicas = Self { folder: tempfile::tempdir().unwrap(), settings: settings() };
        let [zero, one] = NAMES.map(|name| replicas.run(name, None));
        // Each continues, and has seen the other's head.
        replicas.run(NAMES[0], Some(one));
        replicas.run(NAMES[1], Some(zero));
        replicas
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a process that writes some records, and returns its last checkpoint.
    fn run(&self, name: &str, seen: Option<Head>) -> Head {
        self.run_at(NOW, name, seen)
    }

    fn run_at(&self, time: Timestamp, name: &str, seen: Option<Head>) -> Head {
        let folder = self.folder(name);
        fs::create_dir_all(&folder).unwrap();
        let settings = Settings {
            instance: name.to_owned(),
            destination: file_settings(&folder.join("audit.jsonl")).destination,
            checkpoint_copy: Some(self.folder.path().join(format!("{name}.checkpoints"))),
            ..self.settings.clone()
        };
        let trail = Trail::open(&settings, &folder, Clock::manual(time)).unwrap();
        trail.witness(seen);
        trail.write(record(1));
        let head = trail.head();
        trail.shutdown();
        head.borrow().clone().unwrap()
    }

    fn check(&self) -> AllFindings {
        self.check_since(NOW)
    }

    fn check_since(&self, since: Timestamp) -> AllFindings {
        verify_all(&[self.folder.path().to_owned()], &proof(&self.settings), since).unwrap()
    }

    fn without_copies(self) -> Self {
        for name in NAMES {
            fs::remove_file(self.folder.path().join(format!("{name}.checkpoints"))).unwrap();
        }
        self
    }
}

#[test]
fn all_chains_that_saw_each_other_are_intact() {
    let replicas = Replicas::new();
    fs::write(replicas.folder.path().join("notes.txt"), "of an auditor").unwrap();
    let all = replicas.check();
    assert!(all.is_intact(), "{all:?}");
    let names: Vec<_> = all.chains.iter().flat_map(|chain| &chain.instances).map(|name| &**name).collect();
    assert_eq!(names, NAMES);
    assert_eq!(all.others, [replicas.folder.path().join("notes.txt")], "what was not looked at is told");
}

/// It counted as cut, as others had seen the lines that it got after it was read.
#[test]
fn a_chain_that_goes_on_while_all_are_read_is_intact() {
    let replicas = Replicas::new().without_copies();
    let (paths, proof) = ([replicas.folder.path().to_owned()], proof(&replicas.settings));
    let trail = replicas.folder(NAMES[0]).join("audit.jsonl");
    let before = fs::read(&trail).unwrap();
    let went_on = replicas.run(NAMES[0], None);
    replicas.run(NAMES[1], Some(went_on));
    let after = fs::read(&trail).unwrap();
    for (then, is_intact) in [(&after, true), (&before, false)] {
        fs::write(&trail, &before).unwrap();
        let reading = Reading::of(&paths, &proof).unwrap();
        fs::write(&trail, then).unwrap();
        let all = reading.compare(&proof, NOW).unwrap();
        assert_eq!(all.is_intact(), is_intact, "{all:?}");
    }
}

/// It counted as another chain, which had lost its full files.
#[test]
fn a_link_to_a_trail_is_no_second_chain() {
    let replicas = Replicas::new();
    let link = replicas.folder.path().join("a-link");
    std::os::unix::fs::symlink(replicas.folder(NAMES[0]).join("audit.jsonl"), link).unwrap();
    let all = replicas.check();
    assert!(all.is_intact() && all.chains.len() == NAMES.len(), "{all:?}");
}

/// Opening a named pipe would wait for a writer.
#[test]
fn a_path_that_is_not_a_file_is_reported_without_waiting_for_it() {
    let replicas = Replicas::new();
    let pipe = replicas.folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (done, checked) = std::sync::mpsc::channel();
    let (folder, proof) = (replicas.folder.path().to_owned(), proof(&replicas.settings));
    std::thread::spawn(move || done.send(verify_all(&[folder], &proof, NOW)));
    let all = checked.recv_timeout(Duration::from_secs(10)).expect("it waits for the pipe").unwrap();
    assert!(all.is_intact(), "{all:?}");
    assert_eq!(all.others, [pipe]);
}

/// Links between folders may form a cycle.
#[test]
fn folders_are_searched_to_a_bounded_depth_and_deeper_ones_are_reported() {
    let replicas = Replicas::new();
    let seventh = replicas.folder.path().join("a/a/a/a/a/a/a");
    fs::create_dir_all(&seventh).unwrap();
    assert!(replicas.check().is_intact());
    fs::create_dir(seventh.join("a")).unwrap();
    let refused = verify_all(&[replicas.folder.path().to_owned()], &proof(&replicas.settings), NOW).unwrap_err();
    assert!(refused.to_string().contains("nested too deep"), "{refused}");
}

#[test]
fn a_chain_whose_end_was_compared_says_so_and_another_does_not() {
    let checked =
        |all: AllFindings| all.chains.iter().map(|chain| chain.findings.summary.end_checked).collect::<Vec<_>>();
    assert_eq!(checked(Replicas::new().check()), [true, true], "there are copies");
    assert_eq!(checked(Replicas::new().without_copies().check()), [true, true], "each was seen by the other");
    assert_eq!(checked(Replicas::new().check_since(NOW + Duration::from_millis(1))), [false, false], "and not since");
    let one = Replicas::new().without_copies();
    fs::remove_dir_all(one.folder("doorward-1")).unwrap();
    assert_eq!(checked(one.check()), [false], "nobody is left who saw it");
    let forged = Replicas::new();
    fs::remove_dir_all(forged.folder("doorward-1")).unwrap();
    fs::remove_file(forged.folder.path().join("doorward-1.checkpoints")).unwrap();
    let path = forged.folder.path().join("doorward-0.checkpoints");
    let edited = fs::read_to_string(&path).unwrap().replace("\"seq\":", "\"seq\": ");
    fs::write(&path, edited).unwrap();
    assert_eq!(checked(forged.check()), [false], "a forged copy proves nothing");
}

#[test]
fn the_last_position_at_which_a_chain_was_compared_is_reported() {
    let replicas = Replicas::new();
    let whole = replicas.check();
    replicas.run("doorward-0", None);
    // Cutting off the later lines leaves the head that the other replica saw.
    let replicas = replicas.without_copies();
    let all = replicas.check();
    let (before, summary) = (&whole.chains[0].findings.summary, &all.chains[0].findings.summary);
    let seen = summary.compared_to.unwrap();
    assert!(seen <= before.last && seen < summary.last, "{seen} of {}, {}", before.last, summary.last);
    assert_eq!(summary.compared_at, Some(NOW));
    let said =
        format!("compared up to line {seen}, which was seen elsewhere at {NOW}: lines written later and cut off");
    assert!(summary.to_string().contains(&said), "{summary}");
}

#[test]
fn a_missing_chain_is_named_with_the_replica_that_saw_it() {
    let replicas = Replicas::new().without_copies();
    fs::remove_dir_all(replicas.folder("doorward-1")).unwrap();
    let all = replicas.check();
    let [problem] = all.problems.as_slice() else { panic!("{all:?}") };
    assert!(problem.starts_with("the chain of doorward-1 is missing: doorward-0 saw it at line "), "{problem}");
    assert!(!all.is_intact());
    assert!(replicas.check_since(NOW + Duration::from_millis(1)).is_intact(), "nobody saw it since");
}

/// The problem named the highest number, which the chain had before it was begun again.
#[test]
fn a_missing_chain_is_named_with_the_replica_that_saw_it_last() {
    let replicas = Replicas::new();
    let old = replicas.run("doorward-1", None);
    replicas.run("doorward-0", Some(old.clone()));
    fs::remove_dir_all(replicas.folder("doorward-1")).unwrap();
    let later = NOW + Duration::from_secs(3600);
    let anew = replicas.run_at(later, "doorward-1", None);
    assert!(anew.seq < old.seq);
    replicas.run_at(later, "doorward-0", Some(anew.clone()));
    let replicas = replicas.without_copies();
    fs::remove_dir_all(replicas.folder("doorward-1")).unwrap();
    let all = replicas.check();
    let [problem] = all.problems.as_slice() else { panic!("{all:?}") };
    let last = format!("the chain of doorward-1 is missing: doorward-0 saw it at line {} at {later}", anew.seq);
    assert!(problem.starts_with(&last), "{problem}");
}

#[test]
fn a_copy_of_checkpoints_alone_misses_a_chain() {
    let replicas = Replicas::new();
    for name in NAMES {
        fs::remove_dir_all(replicas.folder(name)).unwrap();
    }
    let all = replicas.check();
    assert_eq!((all.chains.len(), all.problems.len()), (0, 2), "{all:?}");
}

#[test]
fn a_chain_that_was_cut_or_restarted_is_noticed_by_the_others() {
    for begun_anew in [false, true] {
        let replicas = Replicas::new().without_copies();
        let path = replicas.folder("doorward-1").join("audit.jsonl");
        let whole = fs::read(&path).unwrap();
        if begun_anew {
            fs::remove_file(&path).unwrap();
            for _ in 0..3 {
                let seen = replicas.run("doorward-0", None);
                replicas.run("doorward-1", Some(seen));
            }
            fs::remove_file(replicas.folder.path().join("doorward-0.checkpoints")).unwrap();
            fs::remove_file(replicas.folder.path().join("doorward-1.checkpoints")).unwrap();
        } else {
            let keep = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            fs::write(&path, &whole[..keep]).unwrap();
        }
        let all = replicas.check();
        assert!(all.chains.iter().all(|chain| chain.findings.is_intact()), "each for itself is: {all:?}");
        let [problem] = all.problems.as_slice() else { panic!("{all:?}") };
        assert!(
            problem.starts_with("the chain of doorward-1 was cut, or replaced by another: doorward-0 saw"),
            "{problem}"
        );
    }
}

/// The later head replaced the earlier one, as both have the same number, and everything was reported as intact.
#[test]
fn a_restarted_chain_is_noticed_even_if_others_saw_the_new_one_at_the_same_number() {
    let replicas = Replicas::new().without_copies();
    let path = replicas.folder("doorward-1").join("audit.jsonl");
    let number = || {
        let lines = lines(&fs::read(&path).unwrap());
        lines.iter().find(|line| kind(line) == "trail.checkpoint").unwrap()["seq"].clone()
    };
    let before = number();
    fs::remove_file(&path).unwrap();
    let other = replicas.run("doorward-0", None);
    let anew = replicas.run("doorward-1", Some(other));
    assert_eq!(number(), before);
    replicas.run("doorward-0", Some(anew));
    let all = replicas.without_copies().check();
    assert!(all.chains.iter().all(|chain| chain.findings.is_intact()), "each for itself is: {all:?}");
    let [problem] = all.problems.as_slice() else { panic!("{all:?}") };
    assert!(
        problem.starts_with("the chain of doorward-1 was cut, or replaced by another: doorward-0 saw"),
        "{problem}"
    );
}

#[test]
fn a_forged_copy_of_checkpoints_proves_nothing() {
    let replicas = Replicas::new();
    let path = replicas.folder.path().join("doorward-0.checkpoints");
    let forged = fs::read_to_string(&path).unwrap().replace("\"doorward-0\"", "\"doorward-7\"");
    fs::write(&path, forged).unwrap();
    assert!(replicas.check().is_intact(), "no chain of doorward-7 is missed");
}

#[test]
fn one_line_names_so_many_others_and_the_next_the_rest() {
    let sink = Memory::default();
    let settings = Settings { checkpoint_records: 1, ..settings() };
    let trail = start(&settings, &sink, &clock());
    let head = |at: usize| Head { instance: format!("{at:0>253}").into(), seq: u64::MAX, mac: "f".repeat(64).into() };
    trail.witness((0..40).map(head));
    trail.write(record(1));
    sink.wait_for(|disk| disk.bytes.windows(16).filter(|bytes| *bytes == b"trail.checkpoint").count() > 0);
    trail.shutdown();
    let named: Vec<usize> =
        sink.lines().iter().filter_map(|line| Some(line["unmapped"]["heads"].as_array()?.len())).collect();
    assert_eq!(named, [32, 8]);
    assert!(sink.bytes().split(|byte| *byte == b'\n').all(|line| line.len() < MAX_LINE));
    assert_eq!(problems(&verify(&sink.bytes(), &proof(&settings))), Vec::<String>::new());
}

/// No other replica saw that chain, so none would miss it.
#[test]
fn a_trail_whose_first_byte_was_edited_still_counts_as_a_trail() {
    let replicas = Replicas { folder: tempfile::tempdir().unwrap(), settings: settings() };
    NAMES.iter().for_each(|name| drop(replicas.run(name, None)));
    let replicas = replicas.without_copies();
    assert!(replicas.check().is_intact());
    let path = replicas.folder("doorward-1").join("audit.jsonl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] = b'[';
    fs::write(&path, &bytes).unwrap();
    let all = replicas.check();
    assert_eq!((all.chains.len(), all.others.len()), (2, 0), "{all:?}");
    assert!(all.chains[0].findings.is_intact() && !all.chains[1].findings.is_intact(), "{all:?}");
}

#[test]
fn without_a_trail_nothing_is_reported_as_intact() {
    let settings = settings();
    let folder = tempfile::tempdir().unwrap();
    let check = |since| verify_all(&[folder.path().to_owned()], &proof(&settings), since);
    assert!(matches!(check(NOW), Err(CannotVerify::NoTrail(_))));
    fs::write(folder.path().join("audit.jsonl"), "").unwrap();
    let none = check(NOW).unwrap_err();
    assert!(matches!(none, CannotVerify::NoTrail(_)), "an empty file is none");
    fs::write(folder.path().join("audit.jsonl"), "?{\n").unwrap();
    let damaged = check(NOW).unwrap_err().to_string();
    assert!(damaged.contains("audit.jsonl is not a trail, or its first line was damaged"), "{damaged}");
    // A chain that a copy saw is missing, which is a finding of its own.
    let replicas = Replicas::new();
    NAMES.iter().for_each(|name| fs::remove_dir_all(replicas.folder(name)).unwrap());
    let all = replicas.check();
    assert!(all.chains.is_empty() && !all.problems.is_empty() && !all.is_intact(), "{all:?}");
}

impl Replicas {
    /// A process that writes so much that it removes old files, and its last checkpoint.
    fn run_with_retention(&self, name: &str) -> Head {
        let folder = self.folder(name);
        let settings = Settings {
            instance: name.to_owned(),
            destination: Destination::File {
                path: folder.join("audit.jsonl"),
                max_size: 64 << 10,
                retention: Retention { keep: Some(2), retain: None },
            },
            queue: 4096,
            ..self.settings.clone()
        };
        let trail = Trail::open(&settings, &folder, clock()).unwrap();
        for number in 0..400 {
            trail.write(record(number));
        }
        let head = trail.head();
        trail.shutdown();
        head.borrow().clone().unwrap()
    }
}

/// Only checkpoints in files that were removed need not be there.
#[test]
fn a_cut_end_of_a_chain_with_removed_files_is_noticed_by_the_other_chains() {
    let replicas = Replicas { folder: tempfile::tempdir().unwrap(), settings: settings() };
    let before = replicas.run("doorward-1", None);
    replicas.run("doorward-0", Some(before.clone()));
    let after = replicas.run_with_retention("doorward-1");
    replicas.run("doorward-0", Some(after));
    let replicas = replicas.without_copies();
    let all = replicas.check();
    assert!(all.is_intact(), "{all:?}");
    let summary = &all.chains[1].findings.summary;
    assert!(summary.cut.is_some() && summary.first > before.seq, "{summary}");

    let path = replicas.folder("doorward-1").join("audit.jsonl");
    let whole = fs::read(&path).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let last_cut = lines.iter().rposition(|line| kind(&serde_json::from_slice(line).unwrap()) == "trail.cut").unwrap();
    fs::write(&path, lines[..=last_cut].concat()).unwrap();
    let all = replicas.check();
    assert!(all.chains.iter().all(|chain| chain.findings.is_intact()), "each by itself is: {all:?}");
    let [problem] = all.problems.as_slice() else { panic!("{all:?}") };
    assert!(problem.starts_with("the chain of doorward-1 "), "{problem}");
}

/// Whoever cuts the end of a chain off also cuts off what the chain says of itself.
#[test]
fn a_chain_that_names_itself_was_not_compared() {
    let replicas = Replicas { folder: tempfile::tempdir().unwrap(), settings: settings() };
    let own = replicas.run(NAMES[0], None);
    replicas.run(NAMES[0], Some(own));
    fs::remove_file(replicas.folder.path().join(format!("{}.checkpoints", NAMES[0]))).unwrap();
    let all = replicas.check();
    assert!(all.is_intact() && !all.chains[0].findings.summary.end_checked, "{all:?}");
}
