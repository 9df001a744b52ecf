//! Patterns of references that leave to the caller where a resolver of Tekton fetches code from.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use crate::config::report::{At, Report};

/// The resolvers that come with Tekton, and the parameters by which each knows where to fetch from (`pkg/resolution/resolver` in
/// tektoncd/pipeline). `bundle` is how references of v1beta1 are written. The resolver of the hub writes `version` into a path as it is, so
/// that one with `../` in it leads to another catalog.
const SOURCES: [(&str, &[&str]); 6] = [
    ("bundle", &["bundle"]),
    ("bundles", &["bundle"]),
    ("cluster", &["namespace"]),
    ("git", &["configKey", "org", "repo", "scmType", "serverURL", "url"]),
    ("http", &["url"]),
    ("hub", &["catalog", "type", "url", "version"]),
];

/// Reports the patterns of an allow that name more than a resolver, and not all of where it fetches from.
pub(super) fn check(patterns: &[String], at: &At, report: &mut Report) {
    for (index, text) in patterns.iter().enumerate() {
        let Some((resolver, open)) = open(text).filter(|(_, open)| !open.is_empty()) else { continue };
        let open = open.join("`, `");
        report
            .error(
                &at.index(index),
                format!("`{text}` leaves to the caller where the resolver `{resolver}` fetches from: `{open}`"),
            )
            .help(format!(
                "write the whole reference, without the `*`; parameters are sorted by name, so that a `*` may stand only where none of \
                 these can follow, and not within the value of one, but after the `:` or `@` of a bundle; `{resolver}?*` is all that the \
                 resolver fetches"
            ));
    }
}

/// The resolver that a prefix names, and what of its source the prefix leaves open: parameters that can still follow, as a reference has
/// them sorted, and one of which the value may go on.
fn open(pattern: &str) -> Option<(&'static str, Vec<&'static str>)> {
    let (resolver, params) = pattern.strip_suffix('*')?.split_once('?')?;
    let (resolver, sources) = SOURCES.into_iter().find(|(name, _)| *name == resolver)?;
    if params.is_empty() {
        return Some((resolver, Vec::new()));
    }
    let (whole, begun) = params.rsplit_once('&').unwrap_or(("", params));
    let whole: BTreeSet<_> = form_urlencoded::parse(whole.as_bytes()).map(|(name, _)| name).collect();
    let is_of_one_repository = begun.strip_prefix("bundle=").is_some_and(names_repository);
    let begun = begun.split('=').next().unwrap_or(begun);
    let may_follow = |name: &str| {
        let is_settled = name == "bundle" && begun == name && is_of_one_repository;
        !is_settled && name >= begun && whole.last().is_none_or(|last| name > &**last)
    };
    Some((resolver, sources.iter().copied().filter(|name| may_follow(name)).collect()))
}

/// Whether the beginning of the name of an image has all of its repository: what goes on is a tag or a digest.
fn names_repository(begun: &str) -> bool {
    let decoded = percent_decode_str(begun).decode_utf8_lossy();
    // Before the first slash stands the registry, with its port.
    let Some((registry, repository)) = decoded.split_once('/') else { return false };
    let last = repository.rsplit('/').next().unwrap_or(repository);
    !registry.is_empty() && last.find([':', '@']).is_some_and(|at| at > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_leaves_open_where_code_comes_from_is_refused() {
        for (pattern, expected) in [
            ("hub?kind=task&name=git-clone&*", &["type", "url", "version"][..]),
            ("hub?kind=task&name=git-clone*", &["type", "url", "version"]),
            ("hub?catalog=a&kind=task&name=git-clone&type=artifact&*", &["url", "version"]),
            ("hub?c*", &["catalog", "type", "url", "version"]),
            ("hub?catalog=*", &["catalog", "type", "url", "version"]),
            // `version=../../other/evil/1.0.0`.
            ("hub?kind=task&name=git-clone&version=*", &["version"]),
            ("hub?kind=task&name=git-clone&version=0.9*", &["version"]),
            ("git?pathInRepo=release.yaml&revision=*", &["scmType", "serverURL", "url"]),
            ("git?pathInRepo=release.yaml&revision=main&url=https%3A%2F%2Fgit.example*", &["url"]),
            ("git?pathInRepo=release.yaml&revision=main&url=*", &["url"]),
            ("git?org=acme&*", &["repo", "scmType", "serverURL", "url"]),
            ("git?org=acme&pathInRepo=a&repo=b&revision=main&*", &["scmType", "serverURL", "url"]),
            ("git?pathInRepo=a&*", &["repo", "scmType", "serverURL", "url"]),
            ("cluster?kind=task&name=build&*", &["namespace"]),
            ("cluster?kind=task&name=build&namespace=ci*", &["namespace"]),
            ("cluster?kind=task&*", &["namespace"]),
            ("bundles?bundle=registry.example%2Fci*", &["bundle"]),
            ("bundle?b*", &["bundle"]),
            ("bundles?bundle=registry.example%2Fci%2Fbuild*", &["bundle"]),
            ("bundles?bundle=registry.example%2Fci%2F*", &["bundle"]),
            ("bundles?bundle=registry.example%3A5000*", &["bundle"]),
            ("bundles?bundle=registry.example%3A5000%2Fci*", &["bundle"]),
            ("bundles?bundle=registry.example%2Fci%3A1%2Fbuild*", &["bundle"]),
            ("bundles?bundle=registry.example%2F%3A*", &["bundle"]),
            ("bundles?bundle=registry.example%2Fci%2Fbuild%3*", &["bundle"]),
            ("http?url=https%3A%2F%2Fgit.example%2Fa%3A*", &["url"]),
            // Any tag or digest of one repository.
            ("bundles?bundle=registry.example%2Fci%2Fbuild%3A*", &[]),
            ("bundles?bundle=registry.example%3A5000%2Fci%3Av1*", &[]),
            ("bundle?bundle=registry.example%2Fci%2Fbuild%40sha256%3A*", &[]),
            ("http?*", &[]),
            ("http?http-username=a&*", &["url"]),
            ("http?url=https%3A%2F%2Fgit.example%2F*", &["url"]),
            // All of a resolver, or more, is what it says.
            ("hub?*", &[]),
            ("git?*", &[]),
            // What sorts before the end cannot follow.
            ("hub?kind=task&name=git-clone&version=0.9&*", &[]),
            ("git?pathInRepo=a&revision=main&url=https%3A%2F%2Fgit.example%2Fa&*", &[]),
            ("cluster?kind=task&namespace=ci&*", &[]),
            ("cluster?kind=task&name=build&namespace=ci&*", &[]),
            ("bundles?bundle=registry.example%2Fci%3A1&kind=task&name=*", &[]),
            ("bundle?bundle=registry.example%2Fci%3A1&*", &[]),
        ] {
            assert_eq!(open(pattern).unwrap().1, expected, "{pattern}");
        }
        for other in
            ["*", "git*", "release-*", "mine?a=b&*", "git?pathInRepo=a&revision=main", "tekton.dev/StepAction/*"]
        {
            assert_eq!(open(other), None, "{other}");
        }
    }
}
