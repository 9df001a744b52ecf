//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): a request keeps the trace that it came with, and gets
//! one if it has none.

use std::{cell::RefCell, fmt, ops::Range, str::FromStr};

use aws_lc_rs::rand;
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue};

pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes and members of `tracestate` that are passed on, as sections 3.3.1.1 and 3.3.1.5 say.
const MAX_STATE: usize = 512;
const MAX_MEMBERS: usize = 32;

/// Where a request stands in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

/// A `traceparent` that does not have the form of section 3.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct InvalidTraceParent;

impl TraceContext {
    /// The context that a request came with, or a new one. A header that is malformed or stands there twice counts as
    /// absent (section 3.2.2.3), and takes `tracestate` with it.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let parent = values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok());
        match parent.and_then(|text| text.parse::<Self>().ok()) {
            Some(context) => Self { state: read_state(headers), ..context },
            None => Self::generate(),
        }
    }

    /// The id of the trace, as bytes.
    pub fn trace_bytes(&self) -> [u8; 16] {
        self.trace_id.to_be_bytes()
    }

    /// A new trace, not sampled: whether it is recorded others decide.
    pub fn generate() -> Self {
        Self { trace_id: u128::from_be_bytes(random()), span_id: u64::from_be_bytes(random()), flags: 0, state: None }
    }

    /// The context of what this request causes, under a span of its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { span_id: u64::from_be_bytes(random()), ..self.clone() }
    }

    /// `traceparent`, as version 00. Of the flags only `sampled` and `random` are known, and pass.
    fn parent(&self) -> [u8; 55] {
        let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let mut encode = |bytes: &[u8], at: Range<usize>| {
            if let Some(digits) = parent.get_mut(at) {
                HEXLOWER.encode_mut(bytes, digits);
            }
        };
        encode(&self.trace_id.to_be_bytes(), 3..35);
        encode(&self.span_id.to_be_bytes(), 36..52);
        encode(&[self.flags & 0b11], 53..55);
        parent
    }

    /// Replaces both headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        if let Ok(parent) = HeaderValue::from_bytes(&self.parent()) {
            headers.insert(TRACEPARENT.clone(), parent);
        }
        match &self.state {
            Some(state) => headers.insert(TRACESTATE.clone(), state.clone()),
            None => headers.remove(&TRACESTATE),
        };
    }

    /// 32 hex digits, for logs and the audit trail.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// 16 hex digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span_id)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.parent()).unwrap_or_default())
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceParent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceParent> {
        let mut fields = text.split('-');
        let mut field = |length: usize| {
            let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            fields
                .next()
                .filter(|field| field.len() == length && field.bytes().all(lower_hex))
                .ok_or(InvalidTraceParent)
        };
        let (version, trace_id, span_id, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        // A higher version may have more fields, version 00 has not, and ff is no version.
        if version == "ff" || (version == "00" && fields.next().is_some()) {
            return Err(InvalidTraceParent);
        }
        let context = Self {
            trace_id: u128::from_str_radix(trace_id, 16).map_err(|_| InvalidTraceParent)?,
            span_id: u64::from_str_radix(span_id, 16).map_err(|_| InvalidTraceParent)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| InvalidTraceParent)?,
            state: None,
        };
        if context.trace_id == 0 || context.span_id == 0 {
            return Err(InvalidTraceParent);
        }
        Ok(context)
    }
}

/// All `tracestate` headers as one, or none of it if it is too long, has too many members, or is not visible ASCII.
fn read_state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(&TRACESTATE).iter();
    let first = values.next()?;
    let joined = values.try_fold(first.to_str().ok()?.to_owned(), |mut all, value| {
        all.push(',');
        all.push_str(value.to_str().ok()?);
        (all.len() <= MAX_STATE).then_some(all)
    })?;
    let fits = (1..=MAX_STATE).contains(&joined.len()) && joined.split(',').count() <= MAX_MEMBERS;
    let members = joined.split(',').map(str::trim).filter(|member| !member.is_empty());
    let well_formed = members.into_iter().all(|member| {
        let key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
        member.split_once('=').is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(key))
    });
    (fits && well_formed).then(|| HeaderValue::from_str(&joined).ok()).flatten()
}

/// Random bytes that were drawn beforehand: a draw costs more than all else here, and an id protects nothing.
struct Drawn {
    bytes: [u8; 512],
    used: usize,
}

thread_local! {
    static DRAWN: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; 512], used: 512 }) };
}

/// Random bytes that are not all zero, which would be no id.
fn random<const N: usize>() -> [u8; N] {
    DRAWN.with_borrow_mut(|drawn| {
        if drawn.used + N > drawn.bytes.len() {
            // Should the system give no randomness, ids repeat.
            let _ = rand::fill(&mut drawn.bytes);
            drawn.used = 0;
        }
        let mut taken = [1; N];
        if let Some(next) = drawn.bytes.get(drawn.used..drawn.used + N) {
            // All zeros is no id.
            if next.iter().any(|byte| *byte != 0) {
                taken.copy_from_slice(next);
            }
        }
        drawn.used += N;
        taken
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_good_parent_is_kept_and_its_child_has_another_span() {
        let context = TraceContext::from_headers(&headers(&[("traceparent", PARENT), ("tracestate", "a=1,b@c=2")]));
        assert_eq!(context.to_string(), PARENT);
        let child = context.child();
        assert_eq!(child.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_ne!(child.span_id(), context.span_id());
        let mut out = headers(&[("traceparent", "old"), ("tracestate", "old=1")]);
        child.write(&mut out);
        assert_eq!(out["traceparent"], child.to_string());
        assert_eq!(out["tracestate"], "a=1,b@c=2");
    }

    #[test]
    fn parents_are_read_strictly() {
        for good in [PARENT, "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"] {
            assert!(good.parse::<TraceContext>().is_ok(), "{good}");
        }
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
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTraceParent), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_kept_begins_a_new_trace() {
        for bad in [
            headers(&[]),
            headers(&[("traceparent", "nonsense"), ("tracestate", "a=1")]),
            headers(&[("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")]),
        ] {
            let context = TraceContext::from_headers(&bad);
            assert_ne!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert!(context.to_string().parse::<TraceContext>().is_ok());
            assert_eq!(context.state, None);
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
            let context = TraceContext::from_headers(&headers(&[("traceparent", PARENT), ("tracestate", state)]));
            assert_eq!(context.state.is_some(), passes, "{state}");
        }
        let two = headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]);
        assert_eq!(TraceContext::from_headers(&two).state.unwrap(), "a=1,b=2");
    }
}
