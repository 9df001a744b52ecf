//! A request to the Dashboard's back end: its files for everybody whom the policy lets in, what its pages offer for
//! each person, and logs from outside of the cluster for those who may read them there.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, Method, StatusCode, header};
use moka::sync::Cache;

use super::{decide::Cleared, exchange::Exchange, pipeline::Ending, worker::Worker};
use crate::{
    authn::{Authenticated, CredentialId, Scheme},
    authz::{Permit, Policy, RequestView},
    body::{ResponseBody, collect},
    clock::Timestamp,
    config::raw::RouteKind,
    error::{Reason, Rejection},
    kubernetes::access_review::{Access, AccessReviewer},
    oidc::SIGN_OUT,
    snapshot::Snapshot,
    tekton::dashboard::{MAX_PROPERTIES, Page, Sight, rewrite},
    upstream::Upstream,
};

/// How long a page may offer what somebody has lost the right to. It is refused all the same.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Sights of so many people are remembered.
const MAX_SIGHTS: u64 = 1024;

/// Namespaces that are asked about for one person.
const MAX_NAMESPACES: usize = 200;

/// The part of a dashboard's route that knows the API server, by one generation.
#[derive(Debug)]
pub struct Dashboard {
    server: Arc<Upstream>,
    /// Those that people may see, as far as the configuration names them.
    namespaces: Box<[Arc<str>]>,
    sights: Cache<(Arc<str>, Arc<str>, CredentialId), Arc<Sight>>,
}

impl Dashboard {
    pub fn new(server: &Arc<Upstream>, namespaces: impl Iterator<Item = Arc<str>>) -> Self {
        let mut namespaces: Vec<_> = namespaces.collect();
        namespaces.sort();
        namespaces.dedup();
        namespaces.truncate(MAX_NAMESPACES);
        let sights = Cache::builder().max_capacity(MAX_SIGHTS).time_to_live(REMEMBERED).build();
        Self { server: Arc::clone(server), namespaces: namespaces.into(), sights }
    }
}

/// What could be another answer than the whole, new one for this person.
const CONDITIONS: [HeaderName; 6] = [
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::RANGE,
    header::IF_RANGE,
    header::ACCEPT_ENCODING,
];

impl Worker {
    /// Decides and forwards a request to the back end of a dashboard.
    pub(super) async fn browse(
        &self,
        snapshot: &Arc<Snapshot>,
        authenticated: Authenticated,
        exchange: &mut Exchange,
    ) -> Result<Ending, Rejection> {
        let page = authenticated.page().cloned().unwrap_or(Page::File);
        let mut cleared = self.decide(snapshot, authenticated, None, exchange).await?;
        let route = Arc::clone(cleared.outbound.permit().route());
        let Some(dashboard) = &route.dashboard else { return self.forward(snapshot, cleared, exchange).await };
        match page {
            Page::File => self.forward(snapshot, cleared, exchange).await,
            Page::ExternalLog { namespace, pod } => {
                let access = Access {
                    resource: "pods".into(),
                    subresource: "log".into(),
                    name: pod,
                    ..Access::new("get", namespace)
                };
                if !self.reviewer(dashboard, &cleared)?.may(&access).await? {
                    let detail = format!("Kubernetes does not let you read pod logs in namespace {}", access.namespace);
                    return Err(Rejection::new(Reason::KubernetesDenied, detail)
                        .fix("ask for a role there that allows `get` on `pods/log`"));
                }
                self.forward(snapshot, cleared, exchange).await
            }
            Page::Properties => {
                let sight = self.sight(snapshot, dashboard, &cleared).await?;
                cleared.outbound.remove_headers(&CONDITIONS);
                let is_head = cleared.outbound.permit().method() == Method::HEAD;
                let ending = self.forward(snapshot, cleared, exchange).await?;
                if is_head { Ok(ending) } else { with_sight(ending, &sight).await }
            }
        }
    }

    fn reviewer(&self, dashboard: &Dashboard, cleared: &Cleared) -> Result<AccessReviewer, Rejection> {
        let permit = cleared.outbound.permit();
        AccessReviewer::new(&self.pools, &dashboard.server, permit.principal(), &cleared.groups, &permit.meta().id_line)
    }

    /// What the person may see and do: what the policy may allow and RBAC does.
    async fn sight(
        &self,
        snapshot: &Snapshot,
        dashboard: &Dashboard,
        cleared: &Cleared,
    ) -> Result<Arc<Sight>, Rejection> {
        let permit = cleared.outbound.permit();
        let principal = permit.principal();
        let key = (Arc::clone(&principal.issuer), Arc::clone(&principal.subject), principal.credential.clone());
        if let Some(sight) = dashboard.sights.get(&key) {
            return Ok(sight);
        }
        let asked = Questions::new(&snapshot.policy, permit, dashboard, cleared.now.wall());
        let reviewer = self.reviewer(dashboard, cleared)?;
        let answers = reviewer.may_each(asked.0.clone()).await?;
        let allowed: Vec<Access> =
            asked.0.into_iter().zip(answers).filter_map(|(access, may)| may.then_some(access)).collect();
        let sign_out = (principal.scheme == Scheme::Session).then_some(SIGN_OUT);
        let sight = Arc::new(Sight { sign_out, ..sight_of(&allowed) });
        dashboard.sights.insert(key, Arc::clone(&sight));
        Ok(sight)
    }
}

fn runs(verb: &'static str, namespace: Arc<str>) -> Access {
    Access { group: "tekton.dev".into(), resource: "pipelineruns".into(), ..Access::new(verb, namespace) }
}

/// Where the pages ask for it, which rules may look at.
fn path_of(access: &Access) -> String {
    let Access { group, resource, namespace, .. } = access;
    let api = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
    match namespace.is_empty() {
        true => format!("{api}/{resource}"),
        false => format!("{api}/namespaces/{namespace}/{resource}"),
    }
}

/// What is asked of the API server: what the policy may allow, as for all else its answer would change nothing.
struct Questions(Vec<Access>);

impl Questions {
    fn new(policy: &Policy, permit: &Permit, dashboard: &Dashboard, now: Timestamp) -> Self {
        let everywhere: Arc<str> = "".into();
        let mut asked = vec![
            Access { resource: "namespaces".into(), ..Access::new("list", Arc::clone(&everywhere)) },
            runs("list", Arc::clone(&everywhere)),
            runs("create", everywhere),
        ];
        for namespace in &dashboard.namespaces {
            asked.extend(["list", "create"].map(|verb| runs(verb, Arc::clone(namespace))));
        }
        let view = permit.view(now);
        asked.retain(|access| {
            let (attributes, path) = (access.attributes(), path_of(access));
            let method = if access.verb == "create" { Method::POST } else { Method::GET };
            let view = RequestView {
                kind: RouteKind::Kubernetes,
                path: &path,
                method: &method,
                kubernetes: Some(&attributes),
                run: None,
                ..view
            };
            policy.may_allow(permit.principal(), &view)
        });
        Self(asked)
    }
}

fn sight_of(allowed: &[Access]) -> Sight {
    let may = |verb: &str, resource: &str| {
        let mut of = allowed.iter().filter(|access| access.namespace.is_empty());
        of.any(|access| access.verb == verb && access.resource == resource)
    };
    let is_everything_seen = may("list", "namespaces") && may("list", "pipelineruns");
    let listed = allowed.iter().filter(|access| access.verb == "list" && !access.namespace.is_empty());
    Sight {
        namespaces: (!is_everything_seen).then(|| listed.map(|access| Arc::clone(&access.namespace)).collect()),
        may_create: allowed.iter().any(|access| access.verb == "create"),
        sign_out: None,
    }
}

/// Puts what the person may see into the back end's answer. One that cannot be read is not passed on: the pages would
/// offer what the back end itself may do.
async fn with_sight(ending: Ending, sight: &Sight) -> Result<Ending, Rejection> {
    let Ending::Response { response, by } = ending else { return Ok(ending) };
    if response.status() != StatusCode::OK {
        return Ok(Ending::Response { response, by });
    }
    let failed = |why: String| {
        Rejection::new(Reason::UpstreamProtocol, "the Dashboard's properties cannot be read").because(why)
    };
    let (mut parts, body) = response.into_parts();
    if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(failed("they are compressed, which nobody asked for".to_owned()));
    }
    let body =
        collect(body, MAX_PROPERTIES).await.ok_or_else(|| failed("they have no end, or are too long".to_owned()))?;
    let body = rewrite(&body, sight).map_err(failed)?;
    for name in [header::ETAG, header::LAST_MODIFIED, header::CONTENT_LENGTH, header::ACCEPT_RANGES] {
        parts.headers.remove(name);
    }
    parts.headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("private, no-store"));
    let response = http::Response::from_parts(parts, ResponseBody::full(body));
    Ok(Ending::Response { response, by })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_view_needs_the_right_to_list_everything() {
        let namespaces = Access { resource: "namespaces".into(), ..Access::new("list", "".into()) };
        let (all, one) = (runs("list", "".into()), runs("list", "a".into()));
        let create = runs("create", "a".into());
        let sight = |allowed: &[&Access]| {
            let allowed: Vec<Access> = allowed.iter().map(|access| (*access).clone()).collect();
            sight_of(&allowed)
        };
        let only_a = Some(vec![Arc::from("a")]);
        assert_eq!(sight(&[]), Sight { namespaces: Some(Vec::new()), ..Sight::default() });
        assert_eq!(sight(&[&namespaces, &all]), Sight::default());
        assert_eq!(sight(&[&namespaces, &one]), Sight { namespaces: only_a.clone(), ..Sight::default() });
        assert_eq!(sight(&[&all, &one]), Sight { namespaces: only_a.clone(), ..Sight::default() });
        assert_eq!(sight(&[&one, &create]), Sight { namespaces: only_a, may_create: true, sign_out: None });
    }
}
