//! `doorward doctor`: each check, failing and passing, against real parts.

mod cluster;
mod provider;
mod public;
mod receivers;
mod store;
mod upstreams;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{folder_with, free_port, within};

/// The output of a doctor, and its exit status.
pub struct Said {
    pub code: Option<i32>,
    pub findings: Vec<Value>,
}

impl Said {
    /// The state of a check, and its text.
    fn of(&self, check: &str) -> (&str, String) {
        let mut found = self.findings.iter().filter(|finding| finding["check"] == check);
        let finding = found.next().unwrap_or_else(|| panic!("nothing was said of {check}: {:#?}", self.findings));
        assert!(found.next().is_none(), "it was said more than once: {:#?}", self.findings);
        let text = |name: &str| finding[name].as_str().unwrap_or_default();
        (text("state"), format!("{}: {}. {}", text("subject"), text("message"), text("fix")))
    }

    #[track_caller]
    pub fn is(&self, check: &str, state: &str, words: &[&str]) {
        let (found, text) = self.of(check);
        assert_eq!(found, state, "{text}");
        for words in words {
            assert!(text.contains(words), "`{words}` in {text}");
        }
    }
}

/// Runs the doctor with these arguments on the configuration in `dir`.
pub async fn doctor(dir: &Path, arguments: &[&str]) -> Said {
    doctor_with(dir, arguments, &[]).await
}

/// Runs the doctor from outside, on these addresses.
pub async fn outside(addresses: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(["doctor", "--format", "json", "--outside"]).args(addresses);
    said(command).await
}

async fn doctor_with(dir: &Path, arguments: &[&str], environment: &[(&str, PathBuf)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.arg("doctor").arg(dir.join("doorward.yaml")).args(["--format", "json"]).args(arguments);
    command.envs(environment.iter().map(|(name, value)| (name, value))).current_dir(dir);
    said(command).await
}

async fn said(mut command: Command) -> Said {
    let output = within(command.kill_on_drop(true).output()).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let findings = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {stderr}{}", String::from_utf8_lossy(&output.stdout)));
    Said { code: output.status.code(), findings }
}

/// A folder with this configuration and its files.
fn folder(yaml: &str) -> TempDir {
    folder_with(&[("client", "doorward-secret-of-the-tests"), ("token", "upstream-token"), ("doorward.yaml", yaml)])
}

/// A configuration whose users sign in at `origin` with a provider.
fn configuration(origin: &str, issuer: &str, upstream: &str) -> String {
    let (_, port) = origin.rsplit_once(':').unwrap();
    format!(
        "
listeners: [{{name: public, address: '127.0.0.1:{port}'}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    algorithms: [RS256]
    login: {{kind: human, client: {{id: doorward, secret: {{file: client}}}}}}
upstreams: [{{name: web, url: '{upstream}'}}]
routes: [{{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}]
rules: [{{id: people, on: {{routes: [web]}}, who: {{kind: human}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
"
    )
}

fn somewhere() -> String {
    format!("http://localhost:{}", free_port())
}

#[tokio::test]
async fn people_read_a_line_for_each_thing() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let run = async |file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command.arg("doctor").arg(dir.path().join(file)).args(["--only", "store", "--only", "upstreams"]);
        let output = within(command.kill_on_drop(true).output()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = run("doorward.yaml").await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((code, lines.len()), (Some(1), 3), "{said}");
    assert!(lines[0].starts_with("FAULT    upstreams    upstream `web`: "), "{said}");
    assert!(lines[1].starts_with("ok       store        store "), "{said}");
    assert_eq!(lines[2], "2 checked: 1 fault, 0 warnings");
    std::fs::write(dir.path().join("bad.yaml"), "listeners: []").unwrap();
    let (code, said) = run("bad.yaml").await;
    assert!(code == Some(64) && said.contains("there is no listener"), "{said}");
}
