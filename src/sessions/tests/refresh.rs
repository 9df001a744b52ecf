use std::{collections::BTreeSet, sync::atomic::Ordering};

use axum::http::StatusCode;

use super::{
    super::{record::SessionHash, refresh::Lease},
    *,
};
use crate::{
    config::raw::ClientAuthMethod,
    issuers::ClientAuth,
    oidc::{Github, Protocol, scripted::Script},
};

const LEASE: Duration = Duration::from_secs(45);

/// A session of Alice with the refresh token `r-1`, at a provider that gives `r-2` and other groups for it.
struct World {
    at: Fixture,
    cookie: HeaderMap,
}

async fn world() -> World {
    world_at(provider().await).await
}

async fn provider() -> ScriptedProvider {
    ScriptedProvider::start("corp", ClientAuth::of_test("doorward", ClientAuthMethod::None, None)).await
}

async fn world_at(provider: ScriptedProvider) -> World {
    let at = Fixture::new(provider);
    let tokens = Tokens { access: "a-1".to_owned(), refresh: Some("r-1".to_owned()), id: Some("i-1".to_owned()) };
    let claims = json!({"sub": "alice", "groups": ["dev"], "sid": "s-1", "nonce": "n-1", "auth_time": 1});
    let new = NewSession {
        origin: &dash(),
        provider: &*at.provider,
        claims: Arc::new(claims.as_object().unwrap().clone()),
        told: BTreeSet::new(),
        named: BTreeSet::new(),
        scopes: vec!["openid".into()],
        tokens,
        seen: Seen::default(),
    };
    let (line, _) = at.sessions.create(new).await.unwrap();
    let cookie = sent_back(&line);
    let world = World { at, cookie };
    world.script(|_| {});
    world
}

impl World {
    /// What the provider says from now on, to the clock as it stands then.
    fn script(&self, change: impl FnOnce(&mut Script)) {
        let now = self.at.shared.clock.now().as_secs();
        let mut script = Script {
            status: StatusCode::OK,
            answer: json!({"access_token": "a-2", "token_type": "Bearer", "refresh_token": "r-2", "scope": "openid extra"}),
            claims: Some(json!({
                "iss": self.at.provider.issuer, "aud": "doorward", "sub": "alice", "iat": now, "exp": now + 300,
                "groups": ["release"],
            })),
            forged: false,
            ..Script::default()
        };
        change(&mut script);
        *self.at.provider.script.lock().unwrap() = script;
    }

    fn advance(&self, seconds: u64, change: impl FnOnce(&mut Script)) {
        self.at.shared.clock.advance(Duration::from_secs(seconds));
        self.script(change);
    }

    async fn get(&self) -> Result<Arc<Session>, Reason> {
        get(&self.at.sessions, &self.cookie, &dash()).await
    }

    /// The refresh tokens that the provider was shown.
    fn used(&self) -> Vec<String> {
        let exchanges = self.at.provider.exchanges.lock().unwrap();
        exchanges.iter().map(|exchange| exchange.form["refresh_token"].clone()).collect()
    }

    /// Another replica begins a refresh of a session, for so many seconds.
    async fn lease(&self, hash: SessionHash, seconds: u64) {
        let (record, version) = self.at.sessions.read(hash).await.unwrap().unwrap();
        let until = self.at.shared.clock.now() + Duration::from_secs(seconds);
        let leased = Record { lease: Some(Lease { id: [7; 16], until }), ..record };
        assert!(self.at.sessions.write(hash, &leased, version).await.unwrap());
    }

    /// Another replica on the same store.
    fn replica(&self) -> Sessions {
        let shared = Shared { refreshes: Refreshes::default(), ..self.at.shared.clone() };
        Fixture::generation(&self.at.provider, &shared, settings(), &[[1; 32]])
    }
}

#[tokio::test]
async fn groups_and_scopes_follow_a_refresh_that_nobody_waits_for() {
    let world = world().await;
    world.advance(200, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("dev")]);
    assert!(world.used().is_empty(), "it is early");
    world.advance(30, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("dev")], "nobody waits");
    let session = loop {
        let session = world.get().await.unwrap();
        if session.principal.groups != [Arc::<str>::from("dev")] {
            break session;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(session.principal.groups, [Arc::<str>::from("release")]);
    assert_eq!(session.principal.scopes, ["openid", "extra"].map(Arc::<str>::from));
    assert_eq!(session.record.provider_session(), Some("s-1"), "what the login found out stays");
    assert_eq!(session.tokens().refresh.as_deref(), Some("r-2"));
    assert_eq!(world.used(), ["r-1"]);
    world.advance(301, |_| {});
    world.get().await.unwrap();
    assert_eq!(world.used(), ["r-1", "r-2"], "the token that rotated is used");
}

#[tokio::test]
async fn whoever_asks_and_wherever_a_refresh_token_is_used_once() {
    let world = world().await;
    world.advance(301, |_| {});
    let (here, there) = (world.at.sessions.clone(), world.replica());
    let asks = (0..10).map(|number| {
        let sessions = if number % 2 == 0 { here.clone() } else { there.clone() };
        let cookie = world.cookie.clone();
        tokio::spawn(
            async move { get(&sessions, &cookie, &dash()).await.map(|session| session.principal.groups.clone()) },
        )
    });
    for ask in asks.collect::<Vec<_>>() {
        assert_eq!(ask.await.unwrap().unwrap(), [Arc::<str>::from("release")], "facts that are too old are not used");
    }
    assert_eq!(world.used(), ["r-1"], "peers:D15");
}

/// A replica that stopped in a refresh left its lease behind. Who waits for that has one of its own from when it begins.
#[tokio::test]
async fn a_refresh_that_waited_for_anothers_lease_keeps_others_off_for_as_long_as_any() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    world.advance(301, |_| {});
    world.lease(hash, 20).await;
    let ask = |sessions: Sessions| {
        let cookie = world.cookie.clone();
        tokio::spawn(
            async move { get(&sessions, &cookie, &dash()).await.map(|session| session.principal.groups.clone()) },
        )
    };
    let here = ask(world.at.sessions.clone());
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(world.used(), [""; 0], "another has the lease");
    // The lease will be written, and what came of the refresh not.
    world.at.store.spare.store(1, Ordering::SeqCst);
    *world.at.store.full.lock().unwrap() = Some(Table::Sessions);
    world.advance(21, |_| {});
    tokio::time::timeout(Duration::from_secs(10), async {
        while world.used().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    world.advance(15, |_| {});
    tokio::time::sleep(Duration::from_millis(250)).await;
    let there = ask(world.replica());
    tokio::time::sleep(Duration::from_millis(250)).await;
    *world.at.store.full.lock().unwrap() = None;
    for ask in [here, there] {
        assert_eq!(ask.await.unwrap().unwrap(), [Arc::<str>::from("release")]);
    }
    assert_eq!(world.used(), ["r-1"]);
}

/// The other one has used the refresh token, which this is why the provider takes it no more.
#[tokio::test]
async fn a_refresh_that_came_to_nothing_after_its_lease_ends_no_session() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    world.advance(301, |_| {});
    let other = Lease { id: [7; 16], until: world.at.shared.clock.now() + LEASE };
    let sessions = world.at.sessions.clone();
    // While the provider thinks, another takes the lease.
    let token = move || {
        let (sessions, lease) = (sessions.clone(), other.clone());
        async move {
            let (record, version) = sessions.read(hash).await.unwrap().unwrap();
            assert!(record.lease.is_some());
            let leased = Record { lease: Some(lease), ..record };
            assert!(sessions.write(hash, &leased, version).await.unwrap());
            (StatusCode::BAD_REQUEST, axum::Json(json!({"error": "invalid_grant"})))
        }
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = axum::Router::new().route("/token", axum::routing::post(token));
    tokio::spawn(async move { axum::serve(listener, router).await });
    world.at.provider.change_metadata(|metadata| metadata.token_endpoint.set_port(Some(port)).unwrap());
    let session = world.get().await.unwrap();
    assert!(world.at.shared.revocations.end_of_session(&session.principal).is_none());
    let (record, _) = world.at.sessions.read(hash).await.unwrap().unwrap();
    assert_eq!(record.lease.map(|lease| lease.id), Some([7; 16]), "it goes on with whoever has it");
}

/// What a provider answers that does not vouch for the person any more.
#[tokio::test]
async fn a_session_whose_grant_is_gone_ends_everywhere() {
    type Change = fn(&mut Script);
    let rows: [(&str, Change); 6] = [
        ("invalid_grant", |script| {
            script.status = StatusCode::BAD_REQUEST;
            script.answer = json!({"error": "invalid_grant", "error_description": "reuse"});
            script.claims = None;
        }),
        ("another person", |script| script.claims.as_mut().unwrap()["sub"] = json!("bob")),
        ("another client", |script| script.claims.as_mut().unwrap()["aud"] = json!("other")),
        ("another issuer", |script| script.claims.as_mut().unwrap()["iss"] = json!("https://evil.example")),
        ("another login", |script| script.claims.as_mut().unwrap()["nonce"] = json!("n-2")),
        ("a forged signature", |script| script.forged = true),
    ];
    for (row, change) in rows {
        let world = world().await;
        let session = world.get().await.unwrap();
        world.advance(301, change);
        assert!(world.get().await.is_err(), "{row}");
        assert!(
            world.at.shared.revocations.end_of_session(&session.principal).is_some(),
            "{row}: streams and replicas know"
        );
        assert!(get(&world.replica(), &world.cookie, &dash()).await.is_err(), "{row}");
        assert!(world.at.sessions.entries_of(&session).await.is_empty(), "{row}");
    }
}

/// Keycloak has one time of the login for all applications of a realm: it ended all other sessions of the person.
#[tokio::test]
async fn a_login_of_the_person_elsewhere_ends_no_session_and_makes_none_younger_or_stronger() {
    let world = world().await;
    let before = world.get().await.unwrap().principal.login.clone();
    world.advance(301, |script| {
        let claims = script.claims.as_mut().unwrap();
        (claims["auth_time"], claims["acr"], claims["amr"]) = (json!(1_700_000_300), json!("gold"), json!(["mfa"]));
    });
    let session = world.get().await.unwrap();
    assert_eq!(session.principal.groups, [Arc::<str>::from("release")], "it was refreshed");
    assert_eq!(session.record.claims["auth_time"], json!(1));
    assert_eq!((session.record.claims.get("acr"), session.record.claims.get("amr")), (None, None));
    assert_eq!(session.principal.login, before);
}

#[tokio::test]
async fn a_provider_in_trouble_costs_nobody_the_session_and_is_left_alone() {
    type Change = fn(&mut Script);
    let rows: [(&str, Change); 5] = [
        ("500", |script| script.status = StatusCode::INTERNAL_SERVER_ERROR),
        ("no JSON", |script| {
            script.answer = json!("what?");
            script.claims = None;
        }),
        ("our own secret is wrong", |script| {
            script.status = StatusCode::UNAUTHORIZED;
            script.answer = json!({"error": "invalid_client"});
            script.claims = None;
        }),
        ("busy", |script| {
            script.status = StatusCode::BAD_REQUEST;
            script.answer = json!({"error": "temporarily_unavailable"});
            script.claims = None;
        }),
        ("Dex, which keeps one refresh token for a person and has given another", |script| {
            script.status = StatusCode::BAD_REQUEST;
            let why = "Refresh token is invalid or has already been claimed by another client.";
            script.answer = json!({"error": "invalid_request", "error_description": why});
            script.claims = None;
        }),
    ];
    for (row, change) in rows {
        let world = world().await;
        world.advance(301, change);
        for _ in 0..3 {
            assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("dev")], "{row}");
        }
        assert_eq!(world.used(), ["r-1"], "{row}: asked once, then left alone for a while");
        let hash = world.get().await.unwrap().hash;
        let (record, _) = world.at.sessions.read(hash).await.unwrap().unwrap();
        assert_eq!(record.lease, None, "{row}: another replica may try");
        world.advance(31, |_| {});
        assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")], "{row}");
    }
}

/// What Dex says of somebody who is gone from its directory, and of all while that cannot be asked.
fn refuses(script: &mut Script) {
    script.status = StatusCode::INTERNAL_SERVER_ERROR;
    script.answer = json!({"error": "invalid_request"});
    script.claims = None;
}

/// It went on for as long as any session, for who was shut out there.
#[tokio::test]
async fn a_provider_that_answers_without_vouching_ends_a_session_in_the_end_and_not_in_a_short_outage() {
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

/// The page of a portal, or what a provider says of an organisation that is gone. It was tried again until the session was over by itself.
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

/// While the keys rotate and cannot be fetched, new tokens come that nobody can check yet; and the refresh token before is
/// used up.
#[tokio::test]
async fn a_key_that_cannot_be_fetched_costs_neither_the_session_nor_the_token_that_rotated() {
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
async fn clocks_that_differ_cost_neither_the_session_nor_the_token_that_rotated_unless_they_do_so_for_long() {
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

/// Their access and refresh token were kept in the session, as its times were all that was looked at of the ID token.
#[tokio::test]
async fn tokens_of_another_end_a_session_whatever_the_clocks() {
    for (name, value) in [
        ("sub", json!("bob")),
        ("sub", Value::Null),
        ("aud", json!("another-client")),
        ("azp", json!("another-client")),
    ] {
        for unverifiable in [None, Some(Reason::TokenExpired), Some(Reason::TokenNotYetValid)] {
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

/// What it gave could not be verified, and a token that rotates is good once.
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
async fn a_provider_that_cannot_be_reached_costs_nobody_the_session() {
    let world = world().await;
    world.at.provider.change_metadata(|metadata| metadata.token_endpoint.set_port(Some(1)).unwrap());
    for _ in 0..4 {
        world.advance(3600, |_| {});
        assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("dev")]);
    }
}

#[tokio::test]
async fn a_stream_keeps_its_session_true_without_using_it() {
    let world = world().await;
    let session = world.get().await.unwrap();
    let CredentialId::Session(name) = &session.principal.credential else { panic!("a session") };
    world.advance(240, |_| {});
    while world.at.sessions.current(name).await.unwrap().unwrap().groups != [Arc::<str>::from("release")] {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.used(), ["r-1"]);
    world.advance(8 * 3600, |_| {});
    assert!(world.at.sessions.current(name).await.unwrap().is_none(), "it was not used for too long");
}

/// A reload that lets an entry keep its name and changes its URL makes it another provider.
#[tokio::test]
async fn the_tokens_of_a_session_never_go_to_another_provider_of_the_same_name() {
    let world = world().await;
    let session = world.get().await.unwrap();
    let CredentialId::Session(name) = &session.principal.credential else { panic!("a session") };
    let authentication = ClientAuth::of_test("doorward", ClientAuthMethod::None, None);
    let mut other = ScriptedProvider::start("corp", authentication).await;
    other.issuer = "https://another.example".to_owned();
    let other = Arc::new(other);
    let sessions = Fixture::generation(&other, &world.at.shared, settings(), &[[1; 32]]);
    for seconds in [0, 240, 301] {
        world.advance(seconds, |_| {});
        assert!(sessions.current(name).await.unwrap().is_none(), "after {seconds} s more");
        assert_eq!(get(&sessions, &world.cookie, &dash()).await.err(), Some(Reason::SessionExpired));
    }
    assert!(other.exchanges.lock().unwrap().is_empty(), "it was shown the tokens of another");
    assert!(world.at.sessions.current(name).await.unwrap().is_some(), "twin: at its own provider it goes on");
}

/// A session without a refresh token, at a provider that says this of the access token.
async fn without_refresh_token(change: impl FnOnce(&mut Script)) -> World {
    let world = world().await;
    let tokens = Tokens { access: "a-1".to_owned(), refresh: None, id: Some("i-1".to_owned()) };
    let claims =
        json!({"sub": "alice", "groups": ["dev"], "aud": "doorward", "email": "a@b.c", "email_verified": true});
    let new = NewSession {
        origin: &dash(),
        provider: &*world.at.provider,
        claims: Arc::new(claims.as_object().unwrap().clone()),
        told: BTreeSet::new(),
        named: BTreeSet::new(),
        scopes: vec!["openid".into()],
        tokens,
        seen: Seen::default(),
    };
    let (line, _) = world.at.sessions.create(new).await.unwrap();
    let world = World { cookie: sent_back(&line), ..world };
    world.advance(301, change);
    world
}

fn answers(status: u16, answer: Value) -> (StatusCode, Value) {
    (StatusCode::from_u16(status).unwrap(), answer)
}

#[tokio::test]
async fn without_a_refresh_token_the_access_token_is_asked_about() {
    type Row = (&'static str, (StatusCode, Value), (StatusCode, Value), bool);
    let nothing = || answers(404, Value::Null);
    let rows: Vec<Row> = vec![
        ("userinfo knows them", answers(200, json!({"sub": "alice"})), nothing(), true),
        ("userinfo is of another", answers(200, json!({"sub": "bob"})), nothing(), false),
        ("userinfo names nobody", answers(200, json!({"groups": ["dev"]})), nothing(), true),
        ("userinfo does not take the token", answers(401, Value::Null), answers(200, json!({"active": true})), false),
        ("the token is active", nothing(), answers(200, json!({"active": true})), true),
        ("the token is active, and theirs", nothing(), answers(200, json!({"active": true, "sub": "alice"})), true),
        ("the token is another's", nothing(), answers(200, json!({"active": true, "sub": "bob"})), false),
        ("the token is not active", nothing(), answers(200, json!({"active": false})), false),
        ("active is no boolean", nothing(), answers(200, json!({"active": "true"})), true),
        ("we may not introspect", answers(403, Value::Null), answers(401, Value::Null), true),
        ("nothing tells", nothing(), nothing(), true),
        ("the provider has trouble", answers(503, Value::Null), nothing(), true),
        ("we ask too often", answers(429, Value::Null), nothing(), true),
        ("introspection has trouble", nothing(), answers(500, Value::Null), true),
    ];
    for (row, user_info, introspection, stays) in rows {
        let world = without_refresh_token(|script| {
            (script.user_info, script.introspection) = (user_info, introspection);
        })
        .await;
        let found = world.get().await;
        assert_eq!(found.is_ok(), stays, "{row}");
        assert_eq!(get(&world.replica(), &world.cookie, &dash()).await.is_ok(), stays, "{row}, elsewhere");
        let asked = world.at.provider.exchanges.lock().unwrap();
        assert_eq!(asked[0].authorization.as_deref(), Some("Bearer a-1"), "{row}");
        for introspected in asked.iter().filter(|asked| !asked.form.is_empty()) {
            assert_eq!((&*introspected.form["token"], &*introspected.form["client_id"]), ("a-1", "doorward"), "{row}");
        }
    }
}

/// The page of a portal in front of the provider, or a client secret that was changed there, ended all such sessions at once.
#[tokio::test]
async fn an_answer_that_tells_nothing_of_an_access_token_ends_a_session_in_the_end_and_not_at_once() {
    let nothing = || answers(404, Value::Null);
    for (row, user_info, introspection, lives) in [
        ("nothing is there", nothing(), nothing(), false),
        ("our secret was changed", nothing(), answers(401, json!({"error": "invalid_client"})), false),
        ("a page", answers(403, json!("<html>")), answers(403, json!("<html>")), false),
        ("the way to a page", answers(302, json!("<html>")), answers(302, json!("<html>")), false),
        ("a page as a success", answers(200, json!("<html>")), answers(200, json!("<html>")), false),
        ("too slow", answers(408, Value::Null), nothing(), true),
        ("introspection is too slow", nothing(), answers(408, Value::Null), true),
    ] {
        let says = |script: &mut Script| {
            (script.user_info, script.introspection) = (user_info.clone(), introspection.clone());
        };
        let world = without_refresh_token(says).await;
        assert!(world.get().await.is_ok(), "{row}");
        world.advance(3500, says);
        assert!(world.get().await.is_ok(), "{row}: less than an hour");
        world.advance(101, says);
        assert_eq!(world.get().await.is_ok(), lives, "{row}");
    }
}

#[tokio::test]
async fn a_provider_that_can_tell_nothing_has_short_sessions() {
    let world = without_refresh_token(|_| {}).await;
    world.at.provider.change_metadata(|metadata| {
        (metadata.userinfo_endpoint, metadata.introspection_endpoint) = (None, None);
    });
    assert!(world.get().await.is_err());
    assert!(world.at.provider.exchanges.lock().unwrap().is_empty());
}

/// It was over after three quarters of that where it was used: the refresh that could ask nothing began as early as any.
#[tokio::test]
async fn a_session_about_which_nothing_can_be_asked_lasts_as_long_as_the_recheck() {
    async fn due(at: &Fixture, cookie: &HeaderMap) -> Option<u64> {
        let session = get(&at.sessions, cookie, &dash()).await.unwrap();
        let is_due = |age: &u64| at.sessions.is_due(&session, session.record.checked + Duration::from_secs(*age));
        (0..=300).find(is_due)
    }
    let announce_neither = |provider: &ScriptedProvider| {
        provider.change_metadata(|metadata| {
            (metadata.userinfo_endpoint, metadata.introspection_endpoint) = (None, None);
        });
    };
    let World { at, cookie: with_refresh_token } = world().await;
    let without = at.create("alice", &dash()).await;
    assert_eq!(due(&at, &without).await, Some(225), "there is an endpoint to ask");
    announce_neither(&at.provider);
    assert_eq!(due(&at, &without).await, Some(300));
    assert_eq!(due(&at, &with_refresh_token).await, Some(225), "the token can be used");
    let mut github = provider().await;
    github.client.protocol = Protocol::Github(Github::new("https://github.com", "acme").unwrap().into());
    announce_neither(&github);
    let at = Fixture::new(github);
    let cookie = at.create("alice", &dash()).await;
    assert_eq!(due(&at, &cookie).await, Some(225), "GitHub is asked by its API");
}

#[tokio::test]
async fn claims_that_the_login_knew_follow_what_userinfo_tells() {
    let world = without_refresh_token(|script| {
        let told = json!({"sub": "alice", "groups": ["release"], "aud": "evil", "admin": true, "email": "a@b.c"});
        script.user_info = (StatusCode::OK, told);
    })
    .await;
    let session = world.get().await.unwrap();
    assert_eq!(session.principal.groups, [Arc::<str>::from("release")]);
    let claims = &session.record.claims;
    assert_eq!((&claims["aud"], claims.get("admin")), (&json!("doorward"), None));
    world.at.shared.clock.advance(Duration::from_secs(100));
    world.get().await.unwrap();
    assert_eq!(world.at.provider.exchanges.lock().unwrap().len(), 1, "it is asked once in a while");
}

#[tokio::test]
async fn an_address_that_userinfo_changes_is_verified_only_if_it_says_so() {
    for (row, told, verified) in [
        ("the same", json!({"email": "a@b.c"}), Some("a@b.c")),
        ("not told", json!({}), Some("a@b.c")),
        ("another", json!({"email": "boss@b.c"}), None),
        ("another, verified", json!({"email": "boss@b.c", "email_verified": true}), Some("boss@b.c")),
        ("another, not verified", json!({"email": "boss@b.c", "email_verified": false}), None),
    ] {
        let world = without_refresh_token(|script| {
            let mut told = told;
            told["sub"] = json!("alice");
            script.user_info = (StatusCode::OK, told);
        })
        .await;
        let session = world.get().await.unwrap();
        assert_eq!(Principal::verified_email(&session.record.claims).as_deref(), verified, "{row}");
    }
}

/// Many providers tell groups in the ID token alone, so that userinfo without them says nothing, until it has told them once.
#[tokio::test]
async fn a_claim_that_userinfo_does_not_tell_any_more_is_gone_and_others_stay() {
    let world = without_refresh_token(|_| {}).await;
    let release = json!(["release"]);
    for (row, told, groups) in [
        ("never told", json!({}), &["dev"][..]),
        ("told", json!({"groups": release}), &["release"]),
        ("not any more", json!({}), &[]),
        ("again", json!({"groups": release}), &["release"]),
        ("it has trouble", Value::Null, &["release"]),
    ] {
        world.advance(301, |script| {
            script.user_info = match told {
                Value::Null => answers(404, Value::Null),
                mut told => {
                    told["sub"] = json!("alice");
                    answers(200, told)
                }
            };
            script.introspection = answers(200, json!({"active": true}));
        });
        let session = world.get().await.unwrap();
        let found: Vec<&str> = session.principal.groups.iter().map(|group| &**group).collect();
        assert_eq!(found, groups, "{row}");
        assert_eq!(session.record.claims["email"], "a@b.c", "{row}");
    }
}

/// Who was taken out of the last group before the first refresh would have kept it until the session ends.
#[tokio::test]
async fn a_group_that_userinfo_names_for_others_alone_is_gone_at_the_first_refresh() {
    let world = without_refresh_token(|script| {
        script.user_info = answers(200, json!({"sub": "alice", "groups": ["dev"]}));
    })
    .await;
    let create = async |subject: &str| {
        let claims = json!({"sub": subject, "groups": ["dev"], "aud": "doorward"});
        world.at.create_with(claims, &dash()).await
    };
    let removed = create("bob").await;
    let claims = json!({"sub": "dan", "groups": ["dev"], "aud": "doorward"});
    let new = NewSession {
        origin: &dash(),
        provider: &*world.at.provider,
        claims: Arc::new(claims.as_object().unwrap().clone()),
        told: BTreeSet::new(),
        named: BTreeSet::new(),
        scopes: vec!["openid".into(), "email".into()],
        tokens: Tokens { access: "a-1".to_owned(), refresh: None, id: Some("i-1".to_owned()) },
        seen: Seen::default(),
    };
    let (line, _) = world.at.sessions.create(new).await.unwrap();
    let of_other_scopes = sent_back(&line);
    let groups = async |cookie: &HeaderMap| {
        let session = get(&world.at.sessions, cookie, &dash()).await.unwrap();
        session.principal.groups.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(groups(&world.cookie).await, ["dev"], "it is named for another");
    world.advance(301, |script| script.user_info = answers(200, json!({"sub": "bob"})));
    assert!(groups(&removed).await.is_empty());
    world.script(|script| script.user_info = answers(200, json!({"sub": "dan"})));
    assert_eq!(groups(&of_other_scopes).await, ["dev"], "what is named for some scopes says nothing of others");
    // The provider has ceased to name groups there, for all that is known: what it named before a session says nothing of it.
    let later = create("carol").await;
    world.advance(301, |script| script.user_info = answers(200, json!({"sub": "carol"})));
    assert_eq!(groups(&later).await, ["dev"]);
}

/// Some providers tell of groups at userinfo alone.
#[tokio::test]
async fn what_the_id_token_lacks_is_of_userinfo_where_it_is_asked() {
    let mut provider = provider().await;
    provider.client.asks_userinfo = true;
    let world = world_at(provider).await;
    let dev_and_release = || Some(json!({"groups": ["dev"], "team": "a"}));
    for (row, of_id_token, told, groups, team) in [
        ("told", Some(json!({})), answers(200, json!({"groups": ["release"], "aud": "evil"})), &["release"][..], None),
        ("not told any more", Some(json!({})), answers(200, json!({})), &[], None),
        (
            "told of the ID token too",
            dev_and_release(),
            answers(200, json!({"groups": ["release"]})),
            &["dev"],
            Some("a"),
        ),
        ("no ID token", None, answers(200, json!({"groups": ["release"], "team": "b"})), &["release"], Some("b")),
        ("trouble there", Some(json!({"team": "c"})), answers(503, Value::Null), &["release"], Some("c")),
        ("trouble without an ID token", None, answers(503, Value::Null), &["release"], Some("c")),
        ("the ID token has it now", Some(json!({"groups": ["dev"]})), answers(503, Value::Null), &["dev"], None),
        ("told again", Some(json!({})), answers(200, json!({"groups": ["release"]})), &["release"], None),
        ("nothing there", Some(json!({"team": "d"})), answers(403, Value::Null), &["release"], Some("d")),
    ] {
        world.advance(301, |script| {
            script.claims = of_id_token.map(|more| {
                let mut claims = script.claims.take().unwrap();
                let all = claims.as_object_mut().unwrap();
                all.remove("groups");
                all.extend(more.as_object().unwrap().clone());
                claims
            });
            script.user_info = told;
            if let Some(told) = script.user_info.1.as_object_mut() {
                told.insert("sub".to_owned(), "alice".into());
            }
        });
        let session = world.get().await.unwrap();
        let found: Vec<&str> = session.principal.groups.iter().map(|group| &**group).collect();
        let claims = &session.record.claims;
        assert_eq!(claims["aud"], "doorward", "{row}");
        assert_eq!((found, claims.get("team").and_then(Value::as_str)), (groups.to_vec(), team), "{row}");
    }
    world.advance(301, |script| script.user_info = answers(200, json!({"sub": "bob"})));
    assert!(world.get().await.is_err(), "of another");
}

/// A scope that was taken from the client would leave people what userinfo told of them once, for as long as a session lasts.
#[tokio::test]
async fn a_session_ends_of_which_userinfo_tells_nothing_for_an_hour_though_it_answers() {
    for (row, status, stays) in [("it answers", 403, false), ("it has trouble", 503, true)] {
        let mut provider = provider().await;
        provider.client.asks_userinfo = true;
        let world = world_at(provider).await;
        for _ in 0..12 {
            world.advance(301, |script| script.user_info = answers(status, Value::Null));
            world.get().await.unwrap_or_else(|error| panic!("{row}: {error:?}"));
        }
        world.advance(301, |script| script.user_info = answers(status, Value::Null));
        assert_eq!(world.get().await.is_ok(), stays, "{row}");
    }
}

/// The grant stands, and nothing was told of the groups: they stayed as they were at the login for as long as it did.
#[tokio::test]
async fn a_refresh_without_an_id_token_has_userinfo_tell() {
    let (told, nothing) = (json!({"sub": "alice", "groups": ["release"]}), || answers(404, Value::Null));
    for (row, user_info, groups) in [
        ("told", answers(200, told.clone()), Some("release")),
        ("nothing", nothing(), Some("dev")),
        ("the new token is not for that", answers(401, Value::Null), Some("dev")),
        ("it has trouble", answers(503, Value::Null), Some("dev")),
        ("of another", answers(200, json!({"sub": "bob", "groups": ["release"]})), None),
    ] {
        let world = world().await;
        world.advance(301, |script| (script.claims, script.user_info) = (None, user_info));
        let found = world.get().await.ok();
        assert_eq!(
            found.map(|session| session.principal.groups.clone()),
            groups.map(|group| vec![group.into()]),
            "{row}"
        );
    }
    // Trouble there undoes no refresh: what rotated is kept, and nobody waits or asks again before the next one is due.
    let world = world().await;
    world.advance(301, |script| (script.claims, script.user_info) = (None, answers(503, Value::Null)));
    let session = world.get().await.unwrap();
    assert_eq!((&*session.principal.groups[0], session.tokens().refresh.as_deref()), ("dev", Some("r-2")));
    let asked = world.at.provider.exchanges.lock().unwrap().len();
    for seconds in [31, 100] {
        world.advance(seconds, |script| (script.claims, script.user_info) = (None, answers(200, told.clone())));
        world.get().await.unwrap();
        assert_eq!(world.at.provider.exchanges.lock().unwrap().len(), asked, "after {seconds} s more");
    }
    world.advance(171, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")]);
}

/// A claim that must be so is asked of a session as of a login: `required_claims` of a new configuration, and claims that
/// the provider tells anew.
#[tokio::test]
async fn a_session_without_the_required_claims_is_refused() {
    for (required, refused) in [("acme.example", None), ("other.example", Some(Reason::SessionExpired))] {
        let at = Fixture::offline();
        let cookie = at.create_with(json!({"sub": "alice", "hd": "acme.example"}), &dash()).await;
        let session = get(&at.sessions, &cookie, &dash()).await.unwrap();
        let CredentialId::Session(name) = &session.principal.credential else { panic!("a session") };
        let mut provider = ScriptedProvider::offline("corp");
        provider.required.insert("hd".to_owned(), required.into());
        let reloaded = Fixture::generation(&Arc::new(provider), &at.shared, settings(), &[[1; 32]]);
        assert_eq!(get(&reloaded, &cookie, &dash()).await.err(), refused, "{required}");
        assert_eq!(reloaded.current(name).await.unwrap().is_none(), refused.is_some(), "{required}: its streams");
        // Elsewhere nothing is told of whom it is of.
        let elsewhere = Origin::https("other.example").unwrap();
        assert_eq!(get(&reloaded, &cookie, &elsewhere).await.err(), Some(Reason::SessionExpired), "{required}");
    }
}

#[tokio::test]
async fn a_session_whose_required_claim_changes_is_refused_after_the_recheck() {
    for (told, refused) in [("acme.example", None), ("other.example", Some(Reason::SessionExpired))] {
        let authentication = ClientAuth::of_test("doorward", ClientAuthMethod::None, None);
        let mut provider = ScriptedProvider::start("corp", authentication).await;
        provider.required.insert("hd".to_owned(), "acme.example".into());
        let at = Fixture::new(provider);
        let cookie = at.create_with(json!({"sub": "alice", "hd": "acme.example"}), &dash()).await;
        let world = World { at, cookie };
        world.get().await.unwrap();
        world.advance(301, |script| script.user_info = answers(200, json!({"sub": "alice", "hd": told})));
        assert_eq!(world.get().await.err(), refused, "{told}");
        assert_eq!(get(&world.replica(), &world.cookie, &dash()).await.err(), refused, "{told}: elsewhere");
    }
}
