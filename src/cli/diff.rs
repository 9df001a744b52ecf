//! `doorward diff`: what a change of the configuration does to the policy, to the rights needed in Kubernetes, and to
//! recorded requests.

mod recorded;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use serde_json::json;

use self::recorded::Recorded;
use super::{
    Failure,
    audit::files_of,
    format::{Format, print_json},
    rbac::AccountArgs,
};
use crate::{
    audit::Files,
    authz::Policy,
    config::{self, Change, Loaded, Sources},
    rbac::{self, Form, PRINTS},
    snapshot::fill_defaults,
    terminal,
};

/// Show what a change of the configuration does to settings, rights and decisions.
///
/// The output has every changed setting, including defaults, and the RBAC objects that `doorward rbac` prints. With
/// `--trail`, the requests recorded there are decided by both, each on the route that it took. The exit status is 0 if
/// nothing changes, else 1; 64 if one of them is refused.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The configuration that is in force: a file, or a folder with a `doorward.yaml`.
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// The new configuration.
    #[arg(value_name = "AFTER")]
    after: PathBuf,
    /// How impersonation is allowed, as for `doorward rbac`.
    #[arg(long, value_enum, default_value_t = Form::Classic)]
    form: Form,
    #[command(flatten)]
    accounts: AccountArgs,
    /// A file of the audit trail. Shows those of its requests that would be decided differently. Full files with a
    /// number beside it are read too. Repeat it for each replica.
    #[arg(long = "trail", value_name = "FILE")]
    trails: Vec<PathBuf>,
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
    let recorded = match args.trails.as_slice() {
        [] => None,
        trails => {
            let files = Files::new(files_of(trails)?);
            Some(Recorded::of(&files, (&before.1, &before.0.raw), (&after.1, &after.0.raw))?)
        }
    };
    match args.format {
        Format::Human => {
            print((&before.1, &after.1), &settings, &roles, out)?;
            if let Some(recorded) = &recorded {
                write!(out, "{recorded}")?;
            }
        }
        Format::Json => {
            let roles = json!({"added": roles.added, "removed": roles.removed});
            let digests = json!({"before": &**before.1.digest(), "after": &**after.1.digest()});
            print_json(&json!({"policy": digests, "settings": settings, "rbac": roles, "recorded": recorded}), out)?;
        }
    }
    let is_recorded = recorded.is_some_and(|recorded| !recorded.changes_nothing());
    Ok(u8::from(!settings.is_empty() || !roles.is_empty() || is_recorded))
}

/// Returns the settings with defaults, so that writing out a default is no change.
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
        writeln!(out, "{}", terminal::line(&change.to_string()))?;
    }
    if !roles.is_empty() {
        writeln!(out, "Kubernetes roles ({PRINTS} them; apply them before the configuration)")?;
    }
    for (sign, list) in [("+", &roles.added), ("-", &roles.removed)] {
        for right in list {
            writeln!(out, "{sign} {}", terminal::line(right))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::CONFIGURATION as BEFORE;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: DiffArgs,
    }

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
    fn a_new_group_is_reported_with_the_right_that_it_needs() {
        let after = BEFORE.replace("['tekton:dev']", "['tekton:dev', 'tekton:ops']");
        let (status, told) = diff(&after, &[]);
        assert_eq!(status, 1);
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].starts_with("policy ") && lines[0].contains(" -> "), "{told}");
        assert_eq!(lines[1], "~ /grants/dev/kubernetes_groups +tekton:ops");
        // With the options that were used before: other options bind another account, or undo the constrained form.
        assert!(lines[2].starts_with("Kubernetes roles") && lines[2].contains(PRINTS), "{told}");
        assert_eq!(lines[3..], ["+ ClusterRole doorward-impersonator: impersonate groups named tekton:ops"]);

        let (status, told) = diff(&after, &["--format", "json"]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(status, 1);
        assert_eq!(told["settings"][0]["at"], "/grants/dev/kubernetes_groups");
        assert_eq!(told["rbac"]["removed"], json!([]));
        assert_ne!(told["policy"]["before"], told["policy"]["after"]);
    }

    /// A line above could be erased from the reviewer's terminal, and another be forged.
    #[test]
    fn the_text_of_a_setting_stays_on_its_line() {
        let why = r#"do: allow, why: "w\e[31mx\n+ /rules/fake\u202e"}"#;
        let after = BEFORE.replace("do: allow}", why);
        let (status, told) = diff(&after, &[]);
        assert_eq!(status, 1);
        assert!(told.ends_with("w\\u001b[31mx\\n+ /rules/fake\\u202e\n"), "{told:?}");
        assert!(!told.lines().any(|line| line.starts_with("+ /rules/fake")), "{told:?}");
        let (_, told) = diff(&after, &["--format", "json"]);
        assert!(!told.contains(['\u{1b}', '\u{202e}']), "{told:?}");
    }

    #[test]
    fn rights_for_groups_no_longer_given_are_listed_for_removal() {
        let other = "kubernetes_groups: ['tekton:ops'], tekton_roles: [{role: view, namespaces: [ci]}]";
        let (_, told) = diff(&BEFORE.replace("kubernetes_groups: ['tekton:dev']", other), &[]);
        assert!(told.contains("- ClusterRole doorward-impersonator: impersonate groups named tekton:dev"), "{told}");
        assert!(told.contains("+ ClusterRole doorward-tekton-view"), "{told}");
    }

    /// A line for a request of Alice, with the parts that a decision uses.
    fn recorded(id: u8, code: &str, verb: &str, resource: &str) -> String {
        let line = json!({
            "metadata": {"event_code": code},
            "time": 1_704_110_400_000_i64,
            "actor": {
                "user": {"uid": "alice", "name": "alice"},
                "idp": {"name": "a"},
                "session": {"uid": "1"},
            },
            "src_endpoint": {"ip": "192.0.2.1"},
            "http_request": {
                "uid": format!("01a2190c-3a51-77e1-9a33-0000000000{id:02}"),
                "http_method": "GET",
                "url": {"hostname": "api.test", "path": "/"},
            },
            "authorizations": [{"decision": "allow", "policy": {"uid": "look"}}],
            "unmapped": {
                "route": "api",
                "kind": "kubernetes",
                "principal": {"kind": "human", "scheme": "bearer", "credential": "token", "groups": ["dev"]},
                "kubernetes": {"is_resource": true, "verb": verb, "api_version": "v1", "namespace": "ci", "resource": resource, "name": "p"},
            },
        });
        format!("{line}\n")
    }

    #[test]
    fn recorded_requests_with_a_changed_decision_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let trail = folder.path().join("audit.jsonl");
        let lines = [
            recorded(1, "request", "get", "pods"),
            recorded(2, "request", "get", "configmaps"),
            recorded(3, "request.started", "get", "configmaps"),
            // The same request again.
            recorded(3, "request.started", "get", "configmaps"),
            "{\"metadata\":{\"event_code\":\"request\"},\n".to_owned(),
        ];
        std::fs::write(&trail, lines.concat()).unwrap();
        let trail = ["--trail", trail.to_str().unwrap()];
        let after = BEFORE
            .replace("verbs: [read]}}", "verbs: [read], resources: [pods]}}")
            .replace("rules: [", "rules: [{id: team, on: {kubernetes: {resources: [nodes]}}, who: {issuers: [a], claims: {team: [x]}}, do: allow}, ");
        let (status, told) = diff(&after, &trail);
        let expected = "of 3 recorded requests 2 would be decided differently
~ 2 x get configmaps in namespace \"ci\" by route api as alice of a: allow by look -> deny, such as 01a2190c-3a51-77e1-9a33-000000000002
1 line cannot be read; check the trail with `doorward audit verify`
the records do not have the claims team, which only the new policy reads; they count as absent
";
        assert!(status == 1 && told.ends_with(expected), "{told}");

        let (_, told) = diff(&after, &[&trail[..], &["--format", "json"]].concat());
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["recorded"]["requests"], &told["recorded"]["changed"][0]["count"]), (&json!(3), &json!(2)));
        let unchanged = "nothing changes\nof 3 recorded requests 0 would be decided differently\n";
        let (status, told) = diff(BEFORE, &trail);
        assert!(status == 0 && told.starts_with(unchanged), "{told}");
    }

    #[test]
    fn another_order_and_a_default_that_is_written_out_change_nothing() {
        assert_eq!(diff(BEFORE, &[]), (0, "nothing changes\n".to_owned()));
        assert_eq!(diff(&format!("{BEFORE}sessions: {{idle: 8h}}\n"), &[]).0, 0);
    }
}
