//! A client certificate required of a sender in addition to its signature.

use crate::{
    fixture::WEBHOOK_SECRET,
    harness::{Answer, Authority, Doorward, Pair, Push, Raw, Reply, Upstream, folder_with},
};

async fn deliver(doorward: &Doorward, authority: &Authority, certificate: Option<&Pair>) -> Answer {
    deliver_to(doorward, "tls", "hooks.test", authority, certificate).await
}

/// Over a connection for the host `name`.
async fn deliver_to(
    doorward: &Doorward,
    listener: &str,
    name: &str,
    authority: &Authority,
    certificate: Option<&Pair>,
) -> Answer {
    let mut raw = Raw::tls(doorward.address(listener), authority, certificate, name).await;
    raw.send(Push::new().request(&[])).await;
    raw.answer().await
}

#[tokio::test]
async fn a_sender_with_a_certificate_is_refused_without_it_even_if_it_signs() {
    let upstream = Upstream::scripted(|_| Reply::json(202, "{}")).await;
    let authority = Authority::new();
    let dir = folder_with(&[("ca.pem", &authority.pem()), ("secret", WEBHOOK_SECRET)]);
    authority.issue(&["hooks.test", "other.test"]).write(dir.path(), "server");
    let (named, pinned, other) =
        (authority.issue(&["git.example.com"]), authority.issue(&["a.test"]), authority.issue(&["b.test"]));
    let yaml = format!(
        "
listeners:
  - {{name: public, address: 127.0.0.1:0}}
  - {{name: tls, address: 127.0.0.1:0, tls: {{certificates: [{{chain: server.pem, key: server.key}}], client_ca: ca.pem}}}}
  - {{name: proxied, address: 127.0.0.1:0, trusted_proxies: [127.0.0.1/32], tls: {{certificates: [{{chain: server.pem, key: server.key}}], client_ca: ca.pem}}}}
upstreams: [{{name: el, url: '{upstream}'}}]
webhooks:
  - name: github
    sender: github
    hold: false
    secrets: [{{secret: {{file: secret}}}}]
    client_certificate: {{names: [git.example.com], sha256: ['{pinned}']}}
routes:
  - {{name: hooks, kind: webhook, hosts: [hooks.test], paths: [/github], schemes: [webhook], webhook: github, upstream: el}}
rules:
  - {{id: hooks, on: {{routes: [hooks]}}, who: {{webhooks: [github]}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
        upstream = upstream.url(),
        pinned = pinned.sha256(),
    );
    let doorward = Doorward::start_in(dir, &yaml).await;
    for (row, certificate, status) in [
        ("none", None, 401),
        ("another of the same authority", Some(&other), 401),
        ("by its name", Some(&named), 202),
        ("by its fingerprint", Some(&pinned), 202),
    ] {
        let answer = deliver(&doorward, &authority, certificate).await;
        assert_eq!(answer.status, status, "{row}: {}", answer.text());
    }
    // A proxy may forward it on a connection for another host, but its certificate counts only there.
    for (name, status) in [("hooks.test", 202), ("other.test", 401)] {
        let answer = deliver_to(&doorward, "proxied", name, &authority, Some(&named)).await;
        assert_eq!(answer.status, status, "over a connection for {name}: {}", answer.text());
    }
    assert_eq!(Push::new().send(&doorward, &[]).await.status, 401, "in clear text there is none");
    assert_eq!(upstream.requests().len(), 3);
}
