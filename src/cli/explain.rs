//! `doorward explain`: which rules match a request, and what would make it pass.

use std::{fmt, net::IpAddr, path::PathBuf};

use clap::Args;
use http::Method;
use serde::Serialize;
use uuid::Uuid;

use super::{format::Format, rbac::account};
use crate::{
    authn::Principal,
    authz::{Explanation, Policy, RequestView, TokenExplanation},
    clock::Timestamp,
    config::raw::Effect,
    error::Rejection,
    rbac::Account,
    terminal,
};

/// Explain which rules decide a request, and what would let it pass.
///
/// The caller comes from a token, from written facts, or from a record of the audit trail.
///
/// With `--audience`: which scopes a task, or another caller, would get in a token, and why no others.
///
/// Files of secrets and certificates are read only if `--token-file` presents a token.
///
/// Exit status 0: the request would pass; 1: it would not; 2: this could not be determined; 64: the configuration is
/// refused, or the command line is not understood.
// The group repeats what excludes `audience`: clap waives a `requires` whose argument is excluded by one that is given.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("of_token").multiple(true).conflicts_with_all(["url", "audit_id", "token_file", "body"]))]
pub struct ExplainArgs {
    /// The address that is requested, such as `https://tekton.example.com/apis/tekton.dev/v1/pipelineruns`. With
    /// `DOORWARD_CONFIG` set, it may be the only argument
    pub url: Option<String>,
    /// The method
    #[arg(short = 'X', long, default_value = "GET")]
    pub method: Method,
    /// A file with the token that is presented; `-` reads standard input. Other users could see a token in the
    /// arguments
    #[arg(long, value_name = "FILE", conflicts_with_all = ["principal", "audit_id"])]
    pub token_file: Option<PathBuf>,
    /// A YAML file with the facts of a principal, as in tests of the policy
    #[arg(long, value_name = "FILE", conflicts_with = "audit_id")]
    pub principal: Option<PathBuf>,
    /// A record of the audit trail, whose inputs are evaluated under the recorded and the current policy
    #[arg(long, value_name = "ID", conflicts_with = "url", value_parser = request_id)]
    pub audit_id: Option<Uuid>,
    /// Instead of an address: the audience of a token. `--principal` is the caller, or whoever caused the run of the
    /// task that asks
    #[arg(long, value_name = "AUDIENCE", requires = "principal", group = "of_token")]
    pub audience: Option<String>,
    /// The scopes that would be in the token, separated by spaces. Default: all that rules give
    #[arg(long, value_name = "SCOPES", requires = "audience", group = "of_token")]
    pub scope: Option<String>,
    /// The service account of the task that asks for a token, as `NAMESPACE/NAME`. Default: no task does
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "audience", group = "of_token", value_parser = account)]
    pub service_account: Option<Account>,
    /// The cluster of the task, by the name of its issuer. Default: the only one whose tasks get tokens
    #[arg(long, value_name = "NAME", requires = "service_account", group = "of_token")]
    pub cluster: Option<String>,
    /// The pipeline that the task is part of, by reference
    #[arg(long, value_name = "NAME", requires = "service_account", group = "of_token")]
    pub pipeline: Option<String>,
    /// The name of the task within the pipeline
    #[arg(long, value_name = "NAME", requires = "pipeline", group = "of_token")]
    pub pipeline_task: Option<String>,
    /// The task, by reference
    #[arg(long, value_name = "NAME", requires = "service_account", group = "of_token")]
    pub task: Option<String>,
    /// A file with the body of a request that makes or changes a run of Tekton, in JSON or YAML
    #[arg(long, value_name = "FILE", conflicts_with = "audit_id")]
    pub body: Option<PathBuf>,
    /// The type of the body. Default: `application/json`, and for a patch `application/merge-patch+json`. A patch of
    /// `application/apply-patch+yaml` must be allowed as a create too
    #[arg(long, value_name = "TYPE", conflicts_with = "audit_id")]
    pub content_type: Option<String>,
    /// The client's address
    #[arg(long, default_value = "192.0.2.1")]
    pub address: IpAddr,
    /// The time of the request (RFC 3339), for the token and for the rules. Default: now
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub at: Option<Timestamp>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

fn request_id(text: &str) -> Result<Uuid, &'static str> {
    text.parse().map_err(|_| "not the id of a request; it is in the header `X-Request-Id` of the response")
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::from_rfc3339(text).ok_or_else(|| format!("`{text}` is not a time such as 2024-01-01T12:00:00Z"))
}

impl ExplainArgs {
    /// Takes a lone address, which clap has read as the configuration, for the address, if a variable names the
    /// configuration.
    pub fn take_lone_address(&mut self, config: &mut PathBuf, named: Option<PathBuf>) {
        let is_lone = self.url.is_none() && self.audit_id.is_none() && self.audience.is_none();
        let address = config.to_str().filter(|text| text.starts_with("https://") || text.starts_with("http://"));
        if let (true, Some(address), Some(named)) = (is_lone, address, named) {
            self.url = Some(address.to_owned());
            *config = named;
        }
    }
}

/// The answer to a question about a request.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The proxy refuses such a request, so neither a credential nor a rule is looked at.
    Refused { outcome: &'static str, reason: &'static str, why: String, fix: String },
    /// The credential does not prove an identity, so no rule is evaluated.
    Unauthenticated { outcome: &'static str, why: String },
    /// The decision of the rules.
    Decided(Box<Explanation>),
    /// The decision of the rules on a token.
    Token(Box<TokenExplanation>),
}

/// Explains a request. `principal` is the one that the credential proves, or the reason in plain words why it proves
/// none: a wrong audience, an expired assertion, an unknown issuer or key.
pub fn explain(policy: &Policy, principal: Result<&Principal, String>, request: &RequestView<'_>) -> Answer {
    match principal {
        Ok(principal) => Answer::Decided(Box::new(policy.explain(principal, request))),
        Err(why) => Answer::Unauthenticated { outcome: "unauthenticated", why },
    }
}

impl From<Rejection> for Answer {
    fn from(rejection: Rejection) -> Self {
        Self::Refused {
            outcome: "refused",
            reason: rejection.reason().as_str(),
            why: rejection.detail().to_owned(),
            fix: rejection.fix_text().unwrap_or_default().to_owned(),
        }
    }
}

impl Answer {
    /// Adds a remark to the answer.
    #[must_use]
    pub fn with_note(mut self, note: &str) -> Self {
        if let Self::Decided(explanation) = &mut self {
            explanation.notes.push(note.to_owned());
        }
        self
    }

    /// Whether the request would pass.
    pub fn is_allow(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Unauthenticated { .. } => false,
            Self::Decided(explanation) => explanation.outcome == Effect::Allow,
            Self::Token(explanation) => explanation.outcome == Effect::Allow,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { reason, why, fix, .. } => {
                writeln!(f, "REFUSED before any rule: {reason}: {}", terminal::line(why))?;
                if fix.is_empty() { Ok(()) } else { writeln!(f, "  to pass: {}", terminal::line(fix)) }
            }
            Self::Unauthenticated { why, .. } => {
                writeln!(f, "UNAUTHENTICATED: {}", terminal::line(why))?;
                writeln!(f, "  no rule is evaluated before the credential is accepted")
            }
            Self::Decided(explanation) => write!(f, "{explanation}"),
            Self::Token(explanation) => write!(f, "{explanation}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: crate::cli::ConfigArgs,
        #[command(flatten)]
        args: ExplainArgs,
    }

    #[test]
    fn an_address_may_stand_alone_where_a_variable_names_the_configuration() {
        const ADDRESS: &str = "https://k8s.example.com/api/v1/pods";
        const ID: &str = "01a2190c-3a51-77e1-9a33-000000000001";
        let read = |words: &[&str], named: Option<&str>| {
            let Cli { mut config, mut args } = Cli::try_parse_from([&["explain"], words].concat()).unwrap();
            args.take_lone_address(&mut config.config, named.map(PathBuf::from));
            (config.config, args.url)
        };
        let both = |config: &str, url: Option<&str>| (PathBuf::from(config), url.map(str::to_owned));
        assert_eq!(read(&[ADDRESS], Some("door.yaml")), both("door.yaml", Some(ADDRESS)));
        assert_eq!(
            read(&["-X", "POST", ADDRESS, "--format", "json"], Some("door.yaml")),
            both("door.yaml", Some(ADDRESS))
        );
        assert_eq!(read(&["other.yaml", ADDRESS], Some("door.yaml")), both("other.yaml", Some(ADDRESS)));
        assert_eq!(read(&["other.yaml", "--audit-id", ID], Some("door.yaml")), both("other.yaml", None));
        assert_eq!(read(&[ADDRESS], None), both(ADDRESS, None));
    }

    /// The exit status was that of a question that cannot be answered.
    #[test]
    fn an_id_a_time_and_a_method_that_are_none_are_not_understood() {
        let parsed = |option: &str, value: &str| {
            let parsed = Cli::try_parse_from(["explain", "door.yaml", "https://a.test/", option, value]);
            parsed.map(drop).map_err(|refused| (refused.use_stderr(), refused.to_string()))
        };
        for (option, value, why) in
            [("--at", "yesterday", "`yesterday` is not a time such as 2024-01-01T12:00:00Z"), ("-X", "G T", "method")]
        {
            let (is_error, told) = parsed(option, value).unwrap_err();
            assert!(is_error && told.contains(why), "{option} {value}: {told}");
        }
        assert!(Cli::try_parse_from(["explain", "door.yaml", "--audit-id", "x"]).is_err());
        for (option, value) in [("--at", "2024-01-01T12:00:00Z"), ("-X", "PATCH")] {
            assert_eq!(parsed(option, value), Ok(()), "{option} {value}");
        }
    }
}
