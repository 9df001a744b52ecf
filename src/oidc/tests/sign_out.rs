//! Sign-outs, back-channel logouts, and the page that replaces a session.

use super::*;
use crate::{issuers::presets::Logout, oidc::backchannel, store::Table};

#[tokio::test]
async fn signing_out_ends_the_session_here_and_at_the_provider() {
    let mut browser = Browser::new().await;
    browser.sign_in().await;
    let old = browser.jar.clone();
    let page = browser.get("/oauth2/sign_out").await;
    assert!(body(&page).contains("corp#alice") && body(&page).contains("method=\"post\""));
    assert!(browser.session().await.is_some(), "a link signed somebody out");

    for headers in [&[][..], &[("origin", "https://evil.example")], &[("origin", "null")]] {
        let response = browser.ask(Method::POST, "/oauth2/sign_out", None, headers).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{headers:?}");
    }
    assert!(browser.session().await.is_some());

    let ours = [("origin", "https://dash.example.com")];
    let response = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let url = Url::parse(location(&response)).unwrap();
    let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
    assert_eq!(url.path(), "/logout");
    assert_eq!(parameters["client_id"], "doorward");
    assert_eq!(parameters["post_logout_redirect_uri"], "https://dash.example.com/oauth2/signed_out");
    assert_eq!(parameters["id_token_hint"].split('.').count(), 3);
    let line = response.headers()[header::SET_COOKIE].to_str().unwrap();
    for attribute in ["Max-Age=0", "Secure", "Path=/", "HttpOnly", "SameSite=Lax"] {
        assert!(line.contains(attribute), "attacks:Z14 {line}");
    }
    assert!(browser.jar.is_empty());
    browser.jar = old;
    assert!(browser.session().await.is_none(), "the cookie still works");

    browser.sign_in().await;
    browser.fixture.provider.change_metadata(|metadata| metadata.end_session_endpoint = None);
    let response = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
    assert_eq!(location(&response), "/oauth2/signed_out");
    let response = browser.get("/oauth2/signed_out").await;
    assert!(body(&response).contains("You are signed out"));
}

/// A page that anybody can link to told people who share a computer that they were safe.
#[tokio::test]
async fn nobody_is_told_that_they_are_signed_out_while_they_are_signed_in() {
    let mut browser = Browser::new().await;
    browser.sign_in().await;
    let response = browser.get("/oauth2/signed_out").await;
    assert_eq!((response.status(), location(&response)), (StatusCode::SEE_OTHER, "/oauth2/sign_out"));
    let ours = [("origin", "https://dash.example.com")];
    browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
    let response = browser.get("/oauth2/signed_out").await;
    assert!(body(&response).contains("You are signed out"), "the twin: {}", body(&response));
}

/// The proxy in front answered 502, and the person stayed signed in at the provider.
#[tokio::test]
async fn an_id_token_that_no_proxy_would_pass_on_is_left_out_of_the_way_to_the_provider() {
    for (groups, is_hinted) in [(40, true), (400, false)] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        let groups: Vec<String> = (0..groups).map(|number| format!("a-group-of-the-directory-{number}")).collect();
        browser.script(|script| script.claims.as_mut().unwrap()["groups"] = json!(groups));
        assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
        let ours = [("origin", "https://dash.example.com")];
        let response = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
        let url = Url::parse(location(&response)).unwrap();
        let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
        assert_eq!(parameters.contains_key("id_token_hint"), is_hinted, "{} bytes", url.as_str().len());
        assert!(url.as_str().len() < 7 << 10, "{} bytes", url.as_str().len());
        assert_eq!(parameters["client_id"], "doorward");
        assert_eq!(parameters["post_logout_redirect_uri"], "https://dash.example.com/oauth2/signed_out");
    }
}

/// Each sign-out left a grant at the provider that anybody with the token could continue to use.
#[tokio::test]
async fn signing_out_has_the_provider_take_back_a_grant_that_outlasts_its_session_and_no_other() {
    for (row, scope, logout, is_revoked) in [
        ("for offline access", "openid offline_access", Logout::RpInitiated, true),
        ("that ends with the session there", "openid", Logout::RpInitiated, false),
        ("that outlasts it without such a scope", "openid", Logout::Cognito, true),
        ("with which those of other sessions would go", "openid offline_access", Logout::Auth0, false),
    ] {
        let basic = ClientAuth::of_test("doorward", ClientAuthMethod::Basic, Some("s"));
        let mut provider = ScriptedProvider::start("corp", basic).await;
        provider.client.logout = logout;
        let mut browser = Browser::at(provider);
        let sent = browser.depart("/").await;
        browser.script(|script| {
            (script.answer["refresh_token"], script.answer["scope"]) = (json!("r-1"), json!(scope));
        });
        browser.get(&sent.good()).await;
        let response =
            browser.ask(Method::POST, "/oauth2/sign_out", None, &[("origin", "https://dash.example.com")]).await;
        assert!(location(&response).contains("/logout?"), "{row}");
        let revoked = async {
            loop {
                if let Some(revoked) = browser.exchanges().into_iter().find(|asked| asked.form.contains_key("token")) {
                    break revoked;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_millis(if is_revoked { 10_000 } else { 200 });
        let revoked = tokio::time::timeout(patience, revoked).await.ok();
        assert_eq!(revoked.is_some(), is_revoked, "{row}");
        let Some(revoked) = revoked else { continue };
        assert_eq!((&*revoked.form["token"], &*revoked.form["token_type_hint"]), ("r-1", "refresh_token"));
        assert_eq!(revoked.authorization, Some(format!("Basic {}", BASE64_STANDARD.encode("doorward:s"))));
    }
}

#[tokio::test]
async fn signing_out_does_not_wait_until_the_grant_is_revoked() {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut browser = Browser::new().await;
    let port = silent.local_addr().unwrap().port();
    browser.fixture.provider.change_metadata(|metadata| {
        metadata.revocation_endpoint.as_mut().unwrap().set_port(Some(port)).unwrap();
    });
    let sent = browser.depart("/").await;
    browser.script(|script| {
        (script.answer["refresh_token"], script.answer["scope"]) = (json!("r-1"), json!("offline_access"));
    });
    browser.get(&sent.good()).await;
    let ours = [("origin", "https://dash.example.com")];
    let ask = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours);
    let response = tokio::time::timeout(Duration::from_secs(5), ask).await.expect("it waits");
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    tokio::time::timeout(Duration::from_secs(5), silent.accept()).await.expect("the provider is told").unwrap();
}

/// A second attempt reported success, while the sessions on other hosts and at the provider continued.
#[tokio::test]
async fn signing_out_again_after_a_store_failure_ends_the_session_everywhere() {
    let ours = [("origin", "https://dash.example.com")];
    let rows = [
        ("nothing was written", Some(Table::Revocations), None, StatusCode::SERVICE_UNAVAILABLE),
        ("what was written was not heard of", None, Some(Table::Revocations), StatusCode::SERVICE_UNAVAILABLE),
        ("what was removed was not heard of", None, Some(Table::Sessions), StatusCode::SEE_OTHER),
        ("the index was not written", Some(Table::SessionIndex), None, StatusCode::SEE_OTHER),
    ];
    for ((row, full, unheard, status), is_alone) in rows.into_iter().flat_map(|row| [(row, false), (row, true)]) {
        let row = format!("{row}, of the one session: {is_alone}");
        let mut browser = Browser::new().await;
        let k8s = Origin::https("k8s.example.com").unwrap();
        let dash = std::mem::replace(&mut browser.origin, k8s.clone());
        if !is_alone {
            browser.sign_in().await;
            assert!(browser.session().await.is_some(), "{row}");
        }
        let elsewhere = std::mem::take(&mut browser.jar);
        browser.origin = dash;
        browser.sign_in().await;
        let store = Arc::clone(&browser.fixture.store);
        (*store.full.lock().unwrap(), *store.unheard.lock().unwrap()) = (full, unheard);
        let mut answer = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
        assert_eq!(answer.status(), status, "{row}");
        *store.full.lock().unwrap() = None;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            // The unacknowledged write is visible after a refresh, and the cached session must be read again.
            browser.fixture.shared.revocations.refresh().await.unwrap();
            browser.fixture.shared.clock.advance(Duration::from_secs(2));
            answer = browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
        }
        assert_eq!(answer.status(), StatusCode::SEE_OTHER, "{row}");
        assert!(location(&answer).contains("/logout?"), "{row}: the session at the provider goes on");
        (browser.origin, browser.jar) = (k8s, elsewhere);
        assert!(browser.session().await.is_none(), "{row}");
    }
}

/// The session had ended, but the grant stayed valid at the provider.
#[tokio::test]
async fn a_browser_that_leaves_while_it_signs_out_is_signed_out_at_the_provider_too() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    browser.script(|script| {
        (script.answer["refresh_token"], script.answer["scope"]) = (json!("r-1"), json!("openid offline_access"));
    });
    browser.get(&sent.good()).await;
    let (store, jar) = (Arc::clone(&browser.fixture.store), browser.jar.clone());
    let ours = [("origin", "https://dash.example.com")];
    store.leave_at(Table::Revocations, browser.ask(Method::POST, "/oauth2/sign_out", None, &ours)).await;
    // As at the end of the process.
    browser.fixture.shared.drain.wait(Duration::from_secs(10)).await;
    assert_eq!(browser.jar, jar, "it has no answer");
    assert!(browser.session().await.is_none());
    let revoked = browser.exchanges().into_iter().filter_map(|asked| asked.form.get("token").cloned());
    assert_eq!(revoked.collect::<Vec<_>>(), ["r-1"]);
}

/// The token could be used again by anybody who had seen it.
#[tokio::test]
async fn a_back_channel_logout_completes_once_although_the_provider_disconnects() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    browser.script(|script| script.claims.as_mut().unwrap()["jti"] = json!("j-1"));
    browser.get(&sent.good()).await;
    let logout_token = browser.session().await.unwrap().tokens().id.clone().unwrap();
    let (kind, form) =
        ([("content-type", "application/x-www-form-urlencoded")], format!("logout_token={logout_token}"));
    let store = Arc::clone(&browser.fixture.store);
    let told = browser.send(Method::POST, backchannel::PATH, None, &kind, &form);
    store.leave_at(Table::Revocations, told).await;
    browser.fixture.shared.drain.wait(Duration::from_secs(10)).await;
    assert!(browser.session().await.is_none());
    let again = browser.send(Method::POST, backchannel::PATH, None, &kind, &form).await;
    assert_eq!(again.status(), StatusCode::BAD_REQUEST, "{}", body(&again));
}

/// The token was marked as used before anything had ended, so the provider's retry, which Doorward had requested, was
/// refused.
#[tokio::test]
async fn a_back_channel_logout_that_failed_half_way_ends_the_session_when_repeated() {
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    for (unheard, statuses) in [
        (Table::Revocations, [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK]),
        // Everything was done, so the token cannot be used again.
        (Table::Sessions, [StatusCode::OK, StatusCode::BAD_REQUEST]),
        (Table::Logins, [StatusCode::SERVICE_UNAVAILABLE, StatusCode::BAD_REQUEST]),
    ] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        browser.script(|script| script.claims.as_mut().unwrap()["jti"] = json!("j-1"));
        browser.get(&sent.good()).await;
        // The scripted provider checks only the signature.
        let logout_token = browser.session().await.unwrap().tokens().id.clone().unwrap();
        let form = format!("logout_token={logout_token}");
        *browser.fixture.store.unheard.lock().unwrap() = Some(unheard);
        for status in statuses {
            let answer = browser.send(Method::POST, backchannel::PATH, None, &kind, &form).await;
            assert_eq!(answer.status(), status, "{unheard:?}: {}", body(&answer));
        }
        assert!(browser.session().await.is_none(), "{unheard:?}");
    }
}

/// Signs in with a browser of this `User-Agent`, at a provider that names no session of its own. Returns its cookies.
async fn sign_in_with(browser: &mut Browser, agent: &str, origin: &Origin) -> Vec<(String, String)> {
    browser.origin = origin.clone();
    let sent = browser.depart("/").await;
    browser.script(|script| {
        script.claims.as_mut().unwrap().as_object_mut().unwrap().remove("sid");
    });
    let back = sent.good();
    let (path, query) = back.split_once('?').unwrap();
    browser.ask(Method::GET, path, Some(query), &[("user-agent", agent)]).await;
    std::mem::take(&mut browser.jar)
}

/// People read that their session would end on all other hosts, and were signed out on their phones too.
#[tokio::test]
async fn the_page_that_asks_whether_to_sign_out_says_which_sessions_end() {
    let mut browser = Browser::new().await;
    let (dash, k8s) = (browser.origin.clone(), Origin::https("k8s.example.com").unwrap());
    let (firefox, iphone) = ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0", "Mozilla/5.0 (iPhone)");
    let phone = sign_in_with(&mut browser, iphone, &dash).await;
    let elsewhere = sign_in_with(&mut browser, firefox, &k8s).await;
    browser.jar = sign_in_with(&mut browser, firefox, &dash).await;
    let page = browser.get("/oauth2/sign_out").await;
    let page = body(&page);
    assert!(page.contains("Firefox on Linux") && page.contains("k8s.example.com"), "{page}");
    assert!(!page.contains("iPhone") && page.contains("sessions in other browsers and in terminals go on"), "{page}");

    let ours = [("origin", "https://dash.example.com")];
    browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await;
    (browser.origin, browser.jar) = (k8s, elsewhere);
    assert!(browser.session().await.is_none(), "the same browser at another host");
    (browser.origin, browser.jar) = (dash, phone);
    assert!(browser.session().await.is_some(), "another browser");
    let page = browser.get("/oauth2/sign_out").await;
    let page = body(&page);
    assert!(page.contains("This ends your session here, with") && !page.contains("go on"), "{page}");
}

/// Browsers send no cookie with a form of another site, so it is not known whether there is a session.
#[tokio::test]
async fn a_sign_out_from_elsewhere_says_what_was_there() {
    let mut browser = Browser::new().await;
    let foreign = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    for (signed_in, title) in [(false, "Nobody was signed out"), (true, "You are still signed in")] {
        if signed_in {
            browser.sign_in().await;
        }
        let refused = browser.ask(Method::POST, "/oauth2/sign_out", None, &foreign).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let page = body(&refused);
        assert!(page.contains(title) && !page.contains("Sign in again"), "{page}");
        assert_eq!(page.contains("session cookie"), signed_in, "{page}");
        assert!(browser.audit.take_failed_login().is_none(), "the trail named it a failed login");
    }
}

#[tokio::test]
async fn the_sign_in_page_ends_the_session_that_it_replaces() {
    let mut browser = Browser::new().await;
    browser.sign_in().await;
    let old = browser.jar.clone();
    let away = [("sec-fetch-site", "cross-site")];
    browser.ask(Method::GET, "/oauth2/sign_in", None, &away).await;
    assert!(browser.session().await.is_some(), "another site ended the session");
    // An image with that address in content on a page of this host, and a prefetch.
    let picture = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
    let ahead = [("sec-fetch-site", "same-origin"), ("sec-purpose", "prefetch")];
    // Passed on by a service worker, whose request has the site of its own page.
    let passed_on = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "empty")];
    for unseen in [&picture[..], &ahead, &passed_on] {
        browser.ask(Method::GET, "/oauth2/sign_in", None, unseen).await;
        assert!(browser.session().await.is_some(), "nobody asked for it: {unseen:?}");
    }
    let looks = [("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    let page = browser.ask(Method::GET, "/oauth2/sign_in", Some("rd=/runs"), &looks).await;
    // The provider has its own session, and would return the same person.
    let anew = "href=\"/oauth2/start?prompt=login&amp;issuer=corp&amp;rd=%2Fruns\"";
    assert!(body(&page).contains(anew), "{}", body(&page));
    assert!(browser.jar.is_empty(), "peers:T14");
    let page = browser.ask(Method::GET, "/oauth2/sign_in", Some("rd=/runs"), &looks).await;
    assert!(body(&page).contains("href=\"/oauth2/start?issuer=corp&amp;rd=%2Fruns\""), "{}", body(&page));
    browser.jar = old;
    assert!(browser.session().await.is_none(), "peers:T14");
}
