use std::net::Shutdown;

use super::*;
use crate::config::values::Size;

/// The row, the head and what follows it, the status, or `closed` where there is none, and how many requests are
/// served. Each connection is closed afterwards.
const SMUGGLING: &[(&str, &str, &str, usize)] = &[
    (
        "kubernetes:R1 length and coding",
        "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 coding and length",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 xchunked",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 chunked is not last",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 a coding before chunked",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 chunked twice",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 bare LF in a chunk size",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        "400",
        1,
    ),
    (
        "kubernetes:R1 bare LF in a chunk extension",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n",
        "400",
        1,
    ),
    ("kubernetes:R1 obs-fold", "POST /read HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n", "400", 0),
    ("kubernetes:R1 space before the colon", "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n", "400", 0),
    ("kubernetes:R1 space before the first name", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400", 0),
    (
        "kubernetes:R1 two lengths that differ",
        "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 two lengths that agree",
        "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "400",
        0,
    ),
    ("kubernetes:R1 a list of lengths", "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n", "400", 0),
    ("kubernetes:R1 a length with a sign", "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n", "400", 0),
    ("kubernetes:R1 bare LF after a header", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "400", 0),
    ("kubernetes:R1 bare LF at the end of the head", "GET / HTTP/1.1\r\nHost: a\r\n\n", "400", 0),
    ("kubernetes:R1 bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "400", 0),
    ("kubernetes:R1 NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", "400", 0),
    ("kubernetes:R1 NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n", "400", 0),
    (
        "kubernetes:R1 a coding in HTTP/1.0",
        "POST /read HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
        0,
    ),
    (
        "kubernetes:R1 chunked behind another body",
        "POST /close HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "200",
        1,
    ),
    (
        "kubernetes:U4 a request behind a chunked body",
        "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "200",
        1,
    ),
    ("not HTTP", "\x16\x03\x01 hello\r\n\r\n", "400", 0),
    ("HTTP/0.9", "GET /\r\n\r\n", "400", 0),
    ("HTTP/3.0", "GET / HTTP/3.0\r\n\r\n", "400", 0),
    ("a tunnel", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "405", 0),
];

#[test]
fn kubernetes_r1_ambiguous_requests_are_refused_and_the_connection_closed() {
    for (row, bytes, expected, hits) in SMUGGLING {
        let server = Server::start();
        let answer = server.exchange(bytes.as_bytes());
        assert_eq!(status(&answer), *expected, "{row}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{row}: {answer}");
        assert_eq!(server.hits(), *hits, "{row}");
    }
}

#[test]
fn kubernetes_r1_a_head_in_pieces_is_judged_the_same() {
    let server = Server::start();
    for (row, bytes, expected, _) in &SMUGGLING[..2] {
        let mut client = server.connect();
        for piece in bytes.as_bytes().chunks(7) {
            client.send(piece);
        }
        assert_eq!(status(&client.rest()), *expected, "{row}");
    }
    assert_eq!(server.hits(), 0);
}

/// The connection was closed all the same, and a client that sent its next request over it lost that one.
#[test]
fn a_refusal_before_the_end_of_the_body_says_that_the_connection_ends() {
    let server = Server::start();
    for (row, request, closes) in [
        (
            "the client waits",
            "POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
            true,
        ),
        ("the client sends on", "POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", true),
        ("all is there", "POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nfull", false),
        ("there is none", "GET /refused HTTP/1.1\r\nHost: a\r\n\r\n", false),
    ] {
        let mut client = server.connect();
        client.send(request);
        let refused = client.response();
        assert_eq!(status(&refused), "403", "{row}: {refused}");
        assert_eq!(refused.to_lowercase().contains("connection: close"), closes, "{row}: {refused}");
    }
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf");
    let accepted = client.response();
    assert_eq!(status(&accepted), "200", "{accepted}");
    assert!(!accepted.to_lowercase().contains("connection: close"), "it is no refusal: {accepted}");
}

#[test]
fn kubernetes_r1_twins_that_are_well_formed_are_served() {
    let server = Server::start();
    let mut client = server.connect();
    for (name, request, answer) in [
        ("a length", "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd", "4"),
        (
            "a body like a head",
            "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 43\r\n\r\n\nTransfer-Encoding: chunked\nContent-Length:",
            "43",
        ),
        ("an empty line before", "\r\nPOST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na", "1"),
        (
            "two behind each other",
            "GET /read HTTP/1.1\r\nHost: a\r\n\r\nPOST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
            "0",
        ),
        ("the second of them", "", "2"),
        (
            "chunked, the last",
            "POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "3",
        ),
    ] {
        client.send(request);
        let response = client.response();
        assert!(
            response.starts_with("HTTP/1.1 200") && response.ends_with(&format!("\r\n{answer}")),
            "{name}: {response}"
        );
    }
    assert_eq!(client.rest(), "");
}

#[test]
fn kubernetes_r1_bytes_after_a_body_are_parsed_as_a_request() {
    let server = Server::start();
    let evil = "POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nabPOST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for piece in [evil.len(), 9, 1] {
        let mut client = server.connect();
        for bytes in evil.as_bytes().chunks(piece) {
            client.send(bytes);
        }
        let answers = client.rest();
        assert!(answers.ends_with("Content-Length, Transfer-Encoding)"), "{answers}");
    }
}

#[test]
fn a_large_request_gets_the_status_that_says_what_is_large() {
    let server = Server::start();
    let request = |path: usize, count: usize, value: usize| {
        let mut text = format!("GET /{} HTTP/1.1\r\nHost: a\r\n", "p".repeat(path));
        for index in 1..count {
            text += &format!("h{index}: {}\r\n", "v".repeat(value));
        }
        text + "\r\n"
    };
    for (name, text, expected) in [
        ("all within the limits", request(8191, 4, 8000), "200"),
        ("a long target", request(8192, 1, 0), "414"),
        ("a target beyond all that is read", request(60_000, 1, 0), "431"),
        ("as many headers as may be", request(1, 100, 1), "200"),
        ("one header more", request(1, 101, 1), "431"),
        ("headers of 33 KiB", request(1, 2, 33 << 10), "431"),
        ("headers beyond all that is read", request(1, 20, 9000), "431"),
    ] {
        let mut client = server.connect();
        client.send(&text);
        let response = client.response();
        assert_eq!(status(&response), expected, "{name}: {response}");
        if expected != "200" {
            assert_eq!(client.rest(), "", "{name}");
        }
    }
    assert_eq!(server.hits(), 2);
    server.await_metric("protocol_errors_total{kind=\"limit\"} 2");
    server.await_metric("protocol_errors_total{kind=\"head_too_large\"} 3");
}

#[test]
fn a_few_headers_beyond_a_large_limit_are_explained() {
    let server = Server::with_limits(&Limits { header_count: 150, ..Limits::default() });
    let request = |count: usize| {
        let lines: String = (1..count).map(|index| format!("h{index}: v\r\n")).collect();
        format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
    };
    for (count, expected) in [(150, "200"), (151, "431"), (178, "431")] {
        let mut client = server.connect();
        client.send(request(count));
        let response = client.response();
        assert_eq!(status(&response), expected, "{count}: {response}");
        assert_eq!(response.contains(&format!("{count} headers, 150 are allowed")), count > 150, "{count}: {response}");
    }
}

/// If the connection were closed while the browser still sends, the answer would be lost to a reset.
#[test]
fn the_answer_to_all_the_cookies_that_a_browser_can_have_is_not_lost() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nCookie: ");
    for cookie in 0..180 {
        client.send([b'c'; 4096]);
        if cookie == 40 {
            server.await_metric("protocol_errors_total{kind=\"head_too_large\"} 1");
        }
    }
    client.0.shutdown(Shutdown::Write).unwrap();
    server.await_metric("connections 0");
    assert_eq!(status(&client.response()), "431");
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    client.send([b'x'; 60_000]);
    assert_eq!(status(&client.response()), "200");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), "");
}

#[test]
fn kubernetes_u3_an_offer_of_h2c_is_not_taken() {
    let server = Server::start();
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n");
    assert!(client.response().contains("protocol=http/1.1"));
    assert_eq!(client.rest(), "", "what follows may be HTTP/2");
}

#[test]
fn a_panic_ends_its_connection_only() {
    let server = Server::start();
    let mut other = server.connect();
    assert_eq!(status(&other.get("/")), "200");
    assert_eq!(server.exchange(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n"), "");
    assert_eq!(status(&other.get("/")), "200");
    server.await_metric("panics_total 1");
    drop(other);
    eventually("all given back", || server.connections() == 0);
}

#[test]
fn connection_close_of_a_response_ends_the_connection() {
    let server = Server::start();
    let mut client = server.connect();
    assert!(client.get("/close").ends_with("closing"));
    assert_eq!(client.rest(), "");
}

/// Over HTTP/2 it is what is buffered for a client that does not read.
#[test]
fn how_much_of_a_body_is_read_at_once_can_be_set() {
    let largest = |body_buffer| {
        // Less than the buffer, which must have room for a head.
        let limits = Limits { header_bytes: Size::kib(1), uri_bytes: Size::kib(1), body_buffer, ..Limits::default() };
        let server = Server::with_limits(&limits);
        let mut client = server.connect();
        let body = vec![b'x'; 2 << 20];
        client.send(format!("POST /largest HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.send(&body);
        client.response().rsplit("\r\n").next().unwrap().parse::<usize>().unwrap()
    };
    let (little, much) = (largest(Size::kib(8)), largest(Size::mib(1)));
    assert!(little <= 16 << 10 && much >= 32 << 10, "{little} and {much} bytes");
}

/// The head promised a connection that ended with the body, as nothing else tells its end.
#[test]
fn a_body_of_unknown_length_in_http_1_0_ends_a_connection_that_is_not_said_to_be_kept() {
    let server = Server::start();
    server.fixture.gate.add_permits(2);
    for (path, is_kept) in [("/parts", false), ("/", true)] {
        let mut client = server.connect();
        client.send(format!("GET {path} HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n"));
        let answer = if is_kept { client.response() } else { client.rest() };
        let answer = answer.to_ascii_lowercase();
        assert_eq!(answer.contains("connection: keep-alive\r\n"), is_kept, "{answer}");
        assert_eq!(answer.contains("connection: close\r\n"), !is_kept, "{answer}");
    }
}
