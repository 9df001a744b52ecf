//! The clock is set back by an hour, for example when the network corrects it after boot. Before, cache entries of
//! seconds lasted for another hour.

use std::time::Duration;

use serde_json::json;

use super::super::{Accepts, Context, Issuers, testing::*};
use crate::error::Reason;

const HOUR: Duration = Duration::from_secs(3_600);

struct Bench {
    provider: Provider,
    context: Context,
    issuers: Issuers,
    accepts: Accepts,
    _secret: tempfile::NamedTempFile,
}

impl Bench {
    async fn new() -> Self {
        let (context, provider) = (context(), Provider::with_keys(&[RSA.jwk("a", json!({}))]).await);
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "s3cret").unwrap();
        let root = json!({"issuers": [{
            "name": "main", "issuer": provider.url, "audiences": ["doorward"], "keys": {"max_stale": "2h"},
            "introspection": {"mode": "opaque", "client": {"id": "doorward", "secret": {"file": secret.path()}}},
        }]});
        let (issuers, accepts) = ready(&root, &context).await;
        let bench = Self { provider, context, issuers, accepts, _secret: secret };
        bench.answer(true);
        bench
    }

    /// Sets the introspection answer.
    fn answer(&self, active: bool) {
        let answer = json!({"active": active, "sub": "alice", "aud": "doorward"});
        self.provider.on("/introspect", Reply::json(&answer));
    }

    fn set_back(&self) {
        self.context.clock.set(self.context.clock.now() - HOUR);
    }

    fn advance(&self, seconds: u64) {
        self.context.clock.advance(Duration::from_secs(seconds));
    }

    /// A token that was issued before the time to which the clock is set back.
    fn token(&self, key: &TestKey, kid: &str) -> String {
        let changes = json!({"iat": START - 3_700, "exp": START + 80_000});
        key.token(
            &json!({"alg": "RS256", "kid": kid, "typ": "at+jwt"}).to_string(),
            &claims(&self.provider.url, changes),
        )
    }

    async fn ask(&self, token: &str) -> Result<(), Reason> {
        outcome(&self.issuers, token, &self.accepts).await
    }
}

#[tokio::test]
async fn new_tokens_are_introspected_even_if_the_clock_was_set_back_in_a_flood() {
    let bench = Bench::new().await;
    for number in 0..100 {
        assert_eq!(bench.ask(&format!("stranger-{number}")).await, Ok(()));
    }
    assert_eq!(bench.ask("late").await, Err(Reason::Overloaded));
    bench.set_back();
    bench.advance(60);
    assert_eq!(bench.ask("late").await, Ok(()));
}

#[tokio::test]
async fn an_endpoint_that_failed_is_asked_after_its_pause_even_if_the_clock_was_set_back() {
    let bench = Bench::new().await;
    bench.provider.on("/introspect", Reply::Answer(500, "text/plain", "".into()));
    for number in 0..5 {
        assert_eq!(bench.ask(&format!("token-{number}")).await, Err(Reason::IssuerUnavailable));
    }
    bench.answer(true);
    bench.set_back();
    assert_eq!(bench.ask("token").await, Err(Reason::IssuerUnavailable), "the pause");
    bench.advance(5);
    assert_eq!(bench.ask("token").await, Ok(()));
}

#[tokio::test]
async fn answers_are_cached_no_longer_even_if_the_clock_is_set_back() {
    let bench = Bench::new().await;
    assert_eq!(bench.ask("token").await, Ok(()));
    bench.answer(false);
    bench.set_back();
    bench.advance(29);
    assert_eq!(bench.ask("token").await, Ok(()));
    bench.advance(1);
    assert_eq!(bench.ask("token").await, Err(Reason::TokenInactive));
    bench.answer(true);
    bench.set_back();
    bench.advance(10);
    assert_eq!(bench.ask("token").await, Ok(()));
}

#[tokio::test]
async fn keys_are_renewed_even_if_the_clock_is_set_back() {
    let bench = Bench::new().await;
    let token = bench.token(&RSA, "a");
    assert_eq!(bench.ask(&token).await, Ok(()));
    bench.provider.on("/jwks", Reply::keys(&[OTHER_RSA.jwk("b", json!({}))]));
    bench.set_back();
    bench.advance(600);
    let number = || bench.issuers.get("main").unwrap().keys().generation_number(bench.context.clock.moment());
    until("the new keys", || number() == Some(2)).await;
    assert_eq!(bench.ask(&token).await, Err(Reason::KeyUnknown));
}

#[tokio::test]
async fn keys_are_used_no_longer_than_max_stale_even_if_the_clock_is_set_back() {
    let bench = Bench::new().await;
    let token = bench.token(&RSA, "a");
    bench.provider.on("/jwks", Reply::Answer(500, "text/plain", "".into()));
    bench.set_back();
    bench.advance(7_199);
    assert_eq!(bench.ask(&token).await, Ok(()));
    bench.advance(1);
    assert_eq!(bench.ask(&token).await, Err(Reason::IssuerUnavailable));
    let status = bench.issuers.get("main").unwrap().keys().status();
    assert_eq!((status.usable, status.age), (false, Some(2 * HOUR)));
}

#[tokio::test]
async fn an_unknown_key_is_looked_up_again_even_if_the_clock_was_set_back() {
    let bench = Bench::new().await;
    let token = bench.token(&OTHER_RSA, "b");
    assert_eq!(bench.ask(&token).await, Err(Reason::KeyUnknown));
    bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({}))]));
    bench.set_back();
    bench.advance(60);
    assert_eq!(bench.ask(&token).await, Ok(()));
}
