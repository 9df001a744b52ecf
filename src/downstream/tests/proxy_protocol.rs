use super::*;
use crate::{config::values::Span, downstream::proxy_protocol::V2_SIGNATURE};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const V1: &[u8] = b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n";

pub(super) fn v2(command: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [V2_SIGNATURE.as_slice(), &[command, 0x11], &length, rest].concat()
}

fn behind_balancer(limits: &Limits) -> Server {
    Server::with(Listener { proxy_protocol_from: vec!["127.0.0.0/8".parse().unwrap()], ..listener("main") }, limits)
}

#[test]
fn a_listed_peer_must_speak_it() {
    let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x01, 0xbb];
    let cases: [(&str, Vec<u8>, Option<&str>); 9] = [
        ("v1", V1.to_vec(), Some("peer=192.0.2.7:12345")),
        ("v1 of nobody", b"PROXY UNKNOWN\r\n".to_vec(), Some("peer=127.0.0.1:")),
        ("v2", v2(0x21, &addresses), Some("peer=192.0.2.7:12345")),
        (
            "v2 with extensions",
            v2(0x21, &[addresses.as_slice(), &[4, 0, 3, 1, 2, 3]].concat()),
            Some("peer=192.0.2.7:12345"),
        ),
        ("v2 of the balancer itself", v2(0x20, &addresses), Some("peer=127.0.0.1:")),
        ("none", Vec::new(), None),
        ("v1 malformed", b"PROXY TCP4 192.0.2 10.0.0.1 1 2\r\n".to_vec(), None),
        ("v1 without end", vec![b'P'; 200], None),
        ("v2 oversize", [V2_SIGNATURE.as_slice(), &[0x21, 0x11, 0x10, 0]].concat(), None),
    ];
    for (name, header, expected) in cases {
        let server = behind_balancer(&Limits::default());
        let answer = server.exchange(&[header.as_slice(), GET].concat());
        match expected {
            Some(peer) => assert!(answer.contains(peer), "{name}: {answer}"),
            None => {
                assert_eq!(answer, "", "{name}");
                server.await_metric("connections_refused_total{reason=\"proxy_header\"} 1");
            }
        }
    }
}

#[test]
fn a_header_may_arrive_in_pieces() {
    let server = behind_balancer(&Limits::default());
    let mut client = server.connect();
    for byte in [V1, GET].concat() {
        client.send([byte]);
    }
    assert!(client.rest().contains("peer=192.0.2.7:12345"));
}

#[test]
fn a_header_that_does_not_end_has_a_deadline() {
    let server = behind_balancer(&Limits { header_timeout: Span::from_millis(100), ..Limits::default() });
    assert_eq!(server.exchange(&V1[..20]), "");
    server.await_metric("connections_refused_total{reason=\"silent\"} 1");
}

#[test]
fn attacks_z36_only_listed_peers_may_send_the_proxy_protocol() {
    for header in [V1.to_vec(), v2(0x20, &[])] {
        let server = Server::start();
        assert_eq!(server.exchange(&[header.as_slice(), GET].concat()), "");
        server.await_metric("connections_refused_total{reason=\"proxy_peer\"} 1");
        assert_eq!(server.hits(), 0);
        assert_eq!(status(&server.exchange(GET)), "200");
    }
    let server = Server::start();
    let proppatch = server.exchange(b"PROPFIND / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&proppatch), "200", "a method that begins alike");
}

#[test]
fn the_limit_of_an_address_holds_for_the_announced_one() {
    let server = behind_balancer(&Limits { connections_per_address: 1, ..Limits::default() });
    let header = |host: u8| format!("PROXY TCP4 192.0.2.{host} 10.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for (client, host) in clients.iter_mut().zip(1..) {
        client.send(header(host));
        assert_eq!(status(&client.response()), "200");
    }
    assert_eq!(server.exchange(header(1).as_bytes()), "");
    server.await_metric("connections_refused_total{reason=\"address\"} 1");
}
