//! A rule that needs a stronger login than the user has (RFC 9470): a browser goes through the provider and returns, a
//! program is told what is missing.

use serde_json::json;

use crate::{
    harness::{Issuer, asked, browse, now, settled},
    login::Shell,
    login_fixture::{CHALLENGE, LoginFixture, VERIFIER},
};

/// Adds a route whose rule is made by [`rules`].
pub const ROUTES: (&str, &str) = (
    "routes:\n",
    "routes:\n  - {name: deploy, kind: http, hosts: [localhost], paths: [/deploy], schemes: [session, bearer], upstream: web}\n",
);

/// The beginning of the rules, where those of the route `deploy` have this `need`.
pub fn rules(need: &str) -> String {
    format!("rules:\n  - {{id: deploy, on: {{routes: [deploy]}}, who: {{users: [alice]}}, need: {need}, do: allow}}\n")
}

async fn world(need: &str) -> (LoginFixture, Issuer) {
    LoginFixture::scripted(&[ROUTES, ("rules:\n", &rules(need))]).await
}

#[tokio::test]
async fn a_browser_gets_a_fresh_login_and_returns_to_its_page() {
    let changes = [ROUTES, ("rules:\n", &*rules("{fresh_login: {max_age: 5m}}"))];
    let (world, _provider) = LoginFixture::certified(&json!({}), &changes).await;
    let origin = world.origin();
    let saw = browse(&json!({"scenario": "step_up", "url": origin})).await;
    assert_eq!(saw["before"]["status"], 401, "{saw}");
    assert_eq!(saw["before"]["said"]["reason"], "need_unmet", "{saw}");
    let fix = saw["before"]["said"]["fix"].as_str().unwrap();
    assert!(fix.contains("/oauth2/continue?issuer=a&max_age=300&rd=%2F"), "{fix}");
    assert_eq!(saw["landed"], format!("{origin}/deploy?to=production#/runs/7"), "{saw}");
    assert_eq!(saw["after"], 200, "{saw}");
    assert_ne!(saw["cookies"][0], saw["cookies"][1], "the id of the session stayed");
    assert_eq!(
        world.upstream.requests().iter().filter(|request| request.line().contains("/deploy")).count(),
        2,
        "{saw}"
    );
}

#[tokio::test]
async fn a_program_reads_in_the_challenge_which_login_its_token_has_to_be_of() {
    let need = "{mfa: {max_age: 15m}, acr: [gold, platinum], fresh_login: {max_age: 1h}}";
    let (world, issuer) = world(need).await;
    let mut claims = issuer.claims("alice", &["dev"]);
    let weak = format!("Authorization: Bearer {}", issuer.sign(&claims));
    let refused = settled(async || world.get("/deploy", &[&weak]).await).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    let challenge =
        refused.all("www-authenticate").into_iter().find(|line| line.starts_with("Bearer")).unwrap().to_owned();
    for part in [
        "error=\"insufficient_user_authentication\"",
        "acr_values=\"gold platinum\"",
        "max_age=\"900\"",
        "error_description=",
    ] {
        assert!(challenge.contains(part), "{part} in {challenge}");
    }
    // The counterpart: a token of such a login.
    claims["auth_time"] = json!(now());
    claims["acr"] = json!("gold");
    claims["amr"] = json!(["pwd", "hwk"]);
    let strong = format!("Authorization: Bearer {}", issuer.sign(&claims));
    assert_eq!(world.get("/deploy", &[&strong]).await.status, 200);
}

/// A form cannot be preserved over a login, so that the user is not redirected: a page explains where to sign in, and
/// that the form must be sent again.
#[tokio::test]
async fn a_person_who_sent_a_form_is_led_to_the_login_and_back_to_the_form() {
    let (world, _issuer) = world("{acr: [gold]}").await;
    let (cookie, origin) = (world.log_in().await, world.origin());
    for (referer, back) in [
        (format!("{origin}/deploy/form?to=prod"), "%2Fdeploy%2Fform%3Fto%3Dprod"),
        ("http://evil.example/deploy".to_owned(), "%2F"),
        (format!("{origin}//evil.example"), "%2F"),
    ] {
        let headers = [
            &*cookie,
            &format!("Origin: {origin}"),
            &format!("Referer: {referer}"),
            "Sec-Fetch-Site: same-origin",
            "Sec-Fetch-Mode: navigate",
            "Sec-Fetch-Dest: document",
        ];
        let refused = world.submit("/deploy", &headers, "to=prod").await;
        let page = refused.text();
        assert_eq!(refused.status, 401, "{referer}: {page}");
        let button = format!("href=\"/oauth2/continue?issuer=a&amp;acr_values=gold&amp;rd={back}\">Sign in again<");
        for part in ["Please sign in again", "it was not sent", &button] {
            assert!(page.contains(part), "{referer}: {part} in {page}");
        }
    }
    assert!(world.upstream.requests().iter().all(|request| !request.line().contains("/deploy")));
}

/// The provider does not do what it is asked for, and there is no redirect loop.
#[tokio::test]
async fn a_provider_that_cannot_is_asked_once_and_the_session_stays() {
    let (world, _issuer) = world("{acr: [gold]}").await;
    let cookie = world.log_in().await;
    let navigation = ["Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let asked = world.get("/deploy", &[&[&*cookie], &navigation[..]].concat()).await;
    assert_eq!(
        (asked.status, asked.header("location")),
        (303, Some("/oauth2/continue?issuer=a&acr_values=gold&rd=%2Fdeploy"))
    );
    let start = "/oauth2/start?issuer=a&acr_values=gold&rd=%2Fdeploy";
    let away = world.get(start, &[&cookie]).await;
    let back = world.call_back(&away).await;
    assert_eq!(back.status, 403, "{}", back.text());
    assert!(back.text().contains("did not authenticate you as it was asked to"), "{}", back.text());
    assert_eq!(world.status(&cookie).await, 200);
    assert_eq!(world.get("/deploy", &[&cookie]).await.status, 401);
}

#[tokio::test]
async fn a_shell_user_learns_which_login_to_run_and_it_asks_for_the_missing_factor() {
    let (world, _issuer) = world("{mfa: {max_age: 15m}, acr: [gold]}").await;
    let origin = format!("Origin: {}", world.origin());
    let press = async |page: &str| world.post(&format!("{page}&issuer=a"), &[&origin], "").await;
    let page =
        format!("/.doorward/login?port=7000&state=a-state-of-the-program&code_challenge={CHALLENGE}&machine=laptop");
    let back = world.come_back(&press(&page).await).await;
    let code = back.header("location").unwrap().split(['=', '&']).nth(1).unwrap().to_owned();
    let form = format!("grant_type=authorization_code&code={code}&code_verifier={VERIFIER}");
    let given = world.submit("/.doorward/login/token", &[], &form).await;
    let handle = format!("Authorization: Bearer {}", given.json()["access_token"].as_str().unwrap());
    assert_eq!(world.status(&handle).await, 200);
    let refused = world.get("/deploy", &[&handle]).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    let fix = refused.json()["fix"].as_str().unwrap().to_owned();
    // Without the address, the command could not be run as printed.
    let url = world.origin();
    assert!(fix.contains(&format!("`doorward login --mfa 15m --acr gold {url}`")), "{fix}");

    let shell = Shell::new();
    let (_child, _lines, page, _code) = shell.login(&["--mfa", "15m", "--acr", "gold", &url]).await;
    let away = press(page.strip_prefix(&url).unwrap()).await;
    let location = away.header("location").unwrap();
    assert_eq!((asked(location, "acr_values"), asked(location, "max_age")), ("gold".to_owned(), "900".to_owned()));
    let back = world.call_back(&away).await;
    assert_eq!(back.status, 403, "this provider says nothing of how the person came in: {}", back.text());
}
