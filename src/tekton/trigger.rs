//! The service account that creates the runs of a Trigger, read from the API server.
//!
//! An EventListener creates them as `serviceAccountName` of the Trigger, or else with its own pod's account
//! (`pkg/sink/auth_override.go` of Tekton Triggers). Its pod has the account in the template in `spec.resources`, or
//! else `spec.serviceAccountName` (`pkg/reconciler/eventlistener/resources/deployment.go`). If a custom resource
//! creates the pod, its account is unknown.

use std::{collections::BTreeSet, sync::Arc};

use http::StatusCode;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::dashboard::is_subdomain;
use crate::{
    error::{Reason, Rejection},
    kubernetes::null_as_default,
    upstream::{GetError, Pools, Upstream},
};

/// The largest object, as an EventListener may contain hundreds of Triggers.
const MAX_OBJECT: usize = 3 << 20;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    #[serde(deserialize_with = "null_as_default")]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(deserialize_with = "null_as_default")]
    service_account_name: String,
    /// In an EventListener: the Triggers that are not objects of their own.
    #[serde(deserialize_with = "null_as_default")]
    triggers: Vec<Inline>,
    /// In an EventListener: the template of its pod.
    #[serde(deserialize_with = "null_as_default")]
    resources: Resources,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Resources {
    kubernetes_resource: Option<Templated>,
    /// Of any kind. It takes precedence over the other.
    custom_resource: Option<IgnoredAny>,
}

/// A resource whose `spec` has a pod template.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Templated {
    #[serde(deserialize_with = "null_as_default")]
    spec: PodTemplate,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodTemplate {
    #[serde(deserialize_with = "null_as_default")]
    template: Pod,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pod {
    #[serde(deserialize_with = "null_as_default")]
    spec: PodSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    #[serde(deserialize_with = "null_as_default")]
    service_account_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Inline {
    #[serde(deserialize_with = "null_as_default")]
    name: String,
    #[serde(deserialize_with = "null_as_default")]
    service_account_name: String,
}

impl Spec {
    /// For an EventListener: the account of its pod, or `None` if it is unknown.
    fn pod_account(&self) -> Option<&str> {
        if self.resources.custom_resource.is_some() {
            return None;
        }
        let template = self.resources.kubernetes_resource.as_ref();
        let of_template = template.map_or("", |resource| &resource.spec.template.spec.service_account_name);
        [of_template, &self.service_account_name].into_iter().find(|name| !name.is_empty()).or(Some("default"))
    }

    /// For an EventListener: the account of one of its Triggers, which may name its `own`.
    fn account_of(&self, own: &str) -> Option<String> {
        if own.is_empty() { self.pod_account().map(str::to_owned) } else { Some(own.to_owned()) }
    }
}

/// The accounts that create the runs of an EventListener and of the Triggers in it, from its `spec`. The account of its
/// pod may be unknown; if the `spec` cannot be read, all are.
pub fn listener_accounts(spec: &Value) -> BTreeSet<String> {
    let spec = Spec::deserialize(spec).ok();
    let of_spec = |spec: Spec| {
        let names = spec.triggers.iter().map(|inline| inline.service_account_name.as_str()).chain([""]);
        names.filter_map(|own| spec.account_of(own)).collect()
    };
    spec.map(of_spec).unwrap_or_default()
}

/// Reads Triggers and EventListeners with Doorward's own credential at the API server.
#[derive(Clone, Copy, Debug)]
pub struct TriggerReader<'a> {
    pub pools: &'a Pools,
    pub server: &'a Arc<Upstream>,
}

impl TriggerReader<'_> {
    /// The account of a Trigger that the EventListener `listener` (namespace, name) activates. `None` if there is no
    /// such Trigger, if one within the EventListener and an object of that name have different accounts, or if it uses
    /// the account of a pod whose account is unknown.
    pub async fn service_account(
        &self,
        (namespace, name): (&str, &str),
        listener: (&str, &str),
    ) -> Result<Option<String>, Rejection> {
        if ![namespace, name, listener.0, listener.1].into_iter().all(is_subdomain) {
            return Ok(None);
        }
        let Some(of_listener) = self.get("eventlisteners", listener).await? else { return Ok(None) };
        let inline = of_listener.triggers.iter().filter(|inline| namespace == listener.0 && inline.name == name);
        let mut accounts: BTreeSet<Option<String>> =
            inline.map(|inline| of_listener.account_of(&inline.service_account_name)).collect();
        let object = self.get("triggers", (namespace, name)).await?;
        accounts.extend(object.map(|object| of_listener.account_of(&object.service_account_name)));
        Ok(if accounts.len() == 1 { accounts.pop_first().flatten() } else { None })
    }

    /// Reads an object; `None` if it does not exist.
    async fn get(&self, resource: &str, (namespace, name): (&str, &str)) -> Result<Option<Spec>, Rejection> {
        let path = format!("/apis/triggers.tekton.dev/v1beta1/namespaces/{namespace}/{resource}/{name}");
        let failed = |why: String| {
            let what = "the service account of a Trigger cannot be read from the API server";
            Rejection::new(Reason::UpstreamFailed, what).because(format!("{path}: {why}"))
        };
        let object: Option<Object> =
            self.pools.get_json(self.server, &path, MAX_OBJECT).await.map_err(|error| match error {
                GetError::Upstream(error) => error.into(),
                GetError::Status(StatusCode::UNAUTHORIZED) => self.server.credential_refused(),
                GetError::Status(status) => {
                    failed(format!("status {status}; its credential must be allowed to get {resource}"))
                }
                other => failed(other.to_string()),
            })?;
        Ok(object.map(|object| object.spec))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_z20_a_trigger_without_an_account_has_that_of_the_pod_of_its_event_listener() {
        let template = |account: &str| {
            format!(r#""kubernetesResource": {{"replicas": 1, "spec": {{"template": {{"spec": {{{account}}}}}}}}}"#)
        };
        let deployer = template(r#""serviceAccountName": "deployer""#);
        for (spec, own, account) in [
            (String::new(), "", Some("default")),
            (r#""serviceAccountName": "builder""#.to_owned(), "", Some("builder")),
            (r#""serviceAccountName": "builder""#.to_owned(), "tester", Some("tester")),
            // The template takes precedence, if it names one.
            (format!(r#""serviceAccountName": "builder", "resources": {{{deployer}}}"#), "", Some("deployer")),
            (format!(r#""resources": {{{deployer}}}"#), "", Some("deployer")),
            (format!(r#""resources": {{{deployer}}}"#), "tester", Some("tester")),
            (format!(r#""serviceAccountName": "builder", "resources": {{{}}}"#, template("")), "", Some("builder")),
            (
                r#""serviceAccountName": "builder", "resources": {"kubernetesResource": {}}"#.to_owned(),
                "",
                Some("builder"),
            ),
            // A Knative service has its own account, or that of its namespace.
            (
                r#""serviceAccountName": "builder", "resources": {"customResource": {"kind": "Service"}}"#.to_owned(),
                "",
                None,
            ),
            (r#""resources": {"customResource": {"kind": "Service"}}"#.to_owned(), "tester", Some("tester")),
            (format!(r#""resources": {{"customResource": {{}}, {deployer}}}"#), "", None),
            // Empty values in YAML.
            (r#""serviceAccountName": null, "triggers": null, "resources": null"#.to_owned(), "", Some("default")),
            (r#""resources": {"kubernetesResource": null, "customResource": null}"#.to_owned(), "", Some("default")),
            (r#""resources": {"kubernetesResource": {"spec": null}}"#.to_owned(), "", Some("default")),
            (r#""resources": {"kubernetesResource": {"spec": {"template": null}}}"#.to_owned(), "", Some("default")),
            (format!(r#""resources": {{{}}}"#, template(r#""serviceAccountName": null"#)), "", Some("default")),
            (r#""triggers": [{"name": null, "serviceAccountName": null}]"#.to_owned(), "", Some("default")),
        ] {
            let object: Object = serde_json::from_str(&format!(r#"{{"spec": {{{spec}}}}}"#)).unwrap();
            assert_eq!(object.spec.account_of(own).as_deref(), account, "{spec} {own}");
        }
    }
}
