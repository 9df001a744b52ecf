//! How long certificates are valid.

use std::{path::Path, time::Duration};

use super::{
    Check, Doctor, Finding,
    interceptor::{is_authority, read},
};
use crate::{
    audit::Configured,
    clock::{Clock, Timestamp},
    config::{raw, resolver::folder_of},
};

/// A certificate that ends sooner should have been renewed.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

/// Checks the certificates in files that the configuration names: of listeners, of clients, and authorities.
pub(super) fn of_files(doctor: &Doctor<'_>) -> Vec<Finding> {
    let path = &doctor.loaded.path;
    let Ok(configured) = Configured::of(doctor.raw(), path.clone(), folder_of(path)) else { return Vec::new() };
    let findings = configured.secrets.iter().filter_map(|secret| {
        let valid = (Timestamp::from_millis(secret.not_before?), Timestamp::from_millis(secret.not_after?));
        Some(finding(&format!("{} ({})", secret.place, secret.source), valid, &doctor.clock))
    });
    findings.chain(of_authorities(&doctor.raw().listeners, folder_of(path))).collect()
}

/// Reports listeners whose certificate is that of an authority, which some clients accept from a server and Doorward's
/// own programs do not.
fn of_authorities(listeners: &[raw::Listener], folder: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for listener in listeners {
        for files in listener.tls.iter().flat_map(|tls| &tls.certificates) {
            let file = folder.join(&files.chain);
            if read(&file).is_some_and(|chain| chain.first().is_some_and(is_authority)) {
                let subject = format!("listener {} ({})", listener.name, file.display());
                let message = "it is the certificate of an authority (`CA:TRUE`), so `doorward login` and `doorward \
                               token` refuse it";
                let fix = "create it with `-addext basicConstraints=critical,CA:FALSE`, or have an authority sign one";
                findings.push(Finding::warning(Check::Certificates, &subject, message, fix));
            }
        }
    }
    findings
}

/// Returns the finding on a certificate, by the times between which it is valid.
pub(super) fn finding(subject: &str, (from, until): (Timestamp, Timestamp), clock: &Clock) -> Finding {
    let now = clock.now();
    let days = until.since(now).as_secs() / 86_400;
    if now < from {
        let fix = "set the clock of this machine, or reissue the certificate";
        return Finding::fault(Check::Certificates, subject, format!("it is not valid before {from}"), fix);
    }
    if until <= now {
        let fix = "replace it in its file, which is reloaded automatically, and find out why it was not renewed";
        return Finding::fault(Check::Certificates, subject, format!("it ended on {until}"), fix);
    }
    // Those that live for hours are renewed when a third of their time is left.
    if until.since(now) < EXPIRES_SOON && until.since(now) < until.since(from) / 3 {
        let fix = "renew it, and check whether something does so automatically";
        return Finding::warning(Check::Certificates, subject, format!("it ends in {days} days, on {until}"), fix);
    }
    Finding::good(Check::Certificates, subject, format!("valid for {days} days"))
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    /// Regression: the doctor called such a certificate valid, while `doorward login` refused it.
    #[test]
    fn a_listener_with_the_certificate_of_an_authority_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        for (name, is_ca) in
            [("server", rcgen::IsCa::ExplicitNoCa), ("own", rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained))]
        {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.is_ca = is_ca;
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            std::fs::write(folder.path().join(name), certificate.pem()).unwrap();
        }
        let files = |name: &str| format!("{{chain: {name}, key: k}}");
        let listeners = format!(
            "[{{name: public, address: '127.0.0.1:1', tls: {{certificates: [{}, {}, {}]}}}}]",
            files("server"),
            files("own"),
            files("none")
        );
        let listeners: Vec<raw::Listener> = serde_saphyr::from_str(&listeners).unwrap();
        let found = of_authorities(&listeners, folder.path());
        let [finding] = &found[..] else { panic!("{found:?}") };
        assert_eq!(finding.state, State::Warning);
        assert!(
            finding.subject.starts_with("listener public (") && finding.subject.ends_with("own)"),
            "{}",
            finding.subject
        );
        assert!(finding.fix.contains("CA:FALSE"), "{}", finding.fix);
    }

    #[test]
    fn a_certificate_near_its_expiry_is_reported() {
        let clock = Clock::manual(Timestamp::from_secs(1_000_000_000));
        let day = 86_400;
        let now = clock.now().as_secs();
        for (from, until, state) in [
            (now - 60 * day, now + 30 * day, State::Good),
            (now - 80 * day, now + 10 * day, State::Warning),
            // A certificate of a service mesh.
            (now - 3_600, now + 23 * 3_600, State::Good),
            (now - 20 * 3_600, now + 4 * 3_600, State::Warning),
            (now - 90 * day, now, State::Fault),
            (now + 1, now + 90 * day, State::Fault),
        ] {
            let valid = (Timestamp::from_secs(from), Timestamp::from_secs(until));
            assert_eq!(finding("it", valid, &clock).state, state, "{from} {until}");
        }
    }
}
