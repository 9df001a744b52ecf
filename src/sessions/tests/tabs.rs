//! Logins side by side in the tabs of one browser.

use super::{fixture::sent_back, *};

/// Each of them began a session, of which the browser had only one.
#[tokio::test]
async fn logins_side_by_side_that_say_the_same_begin_one_session() {
    let at = Fixture::offline();
    let (origin, k8s) = (dash(), Origin::https("k8s.example.com").unwrap());
    let began = at.sessions.now();
    at.shared.clock.advance(Duration::from_millis(1));
    let create = async |claims: &Value, origin: &Origin, tab: Option<Tab<'_>>| {
        let tokens = Tokens { access: "access".to_owned(), refresh: None, id: None };
        at.sessions.create(at.new_session(claims.clone(), &["openid"], tokens, origin), tab).await.unwrap()
    };
    let alice = json!({"sub": "alice", "groups": ["dev"], "nonce": "one"});
    let again = json!({"sub": "alice", "groups": ["dev"], "nonce": "other"});
    let tab = |browser| Some(Tab { browser, began });
    let ((one, session), (other, same)) =
        tokio::join!(create(&alice, &origin, tab("a")), create(&again, &origin, tab("a")));
    assert_ne!(one.is_some(), other.is_some(), "one of them has the cookie");
    assert_eq!(session.name(), same.name());
    assert_eq!(at.sessions.entries_of(&session).await.len(), 1);
    let headers = sent_back(&one.or(other).unwrap());
    assert_eq!(get(&at.sessions, &headers, &origin).await.unwrap().name(), session.name());
    // Which leaves its entry in the index.
    *at.store.full.lock().unwrap() = Some(Table::SessionIndex);
    at.sessions.end(&session, Ended::signed_out).await.unwrap();
    *at.store.full.lock().unwrap() = None;
    assert!(create(&alice, &origin, tab("a")).await.0.is_some(), "it has ended");

    let more = json!({"sub": "alice", "groups": ["dev", "ops"]});
    let later = Some(Tab { browser: "a", began: at.sessions.now() });
    for (row, claims, origin, tab) in [
        ("in another browser", &alice, &origin, tab("b")),
        ("at another host", &alice, &k8s, tab("a")),
        ("of somebody else", &json!({"sub": "bob", "groups": ["dev"]}), &origin, tab("a")),
        ("with other groups", &more, &origin, tab("a")),
        ("begun later", &alice, &origin, later),
    ] {
        assert!(create(claims, origin, tab).await.0.is_some(), "{row}");
    }
}

#[tokio::test]
async fn a_session_covers_no_login_at_another_issuer() {
    let at = Fixture::offline();
    let (origin, other) = (dash(), ScriptedProvider::offline("partners"));
    let session = get(&at.sessions, &at.create("alice", &origin).await, &origin).await.unwrap();
    let tokens = Tokens { access: "access".to_owned(), refresh: None, id: None };
    let new = at.new_session(json!({"sub": "alice", "groups": ["dev"]}), &["openid"], tokens, &origin);
    assert!(session.covers(&new), "the twin");
    assert!(!session.covers(&NewSession { provider: &other, ..new }));
}
