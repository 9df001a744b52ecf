//! One compiled rule: conditions that must all hold.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    authn::{LoginFacts, NeededLogin, Principal},
    config::{
        raw,
        report::{At, Report},
        values::Span,
    },
    issuers::presets::LoginQuirks,
};

use super::{
    RequestView,
    cel::Expression,
    condition::{Condition, Met, Reading},
    deliveries,
    issuers::IssuerFacts,
    names::Names,
    on::{self, On},
    reach,
    run::RunCondition,
    starts::{self, Start},
    token::{self, TokenCondition},
    trigger, when,
    who::{self, Caller, Purpose, Who},
};

/// A principal and its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'a> {
    pub caller: Caller<'a>,
    pub request: &'a RequestView<'a>,
}

impl<'a> Case<'a> {
    pub(super) fn new(principal: &'a Principal, issuer: Option<&'a IssuerFacts>, request: &'a RequestView<'a>) -> Self {
        Self { caller: Caller { principal, issuer }, request }
    }
}

/// What a rule does.
#[derive(Debug)]
pub(super) enum Action {
    Deny,
    Approve(Arc<Approval>),
    Allow(NeededLogin),
}

impl Action {
    pub(super) fn kind(&self) -> RuleAction {
        match self {
            Self::Deny => RuleAction::Deny,
            Self::Approve(_) => RuleAction::Approve,
            Self::Allow(_) => RuleAction::Allow,
        }
    }
}

/// The action of a rule without its details. The variants are in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    Deny,
    Approve,
    Allow,
}

impl RuleAction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Approve => "approve",
            Self::Allow => "allow",
        }
    }
}

/// A required approval by other people.
#[derive(Debug)]
pub struct Approval {
    /// The rule that requires it.
    pub rule: Arc<str>,
    /// How many different people must approve.
    pub count: u8,
}

/// A compiled rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub id: Arc<str>,
    /// Its index in the rules of the configuration.
    place: usize,
    pub why: Option<Arc<str>>,
    pub fix: Option<Arc<str>>,
    pub action: Action,
    /// Whether it is in `mode: shadow`, so that it decides nothing.
    pub shadow: bool,
    reading: Reading,
    on: Vec<On>,
    who: Vec<Who>,
    when: Option<Expression>,
}

/// The result of evaluating a rule.
#[derive(Debug)]
pub(super) enum Hit {
    Miss,
    Yes,
    /// An allow whose `need` is not met: what the login lacks.
    Unmet(NeededLogin),
    /// All other conditions hold and `when` fails to evaluate.
    Error(String),
}

const MAX_APPROVAL: u64 = 24 * 60 * 60;

fn nothing_kept(claim: &str) -> String {
    format!("the value of the claim `{claim}` was not stored")
}

impl Rule {
    pub(super) fn compile(raw: &raw::Rule, place: usize, at: &At, root: &raw::Root, report: &mut Report) -> Self {
        let mark = report.mark();
        let id: Arc<str> = raw.id.as_str().into();
        let purpose = match &raw.action {
            raw::Action::Allow => Purpose::Allow,
            raw::Action::Deny => Purpose::Deny,
            raw::Action::Approve(_) => Purpose::Approve,
        };
        if raw.on.trigger.is_some() && purpose == Purpose::Approve {
            report
                .error(&at.key("on").key("trigger"), "no Trigger waits for an approval")
                .help("write an allow or a deny");
        }
        // The record of a delivery is written before its EventListener chooses among its Triggers.
        if raw.on.trigger.is_some() && raw.mode == raw::Mode::Shadow {
            report
                .error(
                    &at.key("mode"),
                    "which Triggers a delivery sets off is known only after its record is written, so that a rule about them \
                     leaves no trace in `mode: shadow`",
                )
                .help("leave `on.trigger` out to record which deliveries it would match, or write `mode: enforce`");
        }
        if !raw.need.is_empty() && purpose != Purpose::Allow {
            report
                .error(&at.key("need"), "only an allow can need something of the person")
                .help("say who is meant in `who`, or look at `principal.claims` in `when`");
        }
        check_need(&raw.need, &at.key("need"), root, report);
        token::check_people(raw, at, root, report);
        token::check_break_glass(raw, at, report);
        token::check_accounts(raw, at, report);
        deliveries::warn(raw, at, root, report);
        let action = match &raw.action {
            raw::Action::Allow => Action::Allow(NeededLogin::of(&raw.need)),
            raw::Action::Deny => Action::Deny,
            raw::Action::Approve(approve) => {
                let at = at.key("do").key("approve");
                if raw.mode == raw::Mode::Enforce {
                    report
                        .warning(&at, "approvals are not implemented yet: the rule refuses everything that it matches")
                        .help("write a rule that allows or denies, or `mode: shadow` to record what it would match");
                }
                check_approval(approve, &at, root, report);
                Action::Approve(Arc::new(Approval { rule: Arc::clone(&id), count: approve.count.unwrap_or(1) }))
            }
        };
        let rule = Self {
            why: raw.why.as_deref().map(Arc::from),
            fix: raw.fix.as_deref().map(Arc::from),
            action,
            shadow: raw.mode == raw::Mode::Shadow,
            reading: purpose.reading(),
            on: on::compile(&raw.on, &raw.action, &at.key("on"), root, report),
            who: who::compile(&raw.who, purpose, &at.key("who"), root, report),
            when: raw.when.as_deref().and_then(|source| Expression::compile(source, &at.key("when"), report)),
            id,
            place,
        };
        if let Some(condition) = &raw.on.trigger {
            let routes = root.routes.iter().filter(|route| rule.can_hit_on(route));
            trigger::check_routes(condition, raw, routes, &at.key("on").key("trigger"), report);
        }
        if !report.has_errors_since(mark) {
            rule.warn(raw, at, root, report);
        }
        rule
    }

    /// Warns of conditions that are probably not what their author means.
    fn warn(&self, raw: &raw::Rule, at: &At, root: &raw::Root, report: &mut Report) {
        let meant: Vec<&raw::Route> = root.routes.iter().filter(|route| self.can_hit_on(route)).collect();
        let routes: Vec<&raw::Route> =
            meant.iter().copied().filter(|route| starts::fits_credentials(raw, route, root)).collect();
        if raw.on.token.is_none() && !(self.can_hit_on_tokens() && root.exchanged().next().is_some()) {
            reach::warn_of_routes(raw, &meant, &routes, at, root, report);
        }
        if raw.on.token.is_none() {
            reach::warn_of_kind(&raw.who, self.is_deny(), &at.key("who"), root, report);
        }
        if self.is_allow() {
            reach::warn_of_breadth(raw, &routes, at, root, report);
        }
        reach::warn_of_clients(&raw.who, &at.key("who"), root, report);
        reach::warn_of_need(raw, at, root, report);
        reach::warn_of_idle_need(raw, at, root, report);
        let reads = self.when.as_ref().map(Expression::reads).unwrap_or_default();
        when::warn(raw, &reads, &self.on, self.reading, &routes, at, report);
        if self.is_allow() && !reads.claims.contains("email_verified") {
            reach::warn_of_email(&raw.who, &at.key("who"), root, report);
            when::warn_of_email(raw, &reads, root, at, report);
        }
    }

    /// The rule as it is in the configuration that it was compiled from.
    pub(super) fn written<'r>(&self, root: &'r raw::Root) -> Option<&'r raw::Rule> {
        root.rules.get(self.place).filter(|raw| *raw.id == *self.id)
    }

    pub(super) fn is_allow(&self) -> bool {
        matches!(self.action, Action::Allow(_))
    }

    pub(super) fn is_deny(&self) -> bool {
        matches!(self.action, Action::Deny)
    }

    /// Names of the parameters and labels of runs that it looks at.
    pub(super) fn run_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.of_runs().flat_map(RunCondition::names)
    }

    /// Whether it looks at the service accounts of runs.
    pub(super) fn looks_at_accounts_of_runs(&self) -> bool {
        self.of_runs().any(RunCondition::looks_at_accounts)
    }

    fn of_runs(&self) -> impl Iterator<Item = &RunCondition> {
        self.on.iter().filter_map(|on| if let On::Run(run) = on { Some(run) } else { None })
    }

    /// Its condition on Triggers.
    pub(super) fn trigger(&self) -> Option<&raw::OnTrigger> {
        self.on.iter().find_map(|on| if let On::Trigger(trigger) = on { Some(trigger) } else { None })
    }

    /// Whether it would match for some Trigger, or where no Trigger is in question.
    pub(super) fn may_hit(&self, case: &Case<'_>) -> bool {
        let on = || self.on.iter().filter(|on| !matches!(on, On::Trigger(_)));
        on().all(|on| on.holds(case.request, self.reading))
            && self.who.iter().all(|who| who.met(&case.caller, self.reading) != Met::No)
            && self.when.as_ref().is_none_or(|when| match when.evaluate(case.caller.principal, case.request) {
                Ok(is_met) => is_met,
                Err(_) => self.is_deny(),
            })
    }

    /// Whether requests on a route can match the rule at all.
    pub(super) fn can_hit_on(&self, route: &raw::Route) -> bool {
        self.on.iter().all(|on| on.can_hold_on(route))
    }

    /// Whether it can decide about requests of this caller: an approve also does where it is in doubt.
    pub(super) fn speaks_of(&self, caller: &Caller<'_>) -> bool {
        let reading = if self.is_allow() { Reading::Strict } else { Reading::Wide };
        self.who.iter().all(|who| who.met(caller, reading) != Met::No)
    }

    /// Whether all its conditions on requests may hold for a request that starts a run in this way.
    pub(super) fn may_be_on(&self, start: &Start<'_>) -> bool {
        self.on.iter().all(|on| on.may_hold(start, self.reading))
    }

    /// Whether it can affect who gets a token: an allow must have `on.token`, and a deny must have no condition that
    /// only requests can meet.
    pub(super) fn can_hit_on_tokens(&self) -> bool {
        let speaks = || self.on.iter().any(|on| matches!(on, On::Token(_)));
        (self.is_deny() || speaks()) && self.on.iter().all(On::can_hold_of_tokens)
    }

    /// Whether it may apply to callers of one of these issuers: it names one of them, or none.
    pub(super) fn is_of_issuer(&self, is_meant: impl Fn(&str) -> bool) -> bool {
        self.who.iter().all(|who| match who {
            Who::Issuers { named, .. } => named.names().iter().any(|name| is_meant(name)),
            _ => true,
        })
    }

    /// The scopes of which it requires one.
    pub(super) fn scopes(&self) -> impl Iterator<Item = &str> {
        self.who.iter().filter_map(Who::scopes).flat_map(Names::iter).map(|scope| &**scope)
    }

    /// The scopes of tokens for an audience that it names in full.
    pub(super) fn token_scopes<'a>(&'a self, audience: &str) -> impl Iterator<Item = &'a str> {
        self.tokens().filter(move |token| token.is_for(audience)).flat_map(TokenCondition::scopes)
    }

    pub(super) fn token_scope_patterns(&self) -> impl Iterator<Item = String> {
        self.tokens().flat_map(TokenCondition::scope_patterns)
    }

    /// The longest lifetime of a token that it gives.
    pub(super) fn token_lifetime(&self) -> Option<Duration> {
        self.tokens().find_map(|token| token.lifetime)
    }

    fn tokens(&self) -> impl Iterator<Item = &TokenCondition> {
        self.on.iter().filter_map(|on| if let On::Token(token) = on { Some(token) } else { None })
    }

    /// Whether evaluating it can fail, so that it must be evaluated even if the decision is already known.
    pub(super) fn can_fail(&self) -> bool {
        self.when.is_some()
    }

    pub(super) fn look(&self, case: &Case<'_>) -> Hit {
        self.look_as(case, self.reading)
    }

    /// Evaluates an approve that does not match as if it were a deny: a request in doubt must not pass without approval
    /// because another rule allows it.
    pub(super) fn look_doubting(&self, case: &Case<'_>) -> Hit {
        self.look_as(case, Reading::Wide)
    }

    /// Evaluates a request for a token without its scope, which is left to [`Rule::takes_scope`].
    pub(super) fn look_but_scope(&self, case: &Case<'_>) -> Hit {
        self.look_if(case, self.reading, |on| on.holds_but_scope(case.request, self.reading))
    }

    /// Whether this scope of a token, or a token without any, can match.
    pub(super) fn takes_scope(&self, scope: Option<&str>) -> bool {
        self.tokens().all(|token| token.takes(scope, self.reading))
    }

    /// Whether it looks at the bodies of requests.
    pub(super) fn is_about_bodies(&self) -> bool {
        self.of_runs().next().is_some()
    }

    /// Whether it denies whatever the body contains.
    pub(super) fn denies_any(&self, case: &Case<'_>) -> bool {
        self.is_deny() && !self.is_about_bodies() && !matches!(self.look(case), Hit::Miss)
    }

    /// Whether it would allow with some body, perhaps after an approval or a fresh login.
    pub(super) fn may_allow(&self, case: &Case<'_>) -> bool {
        let on = || self.on.iter().filter(|on| !matches!(on, On::Run(_)));
        !self.is_deny()
            && on().all(|on| on.holds(case.request, Reading::Strict))
            && self.who.iter().all(|who| who.met(&case.caller, Reading::Strict) == Met::Yes)
            && self.when.as_ref().is_none_or(|when| {
                let principal = case.caller.principal;
                when.misses_of(principal).is_none() && !matches!(when.evaluate(principal, case.request), Ok(false))
            })
    }

    fn look_as(&self, case: &Case<'_>, reading: Reading) -> Hit {
        self.look_if(case, reading, |on| on.holds(case.request, reading))
    }

    fn look_if(&self, case: &Case<'_>, reading: Reading, on_holds: impl Fn(&On) -> bool) -> Hit {
        let holds =
            self.on.iter().all(on_holds) && self.who.iter().all(|who| who.met(&case.caller, reading) != Met::No);
        if !holds {
            return Hit::Miss;
        }
        // To the expression, the claim would look absent, which an allow could test for as well as a deny.
        if let Some(name) = self.when.as_ref().and_then(|when| when.misses_of(case.caller.principal)) {
            return match reading {
                Reading::Wide => Hit::Error(nothing_kept(name)),
                Reading::Strict => Hit::Miss,
            };
        }
        match self.when.as_ref().map(|when| when.evaluate(case.caller.principal, case.request)) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => return Hit::Miss,
            Some(Err(error)) => return Hit::Error(error.to_string()),
        }
        match &self.action {
            Action::Allow(need) => match need.missing(&case.caller.principal.login, case.request.now) {
                Some(missing) => Hit::Unmet(missing),
                None => Hit::Yes,
            },
            _ => Hit::Yes,
        }
    }

    /// The scope that would suffice, if only a scope is missing; and what the rule needs of the login, if the current one
    /// does not meet it.
    pub(super) fn missing_scope(&self, case: &Case<'_>) -> Option<(&Arc<str>, Option<&NeededLogin>)> {
        let mut missing = None;
        for who in self.who.iter().filter(|who| who.met(&case.caller, self.reading) == Met::No) {
            missing = Some(who.scopes().filter(|_| missing.is_none())?);
        }
        let scope = missing?.iter().next()?;
        // A body that has not been read may be as the rule requires.
        let is_open = |on: &On| matches!(on, On::Run(_)) && case.request.is_unread();
        let principal = case.caller.principal;
        let holds = self.on.iter().all(|on| is_open(on) || on.holds(case.request, self.reading))
            && self.when.as_ref().is_none_or(|when| {
                when.misses_of(principal).is_none() && matches!(when.evaluate(principal, case.request), Ok(true))
            });
        let need = match &self.action {
            Action::Allow(need) => need.missing(&principal.login, case.request.now).map(|_| need),
            Action::Deny | Action::Approve(_) => None,
        };
        holds.then_some((scope, need))
    }

    /// Describes the conditions that do not hold.
    pub(super) fn misses(&self, case: &Case<'_>) -> Vec<Condition> {
        let on = self.on.iter().flat_map(|on| on.misses(case.request, self.reading));
        let who = self.who.iter().filter(|who| who.met(&case.caller, self.reading) == Met::No);
        let mut misses: Vec<Condition> = on.chain(who.map(|who| who.describe(&case.caller))).collect();
        if let Some(when) = &self.when {
            let found =
                match (when.misses_of(case.caller.principal), when.evaluate(case.caller.principal, case.request)) {
                    (Some(name), _) => nothing_kept(name),
                    (None, Ok(true)) => return misses,
                    (None, Ok(false)) => "false".to_owned(),
                    (None, Err(error)) => format!("fails: {error}"),
                };
            misses.push(Condition::new("when", when.source(), found));
        }
        misses
    }

    /// Describes the conditions that hold only when read wide, because the value that they ask for is in doubt.
    pub(super) fn doubts(&self, case: &Case<'_>) -> Vec<Condition> {
        let on = self.on.iter().flat_map(|on| on.misses(case.request, Reading::Strict));
        let who = self.who.iter().filter(|who| who.met(&case.caller, Reading::Strict) == Met::No);
        on.chain(who.map(|who| who.describe(&case.caller))).collect()
    }

    /// The next time at which one of its windows opens or closes.
    pub(super) fn next_change(&self, after: crate::clock::Timestamp) -> Option<crate::clock::Timestamp> {
        let windows = self.on.iter().filter_map(|on| match on {
            On::Time(window) => window.next_change(after),
            _ => None,
        });
        windows.min()
    }

    /// The next time at which a login becomes too old for it.
    pub(super) fn too_old(
        &self,
        login: &LoginFacts,
        after: crate::clock::Timestamp,
    ) -> Option<crate::clock::Timestamp> {
        let Action::Allow(need) = &self.action else { return None };
        need.too_old(login).filter(|at| *at > after).min()
    }

    /// Whether its result may change at any moment, because a login ages or an expression reads the time.
    pub(super) fn follows_the_clock(&self) -> bool {
        let ages = matches!(&self.action, Action::Allow(need) if need.max_age().is_some());
        !self.shadow && (ages || self.reads_time())
    }

    /// Whether its expression reads the time.
    pub(super) fn reads_time(&self) -> bool {
        self.when.as_ref().is_some_and(Expression::reads_time)
    }
}

fn check_need(need: &raw::Need, at: &At, root: &raw::Root, report: &mut Report) {
    for (key, age) in [("mfa", need.mfa), ("fresh_login", need.fresh_login)] {
        if age.is_some_and(|age| age.max_age.get().is_zero()) {
            report
                .error(&at.key(key).key("max_age"), "no login is that fresh")
                .help("a minute is the shortest that works");
        }
    }
    // A login asks only for classes that its issuer's `acr_values` contain, and is accepted only with one of them.
    let mut logins = root.issuers.iter().filter_map(|issuer| issuer.login.as_ref()).peekable();
    let can = |login: &raw::Login| {
        login.acr_values.is_empty() || need.acr.iter().any(|class| login.acr_values.contains(class))
    };
    if !need.acr.is_empty() && logins.peek().is_some() && !logins.any(can) {
        report
            .warning(
                &at.key("acr"),
                "no login can have one of these classes: none is among the `acr_values` of a `login`",
            )
            .help("add them to `acr_values`");
    }
    let mut logins = root.issuers.iter().filter_map(|issuer| Some((issuer, issuer.login.as_ref()?))).peekable();
    let asks = |(issuer, login): (&raw::Issuer, &raw::Login)| {
        let classes = LoginQuirks::of(issuer.preset).mfa_classes(login);
        login.acr_values.is_empty()
            || classes.is_empty()
            || classes.iter().any(|class| login.acr_values.contains(class))
    };
    if need.mfa.is_some() && logins.peek().is_some() && !logins.any(asks) {
        report
            .warning(
                &at.key("mfa"),
                "no provider is asked for more than one factor: no `login` has one of its `acr_values` among its \
                 `mfa_acr_values`",
            )
            .help(
                "list in `mfa_acr_values` which of the `acr_values` require more than one factor, or add one that does",
            );
    }
}

fn check_approval(raw: &raw::Approve, at: &At, root: &raw::Root, report: &mut Report) {
    if raw.count == Some(0) {
        report.error(&at.key("count"), "an approval needs at least one person").help("write a rule that allows");
    }
    for (key, span) in [("pending", raw.pending), ("grant", raw.grant)] {
        if let Some(span) = span.filter(|span| span.get().is_zero() || *span > Span::from_secs(MAX_APPROVAL)) {
            report.error(&at.key(key), format!("`{span}` is not between 1s and 24h"));
        }
    }
    // Approvals are not implemented, so only the errors in `by` matter.
    who::compile(&raw.by, Purpose::Approver, &at.key("by"), root, report);
}
