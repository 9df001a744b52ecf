//! The certified OpenID provider and the browser driver, which are Node programs in `tests/node`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{Answer, Raw};

/// The folder of the programs, with the packages that its lock file pins.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node");
    if !is_installed(&folder) {
        let mut install = std::process::Command::new("npm");
        install.args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(&folder);
        assert!(install.status().expect("npm is there").success(), "the packages of tests/node could not be installed");
    }
    folder
});

/// Whether the last npm installation matches the lock file.
fn is_installed(folder: &Path) -> bool {
    let read =
        |name: &str| -> Option<Value> { serde_json::from_str(&std::fs::read_to_string(folder.join(name)).ok()?).ok() };
    let (Some(lock), Some(installed)) = (read("package-lock.json"), read("node_modules/.package-lock.json")) else {
        return false;
    };
    lock["packages"].as_object().unwrap().iter().all(|(name, package)| {
        name.is_empty() || package["optional"] == true || installed["packages"][name]["version"] == package["version"]
    })
}

fn script(name: &str) -> PathBuf {
    FOLDER.join(name)
}

/// The certified provider as a separate process. It ends with its owner.
pub struct OidcProvider {
    pub issuer: String,
    child: Child,
    /// Kept open: it continues to write, and would end on a closed pipe.
    _output: Lines<BufReader<ChildStdout>>,
}

impl OidcProvider {
    /// `origin` is where Doorward will be reached.
    pub async fn start(origin: &str) -> Self {
        Self::start_at(origin, 0).await
    }

    /// The same at this port; 0 for any.
    pub async fn start_at(origin: &str, port: u16) -> Self {
        Self::start_with(origin, &json!({"port": port})).await
    }

    /// The same with further options of `provider.mjs`.
    pub async fn start_with(origin: &str, further: &Value) -> Self {
        let mut options = json!({
            "redirectUris": [format!("{origin}/oauth2/callback")],
            "postLogoutRedirectUris": [format!("{origin}/oauth2/signed_out")],
        });
        options.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
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
        Self { issuer: said["issuer"].as_str().unwrap().to_owned(), child, _output: lines }
    }

    /// Ends it, with all its grants and sessions. Another may be started at its port.
    pub async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl OidcProvider {
    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.issuer.rsplit_once(':').unwrap().1.parse().unwrap()
    }

    /// How many refreshes it granted and how many it refused.
    pub async fn refreshes(&self) -> (u64, u64) {
        let told = self.ask("GET", "/tests/refreshes", "", "").await.json();
        (told["granted"].as_u64().unwrap(), told["refused"].as_u64().unwrap())
    }

    /// Gives its client `doorward` these further settings from now on.
    pub async fn change_client(&self, further: &Value) {
        assert_eq!(self.ask("POST", "/tests/client", "", &further.to_string()).await.status, 200);
    }

    /// Signs a person in, for whom a browser was redirected to `location`, by filling in the forms one after the other.
    /// Returns the address that the browser is redirected back to.
    pub async fn sign_in(&self, location: &str, person: &str) -> String {
        let mut jar = BTreeMap::new();
        let (mut form, mut at) = (String::new(), location.to_owned());
        loop {
            let Some(path) = at.strip_prefix(&self.issuer).or_else(|| at.starts_with('/').then_some(&*at)) else {
                return at;
            };
            let cookies: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let cookies = format!("Cookie: {}\r\n", cookies.join("; "));
            let answer = self.ask(if form.is_empty() { "GET" } else { "POST" }, path, &cookies, &form).await;
            for line in answer.all("set-cookie") {
                let (name, value) = line.split(';').next().unwrap().split_once('=').unwrap();
                jar.insert(name.to_owned(), value.to_owned());
            }
            let page = answer.text();
            form = match answer.header("location") {
                Some(to) => {
                    at = to.to_owned();
                    String::new()
                }
                None if page.contains("value=\"login\"") => format!("prompt=login&login={person}&password=any"),
                None if page.contains("value=\"consent\"") => "prompt=consent".to_owned(),
                None => panic!("{}{page}", answer.head),
            };
        }
    }

    async fn ask(&self, method: &str, path: &str, more: &str, body: &str) -> Answer {
        let address = self.issuer.strip_prefix("http://").unwrap();
        let mut raw = Raw::connect(address.parse().unwrap()).await;
        let kind = "Content-Type: application/x-www-form-urlencoded";
        let length = body.len();
        raw.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{more}{kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
        .await;
        raw.answer().await
    }
}

/// Runs a scenario of `browser.mjs` in a real Chromium and returns what it saw.
pub async fn browse(options: &Value) -> Value {
    let run = Command::new("node").arg(script("browser.mjs")).arg(options.to_string()).kill_on_drop(true).output();
    let output = super::within(run).await.unwrap();
    assert!(output.status.success(), "{options}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A browser that pauses in the middle of its scenario.
pub struct Waiting {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// Runs a scenario until it prints `mark`.
pub async fn browse_until(options: &Value, mark: &str) -> Waiting {
    let mut child = Command::new("node")
        .arg(script("browser.mjs"))
        .arg(options.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut waiting = Waiting { input: child.stdin.take().unwrap(), output, _child: child };
    assert_eq!(waiting.line().await, mark, "{options}");
    waiting
}

impl Waiting {
    async fn line(&mut self) -> String {
        super::within(self.output.next_line()).await.unwrap().expect("the browser failed")
    }

    /// Continues until it prints `mark` again.
    pub async fn go_on_until(&mut self, mark: &str) {
        self.input.write_all(b"go on\n").await.unwrap();
        assert_eq!(self.line().await, mark);
    }

    /// Continues to the end, and returns what it saw.
    pub async fn go_on(mut self) -> Value {
        self.input.write_all(b"go on\n").await.unwrap();
        serde_json::from_str(&self.line().await).unwrap()
    }
}

/// The credentials that the AWS SDK finds in exactly this environment.
pub async fn aws_credentials(environment: &[(&str, &str)]) -> Value {
    let mut node = Command::new("node");
    node.arg(script("aws.mjs")).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let run = node.env("AWS_REGION", "eu-west-1").envs(environment.iter().copied()).output();
    let output = super::within(run).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Verifies a token from the Doorward at `port` with an independent library, and returns what it read.
pub async fn verify(port: u16, issuer: &str, audience: &str, token: &str) -> Value {
    let port = port.to_string();
    let run = Command::new("node").arg(script("verify.mjs")).args([&port, issuer, audience, token]).output();
    let output = super::within(run).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
