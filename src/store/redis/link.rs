//! The connection to the current master, which is made again after it broke.
//!
//! One connection carries the calls of all threads. It lives on the control runtime, so that it outlives the worker
//! that needed it first. While there is none, one caller connects and the others wait for it. After a failure nobody
//! retries for a moment, so that a server that is down is not flooded with connections.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, PushInfo, PushKind, RedisError, RedisFuture,
    RedisResult, ScriptInvocation, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
};
use tokio::{runtime::Handle, sync::Mutex};

use super::{
    super::StoreError,
    settings::{Settings, Topology},
};

/// The timeout of connecting.
pub(super) const CONNECT: Duration = Duration::from_secs(1);

/// The timeout of one response.
pub(super) const RESPONSE: Duration = Duration::from_millis(1500);

/// The timeout of a call with everything that it waits for. A write that timed out may still happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The pause before connecting again after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// A call to the server.
pub(super) enum Request {
    Command(Cmd),
    /// A command without a key. In a cluster it is sent to the server with the given key.
    At(Cmd, String),
    Script(ScriptInvocation<'static>),
    /// Commands on keys of one slot, in order over one connection.
    Pipeline(Pipeline),
}

/// Whether a call may be sent again if it is unknown whether it was done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Harmless,
    Never,
}

pub(super) struct Link {
    settings: ArcSwap<Settings>,
    live: ArcSwapOption<Live>,
    /// Held by the caller that connects. Contains when connecting last failed, and why.
    failed: Mutex<Option<(Instant, StoreError)>>,
    control: Handle,
}

struct Live {
    connection: Connection,
    /// Set by the connection itself, before the next call finds out.
    broken: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    pub fn new(settings: Settings, control: Handle) -> Self {
        Self {
            settings: ArcSwap::from_pointee(settings),
            live: ArcSwapOption::empty(),
            failed: Mutex::new(None),
            control,
        }
    }

    /// Uses new settings, such as a new password or new addresses, from now on.
    pub fn set(&self, settings: Settings) {
        let same = settings.connects_like(&self.settings.load());
        self.settings.store(Arc::new(settings));
        if !same {
            self.live.store(None);
        }
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    pub async fn call<T: FromRedisValue>(&self, request: &Request, repeat: Repeat) -> Result<T, StoreError> {
        let exchange = async {
            let mut last = false;
            loop {
                let live = self.live().await?;
                let fault = match request.send(live.connection.clone()).await {
                    Ok(value) => {
                        return redis::from_redis_value(value).map_err(|error| StoreError::Corrupt(error.to_string()));
                    }
                    Err(error) => Fault::of(&error),
                };
                if fault.reconnect {
                    self.discard(&live);
                }
                let again = fault.reconnect && (fault.undone || repeat == Repeat::Harmless);
                if last || !again {
                    return Err(fault.error);
                }
                last = true;
            }
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or(Err(StoreError::Timeout))
    }

    async fn live(&self) -> Result<Arc<Live>, StoreError> {
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        let mut failed = self.failed.lock().await;
        if let Some(live) = self.usable() {
            return Ok(live);
        }
        if let Some((_, error)) = failed.as_ref().filter(|(when, _)| when.elapsed() < PAUSE) {
            return Err(error.clone());
        }
        let settings = self.settings.load_full();
        let connecting = Arc::clone(&settings);
        let connected = match self.control.spawn(async move { connect(&connecting).await }).await {
            Ok(connected) => connected.map_err(|error| Fault::of(&error).error),
            Err(_) => Err(StoreError::Unavailable("connecting was cancelled".to_owned())),
        };
        match connected {
            Ok(live) => {
                *failed = None;
                let live = Arc::new(live);
                // If the settings changed meanwhile, another connection is needed.
                if Arc::ptr_eq(&settings, &self.settings.load()) {
                    self.live.store(Some(Arc::clone(&live)));
                }
                Ok(live)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn usable(&self) -> Option<Arc<Live>> {
        self.live.load_full().filter(|live| !live.broken.load(Ordering::Acquire))
    }

    fn discard(&self, broken: &Arc<Live>) {
        broken.broken.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("settings", &self.settings).finish_non_exhaustive()
    }
}

async fn connect(settings: &Settings) -> RedisResult<Live> {
    let broken = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&broken);
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(RESPONSE))
        .set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                told.store(true, Ordering::Release);
            }
            Ok::<_, std::convert::Infallible>(())
        });
    let connection = match &settings.topology {
        Topology::Server(address) => {
            let client = settings.client(address)?;
            Connection::Server(client.get_multiplexed_async_connection_with_config(&config).await?)
        }
        Topology::Sentinel { sentinels, master, user } => {
            let mut sentinel = settings.sentinel(sentinels, master, user)?;
            Connection::Server(sentinel.get_async_connection_with_config(&config).await?)
        }
        Topology::Cluster(nodes) => Connection::Cluster(settings.cluster(nodes)?.get_async_connection().await?),
    };
    Ok(Live { connection, broken })
}

impl Request {
    async fn send(&self, mut connection: Connection) -> RedisResult<Value> {
        match self {
            Self::At(command, key) => match &mut connection {
                Connection::Server(server) => command.query_async(server).await,
                Connection::Cluster(cluster) => {
                    let server = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                    cluster.route_command(command.clone(), RoutingInfo::SingleNode(server)).await
                }
            },
            Self::Command(command) => command.query_async(&mut connection).await,
            Self::Script(script) => script.invoke_async(&mut connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(&mut connection).await,
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// The advice if the server does not allow a command.
const LACKS_A_RIGHT: &str = "the ACL user lacks a right that docs/store.md lists";

/// The meaning of a client error.
struct Fault {
    error: StoreError,
    /// Whether another connection may succeed.
    reconnect: bool,
    /// Whether the call was certainly not done.
    undone: bool,
}

impl Fault {
    fn of(error: &RedisError) -> Self {
        let text = error.to_string();
        // Redis before 7 wraps errors of commands in a script.
        let says = |code: &str| error.code() == Some(code) || text.contains(code);
        let advised = |advice: &str| StoreError::Unavailable(format!("{text}; {advice}"));
        let unavailable = || StoreError::Unavailable(text.clone());
        let (error, reconnect, undone) = match error.kind() {
            ErrorKind::Io if error.is_timeout() => (StoreError::Timeout, true, false),
            ErrorKind::AuthenticationFailed => (advised("see `store.redis.username` and `password`"), true, true),
            // Sentinels also say so while they are replacing a master that has failed.
            ErrorKind::MasterNameNotFoundBySentinel => {
                let advice = "the sentinels replace a failed master within seconds; if this lasts, see \
                              `store.redis.sentinel.master`";
                (advised(advice), true, true)
            }
            ErrorKind::Server(ServerErrorKind::NoPerm) => (advised(LACKS_A_RIGHT), false, true),
            // Of a command in a script: before Redis 7.2, and since then, also Valkey.
            _ if text.contains("can't run this command") || text.contains("ACL failure in script") => {
                (advised(LACKS_A_RIGHT), false, true)
            }
            _ if says("NOAUTH") || says("WRONGPASS") => {
                (advised("see `store.redis.username` and `password`"), true, true)
            }
            _ if says("OOM") => (StoreError::Full(text), false, true),
            // The server is not the master any more, or not yet.
            _ if says("READONLY") || says("LOADING") || says("MASTERDOWN") || says("CLUSTERDOWN") => {
                (unavailable(), true, true)
            }
            ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::InvalidClientConfig => {
                (unavailable(), false, true)
            }
            _ => (unavailable(), true, false),
        };
        Self { error, reconnect, undone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_that_a_script_lacks_is_advised_of_in_the_words_of_each_server() {
        for text in [
            "The user executing the script can't run this command or subcommand",
            "ACL failure in script: User doorward has no permissions to run the 'hset' command",
        ] {
            let error = redis::make_extension_error("ERR".to_owned(), Some(text.to_owned()));
            let told = Fault::of(&error).error.to_string();
            assert!(told.contains(LACKS_A_RIGHT), "{told}");
        }
    }
}
