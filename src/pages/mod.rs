//! What people see of Doorward: small pages that work without a script, in light and dark, on a phone and with a screen
//! reader. Each is a pure function of its view; everything in a view is escaped.

#[cfg(test)]
mod tests;
mod views;

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

pub use self::views::*;

/// The one stylesheet. It stands in each page, so that a page is whole whatever else fails, and the policy below
/// allows it by its hash and nothing else.
const STYLE: &str = include_str!("style.css");

/// The one script: on pages that lead to a login, it adds the fragment of the address (`#/namespaces/ci`) to their
/// links, as browsers tell it to no server. Where a page has one way to go, it goes there.
const SCRIPT: &str = include_str!("fragment.js");

static CONTENT_SECURITY_POLICY: LazyLock<HeaderValue> = LazyLock::new(|| policy(""));

static WITH_SCRIPT: LazyLock<HeaderValue> =
    LazyLock::new(|| policy(&format!(" script-src 'sha256-{}';", hash_of(SCRIPT))));

/// Forms may lead to a provider (a logout does, by a redirect), which is https or, in development, this machine.
fn policy(script: &str) -> HeaderValue {
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}';{script} base-uri 'none'; frame-ancestors 'none'; \
         form-action 'self' https: http://localhost:* http://127.0.0.1:*",
        hash_of(STYLE)
    );
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

fn hash_of(text: &str) -> String {
    BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes()))
}

/// A page as a response, which nobody caches, frames or learns the address of.
pub fn html(status: StatusCode, page: &Markup) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(page.0.clone()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Not `no-referrer`: with that, browsers send `Origin: null` with our own forms.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    response
}

/// A page that leads to a login, whose script may run.
pub fn html_with_script(status: StatusCode, page: &Markup) -> Response<Bytes> {
    let mut response = html(status, page);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, WITH_SCRIPT.clone());
    response
}

/// The frame of every page.
fn layout(title: &str, tone: Tone, main: &Markup, request_id: Option<&str>) -> Markup {
    layout_with_head(title, tone, main, request_id, &markup! {})
}

/// The same, with something of its own in its head.
fn layout_with_head(title: &str, tone: Tone, main: &Markup, request_id: Option<&str>, head: &Markup) -> Markup {
    markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · Doorward" }
                style { (PreEscaped(STYLE)) }
                (head)
            }
            body class=(tone.class()) {
                header { (mark()) span { "Doorward" } }
                main {
                    (main)
                }
                footer {
                    @if let Some(id) = request_id {
                        p { "Request " code { (id) } }
                    }
                    p { "Identity-aware access to Tekton" }
                }
            }
        }
    }
}

/// The script, at the end of a page.
fn keep_fragment() -> Markup {
    markup! { script { (PreEscaped(SCRIPT)) } }
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

/// A door that stands ajar.
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

/// The sign of a page's tone, told apart by shape as well as by colour.
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
