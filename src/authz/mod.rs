//! Authorization: what the policy decides about a principal and a request.
//!
//! Any deny wins, then approve, then allow, then step up; no match is a denial. The order of rules does not matter.
//! Doubt never lets anybody through: conditions of an allow are read strictly, those of a deny widely, and an
//! expression that fails to evaluate denies.
//!
//! | file | holds |
//! |---|---|
//! | `policy`, `rule` | the compiled policy of a configuration, and one compiled rule |
//! | `tally` | which outcome wins among the rules that match |
//! | `who` | the callers that a rule applies to or that get a grant |
//! | `on`, `condition` | the requests that a rule applies to, and what all conditions have in common |
//! | `kubernetes`, `run`, `time_window` | conditions on Kubernetes attributes, on changes of runs, on the time of the week |
//! | `names`, `resources` | patterns of names, and names that nothing in Kubernetes has |
//! | `resolvers` | patterns of code that leave its source open |
//! | `cel`, `when` | expressions of rules, and warnings about them |
//! | `guarded` | requests that only a rule that names them allows |
//! | `decision`, `permit` | the decision on a request, and the proof that it was allowed |
//! | `explain` | why the policy decides as it does, and what would make a request pass |
//! | `token`, `token_rules`, `token_explain` | which tokens Doorward issues to whom, and why not others |
//! | `trigger`, `deliveries` | which Triggers a delivery may set off, and conditions that no delivery can meet |
//! | `starts` | who may start runs in a namespace |
//! | `concerns` | which rules concern a caller |
//! | `reach` | warnings about rules and grants that reach other callers than meant |
//! | `claims`, `issuers` | which claims a policy reads, and what issuers are expected to provide |
//! | `validity` | how long a token may last under the rules that gave it |
//! | `scenario`, `cases` | a principal and a request from a file, and the tests of a policy that consist of them |

mod cases;
mod cel;
mod claims;
mod concerns;
mod condition;
mod decision;
mod deliveries;
mod explain;
mod guarded;
mod issuers;
mod kubernetes;
mod names;
mod on;
mod permit;
mod policy;
mod reach;
mod resolvers;
mod resources;
mod rule;
mod run;
mod scenario;
mod starts;
mod tally;
mod time_window;
mod token;
mod token_explain;
mod token_rules;
mod trigger;
mod validity;
mod when;
mod who;

use std::net::IpAddr;

use http::Method;

use crate::{
    clock::Timestamp,
    config::raw::{EventListener, RouteKind},
    kubernetes::Attributes,
    tekton::{self, Run},
    webhooks::Facts,
};

pub use self::permit::Permit;
pub(crate) use self::{
    cases::check_cases,
    claims::claims_named,
    concerns::Concern,
    decision::{Decision, Outcome, Shadow, Would, as_clause},
    explain::Explanation,
    permit::authorize,
    policy::{Policy, SAME_WITHOUT},
    rule::RuleAction,
    scenario::{NotEvaluated, Scenario},
    starts::{StartRoute, StartRule, Through, may_be_of_deliveries},
    token::{AskedToken, TOKEN_ENDPOINT, TaskView, TokenView, check_lifetime},
    token_explain::TokenExplanation,
    token_rules::TokenRules,
    trigger::{Trigger, TriggerLimits},
};

/// The request as rules see it. It borrows, so that a decision copies nothing, and is rebuilt from stored parts when a
/// stream is decided again. The query is left out because no record contains it; the part of it that matters to
/// Kubernetes is in the attributes.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The name of the route.
    pub route: &'a str,
    pub kind: RouteKind,
    /// Lower case, without port.
    pub host: &'a str,
    /// The canonical path, the very bytes that are forwarded.
    pub path: &'a str,
    pub method: &'a Method,
    /// Whether the request asks for another protocol (WebSocket, SPDY).
    pub upgrade: bool,
    /// The client's address, according to the trusted proxies.
    pub address: IpAddr,
    /// The EventListener behind a webhook route.
    pub event_listener: Option<&'a EventListener>,
    /// On requests that go to a Kubernetes API server.
    pub kubernetes: Option<&'a Attributes>,
    /// On requests that create, end or change Tekton runs.
    pub run: Option<&'a Run>,
    /// On verified webhook deliveries.
    pub delivery: Option<&'a Facts>,
    /// The Trigger that a delivery is about to set off. `None` when the delivery arrives at Doorward.
    pub trigger: Option<Trigger<'a>>,
    /// On requests for a token, which only an allow with `on.token` allows.
    pub token: Option<TokenView<'a>>,
    pub now: Timestamp,
}

impl RequestView<'_> {
    /// Whether rules look at the body of this request and it has not been read.
    pub fn is_unread(&self) -> bool {
        self.run.is_none() && self.kubernetes.is_some_and(|asked| tekton::concerns(asked).is_some())
    }

    /// Whether it writes a sub-resource of a run, whose body is never read.
    pub fn writes_part_of_run(&self) -> bool {
        self.kubernetes.is_some_and(tekton::writes_part)
    }
}
