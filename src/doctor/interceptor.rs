//! Whether EventListeners trust the interceptor: compares the authorities in a ClusterInterceptor with the certificates
//! of the listeners. An EventListener that does not trust it creates no run, and reports that only in its own log.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde::Deserialize;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Check, Doctor, Finding, cluster, public::validity};
use crate::{
    clock::Timestamp,
    config::resolver::folder_of,
    kubernetes::{
        listed::{List, Metadata},
        null_as_default,
    },
};

const AGAIN: &str = "write it with `doorward interceptor --ca FILE | kubectl apply -f -`, FILE having the authorities \
                     of the certificate";

const RENEW: &str = "replace it in the listener's file, and if it is self-signed, write its `caBundle` again with \
                     `doorward interceptor`";

/// Why EventListeners do not trust a certificate.
#[derive(Debug, PartialEq, Eq)]
enum Doubt {
    /// It is not valid now.
    OfTime(String),
    /// What the ClusterInterceptor contains does not prove it.
    OfBundle(String),
}

impl From<&str> for Doubt {
    fn from(why: &str) -> Self {
        Self::OfBundle(why.to_owned())
    }
}

/// Also reported if the authority was replaced by one with the same name.
const UNKNOWN_AUTHORITY: &str = "its `caBundle` does not contain the authority of the certificate";

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    kind: String,
    metadata: Metadata,
    #[serde(default, deserialize_with = "null_as_default")]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(deserialize_with = "null_as_default")]
    client_config: ClientConfig,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientConfig {
    #[serde(deserialize_with = "null_as_default")]
    ca_bundle: String,
    url: Option<String>,
    service: Option<Service>,
}

#[derive(Deserialize)]
struct Service {
    name: String,
    namespace: String,
}

impl ClientConfig {
    /// The name that EventListeners use for it.
    fn host(&self) -> Option<String> {
        match (&self.url, &self.service) {
            (Some(url), _) => url::Url::parse(url).ok()?.host_str().map(str::to_owned),
            (None, Some(Service { name, namespace })) => Some(format!("{name}.{namespace}.svc")),
            (None, None) => None,
        }
    }
}

pub(super) fn examine(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Some(interceptor) = &doctor.raw().interceptor else { return Vec::new() };
    let host = interceptor.host.as_str();
    let subject = format!("interceptor `{host}`");
    let Some((path, list)) = doctor.cluster else {
        return vec![Finding::skipped(Check::Interceptor, &subject, cluster::UNKNOWN)];
    };
    let objects = match serde_json::from_slice::<List<Object>>(list) {
        Ok(list) => list.items,
        Err(error) => return vec![cluster::no_list(Check::Interceptor, &path.display().to_string(), &error)],
    };
    let all: Vec<&Object> = objects.iter().filter(|object| object.kind == "ClusterInterceptor").collect();
    if all.is_empty() {
        let message = "the list has no ClusterInterceptor; add `clusterinterceptors` to it, unless there is none";
        return vec![Finding::skipped(Check::Interceptor, &subject, message)];
    }
    let ours: Vec<_> =
        all.into_iter().filter(|object| object.spec.client_config.host().as_deref() == Some(host)).collect();
    if ours.is_empty() {
        let message = "no ClusterInterceptor points to it, so no EventListener asks it";
        return vec![Finding::warning(Check::Interceptor, &subject, message, AGAIN)];
    }
    let chains = chains(doctor, interceptor.listener.as_deref());
    let finding = |object: &&Object| {
        let subject = format!("ClusterInterceptor `{}`", object.metadata.name);
        let fault = |why, fix| {
            let message = format!("EventListeners do not trust `{host}`: {why}");
            Finding::fault(Check::Interceptor, &subject, message, fix)
        };
        match believed(&object.spec.client_config.ca_bundle, &chains, host, doctor.clock.now()) {
            Ok(()) => Finding::good(Check::Interceptor, &subject, format!("EventListeners trust `{host}`")),
            Err(Doubt::OfTime(why)) => fault(why, RENEW),
            Err(Doubt::OfBundle(why)) => fault(why, AGAIN),
        }
    };
    ours.iter().map(finding).collect()
}

/// Returns the chains of the listeners on which it is reached.
fn chains(doctor: &Doctor<'_>, asked_on: Option<&str>) -> Vec<Vec<CertificateDer<'static>>> {
    let folder = folder_of(&doctor.loaded.path);
    let listeners = doctor.raw().listeners.iter().filter(|listener| asked_on.is_none_or(|name| name == listener.name));
    let files = listeners.filter_map(|listener| listener.tls.as_ref());
    files.flat_map(|tls| &tls.certificates).filter_map(|files| read(&folder.join(&files.chain))).collect()
}

pub(super) fn read(file: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&std::fs::read(file).ok()?).filter_map(Result::ok).collect();
    (!chain.is_empty()).then_some(chain)
}

/// Whether one of the chains proves the name, as an EventListener checks it: only with the authorities in the object,
/// one of which may be the certificate itself.
fn believed(bundle: &str, chains: &[Vec<CertificateDer<'static>>], host: &str, now: Timestamp) -> Result<(), Doubt> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| "this is no name that a certificate could have")?;
    let pem = BASE64_STANDARD.decode(bundle).map_err(|_| "its `caBundle` is not base64")?;
    // EventListeners do not accept an expired authority.
    let is_valid = |der: &CertificateDer<'_>| validity(der).is_some_and(|(from, until)| from <= now && now < until);
    let authorities: Vec<CertificateDer<'_>> =
        CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).filter(is_valid).collect();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let named = |chain: &&Vec<CertificateDer<'static>>| {
        let parsed = chain.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        parsed.is_some_and(|parsed| rustls::client::verify_server_name(&parsed, &name).is_ok())
    };
    let chain = chains.iter().find(named).ok_or("no listener has a certificate for this name")?;
    let (leaf, rest) = chain.split_first().ok_or("no listener has a certificate for this name")?;
    // If the certificate itself is in the bundle, nothing else about it is checked.
    match validity(leaf) {
        Some((from, _)) if now < from => {
            return Err(Doubt::OfTime(format!("its certificate is not valid before {from}")));
        }
        Some((_, until)) if until <= now => return Err(Doubt::OfTime(format!("its certificate ended on {until}"))),
        _ => {}
    }
    if authorities.contains(leaf) {
        return Ok(());
    }
    // As `openssl req -x509` creates it by default. The verifier does not accept it as a server's certificate, but
    // EventListeners do.
    if is_authority(leaf) {
        let is_led = rest.iter().all(is_valid) && leads_to(chain, &authorities);
        return if is_led { Ok(()) } else { Err(UNKNOWN_AUTHORITY.into()) };
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| "its `caBundle` contains no certificate")?;
    let seconds = u64::try_from(now.as_secs()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    verifier.verify_server_cert(leaf, rest, &name, &[], now).map(drop).map_err(|error| match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            UNKNOWN_AUTHORITY.into()
        }
        error => Doubt::OfBundle(error.to_string()),
    })
}

/// Whether this is the certificate of an authority (`CA:TRUE`).
pub(crate) fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// Whether each certificate of a chain is signed by the next, up to one that an authority has signed.
fn leads_to(chain: &[CertificateDer<'_>], authorities: &[CertificateDer<'_>]) -> bool {
    fn parsed<'a>(list: &'a [CertificateDer<'_>]) -> Vec<X509Certificate<'a>> {
        list.iter().map_while(|der| X509Certificate::from_der(der).ok()).map(|(_, certificate)| certificate).collect()
    }
    let (chain, authorities) = (parsed(chain), parsed(authorities));
    let is_signed = |one: &X509Certificate<'_>, by: &X509Certificate<'_>| {
        one.issuer() == by.subject() && one.verify_signature(Some(by.public_key())).is_ok()
    };
    let linked = chain.iter().zip(chain.iter().skip(1)).take_while(|(one, next)| is_signed(one, next)).count();
    chain.iter().take(linked + 1).any(|one| authorities.iter().any(|authority| is_signed(one, authority)))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use time::{Duration, OffsetDateTime};

    use super::*;

    const HOST: &str = "door.front.svc";

    /// A self-signed certificate, as `openssl req -x509` creates one.
    fn own(days: std::ops::Range<i64>) -> (CertificateDer<'static>, String) {
        let mut params = CertificateParams::new([HOST.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = OffsetDateTime::UNIX_EPOCH + Duration::days(days.start);
        params.not_after = OffsetDateTime::UNIX_EPOCH + Duration::days(days.end);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        (certificate.der().clone(), BASE64_STANDARD.encode(certificate.pem()))
    }

    fn judge(bundle: &str, chain: &[&CertificateDer<'static>], day: i64) -> Result<(), Doubt> {
        let chains = [chain.iter().map(|der| (*der).clone()).collect()];
        believed(bundle, &chains, HOST, Timestamp::from_secs(day * 86_400))
    }

    /// The first was reported as `Other(OtherError(CaUsedAsEndEntity))`, and the last as trusted.
    #[test]
    fn a_certificate_that_signs_itself_is_judged_as_event_listeners_do() {
        let ((old, old_bundle), (new, new_bundle)) = (own(0..10), own(5..20));
        assert_eq!(judge(&old_bundle, &[&new], 7), Err(UNKNOWN_AUTHORITY.into()));
        assert_eq!(judge(&old_bundle, &[&old], 7), Ok(()));
        assert_eq!(judge(&new_bundle, &[&new], 7), Ok(()));
        let ended = judge(&old_bundle, &[&old], 11);
        assert!(matches!(&ended, Err(Doubt::OfTime(why)) if why.contains("ended on 1970-01-11")), "{ended:?}");
        let early = judge(&new_bundle, &[&new], 2);
        assert!(matches!(&early, Err(Doubt::OfTime(why)) if why.contains("not valid before 1970-01-06")), "{early:?}");
    }

    #[test]
    fn a_certificate_that_could_be_an_authority_is_believed_where_its_own_is_held() {
        let authority = |name: &str| {
            let mut params = CertificateParams::new([HOST.to_owned()]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let key = || KeyPair::generate().unwrap();
        let [root, other] = [(); 2].map(|()| CertifiedIssuer::self_signed(authority("root"), key()).unwrap());
        let between = CertifiedIssuer::signed_by(authority("between"), key(), &root).unwrap();
        let direct = authority("leaf").signed_by(&key(), &root).unwrap();
        let far = authority("leaf").signed_by(&key(), &between).unwrap();
        let bundle = |issuer: &CertifiedIssuer<'_, KeyPair>| BASE64_STANDARD.encode(issuer.pem());
        let now = 20_000;
        assert_eq!(judge(&bundle(&root), &[direct.der()], now), Ok(()));
        assert_eq!(judge(&bundle(&root), &[far.der(), between.der()], now), Ok(()));
        for chain in [&[far.der()][..], &[far.der(), other.der()]] {
            assert_eq!(judge(&bundle(&root), chain, now), Err(UNKNOWN_AUTHORITY.into()));
        }
        assert_eq!(judge(&bundle(&other), &[direct.der()], now), Err(UNKNOWN_AUTHORITY.into()), "of the same name");
        let mut params = authority("root");
        params.not_after = OffsetDateTime::UNIX_EPOCH + Duration::days(now - 1);
        let ended = CertifiedIssuer::self_signed(params, key()).unwrap();
        let direct = authority("leaf").signed_by(&key(), &ended).unwrap();
        assert_eq!(judge(&bundle(&ended), &[direct.der()], now - 2), Ok(()));
        assert_eq!(judge(&bundle(&ended), &[direct.der()], now), Err(UNKNOWN_AUTHORITY.into()), "it has ended");
    }
}
