//! What of a new configuration is in force at once, and what only after a restart.

use super::{
    raw::{self, Listener},
    report::At,
};

/// The settings that are fixed until restart, for the documentation and for [`fixed_changes`]. Of `listeners`, the
/// names and addresses are: certificates and trusted peers follow a reload. Of `audit.export`, the names are.
pub const FIXED: &[&str] = &[
    "/workers",
    "/listeners",
    "/store/path",
    "/store/redis",
    "/admin/address",
    "/admin/socket",
    "/audit/export",
    "/runs/namespaces",
    "/tokens/exchange",
    "/log/format",
];

/// A setting that changed although it is fixed until restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedChange {
    pub at: At,
    /// What stays in force.
    pub old: String,
    /// What takes a restart.
    pub new: String,
}

/// Compares the configuration that the process was started with and one that is to be swapped in. Everything that is
/// not listed here is in force with the swap.
pub fn fixed_changes(started: &raw::Root, new: &raw::Root) -> Vec<FixedChange> {
    let root = At::root();
    let settings = [
        (root.key("workers"), show(started.workers.as_ref()), show(new.workers.as_ref())),
        (root.key("listeners"), addresses(&started.listeners), addresses(&new.listeners)),
        (root.key("store").key("path"), started.store.path.display().to_string(), new.store.path.display().to_string()),
        (root.key("store").key("redis"), kind(started), kind(new)),
        (root.key("admin").key("address"), show(started.admin.address.as_ref()), show(new.admin.address.as_ref())),
        (
            root.key("admin").key("socket"),
            show(started.admin.socket.as_ref().map(|path| path.display()).as_ref()),
            show(new.admin.socket.as_ref().map(|path| path.display()).as_ref()),
        ),
        (root.key("audit").key("export"), exports(started), exports(new)),
        (root.key("runs").key("namespaces"), namespaces(started), namespaces(new)),
        (root.key("tokens").key("exchange"), clusters(started), clusters(new)),
        (
            root.key("log").key("format"),
            format!("{:?}", started.log.format).to_lowercase(),
            format!("{:?}", new.log.format).to_lowercase(),
        ),
    ];
    settings.into_iter().filter(|(_, old, new)| old != new).map(|(at, old, new)| FixedChange { at, old, new }).collect()
}

impl std::fmt::Display for FixedChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stays {} until a restart makes it {}", self.at, self.old, self.new)
    }
}

/// Which Redis, under which names: addresses and credentials follow a reload, another store does not.
fn kind(root: &raw::Root) -> String {
    show(root.store.redis.as_ref().map(|redis| format!("Redis with the prefix {}", redis.prefix)).as_ref())
}

fn namespaces(root: &raw::Root) -> String {
    root.runs.as_ref().map_or_else(|| "unset".to_owned(), |runs| format!("{:?}", runs.namespaces))
}

/// Which receivers the trail has: where they are follows a reload.
fn exports(root: &raw::Root) -> String {
    let names: Vec<&str> = root.audit.export.iter().map(|export| export.name.as_str()).collect();
    format!("[{}]", names.join(", "))
}

/// Where the ends of tasks are watched.
fn clusters(root: &raw::Root) -> String {
    let exchanged = root.tokens.iter().flat_map(|tokens| &tokens.exchange);
    let clusters = exchanged.filter(|exchanged| exchanged.kubernetes.is_some());
    let texts = clusters.map(|exchanged| match exchanged.namespaces.as_slice() {
        [] => format!("{} in all namespaces", exchanged.issuer),
        listed => format!("{} in {}", exchanged.issuer, listed.join(", ")),
    });
    format!("[{}]", texts.collect::<Vec<_>>().join("; "))
}

fn show(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "unset".to_owned(), ToString::to_string)
}

/// Whether a listener speaks TLS is decided when it is opened; with which certificates, for each connection.
fn addresses(listeners: &[Listener]) -> String {
    let mut list: Vec<String> = listeners
        .iter()
        .map(|listener| {
            let scheme = if listener.tls.is_some() { "https" } else { "http" };
            format!("{} {scheme}://{}", listener.name, listener.address)
        })
        .collect();
    list.sort();
    format!("[{}]", list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(yaml: &str) -> raw::Root {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn only_fixed_settings_are_told() {
        let old = "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\nsessions: {idle: 1h}\n";
        for (new, changed) in [
            (old, vec![]),
            ("workers: 3\nlisteners: [{name: a, address: '127.0.0.1:1'}]\n", vec!["/workers"]),
            ("workers: 2\nlisteners: [{name: a, address: '127.0.0.1:2'}]\n", vec!["/listeners"]),
            ("workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1', trusted_proxies: [10.0.0.0/8]}]\n", vec![]),
            (
                "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\nstore: {redis: {server: 'a:1'}}\n",
                vec!["/store/redis"],
            ),
            (
                "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\nstore: {path: x}\n\
                 admin: {address: '127.0.0.1:3', socket: y}\nlog: {format: text}\nsessions: {idle: 2h}\n\
                 audit: {export: [{name: siem}]}\n",
                vec!["/store/path", "/admin/address", "/admin/socket", "/audit/export", "/log/format"],
            ),
            (
                "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\nruns: {kubernetes: a, namespaces: [ci]}\n\
                 tokens: {exchange: [{issuer: cluster, kubernetes: a, namespaces: [ci]}]}\n",
                vec!["/runs/namespaces", "/tokens/exchange"],
            ),
        ] {
            let changes = fixed_changes(&root(old), &root(new));
            let found: Vec<&str> = changes.iter().map(|change| change.at.as_str()).collect();
            assert_eq!(found, changed, "{new}");
            assert!(found.iter().all(|at| FIXED.contains(at)));
        }
    }

    #[test]
    fn a_change_says_what_stays_and_what_takes_a_restart() {
        let changes = fixed_changes(&root("workers: 2"), &root(""));
        assert_eq!(changes[0].to_string(), "/workers stays 2 until a restart makes it unset");
    }
}
