//! When keys are fetched and which are valid, with a manual clock.

mod outages;

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::super::{Accepts, Bucket, Context, Issuers, testing::*};
use crate::{
    config::{raw, resolver::Resolver},
    error::Reason,
};

const COOL_DOWN: Duration = Duration::from_secs(30);
const DISCOVERY: &str = "/.well-known/openid-configuration";

struct Bench {
    provider: Provider,
    context: Context,
    issuers: Issuers,
    accepts: Accepts,
}

impl Bench {
    async fn new(settings: Value) -> Self {
        let provider = Provider::with_keys(&[RSA.jwk("a", json!({}))]).await;
        let context = context();
        let (issuers, accepts) = ready(&Self::root(&provider, &settings), &context).await;
        Self { provider, context, issuers, accepts }
    }

    fn root(provider: &Provider, settings: &Value) -> Value {
        let issuer = json!({"name": "main", "issuer": provider.url, "audiences": ["doorward"]});
        json!({"issuers": [changed(issuer, settings)]})
    }

    fn token(&self, key: &TestKey, kid: &str, changes: Value) -> String {
        // Valid for longer than any test moves the clock.
        let changes = changed(json!({"exp": START + 86_000}), &changes);
        key.token(
            &json!({"alg": "RS256", "kid": kid, "typ": "at+jwt"}).to_string(),
            &claims(&self.provider.url, changes),
        )
    }

    async fn ask(&self, token: &str) -> Result<(), Reason> {
        outcome(&self.issuers, token, &self.accepts).await
    }

    /// The `If-None-Match` of the fetches of `path` so far.
    fn conditions(&self, path: &str) -> Vec<Option<String>> {
        let fetches = self.provider.got().into_iter().filter(|got| got.path == path);
        fetches.map(|got| Some(got.headers.get("if-none-match")?.to_str().unwrap().to_owned())).collect()
    }

    fn status(&self) -> super::super::key_cache::KeyStatus {
        self.issuers.get("main").unwrap().keys().status()
    }

    fn number(&self) -> Option<u64> {
        self.issuers.get("main").unwrap().keys().generation_number(self.context.clock.moment())
    }

    /// Advances the clock so that a refresh is due, and waits until it is done.
    async fn refresh(&self) {
        let fetches = self.provider.hits("/jwks");
        self.context.clock.advance(Duration::from_secs(3_600));
        let _ = self.status();
        until("the next fetch", || self.provider.hits("/jwks") > fetches || self.provider.hits("/jwks2") > 0).await;
        until("its end", || self.status().age == Some(Duration::ZERO) || self.status().last_error.is_some()).await;
    }
}

#[tokio::test]
async fn a_rotated_key_is_fetched_once_for_all_waiting_requests() {
    let bench = Bench::new(json!({})).await;
    assert_eq!(bench.provider.hits("/jwks"), 1);
    bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({}))]));
    let tokens: Vec<String> = (0..20).map(|n| bench.token(&OTHER_RSA, "b", json!({"jti": n.to_string()}))).collect();
    let asked = tokens.iter().map(|token| bench.ask(token));
    for outcome in join_all(asked).await {
        assert_eq!(outcome, Ok(()));
    }
    assert_eq!(bench.provider.hits("/jwks"), 2);
}

/// The budget is shared, however many issuers an attacker makes up keys for.
#[tokio::test]
async fn unknown_keys_cause_only_so_many_fetches_at_all_issuers_together() {
    for (rate, fetches) in [(0, 2), (1, 3)] {
        let provider = Provider::with_keys(&[RSA.jwk("a", json!({}))]).await;
        let mut context = context();
        context.refetches = Arc::new(Bucket::new(rate, 1, context.clock.moment()));
        let (issuers, accepts) = ready(&Bench::root(&provider, &json!({})), &context).await;
        let bench = Bench { provider, context, issuers, accepts };
        for kid in ["made-up", "another"] {
            let _ = bench.ask(&bench.token(&OTHER_RSA, kid, json!({}))).await;
            bench.context.clock.advance(COOL_DOWN);
        }
        assert_eq!(bench.provider.hits("/jwks"), fetches, "{rate} a second");
    }
}

/// oauth:5, peers:D7: the cool-down counts from the last attempt, successful or not.
#[tokio::test]
async fn unknown_keys_make_at_most_one_fetch_in_the_cool_down() {
    for broken in [false, true] {
        let bench = Bench::new(json!({})).await;
        if broken {
            bench.provider.on("/jwks", Reply::Answer(500, "text/plain", "no".into()));
        }
        for n in 0..50 {
            assert_eq!(bench.ask(&bench.token(&OTHER_RSA, &format!("k{n}"), json!({}))).await, Err(Reason::KeyUnknown));
        }
        assert_eq!(bench.provider.hits("/jwks"), 2);
        let unknown = bench.context.metrics.unknown_kids.clone();
        let unknown = || unknown.get_or_create(&[("issuer", "main".into())]).get();
        assert_eq!(unknown(), 50, "each of them");
        // The valid key works meanwhile.
        assert_eq!(bench.ask(&bench.token(&RSA, "a", json!({}))).await, Ok(()));
        assert_eq!(unknown(), 50);
        bench.context.clock.advance(COOL_DOWN);
        for n in 0..50 {
            assert_eq!(bench.ask(&bench.token(&OTHER_RSA, &format!("l{n}"), json!({}))).await, Err(Reason::KeyUnknown));
        }
        assert_eq!(bench.provider.hits("/jwks"), 3);
        // A key that was not found causes no further fetch for a minute.
        bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({}))]));
        bench.context.clock.advance(COOL_DOWN);
        assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "x", json!({}))).await, Err(Reason::KeyUnknown));
        bench.context.clock.advance(COOL_DOWN);
        assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "x", json!({}))).await, Err(Reason::KeyUnknown));
        assert_eq!(bench.provider.hits("/jwks"), 4);
    }
}

/// Only a fetch marks a key as missing: further requests for it do not prolong that.
#[tokio::test]
async fn a_key_that_is_asked_for_all_the_time_is_found_once_it_is_published() {
    let bench = Bench::new(json!({})).await;
    let (mut now, unknown) = (0, Err(Reason::KeyUnknown));
    for (at, published, outcome, fetches) in
        [(0, false, unknown, 2), (30, false, unknown, 2), (59, true, unknown, 2), (61, true, Ok(()), 3)]
    {
        bench.context.clock.advance(Duration::from_secs(at - now));
        now = at;
        if published {
            bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({})), OTHER_RSA.jwk("x", json!({}))]));
        }
        let token = bench.token(&OTHER_RSA, "x", json!({"jti": at.to_string()}));
        assert_eq!((bench.ask(&token).await, bench.provider.hits("/jwks")), (outcome, fetches), "at {at} s");
    }
}

/// A reload applied only to keys that were requested after it.
#[tokio::test]
async fn the_negative_cache_for_keys_can_be_set_and_a_reload_applies_it_at_once() {
    let mut bench = Bench::new(json!({"keys": {"negative_cache": "2m"}})).await;
    let mut now = 0;
    for (at, fetches, reload) in [
        (0, 2, None),
        (119, 2, None),
        (120, 3, Some("30s")),
        (149, 3, None),
        (150, 4, Some("1m")),
        (209, 4, None),
        (210, 5, None),
    ] {
        bench.context.clock.advance(Duration::from_secs(at - now));
        now = at;
        let token = bench.token(&OTHER_RSA, "x", json!({"jti": at.to_string()}));
        assert_eq!(bench.ask(&token).await, Err(Reason::KeyUnknown), "at {at} s");
        assert_eq!(bench.provider.hits("/jwks"), fetches, "at {at} s");
        if let Some(span) = reload {
            let root = Bench::root(&bench.provider, &json!({"keys": {"negative_cache": span}}));
            (bench.issuers, bench.accepts) = resolve(&root, Some(&bench.issuers), &bench.context);
        }
    }
}

/// With a short fetch timeout, a slow disk caused the refusal of a caller whose key arrived right after.
#[tokio::test(start_paused = true)]
async fn the_wait_for_a_key_allows_for_two_fetches_and_a_slow_disk() {
    let issuer =
        json!({"name": "main", "issuer": "https://idp.test", "audiences": ["doorward"], "keys": {"timeout": "100ms"}});
    let root: raw::Root = serde_json::from_value(json!({"issuers": [issuer]})).unwrap();
    let issuers = Issuers::resolve(&root, &mut Resolver::new(Path::new("/")), None, &context());
    // Nothing is fetched before the start.
    let started = tokio::time::Instant::now();
    assert!(!issuers.get("main").unwrap().keys().refetch(Some("new")).await);
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(400) + Duration::from_secs(5), "{waited:?}");
}

#[tokio::test]
async fn a_key_that_was_first_asked_for_within_the_cool_down_is_fetched_after_it() {
    let bench = Bench::new(json!({})).await;
    for kid in ["y", "x"] {
        assert_eq!(bench.ask(&bench.token(&OTHER_RSA, kid, json!({}))).await, Err(Reason::KeyUnknown), "{kid}");
    }
    assert_eq!(bench.provider.hits("/jwks"), 2, "of `x` nothing was asked");
    bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({})), OTHER_RSA.jwk("x", json!({}))]));
    bench.context.clock.advance(COOL_DOWN);
    assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "x", json!({}))).await, Ok(()));
    assert_eq!(bench.provider.hits("/jwks"), 3);
}

/// Made-up keys caused fetches, each of which delayed the next periodic one, and with it that of the discovery
/// document.
#[tokio::test]
async fn made_up_keys_put_off_no_renewal() {
    let bench = Bench::new(json!({})).await;
    assert_eq!(bench.provider.hits(DISCOVERY), 1);
    let moved = changed(bench.provider.metadata(), &json!({"jwks_uri": format!("{}/jwks2", bench.provider.url)}));
    bench.provider.on(DISCOVERY, Reply::json(&moved));
    bench.provider.on("/jwks2", Reply::keys(&[RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({}))]));
    // For slightly longer than the ten-minute lifetime of a set.
    for minute in 0..11 {
        bench.context.clock.advance(Duration::from_secs(60));
        let _ = bench.ask(&bench.token(&OTHER_RSA, &format!("made-up-{minute}"), json!({}))).await;
    }
    until("the new place of the keys", || bench.provider.hits("/jwks2") > 0).await;
    assert_eq!(bench.provider.hits(DISCOVERY), 2);
    until("the new keys", || {
        bench.issuers.get("main").unwrap().keys().generation_number(bench.context.clock.moment()) == Some(2)
    })
    .await;
    assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "b", json!({}))).await, Ok(()));
}

/// Checks that need no key are made first and cause no fetch.
#[tokio::test]
async fn a_token_that_is_bad_anyway_makes_no_fetch() {
    let bench = Bench::new(json!({})).await;
    for (changes, reason) in [
        (json!({"exp": START - 60, "iat": START - 90}), Reason::TokenExpired),
        (json!({"aud": "other"}), Reason::AudienceMismatch),
        (json!({"cnf": {}}), Reason::TokenInvalid),
    ] {
        assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "b", changes)).await, Err(reason));
    }
    assert_eq!(bench.provider.hits("/jwks"), 1);
    assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "b", json!({}))).await, Err(Reason::KeyUnknown));
    assert_eq!(bench.provider.hits("/jwks"), 2);
}

#[tokio::test]
async fn a_key_that_left_the_set_is_dead_at_once_even_for_cached_tokens() {
    let bench = Bench::new(json!({})).await;
    let token = bench.token(&RSA, "a", json!({}));
    assert_eq!(bench.ask(&token).await, Ok(()));
    bench.provider.on("/jwks", Reply::keys(&[OTHER_RSA.jwk("b", json!({}))]));
    bench.refresh().await;
    assert_eq!(bench.ask(&token).await, Err(Reason::KeyUnknown));
    assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "b", json!({}))).await, Ok(()));
}

/// Streams end with their key, and must not end because of a new set alone.
#[tokio::test]
async fn the_key_of_a_caller_is_lost_once_it_has_left_the_set_and_by_nothing_else() {
    let (own, other) = (RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({})));
    for (what, reply, is_lost) in [
        ("a key more", Reply::keys(&[other.clone(), own.clone()]), false),
        ("the same key described otherwise", Reply::keys(&[RSA.jwk("a", json!({"x5t": "zz"}))]), false),
        ("500", Reply::Answer(500, "text/plain", "".into()), false),
        ("no usable key", Reply::keys(&[]), false),
        ("gone", Reply::keys(&[other]), true),
        ("another key under its name", Reply::keys(&[OTHER_RSA.jwk("a", json!({}))]), true),
        ("under another name", Reply::keys(&[RSA.jwk("b", json!({}))]), true),
    ] {
        let bench = Bench::new(json!({})).await;
        let token = bench.token(&RSA, "a", json!({}));
        let caller = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await.unwrap();
        assert!(!bench.issuers.have_lost_key_of(&caller), "{what}: before");
        bench.provider.on("/jwks", reply);
        bench.refresh().await;
        assert!(!bench.issuers.have_lost_key_of(&caller), "{what}: by one answer alone");
        let number = bench.number();
        bench.refresh().await;
        assert_eq!(bench.issuers.have_lost_key_of(&caller), is_lost, "{what}");
        assert_eq!(bench.number(), number, "{what}: the same keys");
        let again = bench.accepts.judge_again(&caller).unwrap();
        assert_eq!(bench.issuers.have_lost_key_of(&again), is_lost, "{what}: as known under other settings");
    }
    let bench = Bench::new(json!({"keys": {"max_stale": "2h"}})).await;
    let caller =
        bench.issuers.authenticate(&bench.token(&RSA, "a", json!({})), &bench.accepts, &nothing).await.unwrap();
    bench.provider.on("/jwks", Reply::Answer(500, "text/plain", "".into()));
    bench.context.clock.advance(Duration::from_secs(7_200));
    assert!(!bench.status().usable && !bench.issuers.have_lost_key_of(&caller), "too old to be used");
}

/// Supplied keys need no second answer.
#[tokio::test]
async fn an_own_key_that_is_no_longer_supplied_is_lost_at_once() {
    let bench = Bench::new(json!({})).await;
    let (own, other) = (RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({})));
    let keys = bench.issuers.get("main").unwrap().keys();
    keys.supply(json!({"keys": [own, other.clone()]}).to_string().as_bytes());
    let caller =
        bench.issuers.authenticate(&bench.token(&RSA, "a", json!({})), &bench.accepts, &nothing).await.unwrap();
    assert!(!bench.issuers.have_lost_key_of(&caller), "both are there");
    keys.supply(json!({"keys": [other]}).to_string().as_bytes());
    assert!(bench.issuers.have_lost_key_of(&caller), "it is not there any more");
}

/// A proxy cache may briefly serve an old set, and streams that end do not come back with the key.
#[tokio::test]
async fn one_answer_without_a_key_ends_no_stream_and_another_is_asked_for_soon() {
    let bench = Bench::new(json!({})).await;
    let token = bench.token(&RSA, "a", json!({}));
    let caller = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await.unwrap();
    let second_answer = async || {
        let fetches = bench.provider.hits("/jwks");
        bench.context.clock.advance(COOL_DOWN);
        let _ = bench.status();
        until("another answer", || bench.provider.hits("/jwks") > fetches).await;
        until("its end", || bench.status().age == Some(Duration::ZERO)).await;
    };
    for (what, key, is_lost) in [("a slip", &RSA, false), ("withdrawn", &OTHER_RSA, true)] {
        bench.provider.on("/jwks", Reply::keys(&[OTHER_RSA.jwk("b", json!({}))]));
        bench.refresh().await;
        // This causes a fetch at once, which does not count as a second answer.
        assert_eq!(bench.ask(&token).await, Err(Reason::KeyUnknown), "{what}: requests are refused at once");
        assert!(!bench.issuers.have_lost_key_of(&caller), "{what}: by one answer alone");
        bench.provider.on("/jwks", Reply::keys(&[key.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({}))]));
        second_answer().await;
        assert_eq!(bench.issuers.have_lost_key_of(&caller), is_lost, "{what}");
        assert_eq!(bench.ask(&token).await.is_ok(), !is_lost, "{what}");
    }
}

#[tokio::test]
async fn the_same_kid_with_a_new_key_counts_after_the_refresh() {
    let bench = Bench::new(json!({})).await;
    let (old, new) = (bench.token(&RSA, "a", json!({})), bench.token(&OTHER_RSA, "a", json!({})));
    bench.provider.on("/jwks", Reply::keys(&[OTHER_RSA.jwk("a", json!({}))]));
    assert_eq!((bench.ask(&old).await, bench.ask(&new).await), (Ok(()), Err(Reason::SignatureInvalid)));
    bench.refresh().await;
    assert_eq!((bench.ask(&old).await, bench.ask(&new).await), (Err(Reason::SignatureInvalid), Ok(())));
}

#[tokio::test]
async fn the_generation_changes_with_the_usable_keys_only() {
    let bench = Bench::new(json!({})).await;
    let number = || bench.issuers.get("main").unwrap().keys().generation_number(bench.context.clock.moment());
    assert_eq!(number(), Some(1));
    let unusable = json!({"kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA"});
    bench.provider.on("/jwks", Reply::keys(&[unusable, RSA.jwk("a", json!({"x5t": "zz"}))]));
    bench.refresh().await;
    assert_eq!(number(), Some(1));
    bench.provider.on("/jwks", Reply::keys(&[RSA.jwk("a", json!({})), OTHER_RSA.jwk("b", json!({}))]));
    bench.refresh().await;
    assert_eq!(number(), Some(2));
}

/// A 304 response is a success: the set is confirmed as of now.
#[tokio::test]
async fn a_set_that_has_not_changed_is_not_sent_again() {
    let bench = Bench::new(json!({"keys": {"max_stale": "2h"}})).await;
    let keys = json!({"keys": [RSA.jwk("a", json!({}))]}).to_string();
    bench.provider.on("/jwks", Reply::Versioned("\"1\"", keys.into()));
    let discovery = bench.provider.metadata().to_string();
    bench.provider.on(DISCOVERY, Reply::Versioned("\"d\"", discovery.into()));
    bench.refresh().await;
    let token = bench.token(&RSA, "a", json!({}));
    for _ in 0..3 {
        bench.refresh().await;
        assert_eq!(bench.status().last_error, None);
        assert_eq!(bench.ask(&token).await, Ok(()));
    }
    let tag = |tag: &str| Some(tag.to_owned());
    assert_eq!(bench.conditions("/jwks"), [None, None, tag("\"1\""), tag("\"1\""), tag("\"1\"")]);
    assert_eq!(bench.conditions(DISCOVERY).last(), Some(&tag("\"d\"")));
    let number = bench.issuers.get("main").unwrap().keys().generation_number(bench.context.clock.moment());
    assert_eq!(number, Some(1));

    // For an unknown key the request is unconditional.
    assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "b", json!({}))).await, Err(Reason::KeyUnknown));
    assert_eq!(bench.conditions("/jwks").last(), Some(&None));

    // A new set replaces the old one, and the old key is refused.
    let keys = json!({"keys": [OTHER_RSA.jwk("b", json!({}))]}).to_string();
    bench.provider.on("/jwks", Reply::Versioned("\"2\"", keys.into()));
    bench.refresh().await;
    assert_eq!(bench.ask(&token).await, Err(Reason::KeyUnknown));
    assert_eq!(bench.ask(&bench.token(&OTHER_RSA, "b", json!({}))).await, Ok(()));
}

/// An entity tag belongs to one address: at another it may belong to other keys.
#[tokio::test]
async fn a_set_at_another_place_is_asked_for_whole() {
    let set = |key: Value| Reply::Versioned("\"1\"", json!({"keys": [key]}).to_string().into());
    for (place, condition, good) in [("/jwks", Some("\"1\""), [true, false]), ("/jwks2", None, [false, true])] {
        let bench = Bench::new(json!({})).await;
        bench.provider.on("/jwks", set(RSA.jwk("a", json!({}))));
        bench.refresh().await;
        bench.provider.on("/jwks2", set(OTHER_RSA.jwk("b", json!({}))));
        let places = json!({"jwks_uri": format!("{}{place}", bench.provider.url)});
        bench.provider.on(DISCOVERY, Reply::json(&changed(bench.provider.metadata(), &places)));
        bench.refresh().await;
        assert_eq!(bench.conditions(place).last(), Some(&condition.map(str::to_owned)), "{place}");
        let tokens = [bench.token(&RSA, "a", json!({})), bench.token(&OTHER_RSA, "b", json!({}))];
        assert_eq!([bench.ask(&tokens[0]).await.is_ok(), bench.ask(&tokens[1]).await.is_ok()], good, "{place}");
    }
}

/// The request was not conditional, so 304 is not valid.
#[tokio::test]
async fn an_answer_of_304_to_a_plain_request_is_a_failure() {
    let bench = Bench::new(json!({})).await;
    bench.provider.on("/jwks", Reply::Answer(304, "application/json", "".into()));
    bench.refresh().await;
    assert!(bench.status().last_error.unwrap().contains("304"));
}

/// A discovery document may name any address, and the token may have other rights than reading keys.
#[tokio::test]
async fn the_token_for_keys_goes_to_no_other_origin_that_discovery_names() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "s3cret").unwrap();
    for (what, is_elsewhere, is_ours, sent) in [
        ("discovery names the issuer's own", false, false, Some("Bearer s3cret")),
        ("discovery names another", true, false, None),
        ("the configuration names another", true, true, Some("Bearer s3cret")),
    ] {
        let keys = [RSA.jwk("a", json!({}))];
        let (provider, other) = (Provider::with_keys(&keys).await, Provider::with_keys(&keys).await);
        let asked = if is_elsewhere { &other } else { &provider };
        let place = format!("{}/jwks", asked.url);
        let document = changed(provider.metadata(), &json!({"jwks_uri": place}));
        provider.on(DISCOVERY, Reply::json(&document));
        let mut settings = json!({"bearer": {"file": token.path()}});
        if is_ours {
            settings["url"] = place.into();
        }
        let _issuers = ready(&Bench::root(&provider, &json!({"keys": settings})), &context()).await;
        let fetch = asked.got().into_iter().find(|got| got.path == "/jwks").unwrap();
        assert_eq!(fetch.headers.get("authorization").map(|value| value.to_str().unwrap()), sent, "{what}");
    }
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_an_issuer_whose_key_settings_stay() {
    let bench = Bench::new(json!({})).await;
    let token = bench.token(&RSA, "a", json!({}));
    assert_eq!(bench.ask(&token).await, Ok(()));
    let changed = Bench::root(&bench.provider, &json!({"audiences": ["renamed"]}));
    let (issuers, accepts) = resolve(&changed, Some(&bench.issuers), &bench.context);
    assert!(issuers.get("main").unwrap().keys().status().usable);
    // Only keys are retained; tokens are checked by the new settings.
    let rejection = issuers.authenticate(&token, &accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::AudienceMismatch);
    assert_eq!(bench.provider.hits("/jwks"), 1);

    let other = Bench::root(&bench.provider, &json!({"algorithms": ["ES256", "RS256"]}));
    let (issuers, _) = resolve(&other, Some(&bench.issuers), &bench.context);
    until("a new fetch", || issuers.get("main").unwrap().keys().status().usable).await;
    assert_eq!(bench.provider.hits("/jwks"), 2);
}

/// Runs all futures concurrently.
pub async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut done = true;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => done = false,
                }
            }
        }
        if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().map(|(_, output)| output.unwrap()).collect()
}
