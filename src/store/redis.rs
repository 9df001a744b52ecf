//! The shared store: Redis or Valkey, for several replicas.
//!
//! Each table is five keys: a hash of the records, two sorted sets over them by version and by expiry, the last version
//! assigned, and the version that the table began with. Scripts change all of them at once, for several tables of a
//! group, so they are in one slot of a cluster (the braces in their names). None has a Redis expiry, so that a server
//! which evicts keys with an expiry keeps all of ours. Expired records are swept by the writes of their table,
//! including those that a full server refuses.

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
static TRY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/try.lua")));

/// Expired records that each write removes.
const SWEEP: usize = 16;

/// The store in Redis. It connects on the first call, and reconnects to an unavailable server on every call.
#[derive(Clone)]
pub struct Redis {
    link: Arc<Link>,
    /// The connection for waiting until a replica has a record: a wait blocks all later calls on its connection.
    waiting: Arc<Link>,
    replication: Replication,
    prefix: Arc<str>,
    /// Whether writes that must not be lost wait for a second server.
    has_replica: Arc<AtomicBool>,
}

/// The allowed difference between a clock and the server's, in seconds.
const MAX_AHEAD: f64 = 5.0;

/// Whether an acknowledged write survives a crash of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It does.
    Synced,
    /// It may not. The reason says what to do.
    Lossy(&'static str),
}

impl Redis {
    /// Creates a store whose connections live on the runtime `control`.
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

    /// Returns settings of the server that could lose records, each with a remedy. A server that does not report them,
    /// or may not be queried, produces none.
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

    /// Checks whether the server with the held deliveries syncs each write to its disk, and whether it has a replica to
    /// wait for.
    pub async fn durability(&self) -> Result<Durability, StoreError> {
        let Some(info) = self.ask_holder(&["INFO", "replication"]).await? else {
            return Ok(Durability::Lossy(
                "Redis does not report whether it has a replica, which a delivery must reach before it gets 202: give the ACL user `+info`",
            ));
        };
        self.has_replica.store(has_replica(&words(&info).join("\n")), Ordering::Relaxed);
        // Waits for no replica. Any other error is one that the next call has too, or that a replica or a service without
        // the command gives.
        if matches!(self.call_holder(&["WAIT", "0", "1"]).await, Err(error) if is_forbidden(&error)) {
            return Ok(Durability::Lossy(
                "Redis does not let Doorward wait until a replica has a delivery, which would get 503 as soon as there is a replica: give the \
                 ACL user `+wait`",
            ));
        }
        if self.link.settings().durable {
            return Ok(Durability::Synced);
        }
        let Some(config) = self.ask_holder(&["CONFIG", "GET", "*append*"]).await? else {
            return Ok(Durability::Lossy(
                "Redis does not report whether it syncs each write: give the ACL user `+config|get`, or set `store.redis.durable` if it does",
            ));
        };
        Ok(durability(&words(&config)))
    }

    /// Returns why no more deliveries can be held at the moment, with a remedy; none if they can.
    pub async fn doubt(&self) -> Result<Option<&'static str>, StoreError> {
        if let Durability::Lossy(why) = self.durability().await? {
            return Ok(Some(why));
        }
        let memory = self.ask_holder(&["INFO", "memory"]).await?;
        let is_full = memory.is_some_and(|memory| is_nearly_full(&words(&memory).join("\n")));
        Ok(is_full.then_some(
            "Redis uses more than nine tenths of its `maxmemory`, and the rest is reserved for delivering what is held: give it more memory, \
             or drop parked deliveries (`doorward hooks drop`)",
        ))
    }

    /// Queries the server with the held deliveries. Returns none if our user may not do so, or the service has removed the
    /// command.
    async fn ask_holder(&self, words: &[&str]) -> Result<Option<Value>, StoreError> {
        match self.call_holder(words).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_forbidden(&error) || says(&error, "unknown command") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a command to the server with the held deliveries, where the client would choose any node of a cluster.
    async fn call_holder(&self, words: &[&str]) -> Result<Value, StoreError> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        self.link.call(&self.at_deliveries(command), Repeat::Harmless).await
    }

    /// Whether the server with the held deliveries had an online replica when [`Self::durability`] last checked.
    pub fn has_replica(&self) -> bool {
        self.has_replica.load(Ordering::Relaxed)
    }

    /// Returns how far our clock is ahead of the server's, in seconds; negative if behind. Its precision depends on the
    /// response time.
    pub async fn clock_ahead(&self, clock: &Clock) -> Result<f64, StoreError> {
        let mut command = Cmd::new();
        command.arg("TIME");
        let (asked, passed) = (clock.now(), clock.passed());
        let (seconds, micros): (i64, i64) = self.link.call(&self.at_deliveries(command), Repeat::Harmless).await?;
        let took = clock.passed().saturating_sub(passed);
        let ahead = asked.as_millis() - (seconds * 1000 + micros / 1000);
        // The server read its clock about half of that time after we read ours.
        Ok((ahead as f64 / 1000.0) + took.as_secs_f64() / 2.0)
    }

    /// Routes a command to the server with the held deliveries.
    fn at_deliveries(&self, command: Cmd) -> Request {
        Request::At(command, self.key(Table::Held, "records"))
    }

    fn key(&self, table: Table, what: &str) -> String {
        name_in(&self.prefix, table, what)
    }

    /// Returns the error for a malformed record, which says where it is.
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
            // With a condition, a retry would find the record that the first try wrote.
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
            // How many were written, then their versions; or 0, the index of the conflict, and the record that is
            // there.
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
            // Expired records do not count, so one page may not be enough.
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
                let (entries, _) = page.as_chunks::<3>();
                for [key, version, record] in entries {
                    // A record that was removed meanwhile is not a change.
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
                if entries.len() < wanted {
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
            // A table that was emptied and written to since has versions after `after` again.
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

    fn seconds_ahead<'a>(&'a self, clock: &'a Clock) -> StoreFuture<'a, f64> {
        Box::pin(self.clock_ahead(clock))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn ping(&self) -> StoreFuture<'_, ()> {
        Box::pin(async {
            let script = self.script(&TRY, Table::Logins, &["ping"]);
            self.link.call::<Value>(&Request::Script(script), Repeat::Harmless).await.map(drop)
        })
    }
}

/// Whether our user may not do what was asked.
fn is_forbidden(error: &StoreError) -> bool {
    says(error, "NoPerm")
}

fn says(error: &StoreError, what: &str) -> bool {
    matches!(error, StoreError::Unavailable(why) if why.contains(what))
}

fn name_in(prefix: &str, table: Table, what: &str) -> String {
    let group = table.group();
    match table == group {
        true => format!("{prefix}:{{{}}}:{what}", table.as_str()),
        false => format!("{prefix}:{{{}}}:{}:{what}", group.as_str(), table.as_str()),
    }
}

/// Parses `VERSION:EXPIRY:` and the value.
fn parse(record: &[u8]) -> Result<Stored, StoreError> {
    parse_owned(record.to_vec())
}

/// Parses as [`parse`] does, without a new allocation for the value, which may be large.
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

/// Whether a server has an online replica, by `INFO replication`. A replica in its first sync has no data yet.
fn has_replica(info: &str) -> bool {
    let replicas = info.lines().filter_map(|line| line.trim().strip_prefix("slave")?.split_once(':'));
    let mut replicas = replicas.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit()));
    replicas.any(|(_, fields)| fields.split(',').any(|field| field == "state=online"))
}

/// Returns all words of a response, in order. A cluster returns those of each node, by its address.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::BulkString(bytes) => vec![String::from_utf8_lossy(bytes).into_owned()],
        Value::SimpleString(word) | Value::VerbatimString { text: word, .. } => vec![word.clone()],
        Value::Array(values) => values.iter().flat_map(words).collect(),
        Value::Map(entries) => entries.iter().flat_map(|(name, value)| [name, value]).flat_map(words).collect(),
        _ => Vec::new(),
    }
}

/// Determines the durability from names and values of a server's configuration.
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
            "Redis does not sync while it rewrites its file, so that a delivery that got 202 could be lost: set \
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
            "Redis uses more than nine tenths of its `maxmemory`: once all of it is used, logins, deliveries and revocations get 503; give \
             it more memory",
        );
    }
    if has("maxmemory_policy:allkeys") {
        warnings.push(
            "Redis may evict keys when its memory is full, and with them revocations and sessions: set `maxmemory-policy noeviction`",
        );
    }
    if has("aof_enabled:0") {
        warnings.push(
            "Redis does not write each change to disk: after a restart people must log in again and revocations are lost; set `appendonly yes`",
        );
    }
    warnings
}

/// Returns what is wrong if a clock is this far ahead of the server's, by [`Redis::clock_ahead`].
pub fn clock_trouble(ahead: f64) -> Option<String> {
    let (way, by) = (if ahead < 0.0 { "behind" } else { "ahead of" }, ahead.abs());
    (by > MAX_AHEAD).then(|| {
        format!(
            "the clock here is {by:.0} s {way} that of Redis: tokens, sessions and held deliveries expire at different times on each replica; \
             synchronize the clocks with NTP"
        )
    })
}

/// Whether one of the servers uses nearly all of its allowed memory. Each reports its usage before its limit; a limit
/// of 0 is no limit.
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
    StoreError::Corrupt(format!("{what} in Redis is malformed"))
}
