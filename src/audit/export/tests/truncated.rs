//! Exports of a trail whose current file somebody truncates.

use super::*;

/// The trail could not be read any more, although later lines were in it, and requests were refused in the end.
#[test]
fn an_export_goes_on_with_the_first_line_after_a_truncation_and_counts_those_that_it_lost() {
    for (had, lost) in [(4, 0), (2, 2)] {
        let mut trail = Written::new(&[6]);
        fs::remove_file(trail.path()).unwrap();
        let now = Timestamp::from_secs(1_700_000_000);
        let (mut sink, _) = RotatingFile::open(&trail.path(), 1 << 20, Retention::default(), now).unwrap();
        sink.write(trail.lines[..4].concat().as_bytes()).unwrap();
        sink.sync().unwrap();
        trail.end = sink.place();
        let (backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
        let batch = trail.few(export.settled(), export.end_now(), had).unwrap();
        export.reads(batch.first, batch.after.last.seq);
        export.set_settled(&batch.after);
        fs::write(trail.path(), "").unwrap();
        let later = trail.lines[4..].concat();
        sink.write(later.as_bytes()).unwrap();
        sink.sync().unwrap();
        backlog.grown(End { place: sink.place(), total: later.len() as i64 });
        let batch = read(&trail.path(), export.settled(), export.end_now(), BATCH_BYTES).unwrap().unwrap();
        assert_eq!(String::from_utf8(batch.bytes).unwrap(), later, "{had}");
        send_all(&trail, &export);
        assert_eq!((export.settled().last.seq, export.metrics().lost.get()), (6, lost));
    }
}

/// The end of a line was sent as if it were one.
#[test]
fn no_part_of_a_line_is_read_from_a_file_that_was_truncated_and_has_grown_again() {
    let trail = Written::new(&[14]);
    let (sent, end) = (trail.after(3), End { place: trail.after(5).place, total: 0 });
    let cursor = Cursor { place: sent.place, last: sent.last, total: 0 };
    fs::write(trail.path(), trail.lines[9..].concat()).unwrap();
    let batch = read(&trail.path(), cursor, end, BATCH_BYTES).unwrap().unwrap();
    assert_eq!((batch.first, String::from_utf8(batch.bytes).unwrap()), (Some(10), trail.lines[9..13].concat()));
}

#[test]
fn a_file_that_is_shorter_than_what_was_written_is_named_with_the_cause() {
    let trail = Written::new(&[4]);
    let sent = trail.after(1);
    let cursor = Cursor { place: sent.place, last: sent.last, total: 0 };
    fs::write(trail.path(), &trail.lines[3]).unwrap();
    let error = read(&trail.path(), cursor, trail.end(), BATCH_BYTES).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", trail.path().display())), "{error}");
    assert!(error.contains("somebody truncated or moved it"), "{error}");
}
