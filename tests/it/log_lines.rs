//! What strangers write stays within its line of the text log, and becomes no label of a metric.

use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, WEBHOOK_SECRET, bearer},
    harness::{AUDIENCE, Push, Reply, now, unique},
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

/// It would begin a line of its own, and clear the reader's terminal.
const FORGED: &str = "x\r\ninjected \u{1b}[2J";

/// kubernetes:L1 and oauth:6, in the log format in which a line could be forged.
#[tokio::test]
async fn nothing_that_a_stranger_wrote_begins_a_line_of_the_log() {
    let change = |yaml: String| format!("{yaml}log: {{format: text, filter: trace}}\n");
    let mut fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let mut tokens: Vec<(&str, String)> = Vec::new();
    for name in ["kid", "alg", "typ"] {
        let mut header = json!({"alg": "ES256", "typ": "at+jwt", "kid": "key-1"});
        header[name] = FORGED.into();
        tokens.push((name, fixture.a.sign_with(&header, &fixture.a.claims("alice", &["dev"]))));
    }
    for name in ["iss", "sub", "aud", "jti", "client_id", "scope", "azp"] {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims[name] = FORGED.into();
        tokens.push((name, fixture.a.sign(&claims)));
    }
    tokens.push(("groups", fixture.a.token("alice", &["dev", FORGED])));
    let opaque = unique();
    fixture.a.opaque(
        &opaque,
        json!({"active": true, "sub": FORGED, "username": FORGED, "iss": fixture.a.url(), "aud": AUDIENCE,
            "client_id": "tests", "groups": ["dev"], "exp": now() + 600}),
    );
    tokens.push(("introspection", opaque));
    for (name, token) in &tokens {
        let (answer, seen) = fixture.api(PATH, &[&bearer(token)]).await;
        // Values that are ignored or forwarded in encoded form are no reason to refuse.
        if ["kid", "alg", "typ", "iss", "sub", "aud", "groups", "introspection"].contains(name) {
            assert!(matches!(answer.status, 401 | 403), "{name}: {}", answer.text());
            assert!(seen.is_empty(), "{name}");
        }
        assert!(seen.iter().all(|seen| !seen.head.contains("\ninjected")), "{name}");
    }
    fixture.api("/a%0d%0ainjected", &[&fixture.alice()]).await;
    let forged = json!(format!("refs/heads/{FORGED}")).to_string();
    let body = Push::body().replace("\"refs/heads/main\"", &forged);
    assert!(body.contains("injected"));
    let answer = Push::of(&body, &unique(), WEBHOOK_SECRET).send(&fixture.doorward, &[]).await;
    assert_ne!(answer.status, 200, "{}", answer.text());

    // The counterpart: the refusals are in the log, with what was written.
    for text in ["key_unknown", "identity_refused", "injected"] {
        fixture.doorward.wait_for_log_containing(text).await;
    }
    let metrics = fixture.doorward.metrics().await;
    assert!(!metrics.contains("injected"), "oauth:6: {metrics}");
    fixture.doorward.signal("TERM");
    fixture.doorward.ended().await;
    for line in &fixture.doorward.log() {
        let line = line.as_str().unwrap_or_else(|| panic!("it is no text: {line}"));
        assert!(!line.starts_with("injected"), "kubernetes:L1 oauth:6: {line:?}");
        assert!(!line.contains(char::is_control), "kubernetes:L1 oauth:6: {line:?}");
    }
    let audit = std::fs::read_to_string(fixture.doorward.audit_path()).unwrap();
    assert!(audit.contains("injected"), "the requests are in the trail");
    for line in audit.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("kubernetes:L1 {error}: {line}"));
    }
}
