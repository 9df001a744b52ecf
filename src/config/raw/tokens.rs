//! `tokens`: what Doorward issues itself, to whom, and who may ask about it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Onward;
use crate::config::values::{SecretSource, Span};

/// Tokens that Doorward issues itself, in exchange for others (RFC 8693): at `https://EXTERNAL_HOST/oauth2/token`. Rules with
/// `on: {token: ...}` say who gets which. Routes take them where an issuer has the preset `doorward`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Keys that sign, P-256 or RSA in PEM (PKCS #8): the first signs until the time of another of its algorithm has come (`from`), all
    /// are published. Default: P-256 keys that are made, kept sealed in the store and replaced every `rotate`; several replicas need the
    /// same, from files.
    #[serde(default)]
    pub keys: Vec<TokenKey>,
    /// How long a key that Doorward made itself signs. Its successor is published for as long before. Default: 7 d.
    #[serde(default = "Tokens::default_rotate")]
    pub rotate: Span,
    /// How long a token lasts at most, 1 m to 10 m. Default: 10 m.
    #[serde(default = "Tokens::default_lifetime")]
    pub lifetime: Span,
    /// Whose tokens are exchanged.
    pub exchange: Vec<Exchanged>,
    /// Who may ask whether a token is good at the moment (RFC 7662).
    #[serde(default)]
    pub resource_servers: Vec<ResourceServer>,
    /// Registries of containers that trust Doorward's tokens, and send their clients to
    /// `https://EXTERNAL_HOST/oauth2/registry` for one.
    #[serde(default)]
    pub registries: Vec<Registry>,
    /// Audiences that trust another provider: its tokens are given in place of ours.
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

/// A key that signs tokens: of exactly one of `file` and `env`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenKey {
    /// The whole file, less one trailing line end. Read again when the file changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The name of an environment variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// From when on it signs, in place of those of its algorithm before, and of all where it is the first: a day in UTC (`2026-01-31`),
    /// or a time of RFC 3339. It is published at once, and should be for an hour before, which is how long many keep the set. Without it
    /// a key signs until the time of another has come.
    pub from: Option<String>,
}

impl TokenKey {
    /// Where the key comes from, if one place is named.
    pub fn source(&self) -> Option<SecretSource> {
        match (&self.file, &self.env) {
            (Some(file), None) => Some(SecretSource::File(file.clone())),
            (None, Some(name)) => Some(SecretSource::Env(name.clone())),
            _ => None,
        }
    }
}

/// A registry of containers (distribution's token authentication). Rules name an action on a repository as a scope:
/// `push:acme/app`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// What the registry has as `auth.token.service`. To rules it is the audience.
    pub service: String,
    /// How long a token for it lasts, 1 m to `lifetime` of all. No registry asks whether one was revoked. Default: 5 m, or
    /// `lifetime` of all if that is less.
    #[serde(default)]
    pub lifetime: Option<Span>,
}

/// An issuer whose tokens are exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exchanged {
    /// The issuer, by name. Its tokens must be made out to Doorward: `https://EXTERNAL_HOST` is to be among its `audiences`.
    pub issuer: String,
    /// For a cluster: the upstream, by name, where pods and runs are looked up. Its credential must be allowed to `get`, list
    /// and watch pods, TaskRuns and PipelineRuns.
    #[serde(default)]
    pub kubernetes: Option<String>,
    /// For a cluster: the other upstreams that lead to it, by name: its API server by another address, and where a route leads to the API
    /// server of another cluster, its EventListeners. Who makes a run by way of one has caused a run of this cluster.
    #[serde(default)]
    pub upstreams: Vec<String>,
    /// For a cluster: in which namespaces tasks get tokens. Default: in all. Where a reload takes a cluster or a namespace away, the tokens
    /// of its tasks end; where it names another upstream, that is asked from then on.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

impl Exchanged {
    /// Whether tasks of this cluster get tokens in a namespace.
    pub fn gives_in(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|listed| listed == namespace)
    }
}

/// A server for which tokens of Doorward's are, and which asks about them at `https://EXTERNAL_HOST/oauth2/introspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceServer {
    /// The name by which it authenticates, with HTTP Basic.
    pub id: String,
    /// Its secret, 16 bytes or more.
    pub secret: SecretSource,
    /// Which tokens it may ask about: those with one of these audiences. Of all others it hears that they are not active.
    pub audiences: Vec<String>,
}
