//! An upstream as resolved from the configuration: address, TLS, credential and limits.

mod access;
mod kubeconfig;
mod tls;

use std::{fmt, hash, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use url::Host;

use self::access::Credential;
pub(crate) use self::{
    access::Access,
    tls::{TlsClient, TlsIdentity},
};
pub(super) use self::{
    access::{Authority, bearer_line},
    tls::Tls,
};
use super::{
    UpstreamError, UpstreamErrorKind,
    account_token::AccountToken,
    progress::{Pace, Ticks},
};
use crate::{
    config::{raw, report::At, resolver::Resolver, values::Span},
    error::{Reason, Rejection},
    rbac::PRINTS,
};

/// Where requests are sent, and how.
pub struct Upstream {
    name: Arc<str>,
    pub(super) identity: Arc<Identity>,
    pub(super) tls: Option<Tls>,
    pub(super) authority: Authority,
    credential: Option<Credential>,
    default_service_account: Arc<str>,
    host: Option<raw::UpstreamHost>,
    /// Time to connect, including TLS.
    pub(super) connect_timeout: Duration,
    /// From the end of the request to the head of the response.
    pub(super) response_timeout: Ticks,
    /// How long an unused connection is kept.
    pub(super) idle_timeout: Ticks,
    /// How old a connection may become before it takes no more requests.
    pub(super) max_age: Ticks,
    /// How many connections each worker may have.
    pub(super) max_connections: u32,
    /// How long a streamed body may make no progress.
    pub(super) stream_idle_timeout: Ticks,
    /// How slowly the body of a request may come.
    pub(super) body_pace: Pace,
    /// How long a watch may make no progress.
    pub(super) long_idle_timeout: Ticks,
    /// How long an upgraded connection may make no progress.
    pub(super) upgrade_idle_timeout: Duration,
    /// How long a connection may be quiet until TCP asks whether the upstream is still there.
    pub(super) tcp_keepalive: Duration,
}

/// The key of the connection pools: connections with the same identity are interchangeable. It covers the configuration
/// entry, whose limits apply to the pool, the peer, how it is verified, and the client certificate. So a connection
/// that was opened with one client certificate never carries a request that must use another.
#[derive(Debug)]
pub(super) struct Identity {
    hash: u64,
    name: Arc<str>,
    pub(super) host: Host<String>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    tls: Option<TlsIdentity>,
}

/// The HTTP version that is spoken to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    /// As negotiated by TLS; HTTP/1.1 in clear text.
    Negotiated,
    Http1,
    Http2,
}

/// Where an upstream is, regardless of its credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: Arc<str>,
    origin: HeaderValue,
}

impl Place {
    /// `name` is its name in the configuration; `origin` is the scheme, host and port of its address.
    pub fn new(name: impl Into<Arc<str>>, origin: HeaderValue) -> Self {
        Self { name: name.into(), origin }
    }
}

impl Upstream {
    /// Resolves an entry of `upstreams`. Files are read through `resolver`. All problems are reported, and any of them
    /// gives `None`. `at` is the place of the entry.
    pub fn resolve(raw: &raw::Upstream, limits: &raw::Limits, at: &At, resolver: &mut Resolver) -> Option<Arc<Self>> {
        let access = Access::resolve(raw, at, resolver);
        let protocol = match raw.protocol {
            None => Protocol::Negotiated,
            Some(raw::UpstreamProtocol::Http1) => Protocol::Http1,
            Some(raw::UpstreamProtocol::Http2) => Protocol::Http2,
        };
        let tls = access.as_ref().and_then(|access| access.tls.as_ref());
        let tls = tls.map(|material| Tls::resolve(material, protocol, resolver));
        let mut span = |key, value: Span| {
            if value.get().is_zero() {
                let error = resolver.error(&at.key(key), format!("`{key}` is zero"));
                error.help("leave it out for the default");
            }
            value.get()
        };
        let connect_timeout = span("connect_timeout", raw.connect_timeout);
        let response_timeout = span("response_timeout", raw.response_timeout);
        let idle_timeout = span("idle_timeout", raw.idle_timeout);
        let max_age = span("max_age", raw.max_age);
        let max_connections = raw.max_connections;
        if max_connections == 0 {
            resolver
                .error(&at.key("max_connections"), "`max_connections` is zero, so that nothing could be sent")
                .help("leave it out for the default");
        }

        let Access { target, credential, .. } = access?;
        let (tls, tls_identity) = match tls {
            Some(tls) => tls.map(|(tls, identity)| (Some(tls), Some(identity)))?,
            None => (None, None),
        };
        let valid = max_connections > 0
            && [connect_timeout, response_timeout, idle_timeout, max_age].iter().all(|span| !span.is_zero());
        valid.then(|| {
            let name: Arc<str> = raw.name.as_str().into();
            Arc::new(Self {
                identity: Arc::new(Identity::new(&name, target.host, target.port, protocol, tls_identity)),
                name,
                tls,
                authority: target.authority,
                credential,
                default_service_account: raw.default_service_account().into(),
                host: raw.host,
                connect_timeout,
                response_timeout: Ticks::covering(response_timeout),
                idle_timeout: Ticks::covering(idle_timeout),
                max_age: Ticks::covering(max_age),
                max_connections,
                stream_idle_timeout: Ticks::covering(limits.stream_idle_timeout.get()),
                body_pace: Pace::new(limits.body_timeout.get(), limits.body_min_rate.0),
                long_idle_timeout: Ticks::covering(limits.upgrade_idle_timeout.get()),
                upgrade_idle_timeout: limits.upgrade_idle_timeout.get(),
                tcp_keepalive: limits.tcp_keepalive.get(),
            })
        })
    }

    /// The upstream's own origin, for requests that a page served by Doorward makes to it.
    pub fn origin(&self) -> &HeaderValue {
        &self.authority.origin
    }

    /// Its name and address.
    pub fn place(&self) -> Place {
        Place::new(Arc::clone(&self.name), self.authority.origin.clone())
    }

    /// Whether `other` is the same server, at the same address and under the same TLS name, whatever its credential.
    pub fn is_at_place_of(&self, other: &Self) -> bool {
        let (own, its) = (&self.identity, &other.identity);
        let name = |identity: &Identity| identity.tls.as_ref().map(|tls| tls.server_name.clone());
        own.host == its.host && own.port == its.port && name(own) == name(its)
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The value of `Authorization` of every request to it, if Doorward has a credential for it.
    pub fn authorization(&self) -> Result<Option<HeaderValue>, UpstreamError> {
        match &self.credential {
            None => Ok(None),
            Some(Credential::Written(line)) => Ok(Some(line.clone())),
            Some(Credential::Requested(token)) => match token.authorization() {
                Some(line) => Ok(Some(line)),
                None => Err(UpstreamError::new(UpstreamErrorKind::NoCredential, &self.name)),
            },
        }
    }

    /// The service account token that it is called with, if Doorward requests one.
    pub(crate) fn account_token(&self) -> Option<&AccountToken> {
        match &self.credential {
            Some(Credential::Requested(token)) => Some(token),
            Some(Credential::Written(_)) | None => None,
        }
    }

    /// Continues with the token that the same upstream held in the previous configuration, if it is still for the same
    /// account.
    pub(crate) fn keep_token_of(&self, before: &Self) {
        if self.place() == before.place()
            && let (Some(token), Some(held)) = (self.account_token(), before.account_token())
        {
            token.keep(held);
        }
    }

    /// The service account of Tekton runs there that do not name one.
    pub fn default_service_account(&self) -> &str {
        &self.default_service_account
    }

    /// Whether requests on routes of this kind have the host of the upstream's address, rather than the host that the
    /// client used.
    pub fn sees_own_host(&self, kind: raw::RouteKind) -> bool {
        let usual = match kind {
            raw::RouteKind::Kubernetes => return true,
            // An EventListener does not read the host, and an ingress or a mesh in front of it routes by its own name.
            raw::RouteKind::Webhook => raw::UpstreamHost::Own,
            raw::RouteKind::Dashboard | raw::RouteKind::Http => raw::UpstreamHost::Client,
        };
        self.host.unwrap_or(usual) == raw::UpstreamHost::Own
    }

    /// How long the upstream may take to begin its response.
    pub(crate) fn response_timeout(&self) -> Duration {
        self.response_timeout.span()
    }

    /// Whether requests to it carry a credential of Doorward's own: a token, or a client certificate.
    pub fn knows_us(&self) -> bool {
        self.credential.is_some() || self.identity.tls.as_ref().is_some_and(TlsIdentity::has_certificate)
    }

    /// The refusal when this upstream answers Doorward's own credential with 401. If that is a requested token, marks
    /// it for replacement.
    pub fn credential_refused(&self) -> Rejection {
        if let Some(token) = self.account_token() {
            token.refused();
        }
        self.unauthorized()
    }

    /// The refusal when Doorward's own credential got a 401, wherever that came from. The caller's credential is not at
    /// fault, so the caller must not see a 401, on which clients discard good tokens.
    pub(crate) fn unauthorized(&self) -> Rejection {
        Rejection::new(
            Reason::UpstreamCredential,
            format!("the upstream `{}` did not accept Doorward's own credential", self.name),
        )
        .fix("an operator should renew the credential of this upstream")
        .with_upstream_status(StatusCode::UNAUTHORIZED)
    }

    /// The refusal when this API server does not let Doorward impersonate the caller (403). The caller has no influence
    /// on the rights of Doorward's own account. `said` is for the log only, as it names that account.
    pub fn impersonation_refused(&self, said: String) -> Rejection {
        Rejection::new(
            Reason::UpstreamCredential,
            format!("the upstream `{}` does not let Doorward's own account make this request for you", self.name),
        )
        .fix(format!("an operator should run `doorward rbac --check`, and apply the roles that {PRINTS}"))
        .with_upstream_status(StatusCode::FORBIDDEN)
        .because(said)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Identity {
    fn new(name: &Arc<str>, host: Host<String>, port: u16, protocol: Protocol, tls: Option<TlsIdentity>) -> Self {
        let hash = {
            use hash::{Hash, Hasher};
            let mut hasher = hash::DefaultHasher::new();
            (name, &host, port, protocol, &tls).hash(&mut hasher);
            hasher.finish()
        };
        Self { hash, name: Arc::clone(name), host, port, protocol, tls }
    }
}

impl hash::Hash for Identity {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.hash == other.hash
                && self.name == other.name
                && self.port == other.port
                && self.protocol == other.protocol
                && self.host == other.host
                && self.tls == other.tls)
    }
}

impl Eq for Identity {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::values::SecretSource;

    fn raw(url: &str) -> raw::Upstream {
        raw::Upstream { url: Some(url.to_owned()), ..serde_json::from_str(r#"{"name": "cluster"}"#).unwrap() }
    }

    fn resolve(raw: &raw::Upstream, base: &Path) -> (Option<Arc<Upstream>>, Vec<(String, String)>) {
        let mut resolver = Resolver::new(base);
        let at = At::root().key("upstreams").index(0);
        Access::check_address(raw, &at, &mut resolver.report);
        let upstream = Upstream::resolve(raw, &raw::Limits::default(), &at, &mut resolver);
        let problems =
            resolver.report.problems().iter().map(|p| (p.at.as_str().to_owned(), p.message.clone())).collect();
        assert_eq!(upstream.is_none(), resolver.report.has_errors());
        (upstream, problems)
    }

    fn identity_files(dir: &Path, name: &str) -> raw::CertificateFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let files =
            raw::CertificateFiles { chain: dir.join(format!("{name}.crt")), key: dir.join(format!("{name}.key")) };
        std::fs::write(&files.chain, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn urls_with_more_than_an_authority_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for url in [
            "",
            "host:80",
            "ftp://host",
            "http://",
            "http://host/path",
            "http://host/?q",
            "http://host/#f",
            "http://user@host",
            "http://user:secret@host",
        ] {
            let (upstream, problems) = resolve(&raw(url), dir.path());
            assert!(upstream.is_none(), "{url}");
            assert_eq!(problems[0].0, "/upstreams/0/url");
            assert!(!problems[0].1.contains("secret"));
        }
        for url in ["http://host", "http://host/", "http://host:8080", "https://10.0.0.1:6443", "https://[::1]:6443"] {
            assert!(resolve(&raw(url), dir.path()).0.is_some(), "{url}");
        }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut entry = raw("http://host/path");
        entry.connect_timeout = Span(Duration::ZERO);
        entry.max_connections = 0;
        entry.credential = Some(raw::UpstreamCredential::Bearer(SecretSource::File("absent".into())));
        let places: Vec<_> = resolve(&entry, dir.path()).1.into_iter().map(|(at, _)| at).collect();
        assert_eq!(
            places,
            [
                "/upstreams/0/url",
                "/upstreams/0/credential/bearer",
                "/upstreams/0/connect_timeout",
                "/upstreams/0/max_connections"
            ]
        );
    }

    /// If `url` leads to an ingress controller, the ingress may know the EventListener only by the name that senders
    /// use, which must then be forwarded.
    #[test]
    fn an_upstream_gets_its_own_host_on_webhook_routes_by_default() {
        use raw::{
            RouteKind::{Dashboard, Http, Kubernetes, Webhook},
            UpstreamHost::{Client, Own},
        };
        let dir = tempfile::tempdir().unwrap();
        for (host, own) in [
            (None, &[Webhook, Kubernetes][..]),
            (Some(Client), &[Kubernetes]),
            (Some(Own), &[Webhook, Dashboard, Http, Kubernetes]),
        ] {
            let upstream = resolve(&raw::Upstream { host, ..raw("http://host") }, dir.path()).0.unwrap();
            for kind in [Webhook, Dashboard, Http, Kubernetes] {
                assert_eq!(upstream.sees_own_host(kind), own.contains(&kind), "{host:?} {kind:?}");
            }
        }
    }

    #[test]
    fn the_credential_is_one_sensitive_header_value() {
        let dir = tempfile::tempdir().unwrap();
        let mut entry = raw("https://host");
        entry.credential = Some(raw::UpstreamCredential::Bearer(SecretSource::File("token".into())));
        std::fs::write(dir.path().join("token"), "abc.def-_~+/=\n").unwrap();
        let upstream = resolve(&entry, dir.path()).0.unwrap();
        let credential = upstream.authorization().unwrap().unwrap();
        assert_eq!(credential, "Bearer abc.def-_~+/=");
        assert!(credential.is_sensitive());
        assert!(!format!("{upstream:?}").contains("abc"));

        for bad in ["two words", "line\nline", "ünicode"] {
            std::fs::write(dir.path().join("token"), bad).unwrap();
            let (upstream, problems) = resolve(&entry, dir.path());
            assert!(upstream.is_none() && !problems[0].1.contains(bad), "{problems:?}");
        }
    }

    #[test]
    fn clear_text_excludes_tls_and_a_credential_that_leaves_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "t").unwrap();
        let mut entry = raw("http://host");
        entry.tls = Some(raw::ClientTls::default());
        assert!(resolve(&entry, dir.path()).0.is_none());
        entry.tls = None;
        entry.credential = Some(raw::UpstreamCredential::Bearer(SecretSource::File("token".into())));
        for (url, good) in [
            ("http://host", false),
            ("http://x.localhost", false),
            ("http://localhost", true),
            ("http://127.0.0.1:80", true),
        ] {
            entry.url = Some(url.to_owned());
            assert_eq!(resolve(&entry, dir.path()).0.is_some(), good, "{url}");
        }
    }

    #[test]
    fn the_pool_key_distinguishes_entries_addresses_names_and_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let alice = identity_files(dir.path(), "alice");
        let bob = identity_files(dir.path(), "bob");
        let with = |change: &dyn Fn(&mut raw::Upstream)| {
            let mut entry = raw("https://host:6443");
            entry.tls = Some(raw::ClientTls { certificate: Some(alice.clone()), ..Default::default() });
            change(&mut entry);
            Arc::clone(&resolve(&entry, dir.path()).0.unwrap().identity)
        };
        let base = with(&|_| {});
        assert_eq!(base, with(&|entry| entry.response_timeout = Span::from_secs(1)));
        let tls = |change: &dyn Fn(&mut raw::ClientTls)| with(&|entry| change(entry.tls.as_mut().unwrap()));
        for (what, other) in [
            ("entry", with(&|entry| entry.name = "other".to_owned())),
            ("host", with(&|entry| entry.url = Some("https://other:6443".to_owned()))),
            ("port", with(&|entry| entry.url = Some("https://host:6444".to_owned()))),
            ("scheme", with(&|entry| (entry.url, entry.tls) = (Some("http://host:6443".to_owned()), None))),
            ("protocol", with(&|entry| entry.protocol = Some(raw::UpstreamProtocol::Http1))),
            ("server name", tls(&|tls| tls.server_name = Some("other".to_owned()))),
            ("authorities", tls(&|tls| tls.ca = Some(alice.chain.clone()))),
            ("client certificate", tls(&|tls| tls.certificate = Some(bob.clone()))),
            ("no client certificate", tls(&|tls| tls.certificate = None)),
        ] {
            assert_ne!(base, other, "{what}");
        }
        std::fs::copy(&bob.chain, &alice.chain).unwrap();
        std::fs::copy(&bob.key, &alice.key).unwrap();
        assert_ne!(base, with(&|_| {}), "renewed files");
    }

    /// As between the two copies of a renewal.
    #[test]
    fn a_key_of_another_certificate_is_called_so() {
        let dir = tempfile::tempdir().unwrap();
        let (alice, bob) = (identity_files(dir.path(), "alice"), identity_files(dir.path(), "bob"));
        let mut entry = raw("https://host");
        let certificate = raw::CertificateFiles { key: bob.key, ..alice };
        entry.tls = Some(raw::ClientTls { certificate: Some(certificate), ..Default::default() });
        let (upstream, problems) = resolve(&entry, dir.path());
        assert!(upstream.is_none());
        assert!(problems[0].1.ends_with("the key does not belong to the certificate"), "{problems:?}");
    }

    #[test]
    fn certificates_and_keys_that_cannot_be_read_are_reported_without_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let alice = identity_files(dir.path(), "alice");
        std::fs::write(dir.path().join("junk"), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
        let mut entry = raw("https://host");
        let certificate =
            |chain: &Path, key: &Path| Some(raw::CertificateFiles { chain: chain.to_owned(), key: key.to_owned() });
        for (tls, place) in [
            (raw::ClientTls { ca: Some("junk".into()), ..Default::default() }, "/upstreams/0/tls/ca"),
            (raw::ClientTls { ca: Some("absent".into()), ..Default::default() }, "/upstreams/0/tls/ca"),
            (raw::ClientTls { server_name: Some("a b".into()), ..Default::default() }, "/upstreams/0/tls/server_name"),
            (
                raw::ClientTls { certificate: certificate(&alice.chain, Path::new("junk")), ..Default::default() },
                "/upstreams/0/tls/certificate/key",
            ),
            (
                raw::ClientTls { certificate: certificate(Path::new("junk"), &alice.key), ..Default::default() },
                "/upstreams/0/tls/certificate/chain",
            ),
        ] {
            entry.tls = Some(tls);
            let (upstream, problems) = resolve(&entry, dir.path());
            assert!(upstream.is_none());
            assert_eq!(problems[0].0, place);
            assert!(!problems[0].1.contains("c2VjcmV0"));
        }
    }
}
