//! `doorward demo`, as a newcomer meets it.

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    doctor::doctor,
    harness::{browse, free_port},
};

struct Demo {
    child: Child,
    said: String,
    port: u16,
    provider: u16,
    /// Where it makes its folder.
    temporary: TempDir,
}

impl Demo {
    fn start() -> Self {
        let (port, provider) = (free_port(), free_port());
        let temporary = tempfile::tempdir().unwrap();
        let mut child = command(port, provider).env("TMPDIR", temporary.path()).spawn().unwrap();
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        while !said.contains("Ctrl-C stops") {
            assert!(out.read_line(&mut said).unwrap() > 0, "the demo ended: {said}");
        }
        Self { child, said, port, provider, temporary }
    }

    /// The commands that it prints, by their number.
    fn pasted(&self, number: usize) -> String {
        let from = self.said.find(&format!("# {number}.")).unwrap();
        let rest = self.said[from..].split_once('\n').unwrap().1;
        rest.split("\n\n").next().unwrap().to_owned()
    }

    /// Presses Ctrl-C and waits for the end, after which nothing of it is left.
    fn interrupt(mut self) {
        Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status().unwrap();
        assert!(self.child.wait().unwrap().success());
        assert_eq!(std::fs::read_dir(self.temporary.path()).unwrap().count(), 0);
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(port: u16, provider: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(["demo", "--port", &port.to_string(), "--provider-port", &provider.to_string()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn the_four_lines_work_as_they_are_pasted_and_ctrl_c_stops() {
    let demo = Demo::start();
    for (number, status, text) in [
        (1, "403", "no_rule_matched"),
        (2, "200", "deploy-bot"),
        (3, "202", "held"),
        (3, "200", "replayed_delivery"),
        (4, "401", "signature_invalid"),
    ] {
        // The keys of the provider may still be on their way to Doorward.
        let answer = loop {
            let output = Command::new("bash").arg("-c").arg(demo.pasted(number)).output().unwrap();
            let answer = String::from_utf8_lossy(&output.stdout).into_owned();
            if !answer.contains(" 503 ") {
                break answer;
            }
        };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{number}: {answer}");
        assert!(answer.contains(text), "{number}: {answer}");
    }
    demo.interrupt();
}

#[test]
fn a_port_in_use_is_told_with_what_to_do() {
    let demo = Demo::start();
    for (port, provider, taken) in [(demo.port, free_port(), demo.port), (free_port(), demo.provider, demo.provider)] {
        let output = command(port, provider).env("TMPDIR", demo.temporary.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("port {taken}")) && said.contains("in use"), "{said}");
        assert!(said.contains("choose"), "what to do: {said}");
        assert!(said.contains(&format!("`doorward` (process {})", demo.child.id())), "who has it: {said}");
    }
    let mut own = String::new();
    // The first goes on.
    let answer = Command::new("bash").arg("-c").arg(demo.pasted(4)).output().unwrap();
    answer.stdout.as_slice().read_to_string(&mut own).unwrap();
    assert!(own.starts_with("HTTP/1.1 401"), "{own}");
}

#[test]
fn doorward_and_the_provider_need_a_port_each() {
    let port = free_port();
    let output = command(port, port).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--port and --provider-port must differ"), "{said}");
}

#[tokio::test]
async fn one_click_signs_in() {
    let demo = Demo::start();
    let url = format!("http://localhost:{}", demo.port);
    for person in ["alice", "bob", "carol"] {
        let saw = browse(&json!({"scenario": "demo", "url": url, "person": person})).await;
        assert_eq!(saw["landed"], format!("{url}/"));
        let body = saw["body"].as_str().unwrap();
        assert!(body.contains("Sample Dashboard") && body.contains(&format!("{person}@doorward.demo")), "{saw}");
        assert_eq!(saw["denied"], 403);
        assert!(saw["deniedText"].as_str().unwrap().contains("nobody-reads-secrets"), "{saw}");
    }
}

#[tokio::test]
async fn a_doctor_finds_nothing_wrong_with_it() {
    let demo = Demo::start();
    let (_, rest) = demo.said.split_once("The configuration is ").unwrap();
    let dir = Path::new(rest.split(',').next().unwrap()).parent().unwrap();
    let public = format!("http://localhost:{}", demo.port);
    let said = doctor(dir, &["--public", &public]).await;
    let bad = said.findings.iter().filter(|finding| !["good", "skipped"].contains(&finding["state"].as_str().unwrap()));
    assert_eq!((said.code, bad.collect::<Vec<_>>()), (Some(0), Vec::new()));
    for check in ["discovery", "redirect", "origin", "upgrade", "cookies", "rights", "store"] {
        said.is(check, "good", &[]);
    }
    demo.interrupt();
}

#[tokio::test]
async fn the_pages_fit_a_phone_and_do_without_javascript() {
    let demo = Demo::start();
    let url = format!("http://localhost:{}", demo.port);
    let saw = browse(&json!({"scenario": "widths", "url": url})).await;
    assert_eq!(saw["sideways"], json!([]), "these scroll sideways");
    let saw = browse(&json!({"scenario": "plain", "url": url})).await;
    assert!(saw["whoami"].as_str().unwrap().contains("tekton:prod-runners"), "{saw}");
    assert_eq!((&saw["denied"], &saw["offered"]), (&json!(403), &json!("Sign in as somebody else")), "{saw}");
    assert_eq!(saw["out"], "You are signed out");
}
