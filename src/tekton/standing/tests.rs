use serde_json::json;

use super::*;

/// `KIND AT SORT SECRET` of each finding.
fn told(items: &Value) -> Vec<String> {
    let found = standing_credentials(json!({"kind": "List", "items": items}).to_string().as_bytes()).unwrap();
    let line = |one: &Standing| {
        format!("{} {} {:?} {}", one.object.kind, one.at, one.sort, one.secret.as_deref().unwrap_or("-"))
    };
    found.iter().map(line).collect()
}

fn of_spec(kind: &str, spec: &Value) -> Vec<String> {
    told(&json!([{"kind": kind, "metadata": {"namespace": "ci", "name": "x"}, "spec": spec}]))
}

#[test]
fn accounts_and_secrets() {
    let secret = |type_: &str, annotations: Value| {
        told(&json!([{"kind": "Secret", "type": type_, "metadata": {"name": "s", "annotations": annotations}}]))
    };
    let account = json!([{"kind": "ServiceAccount", "metadata": {"namespace": "ci", "name": "builder"},
        "secrets": [{"name": "git"}, {"name": "hub"}], "imagePullSecrets": [{"name": "pull"}]}]);
    let expected = [
        "ServiceAccount imagePullSecrets[0] ImagePull pull",
        "ServiceAccount secrets[0] Account git",
        "ServiceAccount secrets[1] Account hub",
    ];
    assert_eq!(told(&account), expected);
    assert!(told(&json!([{"kind": "ServiceAccount", "metadata": {"name": "a"}, "secrets": null}])).is_empty());

    let git = json!({"tekton.dev/git-0": "https://git.example"});
    let docker = json!({"tekton.dev/docker-0": "https://hub.example"});
    let annotated = |name: &str| vec![format!("Secret metadata.annotations.tekton.dev/{name} Annotated -")];
    for (type_, annotations, expected) in [
        ("kubernetes.io/service-account-token", Value::Null, vec!["Secret type EndlessToken -".to_owned()]),
        ("kubernetes.io/basic-auth", git.clone(), annotated("git-0")),
        ("kubernetes.io/ssh-auth", git.clone(), annotated("git-0")),
        ("kubernetes.io/dockerconfigjson", docker.clone(), annotated("docker-0")),
        ("kubernetes.io/dockercfg", docker, annotated("docker-0")),
        ("kubernetes.io/basic-auth", Value::Null, Vec::new()),
        ("kubernetes.io/basic-auth", json!({"other/git-0": ""}), Vec::new()),
        ("Opaque", git.clone(), Vec::new()),
        ("kubernetes.io/tls", git, Vec::new()),
    ] {
        assert_eq!(secret(type_, annotations), expected, "{type_}");
    }
}

#[test]
fn references_to_secrets() {
    let container = |name: &str, more: Value| {
        let mut container = json!({"name": name});
        container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        container
    };
    let reference = |name: &str| json!({"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}});
    for (kind, spec, expected) in [
        (
            "Task",
            json!({"steps": [container("a", json!({"env": [reference("s")]}))]}),
            "spec.steps[0].env[0].valueFrom.secretKeyRef Task s",
        ),
        (
            "Task",
            json!({"stepTemplate": {"envFrom": [{"secretRef": {"name": "s"}}]}}),
            "spec.stepTemplate.envFrom[0].secretRef Task s",
        ),
        ("Task", json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}), "spec.volumes[0].secret Task s"),
        (
            "Task",
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}}]}),
            "spec.volumes[0].projected.sources[0].secret Task s",
        ),
        (
            "TaskRun",
            json!({"workspaces": [{"name": "w", "secret": {"secretName": "s"}}]}),
            "spec.workspaces[0].secret Task s",
        ),
        (
            "TaskRun",
            json!({"workspaces": [{"name": "w", "csi": {"nodePublishSecretRef": {"name": "s"}}}]}),
            "spec.workspaces[0].csi.nodePublishSecretRef Task s",
        ),
        (
            "TaskRun",
            json!({"podTemplate": {"imagePullSecrets": [{"name": "s"}]}}),
            "spec.podTemplate.imagePullSecrets[0] ImagePull s",
        ),
        (
            "Pipeline",
            json!({"tasks": [{"taskSpec": {"steps": [{"env": [reference("s")]}]}}]}),
            "spec.tasks[0].taskSpec.steps[0].env[0].valueFrom.secretKeyRef Task s",
        ),
        (
            "PipelineRun",
            json!({"taskRunTemplate": {"podTemplate": {"volumes": [{"secret": {"secretName": "s"}}]}}}),
            "spec.taskRunTemplate.podTemplate.volumes[0].secret Task s",
        ),
        (
            "TriggerTemplate",
            json!({"resourcetemplates": [{"spec": {"workspaces": [{"secret": {"secretName": "s"}}]}}]}),
            "spec.resourcetemplates[0].spec.workspaces[0].secret Task s",
        ),
        (
            "Trigger",
            json!({"interceptors": [{"params": [{"name": "secretRef", "value": {"secretName": "s", "secretKey": "k"}}]}]}),
            "spec.interceptors[0].params[0].value Webhook s",
        ),
        (
            "Trigger",
            json!({"interceptors": [{"github": {"secretRef": {"secretName": "s", "secretKey": "k"}}}]}),
            "spec.interceptors[0].github.secretRef Webhook s",
        ),
        (
            "EventListener",
            json!({"triggers": [{"interceptors": [{"params": [{"name": "secretRef", "value": {"secretName": "s"}}]}]}]}),
            "spec.triggers[0].interceptors[0].params[0].value Webhook s",
        ),
        (
            "EventListener",
            json!({"triggerGroups": [{"interceptors": [{"params": [{"name": "addChangedFiles",
            "value": {"enabled": true, "personalAccessToken": {"secretName": "s", "secretKey": "k"}}}]}]}]}),
            "spec.triggerGroups[0].interceptors[0].params[0].value.personalAccessToken HostToken s",
        ),
    ] {
        assert_eq!(of_spec(kind, &spec), [format!("{kind} {expected}")], "{spec}");
    }
    for (kind, spec) in [
        ("Deployment", json!({"volumes": [{"secret": {"secretName": "s"}}]})),
        (
            "Task",
            json!({"volumes": [{"configMap": {"name": "c"}}], "steps": [{"env": [{"valueFrom": {"configMapKeyRef": {"name": "c"}}}]}]}),
        ),
        ("Task", json!({"workspaces": [{"name": "secret"}], "params": [{"name": "secretName", "default": "s"}]})),
        // Its own certificate.
        (
            "EventListener",
            json!({"resources": {"kubernetesResource": {"spec": {"template": {"spec": {"containers": [
            {"env": [{"name": "TLS_KEY", "valueFrom": {"secretKeyRef": {"name": "tls", "key": "tls.key"}}}]}]}}}}}}),
        ),
    ] {
        assert!(of_spec(kind, &spec).is_empty(), "{kind} {spec}: {:?}", of_spec(kind, &spec));
    }
}

#[test]
fn literals_that_are_called_like_credentials() {
    let one = |name: &str, value: Value| of_spec("PipelineRun", &json!({"params": [{"name": name, "value": value}]}));
    for (name, value, is_found) in [
        ("github-token", json!("x"), true),
        ("API_KEY", json!("x"), true),
        ("dbPassword", json!("x"), true),
        ("AWS_SECRET_ACCESS_KEY", json!("x"), true),
        ("tokens-of-all", json!(["$(params.a)", "x"]), true),
        ("token", json!(""), false),
        ("token", json!(" "), false),
        ("token", json!("$(params.token)"), false),
        ("token", json!(["$(params.a)"]), false),
        ("use-token", json!("true"), false),
        ("token-url", json!("https://id.example"), false),
        ("secret-name", json!("s"), false),
        ("password-file", json!("/run/p"), false),
        ("max-tokens", json!("4096"), false),
        ("AWS_ACCESS_KEY_ID", json!("AKIA"), false),
        ("revision", json!("main"), false),
    ] {
        let expected: &[&str] = if is_found { &["PipelineRun spec.params[0].value Literal -"] } else { &[] };
        assert_eq!(one(name, value.clone()), expected, "{name} {value}");
    }
    assert_eq!(
        one("settings", json!({"password": "x", "user": "y"})),
        ["PipelineRun spec.params[0].value.password Literal -"]
    );
    let declared =
        json!({"params": [{"name": "token", "default": "x"}], "steps": [{"env": [{"name": "TOKEN", "value": "x"}]}]});
    let expected = ["Task spec.params[0].default Literal -", "Task spec.steps[0].env[0].value Literal -"];
    assert_eq!(of_spec("Task", &declared), expected);
    let resolved = json!({"pipelineRef": {"resolver": "git", "params": [
        {"name": "url", "value": "https://git.example"}, {"name": "token", "value": "of-git"}]}});
    assert_eq!(of_spec("PipelineRun", &resolved), ["PipelineRun spec.pipelineRef.params[1].value Resolver -"]);
}

#[test]
fn no_value_is_stored_or_printed() {
    const VALUE: &str = "hunter2hunter2";
    let items = json!([
        {"kind": "Secret", "type": "kubernetes.io/basic-auth", "data": {"password": VALUE}, "stringData": {"password": VALUE},
            "metadata": {"name": "s", "annotations": {"tekton.dev/git-0": format!("https://u:{VALUE}@git.example"),
                "kubectl.kubernetes.io/last-applied-configuration": VALUE}}},
        {"kind": "TaskRun", "metadata": {"name": "r"}, "spec": {
            "params": [{"name": "token", "value": VALUE}, {"name": "o", "value": {"token": VALUE}}],
            "taskRef": {"resolver": "git", "params": [{"name": "gitToken", "value": VALUE}]},
            "taskSpec": {"steps": [{"env": [{"name": "PASSWORD", "value": VALUE}]}]}}},
    ]);
    let found = standing_credentials(json!({"items": items}).to_string().as_bytes()).unwrap();
    assert_eq!(found.len(), 5);
    for one in &found {
        for told in [one.to_string(), format!("{one:?}"), serde_json::to_string(one).unwrap()] {
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}

#[test]
fn lists_of_strange_shape_are_read_or_refused() {
    assert!(standing_credentials(b"{}").is_err());
    assert!(standing_credentials(b"secret").is_err());
    let strange = json!([
        {"kind": "Custom", "metadata": {"name": "x"}, "secrets": {"a": 1}, "type": 7, "spec": [1]},
        {"kind": "ServiceAccount", "metadata": {"name": "x"}, "secrets": "no", "imagePullSecrets": [1, {}]},
        {"kind": "Task", "metadata": {"name": "x"}, "spec": {"params": {"name": "token"}, "env": 1, "secret": "s"}},
    ]);
    assert_eq!(
        told(&strange),
        ["ServiceAccount imagePullSecrets[0] ImagePull -", "ServiceAccount imagePullSecrets[1] ImagePull -"]
    );
    let deep = (0..90).fold(json!({"secretKeyRef": {"name": "s"}}), |value, _| json!([value]));
    assert!(of_spec("Task", &deep).is_empty());
    let line = standing_credentials(
        br#"{"items":[{"kind":"ServiceAccount","metadata":{"namespace":"ci","name":"a"},"secrets":[{"name":"s\u001b[2J"}]}]}"#,
    );
    let expected =
        r"ServiceAccount ci/a at secrets[0]: each task with this service account gets the Secret (s\u{1b}[2J)";
    assert_eq!(line.unwrap()[0].to_string(), expected);
}
