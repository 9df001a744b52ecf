//! Where a login leads back to: a path of our own host, and nothing else.

use percent_encoding::percent_decode_str;
use url::Url;

use crate::sessions::Origin;

/// Longer addresses are not kept: they travel in a cookie, of which a browser keeps 4096 bytes.
const MAX_LEN: usize = 1536;

/// The path and query to return to, if `address` is one of ours in its normal form.
///
/// Strict by construction: only an address that the URL parser, resolving it against our own origin, leaves on that
/// origin and does not change at all. Whatever a browser could read in another way (backslashes, blanks, control
/// characters, dot segments, a second slash, an encoded form of any of them) is then out, without a list of tricks.
pub fn check(origin: &Origin, address: &str) -> Option<String> {
    let address = address.split_once('#').map_or(address, |(before, _)| before);
    if address.len() > MAX_LEN || !address.starts_with('/') || !address.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let base = Url::parse(&origin.url("/")).ok()?;
    let resolved = base.join(address).ok()?;
    if resolved.origin() != base.origin() || !resolved.username().is_empty() || resolved.password().is_some() {
        return None;
    }
    let (path, query) = match address.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (address, None),
    };
    if resolved.path() != path || resolved.query() != query {
        return None;
    }
    let decoded = percent_decode_str(path).decode_utf8().ok()?;
    let strange = |character: char| character == '\\' || character.is_control() || character.is_whitespace();
    if decoded.contains("//") || decoded.contains(strange) || address.contains('\\') {
        return None;
    }
    // A login that leads to a login, or to a logout, leads nowhere.
    (path != "/oauth2" && !path.starts_with("/oauth2/")).then(|| address.to_owned())
}

/// The same, or the front page.
pub fn or_front_page(origin: &Origin, address: Option<&str>) -> String {
    address.and_then(|address| check(origin, address)).unwrap_or_else(|| "/".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Origin {
        Origin::https("dash.example.com").unwrap()
    }

    #[test]
    fn addresses_of_ours_survive_unchanged() {
        for address in [
            "/",
            "/a",
            "/a/b/",
            "/namespaces/default/pipelineruns?labelSelector=tekton.dev%2Fpipeline%3Ddeploy",
            "/a?b=c&d=e%20f",
            "/a?next=https://elsewhere.example/",
            "/a?b=//evil.com",
            "/a..b",
            "/a%20b?",
            "/J%C3%BCrgen",
            "/@evil.com",
            "/:80/",
            "/a:b@c",
            "/oauth2x",
        ] {
            // A blank in a path is fine for a URL and not for a redirect.
            let expected = (!address.contains("a%20b")).then_some(address);
            assert_eq!(check(&ours(), address).as_deref(), expected, "{address}");
        }
        assert_eq!(check(&ours(), "/a?b#/c").as_deref(), Some("/a?b"));
    }

    /// What stands in a `rd` parameter after it was decoded once. Rows of the advisories by id, the rest by class.
    #[test]
    fn addresses_that_lead_elsewhere_lead_to_the_front_page() {
        let rows: &[(&str, &str)] = &[
            ("peers:T1", "//evil.com"),
            ("peers:T1", "http://evil.com"),
            ("peers:T3", "/\\evil.com"),
            ("peers:T3 still encoded", "/%5Cevil.com"),
            ("peers:T3 still encoded", "%2F%5Cevil.com"),
            ("peers:T4 tab", "/\t/evil.com"),
            ("peers:T4 line feed", "/\n/evil.com"),
            ("peers:T4 carriage return", "/\r\\evil.com"),
            ("peers:T4 vertical tab", "/\u{b}/evil.com"),
            ("peers:T4 space", "/ /evil.com"),
            ("peers:T4 space", "/ \\evil.com"),
            ("peers:T4 still encoded", "/%09/evil.com"),
            ("peers:T4 still encoded", "/%0a/evil.com"),
            ("peers:T4 still encoded", "/%0d\\evil.com"),
            ("peers:T4 still encoded", "/%0b/evil.com"),
            ("peers:T4 still encoded", "/%20\\evil.com"),
            ("peers:T5", "/\t/\t\\evil.com"),
            ("peers:T5", "/\t\t\\\t/evil.com"),
            ("peers:T5 still encoded", "/%09/%09\\evil.com"),
            ("peers:T5 still encoded", "/%09%09\\%09/evil.com"),
            ("peers:T5", "/./\\evil.com"),
            ("peers:T5", "/./../../\\evil.com"),
            ("peers:T6", "http://evilbar.foo"),
            ("peers:T6", "http://foo.bar.evil.corp"),
            ("empty", ""),
            ("relative", "evil.com"),
            ("relative", "a/b"),
            ("dot", "./a"),
            ("query only", "?a=b"),
            ("fragment only", "#a"),
            ("three slashes", "///evil.com"),
            ("four slashes", "////evil.com"),
            ("backslashes", "\\\\evil.com"),
            ("backslash first", "\\/evil.com"),
            ("slash in the middle", "/a//evil.com"),
            ("double slash after a dot", "/.//evil.com"),
            ("double slash after dots", "/a/..//evil.com"),
            ("dot segments", "/a/../b"),
            ("dot segments encoded", "/a/%2e%2e/b"),
            ("dot segments half encoded", "/a/.%2E/b"),
            ("double slash encoded", "/%2F/evil.com"),
            ("double slash encoded", "/%2f%2fevil.com"),
            ("slash encoded", "/%2fevil.com"),
            ("https", "https://evil.com/"),
            ("own host, other scheme", "http://dash.example.com/"),
            ("own host, absolute", "https://dash.example.com/a"),
            ("own host as a user", "https://dash.example.com@evil.com/"),
            ("own host as a label", "https://dash.example.com.evil.com/"),
            ("own host, other port", "//dash.example.com:444/"),
            ("scheme without slashes", "https:evil.com"),
            ("scheme with one slash", "https:/evil.com"),
            ("scheme in capitals", "HTTPS://EVIL.COM"),
            ("script", "javascript:alert(1)"),
            ("script with a comment", "javascript://%0aalert(1)"),
            ("script in capitals", "JaVaScRiPt:alert(1)"),
            ("data", "data:text/html,x"),
            ("vbscript", "vbscript:x"),
            ("file", "file:///etc/passwd"),
            ("blob", "blob:https://evil.com/x"),
            ("address as a number", "//2130706433/"),
            ("address in hex", "//0x7f.1/"),
            ("address in octal", "//0177.0.0.1/"),
            ("IPv6", "//[::1]/"),
            ("IPv6 mapped", "//[::ffff:127.0.0.1]/"),
            ("user only", "//@evil.com/"),
            ("user and password", "//a:b@evil.com/"),
            ("ideographic full stop", "//evil\u{3002}com"),
            ("full-width slash", "/\u{ff0f}evil.com"),
            ("fraction slash", "/\u{2044}evil.com"),
            ("division slash", "/\u{2215}/evil.com"),
            ("look-alike letters", "//еvil.com"),
            ("no-break space", "/\u{a0}/evil.com"),
            ("zero width", "/\u{200b}/evil.com"),
            ("right to left", "/\u{202e}moc.live"),
            ("byte order mark", "\u{feff}//evil.com"),
            ("soft hyphen", "/\u{ad}/evil.com"),
            ("null", "/\0/evil.com"),
            ("null encoded", "/%00/evil.com"),
            ("delete", "/\u{7f}/evil.com"),
            ("header splitting", "/a\r\nSet-Cookie: a=b"),
            ("header splitting encoded", "/a%0d%0aSet-Cookie:%20a=b"),
            ("leading space", " /a"),
            ("leading tab", "\t//evil.com"),
            ("trailing space", "/a "),
            ("backslash in the query", "/a?b\\c"),
            ("backslash encoded", "/a%5c..%5c"),
            ("not UTF-8 when decoded", "/%ff"),
            ("cut escape", "/%"),
            ("quote", "/\"onload="),
            ("angle brackets", "/<script>"),
            ("query not in normal form", "/a?\"<script>"),
            ("our own login", "/oauth2/start?rd=/a"),
            ("our own logout", "/oauth2/sign_out"),
            ("our own folder", "/oauth2"),
        ];
        assert!(rows.len() >= 60);
        for (row, address) in rows {
            let found = check(&ours(), address);
            // A cut escape is odd but leads nowhere else; every other row is refused.
            let expected = (*row == "cut escape").then(|| (*address).to_owned());
            assert_eq!(found, expected, "{row}: {address:?}");
            assert!(or_front_page(&ours(), Some(address)).starts_with('/'));
        }
        assert_eq!(check(&ours(), &format!("/{}", "a".repeat(MAX_LEN))), None);
        assert!(check(&ours(), &format!("/{}", "a".repeat(MAX_LEN - 1))).is_some());
    }

    proptest::proptest! {
        #[test]
        fn what_is_kept_resolves_to_our_origin(address in "[/\\\\.a%0259fFcC:@?#\t\n \u{a0}]{0,24}") {
            if let Some(kept) = check(&ours(), &address) {
                let ours = ours();
                let url = Url::parse(&ours.url("/")).unwrap().join(&kept).unwrap();
                proptest::prop_assert_eq!(url.origin().ascii_serialization(), ours.as_str());
                proptest::prop_assert!(!kept.starts_with("//") && !kept.contains('\\'));
            }
        }
    }
}
