//! TLS for upstream connections.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use url::Host;

use super::Protocol;
use crate::{
    config::{
        raw,
        report::At,
        resolver::{Resolver, Secret},
    },
    egress,
    sha256::Sha256,
};

/// PEM text and its source.
#[derive(Debug)]
pub(crate) struct Pem {
    at: At,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    /// The text, and how messages call it.
    Text(Secret, String),
}

impl Pem {
    /// PEM text in a file. `at` is where the configuration names it.
    pub(super) fn file(path: PathBuf, at: At) -> Self {
        Self { at, source: Source::File(path) }
    }

    pub(super) fn text(text: Secret, called: String, at: At) -> Self {
        Self { at, source: Source::Text(text, called) }
    }

    /// Whether it is in a separate file.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.source, Source::File(_))
    }

    /// Reads the text. A file that cannot be read is reported.
    pub(crate) fn read(&self, resolver: &mut Resolver) -> Option<Secret> {
        match &self.source {
            Source::File(path) => resolver.read(&self.at, path).map(Secret::new),
            Source::Text(text, _) => Some(text.clone()),
        }
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::File(path) => path.display().fmt(f),
            Source::Text(_, called) => f.write_str(called),
        }
    }
}

/// The TLS settings for a server.
#[derive(Debug)]
pub(crate) struct Material {
    pub(super) at: At,
    /// `None` if the name is not valid, which has been reported.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// `None` for the system's.
    pub(crate) authorities: Option<Pem>,
    /// Doorward's certificate chain and its key.
    pub(crate) certificate: Option<(Pem, Pem)>,
}

impl Material {
    /// From `tls`. `host` is the host that is connected to.
    pub(super) fn written(raw: &raw::ClientTls, host: &Host<String>, at: &At, resolver: &mut Resolver) -> Self {
        let server_name = server_name(raw.server_name.as_deref(), host);
        if server_name.is_none() {
            resolver
                .error(&at.key("server_name"), "`server_name` is neither a DNS name nor an IP address")
                .help("write a name from the server's certificate");
        }
        let certificate = raw.certificate.as_ref().map(|files| {
            let at = at.key("certificate");
            (Pem::file(files.chain.clone(), at.key("chain")), Pem::file(files.key.clone(), at.key("key")))
        });
        let authorities = raw.ca.as_ref().map(|path| Pem::file(path.clone(), at.key("ca")));
        Self { at: at.clone(), server_name, authorities, certificate }
    }
}

/// The name that the server's certificate must have: `given`, or the host by default.
pub(super) fn server_name(given: Option<&str>, host: &Host<String>) -> Option<ServerName<'static>> {
    match (given, host) {
        (Some(name), _) => ServerName::try_from(name.to_owned()).ok(),
        (None, Host::Domain(name)) => ServerName::try_from(name.clone()).ok(),
        (None, Host::Ipv4(address)) => Some(std::net::IpAddr::from(*address).into()),
        (None, Host::Ipv6(address)) => Some(std::net::IpAddr::from(*address).into()),
    }
}

/// The part of the TLS settings by which connections are distinguished.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsIdentity {
    pub(crate) server_name: ServerName<'static>,
    /// SHA-256 of the file of authorities; `None` for the system's.
    authorities: Option<[u8; 32]>,
    /// SHA-256 of Doorward's certificate and key.
    client: Option<[u8; 32]>,
}

impl TlsIdentity {
    /// Whether Doorward presents a certificate there.
    pub(super) fn has_certificate(&self) -> bool {
        self.client.is_some()
    }
}

/// The TLS client of an upstream. The two configurations differ only in ALPN and share their session tickets.
pub(in crate::upstream) struct Tls {
    pub(in crate::upstream) server_name: ServerName<'static>,
    /// For requests that may share a connection.
    pub(in crate::upstream) shared: Arc<ClientConfig>,
    /// For connections that must be HTTP/1.1.
    pub(in crate::upstream) http1: Arc<ClientConfig>,
}

/// The TLS client configuration for a server, without ALPN.
#[derive(Debug)]
pub(crate) struct TlsClient {
    pub(crate) config: ClientConfig,
    pub(crate) identity: TlsIdentity,
}

impl TlsClient {
    /// `host` is the host that is connected to.
    pub(crate) fn resolve(raw: &raw::ClientTls, host: &Host<String>, at: &At, resolver: &mut Resolver) -> Option<Self> {
        Self::new(&Material::written(raw, host, at, resolver), resolver)
    }

    fn new(material: &Material, resolver: &mut Resolver) -> Option<Self> {
        let server_name = material.server_name.clone();
        let authorities = match &material.authorities {
            None => Some(None),
            Some(pem) => roots(pem, resolver).map(Some),
        };
        let client = match &material.certificate {
            None => Some(None),
            Some((chain, key)) => client_certificate(chain, key, resolver).map(Some),
        };
        let (server_name, authorities, client) = (server_name?, authorities?, client?);

        let is_elsewhere = resolver.is_elsewhere();
        let mut problem = |what: &str, error: rustls::Error| {
            let error = match error {
                rustls::Error::InconsistentKeys(_) => "the key does not belong to the certificate".to_owned(),
                other => other.to_string(),
            };
            resolver.error(&material.at, format!("{what}: {error}"));
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| problem("TLS cannot be set up", error))
            .ok()?;
        let (builder, authorities) = match authorities {
            Some((roots, digest)) => (builder.with_root_certificates(roots), Some(digest)),
            // The check is for another machine: this one may have no authorities, and no connection is made.
            None if is_elsewhere => (builder.with_root_certificates(RootCertStore::empty()), None),
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
        material: &Material,
        protocol: Protocol,
        resolver: &mut Resolver,
    ) -> Option<(Self, TlsIdentity)> {
        let TlsClient { config, identity } = TlsClient::new(material, resolver)?;
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

fn roots(pem: &Pem, resolver: &mut Resolver) -> Option<(RootCertStore, [u8; 32])> {
    let text = pem.read(resolver)?;
    match egress::roots(text.expose()) {
        Ok(roots) => Some((roots, digest(&[text.expose()]))),
        Err(why) => {
            resolver.error(&pem.at, format!("{pem}: {why}")).help("it must hold certificates in PEM form");
            None
        }
    }
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, [u8; 32]);

fn client_certificate(chain_pem: &Pem, key_pem: &Pem, resolver: &mut Resolver) -> Option<ClientCertificate> {
    let chain_text = chain_pem.read(resolver);
    let key_text = key_pem.read(resolver);
    let (chain_text, key_text) = (chain_text?, key_text?);
    let chain = CertificateDer::pem_slice_iter(chain_text.expose()).collect::<Result<Vec<_>, _>>().unwrap_or_default();
    if chain.is_empty() {
        resolver
            .error(&chain_pem.at, format!("{chain_pem} holds no readable certificate chain"))
            .help("it must hold certificates in PEM form, the leaf first");
    }
    // The cause is left out: it could quote the key.
    let key = PrivateKeyDer::from_pem_slice(key_text.expose()).ok();
    if key.is_none() {
        resolver
            .error(&key_pem.at, format!("{key_pem} holds no readable private key"))
            .help("it must hold one private key in PEM form");
    }
    let digest = digest(&[chain_text.expose(), key_text.expose()]);
    (!chain.is_empty()).then_some((chain, key?, digest))
}

/// SHA-256 over parts, each preceded by its length so that no two lists of parts give the same input.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finish()
}
