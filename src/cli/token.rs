//! `doorward token`: a short-lived token for the step of a task.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use super::runtime;
use crate::client::{
    Failure,
    login::Address,
    token::{self, Shape, Wanted},
};

/// Exchange the pod's token for a short-lived token of Doorward, in the step of a task.
///
/// Without further options the new token is printed. `--out` writes it to a file. A command after `--` is run with the
/// token, which is renewed while the command runs and revoked when it ends: `doorward token --audience
/// registry.example.com --scope push:acme/app --scope pull:acme/app --as docker -- crane push ...`
#[derive(Clone, Debug, clap::Args)]
#[command(mut_args(without_empty))]
pub struct TokenArgs {
    /// The audience of the new token: the service that will receive it.
    #[arg(long, value_name = "AUDIENCE")]
    pub audience: String,
    /// The scopes of the new token, separated by spaces; may be repeated. Default: every scope that the rules give by
    /// its full name. A scope that they give by a pattern, such as `pull:acme/*`, must be named here.
    #[arg(long, value_name = "SCOPES")]
    pub scope: Vec<String>,
    /// The address of Doorward.
    #[arg(long, value_name = "URL", env = "DOORWARD_SERVER")]
    pub server: Address,
    /// The file with the pod's token: a projected `serviceAccountToken` whose audience is the address of Doorward.
    ///
    /// If its folder is missing, or the file may not be read, the command fails at once. If the folder is there and the
    /// file is missing or empty, the command waits three seconds for another container to write it.
    #[arg(
        long,
        value_name = "FILE",
        env = "DOORWARD_SUBJECT_TOKEN_FILE",
        default_value = "/var/run/secrets/doorward/token"
    )]
    pub subject_token_file: PathBuf,
    /// A PEM file with the authorities to trust for Doorward's certificate. Default: those of the system.
    #[arg(long, value_name = "FILE", env = "DOORWARD_CA_FILE")]
    pub ca: Option<PathBuf>,
    /// The form of the output.
    ///
    /// A `kubeconfig` that is written to a file does not hold the token. Its `tokenFile` names a second file beside it,
    /// with `.token` after the same name, which kubectl reads again when it is renewed.
    #[arg(long = "as", value_name = "FORM", value_enum, default_value_t = Shape::Token)]
    pub shape: Shape,
    /// Write the output to this file, readable by its owner only, instead of printing it. An existing path that is no
    /// regular file, such as a symbolic link, is refused.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Keep running, and renew the file until SIGTERM.
    ///
    /// If a renewal is refused, the old token stays in the file until it expires, and the renewal is tried again until
    /// then. When the run has ended there are no more tokens, and the file is removed.
    #[arg(long, requires = "out", conflicts_with = "command")]
    pub keep: bool,
    /// The address of the cluster in a kubeconfig. Default: the address of Doorward.
    #[arg(long, value_name = "URL")]
    pub cluster: Option<String>,
    /// The host of the registry, with its port, for the forms of docker. Default: the audience, which is the registry's
    /// `auth.token.service`.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub registry: Option<String>,
    /// The operation that git asks a credential helper for: `get`, `store` or `erase`. For `--as git` alone.
    #[arg(value_name = "OPERATION", conflicts_with = "command")]
    pub operation: Option<String>,
    /// A command to run with the token. It finds the token by DOORWARD_TOKEN_FILE, DOCKER_CONFIG, KUBECONFIG or
    /// AWS_WEB_IDENTITY_TOKEN_FILE, depending on the form.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Treats an empty variable as unset: a StepAction sets the variables of parameters that a step leaves out. The same
/// holds for `--cluster` and `--registry`, which have no variables.
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
    let [cluster, registry] = [cluster, registry].map(|given| given.filter(|given| !given.is_empty()));
    let wanted = Wanted { server, ca, subject: subject_token_file, audience, scope, shape, out, cluster, registry };
    let runtime = runtime()?;
    let mut stdout = io::stdout();
    match (shape, operation) {
        (Shape::Git, Some(operation)) => runtime.block_on(token::answer_git(wanted, &operation, &mut stdout))?,
        (_, Some(operation)) => {
            let operation = operation.escape_debug();
            return Err(format!("`{operation}` is only for `--as git`; a command to run follows after `--`").into());
        }
        (Shape::Git, None) => {
            return Err("this form is for git: set `credential.helper` to this command, with a `!` before it".into());
        }
        (_, None) if !command.is_empty() => return runtime.block_on(token::run(wanted, &command)),
        (_, None) if keep => runtime.block_on(token::keep(wanted))?,
        (_, None) => runtime.block_on(token::once(wanted, &mut stdout))?,
    }
    stdout.flush()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Args;
    use serde_json::Value;

    use super::*;

    /// The step had no `--cluster`, so the kubeconfig that it writes led to a host that accepts no tokens.
    #[test]
    fn the_step_that_is_shipped_passes_on_each_option_that_says_what_is_written() {
        let action: Value = serde_saphyr::from_str(include_str!("../../deploy/tekton/step-action.yaml")).unwrap();
        let texts = |list: &Value, of: fn(&Value) -> &Value| -> Vec<String> {
            list.as_array().unwrap().iter().filter_map(|member| of(member).as_str().map(str::to_owned)).collect()
        };
        let arguments = texts(&action["spec"]["args"], |argument| argument);
        let variables = texts(&action["spec"]["env"], |variable| &variable["name"]);
        let command = TokenArgs::augment_args(clap::Command::new("token"));
        for argument in command.get_arguments() {
            // A step action is one step, which ends.
            let Some(long) = argument.get_long().filter(|long| *long != "keep") else { continue };
            let variable = argument.get_env().and_then(|name| name.to_str());
            let is_passed = arguments.iter().any(|given| given.starts_with(&format!("--{long}=$(params.")))
                || variables.iter().any(|name| Some(name.as_str()) == variable);
            assert!(is_passed, "--{long}");
        }
    }
}
