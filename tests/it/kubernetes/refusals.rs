//! A 403 of the API server to Doorward's own account, distinguished from all others.

use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture},
    harness::{HANDSHAKE, Reply},
};

const ACCOUNT: &str = "system:serviceaccount:doorward:doorward";

/// The API server's answer if Doorward may not impersonate `resource`.
fn status(resource: &str) -> String {
    let verb = "impersonate-on:user-info:list";
    let said =
        format!("User {ACCOUNT:?} cannot {verb} resource {resource:?} in API group \"\" in the namespace \"ci\"");
    json!({"kind": "Status", "message": format!("{resource} is forbidden: {said}"), "code": 403}).to_string()
}

fn answer(code: u16, kind: &str, framing: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {code} X\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n{body}").into_bytes()
}

fn sized(code: u16, body: &str) -> Vec<u8> {
    answer(code, "application/json", &format!("Content-Length: {}", body.len()), body)
}

fn chunked(body: &str) -> Vec<u8> {
    let body = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    answer(403, "application/json", "Transfer-Encoding: chunked", &body)
}

#[tokio::test]
async fn a_403_to_our_own_account_is_502_and_no_other_answer_is() {
    let in_ci = |rest: &str| format!("/api/v1/namespaces/ci/{rest}");
    let (plain, long) = (status("pods"), "a".repeat(3000));
    let gzip = |body: &str| {
        let framing = format!("Content-Encoding: gzip\r\nContent-Length: {}", body.len());
        answer(403, "application/json", &framing, body)
    };
    let yaml = format!("kind: Status\nmessage: {}\n", serde_json::from_str::<Value>(&plain).unwrap()["message"]);
    let rows = [
        ("plain", "api.test", in_ci("plain"), sized(403, &plain), 502),
        ("chunked", "api.test", in_ci("chunked"), chunked(&plain), 502),
        // It is long because of what it quotes.
        ("long", "api.test", in_ci(&long), chunked(&status(&long)), 502),
        (
            "YAML",
            "api.test",
            in_ci("yaml"),
            answer(403, "application/yaml", &format!("Content-Length: {}", yaml.len()), &yaml),
            502,
        ),
        ("an upgrade", "api.test", in_ci("pods/p/exec?command=sh"), sized(403, &plain), 502),
        (
            "too long, of unknown length",
            "api.test",
            in_ci("endless"),
            chunked(&format!("{plain}{}", " ".repeat(100 << 10))),
            502,
        ),
        ("compressed to a long path", "api.test", in_ci(&format!("{long}/gzip")), gzip(&plain), 502),
        // Anything else is forwarded unchanged.
        ("compressed", "api.test", in_ci("gzip"), gzip(&plain), 403),
        ("too long", "api.test", in_ci("big"), sized(403, &format!("{plain}{}", " ".repeat(100 << 10))), 403),
        ("another status", "api.test", in_ci("conflict"), sized(409, &plain), 409),
        ("another type", "api.test", in_ci("text"), answer(403, "text/plain", "Content-Length: 0", ""), 403),
        ("proxied", "api.test", in_ci("services/web/proxy/x"), sized(403, &plain), 403),
        ("no API server", "web.test", "/x".to_owned(), sized(403, &plain), 403),
    ];
    let replies: Vec<_> = rows.iter().map(|(_, _, path, reply, _)| (format!(" {path} "), reply.clone())).collect();
    // Only a rule that names it allows anybody to use the proxy.
    let proxy = "rules:
  - {id: proxy, on: {routes: [api], kubernetes: {resources: [services/proxy]}}, who: {issuers: [a]}, do: allow}
";
    let mut fixture = Fixture::with(
        |yaml| yaml.change("rules:\n", proxy),
        move |request| {
            let reply = replies.iter().find(|(path, _)| request.line().contains(path));
            reply.map_or_else(|| Reply::json(200, "{}"), |(_, reply)| Reply::Bytes(reply.clone()))
        },
    )
    .await;
    let alice = fixture.alice();
    for (what, host, path, reply, expected) in &rows {
        let upgrade = if path.contains("/exec?") { HANDSHAKE.join("\r\n") + "\r\n" } else { String::new() };
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{alice}\r\n{upgrade}\r\n")).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, *expected, "{what}: {}", answer.text());
        let is_untouched = reply.ends_with(&answer.body);
        assert_eq!(is_untouched, *expected != 502, "{what}: {}", answer.text());
        assert!(is_untouched || !answer.text().contains(ACCOUNT), "{what}: {}", answer.text());
    }
    let path = in_ci("plain");
    let is_end =
        |record: &Value| record["http_request"]["url"]["path"] == path && !record["http_response"]["code"].is_null();
    let record = fixture.doorward.record(is_end).await;
    let codes = (&record["http_response"]["code"], &record["unmapped"]["upstream"]["status"]);
    assert_eq!(codes, (&json!(502), &json!(403)), "{record}");
    let line = fixture.doorward.wait_for_log_containing(ACCOUNT).await;
    assert_eq!(line["message"], "request failed", "{line}");
}

#[tokio::test]
async fn a_403_of_which_the_body_does_not_end_is_504_when_the_upstream_should_have_answered() {
    let fixture = Fixture::with(
        |yaml| yaml.change("response_timeout: 5s", "response_timeout: 300ms"),
        |_| Reply::Bytes(answer(403, "application/json", "Content-Length: 300", "{")),
    )
    .await;
    let (answer, _) = fixture.api("/api/v1/namespaces/ci/pods", &[&fixture.alice()]).await;
    assert_eq!((answer.status, answer.reason().as_str()), (504, "upstream_timeout"));
}
