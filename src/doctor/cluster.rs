//! What a list of the cluster shows: static credentials, and who may start runs past Doorward.

use super::{Check, Doctor, Finding};
use crate::{
    rbac::{self, BypassRight, Strays},
    tekton::standing,
};

pub(super) const UNKNOWN: &str = "without `--cluster`, nothing is known about the cluster";

pub(super) fn credentials(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Some((path, list)) = doctor.cluster else {
        return vec![Finding::skipped(Check::Credentials, "cluster", UNKNOWN)];
    };
    let file = path.display().to_string();
    match standing::standing_credentials(list) {
        Ok(standing) if standing.is_empty() => {
            vec![Finding::good(Check::Credentials, &file, "nothing in it carries a static credential")]
        }
        Ok(standing) => standing
            .iter()
            .map(|standing| Finding::warning(Check::Credentials, &file, standing.to_string(), standing.sort.fix()))
            .collect(),
        Err(error) => vec![no_list(Check::Credentials, &file, &error)],
    }
}

/// Reports every subject that may create runs, directly or by other rights, and is not expected to.
pub(super) fn bypass(doctor: &Doctor<'_>) -> Vec<Finding> {
    let Some((path, list)) = doctor.cluster else {
        return vec![Finding::skipped(Check::Bypass, "cluster", UNKNOWN)];
    };
    let file = path.display().to_string();
    let Strays { rights, lacks, namespaces } = match rbac::strays(list, doctor.raw(), doctor.installed) {
        Ok(strays) => strays,
        Err(error) => return vec![no_list(Check::Bypass, &file, &error)],
    };
    if !lacks.is_empty() {
        let message = format!("it has no {}, so it cannot show who may start runs", lacks.join(" and no "));
        return vec![Finding::skipped(Check::Bypass, &file, message)];
    }
    if namespaces == 0 {
        let message = "neither it nor the configuration names a namespace of Tekton's; add \
                       `pipelines,tasks,pipelineruns` to the list";
        return vec![Finding::skipped(Check::Bypass, &file, message)];
    }
    if rights.is_empty() {
        return vec![Finding::good(Check::Bypass, &file, "nobody unexpected may start runs past Doorward")];
    }
    let finding = |(BypassRight { subject, may, binding, role, note, .. }, namespaces): &(BypassRight, Vec<String>)| {
        let note = note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        let may = may.join(", ");
        // A right may be bound in another namespace than those where it leads to runs.
        let runs = namespaces.join(", ");
        let message = format!("{subject}{note} may {may} by {binding} and {role}, and so start runs in {runs}");
        let fix = "remove the right, or make the cluster refuse runs that are created past Doorward and let \
                   EventListeners ask its interceptor; `doorward audit who-can start-run NAMESPACE` shows more";
        Finding::warning(Check::Bypass, &file, message, fix)
    };
    rights.iter().map(finding).collect()
}

pub(super) fn no_list(check: Check, subject: &str, error: &serde_json::Error) -> Finding {
    let message = format!("it is not a list of Kubernetes objects in JSON: {error}");
    let fix = "write it with `kubectl get KINDS -A -o json`, as `doorward doctor --help` says";
    Finding::fault(check, subject, message, fix)
}
