//! Where an upstream is, how it is verified and how Doorward authenticates to it: from `url`, `tls` and `credential`,
//! or from a kubeconfig.

use std::{borrow::Cow, fmt};

use http::{HeaderValue, uri};
use url::{Host, Url};

use super::{super::account_token::AccountToken, kubeconfig, tls::Material};
use crate::config::{
    raw,
    report::{At, Report},
    resolver::{Resolver, Secret},
};

/// The address, TLS settings and credential of an entry of `upstreams`.
pub(crate) struct Access {
    pub(super) target: Target,
    /// `None` for clear text.
    pub(super) tls: Option<Material>,
    pub(super) credential: Option<Credential>,
}

/// Doorward's credential there, other than a certificate.
pub(super) enum Credential {
    /// The value of `Authorization` from the configuration.
    Written(HeaderValue),
    Requested(AccountToken),
}

impl Access {
    /// Reads what the entry at `at` names through `resolver`, except certificates. All problems are reported, and any
    /// of them gives `None`.
    pub(crate) fn resolve(raw: &raw::Upstream, at: &At, resolver: &mut Resolver) -> Option<Self> {
        match &raw.kubeconfig {
            Some(kubeconfig) => kubeconfig::read(kubeconfig, &at.key("kubeconfig"), resolver),
            None => Self::written(raw, at, resolver),
        }
    }

    /// Reports problems of the address in the entry at `at` and of the fields beside it, as far as they show without
    /// reading files.
    pub(crate) fn check_address(raw: &raw::Upstream, at: &At, report: &mut Report) {
        Target::written(raw, at, report);
    }

    /// The address.
    pub(crate) fn url(&self) -> &Url {
        &self.target.url
    }

    /// The TLS settings, if TLS is used.
    pub(crate) fn tls(&self) -> Option<&Material> {
        self.tls.as_ref()
    }

    fn written(raw: &raw::Upstream, at: &At, resolver: &mut Resolver) -> Option<Self> {
        // Problems of the address are reported by the check of the whole configuration.
        let target = Target::written(raw, at, &mut Report::default());
        let credential = raw.credential.as_ref().map(|credential| match credential {
            raw::UpstreamCredential::Bearer(source) => {
                let at = at.key("credential").key("bearer");
                bearer(&resolver.secret(&at, source)?, source, &at, resolver).map(Credential::Written)
            }
            raw::UpstreamCredential::ServiceAccount(account) => Some(Credential::Requested(AccountToken::new(account))),
        });
        let credential = match credential {
            Some(credential) => Some(credential?),
            None => None,
        };
        let target = target?;
        let default = raw::ClientTls::default();
        let tls = raw.tls.as_ref().unwrap_or(&default);
        let tls = target.is_secure().then(|| Material::written(tls, &target.host, &at.key("tls"), resolver));
        Some(Self { target, tls, credential })
    }
}

/// Where connections go.
pub(super) struct Target {
    url: Url,
    pub(super) host: Host<String>,
    pub(super) port: u16,
    pub(super) authority: Authority,
}

/// The authority of the URL, in the forms that requests need.
pub(in crate::upstream) struct Authority {
    pub(in crate::upstream) host: HeaderValue,
    /// Scheme and host, as in `Origin`.
    pub(in crate::upstream) origin: HeaderValue,
    pub(in crate::upstream) uri: uri::Authority,
    pub(in crate::upstream) scheme: uri::Scheme,
}

impl Target {
    /// The target of an entry of `upstreams`, unless other fields conflict with it. All problems are reported.
    fn written(raw: &raw::Upstream, at: &At, report: &mut Report) -> Option<Self> {
        let target = match Self::parse(raw.url.as_ref()?) {
            Ok(target) => target,
            Err(why) => {
                report.error(&at.key("url"), format!("the address {why}")).help("write it as `https://host:port`");
                return None;
            }
        };
        let is_clear = !target.is_secure();
        let has_tls = is_clear && raw.tls.is_some();
        if has_tls {
            report
                .error(&at.key("tls"), "`tls` cannot be used with an `http` address")
                .help("write `https://` in `url`");
        }
        let shows_credential = is_clear && raw.credential.is_some() && !target.is_loopback();
        if shows_credential {
            report
                .error(&at.key("url"), "Doorward's credential would cross the network in clear text")
                .help("use `https`, or drop `credential`");
        }
        (!has_tls && !shows_credential).then_some(target)
    }

    /// The error does not quote the text, which may contain a password.
    pub(super) fn parse(text: &str) -> Result<Self, Cow<'static, str>> {
        let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        let scheme = match url.scheme() {
            "http" => uri::Scheme::HTTP,
            "https" => uri::Scheme::HTTPS,
            _ => return Err("is neither `http` nor `https`".into()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user or a password, which cannot be an upstream's credential".into());
        }
        if url.path() != "/" {
            return Err("has a path, but requests have their own".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has a query or a fragment".into());
        }
        // A URL with either scheme always has a host.
        let (Some(host), Some(port @ 1..)) = (url.host().map(|host| host.to_owned()), url.port_or_known_default())
        else {
            return Err("has port 0, which cannot be connected to".into());
        };
        let authority = url.authority();
        let origin = HeaderValue::from_str(&url.origin().ascii_serialization());
        let (Ok(host_header), Ok(origin), Ok(uri)) = (HeaderValue::from_str(authority), origin, authority.parse())
        else {
            return Err("has a host that HTTP cannot carry".into());
        };
        let authority = Authority { host: host_header, origin, uri, scheme };
        Ok(Self { url, host, port, authority })
    }

    pub(super) fn is_secure(&self) -> bool {
        self.authority.scheme == uri::Scheme::HTTPS
    }

    pub(super) fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        }
    }
}

/// The value of `Authorization`. `named` is how messages call the token.
pub(super) fn bearer(
    token: &Secret,
    named: impl fmt::Display,
    at: &At,
    resolver: &mut Resolver,
) -> Option<HeaderValue> {
    let line = bearer_line(token.expose());
    if line.is_none() {
        resolver
            .error(at, format!("{named} holds characters that a bearer token cannot have"))
            .help("it must hold the token alone, on one line (RFC 6750 section 2.1)");
    }
    line
}

/// The same for a plain token; `None` if it has characters that no token can have.
pub(in crate::upstream) fn bearer_line(token: &[u8]) -> Option<HeaderValue> {
    // The token68 form of RFC 6750 section 2.1, which cannot be split on the wire.
    if token.is_empty() || !token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte)) {
        return None;
    }
    crate::egress::bearer(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_is_refused_by_what_is_wrong_with_it() {
        for (text, why) in [
            ("https://host:99999", "is not a URL: invalid port number"),
            ("https://10.0.0.300", "is not a URL: invalid IPv4 address"),
            ("https://", "is not a URL: empty host"),
            ("host", "is not a URL: relative URL without a base"),
            ("http://host:0", "has port 0, which cannot be connected to"),
        ] {
            assert_eq!(Target::parse(text).err().as_deref(), Some(why), "{text}");
        }
    }
}
