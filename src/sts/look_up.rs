//! Where pods and runs are looked up: at what the watches tell, which costs nothing, or at the API server.

use std::sync::Arc;

use http::{HeaderValue, Request, StatusCode, header};
use kube::api::DynamicObject;

use super::{
    ends::{Ends, Kind},
    objects::{Identity, Pod, Run},
    refusal::Refusal,
};
use crate::{
    body::{RequestBody, collect},
    clock::Clock,
    error::{Reason, Rejection},
    upstream::{Lane, Pools, Upstream},
};

/// The largest object of a run: etcd takes none beyond.
const MAX_OBJECT: usize = 3 << 20;

/// Looks up objects of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    pub ends: &'a Ends,
    pub clock: &'a Clock,
    /// The name of its issuer.
    pub cluster: &'a Arc<str>,
    pub pools: &'a Pools,
    /// The API server, which is asked with Doorward's own credential.
    pub server: &'a Arc<Upstream>,
}

/// Where a [`Lookup`] looks.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A moment behind, and without what has ended: good to find what there is, not to refuse.
    Watched,
    Server,
}

impl Lookup<'_> {
    /// The pod that this name and uid mean, unless it has ended.
    pub async fn pod(self, place: Place, namespace: &str, (name, uid): (&str, &str)) -> Result<Arc<Pod>, Refusal> {
        let pod = match place {
            Place::Watched => self.ends.pod(self.cluster, namespace, uid, self.clock.now()),
            Place::Server => {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
                self.get(&path).await?.map(|pod| Arc::new(Pod::read(pod)))
            }
        };
        let pod = pod.ok_or_else(|| gone("pod", name))?;
        still_is(&pod.identity, pod.end, "pod", (name, uid))?;
        Ok(pod)
    }

    /// The TaskRun or PipelineRun that this name and uid mean, unless it has ended.
    pub async fn run(
        self,
        place: Place,
        kind: Kind,
        namespace: &str,
        (name, uid): (&str, &str),
    ) -> Result<Arc<Run>, Refusal> {
        let run = match place {
            Place::Watched => self.ends.run(self.cluster, kind, namespace, uid, self.clock.now()),
            Place::Server => {
                let resource = kind.resource().plural;
                let path = format!("/apis/tekton.dev/v1/namespaces/{namespace}/{resource}/{name}");
                self.get(&path).await?.map(|run| Arc::new(Run::read(kind, run)))
            }
        };
        let run = run.ok_or_else(|| gone(kind.name(), name))?;
        still_is(&run.identity, run.end, kind.name(), (name, uid))?;
        Ok(run)
    }

    /// `None` if there is none.
    async fn get(self, path: &str) -> Result<Option<DynamicObject>, Refusal> {
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

/// Refuses what is another object, or has ended.
pub(super) fn still_is(
    found: &Identity,
    end: Option<&str>,
    kind: &str,
    (name, uid): (&str, &str),
) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::subject(format!("{kind} {name}: {why}")));
    match end {
        _ if found.uid != uid || found.name != name => refuse("it is another one than is meant, under the same name"),
        Some(end) => refuse(end),
        None => Ok(()),
    }
}
