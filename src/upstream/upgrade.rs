//! Upgrades to WebSocket and SPDY/3.1, which Kubernetes uses for exec, attach, port-forward and watches from a browser.
//!
//! Upgrades have a history of smuggling attacks (CVE-2018-1002105, CVE-2020-8559, golang/go#80416), so nothing is
//! guessed: only these two protocols are accepted, requested by exact tokens, without a body, each on a connection of
//! its own. The client's bytes pass only after the upstream has answered 101 for that very protocol. After any other
//! response both connections are closed, so that nothing can follow on them.

use std::{pin::pin, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

pub use super::splice::SpliceEnd;
use super::{
    Pools, Upstream, UpstreamBody, UpstreamError, UpstreamErrorKind,
    pool::{Http1Lease, Lease},
    send::{Failure, in_our_version, prepare, wait_for_head},
    splice::splice,
};
use crate::{
    body::{EndedBy, RequestBody},
    error::{Reason, Rejection},
    streams::StreamHandle,
};

/// How long the client may take to receive the 101 before the upgrade is given up.
const HANDOVER: Duration = Duration::from_secs(10);

/// A protocol that a connection can be upgraded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpgradeProtocol {
    /// RFC 6455.
    WebSocket,
    /// The fallback of kubectl where WebSockets fail (KEP-4006).
    Spdy31,
}

impl UpgradeProtocol {
    const fn token(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Spdy31 => "SPDY/3.1",
        }
    }

    fn from_token(token: &str) -> Option<Self> {
        [Self::WebSocket, Self::Spdy31].into_iter().find(|protocol| protocol.token().eq_ignore_ascii_case(token))
    }

    /// Adds the headers that switch the connection to this protocol.
    pub(crate) fn announce(self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(self.token()));
    }
}

/// Returns the protocol that a client asks for, judging by its unaltered headers; `None` for a plain request. Anything
/// that is not exactly a request for a known protocol is refused with 400. It is never treated as a plain request, as
/// the upstream might read it differently.
///
/// There are two exceptions, both treated as plain requests. Some clients offer HTTP/2 or TLS with each request in
/// clear text: nothing of the offer is sent on, and the connection ends with the response. `Connection: upgrade`
/// without any header of a handshake names no protocol: nginx sends it with every request when set up by the first
/// example on its page about WebSockets.
pub fn requested<B>(request: &Request<B>) -> Result<Option<UpgradeProtocol>, Rejection> {
    let headers = request.headers();
    let refuse = |detail: &'static str| {
        Rejection::new(Reason::UpgradeRefused, detail)
            .fix("ask for `websocket` or `SPDY/3.1` alone, by HTTP/1.1 and without a body")
    };
    let connection = connection_tokens(headers).ok_or_else(|| refuse("`Connection` is not readable"))?;
    let mut upgrade = headers.get_all(header::UPGRADE).iter();
    let (first, second) = (upgrade.next(), upgrade.next());
    match (connection, first) {
        (Tokens::Plain, None) => return Ok(None),
        (Tokens::Upgrade, None) if !headers.keys().any(is_of_handshake) => return Ok(None),
        (Tokens::Upgrade, Some(_)) => {}
        (Tokens::Odd, _) => return Err(refuse("`Connection` contains something that resembles `upgrade`")),
        (Tokens::Upgrade, None) => return Err(refuse("the request has headers of a handshake, but no `Upgrade`")),
        (Tokens::Plain, Some(_)) => return Err(refuse("the request has `Upgrade` without `Connection: upgrade`")),
    }
    let token = first.filter(|_| second.is_none()).and_then(|value| value.to_str().ok());
    // RFC 9110 section 7.8: a server that does not accept an offer ignores it.
    if token.is_some_and(is_mere_offer) {
        return Ok(None);
    }
    let protocol = token
        .and_then(UpgradeProtocol::from_token)
        .ok_or_else(|| refuse("`Upgrade` names another protocol, or several"))?;
    if request.version() != Version::HTTP_11 {
        return Err(refuse("only an HTTP/1.1 connection can be upgraded"));
    }
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length != "0");
    if has_body {
        return Err(refuse("a request for an upgrade cannot have a body"));
    }
    let method_fits = match protocol {
        UpgradeProtocol::WebSocket => request.method() == Method::GET,
        UpgradeProtocol::Spdy31 => request.method() == Method::GET || request.method() == Method::POST,
    };
    if !method_fits {
        return Err(refuse("this method cannot ask for an upgrade"));
    }
    if protocol == UpgradeProtocol::WebSocket {
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            let detail = "the version of the WebSocket handshake is missing or not known";
            let fix = "use a client that sends `Sec-WebSocket-Version: 13`";
            return Err(Rejection::new(Reason::UpgradeRefused, detail).fix(fix).names_websocket_version());
        }
        if headers.get_all(header::SEC_WEBSOCKET_KEY).iter().count() != 1 {
            return Err(refuse("the WebSocket handshake does not have one `Sec-WebSocket-Key`")
                .fix("use a client that sends the handshake of RFC 6455 section 4.1"));
        }
    }
    Ok(Some(protocol))
}

fn is_of_handshake(name: &HeaderName) -> bool {
    name.as_str().starts_with("sec-websocket-") || name == "x-stream-protocol-version" || name == "http2-settings"
}

/// Whether the token is an offer that clients make beside a plain request: `h2c`, or a version of TLS (RFC 2817 section
/// 3.1), as Apache HttpClient does by default.
fn is_mere_offer(token: &str) -> bool {
    let is_version = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    token.eq_ignore_ascii_case("h2c")
        || token.split_once('/').is_some_and(|(name, rest)| name.eq_ignore_ascii_case("TLS") && is_version(rest))
}

enum Tokens {
    Plain,
    Upgrade,
    Odd,
}

fn connection_tokens(headers: &HeaderMap) -> Option<Tokens> {
    let mut found = Tokens::Plain;
    for value in headers.get_all(header::CONNECTION) {
        for token in value.to_str().ok()?.split(',') {
            let token = token.trim_matches([' ', '\t']);
            if token.eq_ignore_ascii_case("upgrade") {
                found = Tokens::Upgrade;
            } else if token.to_ascii_lowercase().contains("upgrade") {
                return Some(Tokens::Odd);
            }
        }
    }
    Some(found)
}

/// The upstream's response to an upgrade request.
#[derive(Debug)]
pub(crate) enum UpgradeAnswer {
    /// 101: send this head to the client, then run the splice with the client's connection.
    Switched(Response<()>, Splice),
    /// An error to be relayed. Its `Connection: close` must stay, so that the client's connection ends with it; the
    /// upstream's ends by itself.
    Refused(Response<UpstreamBody>),
}

/// The upstream's side of an upgraded connection.
#[derive(Debug)]
pub(crate) struct Splice {
    upstream: OnUpgrade,
    protocol: UpgradeProtocol,
    idle: Duration,
    lease: Http1Lease,
}

impl Pools {
    /// Asks an upstream for an upgrade. The request is as for [`Pools::send`]; `Connection` and `Upgrade` are set here.
    /// A response that is neither 101 for this protocol nor an error is an error of the upstream.
    pub(crate) async fn upgrade(
        &self,
        upstream: &Arc<Upstream>,
        request: Request<()>,
        protocol: UpgradeProtocol,
    ) -> Result<UpgradeAnswer, UpstreamError> {
        let node = self.node(upstream);
        let mut request = request.map(|()| RequestBody::Empty);
        prepare(upstream, &mut request)?;
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        headers.remove(header::TE);
        protocol.announce(headers);

        let mut lease = match node.upgradable(upstream).await {
            Err(error) if error.kind() == UpstreamErrorKind::Unreachable => {
                node.counters.retries.inc();
                node.upgradable(upstream).await?
            }
            result => result?,
        };
        let progress = Arc::clone(&lease.progress);
        progress.begin(upstream.response_timeout);
        let Some(sender) = lease.sender() else {
            return Err(UpstreamError::new(UpstreamErrorKind::Closed, upstream.name()));
        };
        let sent = sender.try_send_request(request);
        let mut response =
            wait_for_head(upstream, &progress, pin!(sent)).await.map_err(|Failure { error, .. }| error)?;

        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if !confirms(response.headers(), protocol) {
                return Err(UpstreamError::new(UpstreamErrorKind::Protocol, upstream.name())
                    .because("status 101 for another protocol than the one asked for"));
            }
            // From here on the splice enforces the time limit.
            progress.rest();
            let on_upgrade = hyper::upgrade::on(&mut response);
            let splice = Splice { upstream: on_upgrade, protocol, idle: upstream.upgrade_idle_timeout, lease };
            return Ok(UpgradeAnswer::Switched(response.map(drop), splice));
        }
        if !(status.is_client_error() || status.is_server_error()) {
            return Err(UpstreamError::new(UpstreamErrorKind::NotSwitched(status), upstream.name()));
        }
        progress.answered(upstream.stream_idle_timeout);
        in_our_version(&mut response);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(UpgradeAnswer::Refused(response.map(|body| UpstreamBody::new(body, Lease::Http1(lease), false))))
    }
}

impl Splice {
    /// Copies between the client and the upstream until both end or `handle` is cut. The client's connection becomes
    /// available once the 101 is written.
    pub(crate) async fn run(self, client: OnUpgrade, handle: StreamHandle) -> SpliceEnd {
        let Self { upstream, protocol, idle, lease } = self;
        let end = |outcome| SpliceEnd { outcome, bytes_to_client: 0, bytes_to_upstream: 0 };
        let both = async {
            let client = client.await.map_err(|_| EndedBy::ClientAborted)?;
            let upstream = upstream.await.map_err(|_| EndedBy::UpstreamAborted)?;
            Ok((client, upstream))
        };
        let (client, upstream) = tokio::select! {
            joined = timeout(HANDOVER, both) => match joined {
                Ok(Ok(both)) => both,
                Ok(Err(outcome)) => return end(outcome),
                Err(_) => return end(EndedBy::ClientAborted),
            },
            reason = handle.cut() => return end(EndedBy::Cut(reason)),
        };
        let is_websocket = protocol == UpgradeProtocol::WebSocket;
        let end = splice(TokioIo::new(client), TokioIo::new(upstream), is_websocket, idle, &handle).await;
        // Held until here, as the connection counts among those of its upstream.
        drop(lease);
        end
    }
}

fn confirms(headers: &HeaderMap, protocol: UpgradeProtocol) -> bool {
    let mut upgrade = headers.get_all(header::UPGRADE).iter();
    let names_it = upgrade
        .next()
        .and_then(|value| value.to_str().ok())
        .is_some_and(|token| UpgradeProtocol::from_token(token) == Some(protocol));
    names_it && upgrade.next().is_none() && matches!(connection_tokens(headers), Some(Tokens::Upgrade))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, version: Version, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).version(version).uri("/exec");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn exact_requests_for_the_known_protocols_pass() {
        let get = |headers: &[(&str, &str)]| requested(&request(Method::GET, Version::HTTP_11, headers)).unwrap();
        assert_eq!(get(&[]), None);
        assert_eq!(get(&[("connection", "keep-alive")]), None);
        assert_eq!(get(&WEBSOCKET), Some(UpgradeProtocol::WebSocket));
        let mut firefox = WEBSOCKET;
        firefox[0].1 = "keep-alive, Upgrade";
        firefox[1].1 = "WebSocket";
        assert_eq!(get(&firefox), Some(UpgradeProtocol::WebSocket));
        let kubectl = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("content-length", "0")];
        let spdy = requested(&request(Method::POST, Version::HTTP_11, &kubectl)).unwrap();
        assert_eq!(spdy, Some(UpgradeProtocol::Spdy31));
    }

    #[test]
    fn an_offer_of_h2c_alone_is_a_plain_request_whatever_its_body() {
        let offer = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
        for more in [&[][..], &[("content-length", "5")], &[("transfer-encoding", "chunked")]] {
            let request = request(Method::POST, Version::HTTP_11, &[&offer[..], more].concat());
            assert_eq!(requested(&request).unwrap(), None, "kubernetes:U3 {more:?}");
        }
    }

    #[test]
    fn an_offer_of_tls_alone_is_a_plain_request() {
        for token in ["TLS/1.2", "TLS/1.0", "tls/1.3"] {
            let request = request(Method::GET, Version::HTTP_11, &[("connection", "Upgrade"), ("upgrade", token)]);
            assert_eq!(requested(&request).unwrap(), None, "kubernetes:U3 {token}");
        }
    }

    /// Every page was refused behind an nginx with `proxy_set_header Connection "upgrade"` for all requests.
    #[test]
    fn connection_upgrade_with_nothing_of_a_handshake_is_a_plain_request() {
        let ask = |headers: &[(&str, &str)]| requested(&request(Method::POST, Version::HTTP_11, headers));
        for connection in ["upgrade", "Upgrade", "keep-alive, Upgrade"] {
            assert_eq!(ask(&[("connection", connection), ("content-length", "5")]).unwrap(), None, "{connection}");
        }
        for of_handshake in [
            "sec-websocket-key",
            "sec-websocket-protocol",
            "sec-websocket-version",
            "x-stream-protocol-version",
            "http2-settings",
        ] {
            assert!(ask(&[("connection", "upgrade"), (of_handshake, "x")]).is_err(), "kubernetes:U5 {of_handshake}");
        }
    }

    #[test]
    fn odd_requests_for_an_upgrade_are_refused() {
        let change = |at: usize, value: &'static str| {
            let mut headers = WEBSOCKET.to_vec();
            headers[at].1 = value;
            headers
        };
        let add = |name: &'static str, value: &'static str| [&WEBSOCKET[..], &[(name, value)]].concat();
        let without = |at: usize| {
            let mut headers = WEBSOCKET.to_vec();
            headers.remove(at);
            headers
        };
        for (row, headers) in [
            ("kubernetes:U3", vec![("upgrade", "h2c"), ("http2-settings", "")]),
            ("kubernetes:U3", change(1, "websocket, h2c")),
            ("kubernetes:U3", add("upgrade", "h2c")),
            ("kubernetes:U3", vec![("upgrade", "TLS/1.2")]),
            ("kubernetes:U3", change(1, "TLS/1.2, websocket")),
            ("kubernetes:U3", change(1, "TLS/1.2/websocket")),
            ("kubernetes:U3", change(1, "TLS/")),
            ("kubernetes:U3", change(1, "TLS")),
            ("kubernetes:U3", add("upgrade", "TLS/1.2")),
            ("kubernetes:U4", add("content-length", "5")),
            ("kubernetes:U4", add("transfer-encoding", "chunked")),
            ("kubernetes:U5", change(0, "xupgrade")),
            ("kubernetes:U5", change(0, "upgrade, xupgrade")),
            ("kubernetes:U5", change(0, "keep-alive; upgrade")),
            ("kubernetes:U5", change(0, "keep-alive")),
            ("kubernetes:U5", without(0)),
            ("kubernetes:U5", without(1)),
            ("RFC 6455 4.1", without(2)),
            ("RFC 6455 4.1", change(2, "8")),
            ("RFC 6455 4.1", without(3)),
        ] {
            let rejection = requested(&request(Method::GET, Version::HTTP_11, &headers)).unwrap_err();
            assert_eq!(rejection.status(), StatusCode::BAD_REQUEST, "{row} {headers:?}");
            let is_of_version = headers == without(2) || headers == change(2, "8");
            assert_eq!(rejection.is_for_websocket_version(), is_of_version, "{row} {headers:?}");
        }
        for (method, version) in
            [(Method::POST, Version::HTTP_11), (Method::GET, Version::HTTP_10), (Method::GET, Version::HTTP_2)]
        {
            assert!(requested(&request(method, version, &WEBSOCKET)).is_err());
        }
    }
}
