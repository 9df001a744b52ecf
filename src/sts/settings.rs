//! The settings of tokens: `tokens`, and the entries of `issuers` that it names.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    MAX_LIFETIME, MIN_ROTATE,
    cluster::Clusters,
    configured,
    introspect::ResourceServer,
    keys::SigningKeys,
    onward::{Onward, Onwards},
    registry::{self, Registries},
};
use crate::{
    clock::Timestamp,
    config::{
        raw::{self, Preset},
        report::At,
        resolver::Resolver,
        values::Span,
    },
    egress::Egress,
    issuers::{Accepts, Issuers},
    upstream::Upstream,
};

/// The range of token lifetimes.
const LIFETIMES: RangeInclusive<Span> = Span::from_secs(60)..=Span(MAX_LIFETIME);

/// The settings of tokens, before the process runs.
#[derive(Debug)]
pub struct Settings {
    pub(super) issuer: Arc<str>,
    pub(super) lifetime: Duration,
    pub(super) rotate: Duration,
    pub(super) keys: Option<SigningKeys>,
    /// The issuers whose tokens are exchanged.
    pub(super) accepts: Accepts,
    pub(super) resource_servers: Vec<ResourceServer>,
    pub(super) registries: Registries,
    /// The clusters whose tasks get tokens.
    pub(super) clusters: Clusters,
    /// Audiences that trust another provider.
    pub(super) onward: Onwards,
}

impl Settings {
    /// Reads the configuration. Returns `None` if it has no `tokens`, or if they have errors, which are then reported.
    pub fn resolve(
        root: &raw::Root,
        issuers: &Issuers,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        egress: &Egress,
        now: Timestamp,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        let raw = root.tokens.as_ref();
        check_own_issuers(root, resolver);
        let raw = raw?;
        let at = At::root().key("tokens");
        let Some(host) = root.external_host.as_deref() else {
            resolver
                .error(&at, "without `external_host` the issuer of the tokens has no name")
                .help("set `external_host` to the name under which Doorward is reached");
            return None;
        };
        let issuer: Arc<str> = format!("https://{host}").into();
        let keys = configured::signing_keys(raw, root.store.redis.is_some(), now, resolver, &at);
        resolver.report.bounded(&at, "lifetime", raw.lifetime, LIFETIMES);
        if raw.rotate.get() < MIN_ROTATE {
            resolver.error(&at.key("rotate"), "`rotate` is less than 1h");
        }
        if raw.exchange.is_empty() {
            resolver.error(&at.key("exchange"), "no issuer is listed whose tokens could be exchanged");
        }
        let resource_servers =
            ResourceServer::resolve_all(&raw.resource_servers, &at.key("resource_servers"), resolver);
        let registries = registry::resolve(raw, root, &at.key("registries"), &mut resolver.report);
        let keys_now = keys.clone().map(|keys| keys.at(now));
        let onward = Onward::resolve_all(root, (&issuer, keys_now.as_ref()), egress, &at.key("onward"), resolver);
        let names: Vec<String> = raw.exchange.iter().map(|exchanged| exchanged.issuer.clone()).collect();
        let mut clusters = Clusters::default();
        for (index, exchanged) in raw.exchange.iter().enumerate() {
            let at = at.key("exchange").index(index);
            let Some(of) = root.issuers.iter().find(|issuer| issuer.name == exchanged.issuer) else {
                let known = root.issuers.iter().map(|issuer| issuer.name.as_str());
                resolver.unknown(&at.key("issuer"), "issuer", &exchanged.issuer, known);
                continue;
            };
            check_exchanged(exchanged, of, &issuer, &at, resolver);
            if raw.exchange.iter().take(index).any(|earlier| earlier.issuer == exchanged.issuer) {
                resolver
                    .error(&at.key("issuer"), format!("issuer `{}` is listed twice", exchanged.issuer))
                    .help("list all `namespaces` in one entry");
            }
            clusters.add(exchanged, root, upstreams, &at, resolver);
        }
        clusters.find_others(root, resolver);
        // Unknown issuers were reported above.
        let known: Vec<String> = names.into_iter().filter(|name| issuers.get(name).is_some()).collect();
        if known.is_empty() {
            return None;
        }
        let accepts = issuers.accepts(&known, &at.key("exchange"), resolver).with_audiences(&[issuer.to_string()]);
        Some(Self {
            issuer,
            lifetime: raw.lifetime.get(),
            rotate: raw.rotate.get(),
            keys,
            accepts,
            resource_servers,
            registries,
            clusters,
            onward,
        })
    }

    /// How long a key that Doorward makes signs; `None` if the configuration has keys.
    pub fn rotation(&self) -> Option<Duration> {
        self.keys.is_none().then_some(self.rotate)
    }

    /// Gives the configured keys to the entry of `issuers` that accepts Doorward's own tokens, where no process runs
    /// that knows others.
    pub fn supply(&self, issuers: &Issuers) {
        if let Some(keys) = &self.keys {
            super::supply(keys, issuers);
        }
    }
}

/// Checks entries of `issuers` for Doorward's own tokens.
fn check_own_issuers(root: &raw::Root, resolver: &mut Resolver) {
    let own = root.issuers.iter().enumerate().filter(|(_, issuer)| issuer.preset == Some(Preset::Doorward));
    for (index, issuer) in own {
        let at = At::root().key("issuers").index(index);
        if root.tokens.is_none() {
            resolver
                .error(&at.key("preset"), "without the section `tokens` Doorward issues none")
                .help("set `tokens: {exchange: [{issuer: ...}]}`");
        }
        let expected = root.external_host.as_deref().map(|host| format!("https://{host}"));
        if expected.is_some_and(|expected| expected != issuer.issuer) {
            resolver
                .error(&at.key("issuer"), "Doorward's own tokens are issued by `https://` and `external_host`")
                .help("leave `issuer` out");
        }
        if issuer.login.is_some() || issuer.introspection.is_some() || issuer.keys.url.is_some() {
            resolver.error(&at, "Doorward's own tokens need no `login`, `introspection` or `keys`");
        }
    }
}

fn check_exchanged(exchanged: &raw::Exchanged, of: &raw::Issuer, ours: &str, at: &At, resolver: &mut Resolver) {
    let report = &mut resolver.report;
    if of.preset == Some(Preset::GithubOauth) {
        report.error(&at.key("issuer"), format!("`{}` signs no tokens that could be exchanged", of.name)).help(
            "take it off the list; for jobs of GitHub Actions add an entry of `issuers` with `preset: github_actions`",
        );
        return;
    }
    if !of.audiences.iter().any(|audience| audience == ours) {
        report
            .error(&at.key("issuer"), format!("`{ours}` is not among the audiences of `{}`", of.name))
            .help("only tokens with Doorward as an audience are exchanged; add it to `audiences`");
    }
    match (of.preset, &exchanged.kubernetes) {
        (Some(Preset::Doorward), _) => {
            report.error(&at.key("issuer"), "a token of ours is not exchanged for another");
        }
        (Some(Preset::Kubernetes), None) => {
            report
                .error(&at.key("issuer"), "the pods of this cluster cannot be looked up")
                .help("name the API server's upstream in `kubernetes`");
        }
        (Some(Preset::Kubernetes), Some(_)) if of.token_review.is_none() => {
            report
                .error(&at.key("issuer"), format!("issuer `{}` has no `token_review`", of.name))
                .help("without it a token of a pod that was deleted would still be exchanged");
        }
        (Some(Preset::Kubernetes), Some(_)) | (_, None) => {}
        (_, Some(_)) => {
            report.error(&at.key("kubernetes"), "only an issuer with `preset: kubernetes` has pods");
        }
    }
}
