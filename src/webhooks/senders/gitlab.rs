//! GitLab.

use super::{Bodies, Events, Field, Sender, Setting, Stated, stating};
use crate::{
    config::values::Size,
    webhooks::signature::{Form, Key, WEBHOOK},
};

/// <https://docs.gitlab.com/user/project/integrations/webhook_events/>
pub(super) static GITLAB: Sender = Sender {
    label: Some("gitlab"),
    max_body: Size::mib(26),
    // It logs failures, and its worker treats a 5xx and a missing answer as done.
    never_retries: true,
    forms: |webhook| {
        let mut forms = vec![Form::StandardWebhooks(&WEBHOOK)];
        if !webhook.require_signature {
            forms.push(Form::token("x-gitlab-token"));
        }
        forms
    },
    // GitLab writes a signing token as `whsec_...`; a plain token is any text.
    key: |_, secret| match secret.strip_prefix(b"whsec_") {
        Some(encoded) => Key::standard(encoded),
        None => Ok(Key::token(secret)),
    },
    id_headers: &["idempotency-key", "webhook-id"],
    events: Events::Named {
        header: "x-gitlab-event",
        names: &[
            ("Push Hook", "push"),
            ("Tag Push Hook", "tag_push"),
            ("Merge Request Hook", "merge_request"),
            ("Note Hook", "note"),
            ("Confidential Note Hook", "note"),
            ("Issue Hook", "issue"),
            ("Issue Hook", "work_item"),
            ("Confidential Issue Hook", "issue"),
            ("Confidential Issue Hook", "work_item"),
            ("Work Item Hook", "work_item"),
            ("Confidential Work Item Hook", "work_item"),
            ("Pipeline Hook", "pipeline"),
            ("Job Hook", "build"),
            ("Wiki Page Hook", "wiki_page"),
            ("Release Hook", "release"),
            ("Deployment Hook", "deployment"),
            ("Feature Flag Hook", "feature_flag"),
            ("Emoji Hook", "emoji"),
        ],
        all: &["System Hook", "Service Hook"],
    },
    pushes: &["push", "tag_push", "repository_update"],
    pull_requests: &["merge_request"],
    short_refs: true,
    // The template of a webhook may leave members out.
    proposals: &["merge_request"],
    builds: &["deployment"],
    facts: &[
        (Field::Event, &["/object_kind", "/event_name"]),
        // A release or a milestone has it at the top level.
        (Field::Action, &["/object_attributes/action", "/action"]),
        (Field::Repository, &["/project/path_with_namespace"]),
        // A vulnerability has it in `object_attributes`.
        (Field::RepositoryId, &["/project/id", "/project_id", "/object_attributes/project_id"]),
        (Field::Branch, &["/object_attributes/target_branch", "/merge_request/target_branch"]),
        // The tag of a release; a job has a flag there.
        (Field::Tag, &["/tag"]),
        // A system hook reports a push (`repository_update`) as a list. For a merge request this is not a list.
        (Field::Changes, &["/changes"]),
        (Field::Ref, &["/object_attributes/ref", "/ref", "/changes/*/ref"]),
        (Field::RefType, &["/object_attributes/tag", "/tag"]),
        // Present in the pipeline of a merge request, and in a job of one.
        (Field::Unmerged, &["/builds", "/merge_request"]),
        (Field::UnmergedRef, &["/object_attributes/ref", "/ref", "/changes/*/ref"]),
        (
            Field::Commit,
            &[
                "/object_attributes/last_commit/id",
                "/merge_request/last_commit/id",
                "/object_attributes/sha",
                // For an annotated tag, `after` is the tag object.
                "/checkout_sha",
                "/after",
                "/sha",
                // In a release, and in what a comment is about. A job has a number there.
                "/commit/id",
                "/changes/*/after",
            ],
        ),
        (Field::Actor, &["/user/username"]),
        (Field::ActorId, &["/user/id"]),
        // In events about members and accounts this is the person concerned, not the one who caused the event.
        (Field::Pusher, &["/user_username"]),
        (Field::PusherId, &["/user_id"]),
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
    own_actions: &[
        ("opened", "open"),
        ("synchronize", "update"),
        ("synchronized", "update"),
        ("closed", "close"),
        ("reopened", "reopen"),
        ("merged", "merge"),
    ],
    takes: &[Setting::RequireSignature],
    passes: &[
        "x-gitlab-event",
        "x-gitlab-event-uuid",
        "x-gitlab-webhook-uuid",
        "idempotency-key",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ],
    ..stating(Stated {
        // It disables the hook temporarily after four consecutive failures, and permanently after forty.
        counts_refusals: true,
        bodies: Bodies::Unique,
        id_required: false,
        text_ids: false,
    })
};
