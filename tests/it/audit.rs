//! The audit trail of the whole program: after a crash, on a full disk, and under tampering.

use std::{collections::BTreeSet, process::Command};

use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Fault, Reply, found, unique, until},
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

#[tokio::test]
async fn a_kill_between_decision_and_answer_leaves_the_decision() {
    let mut fixture = Fixture::answering(|request| match request.line() {
        line if line.starts_with("POST") => Reply::Hang,
        _ => Reply::json(200, "{}"),
    })
    .await;
    let mut raw = fixture.doorward.raw().await;
    raw.send(format!("POST {PATH} HTTP/1.1\r\nHost: api.test\r\n{}\r\nContent-Length: 2\r\n\r\n{{}}", fixture.alice()))
        .await;
    fixture.upstream.wait_for(1).await;
    let Fixture { doorward, a, .. } = fixture;
    let mut doorward = doorward.kill_and_restart().await;
    let decided: Vec<_> =
        doorward.audit().into_iter().filter(|record| record["metadata"]["event_code"] == "request.decided").collect();
    assert_eq!(decided.len(), 1);
    assert_eq!(decided[0]["http_request"]["http_method"], "POST");
    assert!(decided[0].to_string().contains("\"alice\""));
    // The chain continues after the crash, and records it.
    doorward.wait_for_keys_at("api.test", &a).await;
    assert_eq!(doorward.get(PATH, &["Host: api.test", &bearer(&a.token("alice", &["dev"]))]).await.status, 200);
    // Before its end, a line of it may just be being written.
    doorward.signal("TERM");
    assert!(doorward.ended().await.success());
    let (code, text) = doorward.verify("audit.jsonl").await;
    assert_eq!(code, Some(0), "{text}");
}

/// Paths that somebody tried are evidence. The query may contain a code or a token, and is never written.
#[tokio::test]
async fn a_request_that_was_refused_before_it_was_understood_is_recorded_as_it_was_sent() {
    let fixture = Fixture::start().await;
    let long = format!("/{}", "a".repeat(9000));
    let beginning = &long[..1024];
    let cases = [
        ("/a/../b", "API.test:80", 400, "api.test", "/a/../b"),
        ("/a%2fb", "api.test", 400, "api.test", "/a%2fb"),
        (&*long, "api.test", 414, "api.test", beginning),
        ("/a", "nobody.test", 421, "nobody.test", "/a"),
        ("/a", "alice:hidden@evil.test", 400, "evil.test", "/a"),
        ("http://API.test/a/./b", "api.test", 400, "api.test", "/a/./b"),
    ];
    for (path, host, status, ..) in cases {
        let answer = fixture.doorward.get(&format!("{path}?code=hidden"), &[&format!("Host: {host}")]).await;
        assert_eq!(answer.status, status, "{path} {host}: {}", answer.text());
    }
    let early = |record: &Value| {
        let reason = record["status_code"].as_str().unwrap_or_default();
        ["bad_request", "uri_too_long", "misdirected_host", "path_not_canonical"].contains(&reason)
    };
    let refused = fixture.doorward.records(cases.len(), early).await;
    for (record, (path, _, _, host, recorded)) in refused.iter().zip(cases) {
        let url = &record["http_request"]["url"];
        assert_eq!((&url["hostname"], &url["path"]), (&host.into(), &recorded.into()), "{path}: {record:#}");
        assert!(!record.to_string().contains("hidden"), "{record:#}");
    }
}

#[tokio::test]
async fn edited_and_removed_records_are_found() {
    let mut fixture = Fixture::start().await;
    for _ in 0..5 {
        fixture.api(PATH, &[&fixture.alice()]).await;
    }
    fixture.doorward.signal("TERM");
    fixture.doorward.ended().await;
    let path = fixture.doorward.audit_path();
    let whole = std::fs::read_to_string(&path).unwrap();
    assert_eq!(fixture.doorward.verify("audit.jsonl").await.0, Some(0), "the twin: untouched");
    let lines: Vec<&str> = whole.lines().collect();
    let without = |index: usize| {
        lines.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    for (what, text) in [
        ("edited", whole.replacen("\"alice\"", "\"mallory\"", 1)),
        ("deleted", without(3)),
        ("reordered", swapped.join("\n") + "\n"),
        ("inserted", whole.replacen('\n', &format!("\n{}\n", lines[1]), 1)),
    ] {
        assert_ne!(text, whole, "{what}");
        std::fs::write(&path, text).unwrap();
        let (code, said) = fixture.doorward.verify("audit.jsonl").await;
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains("audit.jsonl"), "{what} names the place: {said}");
    }
}

/// The digest of a streamed body is known only at its end.
#[tokio::test]
async fn the_body_of_a_streamed_write_is_recorded() {
    let fixture = Fixture::start().await;
    let alice = fixture.alice();
    let record = async |phase: &str, path: &str| {
        let code = format!("request{phase}");
        let fits = |record: &Value| {
            record["metadata"]["event_code"] == *code && record["http_request"]["url"]["path"] == *path
        };
        fixture.doorward.record(fits).await
    };
    // SHA-256 of `abc` (FIPS 180-2, appendix B.1).
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let send = async |request: &str, framing: &str, body: &str| {
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("{request} HTTP/1.1\r\nHost: api.test\r\n{alice}\r\n{framing}\r\n\r\n{body}")).await;
        assert_eq!(raw.answer().await.status, 200, "{request}");
    };
    let folder = "/api/v1/namespaces/ci/configmaps/";
    send(&format!("PUT {folder}sized"), "Content-Length: 3", "abc").await;
    send(&format!("PUT {folder}chunked"), "Transfer-Encoding: chunked", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n").await;
    for name in ["sized", "chunked"] {
        let path = format!("{folder}{name}");
        let completed = record(".completed", &path).await;
        assert_eq!(completed["unmapped"]["body_sha256"], digest, "{completed}");
        let decided = record(".decided", &path).await;
        assert!(decided["unmapped"]["body_sha256"].is_null(), "it had not come yet");
    }
}

/// Each occupied its place in the queue until the last byte, and when that is read is up to the client.
#[tokio::test]
async fn clients_that_read_slowly_leave_room_in_the_trail_for_others() {
    let fixture = Fixture::with(
        |yaml| yaml.change("audit: {", "audit: {queue: 16, "),
        |request| match request.line().contains("/slow") {
            true => Reply::Watch(vec![b"begins".to_vec()]),
            false => Reply::json(200, "{}"),
        },
    )
    .await;
    let mut slow = Vec::new();
    for number in 0..40 {
        let mut client = fixture.doorward.raw().await;
        client.send("GET /slow HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
        let begun = String::from_utf8_lossy(&client.some().await).into_owned();
        assert!(begun.starts_with("HTTP/1.1 200"), "{number}: {begun}");
        slow.push(client);
    }
    let other = fixture.doorward.send(&["GET /quick HTTP/1.1", "Host: open.test"], b"").await;
    assert_eq!(other.status, 200, "{}", other.text());
    let begun = |record: &Value| record["metadata"]["event_code"] == "request.started";
    // In the trail before its end.
    fixture.doorward.record(begun).await;
}

#[tokio::test]
async fn a_full_disk_refuses_or_passes_requests_as_configured_and_never_crashes() {
    for (when_full, status) in [("refuse", 503), ("continue", 200)] {
        let change = |yaml: String| {
            yaml.change("{path: audit.jsonl}", "{path: full/audit.jsonl}")
                .change("audit: {", &format!("audit: {{when_full: {when_full}, queue: 16, "))
        };
        let dir = tempfile::tempdir().unwrap();
        let small = dir.path().join("small");
        std::fs::create_dir(&small).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&small).status();
        assert!(mounted.is_ok_and(|status| status.success()), "a small file system is needed, and root to mount it");
        let _unmount = Unmount(small.clone());
        let change =
            |yaml: String| change(yaml).change("full/audit.jsonl", &small.join("audit.jsonl").display().to_string());
        let mut fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
        let alice = fixture.alice();
        // Fills the disk, with records and other data.
        std::fs::write(small.join("ballast"), vec![0; 200 << 10]).ok();
        let (mut last, mut served, mut reached) = (0, BTreeSet::new(), 0);
        for _ in 0..2000 {
            let (answer, seen) = fixture.api(PATH, &[&alice]).await;
            last = answer.status;
            reached += seen.len();
            if last == 503 {
                assert_eq!(answer.reason(), "audit_unavailable", "{}", answer.text());
                assert!(seen.is_empty(), "what is not recorded does not happen");
                // Requests may be refused before readiness reports it.
                if fixture.doorward.admin("/readyz").await.status != 200 {
                    break;
                }
                continue;
            }
            served.insert(seen[0].one("audit-id").to_owned());
        }
        assert_eq!((last, reached), (status, served.len()), "{when_full}");
        // With `continue` it keeps serving, but reports what it cannot do.
        let ready = if when_full == "refuse" { 503 } else { 200 };
        until(async || {
            let told = fixture.doorward.admin("/readyz").await;
            told.status == ready && told.text().contains("audit failed")
        })
        .await;
        // With free space again, it recovers by itself.
        std::fs::remove_file(small.join("ballast")).unwrap();
        until(async || fixture.api(PATH, &[&alice]).await.0.status == 200).await;
        until(async || {
            let told = fixture.doorward.admin("/readyz").await;
            told.status == 200 && !told.text().contains("audit failed")
        })
        .await;
        fixture.doorward.signal("TERM");
        assert!(fixture.doorward.ended().await.success());
        // The chain is intact. With `refuse`, nothing that was served is missing; otherwise the trail says how many
        // records are.
        let path = small.join("audit.jsonl");
        let (code, text) = fixture.doorward.verify(path.to_str().unwrap()).await;
        assert_eq!(code, Some(0), "{when_full}: {text}");
        let trail: Vec<Value> =
            std::fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let recorded: BTreeSet<&str> =
            trail.iter().filter_map(|record| record["metadata"]["correlation_uid"].as_str()).collect();
        let missing = served.iter().filter(|id| !recorded.contains(id.as_str())).count();
        let gaps: Vec<&Value> = trail.iter().filter(|record| record["metadata"]["event_code"] == "trail.gap").collect();
        let lost: u64 = gaps.iter().filter_map(|gap| gap["unmapped"]["lost"].as_u64()).sum();
        assert!(!gaps.is_empty(), "{when_full}: the outage is on the record");
        match when_full {
            "refuse" => assert_eq!(missing, 0, "{missing} of {} are lost", served.len()),
            _ => assert!(missing > 0 && lost >= missing as u64, "{missing} are missing and the trail says {lost}"),
        }
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_can_be_explained_from_its_id() {
    let fixture = Fixture::start().await;
    let (answer, _) = fixture.api(PATH, &[&bearer(&fixture.a.token("carol", &["guests"]))]).await;
    assert_eq!(answer.status, 403);
    let id = answer.header("x-request-id").unwrap().to_owned();
    let said = found(async || {
        let (said, _) = explain(&fixture, &["--audit-id", &id]).await;
        said.contains("recorded").then_some(said)
    })
    .await;
    assert!(said.contains("recorded: deny by no rule"), "{said}");
    assert!(said.contains("under the current policy") && said.contains("dev"), "{said}");
}

/// A token with an empty groups claim is in no group. Without the claim the groups are unknown, and a deny by groups
/// applies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_how_a_deny_by_groups_treats_an_empty_and_an_absent_claim() {
    const RULES: &str = "- {id: no-contractors, on: {routes: [api]}, who: {issuers: [a], groups: [contractors]}, do: deny}\n  \
                           - {id: all-of-a, on: {routes: [api]}, who: {issuers: [a], kind: human}, do: allow}";
    let change = |yaml: String| yaml.change_first("\nrules:\n", &format!("\nrules:\n  {RULES}\n"));
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    for (word, status, outcome, exit) in [(true, 200, "allow", Some(0)), (false, 403, "deny", Some(1))] {
        let mut claims = fixture.a.claims("alice", &[]);
        if !word {
            claims.as_object_mut().unwrap().remove("groups");
        }
        let token = fixture.a.sign_with(&json!({"alg": "ES256", "kid": "key-1", "typ": "at+jwt"}), &claims);
        let (answer, _) = fixture.api(PATH, &[&bearer(&token)]).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        let (said, code) = explained_again(&fixture, answer.header("x-request-id").unwrap()).await;
        assert_eq!((&said["recorded"]["outcome"], code), (&outcome.into(), exit), "{said:#}");
        assert_eq!(said["under_current"]["outcome"], outcome, "{said:#}");
    }
}

/// The JSON output of `doorward explain` for a request, once the trail has it, and the exit status.
async fn explained_again(fixture: &Fixture, id: &str) -> (Value, Option<i32>) {
    found(async || {
        let (said, status) = explain(fixture, &["--audit-id", id, "--format", "json"]).await;
        Some((serde_json::from_str(&said).ok()?, status))
    })
    .await
}

/// The policy was changed between the request and the query: what was allowed is now denied, and vice versa.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_explained_by_the_policy_that_decided_and_by_the_one_of_now() {
    const DEV: &str =
        "- {id: dev, on: {routes: [api, only-a, board, web]}, who: {issuers: [a], groups: [dev]}, do: allow}";
    const NOW: &str = "- {id: dev-is-shut, on: {routes: [api]}, who: {issuers: [a], groups: [dev]}, do: deny}\n  \
                       - {id: guests-look, on: {routes: [api]}, who: {issuers: [a], groups: [guests]}, do: allow}";
    let mut fixture = Fixture::with(
        |yaml| {
            yaml.change(
                DEV,
                &format!("{DEV}\n  - {{id: no-guests, on: {{routes: [api]}}, who: {{issuers: [a], groups: [guests]}}, do: deny}}"),
            )
        },
        |_| Reply::json(200, "{}"),
    )
    .await;
    let path = fixture.doorward.dir().join("doorward.yaml");
    let digest = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
        let output = command.args(["rollout", "digest"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let then = digest();
    let mut asked = Vec::new();
    for (user, group, status) in [("alice", "dev", 200), ("carol", "guests", 403)] {
        let (answer, _) = fixture.api(PATH, &[&bearer(&fixture.a.token(user, &[group]))]).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        asked.push(answer.header("x-request-id").unwrap().to_owned());
    }
    // Before the change both results are the same, which is reported once.
    let (same, _) = explained_again(&fixture, &asked[0]).await;
    assert!(same["under_recorded"].is_null(), "{same}");
    assert_eq!(
        (&same["under_current"]["rule"], &same["under_current"]["policy"]),
        (&"dev".into(), &then.as_str().into())
    );

    let yaml = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = yaml.split_once(DEV).unwrap();
    let (_, after) = rest.split_once("do: deny}").unwrap();
    std::fs::write(&path, format!("{before}{NOW}{after}")).unwrap();
    fixture.doorward.wait_for_generation(2).await;
    let now = digest();
    assert_ne!(then, now);
    let cases = [(("allow", "dev"), ("deny", "dev-is-shut"), 1), (("deny", "no-guests"), ("allow", "guests-look"), 0)];
    for (id, ((outcome, rule), current, status)) in asked.iter().zip(cases) {
        let (json, code) = explained_again(&fixture, id).await;
        for (what, outcome, rule, policy) in [
            ("recorded", outcome, rule, &then),
            ("under_recorded", outcome, rule, &then),
            ("under_current", current.0, current.1, &now),
        ] {
            let of = |name: &str| json[what][name].as_str().unwrap_or_default();
            assert_eq!((of("outcome"), of("rule"), of("policy")), (outcome, rule, policy.as_str()), "{what}: {json}");
        }
        assert_eq!((&json["policy_is_kept"], code), (&true.into(), Some(status)), "{json}");
        let (said, _) = explain(&fixture, &["--audit-id", id]).await;
        for part in ["under the recorded policy:", "under the current policy:", rule, current.1, &then, &now] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
}

/// An unavailable second location costs no request, but is reported everywhere an operator may look.
#[tokio::test]
async fn checkpoints_that_cannot_be_copied_are_an_alarm_until_they_can_be() {
    let mut fixture = Fixture::with(
        |yaml| yaml.change("audit: {", "audit: {checkpoint_copy: elsewhere.jsonl, checkpoint_records: 1, "),
        |_| Reply::json(200, "{}"),
    )
    .await;
    let alice = fixture.alice();
    let ready = async |words: &str| {
        found(async || {
            assert_eq!(fixture.api(PATH, &[&alice]).await.0.status, 200);
            let ready = fixture.doorward.admin("/readyz").await;
            assert_eq!(ready.status, 200, "{}", ready.text());
            Some(ready.text()).filter(|text| text.contains(words))
        })
        .await
    };
    let copy = fixture.doorward.dir().join("elsewhere.jsonl");
    fixture.doorward.until_ready().await;
    ready("audit-checkpoint-copy ok").await;
    // A directory in its place accepts no lines. The file may be recreated in between.
    while std::fs::create_dir(&copy).is_err() {
        let _ = std::fs::remove_file(&copy);
    }
    let told = ready("audit-checkpoint-copy failed").await;
    assert!(told.contains("elsewhere.jsonl"), "{told}");
    until(async || {
        assert_eq!(fixture.api(PATH, &[&alice]).await.0.status, 200);
        fixture.doorward.counter("doorward_audit_checkpoint_copy_errors_total").await >= 3
    })
    .await;
    std::fs::remove_dir(&copy).unwrap();
    ready("audit-checkpoint-copy ok").await;
    assert!(copy.is_file());
    fixture.doorward.wait_for_log("checkpoints of the audit trail are copied to their second place again").await;
    let told = fixture.doorward.log();
    let told = told
        .iter()
        .filter(|line| line["message"].as_str().is_some_and(|message| message.contains("could not be copied")));
    assert_eq!(told.count(), 1, "once, however many there were");
}

/// The key is created elsewhere and mounted, so that access to the trail's folder is not enough to sign.
#[tokio::test]
async fn checkpoints_are_signed_by_the_key_that_is_configured() {
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").args(arguments).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    for name in ["ours", "other"] {
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", &at(name)]);
        openssl(&["pkey", "-in", &at(name), "-pubout", "-out", &at(&format!("{name}.pub"))]);
    }
    let (key, copies) = (at("ours"), at("checkpoints.jsonl"));
    let keys = format!("audit: {{checkpoint_key: {{file: '{key}'}}, checkpoint_copy: '{copies}', ");
    let mut fixture = Fixture::with(|yaml| yaml.change("audit: {", &keys), |_| Reply::json(200, "{}")).await;
    assert_eq!(fixture.api(PATH, &[&fixture.alice()]).await.0.status, 200);
    fixture.doorward.signal("TERM");
    assert!(fixture.doorward.ended().await.success());
    let verified = async |public: &str| {
        let public = at(public);
        let options = ["--key", "audit-chain.key", "--checkpoint-key", &public, "--checkpoints", &copies];
        fixture.doorward.told(&[&["audit", "verify", "audit.jsonl"], &options[..]].concat()).await
    };
    let (code, said) = verified("ours.pub").await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = verified("other.pub").await;
    assert_ne!(code, Some(0), "{said}");
    assert!(!fixture.doorward.dir().join("audit-checkpoint.pub.pem").exists(), "none is made beside the store");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_reports_the_problem_of_a_token_in_plain_words() {
    let fixture = Fixture::start().await;
    let now = crate::harness::now();
    let with = |name: &str, value: Value| {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims[name] = value;
        fixture.a.sign(&claims)
    };
    let by_another_key = fixture
        .b
        .sign_with(&json!({"alg": "ES256", "typ": "at+jwt", "kid": "key-1"}), &fixture.a.claims("alice", &["dev"]));
    let by_no_key = fixture.a.sign_with(
        &json!({"alg": "ES256", "typ": "at+jwt", "kid": "key-of-nobody"}),
        &fixture.a.claims("alice", &["dev"]),
    );
    let told = async |token: String| {
        std::fs::write(fixture.doorward.dir().join("presented"), token).unwrap();
        explain(&fixture, &[&format!("https://api.test{PATH}"), "--token-file", "presented"]).await
    };
    for (token, words, exit) in [
        (with("aud", "https://other.test".into()), &["https://other.test", "https://doorward.test"][..], 1),
        (with("exp", (now - 3600).into()), &["expired"], 1),
        (with("iss", "https://unknown.test".into()), &["https://unknown.test"], 1),
        (by_no_key, &["does not publish", "key-of-nobody"], 1),
        (by_another_key, &["the signature is not by the key of issuer `a`"], 1),
        (fixture.a.token("alice", &["dev"]), &["ALLOW"], 0),
    ] {
        let (said, status) = told(token).await;
        for word in words {
            assert!(said.to_lowercase().contains(&word.to_lowercase()), "{word} in {said}");
        }
        assert_eq!(status, Some(exit), "{said}");
    }
    // An unreachable issuer says nothing about the token.
    fixture.a.set_fault(Fault::Error);
    let (said, status) = told(unique()).await;
    assert!(said.contains("cannot be asked right now") && !said.contains("UNAUTHENTICATED"), "{said}");
    assert_eq!(status, Some(2), "{said}");
}

/// The output of `doorward explain`, both streams, and its exit status.
async fn explain(fixture: &Fixture, options: &[&str]) -> (String, Option<i32>) {
    let (code, said) = fixture.doorward.told(&[&["explain", "doorward.yaml"], options].concat()).await;
    (said, code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_asks_the_token_too_at_the_time_given() {
    let fixture = Fixture::start().await;
    std::fs::write(fixture.doorward.dir().join("presented"), fixture.a.token("alice", &["dev"])).unwrap();
    let url = format!("https://api.test{PATH}");
    let at = async |time: &str| explain(&fixture, &[&url, "--token-file", "presented", "--at", time]).await;
    for (time, words) in [("2100-01-01T00:00:00Z", "expired"), ("2020-01-01T00:00:00Z", "not valid for another")] {
        let (said, status) = at(time).await;
        assert!(said.contains("UNAUTHENTICATED") && said.contains(words), "{time}: {said}");
        assert_eq!(status, Some(1));
    }
    let (said, status) = at("tomorrow").await;
    assert!(said.contains("`tomorrow` is not a time"), "{said}");
    assert_eq!(status, Some(64));
}

#[tokio::test]
async fn explain_without_a_credential_says_which_one_is_wanted() {
    let fixture = Fixture::start().await;
    let (said, status) = explain(&fixture, &[&format!("https://api.test{PATH}")]).await;
    assert!(said.contains("UNAUTHENTICATED: This route accepts a bearer token"), "{said}");
    assert!(said.contains("--token-file") && said.contains("--principal"), "{said}");
    assert_eq!(status, Some(1));
}

#[tokio::test]
async fn explain_says_that_what_no_route_takes_is_refused() {
    let fixture = Fixture::start().await;
    for (words, reason) in [
        (&["https://unknown.test/"][..], "misdirected_host: no route is configured for this host"),
        (&["https://hooks.test/elsewhere"], "route_not_found: "),
        (&["-X", "TRACE", &format!("https://api.test{PATH}")], "method_not_allowed: this path takes"),
    ] {
        let (said, status) = explain(&fixture, words).await;
        assert!(said.contains(&format!("REFUSED before any rule: {reason}")), "{said}");
        assert_eq!(status, Some(1), "{said}");
    }
}

/// A token gives no access where none is accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_accepts_no_token_if_the_route_accepts_none() {
    let login = "kind: human, login: {client: {id: doorward, secret: {file: client}}}}";
    let change = |yaml: String| {
        yaml.change_first("username: 'b:{sub}', kind: human}", &format!("username: 'b:{{sub}}', {login}")).change_first(
            "kind: http, hosts: [web.test], schemes: [bearer]",
            "kind: http, hosts: [web.test], schemes: [session]",
        )
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let file = fixture.doorward.dir().join("presented");
    std::fs::write(&file, fixture.a.token("alice", &["dev"])).unwrap();
    let told = async |url: &str| explain(&fixture, &[url, "--token-file", "presented"]).await;
    let (said, status) = told("https://web.test/").await;
    assert!(said.contains("UNAUTHENTICATED: This route accepts a signed-in browser, and no bearer token"), "{said}");
    assert_eq!(status, Some(1));
    let (said, status) = told("https://open.test/").await;
    assert!(said.contains("ALLOW") && said.contains("note: this route does not look at tokens"), "{said}");
    assert_eq!(status, Some(0));
    let (said, status) = told(&format!("https://api.test{PATH}")).await;
    assert!(said.contains("ALLOW") && said.contains("whether the token or its subject was revoked"), "{said}");
    assert_eq!(status, Some(0));

    std::fs::write(&file, format!("dws_{}", "a".repeat(43))).unwrap();
    let (said, status) = told("https://web.test/").await;
    assert!(said.contains("this is the handle of a session"), "{said}");
    assert_eq!(status, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_before_any_rule_can_be_explained_too() {
    let fixture = Fixture::start().await;
    let (answer, _) = fixture.api(PATH, &[&bearer("no-token-of-the-issuer")]).await;
    assert_eq!(answer.status, 401);
    let id = answer.header("x-request-id").unwrap().to_owned();
    let (json, status) = explained_again(&fixture, &id).await;
    assert_eq!(json["recorded"]["reason"], "token_inactive", "{json}");
    assert!(json["recorded"]["detail"].is_string() && json["under_current"].is_null(), "{json}");
    assert_eq!(status, Some(1));
    let (said, _) = explain(&fixture, &["--audit-id", &id]).await;
    assert!(said.contains("refused before any rule was evaluated"), "{said}");
}
