//! Compiles `who` into conditions, and reports its errors.

use crate::{
    authn::{Actor, Kind, break_glass},
    config::{
        raw,
        report::{At, Report},
    },
    issuers::username_template,
    webhooks,
};

use super::{
    super::{
        condition::Reading,
        deliveries,
        issuers::{ClaimPath, IssuerFacts},
        names::Names,
        on,
        reach::issuers_of,
    },
    NamedIssuers, Party, Who, says_nothing, speaks_of_actors, unmet,
};

/// The purpose of a `who`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Purpose {
    Allow,
    Deny,
    /// The callers whose requests need an approval.
    Approve,
    /// The people who may approve.
    Approver,
    Grant,
}

impl Purpose {
    pub(in super::super) fn reading(self) -> Reading {
        if self == Self::Deny { Reading::Wide } else { Reading::Strict }
    }
}

/// Compiles conditions on a principal. Cheap and selective conditions come first.
pub(in super::super) fn compile(
    raw: &raw::Who,
    purpose: Purpose,
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) -> Vec<Who> {
    let behalf = raw.on_behalf_of.is_some();
    let of = if behalf { Party::Actor } else { Party::Principal };
    let mut who = Vec::new();

    check(raw, purpose, at, root, report);
    if raw.anonymous {
        return vec![Who::Anonymous];
    }
    who.push(Who::Authenticated { everybody: says_nothing(raw) });
    let webhooks = raw.webhooks.iter().map(|name| webhooks::issuer(name));
    let issuers: Vec<String> = raw.issuers.iter().cloned().chain(webhooks).collect();
    let named = match (issuers.as_slice(), root.issuers.as_slice(), facts_of_an_issuer(raw)) {
        ([], [only], Some(_)) => NamedIssuers { names: Names::new(std::slice::from_ref(&only.name)), implied: true },
        (issuers, ..) => NamedIssuers { names: Names::new(issuers), implied: false },
    };
    if !named.names.is_empty() {
        who.push(Who::Issuers { named: named.clone(), with_actors: speaks_of_actors(raw) });
    }
    if let Some(kind) = raw.kind {
        who.push(Who::Kind { kind, behalf });
    }
    if !raw.scopes.is_empty() {
        who.push(Who::Scopes(Names::new(&raw.scopes)));
        if is_scope_alone(raw) {
            who.push(Who::NoPerson);
        }
    }
    if !raw.groups.is_empty() {
        who.push(Who::Groups { key: "who.groups", names: Names::new(&raw.groups) });
    }
    if !raw.subjects.is_empty() {
        let issuers = named.clone();
        who.push(Who::Subjects { key: "who.subjects", names: Names::new(&raw.subjects), issuers, of });
    }
    if !raw.clients.is_empty() {
        who.push(Who::Clients { names: Names::new(&raw.clients), issuers: named.clone(), of });
    }
    if let Some(person) = &raw.on_behalf_of {
        who.push(Who::ActedFor);
        if !person.groups.is_empty() {
            who.push(Who::Groups { key: "who.on_behalf_of.groups", names: Names::new(&person.groups) });
        }
        if !person.subjects.is_empty() {
            let (names, issuers) = (Names::new(&person.subjects), named);
            who.push(Who::Subjects { key: "who.on_behalf_of.subjects", names, issuers, of: Party::Person });
        }
    }
    if !raw.users.is_empty() {
        who.push(Who::Users(raw.users.iter().map(|user| user.as_str().into()).collect()));
    }
    for (path, values) in &raw.claims {
        who.push(Who::Claim { path: ClaimPath::new(path), values: values.as_slice().into() });
    }
    if !raw.repositories.is_empty() {
        who.push(Who::Repositories(repositories(raw, at, root, report)));
    }
    if !raw.senders.is_empty() {
        who.push(Who::Senders(senders(raw, at, root, report)));
    }
    if !raw.service_accounts.is_empty() {
        who.push(Who::ServiceAccounts(service_accounts(raw, at, root, report)));
    }
    who
}

/// Returns the first key about facts that an issuer provides, which are only as trustworthy as the issuer.
pub(in super::super) fn facts_of_an_issuer(raw: &raw::Who) -> Option<&'static str> {
    [
        ("groups", !raw.groups.is_empty()),
        ("scopes", !raw.scopes.is_empty()),
        ("claims", !raw.claims.is_empty()),
        ("subjects", !raw.subjects.is_empty()),
        ("clients", !raw.clients.is_empty()),
        ("on_behalf_of", raw.on_behalf_of.is_some()),
    ]
    .into_iter()
    .find_map(|(key, is_set)| is_set.then_some(key))
}

/// Whether there are scopes and no key that says whose they are.
fn is_scope_alone(raw: &raw::Who) -> bool {
    !raw.scopes.is_empty()
        && raw.clients.is_empty()
        && raw.groups.is_empty()
        && raw.subjects.is_empty()
        && raw.users.is_empty()
        && raw.claims.is_empty()
        && raw.repositories.is_empty()
        && raw.senders.is_empty()
        && raw.service_accounts.is_empty()
        && raw.on_behalf_of.as_ref().is_none_or(|person| person.groups.is_empty() && person.subjects.is_empty())
}

fn check(raw: &raw::Who, purpose: Purpose, at: &At, root: &raw::Root, report: &mut Report) {
    check_names(raw, purpose.reading(), at, root, report);
    if raw.anonymous {
        if (raw::Who { anonymous: true, ..raw::Who::default() }) != *raw {
            report
                .error(&at.key("anonymous"), "a caller without a credential can meet no other condition")
                .help("write two rules");
        }
        if matches!(purpose, Purpose::Grant | Purpose::Approver) {
            report.error(
                &at.key("anonymous"),
                "this cannot be for anonymous callers, as nobody could be held to account",
            );
        }
        return;
    }
    if matches!(purpose, Purpose::Grant | Purpose::Approver) && says_nothing(raw) {
        report.error(at, "nobody is named").help("name groups, users, clients or others who are meant");
    }
    if !raw.webhooks.is_empty() {
        if !raw.issuers.is_empty() {
            report
                .error(&at.key("webhooks"), "no principal comes from both an issuer and a webhook")
                .help("write two rules");
        }
        if let Some(key) = facts_of_an_issuer(raw).filter(|key| *key != "subjects") {
            report
                .error(&at.key(key), format!("a webhook gives no {key}"))
                .help("look at `event`, `branch` or `repositories`");
        }
    } else if raw.issuers.is_empty() {
        match (facts_of_an_issuer(raw), root.issuers.len()) {
            (Some(key), 0) => {
                report
                    .error(&at.key(key), "no issuer is defined that could provide it")
                    .help("add an entry to `issuers`");
            }
            (Some(key), 2..) => {
                report
                    .error(&at.key(key), format!("several issuers are defined, and each chooses its own {key}"))
                    .help("name in `issuers` those that are trusted with them");
            }
            _ => {}
        }
    }
    if purpose.reading() == Reading::Strict
        && is_scope_alone(raw)
        && !matches!(raw.kind, Some(Kind::Agent | Kind::Workload))
    {
        report
            .error(&at.key("scopes"), "a scope alone gives a person nothing: any client can ask for it")
            .help("name `clients`, or a group, or say `kind: agent` or `kind: workload`");
    }
    warn_of_kind(raw, purpose, at, root, report);
    warn_of_actors(raw, purpose, at, root, report);
    warn_of_scope(raw, purpose, at, root, report);
    if raw.on_behalf_of.is_some() {
        if !raw.groups.is_empty() {
            report
                .error(&at.key("groups"), "beside `on_behalf_of` it is not clear whose groups these are")
                .help("write the groups of the person in `on_behalf_of`");
        }
        if !raw.users.is_empty() {
            report
                .error(&at.key("users"), "beside `on_behalf_of` it is not clear whose name this is")
                .help("name the person by `on_behalf_of.subjects`");
        }
    }
    if purpose == Purpose::Approver && matches!(raw.kind, Some(Kind::Agent | Kind::Workload)) {
        report.error(&at.key("kind"), "only people can approve");
    }
}

/// Warns of a kind that no caller with a token of Doorward's own can have: if only tasks get such tokens, each has an
/// actor.
fn warn_of_kind(raw: &raw::Who, purpose: Purpose, at: &At, root: &raw::Root, report: &mut Report) {
    let Some(kind @ (Kind::Human | Kind::Workload)) = raw.kind.filter(|_| purpose != Purpose::Deny) else { return };
    let gives_tasks_alone = root.tokens.as_ref().is_some_and(|tokens| {
        !tokens.exchange.is_empty() && tokens.exchange.iter().all(|exchanged| exchanged.kubernetes.is_some())
    });
    if !is_of_own_tokens(raw, root) || raw.on_behalf_of.is_some() || !gives_tasks_alone {
        return;
    }
    let kind = kind.as_str();
    report
        .warning(
            &at.key("kind"),
            format!(
                "each token of this issuer has a task as actor, and meets `kind: {kind}` only beside `on_behalf_of`"
            ),
        )
        .help("write `kind: agent`, or add `on_behalf_of: {}` if the person's kind is meant");
}

/// Whether `who` names Doorward as an issuer, and no other.
fn is_of_own_tokens(raw: &raw::Who, root: &raw::Root) -> bool {
    let is_own = |issuer: &raw::Issuer| issuer.preset == Some(raw::Preset::Doorward);
    issuers_of(raw, root).is_some_and(|issuers| issuers.into_iter().all(is_own))
}

/// Warns of actors without an issuer of theirs: in a token of Doorward's own, each but a task is of another.
fn warn_of_actors(raw: &raw::Who, purpose: Purpose, at: &At, root: &raw::Root, report: &mut Report) {
    if purpose.reading() != Reading::Strict || raw.on_behalf_of.is_none() || !is_of_own_tokens(raw, root) {
        return;
    }
    for (key, names) in [("subjects", &raw.subjects), ("clients", &raw.clients)] {
        if let Some(name) = names.iter().find(|name| !Actor::is_reserved(name)) {
            report
                .warning(&at.key(key), format!("`{name}` is of another issuer than Doorward, so this matches no actor"))
                .help("list the issuer of the actor in `issuers` too");
        }
    }
}

/// Warns of a scope that gives nothing to the callers for whom it is written: for an actor, scopes count only in tokens
/// of Doorward's own.
fn warn_of_scope(raw: &raw::Who, purpose: Purpose, at: &At, root: &raw::Root, report: &mut Report) {
    if purpose.reading() != Reading::Strict || raw.on_behalf_of.is_none() || !is_scope_alone(raw) {
        return;
    }
    let mut meant = root.issuers.iter().filter(|issuer| raw.issuers.is_empty() || raw.issuers.contains(&issuer.name));
    if meant.any(|issuer| issuer.preset != Some(raw::Preset::Doorward)) {
        report
            .warning(
                &at.key("scopes"),
                "a scope alone gives nothing to an actor, except in a token of Doorward's own: any client can ask for \
                 it",
            )
            .help("name `clients`, or the groups or subjects of the person in `on_behalf_of`");
    }
}

fn check_names(raw: &raw::Who, reading: Reading, at: &At, root: &raw::Root, report: &mut Report) {
    let issuers = || root.issuers.iter().map(|issuer| issuer.name.as_str()).chain([break_glass::ISSUER]);
    for (i, name) in raw.issuers.iter().enumerate() {
        let at = at.key("issuers").index(i);
        if !issuers().any(|known| known == name) {
            // Do not suggest `break-glass` for a misspelt issuer while it lets nobody in.
            let known = issuers().filter(|known| *known != break_glass::ISSUER || root.break_glass.is_some());
            report.unknown(&at, "issuer", name, known);
        } else if name == break_glass::ISSUER && root.break_glass.is_none() {
            report
                .warning(&at, "there is no section `break_glass`, so that nobody comes from `break-glass`")
                .help("to keep break-glass disabled, change nothing; to enable it, name certificates in `break_glass`");
        }
    }
    let webhooks = || root.webhooks.iter().map(|webhook| webhook.name.as_str());
    for (i, name) in raw.webhooks.iter().enumerate() {
        if !webhooks().any(|known| known == name) {
            report.unknown(&at.key("webhooks").index(i), "webhook", name, webhooks());
        }
    }
    let person = raw.on_behalf_of.clone().unwrap_or_default();
    for (key, list) in [
        ("groups", &raw.groups),
        ("scopes", &raw.scopes),
        ("subjects", &raw.subjects),
        ("users", &raw.users),
        ("clients", &raw.clients),
        ("on_behalf_of", &person.groups),
        ("on_behalf_of", &person.subjects),
    ] {
        for (i, text) in list.iter().enumerate().filter(|(_, text)| text.trim().is_empty()) {
            report.error(&at.key(key).index(i), format!("`{text}` is blank and matches nobody"));
        }
    }
    unmet::warn(raw, reading, at, root, report);
    warn_of_users(raw, reading, &at.key("users"), root, report);
    for (path, values) in &raw.claims {
        if path.is_empty() || path == "/" {
            report
                .error(&at.key("claims").key(path), "the name of the claim is empty")
                .help("write a name, or a JSON pointer");
        }
        if values.is_empty() {
            report.error(&at.key("claims").key(path), "an empty list matches nothing");
        }
    }
}

/// Warns of a user name that no issuer can give, by the fixed text of their templates.
fn warn_of_users(raw: &raw::Who, reading: Reading, at: &At, root: &raw::Root, report: &mut Report) {
    let is_meant = |name: &str| raw.issuers.is_empty() || raw.issuers.iter().any(|named| named == name);
    // The user names of webhooks and break-glass are made differently.
    let others = raw.issuers.is_empty() && !root.webhooks.is_empty() || !raw.webhooks.is_empty();
    if others || (root.break_glass.is_some() && is_meant(break_glass::ISSUER)) {
        return;
    }
    let meant = root.issuers.iter().filter(|issuer| is_meant(&issuer.name));
    let Some(templates) = meant.map(username_template).collect::<Option<Vec<_>>>() else { return };
    // A template without a placeholder is refused: what is meant is known only once it is mended.
    if templates.iter().any(|template| !template.contains('{')) {
        return;
    }
    for (i, user) in raw.users.iter().enumerate() {
        if templates.is_empty() || templates.iter().any(|template| may_give(template, user, reading)) {
            continue;
        }
        let mut each: Vec<&str> = templates.clone();
        each.sort_unstable();
        each.dedup();
        report
            .warning(
                &at.index(i),
                format!("no issuer gives the user name `{user}`: they have the form `{}`", each.join("`, `")),
            )
            .help("write the whole name, as `doorward explain` and the audit trail show it, or use `subjects`");
    }
}

/// Whether a name contains the fixed text of a template, in order. Placeholders such as `{issuer}` are not checked.
fn may_give(template: &str, user: &str, reading: Reading) -> bool {
    let compared = |text: &str| if reading == Reading::Wide { text.to_lowercase() } else { text.to_owned() };
    let (template, user) = (compared(template), compared(user));
    let mut pieces = template.split('{').enumerate().map(|(i, part)| match i {
        0 => part,
        _ => part.split_once('}').map_or("", |(_, fixed)| fixed),
    });
    let Some(mut rest) = pieces.next().and_then(|prefix| user.strip_prefix(prefix)) else { return false };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, tail)) => rest = tail,
            None => return false,
        }
    }
    true
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the ids of a kind of webhook may be text, such as a UUID.
fn has_text_ids(kind: &str, root: &raw::Root) -> bool {
    root.webhooks.iter().any(|webhook| webhooks::identity(webhook) == kind && webhooks::has_text_ids(webhook))
}

/// Parses `kind:number` of the accounts that cause deliveries.
fn senders(
    raw: &raw::Who,
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) -> Box<[(std::sync::Arc<str>, std::sync::Arc<str>)]> {
    let known: Vec<&str> = root.webhooks.iter().map(webhooks::identity).collect();
    let mut parsed = Vec::new();
    for (i, text) in raw.senders.iter().enumerate() {
        let at = at.key("senders").index(i);
        match text.rsplit_once(':') {
            Some((kind, _)) if !known.contains(&kind) => {
                deliveries::unknown_kind("kind of sender", kind, known.iter().copied(), &at, root, report);
            }
            Some((kind, id)) if is_number(id) || (!id.is_empty() && has_text_ids(kind, root)) => {
                deliveries::warn_of_number(kind, id, webhooks::numbers_people, webhooks::written_id, &at, root, report);
                parsed.push((kind.into(), id.into()));
            }
            _ => {
                report
                    .error(&at, format!("`{text}` is not of the form `github:7`"))
                    .help("a user name can pass to somebody else; use the number from the host's API");
            }
        }
    }
    parsed.into()
}

/// Parses `kind:number`. The number is used because the name of a repository can be reused after a rename.
fn repositories(
    raw: &raw::Who,
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) -> Box<[(std::sync::Arc<str>, std::sync::Arc<str>)]> {
    let at = at.key("repositories");
    let issuers: Vec<IssuerFacts> = root
        .issuers
        .iter()
        .filter(|issuer| raw.issuers.is_empty() || raw.issuers.contains(&issuer.name))
        .map(IssuerFacts::new)
        .collect();
    let of_issuers =
        |kind: &str| issuers.iter().filter(|issuer| issuer.repositories.is_some_and(|(own, _)| own == kind)).count();
    let of_webhooks: Vec<&str> = root.webhooks.iter().map(webhooks::identity).collect();
    let mut parsed = Vec::new();
    for (i, text) in raw.repositories.iter().enumerate() {
        let at = at.index(i);
        match text.rsplit_once(':') {
            Some((kind, _)) if of_issuers(kind) == 0 && !of_webhooks.contains(&kind) => {
                let known = of_webhooks.iter().copied().chain(issuers.iter().filter_map(|i| Some(i.repositories?.0)));
                deliveries::unknown_kind("kind of repository", kind, known, &at, root, report);
            }
            Some((kind, id)) if is_number(id) || (!id.is_empty() && has_text_ids(kind, root)) => {
                if of_issuers(kind) == 0 {
                    deliveries::warn_of_number(
                        kind,
                        id,
                        webhooks::numbers_repositories,
                        webhooks::written_repository_id,
                        &at,
                        root,
                        report,
                    );
                }
                if of_issuers(kind) > 1 && raw.issuers.is_empty() {
                    report
                        .error(
                            &at,
                            format!(
                                "several issuers number `{kind}` repositories, and may use the same number for different \
                                 ones"
                            ),
                        )
                        .help("name one in `issuers`");
                }
                parsed.push((kind.into(), id.into()));
            }
            _ => {
                report
                    .error(&at, format!("`{text}` is not of the form `github:1234`"))
                    .help("the name of a repository can pass to another; use the number from the host's API");
            }
        }
    }
    parsed.into()
}

/// Parses `namespace/name` or `namespace/*` into the subject that the cluster gives, or the prefix of such subjects.
fn service_accounts(raw: &raw::Who, at: &At, root: &raw::Root, report: &mut Report) -> Box<[std::sync::Arc<str>]> {
    let at = at.key("service_accounts");
    let clusters = root
        .issuers
        .iter()
        .filter(|issuer| issuer.preset == Some(raw::Preset::Kubernetes))
        .filter(|issuer| raw.issuers.is_empty() || raw.issuers.contains(&issuer.name))
        .count();
    if clusters == 0 {
        report
            .error(&at, "no issuer gives service accounts")
            .help("an issuer with `preset: kubernetes` does, and `issuers` must name it if it names any");
    } else if clusters > 1 && raw.issuers.is_empty() {
        report
            .error(&at, "several clusters are defined, and each has service accounts of any name")
            .help("name those that are meant in `issuers`");
    }
    on::parse_all(&raw.service_accounts, &at, report, |text| {
        let plain = |part: &str| !part.is_empty() && !part.contains(['*', '/', ':']);
        match text.split_once('/') {
            Some((namespace, "*")) if plain(namespace) => Ok(format!("system:serviceaccount:{namespace}:").into()),
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Ok(format!("system:serviceaccount:{namespace}:{name}").into())
            }
            _ => Err("is not of the form `namespace/name` or `namespace/*`"),
        }
    })
}
