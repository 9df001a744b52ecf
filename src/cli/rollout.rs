//! `doorward rollout`: whether a configuration or a policy is in force.

use std::{
    io::{self, Write},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::json;

use super::{
    ConfigArgs, Failure,
    operator::{self, OperatorArgs},
};
use crate::{
    admin::socket::CommandName,
    app::rollout::{Name, Replica, State, same_name},
    clock::Timestamp,
    config::values::Span,
    terminal,
};

/// Wait until every replica has a configuration, or decides by a policy.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum RolloutCommand {
    /// Print the digest of the policy of a configuration (its rules and grants, and `scopes` of `tokens.onward`). The
    /// audit trail and the replicas identify the policy by it.
    Digest {
        /// Print the digest of the whole written configuration (main file and policy files) instead. It
        /// contains neither the contents of other files, such as secrets, nor comments, nor values that flags or the
        /// environment set. Only the replicas use it; the audit trail uses the digest of the policy.
        #[arg(long)]
        configuration: bool,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Wait until every replica has a configuration, or decides by a policy, and exit with 0. If meanwhile a replica
    /// refuses a configuration, two replicas have the same name, part of it needs a restart that nobody begins, or the
    /// timeout passes, show which replica has what, what needs a restart, and what was refused, and exit with 1.
    Status {
        /// The output of `doorward rollout digest`: with `--configuration` for the whole configuration, without it for
        /// the policy alone.
        #[arg(value_name = "DIGEST", value_parser = digest)]
        digest: String,
        /// How long to wait. A kubelet takes a minute or two to write a changed ConfigMap.
        #[arg(long, value_name = "DURATION", default_value = "5m")]
        timeout: Span,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

fn digest(text: &str) -> Result<String, String> {
    match text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => {
            Err("it is not 64 hexadecimal digits; `doorward rollout digest PATH` prints that of a configuration"
                .to_owned())
        }
    }
}

#[derive(Deserialize)]
struct StatusAnswer {
    state: State,
    replicas: Vec<Replica>,
}

/// Runs the command. Returns the exit status.
pub fn run(asked: &RolloutCommand, out: &mut impl Write) -> Result<u8, Failure> {
    let (digest, timeout, operator) = match asked {
        RolloutCommand::Digest { configuration, config } => {
            let (loaded, policy) = super::load_policy(&config.sources())?;
            let digest = if *configuration { Arc::clone(&loaded.digest) } else { Arc::clone(policy.digest()) };
            writeln!(out, "{digest}")?;
            return Ok(0);
        }
        RolloutCommand::Status { digest, timeout, operator } => (digest, timeout, operator),
    };
    let arguments = json!({"digest": digest, "timeout": timeout.to_string()});
    let Some(answer) = operator::ask(CommandName::Rollout, arguments, operator)? else { return Ok(1) };
    let answer: StatusAnswer = serde_json::from_value(answer)?;
    print(&answer, digest, out)?;
    Ok(u8::from(answer.state != State::InForce))
}

fn print(answer: &StatusAnswer, digest: &str, out: &mut impl Write) -> io::Result<()> {
    for replica in &answer.replicas {
        let Replica { instance, name, policy, configuration, after_restart, generation, stopping, refused, .. } =
            replica;
        let is_it = if replica.has(digest) { ", as asked for" } else { "" };
        let stops = if *stopping { ", stopping" } else { "" };
        let line = format!(
            "{instance}: generation {generation}, policy {policy}, configuration {configuration}{is_it}{stops}"
        );
        writeln!(out, "{}", terminal::line(&line))?;
        let trouble = match name {
            Name::Own => None,
            Name::Unsettled => Some(
                "the process that had this name before may be another replica; that is known within 20 s".to_owned(),
            ),
            Name::Shared => Some(same_name(instance)),
        };
        if let Some(trouble) = trouble {
            writeln!(out, "{}", terminal::line(&format!("  {trouble}")))?;
        }
        for change in after_restart {
            writeln!(out, "{}", terminal::line(&format!("  {change}")))?;
        }
        if let Some(refused) = refused {
            for problem in &refused.problems {
                let line = format!("  refused at {}: {problem}", Timestamp::from_millis(refused.at));
                writeln!(out, "{}", terminal::line(&line))?;
            }
        }
    }
    match answer.state {
        State::InForce => writeln!(out, "in force on every replica"),
        State::NeedsRestart => {
            writeln!(out, "in force on every replica except what needs a restart; restart those named, and ask again")
        }
        State::Refused => writeln!(out, "refused; the previous configuration stays in force"),
        State::SameName => {
            writeln!(out, "not known to be in force on every replica: of those with the same name only one is seen")
        }
        State::Waits => writeln!(out, "not in force on every replica yet"),
    }
}
