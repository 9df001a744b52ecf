//! An API server with as many tasks as a run needs, each the only task of its own run, and nothing else.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

use crate::{Failure, tokens::CLUSTER_AUDIENCE};

/// The number of tasks.
pub const TASKS: usize = 1500;

/// Serves until it is killed.
pub fn run(listen: &str) -> Result<(), Failure> {
    let listen: SocketAddr = listen.parse()?;
    let router = Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
        .route("/api/v1/namespaces/ci/pods", get(|query| list("Pod", pod, query)))
        .route("/api/v1/namespaces/ci/pods/{name}", get(|name| one(pod, name)))
        .route("/apis/tekton.dev/v1/namespaces/ci/taskruns", get(|query| list("TaskRun", task_run, query)))
        .route("/apis/tekton.dev/v1/namespaces/ci/taskruns/{name}", get(|name| one(task_run, name)))
        .route(
            "/apis/tekton.dev/v1/namespaces/ci/pipelineruns",
            get(|query| list("PipelineRun", pipeline_run, query)).post(start),
        )
        .route("/apis/tekton.dev/v1/namespaces/ci/pipelineruns/{name}", get(|name| one(pipeline_run, name)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        axum::serve(listener, router).await?;
        Ok(())
    })
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Watch {
    #[serde(default)]
    watch: bool,
    resource_version: Option<u64>,
    timeout_seconds: Option<u64>,
}

async fn list(kind: &str, make: fn(&str) -> Value, Query(query): Query<Watch>) -> Response {
    if query.watch {
        // As in a busy cluster, there are events all the time until the requested timeout. They show Doorward that its
        // watch is current; otherwise it would look up each task itself.
        let since = query.resource_version.unwrap_or(1);
        let end = query.timeout_seconds.map(|seconds| since + seconds);
        let events = futures_util::stream::unfold(since + 1, move |version| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if end.is_some_and(|end| version >= end) {
                return None;
            }
            let mut object = make("0");
            object["metadata"]["resourceVersion"] = version.to_string().into();
            let line = format!("{}\n", json!({"type": "MODIFIED", "object": object}));
            Some((Ok::<_, std::io::Error>(Bytes::from(line)), version + 1))
        });
        return ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(events)).into_response();
    }
    let items: Vec<Value> = (0..TASKS).map(|number| make(&number.to_string())).collect();
    let list = json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    Json(list).into_response()
}

async fn one(make: fn(&str) -> Value, Path(name): Path<String>) -> Json<Value> {
    Json(make(name.rsplit('-').next().unwrap_or_default()))
}

/// Creates the run of a task.
async fn start(Json(run): Json<Value>) -> (StatusCode, Json<Value>) {
    let name = run["metadata"]["name"].as_str().unwrap_or_default();
    (StatusCode::CREATED, Json(pipeline_run(name.rsplit('-').next().unwrap_or_default())))
}

/// Trusts the token's claims: Doorward has checked its signature before it asks.
async fn review(Json(review): Json<Value>) -> Json<Value> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    let claims = token.split('.').nth(1).and_then(|claims| BASE64URL.decode(claims).ok()).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
    let own = &claims["kubernetes.io"];
    let extra = |name: &str| format!("authentication.kubernetes.io/{name}");
    Json(json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": {
        "authenticated": true,
        "audiences": [CLUSTER_AUDIENCE],
        "user": {
            "username": claims["sub"],
            "uid": own["serviceaccount"]["uid"],
            "groups": ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"],
            "extra": {
                extra("pod-name"): [own["pod"]["name"]],
                extra("pod-uid"): [own["pod"]["uid"]],
                extra("node-name"): [own["node"]["name"]],
                extra("credential-id"): [format!("JTI={}", claims["jti"].as_str().unwrap_or_default())],
            },
        },
    }}))
}

/// Brings objects to about their usual size.
fn padding() -> Value {
    json!([{"manager": "controller", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": "x".repeat(3000)}}}])
}

fn owned(kind: &str, number: &str, name: &str, of: &str, owner: &str) -> Value {
    json!({
        "name": name, "namespace": "ci", "uid": format!("{kind}-{number}"), "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"tekton.dev/taskRun": format!("run-push-{number}")},
        "managedFields": padding(),
        "ownerReferences": [{"apiVersion": "tekton.dev/v1", "kind": of, "name": owner, "uid": format!("{of}-{number}"), "controller": true}],
    })
}

fn pod(number: &str) -> Value {
    let metadata = owned("Pod", number, &format!("pod-{number}"), "TaskRun", &format!("run-push-{number}"));
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata,
        "spec": {"serviceAccountName": "builder", "nodeName": "node", "containers": [{"name": "step-push", "image": "x".repeat(2000)}]},
        "status": {"phase": "Running"}})
}

fn task_run(number: &str) -> Value {
    let metadata = owned("TaskRun", number, &format!("run-push-{number}"), "PipelineRun", &format!("run-{number}"));
    json!({"kind": "TaskRun", "apiVersion": "tekton.dev/v1", "metadata": metadata,
        "spec": {"serviceAccountName": "builder", "timeout": "1h0m0s", "taskRef": {"name": "push", "kind": "Task"}},
        "status": {"podName": format!("pod-{number}"), "taskSpec": {"steps": [{"name": "push", "script": "x".repeat(2000)}]},
            "conditions": [{"type": "Succeeded", "status": "Unknown", "reason": "Running"}]}})
}

fn pipeline_run(number: &str) -> Value {
    json!({"kind": "PipelineRun", "apiVersion": "tekton.dev/v1",
        "metadata": {"name": format!("run-{number}"), "namespace": "ci", "uid": format!("PipelineRun-{number}"),
            "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": padding()},
        "spec": {"pipelineRef": {"name": "release"}, "timeouts": {"pipeline": "1h0m0s"}},
        "status": {"pipelineSpec": {"tasks": [{"name": "push", "taskRef": {"name": "x".repeat(2000)}}]},
            "childReferences": [{"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "name": format!("run-push-{number}"), "pipelineTaskName": "push"}],
            "conditions": [{"type": "Succeeded", "status": "Unknown", "reason": "Running"}]}})
}
