//! The body of the fuzz target for header fields, of requests and of responses.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, Request, Version, header};
use ipnet::IpNet;
use uuid::Uuid;

use super::fields;
use crate::{
    authn::{Actor, Principal, Scheme},
    config::raw::RouteKind,
    request::{
        headers::{Class, classify, clean_response, clean_trailers},
        outbound::headers_for,
        sanitize::{Arrival, CleanRequest, sanitize},
    },
    sessions::cookie,
    upstream::Lifetime,
};

/// How the request arrives: its HTTP version, and whether from a trusted proxy.
const ARRIVALS: [(Version, bool); 3] = [(Version::HTTP_11, false), (Version::HTTP_11, true), (Version::HTTP_2, false)];

const KINDS: [RouteKind; 4] = [RouteKind::Webhook, RouteKind::Dashboard, RouteKind::Kubernetes, RouteKind::Http];

/// Hop-by-hop headers (RFC 9110 section 7.6.1), and headers that claim an identity or an address. Listed again here, so
/// that a name that is lost from the lists of `request::headers` is noticed.
const NEVER_OF_A_CLIENT: [&str; 14] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "authorization",
    "forwarded",
    "x-real-ip",
    "x-remote-user",
    "x-remote-group",
    "x-original-url",
];

const IMPERSONATED_ACTOR: &str = "impersonate-extra-doorward.dev%2factor";
const IMPERSONATED_CLIENT: &str = "impersonate-extra-doorward.dev%2fclient";

/// Checks of the header fields of a request, and of a response with the same ones:
///
/// - On any kind of route, no header is forwarded that asks to impersonate, that another program would take for
///   Doorward's own, or that belongs to the client's connection. Doorward's own headers are present once, with
///   Doorward's values.
/// - Forwarded values are what was sent: none is made up or changed.
/// - The same holds for the trailers of a request.
/// - A response loses what belongs to the upstream's connection, and every cookie of Doorward's.
pub fn headers(bytes: &[u8]) {
    let (sent, _) = fields(bytes);
    for (version, trusted) in ARRIVALS {
        let Some(clean) = cleaned(&sent, version, trusted) else { continue };
        check_clean(&sent, &clean, trusted);
        for kind in KINDS {
            check_outbound(kind, &sent, &clean);
        }
    }
    check_trailers(&sent);
    check_response(sent);
}

fn cleaned(sent: &HeaderMap, version: Version, trusted: bool) -> Option<CleanRequest<()>> {
    let mut request = Request::builder().version(version).uri("/a?b").body(()).unwrap();
    *request.headers_mut() = sent.clone();
    if version == Version::HTTP_2 {
        *request.uri_mut() = "http://a.test/a?b".parse().unwrap();
    }
    let proxies: [IpNet; 1] = ["192.0.2.0/24".parse().unwrap()];
    let arrival = Arrival {
        peer: SocketAddr::from(([192, 0, 2, 1], 1)),
        peer_line: None,
        lacks_proxy_address: false,
        trusted,
        trusted_proxies: if trusted { &proxies } else { &[] },
        tls: false,
        server_name: None,
    };
    sanitize(request, arrival, Uuid::from_u128(7), |host| Some(host.into())).ok()
}

fn check_trailers(sent: &HeaderMap) {
    let mut passed = sent.clone();
    clean_trailers(&mut passed);
    for name in sent.keys() {
        let is_plain = classify(name) == Class::EndToEnd && name != "x-request-id";
        assert!(!is_plain || passed.get_all(name).iter().eq(sent.get_all(name).iter()), "{name} was changed");
        assert_eq!(passed.contains_key(name), is_plain, "{name}");
        assert!(!(passed.contains_key(name) && NEVER_OF_A_CLIENT.contains(&name.as_str())), "{name} was let through");
    }
}

fn check_clean(sent: &HeaderMap, clean: &CleanRequest<()>, trusted: bool) {
    for name in clean.headers().keys() {
        assert!(matches!(classify(name), Class::EndToEnd | Class::Credential), "{name} was let through");
        assert!(!name.as_str().contains('_'), "{name} can be read as another name");
    }
    let asked = sent.keys().any(|name| name.as_str().starts_with("impersonate"));
    assert_eq!(!clean.meta().impersonation.is_empty(), asked, "what was asked is neither ignored nor made up");
    if !trusted {
        assert_eq!(clean.meta().client.to_string(), "192.0.2.1", "a stranger named itself");
    }
}

fn check_outbound(kind: RouteKind, sent: &HeaderMap, clean: &CleanRequest<()>) {
    let principal = Principal {
        username: "alice".into(),
        scheme: Scheme::Bearer,
        client: Some("web".into()),
        actor: Some(Actor { issuer: None, subject: "worker".into(), client: None }),
        ..Principal::anonymous()
    };
    let groups = ["dev".into(), "ops".into()];
    let lifetime = clean.meta().upgrade.map_or(Lifetime::Short, Lifetime::Upgrade);
    let received = clean.headers().clone();
    let built = headers_for(kind, &[], received, lifetime, clean.meta(), &principal, &groups).unwrap();

    let all = |name: &str| built.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    let (users, others) = match kind {
        RouteKind::Kubernetes => ("impersonate-user", "impersonate-group"),
        RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Http => ("x-forwarded-user", "x-forwarded-groups"),
    };
    assert_eq!((all(users), all(others)), (vec!["alice"], vec!["dev", "ops"]), "{kind:?}");
    let (actor, client) = match kind {
        RouteKind::Kubernetes => (IMPERSONATED_ACTOR, IMPERSONATED_CLIENT),
        RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Http => ("x-forwarded-actor", "x-forwarded-client"),
    };
    assert_eq!((all(actor), all(client)), (vec!["worker"], vec!["web"]), "{kind:?}");
    let id = if kind == RouteKind::Kubernetes { "audit-id" } else { "x-request-id" };
    assert_eq!(all(id), [Uuid::from_u128(7).to_string()], "{kind:?}");
    assert_eq!(all("x-forwarded-for"), [clean.meta().client.to_string()], "{kind:?}");

    let passes_on = |name: &str| built.get_all(name).iter().eq(sent.get_all(name).iter());
    assert!(!built.contains_key("traceparent") || passes_on("traceparent"), "{kind:?}: a trace was changed");
    let ours: &[&str] = match kind {
        RouteKind::Kubernetes => &[
            "impersonate-user",
            "impersonate-group",
            IMPERSONATED_ACTOR,
            IMPERSONATED_CLIENT,
            "audit-id",
            "x-forwarded-for",
            "traceparent",
            "tracestate",
        ],
        RouteKind::Webhook | RouteKind::Dashboard | RouteKind::Http => &[
            "x-forwarded-user",
            "x-forwarded-groups",
            "x-forwarded-actor",
            "x-forwarded-client",
            "x-request-id",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "traceparent",
            "tracestate",
            "host",
        ],
    };
    let nominated: Vec<HeaderName> = sent
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|token| token.trim().parse().ok())
        .collect();
    for name in built.keys() {
        if *name == header::TE {
            // Set by Doorward for gRPC; nothing else of the client's `TE` is forwarded.
            let is_ours = kind == RouteKind::Http && clean.meta().accepts_trailers;
            assert!(is_ours && all("te") == ["trailers"], "{kind:?}: te");
            continue;
        }
        assert!(!NEVER_OF_A_CLIENT.contains(&name.as_str()), "{kind:?}: {name}");
        if ours.contains(&name.as_str()) {
            continue;
        }
        if *name == header::COOKIE {
            assert!(matches!(kind, RouteKind::Dashboard | RouteKind::Http), "{kind:?}: a cookie");
            assert!(
                cookie::pairs(&built).all(|(name, _)| !name.starts_with(cookie::PREFIX.as_bytes())),
                "{kind:?}: our cookie"
            );
            continue;
        }
        assert_eq!(classify(name), Class::EndToEnd, "{kind:?}: {name}");
        assert!(!nominated.contains(name), "{kind:?}: {name} belongs to the client's connection");
        assert!(passes_on(name.as_str()), "{kind:?}: {name} was changed");
    }
}

fn check_response(mut headers: HeaderMap) {
    let before = headers.clone();
    clean_response(&mut headers, cookie::PREFIX);
    for name in ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"] {
        assert!(!headers.contains_key(name), "{name} of an upstream's connection");
    }
    for (name, value) in &headers {
        assert!(before.get_all(name).iter().any(|sent| sent == value), "{name} was made up");
    }
    for value in headers.get_all(header::SET_COOKIE) {
        let text = String::from_utf8_lossy(value.as_bytes());
        let text = text.trim_start_matches(['=', ' ', '\t']);
        assert!(!text.starts_with(cookie::PREFIX), "an upstream set our cookie");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::corpus;

    #[test]
    fn corpus_requests_are_admitted_in_every_arrival_and_cover_each_class_of_headers() {
        let sent: Vec<HeaderMap> = corpus("headers").iter().map(|bytes| fields(bytes).0).collect();
        for (version, trusted) in ARRIVALS {
            let count = sent.iter().filter(|sent| cleaned(sent, version, trusted).is_some()).count();
            assert!(count >= 5, "{version:?}, trusted: {trusted}: {count}");
        }
        let classes: Vec<Class> = sent.iter().flat_map(|sent| sent.keys()).map(classify).collect();
        for class in [Class::EndToEnd, Class::Dropped, Class::Impersonation, Class::Credential, Class::Ambiguous] {
            assert!(classes.contains(&class), "{class:?}");
        }
    }
}
