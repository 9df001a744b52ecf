//! Conditional requests (RFC 9110 section 13): what a document that was read said of its version, so that the next fetch
//! need not bring it again.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use url::Url;

/// What a document said of its version.
#[derive(Clone, Debug)]
pub struct Validators {
    url: Url,
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
    /// How long the document is fresh, where an answer of 304 does not say otherwise.
    pub life: Duration,
}

impl Validators {
    /// Of an answer to a request for `url`; `None` if it names no version.
    pub fn of(url: &Url, headers: &HeaderMap, life: Duration) -> Option<Self> {
        let validator = |name| headers.get(name).filter(|value: &&HeaderValue| value.len() <= 256).cloned();
        let (etag, last_modified) = (validator(header::ETAG), validator(header::LAST_MODIFIED));
        (etag.is_some() || last_modified.is_some()).then(|| Self { url: url.clone(), etag, last_modified, life })
    }

    /// Whether they are of the document at `url`.
    pub fn are_of(&self, url: &Url) -> bool {
        self.url == *url
    }

    /// Asks for the document only if it has changed. With both, a server looks at the entity tag alone (section 13.2.2).
    pub fn condition(&self, headers: &mut HeaderMap) {
        for (name, validator) in [(header::IF_NONE_MATCH, &self.etag), (header::IF_MODIFIED_SINCE, &self.last_modified)]
        {
            if let Some(validator) = validator {
                headers.insert(name, validator.clone());
            }
        }
    }
}
