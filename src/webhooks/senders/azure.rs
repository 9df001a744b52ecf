//! Azure DevOps.

use super::{Bodies, Field, Sender, Stated, stating};
use crate::webhooks::signature::{Form, Key};

/// <https://learn.microsoft.com/azure/devops/service-hooks/events>. It signs nothing, but sends a user name and a
/// password in `Authorization`. The secret is written `USER:PASSWORD`.
pub(super) static AZURE_DEVOPS: Sender = Sender {
    label: Some("azure-devops"),
    forms: |_| vec![Form::Basic],
    key: |_, secret| match secret.iter().position(|byte| *byte == b':') {
        None => Err("is not written `USER:PASSWORD`"),
        Some(at) if at + 1 == secret.len() => Err("has no password after `USER:`, so that anybody could guess it"),
        Some(_) => Ok(Key::token(secret)),
    },
    pushes: &["git.push"],
    pull_requests: &["git.pullrequest.created", "git.pullrequest.updated", "git.pullrequest.merged"],
    // A subscription may leave out the details of the resource.
    proposals: &["git.pullrequest.", "ms.vss-code.git-pullrequest-"],
    builds: &["build.", "ms.vss-release.", "ms.vss-pipelines.", "ms.vss-pipelinechecks-events."],
    facts: &[
        (Field::Delivery, &["/id"]),
        (Field::Event, &["/eventType"]),
        // A comment contains the repository in a pull request.
        (Field::Repository, &["/resource/repository/name", "/resource/pullRequest/repository/name"]),
        (Field::RepositoryId, &["/resource/repository/id", "/resource/pullRequest/repository/id"]),
        (Field::Owner, &["/resource/repository/project/name", "/resource/pullRequest/repository/project/name"]),
        (
            Field::Ref,
            &["/resource/targetRefName", "/resource/pullRequest/targetRefName", "/resource/refUpdates/*/name"],
        ),
        (Field::Changes, &["/resource/refUpdates"]),
        (
            Field::Commit,
            &[
                "/resource/lastMergeSourceCommit/commitId",
                "/resource/pullRequest/lastMergeSourceCommit/commitId",
                "/resource/refUpdates/*/newObjectId",
            ],
        ),
        (Field::Actor, &["/resource/pushedBy/uniqueName", "/resource/comment/author/uniqueName"]),
        (Field::ActorId, &["/resource/pushedBy/id", "/resource/comment/author/id"]),
        // Nothing says who changed or merged a pull request.
        (Field::Author, &["/resource/createdBy/uniqueName"]),
        (Field::AuthorId, &["/resource/createdBy/id"]),
        (
            Field::ForkMark,
            &[
                "/resource/sourceRefName",
                "/resource/forkSource",
                "/resource/pullRequest/sourceRefName",
                "/resource/pullRequest/forkSource",
            ],
        ),
        (Field::PullRequest, &["/resource/pullRequestId", "/resource/pullRequest/pullRequestId"]),
        (Field::Draft, &["/resource/isDraft", "/resource/pullRequest/isDraft"]),
    ],
    ..stating(Stated {
        // It puts the subscription on probation, and then disables it.
        counts_refusals: true,
        bodies: Bodies::Unique,
        id_required: false,
        text_ids: true,
    })
};
