//! The validated settings of the store.

use std::time::Duration;

use super::redis;
use crate::config::{raw, report::At, resolver::Resolver, values::Span};

/// The shortest allowed `max_mirror_age`. The copy of the revocations is renewed twice a second, and the store is
/// sometimes slow.
const MIN_MIRROR_AGE: Duration = Duration::from_secs(2);

/// The selected store.
#[derive(Clone, Debug)]
pub enum Settings {
    /// The file at `store.path`.
    Embedded,
    Redis(Box<redis::Settings>),
}

impl Settings {
    /// Reports every problem at its place, and returns `None` if there is one. `keys` says whether `sessions.keys` has
    /// any.
    pub fn resolve(raw: &raw::Store, keys: bool, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let is_long_enough = raw.max_mirror_age.get() >= MIN_MIRROR_AGE;
        if !is_long_enough {
            let message = format!("`max_mirror_age` must be at least {}", Span(MIN_MIRROR_AGE));
            resolver.error(&at.key("max_mirror_age"), message).help(
                "the copy of the revocations is renewed twice a second, so bearer tokens would be refused although the store is available",
            );
        }
        let Some(redis) = &raw.redis else { return is_long_enough.then_some(Self::Embedded) };
        if !keys {
            resolver
                .error(&at.key("redis"), "sessions in Redis need `sessions.keys`, the same on every replica")
                .help("make one with `openssl rand -base64 32`; if each replica had its own key, it would lock the others out");
        }
        let settings = redis::Settings::resolve(redis, resolver, &at.key("redis"))?;
        (keys && is_long_enough).then(|| Self::Redis(Box::new(settings)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Each replica would encrypt with its own key, which locks the others out.
    #[test]
    fn redis_needs_keys_that_all_replicas_have() {
        let redis = serde_json::from_value(serde_json::json!({"server": "a:1"})).unwrap();
        let raw = raw::Store { redis: Some(redis), ..raw::Store::default() };
        for keys in [false, true] {
            let mut resolver = Resolver::new(Path::new(""));
            let settings = Settings::resolve(&raw, keys, &mut resolver, &At::root());
            let problems = resolver.report.problems();
            let at: Vec<&str> = problems.iter().map(|problem| problem.at.as_str()).collect();
            let expected: &[&str] = if keys { &[] } else { &["/redis"] };
            assert_eq!((settings.is_some(), at.as_slice()), (keys, expected));
        }
    }

    /// With `0` every bearer token got 503, although nothing was wrong.
    #[test]
    fn a_copy_of_the_revocations_that_may_not_be_as_old_as_it_always_gets_is_refused() {
        for (age, is_taken) in [("0", false), ("1999ms", false), ("2s", true), ("1m", true)] {
            let raw = raw::Store { max_mirror_age: age.parse().unwrap(), ..raw::Store::default() };
            let mut resolver = Resolver::new(Path::new(""));
            let settings = Settings::resolve(&raw, false, &mut resolver, &At::root());
            let problems = resolver.report.problems();
            let at: Vec<&str> = problems.iter().map(|problem| problem.at.as_str()).collect();
            let expected: &[&str] = if is_taken { &[] } else { &["/max_mirror_age"] };
            assert_eq!((settings.is_some(), at.as_slice()), (is_taken, expected), "{age}");
        }
    }
}
