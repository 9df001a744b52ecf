//! The admin listener: `/healthz`, `/readyz`, `/metrics`.
//!
//! Everybody may ask whether the process is alive and ready, as kubelet does. Reasons and metrics name issuers, routes
//! and addresses, so they require the bearer token of the configuration or, if none is set, a caller on this host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use axum::{
    Json, Router,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tower_http::{catch_panic::CatchPanicLayer, limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

use super::{
    connections::Open,
    health::{Health, HealthReport, Status},
};
use crate::{
    config::{
        raw,
        report::At,
        resolver::{Resolver, Secret},
    },
    terminal,
};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The `admin` part of the configuration, resolved.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    pub address: Option<SocketAddr>,
    pub token: Option<Secret>,
    pub socket: Option<PathBuf>,
    /// User ids that may use the socket, besides root and Doorward's own.
    pub socket_users: Vec<u32>,
}

impl AdminSettings {
    pub fn resolve(raw: &raw::Admin, at: &At, resolver: &mut Resolver) -> Self {
        let token_at = at.key("token");
        let token = raw.token.as_ref().and_then(|source| resolver.secret(&token_at, source));
        if token.as_ref().is_some_and(|token| token.expose().len() < 16) {
            resolver
                .error(&token_at, "the token is shorter than 16 bytes")
                .help("make one with `openssl rand -hex 32`");
        }
        if raw.token.is_some() && raw.address.is_none() {
            resolver.warning(&token_at, "`token` is not used, as there is no `address`");
        }
        if !raw.socket_users.is_empty() && raw.socket.is_none() {
            resolver.warning(&at.key("socket_users"), "`socket_users` is not used, as there is no `socket`");
        }
        Self {
            address: raw.address,
            token,
            socket: raw.socket.as_deref().map(|socket| resolver.written(&at.key("socket"), socket)),
            socket_users: raw.socket_users.clone(),
        }
    }
}

/// The admin listener, bound but not yet serving.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    health: Health,
    registry: Arc<Registry>,
    token: Arc<ArcSwapOption<digest::Digest>>,
}

/// A handle that sets the token of a running server, for a new generation.
#[derive(Clone, Debug)]
pub struct TokenHandle(Arc<ArcSwapOption<digest::Digest>>);

impl TokenHandle {
    /// Sets the token. `None` allows reasons and metrics only to callers on this host.
    pub fn set(&self, token: Option<&Secret>) {
        self.0.store(token.map(|token| Arc::new(digest::digest(&digest::SHA256, token.expose()))));
    }
}

impl AdminServer {
    /// Binds the address. The registry holds the metrics of all components.
    pub async fn bind(
        address: SocketAddr,
        token: Option<&Secret>,
        health: Health,
        registry: Arc<Registry>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let handle = TokenHandle(Arc::default());
        handle.set(token);
        Ok(Self { listener, address, shared: Arc::new(Shared { health, registry, token: handle.0 }) })
    }

    /// Returns the address that it listens on, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn token(&self) -> TokenHandle {
        TokenHandle(Arc::clone(&self.shared.token))
    }

    /// Serves until `stop` is cancelled. An error on accept is one of this machine (no file descriptors left), so it
    /// waits and continues.
    pub async fn serve(&self, stop: CancellationToken) {
        let open = Arc::<Open>::default();
        let router = router(Arc::clone(&self.shared));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Beyond the limit a connection is closed at once.
                    if let Some(counted) = open.admit(peer.ip()) {
                        let (router, stop) = (router.clone(), stop.clone());
                        tokio::spawn(async move {
                            serve_connection(stream, peer, router, stop).await;
                            drop(counted);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "admin listener cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            // Each client sends a single request from time to time.
            .keep_alive(false)
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "admin connection ended");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared)
        .layer(RequestBodyLimitLayer::new(0))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST_TIMEOUT))
        .layer(CatchPanicLayer::new())
}

/// Answers with readiness for everybody, and with reasons for callers that may know them. JSON if requested, else text.
async fn readyz(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let may_know = shared.may_know(&request).is_ok();
    let status = |ready| if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if !may_know {
        let ready = shared.health.is_ready();
        return (status(ready), if ready { "ready\n" } else { "not ready\n" }).into_response();
    }
    let report = shared.health.report();
    let json = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    match json {
        true => (status(report.ready), Json(report)).into_response(),
        false => (status(report.ready), as_text(&report)).into_response(),
    }
}

fn as_text(report: &HealthReport) -> String {
    let mut text = String::from(match (report.ready, report.draining) {
        (true, _) => "ready\n",
        (false, true) => "not ready: draining\n",
        (false, false) => "not ready\n",
    });
    for component in &report.components {
        let status = match component.status {
            Status::Starting => "starting",
            Status::Ok => "ok",
            Status::Degraded => "degraded",
            Status::Failed => "failed",
            Status::Alarm => "ALARM",
        };
        let gates = if component.gates { "" } else { " (does not gate readiness)" };
        let reason = terminal::line(&component.reason);
        let colon = if component.reason.is_empty() { "" } else { ": " };
        text.push_str(&format!("{} {status}{gates} since {}{colon}{reason}\n", component.name, component.since));
    }
    text
}

async fn metrics(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if let Err(refusal) = shared.may_know(&request) {
        return refusal.into_response();
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS))], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl Shared {
    /// Whether the caller may see reasons and metrics.
    fn may_know(&self, request: &Request) -> Result<(), NotForYou> {
        let Some(token) = self.token.load_full() else {
            return if is_local(request) { Ok(()) } else { Err(NotForYou::NotLocal) };
        };
        let presented = bearer(request.headers()).ok_or(NotForYou::NoToken)?;
        let presented = digest::digest(&digest::SHA256, presented.as_bytes());
        verify_slices_are_equal(presented.as_ref(), (*token).as_ref()).map_err(|_| NotForYou::NoToken)
    }
}

/// The reason why a caller may not see reasons and metrics.
#[derive(Clone, Copy, Debug)]
enum NotForYou {
    /// No token is set, and the caller is on another host.
    NotLocal,
    /// The token is missing or wrong.
    NoToken,
}

impl IntoResponse for NotForYou {
    fn into_response(self) -> Response {
        match self {
            Self::NotLocal => {
                (StatusCode::FORBIDDEN, "Only available on this host; for other hosts set `admin.token`.\n")
                    .into_response()
            }
            Self::NoToken => {
                let challenge = [(header::WWW_AUTHENTICATE, "Bearer realm=\"doorward admin\"")];
                (StatusCode::UNAUTHORIZED, challenge, "The token of `admin.token` is required.\n").into_response()
            }
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (scheme, token) = values.next()?.to_str().ok()?.split_once(' ')?;
    (values.next().is_none() && scheme.eq_ignore_ascii_case("bearer")).then_some(token)
}

/// Whether the caller is on this host, according to its connection. A proxy on this host is recognised by its headers,
/// and a web page that attacks through a browser on this host by its own host name (DNS rebinding).
fn is_local(request: &Request) -> bool {
    let loopback = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
    let headers = request.headers();
    let proxied =
        headers.contains_key(header::FORWARDED) || headers.keys().any(|name| name.as_str().starts_with("x-forwarded"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).is_some_and(|host| {
        let name = host.parse::<http::uri::Authority>();
        name.is_ok_and(|name| {
            let name = name.host();
            name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        })
    });
    loopback && !proxied && host
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        admin::{connections::MAX_CONNECTIONS, health::Gate, metrics::RequestMetrics},
        clock::Clock,
    };

    const TOKEN: &str = "0123456789abcdef-admin";

    fn shared(token: Option<&str>) -> (Arc<Shared>, Health) {
        let health = Health::new(Clock::default());
        let mut registry = Registry::with_prefix("doorward");
        RequestMetrics::default().register(&mut registry);
        let handle = TokenHandle(Arc::default());
        handle.set(token.map(|token| Secret::new(token.as_bytes().to_vec())).as_ref());
        let shared = Shared { health: health.clone(), registry: Arc::new(registry), token: handle.0 };
        (Arc::new(shared), health)
    }

    async fn ask(shared: &Arc<Shared>, path: &str, peer: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let mut request = Request::builder().uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:9090");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1234)));
        let response = router(Arc::clone(shared)).oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn attacks_z11_reasons_and_metrics_need_a_credential() {
        let good = format!("Bearer {TOKEN}");
        let (near, far) = ("127.0.0.1", "10.0.0.9");
        for (row, token, peer, headers, may_know) in [
            ("no token set, this host", None, near, vec![], true),
            ("no token set, this host by IPv6", None, "::1", vec![("host", "[::1]:9090")], true),
            ("no token set, by name", None, near, vec![("host", "localhost:9090")], true),
            ("no token set, elsewhere", None, far, vec![], false),
            ("no token set, elsewhere with a token", None, far, vec![("authorization", &*good)], false),
            ("no token set, a proxy on this host", None, near, vec![("x-forwarded-for", "10.0.0.9")], false),
            ("no token set, a page's host name", None, near, vec![("host", "evil.example")], false),
            ("token", Some(TOKEN), far, vec![("authorization", &*good)], true),
            (
                "token, lower case scheme",
                Some(TOKEN),
                far,
                vec![("authorization", "bearer 0123456789abcdef-admin")],
                true,
            ),
            ("no token, this host", Some(TOKEN), near, vec![], false),
            ("wrong token", Some(TOKEN), near, vec![("authorization", "Bearer 0123456789abcdef-Admin")], false),
            ("prefix of the token", Some(TOKEN), near, vec![("authorization", "Bearer 0123456789abcdef-admi")], false),
            ("other scheme", Some(TOKEN), near, vec![("authorization", "Basic 0123456789abcdef-admin")], false),
            ("two tokens", Some(TOKEN), near, vec![("authorization", &*good), ("authorization", &*good)], false),
        ] {
            let (shared, health) = shared(token);
            let issuer = health.component("issuer/corp", Gate::Report);
            issuer.failed("connection refused");
            let (status, body) = ask(&shared, "/readyz", peer, &headers).await;
            assert_eq!(status, StatusCode::OK, "{row}");
            assert_eq!(body.contains("issuer/corp failed"), may_know, "{row}: {body}");
            assert_eq!(body == "ready\n", !may_know, "{row}: {body}");
            let (status, body) = ask(&shared, "/metrics", peer, &headers).await;
            assert_eq!(status.is_success(), may_know, "{row}: {status}");
            assert_eq!(body.contains("doorward_"), may_know, "{row}");
            assert_eq!(ask(&shared, "/healthz", peer, &headers).await, (StatusCode::OK, "ok\n".to_owned()), "{row}");
        }
    }

    #[tokio::test]
    async fn readiness_follows_what_gates_it() {
        let (shared, health) = shared(None);
        let store = health.component("store", Gate::Readiness);
        store.failed("disk\nfull: \"NOSPC\" > 'max'");
        let (status, body) = ask(&shared, "/readyz", "127.0.0.1", &[("accept", "application/json")]).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&body["ready"], &body["components"][0]["reason"]),
            (&false.into(), &"disk\nfull: \"NOSPC\" > 'max'".into())
        );
        let (_, body) = ask(&shared, "/readyz", "127.0.0.1", &[]).await;
        assert!(body.contains(r#"disk\nfull: "NOSPC" > 'max'"#), "quotes stay as they are: {body}");
        assert_eq!(ask(&shared, "/readyz", "10.0.0.9", &[]).await.0, StatusCode::SERVICE_UNAVAILABLE);
        store.ok();
        assert_eq!(ask(&shared, "/readyz", "10.0.0.9", &[]).await.0, StatusCode::OK);
    }

    /// Starts a server that serves until the token is cancelled.
    async fn serving() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let (shared, health) = shared(None);
        let address = "127.0.0.1:0".parse().unwrap();
        let server = AdminServer::bind(address, None, health, Arc::clone(&shared.registry)).await.unwrap();
        let (address, stop) = (server.address(), CancellationToken::new());
        let serving = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(stop).await }
        });
        (address, stop, serving)
    }

    /// Sixty-four silent clients made health unreachable, for kubelet too.
    #[tokio::test]
    async fn connections_of_one_address_do_not_lock_others_out() {
        let (address, stop, serving) = serving().await;
        let connect = async |from: &str| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
            socket.connect(address).await.unwrap()
        };
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            held.push(connect("127.0.0.2").await);
        }
        let mut other = connect("127.0.0.3").await;
        other.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        other.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn it_serves_over_a_socket_and_stops() {
        let (address, stop, serving) = serving().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("# EOF"), "{answer}");
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn a_short_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (token, errors) in [("short", true), (TOKEN, false)] {
            std::fs::write(folder.path().join("token"), token).unwrap();
            let raw: raw::Admin =
                serde_json::from_value(serde_json::json!({"address": "127.0.0.1:0", "token": {"file": "token"}}))
                    .unwrap();
            let mut resolver = Resolver::new(folder.path());
            AdminSettings::resolve(&raw, &At::root().key("admin"), &mut resolver);
            assert_eq!(resolver.report.has_errors(), errors, "{token}");
        }
    }
}
