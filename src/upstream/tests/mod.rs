//! Tests of pools, retries, upgrades and cuts against real servers: hyper's, and scripted sockets where bytes matter.

mod cut;
mod early;
mod http1;
mod http2;
mod pool;
mod queue;
mod tls;
mod upgrade;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Lane, Metrics, Pings, Pools, Upstream, UpstreamBody, UpstreamError};
use crate::{
    body::{BodyEnd, ClientBody, OnEnd, RequestBody},
    config::{raw, report::At, resolver::Resolver, values::Span},
    downstream::Protocol,
};

/// Any end-of-body hook.
type EndHook = Box<dyn FnOnce(BodyEnd) + Send>;

impl<F: FnOnce(BodyEnd) + Send + Unpin> OnEnd for F {
    fn on_end(self, end: BodyEnd) {
        self(end);
    }
}

pub(super) fn raw_upstream(url: String) -> raw::Upstream {
    raw::Upstream {
        name: "backend".to_owned(),
        url: Some(url),
        response_timeout: Span::from_secs(10),
        ..serde_json::from_str(r#"{"name": ""}"#).unwrap()
    }
}

pub(super) fn resolve(raw: &raw::Upstream, limits: &raw::Limits, base: &Path) -> Arc<Upstream> {
    let mut resolver = Resolver::new(base);
    let upstream = Upstream::resolve(raw, limits, &At::root(), &mut resolver);
    upstream.unwrap_or_else(|| panic!("{:?}", resolver.report))
}

pub(super) fn upstream_with(address: SocketAddr, change: impl FnOnce(&mut raw::Upstream)) -> Arc<Upstream> {
    let mut entry = raw_upstream(format!("http://{address}"));
    change(&mut entry);
    resolve(&entry, &raw::Limits::default(), Path::new("/"))
}

pub(super) fn upstream(address: SocketAddr) -> Arc<Upstream> {
    upstream_with(address, |_| {})
}

pub(super) fn pools() -> Pools {
    Pools::new(Metrics::default(), Pings::NORMAL)
}

pub(super) fn request(method: &str, body: RequestBody) -> Request<RequestBody> {
    Request::builder().method(method).uri("/path?query").body(body).unwrap()
}

pub(super) fn get() -> Request<RequestBody> {
    request("GET", RequestBody::Empty)
}

pub(super) async fn text(response: Response<UpstreamBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub(super) async fn fetch(
    pools: &Pools,
    upstream: &Arc<Upstream>,
    mut request: Request<RequestBody>,
) -> Result<String, UpstreamError> {
    Ok(text(pools.send(upstream, &mut request, Lane::Short).await?).await)
}

/// Waits until `done` returns true.
pub(super) async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the condition never came true");
}

/// A server that runs `script` on each connection, and counts the connections.
pub(super) async fn scripted<F>(
    script: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let number = count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(script(number, stream));
        }
    });
    (address, accepted)
}

/// Reads up to the end of a request's head and returns it, or `None` at the end of the connection.
pub(super) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Reads until the peer closes; whether it did so without sending anything.
pub(super) async fn is_closed_silently(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    rest.is_empty()
}

pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers every request on every connection.
pub(super) async fn answer_all(_: usize, mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        stream.write_all(OK).await.unwrap();
    }
}

pub(super) async fn serve_http2<I, F>(io: I, service: impl Fn(Request<Incoming>) -> F + Send + Clone + 'static)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let response = service(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// Names in the trailers of a client: the first is harmless; in the head, all others would be forged or Doorward's own.
pub(super) const TRAILERS: [&str; 9] = [
    "x-t",
    "impersonate-group",
    "impersonate_user",
    "x-forwarded-user",
    "x_forwarded_user",
    "doorward-assertion",
    "x-request-id",
    "x-real-ip",
    "cookie",
];

/// A request body as a server gets it from a client that sends `body` with `trailers` over HTTP/1.1.
pub(super) async fn incoming<B>(body: B) -> ClientBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (client, server) = tokio::io::duplex(1 << 16);
    let (hand_over, handed_over) = tokio::sync::oneshot::channel();
    let hand_over = std::sync::Mutex::new(Some(hand_over));
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let _ = hand_over.lock().unwrap().take().unwrap().send(request.into_body());
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    tokio::spawn(async move {
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await
    });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::post("/").header("host", "x").header("trailer", TRAILERS.join(", ")).header("te", "trailers");
    tokio::spawn(async move { sender.send_request(request.body(Box::pin(body)).unwrap()).await });
    ClientBody::new(handed_over.await.unwrap(), Protocol::Http1)
}

/// A body that is fed by a channel.
pub(super) struct Frames<E>(pub(super) tokio::sync::mpsc::UnboundedReceiver<Result<Frame<Bytes>, E>>);

impl<E> Body for Frames<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        self.0.poll_recv(cx)
    }
}

pub(super) fn echo(headers: &HeaderMap) -> Response<Full<Bytes>> {
    let who = headers.get("impersonate-user").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    Response::new(Full::from(who))
}
