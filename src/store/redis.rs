//! The shared store: Redis or Valkey, for several replicas.
//!
//! Each table is four keys: a hash of the records, two sorted sets over them by version and by end, and the last
//! version given out. Scripts change all four at once, and those of several tables of a group, so they lie in one slot
//! of a cluster (the braces in their names), and none has an expiry of its own: a server that is told to evict keys with an expiry keeps all of ours.
//! What has ended is swept by the writes of its table, also by those that a full server refuses.

mod link;
mod replication;
#[cfg(test)]
#[path = "../../tests/it/harness/redis.rs"]
mod server;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use data_encoding::HEXLOWER;
use redis::{Cmd, Script, Value};
use tokio::runtime::Handle;

pub use self::settings::Settings;
use self::{
    link::{Link, Repeat, Request},
    replication::Replication,
};
use super::{Backend, Change, Expect, Put, StoreError, StoreFuture, Stored, Table, WrittenAll};
use crate::clock::{Clock, Timestamp};

static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/put.lua")));
static DELETE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/delete.lua")));
static CHANGES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/changes.lua")));

/// Ended records that each write clears away.
const SWEEP: usize = 16;

/// The store in Redis. Nothing is connected before the first call, and a server that is away is looked for anew with
/// every call.
#[derive(Clone)]
pub struct Redis {
    link: Arc<Link>,
    /// For waiting until a replica has something, as that holds up all that comes behind it on its connection.
    waiting: Arc<Link>,
    replication: Replication,
    prefix: Arc<str>,
    /// Writes that must not be lost wait for a second server.
    has_replica: Arc<AtomicBool>,
}

/// By how much a clock may differ from the server's, in seconds.
const MAX_AHEAD: f64 = 5.0;

/// Whether a write that was answered can be lost when the server dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It cannot.
    Synced,
    /// It can, for this reason, which says what to do.
    Lossy(&'static str),
}

impl Redis {
    /// Connections live on `control`.
    pub fn new(settings: Settings, control: Handle) -> Self {
        let waiting = Arc::new(Link::new(settings.clone(), control.clone()));
        let prefix: Arc<str> = settings.prefix.as_str().into();
        let name = |what| name_in(&prefix, Table::Deliveries, what);
        Self {
            replication: Replication::new(Arc::clone(&waiting), &control, name("records"), name("mark")),
            prefix,
            waiting,
            link: Arc::new(Link::new(settings, control)),
            has_replica: Arc::default(),
        }
    }

    /// Uses other addresses and credentials from now on. The prefix stays.
    pub fn set(&self, settings: Settings) {
        self.waiting.set(settings.clone());
        self.link.set(settings);
    }

    /// What of the server's own configuration would lose records, each with what to do about it. A server that does
    /// not tell, or may not be asked, gives none.
    pub async fn warnings(&self) -> Result<Vec<&'static str>, StoreError> {
        let mut info: Vec<String> = Vec::new();
        for section in ["memory", "persistence"] {
            let mut command = Cmd::new();
            command.arg("INFO").arg(section);
            let answer: Value = self.link.call(&Request::Command(command), Repeat::Harmless).await?;
            info.extend(words(&answer));
        }
        Ok(warnings(&info.join("\n")))
    }

    /// Looks whether the server that has what is held syncs each write to its disk, and whether it has a replica to wait for.
    pub async fn durability(&self) -> Result<Durability, StoreError> {
        let Some(info) = self.ask_holder(&["INFO", "replication"]).await? else {
            return Ok(Durability::Lossy(
                "Redis does not tell whether it has a replica, which a delivery must reach before it gets 202: give the ACL user `+info`",
            ));
        };
        self.has_replica.store(has_replica(&words(&info).join("\n")), Ordering::Relaxed);
        if self.link.settings().durable {
            return Ok(Durability::Synced);
        }
        let Some(config) = self.ask_holder(&["CONFIG", "GET", "*append*"]).await? else {
            return Ok(Durability::Lossy(
                "Redis does not tell whether it syncs each write: give the ACL user `+config|get`, or set `store.redis.durable` if it does",
            ));
        };
        Ok(durability(&words(&config)))
    }

    /// Why no more can be held there at the moment, with what to do about it; none if it can.
    pub async fn doubt(&self) -> Result<Option<&'static str>, StoreError> {
        if let Durability::Lossy(why) = self.durability().await? {
            return Ok(Some(why));
        }
        let memory = self.ask_holder(&["INFO", "memory"]).await?;
        let is_full = memory.is_some_and(|memory| is_nearly_full(&words(&memory).join("\n")));
        Ok(is_full.then_some(
            "more than nine tenths of the memory that Redis may use (`maxmemory`) are used, and the rest is kept for bringing what is held: give \
             it more, or drop what is parked (`doorward hooks drop`)",
        ))
    }

    /// What the server that has what is held tells of itself, where the client would ask any node of a cluster. None if our user may not
    /// ask, or the service has taken the command away.
    async fn ask_holder(&self, words: &[&str]) -> Result<Option<Value>, StoreError> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        match self.link.call(&self.at_deliveries(command), Repeat::Harmless).await {
            Ok(answer) => Ok(Some(answer)),
            Err(StoreError::Unavailable(why)) if why.contains("NoPerm") || why.contains("unknown command") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a server that has what is held has a replica that follows it, as it was when [`Self::durability`] looked.
    pub fn has_replica(&self) -> bool {
        self.has_replica.load(Ordering::Relaxed)
    }

    /// By how much our clock is ahead of the server's, in seconds; below zero, behind. As close as the answer was quick.
    pub async fn clock_ahead(&self, clock: &Clock) -> Result<f64, StoreError> {
        let mut command = Cmd::new();
        command.arg("TIME");
        let (asked, passed) = (clock.now(), clock.passed());
        let (seconds, micros): (i64, i64) = self.link.call(&self.at_deliveries(command), Repeat::Harmless).await?;
        let took = clock.passed().saturating_sub(passed);
        let ahead = asked.as_millis() - (seconds * 1000 + micros / 1000);
        // It was asked for half of that time after we looked at ours.
        Ok((ahead as f64 / 1000.0) + took.as_secs_f64() / 2.0)
    }

    /// For the server that has what is held.
    fn at_deliveries(&self, command: Cmd) -> Request {
        Request::At(command, self.key(Table::Held, "records"))
    }

    fn key(&self, table: Table, what: &str) -> String {
        name_in(&self.prefix, table, what)
    }

    /// The error for a record of another form, which names where it is.
    fn unreadable(&self, table: Table, key: &[u8]) -> StoreError {
        let (field, hash) = (HEXLOWER.encode(key), self.key(table, "records"));
        corrupt(&format!("the record with the key {field} (hexadecimal) of the hash `{hash}`"))
    }

    fn script(&self, script: &'static Script, table: Table, keys: &[&str]) -> redis::ScriptInvocation<'static> {
        let mut invocation = script.prepare_invoke();
        for what in keys {
            invocation.key(self.key(table, what));
        }
        invocation
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("link", &self.link).field("prefix", &self.prefix).finish()
    }
}

impl Backend for Redis {
    fn get<'a>(&'a self, table: Table, key: &'a [u8], now: Timestamp) -> StoreFuture<'a, Option<Stored>> {
        Box::pin(async move {
            let mut command = Cmd::new();
            command.arg("HGET").arg(self.key(table, "records")).arg(key);
            let found: Option<Vec<u8>> = self.link.call(&Request::Command(command), Repeat::Harmless).await?;
            let stored = found.map(parse_owned).transpose().map_err(|_| self.unreadable(table, key))?;
            Ok(stored.filter(|stored| stored.expires > now))
        })
    }

    fn put_all(&self, puts: Vec<Put>, now: Timestamp) -> StoreFuture<'_, WrittenAll> {
        Box::pin(async move {
            let mut script = PUT.prepare_invoke();
            script.arg(now.as_millis()).arg(SWEEP);
            // With a condition a second try would meet what the first one wrote.
            let harmless = puts.iter().all(|put| put.expect == Expect::Any);
            let count = puts.len();
            for Put { table, key, value, expires, expect } in puts {
                for what in ["records", "versions", "ends", "last", "began"] {
                    script.key(self.key(table, what));
                }
                script.arg(key).arg(value).arg(expires.as_millis());
                match expect {
                    Expect::Any => script.arg("any"),
                    Expect::Absent => script.arg("absent"),
                    Expect::Version(version) => script.arg(version),
                };
                script.arg(u8::from(table.is_by_the_clock_of_the_store()));
            }
            let repeat = if harmless { Repeat::Harmless } else { Repeat::Never };
            // How many were written, then their versions; or 0, which one was not, and what stands there.
            let answer: Vec<Option<Vec<u8>>> = self.link.call(&Request::Script(script), repeat).await?;
            let wrong = || corrupt("the answer to a write");
            let (written, rest) = answer.split_first().ok_or_else(wrong)?;
            let written: usize = written.as_deref().and_then(number).ok_or_else(wrong)?;
            if written == 0 {
                let index = rest.first().and_then(|index| number(index.as_deref()?)).ok_or_else(wrong)?;
                let found = rest.get(1).and_then(Option::as_deref).map(parse).transpose()?;
                return Ok(WrittenAll::Conflict { index, found });
            }
            let versions: Option<Vec<u64>> = rest.iter().map(|version| number(version.as_deref()?)).collect();
            versions.filter(|versions| versions.len() == count).map(WrittenAll::Done).ok_or_else(wrong)
        })
    }

    fn delete<'a>(&'a self, table: Table, key: &'a [u8]) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let mut script = self.script(&DELETE, table, &["records", "versions", "ends"]);
            script.arg(key);
            self.link.call(&Request::Script(script), Repeat::Harmless).await
        })
    }

    fn changes<'a>(&'a self, table: Table, after: u64, limit: usize, now: Timestamp) -> StoreFuture<'a, Vec<Change>> {
        Box::pin(async move {
            let mut changes = Vec::new();
            let mut after = after;
            // Records that have ended do not count, so one page may not do.
            while changes.len() < limit {
                let wanted = limit - changes.len();
                let mut script = self.script(&CHANGES, table, &["records", "versions", "last"]);
                script.arg(after).arg(wanted);
                let answer: Vec<Vec<u8>> = self.link.call(&Request::Script(script), Repeat::Harmless).await?;
                let (anew, last, here, page) = match answer.as_slice() {
                    [anew, last, here, page @ ..] => (anew == b"1", last, here, page),
                    _ => return Err(corrupt("a list of changes")),
                };
                if anew {
                    changes.clear();
                }
                after = number(last).ok_or_else(|| corrupt("a version"))?;
                let here = Timestamp::from_millis(number(here).ok_or_else(|| corrupt("the time"))?);
                for entry in page.chunks_exact(3) {
                    let [key, version, record] = entry else { continue };
                    // One that went meanwhile is no change.
                    if record.is_empty() {
                        continue;
                    }
                    let version = number(version).ok_or_else(|| corrupt("a version"))?;
                    let Ok(mut stored) = parse(record) else {
                        changes.push(Change { key: key.clone(), version, stored: Err(self.unreadable(table, key)) });
                        continue;
                    };
                    if table.is_by_the_clock_of_the_store() {
                        let left = stored.expires.as_millis().saturating_sub(here.as_millis());
                        stored.expires = Timestamp::from_millis(now.as_millis().saturating_add(left));
                    }
                    if stored.expires > now {
                        changes.push(Change { key: key.clone(), version, stored: Ok(stored) });
                    }
                }
                if page.len() / 3 < wanted {
                    break;
                }
            }
            Ok(changes)
        })
    }

    fn was_set_back(&self, table: Table, after: u64) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let mut commands = redis::pipe();
            commands.cmd("GET").arg(self.key(table, "last")).cmd("GET").arg(self.key(table, "began"));
            let (last, began): (Option<u64>, Option<u64>) =
                self.link.call(&Request::Pipeline(commands), Repeat::Harmless).await?;
            // One that was emptied and written to since has versions after `after` again.
            Ok(last.is_none_or(|last| last < after) || began.is_some_and(|began| began > after))
        })
    }

    fn replicated(&self, keys: Vec<Vec<u8>>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            if !self.has_replica.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.replication.has(keys).await
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            // A write is what a replica, a full server or one without its disk refuses, whatever it would change: this one changes
            // nothing, as it is only for a key that is there. A script would do where memory is full, until it takes some.
            let mut command = Cmd::new();
            command.arg("SET").arg(self.key(Table::Logins, "ping")).arg("").arg("XX");
            self.link.call::<Value>(&Request::Command(command), Repeat::Harmless).await.map(drop)
        })
    }
}

fn name_in(prefix: &str, table: Table, what: &str) -> String {
    let group = table.group();
    match table == group {
        true => format!("{prefix}:{{{}}}:{what}", table.as_str()),
        false => format!("{prefix}:{{{}}}:{}:{what}", group.as_str(), table.as_str()),
    }
}

/// `VERSION:END:` and the value.
fn parse(record: &[u8]) -> Result<Stored, StoreError> {
    parse_owned(record.to_vec())
}

/// As [`parse`], and the value, which may be large, is not allocated anew.
fn parse_owned(mut record: Vec<u8>) -> Result<Stored, StoreError> {
    let mut parts = record.splitn(3, |byte| *byte == b':');
    let fields = (|| {
        let version = number(parts.next()?)?;
        let expires = number(parts.next()?)?;
        Some((version, Timestamp::from_millis(expires), parts.next()?.len()))
    })();
    let (version, expires, length) = fields.ok_or_else(|| corrupt("a record"))?;
    record.drain(..record.len() - length);
    Ok(Stored { value: record, version, expires })
}

/// Whether a server has a replica that follows it, as it tells of its replication. One that is in its first sync has nothing yet.
fn has_replica(info: &str) -> bool {
    let replicas = info.lines().filter_map(|line| line.trim().strip_prefix("slave")?.split_once(':'));
    let mut replicas = replicas.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
    replicas.any(|(_, fields)| fields.split(',').any(|field| field == "state=online"))
}

/// All words of an answer, in order: a cluster gives those of each node, by its address.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(bytes).into_owned()],
        Value::SimpleString(word) | Value::VerbatimString { text: word, .. } => vec![word.clone()],
        Value::Array(values) => values.iter().flat_map(words).collect(),
        Value::Map(entries) => entries.iter().flat_map(|(name, value)| [name, value]).flat_map(words).collect(),
        _ => Vec::new(),
    }
}

/// What names and values of the configuration of a server say.
fn durability(words: &[String]) -> Durability {
    let has = |name: &str, wanted: &str| {
        words.windows(2).any(|pair| matches!(pair, [found, value] if found == name && value == wanted))
    };
    if !has("appendonly", "yes") {
        return Durability::Lossy("Redis does not write each change to disk: set `appendonly yes`");
    }
    if !has("appendfsync", "always") {
        return Durability::Lossy(
            "Redis answers a write before it is synced to disk, so that a delivery that got 202 could be lost: set `appendfsync always`",
        );
    }
    if !has("no-appendfsync-on-rewrite", "no") {
        return Durability::Lossy(
            "Redis syncs nothing while it writes its file anew, so that a delivery that got 202 could be lost: set \
             `no-appendfsync-on-rewrite no`",
        );
    }
    Durability::Synced
}

fn warnings(info: &str) -> Vec<&'static str> {
    let has = |wanted: &str| info.lines().any(|line| line.trim().starts_with(wanted));
    let mut warnings = Vec::new();
    if is_nearly_full(info) {
        warnings.push(
            "more than nine tenths of the memory that Redis may use (`maxmemory`) are used: once all of it is, logins, deliveries and \
             revocations get 503; give it more",
        );
    }
    if has("maxmemory_policy:allkeys") {
        warnings.push(
            "Redis may evict keys when its memory is full, and with them revocations and sessions: set `maxmemory-policy noeviction`",
        );
    }
    if has("aof_enabled:0") {
        warnings.push(
            "Redis does not write each change to disk: after its restart people must log in again and revocations are forgotten; set `appendonly yes`",
        );
    }
    warnings
}

/// What is wrong with a clock that is so far ahead of the server's, as [`Redis::clock_ahead`] tells.
pub fn clock_trouble(ahead: f64) -> Option<String> {
    let (way, by) = (if ahead < 0.0 { "behind" } else { "ahead of" }, ahead.abs());
    (by > MAX_AHEAD).then(|| {
        format!(
            "the clock here is {by:.0} s {way} that of Redis: tokens, sessions and held deliveries end at other times on each replica; set \
             the clocks by NTP"
        )
    })
}

/// Whether one of the servers uses nearly all memory that it may. Each tells what it uses before what it may; 0 is all there is.
fn is_nearly_full(info: &str) -> bool {
    let mut used = 0;
    info.lines().any(|line| {
        let field = |name: &str| line.trim().strip_prefix(name)?.parse::<u64>().ok();
        used = field("used_memory:").unwrap_or(used);
        field("maxmemory:").is_some_and(|most| most > 0 && used / 9 >= most / 10)
    })
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} in Redis has another form than Doorward gives it"))
}
