//! Runs that say that another run owns them. Tekton adopts such a run, whose tasks would get the tokens of the other.

use serde_json::{Value, json};

use super::{Past, enforce};
use crate::cluster::{
    shipped::administrator,
    tekton::{Tekton, pipeline_run},
    tokens::posing,
    world::World,
};

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
    past.write("posing.json", &posing);
    past.is_refused(&listed, "posing.json", denied).await;
    for who in ["mallory", &*listed] {
        let said = past.fails(who, &["create", "-f", "posing.json"]).await;
        assert!(said.contains(denied), "{who}: {said}");
    }
    // Tekton's controller checks only the uid.
    let mut other = posing.clone();
    other["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1");
    past.write("other.json", &other);
    let said = past.fails(&listed, &["create", "-f", "other.json"]).await;
    assert!(said.contains(denied), "{said}");
    past.run("admin", &["create", "--dry-run=server", "-f", "posing.json"]).await;

    // An existing TaskRun is not adopted later either, whoever made it.
    let owners = json!({"metadata": {"ownerReferences": posing["metadata"]["ownerReferences"]}}).to_string();
    posing["metadata"]["ownerReferences"] = Value::Null;
    past.write("posing.json", &posing);
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
    past.write("other.json", &other);
    past.run(&listed, &["create", "-f", "other.json"]).await;
    let said = past.fails("mallory", &["label", "taskrun/owned", "tekton.dev/pipelineRun=run"]).await;
    assert!(said.contains(denied), "{said}");
    past.run("mallory", &["label", "taskrun/owned", "team=b"]).await;
}
