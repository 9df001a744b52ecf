//! The listeners from outside: whose PROXY protocol is trusted, TLS, HTTP/2, connection limits, and ports in use.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use http_body_util::{BodyExt, Empty};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    fixture::{Change, Fixture},
    harness::{
        Answer, Authority, Doorward, Issuer, Pair, Raw, Reply, Upstream, connect_tls, now,
        streams::{Http2, http2_on},
        told, until, within,
    },
};

const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const GET: &str = "GET /x HTTP/1.1\r\nHost: open.test\r\nConnection: close\r\n\r\n";

/// A version 2 header for TCP over IPv4 (`proxy-protocol.txt` section 2.2). `command` is 1 for PROXY, 0 for LOCAL, and
/// `transport` is 0x11 for TCP over IPv4.
fn version2(command: u8, transport: u8, source: [u8; 4]) -> Vec<u8> {
    let addresses = [&source[..], &[127, 0, 0, 1], &[0, 7, 0, 9]].concat();
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, transport, 0, 12][..], &addresses].concat()
}

/// The status of the response on a connection, or 0 if it is closed without one.
async fn outcome(address: SocketAddr, from: IpAddr, first: &[u8]) -> u16 {
    let mut raw = Raw::connect_from(from, address).await;
    raw.send([first, GET.as_bytes()].concat()).await;
    let answer = String::from_utf8_lossy(&raw.rest().await).into_owned();
    if answer.is_empty() { 0 } else { answer.split(' ').nth(1).unwrap().parse().unwrap() }
}

/// The rule of the open route is for clients in 10.0.0.0/8 only, so that the status shows which client address Doorward
/// assumes.
fn behind_a_balancer(yaml: &str) -> String {
    yaml.change("address: 127.0.0.1:0}]", "address: 127.0.0.1:0, proxy_protocol_from: [127.0.0.2/32]}]")
        .change("on: {routes: [open]}", "on: {routes: [open], addresses: [10.0.0.0/8]}")
}

#[tokio::test]
async fn a_load_balancer_names_the_client_and_nobody_else_may() {
    let fixture = Fixture::with(|yaml| behind_a_balancer(&yaml), |_| Reply::json(200, "{}")).await;
    let inside = [10, 1, 2, 3];
    let too_long = format!("PROXY TCP4 {}", "1".repeat(200));
    let cases: Vec<(&str, IpAddr, Vec<u8>, u16)> = vec![
        ("version 1", BALANCER, b"PROXY TCP4 10.1.2.3 127.0.0.1 7 9\r\n".to_vec(), 200),
        ("version 1 of a client elsewhere", BALANCER, b"PROXY TCP4 192.0.2.1 127.0.0.1 7 9\r\n".to_vec(), 403),
        ("version 1 without a client", BALANCER, b"PROXY UNKNOWN\r\n".to_vec(), 403),
        ("version 2", BALANCER, version2(1, 0x11, inside), 200),
        ("version 2 of a client elsewhere", BALANCER, version2(1, 0x11, [192, 0, 2, 1]), 403),
        ("version 2 LOCAL", BALANCER, version2(0, 0x00, inside), 403),
        ("version 2 of UDP", BALANCER, version2(1, 0x12, inside), 0),
        ("no header", BALANCER, Vec::new(), 0),
        ("a header that is none", BALANCER, b"PROXY TCP9 a b c d\r\n".to_vec(), 0),
        ("a header without end", BALANCER, too_long.into_bytes(), 0),
        ("attacks:Z36 version 1 of somebody", STRANGER, b"PROXY TCP4 10.1.2.3 127.0.0.1 7 9\r\n".to_vec(), 0),
        ("attacks:Z36 version 2 of somebody", STRANGER, version2(1, 0x11, inside), 0),
        ("attacks:Z36 version 2 LOCAL of somebody", STRANGER, version2(0, 0x00, inside), 0),
        ("the twin: somebody without a header", STRANGER, Vec::new(), 403),
    ];
    for (what, from, first, status) in cases {
        let _ = fixture.upstream.take();
        assert_eq!(outcome(fixture.doorward.address("public"), from, &first).await, status, "{what}");
        assert_eq!(fixture.upstream.take().len(), usize::from(status == 200), "{what}");
    }
    // The trail names the client and not the balancer.
    let served = fixture.doorward.records(2, |record| record["http_response"]["code"] == 200).await;
    let sources: Vec<_> = served.iter().map(|record| &record["src_endpoint"]["ip"]).collect();
    assert_eq!(sources, ["10.1.2.3"; 2]);
}

/// Such a listener sees an IPv4 peer as `::ffff:127.0.0.2`, which matches no IPv4 network.
#[tokio::test]
async fn a_balancer_of_ipv4_is_known_at_a_listener_for_all_addresses() {
    if let Err(error) = std::net::TcpListener::bind("[::]:0") {
        eprintln!("passed over, as this machine has no IPv6: {error}");
        return;
    }
    let dual = |yaml: String| {
        behind_a_balancer(&yaml)
            .change("address: 127.0.0.1:0, proxy_protocol_from", "address: '[::]:0', proxy_protocol_from")
    };
    let fixture = Fixture::with(dual, |_| Reply::json(200, "{}")).await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fixture.doorward.address("public").port()));
    for (from, status) in [(BALANCER, 200), (STRANGER, 0)] {
        let _ = fixture.upstream.take();
        assert_eq!(outcome(address, from, b"PROXY TCP4 10.1.2.3 127.0.0.1 7 9\r\n").await, status, "{from}");
        assert_eq!(fixture.upstream.take().len(), usize::from(status == 200), "{from}");
    }
    let served = fixture.doorward.records(1, |record| record["http_response"]["code"] == 200).await;
    assert_eq!(served[0]["src_endpoint"]["ip"], "10.1.2.3");
}

#[tokio::test]
async fn an_address_has_its_share_of_the_connections_and_an_ingress_speaks_for_many() {
    let few = |yaml: String| {
        yaml.change("address: 127.0.0.1:0}]", "address: 127.0.0.1:0, trusted_proxies: [127.0.0.2/32]}]")
            .change("connections_per_address: 5000", "connections_per_address: 3")
    };
    let fixture = Fixture::with(few, |_| Reply::json(200, "{}")).await;
    let address = fixture.doorward.address("public");
    let open = async |from: IpAddr| {
        let mut raw = Raw::connect_from(from, address).await;
        raw.send(GET.replace("Connection: close\r\n", "")).await;
        let first = raw.some().await;
        (raw, first.starts_with(b"HTTP/1.1 200"))
    };
    let mut kept = Vec::new();
    for number in 1..=5 {
        let (raw, served) = open(STRANGER).await;
        assert_eq!(served, number <= 3, "connection {number} of one address");
        kept.extend(served.then_some(raw));
    }
    assert!(open(IpAddr::from([127, 0, 0, 4])).await.1, "another address has a share of its own");
    // All clients of the ingress have its address.
    let mut ingress = Vec::new();
    for number in 1..=20 {
        let (raw, served) = open(BALANCER).await;
        assert!(served, "connection {number} of the ingress");
        ingress.push(raw);
    }
    // If one leaves, another may come.
    kept.pop();
    until(async || open(STRANGER).await.1).await;
    assert!(
        fixture.doorward.metrics().await.contains("doorward_downstream_connections_refused_total{reason=\"address\"}"),
        "{}",
        fixture.doorward.metrics().await
    );
    fixture.doorward.stays_below(90, "more connections than an address may have");
}

/// Doorward with TLS: one listener that asks for client certificates, one that does not, and one behind a proxy.
struct World {
    doorward: Doorward,
    upstream: Upstream,
    authority: Authority,
    alice: Pair,
}

impl World {
    async fn start() -> Self {
        let (issuer, upstream, authority) = (Issuer::start().await, Upstream::start().await, Authority::new());
        let alice = authority.issue(&["alice"]);
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        authority.issue(&["one.test", "two.test"]).write(folder, "server");
        authority.issue(&["other.test"]).write(folder, "other");
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        let until = doorward::clock::Timestamp::from_secs(i64::try_from(now()).unwrap() + 1800);
        let yaml = format!(
            "
listeners:
  - {{name: public, address: 127.0.0.1:0, tls: {{certificates: [{{chain: server.pem, key: server.key}}, {{chain: other.pem, key: other.key}}]}}}}
  - {{name: certified, address: 127.0.0.1:0, tls: {{certificates: [{{chain: server.pem, key: server.key}}], client_ca: ca.pem}}}}
  - {{name: proxied, address: 127.0.0.1:0, trusted_proxies: [127.0.0.0/8], tls: {{certificates: [{{chain: server.pem, key: server.key}}], client_ca: ca.pem}}}}
issuers:
  - {{name: a, issuer: '{issuer}', audiences: ['https://doorward.test'], username: '{{sub}}', kind: human}}
upstreams:
  - {{name: web, url: '{upstream}'}}
break_glass:
  until: '{until}'
  certificates: [{{name: alice, sha256: '{certificate}'}}]
routes:
  - {{name: one, kind: http, hosts: [one.test], schemes: [anonymous], upstream: web}}
  - {{name: two, kind: http, hosts: [two.test], schemes: [break_glass], upstream: web}}
  - {{name: other, kind: http, hosts: [other.test], schemes: [anonymous], upstream: web}}
rules:
  - {{id: open, on: {{routes: [one, other]}}, who: {{anonymous: true}}, do: allow}}
  - {{id: glass, on: {{routes: [two]}}, who: {{issuers: [break-glass]}}, do: allow}}
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: 127.0.0.1:0}}
limits: {{drain_accept: 0}}
",
            issuer = issuer.url(),
            upstream = upstream.url(),
            certificate = alice.sha256(),
        );
        Self { doorward: Doorward::start_in(dir, &yaml).await, upstream, authority, alice }
    }

    fn dir(&self) -> &Path {
        self.doorward.dir()
    }

    /// The answer to a request for `host` on a connection for `name`, and how many requests reached the upstream.
    async fn get(&self, listener: &str, config: &Arc<rustls::ClientConfig>, name: &str, host: &str) -> (Answer, usize) {
        let _ = self.upstream.take();
        let mut raw = Raw::over(connect_tls(self.doorward.address(listener), config, name).await.unwrap());
        raw.send(format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        (raw.answer().await, self.upstream.take().len())
    }
}

/// The status of a request on HTTP/2, its body read to the end.
async fn ask(sender: &mut Http2, url: &str) -> u16 {
    let request = http::Request::get(url).body(Empty::new()).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    let status = response.status().as_u16();
    within(response.into_body().collect()).await.unwrap();
    status
}

#[tokio::test]
async fn the_protocol_is_agreed_and_a_connection_is_for_the_host_that_it_was_opened_for() {
    let world = World::start().await;
    let address = world.doorward.address("public");
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&["http/1.1", "h2"], Some("h2")),
        (&[], None),
    ] {
        let stream = connect_tls(address, &world.authority.client(offered, None), "one.test").await.unwrap();
        let found = stream.get_ref().1.alpn_protocol().map(String::from_utf8_lossy);
        assert_eq!(found.as_deref(), agreed, "{offered:?}");
    }
    assert!(connect_tls(address, &world.authority.client(&["acme-tls/1"], None), "one.test").await.is_err());

    let config = world.authority.client(&[], None);
    for (name, host, status) in [
        ("one.test", "one.test", 200),
        ("one.test", "other.test", 421),
        ("other.test", "one.test", 421),
        ("other.test", "other.test", 200),
        ("one.test", "unknown.test", 421),
        ("one.test", "ONE.test.:443", 200),
    ] {
        let (answer, hits) = world.get("public", &config, name, host).await;
        assert_eq!((answer.status, hits), (status, usize::from(status == 200)), "{name} {host}: {}", answer.text());
    }
    // A browser reuses a connection for other hosts of its certificate (RFC 9113 section 9.1.1), and is told not to.
    let stream = connect_tls(address, &world.authority.client(&["h2"], None), "one.test").await.unwrap();
    let mut sender = http2_on(stream).await;
    assert_eq!(ask(&mut sender, "https://one.test/x").await, 200);
    assert_eq!(ask(&mut sender, "https://two.test/x").await, 421);
    assert_eq!(ask(&mut sender, "https://one.test/x").await, 200, "the connection goes on");
}

/// As ingress-nginx (`proxy-ssl-name`) and gateways (`BackendTLSPolicy`) do, which know a Service by one name.
#[tokio::test]
async fn a_trusted_proxy_may_use_one_server_name_for_all_hosts_but_a_certificate_for_one() {
    let world = World::start().await;
    let (nobody, alice) = (world.authority.client(&[], None), world.authority.client(&[], Some(&world.alice)));
    for (listener, config, name, host, status) in [
        ("proxied", &nobody, "one.test", "other.test", 200),
        ("proxied", &nobody, "one.test", "unknown.test", 421),
        ("certified", &nobody, "one.test", "other.test", 421),
        ("proxied", &alice, "two.test", "two.test", 200),
        ("proxied", &alice, "one.test", "two.test", 401),
        ("proxied", &alice, "one.test", "other.test", 200),
    ] {
        let (answer, hits) = world.get(listener, config, name, host).await;
        let expected = (status, usize::from(status == 200));
        assert_eq!((answer.status, hits), expected, "{listener} {name} {host}: {}", answer.text());
    }
}

#[tokio::test]
async fn certificates_are_read_again_and_a_broken_one_changes_nothing() {
    let mut world = World::start().await;
    let config = world.authority.client(&[], None);
    let leaf = async |world: &World, name: &str| {
        let stream = connect_tls(world.doorward.address("public"), &config, name).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = leaf(&world, "one.test").await;
    assert_ne!(leaf(&world, "other.test").await, before, "the certificate is chosen by name");
    // A connection that stays open meanwhile, longer than one without a request may. It has a client of its own, as a
    // session that is resumed by its tickets would show the certificate of then.
    let other = world.authority.client(&[], None);
    let mut open = Raw::over(connect_tls(world.doorward.address("public"), &other, "one.test").await.unwrap());
    open.send("GET /x HTTP/1.1\r\nHost: one.test\r\n\r\n").await;
    assert_eq!(open.answer().await.status, 200);

    let renewed = world.authority.issue(&["one.test", "two.test"]);
    // First only the key, as in half of a renewal: it is refused, and the old pair continues to serve.
    std::fs::write(world.dir().join("server.key"), &renewed.key).unwrap();
    world.doorward.wait_for_log_containing("does not belong to the certificate").await;
    assert_eq!(leaf(&world, "one.test").await, before);
    std::fs::write(world.dir().join("server.pem"), &renewed.chain).unwrap();
    world.doorward.wait_for_generation(2).await;
    assert_eq!(leaf(&world, "one.test").await, renewed.der().to_vec());
    open.send("GET /x HTTP/1.1\r\nHost: one.test\r\n\r\n").await;
    assert_eq!(open.answer().await.status, 200, "what is open goes on");
}

#[tokio::test]
async fn a_session_is_resumed_only_if_no_client_certificate_is_requested() {
    let mut world = World::start().await;
    let kind = async |world: &World, listener: &str, config: &Arc<rustls::ClientConfig>| {
        let stream = connect_tls(world.doorward.address(listener), config, "two.test").await?;
        let kind = stream.get_ref().1.handshake_kind();
        // Until the end of the response, so that tickets and a refused certificate have arrived.
        let mut raw = Raw::over(stream);
        raw.send("GET /x HTTP/1.1\r\nHost: two.test\r\nConnection: close\r\n\r\n").await;
        let answer = String::from_utf8_lossy(&raw.rest().await).into_owned();
        std::io::Result::Ok((kind.unwrap(), answer.split(' ').nth(1).unwrap_or_default().to_owned()))
    };
    let (nobody, alice) = (world.authority.client(&[], None), world.authority.client(&[], Some(&world.alice)));
    assert_eq!(kind(&world, "public", &nobody).await.unwrap(), (HandshakeKind::Full, "401".to_owned()));
    let (resumed, _) = kind(&world, "public", &nobody).await.unwrap();
    assert_eq!(resumed, HandshakeKind::Resumed, "the twin: here it may be");
    // attacks:Z9: a ticket of one listener is not accepted by the other, which asks for a certificate.
    assert_eq!(kind(&world, "certified", &nobody).await.unwrap(), (HandshakeKind::Full, "401".to_owned()));
    for _ in 0..2 {
        let full = (HandshakeKind::Full, "200".to_owned());
        assert_eq!(kind(&world, "certified", &alice).await.unwrap(), full, "attacks:Z9");
    }
    // attacks:Z9: the authority is removed, and with it all certificates that it issued.
    let other = Authority::new();
    std::fs::write(world.dir().join("ca.pem"), other.pem()).unwrap();
    world.doorward.wait_for_generation(2).await;
    let refused = kind(&world, "certified", &alice).await;
    assert!(refused.as_ref().is_ok_and(|(_, status)| status.is_empty()) || refused.is_err(), "attacks:Z9 {refused:?}");
    assert_eq!(kind(&world, "certified", &nobody).await.unwrap().1, "401", "the twin: without a certificate");
}

#[tokio::test]
async fn http2_says_its_limits_and_offers_no_connect() {
    let fixture = Fixture::start().await;
    let mut stream = tokio::net::TcpStream::connect(fixture.doorward.address("public")).await.unwrap();
    // The preface, and empty SETTINGS.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    within(stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[3], 4, "SETTINGS comes first");
    let mut payload = vec![0; usize::from(head[2])];
    within(stream.read_exact(&mut payload)).await.unwrap();
    let settings: std::collections::BTreeMap<u16, u32> = payload
        .chunks(6)
        .map(|entry| {
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            (u16::from_be_bytes([entry[0], entry[1]]), value)
        })
        .collect();
    // RFC 9113 section 6.5.2: MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE. The size counts 32
    // additional bytes per field, and hyper adds some room of its own.
    assert_eq!((settings[&3], settings[&6] >> 10), (100, 32 + 12), "{settings:?}");
    // Values equal to the protocol's default may be left out.
    assert_eq!(settings.get(&4).copied().unwrap_or(65_535).div_ceil(1 << 10), 64, "{settings:?}");
    // RFC 8441: with it, browsers would open WebSockets on HTTP/2.
    assert_ne!(settings.get(&8), Some(&1), "{settings:?}");
    let tunnel = fixture.doorward.send(&["CONNECT api.test:443 HTTP/1.1", "Host: api.test:443"], b"").await;
    assert_eq!((tunnel.status, tunnel.header("allow")), (405, Some("")));
}

/// Starts a Doorward that cannot start, in a folder of its own. Returns its exit status and output.
async fn fails_to_start(address: SocketAddr, admin: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "
listeners: [{{name: public, address: '{address}'}}]
upstreams: [{{name: web, url: 'http://127.0.0.1:1'}}]
routes: [{{name: web, kind: http, hosts: [open.test], schemes: [anonymous], upstream: web}}]
rules: [{{id: open, who: {{anonymous: true}}, do: allow}}]
store: {{path: doorward.redb}}
audit: {{sink: {{file: {{path: audit.jsonl}}}}}}
admin: {{address: '{admin}'}}
"
    );
    std::fs::write(dir.path().join("doorward.yaml"), yaml).unwrap();
    told(dir.path(), &["serve", "doorward.yaml"]).await
}

#[tokio::test]
async fn a_port_in_use_is_reported_with_the_program_that_has_it() {
    let fixture = Fixture::start().await;
    let (public, admin) = (fixture.doorward.address("public"), fixture.doorward.address("admin"));
    // A second Doorward: with SO_REUSEPORT alone it would silently share the port.
    let (code, said) = fails_to_start(public, "127.0.0.1:0").await;
    let owner = format!("port {} is in use by `doorward` (process {})", public.port(), fixture.doorward.pid());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&owner) && said.contains("choose another port"), "{said}");
    // Not even for a moment: each request reaches the first.
    for _ in 0..20 {
        assert_eq!(fixture.doorward.get("/x", &["Host: open.test"]).await.status, 200);
    }
    let somebody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = somebody.local_addr().unwrap();
    let (code, said) = fails_to_start(taken, "127.0.0.1:0").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("(process {})", std::process::id())), "{said}");
    let (code, said) = fails_to_start("127.0.0.1:0".parse().unwrap(), &admin.to_string()).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&admin.to_string()) && said.contains("in use"), "{said}");
    // The same folder: only one process may use its store.
    let (code, said) = fixture.doorward.told(&["serve", "doorward.yaml"]).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("doorward.redb") && said.contains("in use by another Doorward"), "{said}");
}
