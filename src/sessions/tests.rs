mod fixture;
mod people;
mod refresh;
mod tabs;

use http::header;
use serde_json::json;

pub(crate) use self::fixture::{Fixture, settings, trail};
use super::*;
use crate::{
    audit,
    config::{raw, report::At, resolver::Resolver},
    egress::Egress,
    oidc::scripted::ScriptedProvider,
    store::{Backend, Change, Embedded, Put, StoreFuture, Stored, Target, WrittenAll},
};

const HOUR: Duration = Duration::from_secs(3600);

impl Sessions {
    async fn entries_of(&self, session: &Session) -> Vec<Entry> {
        self.index(&session.record).entries(self.now()).await.unwrap()
    }
}

fn dash() -> Origin {
    Origin::https("dash.example.com").unwrap()
}

async fn get(sessions: &Sessions, headers: &HeaderMap, origin: &Origin) -> Result<Arc<Session>, Reason> {
    let request = CookieRequest {
        origin,
        method: &Method::GET,
        headers,
        upgrade: false,
        address: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    match sessions.authenticate(request).await {
        Presented::Valid(session) => Ok(session),
        Presented::Invalid(rejection) => Err(rejection.reason()),
        Presented::Absent => Err(Reason::CredentialMissing),
    }
}

#[tokio::test]
async fn a_session_names_its_person() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let session = get(&at.sessions, &cookie, &dash()).await.unwrap();
    assert_eq!((&*session.principal.subject, &*session.principal.username), ("alice", "corp#alice"));
    assert_eq!(session.principal.groups, [Arc::<str>::from("dev")]);
    assert_eq!(session.end, at.shared.clock.now() + HOUR * 24);
    assert!(matches!(session.principal.credential, CredentialId::Session(_)));
    assert_eq!(get(&at.sessions, &HeaderMap::new(), &dash()).await.unwrap_err(), Reason::CredentialMissing);
}

/// Rows that differ in one thing from the valid request.
#[tokio::test]
async fn a_cookie_that_is_not_just_so_is_refused() {
    let at = Fixture::offline();
    let good = at.create("alice", &dash()).await;
    let other = Origin::https("k8s.example.com").unwrap();
    let text = good[header::COOKIE].to_str().unwrap().to_owned();
    let (_, value) = text.split_once('=').unwrap();
    let unknown = format!("__Host-doorward={}", SessionId::new().to_cookie());
    let rows: Vec<(&str, String, &Origin, Option<Reason>)> = vec![
        ("attacks:Z7 good at its own host", text.clone(), &other, Some(Reason::SessionExpired)),
        ("unknown id", unknown, &other, Some(Reason::SessionExpired)),
        ("twice", format!("{text}; {text}"), &other, Some(Reason::CredentialAmbiguous)),
        ("quoted", format!("__Host-doorward=\"{value}\""), &other, Some(Reason::CredentialMalformed)),
        ("padded", format!("{text}="), &other, Some(Reason::CredentialMalformed)),
        ("short", text[..text.len() - 1].to_owned(), &other, Some(Reason::CredentialMalformed)),
        ("empty", "__Host-doorward=".to_owned(), &other, Some(Reason::CredentialMalformed)),
        ("huge", format!("__Host-doorward={}", "A".repeat(20_000)), &other, Some(Reason::CredentialMalformed)),
        ("attacks:Z44 as another name", format!("doorward={value}"), &other, Some(Reason::CredentialMissing)),
    ];
    for (row, line, elsewhere, refused) in rows {
        let headers = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&line).unwrap())]);
        let (ours, theirs) = (get(&at.sessions, &headers, &dash()).await, get(&at.sessions, &headers, elsewhere).await);
        if line == text {
            assert_eq!(&*ours.unwrap().principal.subject, "alice", "{row}");
        } else {
            assert_eq!(ours.unwrap_err(), refused.unwrap(), "{row}");
        }
        assert_eq!(theirs.err(), refused, "{row} elsewhere");
    }
}

#[tokio::test]
async fn sessions_end_when_unused_and_in_any_case() {
    let at = Fixture::offline();
    let (used, unused) = (at.create("alice", &dash()).await, at.create("bob", &dash()).await);
    for hour in 1..24 {
        at.shared.clock.advance(HOUR);
        assert!(get(&at.sessions, &used, &dash()).await.is_ok(), "hour {hour}");
        // The use is written to the store beside the request.
        loop {
            at.sessions.0.cache.invalidate_all();
            if get(&at.sessions, &used, &dash()).await.unwrap().record.last_seen == at.shared.clock.now() {
                break;
            }
            tokio::task::yield_now().await;
        }
        if hour == 7 {
            at.shared.clock.advance(Duration::from_millis(1));
        }
    }
    assert_eq!(get(&at.sessions, &unused, &dash()).await.unwrap_err(), Reason::SessionExpired);
    at.shared.clock.advance(HOUR);
    assert_eq!(get(&at.sessions, &used, &dash()).await.unwrap_err(), Reason::SessionExpired);
}

#[tokio::test]
async fn a_record_serves_from_memory_for_a_second_and_never_past_its_end() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    assert!(get(&at.sessions, &cookie, &dash()).await.is_ok());
    at.store.switch(true);
    at.shared.clock.advance(Duration::from_millis(999));
    assert!(get(&at.sessions, &cookie, &dash()).await.is_ok());
    at.shared.clock.advance(Duration::from_millis(1));
    assert_eq!(get(&at.sessions, &cookie, &dash()).await.unwrap_err(), Reason::StoreUnavailable);

    at.store.switch(false);
    let short = Settings { absolute: Duration::from_secs(60), ..settings() };
    let sessions = Fixture::generation(&at.provider, &at.shared, short, &[[1; 32]]);
    at.shared.clock.advance(Duration::from_millis(58_500));
    assert!(get(&sessions, &cookie, &dash()).await.is_ok());
    at.store.switch(true);
    at.shared.clock.advance(Duration::from_millis(499));
    assert!(get(&sessions, &cookie, &dash()).await.is_ok());
    at.shared.clock.advance(Duration::from_millis(1));
    assert_eq!(get(&sessions, &cookie, &dash()).await.unwrap_err(), Reason::SessionExpired);
}

/// `peers:D10`.
#[tokio::test]
async fn without_the_store_the_refusal_is_an_internal_and_temporary_one() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    at.store.switch(true);
    assert_eq!(get(&at.sessions, &cookie, &dash()).await.unwrap_err(), Reason::StoreUnavailable);
    assert!(at.sessions.held_by(&cookie, &dash()).await.is_err());
    at.store.switch(false);
    assert!(get(&at.sessions, &cookie, &dash()).await.is_ok());
}

#[tokio::test]
async fn an_ended_session_is_refused_at_once_in_all_processes() {
    let at = Fixture::offline();
    let (first, second) = (at.create("alice", &dash()).await, at.create("alice", &dash()).await);
    let elsewhere = Fixture::generation(&at.provider, &at.shared, settings(), &[[1; 32]]);
    let session = get(&at.sessions, &first, &dash()).await.unwrap();
    assert!(get(&elsewhere, &first, &dash()).await.is_ok());
    at.sessions.end(&session, Ended::signed_out).await.unwrap();
    // The other one still has it in its cache, and must not use it.
    for sessions in [&at.sessions, &elsewhere] {
        assert!(matches!(
            get(sessions, &first, &dash()).await.unwrap_err(),
            Reason::SessionExpired | Reason::TokenRevoked
        ));
        assert!(get(sessions, &second, &dash()).await.is_ok());
    }
    assert!(at.shared.revocations.is_revoked(&session.principal).is_some());
    let stored = at.store.get(Table::Sessions, session.hash.as_bytes(), at.shared.clock.now()).await.unwrap();
    assert!(stored.is_none(), "what is over is not kept");
}

/// A record whose claims are those of another person, as a bug of ours would leave it.
#[tokio::test]
async fn a_session_whose_claims_name_another_person_is_refused() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let session = get(&at.sessions, &cookie, &dash()).await.unwrap();
    let claims = |subject| Arc::new(Map::from_iter([("sub".to_owned(), Value::from(subject))]));
    for (subject, refused) in [("alice", None), ("mallory", Some(Reason::Internal))] {
        let record = Record { claims: claims(subject), ..session.record.clone() };
        let sealed = record.seal(&at.sessions.0.keys, &session.hash).unwrap();
        let now = at.shared.clock.now();
        at.store.put(Table::Sessions, session.hash.as_bytes(), sealed, session.end, Expect::Any, now).await.unwrap();
        at.sessions.0.cache.invalidate_all();
        assert_eq!(get(&at.sessions, &cookie, &dash()).await.err(), refused, "{subject}");
    }
}

/// The store is written once a minute for a session in use, and not for each request.
#[tokio::test]
async fn a_session_that_was_just_used_is_not_written_again() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let written = || at.store.puts.load(std::sync::atomic::Ordering::SeqCst);
    let before = written();
    for (pass, more) in [(Duration::from_secs(2), 0), (record::touch_every(&settings()), 1)] {
        at.shared.clock.advance(pass);
        get(&at.sessions, &cookie, &dash()).await.unwrap();
        // Work that is spawned on this single thread queries the store when it is first polled.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(written(), before + more);
    }
}

/// No use was recorded until the clock had caught up, and an unused session stayed valid for as much longer.
#[tokio::test]
async fn the_use_of_a_session_is_recorded_even_if_the_clock_is_set_back() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let session = get(&at.sessions, &cookie, &dash()).await.unwrap();
    let written = || at.store.puts.load(std::sync::atomic::Ordering::SeqCst);
    let before = written();
    for (seconds, more) in [(30, 0), (1, 1)] {
        at.shared.clock.set(at.shared.clock.now() - Duration::from_secs(seconds));
        at.sessions.touch(&session, None, at.shared.clock.now());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(written(), before + more);
    }
}

#[tokio::test]
async fn signing_out_ends_the_login_on_every_host() {
    let at = Fixture::offline();
    let k8s = Origin::https("k8s.example.com").unwrap();
    for (claims, others_end) in [
        (
            json!({"sub": "alice", "sid": "s1"}),
            vec![(json!({"sub": "alice", "sid": "s1"}), true), (json!({"sub": "alice", "sid": "s2"}), false)],
        ),
        (json!({"sub": "bob"}), vec![(json!({"sub": "bob"}), true), (json!({"sub": "carol"}), false)]),
    ] {
        let here = at.create_with(claims, &dash()).await;
        let mut others = Vec::new();
        for (claims, ends) in others_end {
            others.push((at.create_with(claims, &k8s).await, ends));
        }
        let session = get(&at.sessions, &here, &dash()).await.unwrap();
        assert_eq!(at.sessions.end_login(&session, Ended::signed_out).await.unwrap(), 2);
        assert!(get(&at.sessions, &here, &dash()).await.is_err());
        for (cookie, ends) in others {
            assert_eq!(get(&at.sessions, &cookie, &k8s).await.is_err(), ends);
        }
    }
}

#[tokio::test]
async fn each_end_of_a_session_is_recorded_in_the_trail_with_its_reason() {
    let at = Fixture::offline();
    let issuer = at.provider.issuer.clone();
    let mut expected = Vec::new();
    // Its streams get the same reason.
    let of_streams = |session: &Session| at.shared.revocations.end_of_session(&session.principal).unwrap().reason;
    for why in [Ended::signed_out, Ended::replaced] {
        let session = get(&at.sessions, &at.create("alice", &dash()).await, &dash()).await.unwrap();
        at.sessions.end(&session, why).await.unwrap();
        assert_eq!(&*of_streams(&session), why.as_str());
        expected.push((session.name(), why.as_str().to_owned()));
    }
    let session = get(&at.sessions, &at.create("bob", &dash()).await, &dash()).await.unwrap();
    at.sessions.end_of(&issuer, "bob", None, Ended::revoked).await.unwrap();
    assert_eq!(&*of_streams(&session), "revoked");
    expected.push((session.name(), "revoked".to_owned()));
    let session = get(&at.sessions, &at.create("carol", &dash()).await, &dash()).await.unwrap();
    at.sessions.end_by_provider(&issuer, Some("carol"), None).await.unwrap();
    expected.push((session.name(), "provider".to_owned()));
    // The sixth is one too many.
    for _ in 0..6 {
        at.create("dave", &dash()).await;
    }
    at.shared.trail.shutdown();
    let lines = std::fs::read_to_string(at.folder.path().join("audit.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ended = lines.filter_map(|line| line["unmapped"].get("session_ended").cloned());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut ended: Vec<_> = ended.map(|ended| (text(&ended["session"]), text(&ended["why"]))).collect();
    assert_eq!(ended.pop().unwrap().1, "surplus");
    assert_eq!(ended, expected);
}

/// As a back-channel logout names it.
#[tokio::test]
async fn a_provider_ends_its_own_session_by_name_alone() {
    let at = Fixture::offline();
    let issuer = at.provider.issuer.clone();
    let ended = at.create_with(json!({"sub": "alice", "sid": "s1"}), &dash()).await;
    let other = at.create_with(json!({"sub": "alice", "sid": "s2"}), &dash()).await;
    assert_eq!(at.sessions.end_by_provider(&issuer, None, Some("s3")).await.unwrap(), 0);
    assert_eq!(at.sessions.end_by_provider(&issuer, None, Some("s1")).await.unwrap(), 1);
    assert!(get(&at.sessions, &ended, &dash()).await.is_err());
    assert!(get(&at.sessions, &other, &dash()).await.is_ok());
}

/// Nobody can tell which session at the provider one belongs to that names none.
#[tokio::test]
async fn a_provider_that_names_person_and_session_ends_all_that_may_be_that_session() {
    let at = Fixture::offline();
    let named = at.create_with(json!({"sub": "alice", "sid": "s1"}), &dash()).await;
    let other = at.create_with(json!({"sub": "alice", "sid": "s2"}), &dash()).await;
    let unnamed = at.create("alice", &dash()).await;
    let ended = at.sessions.end_by_provider(&at.provider.issuer, Some("alice"), Some("s1")).await.unwrap();
    assert_eq!(ended, 2);
    for ended in [&named, &unnamed] {
        assert!(get(&at.sessions, ended, &dash()).await.is_err());
    }
    assert!(get(&at.sessions, &other, &dash()).await.is_ok());
}

#[tokio::test]
async fn keys_rotate_without_a_logout_and_a_removed_key_ends_its_sessions() {
    let at = Fixture::offline();
    let old = at.create_with(json!({"sub": "alice", "sid": "s1"}), &dash()).await;
    let generation = |keys: &[[u8; 32]]| Fixture::generation(&at.provider, &at.shared, settings(), keys);
    let rotated = generation(&[[2; 32], [1; 32]]);
    let unused = at.create("bob", &dash()).await;
    let session = get(&rotated, &old, &dash()).await.unwrap();
    // Its use moves it to the new key, and the index with it.
    let only_new = generation(&[[2; 32]]);
    while get(&only_new, &old, &dash()).await.is_err() || only_new.entries_of(&session).await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(get(&only_new, &unused, &dash()).await.unwrap_err(), Reason::SessionExpired);
    let ended = only_new.end_by_provider(&at.provider.issuer, None, Some("s1")).await.unwrap();
    assert_eq!(ended, 1, "what its provider calls it went over too");
}

#[tokio::test]
async fn a_new_configuration_holds_for_old_sessions() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    at.shared.clock.advance(HOUR * 2);
    let shorter = Settings { absolute: HOUR, ..settings() };
    let generation = |provider, settings| Fixture::generation(&Arc::new(provider), &at.shared, settings, &[[1; 32]]);
    let same = generation(ScriptedProvider::offline("corp"), settings());
    let name = get(&same, &cookie, &dash()).await.unwrap().name();
    assert!(same.current(&name).await.unwrap().is_some());
    let shorter = generation(ScriptedProvider::offline("corp"), shorter);
    assert_eq!(get(&shorter, &cookie, &dash()).await.unwrap_err(), Reason::SessionExpired);
    assert!(shorter.current(&name).await.unwrap().is_none(), "its open streams end too");
    let gone = generation(ScriptedProvider::offline("other"), settings());
    assert_eq!(get(&gone, &cookie, &dash()).await.unwrap_err(), Reason::SessionExpired);
    let mut renamed = ScriptedProvider::offline("corp");
    renamed.issuer = "https://evil.example".to_owned();
    let renamed = generation(renamed, settings());
    assert_eq!(get(&renamed, &cookie, &dash()).await.unwrap_err(), Reason::SessionExpired);
}

#[tokio::test]
async fn a_revoked_person_loses_their_session_and_cannot_sign_in() {
    let at = Fixture::offline();
    let (alice, bob) = (at.create("alice", &dash()).await, at.create("bob", &dash()).await);
    let target = Target::Principal { issuer: "corp", subject: "alice" };
    at.shared.revocations.revoke(target, "left the company", at.shared.clock.now() + HOUR).await.unwrap();
    assert_eq!(get(&at.sessions, &alice, &dash()).await.unwrap_err(), Reason::TokenRevoked);
    assert_eq!(at.try_create(json!({"sub": "alice"}), &dash()).await, Err(Reason::TokenRevoked));
    // Another login would not help bob; it does help people whose session alone was ended.
    let session = get(&at.sessions, &bob, &dash()).await.unwrap();
    let told = |principal| at.sessions.check_revoked(principal).unwrap_err().in_words();
    let left = Principal { subject: "alice".into(), ..session.principal.as_ref().clone() };
    assert_eq!(told(&left), "your access was revoked. Ask whoever runs Doorward");
    let presented = at.sessions.check_revoked(&left).unwrap_err().presented().cloned();
    assert_eq!(presented, Some(PresentedIdentity::of(&left)), "the trail names who tries it");
    let other = at.create("bob", &dash()).await;
    let other = get(&at.sessions, &other, &dash()).await.unwrap();
    at.sessions.end(&other, Ended::revoked).await.unwrap();
    assert_eq!(told(&other.principal), "the session was revoked. Sign in again");
    assert!(get(&at.sessions, &bob, &dash()).await.is_ok());
    assert!(at.try_create(json!({"sub": "bob"}), &dash()).await.is_ok());
}

/// From when the store was back until its revocations were read, a replica that had started without it accepted revoked
/// people.
#[tokio::test]
async fn no_session_is_accepted_before_revocations_were_read() {
    let at = Fixture::offline();
    let (alice, bob) = (at.create("alice", &dash()).await, at.create("bob", &dash()).await);
    let target = Target::Principal { issuer: "corp", subject: "alice" };
    at.shared.revocations.revoke(target, "left the company", at.shared.clock.now() + HOUR).await.unwrap();
    let revocations = Revocations::new(Arc::clone(&at.store) as Store, at.shared.clock.clone());
    let shared = Shared { revocations: revocations.clone(), ..at.shared.clone() };
    let started = Fixture::generation(&at.provider, &shared, settings(), &[[1; 32]]);
    for cookie in [&alice, &bob] {
        assert_eq!(get(&started, cookie, &dash()).await.unwrap_err(), Reason::StoreUnavailable);
    }
    revocations.refresh().await.unwrap();
    assert_eq!(get(&started, &alice, &dash()).await.unwrap_err(), Reason::TokenRevoked);
    assert!(get(&started, &bob, &dash()).await.is_ok());
}

#[tokio::test]
async fn nothing_of_a_session_can_be_read_from_the_store() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let id = cookie[header::COOKIE].to_str().unwrap().split_once('=').unwrap().1.to_owned();
    for table in [Table::Sessions, Table::SessionIndex] {
        let changes = at.store.changes(table, 0, 10, at.shared.clock.now()).await.unwrap();
        assert_eq!(changes.len(), 1);
        let bytes = [changes[0].key.as_slice(), &changes[0].stored.as_ref().unwrap().value].concat();
        for secret in [id.as_bytes(), b"access", b"alice"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{table:?}");
        }
        assert!(!changes[0].key.is_empty());
    }
}

/// The program that collects it has not proven before that it is the one that began.
#[tokio::test]
async fn a_session_of_a_program_is_good_for_nothing_before_it_is_collected() {
    let at = Fixture::offline();
    let (origin, address) = (dash(), IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
    let tokens = Tokens { access: "access".to_owned(), refresh: None, id: None };
    let new = at.new_session(json!({"sub": "alice", "groups": ["dev"]}), &["openid"], tokens, &origin);
    let until = at.sessions.now() + Duration::from_secs(60);
    let (handle, _) = at.sessions.create_for_program(new, "laptop".to_owned(), until).await.unwrap();
    let refused = async || {
        let shown = at.sessions.authenticate_handle(&handle, &origin, address).await;
        shown.err().map(|refusal| refusal.reason())
    };
    assert_eq!(refused().await, Some(Reason::SessionExpired));
    let (elsewhere, over) =
        (Origin::https("k8s.example.com").unwrap(), Settings { absolute: Duration::ZERO, ..settings() });
    let over = Fixture::generation(&at.provider, &at.shared, over, &[[1; 32]]);
    for (row, sessions, origin) in [("another host", &at.sessions, &elsewhere), ("it has ended", &over, &origin)] {
        let collected = sessions.collect(&handle, origin, address).await;
        assert!(matches!(collected, Ok(Collected::Ended)), "{row}: {collected:?}");
    }
    assert!(matches!(at.sessions.collect(&handle, &origin, address).await, Ok(Collected::Now(_))));
    assert_eq!(refused().await, None, "the twin");
    let cookie = format!("__Host-doorward={}", handle.strip_prefix(record::HANDLE).unwrap());
    let cookie = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&cookie).unwrap())]);
    assert_eq!(get(&at.sessions, &cookie, &origin).await.unwrap_err(), Reason::SessionExpired, "it is no browser's");
}

#[tokio::test]
async fn a_request_of_another_site_is_refused_before_the_session_is_looked_up() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    at.store.switch(true);
    let request = CookieRequest {
        origin: &dash(),
        method: &Method::POST,
        headers: &cookie,
        upgrade: false,
        address: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    let Presented::Invalid(refusal) = at.sessions.authenticate(request).await else { panic!("it was let in") };
    assert_eq!(refusal.reason(), Reason::OriginRefused);
    at.store.switch(false);
    let mut ours = cookie.clone();
    ours.insert(header::ORIGIN, HeaderValue::from_static("https://dash.example.com"));
    let request = CookieRequest { headers: &ours, ..request };
    assert!(matches!(at.sessions.authenticate(request).await, Presented::Valid(_)));
}

/// A record with a read time in the future would be served from memory, without asking the store, until the clock had
/// caught up.
#[tokio::test]
async fn a_record_that_was_read_before_the_clock_was_set_back_is_read_again() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    assert!(get(&at.sessions, &cookie, &dash()).await.is_ok());
    let clock = &at.shared.clock;
    clock.set(clock.now() - HOUR);
    at.store.switch(true);
    assert_eq!(get(&at.sessions, &cookie, &dash()).await.unwrap_err(), Reason::StoreUnavailable);
    at.store.switch(false);
    assert!(get(&at.sessions, &cookie, &dash()).await.is_ok());
}

#[tokio::test]
async fn sessions_are_counted() {
    let at = Fixture::offline();
    let cookie = at.create("alice", &dash()).await;
    let session = get(&at.sessions, &cookie, &dash()).await.unwrap();
    at.sessions.end(&session, Ended::signed_out).await.unwrap();
    at.create("alice", &dash()).await;
    let mut registry = prometheus_client::registry::Registry::default();
    at.shared.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in ["sessions_created_total 2", "sessions_ended_total{reason=\"signed_out\"} 1", "sessions_active 1"] {
        assert!(text.contains(line), "{text}");
    }
}
