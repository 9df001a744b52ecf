//! The policy: all rules and grants of a configuration, compiled.

mod canonical;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use data_encoding::HEXLOWER;

use crate::{
    authn::{Principal, principal::check_name},
    clock::Timestamp,
    config::{
        raw,
        report::{At, Report},
        resolver::Resolver,
    },
    kubernetes::Attributes,
    request::method,
    sha256::sha256,
};

use super::{
    RequestView,
    condition::{Met, Reading},
    decision::{Decision, Outcome},
    issuers::IssuerFacts,
    reach,
    rule::{Action, Case, Rule},
    tally::Tally,
    token::{TOKEN_ENDPOINT, misnamed},
    trigger::{DeniedTriggers, TriggerLimits},
    who::{self, Caller, Purpose, Who},
};

pub use self::canonical::SAME_WITHOUT;
use self::canonical::{canonical, scopes_of};

/// The group of the administrators in each cluster that kubeadm made, from 1.29 on.
const CLUSTER_ADMINS: &str = "kubeadm:cluster-admins";

/// All rules and grants, compiled. Immutable, and shared by all requests of a generation.
#[derive(Debug)]
pub struct Policy {
    /// Sorted by precedence, then by id: the order in the configuration does not matter.
    pub(super) rules: Vec<Rule>,
    /// The rules that can match on a route.
    by_route: HashMap<Box<str>, Box<[usize]>>,
    /// Routes with a rule whose decision can change as time passes.
    by_the_clock: HashSet<Box<str>>,
    grants: Vec<Grant>,
    /// The providers' names of scopes, by audience and by our names (`tokens.onward`).
    scopes_of: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) issuers: Arc<[IssuerFacts]>,
    source: Arc<str>,
    digest: Arc<str>,
}

/// A grant, compiled.
#[derive(Debug)]
struct Grant {
    id: Arc<str>,
    who: Vec<Who>,
    groups: Arc<[Arc<str>]>,
}

/// The Kubernetes groups of a principal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubernetesGroups {
    /// Each once, in the order of the grants. Shared, because everything that a request leaves behind contains them.
    pub groups: Arc<[Arc<str>]>,
    /// The grants that gave them.
    pub grants: Vec<Arc<str>>,
}

impl Policy {
    /// Compiles `rules` and `grants` of a configuration. `None` if anything is wrong, which the report then says.
    pub fn compile(root: &raw::Root, resolver: &mut Resolver) -> Option<Self> {
        Self::compile_with(root, scopes_of(root), resolver)
    }

    /// Compiles them with the providers' names of scopes at the time when they were in force, instead of those in
    /// `tokens.onward`.
    pub fn compile_with(
        root: &raw::Root,
        scopes_of: BTreeMap<String, BTreeMap<String, String>>,
        resolver: &mut Resolver,
    ) -> Option<Self> {
        let report = &mut resolver.report;
        let mark = report.mark();

        let issuers: Arc<[IssuerFacts]> = root.issuers.iter().map(IssuerFacts::new).collect();
        let mut ids = HashSet::new();
        let at = At::root().key("rules");
        let mut rules = Vec::with_capacity(root.rules.len());
        for (i, rule) in root.rules.iter().enumerate() {
            let at = at.index(i);
            check_id("rule", &rule.id, &mut ids, &at, report);
            rules.push(Rule::compile(rule, i, &at, root, report));
        }
        rules.sort_by(|a, b| (a.action.kind(), &a.id).cmp(&(b.action.kind(), &b.id)));

        let mut ids = HashSet::new();
        let at = At::root().key("grants");
        let mut grants = Vec::with_capacity(root.grants.len());
        for (i, grant) in root.grants.iter().enumerate() {
            let at = at.index(i);
            check_id("grant", &grant.id, &mut ids, &at, report);
            grants.push(compile_grant(grant, &at, root, report));
        }
        if report.has_errors_since(mark) {
            return None;
        }

        let by_route = root.routes.iter().map(|route| {
            let can_hit = rules.iter().enumerate().filter(|(_, rule)| rule.can_hit_on(route)).map(|(i, _)| i);
            (route.name.as_str().into(), can_hit.collect())
        });
        let of_tokens = rules.iter().enumerate().filter(|(_, rule)| rule.can_hit_on_tokens()).map(|(i, _)| i);
        let by_route = by_route.chain([(TOKEN_ENDPOINT.into(), of_tokens.collect())]);
        let by_route: HashMap<Box<str>, Box<[usize]>> = by_route.collect();
        let follows_the_clock = |i: &usize| rules.get(*i).is_some_and(Rule::follows_the_clock);
        let by_the_clock = by_route.iter().filter(|(_, can_hit)| can_hit.iter().any(follows_the_clock));
        let source = canonical(root, &scopes_of);
        Some(Self {
            scopes_of,
            by_the_clock: by_the_clock.map(|(route, _)| route.clone()).collect(),
            by_route,
            digest: HEXLOWER.encode(&sha256(&[source.as_bytes()])).into(),
            source: source.into(),
            rules,
            grants,
            issuers,
        })
    }

    /// Decides a request. Does not allocate if it allows, unless a rule has an expression.
    ///
    /// Server-side apply is a patch that may be a create, and must be allowed as both; its attributes are copied for
    /// that.
    ///
    /// A request whose body has not been read is decided as if the body contained the worst, unless the request is
    /// refused whatever its body contains.
    pub fn decide(&self, principal: &Principal, request: &RequestView<'_>) -> Decision {
        if request.is_unread()
            && let Some(refusal) = self.refuses_any_body(principal, request)
        {
            return refusal;
        }
        let decision = self.decide_as_it_is(principal, request);
        let Some(create) = create_of(request) else { return decision };
        let as_create = self.decide_as_create(principal, &RequestView { kubernetes: Some(&create), ..*request });
        let tells_create = is_refused_as_create(&decision, &as_create);
        let (mut decision, other) = if tells_create { (as_create, decision) } else { (decision, as_create) };
        decision.add_shadow(other.shadow);
        decision.as_create = tells_create;
        decision
    }

    /// Decides the create that an apply may be.
    pub(super) fn decide_as_create(&self, principal: &Principal, create: &RequestView<'_>) -> Decision {
        let refusal = if create.is_unread() { self.refuses_any_body(principal, create) } else { None };
        refusal.unwrap_or_else(|| self.decide_as_it_is(principal, create))
    }

    pub(super) fn decide_as_it_is(&self, principal: &Principal, request: &RequestView<'_>) -> Decision {
        self.decide_by(principal, request, |_| true)
    }

    /// Decides by only those rules for which `is_asked` holds.
    fn decide_by(
        &self,
        principal: &Principal,
        request: &RequestView<'_>,
        is_asked: impl Fn(&Rule) -> bool,
    ) -> Decision {
        // The API server's authorizer gets no verb either, and a request without one is not allowed. For non-resource
        // paths the verb is the method, whatever it is.
        let has_no_verb =
            |asked: &Attributes| asked.verb.is_empty() || !(asked.is_resource || method::is_known(request.method));
        if request.kubernetes.is_some_and(has_no_verb) {
            let error = format!("method {} has no verb in Kubernetes", request.method);
            let why = "the API server knows no verb for this method";
            return Decision::denied(why, "use GET, POST, PUT, PATCH or DELETE", Some(error));
        }
        if let Some(token) = request.token
            && let Some(refusal) = misnamed(self.scopes_of(token.audience), token.scope)
        {
            return refusal;
        }
        let case = Case::new(principal, self.issuer(principal), request);
        let mut tally = Tally::default();
        for rule in self.candidates(request.route).filter(|rule| is_asked(rule)) {
            tally.look(rule, &case);
        }
        tally.decide(|| {
            let allows = self.enforced(request.route).filter(|rule| rule.is_allow());
            let missing = allows.filter_map(|rule| rule.missing_scope(&case)).min_by_key(|(_, need)| need.is_some());
            Outcome::NoMatch {
                missing_scope: missing.map(|(scope, _)| Arc::clone(scope)),
                kept_scopes: missing.map(|_| self.kept_scopes(principal, request.route)).unwrap_or_default(),
                need: missing.and_then(|(_, need)| need).cloned().map(Box::new),
            }
        })
    }

    /// Whether a request to change a run may be allowed, as far as is known before its body is read: some rule would
    /// allow it with some body, perhaps after an approval, and no rule denies it with every body.
    pub fn may_allow(&self, principal: &Principal, request: &RequestView<'_>) -> bool {
        let case = Case::new(principal, self.issuer(principal), request);
        !self.enforced(request.route).any(|rule| rule.denies_any(&case))
            && self.enforced(request.route).any(|rule| rule.may_allow(&case))
    }

    /// The refusal of a request that no body would make acceptable, so that the body need not be read. `None` if some
    /// body may be allowed, or if a rule in `mode: shadow` would allow some body: the body then has to be read to know
    /// which.
    pub fn refuses_any_body(&self, principal: &Principal, request: &RequestView<'_>) -> Option<Decision> {
        let case = Case::new(principal, self.issuer(principal), request);
        let is_tried = |rule: &Rule| rule.shadow && rule.is_about_bodies() && rule.may_allow(&case);
        if self.may_allow(principal, request) || self.candidates(request.route).any(is_tried) {
            return None;
        }
        // What rules about bodies would say of this body is unknown, and does not change the refusal.
        let decision = self.decide_by(principal, request, |rule| !rule.is_about_bodies());
        (!decision.is_allow()).then_some(decision)
    }

    /// Returns what rules say about the Triggers that an allowed delivery may set off; `None` if no rule on its route
    /// has `trigger`.
    pub fn trigger_limits(&self, principal: &Principal, request: &RequestView<'_>) -> Option<TriggerLimits> {
        if self.enforced(request.route).all(|rule| rule.trigger().is_none()) {
            return None;
        }
        let case = Case::new(principal, self.issuer(principal), request);
        let mut limits = TriggerLimits { allow: Vec::new(), deny: Vec::new(), policy: Arc::clone(&self.digest) };
        for rule in self.enforced(request.route).filter(|rule| rule.may_hit(&case)) {
            match (&rule.action, rule.trigger()) {
                (Action::Allow(need), trigger) if need.missing(&principal.login, request.now).is_none() => {
                    limits.allow.push(trigger.cloned().unwrap_or_default());
                }
                (Action::Deny, Some(trigger)) => {
                    limits.deny.push(DeniedTriggers { rule: Arc::clone(&rule.id), triggers: trigger.clone() });
                }
                _ => {}
            }
        }
        Some(limits)
    }

    /// Returns the scopes that allows on a route ask for, among the allows that may apply to callers of these issuers.
    pub fn scopes_on(&self, route: &str, is_meant: impl Fn(&str) -> bool) -> BTreeSet<&str> {
        let allows = self.enforced(route).filter(|rule| rule.is_allow());
        allows.filter(|rule| rule.is_of_issuer(&is_meant)).flat_map(Rule::scopes).collect()
    }

    /// Returns those of the principal's scopes that some allow on a route asks for, each once.
    fn kept_scopes(&self, principal: &Principal, route: &str) -> Vec<Arc<str>> {
        let known = self.scopes_on(route, |issuer| *issuer == *principal.issuer);
        let mut kept: Vec<Arc<str>> =
            principal.scopes.iter().filter(|scope| known.contains(&***scope)).cloned().collect();
        kept.sort_unstable();
        kept.dedup();
        kept
    }

    /// Returns the scopes of tokens for an audience that some allow names in full. A caller who asks for no scope by
    /// name may get these.
    pub fn token_scopes(&self, audience: &str) -> BTreeSet<&str> {
        let rules = self.candidates(TOKEN_ENDPOINT).filter(|rule| rule.is_allow());
        rules.flat_map(|rule| rule.token_scopes(audience)).collect()
    }

    /// The provider's names of the scopes of an audience, by our names.
    pub(super) fn scopes_of(&self, audience: &str) -> Option<&BTreeMap<String, String>> {
        self.scopes_of.get(audience)
    }

    /// The longest lifetime of a token that these rules give.
    pub fn token_lifetime(&self, rules: &[Arc<str>]) -> Option<Duration> {
        let given = self.candidates(TOKEN_ENDPOINT).filter(|rule| rules.contains(&rule.id));
        given.filter_map(Rule::token_lifetime).min()
    }

    /// Returns the Kubernetes groups that grants give a principal; groups that no grant maps are not among them.
    pub fn kubernetes_groups(&self, principal: &Principal) -> KubernetesGroups {
        let caller = Caller { principal, issuer: self.issuer(principal) };
        let is_met = |grant: &&Grant| grant.who.iter().all(|who| who.met(&caller, Reading::Strict) == Met::Yes);
        let mut met = self.grants.iter().filter(is_met);
        let Some(first) = met.next() else { return KubernetesGroups::default() };
        let mut grants = vec![Arc::clone(&first.id)];
        let mut others = Vec::new();
        for grant in met {
            grants.push(Arc::clone(&grant.id));
            others.extend(&*grant.groups);
        }
        // Usually one grant matches.
        let groups = match others.is_empty() {
            true => Arc::clone(&first.groups),
            false => each_once(first.groups.iter().chain(others)),
        };
        KubernetesGroups { groups, grants }
    }

    /// The next time at which the window of a rule opens or closes, so that an earlier decision may change.
    pub fn next_change(&self, after: Timestamp) -> Option<Timestamp> {
        self.rules.iter().filter_map(|rule| rule.next_change(after)).min()
    }

    /// Whether its decisions may also change at times that cannot be predicted.
    pub fn follows_the_clock(&self) -> bool {
        !self.by_the_clock.is_empty()
    }

    /// The same for requests on one route.
    pub fn follows_the_clock_on(&self, route: &str) -> bool {
        self.by_the_clock.contains(route)
    }

    /// Names of the parameters and labels of runs that rules look at.
    pub fn run_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rules.iter().flat_map(Rule::run_names)
    }

    /// Whether a rule looks at the service accounts of runs.
    pub fn looks_at_accounts_of_runs(&self) -> bool {
        self.rules.iter().any(Rule::looks_at_accounts_of_runs)
    }

    /// SHA-256 of [`Policy::source`], in hex.
    pub fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    /// Rules and grants, and the providers' names of their scopes, in canonical form: JSON that parses as a
    /// [`raw::PolicyFile`], with sorted keys and ids and without unset keys.
    pub fn source(&self) -> &Arc<str> {
        &self.source
    }

    pub(super) fn issuer(&self, principal: &Principal) -> Option<&IssuerFacts> {
        self.issuers.iter().find(|issuer| issuer.name == principal.issuer)
    }

    /// The rules that can match on a route. On a route that the policy does not know there are none, so everything is
    /// denied.
    pub(super) fn candidates<'a>(&'a self, route: &str) -> impl Iterator<Item = &'a Rule> {
        self.candidate_places(route).iter().filter_map(|i| self.rules.get(*i))
    }

    /// The candidates that decide. Rules in `mode: shadow` only leave a trace.
    pub(super) fn enforced<'a>(&'a self, route: &str) -> impl Iterator<Item = &'a Rule> {
        self.candidates(route).filter(|rule| !rule.shadow)
    }

    /// The indices of the candidates in [`Policy::rules`].
    pub(super) fn candidate_places(&self, route: &str) -> &[usize] {
        self.by_route.get(route).map(|indices| &**indices).unwrap_or_default()
    }
}

/// The create that a server-side apply may be; `None` for any other request.
pub(super) fn create_of(request: &RequestView<'_>) -> Option<Attributes> {
    let asked = request.kubernetes.filter(|asked| asked.apply)?;
    Some(Attributes { verb: "create".to_owned(), ..asked.clone() })
}

/// Whether an apply is refused because of the create that it may be. If it is denied as a patch, the patch is reported
/// as the reason, as it is when the body is not read.
pub(super) fn is_refused_as_create(patch: &Decision, create: &Decision) -> bool {
    !create.is_allow() && patch.outcome.effect() != raw::Effect::Deny
}

fn check_id<'a>(what: &str, id: &'a str, seen: &mut HashSet<&'a str>, at: &At, report: &mut Report) {
    let is_good = !id.is_empty()
        && id.len() <= 128
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':'));
    if !is_good {
        report
            .error(&at.key("id"), format!("`{}` cannot be the id of a {what}", id.escape_debug()))
            .help("write letters, digits and `-_./:`, at most 128");
    } else if !seen.insert(id) {
        report
            .error(&at.key("id"), format!("another {what} has the id `{id}`"))
            .help("`explain` and the audit trail refer to it by its id");
    }
}

/// A role is bound to groups, so it reaches everybody who has one of them, whichever grant gave it.
fn check_roles(raw: &raw::Grant, at: &At, root: &raw::Root, report: &mut Report) {
    for (i, given) in raw.tekton_roles.iter().enumerate() {
        for group in &raw.kubernetes_groups {
            let gives_group = |grant: &&raw::Grant| grant.id != raw.id && grant.kubernetes_groups.contains(group);
            let mut others = root.grants.iter().filter(gives_group);
            if let Some(other) = others.find(|other| !other.tekton_roles.contains(given)) {
                report
                    .error(
                        &at.key("tekton_roles").index(i),
                        format!("grant `{}` gives the group `{group}` too, and would give this role with it", other.id),
                    )
                    .help("give the role to a group of its own");
            }
        }
    }
}

fn compile_grant(raw: &raw::Grant, at: &At, root: &raw::Root, report: &mut Report) -> Grant {
    if raw.kubernetes_groups.is_empty() {
        report.error(&at.key("kubernetes_groups"), "a grant needs at least one Kubernetes group");
    }
    for (i, group) in raw.kubernetes_groups.iter().enumerate() {
        let at = at.key("kubernetes_groups").index(i);
        if let Err(why) = check_name(group) {
            report
                .error(&at, format!("the group `{}` {why}", group.escape_debug()))
                .help("bind the intended ClusterRole to a group of your own");
        } else if group == CLUSTER_ADMINS {
            report
                .warning(
                    &at,
                    format!("kubeadm binds the group `{group}` to `cluster-admin`: it may do everything there"),
                )
                .help("bind the intended ClusterRole to a group of your own");
        }
    }
    check_roles(raw, at, root, report);
    reach::warn_of_kind(&raw.who, false, &at.key("who"), root, report);
    reach::warn_of_clients(&raw.who, &at.key("who"), root, report);
    reach::warn_of_email(&raw.who, &at.key("who"), root, report);
    let groups: Vec<Arc<str>> = raw.kubernetes_groups.iter().map(|group| group.as_str().into()).collect();
    Grant {
        id: raw.id.as_str().into(),
        who: who::compile(&raw.who, Purpose::Grant, &at.key("who"), root, report),
        groups: each_once(&groups),
    }
}

fn each_once<'a>(groups: impl IntoIterator<Item = &'a Arc<str>>) -> Arc<[Arc<str>]> {
    let mut once: Vec<Arc<str>> = Vec::new();
    for group in groups {
        if !once.contains(group) {
            once.push(Arc::clone(group));
        }
    }
    once.into()
}

#[cfg(test)]
mod tests;
