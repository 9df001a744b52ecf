//! A circuit breaker and a token bucket, which protect an endpoint, and Doorward from it. Callers pass the time to
//! both.

use std::{ops::RangeInclusive, sync::Mutex, time::Duration};

use crate::{
    clock::Moment,
    config::{
        raw::CircuitBreaker,
        report::{At, Report},
        values::Span,
    },
    lock::lock,
};

/// The bounds of the settings of a breaker.
const FAILURES: RangeInclusive<u32> = 1..=1000;
const SHORTEST_PAUSE: Span = Span::from_millis(100);
/// The longest pause of an issuer's breaker. Open streams continue for a while if their tokens cannot be rechecked, and
/// there must be several attempts within that time.
pub const LONGEST_ISSUER_PAUSE: Duration = Duration::from_secs(60);

/// A circuit breaker: it opens after several failures in a row, and then admits one probe after each pause.
#[derive(Debug)]
pub struct Breaker {
    settings: CircuitBreaker,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When the open circuit admits a probe. `None`: the circuit is closed.
    open_until: Option<Moment>,
}

impl Breaker {
    pub fn new(settings: CircuitBreaker) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// Reports problems of `settings`, which are at `at`. `longest` is the maximum pause.
    pub fn check(settings: CircuitBreaker, longest: Duration, at: &At, report: &mut Report) {
        if let Some(problem) = report.bounded(at, "failures", settings.failures, FAILURES) {
            problem.help(
                "0 would be the same as 1, and with more than 1000 a failing endpoint is hardly ever given a pause",
            );
        }
        if let Some(problem) = report.bounded(at, "pause", settings.pause, SHORTEST_PAUSE..=Span(longest)) {
            problem.help(
                "a shorter pause protects nothing, and a longer one refuses callers long after the endpoint works again",
            );
        }
    }

    /// Admits a call, or returns how long no call is admitted. In the half-open state one call is admitted and opens
    /// the circuit for another pause.
    pub fn admit(&self, now: Moment) -> Result<(), Duration> {
        let mut state = lock(&self.state);
        match state.open_until {
            None => Ok(()),
            Some(until) if now.is_before(until) => Err(now.until(until)),
            Some(_) => {
                state.open_until = Some(now + self.settings.pause.get());
                Ok(())
            }
        }
    }

    /// Records an answer that does not prove that the endpoint works. The circuit closes, but failures are not reset:
    /// if it was open, the next failure opens it again.
    pub fn answered(&self) {
        let mut state = lock(&self.state);
        state.open_until = None;
        state.failures = state.failures.min(self.settings.failures.saturating_sub(1));
    }

    pub fn succeeded(&self) {
        *lock(&self.state) = State::default();
    }

    pub fn failed(&self, now: Moment) {
        let mut state = lock(&self.state);
        state.failures = state.failures.saturating_add(1);
        if state.failures >= self.settings.failures {
            state.open_until = Some(now + self.settings.pause.get());
        }
    }
}

/// A token bucket: it admits `rate` calls a second on average, and `burst` at once.
#[derive(Debug)]
pub struct Bucket {
    rate: u32,
    burst: u32,
    level: Mutex<(Moment, u64)>,
}

impl Bucket {
    /// The level is counted in thousandths, to match milliseconds.
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
        let other = CircuitBreaker { failures: 2, pause: Span::from_secs(60) };
        for (settings, failures, pause) in [(CircuitBreaker::default(), 5, 5), (other, 2, 60)] {
            let (breaker, now) = (Breaker::new(settings), clock().moment());
            let pause = Duration::from_secs(pause);
            for _ in 1..failures {
                breaker.failed(now);
            }
            assert!(breaker.admit(now).is_ok(), "one failure less than {failures} is not enough");
            breaker.failed(now);
            assert!(breaker.admit(now).is_err());
            let later = now + pause;
            assert!(breaker.admit(later).is_ok(), "the probe");
            assert!(breaker.admit(later).is_err(), "one probe only");
            breaker.failed(later);
            let left = Duration::from_secs(1);
            assert_eq!(breaker.admit(later + pause - left), Err(left), "what is left of the pause");
            assert!(breaker.admit(later + pause).is_ok());
            breaker.succeeded();
            assert!(breaker.admit(later).is_ok() && breaker.admit(later).is_ok());
        }
    }

    /// When the probe got such an answer, all others were refused for another pause, though the endpoint had answered.
    #[test]
    fn an_inconclusive_answer_closes_an_open_circuit_one_failure_from_open() {
        let settings = CircuitBreaker { failures: 2, pause: Span::from_secs(5) };
        let (breaker, now) = (Breaker::new(settings), clock().moment());
        breaker.answered();
        breaker.failed(now);
        breaker.answered();
        assert!(breaker.admit(now).is_ok());
        breaker.failed(now);
        assert!(breaker.admit(now).is_err(), "failures count though there is such an answer between them");
        let later = now + Duration::from_secs(5);
        assert!(breaker.admit(later).is_ok(), "the probe");
        breaker.answered();
        assert!(breaker.admit(later).is_ok() && breaker.admit(later).is_ok());
        breaker.failed(later);
        assert!(breaker.admit(later).is_err());
    }

    #[test]
    fn an_invalid_breaker_is_refused_with_the_reason() {
        for (failures, pause, longest, place) in [
            (5, Span::from_secs(5), 60, None),
            (1, Span::from_millis(100), 60, None),
            (1000, Span::from_secs(60), 60, None),
            (1000, Span::from_secs(61), 61, None),
            (0, Span::from_secs(5), 60, Some("/failures")),
            (1001, Span::from_secs(5), 60, Some("/failures")),
            (5, Span::from_millis(99), 60, Some("/pause")),
            (5, Span::from_secs(61), 60, Some("/pause")),
        ] {
            let mut report = Report::default();
            let longest = Duration::from_secs(longest);
            Breaker::check(CircuitBreaker { failures, pause }, longest, &At::root(), &mut report);
            let found: Vec<_> = report.problems().iter().map(|problem| problem.at.as_str()).collect();
            assert_eq!(found, Vec::from_iter(place), "{failures}, {pause}");
            assert!(report.problems().iter().all(|problem| problem.help.is_some()));
        }
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

    /// Regression: after the clock was set back, the bucket admitted nothing until the clock had caught up.
    #[test]
    fn the_bucket_fills_even_if_the_clock_is_set_back() {
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
