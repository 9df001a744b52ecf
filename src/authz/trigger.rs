//! Which Triggers of an EventListener a delivery may set off. This is not known when the delivery arrives, because an
//! EventListener chooses among its Triggers after it has received the delivery. So the conditions of rules on Triggers
//! are sent along with the delivery, signed, and the interceptor enforces them on the EventListener.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::{
    raw::{self, OnTrigger},
    report::{At, Report},
};

use super::{condition::Reading, names::Prefix, on::parse_all};

/// A Trigger that an EventListener is about to set off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    /// The service account that creates its runs; `None` if unknown.
    pub service_account: Option<&'a str>,
    /// The namespace of the EventListener; empty if its route does not name it.
    pub listener_namespace: &'a str,
}

/// The Triggers that rules permit for one delivery: any in `allow`, unless it is in `deny`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TriggerLimits {
    pub allow: Vec<OnTrigger>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<DeniedTriggers>,
    /// The digest of the policy that these limits come from, for the audit trail.
    pub policy: Arc<str>,
}

/// The Triggers that a rule denies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeniedTriggers {
    /// The id of the rule, for the audit trail.
    pub rule: Arc<str>,
    pub triggers: OnTrigger,
}

impl TriggerLimits {
    pub fn permits(&self, trigger: &Trigger<'_>) -> bool {
        self.allow.iter().any(|allow| matches(allow, trigger, Reading::Strict)) && self.denied_by(trigger).is_none()
    }

    /// The first rule whose deny matches the Trigger.
    pub fn denied_by(&self, trigger: &Trigger<'_>) -> Option<&Arc<str>> {
        self.deny.iter().find(|deny| matches(&deny.triggers, trigger, Reading::Wide)).map(|deny| &deny.rule)
    }

    /// Whether the limits depend on the service account of a Trigger.
    pub fn needs_account(&self) -> bool {
        let denied = self.deny.iter().map(|deny| &deny.triggers);
        self.allow.iter().chain(denied).any(|limit| !limit.service_accounts.is_empty())
    }
}

/// Whether a Trigger matches a condition. An unknown service account matches none that an allow lists, and any that a
/// deny lists. The same holds for a name without a namespace if the namespace of the EventListener is unknown.
pub(super) fn matches(condition: &OnTrigger, trigger: &Trigger<'_>, reading: Reading) -> bool {
    let fits = |pattern: &str, text: &str| Prefix::parse(pattern).is_ok_and(|pattern| pattern.matches(text));
    let whole = format!("{}/{}", trigger.namespace, trigger.name);
    let is_home = match trigger.listener_namespace {
        "" => reading == Reading::Wide,
        home => trigger.namespace == home,
    };
    let is_named = condition.names.is_empty()
        || condition.names.iter().any(|name| match name.contains('/') {
            true => fits(name, &whole),
            false => is_home && fits(name, trigger.name),
        });
    let has_account = condition.service_accounts.is_empty()
        || match trigger.service_account {
            Some(account) => condition.service_accounts.iter().any(|pattern| fits(pattern, account)),
            None => reading == Reading::Wide,
        };
    is_named && has_account
}

/// Reports conditions that no Trigger can meet, or that nothing would enforce.
pub(super) fn check(raw: &OnTrigger, at: &At, root: &raw::Root, report: &mut Report) {
    if *raw == OnTrigger::default() {
        report.error(at, "the condition is empty").help("list `names` or `service_accounts`");
    }
    for (key, patterns) in [("names", &raw.names), ("service_accounts", &raw.service_accounts)] {
        parse_all(patterns, &at.key(key), report, Prefix::parse);
    }
    match &root.interceptor {
        None => {
            report
                .error(at, "without the section `interceptor` nothing enforces this on an EventListener")
                .help("set `interceptor: {host: ...}` and name the ClusterInterceptor in the Triggers");
        }
        Some(interceptor) if interceptor.kubernetes.is_none() && !raw.service_accounts.is_empty() => {
            report
                .error(&at.key("service_accounts"), "the interceptor cannot read which service account a Trigger has")
                .help("name the API server's upstream in `interceptor: {kubernetes: ...}`");
        }
        Some(_) => {}
    }
}

/// Reports conditions that cannot be checked on some of the `routes` of a rule: a route that does not name its
/// EventListener gives neither its namespace nor a place to read the service accounts of its Triggers from.
pub(super) fn check_routes<'r>(
    raw: &OnTrigger,
    rule: &raw::Rule,
    routes: impl Iterator<Item = &'r raw::Route>,
    at: &At,
    report: &mut Report,
) {
    let needs_listener = !raw.service_accounts.is_empty() || raw.names.iter().any(|name| !name.contains('/'));
    let names_its_listener = rule.on.event_listener.is_some() || rule.on.namespace.is_some();
    if names_its_listener || !needs_listener {
        return;
    }
    let senders = &rule.who.webhooks;
    let is_of_sender = |route: &&raw::Route| {
        senders.is_empty() || route.webhook.as_ref().is_some_and(|sender| senders.contains(sender))
    };
    let nameless = routes.filter(|route| route.event_listener.is_none()).filter(is_of_sender);
    let nameless: Vec<&str> = nameless.map(|route| route.name.as_str()).collect();
    if !nameless.is_empty() {
        let routes = nameless.join("`, `");
        report
            .error(at, format!("these Triggers cannot be identified on `{routes}`, which names no `event_listener`"))
            .help(
                "set `event_listener: {namespace: ..., name: ...}` there, or list other `routes` in the rule; names may also \
                 be written as `NAMESPACE/NAME`",
            );
    }
}

/// The condition in words.
pub(super) fn needs(raw: &OnTrigger) -> String {
    let part = |name: &str, list: &[String]| (!list.is_empty()).then(|| format!("{name} {}", list.join(", ")));
    let parts = [part("trigger", &raw.names), part("service account", &raw.service_accounts)];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(members: &str) -> TriggerLimits {
        serde_saphyr::from_str(&format!("{{policy: p, {members}}}")).unwrap()
    }

    fn trigger(namespace: &'static str, name: &'static str, account: Option<&'static str>) -> Trigger<'static> {
        Trigger { namespace, name, service_account: account, listener_namespace: "ci" }
    }

    #[test]
    fn a_delivery_sets_off_what_is_allowed_and_not_denied() {
        let some = limits(
            "allow: [{names: [build, 'test-*', 'other/x']}], deny: [{rule: stop, triggers: {names: [test-prod]}}]",
        );
        for (namespace, name, may) in [
            ("ci", "build", true),
            ("ci", "test-unit", true),
            ("ci", "test-prod", false),
            ("ci", "deploy", false),
            // One with the same name elsewhere.
            ("other", "build", false),
            ("other", "x", true),
            ("ci", "x", false),
        ] {
            assert_eq!(some.permits(&trigger(namespace, name, None)), may, "{namespace}/{name}");
        }
        let named =
            limits("allow: [{}], deny: [{rule: no-a, triggers: {names: [a]}}, {rule: no-b, triggers: {names: [b]}}]");
        for (name, rule) in [("a", Some("no-a")), ("b", Some("no-b")), ("c", None)] {
            assert_eq!(named.denied_by(&trigger("ci", name, None)).map(|rule| &**rule), rule, "{name}");
        }
        assert!(limits("allow: [{}]").permits(&trigger("ci", "any", None)));
        assert!(!limits("allow: []").permits(&trigger("ci", "any", None)));
    }

    #[test]
    fn without_an_event_listener_a_name_without_namespace_matches_denies_and_no_allows() {
        let allow = limits("allow: [{names: [build, 'ci/test']}]");
        let deny = limits("allow: [{}], deny: [{rule: stop, triggers: {names: [deploy, 'ci/release']}}]");
        let nowhere = |namespace, name| Trigger { listener_namespace: "", ..trigger(namespace, name, None) };
        for (namespace, name, by_allow, by_deny) in [
            ("ci", "build", false, true),
            ("", "build", false, true),
            ("ci", "test", true, true),
            ("ci", "deploy", false, false),
            ("ci", "release", false, false),
            ("prod", "release", false, true),
        ] {
            assert_eq!(allow.permits(&nowhere(namespace, name)), by_allow, "{namespace}/{name}");
            assert_eq!(deny.permits(&nowhere(namespace, name)), by_deny, "{namespace}/{name}");
        }
    }

    #[test]
    fn an_unknown_service_account_permits_no_run() {
        let allow = limits("allow: [{service_accounts: [builder]}]");
        let deny = limits("allow: [{}], deny: [{rule: stop, triggers: {service_accounts: [deployer]}}]");
        for (account, by_allow, by_deny) in
            [(Some("builder"), true, true), (Some("deployer"), false, false), (None, false, false)]
        {
            assert_eq!(allow.permits(&trigger("ci", "t", account)), by_allow, "{account:?}");
            assert_eq!(deny.permits(&trigger("ci", "t", account)), by_deny, "{account:?}");
        }
        assert!(allow.needs_account() && deny.needs_account() && !limits("allow: [{names: [a]}]").needs_account());
    }
}
