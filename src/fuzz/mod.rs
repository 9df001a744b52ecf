//! The bodies of the fuzz targets: functions that accept any bytes and panic when a property does not hold.
//!
//! They are compiled for tests and for the crate `fuzz/` only. Each has a folder of inputs, `fuzz/corpus/NAME`, all of
//! which the tests below run; `fuzz/README.md` describes how to search for more.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "what does not hold here is a finding")]

mod cookie;
mod headers;
mod path;

pub use self::{cookie::cookie, headers::headers, path::path};
pub use crate::{
    config::fuzz_configuration as configuration,
    downstream::fuzz_proxy_header as proxy_protocol,
    issuers::fuzz::{jwks, jwt},
    webhooks::fuzz::webhook,
};

/// Parses `name: value` lines up to an empty line as fields, and returns them and the rest. Invalid lines are skipped.
pub(crate) fn fields(bytes: &[u8]) -> (http::HeaderMap, &[u8]) {
    let mut headers = http::HeaderMap::new();
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = http::HeaderName::from_bytes(&line[..colon]);
        let value = http::HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            let _ = headers.try_append(name, value);
        }
    }
    (headers, rest)
}

/// The inputs of a target, for tests that a body checks something for them: it also holds if it rejects all inputs.
#[cfg(test)]
pub(crate) fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, panic, path::Path};

    use super::*;

    type Body = fn(&[u8]);

    /// All targets, by the names of their corpora.
    const TARGETS: [(&str, Body); 8] = [
        ("configuration", configuration),
        ("cookie", cookie),
        ("headers", headers),
        ("jwks", jwks),
        ("jwt", jwt),
        ("path", path),
        ("proxy_protocol", proxy_protocol),
        ("webhook", webhook),
    ];

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// Runs a body on all files in its folder.
    fn run(name: &str) {
        let (_, body) = TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
        run_over(body, &Path::new("fuzz/corpus").join(name));
        for bytes in [&b""[..], b"\n", b"\0", b"\xff\xfe", &[b'a'; 70_000]] {
            body(bytes);
        }
    }

    /// Prints the name of the input on which a body panics.
    fn run_over(body: Body, folder: &Path) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut count = 0;
        for path in paths.filter(|path| path.is_file()) {
            let bytes = fs::read(&path).unwrap();
            if let Err(cause) = panic::catch_unwind(|| body(&bytes)) {
                eprintln!("the input is {}", path.display());
                panic::resume_unwind(cause);
            }
            count += 1;
        }
        assert!(count >= 5, "{} is nearly empty", folder.display());
    }

    #[test]
    fn every_target_has_a_corpus_and_a_program() {
        let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        assert_eq!(names(&folder.join("corpus")), targets);
        assert_eq!(names(&folder.join("fuzz_targets")), targets);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for target in targets {
            assert!(manifest.contains(&format!("\nname = \"{target}\"\n")), "{target} is no binary of fuzz/Cargo.toml");
        }
    }

    #[test]
    fn configuration_holds_over_its_corpus() {
        run("configuration");
        run_over(configuration, Path::new("config/examples"));
    }

    #[test]
    fn cookie_holds_over_its_corpus() {
        run("cookie");
    }

    #[test]
    fn headers_hold_over_their_corpus() {
        run("headers");
    }

    #[test]
    fn jwks_holds_over_its_corpus() {
        run("jwks");
    }

    #[test]
    fn jwt_holds_over_its_corpus() {
        run("jwt");
    }

    #[test]
    fn path_holds_over_its_corpus() {
        run("path");
    }

    #[test]
    fn proxy_protocol_holds_over_its_corpus() {
        run("proxy_protocol");
    }

    #[test]
    fn webhook_holds_over_its_corpus() {
        run("webhook");
    }
}
