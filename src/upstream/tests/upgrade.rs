//! Upgrades end to end: a raw client, hyper's server in front as in the listener, and a scripted upstream.

use http::{StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::{Mutex, mpsc};

use super::*;
use crate::{
    body::{BodyError, EndedBy},
    clock::Timestamp,
    error::Rejection,
    streams::{CutReason, Registry, tests as streams},
    upstream::upgrade::{SpliceEnd, UpgradeAnswer, requested},
};

type AnyBody = UnsyncBoxBody<Bytes, BodyError>;

struct Front {
    address: SocketAddr,
    registry: Registry,
    ends: mpsc::UnboundedReceiver<SpliceEnd>,
}

fn empty() -> AnyBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

async fn front(upstream: Arc<Upstream>) -> Front {
    let (registry, clock) = streams::registry();
    let (ended, ends) = mpsc::unbounded_channel();
    let pools = pools();
    let shared = registry.clone();
    let (address, _) = scripted(move |_, stream| {
        let (pools, upstream, registry, ended, now) =
            (pools.clone(), Arc::clone(&upstream), shared.clone(), ended.clone(), clock.moment());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let (pools, upstream, registry, ended) =
                (pools.clone(), Arc::clone(&upstream), registry.clone(), ended.clone());
            async move {
                let answer = async {
                    let Some(protocol) = requested(&request)? else {
                        let (parts, _) = request.into_parts();
                        let mut request = Request::from_parts(parts, RequestBody::Empty);
                        let response = pools.send(&upstream, &mut request, Lane::Short).await?;
                        return Ok(response.map(BodyExt::boxed_unsync));
                    };
                    let client = hyper::upgrade::on(&mut request);
                    let (parts, _) = request.into_parts();
                    match pools.upgrade(&upstream, Request::from_parts(parts, ()), protocol).await? {
                        UpgradeAnswer::Refused(response) => Ok(response.map(BodyExt::boxed_unsync)),
                        UpgradeAnswer::Switched(head, splice) => {
                            let handle = registry.register(streams::watch("alice", Timestamp::MAX, now));
                            tokio::spawn(async move { ended.send(splice.run(client, handle).await) });
                            Ok(head.map(|()| empty()))
                        }
                    }
                };
                let response: Result<_, Rejection> = answer.await;
                Ok::<_, Infallible>(response.unwrap_or_else(|rejection| {
                    let mut response = Response::new(empty());
                    *response.status_mut() = rejection.status();
                    response.headers_mut().insert(header::CONNECTION, "close".parse().unwrap());
                    response
                }))
            }
        });
        async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        }
    })
    .await;
    Front { address, registry, ends }
}

const HANDSHAKE: &str = "GET /exec HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SPDY: &str =
    "POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n";
const SECOND: &str = "GET /second HTTP/1.1\r\nHost: x\r\n\r\n";

/// An upstream that sends `answer` to the first head on each connection, and then records what else arrives.
async fn upstream_that(answer: String) -> (Arc<Upstream>, mpsc::UnboundedReceiver<(String, Vec<u8>)>) {
    let (report, reports) = mpsc::unbounded_channel();
    let (address, _) = scripted(move |_, mut stream| {
        let (answer, report) = (answer.clone(), report.clone());
        async move {
            let Some(head) = read_head(&mut stream).await else { return };
            stream.write_all(answer.as_bytes()).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            report.send((head, rest)).unwrap();
        }
    })
    .await;
    (upstream(address), reports)
}

async fn everything(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}

#[tokio::test]
async fn an_upgrade_passes_bytes_both_ways_and_counts_them() {
    for (handshake, protocol) in [(HANDSHAKE, "websocket"), (SPDY, "SPDY/3.1")] {
        let answer =
            format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\r\nhello");
        let (upstream, mut reports) = upstream_that(answer).await;
        let mut front = front(upstream).await;
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(handshake.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let mut hello = [0; 5];
        client.read_exact(&mut hello).await.unwrap();
        client.write_all(b"data").await.unwrap();
        client.shutdown().await.unwrap();
        let (head, data) = reports.recv().await.unwrap();
        assert!(
            head.contains("connection: Upgrade\r\n") && head.contains(&format!("upgrade: {protocol}\r\n")),
            "{head}"
        );
        assert_eq!((&hello, &data[..]), (b"hello", &b"data"[..]));
        let end = front.ends.recv().await.unwrap();
        assert_eq!(end, SpliceEnd { outcome: EndedBy::Complete, bytes_to_client: 5, bytes_to_upstream: 4 });
        assert!(front.registry.is_empty());
    }
}

#[tokio::test]
async fn kubernetes_u1_after_an_error_nothing_else_passes_on_either_connection() {
    for status in ["400 Bad Request", "403 Forbidden", "500 Internal Server Error"] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nwhy!");
        let (upstream, mut reports) = upstream_that(answer).await;
        let front = front(upstream).await;
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(format!("{HANDSHAKE}{SECOND}").as_bytes()).await.unwrap();
        let got = everything(&mut client).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")) && got.ends_with("why!"), "{got}");
        assert!(got.contains("connection: close"), "{got}");
        let (_, rest) = reports.recv().await.unwrap();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
        assert!(reports.try_recv().is_err());
    }
}

#[tokio::test]
async fn kubernetes_u2_any_other_answer_to_an_upgrade_is_a_502() {
    for (row, answer) in [
        ("kubernetes:U2", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("kubernetes:U2", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"),
        ("another protocol", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nConnection: Upgrade\r\n\r\n"),
        ("no protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n"),
        ("two protocols", "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
        ("no connection token", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    ] {
        let (upstream, mut reports) = upstream_that(answer.to_owned()).await;
        let front = front(upstream).await;
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(format!("{HANDSHAKE}{SECOND}").as_bytes()).await.unwrap();
        let got = everything(&mut client).await;
        assert!(got.starts_with("HTTP/1.1 502"), "{row}: {got}");
        assert!(reports.recv().await.unwrap().1.is_empty(), "{row}");
    }
}

#[tokio::test]
async fn kubernetes_u4_bytes_behind_the_handshake_wait_for_the_101() {
    let (ask, mut asked) = mpsc::unbounded_channel();
    let (release, released) = mpsc::unbounded_channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let (address, _) = scripted(move |_, mut stream| {
        let (ask, released) = (ask.clone(), Arc::clone(&released));
        async move {
            read_head(&mut stream).await.unwrap();
            ask.send(()).unwrap();
            let mut early = [0; 1];
            let is_silent = tokio::select! {
                _ = released.lock_owned_recv() => true,
                _ = stream.read(&mut early) => false,
            };
            assert!(is_silent, "bytes came before the 101");
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    })
    .await;
    let front = front(upstream(address)).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(format!("{HANDSHAKE}early").as_bytes()).await.unwrap();
    asked.recv().await.unwrap();
    release.send(()).unwrap();
    assert!(read_head(&mut client).await.unwrap().starts_with("HTTP/1.1 101"));
    assert_eq!(everything(&mut client).await, "early");
}

trait Recv {
    async fn lock_owned_recv(&self) -> Option<()>;
}

impl Recv for Mutex<mpsc::UnboundedReceiver<()>> {
    async fn lock_owned_recv(&self) -> Option<()> {
        self.lock().await.recv().await
    }
}

#[tokio::test]
async fn kubernetes_t2_a_cut_websocket_gives_its_client_the_reason_and_spdy_just_ends() {
    for (handshake, protocol, goodbye) in
        [(HANDSHAKE, "websocket", "\u{88}\u{9}\u{3}\u{f0}revoked"), (SPDY, "SPDY/3.1", "")]
    {
        let answer =
            format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\r\n\x01\x02hi");
        let (upstream, mut reports) = upstream_that(answer).await;
        let mut front = front(upstream).await;
        let mut client = TcpStream::connect(front.address).await.unwrap();
        client.write_all(handshake.as_bytes()).await.unwrap();
        read_head(&mut client).await.unwrap();
        let mut frame = [0; 4];
        client.read_exact(&mut frame).await.unwrap();
        assert_eq!(front.registry.close_matching(|_| true, CutReason::Revoked), 1);
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert_eq!(rest.iter().copied().map(char::from).collect::<String>(), goodbye);
        drop(client);
        assert_eq!(front.ends.recv().await.unwrap().outcome, EndedBy::Cut(CutReason::Revoked));
        reports.recv().await.unwrap();
        assert!(front.registry.is_empty());
    }
}

#[tokio::test]
async fn an_upstream_that_never_answers_an_upgrade_is_a_504() {
    let (address, _) = scripted(|_, mut stream| async move {
        is_closed_silently(&mut stream).await;
    })
    .await;
    let upstream = upstream_with(address, |entry| entry.response_timeout = Span::from_millis(200));
    let front = front(upstream).await;
    let mut client = TcpStream::connect(front.address).await.unwrap();
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    let got = everything(&mut client).await;
    assert!(got.starts_with(&format!("HTTP/1.1 {}", StatusCode::GATEWAY_TIMEOUT.as_u16())), "{got}");
}

#[tokio::test]
async fn upgraded_connections_count_among_those_of_their_upstream() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let (upstream, _reports) = upstream_that(answer.to_owned()).await;
    let address = upstream.authority.host.to_str().unwrap().parse().unwrap();
    let upstream = upstream_with(address, |entry| {
        entry.max_connections = 1;
        entry.connect_timeout = Span::from_millis(100);
    });
    let mut front = front(upstream).await;
    let mut first = TcpStream::connect(front.address).await.unwrap();
    first.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    assert!(read_head(&mut first).await.unwrap().starts_with("HTTP/1.1 101"));
    let mut second = TcpStream::connect(front.address).await.unwrap();
    second.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    assert!(everything(&mut second).await.starts_with("HTTP/1.1 503"));
    drop(first);
    front.ends.recv().await.unwrap();
    let mut third = TcpStream::connect(front.address).await.unwrap();
    third.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    assert!(read_head(&mut third).await.unwrap().starts_with("HTTP/1.1 101"));
}
