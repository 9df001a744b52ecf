//! Tokens that live as long as the job: what a task of a real run gets for its pod's token, and for how long.

use serde_json::{Value, json};

use super::tasks::{DOOR, TARGET, Task, Tasks, claims, exchange, refusal};
use crate::{
    fixture::{Change, bearer},
    harness::{found, part, until},
};

#[tokio::test]
async fn a_task_gets_a_token_for_the_cause_of_its_run_until_the_run_has_ended() {
    let tasks = Tasks::start().await;
    let world = &tasks.world;
    let task = tasks.bobs(&Tasks::release("one")).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;

    let answer = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await;
    let own = answer.token();
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let said = answer.json();
    assert_eq!((&said["token_type"], &said["scope"]), (&json!("Bearer"), &json!("push")));
    assert!((500..=600).contains(&said["expires_in"].as_i64().unwrap()), "{said}");
    let claims = claims(&own);
    let acting = format!("serviceaccount:{}:builder", world.namespace);
    let builder = format!("system:{acting}");
    for (name, expected) in [
        ("iss", json!(DOOR)),
        ("aud", json!(TARGET)),
        ("sub", json!("bob")),
        ("kind", json!("human")),
        ("scope", json!("push")),
        ("client_id", json!(acting)),
        ("origin", json!({"issuer": "a", "sub": "bob"})),
        ("act", json!({"iss": "https://kubernetes.default.svc", "sub": builder})),
    ] {
        assert_eq!(claims[name], expected, "{name}: {claims:#}");
    }
    let run = &claims["doorward.dev/run"];
    assert_eq!(run["pod"]["uid"], task.pod["metadata"]["uid"]);
    assert_eq!(run["pipeline_run"]["uid"], task.run["metadata"]["uid"]);
    assert_eq!((&run["pipeline"], &run["pipeline_task"]), (&json!("release"), &json!("push")));
    assert_eq!(run["pod_token"], part(&pod_token, 1)["jti"], "{claims:#}");
    assert!(run["pod_token"].is_string(), "{claims:#}");

    // Everything that may be granted, if no scope is named.
    let all = tasks.exchange(&pod_token, &[("audience", TARGET)]).await;
    assert_eq!(all.json()["scope"], "alone push", "{}", all.text());
    // It acts as Bob, with the group of the grant, and names the actor.
    let answer = tasks.used(&own).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let event = world
        .event(|event| {
            event["objectRef"]["resource"] == "taskruns"
                && event["verb"] == "list"
                && event["impersonatedUser"]["username"] == "bob"
        })
        .await;
    assert_eq!(event["impersonatedUser"]["extra"]["doorward.dev/actor"], json!([acting]), "{event:#}");

    tasks.cancel(&task).await;
    tasks.is_dead(&own).await;
    let (error, why) = refusal(&tasks.once_over(&pod_token, &[("audience", TARGET), ("scope", "push")]).await);
    assert!(
        error == "invalid_request"
            && ["has ended", "cancelled", "deleted", "does not exist"].iter().any(|part| why.contains(part)),
        "{why}"
    );
    world.doorward.record(|record| record["unmapped"]["tokens_ended"]["name"] != Value::Null).await;
    let records = world.doorward.audit();
    let issued = records.iter().find(|record| record["unmapped"]["issued"]["token"] == claims["jti"]).unwrap();
    assert_eq!(issued["unmapped"]["issued"]["task"]["task_run"], run["task_run"], "{issued:#}");
    let cause = task.run["metadata"]["annotations"]["doorward.dev/request-id"].as_str().unwrap();
    assert_eq!(issued["unmapped"]["issued"]["cause"], cause, "{issued:#}");
    let whole = records.iter().map(Value::to_string).collect::<String>();
    assert!(!whole.contains(&own) && !whole.contains(&pod_token), "no token is ever written down");
}

#[tokio::test]
async fn a_task_without_a_pipeline_gets_what_its_account_may_have() {
    let tasks = Tasks::start().await;
    let task = tasks.bobs(&Tasks::alone()).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "alone")]).await.token();
    assert_eq!(claims(&own)["sub"], "bob");
    let (error, why) = refusal(&tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await);
    assert!(
        error == "invalid_scope" && why.contains("no rule gives it") && why.contains("/builder in pipeline none"),
        "{error}: {why}"
    );
    let (error, why) = refusal(&tasks.exchange(&pod_token, &[("audience", "https://other.test")]).await);
    assert!(error == "invalid_target" && why.contains("https://other.test"), "{error}: {why}");
}

/// What the task `push` asks for.
const ASKED: [(&str, &str); 2] = [("audience", TARGET), ("scope", "push")];

/// A pod of the tasks' account.
fn pod(name: &str, metadata: &Value) -> Value {
    let mut pod = json!({"metadata": metadata, "spec": {"serviceAccountName": "builder",
        "containers": [{"name": "main", "image": "images.test/main"}]}});
    pod["metadata"]["name"] = json!(name);
    pod
}

/// Creates a pod past Doorward, and waits until it runs.
async fn running(tasks: &Tasks, pod: &Value) -> Value {
    let made = tasks.world.api.create(&tasks.path("pods"), pod).await;
    let path = format!("{}/{}", tasks.path("pods"), made["metadata"]["name"].as_str().unwrap());
    found(async || Some(tasks.world.api.read(&path).await).filter(|pod| pod["status"]["phase"] == "Running")).await
}

/// Asserts that no token is given for a token with these words. `may_be_noted`: what is missing could still be recorded,
/// by Tekton in the owner of a new run or by Doorward, so that the caller may be told to come back.
async fn assert_refused(tasks: &Tasks, row: &str, subject_token: &str, words: &str, may_be_noted: bool) {
    let answer = found(async || {
        let answer = exchange(&tasks.world, subject_token, &ASKED).await;
        Some(answer).filter(|answer| answer.status != 503 || answer.text().contains(words))
    })
    .await;
    let refused = (answer.status, answer.json()["error"].clone());
    assert!(refused == (400, json!("invalid_request")) || (may_be_noted && answer.status == 503), "{row}: {refused:?}");
    assert!(answer.text().contains(words), "{row}: {}", answer.text());
}

/// One test, since every part of it can use the same run.
#[tokio::test]
async fn a_pod_that_is_not_what_its_token_claims_gets_no_token() {
    let tasks = Tasks::start().await;
    let task = tasks.bobs(&Tasks::release("real")).await;
    let good = tasks.pod_token(&task.pod, DOOR).await;
    tasks.exchange(&good, &ASKED).await.token();
    tokens_for_others_or_of_no_pod_are_refused(&tasks, &task).await;
    pods_that_pose_as_those_of_a_task_are_refused(&tasks, &task).await;
    forged_runs_are_refused(&tasks, &task).await;
    tasks.exchange(&good, &ASKED).await.token();
    a_pod_where_no_task_gets_tokens_is_refused(&tasks).await;
    the_token_of_a_deleted_pod_is_refused(&tasks, &task, &good).await;
}

async fn tokens_for_others_or_of_no_pod_are_refused(tasks: &Tasks, task: &Task) {
    let metadata = &task.pod["metadata"];
    let secret = json!({"metadata": {"name": "bound"}, "type": "Opaque"});
    let secret =
        tasks.world.api.create(&format!("/api/v1/namespaces/{}/secrets", tasks.world.namespace), &secret).await;
    let bound = json!({"kind": "Secret", "apiVersion": "v1", "name": "bound", "uid": secret["metadata"]["uid"]});
    let bound_to_pod = json!({"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]});
    for (row, subject_token, words) in [
        (
            "kubernetes:6.4 wrong audience",
            tasks.pod_token(&task.pod, "https://other.test").await,
            "`https://doorward.test` is expected",
        ),
        (
            "kubernetes:6.4 the API server's audience",
            tasks.token("builder", &json!({"expirationSeconds": 3600})).await,
            "`https://doorward.test` is expected",
        ),
        (
            "an audience beside ours, which would have the token too",
            tasks.token("builder", &json!({"audiences": [DOOR, "vault"], "boundObjectRef": bound_to_pod})).await,
            "it is for others too",
        ),
        (
            "kubernetes:6.4 bound to a secret",
            tasks.token("builder", &json!({"audiences": [DOOR], "boundObjectRef": bound})).await,
            "bound to a Secret",
        ),
        ("bound to nothing", tasks.token("builder", &json!({"audiences": [DOOR]})).await, "bound to no pod"),
        ("no token at all", "e30.e30.e30".to_owned(), "subject_token"),
    ] {
        assert_refused(tasks, row, &subject_token, words, false).await;
    }
}

async fn pods_that_pose_as_those_of_a_task_are_refused(tasks: &Tasks, task: &Task) {
    let metadata = &task.pod["metadata"];
    let mut owners = metadata["ownerReferences"].clone();
    owners[0]["blockOwnerDeletion"] = json!(false);
    let owned_with =
        |labels: &Value| json!({"ownerReferences": owners, "labels": labels, "annotations": {"hold": "yes"}});
    for (row, name, metadata, words) in [
        ("kubernetes:6.4 pod without a TaskRun", "plain", json!({}), "does not belong to a TaskRun"),
        (
            "kubernetes:6.4 forged label",
            "labelled",
            json!({"labels": metadata["labels"], "annotations": metadata["annotations"]}),
            "does not belong to a TaskRun",
        ),
        ("kubernetes:6.4 forged owner reference", "owned", owned_with(&metadata["labels"]), "not in owned"),
        ("a pod whose end nobody watches", "unlabelled", owned_with(&json!({})), "has no label `tekton.dev/taskRun`"),
    ] {
        let pod = running(tasks, &pod(name, &metadata)).await;
        assert_refused(tasks, row, &tasks.pod_token(&pod, DOOR).await, words, false).await;
    }
}

/// Created without Doorward, by somebody who may.
async fn forged_runs_are_refused(tasks: &Tasks, task: &Task) {
    let mut bobs = Tasks::release("forged");
    bobs["metadata"]["annotations"] = task.run["metadata"]["annotations"].clone();
    let mut child = Tasks::release("child");
    child["metadata"]["ownerReferences"] = json!([{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": "real",
        "uid": task.run["metadata"]["uid"], "controller": true}]);
    for (row, run, words) in [
        ("kubernetes:6.4 forged annotation", bobs, "the cause of run forged is not known"),
        ("a forged owner of a run", child, "is not listed by its PipelineRun"),
    ] {
        let forged = tasks.task_of(tasks.world.api.create(&tasks.path("pipelineruns"), &run).await).await;
        assert_refused(tasks, row, &tasks.pod_token(&forged.pod, DOOR).await, words, true).await;
    }
}

/// In a namespace where its end would not be seen.
async fn a_pod_where_no_task_gets_tokens_is_refused(tasks: &Tasks) {
    let api = tasks.world.api;
    let elsewhere = api.namespace().await;
    let mut made = pod("elsewhere", &json!({}));
    made["spec"]["serviceAccountName"] = json!("default");
    let made = api.create(&format!("/api/v1/namespaces/{elsewhere}/pods"), &made).await;
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "elsewhere", "uid": made["metadata"]["uid"]});
    let path = format!("/api/v1/namespaces/{elsewhere}/serviceaccounts/default/token");
    let spec = json!({"spec": {"audiences": [DOOR], "boundObjectRef": bound}});
    let foreign = api.create(&path, &spec).await["status"]["token"].as_str().unwrap().to_owned();
    let (_, why) = refusal(&tasks.exchange(&foreign, &ASKED).await);
    assert!(why.contains(&format!("no task in namespace {elsewhere} gets tokens")), "{why}");
}

/// Also while a new pod has its name and its labels.
async fn the_token_of_a_deleted_pod_is_refused(tasks: &Tasks, task: &Task, token: &str) {
    let name = task.pod["metadata"]["name"].as_str().unwrap();
    let path = format!("{}/{name}", tasks.path("pods"));
    let answer = tasks.world.api.ask("DELETE", &format!("{path}?gracePeriodSeconds=0"), None).await;
    assert_eq!(answer.status, 200);
    let (_, why) = refusal(&tasks.once_over(token, &ASKED).await);
    assert!(
        ["does not exist", "deleted", "not active", "revoked", "has ended", "under the same name"]
            .iter()
            .any(|part| why.contains(part)),
        "{why}"
    );
}

/// A TaskRun with foreign code that claims to be the task `push` of another run.
pub fn posing(name: &str, of: &Value) -> Value {
    let of = &of["metadata"];
    json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "TaskRun",
        "metadata": {
            "name": name,
            "annotations": {"hold": "yes"},
            "labels": {"tekton.dev/pipelineRun": of["name"], "tekton.dev/pipelineRunUID": of["uid"],
                "tekton.dev/pipelineTask": "push", "tekton.dev/memberOf": "tasks"},
            "ownerReferences": [{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "name": of["name"], "uid": of["uid"],
                "controller": true}],
        },
        "spec": {
            "serviceAccountName": "builder",
            "taskSpec": {"steps": [{"name": "run", "image": "images.test/step", "command": ["true"]}]},
        },
    })
}

#[tokio::test]
async fn a_task_run_that_tekton_adopts_has_no_tokens_of_the_run_that_it_poses_to_be_of() {
    let tasks = Tasks::start().await;
    // Tekton adopts an existing TaskRun when it comes to the task.
    let mut pending = Tasks::release("real");
    pending["spec"]["status"] = json!("PipelineRunPending");
    let real = tasks.made_by("bob", &pending, &[]).await;
    assert_eq!(real.status, 201, "{}", real.text());
    let mut posing = posing("posing", &real.json());
    let refused = tasks.made_by("carol", &posing, &[]).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("a run cannot say that a run of Tekton owns it"), "{}", refused.text());

    // Created through Doorward without an owner, and adopted later without Doorward, which is possible without the
    // admission policies.
    let metadata = posing["metadata"].as_object_mut().unwrap();
    let owned = json!({"metadata": {"labels": metadata.remove("labels"), "ownerReferences": metadata.remove("ownerReferences")}});
    let made = tasks.made_by("carol", &posing, &[]).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let path = format!("{}/posing", tasks.path("taskruns"));
    let patched = tasks
        .world
        .doorward
        .send(
            &[
                &format!("PATCH {path} HTTP/1.1"),
                "Host: localhost",
                &tasks.world.developer("carol"),
                "Content-Type: application/merge-patch+json",
            ],
            owned.to_string().as_bytes(),
        )
        .await;
    assert_eq!(patched.status, 403, "{}", patched.text());
    let posing = tasks.task_of(made.json()).await;
    let answer = tasks.world.api.ask("PATCH", &path, Some(&owned)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let run = format!("{}/real", tasks.path("pipelineruns"));
    let start = json!({"spec": {"status": null}});
    assert_eq!(tasks.world.api.ask("PATCH", &run, Some(&start)).await.status, 200);
    until(async || {
        let run = tasks.world.api.read(&run).await;
        let children = run["status"]["childReferences"].as_array();
        children.is_some_and(|children| children.iter().any(|child| child["name"] == "posing"))
    })
    .await;
    let pod_token = tasks.pod_token(&posing.pod, DOOR).await;
    for scope in ["push", "alone"] {
        let (error, why) = refusal(&tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", scope)]).await);
        assert!(
            error == "invalid_request" && why.contains("posing was not made by PipelineRun real"),
            "{error}: {why}"
        );
    }
}

/// Tekton finds the run of a task by its name alone, and the later tasks acted on what that of somebody else did.
#[tokio::test]
async fn a_task_gets_no_token_where_tekton_took_the_run_of_somebody_else_for_an_earlier_task() {
    let tasks = Tasks::start().await;
    let step = json!([{"name": "run", "image": "images.test/step", "command": ["true"]}]);
    let run = |name: &str, after: &Value| {
        let mut run = Tasks::release(name);
        run["spec"] = json!({
            "pipelineSpec": {"tasks": [
                {"name": "gate", "taskSpec": {"steps": step}},
                {"name": "push", "runAfter": after, "taskSpec": {"steps": step}},
            ]},
            "taskRunTemplate": {"serviceAccountName": "builder"},
        });
        run
    };
    let asked = [("audience", TARGET), ("scope", "alone")];
    // Both run at once, and each is a run of Tekton's.
    let own = tasks.bobs(&run("own", &json!([]))).await;
    tasks.exchange(&tasks.pod_token(&own.pod, DOOR).await, &asked).await.token();

    let mut gate = Tasks::alone();
    // It ends at once, as nothing holds its pod.
    gate["metadata"] = json!({"name": "taken-gate"});
    let made = tasks.made_by("carol", &gate, &[]).await;
    assert_eq!(made.status, 201, "{}", made.text());
    // Its end would not be reported to a PipelineRun that does not own it.
    let gate = format!("{}/taken-gate", tasks.path("taskruns"));
    until(async || !tasks.world.api.read(&gate).await["status"]["completionTime"].is_null()).await;
    let taken = tasks.bobs(&run("taken", &json!(["gate"]))).await;
    assert_eq!(taken.pod["metadata"]["labels"]["tekton.dev/pipelineTask"], "push", "{:#}", taken.pod);
    let (error, why) = refusal(&tasks.exchange(&tasks.pod_token(&taken.pod, DOOR).await, &asked).await);
    assert!(
        error == "invalid_request"
            && why.contains("TaskRun taken-gate, which PipelineRun taken lists, was not made by it"),
        "{error}: {why}"
    );
}

#[tokio::test]
async fn the_cause_of_a_run_is_recorded_for_every_response_format() {
    let tasks = Tasks::start().await;
    for (name, accept) in [
        ("yaml", "Accept: application/yaml"),
        ("table", "Accept: application/json;as=Table;g=meta.k8s.io;v=v1"),
        ("protobuf", "Accept: application/vnd.kubernetes.protobuf"),
    ] {
        let mut run = Tasks::release(name);
        // With the event of another run, which she has seen.
        run["metadata"]["labels"] = json!({"triggers.tekton.dev/triggers-eventid": "copied"});
        let made = tasks.made_by("carol", &run, &[accept, "Accept-Encoding: gzip"]).await;
        assert_eq!(
            (made.status, made.header("content-type")),
            (201, Some("application/json")),
            "{accept}: {}",
            made.text()
        );
        let task = tasks.task_of(made.json()).await;
        let pod_token = tasks.pod_token(&task.pod, DOOR).await;
        let own = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await.token();
        assert_eq!(claims(&own)["sub"], "carol", "{accept}");
    }
}

/// Otherwise the holder of a pod's token could act for people who allow it, or have others act for it, without the
/// checks for tasks.
#[tokio::test]
async fn a_pods_token_is_no_actor_token_and_none_goes_with_it() {
    let tasks = Tasks::with(
        |yaml| yaml.change("namespaces: ['{ns}']}]}\nruns", "namespaces: ['{ns}']}, {issuer: a}]}\nruns"),
        &[],
    )
    .await;
    let pod_token = tasks.pod_token(&tasks.bobs(&Tasks::release("acting")).await.pod, DOOR).await;
    let person = tasks.world.issuer.token("bob", &["dev"]);
    for (what, subject, actor) in [("subject", &pod_token, &person), ("actor", &person, &pod_token)] {
        let asked = [
            ("actor_token", actor.as_str()),
            ("actor_token_type", "urn:ietf:params:oauth:token-type:jwt"),
            ("audience", TARGET),
            ("scope", "push"),
        ];
        let (error, why) = refusal(&tasks.exchange(subject, &asked).await);
        assert!(error == "invalid_request" && why.contains("leave `actor_token` out"), "{what}: {error}: {why}");
    }
}

/// Each run that a task starts adds that task to the chain of actors, like an agent.
#[tokio::test]
async fn a_task_whose_run_has_four_actors_already_gets_no_token() {
    let tasks = Tasks::start().await;
    for actors in [3, 4] {
        let mut of_bob = tasks.world.issuer.claims("bob", &["dev"]);
        of_bob["act"] = (1..actors).fold(json!({"sub": "first"}), |act, _| json!({"sub": "next", "act": act}));
        let bob = bearer(&tasks.world.issuer.sign(&of_bob));
        let line = format!("POST {} HTTP/1.1", tasks.path("pipelineruns"));
        let lines = [&*line, "Host: localhost", &bob, "Content-Type: application/json"];
        let run = Tasks::release(&format!("behind-{actors}"));
        let made = tasks.world.doorward.send(&lines, run.to_string().as_bytes()).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let pod_token = tasks.pod_token(&tasks.task_of(made.json()).await.pod, DOOR).await;
        let answer = tasks.exchange(&pod_token, &[("audience", TARGET), ("scope", "push")]).await;
        match actors {
            3 => assert_eq!(claims(&answer.token())["act"]["act"]["act"]["act"]["sub"], "first"),
            _ => assert!(refusal(&answer).1.contains("the run: more than 4 would have acted"), "{}", answer.text()),
        }
    }
}
