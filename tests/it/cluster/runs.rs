//! Runs that people start and end through Doorward, with the real controller behind it.

use serde_json::{Value, json};

use super::{
    tekton::{Tekton, pipeline_run},
    world::World,
};
use crate::{fixture::Change, harness::until};

/// Alice and Bob may start runs, only Alice may end them, and nobody may change anything else of one.
fn rules(yaml: &str) -> String {
    yaml.change(
        "  - {id: dev, on: {routes: [api]}, who: {groups: [dev]}, do: allow}\n",
        "  - {id: look, on: {routes: [api], methods: [GET]}, who: {groups: [dev]}, do: allow}
  - {id: start, on: {routes: [api], run: {does: [create]}}, who: {groups: [dev]}, do: allow}
  - {id: end, on: {routes: [api], run: {does: [cancel]}}, who: {subjects: [alice]}, do: allow}
",
    )
}

/// The annotations of an object by which Doorward records the caller.
fn ours(object: &Value) -> Value {
    let annotations = object["metadata"]["annotations"].as_object().unwrap();
    annotations
        .iter()
        .filter(|(name, _)| name.starts_with("doorward.dev/"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

#[tokio::test]
async fn a_run_through_doorward_completes_and_names_its_requester() {
    Tekton::get().await;
    let world = World::with(|yaml| rules(&yaml)).await;
    let bob = world.kubectl("bob");
    let forged = json!({"doorward.dev/requested-by": "root", "doorward.dev/approved": "yes", "team": "a"});
    bob.write("run.json", &pipeline_run("one", &forged).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    bob.run(&["wait", "--for=condition=Succeeded", "pipelinerun/one", "--timeout=90s"]).await;

    let event = world.event(|event| event["verb"] == "create" && event["objectRef"]["name"] == "one").await;
    assert_eq!(event["impersonatedUser"]["username"], "bob");
    let expected = json!({
        "doorward.dev/requested-by": "bob",
        "doorward.dev/issuer": "a",
        "doorward.dev/subject": "bob",
        "doorward.dev/kind": "human",
        "doorward.dev/client": "tests",
        "doorward.dev/rule": "start",
        "doorward.dev/request-id": event["auditID"],
    });
    let tekton = format!("/apis/tekton.dev/v1/namespaces/{}", world.namespace);
    let run = world.api.read(&format!("{tekton}/pipelineruns/one")).await;
    assert_eq!(ours(&run), expected);
    assert_eq!(run["metadata"]["annotations"]["team"], "a");
    // The controller copies them to what it creates for the run.
    let tasks = world.api.read(&format!("{tekton}/taskruns")).await;
    assert_eq!(ours(&tasks["items"][0]), expected);
    let pods = world.api.read(&format!("/api/v1/namespaces/{}/pods", world.namespace)).await;
    assert_eq!(ours(&pods["items"][0]), expected);
    world.assert_sent_as(&["bob"]).await;
}

#[tokio::test]
async fn a_permitted_caller_ends_a_run_and_nobody_changes_it() {
    Tekton::get().await;
    let world = World::with(|yaml| rules(&yaml)).await;
    let (alice, bob) = (world.kubectl("alice"), world.kubectl("bob"));
    bob.write("run.json", &pipeline_run("held", &json!({"hold": "yes"})).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    let path = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/held", world.namespace);
    until(async || world.api.read(&path).await["status"]["conditions"][0]["reason"] == "Running").await;
    let patch = |patch: &'static str| ["patch", "pipelinerun", "held", "--type=merge", "-p", patch];
    let cancel = patch(r#"{"spec": {"status": "Cancelled"}}"#);
    assert!(bob.fails(&cancel).await.contains("Forbidden"));
    let forge = patch(r#"{"metadata": {"annotations": {"doorward.dev/requested-by": "carol"}}}"#);
    for kubectl in [&alice, &bob] {
        assert!(kubectl.fails(&forge).await.contains("Forbidden"));
    }
    alice.run(&cancel).await;
    alice.run(&["wait", "--for=condition=Succeeded=False", "pipelinerun/held", "--timeout=90s"]).await;
    let run = world.api.read(&path).await;
    assert_eq!(run["status"]["conditions"][0]["reason"], "Cancelled");
    assert_eq!(run["metadata"]["annotations"]["doorward.dev/requested-by"], "bob");
    world.assert_sent_as(&["alice", "bob"]).await;
}

/// From the second apply on, each was refused for annotations that are not in the file.
#[tokio::test]
async fn a_run_keeps_its_requester_under_both_kinds_of_apply_in_turn() {
    Tekton::get().await;
    let world = World::start().await;
    let kubectl = world.kubectl("alice");
    kubectl.write("run.json", &pipeline_run("turns", &json!({"hold": "yes"})).to_string());
    kubectl.run(&["apply", "-f", "run.json"]).await;
    let path = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/turns", world.namespace);
    let before = ours(&world.api.read(&path).await);
    assert_eq!(before["doorward.dev/requested-by"], "alice");
    for turn in 0..2 {
        kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", "run.json"]).await;
        let run = world.api.read(&path).await;
        let applied = run["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
        assert!(applied.unwrap().contains("doorward.dev/"), "turn {turn}: what kubectl would take away: {applied:?}");
        kubectl.run(&["apply", "-f", "run.json"]).await;
        let run = world.api.read(&path).await;
        assert_eq!(ours(&run), before, "turn {turn}");
        let applied = run["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
        assert!(!applied.unwrap().contains("doorward.dev/"), "turn {turn}: it is as it was again: {applied:?}");
    }
    kubectl.run(&["delete", "pipelinerun", "turns"]).await;
    world.assert_sent_as(&["alice"]).await;
}

/// Each was refused: for the label of another kind of run, and for annotations that were unchanged.
#[tokio::test]
async fn a_run_loses_the_labels_of_its_file_and_is_sent_back_as_it_was_read() {
    Tekton::get().await;
    let world = World::start().await;
    let kubectl = world.kubectl("alice");
    let mut run = pipeline_run("bare", &json!({"hold": "yes"}));
    run["metadata"]["labels"] = json!({"team": "a"});
    kubectl.write("run.json", &run.to_string());
    kubectl.run(&["apply", "-f", "run.json"]).await;
    let path = format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/bare", world.namespace);
    until(async || world.api.read(&path).await["status"]["conditions"][0]["reason"] == "Running").await;
    let before = world.api.read(&path).await;
    assert_eq!(before["metadata"]["labels"]["team"], "a");
    run["metadata"].as_object_mut().unwrap().remove("labels");
    kubectl.write("run.json", &run.to_string());
    kubectl.run(&["apply", "-f", "run.json"]).await;
    let mut there = world.api.read(&path).await;
    assert_eq!(there["metadata"]["labels"]["team"], Value::Null);
    assert_eq!(ours(&there), ours(&before));

    let patch = async |what: &Value| {
        let what = what.to_string();
        kubectl.output(&["patch", "pipelinerun", "bare", "--type=merge", "-p", &what]).await
    };
    there["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    there["spec"]["status"] = "Cancelled".into();
    let mut forged = there.clone();
    forged["metadata"]["annotations"]["doorward.dev/requested-by"] = "bob".into();
    let refused = patch(&forged).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("who asked for a run cannot be changed"), "{said}");
    let done = patch(&there).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    kubectl.run(&["wait", "--for=condition=Succeeded=False", "pipelinerun/bare", "--timeout=90s"]).await;
    assert_eq!(ours(&world.api.read(&path).await), ours(&before));
    world.assert_sent_as(&["alice"]).await;
}
