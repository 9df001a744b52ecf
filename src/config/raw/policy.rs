//! `grants`, `rules` and `tests`: who may do what, who gets which Kubernetes groups, and cases that must be decided so.
//! As in `on`, conditions that are not set are not written out.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Kind, On};
use crate::config::values::Span;

/// What is wrong with the list of a condition that is written out and empty, and what to do. It could mean "nothing" or "all", so
/// it must not be.
pub const EMPTY_LIST: (&str, &str) = ("an empty list matches nothing", "leave the key out to match all");

/// The same for what an allow needs: it would look as if something were needed.
pub const EMPTY_NEED: (&str, &str) =
    ("an empty `need` needs nothing", "name `mfa`, `acr` or `fresh_login`, or leave it out");

fn refused<E: serde::de::Error>((message, help): (&str, &str)) -> E {
    E::custom(format_args!("{message}; {help}"))
}

/// Reads the list of a condition, which is not empty.
pub(super) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() { Err(refused(EMPTY_LIST)) } else { Ok(list) }
}

/// Reads what an allow needs, which is not nothing.
fn needed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Need, D::Error> {
    let need = Need::deserialize(deserializer)?;
    if need.is_empty() { Err(refused(EMPTY_NEED)) } else { Ok(need) }
}

/// Gives Kubernetes groups to principals. Every condition that is set must hold; within a list any entry will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Its name in `explain` and in the audit trail.
    pub id: String,
    /// Why it exists.
    #[serde(default)]
    pub why: Option<String>,
    /// Who gets the groups. Groups, scopes and claims count only for the issuers that it names.
    pub who: Who,
    /// The Kubernetes groups given. None may begin with `system:`.
    pub kubernetes_groups: Vec<String>,
    /// What these groups may do with Tekton: `doorward rbac` prints the roles and their bindings. It decides nothing here; leave it
    /// out where the groups are bound otherwise.
    #[serde(default)]
    pub tekton_roles: Vec<GivenRole>,
}

/// A role of Tekton in some namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenRole {
    /// Which.
    pub role: TektonRole,
    /// Where. Default: in all namespaces.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

/// A role of Tekton. Each has what the one before it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TektonRole {
    /// Look at runs, pipelines, tasks and logs.
    View,
    /// Patch runs, as cancelling does. RBAC knows no less; let rules say which patches (`run: {does: [cancel]}`).
    Cancel,
    /// Create runs.
    Run,
    /// Delete runs, and write pipelines, tasks and triggers.
    Admin,
}

/// Who may do what: on which requests, who, what is needed, what happens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in `explain`, on the denied page and in the audit trail.
    pub id: String,
    /// Why it exists. Shown to a person whom it denies.
    #[serde(default)]
    pub why: Option<String>,
    /// What a person can do about a denial. Shown to them.
    #[serde(default)]
    pub fix: Option<String>,
    /// On which requests. Without it: all.
    #[serde(default)]
    pub on: On,
    /// Whose. Without it: everybody who is authenticated, and for a deny everybody.
    #[serde(default)]
    pub who: Who,
    /// What an `allow` needs besides. Unmet, the person is asked for it.
    #[serde(default, deserialize_with = "needed", skip_serializing_if = "Need::is_empty")]
    pub need: Need,
    /// A CEL expression that must be true as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// What happens.
    #[serde(rename = "do")]
    pub action: Action,
    /// `shadow`: only recorded, decides nothing.
    #[serde(default)]
    pub mode: Mode,
}

/// Whether a rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It is evaluated and recorded, and decides nothing.
    Shadow,
}

/// What a rule does. Any deny wins, then approve, then allow; no match is a deny. The order of rules means nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Allow,
    Deny,
    /// Somebody else decides. Nobody can yet: approvals are not built, so that the rule refuses whatever it hits.
    Approve(Box<Approve>),
}

/// Who approves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Who may approve.
    pub by: Who,
    /// How many different people must. Default: 1.
    #[serde(default)]
    pub count: Option<u8>,
    /// How long a request for approval stays open. Default: 1 h.
    #[serde(default)]
    pub pending: Option<Span>,
    /// How long an approval can be used. Default: 15 m.
    #[serde(default)]
    pub grant: Option<Span>,
}

/// Who. Every condition that is set must hold; within a list any entry will do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Who {
    /// Those who came without any credential, on a route with the scheme `anonymous`. No other condition fits them.
    pub anonymous: bool,
    /// Issuers, by name. Needed beside groups, scopes, claims and subjects when there are several.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub issuers: Vec<String>,
    /// Groups that the issuer gave.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub groups: Vec<String>,
    /// Scopes that were granted. For people a scope narrows only: an allow needs beside it what tells them apart (`clients`,
    /// `groups`, …), or `kind: agent` or `kind: workload`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub scopes: Vec<String>,
    /// Subjects (`sub`).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub subjects: Vec<String>,
    /// Kubernetes user names, after the issuer's template. Compared exactly; a deny compares them without case and in one Unicode form
    /// (NFKC), which look-alikes fall into too.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub users: Vec<String>,
    /// Clients (applications), by id. Where somebody acts for the principal, the client of who acts; an allow without
    /// `on_behalf_of` asks that the principal's own token was issued to one of them too, and a deny is met by either.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub clients: Vec<String>,
    /// What the principal is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Claims with any of these exact values, or a list that holds one, by name or JSON pointer.
    pub claims: BTreeMap<String, Vec<serde_json::Value>>,
    /// Who caused a delivery, by the number that the sender's host gave them, as `github:7`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub senders: Vec<String>,
    /// Repositories, by the number of the verified body or claim, as `github:1234`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub repositories: Vec<String>,
    /// Kubernetes service accounts, as `namespace/name` or `namespace/*`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
    /// Webhook senders, by the name of the `webhooks` entry.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub webhooks: Vec<String>,
    /// The person on whose behalf an agent acts. An allow with `kind: human` that does not ask for it is for no agent of a
    /// person; a deny is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<OnBehalfOf>,
}

/// The person behind an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnBehalfOf {
    /// Groups of the person.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub groups: Vec<String>,
    /// Subjects.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub subjects: Vec<String>,
}

/// What an allow needs besides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Need {
    /// More than one factor (`amr`), not longer ago than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfa: Option<MaxAge>,
    /// One of these authentication context classes (`acr`).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub acr: Vec<String>,
    /// A login not longer ago than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh_login: Option<MaxAge>,
}

impl Need {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MaxAge {
    /// The longest time since.
    pub max_age: Span,
}

/// A case that the policy must decide so: who asks for what, and what comes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyTest {
    /// What it shows.
    pub name: String,
    /// Who asks. Without it: somebody without any credential, and of a `delivery` or a `trigger` on a route with a `webhook` its sender.
    #[serde(default)]
    pub principal: Option<PrincipalFacts>,
    /// What is asked.
    pub request: RequestFacts,
    /// What comes of it.
    pub expect: Expectation,
}

/// A file of tests, beside the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestFile {
    /// Cases that the policy must decide as they say.
    pub tests: Vec<PolicyTest>,
}

/// The facts of a principal, written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrincipalFacts {
    /// The issuer, by name. Default: the only one; of a delivery, the route's sender.
    pub issuer: Option<String>,
    /// The subject (`sub`). Default: `test`; of a delivery, the name of its repository.
    pub subject: Option<String>,
    /// The Kubernetes user name. Default: what the issuer's `username` makes of subject and claims; of a delivery, that of its
    /// repository.
    pub username: Option<String>,
    /// What it is, whoever acts for it. Default: an agent.
    pub kind: Option<Kind>,
    /// Groups that the issuer gave. Left out, the issuer gave none, not even an empty list.
    pub groups: Option<Vec<String>>,
    /// Scopes that were granted. Left out, the issuer named none.
    pub scopes: Option<Vec<String>>,
    /// The client (application).
    pub client: Option<String>,
    /// Who acts for it.
    pub actor: Option<ActorFacts>,
    /// The verified email address.
    pub email: Option<String>,
    /// Further claims.
    pub claims: BTreeMap<String, serde_json::Value>,
    /// How long ago the person logged in.
    pub login_age: Option<Span>,
    /// The authentication context class of the login.
    pub acr: Option<String>,
    /// The methods of the login.
    pub amr: Vec<String>,
}

/// Who acts for a principal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActorFacts {
    /// Its subject.
    pub subject: String,
    /// Its client.
    #[serde(default)]
    pub client: Option<String>,
}

/// The facts of a request, written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestFacts {
    /// The route, by name. Where a token is asked for: none.
    #[serde(default)]
    pub route: String,
    /// Default: the first host of the route.
    #[serde(default)]
    pub host: Option<String>,
    /// The path, with the query if there is one. Default: the first path of the route.
    #[serde(default)]
    pub path: Option<String>,
    /// Default: `GET`, of a webhook `POST`.
    #[serde(default)]
    pub method: Option<String>,
    /// The client's address. Default: `192.0.2.1`.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
    /// When (RFC 3339). Default: Monday, 1 January 2024, 12:00 UTC.
    #[serde(default)]
    pub at: Option<String>,
    /// The attributes of a Kubernetes request. Default, on a `kubernetes` route: those of the method and the path.
    #[serde(default)]
    pub kubernetes: Option<KubernetesFacts>,
    /// What the body of a webhook tells. With `token`: of the delivery that caused the run of its task.
    #[serde(default)]
    pub delivery: Option<DeliveryFacts>,
    /// The Trigger that a delivery is about to set off, as the interceptor decides it. Default: the delivery at the door.
    #[serde(default)]
    pub trigger: Option<TriggerFacts>,
    /// The token that is asked for, in place of a route.
    #[serde(default)]
    pub token: Option<TokenFacts>,
    /// The body of a request that makes or changes a run of Tekton.
    #[serde(default)]
    pub body: Option<serde_json::Value>,
    /// The type of the body. Default: `application/json`, of a patch `application/merge-patch+json`. A patch of
    /// `application/apply-patch+yaml` is server-side apply, which must be allowed as a create too.
    #[serde(default)]
    pub content_type: Option<String>,
}

/// A token that is asked for, written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenFacts {
    /// For whom it would be.
    pub audience: String,
    /// One scope that would be in it. Default: none.
    #[serde(default)]
    pub scope: Option<String>,
    /// The task that asks. The principal is then who caused its run. Default: none, and the principal asks.
    #[serde(default)]
    pub task: Option<TaskFacts>,
}

/// A task that runs, written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskFacts {
    /// Its cluster, by the name of the issuer. Default: the only one whose tasks get tokens.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// The service account of its pod.
    pub service_account: String,
    /// The pipeline, by reference. Default: none.
    #[serde(default)]
    pub pipeline: Option<String>,
    /// What the pipeline calls it. Default: it is of no pipeline.
    #[serde(default)]
    pub pipeline_task: Option<String>,
    /// The task, by reference. Default: none.
    #[serde(default)]
    pub task: Option<String>,
}

/// A Trigger, written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TriggerFacts {
    /// Its name.
    pub name: String,
    /// Default: that of the EventListener.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The service account that makes its runs.
    #[serde(default)]
    pub service_account: Option<String>,
}

/// The attributes of a Kubernetes request, written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesFacts {
    /// `get`, `list`, `create` and so on.
    pub verb: String,
    /// The API group; empty for the core group.
    pub api_group: String,
    /// The resource, such as `pipelineruns`.
    pub resource: String,
    /// The sub-resource, such as `log`.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// What the body of a webhook tells, written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryFacts {
    /// `push`, `pull_request`.
    pub event: Option<String>,
    /// `opened`, `synchronize` of GitHub, `synchronized` of Gitea.
    pub action: Option<String>,
    /// `owner/name`.
    pub repository: Option<String>,
    /// The number of the repository.
    pub repository_id: Option<String>,
    /// The owner of the repository.
    pub owner: Option<String>,
    /// The branch, without `refs/heads/`.
    pub branch: Option<String>,
    /// The tag, without `refs/tags/`.
    pub tag: Option<String>,
    /// The commit.
    pub commit: Option<String>,
    /// The login of who caused it.
    pub actor: Option<String>,
    /// The number of who caused it.
    pub actor_id: Option<String>,
    /// Whether the change comes from a fork.
    pub fork: Option<bool>,
    /// The number of the pull request.
    pub pull_request: Option<String>,
    /// Whether the pull request is a draft.
    pub draft: Option<bool>,
    /// Whether several refs changed at once.
    pub several: bool,
    /// Whether it tells of a build, a check or a deployment, which is of no one ref either.
    pub build: bool,
}

/// What must come of a case. What is left out is not looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The decision.
    pub outcome: Effect,
    /// The rule that decides.
    #[serde(default)]
    pub rule: Option<String>,
    /// The Kubernetes groups that grants give, in any order.
    #[serde(default)]
    pub kubernetes_groups: Option<Vec<String>>,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ExpectedOutcome")]
pub enum Effect {
    Allow,
    /// Denied, by a rule or because none matches.
    Deny,
    /// The person must log in again, or with more.
    StepUp,
    /// Somebody else decides.
    Approve,
}

impl Effect {
    pub const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::StepUp, Self::Approve];

    /// As it is written in tests of the policy, in the audit trail and by `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::StepUp => "step_up",
            Self::Approve => "approve",
        }
    }
}
