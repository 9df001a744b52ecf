//! A session as the rest of a request sees it.

use std::sync::Arc;

use super::{
    SessionHash, Tokens,
    record::{Holder, Record},
};
use crate::{authn::Principal, clock::Timestamp};

/// A valid session.
#[derive(Debug)]
pub struct Session {
    pub principal: Arc<Principal>,
    pub created: Timestamp,
    /// The end if it is not used again.
    pub idle_end: Timestamp,
    /// The end in any case.
    pub end: Timestamp,
    pub(super) hash: SessionHash,
    pub(super) record: Record,
    pub(super) version: u64,
    pub(super) read: Timestamp,
    /// Whether it is sealed with the current sealing key.
    pub(super) current_key: bool,
}

impl Session {
    /// The name of the issuer where the person logged in.
    pub fn issuer(&self) -> &Arc<str> {
        &self.record.issuer
    }

    pub fn tokens(&self) -> &Tokens {
        &self.record.tokens
    }

    /// Whether a program holds it, and not a browser.
    pub fn is_of_program(&self) -> bool {
        self.record.holder() == Holder::Program
    }

    /// Its name, as in a list of sessions and in the audit trail.
    pub fn name(&self) -> String {
        self.hash.to_string()
    }
}
