//! `doorward login`: a program on a person's machine gets a session of its own through the person's browser. The
//! browser is on the same machine ([`loopback`]), or on another one, where the person types a code ([`device`]).
//!
//! ```text
//! /.doorward/login         the browser, opened by the program: a page that names the machine and asks (GET); its
//!                          buttons lead to the provider (POST)
//! /oauth2/callback      <- the provider; the session begins, and the browser goes on to http://127.0.0.1:PORT/ with a code
//! /.doorward/login/token <- the program: exchanges the code, with its verifier, for the handle of a session
//! /.doorward/login/end  <- the program: ends its session
//!
//! /.doorward/login/device <- the program without a browser: gets a code for the person to type
//! /.doorward/device        any browser: asks for that code, then whether the program may sign in
//! /oauth2/callback      <- the provider; the session begins, and a page sends the person back to the terminal
//! /.doorward/login/token <- the program: polls until the person has decided
//! ```
//!
//! The session exists from when the person allows the program, and becomes valid when the program collects it, once. So
//! in between it is listed and can be ended like any other, and people who may not sign in see the reason in the
//! browser.
//!
//! The program's session has a login of its own at the provider and never shares the grant of a browser's session: a
//! rotating refresh token has one holder, and ending one session does not end the tokens of the other. The program
//! never sees a token of the provider.
//!
//! | file | holds |
//! |---|---|
//! | `loopback` | the login of a program whose browser is on its own machine |
//! | `device`, `user_code` | the login of other programs, and the code that the person types |
//! | `token` | the endpoints that programs call |
//! | `limits` | limits on waiting programs and wrong codes |

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
    authn::{EndpointAudit, NeededLogin},
    clock::Timestamp,
    sessions::{Ended, NewSession, Session, csrf, keyring::Purpose},
    sha256::sha256,
    store::{Expect, StoreError, Table, Written},
};

/// The page that asks the person for consent.
pub const PAGE: &str = "/.doorward/login";

/// The path at which the program exchanges its code.
pub const TOKEN: &str = "/.doorward/login/token";

/// The path at which the program ends its session.
pub const END: &str = "/.doorward/login/end";

/// Whether a path, with or without a query, is a page on which a person allows a program.
pub fn is_page(address: &str) -> bool {
    let path = address.split('?').next().unwrap_or_default();
    [PAGE, DEVICE].contains(&path)
}

/// The address that cancels the wait of the program of such a page, if the program is on the machine of the browser.
pub fn cancel(address: &str) -> Option<String> {
    let (path, query) = address.split_once('?')?;
    let program = Loopback::parse(&Parameters::parse(Some(query)).ok()?).ok()?;
    (path == PAGE).then(|| program.cancel())
}

/// The maximum bytes of a form from a program or the device page.
pub const MAX_BODY: usize = 4096;

/// The grant type of a program that polls (RFC 8628 section 3.4).
pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The program that a login in progress is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// It listens on the machine of the browser.
    Loopback(Loopback),
    /// It polls; the person typed its code.
    Device(UserCode),
}

/// The program that asks for a session: what binds the session to it, and the name it is listed by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProgramRequest {
    /// The PKCE challenge, by S256.
    challenge: String,
    /// The name that its machine gave.
    machine: String,
    /// What a rule needs of its login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    needed: Option<NeededLogin>,
}

impl ProgramRequest {
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

/// A session that waits for its program. Ending it ends the wait, so nothing is stored here for a person that is not in
/// the list of their sessions.
#[derive(Serialize, Deserialize)]
struct Grant {
    handle: String,
    /// The name of the session.
    session: String,
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.handle.zeroize();
    }
}

impl Login {
    /// Creates the session of a program after its login.
    pub(super) async fn hand_over(
        &self,
        program: Program,
        new: NewSession<'_>,
        audit: &EndpointAudit,
    ) -> Result<Response<Bytes>, Failure> {
        let (location, session) = match program {
            Program::Loopback(program) => self.send_back(&program, new).await?,
            Program::Device(code) => self.let_in(&code, new).await?,
        };
        audit.set_principal(&session.principal);
        Ok(redirect(&location))
    }

    /// Creates the session that a program may collect before `until`.
    async fn prepare(
        &self,
        new: NewSession<'_>,
        asker: &ProgramRequest,
        until: Timestamp,
    ) -> Result<(Grant, Arc<Session>), Failure> {
        let (handle, session) = self.0.sessions.create_for_program(new, asker.machine.clone(), until).await?;
        Ok((Grant { handle, session: session.name() }, session))
    }

    /// Ends a session that no program will collect. If that fails, it expires by itself, as nobody has its handle.
    async fn withdraw(&self, session: &Session) {
        if let Err(error) = self.0.sessions.end(session, Ended::uncollected).await {
            tracing::warn!(%error, session = session.name(), "could not end an uncollected session, which expires");
        }
    }

    /// Seals and stores the state of a program that waits, until `until`.
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

    /// The value stored under a key, and its version; `None` if there is none that we wrote.
    async fn kept<T: DeserializeOwned>(&self, key: &[u8; 32]) -> Result<Option<(T, u64)>, StoreError> {
        let sessions = &self.0.sessions;
        let stored = sessions.shared().store.get(Table::Logins, key, sessions.now()).await?;
        Ok(stored.and_then(|stored| {
            let plain = sessions.keys().open(Purpose::Code, key, &stored.value).ok()?;
            Some((serde_json::from_slice(&plain).ok()?, stored.version))
        }))
    }
}

/// Checks that one of our own pages sent this request.
fn from_our_page(request: LoginRequest<'_>) -> Result<(), Failure> {
    csrf::check(request.method, request.headers, false, request.origin).map_err(|refusal| {
        Failure::new(Outcome::malformed, "Another page tried to sign in a program. Nothing was done.")
            .detail(refusal.detail().to_owned())
            .titled(refusal.status(), "This did not come from Doorward's own page")
    })
}
