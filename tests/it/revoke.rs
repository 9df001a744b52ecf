//! Revocations by an operator: effective at once, everywhere, across a restart, and recorded.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::Notify;

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Doorward, Reply, found, replace_file,
        streams::{Streams, streaming},
        until,
    },
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

#[tokio::test]
async fn a_revoked_token_is_out_at_once_with_its_streams_and_stays_out() {
    let fixture = Fixture::answering(streaming).await;
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["jti"] = "jti-of-the-leaked-token".into();
    let (leaked, other) = (bearer(&fixture.a.sign(&claims)), fixture.alice());
    // Issuer B uses the same id for an unrelated token of its own.
    let mut namesake = fixture.b.claims("bea", &["dev"]);
    namesake["jti"] = claims["jti"].clone();
    let namesake = bearer(&fixture.b.sign(&namesake));
    let get = async |token: &str| fixture.doorward.get(PATH, &["Host: api.test", token]).await;
    assert_eq!((get(&leaked).await.status, get(&other).await.status, get(&namesake).await.status), (200, 200, 403));
    let streams = Streams::open(&fixture.doorward, &["Host: api.test", &leaked]).await;
    let mut twin = Streams::open(&fixture.doorward, &["Host: api.test", &other]).await;

    let revoke = ["revoke", "--issuer", "a", "--token-id", "jti-of-the-leaked-token", "--why", "it was in a build log"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    let revoked = Instant::now();
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["issuer"], &said["token_id"]), (&"a".into(), &"jti-of-the-leaked-token".into()));
    assert_eq!(said["streams_ended"], 6, "kubernetes:T2 {said}");
    assert!(said["then"].as_str().unwrap().contains("valid again from `until` on"), "{said}");
    let refused = get(&leaked).await;
    assert_eq!((refused.status, refused.reason().as_str()), (401, "token_revoked"), "{}", refused.text());
    assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"), "{}", refused.head);
    streams.have_ended(1008, "revoked").await;
    assert!(revoked.elapsed() < Duration::from_secs(2), "{:?}", revoked.elapsed());
    let line = found(async || fixture.doorward.log().into_iter().find(|line| line["message"] == "revoked")).await;
    assert_eq!((&line["token_id"], &line["target"]), (&said["token_id"], &"doorward::app::revoke".into()), "{line}");
    twin.are_open().await;
    assert_eq!((get(&other).await.status, get(&namesake).await.status), (200, 403));

    // On every route, not only where it was used.
    for host in ["a.test", "web.test", "board.test"] {
        let host = format!("Host: {host}");
        assert_eq!(fixture.doorward.get(PATH, &[&host, &leaked]).await.status, 401, "{host}");
        assert_eq!(fixture.doorward.get(PATH, &[&host, &other]).await.status, 200, "{host}");
    }
    let record = fixture.doorward.audit().into_iter().rfind(|record| record["metadata"]["event_code"] == "operator");
    let record = record.unwrap().to_string();
    for part in ["olga", "it was in a build log", "revoke", "jti-of-the-leaked-token"] {
        assert!(record.contains(part), "{part} in {record}");
    }

    let Fixture { doorward, a, .. } = fixture;
    let doorward = doorward.kill_and_restart().await;
    doorward.wait_for_keys_at("api.test", &a).await;
    assert_eq!(doorward.get(PATH, &["Host: api.test", &leaked]).await.status, 401);
    assert_eq!(doorward.get(PATH, &["Host: api.test", &other]).await.status, 200);
    let (code, said) = doorward.operator(&["revocations", "--why", "to see"]).await;
    assert_eq!(code, Some(0), "{said}");
    let said: Value = serde_json::from_str(&said).unwrap();
    let listed = &said["revocations"][0];
    assert_eq!((&listed["token_id"], &listed["why"]), (&claims["jti"], &"it was in a build log".into()), "{said}");
    assert_eq!(said["revocations"].as_array().unwrap().len(), 1, "{said}");
}

/// Regression: the request was forwarded with a decision that could be ten seconds old.
#[tokio::test]
async fn a_caller_revoked_while_waiting_for_the_trail_is_refused() {
    let told = Arc::new(Notify::new());
    let waits_for = Arc::clone(&told);
    let mut fixture = Fixture::with(
        |yaml| yaml.change("audit: {", "audit: {queue: 2, "),
        move |request| match request.line().contains("/held") {
            true => Reply::Later(Arc::clone(&waits_for), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()),
            false => Reply::json(200, "{}"),
        },
    )
    .await;
    // Both places are taken.
    let mut others = Vec::new();
    for path in ["/held/1", "/held/2"] {
        let mut other = fixture.doorward.raw().await;
        other.send(format!("GET {path} HTTP/1.1\r\nHost: open.test\r\n\r\n")).await;
        fixture.upstream.wait_for_path(path).await;
        others.push(other);
    }
    let before = fixture.doorward.audit_waits().await;
    let mut revoked = fixture.doorward.raw().await;
    revoked.send(format!("GET {PATH} HTTP/1.1\r\nHost: api.test\r\n{}\r\n\r\n", fixture.alice())).await;
    until(async || fixture.doorward.audit_waits().await > before).await;
    let (code, said) =
        fixture.doorward.operator(&["revoke", "--issuer", "a", "--subject", "alice", "--why", "left"]).await;
    assert_eq!(code, Some(0), "{said}");
    told.notify_one();
    let refused = revoked.answer().await;
    assert_eq!((refused.status, refused.reason().as_str()), (401, "token_revoked"), "{}", refused.text());
    assert!(fixture.upstream.requests().iter().all(|request| !request.line().contains(PATH)));
}

#[tokio::test]
async fn a_revoked_subject_loses_every_token_until_the_revocation_expires() {
    let fixture = Fixture::answering(streaming).await;
    let (one, two) = (fixture.alice(), fixture.alice());
    let adam = bearer(&fixture.a.token("adam", &["dev"]));
    let get = async |token: &str| fixture.doorward.get(PATH, &["Host: api.test", token]).await.status;
    // The duration of a revocation is restored with the rest: this one ends soon.
    let revoke = ["revoke", "--issuer", fixture.a.url(), "--subject", "alice", "--for", "2s", "--why", "a drill"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((get(&one).await, get(&two).await, get(&adam).await), (401, 401, 200));
    assert_eq!(get(&fixture.alice()).await, 401, "a new token is no way around it");
    until(async || get(&one).await == 200).await;
}

/// Regression: they got in again, as a revocation was stored only under the name of the issuer's entry.
#[tokio::test]
async fn a_revoked_person_stays_revoked_after_their_issuer_entry_is_renamed() {
    let Fixture { mut doorward, a, upstream: _upstream, .. } = Fixture::answering(streaming).await;
    let (alice, adam) = (bearer(&a.token("alice", &["dev"])), bearer(&a.token("adam", &["dev"])));
    let revoke = ["revoke", "--issuer", "a", "--subject", "alice", "--why", "left"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    let path = doorward.dir().join("doorward.yaml");
    let renamed = fs::read_to_string(&path).unwrap().replace("name: a\n", "name: sso\n").replace("[a]", "[sso]");
    replace_file(&path, &renamed);
    doorward.wait_for_generation(2).await;
    let get = async |doorward: &Doorward, token: &str| doorward.get(PATH, &["Host: api.test", token]).await.status;
    assert_eq!((get(&doorward, &alice).await, get(&doorward, &adam).await), (401, 200));
    let doorward = doorward.kill_and_restart().await;
    doorward.wait_for_keys_at("api.test", &a).await;
    assert_eq!((get(&doorward, &alice).await, get(&doorward, &adam).await), (401, 200), "after a restart");
}

#[tokio::test]
async fn a_revocation_that_would_do_nothing_is_refused() {
    let fixture = Fixture::answering(streaming).await;
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--issuer", "corp", "--subject", "alice", "--why", "x"], 1, "no issuer `corp`"),
        (&["--issuer", "a", "--subject", "alice"], 64, "--why"),
        (&["--issuer", "a", "--subject", "alice", "--why", " "], 1, "`why` must be"),
        (&["--issuer", "a", "--subject", " ", "--why", "x"], 1, "`subject` must be"),
        (&["--issuer", "a", "--why", "x"], 64, "--subject"),
        (&["--issuer", "a", "--subject", "s", "--token-id", "t", "--why", "x"], 64, "cannot be used with"),
        (&["--issuer", "a", "--subject", "s", "--until", "2020-01-01T00:00:00Z", "--why", "x"], 1, "has passed"),
        (&["--issuer", "a", "--subject", "s", "--until", "tomorrow", "--why", "x"], 1, "not a time"),
    ];
    for (arguments, status, words) in cases {
        let (code, said) = fixture.doorward.operator(&[&["revoke"], arguments].concat()).await;
        assert_eq!(code, Some(status), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(fixture.doorward.get(PATH, &["Host: api.test", &fixture.alice()]).await.status, 200);
    let refused = fixture.doorward.audit().into_iter().filter(|record| record.to_string().contains("no issuer `corp`"));
    assert_eq!(refused.count(), 1, "a command that did not happen is on the record too");
}

/// Unpacked over the volume, it removed the newest lines of the trail, and their numbers were used again.
#[test]
fn a_restore_from_a_tar_restores_the_store_and_leaves_the_trail_unchanged() {
    let page = include_str!("../../docs/upkeep.md");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // What the documentation runs in the pod.
    let run = |commands: &str| {
        let mut commands = commands.replace(" -i state ", " state ").replace("kubectl -n doorward exec state -- ", "");
        for (there, here) in [("/state", "state"), ("/restored", "restored"), ("FILE", "FILE")] {
            commands = commands.replace(there, &at(here).display().to_string());
        }
        let output = Command::new("sh").args(["-euc", &commands]).output().unwrap();
        assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let in_text = |words: &str| page.split('`').find(|part| part.contains(words)).unwrap();
    let (_, rest) = page.split_once("\n3. Copy the store").unwrap();
    let (copy, _) = rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap();

    fs::create_dir_all(at("state/doorward.policies")).unwrap();
    fs::create_dir(at("restored")).unwrap();
    let keys = ["audit-chain.key", "audit-checkpoint.pem", "audit-checkpoint.pub.pem"];
    for name in ["doorward.redb", "doorward.session.key", "doorward.policies/p", "audit.jsonl"].iter().chain(&keys) {
        fs::write(at("state").join(name), "old").unwrap();
    }
    run(in_text("tar -c -C /state"));
    for name in ["doorward.redb", "audit.jsonl", "audit-chain.key"] {
        fs::write(at("state").join(name), "newer").unwrap();
    }
    fs::remove_file(at("state/audit-checkpoint.pem")).unwrap();
    run(in_text("tar -x -C /restored"));
    run(copy);
    let now = |name: &str| fs::read_to_string(at("state").join(name)).unwrap();
    assert_eq!(now("doorward.redb"), "old");
    assert_eq!((now("audit.jsonl"), now("audit-chain.key")), ("newer".to_owned(), "newer".to_owned()));
    assert_eq!(now("audit-checkpoint.pem"), "old", "it was gone");
}

/// One line cut off by a crash hid all that followed, and the trails of other replicas were not searched.
#[tokio::test]
async fn revocations_to_repeat_after_a_restore_are_found_in_all_trails_despite_cut_lines() {
    let mut fixture = Fixture::start().await;
    for subject in ["alice", "bob", "carol", "dave"] {
        let revoke = ["revoke", "--issuer", "a", "--subject", subject, "--why", "has left"];
        let (code, said) = fixture.doorward.operator(&revoke).await;
        assert_eq!(code, Some(0), "{said}");
    }
    fixture.doorward.signal("TERM");
    fixture.doorward.ended().await;
    let trail = fs::read_to_string(fixture.doorward.audit_path()).unwrap();
    // Each command has a line before it runs, and one after it.
    let line_of = |subject: &str, is_begun: bool| {
        let mut lines = trail.lines();
        lines
            .rfind(|line| {
                line.contains("\"operator\"") && line.contains(subject) && line.contains("(begun)") == is_begun
            })
            .unwrap()
    };
    let of = |subject: &str| line_of(subject, false);
    let folder = tempfile::tempdir().unwrap();
    let (cut, _) = of("carol").split_at(of("carol").len() / 2);
    for (replica, file, lines) in [
        ("doorward-0", "audit.jsonl", format!("{}\n{cut}", of("carol")).into_bytes()),
        ("doorward-0", "audit.jsonl.000001", [&b"\xff\0{\n7\n"[..], of("alice").as_bytes(), b"\n"].concat()),
        // Killed before the second ended.
        (
            "doorward-1",
            "audit.jsonl",
            format!("{}\n{}\n{}\n", line_of("bob", true), of("bob"), line_of("dave", true)).into_bytes(),
        ),
    ] {
        fs::create_dir_all(folder.path().join(replica)).unwrap();
        fs::write(folder.path().join(replica).join(file), lines).unwrap();
    }

    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/upkeep.md")).unwrap();
    let (_, rest) = page.split_once("\n- Revocations made since then are gone").unwrap();
    let (command, _) = rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap();
    // `scripts/test` installs jq.
    let output = Command::new("sh").args(["-c", command]).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let listed: Vec<&str> = said.lines().collect();
    assert_eq!(listed.len(), 4, "{said}{}", String::from_utf8_lossy(&output.stderr));
    for (line, subject) in listed.into_iter().zip(["alice", "bob", "carol", "dave"]) {
        assert_eq!(line.contains("(begun)"), subject == "dave", "{line}");
        assert!(line.contains("revoke {") && line.contains(subject) && line.ends_with(" has left"), "{line}");
    }
}
