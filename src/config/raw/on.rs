//! On which requests a rule is.
//!
//! Conditions that are not set are not written out, as most of them are not.

use std::collections::BTreeMap;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy::some;
use crate::config::values::{Cidr, Span};

/// On which requests a rule is. Every condition that is set must hold; within a list any entry will do.
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
    /// HTTP methods. For a deny `GET` includes `HEAD`. Requests with another spelling of these are refused, and any other method goes
    /// on only where a route names it.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub methods: Vec<String>,
    /// Dashboard routes: whether the request is for the pages themselves, or for what they ask of the API server, as which logs from
    /// outside of the cluster count too. An allow of dashboard routes without it is of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<bool>,
    /// Webhook routes: the name of the EventListener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_listener: Option<String>,
    /// The namespace: of the EventListener, or of a Kubernetes request.
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
    /// Webhook routes: whether a pull request comes from a fork. A deny of `true` holds for news of builds that do not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork: Option<bool>,
    /// Webhook routes: whether a pull request is a draft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<bool>,
    /// Webhook routes: the Triggers that the delivery may set off. The interceptor holds the EventListener to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<OnTrigger>,
    /// Kubernetes requests, by their attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<OnKubernetes>,
    /// Requests that make, end or change runs of Tekton, by their body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<OnRun>,
    /// Tokens that Doorward gives in exchange for others. An allow without it gives none, and one with it nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<OnToken>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeWindow>,
    /// Client addresses.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Cidr>", length(min = 1))]
    pub addresses: Vec<IpNet>,
}

impl On {
    /// Whether it asks for what only a delivery of a webhook has.
    pub fn is_of_deliveries(&self) -> bool {
        let Self { event_listener, event, branch, tag, action, fork, draft, trigger, .. } = self;
        let lists = [event, branch, tag, action].iter().any(|list| !list.is_empty());
        lists || event_listener.is_some() || fork.is_some() || draft.is_some() || trigger.is_some()
    }
}

/// The attributes of a Kubernetes request as the API server reads them. Each list defaults to all; `*` is all.
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
    /// Resources, with their sub-resource after a slash: `pods`, `pods/log`, `pipelineruns`, `*/status`. An `allow` must
    /// name `secrets`, roles and their bindings, `certificatesigningrequests`, `podcertificaterequests`, and the sub-resources
    /// `proxy`, `serviceaccounts/token` and `pods/ephemeralcontainers`; to write them, `resolutionrequests` and the `status` of
    /// `pipelineruns`, `taskruns` and `customruns`; on `dashboard` routes, and on those that take sessions, `exec`, `attach` and
    /// `portforward` too. No `*` reaches these.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub resources: Vec<String>,
    /// Namespaces. A deny also holds where a request is about all namespaces (`GET /api/v1/pods`).
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub namespaces: Vec<String>,
    /// Names. A deny also holds where the request names no object (`list`, `create`), and for `proxy` where scheme and port stand beside
    /// the name (`https:vault:8200`), which an allow must write too.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub names: Vec<String>,
    /// Paths that are no resource, such as `/version` or `/openapi/*`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub non_resource_urls: Vec<String>,
}

/// Which Triggers. An EventListener tells them to the interceptor, which must stand in each of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnTrigger {
    /// Names, in the namespace of the EventListener that the route names, or `NAMESPACE/NAME`; exact, or a prefix with a `*` at the end.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub names: Vec<String>,
    /// Service accounts that make the runs: `serviceAccountName` of the Trigger, or else of the pod template in the EventListener's
    /// `resources.kubernetesResource`, or else of the EventListener, or `default`. Where the EventListener has a
    /// `resources.customResource`, nobody knows the account of a Trigger without one of its own: no allow that lists
    /// accounts is met by it, and every deny that does. Needs `interceptor.kubernetes`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
}

/// Which tokens (section `tokens`). `who` says on whose behalf: the person or bot that caused the run, or whose own token is
/// exchanged. Patterns are exact, or a prefix with a `*` at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnToken {
    /// For whom they are (`aud`). An allow must say.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub audiences: Vec<String>,
    /// Scopes. An allow gives these alone, and without it tokens that have none; a deny without it is of all.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub scopes: Vec<String>,
    /// Service accounts of the tasks that ask, as `NAMESPACE/NAME`. An allow gives nothing to tasks whose account it does not name.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
    /// The cluster of the task that asks, by the name of its issuer. Where tasks of several clusters get tokens, an allow for service
    /// accounts must say: each cluster has accounts and pipelines of any name.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub clusters: Vec<String>,
    /// The pipeline that runs, by reference: its name, or `git?pathInRepo=…&revision=…&url=…` as in `run.code`, with the same rule for
    /// a `*`. A run that brought its own code has none.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub pipelines: Vec<String>,
    /// What the pipeline calls the task that asks.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub pipeline_tasks: Vec<String>,
    /// The task that asks, by reference as in `pipelines`. One whose code the pipeline or the run brought has none.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub tasks: Vec<String>,
    /// How long a token that an allow gives may last, 1 m to `tokens.lifetime`. Where several rules give of one token, the shortest
    /// counts. Default: as long as all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Span>,
}

/// What a request does to a PipelineRun, TaskRun or CustomRun, as its body says. Of each key that is written, an allow
/// holds only if everything that the body brings is among what is listed, a deny if anything is; what is not written is free.
/// Patterns are exact, or a prefix with a `*` at the end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OnRun {
    /// What becomes of the run. Server-side apply needs `apply`, or both `create` and `change`.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub does: Vec<RunIntent>,
    /// The code that is run by reference: names of pipelines and tasks, `git?pathInRepo=…&revision=…&url=…` with the
    /// parameters of a resolver sorted and encoded as in a query, `GROUP/VERSION/KIND/NAME` of what custom controllers run,
    /// `tekton.dev/StepAction/NAME` of steps that the request brings, `managedBy/NAME` where another controller is to run it. Of an
    /// allow a `*` must not leave open where a resolver of Tekton fetches from.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub code: Vec<String>,
    /// Whether the request brings code itself (`pipelineSpec`, `taskSpec`, `customSpec`). An allow with `code` says no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<bool>,
    /// Service accounts that the run or a part of it uses, or that a reference names to the resolver `bundles`. Where the run names none it
    /// is `default`, or what the upstream has as `default_service_account`; that is then written into it.
    #[serde(deserialize_with = "some", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub service_accounts: Vec<String>,
    /// Whether the request says how pods are made (`podTemplate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<bool>,
    /// Whether workspaces, pod templates, or steps and volumes that the request brings, bind Secrets, credentials of the service
    /// account or volumes of drivers, or a reference names a Secret to its resolver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binds_secrets: Option<bool>,
    /// Parameters of the run, by name. One that the run leaves out may have any value to a deny.
    #[schemars(extend("additionalProperties" = some_texts()))]
    pub params: BTreeMap<String, Vec<String>>,
    /// Labels of the run, by name. One that the run leaves out may be that of what it refers to, to a deny.
    #[schemars(extend("additionalProperties" = some_texts()))]
    pub labels: BTreeMap<String, Vec<String>>,
}

/// The schema of a list of texts that is not empty.
fn some_texts() -> serde_json::Value {
    serde_json::json!({"type": "array", "items": {"type": "string"}, "minItems": 1})
}

/// What becomes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunIntent {
    /// A new run.
    Create,
    /// Server-side apply: a new run, or a change of one that is there.
    Apply,
    /// Ended, by its status alone.
    Cancel,
    /// Kept from starting, by its status alone.
    Pause,
    /// Started after a pause, by its status alone.
    Start,
    /// Any other change. Of a run that has not started it may be one of its code and its service account.
    Change,
}

impl OnToken {
    /// Whether it names an audience, in full or by how that begins.
    pub fn is_for(&self, audience: &str) -> bool {
        self.audiences.iter().any(|named| Self::means(named, audience))
    }

    /// Whether an entry of one of its lists means a text, in full or by how that begins.
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

/// A window of time that repeats each week.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeWindow {
    /// Days: `mon-fri`, or a list with commas. Default: every day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<String>,
    /// From this time of day on (`08:00`).
    pub from: String,
    /// Until before this time of day (`18:00`; `24:00` is the end). Before `from`: past midnight.
    pub to: String,
    /// The offset from UTC: `UTC`, or `+02:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}
