//! The proxy for Doorward's own calls to other services, as the environment names it: `HTTPS_PROXY` (or `ALL_PROXY`),
//! and `NO_PROXY` for destinations without it. `HTTP_PROXY` has no effect: the only clear-text calls are to loopback,
//! which no proxy could reach.

use std::{
    fmt,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

/// Which calls use a proxy, and which one. By default none does.
#[derive(Clone, Debug, Default)]
pub struct Proxy(Option<Arc<Rules>>);

#[derive(Debug)]
struct Rules {
    matcher: Matcher,
    /// The variable that names the proxy.
    variable: &'static str,
    /// The proxy without its credential.
    address: Uri,
}

impl Proxy {
    /// Reads the variables of the process. A value that is not the address of an HTTP proxy is an error, not a call
    /// without the proxy.
    pub fn from_environment() -> Result<Self, String> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// The same for a program on a person's machine. `ALL_PROXY` often names what other programs speak, such as SOCKS,
    /// and is then ignored, as by kubectl, which never reads it.
    pub fn of_person() -> Result<Self, String> {
        Self::read_of_person(|name| std::env::var(name).ok())
    }

    fn read_of_person(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let speaks = |value: &String| value.trim().is_empty() || address_of(value).is_some();
        Self::read(|name| variable(name).filter(|value| !name.eq_ignore_ascii_case("ALL_PROXY") || speaks(value)))
    }

    /// `variable` returns the value of a variable.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        // Upper case takes precedence, as in most programs; an empty value means that there is no proxy.
        let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
        let Some((name, proxy)) = names.into_iter().find_map(|name| Some((name, variable(name)?))) else {
            return Ok(Self(None));
        };
        if proxy.trim().is_empty() {
            return Ok(Self(None));
        }
        let Some(address) = address_of(&proxy) else {
            // The value is not quoted, as it may contain a password.
            return Err(format!(
                "`{name}` is not the address of an HTTP proxy; write `http://host:port` or `https://host:port`"
            ));
        };
        let without = ["NO_PROXY", "no_proxy"].into_iter().find_map(variable).unwrap_or_default();
        // The matcher does not know `*.example.com`, which means the same as `.example.com`.
        let without: Vec<&str> = without.split(',').map(|entry| entry.trim().trim_start_matches("*.")).collect();
        let matcher = Matcher::builder().https(proxy.trim()).no(without.join(",")).build();
        Ok(Self(Some(Arc::new(Rules { matcher, variable: name, address }))))
    }

    /// Whether there is a proxy.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Whether Doorward connects to the proxy itself over TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.0.as_ref().is_some_and(|rules| rules.address.scheme_str() == Some("https"))
    }

    fn intercept(&self, destination: &Uri) -> Option<Intercept> {
        self.0.as_ref().filter(|_| !is_loopback(destination))?.matcher.intercept(destination)
    }
}

/// Without the credential.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("none"),
            Some(rules) => write!(f, "{} (`{}`)", rules.address, rules.variable),
        }
    }
}

/// The address of an HTTP proxy in a variable, without its credential.
fn address_of(proxy: &str) -> Option<Uri> {
    let all = Matcher::builder().https(proxy.trim()).build();
    let address = all.intercept(&Uri::from_static("https://any.invalid/")).map(|intercept| intercept.uri().clone());
    address.filter(|address| matches!(address.scheme_str(), Some("http" | "https")))
}

fn is_loopback(destination: &Uri) -> bool {
    let host = destination.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

/// Why a proxy gave no connection.
#[derive(Debug, thiserror::Error)]
#[error(
    "the proxy {proxy} opened no tunnel to {destination}; it must allow CONNECT there and take the credential in its \
     address, or `NO_PROXY` must name the host"
)]
struct NoTunnel {
    proxy: Proxy,
    destination: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Connects to destinations, through the proxy where the rules say so.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    direct: HttpConnector,
    /// The connector to the proxy.
    hop: HttpsConnector<HttpConnector>,
    proxy: Proxy,
}

impl Connector {
    /// `hop` trusts the authorities that may vouch for the proxy.
    pub(super) fn new(proxy: Proxy, hop: HttpsConnector<HttpConnector>) -> Self {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        Self { direct, hop, proxy }
    }
}

type Connection = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let Some(intercept) = self.proxy.intercept(&destination) else {
            let connecting = self.direct.call(destination);
            return Box::pin(async { Ok(MaybeHttpsStream::Http(connecting.await?)) });
        };
        let mut tunnel = Tunnel::new(intercept.uri().clone(), self.hop.clone());
        if let Some(credential) = intercept.basic_auth() {
            tunnel = tunnel.with_auth(credential.clone());
        }
        let proxy = self.proxy.clone();
        Box::pin(async move {
            let to = format!("{}:{}", destination.host().unwrap_or_default(), destination.port_u16().unwrap_or(443));
            let connected = tunnel.call(destination).await;
            connected.map_err(|error| NoTunnel { proxy, destination: to, source: error.into() }.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(variables: &[(&str, &str)]) -> Result<Proxy, String> {
        Proxy::read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_says_what_goes_by_which_proxy() {
        let no = "corp.test, .dot.test,*.star.test,10.0.0.0/8,192.0.2.1";
        let by =
            proxy(&[("HTTPS_PROXY", "http://u:p@proxy.test:3128"), ("NO_PROXY", no), ("ALL_PROXY", "http://a.test")]);
        let by = by.unwrap();
        for (url, proxied) in [
            ("https://id.test/keys", true),
            ("https://notcorp.test/", true),
            ("https://corp.test/", false),
            ("https://a.corp.test/", false),
            ("https://a.dot.test/", false),
            ("https://a.star.test/", false),
            ("https://10.1.2.3:8443/", false),
            ("https://11.1.2.3/", true),
            ("https://192.0.2.1/", false),
            ("https://localhost:1/", false),
            ("http://127.0.0.1:1/", false),
            ("https://[::1]:1/", false),
            ("https://[2001:db8::1]/", true),
        ] {
            assert_eq!(by.intercept(&url.parse().unwrap()).is_some(), proxied, "{url}");
        }
        assert!(
            proxy(&[("NO_PROXY", "*"), ("https_proxy", "p.test:1")])
                .unwrap()
                .intercept(&"https://a.test".parse().unwrap())
                .is_none()
        );
        assert!(proxy(&[("all_proxy", "p.test:1")]).unwrap().intercept(&"https://a.test".parse().unwrap()).is_some());
        for none in
            [&[][..], &[("HTTPS_PROXY", ""), ("ALL_PROXY", "http://a.test")], &[("HTTP_PROXY", "http://a.test")]]
        {
            assert_eq!(proxy(none).unwrap().to_string(), "none");
        }
    }

    /// `ssh -D` and desktops set it for programs that speak SOCKS, and no command for people worked there.
    #[test]
    fn all_proxy_of_another_kind_says_nothing_to_programs_of_people() {
        let read = |variables: &[(&str, &str)]| {
            Proxy::read_of_person(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        for name in ["ALL_PROXY", "all_proxy"] {
            for value in ["socks5h://127.0.0.1:1080", "socks://127.0.0.1:1080/", "socks5://user:hunter2@proxy.test", ""]
            {
                assert_eq!(read(&[(name, value)]).unwrap().to_string(), "none", "{name}={value}");
            }
            let by = read(&[(name, "http://proxy.test:3128")]).unwrap();
            assert_eq!(by.to_string(), format!("http://proxy.test:3128/ (`{name}`)"));
            assert!(proxy(&[(name, "socks5://127.0.0.1:1080")]).is_err(), "a server is told at its start");
        }
        assert!(read(&[("HTTPS_PROXY", "socks5://127.0.0.1:1080")]).is_err());
    }

    #[test]
    fn the_credential_of_a_proxy_is_never_printed() {
        let good = proxy(&[("HTTPS_PROXY", "http://user:hunter2@proxy.test:3128")]).unwrap();
        assert_eq!(good.to_string(), "http://proxy.test:3128/ (`HTTPS_PROXY`)");
        let intercept = good.intercept(&"https://a.test".parse().unwrap()).unwrap();
        assert!(intercept.basic_auth().unwrap().is_sensitive());
        for bad in [
            "socks5://user:hunter2@proxy.test",
            "ftp://user:hunter2@proxy.test",
            "http://user:hunter2@",
            "user:hunter2 @x",
        ] {
            let why = proxy(&[("HTTPS_PROXY", bad)]).unwrap_err();
            assert!(why.contains("`HTTPS_PROXY`") && !why.contains("hunter2"), "{bad}: {why}");
        }
        assert!(!format!("{good:?}").contains("hunter2"));
    }
}
