//! The development provider signs in everybody who clicks. Only `doorward demo` starts it; no configuration can.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::{fixture::Fixture, harness::Doorward};

/// Possible names of a setting for it.
const NAMES: [&str; 6] = ["demo", "development", "development_provider", "dev_provider", "provider", "samples"];

const CONFIGURATION: &str = "
listeners: [{name: public, address: 127.0.0.1:0}]
upstreams: [{name: web, url: 'http://127.0.0.1:1'}]
routes: [{name: web, kind: http, hosts: [open.test], schemes: [anonymous], upstream: web}]
rules: [{id: open, who: {anonymous: true}, do: allow}]
";

fn doorward() -> Command {
    Command::new(env!("CARGO_BIN_EXE_doorward"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The names of all settings in a schema, and their possible values.
fn words(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("properties", Value::Object(properties)) => found.extend(properties.keys().cloned()),
                    ("const", Value::String(word)) => drop(found.insert(word.clone())),
                    ("enum" | "required", Value::Array(all)) => {
                        found.extend(all.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    _ => {}
                }
                words(value, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| words(value, found)),
        _ => {}
    }
}

#[test]
fn no_setting_and_no_value_of_one_names_it() {
    let output = doorward().arg("schema").output().unwrap();
    let mut found = BTreeSet::new();
    words(&serde_json::from_slice(&output.stdout).unwrap(), &mut found);
    assert!(found.len() > 200 && found.contains("listeners") && found.contains("human"), "{found:?}");
    let suspicious: Vec<_> = found.iter().filter(|word| word.contains("demo") || word.contains("develop")).collect();
    assert!(suspicious.is_empty(), "{suspicious:?}");
}

/// The schema is complete: a name that it lacks is refused in every layer.
#[test]
fn no_configuration_layer_has_a_setting_for_the_demo_provider() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doorward.yaml");
    let check = |more: &str, variables: &[(String, &str)], flags: &[String]| {
        std::fs::write(&file, format!("{CONFIGURATION}{more}\n")).unwrap();
        let mut command = doorward();
        command.arg("check").arg(&file).args(flags).envs(variables.iter().map(|(name, value)| (name, value)));
        let output = command.output().unwrap();
        (output.status.success(), said(&output))
    };
    assert!(check("", &[], &[]).0, "the twin");
    for name in NAMES {
        let variable = |tail: &str| format!("DOORWARD_{}{tail}", name.to_uppercase());
        for (passed, told) in [
            check(&format!("{name}: true"), &[], &[]),
            check(&format!("{name}: {{port: 8081}}"), &[], &[]),
            check("", &[(variable(""), "true")], &[]),
            check("", &[(variable("__ENABLED"), "true")], &[]),
            check("", &[], &["--set".to_owned(), format!("{name}=true")]),
            check("", &[], &["--set".to_owned(), format!("{name}.port=8081")]),
        ] {
            assert!(!passed && told.to_lowercase().contains(name), "{name}: {told}");
        }
        let (passed, told) = check("", &[], &[format!("--{}", name.replace('_', "-"))]);
        assert!(!passed && told.contains("unexpected argument"), "{name}: {told}");
    }
}

#[test]
fn no_other_command_has_a_flag_for_it() {
    let help = said(&doorward().arg("--help").output().unwrap());
    let (_, list) = help.split_once("Commands:").unwrap();
    let commands: Vec<&str> = list
        .lines()
        .take_while(|line| !line.starts_with("Options:"))
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 15 && commands.contains(&"serve") && commands.contains(&"demo"), "{commands:?}");
    for command in commands {
        let help = said(&doorward().args([command, "--help"]).output().unwrap());
        assert_eq!(help.contains("--provider-port"), command == "demo", "{command}: {help}");
    }
}

/// The ports on which a process listens.
fn listening(pid: u32) -> BTreeSet<u16> {
    let links =
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(|entry| entry.ok()?.path().read_link().ok());
    let sockets: BTreeSet<String> =
        links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect();
    let tables =
        ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default());
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // 0A is LISTEN (proc(5)).
        let own = fields.get(3) == Some(&"0A") && sockets.contains(*fields.get(9)?);
        let port = fields.get(1)?.rsplit_once(':')?.1;
        own.then(|| u16::from_str_radix(port, 16).unwrap())
    };
    tables.iter().flat_map(|table| table.lines().filter_map(of_line)).collect()
}

#[tokio::test]
async fn a_running_doorward_listens_only_at_its_configured_addresses() {
    let told = |doorward: &Doorward| -> BTreeSet<u16> {
        ["public", "admin"].iter().map(|listener| doorward.address(listener).port()).collect()
    };
    let fixture = Fixture::start().await;
    assert_eq!(listening(fixture.doorward.pid()), told(&fixture.doorward));
    for path in ["/authorize", "/token", "/jwks", "/.well-known/openid-configuration"] {
        let answer = fixture.doorward.get(path, &["Host: api.test"]).await;
        assert!(matches!(answer.status, 401 | 404), "{path}: {}", answer.text());
    }
}

/// Only the demo command uses the module.
#[test]
fn nothing_but_the_command_knows_the_module() {
    fn look(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = || std::fs::read_to_string(&path).unwrap();
            if path.is_dir() && !path.ends_with("src/demo") {
                look(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && text().contains("demo::") {
                found.push(path.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(matches!(&found[..], [only] if only.ends_with("src/cli/mod.rs")), "{found:?}");
}
