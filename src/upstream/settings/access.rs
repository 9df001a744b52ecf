//! Where an upstream is, how it proves itself and who we are there: as `url`, `tls` and `credential` tell, or a kubeconfig.

use std::fmt;

use http::{HeaderValue, uri};
use url::{Host, Url};

use super::{super::account_token::AccountToken, kubeconfig, tls::Material};
use crate::config::{
    raw,
    report::At,
    resolver::{Resolver, Secret},
};

/// What an entry of `upstreams` says of its peer.
pub(crate) struct Access {
    pub(super) target: Target,
    /// `None`: in clear text.
    pub(super) tls: Option<Material>,
    pub(super) credential: Option<Credential>,
}

/// Who we are there, unless by a certificate.
pub(super) enum Credential {
    /// What stands in the configuration, as the value of `Authorization`.
    Written(HeaderValue),
    Requested(AccountToken),
}

impl Access {
    /// Reads what the entry at `at` names through `resolver`, certificates apart. All problems are reported, and any gives
    /// `None`.
    pub(crate) fn resolve(raw: &raw::Upstream, at: &At, resolver: &mut Resolver) -> Option<Self> {
        match &raw.kubeconfig {
            Some(kubeconfig) => kubeconfig::read(kubeconfig, &at.key("kubeconfig"), resolver),
            None => Self::written(raw, at, resolver),
        }
    }

    /// The address.
    pub(crate) fn url(&self) -> &Url {
        &self.target.url
    }

    /// What TLS is set up from, where it is spoken.
    pub(crate) fn tls(&self) -> Option<&Material> {
        self.tls.as_ref()
    }

    fn written(raw: &raw::Upstream, at: &At, resolver: &mut Resolver) -> Option<Self> {
        // That there is one, or a kubeconfig, is checked with the configuration as a whole.
        let target = Target::parse(raw.url.as_ref()?).map_err(|why| {
            let problem = resolver.error(&at.key("url"), why);
            problem.help("write `http://host:port` or `https://host:port`, without a path");
        });
        let target = target.ok();
        let credential = raw.credential.as_ref().map(|credential| match credential {
            raw::UpstreamCredential::Bearer(source) => {
                let at = at.key("credential").key("bearer");
                bearer(&resolver.secret(&at, source)?, source, &at, resolver).map(Credential::Written)
            }
            raw::UpstreamCredential::ServiceAccount(account) => Some(Credential::Requested(AccountToken::new(account))),
        });
        let secure = target.as_ref().is_none_or(Target::is_secure);
        if !secure && raw.tls.is_some() {
            resolver
                .error(&at.key("tls"), "`tls` is set, but `url` is not https")
                .help("write `https://` in `url`, or leave `tls` out");
        }
        if let Some(target) = &target
            && !secure
            && raw.credential.is_some()
            && !target.is_loopback()
        {
            resolver
                .warning(&at.key("credential"), "the credential is sent in clear text")
                .help("use `https://` in `url`");
        }
        let credential = match credential {
            Some(credential) => Some(credential?),
            None => None,
        };
        let target = target.filter(|_| secure || raw.tls.is_none())?;
        let default = raw::ClientTls::default();
        let tls = raw.tls.as_ref().unwrap_or(&default);
        let tls = secure.then(|| Material::written(tls, &target.host, &at.key("tls"), resolver));
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
    /// What is wrong is said without the text, which may hold a password.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let url = Url::parse(text).map_err(|_| "is not a URL")?;
        let scheme = match url.scheme() {
            "http" => uri::Scheme::HTTP,
            "https" => uri::Scheme::HTTPS,
            _ => return Err("is neither http nor https"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("contains a user name or password, which is no credential of an upstream");
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("contains more than scheme, host and port; the path of each request is passed on as it is");
        }
        let (Some(host), Some(port @ 1..)) = (url.host().map(|host| host.to_owned()), url.port_or_known_default())
        else {
            return Err("names no host, or port 0");
        };
        let authority = url.authority();
        let origin = HeaderValue::from_str(&url.origin().ascii_serialization());
        let (Ok(host_header), Ok(origin), Ok(uri)) = (HeaderValue::from_str(authority), origin, authority.parse())
        else {
            return Err("names a host that HTTP cannot carry");
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

/// The value of `Authorization`. `named` is what the token is called in messages.
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

/// The same of a token; `None` if it has characters that none can have.
pub(in crate::upstream) fn bearer_line(token: &[u8]) -> Option<HeaderValue> {
    // The token68 form of RFC 6750 section 2.1, which is what makes it one word on the wire.
    if token.is_empty() || !token.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte)) {
        return None;
    }
    crate::egress::bearer(token)
}
