//! The HTML pages that people see: small, and usable without a script, in light and dark, on a phone and with a screen
//! reader. Each is a pure function of its view; everything in a view is escaped.
//!
//! | file | holds |
//! |---|---|
//! | `views` | the pages of browser logins, sessions and refusals |
//! | `programs` | the pages of `doorward login` |
//! | `brand` | the configured name and logo |
//! | `style.css`, `fragment.js`, `icon.svg` | the one stylesheet, the one script, and the icon of the tab |

mod brand;
mod programs;
#[cfg(test)]
mod tests;
mod views;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

pub use self::{brand::Brand, programs::*, views::*};

/// The one stylesheet. It is embedded in each page, so that a page is complete whatever else fails, and the policy
/// below allows it by its hash and nothing else.
const STYLE: &str = include_str!("style.css");

/// The one script. On pages that lead to a login it adds the fragment of the address (`#/namespaces/ci`), which
/// browsers do not send to servers, to their links. If a page has only one way to go, it goes there.
const SCRIPT: &str = include_str!("fragment.js");

/// The icon of the browser tab. Browsers request `/favicon.ico` if a page has none.
const ICON: &[u8] = include_bytes!("icon.svg");

/// The `Content-Security-Policy` of a page. Forms may lead to a provider (a logout does, by a redirect), which is on
/// https or, in development, on this machine.
fn policy(script: bool) -> HeaderValue {
    let script = if script { format!(" script-src 'sha256-{}';", hash_of(SCRIPT)) } else { String::new() };
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}';{script} img-src data:; base-uri 'none'; frame-ancestors 'none'; \
         form-action 'self' https: http://localhost:* http://127.0.0.1:*",
        hash_of(STYLE),
    );
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

fn hash_of(text: &str) -> String {
    BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()))
}

/// A page: its content within the common frame.
#[derive(Debug)]
pub struct Page {
    title: String,
    tone: Tone,
    main: Markup,
    request_id: Option<String>,
    /// Additional elements of its head.
    head: Markup,
    /// Whether it leads to a login and needs the script.
    script: bool,
}

impl Page {
    fn new(title: &str, tone: Tone, main: Markup) -> Self {
        Self { title: title.to_owned(), tone, main, request_id: None, head: markup! {}, script: false }
    }

    fn of_request(mut self, id: &str) -> Self {
        self.request_id = Some(id.to_owned());
        self
    }

    fn with_script(mut self) -> Self {
        self.script = true;
        self
    }

    fn with_head(mut self, head: Markup) -> Self {
        self.head = head;
        self
    }

    fn render(&self, brand: &Brand) -> Markup {
        markup! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="robots" content="noindex";
                    title { (self.title) " · " (brand.name()) }
                    link rel="icon" href=(brand.icon());
                    style { (PreEscaped(STYLE)) }
                    (self.head)
                }
                body class=(self.tone.class()) {
                    header {
                        @match brand.logo() {
                            Some(logo) => img src=(logo) alt="";,
                            None => (mark()),
                        }
                        span { (brand.name()) }
                    }
                    main {
                        (self.main)
                        @if self.script { script { (PreEscaped(SCRIPT)) } }
                    }
                    footer {
                        @if let Some(id) = &self.request_id {
                            p { "Request " code { (id) } }
                        }
                        p { "Identity-aware access to Tekton" }
                    }
                }
            }
        }
    }
}

/// A page as a response that is not cached or framed and does not leak its address to other sites.
pub fn html(status: StatusCode, page: &Page, brand: &Brand) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(page.render(brand).0));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let policy = if page.script { &brand.policy_with_script } else { &brand.policy };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, policy.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Not `no-referrer`, with which browsers send `Origin: null` for our own forms.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    response
}

/// The colour of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Refused,
}

impl Tone {
    const fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Refused => "refused",
        }
    }
}

/// The default logo: a door that is ajar.
fn mark() -> Markup {
    markup! {
        svg viewBox="0 0 32 32" width="28" height="28" aria-hidden="true" focusable="false" {
            rect class="mark-frame" x="1" y="1" width="30" height="30" rx="8" {}
            path class="mark-door" d="M10 25V8.5a1 1 0 0 1 .8-1l9-1.9a1 1 0 0 1 1.2 1V25" {}
            path class="mark-line" d="M6.5 25h19" {}
            circle class="mark-knob" cx="17.6" cy="16.2" r="1.35" {}
        }
    }
}

/// The sign of a page's tone, distinct in shape as well as in colour.
fn sign(tone: Tone) -> Markup {
    let path = match tone {
        Tone::Plain => {
            "M8 11V8a4 4 0 0 1 8 0v3M7 11h10a1.5 1.5 0 0 1 1.5 1.5V18A1.5 1.5 0 0 1 17 19.500H7A1.5 1.5 0 0 1 5.500 18v-5.500A1.5 1.5 0 0 1 7 11Z"
        }
        Tone::Good => "m5.500 12.500 4.200 4.200 8.800-9.200",
        Tone::Refused => "M12 6.500v6.500m0 4v.010",
    };
    markup! {
        div class="sign" {
            svg viewBox="0 0 24 24" width="26" height="26" aria-hidden="true" focusable="false" { path d=(path) {} }
        }
    }
}
