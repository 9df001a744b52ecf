use http::StatusCode;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::sync::{Barrier, Notify};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{error::Rejection, upstream::UpstreamErrorKind};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { issuer: Issuer::new(params, key), pem }
}

impl Authority {
    fn leaf(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate, key)
    }

    fn write_leaf(&self, dir: &Path, name: &str) -> raw::CertificateFiles {
        let (certificate, key) = self.leaf(name);
        let files = raw::CertificateFiles { chain: format!("{name}.crt").into(), key: format!("{name}.key").into() };
        std::fs::write(dir.join(&files.chain), certificate.pem()).unwrap();
        std::fs::write(dir.join(&files.key), key.serialize_pem()).unwrap();
        files
    }
}

/// A TLS server on 127.0.0.1 that asks for client certificates. It answers with a short fingerprint of the one it got,
/// and with the negotiated protocol.
async fn server(authority: &Authority, protocols: &[&str]) -> (SocketAddr, Arc<AtomicUsize>) {
    let acceptor = acceptor(authority, protocols);
    scripted(move |_, stream| answer_who(acceptor.clone(), stream)).await
}

fn acceptor(authority: &Authority, protocols: &[&str]) -> TlsAcceptor {
    let (certificate, key) = authority.leaf("127.0.0.1");
    let mut roots = RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

async fn answer_who(acceptor: TlsAcceptor, stream: TcpStream) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let connection = stream.get_ref().1;
    let who = connection.peer_certificates().map(|chain| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &chain[0]);
        digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    let protocol = connection.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
    let answer = format!("{} {}", who.unwrap_or_default(), protocol.unwrap_or_default());
    let service = hyper::service::service_fn(move |_: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer))) }
    });
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn tls_upstream(address: SocketAddr, dir: &Path, certificate: Option<raw::CertificateFiles>) -> Arc<Upstream> {
    let mut entry = raw_upstream(format!("https://{address}"));
    entry.tls = Some(raw::ClientTls { ca: Some("ca.crt".into()), server_name: None, certificate });
    resolve(&entry, &raw::Limits::default(), dir)
}

#[tokio::test]
async fn two_client_certificates_never_share_a_connection() {
    for protocols in [&["http/1.1"][..], &["h2", "http/1.1"]] {
        let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
        std::fs::write(dir.path().join("ca.crt"), &authority.pem).unwrap();
        let (address, accepted) = server(&authority, protocols).await;
        let alice = tls_upstream(address, dir.path(), Some(authority.write_leaf(dir.path(), "alice")));
        let bob = tls_upstream(address, dir.path(), Some(authority.write_leaf(dir.path(), "bob")));
        let nobody = tls_upstream(address, dir.path(), None);
        let pools = pools();
        let mut answers = Vec::new();
        for _ in 0..4 {
            for upstream in [&alice, &bob, &nobody] {
                answers.push(fetch(&pools, upstream, get()).await.unwrap());
            }
        }
        for (number, answer) in answers.iter().enumerate() {
            assert_eq!(*answer, answers[number % 3]);
        }
        assert_ne!(answers[0], answers[1]);
        assert_eq!(answers[2], format!(" {}", protocols[0]));
        assert_eq!(accepted.load(Ordering::SeqCst), 3, "each has one connection, and uses it again");
    }
}

#[tokio::test]
async fn long_requests_use_http1_although_others_negotiate_http2() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    std::fs::write(dir.path().join("ca.crt"), &authority.pem).unwrap();
    let (address, _) = server(&authority, &["h2", "http/1.1"]).await;
    let (pools, upstream) = (pools(), tls_upstream(address, dir.path(), None));
    assert_eq!(fetch(&pools, &upstream, get()).await.unwrap(), " h2");
    assert_eq!(text(pools.send(&upstream, &mut get(), Lane::Long).await.unwrap()).await, " http/1.1");
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_name_is_refused() {
    let (dir, ours, theirs) = (tempfile::tempdir().unwrap(), authority(), authority());
    std::fs::write(dir.path().join("ca.crt"), &ours.pem).unwrap();
    let (good, _) = server(&ours, &["http/1.1"]).await;
    let (bad, _) = server(&theirs, &["http/1.1"]).await;
    assert!(fetch(&pools(), &tls_upstream(good, dir.path(), None), get()).await.is_ok());
    let other_name = {
        let mut entry = raw_upstream(format!("https://{good}"));
        let server_name = Some("other.example".to_owned());
        entry.tls = Some(raw::ClientTls { ca: Some("ca.crt".into()), server_name, certificate: None });
        resolve(&entry, &raw::Limits::default(), dir.path())
    };
    for upstream in [tls_upstream(bad, dir.path(), None), other_name] {
        let error = fetch(&pools(), &upstream, get()).await.unwrap_err();
        assert_eq!(error.kind(), UpstreamErrorKind::Tls);
        assert_eq!(Rejection::from(error).status(), StatusCode::BAD_GATEWAY);
    }
}

/// Requests that waited to share a connection waited for one another even after none could be shared.
#[tokio::test]
async fn a_burst_to_an_upstream_that_speaks_http1_over_tls_is_connected_side_by_side() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    std::fs::write(dir.path().join("ca.crt"), &authority.pem).unwrap();
    let acceptor = acceptor(&authority, &["http/1.1"]);
    let (first, others) = (Arc::new(Notify::new()), Arc::new(Barrier::new(3)));
    let begin = Arc::clone(&first);
    let (address, accepted) = scripted(move |number, stream| {
        let (acceptor, first, others) = (acceptor.clone(), Arc::clone(&begin), Arc::clone(&others));
        async move {
            if number == 0 {
                first.notified().await;
            } else {
                // None of these handshakes ends before all have begun.
                others.wait().await;
            }
            answer_who(acceptor, stream).await;
        }
    })
    .await;
    let (pools, upstream) = (pools(), tls_upstream(address, dir.path(), None));
    let ask = |_| {
        let (pools, upstream) = (pools.clone(), Arc::clone(&upstream));
        // Not read, so that its connection does not become free.
        tokio::spawn(async move { pools.send(&upstream, &mut get(), Lane::Short).await })
    };
    let asking: Vec<_> = (0..4).map(ask).collect();
    until(|| accepted.load(Ordering::SeqCst) == 1).await;
    first.notify_one();
    let mut answers = Vec::new();
    for task in asking {
        answers.push(task.await.unwrap().unwrap());
    }
    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(accepted.load(Ordering::SeqCst), 4);
}

/// The error was reported as a certificate that could not be verified, and was not retried.
#[tokio::test]
async fn a_handshake_that_breaks_off_is_tried_again() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), authority());
    std::fs::write(dir.path().join("ca.crt"), &authority.pem).unwrap();
    let acceptor = acceptor(&authority, &["http/1.1"]);
    // How many of the first connections are aborted, whether by a reset, and whether the request succeeds.
    for (broken, resets, answered) in [(1, true, true), (1, false, true), (2, true, false)] {
        let acceptor = acceptor.clone();
        let (address, accepted) = scripted(move |number, mut stream| {
            let acceptor = acceptor.clone();
            async move {
                if number >= broken {
                    return answer_who(acceptor, stream).await;
                }
                // The ClientHello has arrived; closing now breaks the handshake.
                assert_ne!(stream.read(&mut [0; 16 << 10]).await.unwrap(), 0);
                if resets {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
            }
        })
        .await;
        let result =
            fetch(&pools(), &tls_upstream(address, dir.path(), None), request("POST", RequestBody::Empty)).await;
        assert_eq!(accepted.load(Ordering::SeqCst), 2);
        match result {
            Ok(text) => assert!(answered && text == " http/1.1", "{text}"),
            Err(error) => assert_eq!((answered, error.kind()), (false, UpstreamErrorKind::Unreachable), "{error:?}"),
        }
    }
}
