//! Which bodies of runs are accepted, and what is sent for them.

use http::HeaderValue;
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

use super::{super::template, *};
use crate::authn::{Principal, Scheme};

fn read(verb: &str, media: &'static str, body: &str) -> Result<Document, Unreadable> {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media))]);
    Document::read(RunType { kind: RunKind::PipelineRun, version: "v1" }, verb, &headers, body.as_bytes(), "default")
}

fn sent(document: Document) -> Value {
    let principal = Principal::new(Scheme::Bearer, "corp", "7", "alice");
    let attribution = Attribution { principal: &principal, rule: None, request: Uuid::from_u128(7) };
    serde_json::from_slice(&document.into_body(&attribution).0).unwrap()
}

#[test]
fn yaml_is_sent_as_the_json_that_was_read() {
    let yaml = "kind: PipelineRun\nspec:\n  pipelineRef: {name: deploy}\n  taskRunTemplate: {serviceAccountName: on}\n";
    let document = read("create", "application/yaml; charset=utf-8", yaml).unwrap();
    assert_eq!(document.run.service_accounts, [Arc::<str>::from("on")]);
    assert_eq!(
        sent(document)["spec"],
        json!({"pipelineRef": {"name": "deploy"}, "taskRunTemplate": {"serviceAccountName": "on"}})
    );
}

/// attacks:Z23: an alias is replaced by its anchor, and anything that two readers could read differently is refused.
#[test]
fn an_alias_is_read_as_its_anchor_and_merge_keys_tags_and_second_documents_are_refused() {
    let run = |name: &str, spec: &str| format!("kind: PipelineRun\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    let aliased = run("&n builder", "{pipelineRef: {name: deploy}, taskRunTemplate: {serviceAccountName: *n}}");
    let document = read("create", "application/yaml", &aliased).unwrap();
    assert_eq!(document.run.service_accounts, [Arc::<str>::from("builder")]);
    assert_eq!(sent(document)["spec"]["taskRunTemplate"], json!({"serviceAccountName": "builder"}));
    let account = "taskRunTemplate: {serviceAccountName: builder}";
    for body in [
        run("a", &format!("{{pipelineRef: &p {{name: deploy}}, taskRef: {{<<: *p}}, {account}}}")),
        run("a", &format!("{{pipelineRef: &p {{name: deploy}}, taskRef: {{<<: *p, name: other}}, {account}}}")),
        run("a", "{pipelineRef: {name: deploy}, taskRunTemplate: {serviceAccountName: !own builder}}"),
        format!("{}---\n{}", run("a", &format!("{{{account}}}")), run("a", "{}")),
    ] {
        assert!(matches!(read("create", "application/yaml", &body), Err(Unreadable::Yaml(_))), "{body}");
    }
}

/// Regression: the error was reported as one of YAML, or of another type.
#[test]
fn malformed_json_is_reported_without_repeating_the_body() {
    for (verb, media, body, why) in [
        (
            "create",
            "application/json",
            r#"{"kind":"PipelineRun""#,
            "is not valid JSON: EOF while parsing an object at line 1 column 21",
        ),
        ("create", "application/json", r#"{"kind": hunter2}"#, "is not valid JSON: expected value at line 1 column 10"),
        ("create", "application/json", "kind: PipelineRun", "is not valid JSON: expected value at line 1 column 1"),
        (
            "patch",
            "application/merge-patch+json",
            r#"{"spec":"#,
            "is not valid JSON: EOF while parsing a value at line 1 column 8",
        ),
        ("patch", "application/json-patch+json", r#"[{"op":"test"}"#, "is not valid JSON"),
        ("create", "application/json", r#"{"spec":{},"spec":{}}"#, "has a member twice"),
        ("create", "application/yaml", "kind: [PipelineRun", "is not valid, unambiguous YAML"),
        (
            "patch",
            "application/apply-patch+yaml",
            "{kind: PipelineRun, kind: TaskRun}",
            "is not valid, unambiguous YAML",
        ),
    ] {
        let refused = Rejection::from(read(verb, media, body).unwrap_err());
        assert_eq!(refused.reason(), Reason::BadRequest, "{media} {body}");
        let said = refused.detail();
        assert!(said.contains(why) && !said.contains("hunter2"), "{media} {body}: {said}");
    }
    let none = Document::read(
        RunType { kind: RunKind::PipelineRun, version: "v1" },
        "create",
        &HeaderMap::new(),
        b"kind: PipelineRun",
        "default",
    );
    assert!(matches!(none, Err(Unreadable::Syntax(_))), "without a type it is JSON");
    assert!(read("patch", "application/apply-patch+yaml", "kind: PipelineRun").is_ok());
}

#[test]
fn a_run_that_names_no_account_has_the_one_that_tekton_gives() {
    let none = json!({"spec": {"taskRunSpecs": [{"serviceAccountName": "part"}]}}).to_string();
    let one = json!({"spec": {"serviceAccountName": "own"}}).to_string();
    for (kind, body, expected) in [
        (RunKind::PipelineRun, &none, &["given", "part"][..]),
        (RunKind::TaskRun, &none, &["given"]),
        (RunKind::CustomRun, &none, &["given"]),
        (RunKind::TaskRun, &one, &["own"]),
    ] {
        let document =
            Document::read(RunType { kind, version: "v1" }, "create", &HeaderMap::new(), body.as_bytes(), "given")
                .unwrap();
        assert_eq!(document.run.service_accounts.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{kind:?}");
    }
}

#[test]
fn the_account_that_was_decided_on_is_written_into_a_run_that_names_none() {
    let empty = json!({"spec": {}});
    let part = json!({"spec": {"taskRunSpecs": [{"serviceAccountName": "part"}]}});
    let template = "/spec/taskRunTemplate/serviceAccountName";
    for (kind, version, body, place, expected) in [
        (RunKind::PipelineRun, "v1", &part, template, "given"),
        (RunKind::PipelineRun, "v1", &json!({"spec": {"taskRunTemplate": null}}), template, "given"),
        // Whatever version the body names: the API server reads it as that of the path.
        (RunKind::PipelineRun, "v1beta1", &empty, "/spec/serviceAccountName", "given"),
        (RunKind::TaskRun, "v1", &empty, "/spec/serviceAccountName", "given"),
        (RunKind::CustomRun, "v1beta1", &json!({}), "/spec/serviceAccountName", "given"),
        (RunKind::TaskRun, "v1", &json!({"spec": {"serviceAccountName": "own"}}), "/spec/serviceAccountName", "own"),
    ] {
        let read = |body: &str| {
            Document::read(RunType { kind, version }, "create", &HeaderMap::new(), body.as_bytes(), "given").unwrap()
        };
        let mut document = read(&body.to_string());
        document.name_account(RunType { kind, version }, "given");
        let accounts = document.run.service_accounts.clone();
        let sent = sent(document);
        assert_eq!(sent.pointer(place), Some(&json!(expected)), "{kind:?} {body}");
        assert_eq!(read(&sent.to_string()).run.service_accounts, accounts, "{kind:?} {body}");
    }
}

/// The annotation from which kubectl computes what to remove contains what was applied with `--server-side`, with all
/// additions.
#[test]
fn an_apply_of_kubectl_takes_nothing_away_that_was_written_here() {
    const LAST: &str = "kubectl.kubernetes.io/last-applied-configuration";
    for media in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        let patched = |metadata: Value, spec: Value| {
            read("patch", media, &json!({"metadata": metadata, "spec": spec}).to_string()).map(sent)
        };
        let removals = json!({LAST: "{}", "doorward.dev/client": null, "Doorward.dev/x": null, "team": null});
        let labels = json!({"doorward.dev/rule": null, crate::runs::EVENT_ID: null, "app": null});
        let within = json!({"taskSpec": {"metadata": {"annotations": {"doorward.dev/rule": null}}}});
        assert_eq!(
            patched(json!({"uid": null, "annotations": removals, "labels": labels}), within).unwrap(),
            json!({
                "metadata": {"uid": null, "annotations": {LAST: "{}", "team": null}, "labels": {"app": null}},
                "spec": {"taskSpec": {"metadata": {"annotations": {}}}},
            })
        );
        // This opens no way to change them, or to remove them by other means.
        for metadata in [
            json!({"annotations": {LAST: "{}", "doorward.dev/client": "mallory"}}),
            json!({"annotations": {LAST: "{}", "doorward.dev/client": {}}}),
            json!({"annotations": {LAST: "{}"}, "labels": {crate::runs::EVENT_ID: "of another"}}),
            json!({"annotations": {LAST: "{}"}, "labels": null}),
        ] {
            let sent = patched(metadata.clone(), json!({})).unwrap();
            let (annotations, labels) = (&sent["metadata"]["annotations"], &sent["metadata"]["labels"]);
            assert_eq!(annotations, &json!({LAST: "{}"}), "{metadata}");
            assert!(labels.as_object().is_none_or(Map::is_empty), "{metadata}: {labels}");
            assert_eq!(sent["metadata"]["resourceVersion"], "1", "{metadata} does nothing before the run is known");
        }
        for metadata in [
            json!({"labels": null}),
            json!({"annotations": {LAST: null, "doorward.dev/client": null}}),
            json!({"annotations": {LAST: 7, "doorward.dev/client": null}}),
            json!({"annotations": {"doorward.dev/client": null}}),
            json!({"labels": {crate::runs::EVENT_ID: null}}),
        ] {
            let refused = patched(metadata.clone(), json!({})).unwrap_err();
            let is_told = matches!(refused, Unreadable::Attribution | Unreadable::Label(_) | Unreadable::Labels);
            assert!(is_told, "{metadata}: {refused}");
        }
        let listed = json!({"taskRunSpecs": [{"metadata": {"annotations": {"doorward.dev/rule": null}}}]});
        let refused = patched(json!({"annotations": {LAST: "{}"}}), listed).unwrap_err();
        assert!(matches!(refused, Unreadable::Attribution), "a list takes the place of another as it is: {refused}");
    }
}

/// Regression: the advice was that for a patch that names one label, or for an encoding.
#[test]
fn a_body_that_is_refused_for_all_its_labels_or_its_text_says_what_would_do() {
    for (media, body, advice) in [
        ("application/merge-patch+json", &br#"{"metadata":{"labels":null}}"#[..], "name each label"),
        (
            "application/json-patch+json",
            br#"[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]"#,
            "name each label",
        ),
        ("application/merge-patch+json", b"\xa1\x61a\x01", "send it in UTF-8"),
    ] {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media))]);
        let of = RunType { kind: RunKind::PipelineRun, version: "v1" };
        let read = Document::read(of, "patch", &headers, body, "default");
        let refused = Rejection::from(read.unwrap_err());
        assert!(refused.fix_text().is_some_and(|fix| fix.starts_with(advice)), "{media}: {refused:?}");
    }
}

/// Regression: most had the advice for names that are given twice or misspelt, though these were not.
#[test]
fn a_body_that_has_another_shape_than_its_path_or_type_says_what_would_do() {
    const MERGE: &str = "application/merge-patch+json";
    const OPERATIONS: &str = r#"[{"op":"add","path":"/spec/status","value":"Cancelled"}]"#;
    for (verb, media, body, why, advice) in [
        ("create", "application/json", r#"{"kind":"TaskRun"}"#, "the body is a TaskRun", "to the path of its own kind"),
        ("create", "application/json", r#"{"kind":"List","items":[]}"#, "the body is a List", "send each object alone"),
        ("create", "application/json", r#"{"metadata":{"annotations":[]}}"#, "is not an object", "correct that"),
        ("create", "application/json", "\u{feff}{}", "preceded by a byte order mark", "without a byte order mark"),
        ("patch", "application/json-patch+json", "\u{feff}[]", "preceded by a byte order mark", "send it in UTF-8"),
        ("patch", MERGE, OPERATIONS, "is not a JSON object", "`application/json-patch+json`"),
        ("patch", "", "{}", "the body has no content type", "application/merge-patch+json"),
        ("create", "application/json", r#"{"spec":{},"spec":{}}"#, "has a member twice", "each name only once"),
    ] {
        let refused = Rejection::from(read(verb, media, body).unwrap_err());
        assert!(refused.detail().contains(why), "{verb} {media} {body}: {refused:?}");
        assert!(refused.fix_text().is_some_and(|fix| fix.contains(advice)), "{verb} {media} {body}: {refused:?}");
    }
}

/// The API server drops them, so the run would have another account than the one that it seems to name.
#[test]
fn accounts_and_templates_of_another_version_are_refused() {
    let of = |kind, version, spec: Value| {
        let body = json!({"spec": spec}).to_string();
        Document::read(RunType { kind, version }, "create", &HeaderMap::new(), body.as_bytes(), "given").map(|_| ())
    };
    for (kind, good, bad, spec) in [
        (RunKind::PipelineRun, "v1beta1", "v1", json!({"serviceAccountName": "a"})),
        (RunKind::PipelineRun, "v1beta1", "v1", json!({"podTemplate": {}})),
        (RunKind::PipelineRun, "v1beta1", "v1", json!({"taskRunSpecs": [{"taskServiceAccountName": "a"}]})),
        (RunKind::PipelineRun, "v1beta1", "v1", json!({"taskRunSpecs": [{}, {"taskPodTemplate": {}}]})),
        (RunKind::PipelineRun, "v1", "v1beta1", json!({"taskRunTemplate": {"serviceAccountName": "a"}})),
        (RunKind::PipelineRun, "v1", "v1beta1", json!({"taskRunSpecs": [{"serviceAccountName": "a"}]})),
        (RunKind::PipelineRun, "v1", "v1beta1", json!({"taskRunSpecs": [{"podTemplate": {}}]})),
    ] {
        assert!(of(kind, good, spec.clone()).is_ok(), "{good} {spec}");
        let refused = of(kind, bad, spec.clone()).unwrap_err().to_string();
        assert!(refused.contains("is not a field of a PipelineRun") && refused.contains(bad), "{refused}");
    }
    assert!(of(RunKind::TaskRun, "v1", json!({"taskRunTemplate": {}})).is_err());
    assert!(of(RunKind::TaskRun, "v1", json!({"serviceAccountName": "a", "podTemplate": {}})).is_ok());
}

#[test]
fn ambiguous_documents_are_refused() {
    let (json, merge, patch) = ("application/json", "application/merge-patch+json", "application/json-patch+json");
    for (verb, media, body, why) in [
        ("create", json, r#"{"spec":{"serviceAccountName":"a","serviceAccountName":"b"}}"#, "has a member twice"),
        (
            "create",
            "application/yaml",
            "spec: {serviceAccountName: a, serviceAccountName: b}",
            "is not valid, unambiguous YAML",
        ),
        ("create", json, r#"{"spec":{"ServiceAccountName":"a"}}"#, "the field `ServiceAccountName`"),
        ("create", json, r#"{"spec":{"\u017ferviceAccountName":"a"}}"#, "the field `\u{17f}erviceAccountName`"),
        ("create", json, r#"{"spec":{"taskRunSpecs":[{"PodTemplate":{}}]}}"#, "the field `PodTemplate`"),
        (
            "create",
            json,
            r#"{"spec":{"params":[{"name":"a","value":"1"},{"name":"a","value":"2"}]}}"#,
            "`a` is given twice",
        ),
        ("patch", merge, r#"{"spec":{"Status":"Cancelled"}}"#, "the field `Status`"),
        ("patch", "application/strategic-merge-patch+json", r#"{"spec":{"Status":"Cancelled"}}"#, "the field `Status`"),
        ("patch", patch, r#"[{"op":"add","path":"/spec/Status","value":"Cancelled"}]"#, "the field `Status`"),
        ("patch", patch, r#"[{"op":"replace","path":"/spec","value":{"Status":"Cancelled"}}]"#, "the field `Status`"),
        ("patch", patch, r#"[{"op":"move","from":"/spec/Params/0","path":"/spec/params/1"}]"#, "the field `Params`"),
        ("create", json, r#"{"kind":"TaskRun"}"#, "the body is a TaskRun"),
        ("create", json, r#"{"kind":"Run"}"#, "the body is a Run"),
        ("create", json, r#"{"spec":[]}"#, "`spec` is not an object"),
        ("create", json, r#"{"metadata":null}"#, "`metadata` is not an object"),
        ("create", json, r#"{"metadata":{"annotations":"x"}}"#, "`metadata.annotations` is not an object"),
        ("create", json, r#"{"metadata":{"labels":"x"}}"#, "`metadata.labels` is not an object"),
        ("create", json, r#"{"metadata":{"labels":[]}}"#, "`metadata.labels` is not an object"),
        ("create", json, "[]", "is not a JSON object"),
        ("create", json, "", "is not valid JSON"),
        ("patch", "application/json-patch+json", r#"[],"x":1"#, "is not a list of operations"),
        (
            "patch",
            "application/json-patch+json",
            r#"[{"op":"add","op":"remove","path":"/spec/status"}]"#,
            "has a member twice",
        ),
        ("patch", "application/json-patch+json", "{}", "is not a list of operations"),
        ("patch", json, "{}", "of type `application/json` cannot be read"),
        ("create", "application/cbor", "{}", "of type `application/cbor` cannot be read"),
        ("update", json, "{}", "cannot be replaced"),
    ] {
        let refused = read(verb, media, body).unwrap_err().to_string();
        assert!(refused.contains(why), "{verb} {media} {body}: {refused}");
    }
    // The twins: names chosen by people are not checked.
    for body in [
        r#"{"spec":{"params":[{"name":"a","value":{"Name":"1"}},{"name":"b","value":"2"}]}}"#,
        r#"{"metadata":{"labels":{"Spec":"x"},"annotations":null}}"#,
        r#"{"metadata":{"labels":null}}"#,
        r#"{"metadata":{"labels":{}}}"#,
        r#"{"spec":{"pipelineSpec":{"params":[{"name":"image","type":"object","properties":{"Name":{"type":"string"}}}]}}}"#,
        r#"{"spec":{"taskSpec":{"volumes":[{"name":"v","csi":{"driver":"d","volumeAttributes":{"Secret":"x"}}}]}}}"#,
    ] {
        assert!(read("create", json, body).is_ok(), "{body}");
    }
    for (media, body) in [
        (merge, r#"{"spec":{"status":"Cancelled"}}"#),
        ("application/strategic-merge-patch+json", r#"{"spec":{"status":"Cancelled"}}"#),
        (patch, r#"[{"op":"add","path":"/spec/status","value":"Cancelled"}]"#),
        (patch, r#"[{"op":"replace","path":"/spec","value":{"status":"Cancelled"}}]"#),
        (patch, r#"[{"op":"move","from":"/spec/params/0","path":"/spec/params/1"}]"#),
    ] {
        assert!(read("patch", media, body).is_ok(), "{body}");
    }
    let old = RunType { kind: RunKind::CustomRun, version: "v1alpha1" };
    assert!(Document::read(old, "create", &HeaderMap::new(), br#"{"kind":"Run"}"#, "default").is_ok());
}

/// Tekton's webhook would accept another spelling of any of them for the field, and run code or use an identity that no
/// rule has seen.
#[test]
fn each_field_that_selects_code_or_identity_is_spelt_in_one_way() {
    const NAMES: &str = "annotations apiVersion bundle csi customRef customSpec env envFrom finally flexVolume \
        imagePullSecrets kind labels managedBy metadata name ownerReferences params pipelineRef pipelineSpec \
        podCertificate podTemplate projected ref resolver secret secretKeyRef secretName secretRef \
        serviceAccountName serviceAccountToken sidecars sources spec status stepTemplate steps taskPodTemplate \
        taskRef taskRunSpecs taskRunTemplate taskServiceAccountName taskSpec tasks value valueFrom volumes workspaces";
    let refused = |name: &str| match read("create", "application/json", &json!({"spec": {name: {}}}).to_string()) {
        Err(Unreadable::Case { known, .. }) => Some(known),
        _ => None,
    };
    for name in NAMES.split_whitespace() {
        let (first, rest) = name.split_at(1);
        assert_eq!(refused(&format!("{}{rest}", first.to_ascii_uppercase())), Some(name));
    }
    assert_eq!(refused("\u{212a}ind"), Some("kind"), "the Kelvin sign is a `k` to `encoding/json`");
    assert_eq!(refused("\u{17f}ecret"), Some("secret"));
    assert_eq!(refused("Unknown"), None);
}

/// A body that is JSON by one content type may be YAML by the other.
#[test]
fn a_request_with_two_content_types_is_refused() {
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    assert!(Document::check_head("create", &headers).is_ok());
    headers.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let refused = Document::check_head("create", &headers).unwrap_err();
    assert!(matches!(refused, Unreadable::Malformed(why) if why.contains("two content types")), "{refused}");
    let refused = template::check_head("create", &headers).unwrap_err();
    assert!(matches!(refused, Unreadable::Malformed(why) if why.contains("two content types")), "{refused}");
}

/// Regression: each token was compared with all known names, so one patch of 3 MiB blocked its worker for seconds.
#[test]
fn a_pointer_deeper_than_any_run_is_refused() {
    let patch = |tokens: usize| {
        let body = json!([{"op": "test", "path": "/a".repeat(tokens), "value": 1}]).to_string();
        read("patch", "application/json-patch+json", &body)
    };
    assert!(patch(128).is_ok());
    assert!(matches!(patch(129), Err(Unreadable::Malformed(why)) if why.contains("deeper")));
}

proptest! {
    /// Whatever is accepted has the same meaning when it is read again from what is sent.
    #[test]
    fn the_forwarded_document_is_the_one_that_was_decided(account in "[a-zA-Z$().:-]{0,12}", inline: bool, text in "\\PC{1,40}") {
        let mut object = json!({"metadata": {"labels": {"l": text}}, "spec": {"taskRunTemplate": {"serviceAccountName": account}}});
        if inline {
            object["spec"]["pipelineSpec"] = json!({"tasks": [{"taskRef": {"name": text}}]});
        }
        let document = read("create", "application/json", &object.to_string()).unwrap();
        let run = Arc::clone(&document.run);
        let again = read("create", "application/json", &sent(document).to_string()).unwrap();
        prop_assert_eq!(run, again.run);
    }

    #[test]
    fn no_body_makes_it_panic(body in "[\\[\\]{}:,\"a-z\\\\ \n-]{0,60}") {
        for (verb, media) in [("create", "application/yaml"), ("patch", "application/json-patch+json"), ("patch", "application/merge-patch+json")] {
            let _ = read(verb, media, &body);
        }
    }
}
