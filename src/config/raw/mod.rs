//! What a person writes: the shape of the configuration files, one field a setting, unknown keys refused.
//!
//! Nothing here is checked beyond its shape. Each component turns its part into what it runs on and reports what is
//! wrong with it (`config::resolve`). The JSON Schema that `doorward schema` prints is derived from these types, so
//! every field carries the sentence that an editor shows.

mod export;
mod issuers;
mod on;
mod onward;
mod operations;
mod policy;
mod routes;
mod store;
mod tokens;
mod webhooks;

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    export::*, issuers::*, on::*, onward::*, operations::*, policy::*, routes::*, store::*, tokens::*, webhooks::*,
};

/// The configuration of Doorward.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Root {
    /// Further files with `grants`, `rules` and `tests`, relative to this file. The list is explicit: a file that is
    /// missing, or in which none of the three stands, is an error, so that a lost file of denies can never widen the policy.
    pub policies: Vec<PathBuf>,
    /// The host whose `/.well-known/` is Doorward's own, such as `tekton.example.com`; an IPv6 address in brackets.
    pub external_host: Option<String>,
    /// Worker threads that serve requests. Default: one a processor. Fixed until restart.
    #[schemars(range(min = 1, max = 256))]
    pub workers: Option<u16>,
    /// Where Doorward listens. Fixed until restart, except certificates and trusted peers.
    pub listeners: Vec<Listener>,
    /// Sizes, counts and times that bound what a client or an upstream can make Doorward do.
    pub limits: Limits,
    /// Who is trusted to say who somebody is.
    pub issuers: Vec<Issuer>,
    /// Senders of webhooks and how their deliveries are verified.
    pub webhooks: Vec<Webhook>,
    /// Where requests go.
    pub upstreams: Vec<Upstream>,
    /// Which request goes where, and which kinds of credential it may carry.
    pub routes: Vec<Route>,
    /// From scopes, groups, claims, repositories and service accounts to Kubernetes groups.
    pub grants: Vec<Grant>,
    /// Who may do what.
    pub rules: Vec<Rule>,
    /// Cases that the policy must decide as they say, for `doorward test`.
    pub tests: Vec<PolicyTest>,
    /// What Doorward states about a delivery to its EventListener.
    pub assertions: Assertions,
    /// The Tekton ClusterInterceptor.
    pub interceptor: Option<Interceptor>,
    /// Links runs of Tekton to the requests that caused them.
    pub runs: Option<Runs>,
    /// Tokens that Doorward issues itself.
    pub tokens: Option<Tokens>,
    /// Browser sessions.
    pub sessions: Sessions,
    /// What people see of Doorward.
    pub pages: Pages,
    /// Where sessions, replay ids and revocations are kept.
    pub store: Store,
    /// The audit trail. Fixed until restart, except `when_full` and all but the names of receivers.
    pub audit: Audit,
    /// The listener for health and metrics, and the socket for operators.
    pub admin: Admin,
    /// The log of the program itself (not the audit trail).
    pub log: Log,
    /// Client certificates for the day when the provider is down.
    pub break_glass: Option<BreakGlass>,
    /// Which proxy asks at `/oauth2/auth` whether a request may pass, and forwards it itself. It must be among the
    /// `trusted_proxies` of its listener. Default: none may ask.
    pub forward_auth: Option<ForwardAuth>,
}

impl Root {
    /// Whose tokens are exchanged.
    pub fn exchanged(&self) -> impl Iterator<Item = &Exchanged> {
        self.tokens.iter().flat_map(|tokens| &tokens.exchange)
    }

    /// The providers whose tokens are passed on.
    pub fn onward(&self) -> impl Iterator<Item = &Onward> {
        self.tokens.iter().flat_map(|tokens| &tokens.onward)
    }

    /// The clusters whose tasks get tokens.
    pub fn clusters(&self) -> impl Iterator<Item = &Exchanged> {
        self.exchanged().filter(|of| of.kubernetes.is_some())
    }

    /// Which settings have Doorward read at an API server for itself, and at which upstream.
    pub fn readers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let runs = self.runs.iter().map(|runs| ("runs", runs.kubernetes.as_str()));
        let exchanged = self.exchanged().filter_map(|from| Some(("tokens.exchange", from.kubernetes.as_deref()?)));
        let interceptor = self.interceptor.iter().filter_map(|it| Some(("interceptor", it.kubernetes.as_deref()?)));
        runs.chain(exchanged).chain(interceptor)
    }

    /// Which settings beside routes have it ask an API server anything, and at which upstream.
    pub fn servers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let requested = self.upstreams.iter().filter_map(Upstream::requested_account);
        let requested = requested.map(|account| ("credential.service_account", account.upstream.as_str()));
        let reviews = self.issuers.iter().filter_map(|issuer| issuer.token_review.as_ref());
        let reviews = reviews.map(|review| ("token_review", review.upstream.as_str()));
        self.readers().chain(requested).chain(reviews)
    }
}

/// A proxy that asks about each request, and how it says which request it asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForwardAuth {
    /// `auth_request`: `X-Original-Method`, and `X-Original-URI` with `Host` or (ingress-nginx) `X-Original-URL`.
    Nginx,
    /// `forwardAuth`, and Caddy's `forward_auth`: `X-Forwarded-Method`, `X-Forwarded-Host`, `X-Forwarded-Uri`.
    Traefik,
    /// `ext_authz` over HTTP with the `path_prefix` `/oauth2/auth`: the question has the method, host and path.
    Envoy,
}

/// A file that `policies` names: the part of the configuration that says who may do what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyFile {
    /// From scopes, groups, claims, repositories and service accounts to Kubernetes groups.
    pub grants: Vec<Grant>,
    /// Who may do what.
    pub rules: Vec<Rule>,
    /// Cases that the policy must decide as they say, for `doorward test`.
    pub tests: Vec<PolicyTest>,
    /// What providers call scopes, by audience. No file has it: it is of a policy in canonical form, whose rules mean a scope by it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(skip)]
    pub scopes_of: BTreeMap<String, BTreeMap<String, String>>,
}
