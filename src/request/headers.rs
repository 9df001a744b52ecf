//! Which headers of a client are forwarded, by kind of upstream.
//!
//! Names are compared in lower case, and a `_` counts as `-`, because some servers hand both to a program as one
//! (CVE-2025-64484).

use std::{borrow::Cow, collections::HashSet};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use uuid::Uuid;

use crate::config::raw::RouteKind;

/// The id of a request as a header value.
pub(super) fn id_line(id: Uuid) -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    // A UUID is ASCII.
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut buffer)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// How a request header is treated, before anything else looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Forwarded, if the kind of upstream accepts it.
    EndToEnd,
    /// Belongs to this connection alone, or is set by Doorward.
    Dropped,
    /// Asks to impersonate somebody.
    Impersonation,
    /// `Authorization` or `Cookie`: for Doorward. At most the parts that are the application's own are forwarded.
    Credential,
    /// A name that two programs read as two different headers.
    Ambiguous,
}

/// Prefixes of names by which programs tell each other who the caller is, which certificate it showed, or what the
/// request was for. From a client they are forgeries. Those of clouds and other proxies are included because upstreams
/// that once ran behind these know them, and nobody else removes them if Doorward takes the proxy's place. Signed
/// headers (`x-goog-iap-jwt-assertion`, `cf-access-jwt-assertion`, `x-amzn-oidc-data`, `x-pomerium-jwt-assertion`)
/// prove themselves to whoever verifies them, and are forwarded.
///
/// Sorted, and none is the beginning of another, as they are searched for each header.
const FORGEABLE_PREFIXES: [&str; 35] = [
    "cf-access-authenticated-",
    "cf-client-cert-",
    "cf-connecting-",
    "doorward-",
    "kubeflow-",
    "oidc-claim-",
    "remote-",
    "shib-",
    "ssl-client-",
    "tailscale-user-",
    "wl-proxy-",
    "x-accel-",
    "x-amzn-mtls-",
    "x-amzn-oidc-identity",
    "x-anonymous-consumer",
    "x-appengine-user-",
    "x-arr-clientcert",
    "x-auth-request-",
    "x-authenticated-",
    "x-authentik-",
    "x-client-cert",
    "x-consumer-",
    "x-credential-",
    "x-envoy-original-",
    "x-forwarded-",
    "x-goog-authenticated-user-",
    "x-ms-client-principal",
    "x-original-",
    "x-pomerium-claim-",
    "x-remote-",
    "x-rewrite-",
    "x-ssl-client-",
    "x-userinfo",
    "x-vouch-",
    "x-webauth-",
];

/// Doorward's request id, on requests to upstreams and on every response. It replaces an upstream's own header of that
/// name, as only Doorward's id is in the audit trail.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `client-cert` and its chain are of RFC 9440. A CGI program reads `proxy` as `HTTP_PROXY`, and sends its own calls
/// through the proxy that it names (CVE-2016-5385).
const DROPPED: [&str; 47] = [
    "audit-id",
    "cf-pseudo-ipv4",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "connection",
    "content-length",
    "do-connecting-ip",
    "expect",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded",
    "forwarded-for",
    "host",
    "http2-settings",
    "iv-creds",
    "iv-groups",
    "iv-user",
    "keep-alive",
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-client-ip",
    "proxy-connection",
    "sm-user",
    "te",
    "trailer",
    "transfer-encoding",
    "traceparent",
    "tracestate",
    "upgrade",
    "x-apigateway-api-userinfo",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-endpoint-api-userinfo",
    "x-envoy-external-address",
    "x-forwarded",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-originating-ip",
    "x-real-ip",
    "x-sendfile-type",
    "true-client-ip",
];

/// Classifies a request header by its name, which `http` stores in lower case. `x-request-id` is the client's own until
/// forwarding overwrites it, because Bitbucket Data Center identifies its deliveries by it.
pub fn classify(name: &HeaderName) -> Class {
    let name = name.as_str();
    if name == "authorization" || name == "cookie" {
        return Class::Credential;
    }
    let read: Cow<'_, str> = if name.contains('_') { name.replace('_', "-").into() } else { name.into() };
    if read.starts_with("impersonate") {
        return Class::Impersonation;
    }
    if DROPPED.contains(&&*read) || is_forgeable(&read) {
        return Class::Dropped;
    }
    match read {
        Cow::Borrowed(_) => Class::EndToEnd,
        Cow::Owned(_) => Class::Ambiguous,
    }
}

/// Whether a name begins with a forgeable prefix, which is then the last prefix that does not sort after the name.
fn is_forgeable(name: &str) -> bool {
    let after = FORGEABLE_PREFIXES.partition_point(|prefix| *prefix <= name);
    after.checked_sub(1).and_then(|last| FORGEABLE_PREFIXES.get(last)).is_some_and(|prefix| name.starts_with(prefix))
}

/// Returns why a configuration cannot have a header forwarded besides those of the kind of route; `None` if it can.
pub fn never_passes(name: &HeaderName) -> Option<&'static str> {
    match classify(name) {
        Class::EndToEnd if *name != REQUEST_ID && *name != header::VIA => None,
        Class::Ambiguous => Some("requests with a `_` in the name of a header are refused"),
        Class::EndToEnd | Class::Dropped | Class::Impersonation | Class::Credential => {
            Some("it would tell the upstream who is calling or how to read the request, which only Doorward may")
        }
    }
}

/// The request headers that the API server reads. `sec-websocket-*` and `x-stream-protocol-version` belong to exec,
/// attach and port-forward.
const KUBERNETES: [&str; 16] = [
    "accept",
    "accept-encoding",
    "cache-control",
    "content-encoding",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "kubectl-command",
    "kubectl-session",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "user-agent",
    "x-stream-protocol-version",
];

const WEBHOOK: [&str; 3] = ["accept", "content-type", "user-agent"];

/// Builds the headers of the request to the upstream from those that the client sent and that may be forwarded there.
pub fn outbound(kind: RouteKind, received: HeaderMap, further: &[HeaderName], host: Option<&HeaderValue>) -> HeaderMap {
    // Room for what forwarding adds: identity, trace, addresses.
    let mut built = HeaderMap::with_capacity(received.len() + 8);
    if let Some(host) = host {
        built.insert(header::HOST, host.clone());
    }
    let mut current = None;
    for (name, value) in received {
        current = name.or(current);
        let Some(name) = &current else { continue };
        let passes = match kind {
            _ if name == header::AUTHORIZATION || name == header::COOKIE => false,
            RouteKind::Kubernetes => KUBERNETES.contains(&name.as_str()) || further.contains(name),
            RouteKind::Webhook => WEBHOOK.contains(&name.as_str()) || further.contains(name),
            RouteKind::Dashboard | RouteKind::Http => true,
        };
        if passes {
            built.append(name.clone(), value);
        }
    }
    built
}

/// Removes from a request's trailers what its head could not contain either. Some servers merge the two, and what
/// Doorward says about a request is in the head alone.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let is_kept = |name: &HeaderName| classify(name) == Class::EndToEnd && *name != REQUEST_ID;
    if trailers.keys().all(is_kept) {
        return;
    }
    let refused: Vec<HeaderName> = trailers.keys().filter(|name| !is_kept(name)).cloned().collect();
    for name in refused {
        trailers.remove(name);
    }
}

/// Names that belong to one connection (RFC 9110 section 7.6.1). A response may have any of them.
static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Makes one of several equal `Content-Length` values, as RFC 9112 section 6.3 allows. Returns false if they differ or are
/// no lengths. Clients would otherwise get no response at all, or refuse it.
pub fn unite_lengths(headers: &mut HeaderMap) -> bool {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return true };
    let is_listed = |line: &HeaderValue| line.as_bytes().contains(&b',');
    if !is_listed(first) && lines.next().is_none() {
        return true;
    }
    let lengths: Result<Vec<u64>, _> = tokens(headers, &header::CONTENT_LENGTH).map(str::parse).collect();
    let Some((&length, others)) = lengths.as_deref().ok().and_then(<[u64]>::split_first) else { return false };
    if others.iter().any(|other| *other != length) {
        return false;
    }
    headers.insert(header::CONTENT_LENGTH, length.into());
    true
}

/// Whether a response has no transfer coding but `chunked`, which the HTTP library decodes. The client would take any
/// other for the content, as `Transfer-Encoding` is not passed on.
pub fn is_only_chunked(headers: &HeaderMap) -> bool {
    let is_known = |coding: &str| ["chunked", "identity"].iter().any(|known| coding.eq_ignore_ascii_case(known));
    tokens(headers, &header::TRANSFER_ENCODING).all(is_known)
}

/// Removes from a response what belongs to the upstream's connection, and cookies of Doorward, which only Doorward
/// sets.
pub fn clean_response(headers: &mut HeaderMap, own_cookie_prefix: &str) {
    // The coding says where the body ends, and a length beside it is not that of the body (RFC 9112 section 6.3).
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let of_the_connection: Vec<_> = headers.keys().filter(|name| HOP_BY_HOP.contains(name)).cloned().collect();
    if !of_the_connection.is_empty() {
        for name in nominated(headers).iter().chain(&of_the_connection) {
            headers.remove(name);
        }
    }
    let ours = |value: &HeaderValue| cookie_text(value).starts_with(own_cookie_prefix.as_bytes());
    if headers.get_all(header::SET_COOKIE).iter().any(ours) {
        let kept: Vec<_> = headers.get_all(header::SET_COOKIE).iter().filter(|value| !ours(value)).cloned().collect();
        headers.remove(header::SET_COOKIE);
        for value in kept {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// A cookie as the browser sends it back in `Cookie`. Browsers take `=name=value` for a cookie without a name and send
/// `name=value`, which reads like a cookie with that name.
fn cookie_text(value: &HeaderValue) -> &[u8] {
    let text = value.as_bytes();
    let end = text.iter().position(|byte| !matches!(byte, b'=' | b' ' | b'\t')).unwrap_or(text.len());
    text.get(end..).unwrap_or_default()
}

/// The headers that `Connection` declares as hop-by-hop besides those that always are, each once. It has room for
/// thousands of names; only those of headers that are present matter.
pub fn nominated(headers: &HeaderMap) -> HashSet<HeaderName> {
    tokens(headers, &header::CONNECTION)
        .filter(|token| !token.eq_ignore_ascii_case("close") && !token.eq_ignore_ascii_case("keep-alive"))
        .filter(|token| headers.contains_key(*token))
        .filter_map(|token| token.parse().ok())
        .collect()
}

/// The media type that `Content-Type` names, without its parameters; empty if there is none that can be read.
pub fn media_type(headers: &HeaderMap) -> &str {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim()
}

/// Whether `Content-Type` names a form (RFC 6749 appendix B).
pub fn is_form(headers: &HeaderMap) -> bool {
    media_type(headers).eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The comma-separated tokens of all lines of a header, blanks trimmed, empty ones left out.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> Class {
        classify(&HeaderName::from_bytes(name.as_bytes()).unwrap())
    }

    /// The search for a name relies on this.
    #[test]
    fn forgeable_prefixes_are_sorted_and_none_begins_with_another() {
        assert!(FORGEABLE_PREFIXES.is_sorted());
        let pairs = FORGEABLE_PREFIXES.iter().flat_map(|one| FORGEABLE_PREFIXES.iter().map(move |other| (one, other)));
        assert_eq!(pairs.filter(|(one, other)| one != other && one.starts_with(**other)).collect::<Vec<_>>(), []);
        for prefix in FORGEABLE_PREFIXES {
            for name in [prefix.to_owned(), format!("{prefix}!"), format!("{prefix}~")] {
                assert!(is_forgeable(&name), "{name}");
            }
            let shorter = prefix.get(..prefix.len() - 1).unwrap();
            assert!(!is_forgeable(shorter) && !is_forgeable(&format!("y{prefix}")), "{shorter}");
        }
    }

    #[test]
    fn forged_identity_headers_are_never_forwarded() {
        for (row, name, expected) in [
            ("kubernetes:A1", "Impersonate-Group", Class::Impersonation),
            ("kubernetes:A2", "Impersonate-Uid", Class::Impersonation),
            ("kubernetes:A3", "imPerSoNaTE-uSer", Class::Impersonation),
            ("kubernetes:A4", "Impersonate-Doesnotexist", Class::Impersonation),
            ("kubernetes:A4", "Impersonate", Class::Impersonation),
            ("kubernetes:A4", "Impersonate-Extra-", Class::Impersonation),
            ("kubernetes:A5", "Impersonate_User", Class::Impersonation),
            ("kubernetes:A5", "X_Remote_User", Class::Dropped),
            ("kubernetes:A5", "X_Forwarded_User", Class::Dropped),
            ("kubernetes:X1", "X-Remote-Extra-Foo", Class::Dropped),
            ("kubernetes:X3", "X-Forwarded-Uri", Class::Dropped),
            ("kubernetes:X3", "X-Original-Url", Class::Dropped),
            ("kubernetes:X3", "X-Rewrite-Url", Class::Dropped),
            ("another proxy's word on the path", "X-Envoy-Original-Path", Class::Dropped),
            ("another proxy's word on the host", "X-Host", Class::Dropped),
            ("another proxy's word on its files", "X-Accel-Mapping", Class::Dropped),
            ("another proxy's word on its files", "X-Sendfile-Type", Class::Dropped),
            ("a proxy for the upstream's own calls", "Proxy", Class::Dropped),
            ("kubernetes:X4", "Forwarded", Class::Dropped),
            ("kubernetes:X4", "X-Real-Ip", Class::Dropped),
            ("kubernetes:X4", "X-Client-Ip", Class::Dropped),
            ("kubernetes:X4", "True-Client-Ip", Class::Dropped),
            ("of one hop", "Proxy-Authenticate", Class::Dropped),
            ("kubernetes:H4", "Audit-ID", Class::Dropped),
            ("attacks:Z32", "X-HTTP-Method-Override", Class::Dropped),
            ("attacks:Z32", "X-HTTP-Method", Class::Dropped),
            ("attacks:Z32", "X-Method-Override", Class::Dropped),
            ("peers:T9", "X-Auth_Request_User", Class::Dropped),
            ("a client's own certificate", "Client-Cert", Class::Dropped),
            ("a client's own certificate", "Client-Cert-Chain", Class::Dropped),
            ("a client's own certificate", "X-Client-Certificate", Class::Dropped),
            ("a client's own certificate", "X-Client-Cert-Dn", Class::Dropped),
            ("a client's own certificate", "X-SSL-Client-S-DN", Class::Dropped),
            ("a client's own certificate", "SSL_CLIENT_VERIFY", Class::Dropped),
            ("a cloud's word on the certificate", "X-Amzn-Mtls-Clientcert-Subject", Class::Dropped),
            ("a cloud's word on the certificate", "X-ARR-ClientCert", Class::Dropped),
            ("a cloud's word on the certificate", "Cf-Client-Cert-Der-Base64", Class::Dropped),
            ("another proxy's word on the person", "X-Amzn-Oidc-Identity", Class::Dropped),
            ("another proxy's word on the person", "X-MS-CLIENT-PRINCIPAL-NAME", Class::Dropped),
            ("another proxy's word on the person", "X-Goog-Authenticated-User-Email", Class::Dropped),
            ("another proxy's word on the person", "Cf-Access-Authenticated-User-Email", Class::Dropped),
            ("another proxy's word on the person", "X-Authentik-Username", Class::Dropped),
            ("another proxy's word on the person", "X-Pomerium-Claim-Email", Class::Dropped),
            ("another proxy's word on the person", "X-Consumer-Username", Class::Dropped),
            ("another proxy's word on the person", "X-Credential-Identifier", Class::Dropped),
            ("another proxy's word on the person", "X-Anonymous-Consumer", Class::Dropped),
            ("another proxy's word on the person", "X-Authenticated-Userid", Class::Dropped),
            ("another proxy's word on the person", "X-Userinfo", Class::Dropped),
            ("another proxy's word on the person", "X-Endpoint-API-UserInfo", Class::Dropped),
            ("another proxy's word on the person", "X-Apigateway-Api-Userinfo", Class::Dropped),
            ("another proxy's word on the person", "Kubeflow-Userid", Class::Dropped),
            ("another proxy's word on the person", "Tailscale-User-Login", Class::Dropped),
            ("another proxy's word on the person", "X-Vouch-User", Class::Dropped),
            ("another proxy's word on the person", "X-AppEngine-User-Email", Class::Dropped),
            ("another proxy's word on the person", "OIDC-CLAIM-email", Class::Dropped),
            ("another proxy's word on the person", "OIDC_CLAIM_sub", Class::Dropped),
            ("another proxy's word on the person", "Shib-Identity-Provider", Class::Dropped),
            ("another proxy's word on the person", "iv-user", Class::Dropped),
            ("another proxy's word on the person", "SM_USER", Class::Dropped),
            ("another proxy's word on the certificate", "WL-Proxy-Client-Cert", Class::Dropped),
            ("another proxy's word on the address", "Cf-Connecting-Ip", Class::Dropped),
            ("another proxy's word on the address", "Cf-Connecting-IPv6", Class::Dropped),
            ("another proxy's word on the address", "Cf-Pseudo-IPv4", Class::Dropped),
            ("another proxy's word on the address", "Client-Ip", Class::Dropped),
            ("another proxy's word on the address", "Forwarded-For", Class::Dropped),
            ("another proxy's word on the address", "Proxy-Client-IP", Class::Dropped),
            ("another proxy's word on the address", "WL-Proxy-Client-IP", Class::Dropped),
            ("another proxy's word on the address", "X-Forwarded", Class::Dropped),
            ("another proxy's word on the address", "X-Originating-IP", Class::Dropped),
            ("another proxy's word on the address", "DO-Connecting-IP", Class::Dropped),
            ("another proxy's word on the address", "Fastly-Client-Ip", Class::Dropped),
            ("another proxy's word on the address", "Fly-Client-IP", Class::Dropped),
            ("another proxy's word on the address", "X-AppEngine-User-IP", Class::Dropped),
            ("another proxy's word on the address", "X-Azure-ClientIP", Class::Dropped),
            ("another proxy's word on the address", "X-Azure-SocketIP", Class::Dropped),
            ("another proxy's word on the address", "X-Envoy-External-Address", Class::Dropped),
            ("another proxy's word on the address", "X-Cluster-Client-Ip", Class::Dropped),
            ("twin, which is signed", "X-Amzn-Oidc-Data", Class::EndToEnd),
            ("twin, which is signed", "X-Goog-IAP-JWT-Assertion", Class::EndToEnd),
            ("twin, which is signed", "Cf-Access-Jwt-Assertion", Class::EndToEnd),
            ("twin, which is signed", "X-Pomerium-Jwt-Assertion", Class::EndToEnd),
            ("twin", "X-Amzn-Trace-Id", Class::EndToEnd),
            ("twin", "Cf-Ray", Class::EndToEnd),
            ("twin", "X-Azure-Ref", Class::EndToEnd),
            ("twin", "X-Envoy-Attempt-Count", Class::EndToEnd),
            ("twin", "X-Client-Version", Class::EndToEnd),
            ("limits", "X_Anything", Class::Ambiguous),
            ("twin", "X-Anything", Class::EndToEnd),
            ("twin", "Content-Type", Class::EndToEnd),
        ] {
            assert_eq!(class(name), expected, "{row} {name}");
        }
    }

    #[test]
    fn no_configuration_passes_on_an_identity_header_of_the_client() {
        let why = |name: &str| never_passes(&HeaderName::from_bytes(name.as_bytes()).unwrap());
        for good in ["X-Custom", "Accept-Language", "X-GitHub-Delivery"] {
            assert_eq!(why(good), None, "{good}");
        }
        for bad in [
            "Impersonate-User",
            "impersonate_user",
            "X-Remote-Group",
            "X-Forwarded-For",
            "X-WebAuth-User",
            "X-Client-Cert",
            "Authorization",
            "Cookie",
            "TE",
            "Audit-ID",
            "X-Request-Id",
            "Via",
            "traceparent",
            "x_custom",
        ] {
            assert!(why(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn kubernetes_and_webhook_upstreams_get_a_fixed_list() {
        let mut received = HeaderMap::new();
        received.insert("accept", "a".parse().unwrap());
        received.insert("x-custom", "b".parse().unwrap());
        received.append("x-listed", "c".parse().unwrap());
        received.append("x-listed", "d".parse().unwrap());
        let listed = [HeaderName::from_static("x-listed")];
        for kind in [RouteKind::Kubernetes, RouteKind::Webhook] {
            let built = outbound(kind, received.clone(), &listed, None);
            assert!(!built.contains_key("x-custom"));
            assert_eq!(built.get_all("x-listed").iter().count(), 2);
        }
        assert_eq!(outbound(RouteKind::Http, received.clone(), &[], None), received);
    }

    /// Compared with each header, the names that a stranger can list there took milliseconds.
    #[test]
    fn names_in_connection_are_kept_once_and_only_if_such_a_header_is_present() {
        let mut headers = HeaderMap::new();
        let names = (0..2000).map(|i| format!("a{i},X-Hop, x-hop")).collect::<Vec<_>>().join(",");
        headers.insert("connection", format!("close, bad name, {names}, X-Other").parse().unwrap());
        headers.append("connection", "x-second".parse().unwrap());
        for name in ["x-hop", "x-second", "x-kept"] {
            headers.insert(name, "1".parse().unwrap());
        }
        assert_eq!(nominated(&headers), ["x-hop", "x-second"].map(HeaderName::from_static).into());
    }

    #[test]
    fn responses_lose_what_is_for_one_connection_and_our_cookies() {
        let mut headers = HeaderMap::new();
        headers.insert("connection", "close, X-Hop".parse().unwrap());
        headers.insert("x-hop", "1".parse().unwrap());
        for ours in
            ["__Host-doorward=evil", " __Host-doorward=evil", "=__Host-doorward=evil", " = __Host-doorward=evil"]
        {
            headers.append("set-cookie", ours.parse().unwrap());
        }
        headers.append("set-cookie", "theirs=1".parse().unwrap());
        clean_response(&mut headers, "__Host-doorward");
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["set-cookie"], "theirs=1");
    }

    /// The response to HEAD was cut off without an answer, and over HTTP/2 clients refused each of them.
    #[test]
    fn equal_lengths_of_a_response_become_one_and_others_are_refused() {
        let united = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("content-length", line.parse().unwrap());
            }
            unite_lengths(&mut headers)
                .then(|| headers.remove("content-length").map(|one| one.to_str().unwrap().to_owned()))
        };
        assert_eq!(united(&[]), Some(None));
        for lines in [&["2"][..], &["2", "2"], &["2, 2"], &["2,2", "2"]] {
            assert_eq!(united(lines), Some(Some("2".to_owned())), "{lines:?}");
        }
        for lines in [&["2", "3"][..], &["2, 3"], &["2, x"], &["x", "2"], &[",", ","]] {
            assert_eq!(united(lines), None, "{lines:?}");
        }
    }

    /// The client got the compressed bytes, and no word that they are compressed.
    #[test]
    fn a_transfer_coding_that_nobody_decodes_is_found() {
        for (lines, expected) in [
            (&["chunked"][..], true),
            (&[], true),
            (&["Chunked", "chunked"], true),
            (&["identity"], true),
            (&["gzip, chunked"], false),
            (&["gzip", "chunked"], false),
            (&["xchunked"], false),
            (&["gzip"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("transfer-encoding", line.parse().unwrap());
            }
            assert_eq!(is_only_chunked(&headers), expected, "{lines:?}");
        }
    }

    /// If it stayed, it would cut the body: an HTTP/1.1 client took as many bytes as it says for the whole.
    #[test]
    fn a_length_beside_a_coding_is_taken_from_a_response_and_one_alone_stays() {
        for (coding, kept) in [(Some("chunked"), false), (None, true)] {
            let mut headers = HeaderMap::new();
            headers.insert("content-length", "3".parse().unwrap());
            if let Some(coding) = coding {
                headers.insert("transfer-encoding", coding.parse().unwrap());
            }
            clean_response(&mut headers, "__Host-doorward");
            assert_eq!(headers.contains_key("content-length"), kept, "{coding:?}");
        }
    }
}
