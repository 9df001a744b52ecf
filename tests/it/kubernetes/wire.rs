//! Rows R, H5, A3: bytes that two programs may parse as different requests.

use super::{
    Expect::{Clean, Refused},
    TASKRUNS, alice, fixture, scripted,
};
use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Raw, Reply, h2},
};

/// A body that only the API server reads.
const CONFIG_MAPS: &str = "/api/v1/namespaces/ci/configmaps";

#[tokio::test]
async fn framing_that_can_be_read_in_two_ways_is_400_and_closes() {
    let fixture = fixture().await;
    let token = fixture.alice();
    let smuggled = "GET /api/v1/secrets HTTP/1.1\r\nHost: api.test\r\n\r\n";
    // The head of the last one is valid, and may arrive before the body is read.
    let cases = [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n", false),
        ("Transfer-Encoding: xchunked\r\n\r\n", "0\r\n\r\n", false),
        ("Transfer-Encoding: chunked, identity\r\n\r\n", "0\r\n\r\n", false),
        ("Content-Length: 4\r\nContent-Length: 5\r\n\r\n", "abcd", false),
        ("Content-Length: +4\r\n\r\n", "abcd", false),
        ("Content-Length : 4\r\n\r\n", "abcd", false),
        ("X-Folded: a\r\n b\r\n\r\n", "", false),
        ("Name : v\r\n\r\n", "", false),
        ("Transfer-Encoding: chunked\r\n\r\n", "2\na\n0\r\n\r\n", true),
    ];
    for (headers, body, may_arrive) in cases {
        let _ = fixture.upstream.take();
        let mut raw = fixture.doorward.raw().await;
        let head =
            format!("POST {CONFIG_MAPS} HTTP/1.1\r\nHost: api.test\r\n{token}\r\nContent-Type: application/json\r\n");
        raw.send(format!("{head}{headers}{body}{smuggled}")).await;
        let rest = String::from_utf8_lossy(&raw.rest().await).into_owned();
        assert!(rest.starts_with("HTTP/1.1 400"), "kubernetes:R1 {headers:?}: {rest}");
        assert_eq!(rest.matches("HTTP/1.1 ").count(), 1, "kubernetes:R1 {headers:?}: {rest}");
        let seen = fixture.upstream.take();
        assert!(seen.iter().all(|seen| !seen.head.contains("secrets")), "kubernetes:R1 {headers:?}: {seen:#?}");
        assert!(seen.is_empty() || may_arrive, "kubernetes:R1 {headers:?}: {seen:#?}");
    }
    // Two hosts are refused too, but the end of such a request is certain, so that the connection may stay.
    alice(&fixture, "kubernetes:R2", &format!("GET {TASKRUNS}"), &["Host: api.test"], Refused(&[400])).await;
    alice(&fixture, "kubernetes:R1", &format!("POST {CONFIG_MAPS}"), &["Content-Length: 0"], Clean).await;
}

#[tokio::test]
async fn http2_that_would_become_something_else_in_http1_is_refused() {
    let fixture = fixture().await;
    let token = format!("Bearer {}", fixture.a.token("alice", &["dev"]));
    let good = |path: &str, authority: &str| {
        vec![
            (":method".to_owned(), "GET".to_owned()),
            (":scheme".to_owned(), "http".to_owned()),
            (":authority".to_owned(), authority.to_owned()),
            (":path".to_owned(), path.to_owned()),
            ("authorization".to_owned(), token.clone()),
        ]
    };
    let and = |name: &str, value: &str| {
        let mut fields = good(TASKRUNS, "api.test");
        fields.push((name.to_owned(), value.to_owned()));
        fields
    };
    let mut two_hosts = and("host", "api.test");
    two_hosts.push(("host".to_owned(), "api.test".to_owned()));
    let cases = [
        ("kubernetes:A3", and("impersonate-user", "root")),
        ("kubernetes:H5", and("connection", "impersonate-user")),
        ("kubernetes:H5", and("te", "gzip")),
        ("kubernetes:H5", and("transfer-encoding", "chunked")),
        ("kubernetes:R2", good("/api/v1/name spaces", "api.test")),
        ("kubernetes:R2", good("/api\r\nx: y", "api.test")),
        ("kubernetes:R2", and("x-value", "a\rb")),
        ("kubernetes:R2", and("host", "web.test")),
        ("kubernetes:R2", two_hosts),
    ];
    for (row, fields) in &cases {
        let _ = fixture.upstream.take();
        let answer = h2::ask(fixture.doorward.address("public"), fields).await;
        assert_ne!(answer, h2::Outcome::Ok, "{row} {fields:?}");
        assert!(fixture.upstream.take().is_empty(), "{row} {fields:?}");
        assert_eq!(
            h2::ask(fixture.doorward.address("public"), &good(TASKRUNS, "api.test")).await,
            h2::Outcome::Ok,
            "{row}: the twin"
        );
    }
}

#[tokio::test]
async fn an_identity_belongs_to_a_request_and_not_to_a_connection() {
    let fixture = scripted(|_| Reply::json(200, "{}")).await;
    let mut claims = fixture.b.claims("bob", &["dev"]);
    claims["name"] = "bob".into();
    let bob = bearer(&fixture.b.sign(&claims));
    let mut raw = Raw::connect(fixture.doorward.address("public")).await;
    for (user, token) in
        [("alice", Some(fixture.alice())), ("bob", Some(bob)), ("", None), ("alice", Some(fixture.alice()))]
    {
        let _ = fixture.upstream.take();
        let token = token.map(|token| token + "\r\n").unwrap_or_default();
        raw.send(format!("GET {TASKRUNS} HTTP/1.1\r\nHost: api.test\r\n{token}\r\n")).await;
        let status = raw.answer().await.status;
        let seen = fixture.upstream.take();
        let users: Vec<&str> = seen.iter().flat_map(|seen| seen.all("impersonate-user")).collect();
        match user {
            "" => assert_eq!((status, users.len()), (401, 0), "kubernetes:R3"),
            user => assert_eq!((status, &users[..]), (200, &[user][..]), "kubernetes:R3"),
        }
    }
}

/// The counterpart with a token keeps its connection, and so does a proxy, which forwards others' requests on it.
#[tokio::test]
async fn a_client_without_a_credential_gets_one_request_per_http2_connection() {
    for is_proxy in [false, true] {
        let change = |yaml: String| match is_proxy {
            true => yaml.change("}]\nexternal", ", trusted_proxies: [127.0.0.1/32]}]\nexternal"),
            false => yaml,
        };
        let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
        let request = |authorization: Option<String>| {
            let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "api.test"), (":path", TASKRUNS)];
            let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let authorization = authorization.map(|value| ("authorization".to_owned(), value));
            fields.into_iter().chain(authorization).collect::<Vec<_>>()
        };
        let good = || request(Some(format!("Bearer {}", fixture.a.token("alice", &["dev"]))));
        let address = fixture.doorward.address("public");
        // A known caller without the right: the decision is about the request, not about the identity.
        let stranger = request(Some(format!("Bearer {}", fixture.a.token("mallory", &[]))));
        for unknown in [None, Some("Bearer of-nothing")] {
            let requests = [good(), stranger.clone(), request(unknown.map(str::to_owned))];
            let sent_away = h2::are_sent_away(address, &requests).await;
            assert_eq!(sent_away, [false, false, !is_proxy], "kubernetes:R4 {unknown:?}, by a proxy: {is_proxy}");
        }
        // A gRPC refusal has status 200.
        let grpc = [(":method", "POST"), (":scheme", "http"), (":authority", "web.test"), (":path", "/a.B/C")];
        let grpc = grpc.into_iter().chain([("content-type", "application/grpc")]);
        let grpc = grpc.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(h2::are_sent_away(address, &[grpc]).await, [!is_proxy], "kubernetes:R4 by a proxy: {is_proxy}");
    }
}

#[tokio::test]
async fn a_flood_of_resets_does_not_reach_the_upstream() {
    let fixture = fixture().await;
    let _ = fixture.upstream.take();
    h2::flood(fixture.doorward.address("public"), 1000, TASKRUNS, "api.test").await;
    assert!(fixture.upstream.take().is_empty(), "kubernetes:R4 no credential, no request");
    fixture.doorward.stays_below(90, "kubernetes:R4");
    alice(&fixture, "kubernetes:R4", &format!("GET {TASKRUNS}"), &[], Clean).await;
}
