//! The address at which browsers reach Doorward, through whatever is in front of it: an ingress, a load balancer,
//! nginx.
//!
//! Doorward's page [`probe`] reports what arrived of a request, which shows what was lost on the way.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use url::Url;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Check, Finding, certificates};
use crate::{
    clock::{Clock, Timestamp},
    egress,
    endpoints::probe::{self, Arrived},
    error::Reason,
    sessions::Origin,
};

/// For each request, up to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

const MAX_ANSWER: usize = 64 << 10;

/// The size of cookies that a browser may send if it visits several servers of one domain. nginx accepts lines of 8 KiB
/// by default.
const COOKIES: usize = 6 << 10;

/// The address at which browsers reach Doorward.
#[derive(Clone, Debug)]
pub struct Public {
    origin: Origin,
    host: String,
    port: u16,
    is_tls: bool,
    /// The authorities for the certificate there; `None`: those of the system.
    ca: Option<PathBuf>,
}

impl Public {
    /// Parses `https://HOST` or, on this machine, `http://HOST:PORT`.
    pub fn parse(address: &str, ca: Option<PathBuf>) -> Result<Self, String> {
        let wrong = || {
            format!("`{address}` is not an address of Doorward; write `https://` and the host at which people reach it")
        };
        let url = Url::parse(address).map_err(|_| wrong())?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong());
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return Err(wrong()) };
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let (origin, is_tls) = match url.scheme() {
            "https" => (Origin::https(&authority), true),
            "http" => (Origin::loopback(&authority), false),
            _ => (None, false),
        };
        let origin = origin.ok_or_else(wrong)?;
        Ok(Self { origin, host: host.trim_matches(['[', ']']).to_owned(), port, is_tls, ca })
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The host, without the port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Connects, sends one request with these headers to [`probe::PATH`], and reads the answer.
    async fn probe(&self, headers: &[(HeaderName, HeaderValue)]) -> Result<Probed, String> {
        let exchange = async {
            let stream = TcpStream::connect((&*self.host, self.port)).await.map_err(|error| error.to_string())?;
            let ends = Ends::of(&stream).map_err(|error| error.to_string())?;
            if !self.is_tls {
                let (status, body) = self.send(stream, headers).await?;
                return Ok(Probed { ends, certificate: None, status, body });
            }
            let mut config = match &self.ca {
                None => egress::trust(None)?,
                Some(ca) => {
                    let authorities = std::fs::read(ca).map_err(|error| error.to_string());
                    let trusting = authorities.and_then(|authorities| egress::trust(Some(authorities.as_slice())));
                    trusting.map_err(|why| format!("{}: {why}", ca.display()))?
                }
            };
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            let name = match self.host.parse::<IpAddr>() {
                Ok(address) => ServerName::from(address),
                Err(_) => ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?,
            };
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
            let stream = stream.map_err(|error| {
                let of_tls = error.get_ref().and_then(|held| held.downcast_ref());
                let advice = if of_tls.is_some_and(egress::is_of_authority) { egress::NO_SERVERS } else { "" };
                format!("TLS: {error}{}{advice}", if advice.is_empty() { "" } else { "; " })
            })?;
            let chain = stream.get_ref().1.peer_certificates();
            let certificate = chain.and_then(|chain| chain.first()).and_then(validity);
            let (status, body) = self.send(stream, headers).await?;
            Ok(Probed { ends, certificate, status, body })
        };
        let late = |_| Err(format!("no answer within {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(late)
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<(StatusCode, Bytes), String> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let mut request = Request::get(probe::PATH).header(header::HOST, self.origin.authority());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
        connection.abort();
        Ok((status, body.to_bytes()))
    }
}

/// The addresses of a connection.
#[derive(Clone, Copy)]
struct Ends {
    /// The address of this machine.
    own: IpAddr,
    /// The address that the public name resolved to.
    public: IpAddr,
}

impl Ends {
    fn of(stream: &TcpStream) -> std::io::Result<Self> {
        let (own, public) = (stream.local_addr()?, stream.peer_addr()?);
        Ok(Self { own: own.ip().to_canonical(), public: public.ip().to_canonical() })
    }
}

/// The result of one request.
struct Probed {
    ends: Ends,
    /// The times between which the certificate is valid.
    certificate: Option<(Timestamp, Timestamp)>,
    status: StatusCode,
    body: Bytes,
}

impl Probed {
    /// Returns what Doorward reports, if it was Doorward that answered.
    fn arrived(&self) -> Result<Arrived, Lost> {
        if self.status == StatusCode::OK
            && let Ok(arrived) = serde_json::from_slice(&self.body)
        {
            return Ok(arrived);
        }
        let refused: Option<Refused> = serde_json::from_slice(&self.body).ok();
        let refused = refused.filter(|refused| Reason::ALL.iter().any(|reason| reason.as_str() == refused.reason));
        Err(refused.map_or_else(
            || format!("the answer is {}, and not Doorward's", self.status).into(),
            |Refused { reason, detail, fix }| Lost {
                why: format!("Doorward refuses it with {} `{reason}`: {detail}", self.status.as_u16()),
                fix,
            },
        ))
    }
}

/// The fields of a refusal by Doorward that are used here.
#[derive(Deserialize)]
struct Refused {
    reason: String,
    detail: String,
    fix: Option<String>,
}

/// Why it is not known what arrived.
#[derive(Debug)]
struct Lost {
    why: String,
    /// The remedy that Doorward itself suggests.
    fix: Option<String>,
}

impl From<String> for Lost {
    fn from(why: String) -> Self {
        Self { why, fix: None }
    }
}

impl Lost {
    /// Returns the finding. `before` says what was requested, and `fix` is the usual remedy.
    fn fault(self, check: Check, subject: &str, before: &str, fix: &str) -> Finding {
        Finding::fault(check, subject, format!("{before}{}", self.why), self.fix.unwrap_or_else(|| fix.to_owned()))
    }
}

pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let validity = certificate.validity();
    let of = |time: x509_parser::time::ASN1Time| Timestamp::from_secs(time.timestamp());
    Some((of(validity.not_before), of(validity.not_after)))
}

pub(super) async fn examine(public: Option<&Public>, clock: &Clock) -> Vec<Finding> {
    let checks = [Check::Origin, Check::Upgrade, Check::Cookies];
    let Some(public) = public else {
        let message = "neither `external_host` nor `--public` says at which address browsers reach Doorward";
        return checks.map(|check| Finding::skipped(check, "public address", message)).into();
    };
    let subject = public.origin.as_str();
    let cookies = HeaderValue::from_str(&format!("of-others={}", "x".repeat(COOKIES))).ok();
    let cookies: Vec<_> = cookies.into_iter().map(|value| (header::COOKIE, value)).collect();
    let upgrade = [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("ZG9vcndhcmQgZG9jdG9yIQ==")),
    ];
    let plain = match public.probe(&[]).await {
        Ok(plain) => plain,
        Err(why) => {
            let fix = "check whether Doorward runs, whether the name leads there, and the certificate, for which \
                       `--ca` names the authorities. In a cluster, if others can reach it, the NetworkPolicy \
                       `doorward` lacks an entry for the ingress (docs/install.md, \"Where Doorward may go\")";
            let mut findings = vec![Finding::fault(Check::Origin, subject, why, fix)];
            let others = [Check::Upgrade, Check::Cookies, Check::Certificates];
            findings.extend(others.map(|check| Finding::skipped(check, subject, "it cannot be reached")));
            return findings;
        }
    };
    let (upgrade, cookies) = tokio::join!(public.probe(&upgrade), public.probe(&cookies));
    let arrived = plain.arrived();
    let is_known = arrived.as_ref().is_ok_and(|arrived| arrived.origin.as_deref() == Some(subject));
    let mut findings = vec![
        judge_origin(subject, plain.ends, arrived),
        judge_upgrade(subject, is_known, upgrade.map_err(Lost::from).and_then(|probed| probed.arrived())),
        judge_cookies(subject, cookies.map_err(Lost::from).and_then(|probed| probed.arrived())),
    ];
    findings.extend(plain.certificate.map(|valid| certificates::finding(subject, valid, clock)));
    findings
}

fn judge_origin(subject: &str, ends: Ends, arrived: Result<Arrived, Lost>) -> Finding {
    let fault = |message: String, fix| Finding::fault(Check::Origin, subject, message, fix);
    match arrived.map(|arrived| (arrived.origin, arrived.client)) {
        Ok((Some(origin), client)) if origin == subject => judge_client(subject, ends, client),
        Ok((origin, _))
            if subject.starts_with("https:") && origin.as_ref().is_none_or(|origin| origin.starts_with("http:")) =>
        {
            fault(
                "Doorward does not know that it is https, so nobody can sign in".to_owned(),
                "let the proxy in front set `X-Forwarded-Proto: https`, and list its address in `trusted_proxies` of \
                 the listener",
            )
        }
        Ok((origin, _)) => fault(
            format!("Doorward sees it as {}, so sign-ins lead there", origin.as_deref().unwrap_or("no origin")),
            "let the proxy in front pass `Host` on unchanged, with its port",
        ),
        Err(lost) => lost.fault(
            Check::Origin,
            subject,
            "",
            "let what is in front send `/.doorward/` and `/oauth2/` of this host to Doorward, and check that Doorward \
             has this version",
        ),
    }
}

/// The address that browsers connect to is not a client's, unless the doctor runs there or behind a router that
/// translates to that address.
fn judge_client(subject: &str, ends: Ends, client: IpAddr) -> Finding {
    if client == ends.public && client != ends.own {
        let message = format!(
            "Doorward takes {client}, to which this name resolves, for the address of every client. Unless this \
             machine itself uses that address for its connections, limits and rules with `addresses` apply to \
             everybody at once"
        );
        let fix = "ask from outside of that network first: if other clients appear with their own addresses, nothing \
                   is wrong. Otherwise let what is at that address name its client in `X-Forwarded-For` or keep the \
                   client's address; if it adds its own address there too, as Google's load balancer does, add that \
                   address to `trusted_proxies` of the listener (docs/install.md, \"A managed load balancer that \
                   speaks HTTP\")";
        return Finding::warning(Check::Origin, subject, message, fix);
    }
    Finding::good(Check::Origin, subject, format!("Doorward sees it under this address, and this client as {client}"))
}

/// `is_known`: other requests arrive under the public address. If they do not, that is reported for them.
fn judge_upgrade(subject: &str, is_known: bool, arrived: Result<Arrived, Lost>) -> Finding {
    let fix = "let the proxy in front speak HTTP/1.1 and pass `Connection` and `Upgrade` on \
               (deploy/examples/nginx.conf); otherwise logs, `kubectl exec` and live pages do not work";
    match arrived {
        Ok(arrived) if !arrived.websocket => {
            Finding::fault(Check::Upgrade, subject, "the upgrade to WebSocket is lost on the way", fix)
        }
        Ok(arrived) if is_known && arrived.origin.as_deref() != Some(subject) => Finding::fault(
            Check::Upgrade,
            subject,
            "an upgrade to WebSocket arrives under another address or as clear text, so nobody is signed in there",
            "let the proxy in front set `Host` and `X-Forwarded-Proto` for upgrades as it does for other requests",
        ),
        Ok(_) => Finding::good(Check::Upgrade, subject, "an upgrade to WebSocket gets through"),
        Err(lost) => lost.fault(Check::Upgrade, subject, "with an upgrade to WebSocket ", fix),
    }
}

fn judge_cookies(subject: &str, arrived: Result<Arrived, Lost>) -> Finding {
    let size = COOKIES >> 10;
    let fix = "let the proxy in front accept larger headers (nginx: `large_client_header_buffers`), and check \
               `limits.header_bytes`";
    match arrived.map(|arrived| arrived.cookies) {
        Ok(cookies) if cookies >= COOKIES => {
            Finding::good(Check::Cookies, subject, format!("{size} KiB of cookies get through"))
        }
        Ok(cookies) => {
            Finding::fault(Check::Cookies, subject, format!("of {size} KiB of cookies {cookies} bytes arrive"), fix)
        }
        Err(lost) => lost.fault(Check::Cookies, subject, &format!("with {size} KiB of cookies "), fix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn arrived(origin: Option<&str>, client: &str) -> Arrived {
        Arrived { origin: origin.map(str::to_owned), websocket: false, cookies: 0, client: client.parse().unwrap() }
    }

    #[test]
    fn a_refusal_by_doorward_is_reported_in_its_own_words() {
        let judge = |body: &'static str| {
            let address = IpAddr::from([192, 0, 2, 1]);
            let ends = Ends { own: address, public: address };
            let probed = Probed {
                ends,
                certificate: None,
                status: StatusCode::BAD_REQUEST,
                body: Bytes::from_static(body.as_bytes()),
            };
            judge_origin("https://door.example", ends, probed.arrived())
        };
        let own = judge(r#"{"status":400,"reason":"bad_request","detail":"it is odd","fix":"send it straight"}"#);
        assert_eq!(
            (&*own.message, &*own.fix),
            ("Doorward refuses it with 400 `bad_request`: it is odd", "send it straight")
        );
        for other in ["<p>Bad Request</p>", r#"{"status":400,"reason":"BadRequest","detail":"of another"}"#] {
            let found = judge(other);
            assert!(found.message.contains("not Doorward's"), "{found:?}");
            assert!(found.fix.contains("`/.doorward/` and `/oauth2/`"), "{found:?}");
        }
    }

    /// Google's load balancer appends its own address after the client's in `X-Forwarded-For`; only what depends on
    /// addresses fails.
    #[test]
    fn a_load_balancer_that_hides_client_addresses_is_reported() {
        let subject = "https://door.example";
        let judge = |own: &str, client: &str| {
            let ends = Ends { own: own.parse().unwrap(), public: "203.0.113.2".parse().unwrap() };
            judge_origin(subject, ends, Ok(arrived(Some(subject), client)))
        };
        let found = judge("10.0.0.9", "203.0.113.2");
        assert_eq!(found.state, State::Warning);
        assert!(found.message.contains("203.0.113.2") && found.fix.contains("trusted_proxies"), "{found:?}");
        // If a router that translates the doctor's own address were trusted, everybody behind it could choose their
        // address.
        let (asked, trusted) = (found.fix.find("ask from outside"), found.fix.find("trusted_proxies"));
        assert!(found.message.contains("Unless this machine") && asked.is_some() && asked < trusted, "{found:?}");
        let found = judge("10.0.0.9", "198.51.100.7");
        assert_eq!(found.state, State::Good);
        assert!(found.message.contains("198.51.100.7"), "whoever runs it may compare: {found:?}");
        assert_eq!(judge("203.0.113.2", "203.0.113.2").state, State::Good, "asked from there");
    }

    /// A proxy may set other headers for upgrades than for pages, which only an upgrade shows.
    #[test]
    fn an_upgrade_that_arrives_as_clear_text_is_a_fault() {
        let subject = "https://door.example";
        let state = |websocket, origin: Option<&str>, is_known| {
            let arrived = Arrived { websocket, ..arrived(origin, "198.51.100.7") };
            judge_upgrade(subject, is_known, Ok(arrived)).state
        };
        assert_eq!(state(true, Some(subject), true), State::Good);
        assert_eq!(state(true, None, true), State::Fault);
        assert_eq!(state(true, Some("https://other.example"), true), State::Fault);
        assert_eq!(state(false, Some(subject), true), State::Fault);
        assert_eq!(state(true, None, false), State::Good, "what is wrong with all requests is told once");
    }

    /// Without the name of the file, the error seemed to say that the server has no certificate.
    #[tokio::test]
    async fn a_file_without_authorities_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let [empty, gone] = ["empty.pem", "gone.pem"].map(|name| folder.path().join(name));
        std::fs::write(&empty, "").unwrap();
        for (ca, why) in [(empty, "there is no certificate in it"), (gone, "No such file")] {
            let public = Public::parse(&address, Some(ca.clone())).unwrap();
            let message = public.probe(&[]).await.err().unwrap();
            assert!(message.starts_with(&format!("{}: {why}", ca.display())), "{message}");
        }
    }

    #[test]
    fn an_address_is_that_of_an_origin() {
        let origin = |address: &str| Public::parse(address, None).map(|public| public.origin.to_string());
        assert_eq!(origin("https://door.example/").as_deref(), Ok("https://door.example"));
        assert_eq!(origin("https://door.example:8443").as_deref(), Ok("https://door.example:8443"));
        assert_eq!(origin("http://localhost:8080").as_deref(), Ok("http://localhost:8080"));
        for bad in
            ["door.example", "http://door.example", "ftp://door.example", "https://door.example/x", "https://", ""]
        {
            assert!(origin(bad).unwrap_err().contains("write `https://`"), "{bad}");
        }
    }
}
