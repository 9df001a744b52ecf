//! `doorward demo`, as a newcomer uses it.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    doctor::doctor,
    fixture::Change,
    harness::{browse, free_port, loopbacks, told},
};

struct Demo {
    child: Child,
    said: String,
    port: u16,
    provider: u16,
    /// Where the demo creates its folder.
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

    /// The command that it prints under this number.
    fn pasted(&self, number: usize) -> String {
        let from = self.said.find(&format!("# {number}.")).unwrap();
        let rest = self.said[from..].split_once('\n').unwrap().1;
        rest.split("\n\n").next().unwrap().to_owned()
    }

    /// Its folder, and the configuration in it.
    fn folder(&self) -> (PathBuf, PathBuf) {
        let (_, rest) = self.said.split_once("The configuration is ").unwrap();
        let configuration = PathBuf::from(rest.split(',').next().unwrap());
        (configuration.parent().unwrap().to_owned(), configuration)
    }

    /// Presses Ctrl-C and waits until the demo has ended and nothing of it is left.
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
        let answer = paste(&demo, number);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{number}: {answer}");
        assert!(answer.contains(text), "{number}: {answer}");
    }
    demo.interrupt();
}

/// The output of a pasted command, once Doorward has the provider's keys.
fn paste(demo: &Demo, number: usize) -> String {
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        let output = Command::new("bash").arg("-c").arg(demo.pasted(number)).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if !answer.contains(" 503 ") || Instant::now() > until {
            return answer;
        }
    }
}

/// The held delivery is delivered, the trail names everybody and verifies, and changes to the configuration take
/// effect.
#[tokio::test]
async fn the_held_delivery_arrives_the_trail_verifies_and_a_change_takes_effect() {
    let demo = Demo::start();
    let (folder, configuration) = demo.folder();
    let trail = folder.join("audit.jsonl");
    let until = |what: &str, holds: &dyn Fn(&[Value]) -> bool| {
        let began = Instant::now();
        loop {
            let text = std::fs::read_to_string(&trail).unwrap();
            let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if holds(&records) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {text}");
            std::thread::yield_now();
        }
    };
    for (number, status) in [(1, "403"), (2, "200"), (3, "202"), (4, "401")] {
        assert!(paste(&demo, number).starts_with(&format!("HTTP/1.1 {status} ")), "{number}");
    }
    let pasted = demo.pasted(3);
    let (_, rest) = pasted.split_once("X-GitHub-Delivery: ").unwrap();
    let id = rest.split('\'').next().unwrap();
    until("the EventListener has it", &|records| {
        let of_delivery = |record: &&Value| record["unmapped"]["webhook"]["delivery"] == id;
        records.iter().filter(of_delivery).any(|record| record["unmapped"]["event_id"].is_string())
    });
    for text in
        ["deploy-bot", "no_rule_matched", "signature_invalid", "everybody-looks-at-ci", "pushes-start-pipelines"]
    {
        until(text, &|records| records.iter().any(|record| record.to_string().contains(text)));
    }
    let keys = ["--key", "audit-chain.key", "--checkpoint-key", "audit-checkpoint.pub.pem"];
    let (code, said) = told(&folder, &[&["audit", "verify", "audit.jsonl"], &keys[..]].concat()).await;
    assert_eq!(code, Some(0), "{said}");

    // "Change it while the demo runs, and watch it being reloaded."
    let yaml = std::fs::read_to_string(&configuration).unwrap();
    let people = "who: {groups: [release-managers, auditors], kind: human}";
    std::fs::write(&configuration, yaml.change(people, "who: {groups: [release-managers, auditors, agents]}")).unwrap();
    let began = Instant::now();
    while !paste(&demo, 1).starts_with("HTTP/1.1 200 ") {
        assert!(began.elapsed() < Duration::from_secs(60), "the bot is still refused");
    }
    demo.interrupt();
}

#[test]
fn a_port_in_use_is_reported_with_a_remedy() {
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
    // The first demo still runs.
    let answer = Command::new("bash").arg("-c").arg(demo.pasted(4)).output().unwrap();
    answer.stdout.as_slice().read_to_string(&mut own).unwrap();
    assert!(own.starts_with("HTTP/1.1 401"), "{own}");
}

/// `localhost` is both addresses, and clients that tried the other one first reached the other program.
#[test]
fn a_port_that_another_program_has_at_one_loopback_alone_is_in_use() {
    for loopback in loopbacks() {
        let (port, provider) = (free_port(), free_port());
        for taken in [port, provider] {
            let _other = TcpListener::bind((loopback, taken)).unwrap();
            let mut child = command(port, provider).spawn().unwrap();
            // It prints nothing unless it runs.
            let runs = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap() > 0;
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!runs, "{loopback} {taken}");
            assert!(said.contains(&format!("port {taken}")) && said.contains("in use"), "{loopback}: {said}");
            assert!(said.contains(&format!("(process {})", std::process::id())), "{loopback}: {said}");
        }
    }
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
    // Nobody is sent to the provider before its keys are there.
    paste(&demo, 1);
    // What it suggests to try as each user.
    assert!(demo.said.contains("/apis/tekton.dev/v1/namespaces/prod/pipelineruns as each of them"), "{}", demo.said);
    for (person, prod, part) in
        [("alice", 403, "no_rule_matched"), ("bob", 200, "tekton:prod-runners"), ("carol", 200, "tekton:viewers")]
    {
        let saw = browse(&json!({"scenario": "demo", "url": url, "person": person})).await;
        assert_eq!(saw["landed"], format!("{url}/"));
        let body = saw["body"].as_str().unwrap();
        assert!(body.contains("Sample Dashboard") && body.contains(&format!("{person}@doorward.demo")), "{saw}");
        assert_eq!(saw["denied"], 403);
        assert!(saw["deniedText"].as_str().unwrap().contains("nobody-reads-secrets"), "{saw}");
        assert_eq!(saw["prod"], prod, "{saw}");
        assert!(saw["prodText"].as_str().unwrap().contains(part), "{saw}");
    }
}

#[tokio::test]
async fn the_doctor_finds_no_problem_in_the_demo() {
    let demo = Demo::start();
    let (dir, _) = demo.folder();
    let public = format!("http://localhost:{}", demo.port);
    let said = doctor(&dir, &["--public", &public]).await;
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
    // Nobody is sent to the provider before its keys are there.
    paste(&demo, 1);
    let saw = browse(&json!({"scenario": "widths", "url": url})).await;
    assert_eq!(saw["sideways"], json!([]), "these scroll sideways");
    let saw = browse(&json!({"scenario": "plain", "url": url})).await;
    assert!(saw["whoami"].as_str().unwrap().contains("tekton:prod-runners"), "{saw}");
    assert_eq!((&saw["denied"], &saw["offered"]), (&json!(403), &json!("Sign in as somebody else")), "{saw}");
    assert_eq!(saw["out"], "You are signed out");
}
