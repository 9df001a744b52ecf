//! The sessions of one person.

use super::{super::index::Added, fixture::sent_back, *};

fn k8s() -> Origin {
    Origin::https("k8s.example.com").unwrap()
}

#[tokio::test]
async fn the_number_of_sessions_of_a_person_is_bounded() {
    let at = Fixture::offline();
    let oldest = at.create("alice", &dash()).await;
    for _ in 1..settings().max_per_person {
        at.create("alice", &dash()).await;
    }
    assert!(get(&at.sessions, &oldest, &dash()).await.is_ok());
    let newest = at.create("alice", &dash()).await;
    assert!(get(&at.sessions, &oldest, &dash()).await.is_err());
    assert!(get(&at.sessions, &newest, &dash()).await.is_ok());
}

/// Regression: unused sessions counted until their latest possible end, and pushed out the one that was in use.
#[tokio::test]
async fn sessions_that_ended_unused_push_out_none_that_is_in_use() {
    let at = Fixture::offline();
    let oldest = at.create("alice", &dash()).await;
    for _ in 1..settings().max_per_person {
        at.create("alice", &dash()).await;
    }
    at.shared.clock.advance(HOUR * 7);
    loop {
        let session = get(&at.sessions, &oldest, &dash()).await.unwrap();
        if at.sessions.list_own(&session).await.unwrap()[0].last_seen == at.shared.clock.now() {
            break;
        }
        tokio::task::yield_now().await;
    }
    at.shared.clock.advance(HOUR * 2);
    let newest = at.create("alice", &dash()).await;
    for used in [&oldest, &newest] {
        let session = get(&at.sessions, used, &dash()).await.unwrap();
        assert_eq!(at.sessions.entries_of(&session).await.len(), 2);
    }
}

/// An ended session in the index would count against the sessions that continue.
#[tokio::test]
async fn an_ended_session_leaves_the_index_even_if_others_remain() {
    let at = Fixture::offline();
    at.create("alice", &dash()).await;
    at.shared.clock.advance(HOUR * 23);
    let session = get(&at.sessions, &at.create("alice", &dash()).await, &dash()).await.unwrap();
    assert_eq!(at.sessions.entries_of(&session).await.len(), 2);
    at.shared.clock.advance(HOUR);
    assert_eq!(at.sessions.entries_of(&session).await.len(), 1);
}

/// A login is in the index before its record is stored, and only a failure can leave it there without a record for a
/// minute.
#[tokio::test]
async fn a_session_being_created_stays_listed_when_the_index_is_full() {
    for (seconds, listed, surplus) in [(59, 3, 1), (60, 2, 0)] {
        let at = Fixture::offline();
        let kept = get(&at.sessions, &at.create("alice", &dash()).await, &dash()).await.unwrap();
        let (index, begun) = (at.sessions.index(&kept.record), SessionId::new().hash());
        index.add((&begun, &kept.record), None, 2, |_| false, at.shared.clock.now()).await.unwrap();
        at.shared.clock.advance(Duration::from_secs(seconds));
        let now = at.shared.clock.now();
        let added = index.add((&SessionId::new().hash(), &kept.record), None, 2, |_| false, now).await.unwrap();
        let Added::New(ended) = added else { panic!("{added:?}") };
        assert_eq!(ended.len(), surplus, "after {seconds} s");
        let entries = index.entries(now).await.unwrap();
        assert_eq!(entries.len(), listed, "after {seconds} s");
        let is_listed = entries.iter().any(|entry| entry.hash() == Some(begun));
        assert_eq!(is_listed, seconds < 60, "after {seconds} s");
    }
}

#[tokio::test]
async fn a_login_that_cannot_be_stored_leaves_the_other_sessions_endable() {
    let at = Fixture::offline();
    let oldest = at.create("alice", &dash()).await;
    let mut latest = HeaderMap::new();
    for _ in 1..settings().max_per_person {
        latest = at.create("alice", &dash()).await;
    }
    *at.store.full.lock().unwrap() = Some(Table::Sessions);
    assert_eq!(at.try_create(json!({"sub": "alice"}), &dash()).await.unwrap_err(), Reason::StoreUnavailable);
    *at.store.full.lock().unwrap() = None;
    let session = get(&at.sessions, &latest, &dash()).await.unwrap();
    assert_eq!(at.sessions.list_own(&session).await.unwrap().len(), settings().max_per_person);
    at.sessions.end_own(&session, Which::Others).await.unwrap();
    assert!(get(&at.sessions, &oldest, &dash()).await.is_err());
}

/// Nobody used it, and it counted against sessions in use.
#[tokio::test]
async fn a_login_that_cannot_end_the_surplus_leaves_no_session_behind() {
    let at = Fixture::offline();
    let mut latest = HeaderMap::new();
    for _ in 0..settings().max_per_person {
        latest = at.create("alice", &dash()).await;
    }
    *at.store.full.lock().unwrap() = Some(Table::Revocations);
    assert_eq!(at.try_create(json!({"sub": "alice"}), &dash()).await.unwrap_err(), Reason::StoreUnavailable);
    let session = get(&at.sessions, &latest, &dash()).await.unwrap();
    assert_eq!(at.sessions.list_own(&session).await.unwrap().len(), settings().max_per_person);
    assert_eq!(at.sessions.entries_of(&session).await.len(), settings().max_per_person);
}

/// The trail never had them, and those whose record remained were listed as valid.
#[tokio::test]
async fn sessions_whose_records_stay_have_ended_with_the_write_that_revokes_them() {
    let at = Fixture::offline();
    let (here, there) = (at.create("alice", &dash()).await, at.create("alice", &k8s()).await);
    // A shorter lifetime at the moment is not the end of a session that a longer one brings back.
    let short = Settings { absolute: HOUR, ..settings() };
    let shorter = Fixture::generation(&at.provider, &at.shared, short, &[[1; 32]]);
    let session = get(&shorter, &here, &dash()).await.unwrap();
    let other = get(&shorter, &there, &k8s()).await.unwrap();
    *at.store.stays.lock().unwrap() = Some(Table::Sessions);
    *at.store.full.lock().unwrap() = Some(Table::SessionIndex);
    assert_eq!(shorter.end_login(&session, Ended::signed_out).await.unwrap(), 2);
    assert_eq!(at.sessions.entries_of(&session).await.len(), 2, "it is still known which there were");
    assert!(at.sessions.list_own(&session).await.unwrap().is_empty());
    // They push out nobody who signs in, and do not end a second time.
    *at.store.full.lock().unwrap() = None;
    for _ in 0..4 {
        at.create("alice", &dash()).await;
    }
    assert_eq!(at.sessions.entries_of(&session).await.len(), 4);
    let revocations = &at.shared.revocations;
    at.shared.clock.advance(HOUR * 24 - Duration::from_millis(1));
    assert!([&session, &other].iter().all(|session| revocations.end_of(&session.name()).is_some()));
    at.shared.trail.shutdown();
    let lines = std::fs::read_to_string(at.folder.path().join("audit.jsonl")).unwrap();
    let ended = lines.lines().filter(|line| line.contains("\"session_ended\""));
    assert_eq!(ended.count(), 2);
}

/// An operator was told of ended sessions that their list did not have, and the trail had two ends of one.
#[tokio::test]
async fn a_session_that_ended_while_the_store_failed_ends_no_second_time_for_another_reason() {
    let at = Fixture::offline();
    let session = get(&at.sessions, &at.create("alice", &dash()).await, &dash()).await.unwrap();
    *at.store.stays.lock().unwrap() = Some(Table::Sessions);
    *at.store.full.lock().unwrap() = Some(Table::SessionIndex);
    at.sessions.end(&session, Ended::signed_out).await.unwrap();
    assert_eq!(at.sessions.entries_of(&session).await.len(), 1);
    assert_eq!(at.sessions.end_of(&at.provider.issuer, "alice", None, Ended::revoked).await.unwrap(), 0);
    assert!(!at.sessions.end_named(&session.name(), Ended::revoked).await.unwrap());
    assert_eq!(&*at.shared.revocations.end_of(&session.name()).unwrap().reason, "signed_out");
    // Twin: the response to the first attempt may have been lost.
    assert_eq!(at.sessions.end_login(&session, Ended::signed_out).await.unwrap(), 1);
    at.shared.trail.shutdown();
    let lines = std::fs::read_to_string(at.folder.path().join("audit.jsonl")).unwrap();
    let ended: Vec<_> = lines.lines().filter(|line| line.contains("\"session_ended\"")).collect();
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|line| line.contains("signed_out")), "{ended:?}");
}

/// An operator was told of more sessions than were listed, and the trail of an end hours after the real one.
#[tokio::test]
async fn a_session_that_ended_unused_is_not_ended_again() {
    for (hours, count) in [(7, 2), (9, 1)] {
        let at = Fixture::offline();
        at.create("alice", &dash()).await;
        at.shared.clock.advance(HOUR * hours);
        at.create("alice", &dash()).await;
        let ended = at.sessions.end_of(&at.provider.issuer, "alice", None, Ended::revoked).await.unwrap();
        assert_eq!(ended, count, "after {hours} h");
        // The same of a login, as the provider names no session of its own.
        let at = Fixture::offline();
        at.create("alice", &k8s()).await;
        at.shared.clock.advance(HOUR * hours);
        let session = get(&at.sessions, &at.create("alice", &dash()).await, &dash()).await.unwrap();
        assert_eq!(at.sessions.end_login(&session, Ended::signed_out).await.unwrap(), count, "after {hours} h");
    }
}

/// Regression: it took them for ended and did not revoke them, so they stayed valid at the other replicas.
#[tokio::test]
async fn a_replica_whose_clock_is_ahead_ends_sessions_that_are_valid_at_others() {
    for of_login in [false, true] {
        let at = Fixture::offline();
        let (idle, used) = (at.create("alice", &k8s()).await, at.create("alice", &dash()).await);
        let idle = get(&at.sessions, &idle, &k8s()).await.unwrap();
        let used = get(&at.sessions, &used, &dash()).await.unwrap();
        let clock = Clock::manual(at.shared.clock.now() + HOUR * 9);
        let revocations = Revocations::new(Arc::clone(&at.shared.store), clock.clone());
        let shared = Shared { clock, revocations, ..at.shared.clone() };
        let elsewhere = Fixture::generation(&at.provider, &shared, settings(), &[[1; 32]]);
        *at.store.stays.lock().unwrap() = Some(Table::Sessions);
        let (count, reason) = match of_login {
            true => (elsewhere.end_login(&used, Ended::signed_out).await.unwrap(), Ended::signed_out),
            false => {
                let ended = elsewhere.end_of(&at.provider.issuer, "alice", None, Ended::revoked).await;
                (ended.unwrap(), Ended::revoked)
            }
        };
        // By its clock both are past their idle time; a sign-out counts its own session all the same.
        assert_eq!(count, usize::from(of_login));
        at.shared.revocations.refresh().await.unwrap();
        for session in [&idle, &used] {
            let revoked = at.shared.revocations.end_of(&session.name()).expect("it is revoked for all replicas");
            assert_eq!(&*revoked.reason, reason.as_str());
        }
        assert!(at.sessions.entries_of(&idle).await.is_empty(), "they are in the index no more");
        at.shared.trail.shutdown();
        let lines = std::fs::read_to_string(at.folder.path().join("audit.jsonl")).unwrap();
        let noted = lines.lines().filter(|line| line.contains("\"session_ended\""));
        assert_eq!(noted.count(), count, "the end of a session that ended by itself is not recorded");
    }
}

/// Regression: if the client left, the end of its session was never recorded in the trail, and the session's record
/// stayed.
#[tokio::test]
async fn ending_a_session_completes_after_the_client_disconnects() {
    let at = Fixture::offline();
    let session = get(&at.sessions, &at.create("alice", &dash()).await, &dash()).await.unwrap();
    at.store.leave_at(Table::Revocations, at.sessions.end(&session, Ended::signed_out)).await;
    at.shared.drain.wait(Duration::from_secs(10)).await;
    assert!(at.sessions.read(session.hash).await.unwrap().is_none());
    assert!(at.sessions.entries_of(&session).await.is_empty());
    at.shared.trail.shutdown();
    let lines = std::fs::read_to_string(at.folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"session_ended\"")).count(), 1);
}

#[tokio::test]
async fn a_person_lists_their_sessions_and_ends_any_of_them() {
    let at = Fixture::offline();
    let (here, there, elsewhere) =
        (at.create("alice", &dash()).await, at.create("alice", &dash()).await, at.create("alice", &dash()).await);
    let of_bob = at.create("bob", &dash()).await;
    let session = get(&at.sessions, &here, &dash()).await.unwrap();
    let listed = at.sessions.list_own(&session).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[0].session, session.name());
    // Bob's session is not hers to end.
    let bobs = get(&at.sessions, &of_bob, &dash()).await.unwrap().name();
    assert_eq!(at.sessions.end_own(&session, Which::One(&bobs)).await.unwrap(), 0);
    assert_eq!(at.sessions.end_own(&session, Which::One("nothing")).await.unwrap(), 0);
    assert_eq!(at.sessions.end_own(&session, Which::One(&listed[1].session)).await.unwrap(), 1);
    assert!(get(&at.sessions, &there, &dash()).await.is_err());
    assert_eq!(at.sessions.end_own(&session, Which::Others).await.unwrap(), 1);
    assert!(get(&at.sessions, &elsewhere, &dash()).await.is_err());
    for stays in [&here, &of_bob] {
        assert!(get(&at.sessions, stays, &dash()).await.is_ok());
    }
}

#[tokio::test]
async fn where_a_session_was_last_seen_is_noted() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let session = get(&at.sessions, &cookie, &dash()).await.unwrap();
    at.shared.clock.advance(Duration::from_secs(61));
    let address = IpAddr::from([192, 0, 2, 9]);
    let request = CookieRequest { origin: &dash(), method: &Method::GET, headers: &cookie, upgrade: false, address };
    assert!(matches!(at.sessions.authenticate(request).await, Presented::Valid(_)));
    let listed = loop {
        let listed = at.sessions.list_own(&session).await.unwrap().remove(0);
        if listed.address.is_some() {
            break listed;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((listed.address, listed.last_seen), (Some(address), at.shared.clock.now()));
    assert_eq!(listed.browser, "An unknown browser");
}

const CHROME: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/99.0.4844.84 Safari/537.36";
const CHROME_UPDATED: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/100.0.0.0 Safari/537.36";
const PHONE: &str = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
                     CriOS/141.0 Mobile/15E148 Safari/604.1";

/// The cookie of a session of alice, from a login at this host with this `User-Agent` and this `sid`, if any.
async fn log_in(at: &Fixture, origin: &Origin, (agent, sid): (Option<&str>, Option<&str>)) -> HeaderMap {
    let claims = sid.map_or_else(|| json!({"sub": "alice"}), |sid| json!({"sub": "alice", "sid": sid}));
    let cookie = at.create_with(claims, origin).await;
    let session = get(&at.sessions, &cookie, origin).await.unwrap();
    let record = Record { agent: agent.map(str::to_owned), ..session.record.clone() };
    assert!(at.sessions.write(session.hash, &record, session.version).await.unwrap());
    at.sessions.0.cache.invalidate(&session.hash);
    cookie
}

/// Without a `sid`, phones were signed out with the laptop, and the same browser on another machine, too.
#[tokio::test]
async fn a_sign_out_ends_the_sessions_that_the_same_browser_may_hold_and_no_others() {
    for (row, here, other, ends) in [
        ("the same browser", (Some(CHROME), None), (Some(CHROME), None), true),
        ("it was updated", (Some(CHROME), None), (Some(CHROME_UPDATED), None), true),
        ("another browser", (Some(CHROME), None), (Some(PHONE), None), false),
        ("a browser that does not name itself", (Some(CHROME), None), (None, None), true),
        ("this one does not name itself", (None, None), (Some(PHONE), None), true),
        ("the same session at the provider", (Some(CHROME), Some("s1")), (Some(PHONE), Some("s1")), true),
        ("another session there", (Some(CHROME), Some("s1")), (Some(CHROME), Some("s2")), false),
        ("maybe the same there", (Some(CHROME), Some("s1")), (Some(CHROME), None), true),
        ("another browser, whose login named none", (Some(CHROME), Some("s1")), (Some(PHONE), None), false),
    ] {
        // Another session at the same host is of another browser, whatever that is called.
        let ends_here = here.1.and(other.1).is_some() && ends;
        for (origin, ends) in [(k8s(), ends), (dash(), ends_here)] {
            let row = format!("{row}, at {origin}");
            let at = Fixture::offline();
            let (here, other) = (log_in(&at, &dash(), here).await, log_in(&at, &origin, other).await);
            let session = get(&at.sessions, &here, &dash()).await.unwrap();
            let name = get(&at.sessions, &other, &origin).await.unwrap().name();
            let (told, some_go_on) = at.sessions.signed_out_with(&session).await.unwrap();
            let told: Vec<String> = told.into_iter().map(|listed| listed.session).collect();
            let expected = if ends { vec![name] } else { Vec::new() };
            assert_eq!((told, some_go_on), (expected, !ends), "{row}");
            let count = at.sessions.end_login(&session, Ended::signed_out).await.unwrap();
            assert_eq!(count, 1 + usize::from(ends), "{row}");
            assert!(get(&at.sessions, &here, &dash()).await.is_err(), "{row}");
            assert_eq!(get(&at.sessions, &other, &origin).await.is_err(), ends, "{row}");
        }
    }
}

/// Nobody can tell which browser holds a session whose record cannot be read.
#[tokio::test]
async fn a_sign_out_ends_a_session_whose_record_cannot_be_read_unless_the_provider_names_another() {
    for (row, sids, ends) in [
        ("none is named", [None, None], true),
        ("one is named", [Some("s1"), None], true),
        ("the same", [Some("s1"), Some("s1")], true),
        ("another", [Some("s1"), Some("s2")], false),
    ] {
        let at = Fixture::offline();
        let [here, other] = sids;
        // If its record could be read, the first two would go on.
        let (here, other) =
            (log_in(&at, &dash(), (Some(CHROME), here)).await, log_in(&at, &dash(), (Some(PHONE), other)).await);
        let session = get(&at.sessions, &here, &dash()).await.unwrap();
        let other = get(&at.sessions, &other, &dash()).await.unwrap();
        let (now, broken) = (at.shared.clock.now(), b"broken".to_vec());
        at.store.put(Table::Sessions, other.hash.as_bytes(), broken, other.end, Expect::Any, now).await.unwrap();
        at.sessions.end_login(&session, Ended::signed_out).await.unwrap();
        assert_eq!(at.shared.revocations.end_of(&other.name()).is_some(), ends, "{row}");
    }
}

/// kubectl was refused in all terminals of a person who had left a browser.
#[tokio::test]
async fn a_sign_out_in_a_browser_ends_no_session_of_a_program() {
    for claims in [json!({"sub": "alice"}), json!({"sub": "alice", "sid": "s1"})] {
        let at = Fixture::offline();
        let (origin, address) = (dash(), IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
        let tokens = Tokens { access: "access".to_owned(), refresh: None, id: None };
        let new = at.new_session(claims.clone(), &["openid"], tokens, &origin);
        let until = at.sessions.now() + Duration::from_secs(60);
        let (handle, _) = at.sessions.create_for_program(new, "laptop".to_owned(), until).await.unwrap();
        assert!(matches!(at.sessions.collect(&handle, &origin, address).await, Ok(Collected::Now(_))));
        let here = at.create_with(claims.clone(), &origin).await;
        let session = get(&at.sessions, &here, &origin).await.unwrap();
        assert_eq!(at.sessions.signed_out_with(&session).await.unwrap(), (Vec::new(), true), "{claims}");
        assert_eq!(at.sessions.end_login(&session, Ended::signed_out).await.unwrap(), 1, "{claims}");
        let shown = at.sessions.authenticate_handle(&handle, &origin, address).await;
        assert!(shown.is_ok(), "{claims}: {shown:?}");
        // The twin: the provider says that the person has logged out.
        let ended = at.sessions.end_by_provider(&at.provider.issuer, Some("alice"), None).await.unwrap();
        assert_eq!(ended, 1, "{claims}");
        assert!(at.sessions.authenticate_handle(&handle, &origin, address).await.is_err(), "{claims}");
    }
}

/// The list of their sessions was overwritten while its key was away, so what ended all of them left some valid.
#[tokio::test]
async fn sessions_of_a_key_that_is_put_back_are_listed_and_ended_with_the_others() {
    let (at, origin) = (Fixture::offline(), dash());
    let claims = json!({"sub": "alice", "sid": "s1"});
    let generation = |keys: &[[u8; 32]]| Fixture::generation(&at.provider, &at.shared, settings(), keys);
    let begin = async |sessions: &Sessions| {
        let tokens = Tokens { access: "access".to_owned(), refresh: None, id: None };
        let new = at.new_session(claims.clone(), &["openid"], tokens, &origin);
        sent_back(&sessions.create(new, None).await.unwrap().0.unwrap())
    };
    let (old, new, both) = (&at.sessions, generation(&[[2; 32]]), generation(&[[2; 32], [1; 32]]));
    let held = [begin(old).await, begin(&new).await];
    let issuer = &at.provider.issuer;
    assert_eq!(new.list(issuer, "alice").await.unwrap().len(), 1, "it cannot read the other");
    assert_eq!(both.list(issuer, "alice").await.unwrap().len(), 2);
    // The provider's own name of the session is still known to the old key, too.
    assert_eq!(old.end_by_provider(issuer, None, Some("s1")).await.unwrap(), 1);
    let held = [begin(old).await, held[1].clone()];
    assert_eq!(both.end_of(issuer, "alice", None, Ended::revoked).await.unwrap(), 2);
    for held in &held {
        assert!(get(&both, held, &origin).await.is_err());
    }
    for sessions in [old, &new, &both] {
        assert_eq!(sessions.index_of(issuer, "alice").entries(at.shared.clock.now()).await.unwrap().len(), 0);
    }
}

/// Each key allowed as many.
#[tokio::test]
async fn sessions_of_all_keys_count_towards_the_maximum() {
    let at = Fixture::offline();
    let oldest = at.create("alice", &dash()).await;
    for _ in 1..settings().max_per_person {
        at.create("alice", &dash()).await;
    }
    let both = Fixture::generation(&at.provider, &at.shared, settings(), &[[2; 32], [1; 32]]);
    let (tokens, origin) = (Tokens { access: "access".to_owned(), refresh: None, id: None }, dash());
    both.create(at.new_session(json!({"sub": "alice"}), &["openid"], tokens, &origin), None).await.unwrap();
    assert_eq!(both.list(&at.provider.issuer, "alice").await.unwrap().len(), settings().max_per_person);
    assert!(get(&both, &oldest, &origin).await.is_err());
}

/// The newest session ended where the new key was listed behind the old one, and the later end of one was not seen.
#[tokio::test]
async fn replicas_with_the_keys_in_another_order_see_the_same_sessions() {
    let (at, origin) = (Fixture::offline(), dash());
    let generation = |keys: &[[u8; 32]]| Fixture::generation(&at.provider, &at.shared, settings(), keys);
    let (behind, in_front) = (generation(&[[1; 32], [2; 32]]), generation(&[[2; 32], [1; 32]]));
    let begin = async |sessions: &Sessions| {
        at.shared.clock.advance(Duration::from_secs(1));
        let tokens = Tokens { access: "access".to_owned(), refresh: None, id: None };
        let new = at.new_session(json!({"sub": "alice", "sid": "s1"}), &["openid"], tokens, &origin);
        sessions.create(new, None).await.unwrap().1
    };
    let mut begun = vec![begin(&behind).await];
    for _ in 1..settings().max_per_person {
        begun.push(begin(&in_front).await);
    }
    begun.push(begin(&behind).await);
    let names: Vec<String> = begun.iter().skip(1).map(|session| session.name()).collect();
    for sessions in [&behind, &in_front] {
        let listed = sessions.list(&at.provider.issuer, "alice").await.unwrap();
        assert_eq!(listed.iter().map(|listed| listed.session.clone()).collect::<Vec<_>>(), names);
    }

    let session = &begun[1];
    let record = Record { ends: session.record.ends + HOUR, ..session.record.clone() };
    let now = at.shared.clock.now();
    let written = || at.store.puts.load(std::sync::atomic::Ordering::SeqCst);
    behind.index(&record).keep(&session.hash, &record, now).await.unwrap();
    for sessions in [&behind, &in_front] {
        let entries = sessions.entries_of(session).await;
        let ends: Vec<_> =
            entries.iter().filter_map(Entry::session).filter(|(hash, _)| *hash == session.hash).collect();
        assert_eq!(ends, [(session.hash, record.ends)]);
    }
    // Each of the requests of a page wrote it again.
    let before = written();
    behind.index(&record).keep(&session.hash, &record, now).await.unwrap();
    assert_eq!(written(), before);
}

/// One that was only rechecked at its provider, for its streams, was not found any more once the old key was gone.
#[tokio::test]
async fn whatever_writes_a_session_lists_it_by_the_new_key() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let hash = get(&at.sessions, &cookie, &dash()).await.unwrap().hash;
    let generation = |keys: &[[u8; 32]]| Fixture::generation(&at.provider, &at.shared, settings(), keys);
    let both = generation(&[[2; 32], [1; 32]]);
    let (record, version) = both.read(hash).await.unwrap().unwrap();
    assert!(both.write(hash, &record, version).await.unwrap());
    let new = generation(&[[2; 32]]);
    assert_eq!(new.end_of(&at.provider.issuer, "alice", None, Ended::revoked).await.unwrap(), 1);
}
