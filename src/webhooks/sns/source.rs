//! Where certificates are fetched and subscriptions confirmed: at listed hosts alone, and no oftener than strangers may have us ask.
//! Whose certificate an address is shows only once it is there, so that whoever knows a topic can name addresses that lead nowhere.

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

/// What a fetch may cost. SNS waits 15 s for an answer.
const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), max_body: 64 << 10 };

/// Certificates that are kept. A region has one or two.
pub(super) const MAX_CERTIFICATES: usize = 32;

/// After a fetch that failed, the next of the same address waits.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// After a fetch, the next waits that is made because the certificate did not make a signature, as another may be in its file by then.
pub(super) const RENEWAL: Duration = Duration::from_secs(60);

/// Fetches at once.
pub(super) const MAX_FETCHES: usize = 10;

/// Fetches of one client at once, with those that failed within a pause. An address is nobody's proof, and who names some that lead
/// nowhere must not keep others from a genuine one, nor have AWS asked without end.
pub(super) const MAX_OF_ONE: usize = 5;

/// Fetches that failed within a pause, of all clients that nobody tells apart: so many that strangers among them have to send far
/// more to leave little of it to a genuine message, which SNS sends again for an hour.
pub(super) const MAX_OF_NOBODY: usize = 100;

/// Where certificates are fetched and subscriptions confirmed.
#[derive(Debug)]
pub(super) struct Source {
    /// `host` or `host:port`.
    hosts: Vec<String>,
    egress: Egress,
    /// The digest of the authorities in the configuration that are trusted, and not those of the system.
    authorities: Option<[u8; 32]>,
    /// Certificates by their address.
    known: Mutex<HashMap<Url, Known>>,
    /// Addresses that are asked, or gave none.
    asked: Mutex<HashMap<Url, Asked>>,
    /// One for each address, which goes on when whoever asked first leaves: an address is nobody's proof, and those who name that of
    /// the genuine certificate and leave would keep all others from it.
    fetches: SingleFlight<Result<Certificate, String>>,
}

#[derive(Clone, Debug)]
struct Known {
    certificate: Certificate,
    fetched: Instant,
    /// When it last proved a message.
    proved: Option<Instant>,
}

#[derive(Debug)]
struct Asked {
    /// The client that named it first, where that is known.
    by: Option<IpAddr>,
    /// When it gave none.
    failed: Option<Instant>,
}

/// A fetch that is under way, and has failed when it is dropped, unless its certificate is kept by then.
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

    /// Takes over the certificates of one before that trusts the same authorities, as far as their hosts are listed still: whoever can keep
    /// one from being fetched would only have to wait for a reload.
    pub(super) fn keep_those_of(&self, before: &Self) {
        if self.authorities == before.authorities {
            let kept = lock(&before.known).clone();
            lock(&self.known).extend(kept.into_iter().filter(|(address, _)| self.is_listed(address)));
        }
    }

    /// The address of a certificate, by which it is known: in one spelling, or a file that is named in many ways would be fetched as often,
    /// and take the place of as many others.
    pub(super) fn address(&self, written: &str) -> Result<Url, Rejection> {
        let url = Url::parse(written).ok().filter(|url| self.is_listed(url) && is_certificate(url));
        url.ok_or_else(|| unproven(Reason::SignatureInvalid, "the certificate is not at a listed host"))
    }

    /// The certificate at an address that this client names, fetched if none is known that is valid and was fetched within `max_age`. One
    /// that is known waits for no fetch, whatever addresses others name.
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
            // Another fetch may have ended since it was looked.
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
            Rejection::new(Reason::IssuerUnavailable, "the certificate of the signature cannot be had at the moment")
                .because(why)
        })
    }

    pub(super) fn known(&self, address: &Url, max_age: Duration, now: Timestamp) -> Option<Certificate> {
        let known = lock(&self.known);
        let known = known.get(address)?;
        (known.certificate.is_valid(now) && known.fetched.elapsed() <= max_age).then(|| known.certificate.clone())
    }

    /// Notes that the certificate at an address has proved a message.
    pub(super) fn note_proof(&self, address: &Url) {
        if let Some(known) = lock(&self.known).get_mut(address) {
            known.proved = Some(Instant::now());
        }
    }

    /// Keeps a certificate; where there is no room, in the place of the one that has proved nothing for longest: whoever names others
    /// that the hosts have does not push out the genuine one, nor whoever has that fetched anew.
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

    /// Begins a fetch for a client, unless it is to wait for a moment.
    pub(super) fn begin(self: &Arc<Self>, address: &Url, by: Option<IpAddr>) -> Result<Fetch, String> {
        let mut asked = lock(&self.asked);
        asked.retain(|_, asked| asked.failed.is_none_or(|at| at.elapsed() < PAUSE));
        if asked.contains_key(address) {
            return Err("the last fetch failed a moment ago".to_owned());
        }
        let most = if by.is_some() { MAX_OF_ONE } else { MAX_OF_NOBODY };
        if asked.values().filter(|asked| asked.by == by).count() >= most {
            return Err(
                "too many certificates that were named a moment ago cannot be had, or are being fetched".to_owned()
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
    /// Fetches the certificate, and keeps it if it is valid. Another is asked for again after a pause, as one that is may be in its file by
    /// then.
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

/// `host`, or `host:port` where that is not 443, of an address over TLS without a user.
pub(super) fn authority(url: &Url) -> Option<String> {
    let plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    let host = url.host_str().filter(|_| plain)?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Whether an address can be that of a certificate: a file of that kind, and nothing that could make it another.
pub(super) fn is_certificate(url: &Url) -> bool {
    let name = url.path().strip_prefix('/').and_then(|path| path.strip_suffix(".pem")).unwrap_or_default();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    (1..=128).contains(&name.len()) && plain && url.query().is_none() && url.fragment().is_none()
}
