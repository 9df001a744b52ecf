//! A disk that is full, fails or hangs: which requests are refused, which records are kept or lost, and the gap that
//! records it.

use super::*;

/// Returns the lengths of the recorded gaps.
fn gaps(lines: &[Value]) -> Vec<i64> {
    let at = |line: &Value, key: &str| line["unmapped"][key].as_i64().unwrap();
    lines.iter().filter(|line| kind(line) == "trail.gap").map(|line| at(line, "until") - at(line, "since")).collect()
}

#[test]
fn a_sync_that_fails_is_no_success() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    runtime().block_on(async {
        sink.set(|disk| disk.fail_syncs = true);
        let result = trail.take_room(1, false).unwrap().write_durable(record(1)).await;
        assert_eq!(result, Err(AuditUnavailable::Failing));
        sink.set(|disk| disk.fail_syncs = false);
        wait_until_recovered(&trail);
        trail.take_room(1, false).unwrap().write_durable(record(2)).await.unwrap();
    });
}

#[test]
fn the_record_of_what_has_happened_waits_for_a_full_disk_but_its_caller_does_not() {
    for when_full in [WhenFull::Refuse, WhenFull::Continue] {
        let sink = Memory::default();
        let trail = start(&Settings { when_full, ..settings() }, &sink, &clock());
        let mut reservation = trail.take_room(1, false).unwrap();
        sink.set(|disk| disk.room = Some(0));
        runtime().block_on(reservation.write_last(Box::new(record(1))));
        assert!(trail.failure().is_some() && paths(&sink.lines()).is_empty());
        assert_eq!(trail.metrics().refusals(AuditUnavailable::Failing).get(), 0, "nobody was refused");
        sink.set(|disk| disk.room = None);
        wait_until_recovered(&trail);
        assert_eq!(paths(&sink.lines()), ["/apis/1"]);
    }
}

/// Linux reports a failed write in one sync, and the next one succeeds although the data is gone.
#[test]
fn records_that_a_failed_sync_lost_are_written_again_before_the_next_counts() {
    let sink = Memory::default();
    let settings = settings();
    let trail = start(&settings, &sink, &clock());
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(1)).await.unwrap();
        sink.set(|disk| disk.lose_unsynced = true);
        let result = trail.take_room(1, false).unwrap().write_durable(record(2)).await;
        assert_eq!(result, Err(AuditUnavailable::Failing));
        wait_until_recovered(&trail);
        trail.take_room(1, false).unwrap().write_durable(record(3)).await.unwrap();
    });
    trail.shutdown();
    assert_eq!(problems(&verify(&sink.bytes(), &proof(&settings))), [""; 0]);
    assert_eq!(paths(&sink.lines()).len(), 3);
    assert_eq!(trail.metrics().lost.get(), 0);
}

#[test]
fn a_sink_that_hangs_does_not_prevent_the_exit() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    sink.set(|disk| disk.hold_syncs = true);
    trail.write(record(1));
    sink.wait_for(|disk| disk.syncing);
    let begun = std::time::Instant::now();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        trail.shutdown_within(Duration::from_millis(50));
        sender.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(10)).expect("it ends");
    assert!(begun.elapsed() >= Duration::from_millis(50));
    sink.set(|disk| disk.hold_syncs = false);
}

/// Each request was refused, and health reported nothing.
#[test]
fn a_panic_of_the_writer_thread_refuses_requests_even_under_continue() {
    let sink = Memory::default();
    let trail = start(&Settings { when_full: WhenFull::Continue, ..settings() }, &sink, &clock());
    assert!(trail.failure().is_none() && !trail.refuses());
    sink.set(|disk| disk.panics = true);
    trail.write(record(1));
    while trail.failure().is_none() {
        std::thread::yield_now();
    }
    assert!(trail.refuses());
    assert_eq!(trail.take_room(1, false).err(), Some(AuditUnavailable::Closed));
}

#[test]
fn a_full_disk_refuses_requests_and_recovers_automatically() {
    let settings = settings();
    let sink = Memory::default();
    let clock = clock();
    let trail = start(&settings, &sink, &clock);
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(0)).await.unwrap();
        // The disk accepts only the beginning of a line.
        sink.set(|disk| disk.room = Some(100));
        let mut before = trail.take_room(2, false).unwrap();
        let result = before.write_durable(record(1)).await;
        assert_eq!(result, Err(AuditUnavailable::Failing));
        assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Failing);
        assert!(trail.failure().is_some());
        // The record of a request that proceeded before the disk was full is not lost.
        before.write(record(2));
        clock.advance(Duration::from_secs(600));
        sink.set(|disk| disk.room = None);
        wait_until_recovered(&trail);
        assert!(trail.take_room(1, false).is_ok());
        assert_eq!(trail.failure(), None);
    });
    trail.shutdown();
    let lines = sink.lines();
    assert_eq!(paths(&lines), ["/apis/0", "/apis/1", "/apis/2"]);
    let gap = lines.iter().find(|line| kind(line) == "trail.gap").unwrap();
    assert_eq!(gap["unmapped"]["lost"], 0);
    // The gap record explains why no checkpoint was written meanwhile.
    let findings = verify(&sink.bytes(), &proof(&settings));
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert_eq!(findings.summary.gaps, 1);
    assert_eq!(trail.metrics().lost.get(), 0);
    assert!(trail.metrics().errors.get() > 0);
}

/// The late checkpoint looked as if somebody had removed one, for as long as the file was kept.
#[test]
fn a_disk_that_hung_for_minutes_leaves_a_gap_and_a_trail_that_is_intact() {
    for is_full in [false, true] {
        let settings = settings();
        let (sink, clock) = (Memory::default(), clock());
        let trail = start(&settings, &sink, &clock);
        sink.set(|disk| (disk.hold_syncs, disk.hold_files, disk.is_full) = (!is_full, is_full, is_full));
        runtime().block_on(async {
            let written = trail.take_room(1, false).unwrap().write_durable(record(1));
            sink.wait_for(|disk| if is_full { disk.at_files } else { disk.syncing });
            clock.advance(Duration::from_secs(600));
            sink.set(|disk| (disk.hold_syncs, disk.hold_files) = (false, false));
            written.await.unwrap();
        });
        trail.shutdown();
        let findings = verify(&sink.bytes(), &proof(&settings));
        assert_eq!(problems(&findings), Vec::<String>::new());
        assert_eq!((gaps(&sink.lines()), findings.summary.lost), (vec![600_000], 0));
    }
}

/// The time at which the start began with its files was not noted, so that the trail looked as if somebody had removed
/// a checkpoint.
#[test]
fn a_disk_that_hung_while_a_start_checked_files_leaves_a_gap_in_an_intact_trail() {
    let settings = settings();
    let (sink, clock) = (Memory::default(), clock());
    sink.set(|disk| disk.hold_files = true);
    let starting = std::thread::spawn({
        let (settings, sink, clock) = (settings.clone(), sink.clone(), clock.clone());
        move || start(&settings, &sink, &clock)
    });
    sink.wait_for(|disk| disk.at_files);
    clock.advance(Duration::from_secs(600));
    sink.set(|disk| disk.hold_files = false);
    let trail = starting.join().unwrap();
    runtime().block_on(trail.take_room(1, false).unwrap().write_durable(record(1))).unwrap();
    trail.shutdown();
    assert_eq!(problems(&verify(&sink.bytes(), &proof(&settings))), Vec::<String>::new());
    assert_eq!(gaps(&sink.lines()), [600_000]);
}

/// The gap covered only the time from the failure to the next try.
#[test]
fn a_disk_that_hung_before_it_failed_leaves_a_gap_from_when_it_began_to_hang() {
    let settings = settings();
    let (sink, clock) = (Memory::default(), clock());
    let trail = start(&settings, &sink, &clock);
    runtime().block_on(async {
        sink.set(|disk| (disk.hold_syncs, disk.fail_syncs) = (true, true));
        let written = trail.take_room(1, false).unwrap().write_durable(record(1));
        sink.wait_for(|disk| disk.syncing);
        clock.advance(Duration::from_secs(600));
        sink.set(|disk| disk.hold_syncs = false);
        assert_eq!(written.await, Err(AuditUnavailable::Failing));
        sink.set(|disk| disk.fail_syncs = false);
        wait_until_recovered(&trail);
    });
    trail.shutdown();
    assert_eq!(problems(&verify(&sink.bytes(), &proof(&settings))), Vec::<String>::new());
    assert_eq!(gaps(&sink.lines()), [600_000]);
}

/// Each hang was too short for a gap, and both together looked as if somebody had removed a checkpoint.
#[test]
fn a_disk_that_hung_twice_at_a_checkpoint_leaves_a_gap_in_an_intact_trail() {
    let settings = settings();
    let (sink, clock) = (Memory::default(), clock());
    let trail = start(&settings, &sink, &clock);
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(1)).await.unwrap();
        clock.advance(Duration::from_millis(59_900));
        sink.set(|disk| (disk.hold_syncs, disk.hold_files) = (true, true));
        let written = trail.take_room(1, false).unwrap().write_durable(record(2));
        sink.wait_for(|disk| disk.syncing);
        clock.advance(Duration::from_secs(40));
        sink.set(|disk| disk.hold_syncs = false);
        sink.wait_for(|disk| disk.at_files);
        clock.advance(Duration::from_secs(55));
        sink.set(|disk| disk.hold_files = false);
        written.await.unwrap();
    });
    trail.shutdown();
    assert_eq!(problems(&verify(&sink.bytes(), &proof(&settings))), Vec::<String>::new());
    assert_eq!(gaps(&sink.lines()), [95_000]);
}

#[test]
fn under_continue_requests_pass_and_lost_records_are_counted() {
    let settings = Settings { when_full: WhenFull::Continue, queue: 4, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(100)).await.unwrap();
        sink.set(|disk| disk.room = Some(0));
        for number in 0..30 {
            trail.take_room(1, false).unwrap().write_durable(record(number)).await.unwrap();
        }
        // Twice the queue is kept: its places, and as many again for records after the fact.
        assert_eq!(trail.metrics().lost.get(), 22);
        sink.set(|disk| disk.room = None);
        wait_until_recovered(&trail);
    });
    trail.shutdown();
    let lines = sink.lines();
    assert_eq!(paths(&lines).len(), 9);
    let told: u64 = lines.iter().filter_map(|line| line["unmapped"]["lost"].as_u64()).sum();
    assert_eq!(told, trail.metrics().lost.get());
    let findings = verify(&sink.bytes(), &proof(&settings));
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert_eq!(findings.summary.lost, told);
}

/// Break-glass access must not happen unrecorded, even if other requests proceed.
#[test]
fn actions_that_need_a_record_are_refused_under_continue_too() {
    let settings = Settings { when_full: WhenFull::Continue, queue: 4, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    runtime().block_on(async {
        let others = trail.take_room(4, false).unwrap();
        assert_eq!(trail.take_room(1, true).unwrap_err(), AuditUnavailable::Full);
        assert!(trail.take_room(1, false).is_ok(), "the twin");
        drop(others);
        trail.take_room(1, true).unwrap().write_durable(record(0)).await.unwrap();
        sink.set(|disk| disk.room = Some(0));
        let result = trail.take_room(1, true).unwrap().write_durable(record(1)).await;
        assert_eq!(result, Err(AuditUnavailable::Failing));
        assert_eq!(trail.take_room(1, true).unwrap_err(), AuditUnavailable::Failing);
        trail.take_room(1, false).unwrap().write_durable(record(2)).await.expect("the twin");
    });
}

/// A line may be a hundred times longer than most, and refused clients control its length.
#[test]
fn records_waiting_in_an_outage_are_bounded_in_bytes_and_promised_ones_are_kept() {
    outage_after_a_promise(WhenFull::Refuse);
}

/// Requests that were let through with a guaranteed record are recorded, even if nothing is guaranteed any more.
#[test]
fn records_promised_before_a_reload_are_kept() {
    outage_after_a_promise(WhenFull::Continue);
}

/// `since` is in force from after the promise on.
fn outage_after_a_promise(since: WhenFull) {
    let settings = Settings { queue: 1 << 20, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(1)).await.unwrap();
        let mut promised = trail.take_room(2, false).unwrap();
        trail.follow(&Settings { when_full: since, ..settings.clone() });
        sink.set(|disk| disk.room = Some(0));
        promised.write(record(2));
        while trail.failure().is_none() {
            std::thread::yield_now();
        }
        for number in 0..20_000 {
            trail.write(Record { path: "a".repeat(8000).into(), ..record(100 + number) });
        }
        promised.write(record(3));
        while trail.metrics().lost.get() == 0 {
            std::thread::yield_now();
        }
        sink.set(|disk| disk.room = None);
        wait_until_recovered(&trail);
    });
    trail.shutdown();
    let written = sink.bytes().len();
    assert!(written < 40 << 20, "{written} bytes were held");
    let lines = sink.lines();
    for kept in ["/apis/1", "/apis/2", "/apis/3"] {
        assert!(paths(&lines).contains(&kept), "{kept}");
    }
    let findings = verify(&sink.bytes(), &proof(&settings));
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert_eq!(findings.summary.lost, trail.metrics().lost.get());
}

#[test]
fn a_note_that_is_lost_in_an_outage_is_not_answered_as_written() {
    let alarm = |number: u32| Note::Alarm { what: "test", detail: number.to_string() };
    let settings = Settings { queue: 1 << 20, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    let mut number = 0;
    runtime().block_on(async {
        trail.note_durable(alarm(number)).await.unwrap();
        sink.set(|disk| disk.room = Some(0));
        // The reply comes after all earlier records were taken, so that nothing waits in an unbounded place.
        loop {
            number += 1;
            match trail.note_durable(alarm(number)).await {
                Err(AuditUnavailable::Failing) => {}
                answer => break assert_eq!(answer, Err(AuditUnavailable::Full)),
            }
            for more in 0..20 {
                trail.write(Record { path: "a".repeat(8000).into(), ..record(more) });
            }
        }
        sink.set(|disk| disk.room = None);
        wait_until_recovered(&trail);
    });
    trail.shutdown();
    let lines = sink.lines();
    let told: Vec<u32> = lines.iter().filter_map(|line| line["unmapped"]["detail"].as_str()?.parse().ok()).collect();
    assert_eq!(told, (0..number).collect::<Vec<_>>(), "the last was lost, and no other");
    let lost: u64 = lines.iter().filter_map(|line| line["unmapped"]["lost"].as_u64()).sum();
    assert_eq!(lost, trail.metrics().lost.get());
}

#[test]
fn a_note_for_which_there_is_no_room_in_an_outage_is_not_answered_as_written() {
    let alarm = || Note::Alarm { what: "test", detail: String::new() };
    let sink = Memory::default();
    let trail = start(&Settings { queue: 2, ..settings() }, &sink, &clock());
    let _others = trail.take_room(2, false).unwrap();
    sink.set(|disk| disk.room = Some(0));
    let answers = [(); 3].map(|()| runtime().block_on(trail.note_durable(alarm())));
    let [failing, full] = [AuditUnavailable::Failing, AuditUnavailable::Full].map(Err);
    assert_eq!(answers, [failing, failing, full]);
    assert_eq!(trail.metrics().lost.get(), 1);
}

#[test]
fn records_that_a_failing_disk_has_not_taken_at_the_end_count_as_lost() {
    let sink = Memory::default();
    sink.set(|disk| disk.room = Some(0));
    let trail = start(&settings(), &sink, &clock());
    trail.write(record(1));
    trail.write(record(2));
    trail.shutdown();
    assert_eq!(trail.metrics().lost.get(), 2);
}
