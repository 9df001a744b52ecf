//! The requirements on introspection answers, and the principals of their tokens.

mod asking;

use std::{path::Path, time::Duration};

use serde_json::{Value, json};

use super::super::{Accepts, Context, Issuers, jwt::Unverified, signed_answer::MEDIA_TYPE, testing::*};
use crate::{clock::Timestamp, error::Reason, sha256::sha256};

struct Bench {
    provider: Provider,
    context: Context,
    issuers: Issuers,
    accepts: Accepts,
    secret: tempfile::NamedTempFile,
}

impl Bench {
    async fn new(introspection: Value) -> Self {
        Self::with(introspection, json!({})).await
    }

    async fn with(introspection: Value, issuer: Value) -> Self {
        let context = context();
        let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "s3cret: ü\n").unwrap();
        let root = Self::root(&provider, secret.path(), &introspection, &issuer);
        let (issuers, accepts) = ready(&root, &context).await;
        let bench = Self { provider, context, issuers, accepts, secret };
        bench.answer(json!({}));
        bench
    }

    fn root(provider: &Provider, secret: &Path, introspection: &Value, issuer: &Value) -> Value {
        let standard = json!({"mode": "opaque", "client": {"id": "door:ward", "secret": {"file": secret}}});
        let plain = json!({
            "name": "main", "issuer": provider.url, "audiences": ["doorward"],
            "clients": [{"id": "listed", "subject": "robot"}, {"id": "bare"}],
            "introspection": changed(standard, introspection),
        });
        json!({"issuers": [changed(plain, issuer)]})
    }

    /// Reloads with other settings of introspection.
    fn reload(&mut self, introspection: &Value) {
        let root = Self::root(&self.provider, self.secret.path(), introspection, &json!({}));
        (self.issuers, self.accepts) = resolve(&root, Some(&self.issuers), &self.context);
    }

    /// Sets a valid answer with changes.
    fn answer(&self, changes: Value) {
        let answer = json!({
            "active": true, "iss": self.provider.url, "sub": "alice", "aud": ["doorward"], "client_id": "cli",
            "scope": "tekton:read", "exp": START + 600, "token_type": "Bearer",
        });
        self.provider.on("/introspect", Reply::json(&changed(answer, &changes)));
    }

    async fn ask(&self, token: &str) -> Result<(), Reason> {
        outcome(&self.issuers, token, &self.accepts).await
    }

    fn calls(&self) -> usize {
        self.provider.hits("/introspect")
    }
}

#[tokio::test]
async fn an_answer_counts_only_if_it_says_all_that_is_needed() {
    let bench = Bench::new(json!({})).await;
    let answer = |changes: Value| (changes, None);
    let refused = |changes: Value, reason| (changes, Some(reason));
    for (number, (changes, reason)) in [
        answer(json!({})),
        answer(json!({"aud": "doorward"})),
        answer(json!({"iss": null, "exp": null, "token_type": null})),
        answer(json!({"aud": null, "client_id": "listed"})),
        answer(json!({"sub": null, "client_id": "listed"})),
        answer(json!({"sub": null, "client_id": "listed", "username": null})),
        refused(json!({"active": false}), Reason::TokenInactive),
        refused(json!({"active": null}), Reason::IssuerUnavailable),
        refused(json!({"active": "true"}), Reason::IssuerUnavailable),
        refused(json!({"active": 1}), Reason::IssuerUnavailable),
        refused(json!({"exp": START - 31}), Reason::TokenExpired),
        refused(json!({"exp": "soon"}), Reason::TokenInvalid),
        refused(json!({"nbf": START + 31}), Reason::TokenNotYetValid),
        refused(json!({"aud": "somebody"}), Reason::AudienceMismatch),
        refused(json!({"aud": null}), Reason::AudienceMismatch),
        refused(json!({"aud": 5}), Reason::TokenInvalid),
        refused(json!({"iss": "https://evil.example"}), Reason::IssuerUnknown),
        refused(json!({"iss": 5}), Reason::IssuerUnknown),
        refused(json!({"sub": null}), Reason::TokenInvalid),
        refused(json!({"sub": null, "client_id": "bare"}), Reason::TokenInvalid),
        refused(json!({"sub": ""}), Reason::TokenInvalid),
        refused(json!({"token_type": "refresh_token"}), Reason::TokenInvalid),
        refused(json!({"token_use": "refresh_token"}), Reason::TokenInvalid),
        refused(json!({"token_usage": "refresh_token"}), Reason::TokenInvalid),
        refused(json!({"typ": "Refresh"}), Reason::TokenInvalid),
        refused(json!({"token_type": "DPoP"}), Reason::TokenInvalid),
        refused(json!({"cnf": {"x5t#S256": "abc"}}), Reason::TokenInvalid),
        refused(json!({"groups": ["system:masters"]}), Reason::IdentityRefused),
    ]
    .into_iter()
    .enumerate()
    {
        bench.answer(changes.clone());
        assert_eq!(bench.ask(&format!("opaque-{number}")).await.err(), reason, "{changes}");
    }
}

/// For a code or a refresh token, Spring Authorization Server returns only `active` and the client; oidc-provider also
/// returns the person of a refresh token.
#[tokio::test]
async fn codes_and_refresh_tokens_that_are_active_are_no_access_tokens() {
    let bench = Bench::new(json!({})).await;
    let bare = json!({"iss": null, "aud": null, "client_id": "listed", "scope": null});
    for (number, (what, changes, refused)) in [
        ("an access token", json!({}), false),
        ("in small letters", json!({"token_type": "bearer"}), false),
        ("of the client itself", json!({"sub": null}), false),
        ("a device code", json!({"sub": null, "token_type": null}), true),
        ("a refresh token", json!({"token_type": null, "scope": "openid offline_access"}), true),
        ("no token to use", json!({"token_type": "N_A"}), true),
        ("a refresh token of Dex and Hydra", json!({"token_use": "refresh_token"}), true),
        ("a refresh token of Keycloak", json!({"typ": "Refresh"}), true),
        ("for nobody", json!({"aud": [], "token_type": null}), true),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = bare.as_object().unwrap().clone().into_iter().chain(changes.as_object().unwrap().clone());
        bench.answer(Value::Object(answer.collect()));
        let outcome = bench.ask(&format!("opaque-{number}")).await;
        assert_eq!(outcome.is_err(), refused, "{what}: {outcome:?}");
    }
}

/// A short token had almost no weight, whatever the answer, so the cache was unbounded.
#[tokio::test]
async fn the_cached_size_of_a_token_includes_its_introspection_answer() {
    let groups: Vec<String> = (0..500).map(|number| format!("a-group-of-the-directory-{number}")).collect();
    let told = groups.iter().map(String::len).sum::<usize>();
    let bench = Bench::new(json!({})).await;
    bench.answer(json!({"groups": groups}));
    let (issuer, now) = (bench.issuers.get("main").unwrap(), Timestamp::from_secs(START));
    let opaque = issuer.authenticate_opaque("opaque", sha256(&[b"opaque"]), now).await.unwrap();
    assert!(opaque.size as usize > told, "{} bytes", opaque.size);

    let bench = Bench::new(json!({"mode": "always"})).await;
    bench.answer(json!({"groups": groups}));
    let issuer = bench.issuers.get("main").unwrap();
    let token = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, json!({})));
    let parsed = Unverified::parse(&token).unwrap();
    let jwt = issuer.authenticate_jwt(&token, parsed, sha256(&[token.as_bytes()]), now).await.unwrap();
    assert!(jwt.size as usize > told + token.len(), "{} bytes", jwt.size);
}

#[tokio::test]
async fn an_opaque_token_lives_no_longer_than_max_lifetime() {
    let bench = Bench::with(json!({}), json!({"max_lifetime": "1h"})).await;
    for (number, (changes, reason)) in [
        (json!({"iat": START, "exp": START + 3600}), None),
        (json!({"iat": START - 1, "exp": START + 3600}), Some(Reason::TokenInvalid)),
        (json!({"exp": START + 3601}), Some(Reason::TokenInvalid)),
        (json!({"iat": START - 7200, "exp": null}), None),
    ]
    .into_iter()
    .enumerate()
    {
        bench.answer(changes.clone());
        assert_eq!(bench.ask(&format!("opaque-{number}")).await.err(), reason, "{changes}");
    }
}

/// django-oauth-toolkit names people only by `username`: all would be their client, with its rights.
#[tokio::test]
async fn a_person_without_a_subject_is_not_mistaken_for_the_client() {
    let bench = Bench::new(json!({})).await;
    for username in ["alice", "listed"] {
        bench.answer(json!({"sub": null, "client_id": "listed", "username": username}));
        let token = format!("opaque-{username}");
        let rejection = bench.issuers.authenticate(&token, &bench.accepts, &nothing).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::TokenInvalid);
        assert!(precise(&rejection).contains("`sub` is nothing"), "{}", precise(&rejection));
        assert!(precise(&rejection).contains("beside `username`"), "{}", precise(&rejection));
    }
    bench.answer(json!({"client_id": "listed", "username": "alice"}));
    let principal = bench.issuers.authenticate("twin", &bench.accepts, &nothing).await.unwrap();
    assert_eq!(&*principal.subject, "alice");
}

/// Doorkeeper returns no more than this for any token, so people who signed in with the client counted as the client.
#[tokio::test]
async fn a_token_without_a_subject_is_the_clients_own_only_where_its_settings_name_the_subject() {
    let bench = Bench::new(json!({})).await;
    let ask = async |client: &str| {
        bench.answer(json!({"iss": null, "aud": null, "sub": null, "client_id": client}));
        bench.issuers.authenticate(&format!("opaque-{client}"), &bench.accepts, &nothing).await
    };
    let rejection = ask("bare").await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::TokenInvalid);
    assert!(precise(&rejection).contains("`subject` of its client"), "{}", precise(&rejection));
    let own = ask("listed").await.unwrap();
    assert_eq!((&*own.subject, own.client.as_deref()), ("robot", Some("listed")));
    // A stream is rechecked in the same way.
    for (settings, subject) in [
        (json!({"id": "listed", "subject": "robot"}), Some("robot")),
        (json!({"id": "listed", "subject": "android"}), Some("android")),
        (json!({"id": "listed"}), None),
    ] {
        let later = Bench::with(json!({}), json!({"clients": [settings]})).await;
        let known = later.accepts.judge_again(&own);
        assert_eq!(known.as_ref().map(|known| &*known.subject), subject, "{settings}");
    }
}

#[tokio::test]
async fn a_token_is_taken_until_the_moment_at_which_its_streams_end_and_no_longer() {
    for skew in [0, 30, 60] {
        let bench = Bench::with(json!({}), json!({"clock_skew": format!("{skew}s")})).await;
        bench.answer(json!({"exp": START + 10}));
        let text = claims(&bench.provider.url, json!({"exp": START + 10}));
        let signed = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &text);
        let ask = async |token: &str| bench.issuers.authenticate(token, &bench.accepts, &nothing).await;
        for token in ["opaque", &*signed] {
            let principal = ask(token).await.unwrap();
            let (end, last) = (Timestamp::from_secs(START + 10), Timestamp::from_secs(START + 10 + skew));
            assert_eq!((principal.expires, principal.ends()), (end, last), "{skew} s, {token}");
        }
        bench.context.clock.advance(Duration::from_millis(u64::try_from(skew).unwrap() * 1000 + 9_999));
        for token in ["opaque", &*signed] {
            ask(token).await.unwrap();
        }
        bench.context.clock.advance(Duration::from_millis(1));
        for token in ["opaque", &*signed] {
            assert_eq!(ask(token).await.unwrap_err().reason(), Reason::TokenExpired, "{skew} s, {token}");
        }
    }
}

#[tokio::test]
async fn an_answer_must_have_the_claims_that_tokens_must_have() {
    let bench = Bench::with(json!({}), json!({"required_claims": {"tid": ["t-1"]}})).await;
    for (tenant, reason) in
        [(json!("t-1"), None), (json!("t-2"), Some(Reason::TokenInvalid)), (json!(null), Some(Reason::TokenInvalid))]
    {
        bench.answer(json!({"tid": tenant}));
        assert_eq!(bench.ask(&format!("opaque-{tenant}")).await.err(), reason, "{tenant}");
    }
}

/// Listing a client means that its tokens are for Doorward, but not for which audience.
#[tokio::test]
async fn a_token_without_an_audience_does_not_fit_a_route_that_wants_a_certain_one() {
    let bench = Bench::with(json!({}), json!({"audiences": ["a", "b"]})).await;
    let narrow = bench.accepts.clone().with_audiences(&["b".to_owned()]);
    let rows = [
        (json!({"aud": null, "client_id": "listed"}), None, Some(Reason::AudienceMismatch)),
        (json!({"aud": "b", "client_id": "listed"}), None, None),
        (json!({"aud": "a", "client_id": "listed"}), None, Some(Reason::AudienceMismatch)),
        (json!({"aud": "b"}), None, None),
        (json!({"aud": null}), Some(Reason::AudienceMismatch), Some(Reason::AudienceMismatch)),
    ];
    for (number, (changes, everywhere, at_b)) in rows.into_iter().enumerate() {
        bench.answer(changes.clone());
        for (accepts, refused) in [(&bench.accepts, everywhere), (&narrow, at_b)] {
            let outcome = bench.issuers.authenticate(&format!("opaque-{number}"), accepts, &nothing).await;
            assert_eq!(outcome.as_ref().err().map(|rejection| rejection.reason()), refused, "{changes}");
            // A stream is rechecked in the same way.
            let known = outcome.ok().and_then(|known| narrow.judge_again(&known));
            assert_eq!(known.is_some(), at_b.is_none(), "{changes}");
        }
    }
}

/// RFC 9701: an answer must be a recent JWT of the issuer, for us.
#[tokio::test]
async fn a_signed_answer_is_believed_only_as_the_issuer_signed_it_for_us() {
    let bench = Bench::new(json!({"signed": true})).await;
    let url = bench.provider.url.clone();
    let header = json!({"alg": "RS256", "kid": "rsa", "typ": "token-introspection+jwt"});
    let told = json!({"active": true, "sub": "alice", "aud": "doorward", "exp": START + 600});
    let good = json!({"iss": url, "aud": "door:ward", "iat": START, "token_introspection": told});
    let answer = |headers: Value, claims: Value| {
        RSA.token(&changed(header.clone(), &headers).to_string(), &changed(good.clone(), &claims).to_string())
    };
    let signed = |text: String| Reply::Answer(200, "application/token-introspection+jwt; charset=utf-8", text.into());
    let own = Some(Reason::IssuerUnavailable);
    let forged = {
        let text = answer(json!({}), json!({}));
        let (rest, signature) = text.rsplit_once('.').unwrap();
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        format!("{rest}.{first}{}", &signature[1..])
    };
    // An algorithm that is not accepted causes no fetch of keys.
    let fetched = bench.provider.hits("/jwks");
    for (what, header, fetches) in [("algorithm", json!({"alg": "RS384"}), 0), ("key", json!({"kid": "another"}), 1)] {
        bench.provider.on("/introspect", signed(answer(header, json!({}))));
        assert_eq!(bench.ask(&format!("unknown-{what}")).await.err(), own, "{what}");
        assert_eq!(bench.provider.hits("/jwks") - fetched, fetches, "{what}");
    }
    for (number, (what, reply, refused)) in [
        ("good", signed(answer(json!({}), json!({}))), None),
        ("long typ", signed(answer(json!({"typ": MEDIA_TYPE}), json!({}))), None),
        ("for our audience", signed(answer(json!({}), json!({"aud": ["other", "doorward"]}))), None),
        ("clock off", signed(answer(json!({}), json!({"iat": START - 89}))), None),
        (
            "inactive",
            signed(answer(json!({}), json!({"token_introspection": {"active": false}}))),
            Some(Reason::TokenInactive),
        ),
        (
            "of another",
            signed(answer(json!({}), json!({"token_introspection": changed(told.clone(), &json!({"aud": "other"}))}))),
            Some(Reason::AudienceMismatch),
        ),
        ("JSON", Reply::json(&told), own),
        ("JSON as signed", signed(told.to_string()), own),
        ("JWT as JSON", Reply::Answer(200, "application/json", answer(json!({}), json!({})).into()), own),
        ("forged", signed(forged), own),
        ("unknown key", signed(answer(json!({"kid": "other"}), json!({}))), own),
        ("an access token", signed(answer(json!({"typ": "at+jwt"}), json!({}))), own),
        ("no typ", signed(answer(json!({"typ": null}), json!({}))), own),
        ("like a typ", signed(answer(json!({"typ": "x/token-introspection+jwt"}), json!({}))), own),
        ("another issuer", signed(answer(json!({}), json!({"iss": "https://evil.example"}))), own),
        ("no issuer", signed(answer(json!({}), json!({"iss": null}))), own),
        ("for another", signed(answer(json!({}), json!({"aud": "other"}))), own),
        ("for nobody", signed(answer(json!({}), json!({"aud": null}))), own),
        ("of yesterday", signed(answer(json!({}), json!({"iat": START - 91}))), own),
        ("of tomorrow", signed(answer(json!({}), json!({"iat": START + 31}))), own),
        ("of no time", signed(answer(json!({}), json!({"iat": null}))), own),
        ("nothing told", signed(answer(json!({}), json!({"token_introspection": null}))), own),
        ("active as text", signed(answer(json!({}), json!({"token_introspection": {"active": "true"}}))), own),
    ]
    .into_iter()
    .enumerate()
    {
        bench.provider.on("/introspect", reply);
        assert_eq!(bench.ask(&format!("opaque-{number}")).await.err(), refused, "{what}");
        // The twin, which also shows that the issuer is still queried.
        bench.provider.on("/introspect", signed(answer(json!({}), json!({}))));
        assert_eq!(bench.ask(&format!("twin-{number}")).await, Ok(()), "the twin of {what}");
    }
}
