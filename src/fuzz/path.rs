//! The body of the fuzz target for paths.

use http::{Method, Request};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use crate::{
    kubernetes::Attributes,
    request::{
        path::check_canonical,
        sanitize::{Arrival, sanitize},
    },
};

/// Checks of a request target. If its path is accepted,
///
/// - a URL parser does not change it, so it has only one form;
/// - decoding gives the same number of segments, none of them `.` or `..`, and no character at which a file system or a
///   C string would be cut;
/// - routing, decision and forwarding use what was sent, byte for byte;
/// - Kubernetes attributes are read from the same segments.
pub fn path(bytes: &[u8]) {
    let Ok(target) = str::from_utf8(bytes) else { return };
    let Ok(request) = Request::builder().uri(target).header("host", "a.test").body(()) else { return };
    let sent = request.uri().path().to_owned();
    let query = request.uri().query().map(str::to_owned);
    let accepted = check_canonical(&sent);
    let clean = sanitize(request, Arrival::of_tests(), Uuid::nil(), |host| Some(host.into()));
    if accepted.is_err() {
        assert!(clean.is_err(), "{sent} is not canonical and was let through");
        return;
    }

    let url = url::Url::parse(&format!("http://a.test{sent}")).unwrap();
    assert_eq!(url.path(), sent, "has another form");
    assert!(sent.starts_with('/') && !sent.contains("//"));
    for segment in sent.split('/') {
        let decoded: Vec<u8> = percent_decode_str(segment).collect();
        assert!(!matches!(&*decoded, b"." | b".."), "{sent} has a dot segment");
        assert!(
            !decoded.iter().any(|byte| byte.is_ascii_control() || matches!(byte, b'/' | b'\\')),
            "{sent} hides a delimiter"
        );
    }
    if let Ok(clean) = clean {
        assert_eq!(clean.path(), sent);
        assert_eq!(clean.query(), query.as_deref());
    }
    if let Ok(attributes) = Attributes::parse(&Method::GET, &sent, query.as_deref()) {
        assert_eq!(attributes.path, percent_decode_str(&sent).decode_utf8().unwrap());
        let parts = [&attributes.namespace, &attributes.resource, &attributes.name, &attributes.subresource];
        if query.is_none() {
            for part in parts.into_iter().filter(|part| !part.is_empty()) {
                assert!(attributes.path.split('/').any(|segment| segment == part), "{part} is not in {sent}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::corpus;

    #[test]
    fn corpus_paths_are_admitted_with_queries_and_resource_names() {
        let (mut accepted, mut with_query, mut with_name) = (0, 0, 0);
        for bytes in corpus("path") {
            let Ok(request) = Request::builder().uri(&*bytes).header("host", "a.test").body(()) else { continue };
            let (path, query) = (request.uri().path().to_owned(), request.uri().query().map(str::to_owned));
            if sanitize(request, Arrival::of_tests(), Uuid::nil(), |host| Some(host.into())).is_err() {
                continue;
            }
            accepted += 1;
            with_query += u32::from(query.is_some());
            let attributes = Attributes::parse(&Method::GET, &path, query.as_deref());
            with_name +=
                u32::from(attributes.is_ok_and(|attributes| attributes.is_resource && !attributes.name.is_empty()));
        }
        assert!(accepted >= 5 && with_query > 0 && with_name > 0, "{accepted}, {with_query}, {with_name}");
    }
}
