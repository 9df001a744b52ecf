//! The tokens of a JSON pointer (RFC 6901).

use std::borrow::Cow;

/// Escapes a name as a token.
pub fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The name that a token stands for.
pub fn unescape(token: &str) -> Cow<'_, str> {
    if token.contains('~') { token.replace("~1", "/").replace("~0", "~").into() } else { token.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_again_in_its_token() {
        for (name, token) in [("a", "a"), ("", ""), ("a/b", "a~1b"), ("~1", "~01"), ("~/~", "~0~1~0")] {
            assert_eq!((escape(name).as_str(), &*unescape(token)), (token, name));
        }
    }
}
