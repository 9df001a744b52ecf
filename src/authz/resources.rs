//! Names that nothing in Kubernetes has. A rule that asks for one never matches, and a deny that never matches is as
//! bad as none.

use crate::config::{
    raw,
    report::{At, Report},
    resolve::is_label,
};

/// Opening one of these counts as `create`, also by a GET.
const OPENED: [&str; 3] = ["exec", "attach", "portforward"];

/// Resources of the API server and of Tekton, in the plural that requests use, and their API groups.
const KNOWN: [(&str, &[&str]); 41] = [
    ("clusterinterceptors", &["triggers.tekton.dev"]),
    ("clusterrolebindings", &["rbac.authorization.k8s.io"]),
    ("clusterroles", &["rbac.authorization.k8s.io"]),
    ("clustertasks", &["tekton.dev"]),
    ("clustertriggerbindings", &["triggers.tekton.dev"]),
    ("configmaps", &[""]),
    ("cronjobs", &["batch"]),
    ("customresourcedefinitions", &["apiextensions.k8s.io"]),
    ("customruns", &["tekton.dev"]),
    ("daemonsets", &["apps"]),
    ("deployments", &["apps"]),
    ("endpoints", &[""]),
    ("eventlisteners", &["triggers.tekton.dev"]),
    ("events", &["", "events.k8s.io"]),
    ("ingresses", &["networking.k8s.io"]),
    ("interceptors", &["triggers.tekton.dev"]),
    ("jobs", &["batch"]),
    ("limitranges", &[""]),
    ("namespaces", &[""]),
    ("networkpolicies", &["networking.k8s.io"]),
    ("nodes", &["", "metrics.k8s.io"]),
    ("persistentvolumeclaims", &[""]),
    ("persistentvolumes", &[""]),
    ("pipelineruns", &["tekton.dev"]),
    ("pipelines", &["tekton.dev"]),
    ("pods", &["", "metrics.k8s.io"]),
    ("replicasets", &["apps"]),
    ("resolutionrequests", &["resolution.tekton.dev"]),
    ("resourcequotas", &[""]),
    ("rolebindings", &["rbac.authorization.k8s.io"]),
    ("roles", &["rbac.authorization.k8s.io"]),
    ("secrets", &[""]),
    ("serviceaccounts", &[""]),
    ("services", &[""]),
    ("statefulsets", &["apps"]),
    ("stepactions", &["tekton.dev"]),
    ("taskruns", &["tekton.dev"]),
    ("tasks", &["tekton.dev"]),
    ("triggerbindings", &["triggers.tekton.dev"]),
    ("triggers", &["triggers.tekton.dev"]),
    ("triggertemplates", &["triggers.tekton.dev"]),
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
fn check_spelling(text: &str, what: &str, at: &At, report: &mut Report) {
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

/// Reports a name that no namespace can have, as it is no DNS label (RFC 1123).
pub(super) fn check_namespace(text: &str, at: &At, report: &mut Report) {
    let mark = report.mark();
    check_spelling(text, "name of a namespace", at, report);
    if report.has_errors_since(mark) || is_label(text) {
        return;
    }
    let error = report.error(
        at,
        format!("`{text}` is not a valid name of a namespace: these are of at most 63 letters, digits and `-` within"),
    );
    let meant = text.replace(['_', '.'], "-");
    if is_label(&meant) {
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

/// Warns of verbs under which no request, or not each, opens the shells and tunnels that a rule names.
pub(super) fn warn_of_tunnels(raw: &raw::OnKubernetes, action: &raw::Action, at: &At, report: &mut Report) {
    if raw.verbs.is_empty() || raw.verbs.iter().any(|verb| ["create", "write", "*"].contains(&verb.as_str())) {
        return;
    }
    let is_opened = |text: &str| text.split_once('/').is_some_and(|(_, sub)| OPENED.contains(&sub));
    for (i, text) in raw.resources.iter().enumerate().filter(|(_, text)| is_opened(text)) {
        let missed = match action {
            raw::Action::Deny if raw.verbs.iter().any(|verb| verb == "get") => "only a GET that opens it meets it",
            _ => "no request that opens it meets it",
        };
        report
            .warning(
                &at.key("resources").index(i),
                format!("with these verbs, {missed}: to open `{text}` is to `create`, whatever the method"),
            )
            .help("add `create` to `verbs`");
    }
}

/// Warns of a resource that has another name, or that is in none of the API groups that are listed beside it. Anybody
/// may define a resource of any name, so only those that are known to be wrong are reported.
pub(super) fn check_resource(text: &str, groups: &[String], at: &At, report: &mut Report) {
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
    let plural = KNOWN.into_iter().map(|(known, _)| known).find(|known| singular(known) == resource);
    let of_pods = plural.unwrap_or(resource) == "pods" || resource == "*";
    let renamed = SUBRESOURCES.iter().find(|(written, _)| of_pods && *written == sub).map(|(_, known)| *known);
    if report.has_errors_since(mark) {
        return;
    }
    if plural.or(renamed).is_none() {
        return warn_of_group(text, resource, groups, at, report);
    }
    let (resource, sub) = (plural.unwrap_or(resource), renamed.unwrap_or(sub));
    let meant = if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") };
    report
        .warning(at, format!("the API server knows `{text}` as `{meant}`, so this matches no request"))
        .help(format!("did you mean `{meant}`?"));
}

/// Warns of a known resource if all API groups that are listed are known too, and it is in none of them. `text` has
/// its sub-resource too.
fn warn_of_group(text: &str, resource: &str, groups: &[String], at: &At, report: &mut Report) {
    let Some((_, own)) = KNOWN.into_iter().find(|(known, _)| *known == resource) else { return };
    let is_known = |group: &String| KNOWN.iter().any(|(_, known)| known.contains(&group.as_str()));
    if groups.is_empty() || !groups.iter().all(is_known) || groups.iter().any(|group| own.contains(&group.as_str())) {
        return;
    }
    let quoted = |group: &&str| if group.is_empty() { "`\"\"`".to_owned() } else { format!("`{group}`") };
    let own = own.iter().map(quoted).collect::<Vec<_>>().join(" or ");
    report
        .warning(
            at,
            format!(
                "`{resource}` is of the API group {own}, which `api_groups` does not list, so this matches no request"
            ),
        )
        .help(format!("add {own} to `api_groups`, or write another rule for `{text}`"));
}

/// The singular of a known resource.
fn singular(plural: &str) -> String {
    match (plural.strip_suffix("ies"), plural.strip_suffix("sses")) {
        (Some(stem), _) => format!("{stem}y"),
        (None, Some(stem)) => format!("{stem}ss"),
        (None, None) => plural.trim_end_matches('s').to_owned(),
    }
}
