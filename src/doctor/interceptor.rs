//! Whether EventListeners would believe the interceptor: the authorities that a ClusterInterceptor holds, against the certificates
//! of the listeners. An EventListener that does not believe it makes no run, and tells nobody but its log.

use std::{path::Path, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
use serde::Deserialize;

use super::{Check, Doctor, Finding, cluster};
use crate::{
    clock::Timestamp,
    config::resolver::folder_of,
    kubernetes::{
        listed::{List, Metadata},
        null_as_default,
    },
};

const AGAIN: &str =
    "`doorward interceptor --ca FILE | kubectl apply -f -` writes it, with the authorities of the certificate";

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
    /// The name by which EventListeners ask.
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
    let of = format!("interceptor `{host}`");
    let Some((path, list)) = doctor.cluster else {
        return vec![Finding::skipped(Check::Interceptor, &of, cluster::UNKNOWN)];
    };
    let objects = match serde_json::from_slice::<List<Object>>(list) {
        Ok(list) => list.items,
        Err(error) => return vec![cluster::no_list(Check::Interceptor, &path.display().to_string(), &error)],
    };
    let all: Vec<&Object> = objects.iter().filter(|object| object.kind == "ClusterInterceptor").collect();
    if all.is_empty() {
        let said = "the list has no ClusterInterceptor; add `clusterinterceptors` to it, unless there is none";
        return vec![Finding::skipped(Check::Interceptor, &of, said)];
    }
    let ours: Vec<_> =
        all.into_iter().filter(|object| object.spec.client_config.host().as_deref() == Some(host)).collect();
    if ours.is_empty() {
        let said = "no ClusterInterceptor leads to it, so that no EventListener asks it";
        return vec![Finding::warning(Check::Interceptor, &of, said, AGAIN)];
    }
    let chains = chains(doctor);
    let finding = |object: &&Object| {
        let of = format!("ClusterInterceptor `{}`", object.metadata.name);
        match believed(&object.spec.client_config.ca_bundle, &chains, host, doctor.clock.now()) {
            Ok(()) => Finding::good(Check::Interceptor, &of, format!("EventListeners believe `{host}`")),
            Err(why) => {
                Finding::fault(Check::Interceptor, &of, format!("EventListeners do not believe `{host}`: {why}"), AGAIN)
            }
        }
    };
    ours.iter().map(finding).collect()
}

/// The chains of all listeners.
fn chains(doctor: &Doctor<'_>) -> Vec<Vec<CertificateDer<'static>>> {
    let folder = folder_of(&doctor.loaded.path);
    let files = doctor.raw().listeners.iter().filter_map(|listener| listener.tls.as_ref());
    files.flat_map(|tls| &tls.certificates).filter_map(|files| read(&folder.join(&files.chain))).collect()
}

fn read(file: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&std::fs::read(file).ok()?).filter_map(Result::ok).collect();
    (!chain.is_empty()).then_some(chain)
}

/// Whether one of the chains proves the name, as an EventListener looks at it: with the object's authorities alone, one of which
/// may be the certificate itself.
fn believed(bundle: &str, chains: &[Vec<CertificateDer<'static>>], host: &str, now: Timestamp) -> Result<(), String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| "this is no name that a certificate could have".to_owned())?;
    let pem = BASE64_STANDARD.decode(bundle).map_err(|_| "its `caBundle` is not base64".to_owned())?;
    let authorities: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let named = |chain: &&Vec<CertificateDer<'static>>| {
        let parsed = chain.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        parsed.is_some_and(|parsed| rustls::client::verify_server_name(&parsed, &name).is_ok())
    };
    let chain = chains.iter().find(named).ok_or("no listener has a certificate for this name")?;
    let (leaf, rest) = chain.split_first().ok_or("no listener has a certificate for this name")?;
    if authorities.contains(leaf) {
        return Ok(());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| "its `caBundle` holds no certificate".to_owned())?;
    let seconds = u64::try_from(now.as_secs()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    verifier.verify_server_cert(leaf, rest, &name, &[], now).map(drop).map_err(|error| match error {
        // The second where the authority was made anew under its name.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its `caBundle` does not hold the authority of the certificate".to_owned()
        }
        error => error.to_string(),
    })
}
