//! Responses of a provider that must not sign anybody in.

use super::*;
use crate::{
    audit::FailedLogin,
    error::Reason,
    sha256::sha256,
    store::{Backend as _, Table, Target},
};

/// Callbacks that differ from the valid one in one respect. None reaches the token endpoint, creates a session or
/// redirects.
#[tokio::test]
async fn an_answer_to_a_foreign_login_is_refused() {
    type Row = (&'static str, fn(&Sent) -> String, StatusCode);
    let rows: &[Row] = &[
        (
            "oauth-section:1 no code, no error",
            |sent| format!("?state={}&iss={}", sent.state(), encode(&sent.issuer)),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 code and error",
            |sent| format!("?code=c&error=x&state={}&iss={}", sent.state(), encode(&sent.issuer)),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 code twice",
            |sent| format!("?code=c&code=d&state={}&iss={}", sent.state(), encode(&sent.issuer)),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 state twice",
            |sent| format!("?code=c&state={0}&state={0}&iss={1}", sent.state(), encode(&sent.issuer)),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 iss twice",
            |sent| format!("{}&iss=x", &sent.good()["/oauth2/callback".len()..]),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 anything twice",
            |sent| format!("{}&x=1&x=1", &sent.good()["/oauth2/callback".len()..]),
            StatusCode::BAD_REQUEST,
        ),
        ("oauth-section:1 no state", |_| "?code=c".to_owned(), StatusCode::BAD_REQUEST),
        ("oauth-section:1 empty state", |_| "?code=c&state=".to_owned(), StatusCode::BAD_REQUEST),
        ("oauth-section:1 unknown state", |_| format!("?code=c&state={}", "A".repeat(86)), StatusCode::BAD_REQUEST),
        ("oauth-section:1 state changed", |sent| format!("?code=c&state={}A", sent.state()), StatusCode::BAD_REQUEST),
        ("oauth-section:1 empty query", |_| "?".to_owned(), StatusCode::BAD_REQUEST),
        ("oauth-section:1 iss missing", |sent| format!("?code=c&state={}", sent.state()), StatusCode::BAD_REQUEST),
        (
            "oauth-section:1 iss of another",
            |sent| format!("?code=c&state={}&iss=https%3A%2F%2Fevil.example", sent.state()),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 iss with a slash",
            |sent| format!("?code=c&state={}&iss={}%2F", sent.state(), encode(&sent.issuer)),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 iss of another beside an error",
            |sent| format!("?error=x&state={}&iss=https%3A%2F%2Fevil.example", sent.state()),
            StatusCode::BAD_REQUEST,
        ),
        (
            "oauth-section:1 refused",
            |sent| format!("?error=access_denied&state={}&iss={}", sent.state(), encode(&sent.issuer)),
            StatusCode::FORBIDDEN,
        ),
    ];
    for (row, query, status) in rows {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        let response = browser.get(&format!("/oauth2/callback{}", query(&sent))).await;
        assert_eq!(response.status(), *status, "{row}");
        assert!(!response.headers().contains_key(header::LOCATION), "{row}");
        assert!(browser.exchanges().is_empty(), "{row}: the code was sent");
        assert!(browser.session().await.is_none(), "{row}");
    }
}

#[tokio::test]
async fn only_get_is_an_answer() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    let query = sent.good().split_once('?').unwrap().1.to_owned();
    for method in [Method::POST, Method::HEAD, Method::PUT] {
        let response = browser.ask(method.clone(), "/oauth2/callback", Some(&query), &[]).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(response.headers()[header::ALLOW], "GET");
    }
    assert!(browser.exchanges().is_empty());
    assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
}

/// `peers:T2`: a response that belongs to somebody else's login.
#[tokio::test]
async fn a_login_of_another_browser_is_not_completed_here() {
    let mut attacker = Browser::new().await;
    let sent = attacker.depart("/").await;
    let theirs = std::mem::take(&mut attacker.jar);
    let response = attacker.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "peers:T2 no cookie");
    assert!(body(&response).contains("somebody may have sent you their own"), "{}", body(&response));
    // The victim has a login in progress.
    attacker.depart("/").await;
    let response = attacker.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "peers:T2 another cookie");
    // The victim's cookie under the name of the attacker's.
    attacker.jar[0].0.clone_from(&theirs[0].0);
    let response = attacker.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "peers:T2 a cookie moved");
    // The attacker's cookie twice.
    attacker.jar = vec![theirs[0].clone(), theirs[0].clone()];
    let response = attacker.get(&sent.good()).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "cookie twice");
    assert!(attacker.exchanges().is_empty(), "the code was sent");
    assert!(attacker.session().await.is_none());
    assert_eq!(attacker.metrics.count("", Outcome::other_browser), 4);
    attacker.jar = theirs;
    let answer = attacker.depart("/").await;
    attacker.script(|script| script.claims.as_mut().unwrap()["nonce"] = sent.parameters["nonce"].clone().into());
    drop(answer);
    assert_eq!(attacker.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
}

/// Regression: people whose browser keeps no cookie read only about an attack, and "Sign in again" led back to the same
/// page.
#[tokio::test]
async fn a_browser_that_keeps_no_cookies_gets_an_explanation_and_a_remedy() {
    for (origin, is_told_of_webkit) in
        [(Origin::https("dash.example.com"), false), (Origin::loopback("localhost:8080"), true)]
    {
        let mut browser = Browser::new().await;
        browser.origin = origin.unwrap();
        let sent = browser.depart("/").await;
        let kept = std::mem::take(&mut browser.jar);
        let told = browser.get(&sent.good()).await;
        let host = browser.origin.authority();
        for part in ["did not keep Doorward's cookie", &format!("allow cookies of {host}"), "If you did not begin"] {
            assert!(body(&told).contains(part), "{part} in {}", body(&told));
        }
        assert_eq!(body(&told).contains("WebKit"), is_told_of_webkit, "{}", body(&told));
        // A browser with another cookie of ours does store them.
        browser.jar = vec![("__Host-doorward-issuer".to_owned(), kept[0].1.clone())];
        let told = browser.get(&sent.good()).await;
        assert!(!body(&told).contains("did not keep"), "{}", body(&told));
    }
}

#[tokio::test]
async fn a_login_of_another_host_is_not_completed_here() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    browser.origin = Origin::https("k8s.example.com").unwrap();
    assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::FORBIDDEN);
    assert!(browser.exchanges().is_empty());
}

#[tokio::test]
async fn an_answer_counts_once_and_for_ten_minutes() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    let jar = browser.jar.clone();
    assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
    // From the browser's history, then with the cookie restored and without the session. Regression: the page advised to
    // just go on where there was nothing to go on with.
    for (jar, is_signed_in) in [(browser.jar.clone(), true), (jar, false), (Vec::new(), false)] {
        browser.jar = jar;
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert!(body(&response).contains("already completed"));
        assert_eq!(body(&response).contains("just go on"), is_signed_in, "{}", body(&response));
        assert_eq!(body(&response).contains(">Go on<"), is_signed_in, "{}", body(&response));
    }
    assert_eq!(browser.exchanges().len(), 1, "the code was sent twice");

    for (wait, status) in [(599_999, StatusCode::SEE_OTHER), (600_000, StatusCode::BAD_REQUEST)] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/runs").await;
        browser.fixture.shared.clock.advance(Duration::from_millis(wait));
        let now = browser.fixture.shared.clock.now().as_secs();
        browser.script(|script| {
            script.claims.as_mut().unwrap()["iat"] = now.into();
            script.claims.as_mut().unwrap()["exp"] = (now + 60).into();
        });
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), status, "{wait}");
        if status != StatusCode::SEE_OTHER {
            assert!(body(&response).contains("/oauth2/start?rd=%2Fruns"), "the place is lost");
        }
    }
}

#[tokio::test]
async fn only_one_of_two_simultaneous_answers_counts() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    let headers = browser.headers();
    let good = sent.good();
    let query = good.split_once('?').unwrap().1;
    let request = LoginRequest {
        origin: &browser.origin,
        method: &Method::GET,
        path: "/oauth2/callback",
        query: Some(query),
        headers: &headers,
        body: &[],
        request_id: "r",
        address: std::net::Ipv4Addr::LOCALHOST.into(),
        is_shared_address: false,
        audit: &EndpointAudit::default(),
        left_out: &[],
    };
    let (one, other) = tokio::join!(browser.login.answer(request), browser.login.answer(request));
    let mut statuses = [one.unwrap().status(), other.unwrap().status()];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::SEE_OTHER, StatusCode::BAD_REQUEST]);
    assert_eq!(browser.exchanges().len(), 1);
}

impl Browser {
    /// The bytes stored for a response.
    async fn kept_of(&self, sent: &Sent) -> Option<usize> {
        let (key, now) = (sha256(&[sent.state().as_bytes()]), self.fixture.shared.clock.now());
        self.fixture.store.get(Table::Logins, &key, now).await.unwrap().map(|stored| stored.value.len())
    }
}

/// Each was stored for twenty minutes with its return address, which the client had chosen.
#[tokio::test]
async fn a_failed_login_does_not_fill_the_store() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/runs").await;
    let refused = format!("/oauth2/callback?error=access_denied&state={}&iss={}", sent.state(), encode(&sent.issuer));
    for row in ["at first", "loaded again"] {
        let response = browser.get(&refused).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{row}");
        assert!(body(&response).contains("The provider did not sign you in"), "{row}: {}", body(&response));
        assert!(body(&response).contains("&amp;rd=%2Fruns\""), "{row}: {}", body(&response));
        assert_eq!(browser.kept_of(&sent).await, None, "{row}");
    }

    // Only the fact that a code came is stored, and nothing that the client chose.
    let sent = browser.depart("/runs").await;
    browser.script(|script| script.status = StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(browser.kept_of(&sent).await, Some(0), "the provider had trouble");

    let sent = browser.depart("/runs").await;
    assert_eq!(browser.get(&sent.good()).await.status(), StatusCode::SEE_OTHER);
    assert!(browser.kept_of(&sent).await.is_some_and(|bytes| bytes > 0), "twin: where a login led to is known");
    let again = browser.get(&sent.good()).await;
    assert!(body(&again).contains("href=\"/runs\""), "{}", body(&again));
}

/// Token responses with one fault. The state is used up and there is no session.
#[tokio::test]
async fn invalid_tokens_give_no_session() {
    type Row = (&'static str, fn(&mut Script), StatusCode);
    let rows: &[Row] = &[
        (
            "refused",
            |script| {
                script.status = StatusCode::BAD_REQUEST;
                script.answer = json!({"error": "invalid_grant"});
            },
            StatusCode::BAD_GATEWAY,
        ),
        ("server error", |script| script.status = StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_GATEWAY),
        ("not an object", |script| (script.answer, script.claims) = (json!("x"), None), StatusCode::BAD_GATEWAY),
        ("token type", |script| script.answer["token_type"] = "DPoP".into(), StatusCode::BAD_GATEWAY),
        (
            "token type missing",
            |script| drop(script.answer.as_object_mut().unwrap().remove("token_type")),
            StatusCode::BAD_GATEWAY,
        ),
        ("no ID token", |script| script.claims = None, StatusCode::BAD_GATEWAY),
        ("oauth-section:2.3 forged", |script| script.forged = true, StatusCode::BAD_GATEWAY),
        (
            "oauth-section:2.4 issuer",
            |script| script.claims.as_mut().unwrap()["iss"] = "https://evil.example".into(),
            StatusCode::BAD_GATEWAY,
        ),
        (
            "oauth-section:2.5 audience",
            |script| script.claims.as_mut().unwrap()["aud"] = "other".into(),
            StatusCode::BAD_GATEWAY,
        ),
        (
            "oauth-section:2.6 azp",
            |script| script.claims.as_mut().unwrap()["azp"] = "other".into(),
            StatusCode::BAD_GATEWAY,
        ),
        (
            "oauth-section:2.7 expired",
            |script| script.claims.as_mut().unwrap()["exp"] = 1.into(),
            StatusCode::BAD_GATEWAY,
        ),
        ("oauth-section:2.8 old", |script| script.claims.as_mut().unwrap()["iat"] = 1.into(), StatusCode::BAD_GATEWAY),
        (
            "oauth-section:2.9 nonce",
            |script| script.claims.as_mut().unwrap()["nonce"] = "n".into(),
            StatusCode::BAD_GATEWAY,
        ),
        (
            "oauth-section:2.12 at_hash",
            |script| script.claims.as_mut().unwrap()["at_hash"] = "AAAA".into(),
            StatusCode::BAD_GATEWAY,
        ),
        ("identity", |script| script.claims.as_mut().unwrap()["sub"] = "system:masters".into(), StatusCode::FORBIDDEN),
    ];
    for (row, change, status) in rows {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        browser.script(change);
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), *status, "{row}: {}", body(&response));
        assert_eq!(browser.exchanges().len(), 1, "{row}");
        assert!(browser.session().await.is_none(), "{row}");
        assert!(browser.jar.is_empty(), "{row}: {:?}", browser.jar);
        assert!(!body(&response).contains("a-1"), "{row}: a token is shown");
        let again = if *row == "identity" {
            "/oauth2/start?prompt=login&amp;issuer=corp&amp;rd=%2F"
        } else {
            "/oauth2/start?rd=%2F"
        };
        assert!(body(&response).contains(again), "{row}: no way to go on");
    }
}

#[tokio::test]
async fn the_error_of_the_provider_is_shown_as_bounded_text() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    let description = format!("%25s%25n%3Cscript%3E%0d%0a{}", "x".repeat(5000));
    let query =
        format!("error=%3Cb%3E&error_description={description}&state={}&iss={}", sent.state(), encode(&sent.issuer));
    let response = browser.get(&format!("/oauth2/callback?{query}")).await;
    let text = body(&response);
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(text.contains("&lt;b&gt;: %s%n&lt;script&gt;"), "peers:D11 {text}");
    assert!(!text.contains("<script>") && !text.contains(&"x".repeat(201)), "{text}");
}

/// Regression: the trail had the status of the page and nothing else.
#[tokio::test]
async fn the_trail_gets_why_and_where_a_login_failed_and_no_text_of_the_provider() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/").await;
    let query = format!("error=invalid_scope&state={}&iss={}", sent.state(), encode(&sent.issuer));
    assert_eq!(browser.get(&format!("/oauth2/callback?{query}")).await.status(), StatusCode::FORBIDDEN);
    let (failed, refusal) = browser.audit.take_failed_login().unwrap();
    assert_eq!(failed, FailedLogin { outcome: Outcome::provider_error, issuer: Some("corp".into()) });
    assert!(refusal.is_none(), "{refusal:?}");
}

/// Regression: the trail named nobody.
#[tokio::test]
async fn a_revoked_person_who_signs_in_is_named_to_the_trail() {
    let mut browser = Browser::new().await;
    assert_eq!(browser.sign_in().await.status(), StatusCode::SEE_OTHER, "twin");
    assert!(browser.audit.take_failed_login().is_none());
    let shared = &browser.fixture.shared;
    let (alice, until) = (Target::Principal { issuer: "corp", subject: "alice" }, Duration::from_secs(60));
    shared.revocations.revoke(alice, "left", shared.clock.now() + until).await.unwrap();
    assert_eq!(browser.sign_in().await.status(), StatusCode::FORBIDDEN);
    let (failed, refusal) = browser.audit.take_failed_login().unwrap();
    assert_eq!(failed.outcome, Outcome::identity_refused);
    let refusal = refusal.unwrap();
    assert_eq!(refusal.reason(), Reason::TokenRevoked);
    let presented = refusal.presented().unwrap();
    assert_eq!((&*presented.issuer, &*presented.subject), ("corp", "alice"));
}

/// "Sign in with another account" led to the provider, which returned the same person without asking.
#[tokio::test]
async fn a_person_whose_account_is_not_permitted_can_choose_another() {
    let anew = "class=\"button\" href=\"/oauth2/start?prompt=login&amp;issuer=corp&amp;rd=%2Fruns\"";
    let plain = "class=\"button\" href=\"/oauth2/start?rd=%2Fruns\"";
    for (error, button) in [("access_denied", anew), ("temporarily_unavailable", plain), ("invalid_request", plain)] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/runs").await;
        let answer = format!("/oauth2/callback?error={error}&state={}&iss={}", sent.state(), encode(&sent.issuer));
        let response = browser.get(&answer).await;
        assert!(body(&response).contains(button), "{error}: {}", body(&response));
    }
    let mut browser = Browser::new().await;
    let sent = browser.depart("/runs").await;
    browser.script(|script| script.claims.as_mut().unwrap()["sub"] = "system:masters".into());
    let response = browser.get(&sent.good()).await;
    assert!(body(&response).contains(anew), "{}", body(&response));
    let again = browser.depart_from("/oauth2/start?prompt=login&issuer=corp&rd=%2Fruns").await;
    assert_eq!(again.parameters["prompt"], "login");
}

/// The page read as if the person was signed out, and advised another account.
#[tokio::test]
async fn a_person_who_declines_a_step_up_is_told_that_the_session_goes_on() {
    let mut browser = Browser::new().await;
    for (signed_in, advice) in
        [(false, "perhaps with another account"), (true, "declined. You are still signed in as before: only what")]
    {
        if signed_in {
            browser.sign_in().await;
        }
        let sent = browser.depart_from("/oauth2/start?issuer=corp&acr_values=gold&rd=%2Fdeploy").await;
        let refused =
            format!("/oauth2/callback?error=access_denied&state={}&iss={}", sent.state(), encode(&sent.issuer));
        let page = browser.get(&refused).await;
        assert_eq!(page.status(), StatusCode::FORBIDDEN);
        assert!(body(&page).contains(advice), "{}", body(&page));
        assert_eq!(body(&page).contains("another account"), !signed_in, "{}", body(&page));
        assert_eq!(browser.session().await.is_some(), signed_in);
    }
}

/// It is a decision about the account, not a failure of the provider.
#[tokio::test]
async fn an_account_without_the_required_claims_is_refused_with_that_reason() {
    let secret = ClientAuth::of_test("doorward", ClientAuthMethod::Basic, Some("s"));
    let mut provider = ScriptedProvider::start("corp", secret).await;
    provider.required.insert("hd".to_owned(), "acme.example".into());
    let mut browser = Browser::at(provider);
    for (domain, status, words) in [
        ("other.example", StatusCode::FORBIDDEN, "not one of those that may sign in here"),
        ("acme.example", StatusCode::SEE_OTHER, ""),
    ] {
        let sent = browser.depart("/runs").await;
        browser.script(|script| script.claims.as_mut().unwrap()["hd"] = domain.into());
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), status, "{domain}: {}", body(&response));
        assert!(body(&response).contains(words), "{domain}: {}", body(&response));
    }
}
