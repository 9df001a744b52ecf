//! Bounds of what is read at once, of positions and of names.

use super::*;

/// In a trail that was restored from a backup, the existing lines would be taken for sent and never reach the receiver.
#[test]
fn a_number_beyond_the_trail_is_found_nowhere_unless_the_current_file_was_moved_away() {
    for (files, place) in [(&[2_usize, 2], None), (&[2, 0], Some(Place { file: 1, offset: 7 }))] {
        let trail = Written::new(files);
        let last = Link { seq: 500, ..trail.after(2).last };
        let position = Position { place: place.unwrap_or(trail.end), last, caught_up: true };
        let (cursor, found) = locate(&trail.path(), Some(&position), trail.end).unwrap();
        assert_eq!((cursor.place, found), (Place { file: 1, offset: 0 }, false), "{files:?}");
    }
}

#[test]
fn a_batch_has_at_most_so_many_lines() {
    let trail = Written::new(&[700]);
    let (start, _) = locate(&trail.path(), None, trail.end).unwrap();
    let first = read(&trail.path(), start, trail.end(), BATCH_BYTES).unwrap().unwrap();
    let second = read(&trail.path(), first.after, trail.end(), BATCH_BYTES).unwrap().unwrap();
    assert_eq!((first.count, second.count), (512, 188));
}

/// After a crash, a file can have a long stretch of zeros.
#[test]
fn a_stretch_without_line_ends_is_skipped_and_not_read_at_once() {
    let mut trail = Written::new(&[2]);
    let stretch = "x".repeat(BATCH_BYTES + 10) + "\n";
    fs::write(trail.path(), stretch.clone() + &trail.lines.concat()).unwrap();
    trail.end.offset += stretch.len() as u64;
    let (start, _) = locate(&trail.path(), None, trail.end).unwrap();
    let batch = read(&trail.path(), start, trail.end(), BATCH_BYTES).unwrap().unwrap();
    assert_eq!(String::from_utf8(batch.bytes).unwrap(), "x".repeat(10) + "\n" + &trail.lines.concat());
    assert_eq!((batch.after.place, batch.after.total), (trail.end, 0));
}

#[test]
fn the_name_of_an_export_has_1_to_64_characters() {
    for (length, problems) in [(0, 1), (1, 0), (64, 0), (65, 1)] {
        let yaml = format!("- {{name: '{}', syslog: {{address: 'localhost:514'}}}}", "a".repeat(length));
        let raw: Vec<raw::AuditExport> = serde_saphyr::from_str(&yaml).unwrap();
        let mut resolver = Resolver::default();
        Settings::resolve_all(&raw, &Egress::direct(None, None).unwrap(), &At::root(), &mut resolver);
        assert_eq!(resolver.report.problems().len(), problems, "{length}");
    }
}

#[test]
fn a_position_beyond_the_end_of_stable_storage_is_not_found() {
    let trail = Written::new(&[3]);
    let end = trail.after(2).place;
    for (seq, is_found) in [(2, true), (3, false)] {
        let (_, found) = locate(&trail.path(), Some(&trail.after(seq)), end).unwrap();
        assert_eq!(found, is_found, "{seq}");
    }
}
