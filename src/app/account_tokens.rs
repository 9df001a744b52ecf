//! Keeps a valid service-account token for each upstream that needs one.

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

/// How often it is checked whether a token must be renewed.
const TICK: Duration = Duration::from_secs(1);

/// The pause before an API server that issued no token, or whose last token was rejected, is asked again.
const PAUSE: Duration = Duration::from_secs(5);

/// Renews tokens before they expire, and reports as `credential/UPSTREAM` whether there is one. Only requests to that
/// upstream are affected: without a token it is not called.
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
                // It may have been requested before this generation was in force.
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
                        component.degraded(error.in_full());
                    } else {
                        component.failed(error.in_full());
                    }
                }
            }
        }
    }
}

/// The state of an upstream with such a token.
struct Watched {
    component: ComponentHandle,
    /// When a token was last requested, on the monotonic clock.
    tried: Option<Duration>,
}

impl Watched {
    fn new(app: &App, upstream: &Upstream) -> Self {
        let component = app.health.component(format!("credential/{}", upstream.name()), Gate::Report);
        Self { component, tried: None }
    }
}

/// Requests the tokens that are still missing, so that a new generation does not begin without them. Returns the errors
/// of those that are still missing afterwards, by the upstream that needs them.
pub(crate) async fn obtain(pools: &Pools, upstreams: &[Arc<Upstream>], clock: &Clock) -> Vec<(Arc<str>, Rejection)> {
    let missing = shown(upstreams).filter(|(_, token)| !token.is_held(clock));
    let asked = missing.map(async |(upstream, token)| {
        let error = renew(pools, upstreams, token, clock).await.err()?;
        tell(upstream, &error);
        Some((Arc::clone(upstream.name()), error))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Returns the problems of accounts that are new in a generation, if the API server itself says that it issues no token
/// for them: they refuse the generation, which would break a working setup. An API server that does not answer causes
/// no problem.
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
    tracing::warn!(upstream = %upstream.name(), %error, cause, "no service-account token could be obtained for an upstream");
}

/// Returns the upstreams that need a requested token.
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
        // Cannot happen, as the configuration was checked.
        None => Ok(()),
    }
}

fn find<'u>(upstreams: &'u [Arc<Upstream>], name: &str) -> Option<&'u Arc<Upstream>> {
    upstreams.iter().find(|upstream| **upstream.name() == *name)
}
