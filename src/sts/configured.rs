//! Signing keys from the configuration.

use std::sync::Arc;

use super::{
    MIN_ROTATE,
    keys::{SigningKey, SigningKeys},
};
use crate::{
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
};

/// Reads the configured keys. Returns `None` if there are none, or if one has errors, which are then reported. `shared`
/// means that several replicas issue tokens, which must then use the same keys.
pub fn signing_keys(
    raw: &raw::Tokens,
    shared: bool,
    now: Timestamp,
    resolver: &mut Resolver,
    at: &At,
) -> Option<SigningKeys> {
    let at = at.key("keys");
    let help = "make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`";
    if shared && raw.keys.is_empty() {
        resolver.error(&at, "with `store.redis`, tokens need `keys`, the same on every replica").help(help);
    }
    let mut keys: Vec<(Arc<SigningKey>, Timestamp)> = Vec::with_capacity(raw.keys.len());
    for (index, key) in raw.keys.iter().enumerate() {
        let at = at.index(index);
        let from = from(key, now, resolver, &at);
        let Some(source) = key.source() else {
            resolver
                .error(&at, "a key comes from exactly one place")
                .help("write `{file: PATH}` or `{env: NAME}`, and if it is to sign later, `from: 2026-01-31`");
            continue;
        };
        let Some(secret) = resolver.secret(&at, &source) else { continue };
        match SigningKey::from_pem(secret.expose()) {
            Some(key) if keys.iter().any(|(other, _)| other.id() == key.id()) => {
                resolver.error(&at, format!("{source} is a key that is listed already"));
            }
            Some(key) => keys.extend(from.map(|from| (Arc::new(key), from))),
            None => {
                resolver.error(&at, format!("{source} is no key in PEM (PKCS #8, `BEGIN PRIVATE KEY`) that is P-256, or RSA of 2048 bits or more"))
                    .help(help);
            }
        }
    }
    if raw.keys.len() == 1 {
        resolver
            .warning(
                &at,
                "there is only one key: when it is replaced, those who check tokens do not know its successor yet",
            )
            .help("list a second one behind it; docs/workload-identity.md describes how keys are replaced");
    }
    if !keys.is_empty() && keys.iter().all(|(_, from)| *from > now) {
        resolver
            .warning(&at, "no key is in force yet: until one is, the one with the earliest `from` signs")
            .help("leave `from` out for the key that is to sign now");
    }
    if keys.len() < raw.keys.len() {
        return None;
    }
    let first = keys.first().map(|(key, _)| key.algorithm());
    if keys.iter().any(|(key, from)| Some(key.algorithm()) == first && *from <= now) {
        for (index, (key, from)) in keys.iter().enumerate() {
            let mut same = keys.iter().filter(|(other, _)| other.algorithm() == key.algorithm());
            let replaces_none = Some(key.algorithm()) != first && same.all(|(_, other)| other >= from);
            if replaces_none && *from != Timestamp::default() {
                resolver
                    .warning(&at.index(index).key("from"), "it has no effect here, as it chooses among keys of one algorithm")
                    .help("access tokens are signed with the algorithm of the first key in the list; to change it, move this key to the front, with a `from` in the future");
            }
        }
    }
    SigningKeys::dated(keys)
}

/// The time from which a key signs. `None` if it is malformed, which is then reported.
fn from(key: &raw::TokenKey, now: Timestamp, resolver: &mut Resolver, at: &At) -> Option<Timestamp> {
    let Some(text) = &key.from else { return Some(Timestamp::default()) };
    let at = at.key("from");
    let Some(time) = Timestamp::from_day_or_time(text) else {
        resolver
            .error(&at, "`from` is neither a day nor a time of RFC 3339")
            .help("write `2026-01-31`, or `2026-01-31T08:00:00Z`");
        return None;
    };
    // At least as long as the successor of a generated key is published in advance.
    if now < time && time < now + MIN_ROTATE {
        resolver
            .warning(
                &at,
                "it signs in less than an hour, and many who check tokens cache the set of keys for that long",
            )
            .help("unless it has been listed for an hour by then, they refuse its first tokens; choose a later time");
    }
    Some(time)
}
