//! The senders as they really are: how each signs, implemented again and independently of the program.

mod door;
mod table;

use aws_lc_rs::{hmac, signature::Ed25519KeyPair};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use doorward::config::raw;
use serde_json::json;

pub use self::{
    door::{Door, MAX_BODY},
    table::SENDERS,
};
use super::{sender_attacks::Attack, sns};
use crate::harness::{Answer, Raw, hex, now, rfc3339, unique};

/// A sender of webhooks.
#[derive(Clone, Copy)]
pub struct Sender {
    /// The name of its entry, and the path of its route.
    pub name: &'static str,
    pub kind: raw::Sender,
    /// The rest of its entry after name, kind and secrets, in YAML flow style, each item preceded by a comma.
    pub settings: &'static str,
    /// Empty if the configuration has none.
    pub secret: &'static str,
    /// Whether it must also present a client certificate.
    pub certificate: bool,
    /// The header line.
    pub content_type: &'static str,
    /// The other header lines of all its deliveries.
    pub head: &'static [&'static str],
    /// The header with the id of the delivery; `None` if the body contains the id, or serves as one.
    pub id_header: Option<&'static str>,
    pub proof: Proof,
    /// `{nonce}` is replaced by a unique value.
    pub body: &'static str,
    /// The identity of its deliveries.
    pub user: &'static str,
    /// The status for an accepted delivery.
    pub taken: u16,
    /// The attacks that it answers differently from most senders.
    pub unlike: &'static [Unlike],
}

/// A sender's status for an attack that differs from [`Attack::status`].
pub struct Unlike {
    pub attack: Attack,
    pub status: u16,
    pub why: &'static str,
}

/// How it proves that it knows the secret.
#[derive(Clone, Copy)]
pub enum Proof {
    Signed {
        by: Signature,
        header: &'static str,
        prefix: &'static str,
        base64: bool,
        /// What is signed before the body.
        before: fn(id: &str, time: u64) -> String,
        time_header: Option<&'static str>,
        signs_id: bool,
    },
    /// The secret itself in a header, in the format of `value`.
    Token { header: &'static str, value: fn(secret: &str) -> String },
    /// The secret itself in the address.
    Query { name: &'static str },
    /// A member of the body that signs the values of the others, as in SNS.
    Member { name: &'static str },
}

#[derive(Clone, Copy)]
pub enum Signature {
    Hmac(&'static hmac::Algorithm),
    Ed25519,
}

/// The seeds of two key pairs (RFC 8032 section 7.1, tests 1 and 2), and the public key of the first in the senders'
/// format.
const SEEDS: [[u8; 32]; 2] = [
    *b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60",
    *b"\x4c\xcd\x08\x9b\x28\xff\x96\xda\x9d\xb6\xc3\x46\xec\x11\x4e\x0f\x5b\x8a\x31\x9f\x35\xab\xa6\x24\xda\x8c\xf6\xed\x4f\xb8\xa6\xfb",
];
const PUBLIC: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

impl Signature {
    /// The tag over `signed` with the configured `secret`; for an unknown public key, with another key.
    fn tag(self, secret: &str, signed: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519 => {
                let pair = Ed25519KeyPair::from_seed_unchecked(&SEEDS[usize::from(secret != PUBLIC)]).unwrap();
                pair.sign(signed).as_ref().to_vec()
            }
            Self::Hmac(algorithm) => {
                let key = match secret.strip_prefix("whsec_") {
                    Some(encoded) => STANDARD.decode(encoded).unwrap(),
                    None => secret.as_bytes().to_vec(),
                };
                hmac::sign(&hmac::Key::new(*algorithm, &key), signed).as_ref().to_vec()
            }
        }
    }
}

/// A delivery that can be tampered with before it is sent.
#[derive(Clone)]
pub struct Delivery {
    pub id: String,
    pub time: u64,
    pub lines: Vec<String>,
    /// The name and the value, in a header, in the address or in the body; without a name there is none.
    pub proof: (String, String),
    /// Another value before that of the proof.
    pub before: Option<String>,
    /// Without the proof, if that is a member of it.
    pub body: Vec<u8>,
}

impl Sender {
    /// The name of its kind in a configuration.
    pub fn kind_name(&self) -> String {
        serde_json::to_value(self.kind).unwrap().as_str().unwrap().to_owned()
    }

    /// The status for an attack on it.
    pub fn hears(&self, attack: Attack) -> u16 {
        let unlike = self.unlike.iter().find(|unlike| unlike.attack == attack);
        unlike.map_or_else(|| attack.status(), |unlike| unlike.status)
    }

    /// Slack needs the EventListener's own response.
    pub fn can_be_held(&self) -> bool {
        self.kind != raw::Sender::Slack
    }

    pub fn sends_forms(&self) -> bool {
        self.content_type == FORM
    }

    /// The status for a delivery without any proof: if the proof is a member of the body, that it is malformed.
    pub fn unproven(&self) -> u16 {
        if matches!(self.proof, Proof::Member { .. }) { 400 } else { 401 }
    }

    pub fn signs_body(&self) -> bool {
        matches!(self.proof, Proof::Signed { .. })
    }

    /// The status for a genuine delivery that cannot be read: 200 if the sender would disable its hook.
    pub fn unreadable(&self) -> u16 {
        match self.kind {
            raw::Sender::Gitlab | raw::Sender::BitbucketDataCenter | raw::Sender::AzureDevops => 200,
            _ => 400,
        }
    }

    pub fn signs_id(&self) -> bool {
        matches!(self.proof, Proof::Signed { signs_id: true, .. })
    }

    pub fn has_time(&self) -> bool {
        matches!(self.proof, Proof::Signed { time_header: Some(_), .. })
    }

    pub fn new_body(&self) -> String {
        let body = self.body.replace("{nonce}", &unique());
        match self.proof {
            Proof::Member { .. } => body.replace("{time}", &rfc3339(now())).replace("{sns}", sns::host()),
            _ => body,
        }
    }

    /// The same sender with another secret.
    pub fn with_secret(&self, secret: &'static str) -> Self {
        Self { secret, ..*self }
    }

    /// The same sender with a stranger's secret.
    pub fn of_a_stranger(&self) -> Self {
        self.with_secret(match self.secret.strip_prefix("whsec_") {
            Some(_) => "whsec_HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            None => "a-secret-that-somebody-else-made-up",
        })
    }

    /// A genuine delivery with a unique body.
    pub fn delivery(&self) -> Delivery {
        self.delivery_of(self.new_body().as_bytes(), &unique(), now())
    }

    pub fn delivery_of(&self, body: &[u8], id: &str, time: u64) -> Delivery {
        let mut lines: Vec<String> = self.head.iter().map(|line| (*line).to_owned()).collect();
        lines.extend(self.id_header.map(|header| format!("{header}: {id}")));
        let proof = match &self.proof {
            Proof::Token { header, value } => ((*header).to_owned(), value(self.secret)),
            Proof::Query { name } => ((*name).to_owned(), self.secret.to_owned()),
            Proof::Member { name } => ((*name).to_owned(), STANDARD.encode(sns::tag(body, self.secret.is_empty()))),
            Proof::Signed { by, header, prefix, base64, before, time_header, .. } => {
                lines.extend(time_header.map(|header| format!("{header}: {time}")));
                let tag = by.tag(self.secret, &[before(id, time).as_bytes(), body].concat());
                let text = if *base64 { STANDARD.encode(tag) } else { hex(tag) };
                ((*header).to_owned(), format!("{prefix}{text}"))
            }
        };
        Delivery { id: id.to_owned(), time, lines, proof, before: None, body: body.to_vec() }
    }
}

impl Delivery {
    /// The head with this content type and these framing lines.
    pub fn head(&self, sender: &Sender, content_type: &str, framing: &[&str]) -> String {
        let (name, value) = &self.proof;
        let values = self.before.iter().chain([value]).filter(|_| !name.is_empty());
        let (query, proof): (Vec<String>, Vec<String>) = match sender.proof {
            Proof::Query { .. } => (values.map(|value| format!("{name}={value}")).collect(), Vec::new()),
            Proof::Member { .. } => (Vec::new(), Vec::new()),
            _ => (Vec::new(), values.map(|value| format!("{name}: {value}")).collect()),
        };
        let path = format!("/{}?{}", sender.name, query.join("&"));
        let mut lines = vec![
            format!("POST {} HTTP/1.1", path.trim_end_matches('?')),
            "Host: hooks.test".to_owned(),
            content_type.to_owned(),
        ];
        lines.extend(self.lines.iter().cloned().chain(proof));
        lines.extend(framing.iter().map(|line| (*line).to_owned()));
        lines.join("\r\n") + "\r\n\r\n"
    }

    /// The body as it is sent.
    pub fn content(&self, sender: &Sender) -> Vec<u8> {
        let (name, value) = &self.proof;
        let members = || -> String {
            self.before.iter().chain([value]).map(|value| format!("{}:{},", json!(name), json!(value))).collect()
        };
        match (sender.proof, self.body.strip_prefix(b"{")) {
            (Proof::Member { .. }, Some(rest)) if !name.is_empty() => [b"{", members().as_bytes(), rest].concat(),
            _ => self.body.clone(),
        }
    }

    /// The whole request, with these additional header lines.
    pub fn bytes(&self, sender: &Sender, content_type: &str, more: &[&str]) -> Vec<u8> {
        let content = self.content(sender);
        let length = format!("Content-Length: {}", content.len());
        let framing = [&[length.as_str()], more].concat();
        [self.head(sender, content_type, &framing).as_bytes(), &content].concat()
    }

    pub async fn open(&self, door: &Door, sender: &Sender, framing: &[&str]) -> Raw {
        let mut raw = door.raw(sender).await;
        raw.send(self.head(sender, sender.content_type, framing)).await;
        raw
    }

    pub async fn send(&self, door: &Door, sender: &Sender) -> Answer {
        self.send_as(door, sender, sender.content_type, &[]).await
    }

    pub async fn send_as(&self, door: &Door, sender: &Sender, content_type: &str, more: &[&str]) -> Answer {
        let mut raw = door.raw(sender).await;
        raw.send(self.bytes(sender, content_type, more)).await;
        raw.answer().await
    }
}

pub const JSON: &str = "Content-Type: application/json";
pub const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

/// The sender with this name.
pub fn sender(name: &str) -> &'static Sender {
    SENDERS.iter().find(|sender| sender.name == name).unwrap()
}
