//! Return addresses, concurrent tabs, repeated or late responses, and the loop breaker.

use std::sync::atomic::Ordering;

use super::*;
use crate::{error::Reason, sessions::cookie};

const NAVIGATION: [(&str, &str); 3] =
    [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"), ("accept", "text/html")];

impl Browser {
    fn challenge(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        extra: &[(&'static str, &str)],
    ) -> Option<String> {
        let mut headers = self.headers();
        for (name, value) in extra {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        self.login.challenge(&self.origin, method, path, query, &headers)
    }
}

#[tokio::test]
async fn path_query_and_fragment_survive() {
    let mut browser = Browser::new().await;
    let challenge = browser.challenge(&Method::GET, "/runs", Some("a=b&c=%2F"), &NAVIGATION).unwrap();
    assert_eq!(challenge, "/oauth2/continue?rd=%2Fruns%3Fa%3Db%26c%3D%252F");
    let page = browser.get(&challenge).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("script-src 'sha256-"));
    // The script appends the fragment to the link; without it, the refresh uses the same link.
    let link = "/oauth2/start?issuer=corp&amp;rd=%2Fruns%3Fa%3Db%26c%3D%252F\"";
    for part in [
        format!("data-return data-next href=\"{link}"),
        format!("<noscript><meta http-equiv=\"refresh\" content=\"0;url={link}"),
    ] {
        assert!(body(&page).contains(&part), "{part} in {}", body(&page));
    }
    let start = link.replace("&amp;", "&").replace('"', "") + "%23%2Fnamespaces%2Fci%3Fx%3D1";
    let response = browser.get(&start).await;
    assert!(location(&response).starts_with("http://127.0.0.1"), "{}", location(&response));
    assert!(!location(&response).contains("namespaces"), "the provider learns the place");

    let sent = browser.depart("%2Fruns%3Fa%3Db%23%2Fnamespaces%2Fci%3Fx%3D1").await;
    let response = browser.get(&sent.good()).await;
    assert_eq!(location(&response), "/runs?a=b#/namespaces/ci?x=1");
    // Another tab has signed in meanwhile.
    assert_eq!(location(&browser.get("/oauth2/continue?rd=%2Fother").await), "/other");
    // The fragment is kept, as the browser applies it to a redirect address without one.
    assert_eq!(location(&browser.get("/oauth2/continue?rd=%2F%2Fevil.com").await), "/#");
}

#[tokio::test]
async fn the_fragment_of_a_page_that_is_not_kept_is_put_on_no_other() {
    let mut browser = Browser::new().await;
    let long = "a".repeat(1600);
    let target = browser.challenge(&Method::GET, &format!("/{long}"), None, &NAVIGATION).unwrap();
    for address in [&*target, &format!("/oauth2/sign_in?rd=/{long}")] {
        let page = browser.get(address).await;
        assert!(body(&page).contains("rd=%2F\""), "{}", body(&page));
        assert!(!body(&page).contains("data-return "), "{}", body(&page));
    }
    let kept = browser.challenge(&Method::GET, "/page/x%20y", Some("q=1"), &NAVIGATION).unwrap();
    let page = browser.get(&kept).await;
    assert!(
        body(&page)
            .contains("data-return data-next href=\"/oauth2/start?issuer=corp&amp;rd=%2Fpage%2Fx%2520y%3Fq%3D1\"")
    );
}

#[tokio::test]
async fn only_people_are_sent_to_the_login() {
    let browser = Browser::new().await;
    let fetch = [("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty"), ("accept", "text/html")];
    assert_eq!(browser.challenge(&Method::GET, "/a", None, &fetch), None);
    assert_eq!(browser.challenge(&Method::GET, "/a", None, &[("accept", "application/json")]), None);
    assert_eq!(browser.challenge(&Method::DELETE, "/a", None, &[("origin", "https://dash.example.com")]), None);
    let nobody = Login::new(Vec::new(), browser.fixture.sessions.clone(), LoginMetrics::default(), Brand::default());
    let browser = Browser { login: nobody, ..browser };
    assert_eq!(browser.challenge(&Method::GET, "/a", None, &NAVIGATION), None);
}

#[tokio::test]
async fn a_form_sent_with_an_ended_session_is_reported_after_the_login() {
    let mut browser = Browser::new().await;
    let ours = ("origin", "https://dash.example.com");
    let form = |referer| [&NAVIGATION[..], &[ours, ("sec-fetch-site", "same-origin"), ("referer", referer)]].concat();
    for (referer, back) in [
        ("https://dash.example.com/deploy/form?env=prod", "href=\"/deploy/form?env=prod\">Back to the form"),
        ("https://dash.example.com//evil.com/", "href=\"/\">To the start page"),
        ("https://evil.example/form", "href=\"/\">To the start page"),
    ] {
        let challenge = browser.challenge(&Method::POST, "/deploy", None, &form(referer)).unwrap();
        assert!(challenge.starts_with("/oauth2/continue?rd=%2Foauth2%2Funsent%3Fnotice%3D"), "{challenge}");
        let rd = challenge.split_once("rd=").unwrap().1;
        let sent = browser.depart(rd).await;
        let response = browser.get(&sent.good()).await;
        let address = location(&response).to_owned();
        let page = browser.get(&address).await;
        assert_eq!(page.status(), StatusCode::OK, "{}", body(&page));
        assert!(body(&page).contains("<code>POST /deploy</code>") && body(&page).contains(back), "{}", body(&page));
        // Regression: anybody was told that they were signed in, also without any session.
        let jar = std::mem::take(&mut browser.jar);
        let elsewhere = browser.get(&address).await;
        for (page, is_signed_in) in [(&page, true), (&elsewhere, false)] {
            assert_eq!(body(page).contains("You are signed in again now"), is_signed_in, "{}", body(page));
            assert_eq!(body(page).contains("Sign in, then fill it in"), !is_signed_in, "{}", body(page));
        }
        browser.jar = jar;
        // At another host, or modified, the notice is invalid.
        browser.origin = Origin::https("k8s.example.com").unwrap();
        assert_eq!(browser.get(&address).await.status(), StatusCode::BAD_REQUEST);
        browser.origin = Origin::https("dash.example.com").unwrap();
        assert_eq!(browser.get(&address.replace("notice=", "notice=A")).await.status(), StatusCode::BAD_REQUEST);
    }
    assert_eq!(browser.get("/oauth2/unsent").await.status(), StatusCode::BAD_REQUEST);
    // The maximum lengths still fit into the cookie of a login.
    let long = format!("/{}", "é".repeat(500));
    let referer = format!("https://dash.example.com/{}", "b".repeat(399));
    let challenge = browser.challenge(&Method::POST, &long, None, &form(&referer)).unwrap();
    let sent = browser.depart(challenge.split_once("rd=").unwrap().1).await;
    assert!(location(&browser.get(&sent.good()).await).starts_with("/oauth2/unsent?notice="));
    // A form of another site gets no challenge.
    let foreign = [&NAVIGATION[..], &[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]].concat();
    assert_eq!(browser.challenge(&Method::POST, "/deploy", None, &foreign), None);
}

#[tokio::test]
async fn going_in_circles_ends() {
    let mut browser = Browser::new().await;
    for round in 1..=5 {
        let sent = browser.depart("/runs").await;
        assert_eq!(location(&browser.get(&sent.good()).await), "/runs", "round {round}");
        // The session does not last: its cookie is not sent back, or is invalid.
        browser.jar.retain(|(name, _)| name != cookie::SESSION);
    }
    let stopped = browser.get("/oauth2/start?rd=/runs").await;
    assert_eq!(stopped.status(), StatusCode::LOOP_DETECTED);
    assert!(body(&stopped).contains("/oauth2/start?rd=%2Fruns"), "no way to try again");
    assert_eq!(browser.metrics.count("corp", Outcome::looping), 1);
    // The button resets the count.
    let sent = browser.depart("/runs").await;
    assert_eq!(location(&browser.get(&sent.good()).await), "/runs");
    // A sign-out resets the count too.
    for _ in 0..8 {
        browser.sign_in().await;
        let ours = [("origin", "https://dash.example.com")];
        assert_eq!(browser.ask(Method::POST, "/oauth2/sign_out", None, &ours).await.status(), StatusCode::SEE_OTHER);
    }
}

#[tokio::test]
async fn many_tabs_at_once_are_no_circle() {
    let mut browser = Browser::new().await;
    let mut tabs = Vec::new();
    for tab in 0..12 {
        tabs.push(browser.depart(&format!("/tab{tab}")).await);
    }
    for (tab, sent) in tabs.iter().enumerate() {
        browser.script(|script| script.claims.as_mut().unwrap()["nonce"] = sent.parameters["nonce"].clone().into());
        assert_eq!(location(&browser.get(&sent.good()).await), format!("/tab{tab}"));
    }
    assert_eq!(browser.get("/oauth2/start?rd=/").await.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_repeated_answer_links_to_where_the_first_one_went() {
    let mut browser = Browser::new().await;
    let sent = browser.depart("/runs").await;
    browser.get(&sent.good()).await;
    let again = browser.get(&sent.good()).await;
    assert_eq!(again.status(), StatusCode::BAD_REQUEST);
    assert!(body(&again).contains("class=\"button\" href=\"/runs\">Go on"), "{}", body(&again));
    // A browser that is not signed in gets only a link to sign in; the return address is sealed in the store.
    browser.jar.clear();
    let elsewhere = browser.get(&sent.good()).await;
    assert!(!body(&elsewhere).contains(">Go on"), "{}", body(&elsewhere));
    assert!(body(&elsewhere).contains("class=\"button\" href=\"/oauth2/start?rd=%2Fruns\""), "{}", body(&elsewhere));
}

#[tokio::test]
async fn a_late_answer_continues_if_another_tab_signed_in() {
    let mut browser = Browser::new().await;
    let late = browser.depart("/slow").await;
    browser.fixture.shared.clock.advance(Duration::from_secs(601));
    let expired = browser.get(&late.good()).await;
    assert_eq!(expired.status(), StatusCode::BAD_REQUEST);
    assert!(body(&expired).contains("class=\"button\" href=\"/oauth2/start?rd=%2Fslow\""), "{}", body(&expired));

    let late = browser.depart("/slow").await;
    browser.fixture.shared.clock.advance(Duration::from_secs(601));
    browser.sign_in().await;
    let expired = browser.get(&late.good()).await;
    assert!(body(&expired).contains("class=\"button\" href=\"/slow\">Go on"), "{}", body(&expired));
}

#[tokio::test]
async fn a_tab_dropped_for_newer_ones_is_told_so_and_continues_if_the_browser_is_signed_in() {
    let mut browser = Browser::new().await;
    let oldest = browser.depart("/tab").await;
    for _ in 0..20 {
        browser.depart("/tab").await;
    }
    for (way, absent) in [("Sign in again.", "Just go on."), ("Just go on.", "Sign in again.")] {
        let told = body(&browser.get(&oldest.good()).await).to_owned();
        for part in ["of many at once the oldest are", "If you did not begin a sign-in", way] {
            assert!(told.contains(part) && !told.contains(absent), "{part} in {told}");
        }
        assert_eq!(told.contains(">Go on<"), way == "Just go on.", "{told}");
        browser.sign_in().await;
    }
}

#[tokio::test]
async fn clocks_that_differ_are_named() {
    // By the issuer's clock skew, if its verification fails.
    let mut browser = Browser::new().await;
    let sent = browser.depart("/runs").await;
    browser.script(|script| script.unverifiable = Some(Reason::TokenNotYetValid));
    let response = browser.get(&sent.good()).await;
    assert!(body(&response).contains("differ by more than 30s."), "{}", body(&response));
    for (claim, value) in [("iat", 4_000_000_000_i64), ("iat", 1), ("exp", 1)] {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/runs").await;
        browser.script(|script| script.claims.as_mut().unwrap()[claim] = value.into());
        let response = browser.get(&sent.good()).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let claim = format!("(`{claim}`)");
        for part in ["The clocks do not agree", "differ by more than 1m.", &claim, "/oauth2/start?rd=%2Fruns"] {
            assert!(body(&response).contains(part), "{claim}: {part} in {}", body(&response));
        }
        assert_eq!(browser.metrics.count("corp", Outcome::id_token_refused), 1);
    }
}

/// Discovery had succeeded, but there were no keys yet: people were sent to the provider and could not be signed in
/// afterwards.
#[tokio::test]
async fn a_login_begins_once_its_answer_can_be_verified() {
    let mut browser = Browser::new().await;
    let has_keys = &browser.fixture.provider.clone().has_keys;
    has_keys.store(false, Ordering::SeqCst);
    let refused = browser.get("/oauth2/start?rd=/runs").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{}", body(&refused));
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    has_keys.store(true, Ordering::SeqCst);
    assert_eq!(browser.sign_in().await.status(), StatusCode::SEE_OTHER);
}
