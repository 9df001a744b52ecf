//! The address that a login returns to: a path of our own host, and nothing else.

use percent_encoding::percent_decode_str;
use url::Url;

use super::unsent;
use crate::sessions::Origin;

/// The maximum bytes of an address: it travels in a cookie, which browsers limit to 4096 bytes.
const MAX_LEN: usize = 1536;

/// The path, query and fragment to return to, if `address` is one of ours in its normal form. A fragment that is not
/// in its normal form, or too long, is dropped, as it cannot lead elsewhere.
///
/// Strict by construction: the URL parser, resolving the address against our own origin, must stay on that origin and
/// leave the address unchanged. This excludes everything that a browser could read differently (backslashes, spaces
/// except within a name, control characters, dot segments, a second slash, encoded forms of these) without a list of
/// tricks.
pub fn check(origin: &Origin, address: &str) -> Option<String> {
    let (before, fragment) = address.split_once('#').map_or((address, None), |(before, after)| (before, Some(after)));
    let kept = without_fragment(origin, before)?;
    Some(match fragment.filter(|fragment| is_fragment(origin, fragment)) {
        Some(fragment) if kept.len() + fragment.len() < MAX_LEN => format!("{kept}#{fragment}"),
        _ => kept.to_owned(),
    })
}

fn without_fragment<'a>(origin: &Origin, address: &'a str) -> Option<&'a str> {
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
    let strange = |character: char| {
        character == '\\' || character.is_control() || (character.is_whitespace() && character != ' ')
    };
    // A space within a name is harmless. At the edge of a name, a client may trim it and read another address.
    let has_edge = || decoded.split('/').any(|name| name.starts_with(' ') || name.ends_with(' '));
    if decoded.contains("//") || decoded.contains(strange) || has_edge() || address.contains('\\') {
        return None;
    }
    // A login must not return to a login or a logout. The page about a form that was not sent is shown after one.
    let ours = path == "/oauth2" || path.starts_with("/oauth2/");
    (!ours || path == unsent::PATH).then_some(address)
}

fn is_fragment(origin: &Origin, fragment: &str) -> bool {
    let resolved = Url::parse(&origin.url("/")).and_then(|base| base.join(&format!("#{fragment}")));
    !fragment.is_empty()
        && fragment.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        && resolved.is_ok_and(|resolved| resolved.fragment() == Some(fragment))
}

/// The address that a login returns to, if `address` was requested. An absolute URL of this origin counts as its path,
/// as in configurations written for oauth2-proxy.
pub fn of(origin: &Origin, address: Option<&str>) -> ReturnTo {
    let path = |address| str::strip_prefix(address, origin.as_str()).filter(|rest| rest.starts_with('/'));
    let kept = address.and_then(|address| check(origin, path(address).unwrap_or(address)));
    ReturnTo { is_elsewhere: address.is_some() && kept.is_none(), address: kept.unwrap_or_else(|| "/".to_owned()) }
}

/// The address that a login returns to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnTo {
    pub address: String,
    /// Whether it is the front page in place of the requested address, whose fragment must then be dropped.
    pub is_elsewhere: bool,
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn ours() -> Origin {
        Origin::https("dash.example.com").unwrap()
    }

    #[test]
    fn a_full_own_address_is_reduced_to_its_path() {
        for (address, path) in [
            ("https://dash.example.com/a?b=c#d", "/a?b=c#d"),
            ("https://dash.example.com/", "/"),
            ("https://dash.example.com", "/"),
            ("http://dash.example.com/a", "/"),
            ("https://dash.example.com:8443/a", "/"),
            ("https://dash.example.com.evil.example/a", "/"),
            ("https://dash.example.com@evil.example/a", "/"),
            ("https://dash.example.com//evil.example", "/"),
            ("https://dash.example.com/\\evil.example", "/"),
            ("https://dash.example.com/oauth2/sign_out", "/"),
        ] {
            assert_eq!(of(&ours(), Some(address)).address, path, "{address}");
        }
    }

    #[test]
    fn own_addresses_are_kept_unchanged() {
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
            "/%e3%81%82/x%20y%20z?q=%201",
            "/J%C3%BCrgen",
            "/@evil.com",
            "/:80/",
            "/a:b@c",
            "/oauth2x",
            "/%",
            "/%252Fevil.com",
        ] {
            assert_eq!(check(&ours(), address).as_deref(), Some(address), "{address}");
        }
    }

    #[test]
    fn encoded_blanks_at_an_edge_and_blank_like_characters_are_refused() {
        for address in
            ["/%20", "/%20a", "/a%20/b", "/a/%20b", "/a%20", "/a%C2%A0b", "/a%E2%80%83b", "/a%09b", "/a%E3%80%80b"]
        {
            assert_eq!(check(&ours(), address), None, "{address}");
        }
    }

    #[test]
    fn a_rejected_return_address_is_distinguished_from_none() {
        for (address, is_elsewhere) in
            [(None, false), (Some("/a"), false), (Some("/"), false), (Some("//evil.com"), true), (Some("/a%20"), true)]
        {
            assert_eq!(of(&ours(), address).is_elsewhere, is_elsewhere, "{address:?}");
        }
    }

    #[test]
    fn fragments_survive_in_their_normal_form() {
        let long = format!("/a#{}", "f".repeat(MAX_LEN));
        for (address, kept) in [
            ("/a?b#/c", "/a?b#/c"),
            ("/#/namespaces/ci/pipelineruns?labelSelector=a%3Db", "/#/namespaces/ci/pipelineruns?labelSelector=a%3Db"),
            ("/a#//evil.com", "/a#//evil.com"),
            ("/a#b#c", "/a#b#c"),
            ("/a#", "/a"),
            ("/a#b c", "/a"),
            ("/a#\r\nSet-Cookie: a=b", "/a"),
            ("/a#<script>", "/a"),
            ("/a#\u{e9}", "/a"),
            (&long, "/a"),
        ] {
            assert_eq!(check(&ours(), address).as_deref(), Some(kept), "{address}");
        }
        assert_eq!(check(&ours(), "//evil.com#/a"), None);
        assert_eq!(check(&ours(), "/oauth2/unsent?notice=x").as_deref(), Some("/oauth2/unsent?notice=x"));
    }

    /// The rows of the advisories, as in a `rd` parameter after decoding it once.
    #[test]
    fn addresses_from_security_advisories_redirect_to_the_front_page() {
        for (row, address) in [
            ("peers:T1", "//evil.com"),
            ("peers:T1", "http://evil.com"),
            ("peers:T3", "/\\evil.com"),
            ("peers:T3 still encoded", "/%5Cevil.com"),
            ("peers:T4 tab", "/\t/evil.com"),
            ("peers:T4 space", "/ \\evil.com"),
            ("peers:T4 still encoded", "/%0d\\evil.com"),
            ("peers:T5", "/\t/\t\\evil.com"),
            ("peers:T5 still encoded", "/%09%09\\%09/evil.com"),
            ("peers:T6", "http://evilbar.foo"),
            ("peers:T6", "http://foo.bar.evil.corp"),
        ] {
            assert_eq!(check(&ours(), address), None, "{row}: {address:?}");
        }
    }

    /// Addresses by class, which the black-box tests also open in a browser.
    #[test]
    fn foreign_addresses_redirect_to_the_front_page() {
        let classes: BTreeMap<String, Vec<String>> =
            serde_json::from_str(include_str!("return_to/hostile.json")).unwrap();
        assert!(classes.len() >= 20 && classes.values().flatten().collect::<BTreeSet<_>>().len() >= 200);
        for (class, addresses) in classes {
            for address in addresses {
                assert_eq!(of(&ours(), Some(&address)).address, "/", "{class}: {address:?}");
            }
        }
        assert_eq!(check(&ours(), &format!("/{}", "a".repeat(MAX_LEN))), None);
        assert!(check(&ours(), &format!("/{}", "a".repeat(MAX_LEN - 1))).is_some());
    }

    proptest::proptest! {
        #[test]
        fn accepted_return_addresses_resolve_to_our_origin(address in "[/\\\\.a%0259fFcC:@?#\t\n \u{a0}]{0,24}") {
            if let Some(kept) = check(&ours(), &address) {
                let ours = ours();
                let url = Url::parse(&ours.url("/")).unwrap().join(&kept).unwrap();
                proptest::prop_assert_eq!(url.origin().ascii_serialization(), ours.as_str());
                proptest::prop_assert!(!kept.starts_with("//") && !kept.contains('\\'));
            }
        }
    }
}
