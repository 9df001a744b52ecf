//! Protection of an issuer's endpoint, and of ourselves from it: a circuit breaker and a token bucket. Both are driven
//! by the time that they are told.

use std::{sync::Mutex, time::Duration};

use crate::{clock::Timestamp, lock::lock};

/// Lets calls through until several in a row have failed; then only one probe at a time, after a pause.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until when nothing is let through. `None`: the circuit is closed.
    open_until: Option<Timestamp>,
}

impl Breaker {
    const FAILURES: u32 = 5;
    const PAUSE: Duration = Duration::from_secs(5);

    /// Whether a call may be made now. In the half-open state the one that is let through closes the door behind it.
    pub fn admit(&self, now: Timestamp) -> bool {
        let mut state = lock(&self.0);
        match state.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                state.open_until = Some(now + Self::PAUSE);
                true
            }
        }
    }

    pub fn succeeded(&self) {
        *lock(&self.0) = State::default();
    }

    pub fn failed(&self, now: Timestamp) {
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
    level: Mutex<(Timestamp, u64)>,
}

impl Bucket {
    /// Tokens are counted in thousandths, as time is.
    pub fn new(rate: u32, burst: u32, now: Timestamp) -> Self {
        Self { rate, burst, level: Mutex::new((now, u64::from(burst) * 1_000)) }
    }

    pub fn take(&self, now: Timestamp) -> bool {
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

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    #[test]
    fn the_breaker_opens_probes_and_closes() {
        let breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failed(NOW);
        }
        assert!(breaker.admit(NOW), "four failures are not enough");
        breaker.failed(NOW);
        assert!(!breaker.admit(NOW));
        let later = NOW + Breaker::PAUSE;
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
        let bucket = Bucket::new(10, 3, NOW);
        let taken = |now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(NOW), 3);
        assert_eq!(taken(NOW + Duration::from_millis(99)), 0);
        assert_eq!(taken(NOW + Duration::from_millis(200)), 2);
        assert_eq!(taken(NOW + Duration::from_secs(3_600)), 3);
        assert_eq!(taken(NOW), 0, "a clock that goes back gives nothing");
    }
}
