//! Rechecks of sessions by their refresh token, and claims that the provider returns besides.

mod unvouched;
mod userinfo;

use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use futures_util::FutureExt as _;
use tokio::sync::Notify;

use super::{
    super::{
        lease::{Lease, POLL},
        record::SessionHash,
    },
    *,
};
use crate::{config::raw::ClientAuthMethod, issuers::ClientAuth, oidc::scripted::Script};

const LEASE: Duration = Duration::from_secs(45);

/// A session of Alice with the refresh token `r-1`, at a provider that returns `r-2` and other groups for it.
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
    let cookie = at.create_of(claims, &["openid"], tokens, &dash()).await.unwrap();
    let world = World { at, cookie };
    world.script(|_| {});
    world
}

impl World {
    /// Changes the provider's responses from now on, relative to the current clock.
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

    /// The refresh tokens that the provider has seen.
    fn used(&self) -> Vec<String> {
        let exchanges = self.at.provider.exchanges.lock().unwrap();
        exchanges.iter().map(|exchange| exchange.form["refresh_token"].clone()).collect()
    }

    /// Lets another replica begin a refresh of a session, for so many seconds.
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

fn answers(status: u16, answer: Value) -> (StatusCode, Value) {
    (StatusCode::from_u16(status).unwrap(), answer)
}

#[tokio::test]
async fn groups_and_scopes_follow_a_refresh_in_the_background() {
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
async fn simultaneous_requests_at_all_replicas_use_a_refresh_token_once() {
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

/// A person who was shut out at the provider stayed in until the clock had caught up.
#[tokio::test]
async fn a_session_is_refreshed_even_if_the_clock_is_set_back() {
    let world = world().await;
    let clock = &world.at.shared.clock;
    clock.set(clock.now() - Duration::from_secs(30));
    world.script(|_| {});
    world.get().await.unwrap();
    assert!(world.used().is_empty(), "the clocks of replicas differ by as much");
    clock.set(clock.now() - HOUR);
    world.script(|_| {});
    for _ in 0..2 {
        let session = world.get().await.unwrap();
        assert_eq!(session.principal.groups, [Arc::<str>::from("release")], "what is of any age is not used");
    }
    assert_eq!(world.used(), ["r-1"]);
}

/// Requests waited for it and then went on with the old facts, until the clock had caught up.
#[tokio::test]
async fn a_lease_left_behind_before_the_clock_was_set_back_excludes_others_for_seconds_only() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    world.lease(hash, 45).await;
    let clock = &world.at.shared.clock;
    clock.set(clock.now() - HOUR);
    world.script(|_| {});
    let (sessions, cookie) = (world.at.sessions.clone(), world.cookie.clone());
    let ask = tokio::spawn(async move { get(&sessions, &cookie, &dash()).await });
    tokio::time::timeout(Duration::from_secs(10), async {
        while world.used().is_empty() {
            clock.advance(Duration::from_millis(250));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(ask.await.unwrap().unwrap().principal.groups, [Arc::<str>::from("release")]);
    assert_eq!(world.used(), ["r-1"]);
}

/// Both used the same refresh token, which may end everything that came of the login.
#[tokio::test]
async fn a_replica_that_is_behind_waits_for_one_that_is_ahead_and_at_its_call() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    world.lease(hash, 45).await;
    let clock = &world.at.shared.clock;
    clock.set(clock.now() - Duration::from_secs(31));
    world.script(|_| {});
    let (sessions, cookie) = (world.at.sessions.clone(), world.cookie.clone());
    let ask = tokio::spawn(async move { get(&sessions, &cookie, &dash()).await });
    // A replica that took the lease for one that was left behind would have taken it over by then.
    tokio::time::sleep(POLL * 2).await;
    loop {
        let (record, version) = world.at.sessions.read(hash).await.unwrap().unwrap();
        assert_eq!(record.lease.as_ref().map(|lease| lease.id), Some([7; 16]));
        let done = Record { lease: None, checked: clock.now(), ..record };
        // The request writes its use of the session concurrently.
        if world.at.sessions.write(hash, &done, version).await.unwrap() {
            break;
        }
    }
    ask.await.unwrap().unwrap();
    assert_eq!(world.used(), [""; 0]);
}

/// Regression: the write was retried until the clock had caught up, ten times a second and with a log line each time.
#[tokio::test]
async fn an_unavailable_store_is_retried_no_longer_than_a_lease_even_with_the_clock_set_back() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    let clock = &world.at.shared.clock;
    let (lease, give_up) = (Lease { id: [7; 16], until: clock.now() + LEASE }, clock.moment() + LEASE);
    clock.set(clock.now() - HOUR);
    clock.advance(LEASE);
    world.at.store.switch(true);
    let settled = world.at.sessions.settle(hash, &lease, give_up, |_| {});
    assert!(tokio::time::timeout(Duration::from_secs(10), settled).await.unwrap().is_err());
}

/// Regression: the provider was not asked again until the clock had caught up.
#[tokio::test]
async fn a_silent_provider_is_asked_after_the_pause_even_if_the_clock_is_set_back() {
    let world = world().await;
    let is_away = |script: &mut Script| script.status = StatusCode::SERVICE_UNAVAILABLE;
    world.advance(301, is_away);
    assert!(world.get().await.is_ok());
    let asked = world.used().len();
    world.at.shared.clock.set(world.at.shared.clock.now() - HOUR);
    world.advance(29, is_away);
    assert!(world.get().await.is_ok());
    assert_eq!(world.used().len(), asked, "the pause");
    world.advance(1, |_| {});
    assert_eq!(world.get().await.unwrap().principal.groups, [Arc::<str>::from("release")]);
}

/// A replica that stopped during a refresh left its lease behind. One that waits for that has a lease of its own from
/// when it begins.
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
    // The lease will be written, and the result of the refresh will not.
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

/// Lets the provider answer a refresh like this, after another replica has taken the lease of the session.
async fn answer_once_another_has_the_lease(world: &World, hash: SessionHash, status: StatusCode, answer: Value) {
    let other = Lease { id: [7; 16], until: world.at.shared.clock.now() + LEASE };
    let sessions = world.at.sessions.clone();
    let token = move || {
        let (sessions, lease, answer) = (sessions.clone(), other.clone(), answer.clone());
        async move {
            let (record, version) = sessions.read(hash).await.unwrap().unwrap();
            assert!(record.lease.is_some());
            let leased = Record { lease: Some(lease), ..record };
            assert!(sessions.write(hash, &leased, version).await.unwrap());
            (status, axum::Json(answer))
        }
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = axum::Router::new().route("/token", axum::routing::post(token));
    tokio::spawn(async move { axum::serve(listener, router).await });
    world.at.provider.change_metadata(|metadata| metadata.token_endpoint.set_port(Some(port)).unwrap());
}

/// The other replica has used the refresh token, which is why the provider no longer accepts it.
#[tokio::test]
async fn a_refresh_that_came_to_nothing_after_its_lease_ends_no_session() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    world.advance(301, |_| {});
    let refusal = json!({"error": "invalid_grant"});
    answer_once_another_has_the_lease(&world, hash, StatusCode::BAD_REQUEST, refusal).await;
    let session = world.get().await.unwrap();
    assert!(world.at.shared.revocations.end_of_session(&session.principal).is_none());
    let (record, _) = world.at.sessions.read(hash).await.unwrap().unwrap();
    assert_eq!(record.lease.map(|lease| lease.id), Some([7; 16]), "it goes on with whoever has it");
}

/// The next refresh would use a refresh token again, for which a provider may revoke the grant (RFC 9700 section
/// 4.14.2).
#[tokio::test]
async fn a_refresh_that_outlasted_its_lease_replaces_nothing_of_the_replica_that_has_the_lease() {
    let world = world().await;
    let hash = world.get().await.unwrap().hash;
    world.advance(301, |_| {});
    let tokens = json!({"access_token": "a-2", "token_type": "Bearer", "refresh_token": "r-2"});
    answer_once_another_has_the_lease(&world, hash, StatusCode::OK, tokens).await;
    world.get().await.unwrap();
    let (record, _) = world.at.sessions.read(hash).await.unwrap().unwrap();
    assert_eq!(record.lease.map(|lease| lease.id), Some([7; 16]));
    assert_eq!(record.tokens.refresh.as_deref(), Some("r-1"));
}

/// The process ended between the provider's response and its write: the rotated token was lost, and the next refresh
/// ended the session.
#[tokio::test]
async fn shutdown_waits_for_a_refresh_in_flight_and_none_begins_while_closing() {
    let world = world().await;
    let (asked, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let token = {
        let (asked, goes_on) = (Arc::clone(&asked), Arc::clone(&goes_on));
        move || {
            let (asked, goes_on) = (Arc::clone(&asked), Arc::clone(&goes_on));
            async move {
                asked.notify_one();
                goes_on.notified().await;
                axum::Json(json!({"access_token": "a-2", "token_type": "Bearer", "refresh_token": "r-2"}))
            }
        }
    };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = axum::Router::new().route("/token", axum::routing::post(token));
    tokio::spawn(async move { axum::serve(listener, router).await });
    world.at.provider.change_metadata(|metadata| metadata.token_endpoint.set_port(Some(port)).unwrap());

    let drain = world.at.shared.drain.clone();
    let patience = Duration::from_secs(10);
    world.advance(240, |_| {});
    let hash = world.get().await.unwrap().hash;
    tokio::time::timeout(patience, asked.notified()).await.unwrap();
    drain.close();
    assert_eq!(drain.unfinished(), 1);
    // It ends once the provider has responded and the store has the result.
    goes_on.notify_one();
    drain.wait(patience).await;
    assert_eq!(drain.unfinished(), 0);
    let (record, _) = world.at.sessions.read(hash).await.unwrap().unwrap();
    assert_eq!((record.tokens.refresh.as_deref(), record.lease), (Some("r-2"), None));

    // One that is due after that is left to another process; meanwhile the session goes on.
    world.advance(301, |_| {});
    assert!(world.get().await.is_ok());
    assert!(asked.notified().now_or_never().is_none(), "the provider was asked");
}

/// The response of a provider that no longer confirms the person.
#[tokio::test]
async fn a_session_whose_grant_was_revoked_ends_everywhere() {
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

/// Keycloak has one login time for all applications of a realm: it ended all other sessions of the person.
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
async fn a_failing_provider_ends_no_session_and_is_given_a_pause() {
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

/// A reload that keeps the name of an entry but changes its URL makes it another provider.
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

/// Required claims are checked for a session as for a login: `required_claims` of a new configuration, and claims that
/// the provider returns anew.
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
        // Elsewhere nothing is revealed about its person.
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
