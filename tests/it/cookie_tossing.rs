//! Cookie tossing: a sibling host sets cookies for Doorward's host, in a real Chromium, over both versions of HTTP.
//! None is taken for a session, and users with too many of them are told what to do.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{
    harness::{Authority, OidcProvider, Reply, Upstream, browse, free_port},
    login_fixture::{LoginFixture, until_people_can_sign_in_over_tls},
    pages::screenshots,
};

/// A sibling host controlled by an attacker: it sets whichever cookies its address says.
async fn evil() -> Upstream {
    Upstream::scripted(|request| {
        let target = request.line().split(' ').nth(1).unwrap_or_default().to_owned();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let mut head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n".to_owned();
        for (_, line) in url::form_urlencoded::parse(query.as_bytes()) {
            write!(head, "Set-Cookie: {line}\r\n").unwrap();
        }
        Reply::Bytes(format!("{head}\r\nevil").into_bytes())
    })
    .await
}

/// `bare` are possible texts of the browser's own page where the response has none.
async fn sibling_signs_nobody_in(arguments: &[&str], bare: &[&str]) {
    let (port, authority, dir) = (free_port(), Authority::new(), tempfile::tempdir().unwrap());
    let host = format!("dash.apps.test:{port}");
    let origin = format!("https://{host}");
    authority.issue(&["dash.apps.test"]).write(dir.path(), "server");
    let (provider, upstream, evil) = (OidcProvider::start(&origin).await, Upstream::start().await, evil().await);
    let changes = [
        ("'}]", "', tls: {certificates: [{chain: server.pem, key: server.key}]}}]"),
        ("hosts: [localhost]", "hosts: [dash.apps.test]"),
        ("users: [alice]", "users: [alice, mallory]"),
    ];
    let LoginFixture { doorward, upstream, .. } =
        LoginFixture::start(&provider.issuer, port, upstream, dir, &changes).await;
    until_people_can_sign_in_over_tls(&doorward, &authority, &host).await;
    let siblings = format!("http://evil.apps.test:{}", evil.address.port());
    let saw = browse(&json!({"scenario": "tossing", "url": origin, "evil": siblings, "arguments": arguments,
        "screenshots": screenshots()}))
    .await;
    // What the browser lets through and sends to Doorward: similar names, but none of Doorward's.
    let tossed: Vec<&str> = saw["tossed"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(tossed.len() > 5 && tossed.iter().all(|name| !name.starts_with("__Host-")), "{tossed:?}");
    assert_eq!(
        (&saw["before"]["who"], &saw["before"]["session"]),
        (&json!("Sign-in"), &json!([])),
        "the provider's page"
    );
    assert_eq!(saw["landed"], format!("{origin}/runs?of=1#/place"));
    assert_eq!(saw["signedIn"], "alice@doorward.test");
    for after in ["again", "injected", "cleared"] {
        assert_eq!(saw[after]["who"], "alice@doorward.test", "{after}: {saw}");
    }
    assert_eq!((&saw["again"]["kept"], &saw["cleared"]["kept"]), (&json!(true), &json!(true)), "{saw}");
    assert_eq!(saw["injected"]["told"], "This sign-in began somewhere else");
    // Beyond the limit for a head, the response has no body, and the browser shows its own page.
    for (size, status, parts) in
        [("some", json!(431), &["headers_too_large"][..]), ("many", Value::Null, bare), ("most", Value::Null, bare)]
    {
        let met = &saw["sizes"][size];
        assert_eq!((&met["status"], &met["asked"]), (&status, &json!(1)), "{size}: {saw}");
        let told = met["told"].as_str().unwrap();
        assert!(parts.iter().any(|part| told.contains(part)), "{size}: {saw}");
    }
    let told = saw["sizes"]["some"]["told"].as_str().unwrap();
    assert!(told.contains("delete the cookies of this host and of its parent domains"), "{told}");
    let twice = &saw["twice"];
    assert_eq!((&twice["count"], &twice["status"], &twice["asked"]), (&json!(2), &json!(400), &json!(1)), "{saw}");
    let told = twice["told"].as_str().unwrap();
    assert!(told.contains("was sent more than once") && told.contains("Delete the cookies of this host"), "{told}");
    assert_eq!(saw["anew"], "alice@doorward.test", "{saw}");
    assert_eq!(saw["faults"], json!([]));
    let own = saw["own"].as_str().unwrap();
    for request in upstream.requests() {
        let mut lines = request.head.lines().filter_map(|line| line.strip_prefix("cookie: "));
        let ours = lines.any(|line| line.split("; ").any(|pair| pair.starts_with("__Host-doorward")));
        assert!(!ours && !request.head.contains(own), "it was sent on: {}", request.head);
    }
    let trail: Vec<Value> = doorward.audit();
    // Apart from the records of their own sign-in.
    let proxied = trail.iter().filter(|record| record["unmapped"]["endpoint"].is_null());
    let as_attacker = proxied.filter(|record| record.to_string().contains("\"mallory\"")).count();
    assert!(as_attacker <= 2, "somebody was taken for the attacker: {trail:#?}");
    doorward.stays_below(110, "more cookies than a head may have");
}

#[tokio::test]
async fn cookies_of_a_sibling_domain_neither_sign_in_nor_lock_out() {
    // While the browser still sends, the end of the connection can arrive before the reason for it.
    sibling_signs_nobody_in(&[], &["ERR_HTTP2_PROTOCOL_ERROR", "ERR_CONNECTION_RESET"]).await;
}

#[tokio::test]
async fn cookies_of_a_sibling_domain_neither_sign_in_nor_lock_out_over_http1() {
    sibling_signs_nobody_in(&["--disable-http2"], &["HTTP ERROR 431"]).await;
}
