//! References to code that a Tekton resolver fetches: patterns that leave the source to the caller, and what a
//! reference may become.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use url::form_urlencoded;

use super::names::Prefix;
use crate::config::{
    raw,
    report::{At, Report},
};

/// The resolvers that come with Tekton, and the parameters that determine where each fetches from
/// (`pkg/resolution/resolver` in tektoncd/pipeline). The resolver of the hub writes `version` into a path unescaped, so
/// one with `../` in it leads to another catalog.
const SOURCES: [(&str, &[&str]); 5] = [
    ("bundles", &["bundle"]),
    ("cluster", &["namespace"]),
    ("git", &["configKey", "org", "repo", "scmType", "serverURL", "url"]),
    ("http", &["url"]),
    ("hub", &["catalog", "type", "url", "version"]),
];

/// Reports patterns of an allow that name more than a resolver but leave open where it fetches from. Warns of patterns
/// for references by the field `bundle`, because such references are refused, and of a resolver in another case.
pub(super) fn check(patterns: &[String], action: &raw::Action, at: &At, report: &mut Report) {
    let is_deny = matches!(action, raw::Action::Deny);
    for (index, text) in patterns.iter().enumerate() {
        let at = at.index(index);
        if text.starts_with("bundle?") {
            report
                .warning(&at, format!("`{text}` matches nothing, unless a resolver of your own is called `bundle`"))
                .help("the resolver of Tekton is called `bundles`: write `bundles?bundle=…`");
        }
        let named = text.split_once('?').map_or("", |(resolver, _)| resolver);
        let is_meant = |known: &str| known != named && known.eq_ignore_ascii_case(named);
        if let Some((known, _)) = SOURCES.into_iter().find(|(known, _)| is_meant(known)) {
            report
                .warning(&at, format!("`{text}` matches nothing, unless a resolver of your own is called `{named}`"))
                .help(format!("the resolver of Tekton is called `{known}`"));
        }
        let Some((resolver, open)) = open(text).filter(|(_, open)| !is_deny && !open.is_empty()) else { continue };
        let open = open.join("`, `");
        report
            .error(
                &at,
                format!("`{text}` lets the caller choose where the resolver `{resolver}` fetches from: `{open}`"),
            )
            .help(format!(
                "write the whole reference, without the `*`; parameters are sorted by name, so a `*` may come only \
                 where none of these can follow, and not within the value of one, except after the `:` or `@` of a \
                 bundle; `{resolver}?*` is everything that the resolver fetches"
            ));
    }
}

/// Returns the resolver that a prefix names, and those parameters of its source that the prefix leaves open: those that
/// can still follow, as a reference has its parameters sorted, and one whose value may continue.
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

/// Whether the beginning of an image name contains its whole repository, so that only a tag or a digest can follow.
fn names_repository(begun: &str) -> bool {
    let decoded = percent_decode_str(begun).decode_utf8_lossy();
    // The registry, with its port, is before the first slash.
    let Some((registry, repository)) = decoded.split_once('/') else { return false };
    let last = repository.rsplit('/').next().unwrap_or(repository);
    !registry.is_empty() && last.find([':', '@']).is_some_and(|at| at > 0)
}

/// `$(` in the parameters of a resolver, which are encoded as in a query.
const PARAMETER: &str = "%24%28";

/// Whether a reference may be to code that matches, under another name or after Tekton has filled in parameters.
pub(super) fn may_be(reference: &str, patterns: &[Prefix]) -> bool {
    let matches = |name: String| match name.split_once("$(") {
        Some((beginning, _)) => patterns.iter().any(|own| !own.is_of_resolver() && own.may_match(beginning)),
        None => patterns.iter().any(|own| own.matches(&name)),
    };
    may_become(reference, patterns) || names_in_cluster(reference).is_some_and(|names| names.into_iter().any(matches))
}

/// Other names of the code that runs: for code that the resolver `cluster` fetches, the names by which it is run
/// elsewhere; for a ClusterTask, the name of the task, because an existing run can refer to a task of its namespace in
/// that way.
fn names_in_cluster(reference: &str) -> Option<Vec<String>> {
    const STEP_ACTION: &str = "stepaction";
    if let Some(name) = reference.strip_prefix("tekton.dev/ClusterTask/") {
        return Some(vec![name.to_owned()]);
    }
    let params = reference.strip_prefix("cluster?")?;
    let param = |wanted: &str| {
        let named = form_urlencoded::parse(params.as_bytes()).find(|(name, _)| name == wanted);
        named.map(|(_, value)| value.into_owned())
    };
    let (name, kind) = (param("name")?, param("kind").unwrap_or_default());
    let mut names = Vec::new();
    if kind == STEP_ACTION || kind.contains("$(") {
        names.push(format!("tekton.dev/StepAction/{name}"));
    }
    if kind != STEP_ACTION {
        names.push(name);
    }
    Some(names)
}

/// Whether a reference may become one that matches when Tekton fills in parameters (`$(params.x)`). A name may become
/// any name; in a reference to a resolver, everything before the first such parameter stays.
fn may_become(reference: &str, patterns: &[Prefix]) -> bool {
    let begins = |(beginning, _): (&str, &str)| patterns.iter().any(|pattern| pattern.may_match(beginning));
    reference.contains("$(") || reference.split_once(PARAMETER).is_some_and(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Such a pattern looked as if it did something, in a deny too.
    #[test]
    fn a_pattern_that_no_resolver_of_tekton_matches_is_warned_about() {
        for (pattern, expected) in [
            ("bundle?bundle=registry.example%2Fci%3A*", 1),
            ("bundle?*", 1),
            ("bundles?*", 0),
            ("bundle", 0),
            ("bundle-all*", 0),
            ("Git?*", 1),
            ("Git", 0),
        ] {
            for action in [raw::Action::Allow, raw::Action::Deny] {
                let mut report = Report::default();
                check(&["git?*".to_owned(), pattern.to_owned()], &action, &At::root(), &mut report);
                let told = report.problems().iter().filter(|problem| problem.at.as_str() == "/1").count();
                assert_eq!((told, report.has_errors()), (expected, false), "{pattern} {action:?}");
            }
        }
    }

    #[test]
    fn a_parameter_of_a_resolver_that_is_filled_in_later_may_become_any() {
        for (reference, pattern, expected) in [
            ("bundles?bundle=%24%28params.b%29&kind=task", "bundles?bundle=old.registry%2F*", true),
            ("bundles?bundle=old.%24%28params.b%29&kind=task", "bundles?bundle=old.registry%2F*", true),
            ("bundles?bundle=new.%24%28params.b%29&kind=task", "bundles?bundle=old.registry%2F*", false),
            ("git?revision=%24%28params.r%29&url=u", "git?revision=main&url=u", true),
            ("git?revision=%24%28params.r%29&url=u", "git?*", true),
            ("git?revision=%24%28params.r%29&url=u", "bundles?*", false),
            ("git?revision=%24%28params.r%29&url=u", "release", false),
            ("git?revision=main&url=u", "git?revision=main&url=u", false),
            // The literal text `%24%28` is encoded once more.
            ("git?revision=%2524%2528&url=u", "git?revision=main&url=u", false),
            ("$(params.p)", "release", true),
        ] {
            let patterns = [Prefix::parse(pattern).unwrap()];
            assert_eq!(may_become(reference, &patterns), expected, "{reference} {pattern}");
        }
    }

    #[test]
    fn what_the_cluster_resolver_fetches_by_name_has_that_name_to_a_deny() {
        const STEP: &str = "tekton.dev/StepAction/release";
        for (reference, pattern, expected) in [
            ("cluster?kind=pipeline&name=release&namespace=ci", "release", true),
            ("cluster?name=release&namespace=ci", "rel*", true),
            ("cluster?kind=pipeline&name=release2&namespace=ci", "release", false),
            ("cluster?kind=pipeline&name=rel%24%28params.x%29&namespace=ci", "release", true),
            ("cluster?kind=pipeline&name=rel%24%28params.x%29&namespace=ci", "test", false),
            ("cluster?kind=pipeline&name=%24%28params.x%29&namespace=ci", "bundles?*", false),
            ("cluster?kind=%24%28params.k%29&name=release", "release", true),
            ("cluster?kind=%24%28params.k%29&name=release", STEP, true),
            ("cluster?kind=stepaction&name=release&namespace=ci", STEP, true),
            ("cluster?kind=stepaction&name=release&namespace=ci", "release", false),
            ("cluster?kind=task&name=release&namespace=ci", STEP, false),
            ("cluster?kind=task&namespace=ci", "release", false),
            ("hub?kind=task&name=release", "release", false),
        ] {
            let patterns = [Prefix::parse(pattern).unwrap()];
            assert_eq!(may_be(reference, &patterns), expected, "{reference} {pattern}");
        }
    }

    /// A run that was created past Doorward may refer to a task of its namespace in this way.
    #[test]
    fn what_says_that_it_is_a_cluster_task_has_the_name_of_the_task_to_a_deny() {
        for (reference, pattern, expected) in [
            ("tekton.dev/ClusterTask/release", "release", true),
            ("tekton.dev/ClusterTask/release", "rel*", true),
            ("tekton.dev/ClusterTask/release", "other", false),
            ("tekton.dev/StepAction/release", "release", false),
        ] {
            let patterns = [Prefix::parse(pattern).unwrap()];
            assert_eq!(may_be(reference, &patterns), expected, "{reference} {pattern}");
        }
    }

    #[test]
    fn a_prefix_that_does_not_fix_the_origin_of_code_is_refused() {
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
            ("bundles?b*", &["bundle"]),
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
            ("bundles?bundle=registry.example%2Fci%2Fbuild%40sha256%3A*", &[]),
            ("http?*", &[]),
            ("http?http-username=a&*", &["url"]),
            ("http?url=https%3A%2F%2Fgit.example%2F*", &["url"]),
            // Everything of a resolver, or more, is what the pattern says.
            ("hub?*", &[]),
            ("git?*", &[]),
            // Parameters that sort before the end cannot follow.
            ("hub?kind=task&name=git-clone&version=0.9&*", &[]),
            ("git?pathInRepo=a&revision=main&url=https%3A%2F%2Fgit.example%2Fa&*", &[]),
            ("cluster?kind=task&namespace=ci&*", &[]),
            ("cluster?kind=task&name=build&namespace=ci&*", &[]),
            ("bundles?bundle=registry.example%2Fci%3A1&kind=task&name=*", &[]),
            ("bundles?bundle=registry.example%2Fci%3A1&*", &[]),
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
