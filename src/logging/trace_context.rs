//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): the trace of a request is forwarded unchanged.
//!
//! Doorward exports no spans. A span of its own in `traceparent` would be a parent that is never exported, and a
//! `traceparent` for a request without one would decide for the servers behind it whether they record the request.

use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The most bytes of a `traceparent`; future versions may have more fields.
const MAX_PARENT: usize = 512;

/// The most bytes and members of a `tracestate` that is forwarded, as sections 3.3.1.1 and 3.3.1.5 specify.
const MAX_STATE: usize = 512;
const MAX_MEMBERS: usize = 32;

/// The position of a request in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent: HeaderValue,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// Reads the context of a request. A `traceparent` that is malformed or repeated counts as absent (section
    /// 3.2.2.3), and so does its `tracestate`.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let parent = values.next().filter(|parent| parent.len() <= MAX_PARENT && values.next().is_none())?;
        let trace_id = trace_id(parent.to_str().ok()?)?;
        Some(Self { trace_id, parent: parent.clone(), state: read_state(headers) })
    }

    /// Returns the id of the trace, as bytes.
    pub fn trace_bytes(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Adds both headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT.clone(), self.parent.clone());
        if let Some(state) = &self.state {
            headers.insert(TRACESTATE.clone(), state.clone());
        }
    }
}

/// Returns the trace id of a `traceparent` in the form of section 3.2.2.
fn trace_id(parent: &str) -> Option<[u8; 16]> {
    let mut fields = parent.split('-');
    let mut field = |length: usize| {
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        fields.next().filter(|field| field.len() == length && field.bytes().all(lower_hex))
    };
    let (version, trace, span, _flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    // A higher version may have more fields, version 00 has not, and ff is invalid.
    if version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let is_none = |id: &str| id.bytes().all(|byte| byte == b'0');
    if is_none(trace) || is_none(span) {
        return None;
    }
    let mut id = [0; 16];
    HEXLOWER.decode_mut(trace.as_bytes(), &mut id).ok()?;
    Some(id)
}

/// Returns all `tracestate` headers as one, or `None` if that is too long, has too many members, or is not visible
/// ASCII.
fn read_state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(&TRACESTATE).iter();
    let first = values.next()?;
    let joined = values.try_fold(first.to_str().ok()?.to_owned(), |mut all, value| {
        all.push(',');
        all.push_str(value.to_str().ok()?);
        (all.len() <= MAX_STATE).then_some(all)
    })?;
    let fits = (1..=MAX_STATE).contains(&joined.len()) && joined.split(',').count() <= MAX_MEMBERS;
    let mut members = joined.split(',').map(str::trim).filter(|member| !member.is_empty());
    let well_formed = members.all(|member| {
        let key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
        member.split_once('=').is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(key))
    });
    (fits && well_formed).then(|| HeaderValue::from_str(&joined).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    /// The span that it names is the caller's and in the caller's records, and so are its flags.
    #[test]
    fn a_context_is_passed_on_as_it_came() {
        for parent in [
            PARENT,
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            for state in [Some("a=1, b@c=2"), None] {
                let lines = state.map(|state| ("tracestate", state)).into_iter().chain([("traceparent", parent)]);
                let came = headers(&lines.collect::<Vec<_>>());
                let context = TraceContext::from_headers(&came).unwrap();
                assert_eq!(HEXLOWER.encode(&context.trace_bytes()), "4bf92f3577b34da6a3ce929d0e0e4736");
                let mut sent = HeaderMap::new();
                context.write(&mut sent);
                assert_eq!(sent, came);
            }
        }
    }

    #[test]
    fn parents_are_read_strictly() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ] {
            let came = headers(&[("traceparent", bad), ("tracestate", "a=1")]);
            assert_eq!(TraceContext::from_headers(&came), None, "{bad}");
        }
    }

    #[test]
    fn a_traceparent_of_a_future_version_is_bounded() {
        for (more, passes) in [(MAX_PARENT - 56, true), (MAX_PARENT - 55, false)] {
            let parent = format!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-{}", "x".repeat(more));
            let came = headers(&[("traceparent", &*parent)]);
            assert_eq!(TraceContext::from_headers(&came).is_some(), passes, "{more}");
        }
    }

    #[test]
    fn several_traceparents_are_ignored() {
        for came in [
            headers(&[]),
            headers(&[("tracestate", "a=1")]),
            headers(&[("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")]),
        ] {
            assert_eq!(TraceContext::from_headers(&came), None);
        }
    }

    #[test]
    fn the_state_is_bounded() {
        let long = format!("a={}", "x".repeat(MAX_STATE));
        let many = vec!["a=1"; MAX_MEMBERS + 1].join(",");
        for (state, passes) in [
            ("a=1", true),
            ("a=1, b=2", true),
            ("", false),
            (&*long, false),
            (&*many, false),
            ("A=1", false),
            ("a", false),
        ] {
            let came = headers(&[("traceparent", PARENT), ("tracestate", state)]);
            let context = TraceContext::from_headers(&came).unwrap();
            assert_eq!(context.state.is_some(), passes, "{state}");
        }
        let two = headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        assert_eq!(TraceContext::from_headers(&two).unwrap().state.unwrap(), "a=1,b=2");
    }
}
