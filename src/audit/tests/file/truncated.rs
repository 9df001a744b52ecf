//! A file of the trail that somebody truncates while it is open, as `copytruncate` of logrotate does.

use super::*;

fn opened(path: &Path) -> RotatingFile {
    let (mut sink, _) = RotatingFile::open(path, 1 << 20, Retention::default(), NOW).unwrap();
    sink.write(b"one\n").unwrap();
    sink.sync().unwrap();
    sink
}

fn truncate(path: &Path, left: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(left).unwrap();
}

/// Exports read on at their old places, which were beyond the end of the file or within a line, until the file was full.
#[test]
fn lines_after_a_truncation_have_places_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut sink = opened(&path);
    truncate(&path, 0);
    sink.write(b"two and three\n").unwrap();
    sink.sync().unwrap();
    assert_eq!(sink.place(), export::Place { file: 2, offset: 14 });
    sink.write(b"four\n").unwrap();
    sink.sync().unwrap();
    assert_eq!(sink.place(), export::Place { file: 2, offset: 19 });
    assert_eq!(fs::read(&path).unwrap(), b"two and three\nfour\n");
    assert_eq!(&*sink.rotate(NOW).unwrap().unwrap(), "audit.jsonl.000002");
}

#[test]
fn lines_that_a_truncation_may_have_taken_before_their_sync_are_written_again() {
    for (left, number) in [(0, 2), (6, 3)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let mut sink = opened(&path);
        sink.write(b"two\n").unwrap();
        truncate(&path, left);
        let error = sink.sync().unwrap_err();
        assert!(error.to_string().contains("somebody truncated the file of the trail"), "{left}: {error}");
        assert_eq!(sink.place(), export::Place { file: number, offset: 0 }, "{left}");
        sink.sync_again(b"two\n").unwrap();
        assert_eq!(sink.place(), export::Place { file: number, offset: 4 }, "{left}");
        assert_eq!(fs::read(&path).unwrap(), b"two\n", "{left}");
        let aside = fs::read(directory.path().join("audit.jsonl.000002")).ok();
        assert_eq!(aside, (left > 0).then(|| b"one\ntw".to_vec()), "what is left stays, apart from later lines");
    }
}

/// Retention stops at a full file without lines.
#[test]
fn a_file_that_was_emptied_does_not_become_a_full_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut sink = opened(&path);
    truncate(&path, 0);
    assert_eq!(sink.rotate(NOW).unwrap(), None);
    assert_eq!(trail_files(&path).unwrap(), std::slice::from_ref(&path));
    sink.write(b"two\n").unwrap();
    sink.sync().unwrap();
    assert_eq!(sink.place(), export::Place { file: 2, offset: 4 });
}

#[test]
fn a_truncation_between_two_records_refuses_no_request_and_exports_learn_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let (trail, backlog) = exported(&path, 1 << 20);
    write(&trail, 1).unwrap();
    let before = backlog.end_now();
    truncate(&path, 0);
    write(&trail, 2).unwrap();
    let after = backlog.end_now();
    let length = fs::metadata(&path).unwrap().len();
    assert_eq!(after.place, export::Place { file: before.place.file + 1, offset: length });
    assert_eq!(after.total - before.total, length as i64);
}
