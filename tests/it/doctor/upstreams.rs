//! Upstreams: whether Doorward reaches them, and whether others do.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{configuration, doctor, folder, outside, somewhere};
use crate::harness::{Reply, Upstream};

#[tokio::test]
async fn the_health_of_upstreams_is_checked() {
    for (kind, path, answer, state, words) in [
        ("webhook, webhook: github, schemes: [webhook], paths: [/hooks]", "/live", 200, "good", "EventListener `it`"),
        ("webhook, webhook: github, schemes: [webhook], paths: [/hooks]", "/live", 404, "warning", "another receiver"),
        (
            "webhook, webhook: github, schemes: [webhook], paths: [/hooks]",
            "/live",
            503,
            "fault",
            "pod of the EventListener",
        ),
        ("dashboard, schemes: [bearer]", "/health", 200, "good", "Dashboard `it`"),
        ("dashboard, schemes: [bearer]", "/health", 404, "fault", "check its `url`"),
        ("http, schemes: [bearer]", "/", 404, "good", "upstream `it`"),
        ("http, schemes: [bearer]", "/", 502, "fault", "check that server"),
        ("kubernetes, schemes: [bearer]", "/version", 401, "fault", "rejects Doorward's own credential"),
        ("kubernetes, schemes: [bearer]", "/version", 200, "fault", "not an API server"),
    ] {
        let upstream = Upstream::scripted(move |request| {
            let asked = request.head.starts_with(&format!("GET {path} "));
            Reply::json(if asked { answer } else { 418 }, "{}")
        })
        .await;
        let dir = folder(&format!(
            "
listeners: [{{name: public, address: '127.0.0.1:0'}}]
issuers: [{{name: corp, issuer: 'http://localhost:1', audiences: [a], username: '{{sub}}', algorithms: [RS256]}}]
upstreams: [{{name: it, url: '{url}', credential: {{bearer: {{file: token}}}}}}]
webhooks: [{{name: github, sender: github, secrets: [{{secret: {{file: token}}}}]}}]
routes: [{{name: it, kind: {kind}, hosts: [localhost], upstream: it}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
",
            url = upstream.url(),
        ));
        let said = doctor(dir.path(), &["--only", "upstreams"]).await;
        said.is("upstreams", state, &[words]);
    }
    // The API server of a Dashboard route counts as one too.
    let dashboard = Upstream::start().await;
    let yaml = configuration("http://localhost:7", "http://localhost:1", &dashboard.url());
    let more = ", credential: {bearer: {file: token}}}, {name: pages, url: 'http://localhost:1'}]";
    let yaml = yaml.replace(
        "'}]\nroutes: [{name: web, kind: http,",
        &format!("'{more}\nroutes: [{{name: web, kind: dashboard, kubernetes: web,"),
    );
    let dir = folder(&yaml.replace("schemes: [session], upstream: web", "schemes: [session], upstream: pages"));
    let said = doctor(dir.path(), &["--only", "upstreams"]).await;
    let subjects: Vec<&str> = said.findings.iter().map(|finding| finding["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["Dashboard `pages`", "API server `web`"]);
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", &somewhere()));
    let said = doctor(dir.path(), &["--only", "upstreams"]).await;
    said.is("upstreams", "fault", &["upstream `web`", "check its `url` and `tls`"]);
}

/// Regression: an unknown name, a closed port and a server without TLS were all reported in the words of the response,
/// which hides the cause from callers.
#[tokio::test]
async fn the_doctor_says_why_an_upstream_cannot_be_reached() {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = stream.readable().await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for (url, tls, cause) in [
        (somewhere().replace("localhost", "127.0.0.1"), "", "refused"),
        ("http://nobody.invalid:8080".to_owned(), "", "lookup"),
        (format!("https://localhost:{port}"), ", tls: {ca: ca.pem}", "corrupt message"),
    ] {
        let yaml = configuration("http://localhost:7", "http://localhost:1", &url);
        let dir = folder(&yaml.replace("'}]\nroutes", &format!("'{tls}}}]\nroutes")));
        std::fs::write(dir.path().join("ca.pem"), ca.cert.pem()).unwrap();
        let said = doctor(dir.path(), &["--only", "upstreams"]).await;
        said.is("upstreams", "fault", &["the upstream `web`", cause]);
    }
}

/// A pod elsewhere does not have the configuration.
#[tokio::test]
async fn upstreams_reachable_past_doorward_are_reported_from_outside() {
    let (there, nothing) = (Upstream::start().await, somewhere());
    let unknown = "http://nobody.invalid:8080".to_owned();
    let url = there.url();
    let without_scheme = url.trim_start_matches("http://");
    let said = outside(&[&url, without_scheme, &nothing, &unknown]).await;
    let states: Vec<&str> = said.findings.iter().map(|finding| finding["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["fault", "fault", "good", "skipped"], "{:?}", said.findings);
    assert_eq!((said.code, there.requests().len()), (Some(1), 0), "and nothing is sent");

    let dir = folder(&configuration(&somewhere(), &somewhere(), &there.url()));
    let said = doctor(dir.path(), &["--only", "isolation"]).await;
    said.is("isolation", "skipped", &[&format!("`doorward doctor --outside {}`", there.url())]);
}
