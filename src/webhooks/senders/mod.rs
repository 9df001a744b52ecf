//! The senders, as one table: an entry for each, in a file of its maker. A new one is an entry, its arm in [`sender`]
//! and a file of vectors.

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

/// What is known of a kind of sender.
#[derive(Debug)]
pub(super) struct Sender {
    /// Its name in identities; `None` where each entry of the configuration is a sender of its own.
    pub(super) label: Option<&'static str>,
    /// The content types of its bodies. The facts are read from all of them.
    pub(super) media: &'static [Media],
    /// How a hook is set to send one of them.
    pub(super) media_fix: &'static str,
    pub(super) max_body: Size,
    /// How long an answer may take: less than the sender waits.
    pub(super) answer_within: Span,
    /// It sends each delivery once, whatever it hears.
    pub(super) never_retries: bool,
    /// It counts answers of 4xx as failures and switches off a hook that has some, so that what nobody wants is answered with 200.
    pub(super) counts_refusals: bool,
    /// Whether the same body may be another delivery.
    pub(super) bodies: Bodies,
    /// What somebody has sent again comes under an id of its own.
    pub(super) redelivers_anew: bool,
    /// How it signs, the strongest first. The first that a delivery uses is the one that must verify.
    pub(super) forms: fn(&raw::Webhook) -> Vec<Form>,
    /// Makes a key of a configured secret, or says what is wrong with it.
    pub(super) key: fn(&raw::Webhook, &[u8]) -> Result<Key, &'static str>,
    /// Headers with the id of the delivery, which are not signed; the first that is there counts.
    pub(super) id_headers: &'static [&'static str],
    /// Whether a delivery without an id is malformed. Otherwise its body tells the id ([`Field::Delivery`]), or stands
    /// for it.
    pub(super) id_required: bool,
    pub(super) events: Events,
    /// Events that a sender sends to try a hook.
    pub(super) pings: &'static [&'static str],
    /// Events of a push, where others have the same members for something else: who pushed is a [`Field::Pusher`], and a ref without
    /// a [`Field::RefType`] is full. Empty where all refs without one are.
    pub(super) pushes: &'static [&'static str],
    /// What the names of events begin with that tell of a build, as [`Field::NoRef`] says of others.
    pub(super) builds: &'static [&'static str],
    /// Where facts stand in the body; the first pointer that is there counts.
    pub(super) facts: &'static [(Field, &'static [&'static str])],
    /// What others call an action, and its own word for it.
    pub(super) own_actions: &'static [(&'static str, &'static str)],
    /// Whether ids may be text.
    pub(super) text_ids: bool,
    /// The settings that only some senders have.
    pub(super) takes: &'static [Setting],
    /// Headers that an EventListener gets, besides `content-type` and `user-agent`. Never a secret, never an address
    /// that an interceptor would call (`x-github-enterprise-host`), never `ce-*`, which would turn the delivery into
    /// a CloudEvent.
    pub(super) passes: &'static [&'static str],
}

/// Whether two deliveries of a sender may have the same body. Where they may, an operator can have their ids count alone, which
/// nobody signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bodies {
    /// None: each tells what changed or when, or its id is signed.
    Unique,
    /// Those of these events: of these actions, or of all where there are none.
    Repeat(&'static [(&'static str, &'static [&'static str])]),
    /// Any: nobody knows what it sends, or it tells times in whole seconds, in which something is done, undone and done again.
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

/// A content type that a body may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// `application/json`, in UTF-8.
    Json,
    /// Another `application/...+json`, as registries call their notifications; not a CloudEvent.
    OtherJson,
    /// `application/x-www-form-urlencoded`, signed as it comes.
    Form,
    /// `text/plain`, which JSON of SNS calls itself.
    Text,
    /// `application/cloudevents+json`, a whole event. An EventListener reads it as one, so the signature must cover it.
    CloudEvent,
}

/// What nearly all send.
const JSON: &[Media] = &[Media::Json];
const SET_JSON: &str = "set the content type of the hook to application/json";

/// Of a sender that has no setting for it.
const NOTHING_ELSE: &str = "this sender sends nothing else, so it is another's: look who sends to this address";

/// What is to be found out of every new sender, as what is taken as genuine, and once, depends on it.
#[derive(Clone, Copy, Debug)]
struct Stated {
    counts_refusals: bool,
    bodies: Bodies,
    id_required: bool,
    text_ids: bool,
}

/// What most senders have, beside what each states of itself; an entry says what it has otherwise.
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
        builds: &[],
        facts: &[],
        own_actions: &[],
        text_ids,
        takes: &[],
        passes: &[],
    }
}

/// A setting of the configuration that only some senders have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    RequireSignature,
    UnsignedPings,
    Signature,
    Facts,
}

/// A fact, by how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    /// The id of the delivery.
    Delivery,
    Event,
    Action,
    /// `owner/name`, or a name that stands beside an owner.
    Repository,
    RepositoryId,
    Owner,
    /// The plain name of a branch.
    Branch,
    /// The plain name of a tag. Where others of its bodies tell there whether a ref is one, that is no name.
    Tag,
    /// A ref: full, or short with a [`Field::RefType`] beside it.
    Ref,
    /// `branch` or `tag`, or whether it is a tag.
    RefType,
    /// Where a [`Field::Ref`] is full also with a [`Field::RefType`] beside it.
    FullRef,
    /// Lists of refs that changed, if there may be several. Those of more than one are no facts.
    Changes,
    /// What the news of a build of a change that is not merged yet has, all of it: the branch into which it would be merged is not
    /// what was built.
    Unmerged,
    /// A ref that names such a change, if it begins with `refs/merge-requests/`. It may come with the sign of a branch.
    UnmergedRef,
    /// What any news of a build, a check or a deployment has. Those are of no one ref: whoever proposes a change chooses what its
    /// branch is called.
    NoRef,
    Commit,
    Actor,
    ActorId,
    /// Who made what the event is about, and so has caused it where its name ends with `created`.
    Author,
    AuthorId,
    /// Who pushed, in an event that is one of [`Sender::pushes`].
    Pusher,
    PusherId,
    /// Whether what was built came from a fork, in so many words.
    ForkFlag,
    /// Pairs of pointers to the ids of the source and of the target repository.
    Fork,
    /// Pairs of pointers to what every pull request has, and to what one from a fork has besides.
    ForkMark,
    /// The branch that a change is proposed from. One without was pushed by somebody who may have no branches there.
    SourceBranch,
    /// The number of a pull request, in an event that has two repositories or a [`Field::PullRequestMark`].
    PullRequest,
    /// What an issue has that is a pull request.
    PullRequestMark,
    Draft,
    /// Members of which a form has one and no other.
    FormKind,
    /// What a form has by which the sender tries its hook. It names the event.
    FormPing,
    /// What the sender wants to read in the answer to its [`Sender::pings`].
    Challenge,
    /// When the event was, in a body that is signed.
    Date,
}

/// How an event is known.
#[derive(Debug)]
pub(super) enum Events {
    /// A header names it and the members of the body prove it. `twins` are headers that say the same, as hosts send what those before
    /// them did; interceptors of Tekton read them. `unnamed` is the event whose header is empty.
    Shapes {
        header: &'static str,
        twins: &'static [&'static str],
        shapes: &'static [&'static [Shape]],
        unnamed: Option<&'static str>,
    },
    /// The body names it. What `names` has comes under these values of the header alone, of which one may stand for several, or under
    /// those that stand for `all`.
    Named { header: &'static str, names: &'static [(&'static str, &'static str)], all: &'static [&'static str] },
    /// The body names it, and a header that must agree. Bodies of one shape have no name.
    Same { header: &'static str, unnamed: &'static Shape },
    /// The body is an envelope, whose kind a header tells as well; what is within names the event.
    Within { header: &'static str },
    /// The body names it.
    Body,
}

impl Events {
    /// All that a delivery may be of, where that is a closed list.
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

/// What proves an event: members that a body has, members that it never has, and a text in it.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) event: &'static str,
    pub(super) has: &'static [&'static str],
    /// Members that it has as well, which may be null.
    pub(super) or_null: &'static [&'static str],
    pub(super) lacks: &'static [&'static str],
    /// A pointer and what stands there.
    pub(super) says: Option<(&'static str, &'static str)>,
    /// Every body of the event is so, and no other is taken under its name. Else one that is like no event is taken, without an event.
    pub(super) always: bool,
}

const fn shape(event: &'static str, has: &'static [&'static str], lacks: &'static [&'static str]) -> Shape {
    Shape { event, has, or_null: &[], lacks, says: None, always: true }
}

/// One that some bodies of the event have, or all as far as is known.
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

/// The facts that an entry of the configuration points at: where each goes, its key there, and the pointer.
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
        (Field::Actor, "sender", &facts.sender),
        (Field::ActorId, "sender_id", &facts.sender_id),
    ]
    .into_iter()
    .filter_map(|(field, key, pointer)| Some((field, key, pointer.as_deref()?)))
}

/// The lists in which an entry of the configuration has what denies may name: a branch, a tag, an event or an action.
pub(super) fn configured_lists(facts: &raw::FactPointers) -> impl Iterator<Item = &str> {
    let named = configured(facts)
        .filter(|(field, ..)| matches!(field, Field::Branch | Field::Tag | Field::Ref | Field::Event | Field::Action));
    named.flat_map(|(_, _, pointer)| {
        let elements = pointer.match_indices("/*").map(|(at, _)| pointer.split_at(at));
        elements.filter(|(_, rest)| *rest == "/*" || rest.starts_with("/*/")).map(|(list, _)| list)
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
