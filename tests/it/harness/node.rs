//! The certified OpenID provider and the browser driver, which are Node programs under `tests/node`.

use std::{path::PathBuf, process::Stdio};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

fn script(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    assert!(folder.join("node_modules").exists(), "run `scripts/test`, which installs what the tests need");
    folder.join(name)
}

/// The certified provider as a process of its own. It ends with its owner.
pub struct OidcProvider {
    pub issuer: String,
    _child: Child,
    /// It goes on writing there, and would end on a closed pipe.
    _output: Lines<BufReader<ChildStdout>>,
}

impl OidcProvider {
    /// `origin` is where Doorward will be reached.
    pub async fn start(origin: &str) -> Self {
        Self::start_at(origin, 0).await
    }

    /// The same at a port of its own; 0 for any.
    pub async fn start_at(origin: &str, port: u16) -> Self {
        let options = json!({
            "port": port,
            "redirectUris": [format!("{origin}/oauth2/callback")],
            "postLogoutRedirectUris": [format!("{origin}/oauth2/signed_out")],
        });
        let mut child = Command::new("node")
            .arg(script("provider.mjs"))
            .arg(options.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = super::within(lines.next_line()).await.unwrap().expect("the provider did not start");
        let said: Value = serde_json::from_str(&line).unwrap();
        Self { issuer: said["issuer"].as_str().unwrap().to_owned(), _child: child, _output: lines }
    }
}

/// Runs a scenario of `browser.mjs` in a real Chromium and gives what it saw.
pub async fn browse(options: &Value) -> Value {
    let run = Command::new("node").arg(script("browser.mjs")).arg(options.to_string()).kill_on_drop(true).output();
    let output = super::within(run).await.unwrap();
    assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A browser that waits in the middle of its scenario.
pub struct Waiting {
    child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

/// Runs a scenario up to where it says `mark`.
pub async fn browse_until(options: &Value, mark: &str) -> Waiting {
    let mut child = Command::new("node")
        .arg(script("browser.mjs"))
        .arg(options.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(super::within(output.next_line()).await.unwrap().as_deref(), Some(mark), "{options}");
    Waiting { child, output }
}

impl Waiting {
    /// Lets it go on, and gives what it saw.
    pub async fn go_on(mut self) -> Value {
        let mut input = self.child.stdin.take().unwrap();
        input.write_all(b"go on\n").await.unwrap();
        let line = super::within(self.output.next_line()).await.unwrap().expect("the browser failed");
        serde_json::from_str(&line).unwrap()
    }
}

/// A port that nothing listens on at the moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
