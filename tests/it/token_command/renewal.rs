//! How a token in a file is renewed, and what happens when the next one is refused.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Signal, kill_process};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::Notify,
};

use super::{SUBJECT, Step, counting, hear, issued, pid, revoked, text};
use crate::harness::{Recorded, Reply, Upstream, until, within};

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
    until(async || text(&server.requests().pop().unwrap().body).contains("subject_token=the.kubelets.next")).await;
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert!(within(child.wait()).await.unwrap().success());
    assert!(!step.path("token").exists());
    assert!(revoked(&server).last().unwrap().starts_with("token=token-"));
}

#[tokio::test]
async fn a_renewed_token_is_ended_along_with_its_successor() {
    let server = counting(5).await;
    let step = Step::new(&server.url(), SUBJECT);
    let script = "while [ $(cat $DOORWARD_TOKEN_FILE) = token-1 ]; do sleep 0.01; done";
    let mut command = step.without_time(&["--audience", "a", "--", "sh", "-c", script]);
    let output = within(command.output()).await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(revoked(&server), ["token=token-1", "token=token-2"]);
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

#[tokio::test]
async fn a_refusal_of_the_next_token_does_not_take_away_one_that_is_good() {
    let (asked, comes_back) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let refusal = json!({"error": "invalid_target", "error_description": "no rule gives it"}).to_string();
    let Reply::Bytes(second) = issued("second", 2) else { panic!("an answer is bytes") };
    let mut server = Upstream::scripted({
        let comes_back = Arc::clone(&comes_back);
        move |request: &Recorded| match asked.fetch_add(1, Ordering::SeqCst) {
            _ if request.line().contains("revoke") => Reply::json(200, "{}"),
            0 => issued("first", 2),
            1 => Reply::json(400, &refusal),
            2 => Reply::Later(Arc::clone(&comes_back), second.clone()),
            _ => Reply::json(400, &refusal),
        }
    })
    .await;
    let step = Step::new(&server.url(), SUBJECT);
    let mut child = step.without_time(&["--audience", "a", "--out", "token", "--keep"]).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = hear(&mut told, "no rule gives it").await;
    assert!(line.contains("the one before it is good until"), "{line}");
    assert_eq!(fs::read_to_string(step.path("token")).unwrap(), "first");
    comes_back.notify_one();
    server.wait_for(3).await;
    let line = hear(&mut told, "is good until").await;
    assert!(line.contains("no rule gives it"), "{line}");
    assert_eq!(fs::read_to_string(step.path("token")).unwrap(), "second", "the rule came back");
    // It is removed when it expires, and a refusal is reported last.
    step.end_tokens();
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
