//! The baseline: a reverse proxy made of hyper only, with its own pool and the same timeouts, that decides nothing.

use std::{cell::RefCell, convert::Infallible, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::{Either, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Pool = Rc<RefCell<Vec<SendRequest<Incoming>>>>;

/// Serves until it is killed.
pub fn run(listen: &str, upstream: &str, tls: Option<(&str, &str)>) -> Result<(), Failure> {
    let upstream: SocketAddr = upstream.parse()?;
    let acceptor = tls.map(|(chain, key)| acceptor(chain, key)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await?;
        let pool = Pool::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (pool, acceptor) = (pool.clone(), acceptor.clone());
            tokio::task::spawn_local(async move {
                match acceptor {
                    None => serve(TokioIo::new(stream), upstream, pool).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(TokioIo::new(stream), upstream, pool).await;
                        }
                    }
                }
            });
        }
    })
}

fn acceptor(chain: &str, key: &str) -> Result<tokio_rustls::TlsAcceptor, Failure> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    Ok(Arc::new(config).into())
}

async fn serve<I>(io: I, upstream: SocketAddr, pool: Pool)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let pool = pool.clone();
        async move { Ok::<_, Infallible>(forward(request, upstream, pool).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(10))
        .serve_connection(io, service)
        .await;
}

type Answer = Response<Either<Pooled, Empty<Bytes>>>;

async fn forward(mut request: Request<Incoming>, upstream: SocketAddr, pool: Pool) -> Answer {
    let target = request.uri().path_and_query().cloned();
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = target;
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    let unavailable = || {
        let mut response = Response::new(Either::Right(Empty::new()));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    };
    let pooled = pool.borrow_mut().pop();
    let mut sender = match pooled.filter(SendRequest::is_ready) {
        Some(sender) => sender,
        None => match connect(upstream).await {
            Ok(sender) => sender,
            Err(_) => return unavailable(),
        },
    };
    match tokio::time::timeout(Duration::from_secs(30), sender.send_request(request)).await {
        Ok(Ok(response)) => response.map(|body| Either::Left(Pooled { body, sender: Some(sender), pool })),
        _ => unavailable(),
    }
}

async fn connect(upstream: SocketAddr) -> Result<SendRequest<Incoming>, Failure> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

/// A body that returns its connection to the pool when it has ended.
struct Pooled {
    body: Incoming,
    sender: Option<SendRequest<Incoming>>,
    pool: Pool,
}

impl http_body::Body for Pooled {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.body.is_end_stream()
            && let Some(sender) = self.sender.take()
        {
            self.pool.borrow_mut().push(sender);
        }
    }
}
