//! Forms whose session has ended. The content of a form cannot be kept across a login: it may be large, and sending it
//! later, perhaps after somebody else has signed in, is not what the person asked for. So it is not sent, and after the
//! login a page says which form it was and links back to it.

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

/// The path of the page that says which form was not sent.
pub const PATH: &str = "/oauth2/unsent";

/// The maximum characters of the path that the page shows, and of the link back. Longer paths are cut, longer links
/// omitted: all of it is the return address of a login, which travels in a cookie.
const MAX_PATH: usize = 200;
const MAX_BACK: usize = 400;

/// The form that was not sent. It is sealed in the address, so that nobody else can choose what the page says.
#[derive(Serialize, Deserialize)]
struct Notice {
    /// Method and path.
    request: String,
    /// The page of the form, if the browser names it.
    back: Option<String>,
}

/// The page that a form was sent from, if the browser names one of this origin.
pub fn page_of_form(origin: &Origin, headers: &HeaderMap) -> Option<String> {
    let referer = Url::parse(headers.get(header::REFERER)?.to_str().ok()?).ok()?;
    let ours = (referer.origin().ascii_serialization() == origin.as_str()).then_some(referer)?;
    let address = ours.query().map_or_else(|| ours.path().to_owned(), |query| format!("{}?{query}", ours.path()));
    return_to::check(origin, &address)
}

/// The return address of a login after a form that was not sent.
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
    pub(super) async fn unsent(&self, request: LoginRequest<'_>) -> Result<Response<Bytes>, Failure> {
        let parameters = parse(request)?;
        let notice: Option<Notice> = parameters.get("notice").and_then(|text| {
            let sealed = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
            let context = request.origin.as_str().as_bytes();
            serde_json::from_slice(&self.0.sessions.keys().open(Purpose::Unsent, context, &sealed).ok()?).ok()
        });
        let notice = notice.ok_or_else(|| {
            Failure::new(Outcome::malformed, "This page reports a form that was not sent, and there is none.")
                .titled(StatusCode::BAD_REQUEST, "There is nothing to report")
        })?;
        // Anybody can open the address at any time: it is loaded again when the session has ended, or is sent to others.
        let signed_in = self.is_signed_in(request).await;
        let view = UnsentView { request: &notice.request, back: notice.back.as_deref(), signed_in };
        Ok(pages::html(StatusCode::OK, &pages::unsent(&view), &self.0.brand))
    }
}
