//! Operator commands for held deliveries.

use std::ops::ControlFlow;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use crate::{
    admin::socket::{Command, CommandError, Done, SEE_TO_THE_STORE},
    audit::HeldDelivery,
    clock::Timestamp,
    config::report::meant,
    sha256::sha256,
    store::StoreError,
    webhooks::hold::{Held, HeldId, Leases, Queue, Usage},
};

/// The least number of digits of an id that a command must give.
const LEAST_DIGITS: usize = 8;

/// The most deliveries that a list shows or an answer names.
const MOST: usize = 1000;

/// The help for a delivery that cannot be read.
const DROP: &str = "restore its key if that is missing, and it is tried again; if the key is lost, drop the delivery by its whole id with `doorward hooks drop ID`";

/// The most failed deliveries that an answer names.
const MOST_NAMED: usize = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    webhook: Option<String>,
    parked: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    /// The beginning of its id.
    id: String,
}

/// Lists the held deliveries, oldest first.
pub async fn list(app: &App, command: &Command) -> Result<Value, CommandError> {
    let Which { webhook, parked } = command.arguments()?;
    let held = wanted(app, webhook.as_deref(), parked).await?;
    let total = held.len();
    let leases = app.held.leases(app.clock.now()).await.map_err(|error| unavailable(&error))?;
    let shown: Vec<Value> = held.iter().take(MOST).map(|(id, held)| described(id, held, &leases)).collect();
    // Their senders are unknown.
    let unreadable = app.held.unreadable().into_iter().take(MOST);
    let unreadable: Vec<Value> =
        unreadable.map(|(id, why)| json!({"id": id.to_string(), "why": why, "help": DROP})).collect();
    Ok(json!({"total": total, "held": shown, "unreadable": unreadable}))
}

/// Warns of senders whose held deliveries can never be delivered, as no route accepts them any more: an entry of
/// `webhooks` that is renamed is another sender.
pub fn warn_of_gone(app: &App) {
    let snapshot = app.snapshot.load();
    for (webhook, usage) in app.held.usage() {
        let is_none = usage.waiting + usage.parked == 0;
        if is_none || snapshot.routes.of_webhook(&webhook).is_some() {
            continue;
        }
        let Usage { waiting, parked, .. } = usage;
        tracing::warn!(
            webhook = &*webhook,
            waiting,
            parked,
            "held deliveries cannot be delivered, as no route accepts those of their sender any more; restore the name of its entry in \
             `webhooks`, or drop them with `doorward hooks drop --webhook`"
        );
    }
}

/// The deliveries that a command selects.
#[derive(Debug)]
enum Chosen {
    One(One),
    Many(Which),
}

impl Chosen {
    fn of(command: &Command) -> Result<Self, CommandError> {
        match command.arguments.get("id") {
            Some(_) => command.arguments().map(Self::One),
            None => command.arguments().map(Self::Many),
        }
    }
}

/// Shows everything about a delivery except its body, which may hold confidential data.
pub async fn show(app: &App, command: &Command) -> Result<Value, CommandError> {
    let (one, now) = (command.arguments()?, app.clock.now());
    let (id, _) = find(&app.held, &one, 1, now).await?;
    let found = app.held.show(&id, now).await.map_err(|error| unavailable(&error))?;
    let (held, request) = found.ok_or_else(gone)?;
    let leases = app.held.leases(now).await.map_err(|error| unavailable(&error))?;
    let mut shown = described(&id, &held, &leases);
    let details = json!({
        "host": &*request.head.host,
        "path": request.head.target.split('?').next(),
        "client": request.head.client,
        "headers": request.head.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        "body_bytes": request.body.len(),
        "body_sha256": HEXLOWER.encode(&sha256(&[&request.body])),
        "facts": request.head.facts,
    });
    if let (Value::Object(shown), Value::Object(details)) = (&mut shown, details) {
        shown.extend(details);
    }
    Ok(shown)
}

/// Schedules one delivery, or all parked ones, to be tried at once.
pub async fn retry(app: &App, command: &Command) -> Result<Done, CommandError> {
    let (chosen, is_one) = match Chosen::of(command)? {
        Chosen::One(one) => (vec![find(&app.held, &one, LEAST_DIGITS, app.clock.now()).await?], true),
        Chosen::Many(Which { webhook, .. }) => (wanted(app, webhook.as_deref(), true).await?, false),
    };
    // A replica that has a lane sends its deliveries, so it depends on that one when they are tried.
    let leases = app.held.leases(app.clock.now()).await.map_err(|error| unavailable(&error))?;
    let tally = each(app, &chosen, Act::Retry, leases).await;
    if is_one && tally.did_nothing() {
        return Err(gone());
    }
    tracing::warn!(
        retried = tally.deliveries.len(),
        failed = tally.failed.len(),
        who = command.who,
        why = command.why,
        "held deliveries are tried at once"
    );
    tally.answer(Act::Retry)
}

/// An action on several deliveries.
#[derive(Clone, Copy, Debug)]
enum Act {
    Retry,
    Drop,
}

impl Act {
    /// The name in the answer for the number of deliveries that it was done to.
    fn member(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Drop => "dropped",
        }
    }

    fn outcome(self) -> &'static str {
        match self {
            Self::Retry => "are tried at once",
            Self::Drop => "were dropped",
        }
    }
}

/// Applies the action to each delivery until the store fails.
async fn each(app: &App, chosen: &[(HeldId, Held)], act: Act, leases: Leases) -> Tally {
    let now = app.clock.now();
    let mut tally = Tally { leases, ..Tally::of(chosen.len(), app.store.is_shared()) };
    for (id, held) in chosen {
        let came = match act {
            Act::Retry => app.held.retry(id, now).await,
            Act::Drop => app.held.drop_one(id, now).await,
        };
        if tally.count((id, held), came).is_break() {
            break;
        }
    }
    tally
}

/// The result of an action on several deliveries.
#[derive(Default)]
struct Tally {
    /// Whether the store is a server.
    is_shared: bool,
    /// The leases that the answer names.
    leases: Leases,
    /// How many were not processed yet.
    left: usize,
    /// The processed deliveries, as recorded in the audit trail, and as far as the answer names them.
    deliveries: Vec<HeldDelivery>,
    named: Vec<Value>,
    /// The failed ones with their reasons, and how many of them cannot be read.
    failed: Vec<String>,
    unreadable: usize,
}

impl Tally {
    fn of(count: usize, is_shared: bool) -> Self {
        Self { is_shared, left: count, ..Self::default() }
    }

    /// Counts one delivery. It stops if the others would fail as well: an unreadable delivery does not stop the rest,
    /// but a store that is unavailable does.
    fn count(&mut self, (id, held): (&HeldId, &Held), came: Result<bool, StoreError>) -> ControlFlow<()> {
        self.left = self.left.saturating_sub(1);
        match came {
            Ok(true) => {
                self.deliveries.push(recorded(held));
                if self.named.len() < MOST {
                    let mut named = named(id, held);
                    if let (Some(lease), Some(members)) = (lease(held, &self.leases), named.as_object_mut()) {
                        members.insert("lease".to_owned(), lease);
                    }
                    self.named.push(named);
                }
                ControlFlow::Continue(())
            }
            // It is gone in the meantime.
            Ok(false) => ControlFlow::Continue(()),
            Err(error @ StoreError::Corrupt(_)) => {
                self.failed.push(format!("{id}: {error}"));
                self.unreadable += 1;
                ControlFlow::Continue(())
            }
            Err(error) => {
                let unknown = if error.is_undone(self.is_shared) { "" } else { " (it may have happened nonetheless)" };
                self.failed.push(format!("{id}: {error}{unknown}"));
                ControlFlow::Break(())
            }
        }
    }

    /// Whether all deliveries were gone.
    fn did_nothing(&self) -> bool {
        self.deliveries.is_empty() && self.failed.is_empty()
    }

    fn answer(self, act: Act) -> Result<Done, CommandError> {
        let Self { left, deliveries, named, failed, unreadable, .. } = self;
        let count = deliveries.len();
        if failed.is_empty() {
            return Ok(Done {
                answer: json!({act.member(): count, "deliveries": named}),
                deliveries: Some(deliveries),
            });
        }
        let (some, more) = failed.split_at(failed.len().min(MOST_NAMED));
        let more = if more.is_empty() { String::new() } else { format!("; and {} more", more.len()) };
        let left = if left == 0 { String::new() } else { format!("; {left} were not tried") };
        let help = match (unreadable, failed.len() - unreadable) {
            (0, _) => SEE_TO_THE_STORE,
            (_, 0) => {
                "restore the missing key and try again, or drop the deliveries that are lost (`doorward hooks drop ID`)"
            }
            _ => {
                "check the store, restore the missing key, and try again; drop the deliveries that are lost (`doorward hooks drop ID`)"
            }
        };
        let what = format!(
            "{count} held deliveries {}; it failed for {}: {}{more}{left}",
            act.outcome(),
            failed.len(),
            some.join("; ")
        );
        Err(CommandError::new(what).help(help).after(deliveries))
    }
}

/// Drops one delivery, or all of a sender, permanently.
pub async fn drop_held(app: &App, command: &Command) -> Result<Done, CommandError> {
    match Chosen::of(command)? {
        Chosen::One(one) => drop_one(app, command, &one).await,
        Chosen::Many(Which { webhook: Some(webhook), parked }) => drop_of_sender(app, command, &webhook, parked).await,
        Chosen::Many(Which { webhook: None, .. }) => {
            Err(CommandError::new("neither a delivery nor a sender is named").help("name one of them"))
        }
    }
}

async fn drop_one(app: &App, command: &Command, one: &One) -> Result<Done, CommandError> {
    let now = app.clock.now();
    let (id, held) = match listed(&app.held, one, LEAST_DIGITS, now).await? {
        Some((id, held)) => (id, Some(held)),
        None => (HeldId::parse(&one.id).ok_or_else(gone)?, None),
    };
    if !app.held.drop_one(&id, now).await.map_err(|error| undropped(&error, app.store.is_shared()))? {
        return Err(gone());
    }
    tracing::warn!(held = %id, who = command.who, why = command.why, "a held delivery was dropped");
    let (named, recorded) = match &held {
        Some(held) => (named(&id, held), recorded(held)),
        None => (json!({"id": id.to_string()}), HeldDelivery::Unread { held: id.to_string() }),
    };
    let answer = json!({"dropped": 1, "deliveries": [named]});
    Ok(Done { answer, deliveries: Some(vec![recorded]) })
}

async fn drop_of_sender(app: &App, command: &Command, webhook: &str, parked: bool) -> Result<Done, CommandError> {
    let chosen = wanted(app, Some(webhook), parked).await?;
    let tally = each(app, &chosen, Act::Drop, Leases::default()).await;
    tracing::warn!(
        dropped = tally.deliveries.len(),
        failed = tally.failed.len(),
        webhook,
        who = command.who,
        why = command.why,
        "held deliveries were dropped"
    );
    tally.answer(Act::Drop)
}

fn recorded(held: &Held) -> HeldDelivery {
    HeldDelivery::Known { request: held.request.to_string(), delivery: held.delivery.to_string() }
}

/// Returns the fields that identify a delivery.
fn named(id: &HeldId, held: &Held) -> Value {
    json!({"id": id.to_string(), "request": held.request, "delivery": &*held.delivery})
}

/// Returns which replica has the lane of a delivery, and until when.
fn lease(held: &Held, leases: &Leases) -> Option<Value> {
    leases.of(&held.lane()).map(|(replica, until)| json!({"replica": replica, "until": until.to_string()}))
}

fn described(id: &HeldId, held: &Held, leases: &Leases) -> Value {
    let lease = held.parked.is_none().then(|| lease(held, leases)).flatten();
    json!({
        "id": id.to_string(),
        "webhook": &*held.webhook,
        "route": &*held.route,
        "delivery": &*held.delivery,
        "request": held.request,
        "event": held.event,
        "repository": held.repository,
        "repository_id": held.repository_id,
        "bytes": held.size,
        "received": held.received.to_string(),
        "state": if held.parked.is_some() { "parked" } else { "waiting" },
        "parked": held.parked.map(|since| since.to_string()),
        "tries": held.tries,
        "next_try": held.parked.is_none().then(|| held.next.to_string()),
        "lease": lease,
        "until": held.until.to_string(),
        "last_error": held.last_error,
    })
}

/// Returns the held, or only the parked, deliveries of all senders or of one. A sender that is not configured and has
/// no held deliveries is most likely misspelt.
async fn wanted(app: &App, webhook: Option<&str>, parked: bool) -> Result<Vec<(HeldId, Held)>, CommandError> {
    let mut held = app.held.list(webhook, app.clock.now()).await.map_err(|error| unavailable(&error))?;
    if let Some(webhook) = webhook.filter(|_| held.is_empty()) {
        let snapshot = app.snapshot.load();
        check_sender(webhook, snapshot.raw.webhooks.iter().map(|sender| sender.name.as_str()))?;
    }
    held.retain(|(_, held)| !parked || held.parked.is_some());
    Ok(held)
}

fn check_sender<'a>(name: &str, configured: impl Iterator<Item = &'a str>) -> Result<(), CommandError> {
    let configured: Vec<&str> = configured.collect();
    if configured.contains(&name) {
        return Ok(());
    }
    let help = match configured.is_empty() {
        true => "no sender is configured, and nothing is held for one of this name".to_owned(),
        false => meant(name, &configured),
    };
    Err(CommandError::new(format!("there is no sender `{name}`")).help(help))
}

/// Refuses an id that is too short to be intentional, such as from a variable that is not set.
fn check_id(id: &str, least: usize) -> Result<(), CommandError> {
    if id.len() >= least {
        return Ok(());
    }
    let message = format!("`{id}` is too short to name a delivery");
    Err(CommandError::new(message)
        .help(format!("write {least} digits of its id or more; `doorward hooks list` shows the ids")))
}

/// Returns the delivery whose id begins with the given digits. For one that cannot be read, the error says why if the
/// whole id is given.
async fn find(queue: &Queue, one: &One, least: usize, now: Timestamp) -> Result<(HeldId, Held), CommandError> {
    if let Some(listed) = listed(queue, one, least, now).await? {
        return Ok(listed);
    }
    let id = HeldId::parse(&one.id).ok_or_else(gone)?;
    let (held, _) = queue.show(&id, now).await.map_err(|error| unavailable(&error))?.ok_or_else(gone)?;
    Ok((id, held))
}

/// Returns the readable delivery whose id begins with the given digits, if there is one.
async fn listed(
    queue: &Queue,
    One { id }: &One,
    least: usize,
    now: Timestamp,
) -> Result<Option<(HeldId, Held)>, CommandError> {
    check_id(id, least)?;
    let mut found = queue.find(id, now).await.map_err(|error| unavailable(&error))?;
    match found.len() {
        0 => {
            let all = queue.list(None, now).await.map_err(|error| unavailable(&error))?;
            called_by_its_sender(id, &all).map_or(Ok(None), Err)
        }
        1 => Ok(found.pop()),
        several => {
            Err(CommandError::new(format!("{several} held deliveries begin with `{id}`")).help("write more of the id"))
        }
    }
}

/// Returns an error if the id is the one that the sender gave, which lists show too.
fn called_by_its_sender(id: &str, all: &[(HeldId, Held)]) -> Option<CommandError> {
    let named: Vec<String> =
        all.iter().filter(|(_, held)| *held.delivery == *id).map(|(id, _)| format!("`{id}`")).collect();
    let message = format!("`{id}` is the id that the sender gave the delivery, not the id of a held delivery");
    (!named.is_empty()).then(|| CommandError::new(message).help(format!("write {}", named.join(" or "))))
}

fn gone() -> CommandError {
    CommandError::new("no such delivery is held")
        .help("`doorward hooks list` shows them; a delivery that was accepted is gone")
}

fn unavailable(error: &StoreError) -> CommandError {
    if let StoreError::Corrupt(why) = error {
        return CommandError::new(format!("the delivery cannot be read: {why}")).help(DROP);
    }
    CommandError::store("the held deliveries cannot be read", error)
}

/// Returns the error for a delivery that the store failed to drop.
fn undropped(error: &StoreError, is_shared: bool) -> CommandError {
    CommandError::write("nothing was dropped", "it is not known whether the delivery was dropped", error, is_shared)
}

#[cfg(test)]
mod tests;
