use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use redb::{Database, DatabaseError, StorageBackend, backends::InMemoryBackend};

use super::*;
use crate::{
    clock::Clock,
    store::{Expect, Written, suite},
};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A disk in memory that outlives its handles and has a limited size.
#[derive(Clone, Debug)]
struct SmallDisk {
    bytes: Arc<InMemoryBackend>,
    room: Arc<AtomicU64>,
    unwritable: Arc<AtomicBool>,
    syncs: Arc<AtomicU64>,
}

impl SmallDisk {
    fn new(room: u64) -> Self {
        Self {
            bytes: Arc::new(InMemoryBackend::new()),
            room: Arc::new(AtomicU64::new(room)),
            unwritable: Arc::default(),
            syncs: Arc::default(),
        }
    }
}

impl StorageBackend for SmallDisk {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.room.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.bytes.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // The header has its place already, so a file on a full disk can be opened.
        if self.unwritable.load(Ordering::SeqCst) && offset >= 4096 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.write(offset, data)
    }
}

fn in_memory() -> Embedded {
    on_clock(&Clock::default())
}

fn on_clock(clock: &Clock) -> Embedded {
    on(&SmallDisk::new(u64::MAX), clock)
}

fn on(disk: &SmallDisk, clock: &Clock) -> Embedded {
    let disk = disk.clone();
    Embedded::start(Disk::storage(move || disk.clone(), clock.clone()).unwrap()).unwrap()
}

#[tokio::test]
async fn does_what_every_backend_does() {
    suite::run(Arc::new(in_memory())).await;
}

#[tokio::test]
async fn keeps_records_and_versions_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    let end = NOW + Duration::from_secs(60);
    let Written::Done(before) =
        store.put(Table::Sessions, b"k", b"v".to_vec(), end, Expect::Absent, NOW).await.unwrap()
    else {
        panic!("an empty store had a record")
    };
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(store);
    let store = reopen(&path).await;
    assert_eq!(store.get(Table::Sessions, b"k", NOW).await.unwrap().unwrap().value, b"v");
    let Written::Done(after) = store.put(Table::Sessions, b"k", b"w".to_vec(), end, Expect::Any, NOW).await.unwrap()
    else {
        panic!("a write without a condition met a conflict")
    };
    assert!(after > before);
}

/// Held deliveries are in it unencrypted, and a copy that was restored is often readable by others.
#[tokio::test]
async fn a_file_that_others_may_read_is_closed_to_them_by_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(Embedded::open(&path).unwrap());
    for mode in [0o644, 0o640, 0o604] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        drop(reopen(&path).await);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{mode:o}");
    }
}

/// After a downgrade it would be written to as if its tables meant what they meant before.
#[tokio::test]
async fn a_file_of_another_format_is_refused_by_a_start_and_by_an_examination() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(Embedded::open(&path).unwrap());
    for format in [layout::FORMAT + 1, layout::FORMAT] {
        let database = loop {
            match Database::create(&path) {
                Ok(database) => break database,
                Err(DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let transaction = database.begin_write().unwrap();
        {
            let mut counters = transaction.open_table(layout::COUNTERS).unwrap();
            counters.insert("format", format).unwrap();
        }
        transaction.commit().unwrap();
        drop(database);
        let results = [Embedded::examine(&path).map(drop), Embedded::open(&path).map(drop)];
        for result in results {
            match format == layout::FORMAT {
                true => assert!(result.is_ok(), "{result:?}"),
                false => assert!(matches!(result, Err(OpenError::Format { found, .. }) if found == format)),
            }
        }
    }
}

/// The last version of each table is stored once per commit.
#[tokio::test]
async fn no_version_is_given_twice_however_many_records_are_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let end = NOW + Duration::from_secs(60);
    let put = |table, key: &[u8], expires| Put { table, key: key.into(), value: vec![1], expires, expect: Expect::Any };
    let puts = vec![
        put(Table::Deliveries, b"a", end),
        put(Table::Held, b"a", end),
        put(Table::Deliveries, b"b", end),
        // It leaves no record that would show its version.
        put(Table::Deliveries, b"c", NOW),
    ];
    let mut given = Vec::new();
    let mut store = Embedded::open(&path).unwrap();
    for _ in 0..2 {
        for _ in 0..2 {
            let WrittenAll::Done(versions) = store.put_all(puts.clone(), NOW).await.unwrap() else {
                panic!("a write without a condition met a conflict")
            };
            given.extend(puts.iter().zip(versions).map(|(put, version)| (put.table, version)));
        }
        drop(store);
        store = reopen(&path).await;
    }
    let of = |table: Table| -> Vec<u64> {
        given.iter().filter(|(of, _)| *of == table).map(|(_, version)| *version).collect()
    };
    assert_eq!(of(Table::Deliveries), (1..=12).collect::<Vec<_>>());
    assert_eq!(of(Table::Held), [1, 2, 3, 4]);
    assert_eq!(store.changes(Table::Deliveries, 9, 10, NOW).await.unwrap().len(), 2);
}

/// Regression: a full commit waited for a window in which no other write could arrive.
#[test]
fn as_many_writes_as_one_commit_takes_wait_for_no_others() {
    let disk = SmallDisk::new(u64::MAX);
    let disk = Disk::storage(move || disk.clone(), Clock::default()).unwrap();
    let (writes, queue) = mpsc::channel(disk::GROUP);
    let ask = |_| {
        let (reply, answer) = oneshot::channel();
        assert!(writes.try_send(Write::Delete { table: Table::Logins, key: vec![1], reply }).is_ok());
        answer
    };
    let answers: Vec<_> = (0..disk::GROUP).map(ask).collect();
    drop(writes);
    let (begun, window) = (Instant::now(), Duration::from_secs(60));
    disk.serve_writes(queue, GroupCommit::expecting(2, window, Duration::MAX));
    assert!(begun.elapsed() < window);
    assert!(answers.into_iter().all(|mut answer| matches!(answer.try_recv(), Ok(Ok(false)))));
}

/// A conflict waited for the disk as a write does, and needed space there.
#[tokio::test]
async fn where_nothing_is_written_the_disk_is_not_synced() {
    let disk = SmallDisk::new(u64::MAX);
    let store = on(&disk, &Clock::default());
    let syncs = || disk.syncs.load(Ordering::SeqCst);
    let of = |key: &[u8]| Put {
        table: Table::Logins,
        key: key.into(),
        value: vec![1],
        expires: NOW + Duration::from_secs(60),
        expect: Expect::Absent,
    };
    store.put_all(vec![of(b"k")], NOW).await.unwrap();
    let before = syncs();
    let (reply, answer) = oneshot::channel();
    // The caller has left.
    drop(answer);
    assert!(store.writes.send(Write::Put { puts: vec![of(b"left")], now: NOW, reply }).await.is_ok());
    let both = store.put_all(vec![of(b"new"), of(b"k")], NOW).await.unwrap();
    assert!(matches!(both, WrittenAll::Conflict { index: 1, .. }), "{both:?}");
    assert!(!store.delete(Table::Logins, b"new").await.unwrap());
    assert_eq!(syncs(), before);
    let (reply, answer) = oneshot::channel();
    drop(answer);
    let removal = Write::Delete { table: Table::Logins, key: b"k".to_vec(), reply };
    assert!(store.writes.send(removal).await.is_ok());
    // The twin: a removal that somebody waits for is done, and synced.
    assert!(store.delete(Table::Logins, b"k").await.unwrap());
    assert!(syncs() > before);
}

/// Opens the file again. The threads of the previous store need a moment to release it.
async fn reopen(path: &Path) -> Embedded {
    loop {
        match Embedded::open(path) {
            Ok(store) => return store,
            Err(OpenError::Locked(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_second_process_is_refused_because_the_file_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _first = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    assert!(error.to_string().contains("another Doorward"), "{error}");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let bytes = vec![b'x'; 10_000];
    std::fs::write(&path, &bytes).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = Embedded::open(Path::new("/nonexistent/store.redb")).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("/nonexistent/store.redb"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_reported_until_there_is_room() {
    let disk = SmallDisk::new(u64::MAX);
    let store = on(&disk, &Clock::default());
    let end = NOW + Duration::from_secs(60);
    store.put(Table::Sessions, b"kept", b"v".to_vec(), end, Expect::Any, NOW).await.unwrap();
    disk.room.store(disk.len().unwrap(), Ordering::SeqCst);
    let large = vec![7; 64 << 20];
    let error = store.put(Table::Sessions, b"large", large, end, Expect::Any, NOW).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    disk.room.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(store.get(Table::Sessions, b"kept", NOW).await.unwrap().unwrap().value, b"v");
    store.put(Table::Sessions, b"small", b"v".to_vec(), end, Expect::Any, NOW).await.unwrap();
    assert_eq!(store.get(Table::Sessions, b"large", NOW).await.unwrap(), None);
}

/// Regression: a full disk can be read, so the store was reported as good while every write failed.
#[tokio::test]
async fn a_store_that_can_only_be_read_fails_its_pings_until_a_write_succeeds() {
    let disk = SmallDisk::new(u64::MAX);
    let store = on(&disk, &Clock::default());
    let end = NOW + Duration::from_secs(60);
    store.ping().await.unwrap();
    disk.unwritable.store(true, Ordering::SeqCst);
    store.put(Table::Sessions, b"k", b"v".to_vec(), end, Expect::Any, NOW).await.unwrap_err();
    assert_eq!(store.get(Table::Sessions, b"k", NOW).await.unwrap(), None);
    for _ in 0..2 {
        let error = store.ping().await.unwrap_err();
        assert!(matches!(&error, StoreError::Full(why) if why.starts_with("memory: ")), "{error:?}");
    }
    disk.unwritable.store(false, Ordering::SeqCst);
    store.ping().await.unwrap();
    assert_eq!(store.changes(Table::Logins, 0, 10, Timestamp::default()).await.unwrap(), []);
}

#[tokio::test]
async fn ended_records_are_swept_beside_later_writes() {
    let clock = Clock::manual(NOW);
    let store = on_clock(&clock);
    for record in 0..600u32 {
        let key = record.to_be_bytes();
        let end = NOW + Duration::from_secs(60);
        store.put(Table::Deliveries, &key, b"v".to_vec(), end, Expect::Any, NOW).await.unwrap();
    }
    let later = NOW + Duration::from_secs(120);
    let end = later + Duration::from_secs(60);
    // One sweep by the time of the first writes, which finds nothing, then one moment to count from, and two sweeps.
    for round in 1..=4 {
        clock.advance(disk::SWEEP_AFTER);
        store.put(Table::Logins, b"k", b"v".to_vec(), end, Expect::Any, later).await.unwrap();
        if round == 3 {
            let left = store.changes(Table::Deliveries, 0, 1000, NOW).await.unwrap();
            assert_eq!(left.len(), 600 - 512, "one sweep keeps nobody waiting for longer");
        }
    }
    // None is left, even by the clock of the time when they were live.
    assert_eq!(store.changes(Table::Deliveries, 0, 1000, NOW).await.unwrap(), []);
    assert!(store.get(Table::Logins, b"k", later).await.unwrap().is_some());
}

/// Each began the wait for a sweep again, so that on a full disk nothing was removed that had ended.
#[tokio::test]
async fn pings_of_a_store_that_was_full_put_off_no_sweep() {
    let (clock, disk) = (Clock::manual(NOW), SmallDisk::new(u64::MAX));
    let store = on(&disk, &clock);
    let (later, end) = (NOW + Duration::from_secs(120), NOW + Duration::from_secs(600));
    let put = async || store.put(Table::Logins, b"k", b"v".to_vec(), end, Expect::Any, later).await;
    let soon = NOW + Duration::from_secs(60);
    store.put(Table::Deliveries, b"ended", b"v".to_vec(), soon, Expect::Any, NOW).await.unwrap();
    // The first sweep is by the time of the first write, at which nothing had ended.
    for left in [1, 0] {
        disk.unwritable.store(true, Ordering::SeqCst);
        put().await.unwrap_err();
        disk.unwritable.store(false, Ordering::SeqCst);
        store.ping().await.unwrap();
        clock.advance(disk::SWEEP_AFTER);
        put().await.unwrap();
        assert_eq!(store.changes(Table::Deliveries, 0, 10, NOW).await.unwrap().len(), left);
    }
}

/// The first write after a start swept by a clock that was not set yet, and revoked credentials were valid again.
#[tokio::test]
async fn a_clock_that_is_ahead_until_it_is_set_removes_nothing_that_has_not_ended() {
    let clock = Clock::manual(NOW);
    let store = on_clock(&clock);
    let (day, ahead) = (NOW + Duration::from_secs(86_400), NOW + Duration::from_secs(2 * 86_400));
    store.put(Table::Revocations, b"good", b"v".to_vec(), day, Expect::Any, NOW).await.unwrap();
    // It is corrected just before records that had expired by it would be swept.
    for now in [ahead, ahead, ahead, ahead, ahead, NOW, NOW, NOW] {
        let end = now + Duration::from_secs(60);
        store.put(Table::Logins, b"k", b"v".to_vec(), end, Expect::Any, now).await.unwrap();
        clock.advance(disk::SWEEP_AFTER / 2);
    }
    assert!(store.get(Table::Revocations, b"good", NOW).await.unwrap().is_some());
    // The counterpart: a clock that continues to show this time is believed.
    for _ in 0..2 {
        clock.advance(disk::SWEEP_AFTER);
        store.put(Table::Logins, b"k", b"v".to_vec(), Timestamp::MAX, Expect::Any, ahead).await.unwrap();
    }
    assert_eq!(store.get(Table::Revocations, b"good", NOW).await.unwrap(), None);
}

/// The file was left as after a crash, so that each start read all of it, and a damaged one passed an examination.
#[tokio::test]
async fn a_store_that_was_closed_needs_no_repair_and_answers_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    let end = NOW + Duration::from_secs(60);
    store.put(Table::Sessions, b"k", b"v".to_vec(), end, Expect::Any, NOW).await.unwrap();
    let crashed = folder.path().join("crashed.redb");
    std::fs::copy(&path, &crashed).unwrap();
    assert_eq!(Embedded::examine(&crashed).unwrap(), Examined::NotClosed);
    store.close().await.unwrap();
    assert_eq!(Embedded::examine(&path).unwrap(), Examined::Good);
    let error = store.get(Table::Sessions, b"k", NOW).await.unwrap_err().to_string();
    assert!(error.contains("as Doorward stops"), "{error}");
    assert_eq!(
        reopen(&path).await.get(Table::Sessions, b"k", NOW).await.unwrap().map(|stored| stored.value),
        Some(b"v".to_vec())
    );
}

/// redb panics on some of them, which ended the thread: everybody got 503, and nobody was told why.
#[tokio::test]
async fn pages_that_are_damaged_while_the_file_is_open_are_reported_and_end_no_thread() {
    let disk = SmallDisk::new(u64::MAX);
    let store = on(&disk, &Clock::default());
    let end = NOW + Duration::from_secs(60);
    // More than redb keeps in memory.
    for batch in 0..20_u8 {
        let record = |n: u8| Put {
            table: Table::Revocations,
            key: vec![batch, n],
            value: vec![n; 8192],
            expires: end,
            expect: Expect::Any,
        };
        store.put_all((0..50).map(record).collect(), NOW).await.unwrap();
    }
    let size = usize::try_from(disk.len().unwrap()).unwrap();
    disk.write(8192, &vec![0; size - 8192]).unwrap();
    let keys: Vec<Vec<u8>> = (0..20).map(|batch| vec![batch, 7]).collect();
    for _ in 0..2 {
        let error = store.get_all(Table::Revocations, keys.clone(), NOW).await.unwrap_err().to_string();
        assert!(error.contains("is damaged") && error.contains("move the file away"), "{error}");
    }
    for result in [store.delete(Table::Revocations, &[3, 3]).await.map(drop), store.ping().await] {
        assert!(result.unwrap_err().to_string().contains("is damaged"));
    }
}

/// The process ended with the place in redb where it noticed.
#[tokio::test]
async fn a_file_with_a_damaged_page_is_refused_by_a_start_that_notices_it() {
    const PAGE: u64 = 4096;
    let whole = SmallDisk::new(u64::MAX);
    let store = on(&whole, &Clock::default());
    let end = NOW + Duration::from_secs(60);
    store.put(Table::Sessions, b"k", b"v".to_vec(), end, Expect::Any, NOW).await.unwrap();
    store.close().await.unwrap();
    let size = whole.len().unwrap();
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    whole.read(0, &mut bytes).unwrap();
    let refused = (PAGE..size).step_by(usize::try_from(PAGE).unwrap()).filter(|page| {
        let disk = SmallDisk::new(u64::MAX);
        disk.set_len(size).unwrap();
        disk.write(0, &bytes).unwrap();
        disk.write(*page, &[0; 512]).unwrap();
        match Disk::storage(move || disk.clone(), Clock::default()) {
            Ok(_) => false,
            Err(OpenError::Corrupt { .. }) => true,
            Err(other) => panic!("page {page}: {other}"),
        }
    });
    assert!(refused.count() > 0, "no damage was noticed");
}

#[tokio::test]
async fn a_store_whose_threads_ended_is_unavailable() {
    let (reads, _) = mpsc::channel(1);
    let (writes, _) = mpsc::channel(1);
    let store = Embedded { path: PathBuf::new(), reads, writes, read_only: Arc::default() };
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.delete(Table::Logins, b"k").await, Err(StoreError::Unavailable(_))));
}

/// Otherwise the store would count as ready while nothing can be written.
#[tokio::test]
async fn a_store_whose_writing_thread_alone_ended_is_unavailable() {
    let (reads, mut asked) = mpsc::channel(1);
    let (writes, queue) = mpsc::channel(1);
    let store = Embedded { path: PathBuf::new(), reads, writes, read_only: Arc::default() };
    tokio::spawn(async move {
        while let Some(Read::Ping { reply }) = asked.recv().await {
            let _ = reply.send(Ok(()));
        }
    });
    store.ping().await.unwrap();
    drop(queue);
    let error = store.ping().await.unwrap_err().to_string();
    assert!(error.contains("writing thread"), "{error}");
}

#[tokio::test]
async fn problems_with_the_file_are_reported_with_its_path() {
    let (reads, mut asked) = mpsc::channel(1);
    let (writes, _kept) = mpsc::channel(1);
    let store = Embedded { path: "/data/doorward.redb".into(), reads, writes, read_only: Arc::default() };
    let (error, ()) = tokio::join!(store.ping(), async {
        let Some(Read::Ping { reply }) = asked.recv().await else { panic!("another question") };
        let _ = reply.send(Err(StoreError::Full("no space left".to_owned())));
    });
    assert_eq!(error.unwrap_err().to_string(), "the store is full: /data/doorward.redb: no space left");
}
