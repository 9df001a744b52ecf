//! GitHub.

use super::{Bodies, Events, Field, Sender, Shape, Stated, shape, some, stating};
use crate::{config::values::Size, webhooks::signature::Form};

/// <https://docs.github.com/webhooks/webhook-events-and-payloads>
pub(super) static GITHUB: Sender = Sender {
    label: Some("github"),
    max_body: Size::mib(26),
    never_retries: true,
    forms: |_| vec![Form::hex_sha256("x-hub-signature-256", "sha256=")],
    id_headers: &["x-github-delivery"],
    events: Events::Shapes {
        header: "x-github-event",
        twins: &[],
        shapes: &[GITHUB_SHAPES, OTHER_SHAPES],
        unnamed: None,
    },
    pings: &["ping"],
    pushes: &["push"],
    pull_requests: &["pull_request"],
    facts: &[
        (Field::Action, &["/action"]),
        (Field::Repository, &["/repository/full_name"]),
        (Field::RepositoryId, &["/repository/id"]),
        (Field::Owner, &["/repository/owner/login"]),
        (Field::Branch, &["/pull_request/base/ref"]),
        (Field::Tag, &["/release/tag_name"]),
        // For a merge queue, the target branch: the queue's own branch belongs to nobody.
        (Field::Ref, &["/ref", "/merge_group/base_ref"]),
        (Field::RefType, &["/ref_type"]),
        // A status has a `context`.
        (
            Field::NoRef,
            &[
                "/check_run",
                "/check_suite",
                "/workflow_run",
                "/workflow_job",
                "/deployment",
                // A protection rule may omit the deployment, and the run of a review may be null.
                "/deployment_callback_url",
                "/since",
                "/context",
            ],
        ),
        (
            Field::Commit,
            &[
                "/pull_request/head/sha",
                // For an annotated tag, `after` is the tag object.
                "/head_commit/id",
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
        (
            Field::Fork,
            &[
                "/pull_request/head/repo/id",
                "/pull_request/base/repo/id",
                "/workflow_run/head_repository/id",
                "/workflow_run/repository/id",
            ],
        ),
        (Field::PullRequest, &["/pull_request/number", "/issue/number"]),
        (Field::PullRequestMark, &["/issue/pull_request"]),
        (Field::Draft, &["/pull_request/draft"]),
    ],
    own_actions: &[("synchronized", "synchronize"), ("label_updated", "labeled"), ("label_cleared", "unlabeled")],
    passes: &[
        "x-github-event",
        "x-github-delivery",
        "x-github-hook-id",
        "x-github-hook-installation-target-type",
        "x-github-hook-installation-target-id",
        "x-hub-signature-256",
    ],
    ..stating(Stated {
        counts_refusals: false,
        // A push contains its commits, a pull request its time.
        bodies: Bodies::Repeat(REPEATED),
        id_required: true,
        text_ids: false,
    })
};

/// Events that contain no time: dispatches with the same inputs, requests, and settings that are changed and changed
/// back.
const REPEATED: &[(&str, &[&str])] = &[
    ("workflow_dispatch", &[]),
    ("repository_dispatch", &[]),
    ("check_run", &["rerequested", "requested_action"]),
    ("check_suite", &["requested", "rerequested"]),
    ("pull_request_review_thread", &[]),
    ("org_block", &[]),
    ("membership", &[]),
    ("member", &[]),
    ("team", &[]),
    ("team_add", &[]),
    ("installation_repositories", &[]),
    ("installation_target", &[]),
    ("organization", &[]),
    ("github_app_authorization", &[]),
    ("custom_property", &[]),
    ("custom_property_values", &[]),
    ("security_and_analysis", &[]),
    ("label", &["edited"]),
    ("sponsorship", &["edited", "tier_changed"]),
];

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
    Shape {
        or_null: &["workflow"],
        ..shape("workflow_run", &["workflow_run", "action"], &["deployment", "approver", "since"])
    },
    shape("workflow_job", &["workflow_job", "action"], &[]),
    // `inputs` is null if there are none.
    shape("workflow_dispatch", &["ref", "workflow"], &["before", "action", "ref_type"]),
    // `client_payload` can be null too.
    shape("repository_dispatch", &["branch", "action"], &["pull_request", "issue", "workflow", "ref"]),
    shape(
        "deployment",
        &["deployment"],
        // A job contains the deployment that it creates.
        &["deployment_status", "approver", "deployment_callback_url", "workflow_job"],
    ),
    shape("deployment_protection_rule", &["deployment_callback_url"], &[]),
    Shape { or_null: &["workflow_run"], ..shape("deployment_review", &["since"], &[]) },
    shape("deployment_status", &["deployment", "deployment_status"], &[]),
    shape("merge_group", &["merge_group", "action"], &[]),
    shape("status", &["sha", "state", "context"], &[]),
    shape("fork", &["forkee"], &[]),
    shape("gollum", &["pages"], &[]),
    Shape { or_null: &["blocked_user"], ..shape("org_block", &["action"], &[]) },
    Shape { or_null: &["member"], ..shape("membership", &["team", "action"], &[]) },
    Shape { or_null: &["member"], ..shape("member", &["action"], &["team"]) },
    // A membership has a `scope`, and may have no member.
    shape("team", &["team", "action"], &["member", "scope"]),
    shape("team_add", &["team", "repository"], &["action"]),
    shape("installation_repositories", &["repositories_added", "repositories_removed", "action"], &[]),
];

/// The members that all bodies of an event have and no others, as far as is known. Events that are missing here, such
/// as `repository`, `watch` and `public`, have no distinctive member.
const OTHER_SHAPES: &[Shape] = &[
    some("branch_protection_rule", &["rule", "action"], &[]),
    some("code_scanning_alert", &["alert", "commit_oid", "action"], &[]),
    some("custom_property", &["definition", "action"], &[]),
    some("custom_property_values", &["new_property_values", "old_property_values"], &[]),
    some("dependabot_alert", &["alert/dependency", "action"], &[]),
    some("deploy_key", &["key", "action"], &[]),
    Shape {
        says: Some(("/action", "revoked")),
        ..some(
            "github_app_authorization",
            &["action", "sender"],
            &["repository", "organization", "enterprise", "installation"],
        )
    },
    // Other events have only its number.
    some("installation", &["installation/permissions", "action"], &["repositories_added", "account", "repository"]),
    some("installation_target", &["target_type", "account", "action"], &[]),
    some("issue_dependencies", &["blocked_issue_id", "blocking_issue_id"], &[]),
    some("label", &["label", "action"], &["issue", "pull_request", "discussion"]),
    some("marketplace_purchase", &["marketplace_purchase", "action"], &[]),
    some("meta", &["hook", "hook_id", "action"], &["zen"]),
    some("milestone", &["milestone", "action"], &["issue", "pull_request"]),
    // For members only: the event has no distinctive member if an organization is renamed or deleted.
    some("organization", &["membership", "organization", "action"], &[]),
    some("package", &["package", "action"], &[]),
    some("page_build", &["build", "id"], &[]),
    some("personal_access_token_request", &["personal_access_token_request", "action"], &[]),
    some("project", &["project", "action"], &[]),
    some("project_card", &["project_card", "action"], &[]),
    some("project_column", &["project_column", "action"], &[]),
    some("projects_v2", &["projects_v2", "action"], &[]),
    some("projects_v2_item", &["projects_v2_item", "action"], &[]),
    some("projects_v2_status_update", &["projects_v2_status_update", "action"], &[]),
    some("registry_package", &["registry_package", "action"], &[]),
    some("repository_advisory", &["repository_advisory", "action"], &[]),
    some("repository_ruleset", &["repository_ruleset", "action"], &[]),
    some("repository_vulnerability_alert", &["alert/affected_package_name", "action"], &[]),
    some("secret_scanning_alert", &["alert/secret_type", "action"], &["location"]),
    some("secret_scanning_alert_location", &["alert/secret_type", "location"], &[]),
    some("security_advisory", &["security_advisory", "action"], &[]),
    some("security_and_analysis", &["changes/from/security_and_analysis"], &["action"]),
    some("sponsorship", &["sponsorship", "action"], &[]),
    // A removed star has no time.
    some("star", &["starred_at", "action"], &[]),
    some("sub_issues", &["sub_issue_id", "parent_issue_id"], &[]),
];
