//! Where a session is used, in a form that its person recognises.

use std::net::IpAddr;

use http::{HeaderMap, header};

/// The number of characters of a `User-Agent` that are stored.
const MAX_AGENT: usize = 256;

/// The browser and the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The `User-Agent`, truncated.
    pub agent: Option<String>,
    pub address: Option<IpAddr>,
}

impl Seen {
    pub fn of(headers: &HeaderMap, address: IpAddr) -> Self {
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        Self { agent: agent.map(|agent| agent.chars().take(MAX_AGENT).collect()), address: Some(address) }
    }
}

/// A short description of a browser, such as `Firefox on Linux`. Browsers also name others for compatibility, so the
/// order matters.
pub fn browser(agent: &str) -> String {
    const BROWSERS: [(&str, &str); 10] = [
        ("Edg", "Edge"),
        ("OPR/", "Opera"),
        ("SamsungBrowser/", "Samsung Internet"),
        ("Vivaldi/", "Vivaldi"),
        ("FxiOS/", "Firefox"),
        ("CriOS/", "Chrome"),
        ("Firefox/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
        ("curl/", "curl"),
    ];
    const SYSTEMS: [(&str, &str); 8] = [
        ("Windows", "Windows"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Android", "Android"),
        ("CrOS", "ChromeOS"),
        ("Mac OS X", "macOS"),
        ("Macintosh", "macOS"),
        ("Linux", "Linux"),
    ];
    let find =
        |known: &[(&str, &'static str)]| known.iter().find(|(mark, _)| agent.contains(mark)).map(|(_, name)| *name);
    match (find(&BROWSERS), find(&SYSTEMS)) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(browser), None) => browser.to_owned(),
        (None, Some(system)) => format!("A browser on {system}"),
        (None, None) => "An unknown browser".to_owned(),
    }
}

/// Whether two stored `User-Agent`s may be of the same browser: they differ in version numbers only, as it may have been
/// updated between two logins, or one of them is not known.
pub fn may_be_same_browser(agent: Option<&str>, other: Option<&str>) -> bool {
    let unversioned = |agent: &str| agent.replace(|c: char| c.is_ascii_digit() || c == '.' || c == '_', "");
    agent.zip(other).is_none_or(|(agent, other)| unversioned(agent) == unversioned(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_known_again() {
        for (agent, name) in [
            ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
                "Chrome on Windows",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36 Edg/141.0.0.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.0 Safari/605.1.15",
                "Safari on macOS",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/141.0 Mobile/15E148 Safari/604.1",
                "Chrome on iPhone",
            ),
            ("Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0", "Firefox on Android"),
            ("curl/8.14.1", "curl"),
            ("Mozilla/5.0 (X11; Linux x86_64) Something/1", "A browser on Linux"),
            ("", "An unknown browser"),
        ] {
            assert_eq!(browser(agent), name, "{agent}");
        }
    }

    #[test]
    fn an_agent_is_cut_and_text() {
        let address = IpAddr::from([192, 0, 2, 7]);
        let mut headers = HeaderMap::new();
        assert_eq!(Seen::of(&headers, address), Seen { agent: None, address: Some(address) });
        headers.insert(header::USER_AGENT, "x".repeat(1000).parse().unwrap());
        assert_eq!(Seen::of(&headers, address).agent.unwrap().len(), MAX_AGENT);
        headers.insert(header::USER_AGENT, http::HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(Seen::of(&headers, address).agent, None);
    }
}
