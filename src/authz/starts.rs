//! Which rules may decide about starting runs in a namespace, whoever asks. Conditions on callers are reported as they
//! are written. Conditions on requests are checked against each request that can create a run there, and those on a
//! body, a delivery or the time count as met. So a rule that is not in the result lets nobody start a run, and one that
//! is in it may.

use std::{net::Ipv4Addr, sync::Arc};

use http::Method;
use serde::Serialize;

use super::{
    RequestView,
    names::{HostPattern, PathPattern},
    policy::Policy,
    rule::{Rule, RuleAction},
    who::{facts_of_an_issuer, says_nothing, speaks_of_actors},
};
use crate::{
    authn::break_glass,
    clock::Timestamp,
    config::raw::{self, EventListener, RouteKind, RunIntent},
    kubernetes::Attributes,
    webhooks,
};

/// A rule that may decide about starting runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRule {
    pub rule: Arc<str>,
    pub does: RuleAction,
    /// The routes on which it does, in the order of the configuration.
    pub routes: Vec<StartRoute>,
}

/// A route by which a run can be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StartRoute {
    pub name: String,
    pub through: Through,
}

/// Whose rights in the cluster the run is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Through {
    /// Those of the person, by the groups of grants.
    Impersonation,
    /// Those of the Dashboard's back end, whoever the person is.
    Dashboard,
    /// Those of the service account of the EventListener or of its Trigger. `None`: the configuration does not name the
    /// EventListener, which may be in any namespace.
    EventListener(Option<EventListener>),
}

/// One kind of request by which a run can be started.
pub(super) struct Start<'a> {
    /// Its host and its path are not used.
    pub view: RequestView<'a>,
    pub hosts: &'a [HostPattern],
    pub paths: Vec<PathPattern>,
    pub intent: RunIntent,
}

impl Policy {
    /// Returns the enforced rules that may decide about starting PipelineRuns or TaskRuns in a namespace: allows and
    /// approves that may let somebody do it, and denies that may keep somebody from it. `root` is the configuration
    /// that the policy was compiled from.
    pub fn starts(&self, root: &raw::Root, namespace: &str) -> Vec<StartRule> {
        self.starts_by(root, namespace, false)
    }

    /// The rules in `mode: shadow` that would, if they were enforced.
    pub fn shadow_starts(&self, root: &raw::Root, namespace: &str) -> Vec<StartRule> {
        self.starts_by(root, namespace, true)
    }

    fn starts_by(&self, root: &raw::Root, namespace: &str, shadow: bool) -> Vec<StartRule> {
        let mut starts = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.shadow == shadow) {
            let Some(raw) = rule.written(root) else { continue };
            let may_be_on = |route: &&raw::Route| rule.can_hit_on(route) && fits_credentials(raw, route, root);
            let routes = root.routes.iter().filter(may_be_on).filter_map(|route| {
                let through = self.through(rule, raw, route, namespace)?;
                Some(StartRoute { name: route.name.clone(), through })
            });
            let routes: Vec<StartRoute> = routes.collect();
            if !routes.is_empty() {
                starts.push(StartRule { rule: Arc::clone(&rule.id), does: rule.action.kind(), routes });
            }
        }
        starts
    }

    fn through(&self, rule: &Rule, raw: &raw::Rule, route: &raw::Route, namespace: &str) -> Option<Through> {
        match route.kind {
            RouteKind::Webhook => {
                let listener = route.event_listener.as_ref();
                // A Trigger creates its runs in its own namespace unless it says otherwise.
                let names_triggers_there = || {
                    let named = raw.on.trigger.iter().flat_map(|trigger| &trigger.names);
                    named.filter_map(|name| name.split_once('/')).any(|(of, _)| of == namespace)
                };
                let is_there =
                    listener.is_none_or(|listener| listener.namespace == namespace) || names_triggers_there();
                let may = is_there && rule.may_be_on(&delivery(route, &patterns(&route.hosts, HostPattern::parse)));
                may.then(|| Through::EventListener(listener.cloned()))
            }
            RouteKind::Dashboard | RouteKind::Kubernetes => {
                let through = if route.reaches_kubernetes() { Through::Impersonation } else { Through::Dashboard };
                self.may_be_on_requests(rule, raw, route, namespace).then_some(through)
            }
            RouteKind::Http => None,
        }
    }

    /// Whether a rule may match a POST, or the create that an apply may be if that is also allowed as the patch that it
    /// is.
    fn may_be_on_requests(&self, rule: &Rule, raw: &raw::Rule, route: &raw::Route, namespace: &str) -> bool {
        let hosts = patterns(&route.hosts, HostPattern::parse);
        let on_route = patterns(&route.paths, PathPattern::parse);
        // A dashboard route that leads to a cluster serves the whole API.
        let is_whole = on_route.is_empty() || (route.kind == RouteKind::Dashboard && route.reaches_kubernetes());
        // An apply names the run, and a rule may name runs.
        let named = raw.on.kubernetes.iter().flat_map(|on| &on.names).find(|name| *name != "*");
        let name = named.map_or("run", String::as_str);
        let requests = ["v1", "v1beta1"].into_iter().flat_map(|version| {
            ["pipelineruns", "taskruns"].into_iter().flat_map(move |resource| {
                let path = format!("/apis/tekton.dev/{version}/namespaces/{namespace}/{resource}");
                let applied = format!("{path}/{name}");
                [(path, Method::POST, RunIntent::Create), (applied, Method::PATCH, RunIntent::Apply)]
            })
        });
        requests.into_iter().any(|(path, method, intent)| {
            let takes = route.methods.is_empty() || route.methods.iter().any(|taken| taken == method.as_str());
            if !takes || !(is_whole || on_route.iter().any(|pattern| pattern.matches(&path))) {
                return false;
            }
            let Ok(attributes) = Attributes::parse(&method, &path, None) else { return false };
            let may_be = |rule: &Rule, verb: &str| {
                let attributes = Attributes { verb: verb.to_owned(), ..attributes.clone() };
                let kubernetes = route.reaches_kubernetes().then_some(&attributes);
                let view = view(route, &method);
                let kind = if kubernetes.is_some() { RouteKind::Kubernetes } else { view.kind };
                let view = RequestView { kubernetes, kind, ..view };
                let paths = PathPattern::parse(&path).into_iter().collect();
                rule.may_be_on(&Start { view, hosts: &hosts, paths, intent })
            };
            let may_patch =
                |other: &Rule| !other.shadow && !other.is_deny() && other.can_hit_on(route) && may_be(other, "patch");
            let is_apply = intent == RunIntent::Apply;
            may_be(rule, "create") && (!is_apply || rule.is_deny() || self.rules.iter().any(may_patch))
        })
    }
}

/// Whether deliveries may match a rule, judging by its routes, its hosts and `who`.
pub fn may_be_of_deliveries(rule: &raw::Rule, root: &raw::Root) -> bool {
    let on = &rule.on;
    let is_of_others = on.kubernetes.is_some() || on.run.is_some() || on.token.is_some() || on.pages.is_some();
    let own = patterns(&on.hosts, HostPattern::parse);
    let is_there = |route: &raw::Route| {
        let hosts = patterns(&route.hosts, HostPattern::parse);
        own.is_empty() || own.iter().any(|own| hosts.iter().any(|host| own.meets(host)))
    };
    let mut hooks = root.routes.iter().filter(|route| route.kind == RouteKind::Webhook);
    !is_of_others
        && hooks.any(|route| {
            let is_named = on.routes.is_empty() || on.routes.contains(&route.name);
            is_named && is_there(route) && fits_credentials(rule, route, root)
        })
}

/// Whether a caller that a route accepts can match `who`, judging by the kind of credential and its issuer.
pub(super) fn fits_credentials(rule: &raw::Rule, route: &raw::Route, root: &raw::Root) -> bool {
    let who = &rule.who;
    if who.anonymous {
        return route.schemes.contains(&raw::Scheme::Anonymous);
    }
    // A deny is read wide, so it also matches if a fact is withheld.
    let is_deny = matches!(rule.action, raw::Action::Deny);
    let named = |issuer: &str| who.issuers.is_empty() || who.issuers.iter().any(|named| named == issuer);
    let taken = |issuer: &&raw::Issuer| named(&issuer.name) && route.takes_issuer(&issuer.name);
    let is_login = |client: &str| is_deny || who.clients.is_empty() || who.clients.iter().any(|named| named == client);
    let by_login = || who.service_accounts.is_empty() && (is_deny || who.on_behalf_of.is_none());
    route.schemes.iter().any(|scheme| match scheme {
        raw::Scheme::Bearer => {
            // A deny of an actor goes by the issuer of either party.
            let by_actor = is_deny && speaks_of_actors(who);
            let may_be = |issuer: &&raw::Issuer| taken(issuer) || (by_actor && route.takes_issuer(&issuer.name));
            let mut signing = root.issuers.iter().filter(may_be);
            who.webhooks.is_empty() && signing.any(|issuer| route.fits_tokens_of(issuer))
        }
        raw::Scheme::Session => {
            let mut logins = root.issuers.iter().filter(taken).filter_map(|issuer| issuer.login.as_ref());
            who.webhooks.is_empty() && by_login() && logins.any(|login| is_login(&login.client.id))
        }
        // A delivery has its own facts, and none from an issuer.
        raw::Scheme::Webhook => {
            let is_sender = || route.webhook.as_ref().is_some_and(|sender| who.webhooks.contains(sender));
            (who.webhooks.is_empty() || is_sender()) && fits_deliveries(who, is_deny)
        }
        // It provides groups and a name, and does not come from an issuer that is only implied.
        raw::Scheme::BreakGlass => {
            let is_implied = who.issuers.is_empty() && facts_of_an_issuer(who).is_some();
            let may_be = by_login() && (is_deny || (who.clients.is_empty() && who.scopes.is_empty() && !is_implied));
            root.break_glass.is_some() && who.webhooks.is_empty() && named(break_glass::ISSUER) && may_be
        }
        raw::Scheme::Anonymous => is_deny && says_nothing(who),
    })
}

/// Whether a sender of deliveries can match: it is an agent about which no issuer says anything.
fn fits_deliveries(who: &raw::Who, is_deny: bool) -> bool {
    let told_by_issuers = [&who.groups, &who.scopes, &who.clients, &who.service_accounts];
    let is_told = || {
        !told_by_issuers.into_iter().all(Vec::is_empty)
            || !who.claims.is_empty()
            || who.on_behalf_of.is_some()
            || (who.webhooks.is_empty() && facts_of_an_issuer(who).is_some())
    };
    who.kind.is_none_or(|kind| kind == raw::Kind::Agent)
        && (who.issuers.is_empty() || who.issuers.iter().any(|issuer| webhooks::of_issuer(issuer).is_some()))
        && (is_deny || !is_told())
}

fn delivery<'a>(route: &'a raw::Route, hosts: &'a [HostPattern]) -> Start<'a> {
    let mut paths = patterns(&route.paths, PathPattern::parse);
    if paths.is_empty() {
        paths.extend(PathPattern::parse("/*"));
    }
    let view = RequestView { event_listener: route.event_listener.as_ref(), ..view(route, &Method::POST) };
    Start { view, hosts, paths, intent: RunIntent::Create }
}

fn view<'a>(route: &'a raw::Route, method: &'a Method) -> RequestView<'a> {
    RequestView {
        route: &route.name,
        kind: route.kind,
        host: "",
        path: "",
        method,
        upgrade: false,
        address: Ipv4Addr::UNSPECIFIED.into(),
        event_listener: None,
        kubernetes: None,
        run: None,
        delivery: None,
        trigger: None,
        token: None,
        now: Timestamp::MAX,
    }
}

/// Invalid patterns are skipped: they were reported before.
fn patterns<T, E>(texts: &[String], parse: impl Fn(&str) -> Result<T, E>) -> Vec<T> {
    texts.iter().filter_map(|text| parse(text).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolver::Resolver;

    const GROUND: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human, audiences: [door], login: {client: {id: door, secret: {env: SECRET}}}}
  - {name: partner, issuer: 'https://partner.example', kind: human, audiences: [door], login: {client: {id: door, secret: {env: SECRET}}}}
webhooks:
  - {name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}
interceptor: {host: interceptor.example, kubernetes: api}
external_host: id.example
tokens: {exchange: [{issuer: corp}]}
routes:
  - {name: api, kind: kubernetes, hosts: ['*.example'], schemes: [bearer], issuers: [corp], upstream: api}
  - {name: reads, kind: kubernetes, hosts: [reads.example], methods: [GET], schemes: [bearer], upstream: api}
  - {name: core, kind: kubernetes, hosts: [core.example], paths: [/api/*], schemes: [bearer], upstream: api}
  - {name: board, kind: dashboard, hosts: [board.example], paths: [/board/*], schemes: [session], upstream: board, kubernetes: api}
  - {name: old, kind: dashboard, hosts: [old.example], schemes: [session], upstream: board}
  - {name: web, kind: http, hosts: [web.example], schemes: [bearer, anonymous], upstream: web}
  - {name: hooks, kind: webhook, hosts: [hooks.example], paths: [/github], schemes: [webhook], webhook: gh, upstream: listener,
      event_listener: {namespace: ci, name: build}}
  - {name: far, kind: webhook, hosts: [far.example], schemes: [webhook], webhook: gh, upstream: listener,
      event_listener: {namespace: prod, name: deploy}}
";

    /// Returns `DOES ROUTE,ROUTE` of the only rule.
    fn starts(rule: &str) -> String {
        starts_on(GROUND, rule)
    }

    fn starts_on(ground: &str, rule: &str) -> String {
        let root: raw::Root = serde_saphyr::from_str(&format!("{ground}rules: [{{id: a, {rule}}}]")).unwrap();
        let mut resolver = Resolver::default();
        let policy = Policy::compile(&root, &mut resolver);
        let policy = policy.unwrap_or_else(|| panic!("{rule}: {:?}", resolver.report.problems()));
        let starts = policy.starts(&root, "ci");
        let one = |start: &StartRule| {
            let routes: Vec<&str> = start.routes.iter().map(|route| route.name.as_str()).collect();
            format!("{} {}", start.does.as_str(), routes.join(","))
        };
        starts.iter().map(one).collect()
    }

    #[test]
    fn a_rule_counts_where_it_may_decide_about_a_create() {
        const REQUESTS: &str = "allow api,board";
        for (rule, expected) in [
            ("do: allow", "allow api,board,old,hooks"),
            ("do: allow, mode: shadow", ""),
            ("do: {approve: {by: {users: [x]}}}, on: {run: {does: [create]}}", "approve api,board"),
            // By the attributes of the request.
            ("do: allow, on: {kubernetes: {verbs: [create]}}", REQUESTS),
            ("do: allow, on: {kubernetes: {verbs: [write], namespaces: [ci, prod]}}", REQUESTS),
            ("do: allow, on: {kubernetes: {verbs: [read]}}", ""),
            ("do: allow, on: {kubernetes: {verbs: [patch]}}", ""),
            ("do: allow, on: {kubernetes: {namespaces: [prod]}}", ""),
            ("do: allow, on: {kubernetes: {resources: [taskruns]}}", REQUESTS),
            ("do: allow, on: {kubernetes: {resources: [customruns, pods]}}", ""),
            ("do: allow, on: {kubernetes: {api_groups: ['']}}", ""),
            // An apply names the run.
            ("do: allow, on: {kubernetes: {names: [nightly]}}", REQUESTS),
            ("do: allow, on: {kubernetes: {names: [nightly]}, methods: [POST]}", ""),
            ("do: allow, on: {kubernetes: {names: [nightly]}, methods: [PATCH]}", REQUESTS),
            // By what happens to the run.
            ("do: allow, on: {run: {does: [create], inline: false, params: {a: [b]}}}", REQUESTS),
            ("do: allow, on: {run: {does: [apply]}}", REQUESTS),
            ("do: allow, on: {run: {does: [cancel, pause, start, change]}}", ""),
            ("do: allow, on: {run: {code: [build]}}", REQUESTS),
            // By the destination.
            ("do: allow, on: {namespace: ci}", "allow api,board,hooks"),
            ("do: allow, on: {namespace: prod}", ""),
            ("do: allow, on: {routes: [api]}", "allow api"),
            ("do: allow, on: {routes: [reads, core, web]}", ""),
            ("do: allow, on: {hosts: [board.example]}", REQUESTS),
            ("do: allow, on: {hosts: ['*.board.example']}", ""),
            ("do: allow, on: {paths: ['/apis/tekton.dev/*']}", "allow api,board,old"),
            ("do: allow, on: {paths: [/apis/tekton.dev/v1/namespaces/ci/pipelineruns]}", "allow api,board,old"),
            ("do: allow, on: {paths: ['/api/*']}", ""),
            ("do: allow, on: {methods: [GET, DELETE]}", ""),
            // What is only known later is left open.
            (
                "do: allow, on: {routes: [api], time: {from: '08:00', to: '09:00'}, addresses: [192.0.2.0/24]}",
                "allow api",
            ),
            ("do: allow, on: {routes: [api]}, when: 'false', need: {acr: [gold]}", "allow api"),
            // Deliveries.
            (
                "do: allow, on: {event: [push], branch: [main], tag: ['v*'], action: [opened], fork: false, draft: true}",
                "allow hooks",
            ),
            ("do: allow, on: {event_listener: build}", "allow hooks"),
            ("do: allow, on: {event_listener: deploy}", ""),
            ("do: allow, on: {paths: ['/github/*'], event: [push]}", "allow hooks"),
            ("do: allow, on: {paths: [/gitlab], event: [push]}", ""),
            ("do: allow, on: {trigger: {names: [build]}}", "allow hooks"),
            ("do: allow, on: {trigger: {names: ['ci/build']}}", "allow hooks,far"),
            ("do: allow, on: {trigger: {service_accounts: [builder]}}", "allow hooks"),
            // Who can reach the route at all.
            ("do: allow, who: {webhooks: [gh]}", "allow hooks"),
            ("do: allow, who: {issuers: [partner]}", "allow board,old"),
            ("do: allow, who: {issuers: [corp], groups: [dev]}", "allow api,board,old"),
            ("do: allow, who: {kind: human}", "allow api,board,old"),
            ("do: allow, who: {kind: agent}", "allow api,board,old,hooks"),
            ("do: allow, who: {repositories: ['github:7']}", "allow api,board,old,hooks"),
            ("do: deny, who: {issuers: [corp], claims: {a: [b]}}", "deny api,board,old"),
            ("do: allow, who: {anonymous: true}, on: {routes: [web]}", ""),
            // Requests for tokens start no runs.
            ("do: deny, on: {token: {audiences: [x]}}", ""),
            // A deny is read wide.
            ("do: deny", "deny api,board,old,hooks"),
            ("do: deny, on: {kubernetes: {names: [nightly]}, methods: [POST]}", "deny api,board"),
            ("do: deny, on: {run: {does: [change]}}", "deny api,board"),
            ("do: deny, on: {run: {does: [cancel]}}", ""),
            ("do: deny, on: {kubernetes: {namespaces: [prod]}}", ""),
        ] {
            assert_eq!(starts(rule), expected, "{rule}");
        }
    }

    /// Readers of the list look into each of its routes.
    #[test]
    fn a_route_on_which_a_rule_can_match_no_caller_is_not_listed() {
        const DOORS: &str = "
issuers:
  - {name: corp, issuer: 'https://corp.example', kind: human, audiences: [door], login: {client: {id: door, secret: {env: SECRET}}}}
  - {name: pods, issuer: 'https://pods.example', preset: kubernetes}
webhooks:
  - {name: gh, sender: github, secrets: [{secret: {env: SECRET}}]}
break_glass: {until: '2024-01-01T00:00:00Z', certificates: []}
routes:
  - {name: board, kind: dashboard, hosts: [board.example], schemes: [session], upstream: board, kubernetes: api}
  - {name: glass, kind: kubernetes, hosts: [glass.example], schemes: [break_glass], upstream: api}
  - {name: api, kind: kubernetes, hosts: [api.example], schemes: [bearer], upstream: api}
  - {name: hooks, kind: webhook, hosts: [hooks.example], schemes: [webhook], webhook: gh, upstream: listener,
      event_listener: {namespace: ci, name: build}}
";
        for (rule, expected) in [
            ("do: allow", "allow board,glass,api,hooks"),
            ("do: allow, who: {issuers: [corp]}", "allow board,api"),
            ("do: allow, who: {issuers: [pods]}", "allow api"),
            ("do: allow, who: {issuers: [break-glass], groups: [sre]}", "allow glass"),
            ("do: allow, who: {issuers: [corp, break-glass], groups: [sre]}", "allow board,glass,api"),
            ("do: allow, who: {issuers: [corp], clients: [nightly-builds]}", "allow api"),
            ("do: allow, who: {issuers: [corp], clients: [door]}", "allow board,api"),
            ("do: allow, who: {issuers: [corp], on_behalf_of: {groups: [dev]}}", "allow api"),
            ("do: allow, who: {service_accounts: [ci/builder]}", "allow api"),
            ("do: allow, who: {webhooks: [gh]}", "allow hooks"),
            ("do: allow, who: {users: ['break-glass:alice']}", "allow board,glass,api,hooks"),
            // A deny also matches if the client is unknown.
            ("do: deny, who: {issuers: [corp], clients: [nightly-builds]}", "deny board,api"),
            // So it does by the issuer of an actor.
            ("do: deny, who: {issuers: [break-glass], subjects: [bot]}", "deny glass,api"),
            ("do: deny, who: {issuers: [break-glass], kind: agent}", "deny glass,api"),
            ("do: deny, who: {issuers: [break-glass]}", "deny glass"),
        ] {
            assert_eq!(starts_on(DOORS, rule), expected, "{rule}");
        }
        let one = DOORS.replace("  - {name: pods, issuer: 'https://pods.example', preset: kubernetes}\n", "");
        assert_eq!(starts_on(&one, "do: allow, who: {groups: [sre]}"), "allow board,api", "of the one issuer");
        let login_alone = DOORS.replace("audiences: [door], ", "");
        assert_eq!(starts_on(&login_alone, "do: allow, who: {issuers: [corp]}"), "allow board", "of no token");
        // Such a route was left out, but a token can have its audience beside that of the issuer.
        let narrow = DOORS.replace("schemes: [bearer], upstream", "schemes: [bearer], audiences: [other], upstream");
        assert_eq!(starts_on(&narrow, "do: allow, who: {issuers: [corp]}"), "allow board,api", "of two audiences");
        assert_eq!(starts_on(&narrow, "do: allow, who: {issuers: [pods]}"), "", "of an issuer without audiences");
        let (head, tail) = DOORS.split_once("break_glass: ").unwrap();
        let closed = format!("{head}{}", tail.split_once('\n').unwrap().1);
        assert_eq!(
            starts_on(&closed, "do: allow, who: {issuers: [break-glass], groups: [sre]}"),
            "",
            "there is no door"
        );
    }

    /// It was listed, though no create names a run, and an apply is refused that nobody may send as a patch.
    #[test]
    fn an_allow_of_creates_by_name_counts_only_beside_one_of_the_patch_that_an_apply_is() {
        const BY_NAME: &str = "do: allow, on: {kubernetes: {verbs: [create], names: [nightly]}}";
        for (other, expected) in [
            ("do: deny", ""),
            ("do: allow, on: {kubernetes: {verbs: [read]}}", ""),
            ("do: allow, on: {kubernetes: {verbs: [patch]}}, mode: shadow", ""),
            ("do: allow, on: {kubernetes: {verbs: [patch], namespaces: [prod]}}", ""),
            ("do: allow, on: {kubernetes: {verbs: [patch], names: [nightly]}}", "allow api,board"),
            ("do: allow, on: {routes: [api], kubernetes: {verbs: [patch]}}", "allow api"),
        ] {
            let told = starts(&format!("{BY_NAME}}}, {{id: b, {other}"));
            assert_eq!(told.replace("deny api,board,old,hooks", ""), expected, "{other}");
        }
    }

    #[test]
    fn each_route_to_a_run_is_listed_with_the_account_that_starts_it() {
        let root: raw::Root = serde_saphyr::from_str(&format!("{GROUND}rules: [{{id: a, do: allow}}]")).unwrap();
        let policy = Policy::compile(&root, &mut Resolver::default()).unwrap();
        let starts = policy.starts(&root, "ci");
        let through: Vec<&Through> = starts[0].routes.iter().map(|route| &route.through).collect();
        let listener = EventListener { namespace: "ci".to_owned(), name: "build".to_owned() };
        let listener = Through::EventListener(Some(listener));
        assert_eq!(through, [&Through::Impersonation, &Through::Impersonation, &Through::Dashboard, &listener]);
    }
}
