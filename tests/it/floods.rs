//! Memory stays bounded, whatever clients, issuers and upstreams send, and however much. Each flood states the most
//! resident memory that Doorward may use afterwards (the debug build uses about 70 MiB idle), or how much more than
//! before. It sends more than that, and ends with a request that is served normally.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{
        Doorward, Fault, Push, Raw, Reply, h2,
        streams::{WATCH, streaming},
        unique, until,
    },
    login_fixture::LoginFixture,
};

const PATH: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns";

/// Asserts the ceiling, and that a well-behaved client is served. It has an address of its own, as one that floods is
/// rejected for a while.
async fn survives(fixture: &Fixture, ceiling: u64, flood: &str) {
    fixture.doorward.stays_below(ceiling, flood);
    let _ = fixture.upstream.take();
    let mut raw = Raw::connect_from([127, 0, 0, 2].into(), fixture.doorward.address("public")).await;
    raw.send(format!("GET {PATH} HTTP/1.1\r\nHost: api.test\r\n{}\r\n\r\n", fixture.alice())).await;
    let (answer, seen) = (raw.answer().await, fixture.upstream.take());
    let hits = seen.iter().filter(|seen| seen.line().contains(PATH)).count();
    assert_eq!((answer.status, hits), (200, 1), "{flood}: {}", answer.text());
}

/// Runs `count` futures at the same time.
async fn at_once<F: Future<Output = ()> + Send + 'static>(count: usize, each: impl Fn(usize) -> F) {
    let mut running: JoinSet<()> = (0..count).map(each).collect();
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn heads_without_end() {
    let fixture = Fixture::start().await;
    let address = fixture.doorward.address("public");
    at_once(200, |_| async move {
        let mut raw = Raw::connect(address).await;
        raw.send("GET /x HTTP/1.1\r\nHost: open.test\r\n").await;
        for number in 0..64 {
            raw.send(format!("X-{number}: {}\r\n", "a".repeat(16 << 10))).await;
        }
        let rest = String::from_utf8_lossy(&raw.rest().await).into_owned();
        // The connection may be reset with unread data.
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 431 "), "{rest}");
    })
    .await;
    assert!(fixture.upstream.take().is_empty());
    survives(&fixture, 100, "200 heads of 1 MiB").await;
}

/// An occasional byte does not extend the time limit for a head.
#[tokio::test]
async fn heads_sent_byte_by_byte_get_no_extra_time() {
    const EXPIRED: &str = "doorward_downstream_connections_expired_total{phase=\"head\"}";
    let fixture = Fixture::start().await;
    let address = fixture.doorward.address("public");
    let before = fixture.doorward.counter(EXPIRED).await;
    at_once(300, |_| async move {
        let mut raw = Raw::connect(address).await;
        raw.send("GET /x HTTP/1.1\r\nHost: open.test\r\nX-Slow: ").await;
        while timeout(Duration::from_millis(50), raw.rest()).await.is_err() {
            raw.send("a").await;
        }
    })
    .await;
    assert_eq!(fixture.doorward.counter(EXPIRED).await - before, 300);
    assert!(fixture.upstream.take().is_empty());
    survives(&fixture, 100, "300 heads that come byte by byte").await;
}

#[tokio::test]
async fn http2_headers_that_are_never_complete_or_unpack_to_much() {
    let fixture = Fixture::start().await;
    let address = fixture.doorward.address("public");
    at_once(4, |_| h2::continuation_flood(address, 4000)).await;
    assert!(fixture.upstream.take().is_empty());
    survives(&fixture, 100, "4 header blocks of 60 MiB").await;

    let fixture = Fixture::start().await;
    let address = fixture.doorward.address("public");
    let outcomes = h2::header_bomb(address, 10, "/x", "open.test").await;
    assert!(outcomes.iter().all(|outcome| *outcome != h2::Outcome::Ok), "{outcomes:?}");
    assert!(fixture.upstream.take().is_empty());
    survives(&fixture, 100, "10 header blocks that unpack to 60 MiB").await;
}

/// On a busy machine a body of a flood could be over its time before the flood ends it.
fn with_time_for_bodies(yaml: &str) -> String {
    yaml.change("body_timeout: 1s", "body_timeout: 1m")
}

#[tokio::test]
async fn http2_bodies_of_nothing_end_their_connection() {
    const FLOODS: &str = "doorward_downstream_protocol_errors_total{kind=\"flood\"}";
    let fixture = Fixture::with(|yaml| with_time_for_bodies(&yaml), |_| Reply::json(200, "{}")).await;
    let address = fixture.doorward.address("public");
    let before = fixture.doorward.counter(FLOODS).await;
    at_once(3, |number| h2::idle_flood(address, h2::Idle::EmptyData, number > 0, "open.test")).await;
    assert_eq!(fixture.doorward.counter(FLOODS).await - before, 3);
    survives(&fixture, 100, "empty DATA frames without end").await;
}

/// The record said that the client had gone.
#[tokio::test]
async fn a_stream_of_a_connection_that_a_flood_ended_is_recorded_so() {
    let fixture = Fixture::with(|yaml| with_time_for_bodies(&yaml), streaming).await;
    h2::flood_beside(fixture.doorward.address("public"), WATCH, "open.test").await;
    let ended =
        |record: &Value| record["http_request"]["http_method"] == "GET" && record["unmapped"]["ended"].is_string();
    let records = fixture.doorward.records(1, ended).await;
    assert_eq!(records[0]["unmapped"]["ended"], "flood", "{records:#?}");
}

/// Each frame is answered before the next is read, so that a client that reads no answers is not read from either.
/// Neither counts as activity, so the connection ends when its first request is due.
#[tokio::test]
async fn http2_settings_and_pings_without_a_request_end_with_the_time_for_one() {
    const EXPIRED: &str = "doorward_downstream_connections_expired_total{phase=\"head\"}";
    let fixture = Fixture::start().await;
    let address = fixture.doorward.address("public");
    for idle in [h2::Idle::Settings, h2::Idle::Pings] {
        let before = fixture.doorward.counter(EXPIRED).await;
        at_once(4, |number| h2::idle_flood(address, idle, number % 2 == 0, "open.test")).await;
        assert_eq!(fixture.doorward.counter(EXPIRED).await - before, 4, "{idle:?}");
        survives(&fixture, 100, &format!("{idle:?} without end")).await;
    }
}

#[tokio::test]
async fn deliveries_that_are_read_whole_share_a_budget() {
    // A delivery has its whole time for its body, which is long on a busy machine.
    let change = |yaml: String| {
        yaml.change("limits: {", "limits: {buffered_bytes: 32MiB, ").change("body_timeout: 1s", "body_timeout: 1m")
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, r#"{"ok":true}"#)).await;
    let address = fixture.doorward.address("public");
    at_once(40, |_| async move {
        let body = vec![b' '; 8 << 20];
        let head = format!(
            "POST /github HTTP/1.1\r\nHost: hooks.test\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
             X-GitHub-Delivery: {}\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: {}\r\n\r\n",
            unique(),
            "0".repeat(64),
            body.len()
        );
        let mut raw = Raw::connect(address).await;
        raw.send(head).await;
        raw.send(body).await;
        let status = raw.answer().await.status;
        assert!(matches!(status, 0 | 401 | 503), "{status}");
    })
    .await;
    assert!(fixture.upstream.take().is_empty());
    // In addition to the budget, the allocator retains memory freed by bodies that grew.
    survives(&fixture, 180, "40 deliveries of 8 MiB that nobody signed").await;
}

/// Ten connections of a stranger blocked everybody's deliveries, which most Git hosts send only once.
#[tokio::test]
async fn bodies_that_one_address_never_ends_keep_out_no_delivery_of_another() {
    let change = |yaml: String| {
        yaml.change("limits: {", "limits: {buffered_bytes: 64KiB, ").change("body_timeout: 1s", "body_timeout: 1m")
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, r#"{"ok":true}"#)).await;
    let unsigned = |length: usize| {
        format!(
            "POST /github HTTP/1.1\r\nHost: hooks.test\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\n\
             X-GitHub-Delivery: {}\r\nX-Hub-Signature-256: sha256={}\r\nContent-Length: {length}\r\n\r\n",
            unique(),
            "0".repeat(64),
        )
    };
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut raw = fixture.doorward.raw().await;
        raw.send(unsigned(8192) + &" ".repeat(8191)).await;
        idle.push(raw);
    }
    // Once their data is read, there is no room for another body from their address.
    until(async || {
        let mut raw = fixture.doorward.raw().await;
        raw.send(unsigned(2) + "{}").await;
        raw.answer().await.status == 503
    })
    .await;
    let mut raw = Raw::connect_from([127, 0, 0, 2].into(), fixture.doorward.address("public")).await;
    raw.send(Push::new().request(&[])).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, fixture.upstream.take().len()), (200, 1), "{}", answer.text());
}

#[tokio::test]
async fn bodies_go_through_without_being_kept() {
    const SIZE: usize = 16 << 20;
    let fixture = Fixture::answering(|request| match request.line().starts_with("GET /large") {
        true => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
            Reply::Bytes([head.into_bytes(), vec![b'x'; SIZE]].concat())
        }
        false => Reply::json(200, "{}"),
    })
    .await;
    let (address, alice) = (fixture.doorward.address("public"), fixture.alice());
    at_once(6, |_| {
        let head = format!("Host: web.test\r\n{alice}\r\n");
        async move {
            let mut raw = Raw::connect(address).await;
            raw.send(format!("GET /large HTTP/1.1\r\n{head}\r\n")).await;
            assert_eq!(raw.answer().await.body.len(), SIZE);
            raw.send(format!("POST /x HTTP/1.1\r\n{head}Content-Length: {SIZE}\r\n\r\n")).await;
            raw.send(vec![b'x'; SIZE]).await;
            assert_eq!(raw.answer().await.status, 200);
        }
    })
    .await;
    assert_eq!(fixture.upstream.take().iter().map(|seen| seen.body.len()).sum::<usize>(), 6 * SIZE);
    // A client that reads nothing slows its own responses.
    let mut idle = Vec::new();
    for _ in 0..6 {
        let mut raw = Raw::connect(address).await;
        raw.send(format!("GET /large HTTP/1.1\r\nHost: web.test\r\n{alice}\r\n\r\n")).await;
        idle.push(raw);
    }
    survives(&fixture, 100, "bodies of 96 MiB both ways").await;
}

/// The most, in MiB, that the resident memory of a warm Doorward may grow in a flood: it grows by 1 to 2, and each kind
/// of request sends 7.
const GROWTH: u64 = 4;

/// The number of requests until it is warm: memory for threads, connections and the state of many strangers is
/// allocated by then.
const WARM_UP: u32 = 400;

/// Sends `requests` requests of strangers to a warm Doorward, which may add almost nothing to its metrics. Returns the
/// most resident memory, in MiB, that is allowed afterwards.
async fn flood(doorward: &Doorward, requests: u32, mut send: impl AsyncFnMut(u32)) -> u64 {
    let before = doorward.metrics().await.len();
    let mut ceiling = 0;
    for number in 0..WARM_UP + requests {
        if number == WARM_UP {
            ceiling = doorward.peak_memory().expect("it runs") + GROWTH;
        }
        send(number).await;
    }
    let after = doorward.metrics().await.len();
    assert!(after < before + 8192, "strangers made {} bytes of metrics", after - before);
    ceiling
}

#[tokio::test]
async fn forged_credentials_leave_nothing_behind() {
    let fixture = Fixture::start().await;
    let mut raw = Raw::connect(fixture.doorward.address("public")).await;
    // The time for a first request is short.
    raw.send("GET /x HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 401);
    let filler = "a".repeat(15_000);
    let ceiling = flood(&fixture.doorward, 1000, async |number: u32| {
        let credential = match number % 2 {
            // A token signed with a key that the issuer does not have, almost as long as allowed.
            0 => {
                let header = json!({"alg": "ES256", "typ": "at+jwt", "kid": unique()});
                let mut claims = fixture.a.claims(&unique(), &["dev"]);
                claims["filler"] = filler[..11_000].into();
                bearer(&fixture.a.sign_with(&header, &claims))
            }
            _ => bearer(&format!("{}{filler}", unique())),
        };
        let path = format!("/{}", unique());
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: api.test\r\n{credential}\r\n\r\n")).await;
        let status = raw.answer().await.status;
        assert!(matches!(status, 400 | 401 | 429 | 503), "{status}");
        // These are short: otherwise they would appear in the metrics.
        if number.is_multiple_of(4) {
            raw.send(format!("M{number} {path} HTTP/1.1\r\nHost: {number}.test\r\n\r\n")).await;
            let status = raw.answer().await.status;
            assert!(matches!(status, 400 | 405 | 421 | 501), "{status}");
        }
    })
    .await;
    assert!(fixture.upstream.take().is_empty());
    survives(&fixture, ceiling, "1000 credentials of some 15 kB").await;
}

/// The store is queried for each well-formed handle, and requests for a login are redirected.
#[tokio::test]
async fn forged_sessions_and_unfinished_logins_leave_nothing_behind() {
    let limits = ("drain_accept: 0", "drain_accept: 0, refusals_per_address: 2000");
    let (world, _issuer) = LoginFixture::scripted(&[limits]).await;
    let cookie = world.log_in().await;
    assert_eq!(world.status(&cookie).await, 200);
    let _ = world.upstream.take();
    let filler = "a".repeat(24_000);
    let mut raw = world.doorward.raw().await;
    let ceiling = flood(&world.doorward, 1200, async |number: u32| {
        let mut bytes = [7_u8; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let id = BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let (path, credential, expected) = match number % 4 {
            0 => ("/page", format!("Cookie: __Host-doorward={id}; filler={filler}"), "session_expired"),
            1 => ("/page", format!("{}\r\nX-Filler: {filler}", bearer(&format!("dws_{id}"))), "session_expired"),
            2 => ("/page", format!("Cookie: __Host-doorward={id}{filler}"), "credential_malformed"),
            _ => ("/oauth2/start?rd=/page", format!("Cookie: filler={filler}"), ""),
        };
        let host = &world.host;
        raw.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n{credential}\r\n\r\n"))
            .await;
        let answer = raw.answer().await;
        if expected.is_empty() {
            assert_eq!(answer.status, 303, "{}{}", answer.head, answer.text());
        } else {
            assert_eq!((answer.status, answer.reason().as_str()), (401, expected), "{number}: {}", answer.text());
        }
    })
    .await;
    assert!(world.upstream.take().is_empty());
    world.doorward.stays_below(ceiling, "1200 sessions and logins of strangers with 24 kB each");
    assert_eq!(world.status(&cookie).await, 200);
}

#[tokio::test]
async fn answers_of_an_issuer_and_an_upstream_are_bounded() {
    let fixture = Fixture::answering(|request| match request.line().contains("head") {
        true => {
            let line = format!("X-Large: {}\r\n", "a".repeat(1 << 20));
            Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{}\r\n", line.repeat(32)).into_bytes())
        }
        false => Reply::json(200, "{}"),
    })
    .await;
    for _ in 0..8 {
        let answer = fixture.doorward.get("/head", &["Host: open.test"]).await;
        assert_eq!((answer.status, answer.reason().as_str()), (502, "upstream_protocol"), "{}", answer.text());
    }
    fixture.a.set_fault(Fault::Huge);
    for _ in 0..8 {
        let (answer, seen) = fixture.api(PATH, &[&bearer(&unique())]).await;
        assert_eq!((answer.status, seen.len()), (503, 0), "{}", answer.text());
    }
    survives(&fixture, 100, "answers of 50 MB").await;
}

#[tokio::test]
async fn connections_that_say_nothing_are_cheap() {
    let fixture = Fixture::start().await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        let mut raw = fixture.doorward.raw().await;
        raw.send("GET /x HTTP/1.1\r\nHost: open.test\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 200);
        idle.push(raw);
    }
    survives(&fixture, 120, "500 connections kept").await;
}

/// Anybody may be refused any number of times, with paths of any length: each refusal leaves a line.
#[tokio::test]
async fn a_flood_of_refusals_that_cannot_be_recorded_is_survived() {
    let fixture = Fixture::with_faults(|yaml| yaml, |_| Reply::json(200, "{}")).await;
    fixture.doorward.break_trail(true);
    let address = fixture.doorward.address("public");
    let request = format!("GET /{} HTTP/1.1\r\nHost: web.test\r\n\r\n", "a".repeat(8000)).repeat(100);
    at_once(8, move |_| {
        let request = request.clone();
        async move {
            let mut raw = Raw::connect(address).await;
            for _ in 0..25 {
                raw.send(&request).await;
                for _ in 0..100 {
                    assert_eq!(raw.answer().await.status, 401);
                }
            }
        }
    })
    .await;
    let lost = fixture.doorward.counter("doorward_audit_records_lost_total").await;
    assert!(lost > 0, "no line of 160 MB was lost");
    fixture.doorward.break_trail(false);
    fixture.doorward.until_ready().await;
    survives(&fixture, 130, "refusals").await;
}
