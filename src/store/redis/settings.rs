//! The validated settings of Redis.

use std::fmt;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisResult, TlsCertificates,
    cluster::{ClusterClient, ClusterClientBuilder},
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use url::{Host, Url};

use super::link::{CONNECT, RESPONSE};
use crate::{
    config::{
        raw,
        report::At,
        resolver::{Resolver, Secret},
        values::SecretSource,
    },
    egress,
};

/// The location of Redis, and our credentials there.
#[derive(Clone)]
pub struct Settings {
    pub(super) topology: Topology,
    pub(super) prefix: String,
    user: User,
    database: u16,
    tls: Option<TlsCertificates>,
    /// Whether the configuration says that each write is synced.
    pub(super) durable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Topology {
    Server(Address),
    Sentinel { sentinels: Vec<Address>, master: String, user: User },
    Cluster(Vec<Address>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
}

/// An ACL user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    name: Option<String>,
    password: Option<Secret>,
}

impl Settings {
    /// Reports every problem at its place, and returns `None` if there is one.
    pub fn resolve(raw: &raw::Redis, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let topology = match (&raw.server, &raw.sentinel, raw.cluster.as_slice()) {
            (Some(server), None, []) => address(server, &at.key("server"), resolver).map(Topology::Server),
            (None, Some(sentinel), []) => sentinel_topology(sentinel, &at.key("sentinel"), resolver),
            (None, None, nodes @ [_, ..]) => addresses(nodes, &at.key("cluster"), resolver).map(Topology::Cluster),
            (None, None, []) => {
                resolver
                    .error(at, "does not say where Redis is")
                    .help("give one of `server: host:port`, `sentinel` or `cluster`");
                None
            }
            _ => {
                resolver
                    .error(at, "says more than once where Redis is")
                    .help("keep one of `server`, `sentinel` and `cluster`");
                None
            }
        };
        let user = User::resolve(raw.username.as_deref(), raw.password.as_ref(), resolver, at);
        let mut good = true;
        if raw.database != 0 && !raw.cluster.is_empty() {
            resolver.error(&at.key("database"), "a Redis Cluster has only database 0");
            good = false;
        }
        if raw.prefix.is_empty() || raw.prefix.contains(['{', '}']) || raw.prefix.chars().any(char::is_control) {
            resolver
                .error(&at.key("prefix"), format!("`{}` cannot be the prefix of keys", raw.prefix.escape_debug()))
                .help("use one or more characters without braces, which determine the cluster slot of a key");
            good = false;
        }
        let tls = match &raw.tls {
            None => None,
            Some(raw) => Some(tls(raw, resolver, &at.key("tls"))?),
        };
        good.then_some(())?;
        Some(Self {
            topology: topology?,
            prefix: raw.prefix.clone(),
            user: user?,
            database: raw.database,
            tls,
            durable: raw.durable,
        })
    }

    /// Whether a connection that was made with `other` can be used further.
    pub(super) fn connects_like(&self, other: &Self) -> bool {
        let certificates = |settings: &Self| {
            settings.tls.as_ref().map(|tls| {
                let own = tls.client_tls.as_ref().map(|own| (own.client_cert.clone(), own.client_key.clone()));
                (own, tls.root_cert.clone())
            })
        };
        self.topology == other.topology
            && self.user == other.user
            && self.database == other.database
            && certificates(self) == certificates(other)
    }

    /// Creates a client of one server.
    pub(super) fn client(&self, address: &Address) -> RedisResult<Client> {
        let info =
            self.info(address)?.set_redis_settings(self.user.apply(RedisConnectionInfo::default(), self.database));
        match &self.tls {
            None => Client::open(info),
            Some(tls) => Client::build_with_tls(info, tls.clone()),
        }
    }

    pub(super) fn sentinel(&self, sentinels: &[Address], master: &str, user: &User) -> RedisResult<SentinelClient> {
        let addresses: Vec<ConnectionAddr> = sentinels.iter().map(|sentinel| self.address(sentinel)).collect();
        let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_db(i64::from(self.database));
        if let Some(name) = &user.name {
            builder = builder.set_client_to_sentinel_username(name);
        }
        if let Some(password) = user.password() {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(name) = &self.user.name {
            builder = builder.set_client_to_redis_username(name);
        }
        if let Some(password) = self.user.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(tls) = &self.tls {
            builder = builder
                .set_client_to_redis_tls_mode(redis::TlsMode::Secure)
                .set_client_to_redis_certificates(tls.clone())
                .set_client_to_sentinel_certificates(tls.clone());
        }
        builder.build()
    }

    pub(super) fn cluster(&self, nodes: &[Address]) -> RedisResult<ClusterClient> {
        let nodes: Vec<ConnectionInfo> = nodes.iter().map(|node| self.info(node)).collect::<RedisResult<_>>()?;
        let mut builder =
            ClusterClientBuilder::new(nodes).connection_timeout(CONNECT).response_timeout(RESPONSE).retries(3);
        if let Some(name) = &self.user.name {
            builder = builder.username(name);
        }
        if let Some(password) = self.user.password() {
            builder = builder.password(password);
        }
        if let Some(tls) = &self.tls {
            builder = builder.tls(redis::TlsMode::Secure).certs(tls.clone());
        }
        builder.build()
    }

    fn info(&self, address: &Address) -> RedisResult<ConnectionInfo> {
        self.address(address).into_connection_info()
    }

    fn address(&self, Address { host, port }: &Address) -> ConnectionAddr {
        let (host, port) = (host.clone(), *port);
        match self.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("topology", &self.topology)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl User {
    fn resolve(name: Option<&str>, source: Option<&SecretSource>, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let password = match source {
            None if name.is_some() => {
                resolver
                    .error(&at.key("username"), "has no `password`")
                    .help("Redis takes a user name only with a password");
                return None;
            }
            None => None,
            Some(source) => {
                let at = at.key("password");
                let secret = resolver.secret(&at, source)?;
                if secret.expose_str().is_none() {
                    resolver.error(&at, "the password is not text");
                    return None;
                }
                Some(secret)
            }
        };
        Some(Self { name: name.map(str::to_owned), password })
    }

    fn password(&self) -> Option<&str> {
        self.password.as_ref().and_then(Secret::expose_str)
    }

    fn apply(&self, mut info: RedisConnectionInfo, database: u16) -> RedisConnectionInfo {
        if let Some(name) = &self.name {
            info = info.set_username(name);
        }
        if let Some(password) = self.password() {
            info = info.set_password(password);
        }
        // With RESP3, connections report by themselves that they broke.
        info.set_protocol(ProtocolVersion::RESP3).set_db(i64::from(database))
    }
}

fn sentinel_topology(raw: &raw::RedisSentinel, at: &At, resolver: &mut Resolver) -> Option<Topology> {
    let sentinels = addresses(&raw.servers, &at.key("servers"), resolver);
    let user = User::resolve(raw.username.as_deref(), raw.password.as_ref(), resolver, at);
    if raw.servers.is_empty() {
        resolver.error(&at.key("servers"), "`servers` names no sentinel");
    }
    if raw.master.is_empty() {
        resolver
            .error(&at.key("master"), "`master` is empty")
            .help("use the name in the `sentinel monitor` line in the configuration of the sentinels");
    }
    let good = !raw.servers.is_empty() && !raw.master.is_empty();
    let topology = Topology::Sentinel { sentinels: sentinels?, master: raw.master.clone(), user: user? };
    good.then_some(topology)
}

fn addresses(list: &[String], at: &At, resolver: &mut Resolver) -> Option<Vec<Address>> {
    let found: Vec<Option<Address>> =
        list.iter().enumerate().map(|(index, text)| address(text, &at.index(index), resolver)).collect();
    found.into_iter().collect()
}

/// Parses `host:port`. The port is required, as sentinels, servers and TLS have different ones.
fn address(text: &str, at: &At, resolver: &mut Resolver) -> Option<Address> {
    let parsed = Url::parse(&format!("redis://{text}")).ok().filter(|url| {
        let more = !url.path().is_empty() || url.query().is_some() || url.fragment().is_some();
        !more && url.username().is_empty() && url.password().is_none()
    });
    let host = parsed.as_ref().and_then(Url::host).map(|host| match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    });
    match (host, parsed.as_ref().and_then(Url::port)) {
        (Some(host), Some(port)) if port != 0 => Some(Address { host, port }),
        _ => {
            // Not repeated, because it may contain a password.
            resolver
                .error(at, "this is not a host with a port")
                .help("write `redis.example.com:6379`; user, password and database have separate keys");
            None
        }
    }
}

/// Reads and validates the files, so that `doorward check` finds errors that would appear at the first connection.
fn tls(raw: &raw::RedisTls, resolver: &mut Resolver, at: &At) -> Option<TlsCertificates> {
    let root_cert = match &raw.ca {
        None => None,
        Some(path) => {
            let at = at.key("ca");
            let pem = resolver.read(&at, path)?;
            if let Err(why) = egress::roots(&pem) {
                resolver.error(&at, format!("{}: {why}", path.display())).help("it must hold certificates in PEM form");
                return None;
            }
            Some(pem)
        }
    };
    let client_tls = match &raw.certificate {
        None => None,
        Some(files) => {
            let at = at.key("certificate");
            let client_cert = resolver.read(&at.key("chain"), &files.chain)?;
            let client_key = resolver.secret(&at.key("key"), &SecretSource::File(files.key.clone()))?;
            let chain: Option<Vec<_>> = CertificateDer::pem_slice_iter(&client_cert).map(Result::ok).collect();
            let key = PrivateKeyDer::from_pem_slice(client_key.expose()).ok();
            let pair = chain.filter(|chain| !chain.is_empty()).zip(key).and_then(|(chain, key)| {
                let provider = rustls::crypto::aws_lc_rs::default_provider();
                rustls::sign::CertifiedKey::from_der(chain, key, &provider).ok()
            });
            if pair.is_none() {
                resolver
                    .error(&at, "this is not a certificate with its private key")
                    .help("both must be PEM, and the key must belong to the first certificate of the chain");
                return None;
            }
            Some(ClientTlsConfig { client_cert, client_key: client_key.expose().to_vec() })
        }
    };
    Some(TlsCertificates { client_tls, root_cert })
}
