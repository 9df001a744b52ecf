//! Requests that wait for space in the trail: which ones, for how long, and what ends the wait.

use std::pin::Pin;

use tokio::time::timeout;

use super::*;
use crate::audit::watchdog::MAX_STALL;

fn queue(queue: usize) -> Settings {
    Settings { queue, ..settings() }
}

/// Returns once a request waits for space.
async fn somebody_waits(trail: &Trail) {
    while trail.metrics().waits.get() == 0 {
        tokio::task::yield_now().await;
    }
}

/// A record that is being written to disk.
type Written = Pin<Box<dyn Future<Output = Result<(), AuditUnavailable>>>>;

/// Makes the writer hang in a sync, with nothing in the queue.
async fn stall(trail: &Trail, sink: &Memory) -> Written {
    trail.reserve(1).await.unwrap().write_durable(record(0)).await.unwrap();
    sink.set(|disk| disk.hold_syncs = true);
    let written = trail.reserve(1).await.unwrap().write_durable(record(1));
    sink.wait_for(|disk| disk.syncing);
    Box::pin(written)
}

/// A sync of half a second filled the queue, and requests got 503 although nothing was wrong with the disk.
#[tokio::test]
async fn requests_wait_for_room_while_the_disk_stalls() {
    let sink = Memory::default();
    let trail = start(&queue(4), &sink, &clock());
    let stalled = stall(&trail, &sink).await;
    for number in 2..6 {
        trail.reserve(1).await.unwrap().write(record(number));
    }
    assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
    let (reserved, ()) = tokio::join!(trail.reserve(2), async {
        somebody_waits(&trail).await;
        assert_eq!(trail.metrics().queued.get(), 4, "it shows while nothing is written");
        sink.set(|disk| disk.hold_syncs = false);
    });
    reserved.unwrap().write(record(6));
    stalled.await.unwrap();
    trail.shutdown();
    assert_eq!(sink.lines().iter().filter(|line| kind(line) == "request").count(), 7);
    let metrics = trail.metrics();
    assert_eq!((metrics.lost.get(), metrics.waits.get()), (0, 1));
    assert_eq!(metrics.refusals(AuditUnavailable::Full).get(), 0);
}

/// Each request would have waited as long for a hanging disk, and the replica counted as ready.
#[tokio::test]
async fn after_a_request_timed_out_no_other_waits_until_the_disk_works_again() {
    let sink = Memory::default();
    let trail = start(&queue(4), &sink, &clock());
    let stalled = stall(&trail, &sink).await;
    let others = trail.reserve(4).await.unwrap();
    tokio::time::pause();
    assert_eq!(trail.failure(), None);
    assert_eq!(trail.reserve(1).await.unwrap_err(), AuditUnavailable::Full);
    assert!(trail.failure().is_some());
    let begun = tokio::time::Instant::now();
    assert_eq!(trail.reserve(1).await.unwrap_err(), AuditUnavailable::Full);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!((trail.metrics().waits.get(), trail.metrics().refusals(AuditUnavailable::Full).get()), (1, 2));
    tokio::time::resume();
    sink.set(|disk| disk.hold_syncs = false);
    wait_until_recovered(&trail);
    stalled.await.unwrap();
    let (reserved, ()) = tokio::join!(trail.reserve(1), async { drop(others) });
    assert!(reserved.is_ok());
}

/// The provider's response was consumed, and only then the lack of space was noticed.
#[tokio::test]
async fn the_check_before_any_work_fails_while_no_room_becomes_free() {
    let sink = Memory::default();
    let trail = start(&queue(4), &sink, &clock());
    let _stalled = stall(&trail, &sink).await;
    let others = trail.reserve(4).await.unwrap();
    tokio::time::pause();
    assert_eq!(trail.check(), Ok(()), "it waits for room");
    tokio::time::advance(MAX_STALL).await;
    assert_eq!(trail.check(), Err(AuditUnavailable::Full));
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Full).get(), 1);
    drop(others);
    assert_eq!(trail.check(), Ok(()));
    sink.set(|disk| disk.hold_syncs = false);
}

#[tokio::test]
async fn a_record_that_is_not_on_disk_in_time_refuses_its_request_and_is_reported() {
    let sink = Memory::default();
    let trail = start(&queue(4), &sink, &clock());
    let stalled = stall(&trail, &sink).await;
    tokio::time::pause();
    assert_eq!(stalled.await, Err(AuditUnavailable::Slow));
    assert!(trail.failure().is_some());
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Slow).get(), 1);
    assert!(trail.reserve(1).await.is_ok(), "there is room for those who need not wait");
    sink.set(|disk| disk.hold_syncs = false);
}

/// While there was space, each request waited as long for its own record as the first.
#[tokio::test]
async fn once_the_disk_hangs_no_request_waits_for_its_record() {
    let sink = Memory::default();
    let settings = queue(64);
    let trail = start(&settings, &sink, &clock());
    let stalled = stall(&trail, &sink).await;
    let mut others = trail.reserve(2).await.unwrap();
    tokio::time::pause();
    assert_eq!(stalled.await, Err(AuditUnavailable::Slow));
    let begun = tokio::time::Instant::now();
    assert_eq!(others.write_durable(record(2)).await, Err(AuditUnavailable::Slow));
    // A request that must be recorded before it is executed is neither decided nor queued.
    assert_eq!(trail.reserve(2).await.unwrap_err(), AuditUnavailable::Slow);
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Slow).get(), 3);
    trail.follow(&Settings { when_full: WhenFull::Continue, ..settings });
    trail.reserve(2).await.unwrap().write_durable(record(3)).await.expect("it goes on, and at once");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    sink.set(|disk| disk.hold_syncs = false);
}

/// The end of a run that had tokens was queued with each try, twice a second for as long as the disk hung.
#[tokio::test]
async fn a_record_that_is_retried_until_written_is_queued_only_once() {
    let alarm = || Note::Alarm { what: "test", detail: "again".to_owned() };
    let notes = |sink: &Memory| sink.lines().iter().filter(|line| line["unmapped"]["detail"].is_string()).count();
    let sink = Memory::default();
    let trail = start(&queue(64), &sink, &clock());
    sink.set(|disk| disk.room = Some(0));
    trail.reserve(1).await.unwrap().write_durable(record(0)).await.unwrap_err();
    for _ in 0..3 {
        assert_eq!(trail.note_once(alarm()).await, Err(AuditUnavailable::Failing));
    }
    sink.set(|disk| disk.room = None);
    wait_until_recovered(&trail);
    trail.note_once(alarm()).await.unwrap();
    let stalled = stall(&trail, &sink).await;
    tokio::time::pause();
    assert_eq!(stalled.await, Err(AuditUnavailable::Slow));
    for _ in 0..3 {
        assert_eq!(trail.note_once(alarm()).await, Err(AuditUnavailable::Slow));
    }
    sink.set(|disk| disk.hold_syncs = false);
    trail.shutdown();
    assert_eq!(notes(&sink), 1);
}

/// Each try counted as a lost record, although it was in the trail in the end.
#[tokio::test]
async fn a_record_that_is_retried_until_written_survives_a_full_queue() {
    let alarm = || Note::Alarm { what: "test", detail: "again".to_owned() };
    let sink = Memory::default();
    let trail = start(&queue(4), &sink, &clock());
    let stalled = stall(&trail, &sink).await;
    for number in 2..6 {
        trail.write(record(number));
    }
    for _ in 0..3 {
        assert_eq!(trail.note_once(alarm()).await, Err(AuditUnavailable::Full));
    }
    assert_eq!(trail.metrics().lost.get(), 0);
    sink.set(|disk| disk.hold_syncs = false);
    stalled.await.unwrap();
    trail.shutdown();
}

/// Deliveries, whose senders wait for less, left each time before anybody noticed, and the replica counted as ready for
/// as long as the disk hung.
#[tokio::test]
async fn a_disk_that_hangs_is_reported_even_if_no_request_waits_that_long() {
    let sink = Memory::default();
    let trail = start(&queue(64), &sink, &clock());
    let _stalled = stall(&trail, &sink).await;
    tokio::time::pause();
    for number in 2..4 {
        let mut reservation = trail.reserve(2).await.unwrap();
        assert!(timeout(MAX_STALL * 3 / 5, reservation.write_durable(record(number))).await.is_err());
    }
    assert!(trail.failure().is_some());
    assert_eq!(trail.reserve(2).await.unwrap_err(), AuditUnavailable::Slow);
    // Like a delivery that was still waiting when its sender's deadline passed.
    assert_eq!(trail.out_of_time(), AuditUnavailable::Slow);
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Slow).get(), 2);
    sink.set(|disk| disk.hold_syncs = false);
}

/// Deliveries, whose senders wait for less than a disk may stand still, were refused under `continue`, and those that
/// are sent once lost.
#[tokio::test]
async fn under_continue_a_request_whose_wait_for_the_disk_ends_passes_unless_strict() {
    let continuing = Settings { when_full: WhenFull::Continue, ..settings() };
    let trail = start(&continuing, &Memory::default(), &clock());
    assert_eq!(trail.reserve(2).await.unwrap().out_of_time(), Ok(()));
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Slow).get(), 0);
    assert_eq!(trail.reserve_strictly(2).await.unwrap().out_of_time(), Err(AuditUnavailable::Slow));
    trail.follow(&settings());
    assert_eq!(trail.reserve(2).await.unwrap().out_of_time(), Err(AuditUnavailable::Slow));
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Slow).get(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_client_that_left_is_counted() {
    let trail = start(&queue(2), &Memory::default(), &clock());
    let _others = trail.reserve(2).await.unwrap();
    assert!(timeout(MAX_STALL / 2, trail.reserve(1)).await.is_err());
    let metrics = trail.metrics();
    assert_eq!(metrics.waits.get(), 1);
    assert!(metrics.wait_time.get() >= (MAX_STALL / 2).as_secs_f64());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_too_long_for_room_is_refused_and_counted() {
    let trail = start(&queue(2), &Memory::default(), &clock());
    let _others = trail.reserve(2).await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(trail.reserve(1).await.unwrap_err(), AuditUnavailable::Full);
    assert_eq!(begun.elapsed().as_secs(), MAX_STALL.as_secs());
    let metrics = trail.metrics();
    assert_eq!((metrics.waits.get(), metrics.refusals(AuditUnavailable::Full).get()), (1, 1));
    assert!(metrics.wait_time.get() >= MAX_STALL.as_secs_f64());
}

/// A request that can never get enough room must not make all others wait behind it.
#[tokio::test(start_paused = true)]
async fn a_request_that_can_never_get_enough_room_does_not_wait() {
    let trail = start(&queue(1), &Memory::default(), &clock());
    assert_eq!(trail.reserve(2).await.unwrap_err(), AuditUnavailable::Full);
    assert_eq!(trail.metrics().waits.get(), 0);
    assert!(trail.reserve(1).await.is_ok(), "the twin");
}

/// Otherwise a request that needs space for two records waits for as long as others arrive that need it for one.
#[tokio::test]
async fn requests_that_wait_for_room_are_not_overtaken() {
    let trail = start(&queue(2), &Memory::default(), &clock());
    let (first, second) = (trail.reserve(1).await.unwrap(), trail.reserve(1).await.unwrap());
    let (reserved, ()) = tokio::join!(trail.reserve(2), async {
        somebody_waits(&trail).await;
        drop(first);
        assert_eq!(trail.take_room(1, false).unwrap_err(), AuditUnavailable::Full);
        drop(second);
    });
    assert!(reserved.is_ok());
}

/// A client that leaves must not take its place with it.
#[tokio::test]
async fn a_request_dropped_while_it_waits_holds_no_room() {
    let trail = start(&queue(2), &Memory::default(), &clock());
    let (first, second) = (trail.reserve(1).await.unwrap(), trail.reserve(1).await.unwrap());
    tokio::select! {
        _ = trail.reserve(2) => panic!("there is no room for it"),
        () = async {
            somebody_waits(&trail).await;
            drop(first);
        } => {}
    }
    drop(second);
    assert!(trail.take_room(2, false).is_ok());
}

#[tokio::test]
async fn a_request_that_waits_for_room_is_refused_as_soon_as_the_trail_fails() {
    let sink = Memory::default();
    let trail = start(&queue(2), &sink, &clock());
    let mut others = trail.reserve(2).await.unwrap();
    let (refused, ()) = tokio::join!(trail.reserve(1), async {
        somebody_waits(&trail).await;
        sink.set(|disk| disk.room = Some(0));
        others.write(record(1));
    });
    assert_eq!(refused.unwrap_err(), AuditUnavailable::Failing);
    assert_eq!(trail.metrics().refusals(AuditUnavailable::Failing).get(), 1);
}

/// Regression: when the trail failed, a waiting request still got the place that another freed at the same moment.
#[tokio::test]
async fn a_request_that_waits_for_room_is_refused_if_the_trail_fails_as_room_becomes_free() {
    let sink = Memory::default();
    let trail = start(&queue(2), &sink, &clock());
    let mut others = trail.reserve(2).await.unwrap();
    let (refused, ()) = tokio::join!(trail.reserve(1), async {
        somebody_waits(&trail).await;
        sink.set(|disk| disk.room = Some(0));
        others.write(record(1));
        // Without letting the waiting request run.
        while trail.take_room(1, false).err() != Some(AuditUnavailable::Failing) {
            std::thread::yield_now();
        }
        drop(others);
    });
    assert_eq!(refused.unwrap_err(), AuditUnavailable::Failing);
}

#[tokio::test]
async fn a_request_that_waits_for_room_is_refused_when_the_trail_closes() {
    let trail = start(&queue(1), &Memory::default(), &clock());
    let _others = trail.reserve(1).await.unwrap();
    let (refused, ()) = tokio::join!(trail.reserve(1), async {
        somebody_waits(&trail).await;
        trail.shutdown();
    });
    assert_eq!(refused.unwrap_err(), AuditUnavailable::Closed);
}

#[tokio::test]
async fn a_request_that_waits_for_room_continues_when_a_reload_permits_it() {
    let settings = queue(1);
    let trail = start(&settings, &Memory::default(), &clock());
    let _others = trail.reserve(1).await.unwrap();
    let (reserved, ()) = tokio::join!(trail.reserve(1), async {
        somebody_waits(&trail).await;
        trail.follow(&Settings { when_full: WhenFull::Continue, ..settings.clone() });
    });
    assert!(reserved.is_ok());
}

/// Their records took all space, and allowed requests were refused.
#[tokio::test]
async fn a_flood_of_refusals_delays_no_request() {
    let sink = Memory::default();
    let trail = start(&queue(4), &sink, &clock());
    let stalled = stall(&trail, &sink).await;
    for number in 0..20 {
        trail.write(record(100 + number));
    }
    assert_eq!(trail.metrics().lost.get(), 16);
    assert!(trail.take_room(4, false).is_ok());
    sink.set(|disk| disk.hold_syncs = false);
    stalled.await.unwrap();
}

/// The thread takes nothing from the queue meanwhile, so the sender alone bounds it.
#[tokio::test]
async fn a_flood_of_long_records_while_the_disk_stalls_is_bounded_in_bytes() {
    for (records, are_lost) in [(1000, false), (4000, true)] {
        let sink = Memory::default();
        let trail = start(&queue(1 << 20), &sink, &clock());
        let stalled = stall(&trail, &sink).await;
        for number in 0..records {
            trail.write(Record { path: "a".repeat(8000).into(), ..record(100 + number) });
        }
        assert_eq!(trail.metrics().lost.get() > 0, are_lost, "{records} records");
        assert!(trail.take_room(1, false).is_ok());
        sink.set(|disk| disk.hold_syncs = false);
        stalled.await.unwrap();
    }
}
