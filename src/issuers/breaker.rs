//! Protection of an issuer's endpoint, and of ourselves from it: a circuit breaker and a token bucket. Both are driven
//! by the time that they are told.

use std::{sync::Mutex, time::Duration};

use crate::{clock::Moment, lock::lock};

/// Lets calls through until several in a row have failed; then only one probe at a time, after a pause.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until when nothing is let through. `None`: the circuit is closed.
    open_until: Option<Moment>,
}

impl Breaker {
    const FAILURES: u32 = 5;
    const PAUSE: Duration = Duration::from_secs(5);

    /// Whether a call may be made now. In the half-open state the one that is let through closes the door behind it.
    pub fn admit(&self, now: Moment) -> bool {
        let mut state = lock(&self.0);
        match state.open_until {
            None => true,
            Some(until) if now.is_before(until) => false,
            Some(_) => {
                state.open_until = Some(now + Self::PAUSE);
                true
            }
        }
    }

    pub fn succeeded(&self) {
        *lock(&self.0) = State::default();
    }

    pub fn failed(&self, now: Moment) {
        let mut state = lock(&self.0);
        state.failures = state.failures.saturating_add(1);
        if state.failures >= Self::FAILURES {
            state.open_until = Some(now + Self::PAUSE);
        }
    }
}

/// Lets `rate` calls a second through on average, and `burst` at once.
#[derive(Debug)]
pub struct Bucket {
    rate: u32,
    burst: u32,
    level: Mutex<(Moment, u64)>,
}

impl Bucket {
    /// Tokens are counted in thousandths, as time is.
    pub fn new(rate: u32, burst: u32, now: Moment) -> Self {
        Self { rate, burst, level: Mutex::new((now, u64::from(burst) * 1_000)) }
    }

    pub fn take(&self, now: Moment) -> bool {
        let mut level = lock(&self.level);
        let passed = u64::try_from(now.since(level.0).as_millis()).unwrap_or(u64::MAX);
        let filled = level.1.saturating_add(passed.saturating_mul(self.rate.into())).min(u64::from(self.burst) * 1_000);
        let taken = filled >= 1_000;
        *level = (now.max(level.0), if taken { filled - 1_000 } else { filled });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_secs(10_000))
    }

    #[test]
    fn the_breaker_opens_probes_and_closes() {
        let (breaker, now) = (Breaker::default(), clock().moment());
        for _ in 0..4 {
            breaker.failed(now);
        }
        assert!(breaker.admit(now), "four failures are not enough");
        breaker.failed(now);
        assert!(!breaker.admit(now));
        let later = now + Breaker::PAUSE;
        assert!(breaker.admit(later), "the probe");
        assert!(!breaker.admit(later), "one probe only");
        breaker.failed(later);
        assert!(!breaker.admit(later + Duration::from_secs(4)));
        assert!(breaker.admit(later + Breaker::PAUSE));
        breaker.succeeded();
        assert!(breaker.admit(later) && breaker.admit(later));
    }

    #[test]
    fn the_bucket_gives_its_burst_and_then_its_rate() {
        let now = clock().moment();
        let bucket = Bucket::new(10, 3, now);
        let taken = |now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(now), 3);
        assert_eq!(taken(now + Duration::from_millis(99)), 0);
        assert_eq!(taken(now + Duration::from_millis(200)), 2);
        assert_eq!(taken(now + Duration::from_secs(3_600)), 3);
        assert_eq!(taken(now), 0, "who looked at the clock before another");
        assert_eq!(taken(now + Duration::from_secs(3_600)), 0, "gives nobody anything");
    }

    /// It gave nothing until the clock had caught up.
    #[test]
    fn the_bucket_fills_though_the_clock_is_set_back() {
        let clock = clock();
        let bucket = Bucket::new(10, 3, clock.moment());
        let taken = || (0..100).filter(|_| bucket.take(clock.moment())).count();
        assert_eq!(taken(), 3);
        clock.set(Timestamp::from_secs(5_000));
        assert_eq!(taken(), 0);
        clock.advance(Duration::from_millis(100));
        assert_eq!(taken(), 1);
    }
}
