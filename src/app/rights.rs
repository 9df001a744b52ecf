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
    rbac::{Form, OwnRight, own_rights},
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
            let told = match missing(pools, server, forms).await {
                Ok(missing) if missing.is_empty() => String::new(),
                Ok(missing) => {
                    let all: Vec<String> = missing.iter().map(ToString::to_string).collect();
                    format!("Doorward may not {}; `doorward rbac` prints the roles that it needs", all.join(", "))
                }
                Err(error) => format!("whether Doorward may do what it needs cannot be asked: {error}"),
            };
            match told.as_str() {
                "" => component.ok(),
                why => component.failed(why.to_owned()),
            }
            if !told.is_empty() && told != *said {
                tracing::warn!(upstream = name, why = told, "Kubernetes does not allow what the configuration needs");
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

/// What Doorward lacks at each API server of a configuration, each right as people say it: for `doorward doctor`.
pub async fn lacking(
    pools: &Pools,
    root: &raw::Root,
    upstreams: &[Arc<Upstream>],
) -> Vec<(Arc<str>, Result<Vec<String>, Rejection>)> {
    let mut answers = Vec::new();
    for (name, forms) in needed(root) {
        let Some(server) = upstreams.iter().find(|upstream| **upstream.name() == *name) else { continue };
        let missing = missing(pools, server, forms).await;
        let said = missing.map(|missing| missing.iter().map(ToString::to_string).collect());
        answers.push((Arc::clone(server.name()), said));
    }
    answers
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
    let mut fewest: Option<Vec<Access>> = None;
    for accesses in forms {
        let answers = reviewer.may_each(accesses.clone()).await?;
        let refused = accesses.into_iter().zip(answers).filter(|(_, may)| !may).map(|(access, _)| access);
        let refused: Vec<Access> = refused.collect();
        if refused.is_empty() {
            return Ok(refused);
        }
        if fewest.as_ref().is_none_or(|fewest| refused.len() < fewest.len()) {
            fewest = Some(refused);
        }
    }
    Ok(fewest.unwrap_or_default())
}
