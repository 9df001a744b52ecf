//! Shares the last checkpoint of the audit trail with the other replicas through the store, and records theirs in the
//! trail.

use std::{sync::Arc, time::Duration};

use super::{App, rollout::same_name};
use crate::{
    admin::health::Gate,
    audit::Head,
    clock::Timestamp,
    store::{Change, Expect, StoreError, Stored, Table, Written},
};

/// How long the others keep naming a replica that is gone.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many heads are read at once.
const PAGE: usize = 256;
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Shares checkpoints until it is dropped.
pub(super) async fn share(app: &App) {
    let health = app.health.component("audit-heads", Gate::Report);
    let mut own = app.trail.head();
    let mut shared = Shared::default();
    loop {
        let head = own.borrow_and_update().clone();
        let failed = match shared.exchange(app, head.as_ref()).await {
            Ok(()) => {
                health.ok();
                false
            }
            Err(error) => {
                tracing::warn!(%error, "the last checkpoint of the audit trail is not shared with the other replicas");
                health.failed(error.to_string());
                true
            }
        };
        tokio::select! {
            changed = own.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// The state of the exchange.
#[derive(Debug, Default)]
struct Shared {
    /// The version of this replica's record, and when it expires.
    own: Option<(u64, Timestamp)>,
    /// The last change that was read.
    after: u64,
}

impl Shared {
    async fn exchange(&mut self, app: &App, own: Option<&Head>) -> Result<(), NotShared> {
        let now = app.clock.now();
        if let Some(head) = own {
            // A record that has expired was not lost.
            let known = self.own.take().filter(|(_, end)| *end > now).map(|(version, _)| version);
            let expect = known.map_or(Expect::Any, Expect::Version);
            let value = serde_json::to_vec(head).unwrap_or_default();
            let key = head.instance.as_bytes();
            match app.store.put(Table::AuditHeads, key, value, now + KEPT, expect, now).await? {
                Written::Done(version) => self.own = Some((version, now + KEPT)),
                Written::Conflict(found) => return Err(conflict(&head.instance, known, found.as_ref())),
            }
        }
        loop {
            let page = app.store.changes(Table::AuditHeads, self.after, PAGE, now).await?;
            let Some(last) = page.last() else { return Ok(()) };
            self.after = last.version;
            let others = page.into_iter().filter(|change| change.key != app.trail.instance().as_bytes());
            app.trail.witness(others.filter_map(readable));
        }
    }
}

/// Returns the head in a record. One that cannot be read is logged, as it is not read again.
fn readable(Change { key, stored, .. }: Change) -> Option<Head> {
    let head: Result<Head, StoreError> = stored.and_then(|stored| {
        serde_json::from_slice(&stored.value).map_err(|error| StoreError::Corrupt(error.to_string()))
    });
    let unreadable = |error: &StoreError| {
        let instance = key.escape_ascii();
        tracing::error!(
            %instance,
            %error,
            "the last checkpoint of a replica cannot be read, so the audit trail of this one lacks it until that replica shares the next"
        );
    };
    head.inspect_err(unreadable).ok()
}

/// Returns why a write failed. Versions only grow, so a version that is not higher than that of the own record shows
/// that nobody wrote since: the store has lost the record.
fn conflict(instance: &Arc<str>, known: Option<u64>, found: Option<&Stored>) -> NotShared {
    match found {
        Some(found) if known.is_none_or(|known| found.version > known) => NotShared::SameName(Arc::clone(instance)),
        _ => NotShared::Lost,
    }
}

#[derive(Debug, thiserror::Error)]
enum NotShared {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}", same_name(.0))]
    SameName(Arc<str>),
    #[error(
        "the store has lost it: it was emptied or restored, or failed over to a server that lacked the last writes, and sessions, replay \
         ids and held deliveries may be gone as well; it is written again"
    )]
    Lost,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::logged;

    /// Regression: it was skipped silently, and the trail lacked it.
    #[test]
    fn a_head_that_cannot_be_read_is_logged() {
        let stored = |value: &str| Ok(Stored { value: value.as_bytes().to_vec(), version: 1, expires: Timestamp::MAX });
        for (stored, is_readable) in [
            (stored(r#"{"instance": "r1", "seq": 7, "mac": "m"}"#), true),
            (stored("{}"), false),
            (Err(StoreError::Corrupt("torn".to_owned())), false),
        ] {
            let (read, log) = logged(|| readable(Change { key: b"r1".to_vec(), version: 1, stored }));
            assert_eq!((read.is_some(), log.is_empty()), (is_readable, is_readable), "{read:?} {log}");
            assert_eq!(log.contains("instance=r1"), !is_readable, "{log}");
        }
    }

    #[test]
    fn a_store_that_lost_a_head_is_distinguished_from_a_replica_of_the_same_name() {
        let found = |version| Stored { value: Vec::new(), version, expires: Timestamp::MAX };
        for (known, found, same_name) in
            [(Some(7), None, false), (Some(7), Some(found(6)), false), (Some(7), Some(found(8)), true)]
        {
            let told = conflict(&"r1".into(), known, found.as_ref());
            assert_eq!(matches!(told, NotShared::SameName(_)), same_name, "{found:?}: {told}");
        }
    }
}
