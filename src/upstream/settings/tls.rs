//! TLS towards an upstream.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use url::Host;

use super::{Protocol, Target};
use crate::config::{raw, report::At, resolver::Resolver};

/// What of TLS tells connections apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsIdentity {
    pub(crate) server_name: ServerName<'static>,
    /// SHA-256 of the authorities' file; `None`: the system's.
    authorities: Option<[u8; 32]>,
    /// SHA-256 of our certificate and key.
    client: Option<[u8; 32]>,
}

impl TlsIdentity {
    /// Whether we show a certificate there.
    pub(super) fn has_certificate(&self) -> bool {
        self.client.is_some()
    }
}

/// The TLS client of an upstream. The two configurations differ in ALPN alone and share their session tickets.
pub(in crate::upstream) struct Tls {
    pub(in crate::upstream) server_name: ServerName<'static>,
    /// For requests that may share a connection.
    pub(in crate::upstream) shared: Arc<ClientConfig>,
    /// For connections that must be HTTP/1.1.
    pub(in crate::upstream) http1: Arc<ClientConfig>,
}

/// What TLS towards a server needs, without ALPN.
#[derive(Debug)]
pub(crate) struct TlsClient {
    pub(crate) config: ClientConfig,
    pub(crate) identity: TlsIdentity,
}

impl TlsClient {
    /// `host` is what is connected to.
    pub(crate) fn resolve(raw: &raw::ClientTls, host: &Host<String>, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let server_name = match (&raw.server_name, host) {
            (Some(name), _) | (None, Host::Domain(name)) => ServerName::try_from(name.clone()).ok(),
            (None, Host::Ipv4(address)) => Some(std::net::IpAddr::from(*address).into()),
            (None, Host::Ipv6(address)) => Some(std::net::IpAddr::from(*address).into()),
        };
        if server_name.is_none() {
            resolver
                .report
                .error(&at.key("server_name"), "`server_name` is neither a DNS name nor an IP address")
                .help("write the name that stands in the certificate of the server");
        }

        let authorities = match &raw.ca {
            None => Some(None),
            Some(path) => roots(path, &at.key("ca"), resolver).map(Some),
        };
        let client = match &raw.certificate {
            None => Some(None),
            Some(files) => client_certificate(files, &at.key("certificate"), resolver).map(Some),
        };
        let (server_name, authorities, client) = (server_name?, authorities?, client?);

        let mut problem = |what: &str, error: rustls::Error| {
            resolver.report.error(at, format!("{what}: {error}"));
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| problem("TLS cannot be set up", error))
            .ok()?;
        let (builder, authorities) = match authorities {
            Some((roots, digest)) => (builder.with_root_certificates(roots), Some(digest)),
            None => {
                let builder = builder
                    .with_platform_verifier()
                    .map_err(|error| problem("the system's certificate authorities cannot be used", error))
                    .ok()?;
                (builder, None)
            }
        };
        let (config, client) = match client {
            Some((chain, key, digest)) => {
                let config = builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| problem("the client certificate and its key cannot be used", error))
                    .ok()?;
                (config, Some(digest))
            }
            None => (builder.with_no_client_auth(), None),
        };
        Some(Self { config, identity: TlsIdentity { server_name, authorities, client } })
    }
}

impl Tls {
    pub(super) fn resolve(
        raw: &raw::ClientTls,
        target: &Target,
        protocol: Protocol,
        at: &At,
        resolver: &mut Resolver,
    ) -> Option<(Self, TlsIdentity)> {
        let TlsClient { config, identity } = TlsClient::resolve(raw, &target.host, at, resolver)?;
        let with_alpn = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        let http1 = with_alpn(&[b"http/1.1"]);
        let shared = match protocol {
            Protocol::Negotiated => with_alpn(&[b"h2", b"http/1.1"]),
            Protocol::Http1 => Arc::clone(&http1),
            Protocol::Http2 => with_alpn(&[b"h2"]),
        };
        Some((Self { server_name: identity.server_name.clone(), shared, http1 }, identity))
    }
}

fn roots(path: &std::path::Path, at: &At, resolver: &mut Resolver) -> Option<(RootCertStore, [u8; 32])> {
    let pem = resolver.read(at, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        if let Err(why) = added {
            resolver.report.error(at, format!("{} holds a certificate that cannot be read: {why}", path.display()));
            return None;
        }
    }
    if roots.is_empty() {
        resolver
            .report
            .error(at, format!("{} holds no certificate", path.display()))
            .help("it must hold certificates in PEM form");
        return None;
    }
    Some((roots, digest(&[&pem])))
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, [u8; 32]);

fn client_certificate(files: &raw::CertificateFiles, at: &At, resolver: &mut Resolver) -> Option<ClientCertificate> {
    let chain_pem = resolver.read(&at.key("chain"), &files.chain);
    let key_pem = resolver.read(&at.key("key"), &files.key).map(zeroize::Zeroizing::new);
    let (chain_pem, key_pem) = (chain_pem?, key_pem?);
    let chain = CertificateDer::pem_slice_iter(&chain_pem).collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if chain.is_empty() {
        resolver
            .report
            .error(&at.key("chain"), format!("{} holds no readable certificate chain", files.chain.display()))
            .help("it must hold certificates in PEM form, the leaf first");
    }
    // The cause is left out: it could quote the key.
    let key = PrivateKeyDer::from_pem_slice(&key_pem).ok();
    if key.is_none() {
        resolver
            .report
            .error(&at.key("key"), format!("{} holds no readable private key", files.key.display()))
            .help("it must hold one private key in PEM form");
    }
    let digest = digest(&[&chain_pem, &key_pem]);
    (!chain.is_empty()).then_some((chain, key?, digest))
}

/// SHA-256 over parts, each preceded by its length so that no two lists of parts give the same input.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}
