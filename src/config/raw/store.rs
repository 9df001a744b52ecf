//! `store`: the file or the Redis that holds persistent state.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::CertificateFiles;
use crate::config::values::{SecretSource, Span};

/// The store of persistent state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The file of the embedded store, for a single process. With `redis` only its folder is used, for data of this
    /// replica alone: the keys of its audit trail, and the policies that were in force. Fixed until restart.
    pub path: PathBuf,
    /// Redis or Valkey, for several replicas. Without it the embedded store is used.
    pub redis: Option<Redis>,
    /// How long bearer routes continue with their copy of the revocations while the store is unavailable. At least 2s.
    pub max_mirror_age: Span,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/doorward/doorward.redb"),
            redis: None,
            max_mirror_age: Span::from_secs(60),
        }
    }
}

/// Redis 6.2 or later, or Valkey: exactly one of `server`, `sentinel` and `cluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// One server, `host:port`.
    pub server: Option<String>,
    /// Sentinels, which name the current master.
    pub sentinel: Option<RedisSentinel>,
    /// Some nodes of a Redis Cluster, `host:port` each; they name the others.
    pub cluster: Vec<String>,
    /// The ACL user. Default: Redis' own `default`.
    pub username: Option<String>,
    /// The password. A new one is used without a restart.
    pub password: Option<SecretSource>,
    /// The number of the database. A Redis Cluster has only 0.
    pub database: u16,
    /// TLS to servers and sentinels. `{}` trusts the system's authorities. Default: none.
    pub tls: Option<RedisTls>,
    /// Assert that the server syncs each write to its disk before it replies (`appendfsync always`), for servers that
    /// do not allow the question, such as managed ones. Held deliveries need it. Default: the server is asked.
    pub durable: bool,
    /// The prefix of all keys. Two deployments of Doorward with the same prefix share sessions and revocations.
    pub prefix: String,
}

impl Redis {
    /// The settings of which exactly one must be set.
    pub const PLACES: [&str; 3] = ["server", "sentinel", "cluster"];
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            server: None,
            sentinel: None,
            cluster: Vec::new(),
            username: None,
            password: None,
            database: 0,
            tls: None,
            durable: false,
            prefix: "doorward".to_owned(),
        }
    }
}

/// Redis Sentinel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisSentinel {
    /// Some sentinels, `host:port` each. They are tried in this order.
    pub servers: Vec<String>,
    /// The name by which they monitor the master.
    pub master: String,
    /// The ACL user at the sentinels.
    #[serde(default)]
    pub username: Option<String>,
    /// The password at the sentinels.
    #[serde(default)]
    pub password: Option<SecretSource>,
}

/// TLS for connections to Redis. Certificates must name the host of the address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisTls {
    /// Certificate authorities (CAs) that its certificate is verified against. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Doorward's client certificate.
    pub certificate: Option<CertificateFiles>,
}
