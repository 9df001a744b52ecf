//! The values that apply if the configuration does not set them, written out for people who want to read them: each
//! component knows its own.

use crate::{
    assertions, audit,
    config::raw::{self, AuditSink, RouteKind},
    issuers, webhooks,
};

/// Writes into a configuration every default that depends on other settings in it. The result means the same.
pub fn fill_defaults(root: &mut raw::Root) {
    root.issuers.iter_mut().for_each(issuers::fill_defaults);
    root.webhooks.iter_mut().for_each(webhooks::fill_defaults);
    for route in &mut root.routes {
        if route.paths.is_empty() {
            route.paths.push("/*".to_owned());
        }
        if route.kind == RouteKind::Webhook {
            if route.methods.is_empty() {
                route.methods.push("POST".to_owned());
            }
            let sender = root.webhooks.iter().find(|webhook| Some(&webhook.name) == route.webhook.as_ref());
            route.max_body = route.max_body.or_else(|| sender?.max_body);
        }
    }
    root.assertions.issuer.get_or_insert_with(|| assertions::default_issuer(root.external_host.as_deref()));
    if let AuditSink::File(file) = &mut root.audit.sink {
        file.max_size.get_or_insert(audit::DEFAULT_FILE);
    }
}
