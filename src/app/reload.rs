//! Reloads: a new generation is built beside the current one, and replaces it as a whole or is refused.

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};

use super::{
    App, account_tokens, hooks,
    process::{problems, warn_of},
    rights,
    rollout::Applied,
    tasks,
};
use crate::{
    admin::{
        health::{ComponentHandle, Gate},
        server::{AdminSettings, TokenHandle},
        socket::SocketUsers,
    },
    audit::{self, Note},
    authn::break_glass,
    config::{
        self, Loaded, Sources,
        fingerprint::Fingerprint,
        reload::{changed_keys, fixed_changes},
        renewal::{self, Renewal},
        report::Severity,
        resolver::{Contents, Volume},
        watch::{Cause, Trigger, Watcher},
    },
    downstream::{self, Downstream},
    lock::lock,
    logging::Logging,
    snapshot::{self, Resolved, Snapshot},
    store,
    upstream::Pools,
};

/// How long a new generation waits for the keys of its new issuers, so that no caller is refused because they are still
/// being fetched.
const KEYS_PATIENCE: Duration = Duration::from_secs(5);

/// The most reasons of one refusal that are logged.
const MOST_REASONS: usize = 20;

/// Logs why a configuration was refused. Each reason has a line of its own, as an event of the log cannot have several.
fn log_refusal(cause: Cause, reasons: &[String]) {
    let cause = cause.as_str();
    if reasons.is_empty() {
        tracing::error!(cause, "the configuration was refused, and the old one is kept");
    }
    for reason in reasons.iter().take(MOST_REASONS) {
        tracing::error!(cause, "the configuration was refused, and the old one is kept: {reason}");
    }
    let more = reasons.len().saturating_sub(MOST_REASONS);
    if more > 0 {
        tracing::error!(cause, more, "there are more reasons, which `doorward check` shows");
    }
}

/// Loads new generations.
#[derive(Debug)]
pub struct Reloader {
    sources: Sources,
    app: Arc<App>,
    watcher: Watcher,
    logging: Logging,
    /// Connections for checks of a new generation at API servers.
    own: Pools,
    admin: AdminHandles,
    /// Reports whether the configuration that was loaded last is in use.
    health: ComponentHandle,
    /// The configuration that the process was started with, to compare settings that are fixed until restart.
    started: (config::raw::Root, Fingerprint),
    /// The folder that paths of the configuration are relative to.
    folder: PathBuf,
    /// The files of the configuration in force, as they were read for it.
    files: Fingerprint,
    /// The content of those files that are in one volume with the configuration.
    volume: Volume,
    /// The content of all files that its settings name, as it is in use.
    contents: Contents,
    /// Those of them whose previous content is in use, as the present one cannot be.
    broken: BTreeSet<PathBuf>,
}

/// The parts of the admin listener and the operator socket that follow a reload, if there are any.
#[derive(Debug)]
pub struct AdminHandles {
    pub token: Option<TokenHandle>,
    pub socket_users: Option<SocketUsers>,
}

impl AdminHandles {
    fn set(&self, settings: &AdminSettings) {
        if let Some(token) = &self.token {
            token.set(settings.token.as_ref());
        }
        if let Some(users) = &self.socket_users {
            users.set(&settings.socket_users);
        }
    }
}

/// The settings of a configuration outside of the generation.
struct Beside {
    downstream: Option<downstream::Settings>,
    admin: AdminSettings,
    store: Option<store::Settings>,
    audit: Option<audit::Settings>,
}

impl Beside {
    fn of(resolved: &Resolved) -> Self {
        Self {
            downstream: resolved.downstream.clone(),
            admin: resolved.admin.clone(),
            store: resolved.store.clone(),
            audit: resolved.audit.clone(),
        }
    }
}

impl Reloader {
    pub fn new(
        sources: Sources,
        app: Arc<App>,
        loaded: Loaded,
        logging: Logging,
        admin: AdminHandles,
    ) -> io::Result<Self> {
        let (folder, files) = (loaded.base().to_owned(), loaded.fingerprint.clone());
        let (volume, contents, broken) = (loaded.volume, loaded.contents, BTreeSet::new());
        let started = (loaded.raw, loaded.fingerprint.clone());
        let watcher = Watcher::new(loaded.fingerprint)?;
        let own = app.own_pools();
        let health = app.health.component("configuration", Gate::Report);
        health.ok();
        Ok(Self {
            sources,
            app,
            watcher,
            logging,
            own,
            admin,
            health,
            started,
            folder,
            files,
            volume,
            contents,
            broken,
        })
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

    /// Loads the configuration and puts it in force, or reports why not.
    pub async fn reload(&mut self, cause: Cause, downstream: &Downstream) {
        self.app.outcome.begun();
        let (sources, app) = (self.sources.clone(), Arc::clone(&self.app));
        let previous = self.app.snapshot.load_full();
        let (number, current) = (previous.number + 1, Arc::clone(&previous));
        // Before anything is read, so that no change in between is missed. Reading files may block.
        let in_force = self.files.clone();
        let seen = tokio::task::spawn_blocking(move || in_force.now()).await.unwrap_or_default();
        let loading = tokio::task::spawn_blocking(move || {
            config::load(&sources, |root, resolver| snapshot::resolve(root, resolver, &app.context, Some(&previous)))
        });
        let (reasons, problems, mut files, in_files): (Vec<String>, _, _, _) = match loading.await {
            Ok(Ok((loaded, resolved))) => {
                let files = loaded.fingerprint.clone();
                match self.apply(number, &current, &loaded, resolved, cause, downstream).await {
                    Ok(()) => {
                        self.files = files.clone();
                        self.volume = loaded.volume;
                        self.contents = loaded.contents;
                        self.broken.clear();
                        self.watcher.follow(files);
                        return;
                    }
                    Err(problems) => (problems.clone(), problems, files, false),
                }
            }
            Ok(Err(refused)) => {
                let errors = problems(&refused.diagnosis, Severity::Error);
                (refused.diagnosis.lines().collect(), errors, refused.fingerprint.clone(), true)
            }
            Err(error) => (vec![error.to_string()], vec![error.to_string()], Fingerprint::default(), false),
        };
        // First, so that metrics and health already report it when the log does.
        self.app.requests.reload_refused();
        let first = reasons.first().map_or("no reason was given", String::as_str);
        let more = reasons.len().checked_sub(1).filter(|more| *more > 0);
        let more = more.map(|more| format!(" (and {more} more)")).unwrap_or_default();
        let status = format!("the configuration was refused, and an older one is in use: {first}{more}");
        self.health.degraded(status.clone());
        // Recorded before operators are told, so that the record of their command follows it.
        self.app.trail.note(Note::PolicyRefused { digest: None, cause: cause.as_str(), problems });
        self.app.outcome.refused(self.app.clock.now(), &reasons, in_files);
        log_refusal(cause, &reasons);
        self.renew(&current, downstream).await;
        if let Some(kept) = self.kept() {
            self.health.degraded(format!("{status}; {kept}"));
        }
        // Files that the refused configuration did not get to read: with their content at that time, and not as in the
        // configuration in force, which would be reported as a change for ever.
        files.add(&seen);
        // Files that only the renewal read.
        files.add(&self.files);
        self.watcher.follow(files);
    }

    /// Puts a valid configuration in force, or returns the reasons why it cannot be.
    async fn apply(
        &self,
        number: u64,
        current: &Snapshot,
        loaded: &Loaded,
        resolved: Resolved,
        cause: Cause,
        downstream: &Downstream,
    ) -> Result<(), Vec<String>> {
        let beside = Beside::of(&resolved);
        let next = resolved.into_snapshot(number, &self.app.shared, &self.app.clock);
        let next = next.ok_or_else(|| vec!["a part of the configuration is missing".to_owned()])?;
        let mut problems = account_tokens::not_obtainable(&self.own, current, &next, &self.app.clock).await;
        problems.extend(rights::not_impersonable(&self.own, &current.raw, &next).await);
        if !problems.is_empty() {
            return Err(problems);
        }
        if let Some(own_issuer) = &next.own_issuer {
            let app = &self.app;
            let taken =
                own_issuer.take_over(current.own_issuer.as_ref(), app.key_storage(&next), app.clock.now()).await;
            taken.map_err(|error| {
                vec![format!("the configuration has no `tokens.keys`, and none can be generated: {error}")]
            })?;
        }
        next.issuers.start_and_wait(KEYS_PATIENCE).await;
        // First, so that everything is in force when the log says so.
        self.hand_out(beside, downstream);
        self.take(loaded, next, cause).await;
        Ok(())
    }

    /// Rereads the files of the configuration in force, such as a token that was renewed, which must not become stale
    /// while somebody repairs the configuration that was refused. Files that are swapped together with the
    /// configuration belong to it and are not reread.
    async fn renew(&mut self, current: &Arc<Snapshot>, downstream: &Downstream) {
        let (app, previous, folder) = (Arc::clone(&self.app), Arc::clone(current), self.folder.clone());
        let (volume, contents) = (self.volume.clone(), self.contents.clone());
        let renewing = tokio::task::spawn_blocking(move || {
            renewal::renew(&folder, &volume, &contents, |resolver| {
                snapshot::resolve(&previous.raw, resolver, &app.context, Some(&previous))
            })
        });
        let Ok(Renewal { resolved, fingerprint: mut files, contents, broken }) = renewing.await else { return };
        if files.is_part_of(&self.files) {
            return;
        }
        self.broken = broken;
        if let Some(kept) = self.kept() {
            tracing::warn!("{kept}");
        }
        let Some(resolved) = resolved else {
            tracing::warn!(
                "the configuration in force cannot be resolved again for a reason outside of its files, so none of them is \
                 renewed; `doorward check` shows the reason"
            );
            return;
        };
        // Only now: what could not be resolved is tried again, even if no file changes any more. The main file and the
        // policy files are not read here.
        files.add(&self.files);
        self.files = files;
        if contents == self.contents {
            return;
        }
        self.contents = contents;
        let beside = Beside::of(&resolved);
        // It is the same configuration, so it keeps its number.
        let Some(next) = resolved.into_snapshot(current.number, &self.app.shared, &self.app.clock) else { return };
        account_tokens::obtain(&self.own, &next.upstreams, &self.app.clock).await;
        next.issuers.start_and_wait(KEYS_PATIENCE).await;
        self.hand_out(beside, downstream);
        self.put_in_force(next);
        let ended = self.end_refused_streams().await;
        tracing::info!(streams_ended = ended, "files of the configuration in force have changed, and are in use");
    }

    /// Says which files of the configuration in force cannot be used as they are now, if there are any.
    fn kept(&self) -> Option<String> {
        let names: Vec<String> = self.broken.iter().map(|path| path.display().to_string()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "files of the configuration in force cannot be used any more, and their previous content stays in use: {}",
                names.join(", ")
            )
        })
    }

    /// Passes settings to the parts of the process that outlive a generation.
    fn hand_out(&self, Beside { downstream: settings, admin, store, audit }: Beside, downstream: &Downstream) {
        if let (Some(redis), Some(store::Settings::Redis(settings))) = (&self.app.redis, store) {
            redis.set(*settings);
        }
        if let Some(settings) = settings {
            for left in downstream.reload(&settings) {
                tracing::warn!("{}; this requires a restart", left.0);
            }
        }
        if let Some(audit) = audit {
            self.app.trail.follow(&audit);
        }
        self.admin.set(&admin);
    }

    fn put_in_force(&self, mut next: Snapshot) {
        let current = self.app.snapshot.load();
        next.keep_trust_of(&current);
        if let (Some(own_issuer), Some(former)) = (&next.own_issuer, &current.own_issuer) {
            own_issuer.keep_published(former, self.app.clock.now());
        }
        next.name_issuers(&self.app.revocations);
        // A configuration without keys is meant for another store, which requires a restart.
        if !next.raw.sessions.keys.is_empty() {
            self.app.held.set_keys(next.sessions.keys());
        }
        let upstreams = next.upstreams.clone();
        // In a blocking task, as it reads files.
        let (certificates, raw) = (self.app.metrics.certificates.clone(), Arc::clone(&next.raw));
        let folder = self.folder.clone();
        let turn = certificates.turn();
        tokio::task::spawn_blocking(move || certificates.follow(turn, &raw, &folder));
        // Only now: a generation that is refused must change nothing, and the current one signs until now.
        next.supply_token_keys();
        self.app.snapshot.store(Arc::new(next));
        for pools in lock(&self.app.pools).iter() {
            pools.retain(&upstreams);
        }
    }

    /// Ends the streams that the generation in force no longer allows, and returns their number.
    async fn end_refused_streams(&self) -> usize {
        let (app, streams) = (&self.app, &self.app.streams);
        streams.end_by(|stream| app.latest_end(stream));
        streams.cut_expired() + streams.recheck_in_parts(|stream| app.refusal_of(stream)).await
    }

    async fn take(&self, loaded: &Loaded, next: Snapshot, cause: Cause) {
        let app = &self.app;
        let (number, digest) = (next.number, Arc::clone(next.policy.digest()));
        if let Err(error) = app.store_policy(&next.policy) {
            tracing::error!(%error, "the policy cannot be stored, so its decisions cannot be explained later");
        }
        break_glass::log_closed(next.break_glass.as_ref(), app.clock.now());
        {
            // Recorded before it is in force, so that the people it admits are in the trail before their requests.
            let mut noted = lock(&app.noted_break_glass);
            app.note_break_glass(next.break_glass.as_ref(), &mut noted);
            self.put_in_force(next);
        }
        tasks::end_tokens(app);
        // Recorded at once: the generation stays in force even if Doorward is stopped while streams are rechecked.
        let problems = problems(&loaded.warnings, Severity::Warning);
        app.trail.note(Note::PolicyLoaded {
            digest: Arc::clone(&digest),
            cause: cause.as_str(),
            problems: problems.clone(),
        });
        let ended = self.end_refused_streams().await;
        app.requests.reload_applied(number, app.clock.now());
        self.health.ok();
        let ((started, files), raw) = (&self.started, &loaded.raw);
        let fixed: Vec<String> = fixed_changes(started, raw).iter().map(ToString::to_string).collect();
        let applied = Applied { after_restart: fixed.clone(), warnings: problems };
        app.outcome.taken(Arc::clone(&loaded.digest), applied);
        if let Err(error) = self.logging.apply(&loaded.raw.log) {
            tracing::warn!(%error, "the log filter is unchanged");
        }
        warn_of(&loaded.warnings);
        hooks::warn_of_gone(app);
        let keys = changed_keys((started, files), (raw, &loaded.fingerprint), &self.folder);
        for change in fixed.into_iter().chain(keys.iter().map(ToString::to_string)) {
            tracing::warn!("{change}");
        }
        tracing::info!(
            generation = number,
            policy = &*digest,
            cause = cause.as_str(),
            streams_ended = ended,
            "configuration loaded"
        );
    }
}
