//! The content type of a delivery.

use http::{HeaderMap, header};

use super::{senders::Media, signature::single};
use crate::error::{Reason, Rejection};

/// The type of the body, if it is one of `taken`. Any other type is refused: unless the sender signs a form as it is
/// sent, it would be verified as one thing and read as another; `application/cloudevents+json` would turn the delivery
/// into another event. No sender compresses. `fix` says how to set up the sender.
pub(super) fn media(headers: &HeaderMap, taken: &[Media], fix: &'static str) -> Result<Media, Rejection> {
    let unsupported = |detail: String, fix| Rejection::new(Reason::UnsupportedMediaType, detail).fix(fix);
    if single(headers, &header::CONTENT_ENCODING)?.is_some_and(|encoding| encoding != "identity") {
        return Err(unsupported("a delivery must not have a Content-Encoding".to_owned(), "send it uncompressed"));
    }
    let kind = single(headers, &header::CONTENT_TYPE)?.and_then(|value| value.to_str().ok());
    let mut parts = kind.unwrap_or_default().split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let is_utf8 = parts.all(|parameter| {
        parameter.split_once('=').is_none_or(|(name, value)| {
            !name.eq_ignore_ascii_case("charset") || value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        })
    });
    let media = taken.iter().find(|media| media.is(essence));
    media.copied().filter(|_| is_utf8).ok_or_else(|| {
        let taken: Vec<_> = taken.iter().map(|media| media.essence()).collect();
        unsupported(format!("a delivery must be {} in UTF-8", taken.join(" or ")), fix)
    })
}

/// Refuses a body that an EventListener would not read as JSON, for a caller that is not a sender of webhooks.
pub fn check_json(headers: &HeaderMap) -> Result<(), Rejection> {
    media(headers, &[Media::Json], "send it as application/json").map(drop)
}

impl Media {
    fn is(self, essence: &str) -> bool {
        match self {
            Self::OtherJson => {
                let essence = essence.to_ascii_lowercase();
                let kind = essence.strip_prefix("application/").and_then(|rest| rest.strip_suffix("+json"));
                // An EventListener reads a CloudEvent as an event, and a batch of them not at all.
                kind.is_some_and(|kind| !kind.starts_with("cloudevents"))
            }
            _ => self.essence().eq_ignore_ascii_case(essence),
        }
    }

    fn essence(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::OtherJson => "application/...+json (no CloudEvent)",
            Self::Text => "text/plain",
            Self::Form => "application/x-www-form-urlencoded",
            Self::CloudEvent => "application/cloudevents+json",
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(kind: &'static str, taken: &[Media]) -> Option<Media> {
        media(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]), taken, "").ok()
    }

    /// The content type of a registry's notifications cannot be configured.
    #[test]
    fn notifications_of_a_registry_are_json_of_a_generic_sender_and_cloud_events_are_not() {
        const GENERIC: &[Media] = &[Media::Json, Media::OtherJson];
        for kind in [
            "application/vnd.docker.distribution.events.v2+json",
            "Application/vnd.docker.distribution.events.v1+JSON; charset=utf-8",
        ] {
            assert_eq!(of(kind, GENERIC), Some(Media::OtherJson), "{kind}");
            assert_eq!(of(kind, &[Media::Json]), None, "{kind}: of another sender");
        }
        for kind in [
            "application/cloudevents+json",
            "application/CloudEvents-batch+json",
            "application/cloudevents",
            "application/vnd.a+xml",
            "application/+json; charset=utf-16",
            "text/x+json",
            "text/json",
        ] {
            assert_eq!(of(kind, GENERIC), None, "{kind}");
        }
        assert_eq!(of("application/json", GENERIC), Some(Media::Json));
    }
}
