use super::*;
use crate::error::{Reason, Rejection};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// For how long the trail was not written, by each line that tells so.
fn gaps(lines: &[Value]) -> Vec<i64> {
    let at = |line: &Value, key: &str| line["unmapped"][key].as_i64().unwrap();
    lines.iter().filter(|line| kind(line) == "trail.gap").map(|line| at(line, "until") - at(line, "since")).collect()
}

fn paths(lines: &[Value]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.pointer("/http_request/url/path")?.as_str()).collect()
}

#[test]
fn a_reservation_has_room_for_each_record_it_was_made_for() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    let mut reservation = trail.take_room(2, false).unwrap();
    for phase in [Phase::Decided, Phase::Completed] {
        reservation.write(Record { phase, ..record(1) });
    }
    trail.shutdown();
    let lines = sink.lines();
    let kinds: Vec<&str> = lines.iter().map(kind).collect();
    assert_eq!(kinds, ["trail.start", "request.decided", "request.completed", "trail.stop", "trail.checkpoint"]);
    assert_eq!(lines[1]["metadata"]["correlation_uid"], lines[2]["metadata"]["correlation_uid"]);
}

/// Row kubernetes:T3: an exec of an hour is in the trail from its start, not only at its end.
#[test]
fn kubernetes_t3_a_long_stream_leaves_records_at_its_start_and_its_end() {
    let settings = Settings { queue: 2, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    let stream = |phase| Record { phase, upgrade: true, ..record(1) };
    let mut reservation = trail.take_room(2, false).unwrap();
    runtime().block_on(reservation.write_durable(stream(Phase::Decided))).unwrap();
    runtime().block_on(reservation.write_durable(stream(Phase::Started))).unwrap();
    assert_eq!(
        sink.lines().iter().map(kind).collect::<Vec<_>>(),
        ["trail.start", "request.decided", "request.started"]
    );
    drop(reservation);
    // The stream holds no room, so others go on; and its end is written though they have taken all room.
    let others = trail.take_room(2, false).unwrap();
    trail.write(Record { ended: Some("revoked".into()), ..stream(Phase::Completed) });
    drop(others);
    trail.shutdown();
    assert_eq!(sink.lines()[3]["unmapped"]["ended"], "revoked");
    assert_eq!(trail.metrics().lost.get(), 0);
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

/// Linux tells of a write that failed in one sync, and the next succeeds though what was to be written is gone.
#[test]
fn what_a_failed_sync_has_lost_is_written_again_before_the_next_counts() {
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

/// The file before is never synced again, and a loss of power would tear a hole into the trail.
#[test]
fn a_full_file_is_synced_before_the_next_begins() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    // Nobody waits for these.
    trail.write(record(1));
    sink.wait_for(|disk| !disk.bytes.is_empty());
    sink.set(|disk| disk.is_full = true);
    trail.write(record(2));
    sink.wait_for(|disk| disk.at_risk_when_full.is_some());
    assert_eq!(sink.set(|disk| disk.at_risk_when_full), Some(0));
}

/// They are kept until then, and are lost with the power.
#[test]
fn what_nobody_waits_for_is_synced_before_it_grows_large() {
    let sink = Memory::default();
    let trail = start(&Settings { queue: 4096, ..settings() }, &sink, &clock());
    for number in 0..5000 {
        trail.write(Record { path: "a".repeat(2000).into(), ..record(number) });
    }
    let most = 4 << 20;
    sink.wait_for(|disk| disk.safe > most);
    // One turn of the writer more.
    assert!(sink.set(|disk| disk.most_at_risk) < most + (1 << 20));
}

#[test]
fn a_sink_that_hangs_does_not_keep_the_process_from_its_end() {
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

/// Each request was refused, and health told of nothing.
#[test]
fn a_panic_of_the_thread_is_a_failure_that_refuses_whatever_else_would_go_on() {
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
fn a_full_queue_refuses_until_there_is_room() {
    let trail = start(&Settings { queue: 4, ..settings() }, &Memory::default(), &clock());
    let first = trail.take_room(2, false).unwrap();
    let second = trail.take_room(2, false).unwrap();
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
    drop(first);
    let third = trail.take_room(2, false).unwrap();
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
    drop((second, third));
    assert!(trail.take_room(4, false).is_ok());
}

#[test]
fn a_closed_trail_refuses() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    assert!(trail.take_room(1, false).is_ok());
    trail.shutdown();
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Closed);
    let rejection = Rejection::from(AuditUnavailable::Closed);
    assert_eq!((rejection.reason(), rejection.status()), (Reason::AuditUnavailable, StatusCode::SERVICE_UNAVAILABLE));
}

#[test]
fn a_durable_record_is_synced_before_the_request_goes_on() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    let mut reservation = trail.take_room(2, false).unwrap();
    runtime().block_on(reservation.write_durable(record(7))).unwrap();
    let syncs = sink.set(|disk| disk.syncs);
    assert!(syncs > 0);
    assert_eq!(paths(&sink.lines()), ["/apis/7"]);
}

#[test]
fn durable_records_share_a_sync() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(0)).await.unwrap();
        sink.set(|disk| disk.hold_syncs = true);
        let first = trail.take_room(1, false).unwrap().write_durable(record(1));
        sink.wait_for(|disk| disk.syncing);
        let before = sink.set(|disk| disk.syncs);
        let more: Vec<_> =
            (2..40).map(|number| trail.take_room(1, false).unwrap().write_durable(record(number))).collect();
        sink.set(|disk| disk.hold_syncs = false);
        first.await.unwrap();
        for written in more {
            written.await.unwrap();
        }
        assert_eq!(sink.set(|disk| disk.syncs) - before, 2);
    });
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let settings = settings();
    let sink = Memory::default();
    let clock = clock();
    let trail = start(&settings, &sink, &clock);
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(0)).await.unwrap();
        // The disk takes the beginning of a line and no more.
        sink.set(|disk| disk.room = Some(100));
        let mut before = trail.take_room(2, false).unwrap();
        let result = before.write_durable(record(1)).await;
        assert_eq!(result, Err(AuditUnavailable::Failing));
        assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Failing);
        assert!(trail.failure().is_some());
        // A request that went on before the disk was full is not lost.
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
    // The gap is told and so explains why no checkpoint was written meanwhile.
    let findings = verify(&sink.bytes(), &proof(&settings));
    assert_eq!(problems(&findings), Vec::<String>::new());
    assert_eq!(findings.summary.gaps, 1);
    assert_eq!(trail.metrics().lost.get(), 0);
    assert!(trail.metrics().errors.get() > 0);
}

/// The checkpoint that was late for it looked as if somebody had taken one away, for as long as the file was kept.
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

/// Nobody had noted when the start began with its files, so that the trail looked as if somebody had taken a checkpoint away.
#[test]
fn a_disk_that_hung_while_a_start_looked_after_files_leaves_a_gap_and_a_trail_that_is_intact() {
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

/// The gap told of the moment from the failure to the next try alone.
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

/// Each was too short for a gap, and both together looked as if somebody had taken a checkpoint away.
#[test]
fn a_disk_that_hung_twice_while_a_checkpoint_was_due_leaves_a_gap_and_a_trail_that_is_intact() {
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
fn under_continue_requests_go_on_and_what_is_lost_is_counted() {
    let settings = Settings { when_full: WhenFull::Continue, queue: 4, ..settings() };
    let sink = Memory::default();
    let trail = start(&settings, &sink, &clock());
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(100)).await.unwrap();
        sink.set(|disk| disk.room = Some(0));
        for number in 0..30 {
            trail.take_room(1, false).unwrap().write_durable(record(number)).await.unwrap();
        }
        // Twice the queue is kept: its room, and as much again for records after the fact.
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

/// Break-glass is no way to do something that nobody hears of, though others go on.
#[test]
fn what_must_not_happen_unrecorded_is_refused_under_continue_too() {
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

/// It is wanted in the middle of an incident, when a restart would cost what still waits.
#[test]
fn what_happens_when_it_is_full_follows_a_reload() {
    let settings = Settings { queue: 1, ..settings() };
    let trail = start(&settings, &Memory::default(), &clock());
    let _room = trail.take_room(1, false).unwrap();
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
    trail.follow(&Settings { when_full: WhenFull::Continue, ..settings.clone() });
    drop(trail.take_room(1, false).unwrap());
    trail.follow(&settings);
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
}

/// A line may be a hundred times as long as most are, and who is refused decides how long.
#[test]
fn what_waits_in_an_outage_is_bounded_in_bytes_and_what_is_promised_is_kept() {
    outage_after_a_promise(WhenFull::Refuse);
}

/// What was let through on the promise of a record is recorded, though nothing is promised any more by then.
#[test]
fn what_was_promised_before_a_reload_is_kept() {
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
        // The answer comes when all before it was taken, so that nothing waits but where this is bounded.
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
fn checkpoints_come_by_count_and_by_time() {
    let settings = Settings { checkpoint_records: 5, ..settings() };
    let sink = Memory::default();
    let clock = clock();
    let trail = start(&settings, &sink, &clock);
    let checkpoints = || sink.lines().iter().filter(|line| kind(line) == "trail.checkpoint").count();
    runtime().block_on(async {
        trail.take_room(1, false).unwrap().write_durable(record(1)).await.unwrap();
        assert_eq!(checkpoints(), 0);
        for number in 2..6 {
            trail.take_room(1, false).unwrap().write_durable(record(number)).await.unwrap();
        }
        assert_eq!(checkpoints(), 1);
        clock.advance(Duration::from_secs(61));
        trail.take_room(1, false).unwrap().write_durable(record(6)).await.unwrap();
        assert_eq!(checkpoints(), 2);
        // The gauge follows the answer to the record, and the answer to the next one follows the gauge.
        trail.take_room(1, false).unwrap().write_durable(record(7)).await.unwrap();
    });
    assert_eq!(trail.metrics().last_checkpoint.get(), clock.now().as_secs());
}

/// The next one was due an interval after the last, which lay in the future by then.
#[test]
fn a_checkpoint_comes_soon_after_the_clock_was_set_back() {
    let (sink, clock) = (Memory::default(), clock());
    let trail = start(&settings(), &sink, &clock);
    clock.set(clock.now() - Duration::from_secs(3600));
    runtime().block_on(trail.take_room(1, false).unwrap().write_durable(record(1))).unwrap();
    assert!(sink.lines().iter().any(|line| kind(line) == "trail.checkpoint"));
}

/// Else the alarm for a checkpoint that is late fires at each start.
#[test]
fn until_the_first_checkpoint_its_age_is_that_of_the_trail() {
    let clock = clock();
    let trail = start(&settings(), &Memory::default(), &clock);
    assert_eq!(trail.metrics().last_checkpoint.get(), clock.now().as_secs());
    clock.advance(Duration::from_secs(30));
    assert_eq!(trail.metrics().last_checkpoint.get(), clock.now().as_secs() - 30);
}

#[test]
fn notes_are_lines_too() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    trail.note(Note::PolicyLoaded {
        digest: "sha256:1".into(),
        cause: "start",
        problems: vec!["/rules/1: never matches".to_owned()],
    });
    trail.note(Note::PolicyRefused {
        digest: None,
        cause: "signal",
        problems: vec!["/rules/2: unknown key".to_owned()],
    });
    trail.note(Note::Operator(Operator {
        command: "revoke session 1".to_owned(),
        uid: Some(1000),
        user: Some("ops".to_owned()),
        why: Some("lost laptop".to_owned()),
        outcome: Ok(()),
        deliveries: None,
    }));
    trail.shutdown();
    let lines = sink.lines();
    let kinds: Vec<&str> = lines.iter().map(kind).collect();
    assert_eq!(kinds[1..4], ["policy.loaded", "policy.refused", "operator"]);
    assert_eq!(lines[1]["unmapped"]["policy"], "sha256:1");
    assert_eq!((&lines[1]["unmapped"]["cause"], &lines[2]["unmapped"]["cause"]), (&json!("start"), &json!("signal")));
    assert_eq!(lines[2]["unmapped"]["problems"][0], "/rules/2: unknown key");
    assert_eq!(lines[3]["actor"]["user"], json!({"uid": "1000", "name": "ops"}));
    assert_eq!(lines[3]["unmapped"]["why"], "lost laptop");
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    trail.write(record(1));
    drop(trail);
    sink.wait_for(|disk| lines(&disk.bytes).iter().any(|line| kind(line) == "trail.stop"));
}
