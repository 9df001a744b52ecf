use serde_json::{Value, json};

use super::*;

const REQUEST: Uuid = Uuid::from_u128(1);
const ARRIVAL: Uuid = Uuid::from_u128(2);

fn request(id: Uuid, code: &str, unmapped: &Value) -> String {
    json!({
        "time": 1_000_000,
        "metadata": {"correlation_uid": id, "event_code": code},
        "http_request": {"uid": id, "http_method": "POST", "url": {"hostname": "api.test", "path": "/"}},
        "authorizations": [{"decision": "allow", "policy": {"uid": "r", "version": "p"}}],
        "unmapped": unmapped,
    })
    .to_string()
}

/// Creates a record with these additional members.
fn with(line: &str, members: &Value) -> String {
    let mut line: Value = serde_json::from_str(line).unwrap();
    line.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    line.to_string()
}

fn creates(namespace: &str) -> Value {
    json!({
        "kubernetes": {"is_resource": true, "verb": "create", "namespace": namespace, "resource": "pipelineruns"},
        "run": {"does": "create"},
    })
}

fn link(name: &str, uid: &str, created: i64, cause: &Value) -> String {
    let mut linked = json!({"kind": "PipelineRun", "namespace": "ci", "name": name, "uid": uid, "created": created});
    linked.as_object_mut().unwrap().extend(cause.as_object().unwrap().clone());
    json!({"metadata": {"event_code": "run.linked"}, "unmapped": {"linked": linked}}).to_string()
}

fn traced(lines: &[String], name: &str) -> Vec<TracedRun> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    trace(&Files::new(vec![file.path().to_owned()]), RunKind::PipelineRun, "ci", name).unwrap()
}

#[test]
fn a_request_counts_for_the_first_run_that_it_made_and_for_no_other() {
    let asked = json!({"request": REQUEST});
    // The copy was seen first, because it was first in a list after a gap, but it was created later.
    let lines = [
        request(REQUEST, "request.decided", &creates("ci")),
        link("copy", "u2", 1_002_000, &asked),
        link("real", "u1", 1_001_000, &asked),
    ];
    let real = traced(&lines, "real").remove(0);
    assert_eq!(real.cause.unwrap().request.id, REQUEST);
    let copy = traced(&lines, "copy").remove(0);
    assert_eq!(copy.cause.unwrap_err(), NoCause::Copied { request: REQUEST, uid: "u1".to_owned() });
}

#[test]
fn a_request_that_made_no_run_there_made_none_that_names_it() {
    let asked = json!({"request": REQUEST});
    for other in [creates("elsewhere"), json!({"kubernetes": {"verb": "get", "namespace": "ci"}}), json!({})] {
        let lines = [request(REQUEST, "request", &other), link("run", "u", 1_001_000, &asked)];
        assert_eq!(traced(&lines, "run").remove(0).cause.unwrap_err(), NoCause::Forged(REQUEST), "{other}");
    }
    let unknown = traced(&[link("run", "u", 0, &asked)], "run").remove(0);
    assert_eq!(unknown.cause.unwrap_err(), NoCause::UnknownRequest(REQUEST));
}

#[test]
fn a_request_that_was_denied_or_failed_made_no_run_that_names_it() {
    let made = |more: &Value| with(&request(REQUEST, "request", &creates("ci")), more);
    let decided = request(REQUEST, "request.decided", &creates("ci"));
    let completed = |more: &Value| with(&request(REQUEST, "request.completed", &creates("ci")), more);
    let answered = |code: u16| json!({"http_response": {"code": code}});
    let failed = |reason: &str| json!({"status_code": reason, "http_response": {"code": 504}});
    for (what, lines, counts) in [
        ("denied", vec![made(&json!({"authorizations": [{"decision": "deny"}]}))], false),
        ("nothing decided", vec![made(&json!({"authorizations": []}))], false),
        ("answered 409", vec![decided.clone(), completed(&answered(409))], false),
        ("answered 201", vec![decided.clone(), completed(&answered(201))], true),
        (
            "answered 504 by the API server, which may have made it",
            vec![decided.clone(), completed(&answered(504))],
            true,
        ),
        ("no answer is known", vec![decided.clone()], true),
        ("no answer came in time", vec![decided.clone(), completed(&failed("upstream_timeout"))], true),
        ("it was not sent", vec![decided, completed(&failed("upstream_unreachable"))], false),
    ] {
        let lines = [lines, vec![link("run", "u", 1_001_000, &json!({"request": REQUEST}))]].concat();
        let cause = traced(&lines, "run").remove(0).cause;
        assert_eq!(cause.is_ok(), counts, "{what}");
        assert!(counts || cause.unwrap_err() == NoCause::Forged(REQUEST), "{what}");
    }
}

#[test]
fn an_event_counts_for_what_was_made_soon_after_it() {
    let came = json!({"event_id": "e"});
    let lines = |created| {
        [
            request(ARRIVAL, "request", &json!({"webhook": {"webhook": "github", "delivery": "d"}})),
            request(REQUEST, "request.decided", &json!({"held": ARRIVAL})),
            request(REQUEST, "request.completed", &json!({"held": ARRIVAL, "event_id": "e"})),
            link("run", "u", created, &came),
        ]
    };
    let cause = traced(&lines(1_001_000), "run").remove(0).cause.unwrap();
    assert_eq!((cause.request.id, cause.sent.as_ref().unwrap().id), (ARRIVAL, REQUEST));
    assert!(cause.to_string().contains("delivery   d of github"), "{cause}");
    for (made, said) in [
        (1_000_000 + 149_000, None),
        (1_000_000 + 151_000, Some("151 s after it")),
        (1_000_000 - 29_000, None),
        (1_000_000 - 31_000, Some("31 s before it")),
    ] {
        let cause = traced(&lines(made), "run").remove(0).cause;
        assert_eq!(cause.is_err(), said.is_some(), "{made}");
        if let Some(said) = said {
            let why = cause.unwrap_err().to_string();
            assert!(why.contains(said), "{why}");
        }
    }
    let unknown = traced(&lines(1_001_000)[3..], "run").remove(0).cause.unwrap_err();
    assert_eq!(unknown, NoCause::UnknownEvent("e".to_owned()));
}

/// Regression: nothing was named as the cause, although the trail had the delivery where it was sent on.
#[test]
fn a_held_delivery_whose_arrival_is_missing_is_the_cause_by_the_request_that_sent_it() {
    let facts = json!({"webhook": "github", "delivery": "d"});
    let lines = [
        request(REQUEST, "request.decided", &json!({"held": ARRIVAL, "webhook": facts})),
        request(REQUEST, "request.completed", &json!({"held": ARRIVAL, "webhook": facts, "event_id": "e"})),
        link("run", "u", 1_001_000, &json!({"event_id": "e"})),
    ];
    let (_file, files) = trail(&(lines.join("\n") + "\n"));
    let of_run = traced(&lines, "run").remove(0).cause.unwrap();
    let of_token = trace_cause(&files, REQUEST).unwrap().unwrap();
    for cause in [of_run, of_token] {
        assert_eq!((cause.request.id, cause.missing_arrival), (REQUEST, Some(ARRIVAL)));
        let said = cause.to_string();
        for part in [
            "  delivery   d of github\n",
            &format!("  request    {ARRIVAL}, which is not in these files"),
            &format!("  sent by    {REQUEST} at "),
            "  event      e\n",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    let found = |known_by| arrivals(&files, known_by).unwrap();
    assert_eq!([found(Arrival::Delivery("d")), found(Arrival::Event("e"))], [[ARRIVAL], [ARRIVAL]]);
    assert_eq!(sent_on(&files, ARRIVAL).unwrap().unwrap().id, REQUEST);
    assert!(sent_on(&files, REQUEST).unwrap().is_none());
}

/// Regression: a delivery was shown as never sent on if a kill lost how that ended.
#[test]
fn an_attempt_whose_end_is_missing_counts_and_has_no_answer() {
    let sent = |id, code, time: i64, more: &Value| {
        with(&with(&request(id, code, &json!({"held": ARRIVAL})), &json!({"time": time})), more)
    };
    let decided = |id, time| sent(id, "request.decided", time, &json!({}));
    let failed = |id, time| sent(id, "request.completed", time, &json!({"http_response": {"code": 503}}));
    let (first, second) = (REQUEST, Uuid::from_u128(3));
    for (lines, tries, last) in [
        (vec![decided(first, 1)], 1, None),
        (vec![decided(first, 1), failed(first, 1)], 1, Some(503)),
        (vec![decided(first, 1), failed(first, 1), decided(second, 2)], 2, None),
        (vec![decided(first, 1), decided(second, 2), failed(second, 2)], 2, Some(503)),
    ] {
        let (_file, files) = trail(&(lines.join("\n") + "\n"));
        let found = answers(&files, ARRIVAL).unwrap();
        let said = found.to_string();
        assert_eq!((found.tries, found.last_try.and_then(|answer| answer.status)), (tries, last), "{said}");
        let unknown = said.lines().any(|line| line.starts_with("  sent on ") && line.contains("answer is not known"));
        assert_eq!(unknown, last.is_none(), "{said}");
    }
}

#[test]
fn an_apply_that_made_a_run_is_its_cause() {
    let mut applies = creates("ci");
    applies["run"]["does"] = json!("apply");
    let lines = [request(REQUEST, "request", &applies), link("run", "u", 1_001_000, &json!({"request": REQUEST}))];
    assert_eq!(traced(&lines, "run").remove(0).cause.unwrap().request.id, REQUEST);
}

#[test]
fn a_delivery_is_found_by_the_id_of_its_sender_and_by_its_event() {
    let facts = json!({"webhook": "github", "delivery": "d"});
    let again = Uuid::from_u128(3);
    let lines = [
        request(ARRIVAL, "request", &json!({"webhook": facts})),
        request(REQUEST, "request.decided", &json!({"held": ARRIVAL, "webhook": facts})),
        request(REQUEST, "request.completed", &json!({"held": ARRIVAL, "event_id": "e"})),
        request(again, "request", &json!({"webhook": facts})),
        // It was repeated while it was held, which is known only at the end.
        request(Uuid::from_u128(6), "request.decided", &json!({"webhook": facts})),
        request(Uuid::from_u128(6), "request.completed", &json!({"webhook": facts, "about": ARRIVAL})),
        request(Uuid::from_u128(4), "request", &json!({"webhook": {"webhook": "github", "delivery": "other"}})),
        // A task of its run asks for a token.
        request(Uuid::from_u128(5), "request", &json!({"webhook": facts, "asked": {"audience": "x"}})),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    let found = |known_by| arrivals(&Files::new(vec![file.path().to_owned()]), known_by).unwrap();
    assert_eq!(found(Arrival::Delivery("d")), [ARRIVAL, again]);
    assert_eq!(found(Arrival::Event("e")), [ARRIVAL]);
    assert!(found(Arrival::Delivery("e")).is_empty());
}

#[test]
fn a_run_made_by_a_request_is_not_traced_to_the_delivery_whose_event_it_copies() {
    let lines = [
        request(ARRIVAL, "request", &json!({"webhook": {"webhook": "github", "delivery": "d"}, "event_id": "e"})),
        request(REQUEST, "request", &creates("ci")),
        link("built", "u1", 1_001_000, &json!({"event_id": "e"})),
        link("again", "u2", 1_002_000, &json!({"event_id": "e", "request": REQUEST})),
    ];
    assert_eq!(traced(&lines, "again").remove(0).cause.unwrap().request.id, REQUEST);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    for (id, uid) in [(ARRIVAL, "u1"), (REQUEST, "u2")] {
        let caused = trace_request(&Files::new(vec![file.path().to_owned()]), id).unwrap();
        assert_eq!(caused.iter().map(|run| run.uid.as_str()).collect::<Vec<_>>(), [uid]);
    }
}

#[test]
fn runs_that_had_the_same_name_are_distinguished() {
    let asked = |id| json!({"request": id});
    let lines = [
        request(REQUEST, "request", &creates("ci")),
        request(ARRIVAL, "request", &creates("ci")),
        link("run", "u2", 2_000_000, &asked(ARRIVAL)),
        link("run", "u1", 1_000_000, &asked(REQUEST)),
    ];
    let runs = traced(&lines, "run");
    let causes: Vec<_> = runs.iter().map(|run| (run.uid.as_str(), run.cause.as_ref().unwrap().request.id)).collect();
    assert_eq!(causes, [("u1", REQUEST), ("u2", ARRIVAL)]);
}

/// The record has both, and 502 is the status that Doorward would have sent to a sender that still waited.
#[test]
fn the_last_attempt_of_a_delivery_is_reported_by_the_answer_of_its_receiver() {
    let ended = |id, more: &Value| {
        let mut line: Value = serde_json::from_str(&request(id, "request.completed", more)).unwrap();
        line["http_response"] = json!({"code": 502});
        line.to_string()
    };
    for (upstream, said) in [(json!({"name": "el", "status": 503}), 503), (json!({"name": "el"}), 502)] {
        let lines = [
            ended(ARRIVAL, &json!({"held": ARRIVAL, "upstream": {"status": 503}})),
            ended(REQUEST, &json!({"held": ARRIVAL, "upstream": upstream})),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
        let found = answers(&Files::new(vec![file.path().to_owned()]), ARRIVAL).unwrap();
        assert_eq!((found.tries, found.last_try.and_then(|answer| answer.status)), (1, Some(said)));
        assert_eq!(found.answer.and_then(|answer| answer.status), Some(502), "its own answer is ours");
    }
}

/// Regression: the trace showed when the request arrived, not when it was answered.
#[test]
fn an_answer_has_the_time_at_which_it_was_over() {
    let lines = [
        request(REQUEST, "request.decided", &json!({})),
        with(
            &request(REQUEST, "request.completed", &json!({})),
            &json!({"duration": 2_500, "http_response": {"code": 201}}),
        ),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n") + "\n").unwrap();
    let found = answers(&Files::new(vec![file.path().to_owned()]), REQUEST).unwrap();
    assert_eq!(found.answer.map(|answer| (answer.status, answer.time)), Some((Some(201), 1_002_500)));
}

/// A trail of this text. It is read for as long as the file is there.
fn trail(text: &str) -> (tempfile::NamedTempFile, Files) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let files = Files::new(vec![file.path().to_owned()]);
    (file, files)
}

/// The response to whoever cancels a run shows its annotations. Others could copy them to a run that they make past
/// Doorward, and a request that only cancelled a run would be named as its cause.
#[test]
fn a_request_that_only_changed_a_run_is_the_cause_of_none() {
    for (does, counts) in
        [("create", true), ("apply", true), ("cancel", false), ("pause", false), ("start", false), ("change", false)]
    {
        let mut asked = creates("ci");
        asked["run"]["does"] = json!(does);
        let lines = [request(REQUEST, "request", &asked), link("run", "u", 1_001_000, &json!({"request": REQUEST}))];
        let cause = traced(&lines, "run").remove(0).cause;
        assert_eq!(cause.is_ok(), counts, "{does}");
        assert!(counts || cause.unwrap_err() == NoCause::Forged(REQUEST), "{does}");
    }
}

#[test]
fn only_an_error_in_the_response_to_the_same_request_says_that_it_made_nothing() {
    let answered = |id, members: &Value| with(&request(id, "request.completed", &creates("ci")), members);
    for (what, answer) in [
        ("another request failed", answered(ARRIVAL, &json!({"http_response": {"code": 409}}))),
        (
            "the response broke off after its status",
            answered(REQUEST, &json!({"status_code": "upstream_failed", "http_response": {"code": 201}})),
        ),
    ] {
        let decided = request(REQUEST, "request.decided", &creates("ci"));
        let lines = [decided, answer, link("run", "u", 1_001_000, &json!({"request": REQUEST}))];
        assert_eq!(traced(&lines, "run").remove(0).cause.unwrap().request.id, REQUEST, "{what}");
    }
}

#[test]
fn runs_are_found_by_kind_namespace_name_and_uid() {
    let asked = json!({"request": REQUEST, "cluster": "c"});
    let lines = [
        request(REQUEST, "request", &creates("ci")),
        link("run", "u1", 1_001_000, &asked),
        link("other", "u2", 1_002_000, &asked),
    ];
    let (_file, files) = trail(&(lines.join("\n") + "\n"));
    for (kind, namespace, name, found) in [
        (RunKind::PipelineRun, "ci", "run", 1),
        (RunKind::TaskRun, "ci", "run", 0),
        (RunKind::PipelineRun, "prod", "run", 0),
        (RunKind::PipelineRun, "ci", "third", 0),
    ] {
        let runs = trace(&files, kind, namespace, name).unwrap();
        assert_eq!(runs.len(), found, "{} {namespace}/{name}", kind.name());
    }
    for uid in ["u1", "u2"] {
        assert_eq!(trace_uid(&files, "c", uid).unwrap().unwrap().uid, uid);
    }
    assert!(trace_uid(&files, "c", "u3").unwrap().is_none());
}

/// Claims are JSON that an issuer wrote. They can hold what looks like the metadata of another request.
#[test]
fn a_record_whose_claims_name_another_request_is_not_mistaken_for_its_record() {
    let claims = json!({"claims": {"correlation_uid": REQUEST}});
    let [other, own] = [request(ARRIVAL, "request", &claims), request(REQUEST, "request", &json!({}))];
    let (_file, files) = trail(&format!("{other}\n{own}\n"));
    assert_eq!(files.request(REQUEST).unwrap().unwrap().id, REQUEST);
    let (_file, files) = trail(&format!("{other}\n"));
    assert!(files.request(REQUEST).unwrap().is_none());
}

#[test]
fn a_line_that_is_being_written_is_not_reported_as_damaged() {
    let line = request(REQUEST, "request", &json!({"a": "b"}));
    let half = &line[..line.len() - 4];
    for (what, end, damaged) in [("it is being written", "", 0), ("it was damaged", "\n", 1)] {
        let (_file, files) = trail(&format!("{line}\n{half}{end}"));
        let mut read = 0;
        files.requests(|_| read += 1).unwrap();
        assert_eq!((read, files.unreadable().len()), (1, damaged), "{what}");
    }
}
