//! Commands to a running Doorward over its operator socket.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use crate::admin::socket::{Answer, Command, send};

/// How an operator speaks to a running Doorward.
#[derive(Clone, Debug, clap::Args)]
pub struct OperatorArgs {
    /// The operator socket: `admin.socket` of the configuration.
    #[arg(long, value_name = "PATH", env = "DOORWARD_SOCKET")]
    pub socket: PathBuf,
    /// Who you are, for the audit trail. The user id of the process stands beside it.
    #[arg(long, env = "USER", default_value = "unknown")]
    pub who: String,
    /// Why, for the audit trail.
    #[arg(long, default_value = "")]
    pub why: String,
}

/// Sends a command and prints the answer. Gives the exit status: 0, or 1 if it did not happen.
pub fn run(command: &str, args: &OperatorArgs, out: &mut impl Write) -> io::Result<u8> {
    let command = Command {
        command: command.to_owned(),
        who: args.who.clone(),
        why: args.why.clone(),
        arguments: serde_json::Value::Null,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(send(&args.socket, &command))? {
        Answer::Result(value) => writeln!(out, "{value:#}").map(|()| 0),
        Answer::Error(error) => {
            writeln!(io::stderr(), "doorward: {error}")?;
            if let Some(help) = error.help {
                writeln!(io::stderr(), "  {help}")?;
            }
            Ok(1)
        }
    }
}
