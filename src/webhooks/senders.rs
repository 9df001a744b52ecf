//! The senders, as one table. A new one is an entry here and a file of vectors.

use crate::config::{
    raw::{self, HmacAlgorithm, SignatureEncoding},
    values::{Size, Span},
};

use super::signature::{Form, Key};

/// What is known of a kind of sender.
#[derive(Debug)]
pub(super) struct Sender {
    /// Its name in identities; `None` where each entry of the configuration is a sender of its own.
    pub(super) label: Option<&'static str>,
    pub(super) max_body: Size,
    /// How long an answer may take: less than the sender waits.
    pub(super) answer_within: Span,
    /// How it signs, the strongest first. The first whose header a delivery has is the one that must verify.
    pub(super) forms: fn(&raw::Webhook) -> Vec<Form>,
    /// Makes a key of a configured secret, or says what is wrong with it.
    pub(super) key: fn(&raw::Webhook, &[u8]) -> Result<Key, &'static str>,
    /// Headers with the id of the delivery, which are not signed; the first that is there counts.
    pub(super) id_headers: &'static [&'static str],
    /// Whether a delivery without an id is malformed. Otherwise its body stands for it.
    pub(super) id_required: bool,
    pub(super) events: Events,
    /// Events that a sender sends to try a hook.
    pub(super) pings: &'static [&'static str],
    /// Where facts stand in the body; the first pointer that is there counts.
    pub(super) facts: &'static [(Field, &'static [&'static str])],
    /// Whether ids may be text.
    pub(super) text_ids: bool,
    /// Headers that an EventListener gets, besides `content-type` and `user-agent`. Never a secret, never an address
    /// that an interceptor would call (`x-github-enterprise-host`), never `ce-*`, which would turn the delivery into
    /// a CloudEvent.
    pub(super) passes: &'static [&'static str],
}

/// A fact, by how it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    Event,
    Action,
    Repository,
    RepositoryId,
    Owner,
    /// The plain name of a branch.
    Branch,
    /// A ref: full, or short with a [`Field::RefType`] beside it.
    Ref,
    /// `branch` or `tag`, or whether it is a tag.
    RefType,
    Commit,
    Actor,
    ActorId,
    /// Pairs of pointers to the ids of the source and of the target repository.
    Fork,
    PullRequest,
    Draft,
}

/// How an event is known.
#[derive(Debug)]
pub(super) enum Events {
    /// A header names it and the members of the body prove it.
    Shapes { header: &'static str, shapes: &'static [Shape] },
    /// The body names it; a header, if it has one of these values, must agree.
    Named { header: &'static str, names: &'static [(&'static str, &'static str)] },
    /// The body names it.
    Body,
}

impl Events {
    pub(super) fn header(&self) -> Option<&'static str> {
        match self {
            Self::Shapes { header, .. } | Self::Named { header, .. } => Some(header),
            Self::Body => None,
        }
    }
}

/// What proves an event: members that its body always has, and members that it never has.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) event: &'static str,
    pub(super) has: &'static [&'static str],
    pub(super) lacks: &'static [&'static str],
}

const fn shape(event: &'static str, has: &'static [&'static str], lacks: &'static [&'static str]) -> Shape {
    Shape { event, has, lacks }
}

/// The entry of a kind of sender.
pub(super) fn sender(kind: raw::Sender) -> &'static Sender {
    match kind {
        raw::Sender::Github => &GITHUB,
        raw::Sender::Gitlab => &GITLAB,
        raw::Sender::Generic => &GENERIC,
    }
}

/// The names in identities that belong to built-in senders.
pub(super) const LABELS: &[&str] = &["github", "gitlab"];

/// <https://docs.github.com/webhooks/webhook-events-and-payloads>
static GITHUB: Sender = Sender {
    label: Some("github"),
    max_body: Size::mib(26),
    answer_within: Span::from_secs(8),
    forms: |_| {
        vec![Form::Body {
            header: http::HeaderName::from_static("x-hub-signature-256"),
            prefix: "sha256=".into(),
            algorithm: HmacAlgorithm::Sha256,
            encoding: SignatureEncoding::Hex,
            timestamp: None,
        }]
    },
    key: |_, secret| Ok(Key::mac(HmacAlgorithm::Sha256, secret)),
    id_headers: &["x-github-delivery"],
    id_required: true,
    events: Events::Shapes { header: "x-github-event", shapes: GITHUB_SHAPES },
    pings: &["ping"],
    facts: &[
        (Field::Action, &["/action"]),
        (Field::Repository, &["/repository/full_name"]),
        (Field::RepositoryId, &["/repository/id"]),
        (Field::Owner, &["/repository/owner/login"]),
        (Field::Branch, &["/pull_request/base/ref"]),
        (Field::Ref, &["/ref"]),
        (Field::RefType, &["/ref_type"]),
        (
            Field::Commit,
            &[
                "/pull_request/head/sha",
                "/after",
                "/check_run/head_sha",
                "/check_suite/head_sha",
                "/workflow_run/head_sha",
                "/workflow_job/head_sha",
                "/merge_group/head_sha",
                "/deployment/sha",
                "/sha",
            ],
        ),
        (Field::Actor, &["/sender/login"]),
        (Field::ActorId, &["/sender/id"]),
        (Field::Fork, &["/pull_request/head/repo/id", "/pull_request/base/repo/id"]),
        (Field::PullRequest, &["/pull_request/number"]),
        (Field::Draft, &["/pull_request/draft"]),
    ],
    text_ids: false,
    passes: &[
        "x-github-event",
        "x-github-delivery",
        "x-github-hook-id",
        "x-github-hook-installation-target-type",
        "x-github-hook-installation-target-id",
        "x-hub-signature-256",
    ],
};

const GITHUB_SHAPES: &[Shape] = &[
    shape("ping", &["zen", "hook_id"], &[]),
    shape("push", &["ref", "before", "after", "commits"], &["pull_request"]),
    shape("pull_request", &["pull_request", "number", "action"], &["review", "comment", "thread"]),
    shape("pull_request_review", &["pull_request", "review", "action"], &["comment", "thread"]),
    shape("pull_request_review_comment", &["pull_request", "comment", "action"], &["review", "thread"]),
    shape("pull_request_review_thread", &["pull_request", "thread", "action"], &["review", "comment"]),
    shape("issues", &["issue", "action"], &["comment"]),
    shape("issue_comment", &["issue", "comment", "action"], &[]),
    shape("commit_comment", &["comment", "action"], &["issue", "pull_request", "discussion", "approver"]),
    shape("discussion", &["discussion", "action"], &["comment"]),
    shape("discussion_comment", &["discussion", "comment", "action"], &[]),
    shape("create", &["ref", "ref_type", "master_branch"], &[]),
    shape("delete", &["ref", "ref_type", "pusher_type"], &["master_branch"]),
    shape("release", &["release", "action"], &[]),
    shape("check_run", &["check_run", "action"], &["deployment"]),
    shape("check_suite", &["check_suite", "action"], &[]),
    shape("workflow_run", &["workflow_run", "workflow", "action"], &["deployment", "approver"]),
    shape("workflow_job", &["workflow_job", "action"], &[]),
    shape("workflow_dispatch", &["inputs", "ref", "workflow"], &["before"]),
    shape("repository_dispatch", &["client_payload", "branch", "action"], &[]),
    shape("deployment", &["deployment"], &["deployment_status", "approver", "deployment_callback_url"]),
    shape("deployment_protection_rule", &["deployment", "deployment_callback_url"], &[]),
    shape("deployment_review", &["workflow_run", "approver"], &[]),
    shape("deployment_status", &["deployment", "deployment_status"], &[]),
    shape("merge_group", &["merge_group", "action"], &[]),
    shape("status", &["sha", "state", "context"], &[]),
    shape("fork", &["forkee"], &[]),
    shape("gollum", &["pages"], &[]),
];

/// <https://docs.gitlab.com/user/project/integrations/webhook_events/>
static GITLAB: Sender = Sender {
    label: Some("gitlab"),
    max_body: Size::mib(26),
    answer_within: Span::from_secs(8),
    forms: |webhook| {
        let mut forms = vec![Form::StandardWebhooks];
        if !webhook.require_signature {
            forms.push(Form::Token { header: http::HeaderName::from_static("x-gitlab-token") });
        }
        forms
    },
    // A signing token is written `whsec_...` by GitLab, a plain token is whatever somebody chose.
    key: |_, secret| match secret.strip_prefix(b"whsec_") {
        Some(encoded) => Key::standard(encoded),
        None => Ok(Key::token(secret)),
    },
    id_headers: &["idempotency-key", "webhook-id"],
    id_required: false,
    events: Events::Named {
        header: "x-gitlab-event",
        names: &[
            ("Push Hook", "push"),
            ("Tag Push Hook", "tag_push"),
            ("Merge Request Hook", "merge_request"),
            ("Note Hook", "note"),
            ("Confidential Note Hook", "note"),
            ("Issue Hook", "issue"),
            ("Confidential Issue Hook", "issue"),
            ("Pipeline Hook", "pipeline"),
            ("Job Hook", "build"),
            ("Wiki Page Hook", "wiki_page"),
            ("Release Hook", "release"),
            ("Deployment Hook", "deployment"),
            ("Feature Flag Hook", "feature_flag"),
            ("Emoji Hook", "emoji"),
        ],
    },
    pings: &[],
    facts: &[
        (Field::Event, &["/object_kind", "/event_name"]),
        (Field::Action, &["/object_attributes/action"]),
        (Field::Repository, &["/project/path_with_namespace"]),
        (Field::RepositoryId, &["/project/id", "/project_id"]),
        (Field::Branch, &["/object_attributes/target_branch", "/merge_request/target_branch"]),
        (Field::Ref, &["/object_attributes/ref", "/ref"]),
        (Field::RefType, &["/object_attributes/tag", "/tag"]),
        (
            Field::Commit,
            &[
                "/object_attributes/last_commit/id",
                "/merge_request/last_commit/id",
                "/object_attributes/sha",
                "/after",
                "/checkout_sha",
                "/sha",
            ],
        ),
        (Field::Actor, &["/user/username", "/user_username"]),
        (Field::ActorId, &["/user/id", "/user_id"]),
        (
            Field::Fork,
            &[
                "/object_attributes/source_project_id",
                "/object_attributes/target_project_id",
                "/merge_request/source_project_id",
                "/merge_request/target_project_id",
            ],
        ),
        (Field::PullRequest, &["/merge_request/iid", "/object_attributes/iid"]),
        (Field::Draft, &["/object_attributes/draft", "/merge_request/draft"]),
    ],
    text_ids: false,
    passes: &[
        "x-gitlab-event",
        "x-gitlab-event-uuid",
        "x-gitlab-webhook-uuid",
        "idempotency-key",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ],
};

/// Any sender that puts an HMAC of the body into a header.
static GENERIC: Sender = Sender {
    label: None,
    max_body: Size::mib(10),
    answer_within: Span::from_secs(8),
    // The names of the headers were checked before.
    forms: |webhook| {
        webhook
            .signature
            .iter()
            .filter_map(|signature| {
                Some(Form::Body {
                    header: signature.header.parse().ok()?,
                    prefix: signature.prefix.as_str().into(),
                    algorithm: signature.algorithm,
                    encoding: signature.encoding,
                    timestamp: match &signature.timestamp_header {
                        Some(header) => Some(header.parse().ok()?),
                        None => None,
                    },
                })
            })
            .collect()
    },
    key: |webhook, secret| {
        let algorithm = webhook.signature.as_ref().map(|signature| signature.algorithm).unwrap_or_default();
        Ok(Key::mac(algorithm, secret))
    },
    id_headers: &[],
    id_required: true,
    events: Events::Body,
    pings: &[],
    facts: &[],
    text_ids: true,
    passes: &[],
};

/// Where a configured fact of the generic sender goes.
pub(super) const fn field(fact: raw::Fact) -> Field {
    match fact {
        raw::Fact::Event => Field::Event,
        raw::Fact::Repository => Field::Repository,
        raw::Fact::RepositoryId => Field::RepositoryId,
        raw::Fact::Branch => Field::Branch,
        raw::Fact::Commit => Field::Commit,
        raw::Fact::Sender => Field::Actor,
        raw::Fact::SenderId => Field::ActorId,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_well_formed() {
        for kind in [raw::Sender::Github, raw::Sender::Gitlab, raw::Sender::Generic] {
            let sender = sender(kind);
            assert!(sender.label.is_none_or(|label| LABELS.contains(&label)));
            let headers = sender.id_headers.iter().chain(sender.passes).copied().chain(sender.events.header());
            for header in headers {
                assert_eq!(http::HeaderName::from_static(header).as_str(), header);
            }
            for pointer in sender.facts.iter().flat_map(|(_, pointers)| *pointers) {
                assert!(pointer.starts_with('/'), "{pointer}");
            }
            for header in sender.passes {
                assert!(!header.starts_with("ce-") && !header.ends_with("-host") && *header != "x-gitlab-token");
            }
        }
    }
}
