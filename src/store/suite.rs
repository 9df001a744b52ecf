//! The tests that every backend must pass, as one function that each backend's tests call with an empty store.

use std::{sync::Arc, time::Duration};

use super::{Backend, Expect, Put, Table, Written, WrittenAll};
use crate::clock::Timestamp;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn later(seconds: u64) -> Timestamp {
    NOW + Duration::from_secs(seconds)
}

fn version(written: &Written) -> u64 {
    match written {
        Written::Done(version) => *version,
        Written::Conflict(found) => panic!("a conflict with {found:?}"),
    }
}

/// Runs the whole suite.
pub async fn run(store: Arc<dyn Backend>) {
    reads_what_was_written(&*store).await;
    keeps_tables_apart(&*store).await;
    forgets_what_expired(&*store).await;
    writes_on_condition(&*store).await;
    writes_all_or_nothing(&*store).await;
    lets_one_of_many_writers_win(&store).await;
    tells_changes_in_order(&*store).await;
    store.ping().await.unwrap();
}

async fn reads_what_was_written(store: &dyn Backend) {
    let key = b"read";
    assert_eq!(store.get(Table::Sessions, key, NOW).await.unwrap(), None);
    let first = version(&store.put(Table::Sessions, key, b"one".to_vec(), later(60), Expect::Any, NOW).await.unwrap());
    let second = version(&store.put(Table::Sessions, key, b"two".to_vec(), later(90), Expect::Any, NOW).await.unwrap());
    assert!(second > first);
    let stored = store.get(Table::Sessions, key, NOW).await.unwrap().unwrap();
    assert_eq!((stored.value.as_slice(), stored.version, stored.expires), (&b"two"[..], second, later(90)));
    assert!(store.delete(Table::Sessions, key).await.unwrap());
    assert!(!store.delete(Table::Sessions, key).await.unwrap());
    assert_eq!(store.get(Table::Sessions, key, NOW).await.unwrap(), None);
    let third = version(&store.put(Table::Sessions, key, b"3".to_vec(), later(60), Expect::Any, NOW).await.unwrap());
    assert!(third > second, "a version was given out twice");
}

async fn keeps_tables_apart(store: &dyn Backend) {
    let key = b"apart";
    for table in Table::ALL {
        store.put(table, key, table.as_str().into(), later(60), Expect::Absent, NOW).await.unwrap();
    }
    for table in Table::ALL {
        assert_eq!(store.get(table, key, NOW).await.unwrap().unwrap().value, table.as_str().as_bytes());
    }
}

async fn forgets_what_expired(store: &dyn Backend) {
    let key = b"expires";
    store.put(Table::Deliveries, key, b"x".to_vec(), later(60), Expect::Any, NOW).await.unwrap();
    let just_before = Timestamp::from_millis(later(60).as_millis() - 1);
    assert!(store.get(Table::Deliveries, key, just_before).await.unwrap().is_some());
    assert_eq!(store.get(Table::Deliveries, key, later(60)).await.unwrap(), None);
    let again = store.put(Table::Deliveries, key, b"y".to_vec(), later(120), Expect::Absent, later(60)).await.unwrap();
    version(&again);
}

async fn writes_on_condition(store: &dyn Backend) {
    let key = b"condition";
    let put = |value: &'static [u8], expect| store.put(Table::Logins, key, value.to_vec(), later(60), expect, NOW);
    assert_eq!(put(b"0", Expect::Version(1)).await.unwrap(), Written::Conflict(None));
    let first = version(&put(b"1", Expect::Absent).await.unwrap());
    let Written::Conflict(Some(found)) = put(b"2", Expect::Absent).await.unwrap() else {
        panic!("a record was written over");
    };
    assert_eq!((found.value.as_slice(), found.version), (&b"1"[..], first));
    let second = version(&put(b"2", Expect::Version(first)).await.unwrap());
    assert!(matches!(put(b"3", Expect::Version(first)).await.unwrap(), Written::Conflict(Some(_))));
    assert!(second > first);
}

async fn writes_all_or_nothing(store: &dyn Backend) {
    let put =
        |table, key: &[u8], expires, expect| Put { table, key: key.to_vec(), value: b"v".to_vec(), expires, expect };
    let one = put(Table::Deliveries, b"all", later(60), Expect::Absent);
    let two = put(Table::Held, b"all", later(60), Expect::Absent);
    let three = put(Table::HeldRequests, b"all", Timestamp::MAX, Expect::Any);
    let WrittenAll::Done(versions) = store.put_all(vec![one.clone(), two.clone(), three.clone()], NOW).await.unwrap()
    else {
        panic!("an empty store had a record");
    };
    assert_eq!(versions.len(), 3);
    let mut found = Vec::new();
    for table in [Table::Deliveries, Table::Held, Table::HeldRequests] {
        found.push(store.get(table, b"all", later(30)).await.unwrap().unwrap().version);
    }
    assert_eq!(found, versions);
    assert!(store.get(Table::HeldRequests, b"all", later(1 << 40)).await.unwrap().is_some(), "it has no end");

    let other = put(Table::Deliveries, b"other", later(60), Expect::Absent);
    let conflict = store.put_all(vec![other.clone(), two.clone(), three], NOW).await.unwrap();
    let WrittenAll::Conflict { index: 1, found: Some(found) } = conflict else { panic!("{conflict:?}") };
    assert_eq!(found.version, versions[1]);
    assert_eq!(store.get(Table::Deliveries, b"other", NOW).await.unwrap(), None, "nothing of it was written");

    // An expiry that has passed removes the record, whatever else is written.
    let gone = Put { expires: NOW, expect: Expect::Version(versions[1]), ..two };
    assert!(matches!(store.put_all(vec![gone, other], NOW).await.unwrap(), WrittenAll::Done(_)));
    assert_eq!(store.get(Table::Held, b"all", Timestamp::default()).await.unwrap(), None);
    assert!(store.get(Table::Deliveries, b"other", NOW).await.unwrap().is_some());
}

async fn lets_one_of_many_writers_win(store: &Arc<dyn Backend>) {
    let writers = (0..20u8).map(|writer| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            store.put(Table::Deliveries, b"race", vec![writer], later(60), Expect::Absent, NOW).await.unwrap()
        })
    });
    let mut winners = 0;
    for writer in writers.collect::<Vec<_>>() {
        winners += usize::from(matches!(writer.await.unwrap(), Written::Done(_)));
    }
    assert_eq!(winners, 1);
}

async fn tells_changes_in_order(store: &dyn Backend) {
    let put = |key: &'static [u8], end| store.put(Table::Revocations, key, key.to_vec(), end, Expect::Any, NOW);
    let mut start = 0;
    while let Some(last) = store.changes(Table::Revocations, start, 100, NOW).await.unwrap().last() {
        start = last.version;
    }
    put(b"a", later(60)).await.unwrap();
    put(b"gone", later(1)).await.unwrap();
    put(b"b", later(60)).await.unwrap();
    put(b"a", later(60)).await.unwrap();
    let at = later(2);
    let keys = |changes: &[super::Change]| changes.iter().map(|change| change.key.clone()).collect::<Vec<_>>();
    let all = store.changes(Table::Revocations, start, 100, at).await.unwrap();
    assert_eq!(keys(&all), [b"b".to_vec(), b"a".to_vec()]);
    let one = store.changes(Table::Revocations, start, 1, at).await.unwrap();
    assert_eq!(keys(&one), [b"b".to_vec()]);
    let rest = store.changes(Table::Revocations, one[0].version, 100, at).await.unwrap();
    assert_eq!(keys(&rest), [b"a".to_vec()]);
}
