//! The requests that a rule applies to.
//!
//! Conditions that are not set are not serialized, as most of them are not set.

use std::collections::BTreeMap;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy::some;
use crate::config::values::{Cidr, Span};

/// The requests that a rule applies to. Every condition that is set must match; within a list any entry is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct On {
    /// Routes, by name.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub routes: Vec<String>,
    /// Host names or addresses, as on routes.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub hosts: Vec<String>,
    /// Paths, exact or with a trailing `/*`, as on routes.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub paths: Vec<String>,
    /// HTTP methods. For a deny `GET` includes `HEAD`. Requests with another spelling of a known method are refused,
    /// and any other method is only forwarded if a route lists it.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub methods: Vec<String>,
    /// Dashboard routes: whether the request is for the pages themselves (`true`), or for what they ask of the API
    /// server, which includes logs from outside of the cluster (`false`). An allow on dashboard routes without this key
    /// is for both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<bool>,
    /// Webhook routes: the name of the EventListener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_listener: Option<String>,
    /// The namespace: of the EventListener, of a Kubernetes request, or of the task that requests a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Webhook routes: the event (`push`, `pull_request`).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub event: Vec<String>,
    /// Webhook routes: the branch, or a prefix ending in `*`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub branch: Vec<String>,
    /// Webhook routes: the tag, or a prefix ending in `*`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub tag: Vec<String>,
    /// Webhook routes: what happened to the subject of the event (`opened`, `synchronize` of GitHub, `synchronized` of Gitea).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub action: Vec<String>,
    /// Webhook routes: whether a pull request comes from a fork. A deny with `true` also matches events about builds,
    /// which do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork: Option<bool>,
    /// Webhook routes: whether a pull request is a draft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<bool>,
    /// Webhook routes: the Triggers that the delivery may start. The interceptor enforces it at the EventListener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<OnTrigger>,
    /// Kubernetes requests, by their attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<OnKubernetes>,
    /// Requests that create, end or change Tekton runs, by their body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<OnRun>,
    /// Tokens that Doorward issues in exchange for others. An allow without this key allows no token, and an allow with
    /// it nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<OnToken>,
    /// Times at which the rule applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeWindow>,
    /// Networks of clients; one address is `198.51.100.7/32`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Cidr>", length(min = 1))]
    pub addresses: Vec<IpNet>,
}

impl On {
    /// Whether it has a condition that only webhook deliveries can meet.
    pub fn is_of_deliveries(&self) -> bool {
        let Self { event_listener, event, branch, tag, action, fork, draft, trigger, .. } = self;
        let lists = [event, branch, tag, action].iter().any(|list| !list.is_empty());
        lists || event_listener.is_some() || fork.is_some() || draft.is_some() || trigger.is_some()
    }
}

/// The attributes of a Kubernetes request, as the API server reads them. Each list defaults to all; `*` means all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnKubernetes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`, and the groups
    /// `read` (get, list, watch) and `write` (all others; exec, attach, port-forward and proxy always).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub verbs: Vec<String>,
    /// API groups; `""` is the core group.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub api_groups: Vec<String>,
    /// Resources, with their sub-resource after a slash: `pods`, `pods/log`, `pipelineruns`, `*/status`. An `allow`
    /// must name some of them, as no `*` includes them: `secrets`, roles and their bindings,
    /// `certificatesigningrequests`, `podcertificaterequests`, and the sub-resources `proxy`, `serviceaccounts/token`
    /// and `pods/ephemeralcontainers`; for writes `resolutionrequests` and the `status` of `pipelineruns`, `taskruns`
    /// and `customruns`; and on `dashboard` routes and routes that accept sessions `exec`, `attach` and `portforward`.
    /// A rule with none but `GET`, `HEAD` and `OPTIONS` in `methods` must name these three on every route.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub resources: Vec<String>,
    /// Namespaces. A deny also matches requests for all namespaces (`GET /api/v1/pods`).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub namespaces: Vec<String>,
    /// Names. A deny also matches requests that name no object (`list`, `create`) and, for `proxy`, the name with a
    /// scheme and port (`https:vault:8200`), which an allow must list with them.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub names: Vec<String>,
    /// Paths that are not resources, such as `/version` or `/openapi/*`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub non_resource_urls: Vec<String>,
}

/// Triggers, as their EventListener reports them to the interceptor. Each of them must call the interceptor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnTrigger {
    /// Names, in the namespace of the EventListener that the route names, or `NAMESPACE/NAME`; exact, or a prefix with
    /// a `*` at the end.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub names: Vec<String>,
    /// Service accounts that create the runs: `serviceAccountName` of the Trigger, or else of the pod template in the
    /// EventListener's `resources.kubernetesResource`, or else of the EventListener, or `default`. If the EventListener
    /// has a `resources.customResource`, the account of a Trigger that sets none is unknown: no allow that lists
    /// accounts matches it, and every deny that lists accounts does. Needs `interceptor.kubernetes`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
}

/// Tokens (section `tokens`). `who` is the principal that they are issued for: the person or bot that caused the run,
/// or the principal whose own token is exchanged. Patterns are exact, or a prefix with a `*` at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnToken {
    /// Audiences of the tokens (`aud`). Required in an allow.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub audiences: Vec<String>,
    /// Scopes. An allow gives only these, and without this key only tokens that have no scopes. A deny also matches
    /// tokens that have no scopes, and without this key all.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub scopes: Vec<String>,
    /// Service accounts of the tasks that request a token, as `NAMESPACE/NAME`. An allow gives nothing to tasks whose
    /// account it does not name.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
    /// The cluster of the task that requests a token, by the name of its issuer. If tasks of several clusters get
    /// tokens, it is required in an allow for service accounts, as each cluster can have accounts and pipelines of any
    /// name.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub clusters: Vec<String>,
    /// The pipeline that runs, by reference: its name, or `git?pathInRepo=…&revision=…&url=…` as in `run.code`, with
    /// the same rule for a `*`. A run with inline code has none.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub pipelines: Vec<String>,
    /// The name that the pipeline gives to the task that requests a token.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub pipeline_tasks: Vec<String>,
    /// The task that requests a token, by reference as in `pipelines`. A task whose code is inline in the pipeline or
    /// the run has none.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub tasks: Vec<String>,
    /// The longest lifetime of a token that an allow gives, 1 m to `tokens.lifetime`. If several rules allow one token,
    /// the shortest applies. Default: that of all tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Span>,
}

/// What a request does to a PipelineRun, TaskRun or CustomRun, according to its body. For each key that is set, an
/// allow matches only if everything in the body is listed, a deny if anything is; keys that are not set are not
/// checked. Patterns are exact, or a prefix with a `*` at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnRun {
    /// What the request does to the run. Server-side apply needs `apply`, or both `create` and `change`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub does: Vec<RunIntent>,
    /// The code that is run by reference: names of pipelines and tasks, `git?pathInRepo=…&revision=…&url=…` with the
    /// parameters of a resolver sorted and encoded as in a query, `GROUP/VERSION/KIND/NAME` for what custom controllers
    /// run, `tekton.dev/StepAction/NAME` for steps in the body, `managedBy/NAME` if another controller is to run it. In
    /// an allow a `*` must not leave open where one of Tekton's resolvers fetches from.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub code: Vec<String>,
    /// Whether the body has inline code (`pipelineSpec`, `taskSpec`, `customSpec`). An allow with `code` and without
    /// this key does not match if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<bool>,
    /// Service accounts that the run or a part of it uses, or that a reference gives to the resolver `bundles`. If the
    /// run names none, it is `default` or the upstream's `default_service_account`, which is then written into the run.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
    /// Whether the request configures pods (`podTemplate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<bool>,
    /// Whether workspaces, pod templates, or inline steps and volumes bind Secrets, credentials of the service account
    /// or volumes of drivers, or a reference names a Secret to its resolver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binds_secrets: Option<bool>,
    /// Parameters of the run, by name. A deny also matches if the run leaves the parameter out, as its default may be
    /// any value.
    #[schemars(extend("additionalProperties" = some_texts()))]
    pub params: BTreeMap<String, Vec<String>>,
    /// Labels of the run, by name. A deny also matches if the run leaves the label out and refers to a pipeline or
    /// task, as the run may get the label from that.
    #[schemars(extend("additionalProperties" = some_texts()))]
    pub labels: BTreeMap<String, Vec<String>>,
}

/// The schema of a non-empty list of strings.
fn some_texts() -> serde_json::Value {
    serde_json::json!({"type": "array", "items": {"type": "string"}, "minItems": 1})
}

/// What a request does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunIntent {
    /// Creates a run.
    Create,
    /// Server-side apply: creates a run, or changes an existing one.
    Apply,
    /// Ends a run, by its `spec.status` alone.
    Cancel,
    /// Keeps a run from starting, by its `spec.status` alone.
    Pause,
    /// Starts a run after a pause, by its `spec.status` alone.
    Start,
    /// Any other change. Before a run has started, this can change its code and its service account.
    Change,
}

impl OnToken {
    /// Whether it lists an audience, exactly or by a prefix.
    pub fn is_for(&self, audience: &str) -> bool {
        self.audiences.iter().any(|named| Self::means(named, audience))
    }

    /// Whether an entry of one of its lists matches a text, exactly or by a prefix.
    pub fn means(named: &str, text: &str) -> bool {
        match named.strip_suffix('*') {
            Some(start) => text.starts_with(start),
            None => named == text,
        }
    }
}

impl RunIntent {
    pub const ALL: [Self; 6] = [Self::Create, Self::Apply, Self::Cancel, Self::Pause, Self::Start, Self::Change];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Apply => "apply",
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Start => "start",
            Self::Change => "change",
        }
    }
}

/// A window of time that repeats every week.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeWindow {
    /// Days: `mon-fri`, or a list with commas. Default: every day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<String>,
    /// The start of the window (`08:00`).
    pub from: String,
    /// The end of the window, exclusive (`18:00`; `24:00` is the end of the day). If it is before `from`, the window
    /// spans midnight.
    pub to: String,
    /// The offset from UTC: `UTC`, or `+02:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}
