//! Warnings about rules and grants that reach nobody, or other callers than their authors have in mind.

use crate::{
    authn::break_glass,
    config::{
        raw::{self, Mode, Preset, RouteKind, Scheme},
        report::{At, Report, nearest},
    },
    issuers::Kinds,
};

use super::{on, who::says_nothing};

/// What makes an address trustworthy, as help.
pub(super) const VERIFIED_EMAIL: &str = "check `principal.email` in `when`, which is absent unless the issuer says \
                                         that it is verified, or add `email_verified: [true]` to `required_claims` of \
                                         the issuer";

/// Warns of a rule that no request on a route can match. `meant` has the routes whose requests can meet its `on`, and
/// `reached` those of them that accept a caller who can meet its `who`.
pub(super) fn warn_of_routes(
    rule: &raw::Rule,
    meant: &[&raw::Route],
    reached: &[&raw::Route],
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) {
    let who = &rule.who;
    let has_route = |name: &String| root.routes.iter().any(|route| route.webhook.as_ref() == Some(name));
    // A definition that nothing uses yet deserves no warning.
    let is_idle = root.routes.is_empty()
        || (root.issuers.is_empty() && who.webhooks.is_empty() && !who.anonymous)
        || who.issuers.iter().any(|name| name == break_glass::ISSUER)
        || !(who.webhooks.is_empty() || who.webhooks.iter().any(has_route));
    if is_idle || !reached.is_empty() {
        return;
    }
    if meant.is_empty() {
        report
            .warning(&at.key("on"), "no route has requests that can meet all of this, so that the rule matches nothing")
            .help("ask for what requests of a route have, or add the route");
    } else if !says_nothing(who) {
        let at = at.key("who");
        let key = [
            ("anonymous", who.anonymous),
            ("webhooks", !who.webhooks.is_empty()),
            ("issuers", !who.issuers.is_empty()),
        ];
        let key = key.into_iter().find_map(|(key, is_set)| is_set.then_some(key));
        let names: Vec<&str> = meant.iter().map(|route| route.name.as_str()).collect();
        report
            .warning(
                &key.map_or_else(|| at.clone(), |key| at.key(key)),
                format!(
                    "no such caller is accepted on the routes that the rule is about (`{}`), so that it matches nobody",
                    names.join("`, `")
                ),
            )
            .help("name callers that `schemes` and `issuers` of a route accept, or extend these");
    }
}

/// Warns of an allow that leaves out whom it is for, or what of the API server behind a dashboard. `routes` has those on
/// which somebody can meet it.
pub(super) fn warn_of_breadth(
    rule: &raw::Rule,
    routes: &[&raw::Route],
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) {
    let asked = &rule.on;
    if asked.token.is_some() || asked.pages.is_some() || rule.when.is_some() {
        return;
    }
    let accepts = |route: &raw::Route, issuer: &raw::Issuer| {
        route.takes_issuer(&issuer.name)
            && ((route.schemes.contains(&Scheme::Bearer) && route.fits_tokens_of(issuer))
                || (route.schemes.contains(&Scheme::Session) && issuer.login.is_some()))
    };
    let issuers = root.issuers.iter().filter(|issuer| routes.iter().any(|route| accepts(route, issuer)));
    let issuers: Vec<&str> = issuers.map(|issuer| issuer.name.as_str()).collect();
    if says_nothing(&rule.who) && rule.need.is_empty() && issuers.len() > 1 {
        report
            .warning(
                at,
                format!("this is for whoever has a credential of any of these issuers: `{}`", issuers.join("`, `")),
            )
            .help("say in `who` whom it is for: list `issuers`, and what they say about these people or jobs");
    }
    let is_whole = asked.routes.is_empty()
        && asked.hosts.is_empty()
        && asked.paths.is_empty()
        && asked.kubernetes.is_none()
        && asked.run.is_none()
        && asked.namespace.is_none();
    let board = routes.iter().find(|route| route.kind == RouteKind::Dashboard && route.reaches_kubernetes());
    if let (true, Some(board), Some(allowed)) = (is_whole, board, on::opened(&asked.methods)) {
        report
            .warning(at, format!("on the route `{}` this also allows {allowed}, in all namespaces", board.name))
            .help("name the `routes` that are meant, or say under `kubernetes` what may be read");
    }
}

/// Warns of a kind that no caller of the issuers is given.
pub(super) fn warn_of_kind(who: &raw::Who, is_deny: bool, at: &At, root: &raw::Root, report: &mut Report) {
    let Some(kind) = who.kind else { return };
    let Some(issuers) = issuers_of(who, root) else { return };
    // With an actor, these may be its clients.
    let clients: &[String] = if is_deny || who.on_behalf_of.is_some() { &[] } else { &who.clients };
    if issuers.into_iter().any(|issuer| Kinds::of(issuer).may_be(kind, clients)) {
        return;
    }
    report
        .warning(
            &at.key("kind"),
            format!(
                "no such caller is of the kind `{}`, by `kind` of the issuer, its `clients` and `login`",
                kind.as_str()
            ),
        )
        .help("ask for the kind that they have there, or set it there");
}

/// Warns of a misspelt client of issuers whose tokens are refused unless their client is listed.
pub(super) fn warn_of_clients(who: &raw::Who, at: &At, root: &raw::Root, report: &mut Report) {
    let Some(issuers) = issuers_of(who, root).filter(|all| all.iter().all(|issuer| issuer.listed_clients_only)) else {
        return;
    };
    let of_logins = issuers.iter().filter_map(|issuer| issuer.login.as_ref()).map(|login| &login.client.id);
    let listed = issuers.iter().flat_map(|issuer| &issuer.clients).map(|client| &client.id);
    let known: Vec<&str> = listed.chain(of_logins).map(String::as_str).collect();
    for (i, client) in who.clients.iter().enumerate().filter(|(_, client)| !known.contains(&client.as_str())) {
        // Another name may be that of an actor.
        let Some(near) = nearest(client, known.iter().copied()) else { continue };
        report
            .warning(
                &at.key("clients").index(i),
                format!("`clients` of the issuer does not list `{client}`, so that its tokens are refused"),
            )
            .help(format!("did you mean `{near}`?"));
    }
}

/// Warns of a need that no caller can meet, as none of them logs in.
pub(super) fn warn_of_need(rule: &raw::Rule, at: &At, root: &raw::Root, report: &mut Report) {
    let logs_nobody_in = |issuer: &raw::Issuer| {
        matches!(issuer.preset, Some(Preset::GithubActions | Preset::GitlabCi | Preset::Kubernetes))
    };
    let nobody = issuers_of(&rule.who, root).is_some_and(|issuers| issuers.into_iter().all(logs_nobody_in));
    if nobody && !rule.need.is_empty() {
        report
            .warning(&at.key("need"), "jobs and pods do not log in, so that no caller of these issuers ever meets it")
            .help("leave it out, or name the issuers of people in `who`");
    }
}

/// Warns of a need that nobody is ever asked for, as another allow lets the same callers do the same without one. Whoever
/// expects the first rule that matches to decide writes that. Of routes of the kind `http` alone: on others an allow that
/// names less does not always allow more.
pub(super) fn warn_of_idle_need(rule: &raw::Rule, at: &At, root: &raw::Root, report: &mut Report) {
    let is_plain = |name: &String| root.routes.iter().any(|route| route.name == *name && route.kind == RouteKind::Http);
    let is_enforced = rule.mode == Mode::Enforce && !rule.need.is_empty();
    if !is_enforced || rule.on.routes.is_empty() || !rule.on.routes.iter().all(is_plain) {
        return;
    }
    if let Some(wider) = root.rules.iter().find(|other| needs_nothing_for_all_of(other, rule)) {
        let id = &wider.id;
        report
            .warning(&at.key("need"), format!("nobody is asked for it: `{id}` allows the same, and one allow suffices"))
            .help(format!("let `{id}` name other paths or callers"));
    }
}

/// Whether a rule certainly allows all that `rule` allows, and without a need.
fn needs_nothing_for_all_of(wider: &raw::Rule, rule: &raw::Rule) -> bool {
    let is_among = |some: &[String], all: &[String]| some.iter().all(|name| all.contains(name));
    let is_within = |some: &[String], all: &[String]| all.is_empty() || (!some.is_empty() && is_among(some, all));
    // Callers that are not named are not always all callers.
    let is_listed = |some: &[String], all: &[String]| some.is_empty() == all.is_empty() && is_among(some, all);
    let ((on, all), (who, everybody)) = ((&rule.on, &wider.on), (&rule.who, &wider.who));
    let same_on = raw::On {
        routes: on.routes.clone(),
        hosts: on.hosts.clone(),
        paths: on.paths.clone(),
        methods: on.methods.clone(),
        ..all.clone()
    };
    let same_who = raw::Who {
        groups: who.groups.clone(),
        subjects: who.subjects.clone(),
        users: who.users.clone(),
        ..everybody.clone()
    };
    wider.action == raw::Action::Allow
        && wider.mode == Mode::Enforce
        && wider.need.is_empty()
        && (wider.when.is_none() || wider.when == rule.when)
        && is_within(&on.routes, &all.routes)
        && is_within(&on.hosts, &all.hosts)
        && is_within(&on.paths, &all.paths)
        && is_within(&on.methods, &all.methods)
        && is_listed(&who.groups, &everybody.groups)
        && is_listed(&who.subjects, &everybody.subjects)
        && is_listed(&who.users, &everybody.users)
        && same_on == *on
        && same_who == *who
}

/// The issuers that are named; `None` if there are none, or if one of them has no entry.
pub(super) fn issuers_of<'r>(who: &raw::Who, root: &'r raw::Root) -> Option<Vec<&'r raw::Issuer>> {
    let entry = |name: &String| root.issuers.iter().find(|issuer| issuer.name == *name);
    let entries: Vec<_> = who.issuers.iter().map(entry).collect::<Option<_>>()?;
    (!entries.is_empty()).then_some(entries)
}

/// Warns of an address in `claims` that the callers may have chosen for themselves, in an allow or a grant.
pub(super) fn warn_of_email(who: &raw::Who, at: &At, root: &raw::Root, report: &mut Report) {
    let named = who.claims.keys().find(|path| is_claim(path, "email"));
    if let Some(path) = named.filter(|_| may_have_unverified_email(who, root)) {
        report
            .warning(
                &at.key("claims").key(path),
                "this claim is compared whether or not the address is verified: where people choose it themselves, \
                 anybody can have it",
            )
            .help(VERIFIED_EMAIL);
    }
}

/// Whether callers may have a claim `email` that nobody has verified.
pub(super) fn may_have_unverified_email(who: &raw::Who, root: &raw::Root) -> bool {
    let is_verified = |path: &String| is_claim(path, "email_verified");
    let may_be_unverified = |issuer: &raw::Issuer| {
        // The other presets have no such claim, and GitHub gives verified addresses only.
        let has_none = matches!(
            issuer.preset,
            Some(
                Preset::GithubOauth | Preset::GithubActions | Preset::GitlabCi | Preset::Kubernetes | Preset::Doorward
            )
        );
        !has_none && !issuer.required_claims.keys().any(is_verified)
    };
    let mut meant = root.issuers.iter().filter(|issuer| who.issuers.is_empty() || who.issuers.contains(&issuer.name));
    !who.claims.keys().any(is_verified) && meant.any(may_be_unverified)
}

/// Whether the place of a claim, a name or a JSON pointer, is that of this one.
fn is_claim(path: &str, name: &str) -> bool {
    path.strip_prefix('/').unwrap_or(path) == name
}
