//! Providers that do not confirm a person, temporarily or for good.

use super::*;

/// Dex's response for a person who is gone from its directory, and for everybody while the directory is away.
fn refuses(script: &mut Script) {
    script.status = StatusCode::INTERNAL_SERVER_ERROR;
    script.answer = json!({"error": "invalid_request"});
    script.claims = None;
}

/// Regression: a session continued for its full time although its provider no longer confirmed the person.
#[tokio::test]
async fn a_provider_that_does_not_confirm_ends_a_session_but_not_in_a_short_outage() {
    let world = world().await;
    let session = world.get().await.unwrap();
    // Unused until then: the outage counts from when the provider was asked.
    world.advance(5 * 3600, refuses);
    assert!(world.get().await.is_ok());
    world.advance(3500, refuses);
    assert!(world.get().await.is_ok(), "an outage of less than an hour");
    world.advance(31, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")], "it is over");
    world.advance(301, refuses);
    assert!(world.get().await.is_ok(), "another one");
    world.advance(3500, refuses);
    assert!(world.get().await.is_ok(), "which counts for itself");
    world.advance(100, refuses);
    assert!(world.get().await.is_err());
    assert!(world.at.shared.revocations.end_of_session(&session.principal).is_some(), "streams and replicas know");
}

/// Regression: after the clock was set back, such a session continued until an hour after the clock had caught up.
#[tokio::test]
async fn a_session_that_is_not_confirmed_ends_within_an_hour_even_if_the_clock_is_set_back() {
    let world = world().await;
    world.advance(301, refuses);
    assert!(world.get().await.is_ok());
    let clock = &world.at.shared.clock;
    clock.set(clock.now() - 5 * HOUR);
    world.advance(31, refuses);
    assert!(world.get().await.is_ok());
    world.advance(3500, refuses);
    assert!(world.get().await.is_ok(), "less than an hour");
    world.advance(100, refuses);
    assert!(world.get().await.is_err());
}

/// The page of a captive portal, or a provider's response about an organisation that is gone. It was retried until the
/// session expired.
#[tokio::test]
async fn a_refusal_in_another_form_than_oauths_ends_a_session_in_the_end_too() {
    for (row, status, answer, lives) in [
        ("a page", 404, json!("<html>"), false),
        ("another form of errors", 403, json!({"errorCode": "E0000012"}), false),
        ("an error that is no text", 400, json!({"error": {"code": 400}}), false),
        ("nothing", 401, Value::Null, false),
        ("the way to a page", 302, json!("<html>"), false),
        ("a page as a success", 200, json!("<html>"), false),
        ("an object with a fault", 200, json!({"access_token": 1}), true),
        ("busy", 429, json!("<html>"), true),
        ("too slow", 408, json!("<html>"), true),
        ("trouble", 503, json!("<html>"), true),
    ] {
        let world = world().await;
        let refuses = |script: &mut Script| {
            (script.status, script.answer) = answers(status, answer.clone());
            script.claims = None;
        };
        world.advance(301, refuses);
        assert!(world.get().await.is_ok(), "{row}");
        world.advance(3500, refuses);
        assert!(world.get().await.is_ok(), "{row}: less than an hour");
        world.advance(101, refuses);
        assert_eq!(world.get().await.is_ok(), lives, "{row}");
    }
}

/// While the keys rotate and cannot be fetched, new tokens arrive that cannot be verified yet; and the former refresh
/// token is used up.
#[tokio::test]
async fn a_key_that_cannot_be_fetched_loses_neither_session_nor_rotated_token() {
    for (reason, lives) in [
        (Reason::KeyUnknown, true),
        (Reason::IssuerUnavailable, true),
        (Reason::SignatureInvalid, false),
        (Reason::TokenInvalid, false),
    ] {
        let world = world().await;
        world.advance(301, |script| script.unverifiable = Some(reason));
        let found = world.get().await;
        assert_eq!(found.is_ok(), lives, "{reason}");
        if !lives {
            continue;
        }
        let session = found.unwrap();
        assert_eq!(
            session.principal.groups,
            [Arc::<str>::from("dev")],
            "{reason}: what cannot be checked counts for nothing"
        );
        assert_eq!(session.tokens().refresh.as_deref(), Some("r-2"), "{reason}");
        world.advance(31, |_| {});
        assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")], "{reason}");
        assert_eq!(world.used(), ["r-1", "r-2"], "{reason}");
    }
}

/// A clock that was wrong for a moment signed everybody out, as if the provider had.
#[tokio::test]
async fn clock_differences_lose_neither_session_nor_rotated_token_unless_they_last() {
    type Change = fn(&mut Script);
    let rows: [(&str, Change); 5] = [
        ("not valid yet", |script| script.unverifiable = Some(Reason::TokenNotYetValid)),
        ("not valid any more", |script| script.unverifiable = Some(Reason::TokenExpired)),
        ("issued later", |script| script.claims.as_mut().unwrap()["iat"] = json!(4_000_000_000_i64)),
        ("issued long ago", |script| script.claims.as_mut().unwrap()["iat"] = json!(1)),
        ("expired", |script| script.claims.as_mut().unwrap()["exp"] = json!(1)),
    ];
    for (row, differ) in rows {
        let world = world().await;
        world.advance(301, differ);
        let session = world.get().await.unwrap_or_else(|error| panic!("{row}: {error:?}"));
        assert_eq!(session.principal.groups, [Arc::<str>::from("dev")], "{row}: what it says counts for nothing");
        assert_eq!(session.tokens().refresh.as_deref(), Some("r-2"), "{row}");
        world.advance(31, |_| {});
        assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")], "{row}");
        assert_eq!(world.used(), ["r-1", "r-2"], "{row}");
        world.advance(301, differ);
        assert!(world.get().await.is_ok(), "{row}: again");
        world.advance(3500, differ);
        assert!(world.get().await.is_ok(), "{row}: less than an hour");
        world.advance(101, differ);
        assert!(world.get().await.is_err(), "{row}: somebody who is gone must not stay for it");
    }
}

/// Regression: at a replica whose clock was an hour ahead, one refusal had lasted for as long, so it signed everybody out
/// at all replicas.
#[tokio::test]
async fn a_replica_whose_clock_is_far_from_that_of_the_store_ends_no_session_for_others() {
    let world = world().await;
    let (hash, clock) = (world.get().await.unwrap().hash, &world.at.shared.clock);
    world.advance(301, refuses);
    assert!(world.get().await.is_ok());
    let refused = async || world.at.sessions.read(hash).await.unwrap().unwrap().0.refused;
    let before = refused().await;
    assert!(before.is_some());

    world.at.store.ahead.store(3600, Ordering::SeqCst);
    world.advance(3600, |script| script.claims.as_mut().unwrap()["iat"] = json!(1));
    for _ in 0..2 {
        assert_eq!(world.get().await.unwrap_err(), Reason::StoreUnavailable, "facts that are too old are not used");
    }
    assert!(world.at.sessions.current(&hash.to_string()).await.unwrap().is_none(), "its streams end here");
    assert!(world.at.shared.revocations.end_of(&hash.to_string()).is_none());
    assert_eq!(refused().await, before);

    world.at.store.ahead.store(0, Ordering::SeqCst);
    clock.set(clock.now() - HOUR);
    world.advance(31, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")]);
    assert_eq!(world.used(), ["r-1", "r-1", "r-2"], "the token that rotated is used");
}

/// Their access and refresh tokens were stored in the session, as only the times of the ID token were checked.
#[tokio::test]
async fn tokens_of_another_end_a_session_whatever_the_clocks() {
    for (name, value) in [("sub", json!("bob")), ("aud", json!("another-client")), ("azp", json!("another-client"))] {
        let reasons = [Reason::TokenExpired, Reason::TokenNotYetValid, Reason::KeyUnknown, Reason::IssuerUnavailable];
        for unverifiable in [None].into_iter().chain(reasons.map(Some)) {
            let world = world().await;
            world.advance(301, |script| {
                script.unverifiable = unverifiable;
                let claims = script.claims.as_mut().unwrap();
                (claims["iat"], claims[name]) = (json!(1), value.clone());
            });
            assert!(world.get().await.is_err(), "{name} {value} {unverifiable:?}");
        }
    }
}

/// Its response could not be verified, and a rotating token can be used only once.
#[tokio::test]
async fn a_refresh_token_is_not_used_up_while_the_keys_of_its_provider_are_away() {
    let world = world().await;
    world.at.provider.has_keys.store(false, Ordering::SeqCst);
    world.advance(301, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("dev")]);
    assert_eq!(world.used(), [""; 0]);
    world.at.provider.has_keys.store(true, Ordering::SeqCst);
    world.advance(31, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")]);
    assert_eq!(world.used(), ["r-1"]);
}

#[tokio::test]
async fn an_unreachable_provider_ends_no_session() {
    let world = world().await;
    world.at.provider.change_metadata(|metadata| metadata.token_endpoint.set_port(Some(1)).unwrap());
    for _ in 0..4 {
        world.advance(3600, |_| {});
        assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("dev")]);
    }
}
