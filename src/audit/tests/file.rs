mod truncated;

use std::{
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use super::*;
use crate::audit::{file_ends::first_and_last, sink::RotatingFile};

fn open(settings: &Settings, directory: &Path) -> Trail {
    Trail::open(settings, directory, clock()).unwrap()
}

fn checked(path: &Path, proof: &Proof) -> Findings {
    verify_files(trail_files(path).unwrap(), proof).unwrap()
}

fn intact(path: &Path, proof: &Proof) -> Summary {
    let findings = checked(path, proof);
    assert_eq!(problems(&findings), Vec::<String>::new());
    findings.summary
}

#[test]
fn a_trail_continues_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let settings = file_settings(&path);
    for number in 0..3 {
        let trail = open(&settings, directory.path());
        trail.write(record(number));
        trail.shutdown();
    }
    let summary = intact(&path, &proof(&settings));
    assert_eq!((summary.segments, summary.kinds["request"]), (3, 3));
}

#[test]
fn keys_that_are_not_configured_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let settings = Settings { chain_key: None, checkpoint_key: None, ..file_settings(&path) };
    for _ in 0..2 {
        open(&settings, directory.path()).shutdown();
    }
    let read = |name| fs::read(directory.path().join(name)).unwrap();
    let proof = Proof {
        keys: vec![ChainKey::from_base64(&read(CHAIN_KEY_FILE)).unwrap()],
        checkpoint_keys: vec![CheckpointPublicKey::from_pem(&read(CHECKPOINT_PUBLIC_KEY_FILE)).unwrap()],
        last_checkpoint: None,
        restarts: false,
        part: false,
    };
    assert_eq!(intact(&path, &proof).segments, 2);
}

/// Later lines were written to a file that nobody could find any more, and counted as written.
#[test]
fn later_lines_are_not_lost_with_a_file_that_is_moved_or_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("audit.jsonl"), directory.path().join("elsewhere"));
    let (mut sink, _) = RotatingFile::open(&path, 1 << 20, Retention::default(), NOW).unwrap();
    sink.write(b"one\n").unwrap();
    sink.sync().unwrap();
    fs::rename(&path, &moved).unwrap();
    sink.write(b"two\n").unwrap();
    sink.sync().unwrap();
    sink.write(b"three\n").unwrap();
    sink.sync().unwrap();
    assert_eq!((fs::read(&moved).unwrap(), fs::read(&path).unwrap()), (b"one\ntwo\n".to_vec(), b"three\n".to_vec()));
    fs::remove_file(&path).unwrap();
    sink.write(b"four\n").unwrap();
    let error = sink.sync().unwrap_err();
    assert!(error.to_string().contains("somebody removed the file of the trail"), "{error}");
    sink.sync_again(b"four\n").unwrap();
    sink.write(b"five\n").unwrap();
    sink.sync().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"four\nfive\n");
}

/// The trail could not be written for a moment, or somebody's empty file became a file of the trail at which retention
/// stopped.
#[test]
fn no_file_is_rotated_in_place_of_one_that_was_moved() {
    for is_made_anew in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("audit.jsonl"), directory.path().join("elsewhere"));
        let (mut sink, _) = RotatingFile::open(&path, 1 << 20, Retention::default(), NOW).unwrap();
        sink.write(b"one\n").unwrap();
        sink.sync().unwrap();
        fs::rename(&path, &moved).unwrap();
        if is_made_anew {
            fs::write(&path, "").unwrap();
        }
        assert_eq!(sink.rotate(NOW).unwrap(), None);
        sink.write(b"two\n").unwrap();
        sink.sync().unwrap();
        assert_eq!(trail_files(&path).unwrap(), std::slice::from_ref(&path));
        assert_eq!((fs::read(&moved).unwrap(), fs::read(&path).unwrap()), (b"one\n".to_vec(), b"two\n".to_vec()));
        assert_eq!(&*sink.rotate(NOW).unwrap().unwrap(), "audit.jsonl.000002", "its own file is");
    }
}

/// Opens a trail in files of at most `max_size` bytes, with the state that exports see.
fn exported(path: &Path, max_size: u64) -> (Trail, Arc<export::Backlog>) {
    let (sink, found) = RotatingFile::open(path, max_size, Retention::default(), NOW).unwrap();
    let backlog = Arc::new(export::Backlog::none());
    let opened = Opened { sink: Box::new(sink), found, backlog: Arc::clone(&backlog) };
    (start_over(&settings(), opened, &clock()), backlog)
}

fn write(trail: &Trail, number: u128) -> Result<(), AuditUnavailable> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(trail.take_room(1, false).unwrap().write_durable(record(number)))
}

/// An export read the beginning of the new file as the rest of the one that was gone.
#[test]
fn the_successor_of_a_file_that_was_removed_is_announced_before_it_exists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (trail, backlog) = exported(&path, 1 << 20);
    let write = |number| write(&trail, number);
    write(1).unwrap();
    let before = backlog.end_now();
    assert_eq!((before.place.file, before.place.offset as i64), (1, before.total));
    // No file can be made there.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(write(2), Err(AuditUnavailable::Failing));
    assert_eq!(backlog.end_now(), export::End { place: export::Place { file: 2, offset: 0 }, total: before.total });
    fs::remove_dir(&path).unwrap();
    wait_until_recovered(&trail);
    write(3).unwrap();
    let after = backlog.end_now();
    assert_eq!((after.place.file, after.place.offset), (2, fs::metadata(&path).unwrap().len()));
}

/// Otherwise an export reads the beginning of the new file as the rest of the one that was moved.
#[test]
fn the_successor_of_a_full_file_that_was_moved_is_announced_before_it_exists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (trail, backlog) = exported(&path, 1);
    let write = |number| write(&trail, number);
    write(1).unwrap();
    let before = backlog.end_now();
    // No file can be made there.
    fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(write(2), Err(AuditUnavailable::Failing));
    let place = export::Place { file: before.place.file + 1, offset: 0 };
    assert_eq!(backlog.end_now(), export::End { place, total: before.total });
    fs::remove_dir(&path).unwrap();
    wait_until_recovered(&trail);
    write(3).unwrap();
}

/// There may be several file systems, of which one is full.
#[test]
fn a_trail_that_cannot_be_written_names_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let (folder, elsewhere) = (directory.path().join("trail"), directory.path().join("elsewhere"));
    fs::create_dir(&folder).unwrap();
    let path = folder.join("audit.jsonl");
    let trail = open(&file_settings(&path), directory.path());
    fs::rename(&folder, &elsewhere).unwrap();
    let mut number = 0;
    let why = loop {
        trail.write(record(number));
        number += 1;
        if let Some(why) = trail.failure() {
            break why;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(why.starts_with(&format!("{}: ", path.display())), "{why}");
    fs::rename(&elsewhere, &folder).unwrap();
    trail.shutdown();
}

/// The open file can only append.
#[test]
fn lines_that_a_failed_sync_lost_are_written_again_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (mut sink, _) = RotatingFile::open(&path, 1 << 20, Retention::default(), NOW).unwrap();
    sink.write(b"first\n").unwrap();
    sink.sync().unwrap();
    sink.write(b"second\n").unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 7], 6).unwrap();
    sink.sync_again(b"second\n").unwrap();
    sink.write(b"third\n").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first\nsecond\nthird\n");
}

#[test]
fn a_half_written_last_line_is_cut_at_the_next_start() {
    let torn: [&[u8]; 4] = [b"{\"class_uid\":4002,\"ti", b"{", b"\0\0\0\0\0\0", b"{\"class_uid\":40\0\0\0\0"];
    for tail in torn {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let settings = file_settings(&path);
        open(&settings, directory.path()).shutdown();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole, tail].concat()).unwrap();
        assert!(!checked(&path, &proof(&settings)).is_intact());
        open(&settings, directory.path()).shutdown();
        let summary = intact(&path, &proof(&settings));
        assert_eq!(summary.segments, 2);
        let repaired = lines(&fs::read(&path).unwrap())
            .iter()
            .find_map(|line| line["unmapped"]["repaired_bytes"].as_u64().filter(|bytes| *bytes > 0));
        assert_eq!(repaired, Some(tail.len() as u64));
    }
}

#[test]
fn a_file_with_a_torn_first_line_is_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let settings = file_settings(&path);
    fs::write(&path, "{\"class_ui").unwrap();
    open(&settings, directory.path()).shutdown();
    assert_eq!(intact(&path, &proof(&settings)).first, 1);
}

#[test]
fn a_file_that_is_no_trail_is_left_alone() {
    for content in ["root:x:0:0\n", "no line end at all", "{}\n{\"class_uid\":40"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        fs::write(&path, content).unwrap();
        let error = Trail::open(&file_settings(&path), directory.path(), clock()).unwrap_err();
        assert!(error.to_string().contains("not one of an audit trail"), "{error}");
    }
}

/// The error named the last line, which was intact.
#[test]
fn an_error_about_a_first_line_that_is_no_record_names_that_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    open(&file_settings(&path), directory.path()).shutdown();
    let lines = fs::read_to_string(&path).unwrap();
    assert!(first_and_last(&path).is_ok());
    fs::write(&path, format!("{{}}\n{lines}")).unwrap();
    let error = first_and_last(&path).unwrap_err();
    assert!(error.to_string().contains("the first line is not one of an audit trail"), "{error}");
}

/// Regression: a damaged first line kept Doorward from starting, and the log named the last line instead.
#[test]
fn a_trail_with_a_damaged_first_line_is_continued_and_verify_reports_it() {
    for damaged in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let settings = file_settings(&path);
        let trail = open(&settings, directory.path());
        trail.write(record(1));
        trail.shutdown();
        let whole = fs::read_to_string(&path).unwrap();
        // Like a file that replaces a moved one, which may begin with a request.
        let lines: Vec<&str> = whole.lines().skip(1).collect();
        let edited: Vec<String> = (0..)
            .zip(lines)
            .map(|(at, line)| match at == damaged {
                true => format!("?{}\n", &line[1..]),
                false => format!("{line}\n"),
            })
            .collect();
        fs::write(&path, edited.concat()).unwrap();
        open(&settings, directory.path()).shutdown();
        assert!(!checked(&path, &proof(&settings)).is_intact());
    }
}

#[test]
fn a_refused_file_keeps_its_content() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    fs::write(&path, "{}\n{\"class_uid\":40").unwrap();
    Trail::open(&file_settings(&path), directory.path(), clock()).unwrap_err();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n{\"class_uid\":40");
}

#[test]
fn two_instances_cannot_write_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let settings = file_settings(&directory.path().join("audit.jsonl"));
    let first = open(&settings, directory.path());
    let other = Settings { instance: "replica-1".to_owned(), ..settings.clone() };
    let error = Trail::open(&other, directory.path(), clock()).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    first.shutdown();
    open(&settings, directory.path()).shutdown();
}

/// Fills some files and returns them, the current one last.
fn rotated(settings: &Settings, directory: &Path) -> Vec<PathBuf> {
    let settings = Settings { queue: 4096, ..settings.clone() };
    let trail = open(&settings, directory);
    for number in 0..400 {
        trail.write(record(number));
    }
    trail.shutdown();
    let Destination::File { path, .. } = &settings.destination else { panic!() };
    trail_files(path).unwrap()
}

#[test]
fn the_chain_runs_on_across_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let settings = file_settings(&path);
    let files = rotated(&settings, directory.path());
    assert!(files.len() > 3, "{files:?}");
    assert_eq!(files[0], directory.path().join("audit.jsonl.000001"));
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 66 << 10);
    }
    assert_eq!(intact(&path, &proof(&settings)).kinds["request"], 400);

    let second = lines(&fs::read(&files[1]).unwrap());
    let first = lines(&fs::read(&files[0]).unwrap());
    assert_eq!(kind(&second[0]), "trail.file");
    assert_eq!(second[0]["prev"], first.last().unwrap()["mac"]);
    assert_eq!(second[0]["unmapped"]["previous"], "audit.jsonl.000001");

    // A file missing in the middle is reported, and so is one at the beginning, unless the files are declared to be a
    // part.
    let without = |at: usize| files.iter().enumerate().filter(move |(n, _)| *n != at).map(|(_, file)| file);
    assert!(!verify_files(without(1), &proof(&settings)).unwrap().is_intact());
    let findings = verify_files(without(0), &proof(&settings)).unwrap();
    assert!(problems(&findings)[0].contains("no line says that retention removed them"), "{:?}", problems(&findings));
    let findings = verify_files(without(0), &Proof { part: true, ..proof(&settings) }).unwrap();
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert!(findings.summary.first > 1);
}

#[test]
fn a_crash_between_two_files_is_bridged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let settings = file_settings(&path);
    open(&settings, directory.path()).shutdown();
    fs::rename(&path, directory.path().join("audit.jsonl.000001")).unwrap();
    open(&settings, directory.path()).shutdown();
    assert_eq!(intact(&path, &proof(&settings)).segments, 2);
}

#[test]
fn a_tail_cut_between_two_starts_is_detected_by_the_copied_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let copy = directory.path().join("elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), ..file_settings(&path) };
    let trail = open(&settings, directory.path());
    trail.write(record(1));
    trail.shutdown();

    let mut proof = proof(&settings);
    let checkpoint = |proof: &Proof| {
        let lines = fs::read(&copy).unwrap();
        Checkpoint::last_of(&*lines, proof).unwrap()
    };
    proof.last_checkpoint = Some(checkpoint(&proof));
    assert!(intact(&path, &proof).end_checked);

    let whole = fs::read(&path).unwrap();
    let keep = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    fs::write(&path, &whole[..keep]).unwrap();
    let findings = checked(&path, &proof);
    assert!(problems(&findings)[0].contains("lines were cut off the end"));
    proof.last_checkpoint = None;
    assert!(checked(&path, &proof).is_intact(), "without it nobody could tell");

    // The next start detects it too, and records it permanently.
    open(&settings, directory.path()).shutdown();
    let findings = checked(&path, &proof);
    assert!(problems(&findings)[0].contains("no longer reached its checkpoint"), "{:?}", problems(&findings));
}

/// Writes a trail of one start, and returns a proof with the last checkpoint from the copy at that time.
fn of_one_start_with_a_copy(path: &Path) -> (Settings, Proof) {
    let folder = path.parent().unwrap();
    let copy = folder.join("elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), ..file_settings(path) };
    open(&settings, folder).shutdown();
    let proof = proof(&settings);
    let copied = fs::read(&copy).unwrap();
    let last_checkpoint = Some(Checkpoint::last_of(&*copied, &proof).unwrap());
    (settings, Proof { last_checkpoint, ..proof })
}

/// The last line of the copy counted, so that an earlier checkpoint, appended to it, hid that lines were cut off. It is in
/// the trail itself, and needs no key.
#[test]
fn a_cut_is_found_although_an_earlier_checkpoint_was_repeated_at_the_end_of_the_copy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (settings, _) = of_one_start_with_a_copy(&path);
    let before = fs::read(&path).unwrap();
    open(&settings, directory.path()).shutdown();
    let copied = fs::read_to_string(directory.path().join("elsewhere.jsonl")).unwrap();
    let repeated = format!("{copied}{}\n", copied.lines().next().unwrap());
    let proof = proof(&settings);
    let last_checkpoint = Some(Checkpoint::last_of(repeated.as_bytes(), &proof).unwrap());
    let proof = Proof { last_checkpoint, ..proof };
    assert!(intact(&path, &proof).end_checked);
    fs::write(&path, before).unwrap();
    let found = problems(&checked(&path, &proof));
    assert!(found[0].contains("lines were cut off the end"), "{found:?}");
}

/// A repeated checkpoint hid the cut from the next start, and later only the last checkpoint was compared.
#[test]
fn a_trail_that_went_on_after_a_cut_does_not_fit_the_copy() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("audit.jsonl"), directory.path().join("elsewhere.jsonl"));
    let (settings, _) = of_one_start_with_a_copy(&path);
    let (before, first) = (fs::read(&path).unwrap(), fs::read_to_string(&copy).unwrap());
    let proof = proof(&settings);
    let with_copy = || {
        let last_checkpoint = Some(Checkpoint::last_of(&*fs::read(&copy).unwrap(), &proof).unwrap());
        Proof { last_checkpoint, ..proof.clone() }
    };
    let trail = open(&settings, directory.path());
    trail.write(record(1));
    trail.shutdown();
    assert!(intact(&path, &with_copy()).end_checked);
    fs::write(&path, before).unwrap();
    let copied = fs::read_to_string(&copy).unwrap();
    fs::write(&copy, format!("{copied}{}\n", first.lines().next_back().unwrap())).unwrap();
    for _ in 0..2 {
        open(&settings, directory.path()).shutdown();
    }
    let found = problems(&checked(&path, &with_copy()));
    let [problem] = found.as_slice() else { panic!("{found:?}") };
    assert!(problem.contains("the trail was rewritten"), "{problem}");
}

/// Of two checkpoints with one number only the later was compared, which fits the trail that went on.
#[test]
fn a_trail_that_went_on_after_a_cut_to_the_same_number_does_not_fit_the_copy() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("audit.jsonl"), directory.path().join("elsewhere.jsonl"));
    let (settings, _) = of_one_start_with_a_copy(&path);
    let (before, first) = (fs::read(&path).unwrap(), fs::read_to_string(&copy).unwrap());
    for number in 1..=2 {
        fs::write(&path, &before).unwrap();
        let copied = fs::read_to_string(&copy).unwrap();
        fs::write(&copy, format!("{copied}{}\n", first.lines().next_back().unwrap())).unwrap();
        let trail = open(&settings, directory.path());
        trail.write(record(number));
        trail.shutdown();
    }
    let proof = proof(&settings);
    let last_checkpoint = Some(Checkpoint::last_of(&*fs::read(&copy).unwrap(), &proof).unwrap());
    let found = problems(&checked(&path, &Proof { last_checkpoint, ..proof }));
    let [problem] = found.as_slice() else { panic!("{found:?}") };
    assert!(problem.contains("the trail was rewritten"), "{problem}");
}

/// The output did not mention the later lines, which somebody may have cut off, nor that the checkpoint's line is
/// missing.
#[test]
fn the_last_position_that_a_copy_of_checkpoints_covers_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (settings, proof) = of_one_start_with_a_copy(&path);
    fs::rename(&path, directory.path().join("audit.jsonl.000001")).unwrap();
    open(&settings, directory.path()).shutdown();
    let summary = intact(&path, &proof);
    assert!(summary.end_checked);
    let said = format!("compared up to line 3, which was seen elsewhere at {NOW}: lines written later and cut off");
    assert!(summary.to_string().contains(&said), "{summary}");
    let findings = verify_files([&path], &Proof { part: true, ..proof }).unwrap();
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert!(!findings.summary.end_checked);
    let said = format!("the end was not compared: the last checkpoint from elsewhere is of line 3 at {NOW}");
    assert!(findings.summary.to_string().contains(&said), "{}", findings.summary);
    // Readers of the JSON would take these for a comparison.
    assert_eq!((findings.summary.compared_to, findings.summary.compared_at), (None, None));
    assert_eq!(findings.summary.not_compared.unwrap().seq, 3);
}

/// The output said that the line is not in the files.
#[test]
fn an_edited_last_checkpoint_is_not_reported_as_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (_, proof) = of_one_start_with_a_copy(&path);
    let whole = fs::read_to_string(&path).unwrap();
    let at = whole.rfind("\"time\":1").unwrap();
    fs::write(&path, [&whole[..at], "\"time\":2", &whole[at + 8..]].concat()).unwrap();
    let findings = checked(&path, &proof);
    assert!(problems(&findings)[0].contains("the line was edited"), "{:?}", problems(&findings));
    let said = findings.summary.to_string();
    assert!(said.contains("of line 3") && said.contains("was not found unedited in the files given"), "{said}");
}

#[test]
fn an_unavailable_checkpoint_copy_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let copy = directory.path().join("mount/elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), checkpoint_records: 1, ..file_settings(&path) };
    let trail = open(&settings, directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut reservation = trail.take_room(2, false).unwrap();
    runtime.block_on(reservation.write_durable(record(1))).unwrap();
    // The answer does not wait for the copy.
    let began = std::time::Instant::now();
    while trail.metrics().checkpoint_copy_errors.get() == 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "no error was counted");
        std::thread::yield_now();
    }
    let why = trail.checkpoint_copy().unwrap().unwrap_err();
    assert!(why.contains("mount/elsewhere.jsonl"), "{why}");
    fs::create_dir(directory.path().join("mount")).unwrap();
    runtime.block_on(reservation.write_durable(record(2))).unwrap();
    trail.shutdown();
    assert!(copy.exists());
    assert_eq!(trail.checkpoint_copy(), Some(Ok(())));
    intact(&path, &proof(&settings));
}

/// Like a mount whose server is gone.
#[test]
fn a_checkpoint_copy_that_hangs_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let copy = directory.path().join("elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), checkpoint_records: 1, ..file_settings(&path) };
    let trail = open(&settings, directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut reservation = trail.take_room(3, false).unwrap();
    runtime.block_on(reservation.write_durable(record(1))).unwrap();
    while Checkpoint::last_of(&*fs::read(&copy).unwrap_or_default(), &proof(&settings)).is_err() {
        std::thread::yield_now();
    }
    // A full pipe that nobody reads.
    let full = directory.path().join("full");
    assert!(std::process::Command::new("mkfifo").arg(&full).status().unwrap().success());
    let mut pipe = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(&full).unwrap();
    while pipe.write(&[b'x'; 4096]).is_ok() {}
    fs::rename(&full, &copy).unwrap();
    let began = std::time::Instant::now();
    runtime.block_on(reservation.write_durable(record(2))).unwrap();
    while trail.checkpoint_copy() == Some(Ok(())) {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody was told");
        std::thread::yield_now();
    }
    let why = trail.checkpoint_copy().unwrap().unwrap_err();
    assert!(why.contains("elsewhere.jsonl: it has not answered for "), "{why}");
    let errors = trail.metrics().checkpoint_copy_errors.get();
    runtime.block_on(reservation.write_durable(record(3))).unwrap();
    while trail.metrics().checkpoint_copy_errors.get() == errors {
        assert!(began.elapsed() < Duration::from_secs(30), "no error was counted");
        std::thread::yield_now();
    }
    // It answers again, and the pending checkpoints are written.
    fs::remove_file(&copy).unwrap();
    while pipe.read(&mut [0; 4096]).is_ok() {}
    trail.write(record(4));
    trail.shutdown();
    assert_eq!(trail.checkpoint_copy(), Some(Ok(())));
    let brought = fs::read(&copy).unwrap().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert!(brought >= 3, "{brought} checkpoints");
    intact(&path, &proof(&settings));
}

/// `O_NONBLOCK` of Linux.
const O_NONBLOCK: i32 = 0o4000;

/// They were looked for beside the link, and their lines counted as removed.
#[test]
fn the_full_files_of_a_trail_are_found_through_a_link() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = directory.path().join("audit.jsonl");
    let settings = file_settings(&path);
    let files = rotated(&settings, directory.path());
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(trail_files(&link).unwrap().len(), files.len());
    intact(&link, &proof(&settings));
    // The twin: copies of full files under the name of the link belong to it.
    fs::copy(&files[0], elsewhere.path().join("link.000001")).unwrap();
    assert_eq!(trail_files(&link).unwrap(), [elsewhere.path().join("link.000001"), link]);
}

/// The first rotation renamed the link, and the trail went on beside it, perhaps on a volume that does not last.
#[test]
fn a_trail_in_the_place_of_a_link_rotates_where_the_link_leads_to() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (path, link) = (directory.path().join("audit.jsonl"), elsewhere.path().join("link"));
    fs::write(&path, "").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let settings = file_settings(&link);
    let files = rotated(&settings, directory.path());
    assert!(files.len() > 1 && files.iter().all(|file| file.starts_with(directory.path())), "{files:?}");
    assert!(link.is_symlink() && fs::read_dir(elsewhere.path()).unwrap().count() == 1);
    intact(&link, &proof(&settings));
}

#[test]
fn a_request_is_found_by_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let settings = file_settings(&path);
    let files = Files::new(rotated(&settings, directory.path()));
    let found = files.request(Uuid::from_u128(17)).unwrap().unwrap();
    assert_eq!(found.path, "/apis/17");
    assert!(files.request(Uuid::from_u128(9999)).unwrap().is_none());
}
