//! `doorward login`: a program on a person's machine gets a session of its own, by way of the person's browser. The browser
//! is on the same machine ([`loopback`]), or on any other, where the person types a code ([`device`]).
//!
//! ```text
//! /.doorward/login         the browser, which the program opened: a page that names the machine and asks (GET); what the
//!                          person presses there leads to the provider (POST)
//! /oauth2/callback      <- the provider; the session begins, and the browser goes on to http://127.0.0.1:PORT/ with a code
//! /.doorward/login/token <- the program: the code and the verifier that it is bound to, for the handle of a session
//! /.doorward/login/end  <- the program: its session ends
//!
//! /.doorward/login/device <- the program: it has no browser, and gets a code for the person to type
//! /.doorward/device        any browser: asks for that code, then whether its program may sign in
//! /oauth2/callback      <- the provider; the session begins, and the browser is told to go back to the terminal
//! /.doorward/login/token <- the program, every few seconds, until the person has decided
//! ```
//!
//! The session is there from when the person lets the program in, and good from when the program comes for it, once. So it is
//! listed and ended as any other in between, and whoever may not sign in learns it in the browser.
//!
//! The program's session rests on a login of its own at the provider and never shares the grant of a browser's session:
//! a refresh token that rotates has one holder, and the end of the one is not the end of the other's tokens. The program
//! never sees a token of the provider.
//!
//! | file | holds |
//! |---|---|
//! | `loopback` | the way of a program whose browser is on its own machine |
//! | `device`, `user_code` | that of any other, and the letters that the person types |
//! | `token` | what programs themselves send |
//! | `limits` | how many may wait, and how many codes may be typed in vain |

mod device;
mod limits;
mod loopback;
mod token;
mod user_code;

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Response;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroize;

use self::loopback::Loopback;
pub use self::{
    device::{DONE, PATH as DEVICE, REQUEST as DEVICE_REQUEST},
    limits::Devices,
    loopback::confirmation,
    user_code::UserCode,
};
use super::{Login, LoginRequest, Outcome, failure::Failure, login::redirect, parameters::Parameters};
use crate::{
    authn::{NeededLogin, Whose},
    clock::Timestamp,
    sessions::{Ended, NewSession, Session, csrf, keyring::Purpose},
    sha256::sha256,
    store::{Expect, StoreError, Table, Written},
};

/// The page that asks the person.
pub const PAGE: &str = "/.doorward/login";

/// Where the program brings its code.
pub const TOKEN: &str = "/.doorward/login/token";

/// Where the program ends its session.
pub const END: &str = "/.doorward/login/end";

/// Whether a path, with or without a query, is a page where a person lets a program in.
pub fn is_page(address: &str) -> bool {
    let path = address.split('?').next().unwrap_or_default();
    [PAGE, DEVICE].contains(&path)
}

/// Where the program of such a page is told that nobody signs in, if it waits on the machine of the browser.
pub fn cancel(address: &str) -> Option<String> {
    let (path, query) = address.split_once('?')?;
    let program = Loopback::parse(&Parameters::parse(Some(query)).ok()?).ok()?;
    (path == PAGE).then(|| program.cancel())
}

/// Bytes of the forms that a program, or the page of a device, sends.
pub const MAX_BODY: usize = 4096;

/// The grant of a program that asks again and again (RFC 8628 section 3.4).
pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// A program that a login is for, while it is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// It listens on the machine of the browser.
    Loopback(Loopback),
    /// It asks by itself; the person typed its code.
    Device(UserCode),
}

/// What a session will be bound to and called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asker {
    /// The challenge of PKCE, made with S256.
    challenge: String,
    /// How its machine calls itself.
    machine: String,
    /// What its login must bring besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    needed: Option<NeededLogin>,
}

impl Asker {
    fn parse(parameters: &Parameters<'_>) -> Result<Self, &'static str> {
        let text = |name: &str| parameters.get(name).unwrap_or_default().to_owned();
        let needed = NeededLogin::from_query(|name| parameters.get(name));
        let asker = Self { challenge: text("code_challenge"), machine: text("machine"), needed };
        if asker.challenge.len() != 43 || !is_base64url(&asker.challenge) {
            return Err("`code_challenge` is not the SHA-256 of a verifier, in base64url");
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
        if !(1..=64).contains(&asker.machine.len()) || !asker.machine.bytes().all(plain) {
            return Err("`machine` is not the name of a machine");
        }
        Ok(asker)
    }

    fn is_proven_by(&self, verifier: &str) -> bool {
        verify_slices_are_equal(challenge(verifier).as_bytes(), self.challenge.as_bytes()).is_ok()
    }
}

fn is_base64url(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// The challenge for a verifier (RFC 7636 section 4.2, S256).
pub fn challenge(verifier: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(sha256(&[verifier.as_bytes()]))
}

/// A session that waits for its program. Whoever ends it meanwhile ends the wait, so nothing of the person lies here that no
/// list of their sessions tells.
#[derive(Serialize, Deserialize)]
struct Grant {
    handle: String,
    /// Its name.
    session: String,
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.handle.zeroize();
    }
}

impl Login {
    /// Lets a program in with what a login found out.
    pub(super) async fn hand_over(
        &self,
        program: Program,
        new: NewSession<'_>,
        whose: &Whose,
    ) -> Result<Response<Bytes>, Failure> {
        let (location, session) = match program {
            Program::Loopback(program) => self.send_back(&program, new).await?,
            Program::Device(code) => self.let_in(&code, new).await?,
        };
        whose.is(&session.principal);
        Ok(redirect(&location))
    }

    /// Begins the session that a program comes for until then.
    async fn prepare(
        &self,
        new: NewSession<'_>,
        asker: &Asker,
        until: Timestamp,
    ) -> Result<(Grant, Arc<Session>), Failure> {
        let (handle, session) = self.0.sessions.create_for_program(new, asker.machine.clone(), until).await?;
        Ok((Grant { handle, session: session.name() }, session))
    }

    /// Ends a session that no program will come for. If that fails it ends by itself, as nobody has it.
    async fn withdraw(&self, session: &Session) {
        if let Err(error) = self.0.sessions.end(session, Ended::uncollected).await {
            tracing::warn!(%error, session = session.name(), "a session that no program comes for stays until its end");
        }
    }

    /// Seals what waits for a program, and stores it until `until`.
    async fn keep(
        &self,
        key: &[u8; 32],
        kept: &impl Serialize,
        until: Timestamp,
        expect: Expect,
    ) -> Result<Written, StoreError> {
        let sealed =
            serde_json::to_vec(kept).ok().and_then(|plain| self.0.sessions.keys().seal(Purpose::Code, key, &plain));
        let sealed = sealed.ok_or_else(|| StoreError::Corrupt("a code cannot be sealed".to_owned()))?;
        let store = &self.0.sessions.shared().store;
        store.put(Table::Logins, key, sealed, until, expect, self.0.sessions.now()).await
    }

    /// What is kept under a key, and its version; `None` if there is nothing that we could have written.
    async fn kept<T: DeserializeOwned>(&self, key: &[u8; 32]) -> Result<Option<(T, u64)>, StoreError> {
        let sessions = &self.0.sessions;
        let stored = sessions.shared().store.get(Table::Logins, key, sessions.now()).await?;
        Ok(stored.and_then(|stored| {
            let plain = sessions.keys().open(Purpose::Code, key, &stored.value).ok()?;
            Some((serde_json::from_slice(&plain).ok()?, stored.version))
        }))
    }
}

/// Only our own page may send this.
fn from_our_page(request: LoginRequest<'_>) -> Result<(), Failure> {
    csrf::check(request.method, request.headers, false, request.origin).map_err(|refusal| {
        Failure::new(Outcome::malformed, "Another page tried to sign in a program. Nothing was done.")
            .detail(refusal.detail().to_owned())
            .titled(refusal.status(), "This did not come from Doorward's own page")
    })
}
