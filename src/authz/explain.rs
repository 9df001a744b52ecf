//! Why the policy decides as it does, and what would make a request pass.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{authn::Principal, config::raw::Effect, terminal, webhooks::Facts};

use super::{
    Decision, Outcome, Policy, RequestView, Shadow,
    condition::{Condition, listed},
    policy::{create_of, is_refused_as_create},
    rule::{Case, Hit, Rule, RuleAction},
    who::WEBHOOKS,
};

/// The result of every rule for a request, and the decision. Displays as text for a terminal, serialises as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub outcome: Effect,
    /// The rule that decides.
    pub rule: Option<Arc<str>>,
    /// The decision in a sentence.
    pub summary: String,
    /// What would make the request pass; empty if it does.
    pub fixes: Vec<String>,
    pub principal: String,
    pub request: String,
    /// The facts of a delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    pub kubernetes_groups: Arc<[Arc<str>]>,
    pub grants: Vec<Arc<str>>,
    /// Every rule that can match on the route, by precedence.
    pub rules: Vec<RuleReport>,
    pub shadow: Vec<Shadow>,
    /// Further remarks about this answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The digest of the policy that decides.
    pub policy: Arc<str>,
}

/// The result of one rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleReport {
    pub rule: Arc<str>,
    pub action: RuleAction,
    pub why: Option<Arc<str>>,
    pub shadow: bool,
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Whether a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It matches. `in_doubt`: conditions that hold only because doubt never lets anybody through.
    Hit { in_doubt: Vec<Condition> },
    /// It would allow, but needs more of the login.
    Unmet { needs: String },
    /// Its expression fails, which denies.
    Error { error: String },
    /// It does not match, for all of these reasons.
    Missed { misses: Vec<Condition> },
}

/// A remark on server-side apply, which is decided as two requests.
const APPLY: &str = "server-side apply may create the object as well as patch it, and must be allowed as both; the \
                     rules below are evaluated for the {}";

/// A remark on a request that is refused before its body is read.
const ANY_BODY: &str =
    "it is refused whatever its body contains, so the body is not read, and denies about runs are not evaluated";

impl Policy {
    /// Explains the decision on a request.
    pub fn explain(&self, principal: &Principal, request: &RequestView<'_>) -> Explanation {
        let is_refused_unread =
            |request: &RequestView<'_>| request.is_unread() && self.refuses_any_body(principal, request).is_some();
        let create = create_of(request).filter(|_| !is_refused_unread(request));
        let as_create = create.as_ref().map(|create| RequestView { kubernetes: Some(create), ..*request });
        let refused = as_create.as_ref().filter(|create| {
            let patch = self.decide_as_it_is(principal, request);
            is_refused_as_create(&patch, &self.decide_as_create(principal, create))
        });
        let mut notes = Vec::new();
        if as_create.is_some() {
            notes.push(APPLY.replace("{}", if refused.is_some() { "create" } else { "patch" }));
        }
        let decision = self.decide(principal, request);
        // The request as it was decided.
        let request = refused.unwrap_or(request);
        let case = Case::new(principal, self.issuer(principal), request);
        // In that case a deny about bodies is in doubt, and is not the reason for the refusal.
        let is_refused_unread = is_refused_unread(request);
        if is_refused_unread {
            notes.push(ANY_BODY.to_owned());
        }
        let is_told = |rule: &&Rule| !(is_refused_unread && rule.is_about_bodies() && rule.is_deny());
        let rules: Vec<RuleReport> = self
            .candidates(request.route)
            .filter(is_told)
            .map(|rule| RuleReport {
                rule: Arc::clone(&rule.id),
                action: rule.action.kind(),
                why: rule.why.clone(),
                shadow: rule.shadow,
                verdict: match rule.look(&case) {
                    Hit::Yes => Verdict::Hit { in_doubt: rule.doubts(&case) },
                    Hit::Unmet(unmet) => Verdict::Unmet { needs: unmet.to_string() },
                    Hit::Error(error) => Verdict::Error { error },
                    Hit::Miss if approves(&decision, &rule.id) => Verdict::Hit { in_doubt: rule.doubts(&case) },
                    // An approve in doubt fails as a deny does.
                    Hit::Miss => match failure(&decision, &rule.id) {
                        Some(error) => Verdict::Error { error: error.to_owned() },
                        None => Verdict::Missed { misses: rule.misses(&case) },
                    },
                },
            })
            .collect();
        let given = self.kubernetes_groups(principal);
        Explanation {
            outcome: decision.outcome.effect(),
            summary: summary(&decision),
            fixes: if decision.is_allow() { Vec::new() } else { self.fixes(&decision, &rules) },
            principal: describe_principal(principal),
            request: describe_request(request),
            delivery: request.delivery.map(describe_delivery),
            kubernetes_groups: given.groups,
            grants: given.grants,
            rules,
            rule: decision.rule,
            shadow: decision.shadow,
            notes,
            policy: Arc::clone(self.digest()),
        }
    }

    /// Describes what would make a request pass: the denies that must not match, and what the nearest allow lacks.
    fn fixes(&self, decision: &Decision, rules: &[RuleReport]) -> Vec<String> {
        let mut fixes = Vec::new();
        let enforced = || rules.iter().filter(|report| !report.shadow);
        if let (None, Outcome::Deny(denial)) = (&decision.rule, &decision.outcome) {
            return denial.fix.iter().map(ToString::to_string).collect();
        }
        for report in enforced() {
            match &report.verdict {
                Verdict::Error { error } => {
                    fixes.push(format!("the expression of `{}` must not fail; now: {error}", report.rule));
                }
                Verdict::Hit { in_doubt } if report.action == RuleAction::Deny => {
                    let fix =
                        self.rules.iter().find(|rule| rule.id == report.rule).and_then(|rule| rule.fix.as_deref());
                    fixes.push(match (fix, in_doubt.as_slice()) {
                        (Some(fix), _) => format!("`{}` must not match: {fix}", report.rule),
                        (None, []) => format!("`{}` must not match", report.rule),
                        (None, [first, ..]) => {
                            format!("`{}` must not match; it does because nothing rules it out: {first}", report.rule)
                        }
                    });
                }
                Verdict::Hit { .. } if report.action == RuleAction::Approve => {
                    fixes.push(format!("`{}` needs an approval, which nobody can give yet", report.rule));
                }
                _ => {}
            }
        }
        let allows = || enforced().filter(|report| report.action == RuleAction::Allow);
        if allows().any(|report| matches!(report.verdict, Verdict::Hit { .. }))
            || matches!(decision.outcome, Outcome::Approve(_))
        {
            return fixes;
        }
        // An allow about this very request that only the caller misses is nearer than one about another request. One
        // that the caller has, and that misses only conditions on the body, is nearer than both: another body is easier
        // had than the groups of somebody else. A sender never becomes another one. A failing expression is reported
        // above.
        let is_evaluated = |report: &&RuleReport| !matches!(report.verdict, Verdict::Error { .. });
        let nearest = allows().filter(is_evaluated).min_by_key(|report| match &report.verdict {
            Verdict::Missed { misses } => {
                let of = |is: fn(&str) -> bool| misses.iter().filter(|miss| is(miss.key)).count();
                let others = of(|key| key.starts_with("on.") && !key.starts_with("on.run"));
                let [caller, body] = [of(|key| key.starts_with("who.")), of(|key| key.starts_with("on.run"))];
                (of(|key| key == WEBHOOKS), others, caller, body, misses.len())
            }
            _ => (0, 0, 0, 0, 0),
        });
        match nearest.map(|report| (&report.rule, &report.verdict)) {
            Some((rule, Verdict::Unmet { needs })) => fixes.push(format!("`{rule}` would allow it with {needs}")),
            Some((rule, Verdict::Missed { misses })) => {
                let misses: Vec<String> = misses.iter().map(ToString::to_string).collect();
                fixes.push(format!("`{rule}` comes nearest to allowing it, and misses {}", misses.join("; and ")));
            }
            _ if allows().next().is_none() => {
                fixes.push("no rule allows anything on this route; write one".to_owned());
            }
            _ => {}
        }
        fixes
    }
}

impl RuleReport {
    /// Whether other claims of the caller could change the result.
    pub fn depends_on_claims(&self) -> bool {
        match &self.verdict {
            Verdict::Missed { misses } => misses.iter().all(|miss| matches!(miss.key, "who.claims" | "when")),
            Verdict::Hit { .. } | Verdict::Unmet { .. } | Verdict::Error { .. } => true,
        }
    }

    /// The mark before its line.
    fn mark(&self) -> &'static str {
        match (self.action, &self.verdict) {
            (_, Verdict::Missed { .. }) => " ",
            (RuleAction::Allow, Verdict::Hit { .. }) => "+",
            (RuleAction::Approve, Verdict::Hit { .. }) | (_, Verdict::Unmet { .. }) => "?",
            _ => "-",
        }
    }
}

/// Whether a rule is among those whose approval is needed.
fn approves(decision: &Decision, rule: &Arc<str>) -> bool {
    matches!(&decision.outcome, Outcome::Approve(approvals) if approvals.iter().any(|approval| approval.rule == *rule))
}

/// The error of the expression of a rule, if the request is refused because of it.
fn failure<'d>(decision: &'d Decision, rule: &Arc<str>) -> Option<&'d str> {
    match &decision.outcome {
        Outcome::Deny(denial) if decision.rule.as_ref() == Some(rule) => denial.error.as_deref(),
        _ => None,
    }
}

fn summary(decision: &Decision) -> String {
    match (&decision.outcome, &decision.rule) {
        (Outcome::Allow, Some(rule)) => format!("allowed by `{rule}`"),
        _ => decision.rejection().map_or_else(|| "allowed".to_owned(), |rejection| rejection.detail().to_owned()),
    }
}

fn describe_principal(principal: &Principal) -> String {
    let mut text = format!("{} {} of {}", principal.kind.as_str(), principal.username, principal.issuer);
    if let Some(actor) = &principal.actor {
        text.push_str(&format!(", through {}", actor.subject));
        text.extend(actor.issuer.iter().map(|issuer| format!(" of {issuer}")));
        text.extend(actor.client.iter().map(|client| format!(" (client {client})")));
    }
    if let Some(client) = &principal.client {
        text.push_str(&format!(", client {client}"));
    }
    text.push_str(&format!("; groups {}; scopes {}", listed(&principal.groups), listed(&principal.scopes)));
    text
}

fn describe_request(request: &RequestView<'_>) -> String {
    let mut text = format!("{} {}{} on route {}", request.method, request.host, request.path, request.route);
    if let Some(attributes) = request.kubernetes {
        text.push_str(&format!(" ({})", attributes.in_words()));
    }
    if let Some(token) = &request.token {
        text.push_str(&format!(" ({})", super::token::found(token)));
    }
    text
}

/// Describes the facts of a delivery, as rules see them.
fn describe_delivery(facts: &Facts) -> String {
    let [fork, draft] = [facts.fork, facts.draft].map(|flag| flag.map(|flag| flag.to_string()));
    let told = [
        ("", facts.event.as_deref()),
        ("action", facts.action.as_deref()),
        ("repository", facts.repository.as_deref()),
        ("repository_id", facts.repository_id.as_deref()),
        ("branch", facts.branch.as_deref()),
        ("tag", facts.tag.as_deref()),
        ("commit", facts.commit.as_deref()),
        ("actor", facts.actor.as_deref()),
        ("actor_id", facts.actor_id.as_deref()),
        ("pull_request", facts.pull_request.as_deref()),
        ("fork", fork.as_deref()),
        ("draft", draft.as_deref()),
        ("several", facts.several.then_some("true")),
        ("build", facts.build.then_some("true")),
    ];
    let words = told.into_iter().filter_map(|(name, told)| Some(format!("{name} {}", told?).trim_start().to_owned()));
    let words: Vec<String> = words.collect();
    if words.is_empty() { "no facts".to_owned() } else { words.join(", ") }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: needs {}, has {}", self.key, terminal::line(&self.needs), terminal::line(&self.found))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.outcome.as_str().to_uppercase(), terminal::line(&self.summary))?;
        for fix in &self.fixes {
            writeln!(f, "  to pass: {}", terminal::line(fix))?;
        }
        for note in &self.notes {
            writeln!(f, "  note: {}", terminal::line(note))?;
        }
        writeln!(f, "\nprincipal  {}", terminal::line(&self.principal))?;
        writeln!(f, "request    {}", terminal::line(&self.request))?;
        if let Some(delivery) = &self.delivery {
            writeln!(f, "delivery   {}", terminal::line(delivery))?;
        }
        let [groups, grants] =
            [&*self.kubernetes_groups, self.grants.as_slice()].map(|names| terminal::line(&listed(names)));
        writeln!(f, "groups     {groups} (grants: {grants})")?;
        writeln!(f, "policy     {}", self.policy)?;
        if !self.rules.is_empty() {
            writeln!(f)?;
        }
        for report in &self.rules {
            let shadow = if report.shadow { ", shadow" } else { "" };
            write!(f, "{} {} ({}{shadow}): ", report.mark(), report.rule, report.action.as_str())?;
            match &report.verdict {
                Verdict::Hit { in_doubt } => match in_doubt.first() {
                    None => writeln!(f, "matches")?,
                    Some(first) => writeln!(f, "matches, as nothing rules it out: {first}")?,
                },
                Verdict::Unmet { needs } => writeln!(f, "would match with {}", terminal::line(needs))?,
                Verdict::Error { error } => writeln!(f, "fails, which denies: {}", terminal::line(error))?,
                Verdict::Missed { misses } => {
                    let first = misses.first().map(ToString::to_string).unwrap_or_default();
                    writeln!(f, "no match: {first}")?;
                }
            }
        }
        Ok(())
    }
}
