//! The claims of Doorward's own tokens (RFC 9068, RFC 8693 section 4.1).

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{registry::Access, task::Task};
use crate::{
    authn::{Actor, Kind, KnownAs, KnownToken, Principal},
    clock::Timestamp,
    issuers::RUN_CLAIM,
    kubernetes::ObjectRef,
};

/// In the claim with the run: the id (`jti`) of the pod's token that was exchanged for this one.
pub const POD_TOKEN: &str = "pod_token";

/// The claims of an access token.
#[derive(Debug, Serialize)]
pub struct AccessToken<'a> {
    pub iss: &'a str,
    /// The Kubernetes user name of the person or bot on whose behalf it is.
    pub sub: &'a str,
    pub aud: &'a str,
    /// The client that asked for it: the service account of the task, or the client that the exchanged token was issued
    /// to.
    pub client_id: &'a str,
    pub iat: i64,
    pub exp: i64,
    pub jti: &'a str,
    /// The kind of `sub`.
    pub kind: Kind,
    /// The issuer that knows `sub`, and its name for them.
    pub origin: Origin<'a>,
    /// Separated by spaces (RFC 6749 section 3.3).
    #[serde(skip_serializing_if = "str::is_empty")]
    pub scope: &'a str,
    /// For a container registry: the scopes in the registry's own form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Vec<Access>>,
    /// The actor, with earlier actors nested in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act: Option<Value>,
    /// The same actors by the names that issuers have here: revoking one ends the token too.
    #[serde(skip_serializing_if = "<[KnownAs]>::is_empty")]
    pub acting: &'a [KnownAs],
    /// The tokens that it was exchanged for: revoking one ends it too.
    #[serde(skip_serializing_if = "<[KnownToken]>::is_empty")]
    pub exchanged: &'a [KnownToken],
    /// The run with which it ends.
    #[serde(flatten)]
    pub run: Map<String, Value>,
}

/// A principal as its own issuer knows it.
#[derive(Debug, Serialize)]
pub struct Origin<'a> {
    /// The name in the configuration.
    pub issuer: &'a str,
    pub sub: &'a str,
}

/// The service account of a task, as its cluster names it.
pub fn account(task: &Task) -> String {
    format!("system:serviceaccount:{}:{}", task.view.namespace, task.view.service_account)
}

/// The claim with the run.
pub fn run(task: &Task) -> Map<String, Value> {
    #[derive(Serialize)]
    struct Run<'a> {
        cluster: &'a str,
        namespace: &'a str,
        service_account: &'a str,
        pod: &'a ObjectRef,
        task_run: &'a ObjectRef,
        #[serde(skip_serializing_if = "Option::is_none")]
        pipeline_run: Option<&'a ObjectRef>,
        /// The runs that contain this one.
        #[serde(skip_serializing_if = "<[ObjectRef]>::is_empty")]
        within: &'a [ObjectRef],
        #[serde(skip_serializing_if = "Option::is_none")]
        pipeline: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pipeline_task: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        task: Option<&'a str>,
    }
    let view = &task.view;
    let run = Run {
        cluster: &view.cluster,
        namespace: &view.namespace,
        service_account: &view.service_account,
        pod: &task.pod,
        task_run: &task.task_run,
        pipeline_run: task.pipeline_run(),
        within: task.pipeline_runs.get(1..).unwrap_or_default(),
        pipeline: view.pipeline.as_deref(),
        pipeline_task: view.pipeline_task.as_deref(),
        task: view.task.as_deref(),
    };
    let mut run = serde_json::to_value(run).unwrap_or_default();
    if let Some((run, id)) = run.as_object_mut().zip(task.pod_token.as_deref()) {
        run.insert(POD_TOKEN.to_owned(), id.into());
    }
    Map::from_iter([(RUN_CLAIM.to_owned(), run)])
}

/// When a token expires: after the permitted lifetime, but not after the exchanged token or the time-out of the run.
pub fn expires(now: Timestamp, lifetime: std::time::Duration, subject: Timestamp, task: Option<&Task>) -> Timestamp {
    let run = task.and_then(|task| task.times_out);
    run.into_iter().fold((now + lifetime).min(subject), Timestamp::min)
}

/// The client that asks. Only a task may have a reserved name, which it has as an actor: `None` for a principal that
/// has no other name.
pub fn client(principal: &Principal) -> Option<Arc<str>> {
    if let Some(actor) = &principal.actor {
        return Some(Arc::clone(actor.client.as_ref().unwrap_or(&actor.subject)));
    }
    let subject = Some(&principal.subject);
    let subject = subject.filter(|subject| principal.service_account().is_some() || !Actor::is_reserved(subject));
    principal.client.as_ref().or(subject).map(Arc::clone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::{Scheme, principal::WorkloadIdentity};

    #[test]
    fn only_a_task_can_be_a_client_by_the_name_of_a_service_account() {
        let named = |subject: &str| Principal::new(Scheme::Bearer, "corp", subject, "alice");
        let service_account = WorkloadIdentity::ServiceAccount { namespace: "ci".into(), name: "builder".into() };
        let actor = Actor::service_account(None, "ci", "builder");
        for (principal, expected) in [
            (named("7"), Some("7")),
            (Principal { client: Some("web".into()), ..named("7") }, Some("web")),
            (named("serviceaccount:ci:builder"), None),
            (named("ServiceAccount:ci:builder"), None),
            (named("system:serviceaccount:ci:builder"), None),
            (Principal { client: Some("web".into()), ..named("serviceaccount:ci:builder") }, Some("web")),
            (
                Principal { workload: Some(service_account), ..named("system:serviceaccount:ci:builder") },
                Some("system:serviceaccount:ci:builder"),
            ),
            (Principal { actor: Some(actor), ..named("7") }, Some("serviceaccount:ci:builder")),
        ] {
            assert_eq!(client(&principal).as_deref(), expected, "{principal:?}");
        }
    }
}
