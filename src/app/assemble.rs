//! The assembly of a process: opens the store and the trail, and creates the first generation and the state that all
//! generations share.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;

use super::{
    App, Metrics, places, policies,
    process::{StartError, problems},
    rollout::{Applied, Outcome},
};
use crate::{
    admin::{health::Health, metrics::RequestMetrics, server::AdminSettings},
    assertions,
    audit::{Note, Trail},
    authn::Principal,
    clock::Clock,
    config::{self, Loaded, report::Severity},
    downstream::{self, Drain},
    lock::lock,
    memory::{self, Memory},
    oidc::program::Devices,
    request::refusal_limit::Refusals,
    sessions::{
        self,
        keyring::{self, KeyRing},
    },
    snapshot::{Context, Resolved, Shared, Snapshot},
    store::{self, Embedded, Metered, Redis, Revocations, Store},
    streams,
    sts::{self, HolderRevocations, Lookups, ends::RunEnds, onward},
    supervisor::{Backoff, Supervisor},
    upstream::buffered::ByteBudget,
    webhooks::{
        Replay,
        hold::{self, Identity},
    },
};

/// The parts that the start has created so far.
pub(super) struct Parts<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) metrics: Metrics,
    pub(super) requests: RequestMetrics,
    pub(super) clock: Clock,
    pub(super) context: Context,
}

/// The state of the process, and the settings of its listeners.
pub(super) struct Prepared {
    pub(super) app: Arc<App>,
    pub(super) downstream: downstream::Settings,
    pub(super) admin: AdminSettings,
}

impl Parts<'_> {
    /// Opens store and trail, and creates the first generation.
    pub(super) fn open(self, loaded: &Loaded, mut resolved: Resolved) -> Result<Prepared, StartError> {
        let base = loaded.base();
        let store_path = base.join(&loaded.raw.store.path);
        let home = config::resolver::folder_of(&store_path);
        std::fs::create_dir_all(home)
            .map_err(StartError::io(format!("the folder of the store, {}, cannot be created", home.display())))?;
        let (store, audit) = (resolved.store.take().ok_or_else(missing)?, resolved.audit.take().ok_or_else(missing)?);
        let lost = places::lost(&store_path, matches!(store, store::Settings::Embedded), &audit);
        let (store, redis) = self.open_store(store, &store_path)?;
        let trail = Trail::open(&audit, home, self.clock.clone())?;
        let shared = self.share(store, trail.clone(), &store_path)?;
        for file in lost {
            let is_store = file == store_path;
            let file = file.display();
            if is_store {
                tracing::error!(
                    %file,
                    "the store was missing or empty although files of an earlier start exist, so a new one was created: revocations, \
                     sessions and held deliveries are lost; if this was not intended, stop Doorward and restore it as docs/upkeep.md says"
                );
            } else {
                tracing::warn!(
                    %file,
                    "this key was missing although files of an earlier start exist, so a new one was created: data that needs \
                     the previous key is lost; if this was not intended, stop Doorward and restore it as docs/upkeep.md says"
                );
            }
        }
        self.read_token_keys(&resolved, &shared);
        let downstream = resolved.downstream.take().ok_or_else(missing)?;
        let admin = resolved.admin.clone();
        let snapshot = resolved.into_snapshot(1, &shared, &self.clock).ok_or_else(missing)?;
        self.requests.reload_applied(1, self.clock.now());
        self.metrics.certificates.follow(self.metrics.certificates.turn(), &snapshot.raw, base);
        trail.note(Note::PolicyLoaded {
            digest: Arc::clone(snapshot.policy.digest()),
            cause: "start",
            problems: problems(&loaded.warnings, Severity::Warning),
        });
        // An embedded store has no leases.
        let identity = match redis.is_some() {
            true => Identity::of(trail.instance(), &store_path.with_extension(hold::REPLICA_EXTENSION)),
            false => Identity::default(),
        };
        let app = Arc::new(self.assemble(snapshot, shared, redis, identity, policies::beside(&store_path)));
        app.note_break_glass(app.snapshot.load().break_glass.as_ref(), &mut lock(&app.noted_break_glass));
        app.outcome.taken(Arc::clone(&loaded.digest), Applied::default());
        app.store_policy(&app.snapshot.load().policy)
            .map_err(StartError::io("the policy in force cannot be stored beside the store"))?;
        Ok(Prepared { app, downstream, admin })
    }

    fn open_store(&self, settings: store::Settings, path: &Path) -> Result<(Store, Option<Redis>), StartError> {
        let metrics = self.metrics.store.clone();
        Ok(match settings {
            store::Settings::Embedded => (Arc::new(Metered::new(Embedded::open(path)?, metrics)), None),
            store::Settings::Redis(settings) => {
                let redis = Redis::new(*settings, self.runtime.handle().clone());
                (Arc::new(Metered::new(redis.clone(), metrics)), Some(redis))
            }
        })
    }

    /// Returns the state that all generations share, with the keys that are stored beside the store.
    fn share(&self, store: Store, trail: Trail, store_path: &Path) -> Result<Shared, StartError> {
        let revocations = Revocations::new(Arc::clone(&store), self.clock.clone());
        // Before the first request. Without the store, every caller that could be revoked gets 503 until the copy is
        // loaded.
        if let Err(error) = self.runtime.block_on(revocations.refresh()) {
            tracing::error!(%error, "cannot read revocations from the store yet; authenticated requests get 503");
        }
        let keys = KeyRing::load_or_create(&store_path.with_extension(keyring::KEY_EXTENSION))
            .map_err(StartError::io("the session key beside the store cannot be read or made"))?;
        let assertion_keys = assertions::Keys::load_or_create(&store_path.with_extension(assertions::KEY_EXTENSION))
            .map_err(StartError::io("the key of assertions beside the store cannot be read or made"))?;
        let sessions = sessions::Shared {
            store,
            revocations,
            clock: self.clock.clone(),
            control: self.runtime.handle().clone(),
            drain: Drain::default(),
            metrics: self.metrics.sessions.clone(),
            refreshes: sessions::Refreshes::default(),
            devices: Devices::default(),
            trail,
        };
        Ok(Shared {
            assertion_keys,
            sessions,
            logins: self.metrics.logins.clone(),
            requests: self.requests.clone(),
            keys,
            token_keys: sts::SigningKeyRing::default(),
        })
    }

    /// Reads the token keys before the first request, whose token may be one of Doorward's. If that fails, the
    /// background task tries again.
    fn read_token_keys(&self, resolved: &Resolved, shared: &Shared) {
        let seal = resolved.sessions.as_ref().and_then(|sessions| sessions.keys.as_ref()).unwrap_or(&shared.keys);
        let sessions::Shared { store, trail, .. } = &shared.sessions;
        let (key_storage, now) = (sts::KeyStorage { store, seal, trail }, self.clock.now());
        let read = match resolved.token_rotation() {
            Some(period) => self.runtime.block_on(shared.token_keys.renew_once(key_storage, period, now)).map(|_| ()),
            None => self.runtime.block_on(shared.token_keys.retire(key_storage, now)),
        };
        if let Err(error) = read {
            tracing::error!(%error, "the token keys cannot be read yet");
        }
    }

    fn assemble(
        self,
        snapshot: Snapshot,
        shared: Shared,
        redis: Option<Redis>,
        identity: Identity,
        policies: PathBuf,
    ) -> App {
        let Self { runtime, metrics, requests, clock, context } = self;
        let control = runtime.handle();
        let sessions::Shared { store, revocations, drain, trail, .. } = shared.sessions.clone();
        snapshot.name_issuers(&revocations);
        snapshot.supply_token_keys();
        let health = Health::new(clock.clone());
        let memory = Memory::new(metrics.memory.clone());
        let for_bodies = memory::for_bodies(&snapshot.limits);
        let supervisor = || Supervisor::new(control.clone(), health.clone(), metrics.tasks.clone(), Backoff::default());
        App {
            control: control.clone(),
            drain,
            trail,
            replay: Replay::new(Arc::clone(&store)),
            held: hold::Queue::new(Arc::clone(&store), snapshot.sessions.keys(), metrics.webhooks.clone())
                .identified(identity),
            run_ends: RunEnds::default(),
            lookups: Lookups::default(),
            holder_revocations: HolderRevocations::default(),
            onward: onward::ProviderTokens::new(
                clock.clone(),
                control.clone(),
                revocations.clone(),
                metrics.onward.clone(),
            ),
            revocations,
            streams: streams::Registry::new(clock.clone(), metrics.streams.clone()),
            budget: ByteBudget::new(for_bodies.bytes()).measured_by(memory.clone()),
            memory,
            interceptor_listener: snapshot.raw.interceptor.as_ref().and_then(|asked| asked.listener.clone()),
            snapshot: ArcSwap::from_pointee(snapshot),
            requests,
            refusals: Refusals::default(),
            anonymous: Arc::new(Principal::anonymous()),
            supervisor: supervisor(),
            exports: supervisor(),
            metrics,
            health,
            pools: Mutex::default(),
            store,
            redis,
            context,
            shared,
            noted_break_glass: Mutex::default(),
            outcome: Outcome::default(),
            policies,
            clock,
        }
    }
}

/// The error for a part that is missing although the configuration was checked.
fn missing() -> StartError {
    StartError::Io {
        what: "the configuration".to_owned(),
        error: io::Error::other("was accepted although a part of it is missing"),
    }
}
