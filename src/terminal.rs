//! Makes text that may come from a stranger fit for a terminal: nothing in it moves the cursor, forges a line, reverses
//! text, or cannot be seen. On a page only the last two can happen.

use std::borrow::Cow;

/// Escapes a single line, line breaks included.
pub fn line(text: &str) -> String {
    escaped(text, false)
}

/// Escapes several lines, such as JSON, which stays the same JSON.
pub fn block(text: &str) -> String {
    escaped(text, true)
}

/// Replaces characters that a terminal would obey with ones of the same length in bytes, so that positions in the text
/// stay right. ASCII characters stay.
pub fn masked(text: &str) -> String {
    let mask = |character: char| match character.len_utf8() {
        2 if is_obeyed(character) => '¿',
        3 if is_obeyed(character) => '\u{fffd}',
        4 if is_obeyed(character) => '🚫',
        _ => character,
    };
    text.chars().map(mask).collect()
}

/// Cuts text to a length fit for a page or a log line, and replaces control characters with spaces.
pub fn bounded(text: &str) -> String {
    text.chars().take(200).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// Escapes text for a page, so that it does not change the direction of the text beside it.
pub fn undirected(text: &str) -> Cow<'_, str> {
    escaped_where(text, is_direction)
}

/// Escapes text for a page on which names are compared, so that different ones do not look the same. Some languages need
/// the invisible characters, so that other pages leave them.
pub fn distinct(text: &str) -> Cow<'_, str> {
    escaped_where(text, |character| is_direction(character) || is_invisible(character))
}

fn escaped_where(text: &str, is_escaped: fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_escaped(character) {
            true => escaped.push_str(&escape(character)),
            false => escaped.push(character),
        }
    }
    escaped.into()
}

/// Escapes characters as JSON does.
fn escaped(text: &str, keeps_lines: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' if keeps_lines => escaped.push('\n'),
            '\n' | '\r' | '\t' => escaped.extend(character.escape_default()),
            _ if is_obeyed(character) => escaped.push_str(&escape(character)),
            _ => escaped.push(character),
        }
    }
    escaped
}

fn escape(character: char) -> String {
    character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// Control characters, characters that a terminal takes for a change of direction or the end of a line, and those that
/// it does not show.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || is_direction(character)
        || is_invisible(character)
        || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Characters that set the direction of text (Unicode, annex 9).
fn is_direction(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Characters that are not shown, with which different names look the same: those that Unicode calls
/// `Default_Ignorable_Code_Point`, without the ones that set a direction.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200d}'
            | '\u{2060}'..='\u{2065}'
            | '\u{206a}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn attacks_z19_what_strangers_wrote_is_text_on_a_terminal() {
        let marks = "\u{61c}\u{200e}\u{200f}\u{2028}\u{202a}\u{202e}\u{2066}\u{2069}";
        let written = json!({"branch": format!("a\u{1b}[2J\u{9b}2J{marks}b\u{7f}\r\n\t")});
        let shown = block(&format!("{written:#}"));
        assert_eq!(shown.lines().count(), 3, "{shown:?}");
        assert!(shown.chars().all(|character| character == '\n' || !is_obeyed(character)), "{shown:?}");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), written, "it is the same JSON");

        let shown = line(written["branch"].as_str().unwrap());
        assert!(!shown.chars().any(is_obeyed), "{shown:?}");
        assert!(
            shown.starts_with("a\\u001b[2J\\u009b2J\\u061c\\u200e") && shown.ends_with("b\\u007f\\r\\n\\t"),
            "{shown}"
        );
        assert_eq!(line("Jürgen 🚪 ѕ"), "Jürgen 🚪 ѕ");
    }

    #[test]
    fn positions_in_a_masked_text_stay_right() {
        let text = "ü\u{9b}2J\u{61c}\u{200e}\u{2028}\u{202e}🚪x";
        let shown = masked(text);
        assert_eq!(shown, "ü¿2J¿\u{fffd}\u{fffd}\u{fffd}🚪x");
        assert_eq!(shown.len(), text.len());
    }

    #[test]
    fn direction_marks_in_a_name_are_escaped() {
        assert_eq!(undirected("nimda\u{202e}\u{2066}\u{61c}"), "nimda\\u202e\\u2066\\u061c");
        for same in ["alice", "\u{5d0}\u{5dc}\u{5d9}", "a\nb"] {
            assert!(matches!(undirected(same), Cow::Borrowed(text) if text == same), "{same}");
        }
    }

    #[test]
    fn characters_that_cannot_be_seen_are_escaped_where_names_are_compared() {
        let name = "al\u{200b}ice\u{ad}\u{feff}";
        assert_eq!(line(name), "al\\u200bice\\u00ad\\ufeff");
        assert_eq!(distinct(name), line(name));
        assert_eq!(distinct("nimda\u{202e}"), "nimda\\u202e");
        assert_eq!(masked(name), "al\u{fffd}ice¿\u{fffd}");
        // Letters, selectors and tags that are not shown either; as JSON, the last is a pair of surrogates.
        let others = "a\u{3164}\u{fe00}\u{e0061}";
        assert_eq!(distinct(others), "a\\u3164\\ufe00\\udb40\\udc61");
        assert_eq!(serde_json::from_str::<Value>(&format!("\"{}\"", line(others))).unwrap(), others);
        assert_eq!(masked(others), "a\u{fffd}\u{fffd}🚫");
        // On other pages a name is shown as its owner writes it.
        assert_eq!(undirected(name), name);
    }
}
