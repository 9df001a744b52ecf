//! Bitbucket. Its `X-Hub-Signature` is HMAC-SHA256, unlike the header of the same name that GitHub once sent.

use super::{Bodies, Events, Field, Sender, Setting, Shape, Stated, shape, stating};
use crate::{config::values::Size, webhooks::signature::Form};

/// <https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/>
pub(super) static CLOUD: Sender = Sender {
    label: Some("bitbucket"),
    // It sends at most 256 kB.
    max_body: Size::kib(512),
    forms: |_| vec![Form::hex_sha256("x-hub-signature", "sha256=")],
    // Its own retries have the same id.
    id_headers: &["x-request-uuid"],
    events: Events::Shapes { header: "x-event-key", twins: &[], shapes: &[CLOUD_SHAPES], unnamed: None },
    pushes: &["repo:push"],
    pull_requests: &[
        "pullrequest:created",
        "pullrequest:updated",
        "pullrequest:push",
        "pullrequest:fulfilled",
        "pullrequest:rejected",
    ],
    facts: &[
        (Field::Repository, &["/repository/full_name"]),
        (Field::RepositoryId, &["/repository/uuid"]),
        (Field::Branch, &["/pullrequest/destination/branch/name"]),
        // Deleted refs have no `new`.
        (Field::Ref, &["/push/changes/*/new/name", "/push/changes/*/old/name"]),
        (Field::RefType, &["/push/changes/*/new/type", "/push/changes/*/old/type"]),
        (Field::Changes, &["/push/changes"]),
        // Pipelines are reported as OpenTelemetry spans.
        (Field::NoRef, &["/commit_status", "/resourceSpans"]),
        (Field::Commit, &["/pullrequest/source/commit/hash", "/push/changes/*/new/target/hash", "/commit/hash"]),
        (Field::Actor, &["/actor/nickname", "/actor/display_name"]),
        (Field::ActorId, &["/actor/uuid"]),
        (Field::Fork, &["/pullrequest/source/repository/uuid", "/pullrequest/destination/repository/uuid"]),
        (Field::PullRequest, &["/pullrequest/id"]),
        (Field::Draft, &["/pullrequest/draft"]),
    ],
    passes: &["x-event-key", "x-hook-uuid", "x-request-uuid", "x-attempt-number", "x-hub-signature"],
    ..stating(Stated {
        counts_refusals: false,
        // A push contains no time: a tag that is deleted and pushed again gives the same body. Other bodies contain
        // one.
        bodies: Bodies::Repeat(&[("repo:push", &[])]),
        id_required: true,
        text_ids: true,
    })
};

/// A pull request in a state, without the members that other events add.
const fn pull_request(event: &'static str, state: &'static str) -> Shape {
    Shape {
        says: Some(("/pullrequest/state", state)),
        ..shape(event, &["pullrequest", "repository", "actor"], &["comment", "approval", "changes_request"])
    }
}

const CLOUD_SHAPES: &[Shape] = &[
    shape("repo:push", &["push", "repository"], &["pullrequest"]),
    shape("repo:fork", &["fork", "repository"], &[]),
    shape("repo:updated", &["changes", "repository"], &["push", "pullrequest"]),
    shape("repo:commit_comment_created", &["commit", "comment"], &["pullrequest"]),
    shape("repo:commit_status_created", &["commit_status"], &[]),
    shape("repo:commit_status_updated", &["commit_status"], &[]),
    pull_request("pullrequest:created", "OPEN"),
    pull_request("pullrequest:updated", "OPEN"),
    pull_request("pullrequest:push", "OPEN"),
    pull_request("pullrequest:fulfilled", "MERGED"),
    pull_request("pullrequest:rejected", "DECLINED"),
    shape("pullrequest:approved", &["pullrequest", "approval"], &["comment"]),
    shape("pullrequest:unapproved", &["pullrequest", "approval"], &["comment"]),
    shape("pullrequest:changes_request_created", &["pullrequest", "changes_request"], &[]),
    shape("pullrequest:changes_request_removed", &["pullrequest", "changes_request"], &[]),
    shape("pullrequest:comment_created", &["pullrequest", "comment"], &[]),
    shape("pullrequest:comment_updated", &["pullrequest", "comment"], &[]),
    shape("pullrequest:comment_deleted", &["pullrequest", "comment"], &[]),
    shape("pullrequest:comment_resolved", &["pullrequest", "comment"], &[]),
    shape("pullrequest:comment_reopened", &["pullrequest", "comment"], &[]),
    shape("issue:created", &["issue"], &["comment", "changes"]),
    shape("issue:updated", &["issue", "changes"], &[]),
    shape("issue:comment_created", &["issue", "comment"], &[]),
    shape("pipeline:span_created", &["resourceSpans"], &[]),
];

/// <https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html>
pub(super) static DATA_CENTER: Sender = Sender {
    label: Some("bitbucket-dc"),
    never_retries: true,
    forms: |_| vec![Form::hex_sha256("x-hub-signature", "sha256=")],
    id_headers: &["x-request-id"],
    events: Events::Same {
        header: "x-event-key",
        unnamed: &shape("diagnostics:ping", &["test"], &["eventKey", "actor"]),
    },
    pings: &["diagnostics:ping"],
    // The second has no changes if there are too many.
    pushes: &["repo:refs_changed", "mirror:repo_synchronized"],
    pull_requests: &["pr:opened", "pr:from_ref_updated", "pr:modified", "pr:merged", "pr:declined", "pr:deleted"],
    facts: &[
        (Field::Date, &["/date"]),
        (Field::Event, &["/eventKey"]),
        (Field::Repository, &["/pullRequest/toRef/repository/slug", "/repository/slug"]),
        (Field::RepositoryId, &["/pullRequest/toRef/repository/id", "/repository/id"]),
        (Field::Owner, &["/pullRequest/toRef/repository/project/key", "/repository/project/key"]),
        (Field::Branch, &["/pullRequest/toRef/displayId"]),
        (Field::Ref, &["/changes/*/ref/id"]),
        (Field::Changes, &["/changes"]),
        // A comment on a commit has it at the top level.
        (Field::Commit, &["/pullRequest/fromRef/latestCommit", "/changes/*/toHash", "/commit"]),
        (Field::Actor, &["/actor/name"]),
        (Field::ActorId, &["/actor/id"]),
        (Field::Fork, &["/pullRequest/fromRef/repository/id", "/pullRequest/toRef/repository/id"]),
        (Field::PullRequest, &["/pullRequest/id"]),
        (Field::Draft, &["/pullRequest/draft"]),
    ],
    takes: &[Setting::UnsignedPings],
    // `x-request-id` is set by Doorward on forwarded requests.
    passes: &["x-event-key", "x-hub-signature"],
    ..stating(Stated {
        // After five failures it skips events for seconds, minutes and then hours.
        counts_refusals: true,
        // Its `date` is in whole seconds.
        bodies: Bodies::Any,
        id_required: true,
        text_ids: false,
    })
};
