//! The stored record of a session, and the id that a browser holds for it.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroize;

use super::{
    cookie,
    keyring::{KeyRing, OpenError, Purpose, random},
    lease::Lease,
    seen,
    settings::Settings,
};
use crate::{
    clock::{Timestamp, millis, optional_millis},
    sha256::sha256,
};

/// The id that a browser holds: 256 random bits without meaning. The store has only its hash, so that reading the store
/// does not let anybody use a session.
pub(super) struct SessionId([u8; 32]);

impl SessionId {
    pub fn new() -> Self {
        Self(random())
    }

    /// Parses the value of the cookie, in its one form.
    pub fn parse(value: &[u8]) -> Option<Self> {
        Some(Self(BASE64_URL_SAFE_NO_PAD.decode(value).ok()?.try_into().ok()?))
    }

    /// The id in a browser's cookie. `None` also if there are two such cookies.
    pub fn of_browser(headers: &HeaderMap) -> Option<Self> {
        Self::parse(cookie::find(headers, cookie::SESSION).ok()??)
    }

    pub fn to_cookie(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Parses the handle that a program presents, in its one form.
    pub fn parse_handle(handle: &str) -> Option<Self> {
        Self::parse(handle.strip_prefix(HANDLE)?.as_bytes())
    }

    pub fn to_handle(&self) -> String {
        format!("{HANDLE}{}", self.to_cookie())
    }

    pub fn hash(&self) -> SessionHash {
        SessionHash(sha256(&[&self.0]))
    }
}

/// The prefix of the handle of a program's session, so that anybody who finds one knows what it is.
pub const HANDLE: &str = "dws_";

impl Drop for SessionId {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The SHA-256 of a session's id: its key in the store, and its name in revocations and in the audit trail.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionHash([u8; 32]);

impl SessionHash {
    /// The hash of the session id in a browser's cookie, whether or not that session is valid.
    pub fn of_browser(headers: &HeaderMap) -> Option<Self> {
        SessionId::of_browser(headers).map(|id| id.hash())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(Self(BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
    }
}

impl fmt::Display for SessionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for SessionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionHash({self})")
    }
}

/// The tokens that the provider gave at a login. Never printed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tokens {
    pub access: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<String>,
    /// The ID token, as the hint of a later logout, if the provider issues ID tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.access.zeroize();
        self.refresh.zeroize();
        self.id.zeroize();
    }
}

/// The stored record of a session: facts only. The Kubernetes identity is derived again by each configuration that
/// reads it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The origin where it began. It is not valid elsewhere.
    pub origin: String,
    /// The name of the issuer in the configuration.
    pub issuer: Arc<str>,
    /// The issuer's own identifier, so that sessions do not carry over when another issuer gets the name.
    pub issuer_url: String,
    pub subject: Arc<str>,
    pub claims: Arc<Map<String, Value>>,
    /// Names of claims that came from the userinfo endpoint: those that it no longer returns are removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub from_userinfo: BTreeSet<String>,
    /// Names of claims that an ID token had when userinfo had them too. If userinfo no longer has one and there is no
    /// new ID token, it is removed as well.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub in_both: BTreeSet<String>,
    pub scopes: Vec<Arc<str>>,
    pub tokens: Tokens,
    /// The machine of the program that holds it; `None` if a browser does. A session of one kind of holder is not valid
    /// for the other: a cookie implies checks that only browsers pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The `User-Agent` of the login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The address from which it was last used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(with = "millis")]
    pub created: Timestamp,
    #[serde(with = "millis")]
    pub last_seen: Timestamp,
    /// When the provider last confirmed it.
    #[serde(with = "millis")]
    pub checked: Timestamp,
    /// Since when the provider responds without confirming it, or without the claims that it is asked for.
    #[serde(default, with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub refused: Option<Timestamp>,
    /// Until when its program may collect it; `None` once it has a holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncollected: Option<Uncollected>,
    /// The replica that asks the provider at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The end, however much it is used.
    #[serde(with = "millis")]
    pub ends: Timestamp,
}

impl Record {
    /// The provider's own session, if it names one (OpenID Connect Front-Channel Logout 1.0 section 3, `sid`).
    pub fn provider_session(&self) -> Option<&str> {
        self.claims.get("sid").and_then(Value::as_str)
    }

    pub fn holder(&self) -> Holder {
        if self.machine.is_some() { Holder::Program } else { Holder::Browser }
    }

    /// Whether a sign-out in the browser of this session ends another session of the same person too: one of the same
    /// session at the provider or, if the provider does not name both, one that the same browser may hold at another
    /// host: at this one its only cookie is that of this session. A session of a program goes on unless the provider
    /// ends it.
    pub fn signs_out(&self, other: &Self) -> bool {
        if other.holder() == Holder::Program {
            return false;
        }
        match (self.provider_session(), other.provider_session()) {
            (Some(own), Some(sid)) => own == sid,
            _ => {
                self.origin != other.origin && seen::may_be_same_browser(self.agent.as_deref(), other.agent.as_deref())
            }
        }
    }

    /// When it ends if it is not used again, or not collected. A shorter lifetime in the configuration applies at once.
    pub fn expires(&self, settings: &Settings) -> Timestamp {
        let absolute = self.latest_end().min(self.created + settings.absolute);
        absolute.min(self.last_seen + settings.idle)
    }

    /// The currently latest end, however much it is used.
    pub fn latest_end(&self) -> Timestamp {
        self.uncollected.as_ref().map_or(self.ends, |uncollected| self.ends.min(uncollected.until))
    }

    pub fn seal(&self, keys: &KeyRing, hash: &SessionHash) -> Option<Vec<u8>> {
        keys.seal(Purpose::Session, hash.as_bytes(), &serde_json::to_vec(self).ok()?)
    }

    pub fn open(keys: &KeyRing, hash: &SessionHash, sealed: &[u8]) -> Result<Self, OpenError> {
        let mut plain = keys.open(Purpose::Session, hash.as_bytes(), sealed)?;
        let record = serde_json::from_slice(&plain).map_err(|_| OpenError::Broken);
        plain.zeroize();
        record
    }
}

/// How far the clock of another replica may be ahead of ours.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);

/// Whether a time in a record is still in the future at `now`, whichever replica wrote it: the clock was set back
/// since, so how long ago it was is unknown.
pub(super) fn is_in_future(time: Timestamp, now: Timestamp) -> bool {
    time > now + MAX_CLOCK_SKEW
}

/// A program's session that a person has approved and the program has not collected yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Uncollected {
    #[serde(with = "millis")]
    pub until: Timestamp,
}

/// The holder of a session's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// In a cookie.
    Browser,
    /// As a bearer token.
    Program,
}

/// How often at most the use of a session is written to the store.
pub(super) fn touch_every(settings: &Settings) -> Duration {
    Duration::from_secs(60).min(settings.idle / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_form_and_differ() {
        let id = SessionId::new();
        let text = id.to_cookie();
        assert_eq!(text.len(), 43);
        assert_eq!(SessionId::parse(text.as_bytes()).unwrap().hash(), id.hash());
        assert_ne!(SessionId::new().hash(), id.hash());
        assert_eq!(SessionHash::parse(&id.hash().to_string()), Some(id.hash()));
        // The last letter has two bits that must be zero, so an id has no second spelling.
        for bad in ["", "a", &text[..42], &format!("{text}="), &format!("{text}A"), &text.replace(&text[..1], "\"")] {
            assert!(SessionId::parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
        let last = text.chars().last().unwrap();
        let other = ('A'..='Z').find(|letter| {
            let spelling = format!("{}{letter}", &text[..42]);
            *letter != last && SessionId::parse(spelling.as_bytes()).is_some_and(|parsed| parsed.hash() == id.hash())
        });
        assert_eq!(other, None);
    }
}
