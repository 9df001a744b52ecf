//! The table of senders, with one entry per sender in a file per vendor. A new sender needs an entry, its arm in
//! [`sender`], and a file of vectors.

mod azure;
mod bitbucket;
mod generic;
mod gitea;
mod github;
mod gitlab;
mod registries;
mod slack;
mod sns;

use super::{
    facts::Facts,
    signature::{Form, Key},
};
use crate::config::{
    raw,
    values::{Size, Span},
};

/// The properties of a kind of sender.
#[derive(Debug)]
pub(super) struct Sender {
    /// Its name in identities; `None` if each entry of the configuration is a sender of its own.
    pub(super) label: Option<&'static str>,
    /// The accepted content types. Facts are read from all of them.
    pub(super) media: &'static [Media],
    /// How to configure a hook to use one of them.
    pub(super) media_fix: &'static str,
    pub(super) max_body: Size,
    /// How long an answer may take: less than the sender's timeout.
    pub(super) answer_within: Span,
    /// Whether it sends each delivery only once, whatever the answer.
    pub(super) never_retries: bool,
    /// Whether it counts 4xx answers as failures and disables a hook after some, so that unwanted deliveries are
    /// answered with 200.
    pub(super) counts_refusals: bool,
    /// Whether another delivery may have the same body.
    pub(super) bodies: Bodies,
    /// Whether redeliveries that somebody requests have an id of their own.
    pub(super) redelivers_anew: bool,
    /// How it signs, the strongest form first. The first that a delivery uses must verify.
    pub(super) forms: fn(&raw::Webhook) -> Vec<Form>,
    /// Makes a key of a configured secret, or returns what is wrong with it.
    pub(super) key: fn(&raw::Webhook, &[u8]) -> Result<Key, &'static str>,
    /// Headers with the id of the delivery, which are not signed; the first that is present counts.
    pub(super) id_headers: &'static [&'static str],
    /// Whether a delivery without an id is malformed. Otherwise the id is in the body ([`Field::Delivery`]) or is the
    /// hash of the body.
    pub(super) id_required: bool,
    pub(super) events: Events,
    /// Events that test a hook.
    pub(super) pings: &'static [&'static str],
    /// The events of pushes. In these [`Field::Pusher`] is the person who pushed, and a push that names no ref may have
    /// changed any.
    pub(super) pushes: &'static [&'static str],
    /// The events that change a pull request, whatever the host calls one.
    pub(super) pull_requests: &'static [&'static str],
    /// Whether a ref without a [`Field::RefType`] is full in pushes alone.
    pub(super) short_refs: bool,
    /// Prefixes of the names of events that are about a proposed change, if their bodies may lack its details. A change
    /// without them counts as one from a fork.
    pub(super) proposals: &'static [&'static str],
    /// Prefixes of the names of events that are about a build, as [`Field::NoRef`] is for other senders.
    pub(super) builds: &'static [&'static str],
    /// Where facts are in the body; the first pointer that is present counts.
    pub(super) facts: &'static [(Field, &'static [&'static str])],
    /// Other senders' names of actions, with this sender's own.
    pub(super) own_actions: &'static [(&'static str, &'static str)],
    /// Whether ids may be text.
    pub(super) text_ids: bool,
    /// The optional settings that this sender has.
    pub(super) takes: &'static [Setting],
    /// Headers that are forwarded to an EventListener, besides `content-type` and `user-agent`. Never a secret, an
    /// address that an interceptor would call (`x-github-enterprise-host`), or `ce-*`, which would turn the delivery
    /// into a CloudEvent.
    pub(super) passes: &'static [&'static str],
}

/// Whether two deliveries of a sender may have the same body. If so, an operator can let only their ids count, which
/// are not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bodies {
    /// Never: each contains what changed or when, or its id is signed.
    Unique,
    /// For these events: with one of these actions, or with any if there are none.
    Repeat(&'static [(&'static str, &'static [&'static str])]),
    /// Always: the contents are unknown, or contain times in whole seconds, within which something can be done, undone
    /// and done again.
    Any,
}

impl Bodies {
    pub(super) fn may_repeat(self, facts: &Facts) -> bool {
        let is_of = |(event, actions): &(&str, &[&str])| {
            let is_action = |action: &str| actions.contains(&action);
            facts.event.as_deref() == Some(event)
                && (actions.is_empty() || facts.action.as_deref().is_some_and(is_action))
        };
        match self {
            Self::Unique => false,
            Self::Repeat(events) => events.iter().any(is_of),
            Self::Any => true,
        }
    }
}

/// An accepted content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// `application/json`, in UTF-8.
    Json,
    /// Another `application/...+json`, as in notifications of registries; not a CloudEvent.
    OtherJson,
    /// `application/x-www-form-urlencoded`, signed as it is sent.
    Form,
    /// `text/plain`, the type that SNS gives its JSON.
    Text,
    /// `application/cloudevents+json`, a complete event. An EventListener reads it as one, so the signature must cover
    /// it.
    CloudEvent,
}

/// The content type of nearly all senders.
const JSON: &[Media] = &[Media::Json];
const SET_JSON: &str = "set the content type of the hook to application/json";

/// The remedy for a sender whose content type is not configurable.
const NOTHING_ELSE: &str =
    "this sender always uses that type, so the request is from somebody else: find out who sends to this address";

/// Properties that must be determined for every new sender, as they decide what is accepted as genuine and as new.
#[derive(Clone, Copy, Debug)]
struct Stated {
    counts_refusals: bool,
    bodies: Bodies,
    id_required: bool,
    text_ids: bool,
}

/// The defaults of most senders, with the properties that each must state. An entry overrides what differs.
const fn stating(Stated { counts_refusals, bodies, id_required, text_ids }: Stated) -> Sender {
    Sender {
        label: None,
        media: JSON,
        media_fix: SET_JSON,
        max_body: Size::mib(10),
        answer_within: Span::from_secs(8),
        never_retries: false,
        counts_refusals,
        bodies,
        redelivers_anew: false,
        forms: |_| Vec::new(),
        key: |_, secret| Ok(Key::mac(raw::HmacAlgorithm::Sha256, secret)),
        id_headers: &[],
        id_required,
        events: Events::Body,
        pings: &[],
        pushes: &[],
        pull_requests: &[],
        short_refs: false,
        proposals: &[],
        builds: &[],
        facts: &[],
        own_actions: &[],
        text_ids,
        takes: &[],
        passes: &[],
    }
}

/// A setting that only some senders have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    RequireSignature,
    UnsignedPings,
    Signature,
    Facts,
}

/// A fact, or another value of a body that facts depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    /// The id of the delivery.
    Delivery,
    Event,
    Action,
    /// `owner/name`, or a name that has an owner in another field.
    Repository,
    RepositoryId,
    Owner,
    /// The bare name of a branch.
    Branch,
    /// The bare name of a tag. Other bodies may have a flag in the same place (whether a ref is a tag), which is
    /// ignored.
    Tag,
    /// A ref: full, or short with a [`Field::RefType`] beside it.
    Ref,
    /// `branch` or `tag`, or whether it is a tag.
    RefType,
    /// Present if a [`Field::Ref`] is full even with a [`Field::RefType`].
    FullRef,
    /// Lists of changed refs, if there may be several. Refs of a list with more than one are not facts.
    Changes,
    /// Lists of actions, if there may be several. With more than one, neither the action nor the event is a fact.
    Actions,
    /// Members that are all present in a notification about the build of an unmerged change. Its target branch is not
    /// what was built.
    Unmerged,
    /// A ref that is of such a change if it begins with `refs/merge-requests/`. It may be marked as a branch.
    UnmergedRef,
    /// Present in notifications about a build, a check or a deployment. These have no single ref: whoever proposes a
    /// change chooses the name of its branch.
    NoRef,
    Commit,
    Actor,
    ActorId,
    /// The author of what the event is about, who has also caused the event if its name ends with `created`.
    Author,
    AuthorId,
    /// The person who pushed, in one of the [`Sender::pushes`].
    Pusher,
    PusherId,
    /// Whether what was built came from a fork, as an explicit flag.
    ForkFlag,
    /// Pairs of pointers: to the ids of the source and the target repository.
    Fork,
    /// Pairs of pointers: to a member of every pull request that is sent with its details, and to one of these details
    /// that only those from a fork have.
    ForkMark,
    /// The source branch of a change. A change without one was pushed by somebody who may not be allowed to create
    /// branches.
    SourceBranch,
    /// The number of a pull request, if the event has two repositories or a [`Field::PullRequestMark`].
    PullRequest,
    /// Present in an issue that is a pull request.
    PullRequestMark,
    Draft,
    /// Members of which a form has exactly one.
    FormKind,
    /// A member of the form that tests a hook. It names the event.
    FormPing,
    /// The value that the sender expects in the answer to its [`Sender::pings`].
    Challenge,
    /// The time of the event, in a body that is signed.
    Date,
}

/// How the event of a delivery is determined.
#[derive(Debug)]
pub(super) enum Events {
    /// A header names it and the members of the body prove it. `twins` are headers with the same value, which hosts
    /// send for compatibility with their predecessors, and which Tekton's interceptors read. `unnamed` is the event
    /// whose header is empty.
    Shapes {
        header: &'static str,
        twins: &'static [&'static str],
        shapes: &'static [&'static [Shape]],
        unnamed: Option<&'static str>,
    },
    /// The body names it. An event listed in `names` is accepted only under the listed header values, of which one may
    /// stand for several events, or under those in `all`.
    Named { header: &'static str, names: &'static [(&'static str, &'static str)], all: &'static [&'static str] },
    /// The body names it, and a header must have the same value. Bodies of one shape contain no name.
    Same { header: &'static str, unnamed: &'static Shape },
    /// The body is an envelope, whose type is also in a header; its contents name the event.
    Within { header: &'static str },
    /// The body names it.
    Body,
}

impl Events {
    /// All possible events, if that is a closed list.
    pub(super) fn closed(&self) -> Option<impl Iterator<Item = &'static str> + use<>> {
        match self {
            Self::Shapes { shapes, .. } => Some(shapes.iter().flat_map(|shapes| *shapes).map(|shape| shape.event)),
            _ => None,
        }
    }

    /// Other headers that name it.
    pub(super) fn twins(&self) -> &'static [&'static str] {
        match self {
            Self::Shapes { twins, .. } => twins,
            _ => &[],
        }
    }

    /// The event that an empty header stands for.
    pub(super) fn unnamed(&self) -> Option<&'static str> {
        match self {
            Self::Shapes { unnamed, .. } => *unnamed,
            _ => None,
        }
    }

    pub(super) fn header(&self) -> Option<&'static str> {
        match self {
            Self::Shapes { header, .. }
            | Self::Named { header, .. }
            | Self::Same { header, .. }
            | Self::Within { header } => Some(header),
            Self::Body => None,
        }
    }
}

/// What proves an event: members that its body has, members that it never has, and a text in it.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) event: &'static str,
    pub(super) has: &'static [&'static str],
    /// Members that it also has, but may be null.
    pub(super) or_null: &'static [&'static str],
    pub(super) lacks: &'static [&'static str],
    /// A pointer and the text there.
    pub(super) says: Option<(&'static str, &'static str)>,
    /// Whether every body of the event has this shape; a body without it is then refused under the event's name.
    /// Otherwise a body that matches no event is accepted without an event.
    pub(super) always: bool,
}

const fn shape(event: &'static str, has: &'static [&'static str], lacks: &'static [&'static str]) -> Shape {
    Shape { event, has, or_null: &[], lacks, says: None, always: true }
}

/// A shape of some bodies of the event, or of all that are known.
const fn some(event: &'static str, has: &'static [&'static str], lacks: &'static [&'static str]) -> Shape {
    Shape { always: false, ..shape(event, has, lacks) }
}

/// The entry of a kind of sender.
pub(super) fn sender(kind: raw::Sender) -> &'static Sender {
    match kind {
        raw::Sender::Github => &github::GITHUB,
        raw::Sender::Gitlab => &gitlab::GITLAB,
        raw::Sender::Gitea => &gitea::GITEA,
        raw::Sender::Forgejo => &gitea::FORGEJO,
        raw::Sender::Gogs => &gitea::GOGS,
        raw::Sender::BitbucketCloud => &bitbucket::CLOUD,
        raw::Sender::BitbucketDataCenter => &bitbucket::DATA_CENTER,
        raw::Sender::AzureDevops => &azure::AZURE_DEVOPS,
        raw::Sender::Slack => &slack::SLACK,
        raw::Sender::AwsSns => &sns::AWS_SNS,
        raw::Sender::Harbor => &registries::HARBOR,
        raw::Sender::DockerHub => &registries::DOCKER_HUB,
        raw::Sender::StandardWebhooks => &generic::STANDARD_WEBHOOKS,
        raw::Sender::Generic => &generic::ANY,
    }
}

/// Whether a name in identities belongs to a kind of sender.
pub(super) fn is_label(name: &str) -> bool {
    raw::Sender::ALL.into_iter().any(|kind| sender(kind).label == Some(name))
}

/// The facts that an entry of the configuration points at: the field, its key in the configuration, and the pointer.
pub(super) fn configured(facts: &raw::FactPointers) -> impl Iterator<Item = (Field, &'static str, &str)> {
    [
        (Field::Event, "event", &facts.event),
        (Field::Action, "action", &facts.action),
        (Field::Repository, "repository", &facts.repository),
        (Field::RepositoryId, "repository_id", &facts.repository_id),
        (Field::Owner, "owner", &facts.owner),
        (Field::Branch, "branch", &facts.branch),
        (Field::Tag, "tag", &facts.tag),
        (Field::Ref, "ref", &facts.reference),
        (Field::Commit, "commit", &facts.commit),
        (Field::Actor, "actor", &facts.actor),
        (Field::ActorId, "actor_id", &facts.actor_id),
    ]
    .into_iter()
    .filter_map(|(field, key, pointer)| Some((field, key, pointer.as_deref()?)))
}

/// The lists that contain what denies may name (a branch, a tag, an event or an action), according to an entry of the
/// configuration: the field that each is an element of, and its pointer.
pub(super) fn configured_lists(facts: &raw::FactPointers) -> impl Iterator<Item = (Field, &str)> {
    let named = configured(facts).filter_map(|(field, _, pointer)| match field {
        Field::Branch | Field::Tag | Field::Ref | Field::Event => Some((Field::Changes, pointer)),
        Field::Action => Some((Field::Actions, pointer)),
        _ => None,
    });
    named.flat_map(|(field, pointer)| {
        let elements = pointer.match_indices("/*").map(|(at, _)| pointer.split_at(at));
        elements.filter(|(_, rest)| *rest == "/*" || rest.starts_with("/*/")).map(move |(list, _)| (field, list))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_well_formed() {
        for kind in raw::Sender::ALL {
            let sender = sender(kind);
            assert!(sender.label.is_none_or(is_label));
            let named = sender.events.twins().iter().copied().chain(sender.events.header());
            let headers = sender.id_headers.iter().chain(sender.passes).copied().chain(named);
            for header in headers {
                assert_eq!(http::HeaderName::from_static(header).as_str(), header);
            }
            for pointer in sender.facts.iter().flat_map(|(_, pointers)| *pointers) {
                assert!(pointer.starts_with('/'), "{pointer}");
            }
            for header in sender.passes {
                assert!(!header.starts_with("ce-") && !header.ends_with("-host"), "{header}");
                assert!(!["x-gitlab-token", "authorization", "cookie"].contains(header), "{header}");
            }
            for (field, pointers) in sender.facts {
                assert!(!matches!(field, Field::Fork | Field::ForkMark) || pointers.len() % 2 == 0, "{pointers:?}");
            }
        }
    }
}
