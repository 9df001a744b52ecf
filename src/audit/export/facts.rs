//! The metadata of a line that receivers get in addition to the line.

use std::borrow::Cow;

use serde::Deserialize;

/// Some members of a line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Facts<'a> {
    /// Milliseconds since the Unix epoch.
    pub(super) time: i64,
    severity_id: u8,
    #[serde(borrow)]
    pub(super) metadata: Metadata<'a>,
    pub(super) seq: u64,
    #[serde(borrow)]
    pub(super) unmapped: Unmapped<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata<'a> {
    #[serde(borrow)]
    pub(super) event_code: Option<Cow<'a, str>>,
    /// The id of the request.
    #[serde(borrow)]
    pub(super) correlation_uid: Option<Cow<'a, str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Unmapped<'a> {
    /// 32 hex digits.
    #[serde(borrow)]
    pub(super) trace_id: Option<Cow<'a, str>>,
}

/// The severity of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Informational,
    Notice,
    Warning,
    Error,
    Critical,
}

impl<'a> Facts<'a> {
    /// Reads the facts of a line. A damaged line has none; it is sent unchanged.
    pub(super) fn of(line: &'a [u8]) -> Self {
        serde_json::from_slice(line).unwrap_or_default()
    }

    /// Returns the severity by OCSF's `severity_id`. A line without one is damaged.
    pub(super) fn severity(&self) -> Severity {
        match self.severity_id {
            1 => Severity::Informational,
            2 => Severity::Notice,
            3 => Severity::Warning,
            0 | 4 => Severity::Error,
            _ => Severity::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_line_is_an_error_without_facts() {
        let facts = Facts::of(b"{\"time\":1,");
        assert_eq!((facts.severity(), facts.time, facts.metadata.event_code), (Severity::Error, 0, None));
        let facts = Facts::of(br#"{"severity_id":2,"metadata":{"event_code":"a\u0062"},"other":[{}],"seq":7}"#);
        assert_eq!((facts.severity(), facts.seq), (Severity::Notice, 7));
        assert_eq!(facts.metadata.event_code.as_deref(), Some("ab"));
    }
}
