//! Authorization: what the policy says about a principal and a request.
//!
//! Any deny wins, then approve, then allow, then step up, and no match is a denial; the order of rules means nothing.
//! What is in doubt never lets anybody through: conditions of an allow are read strictly, those of a deny widely, and
//! an expression without a value denies.
//!
//! | file | holds |
//! |---|---|
//! | `policy`, `rule` | the policy of a configuration and one rule of it, compiled |
//! | `who` | whose requests a rule is about, and who gets a grant |
//! | `on`, `condition` | on which requests a rule is, and what its conditions have in common |
//! | `kubernetes`, `run`, `time_window` | conditions on attributes of Kubernetes, on what becomes of a run, on the time of the week |
//! | `names`, `resources`, `resolvers` | patterns of names, names that nothing in Kubernetes has, and patterns of code that may come from anywhere |
//! | `cel` | expressions of rules |
//! | `guarded` | what no rule allows in passing |
//! | `decision`, `permit` | what the policy says of a request, and the proof that it was asked |
//! | `explain` | why it decides as it does, and what would make a request pass |
//! | `token`, `token_rules`, `token_explain` | which tokens Doorward gives to whom, and why not others |
//! | `trigger`, `deliveries` | which Triggers a delivery may set off, and what no delivery can meet |
//! | `starts` | who may start runs in a namespace, whatever is asked |
//! | `concerns` | what the policy says of somebody, whatever they ask for |
//! | `claims`, `issuers` | which claims a policy looks at, and what issuers tell of principals |
//! | `scenario`, `cases` | a request that somebody wrote down, and tests of a policy made of such |

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
mod resolvers;
mod resources;
mod rule;
mod run;
mod scenario;
mod starts;
mod time_window;
mod token;
mod token_explain;
mod token_rules;
mod trigger;
mod validity;
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
    decision::{Decision, Outcome, Shadow, Would},
    explain::Explanation,
    permit::authorize,
    policy::{Policy, SAME_WITHOUT},
    rule::RuleAction,
    scenario::{Scenario, Unasked},
    starts::{StartRoute, StartRule, Through, may_be_of_deliveries},
    token::{AskedToken, TOKEN_ENDPOINT, TaskView, TokenView},
    token_explain::TokenExplanation,
    token_rules::TokenRules,
    trigger::{Trigger, TriggerLimits},
};

/// What a rule can see of a request. Borrowed, so that looking costs nothing; built again from kept parts when a
/// stream is decided anew. The query is not among it, as no record holds it: of Kubernetes requests, what it says stands in
/// the attributes.
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
    /// The client's address, as far as trusted proxies tell.
    pub address: IpAddr,
    /// The EventListener behind a webhook route.
    pub event_listener: Option<&'a EventListener>,
    /// On requests that go to a Kubernetes API server.
    pub kubernetes: Option<&'a Attributes>,
    /// On requests that make, end or change runs of Tekton.
    pub run: Option<&'a Run>,
    /// On verified webhook deliveries.
    pub delivery: Option<&'a Facts>,
    /// The Trigger that a delivery is about to set off. `None` at the door.
    pub trigger: Option<Trigger<'a>>,
    /// Where a token is asked for. Nothing but tokens is given then.
    pub token: Option<TokenView<'a>>,
    pub now: Timestamp,
}

impl RequestView<'_> {
    /// Whether rules look at its body, and nobody has read that.
    pub fn is_unread(&self) -> bool {
        self.run.is_none() && self.kubernetes.is_some_and(|asked| tekton::concerns(asked).is_some())
    }

    /// Whether it writes a sub-resource of a run, of which nobody reads the body.
    pub fn writes_part_of_run(&self) -> bool {
        self.kubernetes.is_some_and(tekton::writes_part)
    }
}
