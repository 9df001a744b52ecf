//! `listeners`, `upstreams` and `routes`: where requests come in, where they go, and which credential each may carry.

use std::{net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Issuer;
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
    /// Peers whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, and who may bring requests for all
    /// hosts over a connection that was opened for one name of TLS. Default: nobody.
    #[serde(default)]
    #[schemars(with = "Vec<Cidr>")]
    pub trusted_proxies: Vec<IpNet>,
    /// `limits.connections_per_address` of this listener, where one address speaks for many that are trusted: an EventListener asks the
    /// interceptor over a connection for each of its Triggers.
    #[serde(default)]
    pub connections_per_address: Option<u32>,
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Certificates, the first that fits the name the client asks for is used, else the first.
    pub certificates: Vec<CertificateFiles>,
    /// Authorities of client certificates, needed by `break_glass`.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// A certificate chain and its key, PEM. Read again when the files change.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// The chain, the leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The name by which routes speak of it.
    pub name: String,
    /// `http://host:port` or `https://host:port`, without a path. It must be there unless `kubeconfig` is.
    #[serde(default)]
    pub url: Option<String>,
    /// The kubeconfig of an API server, which says what `url`, `tls` and `credential` do otherwise.
    #[serde(default)]
    pub kubeconfig: Option<Kubeconfig>,
    /// TLS towards it; only with `https`.
    #[serde(default)]
    pub tls: Option<ClientTls>,
    /// Doorward's own credential there. On `kubernetes` routes it must be able to impersonate, and to do nothing else but what
    /// `doorward rbac` prints for it.
    #[serde(default)]
    pub credential: Option<UpstreamCredential>,
    /// The protocol. Default: HTTP/2 where TLS negotiates it, else HTTP/1.1.
    #[serde(default)]
    pub protocol: Option<UpstreamProtocol>,
    /// The `Host` that it sees. Default: `client` on `http` and `dashboard` routes, `own` on `webhook` routes. An API server always
    /// sees its own.
    #[serde(default)]
    pub host: Option<UpstreamHost>,
    /// Time to connect, TLS included. Where all connections are in use, a request waits as long for one before.
    #[serde(default = "Upstream::connect_timeout")]
    pub connect_timeout: Span,
    /// Time from the end of the request to the head of the response.
    #[serde(default = "Upstream::response_timeout")]
    pub response_timeout: Span,
    /// How long an unused connection is kept. Set it below the time after which the upstream closes one itself, or a request that
    /// changes something gets 502 where it meets that moment: an EventListener after 120 s, nginx 75 s, Node, uvicorn and Apache
    /// 5 s, gunicorn 2 s, unless they are set otherwise.
    #[serde(default = "Upstream::idle_timeout")]
    pub idle_timeout: Span,
    /// How old a connection may become before it takes no more requests.
    #[serde(default = "Upstream::max_age")]
    pub max_age: Span,
    /// Connections at once to this upstream, of each worker. Watches, followed logs and upgrades, which have one each, hold three
    /// quarters of them at most, or the one that there is; beyond that they get 503, and others go on. Streams of server-sent
    /// events are known by their answer only and are not among these: give an upstream of many of them more.
    #[serde(default = "Upstream::max_connections")]
    pub max_connections: u32,
    /// Of an API server: the service account that Tekton gives a run which names none, where its ConfigMap `config-defaults` has
    /// another `default-service-account` than `default`. Rules hold for it.
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
    /// The service account whose token it is shown, where Doorward asks for one.
    pub fn requested_account(&self) -> Option<&RequestedAccount> {
        match &self.credential {
            Some(UpstreamCredential::ServiceAccount(account)) => Some(account),
            Some(UpstreamCredential::Bearer(_)) | None => None,
        }
    }

    /// The client certificate that it is shown.
    pub fn certificate(&self) -> Option<&CertificateFiles> {
        self.tls.as_ref()?.certificate.as_ref()
    }

    /// Whether Doorward has a credential there, of whatever form.
    pub fn has_credential(&self) -> bool {
        self.kubeconfig.is_some() || self.credential.is_some() || self.certificate().is_some()
    }

    /// The service account of runs of Tekton there that name none. It holds for all namespaces.
    pub fn default_service_account(&self) -> &str {
        self.default_service_account.as_deref().unwrap_or("default")
    }
}

/// An API server and who Doorward is there, as a kubeconfig describes them. Of its cluster `server`, authority and
/// `tls-server-name` count, and of its user token and client certificate. What else changes how kubectl connects or signs
/// in, such as `exec` or `proxy-url`, is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kubeconfig {
    /// Its path; paths within it begin in its folder. It is read again when it changes, and so are the files that it names.
    pub file: PathBuf,
    /// Which of its contexts. Default: its `current-context`.
    #[serde(default)]
    pub context: Option<String>,
}

/// TLS towards a server that Doorward connects to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// Authorities that its certificate is trusted by. Default: the system's.
    pub ca: Option<PathBuf>,
    /// The name that its certificate must have. Default: the host that is connected to.
    pub server_name: Option<String>,
    /// Our client certificate.
    pub certificate: Option<CertificateFiles>,
}

/// Doorward's own credential at an upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UpstreamCredential {
    /// A bearer token, read again when its file changes.
    Bearer(SecretSource),
    /// The token of a service account, for upstreams of `kubernetes` routes: Doorward asks the API server for it (TokenRequest) and renews
    /// it while it runs. It lasts ten minutes and is in memory alone. So what is sent for people comes by an account that can impersonate
    /// and nothing else, and what Doorward reads for itself by another.
    ServiceAccount(RequestedAccount),
}

/// A service account whose token Doorward asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestedAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The upstream, by name, at which its token is asked for: the same API server, with the credential of another account. That one
    /// must be allowed to `create` `serviceaccounts/token` of this one, as `doorward rbac` prints.
    pub upstream: String,
}

/// The HTTP version towards an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 always; in clear text with prior knowledge. Upgrades use HTTP/1.1 all the same.
    Http2,
}

/// The `Host` that an upstream sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamHost {
    /// As the client named it: for what makes links of it or compares it with `Origin`, as the Dashboard does, and for an
    /// EventListener whose ingress knows it by the name that senders call.
    Client,
    /// As `url` names it: for what is found by its name, such as a server behind an ingress of another cluster or in a service mesh.
    /// `X-Forwarded-Host` tells what the client named. A page's `Origin` stays as it came, so that servers which compare it with
    /// `Host` refuse its forms and WebSockets.
    Own,
}

/// Where the calls of the Kubernetes API are on a host.
pub const API_PATHS: [&str; 2] = ["/api/*", "/apis/*"];

/// Which requests go where, in whatever order they stand here. A host goes before a wildcard; then an exact path before a prefix, and a
/// longer prefix before a shorter one; then one that names methods before one that does not. What a host has no path for gets 404,
/// and a method that the routes of the path do not take 405, though a wildcard or a shorter prefix would take it. Two that say the same
/// are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The name by which rules speak of it.
    pub name: String,
    /// What stands behind it; decides which headers pass, how a request is read and what an error looks like.
    pub kind: RouteKind,
    /// Host names or addresses, without port, IPv6 in brackets (`[::1]`). `*.example.com` matches one label.
    pub hosts: Vec<String>,
    /// Paths: exact (`/hooks/github`), or a prefix of whole segments (`/hooks/*`). Default: all (`/*`).
    #[serde(default)]
    pub paths: Vec<String>,
    /// Methods. Default: `POST` for `webhook`; for the others `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE` and `OPTIONS`. Another one,
    /// such as `PROPFIND`, goes on only where it is named here.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Kinds of credential that it takes. A bearer token or session handle in `Authorization` is looked at first, then the others in
    /// this order; the first that is there decides.
    pub schemes: Vec<Scheme>,
    /// Issuers, by name, whose tokens and sessions it takes. Default: all.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// Audiences, out of those of its issuers: a bearer token must be for one of these. Default: all. So that a token for one route
    /// opens no other.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// The upstream, by name.
    pub upstream: String,
    /// `dashboard` only: the upstream, by name, that gets `/api/` and `/apis/` with impersonation.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// `dashboard` only: namespaces that its pages offer to those who may see them, besides those that rules name. Whoever may
    /// list all is offered all.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// `webhook` only: the sender, by name.
    #[serde(default)]
    pub webhook: Option<String>,
    /// `webhook` only: the EventListener behind it, for rules.
    #[serde(default)]
    pub event_listener: Option<EventListener>,
    /// Further request headers to pass on `kubernetes` and `webhook` routes, whose list is fixed.
    #[serde(default)]
    pub pass_headers: Vec<String>,
    /// The largest request body. Default: by the sender on `webhook` routes, none on the others.
    #[serde(default)]
    pub max_body: Option<Size>,
    /// How long a stream (watch, log, exec, WebSocket, a body that is being sent, an answer without a length on `http` and `dashboard`
    /// routes) may last. Never beyond its credential.
    #[serde(default = "Route::max_stream")]
    pub max_stream: Span,
}

/// Defaults.
impl Route {
    /// Whether any of its requests go to a Kubernetes API server.
    pub fn reaches_kubernetes(&self) -> bool {
        self.kind == RouteKind::Kubernetes || (self.kind == RouteKind::Dashboard && self.kubernetes.is_some())
    }

    /// Whether it takes tokens and sessions of this issuer.
    pub fn takes_issuer(&self, name: &str) -> bool {
        self.issuers.is_empty() || self.issuers.iter().any(|issuer| issuer == name)
    }

    /// Whether a bearer token of this issuer can be for it, if it takes the issuer: with an audience of the issuer's, and with one of its
    /// own, which may be another.
    pub fn fits_tokens_of(&self, issuer: &Issuer) -> bool {
        !issuer.only_logs_in() && (self.audiences.is_empty() || !issuer.audiences.is_empty())
    }

    const fn max_stream() -> Span {
        Span::from_secs(8 * 3600)
    }
}

/// What stands behind a route. A Kubernetes is asked as the caller. The others are told who asks: `X-Forwarded-User` is the user name,
/// `X-Forwarded-Groups` a line for each group that grants give, `X-Forwarded-Email` an address that the issuer has verified,
/// `X-Forwarded-Actor` the subject of who acts for them, such as an agent (`act`), and `X-Forwarded-Client` the client that the token was
/// issued to: of a session Doorward's own, where the provider names it, so that an actor alone says that somebody acts. Two issuers may
/// know actors of one name, which rules with `issuers` keep apart. What is not known is not there, and who comes without a credential has
/// none of them; from clients none is taken.
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
    /// None at all: whoever comes is `anonymous`, whom only rules with `who: {anonymous: true}` match. Must stand
    /// last, and never on a `kubernetes` route.
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
