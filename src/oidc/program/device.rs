//! The login of a program whose machine has no browser (RFC 8628): it shows a short code, which the person types in a
//! browser on any machine.
//!
//! An attacker may begin such a login and send its code to a victim (RFC 8628 section 5.4). So the code is never part
//! of an address that could be sent, only typed. The page then says which machine asks, from which address, what it
//! would get, and that a code from somebody else is an attack. The login continues only after the person presses a
//! button there.
//!
//! Unlike anywhere else in a login, state is stored here for unauthenticated programs: no more than
//! [`Devices`](super::Devices) allows, and each for ten minutes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    super::{
        Login, LoginRequest, Outcome,
        failure::Failure,
        flow::LIFETIME,
        login::{Wanted, parse, store_failed},
        logout::display_name,
        parameters::encode,
    },
    Grant, Program, ProgramRequest, UserCode, from_our_page,
    limits::{Devices, Full, Taken},
    token::{Bearer, Refusal, form_of, from_program, json_answer, seconds},
};
use crate::{
    clock::{Timestamp, millis},
    downstream::finished,
    pages::{self, DeviceDoneView, DeviceView, LetInView, ProgramDoneView, TypeCodeView},
    sessions::{
        Ended, NewSession, Origin, Seen, Session,
        keyring::{Purpose, random_text},
    },
    sha256::sha256,
    store::{Expect, StoreError, Written},
};

/// The path at which a program requests a code (RFC 8628 section 3.1).
pub const REQUEST: &str = "/.doorward/login/device";

/// The page on which a person types it.
pub const PATH: &str = "/.doorward/device";

/// The final page of the browser.
pub const DONE: &str = "/.doorward/device/done";

/// The time between two polls of a program, in seconds.
const INTERVAL: u64 = 2;

/// The maximum attempts of a conditional write while others decide at the same moment: a decision changes at most three
/// times.
const TRIES: usize = 4;

/// A program that waits for a person to decide.
#[derive(Serialize, Deserialize)]
struct Waiting {
    asker: ProgramRequest,
    /// The hash of the secret that only the program holds.
    secret: [u8; 32],
    origin: String,
    /// The address from which it asked.
    address: IpAddr,
    #[serde(with = "millis")]
    until: Timestamp,
    decision: Decision,
}

#[derive(Serialize, Deserialize)]
enum Decision {
    Open,
    /// If it was declined after it was allowed: the session that it was to get.
    Declined(Option<String>),
    /// Its session exists and waits for the program.
    Allowed(Grant),
    /// The program collected the session of this name.
    Used(String),
}

impl Login {
    fn devices(&self) -> &Devices {
        &self.0.sessions.shared().devices
    }

    /// Answers a program without a browser with a code (RFC 8628 section 3.2).
    pub(in super::super) async fn begin_device(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        match self.wait_for_person(request).await {
            Ok(answer) => answer,
            Err(refusal) => refusal.answer(),
        }
    }

    async fn wait_for_person(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Refusal> {
        from_program(request)?;
        let asker = ProgramRequest::parse(&form_of(request.body)?).map_err(Refusal::request)?;
        let now = self.0.sessions.moment();
        let place = self.devices().place(request.party(), now).map_err(|full| {
            let (status, whose, wait) = match full {
                Full::Network(wait) => (StatusCode::TOO_MANY_REQUESTS, " from your network", wait),
                Full::Total(wait) => (StatusCode::SERVICE_UNAVAILABLE, "", wait),
            };
            let description = format!(
                "too many programs{whose} are waiting for somebody to type their code; try again in {}, or run \
                 `doorward login` where there is a browser",
                minutes(wait)
            );
            let (error, retry_after) = ("temporarily_unavailable", Some(wait));
            Refusal { status, error, description, retry_after }
        })?;
        let secret = random_text();
        let kept = Waiting {
            asker,
            secret: sha256(&[secret.as_bytes()]),
            origin: request.origin.as_str().to_owned(),
            address: request.address,
            until: now.wall() + LIFETIME,
            decision: Decision::Open,
        };
        let code = UserCode::new();
        let written = self.keep(&code.key(), &kept, kept.until, Expect::Absent).await;
        let is_undone = match &written {
            Ok(written) => matches!(written, Written::Conflict(_)),
            Err(error) => error.is_undone(self.0.sessions.shared().store.is_shared()),
        };
        if is_undone {
            self.devices().give_back(place);
        }
        if let Written::Conflict(_) = written? {
            return Err(StoreError::Unavailable("a code was drawn twice".to_owned()).into());
        }
        self.devices().settle(code.key(), place);
        let body = json!({
            "device_code": format!("{code}.{secret}"),
            "user_code": code.to_string(),
            "verification_uri": request.origin.url(PATH),
            "expires_in": LIFETIME.as_secs(),
            "interval": INTERVAL,
        });
        Ok(json_answer(StatusCode::OK, &body))
    }

    /// The page on which a code is typed, and the forms of that page and of the next one.
    pub(in super::super) async fn device(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        self.on_device_page(request).await.map_err(|mut failure| {
            PATH.clone_into(&mut failure.return_to);
            failure
        })
    }

    async fn on_device_page(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        if *request.method != Method::POST {
            return Ok(self.type_code(request, None));
        }
        from_our_page(request)?;
        let form = form_of(request.body).map_err(|refusal| {
            Failure::new(Outcome::malformed, "The form is not one of ours.").detail(refusal.description)
        })?;
        let Some(code) = UserCode::parse(form.get("code").unwrap_or_default()) else {
            let why = "This is not a code. Codes have eight letters and no vowels. Compare it with your terminal.";
            return Ok(self.type_code(request, Some((StatusCode::BAD_REQUEST, why))));
        };
        let guess = match self.may_guess(request).await? {
            Ok(guess) => guess,
            Err(full) => return Ok(self.no_more_guesses(request, full)),
        };
        let Some((waiting, version)) = self.waiting_for(&code, request.origin).await? else {
            guess.keep();
            let why = "No terminal waits for this code here. Compare it with your terminal; after ten minutes, or at the \
                       address of another host, it is not good.";
            return Ok(self.type_code(request, Some((StatusCode::BAD_REQUEST, why))));
        };
        drop(guess);
        let parameters = parse(request)?;
        if parameters.get("decline").is_some() {
            let (login, origin) = (self.clone(), request.origin.clone());
            // A client that disconnects must not leave a declined session in place.
            let declining = async move { login.decline(&origin, &code, waiting, version).await };
            return finished(self.0.sessions.shared().finish(declining)).await;
        }
        match &waiting.decision {
            Decision::Open => {}
            Decision::Declined(_) => {
                let why =
                    "This terminal was declined already. Run `doorward login --device` again, and type its new code.";
                return Ok(self.type_code(request, Some((StatusCode::BAD_REQUEST, why))));
            }
            decision @ (Decision::Allowed(_) | Decision::Used(_)) => {
                let is_collected = matches!(decision, Decision::Used(_));
                return Ok(self.let_in_before(&code, &waiting.asker.machine, is_collected));
            }
        }
        if let Some(issuer) = parameters.get("issuer") {
            let provider = self.chosen(issuer, request)?;
            let wanted = Wanted { needed: waiting.asker.needed, anew: false };
            return self.begin(provider, request, PATH, wanted, Some(Program::Device(code))).await;
        }
        self.ask_for_device(request, &code, &waiting).await
    }

    /// Counts a guess before the code is looked up, so that concurrent guesses cannot exceed the limit. A browser with
    /// a session may still type a code after unauthenticated browsers have used up the total limit.
    async fn may_guess(&self, request: LoginRequest<'_>) -> Result<Result<Taken<'_>, Full>, Failure> {
        let now = self.0.sessions.moment();
        match self.devices().guess(request.party(), now, false) {
            Err(Full::Total(wait)) => {
                let held = self.0.sessions.held_by(request.headers, request.origin).await?;
                Ok(match held {
                    Some(_) => self.devices().guess(request.party(), now, true),
                    None => Err(Full::Total(wait)),
                })
            }
            guess => Ok(guess),
        }
    }

    fn no_more_guesses(&self, request: LoginRequest<'_>, full: Full) -> Response<Bytes> {
        let (status, wait, why) = match full {
            Full::Network(wait) => {
                let why = format!(
                    "Too many codes that nobody waits for were typed in your network. Try again in {}.",
                    minutes(wait)
                );
                (StatusCode::TOO_MANY_REQUESTS, wait, why)
            }
            Full::Total(wait) => {
                let why = format!(
                    "Too many codes that nobody waits for were typed. Sign in here in this browser first, and type it then; or \
                     try again in {}.",
                    minutes(wait)
                );
                (StatusCode::SERVICE_UNAVAILABLE, wait, why)
            }
        };
        let mut response = self.type_code(request, Some((status, &why)));
        response.headers_mut().insert(header::RETRY_AFTER, seconds(wait).into());
        response
    }

    fn type_code(&self, request: LoginRequest<'_>, refused: Option<(StatusCode, &str)>) -> Response<Bytes> {
        let view =
            TypeCodeView { host: request.origin.authority(), action: PATH, problem: refused.map(|(_, why)| why) };
        let status = refused.map_or(StatusCode::OK, |(status, _)| status);
        pages::html(status, &pages::type_code(&view), &self.0.brand)
    }

    fn let_in_before(&self, code: &UserCode, machine: &str, is_collected: bool) -> Response<Bytes> {
        let decline = format!("{PATH}?decline");
        let code = code.to_string();
        let view = LetInView { machine, code: &code, decline: (!is_collected).then_some(&*decline) };
        pages::html(StatusCode::CONFLICT, &pages::let_in_before(&view), &self.0.brand)
    }

    async fn ask_for_device(
        &self,
        request: LoginRequest<'_>,
        code: &UserCode,
        waiting: &Waiting,
    ) -> Result<Response<Bytes>, Failure> {
        let held = self.0.sessions.held_by(request.headers, request.origin).await?;
        let who = held.as_ref().map(|session| display_name(session));
        let choices = self.choices(request, |issuer| format!("{PATH}?issuer={}", encode(issuer)));
        let page = pages::device(&DeviceView {
            host: request.origin.authority(),
            machine: &waiting.asker.machine,
            address: waiting.address,
            code: &code.to_string(),
            who: who.as_deref(),
            choices: &choices,
            decline: &format!("{PATH}?decline"),
        });
        Ok(pages::html(StatusCode::OK, &page, &self.0.brand))
    }

    /// Declines a program. This is possible until the program has collected its session.
    async fn decline(
        &self,
        origin: &Origin,
        code: &UserCode,
        mut waiting: Waiting,
        mut version: u64,
    ) -> Result<Response<Bytes>, Failure> {
        for _ in 0..TRIES {
            let prepared = match waiting.decision {
                Decision::Open => None,
                Decision::Allowed(ref grant) => Some(grant.session.clone()),
                // Repeated, as ending its session may have failed the first time.
                Decision::Declined(prepared) => prepared,
                Decision::Used(_) => return Ok(self.let_in_before(code, &waiting.asker.machine, true)),
            };
            waiting.decision = Decision::Declined(prepared.clone());
            let kept = self.keep(&code.key(), &waiting, waiting.until, Expect::Version(version)).await;
            if let Written::Done(_) = kept.map_err(|error| store_failed(&error))? {
                // A program that was never allowed keeps its record and its place until it expires: otherwise anybody
                // could free places by declining programs of their own.
                if let Some(session) = prepared {
                    let ended = self.0.sessions.end_named(&session, Ended::signed_out).await;
                    ended.map_err(|error| store_failed(&error))?;
                    self.devices().free(&code.key());
                }
                let why = "you declined; the terminal is told that and nothing else";
                let view = ProgramDoneView { outcome: Err(why) };
                return Ok(pages::html(StatusCode::OK, &pages::program_done(&view), &self.0.brand));
            }
            // Somebody else decided, or the program collected its session, at the same moment.
            (waiting, version) = self.waiting_for(code, origin).await?.ok_or_else(gone)?;
        }
        Err(Failure::new(Outcome::internal, "Others decided in the same moment. Try again."))
    }

    /// The program of this code, at this host, whatever was decided.
    async fn waiting_for(&self, code: &UserCode, origin: &Origin) -> Result<Option<(Waiting, u64)>, Failure> {
        let kept = self.kept::<Waiting>(&code.key()).await.map_err(|error| store_failed(&error))?;
        Ok(kept.filter(|(waiting, _)| waiting.origin == origin.as_str()))
    }

    /// Creates the session of the waiting program. Returns the address of the page that sends the person back to it. A
    /// person who may not sign in sees the reason here, and the terminal continues to wait, as they may have another
    /// account.
    pub(super) async fn let_in(&self, code: &UserCode, new: NewSession<'_>) -> Result<(String, Arc<Session>), Failure> {
        let kept = self.waiting_for(code, new.origin).await?;
        let (waiting, version) =
            kept.filter(|(waiting, _)| matches!(waiting.decision, Decision::Open)).ok_or_else(gone)?;
        let seen = Seen { agent: None, address: Some(waiting.address) };
        let (grant, session) = self.prepare(NewSession { seen, ..new }, &waiting.asker, waiting.until).await?;
        let done = self.done_address(&waiting.asker.machine, &session);
        let allowed = Waiting { decision: Decision::Allowed(grant), ..waiting };
        let failure = match self.keep(&code.key(), &allowed, allowed.until, Expect::Version(version)).await {
            Ok(Written::Done(_)) => return Ok((done, session)),
            Ok(Written::Conflict(_)) => gone(),
            Err(error) => store_failed(&error),
        };
        self.withdraw(&session).await;
        Err(failure)
    }

    /// The address of the final page. It carries the content of the page, sealed, so that nobody else can choose it.
    fn done_address(&self, machine: &str, session: &Session) -> String {
        let who = display_name(session);
        let plain = serde_json::to_vec(&(machine, &who)).unwrap_or_default();
        let sealed = self.0.sessions.keys().seal(Purpose::Code, DONE.as_bytes(), &plain);
        sealed.map_or_else(|| DONE.to_owned(), |sealed| format!("{DONE}?of={}", BASE64_URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// The final page of the browser.
    pub(in super::super) fn device_done(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        let told = || {
            let sealed = BASE64_URL_SAFE_NO_PAD.decode(parse(request).ok()?.get("of")?).ok()?;
            let plain = self.0.sessions.keys().open(Purpose::Code, DONE.as_bytes(), &sealed).ok()?;
            serde_json::from_slice::<(String, String)>(&plain).ok()
        };
        let told = told();
        let view = told.as_ref().map(|(machine, who)| DeviceDoneView { machine, who });
        pages::html(StatusCode::OK, &pages::device_done(view.as_ref()), &self.0.brand)
    }

    /// Answers a poll: with the session, if the person has allowed it.
    pub(super) async fn redeem_device(
        &self,
        code: &str,
        verifier: &str,
        bearer: Bearer<'_>,
    ) -> Result<(String, Arc<Session>), Refusal> {
        let unknown = || Refusal::wait("expired_token", "the code is older than ten minutes, or not one of ours");
        let (shown, secret) = code.split_once('.').ok_or_else(unknown)?;
        let shown = UserCode::parse(shown).ok_or_else(unknown)?;
        let key = shown.key();
        let (waiting, version) = self.kept::<Waiting>(&key).await?.ok_or_else(unknown)?;
        if verify_slices_are_equal(&waiting.secret, &sha256(&[secret.as_bytes()])).is_err() {
            return Err(unknown());
        }
        if !waiting.asker.is_proven_by(verifier) {
            return Err(Refusal::grant("the code is bound to another program"));
        }
        if waiting.origin != bearer.origin.as_str() {
            return Err(Refusal::grant("the code is for another host"));
        }
        if self.devices().asks_too_soon(key, self.0.sessions.moment()) {
            return Err(Refusal::wait("slow_down", "the program asks too often"));
        }
        let declined = || Refusal::denied("the person declined");
        let grant = match &waiting.decision {
            Decision::Open => {
                return Err(Refusal::wait("authorization_pending", "nobody has typed the code and decided yet"));
            }
            Decision::Declined(_) => return Err(declined()),
            Decision::Used(session) => return Err(self.code_reused(session).await),
            Decision::Allowed(grant) => grant,
        };
        let session = self.collect(grant, bearer).await?;
        let handle = grant.handle.clone();
        let used = Waiting { decision: Decision::Used(grant.session.clone()), ..waiting };
        self.devices().free(&key);
        match self.keep(&key, &used, used.until, Expect::Version(version)).await {
            Ok(Written::Done(_)) => {}
            // The person declined at the same moment, so the session must end; ending it twice is harmless.
            Ok(Written::Conflict(_)) => {
                self.0.sessions.end_named(&session.name(), Ended::signed_out).await?;
                return Err(declined());
            }
            // A second use is still detected by the state of the session.
            Err(error) => tracing::warn!(%error, "could not mark a login code as used"),
        }
        Ok((handle, session))
    }
}

fn gone() -> Failure {
    Failure::new(
        Outcome::expired,
        "Your terminal does not wait any more. Run `doorward login --device` again, and type its new code.",
    )
}

/// A wait in minutes for people, rounded up.
fn minutes(wait: Duration) -> String {
    match seconds(wait).div_ceil(60) {
        0 | 1 => "a minute".to_owned(),
        minutes => format!("{minutes} minutes"),
    }
}
