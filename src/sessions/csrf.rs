//! CSRF checks of requests with a cookie. A browser adds the cookie whoever made it send the request, so a request that
//! changes something or opens a stream must prove that one of Doorward's own pages sent it.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::Origin;
use crate::{
    error::{Reason, Rejection},
    request::headers::{media_type, tokens},
};

static SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
static SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static SEC_FETCH_USER: HeaderName = HeaderName::from_static("sec-fetch-user");
static SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
static UPGRADE_INSECURE_REQUESTS: HeaderName = HeaderName::from_static("upgrade-insecure-requests");
static X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Refuses a request with a cookie that changes something, or upgrades, unless it comes from our own origin. SameSite
/// is not sufficient: a sibling domain is the same site, and WebSockets are not bound by CORS at all.
pub fn check(method: &Method, headers: &HeaderMap, upgrade: bool, origin: &Origin) -> Result<(), Rejection> {
    if !upgrade && matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let site = single(headers, &SEC_FETCH_SITE);
    let ours = match (single(headers, &header::ORIGIN), site) {
        (Single::Twice, _) | (_, Single::Twice) => false,
        // A form of a page with `Referrer-Policy: no-referrer` has this origin (Fetch section 3.2). `Sec-Fetch-Site`
        // says whose it is: a sandboxed frame counts as another site, whatever its host. Requests that a service worker
        // passes on are excluded, as not all browsers say there where they began. WebKit has sent a wrong site, as for
        // a form that is sent again; it does not send `Sec-Fetch-User`.
        (Single::One("null"), Single::One("same-origin")) => {
            !upgrade && is_of_no_script(headers) && matches!(single(headers, &SEC_FETCH_USER), Single::One("?1"))
        }
        (Single::One(found), Single::One(site)) => found == origin.as_str() && site == "same-origin",
        (Single::One(found), Single::None) => found == origin.as_str(),
        // Browsers send `Origin` with every upgrade.
        (Single::None, Single::One(site)) => !upgrade && site == "same-origin",
        (Single::None, Single::None) => false,
    };
    if ours {
        return Ok(());
    }
    let what = if upgrade { "opens a stream" } else { "changes something" };
    Err(Rejection::new(
        Reason::OriginRefused,
        format!("this request carries a session cookie and {what}, but does not come from a page of {origin}"),
    )
    .fix("a program sends `Authorization: Bearer` instead of a cookie; a page must be of this very host"))
}

/// Whether a person is looking at a page: only then does a redirect to the login help. A fetch, an upgrade or a program
/// gets 401, which it can read.
pub fn is_navigation(method: &Method, headers: &HeaderMap) -> bool {
    // In this order, as the first two exclude most other requests, for which no other header is then looked up.
    *method == Method::GET
        && is_looked_at(headers).unwrap_or_else(|| accepts_html(headers))
        && !headers.contains_key(header::UPGRADE)
        && !headers.contains_key(&X_REQUESTED_WITH)
        && !headers.contains_key(&SEC_PURPOSE)
}

/// Whether a person sent a form and looks at the response: a refusal is then a page. A script that sends the same gets
/// a response that programs can read.
pub fn is_submission(method: &Method, headers: &HeaderMap) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
        || headers.contains_key(header::UPGRADE)
        || headers.contains_key(&X_REQUESTED_WITH)
    {
        return false;
    }
    is_looked_at(headers).unwrap_or_else(|| accepts_html(headers) && has_form(headers))
}

/// Whether a page of another host sent a form, according to the browser. Browsers omit the session cookie from
/// cross-site requests, so it is unknown whether the person is signed in.
pub fn is_form_of_another_host(method: &Method, headers: &HeaderMap) -> bool {
    is_submission(method, headers)
        && matches!(single(headers, &SEC_FETCH_SITE), Single::One("cross-site" | "same-site"))
}

/// Whether a person looks at the response; `None` if the browser does not say what it asks for.
fn is_looked_at(headers: &HeaderMap) -> Option<bool> {
    Some(match (single(headers, &SEC_FETCH_MODE), single(headers, &SEC_FETCH_DEST)) {
        (Single::None, Single::None) => return None,
        // `empty` comes from a service worker that passes on its request: no script can ask in this mode (Fetch section
        // 5.4). It may be for a frame, in which none of our pages is shown.
        (Single::One("navigate"), Single::One("document" | "empty")) => true,
        // Firefox sends this for such a navigation, and keeps two headers that a script does not send by default.
        (Single::One("same-origin"), Single::One("empty")) => {
            accepts_html(headers) && matches!(single(headers, &UPGRADE_INSECURE_REQUESTS), Single::One("1"))
        }
        _ => false,
    })
}

/// Whether the browser itself sends it for a page or a frame, and not a script or service worker.
fn is_of_no_script(headers: &HeaderMap) -> bool {
    let (mode, destination) = (single(headers, &SEC_FETCH_MODE), single(headers, &SEC_FETCH_DEST));
    matches!((mode, destination), (Single::One("navigate"), Single::One(destination)) if destination != "empty")
}

/// Whether the body has a media type of an HTML form.
fn has_form(headers: &HeaderMap) -> bool {
    let media = media_type(headers);
    ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]
        .iter()
        .any(|form| media.eq_ignore_ascii_case(form))
}

/// Whether it is a CORS preflight request (Fetch section 4.8). It never carries a credential, so it is answered here,
/// without any `Access-Control-Allow-*`, and never forwarded.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn accepts_html(headers: &HeaderMap) -> bool {
    tokens(headers, &header::ACCEPT).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let html = parts.next().is_some_and(|media| media.eq_ignore_ascii_case("text/html"));
        html && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

enum Single<'a> {
    None,
    One(&'a str),
    Twice,
}

/// The value of a header that must not be repeated. A value that is not text differs from every text.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Single<'a> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::to_str);
    match (values.next(), values.next()) {
        (None, _) => Single::None,
        (Some(value), None) => Single::One(value.unwrap_or_default()),
        (Some(_), Some(_)) => Single::Twice,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    const OURS: (&str, &str) = ("origin", "https://dash.example.com");
    const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");
    const NULL: (&str, &str) = ("origin", "null");
    const NAVIGATES: (&str, &str) = ("sec-fetch-mode", "navigate");
    const PAGE: (&str, &str) = ("sec-fetch-dest", "document");
    const FRAME: (&str, &str) = ("sec-fetch-dest", "iframe");
    const EMPTY: (&str, &str) = ("sec-fetch-dest", "empty");
    const PERSON: (&str, &str) = ("sec-fetch-user", "?1");
    /// Firefox sends this with each navigation.
    const SECURE: (&str, &str) = ("upgrade-insecure-requests", "1");

    #[test]
    fn only_our_own_pages_change_anything_with_a_cookie() {
        let origin = Origin::https("dash.example.com").unwrap();
        type Row<'a> = (&'a str, Method, bool, &'a [(&'static str, &'a str)], bool);
        let rows: &[Row<'_>] = &[
            ("read", Method::GET, false, &[], true),
            ("read from elsewhere", Method::GET, false, &[("sec-fetch-site", "cross-site")], true),
            ("post of ours", Method::POST, false, &[OURS, SAME], true),
            ("post of ours, old browser", Method::POST, false, &[OURS], true),
            ("post of ours without Origin", Method::POST, false, &[SAME], true),
            ("post with nothing", Method::POST, false, &[], false),
            ("post from another origin", Method::POST, false, &[("origin", "https://evil.example.com")], false),
            ("post from another port", Method::POST, false, &[("origin", "https://dash.example.com:444")], false),
            ("post from clear text", Method::POST, false, &[("origin", "http://dash.example.com")], false),
            (
                "post from another origin, told as ours",
                Method::POST,
                false,
                &[("origin", "https://evil.example.com"), SAME],
                false,
            ),
            (
                "post from clear text, told as ours",
                Method::POST,
                false,
                &[("origin", "http://dash.example.com"), SAME],
                false,
            ),
            ("post from null", Method::POST, false, &[("origin", "null")], false),
            ("form of a page without referrer", Method::POST, false, &[NULL, SAME, NAVIGATES, PAGE, PERSON], true),
            (
                "form of a page without referrer, sent again in WebKit",
                Method::POST,
                false,
                &[NULL, SAME, NAVIGATES, PAGE],
                false,
            ),
            (
                "form in a frame of a page without referrer",
                Method::POST,
                false,
                &[NULL, SAME, NAVIGATES, FRAME, PERSON],
                true,
            ),
            (
                "form of a sandboxed frame",
                Method::POST,
                false,
                &[NULL, ("sec-fetch-site", "cross-site"), NAVIGATES, PAGE, PERSON],
                false,
            ),
            ("form of null, old browser", Method::POST, false, &[NULL, NAVIGATES, PAGE], false),
            ("form of null by a service worker", Method::POST, false, &[NULL, SAME, NAVIGATES, EMPTY, PERSON], false),
            ("script of null", Method::POST, false, &[NULL, SAME, ("sec-fetch-mode", "no-cors"), EMPTY], false),
            (
                "null in another mode",
                Method::POST,
                false,
                &[NULL, SAME, ("sec-fetch-mode", "no-cors"), PAGE, PERSON],
                false,
            ),
            ("null that says nothing of its mode", Method::POST, false, &[NULL, SAME], false),
            ("upgrade from null of this host", Method::GET, true, &[NULL, SAME, NAVIGATES, PAGE, PERSON], false),
            ("post, two origins", Method::POST, false, &[OURS, ("origin", "https://evil.example.com")], false),
            ("post, the two disagree", Method::POST, false, &[OURS, ("sec-fetch-site", "cross-site")], false),
            ("post typed by hand", Method::POST, false, &[("sec-fetch-site", "none")], false),
            (
                "attacks:Z39 post",
                Method::POST,
                false,
                &[("content-type", "text/plain"), ("sec-fetch-site", "same-site")],
                false,
            ),
            (
                "kubernetes:W6 upgrade of a foreign page",
                Method::GET,
                true,
                &[("origin", "https://evil.example")],
                false,
            ),
            ("attacks:Z39 upgrade from null", Method::GET, true, &[("origin", "null")], false),
            ("attacks:Z39 upgrade without Origin", Method::GET, true, &[], false),
            ("attacks:Z39 upgrade, fetch metadata only", Method::GET, true, &[SAME], false),
            ("upgrade of ours", Method::GET, true, &[OURS], true),
            ("upgrade of ours, told as such", Method::GET, true, &[OURS, SAME], true),
            ("upgrade from a sibling", Method::GET, true, &[("origin", "https://ci.example.com")], false),
            (
                "upgrade from a sibling, told as ours",
                Method::GET,
                true,
                &[("origin", "https://ci.example.com"), SAME],
                false,
            ),
            ("delete", Method::DELETE, false, &[], false),
            ("patch", Method::PATCH, false, &[], false),
            ("unknown method", Method::from_bytes(b"PURGE").unwrap(), false, &[], false),
        ];
        for (row, method, upgrade, pairs, allowed) in rows {
            let result = check(method, &headers(pairs), *upgrade, &origin);
            assert_eq!(result.is_ok(), *allowed, "{row}");
            if let Err(rejection) = result {
                assert_eq!(rejection.reason(), Reason::OriginRefused, "{row}");
            }
        }
    }

    #[test]
    fn only_a_person_who_looks_at_a_page_is_sent_to_the_login() {
        let mode = |value| ("sec-fetch-mode", value);
        let destination = |value| ("sec-fetch-dest", value);
        const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        type Row<'a> = (&'a str, Method, &'a [(&'static str, &'a str)], bool);
        let rows: &[Row<'_>] = &[
            ("navigation", Method::GET, &[mode("navigate"), destination("document"), HTML], true),
            ("navigation by a service worker", Method::GET, &[NAVIGATES, EMPTY, HTML], true),
            ("navigation by one of Firefox", Method::GET, &[mode("same-origin"), EMPTY, SECURE, HTML], true),
            ("fetch of this host", Method::GET, &[mode("same-origin"), EMPTY, HTML], false),
            ("fetch of this host, no page", Method::GET, &[mode("same-origin"), EMPTY, SECURE], false),
            ("fetch with its header", Method::GET, &[mode("cors"), EMPTY, SECURE, HTML], false),
            (
                "prefetch by a service worker",
                Method::GET,
                &[NAVIGATES, EMPTY, HTML, ("sec-purpose", "prefetch")],
                false,
            ),
            ("mode alone", Method::GET, &[NAVIGATES, HTML], false),
            ("frame", Method::GET, &[mode("navigate"), destination("iframe"), HTML], false),
            ("fetch", Method::GET, &[mode("cors"), destination("empty"), HTML], false),
            ("image", Method::GET, &[mode("no-cors"), destination("image"), HTML], false),
            ("WebSocket", Method::GET, &[mode("websocket"), destination("websocket"), HTML], false),
            ("upgrade", Method::GET, &[("upgrade", "websocket"), HTML], false),
            ("prefetch", Method::GET, &[mode("navigate"), destination("document"), ("sec-purpose", "prefetch")], false),
            ("old browser", Method::GET, &[HTML], true),
            ("old browser, fetch", Method::GET, &[HTML, ("x-requested-with", "XMLHttpRequest")], false),
            ("html refused", Method::GET, &[("accept", "text/html;q=0, */*")], false),
            ("curl", Method::GET, &[("accept", "*/*")], false),
            ("peers:D17 followed log", Method::GET, &[("accept", "text/plain,*/*")], false),
            (
                "peers:D17 with fetch metadata",
                Method::GET,
                &[("accept", "text/plain,*/*"), mode("cors"), destination("empty")],
                false,
            ),
            ("kubectl", Method::GET, &[("accept", "application/json")], false),
            ("post", Method::POST, &[mode("navigate"), destination("document"), HTML], false),
            ("head", Method::HEAD, &[HTML], false),
        ];
        for (row, method, pairs, expected) in rows {
            assert_eq!(is_navigation(method, &headers(pairs)), *expected, "{row}");
        }
    }

    #[test]
    fn a_submitted_form_is_distinguished_from_a_request_by_a_script() {
        let mode = |value| ("sec-fetch-mode", value);
        let destination = |value| ("sec-fetch-dest", value);
        const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        type Row<'a> = (&'a str, Method, &'a [(&'static str, &'a str)], bool);
        let rows: &[Row<'_>] = &[
            ("form", Method::POST, &[mode("navigate"), destination("document"), FORM, HTML], true),
            ("form by a service worker", Method::POST, &[NAVIGATES, EMPTY, FORM, HTML], true),
            ("form by one of Firefox", Method::POST, &[mode("same-origin"), EMPTY, SECURE, FORM, HTML], true),
            ("fetch of this host", Method::POST, &[mode("same-origin"), EMPTY, FORM, HTML], false),
            ("form in a frame", Method::POST, &[mode("navigate"), destination("iframe"), FORM, HTML], false),
            ("fetch", Method::POST, &[mode("cors"), destination("empty"), FORM, HTML], false),
            ("old browser", Method::POST, &[FORM, HTML], true),
            ("old browser, file", Method::POST, &[("content-type", "multipart/form-data; boundary=x"), HTML], true),
            ("old browser, script", Method::POST, &[FORM, HTML, ("x-requested-with", "XMLHttpRequest")], false),
            ("JSON", Method::POST, &[("content-type", "application/json"), HTML], false),
            ("curl", Method::POST, &[FORM, ("accept", "*/*")], false),
            ("upgrade", Method::POST, &[("upgrade", "x"), FORM, HTML], false),
            ("a page", Method::GET, &[mode("navigate"), destination("document"), HTML], false),
        ];
        for (row, method, pairs, expected) in rows {
            assert_eq!(is_submission(method, &headers(pairs)), *expected, "{row}");
        }
    }

    #[test]
    fn a_form_of_another_host_is_distinguished_from_an_own_one_and_from_a_link() {
        let site = |value| ("sec-fetch-site", value);
        for (row, method, pairs, expected) in [
            ("another site", Method::POST, &[site("cross-site"), NAVIGATES, PAGE][..], true),
            ("a sibling", Method::POST, &[site("same-site"), NAVIGATES, PAGE], true),
            ("this host", Method::POST, &[SAME, NAVIGATES, PAGE], false),
            ("a link", Method::GET, &[site("cross-site"), NAVIGATES, PAGE], false),
            ("a script", Method::POST, &[site("cross-site"), ("sec-fetch-mode", "no-cors"), EMPTY], false),
        ] {
            assert_eq!(is_form_of_another_host(&method, &headers(pairs)), expected, "{row}");
        }
    }

    #[test]
    fn preflights_are_distinguished_from_other_options_requests() {
        let ask = ("access-control-request-method", "DELETE");
        assert!(is_preflight(&Method::OPTIONS, &headers(&[("origin", "https://evil.example"), ask])), "attacks:Z8");
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[OURS])));
        assert!(!is_preflight(&Method::OPTIONS, &headers(&[ask])));
        assert!(!is_preflight(&Method::GET, &headers(&[OURS, ask])));
    }
}
