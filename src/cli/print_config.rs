//! `doorward print-config`: the effective configuration, and where each value comes from.

use std::io::{self, Write};

use super::{ConfigArgs, EXIT_USAGE};
use crate::{
    config::{self, Sources, raw, resolver::Resolver},
    snapshot::fill_defaults,
};

/// Print the effective configuration, with all layers and defaults.
///
/// Files of secrets and certificates are not read. Exit status 64: the configuration is refused.
#[derive(Clone, Debug, clap::Args)]
pub struct PrintConfigArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Prints the configuration, or to `errors` why it is refused. `components` are the checks of a start, as
/// [`config::load`] takes them. Returns the exit status.
pub fn run<T>(
    sources: &Sources,
    colours: bool,
    mut components: impl FnMut(&raw::Root, &mut Resolver) -> T,
    out: &mut impl Write,
    errors: &mut impl Write,
) -> io::Result<u8> {
    // The output says where secrets and certificates are, never what they contain.
    let components = |root: &raw::Root, resolver: &mut Resolver| {
        resolver.elsewhere();
        components(root, resolver)
    };
    match config::load(sources, components) {
        Ok((loaded, _)) => {
            let yaml = loaded.to_yaml(fill_defaults).map_err(io::Error::other)?;
            out.write_all(yaml.as_bytes()).map(|()| 0)
        }
        Err(refused) => {
            errors.write_all(refused.diagnosis.render(colours).as_bytes())?;
            Ok(EXIT_USAGE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_that_was_set_is_shown_with_its_source() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("doorward.yaml");
        let main = "\
listeners:
  - name: main
    address: 127.0.0.1:8080
admin:
  token: {env: HOME}
rules:
  - id: all
    when: |
      true &&
      false
    who: {groups: [a, b]}
    do: {approve: {by: {}}}
";
        std::fs::write(&path, main).unwrap();
        let sources = Sources {
            path,
            environment: vec![("DOORWARD_WORKERS".into(), "2".into())],
            settings: vec![("log.filter".to_owned(), "debug".to_owned())],
        };
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let status = run(&sources, false, |_, _| (), &mut out, &mut errors).unwrap();
        let text = String::from_utf8(out).unwrap().replace(&format!("{}/", folder.path().display()), "");
        assert_eq!((status, errors), (0, Vec::new()), "{text}");
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!("print_config", text);
        });

        // The output is a configuration itself, the same one.
        let again = folder.path().join("again.yaml");
        std::fs::write(&again, &text).unwrap();
        let mut first = config::load(&sources, |_, _| ()).unwrap().0;
        fill_defaults(&mut first.raw);
        let second = config::load(&Sources { path: again, ..Sources::default() }, |_, _| ()).unwrap().0;
        assert_eq!(first.raw, second.raw);
    }
}
