//! A rule that needs more of a login than somebody's has (RFC 9470): a browser fetches it at the provider and comes back, a
//! program reads what is missing.

use serde_json::json;

use crate::{
    harness::{Doorward, Issuer, OidcProvider, Upstream, asked, browse, call_back, come_back, free_port, log_in, now},
    login::Shell,
};

async fn world(issuer: &str, settings: &str, need: &str, port: u16) -> (Doorward, Upstream) {
    let upstream = Upstream::start().await;
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
    {settings}
    login: {{client: {{id: doorward, secret: {{file: client}}}}}}
upstreams: [{{name: web, url: '{}'}}]
routes:
  - {{name: deploy, kind: http, hosts: [localhost], paths: [/deploy], schemes: [session, bearer], upstream: web}}
  - {{name: web, kind: http, hosts: [localhost], schemes: [session], upstream: web}}
rules:
  - {{id: look, on: {{routes: [web]}}, who: {{users: [alice]}}, do: allow}}
  - {{id: deploy, on: {{routes: [deploy]}}, who: {{users: [alice]}}, need: {need}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
limits: {{drain_accept: 0}}
",
        upstream.url()
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    doorward.until_people_can_sign_in(&format!("localhost:{port}")).await;
    (doorward, upstream)
}

#[tokio::test]
async fn a_browser_gets_a_fresh_login_and_comes_back_to_where_it_was() {
    let port = free_port();
    let origin = format!("http://localhost:{port}");
    let provider = OidcProvider::start(&origin).await;
    let (_doorward, upstream) =
        world(&provider.issuer, "algorithms: [RS256]", "{fresh_login: {max_age: 5m}}", port).await;
    let saw = browse(&json!({"scenario": "step_up", "url": origin})).await;
    assert_eq!(saw["before"]["status"], 401, "{saw}");
    assert_eq!(saw["before"]["said"]["reason"], "need_unmet", "{saw}");
    let fix = saw["before"]["said"]["fix"].as_str().unwrap();
    assert!(fix.contains("/oauth2/continue?issuer=corp&max_age=300&rd=%2F"), "{fix}");
    assert_eq!(saw["landed"], format!("{origin}/deploy?to=production#/runs/7"), "{saw}");
    assert_eq!(saw["after"], 200, "{saw}");
    assert_ne!(saw["cookies"][0], saw["cookies"][1], "the id of the session stayed");
    assert_eq!(upstream.requests().iter().filter(|request| request.line().contains("/deploy")).count(), 2, "{saw}");
}

#[tokio::test]
async fn a_program_reads_in_the_challenge_which_login_its_token_has_to_be_of() {
    let issuer = Issuer::start().await;
    let port = free_port();
    let need = "{mfa: {max_age: 15m}, acr: [gold, platinum], fresh_login: {max_age: 1h}}";
    let (doorward, _upstream) = world(issuer.url(), "", need, port).await;
    let host = format!("Host: localhost:{port}");
    let mut claims = issuer.claims("alice", &["dev"]);
    let weak = format!("Authorization: Bearer {}", issuer.sign(&claims));
    doorward.wait_for_keys_at(&host, &issuer).await;
    let refused = doorward.get("/deploy", &[&host, &weak]).await;
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
    // The twin: a token of such a login.
    claims["auth_time"] = json!(now());
    claims["acr"] = json!("gold");
    claims["amr"] = json!(["pwd", "hwk"]);
    let strong = format!("Authorization: Bearer {}", issuer.sign(&claims));
    assert_eq!(doorward.get("/deploy", &[&host, &strong]).await.status, 200);
}

/// A form cannot be kept over a login, so nobody is sent to one from it: they read where it is, and that they have to come back.
#[tokio::test]
async fn who_sent_a_form_is_shown_the_way_to_the_login_and_back_to_the_form() {
    let issuer = Issuer::start().await;
    let port = free_port();
    let (doorward, upstream) = world(issuer.url(), "", "{acr: [gold]}", port).await;
    let (host, authority) = (format!("Host: localhost:{port}"), format!("localhost:{port}"));
    let cookie = log_in(&doorward, &authority, "/page").await;
    let origin = format!("http://{authority}");
    for (referer, back) in [
        (format!("{origin}/deploy/form?to=prod"), "%2Fdeploy%2Fform%3Fto%3Dprod"),
        ("http://evil.example/deploy".to_owned(), "%2F"),
        (format!("{origin}//evil.example"), "%2F"),
    ] {
        let headers = [
            "POST /deploy HTTP/1.1",
            &host,
            &cookie,
            &format!("Origin: {origin}"),
            &format!("Referer: {referer}"),
            "Sec-Fetch-Site: same-origin",
            "Sec-Fetch-Mode: navigate",
            "Sec-Fetch-Dest: document",
            "Content-Type: application/x-www-form-urlencoded",
        ];
        let refused = doorward.send(&headers, b"to=prod").await;
        let page = refused.text();
        assert_eq!(refused.status, 401, "{referer}: {page}");
        let button = format!("href=\"/oauth2/continue?issuer=corp&amp;acr_values=gold&amp;rd={back}\">Sign in again<");
        for part in ["Please sign in again", "it was not sent", &button] {
            assert!(page.contains(part), "{referer}: {part} in {page}");
        }
    }
    assert!(upstream.requests().iter().all(|request| !request.line().contains("/deploy")));
}

/// The provider does not do what it is asked for, and nobody goes in circles.
#[tokio::test]
async fn a_provider_that_cannot_is_asked_once_and_the_session_stays() {
    let issuer = Issuer::start().await;
    let port = free_port();
    let (doorward, _upstream) = world(issuer.url(), "", "{acr: [gold]}", port).await;
    let (host, authority) = (format!("Host: localhost:{port}"), format!("localhost:{port}"));
    let cookie = log_in(&doorward, &authority, "/page").await;
    let navigation = ["Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
    let asked = doorward.get("/deploy", &[&[host.as_str(), &cookie], &navigation[..]].concat()).await;
    assert_eq!(
        (asked.status, asked.header("location")),
        (303, Some("/oauth2/continue?issuer=corp&acr_values=gold&rd=%2Fdeploy"))
    );
    let start = "/oauth2/start?issuer=corp&acr_values=gold&rd=%2Fdeploy";
    let away = doorward.get(start, &[&host, &cookie]).await;
    let location = away.header("location").unwrap().to_owned();
    let back = call_back(&doorward, &[&host], &away, &location).await;
    assert_eq!(back.status, 403, "{}", back.text());
    assert!(back.text().contains("did not authenticate you as it was asked to"), "{}", back.text());
    assert_eq!(doorward.get("/page", &[&host, &cookie]).await.status, 200);
    assert_eq!(doorward.get("/deploy", &[&host, &cookie]).await.status, 401);
}

#[tokio::test]
async fn who_signed_in_from_a_shell_reads_what_to_run_and_that_login_asks_for_it() {
    let issuer = Issuer::start().await;
    let port = free_port();
    let (doorward, _upstream) = world(issuer.url(), "", "{mfa: {max_age: 15m}, acr: [gold]}", port).await;
    let (host, origin) = (format!("Host: localhost:{port}"), format!("Origin: http://localhost:{port}"));
    let press = async |page: &str| {
        let line = format!("POST {page}&issuer=corp HTTP/1.1");
        let away = doorward.send(&[&line, &host, &origin], b"").await;
        let location = away.header("location").unwrap_or_else(|| panic!("{}", away.text())).to_owned();
        (away, location)
    };
    let (away, location) = press(&program_page()).await;
    let back = come_back(&doorward, &[&host], &away, &location).await;
    let code = back.header("location").unwrap().split(['=', '&']).nth(1).unwrap().to_owned();
    let form = format!("grant_type=authorization_code&code={code}&code_verifier={VERIFIER}");
    let kind = "Content-Type: application/x-www-form-urlencoded";
    let given = doorward.send(&["POST /.doorward/login/token HTTP/1.1", &host, kind], form.as_bytes()).await;
    let handle = format!("Authorization: Bearer {}", given.json()["access_token"].as_str().unwrap());
    assert_eq!(doorward.get("/page", &[&host, &handle]).await.status, 200);
    let refused = doorward.get("/deploy", &[&host, &handle]).await;
    assert_eq!(refused.status, 401, "{}", refused.text());
    let fix = refused.json()["fix"].as_str().unwrap().to_owned();
    assert!(fix.contains("`doorward login --mfa 15m --acr gold`"), "{fix}");

    let shell = Shell::new();
    let url = format!("http://localhost:{port}");
    let (_child, _lines, page, _code) = shell.login(&["--mfa", "15m", "--acr", "gold", &url]).await;
    let (away, location) = press(page.strip_prefix(&url).unwrap()).await;
    assert_eq!((asked(&location, "acr_values"), asked(&location, "max_age")), ("gold".to_owned(), "900".to_owned()));
    let back = call_back(&doorward, &[&host], &away, &location).await;
    assert_eq!(back.status, 403, "this provider says nothing of how the person came in: {}", back.text());
}

/// A verifier of PKCE (RFC 7636 appendix B), and the page of a program that has it.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

fn program_page() -> String {
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    format!("/.doorward/login?port=7000&state=a-state-of-the-program&code_challenge={challenge}&machine=laptop")
}
