//! A window of time that repeats each week.

use std::fmt;

use crate::{clock::Timestamp, config::raw};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY: i64 = 24 * 60;

/// A window in minutes of a day, on days that begin at midnight at a fixed offset from UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TimeWindow {
    days: [bool; 7],
    from: i64,
    /// At most `DAY`. If it is below `from`, it is on the next day.
    to: i64,
    /// Minutes east of UTC.
    offset: i64,
}

impl TimeWindow {
    /// Compiles a window; the errors name the keys that are wrong.
    pub(super) fn compile(raw: &raw::TimeWindow) -> Result<Self, Vec<(&'static str, String)>> {
        let mut wrong = Vec::new();
        let days = raw.days.as_deref().map_or(Ok([true; 7]), days).map_err(|why| wrong.push(("days", why))).ok();
        let from = time_of_day(&raw.from).filter(|at| *at < DAY);
        if from.is_none() {
            wrong.push(("from", format!("`{}` is not a time of day such as `08:00`", raw.from)));
        }
        let to = time_of_day(&raw.to);
        if to.is_none() {
            wrong.push(("to", format!("`{}` is not a time of day such as `18:00` or `24:00`", raw.to)));
        }
        if from.is_some() && from == to {
            wrong.push(("to", "is the same as `from`; for whole days write `00:00` and `24:00`".to_owned()));
        }
        let zone = raw.zone.as_deref().unwrap_or("UTC");
        let offset = offset(zone);
        if offset.is_none() {
            wrong.push((
                "zone",
                format!("`{zone}` is neither `UTC` nor an offset such as `+02:00`; names of places are not known"),
            ));
        }
        match (days, from, to, offset) {
            (Some(days), Some(from), Some(to), Some(offset)) if wrong.is_empty() => Ok(Self { days, from, to, offset }),
            _ => Err(wrong),
        }
    }

    pub(super) fn contains(&self, time: Timestamp) -> bool {
        let minutes = time.as_secs().div_euclid(60) + self.offset;
        let minute = minutes.rem_euclid(DAY);
        // The epoch was a Thursday.
        let day = (minutes.div_euclid(DAY) + 3).rem_euclid(7);
        let on = |day: i64| usize::try_from(day.rem_euclid(7)).ok().and_then(|day| self.days.get(day)) == Some(&true);
        if self.from < self.to {
            on(day) && (self.from..self.to).contains(&minute)
        } else {
            (on(day) && minute >= self.from) || (on(day - 1) && minute < self.to)
        }
    }

    /// The next time at which the window opens or closes.
    pub(super) fn next_change(&self, after: Timestamp) -> Option<Timestamp> {
        let midnight = (after.as_secs().div_euclid(60) + self.offset).div_euclid(DAY) * DAY - self.offset;
        let is_open = self.contains(after);
        (0..=8)
            .flat_map(|day| [self.from, self.to].map(|minute| (midnight + day * DAY + minute) * 60))
            .map(Timestamp::from_secs)
            .filter(|at| *at > after && self.contains(*at) != is_open)
            .min()
    }
}

impl fmt::Display for TimeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.days.iter().all(|on| *on) {
            let names: Vec<&str> = DAYS.iter().zip(self.days).filter_map(|(name, on)| on.then_some(*name)).collect();
            write!(f, "{} ", names.join(","))?;
        }
        let clock = |minute: i64| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{} ", clock(self.from), clock(self.to))?;
        match self.offset {
            0 => f.write_str("UTC"),
            offset => write!(f, "{}{}", if offset < 0 { '-' } else { '+' }, clock(offset.abs())),
        }
    }
}

/// Days and ranges of days, with commas. A range may pass the end of the week (`fri-mon`).
fn days(text: &str) -> Result<[bool; 7], String> {
    let number = |name: &str| {
        DAYS.iter()
            .position(|day| *day == name.trim().to_ascii_lowercase())
            .ok_or_else(|| format!("`{}` is not a day; write mon, tue, wed, thu, fri, sat or sun", name.trim()))
    };
    let mut on = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        for (day, on) in on.iter_mut().enumerate() {
            let inside = if first <= last { (first..=last).contains(&day) } else { day >= first || day <= last };
            *on |= inside;
        }
    }
    Ok(on)
}

/// Minutes since midnight, of `HH:MM` up to `24:00`.
fn time_of_day(text: &str) -> Option<i64> {
    let two = |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?;
    let (hours, minutes) = text.split_once(':')?;
    let (hours, minutes): (i64, i64) = (two(hours)?, two(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes).filter(|minute| *minute <= DAY)
}

fn offset(zone: &str) -> Option<i64> {
    if matches!(zone, "UTC" | "Z") {
        return Some(0);
    }
    let (sign, rest) = match zone.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, zone.strip_prefix('-')?),
    };
    time_of_day(rest).filter(|minutes| *minutes <= 14 * 60).map(|minutes| sign * minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: Option<&str>, from: &str, to: &str, zone: Option<&str>) -> Result<TimeWindow, String> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let raw = raw::TimeWindow { days: owned(days), from: from.into(), to: to.into(), zone: owned(zone) };
        TimeWindow::compile(&raw).map_err(|wrong| wrong.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(" "))
    }

    /// Returns a time after Monday, 1 January 2024, by days, hours and minutes.
    fn at(day: i64, hour: i64, minute: i64) -> Timestamp {
        Timestamp::from_secs(1_704_067_200 + ((day * 24 + hour) * 60 + minute) * 60)
    }

    #[test]
    fn windows_open_and_close() {
        let office = window(Some("mon-fri"), "08:00", "18:00", None).unwrap();
        let night = window(Some("fri"), "22:00", "06:00", Some("+02:00")).unwrap();
        for (window, time, expected) in [
            (&office, at(0, 7, 59), false),
            (&office, at(0, 8, 0), true),
            (&office, at(4, 17, 59), true),
            (&office, at(4, 18, 0), false),
            (&office, at(5, 12, 0), false),
            (&night, at(4, 19, 59), false),
            (&night, at(4, 20, 0), true),
            (&night, at(5, 3, 59), true),
            (&night, at(5, 4, 0), false),
            (&night, at(4, 3, 0), false),
        ] {
            assert_eq!(window.contains(time), expected, "{window} at {time}");
        }
        assert_eq!(office.next_change(at(4, 12, 0)), Some(at(4, 18, 0)));
        assert_eq!(office.next_change(at(4, 18, 0)), Some(at(7, 8, 0)));
        assert_eq!(window(None, "00:00", "24:00", None).unwrap().next_change(at(0, 1, 0)), None);
    }

    /// It was refused as no time of day, which `from` takes.
    #[test]
    fn midnight_is_the_end_of_the_day_by_either_name() {
        let [by_zero, by_24] = ["00:00", "24:00"].map(|to| window(Some("fri"), "22:00", to, None).unwrap());
        for (time, expected) in [
            (at(4, 0, 0), false),
            (at(4, 21, 59), false),
            (at(4, 22, 0), true),
            (at(4, 23, 59), true),
            (at(5, 0, 0), false),
            (at(5, 23, 0), false),
        ] {
            assert_eq!([by_zero.contains(time), by_24.contains(time)], [expected; 2], "{time}");
        }
        for window in [by_zero, by_24] {
            assert_eq!(window.next_change(at(4, 23, 0)), Some(at(5, 0, 0)), "{window}");
        }
    }

    #[test]
    fn ambiguous_time_windows_are_refused() {
        for (days, from, to, zone, key) in [
            (Some("mon-foo"), "08:00", "18:00", None, "days"),
            (Some(""), "08:00", "18:00", None, "days"),
            (None, "8:00", "18:00", None, "from"),
            (None, "24:00", "18:00", None, "from"),
            (None, "08:00", "25:00", None, "to"),
            (None, "08:00", "08:00", None, "to"),
            (None, "00:00", "00:00", None, "to"),
            (None, "08:60", "18:00", None, "from"),
            (None, "08:00", "18:00", Some("Europe/Berlin"), "zone"),
            (None, "08:00", "18:00", Some("+25:00"), "zone"),
            (Some("foo"), "8:00", "25:00", Some("x"), "days from to zone"),
        ] {
            assert_eq!(window(days, from, to, zone), Err(key.to_owned()), "{days:?} {from} {to} {zone:?}");
        }
    }
}
