//! Receivers of the audit trail.

use futures_util::future::join_all;

use super::{Check, Doctor, Finding};
use crate::audit::export::{Settings, Unfit};

pub(super) async fn examine(doctor: &Doctor<'_>) -> Vec<Finding> {
    let exports = doctor.resolved.audit.iter().flat_map(|audit| &audit.exports);
    let look = async |export: &Settings| {
        let of = format!("receiver `{}`", export.name());
        let found = export.probe(doctor.clock.now()).await;
        match found {
            Ok(()) => Finding::good(Check::Receivers, &of, "it accepts what it is sent"),
            Err(Unfit::Unreachable(why)) => {
                let cure = "check its address, `tls` or `ca`, and whether it can be reached from here: in a cluster \
                            the NetworkPolicy `doorward` needs an entry with its port (docs/audit-export.md)";
                Finding::fault(Check::Receivers, &of, why, cure)
            }
            Err(Unfit::Refuses(why)) => {
                let cure = "check what it requires, a certificate (`tls.certificate`) or `headers`, and its own log";
                Finding::fault(Check::Receivers, &of, why, cure)
            }
            Err(Unfit::Busy(why)) => {
                let cure = "lines wait until it accepts them; check it if this lasts";
                Finding::warning(Check::Receivers, &of, why, cure)
            }
        }
    };
    join_all(exports.map(look)).await
}
