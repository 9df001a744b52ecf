//! The loop breaker. If sessions do not last (a store that forgets, replicas with different keys, a cookie that the
//! browser does not send back), the browser would be redirected to the provider and back in an endless loop, as nobody
//! has to type anything there. So a cookie counts the logins in a row, and the browser is stopped.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::sessions::cookie;

/// The maximum number of logins in a row.
pub const MAX: u8 = 5;

/// The time within which logins count as in a row: one round takes only a few redirects.
const WINDOW: Duration = Duration::from_secs(30);

/// A separate cookie, as the session's may be the one that is lost. It counts a chain, not logins: tabs that log in
/// side by side all began without it, so each of them is the first.
const COOKIE: &str = "__Host-doorward-attempts";

/// The number of logins of this browser in a row.
pub fn made(headers: &HeaderMap) -> u8 {
    let value = cookie::find(headers, COOKIE).ok().flatten();
    value.and_then(|value| std::str::from_utf8(value).ok()).and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The `Set-Cookie` line that sets the count to `attempt`.
pub fn note(attempt: u8) -> HeaderValue {
    cookie::set(COOKIE, &attempt.to_string(), Some(WINDOW))
}

/// The `Set-Cookie` line that resets the count.
pub fn forget() -> HeaderValue {
    cookie::delete(COOKIE)
}
