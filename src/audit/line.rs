//! Records as JSON: OCSF 1.5, requests as HTTP Activity (4002) and everything else as Application Lifecycle (6002).
//! Data without an OCSF field is in `unmapped`, except for the members that the chain adds at the end of a line.

mod notes;
mod verdict;

use std::{collections::BTreeMap, sync::Arc};

use http::{Method, StatusCode};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use self::verdict::Verdict;
use super::{
    budget::{Budget, Field},
    caller::{Caller, Callers, credential},
    chain::{MAX_LINE, SEAL},
    json::Object,
    note::{Event, Note, code},
    record::{Decision, FailedLogin, Issued, IssuedTask, Phase, Record, Tls},
};
use crate::{
    authn::Principal,
    authz::AskedToken,
    clock::Timestamp,
    kubernetes::{Attributes, ObjectRef, impersonation},
    tekton::Run,
    webhooks::Facts,
};

const PRODUCT: &str = concat!(
    r#""version":"1.5.0","product":{"name":"Doorward","vendor_name":"Doorward","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#""}"#
);

/// Appends the line of a request, without its closing brace.
pub(super) fn write_record(record: &Record, callers: &mut Callers, out: &mut Vec<u8>) {
    let caller = callers.of(record);
    write_within(out, |budget, line| request(record, caller, budget, line));
}

/// Appends the line of a note, without its closing brace.
pub(super) fn write_note(note: &Note, time: Timestamp, out: &mut Vec<u8>) {
    write_within(out, |budget, line| notes::note(note, time, budget, line));
}

/// Appends the line of an event of the trail itself, without its closing brace.
pub(super) fn write_event(event: &Event, time: Timestamp, out: &mut Vec<u8>) {
    write_within(out, |budget, line| notes::event(event, time, budget, line));
}

/// Writes with ever smaller budgets until the line fits.
fn write_within(out: &mut Vec<u8>, write: impl Fn(&mut Budget, &mut Object<'_>)) {
    let start = out.len();
    for level in 0..=Field::ALL.len() {
        out.truncate(start);
        let mut budget = Budget::new(level);
        let mut line = Object::begin(out);
        write(&mut budget, &mut line);
        let truncated: Vec<Field> = budget.truncated().collect();
        line.some("truncated", (!truncated.is_empty()).then_some(truncated));
        if out.len() - start + SEAL <= MAX_LINE {
            break;
        }
    }
}

/// The class of requests.
pub(super) const HTTP_ACTIVITY: u32 = 4002;

fn head(line: &mut Object<'_>, class: u32, activity: u32, severity: u8, time: Timestamp) {
    line.field("class_uid", class)
        .field("category_uid", class / 1000)
        .field("activity_id", activity)
        .field("type_uid", class * 100 + activity)
        .field("severity_id", severity)
        .field("time", time.as_millis());
}

/// Writes `metadata`. The profile `host` is the one that defines `actor`.
fn metadata(line: &mut Object<'_>, code: &'static str, correlation: Option<Uuid>, has_actor: bool) {
    line.object("metadata", |metadata| {
        metadata.members(PRODUCT.as_bytes());
        let profiles: &[u8] = match (has_actor, correlation) {
            (true, Some(_)) => br#""profiles":["host","security_control"]"#,
            (true, None) => br#""profiles":["host"]"#,
            (false, Some(_)) => br#""profiles":["security_control"]"#,
            (false, None) => b"",
        };
        if !profiles.is_empty() {
            metadata.members(profiles);
        }
        metadata.some("correlation_uid", correlation.map(Id)).text("event_code", code);
    });
}

fn request(record: &Record, caller: Option<Caller<'_>>, budget: &mut Budget, line: &mut Object<'_>) {
    let ended = record.phase == Phase::Whole || record.phase == Phase::Completed;
    let verdict = Verdict::of(record);
    head(line, HTTP_ACTIVITY, activity(&record.method), verdict.severity_id(), record.time);
    if ended {
        line.field("duration", millis(record));
    }
    let code = match record.phase {
        Phase::Whole => code::REQUEST,
        Phase::Decided => code::DECIDED,
        Phase::Started => code::STARTED,
        Phase::Completed => code::COMPLETED,
    };
    metadata(line, code, Some(record.id), caller.is_some());
    line.field("action_id", verdict.action_id())
        .field("disposition_id", verdict.action_id())
        .field("status_id", verdict.status_id());
    if let Some(refusal) = &record.refusal {
        line.text("status_code", refusal.reason.as_str());
        line.text("status_detail", budget.text(Field::Detail, &refusal.detail));
    } else if let Some(failed) = &record.failed_login {
        line.field("status_code", failed.outcome);
    }
    if let Some(caller) = caller {
        line.object("actor", |actor| caller.write_actor(budget, actor));
    }
    if let Some(address) = record.address {
        line.object("src_endpoint", |endpoint| {
            endpoint.field("ip", address);
        });
    }
    line.object("http_request", |object| http_request(record, budget, object));
    if let Some(status) = record.status {
        line.object("http_response", |response| {
            response.field("code", status.as_u16());
        });
    }
    if record.decision.is_some() || record.policy.is_some() {
        line.objects("authorizations", |object| authorization(record, budget, object));
    }
    if let Some(tls) = &record.tls {
        line.object("tls", |object| self::tls(tls, budget, object));
    }
    if ended {
        line.object("traffic", |traffic| {
            traffic.field("bytes_in", record.bytes_in).field("bytes_out", record.bytes_out);
        });
    }
    line.object("unmapped", |object| details(record, caller, ended, budget, object));
}

fn http_request(record: &Record, budget: &mut Budget, object: &mut Object<'_>) {
    object.field("uid", Id(record.id)).text("http_method", budget.text(Field::Names, record.method.as_str()));
    object.object("url", |url| {
        url.text("hostname", budget.text(Field::Names, &record.host))
            .text("path", budget.text(Field::Path, &record.path));
    });
    object.some_text("user_agent", budget.optional(Field::UserAgent, record.user_agent.as_deref()));
}

fn authorization(record: &Record, budget: &mut Budget, object: &mut Object<'_>) {
    let decision = record.decision.as_ref();
    object.some_text("decision", decision.map(|decision| decision.outcome.as_str()));
    let rule = budget.optional(Field::Names, decision.and_then(|decision| decision.rule.as_deref()));
    let version = budget.optional(Field::Names, record.policy.as_deref());
    if rule.is_some() || version.is_some() {
        object.object("policy", |policy| {
            // A policy of OCSF has a `uid` or a `name`.
            match rule {
                Some(rule) => policy.text("uid", rule),
                None => policy.text("name", "policy"),
            };
            policy.some_text("version", version);
        });
    }
}

fn millis(record: &Record) -> u64 {
    u64::try_from(record.latency.as_millis()).unwrap_or(u64::MAX)
}

fn details(record: &Record, caller: Option<Caller<'_>>, ended: bool, budget: &mut Budget, object: &mut Object<'_>) {
    object
        .some_text("route", budget.optional(Field::Names, record.route.as_deref()))
        .some("kind", record.kind)
        .some_text("endpoint", record.endpoint)
        .some("upgrade", record.upgrade.then_some(true));
    if ended {
        object.field("latency_us", u64::try_from(record.latency.as_micros()).unwrap_or(u64::MAX));
    }
    if let Some(trace) = &record.trace {
        object.hex("trace_id", trace);
    }
    if let Some(caller) = caller {
        object.object("principal", |object| caller.write_principal(record, budget, object));
    }
    if let Some(presented) = record.presented.as_deref() {
        let (_, id) = credential(&presented.credential);
        object.object("presented", |object| {
            object
                .text("issuer", budget.text(Field::Names, &presented.issuer))
                .text("subject", budget.text(Field::Names, &presented.subject))
                .some_text("user", budget.optional(Field::Names, presented.user.as_deref()))
                .some_text("group", budget.optional(Field::Names, presented.group.as_deref()))
                .some_text("credential_uid", budget.optional(Field::Names, (!id.is_empty()).then_some(id)));
        });
    }
    if let Some(FailedLogin { outcome, issuer }) = &record.failed_login {
        object.object("login", |object| {
            object.field("outcome", outcome).some_text("issuer", budget.optional(Field::Names, issuer.as_deref()));
        });
    }
    if let Some(Decision { shadow, grants, .. }) = &record.decision {
        object.list("shadow", budget.list(Field::Shadow, shadow)).list("grants", budget.list(Field::Grants, grants));
    }
    if let Some(attributes) = &record.kubernetes {
        object.object("kubernetes", |object| self::attributes(attributes, budget, object));
    }
    if let Some(run) = &record.run {
        object.object("run", |object| self::run(run, budget, object));
    }
    if let (Some(groups), Some(principal)) = (&record.impersonated_groups, &record.principal) {
        object.object("identity", |object| identity(principal, groups, budget, object));
    }
    if let Some(listener) = &record.event_listener {
        object.object("event_listener", |object| {
            object
                .text("namespace", budget.text(Field::Names, &listener.namespace))
                .text("name", budget.text(Field::Names, &listener.name));
        });
    }
    let delivery = record.delivery.as_ref().or_else(|| record.principal.as_ref()?.delivery.as_ref());
    if let Some(facts) = delivery {
        object.object("webhook", |object| webhook(facts, budget, object));
    }
    if let Some(upstream) = &record.upstream {
        object.object("upstream", |object| {
            object
                .text("name", budget.text(Field::Names, &upstream.name))
                .some("status", upstream.status.as_ref().map(StatusCode::as_u16));
        });
    }
    object.some("held", record.held.map(Id)).some("about", record.about.map(Id));
    if let Some(digest) = &record.body_digest {
        object.hex("body_sha256", digest);
    }
    if let Some(asked) = record.asked.as_deref() {
        object.object("asked", |object| self::asked(asked, budget, object));
    }
    if let Some(issued) = record.issued.as_deref() {
        object.object("issued", |object| self::issued(issued, budget, object));
    }
    if let Some(introspected) = record.introspected.as_deref() {
        object.object("introspected", |object| {
            object
                .text("token", budget.text(Field::Names, &introspected.token))
                .text("server", budget.text(Field::Names, &introspected.server))
                .some("active", Some(introspected.active));
        });
    }
    object
        .some_text("revoked", budget.optional(Field::Names, record.revoked.as_deref()))
        .some_text("event_id", budget.optional(Field::Names, record.event_id.as_deref()))
        .some_text("ended", budget.optional(Field::Names, record.ended.as_deref()));
}

fn asked(asked: &AskedToken, budget: &mut Budget, object: &mut Object<'_>) {
    object
        .text("audience", budget.text(Field::Names, &asked.audience))
        .some("scopes", asked.scopes.as_deref().map(|scopes| budget.list(Field::Names, scopes)))
        .some("partly", asked.partly.then_some(true));
    if let Some(task) = &asked.task {
        object.object("task", |object| {
            object
                .text("cluster", budget.text(Field::Names, &task.cluster))
                .text("namespace", budget.text(Field::Names, &task.namespace))
                .text("service_account", budget.text(Field::Names, &task.service_account))
                .some_text("pipeline", budget.optional(Field::Names, task.pipeline.as_deref()))
                .some_text("pipeline_task", budget.optional(Field::Names, task.pipeline_task.as_deref()))
                .some_text("task", budget.optional(Field::Names, task.task.as_deref()));
        });
    }
}

fn issued(issued: &Issued, budget: &mut Budget, object: &mut Object<'_>) {
    object
        .text("token", budget.text(Field::Names, &issued.token))
        .text("issuer", budget.text(Field::Names, &issued.issuer))
        .text("audience", budget.text(Field::Names, &issued.audience))
        .list("scopes", budget.list(Field::Names, &issued.scopes))
        .some("expires", Some(issued.expires.as_millis()))
        .list("rules", budget.list(Field::Names, &issued.rules))
        .some("cause", issued.cause.map(Id));
    let parties: Vec<_> = issued.parties.iter().map(|party| (&*party.issuer, &*party.subject)).collect();
    object.pairs("parties", budget.pairs(Field::Parties, &parties));
    let exchanged: Vec<_> = issued.exchanged.iter().map(|token| (&*token.issuer, &*token.id)).collect();
    object.pairs("exchanged", budget.pairs(Field::Parties, &exchanged));
    if let Some(task) = &issued.task {
        object.object("task", |object| issued_task(task, budget, object));
    }
    if let Some(onward) = &issued.onward {
        object.object("onward", |object| {
            object
                .text("provider", budget.text(Field::Names, &onward.provider))
                .text("assertion", budget.text(Field::Names, &onward.assertion))
                .text("sha256", budget.text(Field::Names, &onward.sha256));
        });
    }
}

fn issued_task(task: &IssuedTask, budget: &mut Budget, object: &mut Object<'_>) {
    object
        .text("cluster", budget.text(Field::Names, &task.cluster))
        .text("namespace", budget.text(Field::Names, &task.namespace));
    let objects =
        [("task_run", Some(&task.task_run)), ("pod", Some(&task.pod)), ("pipeline_run", task.pipeline_run.as_ref())];
    for (what, named) in objects {
        if let Some(ObjectRef { name, uid }) = named {
            object.object(what, |object| {
                object.text("name", budget.text(Field::Names, name)).text("uid", budget.text(Field::Names, uid));
            });
        }
    }
    object
        .some_text("pipeline_task", budget.optional(Field::Names, task.pipeline_task.as_deref()))
        .text("root", budget.text(Field::Names, &task.root));
}

fn tls(tls: &Tls, budget: &mut Budget, object: &mut Object<'_>) {
    object.text("version", tls.version).some_text("sni", budget.optional(Field::Names, tls.server_name.as_deref()));
    if let Some(digest) = &tls.certificate {
        object.object("certificate", |certificate| {
            certificate.some_text("subject", budget.optional(Field::Names, tls.subject.as_deref()));
            // 3 is SHA-256.
            certificate.objects("fingerprints", |fingerprint| {
                fingerprint.field("algorithm_id", 3).hex("value", digest);
            });
        });
    }
}

fn attributes(attributes: &Attributes, budget: &mut Budget, object: &mut Object<'_>) {
    object.field("is_resource", attributes.is_resource);
    for (name, text) in [
        ("verb", &attributes.verb),
        ("api_group", &attributes.api_group),
        ("api_version", &attributes.api_version),
        ("namespace", &attributes.namespace),
        ("resource", &attributes.resource),
        ("subresource", &attributes.subresource),
        ("name", &attributes.name),
    ] {
        if !text.is_empty() {
            object.text(name, budget.text(Field::Kubernetes, text));
        }
    }
    object.some("apply", attributes.apply.then_some(true));
}

fn run(run: &Run, budget: &mut Budget, object: &mut Object<'_>) {
    fn pairs(named: &BTreeMap<Arc<str>, Arc<str>>) -> Vec<(&str, &str)> {
        named.iter().map(|(name, value)| (&**name, &**value)).collect()
    }
    object
        .field("does", run.intent)
        .some("besides", Some(&run.statuses).filter(|statuses| !statuses.is_empty()))
        .list("code", budget.list(Field::Run, &run.references))
        .list("service_accounts", budget.list(Field::Run, &run.service_accounts))
        .some("inline", run.inline.then_some(true))
        .some("pod_template", run.pod_template.then_some(true))
        .some("binds_secrets", run.binds_secrets.then_some(true))
        .pairs("params", budget.pairs(Field::Run, &pairs(&run.params)))
        .pairs("labels", budget.pairs(Field::Run, &pairs(&run.labels)));
}

/// Writes the identity with which the request was sent to Kubernetes.
fn identity(principal: &Principal, groups: &[Arc<str>], budget: &mut Budget, object: &mut Object<'_>) {
    let extras: Vec<(&str, &str)> = impersonation::extras(principal).collect();
    object
        .text("user", budget.text(Field::Names, &principal.username))
        .list("groups", budget.list(Field::KubernetesGroups, groups))
        .pairs("extras", budget.pairs(Field::Extras, &extras));
}

fn webhook(facts: &Facts, budget: &mut Budget, object: &mut Object<'_>) {
    let mut text = |text| budget.text(Field::Webhook, text);
    object
        .text("webhook", text(&facts.webhook))
        .text("sender_kind", text(&facts.sender_kind))
        .text("delivery", text(&facts.delivery))
        .some_text("event", facts.event.as_deref().map(&mut text))
        .some_text("action", facts.action.as_deref().map(&mut text))
        .some_text("repository", facts.repository.as_deref().map(&mut text))
        .some_text("repository_id", facts.repository_id.as_deref().map(&mut text))
        .some_text("owner", facts.owner.as_deref().map(&mut text))
        .some_text("branch", facts.branch.as_deref().map(&mut text))
        .some_text("tag", facts.tag.as_deref().map(&mut text))
        .some_text("commit", facts.commit.as_deref().map(&mut text))
        .some_text("actor", facts.actor.as_deref().map(&mut text))
        .some_text("actor_id", facts.actor_id.as_deref().map(&mut text))
        .some("fork", facts.fork)
        .some_text("pull_request", facts.pull_request.as_deref().map(&mut text))
        .some("draft", facts.draft)
        .some("several", facts.several.then_some(true))
        .some("build", facts.build.then_some(true));
}

/// Returns the `activity_id` of HTTP Activity.
fn activity(method: &Method) -> u32 {
    match *method {
        Method::CONNECT => 1,
        Method::DELETE => 2,
        Method::GET => 3,
        Method::HEAD => 4,
        Method::OPTIONS => 5,
        Method::POST => 6,
        Method::PUT => 7,
        Method::TRACE => 8,
        _ => 99,
    }
}

/// A UUID as text.
struct Id(Uuid);

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
    }
}
