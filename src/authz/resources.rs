//! Names that nothing in Kubernetes has. A rule that asks for one never matches, and a deny that never matches is as
//! bad as none.

use crate::config::report::{At, Report};

/// Resources of the API server and of Tekton, in the plural that requests use.
const KNOWN: [&str; 41] = [
    "clusterinterceptors",
    "clusterrolebindings",
    "clusterroles",
    "clustertasks",
    "clustertriggerbindings",
    "configmaps",
    "cronjobs",
    "customresourcedefinitions",
    "customruns",
    "daemonsets",
    "deployments",
    "endpoints",
    "eventlisteners",
    "events",
    "ingresses",
    "interceptors",
    "jobs",
    "limitranges",
    "namespaces",
    "networkpolicies",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pipelineruns",
    "pipelines",
    "pods",
    "replicasets",
    "resolutionrequests",
    "resourcequotas",
    "rolebindings",
    "roles",
    "secrets",
    "serviceaccounts",
    "services",
    "statefulsets",
    "stepactions",
    "taskruns",
    "tasks",
    "triggerbindings",
    "triggers",
    "triggertemplates",
];

/// Common mistakes in the names of sub-resources of pods, and the correct names.
const SUBRESOURCES: [(&str, &str); 6] = [
    ("evict", "eviction"),
    ("evictions", "eviction"),
    ("execs", "exec"),
    ("logs", "log"),
    ("port-forward", "portforward"),
    ("portforwards", "portforward"),
];

/// Reports a name that is in upper case or has blanks, as no `what` has.
pub(super) fn check_spelling(text: &str, what: &str, at: &At, report: &mut Report) {
    let meant = text.trim().to_lowercase();
    if text == meant && !text.contains(char::is_whitespace) {
        return;
    }
    let error =
        report.error(at, format!("`{text}` is not a valid {what}: these are in lower case and have no white space"));
    if !meant.is_empty() && !meant.contains(char::is_whitespace) {
        error.help(format!("did you mean `{meant}`?"));
    }
}

/// Reports an invalid API group.
pub(super) fn check_group(text: &str, at: &At, report: &mut Report) {
    match text.split_once('/') {
        None => check_spelling(text, "API group", at, report),
        Some((group, _)) => {
            let error = report.error(at, format!("`{text}` is not an API group: the version is not part of it"));
            let meant = group.trim().to_lowercase();
            error.help(if meant.is_empty() {
                "leave the version out".to_owned()
            } else {
                format!("did you mean `{meant}`?")
            });
        }
    }
}

/// Warns of a resource that has another name. Anybody may define a resource of any name, so only those that are known
/// to be wrong are reported.
pub(super) fn check_resource(text: &str, at: &At, report: &mut Report) {
    let mark = report.mark();
    let lower = text.to_lowercase();
    if text.contains(char::is_whitespace) {
        check_spelling(text, "resource", at, report);
    } else if lower != text {
        // Metrics are resources of any name, so this is only a warning.
        report
            .warning(at, format!("`{text}` is in upper case, as no resource of Kubernetes or Tekton is"))
            .help(format!("did you mean `{lower}`?"));
    }
    let (resource, sub) = text.split_once('/').unwrap_or((text, ""));
    let plural = KNOWN.into_iter().find(|known| singular(known) == resource);
    let of_pods = plural.unwrap_or(resource) == "pods" || resource == "*";
    let renamed = SUBRESOURCES.iter().find(|(written, _)| of_pods && *written == sub).map(|(_, known)| *known);
    if report.has_errors_since(mark) || plural.or(renamed).is_none() {
        return;
    }
    let (resource, sub) = (plural.unwrap_or(resource), renamed.unwrap_or(sub));
    let meant = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
    report
        .warning(at, format!("the API server knows `{text}` as `{meant}`, so this matches no request"))
        .help(format!("did you mean `{meant}`?"));
}

/// The singular of a known resource.
fn singular(plural: &str) -> String {
    match (plural.strip_suffix("ies"), plural.strip_suffix("sses")) {
        (Some(stem), _) => format!("{stem}y"),
        (None, Some(stem)) => format!("{stem}ss"),
        (None, None) => plural.trim_end_matches('s').to_owned(),
    }
}
