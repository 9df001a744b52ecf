//! Doorward's own calls to other services: providers, key sets, introspection, token reviews. One client that follows
//! no redirects, enforces bounds on time and size, and uses the proxy that the environment names. Requests to upstreams
//! do not go through it.

mod proxy;

use std::{error::Error, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier,
    pki_types::{
        CertificateDer, ServerName,
        pem::{self, PemObject},
    },
};
use rustls_platform_verifier::BuilderVerifierExt;
use zeroize::Zeroizing;

use crate::config::{report::At, resolver::Resolver};

use self::proxy::Connector;
pub use self::proxy::Proxy;

/// How many idle HTTP/1.1 connections to one host are kept for a while. Each carries one call at a time, so if more
/// calls are made at once, the rest open a new connection each time. One HTTP/2 connection carries all of them.
pub const KEPT: usize = 64;

/// The bounds of one call.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the start to the last byte of the answer.
    pub timeout: Duration,
    /// Bytes of the answer's body.
    pub max_body: usize,
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No connection: name, address, port or TLS. Nothing was sent.
    #[error("the connection failed: {}", causes(&**.0))]
    Connect(#[source] Box<dyn Error + Send + Sync>),
    /// The connection broke, or what came is not HTTP.
    #[error("the call failed: {}", causes(&**.0))]
    Exchange(#[source] Box<dyn Error + Send + Sync>),
    #[error("the answer cannot be read: {0}")]
    Body(#[source] Box<dyn Error + Send + Sync>),
}

impl EgressError {
    /// The TLS error, if that is why there is no connection.
    pub fn of_tls(&self) -> Option<&rustls::Error> {
        let mut cause: Option<&(dyn Error + 'static)> = self.source();
        while let Some(current) = cause {
            if let Some(error) = current.downcast_ref() {
                return Some(error);
            }
            // The source of an `io::Error` is that of the error inside it, which would be skipped.
            cause = match current.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(held) => Some(held),
                None => current.source(),
            };
        }
        None
    }
}

/// The advice for a certificate [of an authority](is_of_authority).
pub const NO_SERVERS: &str = "its certificate is marked as an authority's (`CA:TRUE`, the default of `openssl req -x509`), which \
                              Doorward accepts from no server: make it with `-addext basicConstraints=critical,CA:FALSE`";

/// Whether a server's certificate is refused because it is an authority's. rustls has no variant for this, and its text
/// is only the name.
pub fn is_of_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(CertificateError::Other(why)) = error else { return false };
    why.0.to_string() == "CaUsedAsEndEntity"
}

/// The client. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Egress {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
    proxy: Proxy,
}

impl Egress {
    /// Trusts the authorities of the system.
    pub fn new(proxy: Proxy) -> Result<Self, String> {
        Self::build(trust(None)?, None, proxy)
    }

    /// A client that trusts nobody, for commands that only check a configuration: they may run where there is no
    /// authority and no proxy.
    pub fn without_authorities() -> Result<Self, String> {
        Self::build(tls()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth(), None, Proxy::default())
    }

    /// A client with the same proxy that trusts only the authorities in this PEM text.
    pub fn trusting(&self, authorities: &[u8]) -> Result<Self, String> {
        Self::build(trust(Some(authorities))?, None, self.proxy.clone())
    }

    /// A client that trusts what the setting `ca` at `at` says, or what this one trusts if it is not set. Problems with
    /// the file are reported.
    pub fn resolve(&self, ca: Option<&Path>, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let Some(path) = ca else { return Some(self.clone()) };
        let authorities = resolver.read(at, path)?;
        let path = resolver.path(path);
        let why = |why| _ = resolver.error(at, format!("{}: {why}", path.display()));
        self.trusting(&authorities).map_err(why).ok()
    }

    /// A client without a proxy, for an upstream. It trusts the authorities in this PEM text, else those of the system,
    /// for `name`, else for the host that is called.
    pub fn direct(authorities: Option<&[u8]>, name: Option<ServerName<'static>>) -> Result<Self, String> {
        Self::build(trust(authorities)?, name, Proxy::default())
    }

    /// The proxy that calls go through.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    fn build(trusting: ClientConfig, name: Option<ServerName<'static>>, proxy: Proxy) -> Result<Self, String> {
        let hop = match proxy.is_tls() {
            true => trust(None)?,
            // There is no TLS to a proxy in clear text, and the authorities of the system take memory.
            false => tls()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
        };
        let hop = HttpsConnectorBuilder::new().with_tls_config(hop).https_or_http().enable_http1().build();
        let mut connector = HttpsConnectorBuilder::new().with_tls_config(trusting).https_or_http();
        if let Some(name) = name {
            connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
        }
        let connector = connector.enable_all_versions().wrap_connector(Connector::new(proxy.clone(), hop));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(KEPT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client, proxy })
    }

    /// Sends a request and reads the whole answer within `bounds`. Any status is an answer, also that of a redirect. A
    /// safe request is sent again if the connection broke before an answer (RFC 9110 section 9.2.2), because servers
    /// close idle connections at any moment, also while a request is on its way.
    pub async fn send(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, EgressError> {
        let exchange = async {
            let again = request.method().is_safe().then(|| request.clone());
            let response = match (self.ask(request).await, again) {
                (Err(EgressError::Exchange(_)), Some(request)) => self.ask(request).await?,
                (answer, _) => answer?,
            };
            let (parts, body) = response.into_parts();
            // A length that is known to be too large is not worth the first byte.
            if body.size_hint().lower() > bounds.max_body as u64 {
                return Err(EgressError::TooLarge(bounds.max_body));
            }
            let body = Limited::new(body, bounds.max_body).collect().await.map_err(|error| {
                match error.downcast_ref::<http_body_util::LengthLimitError>() {
                    Some(_) => EgressError::TooLarge(bounds.max_body),
                    None => EgressError::Body(error),
                }
            })?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        tokio::time::timeout(bounds.timeout, exchange).await.unwrap_or(Err(EgressError::Timeout(bounds.timeout)))
    }

    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Incoming>, EgressError> {
        self.client.request(request.map(Full::new)).await.map_err(|error| match error.is_connect() {
            true => EgressError::Connect(error.into()),
            false => EgressError::Exchange(error.into()),
        })
    }
}

/// The value of `Authorization` with this token, marked as sensitive; `None` if it has characters that no header may
/// have.
pub fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let mut value = Zeroizing::new(b"Bearer ".to_vec());
    value.extend_from_slice(token);
    let mut value = HeaderValue::from_bytes(&value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn tls() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, String> {
    // Named here, so that it does not depend on the default of the process.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder.map_err(|error| error.to_string())
}

/// A TLS client configuration, without ALPN, that trusts the authorities in this PEM text or, without one, those of the
/// system.
pub fn trust(authorities: Option<&[u8]>) -> Result<ClientConfig, String> {
    let trusting = match authorities {
        None => tls()?.with_platform_verifier().map_err(|error| error.to_string())?,
        Some(pem) => tls()?.with_root_certificates(roots(pem)?),
    };
    Ok(trusting.with_no_client_auth())
}

/// The authorities in this PEM text. An error is worded to follow the name of what contains it and a colon.
pub fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("a certificate in it cannot be read: {error}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| unreadable(&pem_problem(&error)))?;
        roots.add(certificate).map_err(|error| unreadable(&error))?;
    }
    if roots.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(roots) }
}

/// What is wrong with a text in PEM form. The error itself would print bytes of the text.
pub fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "the end of a section is missing, as in a file that was written halfway".to_owned()
        }
        pem::Error::IllegalSectionStart { .. } => "the first line of a section is broken".to_owned(),
        other => other.to_string(),
    }
}

/// An error with its causes, because the client's own message only says that it failed.
fn causes(error: &(dyn Error + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
