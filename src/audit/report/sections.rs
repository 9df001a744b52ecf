//! What the report counts: which records, by what, and the same as a query for `jq`.

use serde_json::Value;

/// A part of the report that comes of the trail.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    /// A short fixed word, for programs.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What reviewers call it.
    pub(super) controls: &'static str,
    /// The texts by which the records are counted, as a `jq` expression that is evaluated on each record and gives none
    /// for a record of another kind.
    pub(super) jq: &'static str,
    /// The same.
    pub(super) keys: fn(&Value) -> Vec<String>,
}

/// Refusals of a caller that is known, or needs not to be.
const DENIALS: [&str; 9] = [
    "policy_denied",
    "no_rule_matched",
    "need_unmet",
    "approval_required",
    "kubernetes_denied",
    "identity_refused",
    "impersonation_refused",
    "origin_refused",
    "misdirected_host",
];

/// Credentials that were missing, wrong or used up.
const FAILURES: [&str; 15] = [
    "credential_missing",
    "credential_malformed",
    "credential_ambiguous",
    "token_invalid",
    "token_expired",
    "token_not_yet_valid",
    "token_revoked",
    "token_inactive",
    "audience_mismatch",
    "issuer_unknown",
    "key_unknown",
    "signature_invalid",
    "session_expired",
    "replayed_delivery",
    "issuer_unavailable",
];

pub(super) const PRINCIPALS: &str = "principals";
pub(super) const RULES: &str = "rules";
pub(super) const GRANTS: &str = "grants";

/// In the order of the report.
pub(super) const SECTIONS: [Section; 13] = [
    Section {
        id: PRINCIPALS,
        title: "Principals seen, with their last use",
        controls: "CC6.1, CC6.2; A.5.16",
        jq: r#"select(.actor.idp) | "\(.actor.user.name) of \(.actor.idp.name)""#,
        keys: |line| {
            let issuer = line.pointer("/actor/idp/name").and_then(Value::as_str);
            issuer.map(|issuer| format!("{} of {issuer}", text(line, "/actor/user/name"))).into_iter().collect()
        },
    },
    Section {
        id: RULES,
        title: "Rules that decided",
        controls: "CC6.1, CC6.3; A.5.15, A.5.18",
        jq: ".authorizations[]?.policy.uid // empty",
        keys: |line| {
            let all = line.get("authorizations").and_then(Value::as_array).into_iter().flatten();
            all.filter_map(|one| one.pointer("/policy/uid")?.as_str().map(str::to_owned)).collect()
        },
    },
    Section {
        id: GRANTS,
        title: "Grants that gave Kubernetes groups",
        controls: "CC6.1, CC6.3; A.5.15, A.5.18",
        jq: ".unmapped.grants[]?",
        keys: |line| {
            let all = line.pointer("/unmapped/grants").and_then(Value::as_array).into_iter().flatten();
            all.filter_map(|grant| grant.as_str().map(str::to_owned)).collect()
        },
    },
    Section {
        id: "denials",
        title: "Denials",
        controls: "CC6.1, CC7.2; A.5.15, A.8.15",
        jq: r#"select(.status_code | IN("policy_denied", "no_rule_matched", "need_unmet", "approval_required", "kubernetes_denied", "identity_refused", "impersonation_refused", "origin_refused", "misdirected_host")) | "\(.status_code): \(.actor.user.name // "nobody") at \(.unmapped.route // "no route")""#,
        keys: |line| refusals(line, &DENIALS),
    },
    Section {
        id: "login_failures",
        title: "Login failures and refused credentials",
        controls: "CC6.1, CC7.2; A.5.17, A.8.15",
        jq: r#"select(.status_code | IN("credential_missing", "credential_malformed", "credential_ambiguous", "token_invalid", "token_expired", "token_not_yet_valid", "token_revoked", "token_inactive", "audience_mismatch", "issuer_unknown", "key_unknown", "signature_invalid", "session_expired", "replayed_delivery", "issuer_unavailable")) | "\(.status_code): \(.actor.user.name // "nobody") at \(.unmapped.route // "no route")""#,
        keys: |line| refusals(line, &FAILURES),
    },
    Section {
        id: "endpoint_failures",
        title: "Failures at Doorward's own pages, such as the return from a login",
        controls: "CC6.1, CC7.2; A.5.17, A.8.15",
        jq: r#"select(.unmapped.endpoint and .http_response.code >= 400) | "\(.http_response.code) at \(.unmapped.endpoint)""#,
        keys: |line| {
            let endpoint = line.pointer("/unmapped/endpoint").and_then(Value::as_str);
            let status = line.pointer("/http_response/code").and_then(Value::as_u64).filter(|status| *status >= 400);
            endpoint.zip(status).map(|(endpoint, status)| format!("{status} at {endpoint}")).into_iter().collect()
        },
    },
    Section {
        id: "ended_streams",
        title: "Streams that ended with the session or token of their caller, or otherwise early",
        controls: "CC6.2; A.5.18",
        jq: r#"select(.unmapped.ended) | "\(.unmapped.ended): \(.actor.user.name // "nobody")""#,
        keys: |line| match line.pointer("/unmapped/ended").and_then(Value::as_str) {
            Some(ended) => vec![format!("{ended}: {}", text_or(line, "/actor/user/name", "nobody"))],
            None => Vec::new(),
        },
    },
    Section {
        id: "operators",
        title: "What operators did: sessions ended, credentials revoked, configurations loaded",
        controls: "CC6.2, CC6.3, CC8.1; A.5.18, A.8.15",
        jq: r#"select(.metadata.event_code == "operator") | "\(.actor.user.name // "unknown"): \(.unmapped.command)""#,
        keys: |line| {
            let command = of_code(line, "operator", "/unmapped/command");
            command
                .map(|command| format!("{}: {command}", text_or(line, "/actor/user/name", "unknown")))
                .into_iter()
                .collect()
        },
    },
    Section {
        id: "policies",
        title: "Policy changes, by digest; who asked for one stands under what operators did",
        controls: "CC8.1, CC6.3; A.5.15, A.8.15",
        jq: r#"select(.metadata.event_code == "policy.loaded" or .metadata.event_code == "policy.refused") | "\(.metadata.event_code) \(.unmapped.policy // "unreadable")""#,
        keys: |line| match text(line, "/metadata/event_code") {
            code @ ("policy.loaded" | "policy.refused") => {
                vec![format!("{code} {}", text_or(line, "/unmapped/policy", "unreadable"))]
            }
            _ => Vec::new(),
        },
    },
    Section {
        id: "issued",
        title: "Tokens issued",
        controls: "CC6.1, CC6.2; A.5.17, A.5.18",
        jq: r#".unmapped.issued // empty | "\(.audience) (\(.scopes // [] | join(" "))) by \(.rules // [] | join(" ")) for \(.task.namespace // "a caller without task")""#,
        keys: |line| match line.pointer("/unmapped/issued") {
            Some(issued) => vec![format!(
                "{} ({}) by {} for {}",
                text(issued, "/audience"),
                joined(issued, "scopes"),
                joined(issued, "rules"),
                text_or(issued, "/task/namespace", "a caller without task")
            )],
            None => Vec::new(),
        },
    },
    Section {
        id: "tokens_ended",
        title: "Tokens that ended with their run, by why",
        controls: "CC6.2; A.5.18",
        jq: ".unmapped.tokens_ended.why // empty",
        keys: |line| {
            line.pointer("/unmapped/tokens_ended/why").and_then(Value::as_str).map(str::to_owned).into_iter().collect()
        },
    },
    Section {
        id: "alarms",
        title: "Alarms",
        controls: "CC7.2, CC7.3; A.8.15",
        jq: r#"select(.metadata.event_code == "alarm") | .unmapped.alarm"#,
        keys: |line| of_code(line, "alarm", "/unmapped/alarm").map(str::to_owned).into_iter().collect(),
    },
    Section {
        id: "trail",
        title: "Starts, stops and gaps of the trail",
        controls: "CC7.2; A.8.15",
        jq: r#".metadata.event_code | select(. == "trail.start" or . == "trail.stop" or . == "trail.cut" or . == "trail.gap")"#,
        keys: |line| match text(line, "/metadata/event_code") {
            code @ ("trail.start" | "trail.stop" | "trail.cut" | "trail.gap") => vec![code.to_owned()],
            _ => Vec::new(),
        },
    },
];

fn refusals(line: &Value, reasons: &[&str]) -> Vec<String> {
    let reason = text(line, "/status_code");
    if !reasons.contains(&reason) {
        return Vec::new();
    }
    let (name, route) = (text_or(line, "/actor/user/name", "nobody"), text_or(line, "/unmapped/route", "no route"));
    vec![format!("{reason}: {name} at {route}")]
}

fn of_code<'a>(line: &'a Value, code: &str, pointer: &str) -> Option<&'a str> {
    (text(line, "/metadata/event_code") == code).then(|| text(line, pointer))
}

fn joined(object: &Value, list: &str) -> String {
    let all = object.get(list).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

fn text<'a>(line: &'a Value, pointer: &str) -> &'a str {
    text_or(line, pointer, "null")
}

fn text_or<'a>(line: &'a Value, pointer: &str, otherwise: &'a str) -> &'a str {
    line.pointer(pointer).and_then(Value::as_str).unwrap_or(otherwise)
}
