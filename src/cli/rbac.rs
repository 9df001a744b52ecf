//! `doorward rbac`: what Kubernetes must allow for a configuration to work, and nothing else.

use std::{
    fs,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{ConfigArgs, Failure, namespaced};
use crate::{
    config,
    rbac::{self, Account, Accounts, Form},
    terminal,
};

/// Print the Kubernetes roles that the configuration needs, or check those of a cluster.
///
/// Pipe it to `kubectl apply -f -`: the minimum rights to impersonate, and the Tekton roles that grants give.
#[derive(Debug, Args)]
pub struct RbacArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// How impersonation is allowed. Constrained needs Kubernetes 1.36; bind one of the two forms, never both. Default:
    /// classic; with `--check`, the form of the cluster.
    #[arg(long, value_enum)]
    form: Option<Form>,
    #[command(flatten)]
    accounts: AccountArgs,
    /// Write the roles to this file. A refused configuration leaves it unchanged, where `>` would empty it.
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    out: Option<PathBuf>,
    /// Print no roles, but what a cluster lacks, what is left from an earlier configuration, and what allows too much;
    /// the exit status is 1 if there is any of these. The file (`-` is standard input) holds the output of `kubectl get
    /// clusterroles,clusterrolebindings,roles,rolebindings -A -o json`.
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
}

/// Doorward's accounts in the cluster.
#[derive(Debug, Args)]
pub(super) struct AccountArgs {
    /// The service account whose token is the credential of the upstream. For an upstream with
    /// `credential.service_account` the configuration names it, and its token is requested with the reader account.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "doorward/doorward", value_parser = account)]
    service_account: Account,
    /// The service account of `token_review.bearer` and of the upstreams of `runs`, `tokens.exchange` and
    /// `interceptor`, if none of these is the upstream of a route. Default: the same.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = account)]
    reader_account: Option<Account>,
}

impl AccountArgs {
    /// Returns the accounts; some configurations can have only one.
    pub(super) fn of(&self, root: &config::raw::Root) -> Result<Accounts<'_>, Failure> {
        let impersonator = &self.service_account;
        let Some(reader) = &self.reader_account else { return Ok(Accounts { impersonator, reader: impersonator }) };
        match rbac::shared_upstream(root) {
            None => Ok(Accounts { impersonator, reader }),
            Some(shared) => Err(format!(
                "upstream `{shared}` is used with impersonation and without, and has one credential, so that \
                 `--reader-account` would not be used there; give `runs`, `tokens.exchange` and `interceptor` an upstream \
                 of their own"
            )
            .into()),
        }
    }
}

/// Reads `NAMESPACE/NAME`.
pub(super) fn account(text: &str) -> Result<Account, String> {
    let (namespace, name) = namespaced(text).ok_or("write NAMESPACE/NAME, such as `doorward/doorward`")?;
    Ok(Account { namespace: namespace.to_owned(), name: name.to_owned() })
}

pub fn run(args: &RbacArgs, out: &mut impl Write, notes: &mut impl Write) -> Result<u8, Failure> {
    let (loaded, _) = super::load_policy(&args.config.sources())?;
    let root: &config::raw::Root = &loaded.raw;
    let accounts = args.accounts.of(root)?;
    let Some(cluster) = &args.check else {
        let manifest = rbac::manifest(root, args.form.unwrap_or(Form::Classic), accounts)?;
        match &args.out {
            None => out.write_all(manifest.as_bytes())?,
            Some(file) => {
                fs::write(file, &manifest).map_err(|error| format!("{} cannot be written: {error}", file.display()))?
            }
        }
        if manifest.is_empty() {
            // `kubectl apply` fails on nothing, and does not say why it was given nothing.
            writeln!(
                notes,
                "the configuration needs no rights in Kubernetes, so there are no roles to apply; `--check` finds \
                 those that an earlier one left"
            )?;
        }
        return Ok(0);
    };
    let list = read(cluster)?;
    let form = args.form.map_or_else(|| Form::in_list(&list), Ok);
    let differences =
        form.and_then(|form| rbac::compare(root, form, accounts, &list)).map_err(|error| no_list(cluster, &error))?;
    if differences.is_empty() {
        writeln!(out, "the cluster has what the configuration needs, and no more")?;
        return Ok(0);
    }
    for difference in differences {
        writeln!(out, "{}", terminal::line(&difference.to_string()))?;
    }
    Ok(1)
}

/// The roles of a cluster take some megabytes at most.
const MAX_LIST: u64 = 256 << 20;

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let from: Box<dyn io::Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => {
            let file = fs::File::open(path);
            Box::new(file.map_err(|error| format!("{} cannot be read: {error}", path.display()))?)
        }
    };
    let mut list = Vec::new();
    if from.take(MAX_LIST + 1).read_to_end(&mut list)? as u64 > MAX_LIST {
        return Err(format!("{} has more than {} MiB", path.display(), MAX_LIST >> 20).into());
    }
    Ok(list)
}

pub(super) fn no_list(path: &Path, error: &serde_json::Error) -> String {
    format!(
        "{} is not a list of Kubernetes objects in JSON: {error}; write it with `kubectl get KINDS -A -o json`, as the \
         help says",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::CONFIGURATION;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: RbacArgs,
    }

    /// Checking the output of the constrained form by the classic one reported a bounded cluster as too wide, and so
    /// led people to undo the bound.
    #[test]
    fn a_cluster_is_checked_by_the_form_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("doorward.yaml"), CONFIGURATION).unwrap();
        let rbac = |more: &[&str]| {
            let config = path("doorward.yaml");
            let arguments = ["rbac", &config].into_iter().chain(more.iter().copied());
            let mut out = Vec::new();
            let status = run(&Command::parse_from(arguments).args, &mut out, &mut io::sink()).unwrap();
            (status, String::from_utf8(out).unwrap())
        };
        let objects = |form: &str| -> Vec<Value> {
            let (_, printed) = rbac(&["--form", form]);
            let each = printed.split("---\n").filter(|yaml| !yaml.is_empty());
            each.map(|yaml| serde_saphyr::from_str(yaml).unwrap()).collect()
        };
        let check = |items: &[Value], more: &[&str]| {
            let list = path("list.json");
            fs::write(&list, json!({"items": items}).to_string()).unwrap();
            rbac(&[&["--check", &*list][..], more].concat())
        };
        let (classic, constrained) = (objects("classic"), objects("constrained"));
        for items in [&classic, &constrained] {
            let (status, told) = check(items, &[]);
            assert_eq!(status, 0, "{told}");
        }
        let (status, told) = check(&constrained, &["--form", "classic"]);
        assert_eq!(status, 1, "{told}");

        // The state that `kubectl apply` of the classic form leaves.
        let is_classic =
            |object: &Value| classic.iter().any(|other| other["metadata"]["name"] == object["metadata"]["name"]);
        let others: Vec<Value> = constrained.iter().filter(|object| !is_classic(object)).cloned().collect();
        let (status, told) = check(&[classic.clone(), others].concat(), &[]);
        assert_eq!(status, 1, "{told}");
        assert!(told.contains("too wide  ClusterRole doorward-impersonator: impersonate users\n"), "{told}");
        assert!(!told.contains("doorward-impersonated-actions"), "{told}");
    }

    /// With `>`, a typing error left a file without roles, which `kubectl apply -k` accepts.
    #[test]
    fn roles_are_written_to_a_file_only_if_the_configuration_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let [config, roles] = ["doorward.yaml", "rbac.yaml"].map(|name| folder.path().join(name).display().to_string());
        fs::write(&config, CONFIGURATION).unwrap();
        let rbac = || {
            let mut printed = Vec::new();
            let args = Command::parse_from(["rbac", &config, "--out", &roles]).args;
            (run(&args, &mut printed, &mut io::sink()), printed)
        };
        let (status, printed) = rbac();
        assert_eq!((status.unwrap(), printed), (0, Vec::new()));
        let written = fs::read_to_string(&roles).unwrap();
        assert!(written.contains("kind: ClusterRole"), "{written}");
        fs::write(&config, format!("{CONFIGURATION}\nadmn: {{}}\n")).unwrap();
        rbac().0.unwrap_err();
        assert_eq!(fs::read_to_string(&roles).unwrap(), written);
    }

    #[test]
    fn what_is_no_list_is_refused_without_the_names_of_types() {
        let folder = tempfile::tempdir().unwrap();
        let [config, list] = ["doorward.yaml", "list.json"].map(|name| folder.path().join(name).display().to_string());
        fs::write(&config, CONFIGURATION).unwrap();
        fs::write(&list, "[]").unwrap();
        let args = Command::parse_from(["rbac", &config, "--check", &list]).args;
        let refused = run(&args, &mut io::sink(), &mut io::sink()).unwrap_err().to_string();
        assert!(refused.contains("expected an object with `items`") && refused.contains("kubectl get"), "{refused}");
        assert!(!refused.contains("struct"), "{refused}");
    }

    #[test]
    fn nothing_printed_is_said_to_be_nothing_needed() {
        let folder = tempfile::tempdir().unwrap();
        let yaml = "
listeners: [{name: main, address: '127.0.0.1:8080'}]
upstreams: [{name: app, url: 'http://127.0.0.1:8081'}]
issuers: [{name: a, issuer: 'https://id.test', audiences: [doorward]}]
routes: [{name: web, kind: http, hosts: [web.test], schemes: [bearer], upstream: app}]
rules: [{id: all, who: {issuers: [a]}, do: allow}]
";
        let config = folder.path().join("doorward.yaml");
        fs::write(&config, yaml).unwrap();
        let args = Command::parse_from(["rbac", config.to_str().unwrap()]).args;
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        assert_eq!(run(&args, &mut out, &mut notes).unwrap(), 0);
        assert!(out.is_empty(), "{}", String::from_utf8_lossy(&out));
        let notes = String::from_utf8(notes).unwrap();
        assert!(notes.contains("no roles to apply"), "{notes}");
    }
}
