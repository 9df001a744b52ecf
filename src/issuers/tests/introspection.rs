//! Opaque tokens: what an introspection answer must say, and how often it is asked for.

use std::{collections::HashMap, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{Accepts, Context, Issuers, discovery::Metadata, jwt::Unverified, signed_answer::MEDIA_TYPE, testing::*},
    key_cache::join_all,
};
use crate::{clock::Timestamp, error::Reason, sha256::sha256};

struct Bench {
    provider: Provider,
    context: Context,
    issuers: Issuers,
    accepts: Accepts,
    _secret: tempfile::NamedTempFile,
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
        let standard = json!({"mode": "opaque", "client": {"id": "door:ward", "secret": {"file": secret.path()}}});
        let plain = json!({
            "name": "main", "issuer": provider.url, "audiences": ["doorward"],
            "clients": [{"id": "listed", "subject": "robot"}, {"id": "bare"}],
            "introspection": changed(standard, &introspection),
        });
        let (issuers, accepts) = ready(&json!({"issuers": [changed(plain, &issuer)]}), &context).await;
        let bench = Self { provider, context, issuers, accepts, _secret: secret };
        bench.answer(json!({}));
        bench
    }

    /// A good answer with changes.
    fn answer(&self, changes: Value) {
        let answer = json!({
            "active": true, "iss": self.provider.url, "sub": "alice", "aud": ["doorward"], "client_id": "cli",
            "scope": "tekton:read", "exp": START + 600, "token_type": "Bearer",
        });
        self.provider.on("/introspect", Reply::json(&changed(answer, &changes)));
    }

    async fn ask(&self, token: &str) -> Result<(), Reason> {
        let outcome = self.issuers.authenticate(token, &self.accepts, &nothing).await;
        outcome.map(|_| ()).map_err(|rejection| rejection.reason())
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

/// Spring Authorization Server says no more of a code or a refresh token than that it is active and whose client's; oidc-provider names the
/// person of a refresh token too.
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

/// A short token weighed next to nothing, whatever was told of it, so that what is kept had no bound.
#[tokio::test]
async fn a_token_weighs_what_was_told_of_it_as_well() {
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

/// django-oauth-toolkit names people by `username` alone: all would be their client, with what is given to it.
#[tokio::test]
async fn a_person_of_whom_no_subject_is_told_is_not_taken_for_the_client() {
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

/// Doorkeeper tells no more than this of any token, a person's too: whoever signed in with the client was the client.
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
    // A stream is judged as a request is.
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

/// It is a credential of ours, which opens every route that takes sessions.
#[tokio::test]
async fn the_handle_of_a_session_is_sent_to_no_issuer() {
    let bench = Bench::new(json!({})).await;
    bench.ask("opaque").await.unwrap();
    assert_eq!(bench.calls(), 1, "the twin");
    for handle in ["dws_NwTiQmDA5KvEe0yHTTO1rYsAmiu8c2m7C6MGZw7cXnk", "dws_a.b.c"] {
        assert_eq!(bench.ask(handle).await, Err(Reason::CredentialMalformed), "{handle}");
    }
    assert_eq!(bench.calls(), 1);
}

#[tokio::test]
async fn what_is_no_answer_is_our_trouble_and_is_not_remembered() {
    let duplicate = r#"{"active":false,"active":true,"sub":"alice","aud":"doorward"}"#;
    let large = format!(r#"{{"active":true,"pad":"{}"}}"#, "x".repeat(100_000));
    for (what, reply) in [
        ("HTML", Reply::Answer(200, "text/html", "<html>".into())),
        ("JSON as text", Reply::Answer(200, "text/plain", r#"{"active":true}"#.into())),
        ("500", Reply::Answer(500, "application/json", r#"{"active":true}"#.into())),
        ("401", Reply::Answer(401, "application/json", "{}".into())),
        ("404", Reply::Answer(404, "application/json", r#"{"active":true}"#.into())),
        ("repeated member", Reply::Answer(200, "application/json", duplicate.into())),
        ("array", Reply::Answer(200, "application/json", "[]".into())),
        ("large", Reply::Answer(200, "application/json", large.into())),
        ("10 MB", Reply::Promise(10 << 20)),
        ("endless", Reply::Endless),
        ("redirect", Reply::Redirect("/elsewhere".to_owned())),
        ("hang", Reply::Hang),
        ("slow", Reply::Drip),
    ] {
        let bench = Bench::new(json!({"timeout": "100ms"})).await;
        bench.provider.on("/introspect", reply);
        let started = std::time::Instant::now();
        assert_eq!(bench.ask("opaque").await, Err(Reason::IssuerUnavailable), "{what}");
        assert!(started.elapsed() < Duration::from_secs(5), "{what}");
        assert!(bench.calls() <= 2, "{what}");
        assert_eq!(bench.provider.hits("/elsewhere"), 0);
        bench.answer(json!({}));
        assert_eq!(bench.ask("opaque").await, Ok(()), "{what}");
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

/// A listed client vouches that its token is for us, and not for which of our audiences.
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
            // A stream is judged as a request is.
            let known = outcome.ok().and_then(|known| narrow.judge_again(&known));
            assert_eq!(known.is_some(), at_b.is_none(), "{changes}");
        }
    }
}

/// Facts live for seconds.
#[tokio::test]
async fn answers_are_remembered_for_their_time() {
    let bench = Bench::new(json!({})).await;
    for _ in 0..3 {
        assert_eq!(bench.ask("good").await, Ok(()));
    }
    assert_eq!(bench.calls(), 1);
    bench.answer(json!({"active": false}));
    bench.context.clock.advance(Duration::from_secs(29));
    assert_eq!(bench.ask("good").await, Ok(()));
    bench.context.clock.advance(Duration::from_secs(1));
    for _ in 0..3 {
        assert_eq!(bench.ask("good").await, Err(Reason::TokenInactive), "oauth:27");
    }
    assert_eq!(bench.calls(), 2);
    bench.answer(json!({}));
    bench.context.clock.advance(Duration::from_secs(10));
    assert_eq!(bench.ask("good").await, Ok(()));
    assert_eq!(bench.calls(), 3);
}

#[tokio::test]
async fn many_requests_make_one_call_which_survives_whoever_began_it() {
    let bench = Bench::new(json!({})).await;
    for outcome in join_all((0..50).map(|_| bench.ask("good"))).await {
        assert_eq!(outcome, Ok(()));
    }
    assert_eq!(bench.calls(), 1);

    bench.provider.on("/introspect", Reply::Hang);
    // The first to ask leaves while the call is under way.
    let first = tokio::time::timeout(Duration::from_millis(20), bench.ask("other")).await;
    assert!(first.is_err());
    until("the call", || bench.calls() == 2).await;
    bench.answer(json!({}));
    // The call goes on: its second try answers the one who came later.
    assert_eq!(bench.ask("other").await, Ok(()));
    assert_eq!(bench.calls(), 3);
}

/// Strangers meet their bucket, and those who were seen get through.
#[tokio::test]
async fn a_flood_of_unknown_tokens_leaves_others_unaffected() {
    let bench = Bench::new(json!({})).await;
    assert_eq!(bench.ask("regular").await, Ok(()));
    bench.answer(json!({"active": false}));
    let mut refused = 0;
    for n in 0..10_000 {
        match bench.ask(&format!("stranger-{n}")).await {
            Err(Reason::Overloaded) => refused += 1,
            Err(Reason::TokenInactive) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(bench.calls() <= 101, "attacks:Z34: {} calls", bench.calls());
    assert!(refused >= 9_899);
    // In memory, and asked about again while the flood goes on.
    assert_eq!(bench.ask("regular").await, Ok(()));
    bench.answer(json!({}));
    bench.context.clock.advance(Duration::from_secs(31));
    for n in 0..200 {
        let _ = bench.ask(&format!("later-{n}")).await;
    }
    assert_eq!(bench.ask("regular").await, Ok(()), "attacks:Z34");
}

#[tokio::test]
async fn a_question_has_two_tries_of_a_second_where_nothing_else_is_set() {
    for (set, timeout, tries) in
        [(json!({}), Duration::from_secs(1), 2), (json!({"timeout": "50ms", "tries": 5}), Duration::from_millis(50), 5)]
    {
        let bench = Bench::new(set).await;
        let settings = bench.issuers.get("main").unwrap().introspection.as_ref().unwrap().settings();
        assert_eq!((settings.timeout, settings.tries), (timeout, tries));
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_given_a_pause() {
    let bench = Bench::new(json!({})).await;
    bench.provider.on("/introspect", Reply::Answer(500, "text/plain", "".into()));
    for n in 0..50 {
        assert_eq!(bench.ask(&format!("t{n}")).await, Err(Reason::IssuerUnavailable));
    }
    assert_eq!(bench.calls(), 10, "five calls of two tries");
    bench.answer(json!({}));
    bench.context.clock.advance(Duration::from_secs(5));
    assert_eq!(bench.ask("probe").await, Ok(()));
    assert_eq!(bench.ask("next").await, Ok(()));
}

#[tokio::test]
async fn we_authenticate_as_a_client() {
    let bench = Bench::new(json!({})).await;
    assert_eq!(bench.ask("tok+en/=").await, Ok(()));
    let got = bench.provider.got().pop().unwrap();
    // Form-encoded before base64: `door%3Award:s3cret%3A+%C3%BC`.
    assert_eq!(got.headers["authorization"], "Basic ZG9vciUzQXdhcmQ6czNjcmV0JTNBKyVDMyVCQw==");
    assert_eq!(got.body, "token=tok%2Ben%2F%3D&token_type_hint=access_token");

    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key.serialize_pem()).unwrap();
    let bench = Bench::new(json!({"client": {"id": "doorward", "key": {"file": file.path()}, "key_id": "k1"}})).await;
    assert_eq!(bench.ask("token").await, Ok(()));
    let got = bench.provider.got().pop().unwrap();
    assert!(!got.headers.contains_key("authorization"));
    let form: HashMap<_, _> = url::form_urlencoded::parse(got.body.as_bytes()).into_owned().collect();
    let assertion = Unverified::parse(&form["client_assertion"]).unwrap();
    assert_eq!(assertion.header.kid.as_deref(), Some("k1"));
    let claims = &assertion.claims;
    assert_eq!(
        (&claims["iss"], &claims["sub"], &claims["aud"]),
        (&json!("doorward"), &json!("doorward"), &json!(bench.provider.url))
    );
    assert!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap() <= 300);
}

/// A refusal of our own client is trouble that only an operator can mend, who is told where.
#[tokio::test]
async fn a_refusal_of_our_own_client_says_what_to_check() {
    let bench = Bench::new(json!({})).await;
    for status in [401, 403] {
        bench.provider.on("/introspect", Reply::Answer(status, "application/json", "{}".into()));
        let rejection = bench.issuers.authenticate("opaque", &bench.accepts, &nothing).await.unwrap_err();
        assert_eq!(rejection.reason(), Reason::IssuerUnavailable);
        assert!(precise(&rejection).contains("introspection.client"), "{status}: {}", precise(&rejection));
    }
}

/// oidc-provider refuses to be asked about any JWT, and says so here alone.
#[tokio::test]
async fn what_a_refusal_says_is_told_without_what_was_sent() {
    let bench = Bench::new(json!({})).await;
    let told = json!({
        "error": "unsupported_token_type",
        "error_description": format!("\u{1b}[31mno opaque-1 of s3cret: ü here {}", "x".repeat(500)),
    });
    for status in [400, 401, 500] {
        bench.provider.on("/introspect", Reply::Answer(status, "application/json", told.to_string().into()));
        let rejection = bench.issuers.authenticate("opaque-1", &bench.accepts, &nothing).await.unwrap_err();
        let said = precise(&rejection);
        assert!(said.contains("it says `unsupported_token_type`, `<U+001B>[31mno … of … here xx"), "{said}");
        assert!(!said.contains("opaque-1") && !said.contains("s3cret") && said.len() < 500, "{said}");
    }
}

/// django-oauth-toolkit announces none.
#[tokio::test]
async fn an_endpoint_that_discovery_does_not_name_is_to_be_written() {
    let context = context();
    let provider = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let discovery = changed(provider.metadata(), &json!({"introspection_endpoint": null}));
    provider.on("/.well-known/openid-configuration", Reply::json(&discovery));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "s3cret").unwrap();
    let client = json!({"id": "door", "secret": {"file": secret.path()}});
    let introspection = json!({"mode": "opaque", "client": client});
    let entry = json!({
        "name": "main", "issuer": provider.url, "audiences": ["doorward"], "introspection": introspection,
    });
    let (issuers, accepts) = ready(&json!({"issuers": [entry.clone()]}), &context).await;
    let rejection = issuers.authenticate("opaque", &accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::IssuerUnavailable);
    assert!(precise(&rejection).contains("`introspection.endpoint`"), "{}", precise(&rejection));
    let issuer = issuers.get("main").unwrap();
    assert!(issuer.introspection_trouble(&issuer.keys().metadata().unwrap()).is_some());

    let written = changed(introspection, &json!({"endpoint": format!("{}/ask", provider.url)}));
    let (issuers, _) = ready(&json!({"issuers": [changed(entry, &json!({"introspection": written}))]}), &context).await;
    let issuer = issuers.get("main").unwrap();
    // Nothing else is asked of discovery there, so it is not read.
    assert_eq!(
        issuer.introspection_trouble(&Metadata::parse(discovery.to_string().as_bytes(), &provider.url).unwrap()),
        None
    );
}

/// Nobody is asked about what is too long to be a token.
#[tokio::test]
async fn an_endless_token_is_refused_unasked() {
    let bench = Bench::new(json!({})).await;
    let token = "t".repeat(super::super::jwt::MAX_TOKEN);
    assert_eq!((bench.ask(&token).await, bench.calls()), (Ok(()), 1));
    assert_eq!((bench.ask(&format!("{token}t")).await, bench.calls()), (Err(Reason::CredentialMalformed), 1));
}

/// attacks:Z35, and the JWT of another issuer (section 5): only the route's issuer sees an opaque token.
#[tokio::test]
async fn opaque_tokens_go_to_the_routes_issuer_alone() {
    let bench = Bench::new(json!({})).await;
    let jwt = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims("https://evil.example", json!({})));
    assert_eq!(bench.ask(&jwt).await, Err(Reason::IssuerUnknown));
    let own = RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, json!({})));
    assert_eq!(bench.ask(&own).await, Ok(()));
    assert_eq!(bench.calls(), 0);
    assert_eq!(bench.ask("opaque").await, Ok(()));
    let calls = bench.calls();

    let plain = Provider::with_keys(&[RSA.jwk("rsa", json!({}))]).await;
    let root = json!({"issuers": [{"name": "plain", "issuer": plain.url, "audiences": ["doorward"]}]});
    let (issuers, accepts) = ready(&root, &bench.context).await;
    let rejection = issuers.authenticate("opaque", &accepts, &nothing).await.unwrap_err();
    assert_eq!(rejection.reason(), Reason::CredentialMalformed);
    assert_eq!((bench.calls(), plain.hits("/introspect")), (calls, 0));
}

/// `always`: the signature is checked, and the issuer asked as well.
#[tokio::test]
async fn jwts_are_introspected_where_configured() {
    let bench = Bench::new(json!({"mode": "always"})).await;
    let token =
        |changes| RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, changes));
    bench.answer(json!({"scope": "tekton:less"}));
    let principal = bench.issuers.authenticate(&token(json!({})), &bench.accepts, &nothing).await.unwrap();
    assert_eq!(*principal.scopes[0], *"tekton:less");
    bench.answer(json!({"sub": "mallory"}));
    assert_eq!(bench.ask(&token(json!({"jti": "t2"}))).await, Err(Reason::TokenInactive));
    bench.answer(json!({"active": false}));
    assert_eq!(bench.ask(&token(json!({"jti": "t3"}))).await, Err(Reason::TokenInactive));
    let forged =
        OTHER_RSA.token(r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#, &claims(&bench.provider.url, json!({})));
    let calls = bench.calls();
    assert_eq!(bench.ask(&forged).await, Err(Reason::SignatureInvalid));
    assert_eq!(bench.calls(), calls);
}

/// RFC 9701: an answer counts only as a JWT of the issuer, for us, of this moment.
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
        // The twin, which also shows that the issuer is still asked.
        bench.provider.on("/introspect", signed(answer(json!({}), json!({}))));
        assert_eq!(bench.ask(&format!("twin-{number}")).await, Ok(()), "the twin of {what}");
    }
}
