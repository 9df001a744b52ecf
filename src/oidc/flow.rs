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

/// The maximum bytes of all cookies of a browser in which several tabs log in, including cookies of applications. Above
/// it, the oldest logins are dropped. nginx accepts 8 KiB in one header line unless configured otherwise, and refuses
/// every request above that, so that nobody could sign in until the cookies expire. The rest is for cookies that are
/// not sent to this path, or are set later.
const MAX_BYTES: usize = 6 << 10;

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
    /// The name of the session that the browser had when it began, valid or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
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

/// `Set-Cookie` lines that delete the oldest login cookies, so that the cookie of `line` fits within the bound.
pub fn give_up_oldest(headers: &HeaderMap, line: &HeaderValue) -> Vec<HeaderValue> {
    let mut bytes = line.len() + cookie::pairs(headers).map(|(name, value)| size(name, value)).sum::<usize>();
    let surplus = under_way(headers).take_while(|(_, size)| {
        let too_much = bytes > MAX_BYTES;
        bytes = bytes.saturating_sub(*size);
        too_much
    });
    surplus.map(|(name, _)| cookie::delete(name)).collect()
}

/// An identifier that all logins in progress in a browser share, if there are any: the first of their cookies by name.
pub fn browser(headers: &HeaderMap) -> Option<&str> {
    under_way(headers).map(|(name, _)| name).min()
}

/// The names and sizes of the login cookies of this browser, oldest first.
fn under_way(headers: &HeaderMap) -> impl Iterator<Item = (&str, usize)> {
    cookie::pairs(headers).filter_map(|(bytes, value)| {
        let name = std::str::from_utf8(bytes).ok()?;
        let id = name.strip_prefix(COOKIE)?;
        (id.len() == 16 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| (name, size(bytes, value)))
    })
}

/// The bytes of a cookie in a `Cookie` line.
fn size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + "=; ".len()
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
            before: Some("s".repeat(43)),
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

    fn cookies(pairs: &[(String, usize)]) -> HeaderMap {
        let line: Vec<String> = pairs.iter().map(|(name, size)| format!("{name}={}", "x".repeat(*size))).collect();
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&line.join("; ")).unwrap())])
    }

    fn names() -> impl Iterator<Item = String> {
        (0..20u8).map(|tab| format!("{COOKIE}{}", format!("{tab:02x}").repeat(8)))
    }

    #[test]
    fn the_oldest_tabs_give_way() {
        for (count, size, of_others, deleted) in [
            (0, 1, 0, 0),
            (13, 400, 0, 0),
            (14, 400, 0, 1),
            (20, 400, 0, 7),
            (1, 2400, 0, 0),
            (2, 2400, 0, 1),
            (3, 400, 4000, 0),
            (5, 400, 4000, 2),
            (5, 400, 9000, 5),
        ] {
            let of_tabs = names().take(count).map(|name| (name, size));
            let headers = cookies(&[("theme".to_owned(), of_others)].into_iter().chain(of_tabs).collect::<Vec<_>>());
            let lines = give_up_oldest(&headers, &HeaderValue::from_str(&"y".repeat(size)).unwrap());
            assert_eq!(lines.len(), deleted, "{count} of {size} beside {of_others}");
            for (line, name) in lines.iter().zip(names()) {
                assert!(line.to_str().unwrap().starts_with(&format!("{name}=;")), "{line:?}");
            }
        }
        let strange = cookies(&[(format!("{COOKIE}x"), 1)]);
        let huge = HeaderValue::from_str(&"y".repeat(MAX_BYTES + 1)).unwrap();
        assert!(give_up_oldest(&strange, &huge).is_empty());
    }

    /// With 12 KiB of them nginx answered every request to the host with 400 for an hour.
    #[test]
    fn the_cookies_of_many_tabs_fit_into_a_header_line_of_nginx() {
        let keys = KeyRing::of(&[[1; 32]]);
        for length in [1, 150, 1400, 1535] {
            let mut jar: Vec<String> = Vec::new();
            for _ in 0..16 {
                let state = State::new(&keys, NOW).unwrap();
                let flow = Flow { return_to: format!("/{}", "a".repeat(length)), ..flow() };
                let line = flow.to_cookie(&keys, &state).unwrap();
                let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&jar.join("; ")).unwrap())]);
                for given_up in give_up_oldest(&headers, &line) {
                    let (name, _) = given_up.to_str().unwrap().split_once('=').unwrap();
                    jar.retain(|pair| !pair.starts_with(name));
                }
                jar.push(line.to_str().unwrap().split(';').next().unwrap().to_owned());
                let bytes = "Cookie: ".len() + jar.join("; ").len();
                assert!(bytes < 8 << 10, "{} tabs at an address of {length} bytes: {bytes}", jar.len());
            }
            assert!(jar.len() > 1, "two tabs log in side by side whatever their address");
        }
    }
}
