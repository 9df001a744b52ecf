//! Every page that people see, in a real Chromium, judged by axe-core: no violation of WCAG 2.2 A and AA, no page that
//! scrolls sideways on a phone.

use serde_json::{Value, json};

use crate::harness::{Answer, Doorward, OidcProvider, Upstream, browse_until, free_port, within};

/// Where pictures of the pages go, if they are wanted: `scripts/screenshots` sets it.
const SCREENSHOTS: &str = "TEST_SCREENSHOTS";

pub fn screenshots() -> Option<String> {
    std::env::var(SCREENSHOTS).ok()
}

async fn world(origin: &str, provider: &OidcProvider, upstream: &Upstream) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("client"), "doorward-secret-of-the-tests").unwrap();
    let login = "client: {id: doorward, secret: {file: client}}";
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:{port}'}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: 'corp#{{sub}}'
    kind: human
    algorithms: [RS256]
    login: {{{login}, label: Example Corp}}
  - name: away
    issuer: http://127.0.0.1:{away}
    audiences: ['https://doorward.test']
    username: 'away#{{sub}}'
    kind: human
    algorithms: [RS256]
    login: {{{login}, label: Partners}}
upstreams:
  - {{name: web, url: '{upstream}'}}
routes:
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
grants:
  - {{id: viewers, who: {{issuers: [corp], groups: [developers]}}, kubernetes_groups: ['tekton:viewers', 'tekton:prod-runners']}}
rules:
  - {{id: office-hours, why: Production is started in office hours, on: {{routes: [web], paths: ['/nothing-for-you']}}, do: deny}}
  - {{id: people, on: {{routes: [web]}}, who: {{issuers: [corp], groups: [developers]}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        port = origin.rsplit_once(':').unwrap().1,
        issuer = provider.issuer,
        away = free_port(),
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    let host = format!("Host: {}", origin.trim_start_matches("http://"));
    within(async {
        while doorward.get("/oauth2/start?issuer=corp", &[&host]).await.status != 303 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    doorward
}

#[tokio::test]
async fn every_page_is_for_everybody_and_fits_a_phone() {
    let origin = format!("http://localhost:{}", free_port());
    let (provider, upstream) = (OidcProvider::start(&origin).await, Upstream::start().await);
    let doorward = world(&origin, &provider, &upstream).await;
    let options = json!({"scenario": "pages", "url": origin, "screenshots": screenshots()});
    let pages = browse_until(&options, "late").await;
    doorward.set_clock_ahead(601);
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

/// Where there is one provider, and a rule that it cannot satisfy.
async fn world_of_trouble(origin: &str, provider: &OidcProvider, upstream: &Upstream) -> Doorward {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("client"), "doorward-secret-of-the-tests").unwrap();
    let yaml = format!(
        "
listeners: [{{name: public, address: '127.0.0.1:{port}'}}]
issuers:
  - name: corp
    issuer: {issuer}
    audiences: ['https://doorward.test']
    username: '{{sub}}'
    kind: human
    algorithms: [RS256]
    login: {{client: {{id: doorward, secret: {{file: client}}}}, label: Example Corp}}
upstreams: [{{name: web, url: '{upstream}'}}]
routes:
  - {{name: deploy, kind: http, hosts: [localhost], paths: [/deploy], schemes: [session], upstream: web}}
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
rules:
  - {{id: people, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
  - {{id: deploy, on: {{routes: [deploy]}}, who: {{users: [alice]}}, need: {{acr: [gold]}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        port = origin.rsplit_once(':').unwrap().1,
        issuer = provider.issuer,
        upstream = upstream.url(),
    );
    let doorward = Doorward::start_with_faults(dir, &yaml).await;
    doorward.until_people_can_sign_in(origin.trim_start_matches("http://")).await;
    doorward
}

#[tokio::test]
async fn pages_that_few_people_see_are_for_everybody_too() {
    let origin = format!("http://localhost:{}", free_port());
    let (provider, upstream) = (OidcProvider::start(&origin).await, Upstream::start().await);
    let doorward = world_of_trouble(&origin, &provider, &upstream).await;
    let host = format!("Host: {}", origin.trim_start_matches("http://"));
    // Two terminals ask for a code, which are programs of a test here (RFC 8628; the verifier is that of RFC 7636).
    let ask = async |path: &str, form: &str| -> Answer {
        let line = format!("POST {path} HTTP/1.1");
        let kind = "Content-Type: application/x-www-form-urlencoded";
        doorward.send(&[line.as_str(), &host, kind], form.as_bytes()).await
    };
    let begin = "code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&machine=build-7";
    let device = async || ask("/.doorward/login/device", begin).await.json();
    let (one, two) = (device().await, device().await);
    let options = json!({"scenario": "trouble", "url": origin, "screenshots": screenshots(),
        "codes": [one["user_code"], two["user_code"]]});
    let mut browser = browse_until(&options, "let in").await;
    let collect = format!(
        "grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code={}\
         &code_verifier=dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        one["device_code"].as_str().unwrap()
    );
    let collected = ask("/.doorward/login/token", &collect).await;
    assert_eq!(collected.status, 200, "{}", collected.text());
    browser.go_on_until("clock").await;
    doorward.set_clock_ahead(4000);
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
