//! The codes of eight letters that people type or compare.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{sessions::keyring::random, sha256::sha256};

/// Letters that people can type and distinguish, and that form no words (RFC 8628 section 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// Eight letters, in two groups, from at least eight bytes.
pub(super) fn letters(bytes: &[u8]) -> String {
    let letter = |byte: &u8| LETTERS.get(usize::from(byte % 20)).copied().map(char::from);
    let mut letters = bytes.iter().filter_map(letter);
    let one: String = letters.by_ref().take(4).collect();
    format!("{one}-{}", letters.take(4).collect::<String>())
}

/// The code that a person types: eight capital letters with a hyphen in the middle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserCode(String);

impl UserCode {
    pub(super) fn new() -> Self {
        // 240 is twelve times twenty, so each letter is as likely as any other.
        let fair = std::iter::repeat_with(random::<32>).flatten().filter(|byte| *byte < 240);
        Self(letters(&fair.take(8).collect::<Vec<u8>>()))
    }

    /// Parses a code, in any case and with any spaces or hyphens.
    pub fn parse(text: &str) -> Option<Self> {
        let typed = text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'-');
        let typed: Vec<u8> = typed.take(9).map(|byte| byte.to_ascii_uppercase()).collect();
        let good = typed.len() == 8 && typed.iter().all(|letter| LETTERS.contains(letter));
        let (one, other) = typed.split_at_checked(4).filter(|_| good)?;
        Some(Self(format!("{}-{}", String::from_utf8_lossy(one), String::from_utf8_lossy(other))))
    }

    /// Its key in the store, which has only its hash.
    pub(super) fn key(&self) -> [u8; 32] {
        sha256(&[b"device\0", self.0.as_bytes()])
    }
}

impl fmt::Display for UserCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_code_is_accepted_as_people_type_it() {
        let code = UserCode::new();
        assert_eq!(UserCode::parse(&code.0), Some(code.clone()));
        for typed in ["bcdf-ghjk", "BCDFGHJK", " b c d f g h j k ", "BCDF--GHJK"] {
            assert_eq!(UserCode::parse(typed).map(|code| code.0).as_deref(), Some("BCDF-GHJK"), "{typed}");
        }
        for wrong in ["", "BCDF-GHJ", "BCDF-GHJKL", "BCDF-GHJA", "BCDF-GHJ1", "BCDF-GHJ\u{212a}", "BCDF_GHJK"] {
            assert_eq!(UserCode::parse(wrong), None, "{wrong}");
        }
    }
}
