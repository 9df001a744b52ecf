//! What all conditions of a rule have in common.

use std::fmt::Display;

/// How a condition treats doubt. Doubt is never resolved in favour of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// For an allow, an approve and a grant: what is in doubt does not match.
    Strict,
    /// For a deny, and for an approve where an allow matches: what is in doubt matches.
    Wide,
}

/// Whether a condition is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Yes,
    No,
    /// The condition asks for a claim that the issuer is configured to provide and did not, or whose value was not
    /// stored, or for a number that a delivery could have carried and did not. Read wide, it counts as met.
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
    /// What the condition asks for.
    pub needs: String,
    /// What the request or the principal has.
    pub found: String,
}

impl Condition {
    #[expect(clippy::needless_pass_by_value, reason = "takes made text and references alike")]
    pub(super) fn new(key: &'static str, needs: impl ToString, found: impl ToString) -> Self {
        Self { key, needs: needs.to_string(), found: found.to_string() }
    }
}

/// Text for an optional value.
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
