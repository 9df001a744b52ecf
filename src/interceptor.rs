//! The Tekton ClusterInterceptor: an EventListener asks here whether a Trigger may continue. The answer is yes only if
//! the request came through Doorward. It then contains the identity of the sender, for TriggerBindings
//! (`extensions.doorward`).
//!
//! The contract: <https://tekton.dev/docs/triggers/interceptors/>. Anybody who reaches the address may ask, so the
//! answer contains only what is in the assertion of the call. An EventListener calls once per Trigger, with one
//! `event_id`; only the first `event_id` of a delivery continues for that Trigger ([`crate::webhooks::EventId`]).

mod question;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, Response, header};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::question::Question;
use crate::{
    app::App,
    assertions::Claims,
    audit,
    authz::Trigger,
    body::ClientBody,
    clock::Timestamp,
    config::raw::Effect,
    error::{Reason, Rejection},
    request::{exchange::Exchange, sanitize::CleanRequest},
    sha256::sha256,
    snapshot::Snapshot,
    tekton::TriggerReader,
    upstream::{
        Pools,
        buffered::{self, BufferLimits, Share},
    },
    webhooks::{Bound, EventId, Named, TriedEvent},
};

/// The largest call: a body of 26 MiB as text within JSON.
const MAX_QUESTION: usize = 64 << 20;

/// How long a call waits for the EventListener's answer, and for the store. An EventListener gives an interceptor three
/// seconds.
const DISPUTE: Duration = Duration::from_secs(2);

/// The longest id of a Trigger, which consists of a namespace and a name, and the longest part of it that is logged.
const MAX_NAME: usize = 320;

/// Codes of `google.rpc.Code`, as Tekton's own interceptors use them.
const INVALID_ARGUMENT: u8 = 3;
const ALREADY_EXISTS: u8 = 6;
const PERMISSION_DENIED: u8 = 7;
const UNAUTHENTICATED: u8 = 16;

/// Why a Trigger must not continue.
#[derive(Debug)]
struct Denial(Reason, String);

impl Denial {
    /// The code for the EventListener.
    fn code(&self) -> u8 {
        match self.0 {
            Reason::BadRequest => INVALID_ARGUMENT,
            Reason::ReplayedDelivery => ALREADY_EXISTS,
            Reason::PolicyDenied | Reason::NoRuleMatched => PERMISSION_DENIED,
            _ => UNAUTHENTICATED,
        }
    }
}

/// Why a call is not answered with yes.
#[derive(Debug)]
enum Stop {
    Denied(Denial),
    Failed(Rejection),
}

impl From<Denial> for Stop {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Self::Failed(rejection)
    }
}

/// Answers a call to the interceptor's own host.
pub async fn answer(
    app: &App,
    pools: &Pools,
    snapshot: &Snapshot,
    request: CleanRequest<ClientBody>,
    exchange: &mut Exchange,
) -> Result<Response<Bytes>, Rejection> {
    exchange.record().endpoint = Some("interceptor");
    if request.method() != Method::POST {
        return Err(Rejection::method_not_allowed("POST", "an interceptor is called with POST"));
    }
    // Anybody who reaches the address may ask; what proves that the caller is an EventListener is in the body.
    let share = Share::Question(request.meta().client_network());
    let (_, body) = request.take_body();
    let limits = BufferLimits::whole(&snapshot.limits, MAX_QUESTION);
    let body = buffered::read(body, limits, &app.budget, share).await?;
    exchange.record().note_body(&body);
    let question = Question::read(&body).map_err(|error| {
        Rejection::new(Reason::BadRequest, format!("this is not a call of an EventListener: {error}"))
    })?;
    let decision = match decide(app, pools, snapshot, &question, exchange.record()).await {
        Ok(claims) => json!({"continue": true, "extensions": {"doorward": extension(&claims)}}),
        Err(Stop::Failed(rejection)) => return Err(rejection),
        Err(Stop::Denied(denial)) => {
            // Limited, as anybody who reaches the address may ask.
            let name = |text: &str| text.chars().take(MAX_NAME).collect::<String>();
            let why = name(&denial.1);
            tracing::warn!(
                trigger = name(&question.context.trigger_id),
                event = name(&question.context.event_id),
                why,
                "a trigger was stopped"
            );
            app.metrics.webhooks.stopped.inc();
            // It may end with a name, which whoever asks chooses.
            exchange.record().refuse(&Rejection::new(denial.0, why.trim_end_matches('.').to_owned()));
            json!({"continue": false, "status": {"code": denial.code(), "message": denial.1}})
        }
    };
    let mut response = Response::new(Bytes::from(decision.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn decide(
    app: &App,
    pools: &Pools,
    snapshot: &Snapshot,
    question: &Question<'_>,
    record: &mut audit::Record,
) -> Result<Claims, Stop> {
    let claims = check(snapshot, question, app, record)?;
    let patience = Patience::begin();
    let trigger = &question.context.trigger_id;
    check_trigger(pools, snapshot, &claims, trigger, &patience, record).await?;
    if trigger.len() > MAX_NAME || !trigger.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Denial(Reason::BadRequest, "the trigger id is not that of a Trigger".to_owned()).into());
    }
    let Some(event) = EventId::parse(&question.context.event_id) else {
        return Err(Denial(Reason::BadRequest, "the event id could not be a label of a run".to_owned()).into());
    };
    let named = TriedEvent { event, attempt: claims.jti.clone().into() };
    let delivery = Named { once: claims.once.as_str().into(), until: claims.once_until.map(Timestamp::from_secs) };
    // If two events are named in one attempt, the EventListener's answer to Doorward decides. It arrives within
    // milliseconds of the call, before or after it. A retry also finds a binding whose write the store did not confirm.
    let bind = || app.replay.bind_event(&delivery, trigger, &named, app.clock.now());
    match patience.until(bind, |bound| !matches!(bound, Bound::Disputed(_))).await? {
        Bound::Ours => Ok(claims),
        Bound::Unnoted => {
            tracing::error!(%trigger, event = %named.event, "the interceptor was asked about too many Triggers for a delivery; this one may create any number of runs, for other events and in other attempts");
            app.metrics.webhooks.unnoted.inc();
            Ok(claims)
        }
        Bound::Others(bound) => Err(is_event_already(&bound).into()),
        Bound::Disputed(bound) => {
            tracing::error!(%trigger, event = %named.event, other = %bound, "several events were named for a delivery in one attempt, and it was not known in time which is its EventListener's, so its run may be missing; only replicas that share a store learn the EventListener's answer");
            app.metrics.webhooks.disputed.inc();
            Err(is_event_already(&bound).into())
        }
    }
}

fn is_event_already(bound: &EventId) -> Denial {
    let message = format!("this delivery is already event {bound}; it arrived twice, or a copy bypassed Doorward");
    Denial(Reason::ReplayedDelivery, message)
}

/// Retries for [`DISPUTE`] in total while the store or the API server has trouble: an EventListener calls only once,
/// and a Trigger that is bound to an event after the EventListener gave up creates no run for any event.
struct Patience {
    deadline: Instant,
}

impl Patience {
    fn begin() -> Self {
        Self { deadline: Instant::now() + DISPUTE }
    }

    /// Repeats `asked` until the answer is final: `is_final`, or a refusal. Of consecutive errors the last but one is
    /// returned, since the last may only mean that the deadline cut it.
    async fn until<T, F>(&self, asked: impl Fn() -> F, is_final: impl Fn(&T) -> bool) -> Result<T, Rejection>
    where
        F: Future<Output = Result<T, Rejection>>,
    {
        let mut trouble = None;
        loop {
            let answer = asked().await;
            let stays = match &answer {
                Ok(answer) => is_final(answer),
                Err(rejection) => !rejection.status().is_server_error(),
            };
            let next = Instant::now() + DISPUTE / 20;
            if stays {
                return answer;
            }
            if next >= self.deadline {
                return answer.map_err(|rejection| trouble.unwrap_or(rejection));
            }
            trouble = answer.err();
            tokio::time::sleep_until(next).await;
        }
    }
}

/// Reads the account of a Trigger, with retries while the API server is unavailable.
async fn service_account(
    reader: &TriggerReader<'_>,
    trigger: (&str, &str),
    listener: (&str, &str),
    patience: &Patience,
) -> Result<Option<String>, Rejection> {
    let slow = |_| Rejection::new(Reason::UpstreamTimeout, "the API server did not return a Trigger's account in time");
    let asked = || {
        let account = tokio::time::timeout_at(patience.deadline, reader.service_account(trigger, listener));
        account.map(|account| account.map_err(slow).flatten())
    };
    patience.until(asked, |_| true).await
}

/// Checks all that needs no store: the assertion, its audience, and the body. The request id of a valid assertion is
/// recorded.
fn check(
    snapshot: &Snapshot,
    question: &Question<'_>,
    app: &App,
    record: &mut audit::Record,
) -> Result<Claims, Denial> {
    if question.assertions.are_several() {
        let message = "the request has more than one assertion, but Doorward sends only one";
        return Err(Denial(Reason::CredentialMalformed, message.to_owned()));
    }
    let Some(token) = question.assertions.only() else {
        let message = "the request has no assertion, so it bypassed Doorward";
        return Err(Denial(Reason::CredentialMissing, message.to_owned()));
    };
    let claims = snapshot
        .assertions
        .verify(token, app.clock.now())
        .map_err(|error| Denial(Reason::TokenInvalid, format!("the assertion is not valid: {error}")))?;
    record.about = claims.jti.parse().ok();
    let body = question.body().map_err(|error| Denial(Reason::BadRequest, format!("the body is not text: {error}")))?;
    if claims.body_sha256 != HEXLOWER.encode(&sha256(&[body.as_bytes()])) {
        return Err(Denial(Reason::SignatureInvalid, "the assertion is for another body".to_owned()));
    }
    check_audience(&claims, question)?;
    Ok(claims)
}

/// Checks the audience. The Trigger's parameter `event_listener` names the EventListener (`namespace/name`). Without
/// it, the EventListener has to be in the Trigger's own namespace. Unknown parameters are refused, as a misspelt
/// `event_listener` would admit all EventListeners of that namespace.
fn check_audience(claims: &Claims, question: &Question<'_>) -> Result<(), Denial> {
    if question.has_unknown_params() {
        let why = "the Trigger gives this interceptor a parameter that it does not have; it has `event_listener` only";
        return Err(Denial(Reason::BadRequest, why.to_owned()));
    }
    let listener = question
        .event_listener()
        .map_err(|_| Denial(Reason::BadRequest, "the parameter `event_listener` is not text".to_owned()))?;
    match listener {
        Some(listener) if *listener == *claims.aud => Ok(()),
        Some(listener) => {
            Err(Denial(Reason::AudienceMismatch, format!("the assertion is for {}, not for {listener}", claims.aud)))
        }
        None => {
            let namespace =
                question.context.trigger_id.strip_prefix("namespaces/").and_then(|rest| rest.split('/').next());
            let of_listener = claims.aud.split_once('/').map(|(namespace, _)| namespace);
            match (namespace, of_listener) {
                (Some(trigger), Some(listener)) if trigger == listener => Ok(()),
                _ => Err(Denial(
                    Reason::AudienceMismatch,
                    format!("the assertion is for {}; set the Trigger's parameter `event_listener` to it", claims.aud),
                )),
            }
        }
    }
}

/// Checks that the rules that allowed the delivery also allow it to activate this Trigger. Their decision is recorded.
async fn check_trigger(
    pools: &Pools,
    snapshot: &Snapshot,
    claims: &Claims,
    id: &str,
    patience: &Patience,
    record: &mut audit::Record,
) -> Result<(), Stop> {
    let Some(limits) = &claims.triggers else { return Ok(()) };
    record.policy = Some(Arc::clone(&limits.policy));
    let denied = |record: &mut audit::Record, reason: Reason, rule: Option<Arc<str>>, message: String| {
        record.decision = Some(audit::Decision { outcome: Effect::Deny, rule, shadow: Vec::new(), grants: Vec::new() });
        Err(Denial(reason, message).into())
    };
    let named = id.strip_prefix("namespaces/").and_then(|rest| rest.split_once("/triggers/"));
    let Some((namespace, name)) = named.filter(|(_, name)| !name.is_empty()) else {
        let message = format!(
            "rules limit which Triggers this delivery may activate, and `{id}` has no name: give the Trigger a name, and name the \
             interceptor in the Trigger itself and not in its group"
        );
        return denied(record, Reason::NoRuleMatched, None, message);
    };
    let listener = claims.aud.split_once('/').unwrap_or_default();
    let server = snapshot.raw.interceptor.as_ref().and_then(|interceptor| interceptor.kubernetes.as_deref());
    let server = snapshot.upstreams.iter().find(|upstream| Some(&**upstream.name()) == server);
    let account = match server.filter(|_| limits.needs_account()) {
        Some(server) => {
            service_account(&TriggerReader { pools, server }, (namespace, name), listener, patience).await?
        }
        None => None,
    };
    let trigger = Trigger { namespace, name, service_account: account.as_deref(), listener_namespace: listener.0 };
    if limits.permits(&trigger) {
        return Ok(());
    }
    let rule = limits.denied_by(&trigger).cloned();
    let (reason, why) = match rule.is_some() {
        true => (Reason::PolicyDenied, "a deny rule stops this delivery from activating the Trigger"),
        false => (Reason::NoRuleMatched, "no rule allows this delivery to activate the Trigger"),
    };
    let account = account.map(|account| format!(" with service account {account}")).unwrap_or_default();
    denied(record, reason, rule, format!("{why} {namespace}/{name}{account}"))
}

/// The values for TriggerBindings.
fn extension(claims: &Claims) -> Value {
    json!({
        "user": &*claims.sub,
        "kind": claims.kind,
        "issuer": &*claims.issuer,
        "groups": claims.groups,
        "request_id": claims.jti,
        "delivery": claims.delivery,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_cut_by_the_deadline_hides_no_earlier_failure() {
        for (troubles, reason) in
            [(0, Reason::UpstreamTimeout), (1, Reason::UpstreamFailed), (3, Reason::UpstreamFailed)]
        {
            let (patience, asks) = (Patience::begin(), Cell::new(0));
            let asked = || {
                let (ask, deadline) = (asks.get(), patience.deadline);
                asks.set(ask + 1);
                async move {
                    if ask < troubles {
                        return Err::<(), _>(Rejection::new(Reason::UpstreamFailed, "it answered 500"));
                    }
                    tokio::time::sleep_until(deadline).await;
                    Err(Rejection::new(Reason::UpstreamTimeout, "it was cut"))
                }
            };
            let rejection = patience.until(asked, |()| true).await.unwrap_err();
            assert_eq!((rejection.reason(), asks.get()), (reason, troubles + 1));
        }
    }
}
