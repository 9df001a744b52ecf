//! Whether Kubernetes allows Doorward what its configuration needs, asked at the start, with each generation, and now and then.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use super::App;
use crate::{
    admin::health::{ComponentHandle, Gate},
    config::raw,
    error::Rejection,
    kubernetes::access_review::{Access, AccessReviewer},
    rbac::{Form, OwnRight, far_reaching, own_rights},
    snapshot::Snapshot,
    upstream::{Pools, Upstream},
};

/// How often is looked whether there is a new generation.
const TICK: Duration = Duration::from_secs(1);

/// How long a reload waits for an API server.
const PATIENCE: Duration = Duration::from_secs(5);

/// When it is asked again though nothing has changed here.
const AGAIN: u32 = 300;

/// Tells what is missing as `rights/UPSTREAM`. It stops nobody: what is not allowed is refused by Kubernetes itself.
pub(super) async fn watch(app: &App, pools: &Pools) {
    let mut tick = tokio::time::interval(TICK);
    let mut components: HashMap<Arc<str>, (ComponentHandle, String)> = HashMap::new();
    let (mut looked_at, mut ticks) = (None, 0);
    loop {
        tick.tick().await;
        ticks += 1;
        let snapshot = app.snapshot.load_full();
        if looked_at == Some(snapshot.number) && ticks < AGAIN {
            continue;
        }
        (looked_at, ticks) = (Some(snapshot.number), 0);
        let needed = needed(&snapshot.raw);
        components.retain(|upstream, _| needed.contains_key(&**upstream));
        for (name, forms) in needed {
            let Some(server) = snapshot.upstreams.iter().find(|upstream| **upstream.name() == *name) else { continue };
            let (component, said) = components
                .entry(Arc::clone(server.name()))
                .or_insert_with(|| (app.health.component(format!("rights/{name}"), Gate::Report), String::new()));
            let told = match rights_at(pools, server, forms, &snapshot.raw).await {
                Ok(Rights { lacks, .. }) if !lacks.is_empty() => {
                    let why = format!(
                        "Doorward may not {}; `doorward rbac` prints the roles that it needs",
                        lacks.join(", ")
                    );
                    component.failed(why.clone());
                    why
                }
                Ok(Rights { beyond, .. }) if !beyond.is_empty() => {
                    let why = format!(
                        "Doorward may {}, which nothing here needs; bind it to what `doorward rbac` prints alone",
                        beyond.join(", ")
                    );
                    component.degraded(why.clone());
                    why
                }
                Ok(_) => {
                    component.ok();
                    String::new()
                }
                Err(error) => {
                    let why = format!("whether Doorward may do what it needs cannot be asked: {error}");
                    component.failed(why.clone());
                    why
                }
            };
            if !told.is_empty() && told != *said {
                tracing::warn!(
                    upstream = name,
                    why = told,
                    "Doorward's rights in Kubernetes are not what the configuration needs"
                );
            }
            *said = told;
        }
    }
}

/// Groups that a new generation gives, that the one in force did not, and that Doorward may not impersonate: a problem each, to
/// refuse the generation with. None where an API server does not say so, for whatever reason: it will itself refuse what it does
/// not allow, and what else the generation denies must not wait for it.
pub(super) async fn not_impersonable(pools: &Pools, current: &raw::Root, next: &Snapshot) -> Vec<String> {
    let before = needed(current);
    let mut problems = Vec::new();
    for (name, mut forms) in needed(&next.raw) {
        let known = before.get(&name);
        for (index, form) in forms.iter_mut().enumerate() {
            let known = known.and_then(|forms| forms.get(index)).map(Vec::as_slice).unwrap_or_default();
            form.retain(|access| {
                access.resource == "groups" && access.verb.starts_with("impersonate") && !known.contains(access)
            });
        }
        let Some(server) = next.upstreams.iter().find(|upstream| **upstream.name() == *name) else { continue };
        if forms.iter().all(Vec::is_empty) {
            continue;
        }
        let missing = match tokio::time::timeout(PATIENCE, missing(pools, server, forms)).await {
            Ok(Ok(missing)) => missing,
            Ok(Err(error)) => {
                tracing::warn!(upstream = name, %error, "whether new groups may be impersonated cannot be asked");
                continue;
            }
            Err(_) => {
                tracing::warn!(upstream = name, "whether new groups may be impersonated was asked, and not answered");
                continue;
            }
        };
        problems.extend(missing.iter().map(|access| {
            format!(
                "grants give the group {group}, which Doorward may not impersonate at upstream `{name}`: its role lacks \
                 {{apiGroups: [\"{api_group}\"], resources: [groups], verbs: [\"{verb}\"], resourceNames: [\"{group}\"]}}; apply what \
                 `doorward rbac` prints for this configuration, then reload",
                group = access.name,
                api_group = access.group,
                verb = access.verb,
            )
        }));
    }
    problems
}

/// How what Doorward may do differs from what it needs to, each right as people say it.
#[derive(Debug, Default)]
pub struct Rights {
    pub lacks: Vec<String>,
    /// What reaches far and is not needed.
    pub beyond: Vec<String>,
}

/// Doorward's rights at each API server of a configuration, for `doorward doctor`.
pub async fn examine(
    pools: &Pools,
    root: &raw::Root,
    upstreams: &[Arc<Upstream>],
) -> Vec<(Arc<str>, Result<Rights, Rejection>)> {
    let mut answers = Vec::new();
    for (name, forms) in needed(root) {
        let Some(server) = upstreams.iter().find(|upstream| **upstream.name() == *name) else { continue };
        answers.push((Arc::clone(server.name()), rights_at(pools, server, forms, root).await));
    }
    answers
}

async fn rights_at(
    pools: &Pools,
    server: &Arc<Upstream>,
    forms: [Vec<Access>; 2],
    root: &raw::Root,
) -> Result<Rights, Rejection> {
    let lacks = missing(pools, server, forms).await?.iter().map(ToString::to_string).collect();
    let far_reaching = far_reaching(root, server.name());
    let may = AccessReviewer::own(pools, server).may_each(far_reaching.clone()).await?;
    let beyond = far_reaching.iter().zip(may).filter(|(_, may)| *may).map(|(access, _)| access.to_string()).collect();
    Ok(Rights { lacks, beyond })
}

/// By upstream, what is needed in each form of impersonation.
fn needed(root: &raw::Root) -> BTreeMap<String, [Vec<Access>; 2]> {
    let mut needed: BTreeMap<String, [Vec<Access>; 2]> = BTreeMap::new();
    for (index, form) in [Form::Classic, Form::Constrained].into_iter().enumerate() {
        for OwnRight { upstream, access } in own_rights(root, form) {
            if let Some(list) = needed.entry(upstream).or_default().get_mut(index) {
                list.push(access);
            }
        }
    }
    needed
}

/// What the API server would not allow, in the form in which it allows more.
async fn missing(pools: &Pools, server: &Arc<Upstream>, forms: [Vec<Access>; 2]) -> Result<Vec<Access>, Rejection> {
    let reviewer = AccessReviewer::own(pools, server);
    let mut most: Option<(usize, Vec<Access>)> = None;
    for accesses in forms {
        let all = accesses.len();
        let answers = reviewer.may_each(accesses.clone()).await?;
        let refused = accesses.into_iter().zip(answers).filter(|(_, may)| !may).map(|(access, _)| access);
        let refused: Vec<Access> = refused.collect();
        if refused.is_empty() {
            return Ok(refused);
        }
        let allowed = all - refused.len();
        if most.as_ref().is_none_or(|(most, _)| allowed > *most) {
            most = Some((allowed, refused));
        }
    }
    Ok(most.map(|(_, refused)| refused).unwrap_or_default())
}
