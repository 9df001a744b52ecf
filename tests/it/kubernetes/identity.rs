//! Rows A, H, X, N, E, S, C, L: which identity a request has, and which it claims.

use std::{net::SocketAddr, sync::Arc};

use base64::Engine as _;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{
    Expect::{self, Clean, Refused},
    TASKRUNS, alice, assert_clean, check, fixture,
};
use crate::{
    fixture::{Change, Fixture, bearer},
    harness::{Authority, HANDSHAKE, Push, Reply, Upstream, now, request, streams::with_login, unique},
};

const NO: Expect = Refused(&[403]);

#[tokio::test]
async fn identity_headers_of_a_client_never_reach_the_api_server() {
    let fixture = fixture().await;
    let cases: &[(&str, &[&str], Expect)] = &[
        ("kubernetes:A1", &["Impersonate-Group: system:masters"], NO),
        ("kubernetes:A2", &["Impersonate-Uid: 0"], NO),
        ("kubernetes:A3", &["imPerSoNaTE-uSer: root"], NO),
        ("kubernetes:A3", &["IMPERSONATE-GROUP: x"], NO),
        ("kubernetes:A4", &["Impersonate-Doesnotexist: x"], NO),
        ("kubernetes:A4", &["Impersonate: x"], NO),
        ("kubernetes:A4", &["Impersonate-Extra-: x"], NO),
        ("kubernetes:A5", &["Impersonate_User: root"], NO),
        ("kubernetes:A5", &["X_Remote_User: root"], Clean),
        ("kubernetes:A5", &["X_Forwarded_User: root"], Clean),
        ("kubernetes:A6", &["Impersonate-User: root", "Impersonate-User: alice"], NO),
        ("kubernetes:A7", &["Impersonate-User: alice"], NO),
        ("kubernetes:H1", &["Connection: Impersonate-User"], Clean),
        ("kubernetes:H1", &["Connection: close, Impersonate-Group"], Clean),
        ("kubernetes:H1", &["Connection: keep-alive, Authorization"], Clean),
        ("kubernetes:H2", &["Connection: ", "Connection: Impersonate-User"], Clean),
        ("kubernetes:H3", &["Connection: impersonate-user, impersonate-group, authorization, audit-id"], Clean),
        ("kubernetes:H3", &["Connection: Impersonate-User", "Impersonate-User: root"], NO),
        ("peers:D1", &["Connection: keep-alive, Impersonate-User, Impersonate-Group, X-Forwarded-User"], Clean),
        ("peers:D2", &["Impersonate-Extra-Scopes: admin"], NO),
        ("kubernetes:H4", &["Connection: close, X-Forwarded-For, Audit-ID", "Audit-ID: mine"], Clean),
        ("kubernetes:X1", &["X-Remote-User: system:admin"], Clean),
        ("kubernetes:X1", &["X-Remote-Group: system:masters", "X-Remote-Uid: 0", "X-Remote-Extra-Foo: x"], Clean),
        ("kubernetes:X3", &["X-Forwarded-Uri: /healthz", "X-Original-Url: /healthz", "X-Rewrite-Url: /"], Clean),
        ("kubernetes:X4", &["X-Forwarded-For: 1.2.3.4", "X-Real-Ip: 1.2.3.4", "Forwarded: for=1.2.3.4"], Clean),
        ("kubernetes:N1", &["Impersonate-User: bob"], NO),
        ("kubernetes:N2", &["Impersonate-User: system:serviceaccount:ns:sa"], NO),
        ("kubernetes:N3", &["Impersonate-User: bob", "Impersonate-Uid: 1"], NO),
        ("kubernetes:N4", &["Impersonate-User: bob", "Impersonate-Extra-acme.com%2Fproject: p"], NO),
        ("kubernetes:N5", &["Impersonate-User: bob", "Impersonate-Extra-doorward.dev%2Fclient: x"], NO),
        ("kubernetes:N6", &["Impersonate-User: bob", "Impersonate-Group: system:masters"], NO),
        ("kubernetes:N7", &["Impersonate-User: alice", "Impersonate-Group: system:masters"], NO),
        ("kubernetes:N10", &["Impersonate-User: slow"], NO),
        ("attacks:Z31", &["X-Request-Id: mine"], Clean),
        ("attacks:Z32", &["X-HTTP-Method-Override: DELETE"], Clean),
        ("peers:T9", &["X-Auth_Request_User: evil"], Clean),
        ("kubernetes:N9", &["Impersonate-User: alice", "Impersonate-Group: admins"], NO),
    ];
    for (row, more, expect) in cases {
        let answer = alice(&fixture, row, &format!("GET {TASKRUNS}"), more, *expect).await;
        if matches!(expect, Refused(_)) {
            assert_eq!(answer.reason(), "impersonation_refused", "{row}");
            assert_eq!(answer.json()["kind"], "Status", "{row}");
        }
        // The counterpart: the same without these lines.
        alice(&fixture, row, &format!("GET {TASKRUNS}"), &[], Clean).await;
    }
    // kubernetes:A2: only a uid, with no other header and no credential.
    let lone = [&format!("GET {TASKRUNS} HTTP/1.1"), "Host: api.test", "Impersonate-Uid: 0"];
    check(&fixture, "kubernetes:A2", &lone, b"", Refused(&[401, 403])).await;
    // In a trailer, which a server may merge into the headers.
    let token = fixture.alice();
    let line = format!("POST {TASKRUNS} HTTP/1.1");
    let post = [&line, "Host: api.test", &token, "Content-Type: application/json", "Transfer-Encoding: chunked"];
    let trailer = b"2\r\n{}\r\n0\r\nImpersonate-Group: system:masters\r\n\r\n";
    check(&fixture, "attacks:Z37", &post, trailer, Clean).await;
}

/// Nobody was named, although that is what everybody wants to know of such an attempt.
#[tokio::test]
async fn an_attempt_to_impersonate_is_recorded_with_whose_token_it_came() {
    let fixture = fixture().await;
    let alice = fixture.alice();
    for (lines, subject) in [
        (vec![&*alice, "Impersonate-User: root"], json!("alice")),
        (vec!["Impersonate-User: root"], Value::Null),
        (vec!["Authorization: Bearer none.of.ours", "Impersonate-User: root"], Value::Null),
    ] {
        let (answer, seen) = fixture.api(TASKRUNS, &lines).await;
        let said = (answer.status, answer.reason());
        assert_eq!((said, seen.len()), ((403, "impersonation_refused".to_owned()), 0), "{lines:?}");
        let id = answer.header("x-request-id").unwrap();
        let record = fixture.doorward.record(|line| line["http_request"]["uid"] == id).await;
        assert_eq!(record["status_code"], "impersonation_refused", "{record:#}");
        assert_eq!((&record["unmapped"]["presented"]["subject"], record.get("actor")), (&subject, None), "{record:#}");
    }
}

/// peers:D3: each group has a line of its own, even with a comma in its name.
#[tokio::test]
async fn groups_are_sent_one_by_one() {
    let change = |yaml: String| {
        yaml.change("kubernetes_groups: ['tekton:dev']", "kubernetes_groups: ['tekton:dev', 'a,b', ops]")
    };
    let fixture = Fixture::with(change, |_| Reply::json(200, "{}")).await;
    let (answer, seen) = fixture.api(TASKRUNS, &[&fixture.alice()]).await;
    assert_eq!((answer.status, seen.len()), (200, 1), "peers:D3: {}", answer.text());
    let mut groups = seen[0].all("impersonate-group");
    groups.sort_unstable();
    assert_eq!(groups, ["a,b", "ops", "tekton:dev"], "peers:D3: {}", seen[0].head);
}

#[tokio::test]
async fn routes_without_a_caller_lose_forged_identities_too() {
    let fixture = fixture().await;
    let forged = ["X-Remote-User: system:admin", "X_Remote_User: root", "X_Forwarded_User: root", "Remote-User: root"];
    let open = request(&[&["GET /healthz HTTP/1.1", "Host: open.test"], &forged[..]].concat(), b"");
    for (row, request) in [("kubernetes:X2", open), ("kubernetes:A5", Push::new().request(&forged))] {
        let _ = fixture.upstream.take();
        let mut raw = fixture.doorward.raw().await;
        raw.send(request).await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, 200, "{row}: {}", answer.text());
        let seen = fixture.upstream.only();
        for (name, value) in forged.iter().filter_map(|line| line.split_once(": ")) {
            assert!(!seen.head.contains(value) && !seen.has(name), "{row}: {}", seen.head);
        }
        assert!(!seen.head.to_ascii_lowercase().contains("impersonate"), "{row}");
    }
}

/// It is also recorded with the name in the token, if that cannot be a principal.
#[tokio::test]
async fn a_user_that_is_not_certain_is_refused() {
    let fixture = fixture().await;
    let bea = |more: Value| {
        let mut presented = json!({"issuer": "b", "subject": "bea"});
        presented.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Some(presented)
    };
    let named = |more: Value| {
        let mut claims = fixture.b.claims("bea", &["dev"]);
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bearer(&fixture.b.sign(&claims))
    };
    let cases = [
        ("kubernetes:E1", named(json!({})), 403, bea(json!({}))),
        ("kubernetes:E1", named(json!({"name": ""})), 403, bea(json!({"user": ""}))),
        ("kubernetes:E1", named(json!({"name": " "})), 403, bea(json!({"user": " "}))),
        ("kubernetes:E1", named(json!({"name": 5})), 403, bea(json!({}))),
        ("kubernetes:E1", named(json!({"name": "bea", "groups": []})), 403, None),
        ("kubernetes:E1", named(json!({"name": "bea", "groups": [""]})), 403, None),
        (
            "kubernetes:S1",
            named(json!({"name": "system:serviceaccount:kube-system:x"})),
            403,
            bea(json!({"user": "system:serviceaccount:kube-system:x"})),
        ),
        (
            "kubernetes:S1",
            named(json!({"name": "system:authenticated"})),
            403,
            bea(json!({"user": "system:authenticated"})),
        ),
        (
            "kubernetes:S1",
            named(json!({"name": "bea", "groups": ["dev", "system:masters"]})),
            403,
            bea(json!({"group": "system:masters"})),
        ),
        ("kubernetes:S2", named(json!({"name": "bea", "groups": ["system:authenticated", "dev"]})), 200, None),
        ("kubernetes:S3", named(json!({"name": "bea", "groups": ["dev", "systemx:y"]})), 200, None),
        // Stricter than the API server, for which this is an ordinary group: other programs ignore case.
        (
            "kubernetes:S3",
            named(json!({"name": "bea", "groups": ["dev", "System:masters"]})),
            403,
            bea(json!({"group": "System:masters"})),
        ),
        ("kubernetes:S3", named(json!({"name": "bea", "groups": ["dev", "\u{455}ystem:masters"]})), 200, None),
        ("kubernetes:S3", named(json!({"name": "bea\t"})), 403, bea(json!({"user": "bea\t"}))),
        ("kubernetes:S3", named(json!({"name": "bea\u{7}"})), 403, bea(json!({"user": "bea\u{7}"}))),
        ("kubernetes:S3", named(json!({"name": " bea"})), 403, bea(json!({"user": " bea"}))),
        (
            "kubernetes:S3",
            named(json!({"name": "bea", "groups": ["dev", "system:masters\t"]})),
            403,
            bea(json!({"group": "system:masters\t"})),
        ),
        // A right that only the group gives.
        ("kubernetes:N8", named(json!({"name": "bea", "groups": ["dev"]})), 200, None),
        ("kubernetes:N8", named(json!({"name": "bea", "groups": ["other"]})), 403, None),
    ];
    for (number, (row, token, status, presented)) in cases.iter().enumerate() {
        let path = format!("{TASKRUNS}/case-{number}");
        let (answer, seen) = fixture.api(&path, &[token]).await;
        assert_eq!(answer.status, *status, "{row}: {}", answer.text());
        assert_eq!(seen.len(), usize::from(*status == 200), "{row}");
        let record = fixture.doorward.record(|record| record["http_request"]["url"]["path"] == path).await;
        let mut recorded = record["unmapped"].get("presented").cloned();
        let uid = recorded.as_mut().and_then(|recorded| recorded.as_object_mut()?.remove("credential_uid"));
        assert_eq!((recorded.as_ref(), uid.is_some()), (presented.as_ref(), presented.is_some()), "{row}: {record}");
        assert_eq!(record.get("actor").is_some(), presented.is_none(), "{row}: {record}");
        if let [seen] = &seen[..] {
            assert_clean(row, seen, "bea");
        }
    }
}

#[tokio::test]
async fn one_credential_well_formed_or_401() {
    let fixture = fixture().await;
    let token = fixture.a.token("alice", &["dev"]);
    let cases: Vec<(&str, Vec<String>, &'static [u16])> = vec![
        ("kubernetes:E2", vec!["Authorization: Bearer ".into()], &[401]),
        ("kubernetes:E2", vec!["Authorization: Bearer".into()], &[401]),
        ("kubernetes:E2", vec![format!("Authorization: Bearer  {token}")], &[401]),
        ("kubernetes:E2", vec![], &[401]),
        ("kubernetes:E3", vec![bearer(&token), bearer(&token)], &[400]),
        ("kubernetes:E3", vec!["Authorization: Basic YTpi".into(), "Cookie: __Host-doorward=x".into()], &[400, 401]),
        ("kubernetes:C1", vec![bearer("garbage")], &[401]),
        ("kubernetes:C1", vec![bearer(&expired(&fixture.a))], &[401]),
        ("kubernetes:C1", vec![bearer(&other_audience(&fixture.a))], &[401]),
        ("kubernetes:C1", vec![bearer(&fixture.b.token("bea", &["dev"]))], &[403]),
        ("kubernetes:C1", vec![bearer(&fixture.a.token("alice", &["other"]))], &[403]),
    ];
    for (row, lines, statuses) in &cases {
        let request = format!("GET {TASKRUNS} HTTP/1.1");
        let mut all = vec![request.as_str(), "Host: api.test"];
        all.extend(lines.iter().map(String::as_str));
        let answer = check(&fixture, row, &all, b"", Refused(statuses)).await;
        // RFC 6750 section 3.1 has a challenge with 400 too, for a token presented in two ways.
        assert_eq!(answer.header("www-authenticate").is_some(), answer.status != 403, "{row}: {}", answer.head);
        assert_eq!(answer.json()["kind"], "Status", "{row}");
    }
    alice(&fixture, "kubernetes:E2", &format!("GET {TASKRUNS}"), &[], Clean).await;
}

/// kubernetes:E3 where only a cookie is accepted: the other credential is not ignored.
#[tokio::test]
async fn a_cookie_beside_another_credential_is_400_where_sessions_alone_are_taken() {
    let (mut doorward, (issuer, upstream), host, cookie) = with_login("", "").await;
    let path = doorward.dir().join("doorward.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, yaml.change("schemes: [session, bearer]", "schemes: [session]")).unwrap();
    doorward.wait_for_generation(2).await;
    let (host, origin) = (format!("Host: {host}"), format!("Origin: http://{host}"));
    let token = issuer.token("alice", &["dev"]);
    let good = bearer(&token);
    let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&token);
    let protocols =
        format!("Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io");
    let exec = "/api/v1/namespaces/ci/pods/p/exec?command=sh";
    let dead = "Cookie: __Host-doorward=x";
    let cases: [(&str, &[&str], u16); 9] = [
        ("/api/v1/pods", &[&cookie], 200),
        ("/api/v1/pods", &[&cookie, "Authorization: Basic YTpi"], 400),
        ("/api/v1/pods", &[&cookie, &good], 400),
        ("/api/v1/pods", &[&cookie, &good, &good], 400),
        ("/api/v1/pods", &[dead, "Authorization: Basic YTpi"], 400),
        ("/api/v1/pods", &["Authorization: Basic YTpi"], 401),
        ("/api/v1/pods", &[&good], 401),
        (exec, &[&[&*cookie, &protocols], &HANDSHAKE[..]].concat(), 400),
        (exec, &[&[&*cookie, "Sec-WebSocket-Protocol: v5.channel.k8s.io"], &HANDSHAKE[..]].concat(), 101),
    ];
    for (path, lines, status) in cases {
        let _ = upstream.take();
        let answer = doorward.get(path, &[&[&*host, &origin], lines].concat()).await;
        assert_eq!(answer.status, status, "kubernetes:E3 {lines:?}: {}", answer.text());
        assert!(
            status != 400 || answer.reason() == "credential_ambiguous",
            "kubernetes:E3 {lines:?}: {}",
            answer.text()
        );
        assert_eq!(upstream.take().len(), usize::from(status < 400), "kubernetes:E3 {lines:?}");
    }
}

fn expired(issuer: &crate::harness::Issuer) -> String {
    let mut claims = issuer.claims("alice", &["dev"]);
    claims["iat"] = json!(now() - 900);
    claims["exp"] = json!(now() - 300);
    issuer.sign(&claims)
}

fn other_audience(issuer: &crate::harness::Issuer) -> String {
    let mut claims = issuer.claims("alice", &["dev"]);
    claims["aud"] = json!("https://other.test");
    issuer.sign(&claims)
}

#[tokio::test]
async fn our_own_credential_refused_upstream_is_never_401() {
    for (row, upstream, status) in [("kubernetes:C1", 401, 502), ("kubernetes:C1 twin", 403, 403)] {
        let fixture = super::scripted(move |_| Reply::json(upstream, "{}")).await;
        let (answer, seen) = fixture.api(TASKRUNS, &[&fixture.alice()]).await;
        assert_eq!((answer.status, seen.len()), (status, 1), "{row}: {}", answer.text());
        // An apply is looked up first.
        let (apply, token) = (format!("{TASKRUNS}/a"), fixture.alice());
        let line = format!("PATCH {apply} HTTP/1.1");
        let lines = [&*line, "Host: api.test", &token, "Content-Type: application/apply-patch+yaml"];
        let answer = fixture.doorward.send(&lines, b"kind: TaskRun\nspec: {}\n").await;
        assert_eq!(answer.status, status, "{row}: {}", answer.text());
        for path in [TASKRUNS, &apply] {
            let is_end = |record: &Value| !record["http_response"]["code"].is_null();
            let is_it = |record: &Value| record["http_request"]["url"]["path"] == path && is_end(record);
            let record = fixture.doorward.record(is_it).await;
            let codes = (&record["http_response"]["code"], &record["unmapped"]["upstream"]["status"]);
            assert_eq!(codes, (&json!(status), &json!(upstream)), "{row} {path}: {record}");
        }
    }
}

/// Accepts connections only with a certificate of the authority, and forwards them to an upstream in clear text.
async fn behind_tls(upstream: &Upstream, authority: &Authority) -> SocketAddr {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let pair = authority.issue(&["127.0.0.1"]);
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let tls = ServerConfig::builder().with_client_cert_verifier(verifier);
    let acceptor = TlsAcceptor::from(Arc::new(tls.with_single_cert(vec![pair.der()], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, server) = (listener.local_addr().unwrap(), upstream.address);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(server).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    address
}

#[tokio::test]
async fn our_own_certificate_refused_upstream_is_never_401() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    authority.issue(&["doorward"]).write(folder.path(), "client");
    for (row, upstream, status) in [("kubernetes:C1", 401, 502), ("kubernetes:C1 twin", 403, 403)] {
        let server = Upstream::scripted(move |_| Reply::json(upstream, "{}")).await;
        let (address, dir) = (behind_tls(&server, &authority).await, folder.path().display());
        let entry = format!(
            "  - {{name: cluster, url: 'https://{address}', tls: {{ca: {dir}/ca.pem, certificate: {{chain: {dir}/client.pem, key: {dir}/client.key}}}}}}"
        );
        let change = |yaml: String| {
            let lines = yaml.lines().map(|line| if line.starts_with("  - {name: cluster,") { &*entry } else { line });
            lines.map(|line| format!("{line}\n")).collect()
        };
        let fixture = Fixture::with(change, |_| Reply::json(500, "{}")).await;
        let (answer, _) = fixture.api(TASKRUNS, &[&fixture.alice()]).await;
        assert_eq!((answer.status, server.take().len()), (status, 1), "{row}: {}", answer.text());
        if status == 502 {
            assert!(answer.text().contains("the upstream `cluster` did not accept Doorward's own credential"), "{row}");
        }
    }
}

#[tokio::test]
async fn a_dead_token_does_not_hammer_the_issuer() {
    let fixture = fixture().await;
    let dead = bearer(&unique());
    for _ in 0..1000 {
        let lines = [&format!("GET {TASKRUNS} HTTP/1.1"), "Host: api.test", &dead];
        check(&fixture, "kubernetes:C5", &lines, b"", Refused(&[401])).await;
    }
    // A negative answer is cached for some seconds, and this loop takes longer only on a slow machine.
    assert!(fixture.a.introspections() <= 20, "kubernetes:C5: {}", fixture.a.introspections());
    let good = unique();
    fixture.a.opaque(
        &good,
        json!({"active": true, "sub": "alice", "iss": fixture.a.url(), "aud": "https://doorward.test",
            "client_id": "tests", "groups": ["dev"], "exp": now() + 60}),
    );
    let (answer, seen) = fixture.api(TASKRUNS, &[&bearer(&good)]).await;
    assert_eq!((answer.status, seen.len()), (200, 1), "kubernetes:C5 twin: {}", answer.text());
}

#[tokio::test]
async fn neither_log_nor_audit_trail_reveals_a_secret() {
    for filter in ["info", "trace"] {
        tells_no_secret(filter).await;
    }
}

async fn tells_no_secret(filter: &str) {
    let mut fixture = super::logging(filter, |_| Reply::json(500, "{}")).await;
    let token = fixture.a.token("alice", &["dev"]);
    let secret = token.split('.').nth(2).unwrap().to_owned();
    let path = format!("{TASKRUNS}?labelSelector=query-secret");
    for more in [&["Impersonate-User: forged-user-value"][..], &["Connection: xupgrade"], &[]] {
        let mut lines = vec!["Host: api.test".to_owned(), bearer(&token)];
        lines.extend(more.iter().map(|line| (*line).to_owned()));
        fixture.doorward.get(&path, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let garbled = format!("Authorization: Bearer {token} {secret}");
    fixture.doorward.get(&path, &["Host: api.test", &garbled]).await;
    fixture.doorward.get(&format!("{TASKRUNS}?access_token={token}"), &["Host: api.test"]).await;
    fixture
        .api("/oauth2/callback?code=code-secret&state=x", &[&bearer(&token), "Cookie: __Host-doorward=cookie-secret"])
        .await;
    fixture.doorward.signal("TERM");
    fixture.doorward.ended().await;
    let audit = std::fs::read_to_string(fixture.doorward.audit_path()).unwrap();
    let log = fixture.doorward.log().iter().map(|line| format!("{line}\n")).collect::<String>();
    assert!(audit.contains(TASKRUNS), "the requests are in the trail");
    assert_eq!(log.contains("\"TRACE\""), filter == "trace", "the filter is in force");
    for (what, text) in [("audit", &audit), ("log", &log)] {
        for forbidden in [
            secret.as_str(),
            "forged-user-value",
            "query-secret",
            "code-secret",
            "cookie-secret",
            "introspection-secret",
            "upstream-token",
        ] {
            assert!(
                !text.contains(forbidden),
                "kubernetes:L1 peers:D13 {forbidden} is in the {what} at {filter}: {text}"
            );
        }
    }
    for line in audit.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("kubernetes:L1 {error}: {line}"));
    }
}
