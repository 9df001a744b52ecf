//! The shape of the configuration files as people write them: one field per setting, unknown keys refused.
//!
//! Only the shape is checked here. Each component converts its part into its runtime settings and reports the problems
//! that it finds (`config::resolve`). The JSON Schema that `doorward schema` prints is derived from these types, so
//! every field has the sentence that an editor shows.

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
    /// missing or has none of the three is an error, so that losing a file of denies can never widen the policy.
    pub policies: Vec<PathBuf>,
    /// The host whose `/.well-known/` Doorward serves itself, such as `tekton.example.com`; an IPv6 address in
    /// brackets.
    pub external_host: Option<String>,
    /// Worker threads that serve requests. Default: one per processor. Fixed until restart.
    #[schemars(range(min = 1, max = 256))]
    pub workers: Option<u16>,
    /// Addresses that Doorward listens on. Fixed until restart, except certificates and trusted peers.
    pub listeners: Vec<Listener>,
    /// Limits on the sizes, counts and times that a client or an upstream can cause.
    pub limits: Limits,
    /// Issuers whose tokens are accepted and at which people sign in.
    pub issuers: Vec<Issuer>,
    /// Webhook senders and how their deliveries are verified.
    pub webhooks: Vec<Webhook>,
    /// Servers that requests are forwarded to.
    pub upstreams: Vec<Upstream>,
    /// Requests, the upstreams that they are forwarded to, and the kinds of credential that they may carry.
    pub routes: Vec<Route>,
    /// Mappings from scopes, groups, claims, repositories and service accounts to Kubernetes groups.
    pub grants: Vec<Grant>,
    /// Who may do what.
    pub rules: Vec<Rule>,
    /// Test cases of the policy, for `doorward test`.
    pub tests: Vec<PolicyTest>,
    /// Signed statements about deliveries, for their EventListeners.
    pub assertions: Assertions,
    /// The Tekton ClusterInterceptor.
    pub interceptor: Option<Interceptor>,
    /// Links runs of Tekton to the requests that caused them.
    pub runs: Option<Runs>,
    /// Tokens that Doorward issues itself.
    pub tokens: Option<Tokens>,
    /// Browser sessions.
    pub sessions: Sessions,
    /// The appearance of Doorward's own pages.
    pub pages: Pages,
    /// The store of sessions, replay ids and revocations.
    pub store: Store,
    /// The audit trail. Fixed until restart, except `when_full` and all but the names of receivers.
    pub audit: Audit,
    /// The listener for health and metrics, and the socket for operators.
    pub admin: Admin,
    /// The log of the program itself (not the audit trail).
    pub log: Log,
    /// Emergency access with client certificates while the identity provider is down.
    pub break_glass: Option<BreakGlass>,
    /// The kind of proxy that asks at `/oauth2/auth` whether a request is allowed, and forwards the request itself. It
    /// must be among the `trusted_proxies` of its listener. On every host, this path and those below it are then
    /// Doorward's own, and no upstream gets them. Default: none.
    pub forward_auth: Option<ForwardAuth>,
}

impl Root {
    /// The issuers whose tokens are exchanged.
    pub fn exchanged(&self) -> impl Iterator<Item = &Exchanged> {
        self.tokens.iter().flat_map(|tokens| &tokens.exchange)
    }

    /// The providers whose tokens are issued in place of Doorward's own.
    pub fn onward(&self) -> impl Iterator<Item = &Onward> {
        self.tokens.iter().flat_map(|tokens| &tokens.onward)
    }

    /// The clusters whose tasks can get tokens.
    pub fn clusters(&self) -> impl Iterator<Item = &Exchanged> {
        self.exchanged().filter(|of| of.kubernetes.is_some())
    }

    /// The settings for which Doorward itself reads from an API server, each with the name of the upstream.
    pub fn readers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let runs = self.runs.iter().map(|runs| ("runs", runs.kubernetes.as_str()));
        let exchanged = self.exchanged().filter_map(|from| Some(("tokens.exchange", from.kubernetes.as_deref()?)));
        let interceptor = self.interceptor.iter().filter_map(|it| Some(("interceptor", it.kubernetes.as_deref()?)));
        runs.chain(exchanged).chain(interceptor)
    }

    /// The settings besides routes for which Doorward calls an API server, each with the name of the upstream.
    pub fn servers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let requested = self.upstreams.iter().filter_map(Upstream::requested_account);
        let requested = requested.map(|account| ("credential.service_account", account.upstream.as_str()));
        let reviews = self.issuers.iter().filter_map(|issuer| issuer.token_review.as_ref());
        let reviews = reviews.map(|review| ("token_review", review.upstream.as_str()));
        self.readers().chain(requested).chain(reviews)
    }
}

/// A kind of proxy that asks about each request, and how it describes the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForwardAuth {
    /// `auth_request`: `X-Original-Method`, and `X-Original-URI` with `Host` or (ingress-nginx) `X-Original-URL`.
    Nginx,
    /// `forwardAuth`, and Caddy's `forward_auth`: `X-Forwarded-Method`, `X-Forwarded-Host`, `X-Forwarded-Uri`.
    Traefik,
    /// `ext_authz` over HTTP with the `path_prefix` `/oauth2/auth`: the check request has the original method, host and
    /// path.
    Envoy,
}

/// A file that `policies` lists: a part of the policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyFile {
    /// Mappings from scopes, groups, claims, repositories and service accounts to Kubernetes groups.
    pub grants: Vec<Grant>,
    /// Who may do what.
    pub rules: Vec<Rule>,
    /// Test cases of the policy, for `doorward test`.
    pub tests: Vec<PolicyTest>,
    /// The names that providers use for scopes, by audience. It is never in a file: only a policy in canonical form has
    /// it, as it determines what the scopes in its rules mean.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(skip)]
    pub scopes_of: BTreeMap<String, BTreeMap<String, String>>,
}
