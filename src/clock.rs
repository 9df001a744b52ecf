//! The one source of time. Every expiry is decided by a [`Clock`], so that a test can move it.

use std::{
    fmt,
    ops::{Add, Sub},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Milliseconds since the Unix epoch. Ordered, and arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The end of time: a credential that does not expire.
    pub const MAX: Self = Self(i64::MAX);

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From whole seconds, the form of `exp`, `nbf` and `iat` (RFC 7519 section 2, NumericDate).
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// From the text of RFC 3339, with any offset.
    pub fn from_rfc3339(text: &str) -> Option<Self> {
        let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
        i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().map(Self)
    }

    /// As [`Timestamp::from_rfc3339`], or from the day alone, as it begins in UTC.
    pub fn from_day_or_time(text: &str) -> Option<Self> {
        Self::from_rfc3339(text).or_else(|| Self::from_rfc3339(&format!("{text}T00:00:00Z")))
    }

    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The time from `earlier` to this one, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self::default() + since,
            Err(before) => Self::default() - before.duration(),
        }
    }
}

/// RFC 3339 with milliseconds, in UTC.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1_000_000;
        let Ok(time) = time::OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
            return f.write_str("never");
        };
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        )
    }
}

/// A point in time for state in this process's memory: cache ages, leases, deadlines. For times that are shared with
/// others (`exp`, records in the store) use [`Timestamp`].
///
/// It holds a wall-clock and a monotonic reading, and whichever says that more time has passed decides. Each covers a
/// failure of the other: the wall clock can be set back, and the monotonic clock ([`Clock::passed`]) stops while the
/// machine is suspended or paused by a hypervisor. A wall clock that jumps ahead only makes things expire early, and
/// they are then fetched again.
///
/// There is no `Ord`: if the wall clock was set back between two moments, neither is before the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock.
    wall: Timestamp,
    /// By [`Clock::passed`], on a scale of its own.
    passed: Timestamp,
}

impl Moment {
    /// An end that has always been reached.
    pub const MIN: Self = Self::at(i64::MIN, i64::MIN);
    /// An end that is never reached.
    pub const MAX: Self = Self::at(i64::MAX, i64::MAX);

    const fn at(wall: i64, passed: i64) -> Self {
        Self { wall: Timestamp(wall), passed: Timestamp(passed) }
    }

    /// The wall-clock reading, for people and for other processes.
    pub const fn wall(self) -> Timestamp {
        self.wall
    }

    /// The end that is reached once the wall clock shows `end`, which others know as well.
    pub const fn at_wall(end: Timestamp) -> Self {
        Self { wall: end, ..Self::MAX }
    }

    /// The wall-clock reading, and that of [`Clock::passed`] on a scale of its own.
    pub const fn by_clock(self) -> [Timestamp; 2] {
        [self.wall, self.passed]
    }

    /// The time from `earlier` to this one.
    pub fn since(self, earlier: Self) -> Duration {
        self.wall.since(earlier.wall).max(self.passed.since(earlier.passed))
    }

    /// The time that is left until `end`, zero once it is reached.
    pub fn until(self, end: Self) -> Duration {
        end.wall.since(self.wall).min(end.passed.since(self.passed))
    }

    /// Whether `end` is not reached yet.
    pub fn is_before(self, end: Self) -> bool {
        self.wall < end.wall && self.passed < end.passed
    }

    /// Whether `end` is reached by both clocks: for what must not be forgotten too early.
    pub fn is_surely_past(self, end: Self) -> bool {
        self.wall >= end.wall && self.passed >= end.passed
    }

    /// The end that is reached as soon as either of both is.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self { wall: self.wall.min(other.wall), passed: self.passed.min(other.passed) }
    }

    /// The later of both, by each clock.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { wall: self.wall.max(other.wall), passed: self.passed.max(other.passed) }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self { wall: self.wall + span, passed: self.passed + span }
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self { wall: self.wall - span, passed: self.passed - span }
    }
}

/// A [`Moment`] that threads share. A load that races with a store may return the new reading of one clock and the old
/// one of the other. As the clock decides by which more time has passed, the result acts as if it were a little older,
/// or ended a little sooner.
#[derive(Debug)]
pub struct AtomicMoment {
    wall: AtomicI64,
    passed: AtomicI64,
}

impl AtomicMoment {
    pub const fn new(moment: Moment) -> Self {
        Self { wall: AtomicI64::new(moment.wall.0), passed: AtomicI64::new(moment.passed.0) }
    }

    pub fn load(&self) -> Moment {
        Moment::at(self.wall.load(Ordering::Acquire), self.passed.load(Ordering::Acquire))
    }

    pub fn store(&self, moment: Moment) {
        self.wall.store(moment.wall.0, Ordering::Release);
        self.passed.store(moment.passed.0, Ordering::Release);
    }
}

/// The source of time: the system's clocks, or one that a test sets.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    /// What the wall clock shows, in milliseconds.
    wall: AtomicI64,
    /// How far it was advanced, in milliseconds.
    passed: AtomicI64,
}

/// The start of the system's [`Clock::passed`].
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock {
    /// A clock that does not move until [`Clock::advance`].
    pub fn manual(start: Timestamp) -> Self {
        let wall = AtomicI64::new(start.as_millis());
        Self(Source::Manual(Arc::new(Manual { wall, passed: AtomicI64::new(0) })))
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => SystemTime::now().into(),
            Source::Manual(manual) => Timestamp(manual.wall.load(Ordering::SeqCst)),
        }
    }

    /// The monotonic time since some fixed moment, whatever the wall clock was set to meanwhile: for spans that a jump
    /// of the wall clock must not end, as it ends those of [`Moment`]s. The system's does not count while the machine
    /// is suspended or paused.
    pub fn passed(&self) -> Duration {
        match &self.0 {
            Source::System => BEGAN.elapsed(),
            Source::Manual(manual) => Timestamp(manual.passed.load(Ordering::SeqCst)).since(Timestamp(0)),
        }
    }

    /// The current moment, for state in memory.
    pub fn moment(&self) -> Moment {
        Moment { wall: self.now(), passed: Timestamp::default() + self.passed() }
    }

    /// Advances a manual clock; the system's clock stays as it is.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual(manual) = &self.0 {
            let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
            for moved in [&manual.wall, &manual.passed] {
                moved.fetch_add(millis, Ordering::SeqCst);
            }
        }
    }

    /// Sets the wall clock of a manual clock, as somebody sets that of a machine: no monotonic time passes. The
    /// system's clock stays as it is.
    pub fn set(&self, to: Timestamp) {
        if let Source::Manual(manual) = &self.0 {
            manual.wall.store(to.as_millis(), Ordering::SeqCst);
        }
    }
}

/// A number from 0 to 1 by which pauses are spread, so that replicas do not act in step.
pub(crate) fn jitter() -> f64 {
    let mut byte = [0];
    // Without randomness the pause is only less spread.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

/// A duration as Go writes it: `1h0m0s`, `1.5s`.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit = tail.find(|character: char| character.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            "us" | "µs" => 0.000_001,
            "ns" => 0.000_000_001,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// A [`Timestamp`] in output, as RFC 3339.
pub(crate) fn rfc3339<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

/// A [`Timestamp`] in stored data, as milliseconds since 1970.
pub(crate) mod millis {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Timestamp;

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.as_millis())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp::from_millis)
    }
}

/// As [`millis`], for a time that may not be known.
pub(crate) mod optional_millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Timestamp;

    pub fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(Timestamp::as_millis).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map(Timestamp::from_millis))
    }
}

/// A span in stored data, as milliseconds.
pub(crate) mod span_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// The ticks of periodic work, the first at once. Ticks that were missed, for example while a store hung, are not made
/// up for: the store would get all of them at the moment when it is back.
pub fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_print_as_rfc_3339() {
        assert_eq!(Timestamp::from_millis(1_700_000_000_123).to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(Timestamp::MAX.to_string(), "never");
    }

    #[test]
    fn rfc_3339_is_read() {
        let time = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(Timestamp::from_rfc3339("2023-11-14T22:13:20.123Z"), Some(time));
        assert_eq!(Timestamp::from_rfc3339("2023-11-15T00:13:20.123+02:00"), Some(time));
        for text in ["", "2023-11-14", "2023-11-14T22:13:20", "2023-13-14T22:13:20Z", "1700000000"] {
            assert_eq!(Timestamp::from_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn time_passes_even_if_a_clock_is_set_back() {
        let clock = Clock::manual(Timestamp::from_secs(100));
        let began = clock.passed();
        clock.advance(Duration::from_secs(5));
        clock.set(Timestamp::from_secs(50));
        assert_eq!(clock.now(), Timestamp::from_secs(50));
        clock.advance(Duration::from_secs(5));
        assert_eq!((clock.now(), clock.passed() - began), (Timestamp::from_secs(55), Duration::from_secs(10)));
    }

    #[test]
    fn a_deadline_is_reached_even_if_the_clock_is_set_back_or_the_machine_suspended() {
        let (clock, minute) = (Clock::manual(Timestamp::from_secs(10_000)), Duration::from_secs(60));
        let began = clock.moment();
        let end = began + minute;
        clock.set(Timestamp::from_secs(5_000));
        clock.advance(minute - Duration::from_millis(1));
        assert!(clock.moment().is_before(end));
        clock.advance(Duration::from_millis(1));
        assert!(!clock.moment().is_before(end), "the clock was set back");
        assert!(!clock.moment().is_surely_past(end));
        assert_eq!((clock.moment().since(began), clock.moment().until(end)), (minute, Duration::ZERO));

        let stopped = clock.moment();
        clock.set(clock.now() + minute / 2);
        assert_eq!((clock.moment().since(stopped), clock.moment().until(stopped + minute)), (minute / 2, minute / 2));
        clock.set(clock.now() + minute / 2);
        assert!(!clock.moment().is_before(stopped + minute), "a hypervisor stopped the machine");
        assert!(!clock.moment().is_surely_past(stopped + minute));
        clock.advance(minute);
        assert!(clock.moment().is_surely_past(stopped + minute));
    }

    #[test]
    fn the_earlier_and_later_of_two_moments_are_so_by_both_clocks() {
        let clock = Clock::manual(Timestamp::from_secs(10_000));
        let before = clock.moment();
        clock.advance(Duration::from_secs(1));
        clock.set(Timestamp::from_secs(5_000));
        let after = clock.moment();
        assert_eq!(before.min(after), Moment::at(5_000_000, 0));
        assert_eq!(before.max(after), Moment::at(10_000_000, 1_000));
        assert!(after.is_before(Moment::MAX) && !after.is_before(Moment::MIN));
        let shared = AtomicMoment::new(Moment::MIN);
        shared.store(after);
        assert_eq!(shared.load(), after);
        assert_eq!((before - Duration::from_secs(1)).wall(), Timestamp::from_secs(9_999));
    }

    /// The watches of sessions, tokens and health ran once for each tick that they had missed, one after the other.
    #[tokio::test(start_paused = true)]
    async fn ticks_that_were_missed_are_not_made_up_for() {
        let period = Duration::from_secs(5);
        let mut ticks = every(period);
        ticks.tick().await;
        tokio::time::advance(100 * period).await;
        // The tick that is due.
        ticks.tick().await;
        let from = tokio::time::Instant::now();
        ticks.tick().await;
        assert!(from.elapsed() >= period);
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::MAX + Duration::from_secs(1), Timestamp::MAX);
        assert_eq!(Timestamp::from_secs(1).since(Timestamp::from_secs(2)), Duration::ZERO);
    }

    #[test]
    fn durations_of_go_are_read() {
        for (text, seconds) in [
            ("1h0m0s", Some(3600.0)),
            ("90m", Some(5400.0)),
            ("1.5s", Some(1.5)),
            ("500ms", Some(0.5)),
            ("0s", Some(0.0)),
            ("5us", Some(0.000_005)),
            ("", None),
            ("1", None),
            ("1d", None),
            ("-1s", None),
            ("1h-1m", None),
        ] {
            assert_eq!(go_duration(text).map(|duration| duration.as_secs_f64()), seconds, "{text}");
        }
    }

    /// Adding up the second one panicked, which ended the watch that read it, such as that of tokens.
    #[test]
    fn a_go_duration_that_is_too_long_is_ignored() {
        for text in ["99999999999999999999h", "5000000000000000h5000000000000000h"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
