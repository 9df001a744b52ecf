//! The settings of browser sessions, from `sessions` of the configuration.

use std::time::Duration;

use super::keyring::KeyRing;
use crate::config::{raw, report::At, resolver::Resolver};

/// The sessions of a person are in one index record, which is read and written at each login.
const MAX_PER_PERSON: usize = 256;

/// The settings of browser sessions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a session may be unused.
    pub idle: Duration,
    /// How long a session lasts at most.
    pub absolute: Duration,
    /// How stale a person's facts may be before the provider is asked.
    pub recheck: Duration,
    /// The maximum number of sessions per person.
    pub max_per_person: usize,
    /// The keys, if any are configured.
    pub keys: Option<KeyRing>,
}

impl Settings {
    /// Reads the configuration. Reports every problem at its place; returns `None` if there is one.
    pub fn resolve(raw: &raw::Sessions, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let (idle, absolute, recheck) = (raw.idle.get(), raw.absolute.get(), raw.recheck.get());
        let minute = Duration::from_secs(60);
        let mut good = true;
        for (key, value) in [("idle", idle), ("absolute", absolute), ("recheck", recheck)] {
            if value < minute {
                resolver.error(&at.key(key), format!("`{key}` is shorter than a minute")).help("write `1m` or more");
                good = false;
            }
        }
        if idle > absolute {
            resolver
                .warning(&at.key("idle"), "`idle` is longer than `absolute`, which ends every session before")
                .help("make `idle` the shorter of the two");
        }
        let max_per_person = usize::from(raw.max_per_person);
        if let Some(problem) = resolver.report.bounded(at, "max_per_person", max_per_person, 1..=MAX_PER_PERSON) {
            problem.help("a further login ends the oldest session");
            good = false;
        }
        let keys = KeyRing::resolve(&raw.keys, resolver, &at.key("keys"));
        good &= raw.keys.is_empty() || keys.is_some();
        good.then_some(Self { idle, absolute, recheck, max_per_person, keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::Span;

    #[test]
    fn lifetimes_are_checked() {
        for (idle, absolute, problems) in [(8, 24, 0), (24, 8, 1), (0, 24, 1), (0, 0, 2)] {
            let hours = |count: u64| Span::from_secs(count * 3600);
            let raw = raw::Sessions { idle: hours(idle), absolute: hours(absolute), ..raw::Sessions::default() };
            let mut resolver = Resolver::default();
            let resolved = Settings::resolve(&raw, &mut resolver, &At::root());
            assert_eq!(resolver.report.problems().len(), problems, "{idle} {absolute}");
            assert_eq!(resolved.is_none(), resolver.report.has_errors());
        }
        for (max_per_person, good) in [(0, false), (1, true), (256, true), (257, false)] {
            let raw = raw::Sessions { max_per_person, ..raw::Sessions::default() };
            let mut resolver = Resolver::default();
            assert_eq!(Settings::resolve(&raw, &mut resolver, &At::root()).is_some(), good, "{max_per_person}");
            let places: Vec<_> = resolver.report.problems().iter().map(|problem| problem.at.as_str()).collect();
            assert_eq!(places, if good { vec![] } else { vec!["/max_per_person"] });
        }
    }
}
