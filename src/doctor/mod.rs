//! `doorward doctor`: checks everything around Doorward that its configuration names, from where Doorward runs. For
//! each thing it reports whether it is in order, and what to do if it is not. It changes nothing anywhere, and signs
//! nobody in.
//!
//! | file | checks |
//! |---|---|
//! | `store`, `upstream`, `receivers` | the store, upstreams and Doorward's rights there, receivers of the audit trail |
//! | `provider` | issuers: what they publish, and whether they know Doorward |
//! | `public` | the address at which browsers reach Doorward |
//! | `interceptor` | whether EventListeners trust the interceptor |
//! | `cluster` | a list of the cluster: static credentials, and who can bypass Doorward |
//! | `outside` | from elsewhere: whether others reach what only Doorward may reach |
//! | `certificates` | how long certificates are valid |

mod certificates;
mod cluster;
mod interceptor;
mod outside;
mod provider;
mod public;
mod receivers;
mod store;
mod upstream;

use std::path::Path;

use serde::Serialize;

pub(crate) use self::interceptor::is_authority;
pub use self::{
    outside::{Address, examine_outside},
    public::Public,
};
use crate::{
    app::account_tokens, clock::Clock, config::Loaded, config::raw, rbac::Installed, sessions::Origin,
    snapshot::Resolved, upstream::Pools,
};

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The discovery documents of issuers can be read.
    Discovery,
    /// Issuers spell their identifiers as the configuration does.
    Issuer,
    /// Issuers have keys for the accepted algorithms.
    Algorithms,
    /// The clock of this machine agrees with those of the issuers.
    Clock,
    /// Providers know Doorward's redirect addresses.
    Redirect,
    /// Issuers answer questions about tokens.
    Introspection,
    /// Upstreams answer: API servers, EventListeners, Dashboards and others.
    Upstreams,
    /// Kubernetes allows Doorward what its configuration needs.
    Rights,
    /// Doorward sees the address by which browsers reach it.
    Origin,
    /// Upgrades to WebSocket get through to Doorward.
    Upgrade,
    /// Large cookies get through to Doorward.
    Cookies,
    /// Certificates are valid, and for how long.
    Certificates,
    /// The store can be used.
    Store,
    /// Receivers of the audit trail accept what they are sent.
    Receivers,
    /// EventListeners trust the interceptor's certificate.
    Interceptor,
    /// Static credentials in the cluster.
    Credentials,
    /// Who in the cluster may start runs past Doorward.
    Bypass,
    /// Nobody but Doorward reaches its upstreams. Checked with `--outside`.
    Isolation,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    pub check: Check,
    /// The thing that was checked, such as ``issuer `corp` ``.
    pub subject: String,
    pub state: State,
    /// A description of the state.
    pub message: String,
    /// The remedy. Empty if nothing needs to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Good,
    /// It could not be checked, or there is nothing to check.
    Skipped,
    /// It works, or may work, but is not as it should be.
    Warning,
    /// It does not work.
    Fault,
}

impl Finding {
    fn new(check: Check, subject: &str, state: State, message: String, fix: String) -> Self {
        Self { check, subject: subject.to_owned(), state, message, fix }
    }

    fn good(check: Check, subject: &str, message: impl Into<String>) -> Self {
        Self::new(check, subject, State::Good, message.into(), String::new())
    }

    fn skipped(check: Check, subject: &str, message: impl Into<String>) -> Self {
        Self::new(check, subject, State::Skipped, message.into(), String::new())
    }

    fn warning(check: Check, subject: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, subject, State::Warning, message.into(), fix.into())
    }

    fn fault(check: Check, subject: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, subject, State::Fault, message.into(), fix.into())
    }
}

/// What is examined, and with what.
#[derive(Debug)]
pub struct Doctor<'a> {
    pub loaded: &'a Loaded,
    pub resolved: &'a Resolved,
    pub clock: Clock,
    pub pools: Pools,
    /// Where browsers reach Doorward; `None` if unknown.
    pub public: Option<Public>,
    /// The output of `kubectl get ... -o json` for the cluster, and the name of the file.
    pub cluster: Option<(&'a Path, &'a [u8])>,
    /// The subjects in the cluster that are expected to start runs.
    pub installed: Installed<'a>,
}

impl Doctor<'_> {
    /// Runs the checks in `only`, or all if it is empty. The result is in the order of [`Check`].
    pub async fn examine(&self, only: &[Check]) -> Vec<Finding> {
        let wants = |checks: &[Check]| only.is_empty() || checks.iter().any(|check| only.contains(check));
        let without_token = if wants(&[Check::Upstreams, Check::Rights]) {
            account_tokens::obtain(&self.pools, self.resolved.upstreams(), &self.clock).await
        } else {
            Vec::new()
        };
        let provider = async {
            let checks = [
                Check::Discovery,
                Check::Issuer,
                Check::Algorithms,
                Check::Clock,
                Check::Redirect,
                Check::Introspection,
            ];
            if wants(&checks) { provider::examine(self, |check| wants(&[check])).await } else { Vec::new() }
        };
        let upstreams = async {
            if wants(&[Check::Upstreams]) { upstream::examine(self, &without_token).await } else { Vec::new() }
        };
        let rights = async {
            if wants(&[Check::Rights]) { upstream::examine_rights(self, &without_token).await } else { Vec::new() }
        };
        let public = async {
            let checks = [Check::Origin, Check::Upgrade, Check::Cookies, Check::Certificates];
            if wants(&checks) { public::examine(self.public.as_ref(), &self.clock).await } else { Vec::new() }
        };
        let store = async { if wants(&[Check::Store]) { store::examine(self).await } else { Vec::new() } };
        let receivers = async { if wants(&[Check::Receivers]) { receivers::examine(self).await } else { Vec::new() } };
        let (provider, upstreams, rights, public, store, receivers) =
            tokio::join!(provider, upstreams, rights, public, store, receivers);
        let mut findings = [provider, upstreams, rights, public, store, receivers].concat();
        let check = if wants(&[Check::Upstreams]) { Check::Upstreams } else { Check::Rights };
        findings.extend(without_token.iter().map(|(name, error)| upstream::without_token(check, name, error)));
        if wants(&[Check::Certificates]) {
            findings.extend(certificates::of_files(self));
        }
        if wants(&[Check::Interceptor]) {
            findings.extend(interceptor::examine(self));
        }
        if wants(&[Check::Credentials]) {
            findings.extend(cluster::credentials(self));
        }
        if wants(&[Check::Bypass]) {
            findings.extend(cluster::bypass(self));
        }
        if wants(&[Check::Isolation]) {
            findings.push(outside::advise(self.raw()));
        }
        findings.retain(|finding| wants(&[finding.check]));
        findings.sort_by_key(|finding| finding.check);
        findings
    }

    fn raw(&self) -> &raw::Root {
        &self.loaded.raw
    }

    /// The origins at which browsers sign in.
    fn origins(&self) -> Vec<Origin> {
        let signs_in = self.raw().routes.iter().filter(|route| route.schemes.contains(&raw::Scheme::Session));
        let hosts = signs_in.flat_map(|route| &route.hosts).filter(|host| !host.starts_with('*'));
        let mut origins: Vec<Origin> = Vec::new();
        for host in hosts {
            let public = self.public.as_ref().filter(|public| public.host() == host.trim_matches(['[', ']']));
            let origin = public.map(|public| public.origin().clone());
            let origin = origin.or_else(|| self.on_this_machine(host)).or_else(|| Origin::https(host));
            origins.extend(origin.filter(|origin| !origins.contains(origin)));
        }
        origins
    }

    /// The origin of a host of this machine that a listener serves in clear text, as in development.
    fn on_this_machine(&self, host: &str) -> Option<Origin> {
        let clear = |listener: &&raw::Listener| listener.tls.is_none() && listener.address.port() != 0;
        let listener = self.raw().listeners.iter().find(clear)?;
        Origin::loopback(&format!("{host}:{}", listener.address.port()))
    }
}
