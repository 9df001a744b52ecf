//! Objects whose annotations and labels Tekton copies to the runs that it creates. Names with Doorward's prefix are
//! refused in them, as they would be taken for Doorward's statement of who requested a run.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

use super::{
    attribution::{mentions_ours, points_at_ours},
    document::{CREATES, PATCHES, Unreadable, check_encoding, check_text, essence, parse, parse_operations},
    fields::{check_template, check_template_pointer},
    ownership,
    patch::pointers,
};
use crate::kubernetes::Attributes;

const TEKTON: [&str; 4] = ["pipelines", "tasks", "clustertasks", "stepactions"];
const TRIGGERS: [&str; 4] = ["triggertemplates", "triggers", "eventlisteners", "clustertriggerbindings"];

/// Whether a request writes such an object.
pub fn is_template(attributes: &Attributes) -> bool {
    let resources: &[&str] = match attributes.api_group.as_str() {
        "tekton.dev" => &TEKTON,
        "triggers.tekton.dev" => &TRIGGERS,
        _ => return false,
    };
    attributes.brings_object() && attributes.subresource.is_empty() && resources.contains(&attributes.resource.as_str())
}

/// Refuses requests that are invalid whatever their body is.
pub fn check_head(verb: &str, headers: &HeaderMap) -> Result<(), Unreadable> {
    check_encoding(headers)?;
    let media = essence(headers)?;
    let known: &[&str] = if verb == "patch" { &PATCHES } else { &CREATES };
    if known.contains(&&*media) { Ok(()) } else { Err(Unreadable::MediaType(media)) }
}

/// Reads the body of a request for which [`is_template`] holds, and returns what to send: exactly what was read.
pub fn read(verb: &str, headers: &HeaderMap, body: &[u8]) -> Result<Bytes, Unreadable> {
    check_head(verb, headers)?;
    check_text(body)?;
    let media = essence(headers)?;
    let value = match media.as_str() {
        "application/json-patch+json" => {
            let operations = parse_operations(body)?;
            if operations.iter().flat_map(pointers).any(points_at_ours) {
                return Err(Unreadable::Attribution);
            }
            // The source of a copy is in the object already, where a parameter may have any keys.
            let copies =
                |operation: &Value| matches!(operation.get("op").and_then(Value::as_str), Some("copy" | "move"));
            if operations.iter().any(copies) {
                return Err(Unreadable::Copied);
            }
            Value::Array(operations)
        }
        _ => Value::Object(parse(&media, body)?),
    };
    if mentions_ours(&value) {
        return Err(Unreadable::Attribution);
    }
    match &value {
        Value::Array(operations) => operations.iter().try_for_each(check_operation)?,
        object => check_template(object)?,
    }
    ownership::check_templates(&value)?;
    Ok(serde_json::to_vec(&value).unwrap_or_default().into())
}

/// Checks the spelling of the names in an operation of a JSON Patch.
fn check_operation(operation: &Value) -> Result<(), Unreadable> {
    pointers(operation).try_for_each(check_template_pointer)?;
    operation.get("value").map_or(Ok(()), check_template)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method, header};

    use super::*;

    fn check(verb: &str, media: &'static str, body: &str) -> Result<Bytes, Unreadable> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media))]);
        read(verb, &headers, body.as_bytes())
    }

    /// An EventListener, with a list of Triggers that contain templates.
    fn listener(template: &str) -> String {
        format!(r#"{{"spec":{{"triggers":[{{"template":{{"spec":{{"resourcetemplates":[{template}]}}}}}}]}}}}"#)
    }

    /// A JSON Patch whose paths do not mention templates.
    fn whole_spec(template: &str) -> String {
        format!(r#"[{{"op":"replace","path":"/spec","value":{{"resourcetemplates":[{template}]}}}}]"#)
    }

    #[test]
    fn attacks_z51_no_template_speaks_in_our_name() {
        const JSON_PATCH: &str = "application/json-patch+json";
        for (verb, media, forged, good) in [
            (
                "create",
                "application/json",
                r#"{"metadata":{"annotations":{"doorward.dev/requested-by":"root"}}}"#,
                r#"{"metadata":{"annotations":{"team":"a"}}}"#,
            ),
            (
                "update",
                "application/yaml",
                "metadata: {labels: {Doorward.dev/rule: x}}\n",
                "metadata: {labels: {rule: x}}\n",
            ),
            (
                "create",
                "application/json",
                r#"{"spec":{"resourcetemplates":[{"metadata":{"annotations":{"doorward.dev/subject":"7"}}}]}}"#,
                r#"{"spec":{"resourcetemplates":[{"metadata":{"annotations":{"subject":"7"}}}]}}"#,
            ),
            (
                "patch",
                "application/merge-patch+json",
                r#"{"metadata":{"annotations":{"doorward.dev/kind":"human"}}}"#,
                r#"{"metadata":{"annotations":{"kind":null}}}"#,
            ),
            (
                "patch",
                JSON_PATCH,
                r#"[{"op":"add","path":"/metadata/annotations/doorward.dev~1kind","value":"human"}]"#,
                r#"[{"op":"add","path":"/metadata/annotations/kind","value":"human"}]"#,
            ),
            (
                "patch",
                JSON_PATCH,
                r#"[{"op":"add","path":"/metadata/annotations","value":{"doorward.dev/kind":"human"}}]"#,
                r#"[{"op":"add","path":"/metadata/annotations","value":{"kind":"human"}}]"#,
            ),
        ] {
            assert!(matches!(check(verb, media, forged), Err(Unreadable::Attribution)), "attacks:Z51 {forged}");
            assert!(check(verb, media, good).is_ok(), "attacks:Z51 {good}");
        }
        let owned = r#"{"metadata":{"ownerReferences":[{"apiVersion":"tekton.dev/v1","uid":"$(tt.params.uid)"}]}}"#;
        for (verb, media, body) in [
            ("create", "application/json", format!(r#"{{"spec":{{"resourcetemplates":[{owned}]}}}}"#)),
            ("patch", "application/merge-patch+json", format!(r#"{{"spec":{{"resourcetemplates":[{owned}]}}}}"#)),
            ("patch", JSON_PATCH, format!(r#"[{{"op":"add","path":"/spec/resourcetemplates/0","value":{owned}}}]"#)),
            (
                "patch",
                JSON_PATCH,
                r#"[{"op":"add","path":"/spec/resourcetemplates/0/metadata/ownerReferences","value":[{}]}]"#.to_owned(),
            ),
            ("create", "application/yaml", format!("spec: {{template: {{spec: {{resourcetemplates: [{owned}]}}}}}}")),
            ("create", "application/json", listener(owned)),
            ("patch", JSON_PATCH, whole_spec(owned)),
        ] {
            assert!(
                matches!(check(verb, media, &body), Err(Unreadable::TemplateOwner)),
                "a run that another owns: {body}"
            );
        }
        assert!(check("create", "application/json", r#"{"metadata":{},"metadata":{}}"#).is_err(), "a field twice");
        assert!(matches!(check("create", "application/x", "{}"), Err(Unreadable::MediaType(_))));
    }

    /// Tekton Triggers substitutes parameters anywhere in the text of the template.
    #[test]
    fn attacks_z51_no_parameter_of_a_template_makes_a_name_or_an_owner() {
        let templates = |template: &str| format!(r#"{{"spec":{{"resourcetemplates":[{template}]}}}}"#);
        let add = |at: &str, value: &str| {
            format!(r#"[{{"op":"add","path":"/spec/resourcetemplates/0{at}","value":{value}}}]"#)
        };
        const OWNED: &str = r#"{"metadata":{"ownerReferences":[{"apiVersion":"$(tt.params.v)","uid":"u"}]}}"#;
        const LABELLED: &str = r#"{"metadata":{"labels":{"$(tt.params.l)":"release"}}}"#;
        const ANNOTATED: &str = r#"{"metadata":{"annotations":{"$\u0028tt.params.p)requested-by":"root"}}}"#;
        for template in [OWNED, LABELLED, ANNOTATED] {
            let nested = format!(r#"{{"spec":{{"template":{}}}}}"#, templates(template));
            for (verb, media, body) in [
                ("create", "application/json", templates(template)),
                ("update", "application/json", nested),
                ("patch", "application/merge-patch+json", templates(template)),
                ("patch", "application/json-patch+json", add("", template)),
                ("create", "application/json", listener(template)),
                ("patch", "application/json-patch+json", whole_spec(template)),
            ] {
                let refused = check(verb, media, &body).unwrap_err();
                assert!(
                    matches!(refused, Unreadable::TemplateOwner | Unreadable::Parameter),
                    "attacks:Z51 {body}: {refused}"
                );
            }
        }
        for owners in [r#"[{"apiVersion":"apps/v1","uid":"u"}]"#, r#"{"uid":"u"}"#, r#""$(tt.params.o)""#] {
            let template = format!(r#"{{"metadata":{{"ownerReferences":{owners}}}}}"#);
            for (media, body) in [
                ("application/merge-patch+json", templates(&template)),
                ("application/json-patch+json", add("/metadata/ownerReferences", owners)),
                ("application/json-patch+json", add("/metadata", &template[12..template.len() - 1])),
            ] {
                let refused = check("patch", media, &body).unwrap_err();
                assert!(matches!(refused, Unreadable::TemplateOwner), "{body}: {refused}");
            }
        }
        let label = add("/metadata/labels/$(tt.params.l)", r#""release""#);
        assert!(matches!(check("patch", "application/json-patch+json", &label), Err(Unreadable::Parameter)));
        for none in ["[]", "null"] {
            let template = format!(r#"{{"metadata":{{"name":"a","ownerReferences":{none}}}}}"#);
            assert!(check("create", "application/json", &templates(&template)).is_ok(), "no owner: {none}");
            let taken = add("/metadata/ownerReferences", none);
            assert!(check("patch", "application/json-patch+json", &taken).is_ok(), "no owner: {none}");
        }
        const TAKEN: &str = r#"[{"op":"remove","path":"/spec/resourcetemplates/0/metadata/ownerReferences/0"}]"#;
        assert!(check("patch", "application/json-patch+json", TAKEN).is_ok());
        // The twins: values may contain parameters, and so may names outside of templates.
        let good = r#"{"metadata":{"labels":{"of":"$(tt.params.l)"},"generateName":"$(tt.params.n)-"}}"#;
        for body in [templates(good), listener(good)] {
            assert!(check("create", "application/json", &body).is_ok(), "{body}");
        }
        assert!(check("patch", "application/json-patch+json", &whole_spec(good)).is_ok());
        assert!(
            check("patch", "application/json-patch+json", &add("/metadata/labels/of", r#""$(tt.params.l)""#)).is_ok()
        );
        assert!(check("create", "application/json", r#"{"metadata":{"annotations":{"$(x)":"y"}}}"#).is_ok());
    }

    /// Regression: the webhook of Tekton Triggers folds names, so a template in another spelling took effect without
    /// being checked.
    #[test]
    fn attacks_z51_what_a_template_makes_is_spelt_in_one_way() {
        const MERGE: &str = "application/merge-patch+json";
        const JSON_PATCH: &str = "application/json-patch+json";
        const OWNED: &str = r#"{"metadata":{"ownerReferences":[{"apiVersion":"tekton.dev/v1","uid":"u"}]}}"#;
        for (verb, media, body) in [
            ("create", "application/json", format!(r#"{{"spec":{{"resourceTemplates":[{OWNED}]}}}}"#)),
            ("update", "application/yaml", format!("spec: {{re\u{17f}ourcetemplates: [{OWNED}]}}")),
            ("create", "application/json", format!(r#"{{"Spec":{{"resourcetemplates":[{OWNED}]}}}}"#)),
            ("create", "application/json", r#"{"spec":{"resourcetemplates":[{"Metadata":{}}]}}"#.to_owned()),
            (
                "create",
                "application/json",
                r#"{"spec":{"resourcetemplates":[{"metadata":{"ownerreferences":[]}}]}}"#.to_owned(),
            ),
            ("create", "application/json", format!(r#"{{"spec":{{"Template":{{"spec":{OWNED}}}}}}}"#)),
            ("patch", MERGE, format!(r#"{{"spec":{{"resourcetemplates":null,"ResourceTemplates":[{OWNED}]}}}}"#)),
            ("patch", JSON_PATCH, format!(r#"[{{"op":"add","path":"/spec/ResourceTemplates","value":[{OWNED}]}}]"#)),
            (
                "patch",
                JSON_PATCH,
                format!(r#"[{{"op":"replace","path":"/spec","value":{{"resourceTemplates":[{OWNED}]}}}}]"#),
            ),
        ] {
            let refused = check(verb, media, &body).unwrap_err();
            assert!(matches!(refused, Unreadable::Case { .. }), "attacks:Z51 {body}: {refused}");
        }
        let deep = format!(r#"[{{"op":"test","path":"{}","value":1}}]"#, "/a".repeat(129));
        assert!(matches!(check("patch", JSON_PATCH, &deep), Err(Unreadable::Malformed(_))), "each token is compared");
        // The twins: people may spell their own names as they like.
        for (verb, media, body) in [
            ("create", "application/json", r#"{"metadata":{"labels":{"Spec":"a"},"annotations":{"Labels":"b"}}}"#),
            ("create", "application/json", r#"{"spec":{"params":[{"name":"Template","default":{"Metadata":"x"}}]}}"#),
            ("patch", JSON_PATCH, r#"[{"op":"add","path":"/metadata/labels/Spec","value":"a"}]"#),
        ] {
            assert!(check(verb, media, body).is_ok(), "attacks:Z51 {body}");
        }
    }

    /// Regression: they were refused for annotations that they do not mention.
    #[test]
    fn a_copy_and_a_move_are_refused_for_what_they_are() {
        for op in ["copy", "move"] {
            let body = format!(r#"[{{"op":"{op}","from":"/spec/tasks/1","path":"/spec/tasks/0"}}]"#);
            let refused = check("patch", "application/json-patch+json", &body).unwrap_err();
            assert!(matches!(refused, Unreadable::Copied), "{body}: {refused}");
        }
        let ours = r#"[{"op":"copy","from":"/metadata/annotations/doorward.dev~1kind","path":"/spec/description"}]"#;
        assert!(matches!(check("patch", "application/json-patch+json", ours), Err(Unreadable::Attribution)));
    }

    #[test]
    fn only_writes_of_what_is_copied_are_read() {
        let is = |method: Method, path: &str| is_template(&Attributes::parse(&method, path, None).unwrap());
        const PIPELINES: &str = "/apis/tekton.dev/v1/namespaces/a/pipelines";
        for (group, resource, expected) in [
            ("tekton.dev", "pipelines", true),
            ("tekton.dev", "tasks", true),
            ("tekton.dev", "clustertasks", true),
            ("tekton.dev", "stepactions", true),
            ("triggers.tekton.dev", "triggertemplates", true),
            ("triggers.tekton.dev", "triggers", true),
            ("triggers.tekton.dev", "eventlisteners", true),
            ("triggers.tekton.dev", "clustertriggerbindings", true),
            ("tekton.dev", "pipelineruns", false),
            ("tekton.dev", "triggers", false),
            ("triggers.tekton.dev", "triggerbindings", false),
            ("triggers.tekton.dev", "tasks", false),
            ("example.com", "tasks", false),
        ] {
            let namespace = if resource.starts_with("cluster") { "" } else { "/namespaces/a" };
            let path = format!("/apis/{group}/v1beta1{namespace}/{resource}");
            assert_eq!(is(Method::POST, &path), expected, "{path}");
            for method in [Method::PUT, Method::PATCH] {
                assert_eq!(is(method, &format!("{path}/x")), expected, "{path}/x");
            }
        }
        assert!(!is(Method::GET, PIPELINES));
        assert!(!is(Method::DELETE, &format!("{PIPELINES}/p")));
        assert!(!is(Method::POST, "/api/v1/namespaces/a/pods"));
    }
}
