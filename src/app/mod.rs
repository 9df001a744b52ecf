//! The composition root: the parts of a process, and how it starts, reloads and stops.
//!
//! | file | holds |
//! |---|---|
//! | `process` | the process from start to end |
//! | `assemble` | the assembly of a process: store, trail, the first generation, and the state that all generations share |
//! | `reload` | reloads: a new generation is built beside the current one and replaces it as a whole, or is refused |
//! | `signals` | the signals that end the process |
//! | `tasks` | background tasks |
//! | `health_watch` | the health of store, trail, issuers, break-glass and memory |
//! | `stream_watch` | rechecks of open streams |
//! | `account_tokens` | tokens of service accounts with which Doorward authenticates to API servers |
//! | `certificates` | the expiry of the certificates that the configuration names |
//! | `rights` | whether Kubernetes gives Doorward the rights that its configuration needs |
//! | `policies` | stored copies of earlier policies, so that their decisions can be explained |
//! | `rollout`, `heads` | what replicas share: the configuration and policy of each, and its last checkpoint |
//! | `durability` | whether a shared store could lose accepted writes, or is nearly full |
//! | `places` | checks, for `doorward check`, of the files and the socket that a start opens |
//! | `operator` | the commands of operators: their dispatch, and their records in the trail |
//! | `revoke`, `sessions`, `hooks`, `token_keys` | the commands about revocations, sessions, held deliveries and token keys |

pub mod account_tokens;
mod assemble;
mod certificates;
mod durability;
mod heads;
mod health_watch;
pub mod hooks;
mod operator;
mod places;
mod policies;
mod process;
mod reload;
mod revoke;
pub mod rights;
pub mod rollout;
mod sessions;
mod signals;
mod stream_watch;
mod tasks;
#[cfg(test)]
mod tests;
mod token_keys;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;

use self::certificates::CertificateMetrics;
use crate::{
    admin::{health::Health, metrics::RequestMetrics},
    audit::Trail,
    authn::{
        Principal,
        break_glass::{self, BreakGlass, BreakGlassMetrics},
    },
    clock::Clock,
    downstream::{self, Drain},
    issuers,
    lock::lock,
    memory::{Memory, MemoryMetrics},
    oidc::LoginMetrics,
    request::refusal_limit::Refusals,
    sessions::SessionMetrics,
    snapshot::{Context, Shared, Snapshot},
    store::{Redis, Revocations, Store, StoreMetrics},
    streams,
    sts::{HolderRevocations, KeyStorage, Lookups, ends::RunEnds, onward},
    supervisor::{Supervisor, TaskMetrics},
    upstream::{self, Pings, Pools, buffered::ByteBudget},
    webhooks::{Replay, WebhookMetrics, hold},
};

pub use self::{
    durability::check_held,
    operator::Operators,
    places::check_places,
    policies::stored_policy,
    process::{StartError, check, check_at, check_elsewhere, run},
};

/// The state that the parts of a running Doorward share.
#[derive(Debug)]
pub struct App {
    pub clock: Clock,
    /// The runtime of background tasks.
    pub control: Handle,
    /// The drain at the end of the process.
    pub drain: Drain,
    /// The generation in force.
    pub snapshot: ArcSwap<Snapshot>,
    pub trail: Trail,
    pub revocations: Revocations,
    pub replay: Replay,
    pub held: hold::Queue,
    /// Whether the ends of runs are being observed.
    pub run_ends: RunEnds,
    /// Look-ups of runs and pods that are in progress.
    pub lookups: Lookups,
    /// Tokens that their holders have ended.
    pub holder_revocations: HolderRevocations,
    /// Tokens of other providers.
    pub onward: onward::ProviderTokens,
    pub streams: streams::Registry,
    pub budget: ByteBudget,
    pub memory: Memory,
    pub requests: RequestMetrics,
    pub refusals: Refusals,
    pub metrics: Metrics,
    pub anonymous: Arc<Principal>,
    /// The listener on which EventListeners call the interceptor, or `None` for any. It is that of the start, as
    /// listeners are.
    pub interceptor_listener: Option<String>,
    pub health: Health,
    pub supervisor: Supervisor,
    /// The supervisor of exports of the trail, which continue until the trail has ended.
    exports: Supervisor,
    /// The connection pools of all parts that connect to upstreams.
    pools: Mutex<Vec<Pools>>,
    store: Store,
    /// The same store if it is Redis, to set new credentials.
    redis: Option<Redis>,
    context: Context,
    shared: Shared,
    /// Break-glass as it was last recorded in the trail.
    noted_break_glass: Mutex<Option<BreakGlass>>,
    /// The outcome of the last configuration that was loaded.
    outcome: rollout::Outcome,
    /// The folder where policies are stored.
    policies: PathBuf,
}

/// The metrics of all components.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    certificates: CertificateMetrics,
    pub downstream: downstream::Metrics,
    pub issuers: issuers::Metrics,
    pub sessions: SessionMetrics,
    pub logins: LoginMetrics,
    pub store: StoreMetrics,
    pub streams: streams::Metrics,
    pub tasks: TaskMetrics,
    pub upstream: upstream::Metrics,
    pub webhooks: WebhookMetrics,
    pub break_glass: BreakGlassMetrics,
    pub memory: MemoryMetrics,
    pub onward: onward::Metrics,
}

impl Metrics {
    fn register(&self, registry: &mut Registry) {
        self.certificates.register(registry);
        self.downstream.register(registry);
        self.issuers.register(registry);
        self.sessions.register(registry);
        self.logins.register(registry);
        self.store.register(registry);
        self.streams.register(registry);
        self.tasks.register(registry);
        self.upstream.register(registry);
        self.webhooks.register(registry);
        self.break_glass.register(registry);
        self.memory.register(registry);
        self.onward.register(registry);
    }
}

impl App {
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Records the break-glass settings of a generation in the trail, if they differ from those recorded last.
    fn note_break_glass(&self, break_glass: Option<&BreakGlass>, noted: &mut Option<BreakGlass>) {
        if let Some(note) = break_glass::note(break_glass, noted, self.clock.now()) {
            self.trail.note(note);
        }
    }

    /// Returns connection pools for one part of Doorward, which follow reloads as all others do.
    fn own_pools(&self) -> Pools {
        self.own_pools_with(Pings::NORMAL)
    }

    fn own_pools_with(&self, pings: Pings) -> Pools {
        let own = Pools::new(self.metrics.upstream.clone(), pings);
        lock(&self.pools).push(own.clone());
        own
    }

    /// Returns the store of token keys, with the settings of a generation.
    pub fn key_storage<'a>(&'a self, snapshot: &'a Snapshot) -> KeyStorage<'a> {
        KeyStorage { store: &self.store, seal: snapshot.sessions.keys(), trail: &self.trail }
    }
}
