//! An unavailable store: nobody is signed out, nobody gets in, and what works without it continues for a while. Also a
//! store file that belongs to another user.

use std::{
    fs::Permissions,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Stdio,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::{
    fixture::{WEBHOOK_SECRET, bearer},
    harness::{Issuer, Push, Upstream, until, within},
    login_fixture::{LoginFixture, RULE},
};

#[tokio::test]
async fn an_unavailable_store_gives_503_and_signs_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let changes = [
        ("routes:\n", "webhooks:
  - {name: github, sender: github, hold: false, secrets: [{secret: {file: secret}}]}
routes:
  - {name: hooks, kind: webhook, hosts: [hooks.test], paths: [/github], schemes: [webhook], webhook: github, upstream: web}
"),
        ("[session]", "[session, bearer]"),
        (RULE, "{id: people, on: {routes: [web]}, who: {users: [alice]}, do: allow}
  - {id: hooks, on: {routes: [hooks]}, who: {webhooks: [github]}, do: allow}"),
    ];
    std::fs::write(dir.path().join("secret"), WEBHOOK_SECRET).unwrap();
    let issuer = Issuer::start().await;
    let world = LoginFixture::at(issuer.url(), 0, Upstream::start().await, dir, &changes).await;
    let doorward = &world.doorward;
    let deliver = async |push: &Push| push.send(doorward, &[]).await.status;
    let token = bearer(&issuer.token("alice", &[]));
    let by_token = async || doorward.get("/page", &["Host: localhost", &token]).await;
    until(async || by_token().await.status == 200).await;
    let cookie = world.log_in().await;
    let by_cookie = async || world.get("/page", &[&cookie]).await;
    assert_eq!((by_cookie().await.status, deliver(&Push::new()).await), (200, 200));

    doorward.break_disk(true);
    // A webhook whose replay could not be detected is refused. The broken disk is detected by a write, which may be
    // that of the first delivery, after it was forwarded: this one must be remembered.
    let first = Push::new();
    let status = deliver(&first).await;
    assert!(matches!(status, 200 | 503), "{status}");
    assert_eq!(deliver(&Push::new()).await, 503);
    assert_eq!(deliver(&first).await, 503, "no second time");
    assert_eq!(by_token().await.status, 200, "the copy of the revocations is fresh");
    // What was read a moment ago is still accepted.
    until(async || by_cookie().await.status != 200).await;
    // An operator must not conclude that nothing was written.
    for (command, said) in [
        (&["revoke"][..], "it is not known whether it is revoked"),
        (&["sessions", "end"], "it is not known which sessions have ended"),
    ] {
        let of_bob = ["--issuer", issuer.url(), "--subject", "bob", "--why", "left"];
        let (code, told) = doorward.operator(&[command, &of_bob[..]].concat()).await;
        assert!(code == Some(1) && told.contains(said) && told.contains("try again"), "{told}");
    }
    // Doorward's own pages report it like all others: to people on a page, to programs as a problem document.
    for path in ["/.doorward/whoami", "/.doorward/sessions"] {
        for (accept, kind) in [
            ("Accept: text/html", "text/html; charset=utf-8"),
            ("Accept: application/json", "application/problem+json"),
        ] {
            let refused = world.get(path, &[&cookie, accept]).await;
            assert_eq!((refused.status, refused.header("content-type")), (503, Some(kind)), "{path}: {}", refused.head);
            assert!(refused.header("retry-after").is_some(), "{path}: {}", refused.head);
            assert!(refused.all("set-cookie").is_empty(), "the cookie stays: {}", refused.head);
        }
    }
    let refused = by_cookie().await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "store_unavailable"), "{}", refused.text());
    assert!(refused.all("set-cookie").is_empty(), "the cookie stays: {}", refused.head);
    assert!(refused.header("retry-after").is_some(), "{}", refused.head);
    // After `max_mirror_age`, the copy of the revocations is too old.
    doorward.set_clock_ahead(120);
    let ready = doorward.admin("/readyz").await;
    until(async || doorward.admin("/readyz").await.status == 503).await;
    assert!(ready.text().contains("store"), "{}", ready.text());
    until(async || by_token().await.status != 200).await;
    let refused = by_token().await;
    assert_eq!((refused.status, refused.reason().as_str()), (503, "store_unavailable"), "{}", refused.text());

    // It recovers by itself, and the session is still the same.
    doorward.break_disk(false);
    until(async || by_token().await.status == 200 && by_cookie().await.status == 200).await;
    assert_eq!(deliver(&Push::new()).await, 200);

    // A removed file is not recreated empty, which would sign everybody out.
    let (store, away) = (doorward.dir().join("doorward.redb"), doorward.dir().join("away.redb"));
    std::fs::rename(&store, &away).unwrap();
    doorward.break_disk(true);
    deliver(&Push::new()).await;
    assert_eq!(deliver(&Push::new()).await, 503);
    doorward.break_disk(false);
    assert_eq!(deliver(&Push::new()).await, 503);
    assert!(!store.exists());
    // An emptied file is not initialised again either.
    std::fs::write(&store, "").unwrap();
    assert_eq!(deliver(&Push::new()).await, 503);
    assert_eq!(std::fs::metadata(&store).unwrap().len(), 0);
    std::fs::rename(&away, &store).unwrap();
    until(async || by_cookie().await.status == 200).await;
}

/// On OpenShift, the files on a volume from another namespace belong to that namespace's user; Kubernetes changes only
/// their group.
#[tokio::test]
async fn a_store_file_of_another_user_may_be_group_writable_and_not_world_writable() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        assert!(std::env::var_os("CI").is_none(), "it was not tried: root alone can become another user");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let allow = |name: &str, mode| std::fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
    allow("", 0o770);
    // The build folder may be closed to other users.
    let built = env!("CARGO_BIN_EXE_doorward");
    std::fs::hard_link(built, path("doorward")).or_else(|_| std::fs::copy(built, path("doorward")).map(drop)).unwrap();
    let yaml = "
listeners: [{name: public, address: 127.0.0.1:0}]
upstreams: [{name: web, url: 'http://127.0.0.1:9'}]
routes: [{name: web, kind: http, hosts: [tekton.test], schemes: [anonymous], upstream: web}]
rules: [{id: all, who: {anonymous: true}, do: allow}]
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
";
    std::fs::write(path("doorward.yaml"), yaml).unwrap();
    std::fs::write(path("doorward.redb"), "").unwrap();
    // The output of a start until it has started, or ended.
    let start = async || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "0", "--clear-groups"]).arg(path("doorward")).arg("serve");
        command.arg(path("doorward.yaml")).current_dir(folder.path()).kill_on_drop(true);
        let mut doorward = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(doorward.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        while let Some(line) = within(lines.next_line()).await.unwrap() {
            let has_started = serde_json::from_str::<Value>(&line).is_ok_and(|line| line["message"] == "started");
            said.push(line);
            if has_started {
                doorward.kill().await.unwrap();
                return (true, said.concat());
            }
        }
        (false, said.concat())
    };
    allow("doorward.redb", 0o666);
    let (has_started, said) = start().await;
    assert!(!has_started && said.contains("everybody may read or write it (mode 666)"), "{said}");
    // With only execute permission, a user can neither read nor write it.
    for mode in [0o660, 0o661] {
        allow("doorward.redb", mode);
        let (has_started, said) = start().await;
        assert!(has_started && said.contains("belongs to another user"), "{mode:o}: {said}");
        let found = std::fs::metadata(path("doorward.redb")).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (0, mode));
    }
}
