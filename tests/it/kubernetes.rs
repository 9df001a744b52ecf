//! The rows `kubernetes:*` of `rows.txt`, over raw sockets, against the whole program. A row is data. The tests count
//! what may reach the API server, and check that it carries only Doorward's identity headers.

mod identity;
mod paths;
mod refusals;
mod runs;
mod streams;
mod wire;

use crate::{
    fixture::{Change, Fixture},
    harness::{Answer, Recorded, Reply},
};

const TASKRUNS: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

/// The expected result of a request.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// One of these statuses, and nothing reaches the upstream.
    Refused(&'static [u16]),
    /// 200, and one request reaches the upstream, as Alice and without any identity header of the client.
    Clean,
}

/// The fixture with rules for readers and cleaners, and an issuer B whose user name is a claim.
async fn fixture() -> Fixture {
    scripted(|_| Reply::json(200, r#"{"ok":true}"#)).await
}

async fn scripted(script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Fixture {
    logging("info", script).await
}

/// The same with this log filter.
async fn logging(filter: &str, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Fixture {
    Fixture::with(rules(filter), script).await
}

/// The edit of the configuration for this log filter.
fn rules(filter: &str) -> impl FnOnce(String) -> String {
    move |yaml: String| {
        let yaml = format!("{yaml}log: {{filter: {filter}}}\n");
        let yaml = yaml.change("username: 'b:{sub}'", "username: '{claim:/name}', clock_skew: 0s").change(
            "rules:\n",
            "rules:
  - {id: named, on: {routes: [api]}, who: {issuers: [b], groups: [dev]}, do: allow}
  - id: read
    on: {routes: [api], kubernetes: {verbs: [get, list], resources: [taskruns, pods, 'pods/log']}}
    who: {issuers: [a], groups: [readers]}
    do: allow
  - id: one
    on: {routes: [api], kubernetes: {verbs: [list], resources: [configmaps], names: [mine]}}
    who: {issuers: [a], groups: [readers]}
    do: allow
  - id: clean
    on: {routes: [api], kubernetes: {verbs: [delete], resources: [taskruns]}}
    who: {issuers: [a], groups: [cleaners]}
    do: allow
",
        );
        yaml.change(
            "grants:\n",
            "grants:\n  - {id: devs-of-b, who: {issuers: [b], groups: [dev]}, kubernetes_groups: ['tekton:dev']}\n",
        )
    }
}

/// Sends these lines and asserts the result.
async fn check(fixture: &Fixture, row: &str, lines: &[&str], body: &[u8], expect: Expect) -> Answer {
    let _ = fixture.upstream.take();
    let answer = fixture.doorward.send(lines, body).await;
    let seen = fixture.upstream.take();
    let what = format!("{row} {lines:?}: {}{}\n{seen:#?}", answer.head, answer.text());
    match expect {
        Expect::Refused(statuses) => {
            assert!(statuses.contains(&answer.status), "{what}");
            assert!(seen.is_empty(), "{what}");
        }
        Expect::Clean => {
            assert_eq!((answer.status, seen.len()), (200, 1), "{what}");
            assert_clean(row, &seen[0], "alice");
        }
    }
    answer
}

/// Exactly the identity that Doorward assigns, and Doorward's own credential.
fn assert_clean(row: &str, seen: &Recorded, user: &str) {
    let what = format!("{row}:\n{}", seen.head);
    assert_eq!(seen.all("impersonate-user"), [user], "{what}");
    assert_eq!(seen.all("impersonate-group"), ["tekton:dev"], "{what}");
    assert_eq!(seen.all("authorization"), ["Bearer upstream-token"], "{what}");
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "{what}");
    let id = seen.one("audit-id");
    assert_eq!(id.len(), 36, "{what}");
    // Only for a run that is created.
    assert!(seen.all("impersonate-extra-doorward.dev%2frequest-id").iter().all(|named| *named == id), "{what}");
    let known = [
        "host",
        "accept",
        "audit-id",
        "authorization",
        "content-length",
        "content-type",
        "impersonate-user",
        "impersonate-group",
        "impersonate-extra-doorward.dev%2fclient",
        "impersonate-extra-doorward.dev%2frequest-id",
        "impersonate-extra-doorward.dev%2frequest-id",
        "x-forwarded-for",
        "transfer-encoding",
    ];
    for line in seen.head.lines().skip(1).filter(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap().to_ascii_lowercase();
        assert!(known.contains(&name.as_str()), "{name} reached the upstream: {what}");
    }
}

/// A request of Alice with further lines.
async fn alice(fixture: &Fixture, row: &str, request: &str, more: &[&str], expect: Expect) -> Answer {
    let token = fixture.alice();
    let line = format!("{request} HTTP/1.1");
    let mut lines = vec![line.as_str(), "Host: api.test", &token];
    lines.extend(more);
    check(fixture, row, &lines, b"", expect).await
}
