//! Gitea, Forgejo and Gogs. Their bodies resemble GitHub's; the signature is bare hex. Without a secret they send empty
//! signatures. They do not sign forms as they are sent, so only JSON is accepted.

use super::{Bodies, Events, Field, Sender, Shape, Stated, shape, some, stating};
use crate::{config::values::Span, webhooks::signature::Form};

/// The places of the facts: the given places of the repository's name, number and owner, and the common ones.
macro_rules! facts {
    ($repository:expr $(, $more:expr)*) => {
        &[
            (Field::Action, &["/action"]),
            (Field::Repository, $repository[0]),
            (Field::RepositoryId, $repository[1]),
            (Field::Owner, $repository[2]),
            (Field::Branch, &["/pull_request/base/ref", "/pull_request/base_branch"]),
            (Field::Tag, &["/release/tag_name"]),
            (Field::Ref, &["/ref"]),
            (Field::RefType, &["/ref_type"]),
            // A status has a `context`.
            (Field::NoRef, &["/workflow_run", "/workflow_job", "/run", "/context"]),
            (
                Field::Commit,
                &[
                    "/pull_request/head/sha",
                    "/after",
                    "/workflow_run/head_sha",
                    "/workflow_job/head_sha",
                    "/run/commit_sha",
                    "/sha",
                ],
            ),
            (Field::Actor, &["/sender/login", "/sender/username", "/run/trigger_user/login"]),
            (Field::ActorId, &["/sender/id", "/run/trigger_user/id"]),
            // In Gitea's runs, `pull_requests` names the target if a fork is deleted, so it says nothing about forks.
            (Field::ForkFlag, &["/run/is_fork_pull_request"]),
            (
                Field::Fork,
                &[
                    "/pull_request/head/repo_id",
                    "/pull_request/base/repo_id",
                    "/pull_request/head_repo/id",
                    "/pull_request/base_repo/id",
                ],
            ),
            // Empty for a push to `refs/for/BRANCH` of the same repository, which requires only read access.
            (Field::SourceBranch, &["/pull_request/head/label"]),
            (Field::PullRequest, &["/number", "/pull_request/number", "/issue/number"]),
            (Field::Draft, &["/pull_request/draft"]),
            $($more,)*
        ]
    };
}

/// The places in bodies of Gogs.
const REPOSITORY: [&[&str]; 3] =
    [&["/repository/full_name"], &["/repository/id"], &["/repository/owner/login", "/repository/owner/username"]];

/// The places in bodies of Gitea and Forgejo. Their `fork` event has the new repository as `repository`, and the one
/// with the hook as `forkee`, which no other event has. A run of Forgejo Actions contains its repository. So does a
/// package, which may have none but always has an owner.
const REPOSITORY_OF_HOOK: [&[&str]; 3] = [
    &["/forkee/full_name", "/repository/full_name", "/run/repository/full_name", "/package/repository/full_name"],
    &["/forkee/id", "/repository/id", "/run/repository/id", "/package/repository/id"],
    &[
        "/forkee/owner/login",
        "/repository/owner/login",
        "/repository/owner/username",
        "/run/repository/owner/login",
        "/package/owner/login",
    ],
];

/// <https://docs.gitea.com/usage/webhooks>
pub(super) static GITEA: Sender = Sender {
    label: Some("gitea"),
    forms: |_| vec![Form::hex_sha256("x-gitea-signature", "")],
    id_headers: &["x-gitea-delivery"],
    events: Events::Shapes {
        header: "x-gitea-event",
        twins: &["x-gogs-event", "x-github-event"],
        shapes: &[SHAPES, LATER_SHAPES],
        unnamed: None,
    },
    passes: &["x-gitea-event", "x-gitea-delivery", "x-gitea-signature", "x-hub-signature-256"],
    ..COMMON
};

/// <https://forgejo.org/docs/latest/user/webhooks/>
pub(super) static FORGEJO: Sender = Sender {
    label: Some("forgejo"),
    forms: |_| vec![Form::hex_sha256("x-forgejo-signature", "")],
    id_headers: &["x-forgejo-delivery"],
    events: Events::Shapes {
        header: "x-forgejo-event",
        twins: &["x-gitea-event", "x-gogs-event", "x-github-event"],
        shapes: &[SHAPES, LATER_SHAPES, FORGEJO_SHAPES],
        // Forgejo's `HookEventType.Event` has no name for this event.
        unnamed: Some("package"),
    },
    // Forgejo writes `refs/tags/v1` where the others write `v1`.
    facts: facts!(REPOSITORY_OF_HOOK, (Field::FullRef, &["/ref"])),
    passes: &["x-forgejo-event", "x-forgejo-delivery", "x-forgejo-signature", "x-hub-signature-256"],
    ..COMMON
};

/// <https://github.com/gogs/gogs/blob/main/internal/database/webhook.go>
pub(super) static GOGS: Sender = Sender {
    label: Some("gogs"),
    forms: |_| vec![Form::hex_sha256("x-gogs-signature", "")],
    id_headers: &["x-gogs-delivery"],
    events: Events::Shapes { header: "x-gogs-event", twins: &["x-github-event"], shapes: &[SHAPES], unnamed: None },
    redelivers_anew: false,
    // In the others, a comment contains the pull request itself.
    facts: facts!(REPOSITORY, (Field::PullRequestMark, &["/issue/pull_request"])),
    passes: &["x-gogs-event", "x-gogs-delivery", "x-gogs-signature"],
    ..COMMON
};

const COMMON: Sender = Sender {
    // Their timeout is 5 s.
    answer_within: Span::from_secs(4),
    never_retries: true,
    redelivers_anew: true,
    pushes: &["push"],
    pull_requests: &["pull_request"],
    facts: facts!(REPOSITORY_OF_HOOK),
    own_actions: &[
        ("synchronize", "synchronized"),
        ("labeled", "label_updated"),
        ("unlabeled", "label_updated"),
        ("submitted", "reviewed"),
    ],
    ..stating(Stated { counts_refusals: false, bodies: Bodies::Any, id_required: true, text_ids: false })
};

/// A review, whose kind is also in the body.
const fn review(event: &'static str, kind: &'static str) -> Shape {
    Shape { says: Some(("/review/type", kind)), ..shape(event, &["pull_request", "review", "action"], &[]) }
}

/// An event of a repository, whose body has no distinctive member.
const fn repository(action: &'static str) -> Shape {
    Shape {
        says: Some(("/action", action)),
        ..some(
            "repository",
            &["repository", "organization"],
            &["package", "workflow_run", "workflow_job", "run", "release", "issue", "pull_request", "page", "ref"],
        )
    }
}

/// The events of all three.
const SHAPES: &[Shape] = &[
    shape("push", &["ref", "before", "after"], &["pull_request"]),
    shape("create", &["ref", "ref_type", "sha"], &["pusher_type"]),
    shape("delete", &["ref", "ref_type", "pusher_type"], &[]),
    shape("pull_request", &["pull_request", "number", "action"], &["review", "comment", "workflow_run", "mentioned"]),
    shape("issues", &["issue", "action"], &["comment", "pull_request", "mentioned"]),
    shape("issue_comment", &["issue", "comment", "action"], &["mentioned"]),
    shape("release", &["release", "action"], &[]),
    shape("fork", &["forkee"], &[]),
];

/// The events that Gogs does not have.
const LATER_SHAPES: &[Shape] = &[
    review("pull_request_approved", "pull_request_review_approved"),
    review("pull_request_rejected", "pull_request_review_rejected"),
    review("pull_request_comment", "pull_request_review_comment"),
    repository("created"),
    repository("deleted"),
    shape("wiki", &["page", "action"], &[]),
    shape("package", &["package", "action"], &[]),
    shape("status", &["sha", "state", "context"], &[]),
    shape("workflow_run", &["workflow_run", "action"], &[]),
    shape("workflow_job", &["workflow_job", "action"], &[]),
];

/// A notification about a run of Forgejo Actions. Their bodies cannot be told apart, nor can those of jobs.
const fn run(event: &'static str) -> Shape {
    shape(event, &["run", "action"], &["job"])
}

const fn job(event: &'static str) -> Shape {
    shape(event, &["run", "job", "action"], &[])
}

const FORGEJO_SHAPES: &[Shape] = &[
    run("action_run_failure"),
    run("action_run_recover"),
    run("action_run_success"),
    run("action_run_cancelled"),
    run("workflow_run_blocked"),
    run("workflow_run_cancelled"),
    run("workflow_run_failure"),
    run("workflow_run_running"),
    run("workflow_run_skipped"),
    run("workflow_run_success"),
    run("workflow_run_waiting"),
    job("workflow_job_blocked"),
    job("workflow_job_cancelled"),
    job("workflow_job_failure"),
    job("workflow_job_running"),
    job("workflow_job_skipped"),
    job("workflow_job_success"),
    job("workflow_job_waiting"),
    shape("mention", &["mentioned", "action"], &[]),
];
