//! From runs back to who caused them, by the audit trail.

use serde_json::{Value, json};

use super::{
    admission::{Past, enforce},
    api_server::ApiServer,
    event_listener::{Asks, EventListener, HOOKS},
    shipped::administrator,
    tasks::{DOOR, TARGET, Tasks, claims},
    tekton::{Tekton, pipeline_run},
    world::World,
};
use crate::{
    fixture::{Change, WEBHOOK_SECRET},
    harness::{Doorward, Wire, found, free_port, unique, until},
};

const RUNS: &str = "runs: {kubernetes: cluster, namespaces: ['{ns}']}\n";

/// The log message while runs cannot be watched.
const NOT_LINKED: &str = "runs are not linked to their causes";

async fn may_watch_runs(world: &World) {
    let account = json!({"kind": "ServiceAccount", "namespace": world.namespace, "name": "doorward"});
    let watch =
        json!([{"apiGroups": ["tekton.dev"], "resources": ["pipelineruns", "taskruns"], "verbs": ["list", "watch"]}]);
    world.api.allow(&world.namespace, "doorward-reader", &account, &watch).await;
}

fn runs(world: &World) -> String {
    format!("/apis/tekton.dev/v1/namespaces/{}/pipelineruns", world.namespace)
}

/// The records of a run in the trail, once there are any.
pub(super) async fn linked(doorward: &Doorward, uid: &Value) -> Vec<Value> {
    doorward.records(1, |record| record["unmapped"]["linked"]["uid"] == *uid).await
}

/// The exit code and output of `doorward audit trace`.
pub(super) async fn trace(world: &World, name: &str) -> (Option<i32>, String) {
    world.doorward.trace("pipelinerun", &format!("{}/{name}", world.namespace)).await
}

/// The same once it reports the end of tokens, which a separate thread writes.
async fn trace_to_the_end(world: &World, kind: &str, what: &str) -> (Option<i32>, String) {
    found(async || Some(world.doorward.trace(kind, what).await).filter(|traced| traced.1.contains("    ended    ")))
        .await
}

#[tokio::test]
async fn a_run_is_traced_to_its_requester_and_copies_of_it_are_not() {
    Tekton::get().await;
    let mut world = World::with(|yaml| yaml + RUNS).await;
    // It retries by itself until it has the right.
    world.doorward.wait_for_log_containing(NOT_LINKED).await;
    may_watch_runs(&world).await;
    let bob = world.kubectl("bob");
    bob.write("run.json", &pipeline_run("one", &json!({})).to_string());
    bob.run(&["create", "-f", "run.json"]).await;
    let run = world.api.read(&format!("{}/one", runs(&world))).await;
    linked(&world.doorward, &run["metadata"]["uid"]).await;
    let request = run["metadata"]["annotations"]["doorward.dev/request-id"].as_str().unwrap();
    let (code, said) = trace(&world, "one").await;
    assert_eq!(code, Some(0), "{said}");
    for part in ["caused by  bob (a person of a)", &format!("request    {request} at "), "by rule dev of policy "] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // Created without Doorward, by somebody who may, with the claim that Bob asked for it.
    let copied = run["metadata"]["annotations"].clone();
    world.api.create(&runs(&world), &pipeline_run("copy", &copied)).await;
    let other = json!({"doorward.dev/request-id": uuid::Uuid::from_u128(7)});
    // While nothing watches.
    world.doorward = world.doorward.kill_and_restart().await;
    let unknown = world.api.create(&runs(&world), &pipeline_run("unknown", &other)).await;
    linked(&world.doorward, &unknown["metadata"]["uid"]).await;
    for (name, why) in [("copy", "created another run"), ("unknown", "is not in these files")] {
        let (code, said) = trace(&world, name).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(why) && !said.contains("bob"), "{said}");
    }
    assert_eq!(linked(&world.doorward, &run["metadata"]["uid"]).await.len(), 1, "written once, over a restart");
    let (code, said) = trace(&world, "none").await;
    assert_eq!(code, Some(1));
    assert!(said.contains("no PipelineRun") && said.contains("it was not made through Doorward"), "{said}");
}

#[tokio::test]
async fn a_run_that_appears_while_the_watch_is_cut_is_linked_once_it_is_whole_again() {
    Tekton::get().await;
    let server = ApiServer::get().await.address;
    let wire = Wire::to(server).await;
    let world = World::with(|yaml| yaml.change(&server.to_string(), &wire.address().to_string()) + RUNS).await;
    may_watch_runs(&world).await;
    let with_event = |name: &str| {
        let mut run = pipeline_run(name, &json!({}));
        run["metadata"]["labels"] = json!({"triggers.tekton.dev/triggers-eventid": unique()});
        run
    };
    let before = world.api.create(&runs(&world), &with_event("before")).await;
    linked(&world.doorward, &before["metadata"]["uid"]).await;
    let gone = world.api.create(&runs(&world), &with_event("gone")).await;
    linked(&world.doorward, &gone["metadata"]["uid"]).await;

    let told = || world.doorward.log().iter().filter(|line| line.to_string().contains(NOT_LINKED)).count();
    let before_gap = told();
    wire.cut();
    until(async || told() != before_gap).await;
    let within_gap = world.api.create(&runs(&world), &with_event("within")).await;
    // It no longer exists when the watch is reopened, which must not keep the others from being linked.
    let answer = world.api.ask("DELETE", &format!("{}/gone", runs(&world)), None).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    wire.mend();
    let records = linked(&world.doorward, &within_gap["metadata"]["uid"]).await;
    assert_eq!(records.len(), 1);
    let event = &within_gap["metadata"]["labels"]["triggers.tekton.dev/triggers-eventid"];
    assert_eq!(records[0]["unmapped"]["linked"]["event_id"], *event, "{}", records[0]);
    // The watch continues, and does not report again what came before the gap.
    let after = world.api.create(&runs(&world), &with_event("after")).await;
    linked(&world.doorward, &after["metadata"]["uid"]).await;
    assert_eq!(linked(&world.doorward, &before["metadata"]["uid"]).await.len(), 1);
}

#[tokio::test]
async fn a_run_of_an_event_listener_is_traced_to_its_delivery() {
    let listener = EventListener::prepare_with(Asks::Doorward, RUNS).await;
    let world = &listener.world;
    may_watch_runs(world).await;
    let _sink = listener.start().await;
    let id = unique();
    let answer = super::deliveries::deliver(&world.doorward, &id, "traced").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let run = listener.run("traced").await;
    let name = run["metadata"]["name"].as_str().unwrap();
    linked(&world.doorward, &run["metadata"]["uid"]).await;
    let event = run["metadata"]["labels"]["triggers.tekton.dev/triggers-eventid"].as_str().unwrap();
    // The record of the delivery is complete only after its response.
    until(async || trace(world, name).await.0 == Some(0)).await;
    let (_, said) = trace(world, name).await;
    for part in [
        "caused by  webhook:github:repo:1234 (an agent of webhook:github)",
        &format!("delivery   {id} of github, push, repository acme/app, branch main, commit traced, by octocat"),
        "by rule hooks of policy ",
        &format!("event      {event}"),
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// A rerun by the Dashboard copies all labels and annotations of the original run; a forged run copies what anybody may
/// read of another.
#[tokio::test]
async fn a_rerun_is_traced_to_its_own_requester_and_a_forged_event_to_no_delivery() {
    let listener = EventListener::prepare_with(Asks::Doorward, RUNS).await;
    let world = &listener.world;
    may_watch_runs(world).await;
    enforce(world.api, &world.namespace, "nobody").await;
    let _sink = listener.start().await;
    let make = async |who: &str, run: &Value| -> Value {
        let line = format!("POST {} HTTP/1.1", runs(world));
        let lines = [line.as_str(), "Host: api.test", &world.developer(who), "Content-Type: application/json"];
        let answer = world.doorward.send(&lines, run.to_string().as_bytes()).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        linked(&world.doorward, &answer.json()["metadata"]["uid"]).await;
        answer.json()
    };
    let id = unique();
    let answer = super::deliveries::deliver(&world.doorward, &id, "delivered").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let delivered = listener.run("delivered").await;
    linked(&world.doorward, &delivered["metadata"]["uid"]).await;
    let label = "triggers.tekton.dev/triggers-eventid";
    let event = delivered["metadata"]["labels"][label].as_str().unwrap();

    let bobs = make("bob", &pipeline_run("bobs", &json!({}))).await;
    let mut rerun = delivered.clone();
    let mut annotations = bobs["metadata"]["annotations"].clone();
    assert_eq!(annotations["doorward.dev/requested-by"], "bob");
    annotations["test/user"] = delivered["metadata"]["annotations"]["test/user"].clone();
    let mut labels = delivered["metadata"]["labels"].clone();
    labels["dashboard.tekton.dev/rerunOf"] = delivered["metadata"]["name"].clone();
    rerun["metadata"] = json!({"name": "again", "annotations": annotations, "labels": labels});
    rerun["status"].take();
    let again = make("carol", &rerun).await;
    assert_eq!(again["metadata"]["labels"][label], event, "as it was copied");
    let mut forged = pipeline_run("forged", &json!({}));
    forged["metadata"]["labels"] = json!({label: event});
    make("mallory", &forged).await;
    for (name, whose) in [("again", "carol"), ("forged", "mallory")] {
        let (code, said) = trace(world, name).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("caused by  {whose} (a person of a)")), "{said}");
        assert!(!["bob", "webhook:github", "delivery"].iter().any(|other| said.contains(other)), "{said}");
    }

    // Nor can a run of one delivery be relabelled to another, which would give it that delivery's cause.
    let patch = async |media: &str, body: Value| {
        let line = format!(
            "PATCH {}/{}?fieldManager=tests&force=true HTTP/1.1",
            runs(world),
            delivered["metadata"]["name"].as_str().unwrap()
        );
        let lines = [line.as_str(), "Host: api.test", &world.developer("mallory"), &format!("Content-Type: {media}")];
        world.doorward.send(&lines, body.to_string().as_bytes()).await
    };
    let pointer = "/metadata/labels/triggers.tekton.dev~1triggers-eventid";
    for (media, body) in [
        ("application/merge-patch+json", json!({"metadata": {"labels": {label: "other"}}})),
        ("application/json-patch+json", json!([{"op": "replace", "path": pointer, "value": "other"}])),
        ("application/json-patch+json", json!([{"op": "remove", "path": pointer}])),
    ] {
        let answer = patch(media, body.clone()).await;
        assert_eq!(answer.status, 403, "{body}: {}", answer.text());
        assert!(answer.text().contains("which says where a run came from"), "{body}: {}", answer.text());
    }
    let applied = json!({"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "metadata": {
        "name": delivered["metadata"]["name"], "labels": {label: "other", "team": "a"}}});
    let answer = patch("application/apply-patch+yaml", applied).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let labels = &answer.json()["metadata"]["labels"];
    assert_eq!((labels[label].as_str(), &labels["team"]), (Some(event), &json!("a")), "{labels}");

    // Without Doorward it is not created at all while the policies of `deploy/` are in force.
    let past = Past(administrator(world.api, &world.namespace));
    forged["metadata"]["name"] = json!("past");
    past.0.write("past.json", &forged.to_string());
    let words = "runs are made through Doorward";
    past.is_refused("mallory", "past.json", words).await;
    let said = past.fails("mallory", &["create", "-f", "past.json"]).await;
    assert!(said.contains(words), "{said}");
    let (code, said) = trace(world, "past").await;
    assert!(code == Some(1) && said.contains("no PipelineRun"), "{said}");
    // Nor in the other direction: the delivery created only the one run. Its record is complete only after its
    // response.
    let first = delivered["metadata"]["name"].as_str().unwrap();
    until(async || trace(world, first).await.0 == Some(0)).await;
    for (kind, what) in [("event", event), ("delivery", &id)] {
        let (code, said) = world.doorward.trace(kind, what).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.matches("\nPipelineRun ").count(), 1, "{said}");
        assert!(said.contains(first), "{said}");
    }
}

#[tokio::test]
async fn a_token_is_traced_back_to_the_cause_of_its_run_and_on_to_each_use() {
    let tasks = Tasks::start().await;
    let world = &tasks.world;
    let task = tasks.bobs(&Tasks::release("traced")).await;
    let records = linked(&world.doorward, &task.run["metadata"]["uid"]).await;
    assert_eq!(records[0]["unmapped"]["linked"]["cluster"], "cluster", "{}", records[0]);
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    assert_eq!(tasks.used(&own).await.status, 200);
    tasks.cancel(&task).await;
    tasks.is_dead(&own).await;

    let id = claims(&own)["jti"].as_str().unwrap().to_owned();
    let request = task.run["metadata"]["annotations"]["doorward.dev/request-id"].as_str().unwrap();
    let task_run = task.pod["metadata"]["ownerReferences"][0]["name"].as_str().unwrap();
    let name = |name: &str| format!("{}/{name}", world.namespace);
    for (kind, what) in [
        ("token", id.clone()),
        ("request", request.to_owned()),
        ("pipelinerun", name("traced")),
        ("taskrun", name(task_run)),
    ] {
        let (code, said) = trace_to_the_end(world, kind, &what).await;
        assert_eq!(code, Some(0), "{kind}: {said}");
        for part in [
            "caused by  bob (a person of a)",
            &format!("request    {request} at "),
            &format!("token      {id} for {TARGET} (push) on behalf of bob"),
            &format!("to       TaskRun {}, pod {task_run}-pod, task push of PipelineRun traced", name(task_run)),
            "and rule push",
            &format!("GET localhost{} 200, by rule use", tasks.path("taskruns")),
        ] {
            assert!(said.contains(part), "{kind}: {part}: {said}");
        }
    }
    let (code, said) = world.doorward.trace("token", "unknown").await;
    assert!(code == Some(1) && said.contains("no token unknown is in these files"), "{said}");
}

/// Rules for runs that a Git host triggered, where only the host acts.
const DELIVERED: &str = "rules:
  - id: by-delivery
    on: {token: {audiences: ['https://target.test'], scopes: [push], service_accounts: ['{ns}/builder'], pipelines: [release]}}
    who: {webhooks: [github]}
    do: allow
";

#[tokio::test]
async fn a_delivery_is_followed_to_each_use_of_the_token_of_its_run_and_back() {
    let held = std::net::TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let port = held.local_addr().unwrap().port();
    let change = |yaml: String| {
        let mut yaml = yaml.change("rules:\n", DELIVERED);
        for (place, more) in HOOKS {
            yaml = yaml.change(place, &more.replace("{port}", &port.to_string()));
        }
        yaml + "webhooks: [{name: github, sender: github, hold: false, secrets: [{secret: {file: secret}}]}]\n"
    };
    let tasks = Tasks::with(change, &[("secret", WEBHOOK_SECRET)]).await;
    let listener = EventListener::furnish(tasks.world, held, Asks::Nobody, Tasks::release("")).await;
    let _sink = listener.start().await;
    let id = unique();
    let answer = super::deliveries::deliver(&listener.world.doorward, &id, "released").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    let event = answer.json()["eventID"].as_str().unwrap().to_owned();
    let run = listener.run("released").await;

    let tasks = Tasks { world: listener.world };
    let world = &tasks.world;
    linked(&world.doorward, &run["metadata"]["uid"]).await;
    let task = tasks.task_of(run).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
    let said = claims(&own);
    assert_eq!((&said["sub"], &said["kind"]), (&json!("webhook:github:repo:1234"), &json!("agent")), "{said:#}");
    assert_eq!(tasks.used(&own).await.status, 200);
    tasks.cancel(&task).await;
    tasks.is_dead(&own).await;

    let name = task.run["metadata"]["name"].as_str().unwrap();
    let token_id = said["jti"].as_str().unwrap();
    for (kind, what) in [
        ("delivery", id.clone()),
        ("event", event.clone()),
        ("pipelinerun", format!("{}/{name}", world.namespace)),
        ("token", token_id.to_owned()),
    ] {
        let (code, said) = trace_to_the_end(world, kind, &what).await;
        assert_eq!(code, Some(0), "{kind}: {said}");
        for part in [
            "caused by  webhook:github:repo:1234 (an agent of webhook:github)",
            &format!("delivery   {id} of github, push, repository acme/app, branch main, commit released, by octocat"),
            &format!("event      {event}"),
            &format!("token      {token_id} for {TARGET} (push) on behalf of webhook:github:repo:1234"),
            "and rule by-delivery",
            &format!("GET localhost{} 200, by rule use", tasks.path("taskruns")),
        ] {
            assert!(said.contains(part), "{kind}: {part}: {said}");
        }
    }
    let (code, said) = world.doorward.trace("delivery", "unknown").await;
    assert!(code == Some(1) && said.contains("no delivery unknown is in these files"), "{said}");
}
