//! TLS of a listener: certificates by name, client certificates, session tickets.
//!
//! A whole `ServerConfig` is built for each generation of the configuration and swapped in; open connections keep the
//! one that they began with. A client's certificate is verified again if the authorities have changed since, or when it
//! ends: a connection may stay open for as long as its client likes.
//!
//! If client certificates are requested there are no session tickets at all: a resumed session carries the client's
//! certificate from the original handshake, so a ticket would outlive the removal of an authority, and a ticket of one
//! listener could be accepted by another (CVE-2025-23419). Otherwise tickets are sealed with a key of the listener.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use data_encoding::HEXLOWER;
use rustls::{
    ProtocolVersion, ServerConfig,
    client::verify_server_name,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ProducesTickets, ResolvesServerCert,
        WebPkiClientVerifier, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    clock::Timestamp,
    config::{
        raw::{CertificateFiles, ServerTls},
        report::At,
        resolver::Resolver,
        values::SecretSource,
    },
    egress,
    sha256::sha256,
};

/// How much is kept of the subject of a client's certificate, which may be as long as its authority likes.
const SUBJECT_CHARS: usize = 256;

/// What TLS says about a connection.
#[derive(Clone, Debug)]
pub struct TlsInfo {
    /// The name that the client requested (SNI, RFC 6066 section 3), lower case.
    pub server_name: Option<Arc<str>>,
    pub version: TlsVersion,
    /// The client's certificate, verified against `client_ca` when the connection began. A client need not have one.
    pub client_certificate: Option<ClientCertificate>,
    /// Set with it.
    pub(super) chain: Option<Arc<ClientChain>>,
}

/// The authorities of a listener, by which client certificates are verified.
#[derive(Debug)]
pub(super) struct ClientCa {
    /// SHA-256 of their file.
    sha256: [u8; 32],
    verifier: Arc<dyn ClientCertVerifier>,
}

/// The authorities of a listener in force; none if it requests no client certificates.
pub(super) type CurrentCa = ArcSwapOption<ClientCa>;

/// The certificates that a client showed when its connection began.
#[derive(Debug)]
pub(super) struct ClientChain {
    certificates: Vec<CertificateDer<'static>>,
    /// When the first of them ends, in seconds since 1970.
    ends: Option<i64>,
    /// SHA-256 of the file of the authorities that verified them.
    verified_by: [u8; 32],
    current: Arc<CurrentCa>,
}

impl ClientChain {
    pub(super) fn of(
        certificates: &[CertificateDer<'static>],
        verified_by: &ClientCa,
        current: &Arc<CurrentCa>,
    ) -> Self {
        Self {
            certificates: certificates.to_vec(),
            ends: certificates.iter().filter_map(end_of).min(),
            verified_by: verified_by.sha256,
            current: Arc::clone(current),
        }
    }

    /// Whether the authorities in force verify it now.
    pub(super) fn is_valid(&self, now: Timestamp) -> bool {
        let current = self.current.load();
        let Some(ca) = &*current else { return false };
        if ca.sha256 == self.verified_by && self.ends.is_some_and(|ends| now.as_secs() <= ends) {
            return true;
        }
        let Some((leaf, others)) = self.certificates.split_first() else { return false };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().try_into().unwrap_or_default()));
        ca.verifier.verify_client_cert(leaf, others, now).is_ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

/// A verified client certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The leaf, DER.
    pub der: Arc<[u8]>,
    /// SHA-256 of `der`.
    pub sha256: [u8; 32],
    /// The subject that it names, for the record only.
    pub subject: Option<Arc<str>>,
}

impl ClientCertificate {
    pub fn of(der: &[u8]) -> Self {
        Self { sha256: sha256(&[der]), subject: subject_of(der), der: der.into() }
    }
}

/// The subject as `openssl x509 -noout -subject` prints it; `None` if a certificate has other names only.
fn subject_of(der: &[u8]) -> Option<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject: String = certificate.subject().to_string().chars().take(SUBJECT_CHARS).collect();
    (!subject.is_empty()).then(|| subject.into())
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientCertificate({})", HEXLOWER.encode(&self.sha256))
    }
}

impl TlsInfo {
    /// The client's certificate, if it was presented for this host: the certificate of a proxy that sends requests for
    /// many hosts over one connection opens none of the others. A client that requests no name, for example because it
    /// connects to an IP address, still means one host; for a `proxy` it is unknown which.
    pub fn certificate_for(&self, host: &str, proxy: bool) -> Option<&ClientCertificate> {
        let is_named = self.server_name.as_deref().map_or(!proxy, |name| name.eq_ignore_ascii_case(host));
        self.client_certificate.as_ref().filter(|_| is_named)
    }

    /// Whether the client's certificate is still valid, and verified by the authorities in force.
    pub(super) fn is_certificate_valid(&self, now: Timestamp) -> bool {
        self.chain.as_ref().is_some_and(|chain| chain.is_valid(now))
    }

    /// `verified_by` is what the handshake verified a certificate with.
    pub(super) fn of(
        connection: &rustls::ServerConnection,
        verified_by: Option<&ClientCa>,
        current: &Arc<CurrentCa>,
    ) -> Self {
        let certificates = connection.peer_certificates().unwrap_or_default();
        let client_certificate = certificates.first();
        let chain = client_certificate.and(verified_by).map(|ca| Arc::new(ClientChain::of(certificates, ca, current)));
        Self {
            chain,
            server_name: connection.server_name().map(|name| Arc::from(name.to_ascii_lowercase())),
            version: match connection.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
                _ => TlsVersion::Tls12,
            },
            client_certificate: client_certificate.map(|certificate| ClientCertificate::of(certificate)),
        }
    }
}

/// The TLS section of a listener, resolved.
pub(super) struct Tls {
    pub(super) config: ServerConfig,
    /// When the first of its certificates expires, in seconds since 1970.
    pub(super) ends: Option<i64>,
    pub(super) client_ca: Option<Arc<ClientCa>>,
}

/// Resolves the TLS section of a listener. Problems are reported at `at`.
pub(super) fn resolve(raw: &ServerTls, now: Timestamp, resolver: &mut Resolver, at: &At) -> Option<Tls> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificates_at = at.key("certificates");
    let mut keys = Vec::new();
    // The check of the whole configuration ensures that there is one.
    let mut complete = !raw.certificates.is_empty();
    for (index, files) in raw.certificates.iter().enumerate() {
        match certified_key(files, &provider, now, resolver, &certificates_at.index(index)) {
            Some(key) => keys.push(Arc::new(key)),
            None => complete = false,
        }
    }
    let client_ca = match &raw.client_ca {
        None => None,
        Some(path) => {
            let at = at.key("client_ca");
            let pem = resolver.read(&at, path)?;
            let built = egress::roots(&pem).and_then(|roots| {
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| error.to_string())
            });
            match built {
                Ok(verifier) => Some(Arc::new(ClientCa { sha256: sha256(&[pem.as_slice()]), verifier })),
                Err(why) => {
                    resolver.error(&at, format!("{} cannot be used: {why}", path.display()));
                    return None;
                }
            }
        }
    };
    if !complete {
        return None;
    }
    let builder = match ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions() {
        Ok(builder) => builder,
        Err(error) => {
            resolver.error(at, format!("TLS cannot be set up: {error}"));
            return None;
        }
    };
    let verifier = client_ca.as_ref().map(|ca| Arc::clone(&ca.verifier));
    let verifier = verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth);
    let ends = keys.iter().filter_map(|key| end_of(key.cert.first()?)).min();
    let mut config =
        builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::new(Certificates(keys.into_boxed_slice())));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if raw.client_ca.is_some() {
        config.send_tls13_tickets = 0;
    }
    Some(Tls { config, ends, client_ca })
}

/// When a certificate expires, in seconds since 1970.
fn end_of(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Why a certificate is not valid at this time, as clients judge it.
fn outside_validity(certificate: &CertificateDer<'_>, now: Timestamp) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    let from = Timestamp::from_secs(validity.not_before.timestamp());
    let until = Timestamp::from_secs(validity.not_after.timestamp());
    if now < from {
        return Some(format!("is not valid before {from}"));
    }
    (until < now).then(|| format!("ended on {until}"))
}

/// Gives a listener's configuration the tickets of that listener, unless it requests client certificates.
pub(super) fn with_tickets(mut config: ServerConfig, tickets: Option<&Arc<dyn ProducesTickets>>) -> Arc<ServerConfig> {
    match tickets {
        Some(tickets) if config.send_tls13_tickets > 0 => config.ticketer = Arc::clone(tickets),
        _ => config.send_tls13_tickets = 0,
    }
    Arc::new(config)
}

/// The tickets of one listener: sealed with a key that is made here, never leaves the process and is replaced by
/// rustls.
pub(super) fn tickets() -> Option<Arc<dyn ProducesTickets>> {
    aws_lc_rs::Ticketer::new().inspect_err(|error| tracing::warn!(%error, "TLS sessions are not resumed")).ok()
}

fn certified_key(
    files: &CertificateFiles,
    provider: &CryptoProvider,
    now: Timestamp,
    resolver: &mut Resolver,
    at: &At,
) -> Option<CertifiedKey> {
    let (chain_at, key_at) = (at.key("chain"), at.key("key"));
    let chain = resolver.read(&chain_at, &files.chain);
    let key = resolver.secret(&key_at, &SecretSource::File(files.key.clone()));
    let (chain, key) = (chain?, key?);
    let chain = match certificates(&chain) {
        Ok(chain) => chain,
        Err(why) => {
            resolver.error(&chain_at, format!("{} {why}", files.chain.display()));
            return None;
        }
    };
    if let Some(why) = chain.first().and_then(|leaf| outside_validity(leaf, now)) {
        // Not an error: a start or a reload that it prevented would help nobody.
        resolver
            .warning(&chain_at, format!("{} {why}, so browsers and other clients refuse it", files.chain.display()))
            .help("replace it in its file, which is reloaded by itself; if its times are right, set the clock");
    }
    let Ok(key) = PrivateKeyDer::from_pem_slice(key.expose()) else {
        resolver
            .error(&key_at, format!("{} holds no private key", files.key.display()))
            .help("write it as PEM, unencrypted");
        return None;
    };
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(key) => Some(key),
        Err(rustls::Error::InconsistentKeys(_)) => {
            resolver.error(
                at,
                format!("the key {} does not belong to the certificate {}", files.key.display(), files.chain.display()),
            );
            None
        }
        Err(error) => {
            resolver.error(at, format!("the certificate and its key cannot be used: {error}"));
            None
        }
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is not PEM: {}", egress::pem_problem(&error)))?;
    match chain.first() {
        None => Err("holds no certificate".to_owned()),
        Some(leaf) => match ParsedCertificate::try_from(leaf) {
            Ok(_) => Ok(chain),
            Err(error) => Err(format!("holds a certificate that cannot be read: {error}")),
        },
    }
}

/// Chooses the certificate: the first that is valid for the name that the client requests, else the first.
#[derive(Debug)]
struct Certificates(Box<[Arc<CertifiedKey>]>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits = |key: &&Arc<CertifiedKey>| {
            let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok())?;
            let leaf = ParsedCertificate::try_from(key.end_entity_cert().ok()?).ok()?;
            verify_server_name(&leaf, &name).ok()
        };
        let found = if self.0.len() > 1 { self.0.iter().find(|key| fits(key).is_some()) } else { None };
        found.or_else(|| self.0.first()).cloned()
    }
}
