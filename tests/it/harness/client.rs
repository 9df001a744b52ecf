//! A client that sends exactly the bytes that a test writes.

use std::net::{IpAddr, SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{Authority, Pair, connect_tls};

/// The headers of a WebSocket handshake (RFC 6455, section 1.3).
pub const HANDSHAKE: [&str; 4] = [
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// A response, read until its end or the end of the connection.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the peer closed the connection after it.
    pub closed: bool,
}

impl Answer {
    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}{}", self.head, self.text()))
    }

    /// The token of a successful response of a token endpoint.
    pub fn token(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// `reason` of problem+json, or of the first cause of a Kubernetes Status.
    pub fn reason(&self) -> String {
        let body = self.json();
        let reason = if body["kind"] == "Status" { &body["details"]["causes"][0]["reason"] } else { &body["reason"] };
        reason.as_str().unwrap_or_default().to_owned()
    }
}

/// The values of a header, in order; names are compared without case.
pub fn values<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// The transport of a connection: TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection on which any bytes can be sent.
pub struct Raw {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// Connects from another loopback address.
    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        Self::over(socket.connect(address).await.unwrap())
    }

    /// Connects over TLS for the host `name`, optionally with a client certificate.
    pub async fn tls(address: SocketAddr, authority: &Authority, certificate: Option<&Pair>, name: &str) -> Self {
        Self::over(connect_tls(address, &authority.client(&[], certificate), name).await.unwrap())
    }

    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The peer may have refused and closed already; its response is still to be read.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Closes the sending side.
    pub async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads one response. Panics if none arrives in time.
    pub async fn answer(&mut self) -> Answer {
        super::within(self.read_answer()).await
    }

    /// Reads until the peer closes. Panics if it does not in time.
    pub async fn rest(&mut self) -> Vec<u8> {
        super::within(async {
            while self.fill().await {}
            std::mem::take(&mut self.buffer)
        })
        .await
    }

    /// Waits for the next bytes; empty at the end.
    pub async fn some(&mut self) -> Vec<u8> {
        super::within(async {
            if self.buffer.is_empty() {
                self.fill().await;
            }
            std::mem::take(&mut self.buffer)
        })
        .await
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..))
    }

    async fn read_answer(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill().await {
                return Answer { status: 0, head: String::new(), body: std::mem::take(&mut self.buffer), closed: true };
            }
        };
        let head = String::from_utf8_lossy(&self.buffer.drain(..end).collect::<Vec<_>>()).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let mut answer = Answer { status, head, body: Vec::new(), closed: false };
        if let Some(length) = answer.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
            while self.buffer.len() < length && self.fill().await {}
            answer.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else if answer.header("transfer-encoding").is_some() {
            answer.body = self.read_chunks().await;
        } else if !matches!(status, 101 | 204 | 304) {
            while self.fill().await {}
            answer.body = std::mem::take(&mut self.buffer);
            answer.closed = true;
        }
        answer
    }

    async fn read_chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") else {
                if !self.fill().await {
                    return body;
                }
                continue;
            };
            let size = usize::from_str_radix(&String::from_utf8_lossy(&self.buffer[..at]), 16).unwrap_or_default();
            let whole = at + 2 + size + 2;
            while self.buffer.len() < whole {
                if !self.fill().await {
                    return body;
                }
            }
            body.extend_from_slice(&self.buffer[at + 2..at + 2 + size]);
            self.buffer.drain(..whole);
            if size == 0 {
                return body;
            }
        }
    }
}
