use super::super::{answer::TokenForm, tests::resolve};
use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A long token of a provider that the end of these runs revokes.
fn gained(runs: &[&str], lasts: Duration) -> Arc<Gained> {
    let entry = "{audience: v, provider: {jwt_bearer: {token_url: 'https://a.test'}}, assertion: {audience: x}, \
                 revocation_url: 'https://a.test/revoke'}";
    let (onwards, problems) = resolve(entry, "}");
    assert!(problems.is_empty(), "{problems:?}");
    let long = "a".repeat(60_000);
    let asked = TokenRequest {
        onward: Arc::clone(&onwards["v"]),
        claims: Map::from_iter([("scope".to_owned(), Value::from(long.as_str()))]),
        client: "client".into(),
        scopes: vec![long.clone()],
        session: "session".to_owned(),
        lives_with: runs.iter().map(|uid| Arc::from(*uid)).collect(),
    };
    let expires = NOW + lasts;
    let given = ProviderToken { token: Zeroizing::new(long), form: TokenForm::Bearer, expires, scopes: None };
    Arc::new(Gained::new("jti".to_owned(), given, asked, now()))
}

fn now() -> Moment {
    Clock::manual(NOW).moment()
}

fn key(number: usize) -> Key {
    sha256(&[&number.to_be_bytes()])
}

/// Only the token was counted, so callers that asked for long scopes filled the memory.
#[test]
fn what_an_assertion_said_counts_to_what_is_held() {
    let gained = gained(&[], Duration::from_secs(3600));
    assert!(gained.size > 180_000, "token, claims and scopes: {}", gained.size);
    let (mut cached, room) = (Cached::default(), MAX_BYTES / gained.size);
    for number in 0..room + 2 {
        cached.insert(key(number), &gained, now());
    }
    assert_eq!((cached.by_key.len(), cached.bytes), (room, room * gained.size));
}

/// Anybody who asked for enough had it forgotten, and then nothing revoked it.
#[test]
fn tokens_of_others_do_not_displace_one_that_the_end_of_its_run_revokes() {
    let of_run = gained(&["run"], Duration::from_secs(600));
    let of_person = gained(&[], Duration::from_secs(3600));
    let (mut cached, room) = (Cached::default(), MAX_BYTES / of_run.size);
    cached.insert(key(0), &of_run, now());
    for number in 1..room + 2 {
        assert!(cached.insert(key(number), &of_person, now()).is_empty());
    }
    let ended = cached.take("run");
    assert!(matches!(&ended[..], [ended] if Arc::ptr_eq(ended, &of_run)), "{}", ended.len());

    // Of tokens of runs, those that go are returned, to be reported.
    let mut cached = Cached::default();
    let forgotten: usize = (0..room + 2).map(|number| cached.insert(key(number), &of_run, now()).len()).sum();
    assert_eq!(forgotten, 2);
    assert!(cached.insert(key(room + 2), &of_person, now()).is_empty());
    assert_eq!(cached.take("run").len(), room);
    assert_eq!((cached.by_key.len(), cached.bytes), (0, 0));
}
