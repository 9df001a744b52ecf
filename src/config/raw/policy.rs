//! `grants`, `rules` and `tests`: who may do what, who gets which Kubernetes groups, and test cases. As in `on`,
//! conditions that are not set are not serialized.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Kind, On};
use crate::config::values::Span;

/// The error and the remedy for a list that is present and empty, and whose absence means all. It could mean "nothing"
/// or "all", so it is refused.
pub const EMPTY_LIST: (&str, &str) = ("an empty list matches nothing", "leave the key out to match all");

/// The same for an empty `need`, which would look as if something were needed.
pub const EMPTY_NEED: (&str, &str) =
    ("an empty `need` needs nothing", "name `mfa`, `acr` or `fresh_login`, or leave it out");

fn refused<E: serde::de::Error>((message, help): (&str, &str)) -> E {
    E::custom(format_args!("{message}; {help}"))
}

/// Reads a list whose absence means all, so it must not be empty.
pub(super) fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() { Err(refused(EMPTY_LIST)) } else { Ok(list) }
}

/// Writes such a list as not set, if it is not.
pub(super) fn unset_if_empty<S: Serializer, T: Serialize>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    (!list.is_empty()).then_some(list).serialize(serializer)
}

/// Reads the `need` of an allow, which must not be empty.
fn needed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Need, D::Error> {
    let need = Need::deserialize(deserializer)?;
    if need.is_empty() { Err(refused(EMPTY_NEED)) } else { Ok(need) }
}

/// Gives Kubernetes groups to principals. Every condition that is set must match; within a list any entry is enough.
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
    /// The Kubernetes groups that are given. None may begin with `system:`.
    pub kubernetes_groups: Vec<String>,
    /// Roles for these groups with Tekton: `doorward rbac` prints the roles and their bindings. It does not affect
    /// decisions here; leave it out if the groups are bound by other means.
    #[serde(default)]
    pub tekton_roles: Vec<GivenRole>,
}

/// A role for Tekton in some namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenRole {
    /// The role.
    pub role: TektonRole,
    /// The namespaces. Default: all.
    #[serde(default, deserialize_with = "some", serialize_with = "unset_if_empty")]
    #[schemars(length(min = 1))]
    pub namespaces: Vec<String>,
}

/// A role for Tekton. Each includes the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TektonRole {
    /// View runs, pipelines, tasks and logs.
    View,
    /// Patch runs, which cancelling requires. RBAC cannot be narrower; limit the patches by rules
    /// (`run: {does: [cancel]}`).
    Cancel,
    /// Create runs.
    Run,
    /// Delete runs, and write pipelines, tasks and triggers.
    Admin,
}

/// Who may do what: the requests, the callers, the conditions on their login, and the decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in `explain`, on the page of a denial and in the audit trail.
    pub id: String,
    /// Why it exists. Shown to people whom it denies.
    #[serde(default)]
    pub why: Option<String>,
    /// What a person can do about a denial. Shown to them.
    #[serde(default)]
    pub fix: Option<String>,
    /// The requests that it applies to. Without it: all.
    #[serde(default)]
    pub on: On,
    /// The callers that it applies to. Without it: everybody who is authenticated; for a deny everybody.
    #[serde(default)]
    pub who: Who,
    /// What an `allow` requires of the login. If that is not met, the person is asked for it.
    #[serde(default, deserialize_with = "needed", skip_serializing_if = "Need::is_empty")]
    pub need: Need,
    /// A CEL expression that must also be true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// The decision.
    #[serde(rename = "do")]
    pub action: Action,
    /// `shadow`: the rule is only recorded and does not decide.
    #[serde(default)]
    pub mode: Mode,
}

/// Whether a rule takes part in the decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It takes part in the decision.
    #[default]
    Enforce,
    /// It is evaluated and recorded, and does not affect the decision.
    Shadow,
}

/// The decision of a rule. Any deny wins, then approve, then allow; if no rule matches, the request is denied. The
/// order of rules has no effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Allow,
    Deny,
    /// Somebody else must approve. Approvals are not implemented yet, so the rule refuses every request that it
    /// matches.
    Approve(Box<Approve>),
}

/// The approvals that are required.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Who may approve.
    pub by: Who,
    /// How many different people must approve. Default: 1.
    #[serde(default)]
    pub count: Option<u8>,
    /// How long a request for approval stays open. Default: 1 h.
    #[serde(default)]
    pub pending: Option<Span>,
    /// How long an approval can be used. Default: 15 m.
    #[serde(default)]
    pub grant: Option<Span>,
}

/// Callers. Every condition that is set must match; within a list any entry is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Who {
    /// Callers without a credential, on a route with the scheme `anonymous`. No other condition matches them.
    pub anonymous: bool,
    /// Issuers, by name. If there are several, required with groups, scopes, claims, subjects, clients, on_behalf_of.
    /// If an actor acts for the principal, an allow with subjects or clients of the actor requires its issuer too.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub issuers: Vec<String>,
    /// Groups that the issuer gave.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub groups: Vec<String>,
    /// Scopes that were granted. For people a scope only narrows a rule: an allow also needs a condition that tells
    /// them apart (`clients`, `groups`, …), or `kind: agent` or `kind: workload`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub scopes: Vec<String>,
    /// Subjects (`sub`).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub subjects: Vec<String>,
    /// Kubernetes user names, as made by the issuer's `username` template. They are compared exactly; a deny compares
    /// them without case and in one Unicode form (NFKC), which also equates look-alikes.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub users: Vec<String>,
    /// Clients (applications), by id. If an actor acts for the principal, this is the actor's client. An allow without
    /// `on_behalf_of` also requires that the principal's own token was issued to one of them; a deny matches by either
    /// client.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub clients: Vec<String>,
    /// The kind of the principal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Claims, by name or JSON pointer, that have one of these exact values or are a list with one of them.
    pub claims: BTreeMap<String, Vec<serde_json::Value>>,
    /// People who caused a delivery, by the number that the sender's host gave them, as `github:7`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub senders: Vec<String>,
    /// Repositories, by the number in the verified body or claim, as `github:1234`.
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
    /// Whoever an agent or a task acts for. This may be a program, unless `kind: human` is beside it. An allow with
    /// `kind: human` and without this key does not match an agent that acts for a person; a deny does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<OnBehalfOf>,
}

/// Whoever an agent or a task acts for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnBehalfOf {
    /// Groups of the person, or of the program.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub groups: Vec<String>,
    /// Subjects of the person, or of the program. The actor's are in `subjects` of `who`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub subjects: Vec<String>,
}

/// What an allow requires of the login.
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
    /// The longest time since then.
    pub max_age: Span,
}

/// A test case of the policy: a caller, a request and the expected decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyTest {
    /// What the case shows.
    pub name: String,
    /// The caller. Without it: somebody without any credential, or, for a `delivery` or a `trigger` on a route with a
    /// `webhook`, its sender.
    #[serde(default)]
    pub principal: Option<PrincipalFacts>,
    /// The request.
    pub request: RequestFacts,
    /// The expected decision.
    pub expect: Expectation,
}

/// A file of test cases, separate from the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestFile {
    /// Test cases of the policy.
    pub tests: Vec<PolicyTest>,
}

/// The facts about a principal in a test case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrincipalFacts {
    /// The issuer, by name. Default: the only one; for a delivery, the route's sender.
    pub issuer: Option<String>,
    /// The subject (`sub`). Default: `test`; for a delivery, the name of its repository.
    pub subject: Option<String>,
    /// The Kubernetes user name. Default: what the issuer's `username` template makes of subject and claims; for a
    /// delivery, that of its repository.
    pub username: Option<String>,
    /// The kind of the principal, whoever acts for it. Default: the one that the configuration gives to principals of
    /// the issuer with this `client`. One that they cannot have is an error.
    pub kind: Option<Kind>,
    /// Groups that the issuer gave. If left out, the issuer gave none, not even an empty list.
    pub groups: Option<Vec<String>>,
    /// Scopes that were granted. If left out, the issuer named none.
    pub scopes: Option<Vec<String>>,
    /// The client (application).
    pub client: Option<String>,
    /// The actor that acts for it.
    pub actor: Option<ActorFacts>,
    /// The verified email address.
    pub email: Option<String>,
    /// Further claims.
    pub claims: BTreeMap<String, serde_json::Value>,
    /// How long ago the person logged in.
    pub login_age: Option<Span>,
    /// The authentication context class of the login.
    pub acr: Option<String>,
    /// The authentication methods of the login.
    pub amr: Vec<String>,
}

/// An actor that acts for a principal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActorFacts {
    /// Its issuer, by name. Default: that of the principal, unless that is Doorward itself, whose tokens have actors of
    /// other issuers alone. A token of any other issuer names no actor of another one: unless it is exchanged, such an
    /// issuer counts as not known.
    #[serde(default)]
    pub issuer: Option<String>,
    /// Its subject.
    pub subject: String,
    /// Its client.
    #[serde(default)]
    pub client: Option<String>,
}

/// The facts about a request in a test case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestFacts {
    /// The route, by name. Left out for a request for a `token`.
    #[serde(default)]
    pub route: String,
    /// The host. Default: the first host of the route.
    #[serde(default)]
    pub host: Option<String>,
    /// The path, with the query if there is one. Default: the first path of the route.
    #[serde(default)]
    pub path: Option<String>,
    /// The method. Default: `GET`, for a webhook `POST`.
    #[serde(default)]
    pub method: Option<String>,
    /// The client's address. Default: `192.0.2.1`.
    #[serde(default)]
    pub address: Option<std::net::IpAddr>,
    /// The time (RFC 3339). Default: Monday, 1 January 2024, 12:00 UTC.
    #[serde(default)]
    pub at: Option<String>,
    /// The attributes of a Kubernetes request. Default, on a `kubernetes` route: those of the method and the path.
    /// Other ones beside a `path` are an error.
    #[serde(default)]
    pub kubernetes: Option<KubernetesFacts>,
    /// The facts in the body of a webhook. With `token`: those of the delivery that caused the run of the task.
    #[serde(default)]
    pub delivery: Option<DeliveryFacts>,
    /// The Trigger that a delivery is about to start, to test the decision of the interceptor. Default: none, which
    /// tests the delivery on arrival.
    #[serde(default)]
    pub trigger: Option<TriggerFacts>,
    /// The token that is requested, in place of a route.
    #[serde(default)]
    pub token: Option<TokenFacts>,
    /// The body of a request that creates or changes a Tekton run.
    #[serde(default)]
    pub body: Option<serde_json::Value>,
    /// The type of the body. Default: `application/json`, for a patch `application/merge-patch+json`. A patch of type
    /// `application/apply-patch+yaml` is server-side apply, which must be allowed as a create, too.
    #[serde(default)]
    pub content_type: Option<String>,
}

/// A requested token in a test case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenFacts {
    /// Its audience.
    pub audience: String,
    /// One scope of the token. Default: none.
    #[serde(default)]
    pub scope: Option<String>,
    /// The task that requests it. The principal is then the one that caused its run. Default: none, and the principal
    /// requests it.
    #[serde(default)]
    pub task: Option<TaskFacts>,
}

/// A running task in a test case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskFacts {
    /// Its cluster, by the name of the issuer. Default: the only cluster whose tasks get tokens.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// The service account of its pod.
    pub service_account: String,
    /// The pipeline, by reference. Default: none.
    #[serde(default)]
    pub pipeline: Option<String>,
    /// Its name in the pipeline. Default: it is not part of a pipeline.
    #[serde(default)]
    pub pipeline_task: Option<String>,
    /// The task, by reference. Default: none.
    #[serde(default)]
    pub task: Option<String>,
}

/// A Trigger in a test case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TriggerFacts {
    /// Its name.
    pub name: String,
    /// Its namespace. Default: that of the EventListener.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The service account that creates its runs.
    #[serde(default)]
    pub service_account: Option<String>,
}

/// The attributes of a Kubernetes request in a test case.
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

/// The facts in the body of a webhook in a test case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryFacts {
    /// The event: `push`, `pull_request`.
    pub event: Option<String>,
    /// What happened to the subject of the event: `opened`, `synchronize` of GitHub, `synchronized` of Gitea.
    pub action: Option<String>,
    /// The name of the repository, `owner/name`.
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
    /// The login of the person who caused it.
    pub actor: Option<String>,
    /// The number of the person who caused it.
    pub actor_id: Option<String>,
    /// Whether the change comes from a fork.
    pub fork: Option<bool>,
    /// The number of the pull request.
    pub pull_request: Option<String>,
    /// Whether the pull request is a draft.
    pub draft: Option<bool>,
    /// Whether several refs changed at once.
    pub several: bool,
    /// Whether it is about a build, a check or a deployment, which does not belong to one ref either.
    pub build: bool,
}

/// The expected decision of a test case. Keys that are left out are not compared.
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
    /// The person must log in again, or with a stronger login.
    StepUp,
    /// Somebody else must approve.
    Approve,
}

impl Effect {
    pub const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::StepUp, Self::Approve];

    /// The name in policy tests, in the audit trail and in the output of `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::StepUp => "step_up",
            Self::Approve => "approve",
        }
    }
}
