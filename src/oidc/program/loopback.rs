//! The login of a program whose browser is on its own machine (RFC 8252). The code is sent to 127.0.0.1 and nowhere
//! else, since the program names only a port; a thief of the code lacks the verifier. A link that somebody else made
//! leads only to the page that asks for consent: a button must be pressed in this browser, and the page shows a code
//! that the person's own terminal does not.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::form_urlencoded;

use super::{
    super::{
        Login, LoginRequest, Outcome,
        failure::Failure,
        login::{Wanted, parse, store_failed},
        logout::display_name,
        parameters::{Parameters, encode},
    },
    Grant, PAGE, Program, ProgramRequest, from_our_page,
    token::{Bearer, Refusal},
    user_code::letters,
};
use crate::{
    authn::NeededLogin,
    pages::{self, ProgramView},
    sessions::{Ended, NewSession, Session, keyring::random_text},
    sha256::sha256,
    store::{Expect, Written},
};

/// The lifetime of a code (RFC 6749 section 4.1.2 recommends ten minutes at most; programs use it at once).
const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// How long a used code is remembered.
const USED_LIFETIME: Duration = Duration::from_secs(600);

/// A program that waits for its code on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loopback {
    /// The port on which it listens, on 127.0.0.1.
    port: u16,
    /// The `state` by which it recognises its login.
    state: String,
    asker: ProgramRequest,
}

impl Loopback {
    /// The program that a request to the consent page is about.
    fn of(request: LoginRequest<'_>) -> Result<Self, Failure> {
        // Without a valid program there is nothing to retry.
        parse(request).and_then(|parameters| Self::parse(&parameters)).map_err(Failure::final_here)
    }

    pub(super) fn parse(parameters: &Parameters<'_>) -> Result<Self, Failure> {
        let malformed = |detail: &'static str| {
            Failure::new(
                Outcome::malformed,
                "`doorward login` does not open this address. Run `doorward login` again, and do not follow links that \
                 somebody sent you.",
            )
            .detail(detail)
            .titled(StatusCode::BAD_REQUEST, "No program is waiting for this")
        };
        if parameters.get("redirect_uri").is_some() {
            return Err(malformed("a code is sent to 127.0.0.1 and nowhere else; name its `port`"));
        }
        let text = |name: &str| parameters.get(name).unwrap_or_default();
        let digits = text("port").bytes().all(|byte| byte.is_ascii_digit());
        let port = text("port").parse().ok().filter(|port| digits && *port >= 1024);
        let port = port.ok_or_else(|| malformed("`port` is not a port from 1024 to 65535"))?;
        let state = text("state");
        if !(16..=128).contains(&state.len()) || !super::is_base64url(state) {
            return Err(malformed("`state` is not 16 to 128 characters of base64url"));
        }
        let asker = ProgramRequest::parse(parameters).map_err(malformed)?;
        Ok(Self { port, state: state.to_owned(), asker })
    }

    /// The address of the page that asks for consent.
    fn address(&self) -> String {
        let Self { port, state, asker: ProgramRequest { challenge, machine, needed } } = self;
        let address =
            format!("{PAGE}?port={port}&state={state}&code_challenge={challenge}&machine={}", encode(machine));
        let begins = address.len();
        let mut query = form_urlencoded::Serializer::for_suffix(address, begins);
        query.extend_pairs(needed.iter().flat_map(NeededLogin::parameters)).finish()
    }

    /// The address at which the browser cancels the wait of the program.
    pub(super) fn cancel(&self) -> String {
        self.back("error=access_denied")
    }

    /// The address at which the browser delivers `answer` to the program.
    fn back(&self, answer: &str) -> String {
        format!("http://127.0.0.1:{}/?{answer}&state={}", self.port, self.state)
    }
}

/// The code that both the page and the terminal show, so that people can distinguish their own program from that of
/// somebody who sent them a link: eight letters derived from the PKCE challenge.
pub fn confirmation(challenge: &str) -> String {
    let hash = sha256(&[b"doorward login\0", challenge.as_bytes()]);
    letters(&hash)
}

/// The stored state of a code.
#[derive(Serialize, Deserialize)]
enum StoredCode {
    Good {
        asker: ProgramRequest,
        origin: String,
        grant: Grant,
    },
    /// Its program collected the session of this name.
    Used(String),
    /// Another program presented it, so it became void.
    Void,
}

impl Login {
    /// The page that asks whether a program may sign in. Nothing happens unless the person presses a button there.
    pub(in super::super) async fn ask_for_program(
        &self,
        request: LoginRequest<'_>,
    ) -> Result<Response<Bytes>, Failure> {
        let program = Loopback::of(request)?;
        let address = program.address();
        let held = self.0.sessions.held_by(request.headers, request.origin).await;
        let held = held.map_err(|rejection| Failure::from(rejection).back_to(&address))?;
        let who = held.as_ref().map(|session| display_name(session));
        let choices = self.choices(request, |issuer| format!("{address}&issuer={}", encode(issuer)));
        let page = pages::program(&ProgramView {
            host: request.origin.authority(),
            machine: &program.asker.machine,
            confirmation: &confirmation(&program.asker.challenge),
            who: who.as_deref(),
            choices: &choices,
            cancel: &program.cancel(),
        });
        Ok(pages::html(StatusCode::OK, &page, &self.0.brand))
    }

    /// Redirects to the provider after the person agreed. Only the page above may send this.
    pub(in super::super) async fn begin_for_program(
        &self,
        request: LoginRequest<'_>,
    ) -> Result<Response<Bytes>, Failure> {
        let program = Loopback::of(request)?;
        let return_to = program.address();
        let begun = async {
            from_our_page(request)?;
            let parameters = parse(request)?;
            let wanted = Wanted { needed: program.asker.needed.clone(), anew: false };
            let provider = self.chosen(parameters.get("issuer").unwrap_or_default(), request)?;
            self.begin(provider, request, &return_to, wanted, Some(Program::Loopback(program))).await
        };
        begun.await.map_err(|failure| failure.back_to(&return_to))
    }

    /// Creates the session of a program. Returns the address that delivers its code.
    pub(super) async fn send_back(
        &self,
        program: &Loopback,
        new: NewSession<'_>,
    ) -> Result<(String, Arc<Session>), Failure> {
        let code = random_text();
        let until = self.0.sessions.now() + CODE_LIFETIME;
        let origin = new.origin.as_str().to_owned();
        let (grant, session) = self.prepare(new, &program.asker, until).await?;
        let kept = StoredCode::Good { asker: program.asker.clone(), origin, grant };
        let failure = match self.keep(&key_of(&code), &kept, until, Expect::Absent).await {
            Ok(Written::Done(_)) => return Ok((program.back(&format!("code={code}")), session)),
            Ok(Written::Conflict(_)) => Failure::new(Outcome::internal, "A code was drawn twice. Sign in again."),
            Err(error) => store_failed(&error),
        };
        self.withdraw(&session).await;
        Err(failure)
    }

    /// Exchanges a code for a session. Any attempt uses the code up, right or wrong: honest programs present it once.
    pub(super) async fn redeem_code(
        &self,
        code: &str,
        verifier: &str,
        bearer: Bearer<'_>,
    ) -> Result<(String, Arc<Session>), Refusal> {
        let (until, key) = (self.0.sessions.now() + USED_LIFETIME, key_of(code));
        let unknown =
            || Refusal::grant("the code is not known, or it is older than a minute; run `doorward login` again");
        let (kept, version) = self.kept(&key).await?.ok_or_else(unknown)?;
        let (asker, origin, grant) = match kept {
            StoredCode::Good { asker, origin, grant } => (asker, origin, grant),
            StoredCode::Used(session) => return Err(self.code_reused(&session).await),
            StoredCode::Void => {
                let why = "the code was used before, by another program, without effect; run `doorward login` again";
                return Err(Refusal::grant(why));
            }
        };
        let whose = match (asker.is_proven_by(verifier), origin == bearer.origin.as_str()) {
            (true, true) => None,
            (true, false) => Some("the code is for another host; run `doorward login` again"),
            (false, _) => Some("the code is bound to another program; run `doorward login` again"),
        };
        if let Some(why) = whose {
            // This also ends the session if its own program collected it at the same moment.
            self.keep(&key, &StoredCode::Void, until, Expect::Version(version)).await?;
            self.0.sessions.end_named(&grant.session, Ended::revoked).await?;
            return Err(Refusal::grant(why));
        }
        let session = self.collect(&grant, bearer).await?;
        let used = StoredCode::Used(grant.session.clone());
        match self.keep(&key, &used, until, Expect::Version(version)).await {
            Ok(Written::Done(_)) => {}
            Ok(Written::Conflict(_)) => return Err(self.code_reused(&grant.session).await),
            // A second use is still detected by the state of the session.
            Err(error) => tracing::warn!(%error, "could not mark a login code as used"),
        }
        Ok((grant.handle.clone(), session))
    }
}

/// The key of a code in the store, which has only its hash.
fn key_of(code: &str) -> [u8; 32] {
    sha256(&[b"code\0", code.as_bytes()])
}
