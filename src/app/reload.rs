//! A new generation: built beside the one in force, swapped in whole, or refused with the old one kept.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    App, rights,
    run::{problems, warn_of},
};
use crate::{
    admin::server::TokenHandle,
    audit::Note,
    authn::CredentialId,
    config::{
        self, Loaded, Sources,
        reload::fixed_changes,
        watch::{Cause, Trigger, Watcher},
    },
    downstream::Downstream,
    logging::Logging,
    snapshot, store,
    upstream::{
        Pools,
        streams::{CutReason, Stream},
    },
};

/// Takes new generations.
#[derive(Debug)]
pub struct Reloader {
    sources: Sources,
    app: Arc<App>,
    watcher: Watcher,
    logging: Logging,
    pools: Arc<Mutex<Vec<Pools>>>,
    /// For questions about a new generation.
    own: Pools,
    admin_token: Option<TokenHandle>,
    /// What the process was started with, for what is fixed until restart.
    started: config::raw::Root,
}

impl Reloader {
    pub fn new(
        sources: Sources,
        app: Arc<App>,
        loaded: Loaded,
        logging: Logging,
        pools: Arc<Mutex<Vec<Pools>>>,
        admin_token: Option<TokenHandle>,
    ) -> io::Result<Self> {
        let watcher = Watcher::new(loaded.fingerprint)?;
        let own = Pools::new(app.metrics.upstream.clone());
        pools.lock().unwrap_or_else(PoisonError::into_inner).push(own.clone());
        Ok(Self { sources, app, watcher, logging, pools, own, admin_token, started: loaded.raw })
    }

    pub fn trigger(&self) -> Trigger {
        self.watcher.trigger()
    }

    /// Waits until the configuration is to be loaded again.
    pub async fn changed(&mut self) -> Cause {
        self.watcher.changed().await
    }

    pub fn into_logging(self) -> Logging {
        self.logging
    }

    /// Loads the configuration and takes it, or says why not.
    pub async fn reload(&mut self, cause: Cause, downstream: &Downstream) {
        let (sources, app) = (self.sources.clone(), Arc::clone(&self.app));
        let previous = self.app.snapshot.load_full();
        let (number, current) = (previous.number + 1, Arc::clone(&previous));
        // Reading files may block.
        let loading = tokio::task::spawn_blocking(move || {
            config::load(&sources, |root, resolver| snapshot::resolve(root, resolver, &app.context, Some(&previous)))
        });
        let problems = match loading.await {
            Ok(Ok((loaded, resolved))) => {
                self.watcher.follow(loaded.fingerprint.clone());
                match self.apply(number, &current, &loaded, resolved, cause, downstream).await {
                    Ok(()) => return,
                    Err(problems) => {
                        for problem in &problems {
                            tracing::error!(?cause, problem, "the configuration was refused, and the old one is kept");
                        }
                        problems
                    }
                }
            }
            Ok(Err(refused)) => {
                self.watcher.follow(refused.fingerprint.clone());
                tracing::error!(
                    ?cause,
                    "the configuration was refused, and the old one is kept\n{}",
                    refused.diagnosis
                );
                problems(&refused.diagnosis)
            }
            Err(error) => vec![error.to_string()],
        };
        self.app.requests.reload_refused();
        self.app.outcome.refused(self.app.clock.now(), &problems);
        self.app.trail.note(Note::PolicyRefused { digest: None, problems });
    }

    /// Takes a configuration that is right in itself, or says why it cannot be in force.
    async fn apply(
        &self,
        number: u64,
        current: &snapshot::Snapshot,
        loaded: &Loaded,
        resolved: snapshot::Resolved,
        cause: Cause,
        downstream: &Downstream,
    ) -> Result<(), Vec<String>> {
        let settings = resolved.downstream.clone();
        let admin = resolved.admin.clone();
        let store = resolved.store.clone();
        let audit = resolved.audit.clone();
        let next = resolved.into_snapshot(number, &self.app.shared, &self.app.clock);
        let next = next.ok_or_else(|| vec!["a part of the configuration is missing".to_owned()])?;
        let problems = rights::not_impersonable(&self.own, &current.raw, &next).await;
        if !problems.is_empty() {
            return Err(problems);
        }
        // First, so that all is in force once the log says so.
        if let (Some(redis), Some(store::Settings::Redis(settings))) = (&self.app.redis, store) {
            redis.set(*settings);
        }
        if let Some(settings) = settings {
            for left in downstream.reload(&settings) {
                tracing::warn!("{}; it takes a restart", left.0);
            }
        }
        if let Some(audit) = audit {
            self.app.trail.set_exports(&audit.exports);
        }
        if let Some(token) = &self.admin_token {
            token.set(admin.token.as_ref());
        }
        self.take(loaded, next, cause);
        Ok(())
    }

    fn take(&self, loaded: &Loaded, next: snapshot::Snapshot, cause: Cause) {
        let app = &self.app;
        let (number, digest) = (next.number, Arc::clone(next.policy.digest()));
        next.issuers.start();
        if let Err(error) = app.keep_policy(&next.policy) {
            tracing::error!(%error, "the policy cannot be kept, so its decisions cannot be explained later");
        }
        app.budget.set_limit(next.limits.buffered_bytes.bytes());
        let upstreams = next.upstreams.clone();
        app.snapshot.store(Arc::new(next));
        for pools in self.pools.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            pools.retain(&upstreams);
        }
        let ended = app.streams.recheck(|stream| app.is_still_allowed(stream));
        app.requests.reload_applied(number, app.clock.now());
        app.outcome.taken();
        if let Err(error) = self.logging.apply(&loaded.raw.log) {
            tracing::warn!(%error, "the log filter stays as it was");
        }
        warn_of(&loaded.warnings);
        for change in fixed_changes(&self.started, &loaded.raw) {
            tracing::warn!("{change}");
        }
        tracing::info!(generation = number, policy = &*digest, ?cause, streams_ended = ended, "configuration taken");
        app.trail.note(Note::PolicyLoaded { digest, problems: problems(&loaded.warnings) });
    }
}

/// How often streams are held against revocations.
const STREAM_TICK: Duration = Duration::from_millis(500);

/// Ends streams whose credential was revoked, and those that a rule's hours no longer allow.
pub async fn watch_streams(app: &App) {
    let mut tick = tokio::time::interval(STREAM_TICK);
    let mut looked = app.clock.now();
    loop {
        tick.tick().await;
        let now = app.clock.now();
        if !app.streams.is_empty() {
            app.close_revoked_streams();
        }
        // Even if there is none: a stream that was decided before the boundary and begins after it has to notice.
        let boundary = app.snapshot.load().policy.next_change(looked);
        if boundary.is_some_and(|boundary| boundary <= now) {
            app.streams.recheck(|stream| app.is_still_allowed(stream));
        }
        looked = now;
    }
}

/// How often the sessions of open streams are looked at. Short beside `sessions.recheck`, which is a minute or more.
const SESSION_TICK: Duration = Duration::from_secs(5);

/// Keeps the sessions of open streams true, and ends the streams of those that have ended or whose person may no longer
/// do what was asked.
pub async fn watch_sessions(app: &App) {
    let mut tick = tokio::time::interval(SESSION_TICK);
    loop {
        tick.tick().await;
        let mut names = HashSet::new();
        app.streams.for_each(|stream| {
            if let CredentialId::Session(name) = &stream.principal.credential {
                names.insert(Arc::clone(name));
            }
        });
        let sessions = app.snapshot.load().sessions.clone();
        for name in names {
            let of_session = |stream: &Stream| stream.principal.credential == CredentialId::Session(Arc::clone(&name));
            match sessions.current(&name).await {
                Ok(Some(principal)) => {
                    app.streams.recheck(|stream| !of_session(stream) || app.is_still_allowed_to(&principal, stream));
                }
                Ok(None) => drop(app.streams.close_matching(of_session, CutReason::Expired)),
                // Without the store nobody is logged out.
                Err(error) => tracing::debug!(%error, "the session of a stream was not looked up"),
            }
        }
    }
}
