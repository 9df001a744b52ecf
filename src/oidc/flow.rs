//! A login in progress. Its whole state travels with the browser, sealed: the `state` parameter proves that we began it
//! and when; the cookie of the same login holds the rest and binds it to the browser. Nothing is stored for clients
//! that are not logged in, so they cannot fill the store. The only exception is a mark that a code has come, so that no
//! login is completed twice.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, time::Duration};

use super::{Client, client::Wishes, program::Program, redirect};
use crate::{
    authn::NeededLogin,
    clock::Timestamp,
    sessions::{
        KeyRing, cookie,
        keyring::{Purpose, random},
    },
};

/// How long a login may take.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// How long the cookie lives: longer than the login, so that people who return late see why, and keep their return
/// address.
const COOKIE_LIFETIME: Duration = Duration::from_secs(3600);

/// The maximum number of logins in progress in one browser, one per tab, and the bytes of their cookies: a browser that
/// restores all its tabs must not exceed the header limit. Above these bounds, the oldest logins are dropped.
pub const MAX_TABS: usize = 16;
const MAX_BYTES: usize = 12 << 10;

const COOKIE: &str = "__Host-doorward-login-";

/// The `state` parameter (RFC 6749 section 4.1.1): 128 random bits and the time, sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    text: String,
    pub began: Timestamp,
}

impl State {
    pub fn new(keys: &KeyRing, now: Timestamp) -> Option<Self> {
        let mut plain = [0; 24];
        let (time, noise) = plain.split_at_mut(8);
        time.copy_from_slice(&now.as_millis().to_be_bytes());
        noise.copy_from_slice(&random::<16>());
        let sealed = keys.seal(Purpose::State, b"", &plain)?;
        Some(Self { text: BASE64_URL_SAFE_NO_PAD.encode(sealed), began: now })
    }

    /// `None` if it is not one of ours.
    pub fn parse(keys: &KeyRing, text: &str) -> Option<Self> {
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let plain = keys.open(Purpose::State, b"", &sealed).ok()?;
        let began = i64::from_be_bytes(*plain.first_chunk()?);
        Some(Self { text: text.to_owned(), began: Timestamp::from_millis(began) })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its key in the store.
    pub fn hash(&self) -> Vec<u8> {
        digest(&SHA256, self.text.as_bytes()).as_ref().to_vec()
    }

    /// The name of the cookie of the same login.
    pub fn cookie_name(&self) -> String {
        let hash = self.hash();
        format!("{COOKIE}{}", HEXLOWER.encode(hash.get(..8).unwrap_or_default()))
    }

    pub fn is_over(&self, now: Timestamp) -> bool {
        self.began + LIFETIME <= now || self.began > now + Duration::from_secs(60)
    }
}

/// The state of a login that the callback needs.
#[derive(Clone, Serialize, Deserialize)]
pub struct Flow {
    /// The origin where it began, and to which it must return.
    pub origin: String,
    /// The name of the issuer; `issuer_url` is its identifier.
    pub issuer: String,
    pub issuer_url: String,
    /// Whether it must return to the redirect address of this issuer alone.
    pub own_address: bool,
    pub nonce: String,
    /// The verifier of PKCE (RFC 7636).
    pub verifier: String,
    pub return_to: String,
    /// The number of logins of this browser in a row, including this one.
    pub attempt: u8,
    /// What a rule needs of the login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<NeededLogin>,
    /// The program that signs in, if it is not the browser itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Program>,
}

impl Flow {
    /// The path at which its response must arrive.
    pub fn callback(&self) -> Cow<'static, str> {
        redirect::path(&self.issuer, self.own_address)
    }

    /// The maximum time since the person authenticated: the smaller of `configured` and what a rule needs.
    pub fn max_age(&self, configured: Option<Duration>) -> Option<Duration> {
        configured.into_iter().chain(self.needed.as_ref().and_then(NeededLogin::max_age)).min()
    }

    /// Whether the person must authenticate again even if they have a session at the provider, because of `needed`.
    /// This is so if more than one factor is needed and no class requests it: the provider would otherwise return a
    /// person who just used a password. It is always so for a program, whose page offers no stronger second try.
    pub fn begins_anew(&self, client: &Client) -> bool {
        let Some(needed) = &self.needed else { return false };
        let asked = self.acr_values(client);
        let asks_by_class = client.wishes.mfa_acr_values.iter().any(|class| asked.contains(class));
        self.program.is_some() || (needed.mfa.is_some() && !asks_by_class)
    }

    /// The classes to request: those that are needed and, if more than one factor is needed, the provider's classes for
    /// that. Both are limited to what the configuration accepts, as anybody may have written the address at which a
    /// login begins. If none are left, all accepted classes.
    pub fn acr_values(&self, client: &Client) -> Vec<String> {
        let Wishes { acr_values: accepted, mfa_acr_values: several, .. } = &client.wishes;
        let mut asked: Vec<String> = Vec::new();
        if let Some(needed) = &self.needed {
            let several = several.iter().filter(|_| needed.mfa.is_some()).map(String::as_str);
            for class in needed.acr.iter().map(|class| &**class).chain(several) {
                let is = |other: &String| other == class;
                if (accepted.is_empty() || accepted.iter().any(is)) && !asked.iter().any(is) {
                    asked.push(class.to_owned());
                }
            }
        }
        if asked.is_empty() {
            asked.clone_from(accepted);
        }
        asked
    }

    /// The cookie that carries it, bound to its state.
    pub fn to_cookie(&self, keys: &KeyRing, state: &State) -> Option<HeaderValue> {
        let sealed = keys.seal(Purpose::Login, state.as_str().as_bytes(), &serde_json::to_vec(self).ok()?)?;
        Some(cookie::set(&state.cookie_name(), &BASE64_URL_SAFE_NO_PAD.encode(sealed), Some(COOKIE_LIFETIME)))
    }

    /// `None` if this browser did not begin the login, or sent its cookie twice.
    pub fn from_cookie(keys: &KeyRing, state: &State, headers: &HeaderMap) -> Option<Self> {
        let value = cookie::find(headers, &state.cookie_name()).ok()??;
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(value).ok()?;
        let plain = keys.open(Purpose::Login, state.as_str().as_bytes(), &sealed).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

/// `Set-Cookie` lines that delete the oldest login cookies, so that the cookie of `line` fits within the bounds.
pub fn give_up_oldest(headers: &HeaderMap, line: &HeaderValue) -> Vec<HeaderValue> {
    let under_way: Vec<(&str, usize)> = cookie::pairs(headers)
        .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, name.len() + value.len())))
        .filter(|(name, _)| {
            name.strip_prefix(COOKIE)
                .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
        })
        .collect();
    let mut bytes = line.len() + under_way.iter().map(|(_, bytes)| bytes).sum::<usize>();
    let mut left = under_way.len() + 1;
    let surplus = under_way.iter().take_while(|(_, size)| {
        let too_much = left > MAX_TABS || bytes > MAX_BYTES;
        (left, bytes) = (left.saturating_sub(1), bytes.saturating_sub(*size));
        too_much
    });
    surplus.map(|(name, _)| cookie::delete(name)).collect()
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn flow() -> Flow {
        Flow {
            origin: "https://dash.example.com".to_owned(),
            issuer: "corp".to_owned(),
            own_address: false,
            issuer_url: "https://idp.example".to_owned(),
            nonce: "n".to_owned(),
            verifier: "v".repeat(43),
            return_to: format!("/{}", "a".repeat(1535)),
            attempt: 1,
            needed: None,
            program: None,
        }
    }

    fn sent_back(line: &HeaderValue) -> HeaderMap {
        let pair = line.to_str().unwrap().split(';').next().unwrap();
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(pair).unwrap())])
    }

    #[test]
    fn a_login_is_bound_to_its_state_and_its_browser() {
        let keys = KeyRing::of(&[[1; 32]]);
        let (state, other) = (State::new(&keys, NOW).unwrap(), State::new(&keys, NOW).unwrap());
        let line = flow().to_cookie(&keys, &state).unwrap();
        assert!(line.len() < 4096, "a browser would drop {} bytes", line.len());
        let headers = sent_back(&line);
        assert_eq!(Flow::from_cookie(&keys, &state, &headers).unwrap().return_to, flow().return_to);
        assert!(Flow::from_cookie(&keys, &other, &headers).is_none());
        assert!(Flow::from_cookie(&keys, &state, &HeaderMap::new()).is_none());
        // The value of one login under the name of another.
        let moved = line.to_str().unwrap().replace(&state.cookie_name(), &other.cookie_name());
        assert!(Flow::from_cookie(&keys, &other, &sent_back(&HeaderValue::from_str(&moved).unwrap())).is_none());
    }

    #[test]
    fn a_state_is_authenticated_and_expires() {
        let keys = KeyRing::of(&[[1; 32]]);
        let state = State::new(&keys, NOW).unwrap();
        assert_eq!(State::parse(&keys, state.as_str()), Some(state.clone()));
        assert_eq!(State::parse(&KeyRing::of(&[[2; 32]]), state.as_str()), None);
        for bad in ["", "x", "AAAA", &format!("{}A", state.as_str())] {
            assert_eq!(State::parse(&keys, bad), None, "{bad:?}");
        }
        assert!(!state.is_over(NOW + LIFETIME - Duration::from_millis(1)));
        assert!(state.is_over(NOW + LIFETIME));
        assert!(state.is_over(NOW - Duration::from_secs(61)));
    }

    #[test]
    fn the_oldest_tabs_give_way() {
        let names: Vec<String> = (0..20u8).map(|tab| format!("{COOKIE}{}", format!("{tab:02x}").repeat(8))).collect();
        for (count, size, deleted) in
            [(0, 1, 0), (15, 1, 0), (16, 1, 1), (18, 1, 3), (3, 3000, 0), (4, 3000, 1), (15, 3000, 12)]
        {
            let value = "x".repeat(size);
            let line: Vec<String> = names.iter().take(count).map(|name| format!("{name}={value}")).collect();
            let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&line.join("; ")).unwrap())]);
            let lines = give_up_oldest(&headers, &HeaderValue::from_str(&"y".repeat(size)).unwrap());
            assert_eq!(lines.len(), deleted, "{count} of {size}");
            for (line, name) in lines.iter().zip(&names) {
                assert!(line.to_str().unwrap().starts_with(&format!("{name}=;")), "{line:?}");
            }
        }
        let strange = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_static("__Host-doorward-login-x=y"))]);
        let huge = HeaderValue::from_str(&"y".repeat(MAX_BYTES + 1)).unwrap();
        assert!(give_up_oldest(&strange, &huge).is_empty());
    }
}
