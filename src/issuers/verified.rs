//! The cache of verified tokens, by their SHA-256. A cached token costs a microsecond.
//!
//! Each use of an entry checks the time, the route's issuers and audiences, and that the issuer's key set is still the
//! one that the signature was verified with.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;

use super::{Accepts, Issuer, single_flight::Key};
use crate::{
    authn::Principal,
    clock::{Moment, Timestamp},
};

/// The capacity in bytes: of tokens, answers about them, and some overhead.
const WEIGHT: u64 = 64 << 20;

/// A verified token.
#[derive(Debug)]
pub struct Verified {
    pub principal: Arc<Principal>,
    pub issuer: Arc<Issuer>,
    /// The generation of the key set that verified the signature; `None` for an opaque token.
    pub generation: Option<u64>,
    pub not_before: Option<Timestamp>,
    /// The time until which the issuer need not be queried again.
    pub good_until: Moment,
    pub audiences: Vec<Box<str>>,
    /// The bytes of the token and of the answers that its claims are from.
    pub size: u32,
}

/// The cache of one generation of the configuration.
#[derive(Debug)]
pub struct VerifiedTokens(Cache<Key, Arc<Verified>>);

impl Default for VerifiedTokens {
    fn default() -> Self {
        let cache = Cache::builder()
            .weigher(|_, verified: &Arc<Verified>| verified.size.saturating_mul(4).saturating_add(1_024))
            .max_capacity(WEIGHT)
            .time_to_live(Duration::from_secs(900));
        Self(cache.build())
    }
}

impl VerifiedTokens {
    pub fn insert(&self, key: Key, verified: Arc<Verified>) {
        self.0.insert(key, verified);
    }

    /// Returns the token if all its conditions still hold. Otherwise the caller verifies it again, which also finds the
    /// precise reason.
    pub fn get(&self, key: &Key, accepts: &Accepts, now: Moment) -> Option<Arc<Verified>> {
        self.0.get(key).filter(|verified| verified.holds(accepts, now))
    }
}

impl Verified {
    fn holds(&self, accepts: &Accepts, now: Moment) -> bool {
        now.wall() < self.principal.ends()
            && now.is_before(self.good_until)
            && self.not_before.is_none_or(|start| start <= now.wall() + self.issuer.skew())
            && accepts.accepts(&self.issuer, &self.audiences)
            && self.generation.is_none_or(|number| self.issuer.keys().generation_number(now) == Some(number))
    }
}
