//! The words for what is no YAML, and what to do about it.

use super::source::{MAX_DEPTH, MAX_REPEATED};

/// Rewords a message of the reader, which says what its grammar expected: people want to know what to change, and
/// where.
pub(super) fn explained(mut message: String, text: &str, start: &mut usize) -> (String, Option<&'static str>) {
    if let Some(end) = message.find(" at line ") {
        message.truncate(end);
    }
    match message.as_str() {
        said if said.contains("found a tab") => {
            *start += text.get(*start..).and_then(|rest| rest.find('\t')).unwrap_or_default();
            ("there is a tab where YAML allows only spaces".to_owned(), Some("indent with spaces"))
        }
        said if said.contains("tabs disallowed") || said.contains("tab cannot be used") => {
            ("there is a tab where YAML allows only spaces".to_owned(), Some("indent with spaces"))
        }
        said if said.contains("recursion limit") => (format!("nested more than {MAX_DEPTH} levels deep"), None),
        said if said.starts_with("alias replay") || said.starts_with("alias expansion") => (
            format!("aliases (`*name`) repeat more than a file may have: {MAX_REPEATED} keys and values"),
            Some("write out what is meant"),
        ),
        said if said.contains("recursive") => {
            ("an alias is used within the part that it repeats".to_owned(), Some("write out what is meant"))
        }
        said if said.contains("mapping values are not allowed") && is_second_of_its_line(text, *start) => {
            (message, Some("put a text that holds `: ` in quotes"))
        }
        said if said.starts_with("unexpected character") => (message, Some("put a text that begins with it in quotes")),
        said if said.contains("anchor or alias") || said.contains("unknown anchor") => {
            (message, Some("put a text that begins with `*` or `&` in quotes"))
        }
        said if said.contains("a flow mapping") || said.contains("a flow sequence") => {
            (message, Some("close the brace or bracket that is open, or put a text that holds `: ` in quotes"))
        }
        said if said.contains("did not find expected") && follows_bracket(text, *start) => {
            (message, Some("put a text that begins with `{` or `[` in quotes"))
        }
        said if said.contains("comments must be separated") => {
            (message, Some("put a text that begins with `{` or `[` in quotes; a comment has a blank before its `#`"))
        }
        said if said.contains("trailing content after single-quoted") => after_quote(message, text, start),
        said if said.contains("trailing content after") => {
            (message, Some("put the whole text into one pair of quotes"))
        }
        said if said.contains("key expected ':'") => {
            (message, Some("a key ends with a colon and a blank: `key: value`"))
        }
        said if said.contains("only valid inside a block") => {
            (message, Some("a bracket, brace or quote above may not be closed"))
        }
        said if said.contains("did not find expected") || said.contains("mapping values are not allowed") => (
            message,
            Some("compare the indentation with the lines above: entries of one map or list begin in the same column"),
        ),
        said if said.contains("illegal placement of ':'") => (
            "there is a `:` where no key is allowed".to_owned(),
            Some("a bracket, brace or quote above may not be closed"),
        ),
        _ => (message, None),
    }
}

/// Whether what is before this place on its line ends with a bracket: a template such as `{sub}@corp` reads as a map.
fn follows_bracket(text: &str, place: usize) -> bool {
    text.get(..place).is_some_and(|before| before.trim_end_matches(' ').ends_with(['}', ']']))
}

/// Rewords that something follows a text in single quotes, at `start`. If the text has several lines, its quote was most
/// likely not closed, and the mistake is where it begins.
fn after_quote(message: String, text: &str, start: &mut usize) -> (String, Option<&'static str>) {
    let before = text.get(..*start).unwrap_or_default();
    let quoted = before.rfind('\'').and_then(|end| Some((opening_quote(before.get(..end)?)?, end)));
    match quoted {
        Some((begin, end)) if before.get(begin..end).is_some_and(|quoted| quoted.contains('\n')) => {
            let last = before.matches('\n').count() + 1;
            *start = begin;
            (format!("this quote is closed by the next one, in line {last}"), Some("close it where its text ends"))
        }
        _ => (message, Some("put the whole text into one pair of quotes, and write `''` for each `'` in it")),
    }
}

/// The place of the single quote that opens the text at the end of `before`, in which `''` stands for one.
fn opening_quote(mut before: &str) -> Option<usize> {
    loop {
        let quote = before.rfind('\'')?;
        match before.get(..quote)?.strip_suffix('\'') {
            Some(rest) => before = rest,
            None => return Some(quote),
        }
    }
}

/// Whether there is another `: ` before this one on its line.
fn is_second_of_its_line(text: &str, colon: usize) -> bool {
    let before = text.get(..colon).unwrap_or_default();
    before.rsplit('\n').next().is_some_and(|line| line.contains(": "))
}

#[cfg(test)]
mod tests {
    use super::super::source::Node;

    /// The remedy for most of them was to compare the indentation, or there was none, and an open quote was reported lines
    /// below it.
    #[test]
    fn slips_with_quotes_brackets_and_signs_have_their_own_remedy() {
        for (text, start, help) in [
            ("a: *", None, "begins with `*`"),
            ("a: {paths: [*]}", None, "begins with `*`"),
            ("a: *:8443", None, "begins with `*`"),
            ("a: {why: Note: fresh}", None, "holds `: ` in quotes"),
            ("a: {sub}:x\nb: 1", None, "begins with `{`"),
            ("a: {issuer}#{sub}\n", None, "begins with `{`"),
            ("a:\n  - {b: x, c: d\n  - {b: y, c: e}\n  - {b: z}\nc: {d: e}\n", None, "may not be closed"),
            ("a: '{sub}\nb: 'x'\n", Some(3), "close it where"),
            ("a: 'it''s {sub}\nb: 'x'\n", Some(3), "close it where"),
            ("a: 'the admin's'\n", None, "write `''` for each"),
            ("a: 1\nkind:human\nb: 2\n", None, "a colon and a blank"),
        ] {
            let malformed = Node::parse(text, 0).unwrap_err();
            assert!(malformed.help.is_some_and(|given| given.contains(help)), "{text}: {malformed:?}");
            if let Some(start) = start {
                assert_eq!(malformed.span.start, start, "{text}: {malformed:?}");
                assert!(malformed.message.contains("in line 2"), "{malformed:?}");
            }
        }
    }
}
