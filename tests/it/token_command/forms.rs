//! The forms in which programs read a token: docker, AWS, kubectl and git.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use serde_json::json;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{SUBJECT, Step, counting, revoked, text};
use crate::harness::{Reply, Upstream, within};

#[tokio::test]
async fn a_command_has_its_token_in_the_form_that_it_reads_as_long_as_it_runs() {
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
}

#[tokio::test]
async fn a_file_that_docker_would_not_find_is_refused() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    let output = step.run(&["--audience", "a", "--as", "docker", "--out", "auth", "--", "true"]).await;
    assert!(text(&output.stderr).contains("`config.json`"), "{}", text(&output.stderr));
    assert_eq!((output.status.code(), server.requests().len()), (Some(1), 0), "before a token is asked for");
}

/// The token was requested first, and then neither printed nor revoked.
#[tokio::test]
async fn no_token_is_requested_for_docker_without_the_host_of_a_registry() {
    let server = counting(600).await;
    let step = Step::new(&server.url(), SUBJECT);
    for shape in ["docker", "docker-login"] {
        let output = step.run(&["--audience", "urn:images", "--as", shape]).await;
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{shape}: {told}");
        assert!(told.contains("`urn:images` names no host") && told.contains("`--registry`"), "{shape}: {told}");
    }
    assert!(server.requests().is_empty());
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
