//! Receives the code from the browser: 127.0.0.1, at a port that the system chooses, for one login (RFC 8252 section
//! 7.3).

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
};
use url::form_urlencoded;

use super::Failure;
use crate::{
    pages::{self, Brand, ProgramDoneView},
    sessions::keyring::random_text,
};

/// Connections at once: a browser opens a few, and other programs on this machine get no more.
const MAX_CONNECTIONS: usize = 16;

/// The deadline for a request to arrive, and for the last response to leave.
const TIMEOUT: Duration = Duration::from_secs(5);

pub struct Loopback {
    listener: TcpListener,
    port: u16,
    state: String,
}

/// The result of the login in the browser: the code or the error, and the channel for who is signed in, or why nobody
/// is.
type Came = (Result<String, String>, oneshot::Sender<Result<String, String>>);

/// The expected login, as each connection sees it.
struct Expected {
    /// The `Host` that a browser sends here. Another name for this address is a DNS rebinding attack.
    host: String,
    state: String,
    came: mpsc::Sender<Came>,
}

impl Loopback {
    pub async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port, state: random_text() })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Identifies the response to this login.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Waits for the browser, and shows it the result of `redeem` for its code. Other requests are rejected and end
    /// nothing.
    pub async fn answer(
        self,
        redeem: impl AsyncFnOnce(Result<String, String>) -> Result<String, String>,
    ) -> Result<String, Failure> {
        let (came, mut comes) = mpsc::channel(1);
        let expected = Arc::new(Expected { host: format!("127.0.0.1:{}", self.port), state: self.state, came });
        let (left, mut leaves) = mpsc::channel(1);
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let listener = self.listener;
        let accepting = tokio::spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (expected, left) = (Arc::clone(&expected), left.clone());
                tokio::spawn(async move {
                    if serve(stream, expected).await {
                        let _ = left.send(()).await;
                    }
                    drop(permit);
                });
            }
        });
        let (brought, tell) = comes.recv().await.ok_or("the browser's answer cannot be received")?;
        let outcome = redeem(brought).await;
        let _ = tell.send(outcome.clone());
        // The page is on its way; the login succeeds without it as well.
        let _ = tokio::time::timeout(TIMEOUT, leaves.recv()).await;
        accepting.abort();
        outcome.map_err(Into::into)
    }
}

/// Serves one connection. Returns whether it delivered the expected response.
async fn serve(stream: TcpStream, expected: Arc<Expected>) -> bool {
    let came = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request: Request<Incoming>| {
        let (expected, came) = (Arc::clone(&expected), Arc::clone(&came));
        async move {
            let Some(brought) = expected.brought(&request) else { return Ok(nothing()) };
            let (tell, told) = oneshot::channel();
            // A second request finds the first in progress, or the channel closed.
            if expected.came.try_send((brought, tell)).is_err() {
                return Ok(nothing());
            }
            came.store(true, Ordering::Relaxed);
            let outcome = told.await.unwrap_or_else(|_| Err("the program has ended".to_owned()));
            let outcome = outcome.as_deref().map_err(String::as_str);
            let status = if outcome.is_ok() { StatusCode::OK } else { StatusCode::FORBIDDEN };
            let page = pages::html(status, &pages::program_done(&ProgramDoneView { outcome }), &Brand::default());
            Ok::<_, std::convert::Infallible>(page.map(Full::new))
        }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false).max_buf_size(16 << 10).timer(TokioTimer::new()).header_read_timeout(TIMEOUT);
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
    came.load(Ordering::Relaxed)
}

fn nothing() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"Nothing is expected here.\n")));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Expected {
    /// The code or error in a request, if it is the response to this login.
    fn brought<B>(&self, request: &Request<B>) -> Option<Result<String, String>> {
        let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
        if request.method() != Method::GET || request.uri().path() != "/" || host != Some(self.host.as_bytes()) {
            return None;
        }
        let mut parameters = HashMap::new();
        for (name, value) in form_urlencoded::parse(request.uri().query()?.as_bytes()) {
            if parameters.insert(name.into_owned(), value.into_owned()).is_some() {
                return None;
            }
        }
        verify_slices_are_equal(parameters.get("state")?.as_bytes(), self.state.as_bytes()).ok()?;
        match (parameters.remove("code"), parameters.remove("error")) {
            (Some(code), None) => Some(Ok(code)),
            (None, Some(error)) => Some(Err(error.chars().filter(|c| c.is_ascii_graphic()).take(60).collect())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counts_but_the_answer_to_this_login() {
        let (came, _comes) = mpsc::channel(1);
        let expected = Expected { host: "127.0.0.1:7000".to_owned(), state: "abc".to_owned(), came };
        let ask = |method: &str, path: &str, host: &str| {
            expected.brought(&Request::builder().method(method).uri(path).header("host", host).body(()).unwrap())
        };
        let here = "127.0.0.1:7000";
        assert_eq!(ask("GET", "/?code=x&state=abc", here), Some(Ok("x".to_owned())));
        assert_eq!(ask("GET", "/?error=access_denied&state=abc", here), Some(Err("access_denied".to_owned())));
        for (method, path, host) in [
            ("GET", "/?code=x&state=other", here),
            ("GET", "/?code=x", here),
            ("GET", "/?code=x&state=", here),
            ("GET", "/?state=abc", here),
            ("GET", "/?code=x&error=y&state=abc", here),
            ("GET", "/?code=x&code=y&state=abc", here),
            ("GET", "/?code=x&state=abc&state=other", here),
            ("GET", "/other?code=x&state=abc", here),
            ("POST", "/?code=x&state=abc", here),
            ("GET", "/?code=x&state=abc", "evil.example:7000"),
            ("GET", "/?code=x&state=abc", "localhost:7000"),
            ("GET", "/", here),
        ] {
            assert_eq!(ask(method, path, host), None, "{method} {path} {host}");
        }
    }
}
