//! Conditions on deliveries that no delivery can meet. They are not errors, since a host may change what it sends.

use std::collections::BTreeSet;

use crate::{
    config::{
        raw,
        report::{At, Report, meant},
    },
    webhooks,
};

/// Warns of conditions that no delivery to which the rule applies can meet.
pub(super) fn warn(rule: &raw::Rule, at: &At, root: &raw::Root, report: &mut Report) {
    let senders = senders(rule, root);
    if !senders.is_empty() {
        let at = at.key("on");
        warn_of_missing_facts(&rule.on, &senders, &at, report);
        warn_of_events(&rule.on.event, &senders, &at.key("event"), report);
        warn_of_other_hosts(rule, &senders, &at.key("event"), report);
        warn_of_repeats(&rule.on.event, &senders, &at.key("event"), report);
        warn_of_actions(&rule.on.action, &senders, &at.key("action"), report);
        warn_of_refs(&rule.on, &senders, &at, report);
    }
}

/// The senders to whose deliveries the rule applies.
fn senders<'a>(rule: &raw::Rule, root: &'a raw::Root) -> Vec<&'a raw::Webhook> {
    let (on, who) = (&rule.on, &rule.who);
    let is_meant = |route: &&raw::Route| {
        let listener = route.event_listener.as_ref();
        (on.routes.is_empty() || on.routes.contains(&route.name))
            && on.event_listener.as_ref().is_none_or(|name| listener.is_some_and(|listener| listener.name == *name))
            && on.namespace.as_ref().is_none_or(|name| listener.is_some_and(|listener| listener.namespace == *name))
    };
    let routes = root.routes.iter().filter(is_meant);
    let named: Vec<_> = routes.filter_map(|route| route.webhook.as_deref()).collect();
    // Ids of repositories and people begin with the identity of their host.
    let ids = || who.repositories.iter().chain(&who.senders);
    let has_ids = |webhook: &raw::Webhook| {
        let is_of_host = |id: &String| id.rsplit_once(':').is_some_and(|(kind, _)| kind == webhooks::identity(webhook));
        ids().next().is_none() || ids().any(is_of_host)
    };
    let is_named = |webhook: &&raw::Webhook| {
        named.contains(&webhook.name.as_str())
            && (who.webhooks.is_empty() || who.webhooks.contains(&webhook.name))
            && has_ids(webhook)
    };
    root.webhooks.iter().filter(is_named).collect()
}

/// Warns of a condition on a fact that these senders never provide.
fn warn_of_missing_facts(on: &raw::On, senders: &[&raw::Webhook], at: &At, report: &mut Report) {
    for (fact, is_named) in [
        ("event", !on.event.is_empty()),
        ("action", !on.action.is_empty()),
        ("branch", !on.branch.is_empty()),
        ("tag", !on.tag.is_empty()),
        ("fork", on.fork.is_some()),
        ("draft", on.draft.is_some()),
    ] {
        let is_missing = |sender: &&raw::Webhook| webhooks::missing_facts(sender).any(|missing| missing == fact);
        if !is_named || !senders.iter().all(is_missing) {
            continue;
        }
        let names: Vec<_> = senders.iter().map(|sender| format!("`{}`", sender.name)).collect();
        report
            .warning(&at.key(fact), format!("no delivery of {} has the fact `{fact}`", names.join(" or ")))
            .help("leave it out; or name its place in the body in `facts` of the sender, if that is one with `facts`");
    }
}

/// Warns of an event that no delivery of these senders has, as hosts use different names for the same event, and of an
/// event whose deliveries are answered before any rule is evaluated.
fn warn_of_events(events: &[String], senders: &[&raw::Webhook], at: &At, report: &mut Report) {
    let senders = || senders.iter().copied();
    for (i, event) in events.iter().enumerate() {
        let is_answered = |sender: &raw::Webhook| webhooks::answered_events(sender).contains(&event.as_str());
        let never_sends =
            |sender| webhooks::known_events(sender).is_some_and(|mut known| known.all(|known| known != event));
        if senders().any(is_answered) && senders().all(|sender| is_answered(sender) || never_sends(sender)) {
            report
                .warning(
                    &at.index(i),
                    format!("the event `{event}` tests a hook and is answered before any rule is evaluated"),
                )
                .help("remove it from the list, or remove the rule if it names no other event");
        }
    }
    let Some(known) = senders().map(webhooks::known_events).collect::<Option<Vec<_>>>() else { return };
    let mut known: Vec<&str> = known.into_iter().flatten().collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        return;
    }
    for (i, event) in events.iter().enumerate().filter(|(_, event)| !known.contains(&event.as_str())) {
        let own = senders().map(|sender| webhooks::own_events(sender, event)).collect::<Option<Vec<_>>>();
        let help = own.map_or_else(|| meant(event, &known), |own| format!("write {}", any_of(own)));
        report
            .warning(&at.index(i), format!("no delivery is recognised by its body as the event `{event}`"))
            .help(help);
    }
}

/// Warns of an event that only other hosts call by this name: of a deny, if there is a host among the senders that has
/// another name and the rule lists none of its own; of others, if each has another name.
fn warn_of_other_hosts(rule: &raw::Rule, senders: &[&raw::Webhook], at: &At, report: &mut Report) {
    let on = &rule.on;
    let is_deny = matches!(rule.action, raw::Action::Deny);
    // These may choose the deliveries of one host.
    let is_narrowed = rule.when.is_some()
        || on.trigger.is_some()
        || !(on.hosts.is_empty() && on.paths.is_empty() && on.addresses.is_empty());
    let is_proven = senders.iter().all(|sender| webhooks::known_events(sender).is_some());
    for (i, event) in on.event.iter().enumerate() {
        let missed: Vec<_> = senders
            .iter()
            .filter_map(|sender| Some((&sender.name, webhooks::own_events(sender, event)?)))
            .filter(|(_, own)| !on.event.iter().any(|listed| own.contains(&listed.as_str())))
            .collect();
        let all = missed.len() == senders.len();
        // Where each body proves its event, there is a warning already.
        if missed.is_empty() || (all && is_proven) || (!all && (!is_deny || is_narrowed)) {
            continue;
        }
        let names: Vec<_> = missed.iter().map(|(name, _)| format!("`{name}`")).collect();
        let own = any_of(missed.iter().map(|(_, own)| *own));
        let help = match (is_deny && on.fork == Some(true), all) {
            (true, _) => format!("leave `event` out, so that no name is missed, or write {own} too"),
            (false, true) => format!("write {own}"),
            (false, false) => format!("write {own} too, or name in `webhooks` the senders that are meant"),
        };
        report
            .warning(
                &at.index(i),
                format!("{} does not call an event `{event}`, so that this misses its deliveries", names.join(" or ")),
            )
            .help(help);
    }
}

/// The names of events, for instructions.
fn any_of<'a>(names: impl IntoIterator<Item = &'a [&'a str]>) -> String {
    let names: BTreeSet<&str> = names.into_iter().flatten().copied().collect();
    let names: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(" or ")
}

/// Warns of an event whose later deliveries are taken for duplicates of the first.
fn warn_of_repeats(events: &[String], senders: &[&raw::Webhook], at: &At, report: &mut Report) {
    for (i, event) in events.iter().enumerate() {
        let lost = senders.iter().find_map(|sender| Some((&sender.name, webhooks::loses(sender, event)?)));
        let Some((sender, what)) = lost else { continue };
        report
            .warning(
                &at.index(i),
                format!("of `{sender}`, {what} is taken for a duplicate: its body is the same each time"),
            )
            .help(
                "write `unique_bodies: false` in its entry of `webhooks`, so that only ids count, which anybody who \
                 has seen a delivery can make up; or `true`, if the first delivery is enough",
            );
    }
}

/// Warns of an action for which all these senders have another name.
fn warn_of_actions(actions: &[String], senders: &[&raw::Webhook], at: &At, report: &mut Report) {
    for (i, action) in actions.iter().enumerate() {
        let own_action = |sender: &&raw::Webhook| webhooks::own_action(sender, action);
        let Some(own) = senders.iter().map(own_action).collect::<Option<BTreeSet<_>>>() else { continue };
        let own: Vec<_> = own.into_iter().map(|own| format!("`{own}`")).collect();
        report
            .warning(&at.index(i), format!("the host of these deliveries has another name for the action `{action}`"))
            .help(format!("write {}", own.join(" and ")));
    }
}

/// Warns of full refs if all deliveries have bare names.
fn warn_of_refs(on: &raw::On, senders: &[&raw::Webhook], at: &At, report: &mut Report) {
    if !senders.iter().all(|sender| webhooks::has_bare_names(sender)) {
        return;
    }
    for (key, texts, prefix) in [("branch", &on.branch, "refs/heads/"), ("tag", &on.tag, "refs/tags/")] {
        for (i, text) in texts.iter().enumerate() {
            let Some(name) = text.strip_prefix(prefix) else { continue };
            report
                .warning(&at.key(key).index(i), format!("deliveries name a {key} without `{prefix}`"))
                .help(format!("write `{name}`"));
        }
    }
}

/// Warns of a number that no delivery has. `kind` is the name in identities; `tells` says whether a sender provides
/// such numbers at all, and `written` how it writes the one that is meant.
pub(super) fn warn_of_number(
    kind: &str,
    number: &str,
    tells: fn(&raw::Webhook) -> bool,
    written: fn(&raw::Webhook, &str) -> Option<String>,
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) {
    let senders = || root.webhooks.iter().filter(|webhook| webhooks::identity(webhook) == kind);
    if senders().next().is_none() {
        return;
    }
    if !senders().any(tells) {
        report
            .warning(at, format!("no delivery of `{kind}` has such a number"))
            .help("name the sender in `webhooks`, and look at `delivery` in `when`");
        return;
    }
    let meant: Vec<String> = senders().filter_map(|sender| written(sender, number)).collect();
    if meant.iter().any(|id| id == number) {
        return;
    }
    let help = match meant.first() {
        Some(id) => format!("write `{kind}:{id}`"),
        None => "copy it from the record of a delivery in the audit trail".to_owned(),
    };
    report.warning(at, format!("no host writes such an id as `{number}`")).help(help);
}

/// Reports an unknown kind. The name of a host in `sender` is not always the one in identities.
pub(super) fn unknown_kind<'a>(
    what: &str,
    kind: &str,
    known: impl IntoIterator<Item = &'a str>,
    at: &At,
    root: &raw::Root,
    report: &mut Report,
) {
    let named = |webhook: &&raw::Webhook| serde_json::to_value(webhook.sender).is_ok_and(|name| name == kind);
    let problem = report.unknown(at, what, kind, known);
    if let Some(webhook) = root.webhooks.iter().find(named) {
        problem.help(format!("write `{}:`", webhooks::identity(webhook)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUND: &str = "
webhooks:
  - {name: gh, sender: github, secrets: [{secret: {env: A}}]}
  - {name: tea, sender: gitea, secrets: [{secret: {env: B}}]}
  - {name: ci, sender: generic, signature: {header: x-sig}, facts: {event: /event, branch: /branch, repository_id: /id}, secrets: [{secret: {env: C}}]}
  - {name: lab, sender: gitlab, secrets: [{secret: {env: D}}]}
  - {name: harbor, sender: harbor, secrets: [{secret: {env: E}}]}
  - {name: azure, sender: azure_devops, secrets: [{secret: {env: F}}]}
  - {name: bb, sender: bitbucket_cloud, secrets: [{secret: {env: G}}]}
  - {name: gogs, sender: gogs, secrets: [{secret: {env: H}}]}
  - {name: ids, sender: gogs, unique_bodies: false, secrets: [{secret: {env: I}}]}
  - {name: hub, sender: docker_hub, secrets: [{secret: {env: J}}]}
  - {name: chat, sender: slack, secrets: [{secret: {env: K}}]}
  - {name: sns, sender: aws_sns, identity: commits, sns: {topics: []}}
routes:
  - {name: hub, kind: webhook, hosts: [g], schemes: [webhook], webhook: hub, upstream: u}
  - {name: chat, kind: webhook, hosts: [h], schemes: [webhook], webhook: chat, upstream: u}
  - {name: azure, kind: webhook, hosts: [i], schemes: [webhook], webhook: azure, upstream: u}
  - {name: gogs, kind: webhook, hosts: [e], schemes: [webhook], webhook: gogs, upstream: u, event_listener: {namespace: v, name: fifth}}
  - {name: ids, kind: webhook, hosts: [f], schemes: [webhook], webhook: ids, upstream: u, event_listener: {namespace: w, name: sixth}}
  - {name: gh, kind: webhook, hosts: [a], schemes: [webhook], webhook: gh, upstream: u, event_listener: {namespace: ci, name: build}}
  - {name: ci, kind: webhook, hosts: [b], schemes: [webhook], webhook: ci, upstream: u, event_listener: {namespace: x, name: other}}
  - {name: lab, kind: webhook, hosts: [c], schemes: [webhook], webhook: lab, upstream: u, event_listener: {namespace: y, name: third}}
  - {name: tea, kind: webhook, hosts: [d], schemes: [webhook], webhook: tea, upstream: u, event_listener: {namespace: z, name: fourth}}
";

    fn warned(rule: &str) -> Vec<(String, String, String)> {
        let report = report(rule);
        assert!(!report.has_errors(), "{rule}: {report:?}");
        told(&report)
    }

    fn problems(rule: &str) -> Vec<(String, String, String)> {
        told(&report(rule))
    }

    fn report(rule: &str) -> Report {
        report_as(rule, "allow")
    }

    fn report_as(rule: &str, action: &str) -> Report {
        let text = format!("{GROUND}rules:\n  - {{id: r, {rule}, do: {action}}}\n");
        let root: raw::Root = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut report = Report::default();
        super::super::rule::Rule::compile(&root.rules[0], 0, &At::root(), &root, &mut report);
        report
    }

    fn told(report: &Report) -> Vec<(String, String, String)> {
        let told = |problem: &crate::config::report::Problem| {
            (problem.at.as_str().to_owned(), problem.message.clone(), problem.help.clone().unwrap_or_default())
        };
        report.problems().iter().map(told).collect()
    }

    fn warns(rule: &str, at: &str, message: &str, help: &str) {
        let warned = warned(rule);
        let [(place, said, fix)] = warned.as_slice() else { panic!("{rule}: {warned:?}") };
        assert!(place == at && said.contains(message) && fix.contains(help), "{rule}: {warned:?}");
    }

    #[test]
    fn an_event_that_is_misspelt_is_warned_of_however_the_rule_names_its_senders() {
        for narrow in [
            "on: {routes: [gh], event: [psuh]}",
            "on: {event_listener: build, event: [psuh]}",
            "on: {namespace: ci, event: [psuh]}",
            "on: {event: [psuh]}, who: {webhooks: [gh]}",
        ] {
            warns(narrow, "/on/event/0", "as the event `psuh`", "`push`");
        }
        for unknown in [
            "on: {event: [psuh]}",
            "on: {event_listener: other, event: [psuh]}",
            "on: {event: [psuh]}, who: {webhooks: [gh, ci]}",
            "on: {event_listener: build, event: [push]}, who: {webhooks: [gh]}",
            // It has no route, so nothing is known about it.
            "on: {event: [psuh]}, who: {webhooks: [bb]}",
        ] {
            assert_eq!(warned(unknown), [], "{unknown}");
        }
    }

    /// A deny of pull requests from forks let merge requests from forks through.
    #[test]
    fn an_event_that_a_host_of_the_rule_calls_otherwise_is_warned_about() {
        let fork = "on: {routes: [lab], event: [pull_request], fork: true}";
        warns(fork, "/on/event/0", "`lab` does not call an event `pull_request`", "write `merge_request`");
        let both = "on: {routes: [lab, azure], event: ['repo:push']}";
        warns(both, "/on/event/0", "`lab` or `azure` does not", "write `git.push` or `push` or ");
        for good in [
            "on: {routes: [gh, lab], event: [pull_request]}",
            "on: {routes: [lab], event: [push, tag_push, merge_request, note]}",
            "on: {routes: [lab, azure], event: [merge_request, git.pullrequest.created]}",
            "on: {routes: [lab, ci], event: [pull_request]}",
            "on: {routes: [chat], event: [push]}",
        ] {
            assert_eq!(warned(good), [], "{good}");
        }
        let denied = |rule: &str| told(&report_as(rule, "deny"));
        for (rule, help) in [
            ("on: {routes: [gh, lab], event: [pull_request], fork: true}", "leave `event` out"),
            ("on: {routes: [lab], event: [pull_request], fork: true}", "leave `event` out"),
            ("on: {routes: [gh, lab], event: [pull_request], branch: [main]}", "write `merge_request` too"),
            ("on: {event: [pull_request]}, who: {webhooks: [gh, lab]}", "name in `webhooks`"),
        ] {
            let denied = denied(rule);
            let [(place, said, fix)] = denied.as_slice() else { panic!("{rule}: {denied:?}") };
            assert!(place == "/on/event/0" && said.starts_with("`lab` does not") && fix.contains(help), "{denied:?}");
        }
        for good in [
            "on: {routes: [gh, lab], event: [pull_request, merge_request], fork: true}",
            "on: {routes: [gh, lab], event: [push], branch: [main]}",
            "on: {event: [pull_request]}, who: {webhooks: [gh]}",
            "on: {routes: [gh, lab], event: [pull_request]}, who: {repositories: ['github:7']}",
            "on: {routes: [gh, lab], event: [pull_request], addresses: [192.0.2.0/24]}",
        ] {
            assert_eq!(denied(good), [], "{good}");
        }
    }

    /// Such a deny never denied anything.
    #[test]
    fn a_fact_that_no_sender_of_the_rule_provides_is_warned_about() {
        for (on, fact, senders) in [
            ("routes: [hub], tag: [latest], event: [push]", "event", "`hub`"),
            ("routes: [hub], branch: [main]", "branch", "`hub`"),
            ("routes: [chat], branch: [main]", "branch", "`chat`"),
            ("routes: [hub, chat], fork: true", "fork", "`hub` or `chat`"),
            ("routes: [chat], draft: true", "draft", "`chat`"),
            ("routes: [azure], action: [opened]", "action", "`azure`"),
            ("routes: [ci], action: [opened]", "action", "`ci`"),
        ] {
            let message = format!("no delivery of {senders} has the fact `{fact}`");
            warns(&format!("on: {{{on}}}"), &format!("/on/{fact}"), &message, "leave it out");
        }
        for good in [
            "on: {routes: [hub], tag: [latest]}",
            "on: {routes: [chat], event: [app_mention], action: [go]}",
            "on: {routes: [azure], event: [git.push], branch: [main], tag: [v1], fork: true, draft: true}",
            "on: {routes: [lab], event: [push], action: [open], branch: [main], tag: [v1], fork: true, draft: true}",
            "on: {routes: [ci], event: [push], branch: [main]}",
            "on: {routes: [hub, gh], event: [push], branch: [main]}",
        ] {
            assert_eq!(warned(good), [], "{good}");
        }
    }

    /// A preview was created, closed, and reopened, and then never removed.
    #[test]
    fn gogs_events_that_repeat_with_an_identical_body_are_warned_about() {
        warns(
            "on: {routes: [gogs], event: [push, pull_request]}",
            "/on/event/1",
            "of `gogs`, a pull request",
            "`unique_bodies: false`",
        );
        warns(
            "on: {routes: [gogs, tea], event: [issues]}",
            "/on/event/0",
            "of `gogs`, an issue",
            "`unique_bodies: false`",
        );
        for good in [
            "on: {routes: [gogs], event: [push, issue_comment]}",
            "on: {routes: [tea], event: [pull_request, issues]}",
            "on: {routes: [ids], event: [pull_request, issues]}",
        ] {
            assert_eq!(warned(good), [], "{good}");
        }
    }

    #[test]
    fn a_full_ref_is_warned_about_if_all_names_are_bare() {
        warns("on: {event_listener: build, branch: [main, refs/heads/main]}", "/on/branch/1", "a branch", "`main`");
        warns("on: {event_listener: third, tag: [refs/tags/v1*]}", "/on/tag/0", "a tag", "`v1*`");
        for good in ["on: {event_listener: other, branch: [refs/heads/main]}", "on: {branch: [refs/heads/main]}"] {
            assert_eq!(warned(good), [], "{good}");
        }
    }

    /// An allow never let a second push to a Gitea pull request build, and a deny prevented none.
    #[test]
    fn an_action_that_the_git_host_names_differently_is_warned_about() {
        let at = "/on/action/1";
        warns("on: {routes: [tea], action: [opened, synchronize]}", at, "`synchronize`", "write `synchronized`");
        warns("on: {routes: [gh], action: [opened, synchronized]}", at, "`synchronized`", "write `synchronize`");
        let both = "on: {routes: [tea, lab], action: [edited, synchronize]}";
        warns(both, at, "`synchronize`", "write `synchronized` and `update`");
        for good in [
            "on: {routes: [gh], action: [opened, synchronize]}",
            "on: {routes: [tea], action: [opened, synchronized]}",
            // One of the two uses this name.
            "on: {routes: [gh, tea], action: [synchronize, synchronized]}",
            "on: {routes: [tea, ci], action: [synchronize]}",
        ] {
            assert_eq!(warned(good), [], "{good}");
        }
    }

    /// A deny that was written in this way did nothing.
    #[test]
    fn an_uppercase_id_is_warned_about_if_hosts_write_lowercase() {
        const ID: &str = "azure-devops:278D5CD2-584D-4B63-824A-2BA458937249";
        let written = format!("`{}`", ID.to_ascii_lowercase());
        for (key, id) in [("repositories", ID), ("senders", ID)] {
            warns(&format!("who: {{{key}: ['{id}']}}"), &format!("/who/{key}/0"), "as `278D5CD2", &written);
        }
        let braced = "{673A6070-3421-46c9-9d48-90745f7bfe8e}";
        let help = format!("`bitbucket:{}`", braced.to_ascii_lowercase());
        warns(&format!("who: {{repositories: ['bitbucket:{braced}']}}"), "/who/repositories/0", "as `{673A6070", &help);
        for good in [ID.to_ascii_lowercase(), "azure-devops:AB".to_owned()] {
            assert_eq!(warned(&format!("who: {{repositories: ['{good}']}}")), [], "{good}");
        }
    }

    #[test]
    fn the_name_of_a_sender_type_is_distinguished_from_its_identity_prefix() {
        for (key, what) in [("repositories", "repository"), ("senders", "sender")] {
            let id = "bitbucket_cloud:{673a6070-3421-46c9-9d48-90745f7bfe8e}";
            let problems = problems(&format!("who: {{{key}: ['{id}']}}"));
            let [(place, said, fix)] = problems.as_slice() else { panic!("{problems:?}") };
            assert_eq!(place, &format!("/who/{key}/0"));
            assert_eq!(said, &format!("there is no kind of {what} `bitbucket_cloud`"));
            assert_eq!(fix, "write `bitbucket:`");
        }
    }

    #[test]
    fn numbers_that_no_delivery_contains_are_warned_about() {
        let repositories = "/who/repositories/0";
        warns("who: {repositories: ['github:01']}", repositories, "as `01`", "`github:1`");
        warns("who: {repositories: ['harbor:5']}", repositories, "of `harbor`", "`delivery`");
        warns("who: {repositories: ['github:99999999999999999999']}", repositories, "as `99999", "audit trail");
        warns("who: {repositories: ['commits:app']}", repositories, "as `app`", "audit trail");
        warns("who: {senders: ['gitlab:007']}", "/who/senders/0", "as `007`", "`gitlab:7`");
        warns("who: {senders: ['ci:5']}", "/who/senders/0", "of `ci`", "`delivery`");
        warns("who: {senders: ['harbor:5']}", "/who/senders/0", "of `harbor`", "`delivery`");
        for good in [
            "['github:1', 'github:0', 'gitlab:10']",
            "['ci:01', 'ci:278D5CD2-584D-4B63-824A-2BA458937249', 'commits:us-east-1/123456789012/app']",
        ] {
            assert_eq!(warned(&format!("who: {{repositories: {good}}}")), [], "{good}");
        }
    }
}
