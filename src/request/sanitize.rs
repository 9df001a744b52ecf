//! Turns what a client sent into a request that later steps can read without care: one path, one host, no forged
//! identity, and what is meant for Doorward itself as typed values.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version, header, uri::PathAndQuery};
use hyper::upgrade::OnUpgrade;
use ipnet::IpNet;
use uuid::Uuid;

use super::{
    expect::expects_continue,
    headers::{Class, classify, id_line, nominated, tokens},
    host::{Reached, host_of},
    method::check_spelling,
    path::{NotCanonical, check_canonical},
};
use crate::{
    downstream::client_network,
    error::{Reason, Rejection},
    logging::TraceContext,
    sessions::Origin,
    upstream::{
        buffered::Share,
        upgrade::{self, UpgradeProtocol},
    },
};

/// A request that is safe to route, with what was taken from its headers.
#[derive(Debug)]
pub struct CleanRequest<B> {
    /// Boxed, as it is moved from step to step.
    head: Box<Head>,
    body: B,
}

#[derive(Debug)]
struct Head {
    method: Method,
    target: PathAndQuery,
    version: Version,
    host: Arc<str>,
    headers: HeaderMap,
    meta: Meta,
}

/// What was taken from the headers, and what else is known about the request.
#[derive(Debug)]
pub struct Meta {
    /// Assigned by Doorward, never by the client: the `Audit-ID` at the API server.
    pub id: Uuid,
    /// `id` as a header value.
    pub id_line: HeaderValue,
    /// Whether it came through a trusted proxy.
    pub proxied: bool,
    /// The client, as far as trusted proxies name it.
    pub client: IpAddr,
    /// Whether `client` is the address of a proxy or load balancer that did not name its client. Such an address is not
    /// rate limited, as one client would lock out all others behind it.
    pub is_shared_address: bool,
    /// `client` as a header value.
    pub client_line: Option<HeaderValue>,
    /// Whether the client itself used TLS.
    pub secure: bool,
    /// The `Impersonate-*` headers by which the client asked to be somebody else (`kubectl --as`), which are refused.
    /// Only names are kept: values never reach a log.
    pub impersonation: Vec<HeaderName>,
    pub upgrade: Option<UpgradeProtocol>,
    pub on_upgrade: Option<OnUpgrade>,
    /// `te: trailers` over HTTP/2.
    pub accepts_trailers: bool,
    /// Whether the client waits with its body for a `100 Continue` that it cannot get.
    pub expects_continue: bool,
    /// The trace context that it arrived with.
    pub trace: Option<TraceContext>,
    /// The host as it was sent, with its port, for upstreams that see the browser's host.
    pub host_line: Option<HeaderValue>,
}

impl Meta {
    /// The trace id by which the audit trail refers to the request.
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        self.trace.as_ref().map(TraceContext::trace_bytes)
    }

    /// The share of the buffer budget of a body that does not prove yet who sends it.
    pub fn unproven(&self) -> Share {
        Share::Unproven(self.client_network())
    }

    /// The network by which the client is counted, if `client` is the address of one client alone.
    pub fn client_network(&self) -> Option<IpAddr> {
        (!self.is_shared_address).then(|| client_network(self.client))
    }
}

/// What sanitizing needs to know about the connection that a request arrived on.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub peer: SocketAddr,
    /// The peer's address as a header value.
    pub peer_line: Option<&'a HeaderValue>,
    /// The peer is a load balancer whose PROXY header names no client.
    pub lacks_proxy_address: bool,
    /// The peer is a proxy whose `X-Forwarded-*` headers are trusted.
    pub trusted: bool,
    /// All trusted proxies, to walk `X-Forwarded-For` from the right.
    pub trusted_proxies: &'a [IpNet],
    pub tls: bool,
    /// The server name of the TLS handshake. A request for another host is misdirected, unless it comes from a trusted
    /// proxy, which may send several hosts over one connection.
    pub server_name: Option<&'a str>,
}

#[cfg(any(test, fuzzing))]
impl Arrival<'_> {
    /// In clear text, from a single client.
    pub(crate) fn of_tests() -> Self {
        Self {
            peer: SocketAddr::from(([192, 0, 2, 1], 1)),
            peer_line: None,
            lacks_proxy_address: false,
            trusted: false,
            trusted_proxies: &[],
            tls: false,
            server_name: None,
        }
    }
}

/// Sanitizes a request whose size the listener has checked. `known_host` returns the route table's own form of a host
/// that it knows.
pub fn sanitize<B>(
    request: Request<B>,
    arrival: Arrival<'_>,
    id: Uuid,
    known_host: impl FnOnce(&str) -> Option<Arc<str>>,
) -> Result<CleanRequest<B>, Rejection> {
    let upgrade = upgrade::requested(&request)?;
    let (mut parts, body) = request.into_parts();
    let host = host_of(parts.version, &parts.uri, &parts.headers)?;
    if let Some(name) = arrival.server_name
        && !arrival.trusted
        && !name.eq_ignore_ascii_case(&host)
    {
        return Err(of_another_name());
    }
    let host = known_host(&host).ok_or_else(misdirected)?;
    // An authority alone is the target of CONNECT (RFC 9112 section 3.2.3): it has no path, which is not the same as
    // `/`.
    let target = parts.uri.path_and_query().cloned().ok_or(NotCanonical::NotAbsolute)?;
    check_canonical(target.path())?;
    check_spelling(&parts.method)?;

    let accepts_trailers = parts.version == Version::HTTP_2
        && tokens(&parts.headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let nominated = nominated(&parts.headers);
    let (client, secure) = client_of(arrival, &parts.headers)?;
    let mut meta = Meta {
        id,
        id_line: id_line(id),
        proxied: arrival.trusted,
        client,
        // A proxy may have another one in front of it, and then names only that one.
        is_shared_address: (arrival.lacks_proxy_address && client == arrival.peer.ip())
            || arrival.trusted_proxies.iter().any(|net| net.contains(&client)),
        client_line: match arrival.peer_line {
            Some(line) if client == arrival.peer.ip() => Some(line.clone()),
            _ => HeaderValue::try_from(client.to_string()).ok(),
        },
        secure,
        impersonation: Vec::new(),
        upgrade,
        on_upgrade: if upgrade.is_some() { parts.extensions.remove::<OnUpgrade>() } else { None },
        accepts_trailers,
        expects_continue: expects_continue(&parts),
        trace: TraceContext::from_headers(&parts.headers),
        // The host that was routed by: an absolute target replaces `Host` (RFC 9112 section 3.2.2).
        host_line: match parts.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => parts.headers.get(header::HOST).cloned(),
        },
    };

    let mut headers = HeaderMap::with_capacity(parts.headers.len());
    let mut current = None;
    for (name, value) in parts.headers {
        current = name.or(current);
        let Some(name) = &current else { continue };
        match classify(name) {
            Class::Impersonation => {
                if !meta.impersonation.contains(name) {
                    meta.impersonation.push(name.clone());
                }
            }
            Class::Ambiguous => {
                return Err(Rejection::new(
                    Reason::BadRequest,
                    "a header name has a `_`, which some servers read as `-`",
                )
                .fix("send the header with `-`"));
            }
            Class::Dropped => {}
            Class::EndToEnd if nominated.contains(name) => {}
            // Credentials are for this hop, so `Connection` does not remove them; no upstream ever gets them.
            Class::EndToEnd | Class::Credential => {
                headers.append(name.clone(), value);
            }
        }
    }
    let head = Head { method: parts.method, target, version: parts.version, host, headers, meta };
    Ok(CleanRequest { head: Box::new(head), body })
}

impl<B> CleanRequest<B> {
    /// Rebuilds a request that was sanitized when it arrived and stored since; for `request::held` alone.
    pub(super) fn restored(
        method: Method,
        host: Arc<str>,
        target: PathAndQuery,
        headers: HeaderMap,
        meta: Meta,
        body: B,
    ) -> Self {
        let head = Head { method, target, version: Version::HTTP_11, host, headers, meta };
        Self { head: Box::new(head), body }
    }

    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// Lower case, without port.
    pub fn host(&self) -> &Arc<str> {
        &self.head.host
    }

    /// The canonical path, which is decided and forwarded as it is.
    pub fn path(&self) -> &str {
        self.head.target.path()
    }

    /// Path and query as they are forwarded.
    pub(crate) fn target(&self) -> &PathAndQuery {
        &self.head.target
    }

    /// Removes the query, because it contains a secret.
    pub(crate) fn drop_query(&mut self) {
        // A path alone is always a valid target.
        let path = PathAndQuery::try_from(self.path());
        self.head.target = path.unwrap_or_else(|_| PathAndQuery::from_static("/"));
    }

    pub fn query(&self) -> Option<&str> {
        self.head.target.query()
    }

    pub fn version(&self) -> Version {
        self.head.version
    }

    /// The remaining end-to-end headers, with the credentials, which are for Doorward.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    pub fn meta(&self) -> &Meta {
        &self.head.meta
    }

    pub fn body(&self) -> &B {
        &self.body
    }

    /// Sets a header in place of what the client sent under that name.
    pub(crate) fn replace_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.head.headers.insert(name, value);
    }

    /// How the client reaches its host, for URLs that lead back there.
    pub fn reached(&self) -> Reached {
        Reached::of(self.meta().secure, self.meta().host_line.as_ref())
    }

    /// The origin under which a browser sees this host; `None` if browsers would not treat it as secure.
    pub fn origin(&self) -> Option<Origin> {
        let meta = self.meta();
        let authority = meta.host_line.as_ref()?.to_str().ok()?;
        if meta.secure { Origin::https(authority) } else { Origin::loopback(authority) }
    }

    /// Takes out what is forwarded: the end-to-end headers, the body, and the client's connection if it is to be
    /// upgraded.
    pub(crate) fn take_parts(&mut self) -> (HeaderMap, B, Option<OnUpgrade>)
    where
        B: Default,
    {
        let head = &mut *self.head;
        (std::mem::take(&mut head.headers), std::mem::take(&mut self.body), head.meta.on_upgrade.take())
    }

    pub(crate) fn take_body(self) -> (CleanRequest<()>, B) {
        (CleanRequest { head: self.head, body: () }, self.body)
    }

    pub(crate) fn with_body<C>(self, body: C) -> CleanRequest<C> {
        CleanRequest { head: self.head, body }
    }
}

/// The refusal of a host that no route serves.
pub fn misdirected() -> Rejection {
    Rejection::new(Reason::MisdirectedHost, "no route is configured for this host")
        .fix("check the host name in the address; a program must also use a connection that was opened for that host")
}

/// The refusal of a request on a connection that was opened for another host, whether or not there is a route.
fn of_another_name() -> Rejection {
    Rejection::new(Reason::MisdirectedHost, "the TLS connection was opened for another name than this host").fix(
        "open a connection for this host; a proxy in front that sends several hosts over one belongs in `trusted_proxies`",
    )
}

/// The client's address and whether it used TLS, as the peer or trusted proxies say. `X-Forwarded-For` is read from the
/// right up to the first address that is not a trusted proxy. An entry on the way that is not an address is refused,
/// because the client may have written it and must not pass for the proxy.
pub(super) fn client_of(arrival: Arrival<'_>, headers: &HeaderMap) -> Result<(IpAddr, bool), Rejection> {
    let peer = arrival.peer.ip().to_canonical();
    if !arrival.trusted {
        return Ok((peer, arrival.tls));
    }
    let trusted = |address: &IpAddr| arrival.trusted_proxies.iter().any(|net| net.contains(address));
    let mut client = peer;
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    // Bytes, as a proxy appends to whatever the client wrote.
    let hops = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    for hop in hops.filter(|hop| !hop.is_empty()) {
        client = address_of(hop).ok_or_else(|| {
            Rejection::new(Reason::BadRequest, "`X-Forwarded-For` has an entry that is not an IP address")
                .fix("have the proxy in front append the address of its client, with or without a port")
        })?;
        if !trusted(&client) {
            break;
        }
    }
    let mut protocols = headers.get_all("x-forwarded-proto").iter();
    let secure = match (protocols.next(), protocols.next()) {
        // Traefik sends the scheme of a WebSocket.
        (Some(protocol), None) => {
            ["https", "wss"].iter().any(|scheme| protocol.as_bytes().eq_ignore_ascii_case(scheme.as_bytes()))
        }
        _ => arrival.tls,
    };
    Ok((client, secure))
}

/// The address of a hop. Some proxies add the port: `203.0.113.9:4711`, `[2001:db8::9]:4711`.
fn address_of(hop: &[u8]) -> Option<IpAddr> {
    let hop = str::from_utf8(hop).ok()?;
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    hop.parse().ok().or_else(with_port).or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests;
