//! The trail's guarantees while its disk accepts lines: space, syncs, checkpoints and notes.

mod outages;

use super::*;
use crate::error::{Reason, Rejection};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
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
    // The stream holds no place, so others proceed; and its end is written although they have taken all places.
    let others = trail.take_room(2, false).unwrap();
    trail.write(Record { ended: Some("revoked".into()), ..stream(Phase::Completed) });
    drop(others);
    trail.shutdown();
    assert_eq!(sink.lines()[3]["unmapped"]["ended"], "revoked");
    assert_eq!(trail.metrics().lost.get(), 0);
}

/// The previous file is never synced again, and a power failure would leave a hole in the trail.
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

/// They are held in memory until then, and lost in a power failure.
#[test]
fn records_without_a_waiter_are_synced_before_they_pile_up() {
    let sink = Memory::default();
    let trail = start(&Settings { queue: 4096, ..settings() }, &sink, &clock());
    for number in 0..5000 {
        trail.write(Record { path: "a".repeat(2000).into(), ..record(number) });
    }
    let most = 4 << 20;
    sink.wait_for(|disk| disk.safe > most);
    // One more turn of the writer.
    assert!(sink.set(|disk| disk.most_at_risk) < most + (1 << 20));
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
fn a_durable_record_is_synced_before_the_request_continues() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    let mut reservation = trail.take_room(2, false).unwrap();
    runtime().block_on(reservation.write_durable(record(7))).unwrap();
    let syncs = sink.set(|disk| disk.syncs);
    assert!(syncs > 0);
    assert_eq!(paths(&sink.lines()), ["/apis/7"]);
}

#[test]
fn the_record_of_what_has_happened_is_synced_before_the_caller_continues() {
    let sink = Memory::default();
    let trail = start(&settings(), &sink, &clock());
    runtime().block_on(trail.take_room(1, false).unwrap().write_last(Box::new(record(7))));
    assert_eq!(paths(&sink.lines()), ["/apis/7"]);
    let (safe, written) = sink.set(|disk| (disk.safe, disk.bytes.len()));
    assert_eq!(safe, written);
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

/// It is needed in the middle of an incident, when a restart would lose the waiting records.
#[test]
fn the_behaviour_of_a_full_trail_follows_a_reload() {
    let settings = Settings { queue: 1, ..settings() };
    let trail = start(&settings, &Memory::default(), &clock());
    let _room = trail.take_room(1, false).unwrap();
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
    trail.follow(&Settings { when_full: WhenFull::Continue, ..settings.clone() });
    drop(trail.take_room(1, false).unwrap());
    trail.follow(&settings);
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
}

#[test]
fn checkpoints_are_written_by_count_and_by_time() {
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

/// The next one was due one interval after the last, which was then in the future.
#[test]
fn a_checkpoint_is_written_soon_after_the_clock_was_set_back() {
    let (sink, clock) = (Memory::default(), clock());
    let trail = start(&settings(), &sink, &clock);
    clock.set(clock.now() - Duration::from_secs(3600));
    runtime().block_on(trail.take_room(1, false).unwrap().write_durable(record(1))).unwrap();
    assert!(sink.lines().iter().any(|line| kind(line) == "trail.checkpoint"));
}

/// Otherwise the alert for a late checkpoint fires at each start.
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
