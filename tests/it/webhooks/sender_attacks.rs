//! Nine attacks on each sender, over a raw socket: the response to each, whether it arrives, and that a genuine
//! delivery is accepted after it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::senders::{Delivery, Door, SENDERS, Sender};
use crate::harness::Raw;

/// 10 MiB of zeros within 10 KiB.
const BOMB: &[u8] = include_bytes!("bomb.gz");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Signed by somebody else.
    Forged,
    /// Sent a second time.
    Replayed,
    Truncated,
    /// The same content in another encoding.
    ReEncoded,
    /// The same content in another order.
    Reordered,
    /// A deciding header occurs twice.
    DoubledHeader,
    /// Framed so that another delivery may be hidden in it.
    ChunkSmuggled,
    GzipBombed,
    Slow,
}

impl Attack {
    const ALL: [Self; 9] = [
        Self::Forged,
        Self::Replayed,
        Self::Truncated,
        Self::ReEncoded,
        Self::Reordered,
        Self::DoubledHeader,
        Self::ChunkSmuggled,
        Self::GzipBombed,
        Self::Slow,
    ];

    /// The status for most senders.
    pub const fn status(self) -> u16 {
        match self {
            Self::Forged | Self::Truncated | Self::ReEncoded | Self::Reordered => 401,
            Self::Replayed => 200,
            Self::DoubledHeader | Self::ChunkSmuggled => 400,
            Self::GzipBombed => 415,
            Self::Slow => 408,
        }
    }

    /// Whether the verification detects it. For all others, the result of the verification does not matter.
    fn is_of_what_is_signed(self) -> bool {
        matches!(self, Self::Forged | Self::Replayed | Self::Truncated | Self::ReEncoded | Self::Reordered)
    }

    /// All variants of the attack for a sender.
    fn ways(self, sender: &'static Sender) -> Vec<Way> {
        match self {
            Self::Forged => vec![way("webhooks:2 of another key", move |genuine| {
                let stranger = sender.of_a_stranger();
                whole(sender, &stranger.delivery_of(&genuine.body, &genuine.id, genuine.time))
            })],
            Self::Replayed => vec![way("webhooks:17 once more", move |genuine| whole(sender, genuine))],
            Self::Truncated => vec![
                rewritten(sender, "webhooks:8 cut short", |body| body[..body.len() - 1].to_owned()),
                Way {
                    status: Some(400),
                    ends: true,
                    ..way("webhooks:16 shorter than it says", move |genuine| {
                        let mut bytes = whole(sender, genuine);
                        bytes.pop();
                        bytes
                    })
                },
            ],
            Self::ReEncoded => {
                let how = if sender.sends_forms() { &FORMS_ANEW[..] } else { &JSON_ANEW };
                how.iter().map(|(row, how)| rewritten(sender, row, how)).collect()
            }
            Self::Reordered => vec![rewritten(sender, "webhooks:8 reordered", reorder)],
            Self::DoubledHeader => doubled(sender),
            Self::ChunkSmuggled => FRAMINGS.iter().map(|framing| smuggled(sender, framing)).collect(),
            Self::GzipBombed => bombs(sender),
            Self::Slow => vec![way("webhooks:16 slow", move |genuine| {
                let mut bytes = whole(sender, genuine);
                bytes.truncate(bytes.len() - genuine.content(sender).len() + 1);
                bytes
            })],
        }
    }
}

type Bytes = dyn Fn(&Delivery) -> Vec<u8>;

/// A variant of an attack.
struct Way {
    row: String,
    /// The status, if it is the same for all senders.
    status: Option<u16>,
    /// What is sent instead of a genuine delivery.
    bytes: Box<Bytes>,
    /// Whether the connection ends with it.
    ends: bool,
}

fn way(row: impl Into<String>, bytes: impl Fn(&Delivery) -> Vec<u8> + 'static) -> Way {
    Way { row: row.into(), status: None, bytes: Box::new(bytes), ends: false }
}

fn whole(sender: &Sender, delivery: &Delivery) -> Vec<u8> {
    delivery.bytes(sender, sender.content_type, &[])
}

/// Another body with the proof of the first.
fn rewritten(sender: &'static Sender, row: &str, how: impl Fn(&str) -> String + 'static) -> Way {
    way(row, move |genuine| {
        let mut delivery = genuine.clone();
        delivery.body = how(std::str::from_utf8(&genuine.body).unwrap()).into_bytes();
        assert_ne!(delivery.body, genuine.body, "it is another");
        whole(sender, &delivery)
    })
}

type Rewrite = fn(&str) -> String;

const JSON_ANEW: [(&str, Rewrite); 4] = [
    ("webhooks:8 blank at the end", |body| format!("{body} ")),
    ("webhooks:8 line end", |body| format!("{body}\r\n")),
    ("webhooks:8 blanks within", |body| body.replace("\":", "\": ")),
    ("webhooks:8 escaped", |body| format!("{{\"\\u{:04x}{}", body.as_bytes()[2], &body[3..])),
];

const FORMS_ANEW: [(&str, Rewrite); 3] = [
    ("webhooks:8 small digits", |body| body.replace("%2F", "%2f")),
    ("webhooks:8 blanks as digits", |body| body.replace('+', "%20")),
    ("webhooks:8 escaped", |body| body.replacen("text=", "t%65xt=", 1)),
];

/// The same members or fields in another order.
fn reorder(body: &str) -> String {
    fn reversed(value: &Value) -> String {
        match value {
            Value::Object(members) => {
                let members = members.iter().rev();
                let members: Vec<_> =
                    members.map(|(name, value)| format!("{}:{}", Value::from(&**name), reversed(value))).collect();
                format!("{{{}}}", members.join(","))
            }
            Value::Array(items) => format!("[{}]", items.iter().map(reversed).collect::<Vec<_>>().join(",")),
            scalar => scalar.to_string(),
        }
    }
    match serde_json::from_str(body) {
        // Sorted by name, or reversed.
        Ok(value) => Some(reversed(&value)).filter(|other| other != body).unwrap_or_else(|| value.to_string()),
        Err(_) => body.split('&').rev().collect::<Vec<_>>().join("&"),
    }
}

/// Duplicates the proof, the content type, and each header of its deliveries.
fn doubled(sender: &'static Sender) -> Vec<Way> {
    let proofs = [("webhooks:5 bad, good", false), ("webhooks:5 good, bad", true)].map(|(row, is_good_first)| {
        way(row, move |genuine| {
            let (mut delivery, good) = (genuine.clone(), genuine.proof.1.clone());
            let bad = good.replace(['a', 'b', 'c'], "d");
            let [first, second] = if is_good_first { [good, bad] } else { [bad, good] };
            (delivery.before, delivery.proof.1) = (Some(first), second);
            whole(sender, &delivery)
        })
    });
    let kind = way("webhooks:5 content type", move |genuine| {
        genuine.bytes(sender, sender.content_type, &[sender.content_type])
    });
    let headers = (0..sender.delivery().lines.len()).map(|at| {
        way(format!("webhooks:5 header {at}"), move |genuine| {
            genuine.bytes(sender, sender.content_type, &[&genuine.lines[at]])
        })
    });
    proofs.into_iter().chain([kind]).chain(headers).collect()
}

/// Header lines instead of `Content-Length`, and what precedes and follows the body.
type Framing = (&'static str, &'static [&'static str], &'static str, &'static str);

const CHUNKED: &str = "Transfer-Encoding: chunked";
const END: &str = "\r\n0\r\n\r\n";

const FRAMINGS: [Framing; 7] = [
    ("webhooks:11 both", &["Content-Length: {all}", CHUNKED], "{size}\r\n", END),
    ("webhooks:11 both, the other way", &[CHUNKED, "Content-Length: {all}"], "{size}\r\n", END),
    ("webhooks:11 two lengths", &["Content-Length: {all}", "Content-Length: 1"], "", ""),
    ("webhooks:11 size is no number", &[CHUNKED], "zz\r\n", END),
    ("webhooks:11 size with a sign", &[CHUNKED], "+5\r\n", END),
    ("webhooks:11 size too large", &[CHUNKED], "fffffffffffffffff\r\n", END),
    ("webhooks:11 another coding", &["Transfer-Encoding: gzip, chunked"], "{size}\r\n", END),
];

/// A delivery followed by another, or with another inside.
fn smuggled(sender: &'static Sender, (row, framing, before, after): &'static Framing) -> Way {
    way(*row, move |genuine| {
        let (body, hidden) = (genuine.content(sender), whole(sender, &sender.delivery()));
        let framing: Vec<String> =
            framing.iter().map(|line| line.replace("{all}", &(body.len() + hidden.len()).to_string())).collect();
        let framing: Vec<&str> = framing.iter().map(String::as_str).collect();
        let head = genuine.head(sender, sender.content_type, &framing);
        let before = before.replace("{size}", &format!("{:x}", body.len()));
        [head.as_bytes(), before.as_bytes(), &body, after.as_bytes(), &hidden].concat()
    })
}

/// With a valid signature. For all but one no byte of the body is sent: the response comes first.
fn bombs(sender: &'static Sender) -> Vec<Way> {
    let signed = move |genuine: &Delivery| sender.delivery_of(BOMB, &genuine.id, genuine.time);
    let announced = ["gzip", "br", "deflate", "identity, gzip"].map(|encoding| {
        way(format!("webhooks:12 {encoding}"), move |genuine| {
            let (encoding, length) =
                (format!("Content-Encoding: {encoding}"), format!("Content-Length: {}", BOMB.len()));
            let framing = [encoding.as_str(), &length, "Expect: 100-continue"];
            signed(genuine).head(sender, sender.content_type, &framing).into_bytes()
        })
    });
    let sent = way("webhooks:12 all of it", move |genuine| {
        signed(genuine).bytes(sender, sender.content_type, &["Content-Encoding: gzip"])
    });
    announced.into_iter().chain([sent]).collect()
}

/// One variant of an attack on one sender.
struct Case {
    title: String,
    sender: &'static Sender,
    attack: Attack,
    way: Way,
    genuine: Delivery,
}

impl Case {
    fn all(attack: Attack, sender: &'static Sender) -> Vec<Self> {
        let case = |way: Way| Self {
            title: format!("{attack:?}, {}, {}", sender.name, way.row),
            sender,
            attack,
            way,
            genuine: sender.delivery(),
        };
        attack.ways(sender).into_iter().map(case).collect()
    }
}

/// Sends all of them at once, and then checks each: the response, and what arrives before its counterpart. Returns what
/// is wrong.
async fn wrong_of(door: &Door, cases: Vec<Case>) -> Vec<String> {
    let (mut sent, mut wrong) = (Vec::new(), Vec::new());
    for case in cases {
        let Case { title, sender, way, genuine, .. } = &case;
        if case.attack == Attack::Replayed {
            assert_eq!(genuine.send(door, sender).await.status, sender.taken, "{title}");
            assert_eq!(door.arrived(1).await.len(), 1, "{title}");
        }
        let bytes = (way.bytes)(genuine);
        let mut raw = door.raw(sender).await;
        raw.send(&bytes).await;
        if way.ends {
            raw.end().await;
        }
        sent.push((case, bytes, raw));
    }
    for (case, bytes, raw) in sent {
        if let Err(what) = judge(door, &case, &bytes, raw).await {
            wrong.push(format!("{}: {what}", case.title));
            door.upstream.take();
        }
    }
    wrong
}

async fn judge(door: &Door, case: &Case, bytes: &[u8], mut raw: Raw) -> Result<(), String> {
    let Case { sender, attack, way, genuine, .. } = case;
    let (answer, expected) = (raw.answer().await, way.status.unwrap_or_else(|| sender.hears(*attack)));
    if answer.status != expected {
        return Err(format!("{} in place of {expected}: {}", answer.status, answer.text()));
    }
    let says = answer.text();
    if answer.status == 401
        && (!says.contains("the delivery is not signed as this address requires") || says.contains(&genuine.proof.1))
    {
        return Err(format!("it hears more than it should: {says}"));
    }
    if *attack == Attack::Replayed && answer.reason() != "replayed_delivery" {
        return Err(says);
    }
    if *attack == Attack::ChunkSmuggled {
        let more = raw.rest().await;
        if !more.is_empty() {
            return Err(format!("a second answer: {}", String::from_utf8_lossy(&more)));
        }
    }
    // If it was accepted, it would be a duplicate now.
    let is_taken = expected == 202;
    let twin = if is_taken || *attack == Attack::Replayed { sender.delivery() } else { genuine.clone() };
    let answer = twin.send(door, sender).await;
    if answer.status != sender.taken {
        return Err(format!("its twin hears {}: {}", answer.status, answer.text()));
    }
    let mut bodies = vec![twin.content(sender)];
    if is_taken {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n").unwrap();
        bodies.insert(0, bytes[end + 4..].to_vec());
    }
    // Held deliveries are delivered in order, so that a wrong one would arrive before the counterpart.
    let arrived = door.arrived(bodies.len()).await;
    if !arrived.iter().map(|seen| &seen.body).eq(&bodies) {
        return Err(format!("{arrived:?} arrived"));
    }
    Ok(())
}

/// The failures where deliveries are held, or forwarded at once.
async fn wrong_where(hold: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let door = Door::with(hold, |yaml| yaml).await;
    let senders = || SENDERS.iter().filter(|sender| !hold || sender.can_be_held());
    for attack in Attack::ALL.into_iter().filter(|attack| !hold || attack.is_of_what_is_signed()) {
        let cases = senders().flat_map(|sender| Case::all(attack, sender));
        if attack == Attack::Slow {
            // Longer than a whole delivery takes, and no longer than a test should.
            let impatient = Door::with_limits(", body_timeout: 200ms").await;
            wrong.extend(wrong_of(&impatient, cases.collect()).await);
            continue;
        }
        for case in cases {
            wrong.extend(wrong_of(&door, vec![case]).await);
        }
    }
    door.doorward.stays_below(90, "nine attacks on each sender");
    wrong
}

#[tokio::test]
async fn each_of_nine_attacks_on_each_sender_is_refused_and_its_valid_twin_is_accepted() {
    let (forwarded, held) = tokio::join!(wrong_where(false), wrong_where(true));
    assert!(forwarded.is_empty() && held.is_empty(), "forwarded at once: {forwarded:#?}, held: {held:#?}");
}

#[test]
fn every_kind_of_sender_that_can_be_configured_is_attacked() {
    let schema: Value = serde_json::from_str(include_str!("../../../config/schema.json")).unwrap();
    let known = schema["$defs"]["Sender"]["oneOf"].as_array().unwrap();
    let known: BTreeSet<&str> = known.iter().map(|kind| kind["const"].as_str().unwrap()).collect();
    let attacked: Vec<String> = SENDERS.iter().map(Sender::kind_name).collect();
    assert_eq!(attacked.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
    for sender in SENDERS {
        let Sender { name, unlike, .. } = sender;
        for unlike in *unlike {
            assert!(unlike.status != unlike.attack.status() && !unlike.why.is_empty(), "{name}: {:?}", unlike.attack);
        }
        let attacks: Vec<Attack> = unlike.iter().map(|unlike| unlike.attack).collect();
        assert!(attacks.iter().all(|attack| attacks.iter().filter(|other| *other == attack).count() == 1), "{name}");
    }
}
