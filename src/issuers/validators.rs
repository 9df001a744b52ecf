//! Conditional requests (RFC 9110 section 13), so that an unchanged document is not transferred again.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use url::Url;

/// The validators of a document: its entity tag and modification time.
#[derive(Clone, Debug)]
pub struct Validators {
    url: Url,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
    /// How long the document is fresh, unless a 304 response says otherwise.
    pub life: Duration,
}

impl Validators {
    /// The validators of a response for `url`; `None` if it has none.
    pub fn of(url: &Url, headers: &HeaderMap, life: Duration) -> Option<Self> {
        let validator = |name| headers.get(name).filter(|value: &&HeaderValue| value.len() <= 256).cloned();
        let (etag, last_modified) = (validator(header::ETAG), validator(header::LAST_MODIFIED));
        (etag.is_some() || last_modified.is_some()).then(|| Self { url: url.clone(), etag, last_modified, life })
    }

    /// Whether they belong to the document at `url`.
    pub fn are_of(&self, url: &Url) -> bool {
        self.url == *url
    }

    /// Makes a request conditional. With both validators, a server only uses the entity tag (section 13.2.2).
    pub fn condition(&self, headers: &mut HeaderMap) {
        for (name, validator) in [(header::IF_NONE_MATCH, &self.etag), (header::IF_MODIFIED_SINCE, &self.last_modified)]
        {
            if let Some(validator) = validator {
                headers.insert(name, validator.clone());
            }
        }
    }
}
