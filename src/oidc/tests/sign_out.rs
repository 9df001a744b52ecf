//! How sessions end.

use super::*;

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

/// Browsers send no cookie with a form of another site: nothing was there to be kept, and nothing to do anew.
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
    // A picture of that address in a text that a page of this host shows, and a page that is fetched in case somebody goes there.
    let picture = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
    let ahead = [("sec-fetch-site", "same-origin"), ("sec-purpose", "prefetch")];
    for unseen in [&picture[..], &ahead] {
        browser.ask(Method::GET, "/oauth2/sign_in", None, unseen).await;
        assert!(browser.session().await.is_some(), "nobody asked for it: {unseen:?}");
    }
    let looks = [("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    let page = browser.ask(Method::GET, "/oauth2/sign_in", Some("rd=/runs"), &looks).await;
    assert!(body(&page).contains("href=\"/oauth2/start?issuer=corp&amp;rd=%2Fruns\""), "{}", body(&page));
    assert!(browser.jar.is_empty(), "peers:T14");
    browser.jar = old;
    assert!(browser.session().await.is_none(), "peers:T14");
}
