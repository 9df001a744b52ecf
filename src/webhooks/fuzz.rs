//! The fuzz body for deliveries; see `crate::fuzz`.

#![expect(clippy::unwrap_used, reason = "what does not hold here is a finding")]

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::{Delivery, NO_SECRET, Period, Secret, Webhook, github_signature, senders::sender};
use crate::{clock::Timestamp, config::raw, error::Rejection, fuzz::fields, sha256::sha256};

const NOW: i64 = 1_700_000_000;
const SECRET: &[u8] = b"a secret of twenty-four bytes or more";
const ANOTHER: &[u8] = b"some other secret, as long as the first";

/// A configured sender, and how it signs.
struct Case {
    webhook: Webhook,
    /// Writes the proof of the body into the headers, over any that is there.
    sign: fn(&mut HeaderMap, &[u8], &[u8]),
    /// Whether the headers prove the body, without using the code under test.
    proves: fn(&HeaderMap, &[u8]) -> bool,
}

static CASES: LazyLock<[Case; 4]> = LazyLock::new(|| {
    let secret = |text: String| text.into_bytes();
    let signature = json!({"header": "x-signature", "prefix": "v0=", "encoding": "base64", "timestamp_header": "x-time",
        "id_header": "x-id"});
    let facts = json!({"event": "/event", "repository_id": "/repo"});
    [
        Case {
            webhook: build(&json!({"name": "hub", "sender": "github", "secrets": []}), SECRET),
            sign: sign_github,
            proves: github,
        },
        Case {
            webhook: build(
                &json!({"name": "lab", "sender": "gitlab", "secrets": [], "require_signature": true}),
                &secret(format!("whsec_{}", STANDARD.encode(SECRET))),
            ),
            sign: sign_standard,
            proves: standard,
        },
        Case {
            webhook: build(&json!({"name": "old-lab", "sender": "gitlab", "secrets": []}), SECRET),
            sign: |headers, secret, _| {
                headers.remove("webhook-signature");
                headers.insert("x-gitlab-token", str::from_utf8(secret).unwrap().parse().unwrap());
            },
            proves: |headers, _| headers.get("x-gitlab-token").is_some_and(|token| token.as_bytes() == SECRET),
        },
        Case {
            webhook: build(
                &json!({"name": "other", "sender": "generic", "secrets": [], "signature": signature, "facts": facts}),
                SECRET,
            ),
            sign: sign_generic,
            proves: generic,
        },
    ]
});

fn build(entry: &Value, secret: &[u8]) -> Webhook {
    let raw: raw::Webhook = serde_json::from_value(entry.clone()).unwrap();
    let key = (sender(raw.sender).key)(&raw, secret).unwrap();
    let scope = sha256(&[secret]);
    let identity = raw.name.as_str().into();
    Webhook::build(&raw, identity, Vec::new(), vec![Secret { key, scope, period: Period::default() }])
}

fn tag(secret: &[u8], before: &str, body: &[u8]) -> String {
    let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &[before.as_bytes(), body].concat());
    STANDARD.encode(signed)
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn sign_github(headers: &mut HeaderMap, secret: &[u8], body: &[u8]) {
    headers.insert("x-hub-signature-256", github_signature(secret, body).parse().unwrap());
}

fn github(headers: &HeaderMap, body: &[u8]) -> bool {
    text(headers, "x-hub-signature-256")
        .is_some_and(|came| came.starts_with("sha256=") && came.eq_ignore_ascii_case(&github_signature(SECRET, body)))
}

fn sign_standard(headers: &mut HeaderMap, secret: &[u8], body: &[u8]) {
    headers.insert("webhook-timestamp", NOW.into());
    headers.insert("webhook-id", "msg_1".parse().unwrap());
    let entry = format!("v1,{}", tag(secret, &format!("msg_1.{NOW}."), body));
    headers.insert("webhook-signature", entry.parse().unwrap());
}

fn standard(headers: &HeaderMap, body: &[u8]) -> bool {
    let (Some(id), Some(time)) = (text(headers, "webhook-id"), text(headers, "webhook-timestamp")) else {
        return false;
    };
    let entry = format!("v1,{}", tag(SECRET, &format!("{id}.{time}."), body));
    is_near(time) && text(headers, "webhook-signature").is_some_and(|came| came.split(' ').any(|came| came == entry))
}

fn sign_generic(headers: &mut HeaderMap, secret: &[u8], body: &[u8]) {
    headers.insert("x-time", NOW.into());
    let value = format!("v0={}", tag(secret, &format!("{NOW}."), body));
    headers.insert("x-signature", value.parse().unwrap());
}

fn generic(headers: &HeaderMap, body: &[u8]) -> bool {
    let Some(time) = text(headers, "x-time") else { return false };
    let value = format!("v0={}", tag(SECRET, &format!("{time}."), body));
    is_near(time) && text(headers, "x-signature") == Some(&value)
}

/// Whether a time is within the five minutes of the Standard Webhooks libraries.
fn is_near(time: &str) -> bool {
    time.parse::<i64>().is_ok_and(|time| (NOW - 300..=NOW + 300).contains(&time))
}

fn take(webhook: &Webhook, headers: &HeaderMap, body: &Bytes) -> Result<Delivery, Rejection> {
    let expected = webhook.precheck(&Method::POST, headers, None, Some(body.len() as u64))?;
    webhook.verify(expected, body, Timestamp::from_secs(NOW)).map_err(|refused| refused.rejection)
}

/// Sends the head and the body of a delivery to each kind of sender. The properties are:
///
/// - What passes is proven: its headers contain the only valid HMAC of this body, and of this time if the time is
///   signed.
/// - A valid signature is always recognized, whatever else is wrong with the delivery. Another secret never passes, nor
///   does another body under the same signature.
/// - A refusal is a client error.
pub fn webhook(bytes: &[u8]) {
    let (headers, body) = fields(bytes);
    let body = Bytes::copy_from_slice(body);
    for Case { webhook, sign, proves } in CASES.iter() {
        match take(webhook, &headers, &body) {
            Ok(delivery) => {
                assert!(proves(&headers, &body), "{}: nobody proved this", webhook.name);
                check_delivery(webhook, &delivery, &body);
            }
            Err(rejection) => assert!(rejection.status().is_client_error(), "{}: {rejection}", webhook.name),
        }
        let mut signed = headers.clone();
        sign(&mut signed, SECRET, &body);
        match take(webhook, &signed, &body) {
            Ok(delivery) => check_delivery(webhook, &delivery, &body),
            Err(rejection) => {
                assert!(rejection.status().is_client_error(), "{}: {rejection}", webhook.name);
                assert_ne!(rejection.causes().as_deref(), Some(NO_SECRET), "{}: it is the right one", webhook.name);
            }
        }
        let longer = Bytes::from([&body[..], b" "].concat());
        assert_eq!(
            take(webhook, &signed, &longer).is_ok(),
            webhook.name.as_ref() == "old-lab" && take(webhook, &signed, &body).is_ok()
        );
        sign(&mut signed, ANOTHER, &body);
        assert!(take(webhook, &signed, &body).is_err(), "{}: another secret", webhook.name);
    }
}

fn check_delivery(webhook: &Webhook, delivery: &Delivery, body: &Bytes) {
    assert_eq!(delivery.body_sha256, sha256(&[body]));
    assert_eq!(delivery.secret_index, 0);
    assert_eq!(delivery.facts.webhook, webhook.name);
    if let Ok(principal) = webhook.principal(delivery) {
        assert!(principal.username.starts_with("webhook:"), "{}", principal.username);
        assert!(!principal.username.chars().any(char::is_control));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::corpus;

    /// A setting that became required, or an additional check before the signature, would make all of them refused.
    #[test]
    fn each_sender_accepts_a_corpus_input_as_it_is_and_one_signed_again() {
        let inputs: Vec<_> = corpus("webhook");
        let inputs = inputs.iter().map(|bytes| fields(bytes));
        let inputs: Vec<_> = inputs.map(|(headers, body)| (headers, Bytes::copy_from_slice(body))).collect();
        for Case { webhook, sign, .. } in CASES.iter() {
            let taken = inputs.iter().filter(|(headers, body)| take(webhook, headers, body).is_ok());
            assert!(taken.count() > 0, "{}", webhook.name);
            let signed = inputs.iter().filter(|(headers, body)| {
                let mut headers = headers.clone();
                sign(&mut headers, SECRET, body);
                take(webhook, &headers, body).is_ok()
            });
            assert!(signed.count() > 0, "{}, signed anew", webhook.name);
        }
    }
}
