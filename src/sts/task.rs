//! From the token of a pod to the task that runs in it. Each step is held against what only the cluster's own controllers write,
//! since whoever may make pods or runs can put any label, annotation or owner reference into them:
//!
//! ```text
//! token -> Pod           by name and uid; its account, its node, its phase
//! Pod -> TaskRun         its owner reference, and back: status.podName
//! TaskRun -> PipelineRun its owner reference, and back: status.childReferences
//! ```

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, StatusCode, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::{
    authz::TaskView,
    body::{RequestBody, collect},
    clock::Timestamp,
    error::{Reason, Rejection},
    issuers::REVIEW_CLAIM,
    runs::EVENT_ID,
    tekton::{dashboard::is_subdomain, run::describe},
    upstream::{Lane, Pools, Upstream},
};

/// The largest object of a run: etcd takes none beyond.
const MAX_OBJECT: usize = 3 << 20;

/// Runs within runs that are followed.
const MAX_DEPTH: usize = 4;

/// How long the controller may take to write down what it made.
const SETTLING: Duration = Duration::from_secs(30);

/// An object of the cluster. No other ever has its uid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub uid: String,
}

/// A task that runs, and what it is a part of.
#[derive(Clone, Debug)]
pub struct Task {
    pub view: TaskView,
    pub pod: Named,
    pub task_run: Named,
    pub pipeline_run: Option<Named>,
    /// The outermost run, which somebody caused.
    pub root: Root,
    /// When its time is out, if it has one.
    pub times_out: Option<Timestamp>,
}

/// A run that no other made.
#[derive(Clone, Debug)]
pub struct Root {
    pub uid: String,
    /// The event that it says it came of.
    pub event: Option<String>,
    pub created: Option<Timestamp>,
}

/// What a token says of its pod (KEP-1205, KEP-4193).
#[derive(Debug, PartialEq, Eq)]
pub struct PodToken {
    namespace: String,
    service_account: String,
    pod: (String, String),
    node: Option<String>,
}

/// Reads objects with Doorward's own credential at the API server.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    pub pools: &'a Pools,
    pub server: &'a Arc<Upstream>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object<S, T> {
    metadata: Metadata,
    spec: S,
    status: T,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: String,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    owner_references: Vec<Owner>,
    labels: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Owner {
    api_version: String,
    kind: String,
    name: String,
    uid: String,
    controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    service_account_name: String,
    node_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RunSpec {
    status: Option<String>,
    timeout: Option<String>,
    timeouts: Timeouts,
    task_ref: Value,
    pipeline_ref: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Timeouts {
    pipeline: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RunStatus {
    start_time: Option<String>,
    completion_time: Option<String>,
    pod_name: String,
    child_references: Vec<Child>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Child {
    kind: String,
    name: String,
    pipeline_task_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

type Pod = Object<PodSpec, PodStatus>;
type Run = Object<RunSpec, RunStatus>;

impl PodToken {
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// From verified claims, with what the API server says of the same token. The error says what does not fit.
    pub fn read(claims: &Map<String, Value>) -> Result<Self, Refusal> {
        let misfit = |why: &str| Refusal::subject(format!("subject_token: {why}"));
        let own = claims.get("kubernetes.io").and_then(Value::as_object);
        let own = own.ok_or_else(|| misfit("it has no claim `kubernetes.io`, so it is no service-account token"))?;
        let text = |path: [&str; 2]| own.get(path[0])?.get(path[1])?.as_str();
        if own.contains_key("secret") {
            return Err(misfit("it is bound to a Secret; project one into the pod (serviceAccountToken)"));
        }
        let pod = text(["pod", "name"]).zip(text(["pod", "uid"]));
        let (name, uid) =
            pod.ok_or_else(|| misfit("it is bound to no pod; project one into the pod (serviceAccountToken)"))?;
        let namespace = own.get("namespace").and_then(Value::as_str).unwrap_or_default();
        let account = text(["serviceaccount", "name"]).unwrap_or_default();
        let node = text(["node", "name"]);
        if ![namespace, account, name].into_iter().all(is_subdomain) {
            return Err(misfit("its pod, account or namespace has a name that Kubernetes does not give"));
        }
        if claims.get("sub").and_then(Value::as_str) != Some(&format!("system:serviceaccount:{namespace}:{account}")) {
            return Err(misfit("its subject is another account than the one that it names"));
        }
        let review =
            claims.get(REVIEW_CLAIM).ok_or_else(|| misfit("the cluster was not asked about it (`token_review`)"))?;
        let jti = claims.get("jti").and_then(Value::as_str).map(|jti| format!("JTI={jti}"));
        let said = |name: &str| {
            let values = review.get("extra")?.get(format!("authentication.kubernetes.io/{name}"))?.as_array()?;
            values.first()?.as_str()
        };
        // What an older server does not say is not compared, but for the pod.
        let agrees = |name: &str, ours: Option<&str>| match (said(name), ours) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        let account_uid = text(["serviceaccount", "uid"]);
        let is_same = said("pod-name") == Some(name)
            && said("pod-uid") == Some(uid)
            && account_uid.is_some_and(|uid| review.get("uid").and_then(Value::as_str) == Some(uid))
            && agrees("node-name", node)
            && agrees("credential-id", jti.as_deref());
        if !is_same {
            return Err(misfit("the cluster says that it is of another pod, account or node than it says itself"));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            pod: (name.to_owned(), uid.to_owned()),
            node: node.map(str::to_owned),
        })
    }
}

impl Task {
    /// Refuses if the task has ended since it was looked up.
    pub async fn still_runs(&self, reader: Reader<'_>) -> Result<(), Refusal> {
        let Named { name, uid } = &self.task_run;
        let path = format!("/apis/tekton.dev/v1/namespaces/{}/taskruns/{name}", self.view.namespace);
        let run: Run = reader.get(&path).await?.ok_or_else(|| gone("TaskRun", name))?;
        run.check("TaskRun", name, uid)
    }

    /// The task that runs in the pod of a token, if it still does.
    pub async fn of(token: &PodToken, reader: Reader<'_>, now: Timestamp) -> Result<Self, Refusal> {
        let namespace = &token.namespace;
        let (name, uid) = &token.pod;
        let core = |name: &str| format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let tekton =
            |resource: &str, name: &str| format!("/apis/tekton.dev/v1/namespaces/{namespace}/{resource}/{name}");
        let pod: Pod = reader.get(&core(name)).await?.ok_or_else(|| gone("pod", name))?;
        check_pod(&pod, token)?;
        let owner = pod.metadata.run("TaskRun").ok_or_else(|| {
            Refusal::subject(format!("pod {namespace}/{name} is none of a TaskRun, and only tasks get tokens here"))
        })?;
        let run: Run =
            reader.get(&tekton("taskruns", &owner.name)).await?.ok_or_else(|| gone("TaskRun", &owner.name))?;
        run.check("TaskRun", &owner.name, &owner.uid)?;
        if run.status.pod_name.is_empty() {
            return Err(run.metadata.not_yet("TaskRun", "does not know its pod", now));
        }
        if run.status.pod_name != *name {
            return Err(Refusal::subject(format!(
                "TaskRun {namespace}/{} runs in pod {}, not in {name}",
                owner.name, run.status.pod_name
            )));
        }
        let mut task = Self {
            view: TaskView {
                namespace: namespace.clone(),
                service_account: token.service_account.clone(),
                pipeline: None,
                pipeline_task: None,
                task: reference(&run.spec.task_ref),
            },
            pod: Named { name: name.clone(), uid: uid.clone() },
            task_run: run.metadata.named(),
            pipeline_run: None,
            times_out: run.times_out(run.spec.timeout.as_deref()),
            root: run.metadata.root(),
        };
        let mut child = run;
        for _ in 0..MAX_DEPTH {
            let kind = if task.pipeline_run.is_none() { "TaskRun" } else { "PipelineRun" };
            let Some(owner) = child.metadata.run("PipelineRun") else { return Ok(task) };
            let parent: Run = reader
                .get(&tekton("pipelineruns", &owner.name))
                .await?
                .ok_or_else(|| gone("PipelineRun", &owner.name))?;
            parent.check("PipelineRun", &owner.name, &owner.uid)?;
            let made = parent.status.child_references.iter();
            let Some(made) = made.into_iter().find(|made| made.kind == kind && made.name == child.metadata.name) else {
                return Err(child.metadata.not_yet(kind, "is none that its PipelineRun has made", now));
            };
            if task.pipeline_run.is_none() {
                task.pipeline_run = Some(parent.metadata.named());
                task.view.pipeline = reference(&parent.spec.pipeline_ref);
                task.view.pipeline_task = Some(made.pipeline_task_name.clone()).filter(|name| !name.is_empty());
            }
            task.times_out = earlier(task.times_out, parent.times_out(parent.spec.timeouts.pipeline.as_deref()));
            task.root = parent.metadata.root();
            child = parent;
        }
        Err(Refusal::subject(format!("the run is within more than {MAX_DEPTH} others")))
    }
}

fn check_pod(pod: &Pod, token: &PodToken) -> Result<(), Refusal> {
    let (name, uid) = &token.pod;
    let refuse = |why: String| Err(Refusal::subject(format!("pod {}/{name} {why}", token.namespace)));
    if pod.metadata.uid != *uid {
        return refuse("is another one than the token was made for, under the same name".to_owned());
    }
    if pod.spec.service_account_name != token.service_account {
        return refuse(format!("runs as {}, not as {}", pod.spec.service_account_name, token.service_account));
    }
    if token.node.as_ref().is_some_and(|node| *node != pod.spec.node_name) {
        return refuse("runs on another node than the token was made for".to_owned());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return refuse("is being deleted".to_owned());
    }
    if !["Pending", "Running"].contains(&pod.status.phase.as_str()) {
        return refuse(format!("has ended ({})", pod.status.phase));
    }
    Ok(())
}

impl Metadata {
    /// The run of Tekton that controls the object.
    fn run(&self, kind: &str) -> Option<&Owner> {
        let owner = self.owner_references.iter().find(|owner| owner.controller)?;
        (owner.kind == kind && owner.api_version.starts_with("tekton.dev/") && is_subdomain(&owner.name))
            .then_some(owner)
    }

    fn named(&self) -> Named {
        Named { name: self.name.clone(), uid: self.uid.clone() }
    }

    fn created(&self) -> Option<Timestamp> {
        self.creation_timestamp.as_deref().and_then(Timestamp::from_rfc3339)
    }

    fn root(&self) -> Root {
        Root {
            uid: self.uid.clone(),
            event: self.labels.get(EVENT_ID).and_then(Value::as_str).map(str::to_owned),
            created: self.created(),
        }
    }

    /// What the controller has not written down it may still be about to, right after it made the object.
    fn not_yet(&self, kind: &str, why: &str, now: Timestamp) -> Refusal {
        let text = format!("{kind} {} {why}", self.name);
        match self.created().is_some_and(|created| now < created + SETTLING) {
            true => Refusal::unavailable(Reason::Overloaded, format!("{text} yet; try again in a moment")),
            false => Refusal::subject(text),
        }
    }
}

impl Run {
    /// Whether it is the one that is meant, and still runs.
    fn check(&self, kind: &str, name: &str, uid: &str) -> Result<(), Refusal> {
        let refuse = |why: &str| Err(Refusal::subject(format!("{kind} {name} {why}")));
        if self.metadata.uid != uid {
            return refuse("is another one than is meant, under the same name");
        }
        let has_ended = self
            .status
            .conditions
            .iter()
            .any(|condition| condition.kind == "Succeeded" && condition.status != "Unknown");
        if has_ended || self.status.completion_time.is_some() {
            return refuse("has ended");
        }
        if self.metadata.deletion_timestamp.is_some() {
            return refuse("is being deleted");
        }
        // Those that run `finally` tasks first are ended by the status of each task.
        match self.spec.status.as_deref() {
            Some("TaskRunCancelled" | "Cancelled") => refuse("is cancelled"),
            _ => Ok(()),
        }
    }

    fn times_out(&self, after: Option<&str>) -> Option<Timestamp> {
        let after = go_duration(after?).filter(|after| !after.is_zero())?;
        Some(Timestamp::from_rfc3339(self.status.start_time.as_deref()?)? + after)
    }
}

impl Reader<'_> {
    /// `None` if there is none.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Refusal> {
        let failed = |why: String| {
            tracing::warn!(path, why, "a run cannot be looked up for the exchange of a token");
            let detail = "who asks cannot be looked up in the cluster at the moment; try again";
            Refusal::unavailable(Reason::UpstreamFailed, detail)
        };
        let mut request = Request::new(RequestBody::Empty);
        *request.uri_mut() = path.parse().map_err(|_| failed("this is no address".to_owned()))?;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.pools.send(self.server, &mut request, Lane::Short).await;
        let response = response.map_err(|error| failed(Rejection::from(error).detail().to_owned()))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => {
                return Err(failed(format!(
                    "status {status}; the credential of the upstream must be allowed to get pods, taskruns and pipelineruns"
                )));
            }
        }
        let body = collect(response.into_body(), MAX_OBJECT).await;
        let body = body.ok_or_else(|| failed("the answer has no end, or is too long".to_owned()))?;
        serde_json::from_slice(&body).map(Some).map_err(|error| failed(error.to_string()))
    }
}

fn gone(kind: &str, name: &str) -> Refusal {
    Refusal::subject(format!("{kind} {name} does not exist any more"))
}

fn reference(value: &Value) -> Option<String> {
    value.is_object().then(|| describe(value).to_string()).filter(|reference| !reference.is_empty())
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// A duration as Go writes it (`1h0m0s`, `1.5s`), in the units that Kubernetes writes.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit = tail.find(|character: char| character.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            "us" | "µs" | "ns" => 0.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(change: impl FnOnce(&mut Value)) -> Map<String, Value> {
        let mut claims = json!({
            "sub": "system:serviceaccount:ci:builder",
            "jti": "j",
            "kubernetes.io": {
                "namespace": "ci",
                "node": {"name": "n", "uid": "nu"},
                "pod": {"name": "build-pod", "uid": "pu"},
                "serviceaccount": {"name": "builder", "uid": "su"},
            },
            "authentication.kubernetes.io": {
                "username": "system:serviceaccount:ci:builder",
                "uid": "su",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["build-pod"],
                    "authentication.kubernetes.io/pod-uid": ["pu"],
                    "authentication.kubernetes.io/node-name": ["n"],
                    "authentication.kubernetes.io/credential-id": ["JTI=j"],
                },
            },
        });
        change(&mut claims);
        claims.as_object().unwrap().clone()
    }

    #[test]
    fn a_token_is_of_the_pod_that_it_and_the_cluster_name() {
        let token = PodToken::read(&claims(|_| {})).unwrap();
        assert_eq!((token.namespace.as_str(), token.pod.1.as_str(), token.node.as_deref()), ("ci", "pu", Some("n")));
        let extra = |name: &'static str, value: &'static str| {
            move |claims: &mut Value| {
                claims["authentication.kubernetes.io"]["extra"][format!("authentication.kubernetes.io/{name}")] =
                    json!([value]);
            }
        };
        type Change = Box<dyn FnOnce(&mut Value)>;
        let rows: Vec<(&str, Change)> = vec![
            (
                "kubernetes:6.4 bound to a secret",
                Box::new(|claims| claims["kubernetes.io"]["secret"] = json!({"name": "s", "uid": "u"})),
            ),
            (
                "kubernetes:6.4 bound to no pod",
                Box::new(|claims| _ = claims["kubernetes.io"].as_object_mut().unwrap().remove("pod")),
            ),
            ("no claim of a cluster", Box::new(|claims| _ = claims.as_object_mut().unwrap().remove("kubernetes.io"))),
            ("another account", Box::new(|claims| claims["kubernetes.io"]["serviceaccount"]["name"] = json!("admin"))),
            (
                "a name that leads elsewhere",
                Box::new(|claims| claims["kubernetes.io"]["pod"]["name"] = json!("../../secrets/x")),
            ),
            (
                "never reviewed",
                Box::new(|claims| _ = claims.as_object_mut().unwrap().remove("authentication.kubernetes.io")),
            ),
            ("the cluster says another pod", Box::new(extra("pod-uid", "other"))),
            ("the cluster says another name", Box::new(extra("pod-name", "other"))),
            ("the cluster says another node", Box::new(extra("node-name", "other"))),
            ("the cluster says another token", Box::new(extra("credential-id", "JTI=other"))),
            (
                "the account was made anew",
                Box::new(|claims| claims["authentication.kubernetes.io"]["uid"] = json!("other")),
            ),
        ];
        for (what, change) in rows {
            assert!(PodToken::read(&claims(change)).is_err(), "{what}");
        }
        // A server before 1.32 names neither node nor credential.
        let old = PodToken::read(&claims(|claims| {
            let extra = claims["authentication.kubernetes.io"]["extra"].as_object_mut().unwrap();
            extra.retain(|name, _| name.contains("pod-"));
            claims["kubernetes.io"].as_object_mut().unwrap().remove("node");
            claims.as_object_mut().unwrap().remove("jti");
        }));
        assert!(old.unwrap().node.is_none());
    }

    #[test]
    fn only_a_pod_that_lives_and_is_the_same_gets_a_token() {
        let token = PodToken::read(&claims(|_| {})).unwrap();
        let pod = |change: fn(&mut Value)| {
            let mut pod = json!({
                "metadata": {"name": "build-pod", "uid": "pu"},
                "spec": {"serviceAccountName": "builder", "nodeName": "n"},
                "status": {"phase": "Running"},
            });
            change(&mut pod);
            check_pod(&serde_json::from_value(pod).unwrap(), &token).is_ok()
        };
        assert!(pod(|_| {}));
        assert!(pod(|pod| pod["status"]["phase"] = json!("Pending")));
        for (what, change) in [
            (
                "kubernetes:6.4 made anew under the same name",
                (|pod| pod["metadata"]["uid"] = json!("x")) as fn(&mut Value),
            ),
            ("another account", |pod| pod["spec"]["serviceAccountName"] = json!("x")),
            ("another node", |pod| pod["spec"]["nodeName"] = json!("x")),
            ("kubernetes:6.4 terminating in grace", |pod| {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
            }),
            ("kubernetes:6.4 succeeded", |pod| pod["status"]["phase"] = json!("Succeeded")),
            ("failed", |pod| pod["status"]["phase"] = json!("Failed")),
            ("unknown", |pod| pod["status"]["phase"] = json!("Unknown")),
        ] {
            assert!(!pod(change), "{what}");
        }
    }

    #[test]
    fn durations_of_go_are_read() {
        for (text, seconds) in [
            ("1h0m0s", Some(3600.0)),
            ("90m", Some(5400.0)),
            ("1.5s", Some(1.5)),
            ("500ms", Some(0.5)),
            ("0s", Some(0.0)),
            ("", None),
            ("1", None),
            ("1d", None),
            ("-1s", None),
            ("1h-1m", None),
        ] {
            assert_eq!(go_duration(text).map(|duration| duration.as_secs_f64()), seconds, "{text}");
        }
    }
}
