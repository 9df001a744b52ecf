//! What the deliveries of a sender can contain, for checks of rules and of revocations.

use super::{
    facts::is_text_id,
    senders::{self, Field, sender},
    sns,
};
use crate::config::raw;

/// Whether ids of this sender's repositories and people may be text.
pub fn has_text_ids(raw: &raw::Webhook) -> bool {
    sender(raw.sender).text_ids
}

/// The events that deliveries of this sender can have, if that is a closed list: those that a body proves.
pub fn known_events(raw: &raw::Webhook) -> Option<impl Iterator<Item = &'static str> + use<>> {
    sender(raw.sender).events.closed()
}

/// The facts that conditions of rules name, with the places that they are read from.
const NAMED: [(&str, &[Field]); 6] = [
    ("event", &[Field::Event]),
    ("action", &[Field::Action]),
    ("branch", &[Field::Branch, Field::Ref]),
    ("tag", &[Field::Tag, Field::Ref]),
    ("fork", &[Field::Fork, Field::ForkFlag, Field::ForkMark]),
    ("draft", &[Field::Draft]),
];

/// The facts that rules can name and no delivery of this sender has.
pub fn missing_facts(raw: &raw::Webhook) -> impl Iterator<Item = &'static str> {
    let proves_events = known_events(raw).is_some();
    NAMED.into_iter().filter_map(move |(fact, fields)| {
        let has = (fact == "event" && proves_events) || fields.iter().any(|field| has_field(raw, *field));
        (!has).then_some(fact)
    })
}

/// The events that Doorward answers itself, before any rule is evaluated.
pub fn answered_events(raw: &raw::Webhook) -> &'static [&'static str] {
    sender(raw.sender).pings
}

/// This sender's own names for an event (a push, or a change of a pull request) that only others call `event`.
pub fn own_events(raw: &raw::Webhook, event: &str) -> Option<&'static [&'static str]> {
    let hosts = || raw::Sender::ALL.into_iter().map(sender);
    let this = sender(raw.sender);
    let own = if hosts().any(|host| host.pushes.contains(&event)) {
        this.pushes
    } else if hosts().any(|host| host.pull_requests.contains(&event)) {
        this.pull_requests
    } else {
        return None;
    };
    (!own.is_empty() && !own.contains(&event)).then_some(own)
}

/// This sender's own name for an action that others call `action`.
pub fn own_action(raw: &raw::Webhook, action: &str) -> Option<&'static str> {
    sender(raw.sender).own_actions.iter().find(|(others, _)| *others == action).map(|(_, own)| *own)
}

/// The repeated changes of this event that are lost, because their bodies are identical however much time is between,
/// and the entry does not set `unique_bodies`. Bodies of Gogs contain no time of a pull request and no commit, and
/// labelling an issue updates no time.
pub fn loses(raw: &raw::Webhook, event: &str) -> Option<&'static str> {
    if raw.sender != raw::Sender::Gogs || raw.unique_bodies.is_some() {
        return None;
    }
    match event {
        "pull_request" => {
            Some("a pull request that is closed, reopened, edited, assigned or labelled for the second time")
        }
        "issues" => Some("an issue that gets or loses a label for the second time"),
        _ => None,
    }
}

/// Whether deliveries contain the id of their repository.
pub fn numbers_repositories(raw: &raw::Webhook) -> bool {
    repository_ids(raw).is_some()
}

/// Whether deliveries contain the id of the person who caused them.
pub fn numbers_people(raw: &raw::Webhook) -> bool {
    has_field(raw, Field::ActorId) || has_field(raw, Field::AuthorId)
}

/// How this sender writes the id that is meant by a text: another text if no delivery can have this one, `None` if it
/// could mean none.
pub fn written_id(raw: &raw::Webhook, id: &str) -> Option<String> {
    let id = id.trim();
    if !has_text_ids(raw) {
        return Some(id.parse::<u64>().ok()?.to_string());
    }
    // A sender that each entry describes may write GUIDs in either way.
    let is_lowercase = sender(raw.sender).label.is_some() && is_guid(id);
    Some(if is_lowercase { id.to_ascii_lowercase() } else { id.to_owned() }).filter(|id| is_text_id(id))
}

/// [`written_id`] for the id of a repository.
pub fn written_repository_id(raw: &raw::Webhook, id: &str) -> Option<String> {
    match repository_ids(raw)? {
        CODE_COMMIT => sns::written_repository_id(id.trim()),
        _ => written_id(raw, id),
    }
}

/// What stands for the id of a repository in instructions; `None` if no delivery of this sender has one.
pub fn repository_ids(raw: &raw::Webhook) -> Option<&'static str> {
    match (raw.sender, has_field(raw, Field::RepositoryId), has_text_ids(raw)) {
        (raw::Sender::AwsSns, false, _) => Some(CODE_COMMIT),
        (_, false, _) => None,
        (_, true, false) => Some("NUMBER"),
        (_, true, true) => Some("ID"),
    }
}

const CODE_COMMIT: &str = "REGION/ACCOUNT/NAME";

/// Whether it is a GUID such as `{673a6070-3421-46c9-9d48-90745f7bfe8e}`. Nothing else is in braces.
fn is_guid(text: &str) -> bool {
    text.starts_with('{') || (uuid::Uuid::try_parse(text).is_ok() && text.len() == uuid::fmt::Hyphenated::LENGTH)
}

/// Whether names of branches and tags are bare. Places that the configuration names may contain full refs.
pub fn has_bare_names(raw: &raw::Webhook) -> bool {
    raw.facts.branch.is_none() && raw.facts.tag.is_none()
}

fn has_field(raw: &raw::Webhook, wanted: Field) -> bool {
    let known = sender(raw.sender).facts.iter().map(|(field, _)| *field);
    known.chain(senders::configured(&raw.facts).map(|(field, ..)| field)).any(|field| field == wanted)
}
