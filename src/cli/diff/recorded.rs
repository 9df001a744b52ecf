//! The recorded requests that two policies decide differently.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;
use uuid::Uuid;

use super::super::{Failure, format::count};
use crate::{
    audit::{CLAIMS, Files, ReplayInputs},
    authn::Principal,
    authz::{Policy, RequestView, claims_named},
    config::raw::{Effect, Root},
    kubernetes::Attributes,
    terminal,
};

/// The decision on a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Decided {
    outcome: Effect,
    /// The rule that decides; `None` for a token, where each scope has one.
    rule: Option<String>,
    /// The scopes of a token.
    scopes: Vec<String>,
}

/// A caller and a request, and the decision of either policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Case {
    principal: String,
    request: String,
    before: Decided,
    after: Decided,
}

#[derive(Debug, Serialize)]
struct Changed {
    #[serde(flatten)]
    case: Case,
    count: u64,
    /// The id of one of them, for `doorward explain --audit-id`.
    such_as: Uuid,
}

/// What recorded requests show about a change of the policy.
#[derive(Debug, Default, Serialize)]
pub(super) struct Recorded {
    /// The requests about which rules were asked.
    requests: u64,
    /// The most frequent first.
    changed: Vec<Changed>,
    /// Requests for which not everything was recorded that they were decided by.
    uncertain: u64,
    unreadable: usize,
    /// Claims that the new policy reads and the old one does not, so that no record has them.
    claims: Vec<String>,
}

impl Recorded {
    pub(super) fn of(
        files: &Files,
        (before, before_root): (&Policy, &Root),
        (after, after_root): (&Policy, &Root),
    ) -> Result<Self, Failure> {
        let mut told = Self { claims: new_claims(before_root, after_root), ..Self::default() };
        let mut cases: BTreeMap<Case, (u64, Uuid)> = BTreeMap::new();
        files.requests(|inputs| {
            let (Some(principal), Some(view), Some(_)) = (&inputs.principal, inputs.view(), &inputs.decision) else {
                return;
            };
            told.requests += 1;
            told.uncertain += u64::from(!inputs.truncated.is_empty() || inputs.is_pseudonymous());
            let (before, after) =
                (Decided::by(before, principal, &view, inputs), Decided::by(after, principal, &view, inputs));
            if before != after {
                let principal = format!("{} of {}", principal.username, principal.issuer);
                let case = Case { principal, request: in_words(inputs), before, after };
                cases.entry(case).or_insert((0, inputs.id)).0 += 1;
            }
        })?;
        told.changed = cases.into_iter().map(|(case, (count, such_as))| Changed { case, count, such_as }).collect();
        told.changed.sort_by_key(|changed| Reverse(changed.count));
        told.unreadable = files.unreadable().len();
        Ok(told)
    }

    pub(super) fn changes_nothing(&self) -> bool {
        self.changed.is_empty()
    }
}

impl Decided {
    fn by(policy: &Policy, principal: &Principal, view: &RequestView<'_>, inputs: &ReplayInputs) -> Self {
        match &inputs.asked {
            Some(token) => {
                let told = policy.explain_token(principal, view, token);
                Self { outcome: told.outcome, rule: None, scopes: told.scopes }
            }
            None => {
                let decision = policy.decide(principal, view);
                let rule = decision.rule.as_deref().map(str::to_owned);
                Self { outcome: decision.outcome.effect(), rule, scopes: Vec::new() }
            }
        }
    }
}

/// Returns the claims that only the new policy reads, except those that are always recorded.
fn new_claims(before: &Root, after: &Root) -> Vec<String> {
    let of = |root: &Root| -> BTreeSet<String> {
        claims_named(root).iter().flat_map(|names| names.iter()).map(ToString::to_string).collect()
    };
    let (before, after) = (of(before), of(after));
    after.difference(&before).filter(|claim| !CLAIMS.contains(&claim.as_str())).cloned().collect()
}

/// Describes a request without the names of objects and pages, of which there are too many.
fn in_words(inputs: &ReplayInputs) -> String {
    let what = match (&inputs.asked, &inputs.kubernetes, &inputs.delivery) {
        (Some(token), ..) => return token.to_string(),
        (None, Some(attributes), _) => Attributes { name: String::new(), ..attributes.clone() }.in_words(),
        (None, None, Some(facts)) => format!("delivery {}", facts.event.as_deref().unwrap_or_default()),
        (None, None, None) => inputs.method.to_string(),
    };
    format!("{} by route {}", what.trim_end(), inputs.route.as_deref().unwrap_or_default())
}

impl fmt::Display for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.outcome.as_str())?;
        match (&self.rule, self.scopes.as_slice()) {
            (Some(rule), _) => write!(f, " by {}", terminal::line(rule)),
            (None, []) => Ok(()),
            (None, scopes) => write!(f, " with scope {}", terminal::line(&scopes.join(" "))),
        }
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let otherwise: u64 = self.changed.iter().map(|changed| changed.count).sum();
        writeln!(f, "of {} recorded requests {otherwise} would be decided differently", self.requests)?;
        for Changed { case: Case { principal, request, before, after }, count, such_as } in &self.changed {
            let (request, principal) = (terminal::line(request), terminal::line(principal));
            writeln!(f, "~ {count} x {request} as {principal}: {before} -> {after}, such as {such_as}")?;
        }
        if self.uncertain > 0 {
            writeln!(
                f,
                "records with values that were cut, or with a pseudonym: {}; rules may decide these differently",
                self.uncertain
            )?;
        }
        if self.unreadable > 0 {
            let lines = count(self.unreadable, "line");
            writeln!(f, "{lines} cannot be read; check the trail with `doorward audit verify`")?;
        }
        if !self.claims.is_empty() {
            let claims = terminal::line(&self.claims.join(", "));
            writeln!(
                f,
                "the records do not have the claims {claims}, which only the new policy reads; they count as absent"
            )?;
        }
        Ok(())
    }
}
