//! Background tasks.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{App, account_tokens, durability, heads, rights, rollout, stream_watch};
use crate::{
    admin::health::{ComponentHandle, Gate},
    audit::export,
    authn::break_glass,
    clock::every,
    config::raw,
    lock::lock,
    request::worker::Worker,
    runs,
    store::StoreError,
    sts::{OwnIssuer, ends},
    supervisor::{TaskHandle, TaskSpec},
    upstream::{Lane, Pings},
    webhooks::hold,
};

/// Starts the tasks that run until the end of the process. Returns the one that delivers held deliveries, as it has to
/// stop while connections are still accepted.
pub(super) fn start(app: &Arc<App>) -> TaskHandle {
    let critical = |name: &'static str| TaskSpec::new(name).critical();
    spawn_until(app, critical("revocations"), |app, stop| app.revocations.clone().follow(stop));
    spawn(app, critical("stream-deadlines"), |app| app.streams.clone().enforce_deadlines());
    spawn(app, critical("streams"), |app| async move { stream_watch::watch_streams(&app).await });
    spawn(app, critical("stream-decisions"), |app| async move { stream_watch::watch_decisions(&app).await });
    spawn(app, critical("stream-tokens"), |app| async move { stream_watch::watch_tokens(&app).await });
    spawn(app, critical("stream-sessions"), |app| async move { stream_watch::watch_sessions(&app).await });
    spawn(app, critical("health"), |app| async move { watch_health(&app).await });
    spawn(app, critical("memory-watch"), |app| async move { watch_memory(&app).await });
    if app.store.is_shared() {
        spawn(app, TaskSpec::new("audit-heads"), |app| async move { heads::share(&app).await });
        spawn(app, TaskSpec::new("rollout"), |app| async move { rollout::publish(&app).await });
    }
    if let Some(redis) = app.redis.clone() {
        let watched = redis.clone();
        // Created here and not in the task, so that this replica is not ready before the task has begun.
        let unknown = app.health.component(durability::COMPONENT, Gate::Readiness);
        spawn(app, TaskSpec::new("store-durability"), move |app| {
            let (redis, component) = (watched.clone(), unknown.clone());
            async move { durability::watch(&app, &redis, &component).await }
        });
        let timed = redis.clone();
        spawn(app, TaskSpec::new("store-clock"), move |app| {
            let redis = timed.clone();
            async move { durability::watch_clock(&app, &redis).await }
        });
        app.control.spawn(async move {
            // A server that is unavailable or does not allow the question is not warned about; health reports whether
            // it works.
            for warning in redis.warnings().await.unwrap_or_default() {
                tracing::warn!("{warning}");
            }
        });
    }
    renew_account_tokens(app);
    let delivering = deliver_held(app);
    follow_runs(app);
    maintain_token_keys(app);
    end_tokens(app);
    watch_rights(app);
    export_trail(app);
    delivering
}

/// Starts a task that needs no clean-up when it is stopped.
fn spawn<F, T>(app: &Arc<App>, spec: TaskSpec, task: F)
where
    F: Fn(Arc<App>) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    spawn_until(app, spec, move |app, stop| {
        let work = task(app);
        async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        }
    });
}

/// Starts a task that runs until it is asked to stop.
pub(super) fn spawn_until<F, T>(app: &Arc<App>, spec: TaskSpec, task: F) -> TaskHandle
where
    F: Fn(Arc<App>, CancellationToken) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let shared = Arc::clone(app);
    app.supervisor.spawn(spec, move |stop| {
        let work = task(Arc::clone(&shared), stop);
        async move {
            work.await;
            Ok(())
        }
    })
}

/// Delivers held deliveries, over connections of its own. If this process serves the interceptor, it first waits until
/// EventListeners can reach it: they call it only once, and create no run if the call fails.
fn deliver_held(app: &Arc<App>) -> TaskHandle {
    let deliverer = Arc::new(Worker::new(Arc::clone(app), app.own_pools()));
    spawn_until(app, TaskSpec::new("held-deliveries"), move |app, stop| {
        let (queue, deliverer) = (app.held.clone(), Arc::clone(&deliverer));
        let (clock, drain) = (app.clock.clone(), app.drain.clone());
        let settle = app.snapshot.load().raw.interceptor.as_ref().map(|interceptor| interceptor.settle.get());
        hold::run(queue, deliverer, clock, drain, settle.unwrap_or_default(), stop)
    })
}

/// Links Tekton runs to their causes if the configuration has `runs`, over connections of its own.
fn follow_runs(app: &Arc<App>) {
    let Some(runs) = app.snapshot.load().raw.runs.clone() else { return };
    let own = app.own_pools();
    let app = Arc::clone(app);
    app.supervisor.clone().spawn(TaskSpec::new("runs"), move |stop| {
        let follow = runs::follow(Arc::clone(&app), own.clone(), runs.clone(), stop);
        async move { follow.await.map_err(Into::into) }
    });
}

/// Ends the tokens of a run when the run ends, over connections of its own, if tasks get tokens in the generation in
/// force. Tasks that already follow a cluster are informed of the new generation.
pub(super) fn end_tokens(app: &Arc<App>) {
    let configuration = Arc::clone(&app.snapshot.load().raw);
    for cluster in app.run_ends.configure(&configuration) {
        let own = app.own_pools_with(Pings::EAGER);
        let issuer = Arc::clone(&cluster);
        let client = runs::client(
            Arc::clone(app),
            // Multiplexed with other requests over HTTP/2: HTTP/1.1 has no way to check whether the other side is still
            // there.
            (own.clone(), Lane::Short),
            move |root: &raw::Root| root.clusters().find(|of| *of.issuer == *issuer)?.kubernetes.as_ref(),
            || {},
        );
        spawn_until(app, TaskSpec::new("ends-of-runs"), move |app, stop| {
            ends::follow(app, (client.clone(), own.clone()), Arc::clone(&cluster), stop)
        });
    }
}

/// Reads, generates and rotates the keys that sign tokens, if the configuration has none.
fn maintain_token_keys(app: &Arc<App>) {
    spawn(app, TaskSpec::new("token-keys"), |app| async move {
        let health = app.health.component("token-keys", Gate::Report);
        loop {
            let snapshot = app.snapshot.load_full();
            let now = app.clock.now();
            let key_storage = app.key_storage(&snapshot);
            app.shared.token_keys.forget(now);
            let Some(period) = snapshot.own_issuer.as_ref().and_then(OwnIssuer::rotation) else {
                if snapshot.own_issuer.is_some()
                    && let Err(error) = app.shared.token_keys.retire(key_storage, now).await
                {
                    tracing::warn!(%error, "the token keys that were generated before the configuration had any are not published");
                }
                // For the generation that is in force now.
                app.snapshot.load().supply_token_keys();
                health.ok();
                tokio::time::sleep(KEYS_TICK).await;
                continue;
            };
            match app.shared.token_keys.renew_once(key_storage, period, now).await {
                Ok(next) => {
                    health.ok();
                    app.snapshot.load().supply_token_keys();
                    tokio::time::sleep(next.since(now).min(KEYS_TICK)).await;
                }
                Err(error) => {
                    tracing::error!(%error, "no token can be issued");
                    health.failed(error.to_string());
                    tokio::time::sleep(HEALTH_TICK).await;
                }
            }
        }
    });
}

/// How often keys are checked, so that a change of the clock is noticed.
const KEYS_TICK: Duration = Duration::from_secs(30);

/// Renews the service-account tokens that Doorward presents to upstreams, over connections of its own.
fn renew_account_tokens(app: &Arc<App>) {
    let own = app.own_pools();
    spawn(app, TaskSpec::new("account-tokens").critical(), move |app| {
        let own = own.clone();
        async move { account_tokens::watch(&app, &own).await }
    });
}

/// Checks whether Kubernetes gives the rights that the configuration needs.
fn watch_rights(app: &Arc<App>) {
    let own = app.own_pools();
    spawn(app, TaskSpec::new("rights"), move |app| {
        let own = own.clone();
        async move { rights::watch(&app, &own).await }
    });
}

/// Sends the audit trail to its receivers.
fn export_trail(app: &Arc<App>) {
    for export in app.trail.exports() {
        let (export, health, clock) = (export.clone(), app.health.clone(), app.clock.clone());
        let spec = TaskSpec::new(format!("audit-export/{}", export.name()));
        app.exports.spawn(spec, move |stop| {
            let component = health.component(format!("audit-export/{}", export.name()), Gate::Report);
            export::run(export.clone(), clock.clone(), component, stop)
        });
    }
}

/// Whether readiness should fail while the store does. All replicas lose a shared store at once, and none would receive
/// requests any more, although each can answer bearer tokens with its copy of the revocations as long as that is valid.
fn store_gate(age_of_copy: Option<Duration>, max_age: Duration) -> Gate {
    match age_of_copy {
        Some(age) if age <= max_age => Gate::Report,
        _ => Gate::Readiness,
    }
}

/// Returns why the store cannot be used, if so. The failure of one of several servers, or one bad record, can prevent
/// reading revocations while everything else in the store works.
fn store_trouble(ping: &Result<(), StoreError>, age_of_copy: Duration, max_age: Duration) -> Option<String> {
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

/// How often components are checked.
const HEALTH_TICK: Duration = Duration::from_millis(500);

/// Checks the memory and reports its state. It does not depend on the store: while that hangs, more requests wait than
/// ever.
async fn watch_memory(app: &App) {
    let memory = app.health.component("memory", Gate::Readiness);
    let mut tick = every(HEALTH_TICK);
    loop {
        tick.tick().await;
        app.memory.look(&app.snapshot.load().limits, &memory);
    }
}

/// Reports the health of issuers, store, trail and break-glass. An issuer that is down is reported and affects no
/// others.
async fn watch_health(app: &App) {
    let store = app.health.component("store", Gate::Readiness);
    let audit = app.health.component("audit", Gate::Readiness);
    let copy = app.trail.checkpoint_copy().map(|_| app.health.component("audit-checkpoint-copy", Gate::Report));
    let break_glass = app.health.component("break-glass", Gate::Report);
    let mut tick = every(HEALTH_TICK);
    // A component is removed with its last handle, so the handles of a round are kept until the next.
    let mut issuers = Vec::new();
    loop {
        tick.tick().await;
        // Before the store is queried, which may hang.
        watch_break_glass(app, &break_glass);
        let snapshot = app.snapshot.load_full();
        let ping = app.store.ping().await;
        let (age, max_age) = (app.revocations.mirror_age(), snapshot.max_mirror_age);
        match store_trouble(&ping, age, max_age) {
            None => store.ok(),
            Some(why) => {
                let gate = store_gate(app.store.is_shared().then_some(age), max_age);
                // First, so that a failure that affects no requests does not fail readiness even for a moment.
                app.health.component("store", gate);
                store.failed(why);
            }
        }
        match app.trail.failure() {
            None => audit.ok(),
            Some(why) => {
                let gate = if app.trail.refuses() { Gate::Readiness } else { Gate::Report };
                app.health.component("audit", gate);
                audit.failed(why);
            }
        }
        match (&copy, app.trail.checkpoint_copy()) {
            (Some(copy), Some(Ok(()))) => copy.ok(),
            (Some(copy), Some(Err(why))) => copy.failed(why),
            _ => {}
        }
        let mut current = Vec::new();
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
            current.push(component);
        }
        drop(std::mem::replace(&mut issuers, current));
    }
}

/// Reports whether break-glass is enabled, and records in the trail when it ends.
fn watch_break_glass(app: &App, component: &ComponentHandle) {
    // Locked while the generation is read, as a reload holds it until the generation that it recorded is in force.
    let mut noted = lock(&app.noted_break_glass);
    let snapshot = app.snapshot.load();
    let break_glass = snapshot.break_glass.as_ref();
    break_glass::watch(break_glass, component, &app.metrics.break_glass, app.clock.now());
    app.note_break_glass(break_glass, &mut noted);
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(store_trouble(&ping, age, limit).is_some(), fails, "{ping:?} {age:?}");
        }
        // After a jump of the clock the store has no fault, and the log has no reason.
        let why = store_trouble(&Ok(()), old, limit).unwrap();
        assert!(why.contains("the clock was set ahead or the machine slept"), "{why}");
    }

    #[test]
    fn an_unavailable_shared_store_leaves_replicas_ready_for_bearer_tokens() {
        let [fresh, limit, old] = [59, 60, 61].map(Duration::from_secs);
        for (age, gate) in [
            (Some(fresh), Gate::Report),
            (Some(limit), Gate::Report),
            (Some(old), Gate::Readiness),
            // Nothing was read yet.
            (Some(Duration::MAX), Gate::Readiness),
            // The embedded store belongs to this replica only.
            (None, Gate::Readiness),
        ] {
            assert_eq!(store_gate(age, limit), gate, "{age:?}");
        }
    }
}
