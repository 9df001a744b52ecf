use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tempfile::TempDir;

use super::*;
use crate::{
    config::{
        raw::{CertificateFiles, ServerTls},
        values::Span,
    },
    downstream::{ClientCertificate, TlsInfo, TlsVersion, tls},
};

/// An authority, and the files of what it issued.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// Issues a certificate for a host, into the files of that name.
    fn issue(&self, host: &str) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let files =
            CertificateFiles { chain: self.path(&format!("{host}.pem")), key: self.path(&format!("{host}.key")) };
        std::fs::write(&files.chain, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn listener(&self, certificates: Vec<CertificateFiles>, client_ca: bool) -> Listener {
        let client_ca = client_ca.then(|| self.path("ca.pem"));
        Listener { tls: Some(ServerTls { certificates, client_ca }), ..listener("main") }
    }

    fn client(&self, alpn: &[&str], certificate: Option<&CertificateFiles>) -> Arc<ClientConfig> {
        self.client_of(rustls::ALL_VERSIONS, alpn, certificate)
    }

    fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
        certificate: Option<&CertificateFiles>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(files) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_file(&files.chain).unwrap()],
                    PrivateKeyDer::from_pem_file(&files.key).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

type TlsClient = Client<StreamOwned<ClientConnection, TcpStream>>;

impl Server {
    fn connect_tls(&self, config: &Arc<ClientConfig>, name: &str) -> TlsClient {
        self.connect().tls(config, name)
    }
}

impl Client<TcpStream> {
    fn tls(self, config: &Arc<ClientConfig>, name: &str) -> TlsClient {
        let connection =
            ClientConnection::new(Arc::clone(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        Client(StreamOwned::new(connection, self.0))
    }
}

/// The certificate that the server showed.
fn leaf(client: &TlsClient) -> Vec<u8> {
    client.0.conn.peer_certificates().unwrap()[0].to_vec()
}

fn der(files: &CertificateFiles) -> Vec<u8> {
    CertificateDer::from_pem_file(&files.chain).unwrap().to_vec()
}

#[test]
fn certificates_are_chosen_by_name_and_read_again() {
    let authority = Authority::new();
    let certificates = vec![authority.issue("a.test"), authority.issue("b.test")];
    let server = Server::with(authority.listener(certificates.clone(), false), &Limits::default());
    let config = authority.client(&[], None);
    let mut kept = server.connect_tls(&config, "b.test");
    assert!(kept.get("/").contains("protocol=http/1.1 name=b.test certificate=false"));
    assert_eq!(leaf(&kept), der(&certificates[1]));
    let mut first = server.connect_tls(&config, "a.test");
    first.get("/");
    assert_eq!(leaf(&first), der(&certificates[0]));

    let old = der(&certificates[1]);
    authority.issue("b.test");
    let settings = resolve(&[authority.listener(certificates.clone(), false)], &Limits::default());
    assert_eq!(server.downstream().reload(&settings), []);
    let mut fresh = server.connect_tls(&authority.client(&[], None), "b.test");
    fresh.get("/");
    assert_eq!(leaf(&fresh), der(&certificates[1]));
    assert_ne!(leaf(&fresh), old);
    assert_eq!(status(&kept.get("/")), "200", "an open connection stays");

    let clear = server.downstream().reload(&resolve(&[listener("main")], &Limits::default()));
    assert_eq!(clear.len(), 1, "TLS cannot be switched off: {clear:?}");
    server.connect_tls(&config, "a.test").get("/");
}

#[test]
fn the_first_expiry_of_a_listeners_certificates_is_measured_and_follows_a_reload() {
    let authority = Authority::new();
    let files = ["a.test", "b.test"].map(|host| authority.issue(host));
    let ends = |host: &str, year: i32| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        let end = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = end;
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        std::fs::write(authority.path(&format!("{host}.pem")), certificate.pem()).unwrap();
        std::fs::write(authority.path(&format!("{host}.key")), key.serialize_pem()).unwrap();
        format!("certificate_not_after_timestamp_seconds{{listener=\"main\"}} {}", end.unix_timestamp())
    };
    let (_, first) = (ends("a.test", 2040), ends("b.test", 2035));
    let server = Server::with(authority.listener(files.to_vec(), false), &Limits::default());
    server.await_line(&first);
    let second = (ends("b.test", 2050), ends("a.test", 2041)).1;
    let settings = resolve(&[authority.listener(files.to_vec(), false)], &Limits::default());
    assert_eq!(server.downstream().reload(&settings), []);
    server.await_line(&second);
}

#[test]
fn the_protocol_is_negotiated() {
    let authority = Authority::new();
    let server = Server::with(authority.listener(vec![authority.issue("a.test")], false), &Limits::default());
    for (offer, agreed) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1")] {
        let mut client = server.connect_tls(&authority.client(offer, None), "a.test");
        client.0.conn.complete_io(&mut client.0.sock).unwrap();
        assert_eq!(client.0.conn.alpn_protocol(), Some(agreed.as_bytes()));
    }
    let mut other = server.connect_tls(&authority.client(&["spdy/3"], None), "a.test");
    assert!(other.0.conn.complete_io(&mut other.0.sock).is_err());
    server.await_metric("tls_handshake_failures_total{reason=\"protocol\"} 1");
    server.await_metric("connections_served_total{protocol=\"h2\"} 1");
}

#[test]
fn a_client_certificate_is_verified_if_there_is_one() {
    let (ours, foreign) = (Authority::new(), Authority::new());
    let server = Server::with(ours.listener(vec![ours.issue("a.test")], true), &Limits::default());
    let known = ours.issue("alice");
    assert!(server.connect_tls(&ours.client(&[], Some(&known)), "a.test").get("/").contains("certificate=true"));
    assert!(server.connect_tls(&ours.client(&[], None), "a.test").get("/").contains("certificate=false"));
    let mut refused = server.connect_tls(&ours.client(&[], Some(&foreign.issue("mallory"))), "a.test");
    let _ = refused.0.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(refused.0.read(&mut [0; 1]).is_err());
    server.await_metric("tls_handshake_failures_total{reason=\"certificate\"} 1");
    assert_eq!(server.hits(), 2);
}

/// What it had opened stayed open to its certificates for as long as their holders liked.
#[test]
fn an_authority_that_was_replaced_opens_nothing_on_connections_that_are_open() {
    let (ours, next) = (Authority::new(), Authority::new());
    let server = Server::with(ours.listener(vec![ours.issue("a.test")], true), &Limits::default());
    let (alice, config) = (ours.issue("alice"), ours.client(&[], None));
    let mut held = server.connect_tls(&ours.client(&[], Some(&alice)), "a.test");
    let mut without = server.connect_tls(&config, "a.test");
    let reload = |pem: &str| {
        std::fs::write(ours.path("ca.pem"), pem).unwrap();
        let settings = resolve(&[ours.listener(vec![ours.issue("a.test")], true)], &Limits::default());
        assert_eq!(server.downstream().reload(&settings), []);
    };
    assert!(held.get("/").contains("certificate=true"));
    // While both are trusted, everybody has time to get another certificate.
    reload(&format!("{}{}", ours.issuer.pem(), next.issuer.pem()));
    assert!(held.get("/").contains("certificate=true"));
    reload(&next.issuer.pem());
    assert!(without.get("/").contains("certificate=false"));
    let refused = held.get("/");
    assert!(refused.contains("certificate=false"), "{refused}");
    assert!(refused.to_ascii_lowercase().contains("connection: close"), "another may show another: {refused}");
    assert!(!without.get("/").to_ascii_lowercase().contains("connection: close"));
}

#[test]
fn a_client_certificate_that_ends_opens_nothing_on_its_connection() {
    let authority = Authority::new();
    let (key, day) = (KeyPair::generate().unwrap(), Duration::from_secs(86_400));
    let mut params = CertificateParams::new(["alice".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    let end = Timestamp::from_secs(params.not_after.unix_timestamp());
    let shown = [params.signed_by(&key, &authority.issuer).unwrap().der().clone()];
    let mut resolver = Resolver::new(Path::new("/"));
    let raw = authority.listener(vec![authority.issue("a.test")], true).tls.unwrap();
    let tls = tls::resolve(&raw, end, &mut resolver, &At::root()).unwrap();
    let current = Arc::new(tls::CurrentCa::new(tls.client_ca.clone()));
    let chain = tls::ClientChain::of(&shown, tls.client_ca.as_deref().unwrap(), &current);
    for (now, is_valid) in [(end - day, true), (end, true), (end + day, false)] {
        assert_eq!(chain.is_valid(now), is_valid, "{now}");
    }
}

#[test]
fn attacks_z9_sessions_are_resumed_only_if_no_client_certificate_is_requested() {
    let authority = Authority::new();
    let files = vec![authority.issue("a.test")];
    let alice = authority.issue("alice");
    let kinds = |server: &Server, config: &Arc<ClientConfig>| {
        [(); 2].map(|()| {
            let mut client = server.connect_tls(config, "a.test");
            client.get("/");
            client.0.conn.handshake_kind().unwrap()
        })
    };
    for version in [&TLS12, &TLS13] {
        let open = Server::with(authority.listener(files.clone(), false), &Limits::default());
        let asking = Server::with(authority.listener(files.clone(), true), &Limits::default());
        let config = authority.client_of(&[version], &[], Some(&alice));
        assert_eq!(kinds(&open, &config), [HandshakeKind::Full, HandshakeKind::Resumed], "{version:?}");
        // The same client, which holds tickets of the other listener.
        assert_eq!(kinds(&asking, &config), [HandshakeKind::Full, HandshakeKind::Full], "{version:?}");
        // Tickets of the same listener, from before it asked for certificates.
        assert_eq!(kinds(&open, &config)[1], HandshakeKind::Resumed, "{version:?}");
        let settings = resolve(&[authority.listener(files.clone(), true)], &Limits::default());
        assert_eq!(open.downstream().reload(&settings), []);
        assert_eq!(kinds(&open, &config), [HandshakeKind::Full, HandshakeKind::Full], "{version:?}");
    }
}

#[test]
fn a_handshake_that_does_not_end_has_a_deadline() {
    let authority = Authority::new();
    let limits = Limits { handshake_timeout: Span::from_millis(100), ..Limits::default() };
    let server = Server::with(authority.listener(vec![authority.issue("a.test")], false), &limits);
    assert_eq!(server.exchange(b"\x16\x03\x01"), "");
    server.await_metric("tls_handshake_failures_total{reason=\"timeout\"} 1");
}

/// Thousands of connections that stopped within their first message had the process killed.
#[test]
fn a_large_handshake_that_stops_closes_its_connection_when_memory_is_short() {
    let authority = Authority::new();
    let server = Server::with(authority.listener(vec![authority.issue("a.test")], false), &Limits::default());
    server.fixture.memory.set_limit(32 << 10);
    // A ClientHello of 65,520 bytes, in records of 16,000.
    let hello = [&[1_u8, 0, 0xff, 0xf0, 3, 3][..], &[b'x'; 31_994][..]].concat();
    let records: Vec<u8> =
        hello.chunks(16_000).flat_map(|part| [&[22_u8, 3, 1, 0x3e, 0x80][..], part].concat()).collect();
    let mut client = server.connect();
    // The connection may be closed before all of it is sent.
    let _ = client.0.write_all(&records);
    client.rest();
    server.await_metric("connections_refused_total{reason=\"memory\"} 1");
    eventually("all is given back", || server.fixture.memory.taken() == 0);
}

#[test]
fn attacks_z36_a_proxy_header_before_tls_closes_the_connection() {
    let authority = Authority::new();
    let server = Server::with(authority.listener(vec![authority.issue("a.test")], false), &Limits::default());
    let answer = server.exchange(b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n");
    assert!(!answer.contains("HTTP"), "{answer}");
    server.await_metric("tls_handshake_failures_total{reason=\"protocol\"} 1");
}

/// As NLB and HAProxy do.
#[test]
fn a_load_balancer_names_the_client_before_the_handshake() {
    let authority = Authority::new();
    let listener = Listener {
        proxy_protocol_from: vec!["127.0.0.0/8".parse().unwrap()],
        ..authority.listener(vec![authority.issue("a.test")], false)
    };
    let server = Server::with(listener, &Limits { connections_per_address: 1, ..Limits::default() });
    let config = authority.client(&[], None);
    let connect = |host: u8| {
        let mut client = server.connect();
        client.send(proxy_protocol::v2(0x21, &[192, 0, 2, host, 10, 0, 0, 1, 0x30, 0x39, 0x01, 0xbb]));
        client.tls(&config, "a.test")
    };
    let mut clients = [7, 8].map(connect);
    for (client, peer) in clients.iter_mut().zip(["peer=192.0.2.7:12345", "peer=192.0.2.8:12345"]) {
        let answer = client.get("/");
        assert!(answer.contains(peer) && answer.contains("name=a.test"), "{answer}");
    }
    let mut another = connect(7);
    assert!(another.0.conn.complete_io(&mut another.0.sock).is_err());
    server.await_metric("connections_refused_total{reason=\"address\"} 1");
}

#[test]
fn files_that_cannot_be_used_are_explained() {
    let authority = Authority::new();
    let (a, b) = (authority.issue("a.test"), authority.issue("b.test"));
    let write = |name: &str, text: &str| {
        std::fs::write(authority.path(name), text).unwrap();
        authority.path(name)
    };
    let (empty, junk) =
        (write("empty", " "), write("junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    let cases = [
        (CertificateFiles { key: b.key, ..a.clone() }, "/listeners/0/tls/certificates/0", "does not belong"),
        (
            CertificateFiles { chain: empty.clone(), ..a.clone() },
            "/listeners/0/tls/certificates/0/chain",
            "no certificate",
        ),
        (CertificateFiles { chain: junk, ..a.clone() }, "/listeners/0/tls/certificates/0/chain", "cannot be read"),
        (CertificateFiles { key: empty, ..a.clone() }, "/listeners/0/tls/certificates/0/key", "no private key"),
        (
            CertificateFiles { key: authority.path("gone"), ..a },
            "/listeners/0/tls/certificates/0/key",
            "cannot be read",
        ),
    ];
    for (files, place, message) in cases {
        let mut resolver = Resolver::new(Path::new("/"));
        let listeners = [authority.listener(vec![files], false)];
        let now = Clock::default().now();
        assert!(Settings::resolve(&listeners, &Limits::default(), now, &mut resolver, &At::root()).is_none());
        let problem = &resolver.report.problems()[0];
        assert!(problem.at.as_str() == place && problem.message.contains(message), "{problem:?}");
    }
}

/// It was loaded without a word, and every browser refused it from then on.
#[test]
fn a_certificate_that_clients_refuse_by_its_times_is_loaded_with_a_warning() {
    let authority = Authority::new();
    let (key, day) = (KeyPair::generate().unwrap(), Duration::from_secs(86_400));
    let mut params = CertificateParams::new(["a.test".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 4, 1);
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let files = CertificateFiles { chain: authority.path("a.pem"), key: authority.path("a.key") };
    std::fs::write(&files.chain, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let listeners = [authority.listener(vec![files], false)];
    let [from, until] = [params.not_before, params.not_after].map(|time| Timestamp::from_secs(time.unix_timestamp()));
    for (now, said) in [
        (from - day, Some("a.pem is not valid before 2026-01-01")),
        (from, None),
        (until, None),
        (until + day, Some("a.pem ended on 2026-04-01")),
    ] {
        let mut resolver = Resolver::new(Path::new("/"));
        let settings = Settings::resolve(&listeners, &Limits::default(), now, &mut resolver, &At::root());
        assert!(settings.is_some() && !resolver.report.has_errors(), "{now}");
        let warned: Vec<&str> = resolver.report.problems().iter().map(|problem| problem.message.as_str()).collect();
        assert!(warned.len() == usize::from(said.is_some()), "{now}: {warned:?}");
        assert!(said.is_none_or(|said| warned[0].contains(said)), "{now}: {warned:?}");
    }
}

#[test]
fn a_client_certificate_counts_for_the_host_that_it_was_shown_for() {
    for (name, proxy, counts) in [
        (Some("a.test"), false, true),
        (Some("a.test"), true, true),
        (Some("b.test"), true, false),
        // A client that connects directly, by an IP address, requests no name.
        (None, false, true),
        (None, true, false),
    ] {
        let tls = TlsInfo {
            server_name: name.map(Into::into),
            version: TlsVersion::Tls13,
            client_certificate: Some(ClientCertificate::of(&[0; 4])),
            chain: None,
        };
        assert_eq!(tls.certificate_for("A.test", proxy).is_some(), counts, "{name:?}, a proxy: {proxy}");
    }
}

#[test]
fn the_subject_of_a_client_certificate_is_kept_to_a_bound() {
    let subject = |common_name: Option<&str>| {
        let mut params = CertificateParams::new(["alice.test".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::OrganizationName, "Ops");
            params.distinguished_name.push(DnType::CommonName, name);
        }
        ClientCertificate::of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).subject
    };
    assert_eq!(subject(Some("alice")).as_deref(), Some("O=Ops, CN=alice"));
    assert_eq!(subject(Some(&"é".repeat(300))).unwrap().chars().count(), 256);
    assert_eq!(subject(None), None);
    assert_eq!(ClientCertificate::of(b"none").subject, None);
}
