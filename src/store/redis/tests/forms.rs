//! Malformed records.

use super::*;

#[test]
fn records_of_another_form_are_an_error() {
    for record in ["", "1", "1:2", "x:2:value", "1:y:value", "-1:2:value"] {
        assert!(matches!(parse(record.as_bytes()), Err(StoreError::Corrupt(_))), "{record}");
    }
    let stored = parse(b"7:-1:a:b").unwrap();
    assert_eq!((stored.version, stored.expires.as_millis(), stored.value.as_slice()), (7, -1, &b"a:b"[..]));
}

/// Regression: one record in another form made every read of changes fail, also after a restart.
#[tokio::test]
async fn a_record_of_another_form_hides_no_other_change() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    for key in ["a", "b"] {
        put(&store, key, NOW + Duration::from_secs(60)).await.unwrap();
    }
    let _: u64 = server.ask(&["HSET", "doorward:{revocations}:records", "a", "junk"]).await;
    let changes = store.changes(Table::Revocations, 0, 10, NOW).await.unwrap();
    let [broken, whole] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!((broken.key.as_slice(), whole.stored.as_ref().unwrap().value.as_slice()), (&b"a"[..], &b"b"[..]));
    assert!(broken.version < whole.version);
    let error = broken.stored.as_ref().unwrap_err();
    assert_eq!(store.get(Table::Revocations, b"a", NOW).await.unwrap_err(), *error);
    assert!(error.to_string().contains("the key 61 (hexadecimal) of the hash `doorward:{revocations}:records`"));
}

/// Later revocations were not read, so that sessions that another replica had ended stayed valid.
#[tokio::test]
async fn a_revocation_of_another_form_hides_no_other_and_leaves_the_copy_incomplete() {
    let server = RedisServer::start(&[]);
    let replica = || Revocations::new(Arc::new(store(&json!({"server": server.address()}))), Clock::manual(NOW));
    let bob = Target::Principal { issuer: "corp", subject: "bob" };
    replica().revoke(bob, "left", NOW + Duration::from_secs(60)).await.unwrap();
    let records = "doorward:{revocations}:records";
    let _: u64 = server.ask(&["HSET", records, "a", "junk"]).await;
    let _: u64 = server.ask(&["ZADD", "doorward:{revocations}:versions", "1", "a"]).await;
    let new = replica();
    for _ in 0..2 {
        assert!(matches!(new.refresh().await, Err(StoreError::Corrupt(_))));
        assert!(new.find(&CredentialId::None, "corp", "bob").is_some());
        assert!(new.check_read().is_err(), "nobody can tell whom the other one revokes");
    }
    // The counterpart: without it the copy is complete.
    let _: u64 = server.ask(&["HDEL", records, "a"]).await;
    new.refresh().await.unwrap();
    assert!(new.check_read().is_ok());
}

/// Otherwise nobody could drop it.
#[tokio::test]
async fn a_record_of_another_form_can_be_written_over() {
    let server = RedisServer::start(&[]);
    let store = store(&json!({"server": server.address()}));
    put(&store, "key", NOW + Duration::from_secs(60)).await.unwrap();
    let _: u64 = server.ask(&["HSET", "doorward:{revocations}:records", "key", "junk"]).await;
    let found = async || store.get(Table::Revocations, b"key", NOW).await;
    assert!(matches!(found().await, Err(StoreError::Corrupt(_))));
    put(&store, "key", NOW + Duration::from_secs(60)).await.unwrap();
    assert_eq!(found().await.unwrap().unwrap().value, b"key");
}
