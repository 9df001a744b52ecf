//! The other runs that the PipelineRun of a task lists. Tekton finds the run of a task by its name alone
//! (`PIPELINERUN-TASK`), whoever made it: a run that somebody else makes under that name first stands in for the task,
//! and decides its outcome and its results, on which later tasks act. So no task gets tokens beside such a run.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::join_all};
use kube::{
    Resource,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use moka::sync::Cache;

use super::{
    MAX_LIFETIME,
    ends::{Kind, Object},
    look_up::Lookup,
    objects::{Child, Run},
    refusal::Refusal,
    task::MAX_DEPTH,
};
use crate::{error::Reason, tekton::dashboard::is_subdomain};

/// Runs that were found to be made by the PipelineRun that lists them, so that not each exchange looks them up again. The
/// list has no uids: one that is deleted, and made again by somebody else, is found after this time.
#[derive(Clone, Debug)]
pub(super) struct MadeRuns(Cache<Key, ()>);

/// The cluster, the uid of the PipelineRun, and the kind and the name of the run.
type Key = (Arc<str>, String, String, String);

/// The number of runs that are remembered.
const MAX_MADE: u64 = 10_000;

/// Runs that are looked up at once: a matrix may have made hundreds, and a step waits for all of them.
const AT_ONCE: usize = 8;

impl Default for MadeRuns {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_MADE).time_to_live(MAX_LIFETIME).build())
    }
}

impl Lookup<'_> {
    /// Refuses if a PipelineRun lists a run beside `child` that it did not make, or contains one that does.
    pub(super) async fn check_siblings(self, namespace: &str, parent: &Arc<Run>, child: &Child) -> Result<(), Refusal> {
        let made = &self.lookups.made.0;
        let mut within = vec![(1, Arc::clone(parent))];
        while let Some((depth, parent)) = within.pop() {
            let is_unknown = |sibling: &&Child| {
                let is_child = depth == 1 && sibling.kind == child.kind && sibling.name == child.name;
                !is_child && !made.contains_key(&self.key(&parent, sibling))
            };
            let unknown: Vec<&Child> = parent.children.iter().filter(is_unknown).collect();
            for some in unknown.chunks(AT_ONCE) {
                let looks: Vec<_> =
                    some.iter().map(|sibling| self.sibling(namespace, &parent, sibling).boxed()).collect();
                for (sibling, run) in some.iter().zip(join_all(looks).await) {
                    let Some(run) = run? else { continue };
                    if sibling.kind != Kind::PipelineRun.name() {
                        made.insert(self.key(&parent, sibling), ());
                    } else if depth < MAX_DEPTH {
                        // Its own list may grow.
                        within.push((depth + 1, run));
                    } else {
                        let name = &parent.identity.name;
                        return Err(Refusal::subject(format!(
                            "PipelineRun {name} lists another, and runs within {MAX_DEPTH} others are not followed"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    fn key(self, parent: &Run, child: &Child) -> Key {
        (Arc::clone(self.cluster), parent.identity.uid.clone(), child.kind.clone(), child.name.clone())
    }

    /// A run that a PipelineRun lists and has made. `None` if it was deleted after the PipelineRun had ended.
    async fn sibling(self, namespace: &str, parent: &Run, child: &Child) -> Result<Option<Arc<Run>>, Refusal> {
        let Child { kind, name, .. } = child;
        let Run { identity: parent, end, .. } = parent;
        let listed = format!("{kind} {name}, which PipelineRun {} lists,", parent.name);
        let Some((read_as, resource)) = place(child) else {
            return Err(Refusal::subject(format!(
                "{listed} is of no kind whose maker can be looked up, so no task beside it gets tokens: let such a task run in a \
                 pipeline of its own"
            )));
        };
        let all = DynamicObject::url_path(&resource, Some(namespace));
        let Some(Object::Run(run)) = self.get(read_as, format!("{all}/{name}")).await? else {
            // Retention may have deleted it, and Tekton does not change the list any more.
            if end.is_some() {
                return Ok(None);
            }
            // Tekton makes another, or takes it off the list.
            let text = format!("{listed} cannot be found; try again in a moment");
            return Err(Refusal::unavailable(Reason::Overloaded, text));
        };
        let owner = run.identity.owner_of_kind(Kind::PipelineRun);
        if owner.is_none_or(|owner| owner.object.uid != parent.uid) {
            return Err(Refusal::subject(format!(
                "{listed} was not made by it: somebody made it under the name that the run of a task has, and decides what that \
                 task did, so no task of the PipelineRun gets tokens; start the pipeline again, and let only those make runs in \
                 namespace {namespace} who may decide what its pipelines do"
            )));
        }
        run.identity.check_maker(kind, parent)?;
        Ok(Some(run))
    }
}

/// Where a run is looked up, and as which kind it is read. `None` for kinds that Tekton does not make and for invalid
/// names.
fn place(child: &Child) -> Option<(Kind, ApiResource)> {
    let place = match child.kind.as_str() {
        "TaskRun" => (Kind::TaskRun, Kind::TaskRun.resource()),
        "PipelineRun" => (Kind::PipelineRun, Kind::PipelineRun.resource()),
        // Only its metadata is read, which all kinds have.
        "CustomRun" => {
            let custom_run = GroupVersionKind::gvk("tekton.dev", "v1beta1", "CustomRun");
            (Kind::TaskRun, ApiResource::from_gvk(&custom_run))
        }
        _ => return None,
    };
    is_subdomain(&child.name).then_some(place)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use axum::{
        Json, Router,
        http::{StatusCode, Uri},
    };
    use serde_json::{Value, json};

    use super::{
        super::{
            look_up::Lookups,
            objects::ENDS,
            task::tests::{MADE, found_at, object},
        },
        *,
    };
    use crate::tekton::REQUEST_ID;

    const TASK_RUN: &str = "/apis/tekton.dev/v1/namespaces/ci/taskruns/gate";
    const CUSTOM_RUN: &str = "/apis/tekton.dev/v1beta1/namespaces/ci/customruns/gate";
    const PIPELINE_RUN: &str = "/apis/tekton.dev/v1/namespaces/ci/pipelineruns/inner";

    /// The URL of an API server that has these objects, by path, and the number of requests that it got.
    async fn server(objects: &[(&str, Value)]) -> (String, Arc<AtomicUsize>) {
        let objects: Arc<HashMap<String, Value>> =
            Arc::new(objects.iter().map(|(path, object)| ((*path).to_owned(), object.clone())).collect());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let router = Router::new().fallback(move |uri: Uri| {
            count.fetch_add(1, Ordering::SeqCst);
            let found = objects.get(uri.path()).cloned();
            async move { found.map(Json).ok_or(StatusCode::NOT_FOUND) }
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, asked)
    }

    /// The task `build` and its PipelineRun `release`, which also lists this run.
    fn beside(kind: &str, name: &str) -> Vec<(Kind, Value)> {
        let task =
            object("build", MADE, Some(("PipelineRun", "release")), &json!({"status": {"podName": "build-pod"}}));
        vec![
            (Kind::TaskRun, task),
            (Kind::PipelineRun, listing("release", None, &[("TaskRun", "build"), (kind, name)])),
        ]
    }

    /// A PipelineRun that lists these runs.
    fn listing(name: &str, owner: Option<(&str, &str)>, listed: &[(&str, &str)]) -> Value {
        let listed: Vec<Value> = listed.iter().map(|(kind, name)| json!({"kind": kind, "name": name})).collect();
        object(name, MADE, owner, &json!({"status": {"childReferences": listed}}))
    }

    fn gate(owner: Option<(&str, &str)>) -> Value {
        object("gate", MADE, owner, &json!({}))
    }

    /// The later tasks acted on the outcome and the results of a run that anybody who may make runs had made, with the
    /// tokens of whoever had started the PipelineRun.
    #[tokio::test]
    async fn no_task_gets_tokens_beside_a_run_that_its_pipeline_run_lists_and_did_not_make() {
        let of_release = Some(("PipelineRun", "release"));
        let mut of_a_request = gate(of_release);
        of_a_request["metadata"]["annotations"] = json!({REQUEST_ID: "another"});
        for (what, kind, objects, refused) in [
            ("made by it", "TaskRun", vec![(TASK_RUN, gate(of_release))], None),
            ("made by it", "CustomRun", vec![(CUSTOM_RUN, gate(of_release))], None),
            ("made by nothing", "TaskRun", vec![(TASK_RUN, gate(None))], Some("was not made by it")),
            ("made by nothing", "CustomRun", vec![(CUSTOM_RUN, gate(None))], Some("was not made by it")),
            (
                "made by another",
                "TaskRun",
                vec![(TASK_RUN, gate(Some(("PipelineRun", "other"))))],
                Some("was not made by it"),
            ),
            (
                "by something else of its name",
                "TaskRun",
                vec![(TASK_RUN, gate(Some(("CustomRun", "release"))))],
                Some("was not made by it"),
            ),
            (
                "made by a request, with its owner",
                "TaskRun",
                vec![(TASK_RUN, of_a_request)],
                Some("was not made by PipelineRun release"),
            ),
            ("of a kind that is not known", "Wait", vec![], Some("is of no kind")),
        ] {
            let (url, _) = server(&objects).await;
            let task = found_at(&url, &Lookups::default(), MADE, beside(kind, "gate")).await;
            let why = task.err().map(|refusal| refusal.description().to_owned());
            assert_eq!(why.is_some(), refused.is_some(), "{what} {kind}: {why:?}");
            if let (Some(why), Some(words)) = (why, refused) {
                assert!(why.starts_with(&format!("{kind} gate")) && why.contains(words), "{what} {kind}: {why}");
                // `doorward token` would take the PipelineRun for ended.
                assert!(!ENDS.iter().any(|end| why.contains(end.trim_start_matches("it "))), "{why}");
            }
        }
    }

    #[tokio::test]
    async fn a_run_that_cannot_be_looked_up_counts_as_made_by_somebody_else() {
        let (url, asked) = server(&[]).await;
        let found =
            async |name: &str| found_at(&url, &Lookups::default(), MADE, beside("TaskRun", name)).await.unwrap_err();
        assert_eq!(found("gate").await.status(), 503, "Tekton makes another soon");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(found("../pipelineruns/release").await.status(), 400);
        assert_eq!(asked.load(Ordering::SeqCst), 1, "no other object is asked for");
    }

    #[tokio::test]
    async fn a_run_that_was_made_by_its_pipeline_run_is_looked_up_once() {
        for (owner, asks) in [(Some(("PipelineRun", "release")), 1), (None, 3)] {
            let (url, asked) = server(&[(TASK_RUN, gate(owner))]).await;
            let lookups = Lookups::default();
            for _ in 0..3 {
                let task = found_at(&url, &lookups, MADE, beside("TaskRun", "gate")).await;
                assert_eq!(task.is_ok(), owner.is_some());
            }
            assert_eq!(asked.load(Ordering::SeqCst), asks, "{owner:?}");
        }
    }

    /// One after the other, those of a large matrix took longer at a slow API server than a step waits for a token.
    #[tokio::test]
    async fn several_runs_are_looked_up_at_once() {
        let together = Arc::new(tokio::sync::Barrier::new(AT_ONCE));
        let router = Router::new().fallback(move |uri: Uri| {
            let together = Arc::clone(&together);
            async move {
                together.wait().await;
                let name = uri.path().rsplit('/').next().unwrap_or_default();
                Json(object(name, MADE, Some(("PipelineRun", "release")), &json!({})))
            }
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let names: Vec<String> = (0..2 * AT_ONCE).map(|number| format!("gate-{number}")).collect();
        let gates = names.iter().map(|name| ("TaskRun", name.as_str()));
        let listed: Vec<_> = gates.chain([("TaskRun", "build")]).collect();
        let mut runs = beside("TaskRun", "gate");
        runs[1].1 = listing("release", None, &listed);
        let lookups = Lookups::default();
        let found = tokio::time::timeout(Duration::from_secs(10), found_at(&url, &lookups, MADE, runs));
        assert!(found.await.expect("one waits for the answer to another").is_ok());
    }

    #[tokio::test]
    async fn a_run_within_another_that_the_pipeline_run_made_is_looked_up_too() {
        for (owner, is_made) in [(Some(("PipelineRun", "inner")), true), (Some(("PipelineRun", "release")), false)] {
            let inner = listing("inner", Some(("PipelineRun", "release")), &[("TaskRun", "gate")]);
            let (url, _) = server(&[(PIPELINE_RUN, inner), (TASK_RUN, gate(owner))]).await;
            let task = found_at(&url, &Lookups::default(), MADE, beside("PipelineRun", "inner")).await;
            assert_eq!(task.is_ok(), is_made, "{task:?}");
        }
    }

    /// No task beside a PipelineRun got tokens once retention had deleted a task of that one.
    #[tokio::test]
    async fn a_run_may_be_missing_from_a_pipeline_run_that_has_ended() {
        for (status, is_found) in [(json!("Unknown"), false), (json!("True"), true)] {
            let mut inner = listing("inner", Some(("PipelineRun", "release")), &[("TaskRun", "gate")]);
            inner["status"]["conditions"] = json!([{"type": "Succeeded", "status": status}]);
            let (url, _) = server(&[(PIPELINE_RUN, inner)]).await;
            let task = found_at(&url, &Lookups::default(), MADE, beside("PipelineRun", "inner")).await;
            assert_eq!(task.is_ok(), is_found, "{task:?}");
        }
    }
}
