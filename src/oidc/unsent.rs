//! Forms that meet an ended session. What a form carries cannot be kept over a login: it may be large, and sending it
//! later, after somebody else has signed in perhaps, is not what was asked for. So it is not sent, and after the login
//! the person reads which form that was and how to get back to it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Login, LoginRequest, Outcome, failure::Failure, login::parse, parameters::encode, return_to};
use crate::{
    pages::{self, UnsentView},
    sessions::{KeyRing, Origin, keyring::Purpose},
};

/// The page that tells.
pub const PATH: &str = "/oauth2/unsent";

/// Characters of a path that the page shows, and of the way back. Longer ones are cut, or left out: all of it is the
/// return address of a login, which travels in a cookie.
const MAX_PATH: usize = 200;
const MAX_BACK: usize = 400;

/// What was not sent. Sealed on its way, so that nobody else writes what the page says.
#[derive(Serialize, Deserialize)]
struct Notice {
    /// Method and path.
    request: String,
    /// The page of the form, where the browser tells which one it is.
    back: Option<String>,
}

/// The page that a form was sent from, where the browser tells which one of this origin it is.
pub fn page_of_form(origin: &Origin, headers: &HeaderMap) -> Option<String> {
    let referer = Url::parse(headers.get(header::REFERER)?.to_str().ok()?).ok()?;
    let ours = (referer.origin().ascii_serialization() == origin.as_str()).then_some(referer)?;
    let address = ours.query().map_or_else(|| ours.path().to_owned(), |query| format!("{}?{query}", ours.path()));
    return_to::check(origin, &address)
}

/// Where a form that was not sent leads to, to be told so after the login.
pub(super) fn address(
    keys: &KeyRing,
    origin: &Origin,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<String> {
    let path: String = path.chars().take(MAX_PATH).collect();
    let back = page_of_form(origin, headers).filter(|address| address.len() <= MAX_BACK);
    let notice = Notice { request: format!("{} {path}", super::bounded(method.as_str())), back };
    let sealed = keys.seal(Purpose::Unsent, origin.as_str().as_bytes(), &serde_json::to_vec(&notice).ok()?)?;
    Some(format!("{PATH}?notice={}", encode(&BASE64_URL_SAFE_NO_PAD.encode(sealed))))
}

impl Login {
    pub(super) fn unsent(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let parameters = parse(request)?;
        let notice: Option<Notice> = parameters.get("notice").and_then(|text| {
            let sealed = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
            let context = request.origin.as_str().as_bytes();
            serde_json::from_slice(&self.0.sessions.keys().open(Purpose::Unsent, context, &sealed).ok()?).ok()
        });
        let notice = notice.ok_or_else(|| {
            Failure::new(Outcome::malformed, "This page tells of a form that was not sent, and there is none.")
                .titled(StatusCode::BAD_REQUEST, "There is nothing to tell here")
        })?;
        let view = UnsentView { request: &notice.request, back: notice.back.as_deref() };
        Ok(pages::html(StatusCode::OK, &pages::unsent(&view), &self.0.brand))
    }
}
