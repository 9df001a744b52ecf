//! The requests that a rule applies to.

use std::{fmt::Display, sync::Arc};

use http::Method;
use ipnet::IpNet;

use crate::{
    config::{
        raw::{self, RouteKind},
        report::{At, Report, nearest},
    },
    kubernetes::Attributes,
    request::method::KNOWN,
    tekton::Run,
    webhooks,
};

use super::{
    RequestView,
    condition::{Condition, Reading, joined, or_none},
    guarded::Guard,
    kubernetes::{self, Kubernetes},
    names::{HostPattern, Names, PathPattern, Prefix},
    resources,
    run::{self, RunCondition},
    starts::Start,
    time_window::TimeWindow,
    token::TokenCondition,
    trigger,
};

/// One condition on a request.
#[derive(Debug)]
pub(super) enum On {
    Routes(Names),
    Hosts(Box<[HostPattern]>),
    Paths(Box<[PathPattern]>),
    Methods(Box<[Method]>),
    Pages(bool),
    EventListener(Names),
    Namespace(Names),
    Events(Names),
    Branches(Box<[Prefix]>),
    Tags(Box<[Prefix]>),
    Actions(Names),
    Fork(bool),
    Draft(bool),
    Trigger(raw::OnTrigger),
    Token(TokenCondition),
    Kubernetes(Kubernetes),
    Run(RunCondition),
    Guard(Guard),
    Time(TimeWindow),
    Addresses(Box<[IpNet]>),
}

/// Compiles `on`. Cheap conditions come first.
pub(super) fn compile(raw: &raw::On, action: &raw::Action, at: &At, root: &raw::Root, report: &mut Report) -> Vec<On> {
    let mut on = Vec::new();
    check_reach(raw, at, root, report);
    warn_of_hosts(raw, &at.key("hosts"), root, report);
    if !matches!(action, raw::Action::Deny) {
        warn_of_more_than_pages(raw, at, root, report);
    }
    on.extend(named(&raw.routes, On::Routes));
    on.extend(listed(parse_all(&raw.methods, &at.key("methods"), report, |text| method(text, raw, root)), On::Methods));
    on.extend(listed(parse_all(&raw.hosts, &at.key("hosts"), report, HostPattern::parse), On::Hosts));
    on.extend(listed(parse_all(&raw.paths, &at.key("paths"), report, PathPattern::parse), On::Paths));
    on.extend(raw.pages.map(On::Pages));
    on.extend(named(raw.event_listener.as_slice(), On::EventListener));
    if let Some(name) = &raw.namespace {
        let at = at.key("namespace");
        if name.is_empty() || name.contains('*') {
            report.error(&at, format!("`{name}` is not a valid name of a namespace")).help("leave it out for all");
        } else {
            resources::check_namespace(name, &at, report);
        }
    }
    on.extend(named(raw.namespace.as_slice(), On::Namespace));
    on.extend(named(&raw.event, On::Events));
    on.extend(listed(parse_all(&raw.branch, &at.key("branch"), report, Prefix::parse), On::Branches));
    on.extend(listed(parse_all(&raw.tag, &at.key("tag"), report, Prefix::parse), On::Tags));
    on.extend(named(&raw.action, On::Actions));
    on.extend(raw.fork.map(On::Fork));
    on.extend(raw.draft.map(On::Draft));
    if let Some(trigger) = &raw.trigger {
        trigger::check(trigger, &at.key("trigger"), root, report);
        on.push(On::Trigger(trigger.clone()));
    }
    if let Some(token) = &raw.token {
        on.push(On::Token(TokenCondition::compile(raw, token, action, &at.key("token"), root, report)));
    }
    if let Some(raw) = &raw.kubernetes {
        resources::warn_of_tunnels(raw, action, &at.key("kubernetes"), report);
        on.push(On::Kubernetes(Kubernetes::compile(raw, &at.key("kubernetes"), report)));
    }
    on.push(On::Guard(Guard::new(raw, root)));
    if let Some(run) = &raw.run {
        on.push(On::Run(RunCondition::compile(run, action, &at.key("run"), report)));
    }
    if let Some(time) = &raw.time {
        match TimeWindow::compile(time) {
            Ok(window) => {
                if time.to == "23:59" {
                    report
                        .warning(
                            &at.key("time").key("to"),
                            "the last minute of the day is not in it: it ends as 23:59 begins",
                        )
                        .help("write `24:00`");
                }
                on.push(On::Time(window));
            }
            Err(wrong) => wrong.into_iter().for_each(|(key, why)| _ = report.error(&at.key("time").key(key), why)),
        }
    }
    on.extend(listed(raw.addresses.iter().copied().collect(), On::Addresses));
    on
}

/// Returns the condition for a list; an empty list is no condition.
fn listed<T>(list: Box<[T]>, condition: fn(Box<[T]>) -> On) -> Option<On> {
    (!list.is_empty()).then(|| condition(list))
}

/// The same for a list of names.
fn named(names: &[String], condition: fn(Names) -> On) -> Option<On> {
    (!names.is_empty()).then(|| condition(Names::new(names)))
}

/// Parses a known method, or another one that a route of the rule accepts. Others are never forwarded, so a rule on
/// them would never match.
fn method(text: &str, raw: &raw::On, root: &raw::Root) -> Result<Method, String> {
    if let Some(method) = KNOWN.into_iter().find(|known| known.as_str() == text) {
        return Ok(method);
    }
    let routes = root.routes.iter().filter(|route| raw.routes.is_empty() || raw.routes.contains(&route.name));
    let named = routes.flat_map(|route| &route.methods).map(String::as_str);
    if let Some(method) = named.clone().find(|named| *named == text).and_then(|named| named.parse().ok()) {
        return Ok(method);
    }
    Err(match nearest(&text.to_ascii_uppercase(), KNOWN.iter().map(Method::as_str).chain(named)) {
        Some(near) => format!("is not an HTTP method; did you mean `{near}`?"),
        None => "is not an HTTP method that a route of this rule accepts; name it in `methods` of the route first"
            .to_owned(),
    })
}

/// Reports names that do not exist, and conditions that no request can meet together. A deny that never matches is as
/// bad as none.
fn check_reach(raw: &raw::On, at: &At, root: &raw::Root, report: &mut Report) {
    for (i, name) in raw.routes.iter().enumerate() {
        if !root.routes.iter().any(|route| route.name == *name) {
            report.unknown(
                &at.key("routes").index(i),
                "route",
                name,
                root.routes.iter().map(|route| route.name.as_str()),
            );
        }
    }
    if let Some(name) = &raw.event_listener {
        let known = || root.routes.iter().filter_map(|route| Some(route.event_listener.as_ref()?.name.as_str()));
        if !known().any(|known| known == name) {
            report.unknown(&at.key("event_listener"), "event listener", name, known());
        }
    }
    let of_webhooks = raw.event_listener.is_some()
        || [&raw.event, &raw.branch, &raw.tag, &raw.action].iter().any(|list| !list.is_empty())
        || raw.fork.or(raw.draft).is_some()
        || raw.trigger.is_some();
    if raw.pages == Some(true) && (raw.kubernetes.is_some() || raw.run.is_some()) {
        let error = report.error(&at.key("pages"), "requests for the pages of a dashboard do not go to the API server");
        error.help("leave `pages` out, or write two rules");
    }
    let of_kubernetes = [("kubernetes", raw.kubernetes.is_some()), ("run", raw.run.is_some())];
    let of_kubernetes = of_kubernetes.into_iter().find(|(_, is_set)| *is_set).map(|(key, _)| key);
    if let Some(key) = of_kubernetes.filter(|_| of_webhooks) {
        report.error(&at.key(key), "no request is both a webhook and a Kubernetes request").help("write two rules");
    }
    let named: Vec<_> = root.routes.iter().filter(|route| raw.routes.contains(&route.name)).collect();
    if named.is_empty() {
        return;
    }
    if of_webhooks && !named.iter().any(|route| route.kind == RouteKind::Webhook) {
        report.error(
            &at.key("routes"),
            "none of these routes is a `webhook` route, but the rule asks for what only webhooks have",
        );
    }
    if raw.pages.is_some() && !named.iter().any(|route| route.kind == RouteKind::Dashboard) {
        report.error(&at.key("routes"), "none of these routes is a `dashboard` route, but the rule asks for its pages");
    }
    if of_kubernetes.is_some() && !named.iter().any(|route| route.reaches_kubernetes()) {
        report.error(
            &at.key("routes"),
            "none of these routes leads to a Kubernetes API server, but the rule asks for its attributes",
        );
    }
}

/// Warns of a host that no route of the rule serves, and that does not serve the token endpoint.
fn warn_of_hosts(raw: &raw::On, at: &At, root: &raw::Root, report: &mut Report) {
    let routes = root.routes.iter().filter(|route| raw.routes.is_empty() || raw.routes.contains(&route.name));
    let own = root.external_host.iter().filter(|_| raw.routes.is_empty());
    let known: Vec<&str> = routes.flat_map(|route| &route.hosts).chain(own).map(String::as_str).collect();
    let patterns: Vec<HostPattern> = known.iter().filter_map(|host| HostPattern::parse(host).ok()).collect();
    for (i, text) in raw.hosts.iter().enumerate() {
        let Ok(host) = HostPattern::parse(text) else { continue };
        if patterns.is_empty() || patterns.iter().any(|pattern| pattern.meets(&host)) {
            continue;
        }
        let help = match nearest(text, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "name a host that is in `hosts` of a route".to_owned(),
        };
        report.warning(&at.index(i), format!("no route of this rule is for the host `{text}`")).help(help);
    }
}

/// Warns of a rule that is probably meant for the pages of a dashboard. These show nothing by themselves: their
/// requests to the API server use the same route.
fn warn_of_more_than_pages(raw: &raw::On, at: &At, root: &raw::Root, report: &mut Report) {
    let is_api = |route: &&raw::Route| route.kind == RouteKind::Dashboard && route.reaches_kubernetes();
    let named = || root.routes.iter().filter(|route| raw.routes.contains(&route.name));
    let Some(allowed) = opened(&raw.methods) else { return };
    let says_more = raw.pages.is_some() || raw.kubernetes.is_some() || raw.run.is_some() || raw.namespace.is_some();
    if !says_more && raw.paths.is_empty() && named().any(|route| is_api(&route)) {
        report
            .warning(&at.key("routes"), format!("this also allows {allowed}, in all namespaces"))
            .help("add `pages: true` for the pages alone, or say under `kubernetes` what may be read");
    }
}

/// What a rule with these methods and no other condition on requests allows behind a dashboard, in words.
pub(super) fn opened(methods: &[String]) -> Option<&'static str> {
    match methods {
        [] => Some("reading and changing everything in the API server"),
        methods if methods.iter().all(|method| method == "GET" || method == "HEAD") => {
            Some("reading everything that the pages request from the API server")
        }
        _ => None,
    }
}

/// Parses each text of a list, and reports those that are invalid.
pub(super) fn parse_all<T, E: Display>(
    texts: &[String],
    at: &At,
    report: &mut Report,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Box<[T]> {
    let mut parsed = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(value) => parsed.push(value),
            Err(why) => {
                report.error(&at.index(i), format!("`{text}` {why}"));
            }
        }
    }
    parsed.into()
}

impl On {
    /// Whether requests on a route can meet the condition at all.
    pub(super) fn can_hold_on(&self, route: &raw::Route) -> bool {
        match self {
            Self::Routes(names) => names.contains(&route.name),
            Self::Kubernetes(_) | Self::Run(_) => route.reaches_kubernetes(),
            Self::Namespace(name) => {
                let listener = route.event_listener.as_ref();
                route.reaches_kubernetes() || listener.is_some_and(|listener| name.contains(&listener.namespace))
            }
            Self::Pages(_) => route.kind == RouteKind::Dashboard,
            Self::EventListener(_)
            | Self::Events(_)
            | Self::Branches(_)
            | Self::Tags(_)
            | Self::Actions(_)
            | Self::Fork(_)
            | Self::Draft(_)
            | Self::Trigger(_) => route.kind == RouteKind::Webhook,
            Self::Token(_) => false,
            _ => true,
        }
    }

    /// Whether a request for a token can meet the condition at all.
    pub(super) fn can_hold_of_tokens(&self) -> bool {
        matches!(
            self,
            Self::Token(_)
                | Self::Guard(_)
                | Self::Namespace(_)
                | Self::Time(_)
                | Self::Addresses(_)
                | Self::Hosts(_)
                | Self::Paths(_)
                | Self::Methods(_)
        )
    }

    /// Whether it may hold for a request that starts a run in this way. The time and the origin of the request, and
    /// what a delivery or a body contains, are left open.
    pub(super) fn may_hold(&self, start: &Start<'_>, reading: Reading) -> bool {
        match self {
            Self::Hosts(own) => own.iter().any(|own| start.hosts.iter().any(|host| own.meets(host))),
            Self::Paths(own) => own.iter().any(|own| start.paths.iter().any(|path| own.meets(path))),
            Self::Run(condition) => start.view.kubernetes.is_some() && condition.does_hold(start.intent, reading),
            Self::Events(_)
            | Self::Branches(_)
            | Self::Tags(_)
            | Self::Actions(_)
            | Self::Fork(_)
            | Self::Draft(_)
            | Self::Trigger(_)
            | Self::Time(_)
            | Self::Addresses(_) => true,
            _ => self.holds(&start.view, reading),
        }
    }

    pub(super) fn holds(&self, view: &RequestView<'_>, reading: Reading) -> bool {
        match self {
            Self::Routes(names) => names.contains(view.route),
            Self::Hosts(hosts) => hosts.iter().any(|host| host.matches(view.host)),
            Self::Paths(paths) => paths.iter().any(|path| path.holds(view.path, reading)),
            // The response to HEAD reveals what GET would return.
            Self::Methods(methods) => {
                methods.contains(view.method)
                    || (reading == Reading::Wide && view.method == Method::HEAD && methods.contains(&Method::GET))
            }
            Self::Pages(pages) => is_page(view) == *pages,
            Self::EventListener(name) => view.event_listener.is_some_and(|listener| name.contains(&listener.name)),
            Self::Namespace(name) => {
                view.event_listener.is_some_and(|listener| name.contains(&listener.namespace))
                    || view.kubernetes.is_some_and(|attributes| kubernetes::namespaces(name, attributes, reading))
                    || view.token.and_then(|token| token.task).is_some_and(|task| name.contains(&task.namespace))
            }
            Self::Events(names) => is_named(names, view, |facts| &facts.event, reading),
            Self::Branches(branches) => one_of(branches, view, |facts| &facts.branch, reading),
            Self::Tags(tags) => one_of(tags, view, |facts| &facts.tag, reading),
            Self::Actions(names) => is_named(names, view, |facts| &facts.action, reading),
            Self::Fork(fork) => view.delivery.is_some_and(|facts| match facts.fork {
                Some(known) => known == *fork,
                // News of a build may be about a build of a fork, so a deny of forks matches.
                None => *fork && facts.build && reading == Reading::Wide,
            }),
            Self::Draft(draft) => view.delivery.is_some_and(|facts| facts.draft == Some(*draft)),
            // When the delivery arrives, an allow may still be met and a deny may still be missed: the interceptor
            // decides.
            Self::Trigger(condition) => match &view.trigger {
                Some(trigger) => trigger::matches(condition, trigger, reading),
                None => reading == Reading::Strict,
            },
            Self::Token(condition) => view.token.is_some_and(|token| condition.matches(&token, reading)),
            Self::Kubernetes(condition) => {
                view.kubernetes.is_some_and(|attributes| condition.matches(attributes, reading))
            }
            Self::Run(condition) => match view.run {
                Some(run) => condition.holds(run, reading),
                // A body that has not been read may contain anything.
                None if view.is_unread() => reading == Reading::Wide,
                // Writing a sub-resource of a run is a change, which no allow matches.
                None => {
                    reading == Reading::Wide
                        && view.writes_part_of_run()
                        && condition.holds(&Run::only(raw::RunIntent::Change), reading)
                }
            },
            Self::Guard(guard) => guard.missed(view, reading).is_none(),
            Self::Time(window) => window.contains(view.now),
            Self::Addresses(networks) => {
                let address = view.address.to_canonical();
                networks.iter().any(|network| network.contains(&address))
            }
        }
    }

    /// Whether it holds for a token, regardless of the scope.
    pub(super) fn holds_but_scope(&self, view: &RequestView<'_>, reading: Reading) -> bool {
        match (self, &view.token) {
            (Self::Token(condition), Some(token)) => condition.matches_but_scope(token, reading),
            _ => self.holds(view, reading),
        }
    }

    /// Describes what does not hold.
    pub(super) fn misses(&self, view: &RequestView<'_>, reading: Reading) -> Vec<Condition> {
        match (self, &view.token) {
            (Self::Token(condition), Some(token)) => condition.misses(token, reading),
            _ if self.holds(view, reading) => Vec::new(),
            _ => vec![self.describe(view)],
        }
    }

    /// Describes the condition and what the request has.
    fn describe(&self, view: &RequestView<'_>) -> Condition {
        let kubernetes = || view.kubernetes.map_or_else(|| "no Kubernetes request".to_owned(), Attributes::in_words);
        match self {
            Self::Routes(names) => Condition::new("on.routes", names, view.route),
            Self::Hosts(hosts) => Condition::new("on.hosts", joined(hosts), view.host),
            Self::Paths(paths) => Condition::new("on.paths", joined(paths), view.path),
            Self::Methods(methods) => Condition::new("on.methods", joined(methods), view.method),
            Self::Pages(pages) => Condition::new("on.pages", pages, is_page(view)),
            Self::EventListener(name) => Condition::new(
                "on.event_listener",
                name,
                or_none(view.event_listener.map(|listener| listener.name.as_str())),
            ),
            Self::Namespace(name) => {
                let found = view.event_listener.map(|listener| listener.namespace.as_str());
                let found = found.or_else(|| view.kubernetes.map(|attributes| attributes.namespace.as_str()));
                let found = found.or_else(|| Some(view.token?.task?.namespace.as_str()));
                Condition::new("on.namespace", name, or_none(found.filter(|name| !name.is_empty())))
            }
            Self::Events(names) => Condition::new("on.event", names, or_none(fact(view, |facts| &facts.event))),
            Self::Branches(branches) => {
                Condition::new("on.branch", joined(branches), or_none(fact(view, |facts| &facts.branch)))
            }
            Self::Tags(tags) => Condition::new("on.tag", joined(tags), or_none(fact(view, |facts| &facts.tag))),
            Self::Actions(names) => Condition::new("on.action", names, or_none(fact(view, |facts| &facts.action))),
            Self::Fork(fork) => Condition::new("on.fork", fork, told(view.delivery.and_then(|facts| facts.fork))),
            Self::Draft(draft) => Condition::new("on.draft", draft, told(view.delivery.and_then(|facts| facts.draft))),
            Self::Trigger(condition) => {
                let found = view.trigger.map(|trigger| {
                    let account = trigger.service_account.unwrap_or("unknown");
                    format!("{}/{} with service account {account}", trigger.namespace, trigger.name)
                });
                let found = found.as_deref().unwrap_or("left to the interceptor");
                Condition::new("on.trigger", trigger::needs(condition), found)
            }
            Self::Token(_) => Condition::new("on.token", "a token", or_none(view.token.map(|token| token.audience))),
            Self::Kubernetes(condition) => Condition::new("on.kubernetes", condition.needs(), kubernetes()),
            Self::Run(condition) => {
                let found = match view.run {
                    Some(run) => Some(run::found(run)),
                    None if view.is_unread() => Some("no body".to_owned()),
                    None if view.writes_part_of_run() => Some("a sub-resource, whose body is not read".to_owned()),
                    None => None,
                };
                Condition::new("on.run", condition.needs(), or_none(found.as_deref()))
            }
            Self::Guard(guard) => {
                let named = guard.missed(view, Reading::Strict).map(|guarded| guarded.to_string());
                let needs = format!("`{}` by name", named.as_deref().unwrap_or("what is guarded"));
                Condition::new("on.kubernetes.resources", needs, kubernetes())
            }
            Self::Time(window) => Condition::new("on.time", window, view.now),
            Self::Addresses(networks) => Condition::new("on.addresses", joined(networks), view.address),
        }
    }
}

/// Whether the request is for a page of a dashboard. A request to the API server has attributes, whichever route it
/// came by, and a log from outside the cluster is decided like one from within.
fn is_page(view: &RequestView<'_>) -> bool {
    view.kind == RouteKind::Dashboard && view.kubernetes.is_none()
}

/// Whether a delivery has one of these names. A delivery with several elements, of which not even the event is known,
/// may have any of them, so a deny matches.
fn is_named<'a>(
    names: &Names,
    view: &RequestView<'a>,
    of: impl Fn(&'a webhooks::Facts) -> &'a Option<Arc<str>>,
    reading: Reading,
) -> bool {
    match fact(view, of) {
        Some(name) => names.contains(name),
        None => reading == Reading::Wide && view.delivery.is_some_and(|facts| facts.several && facts.event.is_none()),
    }
}

fn fact<'a>(view: &RequestView<'a>, of: impl Fn(&'a webhooks::Facts) -> &'a Option<Arc<str>>) -> Option<&'a str> {
    view.delivery.and_then(|facts| of(facts).as_deref())
}

/// Whether a name of a delivery is one of these. If several refs changed, any of them may be, so a deny matches.
fn one_of(
    names: &[Prefix],
    view: &RequestView<'_>,
    of: impl Fn(&webhooks::Facts) -> &Option<Arc<str>>,
    reading: Reading,
) -> bool {
    view.delivery.is_some_and(|facts| {
        let is_one = of(facts).as_deref().is_some_and(|name| names.iter().any(|known| known.matches(name)));
        is_one || (reading == Reading::Wide && facts.several)
    })
}

/// A flag in words.
fn told(flag: Option<bool>) -> String {
    flag.map_or_else(|| or_none(None).to_owned(), |flag| flag.to_string())
}
