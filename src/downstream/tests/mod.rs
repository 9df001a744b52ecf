//! The listener over real sockets. Most cases send raw bytes: a client library would hide or repair them.

mod bounds;
mod drain;
mod http1;
mod http2;
mod memory;
mod proxy_protocol;
mod tls;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroUsize,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;

use super::{Bound, Connection, Downstream, Drain, Metrics, Serve, Settings, Unfit};
use crate::{
    body::ClientBody,
    clock::{Clock, Timestamp},
    config::{
        raw::{Limits, Listener},
        report::At,
        resolver::Resolver,
    },
    memory::RequestMemory,
};

/// Nothing here takes longer unless it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// As much as hyper reads at once from an upstream, and more than the first window of a stream.
const WHOLE: usize = 400 << 10;

/// Answers by path: `/slow` waits for a permit of `gate`, `/parts` waits for one within its body, `/whole` has `WHOLE`
/// bytes in one piece, `/largest` says how much of a body arrived at once, and `/refused` reads no body.
#[derive(Clone)]
struct Fixture {
    hits: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    memory: RequestMemory,
}

impl Serve for Fixture {
    type Body = BoxBody<Bytes, io::Error>;

    fn serve(
        &self,
        connection: &Arc<Connection>,
        request: Result<Request<ClientBody>, Unfit>,
    ) -> impl Future<Output = Response<Self::Body>> + Send + Unpin + use<> {
        let (this, connection) = (self.clone(), Arc::clone(connection));
        Box::pin(async move {
            match request {
                Ok(request) => {
                    this.hits.fetch_add(1, Ordering::SeqCst);
                    this.answer(&connection, request).await
                }
                Err(unfit) => response(unfit.rejection.status(), unfit.rejection.detail()),
            }
        })
    }

    fn request_memory(&self) -> RequestMemory {
        self.memory.clone()
    }
}

impl Fixture {
    async fn answer(
        &self,
        connection: &Connection,
        mut request: Request<ClientBody>,
    ) -> Response<BoxBody<Bytes, io::Error>> {
        match request.uri().path() {
            "/slow" => {
                self.gate.acquire().await.unwrap().forget();
                response(StatusCode::OK, "slow")
            }
            "/read" => match request.collect().await {
                Ok(body) => response(StatusCode::OK, &body.to_bytes().len().to_string()),
                Err(error) => response(StatusCode::BAD_REQUEST, &error.to_string()),
            },
            "/largest" => {
                let mut largest = 0;
                while let Some(frame) = request.frame().await {
                    largest = largest.max(frame.unwrap().into_data().map_or(0, |data| data.len()));
                    // Meanwhile more arrives than is read at once.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                response(StatusCode::OK, &largest.to_string())
            }
            "/refused" => response(StatusCode::FORBIDDEN, "refused"),
            "/panic" => panic!("as asked"),
            "/endless" => Response::new(Endless.boxed()),
            "/whole" => response(StatusCode::OK, &"x".repeat(WHOLE)),
            "/parts" => {
                let gate = Arc::clone(&self.gate);
                let rest = async move {
                    gate.acquire().await.unwrap().forget();
                    Ok(Frame::data(Bytes::from_static(b"rest")))
                };
                Response::new(StreamBody::new(futures_util::stream::once(rest)).boxed())
            }
            "/close" => {
                let mut response = response(StatusCode::OK, "closing");
                response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
                response
            }
            "/upgrade" => {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                    tokio::io::copy(&mut read, &mut write).await
                });
                let mut response = response(StatusCode::SWITCHING_PROTOCOLS, "");
                response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
                response.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("echo"));
                response
            }
            _ => {
                let tls = connection.tls.as_ref();
                let name = tls.and_then(|tls| tls.server_name.as_deref()).unwrap_or("-");
                let certificate = connection.certificate_for(name, false, Clock::default().now());
                response(
                    StatusCode::OK,
                    &format!(
                        "peer={} protocol={} name={name} certificate={}",
                        connection.peer,
                        connection.protocol.as_str(),
                        certificate.is_some(),
                    ),
                )
            }
        }
    }
}

fn response(status: StatusCode, text: &str) -> Response<BoxBody<Bytes, io::Error>> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

/// A body without end.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10])))))
    }
}

/// A running listener with one worker.
struct Server {
    address: SocketAddr,
    fixture: Fixture,
    downstream: Option<Downstream>,
    registry: Registry,
}

fn listener(name: &str) -> Listener {
    Listener {
        name: name.to_owned(),
        address: ([127, 0, 0, 1], 0).into(),
        tls: None,
        proxy_protocol_from: Vec::new(),
        trusted_proxies: Vec::new(),
        connections_per_address: None,
    }
}

fn resolve(listeners: &[Listener], limits: &Limits) -> Settings {
    let mut resolver = Resolver::new(Path::new("/"));
    let settings = Settings::resolve(listeners, limits, Clock::default().now(), &mut resolver, &At::root());
    settings.unwrap_or_else(|| panic!("{:?}", resolver.report.problems()))
}

impl Server {
    fn start() -> Self {
        Self::with(listener("main"), &Limits::default())
    }

    fn with_limits(limits: &Limits) -> Self {
        Self::with(listener("main"), limits)
    }

    fn with(listener: Listener, limits: &Limits) -> Self {
        let bound = Bound::bind(&resolve(&[listener], limits), NonZeroUsize::MIN).unwrap();
        let address = bound.addresses().next().unwrap().1;
        let (gate, memory) = (Arc::new(Semaphore::new(0)), RequestMemory::default());
        let fixture = Fixture { hits: Arc::default(), gate, memory };
        let (metrics, mut registry) = (Metrics::default(), Registry::default());
        metrics.register(&mut registry);
        let made = fixture.clone();
        let downstream = bound.start(move |_| made.clone(), &metrics, Drain::default()).unwrap();
        Self { address, fixture, downstream: Some(downstream), registry }
    }

    fn downstream(&self) -> &Downstream {
        self.downstream.as_ref().unwrap()
    }

    fn hits(&self) -> usize {
        self.fixture.hits.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.downstream().drain().connections()
    }

    fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    /// As [`connect`](Self::connect), from another address of this machine than that of all others.
    fn connect_from_elsewhere(&self) -> Client<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    /// Sends bytes on a connection of their own and returns everything that arrives until it is closed.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        client.send(bytes);
        client.rest()
    }

    /// Waits until a metric has a value, such as `connections_refused_total{reason="total"} 1`.
    fn await_metric(&self, line: &str) {
        self.await_line(&format!("downstream_{line}"));
    }

    fn await_line(&self, line: &str) {
        let line = format!("{line}\n");
        eventually(&line, || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
            text.contains(&line)
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(downstream) = self.downstream.take() else { return };
        downstream.drain().cut();
        downstream.join();
    }
}

struct Client<T>(T);

impl<T: io::Read + io::Write> Client<T> {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    fn get(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        self.response()
    }

    /// One response that has a Content-Length, or the head of one that has none.
    fn response(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            self.0.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {}", bytes.escape_ascii()));
            bytes.push(byte[0]);
        }
        let head = String::from_utf8(bytes).unwrap();
        let length = head.to_ascii_lowercase();
        let length =
            length.split_once("content-length: ").map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        head + &String::from_utf8(body).unwrap()
    }

    /// Everything that arrives until the connection is closed, however it is closed.
    fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let end = self.0.read_to_end(&mut bytes);
        let waited = end
            .as_ref()
            .is_err_and(|error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        assert!(!waited, "not closed, after {}", bytes.escape_ascii());
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or("closed")
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        std::thread::yield_now();
    }
}
