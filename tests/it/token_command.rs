//! `doorward token` in the step of a task: what it asks for, how it handles the response, and how it keeps a file
//! fresh. The server is scripted here; `issuing.rs` tests with the real one.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    sync::Notify,
};

use crate::harness::{Recorded, Reply, Upstream, folder_with, replace_file, until, within};

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
async fn a_file_is_kept_fresh_with_the_pods_newest_token_and_removed_at_the_end() {
    let mut server = counting(1).await;
    let step = Step::new(&server.url(), SUBJECT);
    let mut child = step.command(&["--audience", "a", "--out", "token", "--keep"]).spawn().unwrap();
    let has = async |number: usize| {
        let file = step.path("token");
        until(async || {
            let found = fs::read_to_string(&file).unwrap_or_default();
            let found = found.strip_prefix("token-").and_then(|found| found.parse().ok());
            found.is_some_and(|found: usize| found >= number)
        })
        .await;
    };
    has(1).await;
    fs::write(step.path("subject"), "the.kubelets.next").unwrap();
    server.wait_for(3).await;
    has(3).await;
    assert!(text(&server.requests().pop().unwrap().body).contains("subject_token=the.kubelets.next"));
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert!(within(child.wait()).await.unwrap().success());
    assert!(!step.path("token").exists());
    assert!(revoked(&server).last().unwrap().starts_with("token=token-"));
}

#[tokio::test]
async fn a_command_has_a_token_at_hand_as_long_as_it_runs() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    for (shape, script, said) in [
        ("token", "cat $DOORWARD_TOKEN_FILE; exit 7", "token-1"),
        ("aws", "cat $AWS_WEB_IDENTITY_TOKEN_FILE; exit 7", "token-2"),
        ("docker", "cat $DOCKER_CONFIG/config.json; exit 7", "\"registrytoken\": \"token-3\""),
        ("kubeconfig", "cat $KUBECONFIG $KUBECONFIG.token; exit 7", "token-4"),
        ("docker-login", "cat $DOCKER_CONFIG/config.json; exit 7", "\"auth\": \"ZG9vcndhcmQ6dGhlLnBvZHMudG9rZW4=\""),
    ] {
        let output = step.run(&["--audience", "a.example", "--as", shape, "--", "sh", "-c", script]).await;
        assert_eq!(output.status.code(), Some(7), "{shape}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr).contains("AWS_ROLE_ARN is not set here"), shape == "aws", "{shape}");
        assert!(text(&output.stdout).contains(said), "{shape}: {}", text(&output.stdout));
        let left: Vec<_> = fs::read_dir(step.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["subject"], "{shape}: nothing is left");
    }
    assert_eq!(revoked(&server), ["token=token-1", "token=token-2", "token=token-3", "token=token-4", "token=token-5"]);

    // A signal ends the command first, in its own way.
    let script = "trap 'echo told; exit 3' TERM; echo ready; count=0; while [ $count -lt 9000 ]; do sleep 0.01; count=$((count + 1)); done";
    let mut child = step.command(&["--audience", "a", "--", "sh", "-c", script]).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    within(output.read_line(&mut line)).await.unwrap();
    kill_process(pid(&child), Signal::TERM).unwrap();
    line.clear();
    within(output.read_line(&mut line)).await.unwrap();
    assert_eq!((line.as_str(), within(child.wait()).await.unwrap().code()), ("told\n", Some(3)));
    // Distinguished from an exit of the command itself, as in a shell.
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        let output = step.run(&["--audience", "a", "--", command]).await;
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(
            told.contains(&format!("`{command}` cannot be run: ")) && told.contains("image of this step"),
            "{told}"
        );
    }
    assert_eq!(revoked(&server).len(), 8, "a token that no command got is ended too");
    assert_eq!(fs::read_dir(step.dir.path()).unwrap().count(), 1, "and no file of it is left");

    let output = step.run(&["--audience", "a", "--as", "docker", "--out", "auth", "--", "true"]).await;
    assert!(text(&output.stderr).contains("`config.json`"), "docker would not find it: {}", text(&output.stderr));
    // A renewed token is ended along with its successor.
    let server = counting(5).await;
    let step = Step::new(&server.url(), SUBJECT);
    let script = "while [ $(cat $DOORWARD_TOKEN_FILE) = token-1 ]; do sleep 0.01; done";
    let output = step.run(&["--audience", "a", "--", "sh", "-c", script]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(revoked(&server), ["token=token-1", "token=token-2"]);
}

/// Regression: the command asked for a token without a scope, which rules that name scopes by a pattern give to nobody.
#[tokio::test]
async fn the_docker_login_form_sends_and_receives_what_registry_clients_do() {
    let server = counting(600).await;
    let arguments = ["--audience", "registry.example", "--scope", "push:a", "--as", "docker-login"];
    let output = Step::new(&server.url(), SUBJECT).run(&arguments).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let request = server.only();
    assert_eq!(request.line(), "GET /oauth2/registry?service=registry.example HTTP/1.1");
    assert_eq!(request.one("authorization"), "Basic ZG9vcndhcmQ6dGhlLnBvZHMudG9rZW4=");
    for (status, code, message, is_over) in [
        (403, "DENIED", "a token for `registry.example`: no rule gives it", false),
        (401, "UNAUTHORIZED", "TaskRun build: it has ended", true),
    ] {
        let refusal = json!({"errors": [{"code": code, "message": message, "detail": null}]}).to_string();
        let server = Upstream::scripted(move |_| Reply::json(status, &refusal)).await;
        let output = Step::new(&server.url(), SUBJECT).run(&arguments).await;
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(message) && !told.contains(SUBJECT), "{told}");
        assert_eq!(told.contains("its tokens were ended"), is_over, "{told}");
    }
}

/// Regression: the command had a process group of its own, and kept running when the group that `doorward token` was
/// started with had been killed.
#[tokio::test]
async fn a_command_is_killed_with_the_group_that_doorward_was_started_in() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let command = ["--audience", "a", "--", "sh", "-c", "echo ready; exec sleep 1000"];
    let mut child = step.command(&command).process_group(0).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(within(lines.next_line()).await.unwrap().as_deref(), Some("ready"));
    kill_process_group(pid(&child), Signal::KILL).unwrap();
    within(child.wait()).await.unwrap();
    assert_eq!(within(lines.next_line()).await.unwrap(), None, "whoever could write there is gone");
}

/// The signals that a process ignores, as a bit mask.
fn ignored(process: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap()
}

/// A hang-up removed the file, although the command was started so that it survives one.
#[tokio::test]
async fn a_kept_file_outlasts_a_hang_up_that_is_ignored_from_the_start() {
    let server = counting(5).await;
    let step = Step::new(&server.url(), SUBJECT);
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).kill_on_drop(true).current_dir(step.dir.path());
    let doorward = step.command(&["--audience", "a", "--out", "token", "--keep"]);
    let doorward = doorward.as_std();
    nohup.arg(doorward.get_program()).args(doorward.get_args());
    nohup.envs(doorward.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = nohup.spawn().unwrap();
    until(async || step.path("token").exists()).await;
    assert_eq!(ignored(&child.id().unwrap().to_string()) & 1, 1, "it hears of a hang-up");
    let kept = || fs::read_to_string(step.path("token")).unwrap();
    let before = kept();
    kill_process(pid(&child), Signal::HUP).unwrap();
    until(async || kept() != before).await;
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert!(within(child.wait()).await.unwrap().success());
    assert!(!step.path("token").exists());
}

/// With all but two signals it ended at once.
#[tokio::test]
async fn a_kept_file_is_removed_whichever_signal_ends_the_command() {
    // Whoever runs the tests may ignore some signals, which is inherited.
    let ignored = ignored("self");
    let ends = |signal: &Signal| (ignored >> (signal.as_raw() - 1)) & 1 == 0;
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2].into_iter().filter(ends) {
        let server = counting(600).await;
        let step = Step::new(&server.url(), SUBJECT);
        let mut child = step.command(&["--audience", "a", "--out", "token", "--keep"]).spawn().unwrap();
        until(async || step.path("token").exists()).await;
        kill_process(pid(&child), signal).unwrap();
        assert!(within(child.wait()).await.unwrap().success(), "{signal:?}");
        assert!(!step.path("token").exists(), "{signal:?}");
        assert_eq!(revoked(&server), ["token=token-1"], "{signal:?}");
    }
}

/// Regression: `doorward token` ended at once or, as process 1 of a container, ignored the signal, and the token stayed
/// valid for all its lifetime.
#[tokio::test]
async fn a_signal_before_the_first_token_ends_the_token_that_arrives() {
    let told = Arc::new(Notify::new());
    let Reply::Bytes(answer) = issued("token-1", 600) else { panic!("an answer is bytes") };
    let mut server = Upstream::scripted({
        let told = Arc::clone(&told);
        move |request: &Recorded| match request.line().contains("/oauth2/token") {
            true => Reply::Later(Arc::clone(&told), answer.clone()),
            false => Reply::json(200, "{}"),
        }
    })
    .await;
    let step = Step::new(&server.url(), SUBJECT);
    let mut child = step.command(&["--audience", "a", "--", "sleep", "1000"]).spawn().unwrap();
    server.wait_for(1).await;
    kill_process(pid(&child), Signal::TERM).unwrap();
    told.notify_one();
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(143), "as in a shell");
    assert_eq!(revoked(&server), ["token=token-1"]);
    assert_eq!(fs::read_dir(step.dir.path()).unwrap().count(), 1, "no file of it is left");
}

#[tokio::test]
async fn a_token_file_that_is_not_renewed_is_removed_when_the_token_expires() {
    let asked = Arc::new(AtomicUsize::new(0));
    let server = Upstream::scripted({
        let asked = Arc::clone(&asked);
        move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => issued("only", 1),
            _ => Reply::Bytes(b"HTTP/1.1 503 X\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n".to_vec()),
        }
    })
    .await;
    let step = Step::new(&server.url(), SUBJECT);
    let script = "while [ -e $DOORWARD_TOKEN_FILE ]; do sleep 0.01; done; echo gone";
    let output = step.run(&["--audience", "a", "--out", "token", "--", "sh", "-c", script]).await;
    assert_eq!(text(&output.stdout), "gone\n", "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the file was removed"), "{}", text(&output.stderr));
    assert!(asked.load(Ordering::SeqCst) > 1);
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
async fn a_refusal_of_the_next_token_does_not_take_away_one_that_is_good() {
    let asked = AtomicUsize::new(0);
    let refusal = json!({"error": "invalid_target", "error_description": "no rule gives it"}).to_string();
    let mut server = Upstream::scripted(move |request: &Recorded| match asked.fetch_add(1, Ordering::SeqCst) {
        _ if request.line().contains("revoke") => Reply::json(200, "{}"),
        0 => issued("first", 2),
        1 => Reply::json(400, &refusal),
        2 => issued("second", 2),
        _ => Reply::json(400, &refusal),
    })
    .await;
    let step = Step::new(&server.url(), SUBJECT);
    let mut child = step.command(&["--audience", "a", "--out", "token", "--keep"]).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = hear(&mut told, "no rule gives it").await;
    assert!(line.contains("the one before it is good until"), "{line}");
    assert_eq!(fs::read_to_string(step.path("token")).unwrap(), "first");
    server.wait_for(3).await;
    let line = hear(&mut told, "is good until").await;
    assert!(line.contains("no rule gives it"), "{line}");
    assert_eq!(fs::read_to_string(step.path("token")).unwrap(), "second", "the rule came back");
    // It is removed when it expires, and a refusal is reported last.
    hear(&mut told, "the file was removed").await;
    let line = hear(&mut told, "the token is not renewed").await;
    assert!(line.contains("no rule gives it"), "{line}");
    assert_eq!(within(child.wait()).await.unwrap().code(), Some(1));
    assert!(!step.path("token").exists());
}

#[tokio::test]
async fn the_end_of_the_run_is_final_and_takes_the_token_away() {
    for (error, description) in [
        ("invalid_request", "TaskRun build has ended"),
        ("invalid_request", "TaskRun build: it does not exist any more"),
        ("invalid_request", "subject_token: the token was revoked; get a new token"),
        ("invalid_grant", "it was revoked"),
    ] {
        let asked = AtomicUsize::new(0);
        let refusal = json!({"error": error, "error_description": description}).to_string();
        let server = Upstream::scripted(move |request: &Recorded| match asked.fetch_add(1, Ordering::SeqCst) {
            _ if request.line().contains("revoke") => Reply::json(200, "{}"),
            0 => issued("first", 5),
            _ => Reply::json(400, &refusal),
        })
        .await;
        let step = Step::new(&server.url(), SUBJECT);
        let arguments = ["--audience", "a", "--out", "token", "--keep"];
        let child = step.command(&arguments).spawn().unwrap();
        let output = within(child.wait_with_output()).await.unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        let told = text(&output.stderr);
        assert!(told.contains("the run has ended") && told.contains(description), "{error}: {told}");
        assert!(!told.contains("trying again") && !step.path("token").exists(), "{error}: {told}");
    }
}

/// Regression: the earlier token was reported as valid until its end, although the problem of the pod's token may
/// affect it too.
#[tokio::test]
async fn a_refusal_of_the_pods_token_says_nothing_good_of_the_one_before() {
    let asked = AtomicUsize::new(0);
    let description = "subject_token: the token expired 3 s ago";
    let refusal = json!({"error": "invalid_request", "error_description": description}).to_string();
    let server = Upstream::scripted(move |request: &Recorded| match asked.fetch_add(1, Ordering::SeqCst) {
        _ if request.line().contains("revoke") => Reply::json(200, "{}"),
        0 => issued("first", 2),
        _ => Reply::json(400, &refusal),
    })
    .await;
    let step = Step::new(&server.url(), SUBJECT);
    let output = step.run(&["--audience", "a", "--out", "token", "--keep"]).await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(description) && told.contains("trying again"), "{told}");
    assert!(told.contains("may have ended too") && !told.contains("is good until"), "{told}");
    assert!(!step.path("token").exists());
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
        assert!(start.elapsed() < Duration::from_secs(15), "{file}: it takes no minute");
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
async fn kubectl_reads_the_token_that_is_kept_fresh_beside_the_kubeconfig() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let kept = ["--audience", "a", "--as", "kubeconfig", "--out", "config"];
    assert!(step.run(&kept).await.status.success());
    let config: serde_json::Value = serde_json::from_slice(&fs::read(step.path("config")).unwrap()).unwrap();
    assert_eq!(config["users"][0]["user"], json!({"tokenFile": "config.token"}));
    for file in ["config", "config.token"] {
        assert_eq!(fs::metadata(step.path(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    assert_eq!(fs::read_to_string(step.path("config.token")).unwrap(), "token-1");
    // For printed output there is no file to name.
    let output = step.run(&["--audience", "a", "--as", "kubeconfig"]).await;
    assert!(text(&output.stdout).contains("\"token\": \"token-2\""), "{}", text(&output.stdout));

    let server = counting(5).await;
    let step = Step::new(&server.url(), SUBJECT);
    let script = "cp $KUBECONFIG before; while [ $(cat $KUBECONFIG.token) = token-1 ]; do sleep 0.01; done; cmp before $KUBECONFIG";
    let output =
        step.run(&["--audience", "a", "--as", "kubeconfig", "--out", "config", "--", "sh", "-c", script]).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!step.path("config").exists() && !step.path("config.token").exists(), "nothing of it is left");
}

/// kubectl accepts no other version, but always got the same one.
#[tokio::test]
async fn kubectl_is_answered_in_the_version_in_which_it_asks() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let asked = async |api: &str| {
        let mut command = step.command(&["--audience", "a", "--as", "exec-credential"]);
        let info = json!({"apiVersion": api, "kind": "ExecCredential", "spec": {"interactive": false}});
        within(command.env("KUBERNETES_EXEC_INFO", info.to_string()).output()).await.unwrap()
    };
    for api in ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"] {
        let output = asked(api).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let credential: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&credential["apiVersion"], &credential["kind"]), (&json!(api), &json!("ExecCredential")));
    }
    let output = asked("client.authentication.k8s.io/v1alpha1").await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("v1alpha1`; write `apiVersion: "), "{}", text(&output.stderr));
    assert_eq!(server.requests().len(), 2, "no token is asked for that nobody would take");
}

#[tokio::test]
async fn git_gets_a_token_for_its_own_host_and_no_other() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let helper = format!("!{} token --audience git.example --as git", env!("CARGO_BIN_EXE_doorward"));
    for (host, filled) in [("git.example", true), ("evil.example", false)] {
        let command = step.command(&[]);
        let command = command.as_std();
        let mut git = Command::new("git");
        git.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", step.dir.path())
            .args(["-c", "credential.helper=", "-c", &format!("credential.helper={helper}"), "credential", "fill"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = git.spawn().unwrap();
        let question = format!("protocol=https\nhost={host}\n\n");
        child.stdin.take().unwrap().write_all(question.as_bytes()).await.unwrap();
        let output = within(child.wait_with_output()).await.unwrap();
        assert_eq!(text(&output.stdout).contains("password=token-"), filled, "{host}: {}", text(&output.stderr));
    }
    assert_eq!(server.requests().len(), 1, "for the other host none was asked for");
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
