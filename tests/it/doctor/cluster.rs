//! What a list of the cluster shows: static credentials, whether EventListeners trust the interceptor, and who may start
//! runs past Doorward.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{configuration, doctor, folder};
use crate::harness::Authority;

#[tokio::test]
async fn static_credentials_of_the_cluster_are_listed_with_what_takes_their_place() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let list = |items: &str| std::fs::write(dir.path().join("list"), format!(r#"{{"items":[{items}]}}"#)).unwrap();
    let asked = ["--only", "credentials", "--cluster", "list"];
    doctor(dir.path(), &["--only", "credentials"]).await.is("credentials", "skipped", &["--cluster"]);
    list("");
    doctor(dir.path(), &asked).await.is("credentials", "good", &[]);
    list(
        r#"{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"namespace":"ci","name":"builder"},"secrets":[{"name":"git"}]}"#,
    );
    let said = doctor(dir.path(), &asked).await;
    said.is("credentials", "warning", &["ci/builder", "git", "doorward token"]);
    assert_eq!(said.code, Some(0), "it works");
    std::fs::write(dir.path().join("list"), "no list").unwrap();
    doctor(dir.path(), &asked).await.is("credentials", "fault", &["not a list of Kubernetes objects"]);
}

#[tokio::test]
async fn the_authorities_of_a_cluster_interceptor_must_be_those_of_the_listener() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tls = "tls: {certificates: [{chain: tls/server.pem, key: tls/server.key}]}";
    let yaml = configuration("http://localhost:7", "http://localhost:1", "http://localhost:1")
        .replace("listeners: [", &format!("listeners: [{{name: questions, address: '127.0.0.1:0', {tls}}}, "))
        + "interceptor: {host: door.front.svc}\n";
    let dir = folder(&yaml);
    std::fs::create_dir_all(dir.path().join("tls")).unwrap();
    let serve = |names: &[&str]| ours.issue(names).write(&dir.path().join("tls"), "server");
    serve(&["door.front.svc"]);
    let asked = ["--only", "interceptor", "--cluster", "list"];
    doctor(dir.path(), &["--only", "interceptor"]).await.is("interceptor", "skipped", &["--cluster"]);
    let list = |namespace: &str, bundle: &str| {
        let service = json!({"name": "door", "namespace": namespace, "port": 8443});
        let spec = json!({"clientConfig": {"caBundle": BASE64_STANDARD.encode(bundle), "service": service}});
        let items = json!([{"kind": "ClusterInterceptor", "metadata": {"name": "doorward"}, "spec": spec}]);
        std::fs::write(dir.path().join("list"), json!({"items": items}).to_string()).unwrap();
    };
    let itself = std::fs::read_to_string(dir.path().join("tls/server.pem")).unwrap();
    for (namespace, bundle, state, words) in [
        ("front", ours.pem(), "good", "EventListeners trust"),
        ("front", itself, "good", "EventListeners trust"),
        ("front", theirs.pem(), "fault", "does not contain the authority"),
        ("front", "nothing".to_owned(), "fault", "contains no certificate"),
        ("elsewhere", ours.pem(), "warning", "no ClusterInterceptor points to it"),
    ] {
        list(namespace, &bundle);
        doctor(dir.path(), &asked).await.is(
            "interceptor",
            state,
            &[words, "doorward interceptor"][..1 + usize::from(state != "good")],
        );
    }
    list("front", &ours.pem());
    serve(&["another.front.svc"]);
    doctor(dir.path(), &asked).await.is("interceptor", "fault", &["no listener has a certificate for this name"]);
    std::fs::write(dir.path().join("list"), r#"{"items":[]}"#).unwrap();
    doctor(dir.path(), &asked).await.is("interceptor", "skipped", &["clusterinterceptors"]);
}

#[tokio::test]
async fn attacks_z52_subjects_that_may_start_runs_past_doorward_are_listed() {
    let dir = folder(&configuration("http://localhost:7", "http://localhost:1", "http://localhost:1"));
    let asked = ["--only", "bypass", "--cluster", "list", "--service-account", "front/doorward"];
    doctor(dir.path(), &["--only", "bypass"]).await.is("bypass", "skipped", &["--cluster"]);
    let object = |kind: &str, metadata: Value, more: Value| {
        let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata});
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let bound = |name: &str, rule: Value, subject: Value| {
        let role = json!({"kind": "ClusterRole", "name": name});
        [
            object("ClusterRole", json!({"name": name}), json!({"rules": [rule]})),
            object("ClusterRoleBinding", json!({"name": name}), json!({"roleRef": role, "subjects": [subject]})),
        ]
    };
    let create = json!({"apiGroups": ["tekton.dev"], "resources": ["pipelineruns"], "verbs": ["create"]});
    let people = json!({"apiGroups": [""], "resources": ["users", "groups"], "verbs": ["impersonate"]});
    let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "namespace": namespace, "name": name});
    let role = json!({"kind": "Role", "name": "none"});
    let mut items = vec![
        json!({"apiVersion": "tekton.dev/v1", "kind": "Pipeline", "metadata": {"namespace": "ci", "name": "release"}}),
        object("Role", json!({"namespace": "ci", "name": "none"}), json!({"rules": []})),
        object("RoleBinding", json!({"namespace": "ci", "name": "none"}), json!({"roleRef": role, "subjects": []})),
    ];
    items.extend(bound(
        "tekton-controller",
        create.clone(),
        account("tekton-pipelines", "tekton-pipelines-controller"),
    ));
    let list = |items: &[Value]| std::fs::write(dir.path().join("list"), json!({"items": items}).to_string()).unwrap();
    list(&items);
    doctor(dir.path(), &asked).await.is("bypass", "good", &["nobody unexpected"]);
    items.extend(bound("cron", create, account("ci", "cron")));
    list(&items);
    let said = doctor(dir.path(), &asked).await;
    said.is(
        "bypass",
        "warning",
        &[
            "ServiceAccount ci/cron may create pipelineruns by ClusterRoleBinding cron and ClusterRole cron, and so start runs in ci",
            "who-can",
        ],
    );
    assert_eq!(said.code, Some(0), "it works");
    // No route of this configuration impersonates.
    items.truncate(items.len() - 2);
    items.extend(bound("be-people", people, account("front", "doorward")));
    list(&items);
    let itself = "ServiceAccount front/doorward (Doorward itself, which needs no such right";
    doctor(dir.path(), &asked).await.is("bypass", "warning", &[itself, "be-people"]);
    list(&items[1..]);
    doctor(dir.path(), &asked).await.is("bypass", "skipped", &["names a namespace of Tekton's"]);
    list(&items[..1]);
    doctor(dir.path(), &asked).await.is("bypass", "skipped", &["ClusterRole"]);
    std::fs::write(dir.path().join("list"), "no list").unwrap();
    doctor(dir.path(), &asked).await.is("bypass", "fault", &["not a list of Kubernetes objects"]);
}
