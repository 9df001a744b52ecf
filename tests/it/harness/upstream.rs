//! An upstream that records every byte that reaches it and answers by a script. It parses HTTP/1.1 itself, so that no
//! library hides what arrived.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

use super::client::values;

/// A group that Doorward may not impersonate at any such upstream.
pub const NOT_ALLOWED: &str = "tekton:not-allowed";

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// The request line and headers, as bytes, with the empty line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Recorded {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        values(&self.head, name)
    }

    pub fn one(&self, name: &str) -> &str {
        match self.all(name)[..] {
            [value] => value,
            ref values => panic!("{} values of {name} in\n{}", values.len(), self.head),
        }
    }

    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }
}

/// How an upstream answers a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Sends these bytes and keeps the connection open.
    Bytes(Vec<u8>),
    /// Answers 101 for the requested protocol and echoes.
    Echo,
    /// Accepts a WebSocket (RFC 6455), sends `hello`, and listens.
    WebSocket,
    /// Sends nothing and keeps the connection open.
    Hang,
    /// Sends these bytes once it is notified.
    Later(Arc<Notify>, Vec<u8>),
    /// Sends a chunked response that never ends, after these chunks.
    Watch(Vec<Vec<u8>>),
    /// Sends text for as long as the peer reads it, and counts the bytes.
    Flood(Arc<AtomicU64>),
}

impl Reply {
    /// A response with a JSON body.
    pub fn json(status: u16, body: &str) -> Self {
        Self::Bytes(
            format!(
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        )
    }
}

type Script = Arc<dyn Fn(&Recorded) -> Reply + Send + Sync>;

/// The upstream.
pub struct Upstream {
    pub address: SocketAddr,
    recorded: Arc<Mutex<Vec<Recorded>>>,
    count: watch::Receiver<usize>,
}

impl Upstream {
    /// Answers 200 `{"ok":true}` to everything.
    pub async fn start() -> Self {
        Self::scripted(|_| Reply::json(200, r#"{"ok":true}"#)).await
    }

    pub async fn scripted(script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        Self::scripted_at(([127, 0, 0, 1], 0).into(), script).await
    }

    /// At an address that was chosen before.
    pub async fn scripted_at(address: SocketAddr, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let (counter, count) = watch::channel(0);
        let counter = Arc::new(counter);
        let script: Script = Arc::new(script);
        let log = recorded.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (log, counter, script) = (log.clone(), counter.clone(), script.clone());
                tokio::spawn(async move {
                    let _ = serve(stream, &log, &counter, &script).await;
                });
            }
        });
        Self { address, recorded, count }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.recorded.lock().unwrap().clone()
    }

    /// Returns the requests that arrived and forgets them.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut self.recorded.lock().unwrap())
    }

    /// The only request that arrived.
    pub fn only(&self) -> Recorded {
        let mut all = self.requests();
        assert_eq!(all.len(), 1, "{all:#?}");
        all.remove(0)
    }

    /// Waits until `count` requests have arrived since the start.
    pub async fn wait_for(&mut self, count: usize) {
        super::within(self.count.wait_for(|seen| *seen >= count)).await.unwrap();
    }

    /// Waits until a request with this text in its first line has arrived.
    pub async fn wait_for_path(&mut self, path: &str) {
        super::within(async {
            while !self.requests().iter().any(|request| request.line().contains(path)) {
                self.count.changed().await.unwrap();
            }
        })
        .await;
    }
}

/// Waits until a flood is blocked because nothing more is read, and returns how much was sent.
pub async fn held_up(sent: &AtomicU64) -> u64 {
    super::within(async {
        // On a busy machine a single sample proves nothing.
        let (mut before, mut same) = (0, 0);
        while same < 4 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let now = sent.load(Ordering::SeqCst);
            same = if now > 0 && now == before { same + 1 } else { 0 };
            before = now;
        }
        before
    })
    .await
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Recorded>>,
    counter: &watch::Sender<usize>,
    script: &Script,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let Some(end) = read_until(&mut stream, &mut buffer, b"\r\n\r\n").await? else { return Ok(()) };
        let head = String::from_utf8_lossy(&buffer.drain(..end).collect::<Vec<_>>()).into_owned();
        let mut request = Recorded { head, body: Vec::new() };
        if let [length] = request.all("content-length")[..] {
            let length: usize = length.parse().unwrap_or_default();
            while buffer.len() < length {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
            }
            request.body = buffer.drain(..length).collect();
        } else if request.has("transfer-encoding") {
            loop {
                let Some(end) = read_until(&mut stream, &mut buffer, b"\r\n").await? else { return Ok(()) };
                let line = String::from_utf8_lossy(&buffer.drain(..end).collect::<Vec<_>>()).into_owned();
                let size = usize::from_str_radix(line.trim(), 16).unwrap_or_default();
                if size == 0 {
                    let Some(mut end) = read_until(&mut stream, &mut buffer, b"\r\n").await? else { return Ok(()) };
                    while end > 2 {
                        // A trailer: stored with the head, so that a test that searches for the name finds it.
                        request.head.push_str(&String::from_utf8_lossy(&buffer.drain(..end).collect::<Vec<_>>()));
                        let Some(next) = read_until(&mut stream, &mut buffer, b"\r\n").await? else { return Ok(()) };
                        end = next;
                    }
                    buffer.drain(..end);
                    break;
                }
                while buffer.len() < size + 2 {
                    if stream.read_buf(&mut buffer).await? == 0 {
                        return Ok(());
                    }
                }
                request.body.extend(buffer.drain(..size + 2).take(size));
            }
        }
        // Doorward's own background requests are not part of any test with this upstream.
        let asks = |what: &str| request.line().contains(what) && !request.has("impersonate-user");
        let said = match () {
            () if asks("/selfsubjectaccessreviews ") => {
                let is_allowed = !String::from_utf8_lossy(&request.body).contains(NOT_ALLOWED);
                Some(if is_allowed { r#"{"status":{"allowed":true}}"# } else { r#"{"status":{"allowed":false}}"# })
            }
            () if asks("/selfsubjectrulesreviews ") => Some(r#"{"status":{"resourceRules":[],"nonResourceRules":[]}}"#),
            () => None,
        };
        if let Some(Reply::Bytes(said)) = said.map(|said| Reply::json(201, said)) {
            stream.write_all(&said).await?;
            continue;
        }
        let reply = script(&request);
        let first = |name: &str| request.all(name).first().map(|value| (*value).to_owned());
        let (upgrade, websocket_key) = (first("upgrade"), first("sec-websocket-key"));
        log.lock().unwrap().push(request);
        counter.send_modify(|count| *count += 1);
        match reply {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::Later(told, bytes) => {
                told.notified().await;
                stream.write_all(&bytes).await?;
            }
            Reply::Hang => {
                let _ = stream.read(&mut [0]).await?;
                return Ok(());
            }
            Reply::Echo => {
                let upgrade = upgrade.unwrap_or_default();
                let head =
                    format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&buffer).await?;
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await?;
                return Ok(());
            }
            Reply::WebSocket => {
                let key = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", websocket_key.unwrap_or_default());
                let accept = BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()));
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(b"\x81\x05hello").await?;
                while stream.read(&mut [0; 1024]).await? > 0 {}
                return Ok(());
            }
            Reply::Flood(sent) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n").await?;
                loop {
                    let count = stream.write(&[b'x'; 16 << 10]).await?;
                    sent.fetch_add(count as u64, Ordering::SeqCst);
                }
            }
            Reply::Watch(chunks) => {
                stream
                    .write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
                    )
                    .await?;
                for chunk in chunks {
                    stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                    stream.write_all(&chunk).await?;
                    stream.write_all(b"\r\n").await?;
                }
                let _ = stream.read(&mut [0]).await?;
                return Ok(());
            }
        }
    }
}

/// Reads until `mark` and returns where it ends; `None` at the end of the stream.
async fn read_until(stream: &mut TcpStream, buffer: &mut Vec<u8>, mark: &[u8]) -> io::Result<Option<usize>> {
    loop {
        if let Some(at) = buffer.windows(mark.len()).position(|window| window == mark) {
            return Ok(Some(at + mark.len()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
