//! `doorward token`: a short-lived token for the step of a task.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use crate::client::{
    login::Address,
    token::{self, Failure, Shape, Wanted},
};

/// Swap the pod's own token for a short-lived one of Doorward's, in the step of a task.
///
/// Prints it, writes it to a file, or runs a command with it at hand: `doorward token --audience registry.example.com --scope
/// push:acme/app --scope pull:acme/app --as docker -- crane push ...` keeps it fresh while the command runs, and ends it then.
#[derive(Clone, Debug, clap::Args)]
#[command(mut_args(without_empty))]
pub struct TokenArgs {
    /// For whom the token is to be.
    #[arg(long, value_name = "AUDIENCE")]
    pub audience: String,
    /// What it is to be good for, separated by blanks; may be given several times. Default: all that rules give by name;
    /// what they give by a pattern, as `pull:acme/*`, is to be asked for.
    #[arg(long, value_name = "SCOPES")]
    pub scope: Vec<String>,
    /// The address of Doorward.
    #[arg(long, value_name = "URL", env = "DOORWARD_SERVER")]
    pub server: Address,
    /// The pod's token: a projected `serviceAccountToken` with the address of Doorward as its audience.
    ///
    /// The kubelet fills such a volume before any container of the pod starts, and replaces what it holds in one step. So a file whose
    /// folder is not there is an error at once, and so is one that may not be read; a file that is missing or empty in a folder that
    /// is there is waited for three seconds, for the case that another container writes it.
    #[arg(
        long,
        value_name = "FILE",
        env = "DOORWARD_SUBJECT_TOKEN_FILE",
        default_value = "/var/run/secrets/doorward/token"
    )]
    pub subject_token_file: PathBuf,
    /// Trust the authorities in this PEM file there, instead of those of the system.
    #[arg(long, value_name = "FILE", env = "DOORWARD_CA_FILE")]
    pub ca: Option<PathBuf>,
    /// In which form.
    ///
    /// A `kubeconfig` that goes to a file names the token by `tokenFile`, since kubectl reads that again and again: the token is beside
    /// it, in a file of the same name with `.token` after it.
    #[arg(long = "as", value_name = "FORM", value_enum, default_value_t = Shape::Token)]
    pub shape: Shape,
    /// Write it to this file, for its owner alone, instead of printing it. What is there and no regular file, a symbolic link too, is
    /// refused.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Stay, and keep the file fresh until SIGTERM.
    ///
    /// Where another token is refused, the one before it stays until its own end, and is asked for again until then. Once the run has
    /// ended there is none any more, and the file is taken away.
    #[arg(long, requires = "out", conflicts_with = "command")]
    pub keep: bool,
    /// Where kubectl finds the cluster, for a kubeconfig. Default: at the address of Doorward.
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,
    /// The host of the registry, with its port, for the forms of docker. Default: that of the audience, which is what the registry has
    /// as `auth.token.service`.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub registry: Option<String>,
    /// What git asks of a helper: `get`, `store` or `erase`.
    #[arg(value_name = "OPERATION", conflicts_with = "command")]
    pub operation: Option<String>,
    /// A command to run with the token at hand: in DOORWARD_TOKEN_FILE, DOCKER_CONFIG, KUBECONFIG or AWS_WEB_IDENTITY_TOKEN_FILE.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// A variable that is empty is as good as none: a StepAction sets those of its parameters that a step leaves out.
fn without_empty(argument: clap::Arg) -> clap::Arg {
    let is_empty = argument.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { argument.env(None::<&'static str>) } else { argument }
}

pub fn run(args: TokenArgs) -> Result<u8, Failure> {
    let TokenArgs {
        audience,
        scope,
        server,
        subject_token_file,
        ca,
        shape,
        out,
        keep,
        cluster,
        registry,
        operation,
        command,
    } = args;
    let scope = Some(scope.join(" ")).filter(|scope| !scope.trim().is_empty());
    let registry = registry.filter(|registry| !registry.is_empty());
    let wanted = Wanted { server, ca, subject: subject_token_file, audience, scope, shape, out, cluster, registry };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stdout = io::stdout();
    match (shape, operation) {
        (Shape::Git, Some(operation)) => runtime.block_on(token::answer_git(wanted, &operation, &mut stdout))?,
        (_, Some(operation)) => {
            let operation = operation.escape_debug();
            return Err(format!("`{operation}` is only for `--as git`; a command to run follows after `--`").into());
        }
        (Shape::Git, None) => {
            return Err("git asks: set `credential.helper` to this command, with a `!` before it".into());
        }
        (_, None) if !command.is_empty() => return runtime.block_on(token::run(wanted, &command)),
        (_, None) if keep => runtime.block_on(token::keep(wanted))?,
        (_, None) => runtime.block_on(token::once(wanted, &mut stdout))?,
    }
    stdout.flush()?;
    Ok(0)
}
