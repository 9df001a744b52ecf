//! Records that cannot be read, and processes that die half way.

use super::*;
use crate::store::{Backend as _, Expect, Table};

async fn spoil(store: &MemoryStore, table: Table, id: &HeldId) {
    store.put(table, id.once(), b"junk".to_vec(), Timestamp::MAX, Expect::Any, NOW).await.unwrap();
}

#[tokio::test]
async fn a_request_that_cannot_be_read_ends_with_its_parked_delivery() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Brought::Taken(None));
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    spoil(&store, Table::HeldRequests, &id).await;
    fixture.start();
    fixture.until("parked", async || fixture.held().await == [("a".to_owned(), true)]).await;
    let now = fixture.clock.now();
    let left = async |table, at| store.get(table, id.once(), at).await.unwrap().is_some();
    for table in [Table::Held, Table::HeldRequests] {
        assert!(left(table, now).await, "{table:?}");
        assert!(!left(table, now + PARKED_FOR).await, "{table:?}");
    }
    assert!(matches!(fixture.queue.retry(&id, now).await, Err(StoreError::Corrupt(_))));
    assert!(fixture.queue.drop_one(&id, now).await.unwrap());
    assert!(!left(Table::HeldRequests, now).await);
}

#[tokio::test]
async fn a_delivery_that_cannot_be_read_can_be_dropped() {
    let store = MemoryStore::shared();
    let fixture = Fixture::new(&store, |_| Brought::Taken(None));
    fixture.queue.set_doubt(None);
    let id = fixture.keep("hub", "1", "a").await.unwrap();
    spoil(&store, Table::Held, &id).await;
    assert!(fixture.queue.drop_one(&id, NOW).await.unwrap());
    assert!(!fixture.queue.drop_one(&id, NOW).await.unwrap());
    assert_eq!(fixture.held().await, []);
}
