//! The loop breaker. A session that does not last (a store that forgets, replicas with different keys, a cookie that the
//! browser does not send back) would have the browser go to the provider and back without end, as nobody has to type
//! anything there. So the browser carries how often it has just come back from a login, and is stopped.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::sessions::cookie;

/// Logins in a row that may end with the browser at the login again.
pub const MAX: u8 = 5;

/// What lies further apart is not in a row: one round takes as long as some redirects.
const WINDOW: Duration = Duration::from_secs(30);

/// In a cookie of its own, as the session's is what may be lost. It counts a chain, not logins: tabs that log in side by
/// side all began without it, so each of them is the first.
const COOKIE: &str = "__Host-doorward-attempts";

/// How often the browser came back in a row.
pub fn made(headers: &HeaderMap) -> u8 {
    let value = cookie::find(headers, COOKIE).ok().flatten();
    value.and_then(|value| std::str::from_utf8(value).ok()).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The line that says so to the browser that comes back for the time `attempt`.
pub fn note(attempt: u8) -> HeaderValue {
    cookie::set(COOKIE, &attempt.to_string(), Some(WINDOW))
}

/// The line after which the count begins anew.
pub fn forget() -> HeaderValue {
    cookie::delete(COOKIE)
}
