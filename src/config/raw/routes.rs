//! `listeners`, `upstreams` and `routes`: where requests arrive, where they are forwarded, and which credentials they
//! may carry.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Issuer,
    policy::{some, unset_if_empty},
};
use crate::config::values::{Cidr, SecretSource, Size, SocketAddress, Span};

/// An address that Doorward listens on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name in logs and metrics.
    pub name: String,
    /// Address and port, such as `0.0.0.0:8443` or `[::]:8443`. Port 0 lets the system choose.
    #[schemars(with = "SocketAddress")]
    pub address: SocketAddr,
    /// TLS. Without it the listener speaks HTTP in clear text, for use behind a trusted ingress or on loopback.
    #[serde(default)]
    pub tls: Option<ServerTls>,
    /// Peers that must begin each connection with a PROXY protocol header (v1 or v2). All others must not.
    #[serde(default)]
    #[schemars(with = "Vec<Cidr>")]
    pub proxy_protocol_from: Vec<IpNet>,
    /// Networks of peers whose `X-Forwarded-For` and `X-Forwarded-Proto` are trusted, and that may send requests for all
    /// hosts over a connection that was opened for one TLS server name; one address is `10.0.0.1/32`. Default: none.
    #[serde(default)]
    #[schemars(with = "Vec<Cidr>")]
    pub trusted_proxies: Vec<IpNet>,
    /// Overrides `limits.connections_per_address` for this listener, for cases where one address makes trusted requests
    /// for many: an EventListener opens a connection to the interceptor for each of its Triggers.
    #[serde(default)]
    pub connections_per_address: Option<u32>,
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Certificates. The first one that matches the server name that the client asks for is used; if none matches, the
    /// first.
    pub certificates: Vec<CertificateFiles>,
    /// Certificate authorities (CAs) that client certificates are verified against; required by `break_glass`.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// A certificate chain and its key in PEM. Both are read again when the files change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The chain, the leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A server that requests are forwarded to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The name that routes use for it.
    pub name: String,
    /// `http://host:port` or `https://host:port`, without a path. Required unless `kubeconfig` is set.
    #[serde(default)]
    pub url: Option<String>,
    /// The kubeconfig of an API server. It replaces `url`, `tls` and `credential`.
    #[serde(default)]
    pub kubeconfig: Option<Kubeconfig>,
    /// TLS settings for connections to it; only with `https`.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Doorward's own credential there. On `kubernetes` routes its account must be able to impersonate, and should have
    /// no other rights than those that `doorward rbac` prints for it.
    #[serde(default)]
    pub credential: Option<UpstreamCredential>,
    /// The protocol. Default: HTTP/2 where TLS negotiates it, else HTTP/1.1.
    #[serde(default)]
    pub protocol: Option<UpstreamProtocol>,
    /// The `Host` header that it receives. Default: `client` on `http` and `dashboard` routes, `own` on `webhook`
    /// routes. An API server always receives its own.
    #[serde(default)]
    pub host: Option<UpstreamHost>,
    /// Time to connect, TLS included. If all connections are in use, a request first waits up to the same time for a
    /// free one.
    #[serde(default = "Upstream::connect_timeout")]
    pub connect_timeout: Span,
    /// Time from the end of the request to the response head.
    #[serde(default = "Upstream::response_timeout")]
    pub response_timeout: Span,
    /// How long an unused connection is kept open. Set it below the time after which the upstream closes idle
    /// connections itself, or a request that changes something gets 502 if the upstream closes the connection at that
    /// moment. By default an EventListener closes them after 120 s, nginx after 75 s, Node, uvicorn and Apache after 5
    /// s, gunicorn after 2 s.
    #[serde(default = "Upstream::idle_timeout")]
    pub idle_timeout: Span,
    /// The age at which a connection stops being used for new requests.
    #[serde(default = "Upstream::max_age")]
    pub max_age: Span,
    /// Concurrent connections to this upstream, per worker. Watches, followed logs and upgrades use one each and may
    /// take up to three quarters of them, but at least one; beyond that they get 503, and other requests continue.
    /// Streams of server-sent events are recognised only by their response and do not count towards this share: raise
    /// the number for an upstream that sends many of them.
    #[serde(default = "Upstream::max_connections")]
    pub max_connections: u32,
    /// For an API server: the service account that Tekton gives to runs that name none, if its ConfigMap
    /// `config-defaults` sets `default-service-account` to something other than `default`. Rules apply to it.
    #[serde(default)]
    pub default_service_account: Option<String>,
}

/// Defaults.
impl Upstream {
    const fn connect_timeout() -> Span {
        Span::from_secs(3)
    }

    const fn response_timeout() -> Span {
        Span::from_secs(30)
    }

    const fn idle_timeout() -> Span {
        Span::from_secs(55)
    }

    const fn max_age() -> Span {
        Span::from_secs(600)
    }

    const fn max_connections() -> u32 {
        1024
    }
}

impl Upstream {
    /// The service account whose token is sent to it, if Doorward requests one.
    pub fn requested_account(&self) -> Option<&RequestedAccount> {
        match &self.credential {
            Some(UpstreamCredential::ServiceAccount(account)) => Some(account),
            Some(UpstreamCredential::Bearer(_)) | None => None,
        }
    }

    /// The client certificate that is presented to it.
    pub fn certificate(&self) -> Option<&CertificateFiles> {
        self.tls.as_ref()?.certificate.as_ref()
    }

    /// Whether Doorward has a credential there, of any kind.
    pub fn has_credential(&self) -> bool {
        self.kubeconfig.is_some() || self.credential.is_some() || self.certificate().is_some()
    }

    /// The service account of Tekton runs that name none, in all namespaces.
    pub fn default_service_account(&self) -> &str {
        self.default_service_account.as_deref().unwrap_or("default")
    }
}

/// An API server and Doorward's credential there, as described by a kubeconfig. Of its cluster, `server`, the authority
/// and `tls-server-name` are used, and of its user the token and the client certificate. Any other setting that changes
/// how kubectl connects or authenticates, such as `exec` or `proxy-url`, is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kubeconfig {
    /// The path of the file; paths within it are relative to its folder. It is read again when it changes, and so are
    /// the files that it names.
    pub file: PathBuf,
    /// The context to use. Default: its `current-context`.
    #[serde(default)]
    pub context: Option<String>,
}

/// TLS settings for a server that Doorward connects to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// Certificate authorities (CAs) that its certificate is verified against. Default: the system's.
    pub ca: Option<PathBuf>,
    /// The name that its certificate must have. Default: the host in the address.
    pub server_name: Option<String>,
    /// Doorward's client certificate.
    pub certificate: Option<CertificateFiles>,
}

/// Doorward's own credential at an upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UpstreamCredential {
    /// A bearer token; read again when its file changes.
    Bearer(SecretSource),
    /// The token of a service account, for upstreams of `kubernetes` routes. Doorward requests it from the API server
    /// (TokenRequest) and renews it while it runs. It is valid for ten minutes and only held in memory. Thus requests
    /// for people use an account that can impersonate and nothing else, and Doorward's own reads use another account.
    ServiceAccount(RequestedAccount),
}

/// A service account whose token Doorward requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestedAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The upstream, by name, that its token is requested from: the same API server, with the credential of another
    /// account. That account must be allowed to `create` `serviceaccounts/token` for this one, as `doorward rbac`
    /// prints.
    pub upstream: String,
}

/// The HTTP version used for an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always; in clear text with prior knowledge. Upgrades still use HTTP/1.1.
    Http2,
}

/// The `Host` header that an upstream receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamHost {
    /// The host that the client sent: for servers that build links from it or compare it with `Origin`, as the
    /// Dashboard does, and for an EventListener whose ingress knows it by the name that senders use.
    Client,
    /// The host in `url`: for servers that are selected by name, such as one behind an ingress of another cluster or in
    /// a service mesh. `X-Forwarded-Host` has the host that the client sent. A page's `Origin` is not changed, so
    /// servers that compare it with `Host` reject forms and WebSockets of the page.
    Own,
}

/// The paths of the Kubernetes API on a host.
pub const API_PATHS: [&str; 2] = ["/api/*", "/apis/*"];

/// Requests that are forwarded to one upstream. The order of routes has no effect. An exact host takes precedence over
/// a wildcard; then an exact path over a prefix, and a longer prefix over a shorter one; then a route that lists
/// methods over one that does not. A path for which the selected host has no route gets 404, and a method that the
/// routes of the selected path do not accept gets 405, even if a wildcard or a shorter prefix would match. Two routes
/// that match the same requests are an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The name that rules use for it.
    pub name: String,
    /// The kind of server behind it. It determines which headers are forwarded, how a request is read and what an error
    /// looks like.
    pub kind: RouteKind,
    /// Host names or addresses without port, IPv6 in brackets (`[::1]`). `*.example.com` matches one label.
    pub hosts: Vec<String>,
    /// Paths: exact (`/hooks/github`), or a prefix of whole segments (`/hooks/*`). Default: all (`/*`).
    #[serde(default, deserialize_with = "some", serialize_with = "unset_if_empty")]
    #[schemars(length(min = 1))]
    pub paths: Vec<String>,
    /// Methods. Default: `POST` for `webhook`; for the others `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE` and
    /// `OPTIONS`. Any other method, such as `PROPFIND`, is only forwarded if it is listed here.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Kinds of credential that it accepts. A bearer token or session handle in `Authorization` is tried first, then
    /// the others in this order; the first credential that is present decides.
    pub schemes: Vec<Scheme>,
    /// Issuers, by name, whose tokens and sessions it accepts. Default: all.
    #[serde(default, deserialize_with = "some", serialize_with = "unset_if_empty")]
    #[schemars(length(min = 1))]
    pub issuers: Vec<String>,
    /// Audiences, out of those of its issuers; a bearer token must be for one of them, so that a token for one route
    /// cannot be used on another. Default: all.
    #[serde(default, deserialize_with = "some", serialize_with = "unset_if_empty")]
    #[schemars(length(min = 1))]
    pub audiences: Vec<String>,
    /// The upstream, by name.
    pub upstream: String,
    /// `dashboard` only: the upstream, by name, that receives requests for `/api/` and `/apis/`, with impersonation.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// `dashboard` only: namespaces that its pages offer to people who may see them, in addition to those that rules
    /// name. Somebody who may list all namespaces is offered all of them.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// `webhook` only: the sender, by name.
    #[serde(default)]
    pub webhook: Option<String>,
    /// `webhook` only: the EventListener behind it, for rules.
    #[serde(default)]
    pub event_listener: Option<EventListener>,
    /// Further request headers to forward on `kubernetes` and `webhook` routes, which forward only a fixed list.
    #[serde(default)]
    pub pass_headers: Vec<String>,
    /// The largest request body. Default: that of the sender on `webhook` routes, no limit on the others.
    #[serde(default)]
    pub max_body: Option<Size>,
    /// How long a stream (watch, log, exec, WebSocket, a request body that is still being sent, a response without a
    /// length on `http` and `dashboard` routes) may last. It never outlasts its credential.
    #[serde(default = "Route::max_stream")]
    pub max_stream: Span,
}

/// Defaults.
impl Route {
    /// Whether any of its requests go to a Kubernetes API server.
    pub fn reaches_kubernetes(&self) -> bool {
        self.kind == RouteKind::Kubernetes || (self.kind == RouteKind::Dashboard && self.kubernetes.is_some())
    }

    /// Whether it accepts tokens and sessions of this issuer.
    pub fn takes_issuer(&self, name: &str) -> bool {
        self.issuers.is_empty() || self.issuers.iter().any(|issuer| issuer == name)
    }

    /// Whether a bearer token of this issuer can have the right audiences for it, given that it accepts the issuer: one
    /// of the issuer's and one of its own, which may differ.
    pub fn fits_tokens_of(&self, issuer: &Issuer) -> bool {
        !issuer.only_logs_in() && (self.audiences.is_empty() || !issuer.audiences.is_empty())
    }

    const fn max_stream() -> Span {
        Span::from_secs(8 * 3600)
    }
}

/// The kind of server behind a route. A Kubernetes API server is called as the caller, with impersonation. The others
/// receive headers about the caller: `X-Forwarded-User` is the user name; `X-Forwarded-Groups` has one line for each
/// group that grants give; `X-Forwarded-Email` is an address that the issuer has verified; `X-Forwarded-Actor` is the
/// subject of the actor that acts for the caller, such as an agent (`act`); and `X-Forwarded-Client` is the client that
/// the token was issued to. For a session the client is Doorward's own, if the provider names it, so only an actor
/// shows that somebody acts for the caller. Two issuers may have actors of the same name, which rules with `issuers`
/// tell apart. A header whose value is unknown is left out, and a request without a credential has none of them. They
/// are removed from requests of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    /// A Tekton EventListener.
    Webhook,
    /// The Tekton Dashboard.
    Dashboard,
    /// A Kubernetes API server.
    Kubernetes,
    /// Any other HTTP service.
    Http,
}

/// A kind of credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// The cookie of a browser session.
    Session,
    /// A bearer token: a JWT of an issuer, an opaque one by introspection, or a Kubernetes workload token.
    Bearer,
    /// The signature of a webhook.
    Webhook,
    /// A client certificate of `break_glass`.
    BreakGlass,
    /// No credential: the caller is `anonymous`, whom only rules with `who: {anonymous: true}` match. It must be last,
    /// and is not allowed on a `kubernetes` route, nor on a `dashboard` route with an API server.
    Anonymous,
}

/// The name of an EventListener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventListener {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}
