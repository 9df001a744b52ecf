//! From a pod's token to the task that runs in the pod. Each step is checked against what the cluster's own controllers
//! write, since whoever may make pods or runs can give them any label, annotation or owner reference:
//!
//! ```text
//! token -> Pod           by name and uid; its account, its node, its phase
//! Pod -> TaskRun         its owner reference, and back: status.podName
//! TaskRun -> PipelineRun its owner reference, and back: status.childReferences
//! ```
//!
//! The last step back is no proof: Tekton adopts a run that has the owner reference and the labels of one of its own,
//! whoever made it. A run that was made through Doorward is recognised by its annotation and by its stored cause. The
//! admission policy `doorward-runs` keeps others from making such a run past Doorward. The other runs that a PipelineRun
//! lists are checked as well ([`siblings`](super::siblings)).

use std::time::Duration;

use super::{
    ends::Kind,
    look_up::{Lookup, Source},
    objects::{Identity, Owner, Pod, TASK_RUN},
    pod_token::PodToken,
    refusal::Refusal,
};
use crate::{authz::TaskView, clock::Timestamp, error::Reason, kubernetes::ObjectRef, tekton::MADE_BY};

/// The number of nested runs that are followed.
pub(super) const MAX_DEPTH: usize = 4;

/// How long the controller may take to write what it made, and Doorward to record who caused it.
pub(super) const SETTLING: Duration = Duration::from_secs(30);

/// A running task and the runs that it is part of.
#[derive(Clone, Debug)]
pub struct Task {
    pub view: TaskView,
    pub pod: ObjectRef,
    pub task_run: ObjectRef,
    /// The PipelineRuns that contain it, from the one that made it outwards.
    pub pipeline_runs: Vec<ObjectRef>,
    /// The outermost run, which somebody caused.
    pub root: Root,
    /// When it times out, if it has a time-out.
    pub times_out: Option<Timestamp>,
    /// The id (`jti`) of the pod's token that is exchanged, if it has one.
    pub pod_token: Option<String>,
}

/// A run that no other run made.
#[derive(Clone, Debug)]
pub struct Root {
    pub uid: String,
    /// The event that it names as its origin.
    pub event: Option<String>,
    pub created: Option<Timestamp>,
    /// Whether it has the label of a run that a PipelineRun made.
    pub is_part: bool,
    /// Its controller, which is not a PipelineRun.
    pub owner: Option<Owner>,
}

impl Task {
    /// The run that made it, if it is part of one.
    pub fn pipeline_run(&self) -> Option<&ObjectRef> {
        self.pipeline_runs.first()
    }

    /// The runs that another run made: all but the outermost.
    pub fn made(&self) -> impl Iterator<Item = &ObjectRef> {
        std::iter::once(&self.task_run).chain(&self.pipeline_runs).take(self.pipeline_runs.len())
    }

    /// The objects with whose end it ends.
    pub fn lives_with(&self) -> impl Iterator<Item = (Kind, &ObjectRef)> {
        let runs = self.pipeline_runs.iter().map(|run| (Kind::PipelineRun, run));
        [(Kind::TaskRun, &self.task_run), (Kind::Pod, &self.pod)].into_iter().chain(runs)
    }

    /// Refuses if the task, its pod or a run that contains it has ended since they were looked up.
    pub async fn still_runs(&self, lookup: Lookup<'_>) -> Result<(), Refusal> {
        match self.runs_at(Source::Watched, lookup).await {
            Ok(()) => Ok(()),
            Err(_) => self.runs_at(Source::Server, lookup).await,
        }
    }

    async fn runs_at(&self, source: Source, lookup: Lookup<'_>) -> Result<(), Refusal> {
        let namespace = &self.view.namespace;
        for (kind, object) in self.lives_with() {
            lookup.object(source, kind, namespace, object).await?;
        }
        Ok(())
    }

    /// The task that runs in the pod of a token, if it still does.
    pub async fn of(token: &PodToken, lookup: Lookup<'_>, now: Timestamp) -> Result<Self, Refusal> {
        match Self::found(token, lookup, Source::Watched, now).await {
            Ok(task) => Ok(task),
            Err(_) => Self::found(token, lookup, Source::Server, now).await,
        }
    }

    async fn found(token: &PodToken, lookup: Lookup<'_>, source: Source, now: Timestamp) -> Result<Self, Refusal> {
        let namespace = &token.namespace;
        let name = &token.pod.name;
        let pod = lookup.pod(source, namespace, &token.pod).await?;
        check_pod(&pod, token)?;
        let owner = pod.identity.owner_of_kind(Kind::TaskRun).ok_or_else(|| {
            Refusal::subject(format!(
                "pod {namespace}/{name} does not belong to a TaskRun, and only tasks get tokens here"
            ))
        })?;
        check_watched(&pod)?;
        let run = lookup.run(source, Kind::TaskRun, namespace, &owner.object).await?;
        if run.pod.is_empty() {
            // A TaskRun that is retried is older than its pod.
            return Err(run.identity.not_yet(Kind::TaskRun, "does not know its pod", pod.identity.created, now));
        }
        if run.pod != *name {
            return Err(Refusal::subject(format!(
                "TaskRun {namespace}/{} runs in pod {}, not in {name}",
                owner.object.name, run.pod
            )));
        }
        let mut task = Self {
            view: TaskView {
                cluster: lookup.cluster.to_string(),
                namespace: namespace.clone(),
                service_account: token.service_account.clone(),
                pipeline: None,
                pipeline_task: None,
                task: run.reference.clone(),
            },
            pod: token.pod.clone(),
            task_run: run.identity.named(),
            pipeline_runs: Vec::new(),
            times_out: run.times_out,
            root: run.identity.root(),
            pod_token: token.id.clone(),
        };
        let mut child = run;
        loop {
            let kind = if task.pipeline_runs.is_empty() { Kind::TaskRun } else { Kind::PipelineRun };
            let Some(owner) = child.identity.owner_of_kind(Kind::PipelineRun) else {
                child.identity.check_whole(kind)?;
                return Ok(task);
            };
            if task.pipeline_runs.len() == MAX_DEPTH {
                return Err(Refusal::subject(format!("the run is within more than {MAX_DEPTH} others")));
            }
            let parent = lookup.run(source, Kind::PipelineRun, namespace, &owner.object).await?;
            let mut made = parent.children.iter();
            let Some(made) = made.find(|made| made.kind == kind.name() && made.name == child.identity.name) else {
                let (identity, why) = (&child.identity, "is not listed by its PipelineRun");
                return Err(identity.not_yet(kind, why, identity.created, now));
            };
            child.identity.check_maker(kind.name(), &parent.identity)?;
            lookup.check_siblings(namespace, &parent, made).await?;
            if task.pipeline_runs.is_empty() {
                task.view.pipeline.clone_from(&parent.reference);
                task.view.pipeline_task = Some(made.pipeline_task_name.clone()).filter(|name| !name.is_empty());
            }
            task.pipeline_runs.push(parent.identity.named());
            task.times_out = task.times_out.into_iter().chain(parent.times_out).min();
            task.root = parent.identity.root();
            child = parent;
        }
    }
}

/// The refusal of a run that names another as its owner, and was not made by it.
pub(super) fn made_by_somebody(kind: &str, name: &str, parent: &str) -> Refusal {
    Refusal::subject(format!(
        "{kind} {name} was not made by PipelineRun {parent}, though that lists it: somebody made it, with an owner that it does not have"
    ))
}

/// The refusal of a part of a PipelineRun that something else controls. The PipelineRun may go on, so the text must not
/// be one for an end.
pub(super) fn controlled(what: &str, Owner { kind, object }: &Owner) -> Refusal {
    Refusal::subject(format!(
        "{what} is a part of a PipelineRun by its label `{MADE_BY}`, and {kind} {} controls it: tasks of what a {kind} makes get no tokens, \
         as no rule about the pipeline would match them; let the pipeline itself run the task",
        object.name
    ))
}

fn check_pod(pod: &Pod, token: &PodToken) -> Result<(), Refusal> {
    let name = &token.pod.name;
    let refuse = |why: String| Err(Refusal::subject(format!("pod {}/{name} {why}", token.namespace)));
    if pod.service_account != token.service_account {
        return refuse(format!("runs as {}, not as {}", pod.service_account, token.service_account));
    }
    if token.node.as_ref().is_some_and(|node| *node != pod.node) {
        return refuse("runs on another node than the token was made for".to_owned());
    }
    if !["Pending", "Running"].contains(&pod.phase.as_str()) {
        return refuse(format!("does not run: its phase is `{}`", pod.phase));
    }
    Ok(())
}

/// Refuses a pod whose end nobody would see.
fn check_watched(pod: &Pod) -> Result<(), Refusal> {
    let Identity { namespace, name, .. } = &pod.identity;
    match pod.is_watched {
        true => Ok(()),
        false => Err(Refusal::subject(format!(
            "pod {namespace}/{name} has no label `{TASK_RUN}`, by which its end would be seen; Tekton writes it on each pod that it makes"
        ))),
    }
}

impl Identity {
    fn named(&self) -> ObjectRef {
        ObjectRef { name: self.name.clone(), uid: self.uid.clone() }
    }

    fn root(&self) -> Root {
        // Whoever makes a run through Doorward can copy the label of an event.
        let event = self.event.clone().filter(|_| self.request.is_none());
        let (uid, owner) = (self.uid.clone(), self.owner.clone());
        Root { uid, event, created: self.created, is_part: self.is_part, owner }
    }

    /// Refuses a run that an event made as part of a PipelineRun which no longer controls it, as when that was deleted
    /// without it: it would get tokens as a run of its own, which no rule about the pipeline matches. Whoever makes a
    /// run through Doorward can copy the label, so such a run is known by its uid alone.
    fn check_whole(&self, kind: Kind) -> Result<(), Refusal> {
        if !self.is_part || self.request.is_some() {
            return Ok(());
        }
        let what = format!("{} {}", kind.name(), self.name);
        Err(match &self.owner {
            Some(owner) => controlled(&what, owner),
            None => Refusal::subject(format!(
                "{what} is a part of a PipelineRun by its label `{MADE_BY}`, and none controls it: that has ended, or was deleted without \
                 it, so start the whole PipelineRun again; make a run of its own without the label"
            )),
        })
    }

    /// Refuses a run that names another request or event as its origin than the run that lists it: the controller
    /// copies both to the runs that it makes.
    pub(super) fn check_maker(&self, kind: &str, parent: &Self) -> Result<(), Refusal> {
        let differs = |own: &Option<String>, of_parent: &Option<String>| own.is_some() && own != of_parent;
        match differs(&self.request, &parent.request) || differs(&self.event, &parent.event) {
            true => Err(made_by_somebody(kind, &self.name, &parent.name)),
            false => Ok(()),
        }
    }

    /// The refusal for something that the controller has not written, or may be about to write soon after `made`.
    fn not_yet(&self, kind: Kind, why: &str, made: Option<Timestamp>, now: Timestamp) -> Refusal {
        let text = format!("{} {} {why}", kind.name(), self.name);
        match made.is_some_and(|made| now < made + SETTLING) {
            true => Refusal::unavailable(Reason::Overloaded, format!("{text} yet; try again in a moment")),
            false => Refusal::subject(text),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::{
        super::{
            ends::RunEnds,
            look_up::{Lookups, still_is},
            objects::ENDS,
            pod_token::tests::claims,
        },
        *,
    };
    use crate::{
        clock::Clock,
        config::{raw, report::At, resolver::Resolver},
        runs::EVENT_ID,
        tekton::REQUEST_ID,
        upstream::{Metrics, Pings, Pools, Upstream},
    };

    pub const MADE: Timestamp = Timestamp::from_secs(1_767_225_600);

    /// An object that was made at this time, with this owner.
    pub fn object(name: &str, made: Timestamp, owner: Option<(&str, &str)>, rest: &Value) -> Value {
        let owner = owner.map(|(kind, name)| {
            json!({"apiVersion": "tekton.dev/v1", "kind": kind, "name": name, "uid": name, "controller": true})
        });
        let mut object = json!({"metadata": {
            "name": name, "namespace": "ci", "uid": name, "creationTimestamp": made.to_string(),
            "labels": {"tekton.dev/taskRun": "build"},
            "ownerReferences": Vec::from_iter(owner),
        }});
        object.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        object
    }

    /// The task that is found in the pod, if the watches report the pod and these runs.
    async fn found(now: Timestamp, runs: Vec<(Kind, Value)>) -> Result<Task, Refusal> {
        found_at("https://10.0.0.1", &Lookups::default(), now, runs).await
    }

    /// The same where the API server has this URL.
    pub async fn found_at(
        url: &str,
        lookups: &Lookups,
        now: Timestamp,
        runs: Vec<(Kind, Value)>,
    ) -> Result<Task, Refusal> {
        let token = PodToken::read(&claims(|claims| {
            claims["kubernetes.io"]["pod"]["uid"] = json!("build-pod");
            claims["authentication.kubernetes.io"]["extra"]["authentication.kubernetes.io/pod-uid"] =
                json!(["build-pod"]);
        }));
        let status =
            json!({"spec": {"serviceAccountName": "builder", "nodeName": "n"}, "status": {"phase": "Running"}});
        let pod = (Kind::Pod, object("build-pod", MADE, Some(("TaskRun", "build")), &status));
        let clock = Clock::manual(now);
        let ends = RunEnds::reported("c", runs.into_iter().chain([pod]), clock.moment());
        let server: raw::Upstream = serde_saphyr::from_str(&format!("{{name: api, url: '{url}'}}")).unwrap();
        let server = Upstream::resolve(&server, &raw::Limits::default(), &At::root(), &mut Resolver::default());
        let lookup = Lookup {
            ends: &ends,
            lookups,
            clock: &clock,
            cluster: &"c".into(),
            pools: &Pools::new(Metrics::default(), Pings::NORMAL),
            server: &server.unwrap(),
        };
        Task::found(&token.unwrap(), lookup, Source::Watched, now).await
    }

    /// Tekton writes this a little after it has made a pod or a run, so a client that soon asks again finds it.
    #[tokio::test]
    async fn an_imminent_write_of_tekton_is_awaited_for_half_a_minute_at_most() {
        let second = Duration::from_secs(1);
        let run = |made, owner, pod: &str| {
            (Kind::TaskRun, object("build", made, owner, &json!({"status": {"podName": pod}})))
        };
        let parent = |made| (Kind::PipelineRun, object("release", made, None, &json!({})));
        let of_release = Some(("PipelineRun", "release"));
        let long_before = MADE - Duration::from_secs(3600);
        for (what, runs, why) in [
            ("a new task", vec![run(MADE, None, "")], "does not know its pod"),
            ("a task that is tried again", vec![run(long_before, None, "")], "does not know its pod"),
            (
                "a new task of a run",
                vec![run(MADE, of_release, "build-pod"), parent(long_before)],
                "is not listed by its PipelineRun",
            ),
        ] {
            for (now, status, reason) in
                [(MADE + SETTLING - second, 503, Reason::Overloaded), (MADE + SETTLING, 400, Reason::TokenInvalid)]
            {
                let refusal = found(now, runs.clone()).await.unwrap_err();
                assert_eq!((refusal.status().as_u16(), refusal.reason()), (status, reason), "{what}: {refusal:?}");
                assert!(refusal.description().contains(why), "{what}: {refusal:?}");
            }
        }
        assert!(found(MADE, vec![run(MADE, None, "build-pod")]).await.is_ok());
    }

    /// Whoever makes a run can name any PipelineRun as its owner, and would get the tokens of whoever caused that.
    #[tokio::test]
    async fn a_run_listed_under_another_kind_or_name_is_not_part_of_its_pipeline_run() {
        for (kind, name, is_made) in [
            ("TaskRun", "build", true),
            ("TaskRun", "other", false),
            ("CustomRun", "build", false),
            ("PipelineRun", "build", false),
        ] {
            let status = json!({"status": {"podName": "build-pod"}});
            let run = object("build", MADE, Some(("PipelineRun", "release")), &status);
            let listed = json!({"status": {"childReferences": [{"kind": kind, "name": name}]}});
            let parent = object("release", MADE, None, &listed);
            match found(MADE + SETTLING, vec![(Kind::TaskRun, run), (Kind::PipelineRun, parent)]).await {
                Ok(task) => assert_eq!((task.pipeline_runs.len(), is_made), (1, true), "{kind} {name}"),
                Err(refusal) => {
                    let why = refusal.description();
                    assert!(!is_made && why.contains("is not listed by its PipelineRun"), "{kind} {name}: {why}");
                }
            }
        }
    }

    #[tokio::test]
    async fn runs_within_runs_are_followed_to_a_bound() {
        let names: Vec<String> = (0..=MAX_DEPTH + 1).map(|depth| format!("run-{depth}")).collect();
        for depth in [0, 1, MAX_DEPTH, MAX_DEPTH + 1] {
            let outer = |of: usize| names.get(of).filter(|_| of <= depth).map(|name| ("PipelineRun", name.as_str()));
            let task = (Kind::TaskRun, object("build", MADE, outer(1), &json!({"status": {"podName": "build-pod"}})));
            let runs = (1..=depth).map(|at| {
                let made = match at {
                    1 => json!({"kind": "TaskRun", "name": "build", "pipelineTaskName": "t"}),
                    _ => json!({"kind": "PipelineRun", "name": names[at - 1], "pipelineTaskName": "t"}),
                };
                (
                    Kind::PipelineRun,
                    object(&names[at], MADE, outer(at + 1), &json!({"status": {"childReferences": [made]}})),
                )
            });
            match found(MADE, [task].into_iter().chain(runs).collect()).await {
                Ok(task) => assert_eq!((task.pipeline_runs.len(), depth <= MAX_DEPTH), (depth, true)),
                Err(refusal) => {
                    assert!(depth > MAX_DEPTH, "{depth}: {refusal:?}");
                    assert_eq!(refusal.description(), "the run is within more than 4 others");
                }
            }
        }
    }

    /// The garbage collector removes the owner from what is left of a PipelineRun that is deleted alone. If a delivery
    /// caused it, its task got tokens as one of no pipeline, which a deny of that pipeline does not match.
    #[tokio::test]
    async fn leftovers_of_a_delivered_pipeline_run_get_no_tokens_as_separate_runs() {
        let run = |owner, labels: Value, annotations: Value| {
            let mut run = object("build", MADE, owner, &json!({"status": {"podName": "build-pod"}}));
            run["metadata"]["labels"] = labels;
            run["metadata"]["annotations"] = annotations;
            (Kind::TaskRun, run)
        };
        let left = || json!({EVENT_ID: "e", MADE_BY: "release"});
        let refused = |task: Result<Task, Refusal>, what: &str| {
            let why = task.unwrap_err().description().to_owned();
            assert!(why.starts_with(what) && why.contains("none controls it: that has ended"), "{why}");
        };
        let alone = found(MADE, vec![run(None, json!({EVENT_ID: "e"}), json!({}))]).await.unwrap();
        assert_eq!(alone.root.event.as_deref(), Some("e"));
        refused(found(MADE, vec![run(None, left(), json!({}))]).await, "TaskRun build ");

        // The same for a run within another.
        let made = json!({"kind": "TaskRun", "name": "build", "pipelineTaskName": "t"});
        let mut inner = object("inner", MADE, None, &json!({"status": {"childReferences": [made]}}));
        inner["metadata"]["labels"] = left();
        let task = run(Some(("PipelineRun", "inner")), json!({EVENT_ID: "e", MADE_BY: "inner"}), json!({}));
        refused(found(MADE, vec![task, (Kind::PipelineRun, inner)]).await, "PipelineRun inner ");

        // A run that somebody copied and made through Doorward belongs to them.
        let copied = found(MADE, vec![run(None, left(), json!({REQUEST_ID: "r"}))]).await.unwrap();
        assert_eq!(copied.root.event, None);
    }

    /// The refusal said that its PipelineRun had ended, which `doorward token` took for the end of a run that goes on.
    #[tokio::test]
    async fn runs_of_a_custom_run_get_no_tokens_and_are_not_reported_as_ended() {
        let mut run = object("build", MADE, Some(("CustomRun", "loop")), &json!({"status": {"podName": "build-pod"}}));
        run["metadata"]["labels"] = json!({EVENT_ID: "e", MADE_BY: "release"});
        let refusal = found(MADE, vec![(Kind::TaskRun, run)]).await.unwrap_err();
        let why = refusal.description();
        assert!(why.contains("and CustomRun loop controls it"), "{why}");
        assert!(!ENDS.iter().any(|end| why.contains(end.trim_start_matches("it "))), "{why}");
    }

    #[test]
    fn a_run_of_a_request_is_of_no_event_and_its_children_are_of_the_same() {
        let identity = |request: Option<&str>, event: Option<&str>| Identity {
            namespace: "ci".to_owned(),
            name: "release".to_owned(),
            uid: "u".to_owned(),
            owner: None,
            created: None,
            event: event.map(Into::into),
            request: request.map(Into::into),
            is_part: false,
        };
        assert_eq!(identity(None, Some("e")).root().event.as_deref(), Some("e"));
        assert_eq!(identity(Some("r"), Some("e")).root().event, None, "who makes a run can copy the label");
        let parent = identity(Some("r"), Some("e"));
        for (request, event, good) in [
            (Some("r"), Some("e"), true),
            (None, None, true),
            (Some("another"), Some("e"), false),
            (Some("r"), Some("another"), false),
        ] {
            let child = identity(request, event);
            assert_eq!(child.check_maker("TaskRun", &parent).is_ok(), good, "{request:?} {event:?}");
        }
        let past = identity(None, None);
        assert!(
            identity(Some("r"), None).check_maker("TaskRun", &past).is_err(),
            "by a request where the parent has none"
        );
    }

    #[test]
    fn only_a_pod_that_lives_and_is_the_same_gets_a_token() {
        let token = PodToken::read(&claims(|_| {})).unwrap();
        let pod = |change: fn(&mut Value)| {
            let mut pod = json!({
                "metadata": {"name": "build-pod", "uid": "pu", "labels": {"tekton.dev/taskRun": "build"}},
                "spec": {"serviceAccountName": "builder", "nodeName": "n"},
                "status": {"phase": "Running"},
            });
            change(&mut pod);
            let pod = Pod::read(serde_json::from_value(pod).unwrap());
            let is_meant = still_is(&pod.identity, pod.end, "pod", &token.pod);
            is_meant.and_then(|()| check_pod(&pod, &token)).and_then(|()| check_watched(&pod)).is_ok()
        };
        assert!(pod(|_| {}));
        assert!(pod(|pod| pod["status"]["phase"] = json!("Pending")));
        for (what, change) in [
            (
                "kubernetes:6.4 made anew under the same name",
                (|pod| pod["metadata"]["uid"] = json!("x")) as fn(&mut Value),
            ),
            ("without the label by which it is watched", |pod| pod["metadata"]["labels"] = json!({"app": "x"})),
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
}
