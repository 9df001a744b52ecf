//! `doorward token` in the step of a task: what it asks for, how it handles the response, and how it keeps a file
//! fresh. The server is scripted here; `issuing.rs` tests with the real one.

mod forms;
mod process;
mod renewal;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rustix::process::Pid;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::harness::{Recorded, Reply, Upstream, faults, folder_with, now, replace_file, within};

/// The pod's token. Only the server may see it.
const SUBJECT: &str = "the.pods.token";

/// A step, with the pod's token in a file.
pub struct Step {
    dir: TempDir,
    server: String,
}

impl Step {
    pub fn new(server: &str, subject: &str) -> Self {
        let dir = folder_with(&[("subject", subject)]);
        Self { dir, server: server.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        command
            .arg("token")
            .args(arguments)
            .current_dir(self.dir.path())
            .env("DOORWARD_SERVER", &self.server)
            .env("DOORWARD_SUBJECT_TOKEN_FILE", self.path("subject"))
            .env("TMPDIR", self.dir.path())
            .env_remove("AWS_ROLE_ARN")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The same with a clock that stands still, so that no token expires before [`Step::end_tokens`].
    fn without_time(&self, arguments: &[&str]) -> Command {
        faults::set_clock_ahead(self.dir.path(), now());
        let mut command = self.command(arguments);
        command.envs(faults::environment(self.dir.path()));
        command
    }

    /// Sets that clock to when all tokens so far have expired.
    fn end_tokens(&self) {
        faults::set_clock_ahead(self.dir.path(), now() + 3600);
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        within(self.command(arguments).output()).await.unwrap()
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().unwrap().cast_signed()).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn issued(token: &str, expires_in: u64) -> Reply {
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": expires_in,
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "scope": "push"});
    Reply::json(200, &answer.to_string())
}

/// Issues `token-1`, `token-2` and so on, each for `expires_in` seconds.
async fn counting(expires_in: u64) -> Upstream {
    let count = AtomicUsize::new(0);
    Upstream::scripted(move |request: &Recorded| match request.line().contains("/oauth2/revoke") {
        true => Reply::json(200, "{}"),
        false => issued(&format!("token-{}", count.fetch_add(1, Ordering::SeqCst) + 1), expires_in),
    })
    .await
}

fn revoked(server: &Upstream) -> Vec<String> {
    let requests = server.requests().into_iter();
    requests.filter(|request| request.line().contains("/oauth2/revoke")).map(|request| text(&request.body)).collect()
}

/// Reads standard error line by line until one contains `said`, and returns that line.
async fn hear(lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStderr>>, said: &str) -> String {
    within(async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            if line.contains(said) {
                return line;
            }
        }
    })
    .await
}

#[tokio::test]
async fn the_pods_token_is_swapped_for_what_is_asked() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), &format!("{SUBJECT}\n"));
    let output = step.run(&["--audience", "https://api.example", "--scope", "push pull"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "token-1");
    let request = server.only();
    assert_eq!(request.line(), "POST /oauth2/token HTTP/1.1");
    assert_eq!(
        text(&request.body),
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange\
         &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Ajwt\
         &subject_token=the.pods.token&audience=https%3A%2F%2Fapi.example&scope=push+pull"
    );
    // However they are given.
    let output = step.run(&["--audience", "api", "--scope", "push pull", "--scope=deploy"]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&server.requests().pop().unwrap().body).ends_with("&scope=push+pull+deploy"));
    let output = step.run(&["--audience", "registry.example", "--as", "docker", "--out", "config.json"]).await;
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    let file = step.path("config.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&file).unwrap().contains("\"registrytoken\": \"token-3\""));
}

#[tokio::test]
async fn temporary_failures_are_retried_and_final_ones_reported() {
    let count = AtomicUsize::new(0);
    let busy = Upstream::scripted(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::Bytes(
            b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\nRetry-After: 0\r\nContent-Length: 66\r\n\r\n\
              {\"error\":\"temporarily_unavailable\",\"error_description\":\"not yet.\"}"
                .to_vec(),
        ),
        _ => issued("late", 600),
    })
    .await;
    let output = Step::new(&busy.url(), SUBJECT).run(&["--audience", "a"]).await;
    assert_eq!(text(&output.stdout), "late", "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("not yet."), "{}", text(&output.stderr));

    let description = "a token for `a`: no rule gives it";
    let refusing = json!({"error": "invalid_target", "error_description": description}).to_string();
    let refusing = Upstream::scripted(move |_| Reply::json(400, &refusing)).await;
    let html =
        Upstream::scripted(|_| Reply::Bytes(b"HTTP/1.1 200 X\r\nContent-Length: 6\r\n\r\n<html>".to_vec())).await;
    let empty = Upstream::scripted(|_| issued("", 600)).await;
    for (what, server, said) in [
        ("refused", &refusing, description),
        ("no Doorward", &html, "is it a Doorward?"),
        ("no token", &empty, "is it a Doorward?"),
    ] {
        let output = Step::new(&server.url(), SUBJECT).run(&["--audience", "a"]).await;
        assert_eq!(output.status.code(), Some(1), "{what}");
        let told = text(&output.stderr);
        assert!(told.contains(said) && !told.contains(SUBJECT), "{what}: {told}");
        assert_eq!(server.requests().len(), 1, "{what}: asking again changes nothing");
    }
}

#[tokio::test]
async fn a_mistyped_path_of_the_pods_token_is_reported_at_once() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    fs::write(step.path("empty"), "\n").unwrap();
    fs::write(step.path("large"), "x".repeat(33 << 10)).unwrap();
    for (file, said, waits) in [
        ("none/token", "there is no folder none, so no volume is mounted there", false),
        ("subject/token", "Not a directory", false),
        (".", "directory", false),
        ("large", "more than 32768 bytes", false),
        ("empty", "it is empty", true),
        ("missing", "No such file", true),
    ] {
        let start = std::time::Instant::now();
        let output = step.run(&["--audience", "a", "--subject-token-file", file]).await;
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{file}: {told}");
        assert!(told.contains(said) && told.contains("--subject-token-file"), "{file}: {told}");
        assert_eq!(told.contains("trying again"), waits, "{file}: {told}");
        assert!(start.elapsed() < Duration::from_secs(45), "{file}: it takes no minute");
    }
    assert!(server.requests().is_empty());

    // A file that another container writes a moment later is found.
    let mut child = step.command(&["--audience", "a", "--subject-token-file", "late"]).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    hear(&mut told, "trying again").await;
    replace_file(&step.path("late"), SUBJECT);
    assert_eq!(text(&within(child.wait_with_output()).await.unwrap().stdout), "token-1");
}

#[tokio::test]
async fn a_parameter_that_a_step_leaves_out_counts_as_left_out() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let arguments = ["--audience", "a", "--scope", "", "--as", "token", "--registry", ""];
    let output = within(step.command(&arguments).env("DOORWARD_CA_FILE", "").output()).await.unwrap();
    assert_eq!(text(&output.stdout), "token-1", "{}", text(&output.stderr));
    assert!(text(&server.only().body).ends_with("&audience=a"));
    let output = step.run(&["--audience", "a", "--as", "kubeconfig", "--cluster", ""]).await;
    let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let cluster = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    assert_eq!(cluster.trim_end_matches('/'), server.url().trim_end_matches('/'));
    // Of the required settings, it names the missing ones.
    let output = within(step.command(&["--audience", "a"]).env("DOORWARD_SERVER", "").output()).await.unwrap();
    assert!(text(&output.stderr).contains("--server <URL>") && !output.status.success(), "{}", text(&output.stderr));
}

#[tokio::test]
async fn nothing_is_asked_for_that_could_not_be_written() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    std::os::unix::fs::symlink("subject", step.path("link")).unwrap();
    std::os::unix::fs::symlink("subject", step.path("config.token")).unwrap();
    for further in [
        &["--out", "link"][..],
        &["--out", "link", "--keep"],
        &["--out", "link", "--", "true"],
        &["--out", "config", "--as", "kubeconfig"],
    ] {
        let output = step.run(&[&["--audience", "a"][..], further].concat()).await;
        assert_eq!(output.status.code(), Some(1), "{further:?}");
        assert!(text(&output.stderr).contains("is a symbolic link"), "{}", text(&output.stderr));
    }
    let output = step.run(&["--audience", "a", "--out", "missing/token"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("missing/token: No such file"), "{}", text(&output.stderr));
    assert!(server.requests().is_empty());
    assert!(step.path("link").is_symlink() && step.path("config.token").is_symlink());
    assert_eq!(fs::read_to_string(step.path("subject")).unwrap(), SUBJECT);
}
