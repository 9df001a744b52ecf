//! Settings for operating Doorward: `limits`, `sessions`, `pages`, `audit`, `admin`, `log` and others.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AuditExport,
    policy::{some, unset_if_empty},
};
use crate::config::values::{SecretSource, Size, SocketAddress, Span};

/// Limits. The defaults suit a proxy at the edge of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all request headers together. Beyond: 431.
    pub header_bytes: Size,
    /// Bytes of the request target. Beyond: 414.
    pub uri_bytes: Size,
    /// Number of request headers; all cookies count as one. Beyond: 431. Over HTTP/1.1 the 431 has no text and no audit
    /// record if there are more than 100 headers, or, with a limit above 100, more than 28 beyond the limit.
    pub header_count: u16,
    /// Time to receive the head of a request.
    pub header_timeout: Span,
    /// Time for the TLS handshake.
    pub handshake_timeout: Span,
    /// Time to receive a request body, in addition to the time that its size takes at `body_min_rate`. For a body that
    /// is streamed to the upstream, time spent waiting for the upstream does not count. The limit does not apply to
    /// gRPC, nor to requests that are already answered, unless the end of the response waits for the body.
    pub body_timeout: Span,
    /// The lowest rate at which a request body may arrive, in bytes per second.
    pub body_min_rate: Size,
    /// How long a connection may be idle between requests.
    pub idle_timeout: Span,
    /// How long any other streamed body may make no progress.
    pub stream_idle_timeout: Span,
    /// How long an upgraded connection, a watch, a gRPC call or a stream of server-sent events may make no progress.
    pub upgrade_idle_timeout: Span,
    /// Concurrent HTTP/2 streams per connection.
    pub http2_streams: u32,
    /// HTTP/2 flow-control window of a stream.
    pub http2_stream_window: Size,
    /// HTTP/2 flow-control window of a connection. For a trusted proxy, and for a load balancer whose PROXY header
    /// names no client, it is at least 64 MiB.
    pub http2_connection_window: Size,
    /// How often an HTTP/2 client is pinged. It must answer within two thirds of this time.
    pub http2_ping_interval: Span,
    /// How long a connection of a client or to an upstream may be silent before TCP sends keepalive probes. Set it
    /// below the time after which firewalls and load balancers on the way drop idle connections.
    pub tcp_keepalive: Span,
    /// The number of streams of an HTTP/2 connection that are judged together: if the client reset `http2_reset_share`
    /// of them within `http2_reset_within` and before a response, the connection is closed.
    pub http2_reset_window: u32,
    /// The share, in percent, of the streams that are judged together at which resets count as a flood.
    pub http2_reset_share: u8,
    /// How soon after its request a reset counts for this, give or take a half; 100 ms to 10 s. A client that waited
    /// longer gave up on a slow upstream, for example because of the deadline of a gRPC call.
    pub http2_reset_within: Span,
    /// Streams of an HTTP/2 connection that the client has reset before they were processed. Beyond, the connection is
    /// closed (CVE-2023-44487). For a trusted proxy, and for a load balancer whose PROXY header names no client, it is
    /// at least 1000, and at least ten times `http2_streams`.
    pub http2_pending_resets: u32,
    /// Errors of the client on an HTTP/2 connection that were answered with a reset. Beyond, the connection is closed
    /// (CVE-2025-8671). The HTTP/2 library has two further limits that are not settings: a hundred empty DATA frames,
    /// and the number of frames of a request head, which is as many as a head of `header_bytes` may need.
    pub http2_local_resets: u32,
    /// Connections of one address that may flood Doorward with resets before the address is blocked.
    pub floods_per_address: u32,
    /// How long an address is blocked for its floods.
    pub flood_pause: Span,
    /// The smallest buffer for reading and writing the bodies of a connection.
    pub body_buffer: Size,
    /// Concurrent connections, over all listeners.
    pub connections: u32,
    /// The share, in percent, of the files that the process may open (RLIMIT_NOFILE) that connections may use, whatever
    /// `connections` is, but at least one; at most 75. 128 files, or a quarter if that is less, do not count, as they
    /// are kept for health checks, operators, store and trail. A request may need one more file for its upstream, so
    /// more than half suits upstreams that use HTTP/2.
    pub connections_file_share: u8,
    /// Concurrent connections to one listener from one address that is not a trusted proxy.
    pub connections_per_address: u32,
    /// Refusals per minute and address of requests that have no session, on routes where people sign in; navigations do
    /// not count, as they lead to the login. Beyond: 429. Nothing is counted if a trusted proxy or a load balancer does
    /// not name its client.
    pub refusals_per_address: u32,
    /// Memory for buffered request bodies, over all requests, but at most half of `memory` without what is kept of it
    /// for code and files. Beyond: 503. An eighth each is reserved for deliveries and forms that are not yet verified,
    /// for known callers, for held deliveries that are being delivered, and for calls of the interceptor. Unverified
    /// bodies of one address may take an eighth and one body beyond it, and so may the held deliveries of one sender.
    /// Once its kind uses an eighth, each of these, and each address that calls the interceptor, gets more only if
    /// eight times what it then has, but at most an eighth, stays free. This leaves room for small bodies of others
    /// beside one that uses all that it can get: for the next about a seventieth.
    pub buffered_bytes: Size,
    /// Memory that the process may use. The settings below are shares of it; below 512 MiB, of what it leaves beside
    /// code and files, for which 12 MiB of 256 MiB are kept, 18 of 128 and 21 of 64. Default: the limit of the cgroup.
    pub memory: Option<Size>,
    /// The share of memory in use, in percent, at which unused connections are closed sooner.
    pub memory_close_idle: u8,
    /// The share, in percent, at which new streams (upgrades, watches, followed logs) are refused.
    pub memory_refuse_streams: u8,
    /// The share, in percent, at which new connections are refused.
    pub memory_refuse_connections: u8,
    /// The share, in percent, at which all requests are refused.
    pub memory_refuse_requests: u8,
    /// How long requests may take to finish after SIGTERM. Default: five seconds less than the environment variable
    /// `TERMINATION_GRACE_PERIOD_SECONDS`; without that variable 25 s.
    pub drain: Span,
    /// How long new connections are still accepted after SIGTERM, while readiness already fails. At most half of
    /// `drain`, so that requests in flight have the other half.
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

/// The memory for the code of the program and for the files that it works with: trail and store.
const FOR_FILES: Size = Size::mib(24);

impl Limits {
    /// Returns the part of `memory` that the process may use beside its code and the files that it works with. The
    /// kernel counts these for the limit of a cgroup. It can reclaim them, but then reads them again and again, which
    /// stalls the process. A large limit leaves enough for them above the last share at which something is shed.
    pub fn usable(memory: Size) -> Size {
        let kept = FOR_FILES.0.saturating_sub(memory.0 / 64 * 3).min(memory.0 / 8 * 3);
        Size(memory.0 - kept)
    }

    /// The memory for buffered bodies if the process may use `memory`: at most half of what is usable. The other half
    /// is for everything else, also the buffers of the connections that bodies arrive over.
    pub fn buffered_within(&self, memory: Option<Size>) -> Size {
        memory.map_or(self.buffered_bytes, |memory| self.buffered_bytes.min(Size(Self::usable(memory).0 / 2)))
    }

    /// The memory with which `buffered_bytes` are used in full.
    pub fn memory_for_buffered(&self) -> Size {
        let twice = Size(self.buffered_bytes.0.saturating_mul(2));
        if Self::usable(twice) == twice { twice } else { Size(twice.0.saturating_add(FOR_FILES.0)) }
    }

    /// How long connections are still accepted after SIGTERM, and how long requests have after that to finish.
    pub fn drain_times(&self) -> (Duration, Duration) {
        let drain = self.drain.get();
        let accept = self.drain_accept.get().min(drain / 2);
        (accept, drain - accept)
    }
}

/// Signed statements about deliveries (`Doorward-Assertion`). Their keys are published at `/.well-known/jwks.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Assertions {
    /// Their `iss`. Default: `https://` and `external_host`, else `doorward`.
    pub issuer: Option<String>,
    /// Ed25519 keys in PEM (PKCS #8): the first signs, all are published. Default: one that is generated and stored
    /// beside the store; several replicas need the same keys.
    pub keys: Vec<SecretSource>,
}

/// A Tekton ClusterInterceptor that tells EventListeners whether a Trigger may run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interceptor {
    /// The host name that EventListeners call it by, such as `doorward.doorward.svc`, or an address, IPv6 in brackets.
    /// All requests to it are interceptor calls, so no route may have this host.
    pub host: String,
    /// The listener, by name, on which EventListeners call it; other listeners do not serve its host. Default: any.
    /// Fixed until restart.
    #[serde(default)]
    pub listener: Option<String>,
    /// The upstream, by name, where Triggers and EventListeners are read, for rules on their service accounts. Its
    /// credential must be allowed to `get` both.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// How long after a start no held delivery is delivered, so that EventListeners can reach the interceptor here
    /// first. Fixed until restart.
    #[serde(default = "settle")]
    pub settle: Span,
}

const fn settle() -> Span {
    Span::from_secs(5)
}

/// Tekton runs that are linked to the requests that caused them, as they appear in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runs {
    /// The upstream, by name, where runs are watched. Its credential must be allowed to `list` and `watch` PipelineRuns and
    /// TaskRuns.
    pub kubernetes: String,
    /// The namespaces to watch. Default: all. Fixed until restart.
    #[serde(default, deserialize_with = "some", serialize_with = "unset_if_empty")]
    #[schemars(length(min = 1))]
    pub namespaces: Vec<String>,
}

/// Browser sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sessions {
    /// How long a session may be unused, at least a minute. Only requests count as use: an open stream does not,
    /// whatever is sent over it, and it ends with the session.
    pub idle: Span,
    /// How long a session may last in total, at least a minute.
    pub absolute: Span,
    /// The longest time, at least a minute, that somebody who was disabled at the provider can continue, whatever the
    /// lifetime of tokens. Before it is over, Doorward asks the provider: with the refresh token, which most providers
    /// issue for the scope `offline_access`, or without one with the access token, at the userinfo or introspection
    /// endpoint. If it has neither endpoint, a session ends after this time. If it answers with an error that may be its
    /// own failure, such as Dex's error for an account that was removed, the session ends after twelve times as long.
    pub recheck: Span,
    /// Sessions that one person may have, on all hosts together, 1 to 256. A further login ends the oldest.
    #[schemars(range(min = 1, max = 256))]
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

/// The appearance of Doorward's own pages: sign-in, refusals, sessions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pages {
    /// The name at the top of each page and in the title of its tab. Default: `Doorward`.
    pub name: Option<String>,
    /// A picture beside the name, SVG or PNG, at most 32 KiB. Default: a door.
    pub logo: Option<PathBuf>,
}

/// The audit trail.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The name of this replica, which distinguishes its chain from those of other replicas. Default: the host name,
    /// which in Kubernetes is that of the pod.
    #[serde(default)]
    pub instance: Option<String>,
    /// Where audit lines are written.
    pub sink: AuditSink,
    /// The key of the hash chain, 32 bytes or more as base64. Without it one is generated and stored beside the store.
    pub chain_key: Option<SecretSource>,
    /// The Ed25519 key that signs checkpoints, PEM (PKCS #8). Without it one is generated and stored beside the store.
    pub checkpoint_key: Option<SecretSource>,
    /// The key of pseudonyms, 32 bytes or more as base64. With it people appear in the trail under pseudonyms, which
    /// only this key resolves. Default: under their names.
    #[serde(default)]
    pub pseudonym_key: Option<SecretSource>,
    /// A file that checkpoints are also written to.
    pub checkpoint_copy: Option<PathBuf>,
    /// Records between checkpoints.
    pub checkpoint_records: u32,
    /// Time between checkpoints. A longer gap is an alarm.
    pub checkpoint_interval: Span,
    /// What happens when the sink cannot accept more.
    pub when_full: WhenFull,
    /// Records that may wait for the sink before `when_full` applies; with `refuse` requests wait up to 10 s before
    /// that.
    pub queue: u32,
    /// Receivers that the lines of the file are also sent to. With standard output the platform collects them.
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

/// The destination of audit lines.
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
    /// The current file. Full files are beside it, with a number.
    pub path: PathBuf,
    /// The size at which a new file begins. Default: 100 MiB.
    #[serde(default)]
    pub max_size: Option<Size>,
    /// How many full files are kept. Default: all.
    #[serde(default)]
    pub keep: Option<u32>,
    /// How long lines are kept, at least an hour. A new file then begins once a day, or after a quarter of this time if
    /// that is less, and a file is deleted when its last line was written this long ago. Default: for ever.
    #[serde(default)]
    pub retain: Option<Span>,
}

/// What happens when the audit sink cannot accept more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Requests and logins are refused with 503: nothing happens that is not recorded.
    Refuse,
    /// Requests continue, except break-glass; lost records are counted, and the gap is recorded once there is room.
    Continue,
}

/// Health, metrics and the operator socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The address that health and metrics are served on. Without it, none of `/healthz`, `/readyz` and `/metrics` is
    /// served. Fixed until restart.
    #[schemars(with = "Option<SocketAddress>")]
    pub address: Option<SocketAddr>,
    /// The token that is required for `/metrics` and for `/readyz` with reasons. Without it, metrics and reasons are
    /// only for callers on the same host.
    pub token: Option<SecretSource>,
    /// The Unix socket for operator commands. Fixed until restart.
    pub socket: Option<PathBuf>,
    /// User ids that may use the socket, besides Doorward's own and root. If there are any, everybody who may enter its
    /// folder can connect, but users who are not listed are refused.
    pub socket_users: Vec<u32>,
}

/// The log of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The format of a line.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing` (`info`, `doorward=debug`). The HTTP/2 library `h2` logs only errors
    /// unless the filter names it.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned() }
    }
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Json,
    Text,
}

/// Emergency access while the identity provider is down: client certificates on a route of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlass {
    /// Disabled unless this time (RFC 3339) is in the future, by at most an hour when the configuration is loaded.
    pub until: String,
    /// The certificates that are accepted, by the SHA-256 of their DER form (hex).
    pub certificates: Vec<BreakGlassCertificate>,
}

/// A named client certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassCertificate {
    /// The name of its owner. The Kubernetes user name is `break-glass:NAME`.
    pub name: String,
    /// SHA-256 of the certificate (hex).
    pub sha256: String,
    /// The groups that grants and rules see.
    #[serde(default)]
    pub groups: Vec<String>,
}
