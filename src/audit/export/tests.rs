//! Tests of exports over trails on disk.

mod bounds;
mod truncated;

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Backlog, Settings,
    backlog::Export,
    position::{self, Position},
    reader::{BATCH_BYTES, Batch, Cursor, End, Place, bytes_after, locate, read},
    settings::{Limit, Target},
};
use crate::{
    audit::{
        ChainKey,
        chain::{Chain, Link, Mac, Sealed},
        settings::Retention,
        sink::{RotatingFile, Sink},
    },
    clock::Timestamp,
    config::{
        raw::{self, WhenBehind},
        report::At,
        resolver::Resolver,
    },
    egress::Egress,
};

/// A trail with some lines in each file; the last file is the current one.
pub(super) struct Written {
    folder: tempfile::TempDir,
    lines: Vec<String>,
    end: Place,
}

impl Written {
    pub(super) fn new(files: &[usize]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut chain = Chain::new(ChainKey::new(&[7; 32]).unwrap(), Link::NONE);
        let (mut lines, mut end) = (Vec::new(), Place::default());
        for (index, count) in files.iter().enumerate() {
            let mut text = Vec::new();
            for number in 0..*count {
                let mut line = format!("{{\"class_uid\":{index}{number}").into_bytes();
                chain.seal(&mut line, 0, None);
                text.extend_from_slice(&line);
                lines.push(String::from_utf8(line).unwrap());
            }
            end = Place { file: index as u64 + 1, offset: text.len() as u64 };
            let name = if index + 1 == files.len() { "t".to_owned() } else { format!("t.{:06}", index + 1) };
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self { folder, lines, end }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("t")
    }

    fn end(&self) -> End {
        End { place: self.end, total: 0 }
    }

    /// Returns the position after the line with this number, as an export stores it.
    fn after(&self, seq: usize) -> Position {
        let (start, _) = locate(&self.path(), None, self.end).unwrap();
        let batch = self.few(start, self.end(), seq).unwrap();
        assert_eq!(batch.count, seq, "the line is in the first file");
        Position { place: batch.after.place, last: batch.after.last, caught_up: true }
    }

    /// Reads lines of one file from a place on, `most` bytes at most.
    fn few(&self, from: Cursor, end: End, most: usize) -> Option<Batch> {
        let after = self.lines.iter().skip(usize::try_from(from.last.seq).unwrap());
        read(&self.path(), from, end, after.take(most).map(String::len).sum()).unwrap()
    }

    /// Reads everything from a place on.
    fn rest(&self, from: Cursor) -> String {
        let (mut from, mut text) = (from, String::new());
        while let Some(batch) = read(&self.path(), from, self.end(), BATCH_BYTES).unwrap() {
            assert_eq!(batch.lines().count(), batch.count);
            text.push_str(std::str::from_utf8(&batch.bytes).unwrap());
            from = batch.after;
        }
        assert_eq!((from.total, from.place), (0, self.end), "at the end nothing is behind");
        text
    }
}

#[test]
fn all_lines_are_read_over_all_files_in_batches() {
    let trail = Written::new(&[3, 700, 1, 5]);
    let (start, found) = locate(&trail.path(), None, trail.end).unwrap();
    assert!(!found);
    assert_eq!(-start.total, trail.lines.iter().map(|line| line.len() as i64).sum::<i64>());
    assert_eq!(trail.rest(start), trail.lines.concat());
    let first = trail.few(start, trail.end(), 2).unwrap();
    assert_eq!((first.count, first.first, first.after.last.seq), (2, Some(1), 2));
}

#[test]
fn a_batch_has_the_bytes_that_it_may_have_and_one_line_in_any_case() {
    let trail = Written::new(&[3]);
    let (start, _) = locate(&trail.path(), None, trail.end).unwrap();
    let size = |count: usize| trail.lines[..count].iter().map(String::len).sum::<usize>();
    for (most, count) in [(0, 1), (size(1), 1), (size(2) - 1, 1), (size(2), 2), (size(3) - 1, 2), (BATCH_BYTES, 3)] {
        let batch = read(&trail.path(), start, trail.end(), most).unwrap().unwrap();
        assert_eq!((batch.count, batch.bytes.len()), (count, size(count)), "{most}");
        assert_eq!(batch.after.last.seq, count as u64);
    }
}

#[test]
fn only_what_is_on_stable_storage_is_read() {
    let trail = Written::new(&[5]);
    let (start, _) = locate(&trail.path(), None, trail.end).unwrap();
    let half: u64 = trail.lines[..2].iter().map(|line| line.len() as u64).sum();
    let end = End { place: Place { file: 1, offset: half }, total: 0 };
    let batch = read(&trail.path(), start, end, BATCH_BYTES).unwrap().unwrap();
    assert_eq!(batch.count, 2);
    assert!(read(&trail.path(), batch.after, end, BATCH_BYTES).unwrap().is_none());
}

#[test]
fn a_file_that_is_rotated_while_it_is_read_is_read_to_its_end() {
    let trail = Written::new(&[2, 3]);
    let (start, _) = locate(&trail.path(), None, trail.end).unwrap();
    // The writer has begun a third file, which the reader does not know yet.
    fs::rename(trail.path(), trail.folder.path().join("t.000002")).unwrap();
    assert_eq!(trail.rest(start), trail.lines.concat());
    fs::write(trail.path(), "not of the second file\n").unwrap();
    assert_eq!(trail.rest(start), trail.lines.concat());
}

/// The new file had the number of the one that was gone, and the receiver's position in that was reached later in the
/// new file, or never.
#[test]
fn a_file_that_replaces_a_moved_or_removed_one_is_read_from_its_beginning() {
    for is_removed in [false, true] {
        let lines = Written::new(&[4]).lines;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let begun = Timestamp::from_secs(0);
        let (mut sink, _) = RotatingFile::open(&path, 1 << 20, Retention::default(), begun).unwrap();
        sink.write(lines[0].as_bytes()).unwrap();
        sink.sync().unwrap();
        let end = |sink: &RotatingFile| End { place: sink.place(), total: 0 };
        let (start, _) = locate(&path, None, sink.place()).unwrap();
        let first = read(&path, start, end(&sink), BATCH_BYTES).unwrap().unwrap();
        sink.write(lines[1].as_bytes()).unwrap();
        let rest = if is_removed {
            fs::remove_file(&path).unwrap();
            sink.sync().unwrap_err();
            sink.sync_again(lines[1].as_bytes()).unwrap();
            &lines[1..]
        } else {
            fs::rename(&path, folder.path().join("moved")).unwrap();
            sink.sync().unwrap();
            &lines[2..]
        };
        assert!(is_removed || read(&path, first.after, end(&sink), BATCH_BYTES).unwrap().is_none(), "nothing is there");
        for line in &lines[2..] {
            sink.write(line.as_bytes()).unwrap();
            sink.sync().unwrap();
        }
        let read = read(&path, first.after, end(&sink), BATCH_BYTES).unwrap().unwrap();
        assert_eq!(String::from_utf8(read.bytes).unwrap(), rest.concat(), "removed: {is_removed}");
        assert_eq!(read.after.place, sink.place());
    }
}

#[test]
fn a_position_is_found_again() {
    let trail = Written::new(&[4, 4, 4]);
    let position = trail.after(2);
    let (cursor, found) = locate(&trail.path(), Some(&position), trail.end).unwrap();
    assert!(found);
    assert_eq!(trail.rest(cursor), trail.lines[2..].concat());
    // Also if files were renumbered, and if its place is wrong.
    for place in [Place { file: 9, ..position.place }, Place { offset: 7, ..position.place }, Place::default()] {
        let (again, found) = locate(&trail.path(), Some(&Position { place, ..position }), trail.end).unwrap();
        assert_eq!((again, found), (cursor, true), "{place:?}");
    }
    // The last line of a file is before the first of the next, whatever has become of the file.
    let last = trail.after(4);
    fs::remove_file(trail.folder.path().join("t.000001")).unwrap();
    let (cursor, found) = locate(&trail.path(), Some(&last), trail.end).unwrap();
    assert_eq!((cursor.place, found), (Place { file: 2, offset: 0 }, true));
    assert_eq!(trail.rest(cursor), trail.lines[4..].concat());
}

/// All of the trail was sent again, and requests were refused until then.
#[test]
fn an_export_resumes_after_a_moved_file_and_its_unsent_lines_count_as_lost() {
    let trail = Written::new(&[4, 4, 4]);
    let last = Sealed::parse(trail.lines[5].trim_end().as_bytes()).unwrap().link;
    let position = Position { place: Place { file: 2, offset: 9 }, last, caught_up: true };
    position::save(&position::file_of(trail.folder.path(), "siem"), &position).unwrap();
    fs::rename(trail.folder.path().join("t.000002"), trail.folder.path().join("moved")).unwrap();
    let (_backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
    let settled = export.settled();
    assert_eq!((settled.place, settled.last), (Place { file: 3, offset: 0 }, last));
    assert_eq!(trail.rest(settled), trail.lines[8..].concat());
    send_all(&trail, &export);
    assert_eq!((export.settled().last.seq, export.metrics().lost.get()), (12, 2));
}

/// All of the trail was sent again, and requests were refused until then.
#[test]
fn an_export_resumes_after_the_remaining_lines_if_the_last_file_was_moved() {
    let mut trail = Written::new(&[4, 4, 4]);
    let last = Sealed::parse(trail.lines[9].trim_end().as_bytes()).unwrap().link;
    let position = Position { place: trail.end, last, caught_up: true };
    position::save(&position::file_of(trail.folder.path(), "siem"), &position).unwrap();
    fs::rename(trail.path(), trail.folder.path().join("moved")).unwrap();
    fs::write(trail.path(), "").unwrap();
    trail.end.offset = 0;
    // The second start has the position that the first one stored.
    for _ in 0..2 {
        let (backlog, export) = open(&trail, limit(Some(1), WhenBehind::Refuse));
        assert_eq!((export.settled().last.seq, export.settled().total, backlog.refuses()), (8, 0, false));
    }
    fs::write(trail.path(), &trail.lines[8]).unwrap();
    trail.end.offset = trail.lines[8].len() as u64;
    let (_backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
    assert_eq!(trail.rest(export.settled()), trail.lines[8]);
}

/// Its lines were never sent, and counted as deleted.
#[test]
fn a_file_with_a_damaged_first_line_is_sent_if_an_exports_position_may_be_in_it() {
    for (file, at) in [(1, 1), (2, 5)] {
        let trail = Written::new(&[4, 4, 4]);
        let last = Sealed::parse(trail.lines[at].trim_end().as_bytes()).unwrap().link;
        let position = Position { place: Place { file, offset: 9 }, last, caught_up: true };
        let path = trail.folder.path().join(format!("t.{file:06}"));
        let whole = fs::read(&path).unwrap();
        let end = whole.iter().position(|byte| *byte == b'\n').unwrap();
        fs::write(&path, [&whole[..end - 5], &whole[end..]].concat()).unwrap();
        let (cursor, found) = locate(&trail.path(), Some(&position), trail.end).unwrap();
        assert_eq!((cursor.place, cursor.last, found), (Place { file, offset: 0 }, last, true));
        assert!(trail.rest(cursor).ends_with(&trail.lines[at..].concat()), "{file}");
    }
}

#[test]
fn a_position_that_the_trail_does_not_have_begins_with_its_first_line() {
    let trail = Written::new(&[2, 2]);
    let position = trail.after(2);
    for last in
        [Link { seq: 500, ..position.last }, Link { mac: Mac::from_digits(&"ab".repeat(32)).unwrap(), ..position.last }]
    {
        let (cursor, found) = locate(&trail.path(), Some(&Position { last, ..position }), trail.end).unwrap();
        assert!(!found, "{last:?}");
        assert_eq!(trail.rest(cursor), trail.lines.concat());
    }
}

pub(super) fn limit(max_behind: Option<u64>, when_behind: WhenBehind) -> Limit {
    Limit { max_behind, when_behind }
}

pub(super) fn open(trail: &Written, limit: Limit) -> (Backlog, Export) {
    let raw = raw::SyslogExport { address: "127.0.0.1:1".to_owned(), tls: None };
    let server = super::syslog::Server::resolve(&raw, &At::root(), &mut Resolver::default()).unwrap();
    let settings = Settings { name: "siem".into(), target: Target::Syslog(server), limit };
    let backlog = Backlog::open(&trail.path(), &[settings], trail.folder.path(), "replica-0", trail.end).unwrap();
    let export = backlog.exports()[0].clone();
    (backlog, export)
}

fn send_all(trail: &Written, export: &Export) {
    let end = *export.end().borrow();
    let mut cursor = export.settled();
    while let Some(batch) = trail.few(cursor, end, 3) {
        export.reads(batch.first, batch.after.last.seq);
        cursor = batch.after;
        export.set_sent(&cursor);
        export.set_settled(&cursor);
    }
}

#[test]
fn files_that_were_deleted_are_counted_once_however_it_is_noticed() {
    for asked in [true, false] {
        let trail = Written::new(&[4, 4, 4]);
        let (backlog, export) = open(&trail, limit(None, WhenBehind::Continue));
        let end = *export.end().borrow();
        let batch = trail.few(export.settled(), end, 1).unwrap();
        export.reads(batch.first, batch.after.last.seq);
        export.set_settled(&batch.after);
        if asked {
            backlog.removed(1, 4);
            assert_eq!(export.metrics().lost.get(), 3, "counted when it is deleted");
        }
        fs::remove_file(trail.folder.path().join("t.000001")).unwrap();
        fs::remove_file(trail.folder.path().join("t.000002")).unwrap();
        if asked {
            backlog.removed(5, 8);
        }
        send_all(&trail, &export);
        assert_eq!(export.metrics().lost.get(), 7, "asked: {asked}");
        assert_eq!((export.settled().last.seq, export.settled().total), (12, 0));
        backlog.removed(1, 8);
        assert_eq!(export.metrics().lost.get(), 7, "it has them");
        assert!(!backlog.holds(1));
    }
}

/// The metric grew beyond the size of the trail.
#[test]
fn a_receiver_is_not_behind_by_lines_that_it_lost() {
    let trail = Written::new(&[4, 4, 4]);
    let (backlog, export) = open(&trail, limit(None, WhenBehind::Continue));
    let bytes = |lines: &[String]| lines.iter().map(|line| line.len() as i64).sum::<i64>();
    let behind = || export.metrics().behind.get();
    assert_eq!(behind(), bytes(&trail.lines));
    fs::remove_file(trail.folder.path().join("t.000001")).unwrap();
    backlog.removed(1, 4);
    assert_eq!(behind(), bytes(&trail.lines[4..]));
    // As each attempt to reach it does.
    export.set_sent(&export.goes_back());
    assert_eq!(behind(), bytes(&trail.lines[4..]));
    send_all(&trail, &export);
    assert_eq!(behind(), 0);
}

/// Lines that were in flight on a broken connection are sent again; those that were deleted meanwhile cannot be, and
/// count as lost.
#[test]
fn lines_in_flight_when_their_file_was_removed_are_lost_with_the_connection() {
    let trail = Written::new(&[4, 4, 4]);
    let (backlog, export) = open(&trail, limit(None, WhenBehind::Continue));
    let end = *export.end().borrow();
    let first = trail.few(export.settled(), end, 1).unwrap();
    export.reads(first.first, first.after.last.seq);
    export.set_settled(&first.after);
    let second = trail.few(first.after, end, 2).unwrap();
    export.reads(second.first, second.after.last.seq);
    assert_eq!((first.after.last.seq, second.after.last.seq), (1, 3));
    fs::remove_file(trail.folder.path().join("t.000001")).unwrap();
    backlog.removed(1, 4);
    assert_eq!(export.metrics().lost.get(), 1, "2 and 3 are on their way");
    assert_eq!(export.goes_back(), first.after);
    assert_eq!(export.metrics().lost.get(), 3, "and did not arrive, as far as anybody knows");
    export.goes_back();
    assert_eq!(export.metrics().lost.get(), 3, "once");
    send_all(&trail, &export);
    assert_eq!((export.settled().last.seq, export.metrics().lost.get()), (12, 3));
}

#[test]
fn lines_to_be_sent_again_are_lost_if_their_file_is_removed_first() {
    let trail = Written::new(&[4, 4]);
    let (backlog, export) = open(&trail, limit(None, WhenBehind::Continue));
    let batch = trail.few(export.settled(), *export.end().borrow(), 4).unwrap();
    export.reads(batch.first, batch.after.last.seq);
    export.goes_back();
    assert_eq!(export.metrics().lost.get(), 0, "it is still there");
    fs::remove_file(trail.folder.path().join("t.000001")).unwrap();
    backlog.removed(1, 4);
    send_all(&trail, &export);
    assert_eq!((export.settled().last.seq, export.metrics().lost.get()), (8, 4));
}

#[test]
fn a_file_that_must_not_be_lost_is_kept_until_it_was_sent() {
    let trail = Written::new(&[4, 4]);
    let (backlog, export) = open(&trail, limit(None, WhenBehind::Refuse));
    assert!(backlog.holds(1));
    send_all(&trail, &export);
    assert!(!backlog.holds(1));
    assert_eq!(export.metrics().lost.get(), 0);
}

#[test]
fn requests_are_refused_while_the_receiver_is_too_far_behind() {
    let trail = Written::new(&[4]);
    let size = trail.end.offset;
    let grow = |backlog: &Backlog, bytes: u64| {
        let place = Place { offset: size + bytes, ..trail.end };
        backlog.grown(End { place, total: bytes as i64 });
    };
    // A new export has time to catch up first.
    let (backlog, export) = open(&trail, limit(Some(size - 1), WhenBehind::Refuse));
    assert!(!backlog.refuses());
    grow(&backlog, 10);
    assert!(!backlog.refuses());
    send_all_to(&trail, &export);
    grow(&backlog, size - 1);
    assert!(!backlog.refuses());
    grow(&backlog, size);
    assert!(backlog.refuses());
    assert!(backlog.why().unwrap().contains("siem"));
    export.save().unwrap();
    grow(&backlog, size - 1);
    assert!(!backlog.refuses() && backlog.why().is_none());
    // After a restart it is known that it had caught up.
    let place = Place { offset: 0, ..trail.end };
    let kept = position::load(&position::file_of(trail.folder.path(), "siem")).unwrap().unwrap();
    assert!(kept.caught_up);
    position::save(&position::file_of(trail.folder.path(), "siem"), &Position { place, last: Link::NONE, ..kept })
        .unwrap();
    let (backlog, _) = open(&trail, limit(Some(size - 1), WhenBehind::Refuse));
    assert!(backlog.refuses());
    let (backlog, _) = open(&trail, limit(Some(size - 1), WhenBehind::Continue));
    assert!(!backlog.refuses());
    // A new configuration generation may change this.
    let (backlog, _) = open(&trail, limit(Some(size - 1), WhenBehind::Refuse));
    assert!(backlog.refuses());
    let raw = raw::SyslogExport { address: "127.0.0.1:1".to_owned(), tls: None };
    let server = super::syslog::Server::resolve(&raw, &At::root(), &mut Resolver::default()).unwrap();
    let new = Settings { name: "siem".into(), target: Target::Syslog(server), limit: limit(None, WhenBehind::Refuse) };
    backlog.set(&[new]);
    assert!(!backlog.refuses());
}

#[test]
fn the_bound_holds_after_a_restart_for_a_receiver_that_was_never_reached() {
    let trail = Written::new(&[4, 4]);
    let size = trail.lines.iter().map(|line| line.len() as u64).sum::<u64>();
    let (backlog, _) = open(&trail, limit(Some(size), WhenBehind::Refuse));
    assert!(!backlog.refuses());
    let (backlog, export) = open(&trail, limit(Some(size - 1), WhenBehind::Refuse));
    assert!(backlog.refuses());
    // If the beginning of the trail is gone, it begins with the first line that is there.
    fs::remove_file(trail.folder.path().join("t.000001")).unwrap();
    drop((backlog, export));
    let (_, export) = open(&trail, limit(None, WhenBehind::Refuse));
    send_all(&trail, &export);
    assert_eq!((export.settled().last.seq, export.metrics().lost.get()), (8, 0));
}

fn send_all_to(trail: &Written, export: &Export) {
    // What has grown is not there to be read; only what was there is sent.
    let mut cursor = export.settled();
    while let Some(batch) = trail.few(cursor, trail.end(), 3) {
        cursor = batch.after;
        export.set_sent(&cursor);
        export.set_settled(&cursor);
    }
}

#[test]
fn bytes_are_counted_over_files() {
    let trail = Written::new(&[1, 1, 1]);
    let size = |range: std::ops::Range<usize>| trail.lines[range].iter().map(|line| line.len() as i64).sum::<i64>();
    let at = |file, offset| bytes_after(&trail.path(), Place { file, offset }, trail.end).unwrap();
    assert_eq!((at(1, 0), at(2, 0), at(3, 0), at(1, 5)), (size(0..3), size(1..3), size(2..3), size(0..3) - 5));
    assert_eq!(bytes_after(&trail.path(), trail.end, trail.end).unwrap(), 0);
}

#[test]
fn damaged_lines_are_sent_verbatim() {
    let trail = Written::new(&[3]);
    let damaged = fs::read_to_string(trail.path()).unwrap().replacen("class", "CLASS", 1) + "no line\n";
    fs::write(trail.path(), &damaged).unwrap();
    let end = End { place: Place { file: 1, offset: damaged.len() as u64 }, total: 0 };
    let start = Cursor { place: Place { file: 1, offset: 0 }, last: Link::NONE, total: -(damaged.len() as i64) };
    let batch = read(&trail.path(), start, end, BATCH_BYTES).unwrap().unwrap();
    assert_eq!(String::from_utf8(batch.bytes).unwrap(), damaged);
    assert_eq!(batch.after.last, Sealed::parse(trail.lines[2].trim_end().as_bytes()).unwrap().link);
}

#[test]
fn problems_of_exports_are_reported_once_at_their_path() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), "Bearer hunter2").unwrap();
    fs::write(folder.path().join("lines"), "a\nb").unwrap();
    let yaml = "
- {name: 'a/b', syslog: {address: 'localhost'}}
- {name: same, syslog: {address: 'localhost:514'}, max_behind: 1KiB}
- {name: same, syslog: {address: 'siem.test:514'}, max_behind: 1GiB, when_behind: continue}
- {name: both, syslog: {address: 'localhost:514'}, otlp: {endpoint: 'https://a.test'}}
- {name: none}
- {name: clear, otlp: {endpoint: 'http://a.test', timeout: 0}}
- {name: headers, otlp: {endpoint: 'https://a.test', headers: {host: {file: secret}, x-y: {file: lines}, ok: {file: secret}}}}
- {name: ca, otlp: {endpoint: 'https://a.test', ca: secret}}
- {name: tls, syslog: {address: 'a.test:6514', tls: {ca: secret}}}
- {name: 'a/b', syslog: {address: 'localhost:514'}}
";
    let raw: Vec<raw::AuditExport> = serde_saphyr::from_str(yaml).unwrap();
    let mut resolver = Resolver::new(Path::new(folder.path()));
    let found = Settings::resolve_all(&raw, &Egress::direct(None, None).unwrap(), &At::root(), &mut resolver);
    let mut places: Vec<&str> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
    places.sort_unstable();
    assert_eq!(
        places,
        [
            "/0/name",
            "/0/syslog/address",
            "/1/max_behind",
            "/2/max_behind",
            "/2/name",
            "/2/syslog/address",
            "/3",
            "/4",
            "/5/otlp/endpoint",
            "/5/otlp/timeout",
            "/6/otlp/headers/host",
            "/6/otlp/headers/x-y",
            "/7/otlp/ca",
            "/8/syslog/tls/ca",
            "/9/name",
        ]
    );
    assert!(resolver.report.problems().iter().all(|problem| !problem.message.contains("hunter2")));
    assert!(!format!("{found:?}").contains("hunter2"));
}
