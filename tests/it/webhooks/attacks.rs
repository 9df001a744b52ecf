//! Each attack against each sender, over a socket. An attack names its row of the table.

use std::time::Duration;

use super::senders::{Delivery, Door, JSON, MAX_BODY, SENDERS, Sender};
use crate::harness::{Raw, now, unique, until};

/// 10 MiB of zeros within 10 KiB.
const BOMB: &[u8] = include_bytes!("bomb.gz");

/// Sends what `spoil` makes of a genuine delivery, by each sender, and expects one of these statuses. Nothing may
/// arrive unless it is 202.
async fn each(row: &str, expected: impl Fn(&Sender) -> u16, spoil: impl Fn(&Sender, &mut Delivery)) {
    let (door, holding) = (Door::open().await, Door::holding().await);
    for sender in SENDERS {
        let mut delivery = sender.delivery();
        spoil(sender, &mut delivery);
        let answer = delivery.send(&door, sender).await;
        let expected = expected(sender);
        assert_eq!(answer.status, expected, "{row} {}: {}", sender.name, answer.text());
        door.doorward.stays_below(90, row);
        assert_eq!(door.upstream.take().len(), usize::from(expected == 202), "{row} {}", sender.name);
        // Slack is answered by its EventListener.
        if sender.name == "slack" {
            continue;
        }
        // What is taken to be held is brought in order, so that one which must not be there would come first.
        let answer = delivery.send(&holding, sender).await;
        assert_eq!(answer.status, expected, "{row} held, {}: {}", sender.name, answer.text());
        let twin = sender.delivery();
        assert_eq!(twin.send(&holding, sender).await.status, 202, "{row} held, {}", sender.name);
        let mut bodies = vec![&twin.body];
        if expected == 202 {
            bodies.insert(0, &delivery.body);
        }
        until(async || holding.upstream.requests().len() >= bodies.len()).await;
        let arrived = holding.upstream.take();
        assert!(arrived.iter().map(|seen| &seen.body).eq(bodies), "{row} held, {}", sender.name);
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
        assert_eq!(answer.status, 202, "{}: {}", sender.name, answer.text());
        let seen = door.upstream.only();
        assert_eq!(seen.body, delivery.body, "{}", sender.name);
        assert_eq!(seen.one("x-forwarded-user"), sender.user);
        assert_eq!(seen.one("content-length"), delivery.body.len().to_string());
        assert!(!seen.head.contains(sender.secret), "{}: {}", sender.name, seen.head);
        // As it was sent: of Azure DevOps that is another text.
        let passes = seen.head.contains(&delivery.proof.1);
        assert!(sender.signs_body() || !passes, "{}: {}", sender.name, seen.head);
        door.upstream.take();
    }
}

#[tokio::test]
async fn webhooks_2_and_6_a_proof_that_is_off_by_a_little_is_401() {
    let change =
        |how: fn(&str) -> String| move |_: &Sender, delivery: &mut Delivery| delivery.proof.1 = how(&delivery.proof.1);
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
        each(row, |_| 401, change(how)).await;
    }
    each("webhooks:6 missing", |_| 401, |_, delivery| delivery.proof.0.clear()).await;
}

#[tokio::test]
async fn webhooks_2_of_another_key_is_401() {
    each(
        "webhooks:2 another secret",
        |_| 401,
        |sender, delivery| {
            let stranger = match sender.secret.strip_prefix("whsec_") {
                Some(_) => "whsec_HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
                None => "a-secret-that-somebody-else-made-up",
            };
            *delivery = sender.with_secret(stranger).delivery();
        },
    )
    .await;
}

#[tokio::test]
async fn webhooks_5_two_proofs_are_refused_in_either_order() {
    for (row, order) in [("webhooks:5 bad, good", [false, true]), ("webhooks:5 good, bad", [true, false])] {
        each(
            row,
            |_| 400,
            |_, delivery| {
                let good = delivery.proof.1.clone();
                let bad = good.replace(['a', 'b', 'c'], "d");
                let [first, second] = order.map(|is_good| if is_good { good.clone() } else { bad.clone() });
                (delivery.before, delivery.proof.1) = (Some(first), second);
            },
        )
        .await;
    }
    let door = Door::open().await;
    for sender in SENDERS {
        let mut delivery = sender.delivery();
        delivery.proof.1 = format!("{0},{0}", delivery.proof.1);
        let status = delivery.send(&door, sender).await.status;
        assert!(matches!(status, 400 | 401), "webhooks:5 joined, {}: {status}", sender.name);
        // The same for the id, which decides what is a repetition.
        let Some(id_header) = sender.id_header else { continue };
        let mut delivery = sender.delivery();
        delivery.lines.push(format!("{id_header}: another"));
        assert_eq!(delivery.send(&door, sender).await.status, 400, "webhooks:5 id, {}", sender.name);
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_8_a_body_that_was_written_anew_is_401() {
    // A plain token says nothing of the body, which the documentation tells.
    let signed = |sender: &Sender| if sender.signs_body() { 401 } else { 202 };
    let change = |how: fn(&str) -> String| {
        move |_: &Sender, delivery: &mut Delivery| {
            delivery.body = how(std::str::from_utf8(&delivery.body).unwrap()).into_bytes();
        }
    };
    for (row, how) in [
        ("webhooks:8 blank at the end", (|body| format!("{body} ")) as fn(&str) -> String),
        ("webhooks:8 line end", |body| format!("{body}\r\n")),
        ("webhooks:8 blanks within", |body| body.replace("\":", "\": ")),
        ("webhooks:8 escaped", |body| format!("{{\"\\u{:04x}{}", body.as_bytes()[2], &body[3..])),
        ("webhooks:8 reordered", |body| {
            let inner = body.trim_start_matches('{').trim_end_matches('}');
            let (first, rest) = inner.split_once(',').unwrap();
            format!("{{{rest}{},{first}}}", "}".repeat(body.len() - 1 - body.trim_end_matches('}').len()))
        }),
    ] {
        each(row, signed, change(how)).await;
    }
    let broken = |sender: &Sender| if sender.signs_body() { 401 } else { sender.unreadable() };
    each("webhooks:8 byte order mark", broken, change(|body| format!("\u{feff}{body}"))).await;
    each("webhooks:8 cut short", broken, change(|body| body[..body.len() - 1].to_owned())).await;
    each("webhooks:8 nothing", broken, change(|_| String::new())).await;
}

#[tokio::test]
async fn webhooks_9_and_25_a_body_that_two_parsers_read_differently_is_refused() {
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    for (row, body) in [
        ("webhooks:9 not UTF-8", b"{\"ref\":\"\xff\"}".to_vec()),
        ("webhooks:25 a name twice", br#"{"ref":"a","ref":"b"}"#.to_vec()),
        ("webhooks:25 the same name, escaped", br#"{"ref":"a","\u0072ef":"b"}"#.to_vec()),
        ("webhooks:25 deep", deep.into_bytes()),
        ("webhooks:25 not a number", br#"{"a":NaN}"#.to_vec()),
        ("webhooks:25 a list", b"[1]".to_vec()),
        ("webhooks:25 two documents", b"{}{}".to_vec()),
        ("webhooks:25 nothing", b" ".to_vec()),
    ] {
        each(row, Sender::unreadable, |sender, delivery| *delivery = sender.delivery_of(&body, &unique(), now())).await;
    }
}

#[tokio::test]
async fn webhooks_10_chunks_are_put_together_and_a_trailer_proves_nothing() {
    let door = Door::open().await;
    let chunks = |body: &[u8]| body.iter().map(|byte| format!("1\r\n{}\r\n", char::from(*byte))).collect::<String>();
    for sender in SENDERS {
        let delivery = sender.delivery();
        let mut raw = delivery.open(&door, sender, &["Transfer-Encoding: chunked"]).await;
        raw.send(format!("{}0\r\nX-Trailer: 1\r\n\r\n", chunks(&delivery.body))).await;
        assert_eq!(raw.answer().await.status, 202, "webhooks:10 {}", sender.name);
        let seen = door.upstream.take();
        assert_eq!(seen[0].body, delivery.body);
        assert!(!seen[0].has("x-trailer"), "{}", sender.name);

        let mut delivery = sender.delivery();
        let (name, value) = delivery.proof.clone();
        delivery.proof.0.clear();
        let mut raw = delivery.open(&door, sender, &["Transfer-Encoding: chunked"]).await;
        raw.send(format!("{}0\r\n{name}: {value}\r\n\r\n", chunks(&delivery.body))).await;
        assert_eq!(raw.answer().await.status, 401, "webhooks:10 {}", sender.name);
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_11_a_body_framed_in_two_ways_is_400_and_nothing_is_smuggled() {
    let door = Door::open().await;
    for sender in SENDERS {
        let delivery = sender.delivery();
        let inner = sender.delivery();
        let hidden =
            [inner.head(sender, JSON, &[&format!("Content-Length: {}", inner.body.len())]).as_bytes(), &inner.body]
                .concat();
        let length = format!("Content-Length: {}", delivery.body.len() + hidden.len());
        let size = format!("{:x}\r\n", delivery.body.len());
        for (row, framing, before, after) in [
            ("both", vec![length.as_str(), "Transfer-Encoding: chunked"], size.as_str(), "\r\n0\r\n\r\n"),
            ("both, the other way", vec!["Transfer-Encoding: chunked", &length], &size, "\r\n0\r\n\r\n"),
            ("two lengths", vec![&length, "Content-Length: 1"], "", ""),
            ("size is no number", vec!["Transfer-Encoding: chunked"], "zz\r\n", "\r\n0\r\n\r\n"),
            ("size with a sign", vec!["Transfer-Encoding: chunked"], "+5\r\n", "\r\n0\r\n\r\n"),
            ("size too large", vec!["Transfer-Encoding: chunked"], "fffffffffffffffff\r\n", "\r\n0\r\n\r\n"),
            ("another coding", vec!["Transfer-Encoding: gzip, chunked"], &size, "\r\n0\r\n\r\n"),
        ] {
            let mut raw = delivery.open(&door, sender, &framing).await;
            raw.send([before.as_bytes(), &delivery.body, after.as_bytes(), &hidden].concat()).await;
            let all = String::from_utf8_lossy(&raw.rest().await).into_owned();
            let statuses: Vec<_> = all.match_indices("HTTP/1.1 ").map(|(at, _)| &all[at + 9..at + 12]).collect();
            assert!(
                matches!(statuses[..], ["400" | "415" | "501"]),
                "webhooks:11 {row}, {}: {statuses:?}",
                sender.name
            );
        }
        assert!(door.upstream.take().is_empty(), "webhooks:11 {}", sender.name);
    }
}

#[tokio::test]
async fn webhooks_12_to_15_media_that_are_not_plain_json_are_415_before_the_body() {
    let door = Door::open().await;
    for sender in SENDERS {
        let bomb = sender.delivery_of(BOMB, &unique(), now());
        for encoding in ["gzip", "br", "deflate", "identity, gzip"] {
            // Not a byte of the body is sent: the answer comes before.
            let framing = [format!("Content-Encoding: {encoding}"), format!("Content-Length: {}", BOMB.len())];
            let mut raw = bomb.open(&door, sender, &[&framing[0], &framing[1], "Expect: 100-continue"]).await;
            assert_eq!(raw.answer().await.status, 415, "webhooks:12 {} {encoding}", sender.name);
        }
        // Signed as they are, but under a name of their own.
        let form = sender.delivery_of(b"payload=%7B%7D", &unique(), now());
        let twice = sender.delivery_of(b"payload=%7B%7D&payload=%7B%22a%22%3A1%7D", &unique(), now());
        let parts = sender.delivery_of(b"--x\r\n\r\n{}\r\n--x--", &unique(), now());
        let plain = sender.delivery();
        // Slack's commands are forms, which it signs as they come.
        let of_forms = |status: u16| if sender.name == "slack" { status } else { 415 };
        for (row, delivery, kind, status) in [
            ("webhooks:13", &form, "Content-Type: application/x-www-form-urlencoded", of_forms(202)),
            ("webhooks:13", &form, "Content-Type: application/x-www-form-urlencoded; charset=utf-8", of_forms(200)),
            ("webhooks:14", &twice, "Content-Type: application/x-www-form-urlencoded", of_forms(400)),
            ("webhooks:15", &parts, "Content-Type: multipart/form-data; boundary=x", 415),
            ("webhooks:15", &plain, "Content-Type: application/json; charset=utf-16", 415),
            ("attacks:Z17", &plain, "Content-Type: application/cloudevents-batch+json", 415),
            ("webhooks:15", &plain, "X-No-Type: 1", 415),
        ] {
            let answer = delivery.send_as(&door, sender, kind, &[]).await;
            assert_eq!(answer.status, status, "{row} {} {kind}: {}", sender.name, answer.text());
            assert_eq!(door.upstream.take().len(), usize::from(status == 202), "{row} {}", sender.name);
        }
        if !sender.name.starts_with("standard-") {
            let event = "Content-Type: application/cloudevents+json";
            assert_eq!(plain.send_as(&door, sender, event, &[]).await.status, 415, "attacks:Z17 {}", sender.name);
        }
    }
    assert!(door.upstream.take().is_empty());
    door.doorward.stays_below(90, "webhooks:12 bodies that unpack to 10 MiB");
}

#[tokio::test]
async fn webhooks_16_the_cap_holds_exactly() {
    let door = Door::open().await;
    let padded = |sender: &Sender, size: usize| {
        let body = sender.new_body();
        let blanks = " ".repeat(size - body.len());
        sender.delivery_of(format!("{body}{blanks}").as_bytes(), &unique(), now())
    };
    for sender in SENDERS {
        assert_eq!(padded(sender, MAX_BODY).send(&door, sender).await.status, 202, "webhooks:16 {}", sender.name);
        let larger = padded(sender, MAX_BODY + 1);
        assert_eq!(larger.send(&door, sender).await.status, 413, "webhooks:16 {}", sender.name);
        // In chunks nobody tells how much will come.
        let mut raw = larger.open(&door, sender, &["Transfer-Encoding: chunked"]).await;
        raw.send(format!("{:x}\r\n", larger.body.len())).await;
        raw.send(&larger.body).await;
        raw.send("\r\n0\r\n\r\n").await;
        assert_eq!(raw.answer().await.status, 413, "webhooks:16 {}", sender.name);
        // A length that is only declared is refused before a byte of it comes.
        let mut raw = larger.open(&door, sender, &["Content-Length: 100000000000"]).await;
        assert_eq!(raw.answer().await.status, 413, "webhooks:16 {}", sender.name);
    }
    assert_eq!(door.upstream.take().len(), SENDERS.len());
    door.doorward.stays_below(90, "webhooks:16 deliveries that are too large");
}

#[tokio::test]
async fn webhooks_16_a_slow_body_ends() {
    let door = Door::with_limits(", body_timeout: 200ms").await;
    let mut slow: Vec<(&Sender, Raw)> = Vec::new();
    for sender in SENDERS {
        let delivery = sender.delivery();
        let mut raw = delivery.open(&door, sender, &[&format!("Content-Length: {}", delivery.body.len())]).await;
        raw.send(&delivery.body[..1]).await;
        slow.push((sender, raw));
    }
    for (sender, mut raw) in slow {
        assert_eq!(raw.answer().await.status, 408, "webhooks:16 {}", sender.name);
    }
    assert!(door.upstream.take().is_empty());
    door.doorward.stays_below(90, "webhooks:16 slow deliveries");
}

/// A byte now and then is not what `body_timeout` allows: it bounds the whole body, which holds memory meanwhile.
#[tokio::test]
async fn webhooks_16_a_body_that_trickles_ends_as_well() {
    let door = Door::with_limits(", body_timeout: 300ms, body_min_rate: 1B").await;
    let mut trickling = Vec::new();
    for sender in SENDERS {
        let delivery = sender.delivery();
        let mut raw = delivery.open(&door, sender, &[&format!("Content-Length: {}", delivery.body.len())]).await;
        trickling.push(async move {
            let mut bytes = delivery.body.iter();
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
        assert_eq!(first.send(&door, sender).await.status, 202, "{}", sender.name);
        let again = first.send(&door, sender).await;
        assert_eq!((again.status, again.reason().as_str()), (200, "replayed_delivery"), "webhooks:17 {}", sender.name);
        // The sender's own next try is signed anew.
        let retry = sender.delivery_of(body.as_bytes(), &id, now() + 1);
        assert_eq!(retry.send(&door, sender).await.status, 200, "webhooks:17 {}", sender.name);
        // The same signed bytes under an id that somebody else chose.
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
            ("webhooks:20 twin", signed_at(now() - 200), 202),
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
        let head = delivery.head(sender, JSON, &[&format!("Content-Length: {}", delivery.body.len())]);
        for method in ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let mut raw = door.doorward.raw().await;
            raw.send([head.replacen("POST", method, 1).as_bytes(), &delivery.body].concat()).await;
            assert_eq!(raw.answer().await.status, 405, "webhooks:32 {} {method}", sender.name);
        }
    }
    assert!(door.upstream.take().is_empty());
}

#[tokio::test]
async fn webhooks_16_a_body_that_is_shorter_than_it_says_is_400() {
    let door = Door::open().await;
    for sender in SENDERS {
        let delivery = sender.delivery();
        let length = format!("Content-Length: {}", delivery.body.len() + 1);
        let mut raw = delivery.open(&door, sender, &[&length]).await;
        raw.send(&delivery.body).await;
        raw.end().await;
        assert_eq!(raw.answer().await.status, 400, "webhooks:16 {}", sender.name);
    }
    assert!(door.upstream.take().is_empty());
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
