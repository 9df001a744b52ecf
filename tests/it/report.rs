//! The report for reviewers, of a real trail: each figure is what its own query gives.

use std::{fs::File, process::Command};

use serde_json::Value;

use crate::fixture::{Fixture, bearer};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

fn report(fixture: &Fixture, further: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["audit", "report", "--from", "2020-01-01", "--to", "2200-01-01", "--trail"])
        .arg(fixture.doorward.audit_path())
        .arg("--config")
        .arg(fixture.doorward.dir().join("doorward.yaml"))
        .args(further)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn each_figure_of_a_report_is_what_its_query_gives() {
    let mut fixture = Fixture::start().await;
    let (alice, stranger) = (fixture.alice(), bearer(&fixture.a.token("mallory", &["nobody"])));
    for headers in [&[alice.as_str()][..], &[stranger.as_str()], &["Authorization: Bearer forged"], &[alice.as_str()]] {
        fixture.api(PATH, headers).await;
    }
    fixture.doorward.signal("TERM");
    fixture.doorward.ended().await;

    let report_json: Value = serde_json::from_str(&report(&fixture, &["--json"])).unwrap();
    assert_eq!(report_json["unreadable"], 0);
    for section in report_json["sections"].as_array().unwrap() {
        // `scripts/test` installs jq.
        let output = Command::new("jq")
            .args(["-n", section["query"].as_str().unwrap()])
            .stdin(File::open(fixture.doorward.audit_path()).unwrap())
            .output()
            .expect("jq is needed; scripts/test installs it");
        assert!(output.status.success(), "{}: {}", section["id"], String::from_utf8_lossy(&output.stderr));
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(rows, section["rows"], "{}", section["id"]);
    }
    let rows = |id: &str| {
        let sections = report_json["sections"].as_array().unwrap();
        sections.iter().find(|section| section["id"] == id).unwrap()["rows"].as_array().unwrap().clone()
    };
    let has = |id: &str, what: &str| rows(id).iter().any(|row| row["what"].as_str().unwrap().contains(what));
    assert!(has("principals", "alice") && has("principals", "mallory"), "{:?}", rows("principals"));
    assert!(has("denials", "mallory"), "{:?}", rows("denials"));
    assert!(!has("denials", "alice"), "{:?}", rows("denials"));
    assert!(has("login_failures", "nobody at"), "{:?}", rows("login_failures"));
    assert!(has("policies", "policy.loaded"), "{:?}", rows("policies"));

    let access = report_json["configuration"]["access"].as_array().unwrap();
    for used in [true, false] {
        assert!(access.iter().any(|access| access["kind"] == "rule" && access["used"] == used), "{used}: {access:?}");
    }
    for (form, text) in [("text", report(&fixture, &[])), ("html", report(&fixture, &["--html"]))] {
        assert!(text.contains("mallory") && text.contains("UNUSED"), "{form}");
        for secret in ["upstream-token", "introspection-secret", "the-admin-token-of-the-tests"] {
            assert!(!text.contains(secret), "{form}: {secret}");
        }
    }
    assert!(report(&fixture, &["--html"]).contains("@media print"));
}
