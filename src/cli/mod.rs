//! The commands, a file for each or for those that belong together: their arguments and their actions. `operator` has
//! those to a running Doorward, `login` those of a person in a shell, and `audit` is a folder.
//!
//! Besides these, `explain_run` finds the principal and the request for `explain`, and `format` prints results.

mod audit;
mod check;
mod diff;
mod doctor;
mod explain;
mod explain_run;
mod format;
mod import;
mod interceptor;
mod login;
mod operator;
mod print_config;
mod rbac;
mod rollout;
mod schema;
pub(crate) mod test;
mod token;

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::{
    admin::socket::CommandName,
    app::{self, StartError},
    authz::Policy,
    client::Failure,
    config::{self, Sources, resolver::Resolver},
    demo,
    runtime::control,
    terminal,
};

/// The environment variable that names the configuration.
const CONFIG: &str = "DOORWARD_CONFIG";

/// The exit status if a configuration or arguments are refused (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// An identity-aware proxy for Tekton.
#[derive(Debug, Parser)]
#[command(name = "doorward", version, max_term_width = 100, after_help = START)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    ///
    /// SIGHUP or a changed file reloads the configuration. SIGTERM waits for open requests to end, and then stops.
    Serve(ConfigArgs),
    /// Run a demo on loopback: Doorward, an identity provider and sample upstreams.
    Demo(demo::DemoArgs),
    Check(check::CheckArgs),
    /// Run the test cases of the policy.
    ///
    /// The exit status is 1 if a case fails or there are none, and 64 if the configuration is refused.
    Test {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: test::TestArgs,
    },
    Explain {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        args: Box<explain::ExplainArgs>,
    },
    PrintConfig(print_config::PrintConfigArgs),
    Schema(schema::SchemaArgs),
    Interceptor(interceptor::InterceptorArgs),
    Import(import::ImportArgs),
    Rbac(rbac::RbacArgs),
    Diff(diff::DiffArgs),
    Doctor(Box<doctor::DoctorArgs>),
    /// Verify, trace and report on the audit trail, and show who may start runs.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Make a running Doorward reload its configuration, and report the result.
    ///
    /// The exit status is 1 if the new configuration was refused; the old one then stays in force.
    Reload(operator::OperatorArgs),
    /// Show the state of a running Doorward and of its parts.
    Status(operator::OperatorArgs),
    Revoke(operator::RevokeArgs),
    Login(login::LoginArgs),
    /// Show who you are signed in as after `doorward login`.
    Whoami(login::WhereArgs),
    /// End the session that `doorward login` began.
    Logout(login::WhereArgs),
    Credential(login::CredentialArgs),
    Token(token::TokenArgs),
    #[command(subcommand)]
    Rollout(rollout::RolloutCommand),
    /// List or end the browser sessions of a person in a running Doorward.
    #[command(subcommand)]
    Sessions(operator::SessionsCommand),
    /// List, show, retry or drop deliveries that wait for their EventListener.
    #[command(subcommand)]
    Hooks(operator::HooksCommand),
    /// List the tokens and subjects that are revoked in a running Doorward.
    Revocations(operator::OperatorArgs),
    /// Drop signing keys of tokens in the store that can no longer be opened.
    #[command(subcommand)]
    TokenKeys(operator::TokenKeysCommand),
}

/// The groups of commands in `doorward --help`, since clap has one heading for all commands.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Run", &["serve", "demo"]),
    ("Configuration", &["check", "test", "explain", "print-config", "diff", "schema", "import"]),
    ("Cluster", &["rbac", "interceptor", "doctor", "rollout"]),
    ("Operate", &["status", "reload", "revoke", "revocations", "sessions", "hooks", "token-keys"]),
    ("Audit", &["audit"]),
    ("For people and steps", &["login", "whoami", "logout", "credential", "token"]),
];

/// The end of `doorward --help`.
const START: &str = "\
Start here:
  doorward demo            try it without a cluster
  doorward check DIR       validate a configuration
  doorward doctor DIR      find out why something does not work
  doorward COMMAND --help  show help for a command

Documentation: docs/install.md, from an empty cluster to a first login";

/// The command line, with the commands in groups.
fn command() -> clap::Command {
    let command = Cli::command();
    let mut list = String::new();
    for (heading, names) in GROUPS {
        let _ = write!(list, "\n{heading}:\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(list, "  {name:<14}{about}");
        }
    }
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\nCommands:\n{list}\nOptions:\n{{options}}{{after-help}}"
    ))
}

/// The configuration, as most commands take it.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// The configuration: a file, or a folder with a `doorward.yaml`.
    #[arg(value_name = "FILE|DIR", env = CONFIG)]
    pub config: PathBuf,

    /// Set one value, such as `audit.when_full=continue`. The value is YAML. Takes precedence over the environment and
    /// the file.
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
}

impl ConfigArgs {
    /// Returns the sources, with the environment of this process.
    pub fn sources(&self) -> Sources {
        Sources::of_process(self.config.clone(), self.settings.clone())
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, value)) if !path.is_empty() => Ok((path.to_owned(), value.to_owned())),
        _ => Err("write PATH=VALUE, such as `workers=4`".to_owned()),
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(message) => {
            // Help and version are messages too, but not errors.
            let status = if message.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = message.print();
            return ExitCode::from(status);
        }
    };
    ExitCode::from(run(cli.command).unwrap_or_else(|error| complain(&error, 1)))
}

/// Prints an error, and returns the exit status: that of a refused configuration, or else `otherwise`.
fn complain(error: &Failure, otherwise: u8) -> u8 {
    if is_closed_output(error) {
        return otherwise;
    }
    if let Some(StartError::Configuration(refused)) = error.downcast_ref() {
        let colours = io::stderr().is_terminal();
        let _ = io::stderr().write_all(refused.diagnosis.render(colours).as_bytes());
        return EXIT_USAGE;
    }
    let _ = writeln!(io::stderr(), "doorward: {}", terminal::block(&error.to_string()));
    otherwise
}

/// Whether the reader has closed our output, as `head` does.
fn is_closed_output(error: &Failure) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> Result<u8, Failure> {
    let colours = io::stdout().is_terminal();
    let mut out = io::stdout().lock();
    match command {
        Command::Serve(config) => {
            drop(out);
            app::run(&config.sources(), || ())?;
            Ok(0)
        }
        Command::Demo(args) => {
            drop(out);
            demo::run(&args)?;
            Ok(0)
        }
        Command::Check(args) => check::run(&args, colours, &mut out),
        Command::PrintConfig(args) => {
            let runtime = control()?;
            let sources = args.config.sources();
            Ok(print_config::run(&sources, colours, app::check(&runtime)?, &mut out, &mut io::stderr())?)
        }
        Command::Test { config, args } => test::decide(&config.sources(), &args, &mut out),
        Command::Explain { mut config, mut args } => {
            args.take_lone_address(&mut config.config, std::env::var_os(CONFIG).map(PathBuf::from));
            match explain_run::run(&config.sources(), &args, &mut out) {
                Ok(allowed) => Ok(u8::from(!allowed)),
                Err(error) if error.is::<explain_run::Misused>() => Ok(complain(&error, EXIT_USAGE)),
                // 1 means that the request would not pass.
                Err(error) => Ok(complain(&error, 2)),
            }
        }
        Command::Interceptor(args) => Ok(interceptor::run(&args, &mut out)?),
        Command::Import(args) => Ok(import::run(&args, &mut out, &mut io::stderr())?),
        Command::Rbac(args) => rbac::run(&args, &mut out, &mut io::stderr()),
        Command::Diff(args) => diff::run(&args, &mut out),
        Command::Doctor(args) => doctor::run(&args, colours, &mut out),
        Command::Schema(args) => schema::run(args, &mut out).map(|()| 0).map_err(Into::into),
        Command::Audit(command) => audit::run(&command, &mut out),
        Command::Token(args) => token::run(args),
        Command::Login(args) => login::login(&args, &mut out),
        Command::Whoami(args) => {
            drop(out);
            login::whoami(&args)
        }
        Command::Logout(args) => {
            drop(out);
            login::logout(&args)
        }
        Command::Credential(args) => login::credential(&args, &mut out),
        Command::Reload(args) => Ok(operator::run(CommandName::Reload, &args, &mut out)?),
        Command::Status(args) => Ok(operator::run(CommandName::Status, &args, &mut out)?),
        Command::Revoke(args) => Ok(operator::revoke(&args, &mut out)?),
        Command::Rollout(asked) => rollout::run(&asked, &mut out),
        Command::Sessions(asked) => Ok(operator::sessions(&asked, &mut out)?),
        Command::Hooks(asked) => Ok(operator::hooks(&asked, &mut out)?),
        Command::Revocations(args) => Ok(operator::run(CommandName::Revocations, &args, &mut out)?),
        Command::TokenKeys(operator::TokenKeysCommand::Drop(args)) => {
            Ok(operator::run(CommandName::DropTokenKeys, &args, &mut out)?)
        }
    }
}

/// Reads `NAMESPACE/NAME`.
fn namespaced(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
}

/// Reads a file of YAML. An error names it.
fn yaml<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let told = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| told(&error))?;
    serde_saphyr::from_str(&text).map_err(|error| told(&error))
}

/// Creates a runtime for commands that do nothing but talk to others.
fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Loads the policy of a configuration that a start would accept, as far as that can be checked without files: secrets,
/// certificates and providers are not looked at.
fn load_policy(sources: &Sources) -> Result<(config::Loaded, Policy), Failure> {
    let runtime = control()?;
    let mut resolve = app::check_elsewhere(&runtime)?;
    let components = |root: &config::raw::Root, resolver: &mut Resolver| resolve(root, resolver).into_policy();
    let (loaded, policy) = config::load(sources, components).map_err(StartError::Configuration)?;
    let policy = policy.ok_or("the policy could not be compiled")?;
    Ok((loaded, policy))
}

/// A small configuration that is valid as a whole, for tests of commands.
#[cfg(test)]
const CONFIGURATION: &str = "
listeners: [{name: main, address: '127.0.0.1:8080'}]
upstreams: [{name: cluster, url: 'https://kubernetes.default.svc', credential: {bearer: {file: token}}}]
issuers: [{name: a, issuer: 'https://id.test', audiences: [doorward]}]
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}]
grants: [{id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: ['tekton:dev']}]
rules: [{id: look, on: {kubernetes: {verbs: [read]}}, who: {issuers: [a]}, do: allow}]
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NOT_SETTINGS, PREFIX};

    #[test]
    fn a_closed_output_is_known_in_json_too() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(is_closed_output(&Closed.write_all(b"1").unwrap_err().into()));
        assert!(is_closed_output(&format::print_json(&1, &mut Closed).unwrap_err().into()));
        assert!(!is_closed_output(&io::Error::from(io::ErrorKind::NotFound).into()));
    }

    /// These commands decided by a policy that no start would accept.
    #[test]
    fn the_commands_that_look_at_the_policy_alone_refuse_what_check_does() {
        for (text, why) in [
            ("limits: {http2_pending_resets: 0}", "`http2_pending_resets` must be between 1 and 10000"),
            (
                "issuers: [{name: a, issuer: 'https://a.example', audiences: [d]}, {name: b, issuer: 'https://a.example', audiences: [d]}]",
                "`a` is the same issuer",
            ),
        ] {
            let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let sources = Sources { path: file.path().to_owned(), ..Sources::default() };
            let refused = load_policy(&sources).unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        // Files on another machine are not needed.
        let shipped = Sources { path: SHIPPED.into(), ..Sources::default() };
        load_policy(&shipped).unwrap();
    }

    /// The system chose a port, and the demo told people to open port 0.
    #[test]
    fn the_demo_takes_no_port_that_it_could_not_print() {
        for option in ["--port", "--provider-port"] {
            let parsed = |port: &str| Cli::try_parse_from(["doorward", "demo", option, port]);
            let refused = parsed("0").unwrap_err().to_string();
            assert!(refused.contains("0 is not in 1..=65535"), "{option}: {refused}");
            assert!(parsed("65535").is_ok(), "{option}");
        }
    }

    /// It was ignored: `hooks drop ID --parked` dropped a delivery that was still retried. clap waives a requirement that
    /// another argument excludes.
    #[test]
    fn a_condition_is_refused_beside_what_excludes_the_option_that_it_limits() {
        for line in [
            "hooks drop 01a22de7 --parked --socket s --why w",
            "hooks retry 01a22de7 --webhook hub --socket s --why w",
            "explain c.yaml https://k8s.example.com/ --principal p.yaml --scope repo",
            "explain c.yaml https://k8s.example.com/ --principal p.yaml --service-account ci/build",
            "explain c.yaml https://k8s.example.com/ --principal p.yaml --pipeline build",
            "explain c.yaml https://k8s.example.com/ --principal p.yaml --pipeline-task push",
            "audit verify t.jsonl --part --since 2026-03-01",
            "audit verify t.jsonl --checkpoints c.jsonl --since 2026-03-01",
        ] {
            let refused = Cli::try_parse_from(["doorward"].into_iter().chain(line.split(' '))).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::ArgumentConflict, "{line}: {refused}");
        }
        for line in [
            "hooks drop --webhook hub --parked --socket s --why w",
            "hooks retry --parked --webhook hub --socket s --why w",
            "explain c.yaml --audience a --principal p.yaml --scope repo --service-account ci/build --pipeline build",
            "audit verify t.jsonl --all --since 2026-03-01",
        ] {
            let read = Cli::try_parse_from(["doorward"].into_iter().chain(line.split(' ')));
            assert!(read.is_ok(), "{line}: {}", read.unwrap_err());
        }
    }

    /// A checkout of the policy, which has neither secrets nor certificates.
    const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/base/config");
    const BY_KUBECONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/examples/outside-the-cluster.yaml");

    #[test]
    fn requests_without_a_token_are_explained_without_secrets_and_certificates() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{issuer: company, kind: human, groups: [nobody]}").unwrap();
        let explained = |config: &str, host: &str, option: &str| {
            let url = format!("https://{host}/apis/tekton.dev/v1/namespaces/ci/pipelineruns");
            let line = ["doorward", "explain", config, &url, option, file.path().to_str().unwrap()];
            let Command::Explain { config, args } = Cli::try_parse_from(line).unwrap().command else { panic!() };
            let mut out = Vec::new();
            let allowed = explain_run::run(&config.sources(), &args, &mut out);
            (allowed.map_err(|error| error.to_string()), String::from_utf8(out).unwrap())
        };
        // An upstream that a kubeconfig describes is unusable without that file, but its route exists.
        for (config, host) in [(SHIPPED, "k8s.example.com"), (BY_KUBECONFIG, "production.example.com")] {
            let (allowed, said) = explained(config, host, "--principal");
            assert_eq!(allowed, Ok(false), "{config}: {said}");
            assert!(said.starts_with("DENY"), "{config}: {said}");
            let with_token = explained(config, host, "--token-file").0.unwrap_err();
            assert!(with_token.contains("cannot be read"), "a token is looked at as it would be: {with_token}");
        }
        assert_eq!(explained(SHIPPED, "a..b", "--principal").0.unwrap_err(), "`a..b` is not a valid host");
    }

    /// Such a request was explained as allowed, or the command failed.
    #[test]
    fn requests_that_the_proxy_refuses_before_any_rule_are_explained_as_such() {
        let (person, body) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        std::fs::write(person.path(), "{issuer: company, kind: human, groups: [developers]}").unwrap();
        std::fs::write(body.path(), "{kind: PipelineRun, spec: {pipelineRef: {}}}").unwrap();
        let [person, body] = [&person, &body].map(|file| file.path().to_str().unwrap());
        for (method, path, body, expected) in [
            (
                "PUT",
                "pipelineruns/held",
                None,
                "REFUSED before any rule: policy_denied: a run cannot be replaced as a whole",
            ),
            ("PUT", "pipelineruns/held", Some(body), "REFUSED before any rule: policy_denied"),
            ("POST", "pipelineruns", Some(body), "REFUSED before any rule: bad_request"),
            ("POST", "pipelines/other", None, "REFUSED before any rule: method_not_allowed"),
            ("GET", "pipelines?Watch=1&watch=0", None, "REFUSED before any rule: bad_request"),
            ("POST", "pipelineruns", None, "ALLOW"),
            ("PATCH", "pipelineruns/held", None, "ALLOW"),
            ("GET", "pipelineruns", None, "ALLOW"),
        ] {
            let url = format!("https://staging.example.com/apis/tekton.dev/v1/namespaces/ci/{path}");
            let mut line = vec!["doorward", "explain", BY_KUBECONFIG, &url, "-X", method, "--principal", person];
            line.extend(body.iter().flat_map(|body| ["--body", body]));
            let Command::Explain { config, args } = Cli::try_parse_from(line).unwrap().command else { panic!() };
            let mut out = Vec::new();
            let allowed = explain_run::run(&config.sources(), &args, &mut out).unwrap();
            let said = String::from_utf8(out).unwrap();
            assert!(said.starts_with(expected), "{method} {path}: {said}");
            assert_eq!(allowed, expected == "ALLOW", "{method} {path}");
            // A refusal may have its own reason, and a request that is allowed may still be refused for its body.
            assert_eq!(said.contains("the request has no body"), allowed && method != "GET", "{method} {path}: {said}");
            assert!(!said.contains("to pass: \n"), "{said}");
        }
    }

    #[test]
    fn the_configuration_is_printed_without_secrets_and_certificates() {
        let runtime = control().unwrap();
        let sources = Sources { path: SHIPPED.into(), ..Sources::default() };
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let status = print_config::run(&sources, false, app::check(&runtime).unwrap(), &mut out, &mut errors).unwrap();
        assert_eq!((status, String::from_utf8(errors).unwrap().as_str()), (0, ""));
    }

    #[test]
    fn the_list_for_the_doctor_is_the_same_in_its_help_and_in_the_guide_and_has_no_blank() {
        let mut command = Cli::command();
        let doctor = command.find_subcommand_mut("doctor").unwrap();
        let line = format!("kubectl get {} -A -o json", doctor::KINDS);
        assert!(!doctor::KINDS.contains(char::is_whitespace));
        let help = doctor.render_long_help().to_string();
        assert!(help.contains(doctor::KINDS), "{help}");
        let guide = include_str!("../../docs/operations.md");
        assert!(guide.contains(&line), "{line}");
    }

    /// clap does not wrap without its feature `wrap_help`, so terminals broke the lines within words.
    #[test]
    fn no_line_of_a_help_is_longer_than_100_columns() {
        fn assert_short(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            // clap does not wrap the usage, and a list of kinds for `kubectl` cannot be broken.
            let is_wrapped = |line: &&str| !line.starts_with("Usage:") && line.split(' ').all(|word| word.len() < 80);
            for line in help.lines().filter(is_wrapped) {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
            command.get_subcommands_mut().for_each(assert_short);
        }
        let mut command = command();
        command.build();
        assert_short(&mut command);
    }

    #[test]
    fn the_help_has_each_command_in_one_group_and_on_one_line() {
        let mut command = command();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let mut all: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        all.retain(|name| name != "help");
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
        let help = command.render_help().to_string();
        for name in grouped {
            let lines: Vec<&str> = help.lines().filter(|line| line.starts_with(&format!("  {name} "))).collect();
            let [line] = lines[..] else { panic!("{name}: {lines:?}") };
            assert!(line.len() <= 100 && line.len() > 20, "{line}");
        }
        assert!(help.contains("Start here:") && help.contains("--version"), "{help}");
    }

    /// `doorward check` refused the environment that `doorward token` asks for.
    #[test]
    fn the_variables_of_commands_are_no_settings() {
        fn variables(command: &clap::Command, into: &mut Vec<String>) {
            let given = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
            into.extend(given.filter(|name| name.starts_with(PREFIX)).map(str::to_owned));
            command.get_subcommands().for_each(|command| variables(command, into));
        }
        let mut read = Vec::new();
        variables(&Cli::command(), &mut read);
        assert!(read.iter().any(|name| name == "DOORWARD_SERVER"), "{read:?}");
        let strange: Vec<_> = read.iter().filter(|name| !NOT_SETTINGS.contains(&name.as_str())).collect();
        assert!(strange.is_empty(), "add them to NOT_SETTINGS: {strange:?}");
    }
}
