//! Which changes of a new configuration take effect at once, and which only after a restart.

use std::path::Path;

use super::{
    fingerprint::Fingerprint,
    raw::{self, Listener},
    report::At,
    values::SecretSource,
};

/// A setting that changed although it is fixed until restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedChange {
    pub at: At,
    /// The value that stays in force.
    pub old: String,
    /// The value that takes effect after a restart.
    pub new: String,
}

/// Compares the configuration that the process was started with and the one that is to replace it. All changes that are
/// not listed here take effect with the swap.
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
        (root.key("interceptor").key("listener"), asked_on(started), asked_on(new)),
        (root.key("runs").key("namespaces"), namespaces(started), namespaces(new)),
        (
            root.key("log").key("format"),
            format!("{:?}", started.log.format).to_lowercase(),
            format!("{:?}", new.log.format).to_lowercase(),
        ),
    ];
    let both = audit(&started.audit).into_iter().zip(audit(&new.audit));
    let audit = both.map(|((key, old), (_, new))| (root.key("audit").key(key), old, new));
    let settle = settle(started).zip(settle(new)).map(|(old, new)| (root.key("interceptor").key("settle"), old, new));
    let settings = settings.into_iter().chain(audit).chain(settle);
    settings.filter(|(_, old, new)| old != new).map(|(at, old, new)| FixedChange { at, old, new }).collect()
}

/// Returns the keys of the audit trail whose files, in `folder`, have the same names as at the start but other content.
pub fn changed_keys(
    started: (&raw::Root, &Fingerprint),
    new: (&raw::Root, &Fingerprint),
    folder: &Path,
) -> Vec<FixedChange> {
    let both = keys(&started.0.audit).into_iter().zip(keys(&new.0.audit));
    let named = both.filter(|((_, old), (_, new))| old == new);
    let files = named.filter_map(|((key, source), _)| match source {
        Some(SecretSource::File(path)) => Some((key, path)),
        _ => None,
    });
    let changed = files.filter(|(_, path)| !new.1.agrees(started.1, &folder.join(path)));
    let change = |(key, path): (&str, &std::path::PathBuf)| FixedChange {
        at: At::root().key("audit").key(key),
        old: format!("the former content of {}", path.display()),
        new: "its current content".to_owned(),
    };
    changed.map(change).collect()
}

fn keys(audit: &raw::Audit) -> [(&'static str, Option<&SecretSource>); 3] {
    [
        ("chain_key", audit.chain_key.as_ref()),
        ("checkpoint_key", audit.checkpoint_key.as_ref()),
        ("pseudonym_key", audit.pseudonym_key.as_ref()),
    ]
}

/// The settings of the audit trail that are fixed when it is opened: all except `when_full`.
fn audit(audit: &raw::Audit) -> Vec<(&'static str, String)> {
    let sink = match &audit.sink {
        raw::AuditSink::Stdout => "standard output".to_owned(),
        raw::AuditSink::File(file) => format!(
            "{} with max_size {}, keep {}, retain {}",
            file.path.display(),
            show(file.max_size.as_ref()),
            show(file.keep.as_ref()),
            show(file.retain.as_ref())
        ),
    };
    let mut settings = vec![
        ("instance", show(audit.instance.as_ref())),
        ("sink", sink),
        ("checkpoint_copy", show(audit.checkpoint_copy.as_ref().map(|path| path.display()).as_ref())),
        ("checkpoint_records", audit.checkpoint_records.to_string()),
        ("checkpoint_interval", audit.checkpoint_interval.to_string()),
        ("queue", audit.queue.to_string()),
        ("export", exports(audit)),
    ];
    settings.extend(keys(audit).map(|(key, source)| (key, show(source))));
    settings
}

/// The listener of the interceptor. Listeners are only opened at the start, and a new one would not be open.
fn asked_on(root: &raw::Root) -> String {
    show(root.interceptor.as_ref().and_then(|interceptor| interceptor.listener.as_ref()))
}

/// The settle time of the interceptor. It is only waited for once, at the start, so one that is added with a new
/// interceptor has no effect.
fn settle(root: &raw::Root) -> Option<String> {
    root.interceptor.as_ref().map(|interceptor| interceptor.settle.to_string())
}

impl std::fmt::Display for FixedChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stays {} until a restart makes it {}", self.at, self.old, self.new)
    }
}

/// The store and its key prefix. Addresses and credentials follow a reload; another store does not.
fn kind(root: &raw::Root) -> String {
    show(root.store.redis.as_ref().map(|redis| format!("Redis with the prefix {}", redis.prefix)).as_ref())
}

fn namespaces(root: &raw::Root) -> String {
    root.runs.as_ref().map_or_else(|| "unset".to_owned(), |runs| format!("{:?}", runs.namespaces))
}

/// The names of the receivers of the audit trail. All their other settings follow a reload.
fn exports(audit: &raw::Audit) -> String {
    let names: Vec<&str> = audit.export.iter().map(|export| export.name.as_str()).collect();
    format!("[{}]", names.join(", "))
}

fn show(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "unset".to_owned(), ToString::to_string)
}

/// The listeners by name, address and use of TLS, which are fixed when they are opened; certificates are chosen for
/// each connection.
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
    fn only_settings_that_need_a_restart_are_reported() {
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
                vec!["/store/path", "/admin/address", "/admin/socket", "/log/format", "/audit/export"],
            ),
            (
                "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\n\
                 audit: {when_full: continue, queue: 3, checkpoint_records: 3, checkpoint_interval: 3s, checkpoint_copy: x,\
                  instance: x, sink: {file: {path: x}}, chain_key: {file: x}, checkpoint_key: {file: x},\
                  pseudonym_key: {env: X}}\n",
                vec![
                    "/audit/instance",
                    "/audit/sink",
                    "/audit/checkpoint_copy",
                    "/audit/checkpoint_records",
                    "/audit/checkpoint_interval",
                    "/audit/queue",
                    "/audit/chain_key",
                    "/audit/checkpoint_key",
                    "/audit/pseudonym_key",
                ],
            ),
            (
                "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\ninterceptor: {host: a, settle: 1s}\n",
                vec![],
            ),
            (
                "workers: 2\nlisteners: [{name: a, address: '127.0.0.1:1'}]\nruns: {kubernetes: a, namespaces: [ci]}\n\
                 tokens: {exchange: [{issuer: cluster, kubernetes: a, namespaces: [ci]}]}\n",
                vec!["/runs/namespaces"],
            ),
        ] {
            let changes = fixed_changes(&root(old), &root(new));
            let found: Vec<&str> = changes.iter().map(|change| change.at.as_str()).collect();
            assert_eq!(found, changed, "{new}");
            assert!(found.iter().all(|at| FIXED.contains(at)));
        }
    }

    #[test]
    fn how_long_eventlisteners_have_to_reach_the_interceptor_is_of_the_start() {
        let of = |settle: &str| root(&format!("interceptor: {{host: a, settle: {settle}}}"));
        assert_eq!(fixed_changes(&of("1s"), &of("2s"))[0].at.as_str(), "/interceptor/settle");
        assert_eq!(fixed_changes(&of("1s"), &of("1s")), []);
    }

    #[test]
    fn an_interceptor_is_asked_where_it_was_at_the_start_as_a_new_listener_is_not_open() {
        let of = |listener: &str| root(&format!("interceptor: {{host: a{listener}}}"));
        assert_eq!(fixed_changes(&of(""), &of(", listener: inner"))[0].at.as_str(), "/interceptor/listener");
        assert_eq!(fixed_changes(&of(", listener: inner"), &of(", listener: inner")), []);
    }

    #[test]
    fn another_key_in_the_file_of_a_key_takes_a_restart_too() {
        let (old, new) = (root("audit: {chain_key: {file: a}}"), root("audit: {chain_key: {file: b}}"));
        let holding = |text: &str| {
            let mut files = Fingerprint::default();
            files.record(Path::new("/etc/doorward/a"), Some(text.as_bytes()));
            files
        };
        let (one, two) = (holding("one"), holding("two"));
        let changes = |new: (&raw::Root, &Fingerprint)| changed_keys((&old, &one), new, Path::new("/etc/doorward"));
        assert_eq!(changes((&old, &one)), []);
        assert_eq!(changes((&new, &two)), [], "that it is another file is told already");
        let told = changes((&old, &two)).remove(0).to_string();
        assert_eq!(told, "/audit/chain_key stays the former content of a until a restart makes it its current content");
    }

    /// The settings that are fixed until restart and reported by [`fixed_changes`]. For `listeners` these are names and
    /// addresses: certificates and trusted peers follow a reload. For `audit.export` they are the names.
    const FIXED: &[&str] = &[
        "/workers",
        "/listeners",
        "/store/path",
        "/store/redis",
        "/admin/address",
        "/admin/socket",
        "/audit/instance",
        "/audit/sink",
        "/audit/chain_key",
        "/audit/checkpoint_key",
        "/audit/pseudonym_key",
        "/audit/checkpoint_copy",
        "/audit/checkpoint_records",
        "/audit/checkpoint_interval",
        "/audit/queue",
        "/audit/export",
        "/interceptor/listener",
        "/interceptor/settle",
        "/runs/namespaces",
        "/log/format",
    ];

    /// The settings that take effect with the swap, entirely.
    const FOLLOWED: &[&str] = &[
        "/policies",
        "/external_host",
        "/limits",
        "/issuers",
        "/webhooks",
        "/upstreams",
        "/routes",
        "/grants",
        "/rules",
        "/tests",
        "/assertions/issuer",
        "/assertions/keys",
        "/interceptor/host",
        "/interceptor/kubernetes",
        "/runs/kubernetes",
        "/tokens/exchange",
        "/tokens/keys",
        "/tokens/rotate",
        "/tokens/lifetime",
        "/tokens/resource_servers",
        "/tokens/registries",
        "/tokens/onward",
        "/sessions",
        "/pages",
        "/store/max_mirror_age",
        "/audit/when_full",
        "/admin/token",
        "/admin/socket_users",
        "/log/filter",
        "/break_glass",
        "/forward_auth",
    ];

    /// A setting that is on neither list would be ignored by a reload without a message.
    #[test]
    fn every_setting_is_known_to_follow_a_reload_or_to_need_a_restart() {
        let settings: Vec<String> = crate::config::schema::settings(&crate::config::schema())
            .iter()
            .map(|path| format!("/{}", path.join("/")))
            .collect();
        let within = |setting: &str, part: &str| {
            setting.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let is_listed = |setting: &String| FIXED.iter().chain(FOLLOWED).any(|part| within(setting, part));
        let has_parts = |setting: &String| settings.iter().any(|other| other != setting && within(other, setting));
        let unknown: Vec<_> = settings.iter().filter(|setting| !is_listed(setting) && !has_parts(setting)).collect();
        assert_eq!(unknown, Vec::<&String>::new(), "does a running Doorward follow them?");
        for listed in FIXED.iter().chain(FOLLOWED) {
            assert!(settings.iter().any(|setting| setting == listed), "{listed} is no setting");
        }
    }

    /// Operators who read that all other settings follow a reload must not conclude that a listener stopped serving the
    /// interceptor when it did not.
    #[test]
    fn settings_that_need_a_restart_are_listed_in_the_operators_guide() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
        let list = page.split_once("takes effect only after a restart").unwrap().1.split_once("\n\nSIGTERM").unwrap().0;
        assert!(list.contains("of `audit` all but `when_full` and `export`"), "{list}");
        // It used to read as if a collector's new address took effect only after a restart.
        assert!(list.contains("which receivers `audit.export` has (all else of one follows a reload)"), "{list}");
        for setting in FIXED.iter().filter(|setting| !setting.starts_with("/audit/")) {
            let name = setting.trim_start_matches('/').replace('/', ".");
            assert!(
                list.contains(&format!("`{name}`")) || list.contains(&format!("`{name}.")),
                "{name} is not in {list}"
            );
        }
    }

    #[test]
    fn a_change_says_what_stays_and_what_takes_a_restart() {
        let changes = fixed_changes(&root("workers: 2"), &root(""));
        assert_eq!(changes[0].to_string(), "/workers stays 2 until a restart makes it unset");
    }
}
