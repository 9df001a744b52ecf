use super::*;

/// How many sweeps it takes until the exchange is given up, of at most 100.
fn looks(sweep: &Arc<Sweep>, progress: &Progress) -> Option<u32> {
    (1..=100).find(|_| {
        sweep.turn();
        progress.is_expired()
    })
}

#[tokio::test]
async fn a_client_is_waited_for_as_long_as_what_it_sends_pays_for() {
    let sweep = Sweep::new();
    let progress = sweep.watch();
    let begin = || {
        progress.begin(Ticks(1_000_000));
        progress.keep_pace(Pace::new(Duration::from_millis(500), 1000));
        progress.client_stalls(true);
    };
    begin();
    assert_eq!(looks(&sweep, &progress), Some(6), "its patience");
    begin();
    progress.received(1000);
    assert_eq!(looks(&sweep, &progress), Some(16), "and a second for a thousand bytes");
    begin();
    progress.client_stalls(false);
    assert_eq!(looks(&sweep, &progress), None, "the upstream is slow to take it");
    begin();
    progress.answered(Ticks(1_000_000));
    assert_eq!(looks(&sweep, &progress), None, "it is answered");
    begin();
    progress.open_request();
    progress.answered(Ticks(1_000_000));
    let cx = Context::from_waker(std::task::Waker::noop());
    assert_eq!(progress.poll_handed_over(&cx), Poll::Pending);
    assert_eq!(looks(&sweep, &progress), Some(6), "the end of the answer waits for it");
    assert_eq!(progress.poll_handed_over(&cx), Poll::Ready(Err(UpstreamErrorKind::RequestBodyTimeout)));
    progress.close_request();
    begin();
    progress.begin(Ticks(1_000_000));
    progress.client_stalls(true);
    assert_eq!(looks(&sweep, &progress), None, "the next exchange of the connection has no such limit");
}

/// Exchanges of a worker that had stalled for longer than their limit were given up when it continued, even those
/// that had just begun.
#[tokio::test(start_paused = true)]
async fn the_time_for_which_a_worker_stood_still_counts_for_no_exchange() {
    let sweep = Sweep::new();
    // The test itself calls the sweep.
    sweep.watched().running = true;
    let begin = || {
        let progress = sweep.watch();
        progress.begin(Ticks(300));
        progress
    };
    let before = begin();
    for _ in 0..100 {
        tokio::time::advance(TICK).await;
        sweep.turn();
    }
    tokio::time::advance(TICK * 600).await;
    let after = begin();
    sweep.turn();
    let mut looks = [0; 2];
    for look in 1..=400 {
        tokio::time::advance(TICK).await;
        sweep.turn();
        for (looks, progress) in looks.iter_mut().zip([&before, &after]) {
            if *looks == 0 && progress.is_expired() {
                *looks = look;
            }
        }
    }
    assert_eq!(looks, [200, 300]);
}

/// An upstream that kept its worker busy, as with interim responses without end, was never given up.
#[tokio::test(start_paused = true)]
async fn an_exchange_during_which_its_worker_stalls_again_and_again_is_given_up() {
    let sweep = Sweep::new();
    // The test itself calls the sweep.
    sweep.watched().running = true;
    let progress = sweep.watch();
    progress.begin(Ticks(300));
    let mut ticks = 0;
    while !progress.is_expired() && ticks < 6000 {
        tokio::time::advance(TICK * 20).await;
        sweep.turn();
        ticks += 20;
    }
    assert_eq!(ticks, 620);
}
