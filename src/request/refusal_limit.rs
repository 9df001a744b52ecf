//! How many refusals one address gets in a minute. A page may ask again and again: a Dashboard whose session has ended opens its
//! sockets anew for ever.

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
    downstream::whose,
    error::{Reason, Rejection},
};

/// How long refusals of an address are counted, from the first.
const MINUTE: Duration = Duration::from_secs(60);

/// Addresses that are counted at once. With more, those of whom least was heard are forgotten.
const MAX_ADDRESSES: u64 = 10_000;

/// Counts refusals. Nobody with a good credential is counted, or refused for others at the same address.
#[derive(Debug)]
pub struct Refusals(Cache<IpAddr, Arc<AtomicU32>>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_ADDRESSES).time_to_live(MINUTE).build())
    }
}

impl Refusals {
    /// The refusal that a request from `address` gets instead of `rejection`: another one where it comes without a session, and more
    /// than `most` did within the minute. A program, which has no page to close, is told what to do as one.
    pub(super) fn count(&self, rejection: Rejection, address: IpAddr, most: u32, is_program: bool) -> Rejection {
        let without = [Reason::CredentialMissing, Reason::CredentialMalformed, Reason::SessionExpired];
        if !without.contains(&rejection.reason()) {
            return rejection;
        }
        let count = self.0.get_with(whose(address), Arc::default).fetch_add(1, Ordering::Relaxed);
        if count < most {
            return rejection;
        }
        let detail = rejection.detail().trim_end_matches('.');
        let detail = format!("{detail}; your address was told so {most} times within a minute");
        let fix = match is_program {
            true => "stop what asks again and again, and give it a credential that is taken here",
            false => "close the pages that ask again and again, or sign in there anew",
        };
        Rejection::new(Reason::TooManyRefusals, detail).fix(fix).with_retry_after(MINUTE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_so_often_and_then_told_to_wait() {
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
        // Other refusals are not those of such pages, and other addresses not theirs.
        assert_eq!(count(Reason::TokenExpired, "2001:db8::3"), (401, None));
        assert_eq!(count(Reason::SessionExpired, "192.0.2.1"), (401, None));
    }

    #[test]
    fn a_program_is_told_nothing_of_pages() {
        let refusals = Refusals::default();
        for (is_program, said) in [(true, "credential"), (false, "pages")] {
            let malformed = Rejection::new(Reason::CredentialMalformed, "it is no token");
            let told = refusals.count(malformed, "192.0.2.1".parse().unwrap(), 0, is_program);
            let fix = told.fix_text().unwrap();
            assert!(fix.contains(said) && fix.contains("pages") != is_program, "{fix}");
        }
    }
}
