//! Held deliveries, on an operator's word.

use data_encoding::HEXLOWER;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::App;
use crate::{
    admin::socket::{Command, CommandError, Done},
    audit::HeldDelivery,
    clock::Timestamp,
    config::report::nearest,
    sha256::sha256,
    store::StoreError,
    webhooks::hold::{Held, HeldId, Wanted},
};

/// What must be written of an id.
const LEAST_DIGITS: usize = 8;

/// Deliveries that one list shows, or an answer names.
const MOST: usize = 1000;

/// Deliveries that failed which an answer names.
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
    /// How its id begins.
    id: String,
}

/// What is held, the oldest first.
pub async fn list(app: &App, command: &Command) -> Result<Value, CommandError> {
    let Which { webhook, parked } = arguments(command)?;
    let held = wanted(app, Wanted { webhook, parked }).await?;
    let total = held.len();
    let shown: Vec<Value> = held.iter().take(MOST).map(|(id, held)| described(id, held)).collect();
    Ok(json!({"total": total, "held": shown}))
}

/// All that is known of one but its body, which may hold what nobody should read.
pub async fn show(app: &App, command: &Command) -> Result<Value, CommandError> {
    let (id, _) = find(app, command, 1).await?;
    let found = app.held.show(&id, app.clock.now()).await.map_err(|error| unavailable(&error))?;
    let (held, request) = found.ok_or_else(gone)?;
    let mut shown = described(&id, &held);
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

/// Has one tried at once, or all that are parked.
pub async fn retry(app: &App, command: &Command) -> Result<Done, CommandError> {
    let now = app.clock.now();
    let wanted = match arguments::<One>(command) {
        Ok(_) => vec![find(app, command, LEAST_DIGITS).await?],
        Err(_) => {
            let Which { webhook, .. } = arguments(command)?;
            wanted(app, Wanted { webhook, parked: true }).await?
        }
    };
    let mut all = All::of(wanted.len());
    for (id, held) in &wanted {
        let retried = app.held.retry(id, now).await;
        if all.is_over((id, held), retried) {
            break;
        }
    }
    tracing::warn!(
        retried = all.deliveries.len(),
        failed = all.failed.len(),
        who = command.who,
        why = command.why,
        "held deliveries are tried at once"
    );
    all.answer("retried", "are tried at once")
}

/// What came of something that is done to many.
#[derive(Default)]
struct All {
    /// Those that it has not come to.
    left: usize,
    /// What was done, as the audit trail names it, and as much of it as the answer names.
    deliveries: Vec<HeldDelivery>,
    named: Vec<Value>,
    /// With why, and how many of these cannot be read.
    failed: Vec<String>,
    unreadable: usize,
}

impl All {
    fn of(count: usize) -> Self {
        Self { left: count, ..Self::default() }
    }

    /// Counts one, and tells whether the others would fail as well: one that cannot be read stops none of them, a store that is
    /// away does.
    fn is_over(&mut self, (id, held): (&HeldId, &Held), came: Result<bool, StoreError>) -> bool {
        self.left = self.left.saturating_sub(1);
        match came {
            Ok(is_done) => {
                if is_done {
                    self.deliveries.push(recorded(held));
                }
                if is_done && self.named.len() < MOST {
                    self.named.push(named(id, held));
                }
                false
            }
            Err(error) => {
                self.failed.push(format!("{id}: {error}"));
                let is_unreadable = matches!(error, StoreError::Corrupt(_));
                self.unreadable += usize::from(is_unreadable);
                !is_unreadable
            }
        }
    }

    fn answer(self, name: &str, outcome: &str) -> Result<Done, CommandError> {
        let Self { left, deliveries, named, failed, unreadable } = self;
        let count = deliveries.len();
        if failed.is_empty() {
            return Ok(Done { answer: json!({name: count, "deliveries": named}), deliveries: Some(deliveries) });
        }
        let (some, more) = failed.split_at(failed.len().min(MOST_NAMED));
        let more = if more.is_empty() { String::new() } else { format!("; and {} more", more.len()) };
        let left = if left == 0 { String::new() } else { format!("; {left} were not tried") };
        let help = match (unreadable, failed.len() - unreadable) {
            (0, _) => "see to the store and try again",
            (_, 0) => "drop those that cannot be read (`doorward hooks drop ID`)",
            _ => "drop those that cannot be read (`doorward hooks drop ID`); else see to the store and try again",
        };
        let what = format!(
            "{count} held deliveries {outcome}; it failed for {}: {}{more}{left}",
            failed.len(),
            some.join("; ")
        );
        Err(CommandError::new(what).help(help).after(deliveries))
    }
}

/// Drops one for ever, or all of a sender.
pub async fn drop(app: &App, command: &Command) -> Result<Done, CommandError> {
    if arguments::<One>(command).is_err() {
        return drop_all(app, command).await;
    }
    let (id, held) = match found(app, command, LEAST_DIGITS).await? {
        Some((id, held)) => (id, Some(held)),
        // What cannot be read is in no list, and the log has its whole id.
        None => (whole(command)?.ok_or_else(gone)?, None),
    };
    if !app.held.drop_one(&id, app.clock.now()).await.map_err(|error| unavailable(&error))? {
        return Err(gone());
    }
    tracing::warn!(held = %id, who = command.who, why = command.why, "a held delivery was dropped");
    let (named, recorded) = match &held {
        Some(held) => (named(&id, held), recorded(held)),
        None => (json!({"id": id.to_string()}), HeldDelivery::Unread { held: id.to_string() }),
    };
    let answer = json!({"dropped": id.to_string(), "deliveries": [named]});
    Ok(Done { answer, deliveries: Some(vec![recorded]) })
}

async fn drop_all(app: &App, command: &Command) -> Result<Done, CommandError> {
    let now = app.clock.now();
    let Which { webhook: Some(webhook), parked } = arguments(command)? else {
        return Err(CommandError::new("neither a delivery nor a sender is named").help("name one of them"));
    };
    let wanted = wanted(app, Wanted { webhook: Some(webhook.clone()), parked }).await?;
    let mut all = All::of(wanted.len());
    for (id, held) in &wanted {
        let dropped = app.held.drop_one(id, now).await;
        if all.is_over((id, held), dropped) {
            break;
        }
    }
    tracing::warn!(
        dropped = all.deliveries.len(),
        failed = all.failed.len(),
        webhook,
        who = command.who,
        why = command.why,
        "held deliveries were dropped"
    );
    all.answer("dropped", "were dropped")
}

fn recorded(held: &Held) -> HeldDelivery {
    HeldDelivery::Known { request: held.request.to_string(), delivery: held.delivery.to_string() }
}

/// As much of one as says which it was.
fn named(id: &HeldId, held: &Held) -> Value {
    json!({"id": id.to_string(), "request": held.request, "delivery": &*held.delivery})
}

fn described(id: &HeldId, held: &Held) -> Value {
    let time = |millis: i64| Timestamp::from_millis(millis).to_string();
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
        "received": time(held.received),
        "state": if held.parked.is_some() { "parked" } else { "waiting" },
        "parked": held.parked.map(time),
        "tries": held.tries,
        "next_try": held.parked.is_none().then(|| time(held.next)),
        "until": time(held.until),
        "last_error": held.last_error,
    })
}

/// What is held of what was asked for. A sender that is neither configured nor has anything held is most likely misspelt.
async fn wanted(app: &App, wanted: Wanted) -> Result<Vec<(HeldId, Held)>, CommandError> {
    let mut held = app
        .held
        .list(&Wanted { parked: false, ..wanted.clone() }, app.clock.now())
        .await
        .map_err(|error| unavailable(&error))?;
    if let Some(webhook) = wanted.webhook.as_deref().filter(|_| held.is_empty()) {
        let snapshot = app.snapshot.load();
        check_sender(webhook, snapshot.raw.webhooks.iter().map(|sender| sender.name.as_str()))?;
    }
    held.retain(|(_, held)| !wanted.parked || held.parked.is_some());
    Ok(held)
}

fn check_sender<'a>(name: &str, configured: impl Iterator<Item = &'a str>) -> Result<(), CommandError> {
    let configured: Vec<&str> = configured.collect();
    if configured.contains(&name) {
        return Ok(());
    }
    let help = match nearest(name, configured.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if configured.is_empty() => "no sender is configured, and nothing is held of one of this name".to_owned(),
        None => format!("known: {}", configured.join(", ")),
    };
    Err(CommandError::new(format!("there is no sender `{name}`")).help(help))
}

/// Refuses what is too short to name one delivery on purpose, such as a variable that is not set.
fn check_id(id: &str, least: usize) -> Result<(), CommandError> {
    if id.len() >= least {
        return Ok(());
    }
    let message = format!("`{id}` is too short to name a delivery");
    Err(CommandError::new(message)
        .help(format!("write {least} digits of its id or more; `doorward hooks list` shows the ids")))
}

async fn find(app: &App, command: &Command, least: usize) -> Result<(HeldId, Held), CommandError> {
    found(app, command, least).await?.ok_or_else(gone)
}

/// The one whose id begins so, if there is one.
async fn found(app: &App, command: &Command, least: usize) -> Result<Option<(HeldId, Held)>, CommandError> {
    let One { id } = arguments(command)?;
    check_id(&id, least)?;
    let mut found = app.held.find(&id, app.clock.now()).await.map_err(|error| unavailable(&error))?;
    match found.len() {
        0 | 1 => Ok(found.pop()),
        several => {
            Err(CommandError::new(format!("{several} held deliveries begin with `{id}`")).help("write more of the id"))
        }
    }
}

/// The id that is meant, where all of it is written.
fn whole(command: &Command) -> Result<Option<HeldId>, CommandError> {
    let One { id } = arguments(command)?;
    Ok(HeldId::parse(&id))
}

fn arguments<T: DeserializeOwned>(command: &Command) -> Result<T, CommandError> {
    serde_json::from_value(command.arguments.clone())
        .map_err(|error| CommandError::new(format!("the arguments cannot be read: {error}")))
}

fn gone() -> CommandError {
    CommandError::new("no such delivery is held").help("`doorward hooks list` shows them; one that was taken is gone")
}

fn unavailable(error: &StoreError) -> CommandError {
    CommandError::new(format!("what is held cannot be looked up: {error}")).help("see to the store and try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_delivery_that_cannot_be_read_stops_none_of_the_others() {
        let id = |number: u8| HeldId::new([number; 32]);
        let held: Held = serde_json::from_value(json!({
            "webhook": "hub", "route": "hub", "delivery": "d-1", "request": uuid::Uuid::nil(), "size": 1, "received": 0,
            "span": 1, "until": 1, "next": 0,
        }))
        .unwrap();
        let corrupt = || Err(StoreError::Corrupt("junk".to_owned()));
        let mut all = All::of(1);
        assert!(!all.is_over((&id(1), &held), Ok(true)));
        let one = all.answer("retried", "are tried at once").unwrap();
        let named = json!({"id": id(1).to_string(), "request": uuid::Uuid::nil(), "delivery": "d-1"});
        assert_eq!(
            one,
            Done { answer: json!({"retried": 1, "deliveries": [named]}), deliveries: Some(vec![recorded(&held)]) }
        );

        let mut all = All::of(8);
        assert!(!all.is_over((&id(1), &held), Ok(true)));
        assert!(!all.is_over((&id(2), &held), corrupt()));
        assert!(!all.is_over((&id(3), &held), Ok(false)), "gone meanwhile");
        assert!(!all.is_over((&id(4), &held), Ok(true)));
        assert!(all.is_over((&id(5), &held), Err(StoreError::Timeout)), "the others would not fare better");
        let error = all.answer("retried", "are tried at once").unwrap_err();
        let said = &error.message;
        assert!(said.starts_with("2 held deliveries are tried at once; it failed for 2: "), "{said}");
        assert!(said.ends_with("; 3 were not tried"), "{said}");
        assert!([2, 5].iter().all(|number| said.contains(&id(*number).to_string())), "{said}");
        let help = error.help.unwrap();
        assert!(help.contains("hooks drop") && help.contains("the store"), "{help}");
        assert_eq!(error.deliveries.unwrap(), [recorded(&held), recorded(&held)], "the trail names what was done");

        for (came, helps) in [(corrupt(), "hooks drop"), (Err(StoreError::Timeout), "see to the store")] {
            let mut all = All::of(1);
            all.is_over((&id(1), &held), came);
            let error = all.answer("retried", "are tried at once").unwrap_err();
            assert!(!error.message.contains("not tried"), "{error}");
            let help = error.help.unwrap();
            assert!(help.contains(helps) && !help.contains(';'), "{help}");
        }
    }

    #[test]
    fn an_answer_about_many_names_some_and_the_trail_all() {
        let held: Held = serde_json::from_value(json!({
            "webhook": "hub", "route": "hub", "delivery": "d-1", "request": uuid::Uuid::nil(), "size": 1, "received": 0,
            "span": 1, "until": 1, "next": 0,
        }))
        .unwrap();
        let mut all = All::of(MOST + 1);
        for _ in 0..=MOST {
            assert!(!all.is_over((&HeldId::new([1; 32]), &held), Ok(true)));
        }
        let done = all.answer("dropped", "were dropped").unwrap();
        assert_eq!(done.answer["dropped"], MOST + 1);
        assert_eq!(done.answer["deliveries"].as_array().unwrap().len(), MOST);
        assert_eq!(done.deliveries.unwrap().len(), MOST + 1);
    }

    #[test]
    fn a_beginning_that_could_be_a_mistake_names_no_delivery() {
        for short in ["", "1", "abc", "0123456"] {
            let refused = check_id(short, LEAST_DIGITS).unwrap_err();
            assert!(refused.message.contains(&format!("`{short}` is too short")), "{refused:?}");
            assert!(refused.help.unwrap().starts_with("write 8 digits"), "{short}");
        }
        check_id("01234567", LEAST_DIGITS).unwrap();
        check_id(&"0".repeat(64), LEAST_DIGITS).unwrap();
        check_id("1", 1).unwrap();
        check_id("", 1).unwrap_err();
    }

    #[test]
    fn a_sender_of_another_name_than_any_is_refused_with_the_nearest() {
        let check = |name, configured: &[&'static str]| {
            check_sender(name, configured.iter().copied()).map_err(|error| (error.message, error.help.unwrap()))
        };
        check("github", &["gitlab", "github"]).unwrap();
        let unknown = "there is no sender `githbu`".to_owned();
        let asked = "did you mean `github`?".to_owned();
        assert_eq!(check("githbu", &["gitlab", "github"]), Err((unknown.clone(), asked)));
        assert_eq!(check("githbu", &["shop"]), Err((unknown, "known: shop".to_owned())));
        assert!(check("", &[]).unwrap_err().1.starts_with("no sender is configured"));
    }
}
