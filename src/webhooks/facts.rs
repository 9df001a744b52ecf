//! Facts about the cause of a delivery, read from its verified body.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    document::{Found, MAX_TEXT, Place, Values, Wanted},
    senders::{Events, Field, Media, Sender, Shape},
};
use crate::clock::Timestamp;

/// The facts of a delivery, from the verified body alone, as most senders do not sign headers. Names are text that
/// strangers choose; numbers identify.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The `webhooks` entry.
    pub webhook: Arc<str>,
    /// The kind of sender in identities: `github`, `gitlab`, or the configured name.
    pub sender_kind: Arc<str>,
    /// The id of the delivery, or the hash of the body where the sender gives none.
    pub delivery: Arc<str>,
    /// `push`, `pull_request`, `merge_request`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Arc<str>>,
    /// `opened`, `synchronize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Arc<str>>,
    /// `owner/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<Arc<str>>,
    /// The number of the repository, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository_id: Option<Arc<str>>,
    /// The owner of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Arc<str>>,
    /// The branch that was pushed, or the target branch of a pull request, without `refs/heads/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branch: Option<Arc<str>>,
    /// The tag, without `refs/tags/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Arc<str>>,
    /// The commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<Arc<str>>,
    /// The login of the person who caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<Arc<str>>,
    /// The number of the person who caused it, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor_id: Option<Arc<str>>,
    /// Whether the change comes from a fork.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork: Option<bool>,
    /// The number of the pull request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<Arc<str>>,
    /// Whether the pull request is a draft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<bool>,
    /// It has no single ref: several changed at once, or it does not say which, or it is about a build, a check or a
    /// deployment. Then there is no branch and no tag, and a deny that names one matches.
    pub several: bool,
    /// It is about a build, a check or a deployment. If it does not say whether what was built came from a fork, a deny
    /// of forks matches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub build: bool,
}

/// The refs under which GitLab stores proposed merge requests; jobs of their pipelines have such a ref.
const UNMERGED: &str = "refs/merge-requests/";

/// The contents of a verified body.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) facts: Facts,
    /// The id of the delivery, if the body contains it.
    pub(super) delivery: Option<Arc<str>>,
    /// The value that the sender expects in the answer to its ping.
    pub(super) challenge: Option<Arc<str>>,
}

/// Why no facts can be read from a body. The text is for the caller, who has proved that they know the secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoFacts {
    #[error("{0}")]
    NotStrict(String),
    #[error("the event `{header}` in the header does not match the body{}", .body.as_ref().map(|body| format!(", which is of `{body}`")).unwrap_or_default())]
    EventMismatch { header: String, body: Option<String> },
    #[error("the form does not have exactly one of {0}")]
    UnknownForm(String),
    #[error("the value at `{0}` is not a time")]
    NotADate(String),
    #[error("the value at `{0}` cannot identify a {1}")]
    Misshapen(String, &'static str),
    #[error("the text at `{0}` is longer than {MAX_TEXT} bytes, which no name is")]
    TooLong(String),
}

impl NoFacts {
    /// The error for a value that cannot identify `what`.
    fn of(found: &Found, at: &str, what: &'static str) -> Self {
        match found {
            Found::LongText => Self::TooLong(at.to_owned()),
            _ => Self::Misshapen(at.to_owned(), what),
        }
    }
}

/// Reads the facts of one sender's bodies. The wanted places are compiled once.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    wanted: Wanted,
    fields: BTreeMap<Field, Vec<(Place, String)>>,
    events: CompiledEvents,
    /// See [`Sender`].
    pushes: &'static [&'static str],
    proposals: &'static [&'static str],
    builds: &'static [&'static str],
    short_refs: bool,
    /// Whether ids may be text, not only numbers.
    text_ids: bool,
}

#[derive(Clone, Debug)]
enum CompiledEvents {
    Shapes(Vec<CompiledShape>),
    Named { names: &'static [(&'static str, &'static str)], all: &'static [&'static str] },
    Same { unnamed: CompiledShape },
}

#[derive(Clone, Debug)]
struct CompiledShape {
    event: &'static str,
    has: Vec<Place>,
    or_null: Vec<Place>,
    lacks: Vec<Place>,
    says: Option<(Place, &'static str)>,
    always: bool,
}

impl CompiledShape {
    fn new(shape: &'static Shape, wanted: &mut Wanted) -> Self {
        let mut places = |names: &[&str]| names.iter().map(|name| wanted.add(&format!("/{name}"))).collect();
        let (has, or_null, lacks) = (places(shape.has), places(shape.or_null), places(shape.lacks));
        let says = shape.says.map(|(pointer, text)| (wanted.add(pointer), text));
        Self { event: shape.event, has, or_null, lacks, says, always: shape.always }
    }

    fn fits(&self, values: &Values) -> bool {
        // Go encodes a member without a value as null.
        let has = |place: &Place| values.get(*place).is_some_and(|found| !matches!(found, Found::Null));
        let says =
            |(place, text): &(Place, &str)| matches!(values.get(*place), Some(Found::Text(found)) if found == text);
        self.has.iter().all(has)
            && self.or_null.iter().all(|place| values.get(*place).is_some())
            && !self.lacks.iter().any(has)
            && self.says.as_ref().is_none_or(says)
    }
}

impl Reader {
    /// Compiles `fields`: for each fact, the pointers to where it may be; the first that is present counts.
    pub(super) fn new<'a>(fields: impl IntoIterator<Item = (Field, Vec<&'a str>)>, sender: &Sender) -> Self {
        let mut wanted = Wanted::default();
        let fields = fields
            .into_iter()
            .map(|(field, at)| (field, at.into_iter().map(|at| (wanted.add(at), at.to_owned())).collect()))
            .collect();
        let events = match &sender.events {
            Events::Shapes { shapes, .. } => {
                let shapes = shapes.iter().flat_map(|shapes| *shapes);
                CompiledEvents::Shapes(shapes.map(|shape| CompiledShape::new(shape, &mut wanted)).collect())
            }
            Events::Named { names, all, .. } => CompiledEvents::Named { names, all },
            Events::Same { unnamed, .. } => CompiledEvents::Same { unnamed: CompiledShape::new(unnamed, &mut wanted) },
            Events::Body | Events::Within { .. } => CompiledEvents::Named { names: &[], all: &[] },
        };
        let Sender { pushes, proposals, builds, short_refs, text_ids, .. } = *sender;
        Self { wanted, fields, events, pushes, proposals, builds, short_refs, text_ids }
    }

    /// The values at the wanted places of a verified body of this type.
    pub(super) fn values(&self, media: Media, body: &[u8]) -> Result<Values, NoFacts> {
        let values = match media {
            Media::Json | Media::OtherJson | Media::Text | Media::CloudEvent => self.wanted.read(body),
            Media::Form => self.wanted.read_form(body),
        };
        values.map_err(|error| NoFacts::NotStrict(error.to_string()))
    }

    /// The time of the event, if the body contains it.
    pub(super) fn date(&self, values: &Values) -> Result<Option<Timestamp>, NoFacts> {
        let Some((found, at)) = (Fields { reader: self, values }).all(Field::Date).next() else { return Ok(None) };
        let time = match found {
            Found::Text(text) => date(text),
            _ => None,
        };
        time.map(Some).ok_or_else(|| NoFacts::NotADate(at.to_owned()))
    }

    /// Reads the facts from these values. `event` is the event header, which is not signed.
    pub(super) fn read(&self, media: Media, values: &Values, event: Option<&str>) -> Result<Read, NoFacts> {
        let found = Fields { reader: self, values };
        let [repository, owner] = found.repository()?;
        let has_several_of = |list| found.all(list).any(|(found, _)| matches!(found, Found::List(2..)));
        let has_several_actions = has_several_of(Field::Actions);
        let has_several = has_several_actions || has_several_of(Field::Changes);
        let event = match media {
            Media::Form => found.form_event()?,
            _ => self.event(event, &found)?,
        };
        // Denies of an action match only if not even the event is known.
        let event = event.filter(|_| !has_several_actions);
        let is_push = event.as_deref().is_some_and(|event| self.pushes.contains(&event));
        let is_one_of =
            |begins: &[&str]| event.as_deref().is_some_and(|event| begins.iter().any(|begin| event.starts_with(begin)));
        let is_proposal = is_one_of(self.proposals);
        let is_of_no_ref = found.is_of_no_ref() || is_one_of(self.builds);
        let GitRef { branch, tag, is_either } = found.git_ref(is_push || !self.short_refs, is_push || is_proposal)?;
        // As with a deleted source, the fork is only presumed.
        let fork = found.fork().or_else(|| is_proposal.then_some(true));
        let is_made = event.as_deref().is_some_and(|event| event.ends_with("created"));
        // Issues and pipelines have a number too, but not two repositories.
        let is_pull_request = fork.is_some() || found.all(Field::PullRequestMark).next().is_some();
        let facts = Facts {
            event,
            action: found.text(Field::Action)?.filter(|_| !has_several_actions),
            repository_id: found.id(Field::RepositoryId, "repository")?,
            owner,
            repository,
            branch: branch.filter(|_| !is_of_no_ref),
            tag: tag.filter(|_| !is_of_no_ref),
            // Git writes a missing commit, such as that of a deleted branch, as zeros.
            commit: found.text(Field::Commit)?.filter(|commit| commit.bytes().any(|byte| byte != b'0')),
            actor: match found.text(Field::Actor)? {
                None if is_made => found.text(Field::Author)?,
                None if is_push => found.text(Field::Pusher)?,
                actor => actor,
            },
            actor_id: match found.id(Field::ActorId, "person")? {
                None if is_made => found.id(Field::AuthorId, "person")?,
                None if is_push => found.id(Field::PusherId, "person")?,
                actor => actor,
            },
            pull_request: if is_pull_request { found.id(Field::PullRequest, "pull request")? } else { None },
            fork,
            draft: found.flag(Field::Draft),
            several: is_of_no_ref || is_either || has_several,
            build: is_of_no_ref,
            ..Facts::default()
        };
        let delivery = found.text(Field::Delivery)?.filter(|id| is_delivery_id(id));
        Ok(Read { facts, delivery, challenge: found.text(Field::Challenge)? })
    }

    /// The event that the body itself proves. A header that contradicts it is refused: it is not signed, and the
    /// upstream would trust it.
    fn event(&self, header: Option<&str>, found: &Fields<'_>) -> Result<Option<Arc<str>>, NoFacts> {
        match &self.events {
            CompiledEvents::Shapes(shapes) => {
                let fits = |shape: &&CompiledShape| shape.fits(found.values);
                let header = header.unwrap_or_default();
                let mismatch = |body: Option<&CompiledShape>| NoFacts::EventMismatch {
                    header: header.to_owned(),
                    body: body.map(|shape| shape.event.to_owned()),
                };
                let mut named = shapes.iter().filter(|shape| shape.event == header);
                if named.clone().any(|shape| fits(&shape)) {
                    return Ok(Some(header.into()));
                }
                match shapes.iter().find(fits) {
                    // Nothing in the body distinguishes such events, so there is no event.
                    None if named.all(|shape| !shape.always) => Ok(None),
                    other => Err(mismatch(other)),
                }
            }
            CompiledEvents::Same { unnamed } => {
                let body = match found.text(Field::Event)? {
                    None if unnamed.fits(found.values) => Some(Arc::from(unnamed.event)),
                    body => body,
                };
                match header {
                    Some(header) if body.as_deref() != Some(header) => Err(NoFacts::EventMismatch {
                        header: header.to_owned(),
                        body: body.map(|body| (*body).to_owned()),
                    }),
                    _ => Ok(body),
                }
            }
            CompiledEvents::Named { names, all } => {
                let body = found.text(Field::Event)?;
                let (Some(header), Some(event)) = (header.filter(|header| !all.contains(header)), &body) else {
                    return Ok(body);
                };
                let is_listed = names.iter().any(|(known, named)| *known == header || *named == &**event);
                if is_listed && !names.contains(&(header, &**event)) {
                    return Err(NoFacts::EventMismatch { header: header.to_owned(), body: Some((**event).to_owned()) });
                }
                Ok(body)
            }
        }
    }
}

/// The values of one body, by field.
struct Fields<'a> {
    reader: &'a Reader,
    values: &'a Values,
}

impl<'a> Fields<'a> {
    /// The places where a field may be.
    fn places(&self, field: Field) -> &'a [(Place, String)] {
        self.reader.fields.get(&field).map_or(&[], Vec::as_slice)
    }

    /// The places of a field that have a value, with the value; `null` counts as absent.
    fn all(&self, field: Field) -> impl Iterator<Item = (&'a Found, &'a str)> {
        let values = self.values;
        self.places(field)
            .iter()
            .filter_map(|(place, at)| Some((values.get(*place)?, at.as_str())))
            .filter(|(found, _)| **found != Found::Null)
    }

    fn text(&self, field: Field) -> Result<Option<Arc<str>>, NoFacts> {
        match self.all(field).next() {
            None => Ok(None),
            Some((Found::Text(text), _)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty()).map(Into::into)),
            Some((found, at)) => Err(NoFacts::of(found, at, "name")),
        }
    }

    fn id(&self, field: Field, what: &'static str) -> Result<Option<Arc<str>>, NoFacts> {
        match self.all(field).next() {
            None => Ok(None),
            Some((Found::Number(number), _)) => Ok(Some(number.to_string().into())),
            // Gitea and Forgejo give negative numbers to actors that are not accounts, such as their Actions.
            Some((Found::Negative(number), _)) if field == Field::ActorId => Ok(Some(number.to_string().into())),
            Some((Found::Text(text), _)) if self.reader.text_ids && is_text_id(text) => Ok(Some(text.as_str().into())),
            Some((found, at)) => Err(NoFacts::of(found, at, what)),
        }
    }

    fn flag(&self, field: Field) -> Option<bool> {
        match self.all(field).next() {
            Some((Found::Bool(flag), _)) => Some(*flag),
            _ => None,
        }
    }

    /// The name of the repository and its owner; each may be part of the other.
    fn repository(&self) -> Result<[Option<Arc<str>>; 2], NoFacts> {
        let (name, owner) = (self.text(Field::Repository)?, self.text(Field::Owner)?);
        Ok(match (name, owner) {
            (Some(name), Some(owner)) if !name.contains('/') => [Some(format!("{owner}/{name}").into()), Some(owner)],
            (Some(name), None) => {
                let owner = name.rsplit_once('/').map(|(owner, _)| owner.into());
                [Some(name), owner]
            }
            (name, owner) => [name, owner],
        })
    }

    /// The event of a form, which must be of exactly one kind: its next reader may look at another field.
    fn form_event(&self) -> Result<Option<Arc<str>>, NoFacts> {
        if self.all(Field::FormKind).count() != 1 {
            let kinds: Vec<_> = self.places(Field::FormKind).iter().map(|(_, at)| at.as_str()).collect();
            return Err(NoFacts::UnknownForm(kinds.join(", ").replace('/', "")));
        }
        match self.all(Field::FormPing).next() {
            Some((_, at)) => Ok(at.strip_prefix('/').map(Into::into)),
            None => self.text(Field::Event),
        }
    }

    /// Whether the body is about a build, a check or a deployment.
    fn is_of_no_ref(&self) -> bool {
        let is_unmerged = |found: &Found| matches!(found, Found::Text(text) if text.starts_with(UNMERGED));
        self.is_unmerged()
            || self.all(Field::UnmergedRef).any(|(found, _)| is_unmerged(found))
            || self.all(Field::NoRef).next().is_some()
    }

    /// Whether the body is about a build of a change that is not merged.
    fn is_unmerged(&self) -> bool {
        let places = self.places(Field::Unmerged);
        let has = |(place, _): &(Place, String)| self.values.get(*place).is_some_and(|found| *found != Found::Null);
        !places.is_empty() && places.iter().all(has)
    }

    /// Whether the two repositories of a change differ. A deleted source counts as different, and so does one without a
    /// branch: anybody who can read a repository can push such a change to it. A pair whose target is no id says
    /// nothing.
    fn fork(&self) -> Option<bool> {
        if let Some(flag) = self.flag(Field::ForkFlag) {
            return Some(flag);
        }
        let pair = |field| self.places(field).as_chunks::<2>().0;
        let has = |place: &Place| self.values.get(*place).filter(|found| **found != Found::Null);
        let marked = pair(Field::ForkMark)
            .iter()
            .find_map(|[(of, _), (from, _)]| has(from).or_else(|| has(of)).map(|_| has(from).is_some()));
        if marked.is_some() {
            return marked;
        }
        let mut ids = pair(Field::Fork).iter().filter_map(|[(source, _), (target, _)]| {
            let target = self.values.get(*target).filter(|target| self.is_id(target))?;
            Some((self.values.get(*source), target))
        });
        ids.next().map(|(source, target)| source != Some(target) || self.has_no_branch())
    }

    /// Whether a value identifies something. For what an event lacks, a template of GitLab has `null`, or within quotes
    /// that word or nothing; its numbers are text there.
    fn is_id(&self, found: &Found) -> bool {
        match found {
            Found::Number(_) => true,
            Found::Text(text) if self.reader.text_ids => is_text_id(text),
            Found::Text(text) => text.parse::<u64>().is_ok(),
            _ => false,
        }
    }

    /// Whether a change explicitly has no source branch.
    fn has_no_branch(&self) -> bool {
        let mut found = self.places(Field::SourceBranch).iter().filter_map(|(place, _)| self.values.get(*place));
        found.any(|found| !matches!(found, Found::Text(name) if !name.is_empty()))
    }

    /// The branch and the tag: by their own names, of which builds of a tag have both, or from a ref. A ref is full
    /// (`refs/heads/main`) unless another field gives its type; if that type is neither a branch nor a tag, the ref may
    /// be either, since a branch itself may be called `refs/heads/main`. `is_full` says whether a ref without a type
    /// may be full. It must also begin with `refs/`: the API of Gitea sends a push with whatever its caller gives as
    /// the ref of a test, `main` or a commit. `has_ref` says whether there is a ref, even if the body does not name it.
    fn git_ref(&self, is_full: bool, has_ref: bool) -> Result<GitRef, NoFacts> {
        let branch = self.text(Field::Branch)?;
        // For some events this place only says whether the ref is a tag, or whether there is a tag beside a branch.
        let is_flag = matches!(self.all(Field::Tag).next(), Some((Found::Bool(_), at))
            if branch.is_some() || self.places(Field::RefType).iter().any(|(_, other)| other == at));
        let tag = if is_flag { None } else { self.text(Field::Tag)? };
        if branch.is_some() || tag.is_some() {
            return Ok(GitRef { branch, tag, is_either: false });
        }
        let Some(reference) = self.text(Field::Ref)? else {
            return Ok(if has_ref { GitRef::either() } else { GitRef::default() });
        };
        let stands_for = |prefix| reference.strip_prefix(prefix).filter(|name| !name.is_empty()).map(Arc::from);
        let full =
            || stands_for("refs/heads/").map(GitRef::branch).or_else(|| stands_for("refs/tags/").map(GitRef::tag));
        let kind = self.all(Field::RefType).next();
        if self.all(Field::FullRef).next().is_some()
            && let Some(full) = full()
        {
            // Versions that write short refs name a branch that is itself called `refs/tags/v1` in this way.
            let other = if full.tag.is_some() { "branch" } else { "tag" };
            let is_contradicted = matches!(kind, Some((Found::Text(kind), _)) if kind == other);
            return Ok(if is_contradicted { GitRef::either() } else { full });
        }
        Ok(match kind {
            Some((Found::Bool(is_tag), _)) if *is_tag => GitRef::tag(reference),
            Some((Found::Bool(_), _)) => GitRef::branch(reference),
            Some((Found::Text(kind), _)) if kind == "tag" => GitRef::tag(reference),
            Some((Found::Text(kind), _)) if kind == "branch" => GitRef::branch(reference),
            Some(_) => GitRef::either(),
            None if !is_full || !reference.starts_with("refs/") => GitRef::either(),
            None => full().unwrap_or_default(),
        })
    }
}

/// The branch or tag that a delivery is about.
#[derive(Default)]
struct GitRef {
    branch: Option<Arc<str>>,
    tag: Option<Arc<str>>,
    /// It can be any branch or tag, as the ref is missing, short or of an unknown or another type.
    is_either: bool,
}

impl GitRef {
    fn branch(name: Arc<str>) -> Self {
        Self { branch: Some(name), ..Self::default() }
    }

    fn tag(name: Arc<str>) -> Self {
        Self { tag: Some(name), ..Self::default() }
    }

    fn either() -> Self {
        Self { is_either: true, ..Self::default() }
    }
}

/// Parses RFC 3339, also with an offset without a colon, as Java writes it.
pub(super) fn date(text: &str) -> Option<Timestamp> {
    let written = match text.split_at_checked(text.len().checked_sub(2)?)? {
        (before, minutes) if before.ends_with(':') || text.ends_with('Z') => format!("{before}{minutes}"),
        (before, minutes) => format!("{before}:{minutes}"),
    };
    Timestamp::from_rfc3339(&written)
}

/// Whether a text can be an id. It becomes part of a user name, in which `:` is a separator.
pub(super) fn is_text_id(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// Whether a text can be the id of a delivery: as strict as for an id in a header.
pub(super) fn is_delivery_id(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}
