//! The memory that a client takes before it has proved anything.

use super::{
    http2::{END_HEADERS, END_STREAM, begin, frame, next, request},
    *,
};

/// Of this, a client gets as much as four requests take, however small they are.
const OF_NINE: usize = 9 * (8 << 10);

/// A piece of a head or handshake of this limit cannot arrive whole.
const LITTLE: usize = 32 << 10;

fn server(memory: usize) -> Server {
    let server = Server::start();
    server.fixture.memory.set_limit(memory);
    server
}

fn slow(streams: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let one = |stream| frame(1, END_STREAM | END_HEADERS, stream, &request(b"/slow", &[]));
    streams.into_iter().flat_map(one).collect()
}

/// What a client sent before it stopped within a head, whatever became of its connection meanwhile.
fn stops_within(client: &mut Client<TcpStream>, bytes: &[u8]) {
    // The connection may be closed before all of it is sent.
    let _ = client.0.write_all(bytes);
    client.rest();
}

/// One address had the process killed by requests that waited for something.
#[test]
fn one_address_gets_503_for_more_requests_than_its_share_of_memory_and_others_are_answered() {
    let server = server(OF_NINE);
    let mut client = server.connect();
    begin(&mut client);
    client.send(slow([1, 3, 5, 7, 9]));
    let answer = loop {
        match next(&mut client) {
            Some((1, _, 9, block)) => break block,
            Some((1, _, stream, _)) => panic!("stream {stream} is answered"),
            Some(_) => {}
            None => panic!("the connection is closed"),
        }
    };
    // The indexed `:status: 200`.
    assert_ne!(answer[0], 0x88);
    assert_eq!(status(&server.connect_from_elsewhere().get("/")), "200");
    eventually("four wait", || server.hits() == 5);
    drop(client);
    eventually("all is given back", || server.fixture.memory.taken() == 0);
}

/// Refusals that nobody reads take as much memory as requests that wait.
#[test]
fn a_client_that_reads_no_refusals_loses_its_connection() {
    let server = server(OF_NINE);
    let mut client = server.connect();
    begin(&mut client);
    // INITIAL_WINDOW_SIZE: no answer has a body.
    client.send(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    stops_within(&mut client, &slow((0..12).map(|stream| 2 * stream + 1)));
    server.await_metric("connections_refused_total{reason=\"memory\"} 1");
    eventually("all is given back", || server.fixture.memory.taken() == 0);
}

/// Thousands of connections that stopped within a head had the process killed, before there was any request.
#[test]
fn a_large_head_that_stops_closes_its_connection_when_memory_is_short_and_small_ones_go_on() {
    let server = server(LITTLE);
    let mut small = server.connect();
    small.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(3000)));
    stops_within(&mut server.connect(), format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(20_000)).as_bytes());
    server.await_metric("connections_refused_total{reason=\"memory\"} 1");
    // Empty lines before a head are in the same buffer.
    stops_within(&mut server.connect(), &b"\r\n".repeat(10_000));
    server.await_metric("connections_refused_total{reason=\"memory\"} 2");
    eventually("all is given back", || server.fixture.memory.taken() == 0);
    small.send("\r\n\r\n");
    assert_eq!(status(&small.response()), "200");
}

#[test]
fn a_large_head_over_http2_that_stops_closes_its_connection_when_memory_is_short() {
    let server = server(LITTLE);
    let value = [b'x'; 120];
    let field: (&[u8], &[u8]) = (b"x", &value);
    let block = request(b"/", &[field; 150]);
    let mut client = server.connect();
    begin(&mut client);
    stops_within(&mut client, &frame(1, END_STREAM, 1, &block[..16_000]));
    server.await_metric("connections_refused_total{reason=\"memory\"} 1");
}
