//! `doorward check`: all errors in a configuration, without starting.

use std::io::{self, Write};

use super::{
    ConfigArgs, EXIT_USAGE, Failure,
    format::{Format, count},
};
use crate::{
    app,
    config::{self, Loaded, Sources, raw, resolver::Resolver},
    runtime::control,
};

/// Check a configuration, exactly as a start and a reload do.
///
/// The exit status is 64 if it would be refused; warnings do not count.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgs,

    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub format: Format,

    /// Do not read the files, folders and variables that the configuration names, such as secrets and certificates: for
    /// CI, which has none of them. Policy files are read, and everything else is checked.
    #[arg(long)]
    pub without_files: bool,
}

/// Checks everything that a start does, or only what needs no files, and prints the result. Returns the exit status.
pub fn run(args: &CheckArgs, colours: bool, out: &mut impl Write) -> Result<u8, Failure> {
    let (runtime, sources) = (control()?, args.config.sources());
    if args.without_files {
        return Ok(check(&sources, args.format, colours, app::check_elsewhere(&runtime)?, out)?);
    }
    let mut resolve = app::check(&runtime)?;
    let components = |root: &raw::Root, resolver: &mut Resolver| {
        let resolved = resolve(root, resolver);
        app::check_places(root, &resolved, resolver);
        app::check_held(&runtime, &resolved, resolver);
        resolved
    };
    Ok(check(&sources, args.format, colours, components, out)?)
}

/// Checks the configuration and prints the result. `components` are the checks of a start, as [`config::load`] takes
/// them. Returns the exit status: 0, or 64 if the configuration is refused.
fn check<T>(
    sources: &Sources,
    format: Format,
    colours: bool,
    components: impl FnMut(&raw::Root, &mut Resolver) -> T,
    out: &mut impl Write,
) -> io::Result<u8> {
    match config::load(sources, components) {
        Ok((loaded, _)) => {
            let is_human = format == Format::Human;
            if !(is_human && loaded.warnings.findings().is_empty()) {
                format.print_diagnosis(&loaded.warnings, colours, out)?;
            }
            if is_human {
                writeln!(out, "{}", summary(&loaded))?;
            }
            Ok(0)
        }
        Err(refused) => {
            format.print_diagnosis(&refused.diagnosis, colours, out)?;
            Ok(EXIT_USAGE)
        }
    }
}

fn summary(loaded: &Loaded) -> String {
    let raw = &loaded.raw;
    let in_shadow = raw.rules.iter().filter(|rule| rule.mode == raw::Mode::Shadow);
    let in_shadow: Vec<&str> = in_shadow.map(|rule| rule.id.as_str()).collect();
    let shadow = match in_shadow.len() {
        0 => String::new(),
        number => format!(" ({number} in shadow, which decide nothing: {})", in_shadow.join(", ")),
    };
    format!(
        "{} is good: {}, {}, {}, {}{shadow}, {}",
        loaded.path.display(),
        count(raw.listeners.len(), "listener"),
        count(raw.issuers.len(), "issuer"),
        count(raw.routes.len(), "route"),
        count(raw.rules.len(), "rule"),
        count(raw.grants.len(), "grant"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(main: &str, format: Format) -> (u8, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorward.yaml");
        std::fs::write(&path, main).unwrap();
        let mut out = Vec::new();
        let status = check(&Sources { path, ..Sources::default() }, format, false, |_, _| (), &mut out).unwrap();
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_valid_configuration_gives_one_line_and_status_0() {
        let (status, out) = checked("listeners: [{name: a, address: '127.0.0.1:1'}]", Format::Human);
        assert_eq!(status, 0);
        let (_, out) = out.rsplit_once('/').unwrap();
        assert_eq!(out, "doorward.yaml is good: 1 listener, 0 issuers, 0 routes, 0 rules, 0 grants\n");
    }

    #[test]
    fn rules_in_shadow_are_named() {
        let rules = "rules: [{id: freeze, do: deny, mode: shadow}, {id: leavers, who: {groups: [leaving]}, do: deny}]";
        let (_, out) = checked(&format!("listeners: [{{name: a, address: '127.0.0.1:1'}}]\n{rules}"), Format::Human);
        assert!(out.contains(" 2 rules (1 in shadow, which decide nothing: freeze), 0 grants"), "{out}");
    }

    #[test]
    fn an_invalid_configuration_gives_status_64_for_people_and_for_machines() {
        let bad = "listeners: [{name: a, address: '127.0.0.1', tsl: {certificates: []}}]\nworkers: 0";
        let (status, out) = checked(bad, Format::Human);
        assert_eq!(status, 64);
        assert!(out.contains("did you mean `tls`?") && out.ends_with("3 errors\n"), "{out}");
        let (status, out) = checked(bad, Format::Json);
        assert_eq!(status, 64);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((json["errors"].as_u64(), json["findings"][1]["line"].as_u64()), (Some(3), Some(1)));
    }
}
