//! Traces of trails that are written by hand.

use serde_json::{Value, json};

use super::*;

const CAUSE: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);
const EXCHANGE: Uuid = Uuid::from_u128(3);

/// The record of a request by which somebody created a run or asked for a token.
fn request(id: Uuid, name: &str, more: &Value) -> String {
    let mut line = json!({
        "time": 1_000_000,
        "metadata": {"correlation_uid": id, "event_code": "request"},
        "actor": {"user": {"uid": "7", "name": name}, "idp": {"name": "corp"}, "session": {"uid": ""}},
        "authorizations": [{"decision": "allow"}],
        "http_request": {"uid": id, "http_method": "POST", "url": {"hostname": "h", "path": "/"}},
        "unmapped": {
            "principal": {"kind": "human", "scheme": "bearer", "credential": "none"},
            "kubernetes": {"verb": "create", "namespace": "ci"},
            "run": {"does": "create"},
        },
    });
    line["unmapped"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    line.to_string()
}

/// A token of a task of the run `r` in the cluster `east`, which alice caused.
fn exchange() -> String {
    let task = json!({
        "cluster": "east", "namespace": "ci", "task_run": {"name": "t", "uid": "t"}, "pod": {"name": "p", "uid": "p"},
        "pipeline_run": {"name": "build", "uid": "r"}, "root": "r",
    });
    let issued =
        json!({"token": "jti", "issuer": "own", "audience": "x", "expires": 9_000_000, "cause": CAUSE, "task": task});
    request(EXCHANGE, "alice", &json!({"issued": issued, "kubernetes": null, "run": null}))
}

/// A run's own record of its cause.
fn link(name: &str, cluster: Option<&str>, of: Uuid) -> String {
    let linked = json!({
        "kind": "PipelineRun", "namespace": "ci", "name": name, "uid": "r", "created": 1_001_000, "request": of,
        "cluster": cluster,
    });
    json!({"metadata": {"event_code": "run.linked"}, "unmapped": {"linked": linked}}).to_string()
}

/// Returns the exit status and the output for a trail that also has requests of alice and bob.
fn told(kind: Kind, what: &str, links: &[String]) -> (u8, String) {
    told_as(Format::Human, kind, what, links)
}

/// The same as JSON.
fn told_json(kind: Kind, what: &str, links: &[String]) -> Value {
    serde_json::from_str(&told_as(Format::Json, kind, what, links).1).unwrap()
}

fn told_as(format: Format, kind: Kind, what: &str, links: &[String]) -> (u8, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let made = |id, name| request(id, name, &json!({}));
    let lines = [&[made(CAUSE, "alice"), made(OTHER, "bob"), exchange()][..], links].concat();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    let mut out = Vec::new();
    let args = TraceArgs { kind, what: what.to_owned(), trails: vec![file.path().to_owned()], format };
    let code = run(&args, &mut out).unwrap();
    (code, String::from_utf8(out).unwrap())
}

#[test]
fn a_token_is_traced_to_the_cause_that_its_exchange_found_where_no_runs_are_watched() {
    for (kind, what) in [(Kind::Token, "jti"), (Kind::TaskRun, "ci/t"), (Kind::PipelineRun, "ci/build")] {
        let (code, said) = told(kind, what, &[]);
        assert_eq!(code, 0, "{kind:?}: {said}");
        for part in ["PipelineRun ci/build r\n", "caused by  alice", &CAUSE.to_string(), "  token      jti for x"] {
            assert!(said.contains(part), "{kind:?} {part}: {said}");
        }
        assert!(!said.contains("warning"), "{kind:?}: {said}");
    }
}

#[test]
fn the_record_of_a_run_complements_that_of_the_exchange_and_a_difference_is_warned_about() {
    let (code, said) = told(Kind::Token, "jti", &[link("build", Some("east"), CAUSE)]);
    assert!(code == 0 && said.contains("ci/build r, created at") && !said.contains("warning"), "{said}");
    let (code, said) = told(Kind::Token, "jti", &[link("build", None, OTHER)]);
    assert!(code == 0 && said.contains("caused by  alice") && !said.contains("bob"), "{said}");
    assert!(said.contains(&format!("the run itself says that request {OTHER} caused it")), "{said}");
    // Whichever way leads to the run.
    let (code, said) = told(Kind::PipelineRun, "ci/build", &[link("build", None, OTHER)]);
    assert!(code == 0 && said.contains("caused by  alice") && said.contains("somebody changed that"), "{said}");
    let (code, said) = told(Kind::Token, "jti", &[link("build", None, Uuid::from_u128(9))]);
    assert!(code == 0 && said.contains("  warning    the run itself does not say so: it names the request"), "{said}");
}

/// Regression: a TaskRun that belongs to a PipelineRun was reported as created past Doorward, in a namespace that is
/// not watched.
#[test]
fn a_missing_task_run_is_reported_as_possibly_part_of_a_pipeline_run() {
    let (code, said) = told(Kind::TaskRun, "ci/build-test", &[]);
    assert!(code == 1 && said.contains("no TaskRun ci/build-test is in the trail"), "{said}");
    assert!(said.contains("or it is a part of a PipelineRun: trace that one"), "{said}");
}

/// Files of another replica are missing, but nobody has changed anything.
#[test]
fn a_cause_missing_from_the_given_files_is_not_reported_as_tampering() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [exchange(), link("build", Some("east"), CAUSE)].join("\n") + "\n").unwrap();
    let mut out = Vec::new();
    let trails = vec![file.path().to_owned()];
    let args = TraceArgs { kind: Kind::Token, what: "jti".to_owned(), trails, format: Format::Human };
    let code = run(&args, &mut out).unwrap();
    let said = String::from_utf8(out).unwrap();
    assert!(code == 1 && said.contains("which is not in these files") && !said.contains("warning"), "{said}");
}

#[test]
fn a_run_of_another_cluster_with_the_same_uid_is_another() {
    let links = [link("foreign", Some("west"), OTHER)];
    let (code, said) = told(Kind::Token, "jti", &links);
    assert!(code == 0 && said.contains("caused by  alice"), "{said}");
    assert!(!said.contains("bob") && !said.contains("foreign") && !said.contains("warning"), "{said}");
    let (code, said) = told(Kind::PipelineRun, "ci/foreign", &links);
    assert!(code == 0 && said.contains("caused by  bob") && !said.contains("jti"), "{said}");
    // If the trail does not know the cluster, the uid has to suffice.
    let (_, said) = told(Kind::PipelineRun, "ci/old", &[link("old", None, OTHER)]);
    assert!(said.contains("jti"), "{said}");
}

#[test]
fn the_trace_of_a_request_includes_its_token_and_those_of_the_runs_it_caused() {
    for (id, links) in [(EXCHANGE, vec![]), (CAUSE, vec![]), (CAUSE, vec![link("build", Some("east"), CAUSE)])] {
        let (code, said) = told(Kind::Request, &id.to_string(), &links);
        assert_eq!((code, said.matches("  token      jti for x").count()), (0, 1), "{id} {links:?}: {said}");
    }
    let (_, said) = told(Kind::Request, &OTHER.to_string(), &[]);
    assert!(!said.contains("jti"), "{said}");
}

/// The output was exactly the same whether a person got a token or their agent did.
#[test]
fn a_token_that_an_agent_asked_for_says_so_and_one_of_the_person_alone_does_not() {
    let told = |actor: Value| {
        let issued = json!({"token": "own", "issuer": "own", "audience": "x", "expires": 9_000_000});
        let principal = json!({"kind": "human", "scheme": "bearer", "credential": "none", "actor": actor});
        let lines = [request(EXCHANGE, "alice", &json!({"issued": issued, "principal": principal, "run": null}))];
        (told(Kind::Token, "own", &lines).1, told_json(Kind::Token, "own", &lines)[0].clone())
    };
    for (actor, asked, token) in [
        (json!(null), format!("asked for by alice in request {EXCHANGE}\n"), "  token      own for x (no scope)\n"),
        (
            json!({"subject": "worker", "client": "worker-app"}),
            format!("asked for by agent worker (client worker-app), on behalf of alice in request {EXCHANGE}\n"),
            "  token      own for x (no scope) on behalf of alice\n",
        ),
        (
            json!({"subject": "worker"}),
            format!("asked for by agent worker, on behalf of alice in request {EXCHANGE}\n"),
            "  token      own for x (no scope) on behalf of alice\n",
        ),
    ] {
        let (said, json) = told(actor.clone());
        assert!(said.starts_with(&format!("{asked}{token}")), "{actor}: {said}");
        assert_eq!((&json["on_behalf_of"], &json["actor"]), (&json!("alice"), &actor), "{json:#}");
    }
}

/// Programs read the same as people.
#[test]
fn a_trace_has_the_same_content_as_json() {
    let alice = json!({"username": "alice", "kind": "human", "issuer": "corp", "subject": "7"});
    let by = |id: Uuid| json!({"id": id, "time": 1_000_000, "by": alice, "method": "POST", "host": "h", "path": "/"});
    let task = json!({
        "cluster": "east", "namespace": "ci", "task_run": {"name": "t", "uid": "t"}, "pod": {"name": "p", "uid": "p"},
        "pipeline_run": {"name": "build", "uid": "r"}, "root": "r",
    });
    let token = json!({
        "token": "jti", "audience": "x", "scopes": [], "on_behalf_of": "alice", "issued": 1_000_000, "expires": 9_000_000,
        "request": EXCHANGE, "rules": [], "task": task, "uses": [], "more_uses": 0,
    });
    let run = json!({
        "found": "run", "kind": "PipelineRun", "namespace": "ci", "name": "build", "uid": "r",
        "cause": {"request": by(CAUSE)}, "tokens": [token],
    });
    assert_eq!(told_json(Kind::Token, "jti", &[]), json!([run]));
    let mut asked = by(EXCHANGE);
    asked["found"] = "request".into();
    assert_eq!(told_json(Kind::Request, &EXCHANGE.to_string(), &[]), json!([asked, run]));
    let linked = &told_json(Kind::PipelineRun, "ci/build", &[link("build", Some("east"), OTHER)])[0];
    assert_eq!(linked["created"], 1_001_000);
    assert!(linked["warning"].as_str().unwrap().contains("somebody changed that"), "{linked}");
    let forged = &told_json(Kind::PipelineRun, "ci/build", &[link("build", Some("west"), Uuid::from_u128(9))])[0];
    assert!(forged["not_known"].as_str().unwrap().contains("it names the request"), "{forged}");
    let nothing = &told_json(Kind::Token, "other", &[])[0];
    assert!(
        nothing["found"] == "nothing" && nothing["detail"].as_str().unwrap().contains("no token other"),
        "{nothing}"
    );
}

/// A run with many tokens is printed once.
#[test]
fn tokens_of_one_run_are_listed_below_it() {
    let second =
        exchange().replace("\"jti\"", "\"jti-2\"").replace(&EXCHANGE.to_string(), &Uuid::from_u128(4).to_string());
    let (code, said) = told(Kind::PipelineRun, "ci/build", &[second]);
    assert_eq!(
        (code, said.matches("caused by  alice").count(), said.matches("  token      jti").count()),
        (0, 1, 2),
        "{said}"
    );
}

/// A damaged line must not hide everything else from the trace.
#[test]
fn a_line_that_cannot_be_read_is_skipped_and_reported() {
    let damaged = request(Uuid::from_u128(5), "carol", &json!({})).replace("\"unmapped\":{", "\"unmapped\":[");
    let (code, said) = told(Kind::Token, "jti", std::slice::from_ref(&damaged));
    assert!(code == 1 && said.contains("caused by  alice"), "{said}");
    assert!(said.contains("1 of the lines that were searched cannot be read, the first is line 4 of "), "{said}");
    let (code, said) = told(Kind::Request, &Uuid::from_u128(5).to_string(), &[damaged]);
    assert!(code == 1 && said.contains("no request") && said.contains("cannot be read"), "{said}");
}

/// A delivery that led to nothing must not look like one in progress.
#[test]
fn the_trace_of_a_request_shows_its_outcome() {
    let delivery = Uuid::from_u128(6);
    let answered = |id: Uuid, time: i64, status: u16, more: &Value| {
        let mut line: Value = serde_json::from_str(&request(id, "hook", more)).unwrap();
        line["time"] = time.into();
        line["http_response"] = json!({"code": status});
        if status == 502 {
            line["status_code"] = "upstream_unreachable".into();
        }
        line.to_string()
    };
    let lines = [
        answered(delivery, 1_000, 202, &json!({})),
        answered(Uuid::from_u128(7), 3_000, 202, &json!({"held": delivery, "event_id": "e-1"})),
        answered(Uuid::from_u128(8), 2_000, 502, &json!({"held": delivery})),
    ];
    let (code, said) = told(Kind::Request, &delivery.to_string(), &lines);
    assert!(code == 0 && said.contains("  answered   202 at 1970-01-01T00:00:01.000Z\n"), "{said}");
    assert!(
        said.contains("  sent on    2 times, the last answered 202 at 1970-01-01T00:00:03.000Z, event e-1\n"),
        "{said}"
    );
    let (_, said) = told(Kind::Request, &delivery.to_string(), &[lines[0].clone(), lines[2].clone()]);
    assert!(said.contains("once, answered 502 at 1970-01-01T00:00:02.000Z, upstream_unreachable\n"), "{said}");
    let (_, said) = told(Kind::Request, &CAUSE.to_string(), &[]);
    assert!(said.contains("  answered   not known: its end is not in these files\n"), "{said}");
    let json = &told_json(Kind::Request, &delivery.to_string(), &lines)[0];
    assert_eq!((&json["answer"]["status"], &json["tries"]), (&json!(202), &json!(2)), "{json}");
    assert_eq!(json["last_try"], json!({"time": 3_000, "status": 202, "event": "e-1"}), "{json}");
}

/// A sender that got 202 asks what became of its delivery, and the trace said nothing more than that.
#[test]
fn the_trace_of_a_held_delivery_shows_that_an_operator_retried_and_dropped_it() {
    let (delivery, other) = (Uuid::from_u128(6), Uuid::from_u128(7));
    let facts = json!({"webhook": "github", "delivery": "d-1"});
    let command = |time: i64, command: &str, deliveries: &Value| {
        json!({
            "time": time,
            "metadata": {"event_code": "operator"},
            "actor": {"user": {"uid": "0", "name": "olga"}},
            "unmapped": {"command": command, "why": "no\u{202e} more", "deliveries": deliveries},
        })
        .to_string()
    };
    let it = json!([{"held": "0a1b"}, {"request": delivery, "delivery": "d-1"}]);
    let lines = [
        request(delivery, "hook", &json!({"webhook": facts, "run": null})),
        // The files of several replicas are not in the order of time.
        command(3_000, r#"drop-hook {"webhook":"github"}"#, &it),
        command(2_000, r#"retry-hook {"id":"0a1b2c3d"}"#, &it),
        command(4_000, r#"drop-hook {"id":"0a1b2c3d"}"#, &json!([{"request": other, "delivery": "d-2"}])),
    ];
    for (kind, what) in [(Kind::Delivery, "d-1"), (Kind::Request, delivery.to_string().as_str())] {
        let (code, said) = told(kind, what, &lines);
        let expected = "  retried    1970-01-01T00:00:02.000Z by olga: no\\u202e more\n  \
                        dropped    1970-01-01T00:00:03.000Z by olga: no\\u202e more\n";
        assert!(code == 0 && said.ends_with(expected), "{said}");
        let commands = told_json(kind, what, &lines)[0]["commands"].clone();
        let dropped = json!({"time": 3_000, "did": "dropped", "by": "olga", "why": "no\u{202e} more"});
        assert_eq!((commands.as_array().unwrap().len(), &commands[1]), (2, &dropped), "{commands}");
    }
}

/// A Git host's new id for the same body says nothing of the first delivery.
#[test]
fn the_trace_of_a_duplicate_delivery_names_the_request_that_delivered_it_first() {
    let line = |id: u128, time: i64, status: u16, delivery: &str, body: &str, more: &Value| {
        let mut line: Value = serde_json::from_str(&request(Uuid::from_u128(id), "hook", more)).unwrap();
        line["time"] = time.into();
        line["http_response"] = json!({"code": status});
        line["unmapped"]["webhook"] = json!({"webhook": "github", "delivery": delivery});
        line["unmapped"]["body_sha256"] = body.into();
        if status == 200 {
            line["status_code"] = "replayed_delivery".into();
        }
        line.to_string()
    };
    let other = |id: u128, time: i64, delivery: &str, body: &str| {
        let mut line: Value =
            serde_json::from_str(&line(id, time, 202, delivery, body, &json!({"run": null}))).unwrap();
        line["unmapped"]["webhook"]["webhook"] = "gitea".into();
        line.to_string()
    };
    let none = json!({"run": null});
    let lines = [
        // Another sender uses the same ids, and a second entry of the sender got the same body before.
        other(15, 100, "d-1", "zz"),
        other(16, 200, "d-4", "yy"),
        other(17, 300, "d-9", "aa"),
        other(18, 400, "d-5", "dd"),
        // It failed, and the sender repeated it.
        line(11, 500, 502, "d-1", "aa", &none),
        line(10, 1_000, 202, "d-1", "aa", &none),
        line(12, 1_500, 202, "d-1", "aa", &json!({"run": null, "held": Uuid::from_u128(10)})),
        line(13, 900, 202, "d-0", "bb", &none),
        line(14, 9_000, 202, "d-2", "aa", &none),
        line(20, 2_000, 200, "d-3", "aa", &none),
        line(21, 2_000, 200, "d-1", "bb", &none),
        line(22, 2_000, 200, "d-4", "cc", &none),
        line(23, 2_000, 200, "d-5", "dd", &none),
    ];
    for (id, of) in [(20, Some(10)), (21, Some(10)), (22, None), (23, Some(18))] {
        let (id, of) = (Uuid::from_u128(id).to_string(), of.map(Uuid::from_u128));
        let (code, said) = told(Kind::Request, &id, &lines);
        let expected = match of {
            Some(of) => format!("  repeats    the delivery of request {of}\n"),
            None => "  repeats    a delivery that is not in these files".to_owned(),
        };
        assert!(code == 0 && said.contains(&expected), "{said}");
        let json = &told_json(Kind::Request, &id, &lines)[0];
        assert_eq!(json.get("duplicate_of"), of.map(|of| json!(of)).as_ref(), "{json}");
    }
    let (_, said) = told(Kind::Request, &Uuid::from_u128(10).to_string(), &lines);
    assert!(!said.contains("repeats"), "{said}");
}

#[test]
fn an_empty_id_is_refused() {
    for kind in [Kind::Delivery, Kind::Event, Kind::Token] {
        let args = TraceArgs { kind, what: " ".to_owned(), trails: vec!["audit.jsonl".into()], format: Format::Human };
        let refused = run(&args, &mut Vec::<u8>::new()).unwrap_err();
        assert!(refused.to_string().contains("write its id"), "{kind:?}: {refused}");
    }
}

#[test]
fn a_delivery_whose_arrival_is_not_in_the_files_is_shown_by_the_request_that_sent_it() {
    let (arrival, sent) = (Uuid::from_u128(6), Uuid::from_u128(7));
    let facts = json!({"webhook": "github", "delivery": "d-1"});
    let line = request(sent, "hook", &json!({"held": arrival, "webhook": facts, "run": null, "event_id": "e-1"}));
    let mut line: Value = serde_json::from_str(&line).unwrap();
    line["http_response"] = json!({"code": 202});
    let lines = [line.to_string()];
    for (kind, what) in [(Kind::Delivery, "d-1"), (Kind::Event, "e-1"), (Kind::Request, arrival.to_string().as_str())] {
        let (code, said) = told(kind, what, &lines);
        assert_eq!(code, 1, "something is missing: {said}");
        for part in [
            format!("request {sent} at 1970-01-01T00:16:40.000Z, of hook: POST h/\n"),
            format!("  arrival    request {arrival}, which is not in these files"),
            "  sent on    once, answered 202 at 1970-01-01T00:16:40.000Z, event e-1\n".to_owned(),
        ] {
            assert!(said.contains(&part), "{kind:?} {part}: {said}");
        }
        let json = &told_json(kind, what, &lines)[0];
        assert_eq!((&json["id"], &json["missing_arrival"]), (&json!(sent), &json!(arrival)), "{json}");
    }
    // With its arrival nothing is missing.
    let lines = [request(arrival, "hook", &json!({"webhook": facts, "run": null})), line.to_string()];
    let (code, said) = told(Kind::Delivery, "d-1", &lines);
    assert!(code == 0 && said.starts_with(&format!("request {arrival} at ")) && !said.contains("arrival"), "{said}");
}

/// The trace said that its end was in another file, which nobody could find.
#[test]
fn the_trace_of_a_request_whose_client_left_says_that_nobody_was_answered() {
    let id = Uuid::from_u128(9);
    let mut line: Value =
        serde_json::from_str(&request(id, "ada", &json!({"run": null, "ended": "client_gone"}))).unwrap();
    line["duration"] = 401.into();
    let lines = [line.to_string()];
    let (code, said) = told(Kind::Request, &id.to_string(), &lines);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("  answered   nobody: it ended before there was a response\n"), "{said}");
    assert!(said.contains("  ended      1970-01-01T00:16:40.401Z: client_gone\n"), "{said}");
    let json = &told_json(Kind::Request, &id.to_string(), &lines)[0];
    let ended = json!({"time": 1_000_401, "why": "client_gone"});
    assert_eq!(json["answer"], json!({"time": 1_000_401, "ended": ended}), "{json}");
}

/// For a watch, which continues after its response began, the response says nothing about its end.
#[test]
fn the_trace_of_an_ended_watch_shows_when_and_why_it_ended() {
    let watch = Uuid::from_u128(9);
    let line = |code: &str, more: &Value| {
        let mut line: Value = serde_json::from_str(&request(watch, "ada", more)).unwrap();
        line["metadata"]["event_code"] = code.into();
        line["http_response"] = json!({"code": 200});
        if code == "request.completed" {
            line["duration"] = 61_000.into();
        }
        line.to_string()
    };
    let none = json!({"run": null});
    let started = line("request.started", &none);
    let lost = line("request.completed", &json!({"run": null, "ended": "permission_lost"}));
    let (code, said) = told(Kind::Request, &watch.to_string(), &[started.clone(), lost.clone()]);
    assert!(code == 0 && said.contains("  answered   200 at 1970-01-01T00:16:40.000Z\n"), "{said}");
    assert!(said.contains("  ended      1970-01-01T00:17:41.000Z: permission_lost\n"), "{said}");
    let json = &told_json(Kind::Request, &watch.to_string(), &[started.clone(), lost])[0];
    assert_eq!(json["answer"]["ended"], json!({"time": 1_061_000, "why": "permission_lost"}), "{json}");
    // The counterparts: one that continues, and one that ended by itself.
    for lines in [vec![started.clone()], vec![started, line("request.completed", &none)]] {
        let (_, said) = told(Kind::Request, &watch.to_string(), &lines);
        assert!(said.contains("  answered   200 at") && !said.contains("  ended "), "{said}");
    }
}

/// Control characters were printed unescaped, and erased or reversed the text beside them.
#[test]
fn requests_of_strangers_are_printed_without_control_characters() {
    // attacks:Z19
    let id = Uuid::from_u128(9);
    let mut line: Value = serde_json::from_str(&request(id, "bob\u{202e}", &json!({}))).unwrap();
    line["http_request"]["url"] = json!({"hostname": "h\u{9b}", "path": "/\u{9b}2J\u{202e}"});
    let (code, said) = told(Kind::Request, &id.to_string(), &[line.to_string()]);
    assert_eq!(code, 0, "{said:?}");
    assert!(said.contains(r"of bob\u202e: POST h\u009b/\u009b2J\u202e"), "{said:?}");
    assert!(!said.chars().any(|char| (char.is_control() && char != '\n') || char == '\u{202e}'), "{said:?}");
}

#[test]
fn the_name_of_a_caller_forges_no_line_of_a_trace() {
    let id = Uuid::from_u128(9);
    let made = request(id, "eve\n  caused by  alice", &json!({}));
    let link = link("mine", None, id).replace(r#""uid":"r""#, r#""uid":"s""#);
    let (code, said) = told(Kind::PipelineRun, "ci/mine", &[made, link]);
    assert!(code == 0 && said.contains(r"  caused by  eve\n  caused by  alice (a person of corp)"), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("  caused by")).count(), 1, "{said}");
}
