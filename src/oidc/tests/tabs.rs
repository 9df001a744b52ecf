//! Logins side by side in the tabs of one browser, and logins that replace a session.

use super::*;

impl Browser {
    /// Returns from the provider in the tab of `sent`, after this change to the claims.
    async fn come_back(&mut self, sent: &Sent, change: impl FnOnce(&mut Value)) -> Response<Bytes> {
        self.script(|script| {
            let claims = script.claims.as_mut().unwrap();
            claims["nonce"] = sent.parameters["nonce"].clone().into();
            change(claims);
        });
        self.get(&sent.good()).await
    }

    async fn depart_in_two_tabs(&mut self) -> (Sent, Sent) {
        (self.depart("/one").await, self.depart("/two").await)
    }
}

/// The sessions of tabs that had signed in before were ended one after another, and with them what their pages had
/// opened.
#[tokio::test]
async fn a_tab_keeps_the_session_of_another_unless_its_login_says_something_new() {
    type Row = (&'static str, fn(&mut Value, i64), bool);
    let rows: &[Row] = &[
        ("the same", |_, _| {}, true),
        (
            "another token",
            |claims, now| {
                claims["iat"] = (now + 1).into();
                claims["jti"] = "j-2".into();
            },
            true,
        ),
        (
            "authenticated before",
            |claims, now| {
                claims["auth_time"] = (now - 600).into();
                claims["amr"] = json!(["pwd"]);
            },
            true,
        ),
        ("authenticated at some time", |claims, _| drop(claims.as_object_mut().unwrap().remove("auth_time")), true),
        ("authenticated later", |claims, now| claims["auth_time"] = (now - 30).into(), false),
        ("another class", |claims, _| claims["acr"] = "gold".into(), false),
        ("more groups", |claims, _| claims["groups"] = json!(["dev", "ops"]), false),
        ("fewer groups", |claims, _| claims["groups"] = json!([]), false),
        ("another session at the provider", |claims, _| claims["sid"] = "s-2".into(), false),
        ("somebody else", |claims, _| claims["sub"] = "bob".into(), false),
    ];
    for (row, change, is_kept) in rows {
        let mut browser = Browser::new().await;
        let now = browser.fixture.shared.clock.now().as_secs();
        let (first, second) = browser.depart_in_two_tabs().await;
        let authenticated = |claims: &mut Value| {
            claims["auth_time"] = (now - 60).into();
            claims["amr"] = json!(["pwd", "otp"]);
        };
        browser.come_back(&first, authenticated).await;
        let before = browser.session().await.unwrap();
        let response = browser.come_back(&second, |claims| change(claims, now)).await;
        assert_eq!((response.status(), location(&response)), (StatusCode::SEE_OTHER, "/two"), "{row}");
        let after = browser.session().await.unwrap();
        assert_eq!(after.name() == before.name(), *is_kept, "{row}");
        let ended = browser.fixture.shared.revocations.end_of(&before.name()).map(|end| end.reason.to_string());
        assert_eq!(ended.as_deref(), (!is_kept).then_some("replaced"), "{row}");
    }
}

#[tokio::test]
async fn other_scopes_of_another_tab_replace_the_session() {
    let mut browser = Browser::new().await;
    let (first, second) = browser.depart_in_two_tabs().await;
    browser.come_back(&first, |_| {}).await;
    let before = browser.session().await.unwrap();
    browser.script(|script| script.answer["scope"] = json!("openid"));
    browser.come_back(&second, |_| {}).await;
    let after = browser.session().await.unwrap();
    assert_ne!(after.name(), before.name());
    assert_eq!(after.principal.scopes, [Arc::<str>::from("openid")]);
}

/// It says less about when, but more about how.
#[tokio::test]
async fn a_step_up_replaces_the_session_of_a_tab_that_lacks_what_is_needed() {
    let mut browser = Browser::new().await;
    let now = browser.fixture.shared.clock.now().as_secs();
    let plain = browser.depart("/one").await;
    let stronger = browser.depart_from("/oauth2/start?mfa=3600&rd=/two").await;
    let authenticated = |claims: &mut Value, ago: i64, amr: Value| {
        claims["auth_time"] = (now - ago).into();
        claims["amr"] = amr;
    };
    browser.come_back(&plain, |claims| authenticated(claims, 10, json!(["pwd"]))).await;
    let before = browser.session().await.unwrap();
    let response = browser.come_back(&stronger, |claims| authenticated(claims, 60, json!(["pwd", "otp"]))).await;
    assert_eq!(location(&response), "/two", "{}", body(&response));
    let after = browser.session().await.unwrap();
    assert_ne!(after.name(), before.name());
    assert!(after.principal.login.amr.contains(&"otp".into()), "{:?}", after.principal.login);
}

/// Each left a session that no browser had, and that counted until it was idle for too long.
#[tokio::test]
async fn tabs_that_come_back_at_the_same_time_begin_one_session() {
    let mut browser = Browser::new().await;
    let (first, second) = browser.depart_in_two_tabs().await;
    browser.fixture.shared.clock.advance(Duration::from_millis(1));
    let jar = browser.jar.clone();
    browser.come_back(&first, |_| {}).await;
    let session = browser.session().await.unwrap();
    // Sent before the response to the first arrived.
    let signed_in = std::mem::replace(&mut browser.jar, jar);
    let response = browser.come_back(&second, |_| {}).await;
    assert_eq!(location(&response), "/two", "{}", body(&response));
    assert!(browser.session().await.is_none(), "{:?}", browser.jar);
    let listed = browser.fixture.sessions.list(&browser.fixture.provider.issuer, "alice").await.unwrap();
    assert_eq!(listed.iter().map(|listed| &*listed.session).collect::<Vec<_>>(), [session.name()]);
    browser.jar = signed_in;
    assert!(browser.session().await.is_some());
}

/// The page that leads to the login was loaded before the other tab had signed in.
#[tokio::test]
async fn a_tab_that_is_led_to_the_login_goes_on_if_another_has_signed_in_meanwhile() {
    let mut browser = Browser::new().await;
    browser.sign_in().await;
    let ours = ("sec-fetch-site", "same-origin");
    for (row, query, headers, goes_on) in [
        ("by a page", "rd=/runs", &[ours][..], true),
        ("by a click", "rd=/runs", &[ours, ("sec-fetch-user", "?1")][..], false),
        ("by a link of another site", "rd=/runs", &[("sec-fetch-site", "cross-site")][..], false),
        ("to authenticate again", "prompt=login&rd=/runs", &[ours][..], false),
        ("for a second factor", "mfa=300&rd=/runs", &[ours][..], false),
    ] {
        let response = browser.ask(Method::GET, "/oauth2/start", Some(query), headers).await;
        assert_eq!(location(&response) == "/runs", goes_on, "{row}");
    }
    // There they may be somebody else.
    let mut providers: Vec<Arc<dyn Provider>> = vec![Arc::clone(&browser.fixture.provider) as _];
    providers.push(Arc::new(ScriptedProvider::offline("partners")));
    browser.login = Login::new(providers, browser.fixture.sessions.clone(), LoginMetrics::default(), Brand::default());
    let response = browser.ask(Method::GET, "/oauth2/start", Some("issuer=partners&rd=/runs"), &[ours]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "to another provider");
}
