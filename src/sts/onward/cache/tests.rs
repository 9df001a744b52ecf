use super::super::{answer::TokenForm, tests::resolve};
use super::*;

/// Only the token was counted, so callers that asked for long scopes filled the memory.
#[test]
fn what_an_assertion_said_counts_to_what_is_held() {
    let entry = "{audience: v, provider: {jwt_bearer: {token_url: 'https://a.test'}}, assertion: {audience: x}}";
    let (onwards, problems) = resolve(entry, "}");
    assert!(problems.is_empty(), "{problems:?}");
    let now = Clock::manual(Timestamp::from_secs(1_700_000_000)).moment();
    let long = "a".repeat(60_000);
    let asked = TokenRequest {
        onward: Arc::clone(&onwards["v"]),
        claims: Map::from_iter([("scope".to_owned(), Value::from(long.as_str()))]),
        client: "client".into(),
        scopes: vec![long.clone()],
        session: "session".to_owned(),
        lives_with: Box::default(),
    };
    let given = ProviderToken {
        token: Zeroizing::new(long),
        form: TokenForm::Bearer,
        expires: now.wall() + Duration::from_secs(3600),
        scopes: None,
    };
    let gained = Arc::new(Gained::new("jti".to_owned(), given, asked, now));
    assert!(gained.size > 180_000, "token, claims and scopes: {}", gained.size);
    let (mut cached, room) = (Cached::default(), MAX_BYTES / gained.size);
    for number in 0..room + 2 {
        cached.insert(sha256(&[&number.to_be_bytes()]), &gained, now);
    }
    assert_eq!((cached.by_key.len(), cached.bytes), (room, room * gained.size));
}
