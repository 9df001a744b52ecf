//! The way of a program whose machine has no browser (RFC 8628): it shows a short code, which the person types in a
//! browser of any machine.
//!
//! Somebody may begin such a login and send its code to a victim. So the code is never part of an address that could
//! be sent, only typed; the page then says which machine asks, from which address, what it would get, and that a code
//! from somebody else is an attack; and only what the person presses there goes on (RFC 8628 section 5.4).
//!
//! Something is kept here for programs of nobody yet, unlike anywhere else in a login: no more than [`Devices`] lets
//! wait, and each for ten minutes.

use std::{
    collections::VecDeque,
    fmt, mem,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use moka::{
    ops::compute::{CompResult, Op},
    sync::Cache,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    super::{
        Login, LoginRequest, Outcome,
        failure::Failure,
        flow::LIFETIME,
        login::{encode, host, parse, redirect, store_failed},
        logout::display_name,
    },
    Asker, Bearer, Given, Grant, LETTERS, Program, Refusal, form_of, from_our_page, json_answer, letters,
};
use crate::{
    clock::{Timestamp, millis},
    pages::{self, DeviceView, ProgramDoneView, TypeCodeView},
    sessions::{Session, keyring::random},
    sha256::sha256,
    store::{Expect, StoreError, Written},
};

/// Where a program asks for a code (RFC 8628 section 3.1).
pub const REQUEST: &str = "/.doorward/login/device";

/// Where a person types it.
pub const PATH: &str = "/.doorward/device";

/// Where the browser ends up.
pub const DONE: &str = "/.doorward/device/done";

/// How long a program waits between two questions, in seconds.
const INTERVAL: u64 = 2;

/// Sooner than that it is told to slow down.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Programs that may wait at once, of one network and in all.
const WAITING: (usize, usize) = (30, 1000);

/// Codes that may be typed of late which nobody waits for, from one network and in all. There are 20^8, of which at most a
/// thousand are good.
const MISTYPED: (usize, usize) = (20, 1000);

/// What a person types: eight letters, in capitals with a hyphen between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCode(String);

impl UserCode {
    fn new() -> Self {
        // 240 is twelve times twenty, so each letter is as likely as any other.
        let fair = std::iter::repeat_with(random::<32>).flatten().filter(|byte| *byte < 240);
        Self(letters(&fair.take(8).collect::<Vec<u8>>()))
    }

    /// However it was written.
    pub fn parse(text: &str) -> Option<Self> {
        let typed = text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'-');
        let typed: Vec<u8> = typed.take(9).map(|byte| byte.to_ascii_uppercase()).collect();
        let good = typed.len() == 8 && typed.iter().all(|letter| LETTERS.contains(letter));
        let (one, other) = typed.split_at_checked(4).filter(|_| good)?;
        Some(Self(format!("{}-{}", String::from_utf8_lossy(one), String::from_utf8_lossy(other))))
    }

    fn key(&self) -> [u8; 32] {
        sha256(&[b"device\0", self.0.as_bytes()])
    }
}

impl fmt::Display for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A program that waits for a person to decide.
#[derive(Serialize, Deserialize)]
struct Waiting {
    asker: Asker,
    /// The hash of what the program itself holds.
    secret: [u8; 32],
    origin: String,
    /// Whence it asked.
    address: IpAddr,
    #[serde(with = "millis")]
    until: Timestamp,
    decision: Decision,
}

#[derive(Serialize, Deserialize)]
enum Decision {
    Open,
    Declined,
    Allowed(Box<Grant>),
    /// The program has it; what it got.
    Used(Option<Given>),
}

/// What keeps waiting programs few, and guesses.
#[derive(Debug)]
pub struct Devices {
    waiting: Recent,
    mistyped: Recent,
    /// When a program asked last, by its code.
    asked: Cache<[u8; 32], Timestamp>,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            waiting: Recent::new(WAITING),
            mistyped: Recent::new(MISTYPED),
            asked: Cache::builder().max_capacity(4 * WAITING.1 as u64).time_to_live(LIFETIME).build(),
        }
    }
}

impl Devices {
    /// Whether a program that asks now is to wait; one that is not told so is noted.
    fn asks_too_soon(&self, code: [u8; 32], now: Timestamp) -> bool {
        let noted = self.asked.entry(code).and_compute_with(|before| match before {
            Some(before) if now.since(*before.value()) < MIN_INTERVAL => Op::Nop,
            _ => Op::Put(now),
        });
        matches!(noted, CompResult::Unchanged(_))
    }
}

/// What happened within the last ten minutes, up to a limit for each network and one for all.
#[derive(Debug)]
struct Recent {
    of_one: usize,
    of_all: usize,
    entries: Mutex<VecDeque<(Timestamp, IpAddr)>>,
}

impl Recent {
    fn new((of_one, of_all): (usize, usize)) -> Self {
        Self { of_one, of_all, entries: Mutex::default() }
    }

    /// Whether one more may happen.
    fn is_full(&self, address: IpAddr, now: Timestamp) -> bool {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        while entries.front().is_some_and(|(at, _)| *at + LIFETIME <= now) {
            entries.pop_front();
        }
        let network = network(address);
        entries.len() >= self.of_all || entries.iter().filter(|(_, of)| *of == network).count() >= self.of_one
    }

    fn note(&self, address: IpAddr, now: Timestamp) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push_back((now, network(address)));
    }
}

/// What one party has of addresses: one of version 4, 2^64 of version 6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (!0 << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

impl Login {
    /// A code for a program without a browser (RFC 8628 section 3.2).
    pub(in super::super) async fn begin_device(&self, request: LoginRequest<'_>) -> Response<Bytes> {
        match self.wait_for_person(request).await {
            Ok(answer) => answer,
            Err(refusal) => refusal.answer(),
        }
    }

    async fn wait_for_person(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Refusal> {
        let asker = Asker::parse(&form_of(request.body)?).map_err(Refusal::request)?;
        let (now, waiting) = (self.0.sessions.now(), &self.0.devices.waiting);
        if waiting.is_full(request.address, now) {
            return Err(Refusal {
                status: StatusCode::SERVICE_UNAVAILABLE,
                error: "temporarily_unavailable",
                description:
                    "too many programs wait for somebody to type their code; try again in some minutes, or run \
                              `doorward login` where there is a browser"
                        .to_owned(),
            });
        }
        let secret = BASE64_URL_SAFE_NO_PAD.encode(random::<32>());
        let kept = Waiting {
            asker,
            secret: sha256(&[secret.as_bytes()]),
            origin: request.origin.as_str().to_owned(),
            address: request.address,
            until: now + LIFETIME,
            decision: Decision::Open,
        };
        let code = UserCode::new();
        if let Written::Conflict(_) = self.keep(&code.key(), &kept, kept.until, Expect::Absent).await? {
            return Err(StoreError::Unavailable("a code was drawn twice".to_owned()).into());
        }
        waiting.note(request.address, now);
        let body = json!({
            "device_code": format!("{code}.{secret}"),
            "user_code": code.to_string(),
            "verification_uri": request.origin.url(PATH),
            "expires_in": LIFETIME.as_secs(),
            "interval": INTERVAL,
        });
        Ok(json_answer(StatusCode::OK, &body))
    }

    /// The page where a code is typed, and what the person presses on it and on the one that follows.
    pub(in super::super) async fn device(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        if *request.method != Method::POST {
            return Ok(self.type_code(request, None));
        }
        from_our_page(request)?;
        let form = form_of(request.body).map_err(|refusal| {
            Failure::new(Outcome::malformed, "The form is not one of ours.").detail(refusal.description)
        })?;
        let now = self.0.sessions.now();
        if self.0.devices.mistyped.is_full(request.address, now) {
            let why = "Too many codes were typed that nobody waits for. Try again in ten minutes.";
            return Ok(self.type_code(request, Some((StatusCode::TOO_MANY_REQUESTS, why))));
        }
        let code = UserCode::parse(form.get("code").unwrap_or_default());
        let waiting = match &code {
            Some(code) => self.waiting_for(code, request).await?,
            None => None,
        };
        let (Some(code), Some((waiting, version))) = (code, waiting) else {
            self.0.devices.mistyped.note(request.address, now);
            let why = "No terminal waits for this code here. Compare it with your terminal; after ten minutes, or at the \
                       address of another host, it is not good.";
            return Ok(self.type_code(request, Some((StatusCode::BAD_REQUEST, why))));
        };
        let parameters = parse(request)?;
        if parameters.get("issuer").is_some() {
            let provider = self.chosen(&parameters)?;
            return self.begin(provider, request, PATH, Some(Program::Device(code))).map_err(|mut failure| {
                PATH.clone_into(&mut failure.return_to);
                failure
            });
        }
        if parameters.get("decline").is_some() {
            return self.decline(&code, waiting, version).await;
        }
        self.ask_for_device(request, &code, &waiting).await
    }

    fn type_code(&self, request: LoginRequest<'_>, refused: Option<(StatusCode, &str)>) -> Response<Bytes> {
        let view = TypeCodeView { host: host(request.origin), action: PATH, problem: refused.map(|(_, why)| why) };
        let status = refused.map_or(StatusCode::OK, |(status, _)| status);
        pages::html(status, &pages::type_code(&view), &self.0.brand)
    }

    async fn ask_for_device(
        &self,
        request: LoginRequest<'_>,
        code: &UserCode,
        waiting: &Waiting,
    ) -> Result<Response<Bytes>, Failure> {
        let held = self.0.sessions.held_by(request.headers, request.origin).await?;
        let who = held.as_ref().map(|session| display_name(session));
        let choices = self.choices(request.headers, |issuer| format!("{PATH}?issuer={}", encode(issuer)));
        let page = pages::device(&DeviceView {
            host: host(request.origin),
            machine: &waiting.asker.machine,
            address: waiting.address,
            code: &code.0,
            who: who.as_deref(),
            choices: &choices,
            decline: &format!("{PATH}?decline"),
        });
        Ok(pages::html(StatusCode::OK, &page, &self.0.brand))
    }

    async fn decline(&self, code: &UserCode, waiting: Waiting, version: u64) -> Result<Response<Bytes>, Failure> {
        let declined = Waiting { decision: Decision::Declined, ..waiting };
        let kept = self.keep(&code.key(), &declined, declined.until, Expect::Version(version)).await;
        if let Written::Conflict(_) = kept.map_err(|error| store_failed(&error))? {
            let text = "Somebody decided in the same moment, perhaps you in another tab. If it was not you, end that session at \
                        `/.doorward/sessions`.";
            return Err(Failure::new(Outcome::replayed, text).titled(StatusCode::CONFLICT, "It is too late to decline"));
        }
        let why = "you declined; whoever runs it is told so, and nothing else";
        Ok(pages::html(StatusCode::OK, &pages::program_done(&ProgramDoneView { outcome: Err(why) }), &self.0.brand))
    }

    /// The program that waits for this code, and at this host.
    async fn waiting_for(&self, code: &UserCode, request: LoginRequest<'_>) -> Result<Option<(Waiting, u64)>, Failure> {
        let kept = self.kept::<Waiting>(&code.key()).await.map_err(|error| store_failed(&error))?;
        Ok(kept.filter(|(waiting, _)| {
            waiting.origin == request.origin.as_str() && matches!(waiting.decision, Decision::Open)
        }))
    }

    /// Keeps what a login found out for the program that waits, and tells the person to go back to it.
    pub(super) async fn let_in(
        &self,
        code: &UserCode,
        grant: impl FnOnce(&Asker) -> Grant,
    ) -> Result<Response<Bytes>, Failure> {
        let gone = || {
            Failure::new(
                Outcome::expired,
                "Your terminal does not wait any more. Run `doorward login --device` again, and type its new code.",
            )
        };
        let kept = self.kept::<Waiting>(&code.key()).await.map_err(|error| store_failed(&error))?;
        let (waiting, version) =
            kept.filter(|(waiting, _)| matches!(waiting.decision, Decision::Open)).ok_or_else(gone)?;
        let grant = grant(&waiting.asker);
        if grant.origin != waiting.origin {
            return Err(gone());
        }
        let allowed = Waiting { decision: Decision::Allowed(Box::new(grant)), ..waiting };
        match self.keep(&code.key(), &allowed, allowed.until, Expect::Version(version)).await {
            Ok(Written::Done(_)) => Ok(redirect(DONE)),
            Ok(Written::Conflict(_)) => Err(gone()),
            Err(error) => Err(store_failed(&error)),
        }
    }

    /// Where the browser ends up.
    pub(in super::super) fn device_done(&self) -> Response<Bytes> {
        pages::html(StatusCode::OK, &pages::device_done(), &self.0.brand)
    }

    /// Whether the person has decided, and if so, the session. A code that comes again after it gave one ends that one.
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
        let (mut waiting, version) = self.kept::<Waiting>(&key).await?.ok_or_else(unknown)?;
        if verify_slices_are_equal(&waiting.secret, &sha256(&[secret.as_bytes()])).is_err() {
            return Err(unknown());
        }
        if !waiting.asker.is_proven_by(verifier) {
            return Err(Refusal::grant("the code is bound to another program"));
        }
        if waiting.origin != bearer.origin.as_str() {
            return Err(Refusal::grant("the code is for another host"));
        }
        if self.0.devices.asks_too_soon(key, self.0.sessions.now()) {
            return Err(Refusal::wait("slow_down", "the program asks too often"));
        }
        let grant = match mem::replace(&mut waiting.decision, Decision::Used(None)) {
            Decision::Open => {
                return Err(Refusal::wait("authorization_pending", "nobody has typed the code and decided yet"));
            }
            Decision::Declined => return Err(Refusal::wait("access_denied", "the person declined")),
            Decision::Used(given) => {
                self.brought_twice(given).await?;
                return Err(Refusal::grant("the code was used before; what it gave has ended"));
            }
            Decision::Allowed(grant) => grant,
        };
        let version = match self.keep(&key, &waiting, waiting.until, Expect::Version(version)).await? {
            Written::Done(version) => version,
            Written::Conflict(_) => return Err(Refusal::grant("the code was used before")),
        };
        let (handle, session, given) = self.give(*grant, bearer).await?;
        waiting.decision = Decision::Used(Some(given));
        self.keep(&key, &waiting, waiting.until, Expect::Version(version)).await?;
        Ok((handle, session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_typed_as_people_type() {
        let code = UserCode::new();
        assert_eq!(UserCode::parse(&code.0), Some(code.clone()));
        for typed in ["bcdf-ghjk", "BCDFGHJK", " b c d f g h j k ", "BCDF--GHJK"] {
            assert_eq!(UserCode::parse(typed).map(|code| code.0).as_deref(), Some("BCDF-GHJK"), "{typed}");
        }
        for wrong in ["", "BCDF-GHJ", "BCDF-GHJKL", "BCDF-GHJA", "BCDF-GHJ1", "BCDF-GHJ\u{212a}", "BCDF_GHJK"] {
            assert_eq!(UserCode::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_program_that_asks_too_soon_is_to_wait() {
        let (devices, now) = (Devices::default(), Timestamp::from_secs(1_700_000_000));
        assert!(!devices.asks_too_soon([1; 32], now));
        assert!(devices.asks_too_soon([1; 32], now + MIN_INTERVAL / 2));
        assert!(!devices.asks_too_soon([2; 32], now));
        // It need not be silent to be heard again.
        assert!(!devices.asks_too_soon([1; 32], now + MIN_INTERVAL));
    }

    #[test]
    fn a_limit_is_for_one_network_and_for_all_and_passes() {
        let recent = Recent::new((2, 3));
        let now = Timestamp::from_secs(1_700_000_000);
        let [one, same, other, mapped, third]: [IpAddr; 5] =
            ["2001:db8::1", "2001:db8:0:0:ffff::1", "192.0.2.1", "::ffff:192.0.2.1", "198.51.100.1"]
                .map(|text| text.parse().unwrap());
        recent.note(one, now);
        assert!(!recent.is_full(same, now));
        recent.note(same, now);
        assert!(recent.is_full(one, now) && !recent.is_full(other, now));
        recent.note(other, now);
        assert!(recent.is_full(third, now), "as many as there may be");
        let later = now + LIFETIME;
        assert!(!recent.is_full(one, later));
        recent.note(other, later);
        recent.note(mapped, later);
        assert!(recent.is_full(other, later) && !recent.is_full(third, later));
    }
}
