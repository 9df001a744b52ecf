//! What conditions of a rule have in common.

use std::fmt::Display;

/// How a condition reads what is in doubt. Whatever the doubt, it is never resolved towards letting somebody through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Of an allow, an approve and a grant: what is in doubt does not match.
    Strict,
    /// Of a deny, and of an approve over an allow: what is in doubt matches.
    Wide,
}

/// Whether a condition is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Yes,
    No,
    /// Read wide, it counts as met: it asks for a claim that the issuer is configured to give and did not give, or of which nothing was
    /// kept, or for a number that a delivery could have told and did not tell.
    Withheld,
}

impl From<bool> for Met {
    fn from(met: bool) -> Self {
        if met { Self::Yes } else { Self::No }
    }
}

/// A condition in words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    /// The key of the rule, such as `who.groups`.
    pub key: &'static str,
    /// What it asks for.
    pub needs: String,
    /// What there is.
    pub found: String,
}

impl Condition {
    #[expect(clippy::needless_pass_by_value, reason = "takes made text and references alike")]
    pub(super) fn new(key: &'static str, needs: impl ToString, found: impl ToString) -> Self {
        Self { key, needs: needs.to_string(), found: found.to_string() }
    }
}

/// Text for what may be absent.
pub(super) fn or_none(text: Option<&str>) -> &str {
    text.unwrap_or("none")
}

/// A list in words.
pub(super) fn joined<T: Display>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// Text for a list that may be empty.
pub(super) fn listed<T: Display>(list: &[T]) -> String {
    match list {
        [] => "none".to_owned(),
        list => joined(list),
    }
}
