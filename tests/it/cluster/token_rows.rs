//! Pods that have changed since their token was issued. The API server itself still accepts most of these tokens, as a
//! pod that has ended, or is about to, still exists.

use serde_json::{Value, json};

use super::tasks::{DOOR, OVER, TARGET, Task, Tasks, claims};
use crate::harness::{found, now, until};

const ASKED: [(&str, &str); 2] = [("audience", TARGET), ("scope", "push")];

impl Tasks {
    /// Whether the API server accepts a token of a pod.
    async fn is_active(&self, pod_token: &str) -> bool {
        let review = json!({"spec": {"token": pod_token, "audiences": [DOOR]}});
        self.world.api.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await["status"]["authenticated"]
            == true
    }

    fn of(&self, pod: &Value) -> String {
        format!("{}/{}", self.path("pods"), pod["metadata"]["name"].as_str().unwrap())
    }

    async fn patch(&self, path: &str, patch: &Value) {
        let answer = self.world.api.ask("PATCH", path, Some(patch)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }

    async fn is_refused(&self, row: &str, pod_token: &str, why: &[&str]) {
        let answer = self.once_over(pod_token, &ASKED).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")), "{row}");
        assert!(why.iter().any(|why| answer.text().contains(why)), "{row}: {}", answer.text());
    }
}

async fn running(tasks: &Tasks, name: &str) -> (Task, String) {
    let task = tasks.bobs(&Tasks::release(name)).await;
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    tasks.exchange(&pod_token, &ASKED).await.token();
    (task, pod_token)
}

#[tokio::test]
async fn a_pod_that_has_ended_or_is_about_to_gets_none_though_the_cluster_takes_its_token() {
    let tasks = Tasks::start().await;
    let (task, pod_token) = running(&tasks, "done").await;
    tasks.patch(&tasks.of(&task.pod), &json!({"metadata": {"annotations": {"hold": null}}})).await;
    until(async || tasks.world.api.read(&tasks.of(&task.pod)).await["status"]["phase"] == "Succeeded").await;
    assert!(tasks.is_active(&pod_token).await);
    tasks.is_refused("kubernetes:6.4 pod succeeded", &pod_token, &OVER).await;
    // Once everything is recorded, the state of the pod itself is the first reason.
    tasks.is_refused("kubernetes:6.4 pod succeeded", &pod_token, &["done-push-pod: it has ended"]).await;

    // Its kubelet uses the whole grace period.
    let (task, pod_token) = running(&tasks, "leaving").await;
    tasks.patch(&tasks.of(&task.pod), &json!({"metadata": {"annotations": {"linger": "yes"}}})).await;
    let path = format!("{}?gracePeriodSeconds=30", tasks.of(&task.pod));
    assert_eq!(tasks.world.api.ask("DELETE", &path, None).await.status, 200);
    assert!(tasks.is_active(&pod_token).await);
    tasks.is_refused("kubernetes:6.4 pod terminating in its grace", &pod_token, &OVER).await;
    let why = ["leaving-push-pod: it is being deleted"];
    tasks.is_refused("kubernetes:6.4 pod terminating in its grace", &pod_token, &why).await;
    tasks.patch(&tasks.of(&task.pod), &json!({"metadata": {"annotations": {"linger": null}}})).await;

    let (_task, pod_token) = running(&tasks, "old").await;
    let expired = tasks.world.api.resign(&pod_token, |claims| {
        for (name, ago) in [("exp", 60), ("iat", 3660), ("nbf", 3660)] {
            claims[name] = json!(now() - ago);
        }
    });
    tasks.is_refused("kubernetes:6.4 expired", &expired, &["the token expired 1 m"]).await;
}

#[tokio::test]
async fn a_pods_token_of_two_hours_or_of_another_node_gives_none() {
    let tasks = Tasks::start().await;
    let (task, pod_token) = running(&tasks, "long").await;
    let metadata = &task.pod["metadata"];
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]});
    let spec = json!({"audiences": [DOOR], "expirationSeconds": 7200, "boundObjectRef": bound});
    let long = tasks.token("builder", &spec).await;
    let of_pod = claims(&long);
    assert!(of_pod["exp"].as_i64().unwrap() - of_pod["iat"].as_i64().unwrap() >= 7200, "{of_pod:#}");
    assert!(tasks.is_active(&long).await);
    let why = ["the token lives 2 h 0 min; at most 1 h 0 min is accepted"];
    tasks.is_refused("kubernetes:6.4 a token of more than an hour", &long, &why).await;

    let of_pod = claims(&pod_token);
    assert!(of_pod["kubernetes.io"]["node"]["name"].is_string(), "{of_pod:#}");
    let elsewhere =
        tasks.world.api.resign(&pod_token, |claims| claims["kubernetes.io"]["node"]["name"] = json!("elsewhere"));
    // The API server itself accepts it: it checks only the pod.
    assert!(tasks.is_active(&elsewhere).await);
    let why = ["runs on another node than the token was made for"];
    tasks.is_refused("kubernetes:6.4 another node", &elsewhere, &why).await;
}

#[tokio::test]
async fn a_service_account_that_is_deleted_has_no_more_exchanges_once_its_review_is_old() {
    let tasks = Tasks::start().await;
    let (_task, pod_token) = running(&tasks, "orphan").await;
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/builder", tasks.world.namespace);
    assert_eq!(tasks.world.api.ask("DELETE", &path, None).await.status, 200);
    let deleted = std::time::Instant::now();
    // The API server's answer about a token is cached for ten seconds.
    let answer =
        found(async || Some(tasks.exchange(&pod_token, &ASKED).await).filter(|answer| answer.status != 200)).await;
    assert!(answer.text().contains("is not active"), "kubernetes:6.4 account deleted: {}", answer.text());
    let after = deleted.elapsed();
    assert!(after < std::time::Duration::from_secs(12), "kubernetes:6.4 account deleted: {after:?}");
}

#[tokio::test]
async fn only_the_pod_that_a_task_runs_in_now_gets_a_token() {
    let tasks = Tasks::start().await;
    let run = json!({
        "apiVersion": "tekton.dev/v1",
        "kind": "TaskRun",
        "metadata": {"name": "again", "annotations": {"hold": "yes"}},
        "spec": {
            "serviceAccountName": "builder",
            "retries": 1,
            "taskSpec": {"steps": [{"name": "run", "image": "images.test/step", "command": ["true"]}]},
        },
    });
    let task = tasks.bobs(&run).await;
    let asked = [("audience", TARGET), ("scope", "alone")];
    let pod_token = tasks.pod_token(&task.pod, DOOR).await;
    let own = tasks.exchange(&pod_token, &asked).await.token();
    // Its step fails, and Tekton creates the next pod.
    let now = "2026-01-01T00:00:00Z";
    let status = |phase: &str, state: Value| {
        let containers = task.pod["spec"]["containers"].as_array().unwrap().iter();
        let containers: Vec<Value> = containers
            .map(|container| {
                json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": false,
                    "restartCount": 0, "state": state})
            })
            .collect();
        json!({"status": {"phase": phase, "containerStatuses": containers}})
    };
    let failed = json!({"terminated": {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}});
    let path = format!("{}/status", tasks.of(&task.pod));
    tasks.patch(&path, &status("Failed", failed)).await;
    let next = found(async || {
        let pods = tasks.world.api.read(&tasks.path("pods")).await;
        let mut pods = pods["items"].as_array().unwrap().iter();
        let before = &task.pod["metadata"]["name"];
        pods.find(|pod| pod["metadata"]["name"] != *before && pod["status"]["phase"] == "Running").cloned()
    })
    .await;
    assert_eq!(next["metadata"]["ownerReferences"], task.pod["metadata"]["ownerReferences"], "of the same TaskRun");
    // A user with the right to do so reports that the previous pod is still running.
    tasks.patch(&path, &json!({"status": {"phase": "Running"}})).await;
    assert!(tasks.is_active(&pod_token).await);
    let names = [&next, &task.pod].map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
    let why = format!("runs in pod {}, not in {}", names[0], names[1]);
    tasks.is_refused("kubernetes:6.4 task retried", &pod_token, &[&why, "revoked"]).await;
    // The token of the first attempt has ended too, and the next has its own.
    let revoked = tasks.world.doorward.audit();
    let of = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap().to_owned();
    assert!(!revoked.iter().any(|record| record["unmapped"]["tokens_ended"]["uid"] == of(&next)));
    let next = tasks.exchange(&tasks.pod_token(&next, DOOR).await, &asked).await.token();
    assert_ne!(claims(&next)["doorward.dev/run"]["pod"], claims(&own)["doorward.dev/run"]["pod"]);
    assert_eq!(claims(&next)["doorward.dev/run"]["task_run"], claims(&own)["doorward.dev/run"]["task_run"]);
}

#[tokio::test]
async fn a_pod_recreated_under_the_same_name_is_a_different_one() {
    let tasks = Tasks::start().await;
    let (task, pod_token) = running(&tasks, "anew").await;
    let metadata = &task.pod["metadata"];
    let path = format!("{}?gracePeriodSeconds=0", tasks.of(&task.pod));
    assert_eq!(tasks.world.api.ask("DELETE", &path, None).await.status, 200);
    // By anybody who may create pods, or by Tekton itself: whoever is first.
    let mut owners = metadata["ownerReferences"].clone();
    owners[0]["blockOwnerDeletion"] = json!(false);
    let annotations = json!({"hold": "yes"});
    let anew = json!({
        "metadata": {"name": metadata["name"], "labels": metadata["labels"], "annotations": annotations,
            "ownerReferences": owners},
        "spec": {"serviceAccountName": "builder", "containers": [{"name": "main", "image": "images.test/main"}]},
    });
    let made = found(async || {
        tasks.world.api.ask("POST", &tasks.path("pods"), Some(&anew)).await;
        let pod = tasks.world.api.ask("GET", &tasks.of(&task.pod), None).await;
        (pod.status == 200).then(|| pod.json()).filter(|pod| pod["metadata"]["uid"] != metadata["uid"])
    })
    .await;
    assert_eq!(made["metadata"]["name"], metadata["name"]);
    let why = ["is not active", "under the same name", "revoked", "does not exist any more"];
    tasks.is_refused("kubernetes:6.4 pod uid under a name used again", &pod_token, &why).await;
    // The API server rejects both; checks of the pod itself are tested beside the code. This token claims to be for the
    // old pod, and has a valid signature.
    let forged = tasks.pod_token(&made, DOOR).await;
    let forged =
        tasks.world.api.resign(&forged, |claims| claims["kubernetes.io"]["pod"]["uid"] = metadata["uid"].clone());
    tasks.is_refused("kubernetes:6.4 pod uid under a name used again", &forged, &why).await;
}

/// Tokens are reviewed by the API server, whose audit log counts the reviews.
#[tokio::test]
async fn cluster_c5_the_api_server_is_not_asked_anew_for_each_request_with_a_token() {
    const REQUESTS: usize = 100;
    let tasks = Tasks::start().await;
    let (_task, pod_token) = running(&tasks, "counted").await;
    // Signed by the cluster, for a pod that does not exist.
    let dead = tasks.world.api.resign(&pod_token, |claims| {
        claims["kubernetes.io"]["pod"]["uid"] = json!(uuid::Uuid::from_u128(7));
    });
    let account = format!("system:serviceaccount:{}:doorward", tasks.world.namespace);
    let reviews = || {
        let events = tasks.world.api.audit(&account);
        events.iter().filter(|event| event["objectRef"]["resource"] == "tokenreviews").count()
    };
    for (what, pod_token, status) in [("good", &pod_token, 200), ("dead", &dead, 400)] {
        let (before, began) = (reviews(), std::time::Instant::now());
        for _ in 0..REQUESTS {
            let answer = tasks.exchange(pod_token, &ASKED).await;
            assert_eq!(answer.status, status, "{what}: {}", answer.text());
        }
        // Its answer is cached for ten seconds.
        let at_most = 1 + usize::try_from(began.elapsed().as_secs()).unwrap() / 10;
        let asked = reviews() - before;
        // The valid one was already reviewed.
        let at_least = usize::from(what == "dead");
        assert!((at_least..=at_most).contains(&asked), "cluster:C5 {what}: {asked} reviews of {REQUESTS} requests");
    }
}
