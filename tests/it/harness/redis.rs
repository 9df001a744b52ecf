//! Real Redis servers on ports of their own, for tests of the store and of the whole program.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc,
    },
    time::Duration,
};

use tempfile::TempDir;

/// A running server, killed when dropped. Its data on disk is deleted too.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    port: u16,
    options: Vec<String>,
    folder: TempDir,
    program: &'static str,
}

/// The log lines that show that it serves.
const READY: [&str; 2] = ["Ready to accept connections", "Sentinel ID is"];

impl RedisServer {
    /// A server without persistence, with further options as on its command line.
    pub fn start(options: &[&str]) -> Self {
        Self::on_any_port("redis-server", &[], options)
    }

    /// A sentinel that watches the server at `master` under the name `doorward`.
    pub fn sentinel(master: u16) -> Self {
        let config = [
            format!("sentinel monitor doorward 127.0.0.1 {master} 1"),
            "sentinel down-after-milliseconds doorward 500".to_owned(),
            "sentinel failover-timeout doorward 2000".to_owned(),
        ];
        Self::on_any_port("redis-sentinel", &config, &[])
    }

    fn on_any_port(program: &'static str, config: &[String], options: &[&str]) -> Self {
        // Another test may take the port between its choice and its use.
        for _ in 0..5 {
            let folder = TempDir::new().unwrap();
            let port = free_port();
            let file = folder.path().join("redis.conf");
            std::fs::write(&file, format!("{}\n", config.join("\n"))).unwrap();
            let options: Vec<String> = options
                .iter()
                .map(|option| option.replace("{bus}", &free_port().to_string()).replace("{port}", &port.to_string()))
                .collect();
            if let Some(child) = run(program, &folder, port, &options) {
                return Self { child, port, options, folder, program };
            }
        }
        panic!("no server of Redis could be started; `scripts/test` installs it");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs a command as with `redis-cli`.
    pub async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(format!("redis://{}/", self.address())).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// Ends it at once, as in a crash.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port after [`RedisServer::kill`].
    pub fn restart(&mut self) {
        self.child = run(self.program, &self.folder, self.port, &self.options).expect("its port is free again");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Below the ephemeral ports, which the system could give to somebody else while a server is away, and above those of
/// other servers of the tests.
const FIRST: u16 = 32_000;
const PORTS: u16 = 768;

fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % u32::from(PORTS)).unwrap();
    loop {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn run(program: &str, folder: &TempDir, port: u16, options: &[String]) -> Option<Child> {
    // A server without a port in clear text has an option `--port` of its own.
    let listens = options.iter().any(|option| option == "--port");
    let port = port.to_string();
    let defaults = ["--bind", "127.0.0.1", "--save", "", "--port", &port];
    let mut child = Command::new(program)
        .arg(folder.path().join("redis.conf"))
        .arg("--dir")
        .arg(folder.path())
        .args(if listens { &defaults[..4] } else { &defaults[..] })
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}); `scripts/test` installs it"));
    let log = BufReader::new(child.stdout.take().unwrap());
    let (told, ready) = mpsc::channel();
    // Reads the log to the end, so that the server never blocks on it.
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if READY.iter().any(|wanted| line.contains(wanted)) {
                let _ = told.send(());
            }
        }
    });
    if ready.recv_timeout(Duration::from_secs(30)).is_ok() {
        return Some(child);
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}
