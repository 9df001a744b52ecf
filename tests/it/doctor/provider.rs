//! Issuers: what they publish, and whether they know Doorward.

use serde_json::json;
use tempfile::TempDir;

use super::{configuration, doctor, doctor_with, folder, somewhere};
use crate::harness::{OidcProvider, Reply, Upstream, faults};

const PROVIDER: [&str; 10] =
    ["--only", "discovery", "--only", "issuer", "--only", "algorithms", "--only", "clock", "--only", "redirect"];

/// The real provider, which knows the origin, and a folder with a configuration for it.
async fn with_provider(change: impl FnOnce(&OidcProvider, String) -> String) -> (OidcProvider, String, TempDir) {
    let origin = somewhere();
    let provider = OidcProvider::start(&origin).await;
    let yaml = configuration(&origin, &provider.issuer, "http://localhost:1");
    let dir = folder(&change(&provider, yaml));
    (provider, origin, dir)
}

#[tokio::test]
async fn a_correct_provider_passes_every_check() {
    let (_provider, origin, dir) = with_provider(|_, yaml| yaml).await;
    let said = doctor(dir.path(), &[&PROVIDER[..], &["--public", &origin]].concat()).await;
    for check in ["discovery", "issuer", "algorithms", "clock", "redirect"] {
        said.is(check, "good", &["issuer `corp`"]);
    }
    assert_eq!((said.code, said.findings.len()), (Some(0), 5));
    assert!(!dir.path().join("doorward.redb").exists(), "it makes nothing");
    // On this machine, the origin is known without a setting.
    doctor(dir.path(), &["--only", "redirect"]).await.is("redirect", "good", &[&format!("it knows {origin}/")]);
}

#[tokio::test]
async fn an_unreachable_provider_is_reported() {
    let dir = folder(&configuration(&somewhere(), &somewhere(), "http://localhost:1"));
    let said = doctor(dir.path(), &PROVIDER).await;
    said.is("discovery", "fault", &["the connection failed", "check `issuer`, `ca`", "the NetworkPolicy `doorward`"]);
    said.is("algorithms", "skipped", &[]);
    said.is("redirect", "skipped", &[]);
    assert_eq!(said.code, Some(1));
}

#[tokio::test]
async fn a_misspelt_issuer_is_reported_with_the_right_spelling() {
    let spelt =
        |provider: &OidcProvider, yaml: String| yaml.replace(&provider.issuer, &format!("{}/", provider.issuer));
    let (provider, _, dir) = with_provider(spelt).await;
    let said = doctor(dir.path(), &PROVIDER).await;
    said.is("discovery", "good", &[]);
    said.is("issuer", "fault", &[&provider.issuer, "write `issuer` exactly as it does"]);
}

#[tokio::test]
async fn a_wrong_cluster_issuer_is_reported_with_the_clusters_own_name() {
    let own = "https://kubernetes.default.svc.cluster.local";
    let api = Upstream::scripted(move |request| {
        if request.head.starts_with("GET /.well-known/openid-configuration ") {
            assert_eq!(request.one("authorization"), "Bearer upstream-token");
            return Reply::json(200, &json!({"issuer": own}).to_string());
        }
        Reply::json(if request.head.starts_with("GET /elsewhere") { 404 } else { 200 }, r#"{"keys":[]}"#)
    })
    .await;
    for (issuer, keys, state, words) in [
        ("https://kubernetes.default.svc", "", "fault", vec![own, "write `issuer` exactly as it does"]),
        (own, "", "good", vec!["issuer `cluster`"]),
        (own, "/elsewhere", "skipped", vec!["cannot be read", "404"]),
    ] {
        let url = api.url();
        let cluster = format!(
            "issuers:
  - name: cluster
    preset: kubernetes
    issuer: '{issuer}'
    audiences: ['https://doorward.test']
    keys: {{url: '{url}{keys}/openid/v1/jwks', bearer: {{file: token}}}}
"
        );
        let yaml = configuration(&somewhere(), "http://localhost:1", "http://localhost:1");
        let dir = folder(&yaml.replace("issuers:\n", &cluster));
        doctor(dir.path(), &["--only", "issuer"]).await.is("issuer", state, &words);
    }
}

#[tokio::test]
async fn keys_for_other_algorithms_are_reported() {
    let other = |_: &OidcProvider, yaml: String| yaml.replace("algorithms: [RS256]", "algorithms: [ES384]");
    let (_provider, _, dir) = with_provider(other).await;
    let said = doctor(dir.path(), &PROVIDER).await;
    said.is("algorithms", "fault", &["no usable key", "accepted is ES384", "to `algorithms`"]);
    said.is("discovery", "good", &[]);
}

#[tokio::test]
async fn a_clock_that_differs_from_the_providers_is_warned_about() {
    let (_provider, _, dir) = with_provider(|_, yaml| yaml).await;
    let environment = faults::environment(dir.path());
    faults::set_clock_ahead(dir.path(), 20);
    let said = doctor_with(dir.path(), &PROVIDER, &environment).await;
    said.is("clock", "warning", &["ahead of its own", "still tolerated", "NTP"]);
    faults::set_clock_ahead(dir.path(), 600);
    let said = doctor_with(dir.path(), &PROVIDER, &environment).await;
    said.is("clock", "fault", &["ahead of its own", "NTP"]);
    said.is("discovery", "good", &[]);
    assert_eq!(said.code, Some(1));
}

#[tokio::test]
async fn a_redirect_address_unknown_to_the_provider_is_reported() {
    let (_provider, _, dir) = with_provider(|_, yaml| yaml).await;
    let elsewhere = somewhere();
    let said = doctor(dir.path(), &[&PROVIDER[..], &["--public", &elsewhere]].concat()).await;
    said.is(
        "redirect",
        "fault",
        &[&format!("{elsewhere}/oauth2/callback"), "register exactly that address", "client `doorward`"],
    );
    said.is("issuer", "good", &[]);
}

/// A fake provider, for responses that the real one does not give.
async fn provider_that_answers(authorize: &'static str) -> Upstream {
    Upstream::scripted(move |request| {
        let url = format!("http://{}", request.one("host"));
        if request.head.starts_with("GET /.well-known/openid-configuration ") {
            let endpoints = format!(r#""authorization_endpoint":"{url}/authorize","jwks_uri":"{url}/jwks""#);
            return Reply::json(200, &format!(r#"{{"issuer":"{url}",{endpoints}}}"#));
        }
        if request.head.starts_with("GET /authorize?") {
            assert!(request.head.contains("&prompt=none&"), "nobody is asked: {}", request.head);
            return Reply::Bytes(format!("HTTP/1.1 {authorize}\r\nContent-Length: 0\r\n\r\n").into_bytes());
        }
        Reply::json(200, r#"{"keys":[]}"#)
    })
    .await
}

#[tokio::test]
async fn the_answer_of_a_provider_shows_whether_it_knows_the_redirect_address() {
    for (answer, state, words) in [
        (
            "303 See Other\r\nLocation: http://localhost:7/oauth2/callback?error=login_required&state=x",
            "good",
            "it knows",
        ),
        (
            "303 See Other\r\nLocation: http://localhost:7/oauth2/callback?error=unauthorized_client",
            "warning",
            "unauthorized_client",
        ),
        (
            "302 Found\r\nLocation: http://localhost:7/oauth2/callback.evil?error=login_required",
            "warning",
            "sign in once",
        ),
        ("302 Found\r\nLocation: https://login.example/signin", "warning", "login.example"),
        ("200 OK", "warning", "a page"),
        ("400 Bad Request", "fault", "register exactly that address"),
    ] {
        let provider = provider_that_answers(answer).await;
        let dir = folder(&configuration("http://localhost:7", &provider.url(), "http://localhost:1"));
        let said = doctor(dir.path(), &["--only", "redirect", "--public", "http://localhost:7"]).await;
        said.is("redirect", state, &[words]);
    }
}

#[tokio::test]
async fn introspection_is_tested_with_a_made_up_token() {
    let jwt = "application/token-introspection+jwt";
    for (status, media_type, body, state, words) in [
        (200, "application/json", r#"{"active": false}"#, "good", "it says which tokens are active"),
        (200, "application/json", r#"{"active": true}"#, "fault", "a made-up token as active"),
        (200, "application/json", r#"{"active": "no"}"#, "fault", "no `active`"),
        (200, "text/html", "<p>Sign in</p>", "fault", "not application/json"),
        (401, "application/json", r#"{"error": "invalid_client"}"#, "fault", "refuses our own client"),
        (404, "text/plain", "", "fault", "404"),
        (200, jwt, "e30.e30.e30", "good", "a signed response"),
    ] {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nContent-Length: {}", body.len());
        let provider = Upstream::scripted(move |_| Reply::Bytes(format!("{head}\r\n\r\n{body}").into_bytes())).await;
        let signed = if media_type == jwt { ", signed: true" } else { "" };
        let introspection = format!(
            "introspection: {{mode: opaque, endpoint: '{}/ask', client: {{id: doorward, secret: {{file: client}}}}{signed}}}",
            provider.url()
        );
        let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1");
        let dir = folder(&yaml.replace("    login:", &format!("    {introspection}\n    login:")));
        let said = doctor(dir.path(), &["--only", "introspection"]).await;
        said.is("introspection", state, &["issuer `corp`", words]);
        assert!(!format!("{:?}", said.findings).contains("doorward-secret-of-the-tests"));
        assert!(provider.only().head.starts_with("POST /ask "), "{body}");
    }
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let said = doctor(dir.path(), &["--only", "introspection"]).await;
    assert_eq!(said.findings.len(), 0, "where none is asked there is nothing to look at");
}
