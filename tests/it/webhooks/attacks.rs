//! Each attack against each sender, over a socket. An attack names its row of the table.

use std::time::Duration;

use super::senders::{Delivery, Door, MAX_BODY, SENDERS, Sender};
use crate::harness::{now, unique};

/// One that forwards at once, and one that holds.
async fn doors() -> [Door; 2] {
    [Door::open().await, Door::holding().await]
}

/// Sends a genuine delivery of each sender, changed by `spoil`, and expects this status. Nothing may arrive.
async fn each(
    [door, holding]: &[Door; 2],
    row: &str,
    expected: impl Fn(&Sender) -> u16,
    spoil: impl Fn(&Sender, &mut Delivery),
) {
    for sender in SENDERS {
        let mut delivery = sender.delivery();
        spoil(sender, &mut delivery);
        let answer = delivery.send(door, sender).await;
        let expected = expected(sender);
        assert_eq!(answer.status, expected, "{row} {}: {}", sender.name, answer.text());
        door.doorward.stays_below(90, row);
        assert!(door.upstream.take().is_empty(), "{row} {}", sender.name);
        if !sender.can_be_held() {
            continue;
        }
        // Held deliveries are delivered in order, so that a wrong one would arrive first.
        let answer = delivery.send(holding, sender).await;
        assert_eq!(answer.status, expected, "{row} held, {}: {}", sender.name, answer.text());
        let twin = sender.delivery();
        assert_eq!(twin.send(holding, sender).await.status, 202, "{row} held, {}", sender.name);
        let arrived: Vec<_> = holding.arrived(1).await.into_iter().map(|seen| seen.body).collect();
        assert_eq!(arrived, [twin.content(sender)], "{row} held, {}", sender.name);
        if expected == 401 {
            let body = answer.text();
            assert!(body.contains("the delivery is not signed as this address requires"), "{row}: {body}");
            let (_, value) = sender.delivery_of(&delivery.body, "id", now()).proof;
            assert!(!body.contains(&value), "{row}: {body}");
        }
    }
}

#[tokio::test]
async fn webhooks_1_a_genuine_delivery_of_each_sender_arrives_byte_for_byte() {
    let door = Door::open().await;
    for sender in SENDERS {
        let delivery = sender.delivery();
        let answer = delivery.send(&door, sender).await;
        assert_eq!(answer.status, sender.taken, "{}: {}", sender.name, answer.text());
        let seen = door.upstream.only();
        let body = delivery.content(sender);
        assert_eq!(seen.body, body, "{}", sender.name);
        assert_eq!(seen.one("x-forwarded-user"), sender.user);
        assert_eq!(seen.one("content-length"), body.len().to_string());
        let has_secret = !sender.secret.is_empty() && seen.head.contains(sender.secret);
        assert!(!has_secret, "{}: {}", sender.name, seen.head);
        // As it was sent: Azure DevOps sends a different text.
        let passes = seen.head.contains(&delivery.proof.1);
        assert!(sender.signs_body() || !passes, "{}: {}", sender.name, seen.head);
        door.upstream.take();
    }
}

#[tokio::test]
async fn webhooks_2_and_6_a_proof_that_is_off_by_a_little_is_401() {
    let change =
        |how: fn(&str) -> String| move |_: &Sender, delivery: &mut Delivery| delivery.proof.1 = how(&delivery.proof.1);
    let doors = doors().await;
    for (row, how) in [
        (
            "webhooks:2 flipped",
            (|value| {
                let at = value.len() - 4;
                let other = if value.as_bytes()[at] == b'0' { "1" } else { "0" };
                format!("{}{other}{}", &value[..at], &value[at + 1..])
            }) as fn(&str) -> String,
        ),
        ("webhooks:2 truncated", |value| value[..value.len() - 2].to_owned()),
        ("webhooks:6 longer", |value| format!("{value}00")),
        ("webhooks:6 half", |value| value[..value.len() / 2].to_owned()),
        ("webhooks:6 nothing", |_| String::new()),
        ("webhooks:24 another", |_| "x".repeat(40)),
    ] {
        each(&doors, row, |_| 401, change(how)).await;
    }
    each(&doors, "webhooks:6 missing", Sender::unproven, |_, delivery| delivery.proof.0.clear()).await;
}

#[tokio::test]
async fn webhooks_5_a_header_with_two_proofs_is_refused() {
    let door = Door::open().await;
    for sender in SENDERS {
        let mut delivery = sender.delivery();
        delivery.proof.1 = format!("{0},{0}", delivery.proof.1);
        let status = delivery.send(&door, sender).await.status;
        assert!(matches!(status, 400 | 401), "webhooks:5 joined, {}: {status}", sender.name);
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_8_a_body_with_a_byte_order_mark_or_without_a_byte_is_refused() {
    let doors = doors().await;
    let broken = |sender: &Sender| if sender.signs_body() { 401 } else { sender.unreadable() };
    let marked = |_: &Sender, delivery: &mut Delivery| delivery.body.splice(..0, *b"\xef\xbb\xbf").for_each(drop);
    each(&doors, "webhooks:8 byte order mark", broken, marked).await;
    each(&doors, "webhooks:8 nothing", broken, |_, delivery| delivery.body.clear()).await;
}

#[tokio::test]
async fn webhooks_9_and_25_a_body_that_two_parsers_read_differently_is_refused() {
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let (payload, doors) = (format!("payload={deep}"), doors().await);
    // For a JSON sender and a form sender.
    for (row, json, form) in [
        ("webhooks:9 not UTF-8", &b"{\"ref\":\"\xff\"}"[..], &b"command=%ff"[..]),
        ("webhooks:25 a name twice", br#"{"ref":"a","ref":"b"}"#, b"command=a&command=b"),
        ("webhooks:25 the same name, escaped", br#"{"ref":"a","\u0072ef":"b"}"#, b"command=a&c%6fmmand=b"),
        ("webhooks:25 deep", deep.as_bytes(), payload.as_bytes()),
        ("webhooks:25 not a number", br#"{"a":NaN}"#, br#"payload={"a":NaN}"#),
        ("webhooks:25 a list", b"[1]", b"payload=[1]"),
        ("webhooks:25 two documents", b"{}{}", b"payload={}{}"),
        ("webhooks:25 nothing", b" ", b"payload="),
    ] {
        let body = |sender: &Sender| if sender.sends_forms() { form } else { json };
        each(&doors, row, Sender::unreadable, |sender, delivery| {
            *delivery = sender.delivery_of(body(sender), &unique(), now());
        })
        .await;
    }
}

#[tokio::test]
async fn webhooks_10_chunks_are_put_together_and_a_trailer_proves_nothing() {
    let door = Door::open().await;
    let chunks = |body: &[u8]| body.iter().map(|byte| format!("1\r\n{}\r\n", char::from(*byte))).collect::<String>();
    for sender in SENDERS {
        let delivery = sender.delivery();
        let mut raw = delivery.open(&door, sender, &["Transfer-Encoding: chunked"]).await;
        raw.send(format!("{}0\r\nX-Trailer: 1\r\n\r\n", chunks(&delivery.content(sender)))).await;
        assert_eq!(raw.answer().await.status, sender.taken, "webhooks:10 {}", sender.name);
        let seen = door.upstream.take();
        assert_eq!(seen[0].body, delivery.content(sender));
        assert!(!seen[0].has("x-trailer"), "{}", sender.name);

        let mut delivery = sender.delivery();
        let (name, value) = delivery.proof.clone();
        delivery.proof.0.clear();
        let mut raw = delivery.open(&door, sender, &["Transfer-Encoding: chunked"]).await;
        raw.send(format!("{}0\r\n{name}: {value}\r\n\r\n", chunks(&delivery.content(sender)))).await;
        assert_eq!(raw.answer().await.status, sender.unproven(), "webhooks:10 {}", sender.name);
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_13_to_15_media_that_the_sender_does_not_sign_as_they_are_are_415() {
    let door = Door::open().await;
    for sender in SENDERS {
        // Signed as they are, but with an id of their own.
        let form = sender.delivery_of(b"payload=%7B%7D", &unique(), now());
        let twice = sender.delivery_of(b"payload=%7B%7D&payload=%7B%22a%22%3A1%7D", &unique(), now());
        let parts = sender.delivery_of(b"--x\r\n\r\n{}\r\n--x--", &unique(), now());
        let plain = sender.delivery();
        // Slack's commands are forms, which are signed as sent.
        let of_forms = |status: u16| if sender.can_be_held() { 415 } else { status };
        for (row, delivery, kind, status) in [
            ("webhooks:13", &form, "Content-Type: application/x-www-form-urlencoded", of_forms(200)),
            ("webhooks:13", &form, "Content-Type: application/x-www-form-urlencoded; charset=utf-8", of_forms(200)),
            ("webhooks:14", &twice, "Content-Type: application/x-www-form-urlencoded", of_forms(400)),
            ("webhooks:15", &parts, "Content-Type: multipart/form-data; boundary=x", 415),
            ("webhooks:15", &plain, "Content-Type: application/json; charset=utf-16", 415),
            ("attacks:Z17", &plain, "Content-Type: application/cloudevents-batch+json", 415),
            ("webhooks:15", &plain, "X-No-Type: 1", 415),
        ] {
            let answer = delivery.send_as(&door, sender, kind, &[]).await;
            assert_eq!(answer.status, status, "{row} {} {kind}: {}", sender.name, answer.text());
            // An accepted form is answered with a plain 200.
            assert_eq!(door.upstream.take().len(), usize::from(answer.text().is_empty()), "{row} {}", sender.name);
        }
        if !sender.name.starts_with("standard-") {
            let event = "Content-Type: application/cloudevents+json";
            assert_eq!(plain.send_as(&door, sender, event, &[]).await.status, 415, "attacks:Z17 {}", sender.name);
        }
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_16_the_cap_holds_exactly() {
    let door = Door::open().await;
    let padded = |sender: &Sender, size: usize| {
        let body = sender.new_body();
        let blanks = " ".repeat(size - sender.delivery_of(body.as_bytes(), &unique(), now()).content(sender).len());
        sender.delivery_of(format!("{body}{blanks}").as_bytes(), &unique(), now())
    };
    for sender in SENDERS {
        let taken = padded(sender, MAX_BODY).send(&door, sender).await;
        assert_eq!(taken.status, sender.taken, "webhooks:16 {}", sender.name);
        let larger = padded(sender, MAX_BODY + 1);
        assert_eq!(larger.send(&door, sender).await.status, 413, "webhooks:16 {}", sender.name);
        // With chunks, the size is unknown in advance.
        let mut raw = larger.open(&door, sender, &["Transfer-Encoding: chunked"]).await;
        let content = larger.content(sender);
        raw.send(format!("{:x}\r\n", content.len())).await;
        raw.send(&content).await;
        raw.send("\r\n0\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 413, "webhooks:16 {}", sender.name);
        // A declared length is refused before a byte of the body arrives.
        let mut raw = larger.open(&door, sender, &["Content-Length: 100000000000"]).await;
        assert_eq!(raw.answer().await.status, 413, "webhooks:16 {}", sender.name);
    }
    assert_eq!(door.upstream.take().len(), SENDERS.len());
    door.doorward.stays_below(90, "webhooks:16 deliveries that are too large");
}

/// An occasional byte does not extend `body_timeout`: it limits the whole body, which occupies memory meanwhile.
#[tokio::test]
async fn webhooks_16_a_body_that_trickles_ends_as_well() {
    let door = Door::with_limits(", body_timeout: 300ms, body_min_rate: 1B").await;
    let mut trickling = Vec::new();
    for sender in SENDERS {
        let delivery = sender.delivery();
        let content = delivery.content(sender);
        let mut raw = delivery.open(&door, sender, &[&format!("Content-Length: {}", content.len())]).await;
        trickling.push(async move {
            let mut bytes = content.iter();
            loop {
                match tokio::time::timeout(Duration::from_millis(20), raw.answer()).await {
                    Ok(answer) => return (sender.name, answer.status),
                    Err(_) => raw.send(bytes.next().map(std::slice::from_ref).unwrap_or_default()).await,
                }
            }
        });
    }
    for (name, status) in futures_util::future::join_all(trickling).await {
        assert_eq!(status, 408, "webhooks:16 {name}");
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_17_and_18_a_replay_is_answered_and_does_not_arrive() {
    let door = Door::open().await;
    for sender in SENDERS {
        let (body, id) = (sender.new_body(), unique());
        let first = sender.delivery_of(body.as_bytes(), &id, now());
        assert_eq!(first.send(&door, sender).await.status, sender.taken, "{}", sender.name);
        // The sender's own retry is signed again.
        let retry = sender.delivery_of(body.as_bytes(), &id, now() + 1);
        assert_eq!(retry.send(&door, sender).await.status, 200, "webhooks:17 {}", sender.name);
        // The same signed bytes with an id chosen by somebody else.
        let mut other = first.clone();
        for line in &mut other.lines {
            *line = line.replace(&id, "another-id");
        }
        let expected = match (sender.signs_id(), sender.signs_body() || sender.id_header.is_none()) {
            (true, _) => 401,
            (false, true) => 200,
            (false, false) => 202,
        };
        assert_eq!(other.send(&door, sender).await.status, expected, "webhooks:18 {}", sender.name);
        assert_eq!(door.upstream.take().len(), if expected == 202 { 2 } else { 1 }, "{}", sender.name);
    }
}

#[tokio::test]
async fn webhooks_20_and_21_times_and_ids_that_are_off_are_refused() {
    let door = Door::open().await;
    for sender in SENDERS.iter().filter(|sender| sender.has_time()) {
        let signed_at = |time: u64| sender.delivery_of(sender.new_body().as_bytes(), &unique(), time);
        for (row, delivery, status) in [
            ("webhooks:20 old", signed_at(now() - 302), 401),
            ("webhooks:20 of tomorrow", signed_at(now() + 86_400), 401),
            ("webhooks:20 of 2001", signed_at(1_000_000_000), 401),
            ("webhooks:20 milliseconds", signed_at(now() * 1000), 400),
            ("webhooks:20 twin", signed_at(now() - 200), sender.taken),
        ] {
            assert_eq!(delivery.send(&door, sender).await.status, status, "{row}, {}", sender.name);
        }
    }
    for sender in SENDERS.iter().filter(|sender| sender.id_header.is_some()) {
        for (row, id) in [("webhooks:21 nothing", String::new()), ("webhooks:21 long", "x".repeat(10_000))] {
            let delivery = sender.delivery_of(sender.new_body().as_bytes(), &id, now());
            assert_eq!(delivery.send(&door, sender).await.status, 400, "{row}, {}", sender.name);
        }
    }
}

#[tokio::test]
async fn webhooks_32_only_posts_are_deliveries() {
    let door = Door::open().await;
    for sender in SENDERS {
        let delivery = sender.delivery();
        let content = delivery.content(sender);
        // A response to HEAD has the length of a body that does not follow.
        let length = format!("Content-Length: {}", content.len());
        let head = delivery.head(sender, sender.content_type, &[&length, "Connection: close"]);
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let mut raw = door.raw(sender).await;
            raw.send([head.replacen("POST", method, 1).as_bytes(), &content].concat()).await;
            assert_eq!(raw.answer().await.status, 405, "webhooks:32 {} {method}", sender.name);
        }
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_32_a_delivery_is_accepted_only_at_the_exact_spelling_of_its_path() {
    for door in doors().await {
        for sender in SENDERS {
            let (name, delivery) = (sender.name, sender.delivery());
            let bytes = delivery.bytes(sender, sender.content_type, &["Connection: close"]);
            let rest = bytes.strip_prefix(format!("POST /{name}").as_bytes()).unwrap();
            for path in [
                format!("/%{:02X}{}", name.as_bytes()[0], &name[1..]),
                format!("//{name}"),
                format!("/./{name}"),
                format!("/x/../{name}"),
                format!("/{name}/"),
                format!("/{name};x"),
                format!("/{name}%2f"),
                format!("/{}", name.to_uppercase()),
                format!("http://elsewhere.test/{name}"),
            ] {
                let mut raw = door.raw(sender).await;
                raw.send([format!("POST {path}").as_bytes(), rest].concat()).await;
                let answer = raw.answer().await;
                assert!(
                    matches!(answer.status, 400 | 404 | 421),
                    "webhooks:32 {path}: {}{}",
                    answer.head,
                    answer.text()
                );
            }
            assert_eq!(delivery.send(&door, sender).await.status, sender.taken, "webhooks:32 {name}: the twin");
            // Held deliveries are delivered in order.
            let arrived = door.arrived(1).await;
            assert!(arrived.iter().map(|seen| &seen.body).eq([&delivery.content(sender)]), "webhooks:32 {name}");
        }
    }
}

#[tokio::test]
async fn no_secret_of_a_sender_is_in_the_log_or_the_trail() {
    let mut door = Door::with(false, |yaml| format!("{yaml}log: {{filter: trace}}\n")).await;
    let mut secrets = Vec::new();
    for sender in SENDERS {
        let delivery = sender.delivery();
        let answer = delivery.send(&door, sender).await;
        assert!(answer.status < 300, "{}: {}", sender.name, answer.text());
        secrets.extend([(sender.name, sender.secret.to_owned()), (sender.name, delivery.proof.1)]);
    }
    door.doorward.signal("TERM");
    door.doorward.ended().await;
    let trail = std::fs::read_to_string(door.doorward.audit_path()).unwrap();
    let log = door.doorward.log().iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(log.contains("\"TRACE\"") && trail.contains("/gitlab-token"), "both tell of it");
    for (name, secret) in secrets.iter().filter(|(_, secret)| !secret.is_empty()) {
        for (what, text) in [("log", &log), ("trail", &trail)] {
            let line = text.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "that of {name} is in the {what}");
        }
    }
}
