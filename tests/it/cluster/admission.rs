//! The admission policies shipped in `deploy/`, enforced by the real API server.

use std::fs;

use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::{
    api_server::ApiServer,
    shipped::{administrator, deploy, find, objects},
    tekton::{Tekton, pipeline_run},
    tokens::posing,
    world::{Kubectl, World},
};
use crate::harness::{found, until};

/// From docs/install.md, for a Tekton in another namespace.
const KUSTOMIZATION: &str = "
resources: [admission.yaml]
patches:
  - target: {kind: ValidatingAdmissionPolicy, name: doorward-pods}
    patch: |
      - {op: replace, path: /spec/variables/0/expression, value: \"['admin']\"}
";

/// Enforces the shipped policies in the namespace of a test, where `admin` stands for Tekton's controller and `listed`
/// is the account of an EventListener.
pub(super) async fn enforce(api: &ApiServer, namespace: &str, listed: &str) {
    /// The policies themselves are created once, for all namespaces.
    static MADE: OnceCell<()> = OnceCell::const_new();
    let kubectl = administrator(api, namespace);
    kubectl.write("admission.yaml", &fs::read_to_string(deploy().join("base/admission.yaml")).unwrap());
    kubectl.write("kustomization.yaml", KUSTOMIZATION);
    let shipped = objects(&kubectl.run(&["kustomize", "."]).await);
    let path = "/apis/admissionregistration.k8s.io/v1";
    let all = |kind: &'static str| shipped.iter().filter(move |object| object["kind"] == kind);
    MADE.get_or_init(async || {
        for policy in all("ValidatingAdmissionPolicy") {
            kubectl.write("policy.json", &policy.to_string());
            kubectl.run(&["apply", "-f", "policy.json"]).await;
        }
    })
    .await;
    let mut makers = find(&shipped, "ConfigMap", "doorward-run-makers").clone();
    makers["metadata"]["namespace"] = json!(namespace);
    makers["data"] = json!({"controllers": "admin\n", "event_listeners": format!("{listed}\n")});
    api.create(&format!("/api/v1/namespaces/{namespace}/configmaps"), &makers).await;
    for shipped in all("ValidatingAdmissionPolicyBinding") {
        let mut binding = shipped.clone();
        binding["metadata"]["name"] = json!(format!("{}-{namespace}", shipped["metadata"]["name"].as_str().unwrap()));
        let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
        binding["spec"]["matchResources"] = json!({"namespaceSelector": selector});
        if let Some(params) = binding["spec"].get_mut("paramRef") {
            params["namespace"] = json!(namespace);
        }
        api.create(&format!("{path}/validatingadmissionpolicybindings"), &binding).await;
    }
}

/// kubectl that bypasses Doorward. RBAC allows it everything, so any refusal is by an admission policy.
pub(super) struct Past(pub Kubectl);

impl Past {
    fn arguments<'a>(who: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["--as", who, "--as-group", "system:masters"], arguments].concat()
    }

    async fn run(&self, who: &str, arguments: &[&str]) -> String {
        self.0.run(&Self::arguments(who, arguments)).await
    }

    pub(super) async fn fails(&self, who: &str, arguments: &[&str]) -> String {
        self.0.fails(&Self::arguments(who, arguments)).await
    }

    /// Waits until an object of `file` is refused: the API server applies policies with a delay.
    pub(super) async fn is_refused(&self, who: &str, file: &str) {
        let arguments = Self::arguments(who, &["create", "--dry-run=server", "-f", file]);
        until(async || !self.0.output(&arguments).await.status.success()).await;
    }
}

#[tokio::test]
async fn runs_and_templates_made_past_doorward_cannot_claim_its_annotations() {
    Tekton::get().await;
    let world = World::start().await;
    let listed = format!("system:serviceaccount:{}:build", world.namespace);
    enforce(world.api, &world.namespace, &listed).await;
    let past = Past(administrator(world.api, &world.namespace));
    let write = |name: &str, object: &Value| drop(past.0.write(name, &object.to_string()));
    let forged = json!({"doorward.dev/requested-by": "alice", "doorward.dev/request-id": "1", "team": "a"});

    let mut template = json!({
        "apiVersion": "triggers.tekton.dev/v1beta1",
        "kind": "TriggerTemplate",
        "metadata": {"name": "template"},
        "spec": {"resourcetemplates": [pipeline_run("made", &json!({"team": "a"}))]},
    });
    let mut pipeline = json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "Pipeline",
        "metadata": {"name": "pipeline", "annotations": {"team": "a"}},
        "spec": {"tasks": [{"name": "only", "taskSpec": {"steps": [{"name": "run", "image": "x", "command": ["true"]}]}}]},
    });
    write("pipeline.json", &pipeline);
    write("template.json", &template);
    pipeline["spec"]["tasks"][0]["taskSpec"]["metadata"] = json!({"labels": {"doorward.dev/rule": "x"}});
    write("forged-within.json", &pipeline);
    // And in a pipeline within it, as Tekton accepts with `enable-api-fields: alpha`. Deeper levels are not checked.
    let plain = json!({"name": "t", "taskSpec": {"steps": [{"name": "run", "image": "x", "command": ["true"]}]}});
    let of = |task: &Value| json!({"name": "inner", "pipelineSpec": {"finally": [task]}});
    let (nested, deep) = (of(&pipeline["spec"]["tasks"][0]), of(&of(&plain)));
    let mut outer = pipeline.clone();
    for (file, task) in [("nested.json", &of(&plain)), ("forged-nested.json", &nested), ("deep.json", &deep)] {
        outer["metadata"]["name"] = json!("outer");
        outer["spec"] = json!({"tasks": [task]});
        write(file, &outer);
        let mut run = pipeline_run("outer", &json!({}));
        run["spec"] = json!({"pipelineSpec": outer["spec"]});
        write(&format!("run-{file}"), &run);
    }
    pipeline["spec"]["tasks"][0]["taskSpec"]["metadata"] = Value::Null;
    pipeline["metadata"]["annotations"] = json!({"Doorward.dev/approved-by": "bob"});
    write("forged-pipeline.json", &pipeline);
    template["spec"]["resourcetemplates"][0]["metadata"]["annotations"] = forged.clone();
    write("forged-template.json", &template);
    write("run.json", &pipeline_run("run", &json!({"team": "a"})));
    write("forged-run.json", &pipeline_run("forged", &forged));
    past.is_refused("mallory", "forged-pipeline.json").await;
    past.is_refused("mallory", "run.json").await;

    for file in ["forged-pipeline.json", "forged-within.json", "forged-template.json"] {
        let said = past.fails("mallory", &["create", "-f", file]).await;
        assert!(said.contains("would be copied to runs"), "attacks:Z51 {file}: {said}");
    }
    for (file, why) in [("forged-nested.json", "would be copied to runs"), ("deep.json", "more than one level deep")] {
        let said = past.fails("mallory", &["create", "-f", file]).await;
        assert!(said.contains(why), "attacks:Z51 {file}: {said}");
    }
    for file in ["pipeline.json", "template.json", "nested.json"] {
        past.run("mallory", &["create", "-f", file]).await;
    }

    let said = past.fails("mallory", &["create", "-f", "run.json"]).await;
    assert!(said.contains("runs are made through Doorward") && said.contains("mallory"), "attacks:Z52 {said}");
    let said = past.fails("alice", &["create", "-f", "forged-run.json"]).await;
    assert!(said.contains("runs are made through Doorward"), "attacks:Z52 the person that it names: {said}");

    // The account of an EventListener may create runs, but may not claim who caused them.
    past.run(&listed, &["create", "-f", "run.json"]).await;
    let said = past.fails(&listed, &["create", "-f", "forged-run.json"]).await;
    assert!(said.contains("only Doorward writes them"), "attacks:Z52 {said}");
    // Others may neither set nor remove the event that a run came from.
    let event = "triggers.tekton.dev/triggers-eventid";
    let (own, other, none) = (format!("{event}=own"), format!("{event}=other"), format!("{event}-"));
    let relabel = |change| ["label", "--overwrite", "pipelinerun/run", change];
    let refused = async |change| {
        for who in ["mallory", &*listed] {
            let said = past.fails(who, &relabel(change)).await;
            assert!(said.contains("identifies the event that created a run"), "{who} {change}: {said}");
        }
    };
    refused(&own).await;
    past.run("admin", &relabel(&own)).await;
    refused(&other).await;
    refused(&none).await;
    past.run("mallory", &relabel("team=c")).await;
    let mut run = pipeline_run("forged", &json!({}));
    run["spec"]["taskRunSpecs"] = json!([{"pipelineTaskName": "only", "metadata": {"annotations": forged}}]);
    write("forged-part.json", &run);
    let said = past.fails(&listed, &["create", "-f", "forged-part.json"]).await;
    assert!(said.contains("parts of a run"), "attacks:Z52 {said}");
    for (file, why) in [("run-forged-nested.json", "parts of a run"), ("run-deep.json", "more than one level deep")] {
        let said = past.fails(&listed, &["create", "-f", file]).await;
        assert!(said.contains(why), "attacks:Z52 {file}: {said}");
    }
    past.run(&listed, &["create", "--dry-run=server", "-f", "run-nested.json"]).await;

    // Runs that existed before the policy, or that the controller made of a fetched pipeline, can still be cancelled.
    run["metadata"]["name"] = json!("stray");
    write("stray.json", &run);
    let task = |name: &str| json!({"name": name, "taskSpec": plain["taskSpec"]});
    let more = json!({"spec": {"pipelineSpec": {"tasks": [deep, task("more")]}}});
    let forged_more = json!({"spec": {"taskRunSpecs": [run["spec"]["taskRunSpecs"][0], {"pipelineTaskName": "more"}]}});
    for (file, name, change, why) in [
        ("run-deep.json", "pipelinerun/outer", more, "more than one level deep"),
        ("stray.json", "pipelinerun/stray", forged_more, "parts of a run"),
    ] {
        past.run("admin", &["create", "-f", file]).await;
        let patch = |patch: &Value| ["patch", name, "--type=merge", "-p", &patch.to_string()].map(str::to_owned);
        let change = patch(&change);
        let said = past.fails("mallory", &change.each_ref().map(String::as_str)).await;
        assert!(said.contains(why), "attacks:Z52 {file}: {said}");
        let cancel = patch(&json!({"spec": {"status": "Cancelled"}}));
        past.run("mallory", &cancel.each_ref().map(String::as_str)).await;
    }

    // Even a caller that may impersonate Doorward's extra, as nobody else should, must match what it says.
    for (who, id, expected) in [("alice", "2", false), ("bob", "1", false), ("alice", "1", true)] {
        let extra = format!("doorward.dev/request-id={id}");
        let arguments = ["--as-user-extra", &extra, "create", "--dry-run=server", "-f", "forged-run.json"];
        let output = past.0.output(&Past::arguments(who, &arguments)).await;
        assert_eq!(output.status.success(), expected, "attacks:Z52 {who} {id}");
    }

    // Claims about a client or an actor are checked too, and so is their absence.
    for fact in ["client", "actor"] {
        let mut said = forged.clone();
        said[format!("doorward.dev/{fact}")] = json!("bot");
        write("with-fact.json", &pipeline_run("forged", &said));
        let (same, other) = (format!("doorward.dev/{fact}=bot"), format!("doorward.dev/{fact}=other"));
        for (file, extra, expected) in [
            ("with-fact.json", None, false),
            ("with-fact.json", Some(&other), false),
            ("with-fact.json", Some(&same), true),
            ("forged-run.json", Some(&same), false),
            ("forged-run.json", None, true),
        ] {
            let mut arguments = vec!["--as-user-extra", "doorward.dev/request-id=1"];
            arguments.extend(extra.iter().flat_map(|extra| ["--as-user-extra", extra.as_str()]));
            arguments.extend(["create", "--dry-run=server", "-f", file]);
            let output = past.0.output(&Past::arguments("alice", &arguments)).await;
            let why = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), expected, "attacks:Z52 {fact} {file} {extra:?}: {why}");
        }
    }

    // Through Doorward, including what the controller makes of it.
    let bob = world.kubectl("bob");
    bob.write("run.json", &pipeline_run("through", &forged).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    bob.run(&["wait", "--for=condition=Succeeded", "pipelinerun/through", "--timeout=90s"]).await;
    let tasks = format!(
        "/apis/tekton.dev/v1/namespaces/{}/taskruns?labelSelector=tekton.dev/pipelineRun=through",
        world.namespace
    );
    let tasks = world.api.read(&tasks).await;
    assert_eq!(tasks["items"][0]["metadata"]["annotations"]["doorward.dev/requested-by"], "bob");
    let mut pending = pipeline_run("applied", &json!({}));
    pending["spec"]["status"] = json!("PipelineRunPending");
    bob.write("apply.json", &pending.to_string());
    // Whoever applies it later has not caused it.
    let carol = world.kubectl("carol");
    carol.write("apply.json", &pending.to_string());
    for kubectl in [&bob, &bob, &carol, &bob] {
        kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", "apply.json"]).await;
        let run = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/applied", world.namespace);
        let run = world.api.read(&run).await;
        assert_eq!(run["metadata"]["annotations"]["doorward.dev/requested-by"], "bob");
    }

    // The annotations cannot be changed afterwards.
    for change in ["doorward.dev/requested-by=carol", "doorward.dev/approved-by=carol", "doorward.dev/rule-"] {
        let said = past.fails("mallory", &["annotate", "--overwrite", "pipelinerun/through", change]).await;
        assert!(said.contains("only Doorward writes them"), "attacks:Z25 {change}: {said}");
        assert!(bob.fails(&["annotate", "--overwrite", "pipelinerun/through", change]).await.contains("Forbidden"));
    }
    let said = past.fails("mallory", &["label", "pipelinerun/through", "doorward.dev/rule=x"]).await;
    assert!(said.contains("as if Doorward had written them"), "attacks:Z25 {said}");
    // Nor by a PUT of the whole object, for which kubectl uses the current version.
    let run = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/through", world.namespace);
    let mut run = world.api.read(&run).await;
    run["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    for (name, value) in [
        ("doorward.dev/requested-by", Some("carol")),
        ("doorward.dev/approved-by", Some("carol")),
        ("doorward.dev/rule", None),
        ("team", Some("c")),
    ] {
        let mut replaced = run.clone();
        let annotations = replaced["metadata"]["annotations"].as_object_mut().unwrap();
        match value {
            Some(value) => annotations.insert(name.to_owned(), json!(value)),
            None => annotations.remove(name),
        };
        for kubectl in [&past.0, &bob] {
            kubectl.write("replaced.json", &replaced.to_string());
        }
        let replace = ["replace", "-f", "replaced.json"];
        assert!(bob.fails(&replace).await.contains("Forbidden"), "attacks:Z25 {name}");
        if name == "team" {
            past.run("mallory", &replace).await;
        } else {
            let said = past.fails("mallory", &replace).await;
            assert!(said.contains("only Doorward writes them"), "attacks:Z25 {name}: {said}");
        }
    }
    // Not even by a caller that may impersonate Doorward's extra and matches what it writes.
    let vouched =
        json!({"metadata": {"annotations": {"doorward.dev/requested-by": "carol", "doorward.dev/request-id": "1"}}})
            .to_string();
    let arguments = [
        "--as-user-extra",
        "doorward.dev/request-id=1",
        "patch",
        "pipelinerun/through",
        "--type=merge",
        "-p",
        &vouched,
    ];
    assert!(past.fails("carol", &arguments).await.contains("only Doorward writes them"), "attacks:Z25");
    past.run("mallory", &["annotate", "--overwrite", "pipelinerun/through", "team=b"]).await;
    past.run("mallory", &["delete", "pipelinerun/through"]).await;
    world.assert_sent_as(&["bob", "carol"]).await;
}

#[tokio::test]
async fn only_the_controller_makes_runs_that_another_run_owns() {
    Tekton::get().await;
    let world = World::start().await;
    let listed = format!("system:serviceaccount:{}:build", world.namespace);
    enforce(world.api, &world.namespace, &listed).await;
    let past = Past(administrator(world.api, &world.namespace));
    let bob = world.kubectl("bob");
    bob.write("run.json", &pipeline_run("run", &json!({"hold": "yes"})).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    let path = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/run", world.namespace);
    let run = world.api.read(&path).await;
    let denied = "may create runs that another Tekton run owns";

    let mut posing = posing("posing", &run);
    past.0.write("posing.json", &posing.to_string());
    past.is_refused(&listed, "posing.json").await;
    for who in ["mallory", &*listed] {
        let said = past.fails(who, &["create", "-f", "posing.json"]).await;
        assert!(said.contains(denied), "{who}: {said}");
    }
    // Tekton's controller checks only the uid.
    let mut other = posing.clone();
    other["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1");
    past.0.write("other.json", &other.to_string());
    let said = past.fails(&listed, &["create", "-f", "other.json"]).await;
    assert!(said.contains(denied), "{said}");
    past.run("admin", &["create", "--dry-run=server", "-f", "posing.json"]).await;

    // An existing TaskRun is not adopted later either, whoever made it.
    let owners = json!({"metadata": {"ownerReferences": posing["metadata"]["ownerReferences"]}}).to_string();
    posing["metadata"]["ownerReferences"] = Value::Null;
    past.0.write("posing.json", &posing.to_string());
    past.run(&listed, &["create", "-f", "posing.json"]).await;
    let said = past.fails("mallory", &["patch", "taskrun/posing", "--type=merge", "-p", &owners]).await;
    assert!(said.contains(denied), "{said}");
    past.run("admin", &["patch", "taskrun/posing", "--type=merge", "-p", &owners]).await;
    // Existing owner references may be kept, and removed.
    past.run("mallory", &["annotate", "taskrun/posing", "team=b"]).await;
    let none = json!({"metadata": {"ownerReferences": null}}).to_string();
    past.run("mallory", &["patch", "taskrun/posing", "--type=merge", "-p", &none]).await;
    // But the label that makes it a part of the run may not be removed, or it would count as a run of its own.
    for change in ["tekton.dev/pipelineRun-", "tekton.dev/pipelineRun=other"] {
        let said = past.fails("mallory", &["label", "--overwrite", "taskrun/posing", change]).await;
        assert!(said.contains("identifies the run that a run is part of"), "{change}: {said}");
    }

    // Nor may a TaskRun owned by another object get the label that makes it a part of the run.
    other["metadata"]["labels"] = json!({});
    other["metadata"]["name"] = json!("owned");
    past.0.write("other.json", &other.to_string());
    past.run(&listed, &["create", "-f", "other.json"]).await;
    let said = past.fails("mallory", &["label", "taskrun/owned", "tekton.dev/pipelineRun=run"]).await;
    assert!(said.contains(denied), "{said}");
    past.run("mallory", &["label", "taskrun/owned", "team=b"]).await;
}

/// The running pod of a run's task, other than `but`.
async fn pod_of(world: &World, run: &str, but: &Value) -> Value {
    let path = format!("/api/v1/namespaces/{}/pods?labelSelector=tekton.dev/pipelineRun%3D{run}", world.namespace);
    found(async || {
        let pods = world.api.read(&path).await;
        let mut pods = pods["items"].as_array().unwrap().iter();
        pods.find(|pod| pod["status"]["phase"] == "Running" && pod["metadata"]["uid"] != *but).cloned()
    })
    .await
}

#[tokio::test]
async fn only_the_controller_makes_the_pods_of_tasks_and_says_what_runs_in_them() {
    Tekton::get().await;
    let world = World::start().await;
    enforce(world.api, &world.namespace, "nobody").await;
    let past = Past(administrator(world.api, &world.namespace));
    let denied = "the pod of a TaskRun gets the tokens of its run";
    let main = json!({"containers": [{"name": "main", "image": "images.test/main"}]});
    let owner = |kind: &str, version: &str, controller: bool| json!([{"apiVersion": version, "kind": kind, "name": "x", "uid": "1", "controller": controller}]);
    let of = |owners: &Value| json!({"metadata": {"ownerReferences": owners}});
    let pod = |name: &str, owners: &Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": main});
        pod["metadata"]["ownerReferences"] = owners.clone();
        pod
    };
    past.0.write("forged.json", &pod("forged", &owner("TaskRun", "tekton.dev/v1", true)).to_string());
    past.is_refused("mallory", "forged.json").await;

    // A real run has its pod, and nobody else may create one for it.
    let bob = world.kubectl("bob");
    bob.write("run.json", &pipeline_run("run", &json!({"hold": "yes"})).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    let real = pod_of(&world, "run", &Value::Null).await;
    let name = real["metadata"]["name"].as_str().unwrap();
    let mut remade = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": real["spec"]});
    for part in ["labels", "annotations", "ownerReferences"] {
        remade["metadata"][part] = real["metadata"][part].clone();
    }
    past.0.write("remade.json", &remade.to_string());
    remade["metadata"]["name"] = json!("another");
    remade["metadata"]["ownerReferences"][0]["apiVersion"] = json!("tekton.dev/v1beta1");
    past.0.write("another.json", &remade.to_string());
    past.run("mallory", &["delete", "pod", name, "--grace-period=0", "--force", "--wait=false"]).await;
    for who in ["mallory", "system:serviceaccount:tekton-pipelines:default"] {
        for file in ["remade.json", "another.json", "forged.json"] {
            let said = past.fails(who, &["create", "-f", file]).await;
            assert!(said.contains(denied) && said.contains(who), "{who} {file}: {said}");
        }
    }
    let real = pod_of(&world, "run", &real["metadata"]["uid"]).await;
    let name = real["metadata"]["name"].as_str().unwrap();
    past.run("admin", &["create", "--dry-run=server", "-f", "another.json"]).await;

    // Others may change anything in it but the images.
    let patch = async |pod: &str, patch: Value, more: &[&str]| {
        let patch = patch.to_string();
        let arguments = [&["patch", "pod", pod, "--type=merge", "-p", &patch], more].concat();
        let output = past.0.output(&Past::arguments("mallory", &arguments)).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains(denied), "{pod} {patch}: {said}");
        output.status.success()
    };
    let mut owners = real["metadata"]["ownerReferences"].clone();
    owners[0]["blockOwnerDeletion"] = json!(false);
    let images = |part: &str| {
        let mut containers = real["spec"][part].clone();
        containers[0]["image"] = json!("images.test/evil");
        json!({"spec": {part: containers}})
    };
    assert!(patch(name, json!({"metadata": {"annotations": {"team": "a"}, "finalizers": []}}), &[]).await);
    assert!(patch(name, of(&owners), &[]).await, "as the garbage collector does");
    assert!(patch(name, json!({"spec": {"activeDeadlineSeconds": 3000}}), &[]).await);
    assert!(patch(name, json!({"status": {"message": "as a kubelet does"}}), &["--subresource=status"]).await);
    for part in ["containers", "initContainers"] {
        assert!(!patch(name, images(part), &[]).await, "{part}");
    }
    let debug = |pod: &str| ["debug", pod, "--image=images.test/evil"].map(str::to_owned);
    let said = past.fails("mallory", &debug(name).each_ref().map(String::as_str)).await;
    assert!(said.contains(denied), "a container of one's own: {said}");
    let mut others = owners.clone();
    others[0]["uid"] = json!("1");
    assert!(!patch(name, of(&others), &[]).await, "for another TaskRun");
    assert!(patch(name, of(&json!(null)), &[]).await, "as the garbage collector does with orphans");
    assert!(!patch(name, of(&owners), &[]).await, "an orphan taken back");

    // Pods that do not belong to a TaskRun, created and changed by anybody.
    for (pod_name, owners) in [
        ("plain", json!(null)),
        ("of-a-set", owner("StatefulSet", "apps/v1", true)),
        ("of-a-pipeline", owner("PipelineRun", "tekton.dev/v1", true)),
        ("of-another-group", owner("TaskRun", "tekton.dev.example.com/v1", true)),
        ("not-controlled", owner("TaskRun", "tekton.dev/v1", false)),
    ] {
        past.0.write("pod.json", &pod(pod_name, &owners).to_string());
        past.run("mallory", &["create", "-f", "pod.json"]).await;
        past.run("mallory", &["set", "image", &format!("pod/{pod_name}"), "main=images.test/other"]).await;
        past.run("mallory", &debug(pod_name).each_ref().map(String::as_str)).await;
        assert!(!patch(pod_name, of(&owner("TaskRun", "tekton.dev/v1", true)), &[]).await, "{pod_name}");
        past.run("mallory", &["delete", "pod", pod_name, "--wait=false"]).await;
    }
}
