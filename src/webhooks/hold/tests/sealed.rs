//! Records in a shared store: none in plaintext, and each valid in its own place only.

use super::*;
use crate::store::{Backend as _, Expect, Table};

const BOTH: [Table; 2] = [Table::Held, Table::HeldRequests];

fn shared() -> Arc<MemoryStore> {
    let store = MemoryStore::shared();
    store.set_shared();
    store
}

fn ring(keys: &[u8]) -> KeyRing {
    let keys: Vec<[u8; 32]> = keys.iter().map(|key| [*key; 32]).collect();
    KeyRing::of(&keys)
}

async fn stored(store: &MemoryStore, table: Table, id: &HeldId) -> Vec<u8> {
    store.get(table, id.as_bytes(), NOW).await.unwrap().unwrap().value
}

async fn put(store: &MemoryStore, table: Table, id: &HeldId, value: Vec<u8>) {
    store.put(table, id.as_bytes(), value, Timestamp::MAX, Expect::Any, NOW).await.unwrap();
}

#[tokio::test]
async fn nothing_of_a_delivery_is_unencrypted_in_a_shared_store() {
    for (store, is_clear) in [(shared(), false), (MemoryStore::shared(), true)] {
        let fixture = Fixture::new(&store, |_| failed(FailureKind::Denied));
        fixture.queue.set_doubt(None);
        let id = fixture.keep("hub", "1", "secret-id").await.unwrap();
        let check = async |when: &str| {
            for (table, text) in
                [(Table::Held, "secret-id"), (Table::HeldRequests, "body of"), (Table::HeldRequests, "hooks.test")]
            {
                let value = stored(&store, table, &id).await;
                let is_there = memchr::memmem::find(&value, text.as_bytes()).is_some();
                assert_eq!(is_there, is_clear, "{when}: {table:?} {text}");
            }
        };
        check("new").await;
        fixture.start();
        fixture.until("parked", async || fixture.held().await == [("secret-id".to_owned(), true)]).await;
        check("parked").await;
        fixture.stop.cancel();
        assert!(fixture.queue.retry(&id, NOW).await.unwrap());
        check("tried again").await;
    }
}

/// Anybody who can write to the store could create a delivery of any repository.
#[tokio::test]
async fn unencrypted_deliveries_in_a_shared_store_are_not_sent() {
    let store = MemoryStore::shared();
    let elsewhere = Fixture::new(&store, |_| panic!("nothing is brought"));
    let forged = elsewhere.keep("hub", "1", "forged").await.unwrap();
    assert!(stored(&store, Table::Held, &forged).await.starts_with(b"{"));
    store.set_shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    fixture.keep("hub", "1", "genuine").await.unwrap();
    fixture.start();
    fixture.until("the genuine one is brought", async || fixture.seen() == ["genuine"]).await;
    let unreadable = fixture.queue.unreadable();
    assert!(matches!(&*unreadable, [(left, why)] if *left == forged && why.contains("not sealed")), "{unreadable:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delivery_whose_key_is_missing_blocks_no_other_and_is_sent_once_the_key_is_back() {
    let store = shared();
    let before = Fixture::with_keys(&store, &ring(&[1]), |_| panic!("nothing is brought"));
    before.queue.set_doubt(None);
    let id = before.keep("hub", "1", "old").await.unwrap();
    let fixture = Fixture::with_keys(&store, &ring(&[2]), |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    fixture.keep("hub", "1", "new").await.unwrap();
    fixture.start();
    fixture.until("the other is brought", async || fixture.seen() == ["new"]).await;
    let unreadable = fixture.queue.unreadable();
    assert!(matches!(&*unreadable, [(left, why)] if *left == id && why.contains("`sessions.keys`")), "{unreadable:?}");
    assert!(fixture.metrics().contains("webhook_held_unreadable 1\n"));
    // Its sender may retry, and nothing is tried here.
    assert_eq!(fixture.keep("hub", "1", "old").await.unwrap_err().reason(), Reason::ReplayedDelivery);
    for table in BOTH {
        assert!(store.get(table, id.as_bytes(), NOW + PARKED_FOR * 10).await.unwrap().is_some(), "it stays");
    }

    fixture.queue.set_keys(&ring(&[2, 1]));
    tokio::time::advance(Duration::from_secs(1)).await;
    fixture.until("delivered", async || fixture.seen() == ["new", "old"]).await;
    assert_eq!(fixture.queue.unreadable(), []);
    fixture.until("told", async || fixture.metrics().contains("webhook_held_unreadable 0\n")).await;
}

#[tokio::test]
async fn a_record_moved_to_the_key_of_another_is_not_sent() {
    let store = shared();
    let fixture = Fixture::new(&store, |_| Attempt::Accepted(None));
    fixture.queue.set_doubt(None);
    let mut ids = Vec::new();
    for delivery in ["a", "b", "c"] {
        ids.push(fixture.keep("hub", delivery, delivery).await.unwrap());
    }
    // The request of one delivery as that of another, and the record of one as that of another.
    let request = stored(&store, Table::HeldRequests, &ids[1]).await;
    put(&store, Table::HeldRequests, &ids[0], request).await;
    let record = stored(&store, Table::Held, &ids[0]).await;
    put(&store, Table::Held, &ids[2], record).await;
    fixture.start();
    fixture.until("the other is brought", async || fixture.held().await == [("a".to_owned(), true)]).await;
    assert_eq!(fixture.seen(), ["b"]);
    let (_, parked) = fixture.queue.list(None, NOW).await.unwrap().pop().unwrap();
    assert!(parked.last_error.unwrap().contains("made by somebody else"));
    assert!(matches!(&*fixture.queue.unreadable(), [(left, _)] if *left == ids[2]));
}
