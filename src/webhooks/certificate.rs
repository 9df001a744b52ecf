//! The client certificate that a sender must present in addition to its signature. TLS has verified its chain against
//! the `client_ca` of the listener, and that the client has its key.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::{client::verify_server_name, server::ParsedCertificate};
use rustls_pki_types::{CertificateDer, ServerName};

use crate::{
    config::{raw, report::At, resolver::Resolver},
    downstream::ClientCertificate,
    sha256,
};

/// The client certificates of a sender.
#[derive(Debug)]
pub(super) struct Certificates {
    names: Vec<ServerName<'static>>,
    sha256: Vec<[u8; 32]>,
}

impl Certificates {
    /// Reports every problem at its place; `None` if there is one.
    pub(super) fn resolve(raw: &raw::SenderCertificate, at: &At, resolver: &mut Resolver) -> Option<Self> {
        let report = &mut resolver.report;
        if raw.names.is_empty() && raw.sha256.is_empty() {
            report
                .error(at, "no certificate is named, so that every delivery would be refused")
                .help("give `names` or `sha256`");
            return None;
        }
        let (mut names, mut digests) = (Vec::new(), Vec::new());
        for (index, name) in raw.names.iter().enumerate() {
            match ServerName::try_from(name.clone()) {
                Ok(name @ ServerName::DnsName(_)) => names.push(name),
                _ => drop(report.error(&at.key("names").index(index), format!("`{name}` is not a DNS name"))),
            }
        }
        for (index, text) in raw.sha256.iter().enumerate() {
            match sha256::from_hex(text) {
                Some(digest) => digests.push(digest),
                None => drop(
                    report
                        .error(&at.key("sha256").index(index), format!("`{text}` is not a SHA-256 in hex"))
                        .help("`openssl x509 -noout -fingerprint -sha256 -in FILE` prints it"),
                ),
            }
        }
        let is_complete = names.len() == raw.names.len() && digests.len() == raw.sha256.len();
        is_complete.then_some(Self { names, sha256: digests })
    }

    pub(super) fn admits(&self, presented: Option<&ClientCertificate>) -> bool {
        let Some(presented) = presented else { return false };
        let same = |known: &[u8; 32]| verify_slices_are_equal(known, &presented.sha256).is_ok();
        if self.sha256.iter().any(same) {
            return true;
        }
        let der = CertificateDer::from(&*presented.der);
        let Ok(certificate) = ParsedCertificate::try_from(&der) else { return false };
        self.names.iter().any(|name| verify_server_name(&certificate, name).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> ClientCertificate {
        ClientCertificate::of(rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap().cert.der())
    }

    fn resolve(names: &[&str], sha256: &[&str]) -> Option<Certificates> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let raw = raw::SenderCertificate { names: owned(names), sha256: owned(sha256) };
        let mut resolver = Resolver::new(std::path::Path::new(""));
        let resolved = Certificates::resolve(&raw, &At::root(), &mut resolver);
        assert_eq!(resolved.is_none(), resolver.report.has_errors());
        resolved
    }

    #[test]
    fn a_certificate_is_known_by_its_name_or_its_fingerprint() {
        let (ours, other) = (certificate("bitbucket.example.com"), certificate("other.example.com"));
        let named = resolve(&["bitbucket.example.com"], &[]).unwrap();
        assert!(named.admits(Some(&ours)));
        assert!(!named.admits(Some(&other)) && !named.admits(None));
        let hex = data_encoding::HEXUPPER.encode(&other.sha256);
        let colons: Vec<_> = hex.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap()).collect();
        let printed = resolve(&[], &[&colons.join(":")]).unwrap();
        assert!(printed.admits(Some(&other)) && !printed.admits(Some(&ours)));
    }

    #[test]
    fn a_setting_that_matches_no_certificate_is_refused() {
        for (names, sha256) in [(&[][..], &[][..]), (&["a b"], &[]), (&["192.0.2.1"], &[]), (&[], &["00"])] {
            assert!(resolve(names, sha256).is_none(), "{names:?} {sha256:?}");
        }
    }
}
