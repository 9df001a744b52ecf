//! Webhooks: which sender, whether the delivery is genuine and new, and what its body tells.
//!
//! An EventListener answers 202 before it looks at a signature, so this is the only place that can say 401. A delivery
//! passes three steps: [`Webhook::precheck`] reads its head, before the body is polled; [`Webhook::verify`] checks the
//! signature over the raw bytes and then reads facts out of them; [`Replay::reserve`] makes sure that it is new. A sender
//! that never tries again has its deliveries [held](hold) instead.
//!
//! | file | holds |
//! |---|---|
//! | `senders` | the table of senders, one file a maker |
//! | `resolve`, `checks` | from the configuration to senders that verify, and which settings do not go together |
//! | `precheck` | the head, before the body is polled |
//! | `signature`, `certificate`, `sns` | proof of who sent it: a secret, a client certificate, Amazon SNS |
//! | `media`, `document`, `facts` | the body: its type, read once and strictly, and what it tells about its cause |
//! | `replay` | each delivery is forwarded once |
//! | `hold` | deliveries that are stored and brought later |
//! | `events` | which event of its EventListener a delivery became |
//! | `told` | what deliveries can tell, for who checks rules |
//! | `metrics` | what deliveries count |

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
mod told;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use tokio::runtime::Handle;

use self::{
    certificate::Certificates,
    facts::Reader,
    senders::{Media, Sender},
    signature::{Form, Key, Presented, unproven},
    sns::Sns,
};
pub use self::{
    events::{Bound, EventId, Events, Named, TriedEvent},
    facts::Facts,
    media::check_json,
    metrics::WebhookMetrics,
    replay::{Once, Replay, ReplayKeys, Reservation},
    resolve::{fill_defaults, identity, resolve_all},
    signature::github_signature,
    told::{
        answered_events, has_bare_names, has_known_ids, has_text_ids, known_events, loses, numbers_people,
        numbers_repositories, own_action,
    },
};
use crate::{
    authn::{CredentialId, Principal, Scheme, principal::check_name},
    clock::Timestamp,
    downstream::ClientCertificate,
    error::{Reason, Rejection},
    sha256::sha256,
};

/// How long it may take to note what an EventListener said of a delivery, and how far the clocks of replicas differ meanwhile.
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
    /// Those of the secrets, for replay keys.
    scopes: Box<[[u8; 32]]>,
    id_headers: Vec<HeaderName>,
    event_header: Option<HeaderName>,
    /// Others that name the event.
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

/// What makes sure that a delivery is taken once.
#[derive(Debug)]
pub enum Taking {
    /// It is forwarded while the sender waits.
    Reserved {
        reservation: Reservation,
        /// See [`Delivery::is_form`].
        is_form: bool,
    },
    /// It is stored first.
    Held(ReplayKeys, hold::Settings),
}

/// A secret and the time in which it is accepted.
#[derive(Debug)]
struct Secret {
    key: Key,
    /// Stands for the secret in replay keys.
    scope: [u8; 32],
    not_before: Option<Timestamp>,
    not_after: Option<Timestamp>,
}

/// A delivery whose head is plausible: how much body may be read for it, and what will be verified.
#[derive(Debug)]
pub struct Expected {
    /// The largest body, in bytes. More is [`Reason::BodyTooLarge`].
    pub max_body: usize,
    presented: Presented,
    media: Media,
    signs_body: bool,
    id: Option<Arc<str>>,
    event: Option<String>,
}

/// A genuine delivery.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub facts: Arc<Facts>,
    /// Which of the configured secrets proved it, counted from 0.
    pub secret_index: usize,
    /// The sender only tries its hook: answered with 200, not forwarded.
    pub ping: bool,
    /// What the sender wants to read in the answer to its ping.
    pub challenge: Option<Arc<str>>,
    /// Slack's, by which somebody waits: to it 200 alone says that it was taken, and what comes with that is shown to them.
    pub is_form: bool,
    pub replay: ReplayKeys,
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
    /// When the secret that proved it ends.
    expires: Timestamp,
}

/// Why a delivery is refused, and what is known of one that is genuine all the same.
#[derive(Debug)]
pub struct Refused {
    pub rejection: Rejection,
    pub genuine: Option<Genuine>,
}

/// A delivery that is proven and cannot be read: whose it is, and which.
#[derive(Debug)]
pub struct Genuine {
    /// None but those that the configuration and the head give.
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

    /// How long an answer may take, from the arrival of the delivery. The sender gives up soon afterwards.
    pub fn answer_within(&self) -> Duration {
        self.answer_within
    }

    /// How long a delivery may be under way before the next try of its sender counts as new. Where replicas share the store, the
    /// sender hears 503 until then after the one that forwarded it was killed, and some senders try twice in all.
    pub fn lease(&self) -> Duration {
        self.answer_within + NOTING
    }

    /// For how long a delivery is known when it comes again: while it is tried at least, as the EventListener would take both.
    fn remembered_for(&self) -> Duration {
        self.hold.map_or(self.replay_window, |settings| settings.span.max(self.replay_window))
    }

    /// Takes over what the same entry of the generation before has fetched.
    pub fn keep_fetched_of(&self, before: &Self) {
        if let (Some(sns), Some(before)) = (&self.sns, &before.sns) {
            sns.keep_certificates_of(before);
        }
    }

    /// How deliveries are held, if they are.
    pub fn hold(&self) -> Option<hold::Settings> {
        self.hold
    }

    /// The request headers that an EventListener gets. Everything else stays here: credentials, and headers that no
    /// signature covers and that would change what the delivery means.
    pub fn allowed_headers(&self) -> &[HeaderName] {
        &self.allowed_headers
    }

    /// Refuses a connection whose client certificate is none of the sender's, where it must have one.
    pub fn check_certificate(&self, presented: Option<&ClientCertificate>) -> Result<(), Rejection> {
        match &self.certificates {
            Some(certificates) if !certificates.admits(presented) => {
                Err(unproven(Reason::CredentialMissing, "the connection has no client certificate of this sender"))
            }
            _ => Ok(()),
        }
    }

    /// [`Webhook::verify`], or for SNS what takes its place and may have to ask others on `control`, whose trouble is 503. `client` is who
    /// brings the delivery, where that is one client alone.
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

    /// Verifies the signature over `body`, as it came, and reads the facts. Refuses with 413, 401, and for the body of
    /// somebody who knows the secret with 400, or what the sender hears instead.
    pub fn verify(&self, expected: Expected, body: &Bytes, now: Timestamp) -> Result<Delivery, Refused> {
        if body.len() > self.max_body {
            return Err(self.too_large().into());
        }
        let (secret_index, secret) = self
            .secrets
            .iter()
            .enumerate()
            .filter(|(_, secret)| secret.is_active(now))
            .find(|(_, secret)| expected.presented.verify(&secret.key, body))
            .ok_or_else(|| unproven(Reason::SignatureInvalid, NO_SECRET))?;
        self.check_time(expected.presented.signed_at, now)?;

        let body_sha256 = sha256(&[body]);
        let unreadable = |error| self.unreadable(&error, expected.id.clone(), body_sha256);
        let values = self.facts.values(expected.media, body).map_err(unreadable)?;
        // First: who sends an old one again under another event would hear that the secret is still good.
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
            // Of all secrets, as a sender that signs with two, or anew with the next, sends the same delivery.
            replay: ReplayKeys::new(&self.scopes, &id, signed.as_ref(), self.remembered_for())
                .redeliveries(self.redeliveries, self.sender.redelivers_anew),
            body_sha256,
            expires: secret.not_after.unwrap_or(Timestamp::MAX),
        })
    }

    /// Why a header must not go on to the EventListener, whatever else passes: it is the secret, or it is not signed and would change
    /// what the body is taken for.
    pub fn never_passes(&self, name: &HeaderName) -> Option<&'static str> {
        let is_secret = self.forms.iter().any(|form| matches!(form, Form::Token { header, .. } if header == name));
        if is_secret { Some(A_SECRET) } else { passes_from_nobody(name) }
    }

    /// Whether a secret stands in the query, which then must not go on.
    pub fn has_secret_in_query(&self) -> bool {
        self.forms.iter().any(|form| matches!(form, Form::Query(_)))
    }

    /// What the sender of a proven delivery hears of its refusal. A decision of ours is 403 whatever it is about, since 401 says that
    /// nothing was proven; where the sender would count that as a failure of its hook, and switch off one whose other deliveries are
    /// wanted, it is 200.
    pub fn heard(&self, rejection: Rejection) -> Rejection {
        match (rejection.reason().is_decision(), self.sender.counts_refusals) {
            (true, true) => rejection.with_status(StatusCode::OK),
            (true, false) => rejection.with_status(StatusCode::FORBIDDEN),
            (false, _) => rejection,
        }
    }

    /// A proven delivery that says what nobody can read. Whoever may push names branches, and so could make a sender that counts 4xx
    /// switch off a hook for everybody: it hears 200. `id` is that of the head.
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

    /// Who a delivery comes from: `webhook:github:repo:1234`, or `webhook:github:hook:NAME` if the body names no
    /// repository. An agent, since nothing tells whether a person, a bot or a pod caused it.
    pub fn principal(&self, delivery: &Delivery) -> Result<Principal, Rejection> {
        principal(&delivery.facts, delivery.expires)
    }

    /// The topics of SNS that it takes messages of.
    pub fn topics(&self) -> &[Arc<str>] {
        self.sns.as_ref().map_or(&[], Sns::topics)
    }

    /// Whether some secret is configured here and there, so that a delivery for one would be genuine for the other.
    pub fn shares_secret_with(&self, other: &Self) -> bool {
        self.scopes.iter().any(|scope| other.scopes.contains(scope))
    }

    /// In whole seconds: a signature as old as the tolerance is the last that is good. Who sends an old one again does not hear from its
    /// reason that the secret is still good.
    fn check_time(&self, signed_at: Option<Timestamp>, now: Timestamp) -> Result<(), Rejection> {
        let Some(signed_at) = signed_at else { return Ok(()) };
        let age = now.as_secs().saturating_sub(signed_at.as_secs());
        if age.unsigned_abs() <= self.tolerance.as_secs() {
            return Ok(());
        }
        Err(unproven(Reason::SignatureInvalid, "the time of signing is too far from ours"))
    }

    /// The time that a signed body tells is within what is remembered of deliveries, so that none is new again once it is
    /// forgotten: neither one whose time was ahead when it was taken, nor by the clock of another replica.
    fn check_date(&self, date: Option<Timestamp>, now: Timestamp) -> Result<(), Rejection> {
        let Some(date) = date else { return Ok(()) };
        if now.since(date) > self.replay_window.saturating_sub(self.tolerance + NOTING) {
            return Err(unproven(Reason::SignatureInvalid, "the body is older than deliveries are remembered"));
        }
        match date.since(now) > self.tolerance {
            true => Err(unproven(Reason::SignatureInvalid, "the body is of a time that has not come")),
            false => Ok(()),
        }
    }

    fn too_large(&self) -> Rejection {
        Rejection::new(Reason::BodyTooLarge, format!("a delivery may have {} bytes at most", self.max_body))
            .fix("if it is one that is wanted, raise `max_body` of the entry in `webhooks`, and of the route if that has one")
    }
}

/// What the names begin with of those who sent deliveries, and of their issuers.
pub const PREFIX: &str = "webhook:";

/// The issuer of whoever sent a delivery of this webhook.
pub fn issuer(webhook: &str) -> String {
    format!("{PREFIX}{webhook}")
}

/// The webhook whose deliveries have this issuer; none of any other issuer.
pub fn of_issuer(issuer: &str) -> Option<&str> {
    issuer.strip_prefix(PREFIX)
}

/// See [`Webhook::principal`].
pub fn principal(facts: &Arc<Facts>, expires: Timestamp) -> Result<Principal, Rejection> {
    let Facts { webhook, sender_kind, repository_id, delivery, .. } = &**facts;
    let name: Arc<str> = match repository_id {
        Some(id) => format!("{PREFIX}{sender_kind}:repo:{id}").into(),
        None => format!("{PREFIX}{sender_kind}:hook:{webhook}").into(),
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

/// The cause where the signature itself is wrong, which the record tells and the answer does not.
const NO_SECRET: &str = "no active secret made the signature";

const A_SECRET: &str = "it is the secret of the sender";

/// Why a header goes on to no EventListener, whoever sends it: it is a secret, or would change what the body is taken for.
fn passes_from_nobody(name: &HeaderName) -> Option<&'static str> {
    if *name == "x-gitlab-token" {
        return Some(A_SECRET);
    }
    let changes = name.as_str().starts_with("ce-") || *name == "x-github-enterprise-host";
    changes.then_some("it is not signed, and interceptors of Tekton believe it")
}

impl Secret {
    fn is_active(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= now) && !self.has_ended(now)
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|until| until <= now)
    }
}
