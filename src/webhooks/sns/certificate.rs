//! The certificate with which SNS signs. AWS serves it without its issuers, so its chain cannot be verified to a root:
//! it is genuine because it comes over TLS from the host of SNS. As in the AWS SDKs, its name, its usage and its
//! validity are checked as well.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::Timestamp;

/// The maximum number of certificates in a file.
const MAX_CHAIN: usize = 5;

/// A key that signs messages, and its validity.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// The public key (RFC 8017 appendix A.1.1).
    key: Arc<[u8]>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Certificate {
    /// Reads the first certificate of a file, which must be that of SNS or of one of `hosts`. Any that follow must be
    /// its issuers, each of which signed the one before.
    pub(super) fn read(pem: &[u8], hosts: &[String]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'_>> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        if !(1..=MAX_CHAIN).contains(&chain.len()) {
            return Err(format!("the file has {} certificates", chain.len()));
        }
        let parsed: Vec<X509Certificate<'_>> = chain
            .iter()
            .map(|der| X509Certificate::from_der(der).map(|(_, certificate)| certificate))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("a certificate cannot be read: {error}"))?;
        for pair in parsed.windows(2) {
            if let [issued, issuer] = pair
                && (issued.issuer() != issuer.subject() || issued.verify_signature(Some(issuer.public_key())).is_err())
            {
                return Err("a certificate of the chain is not signed by the next".to_owned());
            }
        }
        let (first, issuers) = parsed.split_first().ok_or_else(|| "the file has no certificate".to_owned())?;
        if first.is_ca() || !issuers.iter().all(|issuer| issuer.is_ca()) {
            return Err("the certificate is a CA certificate, or its issuer is not".to_owned());
        }
        if !signs(first) {
            return Err("the certificate is not for signatures".to_owned());
        }
        let is_host = |name: &str| hosts.iter().any(|host| host.split(':').next() == Some(name));
        if !names(first).any(|name| is_name_of_sns(name) || is_host(name)) {
            return Err("the certificate is not that of SNS".to_owned());
        }
        let validity = parsed.iter().map(|certificate| certificate.validity());
        let begins = validity.clone().map(|validity| validity.not_before.timestamp()).max().unwrap_or(i64::MAX);
        let ends = validity.map(|validity| validity.not_after.timestamp()).min().unwrap_or(i64::MIN);
        Ok(Self {
            key: first.public_key().subject_public_key.data.as_ref().into(),
            not_before: Timestamp::from_secs(begins),
            not_after: Timestamp::from_secs(ends),
        })
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// Whether the key may sign, if the certificate restricts its usage.
fn signs(certificate: &X509Certificate<'_>) -> bool {
    match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.digital_signature()),
        Err(_) => false,
    }
}

/// The DNS names, or the common names if there are none.
fn names<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let dns = alternative.into_iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let dns: Vec<&str> = dns.collect();
    let common = certificate.subject().iter_common_name().filter(|_| dns.is_empty());
    let common: Vec<&str> = common.filter_map(|name| name.as_str().ok()).collect();
    dns.into_iter().chain(common)
}

/// Whether a name is `sns.amazonaws.com`, or `sns.REGION`, `sns-REGION` or `sns-signing.REGION` of a region.
fn is_name_of_sns(name: &str) -> bool {
    let own = name.strip_suffix(".cn").unwrap_or(name).strip_suffix(".amazonaws.com");
    let region = own.and_then(|own| {
        let regional = ["sns-signing.", "sns.", "sns-"].into_iter().find_map(|prefix| own.strip_prefix(prefix));
        if own == "sns" { Some("any") } else { regional }
    });
    region.is_some_and(|region| {
        region.len() >= 3
            && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

    use super::*;

    fn of(names: &[&str]) -> CertificateParams {
        CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn pem(params: &CertificateParams) -> String {
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn read(pem: &str) -> Result<Certificate, String> {
        Certificate::read(pem.as_bytes(), &["sns.test:4566".to_owned()])
    }

    /// A certificate of SNS and the CA certificates above it, each of which signed the one before.
    fn chain(authorities: usize) -> String {
        let mut authority = of(&[]);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut signer = KeyPair::generate().unwrap();
        let mut above = authority.self_signed(&signer).unwrap().pem();
        for _ in 1..authorities {
            let key = KeyPair::generate().unwrap();
            let next = authority.signed_by(&key, &rcgen::Issuer::from_params(&authority, &signer)).unwrap();
            above = next.pem() + &above;
            signer = key;
        }
        let (key, issuer) = (KeyPair::generate().unwrap(), rcgen::Issuer::from_params(&authority, &signer));
        of(&["sns.amazonaws.com"]).signed_by(&key, &issuer).unwrap().pem() + &above
    }

    /// Compares the messages, as each file is refused for another reason too.
    #[test]
    fn a_file_that_is_no_chain_is_refused() {
        let own = || pem(&of(&["sns.amazonaws.com"]));
        for (row, pem, refused) in [
            ("alone", own(), None),
            ("nothing", String::new(), Some("the file has 0 certificates")),
            ("two strangers", own() + &own(), Some("not signed by the next")),
            ("the longest chain", chain(MAX_CHAIN - 1), None),
            ("too many", chain(MAX_CHAIN), Some("the file has 6 certificates")),
        ] {
            let why = read(&pem).err().unwrap_or_default();
            assert_eq!(why.is_empty(), refused.is_none(), "{row}: {why}");
            assert!(why.contains(refused.unwrap_or_default()), "{row}: {why}");
        }
    }

    #[test]
    fn webhooks_29_a_certificate_that_is_not_for_messages_of_sns_proves_nothing() {
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = of(&["sns.amazonaws.com"]);
            change(&mut params);
            read(&pem(&params)).map(drop)
        };
        let refused = |result: Result<(), String>, why: &str| assert!(result.unwrap_err().contains(why), "{why}");
        refused(with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "is a CA certificate");
        refused(with(&|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]), "not for signatures");
        assert_eq!(with(&|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]), Ok(()));
        refused(read(&pem(&of(&["s3.amazonaws.com"]))).map(drop), "not that of SNS");
        for (names, common, good) in [
            (&["a.test", "sns.amazonaws.com"][..], "x", true),
            (&["sns.test"], "x", true),
            (&[], "sns.amazonaws.com", true),
            (&["a.test"], "sns.amazonaws.com", false),
            (&[], "a.test", false),
        ] {
            let mut params = of(names);
            params.distinguished_name.push(DnType::CommonName, common);
            assert_eq!(read(&pem(&params)).is_ok(), good, "{names:?} {common}");
        }
    }

    #[test]
    fn a_certificate_that_is_no_authority_is_not_accepted_as_an_issuer() {
        for (is_ca, good) in [(IsCa::Ca(BasicConstraints::Unconstrained), true), (IsCa::ExplicitNoCa, false)] {
            let (key, mut issuer) = (KeyPair::generate().unwrap(), of(&[]));
            issuer.is_ca = is_ca;
            let above = issuer.self_signed(&key).unwrap().pem();
            let signer = rcgen::Issuer::from_params(&issuer, &key);
            let leaf = of(&["sns.amazonaws.com"]).signed_by(&KeyPair::generate().unwrap(), &signer).unwrap().pem();
            assert_eq!(read(&(leaf + &above)).is_ok(), good);
        }
    }

    #[test]
    fn the_names_of_sns_are_its_own() {
        for (name, good) in [
            ("sns.amazonaws.com", true),
            ("sns.amazonaws.com.cn", true),
            ("sns.us-east-1.amazonaws.com", true),
            ("sns-us-gov-west-1.amazonaws.com", true),
            ("sns-cn-north-1.amazonaws.com.cn", true),
            ("sns-signing.me-south-1.amazonaws.com", true),
            ("sns-x.s3.amazonaws.com", false),
            ("*.amazonaws.com", false),
            ("sns.*.amazonaws.com", false),
            ("xsns.amazonaws.com", false),
            ("sns.amazonaws.com.evil.test", false),
            ("sns.evil.test", false),
            ("amazonaws.com", false),
            ("", false),
        ] {
            assert_eq!(is_name_of_sns(name), good, "{name}");
        }
    }
}
