//! The choice of providers, the parameters of a login, and step-up logins.

use http::HeaderMap;

use super::*;
use crate::{authn::NeededLogin, config::raw::Prompt, issuers::presets::Logout};

async fn asking(change: impl FnOnce(&mut Client)) -> Browser {
    let secret = ClientAuth::of_test("doorward", ClientAuthMethod::Basic, Some("s"));
    let mut provider = ScriptedProvider::start("corp", secret).await;
    change(&mut provider.client);
    Browser::at(provider)
}

#[tokio::test]
async fn the_requirements_of_a_login_are_sent_and_verified() {
    let mut browser = asking(|client| {
        client.wishes = Wishes {
            prompt: Some(Prompt::SelectAccount),
            login_hint: Some("@acme.example".to_owned()),
            acr_values: ["gold", "silver"].map(str::to_owned).to_vec(),
            mfa_acr_values: vec!["two".to_owned()],
            max_age: Some(Duration::from_secs(3600)),
            parameters: vec![("access_type", "offline".to_owned()), ("hd", "acme.example".to_owned())],
        };
    })
    .await;
    let now = browser.fixture.shared.clock.now().as_secs();
    for (row, change, status) in [
        ("good", json!({"auth_time": now - 60, "acr": "silver"}), StatusCode::SEE_OTHER),
        ("too old", json!({"auth_time": now - 3700, "acr": "silver"}), StatusCode::FORBIDDEN),
        ("no time", json!({"acr": "silver"}), StatusCode::FORBIDDEN),
        ("too weak", json!({"auth_time": now, "acr": "bronze"}), StatusCode::FORBIDDEN),
        ("nothing said", json!({"auth_time": now}), StatusCode::FORBIDDEN),
    ] {
        browser.jar.clear();
        let sent = browser.depart("/runs").await;
        for (name, value) in [
            ("prompt", "select_account"),
            ("login_hint", "@acme.example"),
            ("acr_values", "gold silver"),
            ("max_age", "3600"),
            ("access_type", "offline"),
            ("hd", "acme.example"),
        ] {
            assert_eq!(sent.parameters[name], value, "{name}");
        }
        browser.script(|script| {
            script.claims.as_mut().unwrap().as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        });
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), status, "{row}: {}", body(&response));
        if status == StatusCode::FORBIDDEN {
            assert!(body(&response).contains("did not authenticate you as it was asked to"), "{row}");
            let again = "/oauth2/start?prompt=login&amp;issuer=corp&amp;rd=%2Fruns";
            assert!(body(&response).contains(again), "{row}: no way to go on");
        }
    }
    let mut plain = asking(|_| ()).await;
    let sent = plain.depart("/").await;
    for name in ["prompt", "login_hint", "acr_values", "max_age", "hd"] {
        assert!(!sent.parameters.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn the_choice_that_worked_is_remembered_and_can_be_changed() {
    let browser = asking(|client| client.label = Some("Acme account".into())).await;
    let mut other = ScriptedProvider::offline("partners");
    other.client.label = Some("Partners & friends".into());
    let providers = vec![Arc::new(other) as Arc<dyn Provider>, Arc::clone(&browser.fixture.provider) as _];
    let login = Login::new(providers, browser.fixture.sessions.clone(), LoginMetrics::default(), Brand::default());
    let mut browser = Browser { login, ..browser };

    let page = browser.get("/oauth2/continue?rd=/runs").await;
    let text = body(&page);
    assert!(text.find("Partners &amp; friends").unwrap() < text.find("Acme account").unwrap(), "{text}");
    assert!(!text.contains("data-next href") && !text.contains(">used last<"), "nobody chose yet: {text}");

    let sent = browser.depart_from("/oauth2/start?issuer=corp&rd=/runs").await;
    browser.get(&sent.good()).await;
    let cookie = browser.headers();
    browser.jar.retain(|(name, _)| name == "__Host-doorward-provider");
    let page = browser.get("/oauth2/continue?rd=/runs").await;
    let text = body(&page);
    assert!(text.contains("data-next href=\"/oauth2/start?issuer=corp&amp;rd=%2Fruns\""), "{text}");
    assert!(text.contains("data-return href=\"/oauth2/sign_in?rd=%2Fruns\""), "no other way: {text}");
    let page = browser.get("/oauth2/sign_in?rd=/runs").await;
    let text = body(&page);
    assert!(text.find(">used last<").unwrap() < text.find("Partners").unwrap(), "{text}");

    // A provider that is no longer offered, or made up, is ignored.
    for value in ["bm9ib2R5", "x y", "", "%%%"] {
        browser.jar = vec![("__Host-doorward-provider".to_owned(), value.to_owned())];
        assert!(!body(&browser.get("/oauth2/continue?rd=/runs").await).contains("data-next href"), "{value}");
    }
    assert!(cookie.contains_key(header::COOKIE));
    // With one provider there is nothing to remember.
    let mut alone = asking(|_| ()).await;
    alone.sign_in().await;
    assert!(alone.jar.iter().all(|(name, _)| name != "__Host-doorward-provider"));
}

#[tokio::test]
async fn each_provider_is_asked_in_its_own_way_to_end_its_session() {
    let back = "https://dash.example.com/oauth2/signed_out";
    type Row = (&'static str, Logout, bool, Option<(&'static str, Vec<(&'static str, &'static str)>)>);
    let rows: [Row; 6] = [
        ("as specified", Logout::RpInitiated, true, Some(("/logout", vec![("post_logout_redirect_uri", back)]))),
        ("not at all", Logout::RpInitiated, false, None),
        ("Cognito", Logout::Cognito, true, Some(("/logout", vec![("logout_uri", back)]))),
        ("Cognito, not announced", Logout::Cognito, false, Some(("/logout", vec![("logout_uri", back)]))),
        ("Auth0", Logout::Auth0, true, Some(("/logout", vec![("post_logout_redirect_uri", back)]))),
        ("Auth0, not announced", Logout::Auth0, false, Some(("/v2/logout", vec![("returnTo", back)]))),
    ];
    for (row, logout, announced, expected) in rows {
        let mut browser = asking(|client| client.logout = logout).await;
        if !announced {
            browser.fixture.provider.change_metadata(|metadata| metadata.end_session_endpoint = None);
        }
        browser.sign_in().await;
        let ours = [("origin", "https://dash.example.com")];
        let response = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
        let Some((path, expected)) = expected else {
            assert_eq!(location(&response), "/oauth2/signed_out", "{row}");
            continue;
        };
        let url = Url::parse(location(&response)).unwrap();
        let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!((url.path(), &*parameters["client_id"]), (path, "doorward"), "{row}");
        for (name, value) in expected {
            assert_eq!(parameters.get(name).map(String::as_str), Some(value), "{row}: {url}");
        }
        let hinted = parameters.contains_key("id_token_hint");
        assert_eq!(hinted, parameters.contains_key("post_logout_redirect_uri"), "{row}: {url}");
        assert!(!parameters.contains_key("tenant"), "{row}: what the authorization endpoint carries is not for it");
        assert_eq!(browser.headers(), HeaderMap::new(), "{row}");
    }
}

/// RFC 9470 section 5: a login that is too weak, or too old, for the policy is repeated with what it lacks.
#[tokio::test]
async fn a_login_for_a_rule_asks_for_what_the_rule_needs_and_succeeds_only_with_it() {
    let mut browser = asking(|client| client.wishes.mfa_acr_values = vec!["two".to_owned()]).await;
    let now = browser.fixture.shared.clock.now();
    browser.sign_in().await;
    let before = browser.headers();
    let needed = NeededLogin { mfa: Some(Duration::from_secs(900)), acr: vec!["gold".into()], fresh: None };
    let way = browser.login.step_up("corp", &needed, "/deploy?to=production");
    let page = browser.get(&way).await;
    let text = body(&page);
    let start = "/oauth2/start?issuer=corp&amp;mfa=900&amp;acr_values=gold&amp;rd=%2Fdeploy%3Fto%3Dproduction";
    assert!(text.contains(&format!("data-next href=\"{start}\"")), "the session that there is does not do: {text}");
    for (row, claims, status) in [
        ("another class", json!({"acr": "silver", "amr": ["pwd", "otp"], "auth_time": now.as_secs()}), 403),
        ("one factor", json!({"acr": "gold", "amr": ["pwd"], "auth_time": now.as_secs()}), 403),
        ("too old", json!({"acr": "gold", "amr": ["pwd", "otp"], "auth_time": now.as_secs() - 1000}), 403),
        ("nothing said", json!({}), 403),
        ("good", json!({"acr": "gold", "amr": ["pwd", "otp"], "auth_time": now.as_secs()}), 303),
    ] {
        let sent = browser.depart_from(&start.replace("&amp;", "&")).await;
        assert_eq!(sent.parameters["acr_values"], "gold two", "{row}");
        assert_eq!(sent.parameters["max_age"], "900", "{row}");
        browser.script(|script| {
            script.claims.as_mut().unwrap().as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        });
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status().as_u16(), status, "{row}: {}", body(&response));
        let same = browser.session().await.is_some() && browser.headers() == before;
        assert_eq!(same, status == 403, "{row}: whoever comes back without it keeps the session that there was");
        if status == 403 {
            assert!(body(&response).contains("did not authenticate you as it was asked to"), "{row}");
            let says_what_is_needed = body(&response).contains(">What you were doing needs a login ");
            // An ID token that is older than `max_age` is refused as such; the last row has that of the one before.
            let is_too_old = matches!(row, "too old" | "nothing said");
            assert_eq!(says_what_is_needed, !is_too_old, "{row}: {}", body(&response));
            assert!(!body(&response).contains(">Go on<"), "{row}: it would lead to the same rule");
            assert!(body(&response).contains("You are still signed in as before"), "{row}: {}", body(&response));
        } else {
            assert_eq!(location(&response), "/deploy?to=production");
        }
    }
    // Attack: session fixation. The earlier session id is invalid afterwards.
    let after = std::mem::take(&mut browser.jar);
    let cookie = before[header::COOKIE].to_str().unwrap();
    browser.jar = vec![(
        "__Host-doorward".to_owned(),
        cookie.split_once("__Host-doorward=").unwrap().1.split(';').next().unwrap().to_owned(),
    )];
    assert!(browser.session().await.is_none(), "the id did not change");
    browser.jar = after;
    // Now nothing is missing.
    let page = browser.get(&way).await;
    assert_eq!(location(&page), "/deploy?to=production");
}

/// A provider with a session of the person returns them at once if their login is recent enough for `max_age`.
#[tokio::test]
async fn a_person_who_lacks_a_factor_is_asked_for_it_even_after_a_recent_login() {
    for (row, classes, prompt) in
        [("no class asks for it", [].as_slice(), Some("login")), ("a class", ["two"].as_slice(), None)]
    {
        let mut browser = asking(|client| {
            client.wishes.prompt = Some(Prompt::SelectAccount);
            client.wishes.mfa_acr_values = classes.iter().map(ToString::to_string).collect();
        })
        .await;
        let start = "/oauth2/start?issuer=corp&mfa=900&rd=%2Fdeploy";
        let sent = browser.depart_from(start).await;
        assert_eq!(sent.parameters["prompt"], prompt.unwrap_or("select_account"), "{row}");
        let now = browser.fixture.shared.clock.now().as_secs();
        browser.script(|script| {
            let claims = script.claims.as_mut().unwrap();
            (claims["auth_time"], claims["amr"]) = (now.into(), json!(["pwd"]));
        });
        let refused = browser.get(&sent.good()).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{row}: {}", body(&refused));
        // The need is preserved, and this time the person must authenticate.
        let again = "/oauth2/start?prompt=login&issuer=corp&mfa=900&rd=%2Fdeploy";
        assert!(body(&refused).contains(&again.replace('&', "&amp;")), "{row}: {}", body(&refused));
        let sent = browser.depart_from(again).await;
        assert_eq!((&*sent.parameters["prompt"], &*sent.parameters["max_age"]), ("login", "900"), "{row}");
        // A login without additional needs uses the configured parameters.
        assert_eq!(browser.depart("/").await.parameters["prompt"], "select_account", "{row}");
    }
    let mut google = asking(|client| client.anew = Prompt::SelectAccount).await;
    let sent = google.depart_from("/oauth2/start?prompt=login").await;
    assert_eq!(sent.parameters["prompt"], "select_account", "Google takes no other");
}

/// The address of a login can request more than one factor, but no class that the configuration does not accept: the
/// provider's class for more than one factor may be weaker than the accepted ones.
#[tokio::test]
async fn requesting_more_than_one_factor_accepts_no_further_class() {
    let mut browser = asking(|client| {
        client.wishes.acr_values = ["phr", "two"].map(str::to_owned).to_vec();
        client.wishes.mfa_acr_values = ["any", "two"].map(str::to_owned).to_vec();
    })
    .await;
    for (query, asked, acr, status) in [
        ("&mfa=900", "two", "two", 303),
        ("&mfa=900", "two", "phr", 303),
        ("&mfa=900", "two", "any", 403),
        ("&mfa=900&acr_values=phr%20two", "phr two", "phr", 303),
        ("", "phr two", "any", 403),
        ("", "phr two", "phr", 303),
    ] {
        browser.jar.clear();
        let sent = browser.depart_from(&format!("/oauth2/start?issuer=corp{query}")).await;
        assert_eq!(sent.parameters["acr_values"], asked, "{query}");
        let now = browser.fixture.shared.clock.now().as_secs();
        browser.script(|script| {
            let claims = script.claims.as_mut().unwrap();
            (claims["acr"], claims["auth_time"], claims["amr"]) = (acr.into(), now.into(), json!(["mfa"]));
        });
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status().as_u16(), status, "{query} {acr}: {}", body(&response));
    }
}

/// The address of a login can require more than the configuration, never less.
#[tokio::test]
async fn a_query_does_not_switch_off_the_configured_classes() {
    let mut browser = asking(|client| client.wishes.acr_values = ["gold", "silver"].map(str::to_owned).to_vec()).await;
    for (row, query, asked, acr, status) in [
        ("attack", "&acr_values=bronze", "gold silver", "bronze", 403),
        ("attack: beside a good one", "&acr_values=gold%20bronze", "gold", "bronze", 403),
        ("twin", "&acr_values=gold%20bronze", "gold", "gold", 303),
        ("less than was asked for", "&acr_values=gold", "gold", "silver", 403),
        ("what cannot be had", "&acr_values=bronze", "gold silver", "gold", 403),
        ("nothing besides", "", "gold silver", "silver", 303),
    ] {
        browser.jar.clear();
        let sent = browser.depart_from(&format!("/oauth2/start?issuer=corp{query}")).await;
        assert_eq!(sent.parameters["acr_values"], asked, "{row}");
        browser.script(|script| script.claims.as_mut().unwrap()["acr"] = acr.into());
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status().as_u16(), status, "{row}: {}", body(&response));
        assert_eq!(browser.session().await.is_some(), status == 303, "{row}");
    }
}

/// Regression: every login at Auth0 failed, whose ID tokens have `updated_at` as a text. So did refreshes, and a person
/// kept a group that the provider had removed.
#[tokio::test]
async fn standard_claims_of_unusual_types_do_not_matter() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    browser.script(|script| {
        script.answer["refresh_token"] = "r-1".into();
        let claims = script.claims.as_mut().unwrap();
        claims["updated_at"] = "2026-11-30T10:00:00.000Z".into();
        claims["email_verified"] = "true".into();
        claims["address"] = "Main St 1".into();
        claims["amr"] = "pwd".into();
    });
    let response = browser.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER, "{}", body(&response));
    assert_eq!(browser.session().await.unwrap().principal.groups, [Arc::<str>::from("dev")]);
    browser.fixture.shared.clock.advance(Duration::from_secs(301));
    let now = browser.fixture.shared.clock.now().as_secs();
    browser.script(|script| {
        let claims = script.claims.as_mut().unwrap();
        (claims["iat"], claims["exp"], claims["groups"]) = (now.into(), (now + 300).into(), json!([]));
    });
    assert!(browser.session().await.unwrap().principal.groups.is_empty());
}

/// Regression: it was reported as "at `.`".
#[tokio::test]
async fn a_member_that_a_token_response_lacks_is_named() {
    for name in ["access_token", "token_type"] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        browser.script(|script| drop(script.answer.as_object_mut().unwrap().remove(name)));
        let response = browser.get(&sent.good()).await;
        assert!(body(&response).contains(&format!("it has no `{name}`")), "{}", body(&response));
    }
}

#[tokio::test]
async fn an_id_token_that_cannot_be_signed_is_named_for_what_it_is() {
    for (token, told) in [
        ("a.b.c.d.e", "its `id_token` is an encrypted token (JWE), which is not supported"),
        ("abc", "its `id_token` is not a signed JWT"),
    ] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        browser.script(|script| {
            script.claims = None;
            script.answer["id_token"] = token.into();
        });
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{token}");
        assert!(body(&response).contains(told), "{token}: {}", body(&response));
    }
}
