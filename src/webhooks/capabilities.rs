//! What the deliveries of a sender can contain, for checks of rules.

use super::senders::{self, Field, sender};
use crate::config::raw;

/// Whether ids of this sender's repositories and people may be text.
pub fn has_text_ids(raw: &raw::Webhook) -> bool {
    sender(raw.sender).text_ids
}

/// Whether the format of this sender's ids is known.
pub fn has_known_ids(raw: &raw::Webhook) -> bool {
    sender(raw.sender).label.is_some()
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
    // SNS has it in the name.
    raw.sender == raw::Sender::AwsSns || has_field(raw, Field::RepositoryId)
}

/// Whether deliveries contain the id of the person who caused them.
pub fn numbers_people(raw: &raw::Webhook) -> bool {
    has_field(raw, Field::ActorId) || has_field(raw, Field::AuthorId)
}

/// Whether names of branches and tags are bare. Places that the configuration names may contain full refs.
pub fn has_bare_names(raw: &raw::Webhook) -> bool {
    raw.facts.branch.is_none() && raw.facts.tag.is_none()
}

fn has_field(raw: &raw::Webhook, wanted: Field) -> bool {
    let known = sender(raw.sender).facts.iter().map(|(field, _)| *field);
    known.chain(senders::configured(&raw.facts).map(|(field, ..)| field)).any(|field| field == wanted)
}
