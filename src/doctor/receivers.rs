//! Receivers of the audit trail.

use futures_util::future::join_all;

use super::{Check, Doctor, Finding};
use crate::audit::export::{Settings, Unfit};

pub(super) async fn examine(doctor: &Doctor<'_>) -> Vec<Finding> {
    let exports = doctor.resolved.audit.iter().flat_map(|audit| &audit.exports);
    let look = async |export: &Settings| {
        let subject = format!("receiver `{}`", export.name());
        let found = export.probe(doctor.clock.now()).await;
        match found {
            Ok(()) => Finding::good(Check::Receivers, &subject, "it accepts what it is sent"),
            Err(Unfit::Unreachable(why)) => {
                let fix = "check its address, `tls` or `ca`, and whether it can be reached from here: in a cluster \
                           the NetworkPolicy `doorward` needs an entry with its port (docs/audit-export.md)";
                Finding::fault(Check::Receivers, &subject, why, fix)
            }
            Err(Unfit::Refuses(why)) => {
                let fix = "check what it requires, a certificate (`tls.certificate`) or `headers`, and its own log";
                Finding::fault(Check::Receivers, &subject, why, fix)
            }
            Err(Unfit::Busy(why)) => {
                let fix = "lines wait until it accepts them; check it if this lasts";
                Finding::warning(Check::Receivers, &subject, why, fix)
            }
        }
    };
    join_all(exports.map(look)).await
}
