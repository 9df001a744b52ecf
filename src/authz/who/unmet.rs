//! Warns of conditions on callers that none can meet: an allow with one matches nobody, and a deny lets pass whom it
//! names.

use crate::{
    config::{
        raw::{self, Preset},
        report::{At, Report},
    },
    webhooks,
};

use super::super::{condition::Reading, issuers::IssuerFacts};

pub(super) fn warn(raw: &raw::Who, reading: Reading, at: &At, root: &raw::Root, report: &mut Report) {
    warn_of_wildcards(raw, at, report);
    // A deny takes a number for the same if the token has it as a text.
    if reading == Reading::Strict {
        warn_of_types(raw, &at.key("claims"), root, report);
    }
    warn_of_hosts(raw, at, root, report);
}

fn warn_of_wildcards(raw: &raw::Who, at: &At, report: &mut Report) {
    let behalf = at.key("on_behalf_of");
    let mut lists = vec![
        (at.key("groups"), texts(&raw.groups)),
        (at.key("scopes"), texts(&raw.scopes)),
        (at.key("subjects"), texts(&raw.subjects)),
        (at.key("users"), texts(&raw.users)),
        (at.key("clients"), texts(&raw.clients)),
    ];
    for (path, values) in &raw.claims {
        let texts = values.iter().map(|value| value.as_str().unwrap_or_default()).collect();
        lists.push((at.key("claims").key(path), texts));
    }
    if let Some(person) = &raw.on_behalf_of {
        lists.push((behalf.key("groups"), texts(&person.groups)));
        lists.push((behalf.key("subjects"), texts(&person.subjects)));
    }
    for (at, list) in lists {
        for (i, text) in list.into_iter().enumerate().filter(|(_, text)| text.contains('*')) {
            report
                .warning(&at.index(i), format!("`{text}` is compared exactly: `*` is no wildcard here"))
                .help("write out each one, or use `when`");
        }
    }
}

fn texts(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// Warns of numbers and flags among the claims of CI jobs, whose issuers write everything but times as text.
fn warn_of_types(raw: &raw::Who, at: &At, root: &raw::Root, report: &mut Report) {
    let is_meant = |issuer: &&raw::Issuer| raw.issuers.is_empty() || raw.issuers.contains(&issuer.name);
    let issuers: Vec<&raw::Issuer> = root.issuers.iter().filter(is_meant).collect();
    let writes_text = |issuer: &raw::Issuer| matches!(issuer.preset, Some(Preset::GithubActions | Preset::GitlabCi));
    if issuers.is_empty() || !issuers.into_iter().all(writes_text) {
        return;
    }
    for (path, values) in &raw.claims {
        let name = path.strip_prefix('/').unwrap_or(path);
        if name.contains('/') || ["exp", "iat", "nbf"].contains(&name) {
            continue;
        }
        for (i, value) in values.iter().enumerate().filter(|(_, value)| value.is_number() || value.is_boolean()) {
            report
                .warning(
                    &at.key(path).index(i),
                    format!("tokens of CI jobs have a text in `{name}`, which never equals {value} to an allow"),
                )
                .help(format!("write `\"{value}\"`"));
        }
    }
}

/// Warns of ids of a host from which none of the named callers come.
fn warn_of_hosts(raw: &raw::Who, at: &At, root: &raw::Root, report: &mut Report) {
    let key = match (raw.webhooks.as_slice(), raw.issuers.as_slice()) {
        ([_, ..], []) => "webhooks",
        ([], [_, ..]) => "issuers",
        _ => return,
    };
    let senders: Vec<&raw::Webhook> =
        root.webhooks.iter().filter(|webhook| raw.webhooks.contains(&webhook.name)).collect();
    let jobs: Vec<&str> = root
        .issuers
        .iter()
        .filter(|issuer| key == "webhooks" || raw.issuers.contains(&issuer.name))
        .filter_map(|issuer| Some(IssuerFacts::new(issuer).repositories?.0))
        .collect();
    for (of, ids, counts_jobs) in [("repositories", &raw.repositories, true), ("senders", &raw.senders, false)] {
        for (i, id) in ids.iter().enumerate() {
            let Some((kind, _)) = id.rsplit_once(':') else { continue };
            let is_of_job = counts_jobs && jobs.contains(&kind);
            // Others are unknown, which is an error.
            let is_known = is_of_job || root.webhooks.iter().any(|webhook| webhooks::identity(webhook) == kind);
            let is_named = senders.iter().any(|webhook| webhooks::identity(webhook) == kind);
            if !is_known || is_named || (key == "issuers" && is_of_job) {
                continue;
            }
            report
                .warning(
                    &at.key(of).index(i),
                    format!("none of the `{key}` beside it is of `{kind}`, so that `{id}` matches nobody"),
                )
                .help(format!("write a rule of its own for it, without `{key}`"));
        }
    }
}
