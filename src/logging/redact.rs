//! Redacts parts of a line that look like credentials.

use std::borrow::Cow;

const MASK: &str = "[redacted]";

/// Text that precedes credentials, in lower case.
const MARKERS: [&str; 7] =
    ["bearer ", "basic ", "__host-", "access_token=", "refresh_token=", "client_secret=", "code_verifier="];

/// Prefixes of credentials: the base64 of `{"` of a JWT, the handle of a session, a webhook's signing token, tokens of
/// Git hosts.
const PREFIXES: [&str; 7] = ["eyj", "dws_", "whsec_", "ghp_", "ghs_", "github_pat_", "glpat-"];

/// Shorter runs are words.
const MIN_RUN: usize = 12;

/// Returns the line without parts that look like credentials. Borrowed, as almost always, if there are none.
pub(super) fn redact(line: &str) -> Cow<'_, str> {
    let lower = line.to_ascii_lowercase();
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    while let Some(begin) = next(&lower, at) {
        let run = line.get(begin..).map_or(0, |rest| rest.bytes().take_while(|byte| is_credential(*byte)).count());
        at = begin + run;
        if run >= MIN_RUN {
            out.push_str(line.get(copied..begin).unwrap_or_default());
            out.push_str(MASK);
            copied = begin + run;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(line);
    }
    out.push_str(line.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

/// Returns the start of the next run that may be a credential.
fn next(lower: &str, from: usize) -> Option<usize> {
    let rest = lower.get(from..)?;
    let after = MARKERS.iter().filter_map(|marker| Some(rest.find(marker)? + marker.len()));
    let at = PREFIXES.iter().filter_map(|prefix| word_start(rest, prefix));
    after.chain(at).min().map(|offset| from + offset)
}

fn word_start(text: &str, prefix: &str) -> Option<usize> {
    text.match_indices(prefix)
        .map(|(at, _)| at)
        .find(|at| text.get(..*at).is_none_or(|before| !before.ends_with(|c: char| c.is_ascii_alphanumeric())))
}

/// The bytes of tokens (RFC 6750 section 2.1) and of cookies.
fn is_credential(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_redacted() {
        let jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl";
        for (line, redacted) in [
            (format!("token {jwt} refused"), "token [redacted] refused"),
            (format!("{{\"h\":\"Authorization: Bearer {jwt}\"}}"), "{\"h\":\"Authorization: Bearer [redacted]\"}"),
            ("authorization: BASIC dXNlcjpwYXNzd29yZA==".into(), "authorization: BASIC [redacted]"),
            ("cookie __Host-doorward=0123456789abcdef; a=b".into(), "cookie __Host-[redacted]; a=b"),
            ("secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), "secret [redacted]"),
            ("session dws_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), "session [redacted]"),
            ("bearer ü bearer aaaaaaaaaaaaaaaa".into(), "bearer ü bearer [redacted]"),
            ("bearer aaaaaaaaaaaaaaaa bearer bbbbbbbbbbbbbbbb".into(), "bearer [redacted] bearer [redacted]"),
        ] {
            assert_eq!(redact(&line), redacted);
        }
    }

    #[test]
    fn other_lines_stay_as_they_are() {
        for line in ["a bearer of bad news", "keyjar opened at /var/lib", "Bearer realm=\"x\"", "", "ünï bearer ü"] {
            assert!(matches!(redact(line), Cow::Borrowed(same) if same == line), "{line}");
        }
    }
}
