use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;

use super::*;
use crate::config::values::Span;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const WINDOW_UPDATE: u8 = 8;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// A frame of RFC 9113 section 4.1.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field that is not indexed and whose strings are not compressed (RFC 7541 section 6.2.2).
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let string = |text: &[u8]| {
        assert!(text.len() < 127);
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    };
    [vec![0], string(name), string(value)].concat()
}

pub(super) fn request(path: &[u8], more: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block =
        [field(b":method", b"GET"), field(b":scheme", b"http"), field(b":authority", b"a"), field(b":path", path)]
            .concat();
    for (name, value) in more {
        block.extend(field(name, value));
    }
    block
}

pub(super) fn begin(client: &mut Client<TcpStream>) {
    client.send(PREFACE);
    client.send(frame(4, 0, 0, &[]));
}

/// Frames as they come: kind, flags, stream, payload. `None` once the connection is closed.
pub(super) fn next(client: &mut Client<TcpStream>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    client.0.read_exact(&mut head).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    client.0.read_exact(&mut payload).ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// The outcome of stream 1.
#[derive(Debug, PartialEq)]
enum Outcome {
    Answered,
    Refused,
    Reset,
    GoAway,
    Closed,
}

fn outcome(client: &mut Client<TcpStream>) -> Outcome {
    loop {
        match next(client) {
            None => return Outcome::Closed,
            // 0x88 is the indexed `:status: 200`.
            Some((1, _, 1, block)) if block[0] == 0x88 => return Outcome::Answered,
            Some((1, _, 1, _)) => return Outcome::Refused,
            Some((3, _, 1, _)) => return Outcome::Reset,
            Some((7, ..)) => return Outcome::GoAway,
            Some(_) => {}
        }
    }
}

fn ask(server: &Server, block: &[u8]) -> Outcome {
    let mut client = server.connect();
    begin(&mut client);
    client.send(frame(1, END_STREAM | END_HEADERS, 1, block));
    outcome(&mut client)
}

#[test]
fn kubernetes_r2_malformed_requests_reset_their_stream() {
    let server = Server::start();
    let cases: [(&str, Vec<u8>, Outcome); 12] = [
        ("twin", request(b"/", &[]), Outcome::Answered),
        ("space in :path", request(b"/a b", &[]), Outcome::Reset),
        ("CRLF in :path", request(b"/ HTTP/1.1\r\nX: y", &[]), Outcome::Reset),
        ("CR in a value", request(b"/", &[(b"x", b"a\rb")]), Outcome::Reset),
        ("LF in a value", request(b"/", &[(b"x", b"a\nb")]), Outcome::Reset),
        ("NUL in a value", request(b"/", &[(b"x", b"a\0b")]), Outcome::Reset),
        ("upper case name", request(b"/", &[(b"X", b"y")]), Outcome::Reset),
        ("connection, kubernetes:H5", request(b"/", &[(b"connection", b"close")]), Outcome::Reset),
        ("transfer-encoding, kubernetes:H5", request(b"/", &[(b"transfer-encoding", b"chunked")]), Outcome::Reset),
        ("two :path", request(b"/", &[(b":path", b"/b")]), Outcome::Reset),
        (
            "no :path",
            [field(b":method", b"GET"), field(b":scheme", b"http"), field(b":authority", b"a")].concat(),
            Outcome::Reset,
        ),
        (
            "a websocket over HTTP/2 (RFC 8441)",
            [
                field(b":method", b"CONNECT"),
                field(b":protocol", b"websocket"),
                field(b":scheme", b"http"),
                field(b":path", b"/"),
                field(b":authority", b"a"),
            ]
            .concat(),
            Outcome::Reset,
        ),
    ];
    for (name, block, expected) in cases {
        let found = ask(&server, &block);
        let refused = expected == Outcome::Reset && matches!(found, Outcome::GoAway | Outcome::Refused);
        assert!(found == expected || refused, "kubernetes:R2 {name}: {found:?}");
    }
    assert_eq!(server.hits(), 1);
}

#[test]
fn sizes_are_limited_as_on_http1() {
    let server = Server::with_limits(&Limits { header_count: 20, ..Limits::default() });
    let name = |index: usize| format!("h{index}").into_bytes();
    let names: Vec<Vec<u8>> = (0..21).map(name).collect();
    let fields: Vec<(&[u8], &[u8])> = names.iter().map(|name| (name.as_slice(), b"v".as_slice())).collect();
    assert_eq!(ask(&server, &request(b"/", &fields[..20])), Outcome::Answered);
    assert_eq!(ask(&server, &request(b"/", &fields)), Outcome::Refused);
}

/// Streams below `last`, each reset as soon as it has begun.
fn burst_of_resets(last: u32) -> Vec<u8> {
    let mut burst = Vec::new();
    for stream in (1..last).step_by(2) {
        burst.extend(frame(1, END_STREAM | END_HEADERS, stream, &request(b"/slow", &[])));
        burst.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    burst
}

#[test]
fn kubernetes_r4_a_flood_of_resets_ends_the_connection() {
    let server = Server::start();
    let mut client = server.connect();
    begin(&mut client);
    let _ = client.0.write_all(&burst_of_resets(2001));
    assert!(matches!(outcome(&mut client), Outcome::GoAway | Outcome::Closed));
    assert!(server.hits() <= 200, "{}", server.hits());
    assert_eq!(ask(&server, &request(b"/", &[])), Outcome::Answered, "others are not affected");
}

#[test]
fn an_address_that_floods_again_and_again_is_turned_away() {
    let server = Server::start();
    for number in 1..=3 {
        let mut client = server.connect();
        begin(&mut client);
        let _ = client.0.write_all(&burst_of_resets(2001));
        assert!(matches!(outcome(&mut client), Outcome::GoAway | Outcome::Closed));
        server.await_metric(&format!("protocol_errors_total{{kind=\"flood\"}} {number}"));
        eventually("the connection is gone", || server.connections() == 0);
    }
    assert_eq!(server.connect().rest(), "");
    server.await_metric("connections_refused_total{reason=\"flood\"} 1");
}

/// Resets streams one after the other, each once it is served, so that the limit on resets that nobody has looked at
/// does not apply. Returns the number of the stream at which the connection was over, or `last`.
fn reset_one_by_one(server: &Server, client: &mut Client<TcpStream>, last: u32) -> u32 {
    let mut stream = 1;
    while stream < last {
        let hits = server.hits();
        let asked = client.0.write_all(&frame(1, END_STREAM | END_HEADERS, stream, &request(b"/slow", &[])));
        let start = Instant::now();
        while asked.is_ok() && server.hits() == hits && server.connections() == 1 {
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        if asked.is_err() || server.connections() == 0 {
            break;
        }
        let _ = client.0.write_all(&frame(3, 0, stream, &[0, 0, 0, 8]));
        stream += 2;
    }
    stream
}

#[test]
fn kubernetes_r4_resets_one_by_one_end_the_connection_too() {
    let server = Server::start();
    let mut client = server.connect();
    begin(&mut client);
    eventually("it is taken", || server.connections() == 1);
    let ended = reset_one_by_one(&server, &mut client, 2001);
    assert!((390..420).contains(&ended), "{ended}");
    server.await_metric("protocol_errors_total{kind=\"flood\"} 1");
}

/// One person who cancels a hundred requests must not cost all others their streams.
#[test]
fn resets_do_not_end_the_connection_of_a_trusted_proxy_with_the_streams_of_others() {
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let server = Server::with(Listener { trusted_proxies: trusted, ..listener("main") }, &Limits::default());
    for is_burst in [false, true] {
        let mut client = server.connect();
        begin(&mut client);
        eventually("it is taken", || server.connections() == 1);
        if is_burst {
            client.send(burst_of_resets(1001));
        } else {
            assert_eq!(reset_one_by_one(&server, &mut client, 1001), 1001);
        }
        client.send(frame(1, END_STREAM | END_HEADERS, 1001, &request(b"/", &[])));
        let answered = std::iter::from_fn(|| next(&mut client)).any(|(kind, _, stream, _)| (kind, stream) == (1, 1001));
        assert!(answered, "another stream of the same connection, is burst: {is_burst}");
        drop(client);
        eventually("it is gone", || server.connections() == 0);
    }
}

/// Regression: small pieces of a body ended the connection with all its requests, and counted against the address.
#[test]
fn small_pieces_of_a_body_that_wait_end_no_connection_of_many_and_are_no_flood() {
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    for trusted_proxies in [trusted, Vec::new()] {
        let of_many = !trusted_proxies.is_empty();
        let server = Server::with(Listener { trusted_proxies, ..listener("main") }, &Limits::default());
        let mut client = server.connect();
        begin(&mut client);
        // Nobody reads it.
        client.send(frame(1, END_HEADERS, 1, &request(b"/slow", &[])));
        for _ in 0..2100 {
            let _ = client.0.write_all(&frame(0, 0, 1, b"x"));
        }
        let _ = client.0.write_all(&frame(1, END_STREAM | END_HEADERS, 3, &request(b"/", &[])));
        let answered = std::iter::from_fn(|| next(&mut client)).any(|(kind, _, stream, _)| (kind, stream) == (1, 3));
        assert_eq!(answered, of_many, "another stream of the same connection");
        if !of_many {
            server.await_metric("protocol_errors_total{kind=\"http2\"} 1");
        }
    }
}

/// Regression: empty pieces were counted as small ones that wait, so a client that kept sending them was never refused.
#[test]
fn empty_pieces_of_a_body_are_a_flood() {
    let server = Server::start();
    for (number, empty) in [(1, frame(0, 0, 1, &[])), (2, frame(0, 8, 1, &[0]))] {
        let mut client = server.connect();
        begin(&mut client);
        client.send(frame(1, END_HEADERS, 1, &request(b"/slow", &[])));
        let _ = client.0.write_all(&empty.repeat(101));
        assert!(matches!(outcome(&mut client), Outcome::GoAway | Outcome::Closed));
        server.await_metric(&format!("protocol_errors_total{{kind=\"flood\"}} {number}"));
    }
}

#[test]
fn a_preface_that_does_not_end_and_a_connection_without_request_have_deadlines() {
    let limits =
        Limits { header_timeout: Span::from_millis(100), idle_timeout: Span::from_millis(150), ..Limits::default() };
    let server = Server::with_limits(&limits);
    assert_eq!(server.exchange(&PREFACE[..10]), "");
    let mut client = server.connect();
    begin(&mut client);
    assert_eq!(outcome(&mut client), Outcome::Closed);
    server.await_metric("connections_expired_total{phase=\"head\"} 1");

    // Idle: pings do not prolong it.
    let mut client = server.connect();
    begin(&mut client);
    client.send(frame(1, END_STREAM | END_HEADERS, 1, &request(b"/", &[])));
    let start = Instant::now();
    while client.0.write_all(&frame(6, 0, 0, &[0; 8])).is_ok() {
        assert!(start.elapsed() < PATIENCE, "still open");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.await_metric("connections_expired_total{phase=\"idle\"} 1");
}

#[test]
fn a_stream_that_the_client_does_not_take_from_ends_its_connection() {
    let server = Server::with_limits(&Limits { stream_idle_timeout: Span::from_millis(200), ..Limits::default() });
    let mut client = server.connect();
    begin(&mut client);
    client.send(frame(1, END_STREAM | END_HEADERS, 1, &request(b"/endless", &[])));
    // Answered pings show that the client is alive; only the window of the stream stays closed.
    let start = Instant::now();
    while client.0.write_all(&frame(6, 0, 0, &[0; 8])).is_ok() {
        assert!(start.elapsed() < PATIENCE, "still open");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.await_metric("connections_expired_total{phase=\"stalled\"} 1");
}

/// Regression: one stream that nobody reads ended the connection, and with it the streams that others wait for.
#[test]
fn an_unread_stream_ends_without_its_idle_neighbour() {
    let server = Server::with_limits(&Limits { stream_idle_timeout: Span::from_millis(200), ..Limits::default() });
    let mut client = server.connect();
    begin(&mut client);
    // The connection has room.
    client.send(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()));
    client.send(frame(1, END_STREAM | END_HEADERS, 1, &request(b"/parts", &[])));
    client.send(frame(1, END_STREAM | END_HEADERS, 3, &request(b"/endless", &[])));
    let mut frames = std::iter::from_fn(|| next(&mut client));
    assert!(frames.any(|(kind, _, stream, _)| (kind, stream) == (3, 3)), "it is reset");
    server.fixture.gate.add_permits(1);
    assert!(frames.any(|(kind, _, stream, payload)| (kind, stream) == (0, 1) && payload == b"rest"), "the other one");
}

/// Regression: the response was cut, as Doorward counted nothing as in progress once the HTTP library had all of it.
#[test]
fn the_end_of_an_answer_that_a_slow_client_still_takes_is_not_cut() {
    let idle = Span::from_millis(200);
    let server = Server::with_limits(&Limits { idle_timeout: idle, header_timeout: idle, ..Limits::default() });
    let mut client = server.connect();
    begin(&mut client);
    client.send(frame(1, END_STREAM | END_HEADERS, 1, &request(b"/whole", &[])));
    // Longer than an idle connection stays open.
    let start = Instant::now();
    while start.elapsed() < idle.get() * 5 {
        client.send(frame(6, 0, 0, &[0; 8]));
        std::thread::sleep(Duration::from_millis(5));
    }
    for stream in [0, 1] {
        client.send(frame(WINDOW_UPDATE, 0, stream, &(1_u32 << 20).to_be_bytes()));
    }
    let mut length = 0;
    while let Some((kind, flags, _, payload)) = next(&mut client) {
        if kind == 0 {
            length += payload.len();
            if flags & END_STREAM != 0 {
                break;
            }
        }
    }
    assert_eq!(length, WHOLE);
    // With the last of it the connection is idle.
    server.await_metric("connections_expired_total{phase=\"idle\"} 1");
}

async fn connect(server: &Server) -> (SendRequest<Empty<Bytes>>, tokio::task::JoinHandle<hyper::Result<()>>) {
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    (sender, tokio::spawn(connection))
}

async fn get(sender: &mut SendRequest<Empty<Bytes>>, path: &str) -> hyper::Result<String> {
    let request = Request::get(format!("http://a{path}")).body(Empty::new()).unwrap();
    let body = sender.send_request(request).await?.into_body().collect().await?;
    Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn prior_knowledge_in_clear_and_drain_by_goaway() {
    let server = Server::start();
    let (mut sender, connection) = connect(&server).await;
    assert!(get(&mut sender, "/").await.unwrap().contains("protocol=h2"));
    let mut waiting = sender.clone();
    let slow = tokio::spawn(async move { get(&mut waiting, "/slow").await });
    while server.hits() < 2 {
        tokio::task::yield_now().await;
    }
    let drain = server.downstream().drain().clone();
    drain.begin();
    while get(&mut sender, "/").await.is_ok() {}
    // From now on a connection gets one response and GOAWAY.
    let (mut late, ended) = connect(&server).await;
    assert!(get(&mut late, "/").await.is_ok());
    ended.await.unwrap().unwrap();
    drain.close();
    server.fixture.gate.add_permits(1);
    assert_eq!(slow.await.unwrap().unwrap(), "slow");
    connection.await.unwrap().unwrap();
    assert_eq!(drain.wait(PATIENCE).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connection_close_of_a_response_is_goaway() {
    let server = Server::start();
    let (mut sender, connection) = connect(&server).await;
    assert_eq!(get(&mut sender, "/close").await.unwrap(), "closing");
    connection.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_panic_ends_its_stream_only() {
    let server = Server::start();
    let (mut sender, _connection) = connect(&server).await;
    assert!(get(&mut sender, "/panic").await.is_err());
    assert!(get(&mut sender, "/").await.is_ok());
}

/// Nothing else shows that it is gone while a response is being made.
#[test]
fn a_client_that_does_not_answer_to_a_ping_is_given_up() {
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let interval = Span::from_millis(300);
    let server = Server::with_limits(&Limits { http2_ping_interval: interval, ..Limits::default() });
    for is_there in [true, false] {
        let mut client = server.connect();
        begin(&mut client);
        client.send(frame(1, END_STREAM | END_HEADERS, 1, &request(b"/slow", &[])));
        let (begun, mut pings) = (Instant::now(), 0);
        while let Some((kind, flags, _, payload)) = next(&mut client) {
            if kind == PING && flags & ACK == 0 {
                pings += 1;
                if is_there {
                    client.send(frame(PING, ACK, 0, &payload));
                }
            }
            // Longer than the first ping is waited for.
            if pings == 4 {
                break;
            }
        }
        assert_eq!(pings == 4, is_there, "{pings} pings, is there: {is_there}");
        assert!(begun.elapsed() < PATIENCE, "is there: {is_there}");
    }
}
