//! Logins side by side in the tabs of one browser. The first of them begins the session, and those that say nothing new
//! begin no other: it would replace the first, and end what runs under it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use data_encoding::HEXLOWER;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{NewSession, Session, record::Record, refresh::OF_LOGIN};
use crate::{clock::Timestamp, sha256::sha256};

/// The login in one tab of a browser.
#[derive(Clone, Copy, Debug)]
pub struct Tab<'a> {
    /// The identifier that it shares with the logins in progress in the other tabs.
    pub browser: &'a str,
    pub began: Timestamp,
}

impl Tab<'_> {
    /// The digest that all logins in progress in this browser, at the same origin and with the same facts, share.
    pub(super) fn digest(&self, record: &Record) -> Option<String> {
        let facts = serde_json::to_vec(&Facts::of(&record.claims, &record.scopes)).ok()?;
        let (browser, origin) = (self.browser.as_bytes(), record.origin.as_bytes());
        Some(HEXLOWER.encode(&sha256(&[browser, b"\0", origin, b"\0", &facts])))
    }
}

impl Session {
    /// Whether a login says nothing new: the same about the same person, or only that they authenticated before they
    /// did for this session. Otherwise the session must not go on, as its id must not get other rights.
    pub fn covers(&self, new: &NewSession<'_>) -> bool {
        let record = &self.record;
        let (mut known, mut said) = (Facts::of(&record.claims, &record.scopes), Facts::of(&new.claims, &new.scopes));
        // Some providers do not say when, unless they are asked for a recent login.
        if said.authenticated() < known.authenticated() {
            for name in OF_LOGIN {
                known.claims.remove(name);
                said.claims.remove(name);
            }
        }
        record.issuer == *new.provider.name() && known == said
    }
}

/// Claims about the token itself, which differ from login to login: those of OpenID Connect and JWT, of Entra ID, and
/// of Cognito.
const OF_TOKEN: [&str; 13] =
    ["iat", "nbf", "exp", "jti", "nonce", "at_hash", "c_hash", "s_hash", "aio", "rh", "uti", "event_id", "origin_jti"];

/// What a login says about the person, and the rights that it gives.
#[derive(Debug, PartialEq, Serialize)]
struct Facts<'a> {
    claims: BTreeMap<&'a str, &'a Value>,
    scopes: BTreeSet<&'a str>,
}

impl<'a> Facts<'a> {
    fn of(claims: &'a Map<String, Value>, scopes: &'a [Arc<str>]) -> Self {
        let claims = claims.iter().map(|(name, value)| (name.as_str(), value));
        Self {
            claims: claims.filter(|(name, _)| !OF_TOKEN.contains(name)).collect(),
            scopes: scopes.iter().map(|scope| &**scope).collect(),
        }
    }

    /// When the person authenticated.
    fn authenticated(&self) -> Option<i64> {
        self.claims.get("auth_time")?.as_i64()
    }
}
