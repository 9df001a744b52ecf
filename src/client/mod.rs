//! Commands that run on the caller's machine and talk to a Doorward elsewhere: in a person's shell, or in the step of a
//! task.

pub mod login;
pub mod token;

use std::{
    fmt,
    io::{self, Write as _},
    path::Path,
};

use rustls::CertificateError;

use self::login::Address;
use crate::egress::{Egress, EgressError, Proxy, is_of_authority};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Writes a message to standard error. Unlike `eprintln!`, does not panic if standard error is closed.
fn tell(said: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "doorward: {said}");
}

/// The HTTP client for a Doorward. Trusts the authorities in `ca`, or else those of the system.
fn egress(server: &Address, ca: Option<&Path>) -> Result<Egress, String> {
    let proxy = if server.as_str().starts_with("https") { Proxy::of_person()? } else { Proxy::default() };
    let egress = Egress::new(proxy)?;
    match ca {
        None => Ok(egress),
        Some(ca) => {
            let authorities = std::fs::read(ca).map_err(|error| error.to_string());
            let trusting = authorities.and_then(|authorities| egress.trusting(&authorities));
            trusting.map_err(|error| format!("{}: {error}", ca.display()))
        }
    }
}

/// The fault of the server's certificate that made a call fail.
#[derive(Clone, Copy, Debug)]
enum CertificateFault {
    /// It is not yet valid, or has expired.
    Time,
    /// It does not have the name that was called.
    Name,
    /// It is a certificate authority's own certificate.
    NoServers,
    /// No authority that this machine trusts has signed it.
    Authority,
}

/// The remedy for [`CertificateFault::Time`].
const RENEW: &str = "the operator of Doorward must renew its certificate, unless the clock of this machine is wrong";

impl CertificateFault {
    fn of(error: &EgressError) -> Option<Self> {
        let error = error.of_tls()?;
        let rustls::Error::InvalidCertificate(why) = error else { return None };
        Some(match why {
            _ if is_of_authority(error) => Self::NoServers,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Time,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Self::Name,
            _ => Self::Authority,
        })
    }
}
