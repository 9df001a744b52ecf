//! Uses of the access token: userinfo, and introspection if there is no refresh token.

use super::*;
use crate::oidc::{Github, Protocol};

/// A session without a refresh token, at a provider with these responses for the access token.
async fn without_refresh_token(change: impl FnOnce(&mut Script)) -> World {
    let world = world().await;
    let tokens = Tokens { access: "a-1".to_owned(), refresh: None, id: Some("i-1".to_owned()) };
    let claims =
        json!({"sub": "alice", "groups": ["dev"], "aud": "doorward", "email": "a@b.c", "email_verified": true});
    let cookie = world.at.create_of(claims, &["openid"], tokens, &dash()).await.unwrap();
    let world = World { cookie, ..world };
    world.advance(301, change);
    world
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

/// The page of a portal in front of the provider, or a changed client secret, ended all such sessions at once.
#[tokio::test]
async fn answers_that_say_nothing_about_a_token_end_a_session_later_and_not_at_once() {
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
async fn a_provider_that_cannot_confirm_sessions_has_short_ones() {
    let world = without_refresh_token(|_| {}).await;
    world.at.provider.change_metadata(|metadata| {
        (metadata.userinfo_endpoint, metadata.introspection_endpoint) = (None, None);
    });
    assert!(world.get().await.is_err());
    assert!(world.at.provider.exchanges.lock().unwrap().is_empty());
}

/// Regression: a session in use ended after three quarters of `recheck`, as its refresh began as early as any other
/// although there was nothing to ask.
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

/// A replica whose clock was behind that of the one where somebody had signed in ended the session at once.
#[tokio::test]
async fn a_session_that_cannot_be_confirmed_is_not_ended_by_a_clock_slightly_behind() {
    let World { at, .. } = world().await;
    at.provider.change_metadata(|metadata| {
        (metadata.userinfo_endpoint, metadata.introspection_endpoint) = (None, None);
    });
    let cookie = at.create("alice", &dash()).await;
    for (behind, stays) in [(31, true), (300, true), (301, false)] {
        at.shared.clock.set(Timestamp::from_secs(1_700_000_000 - behind));
        assert_eq!(get(&at.sessions, &cookie, &dash()).await.is_ok(), stays, "{behind} s");
    }
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

/// Many providers return groups in the ID token only, so userinfo without them means nothing until it has returned them
/// once.
#[tokio::test]
async fn a_claim_that_userinfo_no_longer_returns_is_removed_and_others_remain() {
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

/// A person who was removed from the last group before the first refresh would have kept it until the session ends.
#[tokio::test]
async fn a_group_that_userinfo_names_only_for_others_is_removed_at_the_first_refresh() {
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
    let tokens = Tokens { access: "a-1".to_owned(), refresh: None, id: Some("i-1".to_owned()) };
    let of_other_scopes = world.at.create_of(claims, &["openid", "email"], tokens, &dash()).await.unwrap();
    let groups = async |cookie: &HeaderMap| {
        let session = get(&world.at.sessions, cookie, &dash()).await.unwrap();
        session.principal.groups.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(groups(&world.cookie).await, ["dev"], "it is named for another");
    world.advance(301, |script| script.user_info = answers(200, json!({"sub": "bob"})));
    assert!(groups(&removed).await.is_empty());
    world.script(|script| script.user_info = answers(200, json!({"sub": "dan"})));
    assert_eq!(groups(&of_other_scopes).await, ["dev"], "what is named for some scopes says nothing of others");
    // The provider may have stopped naming groups there: names from before a session do not apply to it.
    let later = create("carol").await;
    world.advance(301, |script| script.user_info = answers(200, json!({"sub": "carol"})));
    assert_eq!(groups(&later).await, ["dev"]);
}

/// Some providers return groups from userinfo only.
#[tokio::test]
async fn claims_missing_from_the_id_token_come_from_userinfo_if_configured() {
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

/// If a scope was removed from the client, people would keep what userinfo returned once, for as long as a session
/// lasts.
#[tokio::test]
async fn a_session_ends_if_userinfo_answers_nothing_useful_for_an_hour() {
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

/// The grant was valid, but the groups were not returned, and stayed as at the login for as long as the session.
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
    // Trouble there undoes no refresh: what rotated is stored, and nobody waits or asks again before the next one is
    // due.
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
