//! The validated settings of exports.

use std::{collections::BTreeSet, sync::Arc};

use super::{otlp::Collector, syslog::Server};
use crate::{
    clock::Timestamp,
    config::{
        raw::{AuditExport, WhenBehind},
        report::At,
        resolver::Resolver,
        values::Size,
    },
    egress::Egress,
};

/// The smallest allowed `max_behind`. After a broken connection, lines that a syslog server may get a second time count
/// as behind.
const MIN_BEHIND: u64 = 1 << 20;

/// Resolved settings of an export.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) name: Arc<str>,
    pub(super) target: Target,
    pub(super) limit: Limit,
}

/// Where lines are sent.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Syslog(Server),
    Otlp(Box<Collector>),
}

impl Target {
    /// Whether a connection to `other` can be used for this target.
    pub(super) fn is(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Syslog(one), Self::Syslog(other)) if one == other)
    }
}

/// The behaviour when the receiver does not keep up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Bytes.
    pub(super) max_behind: Option<u64>,
    pub(super) when_behind: WhenBehind,
}

/// Why a receiver cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    Unreachable(String),
    /// It is reachable and rejects what we send.
    Refuses(String),
    /// It may accept it later.
    Busy(String),
}

impl Settings {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks whether the receiver accepts what it is sent, without sending any of the trail. Takes seconds at most.
    pub async fn probe(&self, now: Timestamp) -> Result<(), Unfit> {
        match &self.target {
            Target::Syslog(server) => server.probe().await,
            Target::Otlp(collector) => collector.probe(now).await,
        }
    }

    /// Validates the list of exports, which is at `at`. Reports what is wrong, and returns the exports that can be
    /// used.
    pub(in crate::audit) fn resolve_all(
        raw: &[AuditExport],
        egress: &Egress,
        at: &At,
        resolver: &mut Resolver,
    ) -> Vec<Self> {
        let mut names = BTreeSet::new();
        let mut found = Vec::new();
        for (index, raw) in raw.iter().enumerate() {
            let at = at.index(index);
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if raw.name.is_empty() || raw.name.len() > 64 || !raw.name.bytes().all(valid) {
                resolver
                    .error(&at.key("name"), format!("`{}` cannot be the name of an export", raw.name.escape_debug()))
                    .help("use 1 to 64 letters, digits, `-` and `_`: it becomes part of a file name");
            } else if !names.insert(&raw.name) {
                resolver.error(&at.key("name"), format!("another export has the name `{}`", raw.name));
            }
            if raw.max_behind.is_some_and(|size| size.0 < MIN_BEHIND) {
                resolver
                    .error(&at.key("max_behind"), format!("`max_behind` must be at least {}", Size(MIN_BEHIND)))
                    .help("leave it out for any amount");
            }
            if raw.max_behind.is_some() && raw.when_behind == WhenBehind::Continue {
                resolver
                    .warning(&at.key("max_behind"), "`max_behind` has no effect with `when_behind: continue`")
                    .help("leave it out, or set `when_behind: refuse`");
            }
            let target = match (&raw.syslog, &raw.otlp) {
                (Some(syslog), None) => Server::resolve(syslog, &at.key("syslog"), resolver).map(Target::Syslog),
                (None, Some(otlp)) => Collector::resolve(otlp, egress, &at.key("otlp"), resolver)
                    .map(|collector| Target::Otlp(Box::new(collector))),
                _ => {
                    resolver
                        .error(&at, "an export has exactly one receiver")
                        .help("give one of `syslog: {address: 'host:port'}` and `otlp: {endpoint: 'https://host'}`");
                    None
                }
            };
            let limit = Limit { max_behind: raw.max_behind.map(|size| size.0), when_behind: raw.when_behind };
            found.extend(target.map(|target| Self { name: raw.name.as_str().into(), target, limit }));
        }
        found
    }
}
