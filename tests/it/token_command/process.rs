//! `doorward token` as a process: the signals that it gets, the command that it starts, and what is left of both.

use std::{
    fs,
    io::PipeWriter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::{Signal, kill_process, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::Notify,
};

use super::{SUBJECT, Step, counting, issued, pid, revoked, text};
use crate::harness::{Recorded, Reply, Upstream, until, within};

#[tokio::test]
async fn a_signal_ends_the_command_first_and_in_its_own_way() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let script = "trap 'echo told; exit 3' TERM; echo ready; count=0; while [ $count -lt 9000 ]; do sleep 0.01; count=$((count + 1)); done";
    let mut child = step.command(&["--audience", "a", "--", "sh", "-c", script]).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    within(output.read_line(&mut line)).await.unwrap();
    kill_process(pid(&child), Signal::TERM).unwrap();
    line.clear();
    within(output.read_line(&mut line)).await.unwrap();
    assert_eq!((line.as_str(), within(child.wait()).await.unwrap().code()), ("told\n", Some(3)));
    assert_eq!(revoked(&server), ["token=token-1"]);
    assert_eq!(fs::read_dir(step.dir.path()).unwrap().count(), 1, "no file of it is left");
}

/// As in a shell.
#[tokio::test]
async fn a_command_that_cannot_be_run_is_distinguished_from_one_that_fails() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
        let output = step.run(&["--audience", "a", "--", command]).await;
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(
            told.contains(&format!("`{command}` cannot be run: ")) && told.contains("image of this step"),
            "{told}"
        );
    }
    assert_eq!(revoked(&server), ["token=token-1", "token=token-2"], "a token that no command got is ended too");
    assert_eq!(fs::read_dir(step.dir.path()).unwrap().count(), 1, "and no file of it is left");
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
    let doorward = step.without_time(&["--audience", "a", "--out", "token", "--keep"]);
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

/// A pipe whose reader is gone.
fn unread() -> PipeWriter {
    let (_, writer) = std::io::pipe().unwrap();
    writer
}

#[tokio::test]
async fn a_token_that_cannot_be_printed_is_revoked() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let status = within(step.command(&["--audience", "a"]).stdout(unread()).status()).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(revoked(&server), ["token=token-1"]);
}

/// It panicked at its first message, so the command was orphaned, and the token stayed valid in its file.
#[tokio::test]
async fn a_message_that_nobody_reads_changes_neither_the_exit_status_nor_what_is_revoked_and_removed() {
    let server = async || {
        let count = AtomicUsize::new(0);
        Upstream::scripted(move |request: &Recorded| {
            match (request.line().contains("/oauth2/token"), count.fetch_add(1, Ordering::SeqCst)) {
                (true, 0) | (false, _) => Reply::json(503, "{}"),
                (true, _) => issued("token-1", 600),
            }
        })
        .await
    };
    let of_command = server().await;
    let step = Step::new(&of_command.url(), SUBJECT);
    let command = ["--audience", "a", "--", "sh", "-c", "exit 7"];
    let status = within(step.command(&command).stderr(unread()).status()).await.unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(revoked(&of_command), ["token=token-1"]);
    assert_eq!(fs::read_dir(step.dir.path()).unwrap().count(), 1, "no file of it is left");

    let of_file = server().await;
    let step = Step::new(&of_file.url(), SUBJECT);
    let keep = ["--audience", "a", "--out", "token", "--keep"];
    let mut child = step.command(&keep).stderr(unread()).spawn().unwrap();
    until(async || step.path("token").exists()).await;
    kill_process(pid(&child), Signal::TERM).unwrap();
    assert!(within(child.wait()).await.unwrap().success());
    assert!(!step.path("token").exists());
    assert_eq!(revoked(&of_file), ["token=token-1"]);
}
