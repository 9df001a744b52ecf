//! The way of a program whose browser is on its own machine (RFC 8252): a code goes to 127.0.0.1 and nowhere else, since
//! the program names a port and no address. Whoever steals it there lacks the verifier. A link that somebody else made
//! ends at the page that asks: it must be pressed in this browser, and shows a code that the person's own terminal does
//! not.

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
    Asker, Grant, PAGE, Program, from_our_page,
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

/// How long a code is good (RFC 6749 section 4.1.2 recommends ten minutes at most; it is brought at once).
const CODE_LIFETIME: Duration = Duration::from_secs(60);

/// How long is remembered that a code was used.
const USED_LIFETIME: Duration = Duration::from_secs(600);

/// A program that waits for its code on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loopback {
    /// Where it listens, on 127.0.0.1.
    port: u16,
    /// By what it knows its login again.
    state: String,
    asker: Asker,
}

impl Loopback {
    /// The one that a request to its page is about.
    fn of(request: LoginRequest<'_>) -> Result<Self, Failure> {
        // A page that is about no program of anybody has nothing to lead back to.
        parse(request).and_then(|parameters| Self::parse(&parameters)).map_err(Failure::final_here)
    }

    pub(super) fn parse(parameters: &Parameters<'_>) -> Result<Self, Failure> {
        let malformed = |detail: &'static str| {
            Failure::new(
                Outcome::malformed,
                "This address is none that `doorward login` opens. Run `doorward login` again, and follow no link that \
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
        let port = port.ok_or_else(|| malformed("`port` is no port from 1024 to 65535"))?;
        let state = text("state");
        if !(16..=128).contains(&state.len()) || !super::is_base64url(state) {
            return Err(malformed("`state` is not 16 to 128 characters of base64url"));
        }
        let asker = Asker::parse(parameters).map_err(malformed)?;
        Ok(Self { port, state: state.to_owned(), asker })
    }

    /// The page that asks about it.
    fn address(&self) -> String {
        let Self { port, state, asker: Asker { challenge, machine, needed } } = self;
        let address =
            format!("{PAGE}?port={port}&state={state}&code_challenge={challenge}&machine={}", encode(machine));
        let begins = address.len();
        let mut query = form_urlencoded::Serializer::for_suffix(address, begins);
        query.extend_pairs(needed.iter().flat_map(NeededLogin::parameters)).finish()
    }

    /// Where the browser ends the wait of the program.
    pub(super) fn cancel(&self) -> String {
        self.back("error=access_denied")
    }

    /// Where the browser brings `answer`.
    fn back(&self, answer: &str) -> String {
        format!("http://127.0.0.1:{}/?{answer}&state={}", self.port, self.state)
    }
}

/// The code that the page and the terminal both show, so that a person can tell their own program from that of somebody
/// who sent them a link: eight letters for a challenge of PKCE.
pub fn confirmation(challenge: &str) -> String {
    let hash = sha256(&[b"doorward login\0", challenge.as_bytes()]);
    letters(&hash)
}

/// What the store has for a code.
#[derive(Serialize, Deserialize)]
enum Kept {
    Good {
        asker: Asker,
        origin: String,
        grant: Grant,
    },
    /// Its program came for the session, which has this name.
    Used(String),
    /// Somebody brought it who is not its program, so it gave nothing.
    Void,
}

impl Login {
    /// The page that asks whether a program may sign in. Nothing has happened yet, and nothing does unless the person
    /// presses a button there.
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

    /// The person wants it: on to the provider. Only the page above may send this.
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

    /// Begins the session of a program. Gives where the browser goes, with the code for it.
    pub(super) async fn send_back(
        &self,
        program: &Loopback,
        new: NewSession<'_>,
    ) -> Result<(String, Arc<Session>), Failure> {
        let code = random_text();
        let until = self.0.sessions.now() + CODE_LIFETIME;
        let origin = new.origin.as_str().to_owned();
        let (grant, session) = self.prepare(new, &program.asker, until).await?;
        let kept = Kept::Good { asker: program.asker.clone(), origin, grant };
        let failure = match self.keep(&key_of(&code), &kept, until, Expect::Absent).await {
            Ok(Written::Done(_)) => return Ok((program.back(&format!("code={code}")), session)),
            Ok(Written::Conflict(_)) => Failure::new(Outcome::internal, "A code was drawn twice. Sign in again."),
            Err(error) => store_failed(&error),
        };
        self.withdraw(&session).await;
        Err(failure)
    }

    /// A session for a code. Whoever brings a code uses it up, right or wrong: it is brought once in honest use.
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
            Kept::Good { asker, origin, grant } => (asker, origin, grant),
            Kept::Used(session) => return Err(self.brought_twice(&session).await),
            Kept::Void => {
                let why =
                    "the code was used before, by another program, and gave it nothing; run `doorward login` again";
                return Err(Refusal::grant(why));
            }
        };
        let whose = match (asker.is_proven_by(verifier), origin == bearer.origin.as_str()) {
            (true, true) => None,
            (true, false) => Some("the code is for another host; run `doorward login` again"),
            (false, _) => Some("the code is bound to another program; run `doorward login` again"),
        };
        if let Some(why) = whose {
            // If its program came in the same moment, that counts for nothing either.
            self.keep(&key, &Kept::Void, until, Expect::Version(version)).await?;
            self.0.sessions.end_named(&grant.session, Ended::revoked).await?;
            return Err(Refusal::grant(why));
        }
        let session = self.collect(&grant, bearer).await?;
        let used = Kept::Used(grant.session.clone());
        match self.keep(&key, &used, until, Expect::Version(version)).await {
            Ok(Written::Done(_)) => {}
            Ok(Written::Conflict(_)) => return Err(self.brought_twice(&grant.session).await),
            // Whoever brings the code again is found out by its session.
            Err(error) => tracing::warn!(%error, "that a code was used was not noted"),
        }
        Ok((grant.handle.clone(), session))
    }
}

/// The key of a code in the store, which knows its hash only.
fn key_of(code: &str) -> [u8; 32] {
    sha256(&[b"code\0", code.as_bytes()])
}
