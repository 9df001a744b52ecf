//! Prints the results of commands.

use std::{
    fmt,
    io::{self, Write},
};

use clap::ValueEnum;
use serde::Serialize;

use crate::{config::Diagnosis, terminal};

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Human,
    /// For programs: JSON.
    Json,
}

impl Format {
    /// Prints a result: for people, as its `Display`.
    pub fn print(self, told: &(impl fmt::Display + Serialize), out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Human => write!(out, "{told}"),
            Self::Json => print_json(told, out),
        }
    }

    /// Prints the errors in a configuration.
    pub fn print_diagnosis(self, diagnosis: &Diagnosis, colours: bool, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Human => out.write_all(diagnosis.render(colours).as_bytes()),
            Self::Json => print_json(&diagnosis.to_json(), out),
        }
    }
}

pub fn print_json(told: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", terminal::block(&serde_json::to_string_pretty(told)?))
}

/// Returns a number of things, each of which is called `what`.
pub fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_safe_for_a_terminal_and_stays_the_same() {
        let (text, mut out) = ("a\u{9b}2J\u{202e}\nb", Vec::new());
        print_json(&[text], &mut out).unwrap();
        let shown = String::from_utf8(out).unwrap();
        assert_eq!(shown, "[\n  \"a\\u009b2J\\u202e\\nb\"\n]\n");
        assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
    }
}
