//! The health of the components that no task of their own reports.

use std::{sync::Arc, time::Duration};

use super::App;
use crate::{
    admin::health::{ComponentHandle, Gate},
    authn::break_glass,
    clock::every,
    config::{raw::Limits, values::Size},
    lock::lock,
    memory,
    snapshot::Snapshot,
    store::StoreError,
};

/// How often components are checked.
const TICK: Duration = Duration::from_millis(500);

/// Reports the health of issuers, store, trail and break-glass. An issuer that is down is reported and affects no
/// others.
pub(super) async fn watch_health(app: &App) {
    let store = app.health.component("store", Gate::Readiness);
    let audit = app.health.component("audit", Gate::Readiness);
    let copy = app.trail.checkpoint_copy().map(|_| app.health.component("audit-checkpoint-copy", Gate::Report));
    let break_glass = app.health.component("break-glass", Gate::Report);
    let mut tick = every(TICK);
    // A component is removed with its last handle, so the handles of a round are kept until the next.
    let mut issuers = Vec::new();
    loop {
        tick.tick().await;
        // Before the store is queried, which may hang.
        report_break_glass(app, &break_glass);
        let snapshot = app.snapshot.load_full();
        report_store(app, &snapshot, &store).await;
        report_trail(app, &audit, copy.as_ref());
        let current = report_issuers(app, &snapshot);
        drop(std::mem::replace(&mut issuers, current));
    }
}

async fn report_store(app: &App, snapshot: &Snapshot, store: &ComponentHandle) {
    let ping = app.store.ping().await;
    let (age, max_age) = (app.revocations.mirror_age(), snapshot.max_mirror_age);
    match store_problem(&ping, age, max_age) {
        None => store.ok(),
        Some(why) => {
            let gate = store_gate(&ping, app.store.is_shared(), age, max_age);
            // First, so that a failure that affects no requests does not fail readiness even for a moment.
            app.health.component("store", gate);
            store.failed(why);
        }
    }
}

/// Whether readiness should fail while the store does. All replicas lose a shared store at once, and none would receive
/// requests any more, although each can answer bearer tokens with its copy of the revocations as long as that is valid.
/// One on a full disk refuses only what has to be written, and the audit trail beside it may be set to go on.
fn store_gate(ping: &Result<(), StoreError>, is_shared: bool, age_of_copy: Duration, max_age: Duration) -> Gate {
    let is_full = matches!(ping, Err(StoreError::Full(_)));
    if (is_shared || is_full) && age_of_copy <= max_age { Gate::Report } else { Gate::Readiness }
}

/// Returns why the store cannot be used, if so. The failure of one of several servers, or one bad record, can prevent
/// reading revocations while everything else in the store works.
fn store_problem(ping: &Result<(), StoreError>, age_of_copy: Duration, max_age: Duration) -> Option<String> {
    match ping {
        Err(error) => Some(error.to_string()),
        Ok(()) if age_of_copy > max_age => {
            let why = "it answers, but revocations were not read from it recently, so bearer tokens are refused: either the clock was set \
                       ahead or the machine slept a moment ago, or reading fails for the reason in the log";
            Some(why.to_owned())
        }
        Ok(()) => None,
    }
}

fn report_trail(app: &App, audit: &ComponentHandle, copy: Option<&ComponentHandle>) {
    match app.trail.failure() {
        None => audit.ok(),
        Some(why) => {
            let gate = if app.trail.refuses() { Gate::Readiness } else { Gate::Report };
            app.health.component("audit", gate);
            audit.failed(why);
        }
    }
    match (copy, app.trail.checkpoint_copy()) {
        (Some(copy), Some(Ok(()))) => copy.ok(),
        (Some(copy), Some(Err(why))) => copy.failed(why),
        _ => {}
    }
}

/// Reports the issuers of a generation. Returns their components.
fn report_issuers(app: &App, snapshot: &Snapshot) -> Vec<ComponentHandle> {
    let mut components = Vec::new();
    for issuer in snapshot.issuers.iter().filter(|issuer| issuer.signs()) {
        let component = app.health.component(format!("issuer/{}", issuer.name()), Gate::Report);
        let status = issuer.keys().status();
        let introspection = || {
            let metadata = issuer.keys().metadata()?;
            issuer.introspection_trouble(&metadata).map(str::to_owned)
        };
        if status.usable {
            match status.doubt().or_else(introspection) {
                Some(why) => component.degraded(why),
                None => component.ok(),
            }
        } else if let Some(error) = status.last_error {
            component.failed(error);
        }
        // Otherwise nothing was tried yet: it is starting.
        components.push(component);
    }
    components
}

/// Reports whether break-glass is enabled, and records in the trail when it ends.
fn report_break_glass(app: &App, component: &ComponentHandle) {
    // Locked while the generation is read, as a reload holds it until the generation that it recorded is in force.
    let mut noted = lock(&app.noted_break_glass);
    let snapshot = app.snapshot.load();
    let break_glass = snapshot.break_glass.as_ref();
    break_glass::watch(break_glass, component, &app.metrics.break_glass, app.clock.now());
    app.note_break_glass(break_glass, &mut noted);
}

/// Checks the memory and reports its state. It does not depend on the store: while that hangs, more requests wait than
/// ever.
pub(super) async fn watch_memory(app: &App) {
    let component = app.health.component("memory", Gate::Readiness);
    let mut tick = every(TICK);
    let mut warned = None;
    warn_of_little_memory(&app.snapshot.load().limits);
    loop {
        tick.tick().await;
        let limits = Arc::clone(&app.snapshot.load().limits);
        // A reload changes it, and the limit of the cgroup can change at any time.
        let for_bodies = app.memory.look(&limits, &component);
        app.budget.set_limit(for_bodies.bytes());
        if is_cut_by_cgroup(&limits, for_bodies) && warned.replace(for_bodies) != Some(for_bodies) {
            tracing::warn!(
                "only {for_bodies} of the {} of `limits.buffered_bytes` are used, half of the memory limit of the cgroup without \
                 code and files: the other half is for everything else; raise the limit of the container, or lower `limits.buffered_bytes`",
                limits.buffered_bytes
            );
        }
    }
}

/// Warns if the limit of the cgroup is low. The check of the configuration warns of a low `memory`.
fn warn_of_little_memory(limits: &Limits) {
    let little = memory::limit(limits).filter(|limit| limits.memory.is_none() && memory::is_little(*limit));
    if let Some(limit) = little {
        tracing::warn!(
            "the memory limit of the cgroup is {limit}, of which little is left beside the program: floods of requests can make \
             it slow for all; raise the limit of the container to {} or more",
            memory::LITTLE
        );
    }
}

/// Whether the limit of the cgroup leaves less for bodies than is configured. If `memory` does, the check of the
/// configuration warns of it.
fn is_cut_by_cgroup(limits: &Limits, for_bodies: Size) -> bool {
    limits.memory.is_none() && for_bodies < limits.buffered_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_do_not_fit_into_the_cgroup_are_warned_of() {
        let limits = Limits::default();
        assert!(is_cut_by_cgroup(&limits, Size::mib(32)));
        assert!(!is_cut_by_cgroup(&limits, limits.buffered_bytes));
        assert!(!is_cut_by_cgroup(&Limits { memory: Some(Size::mib(64)), ..limits }, Size::mib(32)));
    }

    /// The store was healthy and the replica ready, while each bearer token was refused.
    #[test]
    fn a_store_that_cannot_list_revocations_has_failed_even_if_it_answers() {
        let [fresh, limit, old] = [59, 60, 61].map(Duration::from_secs);
        for (ping, age, fails) in [
            (Ok(()), fresh, false),
            (Ok(()), limit, false),
            (Ok(()), old, true),
            (Ok(()), Duration::MAX, true),
            (Err(StoreError::Timeout), fresh, true),
        ] {
            assert_eq!(store_problem(&ping, age, limit).is_some(), fails, "{ping:?} {age:?}");
        }
        // After a jump of the clock the store has no fault, and the log has no reason.
        let why = store_problem(&Ok(()), old, limit).unwrap();
        assert!(why.contains("the clock was set ahead or the machine slept"), "{why}");
    }

    /// With a full disk, the only replica got no requests at all any more, under `audit.when_full: continue` too.
    #[test]
    fn a_shared_or_full_store_that_fails_leaves_replicas_ready_for_what_they_can_answer() {
        let [fresh, limit, old] = [59, 60, 61].map(Duration::from_secs);
        let (away, full) = (|| Err(StoreError::Timeout), || Err(StoreError::Full("no space left".to_owned())));
        for (ping, is_shared, age, gate) in [
            (away(), true, fresh, Gate::Report),
            (away(), true, limit, Gate::Report),
            (away(), true, old, Gate::Readiness),
            // Nothing was read yet.
            (away(), true, Duration::MAX, Gate::Readiness),
            // The embedded store belongs to this replica only.
            (away(), false, fresh, Gate::Readiness),
            (full(), false, fresh, Gate::Report),
            (full(), false, old, Gate::Readiness),
            (Ok(()), false, old, Gate::Readiness),
        ] {
            assert_eq!(store_gate(&ping, is_shared, age, limit), gate, "{ping:?} {is_shared} {age:?}");
        }
    }
}
