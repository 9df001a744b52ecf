//! Responses of one provider that are passed off as another's (RFC 9700 section 4.4).

use super::*;
use crate::config::raw::Redirect;

/// The two providers: whether each names itself in its responses, and its configured `redirect`.
#[derive(Clone, Copy, Debug)]
struct Setup {
    evil: (bool, Option<Redirect>),
    honest: (bool, Option<Redirect>),
}

const HONEST: &str = "https://honest.example";

/// A browser with the choice between `corp`, which is dishonest, and `honest`.
async fn between_two(Setup { evil, honest }: Setup) -> Browser {
    let secret = || ClientAuth::of_test("doorward", ClientAuthMethod::Basic, Some("s"));
    let mut first = ScriptedProvider::start("corp", secret()).await;
    first.client.redirect = evil.1;
    first.change_metadata(|metadata| metadata.iss_parameter_supported = evil.0);
    let mut second = ScriptedProvider::start("honest", secret()).await;
    second.client.redirect = honest.1;
    second.change_metadata(|metadata| metadata.iss_parameter_supported = honest.0);
    let mut browser = Browser::at(first);
    let providers = vec![Arc::clone(&browser.fixture.provider) as Arc<dyn Provider>, Arc::new(second)];
    browser.login = Login::new(providers, browser.fixture.sessions.clone(), browser.metrics.clone(), Brand::default());
    browser
}

#[tokio::test]
async fn the_code_of_an_honest_provider_never_reaches_another_one() {
    use Redirect::{Own, Shared};
    // The address is one that is registered with the honest provider: its own, or an obsolete one.
    let (shared, own, others) = ("/oauth2/callback", "/oauth2/callback/honest", "/oauth2/callback/corp");
    let setup = |evil, honest| Setup { evil, honest };
    for (row, setup, address, names_itself, arrives) in [
        ("rfc9700:4.4 neither names itself", setup((false, None), (false, None)), own, false, false),
        ("rfc9700:4.4 at an address that was left", setup((false, None), (false, None)), shared, false, false),
        ("rfc9700:4.4 the evil one names itself", setup((true, None), (false, None)), own, false, false),
        ("rfc9700:4.4 it does, at an address that was left", setup((true, None), (false, None)), shared, false, false),
        ("rfc9700:4.4 the honest one names itself", setup((false, None), (true, None)), shared, true, false),
        ("rfc9700:4.4 both do", setup((true, None), (true, None)), shared, true, false),
        ("rfc9700:4.4 the evil one shares", setup((false, Some(Shared)), (false, None)), own, false, false),
        ("rfc9700:4.4 both have their own", setup((true, Some(Own)), (true, Some(Own))), own, true, false),
        ("rfc9700:4.4 named, at the evil one's", setup((false, None), (true, None)), others, true, false),
        // Possible only by explicit configuration, with a warning.
        ("both share", setup((false, Some(Shared)), (false, Some(Shared))), shared, false, true),
    ] {
        let mut browser = between_two(setup).await;
        let sent = browser.depart_from("/oauth2/start?issuer=corp&rd=/").await;
        let iss = if names_itself { format!("&iss={}", encode(HONEST)) } else { String::new() };
        let response = browser.get(&format!("{address}?code=of-the-honest&state={}{iss}", sent.state())).await;
        let codes: Vec<String> = browser.exchanges().iter().map(|exchange| exchange.form["code"].clone()).collect();
        assert_eq!(codes == ["of-the-honest"], arrives, "{row}: {codes:?}");
        if !arrives {
            assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{row}");
            assert!(body(&response).contains("Another provider answered"), "{row}: {}", body(&response));
            assert!(browser.session().await.is_none(), "{row}");
            assert_eq!(browser.metrics.count("corp", Outcome::issuer_mismatch), 1, "{row}");
        }
    }
}

#[tokio::test]
async fn each_provider_has_a_redirect_address_that_distinguishes_its_answers() {
    use Redirect::{Own, Shared};
    for (row, several, (names_itself, redirect), expected) in [
        ("alone", false, (false, None), "/oauth2/callback"),
        ("alone, with its own", false, (false, Some(Own)), "/oauth2/callback/corp"),
        ("named", true, (true, None), "/oauth2/callback"),
        ("named, with its own", true, (true, Some(Own)), "/oauth2/callback/corp"),
        ("not named", true, (false, None), "/oauth2/callback/corp"),
        ("not named, shared", true, (false, Some(Shared)), "/oauth2/callback"),
    ] {
        let mut browser = between_two(Setup { evil: (names_itself, redirect), honest: (true, None) }).await;
        if !several {
            let only = vec![Arc::clone(&browser.fixture.provider) as Arc<dyn Provider>];
            browser.login =
                Login::new(only, browser.fixture.sessions.clone(), browser.metrics.clone(), Brand::default());
        }
        let sent = browser.depart_from("/oauth2/start?issuer=corp&rd=/runs").await;
        assert_eq!(sent.parameters["redirect_uri"], format!("https://dash.example.com{expected}"), "{row}");
        let iss = if names_itself { format!("&iss={}", encode(&sent.issuer)) } else { String::new() };
        let response = browser.get(&format!("{expected}?code=c-1&state={}{iss}", sent.state())).await;
        assert_eq!((response.status(), location(&response)), (StatusCode::SEE_OTHER, "/runs"), "{row}");
        let [exchange] = browser.exchanges().try_into().unwrap();
        assert_eq!(exchange.form["redirect_uri"], sent.parameters["redirect_uri"], "{row}");
        assert!(browser.session().await.is_some(), "{row}");
    }
}

/// A provider's metadata can change while somebody is there.
#[tokio::test]
async fn a_provider_that_stops_sending_iss_restarts_at_its_own_address() {
    let mut browser = between_two(Setup { evil: (true, None), honest: (true, None) }).await;
    let sent = browser.depart_from("/oauth2/start?issuer=corp&rd=/").await;
    browser.fixture.provider.change_metadata(|metadata| metadata.iss_parameter_supported = false);
    let response = browser.get(&format!("/oauth2/callback?code=c-1&state={}", sent.state())).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(browser.exchanges().is_empty());
    let sent = browser.depart_from("/oauth2/start?issuer=corp&rd=/").await;
    let response = browser.get(&format!("/oauth2/callback/corp?code=c-1&state={}", sent.state())).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER, "{}", body(&response));
}

/// A reload can give a name to another issuer, which would then receive the previous one's code, and our credential.
#[tokio::test]
async fn a_login_that_began_at_another_issuer_of_the_same_name_is_not_completed() {
    for (issuer, status) in
        [("https://corp.example", StatusCode::SEE_OTHER), ("https://another.example", StatusCode::SERVICE_UNAVAILABLE)]
    {
        let mut browser = Browser::new().await;
        let sent = browser.depart("/").await;
        let authentication = ClientAuth::of_test("doorward", ClientAuthMethod::Basic, Some("s"));
        let mut provider = ScriptedProvider::start("corp", authentication).await;
        provider.issuer = issuer.to_owned();
        // A response without `iss` does not contradict the issuer.
        provider.change_metadata(|metadata| metadata.iss_parameter_supported = false);
        let mut script = browser.fixture.provider.script.lock().unwrap().clone();
        script.claims.as_mut().unwrap()["iss"] = issuer.into();
        *provider.script.lock().unwrap() = script;
        let exchanges = Arc::clone(&provider.exchanges);
        let (sessions, metrics) = (browser.fixture.sessions.clone(), browser.metrics.clone());
        browser.login = Login::new(vec![Arc::new(provider) as Arc<dyn Provider>], sessions, metrics, Brand::default());

        let response = browser.get(&format!("/oauth2/callback?code=c-1&state={}", sent.state())).await;
        assert_eq!(response.status(), status, "{issuer}: {}", body(&response));
        let is_completed = status == StatusCode::SEE_OTHER;
        assert_eq!(body(&response).contains("no longer configured"), !is_completed, "{issuer}");
        assert_eq!(exchanges.lock().unwrap().len(), usize::from(is_completed), "{issuer}");
        assert_eq!(browser.session().await.is_some(), is_completed, "{issuer}");
    }
}
