//! Checks of the places that Doorward writes to, without a lock or a change.

use std::fmt::Display;

use crate::{
    admin::socket,
    audit::Trail,
    config::{raw, report::At, resolver::Resolver},
    snapshot::Resolved,
    store::{Embedded, Settings},
};

/// Reports what would be in the way of the files that a start opens: for `doorward check`.
pub fn check_places(root: &raw::Root, resolved: &Resolved, resolver: &mut Resolver) {
    if matches!(resolved.store, Some(Settings::Embedded)) {
        let found = Embedded::recognize(&resolver.path(&root.store.path));
        report(found, &["store", "path"], resolver);
    }
    if let Some(audit) = &resolved.audit {
        report(Trail::examine(audit), &["audit", "sink", "file", "path"], resolver);
    }
    if let Some(path) = &resolved.admin.socket {
        report(socket::is_there(path), &["admin", "socket"], resolver);
    }
}

/// Reports an error at a setting. Its text says what to do.
fn report<T>(found: Result<T, impl Display>, setting: &[&str], resolver: &mut Resolver) {
    if let Err(error) = found {
        let at = setting.iter().fold(At::root(), |at, key| at.key(key));
        resolver.error(&at, error.to_string());
    }
}
