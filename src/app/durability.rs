//! Checks whether a shared store is durable: held deliveries must not be written to one that could lose them, nor use
//! up its last space.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::App;
use crate::{
    admin::health::{ComponentHandle, Gate},
    config::{report::At, resolver::Resolver},
    snapshot::Resolved,
    store::{self, Durability, Redis},
};

/// Reports a store that could lose held deliveries, if it can be asked: for `doorward check`.
pub fn check_held(runtime: &Runtime, resolved: &Resolved, resolver: &mut Resolver) {
    let Some(store::Settings::Redis(settings)) = &resolved.store else { return };
    if !resolved.routes().hold() {
        return;
    }
    let at = At::root().key("store").key("redis");
    let redis = Redis::new((**settings).clone(), runtime.handle().clone());
    match runtime.block_on(redis.durability()) {
        Ok(Durability::Synced) => {}
        Ok(Durability::Lossy(why)) => {
            resolver
                .error(&at, why)
                .help("or set `hold: false` for all senders; docs/webhooks.md says what can be lost then");
        }
        Err(error) => {
            resolver
                .warning(&at, format!("cannot check whether held deliveries are safe there: {error}"))
                .help("check again where Redis can be reached; a start refuses them if they are not");
        }
    }
}

/// How often a shared store is asked for its clock, and whether it is durable.
const TICK: Duration = Duration::from_secs(30);

/// How often durability is checked while deliveries may be held, as new ones could use up its last space in between.
const WHILE_HELD: Duration = Duration::from_secs(5);

/// How often durability is checked while deliveries are refused for it: senders such as GitHub send each only once.
const WHILE_REFUSED: Duration = Duration::from_secs(1);

/// The pause after it did not answer.
const RETRY: Duration = Duration::from_millis(500);

/// The health component that reports whether deliveries can be held.
pub(super) const COMPONENT: &str = "held-deliveries";

/// Reports whether the local clock agrees with the store's.
pub(super) async fn watch_clock(app: &App, redis: &Redis) {
    let component = app.health.component("store-clock", Gate::Report);
    loop {
        // Health reports a store that is unavailable.
        if let Ok(ahead) = redis.clock_ahead(&app.clock).await {
            app.metrics.store.clock_ahead(ahead);
            match store::clock_trouble(ahead) {
                None => component.ok(),
                Some(trouble) => component.degraded(trouble),
            }
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Prevents deliveries from being held in a store that could lose them or has little space left. Until the store has
/// answered once, none can be held, so the replica is not ready; after that the component does not affect readiness, as
/// callers other than webhooks do not depend on it.
pub(super) async fn watch(app: &App, redis: &Redis, component: &ComponentHandle) {
    let mut is_known = false;
    let mut logged = None;
    loop {
        let pause = match redis.doubt().await {
            Ok(doubt) => {
                is_known = true;
                app.health.component(COMPONENT, Gate::Report);
                app.held.set_doubt(doubt);
                let holds = app.snapshot.load().routes.hold();
                match doubt.filter(|_| holds) {
                    Some(why) => {
                        if is_log_due(&mut logged, why, Instant::now()) {
                            tracing::error!(why, "deliveries that are to be held are refused");
                        }
                        component.failed(why);
                    }
                    None => {
                        logged = None;
                        component.ok();
                    }
                }
                pause_after(doubt, holds)
            }
            // The last answer remains valid; without the store nothing is written anyway.
            Err(error) if is_known => {
                tracing::debug!(%error, "the store does not say whether its writes are durable");
                RETRY
            }
            Err(error) => {
                component.failed(format!("the store does not say whether its writes are durable: {error}"));
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Returns the pause until the next check. `holds` says whether a route holds deliveries, unless there is a `doubt`.
fn pause_after(doubt: Option<&str>, holds: bool) -> Duration {
    match (holds, doubt) {
        (true, None) => WHILE_HELD,
        (true, Some(_)) => WHILE_REFUSED,
        (false, _) => TICK,
    }
}

/// Whether to log a reason now: it is repeated less often than it is checked. If so, it counts as logged.
fn is_log_due(logged: &mut Option<(&'static str, Instant)>, why: &'static str, now: Instant) -> bool {
    let is_due = logged.is_none_or(|(last, at)| last != why || now.duration_since(at) >= TICK);
    if is_due {
        *logged = Some((why, now));
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some large deliveries within half a minute used up the space that is needed to process held deliveries. Once
    /// there was space again, deliveries were refused for another half minute, and lost.
    #[test]
    fn a_store_is_checked_more_often_while_it_may_hold_deliveries_or_they_are_refused() {
        for (doubt, holds, at_most) in
            [(None, true, 5), (None, false, 30), (Some("it is full"), true, 1), (Some("it is full"), false, 30)]
        {
            assert_eq!(pause_after(doubt, holds), Duration::from_secs(at_most), "{doubt:?} {holds}");
        }
    }

    #[test]
    fn a_reason_is_logged_at_once_and_then_less_often_than_it_is_checked() {
        let (mut logged, start) = (None, Instant::now());
        for (why, seconds, is_due) in [
            ("full", 0, true),
            ("full", 1, false),
            ("full", 29, false),
            ("full", 30, true),
            ("unsynced", 31, true),
            ("full", 32, true),
            ("full", 33, false),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(is_log_due(&mut logged, why, now), is_due, "{why} {seconds}");
        }
    }
}
