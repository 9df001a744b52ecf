//! Traces of tokens, with trails that are written by hand.

use serde_json::{Value, json};

use super::*;

fn traced(lines: &[String], wanted: Tokens<'_>) -> Vec<TracedToken> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    trace_tokens(&Files::new(vec![file.path().to_owned()]), wanted).unwrap()
}

/// Creates the record of a request with the token `same` of this issuer.
fn of(id: u128, time: i64, issuer: &str, more: &Value) -> String {
    let mut line = json!({
        "time": time,
        "metadata": {"event_code": "request.decided", "correlation_uid": Uuid::from_u128(id)},
        "actor": {"user": {"name": "bob", "uid": "7"}, "idp": {"name": issuer}, "session": {"uid": "same"}},
        "unmapped": {},
    });
    line["unmapped"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line.to_string()
}

/// Creates the record of the exchange that issued it, with these additional members.
fn issued(more: &Value) -> String {
    let mut issued = json!({"token": "same", "issuer": "own", "audience": "x", "expires": 9_000_000});
    issued.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    of(1, 1, "corp", &json!({"issued": issued}))
}

fn revoke(time: i64, arguments: &Value) -> String {
    let command = format!("revoke {arguments}");
    json!({"time": time, "status_id": 1, "metadata": {"event_code": "operator"}, "unmapped": {"command": command, "why": "stolen"}})
        .to_string()
}

#[test]
fn a_token_of_another_issuer_with_the_same_id_is_neither_a_use_nor_ended() {
    let operator = |issuer: &str| revoke(5, &json!({"issuer": issuer, "token_id": "same"}));
    let told = |lines: &[String]| {
        let token = traced(lines, Tokens::Id("same")).pop().unwrap();
        let uses: Vec<Uuid> = token.uses.iter().map(|used| used.request).collect();
        (uses, token.ended.is_some())
    };
    let mut lines =
        vec![issued(&json!({})), of(2, 2, "own", &json!({})), of(3, 3, "partner", &json!({})), operator("partner")];
    assert_eq!(told(&lines), (vec![Uuid::from_u128(2)], false));
    lines.push(operator("own"));
    assert!(told(&lines).1);
}

/// Callers that were revoked or left while their token was being recorded got none, and it was reported as issued.
#[test]
fn a_token_whose_request_was_refused_or_dropped_counts_as_never_issued() {
    let answered = |more: &Value, refusal: Option<&str>| {
        let mut line: Value = serde_json::from_str(&of(1, 1, "corp", more)).unwrap();
        line["status_code"] = refusal.into();
        line["duration"] = 5.into();
        let issued = issued(&json!({}));
        traced(&[issued, line.to_string()], Tokens::Id("same")).pop().unwrap()
    };
    let withheld = answered(&json!({}), Some("token_revoked"));
    assert_eq!(withheld.withheld.as_deref(), Some("token_revoked"));
    let told = withheld.to_string();
    assert!(told.contains("    withheld 1970-01-01T00:00:00.001Z: token_revoked, by request "), "{told}");
    assert!(!told.contains("    issued   "), "{told}");
    let left = answered(&json!({"ended": "client_gone"}), None);
    assert_eq!(left.withheld.as_deref(), Some("client_gone"));
    let undone = traced(&[issued(&json!({})), of(1, 1, "corp", &json!({}))], Tokens::Id("same")).pop().unwrap();
    assert_eq!(undone.withheld, None, "its end is not told yet");
    let given = json!({"issued": {"token": "same", "issuer": "own", "audience": "x", "expires": 9_000_000}});
    assert_eq!(answered(&given, Some("upstream_failed")).withheld, None);
}

/// Each has a record before it is forwarded, and one with its response.
#[test]
fn a_use_beyond_those_that_are_kept_counts_once() {
    let mut lines = vec![issued(&json!({}))];
    for id in 0..u128::try_from(MAX_USES).unwrap() + 3 {
        lines.extend([of(100 + id, 10, "own", &json!({})), of(100 + id, 11, "own", &json!({}))]);
    }
    let token = traced(&lines, Tokens::Id("same")).pop().unwrap();
    assert_eq!((token.uses.len(), token.more.len()), (MAX_USES, 3));
    assert!(token.to_string().ends_with("    used     3 more times\n"), "{token}");
}

/// The record of the end of a run or a pod.
fn ended(time: i64, uid: &str, why: &str) -> String {
    let ended = json!({"cluster": "c", "uid": uid, "why": why});
    json!({"time": time, "metadata": {"event_code": "tokens.ended"}, "unmapped": {"tokens_ended": ended}}).to_string()
}

/// The task of a token, as its record has it.
fn task() -> Value {
    json!({
        "cluster": "c", "namespace": "ci", "task_run": {"name": "t", "uid": "t"}, "pod": {"name": "p", "uid": "p"}, "root": "r",
    })
}

/// A trace of a leaked token said that it had ended, while it gave access to a cloud for an hour.
#[test]
fn a_token_of_another_provider_has_not_ended_with_its_run_or_by_a_revocation() {
    let onward = json!({"provider": "aws at x", "assertion": "a", "sha256": "b"});
    let revocation = revoke(40, &json!({"issuer": "own", "subject": "alice"}));
    for (what, end, since) in [
        ("the run", ended(30, "t", "it has ended"), (30, "it has ended")),
        ("an operator", revocation, (40, "an operator revoked it: stolen")),
    ] {
        let given = issued(&json!({"task": task(), "onward": onward, "parties": [["own", "alice"]]}));
        let token = traced(&[given, end], Tokens::Id("same")).pop().unwrap();
        let since = End { time: Timestamp::from_millis(since.0), why: since.1.to_owned() };
        assert_eq!((&token.ended, &token.no_others_since), (&None, &Some(since)), "{what}");
        let said = token.to_string();
        assert!(
            !said.contains("    ended    ") && said.contains("this one is valid until 1970-01-01T02:30:00"),
            "{said}"
        );
    }
    // Such a token is never presented to Doorward by its id.
    let by_id = revoke(5, &json!({"issuer": "own", "token_id": "same"}));
    let token = traced(&[issued(&json!({"onward": onward})), by_id], Tokens::Id("same")).pop().unwrap();
    assert_eq!((&token.ended, &token.no_others_since), (&None, &None));
}

#[test]
fn the_first_revocation_counts_in_whichever_file_it_is() {
    let given_up = |time| of(9, time, "own", &json!({"revoked": "same"}));
    for (what, lines, first) in [
        (
            "two replicas",
            vec![ended(30, "t", "it has ended"), ended(20, "p", "it was deleted")],
            (20, "it was deleted"),
        ),
        ("its holder, later", vec![given_up(40), ended(30, "t", "it has ended")], (30, "it has ended")),
        ("its holder, before", vec![ended(30, "t", "it has ended"), given_up(20)], (20, "its holder revoked it")),
    ] {
        let lines = [vec![issued(&json!({"task": task()}))], lines].concat();
        let token = traced(&lines, Tokens::Id("same")).pop().unwrap();
        let expected = End { time: Timestamp::from_millis(first.0), why: first.1.to_owned() };
        assert_eq!(token.ended, Some(expected), "{what}");
    }
}

/// A task whose run was created by a task of another run, with its own token; a person's planner had started that run.
#[test]
fn revoking_any_party_that_a_token_depends_on_ends_the_token() {
    let account = "system:serviceaccount:ci:builder";
    let parties = json!([["own", "alice"], ["corp", "00u1"], ["cluster", account], ["corp", "planner"],]);
    for (what, issuer, subject, is_ended) in [
        ("whom it stands for, by our name", "own", "alice", true),
        ("the same, by their own issuer", "corp", "00u1", true),
        ("who acts", "cluster", account, true),
        ("who acted before", "corp", "planner", true),
        ("the name at another issuer", "partner", "00u1", false),
        ("somebody else", "corp", "00u2", false),
    ] {
        let lines = [issued(&json!({"parties": parties})), revoke(5, &json!({"issuer": issuer, "subject": subject}))];
        let token = traced(&lines, Tokens::Id("same")).pop().unwrap();
        assert_eq!(token.ended.is_some(), is_ended, "{what}");
    }
}

/// A leaked token was revoked, and what somebody had got with it stayed valid.
#[test]
fn the_revocation_of_a_token_ends_those_that_it_was_exchanged_for() {
    let exchanged = json!([["corp", "leaked"], ["bots", "planners"]]);
    for (what, issuer, id, is_ended) in [
        ("that of the person", "corp", "leaked", true),
        ("that of the agent", "bots", "planners", true),
        ("the same id of another issuer", "partner", "leaked", false),
        ("another of its issuer", "corp", "other", false),
    ] {
        let revoked = revoke(5, &json!({"issuer": issuer, "token_id": id}));
        let lines = [issued(&json!({"exchanged": exchanged})), revoked];
        let token = traced(&lines, Tokens::Id("same")).pop().unwrap();
        assert_eq!(token.ended.is_some(), is_ended, "{what}");
    }
}

/// Whoever traces a leaked token must not read that it has ended while it is still valid.
#[test]
fn an_end_of_something_else_is_not_the_end_of_a_token() {
    let given = issued(&json!({"task": task(), "parties": [["own", "alice"]]}));
    let alice = json!({"issuer": "own", "subject": "alice"});
    let with = |line: &str, change: &dyn Fn(&mut Value)| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        change(&mut line);
        line.to_string()
    };
    let by_id = |id: &str| revoke(5, &json!({"issuer": "own", "token_id": id}));
    for (what, line, is_ended) in [
        ("a revocation", revoke(5, &alice), true),
        ("one when it was issued", revoke(1, &alice), true),
        ("one just before it expired", revoke(8_999_999, &alice), true),
        ("one by its id", by_id("same"), true),
        ("its run ended", ended(30, "r", "it has ended"), true),
        ("its run ended just before it expired", ended(8_999_999, "r", "it has ended"), true),
        ("a revocation that failed", with(&revoke(5, &alice), &|line| line["status_id"] = json!(2)), false),
        (
            "a revocation that has only begun",
            with(&revoke(5, &alice), &|line| line["unmapped"]["command"] = json!(format!("revoke {alice} (begun)"))),
            false,
        ),
        ("a revocation before it was issued", revoke(0, &alice), false),
        ("a revocation after it had expired", revoke(9_000_000, &alice), false),
        ("a revocation of another token", by_id("other"), false),
        (
            "an object of another cluster with the same uid ended",
            with(&ended(30, "r", "it has ended"), &|line| line["unmapped"]["tokens_ended"]["cluster"] = json!("d")),
            false,
        ),
        ("another run ended", ended(30, "x", "it has ended"), false),
        ("its run ended after it had expired", ended(9_000_000, "r", "it has ended"), false),
    ] {
        let token = traced(&[given.clone(), line], Tokens::Id("same")).pop().unwrap();
        assert_eq!(token.ended.is_some(), is_ended, "{what}");
    }
}

#[test]
fn the_tokens_of_a_run_are_those_of_its_own_tasks() {
    let mut first = task();
    first["pipeline_run"] = json!({"name": "one", "uid": "r"});
    let second = json!({
        "cluster": "c", "namespace": "prod", "task_run": {"name": "u", "uid": "u"}, "pod": {"name": "o", "uid": "o"},
        "pipeline_run": {"name": "two", "uid": "q"}, "root": "q",
    });
    let issued = |id, token: &str, task: &Value| {
        let issued = json!({"token": token, "issuer": "own", "audience": "x", "expires": 9_000_000, "task": task});
        of(id, 1, "corp", &json!({"issued": issued}))
    };
    let lines = [issued(1, "first", &first), issued(2, "second", &second)];
    let (pipeline, task) = (RunKind::PipelineRun, RunKind::TaskRun);
    for (wanted, expected) in [
        (Tokens::Root(None, "r"), Some("first")),
        (Tokens::Root(Some("c"), "q"), Some("second")),
        (Tokens::Root(Some("d"), "q"), None),
        (Tokens::Root(None, "t"), None),
        (Tokens::Run(task, "ci", "t"), Some("first")),
        (Tokens::Run(task, "prod", "t"), None),
        (Tokens::Run(pipeline, "ci", "one"), Some("first")),
        (Tokens::Run(pipeline, "ci", "two"), None),
        (Tokens::Run(pipeline, "prod", "one"), None),
        (Tokens::Run(pipeline, "prod", "two"), Some("second")),
        (Tokens::Run(RunKind::CustomRun, "ci", "t"), None),
    ] {
        let tokens = traced(&lines, wanted);
        let found: Vec<_> = tokens.iter().map(|token| token.issued.token.as_str()).collect();
        assert_eq!(found, Vec::from_iter(expected), "{wanted:?}");
    }
}
