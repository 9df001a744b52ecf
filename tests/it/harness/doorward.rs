//! The built binary as a separate process.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::watch,
};

use super::{Answer, Raw};
use crate::fixture::Change;

/// A running Doorward, killed when dropped.
pub struct Doorward {
    child: Child,
    dir: Arc<TempDir>,
    addresses: HashMap<String, SocketAddr>,
    log: Arc<Mutex<Vec<Value>>>,
    lines: watch::Receiver<usize>,
}

impl Doorward {
    /// Starts with this configuration, in a folder that may already have files, and waits until it listens. `{dir}` in
    /// the configuration is that folder.
    pub async fn start_in(dir: TempDir, yaml: &str) -> Self {
        Self::spawn(Arc::new(dir), yaml, &[]).await
    }

    /// The same with a Doorward whose disk can be made to fail and whose clock can be set.
    pub async fn start_with_faults(dir: TempDir, yaml: &str) -> Self {
        let environment = super::faults::environment(dir.path());
        Self::spawn(Arc::new(dir), yaml, &environment).await
    }

    /// The same with these variables in its environment.
    pub async fn start_with_environment(dir: TempDir, yaml: &str, environment: &[(&str, &str)]) -> Self {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, PathBuf::from(value))).collect();
        Self::spawn(Arc::new(dir), yaml, &environment).await
    }

    /// Starts with the `doorward.yaml` of a folder that the caller owns.
    pub async fn start_at(folder: &Path) -> Self {
        Self::run(Arc::new(tempfile::tempdir().unwrap()), folder, &[]).await
    }

    /// Starts with the `doorward.yaml` in the folder, by its file name alone: `doorward serve doorward.yaml`.
    pub async fn start_by_name_in(dir: TempDir) -> Self {
        Self::run(Arc::new(dir), Path::new("doorward.yaml"), &[]).await
    }

    /// Begins a start like [`Doorward::start_in`], without waiting for its end; see [`Doorward::has_started`].
    pub fn begin_in(dir: TempDir, yaml: &str) -> Self {
        let config = configured(&dir, yaml);
        Self::begin(Arc::new(dir), &config, &[])
    }

    async fn spawn(dir: Arc<TempDir>, yaml: &str, environment: &[(&str, PathBuf)]) -> Self {
        let config = configured(&dir, yaml);
        Self::run(dir, &config, environment).await
    }

    async fn run(dir: Arc<TempDir>, config: &Path, environment: &[(&str, PathBuf)]) -> Self {
        let mut doorward = Self::begin(dir, config, environment);
        doorward.has_started().await;
        doorward
    }

    fn begin(dir: Arc<TempDir>, config: &Path, environment: &[(&str, PathBuf)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .arg("serve")
            .arg(config)
            .current_dir(dir.path())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (counter, lines) = watch::channel(0);
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = log.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = stderr.next_line().await {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                kept.lock().unwrap().push(line);
                counter.send_modify(|count| *count += 1);
            }
        });
        Self { child, dir, addresses: HashMap::new(), log, lines }
    }

    /// Waits until it listens, whatever the format of its log.
    pub async fn has_started(&mut self) {
        let has_started = |line: &Value| {
            line["message"] == "started" || line.as_str().is_some_and(|line| line.contains(": started generation="))
        };
        self.log_line("started", has_started).await;
        for line in self.log() {
            let listening = match &line {
                Value::String(line) => line
                    .split_once(": listening listener=")
                    .and_then(|(_, fields)| fields.split_once(" address="))
                    .map(|(name, address)| (name.trim_matches('"'), address)),
                line if line["message"] == "listening" => line["listener"].as_str().zip(line["address"].as_str()),
                _ => None,
            };
            if let Some((name, address)) = listening {
                self.addresses.insert(name.to_owned(), address.parse().unwrap());
            }
        }
    }

    /// Kills it without warning and starts it again with the same folder and configuration.
    pub async fn kill_and_restart(mut self) -> Self {
        self.child.kill().await.unwrap();
        self.start_again().await
    }

    /// Starts one that has ended again, with the same folder and configuration.
    pub async fn start_again(self) -> Self {
        let yaml = std::fs::read_to_string(self.dir.path().join("doorward.yaml")).unwrap();
        Self::spawn(self.dir.clone(), &yaml, &[]).await
    }

    pub fn address(&self, listener: &str) -> SocketAddr {
        self.addresses[listener]
    }

    /// Makes reads and writes of the store's file fail, or no longer. Needs [`Doorward::start_with_faults`].
    pub fn break_disk(&self, broken: bool) {
        super::faults::break_disk(self.dir(), broken);
    }

    /// Makes only syncs of the store's file fail, or no longer. Needs [`Doorward::start_with_faults`].
    pub fn break_syncs(&self, broken: bool) {
        super::faults::break_syncs(self.dir(), broken);
    }

    /// Makes writes to its audit trail fail, or no longer. Needs [`Doorward::start_with_faults`].
    pub fn break_trail(&self, broken: bool) {
        super::faults::break_trail(self.dir(), broken);
    }

    /// Sets its wall clock this far ahead, or stops it at a given time of this century. Needs
    /// [`Doorward::start_with_faults`].
    pub fn set_clock_ahead(&self, seconds: u64) {
        super::faults::set_clock_ahead(self.dir(), seconds);
    }

    /// Makes it believe that it uses `kib` of memory, and waits until readiness says `words`. Needs
    /// [`Doorward::start_with_faults`].
    pub async fn use_memory(&self, kib: u64, words: &str) {
        super::faults::set_memory_used(self.dir(), kib);
        self.until_readyz_says(words).await;
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a log line with this message, and returns it.
    pub async fn wait_for_log(&mut self, message: &str) -> Value {
        self.log_line(message, |line| line["message"] == message).await
    }

    /// Waits for a log line that contains this text, and returns it.
    pub async fn wait_for_log_containing(&mut self, text: &str) -> Value {
        self.log_line(text, |line| line.to_string().contains(text)).await
    }

    /// Waits until a generation with at least this number is in force.
    pub async fn wait_for_generation(&mut self, number: u64) {
        let what = format!("generation {number}");
        // Key sets have generations too.
        let is_taken = |line: &Value| line["message"] == "configuration loaded";
        self.log_line(&what, |line| is_taken(line) && line["generation"].as_u64() >= Some(number)).await;
    }

    async fn log_line(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let log = self.log.clone();
        let found = move || log.lock().unwrap().iter().find(|line| fits(line)).cloned();
        super::within(async {
            loop {
                if let Some(line) = found() {
                    return line;
                }
                assert!(self.lines.changed().await.is_ok(), "Doorward ended without `{what}`: {:#?}", self.log());
            }
        })
        .await
    }

    /// Waits until tokens of an issuer can be verified.
    pub async fn wait_for_keys(&self, issuer: &super::Issuer) {
        self.wait_for_keys_at("tekton.test", issuer).await;
    }

    /// The same on a host whose routes take bearer tokens.
    pub async fn wait_for_keys_at(&self, host: &str, issuer: &super::Issuer) {
        let host = format!("Host: {host}");
        let token = format!("Authorization: Bearer {}", issuer.token("probe", &[]));
        super::settled(async || self.get("/probe-of-the-tests", &[&host, &token]).await).await;
    }

    /// The response of the admin listener at a path.
    pub async fn admin(&self, path: &str) -> Answer {
        let mut raw = Raw::connect(self.address("admin")).await;
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")).await;
        raw.answer().await
    }

    /// Waits until it is ready.
    pub async fn until_ready(&self) {
        super::until(async || self.admin("/readyz").await.status == 200).await;
    }

    /// Waits until readiness reports something in these words.
    pub async fn until_readyz_says(&self, words: &str) {
        super::until(async || self.admin("/readyz").await.text().contains(words)).await;
    }

    /// Waits until the metrics contain this line, or part of a line.
    pub async fn until_metrics_say(&self, line: &str) {
        super::until(async || self.metrics().await.contains(line)).await;
    }

    /// Waits until the listener `public` accepts no connection.
    pub async fn until_closed(&self) {
        super::until(async || TcpStream::connect(self.address("public")).await.is_err()).await;
    }

    /// Waits until browsers at this host are redirected to the provider.
    pub async fn until_people_can_sign_in(&self, host: &str) {
        let host = format!("Host: {host}");
        super::until(async || self.get("/oauth2/start", &[&host]).await.status == 303).await;
    }

    pub async fn metrics(&self) -> String {
        self.admin("/metrics").await.text()
    }

    /// The value of a counter or gauge; 0 if it has labels that were never used.
    pub async fn counter(&self, name: &str) -> u64 {
        let metrics = self.metrics().await;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert!(value.is_some() || name.contains('{'), "{name} in {metrics}");
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// How many requests have waited for room in its audit trail.
    pub async fn audit_waits(&self) -> u64 {
        self.counter("doorward_audit_waits_total").await
    }

    /// A connection to the listener `public`.
    pub async fn raw(&self) -> Raw {
        Raw::connect(self.address("public")).await
    }

    /// Sends a request on a connection of its own. Lines are joined by CRLF; `Host` is `tekton.test` unless given.
    pub async fn send(&self, lines: &[&str], body: &[u8]) -> Answer {
        let mut raw = self.raw().await;
        raw.send(request(lines, body)).await;
        raw.answer().await
    }

    pub async fn get(&self, path: &str, headers: &[&str]) -> Answer {
        let line = format!("GET {path} HTTP/1.1");
        let mut lines = vec![line.as_str()];
        lines.extend(headers);
        self.send(&lines, b"").await
    }

    /// Replaces the first `there` in its configuration by `here`, and returns the whole new configuration.
    pub fn change(&self, there: &str, here: &str) -> String {
        let path = self.dir().join("doorward.yaml");
        let after = std::fs::read_to_string(&path).unwrap().change_first(there, here);
        super::replace_file(&path, &after);
        after
    }

    pub fn signal(&self, signal: &str) {
        let status = std::process::Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status();
        assert!(status.unwrap().success());
    }

    pub async fn ended(&mut self) -> ExitStatus {
        super::within(self.child.wait()).await.unwrap()
    }

    /// The audit records written so far, from `audit.jsonl` in the folder.
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.audit_path()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until `count` audit records match, and returns all that do: a separate thread writes them.
    pub async fn records(&self, count: usize, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
        super::found(async || {
            let all: Vec<Value> = self.audit().into_iter().filter(|record| fits(record)).collect();
            (all.len() >= count).then_some(all)
        })
        .await
    }

    /// Waits for a matching audit record, and returns the first.
    pub async fn record(&self, fits: impl Fn(&Value) -> bool) -> Value {
        self.records(1, fits).await.remove(0)
    }

    pub fn audit_path(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    /// The output of a `doorward` command in this folder; see [`told`].
    pub async fn told(&self, arguments: &[&str]) -> (Option<i32>, String) {
        told(self.dir(), arguments).await
    }

    /// The output of `audit verify` for a file of the trail.
    pub async fn verify(&self, trail: &str) -> (Option<i32>, String) {
        let keys = ["--key", "audit-chain.key", "--checkpoint-key", "audit-checkpoint.pub.pem"];
        self.told(&[&["audit", "verify", trail], &keys[..]].concat()).await
    }

    /// The output of `audit trace`: `kind` is `run`, `token` and so on.
    pub async fn trace(&self, kind: &str, what: &str) -> (Option<i32>, String) {
        self.told(&["audit", "trace", kind, what, "--trail", "audit.jsonl"]).await
    }

    /// Runs an operator command at the socket, which must be `operator.sock` in the folder. Returns the exit status and
    /// the output.
    pub async fn operator(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.args(arguments).arg("--socket").arg(self.dir().join("operator.sock")).args(["--who", "olga"]);
        let output = super::within(command.kill_on_drop(true).output()).await.unwrap();
        let said = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// The peak of its resident memory so far, in MiB: `VmHWM` of proc(5). `None` once it has ended.
    pub fn peak_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? >> 10)
    }

    /// The current anonymous memory, in KiB: `Pss_Anon` of proc(5). Pages of the program's file are not counted: they
    /// are shared with every running Doorward, so that their share changes as those start and end.
    pub fn memory(&self) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Asserts that its memory has never exceeded a ceiling, in MiB.
    pub fn stays_below(&self, ceiling: u64, attack: &str) {
        let peak = self.peak_memory().expect("it runs");
        assert!(peak < ceiling, "{attack}: {peak} MiB were resident, of at most {ceiling}");
    }
}

/// Writes the configuration of a folder; `{dir}` in it is that folder.
fn configured(dir: &TempDir, yaml: &str) -> PathBuf {
    let config = dir.path().join("doorward.yaml");
    std::fs::write(&config, yaml.replace("{dir}", &dir.path().display().to_string())).unwrap();
    config
}

/// The output of a `doorward` command in a folder: its exit status, its output, and its errors appended.
pub async fn told(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = super::within(command.output()).await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// The output of `doorward check` for a configuration in a folder of its own.
pub async fn checked(yaml: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("doorward.yaml"), yaml).unwrap();
    told(folder.path(), &["check", "doorward.yaml"]).await
}

/// The memory, in MiB, that no client, issuer or upstream of any test may make it use. Tests of floods have lower
/// limits.
const CEILING: u64 = 250;

impl Drop for Doorward {
    fn drop(&mut self) {
        if let Some(peak) = self.peak_memory().filter(|_| !std::thread::panicking()) {
            assert!(peak < CEILING, "{peak} MiB were resident, of at most {CEILING}");
        }
    }
}

/// A request with `Host` and, for a body, `Content-Length`.
pub fn request(lines: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = lines.join("\r\n");
    let has = |name: &str| lines.iter().any(|line| line.to_ascii_lowercase().starts_with(name));
    if !has("host:") {
        head.push_str("\r\nHost: tekton.test");
    }
    if !body.is_empty() && !has("content-length:") && !has("transfer-encoding:") {
        head.push_str(&format!("\r\nContent-Length: {}", body.len()));
    }
    head.push_str("\r\n\r\n");
    [head.as_bytes(), body].concat()
}
