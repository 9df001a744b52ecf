//! The PROXY protocol, versions 1 and 2 (HAProxy, `proxy-protocol.txt`, revision 2020/03/05): the address of the
//! client as a load balancer in front saw it.
//!
//! A listed peer must begin each connection with a header and nobody else may: an optional header would let every
//! client choose its own address.

use std::{io, net::SocketAddr};

use ppp::{v1, v2};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// The maximum length of a version 1 header, line end included.
const V1_MAX: usize = 107;

/// The fixed part of a version 2 header: signature, version and command, family, length.
const V2_FIXED: usize = 16;

/// The maximum length of a version 2 header. The specification asks for 536; the rest is room for the extensions of
/// cloud load balancers and for the subject of a client certificate.
const V2_MAX: usize = 2048;

/// The beginning of a version 2 header.
pub(super) const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The beginning of a version 1 header.
pub(super) const V1_SIGNATURE: &[u8; 6] = b"PROXY ";

/// What the header says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The client, or `None` if the load balancer speaks for itself (`LOCAL`, `UNKNOWN`), as health checks do.
    pub source: Option<SocketAddr>,
    /// The length of the header in bytes.
    pub length: usize,
}

/// Why a header is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("the connection does not begin with a PROXY protocol header")]
    Missing,
    /// It is longer than what is read.
    #[error("the PROXY protocol header is too long")]
    TooLong,
    /// It begins like a header but is not one.
    #[error("the PROXY protocol header is malformed: {0}")]
    Malformed(String),
    /// The transport is not TCP over IPv4 or IPv6.
    #[error("the PROXY protocol header names a transport other than TCP")]
    Transport,
    #[error("the PROXY protocol header could not be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads the header and not one byte more, so that what follows is untouched for TLS. The caller limits the time.
pub(super) async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut buffer = Vec::with_capacity(128);
    let mut ahead = [0; 256];
    loop {
        let peeked = stream.peek(&mut ahead).await?;
        if peeked == 0 {
            return Err(HeaderError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let taken = buffer.len();
        buffer.extend_from_slice(ahead.get(..peeked).unwrap_or_default());
        match parse(&buffer)? {
            Some(found) => {
                let rest = found.length.saturating_sub(taken);
                stream.read_exact(buffer.get_mut(taken..taken + rest).unwrap_or_default()).await?;
                return Ok(found.source);
            }
            // All of it belongs to the header, so it is taken from the socket; otherwise the next peek would return at
            // once.
            None => {
                stream.read_exact(buffer.get_mut(taken..).unwrap_or_default()).await?;
            }
        }
    }
}

/// Parses the header at the beginning of `bytes`, which may go on after it. `None` asks for more bytes, and only as
/// long as all of them belong to the header.
pub fn parse(bytes: &[u8]) -> Result<Option<Announced>, HeaderError> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => parse_v1(bytes),
        Some(b'\r') => parse_v2(bytes),
        Some(_) => Err(HeaderError::Missing),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Announced>, HeaderError> {
    if !begins_alike(bytes, V1_SIGNATURE) {
        return Err(HeaderError::Missing);
    }
    let Some(line_end) = memchr::memchr(b'\n', bytes.get(..V1_MAX).unwrap_or(bytes)) else {
        return if bytes.len() >= V1_MAX { Err(HeaderError::TooLong) } else { Ok(None) };
    };
    let length = line_end + 1;
    let header = v1::Header::try_from(bytes.get(..length).unwrap_or_default())
        .map_err(|error| HeaderError::Malformed(error.to_string()))?;
    let source = match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(pair) => Some(SocketAddr::from((pair.source_address, pair.source_port))),
        v1::Addresses::Tcp6(pair) => Some(SocketAddr::from((pair.source_address, pair.source_port))),
    };
    Ok(Some(Announced { source, length }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Announced>, HeaderError> {
    if !begins_alike(bytes, V2_SIGNATURE) {
        return Err(HeaderError::Missing);
    }
    let Some([high, low]) = bytes.get(V2_FIXED - 2..V2_FIXED) else { return Ok(None) };
    let length = V2_FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if length > V2_MAX {
        return Err(HeaderError::TooLong);
    }
    let Some(bytes) = bytes.get(..length) else { return Ok(None) };
    let header = v2::Header::try_from(bytes).map_err(|error| HeaderError::Malformed(error.to_string()))?;
    let source = match (header.command, header.protocol, header.addresses) {
        (v2::Command::Local, ..) => None,
        (_, v2::Protocol::Stream, v2::Addresses::IPv4(pair)) => {
            Some(SocketAddr::from((pair.source_address, pair.source_port)))
        }
        (_, v2::Protocol::Stream, v2::Addresses::IPv6(pair)) => {
            Some(SocketAddr::from((pair.source_address, pair.source_port)))
        }
        _ => return Err(HeaderError::Transport),
    };
    Ok(Some(Announced { source, length }))
}

/// Whether one of the two is the beginning of the other.
pub(super) fn begins_alike(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.iter().zip(pattern).all(|(byte, expected)| byte == expected)
}

/// Fuzz target: whatever the bytes, [`parse`] returns, stays within its bounds, asks for more only below them and only
/// as long as all bytes belong to the header, and does not change its result when more bytes follow.
#[cfg(any(test, fuzzing))]
pub fn fuzz_proxy_header(bytes: &[u8]) {
    match parse(bytes) {
        Ok(Some(found)) => {
            assert!(found.length <= bytes.len() && found.length <= V2_MAX);
            let header = bytes.get(..found.length).unwrap_or_default();
            // What follows the header does not affect it, and nothing shorter is a header.
            assert!(matches!(parse(header), Ok(Some(again)) if again == found));
            for cut in 0..found.length {
                assert!(matches!(parse(header.get(..cut).unwrap_or_default()), Ok(None)), "cut at {cut}");
            }
        }
        Ok(None) => assert!(bytes.len() < V2_MAX),
        Err(_) => {
            let longer = [bytes, b"\r\n\0 1 2 3\r\n"].concat();
            assert!(parse(&longer).is_err(), "an error is mended by more bytes");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE.as_slice(), &[command, family], &length, addresses].concat()
    }

    const FOUR: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0x01, 0xbb];

    #[test]
    fn headers_that_are_well_formed() {
        let mut six = [0; 36];
        six[15] = 1;
        six[31] = 2;
        six[32..34].copy_from_slice(&[0x30, 0x39]);
        let cases: [(&str, Vec<u8>, Option<&str>); 6] = [
            ("v1 IPv4", b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n".to_vec(), Some("192.0.2.7:12345")),
            ("v1 IPv6", b"PROXY TCP6 2001:db8::7 ::1 12345 443\r\n".to_vec(), Some("[2001:db8::7]:12345")),
            ("v1 unknown", b"PROXY UNKNOWN\r\n".to_vec(), None),
            ("v2 IPv4", v2(0x21, 0x11, &FOUR), Some("192.0.2.7:12345")),
            ("v2 IPv6", v2(0x21, 0x21, &six), Some("[::1]:12345")),
            ("v2 local", v2(0x20, 0x00, &[]), None),
        ];
        for (name, header, source) in cases {
            let length = header.len();
            let found = parse(&[header.clone(), b"GET / HTTP/1.1\r\n".to_vec()].concat()).unwrap().unwrap();
            assert_eq!(found, Announced { source: source.map(|text| text.parse().unwrap()), length }, "{name}");
            for cut in 0..length {
                assert!(parse(&header[..cut]).unwrap().is_none(), "{name} cut at {cut}");
            }
        }
    }

    #[test]
    fn the_corpus_has_addresses_in_both_versions() {
        let inputs = crate::fuzz::corpus("proxy_protocol");
        let versions: [&[u8]; 2] = [V1_SIGNATURE, V2_SIGNATURE];
        for version in versions {
            let mut of_version = inputs.iter().filter(|bytes| bytes.starts_with(version));
            let tells = |bytes: &Vec<u8>| matches!(parse(bytes), Ok(Some(found)) if found.source.is_some());
            assert!(of_version.any(tells), "{version:?}");
        }
    }

    #[test]
    fn headers_that_are_not() {
        let cases: [(&str, Vec<u8>); 11] = [
            ("a request", b"POST / HTTP/1.1\r\n".to_vec()),
            ("the beginning of a request, which is not waited for", b"PO".to_vec()),
            ("a blank line before a request", b"\r\nGE".to_vec()),
            ("TLS", b"\x16\x03\x01\x02\x00".to_vec()),
            ("v1 bad address", b"PROXY TCP4 192.0.2.256 10.0.0.1 1 2\r\n".to_vec()),
            ("v1 family and address differ", b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec()),
            ("v1 bare LF", b"PROXY TCP4 192.0.2.7 10.0.0.1 1 2\n".to_vec()),
            ("v1 too long", [b"PROXY TCP4 ".as_slice(), &[b'1'; V1_MAX]].concat()),
            ("v2 too long", [V2_SIGNATURE.as_slice(), &[0x21, 0x11, 0xff, 0xff]].concat()),
            ("v2 datagram", v2(0x21, 0x12, &FOUR)),
            ("v2 too short for its family", v2(0x21, 0x11, &FOUR[..8])),
        ];
        for (name, bytes) in cases {
            assert!(parse(&bytes).is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_header_that_never_arrives_is_not_awaited() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for sent in ["", "PROXY TCP4 "] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut client, sent.as_bytes()).await.unwrap();
            drop(client);
            let outcome = tokio::time::timeout(Duration::from_secs(60), read(&mut stream)).await.unwrap();
            assert!(outcome.is_err(), "{sent:?}: {outcome:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz_proxy_header(&bytes);
        }

        #[test]
        fn never_panics_after_the_signature(bytes in prop::collection::vec(any::<u8>(), 0..300), second in any::<bool>()) {
            let signature: &[u8] = if second { V2_SIGNATURE } else { V1_SIGNATURE };
            fuzz_proxy_header(&[signature, &bytes].concat());
        }
    }
}
