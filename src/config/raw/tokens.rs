//! `tokens`: tokens that Doorward issues, to whom, and who may introspect them.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Onward,
    policy::{some, unset_if_empty},
};
use crate::config::values::{SecretSource, Span};

/// Tokens that Doorward issues in exchange for others (RFC 8693), at `https://EXTERNAL_HOST/oauth2/token`. Rules with
/// `on: {token: ...}` decide who gets which. Routes accept them if an issuer has the preset `doorward`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Signing keys, P-256 or RSA in PEM (PKCS #8): the first signs until the `from` time of another key of its
    /// algorithm is reached; all are published. Default: P-256 keys that are generated, stored sealed in the store and
    /// replaced every `rotate`; several replicas need the same keys, from files.
    #[serde(default)]
    pub keys: Vec<TokenKey>,
    /// How long a generated key signs, at least 1 h. Its successor is published that long before it signs.
    /// Default: 7 d.
    #[serde(default = "Tokens::default_rotate")]
    pub rotate: Span,
    /// The longest lifetime of a token, 1 m to 10 m. Default: 10 m.
    #[serde(default = "Tokens::default_lifetime")]
    pub lifetime: Span,
    /// The issuers whose tokens are exchanged.
    pub exchange: Vec<Exchanged>,
    /// Servers that may ask whether a token is valid at the moment (RFC 7662).
    #[serde(default)]
    pub resource_servers: Vec<ResourceServer>,
    /// Container registries that trust Doorward's tokens and send their clients to
    /// `https://EXTERNAL_HOST/oauth2/registry` for one.
    #[serde(default)]
    pub registries: Vec<Registry>,
    /// Audiences that trust another provider: its tokens are given in place of Doorward's.
    #[serde(default)]
    pub onward: Vec<Onward>,
}

impl Tokens {
    fn default_rotate() -> Span {
        Span::from_secs(7 * 86_400)
    }

    fn default_lifetime() -> Span {
        Span::from_secs(600)
    }
}

/// A key that signs tokens, from exactly one of `file` and `env`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenKey {
    /// The file with the key; one trailing newline is removed. Read again when the file changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The name of an environment variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// The time from which it signs, in place of earlier keys of its algorithm, and of all keys if it is the first in
    /// the list: a day in UTC (`2026-01-31`), or an RFC 3339 time. It is published at once, and should be published for
    /// an hour before it signs, which is how long many servers cache the set. Without it a key signs until the time of
    /// another is reached.
    pub from: Option<String>,
}

impl TokenKey {
    /// The source of the key, if exactly one is set.
    pub fn source(&self) -> Option<SecretSource> {
        match (&self.file, &self.env) {
            (Some(file), None) => Some(SecretSource::File(file.clone())),
            (None, Some(name)) => Some(SecretSource::Env(name.clone())),
            _ => None,
        }
    }
}

/// A container registry (distribution's token authentication). Rules name an action on a repository as a scope:
/// `push:acme/app`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// The `auth.token.service` of the registry. Rules use it as the audience.
    pub service: String,
    /// The lifetime of a token for it, 1 m to `tokens.lifetime`. No registry asks whether a token was revoked.
    /// Default: 5 m, or `tokens.lifetime` if that is less.
    #[serde(default)]
    pub lifetime: Option<Span>,
}

/// An issuer whose tokens are exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exchanged {
    /// The issuer, by name. Its tokens must be issued for Doorward: `https://EXTERNAL_HOST` must be among its
    /// `audiences`.
    pub issuer: String,
    /// For a cluster: the upstream, by name, where pods and runs are looked up. Its credential must be allowed to
    /// `get`, `list` and `watch` pods, TaskRuns and PipelineRuns.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// For a cluster: the other upstreams that reach it, by name: its API server at another address and, if a route
    /// goes to the API server of another cluster, its EventListeners. A caller that creates a run through one of them
    /// has caused a run of this cluster.
    #[serde(default)]
    pub upstreams: Vec<String>,
    /// For a cluster: the namespaces in which tasks get tokens. Default: all. If a reload removes a cluster or a
    /// namespace, the tokens of its tasks end; if it names another upstream, that is asked from then on.
    #[serde(default, deserialize_with = "some", serialize_with = "unset_if_empty")]
    #[schemars(length(min = 1))]
    pub namespaces: Vec<String>,
}

impl Exchanged {
    /// Whether tasks of this cluster get tokens in a namespace.
    pub fn gives_in(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|listed| listed == namespace)
    }
}

/// A server that Doorward's tokens are for, and that introspects them at `https://EXTERNAL_HOST/oauth2/introspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceServer {
    /// The user name with which it authenticates, with HTTP Basic.
    pub id: String,
    /// Its secret, 16 bytes or more.
    pub secret: SecretSource,
    /// The audiences whose tokens it may introspect. All other tokens are reported as not active.
    pub audiences: Vec<String>,
}
