//! What concerns the running of Doorward: `limits`, `sessions`, `pages`, `audit`, `admin`, `log` and their like.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AuditExport;
use crate::config::values::{SecretSource, Size, SocketAddress, Span};

/// Bounds. Each has a default that suits a proxy at the edge of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all request headers together. Beyond: 431.
    pub header_bytes: Size,
    /// Bytes of the request target. Beyond: 414.
    pub uri_bytes: Size,
    /// Number of request headers, all cookies counted as one. Beyond: 431, and over HTTP/1.1 without words and a record where there are
    /// more than 100, or 28 more than a number above that.
    pub header_count: u16,
    /// Time to receive the head of a request.
    pub header_timeout: Span,
    /// Time for the TLS handshake.
    pub handshake_timeout: Span,
    /// Time for a request body, besides the time that `body_min_rate` gives. Of one that is passed on as it comes, what the
    /// upstream takes its time for does not count, nor do gRPC and whatever is answered already, unless its
    /// end waits for the body.
    pub body_timeout: Span,
    /// The slowest that a request body may come, in bytes a second.
    pub body_min_rate: Size,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Span,
    /// How long any other streamed body may make no progress.
    pub stream_idle_timeout: Span,
    /// How long an upgraded connection, a watch, a gRPC call or a stream of server-sent events may make no progress.
    pub upgrade_idle_timeout: Span,
    /// Concurrent HTTP/2 streams of a connection.
    pub http2_streams: u32,
    /// HTTP/2 flow-control window of a stream.
    pub http2_stream_window: Size,
    /// HTTP/2 flow-control window of a connection. Of a trusted proxy, and of a balancer whose PROXY header names no client, at
    /// least 64 MiB.
    pub http2_connection_window: Size,
    /// How often an HTTP/2 client is asked whether it is still there. It has two thirds of that time to answer.
    pub http2_ping_interval: Span,
    /// How long a connection of a client or to an upstream may be quiet until TCP asks whether the other side is still there. Shorter
    /// than what firewalls and balancers between forget connections by.
    pub tcp_keepalive: Span,
    /// Streams of an HTTP/2 connection that are judged together: if the client reset `http2_reset_share` of them within
    /// `http2_reset_within` and before it had an answer, the connection is closed.
    pub http2_reset_window: u32,
    /// The share, in percent, of the streams that are judged together from which on their resets are a flood.
    pub http2_reset_share: u8,
    /// How soon after its request a reset counts for that, give or take a half, 100 ms to 10 s. Whoever waited longer gave up on a slow
    /// upstream, as for the deadline of a gRPC call.
    pub http2_reset_within: Span,
    /// Streams of an HTTP/2 connection that the client has reset before they were looked at. Beyond, the connection is
    /// closed (CVE-2023-44487). Of a trusted proxy, and of a balancer whose PROXY header names
    /// no client, at least 1000, or ten times `http2_streams`.
    pub http2_pending_resets: u32,
    /// Errors of the client on an HTTP/2 connection that were answered with a reset. Beyond, the connection is closed
    /// (CVE-2025-8671). No settings are two further bounds, which the HTTP/2 library keeps: a hundred empty pieces of bodies, and the
    /// frames of a head, as many as one of `header_bytes` may need.
    pub http2_local_resets: u32,
    /// Connections of one address that may flood us with resets, before the address is turned away.
    pub floods_per_address: u32,
    /// How long an address is turned away for its floods.
    pub flood_pause: Span,
    /// The least buffer by which the bodies of a connection are read and written.
    pub body_buffer: Size,
    /// Connections at once, over all listeners.
    pub connections: u32,
    /// The share, in percent, of the files that the process may have open (RLIMIT_NOFILE) which connections may take, however many
    /// `connections` are, but one at least. A request may need one more towards its upstream, so more than half suits upstreams that
    /// speak HTTP/2.
    pub connections_file_share: u8,
    /// Connections at once to one listener from one address that is not a trusted proxy.
    pub connections_per_address: u32,
    /// Refusals within a minute of requests of one address that come without a session to where people sign in, but for navigations,
    /// which lead to the login. Beyond: 429. None are counted where a trusted proxy or a balancer does not say whose they are.
    pub refusals_per_address: u32,
    /// Memory for request bodies that are buffered, over all requests. Beyond: 503. Of this an eighth each is kept for deliveries and
    /// forms that prove nothing yet, for known callers, for held deliveries on their way, and for questions to the interceptor. One
    /// address whose bodies prove nothing yet gets no more than an eighth and one body beyond it; so does each sender of held
    /// deliveries. Once its kind has an eighth, each of them, and each address that asks the interceptor, gets more only where eight
    /// times what it has then, but no more than an eighth, stays free. So beside one that has all that it gets there is room for small
    /// bodies of others: for those of the next about a seventieth.
    pub buffered_bytes: Size,
    /// Memory that the process may use, which the settings below are shares of. Default: the limit of the cgroup.
    pub memory: Option<Size>,
    /// The share of the memory in use, in percent, from which on unused connections are closed sooner.
    pub memory_close_idle: u8,
    /// The share, in percent, from which on new streams (upgrades, watches, followed logs) are refused.
    pub memory_refuse_streams: u8,
    /// The share, in percent, from which on new connections are refused.
    pub memory_refuse_connections: u8,
    /// The share, in percent, from which on all requests are refused.
    pub memory_refuse_requests: u8,
    /// How long requests may take to end after SIGTERM. Default: five seconds less than the environment variable
    /// `TERMINATION_GRACE_PERIOD_SECONDS`, without that 25 s.
    pub drain: Span,
    /// How long new connections are still accepted after SIGTERM, while readiness already fails. At most half of `drain`, so that
    /// requests under way have the other half.
    pub drain_accept: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: Size::kib(32),
            uri_bytes: Size::kib(8),
            header_count: 100,
            header_timeout: Span::from_secs(10),
            handshake_timeout: Span::from_secs(10),
            body_timeout: Span::from_secs(30),
            body_min_rate: Size::kib(1),
            idle_timeout: Span::from_secs(75),
            stream_idle_timeout: Span::from_secs(300),
            upgrade_idle_timeout: Span::from_secs(3600),
            http2_streams: 100,
            http2_stream_window: Size::kib(64),
            http2_connection_window: Size::mib(1),
            http2_ping_interval: Span::from_secs(30),
            tcp_keepalive: Span::from_secs(30),
            http2_reset_window: 200,
            http2_reset_share: 50,
            http2_reset_within: Span::from_secs(1),
            http2_pending_resets: 20,
            http2_local_resets: 1024,
            floods_per_address: 3,
            flood_pause: Span::from_secs(60),
            body_buffer: Size::kib(64),
            connections: 10_000,
            connections_file_share: 50,
            connections_per_address: 200,
            refusals_per_address: 600,
            buffered_bytes: Size::mib(256),
            memory: None,
            memory_close_idle: 85,
            memory_refuse_streams: 90,
            memory_refuse_connections: 95,
            memory_refuse_requests: 98,
            drain: Span::from_secs(25),
            drain_accept: Span::from_secs(5),
        }
    }
}

impl Limits {
    /// How long connections are still accepted after SIGTERM, and how long requests have from then on to end.
    pub fn drain_times(&self) -> (Duration, Duration) {
        let drain = self.drain.get();
        let accept = self.drain_accept.get().min(drain / 2);
        (accept, drain - accept)
    }
}

/// Signed statements about deliveries (`Doorward-Assertion`), whose keys stand at `/.well-known/jwks.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Assertions {
    /// Their `iss`. Default: `https://` and `external_host`, else `doorward`.
    pub issuer: Option<String>,
    /// Ed25519 keys in PEM (PKCS #8): the first signs, all are published. Default: one that is made and kept beside the
    /// store; several replicas need the same.
    pub keys: Vec<SecretSource>,
}

/// Answers EventListeners that ask whether a trigger may go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interceptor {
    /// The host name by which they ask, such as `doorward.doorward.svc`, or an address, IPv6 in brackets; all requests to it are
    /// such questions, so no route may have it.
    pub host: String,
    /// The listener, by name, on which they ask: on all others nothing is at that host. Default: any. Fixed until restart.
    #[serde(default)]
    pub listener: Option<String>,
    /// The upstream, by name, where Triggers and EventListeners are read, for rules on their service accounts. Its credential must
    /// be allowed to `get` both.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// How long after a start nothing that is held is brought, until EventListeners reach the interceptor here. Fixed until restart.
    #[serde(default = "settle")]
    pub settle: Span,
}

const fn settle() -> Span {
    Span::from_secs(5)
}

/// Which runs of Tekton are linked to the request that caused each of them, as they appear in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runs {
    /// The upstream, by name, where runs are watched. Its credential must be allowed to `list` and `watch` PipelineRuns and
    /// TaskRuns.
    pub kubernetes: String,
    /// In which namespaces. Default: all. Fixed until restart.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

/// Browser sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// How long a session may be unused. An open stream is no use, whatever comes over it: only requests are, and it ends with the
    /// session.
    pub idle: Span,
    /// How long a session lasts at most.
    pub absolute: Span,
    /// How long somebody who was shut out at the provider can go on at most, whatever the lifetime of tokens: the
    /// provider is asked before, with the refresh token, which most give for the scope `offline_access`, or without one
    /// with the access token, at its userinfo or introspection endpoint. Where it has neither, a session ends then; where
    /// it answers with what may be its own trouble, such as Dex's error for somebody who is gone, after twelve times as long.
    pub recheck: Span,
    /// Sessions that one person may have, on all hosts together, 1 to 256. A further login ends the oldest.
    pub max_per_person: u16,
    /// Keys that encrypt sessions at rest, and held deliveries on Redis, 32 bytes each as base64; the first encrypts, all decrypt.
    pub keys: Vec<SecretSource>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            idle: Span::from_secs(8 * 3600),
            absolute: Span::from_secs(24 * 3600),
            recheck: Span::from_secs(300),
            max_per_person: 64,
            keys: Vec::new(),
        }
    }
}

/// What people see of Doorward: the sign-in, refusals, their sessions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pages {
    /// What is written at the top of each page and in the title of its tab. Default: `Doorward`.
    pub name: Option<String>,
    /// A picture beside the name, SVG or PNG, at most 32 KiB. Default: a door.
    pub logo: Option<PathBuf>,
}

/// The audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The name of this replica, which tells its chain from those of others. Default: the name of the host, which is the
    /// pod's in Kubernetes.
    #[serde(default)]
    pub instance: Option<String>,
    /// Where lines go.
    pub sink: AuditSink,
    /// The key of the hash chain, 32 bytes or more as base64. Without it one is made and kept beside the store.
    pub chain_key: Option<SecretSource>,
    /// The Ed25519 key that signs checkpoints, PEM (PKCS #8). Without it one is made and kept beside the store.
    pub checkpoint_key: Option<SecretSource>,
    /// The key of pseudonyms, 32 bytes or more as base64. With it people stand in the trail under pseudonyms, and only the key
    /// tells whom one stands for. Default: under their names.
    #[serde(default)]
    pub pseudonym_key: Option<SecretSource>,
    /// A second place, a file, where checkpoints are copied to.
    pub checkpoint_copy: Option<PathBuf>,
    /// Records between checkpoints.
    pub checkpoint_records: u32,
    /// Time between checkpoints. A longer gap is an alarm.
    pub checkpoint_interval: Span,
    /// What happens when the sink takes no more.
    pub when_full: WhenFull,
    /// Records that wait for the sink before `when_full` applies; with `refuse` requests wait up to 10 s before that.
    pub queue: u32,
    /// Where the lines of the file are sent besides. With standard output the platform collects them.
    pub export: Vec<AuditExport>,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            instance: None,
            sink: AuditSink::Stdout,
            chain_key: None,
            checkpoint_key: None,
            pseudonym_key: None,
            checkpoint_copy: None,
            checkpoint_records: 10_000,
            checkpoint_interval: Span::from_secs(60),
            when_full: WhenFull::Refuse,
            queue: 8192,
            export: Vec::new(),
        }
    }
}

/// Where audit lines go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AuditSink {
    /// Standard output.
    Stdout,
    /// A file with rotation.
    File(AuditFile),
}

/// An audit file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    /// The current file. Full ones stand beside it with a number.
    pub path: PathBuf,
    /// The size at which a new file begins. Default: 100 MiB.
    #[serde(default)]
    pub max_size: Option<Size>,
    /// How many full files are kept. Default: all.
    #[serde(default)]
    pub keep: Option<u32>,
    /// How long lines are kept, at least an hour. A new file then begins once a day, or after a quarter of it if that is
    /// less, and lines go with their file when its last one was written that long ago. Default: for ever.
    #[serde(default)]
    pub retain: Option<Span>,
}

/// What happens when the audit sink takes no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Requests and logins are refused with 503: nothing happens that is not recorded.
    Refuse,
    /// Requests go on, but for those by way of break-glass; lost records are counted and the gap is recorded once there is room.
    Continue,
}

/// Health, metrics and the operator socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The address of `/healthz`, `/readyz` and `/metrics`. Without it: none. Fixed until restart.
    #[schemars(with = "Option<SocketAddress>")]
    pub address: Option<SocketAddr>,
    /// The token that `/readyz` with reasons and `/metrics` ask for. Without it they answer on loopback only.
    pub token: Option<SecretSource>,
    /// The Unix socket for operator commands. Fixed until restart.
    pub socket: Option<PathBuf>,
    /// User ids that may use the socket, besides Doorward's own and root.
    pub socket_users: Vec<u32>,
}

/// The log of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing` (`info`, `doorward=debug`). Of the HTTP/2 library `h2` errors only, unless it is named.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned() }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Json,
    Text,
}

/// Access for the day when the provider is down: client certificates on a route of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlass {
    /// Off unless this time (RFC 3339) lies ahead, by at most an hour when the configuration is loaded.
    pub until: String,
    /// The certificates, by the SHA-256 of their DER form (hex).
    pub certificates: Vec<BreakGlassCertificate>,
}

/// A named client certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassCertificate {
    /// Whose it is. The Kubernetes user name is `break-glass:NAME`.
    pub name: String,
    /// SHA-256 of the certificate (hex).
    pub sha256: String,
    /// The groups that grants and rules see.
    #[serde(default)]
    pub groups: Vec<String>,
}
