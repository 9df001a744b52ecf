//! Has each upstream that is shown the token of a service account hold one that lasts.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;

use super::App;
use crate::{
    admin::health::{ComponentHandle, Gate},
    clock::{Clock, every},
    error::Rejection,
    snapshot::Snapshot,
    upstream::{AccountToken, Pools, Upstream},
};

/// How often is looked whether a token is to be renewed.
const TICK: Duration = Duration::from_secs(1);

/// How long an API server is left alone that gave none, or whose last was not taken.
const PAUSE: Duration = Duration::from_secs(5);

/// Renews them before they end, and tells as `credential/UPSTREAM` whether there is one. It stops nobody else: without one the
/// upstream is not asked.
pub(super) async fn watch(app: &App, pools: &Pools) {
    let mut tick = every(TICK);
    let mut watched: HashMap<Arc<str>, Watched> = HashMap::new();
    loop {
        tick.tick().await;
        let upstreams = app.snapshot.load().upstreams.clone();
        watched.retain(|name, _| find(&upstreams, name).is_some_and(|upstream| upstream.account_token().is_some()));
        let mut due = Vec::new();
        for (upstream, token) in shown(&upstreams) {
            let watched = watched.entry(Arc::clone(upstream.name())).or_insert_with(|| Watched::new(app, upstream));
            let now = app.clock.passed();
            if !token.is_due(&app.clock) {
                // Perhaps by what asked for it before this generation was in force.
                watched.component.ok();
            } else if watched.tried.is_none_or(|tried| now.saturating_sub(tried) >= PAUSE) {
                watched.tried = Some(now);
                due.push((upstream, token));
            }
        }
        let renewed = due
            .into_iter()
            .map(async |(upstream, token)| (upstream, token, renew(pools, &upstreams, token, &app.clock).await));
        for (upstream, token, outcome) in join_all(renewed).await {
            let Some(Watched { component, .. }) = watched.get(upstream.name()) else { continue };
            match outcome {
                Ok(()) => component.ok(),
                Err(error) => {
                    tell(upstream, &error);
                    if token.is_held(&app.clock) {
                        component.degraded(error.to_string());
                    } else {
                        component.failed(error.to_string());
                    }
                }
            }
        }
    }
}

/// What is known of an upstream with such a token.
struct Watched {
    component: ComponentHandle,
    /// When one was asked for the last time, as the clock counts what has passed.
    tried: Option<Duration>,
}

impl Watched {
    fn new(app: &App, upstream: &Upstream) -> Self {
        let component = app.health.component(format!("credential/{}", upstream.name()), Gate::Report);
        Self { component, tried: None }
    }
}

/// Asks for those that are not there yet, so that a generation that is to be in force does not begin without. Gives those that are
/// not there then either: by the upstream that would be shown it.
pub(crate) async fn obtain(pools: &Pools, upstreams: &[Arc<Upstream>], clock: &Clock) -> Vec<(Arc<str>, Rejection)> {
    let missing = shown(upstreams).filter(|(_, token)| !token.is_held(clock));
    let asked = missing.map(async |(upstream, token)| {
        let error = renew(pools, upstreams, token, clock).await.err()?;
        tell(upstream, &error);
        Some((Arc::clone(upstream.name()), error))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// What is wrong with accounts that are new in a generation, where the API server itself says that it gives no token of one: to refuse
/// the generation with, as it would take away what works. One that does not answer stops none.
pub(super) async fn not_obtainable(pools: &Pools, current: &Snapshot, next: &Snapshot, clock: &Clock) -> Vec<String> {
    let refused = obtain(pools, &next.upstreams, clock).await;
    let is_new = |name: &str| {
        let token = |upstreams| find(upstreams, name).and_then(|upstream| upstream.account_token());
        !matches!((token(&current.upstreams), token(&next.upstreams)), (Some(ours), Some(next)) if ours.is_same(next))
    };
    let is_answer =
        |error: &Rejection| matches!(error.upstream_status(), Some(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND));
    let refused = refused.into_iter().filter(|(name, error)| is_answer(error) && is_new(name));
    refused.map(|(name, error)| format!("upstream `{name}`: {}", error.detail())).collect()
}

fn tell(upstream: &Upstream, error: &Rejection) {
    let cause = error.causes();
    tracing::warn!(upstream = %upstream.name(), %error, cause, "Doorward gets no token to show an upstream");
}

/// The upstreams that are shown a token which must be asked for.
fn shown(upstreams: &[Arc<Upstream>]) -> impl Iterator<Item = (&Arc<Upstream>, &AccountToken)> {
    upstreams.iter().filter_map(|upstream| Some((upstream, upstream.account_token()?)))
}

async fn renew(
    pools: &Pools,
    upstreams: &[Arc<Upstream>],
    token: &AccountToken,
    clock: &Clock,
) -> Result<(), Rejection> {
    match find(upstreams, token.asked_at()) {
        Some(server) => token.renew(pools, server, clock).await,
        // The configuration was checked; it is there.
        None => Ok(()),
    }
}

fn find<'u>(upstreams: &'u [Arc<Upstream>], name: &str) -> Option<&'u Arc<Upstream>> {
    upstreams.iter().find(|upstream| **upstream.name() == *name)
}
