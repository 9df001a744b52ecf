//! Fetches certificates and confirms subscriptions: at listed hosts only, and rate limited, as strangers can cause
//! fetches. Whether an address has a certificate is known only after the fetch, so anybody who knows a topic can name
//! addresses that do not exist.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use tokio::{runtime::Handle, time::Instant};
use url::Url;

use super::certificate::Certificate;
use crate::{
    clock::Timestamp,
    egress::{Bounds, Egress},
    error::{Reason, Rejection},
    issuers::SingleFlight,
    lock::lock,
    sha256::sha256,
    webhooks::signature::unproven,
};

/// The limits of a fetch. SNS waits 15 s for an answer.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), max_body: 64 << 10 };

/// The maximum number of cached certificates. A region has one or two.
pub(super) const MAX_CERTIFICATES: usize = 32;

/// How long the next fetch of an address waits after one that failed.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// How long a cached certificate that did not make a signature is not fetched again, although another may be in its
/// file now.
pub(super) const RENEWAL: Duration = Duration::from_secs(60);

/// The maximum number of concurrent fetches.
pub(super) const MAX_FETCHES: usize = 10;

/// The maximum number of fetches of one client that are in flight or failed within a pause. Anybody can name an
/// address. A client that names some that do not exist must not keep others from a genuine one, nor cause unlimited
/// requests to AWS.
pub(super) const MAX_OF_ONE: usize = 5;

/// The same limit for all clients that cannot be told apart. It is so high that strangers among them have to send far
/// more to exhaust it for genuine messages, which SNS retries for an hour.
pub(super) const MAX_OF_NOBODY: usize = 100;

/// The hosts where certificates are fetched and subscriptions confirmed, with the cache of certificates.
#[derive(Debug)]
pub(super) struct Source {
    /// `host` or `host:port`.
    hosts: Vec<String>,
    egress: Egress,
    /// The digest of the configured CA certificates, if those are trusted instead of the system's.
    authorities: Option<[u8; 32]>,
    /// Cached certificates by address.
    known: Mutex<HashMap<Url, Known>>,
    /// Addresses that are being fetched, or whose fetch failed.
    asked: Mutex<HashMap<Url, Asked>>,
    /// One fetch per address. It continues when the client that started it leaves; otherwise clients that name the
    /// genuine address and leave would keep the certificate from all others.
    fetches: SingleFlight<Result<Certificate, String>>,
}

#[derive(Clone, Debug)]
struct Known {
    certificate: Certificate,
    fetched: Instant,
    /// When it last verified a message.
    proved: Option<Instant>,
}

#[derive(Debug)]
struct Asked {
    /// The client that named it first, if that is known.
    by: Option<IpAddr>,
    /// When its fetch failed.
    failed: Option<Instant>,
}

/// A fetch in flight. Dropping it marks it as failed, unless its certificate was cached before.
#[derive(Debug)]
pub(super) struct Fetch {
    source: Arc<Source>,
    address: Url,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if let Some(asked) = lock(&self.source.asked).get_mut(&self.address) {
            asked.failed = Some(Instant::now());
        }
    }
}

impl Source {
    pub(super) fn new(hosts: Vec<String>, egress: Egress, authorities: Option<[u8; 32]>) -> Self {
        let (known, asked, fetches) = (Mutex::default(), Mutex::default(), SingleFlight::default());
        Self { hosts, egress, authorities, known, asked, fetches }
    }

    /// Takes over the certificates of a previous source with the same CA certificates, for hosts that are still listed.
    /// Otherwise somebody who can prevent a fetch would only have to wait for a reload.
    pub(super) fn keep_those_of(&self, before: &Self) {
        if self.authorities == before.authorities {
            let kept = lock(&before.known).clone();
            lock(&self.known).extend(kept.into_iter().filter(|(address, _)| self.is_listed(address)));
        }
    }

    /// Parses and checks the address of a certificate, which becomes its key in the cache. The spelling is normalized;
    /// otherwise a file with many spellings would be fetched as often and take the place of as many others.
    pub(super) fn address(&self, written: &str) -> Result<Url, Rejection> {
        let url = Url::parse(written).ok().filter(|url| self.is_listed(url) && is_certificate(url));
        url.ok_or_else(|| unproven(Reason::SignatureInvalid, "the certificate is not at a listed host"))
    }

    /// The certificate at an address that this client names. It is fetched unless a valid one is cached that was
    /// fetched within `max_age`. A cached certificate waits for no fetch, whatever addresses others name.
    pub(super) async fn certificate(
        self: &Arc<Self>,
        address: &Url,
        max_age: Duration,
        client: Option<IpAddr>,
        control: &Handle,
        now: Timestamp,
    ) -> Result<Certificate, Rejection> {
        if let Some(known) = self.known(address, max_age, now) {
            return Ok(known);
        }
        let begin = || -> Result<_, Result<Certificate, String>> {
            // Another fetch may have ended since the check above.
            if let Some(known) = self.known(address, max_age, now) {
                return Err(Ok(known));
            }
            let fetch = self.begin(address, client).map_err(Err)?;
            Ok(fetch.obtain(now))
        };
        let fetched = match self.fetches.join(sha256(&[address.as_str().as_bytes()]), control, begin).await {
            Err(at_once) => at_once,
            Ok(fetched) => fetched.unwrap_or_else(|| Err("the fetch was given up".to_owned())),
        };
        fetched.map_err(|why| {
            Rejection::new(
                Reason::IssuerUnavailable,
                "the certificate of the signature cannot be fetched at the moment",
            )
            .because(why)
        })
    }

    pub(super) fn known(&self, address: &Url, max_age: Duration, now: Timestamp) -> Option<Certificate> {
        let known = lock(&self.known);
        let known = known.get(address)?;
        (known.certificate.is_valid(now) && known.fetched.elapsed() <= max_age).then(|| known.certificate.clone())
    }

    /// Notes that the certificate at an address has verified a message.
    pub(super) fn note_proof(&self, address: &Url) {
        if let Some(known) = lock(&self.known).get_mut(address) {
            known.proved = Some(Instant::now());
        }
    }

    /// Caches a certificate. If the cache is full, it evicts the one that has verified nothing for longest, so that
    /// naming other certificates of the hosts cannot evict the genuine one. Fetching a certificate again keeps its time
    /// of use.
    pub(super) fn keep(&self, address: Url, certificate: Certificate) {
        let mut known = lock(&self.known);
        let proved = known.get(&address).and_then(|known| known.proved);
        if known.len() >= MAX_CERTIFICATES && !known.contains_key(&address) {
            let idle = known.iter().min_by_key(|(_, known)| known.proved).map(|(address, _)| address.clone());
            if let Some(idle) = idle {
                known.remove(&idle);
            }
        }
        known.insert(address, Known { certificate, fetched: Instant::now(), proved });
    }

    /// Begins a fetch for a client, unless a limit is reached.
    pub(super) fn begin(self: &Arc<Self>, address: &Url, by: Option<IpAddr>) -> Result<Fetch, String> {
        let mut asked = lock(&self.asked);
        asked.retain(|_, asked| asked.failed.is_none_or(|at| at.elapsed() < PAUSE));
        if asked.contains_key(address) {
            return Err("the last fetch failed a moment ago".to_owned());
        }
        let most = if by.is_some() { MAX_OF_ONE } else { MAX_OF_NOBODY };
        if asked.values().filter(|asked| asked.by == by).count() >= most {
            return Err(
                "too many of the certificates that were named are being fetched, or could not be fetched a moment ago"
                    .to_owned(),
            );
        }
        if asked.values().filter(|asked| asked.failed.is_none()).count() >= MAX_FETCHES {
            return Err("too many certificates are fetched at once".to_owned());
        }
        asked.insert(address.clone(), Asked { by, failed: None });
        Ok(Fetch { source: Arc::clone(self), address: address.clone() })
    }

    pub(super) async fn fetch(&self, url: &Url) -> Result<Bytes, String> {
        let request = Request::get(url.as_str()).body(Bytes::new()).map_err(|error| error.to_string())?;
        let answer = self.egress.send(request, BOUNDS).await.map_err(|error| error.to_string())?;
        match answer.status().is_success() {
            true => Ok(answer.into_body()),
            false => Err(format!("{} answered {}", url.host_str().unwrap_or_default(), answer.status())),
        }
    }

    pub(super) fn is_listed(&self, url: &Url) -> bool {
        authority(url).is_some_and(|authority| self.hosts.contains(&authority))
    }
}

impl Fetch {
    /// Fetches the certificate, and caches it if it is valid. If it is not, it is fetched again after a pause, as the
    /// file may contain a valid one by then.
    async fn obtain(self, now: Timestamp) -> Result<Certificate, String> {
        let source = &*self.source;
        let pem = source.fetch(&self.address).await?;
        let certificate = Certificate::read(&pem, &source.hosts)?;
        if certificate.is_valid(now) {
            source.keep(self.address.clone(), certificate.clone());
            lock(&source.asked).remove(&self.address);
        }
        Ok(certificate)
    }
}

/// `host`, or `host:port` if the port is not 443, of an `https` URL without user information.
pub(super) fn authority(url: &Url) -> Option<String> {
    let plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    let host = url.host_str().filter(|_| plain)?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Whether a URL can be that of a certificate: a `.pem` file, without a query or anything else that could make it
/// another resource.
pub(super) fn is_certificate(url: &Url) -> bool {
    let name = url.path().strip_prefix('/').and_then(|path| path.strip_suffix(".pem")).unwrap_or_default();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    (1..=128).contains(&name.len()) && plain && url.query().is_none() && url.fragment().is_none()
}
