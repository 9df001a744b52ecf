//! The composition root: what one process consists of, how it starts, takes a new generation, and stops.
//!
//! | file | holds |
//! |---|---|
//! | `process` | from the start of the process to its end |
//! | `reload` | a new generation: built beside the one in force, swapped in whole, or refused |
//! | `signals` | what asks the process to end, and when that is heard |
//! | `tasks` | what goes on beside requests |
//! | `stream_watch` | whether streams that are open may go on |
//! | `account_tokens` | the tokens of service accounts by which Doorward is somebody at API servers |
//! | `certificates` | until when those are valid that the configuration names |
//! | `rights` | whether Kubernetes allows Doorward what its configuration needs |
//! | `policies` | those that were in force, kept so that what they decided can be explained |
//! | `rollout`, `heads` | what replicas tell each other: the configuration and the policy of each, the last checkpoint of its trail |
//! | `durability` | whether a shared store could lose what it has taken, or has no room for more |
//! | `operator` | the commands of operators, of which `revoke`, `sessions`, `hooks` and `token_keys` hold some |

pub mod account_tokens;
mod certificates;
mod durability;
mod heads;
pub mod hooks;
mod operator;
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
    endpoints::Endpoints,
    issuers,
    lock::lock,
    memory::{Memory, MemoryMetrics},
    oidc::LoginMetrics,
    request::refusal_limit::Refusals,
    sessions::SessionMetrics,
    snapshot::{Context, Shared, Snapshot},
    store::{Redis, Revocations, Store, StoreMetrics},
    sts::{Asking, HandedBack, Vault, ends::Ends, onward},
    supervisor::{Supervisor, TaskMetrics},
    upstream::{self, Pings, Pools, buffered::ByteBudget, streams},
    webhooks::{Replay, WebhookMetrics, hold},
};

pub use self::{
    durability::check_held,
    operator::Operators,
    policies::kept_policy,
    process::{StartError, check, check_at, check_elsewhere, run},
};

/// What the parts of a running Doorward share.
#[derive(Debug)]
pub struct App {
    pub clock: Clock,
    /// The control runtime.
    pub control: Handle,
    /// The end of the process.
    pub drain: Drain,
    /// The generation in force.
    pub snapshot: ArcSwap<Snapshot>,
    pub trail: Trail,
    pub revocations: Revocations,
    pub replay: Replay,
    pub held: hold::Queue,
    /// Whether the ends of runs are seen.
    pub ends: Ends,
    /// Look-ups of runs and pods under way.
    pub asking: Asking,
    /// What holders of tokens have ended.
    pub handed_back: HandedBack,
    /// Tokens of other providers.
    pub onward: onward::ProviderTokens,
    pub streams: streams::Registry,
    pub budget: ByteBudget,
    pub memory: Memory,
    pub requests: RequestMetrics,
    pub refusals: Refusals,
    pub metrics: Metrics,
    pub endpoints: Endpoints,
    pub anonymous: Arc<Principal>,
    /// The listener on which EventListeners ask the interceptor; `None`: any. Of the start, as listeners are.
    pub interceptor_listener: Option<String>,
    pub health: Health,
    pub supervisor: Supervisor,
    /// Of the exports of the trail, which go on until it has ended.
    exports: Supervisor,
    /// Of all that has connections of its own to upstreams.
    pools: Mutex<Vec<Pools>>,
    store: Store,
    /// The same, where it is Redis, to be given new credentials.
    redis: Option<Redis>,
    context: Context,
    shared: Shared,
    /// Break-glass, as the trail was told of it last.
    told_door: Mutex<Option<BreakGlass>>,
    /// What became of the configuration that was seen last.
    outcome: rollout::Outcome,
    /// Where policies are kept.
    policies: PathBuf,
}

/// What all components count.
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

    /// Tells the trail of the door of a generation, where that is not the one that it was told of last.
    fn note_door(&self, door: Option<&BreakGlass>, told: &mut Option<BreakGlass>) {
        if let Some(note) = break_glass::note(door, told, self.clock.now()) {
            self.trail.note(note);
        }
    }

    /// Pools for somebody's own connections, which follow reloads as all others do.
    fn own_pools(&self) -> Pools {
        self.own_pools_with(Pings::NORMAL)
    }

    fn own_pools_with(&self, pings: Pings) -> Pools {
        let own = Pools::new(self.metrics.upstream.clone(), pings);
        lock(&self.pools).push(own.clone());
        own
    }

    /// Where the keys of tokens are kept, as a generation has it.
    pub fn vault<'a>(&'a self, snapshot: &'a Snapshot) -> Vault<'a> {
        Vault { store: &self.store, seal: snapshot.sessions.keys(), trail: &self.trail }
    }
}
