use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Barrier,
};

use super::{Bounds, Egress, EgressError, KEPT, roots};
use crate::issuers::testing::{Provider, Reply, egress};

const BOUNDS: Bounds = Bounds { timeout: Duration::from_millis(200), max_body: 1_000 };
const PATIENT: Bounds = Bounds { timeout: Duration::from_secs(10), max_body: 1_000 };

async fn get(url: &str, bounds: Bounds) -> Result<(u16, usize), EgressError> {
    let request = Request::get(url).body(Bytes::new()).unwrap();
    egress().send(request, bounds).await.map(|answer| (answer.status().as_u16(), answer.body().len()))
}

/// Its bytes were printed, as numbers.
#[test]
fn a_broken_file_of_authorities_is_explained_without_its_bytes() {
    let section = "-----BEGIN CERTIFICATE-----\nAAAA\n";
    for (text, told) in
        [(section, "halfway"), ("-----BEGIN CERTIFICATE\nAAAA\n", "first line"), ("AAAA", "no certificate")]
    {
        let why = roots(text.as_bytes()).unwrap_err();
        assert!(why.contains(told) && !why.contains('['), "{text:?}: {why}");
    }
}

#[tokio::test]
async fn an_answer_is_read_whole_within_its_bounds() {
    let provider = Provider::start().await;
    provider.on("/fits", Reply::Answer(200, "text/plain", vec![b'x'; 1_000].into()));
    provider.on("/over", Reply::Answer(200, "text/plain", vec![b'x'; 1_001].into()));
    provider.on("/endless", Reply::Endless);
    provider.on("/redirect", Reply::Redirect("/fits".to_owned()));
    let url = |path: &str| format!("{}{path}", provider.url);
    assert_eq!(get(&url("/fits"), PATIENT).await.unwrap(), (200, 1_000));
    assert_eq!(get(&url("/redirect"), PATIENT).await.unwrap(), (302, 0));
    assert_eq!(provider.hits("/fits"), 1);
    for path in ["/over", "/endless"] {
        assert!(matches!(get(&url(path), PATIENT).await, Err(EgressError::TooLarge(1_000))), "{path}");
    }
}

/// The time covers the connection, the head and each byte of the body.
#[tokio::test]
async fn the_timeout_covers_everything() {
    let provider = Provider::start().await;
    provider.on("/hang", Reply::Hang);
    provider.on("/drip", Reply::Drip);
    // The kernel accepts, and nothing is sent: neither an answer nor a TLS handshake.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let accepting = silent.local_addr().unwrap();
    let urls = [
        format!("{}/hang", provider.url),
        format!("{}/drip", provider.url),
        format!("http://{accepting}/"),
        format!("https://{accepting}/"),
    ];
    for url in urls {
        let started = Instant::now();
        assert!(matches!(get(&url, BOUNDS).await, Err(EgressError::Timeout(_))), "{url}");
        assert!(started.elapsed() < Duration::from_secs(3), "{url}");
    }
    drop(silent);
    let refused = get(&format!("http://{accepting}/"), BOUNDS).await.unwrap_err();
    assert!(matches!(refused, EgressError::Connect(_)), "{refused}");
}

/// The server closes the connection just as a request arrives on it, as servers may do with one that was idle.
#[tokio::test]
async fn only_a_safe_request_is_sent_again_where_the_connection_breaks() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    let taking = async |answer: &[u8]| {
        let (mut connection, _) = server.accept().await.unwrap();
        let mut taken = [0; 1];
        connection.read_exact(&mut taken).await.unwrap();
        connection.write_all(answer).await.unwrap();
    };
    let there = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let client = egress();
    let asked = Request::get(&url).body(Bytes::new()).unwrap();
    let (answer, ()) = tokio::join!(client.send(asked, PATIENT), async {
        taking(b"").await;
        taking(there).await;
    });
    assert_eq!(answer.unwrap().status(), 200);
    let post = Request::post(&url).body(Bytes::new()).unwrap();
    let (answer, ()) = tokio::join!(client.send(post, PATIENT), taking(b""));
    assert!(matches!(answer, Err(EgressError::Exchange(_))), "{answer:?}");
}

/// All but four were closed after each burst of reviews, as when many pods start at once, and opened again for the
/// next.
#[tokio::test]
async fn calls_in_bursts_reuse_the_connections_of_earlier_ones() {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    let (opened, all_there) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(KEPT)));
    let count = Arc::clone(&opened);
    tokio::spawn(async move {
        while let Ok((stream, _)) = server.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let all_there = Arc::clone(&all_there);
            let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                let all_there = Arc::clone(&all_there);
                async move {
                    all_there.wait().await;
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(async move { _ = connection.await });
        }
    });
    let client = egress();
    // A connection may be returned only after the next burst has begun.
    for _ in 0..100 {
        let before = opened.load(Ordering::SeqCst);
        let calls = (0..KEPT).map(|_| client.send(Request::post(&url).body(Bytes::new()).unwrap(), PATIENT));
        let answers = futures_util::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        if before > 0 && opened.load(Ordering::SeqCst) == before {
            return;
        }
    }
    panic!("each burst opens connections of its own: {} by now", opened.load(Ordering::SeqCst));
}

#[tokio::test]
async fn the_certificate_of_an_upstream_must_have_the_name_that_is_given_for_it() {
    let own = rcgen::generate_simple_self_signed(["api.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::from_pem_slice(own.signing_key.serialize_pem().as_bytes()).unwrap();
    let tls = rustls::ServerConfig::builder().with_no_client_auth();
    let tls =
        tokio_rustls::TlsAcceptor::from(Arc::new(tls.with_single_cert(vec![own.cert.der().clone()], key).unwrap()));
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", server.local_addr().unwrap());
    for (name, is_taken) in [(Some("api.test"), true), (Some("other.test"), false), (None, false)] {
        let name = name.map(|name| ServerName::try_from(name).unwrap());
        let client = Egress::direct(Some(own.cert.pem().as_bytes()), name).unwrap();
        let asked = Request::get(&url).body(Bytes::new()).unwrap();
        let (answer, ()) = tokio::join!(client.send(asked, PATIENT), async {
            let (connection, _) = server.accept().await.unwrap();
            let Ok(mut connection) = tls.accept(connection).await else { return };
            connection.read_exact(&mut [0; 1]).await.unwrap();
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        });
        match is_taken {
            true => assert_eq!(answer.unwrap().status(), 200),
            false => assert!(matches!(answer, Err(EgressError::Connect(_))), "{answer:?}"),
        }
    }
}

#[tokio::test]
async fn failures_say_what_happened() {
    let provider = Provider::start().await;
    let plain = get(&provider.url.replace("http", "https"), BOUNDS).await.unwrap_err();
    assert!(matches!(plain, EgressError::Connect(_)), "{plain}");
    provider.on("/short", Reply::Promise(999));
    let short = get(&format!("{}/short", provider.url), BOUNDS).await.unwrap_err();
    assert!(matches!(short, EgressError::Body(_) | EgressError::Exchange(_) | EgressError::Timeout(_)), "{short}");
}
