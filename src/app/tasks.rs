//! Background tasks.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{App, account_tokens, durability, heads, health_watch, rights, rollout, stream_watch};
use crate::{
    admin::health::Gate,
    audit::export,
    config::raw,
    request::worker::Worker,
    runs,
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
    spawn(app, critical("health"), |app| async move { health_watch::watch_health(&app).await });
    spawn(app, critical("memory-watch"), |app| async move { health_watch::watch_memory(&app).await });
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
                    tokio::time::sleep(KEYS_RETRY).await;
                }
            }
        }
    });
}

/// How often keys are checked, so that a change of the clock is noticed.
const KEYS_TICK: Duration = Duration::from_secs(30);

/// How long after a failure keys are checked again.
const KEYS_RETRY: Duration = Duration::from_millis(500);

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
