//! The layout of the file. Each table of the store is three tables of redb: the records, and two indexes over them,
//! by version for mirrors and by expiry for the sweep. All three change in one transaction.

use redb::{CommitError, ReadableTable, StorageError, TableDefinition, TableError, WriteTransaction};

use super::super::{Change, Expect, Put, Stored, Table, WrittenAll};
use crate::clock::Timestamp;

/// The format that this version writes.
pub const FORMAT: u64 = 1;

/// Counters: `format`, and the last version assigned in each table.
pub const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");

/// Key to version, expiry and value.
pub const fn records(table: Table) -> TableDefinition<'static, &'static [u8], (u64, i64, &'static [u8])> {
    TableDefinition::new(table.as_str())
}

/// Version to key.
pub const fn versions(table: Table) -> TableDefinition<'static, u64, &'static [u8]> {
    TableDefinition::new(table.versions())
}

/// Expiry and version to key.
const fn ends(table: Table) -> TableDefinition<'static, (i64, u64), &'static [u8]> {
    TableDefinition::new(table.ends())
}

/// Creates every table, and returns the format of the file: [`FORMAT`] if it is new.
pub fn prepare(transaction: &WriteTransaction) -> Result<u64, TableError> {
    for table in Table::ALL {
        transaction.open_table(records(table))?;
        transaction.open_table(versions(table))?;
        transaction.open_table(ends(table))?;
    }
    let mut counters = transaction.open_table(COUNTERS)?;
    let found = counters.get("format")?.map(|format| format.value());
    if let Some(found) = found {
        return Ok(found);
    }
    counters.insert("format", FORMAT)?;
    Ok(FORMAT)
}

/// Returns the record under a key, whether or not it has expired.
pub fn find(
    records: &impl ReadableTable<&'static [u8], (u64, i64, &'static [u8])>,
    key: &[u8],
) -> Result<Option<Stored>, StorageError> {
    Ok(records.get(key)?.map(|found| {
        let (version, expires, value) = found.value();
        Stored { value: value.to_vec(), version, expires: Timestamp::from_millis(expires) }
    }))
}

/// Commits the changes that `write` makes to the tables. Commits nothing if it fails or changes nothing, because every
/// commit syncs.
pub fn commit<T, E: From<TableError> + From<CommitError>>(
    transaction: WriteTransaction,
    write: impl FnOnce(&mut Tables<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let mut tables = Tables::new(&transaction)?;
    let done = write(&mut tables)?;
    if tables.finish()? {
        transaction.commit()?;
    }
    Ok(done)
}

/// The tables that one transaction writes, each opened once, on first use: opening one costs as much as a write.
pub struct Tables<'t> {
    transaction: &'t WriteTransaction,
    counters: redb::Table<'t, &'static str, u64>,
    open: Vec<(Table, Open<'t>)>,
    has_changed: bool,
}

/// The three redb tables of one table of the store.
struct Open<'t> {
    records: redb::Table<'t, &'static [u8], (u64, i64, &'static [u8])>,
    versions: redb::Table<'t, u64, &'static [u8]>,
    ends: redb::Table<'t, (i64, u64), &'static [u8]>,
    /// The last version in the file, and the last that was assigned.
    known: u64,
    last: u64,
}

impl<'t> Tables<'t> {
    fn new(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self { transaction, counters: transaction.open_table(COUNTERS)?, open: Vec::new(), has_changed: false })
    }

    fn of(&mut self, table: Table) -> Result<&mut Open<'t>, TableError> {
        let position = match self.open.iter().position(|(open, _)| *open == table) {
            Some(position) => position,
            None => {
                let transaction = self.transaction;
                let known = self.counters.get(table.as_str())?.map_or(0, |last| last.value());
                let open = Open {
                    records: transaction.open_table(records(table))?,
                    versions: transaction.open_table(versions(table))?,
                    ends: transaction.open_table(ends(table))?,
                    known,
                    last: known,
                };
                self.open.push((table, open));
                self.open.len() - 1
            }
        };
        let missing = || TableError::TableDoesNotExist(table.as_str().to_owned());
        self.open.get_mut(position).map(|(_, open)| open).ok_or_else(missing)
    }

    /// Stores the last version of each table, once for all written records. Returns whether anything has changed.
    fn finish(mut self) -> Result<bool, TableError> {
        for (table, Open { known, last, .. }) in &self.open {
            if last > known {
                self.counters.insert(table.as_str(), last)?;
            }
        }
        Ok(self.has_changed)
    }

    /// Checks all expectations first, so that nothing is written if one fails.
    pub fn put_all(&mut self, puts: &[Put], now: Timestamp) -> Result<WrittenAll, TableError> {
        let mut before = Vec::with_capacity(puts.len());
        for (index, Put { table, key, expect, .. }) in puts.iter().enumerate() {
            let found = find(&self.of(*table)?.records, key)?;
            let live = found.as_ref().filter(|stored| stored.expires > now);
            let fits = match expect {
                Expect::Any => true,
                Expect::Absent => live.is_none(),
                Expect::Version(version) => live.is_some_and(|stored| stored.version == *version),
            };
            if !fits {
                return Ok(WrittenAll::Conflict { index, found: live.cloned() });
            }
            before.push(found.map(|stored| (stored.version, stored.expires)));
        }
        let versions = puts.iter().zip(before).map(|(put, before)| self.write(put, before, now));
        Ok(WrittenAll::Done(versions.collect::<Result<_, _>>()?))
    }

    /// Writes one record; `before` is the version and the expiry of the record that it replaces.
    fn write(&mut self, put: &Put, before: Option<(u64, Timestamp)>, now: Timestamp) -> Result<u64, TableError> {
        let Put { table, key, value, expires, .. } = put;
        let key = key.as_slice();
        self.has_changed = true;
        let Open { records, versions, ends, last, .. } = self.of(*table)?;
        *last = last.saturating_add(1);
        let version = *last;
        if let Some((version, expires)) = before {
            versions.remove(version)?;
            ends.remove((expires.as_millis(), version))?;
        }
        if *expires <= now {
            records.remove(key)?;
        } else {
            records.insert(key, (version, expires.as_millis(), value.as_slice()))?;
            versions.insert(version, key)?;
            ends.insert((expires.as_millis(), version), key)?;
        }
        Ok(version)
    }

    pub fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, TableError> {
        let Open { records, versions, ends, .. } = self.of(table)?;
        let Some((version, expires)) = records.remove(key)?.map(|found| {
            let (version, expires, _) = found.value();
            (version, expires)
        }) else {
            return Ok(false);
        };
        versions.remove(version)?;
        ends.remove((expires, version))?;
        self.has_changed = true;
        Ok(true)
    }

    /// Removes records that expired at or before `now`, at most `limit` of each table. Returns how many.
    pub fn sweep(&mut self, now: Timestamp, limit: usize) -> Result<usize, TableError> {
        let mut removed = 0;
        for table in Table::ALL {
            let ended: Vec<Vec<u8>> = self
                .of(table)?
                .ends
                .range(..=(now.as_millis(), u64::MAX))?
                .take(limit)
                .map(|entry| entry.map(|(_, key)| key.value().to_vec()))
                .collect::<Result<_, _>>()?;
            for key in ended {
                self.delete(table, &key)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Returns records written after a version, oldest first.
pub fn changes(
    transaction: &redb::ReadTransaction,
    table: Table,
    after: u64,
    limit: usize,
    now: Timestamp,
) -> Result<Vec<Change>, TableError> {
    let records = transaction.open_table(records(table))?;
    let versions = transaction.open_table(versions(table))?;
    let mut changes = Vec::new();
    for entry in versions.range(after.saturating_add(1)..)? {
        if changes.len() == limit {
            break;
        }
        let (_, key) = entry?;
        if let Some(stored) = find(&records, key.value())?.filter(|stored| stored.expires > now) {
            changes.push(Change { key: key.value().to_vec(), version: stored.version, stored: Ok(stored) });
        }
    }
    Ok(changes)
}
