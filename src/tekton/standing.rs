//! Finds static credentials in a cluster: tokens and passwords in Secrets or in plain text, which outlive the run that
//! uses them and do not identify who caused it. Findings contain the place of a credential, never its value.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::kubernetes::{
    Named,
    listed::{List, Metadata},
};

/// A place with a static credential.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Standing {
    pub object: Named,
    /// The place in the object, such as `spec.workspaces[0].secret`.
    pub at: String,
    pub sort: Sort,
    /// The name of the Secret in the namespace of the object. `None` if the object is the Secret, if the credential is
    /// in plain text, or if its name would come from arbitrary text.
    pub secret: Option<String>,
}

/// The kind of a static credential, which determines what can replace it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// A Secret of a service account, which every task that runs as it gets from Tekton.
    Account,
    /// A Secret for pulling images.
    ImagePull,
    /// A token of a service account without expiry.
    EndlessToken,
    /// A Secret that Tekton uses at a Git host or a registry.
    Annotated,
    /// A Secret in a variable, a volume or a workspace of a task.
    Task,
    /// A Secret with which a resolver fetches pipelines and tasks.
    Resolver,
    /// The secret of a webhook, which an interceptor verifies.
    Webhook,
    /// A token with which an interceptor calls a Git host.
    HostToken,
    /// Plain text: a parameter or a variable that is named like a credential and has a value.
    Literal,
}

impl Sort {
    /// A short description.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Account => "each task with this service account gets the Secret",
            Self::ImagePull => "images are pulled with the Secret",
            Self::EndlessToken => "a token of a service account without expiry",
            Self::Annotated => "Tekton uses the Secret at a Git host or a registry",
            Self::Task => "a task gets the Secret",
            Self::Resolver => "a resolver uses a Secret",
            Self::Webhook => "an interceptor verifies a webhook with the Secret",
            Self::HostToken => "an interceptor uses the token at a Git host",
            Self::Literal => "it is named like a credential and its value is in plain text",
        }
    }

    /// What can replace it.
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Account | Self::Annotated | Self::Task => {
                "let the step exchange its pod's token for a short-lived one (`doorward token`, docs/workload-identity.md), then \
                 delete the Secret"
            }
            Self::ImagePull => {
                "let nodes pull with their own identity (a credential provider of the kubelet), or limit the Secret to pulling from \
                 one repository"
            }
            Self::EndlessToken => {
                "delete the Secret, which ends the token; use TokenRequest or a projected volume instead"
            }
            Self::Resolver => {
                "fetch from a place that needs no credential within the cluster, such as a bundle in a registry that nodes may read, \
                 or limit the token to reading that repository"
            }
            Self::Webhook => {
                "let Doorward verify the signature (`webhooks`, docs/webhooks.md) and the EventListener call the interceptor \
                 `doorward`, then delete the Secret in the namespace"
            }
            Self::HostToken => {
                "let Doorward's rules decide by the event, branch, fork and sender of the verified delivery \
                 (docs/webhooks.md) instead of asking the Git host"
            }
            Self::Literal => {
                "remove the value and revoke it at its issuer, as everybody who may read runs has seen it; then let the step exchange \
                 its pod's token (`doorward token`, docs/workload-identity.md)"
            }
        }
    }
}

impl fmt::Display for Standing {
    /// Writes one line without the remedy, escaped for a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("{} at {}: {}", self.object, self.at, self.sort.what());
        write!(f, "{}", line.escape_debug())?;
        match &self.secret {
            Some(secret) => write!(f, " ({})", secret.escape_debug()),
            None => Ok(()),
        }
    }
}

/// Finds static credentials in a `v1` `List` in JSON, as
/// `kubectl get serviceaccounts,secrets,eventlisteners,triggers.triggers.tekton.dev,
/// triggertemplates,triggerbindings,pipelines,tasks,pipelineruns,taskruns -A -o
/// json` writes it. The kinds may be mixed; others are
/// ignored. Neither the data of Secrets nor the values of their annotations are kept. The result is sorted.
///
/// Parameters and variables count by their names ([`Sort::Literal`]), so a credential under another name is not found,
/// and a value that is only named like a credential is.
///
/// # Errors
///
/// If it is not such a list.
pub fn standing_credentials(list: &[u8]) -> serde_json::Result<Vec<Standing>> {
    let List::<Item> { items } = serde_json::from_slice(list)?;
    let mut found = Vec::new();
    for item in &items {
        let object = Named {
            kind: item.kind.clone(),
            namespace: item.metadata.namespace.clone(),
            name: item.metadata.name.clone(),
        };
        let mut search = Search { object, found: &mut found };
        match item.kind.as_str() {
            "ServiceAccount" => {
                search.references(&item.secrets, "secrets", Sort::Account);
                search.references(&item.image_pull_secrets, "imagePullSecrets", Sort::ImagePull);
            }
            "Secret" => search.secret(item),
            kind if KINDS.contains(&kind) => search.walk(&item.spec, "spec", MAX_DEPTH),
            _ => {}
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The Tekton kinds that describe what runs.
const KINDS: [&str; 12] = [
    "ClusterTask",
    "ClusterTriggerBinding",
    "CustomRun",
    "EventListener",
    "Pipeline",
    "PipelineRun",
    "StepAction",
    "Task",
    "TaskRun",
    "Trigger",
    "TriggerBinding",
    "TriggerTemplate",
];

/// The maximum depth. A pipeline within a run within a template has about 25 levels.
const MAX_DEPTH: usize = 64;

/// The members of an object that are read. Members that other kinds have in another shape are read as any value; `data`
/// is not read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    #[serde(default)]
    kind: String,
    metadata: Metadata,
    /// The type of a Secret.
    #[serde(default, rename = "type")]
    type_: Value,
    #[serde(default)]
    secrets: Value,
    #[serde(default)]
    image_pull_secrets: Value,
    #[serde(default)]
    spec: Value,
}

struct Search<'a> {
    object: Named,
    found: &'a mut Vec<Standing>,
}

impl Search<'_> {
    fn add(&mut self, at: &str, sort: Sort, secret: Option<&str>) {
        let (object, secret) = (self.object.clone(), secret.map(str::to_owned));
        self.found.push(Standing { object, at: at.to_owned(), sort, secret });
    }

    /// Adds the Secrets of a list of `{name}`.
    fn references(&mut self, list: &Value, at: &str, sort: Sort) {
        for (index, reference) in list.as_array().into_iter().flatten().enumerate() {
            self.add(&format!("{at}[{index}]"), sort, text(reference, "name"));
        }
    }

    fn secret(&mut self, item: &Item) {
        let of_tekton = |name: &&String| name.starts_with("tekton.dev/git-") || name.starts_with("tekton.dev/docker-");
        let mut annotations = item.metadata.annotations.iter().flat_map(BTreeMap::keys);
        match item.type_.as_str().unwrap_or_default() {
            "kubernetes.io/service-account-token" => self.add("type", Sort::EndlessToken, None),
            "kubernetes.io/basic-auth"
            | "kubernetes.io/ssh-auth"
            | "kubernetes.io/dockercfg"
            | "kubernetes.io/dockerconfigjson" => {
                if let Some(name) = annotations.find(of_tekton) {
                    self.add(&format!("metadata.annotations.{name}"), Sort::Annotated, None);
                }
            }
            _ => {}
        }
    }

    fn walk(&mut self, value: &Value, at: &str, depth: usize) {
        // Deeper than Tekton reads. serde_json stops at 128.
        let Some(depth) = depth.checked_sub(1) else { return };
        match value {
            Value::Array(all) => {
                for (index, value) in all.iter().enumerate() {
                    self.walk(value, &format!("{at}[{index}]"), depth);
                }
            }
            // An EventListener's own certificate is not a credential for anything else.
            Value::Object(members) if self.is_own_certificate(members) => {}
            Value::Object(members) => {
                let is_resolved = members.get("resolver").is_some_and(Value::is_string);
                for (key, value) in members {
                    self.member(key, value, &format!("{at}.{key}"), is_resolved, depth);
                }
            }
            _ => {}
        }
    }

    fn is_own_certificate(&self, variable: &Map<String, Value>) -> bool {
        self.object.kind == "EventListener"
            && variable.get("name").and_then(Value::as_str).is_some_and(|name| name == "TLS_CERT" || name == "TLS_KEY")
    }

    fn member(&mut self, key: &str, value: &Value, at: &str, is_resolved: bool, depth: usize) {
        let sort = if at.contains(".interceptors[") { Sort::Webhook } else { Sort::Task };
        match (key, secret_named(key, value)) {
            ("imagePullSecrets", _) => return self.references(value, at, Sort::ImagePull),
            ("params" | "env", _) => self.literals(value, at, is_resolved),
            ("personalAccessToken", Some(name)) => return self.add(at, Sort::HostToken, Some(name)),
            (_, Some(name)) => return self.add(at, sort, Some(name)),
            _ => {}
        }
        self.walk(value, at, depth);
    }

    /// Searches parameters and variables: `{name, value}`, or `{name, default}` in declarations.
    fn literals(&mut self, list: &Value, at: &str, is_resolved: bool) {
        // A resolver gets the name of a Secret in a parameter that is named like a credential.
        let sort = if is_resolved { Sort::Resolver } else { Sort::Literal };
        for (index, one) in list.as_array().into_iter().flatten().enumerate() {
            let name = text(one, "name").unwrap_or_default();
            for key in ["value", "default"] {
                let Some(value) = one.get(key) else { continue };
                let at = format!("{at}[{index}].{key}");
                match value {
                    Value::Object(members) if !is_resolved => self.literal_members(members, &at),
                    _ if names_a_credential(name) && holds_a_text(value) => self.add(&at, sort, None),
                    _ => {}
                }
            }
        }
    }

    /// Searches a parameter of the type `object`.
    fn literal_members(&mut self, members: &Map<String, Value>, at: &str) {
        for (key, value) in members.iter().filter(|(key, value)| names_a_credential(key) && holds_a_text(value)) {
            // `{secretName, secretKey}` for an interceptor.
            if key != "secretName" && key != "secretKey" && value.is_string() {
                self.add(&format!("{at}.{key}"), Sort::Literal, None);
            }
        }
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// The Secret that a member refers to: by `name` under the keys that Kubernetes uses, or by `secretName` under any key.
fn secret_named<'a>(key: &str, value: &'a Value) -> Option<&'a str> {
    let by_name = || match key {
        "secretKeyRef" | "secretRef" | "nodePublishSecretRef" | "secret" => text(value, "name"),
        _ => None,
    };
    text(value, "secretName").or_else(by_name)
}

/// Whether a name is that of a credential, and not of its location, name or length.
fn names_a_credential(name: &str) -> bool {
    const CREDENTIALS: [&str; 9] =
        ["token", "password", "passwd", "secret", "apikey", "accesskey", "privatekey", "credential", "passphrase"];
    const OTHERS: [&str; 16] = [
        "name", "path", "file", "dir", "url", "uri", "endpoint", "id", "ref", "ttl", "audience", "type", "tokens",
        "length", "count", "issuer",
    ];
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    CREDENTIALS.iter().any(|credential| plain.contains(credential))
        && !OTHERS.iter().any(|other| plain.ends_with(other))
}

/// Whether a value contains a text that is neither a reference, which Tekton replaces, nor a boolean.
fn holds_a_text(value: &Value) -> bool {
    match value {
        Value::String(text) => !matches!(text.trim(), "" | "true" | "false") && !text.contains("$("),
        Value::Array(all) => all.iter().any(|value| value.is_string() && holds_a_text(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
