//! Every page that people see, in a real Chromium, judged by axe-core: no violation of WCAG 2.2 A and AA, no page that
//! scrolls sideways on a phone.

use serde_json::{Value, json};

use crate::harness::{Doorward, OidcProvider, Upstream, browse_until, free_port, within};

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
