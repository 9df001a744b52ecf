//! What the deliveries of a sender can tell, for who checks what rules ask of them.

use super::senders::{self, Field, sender};
use crate::config::raw;

/// Whether the numbers of this sender's repositories and people may be text.
pub fn has_text_ids(raw: &raw::Webhook) -> bool {
    sender(raw.sender).text_ids
}

/// Whether it is known how this sender writes numbers.
pub fn has_known_ids(raw: &raw::Webhook) -> bool {
    sender(raw.sender).label.is_some()
}

/// The events that deliveries of this sender may be of, where that is a closed list: those that a body proves.
pub fn known_events(raw: &raw::Webhook) -> Option<impl Iterator<Item = &'static str> + use<>> {
    sender(raw.sender).events.closed()
}

/// The events that are answered here, before any rule is looked at.
pub fn answered_events(raw: &raw::Webhook) -> &'static [&'static str] {
    sender(raw.sender).pings
}

/// What this sender calls an action that others call so.
pub fn own_action(raw: &raw::Webhook, action: &str) -> Option<&'static str> {
    sender(raw.sender).own_actions.iter().find(|(others, _)| *others == action).map(|(_, own)| *own)
}

/// What of this event is told in the same words each time, however far apart, so that all but the first are lost where the entry does
/// not say that bodies repeat. Bodies of Gogs have no time of a pull request and no commit, and a label moves no time of an issue.
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

/// Whether deliveries tell the number of their repository.
pub fn numbers_repositories(raw: &raw::Webhook) -> bool {
    // SNS tells it within the name.
    raw.sender == raw::Sender::AwsSns || tells(raw, Field::RepositoryId)
}

/// Whether deliveries tell the number of who caused them.
pub fn numbers_people(raw: &raw::Webhook) -> bool {
    tells(raw, Field::ActorId) || tells(raw, Field::AuthorId)
}

/// Whether names of branches and tags are bare: the configuration does not say where a body has them, which may be full refs.
pub fn has_bare_names(raw: &raw::Webhook) -> bool {
    raw.facts.branch.is_none() && raw.facts.tag.is_none()
}

fn tells(raw: &raw::Webhook, wanted: Field) -> bool {
    let known = sender(raw.sender).facts.iter().map(|(field, _)| *field);
    known.chain(senders::configured(&raw.facts).map(|(field, ..)| field)).any(|field| field == wanted)
}
