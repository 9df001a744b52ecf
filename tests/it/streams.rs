//! How open streams end when their conditions do. Each kind ends in its own way: a WebSocket with a close frame that
//! gives the reason, SPDY by a cut, a watch cleanly, so that its client opens another, and a log by an abort, so that
//! it never looks complete.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Doorward, Raw, Recorded, Reply, now,
        streams::{Streams, WATCH, begin, ends, ends_in, http2, streaming, with_login},
        until, within,
    },
};

#[tokio::test]
async fn streams_end_when_a_reload_takes_the_permission_away() {
    let mut fixture = Fixture::answering(streaming).await;
    let (alice, b) = (fixture.alice(), bearer(&fixture.b.token("bea", &["dev"])));
    let path = fixture.doorward.dir().join("doorward.yaml");
    let before = std::fs::read_to_string(&path).unwrap();
    // First B's developers get the same rights, so that somebody keeps them.
    let both = before
        .change(
            "rules:\n",
            "rules:\n  - {id: dev-b, on: {routes: [api]}, who: {issuers: [b], groups: [dev]}, do: allow}\n",
        )
        .change("grants:\n", "grants:\n  - {id: dev-b, who: {issuers: [b], groups: [dev]}, kubernetes_groups: [b]}\n");
    std::fs::write(&path, &both).unwrap();
    fixture.doorward.wait_for_generation(2).await;
    let alices = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    let mut beas = Streams::open(&fixture.doorward, &["Host: api.test", &b]).await;
    std::fs::write(&path, both.change("on: {routes: [api, only-a, board, web]}", "on: {routes: [web]}")).unwrap();
    alices.have_ended(1008, "permission_lost").await;
    beas.are_open().await;
    // The rule stays, but the route no longer accepts B's tokens: that is a lost permission too.
    let narrowed =
        both.change("hosts: [api.test], schemes: [bearer],", "hosts: [api.test], schemes: [bearer], issuers: [a],");
    assert_ne!(narrowed, both);
    std::fs::write(&path, narrowed).unwrap();
    beas.have_ended(1008, "permission_lost").await;
    assert!(ends(&fixture.doorward, 12).await.iter().all(|why| why == "permission_lost"));
}

/// Meanwhile stalled plain responses are aborted, one after the other.
#[tokio::test]
async fn kubernetes_t4_what_lasts_may_be_silent_for_longer_than_a_plain_answer() {
    let limits = |yaml: String| {
        yaml.change("body_timeout: 1s", "body_timeout: 300ms, stream_idle_timeout: 300ms")
            .change("response_timeout: 5s", "response_timeout: 1s")
    };
    let script = |request: &Recorded| match request.line() {
        line if line.contains("/half") => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec()),
        _ => streaming(request),
    };
    let fixture = Fixture::with(limits, script).await;
    let alice = fixture.alice();
    let mut streams = Streams::open(&fixture.doorward, &["Host: api.test", &alice]).await;
    let opened = Instant::now();
    while opened.elapsed() < Duration::from_millis(1300) {
        let half = fixture.doorward.get("/half", &["Host: web.test", &alice]).await;
        assert_eq!((half.status, half.text().as_str()), (200, "half"), "it stands still: {}", half.head);
    }
    streams.are_open().await;
    // All of them end by this, and none has ended before.
    fixture.doorward.change("on: {routes: [api, only-a, board, web]}", "on: {routes: [web]}");
    streams.have_ended(1008, "permission_lost").await;
    fixture.doorward.records(6, |record| record["unmapped"]["ended"] == "permission_lost").await;
}

/// The rules stay as they are. Access is narrowed at the issuer or at the route, one thing at a time.
#[tokio::test]
async fn streams_end_when_a_reload_no_longer_accepts_their_token() {
    let mut fixture = Fixture::answering(streaming).await;
    let path = fixture.doorward.dir().join("doorward.yaml");
    let narrow = |before: &str, from: &str, to: &str| {
        let after = before.replacen(from, to, 1);
        assert_ne!(after, before, "{from}");
        std::fs::write(&path, &after).unwrap();
        after
    };
    let of_a =
        format!("issuer: '{}'\n    audiences: ['https://doorward.test']\n    username: '{{sub}}'\n", fixture.a.url());
    let before = std::fs::read_to_string(&path).unwrap();
    let clients = "    clients: [{id: tests, kind: human}]\n";
    let widened = narrow(
        &before,
        &of_a,
        &(of_a.change("['https://doorward.test']", "['https://doorward.test', other, third]") + clients),
    );
    fixture.doorward.wait_for_generation(2).await;
    // One of two audiences is removed, so that its counterpart shows that the other is still accepted.
    let token = |audience: &str, tenant: &str| {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims["aud"] = json!([audience]);
        claims["tenant"] = json!(tenant);
        bearer(&fixture.a.sign(&claims))
    };
    let watch =
        async |token: &str| begin(&fixture.doorward, WATCH, &["Host: api.test", token, "Connection: close"], 200).await;
    let mut kept = watch(&token("https://doorward.test", "ours")).await;
    let mut opaque = {
        let answer = json!({"active": true, "sub": "alice", "iss": fixture.a.url(), "client_id": "tests",
            "aud": "https://doorward.test", "exp": now() + 600, "groups": ["dev"], "tenant": "ours"});
        fixture.a.opaque("an-opaque-token", answer);
        watch(&bearer("an-opaque-token")).await
    };

    let mut lost = watch(&token("other", "ours")).await;
    let narrowed = narrow(&widened, "'https://doorward.test', other, third]", "'https://doorward.test', third]");
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "the issuer's audience is gone");

    let mut lost = watch(&token("third", "ours")).await;
    let of_route = "hosts: [api.test], schemes: [bearer],";
    let narrowed =
        narrow(&narrowed, of_route, &format!("{of_route} issuers: [a], audiences: ['https://doorward.test'],"));
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "the route takes another audience");

    let mut lost = watch(&token("https://doorward.test", "another")).await;
    let narrowed =
        narrow(&narrowed, "    username: '{sub}'\n", "    username: '{sub}'\n    required_claims: {tenant: [ours]}\n");
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "a claim is required that the token has not");

    let mut lost = {
        let mut claims = fixture.a.claims("alice", &["dev"]);
        claims["tenant"] = json!("ours");
        claims["client_id"] = json!("another");
        watch(&bearer(&fixture.a.sign(&claims))).await
    };
    let narrowed =
        narrow(&narrowed, "    username: '{sub}'\n", "    username: '{sub}'\n    listed_clients_only: true\n");
    assert!(lost.rest().await.ends_with(b"0\r\n\r\n"), "only listed clients are taken");

    // The counterparts have survived it all.
    for (what, twin) in [("a JWT", &mut kept), ("an opaque token", &mut opaque)] {
        assert!(tokio::time::timeout(Duration::from_millis(300), twin.rest()).await.is_err(), "{what} is good still");
    }
    // Until they would be forwarded as another user.
    narrow(&narrowed, "    username: '{sub}'\n", "    username: 'corp:{sub}'\n");
    for (what, twin) in [("a JWT", kept), ("an opaque token", opaque)] {
        let mut twin = twin;
        assert!(twin.rest().await.ends_with(b"0\r\n\r\n"), "{what} has another name now");
    }
    assert!(ends(&fixture.doorward, 6).await.iter().all(|why| why == "permission_lost"));
}

#[tokio::test]
async fn streams_end_when_the_person_who_opened_them_signs_out() {
    let (doorward, _peers, host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    let out = doorward.send(&["POST /oauth2/sign_out HTTP/1.1", &host_line, &origin, &cookie], b"").await;
    assert!((300..400).contains(&out.status), "{}{}", out.head, out.text());
    streams.have_ended(1008, "signed_out").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 401);
    assert!(ends(&doorward, 6).await.iter().all(|why| why == "signed_out"));
}

#[tokio::test]
async fn streams_end_with_the_session_that_opened_them() {
    let (doorward, _peers, host, cookie) = with_login("absolute: 2h, idle: 2h", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let mut streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    doorward.set_clock_ahead(7000);
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 200);
    streams.are_open().await;
    doorward.set_clock_ahead(7300);
    streams.have_ended(1008, "expired").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 401);
}

/// Whatever the lifetime of their token, and without any refresh token: after `sessions.recheck`, 5 min.
#[tokio::test]
async fn attacks_z45_a_user_disabled_at_the_provider_is_out_in_time_with_all_open_streams() {
    let (doorward, (issuer, _upstream), host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let mut streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    doorward.set_clock_ahead(301);
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 200, "the provider vouches");
    streams.are_open().await;
    issuer.shut_out();
    doorward.set_clock_ahead(602);
    // Doorward's own pages are no way around: a tab that polls them must not extend the session.
    for own in ["/oauth2/userinfo", "/.doorward/whoami", "/.doorward/sessions"] {
        let refused = doorward.get(own, &[&host_line, &cookie]).await;
        assert_eq!(refused.status, 401, "{own}: {}", refused.text());
    }
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 401);
    streams.have_ended(1008, "signed_out").await;
}

/// A browser adds the cookie to a link on anybody's page.
#[tokio::test]
async fn a_link_with_a_persons_cookie_reaches_no_server_behind_the_api_server() {
    let (doorward, (_issuer, upstream), host, cookie) = with_login("", "").await;
    let (host_line, before) = (format!("Host: {host}"), upstream.requests().len());
    let get = async |more: &[&str]| {
        let lines = [&[host_line.as_str(), &cookie, "Accept: text/html"], more].concat();
        doorward.get("/api/v1/namespaces/ci/services/db/proxy/drop?all=yes", &lines).await
    };
    let navigates = ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    for site in ["cross-site", "same-site", "none"] {
        let site = format!("Sec-Fetch-Site: {site}");
        let refused = get(&[&navigates[..], &[&site]].concat()).await;
        assert_eq!(refused.status, 403, "{site}: {}", refused.text());
    }
    assert_eq!(get(&[]).await.status, 403, "a browser that says nothing");
    assert_eq!(upstream.requests().len(), before);
    let own = get(&[&navigates[..], &["Sec-Fetch-Site: same-origin"]].concat()).await;
    assert_eq!(own.status, 200, "a page of this host: {}", own.text());
}

#[tokio::test]
async fn streams_end_with_the_token_they_were_opened_with() {
    let fixture = Fixture::with_faults(|yaml| yaml, streaming).await;
    let mut claims = fixture.a.claims("alice", &["dev"]);
    claims["exp"] = json!(now() + 1200);
    let short = bearer(&fixture.a.sign(&claims));
    claims["exp"] = json!(now() + 7200);
    let long = bearer(&fixture.a.sign(&claims));
    let streams = Streams::open(&fixture.doorward, &["Host: api.test", &short]).await;
    let mut twin = Streams::open(&fixture.doorward, &["Host: api.test", &long]).await;
    fixture.doorward.set_clock_ahead(1800);
    streams.have_ended(1008, "expired").await;
    twin.are_open().await;
}

/// Responses that may last only in that they have no length, and one that does not last.
fn without_a_length(request: &Recorded) -> Reply {
    let rest = match request.line() {
        line if line.contains("/grpc") => {
            "Content-Type: application/grpc+proto\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"
        }
        line if line.contains("/lines") => {
            "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
        }
        line if line.contains("/file") => "Content-Type: application/octet-stream\r\n\r\nthe beginning",
        line if line.contains("/small") => "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        _ => return Reply::json(200, "{}"),
    };
    Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{rest}").into_bytes())
}

/// A route whose streams may last for 20 minutes, with an upstream that sends no length. Nothing else ends uploads.
async fn limited() -> Fixture {
    let limited = |yaml: String| {
        let web = "hosts: [web.test], schemes: [bearer], upstream: web";
        yaml.change(web, &format!("{web}, max_stream: 20m")).change("body_timeout: 1s", "body_timeout: 1h")
    };
    Fixture::with_faults(limited, without_a_length).await
}

/// A token with this id that outlives the streams of [`limited`].
fn lasting(fixture: &Fixture, jti: &str) -> String {
    let mut claims = fixture.a.claims("alice", &["dev"]);
    (claims["jti"], claims["exp"]) = (json!(jti), json!(now() + 7200));
    bearer(&fixture.a.sign(&claims))
}

/// Waits until `count` responses without a length are open.
async fn unsized_are(doorward: &Doorward, count: usize) {
    let line = format!("doorward_streams_open{{kind=\"unsized\"}} {count}\n");
    doorward.until_metrics_say(&line).await;
}

/// Regression: uploads were not registered before the upstream responded, and what their client sent meanwhile was
/// forwarded.
#[tokio::test]
async fn uploads_end_with_their_credential_and_at_their_routes_limit_before_any_response() {
    let fixture = limited().await;
    let token = |jti: &str| lasting(&fixture, jti);
    let begin = async |token: &str, length: &str| {
        let mut raw = fixture.doorward.raw().await;
        raw.send(format!("POST /upload HTTP/1.1\r\nHost: web.test\r\n{token}\r\n{length}\r\n\r\n2\r\nab\r\n")).await;
        raw
    };
    let uploads_are = async |count: usize| {
        let line = format!("doorward_streams_open{{kind=\"upload\"}} {count}\n");
        fixture.doorward.until_metrics_say(&line).await;
    };
    let (leaked, other, chunked) = (token("leaked"), token("other"), "Transfer-Encoding: chunked");
    let mut of_leaked = [begin(&leaked, chunked).await, begin(&leaked, "Content-Length: 100000").await];
    let (mut late, mut whole) = (begin(&other, chunked).await, begin(&other, chunked).await);
    uploads_are(4).await;

    let revoke = ["revoke", "--issuer", "a", "--token-id", "leaked", "--why", "in a build log"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    for raw in &mut of_leaked {
        let answer = raw.answer().await;
        assert!(answer.status == 401 && answer.text().contains("was revoked"), "{}{}", answer.head, answer.text());
    }
    uploads_are(2).await;

    // An upload that completes is recorded as such.
    whole.send("0\r\n\r\n").await;
    assert_eq!(whole.answer().await.status, 200);
    uploads_are(1).await;

    fixture.doorward.set_clock_ahead(1800);
    let answer = late.answer().await;
    assert!(answer.status == 408 && answer.text().contains("max_stream"), "{}{}", answer.head, answer.text());
    uploads_are(0).await;
}

#[tokio::test]
async fn answers_without_a_length_end_with_their_credential_and_at_the_limit_of_their_route() {
    let fixture = limited().await;
    let token = |jti: &str| lasting(&fixture, jti);
    let open = async |token: &str| {
        let mut opened = Vec::new();
        for path in ["/grpc", "/lines", "/file"] {
            let lines = ["Host: web.test", token, "Connection: close"];
            opened.push(begin(&fixture.doorward, path, &lines, 200).await);
        }
        opened
    };
    let (leaked, other) = (token("leaked"), token("other"));
    let (of_leaked, of_other) = (open(&leaked).await, open(&other).await);
    unsized_are(&fixture.doorward, 6).await;
    let break_off = async |opened: Vec<Raw>, why: &str| {
        for mut raw in opened {
            let rest = raw.rest().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{why}: {}", String::from_utf8_lossy(&rest));
        }
    };
    let revoke = ["revoke", "--issuer", "a", "--token-id", "leaked", "--why", "in a build log"];
    let (code, said) = fixture.doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    break_off(of_leaked, "revoked").await;
    unsized_are(&fixture.doorward, 3).await;

    // A response that ends soon has a single record, of a complete response.
    let small = fixture.doorward.get("/small", &["Host: web.test", &other]).await;
    assert_eq!((small.status, small.text().as_str()), (200, "ok"));
    unsized_are(&fixture.doorward, 3).await;

    fixture.doorward.set_clock_ahead(1800);
    break_off(of_other, "max_stream").await;
    // A request that changes nothing and is not known to last has one record, at its end.
    let mut ended = ends_in(&fixture.doorward, "request", 6).await;
    ended.sort_unstable();
    assert_eq!(ended, ["max_stream", "max_stream", "max_stream", "revoked", "revoked", "revoked"]);
    let is_small = |record: &Value| record.to_string().contains("/small");
    fixture.doorward.record(is_small).await;
    let trail = fixture.doorward.audit();
    let small: Vec<_> = trail.iter().filter(|record| is_small(record)).collect();
    assert_eq!(small.len(), 1, "{small:#?}");
    assert_eq!(small[0]["metadata"]["event_code"], "request");
    assert!(small[0]["unmapped"]["ended"].is_null(), "{}", small[0]);
}

#[tokio::test]
async fn streams_end_when_the_hours_of_their_rule_are_over() {
    let clock = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    let minute = now() / 60;
    let window = format!(", time: {{from: '{}', to: '{}'}}", clock(minute + 24 * 60 - 60), clock(minute + 30));
    let (doorward, _peers, host, cookie) = with_login("", &window).await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let mut streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    streams.are_open().await;
    doorward.set_clock_ahead(1800);
    streams.have_ended(1008, "permission_lost").await;
    assert_eq!(doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status, 403);
}

#[tokio::test]
async fn revoking_a_person_ends_their_sessions_and_what_they_have_open() {
    let (doorward, (issuer, _upstream), host, cookie) = with_login("", "").await;
    let (host_line, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let streams = Streams::open(&doorward, &[&host_line, &origin, &cookie]).await;
    let revoke = ["revoke", "--issuer", issuer.url(), "--subject", "alice", "--why", "lost a laptop"];
    let (code, said) = doorward.operator(&revoke).await;
    assert_eq!(code, Some(0), "{said}");
    streams.have_ended(1008, "revoked").await;
    let refused = doorward.get("/api/v1/pods", &[&host_line, &cookie]).await;
    assert_eq!((refused.status, refused.reason().as_str()), (401, "token_revoked"));
    assert!(!refused.text().contains("laptop"), "why is for operators: {}", refused.text());
    let names_her =
        |line: &Value| line["status_code"] == "token_revoked" && line["unmapped"]["presented"]["subject"] == "alice";
    doorward.record(names_her).await;
    // A later revocation replaces the earlier one.
    let (code, said) = doorward.operator(&[&revoke[..6], &["found it", "--for", "1s"]].concat()).await;
    assert_eq!(code, Some(0), "{said}");
    until(async || doorward.get("/api/v1/pods", &[&host_line, &cookie]).await.status == 200).await;
}

/// One caller's watches took every connection to the API server, and everybody else got a 503.
#[tokio::test]
async fn watches_of_one_caller_leave_connections_to_others() {
    let few = |yaml: String| {
        let four = "response_timeout: 5s, connect_timeout: 1s, max_connections: 4";
        format!("workers: 1{}", yaml.change("response_timeout: 5s", four))
    };
    let fixture = Fixture::with(few, streaming).await;
    let (alice, other) = (fixture.alice(), bearer(&fixture.a.token("olga", &["dev"])));
    let watch = async |status: u16| begin(&fixture.doorward, WATCH, &["Host: api.test", &alice], status).await;
    let watches = [watch(200).await, watch(200).await, watch(200).await];
    watch(503).await;
    for _ in 0..2 {
        let (answer, seen) = fixture.api("/api/v1/pods", &[&other]).await;
        assert_eq!((answer.status, seen.len()), (200, 1), "{}", answer.text());
    }
    drop(watches);
}

/// Servers of gRPC's core library, including C++ and Python, refuse a call without it.
#[tokio::test]
async fn te_trailers_of_a_client_is_forwarded_to_an_http2_upstream() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heads = heads.clone();
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                heads.send(request.headers().get("te").cloned()).unwrap();
                async { Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<bytes::Bytes>::new())) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let upstream = format!("upstreams:\n  - {{name: grpc, url: 'http://{address}', protocol: http2}}\n");
    let change = |yaml: String| {
        yaml.change("upstreams:\n", &upstream)
            .change("schemes: [anonymous], upstream: web", "schemes: [anonymous], upstream: grpc")
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let mut client = http2(&fixture.doorward).await;
    for (te, expected) in [(Some("trailers"), Some("trailers")), (None, None), (Some("gzip"), None)] {
        let mut request = http::Request::get("http://open.test/x").body(Empty::new()).unwrap();
        request.headers_mut().extend(te.map(|te| (http::header::TE, http::HeaderValue::from_static(te))));
        assert_eq!(within(client.send_request(request)).await.unwrap().status(), 200);
        let seen = within(seen.recv()).await.unwrap();
        assert_eq!(seen.as_ref().map(|te| te.to_str().unwrap()), expected, "{te:?}");
    }
}

/// `100 Continue` cannot be sent over HTTP/2. Most clients continue without it after a second.
#[tokio::test]
async fn over_http2_a_client_that_expects_100_continue_gets_advice_or_is_served_if_it_sends() {
    let fixture =
        Fixture::with(|yaml| yaml.change("body_timeout: 1s", "body_timeout: 30s"), |_| Reply::json(200, "{}")).await;
    let stream = tokio::net::TcpStream::connect(fixture.doorward.address("public")).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let upload = async |expect: &str, pause: Duration| {
        let late = futures_util::stream::once(async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(bytes::Bytes::from_static(b"late")))
        });
        let body = http_body_util::StreamBody::new(Box::pin(late));
        let request = http::Request::put("http://open.test/x").header("expect", expect).body(body).unwrap();
        let answer = within(client.clone().send_request(request)).await.unwrap();
        let status = answer.status();
        (status.as_u16(), String::from_utf8(answer.collect().await.unwrap().to_bytes().into()).unwrap())
    };
    let (patient, unasked, waiting) = tokio::join!(
        upload("100-continue", Duration::from_millis(1200)),
        upload("200-ok", Duration::from_secs(7)),
        upload("100-continue", Duration::from_secs(60)),
    );
    assert_eq!((patient.0, unasked.0), (200, 200), "{} {}", patient.1, unasked.1);
    assert_eq!(waiting.0, 417, "{}", waiting.1);
    assert!(waiting.1.contains("without `Expect: 100-continue`"), "{}", waiting.1);
}
