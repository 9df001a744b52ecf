//! `doorward diff`: what a change of the configuration changes, in the policy and in what Kubernetes must allow.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use serde_json::json;

use super::{Failure, format::Format, rbac::AccountArgs};
use crate::{
    authz::Policy,
    config::{self, Change, Loaded, Sources},
    rbac::{self, Form},
    snapshot::fill_defaults,
};

/// Show what changes between two configurations: settings, and rights in Kubernetes.
///
/// Shown are each setting with its defaults, and the RBAC objects that `doorward rbac` prints. The status is 0 if nothing does, else 1; 64 if one of them is refused.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The configuration that is in force: a file, or a folder with a `doorward.yaml`.
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// The one that is to be.
    #[arg(value_name = "AFTER")]
    after: PathBuf,
    /// How impersonation is allowed, as for `doorward rbac`.
    #[arg(long, value_enum, default_value_t = Form::Classic)]
    form: Form,
    #[command(flatten)]
    accounts: AccountArgs,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    format: Format,
}

pub fn run(args: &DiffArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let load = |path: &PathBuf| super::load_policy(&Sources::of_process(path.clone(), Vec::new()));
    let (before, after) = (load(&args.before)?, load(&args.after)?);
    let settings = config::changes(&effective(&before.0)?, &effective(&after.0)?);
    let accounts = args.accounts.of(&after.0.raw)?;
    let roles = rbac::changes(&before.0.raw, &after.0.raw, args.form, accounts)?;
    match args.format {
        Format::Human => print((&before.1, &after.1), &settings, &roles, out)?,
        Format::Json => {
            let roles = json!({"added": roles.added, "removed": roles.removed});
            let digests = json!({"before": &**before.1.digest(), "after": &**after.1.digest()});
            writeln!(out, "{:#}", json!({"policy": digests, "settings": settings, "rbac": roles}))?;
        }
    }
    Ok(u8::from(!settings.is_empty() || !roles.is_empty()))
}

/// With the defaults, so that one that is written out is no change.
fn effective(loaded: &Loaded) -> Result<serde_json::Value, Failure> {
    let mut root = loaded.raw.clone();
    fill_defaults(&mut root);
    Ok(serde_json::to_value(&root)?)
}

fn print(
    (before, after): (&Policy, &Policy),
    settings: &[Change],
    roles: &rbac::Changes,
    out: &mut impl Write,
) -> io::Result<()> {
    if settings.is_empty() && roles.is_empty() {
        return writeln!(out, "nothing changes");
    }
    if before.digest() != after.digest() {
        writeln!(out, "policy {} -> {}", before.digest(), after.digest())?;
    }
    for change in settings {
        writeln!(out, "{change}")?;
    }
    if !roles.is_empty() {
        writeln!(out, "Kubernetes roles (`doorward rbac` prints them; apply them before the configuration)")?;
    }
    for (sign, list) in [("+", &roles.added), ("-", &roles.removed)] {
        for right in list {
            writeln!(out, "{sign} {right}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: DiffArgs,
    }

    const BEFORE: &str = "
listeners: [{name: main, address: '127.0.0.1:8080'}]
upstreams: [{name: cluster, url: 'https://kubernetes.default.svc', credential: {bearer: {file: token}}}]
issuers: [{name: a, issuer: 'https://id.test', audiences: [doorward]}]
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: cluster}]
grants: [{id: dev, who: {issuers: [a], groups: [dev]}, kubernetes_groups: ['tekton:dev']}]
rules: [{id: look, on: {kubernetes: {verbs: [read]}}, who: {issuers: [a]}, do: allow}]
";

    fn diff(after: &str, more: &[&str]) -> (u8, String) {
        let folder = tempfile::tempdir().unwrap();
        let paths = [("before.yaml", BEFORE), ("after.yaml", after)].map(|(name, yaml)| {
            let path = folder.path().join(name);
            std::fs::write(&path, yaml).unwrap();
            path.display().to_string()
        });
        let arguments = ["diff", &paths[0], &paths[1]].into_iter().chain(more.iter().copied());
        let mut out = Vec::new();
        let status = run(&Command::parse_from(arguments).args, &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_new_group_is_told_with_the_right_that_it_needs() {
        let after = BEFORE.replace("['tekton:dev']", "['tekton:dev', 'tekton:ops']");
        let (status, told) = diff(&after, &[]);
        assert_eq!(status, 1);
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].starts_with("policy ") && lines[0].contains(" -> "), "{told}");
        assert_eq!(lines[1], "~ /grants/dev/kubernetes_groups +tekton:ops");
        assert!(lines[2].starts_with("Kubernetes roles"), "{told}");
        assert_eq!(lines[3..], ["+ ClusterRole doorward-impersonator: impersonate groups named tekton:ops"]);

        let (status, told) = diff(&after, &["--format", "json"]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(status, 1);
        assert_eq!(told["settings"][0]["at"], "/grants/dev/kubernetes_groups");
        assert_eq!(told["rbac"]["removed"], json!([]));
        assert_ne!(told["policy"]["before"], told["policy"]["after"]);
    }

    #[test]
    fn what_is_no_longer_given_is_a_role_to_take_away() {
        let other = "kubernetes_groups: ['tekton:ops'], tekton_roles: [{role: view, namespaces: [ci]}]";
        let (_, told) = diff(&BEFORE.replace("kubernetes_groups: ['tekton:dev']", other), &[]);
        assert!(told.contains("- ClusterRole doorward-impersonator: impersonate groups named tekton:dev"), "{told}");
        assert!(told.contains("+ ClusterRole doorward-tekton-view"), "{told}");
    }

    #[test]
    fn another_order_and_a_default_that_is_written_out_change_nothing() {
        assert_eq!(diff(BEFORE, &[]), (0, "nothing changes\n".to_owned()));
        assert_eq!(diff(&format!("{BEFORE}sessions: {{idle: 8h}}\n"), &[]).0, 0);
    }
}
