//! The configured name and logo of the pages.

use std::{path::Path, sync::Arc};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;

use super::{ICON, policy};
use crate::config::{raw, report::At, resolver::Resolver};

/// The maximum bytes of a logo, which is embedded in each page.
const MAX_LOGO: usize = 32 << 10;

/// The maximum bytes of a name.
const MAX_NAME: usize = 60;

/// The name and logo on each page, with the policies of pages. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Brand {
    name: Arc<str>,
    /// The logo as a `data:` URL.
    logo: Option<Arc<str>>,
    /// The icon of the browser tab: the logo, or a door.
    icon: Arc<str>,
    pub(super) policy: HeaderValue,
    pub(super) policy_with_script: HeaderValue,
}

impl Default for Brand {
    fn default() -> Self {
        Self::new("Doorward", None)
    }
}

impl Brand {
    fn new(name: &str, logo: Option<String>) -> Self {
        let logo: Option<Arc<str>> = logo.map(Arc::from);
        let icon = logo.clone().unwrap_or_else(|| data("image/svg+xml", ICON).into());
        Self { name: name.into(), logo, icon, policy: policy(false), policy_with_script: policy(true) }
    }

    /// Reads the settings. Reports every problem at its place; `None` if there is one.
    pub fn resolve(raw: &raw::Pages, resolver: &mut Resolver, at: &At) -> Option<Self> {
        let name = raw.name.as_deref().map_or("Doorward", str::trim);
        let bad = name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control);
        if bad {
            resolver
                .error(
                    &at.key("name"),
                    format!("the name is empty, longer than {MAX_NAME} bytes, or has control characters"),
                )
                .help("write it as people should read it, such as `Example Corp CI`");
        }
        let logo = match &raw.logo {
            Some(path) => Some(read(path, resolver, &at.key("logo"))?),
            None => None,
        };
        (!bad).then(|| Self::new(name, logo))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn logo(&self) -> Option<&str> {
        self.logo.as_deref()
    }

    pub(super) fn icon(&self) -> &str {
        &self.icon
    }
}

fn data(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", BASE64_STANDARD.encode(bytes))
}

fn read(path: &Path, resolver: &mut Resolver, at: &At) -> Option<String> {
    let bytes = resolver.read(at, path)?;
    if bytes.len() > MAX_LOGO {
        let what =
            format!("the logo has {} bytes; it is embedded in each page, so {MAX_LOGO} are allowed", bytes.len());
        resolver.error(at, what).help("an SVG, or a PNG of 128 pixels, is enough");
        return None;
    }
    let Some(kind) = kind_of(&bytes) else {
        resolver.error(at, "the logo is neither SVG nor PNG").help("give a file of one of these two kinds");
        return None;
    };
    Some(data(kind, &bytes))
}

/// The media type by the content, as browsers are told not to guess. Scripts of an SVG do not run in an `img`.
fn kind_of(bytes: &[u8]) -> Option<&'static str> {
    let is_svg = || {
        let text = std::str::from_utf8(bytes).ok()?.trim_start_matches('\u{feff}').trim_start();
        (text.starts_with('<') && text.contains("<svg")).then_some("image/svg+xml")
    };
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") { Some("image/png") } else { is_svg() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use http::{StatusCode, header};

    use super::*;
    use crate::pages::{html, signed_out};

    const SVG: &str =
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1 1\"><rect width=\"1\" height=\"1\"/></svg>";

    fn resolve(name: Option<&str>, logo: Option<&[u8]>) -> Result<Brand, String> {
        let folder = tempfile::tempdir().unwrap();
        if let Some(logo) = logo {
            std::fs::write(folder.path().join("logo"), logo).unwrap();
        }
        let raw = raw::Pages { name: name.map(str::to_owned), logo: logo.map(|_| PathBuf::from("logo")) };
        let mut resolver = Resolver::new(folder.path());
        let brand = Brand::resolve(&raw, &mut resolver, &At::root());
        let said = resolver.report.problems().iter().map(|problem| format!("{problem:?}")).collect::<String>();
        assert_eq!(brand.is_some(), said.is_empty());
        brand.ok_or(said)
    }

    #[test]
    fn a_page_has_the_name_and_the_logo_also_as_its_icon_and_a_policy_that_shows_it() {
        let page = |brand: &Brand| {
            let response = html(StatusCode::OK, &signed_out(), brand);
            let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
            (String::from_utf8(response.into_body().to_vec()).unwrap(), policy)
        };
        let (text, policy) = page(&Brand::default());
        assert!(text.contains("<span>Doorward</span>") && !text.contains("<img"), "{text}");
        assert!(text.contains("<link rel=\"icon\" href=\"data:image/svg+xml;base64,PHN2Zy"), "{text}");
        assert!(policy.contains("; img-src data:;"), "browsers refuse the icon: {policy}");
        let (text, policy) = page(&resolve(Some(" Example <b>CI "), Some(SVG.as_bytes())).unwrap());
        assert!(text.contains("<title>Signed out · Example &lt;b&gt;CI</title>"), "{text}");
        assert!(text.contains("<img src=\"data:image/svg+xml;base64,PHN2Zy"), "{text}");
        assert!(policy.contains("img-src data:") && policy.contains("default-src 'none'"), "{policy}");
        let (text, _) = page(&resolve(None, Some(b"\x89PNG\r\n\x1a\nrest")).unwrap());
        assert_eq!(text.matches("data:image/png;base64,").count(), 2, "{text}");
    }

    #[test]
    fn an_invalid_name_or_logo_is_refused() {
        for (name, logo, what) in [
            (Some(" "), None, "the name is empty"),
            (Some("a\nb"), None, "control characters"),
            (Some(&*"n".repeat(61)), None, "longer than 60"),
            (None, Some(&b"GIF89a"[..]), "neither SVG nor PNG"),
            (None, Some(b"<html><body></body></html>"), "neither SVG nor PNG"),
            (None, Some(&[b' '; MAX_LOGO + 1]), "the logo has 32769 bytes"),
        ] {
            let said = resolve(name, logo).unwrap_err();
            assert!(said.contains(what), "{said}");
        }
    }
}
