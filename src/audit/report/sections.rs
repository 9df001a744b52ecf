//! The sections of the report: which records each counts, by which text, and the same as a `jq` query.

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::Value;

pub(super) use crate::audit::token_trace::DONE;
use crate::{audit::note::code, clock::Timestamp, error::Reason};

/// A part of the report that comes from the trail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    /// A short fixed word, for programs.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// The names of the controls that it is for.
    pub(super) controls: &'static str,
    /// The texts by which records are counted, as a `jq` expression that is evaluated on each record and produces none
    /// for a record of another kind.
    pub(super) jq: fn() -> Cow<'static, str>,
    pub(super) counts: Counts,
    /// Computes in Rust the texts that `jq` produces for a record.
    pub(super) keys: fn(&Value) -> Vec<String>,
}

/// When a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// If its time is in the period. The time of a request is its arrival.
    InPeriod,
    /// Also from before the period, because it still applies.
    SinceEver,
    /// If its request ended in the period, however long before that it arrived.
    ByEnd,
}

impl Counts {
    /// Returns the time by which a record with this `time` counts.
    pub(super) fn time(self, line: &Value, time: i64) -> i64 {
        match self {
            Self::InPeriod | Self::SinceEver => time,
            Self::ByEnd => time.saturating_add(line.get("duration").and_then(Value::as_i64).unwrap_or_default()),
        }
    }

    /// Returns the same as a `jq` expression.
    pub(super) const fn jq(self) -> &'static str {
        match self {
            Self::InPeriod | Self::SinceEver => ".time",
            Self::ByEnd => ".time + ((.duration | numbers | select(. == floor)) // 0)",
        }
    }
}

/// The part of the report in which a refusal counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// The caller is known, or need not be.
    Denials,
    /// A credential was missing, wrong or already used.
    Failures,
}

/// Returns the part of a reason, if any. The match is exhaustive, so that a new reason must be assigned.
const fn part(reason: Reason) -> Option<Part> {
    match reason {
        Reason::MisdirectedHost
        | Reason::PolicyDenied
        | Reason::KubernetesDenied
        | Reason::NoRuleMatched
        | Reason::NeedUnmet
        | Reason::ApprovalRequired
        | Reason::IdentityRefused
        | Reason::ImpersonationRefused
        | Reason::OriginRefused => Some(Part::Denials),
        Reason::CredentialMissing
        | Reason::CredentialMalformed
        | Reason::CredentialAmbiguous
        | Reason::TokenInvalid
        | Reason::TokenExpired
        | Reason::TokenNotYetValid
        | Reason::TokenRevoked
        | Reason::TokenInactive
        | Reason::AudienceMismatch
        | Reason::IssuerUnknown
        | Reason::KeyUnknown
        | Reason::SignatureInvalid
        | Reason::SessionExpired
        | Reason::TooManyRefusals
        | Reason::ReplayedDelivery
        | Reason::IssuerUnavailable => Some(Part::Failures),
        Reason::BadRequest
        | Reason::PathNotCanonical
        | Reason::UriTooLong
        | Reason::HeadersTooLarge
        | Reason::BodyTooLarge
        | Reason::BodyTimeout
        | Reason::UnsupportedMediaType
        | Reason::MethodNotAllowed
        | Reason::RouteNotFound
        | Reason::UpgradeRefused
        | Reason::DeliveryInFlight
        | Reason::StoreUnavailable
        | Reason::AuditUnavailable
        | Reason::Overloaded
        | Reason::Draining
        | Reason::UpstreamUnreachable
        | Reason::UpstreamTimeout
        | Reason::UpstreamProtocol
        | Reason::UpstreamFailed
        | Reason::UpstreamCredential
        | Reason::Internal => None,
    }
}

/// Where the record of a failed login has its outcome.
const FAILED_LOGIN: &str = "/unmapped/login/outcome";
/// Whether a record is that of a failed login, as a `jq` expression.
const IS_FAILED_LOGIN: &str = r#"((.unmapped.login.outcome)? // null | type) == "string""#;

pub(super) const PRINCIPALS: &str = "principals";
pub(super) const RULES: &str = "rules";
pub(super) const GRANTS: &str = "grants";

/// The ids of the grants of a record, as a `jq` expression.
pub(super) const GRANT_IDS: &str = ".unmapped.grants | arrays[] | strings";

/// Follows the id of a grant whose groups went to a server that is not Kubernetes.
pub(super) const OUTSIDE: &str = ", not in Kubernetes";

pub(super) const KEYS: &str = "keys";

/// The sections in the order of the report. A member that is not an object where one is expected produces no row, in
/// `jq` by an error that the query ignores; before `//` it counts as missing.
pub(super) const SECTIONS: [Section; 15] = [
    Section {
        id: PRINCIPALS,
        title: "Principals seen, with their last use, and separately that of tasks and agents which acted for them",
        controls: "CC6.1, CC6.2; A.5.16",
        // The actions of a task or an agent for somebody are not that person's own use.
        jq: || {
            r#"select(.actor.idp) | "\(.actor.user.name) of \(.actor.idp.name)\((.unmapped.principal.actor.subject | strings | ", through \(.)")? // "")""#.into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            one((|| {
                at(line, "/actor/idp")?.filter(is_true)?;
                let (name, of) = (text(line, "/actor/user/name")?, text(line, "/actor/idp/name")?);
                Some(format!("{name} of {of}{}", through(line).unwrap_or_default()))
            })())
        },
    },
    Section {
        id: RULES,
        title: "Rules that decided",
        controls: "CC6.1, CC6.3; A.5.15, A.5.18",
        // Each scope of a token may be granted by another rule.
        jq: || {
            "[(.authorizations | arrays[] | (.policy.uid)? | strings), ((.unmapped.issued.rules)? | arrays[] | strings)] | unique[]"
                .into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            let all = line.get("authorizations").and_then(Value::as_array).into_iter().flatten();
            let decided = all.filter_map(|one| at(one, "/policy/uid")??.as_str());
            let issued = at(line, "/unmapped/issued/rules").flatten().and_then(Value::as_array).into_iter().flatten();
            let each: BTreeSet<&str> = decided.chain(issued.filter_map(Value::as_str)).collect();
            each.into_iter().map(str::to_owned).collect()
        },
    },
    Section {
        id: GRANTS,
        title: "Grants that gave groups, to Kubernetes or to another server",
        controls: "CC6.1, CC6.3; A.5.15, A.5.18",
        // Other servers are told the groups too, so that a grant may be of use to these alone.
        jq: || {
            format!(r#"(if .unmapped.identity then "" else "{OUTSIDE}" end) as $where | {GRANT_IDS} | . + $where"#)
                .into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            let all = at(line, "/unmapped/grants").flatten().and_then(Value::as_array).into_iter().flatten();
            let is_kubernetes = at(line, "/unmapped/identity").flatten().filter(is_true).is_some();
            let outside = if is_kubernetes { "" } else { OUTSIDE };
            all.filter_map(|grant| grant.as_str().map(|grant| format!("{grant}{outside}"))).collect()
        },
    },
    Section {
        id: "denials",
        title: "Denials",
        controls: "CC6.1, CC7.2; A.5.15, A.8.15",
        // A failed login is among the login failures.
        jq: || format!("select({IS_FAILED_LOGIN} | not) | {}", refused(Part::Denials)).into(),
        counts: Counts::InPeriod,
        keys: |line| one(refusal(line, Part::Denials).filter(|_| string(line, FAILED_LOGIN).is_none())),
    },
    Section {
        id: "login_failures",
        title: "Login failures and refused credentials",
        controls: "CC6.1, CC7.2; A.5.17, A.8.15",
        jq: || {
            format!(
                r#"if {IS_FAILED_LOGIN} then "\(.unmapped.login.outcome): \((.actor.user.name)? // (.unmapped.presented.subject)? // "nobody") at a login of \((.unmapped.login.issuer)? // "no issuer")" else {} end"#,
                refused(Part::Failures)
            )
            .into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            one(match string(line, FAILED_LOGIN) {
                Some(outcome) => {
                    let issuer = text_or(line, "/unmapped/login/issuer", "no issuer");
                    Some(format!("{outcome}: {} at a login of {issuer}", caller(line)))
                }
                None => refusal(line, Part::Failures),
            })
        },
    },
    Section {
        id: "endpoint_failures",
        title: "Other failures at Doorward's own pages",
        controls: "CC6.1, CC7.2; A.5.17, A.8.15",
        jq: || {
            format!(
                r#"select(.unmapped.endpoint and (.http_response.code | numbers) >= 400) | select({IS_FAILED_LOGIN} | not) | "\(.http_response.code) at \(.unmapped.endpoint)""#
            )
            .into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            one((|| {
                at(line, "/unmapped/endpoint")?.filter(is_true)?;
                at(line, "/http_response/code")??.as_f64().filter(|status| *status >= 400.0)?;
                let (code, at) = (text(line, "/http_response/code")?, text(line, "/unmapped/endpoint")?);
                string(line, FAILED_LOGIN).is_none().then(|| format!("{code} at {at}"))
            })())
        },
    },
    Section {
        id: "session_ends",
        title: "Sessions that ended before they expired: signed out, replaced by a later login of the same browser, too many of one \
                person, revoked by an operator, or ended by the provider",
        controls: "CC6.2; A.5.18",
        jq: || ".unmapped.session_ended.why | strings".into(),
        counts: Counts::InPeriod,
        keys: |line| one(string(line, "/unmapped/session_ended/why")),
    },
    Section {
        id: "ended_streams",
        title: "Streams that ended with the session or token of their caller, or otherwise early",
        controls: "CC6.2; A.5.18",
        jq: || r#"select(.unmapped.ended) | "\(.unmapped.ended): \((.actor.user.name)? // "nobody")""#.into(),
        counts: Counts::ByEnd,
        keys: |line| {
            one((|| {
                at(line, "/unmapped/ended")?.filter(is_true)?;
                Some(format!("{}: {}", text(line, "/unmapped/ended")?, text_or(line, "/actor/user/name", "nobody")))
            })())
        },
    },
    Section {
        id: "operators",
        title: "Commands of operators, including those that failed or were refused: sessions ended, credentials revoked, \
                configurations loaded",
        controls: "CC6.2, CC6.3, CC8.1; A.5.18, A.8.15",
        jq: || {
            r#"select(.metadata.event_code == "operator") | "\((.actor.user.name)? // ((.actor.user.uid)? | strings | "uid \(.)") // "unknown"): \(.unmapped.command)\(if .status_id == 2 then ", failed" else "" end)""#
                .into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            one((|| {
                code_among(line, &[code::OPERATOR])?;
                let uid =
                    string(line, "/actor/user/uid").map_or_else(|| "unknown".to_owned(), |uid| format!("uid {uid}"));
                let user = text_or(line, "/actor/user/name", uid);
                let has_failed = at(line, "/status_id").flatten().and_then(Value::as_f64) == Some(2.0);
                let failed = if has_failed { ", failed" } else { "" };
                Some(format!("{user}: {}{failed}", text(line, "/unmapped/command")?))
            })())
        },
    },
    Section {
        id: "policies",
        title: "Policy changes by digest, with the time and cause; the operator who requested one is among the commands of operators, \
                with the same digest",
        controls: "CC8.1, CC6.3; A.5.15, A.8.15",
        jq: || {
            r#"select(.metadata.event_code | IN("policy.loaded", "policy.refused")) | "\(.metadata.event_code) \((.unmapped.policy)? // "unreadable") at \(.time / 1000 | floor | todate), cause \((.unmapped.cause)? // "not recorded")""#.into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            one((|| {
                let code = code_among(line, &[code::POLICY_LOADED, code::POLICY_REFUSED])?;
                let policy = text_or(line, "/unmapped/policy", "unreadable");
                let cause = text_or(line, "/unmapped/cause", "not recorded");
                Some(format!("{code} {policy} at {}, cause {cause}", second(line)?))
            })())
        },
    },
    Section {
        id: "issued",
        title: "Tokens issued, to tasks by their namespace and to others by their name",
        controls: "CC6.1, CC6.2; A.5.17, A.5.18",
        jq: || {
            r#"select(.metadata.event_code == "request.completed") | "\((.actor.user.name)? // "nobody")\((.unmapped.principal.actor.subject | strings | ", through \(.)")? // "")" as $who | .unmapped.issued | objects | "\(.audience) (\(.scopes // [] | join(" ") | if . == "" then "no scope" else . end)) by \(.rules // [] | join(" ") | if . == "" then "no rule" else . end) for \((.task.namespace)? // "a caller without task: \($who)")""#.into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            one((|| {
                // The record of the decision has it too, even if it could not be written in time and nobody received
                // the token.
                code_among(line, &[code::COMPLETED])?;
                let issued = at(line, "/unmapped/issued")?.filter(|issued| issued.is_object())?;
                let through = through(line).unwrap_or_default();
                let caller = format!("a caller without task: {}{through}", text_or(line, "/actor/user/name", "nobody"));
                let (audience, whom) = (text(issued, "/audience")?, text_or(issued, "/task/namespace", caller));
                let (scopes, rules) = (joined(issued, "scopes", "no scope")?, joined(issued, "rules", "no rule")?);
                Some(format!("{audience} ({scopes}) by {rules} for {whom}"))
            })())
        },
    },
    Section {
        id: "tokens_ended",
        title: "Ends of tokens, by reason: with their runs and pods, or revoked by their holders",
        controls: "CC6.2; A.5.18",
        // The record of the decision has it too.
        jq: || {
            format!(
                r#"((.unmapped.tokens_ended.why)? | strings), (select(.metadata.event_code == "request.completed") | .unmapped.revoked | strings | "{DONE}")"#
            )
            .into()
        },
        counts: Counts::InPeriod,
        keys: |line| {
            let done = code_among(line, &[code::COMPLETED]).and_then(|_| string(line, "/unmapped/revoked"));
            string(line, "/unmapped/tokens_ended/why").into_iter().chain(done.map(|_| DONE.to_owned())).collect()
        },
    },
    Section {
        id: KEYS,
        title: "Keys that Doorward created and holds in its store, since the trail began",
        controls: "CC6.1, CC6.7; A.5.17",
        jq: || {
            r#"select(.metadata.event_code | IN("key.made", "key.removed")) | "\(.metadata.event_code): \(.unmapped.key.of) \(.unmapped.key.id)""#.into()
        },
        counts: Counts::SinceEver,
        keys: |line| {
            one((|| {
                let code = code_among(line, &[code::KEY_MADE, code::KEY_REMOVED])?;
                Some(format!("{code}: {} {}", text(line, "/unmapped/key/of")?, text(line, "/unmapped/key/id")?))
            })())
        },
    },
    Section {
        id: "alarms",
        title: "Alarms",
        controls: "CC7.2, CC7.3; A.8.15",
        jq: || r#"select(.metadata.event_code == "alarm") | .unmapped.alarm | strings"#.into(),
        counts: Counts::InPeriod,
        keys: |line| one(code_among(line, &[code::ALARM]).and_then(|_| string(line, "/unmapped/alarm"))),
    },
    Section {
        id: "trail",
        title: "Starts, stops and gaps of the trail",
        controls: "CC7.2; A.8.15",
        jq: || r#".metadata.event_code | select(IN("trail.start", "trail.stop", "trail.cut", "trail.gap"))"#.into(),
        counts: Counts::InPeriod,
        keys: |line| {
            let code = code_among(line, &[code::START, code::STOP, code::CUT, code::GAP]);
            one(code.map(str::to_owned))
        },
    },
];

/// Returns the refusals of a part as a `jq` expression.
fn refused(of: Part) -> Cow<'static, str> {
    let all = Reason::ALL.iter().filter(|reason| part(**reason) == Some(of));
    let all: Vec<String> = all.map(|reason| format!("\"{reason}\"")).collect();
    format!(
        r#"select(.status_code | IN({})) | "\(.status_code): \((.actor.user.name)? // (.unmapped.presented.subject)? // "nobody") at \((.unmapped.route)? // "no route")""#,
        all.join(", ")
    )
    .into()
}

fn refusal(line: &Value, of: Part) -> Option<String> {
    let reason = line.get("status_code")?.as_str()?;
    let known = Reason::ALL.iter().find(|known| known.as_str() == reason)?;
    let route = text_or(line, "/unmapped/route", "no route");
    (part(*known) == Some(of)).then(|| format!("{reason}: {} at {route}", caller(line)))
}

/// Returns the name of a caller or, if its credential was refused, the subject of that.
fn caller(line: &Value) -> Cow<'_, str> {
    text_or(line, "/actor/user/name", text_or(line, "/unmapped/presented/subject", "nobody"))
}

/// Names the actor that acted for somebody.
fn through(line: &Value) -> Option<String> {
    string(line, "/unmapped/principal/actor/subject").map(|actor| format!(", through {actor}"))
}

fn one(text: Option<String>) -> Vec<String> {
    text.into_iter().collect()
}

/// Returns the value at a place as `jq` does: nothing within nothing, and an error (`None`) within a value that is not
/// an object.
fn at<'a>(line: &'a Value, pointer: &str) -> Option<Option<&'a Value>> {
    pointer.split('/').skip(1).try_fold(Some(line), |at, name| match at {
        None | Some(Value::Null) => Some(None),
        Some(Value::Object(members)) => Some(members.get(name)),
        Some(_) => None,
    })
}

/// Whether `jq` treats a value as true.
fn is_true(value: &&Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

/// Returns the value at a place, as `jq` interpolates it into a string.
fn text<'a>(line: &'a Value, pointer: &str) -> Option<Cow<'a, str>> {
    Some(match at(line, pointer)? {
        None => "null".into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
    })
}

/// Returns the same as `(...)? // otherwise`, which ignores errors.
fn text_or<'a>(line: &'a Value, pointer: &str, otherwise: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    match at(line, pointer).flatten().filter(is_true) {
        None => otherwise.into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(other) => other.to_string().into(),
    }
}

/// Returns the time of a record to the second, as `todate` of `jq` writes it.
fn second(line: &Value) -> Option<String> {
    let time = Timestamp::from_millis(at(line, "/time")??.as_i64()?).to_string();
    Some(format!("{}Z", time.split_once('.')?.0))
}

fn string(line: &Value, pointer: &str) -> Option<String> {
    at(line, pointer)??.as_str().map(str::to_owned)
}

/// Returns the event code of a line, if it is one of these.
fn code_among(line: &Value, codes: &[&'static str]) -> Option<&'static str> {
    let code = at(line, "/metadata/event_code")??.as_str()?;
    codes.iter().find(|known| **known == code).copied()
}

/// Joins the texts of a list with spaces, or returns `nothing` if it is empty.
fn joined(object: &Value, list: &str, nothing: &str) -> Option<String> {
    let texts = match object.get(list).filter(is_true) {
        None => String::new(),
        Some(list) => list.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(" "),
    };
    Some(if texts.is_empty() { nothing.to_owned() } else { texts })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{report, rows},
        *,
    };

    #[test]
    fn queries_for_jq_name_the_codes_that_lines_have() {
        let mut named = 0;
        for section in &SECTIONS {
            let query = (section.jq)();
            for compared in query.split("event_code").skip(1) {
                let compared = compared.split(')').next().unwrap();
                for literal in compared.split('"').skip(1).step_by(2) {
                    assert!(code::ALL.contains(&literal), "{}: {literal}", section.id);
                    named += 1;
                }
            }
        }
        assert!(named >= 12, "none is passed over: {named}");
    }

    /// A reviewer could not see who got the token, although the record says it.
    #[test]
    fn an_issued_token_is_reported_with_the_caller_that_got_it() {
        let issued = |actor: Value, issued: Value| {
            json!({
                "time": 1, "metadata": {"event_code": "request.completed"}, "actor": {"user": {"name": "alice"}},
                "unmapped": {"principal": {"actor": actor}, "issued": issued},
            })
        };
        let lines = [
            issued(Value::Null, json!({"audience": "r.test"})),
            issued(json!({"subject": "planner"}), json!({"audience": "r.test"})),
            issued(Value::Null, json!({"audience": "r.test", "task": {"namespace": "ci"}})),
        ];
        let report = report(&lines, 0, 2);
        let told: Vec<&str> = rows(&report, "issued").iter().map(|row| &*row.what).collect();
        let expected = ["a caller without task: alice", "a caller without task: alice, through planner", "ci"];
        assert_eq!(told, expected.map(|whom| format!("r.test (no scope) by no rule for {whom}")));
    }
}
