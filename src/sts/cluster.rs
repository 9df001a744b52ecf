//! Clusters whose tasks get tokens, and the upstreams through which runs are made there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    config::{
        raw::{self, RouteKind},
        report::At,
        resolver::Resolver,
    },
    upstream::Upstream,
};

/// A cluster, with the API server where its pods are looked up.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) server: Arc<Upstream>,
    /// The names of all upstreams that lead there: the API server's, others at the same address, and those that are
    /// listed.
    upstreams: BTreeSet<Arc<str>>,
}

/// The clusters by the names of their issuers.
#[derive(Debug, Default)]
pub(super) struct Clusters {
    of: BTreeMap<Arc<str>, Cluster>,
    /// Whether another API server is known, where runs are made that belong to none of these.
    has_others: bool,
}

impl Cluster {
    fn leads(&self, upstreams: &[&str]) -> bool {
        upstreams.iter().any(|upstream| self.upstreams.contains(*upstream))
    }
}

impl Clusters {
    /// Adds the cluster of an entry of `tokens.exchange` that names its API server. `at` is the place of the entry.
    pub(super) fn add(
        &mut self,
        exchanged: &raw::Exchanged,
        root: &raw::Root,
        upstreams: &BTreeMap<Arc<str>, Arc<Upstream>>,
        at: &At,
        resolver: &mut Resolver,
    ) {
        let known = || root.upstreams.iter().map(|upstream| upstream.name.as_str());
        for (index, other) in exchanged.upstreams.iter().enumerate() {
            let at = at.key("upstreams").index(index);
            if exchanged.kubernetes.is_none() {
                resolver.error(&at, "only a cluster has upstreams").help("leave `upstreams` out");
            } else if !is_there(root, other) {
                resolver.unknown(&at, "upstream", other, known());
            }
        }
        let Some(server) = &exchanged.kubernetes else { return };
        let Some(server) = upstreams.get(server.as_str()) else {
            // Errors of an upstream that exists are reported at that upstream.
            if !is_there(root, server) {
                resolver.unknown(&at.key("kubernetes"), "upstream", server, known());
            }
            return;
        };
        let here =
            upstreams.values().filter(|other| other.is_at_place_of(server)).map(|other| Arc::clone(other.name()));
        let listed = exchanged.upstreams.iter().map(|other| other.as_str().into());
        let cluster = Cluster { server: Arc::clone(server), upstreams: here.chain(listed).collect() };
        self.of.insert(exchanged.issuer.as_str().into(), cluster);
    }

    /// Checks whether there are API servers other than those of the clusters, in which case an event alone does not
    /// identify its cluster. Warns of routes to them through which runs are, or may be, made. To be called once all are
    /// added.
    pub(super) fn find_others(&mut self, root: &raw::Root, resolver: &mut Resolver) {
        if self.of.is_empty() {
            return;
        }
        // An upstream that does not exist is reported by the check of the whole configuration.
        let is_other =
            |upstream: &str| is_there(root, upstream) && self.of.values().all(|cluster| !cluster.leads(&[upstream]));
        let mut warn = |at: &At, upstream: &str| {
            resolver.warning(at, format!("`{upstream}` belongs to no cluster of `tokens.exchange`: tasks of runs that are made through it get no tokens"))
                .help("if it leads to one of these clusters, list it in the `upstreams` of that cluster");
        };
        let routes =
            || root.routes.iter().enumerate().map(|(index, route)| (At::root().key("routes").index(index), route));
        let mut has_others = false;
        for (at, route) in routes() {
            let server = match route.kind {
                RouteKind::Kubernetes => Some(("upstream", &route.upstream)),
                _ => route.kubernetes.as_ref().map(|server| ("kubernetes", server)),
            };
            if let Some((key, server)) = server.filter(|(_, server)| is_other(server)) {
                has_others = true;
                warn(&at.key(key), server);
            }
        }
        // A server that is asked only for tokens of accounts shows nothing of runs.
        let mut servers = root.servers().filter(|(setting, _)| *setting != "credential.service_account");
        self.has_others = has_others || servers.any(|(_, server)| is_other(server));
        if self.takes_any_event() {
            return;
        }
        for (at, route) in routes().filter(|(_, route)| route.kind == RouteKind::Webhook) {
            if is_other(&route.upstream) {
                warn(&at.key("upstream"), &route.upstream);
            }
        }
    }

    /// Whether all EventListeners belong to the only cluster.
    fn takes_any_event(&self) -> bool {
        self.of.len() == 1 && !self.has_others
    }

    /// The clusters of a run that was made through one of these upstreams. If two issuers share a cluster, both are
    /// returned.
    pub(super) fn of_run<'a>(&'a self, upstreams: &'a [&str]) -> impl Iterator<Item = &'a Arc<str>> {
        self.of.iter().filter(move |(_, cluster)| cluster.leads(upstreams)).map(|(name, _)| name)
    }

    /// The clusters of the runs of an event, which one of these upstreams reported.
    pub(super) fn of_event<'a>(&'a self, upstreams: &'a [&str]) -> impl Iterator<Item = &'a Arc<str>> {
        let is_any = self.takes_any_event();
        self.of.iter().filter(move |(_, cluster)| is_any || cluster.leads(upstreams)).map(|(name, _)| name)
    }

    pub(super) fn get(&self, issuer: &str) -> Option<&Cluster> {
        self.of.get(issuer)
    }

    pub(super) fn len(&self) -> usize {
        self.of.len()
    }
}

fn is_there(root: &raw::Root, upstream: &str) -> bool {
    root.upstreams.iter().any(|known| known.name == upstream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(exchange: &str, routes: &str) -> Clusters {
        read(&format!(
            "upstreams:
  - {{name: api, url: 'https://10.0.0.1'}}
  - {{name: again, url: 'https://10.0.0.1', max_age: 5m}}
  - {{name: sni, url: 'https://10.0.0.1', tls: {{server_name: other.test}}}}
  - {{name: other, url: 'https://10.0.0.2'}}
  - {{name: board, url: 'http://board.test'}}
  - {{name: hooks, url: 'http://hooks.test'}}
routes: [{routes}]
tokens: {{exchange: [{exchange}]}}"
        ))
    }

    fn read(yaml: &str) -> Clusters {
        let root: raw::Root = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"));
        let mut resolver = Resolver::default();
        let upstreams = root.upstreams.iter().filter_map(|raw| {
            let upstream = Upstream::resolve(raw, &root.limits, &At::root(), &mut resolver)?;
            Some((Arc::clone(upstream.name()), upstream))
        });
        let upstreams: BTreeMap<_, _> = upstreams.collect();
        let mut clusters = Clusters::default();
        for exchanged in &root.tokens.as_ref().unwrap().exchange {
            clusters.add(exchanged, &root, &upstreams, &At::root(), &mut resolver);
        }
        clusters.find_others(&root, &mut resolver);
        clusters
    }

    #[test]
    fn runs_made_through_another_api_server_are_not_of_the_only_cluster() {
        const HERE: &str = "{name: a, kind: kubernetes, hosts: [a.test], schemes: [bearer], upstream: again}";
        const THERE: &str = "{name: b, kind: kubernetes, hosts: [b.test], schemes: [bearer], upstream: other}";
        const BOARD: &str =
            "{name: c, kind: dashboard, hosts: [c.test], schemes: [bearer], upstream: board, kubernetes: other}";
        let east = "{issuer: east, kubernetes: api}";
        for (what, exchange, routes, upstreams, of_run, of_event) in [
            ("its own", east, HERE, &["api"][..], true, true),
            ("its own with another credential", east, HERE, &["again"], true, true),
            ("a Dashboard of its own", east, HERE, &["board", "api"], true, true),
            ("hooks where there is no other", east, HERE, &["hooks"], false, true),
            ("the same address under another name", east, HERE, &["sni"], false, true),
            ("another", east, THERE, &["other"], false, false),
            ("hooks beside another", east, THERE, &["hooks"], false, false),
            ("hooks beside another by a Dashboard", east, BOARD, &["hooks"], false, false),
            ("listed", "{issuer: east, kubernetes: api, upstreams: [other, hooks]}", THERE, &["other"], true, true),
            (
                "hooks that are listed",
                "{issuer: east, kubernetes: api, upstreams: [hooks]}",
                THERE,
                &["hooks"],
                true,
                true,
            ),
        ] {
            let clusters = resolve(exchange, routes);
            let found = (clusters.of_run(upstreams).count() == 1, clusters.of_event(upstreams).count() == 1);
            assert_eq!(found, (of_run, of_event), "{what}");
        }
        let both = resolve("{issuer: east, kubernetes: api}, {issuer: west, kubernetes: other}", THERE);
        let names = |found: Vec<&Arc<str>>| found.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(both.of_run(&["other"]).collect()), ["west"]);
        assert!(both.of_event(&["hooks"]).next().is_none());
    }

    /// An API server that is asked only for tokens of accounts took tokens away from webhooks' runs, and no warning
    /// named it.
    #[test]
    fn any_other_api_server_counts_unless_it_is_only_asked_for_account_tokens() {
        let account = "  - {name: x, url: 'https://10.0.0.1', credential: {service_account: {namespace: a, name: b, upstream: other}}}";
        for (user, is_other) in [
            ("", false),
            ("runs: {kubernetes: api}", false),
            ("runs: {kubernetes: other}", true),
            ("interceptor: {host: doorward.svc, kubernetes: other}", true),
            ("issuers: [{name: a, issuer: 'https://a', token_review: {upstream: other, bearer: {file: a}}}]", true),
            (account, false),
        ] {
            let clusters = read(&format!(
                "upstreams:
  - {{name: api, url: 'https://10.0.0.1'}}
  - {{name: other, url: 'https://10.0.0.2'}}
{user}
tokens: {{exchange: [{{issuer: east, kubernetes: api}}]}}"
            ));
            assert_eq!(clusters.of_event(&["hooks"]).next().is_none(), is_other, "{user}");
        }
    }
}
