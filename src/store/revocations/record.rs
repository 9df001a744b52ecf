//! The form of a revocation in the store.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::{Revocation, Target};
use crate::{
    clock::{Timestamp, optional_millis},
    sha256::sha256,
    store::{Change, Expect, Put, StoreError, Table},
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

    /// Reads the record of a change; returns it with its expiry.
    pub(super) fn read(Change { key, stored, .. }: Change) -> Result<(Self, Timestamp), StoreError> {
        let stored = stored?;
        let corrupt = |error: serde_json::Error| {
            let (key, table) = (HEXLOWER.encode(&key), Table::Revocations.as_str());
            StoreError::Corrupt(format!("the one with the key {key} (hexadecimal) of the table `{table}`: {error}"))
        };
        let record = serde_json::from_slice(&stored.value).map_err(corrupt)?;
        Ok((record, stored.expires))
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Revocations, *};
    use crate::{
        authn::CredentialId,
        clock::Clock,
        store::{Embedded, Store, disturbed::Disturbed},
    };

    /// Regression: a record that the store could read, but that was no revocation, was skipped, and the copy counted as
    /// complete without it: whoever it revoked got in.
    #[tokio::test]
    async fn the_copy_is_incomplete_while_a_revocation_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let inner: Store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let disturbed = Arc::new(Disturbed::new(Arc::clone(&inner)));
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let (now, until) = (clock.now(), clock.now() + Duration::from_secs(60));
        let other = Revocations::new(Arc::clone(&inner), clock.clone());
        other.revoke(Target::Session("s"), "signed out", until).await.unwrap();
        let key = b"k";
        for (value, is_torn) in [("{}", true), ("{}", false), (r#"{"tenant": {"id": "t"}, "reason": "left"}"#, false)] {
            let store = Arc::clone(&disturbed) as Store;
            let revocations = Revocations::new(store, clock.clone());
            inner.put(Table::Revocations, key, value.into(), until, Expect::Any, now).await.unwrap();
            disturbed.torn.lock().unwrap().extend(is_torn.then(|| key.to_vec()));
            let error = revocations.refresh().await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupt(_)), "{value}: {error}");
            assert_eq!(revocations.mirror_age(), Duration::MAX, "{value}");
            let session = CredentialId::Session("s".into());
            assert!(revocations.find(&session, "corp", "alice").is_some(), "{value}: all others are known");
            disturbed.torn.lock().unwrap().clear();
            assert!(inner.delete(Table::Revocations, key).await.unwrap());
            revocations.refresh().await.unwrap();
            assert_eq!(revocations.mirror_age(), Duration::ZERO, "{value}");
        }
    }
}
