//! Lines that are not of a request: notes of the process, and events of the trail itself.

use super::{Id, head, metadata};
use crate::{
    audit::{
        budget::{Budget, Field},
        json::Object,
        note::{Event, HeldDelivery, KeyChange, Linked, Note, Operator, TokensEnded, code},
    },
    clock::Timestamp,
};

/// Writes the head of an Application Lifecycle event, which says in `message` what happened.
fn lifecycle(
    line: &mut Object<'_>,
    (activity, severity): (u32, u8),
    time: Timestamp,
    code: &'static str,
    message: &'static str,
) {
    head(line, 6002, activity, severity, time);
    metadata(line, code, None, code == code::OPERATOR);
    line.text("message", message).members(br#""app":{"name":"Doorward"}"#);
}

const START: u32 = 3;
const STOP: u32 = 4;
const UPDATE: u32 = 8;
const OTHER: u32 = 99;

/// Writes a note.
pub(super) fn note(note: &Note, time: Timestamp, budget: &mut Budget, line: &mut Object<'_>) {
    match note {
        Note::PolicyLoaded { digest, cause, problems } => {
            lifecycle(line, (UPDATE, 1), time, code::POLICY_LOADED, "a policy was loaded");
            line.field("status_id", 1)
                .object("unmapped", |object| policy(Some(digest), cause, problems, budget, object));
        }
        Note::PolicyRefused { digest, cause, problems } => {
            lifecycle(line, (UPDATE, 3), time, code::POLICY_REFUSED, "a policy was refused and the old one kept");
            let policy = |object: &mut Object<'_>| policy(digest.as_deref(), cause, problems, budget, object);
            line.field("status_id", 2).object("unmapped", policy);
        }
        Note::Operator(operator) => {
            lifecycle(line, (OTHER, 2), time, code::OPERATOR, "an operator gave a command");
            self::operator(operator, budget, line);
        }
        Note::Run(run) => {
            lifecycle(line, (OTHER, 1), time, code::RUN, "a run has appeared that a request caused");
            line.object("unmapped", |object| {
                object.object("linked", |object| linked(run, budget, object));
            });
        }
        Note::TokensEnded(ended) => {
            lifecycle(line, (OTHER, 1), time, code::TOKENS_ENDED, "the tokens of a run have ended with it");
            line.object("unmapped", |object| {
                object.object("tokens_ended", |object| tokens_ended(ended, budget, object));
            });
        }
        Note::SessionEnded { session, why } => {
            lifecycle(line, (OTHER, 1), time, code::SESSION_ENDED, "a session has ended before its time");
            line.object("unmapped", |object| {
                object.object("session_ended", |object| {
                    object.text("session", budget.text(Field::Names, session)).text("why", why);
                });
            });
        }
        Note::Key { of, id, change } => {
            let (code, message, signs_from) = match change {
                KeyChange::Made { signs_from } => (code::KEY_MADE, "a key was made", Some(signs_from.as_millis())),
                KeyChange::Removed => (code::KEY_REMOVED, "a key was removed", None),
            };
            lifecycle(line, (OTHER, 1), time, code, message);
            line.object("unmapped", |object| {
                object.object("key", |object| {
                    object.text("of", of).text("id", budget.text(Field::Names, id)).some("signs_from", signs_from);
                });
            });
        }
        Note::Alarm { what, detail } => {
            lifecycle(line, (OTHER, 4), time, code::ALARM, "an alarm");
            line.object("unmapped", |object| {
                object.text("alarm", what).text("detail", budget.text(Field::Detail, detail));
            });
        }
    }
}

fn policy(digest: Option<&str>, cause: &str, problems: &[String], budget: &mut Budget, object: &mut Object<'_>) {
    object.some_text("policy", budget.optional(Field::Names, digest)).text("cause", cause);
    object.some("problems", some(problems, budget));
}

fn operator(operator: &Operator, budget: &mut Budget, line: &mut Object<'_>) {
    line.field("status_id", if operator.outcome.is_ok() { 1 } else { 2 });
    if let Err(why) = &operator.outcome {
        line.text("status_detail", budget.text(Field::Detail, why));
    }
    line.object("actor", |actor| {
        actor.object("user", |user| {
            user.some("uid", operator.uid.map(|uid| uid.to_string()))
                .some_text("name", budget.optional(Field::Names, operator.user.as_deref()));
        });
    });
    line.object("unmapped", |object| {
        object
            .text("command", budget.text(Field::Path, &operator.command))
            .some_text("why", budget.optional(Field::Detail, operator.why.as_deref()));
        if let Some(deliveries) = &operator.deliveries {
            self::deliveries(deliveries, budget, object);
        }
    });
}

/// Writes how many deliveries there are, and the ids of as many as fit.
fn deliveries(deliveries: &[HeldDelivery], budget: &mut Budget, object: &mut Object<'_>) {
    let texts = deliveries.iter().map(|one| match one {
        HeldDelivery::Known { request, delivery } => (&**request, &**delivery),
        HeldDelivery::Unread { held } => (&**held, ""),
    });
    let pairs: Vec<(&str, &str)> = texts.collect();
    let room = budget.pairs(Field::Deliveries, &pairs).len();
    object.field("delivery_count", deliveries.len()).field("deliveries", deliveries.get(..room).unwrap_or_default());
}

fn linked(run: &Linked, budget: &mut Budget, object: &mut Object<'_>) {
    object
        .some_text("cluster", budget.optional(Field::Names, run.cluster.as_deref()))
        .text("kind", run.kind)
        .text("namespace", budget.text(Field::Names, &run.namespace))
        .text("name", budget.text(Field::Names, &run.name))
        .text("uid", budget.text(Field::Names, &run.uid))
        .some("created", run.created.map(|created| created.as_millis()))
        .some("request", run.request.map(Id))
        .some_text("event_id", budget.optional(Field::Names, run.event.as_deref()));
}

fn tokens_ended(ended: &TokensEnded, budget: &mut Budget, object: &mut Object<'_>) {
    object
        .text("cluster", budget.text(Field::Names, &ended.cluster))
        .text("kind", ended.kind)
        .text("namespace", budget.text(Field::Names, &ended.namespace))
        .text("name", budget.text(Field::Names, &ended.name))
        .text("uid", budget.text(Field::Names, &ended.uid))
        .text("why", ended.why);
}

fn some<'a>(problems: &'a [String], budget: &mut Budget) -> Option<&'a [String]> {
    (!problems.is_empty()).then(|| budget.list(Field::Problems, problems))
}

/// Writes an event of the trail itself.
pub(super) fn event(event: &Event, time: Timestamp, budget: &mut Budget, line: &mut Object<'_>) {
    match event {
        Event::Start { instance, key, interval_ms, repaired, missing } => {
            lifecycle(line, (START, 1), time, code::START, "the trail begins, or continues after a start");
            line.object("unmapped", |object| {
                object
                    .text("instance", budget.text(Field::Names, instance))
                    .text("chain_key", key)
                    .field("interval_ms", interval_ms)
                    .field("repaired_bytes", repaired)
                    .some("missing", *missing);
            });
        }
        Event::Stop { instance } => {
            lifecycle(line, (STOP, 1), time, code::STOP, "the trail ends in an orderly way");
            line.object("unmapped", |object| {
                object.text("instance", budget.text(Field::Names, instance));
            });
        }
        Event::File { previous } => {
            lifecycle(line, (OTHER, 1), time, code::FILE, "the trail continues in a new file");
            line.object("unmapped", |object| {
                object.some_text("previous", budget.optional(Field::Names, previous.as_deref()));
            });
        }
        Event::Cut { files, from, last } => {
            lifecycle(line, (OTHER, 1), time, code::CUT, "old files of the trail are removed");
            line.object("unmapped", |object| {
                object.object("cut", |object| {
                    object
                        .field("files", files)
                        .field("from", from)
                        .field("through", last.seq)
                        .text("mac", last.mac.as_str());
                });
            });
        }
        Event::Gap { lost, since, until, monotonic_ms } => {
            let message = match monotonic_ms {
                None => "for a while the trail could not be written",
                Some(_) => "for a while the process was paused, or its clock was set ahead",
            };
            lifecycle(line, (OTHER, 4), time, code::GAP, message);
            line.object("unmapped", |object| {
                object
                    .field("lost", lost)
                    .field("since", since.as_millis())
                    .field("until", until.as_millis())
                    .some("monotonic_ms", *monotonic_ms);
            });
        }
        Event::Checkpoint { instance, key, file, records, interval_ms, heads } => {
            lifecycle(line, (OTHER, 1), time, code::CHECKPOINT, "the trail up to here is signed");
            line.object("unmapped", |object| {
                object
                    .text("instance", budget.text(Field::Names, instance))
                    .text("checkpoint_key", key)
                    .text("file", budget.text(Field::Names, file))
                    .field("records", records)
                    .field("interval_ms", interval_ms)
                    .some("heads", (!heads.is_empty()).then_some(heads));
            });
        }
    }
}
