//! `doorward doctor`: what does not work around Doorward, and how to repair it.

use std::{io::Write, path::PathBuf};

use clap::ValueEnum as _;
use tokio::runtime::Runtime;

use super::{
    CONFIG, EXIT_USAGE, Failure,
    format::{Format, count, print_json},
    rbac::{account, read},
};
use crate::{
    app,
    clock::Clock,
    config,
    config::{Loaded, Sources},
    doctor::{Address, Check, Doctor, Finding, Public, State, examine_outside},
    rbac::{Account, Installed},
    runtime::control,
    snapshot::Resolved,
    terminal,
    upstream::{Pings, Pools},
};

/// The kinds of objects that are looked at in a cluster, as `kubectl get` takes them: without blanks, which would end
/// the list.
pub(super) const KINDS: &str = "clusterinterceptors,serviceaccounts,secrets,eventlisteners,triggers.triggers.tekton.dev,triggertemplates,\
                     triggerbindings,pipelines,tasks,pipelineruns,taskruns,clusterroles,clusterrolebindings,roles,rolebindings";

/// Find what does not work around Doorward: issuers, upstreams, certificates, the store.
///
/// Run it where Doorward runs and as the same user, beside it or before it starts. It signs nobody in and changes
/// nothing. It prints one line for each thing that it checks, with a remedy. The exit status is 1 if anything does not
/// work, and 64 if the configuration is refused.
#[derive(Clone, Debug, clap::Args)]
pub struct DoctorArgs {
    /// The configuration: a file, or a folder with a `doorward.yaml`. `--outside` needs none.
    #[arg(value_name = "FILE|DIR", env = CONFIG, required_unless_present = "outside")]
    config: Option<PathBuf>,

    /// Set one value, such as `audit.when_full=continue`. The value is YAML. Takes precedence over the environment and
    /// the file.
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = super::setting)]
    settings: Vec<(String, String)>,

    /// Run only this check. May be repeated.
    #[arg(long, value_enum, value_name = "CHECK")]
    only: Vec<Check>,

    /// The address at which browsers reach Doorward. Default: `https://` and `external_host`.
    #[arg(long, value_name = "URL")]
    public: Option<String>,

    /// A PEM file with the authorities to trust for the certificate at that address. Default: those of the system.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    #[arg(long, value_name = "FILE", help = format!(
        "For `interceptor`, `credentials` and `bypass`: the output of `kubectl get {KINDS} -A -o json`; `-` is \
         standard input. Kinds may be left out; without the last four, `bypass` is skipped. Of Secrets only \
         names, types and annotations are looked at"
    ))]
    cluster: Option<PathBuf>,

    /// For `bypass`: Doorward's service account in the cluster.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "doorward/doorward", value_parser = account)]
    service_account: Account,

    /// For `bypass`: the namespace of Tekton's controllers, which may start runs. Its resolvers may be in that
    /// namespace with `-resolvers` appended.
    #[arg(long, value_name = "NAMESPACE", default_value = "tekton-pipelines")]
    tekton_namespace: String,

    /// Check from elsewhere instead, such as a pod of another namespace: if an EventListener, a Dashboard or another
    /// upstream at one of these addresses can be reached from there, past Doorward, that is a fault. An address is
    /// `http://HOST:PORT`, `https://HOST:PORT` or `HOST:PORT`.
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_parser = Address::parse, conflicts_with_all = ["only", "public", "ca", "cluster", "service_account", "tekton_namespace", "settings"])]
    outside: Vec<Address>,

    /// How the findings are printed.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

pub fn run(args: &DoctorArgs, colours: bool, out: &mut impl Write) -> Result<u8, Failure> {
    let runtime = control()?;
    let findings = match &args.config {
        Some(config) if args.outside.is_empty() => {
            let sources = Sources::of_process(config.clone(), args.settings.clone());
            match config::load(&sources, app::check(&runtime)?) {
                Ok((loaded, resolved)) => from_here(args, &runtime, &loaded, &resolved)?,
                Err(refused) => {
                    args.format.print_diagnosis(&refused.diagnosis, colours, out)?;
                    return Ok(EXIT_USAGE);
                }
            }
        }
        _ => runtime.block_on(examine_outside(&args.outside)),
    };
    match args.format {
        Format::Human => print(&findings, out)?,
        Format::Json => print_json(&findings, out)?,
    }
    Ok(u8::from(findings.iter().any(|finding| finding.state == State::Fault)))
}

/// Checks from where Doorward runs.
fn from_here(
    args: &DoctorArgs,
    runtime: &Runtime,
    loaded: &Loaded,
    resolved: &Resolved,
) -> Result<Vec<Finding>, Failure> {
    let external = loaded.raw.external_host.as_ref().map(|host| format!("https://{host}"));
    let public = args.public.as_ref().or(external.as_ref());
    let list = args.cluster.as_deref().map(read).transpose()?;
    let doctor = Doctor {
        public: public.map(|address| Public::parse(address, args.ca.clone())).transpose()?,
        cluster: args.cluster.as_deref().zip(list.as_deref()),
        installed: Installed { doorward: &args.service_account, tekton: &args.tekton_namespace },
        loaded,
        resolved,
        clock: Clock::default(),
        pools: Pools::new(Default::default(), Pings::NORMAL),
    };
    Ok(runtime.block_on(doctor.examine(&args.only)))
}

fn print(findings: &[Finding], out: &mut impl Write) -> Result<(), Failure> {
    for finding in findings {
        writeln!(out, "{}", line(finding))?;
    }
    let are = |state: State| findings.iter().filter(|finding| finding.state == state).count();
    let (faults, warnings) = (are(State::Fault), are(State::Warning));
    writeln!(out, "{} checked: {}, {}", findings.len(), count(faults, "fault"), count(warnings, "warning"))?;
    Ok(())
}

fn line(finding: &Finding) -> String {
    let mark = match finding.state {
        State::Good => "ok",
        State::Skipped => "skipped",
        State::Warning => "warning",
        State::Fault => "FAULT",
    };
    let check = finding.check.to_possible_value();
    let check = check.as_ref().map_or("", |value| value.get_name());
    let fix = if finding.fix.is_empty() { String::new() } else { format!(". {}", finding.fix) };
    // The text of a server may be a sentence with its full stop.
    let message = finding.message.trim_end_matches('.');
    terminal::line(&format!("{mark:<8} {check:<12} {}: {message}{fix}", finding.subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_that_a_server_wrote_ends_in_one_dot() {
        let finding = Finding {
            check: Check::Store,
            subject: "Redis".to_owned(),
            state: State::Fault,
            message: "the store is full: OOM command not allowed when used memory > 'maxmemory'.".to_owned(),
            fix: "give Redis more memory".to_owned(),
        };
        assert!(line(&finding).ends_with("> 'maxmemory'. give Redis more memory"), "{}", line(&finding));
    }

    #[test]
    fn text_of_others_is_printed_without_control_characters() {
        let finding = Finding {
            check: Check::Issuer,
            subject: "issuer `a`".to_owned(),
            state: State::Fault,
            message: "it is called \u{1b}[2J".to_owned(),
            fix: "look\nagain".to_owned(),
        };
        assert_eq!(line(&finding), "FAULT    issuer       issuer `a`: it is called \\u001b[2J. look\\nagain");
    }
}
