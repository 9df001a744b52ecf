//! Shares the last checkpoint of the audit trail with the other replicas through the store, and has ours name theirs.

use std::{sync::Arc, time::Duration};

use super::App;
use crate::{
    admin::health::Gate,
    audit::Head,
    store::{Expect, StoreError, Table, Written},
};

/// How long the others go on naming a replica that is gone.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many heads are read at once.
const PAGE: usize = 256;
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Goes on until it is dropped.
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

/// What was exchanged already.
#[derive(Debug, Default)]
struct Shared {
    /// The version of our own record.
    version: Option<u64>,
    /// The last change that was read.
    after: u64,
}

impl Shared {
    async fn exchange(&mut self, app: &App, own: Option<&Head>) -> Result<(), NotShared> {
        let now = app.clock.now();
        if let Some(head) = own {
            let expect = self.version.take().map_or(Expect::Any, Expect::Version);
            let value = serde_json::to_vec(head).unwrap_or_default();
            let key = head.instance.as_bytes();
            match app.store.put(Table::AuditHeads, key, value, now + KEPT, expect, now).await? {
                Written::Done(version) => self.version = Some(version),
                Written::Conflict(_) => return Err(NotShared::SameName(Arc::clone(&head.instance))),
            }
        }
        loop {
            let page = app.store.changes(Table::AuditHeads, self.after, PAGE, now).await?;
            let Some(last) = page.last() else { return Ok(()) };
            self.after = last.stored.version;
            let heads = page.iter().filter_map(|change| serde_json::from_slice::<Head>(&change.stored.value).ok());
            app.trail.witness(heads.filter(|head| *head.instance != *app.trail.instance()));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum NotShared {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("another replica calls itself `{0}` as well; give each a name of its own by `audit.instance`")]
    SameName(Arc<str>),
}
