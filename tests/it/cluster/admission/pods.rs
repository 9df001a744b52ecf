//! The pods of TaskRuns, whose code gets the tokens of their runs.

use serde_json::{Value, json};

use super::{Past, enforce};
use crate::{
    cluster::{
        shipped::administrator,
        tekton::{Tekton, pipeline_run},
        world::World,
    },
    harness::found,
};

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
    past.write("forged.json", &pod("forged", &owner("TaskRun", "tekton.dev/v1", true)));
    past.is_refused("mallory", "forged.json", denied).await;

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
    past.write("remade.json", &remade);
    remade["metadata"]["name"] = json!("another");
    remade["metadata"]["ownerReferences"][0]["apiVersion"] = json!("tekton.dev/v1beta1");
    past.write("another.json", &remade);
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
        past.write("pod.json", &pod(pod_name, &owners));
        past.run("mallory", &["create", "-f", "pod.json"]).await;
        past.run("mallory", &["set", "image", &format!("pod/{pod_name}"), "main=images.test/other"]).await;
        past.run("mallory", &debug(pod_name).each_ref().map(String::as_str)).await;
        assert!(!patch(pod_name, of(&owner("TaskRun", "tekton.dev/v1", true)), &[]).await, "{pod_name}");
        past.run("mallory", &["delete", "pod", pod_name, "--wait=false"]).await;
    }
}
