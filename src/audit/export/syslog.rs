//! Syslog over TCP or TLS: messages of RFC 5424, each prefixed by its length (RFC 6587 section 3.4.1, RFC 5425).
//!
//! Syslog has no acknowledgements. A line counts as received in three cases: the connection is still open so long after
//! it that the system would have dropped it otherwise, more was sent after it than buffers on the way hold, or the
//! server answered our end of the connection with its own. After a broken connection all other lines are sent again.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::ClientConfig;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::{
    facts::{Facts, Severity},
    settings::Unfit,
};
use crate::{
    clock::Timestamp,
    config::{raw, report::At, resolver::Resolver},
    upstream::{TlsClient, TlsIdentity, USER_TIMEOUT, keep_alive},
};

/// Facility 13, log audit, times eight.
const FACILITY: u8 = 13 * 8;
/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// How long to wait for a server to reject us. With TLS 1.3 it sees our certificate last.
const VERDICT: Duration = Duration::from_secs(1);
/// How long the server may take to answer the end of a connection.
const GOODBYE: Duration = Duration::from_secs(2);
/// The size of our send buffer, so that [`IN_FLIGHT`] exceeds the buffers of both sides together.
const SEND_BUFFER: usize = 256 << 10;

/// The idle time of a connection after which TCP keep-alive probes begin.
const QUIET: Duration = Duration::from_secs(30);

/// If a connection is still open after this time, the server's system has acknowledged what was sent.
pub(super) const SETTLES: Duration = USER_TIMEOUT.saturating_add(Duration::from_secs(5));
/// Once this many bytes were sent after a line, the server has read it, even with the largest receive buffer that Linux
/// sets by itself.
pub(super) const IN_FLIGHT: u64 = 8 << 20;

/// A syslog server.
#[derive(Clone)]
pub(super) struct Server {
    host: String,
    port: u16,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    config: Arc<ClientConfig>,
    /// The part of it that distinguishes connections.
    identity: TlsIdentity,
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        let identity = |server: &Self| server.tls.as_ref().map(|tls| tls.identity.clone());
        (&self.host, self.port, identity(self)) == (&other.host, other.port, identity(other))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Server {
    pub(super) fn resolve(raw: &raw::SyslogExport, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let Some((host, port)) = host_and_port(&raw.address) else {
            // Not repeated, because it may contain a password.
            resolver
                .error(&at.key("address"), "this is not a host with a port")
                .help("write `syslog.example.com:6514`");
            return None;
        };
        let tls = match &raw.tls {
            None => {
                let loopback = match &host {
                    Host::Domain(name) => name == "localhost",
                    Host::Ipv4(address) => address.is_loopback(),
                    Host::Ipv6(address) => address.is_loopback(),
                };
                if !loopback {
                    resolver
                        .warning(&at.key("address"), "the audit trail is sent there in clear text")
                        .help("set `tls: {}`, and `ca` within it for a private authority");
                }
                None
            }
            Some(tls) => {
                let client = TlsClient::resolve(tls, &host, &at.key("tls"), resolver)?;
                Some(Tls { config: Arc::new(client.config), identity: client.identity })
            }
        };
        let host = match host {
            Host::Domain(name) => name,
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        Some(Self { host, port, tls })
    }

    /// Connects, and checks whether the server keeps the connection open. Sends nothing.
    pub(super) async fn probe(&self) -> Result<(), Unfit> {
        let mut connection = self.connect().await.map_err(|error| Unfit::Unreachable(error.to_string()))?;
        if let Ok(why) = tokio::time::timeout(VERDICT, connection.ended()).await {
            return Err(Unfit::Refuses(why.to_string()));
        }
        // It does not matter how the server closes.
        let _ = connection.close().await;
        Ok(())
    }

    /// Connects.
    pub(super) async fn connect(&self) -> io::Result<Connection> {
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            keep_alive(&stream, QUIET)?;
            SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER)?;
            let stream: Box<dyn Stream> = match &self.tls {
                None => Box::new(stream),
                Some(Tls { config, identity }) => {
                    let name = identity.server_name.clone();
                    Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
                }
            };
            let (read, write) = tokio::io::split(stream);
            Ok(Connection { read, write, since: Instant::now() })
        };
        let timed_out = || io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT:?}"));
        tokio::time::timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(timed_out()))
    }
}

/// Parses `host:port`. The port is required.
fn host_and_port(text: &str) -> Option<(Host<String>, u16)> {
    let url = Url::parse(&format!("syslog://{text}")).ok()?;
    let more = !url.path().is_empty() || url.query().is_some() || url.fragment().is_some();
    if more || !url.username().is_empty() || url.password().is_some() {
        return None;
    }
    let port = url.port().filter(|port| *port != 0)?;
    // The URL parser parses IP addresses only for special schemes, so this parses the host again.
    Some((Host::parse(url.host_str()?).ok()?, port))
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

/// An open connection.
pub(super) struct Connection {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
    since: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("since", &self.since).finish_non_exhaustive()
    }
}

impl Connection {
    /// Returns when it was opened.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Writes messages, unless the server has closed the connection or closes it meanwhile.
    pub(super) async fn send(&mut self, messages: &[u8]) -> io::Result<()> {
        let Self { read, write, .. } = self;
        let write = async {
            write.write_all(messages).await?;
            write.flush().await
        };
        tokio::select! {
            biased;
            why = ended(read) => Err(why),
            result = write => result,
        }
    }

    /// Waits until the connection ends, and returns the reason.
    pub(super) async fn ended(&mut self) -> io::Error {
        ended(&mut self.read).await
    }

    /// Closes it in an orderly way. Success means that the server has read everything: closing with unread data resets
    /// the connection.
    pub(super) async fn close(mut self) -> io::Result<()> {
        let goodbye = async {
            self.write.shutdown().await?;
            match ended(&mut self.read).await {
                why if why.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                why => Err(why),
            }
        };
        tokio::time::timeout(GOODBYE, goodbye).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Waits for the end of the connection. A server sends nothing, so anything read before that is ignored.
async fn ended(read: &mut ReadHalf<Box<dyn Stream>>) -> io::Error {
    let mut ignored = [0; 512];
    loop {
        match read.read(&mut ignored).await {
            Ok(0) => return io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// Appends a line as a message prefixed by its length.
pub(super) fn frame(line: &[u8], instance: &str, out: &mut Vec<u8>) {
    let facts = Facts::of(line);
    let severity = match facts.severity() {
        Severity::Critical => 2,
        Severity::Error => 3,
        Severity::Warning => 4,
        Severity::Notice => 5,
        Severity::Informational => 6,
    };
    // The time of a damaged line is unknown.
    let time = match facts.time {
        0 => "-".to_owned(),
        time => Timestamp::from_millis(time).to_string(),
    };
    let host = header(instance, 255);
    let id = header(facts.metadata.event_code.as_deref().unwrap_or_default(), 32);
    // `sequenceId` wraps after its highest value (RFC 5424 section 7.3.1).
    let sequence = match facts.seq.checked_sub(1) {
        None => "-".to_owned(),
        Some(before) => format!("[meta sequenceId=\"{}\"]", before % 2_147_483_647 + 1),
    };
    let head = format!("<{}>1 {time} {host} doorward - {id} {sequence} ", FACILITY + severity);
    out.extend_from_slice(format!("{} ", head.len() + line.len()).as_bytes());
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(line);
}

/// Formats a header field: printable ASCII without spaces, of a limited length, or `-` (RFC 5424 section 6).
fn header(text: &str, most: usize) -> String {
    let safe = |c: char| if c.is_ascii_graphic() { c } else { '_' };
    let text: String = text.chars().take(most).map(safe).collect();
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::time::{pause, timeout};

    use super::*;

    fn framed(line: &str, instance: &str) -> String {
        let mut out = Vec::new();
        frame(line.as_bytes(), instance, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_a_message_with_its_length() {
        let line = r#"{"severity_id":2,"time":1700000000123,"metadata":{"event_code":"request.decided"},"who":"Jürgen","seq":7}"#;
        let message = framed(line, "doorward-0");
        let (length, rest) = message.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), rest.len());
        let head = "<109>1 2023-11-14T22:13:20.123Z doorward-0 doorward - request.decided [meta sequenceId=\"7\"] ";
        assert_eq!(rest, format!("{head}{line}"));
    }

    #[test]
    fn characters_not_permitted_in_a_syslog_header_are_replaced() {
        let code = "a]\\u0022 \\n".to_owned() + &"x".repeat(40);
        let line = format!(r#"{{"severity_id":1,"time":1,"metadata":{{"event_code":"{code}"}},"seq":2147483648}}"#);
        let message = framed(&line, "host name\nü");
        let head = format!("<110>1 1970-01-01T00:00:00.001Z host_name__ doorward - a]\"__{} ", "x".repeat(27));
        assert!(message.contains(&head), "{message}");
        assert!(message.contains("[meta sequenceId=\"1\"] {"), "{message}");
        let message = framed("{\"torn", "");
        assert!(message.ends_with(" <107>1 - - doorward - - - {\"torn"), "{message}");
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, host) in [
            ("syslog.test:6514", Host::Domain("syslog.test".to_owned())),
            ("192.0.2.1:514", Host::Ipv4([192, 0, 2, 1].into())),
            ("[2001:db8::1]:514", Host::Ipv6("2001:db8::1".parse().unwrap())),
        ] {
            assert_eq!(host_and_port(text).map(|(host, _)| host), Some(host), "{text}");
        }
        for text in ["", "syslog.test", ":514", "a:0", "a:70000", "a:514/x", "u:p@a:514", "a:514?x", "tcp://a:514"] {
            assert_eq!(host_and_port(text), None, "{text}");
        }
    }

    /// The system of this server accepts connections. Nobody reads from them or answers.
    fn server(listener: &TcpListener, tls: Option<raw::ClientTls>) -> Server {
        let raw = raw::SyslogExport { address: listener.local_addr().unwrap().to_string(), tls };
        let mut resolver = Resolver::default();
        resolver.elsewhere();
        Server::resolve(&raw, &At::root(), &mut resolver).unwrap()
    }

    /// Longer than anything may take. While time is paused, it passes at once.
    const LONG: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test]
    async fn a_server_that_does_not_answer_the_end_of_a_connection_is_not_waited_for_without_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = server(&listener, None);
        let answered = server.connect().await.unwrap();
        drop(listener.accept().unwrap());
        answered.close().await.unwrap();
        let unanswered = server.connect().await.unwrap();
        pause();
        let closed = timeout(LONG, unanswered.close()).await.expect("it waits without bound");
        assert_eq!(closed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_the_tls_handshake_is_not_waited_for_without_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = server(&listener, Some(raw::ClientTls::default()));
        let connected = timeout(LONG, server.connect()).await.expect("it waits without bound");
        assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
