//! Every page that people see, in a real Chromium, checked by axe-core: no violation of WCAG 2.2 A and AA, and no
//! horizontal scrolling on a phone.

use serde_json::{Value, json};

use crate::{
    harness::{OidcProvider, browse_until, free_port, until},
    login_fixture::{CHALLENGE, LoginFixture, RULE, VERIFIER, provider},
    step_up,
};

/// The folder for pictures of the pages, if wanted: `scripts/screenshots` sets it.
const SCREENSHOTS: &str = "TEST_SCREENSHOTS";

pub fn screenshots() -> Option<String> {
    std::env::var(SCREENSHOTS).ok()
}

/// Two providers, one of which is down, and rules that not everybody satisfies.
async fn world() -> (LoginFixture, OidcProvider) {
    let away = provider("away", &format!("http://127.0.0.1:{}", free_port()), "label: Partners");
    let changes = [
        ("name: a\n", "name: corp\n"),
        ("'{sub}'", "'corp#{sub}'"),
        ("upstreams:\n", &*away),
        ("rules:\n", "grants:
  - {id: viewers, who: {issuers: [corp], groups: [developers]}, kubernetes_groups: ['tekton:viewers', 'tekton:prod-runners']}
rules:
  - {id: office-hours, why: Production is started in office hours, on: {routes: [web], paths: ['/nothing-for-you']}, do: deny}
"),
        (RULE, "{id: people, on: {routes: [web]}, who: {issuers: [corp], groups: [developers]}, do: allow}"),
    ];
    let (world, at) = LoginFixture::certified(&json!({}), &changes).await;
    until(async || world.get("/oauth2/start?issuer=corp", &[]).await.status == 303).await;
    (world, at)
}

#[tokio::test]
async fn every_page_is_accessible_and_fits_a_phone() {
    let (world, _provider) = world().await;
    let options = json!({"scenario": "pages", "url": world.origin(), "screenshots": screenshots()});
    let pages = browse_until(&options, "late").await;
    world.doorward.set_clock_ahead(601);
    let saw = pages.go_on().await;
    let seen: Vec<&str> = saw["seen"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(
        seen,
        [
            "choice: Sign in",
            "who-am-i: alice@doorward.test",
            "sessions: Your sessions",
            "session-ended: Your sessions",
            "login-twice: This sign-in was already completed",
            "denied: You may not do this",
            "no-such-page: There is nothing here",
            "provider-down: The provider cannot be reached",
            "not-begun-here: This sign-in did not begin here",
            "declined: The provider did not sign you in",
            "other-browser: This sign-in began somewhere else",
            "form-not-sent: Your form was not sent",
            "going-to-sign-in: Taking you to sign in",
            "choice-again: Sign in",
            "not-signed-in: You are not signed in",
            "sign-out: Sign out?",
            "signed-out: You are signed out",
            "does-not-last: Signing in does not last",
            "login-late: The sign-in took too long",
        ]
    );
    assert_eq!(saw["faults"], json!([]));
    let twin = saw["twin"].to_string();
    for fault in ["390, dark: it scrolls sideways", "390, dark: color-contrast", "1280, light: color-contrast"] {
        assert!(twin.contains(fault), "{fault} was not found: {twin}");
    }
}

#[tokio::test]
async fn rarely_seen_pages_are_accessible_too() {
    // A rule that the provider cannot satisfy.
    let changes = [step_up::ROUTES, ("rules:\n", &*step_up::rules("{acr: [gold]}"))];
    let (world, _provider) = LoginFixture::certified(&json!({}), &changes).await;
    // Two terminals, simulated by this test, ask for a code (RFC 8628).
    let begin = format!("code_challenge={CHALLENGE}&machine=build-7");
    let device = async || world.submit("/.doorward/login/device", &[], &begin).await.json();
    let (one, two) = (device().await, device().await);
    let options = json!({"scenario": "trouble", "url": world.origin(), "screenshots": screenshots(),
        "codes": [one["user_code"], two["user_code"]]});
    let mut browser = browse_until(&options, "let in").await;
    let collected = world.poll(one["device_code"].as_str().unwrap(), VERIFIER).await;
    assert_eq!(collected.status, 200, "{}", collected.text());
    browser.go_on_until("clock").await;
    world.doorward.set_clock_ahead(4000);
    let saw = browser.go_on().await;
    let titles: Vec<&str> = saw["titles"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(
        titles,
        [
            "step-up-offered: Taking you to sign in",
            "step-up-failed: The provider did not authenticate you as it was asked to",
            "login-by-form: This does not work here",
            "no-program: No program is waiting for this",
            "terminal-let-in: This terminal was let in",
            "terminal-signed-in: This terminal is signed in already",
            "terminal-gone: The sign-in took too long",
            "too-many-codes: Sign in a terminal",
            "clocks-differ: The clocks do not agree",
        ]
    );
    for (page, part) in [
        ("step-up-failed", "Sign in again, there with what is asked for"),
        ("login-by-form", "allowed: GET"),
        ("terminal-let-in", "it has not come for its session yet"),
        ("terminal-signed-in", "it is too late to decline"),
        ("terminal-gone", "Your terminal does not wait any more"),
        ("too-many-codes", "Try again in 10 minutes"),
        ("clocks-differ", "Whoever runs Doorward can set them right"),
    ] {
        let told = saw["seen"][page].as_str().unwrap();
        assert!(told.contains(part), "{page}: {part} in {told}");
    }
    assert_eq!(saw["faults"], json!([]));
}
