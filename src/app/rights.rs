//! Checks whether Kubernetes gives Doorward the rights that its configuration needs: at the start, with each
//! generation, and periodically.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::task::spawn_blocking;

use super::App;
use crate::{
    admin::health::{ComponentHandle, Gate},
    clock::every,
    config::raw,
    error::Rejection,
    issuers::{Issuers, TokenReview},
    kubernetes::access_review::{Access, AccessReviewer},
    rbac::{Form, OwnRight, PRINTS, beyond, far_reaching, group_rights, namespaces, own_rights, user_rights},
    snapshot::{Resolved, Snapshot},
    upstream::{Pools, Upstream},
};

/// How often a new generation is checked for.
const TICK: Duration = Duration::from_secs(1);

/// How long a reload waits for an API server.
const PATIENCE: Duration = Duration::from_secs(5);

/// The number of ticks after which rights are checked again without a new generation.
const AGAIN: u32 = 300;

/// Reports missing rights as `rights/UPSTREAM`. It refuses no requests, as Kubernetes itself refuses what it does not
/// allow.
pub(super) async fn watch(app: &App, pools: &Pools) {
    let mut tick = every(TICK);
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
        // A policy of thousands of rules needs tens of thousands of rights.
        let working = Arc::clone(&snapshot);
        let servers = spawn_blocking(move || servers(&working.raw, &working.upstreams, &working.issuers)).await;
        let Ok(servers) = servers else { continue };
        components.retain(|upstream, _| servers.iter().any(|server| server.upstream.name() == upstream));
        for server in servers {
            let name = server.upstream.name();
            let (component, said) = components
                .entry(Arc::clone(name))
                .or_insert_with(|| (app.health.component(format!("rights/{name}"), Gate::Report), String::new()));
            let told = match server.rights(pools, &snapshot.raw).await {
                Ok(Rights { lacks, .. }) if !lacks.is_empty() => {
                    let why = format!("Doorward may not {}; {PRINTS} the roles that it needs", lacks.join(", "));
                    component.failed(why.clone());
                    why
                }
                Ok(Rights { beyond, .. }) if !beyond.is_empty() => {
                    let why = format!(
                        "Doorward may {}, which this configuration does not need; bind it only to the roles that {PRINTS}",
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
                    let why = format!("Doorward's rights cannot be checked: {}", error.in_full());
                    component.failed(why.clone());
                    why
                }
            };
            if !told.is_empty() && told != *said {
                tracing::warn!(
                    upstream = %name,
                    why = told,
                    "Doorward's rights in Kubernetes are not what the configuration needs"
                );
            }
            *said = told;
        }
    }
}

/// Returns a problem, which refuses the new generation, for each API server that does not let Doorward impersonate the
/// groups that it gives and the current one does not give. If an API server does not say so, for whatever reason, there
/// is no problem: it will itself refuse what it does not allow, and new denies in the generation must not wait for it.
pub(super) async fn not_impersonable(pools: &Pools, current: &raw::Root, next: &Snapshot) -> Vec<String> {
    let asked = new_groups(current, &next.raw).into_iter().filter_map(|(name, forms)| {
        let server = next.upstreams.iter().find(|upstream| **upstream.name() == *name)?;
        Some(groups_missing(pools, server, forms))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Returns the rights for the groups that a generation gives and the current one does not give, by upstream. With them,
/// if there are any, are those for users: a role for either form has these, and so shows which form the cluster has.
fn new_groups(current: &raw::Root, next: &raw::Root) -> BTreeMap<String, [Vec<Access>; 2]> {
    by_upstream(|form| {
        let before: HashSet<OwnRight> = group_rights(current, form).into_iter().collect();
        let mut rights = group_rights(next, form);
        rights.retain(|right| !before.contains(right));
        if !rights.is_empty() {
            rights.extend(user_rights(next, form));
        }
        rights
    })
}

/// Returns the problem of the groups among these that one API server does not let Doorward impersonate, if there are any.
async fn groups_missing(pools: &Pools, server: &Arc<Upstream>, forms: [Vec<Access>; 2]) -> Option<String> {
    let name = server.name();
    let missing = match tokio::time::timeout(PATIENCE, missing(pools, server, forms)).await {
        Ok(Ok((_, missing))) => missing,
        Ok(Err(error)) => {
            let why = error.in_full();
            tracing::warn!(upstream = %name, why, "cannot check whether new groups may be impersonated");
            return None;
        }
        Err(_) => {
            tracing::warn!(upstream = %name, "the API server did not answer in time whether new groups may be impersonated");
            return None;
        }
    };
    let groups: Vec<Access> = missing.into_iter().filter(|access| access.resource == "groups").collect();
    not_given(name, &groups)
}

/// Returns the problem of groups that an API server does not let Doorward impersonate, with the remedy.
fn not_given(upstream: &str, groups: &[Access]) -> Option<String> {
    let Access { group: api_group, verb, .. } = groups.first()?;
    let given = match groups {
        [only] => format!("the group {}, which", only.name),
        several => format!("{} groups that", several.len()),
    };
    let names: Vec<String> = groups.iter().map(|group| format!("\"{}\"", group.name)).collect();
    Some(format!(
        "grants give {given} Doorward may not impersonate at upstream `{upstream}`: its role lacks \
         {{apiGroups: [\"{api_group}\"], resources: [groups], verbs: [\"{verb}\"], resourceNames: [{names}]}}; apply what \
         {PRINTS} for this configuration, then reload",
        names = names.join(", "),
    ))
}

/// The differences between the rights that Doorward has and needs, as text.
#[derive(Debug, Default)]
pub struct Rights {
    pub lacks: Vec<String>,
    /// Rights that are not needed.
    pub beyond: Vec<String>,
}

/// Returns Doorward's rights at each API server of a configuration, for `doorward doctor`.
pub async fn examine(
    pools: &Pools,
    root: &raw::Root,
    resolved: &Resolved,
) -> Vec<(Arc<str>, Result<Rights, Rejection>)> {
    let mut answers = Vec::new();
    for server in servers(root, resolved.upstreams(), resolved.issuers()) {
        answers.push((Arc::clone(server.upstream.name()), server.rights(pools, root).await));
    }
    answers
}

/// An API server at which Doorward needs rights.
struct Server {
    upstream: Arc<Upstream>,
    /// The rights for each form of impersonation.
    needed: [Vec<Access>; 2],
    reviewers: Vec<Reviewer>,
}

/// A token reviewer with its own credential, and the name of its issuer.
type Reviewer = (Arc<str>, Arc<TokenReview>);

fn servers(root: &raw::Root, upstreams: &[Arc<Upstream>], issuers: &Issuers) -> Vec<Server> {
    let mut needed = by_upstream(|form| own_rights(root, form));
    let mut reviewers: BTreeMap<&str, Vec<Reviewer>> = BTreeMap::new();
    for issuer in &root.issuers {
        let Some(settings) = &issuer.token_review else { continue };
        let reviewer =
            issuers.get(&issuer.name).and_then(|issuer| Some((Arc::clone(issuer.name()), issuer.token_review()?)));
        reviewers.entry(&settings.upstream).or_default().extend(reviewer);
    }
    let server = |upstream: &Arc<Upstream>| {
        let needed = needed.remove(&**upstream.name());
        let reviewers = reviewers.remove(&**upstream.name());
        (needed.is_some() || reviewers.is_some()).then(|| Server {
            upstream: Arc::clone(upstream),
            needed: needed.unwrap_or_default(),
            reviewers: reviewers.unwrap_or_default(),
        })
    };
    upstreams.iter().filter_map(server).collect()
}

impl Server {
    async fn rights(&self, pools: &Pools, root: &raw::Root) -> Result<Rights, Rejection> {
        let mut rights = Rights::default();
        for (issuer, reviewer) in &self.reviewers {
            let whose = format!("`token_review.bearer` of issuer `{issuer}`");
            match reviewer.is_allowed().await {
                Ok(true) => {}
                Ok(false) => rights.lacks.push(format!("create tokenreviews.authentication.k8s.io with {whose}")),
                Err(error) => rights.lacks.push(format!("ask what {whose} may do ({error})")),
            }
        }
        if self.needed.iter().all(Vec::is_empty) {
            return Ok(rights);
        }
        let (form, missing) = missing(pools, &self.upstream, self.needed.clone()).await?;
        rights.lacks.extend(missing.iter().map(ToString::to_string));
        let reviewer = AccessReviewer::own(pools, &self.upstream);
        let mut rules = Vec::new();
        for namespace in namespaces(root, self.upstream.name()) {
            let here = reviewer.rules(&namespace).await?;
            rules.push((namespace, here));
        }
        let far = far_reaching(root, self.upstream.name(), form);
        let may = reviewer.may_each(far.clone()).await?;
        let far: Vec<Access> = far.into_iter().zip(may).filter(|(_, may)| *may).map(|(access, _)| access).collect();
        rights.beyond = at_most_ten(beyond(root, self.upstream.name(), form, &rules, &far));
        Ok(rights)
    }
}

/// Shortens a long list of rights.
fn at_most_ten(mut rights: Vec<String>) -> Vec<String> {
    let more = rights.len().saturating_sub(10);
    rights.truncate(10);
    if more > 0 {
        rights.push(format!("{more} more"));
    }
    rights
}

/// Returns the needed rights by upstream, for each form of impersonation.
fn by_upstream(rights: impl Fn(Form) -> Vec<OwnRight>) -> BTreeMap<String, [Vec<Access>; 2]> {
    let mut needed: BTreeMap<String, [Vec<Access>; 2]> = BTreeMap::new();
    for (index, form) in [Form::Classic, Form::Constrained].into_iter().enumerate() {
        for OwnRight { upstream, access } in rights(form) {
            if let Some(list) = needed.entry(upstream).or_default().get_mut(index) {
                list.push(access);
            }
        }
    }
    needed
}

/// Returns the form of impersonation that an API server lets Doorward use, and the rights that are missing for it: the
/// constrained form if nothing is missing for that, else the form for which more is allowed.
async fn missing(
    pools: &Pools,
    server: &Arc<Upstream>,
    [classic, constrained]: [Vec<Access>; 2],
) -> Result<(Form, Vec<Access>), Rejection> {
    let reviewer = AccessReviewer::own(pools, server);
    let refused = async |accesses: &[Access]| -> Result<Vec<Access>, Rejection> {
        let answers = reviewer.may_each(accesses.to_vec()).await?;
        let refused = accesses.iter().zip(answers).filter(|(_, may)| !may).map(|(access, _)| access.clone());
        Ok(refused.collect())
    };
    let of_classic = refused(&classic).await?;
    // The constrained form needs many more rights, of which a cluster without support for it has none.
    if let Some(first) = constrained.first()
        && of_classic.is_empty()
        && !reviewer.may(first).await?
    {
        return Ok((Form::Classic, of_classic));
    }
    let of_constrained = refused(&constrained).await?;
    let allowed = (classic.len() - of_classic.len(), constrained.len() - of_constrained.len());
    let is_constrained = of_constrained.is_empty() || (!of_classic.is_empty() && allowed.1 > allowed.0);
    Ok(if is_constrained { (Form::Constrained, of_constrained) } else { (Form::Classic, of_classic) })
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, http::StatusCode};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::{report::At, resolver::Resolver},
        kubernetes::access_review,
        upstream::{Metrics, Pings},
    };

    const BEFORE: &str = "
routes: [{name: api, kind: kubernetes, hosts: [api.test], schemes: [bearer], upstream: api}]
grants: [{id: dev, who: {issuers: [a]}, kubernetes_groups: [dev]}]
";

    fn root(yaml: &str) -> raw::Root {
        serde_saphyr::from_str(yaml).unwrap()
    }

    /// An API server that allows Doorward what its roles for a configuration have in one form.
    async fn server(of: &str, form: Form) -> Arc<Upstream> {
        let allowed: Vec<Value> = own_rights(&root(of), form)
            .iter()
            .map(|right| serde_json::from_slice(&access_review::review(&right.access)).unwrap())
            .collect();
        let router = Router::new().fallback(move |Json(review): Json<Value>| {
            let is_allowed = allowed.contains(&review);
            async move { (StatusCode::CREATED, Json(json!({"status": {"allowed": is_allowed}}))) }
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let entry = format!("{{name: api, url: 'http://{}'}}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let entry: raw::Upstream = serde_saphyr::from_str(&entry).unwrap();
        Upstream::resolve(&entry, &raw::Limits::default(), &At::root(), &mut Resolver::default()).unwrap()
    }

    /// The problem of the groups that a configuration has beyond `BEFORE`, in a cluster with its roles in one form.
    async fn problem(groups: &str, form: Form) -> Option<String> {
        let next = root(&BEFORE.replace("[dev]", &format!("[dev, {groups}]")));
        let mut new = new_groups(&root(BEFORE), &next);
        let pools = Pools::new(Metrics::default(), Pings::NORMAL);
        groups_missing(&pools, &server(BEFORE, form).await, new.remove("api").unwrap()).await
    }

    /// The classic right, added as the refusal said, undid the constraint of the others.
    #[tokio::test]
    async fn the_right_for_a_new_group_is_named_in_the_form_that_the_cluster_has() {
        for (form, right) in [
            (Form::Classic, r#"apiGroups: [""], resources: [groups], verbs: ["impersonate"], resourceNames: ["ops"]"#),
            (
                Form::Constrained,
                r#"apiGroups: ["authentication.k8s.io"], resources: [groups], verbs: ["impersonate:user-info"], resourceNames: ["ops"]"#,
            ),
        ] {
            let told = problem("ops", form).await.unwrap();
            assert!(told.contains(right), "{told}");
            assert!(told.starts_with("grants give the group ops, which Doorward may not impersonate"), "{told}");
            // Roles that are printed with other options replace the constrained form by the classic one.
            assert!(told.contains("with the same options as before (`--form` too)"), "{told}");
        }
    }

    /// Each group repeated the whole sentence.
    #[tokio::test]
    async fn several_new_groups_are_one_problem_with_one_rule() {
        let told = problem("ops, net", Form::Constrained).await.unwrap();
        assert!(told.starts_with("grants give 2 groups that Doorward may not impersonate at upstream `api`"), "{told}");
        assert!(told.contains(r#"resourceNames: ["ops", "net"]"#) || told.contains(r#"["net", "ops"]"#), "{told}");
        assert_eq!(told.matches("apply what").count(), 1, "{told}");
    }

    #[test]
    fn without_a_new_group_nothing_is_asked() {
        let (current, next) = (root(BEFORE), root(&BEFORE.replace("id: dev", "id: others")));
        assert!(new_groups(&current, &next).is_empty());
    }

    #[test]
    fn a_long_list_ends_with_how_many_there_are_more() {
        let rights = |count: u32| at_most_ten((0..count).map(|index| index.to_string()).collect());
        assert_eq!(rights(10).len(), 10);
        assert_eq!(rights(12).last().unwrap(), "2 more");
    }
}
