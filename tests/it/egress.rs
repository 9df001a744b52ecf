//! Doorward's own calls behind an egress proxy.

use std::process::Command;

use serde_json::json;

use crate::{
    fixture::Change,
    harness::{Authority, ConnectProxy, Doorward, Issuer, folder_with, now},
};

const CONFIGURATION: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
issuers:
  - name: company
    issuer: https://id.test
    audiences: ['https://doorward.test']
    ca: ca.pem
    introspection: {mode: opaque, timeout: 10s, client: {id: doorward, secret: {file: secret}}}
# Nobody answers there; a proxy could be asked for it.
upstreams: [{name: far, url: 'https://203.0.113.1', connect_timeout: 200ms}]
routes: [{name: far, kind: http, hosts: [tekton.test], schemes: [bearer], upstream: far}]
rules: [{id: all, who: {issuers: [company]}, do: allow}]
store: {path: doorward.redb}
audit: {sink: {file: {path: audit.jsonl}}}
limits: {drain_accept: 0}
";

/// An issuer that is reachable only through a proxy, and that proxy.
async fn behind_proxy(refusal: Option<&'static str>) -> (Issuer, ConnectProxy, tempfile::TempDir) {
    let issuer = Issuer::start_as(Some("https://id.test")).await;
    let authority = Authority::new();
    let proxy = ConnectProxy::start(issuer.address(), &authority.issue(&["id.test"]), refusal).await;
    let dir = folder_with(&[("ca.pem", &authority.pem()), ("secret", "introspection-secret")]);
    (issuer, proxy, dir)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn assert_untold(doorward: &Doorward) {
    let log = format!("{:?}", doorward.log());
    for secret in ["hunter2", "dXNlcjpodW50ZXIy"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn issuers_are_called_by_the_proxy_and_upstreams_are_not() {
    let (issuer, proxy, dir) = behind_proxy(None).await;
    let address = format!("http://user:hunter2@{}", proxy.address);
    let environment = [("HTTPS_PROXY", address.as_str()), ("NO_PROXY", "other.test")];
    let doorward = Doorward::start_with_environment(dir, CONFIGURATION, &environment).await;
    doorward.wait_for_keys(&issuer).await;
    issuer.opaque("opaque", json!({"active": true, "sub": "alice", "aud": "https://doorward.test", "exp": now() + 60}));
    for token in [issuer.token("alice", &[]), "opaque".to_owned()] {
        let answer = doorward.get("/", &[&bearer(&token)]).await;
        assert!(matches!(answer.status, 502 | 504), "the caller is known, the upstream is away: {}", answer.text());
    }
    assert_eq!(issuer.introspections(), 1);
    for head in proxy.heads() {
        let (first, rest) = head.split_once("\r\n").unwrap();
        assert_eq!(first, "CONNECT id.test:443 HTTP/1.1");
        assert!(rest.contains("Proxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n"), "{rest}");
    }
    assert_untold(&doorward);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_in_the_log() {
    for refusal in ["HTTP/1.1 407 X\r\n\r\n", "HTTP/1.1 403 X\r\n\r\n", "", "no HTTP\r\n\r\n"] {
        let (issuer, proxy, dir) = behind_proxy(Some(refusal)).await;
        let address = format!("http://user:hunter2@{}", proxy.address);
        let mut doorward =
            Doorward::start_with_environment(dir, CONFIGURATION, &[("HTTPS_PROXY", &address), ("NO_PROXY", "")]).await;
        let line = doorward.wait_for_log_containing("opened no tunnel to id.test:443").await;
        assert!(line.to_string().contains(&format!("http://{}/ (`HTTPS_PROXY`)", proxy.address)), "{line}");
        let answer = doorward.get("/", &[&bearer(&issuer.token("alice", &[]))]).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_untold(&doorward);
    }
}

#[tokio::test]
async fn hosts_in_no_proxy_are_called_directly() {
    let (_, proxy, dir) = behind_proxy(None).await;
    let address = format!("http://{}", proxy.address);
    let yaml = CONFIGURATION.change("https://id.test", "https://203.0.113.1:1");
    let environment = [("HTTPS_PROXY", address.as_str()), ("NO_PROXY", "203.0.113.0/24")];
    let mut doorward = Doorward::start_with_environment(dir, &yaml, &environment).await;
    doorward.wait_for_log_containing("issuers are called through a proxy").await;
    doorward.wait_for_log_containing("key set").await;
    assert_eq!(proxy.heads(), Vec::<String>::new());
}

#[tokio::test]
async fn an_address_that_is_no_http_proxy_is_refused_at_start() {
    let (_, _, dir) = behind_proxy(None).await;
    let file = dir.path().join("doorward.yaml");
    std::fs::write(&file, CONFIGURATION).unwrap();
    for command in ["check", "serve"] {
        let mut doorward = Command::new(env!("CARGO_BIN_EXE_doorward"));
        let output = doorward.arg(command).arg(&file).env("HTTPS_PROXY", "socks5://user:hunter2@proxy.test").output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("`HTTPS_PROXY`"), "{command}: {said}");
        assert!(!said.contains("hunter2"), "{command}: {said}");
    }
}
