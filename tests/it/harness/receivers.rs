//! Receivers of the audit trail: a syslog server and an OpenTelemetry collector, which store what they get.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use rustls::ServerConfig;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, BufReader},
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// The lines that arrived, and their number.
#[derive(Clone)]
pub struct Arrived {
    lines: Arc<Mutex<Vec<String>>>,
    count: watch::Sender<usize>,
}

impl Arrived {
    fn new() -> Self {
        Self { lines: Arc::default(), count: watch::Sender::new(0) }
    }

    fn push(&self, line: String) {
        self.lines.lock().unwrap().push(line);
        self.count.send_modify(|count| *count += 1);
    }

    /// Everything, in order of arrival.
    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The same without repetitions.
    pub fn once(&self) -> Vec<String> {
        let mut seen = std::collections::BTreeSet::new();
        self.all().into_iter().filter(|line| seen.insert(line.clone())).collect()
    }

    /// Waits until all of these lines have arrived.
    pub async fn wait_for(&self, lines: &[String]) {
        let mut count = self.count.subscribe();
        let missing = |count: &mut watch::Receiver<usize>| {
            count.borrow_and_update();
            let have: std::collections::BTreeSet<String> = self.all().into_iter().collect();
            lines.iter().filter(|line| !have.contains(*line)).cloned().collect::<Vec<_>>()
        };
        let all_there = async {
            while !missing(&mut count).is_empty() {
                count.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(super::PATIENCE, all_there).await.is_err() {
            let (missing, last) = (missing(&mut self.count.subscribe()), self.all().pop());
            panic!("of {} lines these did not arrive: {missing:#?}, and the last that did is {last:#?}", lines.len());
        }
    }
}

/// A syslog server that accepts messages prefixed by their length.
pub struct SyslogServer {
    pub address: SocketAddr,
    pub arrived: Arrived,
    heads: Arc<Mutex<Vec<String>>>,
    reading: watch::Sender<bool>,
    connections: Arc<AtomicUsize>,
    cuts: watch::Sender<usize>,
}

impl SyslogServer {
    pub async fn start(tls: Option<ServerConfig>) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), tls).await
    }

    pub async fn start_at(address: SocketAddr, tls: Option<ServerConfig>) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        // Small, so that a server that does not read is noticed soon.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(16).unwrap();
        let (arrived, heads) = (Arrived::new(), Arc::<Mutex<Vec<String>>>::default());
        let reading = watch::Sender::new(true);
        let server = Self {
            address: listener.local_addr().unwrap(),
            arrived: arrived.clone(),
            heads: heads.clone(),
            reading: reading.clone(),
            connections: Arc::default(),
            cuts: watch::Sender::new(0),
        };
        let (connections, cuts) = (server.connections.clone(), server.cuts.clone());
        let acceptor = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (acceptor, arrived, heads) = (acceptor.clone(), arrived.clone(), heads.clone());
                let (reading, mut cut) = (reading.subscribe(), cuts.subscribe());
                tokio::spawn(async move {
                    let taking = async {
                        match acceptor {
                            None => take(stream, &arrived, &heads, reading).await,
                            Some(acceptor) => match acceptor.accept(stream).await {
                                Ok(stream) => take(stream, &arrived, &heads, reading).await,
                                Err(_) => None,
                            },
                        }
                    };
                    tokio::select! {
                        _ = taking => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        server
    }

    /// Whether it reads from its connections.
    pub fn read(&self, reading: bool) {
        self.reading.send_replace(reading);
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Breaks all connections, even with unread data.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The header of each line.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// Reads until the end of the connection, or an invalid message.
async fn take(
    stream: impl AsyncRead + Unpin,
    arrived: &Arrived,
    heads: &Mutex<Vec<String>>,
    mut reading: watch::Receiver<bool>,
) -> Option<()> {
    let mut stream = BufReader::with_capacity(1024, stream);
    loop {
        reading.wait_for(|reading| *reading).await.ok()?;
        let mut length = 0;
        loop {
            match stream.read_u8().await.ok()? {
                b' ' => break,
                digit => length = length * 10 + usize::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?),
            }
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await.ok()?;
        let message = String::from_utf8(message).unwrap();
        let (head, line) = message.split_at(message.find('{').unwrap());
        heads.lock().unwrap().push(head.to_owned());
        arrived.push(line.to_owned());
    }
}

/// A collector's response to a call.
#[derive(Clone)]
pub struct CollectorAnswer {
    pub status: u16,
    pub retry_after: Option<&'static str>,
    pub body: &'static str,
    /// Whether it stores what it got.
    pub takes: bool,
}

impl CollectorAnswer {
    pub const OK: Self = Self { status: 200, retry_after: None, body: "{}", takes: true };
}

/// An OpenTelemetry collector.
#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    pub arrived: Arrived,
    calls: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
    script: Arc<Mutex<VecDeque<CollectorAnswer>>>,
    always: Arc<Mutex<CollectorAnswer>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            address: listener.local_addr().unwrap(),
            arrived: Arrived::new(),
            calls: Arc::default(),
            script: Arc::default(),
            always: Arc::new(Mutex::new(CollectorAnswer::OK)),
        };
        let router = Router::new()
            .route("/v1/logs", post(collect))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// Scripts the next responses.
    pub fn answers(&self, answers: impl IntoIterator<Item = CollectorAnswer>) {
        self.script.lock().unwrap().extend(answers);
    }

    /// Sets the response when nothing else is scripted.
    pub fn always(&self, answer: CollectorAnswer) {
        *self.always.lock().unwrap() = answer;
    }

    /// Headers and bodies of all calls.
    pub fn calls(&self) -> Vec<(HeaderMap, Value)> {
        self.calls.lock().unwrap().clone()
    }
}

async fn collect(State(collector): State<Collector>, headers: HeaderMap, body: axum::body::Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    collector.calls.lock().unwrap().push((headers, body.clone()));
    let next = collector.script.lock().unwrap().pop_front();
    let answer = next.unwrap_or_else(|| collector.always.lock().unwrap().clone());
    if answer.takes {
        for record in body["resourceLogs"][0]["scopeLogs"][0]["logRecords"].as_array().unwrap() {
            collector.arrived.push(record["body"]["stringValue"].as_str().unwrap().to_owned());
        }
    }
    let status = StatusCode::from_u16(answer.status).unwrap();
    match answer.retry_after {
        None => (status, answer.body).into_response(),
        Some(after) => (status, [("retry-after", after)], answer.body).into_response(),
    }
}
