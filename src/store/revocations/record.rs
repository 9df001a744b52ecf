//! The form of a revocation in the store.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Revocation, Target};
use crate::{
    clock::{Timestamp, optional_millis},
    sha256::sha256,
    store::{Expect, Put, StoreError, Table},
};

#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) what: What,
    pub(super) reason: Arc<str>,
    /// How long it is in force, if the record lasts longer.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_millis")]
    pub(super) until: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Session { id: Arc<str> },
    Token { issuer: Arc<str>, id: Arc<str> },
    Principal { issuer: Arc<str>, subject: Arc<str> },
    Workload { uid: Arc<str> },
}

impl Record {
    /// Returns the record, and its expiry.
    pub(super) fn of(what: What, Revocation { reason, until, kept }: Revocation) -> (Self, Timestamp) {
        (Self { what, reason, until: (until < kept).then_some(until) }, kept)
    }

    pub(super) fn put(&self, kept: Timestamp, expect: Expect) -> Result<Put, StoreError> {
        let key = sha256(&[&serde_json::to_vec(&self.what).unwrap_or_default()]).to_vec();
        let value = serde_json::to_vec(self).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        Ok(Put { table: Table::Revocations, key, value, expires: kept, expect })
    }
}

impl From<Target<'_>> for What {
    fn from(target: Target<'_>) -> Self {
        match target {
            Target::Session(id) => Self::Session { id: id.into() },
            Target::Token { issuer, id } => Self::Token { issuer: issuer.into(), id: id.into() },
            Target::Principal { issuer, subject } => Self::Principal { issuer: issuer.into(), subject: subject.into() },
            Target::Workload(uid) => Self::Workload { uid: uid.into() },
        }
    }
}
