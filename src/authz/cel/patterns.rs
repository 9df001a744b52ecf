//! The regular expressions of `matches`. They are literals in the expression, so each is compiled once with it; the
//! function of the library would compile its pattern at each call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cel::{Context, DeclarationError, ExecutionError, FunctionContext};
use regex::Regex;

use super::values::key;

/// The name of the function.
pub(super) const MATCHES: &str = "matches";

/// The patterns of an expression.
#[derive(Debug)]
pub(super) struct Patterns(BTreeMap<String, Regex>);

impl Patterns {
    /// Returns `None` if there are none, so that evaluations are not slowed down. Invalid patterns are left out;
    /// `check` reported them.
    pub(super) fn compile(patterns: &BTreeSet<&str>) -> Option<Arc<Self>> {
        let compiled = patterns.iter().filter_map(|pattern| Some(((*pattern).to_owned(), Regex::new(pattern).ok()?)));
        let compiled: BTreeMap<String, Regex> = compiled.collect();
        (!compiled.is_empty()).then(|| Arc::new(Self(compiled)))
    }

    /// Adds `matches` with these patterns.
    pub(super) fn add_to(self: &Arc<Self>, context: &mut Context<'_, '_>) -> Result<(), DeclarationError> {
        let patterns = Arc::clone(self);
        context.add_function(MATCHES, move |call: &FunctionContext<'_, '_>| patterns.matches(call))
    }

    fn matches(&self, call: &FunctionContext<'_, '_>) -> Result<bool, ExecutionError> {
        let mut given = call.this.iter().chain(&call.args);
        let (Some(text), Some(pattern)) = (given.next(), given.next()) else {
            return Err(ExecutionError::missing_argument_or_target());
        };
        let (text, pattern) = (key(&**text)?, key(&**pattern)?);
        let compiled = self.0.get(pattern);
        compiled.map(|compiled| compiled.is_match(text)).ok_or_else(|| call.error("the pattern is not written out"))
    }
}

/// Whether a pattern compiles.
pub(super) fn try_pattern(pattern: &str) -> Result<(), String> {
    // The lines before the last draw the pattern, which is shown at its place.
    let why = |text: &str| text.lines().last().unwrap_or(text).trim_start_matches("error: ").to_owned();
    Regex::new(pattern).map(drop).map_err(|error| why(&error.to_string()))
}
