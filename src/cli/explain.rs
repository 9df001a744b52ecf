//! `doorward explain`: which rules hit and missed, and what would make a request pass.

use std::{fmt, io, net::IpAddr, path::PathBuf};

use clap::Args;
use serde::Serialize;

use crate::{
    authn::Principal,
    authz::{Explanation, Policy, RequestView},
};

/// Explain what the policy says of a request: from a token, written facts, or a record of the audit trail.
///
/// Exit status 0: the request would pass; 1: it would not; 2: that cannot be told.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The address that is asked for, such as `https://tekton.example.com/apis/tekton.dev/v1/pipelineruns`
    #[arg(required_unless_present = "audit_id")]
    pub url: Option<String>,
    /// The method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: String,
    /// A file with the token that is presented; `-` reads standard input. Arguments would show it to other users
    #[arg(long, value_name = "FILE", conflicts_with_all = ["principal", "audit_id"])]
    pub token_file: Option<PathBuf>,
    /// A YAML file with the facts of a principal, as in tests of the policy
    #[arg(long, value_name = "FILE", conflicts_with = "audit_id")]
    pub principal: Option<PathBuf>,
    /// A record of the audit trail, whose inputs are evaluated under the recorded and the current policy
    #[arg(long, value_name = "ID", conflicts_with = "url")]
    pub audit_id: Option<String>,
    /// A file with the body of a request that makes or changes a run of Tekton, in JSON or YAML
    #[arg(long, value_name = "FILE", conflicts_with = "audit_id")]
    pub body: Option<PathBuf>,
    /// The type of the body. Default: `application/json`, of a patch `application/merge-patch+json`
    #[arg(long, value_name = "TYPE", requires = "body")]
    pub content_type: Option<String>,
    /// The client's address
    #[arg(long, default_value = "192.0.2.1")]
    pub address: IpAddr,
    /// The time of the request (RFC 3339), for the token as for the rules. Default: now
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Text of which a part may come from a stranger, fit for a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut printed = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { printed.extend(c.escape_default()) } else { printed.push(c) }
    }
    printed
}

/// What can be said of a request.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The credential proves nobody, so that no rule is asked.
    Unauthenticated { outcome: &'static str, why: String },
    /// What the rules say.
    Decided(Box<Explanation>),
}

/// Explains a request. `principal` is whom its credential proves, or in plain words why it proves nobody: a wrong
/// audience, an expired assertion, an unknown issuer or key.
pub fn explain(policy: &Policy, principal: Result<&Principal, String>, request: &RequestView<'_>) -> Answer {
    match principal {
        Ok(principal) => Answer::Decided(Box::new(policy.explain(principal, request))),
        Err(why) => Answer::Unauthenticated { outcome: "unauthenticated", why },
    }
}

impl Answer {
    /// Prints the answer, as text or as JSON.
    pub fn print(&self, out: &mut impl io::Write, json: bool) -> io::Result<()> {
        if json {
            serde_json::to_writer_pretty(&mut *out, self)?;
            return writeln!(out);
        }
        write!(out, "{self}")
    }

    /// Whether the request would pass.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Decided(explanation) if explanation.outcome == "allow")
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthenticated { why, .. } => {
                writeln!(f, "UNAUTHENTICATED: {}", printable(why))?;
                writeln!(f, "  no rule is asked before the credential is good")
            }
            Self::Decided(explanation) => write!(f, "{explanation}"),
        }
    }
}
