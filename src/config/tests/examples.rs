//! Tests of the shipped configurations.

use std::{fs, path::Path};

use super::load;
use crate::config::Sources;

/// Every shipped example loads; `policies/` holds parts of one of them.
#[test]
fn every_example_loads_without_a_word() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
    let mut examples: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    examples.sort();
    assert!(examples.len() >= 6, "{examples:?}");
    let mut read = std::collections::BTreeSet::new();
    for path in examples {
        let sources = Sources { path: path.clone(), ..Sources::default() };
        let (loaded, ()) = load(&sources, |_, _| ()).unwrap_or_else(|refused| panic!("{refused}"));
        assert_eq!(loaded.warnings.to_string(), "no errors\n", "{}", path.display());
        assert!(!loaded.raw.rules.is_empty(), "{}", path.display());
        read.extend(loaded.fingerprint.files().map(Path::to_owned));
    }
    for entry in fs::read_dir(folder.join("policies")).unwrap() {
        let path = entry.unwrap().path();
        assert!(read.contains(&path), "no example uses {}", path.display());
    }
}

/// Otherwise a pod that starts while the provider is down refuses all of its tokens.
#[test]
fn the_shipped_configuration_keeps_the_keys_of_its_providers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/base/config");
    let (loaded, ()) = load(&Sources { path, ..Sources::default() }, |_, _| ()).unwrap();
    let kept = loaded.raw.issuers.iter().map(|issuer| issuer.keys.keep_in.as_deref()).collect::<Vec<_>>();
    assert_eq!(kept, [Some(Path::new("/var/lib/doorward/keys"))]);
}

/// In that pod the examples find the files that they name, and may write where they write.
#[test]
fn the_examples_keep_to_the_volumes_of_the_shipped_pod() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pod = fs::read_to_string(root.join("deploy/base/stateful-set.yaml")).unwrap();
    let mounted: Vec<&str> =
        pod.split("mountPath: ").skip(1).filter_map(|rest| rest.split([',', '}', '\n']).next()).collect();
    assert!(mounted.contains(&"/var/lib/doorward"), "{mounted:?}");
    for entry in fs::read_dir(root.join("config/examples")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let named =
            text.split([' ', ',', '}', '\n']).filter(|word| word.starts_with("/var/") || word.starts_with("/run/"));
        for named in named {
            let is_there =
                mounted.iter().any(|mount| named.strip_prefix(mount).is_some_and(|rest| rest.starts_with('/')));
            assert!(is_there, "{} names {named}", path.display());
        }
    }
}
