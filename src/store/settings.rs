//! Which store a configuration asks for.

use super::redis;
use crate::config::{raw, report::At, resolver::Resolver};

/// Which store is used.
#[derive(Clone, Debug)]
pub enum Settings {
    /// The file at `store.path`.
    Embedded,
    Redis(Box<redis::Settings>),
}

impl Settings {
    /// Reports every problem at its place; `None` if there is one. `keys` tells whether `sessions.keys` has any.
    pub fn resolve(raw: &raw::Store, keys: bool, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let Some(redis) = &raw.redis else { return Some(Self::Embedded) };
        if !keys {
            resolver
                .error(&at.key("redis"), "sessions in Redis need `sessions.keys`, the same on every replica")
                .help("make one with `openssl rand -base64 32`; a key of each replica's own would lock the others out");
        }
        let settings = redis::Settings::resolve(redis, resolver, &at.key("redis"))?;
        keys.then(|| Self::Redis(Box::new(settings)))
    }
}
