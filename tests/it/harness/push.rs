//! A signed push notification from GitHub.

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;

use super::{Answer, Doorward, request, unique};
use crate::fixture::WEBHOOK_SECRET;

/// A delivery to `/github` at `hooks.test`.
#[derive(Clone)]
pub struct Push {
    /// The request line and the headers.
    pub lines: Vec<String>,
    pub body: String,
}

impl Push {
    /// A push to the branch `main` of repository 1234.
    pub const BODY: &str = r#"{"ref":"refs/heads/main","before":"0","after":"1","commits":[],"repository":{"id":1234,"full_name":"acme/app","owner":{"login":"acme"}},"sender":{"id":7,"login":"octocat"}}"#;

    /// A push that was never sent before.
    pub fn new() -> Self {
        Self::of(&Self::body(), &unique(), WEBHOOK_SECRET)
    }

    /// A body that was never sent before.
    pub fn body() -> String {
        Self::BODY.replacen(r#""before":"0""#, &format!(r#""before":"{}""#, unique()), 1)
    }

    /// This body, in a delivery with this id, signed with this secret.
    pub fn of(body: &str, id: &str, secret: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = hex(hmac::sign(&key, body.as_bytes()));
        let lines = [
            "POST /github HTTP/1.1",
            "Host: hooks.test",
            "Content-Type: application/json",
            "X-GitHub-Event: push",
            &format!("X-GitHub-Delivery: {id}"),
            &format!("X-Hub-Signature-256: sha256={signature}"),
        ];
        Self { lines: lines.map(str::to_owned).to_vec(), body: body.to_owned() }
    }

    /// Its bytes, with additional headers.
    pub fn request(&self, more: &[&str]) -> Vec<u8> {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).chain(more.iter().copied()).collect();
        request(&lines, self.body.as_bytes())
    }

    /// Sends it on a connection of its own.
    pub async fn send(&self, doorward: &Doorward, more: &[&str]) -> Answer {
        let mut raw = doorward.raw().await;
        raw.send(self.request(more)).await;
        raw.answer().await
    }
}

/// In lower-case hexadecimal digits.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}
