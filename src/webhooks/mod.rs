//! Webhooks: identifies the sender, verifies that a delivery is genuine and new, and reads facts from its body.
//!
//! An EventListener answers 202 before it checks a signature, so only Doorward can answer 401. A delivery passes three
//! steps: [`Webhook::precheck`] reads its head before the body is polled, [`Webhook::verify`] checks the signature over
//! the raw bytes and then reads the facts, and [`Replay::reserve`] makes sure that it is new. Deliveries of a sender
//! that never retries are [held](hold) instead.
//!
//! | file | holds |
//! |---|---|
//! | `senders` | the table of senders, one file per vendor or for similar ones |
//! | `resolve`, `checks` | builds senders from the configuration; rejects settings that exclude each other |
//! | `precheck` | the head, before the body is polled |
//! | `signature`, `certificate`, `sns` | proof of origin: a secret, a client certificate, Amazon SNS |
//! | `media`, `document`, `facts` | the body: its type, a strict single-pass parser, and the facts |
//! | `replay` | forwards each delivery once |
//! | `hold` | stores deliveries and sends them later |
//! | `events` | which event of its EventListener a delivery became |
//! | `capabilities` | what the deliveries of a sender can contain, for checks of rules and of revocations |
//! | `metrics` | metrics of deliveries |
//! | `vectors`, `testing`, `fuzz` | for tests: deliveries of each sender, a store that fails on demand, the fuzz body |

mod capabilities;
mod certificate;
mod checks;
mod document;
mod events;
pub mod facts;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub mod hold;
mod media;
mod metrics;
mod precheck;
pub mod replay;
mod resolve;
mod senders;
mod signature;
mod sns;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tokio::runtime::Handle;

pub use self::{
    capabilities::{
        answered_events, has_bare_names, has_text_ids, known_events, loses, missing_facts, numbers_people,
        numbers_repositories, own_action, own_events, repository_ids, written_id, written_repository_id,
    },
    events::{Bound, EventId, Events, Named, TriedEvent},
    facts::Facts,
    media::check_json,
    metrics::WebhookMetrics,
    replay::{DeliveryKey, Replay, ReplayKeys, Reservation},
    resolve::{fill_defaults, identity, resolve_all},
    signature::github_signature,
};
use self::{
    certificate::Certificates,
    facts::Reader,
    senders::{Media, Sender},
    signature::{Form, Key, Presented, unproven},
    sns::Sns,
};
use crate::{
    authn::{CredentialId, Principal, Scheme, principal::check_name},
    clock::Timestamp,
    downstream::ClientCertificate,
    error::{Reason, Rejection},
    sha256::sha256,
};

/// How long recording an EventListener's answer may take, plus the clock difference between replicas in that time.
const NOTING: Duration = Duration::from_secs(20);

/// A sender of webhooks, as an entry of `webhooks` configures it.
#[derive(Debug)]
pub struct Webhook {
    name: Arc<str>,
    /// The name in identities.
    identity: Arc<str>,
    sender: &'static Sender,
    forms: Vec<Form>,
    secrets: Vec<Secret>,
    /// The scopes of the secrets, for replay keys.
    scopes: Box<[[u8; 32]]>,
    id_headers: Vec<HeaderName>,
    event_header: Option<HeaderName>,
    /// Other headers that name the event.
    event_twins: Vec<HeaderName>,
    allowed_headers: Vec<HeaderName>,
    tolerance: Duration,
    replay_window: Duration,
    redeliveries: u8,
    unique_bodies: bool,
    max_body: usize,
    answer_within: Duration,
    hold: Option<hold::Settings>,
    unsigned_pings: bool,
    certificates: Option<Certificates>,
    sns: Option<Sns>,
    facts: Reader,
}

/// How a delivery is accepted exactly once.
#[derive(Debug)]
pub enum Acceptance {
    /// Forwarded while the sender waits.
    Reserved {
        reservation: Reservation,
        /// See [`Delivery::is_form`].
        is_form: bool,
    },
    /// Stored first.
    Held(ReplayKeys, hold::Settings),
}

/// A secret and when it is accepted.
#[derive(Debug)]
struct Secret {
    key: Key,
    /// Identifies the secret in replay keys.
    scope: [u8; 32],
    period: Period,
}

/// When a secret is accepted.
#[derive(Clone, Copy, Debug, Default)]
struct Period {
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
}

/// A delivery whose head is plausible: how much of its body may be read, and what will be verified.
#[derive(Debug)]
pub struct Expected {
    /// The largest body, in bytes. More is [`Reason::BodyTooLarge`].
    pub max_body: usize,
    presented: Presented,
    media: Media,
    signs_body: bool,
    id: Option<Arc<str>>,
    event: Option<String>,
    /// The topic in the header of a message of SNS.
    topic: Option<HeaderValue>,
}

/// A genuine delivery.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub facts: Arc<Facts>,
    /// The index of the configured secret that proved it.
    pub secret_index: usize,
    /// A test of the hook by the sender: answered with 200, not forwarded.
    pub ping: bool,
    /// The value that the sender expects in the answer to its ping.
    pub challenge: Option<Arc<str>>,
    /// A form of Slack, for which a person waits: only a 200 means accepted, and the body of the answer is shown to
    /// them.
    pub is_form: bool,
    pub replay: ReplayKeys,
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
    /// The expiry of the secret that proved it.
    expires: Timestamp,
}

/// Why a delivery is refused, and what is known about it if it is genuine all the same.
#[derive(Debug)]
pub struct Refused {
    pub rejection: Rejection,
    pub genuine: Option<Genuine>,
}

/// A delivery that is proven but cannot be read.
#[derive(Debug)]
pub struct Genuine {
    /// Only the facts known from the configuration and the head.
    pub facts: Arc<Facts>,
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
}

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, genuine: None }
    }
}

impl Webhook {
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How long an answer may take, counted from the arrival of the delivery. The sender gives up soon afterwards.
    pub fn answer_within(&self) -> Duration {
        self.answer_within
    }

    /// How long a delivery may be in flight before the sender's next attempt counts as new. If replicas share the store
    /// and the one that forwarded it is killed, the sender gets 503 until then, and some senders try only twice.
    pub fn lease(&self) -> Duration {
        self.answer_within + NOTING
    }

    /// How long a duplicate is recognized: at least as long as the delivery is tried, as the EventListener would accept
    /// both, and longer than its signature is valid, which counts in whole seconds and by the clock of each replica.
    fn remembered_for(&self) -> Duration {
        let valid = if self.sns.is_some() { sns::GOOD_FOR } else { self.tolerance * 2 };
        let tried = self.hold.map_or(Duration::ZERO, |settings| settings.span);
        self.replay_window.max(tried).max(valid + NOTING)
    }

    /// Takes over what the same entry of the previous configuration has fetched.
    pub fn keep_fetched_of(&self, before: &Self) {
        if let (Some(sns), Some(before)) = (&self.sns, &before.sns) {
            sns.keep_certificates_of(before);
        }
    }

    /// The settings for holding deliveries, if they are held.
    pub fn hold(&self) -> Option<hold::Settings> {
        self.hold
    }

    /// The request headers that are forwarded to an EventListener. The others are dropped: credentials, and unsigned
    /// headers that would change the meaning of the delivery.
    pub fn allowed_headers(&self) -> &[HeaderName] {
        &self.allowed_headers
    }

    /// Refuses a connection without one of the sender's client certificates, if one is required.
    pub fn check_certificate(&self, presented: Option<&ClientCertificate>) -> Result<(), Rejection> {
        match &self.certificates {
            Some(certificates) if !certificates.admits(presented) => {
                Err(unproven(Reason::CredentialMissing, "the connection has no client certificate of this sender"))
            }
            _ => Ok(()),
        }
    }

    /// Runs [`Webhook::verify`], or its equivalent for SNS, which may have to fetch a certificate on `control`; a
    /// failed fetch is 503. `client` is the address that sent the delivery, if it identifies a single client.
    pub async fn prove(
        &self,
        expected: Expected,
        body: &Bytes,
        client: Option<IpAddr>,
        control: &Handle,
        now: Timestamp,
    ) -> Result<Delivery, Refused> {
        match &self.sns {
            None => self.verify(expected, body, now),
            Some(sns) => Box::pin(self.verify_message(sns, expected, body, client, control, now)).await,
        }
    }

    /// Verifies the signature over `body`, byte for byte, and reads the facts. Refuses with 413 or 401. For a body that
    /// cannot be read although the caller knows the secret, refuses with 400, or with 200 for a sender that counts
    /// refusals.
    pub fn verify(&self, expected: Expected, body: &Bytes, now: Timestamp) -> Result<Delivery, Refused> {
        if body.len() > self.max_body {
            return Err(self.too_large().into());
        }
        let (secret_index, secret) = self
            .secrets
            .iter()
            .enumerate()
            .filter(|(_, secret)| secret.period.includes(now))
            .find(|(_, secret)| expected.presented.verify(&secret.key, body))
            .ok_or_else(|| unproven(Reason::SignatureInvalid, NO_SECRET))?;
        self.check_time(expected.presented.signed_at, now)?;

        let body_sha256 = sha256(&[body]);
        let unreadable = |error| self.unreadable(&error, expected.id.clone(), body_sha256);
        let values = self.facts.values(expected.media, body).map_err(unreadable)?;
        // Before the facts: otherwise a replay of an old delivery under another event would reveal that the secret is
        // still valid.
        self.check_date(self.facts.date(&values).map_err(unreadable)?, now)?;
        let read = self.facts.read(expected.media, &values, expected.event.as_deref()).map_err(unreadable)?;
        let id = expected.id.or(read.delivery).unwrap_or_else(|| replay::body_id(&body_sha256));
        let has_unique_body = self.unique_bodies || !self.sender.bodies.may_repeat(&read.facts);
        let signed = (expected.signs_body && expected.presented.signed_id.is_none() && has_unique_body)
            .then(|| sha256(&[expected.presented.before().as_bytes(), &body_sha256]));
        let facts = Facts {
            webhook: Arc::clone(&self.name),
            sender_kind: Arc::clone(&self.identity),
            delivery: Arc::clone(&id),
            ..read.facts
        };
        Ok(Delivery {
            ping: facts.event.as_deref().is_some_and(|event| self.sender.pings.contains(&event)),
            challenge: read.challenge,
            is_form: expected.media == Media::Form,
            facts: Arc::new(facts),
            secret_index,
            // Of all secrets, as a sender that signs with two, or again with the next, sends the same delivery.
            replay: ReplayKeys::new(&self.scopes, &id, signed.as_ref(), self.remembered_for())
                .redeliveries(self.redeliveries, self.sender.redelivers_anew),
            body_sha256,
            expires: secret.period.not_after.unwrap_or(Timestamp::MAX),
        })
    }

    /// Why a header is never forwarded to the EventListener, even if it is listed in `pass_headers`: it is the secret,
    /// or it is not signed and would change how the body is interpreted.
    pub fn never_passes(&self, name: &HeaderName) -> Option<&'static str> {
        let is_secret = self.forms.iter().any(|form| matches!(form, Form::Token { header, .. } if header == name));
        if is_secret { Some(A_SECRET) } else { passes_from_nobody(name) }
    }

    /// Whether a secret is in the query, which then must not be forwarded.
    pub fn has_secret_in_query(&self) -> bool {
        self.forms.iter().any(|form| matches!(form, Form::Query(_)))
    }

    /// Adapts the status of a refusal for the sender of a proven delivery. A decision of the policy is 403 for any
    /// reason, since 401 means that nothing was proven. For a sender that counts 4xx as failures and would disable a
    /// hook whose other deliveries are wanted, it is 200.
    pub fn heard(&self, rejection: Rejection) -> Rejection {
        match (rejection.reason().is_decision(), self.sender.counts_refusals) {
            (true, true) => rejection.with_status(StatusCode::OK),
            (true, false) => rejection.with_status(StatusCode::FORBIDDEN),
            (false, _) => rejection,
        }
    }

    /// Refuses a proven delivery that cannot be read, with 200 for a sender that counts 4xx: anybody who may push
    /// chooses branch names, and could otherwise make it disable the hook for everybody. `id` is that of the head.
    fn unreadable(&self, error: &facts::NoFacts, id: Option<Arc<str>>, body_sha256: [u8; 32]) -> Refused {
        let detail = format!("the delivery is genuine but cannot be read: {error}");
        let rejection = Rejection::new(Reason::BadRequest, detail);
        let facts = Facts {
            webhook: Arc::clone(&self.name),
            sender_kind: Arc::clone(&self.identity),
            delivery: id.unwrap_or_else(|| replay::body_id(&body_sha256)),
            ..Facts::default()
        };
        Refused {
            rejection: if self.sender.counts_refusals { rejection.with_status(StatusCode::OK) } else { rejection },
            genuine: Some(Genuine { facts: Arc::new(facts), body_sha256 }),
        }
    }

    /// The identity of a delivery's sender: `webhook:github:repo:1234`, or `webhook:github:hook:NAME` if the body names
    /// no repository. It is an agent, since nothing says whether a person, a bot or a pod caused the delivery.
    pub fn principal(&self, delivery: &Delivery) -> Result<Principal, Rejection> {
        principal(&delivery.facts, delivery.expires)
    }

    /// The SNS topics whose messages are accepted.
    pub fn topics(&self) -> &[Arc<str>] {
        self.sns.as_ref().map_or(&[], Sns::topics)
    }

    /// Whether the two have a secret in common, so that a delivery for one would be genuine for the other.
    pub fn shares_secret_with(&self, other: &Self) -> bool {
        self.scopes.iter().any(|scope| other.scopes.contains(scope))
    }

    /// Checks the time of signing in whole seconds; a signature as old as the tolerance is still valid. The reason does
    /// not reveal to somebody who replays an old delivery that the secret is still valid.
    fn check_time(&self, signed_at: Option<Timestamp>, now: Timestamp) -> Result<(), Rejection> {
        let Some(signed_at) = signed_at else { return Ok(()) };
        let age = now.as_secs().saturating_sub(signed_at.as_secs());
        if age.unsigned_abs() <= self.tolerance.as_secs() {
            return Ok(());
        }
        Err(unproven(Reason::SignatureInvalid, "the time of signing differs too much from the current time"))
    }

    /// Checks that the time in a signed body is within the time for which deliveries are remembered, so that none is
    /// new again once it is forgotten: neither one whose time was ahead when it was accepted, nor by the clock of
    /// another replica.
    fn check_date(&self, date: Option<Timestamp>, now: Timestamp) -> Result<(), Rejection> {
        let Some(date) = date else { return Ok(()) };
        if now.since(date) > self.replay_window.saturating_sub(self.tolerance + NOTING) {
            return Err(unproven(Reason::SignatureInvalid, "the body is older than deliveries are remembered"));
        }
        match date.since(now) > self.tolerance {
            true => Err(unproven(Reason::SignatureInvalid, "the date in the body is in the future")),
            false => Ok(()),
        }
    }

    fn too_large(&self) -> Rejection {
        Rejection::new(Reason::BodyTooLarge, format!("a delivery may have {} bytes at most", self.max_body))
            .fix("to accept it, raise `max_body` of the entry in `webhooks`, and of the route if that has one")
    }
}

/// The prefix of the names and the issuers of webhook senders.
pub const PREFIX: &str = "webhook:";

/// The issuer of the principal of a webhook's deliveries.
pub fn issuer(webhook: &str) -> String {
    format!("{PREFIX}{webhook}")
}

/// The webhook whose deliveries have this issuer, or `None` for other issuers.
pub fn of_issuer(issuer: &str) -> Option<&str> {
    issuer.strip_prefix(PREFIX)
}

/// The subject of the deliveries of one repository. The numbers of repositories are unique within an identity.
pub fn subject_of_repository(identity: &str, number: &str) -> String {
    format!("{PREFIX}{identity}:repo:{number}")
}

/// The subject of the deliveries of a webhook that name no repository.
pub fn subject_of_hook(identity: &str, webhook: &str) -> String {
    format!("{PREFIX}{identity}:hook:{webhook}")
}

/// See [`Webhook::principal`].
pub fn principal(facts: &Arc<Facts>, expires: Timestamp) -> Result<Principal, Rejection> {
    let Facts { webhook, sender_kind, repository_id, delivery, .. } = &**facts;
    let name: Arc<str> = match repository_id {
        Some(id) => subject_of_repository(sender_kind, id).into(),
        None => subject_of_hook(sender_kind, webhook).into(),
    };
    check_name(&name).map_err(|error| {
        Rejection::new(Reason::IdentityRefused, format!("the name of this delivery's identity {error}"))
    })?;
    Ok(Principal {
        credential: CredentialId::Delivery(Arc::clone(delivery)),
        expires,
        delivery: Some(Arc::clone(facts)),
        ..Principal::new(Scheme::Webhook, issuer(webhook), Arc::clone(&name), name)
    })
}

/// The cause of the refusal of a wrong signature, for the log only.
const NO_SECRET: &str = "no active secret made the signature";

const A_SECRET: &str = "it is the secret of the sender";

/// Why a header is never forwarded to an EventListener, whoever sent it: it is a secret, or would change how the body
/// is interpreted.
fn passes_from_nobody(name: &HeaderName) -> Option<&'static str> {
    if *name == "x-gitlab-token" {
        return Some(A_SECRET);
    }
    let changes = name.as_str().starts_with("ce-") || *name == "x-github-enterprise-host";
    changes.then_some("it is not signed, and Tekton's interceptors trust it")
}

impl Period {
    fn includes(self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= now) && !self.has_ended(now)
    }

    fn has_ended(self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|until| until <= now)
    }
}
