//! Commands to a running Doorward over its operator socket.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use serde_json::{Value, json};

use super::runtime;
use crate::{
    admin::socket::{Answer, Command, CommandName, send},
    config::values::Span,
    terminal,
};

/// How to reach a running Doorward, and who does so.
#[derive(Clone, Debug, clap::Args)]
pub struct OperatorArgs {
    /// The operator socket: `admin.socket` of the configuration.
    #[arg(long, value_name = "PATH", env = "DOORWARD_SOCKET")]
    pub socket: PathBuf,
    /// Who you are, for the audit trail, which also records the user id of the process.
    #[arg(long, env = "USER", default_value = "unknown")]
    pub who: String,
    /// The reason, for the audit trail. The people affected never see it. Name nobody in it: the trail keeps it as it is
    /// written, and with `audit.pseudonym_key` only a `--subject` in it becomes a pseudonym.
    #[arg(long, value_name = "REASON")]
    pub why: String,
}

/// Revoke a token, or everything of a person or a machine, including open streams.
///
/// It takes effect immediately on every route, for 30 days unless `--for` or `--until` says otherwise. After that the
/// credential is valid again, so disable the account at the identity provider as well.
///
/// A later revocation of the same token or subject replaces the earlier one: `--for 1s` lifts it.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct RevokeArgs {
    /// The issuer of the token or the subject: its name in the configuration or its identifier, `webhook:NAME`, or
    /// `break-glass`.
    #[arg(long, value_name = "NAME|URL")]
    pub issuer: String,
    /// Everything of this subject (`sub`): its tokens and its sessions. For a webhook: a repository, as
    /// `webhook:github:repo:NUMBER`, or the deliveries that name none, as `webhook:github:hook:NAME`.
    #[arg(long, value_name = "SUB", group = "target", allow_hyphen_values = true)]
    pub subject: Option<String>,
    /// One token, by its `jti`, with Doorward's own tokens that it was exchanged for. The audit trail shows it, or what
    /// is used in its place for a token without one.
    #[arg(long, value_name = "JTI", group = "target", allow_hyphen_values = true)]
    pub token_id: Option<String>,
    /// For how long. After that the credential is valid again, unless it has expired.
    #[arg(long = "for", value_name = "DURATION", default_value = "30d", conflicts_with = "until")]
    pub span: Span,
    /// Until when, such as 2026-01-31T18:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// Revokes. Returns the exit status as [`run`] does.
pub fn revoke(args: &RevokeArgs, out: &mut impl Write) -> io::Result<u8> {
    let span = args.until.is_none().then(|| args.span.to_string());
    let given = [("subject", &args.subject), ("token_id", &args.token_id), ("until", &args.until), ("for", &span)];
    let mut arguments = serde_json::Map::from_iter([("issuer".to_owned(), json!(args.issuer))]);
    arguments.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))));
    command(CommandName::Revoke, Value::Object(arguments), &args.operator, out)
}

/// The browser sessions of a person.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum SessionsCommand {
    /// List them: where and when they began, when they were last used, and when they end.
    List(PersonArgs),
    /// End them everywhere, including open streams. The person may sign in again; `doorward revoke` shuts them out for
    /// a time.
    End {
        #[command(flatten)]
        person: PersonArgs,
        /// Only this one, as `list` shows it.
        // One of 64 begins with a hyphen.
        #[arg(long, value_name = "SESSION", allow_hyphen_values = true)]
        session: Option<String>,
    },
}

/// Whose sessions.
#[derive(Clone, Debug, clap::Args)]
pub struct PersonArgs {
    /// The issuer where they sign in: its name in the configuration or its identifier.
    #[arg(long, value_name = "NAME|URL")]
    pub issuer: String,
    /// The person (`sub`).
    #[arg(long, value_name = "SUB", allow_hyphen_values = true)]
    pub subject: String,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// Lists or ends sessions. Returns the exit status as [`run`] does.
pub fn sessions(asked: &SessionsCommand, out: &mut impl Write) -> io::Result<u8> {
    let (name, person, session) = match asked {
        SessionsCommand::List(person) => (CommandName::Sessions, person, None),
        SessionsCommand::End { person, session } => (CommandName::EndSessions, person, session.as_ref()),
    };
    let given = [("issuer", Some(&person.issuer)), ("subject", Some(&person.subject)), ("session", session)];
    let arguments = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect();
    command(name, Value::Object(arguments), &person.operator, out)
}

/// Deliveries that are held until their EventListener takes them.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum HooksCommand {
    /// List them, the oldest first.
    List {
        /// Only those of this sender: its name in the configuration.
        #[arg(long, value_name = "NAME")]
        webhook: Option<String>,
        /// Only those that are no longer retried.
        #[arg(long)]
        parked: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Show everything that is known about one, except its body.
    Show(HookArgs),
    /// Retry one immediately, and for its whole time again.
    #[command(group = clap::ArgGroup::new("target").required(true))]
    Retry {
        /// Its id as `list` shows it, or the beginning of that, 8 digits or more.
        #[arg(value_name = "ID", group = "target")]
        id: Option<String>,
        /// All that are no longer retried.
        #[arg(long, group = "target")]
        parked: bool,
        /// Of these, only those of this sender.
        #[arg(long, value_name = "NAME", requires = "parked", conflicts_with = "id")]
        webhook: Option<String>,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Drop one for good, or all of a sender, such as those that came while somebody else had its secret. If the sender
    /// sends them again, they still count as duplicates.
    #[command(group = clap::ArgGroup::new("target").required(true))]
    Drop {
        /// Its id as `list` shows it, or the beginning of that, 8 digits or more.
        #[arg(value_name = "ID", group = "target")]
        id: Option<String>,
        /// All of this sender: its name in the configuration.
        #[arg(long, value_name = "NAME", group = "target")]
        webhook: Option<String>,
        /// Of these, only those that are no longer retried.
        #[arg(long, requires = "webhook", conflicts_with = "id")]
        parked: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
}

/// The held delivery that is meant.
#[derive(Clone, Debug, clap::Args)]
pub struct HookArgs {
    /// Its id as `list` shows it, or the beginning of that.
    #[arg(value_name = "ID")]
    pub id: String,
    #[command(flatten)]
    pub operator: OperatorArgs,
}

/// The signing keys of tokens that Doorward makes itself.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum TokenKeysCommand {
    /// Drop for good the keys in the store that the queried process cannot open, because it lacks the key of
    /// `sessions.keys` that sealed them. First check whether that key can be put back, or is just not mounted yet. New
    /// keys are made immediately; tokens that were signed with the dropped keys are refused. Usable keys stay.
    Drop(OperatorArgs),
}

/// Lists, shows, retries or drops held deliveries. Returns the exit status as [`run`] does.
pub fn hooks(asked: &HooksCommand, out: &mut impl Write) -> io::Result<u8> {
    let (name, arguments, operator) = match asked {
        HooksCommand::List { webhook, parked, operator } => {
            (CommandName::Hooks, json!({"webhook": webhook, "parked": parked}), operator)
        }
        HooksCommand::Show(HookArgs { id, operator }) => (CommandName::ShowHook, json!({"id": id}), operator),
        HooksCommand::Retry { id: Some(id), operator, .. } => (CommandName::RetryHook, json!({"id": id}), operator),
        HooksCommand::Retry { id: None, webhook, operator, .. } => {
            (CommandName::RetryHook, json!({"webhook": webhook, "parked": true}), operator)
        }
        HooksCommand::Drop { id: Some(id), operator, .. } => (CommandName::DropHook, json!({"id": id}), operator),
        HooksCommand::Drop { id: None, webhook, parked, operator } => {
            (CommandName::DropHook, json!({"webhook": webhook, "parked": parked}), operator)
        }
    };
    command(name, arguments, operator, out)
}

/// Sends a command without arguments and prints the answer. Returns the exit status: 0, or 1 if the command failed.
pub fn run(name: CommandName, args: &OperatorArgs, out: &mut impl Write) -> io::Result<u8> {
    command(name, Value::Null, args, out)
}

fn command(name: CommandName, arguments: Value, args: &OperatorArgs, out: &mut impl Write) -> io::Result<u8> {
    match ask(name, arguments, args)? {
        Some(value) => writeln!(out, "{}", terminal::block(&format!("{value:#}"))).map(|()| 0),
        None => Ok(1),
    }
}

/// Sends a command and returns the answer; `None` if the command failed, after printing why.
pub(super) fn ask(name: CommandName, arguments: Value, args: &OperatorArgs) -> io::Result<Option<Value>> {
    let command =
        Command { command: name.as_str().to_owned(), who: args.who.clone(), why: args.why.clone(), arguments };
    let runtime = runtime()?;
    match runtime.block_on(send(&args.socket, &command))? {
        Answer::Result(value) => Ok(Some(value)),
        Answer::Error(error) => {
            writeln!(io::stderr(), "doorward: {}", terminal::block(&error.to_string()))?;
            if let Some(help) = error.help {
                writeln!(io::stderr(), "  {}", terminal::block(&help))?;
            }
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::cli::Cli;

    /// The help of `show` asked for a length that only changes need.
    #[test]
    fn the_help_asks_for_eight_digits_where_a_delivery_is_changed_alone() {
        let command = Cli::command();
        let hooks = command.find_subcommand("hooks").unwrap();
        for (name, asks) in [("show", false), ("retry", true), ("drop", true)] {
            let hook = hooks.find_subcommand(name).unwrap();
            let id = hook.get_arguments().find(|argument| argument.get_id() == "id").unwrap();
            let help = id.get_help().unwrap().to_string();
            assert_eq!(help.contains("8 digits or more"), asks, "{name}: {help}");
        }
    }

    /// Only the help said so, and somebody who was shut out got in again after a month.
    #[test]
    fn each_page_about_revoking_a_person_says_for_how_long_it_holds() {
        let mut command = Cli::command();
        let revoke = command.find_subcommand_mut("revoke").unwrap();
        let span = revoke.get_arguments().find(|argument| argument.get_id() == "span").unwrap();
        assert_eq!(span.get_default_values(), ["30d"], "the pages say 30 days");
        let help = revoke.render_long_help().to_string();
        assert!(help.contains("for 30 days unless"), "{help}");
        for (page, said) in [
            (include_str!("../../README.md"), "in a running Doorward, for 30 days unless"),
            (
                include_str!("../../docs/operations.md"),
                "A revocation ends after 30 days, or as `--for` or `--until` says",
            ),
            (include_str!("../../docs/people.md"), "`doorward revoke` shuts somebody out for 30 days"),
            (include_str!("../../docs/people.md"), "which holds for 30 days unless"),
            (include_str!("../../docs/store.md"), "30 days unless it is told otherwise"),
            (include_str!("../../docs/workload-identity.md"), "gives them no others [for 30 days]"),
        ] {
            let page = page.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(page.contains(said), "{said}");
        }
    }
}
