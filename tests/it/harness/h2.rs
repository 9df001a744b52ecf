//! HTTP/2 frames as a test writes them: client libraries refuse to send what Doorward must refuse.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `:status: 200`.
    Ok,
    /// Another status.
    Refused,
    /// The stream was reset.
    Reset,
    /// The connection was closed.
    Closed,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A string of HPACK without Huffman coding (RFC 7541 section 5.2).
fn string(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match u8::try_from(text.len()) {
        Ok(short @ 0..127) => bytes.push(short),
        _ => {
            bytes.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).unwrap());
        }
    }
    bytes.extend(text);
    bytes
}

/// A header block of literal fields without indexing.
fn block<N: AsRef<str>, V: AsRef<str>>(fields: &[(N, V)]) -> Vec<u8> {
    let field = |(name, value): &(N, V)| {
        [vec![0], string(name.as_ref().as_bytes()), string(value.as_ref().as_bytes())].concat()
    };
    fields.iter().flat_map(field).collect()
}

/// The pseudo-header fields of a request.
fn asks(method: &str, authority: &str, path: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)])
}

async fn connect(address: SocketAddr) -> TcpStream {
    connect_with(address, &[]).await
}

/// Connects with these settings.
async fn connect_with(address: SocketAddr, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, settings)].concat();
    stream.write_all(&hello).await.unwrap();
    stream
}

/// A received frame.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let [_, _, _, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await?;
    Ok(Frame { kind, flags, stream: u32::from_be_bytes(id), payload })
}

/// Reads and discards everything until the connection ends.
async fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {}
}

/// The initial frames of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    pub streams: u32,
    pub stream_window: u32,
    pub connection_window: u32,
}

/// Reads how many streams a client may open and how much it may send initially (RFC 9113 sections 6.5.2 and 6.9).
pub async fn hello(address: SocketAddr) -> Hello {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut stream = connect(address).await;
    let mut hello = Hello { connection_window: 65_535, ..Hello::default() };
    super::within(async {
        let (mut is_set, mut is_widened) = (false, false);
        while !(is_set && is_widened) {
            let Frame { kind, flags, stream: id, payload } = read(&mut stream).await.unwrap();
            let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
            match kind {
                SETTINGS if flags == 0 => {
                    for setting in payload.chunks(6) {
                        match u16::from_be_bytes([setting[0], setting[1]]) {
                            MAX_CONCURRENT_STREAMS => hello.streams = number(&setting[2..]),
                            INITIAL_WINDOW_SIZE => hello.stream_window = number(&setting[2..]),
                            _ => {}
                        }
                    }
                    is_set = true;
                }
                WINDOW_UPDATE if id == 0 => {
                    hello.connection_window += number(&payload);
                    is_widened = true;
                }
                _ => {}
            }
        }
    })
    .await;
    hello
}

/// Requests `path` with the largest window, and reads nothing of the response.
pub async fn ask_and_not_read(address: SocketAddr, path: &str, authority: &str) -> TcpStream {
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    const LARGEST: u32 = (1 << 31) - 1;
    let window = [&INITIAL_WINDOW_SIZE[..], &LARGEST.to_be_bytes()].concat();
    let mut stream = connect_with(address, &window).await;
    let all = [
        frame(WINDOW_UPDATE, 0, 0, &(LARGEST - 65_535).to_be_bytes()),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, &asks("GET", authority, path)),
    ];
    stream.write_all(&all.concat()).await.unwrap();
    stream
}

/// Sends one request without a body, with exactly these fields, on a connection of its own.
pub async fn ask(address: SocketAddr, fields: &[(String, String)]) -> Outcome {
    let mut stream = connect(address).await;
    let _ = stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields))).await;
    outcome(&mut stream).await
}

/// Sends requests without bodies on one connection, one after the other. Returns for each whether the server had asked
/// to reconnect by its response.
pub async fn are_sent_away(address: SocketAddr, requests: &[Vec<(String, String)>]) -> Vec<bool> {
    const OURS: &[u8; 8] = b"is there";
    let mut stream = connect(address).await;
    let mut sent_away = Vec::new();
    super::within(async {
        for (id, fields) in (1..).step_by(2).zip(requests) {
            stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, id, &block(fields))).await.unwrap();
            let mut is_sent_away = false;
            loop {
                let Frame { kind, payload, .. } = read(&mut stream).await.unwrap();
                match kind {
                    // Whatever the server had to say by then precedes the answer to this.
                    HEADERS => stream.write_all(&frame(PING, 0, 0, OURS)).await.unwrap(),
                    GOAWAY => is_sent_away = true,
                    PING if payload == OURS => break,
                    _ => {}
                }
            }
            sent_away.push(is_sent_away);
        }
    })
    .await;
    sent_away
}

/// Sends requests without bodies all at once, on one connection, and returns the outcome of each.
pub async fn ask_at_once(address: SocketAddr, requests: &[Vec<(String, String)>]) -> Vec<Outcome> {
    let mut stream = connect(address).await;
    let ids = (1..).step_by(2);
    let frames = ids.zip(requests).map(|(id, fields)| frame(HEADERS, END_STREAM | END_HEADERS, id, &block(fields)));
    stream.write_all(&frames.collect::<Vec<_>>().concat()).await.unwrap();
    let mut outcomes = vec![None; requests.len()];
    while outcomes.contains(&None) {
        match next(&mut stream).await {
            (_, Outcome::Closed) => break,
            (id, outcome) => outcomes[id as usize / 2] = Some(outcome),
        }
    }
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Closed)).collect()
}

/// The outcome of the next request that is answered.
async fn outcome(stream: &mut TcpStream) -> Outcome {
    next(stream).await.1
}

/// The same, and the stream of that request.
async fn next(stream: &mut TcpStream) -> (u32, Outcome) {
    super::within(async {
        loop {
            let Ok(Frame { kind, stream: id, payload, .. }) = read(stream).await else { return (0, Outcome::Closed) };
            match (kind, payload.first()) {
                // `:status: 200` is entry 8 of the static table (RFC 7541 appendix A).
                (HEADERS, Some(0x88)) => return (id, Outcome::Ok),
                (HEADERS, _) => return (id, Outcome::Refused),
                (RST_STREAM, _) => return (id, Outcome::Reset),
                (GOAWAY, _) => return (0, Outcome::Closed),
                _ => {}
            }
        }
    })
    .await
}

/// Opens and resets `count` streams, and waits until the connection ends.
pub async fn flood(address: SocketAddr, count: u32, path: &str, authority: &str) {
    let mut stream = connect(address).await;
    let block = asks("GET", authority, path);
    for id in (0..count).map(|index| 2 * index + 1) {
        let open = frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
        let reset = frame(RST_STREAM, 0, id, &8_u32.to_be_bytes());
        if stream.write_all(&[open, reset].concat()).await.is_err() {
            return;
        }
    }
    super::within(drain(&mut stream)).await;
}

/// Opens and resets `count` streams in one write, then sends another request on the same connection, and returns its
/// outcome.
pub async fn reset_at_once(address: SocketAddr, count: u32, path: &str, authority: &str) -> Outcome {
    let mut stream = connect(address).await;
    let block = asks("GET", authority, path);
    let open = |id| frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
    let last = 2 * count + 1;
    let resets =
        (0..count).map(|index| 2 * index + 1).flat_map(|id| [open(id), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())]);
    let all = resets.chain([open(last)]).collect::<Vec<_>>().concat();
    let _ = stream.write_all(&all).await;
    loop {
        match next(&mut stream).await {
            (id, outcome) if id == last || outcome == Outcome::Closed => return outcome,
            _ => {}
        }
    }
}

/// Frames that cost the sender nothing and have no effect.
#[derive(Clone, Copy, Debug)]
pub enum Idle {
    /// Parts of a body without a byte in them (CVE-2019-9518).
    EmptyData,
    /// Settings that set nothing, each of which must be acknowledged (CVE-2019-9515).
    Settings,
    /// Pings, each of which must be answered (CVE-2019-9512).
    Pings,
}

/// Sends such frames until the connection ends. With `reads`, the answers are read.
pub async fn idle_flood(address: SocketAddr, idle: Idle, reads: bool, authority: &str) {
    let mut stream = connect(address).await;
    let one = match idle {
        Idle::EmptyData => {
            let _ = stream.write_all(&frame(HEADERS, END_HEADERS, 1, &asks("POST", authority, "/x"))).await;
            frame(DATA, 0, 1, &[])
        }
        Idle::Settings => frame(SETTINGS, 0, 0, &[]),
        Idle::Pings => frame(PING, 0, 0, &[0; 8]),
    };
    let many = one.repeat(1000);
    let (mut from, mut to) = stream.into_split();
    let taking = tokio::spawn(async move {
        if reads {
            drain(&mut from).await;
        }
        from
    });
    super::within(async { while to.write_all(&many).await.is_ok() {} }).await;
    drop(super::within(taking).await.unwrap());
}

/// Requests a response that continues, and once it has begun sends empty parts of another request's body until the
/// connection ends.
pub async fn flood_beside(address: SocketAddr, path: &str, authority: &str) {
    let mut stream = connect(address).await;
    let _ = stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &asks("GET", authority, path))).await;
    assert_eq!(outcome(&mut stream).await, Outcome::Ok);
    let _ = stream.write_all(&frame(HEADERS, END_HEADERS, 3, &asks("POST", authority, "/x"))).await;
    let many = frame(DATA, 0, 3, &[]).repeat(1000);
    super::within(async { while stream.write_all(&many).await.is_ok() {} }).await;
}

/// Sends a header block that never ends, `count` frames of 16 KiB (CVE-2024-27316), until the connection ends.
pub async fn continuation_flood(address: SocketAddr, count: usize) {
    let mut stream = connect(address).await;
    // Literal fields without indexing, each with a long value.
    let field = [vec![0], string(b"x-flood"), string(&[b'a'; 16_000])].concat();
    let mut sent = stream.write_all(&frame(HEADERS, END_STREAM, 1, &field)).await;
    for _ in 0..count {
        if sent.is_err() {
            break;
        }
        sent = stream.write_all(&frame(CONTINUATION, 0, 1, &field)).await;
    }
    super::within(drain(&mut stream)).await;
}

/// Sends `streams` requests whose header blocks of about 15 KiB expand to 60 MiB each: a field is put into the HPACK
/// table once and referred to by one byte thousands of times.
pub async fn header_bomb(address: SocketAddr, streams: u32, path: &str, authority: &str) -> Vec<Outcome> {
    let mut stream = connect(address).await;
    let fields = asks("GET", authority, path);
    // With incremental indexing (RFC 7541 section 6.2.1); the newest field of the table is number 62.
    let large = [vec![0x40], string(b"x-bomb"), string(&[b'a'; 4000])].concat();
    let first = [fields.clone(), large, vec![0x80 | 62; 12_000]].concat();
    let later = [fields, vec![0x80 | 62; 15_000]].concat();
    for index in 0..streams {
        let block = if index == 0 { &first } else { &later };
        if stream.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * index + 1, block)).await.is_err() {
            break;
        }
    }
    let mut outcomes = Vec::new();
    while outcomes.len() < streams as usize {
        let outcome = outcome(&mut stream).await;
        outcomes.push(outcome);
        if outcome == Outcome::Closed {
            break;
        }
    }
    outcomes
}
