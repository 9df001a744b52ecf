//! The annotations by which Doorward says who asked for a run. Nobody else writes them, neither into runs nor into the
//! objects that Tekton copies to runs.

use serde_json::{Value, json};

use super::{Past, enforce};
use crate::cluster::{
    api_server::ApiServer,
    shipped::administrator,
    tekton::{Tekton, pipeline_run},
    world::{Kubectl, World},
};

const COPIED: &str = "would be copied to runs";
const THROUGH_DOORWARD: &str = "runs are made through Doorward";
const ONLY_DOORWARD: &str = "only Doorward writes them";
const PARTS: &str = "parts of a run";
const TOO_DEEP: &str = "more than one level deep";

/// Annotations that say that Alice asked for a run.
fn forged() -> Value {
    json!({"doorward.dev/requested-by": "alice", "doorward.dev/request-id": "1", "team": "a"})
}

/// A task with one step.
fn task(name: &str) -> Value {
    json!({"name": name, "taskSpec": {"steps": [{"name": "run", "image": "x", "command": ["true"]}]}})
}

/// The same with a label of Doorward's.
fn forged_task() -> Value {
    let mut task = task("only");
    task["taskSpec"]["metadata"] = json!({"labels": {"doorward.dev/rule": "x"}});
    task
}

/// A pipeline within a pipeline, as Tekton accepts with `enable-api-fields: alpha`.
fn nesting(task: &Value) -> Value {
    json!({"name": "inner", "pipelineSpec": {"finally": [task]}})
}

/// A pipeline that is nested deeper than the policies check.
fn nested_too_deep() -> Value {
    nesting(&nesting(&task("t")))
}

fn pipeline(name: &str, task: &Value) -> Value {
    json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "Pipeline",
        "metadata": {"name": name, "annotations": {"team": "a"}},
        "spec": {"tasks": [task]},
    })
}

fn forged_pipeline() -> Value {
    let mut pipeline = pipeline("pipeline", &task("only"));
    pipeline["metadata"]["annotations"] = json!({"Doorward.dev/approved-by": "bob"});
    pipeline
}

/// A run that contains its pipeline.
fn run_of(task: &Value) -> Value {
    let mut run = pipeline_run("outer", &json!({}));
    run["spec"] = json!({"pipelineSpec": {"tasks": [task]}});
    run
}

/// A run with annotations of Doorward for its one task.
fn with_forged_part(name: &str) -> Value {
    let mut run = pipeline_run(name, &json!({}));
    run["spec"]["taskRunSpecs"] = json!([{"pipelineTaskName": "only", "metadata": {"annotations": forged()}}]);
    run
}

/// A namespace with the policies in force, a run in `run.json`, and one that claims to be Alice's in `forged-run.json`.
struct Enforced {
    past: Past,
    /// The account of an EventListener.
    listed: String,
}

impl Enforced {
    /// In a namespace of its own, without Doorward.
    async fn start() -> Self {
        Tekton::get().await;
        let api = ApiServer::get().await;
        Self::at(api, &api.namespace().await).await
    }

    async fn at(api: &ApiServer, namespace: &str) -> Self {
        let listed = format!("system:serviceaccount:{namespace}:build");
        enforce(api, namespace, &listed).await;
        let past = Past(administrator(api, namespace));
        past.write("run.json", &pipeline_run("run", &json!({"team": "a"})));
        past.write("forged-run.json", &pipeline_run("forged", &forged()));
        past.write("forged-pipeline.json", &forged_pipeline());
        past.is_refused("mallory", "forged-pipeline.json", COPIED).await;
        past.is_refused("mallory", "run.json", THROUGH_DOORWARD).await;
        Self { past, listed }
    }
}

#[tokio::test]
async fn templates_of_runs_cannot_have_doorwards_annotations() {
    let Enforced { past, .. } = Enforced::start().await;
    let template = |annotations: &Value| {
        json!({
            "apiVersion": "triggers.tekton.dev/v1beta1",
            "kind": "TriggerTemplate",
            "metadata": {"name": "template"},
            "spec": {"resourcetemplates": [pipeline_run("made", annotations)]},
        })
    };
    for (what, object, words) in [
        ("a pipeline", forged_pipeline(), COPIED),
        ("a task in it", pipeline("pipeline", &forged_task()), COPIED),
        ("a TriggerTemplate", template(&forged()), COPIED),
        ("a task in a nested pipeline", pipeline("outer", &nesting(&forged_task())), COPIED),
        ("a pipeline nested deeper", pipeline("outer", &nested_too_deep()), TOO_DEEP),
    ] {
        past.write("forged.json", &object);
        let said = past.fails("mallory", &["create", "-f", "forged.json"]).await;
        assert!(said.contains(words), "attacks:Z51 {what}: {said}");
    }
    // The counterparts.
    for object in
        [pipeline("pipeline", &task("only")), template(&json!({"team": "a"})), pipeline("outer", &nesting(&task("t")))]
    {
        past.write("good.json", &object);
        past.run("mallory", &["create", "-f", "good.json"]).await;
    }
}

#[tokio::test]
async fn runs_made_past_doorward_cannot_claim_who_asked_for_them() {
    let Enforced { past, listed } = Enforced::start().await;
    let said = past.fails("mallory", &["create", "-f", "run.json"]).await;
    assert!(said.contains(THROUGH_DOORWARD) && said.contains("mallory"), "attacks:Z52 {said}");
    let said = past.fails("alice", &["create", "-f", "forged-run.json"]).await;
    assert!(said.contains(THROUGH_DOORWARD), "attacks:Z52 the person that it names: {said}");
    // The account of an EventListener may create runs, but may not claim who caused them.
    past.run(&listed, &["create", "-f", "run.json"]).await;
    for (what, object, words) in [
        ("the run", pipeline_run("forged", &forged()), ONLY_DOORWARD),
        ("a part of it", with_forged_part("forged"), PARTS),
        ("a task in a nested pipeline", run_of(&nesting(&forged_task())), PARTS),
        ("a pipeline nested deeper", run_of(&nested_too_deep()), TOO_DEEP),
    ] {
        past.write("forged.json", &object);
        let said = past.fails(&listed, &["create", "-f", "forged.json"]).await;
        assert!(said.contains(words), "attacks:Z52 {what}: {said}");
    }
    past.write("nested.json", &run_of(&nesting(&task("t"))));
    past.run(&listed, &["create", "--dry-run=server", "-f", "nested.json"]).await;
}

#[tokio::test]
async fn only_the_controller_changes_the_event_that_a_run_came_from() {
    let Enforced { past, listed } = Enforced::start().await;
    past.run(&listed, &["create", "-f", "run.json"]).await;
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
}

/// Such runs existed before the policy, or the controller made them of a fetched pipeline.
#[tokio::test]
async fn a_run_that_would_be_refused_can_be_cancelled_but_not_extended() {
    let Enforced { past, .. } = Enforced::start().await;
    let (deep, stray) = (nested_too_deep(), with_forged_part("stray"));
    let more = json!({"spec": {"pipelineSpec": {"tasks": [deep, task("more")]}}});
    let forged_more =
        json!({"spec": {"taskRunSpecs": [stray["spec"]["taskRunSpecs"][0], {"pipelineTaskName": "more"}]}});
    for (run, name, change, words) in
        [(run_of(&deep), "pipelinerun/outer", more, TOO_DEEP), (stray, "pipelinerun/stray", forged_more, PARTS)]
    {
        past.write("before.json", &run);
        past.run("admin", &["create", "-f", "before.json"]).await;
        let patch = |patch: &Value| ["patch", name, "--type=merge", "-p", &patch.to_string()].map(str::to_owned);
        let change = patch(&change);
        let said = past.fails("mallory", &change.each_ref().map(String::as_str)).await;
        assert!(said.contains(words), "attacks:Z52 {name}: {said}");
        let cancel = patch(&json!({"spec": {"status": "Cancelled"}}));
        past.run("mallory", &cancel.each_ref().map(String::as_str)).await;
    }
}

/// Nobody else should be able to impersonate Doorward's extra, but a misconfigured cluster may let somebody.
#[tokio::test]
async fn a_caller_that_may_impersonate_the_extra_must_match_what_the_run_says() {
    let Enforced { past, .. } = Enforced::start().await;
    for (who, id, expected) in [("alice", "2", false), ("bob", "1", false), ("alice", "1", true)] {
        let extra = format!("doorward.dev/request-id={id}");
        let arguments = ["--as-user-extra", &extra, "create", "--dry-run=server", "-f", "forged-run.json"];
        let output = past.0.output(&Past::arguments(who, &arguments)).await;
        assert_eq!(output.status.success(), expected, "attacks:Z52 {who} {id}");
    }
    // Claims about a client or an actor are checked too, and so is their absence.
    for fact in ["client", "actor"] {
        let mut said = forged();
        said[format!("doorward.dev/{fact}")] = json!("bot");
        past.write("with-fact.json", &pipeline_run("forged", &said));
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
}

/// A run as it is stored.
async fn stored_run(world: &World, name: &str) -> Value {
    world.api.read(&format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns/{name}", world.namespace)).await
}

/// One test, as each part of it needs a run that has ended, which takes longest.
#[tokio::test]
async fn a_run_made_through_doorward_keeps_the_name_of_who_made_it() {
    Tekton::get().await;
    let world = World::start().await;
    let Enforced { past, .. } = Enforced::at(world.api, &world.namespace).await;
    let bob = world.kubectl("bob");
    bob.write("run.json", &pipeline_run("through", &forged()).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    bob.run(&["wait", "--for=condition=Succeeded", "pipelinerun/through", "--timeout=90s"]).await;

    its_tasks_have_the_same_name(&world).await;
    later_applies_do_not_change_it(&world, &bob).await;
    annotating_does_not_change_it(&past, &bob).await;
    replacing_the_whole_run_does_not_change_it(&world, &past, &bob).await;
    impersonating_the_extra_does_not_change_it(&past).await;

    past.run("mallory", &["annotate", "--overwrite", "pipelinerun/through", "team=b"]).await;
    past.run("mallory", &["delete", "pipelinerun/through"]).await;
    world.assert_sent_as(&["bob", "carol"]).await;
}

async fn its_tasks_have_the_same_name(world: &World) {
    let tasks = format!(
        "/apis/tekton.dev/v1/namespaces/{}/taskruns?labelSelector=tekton.dev/pipelineRun=through",
        world.namespace
    );
    let tasks = world.api.read(&tasks).await;
    assert_eq!(tasks["items"][0]["metadata"]["annotations"]["doorward.dev/requested-by"], "bob");
}

/// Whoever applies a run later has not caused it.
async fn later_applies_do_not_change_it(world: &World, bob: &Kubectl) {
    let mut pending = pipeline_run("applied", &json!({}));
    pending["spec"]["status"] = json!("PipelineRunPending");
    let carol = &world.kubectl("carol");
    for kubectl in [bob, carol] {
        kubectl.write("apply.json", &pending.to_string());
    }
    for kubectl in [bob, bob, carol, bob] {
        kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", "apply.json"]).await;
        let run = stored_run(world, "applied").await;
        assert_eq!(run["metadata"]["annotations"]["doorward.dev/requested-by"], "bob");
    }
}

async fn annotating_does_not_change_it(past: &Past, bob: &Kubectl) {
    for change in ["doorward.dev/requested-by=carol", "doorward.dev/approved-by=carol", "doorward.dev/rule-"] {
        let said = past.fails("mallory", &["annotate", "--overwrite", "pipelinerun/through", change]).await;
        assert!(said.contains(ONLY_DOORWARD), "attacks:Z25 {change}: {said}");
        assert!(bob.fails(&["annotate", "--overwrite", "pipelinerun/through", change]).await.contains("Forbidden"));
    }
    let said = past.fails("mallory", &["label", "pipelinerun/through", "doorward.dev/rule=x"]).await;
    assert!(said.contains("as if Doorward had written them"), "attacks:Z25 {said}");
}

/// By a PUT, for which kubectl uses the current version.
async fn replacing_the_whole_run_does_not_change_it(world: &World, past: &Past, bob: &Kubectl) {
    let mut run = stored_run(world, "through").await;
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
        for kubectl in [&past.0, bob] {
            kubectl.write("replaced.json", &replaced.to_string());
        }
        let replace = ["replace", "-f", "replaced.json"];
        assert!(bob.fails(&replace).await.contains("Forbidden"), "attacks:Z25 {name}");
        if name == "team" {
            past.run("mallory", &replace).await;
        } else {
            let said = past.fails("mallory", &replace).await;
            assert!(said.contains(ONLY_DOORWARD), "attacks:Z25 {name}: {said}");
        }
    }
}

/// Not even if the extra matches what is written.
async fn impersonating_the_extra_does_not_change_it(past: &Past) {
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
    assert!(past.fails("carol", &arguments).await.contains(ONLY_DOORWARD), "attacks:Z25");
}
