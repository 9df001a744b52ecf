//! Limits how many refusals one address gets in a minute. A page may retry forever: a Dashboard whose session has ended
//! keeps reopening its WebSockets.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;

use crate::{
    downstream::client_network,
    error::{Reason, Rejection},
};

/// How long refusals of an address are counted, from the first.
const MINUTE: Duration = Duration::from_secs(60);

/// How many addresses are counted at once. Beyond that, those with the fewest refusals are evicted.
const MAX_ADDRESSES: u64 = 10_000;

/// Counts refusals. A caller with a valid credential is never counted, or refused because of others at the same
/// address.
#[derive(Debug)]
pub struct Refusals(Cache<IpAddr, Arc<AtomicU32>>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_ADDRESSES).time_to_live(MINUTE).build())
    }
}

impl Refusals {
    /// Returns the refusal that a request from `address` gets instead of `rejection`. It is another one if the
    /// credential is missing, malformed or of an expired session, and `most` such refusals were given within the
    /// minute. A program, which has no page to close, gets advice of its own.
    pub(super) fn count(&self, rejection: Rejection, address: IpAddr, most: u32, is_program: bool) -> Rejection {
        let without = [Reason::CredentialMissing, Reason::CredentialMalformed, Reason::SessionExpired];
        if !without.contains(&rejection.reason()) {
            return rejection;
        }
        let count = self.0.get_with(client_network(address), Arc::default).fetch_add(1, Ordering::Relaxed);
        if count < most {
            return rejection;
        }
        let detail = rejection.detail();
        let detail = format!("{detail}; your address was refused for this {most} times within a minute");
        let fix = match is_program {
            true => "stop the program that keeps retrying, and give it a credential that is accepted here",
            false => "close the pages that keep retrying, or sign in there again",
        };
        Rejection::new(Reason::TooManyRefusals, detail).fix(fix).with_retry_after(MINUTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_too_many_refusals_gets_429() {
        let refusals = Refusals::default();
        let address = |text: &str| text.parse().unwrap();
        let count = |reason, from| {
            let told = refusals.count(Rejection::new(reason, "there is no session"), address(from), 2, false);
            (told.status().as_u16(), told.retry_after())
        };
        let wait = (429, Some(MINUTE));
        assert_eq!(count(Reason::SessionExpired, "2001:db8::1"), (401, None));
        assert_eq!(count(Reason::CredentialMissing, "2001:db8::2"), (401, None));
        assert_eq!(count(Reason::SessionExpired, "2001:db8::3"), wait, "one host has a whole network of addresses");
        // Other refusals are not limited, and other addresses are counted separately.
        assert_eq!(count(Reason::TokenExpired, "2001:db8::3"), (401, None));
        assert_eq!(count(Reason::SessionExpired, "192.0.2.1"), (401, None));
    }

    #[test]
    fn a_program_gets_no_advice_about_pages() {
        let refusals = Refusals::default();
        for (is_program, said) in [(true, "credential"), (false, "pages")] {
            let malformed = Rejection::new(Reason::CredentialMalformed, "it is no token");
            let told = refusals.count(malformed, "192.0.2.1".parse().unwrap(), 0, is_program);
            let fix = told.fix_text().unwrap();
            assert!(fix.contains(said) && fix.contains("pages") != is_program, "{fix}");
        }
    }
}
