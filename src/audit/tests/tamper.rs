use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::audit::chain::Chain;

/// A trail that was written once, and the proof to verify it.
struct Written {
    bytes: Vec<u8>,
    lines: Vec<Vec<u8>>,
    proof: Proof,
}

fn written() -> &'static Written {
    static WRITTEN: OnceLock<Written> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        let settings = Settings { checkpoint_records: 4, ..settings() };
        let sink = Memory::default();
        let trail = start(&settings, &sink, &clock());
        for number in 0..10 {
            trail.write(record(number));
        }
        trail.shutdown();
        let bytes = sink.bytes();
        let lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let mut proof = proof(&settings);
        let last = lines.last().unwrap().as_slice();
        proof.last_checkpoint = Some(Checkpoint::last_of(last, &proof).unwrap());
        Written { bytes, lines, proof }
    })
}

#[test]
fn a_key_of_another_trail_is_reported_once() {
    let Written { bytes, lines, proof } = written();
    let keys = vec![ChainKey::new(&[9; 32]).unwrap()];
    let other = Proof { keys, last_checkpoint: None, ..proof.clone() };
    let found = problems(&verify(bytes, &other));
    let all = format!("1 to {}: the line was edited or forged, or sealed with another key", lines.len());
    assert!(found[0].contains(&all), "{found:?}");
    assert!(found[1].contains("is it the key of this trail?") && found.len() == 2, "{found:?}");
}

#[test]
fn an_untouched_trail_is_intact() {
    let Written { bytes, lines, proof } = written();
    let findings = verify(bytes, proof);
    assert_eq!(problems(&findings), Vec::<String>::new());
    let Summary { first, last, segments, checkpoints, kinds, .. } = findings.summary;
    assert_eq!((first, last, segments), (1, lines.len() as u64, 1));
    assert!(checkpoints >= 1);
    assert_eq!((kinds["request"], kinds["trail.start"], kinds["trail.stop"]), (10, 1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_edited_byte_is_found(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = written().bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(!verify(&bytes, &written().proof).is_intact());
    }

    #[test]
    fn any_cut_is_found(at in any::<prop::sample::Index>()) {
        let bytes = &written().bytes;
        prop_assert!(!verify(&bytes[..at.index(bytes.len())], &written().proof).is_intact());
        // And at the front, unless nothing is cut.
        prop_assert!(!verify(&bytes[at.index(bytes.len() - 1) + 1..], &written().proof).is_intact());
    }

    #[test]
    fn any_deleted_inserted_or_moved_line_is_found(
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
    ) {
        let Written { lines, proof, .. } = written();
        let (from, to) = (from.index(lines.len()), to.index(lines.len()));
        let mut deleted = lines.clone();
        let line = deleted.remove(from);
        prop_assert!(!verify(&deleted.concat(), proof).is_intact(), "deleted {from}");
        let mut copied = lines.clone();
        copied.insert(to, line.clone());
        prop_assert!(!verify(&copied.concat(), proof).is_intact(), "copied {from} to {to}");
        if from != to {
            deleted.insert(to, line);
            prop_assert!(!verify(&deleted.concat(), proof).is_intact(), "moved {from} to {to}");
        }
    }
}

#[test]
fn problems_are_reported_in_plain_words_with_their_position() {
    let Written { lines, proof, .. } = written();
    let without = |at: usize| [&lines[..at], &lines[at + 1..]].concat().concat();
    let replaced = |at: usize, line: &[u8]| [&lines[..at].concat(), line, &lines[at + 1..].concat()].concat();
    let edited = String::from_utf8(lines[3].clone()).unwrap().replace("/apis/2", "/apis/9").into_bytes();
    for (name, bytes, expected) in [
        ("edited", replaced(3, &edited), "trail:4: the line was edited"),
        ("deleted", without(3), "trail:4: line number 4 is missing before this one"),
        ("three deleted", [&lines[..3], &lines[6..]].concat().concat(), "trail:4: lines number 4 to 6 are missing"),
        ("first deleted", without(0), "trail:1: lines before this one are missing"),
        ("inserted", replaced(3, &[b"{}\n", &*lines[3]].concat()), "trail:4: this is not a line of a trail"),
        ("repeated", replaced(3, &lines[3].repeat(2)), "trail:5: the line does not belong here: it is number 4"),
        ("half a line", replaced(lines.len() - 1, b"{\"class"), "the line is cut"),
        ("long", replaced(3, &[vec![b'x'; 20_000], vec![b'\n']].concat()), "trail:4: the line is longer"),
        ("last deleted", without(lines.len() - 1), "trail: lines were cut off the end"),
        ("nothing", Vec::new(), "trail: there is no line of a trail"),
    ] {
        let found = problems(&verify(&bytes, proof));
        assert!(found[0].contains(expected), "{name}: {found:?}");
    }
    // One edited line is one problem: the lines after it are not blamed.
    assert_eq!(problems(&verify(&replaced(3, &edited), proof)).len(), 1);
}

#[test]
fn without_the_key_nothing_is_claimed_and_with_another_everything_fails() {
    let Written { bytes, proof, .. } = written();
    assert!(matches!(Verifier::new(&Proof { keys: Vec::new(), ..proof.clone() }), Err(CannotVerify::NoKey)));
    let other = ChainKey::new(&[8; 32]).unwrap();
    let wrong = Proof { keys: vec![other.clone()], ..proof.clone() };
    assert!(!verify(bytes, &wrong).is_intact());
    let both = Proof { keys: vec![other, proof.keys[0].clone()], ..proof.clone() };
    assert!(verify(bytes, &both).is_intact());
}

#[test]
fn a_checkpoint_signed_by_another_key_is_found() {
    let Written { bytes, lines, proof } = written();
    let other = CheckpointKey::generate().unwrap().public().clone();
    let proof = Proof { checkpoint_keys: vec![other], ..proof.clone() };
    let found = problems(&verify(bytes, &proof));
    assert!(found.iter().all(|problem| problem.contains("signature of the checkpoint")), "{found:?}");
    assert!(!found.is_empty());
    let last = lines.last().unwrap().as_slice();
    let forged = Checkpoint::last_of(last, &proof);
    assert!(matches!(forged, Err(CannotVerify::ForgedCheckpoint)));
    let proof = Proof { checkpoint_keys: Vec::new(), ..proof };
    assert!(matches!(Checkpoint::last_of(&*lines[0], &proof), Err(CannotVerify::NoCheckpoint)));
}

#[test]
fn a_trail_rewritten_with_the_key_does_not_fit_the_checkpoint_kept_elsewhere() {
    let Written { proof, .. } = written();
    let settings = Settings { checkpoint_records: 4, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    for number in 0..20 {
        trail.write(record(number + 100));
    }
    trail.shutdown();
    let rewritten = Proof { checkpoint_keys: Vec::new(), ..proof.clone() };
    let found = problems(&verify(&sink.bytes(), &rewritten));
    assert!(found.iter().any(|problem| problem.contains("the trail was rewritten")), "{found:?}");
    assert!(verify(&sink.bytes(), &Proof { last_checkpoint: None, ..rewritten }).is_intact());
}

/// Edits or removes lines of a trail, and seals all of them again, as somebody with the keys can.
fn resealed(bytes: &[u8], settings: &Settings, edit: impl Fn(&str) -> Option<String>) -> Vec<u8> {
    let keys = keys_of(settings);
    let mut chain = Chain::new(keys.chain, Link::NONE);
    let mut sealed = Vec::new();
    for line in std::str::from_utf8(bytes).unwrap().lines() {
        let (content, seal) = line.rsplit_once(",\"seq\":").unwrap();
        if let Some(content) = edit(content) {
            let start = sealed.len();
            sealed.extend_from_slice(content.as_bytes());
            chain.seal(&mut sealed, start, seal.contains("\"sig\"").then_some(&keys.checkpoint));
        }
    }
    sealed
}

/// Removes the lines of some kinds.
fn resealed_without(kinds: &[&str], bytes: &[u8], settings: &Settings) -> Vec<u8> {
    resealed(bytes, settings, |line| (!kinds.iter().any(|kind| line.contains(kind))).then(|| line.to_owned()))
}

#[test]
fn a_missing_checkpoint_is_an_alarm() {
    for (late, intact) in [(60, true), (600, false)] {
        let settings = settings();
        let sink = Memory::default();
        let clock = clock();
        let trail = start(&settings, &sink, &clock);
        clock.advance(Duration::from_secs(late));
        trail.shutdown();
        let explained = verify(&sink.bytes(), &proof(&settings));
        assert_eq!(problems(&explained), [""; 0]);
        let findings = verify(&resealed_without(&["trail.gap"], &sink.bytes(), &settings), &proof(&settings));
        assert_eq!(findings.is_intact(), intact, "{:?}", problems(&findings));
    }
}

/// A gap hid that checkpoints were missing before and after it, however short it was.
#[test]
fn a_gap_explains_only_as_much_time_as_it_lasted() {
    for (unexplained, intact) in [(60, true), (300, false)] {
        let settings = settings();
        let (sink, clock) = (Memory::default(), clock());
        let trail = start(&settings, &sink, &clock);
        clock.advance(Duration::from_secs(600));
        trail.shutdown();
        let until = |time: Timestamp| format!("\"until\":{}", time.as_millis());
        let (whole, shorter) = (until(clock.now()), until(clock.now() - Duration::from_secs(unexplained)));
        assert!(std::str::from_utf8(&sink.bytes()).unwrap().contains(&whole));
        let shortened = resealed(&sink.bytes(), &settings, |line| Some(line.replace(&whole, &shorter)));
        let findings = verify(&shortened, &proof(&settings));
        assert_eq!(findings.is_intact(), intact, "{:?}", problems(&findings));
    }
}

/// Cutting off the end, or everything up to a restart, cuts off checkpoints. A crash leaves the same lines, but only
/// until the next checkpoint.
#[test]
fn a_missing_checkpoint_at_the_end_is_an_alarm() {
    for (late, intact) in [(60, true), (600, false)] {
        let settings = settings();
        let sink = Memory::default();
        let clock = clock();
        let trail = start(&settings, &sink, &clock);
        clock.advance(Duration::from_secs(late));
        trail.write(Record { time: clock.now(), ..record(1) });
        trail.shutdown();
        let bytes = resealed_without(&["trail.gap", "trail.checkpoint"], &sink.bytes(), &settings);
        let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        let through = lines.iter().position(|line| kind(&serde_json::from_slice(line).unwrap()) == "request").unwrap();
        let cut = lines[..=through].concat();
        let findings = verify(&cut, &proof(&settings));
        assert_eq!(findings.is_intact(), intact, "{:?}", problems(&findings));

        let again = Memory::default();
        start(&settings, &again, &clock).shutdown();
        let restarts = Proof { restarts: true, ..proof(&settings) };
        let findings = verify(&[cut, again.bytes()].concat(), &restarts);
        let found = problems(&findings);
        assert_eq!(findings.is_intact(), intact, "{found:?}");
        let at = format!("trail:{}: there is no checkpoint from ", through + 2);
        assert!(intact || (found.len() == 1 && found[0].starts_with(&at)), "{found:?}");
    }
}

/// Lines that were written while the clock was ahead looked as if no checkpoint had followed.
#[test]
fn a_clock_that_is_set_back_is_no_alarm() {
    let settings = settings();
    let (sink, again) = (Memory::default(), Memory::default());
    let clock = clock();
    let trail = start(&settings, &sink, &clock);
    trail.write(Record { time: clock.now(), ..record(1) });
    clock.set(clock.now() - Duration::from_secs(3600));
    trail.shutdown();
    start(&settings, &again, &clock).shutdown();
    let restarts = Proof { restarts: true, ..proof(&settings) };
    let findings = verify(&[sink.bytes(), again.bytes()].concat(), &restarts);
    assert!(findings.is_intact(), "{:?}", problems(&findings));
}

#[test]
fn trails_from_standard_output_may_begin_again() {
    let Written { bytes, proof, .. } = written();
    let settings = settings();
    let sink = Memory::default();
    let trail = start(&settings, &sink, &Clock::manual(NOW - Duration::from_secs(1)));
    for number in 0..50 {
        trail.write(record(number + 100));
    }
    trail.shutdown();
    let collected = [sink.bytes().as_slice(), bytes].concat();
    let proof = Proof { checkpoint_keys: Vec::new(), ..proof.clone() };
    assert!(!verify(&collected, &proof).is_intact());
    let findings = verify(&collected, &Proof { restarts: true, ..proof.clone() });
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert_eq!(findings.summary.segments, 2);
    // The checkpoint belongs to the last chain, and is still missed there.
    let cut = collected.len() - written().lines.last().unwrap().len();
    let findings = verify(&collected[..cut], &Proof { restarts: true, ..proof });
    assert!(problems(&findings)[0].contains("lines were cut off the end"), "{:?}", problems(&findings));
}

/// They counted as another start, and each record twice.
#[test]
fn lines_of_standard_output_that_are_repeated_are_found() {
    let Written { bytes, lines, proof } = written();
    let proof = Proof { restarts: true, ..proof.clone() };
    let found = problems(&verify(&bytes.repeat(2), &proof));
    let [problem] = found.as_slice() else { panic!("{found:?}") };
    let at = format!("trail:{}: the lines from this start on are repeated", lines.len() + 1);
    assert!(problem.starts_with(&at), "{problem}");
}

/// As a receiver or a log platform returns the lines of a day, or those that it still stores.
#[test]
fn a_part_of_a_trail_may_begin_anywhere() {
    let Written { lines, proof, .. } = written();
    let later = lines[3..].concat();
    for (restarts, part, intact) in
        [(true, true, true), (true, false, false), (false, true, true), (false, false, false)]
    {
        let findings = verify(&later, &Proof { restarts, part, ..proof.clone() });
        assert_eq!(findings.is_intact(), intact, "{restarts} {part}: {:?}", problems(&findings));
    }
    let holed = [&lines[3], &lines[5]].map(Vec::as_slice).concat();
    let findings = verify(&holed, &Proof { restarts: true, part: true, last_checkpoint: None, ..proof.clone() });
    assert_eq!(problems(&findings).len(), 1, "{:?}", problems(&findings));
    assert!(problems(&findings)[0].contains("is missing before this one"), "{:?}", problems(&findings));
}

/// Numbers begin again with each start there, so that an earlier copy is always ahead.
#[test]
fn a_restart_on_standard_output_is_no_cut() {
    assert!(!Stdout.goes_on());
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), ..settings() };
    let mut proof = Proof { restarts: true, ..proof(&settings) };
    let last_checkpoint = |proof: &Proof| Some(Checkpoint::last_of(&*std::fs::read(&copy).unwrap(), proof).unwrap());
    let (mut collected, clock) = (Vec::new(), clock());
    for records in [5, 0] {
        let sink = Memory::default();
        let trail = start(&settings, &sink, &clock);
        for number in 0..records {
            trail.write(record(number));
        }
        trail.shutdown();
        clock.advance(Duration::from_secs(1));
        collected.extend(sink.bytes());
        proof.last_checkpoint = last_checkpoint(&proof);
        assert_eq!(problems(&verify(&collected, &proof)), Vec::<String>::new());
    }
}

/// A process that is running, or crashed early, has copied none yet.
#[test]
fn a_chain_of_standard_output_without_a_checkpoint_is_no_cut() {
    let Written { bytes, lines, proof } = written();
    let proof = Proof { restarts: true, checkpoint_keys: Vec::new(), ..proof.clone() };
    for (records, row) in [(1, "shorter than the one before"), (50, "longer")] {
        let sink = Memory::default();
        let trail = start(&settings(), &sink, &Clock::manual(NOW + Duration::from_secs(1)));
        for number in 0..records {
            trail.write(record(number + 100));
        }
        trail.shutdown();
        let again = sink.bytes();
        let last = again.split_inclusive(|byte| *byte == b'\n').next_back().unwrap().len();
        let running = &again[..again.len() - last];
        let findings = verify(&[bytes, running].concat(), &proof);
        assert_eq!(problems(&findings), Vec::<String>::new(), "{row}");
        // The counterpart: the checkpoint was cut off the previous chain.
        let cut = &bytes[..bytes.len() - lines.last().unwrap().len()];
        assert!(!verify(&[cut, running].concat(), &proof).is_intact(), "{row}");
    }
}

/// The lines of another chain that was sealed with the same key.
fn lines_of_another_chain() -> Vec<Vec<u8>> {
    let settings = Settings { checkpoint_records: 4, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    for number in 0..10 {
        trail.write(record(number + 100));
    }
    trail.shutdown();
    sink.bytes().split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Such lines can be copied from an earlier state of the same trail or from another replica, without any key.
#[test]
fn a_line_of_another_chain_with_the_same_key_and_the_right_number_is_found() {
    let Written { lines, proof, .. } = written();
    let other = lines_of_another_chain();
    let proof = Proof { checkpoint_keys: Vec::new(), last_checkpoint: None, ..proof.clone() };
    let found = |lines: &[Vec<u8>]| problems(&verify(&lines.concat(), &proof));
    for whole in [lines, &other] {
        assert_eq!(found(whole), Vec::<String>::new());
    }
    let spliced = found(&[&lines[..5], &other[5..]].concat());
    let [problem] = spliced.as_slice() else { panic!("{spliced:?}") };
    assert!(problem.starts_with("trail:6: "), "{problem}");
    let mut replaced = lines.clone();
    replaced[5].clone_from(&other[5]);
    let one_replaced = found(&replaced);
    let [problem] = one_replaced.as_slice() else { panic!("{one_replaced:?}") };
    assert!(problem.starts_with("trail:6 to 7: "), "{problem}");
}

/// Public keys are optional. A forged checkpoint with a low number would hide that lines were cut off the end.
#[test]
fn an_edited_checkpoint_is_no_proof_even_without_a_public_key() {
    let Written { lines, proof, .. } = written();
    let last = String::from_utf8(lines.last().unwrap().clone()).unwrap();
    let edited = last.replacen("\"records\":", "\"records\": ", 1);
    assert_ne!(edited, last);
    let proof = Proof { checkpoint_keys: Vec::new(), ..proof.clone() };
    assert!(Checkpoint::last_of(last.as_bytes(), &proof).is_ok());
    let forged = Checkpoint::last_of(edited.as_bytes(), &proof);
    assert!(matches!(forged, Err(CannotVerify::ForgedCheckpoint)), "{forged:?}");
}

/// The code of a line does not cover its end, so that nobody needs a key for this.
#[test]
fn a_signature_that_was_added_to_a_line_is_found() {
    let Written { lines, proof, .. } = written();
    let mut seen = 0;
    for (at, line) in lines.iter().enumerate() {
        let line = std::str::from_utf8(line).unwrap();
        if line.contains("\"sig\"") {
            continue;
        }
        seen += 1;
        let signed = format!("{},\"sig\":\"{}\"}}\n", line.strip_suffix("}\n").unwrap(), "ab".repeat(64));
        let bytes = [lines[..at].concat(), signed.into_bytes(), lines[at + 1..].concat()].concat();
        let found = problems(&verify(&bytes, proof));
        let [problem] = found.as_slice() else { panic!("{line}: {found:?}") };
        assert!(problem.starts_with(&format!("trail:{}: the line was edited", at + 1)), "{problem}");
    }
    assert!(seen >= 12, "ten requests, a start and a stop: {seen}");
}

/// A crash while a checkpoint is copied leaves such a line.
#[test]
fn a_half_written_line_after_the_last_checkpoint_is_passed_over() {
    let Written { lines, proof, .. } = written();
    let whole = lines.last().unwrap();
    let torn = [whole.as_slice(), b"{\"class_uid\":6002,\"ti"].concat();
    let [whole, torn] = [whole, &torn].map(|copy| Checkpoint::last_of(copy.as_slice(), proof).unwrap());
    assert_eq!(torn, whole);
}

/// Numbers begin again there, so that an earlier chain may have a higher one.
#[test]
fn a_cut_on_standard_output_is_found_although_the_copy_ends_with_a_checkpoint_of_an_earlier_start() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("elsewhere.jsonl");
    let settings = Settings { checkpoint_copy: Some(copy.clone()), ..settings() };
    let clock = clock();
    let mut collected = Vec::new();
    for records in [5, 0] {
        let sink = Memory::default();
        let trail = start(&settings, &sink, &clock);
        for number in 0..records {
            trail.write(record(number));
        }
        trail.shutdown();
        collected.extend(sink.bytes());
        clock.advance(Duration::from_secs(1));
    }
    let copied = std::fs::read_to_string(&copy).unwrap();
    let repeated = format!("{copied}{}\n", copied.lines().next().unwrap());
    let proof = Proof { restarts: true, ..proof(&settings) };
    let last_checkpoint = Some(Checkpoint::last_of(repeated.as_bytes(), &proof).unwrap());
    let proof = Proof { last_checkpoint, ..proof };
    assert_eq!(problems(&verify(&collected, &proof)), Vec::<String>::new());
    let last = collected.split_inclusive(|byte| *byte == b'\n').next_back().unwrap().len();
    let found = problems(&verify(&collected[..collected.len() - last], &proof));
    assert!(found.iter().any(|problem| problem.contains("lines were cut off the end")), "{found:?}");
}

#[test]
fn problems_beyond_the_first_thousand_are_counted_and_not_kept() {
    let Written { lines, proof, .. } = written();
    let proof = Proof { last_checkpoint: None, ..proof.clone() };
    // Each repetition after the first has two problems, which alternate and so are not merged.
    let damaged = [lines[0].as_slice(), b"{}\n"].concat();
    for (repeated, kept, more) in [(10, 19, 0), (600, 1000, 199)] {
        let findings = verify(&damaged.repeat(repeated), &proof);
        assert_eq!((findings.problems.len(), findings.more), (kept, more));
    }
}

/// The number of a line whose code does not fit is still followed, and the one after the highest number overflowed.
#[test]
fn a_forged_line_with_the_highest_number_is_found() {
    let Written { lines, proof, .. } = written();
    let forged = String::from_utf8(lines[3].clone()).unwrap().replace("\"seq\":4,", &format!("\"seq\":{},", u64::MAX));
    let bytes = [lines[..3].concat(), forged.into_bytes(), lines[4..].concat()].concat();
    let found = problems(&verify(&bytes, proof));
    assert!(found.iter().any(|problem| problem.starts_with("trail:4: ")), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("trail:5: ")), "{found:?}");
}

#[test]
fn only_a_part_of_a_trail_may_begin_with_any_line() {
    let Written { lines, proof, .. } = written();
    for part in [true, false] {
        let proof = Proof { restarts: true, part, ..proof.clone() };
        let found = problems(&verify(&lines[3..].concat(), &proof));
        assert_eq!(!found.iter().any(|problem| problem.starts_with("trail:1: ")), part, "{found:?}");
    }
}
